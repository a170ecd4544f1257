//! TLS towards endpoints: which of them are believed, and where their sessions go if not.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, split},
    net::TcpStream,
    time::Instant,
};

use super::{Edge, NAME};
use crate::harness::{
    Authority, Backend, Carrier, Ending, Files, Issued, Listener, Pattern, Place, Proxy, Setup, Speaker,
    connect, listener, on_both_carriers, pool, read_out,
};

const MIB: u64 = 1024 * 1024;

on_both_carriers!(
    #[tokio::test]
    an_endpoint_that_cannot_show_who_it_is_is_left_for_the_next_one,
    where_no_endpoint_is_right_the_client_is_reset_and_nothing_was_said_in_the_clear,
    twenty_mebibytes_go_both_ways_from_tls_to_tls,
    what_the_client_agreed_on_is_asked_of_the_endpoint,
);

/// An endpoint that speaks TLS and sends everything back after its name.
async fn speaking(place: &Place, identity: &Issued, name: &'static str) -> Backend<()> {
    let acceptor = Listener::new(identity);
    Backend::serve(place, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if stream.write_all(name.as_bytes()).await.is_ok() {
                let (mut from, mut to) = split(stream);
                drop(copy(&mut from, &mut to).await);
                drop(to.shutdown().await);
            }
        }
    })
    .await
}

/// One that keeps what it was sent before it sends `greeting` and closes.
async fn listening(place: &Place, greeting: &'static [u8]) -> Backend<Vec<u8>> {
    Backend::serve(place, move |mut stream: TcpStream| async move {
        stream.write_all(greeting).await.unwrap();
        let mut said = Vec::new();
        // However it ends: what was said counts.
        drop(stream.read_to_end(&mut said).await);
        said
    })
    .await
}

/// `[pool.tls]` with this authority, for this name.
fn towards(files: &Files, authority: &Authority, name: &str) -> String {
    let ca = files.put("endpoints.pem", &authority.pem);
    format!("[pool.tls]\nca = \"{}\"\nserver_name = \"{name}\"\n", ca.display())
}

async fn an_endpoint_that_cannot_show_who_it_is_is_left_for_the_next_one(carrier: Carrier) {
    let place = Place::new();
    let (authority, files) = (Authority::new("endpoints"), Files::new());
    let issue = |names: &[&str]| authority.issue(names);
    let right = speaking(&place, &issue(&["db.test"]), "right").await;
    let wrong_name = speaking(&place, &issue(&["other.test"]), "wrong").await;
    let expired = speaking(&place, &authority.issue_expired(&["db.test"]), "wrong").await;
    let early = speaking(&place, &authority.issue_early(&["db.test"]), "wrong").await;
    let own = speaking(&place, &Issued::self_signed(&["db.test"]), "wrong").await;
    let foreign = speaking(&place, &Authority::new("endpoints").issue(&["db.test"]), "wrong").await;
    let plain = Backend::echo(&place).await;
    let garbage = listening(&place, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let silent = listening(&place, b"").await;
    let cases: [(&str, SocketAddr); 8] = [
        ("name", wrong_name.address),
        ("expired", expired.address),
        ("early", early.address),
        ("own", own.address),
        ("foreign", foreign.address),
        ("plain", plain.address),
        ("garbage", garbage.address),
        ("silent", silent.address),
    ];
    let mut tables = String::new();
    let binds = cases.map(|(name, address)| {
        let bind = place.free();
        let settings = "connect_timeout = \"400ms\"\nhedge = false\n".to_owned();
        let settings = settings + &towards(&files, &authority, "db.test");
        tables += &pool(name, &settings, &[("aws", address), ("gcp", right.address)]);
        tables += &listener(bind, name, "");
        (name, bind)
    });
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    for (name, bind) in binds {
        let before = proxy.lines();
        let mut client = connect(bind).await;
        client.write_all(b"hello").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (b"righthello".to_vec(), Ending::Clean), "{name}");
        let line = proxy.session_line(before).await;
        assert_eq!((&line["cause"], &line["attempts"]), (&"closed".into(), &2.into()), "{name}: {line}");
        assert_eq!(line["cloud"], "gcp", "{name}: {line}");
        let reason = if name == "silent" { "timed_out" } else { "handshake" };
        let failures = proxy
            .metric(
                "twinspan_upstream_connect_failures_total",
                &[("pool", name), ("cloud", "aws"), ("reason", reason)],
            )
            .await;
        assert_eq!(failures, 1, "{name}");
    }
}

