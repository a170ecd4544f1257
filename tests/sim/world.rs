//! One run: a queue of events over a time of its own. A seed decides everything.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;
use twinspan::{
    config::Health,
    control::{
        Change, Notice,
        health::{Judge, Pace, Verdict},
        verdicts::FindingKind,
    },
    ids::{EndpointIdentity, EndpointKey, PoolName},
    proxy::{Facts, Step, Why, choose},
    state::{Connect, Endpoint, EndpointCell, Pool, PoolCell, Snapshot},
    telemetry::Cause,
};

use crate::{
    attempts::Attempts,
    figures::Figures,
    network::Fault,
    policy::{Kind, Policy},
    rules::{Restraint, Rules},
    script::{CLOUDS, OPENING, Scenario},
};

/// Time between two ticks.
const TICK: Duration = Duration::from_millis(100);

/// How long a failed session speaks against its endpoint.
const EVIDENCE: Duration = Duration::from_secs(10);

/// Sessions that hear nothing for this long speak against their endpoint, too, if there are so many.
const SILENCE: Duration = Duration::from_millis(500);
const UNHEARD: usize = 3;

/// How long a client waits for its first byte.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time after which a session that stands still at its end is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// What has worked again for this long should be in use.
const SETTLED: Duration = Duration::from_secs(5);

/// How long a session lasts on average.
const SESSION: Duration = Duration::from_secs(5);

/// An endpoint in truth.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) cloud: usize,
    distance: Duration,
    pub(crate) fault: Fault,
    since: Instant,
    /// Since when a dial may lead somewhere.
    works: Instant,
    /// When a session failed here last, if none has had an answer since.
    failed: Option<Instant>,
    /// When a session had its first byte here last.
    answered: Option<Instant>,
    /// When one failed here last, whatever came after.
    complaint: Option<Instant>,
    /// When bytes moved towards clients last.
    moved: Option<Instant>,
    /// Sessions that were connected since then.
    unheard: usize,
    /// Its cell, once it was dialled.
    cell: Option<Arc<EndpointCell>>,
    /// Sessions that are connected to it.
    live: BTreeSet<usize>,
    /// How its probes went.
    pub(crate) probes: Vec<bool>,
    watch: Watch,
}

/// The probe loop of an endpoint.
struct Watch {
    judge: Judge,
    started: Instant,
    under_way: bool,
    hinted: bool,
    pace: Pace,
    /// Tells the probe that is due from those that were put off.
    due: u64,
}

/// A client.
struct Session {
    phase: usize,
    client: SocketAddr,
    started: Instant,
    attempts: Box<dyn Attempts>,
    tried: Vec<Arc<EndpointIdentity>>,
    racers: Vec<Racer>,
    /// Where it is connected, and since when.
    at: Option<(usize, Instant)>,
    /// What it was routed by when it was connected.
    connect: Connect,
    answered: bool,
    /// Times that it was given to another endpoint before the first byte.
    moves: u8,
    lasts: Duration,
    over: bool,
}

/// An attempt under way.
struct Racer {
    number: usize,
    upstream: usize,
    endpoint: Arc<Endpoint>,
    begun: Instant,
}

