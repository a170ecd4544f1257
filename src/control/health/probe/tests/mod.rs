//! Real sockets on loopback: endpoints that answer, and endpoints that fail in every way they can.

mod http;
mod towards;

use std::{net::Ipv4Addr, sync::Mutex};

use rustls::pki_types::ServerName;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    control::testing::alone,
    state::ProxyOut,
    tls::testing::{self, Authority, Files},
};

/// Long enough for a busy machine, where the probe is to end by itself.
const LONG: Duration = Duration::from_secs(20);

/// Where the probe is to run into its limit.
const SHORT: Duration = Duration::from_millis(300);

/// An endpoint that treats every client as `serve` does.
async fn endpoint<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client));
        }
    });
    address
}

/// An HTTP endpoint that reads one request and answers with these bytes.
async fn http_endpoint(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer: Arc<[u8]> = answer.into().into();
    endpoint(move |mut client| {
        let answer = Arc::clone(&answer);
        async move {
            read_head(&mut client).await?;
            client.write_all(&answer).await?;
            client.shutdown().await
        }
    })
    .await
}

async fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    Ok(String::from_utf8(head).unwrap())
}

async fn run(address: SocketAddr, probe: Probe, timeout: Duration) -> Outcome {
    match run_with(Outgoing::default(), address, probe, timeout).await {
        // Told apart in a test of its own.
        Outcome::Wrong(reason) => Outcome::Bad(reason),
        outcome => outcome,
    }
}

async fn run_with(socket: Outgoing, address: SocketAddr, probe: Probe, timeout: Duration) -> Outcome {
    run_as(Manner::default(), socket, (address, probe), timeout).await
}

async fn run_as(
    manner: Manner,
    socket: Outgoing,
    (address, probe): (SocketAddr, Probe),
    timeout: Duration,
) -> Outcome {
    let settings = Health {
        probe,
        port: None,
        tls: false,
        interval: Duration::from_secs(1),
        fast_interval: Duration::from_secs(1),
        timeout,
        rise: 1,
        fall: 1,
        jitter: 0.0,
    };
    let started = Instant::now();
    let outcome =
        super::probe(address, Way { settings: Arc::new(settings), socket: Arc::new(socket), manner }).await;
    assert!(started.elapsed() < timeout + LONG, "{:?}", started.elapsed());
    outcome
}

fn tcp(send: &str, expect: &str) -> Probe {
    Probe::Tcp { send: send.into(), expect: expect.into() }
}

fn http(body: Option<&str>) -> Probe {
    Probe::Http {
        path: "/health?x=1".into(),
        host: None,
        status: vec![(200, 299)],
        body: body.map(Into::into),
    }
}

fn bad(reason: &str) -> Outcome {
    Outcome::Bad(reason.into())
}

