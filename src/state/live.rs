//! Sessions one by one: what an operator asks the workers about them, and what those answer. The questions travel through
//! the same queues as listeners do; a worker answers when its turn comes, and nobody waits for it longer than a second.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{SocketCommand, Sockets};
use crate::{
    ids::{CloudName, EndpointIdentity, Generation, ListenerName, PoolName, SessionHandle},
    telemetry::Stage,
};

/// How long a worker has for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A session that lives, or did when it was ended.
#[derive(Clone, Debug)]
pub struct LiveSession {
    /// Where it is.
    pub handle: SessionHandle,
    /// Its number, as its line in the session log will have it.
    pub session: u64,
    /// The client's address.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: ListenerName,
    /// The pool it was routed to.
    pub pool: Option<PoolName>,
    /// The endpoint that carries it, or that is tried.
    pub endpoint: Option<Arc<EndpointIdentity>>,
    /// The generation it was routed under.
    pub generation: Generation,
    /// [`Stage::Connect`] or [`Stage::Relay`].
    pub stage: Stage,
    /// When it was accepted.
    pub started: Instant,
    /// Bytes relayed to the endpoint.
    pub to_upstream: u64,
    /// Bytes relayed to the client.
    pub to_client: u64,
    /// Attempts to connect.
    pub attempts: u8,
}

impl LiveSession {
    /// What is looked at to find out whether it is meant.
    #[must_use]
    pub fn traits(&self) -> Traits<'_> {
        Traits {
            session: self.session,
            client: self.client,
            pool: self.pool.as_ref(),
            endpoint: self.endpoint.as_deref(),
            started: self.started,
        }
    }
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    ip: IpAddr,
    port: Option<u16>,
}

/// Not the form of [`Whereabouts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address: give IP or IP:PORT")]
pub struct NotWhereabouts;

impl FromStr for Whereabouts {
    type Err = NotWhereabouts;

    fn from_str(text: &str) -> Result<Self, NotWhereabouts> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip().to_canonical(), port: Some(address.port()) });
        }
        let ip: IpAddr = text.parse().map_err(|_| NotWhereabouts)?;
        Ok(Self { ip: ip.to_canonical(), port: None })
    }
}

impl Whereabouts {
    fn admits(self, address: SocketAddr) -> bool {
        self.ip == address.ip().to_canonical() && self.port.is_none_or(|port| port == address.port())
    }
}

/// Which sessions are meant: those that everything here admits.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Of this pool.
    pub pool: Option<PoolName>,
    /// With this endpoint.
    pub endpoint: Option<Whereabouts>,
    /// With an endpoint in this cloud.
    pub cloud: Option<CloudName>,
    /// Of this client.
    pub client: Option<Whereabouts>,
    /// Accepted at this time or before.
    pub begun_by: Option<Instant>,
}

/// What is looked at to find out whether a session is meant.
#[derive(Clone, Copy, Debug)]
pub struct Traits<'a> {
    /// Its number.
    pub session: u64,
    /// The client's address.
    pub client: SocketAddr,
    /// The pool it was routed to.
    pub pool: Option<&'a PoolName>,
    /// The endpoint that carries it, or that is tried.
    pub endpoint: Option<&'a EndpointIdentity>,
    /// When it was accepted.
    pub started: Instant,
}

impl SessionFilter {
    fn admits(&self, session: &Traits<'_>) -> bool {
        self.begun_by.is_none_or(|time| session.started <= time)
            && self.client.is_none_or(|client| client.admits(session.client))
            && self.pool.as_ref().is_none_or(|pool| session.pool == Some(pool))
            && self.cloud.as_ref().is_none_or(|cloud| session.endpoint.is_some_and(|at| at.cloud == *cloud))
            && self
                .endpoint
                .is_none_or(|wanted| session.endpoint.is_some_and(|endpoint| wanted.admits(endpoint.address)))
    }
}

/// A question for one worker: its oldest sessions, at most so many. It goes through both halves of the worker, and is
/// answered by the last one; one that is dropped is not answered.
#[derive(Debug)]
pub struct Census {
    worker: usize,
    filter: Arc<SessionFilter>,
    limit: usize,
    matching: u64,
    oldest: BinaryHeap<ByAge>,
    answer: mpsc::Sender<Counted>,
}

