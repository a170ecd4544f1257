//! No byte lost, doubled, moved or changed, and no direction cut: much data, and many shapes of it.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::harness::{
    Backend, Carrier, Dice, Pattern, Place, Proxy, connect, count_from, eventually, on_both_carriers,
};

const GIB: u64 = 1 << 30;
const LONG: Duration = Duration::from_secs(300);
const TO_UPSTREAM: Pattern = Pattern(11);
const TO_CLIENT: Pattern = Pattern(12);

on_both_carriers!(
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    a_gibibyte_each_way_at_once_arrives_whole_when_one_way_ends_long_before_the_other,
    ten_thousand_random_conversations_are_exact_to_the_byte,
);

async fn a_gibibyte_each_way_at_once_arrives_whole_when_one_way_ends_long_before_the_other(carrier: Carrier) {
    let place = Place::new();
    let runs = count_from("TWINSPAN_RUNS", 3);
    for run in 0..runs {
        let size = GIB;
        let slow_download = run % 2 == 0;
        // Opened when the quick direction has come to its end; until then the slow one stands with full buffers.
        let (done, quick_is_done) = watch::channel(false);
        let gate = quick_is_done.clone();
        let (done_upstream, done_client) = (done.clone(), done);
        let mut backend = Backend::serve(&place, move |stream| {
            let (done, gate) = (done_upstream.clone(), gate.clone());
            async move {
                let (from, to) = stream.into_split();
                let sending = tokio::spawn(send(to, TO_CLIENT, size));
                receive(from, TO_UPSTREAM, size, slow_download, done, gate).await;
                sending.await.unwrap().unwrap();
            }
        })
        .await;
        let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
        let (from, to) = connect(address).await.into_split();
        let sending = tokio::spawn(send(to, TO_UPSTREAM, size));
        let client = async {
            receive(from, TO_CLIENT, size, !slow_download, done_client, quick_is_done).await;
            sending.await.unwrap().unwrap();
        };
        // Together, so that a fault that either side finds ends the test.
        let ended = timeout(LONG, async { tokio::join!(client, backend.next_within(LONG)) }).await;
        assert!(ended.is_ok(), "run {run} of {runs} has not ended");
    }
}

/// Its failure is the second one where the proxy ends, so it is told to who waits for it, and else not at all.
async fn send(mut to: OwnedWriteHalf, pattern: Pattern, size: u64) -> io::Result<()> {
    pattern.send(&mut to, 0, size).await?;
    to.shutdown().await
}

async fn receive(
    mut from: OwnedReadHalf,
    pattern: Pattern,
    size: u64,
    quick: bool,
    done: watch::Sender<bool>,
    mut gate: watch::Receiver<bool>,
) {
    let mut start = 0;
    if !quick {
        start = pattern.receive(&mut from, 0, size / 2).await.unwrap();
        gate.wait_for(|open| *open).await.unwrap();
    }
    let end = pattern.receive(&mut from, start, u64::MAX).await;
    assert!(matches!(end, Ok(end) if end == size), "{pattern:?}: {end:?} of {size}");
    if quick {
        done.send_replace(true);
    }
}

/// What both sides of a random session know from its seed.
#[derive(Clone, Debug)]
struct Script {
    seed: u64,
    /// Bytes to the upstream and to the client.
    sizes: [u64; 2],
    /// A side that waits for the other's end before it speaks.
    patient: Option<Speaker>,
    /// Pauses of the upstream and the client, as the number of cuts in a stream.
    cuts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    Client,
    Upstream,
}

impl Script {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut size = || match dice.below(20) {
            0 => 0,
            1 => 1,
            2..12 => dice.below(2_000),
            12..19 => dice.below(100_000),
            _ => dice.below(2_000_000),
        };
        let sizes = [size(), size()];
        let patient = match dice.below(4) {
            0 => Some(Speaker::Client),
            1 => Some(Speaker::Upstream),
            _ => None,
        };
        Self { seed, sizes, patient, cuts: dice.below(4) }
    }

    /// Plays one side to its end.
    async fn play(&self, side: Speaker, stream: TcpStream) {
        let (mut from, to) = stream.into_split();
        let [to_upstream, to_client] = self.sizes;
        let ours = (Pattern(self.seed), to_upstream);
        let theirs = (Pattern(!self.seed), to_client);
        let ((say, length), (hear, expected)) =
            if side == Speaker::Client { (ours, theirs) } else { (theirs, ours) };
        if self.patient == Some(side) {
            hear.receive_all(&mut from, expected).await;
            self.speak(to, say, length).await;
        } else {
            tokio::join!(self.speak(to, say, length), hear.receive_all(&mut from, expected));
        }
    }

    async fn speak(&self, mut to: OwnedWriteHalf, say: Pattern, length: u64) {
        let mut dice = Dice::new(say.0 ^ 0xABCD);
        let mut from = 0;
        for _ in 0..self.cuts {
            let until = from + dice.below(length - from + 1);
            say.send(&mut to, from, until).await.unwrap_or_else(|error| panic!("{self:?}: {error}"));
            from = until;
            // The script's own pace.
            sleep(Duration::from_millis(dice.below(30))).await;
        }
        say.send(&mut to, from, length).await.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        to.shutdown().await.unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }
}

async fn ten_thousand_random_conversations_are_exact_to_the_byte(carrier: Carrier) {
    const AT_ONCE: usize = 200;
    let total = count_from("TWINSPAN_SESSIONS", 10_000);
    let seed = count_from("TWINSPAN_SEED", 20_261_122);
    println!("seed {seed}");
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        let mut seed = [0; 8];
        stream.read_exact(&mut seed).await.unwrap();
        Script::new(u64::from_le_bytes(seed)).play(Speaker::Upstream, stream).await;
    })
    .await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let before = proxy.sockets();
    let mut dice = Dice::new(seed);
    let mut sessions = JoinSet::new();
    for _ in 0..total {
        if sessions.len() == AT_ONCE {
            converse(&mut sessions, &mut backend).await;
        }
        let script = Script::new(dice.next());
        sessions.spawn(async move {
            let mut stream = connect(address).await;
            stream.write_all(&script.seed.to_le_bytes()).await.unwrap();
            script.play(Speaker::Client, stream).await;
        });
    }
    while !sessions.is_empty() {
        converse(&mut sessions, &mut backend).await;
    }
    eventually("no socket is left", async || (proxy.sockets() <= before).then_some(())).await;
    assert_eq!(proxy.metric("twinspan_connections_accepted_total", &[]).await, total);
}

/// Waits for one conversation, on both of its sides.
async fn converse(sessions: &mut JoinSet<()>, backend: &mut Backend<()>) {
    let ended = timeout(Duration::from_secs(60), sessions.join_next()).await;
    ended.expect("a conversation has not ended").unwrap().unwrap();
    backend.next().await;
}
