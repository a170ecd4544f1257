//! Networks that swallow, delay and lose: each test in a network namespace of its own, with its own firewall rules,
//! which touch nobody else. They need root and say so where it is missing.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::harness::{
    Backend, Carrier, Dice, Ending, Load, Net, PATIENCE, Pattern, Proxy, Setup, ask, command, connect,
    eventually_within, listener, pool, read_out, rule, soon,
};

const AWS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
const GCP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12));
const EDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const BIND: SocketAddr = SocketAddr::new(EDGE, 5000);

/// A cloud whose packets get lost, both ways.
fn blackhole(action: &str, cloud: IpAddr) {
    let address = cloud.to_string();
    rule(action, &["-d", &address]);
    rule(action, &["-s", &address]);
}

fn setup(tables: String) -> Setup {
    Setup::at(EDGE, tables)
}

async fn upstream(cloud: IpAddr, name: &'static str) -> Backend {
    Backend::serve_at(SocketAddr::new(cloud, 7000), move |mut stream| async move {
        if matches!(stream.read(&mut [0]).await, Ok(1)) && stream.write_all(name.as_bytes()).await.is_ok() {
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        }
    })
    .await
}

const PROBES: &str = "[pool.health.tcp]\ninterval = \"500ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 3";

#[test]
fn a_cloud_that_swallows_packets_loses_no_new_session_and_its_old_ones_live_on_when_it_is_back() {
    let Some(net) = Net::new("a_cloud_that_swallows_packets") else { return };
    net.run(async || {
        let aws = upstream(AWS, "aws1").await;
        let gcp = upstream(GCP, "gcp1").await;
        let settings = format!(
            "policy = \"failover\"\norder = [\"aws\", \"gcp\"]\nconnect_timeout = \"300ms\"\nslow_start = \"0s\"\n{PROBES}"
        );
        let tables = pool("web", &settings, &[("aws", aws.address), ("gcp", gcp.address)])
            + &listener(BIND, "web", "user_timeout = \"30s\"");
        let proxy = Proxy::start(setup(tables)).await;
        proxy.judges(&[aws.address, gcp.address], "up").await;
        let mut open = connect(BIND).await;
        open.write_all(b"?").await.unwrap();
        open.read_exact(&mut [0; 4]).await.unwrap();

        let load = Load::start(BIND, 100);
        let counted = async |backend: &Backend, number: u64| {
            let goal = backend.accepted() + number;
            let enough = async || (backend.accepted() >= goal).then_some(());
            eventually_within(Duration::from_secs(60), "sessions", enough).await;
        };
        counted(&aws, 200).await;
        let cut = Instant::now();
        blackhole("-A", AWS);
        proxy.judges(&[aws.address], "down").await;
        let noticed = Instant::now();
        open.write_all(b"into the dark").await.unwrap();
        counted(&gcp, 300).await;
        let healed = Instant::now();
        blackhole("-D", AWS);
        proxy.uses(&[aws.address]).await;
        let back = Instant::now();
        counted(&aws, 300).await;
        let outcomes = load.stop().await;

        for outcome in &outcomes {
            if outcome.begun >= cut || outcome.begun + outcome.took < cut {
                assert!(outcome.answer.is_ok(), "{outcome:?}");
            }
            if outcome.begun > noticed && outcome.begun + outcome.took < healed {
                assert_eq!(outcome.answer.as_deref(), Ok("gcp1"), "{outcome:?}");
            }
            if outcome.begun > back {
                assert_eq!(outcome.answer.as_deref(), Ok("aws1"), "{outcome:?}");
            }
        }
        assert!(noticed - cut < Duration::from_secs(10), "noticed after {:?}", noticed - cut);
        let mut echo = [0; 13];
        soon("what was sent into the dark", open.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"into the dark");
    });
}

