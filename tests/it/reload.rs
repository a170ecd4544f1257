//! SIGHUP: the whole new config or the whole old one, and no session pays for it.

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    Backend, Carrier, Load, Place, Proxy, Setup, ask, connect, eventually, listener, on_both_carriers, pool,
    read_out, soon,
};

on_both_carriers!(
    #[tokio::test]
    a_listener_keeps_its_sockets_under_another_name,
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_reloads_under_load_lose_no_session_and_leave_nothing_behind() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let gcp = Backend::named(&place, "gcp1").await;
    let bind = place.free();
    let tables = |weights: &str| {
        let endpoints = [("aws", aws.address), ("gcp", gcp.address)];
        pool("web", &format!("policy = \"weighted\"\nweights = {{ {weights} }}"), &endpoints)
            + &listener(bind, "web", "")
    };
    let proxy = Proxy::start(Setup::new(&place, tables("aws = 100, gcp = 0"))).await;
    let sockets = proxy.sockets();
    let mut long = Vec::new();
    for _ in 0..40 {
        let mut stream = connect(bind).await;
        stream.write_all(b"?").await.unwrap();
        soon("a name", stream.read_exact(&mut [0; 4])).await.unwrap();
        long.push(stream);
    }
    let load = Load::start(bind, 500);
    for turn in 0..10 {
        let weights = if turn % 2 == 0 { "aws = 0, gcp = 100" } else { "aws = 100, gcp = 0" };
        let (there, before) = if turn % 2 == 0 { (&gcp, gcp.accepted()) } else { (&aws, aws.accepted()) };
        proxy.reload(&proxy.setup().with(tables(weights)).text()).await;
        eventually("the new shares", async || (there.accepted() >= before + 200).then_some(())).await;
    }
    let outcomes = load.stop().await;
    assert!(outcomes.len() >= 2_000, "{}", outcomes.len());
    for outcome in &outcomes {
        assert!(outcome.answer.is_ok(), "{outcome:?}");
    }
    for mut stream in long {
        let mut echo = [0; 5];
        stream.write_all(b"hello").await.unwrap();
        soon("an echo", stream.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"hello");
    }
    eventually("as few sockets as before", async || (proxy.sockets() <= sockets).then_some(())).await;
}

#[tokio::test]
async fn a_bad_config_changes_nothing_and_is_told_in_metric_log_and_status() {
    let place = Place::new();
    let backend = Backend::named(&place, "aws1").await;
    let (proxy, bind) = Proxy::before(&place, backend.address, "").await;
    let good = proxy.setup().text();
    let bad = [
        good.replace("bind =", "bnid ="),
        good.replace("pool = \"only\"", "pool = \"other\""),
        good.replace("drain_timeout = \"5s\"", "drain_timeout = 5"),
        good.get(..good.len() / 2).unwrap().to_owned(),
        String::new(),
    ];
    let generation = proxy.status().await["process"]["generation"].clone();
    assert!(generation.is_u64(), "{generation}");
    for text in &bad {
        let before = proxy.lines();
        proxy.reload(text).await;
        let find = |line: &str| (line.contains("reload") && line.contains("\"ERROR\"")).then_some(());
        proxy.line_from(before, "a refused reload", find).await;
        assert_eq!(ask(bind).await.unwrap(), "aws1");
    }
    let status = proxy.status().await;
    assert_eq!(status["process"]["generation"], generation, "{status:#}");
    assert!(status["process"]["last_reload"]["error"].is_string(), "{status:#}");
    proxy.reload(&good).await;
    let status = proxy.status().await;
    assert!(
        status["process"]["last_reload"]["time"].is_string()
            && status["process"]["last_reload"]["error"].is_null(),
        "{status:#}"
    );
    assert_eq!(ask(bind).await.unwrap(), "aws1");
    assert_eq!(proxy.reloads().await, 6);
}

