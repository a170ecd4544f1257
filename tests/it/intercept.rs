//! Connections that firewall rules send here on their way to others. Three networks in a row, each in a namespace of its
//! own: clients, the machine with the proxy, and servers. Needs root, as `netns` does.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::sleep,
};

use crate::harness::{
    Backend, Carrier, Net, PATIENCE, Place, Process, Proxy, Setup, binary, command, eventually_within,
    is_reset, missing, run, skip, skip_on_this_machine, soon,
};

const CLIENTS: [&str; 2] = ["10.1.0.2", "fd01::2"];
const ENDPOINTS: [&str; 2] = ["10.2.0.2:7000", "[fd02::2]:7000"];
/// Nobody has these addresses: a route is for them.
const SERVICES: [&str; 2] = ["198.18.0.10:5432", "[2001:2::10]:5432"];
/// A server has these, and no route is for them.
const OTHERS: [&str; 2] = ["198.18.0.99:7000", "[2001:2::99]:7000"];

/// Clients, the proxy's machine, servers.
struct Ground {
    clients: Net,
    middle: Net,
    servers: Net,
}

impl Ground {
    fn new(test: &str) -> Option<Self> {
        if let Some(reason) = missing(&["ip6tables"]) {
            skip(test, &reason);
            return None;
        }
        let ground = Self { clients: Net::new(test)?, middle: Net::new(test)?, servers: Net::new(test)? };
        ground.link(&ground.clients, "1");
        ground.link(&ground.servers, "2");
        let servers = ground.servers.name();
        for address in OTHERS {
            let ip = address.parse::<SocketAddr>().unwrap().ip().to_string();
            command(&["ip", "-n", servers, "addr", "add", &ip, "dev", "lo"]).unwrap();
        }
        for (network, via) in [("198.18.0.0/15", "10.2.0.2"), ("2001:2::/48", "fd02::2")] {
            command(&["ip", "-n", ground.middle.name(), "route", "add", network, "via", via]).unwrap();
        }
        Some(ground)
    }

    /// Joins a network to the middle, by which it reaches everything.
    fn link(&self, net: &Net, number: &str) {
        let (there, here) = (net.name(), self.middle.name());
        let link = format!("to-{number}");
        command(&[
            "ip", "link", "add", &link, "netns", here, "type", "veth", "peer", "name", "out", "netns", there,
        ])
        .unwrap();
        let (v4, v6) = (format!("10.{number}.0."), format!("fd0{number}::"));
        for (name, device, last) in [(here, link.as_str(), "1"), (there, "out", "2")] {
            for (address, flags) in
                [(format!("{v4}{last}/24"), &[][..]), (format!("{v6}{last}/64"), &["nodad"][..])]
            {
                let add = ["ip", "-n", name, "addr", "add", &address, "dev", device];
                command(&[&add[..], flags].concat()).unwrap();
            }
            command(&["ip", "-n", name, "link", "set", device, "up"]).unwrap();
        }
        for gateway in [format!("{v4}1"), format!("{v6}1")] {
            command(&["ip", "-n", there, "route", "add", "default", "via", &gateway]).unwrap();
        }
    }

