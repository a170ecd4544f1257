//! Clients: new sessions at a steady rate, whatever becomes of those before, and long ones that never stop talking.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};

use super::ground::{BIND, CLOUDS, NAMES, WITNESS, cloud_of, named};
use crate::harness::Dice;

/// New sessions a second.
const RATE: u32 = 300;

/// A client goes away when it has waited this long for the first byte of an answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Long sessions with each cloud.
const COMPANY: usize = 20;

/// Between two messages of a long session.
const BREATH: Duration = Duration::from_millis(100);

/// A message of a long session that has no answer after this is taken for its end.
const STALLED: Duration = Duration::from_secs(15);

/// A client has an address of its own, by which logs tell of it: this one and its number.
const CLIENTS: u32 = u32::from_be_bytes([127, 64, 0, 0]);
const LONG_CLIENTS: u32 = u32::from_be_bytes([127, 192, 0, 0]);

/// What became of one short session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) number: u32,
    /// When it was meant to begin.
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    /// How late it began.
    pub(super) late: Duration,
    /// The endpoint that answered, or what the client saw.
    pub(super) outcome: Result<usize, &'static str>,
}

/// The number of the client at this address, if it is one of the short sessions.
pub(super) fn client(ip: &str) -> Option<u32> {
    let ip = u32::from(ip.parse::<Ipv4Addr>().ok()?);
    (CLIENTS..LONG_CLIENTS).contains(&ip).then(|| ip - CLIENTS)
}

/// Short sessions at a steady rate.
#[derive(Debug)]
pub(super) struct Crowd {
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<Session>>,
}

impl Crowd {
    /// They come.
    pub(super) fn start() -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut sessions = JoinSet::new();
            for number in 0.. {
                tokio::select! {
                    begun = ticks.tick() => drop(sessions.spawn(session(number, begun))),
                    _ = stopped.changed() => break,
                }
            }
            sessions.join_all().await
        });
        Self { stop, task }
    }

    /// No more; waits for those that are here.
    pub(super) async fn stop(self) -> Vec<Session> {
        self.stop.send(true).unwrap();
        self.task.await.unwrap()
    }
}

async fn session(number: u32, begun: Instant) -> Session {
    let late = begun.elapsed();
    let outcome = match timeout_at(begun + DEADLINE, ask(CLIENTS + number, BIND)).await {
        Ok(Ok((_, endpoint))) => Ok(endpoint),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err("deadline"),
    };
    Session { number, begun, ended: Instant::now(), late, outcome }
}

/// A session up to the name of its endpoint. One that does not get there is reset, so that the proxy hears of it at
/// once.
async fn ask(from: u32, whom: SocketAddr) -> io::Result<(TcpStream, usize)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    socket.bind(SocketAddr::new(Ipv4Addr::from(from).into(), 0))?;
    let mut stream = socket.connect(whom).await?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(b"?").await?;
    let mut name = [0; NAMES[0].len()];
    stream.read_exact(&mut name).await?;
    SockRef::from(&stream).set_linger(None)?;
    let endpoint = str::from_utf8(&name).ok().and_then(named).ok_or(io::ErrorKind::InvalidData)?;
    Ok((stream, endpoint))
}

/// The machine's own slowness: sessions without a proxy, one after the other, at an endpoint that nothing strikes.
#[derive(Debug)]
pub(super) struct Witness {
    stop: watch::Sender<bool>,
    task: JoinHandle<Vec<(Instant, Instant)>>,
}

impl Witness {
    /// It begins to look.
    pub(super) fn start() -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            let mut looks = interval(BREATH);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !*stopped.borrow() {
                let due = looks.tick().await;
                drop(timeout(STALLED, ask(LONG_CLIENTS - 1, WITNESS)).await);
                seen.push((due, Instant::now()));
            }
            seen
        });
        Self { stop, task }
    }

    /// When each of its sessions was due, and when it was over.
    pub(super) async fn stop(self) -> Vec<(Instant, Instant)> {
        self.stop.send(true).unwrap();
        self.task.await.unwrap()
    }
}