#[test]
fn a_peer_that_dies_silently_is_found_by_unacknowledged_bytes_and_by_keepalive() {
    let Some(net) = Net::new("a_peer_that_dies_silently") else { return };
    net.run(async || {
        let aws = upstream(AWS, "aws1").await;
        // Short, and apart from each other: the one with bytes under way ends by the user timeout, the silent one by
        // keepalive.
        let settings = "user_timeout = \"3s\"\nkeepalive = { idle = \"1s\", interval = \"1s\", count = 2 }";
        let tables = pool("web", "", &[("aws", aws.address)]) + &listener(BIND, "web", settings);
        let proxy = Proxy::start(setup(tables)).await;
        let mut sessions = Vec::new();
        for _ in 0..2 {
            let mut stream = connect(BIND).await;
            stream.write_all(b"?").await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
            sessions.push(stream);
        }
        let before = proxy.lines();
        blackhole("-A", AWS);
        let start = Instant::now();
        sessions[0].write_all(b"unacknowledged").await.unwrap();
        for stream in &mut sessions {
            assert_eq!(read_out(stream).await, (Vec::new(), Ending::Reset));
        }
        assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
        for _ in 0..2 {
            let line = proxy.session_line(before).await;
            assert_eq!((&line["side"], &line["cause"]), (&"upstream".into(), &"timed_out".into()), "{line}");
        }
    });
}

#[test]
fn three_percent_loss_changes_no_byte_and_marks_nothing_down() {
    for carrier in Carrier::ALL {
        let Some(net) = Net::new("three_percent_loss") else { return };
        net.run(async || three_percent_loss(carrier).await);
    }
}

async fn three_percent_loss(carrier: Carrier) {
    let play = |stream: TcpStream| async move {
        let mut stream = stream;
        let mut seed = [0; 8];
        // A probe says nothing.
        if stream.read_exact(&mut seed).await.is_err() {
            return;
        }
        let (seed, size) = size(u64::from_le_bytes(seed));
        let (mut from, mut to) = stream.split();
        let speak = async {
            Pattern(!seed).send(&mut to, 0, size).await.unwrap();
            to.shutdown().await.unwrap();
        };
        tokio::join!(Pattern(seed).receive_all(&mut from, size), speak);
    };
    let aws = Backend::serve_at(SocketAddr::new(AWS, 7000), play).await;
    let gcp = Backend::serve_at(SocketAddr::new(GCP, 7000), play).await;
    let settings = "policy = \"weighted\"\nweights = { aws = 50, gcp = 50 }\nconnect_timeout = \"3s\"\n[pool.health.tcp]";
    let tables =
        pool("web", settings, &[("aws", aws.address), ("gcp", gcp.address)]) + &listener(BIND, "web", "");
    let proxy = Proxy::start(setup(tables).carrier(carrier)).await;
    proxy.judges(&[aws.address, gcp.address], "up").await;
    for place in [AWS, GCP] {
        rule(
            "-A",
            &["-d", &place.to_string(), "-m", "statistic", "--mode", "random", "--probability", "0.03"],
        );
    }
    rule(
        "-A",
        &["-p", "tcp", "--dport", "5000", "-m", "statistic", "--mode", "random", "--probability", "0.03"],
    );

    let mut dice = Dice::new(3);
    for _ in 0..5 {
        let mut sessions = JoinSet::new();
        for _ in 0..60 {
            let (seed, size) = size(dice.next());
            sessions.spawn(async move {
                let mut stream = connect(BIND).await;
                stream.write_all(&seed.to_le_bytes()).await.unwrap();
                let (mut from, mut to) = stream.split();
                let speak = async {
                    Pattern(seed).send(&mut to, 0, size).await.unwrap();
                    to.shutdown().await.unwrap();
                };
                tokio::join!(Pattern(!seed).receive_all(&mut from, size), speak);
            });
        }
        let ended = tokio::time::timeout(Duration::from_secs(120), sessions.join_all()).await;
        assert!(ended.is_ok(), "a session under loss has not ended");
        for endpoint in [&aws, &gcp] {
            assert_eq!(proxy.verdict(endpoint.address).await, "up");
        }
    }
    assert_eq!(proxy.metric("twinspan_failovers_total", &[]).await, 0);
    assert!(aws.accepted() > 50 && gcp.accepted() > 50, "{} and {}", aws.accepted(), gcp.accepted());
}

/// A session's seed, and what it sends each way.
fn size(seed: u64) -> (u64, u64) {
    (seed, Dice::new(seed).below(300_000))
}

