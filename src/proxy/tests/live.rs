//! Single sessions as an operator sees and ends them, wherever they are.

use std::sync::Mutex;

use super::*;
use crate::{
    ids::SessionHandle,
    state::{LiveSession, NotEnded, Population, SessionFilter},
    telemetry::{Cause, Side, Stage},
};

impl Plane {
    /// What all workers say: on a busy machine one may need more than the second that it has.
    async fn population(&self, filter: SessionFilter, limit: usize) -> Population {
        let answered = async {
            loop {
                let population = self.shared.sockets.sessions(filter.clone(), limit).await;
                if population.silent.is_empty() {
                    return population;
                }
            }
        };
        soon(answered).await
    }

    async fn all(&self) -> Vec<LiveSession> {
        self.population(SessionFilter::default(), 10_000).await.sessions
    }

    async fn end(&self, handle: SessionHandle) -> Result<LiveSession, NotEnded> {
        soon(self.shared.sockets.end_session(handle)).await
    }

    /// The only session, once it is like this.
    async fn one(&self, is_so: impl Fn(&LiveSession) -> bool) -> LiveSession {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let [session] = &self.all().await[..]
                && is_so(session)
            {
                return session.clone();
            }
            assert!(Instant::now() < deadline, "not within 30 s");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

const fn killed(stage: Stage) -> End {
    End { side: Side::Operator, stage, cause: Cause::Killed }
}

async fn is_reset(mut stream: TcpStream) -> bool {
    soon(stream.read(&mut [0])).await.is_err()
}

/// An echo that notes how its clients left: true for a reset.
async fn watchful() -> (SocketAddr, Arc<Mutex<Vec<bool>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    let address = endpoint(move |mut stream| {
        let notes = Arc::clone(&notes);
        async move {
            let (mut from, mut to) = stream.split();
            let copied = tokio::io::copy(&mut from, &mut to).await;
            notes.lock().unwrap().push(copied.is_err());
        }
    })
    .await;
    (address, seen)
}

/// An address whose handshakes nobody answers, for as long as what comes with it lives.
async fn silent() -> (SocketAddr, impl Sized) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        held.push(stream.unwrap());
    }
    (address, (socket, held))
}

