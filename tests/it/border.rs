//! The border between copy and splice under packet loss. The relay reads into a buffer of 16 KiB; a read that fills it
//! moves the direction to splice(2), and a few small transfers move it back. Ten thousand random sessions cross that
//! border at every offset, with stalls, half-closes in both orders and resets, in a network that loses 3 % of the packets.
//! Needs root, as `netns` does.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};

use crate::harness::{
    Backend, Carrier, Dice, Net, Pattern, Proxy, Setup, command, connect, count_from, eventually_within,
    listener, pool, reset, skip_on_this_machine, soon,
};

/// What the relay reads at once.
const BUFFER: u64 = 16 * 1024;

/// Messages end up to this many bytes before and after a multiple of the buffer.
const FARTHEST: u64 = 256;

/// More than all buffers between the two ends take.
const BULK: u64 = 900_000;

/// Sessions at a time: with loss most of them wait for a retransmission.
const AT_ONCE: usize = 500;

/// A socket that has taken nothing for this long is full.
const FULL: Duration = Duration::from_millis(100);

/// A session that lasts this long hangs.
const LONG: Duration = Duration::from_secs(90);

const BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5000);
const ENDPOINT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7000);

#[test]
fn ten_thousand_sessions_across_the_border_under_loss_are_exact_on_the_engine() {
    lossy("border_on_engine", Carrier::Engine);
}

#[test]
fn ten_thousand_sessions_across_the_border_under_loss_are_exact_on_tokio() {
    lossy("border_on_tokio", Carrier::Tokio);
}

fn lossy(test: &str, carrier: Carrier) {
    let Some(net) = Net::new(test) else { return };
    let total = count_from("TWINSPAN_SESSIONS", 10_000);
    let seed = count_from("TWINSPAN_SEED", 20_261_122);
    println!("seed {seed}, {total} sessions");
    net.run(async || sessions(test, carrier, total, seed).await);
}

