//! Single sessions as the operator sees and ends them: `twinspan sessions` against a proxy under way.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    Backend, Carrier, Ending, Full, Output, Place, Proxy, Setup, binary, connect, eventually, listener,
    on_both_carriers, pool, read_out, run, soon,
};

on_both_carriers!(
    #[tokio::test]
    one_of_fifty_is_ended_and_the_others_go_on,
    one_that_connects_is_ended_wherever_it_is,
);

/// What `twinspan sessions` says, with these arguments.
async fn sessions(proxy: &Proxy, arguments: &[&str]) -> Output {
    let admin = format!("--admin={}", proxy.setup().admin);
    let (verb, rest) = match arguments {
        ["end", rest @ ..] => (["sessions", "end"].as_slice(), rest),
        rest => (["sessions"].as_slice(), rest),
    };
    run(binary(), &[verb, &[admin.as_str()], rest].concat()).await
}

async fn listed(proxy: &Proxy, arguments: &[&str]) -> Value {
    // On a busy machine a worker may need more than the second that it has.
    eventually("an answer of every worker", async || {
        let output = sessions(proxy, &[&["--json"], arguments].concat()).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        let value: Value = serde_json::from_str(&output.stdout).unwrap();
        (value["silent_workers"] == Value::Array(Vec::new())).then_some(value)
    })
    .await
}

async fn ping(client: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    soon("an answer", client.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"ping");
}

/// Echoes, and says in the end who the client was and how it left.
async fn echo(mut stream: TcpStream) -> (u16, bool) {
    let port = stream.peer_addr().unwrap().port();
    let (mut from, mut to) = stream.split();
    let copied = tokio::io::copy(&mut from, &mut to).await;
    (port, copied.is_err())
}

async fn all_fifty_are_listed(proxy: &Proxy) {
    let all = listed(proxy, &[]).await;
    let numbers: Vec<_> =
        all["sessions"].as_array().unwrap().iter().map(|one| one["session"].as_u64().unwrap()).collect();
    assert_eq!((&all["total"], numbers.len(), numbers.is_sorted()), (&50.into(), 50, true), "{numbers:?}");
    let some = sessions(proxy, &["--limit=3", "--pool=only", "--cloud=aws"]).await;
    assert_eq!((some.code, some.stdout.lines().count()), (Some(0), 4), "{some:?}");
    assert!(some.stderr.contains("the oldest 3 of 50"), "{some:?}");
}

async fn one_of_fifty_is_ended_and_the_others_go_on(carrier: Carrier) {
    let place = Place::new();
    let mut backend = Backend::serve(&place, echo).await;
    let (mut proxy, bind) = Proxy::before_on(carrier, &place, backend.address, "").await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = connect(bind).await;
        ping(&mut client).await;
        clients.push(client);
    }
    all_fifty_are_listed(&proxy).await;

    let mut client = clients.remove(20);
    let here = client.local_addr().unwrap().to_string();
    let found = listed(&proxy, &["--client", &here]).await;
    let found = &found["sessions"][0];
    assert_eq!(
        (&found["client"], &found["to_client"]),
        (&Value::from(here.as_str()), &4.into()),
        "{found:#}"
    );
    assert_eq!(
        (&found["endpoint"], &found["stage"]),
        (&backend.address.to_string().into(), &"relay".into()),
        "{found:#}"
    );
    let handle = found["handle"].as_str().unwrap();
    let ended = sessions(&proxy, &["end", handle]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with(&format!("ended {handle} session={} client={here} ", found["session"])));
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
    let again = sessions(&proxy, &["end", handle]).await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""), "{again:?}");
    assert!(again.stderr.starts_with(&format!("error: {handle}: no session has the handle")), "{again:?}");

    let line = proxy.session_line(0).await;
    assert_eq!((&line["session"], &line["client"]), (&found["session"], &found["client"]), "{line:#}");
    assert_eq!(
        (&line["side"], &line["stage"], &line["cause"]),
        (&"operator".into(), &"relay".into(), &"killed".into()),
        "{line:#}"
    );
    for client in &mut clients {
        ping(client).await;
    }
    assert_eq!(listed(&proxy, &[]).await["total"], 49);
    let killed = [("side", "operator"), ("stage", "relay"), ("cause", "killed")];
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &killed).await, 1);
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &[]).await, 1);
    drop(clients);
    let mut left = BTreeSet::new();
    let mut resets = 0;
    for _ in 0..50 {
        let (port, reset) = backend.next().await;
        left.insert(port);
        resets += u32::from(reset);
    }
    assert_eq!((left.len(), resets), (50, 1));
    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(proxy.end().await.code(), Some(0));
}

async fn one_that_connects_is_ended_wherever_it_is(carrier: Carrier) {
    let place = Place::new();
    let full = Full::hold(&place).await;
    let bind = place.free();
    let patient = "connect_timeout = \"60s\"";
    let tables = pool("only", patient, &[("aws", full.address)]) + &listener(bind, "only", "");
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    let only = async |late: bool| {
        eventually("a session that connects", async || {
            let all = listed(&proxy, &["--older-than", if late { "1200ms" } else { "0s" }]).await;
            let found = all["sessions"].get(0).filter(|one| one["attempts"] == 1)?;
            assert_eq!(found["stage"], "connect", "{all:#}");
            Some(found["handle"].as_str().unwrap().to_owned())
        })
        .await
    };
    for late in [false, true] {
        let mut client = connect(bind).await;
        let handle = only(late).await;
        assert!(!late || handle.starts_with('s'), "{handle}");
        let ended = sessions(&proxy, &["end", &handle]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
    }
    let killed = [("side", "operator"), ("stage", "connect"), ("cause", "killed")];
    assert_eq!(proxy.metric("twinspan_connections_closed_total", &killed).await, 2);
    assert_eq!(listed(&proxy, &[]).await["total"], 0);
}
