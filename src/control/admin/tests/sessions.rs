//! Sessions, listed and ended.

use super::*;

/// A data plane with these sessions, all in the engine of worker 0. Worker 1 has stopped.
fn with_sessions(numbers: &'static [u64]) -> Served {
    let (sockets, mut queues) = Sockets::new(2);
    queues.truncate(1);
    drop(tokio::spawn(async move {
        let started = tokio::time::Instant::now();
        let mut sessions: Vec<_> = numbers.iter().map(|number| live_session(*number, started)).collect();
        while let Some(command) = queues[0].recv().await {
            match command {
                SocketCommand::Census(mut census) => {
                    sessions.iter().for_each(|one| census.look(&one.traits(), || one.clone()));
                    census.finish();
                }
                SocketCommand::Kill(kill) => {
                    let place = sessions.iter().position(|session| session.handle == kill.handle);
                    kill.answer(place.map(|place| sessions.remove(place)));
                }
                _ => {}
            }
        }
    }));
    Served::start_over(view_over(sockets), Kind::Admin, Limits::default())
}

fn live_session(number: u64, started: tokio::time::Instant) -> state::LiveSession {
    let slot = u32::try_from(number).unwrap();
    state::LiveSession {
        handle: SessionHandle { worker: 0, slow: false, slot, generation: 1 },
        session: number,
        client: format!("192.0.2.{number}:40000").parse().unwrap(),
        listener: ListenerName::from("pg"),
        pool: Some(PoolName::from("db")),
        endpoint: Some(endpoint("db", "aws", "10.0.0.1:5432").identity),
        generation: Generation(7),
        stage: Stage::Relay,
        started,
        to_upstream: 10,
        to_client: 20,
        attempts: 1,
    }
}

#[tokio::test]
async fn sessions_are_listed_by_age_and_by_filter() {
    let served = with_sessions(&[5, 3, 4]);
    let listed = async |query: &str| {
        let answer = served.get(&format!("/api/v1/sessions{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        let listed: LiveSessions = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(listed.silent_workers, [1]);
        (listed.sessions.iter().map(|session| session.session).collect::<Vec<_>>(), listed.total)
    };
    assert_eq!(listed("").await, (vec![3, 4, 5], 3));
    assert_eq!(listed("?limit=2").await, (vec![3, 4], 3));
    assert_eq!(listed("?limit=0&pool=db").await, (vec![], 3));
    assert_eq!(listed("?client=192.0.2.4").await, (vec![4], 1));
    assert_eq!(listed("?cloud=aws&endpoint=10.0.0.1:5432&limit=1").await, (vec![3], 3));
    assert_eq!(listed("?cloud=gcp").await, (vec![], 0));
    assert_eq!(listed("?older_than=1h").await, (vec![], 0));
    for (query, problem) in [
        ("?limit=10001", "`limit` must be a number of sessions, at most 10000"),
        ("?limit=-1", "`limit` must be a number of sessions, at most 10000"),
        ("?client=here", "`client`: not an address: give IP or IP:PORT"),
        ("?older_than=2", "`older_than` must be a time such as 90s or 2h"),
    ] {
        let answer = served.get(&format!("/api/v1/sessions{query}")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, problem));
    }
    let unknown = served.get("/api/v1/sessions?clinet=192.0.2.4").await;
    assert_eq!(unknown.status, 400);
    assert!(unknown.problem().contains("clinet"), "{}", unknown.problem());
    served.stop().await;
}

#[tokio::test]
async fn a_session_is_ended_once_and_only_where_its_handle_says() {
    const HOST: &str = "Host: localhost\r\n";
    let served = with_sessions(&[5, 3]);
    let ended = served.delete("/api/v1/sessions/0-3-1", HOST).await;
    assert_eq!(ended.status, 200, "{ended:?}");
    let ended: LiveSession = serde_json::from_str(&ended.body).unwrap();
    assert_eq!(
        (ended.handle.as_str(), ended.session, ended.client.as_str()),
        ("0-3-1", 3, "192.0.2.3:40000")
    );
    for gone in ["0-3-1", "0-5-2", "s0-5-1", "7-5-1"] {
        let answer = served.delete(&format!("/api/v1/sessions/{gone}"), HOST).await;
        assert_eq!(answer.status, 404, "{gone}");
        assert!(answer.problem().starts_with(&format!("no session has the handle {gone}: ")));
    }
    for malformed in ["3", "0-3", "a-b-c", "0-3-1-1", "%00", "0-5-99999999999"] {
        assert_eq!(
            served.delete(&format!("/api/v1/sessions/{malformed}"), HOST).await.status,
            400,
            "{malformed}"
        );
    }
    let silent = served.delete("/api/v1/sessions/1-5-1", HOST).await;
    assert_eq!(silent.status, 503, "{silent:?}");
    let get = served.get("/api/v1/sessions/0-5-1").await;
    assert_eq!((get.status, get.problem().as_str()), (405, "this path takes DELETE only"));
    assert!(get.head.contains("allow: delete"), "{}", get.head);
    let all = served.delete("/api/v1/sessions", HOST).await;
    assert_eq!((all.status, all.problem().as_str()), (405, "this path takes GET only"));
    let listed: LiveSessions = serde_json::from_str(&served.get("/api/v1/sessions").await.body).unwrap();
    assert_eq!((listed.total, listed.sessions[0].session), (1, 5));
    served.stop().await;
}

#[tokio::test]
async fn no_web_page_can_end_a_session() {
    let served = with_sessions(&[5, 3]);
    let (port, path) = (served.address.port(), "/api/v1/sessions/0-5-1");
    for foreign in [
        "Host: evil.example\r\n".to_owned(),
        "Host: localhost\r\nOrigin: https://evil.example\r\n".into(),
        "Host: localhost\r\nOrigin: null\r\n".into(),
        // Another port of this machine is another origin.
        format!("Host: localhost:{port}\r\nOrigin: http://localhost:1\r\n"),
        format!("Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\nOrigin: null\r\n"),
        format!("Host: localhost:{port}\r\nOrigin: https://localhost:{port}\r\n"),
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n".into(),
        "Host: localhost\r\nSec-Fetch-Site: same-site\r\n".into(),
        format!(
            "Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\nSec-Fetch-Site: cross-site\r\n"
        ),
    ] {
        assert_eq!(served.delete(path, &foreign).await.status, 403, "{foreign}");
    }
    // Reading is not for them either, but it changes nothing: the browser keeps the answer from the page.
    let list =
        b"GET /api/v1/sessions HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nConnection: close\r\n\r\n";
    let listed: LiveSessions = serde_json::from_str(&served.send(list).await.body).unwrap();
    assert_eq!(listed.total, 2);
    let own = format!(
        "Host: localhost:{port}\r\nOrigin: http://localhost:{port}\r\nSec-Fetch-Site: same-origin\r\n"
    );
    assert_eq!(served.delete(path, &own).await.status, 200);
    let typed = "Host: localhost\r\nSec-Fetch-Site: none\r\n";
    assert_eq!(served.delete("/api/v1/sessions/0-3-1", typed).await.status, 200);
    let telemetry = Served::telemetry();
    for path in ["/api/v1/sessions", path] {
        assert_eq!(telemetry.get(path).await.status, 404);
        assert_eq!(telemetry.delete(path, "Host: localhost\r\n").await.status, 404);
    }
    telemetry.stop().await;
    served.stop().await;
}
