//! The only writer of snapshots: takes changes from everyone, has the brain decide, publishes, and has told what changed.
//! Changes that wait are taken together, so a burst becomes one generation.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    Brain, Change, Happening, Kind, Notice, Overview, View,
    certificates::{self, Certificates},
    compile::manner,
    discovery::{self, DiscoveryHandle},
    health::{HealthHandle, Target},
    inputs::{Name, OpenListener, TlsInForce, listed},
    news::News,
    overview::{self, Now},
    verdicts::{Finding, FindingKind},
};
use crate::{
    config::Config,
    ids::Generation,
    state::{Phase, ReportReceiver, Shared, Snapshot, Termination},
};

/// How often what people are shown is looked over: most of it changes without a new generation.
const SHOW: Duration = Duration::from_secs(1);

/// How often what the data plane has counted is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How often the files of certificates are looked at.
const FILES: Duration = Duration::from_secs(1);

/// Changes taken into one generation at the most, so that a flood cannot hold the next generation back.
const BATCH: usize = 1024;

/// What the process itself asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// Put a config in force.
    Config(NewConfig),
    /// Take in every change that waits already, then answer.
    Settle(oneshot::Sender<()>),
}

/// A config whose listeners have their sockets.
#[derive(Debug)]
pub(super) struct NewConfig {
    pub(super) config: Arc<Config>,
    pub(super) listeners: Vec<OpenListener>,
    pub(super) certificates: Certificates,
    /// Addresses of names that the config before did not have.
    pub(super) resolved: Vec<(Name, Vec<SocketAddr>)>,
    /// Answered once the config is in force.
    pub(super) done: oneshot::Sender<Generation>,
}

/// Where changes come from, and whom a new config concerns.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) reports: ReportReceiver,
    pub(super) health: Arc<HealthHandle>,
    pub(super) discovery: Arc<DiscoveryHandle>,
}

/// The reconciler.
#[derive(Debug)]
pub(super) struct Reconciler {
    shared: Arc<Shared>,
    view: Arc<View>,
    doors: Doors,
    brain: Brain,
    news: News,
    /// When the overview was last written.
    shown: Instant,
    certificates: Certificates,
    /// What is told of them, and which of them were told to come to their end.
    told: Arc<[certificates::Told]>,
    calendar: certificates::Calendar,
    /// A look at the files of certificates, which may take as long as the disk does.
    looking: Option<JoinHandle<(Certificates, Vec<certificates::Notice>)>>,
}

impl Reconciler {
    /// `servers`: where the admin API and telemetry listen.
    pub(super) fn new(
        (shared, view): (Arc<Shared>, Arc<View>),
        doors: Doors,
        config: Arc<Config>,
        servers: Vec<SocketAddr>,
    ) -> Self {
        Self {
            shared,
            view,
            doors,
            brain: Brain::new(config, servers, rand::random()),
            news: News::default(),
            shown: Instant::now(),
            certificates: Certificates::default(),
            told: Arc::default(),
            calendar: certificates::Calendar::default(),
            looking: None,
        }
    }

