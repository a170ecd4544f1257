//! How sessions end where TLS ends here: `close_notify` after the last byte of a clean end, and after nothing else.

use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};

use rustls::{AlertDescription, ClientConnection};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::client::TlsStream;

use super::{Edge, NAME};
use crate::harness::{
    Backend, Carrier, Ending, Full, Pattern, Place, Proxy, Setup, Speaker, VERSIONS, connect, eventually,
    listener, on_both_carriers, pool, read_out, reset, soon, tls_error,
};

const MIB: u64 = 1024 * 1024;

on_both_carriers!(
    #[tokio::test]
    an_endpoint_that_ends_is_told_with_close_notify_after_the_last_byte,
    an_endpoint_that_resets_is_never_told_with_close_notify,
    a_client_that_ends_without_close_notify_reaches_the_endpoint_as_a_reset,
    a_client_that_breaks_tls_is_told_why_and_its_endpoint_is_reset,
    a_client_that_has_ended_with_close_notify_still_gets_its_answer,
    an_upload_over_tls_goes_on_after_the_endpoint_has_ended,
);

/// Reads to the end: the bytes, and whether `close_notify` came.
async fn read_tls(stream: &mut TlsStream<TcpStream>) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match soon("the end of the stream", stream.read_to_end(&mut bytes)).await {
        Ok(_) => (bytes, true),
        Err(error) => {
            let broken = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
            assert!(broken.contains(&error.kind()), "{error:?}");
            (bytes, false)
        }
    }
}

async fn an_endpoint_that_ends_is_told_with_close_notify_after_the_last_byte(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        stream.read_exact(&mut [0]).await.unwrap();
        Pattern(3).send(&mut stream, 0, MIB + 7).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream.read(&mut [0]).await);
    })
    .await;
    let (_proxy, address) = edge.before(carrier, &place, backend.address, "").await;
    for turn in 0..20 {
        let client = Speaker::of(&edge.authority, None, &[VERSIONS[turn % 2]]);
        let mut stream = client.dial(address, NAME).await.unwrap();
        stream.write_all(b"?").await.unwrap();
        Pattern(3).receive_all(&mut stream, MIB + 7).await;
    }
}

async fn an_endpoint_that_resets_is_never_told_with_close_notify(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        stream.write_all(b"half of an ans").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        reset(stream);
    })
    .await;
    let (proxy, address) = edge.before(carrier, &place, backend.address, "").await;
    for turn in 0..20 {
        let before = proxy.lines();
        let client = Speaker::of(&edge.authority, None, &[VERSIONS[turn % 2]]);
        let mut stream = client.dial(address, NAME).await.unwrap();
        stream.read_exact(&mut [0; 14]).await.unwrap();
        stream.write_all(b"!").await.unwrap();
        assert_eq!(read_tls(&mut stream).await, (Vec::new(), false), "{turn}");
        let line = proxy.session_line(before).await;
        assert_eq!((&line["side"], &line["cause"]), (&"upstream".into(), &"reset".into()), "{line}");
    }
}

async fn a_client_that_ends_without_close_notify_reaches_the_endpoint_as_a_reset(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let mut backend = Backend::serve(&place, |mut stream| async move { read_out(&mut stream).await }).await;
    let (proxy, address) = edge.before(carrier, &place, backend.address, "").await;
    for turn in 0..10 {
        let before = proxy.lines();
        let client = Speaker::of(&edge.authority, None, &[VERSIONS[turn % 2]]);
        let mut stream = client.dial(address, NAME).await.unwrap();
        stream.write_all(b"half of a ques").await.unwrap();
        stream.get_mut().0.shutdown().await.unwrap();
        assert_eq!(backend.next().await, (b"half of a ques".to_vec(), Ending::Reset), "{turn}");
        assert!(!read_tls(&mut stream).await.1, "{turn}");
        let line = proxy.session_line(before).await;
        assert_eq!((&line["side"], &line["cause"]), (&"client".into(), &"truncated".into()), "{line}");
    }
}

