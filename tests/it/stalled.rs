//! Clients that begin and never go on: what they cost, what others notice of them, and when they are gone.

use std::{net::SocketAddr, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::harness::{
    Authority, Backend, Files, Place, Proxy, Setup, Speaker, connect, eventually, listener, pool, read_out,
    soon,
};

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

#[tokio::test]
async fn thousands_of_clients_that_begin_and_stall_cost_little_and_are_closed_at_the_deadline() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let place = Place::new();
    let backend = Backend::named(&place, "well").await;
    let (authority, files) = (Authority::new("edge authority"), Files::new());
    let tls = files.listener("edge", &authority.issue(&["edge.test"]), "");
    let (secure, behind) = (place.free(), place.free());
    let times = "header_timeout = \"12s\"\nhandshake_timeout = \"12s\"\n";
    let tables = pool("only", "", &[("aws", backend.address)])
        + &listener(secure, "only", &format!("{times}{tls}"))
        + &listener(behind, "only", &format!("{times}proxy_header = \"required\"\n"));
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let client = Speaker::new(&authority, None);
    for _ in 0..5 {
        bystander(&client, secure).await;
    }
    // The hello of a real client, without its last bytes.
    let mut hello = Vec::new();
    let name = "edge.test".try_into().unwrap();
    let mut begun = rustls::ClientConnection::new(client.config.clone().into(), name).unwrap();
    begun.write_tls(&mut hello).unwrap();
    hello.truncate(hello.len() - 7);
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.9 12".to_vec();

    let mut stalled = Vec::<TcpStream>::new();
    let mut known = proxy.metric("twinspan_sessions_active", &[]).await;
    for (what, address, bytes) in
        [("silent", secure, Vec::new()), ("half a hello", secure, hello), ("half a header", behind, header)]
    {
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