    /// Runs until every sender of changes is gone.
    pub(super) async fn run(mut self) {
        let mut look = interval(LOOK);
        let mut files = interval(FILES);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = self.brain.due();
            tokio::select! {
                biased;
                Some(request) = self.doors.requests.recv() => match request {
                    Request::Config(new) => self.configure(new),
                    Request::Settle(done) => self.settle(done),
                },
                Some(first) = self.doors.changes.recv() => self.change(first),
                Some(report) = self.doors.reports.recv() => self.doors.health.hint(&report.endpoint().key()),
                () = sleep_until(step.unwrap_or_else(Instant::now)), if step.is_some() => self.publish(),
                looked = looked(&mut self.looking), if self.looking.is_some() => self.renew(looked),
                _ = files.tick(), if self.looking.is_none() && !self.doors.changes.is_closed() => {
                    let mut certificates = self.certificates.clone();
                    self.looking = Some(tokio::task::spawn_blocking(move || {
                        let notices = certificates.changed();
                        (certificates, notices)
                    }));
                }
                _ = look.tick(), if !self.doors.changes.is_closed() => {
                    self.brain.look(Instant::now());
                    self.publish();
                    self.refresh();
                }
                else => return,
            }
        }
    }

    fn configure(&mut self, new: NewConfig) {
        // What was looked at meanwhile belongs to the config before.
        self.looking = None;
        self.certificates = new.certificates;
        self.told = self.certificates.told().into();
        self.brain.secure(in_force(&self.certificates));
        self.brain.configure(new.config, new.listeners, new.resolved, Instant::now());
        self.publish();
        let names = self.brain.inputs().names().into_iter();
        let names = names.map(|(pool, host, port)| discovery::Name { pool, host, port });
        self.doors.discovery.set_names(names.collect());
        self.set_targets();
        // Whoever asked may have given up waiting.
        new.done.send(self.brain.snapshot().generation).unwrap_or_default();
        self.tell_time();
    }

    /// Takes what a look at the files has found.
    fn renew(&mut self, looked: Option<(Certificates, Vec<certificates::Notice>)>) {
        self.looking = None;
        let Some((certificates, notices)) = looked else { return };
        self.certificates = certificates;
        if notices.is_empty() {
            return self.tell_time();
        }
        self.told = self.certificates.told().into();
        if notices.iter().any(|notice| matches!(notice, certificates::Notice::Renewed { .. })) {
            self.brain.secure(in_force(&self.certificates));
            self.publish();
            self.set_targets();
        }
        let generation = self.brain.snapshot().generation;
        for notice in &notices {
            self.view.journal.record(generation, happened(notice));
        }
        self.tell_time();
    }

    /// Tells of certificates whose time comes to its end.
    fn tell_time(&mut self) {
        let generation = self.brain.snapshot().generation;
        for nearing in self.calendar.look(&self.told, Timestamp::now().as_second()) {
            self.view.journal.record(generation, ends(&nearing));
        }
    }

    fn settle(&mut self, done: oneshot::Sender<()>) {
        while let Ok(change) = self.doors.changes.try_recv() {
            self.change(change);
        }
        done.send(()).unwrap_or_default();
    }

    fn change(&mut self, first: Change) {
        let mut resolved = false;
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(change) = next {
            resolved |= matches!(change, Change::Resolved { .. });
            self.brain.take(change, Instant::now());
            taken += 1;
            next = if taken < BATCH { self.doors.changes.try_recv().ok() } else { None };
        }
        self.publish();
        if resolved {
            self.set_targets();
        }
    }

    /// Publishes the next generation, if there is one.
    fn publish(&mut self) {
        let now = (Instant::now(), SystemTime::now());
        let before: Arc<Snapshot> = Arc::clone(self.brain.snapshot());
        let after = self.brain.compile(now.0);
        for notice in self.brain.notices() {
            self.tell(&notice, before.generation.next());
        }
        let Some(after) = after else { return };
        self.shared.publish(Arc::clone(&after));
        self.view.compiles.observe(now.0.elapsed());
        self.show(&after, now);
        let ready = self.shared.sessions.phase() >= Phase::Ready;
        self.news.tell((&before, &after), ready, &self.view, now.0);
    }

    /// Shows what has changed without a new generation.
    fn refresh(&mut self) {
        let now = (Instant::now(), SystemTime::now());
        let snapshot = Arc::clone(self.brain.snapshot());
        // Before the first generation there is nothing to show.
        if now.0.duration_since(self.shown) >= SHOW && snapshot.generation > Generation::default() {
            self.show(&snapshot, now);
        }
    }

    fn show(&mut self, snapshot: &Snapshot, now: Now) {
        self.shown = now.0;
        let overview = overview::overview(self.brain.inputs(), snapshot, now);
        self.view.show(Overview { certificates: Arc::clone(&self.told), ..overview });
    }

    fn tell(&self, notice: &Notice, generation: Generation) {
        let event = match notice {
            Notice::Judged { endpoint, before, verdict, reason } => {
                let Some(identity) = self.brain.inputs().identity(endpoint) else { return };
                Happening::new(Kind::Verdict)
                    .endpoint(identity)
                    .change(before.as_str(), verdict.as_str())
                    .because(&**reason)
            }
            Notice::Resolved { name: (pool, host, port), before, after } => Happening::new(Kind::Addresses)
                .pool(pool)
                .change(listed(before), listed(after))
                .because(format!("{host}:{port}"))
                .said(format!("pool {pool}: {host}:{port} has {}", addresses(after.len()))),
            Notice::Found(finding) => found(finding),
            Notice::Grew { pool } => Happening::new(Kind::Generation)
                .pool(pool)
                .change(Generation(generation.0.saturating_sub(1)).to_string(), generation.to_string())
                .because("the next step of a slow start"),
            Notice::OutOfReach { pool, cloud, address } => {
                tracing::warn!(
                    %pool, endpoint = %address, %cloud,
                    "the cloud's `source` has no address of this family: left out"
                );
                return;
            }
            Notice::Loops { pool, host, address } => {
                tracing::warn!(
                    %pool, %host, %address,
                    "this name resolves to an address of this proxy itself: left out, or it would loop"
                );
                return;
            }
        };
        self.view.journal.record(generation, event);
    }

    fn set_targets(&self) {
        let inputs = self.brain.inputs();
        let config = Arc::clone(&inputs.config);
        let targets = config.pools.iter().filter_map(|pool| Some((pool, Arc::new(pool.health.clone()?))));
        let targets = targets.flat_map(|(pool, settings)| {
            let members = inputs.members.get(&pool.name).map(Vec::as_slice).unwrap_or_default();
            members.iter().map(move |member| Target {
                key: member.identity.key(),
                settings: Arc::clone(&settings),
                socket: inputs.socket(&member.identity.cloud),
                manner: manner(inputs, pool, &settings, member),
            })
        });
        self.doors.health.set_targets(targets.collect());
    }
}