    /// Runs a test on the machine in the middle, while servers answer with the addresses of both ends.
    fn run(&self, test: impl AsyncFnOnce() + Send) {
        self.servers.run(async || {
            let told = |mut stream: TcpStream| async move {
                let end = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
                let here = end(stream.local_addr().unwrap());
                let answer = format!("{here} {}", end(stream.peer_addr().unwrap()).ip());
                if matches!(stream.read(&mut [0]).await, Ok(1)) {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            };
            let _servers = Backend::serve_at("[::]:7000".parse().unwrap(), told).await;
            self.middle.run(test);
        });
    }

    /// A client asks: who has answered, and whom they have seen.
    fn ask(&self, address: &str) -> (String, String) {
        let mut answer = String::new();
        self.clients.run(async || {
            let mut stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
            stream.write_all(b"?").await.unwrap();
            soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
        });
        let (server, seen) = answer.split_once(' ').unwrap();
        (server.to_owned(), seen.to_owned())
    }

    /// A client is reset.
    fn is_refused(&self, address: &str) {
        let address = address.parse().unwrap();
        self.clients.run(async || assert!(is_reset(address).await, "{address}"));
    }
}

/// Both firewalls.
fn rules(rule: &[&str]) {
    for program in ["iptables", "ip6tables"] {
        command(&[&[program, "-w"], rule].concat()).unwrap();
    }
}

fn redirect() {
    rules(&[
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-i",
        "to-1",
        "-p",
        "tcp",
        "-j",
        "REDIRECT",
        "--to-ports",
        "15001",
    ]);
}

fn tproxy() {
    let to = ["--on-port", "15001", "--tproxy-mark", "1"];
    let rule = ["-t", "mangle", "-A", "PREROUTING", "-i", "to-1", "-p", "tcp", "-j", "TPROXY"];
    rules(&[&rule[..], &to[..]].concat());
    deliver_marked();
}

/// What carries the mark is for this machine, whatever its address.
fn deliver_marked() {
    for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        command(&["ip", family, "rule", "add", "fwmark", "1", "lookup", "100"]).unwrap();
        command(&["ip", family, "route", "add", "local", all, "dev", "lo", "table", "100"]).unwrap();
    }
}

fn setup(carrier: Carrier, tables: String) -> Setup {
    Setup::at([127, 0, 0, 1].into(), tables).carrier(carrier)
}

/// A listener of both families, with a route to a pool of each family, and one to the pool of the other.
fn tables(intercept: &str, client_source: bool) -> String {
    let mut text = String::new();
    for (family, endpoint) in ENDPOINTS.iter().enumerate() {
        text += &format!(
            "[[pool]]\nname = \"pg{family}\"\nclient_source = {client_source}\nconnect_timeout = \"2s\"\n\
             [[pool.endpoint]]\naddress = \"{endpoint}\"\ncloud = \"aws\"\n"
        );
    }
    text += &format!(
        "[[listener]]\nname = \"out\"\nbind = \"[::]:15001\"\nintercept = \"{intercept}\"\nas_asked = true\n"
    );
    for (family, service) in SERVICES.iter().enumerate() {
        text += &format!("[[listener.route]]\ndestination = [\"{service}\"]\npool = \"pg{family}\"\n");
    }
    text + "[[listener.route]]\ndestination = [\"198.18.0.11:5432\"]\npool = \"pg1\"\n"
}

/// Of both families: what a route is for reaches its endpoint, and all else whoever was asked.
async fn both_ways(ground: &Ground, proxy: &Proxy, source: Option<[&str; 2]>) {
    let ours = ["10.2.0.1", "fd02::1"];
    for family in 0..2 {
        let before = proxy.lines();
        let (server, seen) = ground.ask(SERVICES[family]);
        assert_eq!((server.as_str(), seen.as_str()), (ENDPOINTS[family], source.unwrap_or(ours)[family]));
        let line = line_to(proxy, before, SERVICES[family]).await;
        assert_eq!(line["pool"], format!("pg{family}"), "{line}");
        assert!(line["client"].as_str().unwrap().contains(CLIENTS[family]), "{line}");

        let before = proxy.lines();
        let (server, seen) = ground.ask(OTHERS[family]);
        assert_eq!((server.as_str(), seen.as_str()), (OTHERS[family], ours[family]), "as asked");
        let line = line_to(proxy, before, OTHERS[family]).await;
        assert_eq!((&line["endpoint"], &line["cause"]), (&OTHERS[family].into(), &"closed".into()), "{line}");
    }
}

/// The line of a session whose client asked for this address.
async fn line_to(proxy: &Proxy, before: usize, destination: &str) -> serde_json::Value {
    let line = proxy.line_from(before, destination, |line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line.get("destination")? == destination).then_some(line)
    });
    line.await
}

