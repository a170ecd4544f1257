//! Start and end of the process: what it refuses, what it says, how it leaves.

use std::time::Duration;

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::{Instant, timeout},
};

use crate::harness::{
    Backend, Ending, Place, Process, Proxy, Setup, ask, binary, connect, eventually, listener, missing, pool,
    read_out, run, skip, skip_on_this_machine, soon,
};

async fn greet(stream: &mut TcpStream) {
    stream.write_all(b"!").await.unwrap();
    soon("an echo", stream.read_exact(&mut [0])).await.unwrap();
}

fn serving(place: &Place, backend: &Backend) -> (Setup, std::net::SocketAddr) {
    let bind = place.free();
    let tables = pool("only", "", &[("aws", backend.address)]) + &listener(bind, "only", "");
    (Setup::new(place, tables), bind)
}

#[tokio::test]
async fn health_and_metrics_answer_as_their_readers_expect() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (setup, bind) = serving(&place, &backend);
    let proxy = Proxy::start(setup).await;
    let mut client = connect(bind).await;
    greet(&mut client).await;
    assert_eq!(proxy.get("/livez").await.unwrap().0, 200);
    assert_eq!(proxy.get("/readyz").await.unwrap().0, 200);
    let (status, page) = proxy.get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    assert!(page.ends_with("# EOF\n"), "{page}");
    assert_eq!(proxy.metric("twinspan_connections_accepted_total", &[]).await, 1);
    let status = proxy.status().await;
    assert_eq!(status["listeners"][0]["address"], bind.to_string(), "{status:#}");
    assert_eq!(status["pools"][0]["endpoints"][0]["verdict"], "up", "{status:#}");
}

#[tokio::test]
async fn sigterm_lets_sessions_finish_takes_no_new_ones_and_exits_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let backend = Backend::echo(&place).await;
        let (setup, bind) = serving(&place, &backend);
        let mut proxy = Proxy::start(setup.drain_timeout("60s")).await;
        let mut client = connect(bind).await;
        greet(&mut client).await;

        let start = Instant::now();
        proxy.signal(signal);
        eventually("not ready", async || (proxy.get("/readyz").await?.0 == 503).then_some(())).await;
        eventually("refused", async || TcpStream::connect(bind).await.is_err().then_some(())).await;
        assert_eq!(proxy.get("/livez").await.unwrap().0, 200);
        greet(&mut client).await;
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Clean));
        assert_eq!(proxy.end().await.code(), Some(0));
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "waited for the deadline with nothing to wait for"
        );
    }
}

#[tokio::test]
async fn at_the_drain_deadline_what_is_left_is_reset_and_the_exit_code_is_0() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (setup, bind) = serving(&place, &backend);
    let mut proxy = Proxy::start(setup.drain_timeout("2s")).await;
    let mut client = connect(bind).await;
    greet(&mut client).await;
    let before = proxy.lines();
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
    assert!(start.elapsed() > Duration::from_millis(1_900), "after {:?}", start.elapsed());
    assert_eq!(proxy.end().await.code(), Some(0));
    let line = proxy.session_line(before).await;
    assert_eq!((&line["side"], &line["cause"]), (&"operator".into(), &"shutdown".into()), "{line}");
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (setup, bind) = serving(&place, &backend);
    let mut proxy = Proxy::start(setup.drain_timeout("10m")).await;
    let mut client = connect(bind).await;
    greet(&mut client).await;
    proxy.signal(Signal::TERM);
    eventually("draining", async || (proxy.get("/readyz").await?.0 == 503).then_some(())).await;
    greet(&mut client).await;
    proxy.signal(Signal::TERM);
    proxy.end().await;
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
}

#[tokio::test]
async fn a_config_file_that_does_not_come_holds_up_no_stop() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let mut proxy = Proxy::start(serving(&place, &backend).0).await;
    let path = proxy.folder().join("twinspan.toml");
    std::fs::remove_file(&path).unwrap();
    let made = run("mkfifo", &[path.as_os_str()]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    proxy.signal(Signal::HUP);
    // Someone who opens the pipe to write comes through when there is a reader: the reload is under way.
    let opening = path.clone();
    let writer = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(opening));
    let _writer = soon("the reload", writer).await.unwrap().unwrap();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.end().await.code(), Some(0));
}

