//! Socket options: what the operator asks for is what the kernel has, on both sides of a session, before and after a
//! reload; and what this machine cannot do is said.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    Backend, Place, Proxy, Setup, ask, connect, eventually, is_reset, listener, missing, pool, run, skip,
    soon,
};

const PROBES: &str = "[pool.health.tcp]\ninterval = \"200ms\"\nfast_interval = \"50ms\"\ntimeout = \"500ms\"";

/// The cloud `aws` with these settings.
fn cloud(settings: &str) -> String {
    format!("[cloud.aws]\n{settings}\n")
}

/// An endpoint that says where its peer is.
async fn mirror(place: &Place) -> Backend<()> {
    Backend::serve(place, |mut stream: TcpStream| async move {
        let peer = stream.peer_addr().unwrap().ip().to_string();
        drop(stream.write_all(peer.as_bytes()).await);
    })
    .await
}

async fn peer(bind: SocketAddr) -> String {
    let mut text = String::new();
    soon("an address", connect(bind).await.read_to_string(&mut text)).await.unwrap();
    text
}

/// What `ss` says of the established sockets of the proxy at one end of a session.
async fn kernel_says(filter: String) -> String {
    let filter = format!("( {filter} )");
    run("ss", &["-Htin", "state", "established", &filter]).await.stdout
}

#[tokio::test]
async fn sessions_come_from_the_source_of_their_cloud_until_a_reload_says_otherwise() {
    let place = Place::new();
    let backend = mirror(&place).await;
    let bind = place.free();
    let tables = pool("only", "", &[("aws", backend.address)]) + &listener(bind, "only", "");
    let setup = Setup::new(&place, tables.clone());
    let with = |settings: &str| setup.with(cloud(settings) + &tables);
    let proxy = Proxy::start(with("source = [\"127.0.0.9\"]")).await;
    assert_eq!(peer(bind).await, "127.0.0.9");
    proxy.reload(&with("source = [\"127.0.0.10\"]\ninterface = \"lo\"").text()).await;
    assert_eq!(peer(bind).await, "127.0.0.10");
    proxy.reload(&setup.text()).await;
    assert_ne!(peer(bind).await, "127.0.0.10");
}

#[tokio::test]
async fn both_sides_of_a_session_have_their_options_and_a_reload_changes_new_sessions_only() {
    if let Some(reason) = missing(&["ss"]) {
        return skip("both_sides_of_a_session_have_their_options", &reason);
    }
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = place.free();
    let served = pool("only", "", &[("aws", backend.address)]);
    let setup = Setup::new(&place, served.clone() + &listener(bind, "only", "congestion = \"reno\""));
    let proxy = Proxy::start(setup.clone()).await;
    let towards_client = || kernel_says(format!("src {bind}"));
    let towards_endpoint = || kernel_says(format!("dst {}", backend.address));

    let mut first = connect(bind).await;
    first.write_all(b"!").await.unwrap();
    soon("an echo", first.read_exact(&mut [0])).await.unwrap();
    assert!(towards_client().await.contains(" reno "), "{}", towards_client().await);
    assert!(!towards_endpoint().await.contains(" reno "), "{}", towards_endpoint().await);

    let other = setup.with(cloud("congestion = \"reno\"") + &served + &listener(bind, "only", ""));
    proxy.reload(&other.text()).await;
    // Each worker hears of it by itself.
    let _next = eventually("a session with the new options", async || {
        let mut next = connect(bind).await;
        next.write_all(b"!").await.unwrap();
        soon("an echo", next.read_exact(&mut [0])).await.unwrap();
        let port = next.local_addr().unwrap().port();
        let to_client = kernel_says(format!("src {bind} and dport = :{port}")).await;
        (!to_client.contains(" reno ")).then_some(next)
    })
    .await;
    assert!(towards_endpoint().await.contains(" reno "), "{}", towards_endpoint().await);
    let port = first.local_addr().unwrap().port();
    let kept = kernel_says(format!("src {bind} and dport = :{port}")).await;
    assert!(kept.contains(" reno "), "a session that lasts keeps what it had: {kept}");
}

#[tokio::test]
async fn a_cloud_whose_interface_is_gone_is_down_and_traffic_takes_the_other() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let gcp = Backend::named(&place, "gcp1").await;
    let bind = place.free();
    let endpoints = [("aws", aws.address), ("gcp", gcp.address)];
    let tables = pool("web", PROBES, &endpoints) + &listener(bind, "web", "");
    let setup = Setup::new(&place, tables.clone());
    let proxy = Proxy::start(setup.with(cloud("interface = \"no-such-if\"") + &tables)).await;
    let words = |line: &str| line.contains("interface no-such-if: No such device").then_some(());
    proxy.line("what is missing", words).await;
    proxy.judges(&[aws.address], "down").await;
    let status = proxy.status().await.to_string();
    assert!(status.contains("connect: interface no-such-if: No such device"), "{status}");
    assert_eq!(ask(bind).await.unwrap(), "gcp1");
    assert_eq!(aws.accepted(), 0, "not even by another interface");

    proxy.reload(&setup.text()).await;
    proxy.judges(&[aws.address], "up").await;
    assert_eq!(ask(bind).await.unwrap(), "aws1");
}

#[tokio::test]
async fn what_this_machine_cannot_dial_is_no_fault_of_the_endpoint_and_is_named() {
    let place = Place::new();
    let backend = Backend::named(&place, "aws1").await;
    let bind = place.free();
    let tables = cloud("source = [\"192.0.2.99\"]")
        + &pool("only", "", &[("aws", backend.address)])
        + &listener(bind, "only", "");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let start = proxy.lines();
    assert!(is_reset(bind).await);
    let line = proxy.session_line(start).await;
    let end = ["side", "stage", "cause"].map(|key| line[key].as_str().unwrap().to_owned());
    assert_eq!(end, ["proxy", "connect", "local"], "{line}");
    let words = |line: &str| {
        let named = line.contains("source address 192.0.2.99: ") && line.contains("cannot dial");
        named.then_some(())
    };
    proxy.line_from(start, "what failed", words).await;
}

#[tokio::test]
async fn options_that_the_kernel_refuses_refuse_the_start_and_the_reload() {
    let place = Place::new();
    let backend = Backend::named(&place, "aws1").await;
    let bind = place.free();
    let served = pool("only", "", &[("aws", backend.address)]);
    let setup = Setup::new(&place, served.clone() + &listener(bind, "only", ""));
    let proxy = Proxy::start(setup.clone()).await;
    let other = listener(bind, "only", "interface = \"no-such-if\"");
    let before = proxy.lines();
    proxy.reload(&setup.with(served.clone() + &other).text()).await;
    let refused = |line: &str| (line.contains("not reloaded") && line.contains("no-such-if")).then_some(());
    proxy.line_from(before, "a refused reload", refused).await;
    assert_eq!(ask(bind).await.unwrap(), "aws1");

    let other = listener(place.free(), "only", "interface = \"no-such-if\"");
    let mut fails = Proxy::launch(Setup::new(&place, served + &other));
    assert_eq!(fails.end().await.code(), Some(1));
    assert!(fails.said().contains("interface no-such-if: No such device"), "{}", fails.said());
}