async fn silent() -> SocketAddr {
    endpoint(|client| async move {
        sleep(LONG * 10).await;
        drop(client);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn whoever_accepts_passes_a_probe_that_only_connects() {
    assert_eq!(run(silent().await, tcp("", ""), LONG).await, Outcome::Good);
}

#[tokio::test]
async fn a_probe_comes_from_where_sessions_come_from() {
    let (sender, peer) = oneshot::channel();
    let sender = Mutex::new(Some(sender));
    let address = endpoint(move |client| {
        let peer = client.peer_addr().unwrap().ip().to_string();
        sender.lock().unwrap().take().unwrap().send(peer).unwrap();
        async move { Ok(()) }
    })
    .await;
    let socket =
        Outgoing { source_v4: Some("127.0.0.9".parse().unwrap()), fast_open: true, ..Outgoing::default() };
    assert_eq!(run_with(socket, address, tcp("", ""), LONG).await, Outcome::Good);
    assert_eq!(peer.await.unwrap(), "127.0.0.9");
}

#[tokio::test]
async fn a_cloud_whose_interface_is_gone_does_not_answer() {
    let tuning = net::Tuning { interface: Some("no-such-if".into()), ..Default::default() };
    let socket = Outgoing { tuning, ..Outgoing::default() };
    let outcome = run_with(socket, silent().await, tcp("", ""), LONG).await;
    assert_eq!(outcome, bad("connect: interface no-such-if: No such device"));
}

#[tokio::test]
async fn a_closed_port_is_refused() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(run(address, tcp("", ""), LONG).await, bad("connect: connection refused"));
    assert_eq!(run(address, http(None), LONG).await, bad("connect: connection refused"));
}

#[tokio::test]
async fn a_full_backlog_gives_no_answer() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(Ok(client)) = timeout_at(Instant::now() + SHORT, TcpStream::connect(address)).await {
        waiting.push(client);
    }
    assert!(!waiting.is_empty());
    assert_eq!(run(address, tcp("", ""), SHORT).await, bad("connect: no answer within 300ms"));
}

#[tokio::test]
async fn a_hung_process_fails_a_probe_that_expects_an_answer() {
    assert_eq!(run(silent().await, tcp("PING\r\n", "+PONG"), SHORT).await, bad("no answer within 300ms"));
    assert_eq!(run(silent().await, http(None), SHORT).await, bad("no answer within 300ms"));
}

#[tokio::test]
async fn the_expected_answer_may_come_in_pieces() {
    let address = endpoint(|mut client| async move {
        let mut ping = [0; 6];
        client.read_exact(&mut ping).await?;
        assert_eq!(&ping, b"PING\r\n");
        for byte in b"HELLO +PONG\r\n" {
            client.write_all(&[*byte]).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    })
    .await;
    assert_eq!(run(address, tcp("PING\r\n", "+PONG\r\n"), LONG).await, Outcome::Good);
}

#[tokio::test]
async fn a_banner_needs_no_question_and_the_close_is_clean() {
    let (told, end) = oneshot::channel();
    let told = Mutex::new(Some(told));
    let address = endpoint(move |mut client| {
        let told = told.lock().unwrap().take().unwrap();
        async move {
            client.write_all(b"SSH-2.0-x\r\n").await?;
            told.send(client.read(&mut [0; 16]).await).unwrap();
            Ok(())
        }
    })
    .await;
    assert_eq!(run(address, tcp("", "SSH-2.0-x\r\n"), LONG).await, Outcome::Good);
    assert_eq!(end.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn another_answer_is_quoted_escaped_and_cut() {
    let address = endpoint(|mut client| async move {
        client.write_all(b"-ERR \x1b[2J\"no\"\r\n").await?;
        client.shutdown().await
    })
    .await;
    let wrong = bad(r#"answer lacks "+PONG": got "-ERR \x1b[2J\"no\"\r\n""#);
    assert_eq!(run(address, tcp("", "+PONG"), LONG).await, wrong);

    let address = endpoint(|mut client| async move {
        client.write_all(&[b'z'; 500]).await?;
        client.shutdown().await
    })
    .await;
    let Outcome::Bad(reason) = run(address, tcp("", "+PONG"), LONG).await else { panic!() };
    assert!(reason.ends_with("zzz\"..") && reason.len() < 100, "{reason}");
}

#[tokio::test]
async fn an_early_close_is_no_answer() {
    let address = endpoint(|mut client| async move { client.shutdown().await }).await;
    let wrong = bad(r#"closed without an answer, wanted "+PONG""#);
    assert_eq!(run(address, tcp("", "+PONG"), LONG).await, wrong);

    let address = endpoint(|mut client| async move {
        read_head(&mut client).await?;
        client.shutdown().await
    })
    .await;
    assert_eq!(run(address, http(None), LONG).await, bad("closed before the end of the answer"));
}

#[tokio::test]
async fn a_reset_is_no_answer() {
    let address = endpoint(|mut client| async move {
        client.read_u8().await?;
        SockRef::from(&client).set_linger(Some(Duration::ZERO))
    })
    .await;
    assert_eq!(run(address, tcp("P", "+PONG"), LONG).await, bad("read: connection reset by peer"));
    assert_eq!(run(address, http(None), LONG).await, bad("read: connection reset by peer"));
}

#[tokio::test]
async fn a_slow_drip_does_not_stretch_the_limit() {
    let drip = |head: &'static [u8]| {
        endpoint(move |mut client| async move {
            client.write_all(head).await?;
            loop {
                client.write_all(b"x").await?;
                sleep(SHORT / 10).await;
            }
        })
    };
    let Outcome::Bad(reason) = run(drip(b"").await, tcp("", "+PONG"), SHORT).await else { panic!() };
    assert!(reason.starts_with(r#"no "+PONG" within 300ms: got "x"#), "{reason}");
    let outcome = run(drip(b"HTTP/1.1 200 OK\r\nX: ").await, http(None), SHORT).await;
    assert_eq!(outcome, bad("no answer within 300ms"));
    let outcome = run(drip(b"HTTP/1.1 200 OK\r\n\r\n").await, http(Some("ready")), SHORT).await;
    assert_eq!(outcome, bad(r#"no "ready" in the body within 300ms"#));
    // The status is enough where no body is wanted, however long the body goes on.
    let started = Instant::now();
    let outcome = run(drip(b"HTTP/1.1 200 OK\r\n\r\n").await, http(None), LONG).await;
    assert_eq!(outcome, Outcome::Good);
    assert!(started.elapsed() < LONG);
    // A short body that does not come has no say either.
    let outcome = run(drip(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n").await, http(None), SHORT).await;
    assert_eq!(outcome, Outcome::Good);
}

#[tokio::test]
async fn an_endpoint_on_ipv6_is_asked_by_its_address() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        println!("skipped: no IPv6 on this machine");
        return;
    };
    let address = listener.local_addr().unwrap();
    let head = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let head = read_head(&mut client).await.unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        head
    });
    assert_eq!(run(address, http(None), LONG).await, Outcome::Good);
    assert!(head.await.unwrap().contains(&format!("host: [::1]:{}", address.port())));
}

#[test]
fn a_shortage_here_is_not_blamed_on_the_endpoint() {
    for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL] {
        let outcome = failed("connect", &io::Error::from_raw_os_error(code));
        assert!(matches!(outcome, Outcome::Local(_)), "{outcome:?}");
    }
    for code in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT, libc::ECONNRESET]
    {
        let outcome = failed("connect", &io::Error::from_raw_os_error(code));
        assert!(matches!(outcome, Outcome::Bad(_)), "{outcome:?}");
    }
    let outcome = failed("connect", &io::Error::from_raw_os_error(libc::EMFILE));
    assert_eq!(outcome, Outcome::Local("connect: too many open files".into()));
}

#[tokio::test]
async fn words_that_fit_no_request_are_our_fault() {
    let probe = Probe::Http { path: "no slash".into(), host: None, status: vec![(200, 299)], body: None };
    let outcome = run(silent().await, probe, LONG).await;
    assert!(matches!(outcome, Outcome::Local(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_process_out_of_descriptors_blames_itself() {
    if !alone("control::health::probe::tests::a_process_out_of_descriptors_blames_itself") {
        return;
    }
    let address = silent().await;
    assert_eq!(run(address, tcp("", ""), LONG).await, Outcome::Good);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let none = rustix::process::Rlimit { current: Some(3), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, none).unwrap();
    let short = Outcome::Local("connect: too many open files".into());
    assert_eq!(run(address, tcp("", ""), LONG).await, short);
    assert_eq!(run(address, http(None), LONG).await, short);
}