#[tokio::test]
async fn a_reload_adds_and_removes_listeners_and_open_sessions_stay() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (old, new) = (place.free(), place.free());
    let served = pool("only", "", &[("aws", backend.address)]);
    let setup = Setup::new(&place, served.clone() + &listener(old, "only", ""));
    let proxy = Proxy::start(setup.clone()).await;
    let mut session = connect(old).await;
    session.write_all(b"!").await.unwrap();
    session.read_exact(&mut [0]).await.unwrap();

    proxy
        .reload(&setup.with(served.clone() + &listener(old, "only", "") + &listener(new, "only", "")).text())
        .await;
    let mut second = connect(new).await;
    second.write_all(b"!").await.unwrap();
    second.read_exact(&mut [0]).await.unwrap();

    proxy.reload(&setup.with(served + &listener(new, "only", "")).text()).await;
    eventually("the old listener is closed", async || TcpStream::connect(old).await.is_err().then_some(()))
        .await;
    for stream in [&mut session, &mut second] {
        stream.write_all(b"!").await.unwrap();
        soon("an echo", stream.read_exact(&mut [0])).await.unwrap();
    }
    connect(new).await;
}

#[tokio::test]
async fn a_reload_that_cannot_bind_one_listener_is_refused_whole() {
    let place = Place::new();
    let (aws, gcp) = (Backend::named(&place, "aws1").await, Backend::named(&place, "gcp1").await);
    let (old, new) = (place.free(), place.free());
    let taken = Backend::echo(&place).await;
    let setup = Setup::new(&place, pool("web", "", &[("aws", aws.address)]) + &listener(old, "web", ""));
    let proxy = Proxy::start(setup.clone()).await;

    let tables = pool("web", "", &[("gcp", gcp.address)])
        + &listener(old, "web", "")
        + &listener(new, "web", "")
        + &listener(taken.address, "web", "");
    let before = proxy.lines();
    proxy.reload(&setup.with(tables).text()).await;
    let address = taken.address.to_string();
    let find = |line: &str| (line.contains("\"ERROR\"") && line.contains(&address)).then_some(());
    proxy.line_from(before, "the address in use", find).await;
    assert!(TcpStream::connect(new).await.is_err(), "a listener of a refused config is open");
    for _ in 0..20 {
        assert_eq!(ask(old).await.unwrap(), "aws1");
    }
    // The port that was bound for a moment is free again.
    drop(std::net::TcpListener::bind(new).unwrap());
}

#[tokio::test]
async fn a_hundred_hangups_in_a_second_end_with_the_last_config_in_force() {
    let place = Place::new();
    let (aws, gcp) = (Backend::named(&place, "aws1").await, Backend::named(&place, "gcp1").await);
    let bind = place.free();
    let tables = |cloud, address| pool("web", "", &[(cloud, address)]) + &listener(bind, "web", "");
    let setup = Setup::new(&place, tables("aws", aws.address));
    let proxy = Proxy::start(setup.clone()).await;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(10));
    for turn in 0..100 {
        let next = if turn % 2 == 0 { ("gcp", gcp.address) } else { ("aws", aws.address) };
        if turn == 99 {
            proxy.replace_config(&setup.with(tables("gcp", gcp.address)).text());
        } else {
            proxy.replace_config(&setup.with(tables(next.0, next.1)).text());
        }
        proxy.signal(Signal::HUP);
        pace.tick().await;
        let answer = ask(bind).await.unwrap();
        assert!(["aws1", "gcp1"].contains(&answer.as_str()), "{answer}");
    }
    let in_force = async || {
        let status = proxy.status().await;
        let endpoints = status["pools"][0]["endpoints"].as_array().unwrap().clone();
        (endpoints.len() == 1 && endpoints[0]["address"] == gcp.address.to_string()).then_some(())
    };
    eventually("the last config", in_force).await;
    assert_eq!(ask(bind).await.unwrap(), "gcp1");
    assert!((1..=100).contains(&proxy.reloads().await));
}