/// What a look has found; nothing if it was given up.
async fn looked(
    looking: &mut Option<JoinHandle<(Certificates, Vec<certificates::Notice>)>>,
) -> Option<(Certificates, Vec<certificates::Notice>)> {
    match looking {
        Some(looking) => looking.await.ok(),
        None => std::future::pending().await,
    }
}

/// What listeners and pools speak.
fn in_force(certificates: &Certificates) -> TlsInForce {
    let servers = certificates.servers().map(|(name, server)| {
        let (config, clients) = (Arc::clone(&server.config), server.clients.clone());
        (name.clone(), Arc::new(Termination { config, clients }))
    });
    let clients = certificates.clients().map(|(name, client)| (name.clone(), Arc::clone(&client.config)));
    TlsInForce { servers: servers.collect(), clients: clients.collect() }
}

/// What a look at the files has found, as an event.
fn happened(notice: &certificates::Notice) -> Happening {
    let event = Happening::new(Kind::Certificate);
    match notice {
        certificates::Notice::Renewed { owner, shown } => {
            let files: Vec<String> = shown.iter().map(|one| one.file.display().to_string()).collect();
            let event = event.change("", "renewed").because(files.join(", "));
            event.said(format!("{owner}: new certificates are in force"))
        }
        certificates::Notice::Kept(refused) => {
            let event = event.change("", "kept").because(refused.error.to_string());
            event.said(format!("{}: the old certificate stays: {}", refused.owner, refused.error))
        }
        certificates::Notice::Well(owner) => {
            event.change("kept", "well").said(format!("{owner}: what is in force is what there is again"))
        }
    }
}

/// A certificate that comes to its end, as an event.
fn ends(nearing: &certificates::Nearing) -> Happening {
    let certificates::Nearing { owner, file, names, step, when } = nearing;
    let after = if *step == certificates::Step::Invalid { "invalid" } else { "expiring" };
    let names =
        if names.is_empty() { "without a name".to_owned() } else { format!("of {}", names.join(", ")) };
    let file = file.display().to_string();
    let event = Happening::new(Kind::Certificate).change("", after).because(file.as_str());
    event.said(format!("{owner}: the certificate {names} in {file} {when}"))
}

fn addresses(count: usize) -> String {
    format!("{count} {}", if count == 1 { "address" } else { "addresses" })
}

