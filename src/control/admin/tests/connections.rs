//! Clients that are slow, hostile or many, and the unix socket.

use super::*;

#[tokio::test]
async fn bodies_are_bounded_and_smuggling_is_refused() {
    let served = Served::admin();
    let post = async |fields: &str| {
        served
            .send(format!("POST /api/v1/status HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n").as_bytes())
            .await
    };
    let large = post("Content-Length: 104857600\r\n").await;
    assert_eq!((large.status, large.problem().as_str()), (413, "a body has at most 65536 bytes"));
    assert_eq!(post("Transfer-Encoding: chunked\r\n").await.status, 411);
    assert_eq!(post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n").await.status, 411);
    assert_eq!(post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n").await.status, 411);
    assert_eq!(post("Content-Length: 4\r\nContent-Length: 5\r\n").await.status, 400);
    served.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_ends_its_connection_only() {
    let served = Served::telemetry();
    let huge = format!("GET /livez HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(2 << 20));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    // The server may close before all of it is written.
    drop(stream.write_all(huge.as_bytes()).await);
    let answer = Answer::read(stream).await;
    assert!(matches!(answer.status, 0 | 431), "{answer:?}");
    let many = format!("GET /livez HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(1000));
    assert_eq!(served.send(many.as_bytes()).await.status, 431);
    assert_eq!(served.get("/livez").await.status, 200);
    served.stop().await;
}

#[tokio::test]
async fn a_request_that_is_never_finished_is_closed() {
    let limits = Limits { head: Duration::from_millis(50), ..Limits::default() };
    let served = Served::start(Kind::Telemetry, limits);
    for beginning in [&b""[..], b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: a\r\nX: "] {
        served.send(beginning).await;
    }
    served.stop().await;
}

#[tokio::test]
async fn a_reader_that_stops_reading_is_closed_at_the_end_of_its_life() {
    let short = Duration::from_millis(50);
    let limits = Limits { head: 10 * PATIENCE, life: short, finish: short, ..Limits::default() };
    let served = Served::start(Kind::Telemetry, limits);
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    // More answers than the socket buffers hold, none of them read: the server gets stuck, then gives up.
    let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    let pushing = async {
        while stream.write_all(&request).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, pushing).await.expect("the server closes");
    served.stop().await;
}

#[tokio::test]
async fn a_hundred_idle_connections_do_not_keep_the_next_one_out() {
    // Nothing but the want of places closes a connection here.
    let limits = Limits { head: 10 * PATIENCE, life: 10 * PATIENCE, ..Limits::default() };
    let served = Served::start(Kind::Telemetry, limits);
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert_eq!(served.get("/livez").await.status, 200);
    // The oldest gave their places up.
    let mut byte = [0];
    let closed = timeout(PATIENCE, idle[0].read(&mut byte)).await.expect("the oldest is closed");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    served.stop().await;
}

#[tokio::test]
async fn one_connection_may_ask_several_times() {
    let served = Served::telemetry();
    let two =
        "GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = served.send(two.as_bytes()).await;
    assert_eq!(answer.body.matches("200 OK").count(), 1, "{answer:?}");
    assert!(answer.body.ends_with("ok\n"));
    served.stop().await;
}

#[tokio::test]
async fn who_has_nothing_more_to_ask_is_still_answered() {
    let served = Served::telemetry();
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = Answer::read(stream).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    served.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_idle_connections() {
    let served = Served::telemetry();
    let idle = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(served.get("/livez").await.status, 200);
    served.stop().await;
    drop(idle);
}

#[tokio::test]
async fn the_unix_socket_serves_under_any_host_and_leaves_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let (shutdown, listener) = (CancellationToken::new(), bind_unix(&path).unwrap());
    let task = tokio::spawn(serve(listener, view(), Kind::Admin, shutdown.clone()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let request = b"GET /api/v1/status HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let answer = Answer::read(stream).await;
    assert_eq!(answer.status, 200);
    serde_json::from_str::<Status>(&answer.body).unwrap();
    shutdown.cancel();
    timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    assert!(!path.exists());
}
