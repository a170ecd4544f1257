//! Listeners that hear their clients before they choose a pool.

use super::*;
use crate::{
    net::Intercept,
    state::{Access, Condition, Entry, Pool, ProxyIn, Routes, ServerName},
    telemetry::{Cause, Side, Stage},
};

const SECOND: Duration = Duration::from_secs(1);

pub(in crate::proxy) fn entry() -> Entry {
    Entry {
        proxy_header: ProxyIn::Off,
        tls: None,
        routes: Routes::default(),
        intercept: Intercept::Off,
        header_timeout: SECOND,
        handshake_timeout: SECOND,
        hello_bytes: 32 << 10,
        at_once: 100,
        access: Access::default(),
        route_access: Box::default(),
        admission: None,
        bandwidth: None,
    }
}

/// Has the plane's listener hear clients as `entry` says; its pool takes what `routes` says too.
fn hears(plane: &Plane, entry: Entry) {
    hear(&plane.shared, &plane.cell, entry);
}

/// The same of this listener.
pub(super) fn hear(shared: &Shared, cell: &Arc<ListenerCell>, entry: Entry) {
    let snapshot = shared.snapshot();
    let pool: Arc<Pool> = Arc::clone(&snapshot.pools[0]);
    let old = snapshot.listener(cell).unwrap();
    let mut listener = Listener::plain(Arc::clone(cell), Arc::clone(&pool), *old.limits);
    if !entry.routes.is_empty() {
        listener.target = crate::state::Target::Refuse;
        listener.routed = Box::new([crate::state::Target::Pool(Arc::clone(&pool))]);
    }
    listener.entry = Some(Arc::new(entry));
    let generation = Generation(snapshot.generation.0 + 1);
    drop(snapshot);
    shared.publish(Arc::new(Snapshot {
        generation,
        listeners: vec![Arc::new(listener)],
        pools: vec![pool],
        ..Snapshot::default()
    }));
}

/// Routes for names below `example.com` alone.
pub(in crate::proxy) fn by_name() -> Routes {
    let sni = vec![ServerName::Below(".example.com".into())];
    Routes::new(vec![Condition { sni, ..Condition::default() }])
}