async fn a_client_that_breaks_tls_is_told_why_and_its_endpoint_is_reset(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        stream.read_exact(&mut [0]).await.unwrap();
        stream.write_all(b"!").await.unwrap();
        read_out(&mut stream).await
    })
    .await;
    let (proxy, address) = edge.before(carrier, &place, backend.address, "").await;
    for version in VERSIONS {
        let before = proxy.lines();
        let client = Speaker::of(&edge.authority, None, &[version]);
        let mut stream = client.dial(address, NAME).await.unwrap();
        stream.write_all(b"?").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        // A record that nobody with the keys has made.
        stream.get_mut().0.write_all(&[&[23, 3, 3, 0, 32][..], &[0; 32]].concat()).await.unwrap();
        let error = soon("an alert", stream.read(&mut [0])).await.unwrap_err();
        let alert = tls_error(&error).cloned();
        assert_eq!(alert, Some(rustls::Error::AlertReceived(AlertDescription::BadRecordMac)), "{error}");
        let (raw, _) = stream.into_inner();
        assert_eq!(read_out(&mut { raw }).await.1, Ending::Clean, "what was under way may still be written");
        assert_eq!(backend.next().await, (Vec::new(), Ending::Reset));
        let line = proxy.session_line(before).await;
        assert_eq!((&line["side"], &line["cause"]), (&"client".into(), &"handshake".into()), "{line}");
    }
}

async fn a_client_that_has_ended_with_close_notify_still_gets_its_answer(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let (answer_now, gate) = watch::channel(false);
    let (ended, mut seen) = mpsc::channel(1);
    let backend = Backend::serve(&place, move |mut stream| {
        let (mut gate, ended) = (gate.clone(), ended.clone());
        async move {
            let request = read_out(&mut stream).await;
            ended.send(request).await.unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            Pattern(4).send(&mut stream, 0, MIB).await.unwrap();
        }
    })
    .await;
    let (_proxy, address) = edge.before(carrier, &place, backend.address, "").await;
    for version in VERSIONS {
        for and_fin in [false, true] {
            answer_now.send(false).unwrap();
            let client = Speaker::of(&edge.authority, None, &[version]);
            let mut stream = client.dial(address, NAME).await.unwrap();
            stream.write_all(b"question").await.unwrap();
            if and_fin {
                stream.shutdown().await.unwrap();
            } else {
                let (socket, connection) = stream.get_mut();
                connection.send_close_notify();
                let mut record = Vec::new();
                connection.write_tls(&mut record).unwrap();
                socket.write_all(&record).await.unwrap();
            }
            let request = soon("the request", seen.recv()).await.unwrap();
            assert_eq!(request, (b"question".to_vec(), Ending::Clean), "{version:?}");
            sleep(Duration::from_millis(100)).await;
            answer_now.send(true).unwrap();
            Pattern(4).receive_all(&mut stream, MIB).await;
        }
    }
}

async fn an_upload_over_tls_goes_on_after_the_endpoint_has_ended(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        Pattern(1).receive_all(&mut stream, MIB).await;
    })
    .await;
    let (_proxy, address) = edge.before(carrier, &place, backend.address, "").await;
    for version in VERSIONS {
        let client = Speaker::of(&edge.authority, None, &[version]);
        let mut stream = client.dial(address, NAME).await.unwrap();
        assert_eq!(read_tls(&mut stream).await, (b"answer".to_vec(), true));
        Pattern(1).send(&mut stream, 0, MIB).await.unwrap();
        stream.shutdown().await.unwrap();
        backend.next().await;
    }
}

/// Time on the CPU that a process has taken, in ticks of 10 ms.
fn ticks(proxy: &Proxy) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Fails if a second costs the proxy more than a quarter of it.
async fn rests(proxy: &Proxy, what: &str) {
    let before = ticks(proxy);
    sleep(Duration::from_secs(1)).await;
    let used = ticks(proxy) - before;
    assert!(used < 25, "{what}: {used} ticks of 10 ms within a second");
}

