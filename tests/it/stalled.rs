//! Clients that begin and never go on: what they cost, what others notice of them, and when they are gone.

use std::{net::SocketAddr, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::client::TlsStream;

use crate::harness::{
    Authority, Backend, Carrier, Files, Pattern, Place, Proxy, Setup, Speaker, connect, eventually,
    eventually_within, listener, on_both_carriers, pool, read_out, soon,
};

on_both_carriers!(
    #[tokio::test]
    thousands_who_stall_where_descriptors_end_keep_nobody_else_from_moving,
);

/// Clients of each kind.
const CLIENTS: u64 = 1000;

/// What one may take, in bytes of user memory.
const MOST: u64 = 8 * 1024;

/// How long a bystander's session takes.
async fn bystander(client: &Speaker, address: SocketAddr) -> Duration {
    let begun = Instant::now();
    let mut stream = client.dial(address, "edge.test").await.unwrap();
    stream.write_all(b"?").await.unwrap();
    soon("an answer", stream.read_exact(&mut [0; 4])).await.unwrap();
    begun.elapsed()
}

/// What clients begin with and do not go on from, and where.
fn begun(
    client: &Speaker,
    secure: SocketAddr,
    behind: SocketAddr,
) -> [(&'static str, SocketAddr, Vec<u8>); 3] {
    // The hello of a real client, without its last bytes.
    let mut hello = Vec::new();
    let name = "edge.test".try_into().unwrap();
    let mut begun = rustls::ClientConnection::new(client.config.clone().into(), name).unwrap();
    begun.write_tls(&mut hello).unwrap();
    hello.truncate(hello.len() - 7);
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.9 12".to_vec();
    [("silent", secure, Vec::new()), ("half a hello", secure, hello), ("half a header", behind, header)]
}

#[tokio::test]
async fn thousands_of_clients_that_begin_and_stall_cost_little_and_are_closed_at_the_deadline() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let place = Place::new();
    let backend = Backend::named(&place, "well").await;
    let (authority, files) = (Authority::new("edge authority"), Files::new());
    let tls = files.listener("edge", &authority.issue(&["edge.test"]), "");
    let (secure, behind, named) = (place.free(), place.free(), place.free());
    let route = "[[listener.route]]\nsni = [\"a.test\"]\npool = \"only\"\n";
    let times = "header_timeout = \"12s\"\nhandshake_timeout = \"12s\"\n";
    let tables = pool("only", "", &[("aws", backend.address)])
        + &listener(secure, "only", &format!("{times}{tls}"))
        + &listener(behind, "only", &format!("{times}proxy_header = \"required\"\n"))
        + &listener(named, "only", &format!("{times}{route}"));
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let client = Speaker::new(&authority, None);
    for _ in 0..5 {
        bystander(&client, secure).await;
    }
    let mut stalled = Vec::<TcpStream>::new();
    let mut known = proxy.metric("twinspan_sessions_active", &[]).await;
    let [silent, hello, header] = begun(&client, secure, behind);
    let routed = ("half a hello that says where to", named, hello.2.clone());
    for (what, address, bytes) in [silent, hello, header, routed] {
        let before = proxy.memory().own;
        for _ in 0..CLIENTS {
            let mut stream = connect(address).await;
            stream.write_all(&bytes).await.unwrap();
            stalled.push(stream);
        }
        known += CLIENTS;
        eventually("all of them are known", async || {
            (proxy.metric("twinspan_sessions_active", &[]).await >= known).then_some(())
        })
        .await;
        // What has come is looked at, and what was needed for that is given back.
        sleep(Duration::from_millis(200)).await;
        let each = proxy.memory().own.saturating_sub(before) / CLIENTS;
        println!("{what}: {each} bytes each");
        assert!(each <= MOST, "{what}: {each} bytes each");
        let took = bystander(&client, secure).await;
        println!("{what}: a bystander's session takes {took:?}");
        assert!(took < Duration::from_secs(2), "{what}: a bystander's session takes {took:?}");
    }
    for stream in &mut stalled {
        assert!(read_out(stream).await.0.is_empty());
    }
    eventually("all of them are gone", async || {
        (proxy.metric("twinspan_sessions_active", &[]).await <= 8).then_some(())
    })
    .await;
    assert!(bystander(&client, secure).await < Duration::from_secs(2));
}

/// Sends bytes to an echo, and has them back.
async fn moves(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: u64) {
    let (mut from, mut to) = split(stream);
    let sent = async { Pattern(9).send(&mut to, 0, bytes).await.unwrap() };
    let came = async { Pattern(9).receive(&mut from, 0, bytes).await.unwrap() };
    soon("an echo", async { tokio::join!(sent, came) }).await;
}

/// Listeners with TLS, behind a balancer and plain, before an echo.
struct Edge {
    proxy: Proxy,
    client: Speaker,
    secure: SocketAddr,
    behind: SocketAddr,
    plain: SocketAddr,
    /// All the descriptors that a process may have here.
    most: Rlimit,
    _files: Files,
}

impl Edge {
    async fn new(place: &Place, carrier: Carrier) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let most = Rlimit { current: limit.maximum, ..limit };
        setrlimit(Resource::Nofile, most).unwrap();
        let echo = Box::leak(Box::new(Backend::echo(place).await));
        let (authority, files) = (Authority::new("edge authority"), Files::new());
        let tls = files.listener("edge", &authority.issue(&["edge.test"]), "");
        let [secure, behind, plain] = [(); 3].map(|()| place.free());
        let times = "header_timeout = \"120s\"\nhandshake_timeout = \"120s\"\n";
        let tables = pool("only", "", &[("aws", echo.address)])
            + &listener(secure, "only", &format!("{times}{tls}"))
            + &listener(behind, "only", &format!("{times}proxy_header = \"required\"\n"))
            + &listener(plain, "only", "");
        let proxy = Proxy::start(Setup::new(place, tables).carrier(carrier)).await;
        Self { proxy, client: Speaker::new(&authority, None), secure, behind, plain, most, _files: files }
    }
}