#[tokio::test]
async fn sigterm_after_sigquit_sets_the_deadline() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (setup, bind) = serving(&place, &backend);
    let mut proxy = Proxy::start(setup.drain_timeout("1s")).await;
    let mut client = connect(bind).await;
    greet(&mut client).await;
    proxy.signal(Signal::QUIT);
    eventually("draining", async || (proxy.get("/readyz").await?.0 == 503).then_some(())).await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
    assert!(start.elapsed() > Duration::from_millis(900), "after {:?}", start.elapsed());
    assert_eq!(proxy.end().await.code(), Some(0));
}

#[tokio::test]
async fn sigquit_after_sigterm_lifts_the_deadline_and_sighup_is_too_late() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (setup, bind) = serving(&place, &backend);
    let mut proxy = Proxy::start(setup.drain_timeout("2s")).await;
    let mut client = connect(bind).await;
    greet(&mut client).await;
    proxy.signal(Signal::TERM);
    eventually("draining", async || (proxy.get("/readyz").await?.0 == 503).then_some(())).await;
    let before = proxy.lines();
    proxy.signal(Signal::QUIT);
    proxy.line_from(before, "SIGQUIT", |line| line.contains("without a deadline").then_some(())).await;
    proxy.signal(Signal::HUP);
    proxy.line_from(before, "SIGHUP", |line| line.contains("is not read again").then_some(())).await;
    let early = timeout(Duration::from_secs(3), client.peek(&mut [0])).await;
    assert!(early.is_err(), "the deadline holds: {early:?}");
    greet(&mut client).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Clean));
    assert_eq!(proxy.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_config_that_cannot_be_served_is_refused_with_every_reason_and_code_78() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (mut setup, bind) = serving(&place, &backend);
    setup.tables += &format!("\n[[listener]]\nbnid = \"{bind}\"\npool = \"onyl\"\n");
    let mut proxy = Proxy::launch(setup);
    assert_eq!(proxy.end().await.code(), Some(78));
    let said = proxy.said();
    assert!(said.contains("`bind`"), "no hint in:\n{said}");
    assert!(said.contains("onyl"), "only the first problem in:\n{said}");
    assert!(said.contains("twinspan.toml:"), "no place in:\n{said}");
    let path = proxy.folder().join("twinspan.toml");
    let checked = run(binary(), &["check".as_ref(), path.as_os_str()]).await;
    assert_eq!(checked.code, Some(78), "{checked:?}");
}

#[tokio::test]
async fn a_config_file_that_is_not_there_is_named_and_the_code_is_78() {
    let output = run(binary(), &["run", "-c", "/nowhere/twinspan.toml"]).await;
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.stderr.contains("/nowhere/twinspan.toml"), "{output:?}");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_named_with_their_listener_and_the_code_is_78() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let (mut setup, _) = serving(&place, &backend);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("empty.pem").display().to_string();
    std::fs::write(&file, "").unwrap();
    setup.tables += &format!(
        "\n[[listener]]\nname = \"edge\"\nbind = \"{}\"\npool = \"only\"\n\
         tls.certificates = [{{ certificate = \"{file}\", key = \"{file}\" }}]\n",
        place.free()
    );
    let mut proxy = Proxy::launch(setup);
    assert_eq!(proxy.end().await.code(), Some(78));
    let said = proxy.said();
    assert!(said.contains(&format!("listener edge: {file}: is empty")), "{said}");
    assert!(said.contains("`twinspan check`"), "no advice in:\n{said}");
    let path = proxy.folder().join("twinspan.toml");
    let checked = run(binary(), &["check".as_ref(), path.as_os_str()]).await;
    assert_eq!(checked.code, Some(78), "{checked:?}");
    assert!(checked.stderr.contains("TS1024"), "{checked:?}");
}