#[tokio::test]
async fn an_end_behind_bytes_that_nobody_reads_costs_no_cpu() {
    let place = Place::new();
    let edge = Edge::new();
    let (go, gate) = watch::channel(false);
    let mut backend = Backend::serve(&place, move |mut stream| {
        let mut gate = gate.clone();
        async move {
            SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            Pattern(5).receive_all(&mut stream, MIB).await;
        }
    })
    .await;
    let (proxy, address) = edge.before(Carrier::default(), &place, backend.address, "").await;
    let mut stream = Speaker::new(&edge.authority, None).dial(address, NAME).await.unwrap();
    let sending = async {
        Pattern(5).send(&mut stream, 0, MIB).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    // Where the buffers of the kernel hold less, the end comes when the endpoint reads.
    let early = timeout(Duration::from_secs(1), sending).await;
    rests(&proxy, "close_notify behind bytes that the endpoint does not read").await;
    if early.is_ok() {
        // More after `close_notify`, which nobody may take for anything.
        stream.get_mut().0.flush().await.unwrap();
    }
    go.send(true).unwrap();
    if early.is_ok() {
        backend.next().await;
    }
    drop(stream);

    let mut backend = Backend::serve(&place, |mut stream| async move {
        Pattern(6).send(&mut stream, 0, 2 * MIB).await.unwrap();
        stream.shutdown().await.unwrap();
        read_out(&mut stream).await
    })
    .await;
    let (proxy, address) = edge.before(Carrier::default(), &place, backend.address, "").await;
    let mut stream = Speaker::new(&edge.authority, None).dial(address, NAME).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    rests(&proxy, "the end of the endpoint behind bytes that the client does not read").await;
    Pattern(6).receive_all(&mut stream, 2 * MIB).await;
    rests(&proxy, "a session that is half closed").await;
    stream.shutdown().await.unwrap();
    assert_eq!(backend.next().await, (Vec::new(), Ending::Clean));
}

#[tokio::test]
async fn silence_ends_a_session_over_tls_without_close_notify() {
    let place = Place::new();
    let edge = Edge::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        let mut first = [0];
        stream.read_exact(&mut first).await.unwrap();
        if first == *b"h" {
            stream.shutdown().await.unwrap();
        }
        read_out(&mut stream).await
    })
    .await;
    let (bind, half) = (place.free(), place.free());
    let tables = pool("only", "", &[("aws", backend.address)])
        + &listener(bind, "only", &format!("idle_timeout = \"700ms\"\n{}", edge.ends_here("")))
        + &listener(half, "only", &format!("half_close_timeout = \"700ms\"\n{}", edge.ends_here("")));
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    for (address, word, question) in [(bind, "idle", b"i"), (half, "half_closed", b"h")] {
        let before = proxy.lines();
        let mut stream = Speaker::new(&edge.authority, None).dial(address, NAME).await.unwrap();
        stream.write_all(question).await.unwrap();
        let begun = Instant::now();
        if word == "idle" {
            assert_eq!(read_tls(&mut stream).await, (Vec::new(), false));
        }
        assert_eq!(backend.next().await, (Vec::new(), Ending::Reset));
        let took = begun.elapsed();
        assert!(Duration::from_millis(600) < took && took < Duration::from_secs(10), "{took:?}");
        let line = proxy.session_line(before).await;
        assert_eq!((&line["cause"], &line["stage"]), (&word.into(), &"relay".into()), "{line}");
    }
}

#[tokio::test]
async fn a_slow_reader_over_tls_gets_everything_and_takes_little_memory() {
    const TOTAL: u64 = 64 * MIB;
    let place = Place::new();
    let edge = Edge::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        Pattern(7).send(&mut stream, 0, TOTAL).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream.read(&mut [0]).await);
    })
    .await;
    let (proxy, address) = edge.before(Carrier::default(), &place, backend.address, "").await;
    let client = Speaker::new(&edge.authority, None);
    drop(client.dial(address, NAME).await.unwrap());
    let before = proxy.memory().own;
    let mut stream = client.dial(address, NAME).await.unwrap();
    let mut most = 0;
    let mut offset = 0;
    while offset < TOTAL {
        offset = Pattern(7).receive(&mut stream, offset, offset + 4 * MIB).await.unwrap();
        sleep(Duration::from_millis(25)).await;
        most = most.max(proxy.memory().own.saturating_sub(before));
    }
    assert_eq!(read_tls(&mut stream).await, (Vec::new(), true));
    assert!(most < 4 * MIB, "{most} bytes for one session");
}

