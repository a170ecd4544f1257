//! All attempts of a session: dial, race what is late, replace what has failed, until one connects, nothing is left or the
//! time is up. `race.rs` decides when, `route` whom. Whoever loses is closed without a byte having been sent to it.

use std::{
    future::poll_fn,
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use tokio::{
    io::Interest,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    connect::{self, Attempt, Begun, Claim, Established, NO_ENDPOINT, Place, Plan},
    peer::Peer,
    race::{Race, Step, Why},
    relay::Watched,
    session::{Books, Counted},
};
use crate::{
    ids::EndpointIdentity,
    state::{Endpoint, Hedge, Pool, Report},
    sys,
    telemetry::{Cause, End, Side, Stage},
};

/// How a session ends for which too many others wait.
const OVERLOADED: End = End { side: Side::Proxy, stage: Stage::Connect, cause: Cause::Overloaded };

/// Endpoints that are asked for room for an attempt beside another, before it is put off.
const ASKED: usize = 4;

/// Finds an endpoint that takes the session and is none of `tried`, going on from an attempt that was begun already, if
/// there is one.
pub(super) async fn connect(
    client: &Watched<'_>,
    books: &mut Books,
    begun: Option<Begun>,
    tried: Vec<Arc<EndpointIdentity>>,
) -> Result<Established, End> {
    // The time that the client took to say where it wants to go is not the endpoints', and what has moved on from one that
    // did not answer has its time anew.
    let started = begun.as_ref().map_or_else(Instant::now, |(attempt, _)| attempt.begun);
    let racers = Vec::new();
    let (race, crowded, last) = (None, Vec::new(), NO_ENDPOINT);
    let mut field =
        Field { client, books, started, race, racers, tried, crowded, last, lost: None, certain: false };
    if let Some((attempt, upstream)) = begun {
        field.resume(attempt, upstream);
    }
    field.go_on();
    let mut gone = pin!(connect::gone(client, field.books.asked));
    loop {
        field.give_up();
        let until = match field.step() {
            Step::Over => return Err(field.last),
            Step::Wait(until) => field.patience().into_iter().chain(until).min(),
            Step::Dial(why) => {
                tokio::select! {
                    biased;
                    dialled = field.dial(why) => dialled?,
                    cause = &mut gone => return Err(client_gone(cause)),
                }
                continue;
            }
        };
        let late = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            (racer, dialled) = next(&mut field.racers) => match dialled {
                Ok(upstream) => return Ok(field.won(racer, upstream)),
                Err(end) => field.failed(racer, end),
            },
            cause = &mut gone => return Err(client_gone(cause)),
            () = late => {}
        }
    }
}

const fn client_gone(cause: Cause) -> End {
    End { side: Side::Client, stage: Stage::Connect, cause }
}

/// The attempts of one session.
struct Field<'a> {
    client: &'a Watched<'a>,
    books: &'a mut Books,
    started: Instant,
    /// Since the first plan: the race, and the pool as it was at the last.
    race: Option<(Race, Arc<Pool>)>,
    racers: Vec<Racer>,
    tried: Vec<Arc<EndpointIdentity>>,
    /// Endpoints that had no place for an attempt.
    crowded: Vec<Arc<EndpointIdentity>>,
    /// How the session ends if nothing comes of it.
    last: End,
    /// The endpoint that had the session and reset it, until another one is tried.
    lost: Option<Arc<Endpoint>>,
    /// The next attempt beside another needs no budget.
    certain: bool,
}

/// An attempt under way.
struct Racer {
    attempt: Attempt,
    /// Nobody else takes the session: it is waited for as long as there is time.
    last_hope: bool,
    claim: Claim,
    why: Why,
    dial: Pin<Box<dyn Future<Output = Result<Peer, End>> + Send>>,
}

/// What was found for an attempt beside another that is under way.
enum Beside {
    Found(Box<(Plan, Place)>),
    NoRoom,
    NothingLeft,
}

