//! The manners of TCP: ends, resets, early bytes, and nothing left behind.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::harness::{
    Backend, Carrier, Ending, Full, PATIENCE, Pattern, Place, Proxy, Setup, connect, eventually, is_reset,
    listener, on_both_carriers, pool, read_out, reset, silent_for, soon,
};

const MIB: u64 = 1024 * 1024;

on_both_carriers!(
    #[tokio::test]
    a_client_that_has_ended_its_request_still_gets_a_late_answer,
    an_upload_goes_on_after_the_endpoint_has_ended_its_answer,
    a_reset_by_the_endpoint_reaches_the_client_as_a_reset,
    a_reset_by_the_client_reaches_the_endpoint_as_a_reset,
    an_answer_arrives_although_the_endpoint_closed_with_request_bytes_unread,
    bytes_sent_while_an_endpoint_is_dialled_reach_the_next_one,
    a_client_that_leaves_while_an_endpoint_is_dialled_takes_the_attempt_with_it,
    single_bytes_back_and_forth_wait_for_nobody,
    an_endpoint_that_speaks_first_is_not_kept_waiting_for_a_silent_client,
    a_client_of_an_endpoint_that_refuses_is_reset_at_once_and_the_log_says_why,
    no_descriptor_is_left_after_1200_rude_ends,
);

async fn a_client_that_has_ended_its_request_still_gets_a_late_answer(carrier: Carrier) {
    let place = Place::new();
    let (ended, mut seen) = mpsc::channel(1);
    let (answer_now, gate) = tokio::sync::watch::channel(false);
    let mut backend = Backend::serve(&place, move |mut stream| {
        let (ended, mut gate) = (ended.clone(), gate.clone());
        async move {
            let (request, ending) = read_out(&mut stream).await;
            ended.send(()).await.unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            stream.write_all(b"answer").await.unwrap();
            (request, ending)
        }
    })
    .await;
    let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;

    let mut client = connect(address).await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    soon("the end of the request at the upstream", seen.recv()).await.unwrap();
    assert!(
        silent_for(&client, Duration::from_secs(1)).await,
        "the proxy ended the session before the answer"
    );
    answer_now.send(true).unwrap();
    assert_eq!(read_out(&mut client).await, (b"answer".to_vec(), Ending::Clean));
    assert_eq!(backend.next().await, (b"request".to_vec(), Ending::Clean));
}

async fn an_upload_goes_on_after_the_endpoint_has_ended_its_answer(carrier: Carrier) {
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        Pattern(1).receive_all(&mut stream, MIB).await;
    })
    .await;
    let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;

    let mut client = connect(address).await;
    assert_eq!(read_out(&mut client).await, (b"answer".to_vec(), Ending::Clean));
    Pattern(1).send(&mut client, 0, MIB).await.unwrap();
    client.shutdown().await.unwrap();
    backend.next().await;
}

async fn a_reset_by_the_endpoint_reaches_the_client_as_a_reset(carrier: Carrier) {
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        stream.write_all(b"half of an ans").await.unwrap();
        // The client has what was sent, so the reset takes nothing with it.
        stream.read_exact(&mut [0]).await.unwrap();
        reset(stream);
    })
    .await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    for _ in 0..20 {
        let before = proxy.lines();
        let mut client = connect(address).await;
        client.read_exact(&mut [0; 14]).await.unwrap();
        client.write_all(b"!").await.unwrap();
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
        backend.next().await;
        let line = proxy.session_line(before).await;
        assert_eq!((&line["side"], &line["cause"]), (&"upstream".into(), &"reset".into()), "{line}");
    }
}

async fn a_reset_by_the_client_reaches_the_endpoint_as_a_reset(carrier: Carrier) {
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        stream.write_all(b"answer").await.unwrap();
        read_out(&mut stream).await
    })
    .await;
    let (proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    for _ in 0..20 {
        let before = proxy.lines();
        let mut client = connect(address).await;
        client.read_exact(&mut [0; 6]).await.unwrap();
        reset(client);
        assert_eq!(backend.next().await, (Vec::new(), Ending::Reset));
        let line = proxy.session_line(before).await;
        assert_eq!((&line["side"], &line["cause"]), (&"client".into(), &"reset".into()), "{line}");
    }
}