#[tokio::test]
async fn an_endpoint_that_a_reload_removes_keeps_its_open_sessions() {
    let place = Place::new();
    let (aws, gcp) = (Backend::named(&place, "aws1").await, Backend::named(&place, "gcp1").await);
    let bind = place.free();
    let tables = |cloud, address| pool("web", "", &[(cloud, address)]) + &listener(bind, "web", "");
    let setup = Setup::new(&place, tables("aws", aws.address));
    let proxy = Proxy::start(setup.clone()).await;
    let mut open = connect(bind).await;
    open.write_all(b"?").await.unwrap();
    soon("a name", open.read_exact(&mut [0; 4])).await.unwrap();
    proxy.reload(&setup.with(tables("gcp", gcp.address)).text()).await;
    assert_eq!(ask(bind).await.unwrap(), "gcp1");
    open.write_all(b"goodbye").await.unwrap();
    open.shutdown().await.unwrap();
    assert_eq!(read_out(&mut open).await.0, b"goodbye");
}

/// Reloads `text` and waits for the error that says why not; it contains `words`.
async fn refused(proxy: &Proxy, text: &str, words: &str) {
    let before = proxy.lines();
    proxy.reload(text).await;
    let find = |line: &str| (line.contains("\"ERROR\"") && line.contains(words)).then_some(());
    proxy.line_from(before, words, find).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_not_put_in_place_of_endpoints() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let bind = place.free();
    let at = listener(bind, "web", "");
    let setup = Setup::new(&place, pool("web", "", &[("aws", aws.address)]) + &at);
    let proxy = Proxy::start(setup.clone()).await;
    let named = |host: &str| {
        format!("[[pool]]\nname = \"web\"\n[[pool.endpoint]]\naddress = \"{host}\"\ncloud = \"aws\"\n") + &at
    };
    let text = setup.with(named("twinspan.invalid:5432")).text();
    refused(&proxy, &text, "pool web would have no endpoint: twinspan.invalid does not resolve (").await;
    assert_eq!(ask(bind).await.unwrap(), "aws1");

    let local = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = local.local_addr().unwrap().port();
    proxy.reload(&setup.with(named(&format!("localhost:{port}"))).text()).await;
    let status = proxy.status().await;
    assert!(status["process"]["last_reload"]["error"].is_null(), "{status:#}");
    let _client = connect(bind).await;
    soon("a session at the new name", local.accept()).await.unwrap();
}

#[tokio::test]
async fn an_address_that_this_proxy_holds_itself_is_said_to_be_its_own() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let bind = place.free();
    let web = pool("web", "", &[("aws", aws.address)]);
    let setup = Setup::new(&place, web.clone() + &listener(bind, "web", ""));
    let proxy = Proxy::start(setup.clone()).await;
    let wide = listener(([0, 0, 0, 0], bind.port()).into(), "web", "");
    let words = format!("listener at-{} of this proxy has {bind}", bind.port());
    refused(&proxy, &setup.with(web.clone() + &wide).text(), &words).await;
    assert_eq!(ask(bind).await.unwrap(), "aws1");
}