impl Field<'_> {
    fn resume(&mut self, attempt: Attempt, upstream: Result<Peer, End>) {
        let pool = Arc::clone(&attempt.plan.pool);
        self.race = Some((Race::resumed(pool.connect, self.started, attempt.late), pool));
        self.tried.push(Arc::clone(&attempt.plan.endpoint.identity));
        if let Some(claim) = self.books.lend() {
            self.enter((attempt, upstream), claim, Why::First);
        }
    }

    /// Goes on from an endpoint that has reset the session: with what is left of its attempts, and to the same end if
    /// there is nobody else.
    fn go_on(&mut self) {
        let Some((end, counted)) = self.books.was_lost() else { return };
        self.last = end;
        if counted == Counted::NotYet {
            self.lost.clone_from(&self.books.endpoint);
        }
        if let Some(pool) = connect::pool(self.books) {
            self.race = Some((Race::again(pool.connect, self.started, self.books.attempts), pool));
        }
    }

    fn step(&mut self) -> Step {
        let now = Instant::now();
        let (racers, tried) = (&self.racers, &self.tried);
        match &mut self.race {
            None => Step::Dial(Why::First),
            Some((race, pool)) => race.step(now, || {
                let Some(hedge) = pool.connect.hedge else { return false };
                self.certain = is_certain(pool, racers, tried, now);
                self.certain || pool.cell.allows(hedge.budget, now)
            }),
        }
    }

    /// Begins an attempt, if there is an endpoint left for it.
    async fn dial(&mut self, why: Why) -> Result<(), End> {
        match connect::left(self.client, self.books.asked) {
            None => {}
            Some(Cause::Closed) if why == Why::First => {}
            Some(cause) => return Err(client_gone(cause)),
        }
        let (plan, mut place) = if self.racers.is_empty() {
            // A fresh snapshot for every attempt: it may know more than the last one did.
            let Some(plan) = self.plan() else {
                return self.nothing_left();
            };
            if why == Why::Retry && !may_retry(&plan, &self.tried) {
                return self.nothing_left();
            }
            match self.place(&plan).await {
                Some(found) => found,
                None => return self.crowd(&plan),
            }
        } else {
            match self.beside(why) {
                Beside::Found(found) => *found,
                Beside::NoRoom => return self.put_off(),
                Beside::NothingLeft => return self.nothing_left(),
            }
        };
        self.tried.push(Arc::clone(&plan.endpoint.identity));
        let claim = place.claim();
        if let Some(lost) = self.lost.take() {
            lost.cell.was_empty();
            connect::report(&self.books.shared, &lost, self.last);
            self.books.connected = None;
        }
        self.books.count_attempt();
        match why {
            Why::First => plan.pool.cell.begin(self.started),
            Why::Retry => plan.pool.cell.retried(),
            Why::Hedge if self.certain => plan.pool.cell.hedged_for_certain(),
            Why::Hedge => plan.pool.cell.hedged(Instant::now()),
        }
        let started = self.started;
        let (race, pool) =
            self.race.get_or_insert_with(|| (Race::new(plan.pool.connect, started), Arc::clone(&plan.pool)));
        pool.clone_from(&plan.pool);
        let eager = self.books.asked || connect::has_sent(self.client.get_ref());
        let begun = connect::dial(race, plan, place, eager, Instant::now());
        self.enter(begun, claim, why);
        Ok(())
    }

    /// When the next attempt has had its time.
    fn patience(&self) -> Option<Instant> {
        let bounded = self.racers.iter().filter(|racer| !racer.last_hope);
        bounded.map(|racer| racer.attempt.deadline).min()
    }

    /// Attempts that have had their time give way, if there is an endpoint to try in their place. Where there is none,
    /// they are better than nothing: the kernel repeats a handshake that was lost.
    fn give_up(&mut self) {
        let now = Instant::now();
        let is_due = |racer: &Racer| !racer.last_hope && racer.attempt.deadline <= now;
        // Who had no room then may have some now.
        if self.racers.iter().any(is_due) {
            self.crowded.clear();
        }
        while let Some(place) = self.racers.iter().position(is_due) {
            let may_dial = self.race.as_ref().is_some_and(|(race, _)| race.may_dial(now));
            if may_dial && self.has_alternative(None) {
                let racer = self.racers.remove(place);
                let cause = Cause::TimedOut;
                self.failed(racer, End { side: Side::Upstream, stage: Stage::Connect, cause });
            } else if let Some(racer) = self.racers.get_mut(place) {
                racer.last_hope = true;
            }
        }
    }

    /// Whom to dial next while nothing is under way: where there was no place only if there is nobody else, and then there
    /// is time to wait for one.
    fn plan(&mut self) -> Option<Plan> {
        if !self.crowded.is_empty() {
            let others = connect::plan(self.books, &[&*self.tried, &*self.crowded].concat(), false);
            if others.is_some() {
                return others;
            }
            self.crowded.clear();
        }
        connect::plan(self.books, &self.tried, false)
    }

    /// An endpoint with room for an attempt beside those that are under way: nobody waits for a place then, and who has
    /// none now may have one later.
    fn beside(&mut self, why: Why) -> Beside {
        let mut asked = self.tried.clone();
        while asked.len() < self.tried.len() + ASKED
            && let Some(plan) = connect::plan(self.books, &asked, why == Why::Hedge)
        {
            asked.push(Arc::clone(&plan.endpoint.identity));
            let Some(place) = Place::take(&plan) else { continue };
            if why == Why::Retry && !may_retry(&plan, &self.tried) {
                return Beside::NothingLeft;
            }
            return Beside::Found(Box::new((plan, place)));
        }
        if asked.len() == self.tried.len() { Beside::NothingLeft } else { Beside::NoRoom }
    }

    fn put_off(&mut self) -> Result<(), End> {
        if let Some((race, _)) = &mut self.race {
            race.put_off(Instant::now());
        }
        Ok(())
    }

    /// True if somebody else is up who could be dialled.
    fn has_alternative(&mut self, endpoint: Option<&Arc<Endpoint>>) -> bool {
        let mut not = [&*self.tried, &*self.crowded].concat();
        not.extend(endpoint.map(|endpoint| Arc::clone(&endpoint.identity)));
        let is_reserve = |plan: &Plan| {
            let mut out = plan.pool.reserve.iter().flat_map(|group| &group.endpoints);
            out.any(|one| one.address() == plan.endpoint.address())
        };
        let is_full = |plan: &Plan| plan.endpoint.cell.is_full(plan.pool.room().sessions);
        connect::plan(self.books, &not, true).is_some_and(|plan| !is_full(&plan) && !is_reserve(&plan))
    }

    fn nothing_left(&mut self) -> Result<(), End> {
        match &mut self.race {
            Some((race, _)) => {
                race.spent();
                Ok(())
            }
            None => Err(self.last),
        }
    }

    /// A place among the attempts at this endpoint. It is waited for, as no other attempt is under way, and no longer than
    /// an attempt may take that another one could race. Where all endpoints have as many sessions as they may, the first
    /// in the queue of one takes what comes free at another.
    async fn place(&mut self, plan: &Plan) -> Option<(Plan, Place)> {
        if let Some(place) = Place::take(plan) {
            return Some((plan.clone(), place));
        }
        plan.pool.cell.waits();
        let end = self.started + plan.pool.connect.total;
        let usual = Hedge::delay(plan.endpoint.cell.usual());
        let until =
            if self.has_alternative(Some(&plan.endpoint)) { end.min(Instant::now() + usual) } else { end };
        let not = [&*self.tried, &[Arc::clone(&plan.endpoint.identity)]].concat();
        let (shared, books) = (Arc::clone(&self.books.shared), &mut *self.books);
        let elsewhere = || {
            let plan = connect::plan(books, &not, false)?;
            let place = Place::take(&plan)?;
            Some((plan, place))
        };
        timeout_at(until, Place::wait(plan.clone(), &shared, elsewhere)).await.ok().flatten()
    }

    /// There was no place: another endpoint may have one.
    fn crowd(&mut self, plan: &Plan) -> Result<(), End> {
        self.crowded.push(Arc::clone(&plan.endpoint.identity));
        self.last = OVERLOADED;
        let full = plan.endpoint.cell.dialling().1 >= u64::from(plan.pool.connect.queue);
        let late = Instant::now() >= self.started + plan.pool.connect.total;
        if !late && (!full || self.has_alternative(None)) {
            return Ok(());
        }
        plan.pool.cell.overflows();
        plan.endpoint.cell.connect_failed(OVERLOADED.cause);
        self.nothing_left()
    }

    fn enter(&mut self, (attempt, upstream): Begun, claim: Claim, why: Why) {
        self.books.trying(&attempt.plan.endpoint);
        let dial: Pin<Box<dyn Future<Output = Result<Peer, End>> + Send>> = match upstream {
            Ok(upstream) => {
                let end = self.started + attempt.plan.pool.connect.total;
                Box::pin(finish(upstream, Arc::clone(&attempt.plan.endpoint), end))
            }
            Err(end) => Box::pin(std::future::ready(Err(end))),
        };
        self.racers.push(Racer { attempt, last_hope: false, claim, why, dial });
    }

    fn won(&mut self, racer: Racer, mut upstream: Peer) -> Established {
        let Racer { attempt, claim, why, .. } = racer;
        for other in &self.racers {
            // One that began later has had less time.
            if other.attempt.begun < attempt.begun {
                let late = &other.attempt.plan.endpoint;
                late.cell.overtaken();
                let report = Report::Overtaken { endpoint: Arc::clone(&late.identity) };
                self.books.shared.reports.send(report);
            }
        }
        if why == Why::Hedge {
            attempt.plan.pool.cell.hedge_won();
        }
        self.books.carried_by(claim);
        attempt.connected(self.books, Instant::now());
        upstream.begin();
        Established { upstream, limits: attempt.plan.limits, pool: attempt.plan.pool }
    }

    fn failed(&mut self, racer: Racer, end: End) {
        connect::failed(self.books, &racer.attempt.plan.endpoint, end);
        self.books.carried_by(racer.claim);
        self.last = end;
        if let Some((race, _)) = &mut self.race {
            race.failed();
        }
    }
}