async fn an_answer_arrives_although_the_endpoint_closed_with_request_bytes_unread(carrier: Carrier) {
    const ANSWER: u64 = 16 * 1024;
    let place = Place::new();
    let mut backend = Backend::serve(&place, |mut stream| async move {
        stream.read_exact(&mut [0]).await.unwrap();
        Pattern(2).send(&mut stream, 0, ANSWER).await.unwrap();
        // Dropped with a request in its buffer: the kernel follows the answer with a reset.
        stream.readable().await.unwrap();
    })
    .await;
    let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    for _ in 0..50 {
        let client = connect(address).await;
        let (mut from_proxy, mut to_proxy) = client.into_split();
        let upload = tokio::spawn(async move {
            // Ends when the proxy says that the endpoint is gone.
            drop(Pattern(3).send(&mut to_proxy, 0, 8 * MIB).await);
            to_proxy
        });
        let received = soon("the answer", Pattern(2).receive(&mut from_proxy, 0, ANSWER)).await;
        assert_eq!(received.unwrap(), ANSWER);
        drop(soon("the end of the upload", upload).await.unwrap());
        backend.next().await;
    }
}

async fn bytes_sent_while_an_endpoint_is_dialled_reach_the_next_one(carrier: Carrier) {
    let place = Place::new();
    let silent = Full::hold(&place).await;
    let mut backend = Backend::serve(&place, |mut stream| async move {
        Pattern(4).receive_all(&mut stream, 100_000).await;
        stream.write_all(b"thanks").await.unwrap();
    })
    .await;
    let bind = place.free();
    let tables = pool(
        "two",
        "policy = \"failover\"\norder = [\"aws\", \"gcp\"]\nconnect_timeout = \"300ms\"",
        &[("aws", silent.address), ("gcp", backend.address)],
    ) + &listener(bind, "two", "");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;

    for _ in 0..5 {
        let before = proxy.lines();
        let mut client = connect(bind).await;
        Pattern(4).send(&mut client, 0, 100_000).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (b"thanks".to_vec(), Ending::Clean));
        backend.next().await;
        let line = proxy.session_line(before).await;
        assert_eq!((&line["cloud"], &line["attempts"]), (&"gcp".into(), &2.into()), "{line}");
    }
}

async fn a_client_that_leaves_while_an_endpoint_is_dialled_takes_the_attempt_with_it(carrier: Carrier) {
    let place = Place::new();
    let silent = Full::hold(&place).await;
    let bind = place.free();
    let tables = pool("slow", "connect_timeout = \"20s\"\nattempts = 1", &[("aws", silent.address)])
        + &listener(bind, "slow", "");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let before = proxy.sockets();

    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(connect(bind).await);
    }
    // Two sockets each, and a few of the health page's that were open at the first count.
    eventually("50 attempts", async || (proxy.sockets() >= before + 90).then_some(())).await;
    let left = Instant::now();
    clients.into_iter().for_each(reset);
    eventually("no socket of them", async || (proxy.sockets() <= before).then_some(())).await;
    assert!(left.elapsed() < Duration::from_secs(15), "the attempts lived on to their own deadline");
}

async fn single_bytes_back_and_forth_wait_for_nobody(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let mut client = connect(address).await;
    let start = Instant::now();
    for turn in 0..2_000_u32 {
        let [byte, ..] = turn.to_le_bytes();
        let mut echo = [0];
        client.write_all(&[byte]).await.unwrap();
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, [byte]);
    }
    // Nagle against delayed acknowledgements would take 40 ms a turn: 80 s.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

async fn an_endpoint_that_speaks_first_is_not_kept_waiting_for_a_silent_client(carrier: Carrier) {
    // An acknowledgement that waits for bytes to go with waits for 200 ms, or 40 ms.
    const MOST: Duration = Duration::from_millis(30);
    let place = Place::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        stream.write_all(b"220 ready").await.unwrap();
        read_out(&mut stream).await
    })
    .await;
    let (_proxy, address) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let mut waits = Vec::new();
    for _ in 0..15 {
        let start = Instant::now();
        let mut client = connect(address).await;
        soon("a greeting", client.read_exact(&mut [0; 9])).await.unwrap();
        waits.push(start.elapsed());
    }
    // A machine that stalls does so now and then, not each time.
    waits.sort();
    assert!(waits[7] < MOST, "{waits:?}");
}

async fn a_client_of_an_endpoint_that_refuses_is_reset_at_once_and_the_log_says_why(carrier: Carrier) {
    let place = Place::new();
    let (proxy, address) = Proxy::before_on(carrier, &place, place.free(), "").await;
    let before = proxy.lines();
    let start = Instant::now();
    assert!(is_reset(address).await);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let line = proxy.session_line(before).await;
    assert_eq!(
        (&line["side"], &line["stage"], &line["cause"]),
        (&"upstream".into(), &"connect".into(), &"refused".into()),
        "{line}"
    );
}

