//! Two clouds on loopback addresses of a network of their own: endpoints that are processes, and what happens to them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::process::Signal;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use super::plan::{Fault, Kind, Step};
use crate::harness::{Process, command};

/// The clouds.
pub(super) const CLOUDS: [&str; 2] = ["aws", "gcp"];

/// The endpoints, cloud by cloud; what each answers.
pub(super) const NAMES: [&str; 4] = ["aws-1", "aws-2", "gcp-1", "gcp-2"];

/// What a probe looks for in an answer.
pub(super) const COMMON: &str = "-";

/// Endpoints of a cloud.
pub(super) const PER_CLOUD: usize = NAMES.len() / CLOUDS.len();

/// Seconds that an endpoint thinks about a request: long enough that some are under way whenever one dies.
const THINKS: &str = "0.01";

/// Where the proxies are.
pub(super) const EDGE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where they accept.
pub(super) const BIND: SocketAddr = SocketAddr::new(EDGE, 5000);

/// The endpoint's cloud.
pub(super) const fn cloud_of(endpoint: usize) -> usize {
    endpoint / PER_CLOUD
}

/// Where the endpoint listens.
pub(super) fn address(endpoint: usize) -> SocketAddr {
    let last = 11 + u8::try_from(cloud_of(endpoint)).unwrap();
    let port = 7001 + u16::try_from(endpoint % PER_CLOUD).unwrap();
    SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), port)
}

/// The endpoint with this name.
pub(super) fn named(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

/// The endpoint at this address.
pub(super) fn at(text: &str) -> Option<usize> {
    (0..NAMES.len()).find(|endpoint| address(*endpoint).to_string() == text)
}

/// Where an endpoint listens that no proxy knows and no fault strikes: how long it takes is what the machine takes.
pub(super) const WITNESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 13)), 7001);

/// Running endpoints.
#[derive(Debug)]
pub(super) struct Endpoints {
    processes: Vec<Process>,
    _witness: Process,
}

impl Endpoints {
    /// Starts all of them.
    pub(super) async fn start() -> Self {
        // Many short sessions with few addresses.
        command(&["sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=10000 65000"]).unwrap();
        let mut processes = Vec::new();
        for endpoint in 0..NAMES.len() {
            processes.push(start(endpoint).await);
        }
        Self { processes, _witness: start_at(WITNESS, NAMES[0]).await }
    }

    /// Plays one fault from its beginning to its end.
    pub(super) async fn suffer(&mut self, number: usize, step: Step) -> Fault {
        sleep(step.pause).await;
        let begun = Instant::now();
        self.strike(step).await;
        sleep(step.lasts).await;
        let healing = Instant::now();
        self.heal(step).await;
        Fault { number, step, begun, healing, healed: Instant::now() }
    }

    async fn strike(&mut self, step: Step) {
        for endpoint in step.targets() {
            match step.kind {
                Kind::Kill => self.processes[endpoint].signal(Signal::KILL),
                Kind::Stop => self.processes[endpoint].signal(Signal::STOP),
                _ => {}
            }
        }
        if step.kind == Kind::Kill {
            for endpoint in step.targets() {
                self.processes[endpoint].end().await;
            }
        }
        firewall("-A", step);
    }

    async fn heal(&mut self, step: Step) {
        firewall("-D", step);
        for endpoint in step.targets() {
            match step.kind {
                Kind::Kill => self.processes[endpoint] = start(endpoint).await,
                Kind::Stop => self.processes[endpoint].signal(Signal::CONT),
                _ => {}
            }
        }
    }
}

async fn start(endpoint: usize) -> Process {
    start_at(address(endpoint), NAMES[endpoint]).await
}

async fn start_at(address: SocketAddr, name: &str) -> Process {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/backend.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(address.ip().to_string()).arg(address.port().to_string());
    command.arg(name).arg(THINKS);
    let process = Process::start(command);
    process.line("ready", |line| (line == "ready").then_some(())).await;
    process
}

/// Adds or removes the rules of this fault.
fn firewall(action: &str, step: Step) {
    let (to, from, verdict): (_, _, &[&str]) = match step.kind {
        Kind::Kill | Kind::Stop => return,
        Kind::Drop => (true, true, &["DROP"]),
        Kind::DropRequests => (true, false, &["DROP"]),
        Kind::DropAnswers => (false, true, &["DROP"]),
        Kind::Reset => (true, false, &["REJECT", "--reject-with", "tcp-reset"]),
        Kind::Unreachable => (true, false, &["REJECT", "--reject-with", "icmp-host-unreachable"]),
    };
    let whom = address(step.endpoint.unwrap_or(step.cloud * PER_CLOUD));
    let (host, port) = (whom.ip().to_string(), whom.port().to_string());
    for (wanted, side, side_port) in [(to, "-d", "--dport"), (from, "-s", "--sport")] {
        if wanted {
            let packets = ["iptables", "-w", action, "INPUT", "-p", "tcp", side, &host];
            let of_one: &[&str] = if step.endpoint.is_some() { &[side_port, &port] } else { &[] };
            command(&[&packets[..], of_one, &["-j"], verdict].concat()).unwrap();
        }
    }
}