/// Something that happens.
enum Event {
    Tick,
    Step(usize),
    Phase,
    Arrive,
    Wake(usize),
    Dialled { session: usize, number: usize, result: Result<(), Cause> },
    FirstByte { session: usize, moves: u8 },
    Mute { session: usize, moves: u8 },
    End(usize),
    Probe { upstream: usize, due: u64 },
    Probed { upstream: usize, result: Result<(), &'static str> },
}

/// An event and its time; events of one time come in the order in which they were thought of.
struct Due {
    at: Instant,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A run under way.
pub(crate) struct World<'a> {
    scenario: &'a Scenario,
    /// Writes down what happens.
    tells: bool,
    policy: Box<dyn Policy>,
    health: Health,
    rules: Rules,
    now: Instant,
    end: Instant,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    upstreams: Vec<Upstream>,
    sessions: Vec<Session>,
    /// Apart, so that every policy has the same clients.
    clients: SmallRng,
    network: SmallRng,
    routing: SmallRng,
    figures: Vec<Figures>,
    phase: usize,
    seen: Arc<Snapshot>,
    /// Connections that sessions got.
    connected: u64,
    /// Since when something that is dead may have been offered.
    struck: Option<Instant>,
}

/// When all runs begin, far from the clock's own beginning. One for all: what the program remembers of time in statics is
/// the same in each.
fn beginning() -> Instant {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    *BEGINNING.get_or_init(|| {
        let now = Instant::now() + Duration::from_secs(3600);
        PoolCell::default().begin(now);
        now
    })
}

/// Runs a scenario; figures of each phase, and the rules that were broken.
pub(crate) fn run(
    scenario: &Scenario,
    kind: Kind,
    restraint: Restraint,
    seed: u64,
) -> (Vec<Figures>, Vec<String>) {
    let mut world = World::new(scenario, kind, restraint, seed);
    while let Some(Reverse(due)) = world.queue.pop() {
        if due.at >= world.end {
            break;
        }
        world.now = due.at;
        world.happen(&due.event);
    }
    world.close()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, kind: Kind, restraint: Restraint, seed: u64) -> Self {
        let now = beginning();
        let config = scenario.config();
        let pool = PoolName::from("p");
        let upstreams: Vec<Upstream> =
            (0..scenario.clouds.iter().sum()).map(|number| Upstream::new(scenario, number, now)).collect();
        let name = |number: usize| (pool.clone(), Arc::from(Scenario::host(number)), 5432);
        let resolved = upstreams.iter().enumerate().map(|(number, one)| (name(number), vec![one.address]));
        let resolved = if scenario.knobs.names { resolved.collect() } else { Vec::new() };
        let health = config.pools[0].health.clone().unwrap();
        let policy = kind.start(&config, resolved, now);
        let rng = |stream: u64| SmallRng::seed_from_u64(seed.wrapping_mul(4).wrapping_add(stream));
        let mut world = Self {
            seen: Arc::clone(policy.snapshot()),
            scenario,
            tells: std::env::var_os("TWINSPAN_TELL").is_some(),
            policy,
            health,
            rules: Rules::new(restraint),
            now,
            end: now + scenario.length,
            queue: BinaryHeap::new(),
            order: 0,
            upstreams,
            sessions: Vec::new(),
            clients: rng(0),
            network: rng(1),
            routing: rng(2),
            figures: vec![Figures::default(); scenario.phases.len()],
            phase: 0,
            connected: 0,
            struck: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let first = Arc::clone(self.policy.snapshot());
        self.publish(&first);
        for upstream in 0..self.upstreams.len() {
            self.after(Duration::ZERO, Event::Probe { upstream, due: 0 });
        }
        for (at, _) in self.scenario.phases.iter().skip(1) {
            self.after(*at, Event::Phase);
        }
        let mut steps: Vec<usize> = (0..self.scenario.steps.len()).collect();
        steps.sort_by_key(|step| self.scenario.steps[*step].at);
        for step in steps {
            self.after(self.scenario.steps[step].at, Event::Step(step));
        }
        self.after(TICK, Event::Tick);
        self.after(OPENING, Event::Arrive);
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.at(self.now + time, event);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at, order: self.order, event }));
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Tick => self.tick(),
            Event::Step(step) => self.step(step),
            Event::Phase => self.enter(),
            Event::Arrive => self.arrive(),
            Event::Wake(session) => self.advance(session),
            Event::Dialled { session, number, result } => self.dialled(session, number, result),
            Event::FirstByte { session, moves } => self.first_byte(session, moves),
            Event::Mute { session, moves } => self.mute(session, moves),
            Event::End(session) => self.finish(session),
            Event::Probe { upstream, due } => self.probe(upstream, due),
            Event::Probed { upstream, result } => self.probed(upstream, result),
        }
    }

    /// The figures of now.
    fn book(&mut self) -> &mut Figures {
        &mut self.figures[self.phase]
    }

    fn tick(&mut self) {
        for upstream in &mut self.upstreams {
            let answered = upstream.live.iter().filter(|session| self.sessions[**session].answered).count();
            let bytes = answered as u64 * 1000;
            let flows = upstream.flows(self.now);
            if let Some(cell) = upstream.cell.as_ref().filter(|_| flows) {
                cell.moved(bytes / 10, bytes);
                if bytes > 0 {
                    upstream.moved = Some(self.now);
                    upstream.unheard = 0;
                    // An answer that is not counted yet is known to nobody.
                    let answered = upstream.answered;
                    upstream.failed = upstream.failed.filter(|failed| answered.is_none_or(|at| at < *failed));
                }
            }
        }
        self.policy.tick(self.now);
        self.observe();
        self.after(TICK, Event::Tick);
    }

    fn enter(&mut self) {
        if self.struck.is_some() {
            self.book().unevaded = true;
        }
        self.phase += 1;
        self.struck = self.struck.map(|_| self.now);
    }

    fn step(&mut self, step: usize) {
        let step = &self.scenario.steps[step];
        let (mut hit, mut reset) = (false, Vec::new());
        for number in &step.whom {
            let upstream = &mut self.upstreams[*number];
            if upstream.fault == step.fault {
                continue;
            }
            hit |= step.fault.is_dead() && !upstream.fault.is_dead();
            if upstream.fault.is_dead() && !step.fault.is_dead() {
                upstream.works = self.now;
            }
            (upstream.fault, upstream.since) = (step.fault, self.now);
            if step.fault == Fault::Refuse {
                reset.extend(std::mem::take(&mut upstream.live));
            }
        }
        reset.into_iter().for_each(|session| self.reset(session));
        let survives = self.upstreams.iter().any(|upstream| !upstream.fault.is_dead());
        if hit && survives {
            self.struck.get_or_insert(self.now);
        }
        self.tell(|| format!("{step:?}"));
        self.watch_evasion(true);
        self.observe();
    }

    /// Looks whether new sessions are offered nothing dead any more. `by_itself`: the world has changed, not the snapshot.
    fn watch_evasion(&mut self, by_itself: bool) {
        let Some(since) = self.struck else { return };
        let offered: Vec<SocketAddr> = offered(&self.seen.pools[0], 1).collect();
        let dead = |upstream: &Upstream| upstream.fault.is_dead();
        let harmless =
            !self.upstreams.iter().any(|upstream| dead(upstream) && offered.contains(&upstream.address));
        if !harmless && self.upstreams.iter().any(|upstream| !dead(upstream)) {
            return;
        }
        let (now, healed) = (self.now, by_itself && since != self.now);
        let book = self.book();
        if healed {
            book.unevaded = true;
        } else {
            book.evaded = book.evaded.max(Some(now - since));
        }
        self.struck = None;
    }

    /// Looks at what the policy has come to.
    fn observe(&mut self) {
        let notices = self.policy.notices();
        let snapshot = Arc::clone(self.policy.snapshot());
        self.rules.strikes(&notices);
        if !Arc::ptr_eq(&snapshot, &self.seen) {
            self.publish(&snapshot);
            self.seen = snapshot;
            self.tell_generation();
            self.book().generations += 1;
            self.watch_evasion(false);
        }
        notices.iter().for_each(|notice| self.hear(notice));
        if self.now >= self.end - self.scenario.length + OPENING {
            let listed: BTreeSet<SocketAddr> = offered(&self.seen.pools[0], usize::MAX).collect();
            let works = |one: &&Upstream| !one.fault.is_dead() && self.now - one.works >= SETTLED;
            let lost = self.upstreams.iter().filter(works).filter(|one| !listed.contains(&one.address));
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let removed = lost.count() as f64 / self.upstreams.len() as f64;
            let book = self.book();
            book.removed = book.removed.max(removed);
        }
    }

    fn publish(&mut self, snapshot: &Snapshot) {
        let stands = |one: &&Upstream| self.policy.stands(&one.key(), self.now);
        let stands = self.upstreams.iter().filter(stands).map(|one| one.address).collect();
        let ejected = |one: &&Upstream| self.policy.is_ejected(&one.key(), self.now);
        self.rules.ejects(self.upstreams.iter().filter(ejected).map(|one| one.address).collect());
        self.rules.published(self.scenario, snapshot, &self.upstreams, stands, self.now);
    }

    /// Takes what people are told.
    fn hear(&mut self, notice: &Notice) {
        self.rules.told(notice, &self.upstreams, self.now);
        self.tell(|| format!("{notice:?}"));
        let counts = match notice {
            Notice::Judged { before, verdict, .. } => (*before, *verdict) != (Verdict::Unknown, Verdict::Up),
            // Steps of a recovery are no changes of mind, nor is what stays.
            Notice::Found(finding) => !matches!(finding.kind, FindingKind::Recovery | FindingKind::Kept),
            _ => false,
        };
        self.book().verdicts += u64::from(counts);
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.tells {
            println!("{:8.3} {}", (self.now - beginning()).as_secs_f64(), what());
        }
    }

    fn tell_generation(&self) {
        self.tell(|| {
            let number = |address| self.upstreams.iter().position(|one| one.address == address);
            let offered: Vec<usize> = offered(&self.seen.pools[0], usize::MAX).filter_map(number).collect();
            let carrying = self.upstreams.iter().enumerate().filter(|(_, one)| one.carries(self.now));
            let carrying: Vec<usize> = carrying.map(|(number, _)| number).collect();
            let (generation, all_down) = (self.seen.generation, self.seen.pools[0].all_down);
            format!(
                "generation {generation}: offers {offered:?}, all down {all_down:?}; bytes from {carrying:?}"
            )
        });
    }

    fn arrive(&mut self) {
        let random: f64 = self.clients.random();
        let gap = -(1.0 - random).ln() / self.scenario.rate;
        // To the microsecond, whatever the last bit of a logarithm.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a time between two clients"
        )]
        let gap = Duration::from_micros((gap * 1e6) as u64);
        self.after(gap, Event::Arrive);
        let host: [u8; 2] = self.clients.random();
        let lasts = SESSION.mul_f64(2.0 * self.clients.random::<f64>());
        let pool = Arc::clone(&self.seen.pools[0]);
        self.book().sessions += 1;
        self.sessions.push(Session {
            phase: self.phase,
            client: ([192, 168, host[0], host[1]], 40000).into(),
            started: self.now,
            attempts: self.policy.attempts(&pool, self.now),
            tried: Vec::new(),
            racers: Vec::new(),
            at: None,
            connect: pool.connect,
            answered: false,
            moves: 0,
            lasts,
            over: false,
        });
        self.advance(self.sessions.len() - 1);
    }

    /// Does what a session that is not connected has to do now.
    fn advance(&mut self, number: usize) {
        loop {
            let pool = Arc::clone(&self.seen.pools[0]);
            let session = &mut self.sessions[number];
            if session.over || session.at.is_some() {
                return;
            }
            match session.attempts.step(&pool, self.now) {
                Step::Dial(why) => self.dial(number, &pool, why),
                Step::Wait(until) => {
                    if let Some(until) = until {
                        self.at(until, Event::Wake(number));
                    }
                    return;
                }
                Step::Over => {
                    session.over = true;
                    let book = &mut self.figures[session.phase];
                    if session.moves > 0 {
                        book.mute += 1;
                        return;
                    }
                    book.failed += 1;
                    let known = self.health.interval * self.scenario.knobs.rise + SETTLED;
                    self.rules.failed(session.started - known, &self.upstreams);
                    return;
                }
            }
        }
    }

    fn dial(&mut self, number: usize, pool: &Pool, why: Why) {
        let session = &mut self.sessions[number];
        let facts = Facts { client: session.client, tried: &session.tried, spread: why == Why::Hedge };
        let endpoint = choose(pool, &facts, &mut self.routing);
        let Some(endpoint) = endpoint.filter(|_| session.attempts.may_dial(pool, why, self.now)) else {
            session.attempts.spent();
            return;
        };
        match why {
            Why::First if session.moves > 0 => {}
            Why::First => pool.cell.begin(self.now),
            Why::Retry => pool.cell.retried(),
            Why::Hedge => {}
        }
        let endpoint = Arc::clone(endpoint);
        assert!(!session.tried.contains(&endpoint.identity), "{} is tried again", endpoint.address());
        session.tried.push(Arc::clone(&endpoint.identity));
        let deadline = session.attempts.begun(&endpoint, self.routing.random(), self.now);
        self.figures[session.phase].dials += 1;
        endpoint.cell.begin();
        let racer = session.tried.len();
        let place = self.upstreams.iter().position(|one| one.address == endpoint.address()).unwrap();
        let after = session.started.checked_duration_since(self.upstreams[place].since);
        if let Some(after) = after {
            self.rules.tries(place, after, &self.upstreams);
        }
        let upstream = &mut self.upstreams[place];
        upstream.cell.get_or_insert_with(|| Arc::clone(&endpoint.cell));
        let (after, result) = upstream.fault.dial(upstream.distance, &mut self.network);
        session.racers.push(Racer { number: racer, upstream: place, endpoint, begun: self.now });
        let at = after.map(|after| self.now + after).filter(|at| *at < deadline);
        let result = if at.is_some() { result } else { Err(Cause::TimedOut) };
        self.at(at.unwrap_or(deadline), Event::Dialled { session: number, number: racer, result });
    }

    fn dialled(&mut self, number: usize, racer: usize, result: Result<(), Cause>) {
        let session = &mut self.sessions[number];
        // Who lost the race is no more.
        let Some(place) = session.racers.iter().position(|one| one.number == racer) else { return };
        let racer = session.racers.remove(place);
        let gone = self.upstreams[racer.upstream].fault == Fault::Refuse;
        match result.and(if gone { Err(Cause::Refused) } else { Ok(()) }) {
            Err(cause) => {
                racer.endpoint.cell.connect_failed(cause);
                racer.endpoint.cell.finish();
                session.attempts.failed();
                self.upstreams[racer.upstream].fails(self.now);
                self.hint(racer.upstream);
                self.advance(number);
            }
            Ok(()) => {
                racer.endpoint.cell.connected(self.now - racer.begun);
                let mut hints = Vec::new();
                for late in session.racers.drain(..) {
                    if late.begun < racer.begun {
                        late.endpoint.cell.overtaken();
                        self.upstreams[late.upstream].fails(self.now);
                        hints.push(late.upstream);
                    }
                    late.endpoint.cell.finish();
                }
                session.at = Some((racer.upstream, self.now));
                session.connect = self.seen.pools[0].connect;
                hints.into_iter().for_each(|late| self.hint(late));
                self.connected(number, racer.upstream);
            }
        }
    }

    fn connected(&mut self, number: usize, place: usize) {
        let session = &self.sessions[number];
        let upstream = &mut self.upstreams[place];
        upstream.live.insert(number);
        upstream.unheard += 1;
        // Where the first byte is waited for, that speaks for the endpoint.
        if !session.connect.watches() {
            upstream.cell.as_ref().unwrap().vouch();
        }
        self.connected += 1;
        let (cloud, distance, fault) = (upstream.cloud, upstream.distance, upstream.fault);
        let preferred = self.upstreams.iter().filter(|one| !one.fault.is_dead()).map(|one| one.cloud).min();
        let book = &mut self.figures[session.phase];
        if session.moves == 0 {
            book.times.push(self.now - session.started);
        }
        book.wrong += u64::from(!self.scenario.knobs.weighted && preferred.is_some_and(|best| best < cloud));
        let answer = fault.answer(distance, &mut self.network);
        let (moves, watched) = (session.moves, session.connect.first_byte);
        self.after(answer, Event::FirstByte { session: number, moves });
        if let Some(patience) = watched {
            self.after(patience, Event::Mute { session: number, moves });
        }
    }

    fn first_byte(&mut self, number: usize, moves: u8) {
        let session = &mut self.sessions[number];
        let there = !session.over && session.moves == moves;
        let Some((place, since)) = session.at.filter(|_| there) else { return };
        let upstream = &mut self.upstreams[place];
        if upstream.flows(self.now) {
            session.answered = true;
            upstream.answered = Some(self.now);
            upstream.cell.as_ref().unwrap().was_heard();
            if session.connect.watches() {
                upstream.cell.as_ref().unwrap().vouch();
            }
            let lasts = session.lasts;
            self.after(lasts, Event::End(number));
        } else if self.now < since + PATIENCE {
            let again = self.repeat();
            self.after(again, Event::FirstByte { session: number, moves });
        } else {
            upstream.live.remove(&number);
            self.cut(number);
        }
    }

    /// The first byte is late, where that is watched.
    fn mute(&mut self, number: usize, moves: u8) {
        let session = &self.sessions[number];
        let there = !session.over && !session.answered && session.moves == moves;
        let Some((place, _)) = session.at.filter(|_| there) else { return };
        let upstream = &mut self.upstreams[place];
        upstream.live.remove(&number);
        upstream.cell.as_ref().unwrap().was_mute();
        self.unanswered(number);
    }

    /// The process behind an endpoint has gone; its session has left the list already.
    fn reset(&mut self, number: usize) {
        let session = &self.sessions[number];
        if session.answered {
            self.cut(number);
        } else if let Some((place, _)) = session.at {
            self.upstreams[place].cell.as_ref().unwrap().was_empty();
            self.unanswered(number);
        }
    }

    /// The endpoint of a session has not answered it: it moves on, if it may. It has left its endpoint's list already.
    fn unanswered(&mut self, number: usize) {
        let pool = Arc::clone(&self.seen.pools[0]);
        let session = &mut self.sessions[number];
        let Some(place) = session.at.filter(|_| session.connect.replay.is_some()) else {
            return self.cut(number);
        };
        let upstream = &mut self.upstreams[place.0];
        upstream.cell.as_ref().unwrap().finish();
        upstream.fails(self.now);
        pool.cell.replays();
        (session.at, session.moves) = (None, session.moves + 1);
        session.attempts = self.policy.attempts(&pool, self.now);
        self.advance(number);
    }

    /// The session's time is up: it ends well where bytes flow, otherwise it waits for them.
    fn finish(&mut self, number: usize) {
        let session = &mut self.sessions[number];
        let Some((place, since)) = session.at.filter(|_| !session.over) else { return };
        let upstream = &mut self.upstreams[place];
        let flows = upstream.flows(self.now);
        if !flows && self.now < since + session.lasts + USER_TIMEOUT {
            let again = self.repeat();
            self.after(again, Event::End(number));
            return;
        }
        upstream.live.remove(&number);
        if flows {
            session.over = true;
            upstream.cell.as_ref().unwrap().finish();
        } else {
            self.cut(number);
        }
    }

    /// When bytes that did not get through are sent again: never in step with what is wrong.
    fn repeat(&mut self) -> Duration {
        Duration::from_millis(self.network.random_range(100..500))
    }

    /// A connected session is lost; it has left its endpoint's list already.
    fn cut(&mut self, number: usize) {
        let session = &mut self.sessions[number];
        session.over = true;
        let (place, _) = session.at.unwrap();
        let answered = session.answered;
        let upstream = &mut self.upstreams[place];
        upstream.cell.as_ref().unwrap().finish();
        if !answered {
            upstream.fails(self.now);
        }
        let book = self.book();
        if answered { book.cut += 1 } else { book.mute += 1 }
    }

    /// A session could not connect, or not soon enough: the next probe comes at once.
    fn hint(&mut self, place: usize) {
        let watch = &mut self.upstreams[place].watch;
        if watch.under_way {
            watch.hinted = true;
            return;
        }
        watch.judge.hint();
        watch.due += 1;
        let (at, due) = (watch.judge.next(watch.started, self.now, watch.pace), watch.due);
        self.at(at, Event::Probe { upstream: place, due });
    }

    fn probe(&mut self, place: usize, due: u64) {
        let upstream = &mut self.upstreams[place];
        if upstream.watch.due != due || upstream.watch.under_way {
            return;
        }
        let watch = &mut upstream.watch;
        (watch.started, watch.under_way) = (self.now, true);
        watch.judge.probing(self.now);
        let (distance, timeout) = (upstream.distance, self.health.timeout);
        let answering = self.scenario.knobs.answering;
        let (after, result) = upstream.fault.probe(distance, timeout, answering, &mut self.network);
        self.after(after, Event::Probed { upstream: place, result });
    }

    fn probed(&mut self, place: usize, result: Result<(), &'static str>) {
        let (rise, fall) = self.policy.thresholds(&self.health);
        let upstream = &mut self.upstreams[place];
        let watch = &mut upstream.watch;
        let first = upstream.probes.is_empty();
        upstream.probes.push(result.is_ok());
        watch.under_way = false;
        let turn = match result {
            Ok(()) => watch.judge.good(rise),
            Err(why) => {
                let down = watch.judge.verdict() == Verdict::Down;
                watch.judge.bad(fall, why).or_else(|| down.then(|| watch.judge.again(why)))
            }
        };
        let began = watch.started;
        if std::mem::take(&mut watch.hinted) {
            watch.judge.hint();
        }
        let vary = 1.0 + self.health.jitter * (2.0 * self.network.random::<f64>() - 1.0);
        // As all had their first at once.
        let phase = if first { self.network.random::<f64>() } else { vary };
        let (interval, fast) = (self.health.interval.mul_f64(phase), self.health.fast_interval.mul_f64(vary));
        watch.pace = Pace { interval, fast };
        watch.due += 1;
        let (at, due) = (watch.judge.next(watch.started, self.now, watch.pace), watch.due);
        if let Some(turn) = turn {
            let endpoint = upstream.key();
            let (verdict, reason) = (turn.verdict, turn.reason.into());
            let change = Change::Verdict { endpoint, verdict, reason, answered: false, began };
            self.policy.take(change, self.now);
            self.observe();
        }
        self.at(at, Event::Probe { upstream: place, due });
    }

    /// The books must balance.
    fn close(mut self) -> (Vec<Figures>, Vec<String>) {
        if self.struck.is_some() {
            self.book().unevaded = true;
        }
        for (number, upstream) in self.upstreams.iter().enumerate() {
            let at =
                |session: &&Session| !session.over && session.at.is_some_and(|(place, _)| place == number);
            let dialling = self.sessions.iter().flat_map(|session| &session.racers);
            let dialling = dialling.filter(|racer| racer.upstream == number).count();
            let live = self.sessions.iter().filter(at).count();
            assert_eq!(live, upstream.live.len());
            if let Some(cell) = &upstream.cell {
                assert_eq!(cell.active(), (live + dialling) as u64, "sessions of {}", upstream.address);
            }
        }
        let cells = || self.upstreams.iter().filter_map(|upstream| upstream.cell.as_ref());
        let sessions: u64 = cells().map(|cell| cell.sessions()).sum();
        assert_eq!(sessions, self.connected, "sessions that connected");
        (self.figures, self.rules.breaches)
    }
}

