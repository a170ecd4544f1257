//! The lab does what it says: each fault is real.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use super::*;

/// Longer than anything that has to happen takes on a busy machine, SYN retransmissions after 1 and 3 s included.
const SOON: Duration = Duration::from_secs(20);

/// Long enough for something that must not happen to show itself.
const WHILE: Duration = Duration::from_millis(300);

fn one(latency: Duration) -> (Lab, Cloud, SocketAddr) {
    let lab = Lab::start().unwrap();
    let cloud = lab.cloud("aws", 1, latency).unwrap();
    let address = cloud.endpoints()[0].address();
    (lab, cloud, address)
}

fn moded(mode: Mode) -> (Lab, SocketAddr) {
    let lab = Lab::start().unwrap();
    let cloud = lab.cloud_with("aws", CloudOptions { mode, ..CloudOptions::default() }).unwrap();
    let address = cloud.endpoints()[0].address();
    (lab, address)
}

async fn connect(address: SocketAddr) -> TcpStream {
    time::timeout(SOON, TcpStream::connect(address)).await.expect("connects").unwrap()
}

async fn refused(address: SocketAddr) -> bool {
    let outcome = time::timeout(SOON, TcpStream::connect(address)).await.expect("an answer");
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    time::timeout(SOON, stream.read_exact(&mut answer)).await.expect("an answer")?;
    Ok(String::from_utf8(answer).unwrap())
}

/// The rest, and how it ended.
async fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    time::timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("an end")?;
    Ok(bytes)
}

#[tokio::test]
async fn an_echo_is_exact_and_ends_after_the_clients_end() {
    for latency in [Duration::ZERO, Duration::from_millis(3)] {
        let (_lab, cloud, address) = one(latency);
        let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut reader, mut writer) = connect(address).await.into_split();
        let mut got = Vec::new();
        let (wrote, read) = tokio::join!(
            async {
                writer.write_all(&sent).await?;
                writer.shutdown().await
            },
            time::timeout(SOON, reader.read_to_end(&mut got))
        );
        wrote.unwrap();
        read.expect("an end").unwrap();
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        let all = sent.len() as u64;
        assert_eq!((cloud.accepted(), cloud.endpoints()[0].bytes()), (1, (all, all)));
    }
}

#[tokio::test]
async fn latency_is_added_to_the_first_byte_and_to_each_chunk() {
    let latency = Duration::from_millis(60);
    let (_lab, _cloud, address) = one(latency);
    let mut stream = connect(address).await;
    for (text, least) in [("first", 2 * latency), ("second", latency)] {
        let start = Instant::now();
        assert_eq!(ask(&mut stream, text).await.unwrap(), text);
        assert!(start.elapsed() >= least, "{text}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_slow_endpoint_adds_its_delay_and_loses_it_when_healed() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    let mut stream = connect(address).await;
    let more = Duration::from_secs(2);
    cloud.set(Fault::Slow(more)).unwrap();
    let start = Instant::now();
    assert_eq!(ask(&mut stream, "slow").await.unwrap(), "slow");
    assert!(start.elapsed() >= more);
    cloud.revive().unwrap();
    let start = Instant::now();
    assert_eq!(ask(&mut stream, "quick").await.unwrap(), "quick");
    assert!(start.elapsed() < more);
}

#[tokio::test]
async fn each_mode_does_what_it_is_for() {
    let (_lab, address) = moded(Mode::NamedEcho);
    let mut stream = connect(address).await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), b"aws-1\nhello");

    let (_lab, address) = moded(Mode::Banner);
    assert_eq!(rest(&mut connect(address).await).await.unwrap(), b"aws-1\n");

    let (_lab, address) = moded(Mode::Sink);
    let mut stream = connect(address).await;
    stream.write_all(&[1; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), b"");

    let (_lab, address) = moded(Mode::Source);
    let mut stream = connect(address).await;
    let mut bytes = vec![1; 1_000_000];
    time::timeout(SOON, stream.read_exact(&mut bytes)).await.expect("bytes").unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_refused_endpoint_refuses_and_resets() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    let mut stream = connect(address).await;
    assert_eq!(ask(&mut stream, "before").await.unwrap(), "before");
    cloud.set(Fault::Refused).unwrap();
    assert_eq!(rest(&mut stream).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(refused(address).await);
    cloud.revive().unwrap();
    assert_eq!(ask(&mut connect(address).await, "after").await.unwrap(), "after");
}

#[tokio::test]
async fn a_silent_endpoint_leaves_connects_hanging_until_healed() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    for round in 0..3 {
        let before = cloud.accepted();
        cloud.set(Fault::Silent).unwrap();
        let mut hanging = Vec::new();
        for _ in 0..4 {
            let mut connecting = Box::pin(TcpStream::connect(address));
            assert!(time::timeout(WHILE, &mut connecting).await.is_err(), "round {round}: connected");
            hanging.push(connecting);
        }
        cloud.revive().unwrap();
        for connecting in hanging {
            let mut stream = time::timeout(SOON, connecting).await.expect("connects").unwrap();
            assert_eq!(ask(&mut stream, "healed").await.unwrap(), "healed");
        }
        assert_eq!(cloud.accepted() - before, 4, "our own fillers are not counted");
    }
}

