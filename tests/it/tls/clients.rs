//! Who is let in: certificates of clients, tickets, early data, protocols, key exchange.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::{AlertDescription as Alert, Error, HandshakeKind, NamedGroup};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::client::TlsStream;

use super::{Edge, NAME, answers, listeners};
use crate::harness::{
    Authority, Backend, Carrier, Ending, Issued, Place, Proxy, Setup, Speaker, VERSIONS, connect, eventually,
    listener, pool, read_out, soon, tls_error,
};

/// Shakes hands and asks something: the session, or the alert that came instead.
async fn enter(client: &Speaker, address: SocketAddr) -> Result<TlsStream<TcpStream>, Alert> {
    let entered = async {
        let mut stream = client.dial(address, NAME).await?;
        answers(&mut stream).await?;
        Ok::<_, io::Error>(stream)
    };
    entered.await.map_err(|error| match tls_error(&error) {
        Some(Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert but {error:?}"),
    })
}

/// Certificates of clients by this rule.
fn trusting(ca: &Path, word: &str, names: &str) -> String {
    format!("client_certificates = \"{word}\"\nclient_ca = \"{}\"\nclient_names = {names}", ca.display())
}

/// The line itself: those of sessions that ended before may come after it was looked for.
async fn refused_line(proxy: &Proxy, start: usize) -> Value {
    let refused =
        |line: &str| serde_json::from_str::<Value>(line).ok().filter(|line| line.get("refused").is_some());
    proxy.line_from(start, "a refusal", refused).await
}

/// The line of a session that was refused after the first `start` lines.
async fn refusal(proxy: &Proxy, start: usize) -> (String, Value) {
    let line = refused_line(proxy, start).await;
    let end = ["side", "stage", "cause"].map(|key| line[key].as_str().unwrap()).join("/");
    assert_eq!((end.as_str(), &line["to_upstream"]), ("client/accept/handshake", &0.into()), "{line}");
    (line["refused"].as_str().unwrap().to_owned(), line)
}

#[tokio::test]
async fn every_wrong_client_certificate_is_refused_with_its_alert_and_the_log_says_why() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let clients = Authority::new("clients");
    let ca = edge.files.put("clients.pem", &clients.pem);
    let trust = |word: &str, names: &str| edge.ends_here(&trusting(&ca, word, names));
    let names = r#"["app.test", "*.apps.test", "spiffe://prod/ns/web/*"]"#;
    let (proxy, [any, named, optional]) = listeners(
        &place,
        &echo,
        [trust("required", "[]"), trust("required", names), trust("optional", names)],
    )
    .await;

    let right = clients.issue(&["app.test"]);
    let below = clients.issue(&["one.apps.test"]);
    let workload = clients.issue(&["spiffe://prod/ns/web/sa/api"]);
    let elsewhere = clients.issue(&["spiffe://prod/ns/db/sa/api"]);
    let stranger = clients.issue(&["evil.test"]);
    let wildcard = clients.issue(&["*.test"]);
    let two_ids = clients.issue(&["spiffe://prod/ns/web/a", "spiffe://prod/ns/web/b"]);
    let expired = clients.issue_expired(&["app.test"]);
    let early = clients.issue_early(&["app.test"]);
    let foreign = Authority::new("others").issue(&["app.test"]);
    let namesake = Authority::new("clients").issue(&["app.test"]);
    let own = Issued::self_signed(&["app.test"]);

    let wrong = [
        ("absent", None, any, "no_certificate", Alert::CertificateRequired),
        ("absent", None, named, "no_certificate", Alert::CertificateRequired),
        ("expired", Some(&expired), any, "certificate_expired", Alert::CertificateExpired),
        ("early", Some(&early), any, "certificate_expired", Alert::CertificateExpired),
        ("foreign", Some(&foreign), any, "unknown_ca", Alert::UnknownCA),
        ("of a namesake", Some(&namesake), any, "bad_certificate", Alert::DecryptError),
        ("self-signed", Some(&own), any, "unknown_ca", Alert::UnknownCA),
        ("stranger", Some(&stranger), named, "name_not_allowed", Alert::AccessDenied),
        ("elsewhere", Some(&elsewhere), named, "name_not_allowed", Alert::AccessDenied),
        ("wildcard", Some(&wildcard), named, "name_not_allowed", Alert::AccessDenied),
        ("two ids", Some(&two_ids), named, "name_not_allowed", Alert::AccessDenied),
        ("expired", Some(&expired), optional, "certificate_expired", Alert::CertificateExpired),
        ("stranger", Some(&stranger), optional, "name_not_allowed", Alert::AccessDenied),
    ];
    for version in VERSIONS {
        let client = |identity| Speaker::of(&edge.authority, identity, &[version]);
        for (identity, address) in
            [(&right, any), (&stranger, any), (&right, named), (&below, named), (&workload, named)]
        {
            enter(&client(Some(identity)), address).await.unwrap();
        }
        enter(&client(Some(&right)), optional).await.unwrap();
        enter(&client(None), optional).await.unwrap();
        let begun = echo.accepted();
        for (what, identity, address, word, alert) in wrong {
            let before = proxy.lines();
            let met = enter(&client(identity), address).await.map(drop);
            assert_eq!(met, Err(alert), "{what} {version:?}");
            let (refused, line) = refusal(&proxy, before).await;
            assert_eq!(refused, word, "{what} {version:?} {line}");
        }
        assert_eq!(echo.accepted(), begun, "a refused client has reached the endpoint");
    }
}