impl Upstream {
    fn new(scenario: &Scenario, number: usize, now: Instant) -> Self {
        let cloud = scenario.cloud_of(number);
        Self {
            address: scenario.address(number),
            cloud,
            distance: CLOUDS[cloud].1,
            fault: Fault::None,
            since: now,
            works: now,
            failed: None,
            answered: None,
            complaint: None,
            moved: None,
            unheard: 0,
            cell: None,
            live: BTreeSet::new(),
            probes: Vec::new(),
            watch: Watch {
                judge: Judge::default(),
                started: now,
                under_way: false,
                hinted: false,
                pace: Pace { interval: Duration::ZERO, fast: Duration::ZERO },
                due: 0,
            },
        }
    }

    /// True when a session failed here lately and none has had an answer since, or when some have been given to it and it
    /// has fallen silent.
    pub(crate) fn is_corroborated(&self, now: Instant) -> bool {
        let silent = self.unheard >= UNHEARD && self.moved.is_some_and(|at| now - at >= SILENCE);
        silent || self.failed.is_some_and(|at| now - at <= EVIDENCE)
    }

    /// True when its probes have come to the verdict that it is down, or the last one failed.
    pub(crate) fn is_held_for_down(&self) -> bool {
        self.watch.judge.verdict() == Verdict::Down || self.probes.last() == Some(&false)
    }