const PATIENT: Connect = Connect::plain(Duration::from_secs(60), 3, Duration::from_secs(60));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_is_ended_on_both_sides_and_the_others_go_on() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let (address, seen) = watchful().await;
        let plane = Plane::start(carrier, 2, &[address]).await;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = plane.client().await;
            greet(&mut client).await.unwrap();
            clients.push(client);
        }
        let all = plane.all().await;
        assert!(all.is_sorted_by(|one, next| one.session < next.session) && all.len() == 20);
        let some = plane.population(SessionFilter::default(), 3).await;
        assert_eq!((some.sessions.len(), some.matching), (3, 20));
        assert_eq!(some.sessions[2].session, all[2].session);

        let client = clients.swap_remove(7);
        let here = client.local_addr().unwrap();
        let filter =
            SessionFilter { client: Some(here.to_string().parse().unwrap()), ..SessionFilter::default() };
        let found = plane.population(filter, 10).await.sessions.remove(0);
        assert_eq!(
            (found.client, found.stage, found.handle.slow),
            (here, Stage::Relay, carrier == Carrier::Tokio)
        );
        assert_eq!((found.to_upstream, found.to_client, found.attempts), (4, 4, 1));
        assert_eq!(found.endpoint.as_ref().unwrap().address, address);
        let ended = plane.end(found.handle).await.unwrap();
        assert_eq!((ended.session, ended.client), (found.session, here));
        assert!(is_reset(client).await);
        eventually(|| *seen.lock().unwrap() == [true]).await;
        eventually(|| plane.ends() == [(killed(Stage::Relay), 1)]).await;
        assert_eq!(plane.end(found.handle).await.unwrap_err(), NotEnded::Gone);
        for client in &mut clients {
            greet(client).await.unwrap();
        }
        assert_eq!(plane.all().await.len(), 19);
        drop(clients);
        plane.quiet().await;
        assert_eq!(seen.lock().unwrap().iter().filter(|reset| **reset).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_connects_is_ended_in_the_engine_and_in_tokio() {
    let (address, _held) = silent().await;
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[address]).await;
        plane.publish(&[address], PATIENT, LIMITS);
        let client = plane.client().await;
        let found = plane.one(|session| session.attempts == 1).await;
        assert_eq!((found.stage, found.handle.slow), (Stage::Connect, carrier == Carrier::Tokio));
        plane.end(found.handle).await.unwrap();
        assert!(is_reset(client).await);
        eventually(|| plane.ends() == [(killed(Stage::Connect), 1)]).await;

        // What is late is tokio's.
        let client = plane.client().await;
        let first = plane.one(|session| session.attempts == 1).await;
        let late = plane.one(|session| session.handle.slow).await;
        assert_eq!((late.session, late.stage), (first.session, Stage::Connect));
        if carrier == Carrier::Engine {
            assert_eq!(plane.end(first.handle).await.unwrap_err(), NotEnded::Gone);
        }
        plane.end(late.handle).await.unwrap();
        assert!(is_reset(client).await);
        eventually(|| plane.ends() == [(killed(Stage::Connect), 2)]).await;
        assert!(plane.all().await.is_empty());
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_comes_back_from_tokio_has_left_nothing_there() {
    let (nobody, good) = (nobody(), echo().await);
    let plane = Plane::start(Carrier::Engine, 1, &[nobody, good]).await;
    let mut client = plane.client().await;
    greet(&mut client).await.unwrap();
    let found = plane.one(|session| session.to_client == 4).await;
    assert_eq!((found.handle.slow, found.attempts, found.stage), (false, 2, Stage::Relay));
    plane.end(found.handle).await.unwrap();
    assert!(is_reset(client).await);
    plane.quiet().await;
    assert_eq!(plane.ends(), [(killed(Stage::Relay), 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_handle_spares_who_has_the_place_now() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[echo().await]).await;
        let mut client = plane.client().await;
        greet(&mut client).await.unwrap();
        let old = plane.one(|_| true).await;
        drop(client);
        plane.quiet().await;
        let mut client = plane.client().await;
        greet(&mut client).await.unwrap();
        let new = plane.one(|_| true).await;
        assert_eq!((new.handle.worker, new.handle.slot), (old.handle.worker, old.handle.slot));
        assert_ne!((new.handle.generation, new.session), (old.handle.generation, old.session));
        assert_eq!(plane.end(old.handle).await.unwrap_err(), NotEnded::Gone);
        let elsewhere = SessionHandle { slow: !new.handle.slow, ..new.handle };
        assert_eq!(plane.end(elsewhere).await.unwrap_err(), NotEnded::Gone);
        let nowhere = SessionHandle { worker: 9, ..new.handle };
        assert_eq!(plane.end(nowhere).await.unwrap_err(), NotEnded::Gone);
        greet(&mut client).await.unwrap();
        drop(client);
        plane.quiet().await;
        assert!(plane.ends().iter().all(|(end, _)| end.side == Side::Client));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_bytes_wait_for_a_reader_is_ended_at_once() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[echo().await]).await;
        let mut client = plane.client().await;
        let chunk = vec![1; 65_536];
        // The echo has nowhere to go: both directions stall.
        while timeout(Duration::from_millis(200), client.write_all(&chunk)).await.is_ok() {}
        let found = plane.one(|session| session.to_client > 0).await;
        plane.end(found.handle).await.unwrap();
        plane.quiet().await;
        assert_eq!(plane.ends(), [(killed(Stage::Relay), 1)]);
        drop(client);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_coming_and_going_every_order_ends_one_session_or_none() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        // The first attempt fails, so that sessions of the engine go through tokio and back.
        let plane = Plane::start(carrier, 2, &[nobody(), echo().await]).await;
        let address = plane.address;
        let come_and_go = move || async move {
            for _ in 0..40 {
                // It may be ended at any time, sooner than the client knows that it is connected.
                let Ok(mut client) = soon(TcpStream::connect(address)).await else { continue };
                for _ in 0..3 {
                    drop(greet(&mut client).await);
                }
            }
        };
        let clients: Vec<_> = (0..8).map(|_| tokio::spawn(come_and_go())).collect();
        let (mut killed, mut missed, mut unknown) = (0, 0, 0);
        while clients.iter().any(|client| !client.is_finished()) {
            for session in plane.all().await.into_iter().step_by(3) {
                match plane.end(session.handle).await {
                    Ok(ended) => {
                        assert_eq!(ended.session, session.session);
                        killed += 1;
                    }
                    Err(NotEnded::Gone) => missed += 1,
                    // It is obeyed, or not.
                    Err(NotEnded::Silent) => unknown += 1,
                }
            }
        }
        for client in clients {
            client.await.unwrap();
        }
        plane.quiet().await;
        let ends = plane.ends();
        let count =
            |cause| ends.iter().filter(|(end, _)| end.cause == cause).map(|(_, count)| count).sum::<u64>();
        let obeyed = count(Cause::Killed);
        assert!(
            (killed..=killed + unknown).contains(&obeyed),
            "{killed} and {unknown}, {missed} missed: {ends:?}"
        );
        assert!(killed > 0, "{missed} missed");
        assert_eq!(ends.iter().map(|(_, count)| count).sum::<u64>(), 320);
        assert!(plane.all().await.is_empty());
    }
}