#[tokio::test]
async fn a_refusal_by_name_says_which_names_there_are_and_which_are_allowed() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let clients = Authority::new("clients");
    let ca = edge.files.put("clients.pem", &clients.pem);
    let settings = edge.ends_here(&trusting(&ca, "required", r#"["app.test", "spiffe://prod/ns/web/*"]"#));
    let (proxy, [named]) = listeners(&place, &echo, [settings]).await;
    let stranger = clients.issue(&["evil.test"]);
    let before = proxy.lines();
    enter(&Speaker::new(&edge.authority, Some(&stranger)), named).await.unwrap_err();
    let (_, line) = refusal(&proxy, before).await;
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("evil.test") && reason.contains("spiffe://prod/ns/web/*"), "{reason}");
}

/// Two sessions one after the other with what the first one has left: how the second began.
async fn again(client: &Speaker, first: SocketAddr, second: SocketAddr) -> HandshakeKind {
    let mut kinds = Vec::new();
    for address in [first, second] {
        let mut stream = client.dial(address, NAME).await.unwrap();
        // With TLS 1.3 the tickets come after the handshake, before the first byte of the answer.
        answers(&mut stream).await.unwrap();
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_ne!(kinds[0], HandshakeKind::Resumed);
    kinds[1]
}

#[tokio::test]
async fn a_ticket_is_good_at_its_own_listener_only() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let clients = Authority::new("clients");
    let ca = edge.files.put("clients.pem", &clients.pem);
    let mutual = format!("client_certificates = \"required\"\nclient_ca = \"{}\"", ca.display());
    let settings = [
        edge.ends_here(""),
        edge.ends_here(""),
        edge.ends_here(&mutual),
        edge.ends_here("tickets = \"off\""),
    ];
    let (proxy, [own, twin, mutual, without]) = listeners(&place, &echo, settings).await;
    for version in VERSIONS {
        let client = |identity| Speaker::of(&edge.authority, identity, &[version]).resuming();
        assert_eq!(again(&client(None), own, own).await, HandshakeKind::Resumed, "{version:?}");
        assert_ne!(again(&client(None), own, twin).await, HandshakeKind::Resumed, "{version:?}");
        assert_ne!(again(&client(None), without, without).await, HandshakeKind::Resumed, "{version:?}");
        let identity = clients.issue(&["app.test"]);
        assert_eq!(
            again(&client(Some(&identity)), mutual, mutual).await,
            HandshakeKind::Resumed,
            "{version:?}"
        );
        // CVE-2025-23419: the ticket of a listener that asks for nothing opens no other one.
        let sneaking = client(None);
        let mut stream = sneaking.dial(own, NAME).await.unwrap();
        answers(&mut stream).await.unwrap();
        let before = proxy.lines();
        let refused = enter(&sneaking, mutual).await.map(drop);
        assert_eq!(refused, Err(Alert::CertificateRequired), "{version:?}");
        drop(stream);
        assert_eq!(refusal(&proxy, before).await.0, "no_certificate", "{version:?}");
    }
}