/// Who dials the listener itself, from outside or from here, is not connected to it once more.
async fn direct_is_refused(ground: &Ground, proxy: &Proxy) {
    for address in ["10.1.0.1:15001", "[fd01::1]:15001", "10.2.0.1:15001"] {
        let before = proxy.lines();
        ground.is_refused(address);
        was_a_loop(proxy, before).await;
    }
    for address in ["127.0.0.1:15001", "[::1]:15001", "10.1.0.1:15001"] {
        let before = proxy.lines();
        assert!(is_reset(address.parse().unwrap()).await, "{address}");
        was_a_loop(proxy, before).await;
    }
}

/// Waits until a session was refused that would have come back to the proxy.
async fn was_a_loop(proxy: &Proxy, before: usize) {
    let line = proxy.line_from(before, "a loop", |line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line.get("refused")? == "loop").then_some(line)
    });
    let line = line.await;
    assert_eq!((&line["side"], &line["cause"]), (&"proxy".into(), &"no_route".into()), "{line}");
}

#[test]
fn redirected_connections_reach_the_pool_of_their_destination_or_whom_they_asked_for() {
    for carrier in Carrier::ALL {
        let Some(ground) = Ground::new("redirected_connections_reach_the_pool") else { return };
        ground.run(async || {
            redirect();
            let proxy = Proxy::start(setup(carrier, tables("redirect", false))).await;
            both_ways(&ground, &proxy, None).await;
            direct_is_refused(&ground, &proxy).await;
        });
    }
}

#[test]
fn tproxied_connections_do_too_once_a_reload_has_made_the_listener_transparent() {
    for carrier in Carrier::ALL {
        let Some(ground) = Ground::new("tproxied_connections_do_too") else { return };
        ground.run(async || {
            tproxy();
            let proxy = Proxy::start(setup(carrier, tables("redirect", false))).await;
            proxy.reload(&proxy.setup().with(tables("tproxy", false)).text()).await;
            // Each worker sets it on its own socket, a moment later.
            let mut answered = 0;
            eventually_within(PATIENCE, "transparent sockets", async || {
                let mut reached = false;
                ground.clients.run(async || {
                    let dialled =
                        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(OTHERS[0]));
                    reached = dialled.await.is_ok_and(|dialled| dialled.is_ok());
                });
                answered = if reached { answered + 1 } else { 0 };
                (answered == 20).then_some(())
            })
            .await;
            let ended = async || proxy.metric("twinspan_sessions_active", &[]).await == 0;
            eventually_within(PATIENCE, "their end", async || ended().await.then_some(())).await;
            both_ways(&ground, &proxy, None).await;
            direct_is_refused(&ground, &proxy).await;
        });
    }
}

#[test]
fn endpoints_see_the_clients_own_address_where_the_pool_says_so() {
    for carrier in Carrier::ALL {
        for intercept in ["redirect", "tproxy"] {
            let Some(ground) = Ground::new("endpoints_see_the_clients_own_address") else { return };
            ground.run(async || {
                match intercept {
                    "tproxy" => tproxy(),
                    _ => {
                        redirect();
                        deliver_marked();
                    }
                }
                // What endpoints answer to clients is for us.
                let socket = ["-m", "socket", "--transparent", "-j", "MARK", "--set-mark", "1"];
                let rule = ["-t", "mangle", "-A", "PREROUTING", "-i", "to-2", "-p", "tcp"];
                rules(&[&rule[..], &socket[..]].concat());
                let proxy = Proxy::start(setup(carrier, tables(intercept, true))).await;
                both_ways(&ground, &proxy, Some(CLIENTS)).await;

                // An IPv4 client has no address towards an endpoint of IPv6.
                let before = proxy.lines();
                ground.is_refused("198.18.0.11:5432");
                let line = proxy.session_line(before).await;
                assert_eq!((&line["side"], &line["cause"]), (&"proxy".into(), &"local".into()), "{line}");
            });
        }
    }
}

