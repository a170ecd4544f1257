//! Probes that go as sessions do: over TLS, behind a PROXY header.

use super::*;

/// An endpoint that shows a certificate of `authority` for `name`, and the settings to ask it by.
async fn secured(name: &str, wanted: &str) -> (SocketAddr, Manner) {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let pair = files.pair("endpoint", &authority.issue(&[name]));
    let mut settings = testing::listener(vec![pair]);
    settings.alpn = vec!["http/1.1".into()];
    let server = crate::tls::server(&settings, None).unwrap();
    let mut settings = testing::pool(files.put("ca.pem", &authority.pem));
    // A probe over HTTP does not offer this one.
    settings.alpn = vec!["http/1.1".into(), "h2".into()];
    let client = crate::tls::client(&settings).unwrap();
    let acceptor = TlsAcceptor::from(server.config);
    let address = endpoint(move |client| {
        let acceptor = acceptor.clone();
        async move {
            let mut client = acceptor.accept(client).await?;
            let mut asked = [0; 4];
            client.read_exact(&mut asked).await?;
            let answer = if asked == *b"GET " { "HTTP/1.1 204 No Content\r\n\r\n" } else { "+PONG" };
            client.write_all(answer.as_bytes()).await?;
            client.shutdown().await
        }
    })
    .await;
    let name = Some(ServerName::try_from(wanted.to_owned()).unwrap());
    (address, Manner { tls: Some(Secure { config: client.config, name }), header: None })
}

async fn run_secured(manner: &Manner, address: SocketAddr, probe: Probe, timeout: Duration) -> Outcome {
    run_as(manner.clone(), Outgoing::default(), (address, probe), timeout).await
}

#[tokio::test]
async fn every_kind_of_probe_may_go_over_tls() {
    let (address, manner) = secured("db.example", "db.example").await;
    for probe in [tcp("", ""), tcp("PING", "+PONG"), http(None)] {
        assert_eq!(run_secured(&manner, address, probe, LONG).await, Outcome::Good);
    }
    let wrong = run_secured(&manner, address, tcp("PING", "+NO"), LONG).await;
    assert_eq!(wrong, Outcome::Wrong("answer lacks \"+NO\": got \"+PONG\"".into()));
}

#[tokio::test]
async fn a_handshake_that_fails_says_why() {
    let (address, manner) = secured("other.example", "db.example").await;
    let why = "tls: the peer's certificate is not for db.example: it has other.example";
    for probe in [tcp("", ""), tcp("PING", "+PONG"), http(None)] {
        assert_eq!(run_secured(&manner, address, probe, LONG).await, bad(why));
    }
    let plain = endpoint(|mut client| async move { client.write_all(b"220 smtp.example\r\n").await }).await;
    assert_eq!(
        run_secured(&manner, plain, tcp("", ""), LONG).await,
        bad("tls: what the peer sent is not TLS")
    );
    let outcome = run_secured(&manner, silent().await, tcp("", ""), SHORT).await;
    assert_eq!(outcome, bad("tls: no handshake within 300ms"));
    let secure = Secure { name: None, ..manner.tls.unwrap() };
    let nameless = Manner { tls: Some(secure), header: None };
    let outcome = run_secured(&nameless, address, tcp("", ""), LONG).await;
    assert_eq!(outcome, bad("tls: the host name of the endpoint can be in no certificate"));
}

#[tokio::test]
async fn a_probe_begins_with_a_header_that_names_no_client_where_sessions_have_one() {
    for (version, wanted) in
        [(ProxyOut::V1, b"PROXY UNKNOWN\r\n".as_slice()), (ProxyOut::V2, b"\r\n\r\n\0\r\nQUIT\n\x20\0")]
    {
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let address = endpoint(move |mut client| {
            let told = told.clone();
            async move {
                let mut bytes = Vec::new();
                while !bytes.ends_with(b"PING") {
                    bytes.push(client.read_u8().await?);
                }
                told.send(bytes).await.unwrap();
                client.write_all(b"+PONG").await
            }
        })
        .await;
        let manner = Manner { tls: None, header: Some(version) };
        assert_eq!(run_secured(&manner, address, tcp("PING", "+PONG"), LONG).await, Outcome::Good);
        let bytes = heard.recv().await.unwrap();
        assert!(bytes.starts_with(wanted), "{bytes:?}");
    }
}