/// What clients that sneak have in common.
#[derive(Default)]
struct Sneaking {
    /// How often they were let in where they belong by what an earlier session had left.
    resumed: AtomicU32,
    over: AtomicBool,
}

/// Goes on and on with what it has: in where it belongs, and then where it does not belong.
async fn sneaks(client: Speaker, own: SocketAddr, elsewhere: SocketAddr, sneaking: Arc<Sneaking>) {
    while !sneaking.over.load(Relaxed) {
        let mut stream = client.dial(own, NAME).await.unwrap();
        answers(&mut stream).await.unwrap();
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        sneaking.resumed.fetch_add(resumed.into(), Relaxed);
        drop(stream);
        let entered = async {
            let mut stream = client.dial(elsewhere, NAME).await?;
            answers(&mut stream).await
        };
        assert!(entered.await.is_err(), "{client:?} was let in");
    }
}

#[tokio::test]
async fn forty_clients_at_once_never_get_in_elsewhere_with_a_ticket_whatever_changes_meanwhile() {
    let place = Place::new();
    let (echo, kept) = (Backend::echo(&place).await, Backend::echo(&place).await);
    let edge = Edge::new();
    let [first, second] = ["first", "second"].map(|name| {
        let authority = Authority::new(name);
        let ca = edge.files.put(&format!("{name}.pem"), &authority.pem);
        (authority, trusting(&ca, "required", "[]"))
    });
    let [open, one, two] = [(); 3].map(|()| place.free());
    // A changed life of tickets means new keys.
    let tables = |life: &str| {
        let tls = |rule: &str| edge.ends_here(&format!("{rule}\ntickets = \"{life}\""));
        pool("only", "", &[("aws", echo.address)])
            + &pool("kept", "", &[("aws", kept.address)])
            + &listener(open, "only", &tls(""))
            + &listener(one, "only", &tls(&first.1))
            + &listener(two, "kept", &tls(&second.1))
    };
    let setup = Setup::new(&place, tables("1m"));
    let proxy = Proxy::start(setup.clone()).await;
    let sneaking = Arc::new(Sneaking::default());
    let identity = first.0.issue(&["app.test"]);
    let crowd: Vec<_> = (0..40)
        .map(|number| {
            let version = &[VERSIONS[number % 2]];
            let (own, identity) = if number / 2 % 2 == 0 { (open, None) } else { (one, Some(&identity)) };
            let client = Speaker::of(&edge.authority, identity, version).resuming();
            tokio::spawn(sneaks(client, own, two, Arc::clone(&sneaking)))
        })
        .collect();
    let begun = Instant::now();
    let mut turn = 0;
    while begun.elapsed() < Duration::from_secs(4) || turn < 10 {
        turn += 1;
        edge.files.pair("edge", &edge.authority.issue(&[NAME]));
        let enough = sneaking.resumed.load(Relaxed) + 5;
        proxy.reload(&setup.with(tables(if turn % 2 == 0 { "1m" } else { "2m" })).text()).await;
        // However slow the machine: with keys that change faster than clients come, none comes back.
        let came = async || (sneaking.resumed.load(Relaxed) >= enough).then_some(());
        eventually("clients that come back", came).await;
    }
    sneaking.over.store(true, Relaxed);
    for client in crowd {
        soon("the end of a client", client).await.unwrap();
    }
    println!("{turn} reloads, {} sessions resumed where they may", sneaking.resumed.load(Relaxed));
    assert_eq!(kept.accepted(), 0, "somebody has reached what is kept");
    let welcome = Speaker::new(&edge.authority, Some(&second.0.issue(&["app.test"]))).resuming();
    assert_eq!(again(&welcome, two, two).await, HandshakeKind::Resumed);
}