/// Old sessions, plain and over TLS, move bytes, and the proxy answers who asks.
async fn goes_on(proxy: &Proxy, (plain, secure): &mut (Vec<TcpStream>, Vec<TlsStream<TcpStream>>)) {
    for stream in plain {
        moves(stream, 300_000).await;
    }
    for stream in secure {
        moves(stream, 300_000).await;
    }
    for path in ["/livez", "/metrics"] {
        assert_eq!(proxy.get(path).await.map(|(status, _)| status), Some(200), "{path}");
    }
    assert_eq!(proxy.status().await["listeners"].as_array().unwrap().len(), 3);
}

/// Connects to both until the proxy says that it accepts nobody, and a few times more.
async fn knock(proxy: &Proxy, plain: SocketAddr, secure: SocketAddr) -> Vec<(TcpStream, TcpStream)> {
    let mut waiting = Vec::new();
    let paused = proxy.line("a paused accept", |line| line.contains("accept paused").then_some(()));
    // The limit is noticed within a second; who comes before that is let in or not.
    let knocking = async {
        loop {
            waiting.push((connect(plain).await, connect(secure).await));
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = paused => {}
        () = knocking => {}
    }
    for _ in 0..10 {
        waiting.push((connect(plain).await, connect(secure).await));
    }
    waiting
}

async fn thousands_who_stall_where_descriptors_end_keep_nobody_else_from_moving(carrier: Carrier) {
    const STALLED: u64 = 2100;
    const LIMIT: u64 = 600;
    let place = Place::new();
    let Edge { proxy, client, secure, behind, plain, most, _files } = Edge::new(&place, carrier).await;
    let start = proxy.sockets();
    let mut old = (Vec::new(), Vec::new());
    for _ in 0..5 {
        old.0.push(connect(plain).await);
        old.1.push(client.dial(secure, "edge.test").await.unwrap());
    }
    let mut stalled = Vec::new();
    for (_, address, bytes) in begun(&client, secure, behind) {
        for _ in 0..STALLED / 3 {
            let mut stream = connect(address).await;
            stream.write_all(&bytes).await.unwrap();
            stalled.push(stream);
        }
    }
    eventually("all of them are known", async || {
        (proxy.metric("twinspan_sessions_active", &[]).await >= STALLED + 10).then_some(())
    })
    .await;

    let pid = Pid::from_raw(i32::try_from(proxy.pid()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(LIMIT), ..most }).unwrap();
    let before = proxy.lines();
    let mut waiting = knock(&proxy, plain, secure).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        goes_on(&proxy, &mut old).await;
    }
    let said = proxy.said();
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    let lines: Vec<_> = said.lines().skip(before).filter(|line| !line.contains("\"cause\"")).collect();
    assert!((1..=seconds + 3).contains(&lines.len()), "{seconds} s:\n{}", lines.join("\n"));

    prlimit(pid, Resource::Nofile, most).unwrap();
    let raised = Instant::now();
    for (plain, secure) in &mut waiting {
        moves(plain, 4).await;
        let mut stream =
            client.over(std::mem::replace(secure, stalled.pop().unwrap()), "edge.test").await.unwrap();
        moves(&mut stream, 4).await;
    }
    assert!(raised.elapsed() < Duration::from_secs(2), "{:?}", raised.elapsed());
    drop((old, waiting, stalled));
    eventually_within(Duration::from_secs(20), format_args!("no session and {start} sockets"), async || {
        let active = proxy.metric("twinspan_sessions_active", &[]).await;
        (active == 0 && proxy.sockets() <= start).then_some(())
    })
    .await;
}