    fn key(&self) -> EndpointKey {
        EndpointKey { pool: PoolName::from("p"), address: self.address }
    }

    fn fails(&mut self, now: Instant) {
        self.failed = Some(now);
        self.complaint = Some(now);
    }

    /// True when a session has failed here lately, or it has been slow.
    pub(crate) fn has_complaint(&self, now: Instant) -> bool {
        let slow = matches!(self.fault, Fault::Slow(_) | Fault::Loss(_)) || now - self.since <= EVIDENCE;
        slow || self.complaint.is_some_and(|at| now - at <= EVIDENCE + TICK)
    }

    /// True when nothing has been wrong with it since then.
    pub(crate) fn is_well_since(&self, then: Instant) -> bool {
        self.fault == Fault::None && self.since <= then
    }

    /// True when it is dead, or nobody can know that it is no longer: it works since the last tick but one at most, and no
    /// byte has come since then.
    pub(crate) fn seems_dead(&self, now: Instant) -> bool {
        let unknown = now - self.works <= 2 * TICK && self.moved.is_none_or(|at| at < self.works);
        self.fault.is_dead() || unknown
    }

    /// True when it moves bytes towards clients.
    pub(crate) fn carries(&self, now: Instant) -> bool {
        self.carried(now) && self.flows(now)
    }

    /// True when bytes came from it with one of the last two ticks, whatever has become of it since.
    pub(crate) fn carried(&self, now: Instant) -> bool {
        self.moved.is_some_and(|at| now - at <= 2 * TICK)
    }

    fn flows(&self, now: Instant) -> bool {
        self.fault.flows(now - self.since)
    }
}

/// The addresses that the first `tiers` of a pool offer.
pub(crate) fn offered(pool: &Pool, tiers: usize) -> impl Iterator<Item = SocketAddr> {
    let groups = pool.tiers.iter().take(tiers).flat_map(|tier| &tier.groups);
    groups.flat_map(|group| &group.endpoints).map(|endpoint| endpoint.address())
}