#[test]
fn a_cloud_that_rejects_costs_a_session_nothing_but_another_attempt() {
    let Some(net) = Net::new("a_cloud_that_rejects") else { return };
    net.run(async || {
        let aws = upstream(AWS, "aws1").await;
        let gcp = upstream(GCP, "gcp1").await;
        let settings = "policy = \"failover\"\norder = [\"aws\", \"gcp\"]";
        let tables =
            pool("web", settings, &[("aws", aws.address), ("gcp", gcp.address)]) + &listener(BIND, "web", "");
        let cloud = AWS.to_string();
        for with in ["tcp-reset", "icmp-host-unreachable", "icmp-port-unreachable"] {
            // A new one each time: what sessions hold against the cloud keeps them from it for a while.
            let mut proxy = Proxy::start(setup(tables.clone())).await;
            assert_eq!(ask(BIND).await.unwrap(), "aws1");
            let reject = ["INPUT", "-p", "tcp", "--syn", "-d", &cloud, "-j", "REJECT", "--reject-with", with];
            command(&[&["iptables", "-w", "-A"], &reject[..]].concat()).unwrap();
            for _ in 0..20 {
                assert_eq!(soon("an answer", ask(BIND)).await.unwrap(), "gcp1", "{with}");
            }
            command(&[&["iptables", "-w", "-D"], &reject[..]].concat()).unwrap();
            eventually_within(PATIENCE, "a session tries it again", async || {
                (ask(BIND).await.unwrap() == "aws1").then_some(())
            })
            .await;
            proxy.signal(Signal::TERM);
            assert_eq!(proxy.end().await.code(), Some(0));
        }
    });
}

#[test]
fn a_session_with_a_spare_begins_at_once_where_a_connect_would_be_late() {
    let Some(net) = Net::new("a_session_with_a_spare_begins_at_once") else { return };
    net.run(async || {
        let aws = upstream(AWS, "aws1").await;
        let tables = pool("web", "preconnect = 8", &[("aws", aws.address)]) + &listener(BIND, "web", "");
        let proxy = Proxy::start(setup(tables)).await;
        let ready = async || proxy.metric("twinspan_spare_connections", &[]).await;
        eventually_within(Duration::from_secs(30), "spares", async || (ready().await == 8).then_some(()))
            .await;
        // Nobody is connected to any more; what is established goes on. Each worker has four spares.
        rule("-A", &["-d", &AWS.to_string(), "-p", "tcp", "--syn"]);
        for left in (4..8).rev() {
            let start = Instant::now();
            assert_eq!(soon("an answer", ask(BIND)).await.unwrap(), "aws1");
            let took = start.elapsed();
            // The kernel repeats a lost SYN after a second.
            assert!(took < Duration::from_millis(900), "{took:?}");
            assert_eq!(ready().await, left);
        }
        assert_eq!(aws.accepted(), 8);
    });
}

#[test]
fn a_dial_that_meets_itself_is_refused_whatever_ports_the_kernel_dials_from() {
    let Some(net) = Net::new("a_dial_that_meets_itself_is_refused_whatever_ports_the_kernel_dials_from")
    else {
        return;
    };
    net.run(async || {
        // So few that a dial to one of them soon comes from that very one.
        command(&["sysctl", "-w", "net.ipv4.ip_local_port_range=20000 20019"]).unwrap();
        command(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"]).unwrap();
        let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let routes = [("near", EDGE, 5010), ("elsewhere", elsewhere, 5011)].map(|(name, endpoint, port)| {
            (name, SocketAddr::new(endpoint, 20_004), SocketAddr::new(EDGE, port))
        });
        let tables = routes.map(|(name, endpoint, bind)| {
            pool(name, "attempts = 1", &[("aws", endpoint)]) + &listener(bind, name, "")
        });
        let proxy = Proxy::start(setup(tables.concat())).await;
        for (_, _, bind) in routes {
            for _ in 0..100 {
                // From elsewhere than the ports that are so few.
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                socket.bind(SocketAddr::new(GCP, 30_000)).unwrap();
                // The reset may be faster than the client's own connect.
                let Ok(mut client) = soon("a connection", socket.connect(bind)).await else { continue };
                let written = client.write_all(b"is anybody there?").await;
                let (got, ending) = read_out(&mut client).await;
                assert_eq!(got, Vec::<u8>::new());
                // The kernel tells the reset once, to whoever asks first.
                assert!(ending == Ending::Reset || written.is_err(), "{ending:?} after {written:?}");
            }
        }
        drop(proxy);
    });
}
