//! What is asked and answered over HTTP.

use super::*;

/// An endpoint that sends `head` and then `more` without end; the task returns how many bytes were taken.
async fn endless(head: &'static [u8], more: &'static [u8]) -> (SocketAddr, JoinHandle<usize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let sent = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(head).await.unwrap();
        let (mut sent, more) = (0, more.repeat(4096 / more.len()));
        while client.write_all(&more).await.is_ok() {
            sent += more.len();
        }
        sent
    });
    (address, sent)
}

#[tokio::test]
async fn answers_without_end_are_not_read_to_the_end() {
    let (address, sent) = endless(b"", b"y").await;
    let wrong = bad(r#"answer lacks "+PONG" in its first 64 KiB"#);
    assert_eq!(run(address, tcp("", "+PONG"), LONG).await, wrong);
    sent.await.unwrap();

    let (address, sent) = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"y").await;
    let wrong = bad(r#"the first 64 KiB of the body lack "ready""#);
    assert_eq!(run(address, http(Some("ready")), LONG).await, wrong);
    sent.await.unwrap();

    let (address, sent) = endless(b"HTTP/1.1 200 OK\r\nX-Long: ", b"y").await;
    let wrong = bad("the head of the answer is longer than 16 KiB or 100 lines");
    assert_eq!(run(address, http(None), LONG).await, wrong);
    sent.await.unwrap();

    let (address, sent) = endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n").await;
    let wrong = bad("528 KiB without the end of the answer");
    assert_eq!(run(address, http(None), LONG).await, wrong);
    sent.await.unwrap();
}

#[tokio::test]
async fn the_request_is_what_a_server_expects() {
    let (told, head) = oneshot::channel();
    let told = Mutex::new(Some(told));
    let address = endpoint(move |mut client| {
        let told = told.lock().unwrap().take().unwrap();
        async move {
            told.send(read_head(&mut client).await?).unwrap();
            client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await
        }
    })
    .await;
    assert_eq!(run(address, http(None), LONG).await, Outcome::Good);
    let head = head.await.unwrap();
    let lines: Vec<_> = head.lines().map(str::to_lowercase).collect();
    assert_eq!(lines[0], "get /health?x=1 http/1.1");
    assert!(lines.contains(&format!("host: {address}")), "{head}");
    assert!(lines.contains(&"connection: close".to_owned()), "{head}");
    assert!(lines.contains(&format!("user-agent: twinspan-probe/{}", env!("CARGO_PKG_VERSION"))), "{head}");
}

#[tokio::test]
async fn the_status_decides() {
    let answer = |status: &str| http_endpoint(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno"));
    assert_eq!(run(answer("200 OK").await, http(None), LONG).await, Outcome::Good);
    let sick = answer("503 Service Unavailable").await;
    assert_eq!(run(sick, http(None), LONG).await, bad("status 503, wanted 200-299"));
    let probe = Probe::Http {
        path: "/".into(),
        host: Some("db.internal".into()),
        status: vec![(200, 299), (301, 301)],
        body: None,
    };
    assert_eq!(run(answer("301 Moved").await, probe.clone(), LONG).await, Outcome::Good);
    assert_eq!(run(answer("302 Found").await, probe, LONG).await, bad("status 302, wanted 200-299, 301"));
}

#[tokio::test]
async fn the_body_is_searched_whatever_its_framing() {
    let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nall is ready.";
    assert_eq!(run(http_endpoint(whole).await, http(Some("ready")), LONG).await, Outcome::Good);
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n";
    assert_eq!(run(http_endpoint(chunked).await, http(Some("ready")), LONG).await, Outcome::Good);
    let until_close = b"HTTP/1.0 200 OK\r\n\r\nnot \x07 yet";
    let wrong = bad(r#"body lacks "ready": got "not \x07 yet""#);
    assert_eq!(run(http_endpoint(until_close).await, http(Some("ready")), LONG).await, wrong);
    let broken = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\x1b\r\n";
    let Outcome::Bad(reason) = run(http_endpoint(broken).await, http(Some("ready")), LONG).await else {
        panic!()
    };
    assert!(reason.starts_with("not an HTTP answer: ") && !reason.contains('\x1b'), "{reason}");
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnearly";
    let wrong = bad("closed before the end of the answer");
    assert_eq!(run(http_endpoint(cut).await, http(Some("ready")), LONG).await, wrong);
}

#[tokio::test]
async fn what_is_not_http_is_named_without_its_bytes() {
    let Outcome::Bad(reason) = run(http_endpoint("SSH-2.0-\x1b[2J\r\n\r\n").await, http(None), LONG).await
    else {
        panic!()
    };
    assert!(reason.starts_with("not an HTTP answer: ") && reason.is_ascii(), "{reason}");
    assert!(!reason.contains('\x1b'), "{reason}");
}