/// One worker's answer.
#[derive(Debug)]
struct Counted {
    worker: usize,
    matching: u64,
    sessions: Vec<LiveSession>,
}

impl Census {
    /// Looks at a session, and takes it down if it belongs to the answer. `tell` is called only then: a worker may have
    /// a million sessions of which a hundred are wanted.
    pub fn look(&mut self, session: &Traits<'_>, tell: impl FnOnce() -> LiveSession) {
        if !self.filter.admits(session) {
            return;
        }
        self.matching += 1;
        if self.oldest.len() >= self.limit {
            match self.oldest.peek() {
                Some(youngest) if session.session < youngest.0.session => drop(self.oldest.pop()),
                Some(_) | None => return,
            }
        }
        self.oldest.push(ByAge(tell()));
    }

    /// True when nobody waits for the answer any more.
    #[must_use]
    pub fn is_moot(&self) -> bool {
        self.answer.is_closed()
    }

    /// Every session of the worker was looked at.
    pub fn finish(self) {
        let sessions = self.oldest.into_iter().map(|one| one.0).collect();
        let counted = Counted { worker: self.worker, matching: self.matching, sessions };
        // There is room for an answer of each worker; who asked may have gone.
        self.answer.try_send(counted).unwrap_or_default();
    }
}

/// Ordered by number: the greatest is the youngest.
#[derive(Debug)]
struct ByAge(LiveSession);

impl Ord for ByAge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.session.cmp(&other.0.session)
    }
}

impl PartialOrd for ByAge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByAge {
    fn eq(&self, other: &Self) -> bool {
        self.0.session == other.0.session
    }
}

impl Eq for ByAge {}

/// An order to one worker: end this session.
#[derive(Debug)]
pub struct Kill {
    /// Which one.
    pub handle: SessionHandle,
    answer: oneshot::Sender<Option<LiveSession>>,
}

impl Kill {
    /// Says what was ended; `None` when nobody has that handle.
    pub fn answer(self, ended: Option<LiveSession>) {
        // Who asked may have gone.
        drop(self.answer.send(ended));
    }
}

/// What the workers say of their sessions.
#[derive(Debug, Default)]
pub struct Population {
    /// The oldest, oldest first. A session that changed workers' halves while they were asked may be missing.
    pub sessions: Vec<LiveSession>,
    /// How many there are that the filter admits.
    pub matching: u64,
    /// Workers that did not answer in time: their sessions are missing.
    pub silent: Vec<usize>,
}

/// Why no session was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotEnded {
    /// Nobody has that handle, or not any more.
    Gone,
    /// The worker did not answer in time. It may still obey.
    Silent,
}

impl Sockets {
    /// Asks every worker for the oldest sessions that the filter admits, `limit` in all.
    pub async fn sessions(&self, filter: SessionFilter, limit: usize) -> Population {
        let deadline = Instant::now() + PATIENCE;
        let workers = self.workers();
        let (answer, mut answers) = mpsc::channel(workers.max(1));
        let filter = Arc::new(filter);
        for (number, worker) in self.queues().iter().enumerate() {
            let (filter, answer) = (Arc::clone(&filter), answer.clone());
            let census =
                Census { worker: number, filter, limit, matching: 0, oldest: BinaryHeap::new(), answer };
            // A queue that is full is that of a worker that does not answer; one that is gone has stopped.
            drop(worker.try_send(SocketCommand::Census(Box::new(census))));
        }
        drop(answer);
        let mut population = Population { silent: (0..workers).collect(), ..Population::default() };
        while let Ok(Some(counted)) = timeout_at(deadline, answers.recv()).await {
            population.silent.retain(|worker| *worker != counted.worker);
            population.matching += counted.matching;
            population.sessions.extend(counted.sessions);
        }
        population.sessions.sort_by_key(|session| session.session);
        let told = population.sessions.len();
        // One that changed halves was seen in both.
        population.sessions.dedup_by_key(|session| session.session);
        population.matching -= (told - population.sessions.len()) as u64;
        population.sessions.truncate(limit);
        population
    }