#[tokio::test]
async fn established_connections_stand_still_while_silent_or_frozen_and_then_go_on() {
    for fault in [Fault::Silent, Fault::Frozen] {
        let (_lab, cloud, address) = one(Duration::from_millis(1));
        let mut stream = connect(address).await;
        assert_eq!(ask(&mut stream, "before").await.unwrap(), "before");
        cloud.set(fault).unwrap();
        // Only now: the client may have the answer before the lab's thread has counted it.
        let counted = cloud.endpoints()[0].bytes();
        stream.write_all(b"during").await.unwrap();
        let mut answer = [0; 6];
        assert!(time::timeout(WHILE, stream.read_exact(&mut answer)).await.is_err(), "{fault:?} answers");
        assert_eq!(cloud.endpoints()[0].bytes(), counted, "{fault:?} reads");
        cloud.revive().unwrap();
        time::timeout(SOON, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
        assert_eq!(&answer, b"during");
    }
}

#[tokio::test]
async fn a_silent_endpoint_that_turns_to_refusing_resets_what_stood_still() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    let mut stream = connect(address).await;
    assert_eq!(ask(&mut stream, "before").await.unwrap(), "before");
    cloud.set(Fault::Silent).unwrap();
    stream.write_all(b"lost").await.unwrap();
    cloud.set(Fault::Refused).unwrap();
    assert_eq!(rest(&mut stream).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(refused(address).await);
}

#[tokio::test]
async fn a_frozen_endpoint_connects_and_does_not_answer() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    cloud.set(Fault::Frozen).unwrap();
    let mut stream = connect(address).await;
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    assert!(time::timeout(WHILE, stream.read_exact(&mut answer)).await.is_err());
    cloud.revive().unwrap();
    time::timeout(SOON, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn a_resetting_endpoint_resets_new_and_old_connections() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    let mut old = connect(address).await;
    assert_eq!(ask(&mut old, "before").await.unwrap(), "before");
    cloud.set(Fault::Reset).unwrap();
    assert_eq!(rest(&mut old).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // The reset may be here before the connect has returned, which then says so itself.
    let outcome = match time::timeout(SOON, TcpStream::connect(address)).await.expect("an answer") {
        Ok(mut new) => rest(&mut new).await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn killed_and_revived_the_port_stays_the_same_and_ours() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    for _ in 0..3 {
        let mut stream = connect(address).await;
        assert_eq!(ask(&mut stream, "alive").await.unwrap(), "alive");
        cloud.kill().unwrap();
        // Nothing was unread, so the kernel closes without a reset.
        assert_eq!(rest(&mut stream).await.unwrap(), b"");
        assert!(refused(address).await);
        let thief = std::net::TcpListener::bind(address);
        assert_eq!(thief.map(drop).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        cloud.revive().unwrap();
        assert_eq!(cloud.endpoints()[0].address(), address);
    }
}

#[tokio::test]
async fn a_fault_of_one_endpoint_leaves_the_others_alone() {
    let lab = Lab::start().unwrap();
    let options = CloudOptions { endpoints: 2, ip: "127.0.1.1".parse().unwrap(), ..CloudOptions::default() };
    let cloud = lab.cloud_with("gcp", options).unwrap();
    let [first, second] = cloud.endpoints() else { panic!("two endpoints") };
    assert_eq!((first.name(), second.name(), cloud.name().as_str()), ("gcp-1", "gcp-2", "gcp"));
    first.kill().unwrap();
    assert_eq!((first.fault(), second.fault()), (Fault::Killed, Fault::Healthy));
    assert!(refused(first.address()).await);
    assert_eq!(ask(&mut connect(second.address()).await, "here").await.unwrap(), "here");
    assert_eq!(
        (first.accepted(), second.accepted(), second.address().ip().to_string()),
        (0, 1, "127.0.1.1".into())
    );
}

#[tokio::test]
async fn dropping_the_lab_ends_everything_and_dropping_a_cloud_does_not() {
    let (lab, cloud, address) = one(Duration::ZERO);
    drop(cloud);
    let mut stream = connect(address).await;
    assert_eq!(ask(&mut stream, "still here").await.unwrap(), "still here");
    drop(lab);
    assert_eq!(rest(&mut stream).await.unwrap(), b"");
    assert!(refused(address).await);
}

#[test]
fn a_fault_for_a_lab_that_is_gone_is_an_error() {
    let (lab, cloud, _) = one(Duration::ZERO);
    drop(lab);
    cloud.set(Fault::Silent).unwrap_err();
}

#[tokio::test]
async fn nothing_connects_to_a_silent_endpoint_however_busy_it_was() {
    let (_lab, cloud, address) = one(Duration::ZERO);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..50 {
        clients.spawn(async move {
            while let Ok(mut stream) = TcpStream::connect(address).await {
                drop(stream.write_all(b"x").await);
            }
        });
    }
    let busy = time::timeout(SOON, async {
        while cloud.accepted() < 500 {
            tokio::task::yield_now().await;
        }
    });
    busy.await.expect("clients get through");
    let silenced = cloud.clone();
    tokio::task::spawn_blocking(move || silenced.set(Fault::Silent)).await.unwrap().unwrap();
    let accepted = cloud.accepted();
    for _ in 0..5 {
        assert!(time::timeout(WHILE, TcpStream::connect(address)).await.is_err());
    }
    assert_eq!(cloud.accepted(), accepted);
}