/// The ways in which clients leave.
#[derive(Clone, Copy, Debug)]
enum Rudeness {
    AtOnce,
    ResetAtOnce,
    ResetInTheMiddle,
    ClosedWithAnswerUnread,
    ResetAfterItsEnd,
    ResetByBoth,
}

impl Rudeness {
    const ALL: [Self; 6] = [
        Self::AtOnce,
        Self::ResetAtOnce,
        Self::ResetInTheMiddle,
        Self::ClosedWithAnswerUnread,
        Self::ResetAfterItsEnd,
        Self::ResetByBoth,
    ];

    /// Leaves. The proxy may be faster, so an error in between is no failure.
    async fn leave(self, mut client: TcpStream) -> io::Result<()> {
        match self {
            Self::AtOnce => {}
            Self::ResetAtOnce => reset(client),
            Self::ResetInTheMiddle => {
                client.write_all(&[1; 50_000]).await?;
                reset(client);
            }
            Self::ClosedWithAnswerUnread => {
                client.write_all(&[1; 5_000]).await?;
                client.readable().await?;
            }
            Self::ResetAfterItsEnd => {
                client.write_all(&[1; 5_000]).await?;
                client.shutdown().await?;
                reset(client);
            }
            Self::ResetByBoth => {
                // The endpoint resets when it reads a 0.
                client.write_all(&[0]).await?;
                reset(client);
            }
        }
        Ok(())
    }
}

async fn no_descriptor_is_left_after_1200_rude_ends(carrier: Carrier) {
    let place = Place::new();
    let backend = Backend::serve(&place, |mut stream| async move {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut bytes).await {
            let read = &bytes[..length];
            if read.starts_with(&[0]) {
                return reset(stream);
            }
            if stream.write_all(read).await.is_err() {
                return;
            }
        }
    })
    .await;
    let (proxy, address) =
        Proxy::before_on(carrier, &place, backend.address, "half_close_timeout = \"5s\"").await;
    let before = proxy.sockets();
    for round in 0..200 {
        for rudeness in Rudeness::ALL {
            let client = connect(address).await;
            let left = timeout(PATIENCE, rudeness.leave(client)).await;
            assert!(left.is_ok(), "round {round}: {rudeness:?} waits for the proxy");
        }
    }
    eventually("as few sockets as before", async || (proxy.sockets() <= before).then_some(())).await;
    assert!(proxy.pipe_ends() < 200, "{} ends of pipes are kept", proxy.pipe_ends());
    let errors: Vec<_> =
        proxy.said().lines().filter(|line| line.contains("\"ERROR\"")).map(String::from).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let ended = proxy.metric("twinspan_connections_closed_total", &[]).await;
    let accepted = proxy.metric("twinspan_connections_accepted_total", &[]).await;
    assert_eq!((accepted, ended), (1_200, 1_200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_and_descriptors_are_back_after_20000_sessions_that_were_mostly_reset() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (proxy, address) = Proxy::before(&place, backend.address, "").await;
    let churn = async |sessions: u32| {
        let visits = (0..16).map(|task| {
            tokio::spawn(async move {
                for number in 0..sessions / 16 {
                    // A reset may come before the connection is seen to be there.
                    let Ok(mut client) = TcpStream::connect(address).await else { continue };
                    if number % 4 == 0 {
                        reset(client);
                        continue;
                    }
                    client.write_all(&vec![1; 1 << (number % 16)]).await.unwrap();
                    soon("an echo", client.read_exact(&mut [0])).await.unwrap();
                    if (task + number) % 5 > 0 { reset(client) } else { drop(client) }
                }
            })
        });
        for visit in visits.collect::<Vec<_>>() {
            visit.await.unwrap();
        }
        eventually("the end of every session", async || {
            (proxy.metric("twinspan_connections_active", &[]).await == 0).then_some(())
        })
        .await;
    };
    let sockets = proxy.sockets();
    churn(2_000).await;
    let resident = proxy.resident_kib();
    churn(18_000).await;
    eventually("as few sockets as before", async || (proxy.sockets() <= sockets).then_some(())).await;
    eventually("no pipe is kept", async || (proxy.pipe_ends() <= 4).then_some(())).await;
    let grown = proxy.resident_kib().saturating_sub(resident);
    assert!(grown < 4 * 1024, "{grown} KiB more");
    let ended = proxy.metric("twinspan_connections_closed_total", &[]).await;
    assert_eq!(proxy.metric("twinspan_connections_accepted_total", &[]).await, ended);
    assert!(ended > 19_000, "{ended}");
}