fn words(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset",
        io::ErrorKind::UnexpectedEof => "closed",
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::InvalidData => "wrong bytes",
        io::ErrorKind::TimedOut => "timed out",
        _ => "other error",
    }
}

/// The end of a long session that nobody wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Broken {
    pub(super) endpoint: usize,
    /// Its last answer.
    pub(super) well: Instant,
    pub(super) ended: Instant,
    pub(super) why: &'static str,
}

/// Long sessions, as many with each cloud; one that breaks is followed by another.
#[derive(Debug)]
pub(super) struct Company {
    stop: watch::Sender<bool>,
    tasks: JoinSet<Vec<Broken>>,
    joined: [Arc<AtomicU64>; CLOUDS.len()],
    exchanges: Arc<AtomicU64>,
}

impl Company {
    /// They come.
    pub(super) fn start() -> Self {
        let (stop, stopped) = watch::channel(false);
        let next = Arc::new(AtomicU32::new(LONG_CLIENTS));
        let mut company = Self {
            stop,
            tasks: JoinSet::new(),
            joined: [Arc::default(), Arc::default()],
            exchanges: Arc::default(),
        };
        for cloud in (0..CLOUDS.len()).cycle().take(COMPANY * CLOUDS.len()) {
            let (next, joined) = (Arc::clone(&next), Arc::clone(&company.joined[cloud]));
            let (exchanges, mut stopped) = (Arc::clone(&company.exchanges), stopped.clone());
            company.tasks.spawn(async move {
                let mut broken = Vec::new();
                loop {
                    let talk = async {
                        let (mut stream, endpoint) = join(cloud, &next).await;
                        joined.fetch_add(1, Relaxed);
                        talk(&mut stream, endpoint, &exchanges).await
                    };
                    tokio::select! {
                        end = talk => broken.push(end),
                        _ = stopped.changed() => return broken,
                    }
                }
            });
        }
        company
    }

    /// True once every session has found its cloud.
    pub(super) fn is_complete(&self) -> bool {
        self.joined.iter().all(|joined| joined.load(Relaxed) >= COMPANY as u64)
    }

    /// They go: which broke, and how many messages were answered.
    pub(super) async fn stop(self) -> (Vec<Broken>, u64) {
        self.stop.send(true).unwrap();
        let broken = self.tasks.join_all().await.into_iter().flatten().collect();
        (broken, self.exchanges.load(Relaxed))
    }
}

/// A session with this cloud. The proxy chooses; a client that wants a certain cloud asks again.
async fn join(cloud: usize, next: &AtomicU32) -> (TcpStream, usize) {
    loop {
        let number = next.fetch_add(1, Relaxed);
        if let Ok(Ok((stream, endpoint))) = timeout(DEADLINE, ask(number, BIND)).await
            && cloud_of(endpoint) == cloud
        {
            return (stream, endpoint);
        }
        // Clients that come back in step would get the clouds in turns, and never the one they want.
        sleep(Duration::from_millis(200 + Dice::new(number.into()).below(200))).await;
    }
}

/// Talks until something breaks.
async fn talk(stream: &mut TcpStream, endpoint: usize, exchanges: &AtomicU64) -> Broken {
    let mut well = Instant::now();
    let mut breaths = interval(BREATH);
    breaths.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        breaths.tick().await;
        let message = exchanges.load(Relaxed).to_be_bytes();
        let exchange = async {
            let mut echo = [0; 8];
            stream.write_all(&message).await?;
            stream.read_exact(&mut echo).await?;
            if echo == message { Ok(()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
        };
        let why = match timeout(STALLED, exchange).await {
            Ok(Ok(())) => {
                exchanges.fetch_add(1, Relaxed);
                well = Instant::now();
                continue;
            }
            Ok(Err(error)) => words(&error),
            Err(_) => "stalled",
        };
        return Broken { endpoint, well, ended: Instant::now(), why };
    }
}