#[tokio::test]
async fn early_data_is_never_taken() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let (_proxy, address) = edge.before(Carrier::default(), &place, echo.address, "").await;
    let mut client = Speaker::of(&edge.authority, None, &[VERSIONS[1]]).resuming();
    client.config.enable_early_data = true;
    let mut first = client.dial(address, NAME).await.unwrap();
    answers(&mut first).await.unwrap();
    let mut second = client.dial(address, NAME).await.unwrap();
    assert_eq!(second.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    assert!(second.get_mut().1.early_data().is_none(), "the ticket allows early data");
    answers(&mut second).await.unwrap();
}

#[tokio::test]
async fn the_hybrid_key_exchange_is_taken_where_the_client_can() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let (_proxy, address) = edge.before(Carrier::default(), &place, echo.address, "").await;
    let mut stream = Speaker::new(&edge.authority, None).dial(address, NAME).await.unwrap();
    answers(&mut stream).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "it took a second hello");
}

#[tokio::test]
async fn a_client_and_a_listener_agree_on_a_protocol_or_part() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let (proxy, [speaks, silent]) =
        listeners(&place, &echo, [edge.ends_here("alpn = [\"h2\", \"http/1.1\"]"), edge.ends_here("")]).await;
    for (address, offered, agreed) in [
        (speaks, &["http/1.1", "h2"][..], Some("h2")),
        (speaks, &["http/1.1"], Some("http/1.1")),
        (speaks, &[], None),
        (silent, &["h2"], None),
    ] {
        let before = proxy.lines();
        let mut stream = enter(&Speaker::new(&edge.authority, None).alpn(offered), address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{offered:?}");
        stream.shutdown().await.unwrap();
        soon("the end", stream.read_to_end(&mut Vec::new())).await.unwrap();
        let line = proxy.session_line(before).await;
        assert_eq!((line["alpn"].as_str(), &line["tls"]), (agreed, &"TLSv1.3".into()), "{line}");
        assert_eq!((&line["sni"], &line["cause"]), (&NAME.into(), &"closed".into()), "{line}");
    }
    let before = proxy.lines();
    let client = Speaker::new(&edge.authority, None).alpn(&["imap"]);
    assert_eq!(enter(&client, speaks).await.map(drop), Err(Alert::NoApplicationProtocol));
    assert_eq!(refusal(&proxy, before).await.0, "no_shared_protocol");
}

#[tokio::test]
async fn a_client_that_sends_no_right_hello_is_told_so_with_an_alert() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let (proxy, address) = edge.before(Carrier::default(), &place, echo.address, "").await;
    let mut hello = Vec::new();
    let client = Arc::new(Speaker::new(&edge.authority, None).config);
    let mut begun = rustls::ClientConnection::new(client, NAME.try_into().unwrap()).unwrap();
    begun.write_tls(&mut hello).unwrap();
    // The length of the session id, which then takes what follows it.
    hello[5 + 4 + 2 + 32] = 255;
    for (bytes, word, alert) in [
        (hello.as_slice(), "malformed_hello", 50),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "malformed_hello", 50),
        (b"GET / HTTP/1.1\r\n\r\n", "not_tls", 50),
        (b"\x16\x03\x03\x00\x10\x14\x00\x00\x0cfinished....", "not_hello", 10),
        (b"\x17\x03\x03\x00\x05hello", "not_hello", 10),
    ] {
        let before = proxy.lines();
        let mut stream = connect(address).await;
        stream.write_all(bytes).await.unwrap();
        let (answer, ending) = read_out(&mut stream).await;
        assert_eq!(
            (answer.first(), answer.get(5..), ending),
            (Some(&21), Some(&[2, alert][..]), Ending::Clean),
            "{word}"
        );
        let line = refused_line(&proxy, before).await;
        assert_eq!((&line["refused"], &line["cause"]), (&word.into(), &"bad_hello".into()), "{line}");
    }
    assert_eq!(echo.accepted(), 0);
}