    /// Has the worker that carries it reset a session on both sides. Says what that session was.
    ///
    /// # Errors
    /// See [`NotEnded`].
    pub async fn end_session(&self, handle: SessionHandle) -> Result<LiveSession, NotEnded> {
        let worker = usize::try_from(handle.worker).ok().and_then(|number| self.queues().get(number));
        let worker = worker.ok_or(NotEnded::Gone)?;
        let (answer, answered) = oneshot::channel();
        if worker.try_send(SocketCommand::Kill(Kill { handle, answer })).is_err() {
            return Err(NotEnded::Silent);
        }
        match timeout(PATIENCE, answered).await {
            Ok(Ok(Some(ended))) => Ok(ended),
            Ok(Ok(None)) => Err(NotEnded::Gone),
            Ok(Err(_)) | Err(_) => Err(NotEnded::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u64, started: Instant) -> LiveSession {
        let endpoint = EndpointIdentity {
            pool: PoolName::from("p"),
            cloud: CloudName::from("aws"),
            address: "10.0.0.1:5432".parse().unwrap(),
        };
        LiveSession {
            handle: SessionHandle { worker: 0, slow: false, slot: 0, generation: 1 },
            session: number,
            client: "[::ffff:192.0.2.1]:40000".parse().unwrap(),
            listener: ListenerName::from("l"),
            pool: Some(endpoint.pool.clone()),
            endpoint: Some(Arc::new(endpoint)),
            generation: Generation(1),
            stage: Stage::Relay,
            started,
            to_upstream: 0,
            to_client: 0,
            attempts: 1,
        }
    }

    #[test]
    fn a_filter_admits_what_all_of_it_admits() {
        let now = Instant::now();
        let session = session(1, now);
        let at = |text: &str| Some(text.parse::<Whereabouts>().unwrap());
        let none = SessionFilter::default;
        let filters = [
            (true, none()),
            (true, SessionFilter { client: at("192.0.2.1"), ..none() }),
            (true, SessionFilter { client: at("192.0.2.1:40000"), ..none() }),
            (false, SessionFilter { client: at("192.0.2.1:4000"), ..none() }),
            (true, SessionFilter { endpoint: at("10.0.0.1:5432"), pool: Some("p".into()), ..none() }),
            (false, SessionFilter { endpoint: at("10.0.0.2"), pool: Some("p".into()), ..none() }),
            (false, SessionFilter { pool: Some("q".into()), ..none() }),
            (true, SessionFilter { cloud: Some("aws".into()), begun_by: Some(now), ..none() }),
            (false, SessionFilter { cloud: Some("gcp".into()), ..none() }),
            (false, SessionFilter { begun_by: Some(now - PATIENCE), ..none() }),
        ];
        for (admits, filter) in filters {
            assert_eq!(filter.admits(&session.traits()), admits, "{filter:?}");
        }
        for wrong in ["", "localhost", "10.0.0.1:", "10.0.0.1:70000", "::1:x"] {
            assert_eq!(wrong.parse::<Whereabouts>(), Err(NotWhereabouts), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_all_workers_come_first_and_a_silent_worker_is_named() {
        let (sockets, mut queues) = Sockets::new(3);
        let answer = |queue: &mut mpsc::Receiver<SocketCommand>, numbers: &[u64]| {
            let Ok(SocketCommand::Census(mut census)) = queue.try_recv() else { panic!("no question") };
            for number in numbers {
                let session = session(*number, Instant::now());
                census.look(&session.traits(), || session.clone());
            }
            census.finish();
        };
        let workers = async {
            tokio::task::yield_now().await;
            answer(&mut queues[0], &[9, 3, 7, 1]);
            // In both halves of the second.
            answer(&mut queues[1], &[4, 2, 2, 8]);
        };
        let (population, ()) = tokio::join!(sockets.sessions(SessionFilter::default(), 3), workers);
        let numbers: Vec<_> = population.sessions.iter().map(|session| session.session).collect();
        assert_eq!((numbers, population.matching, population.silent), (vec![1, 2, 3], 7, vec![2]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_there_is_gone_and_who_does_not_answer_is_silent() {
        let (sockets, queues) = Sockets::new(1);
        let handle = SessionHandle { worker: 1, slow: false, slot: 0, generation: 1 };
        assert_eq!(sockets.end_session(handle).await.unwrap_err(), NotEnded::Gone);
        let handle = SessionHandle { worker: 0, ..handle };
        assert_eq!(sockets.end_session(handle).await.unwrap_err(), NotEnded::Silent);
        drop(queues);
        assert_eq!(sockets.end_session(handle).await.unwrap_err(), NotEnded::Silent);
    }
}