async fn where_no_endpoint_is_right_the_client_is_reset_and_nothing_was_said_in_the_clear(carrier: Carrier) {
    let place = Place::new();
    let (authority, files) = (Authority::new("endpoints"), Files::new());
    let mut plain = listening(&place, b"220 plain\r\n").await;
    let expired = speaking(&place, &authority.issue_expired(&["db.test"]), "wrong").await;
    let settings = "hedge = false\n".to_owned() + &towards(&files, &authority, "db.test");
    let (first, second) = (place.free(), place.free());
    let tables = pool("plain", &settings, &[("aws", plain.address)])
        + &pool("expired", &settings, &[("aws", expired.address)])
        + &listener(first, "plain", "")
        + &listener(second, "expired", "");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    for (bind, word) in [(first, "not_tls"), (second, "certificate_expired")] {
        let before = proxy.lines();
        let mut client = connect(bind).await;
        client.write_all(b"secret").await.unwrap();
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
        let line = proxy.session_line(before).await;
        let end = ["side", "stage", "cause"].map(|key| line[key].as_str().unwrap()).join("/");
        assert_eq!((end.as_str(), &line["refused"]), ("upstream/connect/handshake", &word.into()), "{line}");
        assert_eq!(line["to_upstream"], 0, "{line}");
    }
    let said = plain.next().await;
    assert_eq!(said.first(), Some(&22), "the endpoint was sent something else than a handshake");
    assert!(!said.windows(6).any(|bytes| bytes == b"secret"), "the endpoint was told in the clear");
}

async fn twenty_mebibytes_go_both_ways_from_tls_to_tls(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let identity = edge.authority.issue(&["db.test"]);
    let acceptor = Listener::asking(&identity, &edge.authority);
    let mut endpoint = Backend::serve(&place, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let (mut from, mut to) = split(acceptor.accept(stream).await.unwrap());
            let sending = async {
                Pattern(32).send(&mut to, 0, 20 * MIB).await.unwrap();
                to.shutdown().await.unwrap();
            };
            tokio::join!(Pattern(31).receive_all(&mut from, 20 * MIB), sending);
        }
    })
    .await;
    let shown = edge.issued.clone();
    let (certificate, key) =
        (edge.files.put("own.pem", &shown.certificate), edge.files.put("own.key", &shown.key));
    let tls = towards(&edge.files, &edge.authority, "db.test")
        + &format!("certificate = \"{}\"\nkey = \"{}\"\n", certificate.display(), key.display());
    let bind = place.free();
    let tables =
        pool("only", &tls, &[("aws", endpoint.address)]) + &listener(bind, "only", &edge.ends_here(""));
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let begun = Instant::now();
    let (mut from, mut to) = split(Speaker::new(&edge.authority, None).dial(bind, NAME).await.unwrap());
    let sending = async {
        Pattern(31).send(&mut to, 0, 20 * MIB).await.unwrap();
        to.shutdown().await.unwrap();
    };
    tokio::join!(Pattern(32).receive_all(&mut from, 20 * MIB), sending);
    endpoint.next().await;
    let line = proxy.session_line(0).await;
    assert_eq!((&line["cause"], &line["to_client"]), (&"closed".into(), &(20 * MIB).into()), "{line}");
    assert_eq!(line["to_upstream"], 20 * MIB, "{line}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

async fn what_the_client_agreed_on_is_asked_of_the_endpoint(carrier: Carrier) {
    let place = Place::new();
    let edge = Edge::new();
    let acceptor = Listener::speaking(&edge.authority.issue(&["db.test"]), &["h2", "http/1.1"]);
    let mut endpoint = Backend::serve(&place, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.write_all(b"!").await.unwrap();
            let connection = stream.get_ref().1;
            let sni = connection.server_name().map(ToOwned::to_owned);
            (sni, connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()))
        }
    })
    .await;
    let bind = place.free();
    let listening = edge.ends_here("alpn = [\"h2\", \"http/1.1\"]");
    let tls = towards(&edge.files, &edge.authority, "db.test");
    let tables = pool("only", &tls, &[("aws", endpoint.address)]) + &listener(bind, "only", &listening);
    let _proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    for (offered, agreed) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let client = Speaker::new(&edge.authority, None).alpn(offered);
        let mut stream = client.dial(bind, NAME).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        assert_eq!(endpoint.next().await, (Some("db.test".into()), agreed.map(ToOwned::to_owned)));
    }
}