/// A finding of the judge as an event.
fn found(finding: &Finding) -> Happening {
    let kind = match finding.kind {
        FindingKind::Verdict => Kind::Verdict,
        FindingKind::Ejection => Kind::Ejection,
        FindingKind::Readmission => Kind::Readmission,
        FindingKind::Trial => Kind::Trial,
        FindingKind::Cloud => Kind::Domain,
        FindingKind::Recovery => Kind::Recovery,
        FindingKind::Freeze => Kind::Freeze,
        FindingKind::Thaw => Kind::Thaw,
        FindingKind::Kept => Kind::Kept,
    };
    // The sentence has the word already.
    let evidence = finding.evidence.strip_prefix("kept: ").unwrap_or(&finding.evidence);
    let mut event = Happening::new(kind).change(&*finding.before, &*finding.after).because(evidence);
    event.pool.clone_from(&finding.pool);
    event.endpoint = finding.endpoint;
    event.cloud.clone_from(&finding.cloud);
    match kind {
        // The evidence of a cloud is a sentence.
        Kind::Domain | Kind::Recovery => event.said(format!("cloud {}", finding.evidence)),
        _ => event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::{
            admin::tests::{config, view},
            discovery::Discovery,
            health::Health,
        },
        ids::{ListenerName, PoolName},
        net::{Bind, Keepalive},
        state::{ListenerCell, Reports},
        telemetry::{Cause, End, Side, Stage},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn pool() -> crate::config::Pool {
        crate::config::Pool {
            name: PoolName::from("db"),
            policy: crate::config::Policy::Failover { order: Vec::new() },
            balance: crate::config::Balance::Random,
            when_all_down: crate::config::WhenAllDown::TryAnyway,
            ejection: crate::config::Ejection::default(),
            restraint: crate::config::Restraint::default(),
            connect_timeout: SECOND,
            attempts: 1,
            preconnect: 0,
            towards: crate::config::Towards::default(),
            connecting: crate::config::Connecting::default(),
            slow_start: SECOND,
            health: None,
            endpoints: Vec::new(),
        }
    }

    fn listener(name: &str) -> OpenListener {
        let address = "127.0.0.1:1".parse().unwrap();
        let config = crate::config::Listener {
            name: ListenerName::from(name),
            bind: Bind { address, only_v6: false },
            target: crate::config::Target::Pool(PoolName::from("db")),
            entry: crate::config::Entry::default(),
            idle_timeout: SECOND,
            half_close_timeout: SECOND,
            max_lifetime: None,
            backlog: 1,
            keepalive: Keepalive { idle: SECOND, interval: SECOND, count: 1 },
            user_timeout: SECOND,
            fast_open: None,
            tuning: crate::config::Tuning::default(),
        };
        OpenListener { config, cell: Arc::new(ListenerCell::new(ListenerName::from(name), address)) }
    }

    #[tokio::test]
    async fn a_listener_that_left_is_routed_as_long_as_it_has_sessions() {
        let view = view();
        let (changes, inbox) = crate::control::inbox();
        let doors = Doors {
            changes: inbox,
            requests: mpsc::channel(1).1,
            reports: Reports::new().1,
            health: Arc::new(Health::start(changes.clone(), |_| {}, 1)),
            discovery: Arc::new(Discovery::start(changes, Arc::clone(&view.names))),
        };
        let mut of_one_pool = (*config()).clone();
        of_one_pool.pools.push(pool());
        let config = Arc::new(of_one_pool);
        let shared = Arc::clone(&view.shared);
        let mut reconciler =
            Reconciler::new((Arc::clone(&shared), Arc::clone(&view)), doors, Arc::clone(&config), Vec::new());
        let mut reload = |listeners: &[&OpenListener]| {
            let listeners = listeners.iter().map(|one| (*one).clone()).collect();
            let done = oneshot::channel().0;
            reconciler.configure(NewConfig {
                config: Arc::clone(&config),
                listeners,
                certificates: Certificates::default(),
                resolved: Vec::new(),
                done,
            });
        };
        let (old, new) = (listener("old"), listener("new"));
        let routed = || shared.snapshot().listener(&old.cell).is_some();
        reload(&[&old]);
        old.cell.begin();
        for _ in 0..3 {
            reload(&[&new]);
            assert!(routed());
        }
        old.cell.finish(End { side: Side::Client, stage: Stage::Relay, cause: Cause::Reset }, SECOND);
        reload(&[&new]);
        assert!(!routed());
    }
}