pub(super) fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// What comes back of these bytes, as many as were sent.
async fn echoed(plane: &Plane, bytes: &[u8], pieces: usize) -> io::Result<Vec<u8>> {
    let mut client = TcpStream::connect(plane.address).await?;
    client.set_nodelay(true)?;
    for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
        client.write_all(piece).await?;
        tokio::task::yield_now().await;
    }
    let mut back = vec![0; bytes.len()];
    soon(client.read_exact(&mut back)).await?;
    Ok(back)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_goes_on_elsewhere_is_asked_for_no_second_header() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let dying = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let plane = Plane::start(carrier, 1, &[dying.local_addr().unwrap(), echo().await]).await;
        hears(&plane, Entry { proxy_header: ProxyIn::Required(Vec::new()), ..entry() });
        let mut client = TcpStream::connect(plane.address).await.unwrap();
        client.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").await.unwrap();
        let first = Arc::clone(&plane.shared.snapshot().pools[0].tiers[0].groups[0].endpoints[0]);
        eventually(|| first.cell.sessions() == 1).await;
        drop(dying);
        client.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"ping", "{carrier:?}");
        drop(client);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_may_send_a_header_and_says_nothing_is_served() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let greeting = endpoint(|mut stream| async move {
            stream.write_all(b"220 ready").await.unwrap();
            stream.read_u8().await.unwrap_err();
        });
        let plane = Plane::start(carrier, 1, &[greeting.await]).await;
        let networks = vec!["127.0.0.0/8".parse().unwrap()];
        let header_timeout = Duration::from_millis(50);
        hears(&plane, Entry { proxy_header: ProxyIn::Optional(networks), header_timeout, ..entry() });
        let mut client = TcpStream::connect(plane.address).await.unwrap();
        let mut greeted = [0; 9];
        soon(client.read_exact(&mut greeted)).await.unwrap();
        assert_eq!(&greeted, b"220 ready", "{carrier:?}");
        drop(client);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_is_routed_whether_it_comes_whole_or_in_pieces() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[echo().await]).await;
        hears(&plane, Entry { routes: by_name(), ..entry() });
        let named = hello("a.example.com");
        for pieces in [1, 2, 50, named.len()] {
            assert_eq!(echoed(&plane, &named, pieces).await.unwrap(), named, "{carrier:?}, {pieces} pieces");
        }
        for (bytes, cause) in
            [(hello("a.example.org"), Cause::NoRoute), (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Cause::BadHello)]
        {
            echoed(&plane, &bytes, 1).await.unwrap_err();
            eventually(|| plane.ends().iter().any(|(end, _)| end.cause == cause)).await;
        }
        plane.quiet().await;
        let endpoint = Arc::clone(&plane.shared.snapshot().pools[0].tiers[0].groups[0].endpoints[0]);
        assert_eq!(endpoint.cell.sessions(), 4, "nobody else came to an endpoint");
        assert_eq!(times::handed_over(&plane), 0, "the engine can wait for a hello itself");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_waited_for_counts_as_such_until_it_has_said_where_to() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[echo().await]).await;
        hears(&plane, Entry { routes: by_name(), at_once: 1, handshake_timeout: 30 * SECOND, ..entry() });
        let named = hello("a.example.com");
        let mut first = plane.client().await;
        first.write_all(&named[..700]).await.unwrap();
        eventually(|| plane.cell.at_entry() == 1).await;
        let refused = async { TcpStream::connect(plane.address).await?.read_u8().await };
        soon(refused).await.unwrap_err();
        eventually(|| plane.ends().iter().any(|(end, _)| end.cause == Cause::Limited)).await;
        first.write_all(&named[700..]).await.unwrap();
        let mut back = vec![0; named.len()];
        soon(first.read_exact(&mut back)).await.unwrap();
        assert_eq!((plane.cell.at_entry(), back), (0, named.clone()), "{carrier:?}");
        assert_eq!(echoed(&plane, &named, 2).await.unwrap(), named, "{carrier:?}");
        drop(first);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_took_its_time_leaves_endpoints_all_of_theirs() {
    const TOTAL: Duration = Duration::from_secs(1);
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let endpoints = [closed, echo().await];
        let plane = Plane::start(carrier, 1, &endpoints).await;
        plane.publish(&endpoints, Connect::plain(TOTAL, 3, TOTAL), LIMITS);
        hears(&plane, Entry { routes: by_name(), handshake_timeout: 30 * SECOND, ..entry() });
        let mut client = plane.client().await;
        eventually(|| plane.cell.at_entry() == 1).await;
        sleep(2 * TOTAL).await;
        let named = hello("a.example.com");
        client.write_all(&named).await.unwrap();
        let mut back = vec![0; named.len()];
        soon(client.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, named, "{carrier:?}");
        drop(client);
        plane.quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_it_has_said_where_to_ends_as_it_left() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[echo().await]).await;
        hears(&plane, Entry { routes: by_name(), handshake_timeout: 30 * SECOND, ..entry() });
        let half = &hello("a.example.com")[..700];
        for (sent, resets, cause) in [
            (&[][..], false, Cause::Closed),
            (half, false, Cause::Truncated),
            (&[], true, Cause::Reset),
            (half, true, Cause::Truncated),
        ] {
            let before = plane.ends();
            let mut client = plane.client().await;
            client.write_all(sent).await.unwrap();
            eventually(|| plane.cell.at_entry() == 1).await;
            if resets {
                reset(client);
            } else {
                drop(client);
            }
            plane.quiet().await;
            let end = End { side: Side::Client, stage: Stage::Accept, cause };
            let count = |ends: &[(End, u64)]| {
                ends.iter().filter(|(one, _)| *one == end).map(|one| one.1).sum::<u64>()
            };
            assert_eq!(count(&plane.ends()), count(&before) + 1, "{carrier:?}: {end:?}, {:?}", plane.ends());
        }
        assert_eq!(plane.cell.at_entry(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paced_session_moves_no_faster_than_it_may() {
    for carrier in [Carrier::Engine, Carrier::Tokio] {
        let plane = Plane::start(carrier, 1, &[echo().await]).await;
        hears(&plane, Entry { bandwidth: Some(1 << 20), ..entry() });
        let begun = Instant::now();
        let sent: Vec<u8> = (0..600 << 10).map(|place| u8::try_from(place % 251).unwrap()).collect();
        let mut client = TcpStream::connect(plane.address).await.unwrap();
        let (mut from, mut to) = client.split();
        let mut back = vec![0; sent.len()];
        let (written, read) = tokio::join!(to.write_all(&sent), soon(from.read_exact(&mut back)));
        written.unwrap();
        read.unwrap();
        assert!(back == sent, "{carrier:?}");
        // 600 KiB less the burst, at 1 MiB a second.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(450), "{carrier:?}: {took:?}");
        drop(client);
        plane.quiet().await;
    }
}
