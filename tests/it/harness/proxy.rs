//! The proxy as its operator sees it: a process with a config file, signals, a log, `status` and `/metrics`.

use std::{net::SocketAddr, ops::Deref, path::PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};

use super::{Carrier, Place, Process, Setup, binary, eventually, listener, pool, run, soon};

/// A proxy that was started. Everything a [`Process`] can do, it can.
#[derive(Debug)]
pub(crate) struct Proxy {
    process: Process,
    setup: Setup,
    folder: TempDir,
}

impl Deref for Proxy {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Proxy {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::launch(setup).ready().await
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(mut self) -> Self {
        let proxy = &mut self;
        eventually("readiness", async || {
            proxy.process.lives().await;
            (proxy.get("/readyz").await?.0 == 200).then_some(())
        })
        .await;
        self
    }

    /// Starts it and waits for nothing.
    pub(crate) fn launch(setup: Setup) -> Self {
        Self::launch_as(Command::new(binary()), setup)
    }

    /// The same for another binary, or with another environment.
    pub(crate) fn launch_as(mut command: Command, setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("twinspan.toml");
        std::fs::write(&config, setup.text()).unwrap();
        command.arg("run").arg("-c").arg(&config).current_dir(folder.path());
        for variable in ["TWINSPAN_CONFIG", "TWINSPAN_ADMIN", "TWINSPAN_LOG"] {
            command.env_remove(variable);
        }
        Self { process: Process::start(command), setup, folder }
    }

    /// One pool with one endpoint and no probes, and one listener with these settings: the proxy and where it accepts.
    pub(crate) async fn before(place: &Place, endpoint: SocketAddr, settings: &str) -> (Self, SocketAddr) {
        Self::before_on(Carrier::default(), place, endpoint, settings).await
    }

    /// The same over this carrier.
    pub(crate) async fn before_on(
        carrier: Carrier,
        place: &Place,
        endpoint: SocketAddr,
        settings: &str,
    ) -> (Self, SocketAddr) {
        let bind = place.free();
        let tables = pool("only", "", &[("aws", endpoint)]) + &listener(bind, "only", settings);
        (Self::start(Setup::new(place, tables).carrier(carrier)).await, bind)
    }

    /// The config in its file.
    pub(crate) fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Puts another text in the place of the config file, at once and whole.
    pub(crate) fn replace_config(&self, text: &str) {
        let new = self.folder.path().join("new.toml");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.folder.path().join("twinspan.toml")).unwrap();
    }

    /// Puts another config in force, or not: waits until the reload has been tried.
    pub(crate) async fn reload(&self, text: &str) {
        let before = self.reloads().await;
        self.replace_config(text);
        self.signal(Signal::HUP);
        eventually("the outcome of a reload", async || (self.reloads().await > before).then_some(())).await;
    }

    /// Reloads that were tried.
    pub(crate) async fn reloads(&self) -> u64 {
        self.metric("twinspan_config_reloads_total", &[]).await
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> std::process::ExitStatus {
        self.process.end().await
    }

    /// A folder that lives as long as the proxy.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Asks the telemetry listener: status and body. `None` if it does not answer.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        soon(path, ask_http(self.setup.telemetry, path)).await
    }

    /// The sum over all series of a metric that carry these labels, rounded.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let (status, page) = self.get("/metrics").await.unwrap();
        assert_eq!(status, 200, "{page}");
        let wanted: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let sum: f64 = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| wanted.iter().all(|label| line.contains(label.as_str())))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .fold(0.0, std::ops::Add::add);
        format!("{sum:.0}").parse().unwrap()
    }

    /// What `twinspan status` says.
    pub(crate) async fn status(&self) -> serde_json::Value {
        let admin = self.setup.admin.to_string();
        let output = run(binary(), &["status", "--admin", &admin, "--output", "json"]).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        serde_json::from_str(&output.stdout).unwrap()
    }

    /// What `status` says of an endpoint.
    async fn endpoint(&self, address: SocketAddr) -> serde_json::Value {
        let status = self.status().await;
        let pools = status["pools"].as_array().unwrap().iter();
        let mut endpoints = pools.flat_map(|pool| pool["endpoints"].as_array().unwrap());
        let found = endpoints.find(|endpoint| endpoint["address"] == address.to_string());
        found.unwrap_or_else(|| panic!("no {address} in {status:#}")).clone()
    }

    /// The verdict about an endpoint.
    pub(crate) async fn verdict(&self, address: SocketAddr) -> String {
        self.endpoint(address).await["verdict"].as_str().unwrap().to_owned()
    }

    /// Waits until every one of these endpoints is up and in use: what sessions have found bad is not at once, though its
    /// probes are good.
    pub(crate) async fn uses(&self, addresses: &[SocketAddr]) {
        self.judges(addresses, "up").await;
        for address in addresses {
            let used = async || (self.endpoint(*address).await["in_use"] == true).then_some(());
            eventually(format!("{address} in use"), used).await;
        }
    }

    /// Waits for a verdict about every one of these endpoints.
    pub(crate) async fn judges(&self, addresses: &[SocketAddr], verdict: &str) {
        for address in addresses {
            eventually(format!("{address} {verdict}"), async || {
                (self.verdict(*address).await == verdict).then_some(())
            })
            .await;
        }
    }

    /// The next session line after the first `start` lines of the log.
    pub(crate) async fn session_line(&self, start: usize) -> serde_json::Value {
        self.line_from(start, "a session's end", |line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            value.get("cause").is_some().then_some(value)
        })
        .await
    }
}

/// Asks with HTTP: status and body. `None` if nobody answers.
pub(crate) async fn ask_http(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