#[test]
fn our_own_connections_that_a_rule_sends_back_are_refused_and_begin_no_others() {
    for carrier in Carrier::ALL {
        let Some(ground) = Ground::new("our_own_connections_that_a_rule_sends_back") else { return };
        ground.run(async || {
            // Without an exception for the proxy.
            rules(&[
                "-t",
                "nat",
                "-A",
                "OUTPUT",
                "-p",
                "tcp",
                "--dport",
                "7000",
                "-j",
                "REDIRECT",
                "--to-ports",
                "15001",
            ]);
            rules(&[
                "-t",
                "nat",
                "-A",
                "OUTPUT",
                "-p",
                "tcp",
                "--dport",
                "5432",
                "-j",
                "REDIRECT",
                "--to-ports",
                "15001",
            ]);
            let tables =
                tables("redirect", false).replace("[[pool.endpoint]]", "attempts = 1\n[[pool.endpoint]]");
            let proxy = Proxy::start(setup(carrier, tables)).await;
            let sessions = async || proxy.metric("twinspan_connections_accepted_total", &[]).await;
            let before = sessions().await;
            let mut dialled = 0;
            for _ in 0..10 {
                for address in OTHERS.iter().chain(&SERVICES) {
                    let lines = proxy.lines();
                    assert!(is_reset(address.parse().unwrap()).await, "{address}");
                    was_a_loop(&proxy, lines).await;
                    dialled += 1;
                }
            }
            let over = async || (sessions().await - before >= 2 * dialled).then_some(());
            eventually_within(PATIENCE, "every session", over).await;
            let begun = sessions().await;
            // Where a redirected connection has the source port of one before it that asked for another address, the
            // kernel gives it another port, by which it is not known: its session goes round once more.
            assert!(begun - before <= 2 * dialled + dialled / 4, "{}", begun - before);
            let ticks = proxy.ticks();
            // Nothing tells of a loop that goes on but the time it takes.
            sleep(Duration::from_secs(1)).await;
            let took = proxy.ticks() - ticks;
            assert!(took <= 10, "{took} ticks");
            assert_eq!(sessions().await, begun);
        });
    }
}

/// A program without these capabilities, which root has otherwise.
fn without(capabilities: &str, arguments: &[&str]) -> Vec<String> {
    let binary = binary().into_os_string().into_string().unwrap();
    let set = format!("--bounding-set={capabilities}");
    ["setpriv", &set, &binary].into_iter().chain(arguments.iter().copied()).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_takes_a_capability_says_which_one_and_does_not_start_without() {
    let test = "what_takes_a_capability";
    if let Some(reason) = missing(&["setpriv"]) {
        return skip(test, &reason);
    }
    if !rustix::process::geteuid().is_root() {
        return skip_on_this_machine(test, "needs root");
    }
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("twinspan.toml");
    let path = file.to_str().unwrap();
    let endpoint = place.free();
    let transparent = "takes CAP_NET_RAW or CAP_NET_ADMIN";
    for (listener, pool, words) in [
        ("intercept = \"tproxy\"", "", "cannot bind"),
        ("", "client_source = true", "cannot dial pool pg from the addresses of its clients"),
    ] {
        let bind = place.free();
        let tables = format!(
            "[[pool]]\nname = \"pg\"\n{pool}\n[[pool.endpoint]]\naddress = \"{endpoint}\"\ncloud = \"aws\"\n\
             [[listener]]\nbind = \"{bind}\"\npool = \"pg\"\n{listener}\n"
        );
        let setup = Setup::new(&place, tables);
        std::fs::write(&file, setup.text()).unwrap();
        let checked = |output: &crate::harness::Output| {
            assert_eq!(output.code, Some(0), "{output:?}");
            output.stderr.contains("TS1107") && output.stderr.contains(transparent)
        };
        let program = without("-net_admin,-net_raw", &["check", path]);
        assert!(checked(&run(&program[0], &program[1..]).await));
        let program = without("-net_admin,-net_raw", &["run", "-c", path]);
        let started = run(&program[0], &program[1..]).await;
        assert_eq!(started.code, Some(77), "{started:?}");
        assert!(started.stderr.contains(words) && started.stderr.contains("CAP_NET_RAW"), "{started:?}");
        for one in ["-net_admin", "-net_raw"] {
            let program = without(one, &["check", path]);
            assert!(!checked(&run(&program[0], &program[1..]).await), "{one}");
            let program = without(one, &["run", "-c", path]);
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]);
            drop(Process::start(command).listens(bind).await);
        }
    }
}