#[tokio::test]
async fn a_reset_reaches_a_side_that_does_not_read() {
    let place = Place::new();
    let edge = Edge::new();
    let (go, gate) = watch::channel(false);
    let mut backend = Backend::serve(&place, move |mut stream| {
        let mut gate = gate.clone();
        async move {
            let sending = Pattern(8).send(&mut stream, 0, u64::MAX);
            tokio::select! {
                broken = sending => broken.unwrap_err().kind(),
                _ = gate.wait_for(|open| *open) => {
                    reset(stream);
                    io::ErrorKind::Other
                }
            }
        }
    })
    .await;
    let (proxy, address) = edge.before(Carrier::default(), &place, backend.address, "").await;
    // The client resets while the endpoint is blocked.
    let client = Speaker::new(&edge.authority, None);
    let mut stream = client.dial(address, NAME).await.unwrap();
    stream.read_exact(&mut [0; 64]).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    reset(stream.into_inner().0);
    assert_eq!(backend.next().await, io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // The endpoint resets while the client does not read: what it had sent comes, then no clean end.
    let mut stream = client.dial(address, NAME).await.unwrap();
    stream.read_exact(&mut [0; 64]).await.unwrap();
    sleep(Duration::from_millis(200)).await;
    go.send(true).unwrap();
    assert_eq!(backend.next().await, io::ErrorKind::Other);
    let (bytes, clean) = read_tls(&mut stream).await;
    Pattern(8).check(64, &bytes);
    assert!(!clean && !bytes.is_empty(), "{} bytes, clean: {clean}", bytes.len());
    eventually("no socket of either", async || (proxy.sockets() < 40).then_some(())).await;
}

#[tokio::test]
async fn a_question_that_came_with_the_handshake_waits_for_a_slow_endpoint() {
    let place = Place::new();
    let edge = Edge::new();
    let full = Full::hold(&place).await;
    let backend = Backend::serve(&place, |mut stream| async move {
        let (request, _) = read_out(&mut stream).await;
        stream.write_all(&request).await.unwrap();
    })
    .await;
    let bind = place.free();
    let settings = "connect_timeout = \"1s\"\nhedge = false\n";
    let tables = pool("only", settings, &[("aws", full.address), ("gcp", backend.address)])
        + &listener(bind, "only", &edge.ends_here(""));
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    // In one segment with the end of the handshake.
    let client = Speaker::of(&edge.authority, None, &[VERSIONS[1]]).config;
    let mut tls = ClientConnection::new(Arc::new(client), NAME.try_into().unwrap()).unwrap();
    let mut stream = connect(bind).await;
    let mut bytes = Vec::new();
    let mut received = vec![0; 16 * 1024];
    while tls.is_handshaking() {
        if tls.wants_write() {
            tls.write_tls(&mut bytes).unwrap();
            stream.write_all(&bytes).await.unwrap();
            bytes.clear();
        } else {
            let length = soon("the handshake", stream.read(&mut received)).await.unwrap();
            tls.read_tls(&mut &received[..length]).unwrap();
            tls.process_new_packets().unwrap();
        }
    }
    tls.writer().write_all(b"question").unwrap();
    tls.send_close_notify();
    while tls.wants_write() {
        tls.write_tls(&mut bytes).unwrap();
    }
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::<u8>::new();
    loop {
        match tls.reader().read(&mut received) {
            Ok(0) => break,
            Ok(length) => answer.extend(&received[..length]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                let length = soon("the answer", stream.read(&mut received)).await.unwrap();
                tls.read_tls(&mut &received[..length]).unwrap();
                tls.process_new_packets().unwrap();
            }
        }
    }
    assert_eq!(answer, b"question");
}