/// Where some endpoint is up, or this one has just answered, an attempt in the place of a failed one is what the session
/// needs, and so is one in a cloud that it has not tried. Where all are down, further ones only add to what they have to
/// refuse: the budget bounds them.
fn may_retry(plan: &Plan, tried: &[Arc<EndpointIdentity>]) -> bool {
    let (Plan { endpoint, pool, .. }, now) = (plan, Instant::now());
    let budget = pool.connect.hedge.map_or(Hedge::BUDGET, |hedge| hedge.budget);
    pool.all_down.is_none()
        || tried.iter().all(|tried| tried.cloud != endpoint.identity.cloud)
        || endpoint.cell.answers()
        || pool.cell.may_look(now)
        || pool.cell.may_hedge(budget, now)
}

/// An attempt beside one that is late is a guess, and the budget bounds those. Where attempts at the same endpoint have
/// been in vain again and again, it is none if another endpoint answers; if none is known to, one session looks now and
/// then.
fn is_certain(pool: &Pool, racers: &[Racer], tried: &[Arc<EndpointIdentity>], now: Instant) -> bool {
    let mut left = pool.endpoints().filter(|endpoint| !tried.contains(&endpoint.identity));
    racers.iter().all(|racer| racer.attempt.plan.endpoint.cell.seems_dead())
        && (left.any(|endpoint| endpoint.cell.answers()) || pool.cell.may_look(now))
}

/// Waits for the first of them to end, and takes it out.
async fn next(racers: &mut Vec<Racer>) -> (Racer, Result<Peer, End>) {
    poll_fn(|context| {
        for place in 0..racers.len() {
            if let Some(racer) = racers.get_mut(place)
                && let Poll::Ready(dialled) = racer.dial.as_mut().poll(context)
            {
                return Poll::Ready((racers.remove(place), dialled));
            }
        }
        Poll::Pending
    })
    .await
}

/// Waits until the attempt has connected or failed.
async fn finish(upstream: Peer, endpoint: Arc<Endpoint>, deadline: Instant) -> Result<Peer, End> {
    let writable = async {
        let watched = sys::readiness(upstream.as_fd(), Interest::WRITABLE)?;
        let _ready = watched.writable().await?;
        Ok::<_, io::Error>(())
    };
    let dialled = match timeout_at(deadline, writable).await {
        Ok(Ok(())) => connect::outcome(&endpoint, &upstream, true),
        Ok(Err(error)) => Err(connect::refusal(&endpoint, &error)),
        Err(_) => Err(End { side: Side::Upstream, stage: Stage::Connect, cause: Cause::TimedOut }),
    };
    dialled.map(|()| upstream)
}