async fn sessions(test: &str, carrier: Carrier, total: u64, seed: u64) {
    // Segments of the size that they have outside.
    command(&["ip", "link", "set", "lo", "mtu", "1500"]).unwrap();
    let waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<TcpStream>>>> = Arc::default();
    let known = Arc::clone(&waiting);
    let backend = Backend::serve_at(ENDPOINT, move |mut stream| {
        let known = Arc::clone(&known);
        async move {
            let mut number = [0; 8];
            stream.read_exact(&mut number).await.unwrap();
            let session = known.lock().unwrap().remove(&u64::from_le_bytes(number)).unwrap();
            session.send(stream).unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(setup(carrier)).await;
    let before = proxy.sockets();
    if let Err(reason) = lose() {
        return skip_on_this_machine(test, &reason);
    }
    let mut sessions = JoinSet::new();
    for number in 0..total {
        if sessions.len() == AT_ONCE {
            sessions.join_next().await.unwrap().unwrap();
        }
        let (sender, upstream) = oneshot::channel();
        waiting.lock().unwrap().insert(number, sender);
        sessions.spawn(async move { Session::new(seed, number).run(upstream).await });
    }
    while let Some(ended) = sessions.join_next().await {
        ended.unwrap();
    }
    // A reset that got lost is found by keepalive.
    let none_left = async || (proxy.sockets() <= before).then_some(());
    eventually_within(LONG, "no socket of a session", none_left).await;
    assert_eq!(
        (backend.accepted(), proxy.metric("twinspan_connections_closed_total", &[]).await),
        (total, total)
    );
    assert!(!proxy.said().contains("\"ERROR\""), "{}", proxy.said());
    assert!(
        retransmitted() > total / 2,
        "{} segments were lost: is this a network with loss?",
        retransmitted()
    );
}

fn setup(carrier: Carrier) -> Setup {
    // A handshake may lose its segments several times, and a reset may be lost for good.
    let settings = "keepalive = { idle = \"1s\", interval = \"1s\", count = 5 }";
    let tables =
        pool("only", "connect_timeout = \"30s\"", &[("aws", ENDPOINT)]) + &listener(BIND, "only", settings);
    Setup::at(BIND.ip(), tables).carrier(carrier)
}

/// From now on the sessions' network loses three segments in a hundred, on both sides of the proxy and both ways.
fn lose() -> Result<(), String> {
    for port in [BIND.port(), ENDPOINT.port()] {
        for way in ["--sport", "--dport"] {
            let chance = ["-m", "statistic", "--mode", "random", "--probability", "0.03", "-j", "DROP"];
            let port = port.to_string();
            command(&[&["iptables", "-w", "-A", "INPUT", "-p", "tcp", way, &port], &chance[..]].concat())?;
        }
    }
    Ok(())
}

/// Segments that were sent again in this thread's network.
fn retransmitted() -> u64 {
    let page = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut rows = page.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    columns.find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
}

/// The two ends of a session, and of the way that each one speaks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

/// What happens in a session.
#[derive(Debug)]
struct Session {
    seed: u64,
    number: u64,
    /// What the client says, and what the upstream says.
    ways: [Way; 2],
    /// A side that from this message on waits for the other's end.
    patient: Option<(Side, usize)>,
    death: Option<Death>,
}

/// One side resets, before it has ended its own way.
#[derive(Clone, Copy, Debug)]
struct Death {
    side: Side,
    /// Once it has sent this much; or else once it has received this much.
    by_sending: bool,
    at: u64,
}

/// One direction.
#[derive(Debug)]
struct Way {
    messages: Vec<Message>,
    total: u64,
    /// Where the receiver stops until the sender can go no further.
    pause: Option<u64>,
    sent: watch::Sender<u64>,
    received: watch::Sender<u64>,
    /// The sender waits for something, or has ended.
    stuck: watch::Sender<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    length: u64,
    /// Sent only when everything before it has been received, so that the relay finds it alone.
    alone: bool,
}

impl Way {
    fn new(dice: &mut Dice, near: u64) -> Self {
        let mut lengths = Vec::new();
        for _ in 0..=dice.below(3) {
            let times = [1, 1, 1, 1, 2, 3, 4, 8, 16][usize::try_from(dice.below(9)).unwrap()];
            lengths.push(BUFFER * times + near - FARTHEST);
            for _ in 0..dice.below(7) {
                lengths.push(match dice.below(4) {
                    0 => 1,
                    1 | 2 => 1 + dice.below(300),
                    _ => 1 + dice.below(BUFFER),
                });
            }
        }
        let stalls = dice.below(6) == 0;
        if stalls {
            let place = usize::try_from(dice.below(lengths.len() as u64 + 1)).unwrap();
            lengths.insert(place, BULK);
        }
        let message = |length| Message { length, alone: dice.below(4) > 0 };
        let messages: Vec<_> = lengths.into_iter().map(message).collect();
        let total = messages.iter().map(|message| message.length).sum();
        let pause = stalls.then(|| dice.below(total));
        let (sent, received, stuck) =
            (watch::Sender::new(0), watch::Sender::new(0), watch::Sender::new(false));
        Self { messages, total, pause, sent, received, stuck }
    }
}

impl Session {
    fn new(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed ^ number.rotate_left(32));
        // Both ways come past every offset, apart from each other.
        let near = number % (2 * FARTHEST + 1);
        let ways = [Way::new(&mut dice, near), Way::new(&mut dice, 2 * FARTHEST - near)];
        let mut of = |side: Side| Some((side, usize::try_from(dice.below(20)).unwrap()));
        let patient = match number / 7 % 4 {
            0 => of(Side::Client),
            1 => of(Side::Upstream),
            _ => None,
        };
        let side = if dice.below(2) == 0 { Side::Client } else { Side::Upstream };
        // A side that waits for an end that will never come says too little to die of.
        let by_sending = patient.is_some() || dice.below(2) == 0;
        let way = if by_sending { side } else { side.other() };
        let at = dice.below(ways[way as usize].total + 1);
        let death = (dice.below(5) == 0).then_some(Death { side, by_sending, at });
        Self { seed, number, ways, patient, death }
    }

    /// Plays both sides to their ends.
    async fn run(self, upstream: oneshot::Receiver<TcpStream>) {
        let _context = Context(&self);
        let mut client = connect(BIND).await;
        client.write_all(&self.number.to_le_bytes()).await.unwrap();
        let upstream = soon("the session at the upstream", upstream).await.unwrap();
        let (client, upstream) =
            (Box::pin(self.play(Side::Client, client)), Box::pin(self.play(Side::Upstream, upstream)));
        let both = async { tokio::join!(client, upstream) };
        assert!(timeout(LONG, both).await.is_ok(), "a session hangs");
    }

    async fn play(&self, side: Side, stream: TcpStream) {
        // Finds a reset that was lost.
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).unwrap();
        match self.death {
            Some(death) if death.side == side => self.die(death, stream).await,
            Some(_) => self.survive(side, &stream).await,
            None => {
                let (ended, end) = watch::channel(false);
                let (spoken, heard) = tokio::join!(
                    self.speak(side, &stream, end, None),
                    self.hear(side, &stream, &ended, u64::MAX)
                );
                let total = self.ways[side.other() as usize].total;
                assert!(
                    spoken.is_ok() && matches!(heard, Ok(n) if n == total),
                    "{side:?}: {spoken:?}, {heard:?}"
                );
            }
        }
    }

    /// Goes on to a certain byte, and then resets.
    async fn die(&self, death: Death, stream: TcpStream) {
        let (ended, end) = watch::channel(false);
        let mine = &self.ways[death.side as usize];
        let (send, receive) = if death.by_sending { (death.at, u64::MAX) } else { (mine.total, death.at) };
        let speaking = self.speak(death.side, &stream, end, Some(send));
        let hearing = self.hear(death.side, &stream, &ended, receive);
        let both = async {
            let (spoken, heard) = tokio::join!(speaking, hearing);
            spoken.and(heard).unwrap();
            std::future::pending::<()>().await;
        };
        let bytes =
            if death.by_sending { &mine.sent } else { &self.ways[death.side.other() as usize].received };
        let mut bytes = bytes.subscribe();
        tokio::select! {
            () = both => {}
            reached = bytes.wait_for(|bytes| *bytes >= death.at) => drop(reached),
        }
        reset(stream);
        mine.stuck.send_replace(true);
    }

    /// Goes on until the other side's reset comes: it must come, after nothing but bytes that were sent.
    async fn survive(&self, side: Side, stream: &TcpStream) {
        let (ended, end) = watch::channel(false);
        let speaking = self.speak(side, stream, end, None);
        let hearing = self.hear(side, stream, &ended, u64::MAX);
        tokio::pin!(hearing);
        let (spoken, heard) = tokio::select! {
            heard = &mut hearing => (Ok(()), heard),
            spoken = speaking => (spoken, hearing.await),
        };
        // The kernel tells it once, to whoever asks first; the next read is a clean end.
        let is_reset =
            |error: Option<&io::Error>| error.is_some_and(|error| error.kind() == ErrorKind::ConnectionReset);
        let told = is_reset(spoken.as_ref().err()) || is_reset(heard.as_ref().err());
        assert!(told, "{side:?} was not told of a reset: {spoken:?}, {heard:?}");
        let theirs = &self.ways[side.other() as usize];
        let (sent, received) = (*theirs.sent.borrow(), *theirs.received.borrow());
        assert!(received <= sent, "{side:?}: {received} of {sent}");
    }

    fn pattern(&self, side: Side) -> Pattern {
        Pattern(self.seed.rotate_left(24) ^ (self.number * 2 + side as u64))
    }

    /// Sends a side's messages and its end; or all up to a certain byte, and no end.
    async fn speak(
        &self,
        side: Side,
        stream: &TcpStream,
        mut end: watch::Receiver<bool>,
        limit: Option<u64>,
    ) -> io::Result<()> {
        let way = &self.ways[side as usize];
        let mut received = way.received.subscribe();
        let patience = self
            .patient
            .filter(|(patient, _)| *patient == side)
            .map(|(_, from)| from.min(way.messages.len()));
        let mut offset = 0;
        for (place, message) in way.messages.iter().enumerate() {
            if patience == Some(place) {
                way.idle(end.wait_for(|ended| *ended)).await;
            }
            if message.alone {
                way.idle(received.wait_for(|received| *received == offset)).await;
            }
            let until = (offset + message.length).min(limit.unwrap_or(u64::MAX));
            let mut bytes = vec![0; usize::try_from(until - offset).unwrap()];
            self.pattern(side).fill(offset, &mut bytes);
            way.send(stream, &bytes).await?;
            offset = until;
        }
        if limit.is_some() {
            return Ok(());
        }
        if patience == Some(way.messages.len()) {
            way.idle(end.wait_for(|ended| *ended)).await;
        }
        way.stuck.send_replace(true);
        SockRef::from(stream).shutdown(Shutdown::Write)
    }

    /// Receives and checks what the other side says, to its end or up to a certain byte. Returns how much it was.
    async fn hear(
        &self,
        side: Side,
        stream: &TcpStream,
        ended: &watch::Sender<bool>,
        limit: u64,
    ) -> io::Result<u64> {
        let (way, pattern) = (&self.ways[side.other() as usize], self.pattern(side.other()));
        let mut stuck = way.stuck.subscribe();
        let mut pause = way.pause;
        let mut buffer = vec![0; 64 * 1024];
        let mut offset = 0;
        while offset < limit {
            if pause == Some(offset) {
                stuck.wait_for(|stuck| *stuck).await.unwrap();
                pause = None;
            }
            let room = (limit.min(pause.unwrap_or(u64::MAX)) - offset).min(buffer.len() as u64);
            let room = &mut buffer[..usize::try_from(room).unwrap()];
            stream.readable().await?;
            match stream.try_read(room) {
                Ok(0) => break,
                Ok(length) => {
                    pattern.check(offset, &room[..length]);
                    offset += length as u64;
                    way.received.send_replace(offset);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        ended.send_replace(true);
        Ok(offset)
    }
}

impl Way {
    /// Waits for something other than room.
    async fn idle<T>(&self, event: impl Future<Output = T>) {
        self.stuck.send_replace(true);
        event.await;
        self.stuck.send_replace(false);
    }

    async fn send(&self, stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match stream.try_write(bytes) {
                Ok(length) => {
                    bytes = &bytes[length..];
                    self.sent.send_modify(|sent| *sent += length as u64);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match timeout(FULL, stream.writable()).await {
                        Ok(writable) => writable?,
                        Err(_) => self.idle(stream.writable()).await,
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Says which session it was if one fails.
struct Context<'a>(&'a Session);

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}", self.0);
        }
    }
}