#[tokio::test]
async fn a_port_in_use_is_named_and_the_code_is_1() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let tables = pool("only", "", &[("aws", place.free())]) + &listener(backend.address, "only", "");
    let mut proxy = Proxy::launch(Setup::new(&place, tables));
    assert_eq!(proxy.end().await.code(), Some(1));
    assert!(proxy.said().contains(&backend.address.to_string()), "{}", proxy.said());
}

#[tokio::test]
async fn a_port_that_takes_more_rights_is_named_and_the_code_is_77() {
    let name = "a_port_that_takes_more_rights";
    if let Some(reason) = missing(&["setpriv"]) {
        return skip(name, &reason);
    }
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim().parse::<u16>().unwrap() < 2 {
        return skip_on_this_machine(name, "here everyone may bind every port");
    }
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = std::net::SocketAddr::new(place.ip(), 1);
    let tables = pool("only", "", &[("aws", backend.address)]) + &listener(bind, "only", "");
    // A folder and a binary that an unprivileged user can read.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let open = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(folder.path());
    let config = folder.path().join("twinspan.toml");
    std::fs::write(&config, Setup::new(&place, tables).text()).unwrap();
    let program = folder.path().join("twinspan");
    std::fs::copy(binary(), &program).unwrap();
    open(&program);
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"])
            .arg(&program);
        command
    } else {
        Command::new(&program)
    };
    command.arg("run").arg("-c").arg(&config);
    let mut process = Process::start(command);
    assert_eq!(process.end().await.code(), Some(77), "{}", process.said());
    assert!(process.said().contains(&bind.to_string()), "{}", process.said());
}

#[tokio::test]
async fn asking_a_proxy_that_is_not_there_gives_code_69() {
    let place = Place::new();
    let nobody = place.free().to_string();
    let output = run(binary(), &["status", "--admin", &nobody]).await;
    assert_eq!(output.code, Some(69), "{output:?}");
    assert!(output.stderr.contains(&nobody), "{output:?}");
}

#[tokio::test]
async fn a_listener_on_port_0_tells_its_real_address() {
    let place = Place::new();
    let backend = Backend::echo(&place).await;
    let bind = std::net::SocketAddr::new(place.ip(), 0);
    let tables = pool("only", "", &[("aws", backend.address)]) + &listener(bind, "only", "");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    let status = proxy.status().await;
    let address = status["listeners"][0]["address"].as_str().unwrap().parse().unwrap();
    greet(&mut connect(address).await).await;
}

#[tokio::test]
async fn a_name_that_leads_to_the_admin_api_or_to_telemetry_is_no_endpoint() {
    let place = Place::new();
    let backend = Backend::named(&place, "aws1").await;
    let bind = place.free();
    let mut setup = Setup::new(&place, "");
    let std::net::IpAddr::V4(ip) = place.ip() else { panic!("{}", place.ip()) };
    // For the system's resolver, though not for the config, this is another way to write the address.
    let name = format!("{:#010x}", u32::from(ip));
    setup.tables = pool("only", "", &[("aws", backend.address)]);
    for port in [setup.admin.port(), setup.telemetry.port()] {
        setup.tables += &format!("[[pool.endpoint]]\naddress = \"{name}:{port}\"\ncloud = \"aws\"\n");
    }
    setup.tables += &listener(bind, "only", "");
    let proxy = Proxy::start(setup).await;
    for port in [proxy.setup().admin.port(), proxy.setup().telemetry.port()] {
        let address = format!("{ip}:{port}");
        let find = |line: &str| (line.contains(&name) && line.contains(&address)).then_some(());
        proxy.line("the name is left out", find).await;
    }
    let status = proxy.status().await;
    let endpoints = status["pools"][0]["endpoints"].as_array().unwrap();
    assert_eq!(endpoints.len(), 1, "{status:#}");
    for _ in 0..20 {
        assert_eq!(ask(bind).await.unwrap(), "aws1");
    }
}