async fn a_listener_keeps_its_sockets_under_another_name(carrier: Carrier) {
    let place = Place::new();
    let (aws, gcp) = (Backend::named(&place, "aws1").await, Backend::named(&place, "gcp1").await);
    let (one, two) = (place.free(), place.free());
    let tables = |names: [&str; 2]| {
        let mut text = pool("a", "", &[("aws", aws.address)]) + &pool("b", "", &[("gcp", gcp.address)]);
        for (bind, (pool, name)) in [one, two].into_iter().zip(["a", "b"].into_iter().zip(names)) {
            text += &listener(bind, pool, "").replace(&format!("at-{}", bind.port()), name);
        }
        text
    };
    let setup = Setup::new(&place, tables(["first", "second"])).carrier(carrier);
    let proxy = Proxy::start(setup.clone()).await;
    let sockets = proxy.sockets();
    let mut long = connect(one).await;
    long.write_all(b"?").await.unwrap();
    soon("a name", long.read_exact(&mut [0; 4])).await.unwrap();
    let load = Load::start(one, 200);
    // To another name, to each other's, and back.
    for names in [["first", "other"], ["other", "first"], ["first", "second"]] {
        proxy.reload(&setup.with(tables(names)).text()).await;
        let status = proxy.status().await;
        assert!(status["process"]["last_reload"]["error"].is_null(), "{status:#}");
        for (bind, backend, name) in [(one, "aws1", names[0]), (two, "gcp1", names[1])] {
            let accepted =
                async || proxy.metric("twinspan_connections_accepted_total", &[("listener", name)]).await;
            eventually("a session under the new name", async || {
                let before = accepted().await;
                assert_eq!(ask(bind).await.unwrap(), backend);
                (accepted().await > before).then_some(())
            })
            .await;
        }
    }
    for outcome in load.stop().await {
        assert!(outcome.answer.is_ok(), "{outcome:?}");
    }
    long.write_all(b"?").await.unwrap();
    drop(long);
    eventually("as few sockets as before", async || (proxy.sockets() <= sockets).then_some(())).await;
}

#[tokio::test]
async fn a_config_without_a_listener_is_refused_while_one_is_open() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let (proxy, bind) = Proxy::before(&place, aws.address, "").await;
    let text = proxy.setup().with(pool("only", "", &[("aws", aws.address)])).text();
    refused(&proxy, &text, "listener").await;
    assert_eq!(ask(bind).await.unwrap(), "aws1");
}

#[tokio::test]
async fn what_takes_a_restart_is_told_and_stays_as_it_is() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let (proxy, _) = Proxy::before(&place, aws.address, "").await;
    let good = proxy.setup().text();
    for _ in 0..2 {
        proxy.reload(&good.replace("workers = 2", "workers = 3")).await;
        let status = proxy.status().await;
        assert_eq!(status["process"]["needs_restart"], serde_json::json!(["workers"]), "{status:#}");
    }
    proxy.reload(&good).await;
    let status = proxy.status().await;
    assert_eq!(status["process"]["needs_restart"], serde_json::json!([]), "{status:#}");
}

#[tokio::test]
async fn warnings_of_a_reloaded_file_are_logged_and_counted() {
    let place = Place::new();
    let aws = Backend::named(&place, "aws1").await;
    let (proxy, _) = Proxy::before(&place, aws.address, "").await;
    let before = proxy.lines();
    proxy.reload(&(proxy.setup().text() + "\n[cloud.nowhere]\n")).await;
    let find = |line: &str| (line.contains("\"WARN\"") && line.contains("nowhere")).then_some(());
    proxy.line_from(before, "the warning", find).await;
    let status = proxy.status().await;
    let events = status["events"].as_array().unwrap();
    let told = |event: &serde_json::Value| {
        let text = event["text"].as_str().unwrap();
        text.starts_with("config reloaded (") && text.contains("warning")
    };
    assert!(events.iter().any(told), "{status:#}");
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_read_when_it_is_whole() {
    let place = Place::new();
    let (aws, gcp) = (Backend::named(&place, "aws1").await, Backend::named(&place, "gcp1").await);
    let bind = place.free();
    let tables = |cloud, address| pool("web", "", &[(cloud, address)]) + &listener(bind, "web", "");
    let setup = Setup::new(&place, tables("aws", aws.address));
    let proxy = Proxy::start(setup.clone()).await;
    let text = setup.with(tables("gcp", gcp.address)).text();
    let before = proxy.reloads().await;
    let path = proxy.folder().join("twinspan.toml");
    std::fs::write(&path, text.get(..text.len() / 2).unwrap()).unwrap();
    proxy.signal(Signal::HUP);
    std::fs::write(&path, &text).unwrap();
    eventually("the reload", async || (proxy.reloads().await > before).then_some(())).await;
    let status = proxy.status().await;
    assert!(status["process"]["last_reload"]["error"].is_null(), "{status:#}");
    assert_eq!(ask(bind).await.unwrap(), "gcp1");
}
