//! What an operator is told of an endpoint that fails sessions while its probes are good: that it is out and why, or why
//! it is not.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::harness::{Backend, Place, Proxy, Setup, ask, binary, eventually, listener, pool, run};

/// A pool of three, one of which refuses sessions: its probes go to a port where somebody accepts.
struct Scene {
    proxy: Proxy,
    bind: SocketAddr,
    bad: SocketAddr,
    _backends: Vec<Backend>,
}

async fn scene(place: &Place, ejection: &str) -> Scene {
    let bad = place.free();
    let (aws, gcp) = (Backend::named(place, "aws1").await, Backend::named(place, "gcp1").await);
    let probed = Backend::serve(place, |mut stream| async move {
        drop(stream.read(&mut [0]).await);
    })
    .await;
    let settings = format!(
        "[pool.health.tcp]\ninterval = \"200ms\"\nport = {}\n[pool.ejection]\n{ejection}",
        probed.address.port()
    );
    let endpoints = [("aws", bad), ("aws", aws.address), ("gcp", gcp.address)];
    let bind = place.free();
    let tables = pool("web", &settings, &endpoints) + &listener(bind, "web", "");
    let proxy = Proxy::start(Setup::new(place, tables)).await;
    proxy.judges(&[bad, aws.address, gcp.address], "up").await;
    Scene { proxy, bind, bad, _backends: vec![aws, gcp, probed] }
}

impl Scene {
    /// Asks until the bad endpoint has this standing; none of the clients notices. What `status` says of the endpoint.
    async fn until(&self, word: &str) -> Value {
        eventually(format!("the standing {word}"), async || {
            for _ in 0..20 {
                assert!(ask(self.bind).await.is_ok(), "a client noticed");
            }
            let status = self.proxy.status().await;
            let endpoint = status["pools"][0]["endpoints"].as_array().unwrap().iter();
            let mut bad = endpoint.filter(|endpoint| endpoint["address"] == self.bad.to_string()).cloned();
            bad.next().filter(|endpoint| endpoint["standing"]["word"] == word)
        })
        .await
    }

    async fn shown(&self) -> String {
        let admin = self.proxy.setup().admin.to_string();
        run(binary(), &["status", "--admin", &admin]).await.stdout
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_sessions_is_out_though_its_probes_are_good_and_status_says_why() {
    let place = Place::new();
    let scene = Box::pin(scene(&place, "base = \"1m\"")).await;
    let endpoint = scene.until("out").await;
    assert_eq!((&endpoint["verdict"], &endpoint["in_use"]), (&"up".into(), &false.into()), "{endpoint:#}");
    let standing = &endpoint["standing"];
    let reason = standing["reason"].as_str().unwrap();
    assert!(reason.contains("failed to connect") && reason.contains("number 1"), "{standing:#}");
    assert_eq!((&standing["ejections"], &standing["kept_by"]), (&1.into(), &Value::Null), "{standing:#}");
    assert!(standing["until"].is_string(), "{standing:#}");
    let shown = scene.shown().await;
    assert!(shown.lines().any(|line| line.contains("out until ") && line.contains(reason)), "{shown}");
    assert!(shown.contains("ejected 33 % (at most 50 %)"), "{shown}");
    let metric = async |name: &str, labels: &[_]| scene.proxy.metric(name, labels).await;
    assert_eq!(metric("twinspan_ejections_total", &[("pool", "web"), ("cloud", "aws")]).await, 1);
    assert_eq!(metric("twinspan_endpoints", &[("cloud", "aws"), ("standing", "out")]).await, 1);
}

#[tokio::test]
async fn an_endpoint_that_the_cap_keeps_stays_and_status_says_why_it_is_not_ejected() {
    let place = Place::new();
    let scene = Box::pin(scene(&place, "max_ejected = 0")).await;
    let endpoint = scene.until("kept").await;
    assert_eq!((&endpoint["verdict"], &endpoint["in_use"]), (&"up".into(), &true.into()), "{endpoint:#}");
    let standing = &endpoint["standing"];
    assert_eq!((&standing["kept_by"], &standing["ejections"]), (&"cap".into(), &0.into()), "{standing:#}");
    assert!(standing["consecutive_failures"].as_u64().unwrap() >= 5, "{standing:#}");
    assert!(standing["recent_failures"].as_u64().unwrap() >= 5, "{standing:#}");
    let shown = scene.shown().await;
    assert!(shown.contains("kept: as much is ejected already as may be (sessions: "), "{shown}");
    assert_eq!(scene.proxy.metric("twinspan_removals_held", &[("pool", "web"), ("reason", "cap")]).await, 1);
}
