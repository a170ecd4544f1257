//! Outages: what goes wrong when, in which world. Those of the scoreboard, and any number of random ones.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use twinspan::config::{Config, parse};

use crate::network::Fault;

/// Clients come from here on: the first probes have ended.
pub(crate) const OPENING: Duration = Duration::from_secs(2);

/// The clouds, the preferred one first, and how far they are.
pub(crate) const CLOUDS: [(&str, Duration); 3] = [
    ("aws", Duration::from_millis(10)),
    ("gcp", Duration::from_millis(30)),
    ("azure", Duration::from_millis(80)),
];

/// A world and what happens in it.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    /// Endpoints in each cloud.
    pub(crate) clouds: Vec<usize>,
    /// New sessions a second.
    pub(crate) rate: f64,
    pub(crate) length: Duration,
    pub(crate) steps: Vec<Step>,
    /// Figures are kept apart from these times on; the first is zero.
    pub(crate) phases: Vec<(Duration, &'static str)>,
    pub(crate) knobs: Knobs,
}

/// From `at` on, these endpoints are so.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) at: Duration,
    pub(crate) whom: Vec<usize>,
    pub(crate) fault: Fault,
}

/// What the config says that differs between worlds.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    /// Shares in place of an order.
    pub(crate) weighted: bool,
    pub(crate) balance: &'static str,
    pub(crate) when_all_down: &'static str,
    pub(crate) interval: Duration,
    /// Time between probes once one has failed, and the time each has; none: as usual.
    pub(crate) hasty: Option<(Duration, Duration)>,
    pub(crate) rise: u32,
    pub(crate) fall: u32,
    pub(crate) slow_start: Duration,
    /// Probes want an answer, not only a connection.
    pub(crate) answering: bool,
    /// Endpoints are given by names.
    pub(crate) names: bool,
    /// The first byte is watched.
    pub(crate) first_byte: Option<Duration>,
    /// Whether a session without one moves on.
    pub(crate) replay: &'static str,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            weighted: false,
            balance: "least-sessions",
            when_all_down: "try_anyway",
            interval: Duration::from_secs(1),
            hasty: None,
            rise: 2,
            fall: 3,
            slow_start: Duration::from_secs(10),
            answering: false,
            names: false,
            first_byte: None,
            replay: "off",
        }
    }
}

impl Scenario {
    /// Two clouds of four endpoints each, an order of clouds, a minute of 50 new sessions a second.
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            clouds: vec![4, 4],
            rate: 50.0,
            length: secs(60.0),
            steps: Vec::new(),
            phases: vec![(Duration::ZERO, "")],
            knobs: Knobs::default(),
        }
    }

    /// From `from` to `to` seconds these endpoints are so.
    fn with(mut self, fault: Fault, whom: impl IntoIterator<Item = usize>, from: f64, to: f64) -> Self {
        let whom: Vec<usize> = whom.into_iter().collect();
        self.steps.push(Step { at: secs(from), whom: whom.clone(), fault });
        self.steps.push(Step { at: secs(to), whom, fault: Fault::None });
        self
    }

    /// From `from` to `to` seconds these endpoints are so for half of each period.
    fn flapping(
        mut self,
        fault: Fault,
        whom: impl IntoIterator<Item = usize>,
        (from, to): (f64, f64),
        period: f64,
    ) -> Self {
        let whom: Vec<usize> = whom.into_iter().collect();
        let mut at = from;
        while at < to {
            self = self.with(fault, whom.iter().copied(), at, (at + period / 2.0).min(to));
            at += period;
        }
        self
    }

    /// The endpoints of a cloud, as they are numbered.
    pub(crate) fn cloud(&self, cloud: usize) -> std::ops::Range<usize> {
        let first = self.clouds.iter().take(cloud).sum();
        first..first + self.clouds[cloud]
    }

    /// The cloud of an endpoint.
    pub(crate) fn cloud_of(&self, endpoint: usize) -> usize {
        (0..self.clouds.len()).find(|cloud| self.cloud(*cloud).contains(&endpoint)).unwrap()
    }

    /// The address of an endpoint.
    pub(crate) fn address(&self, endpoint: usize) -> std::net::SocketAddr {
        let cloud = u8::try_from(self.cloud_of(endpoint)).unwrap();
        (([10, cloud, 0, u8::try_from(endpoint + 1).unwrap()]), 5432).into()
    }

    /// The name of an endpoint.
    pub(crate) fn host(endpoint: usize) -> String {
        format!("e{endpoint}.test")
    }

    /// The config, as an operator would write it.
    pub(crate) fn config(&self) -> Arc<Config> {
        let mut text = String::from("version = 1\n");
        let names = || CLOUDS.iter().take(self.clouds.len()).map(|(name, _)| *name);
        names().for_each(|name| writeln!(text, "[cloud.{name}]").unwrap());
        let Knobs { balance, when_all_down, interval, rise, fall, slow_start, answering, .. } = &self.knobs;
        let policy = if self.knobs.weighted {
            let shares: Vec<_> = names().map(|name| format!("{name} = 1")).collect();
            format!("policy = \"weighted\"\nweights = {{ {} }}", shares.join(", "))
        } else {
            let order: Vec<_> = names().map(|name| format!("\"{name}\"")).collect();
            format!("policy = \"failover\"\norder = [{}]", order.join(", "))
        };
        let mut watch = String::new();
        if let Some(time) = self.knobs.first_byte {
            writeln!(watch, "first_byte_timeout = \"{}ms\"", time.as_millis()).unwrap();
        }
        writeln!(watch, "replay = \"{}\"", self.knobs.replay).unwrap();
        let mut answer = String::new();
        if let Some((fast, timeout)) = self.knobs.hasty {
            let (fast, timeout) = (fast.as_millis(), timeout.as_millis());
            writeln!(answer, "fast_interval = \"{fast}ms\"\ntimeout = \"{timeout}ms\"").unwrap();
        }
        if *answering {
            answer.push_str("send = \"PING\\r\\n\"\nexpect = \"+PONG\"\n");
        }
        let (interval, slow_start) = (interval.as_millis(), slow_start.as_millis());
        write!(
            text,
            "[[pool]]\nname = \"p\"\n{policy}\nbalance = \"{balance}\"\nwhen_all_down = \"{when_all_down}\"\n\
             slow_start = \"{slow_start}ms\"\n{watch}\
             [pool.health.tcp]\ninterval = \"{interval}ms\"\nrise = {rise}\nfall = {fall}\n{answer}"
        )
        .unwrap();
        for endpoint in 0..self.clouds.iter().sum() {
            let address = if self.knobs.names {
                format!("{}:5432", Self::host(endpoint))
            } else {
                self.address(endpoint).to_string()
            };
            let cloud = CLOUDS[self.cloud_of(endpoint)].0;
            write!(text, "[[pool.endpoint]]\naddress = \"{address}\"\ncloud = \"{cloud}\"\n").unwrap();
        }
        text.push_str("[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:5000\"\npool = \"p\"\n");
        let loaded = parse(&text, "simulation").unwrap_or_else(|refused| panic!("{refused}\n{text}"));
        Arc::new(loaded.config)
    }
}

/// A time in seconds.
fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// The outages of the scoreboard.
pub(crate) fn board() -> Vec<Scenario> {
    let mut all = vec![Scenario::new("nothing happens")];
    let dead = [
        ("killed", Fault::Refuse),
        ("rejected", Fault::Reject),
        ("black hole", Fault::Blackhole),
        ("one way cut", Fault::OneWay),
        ("stopped", Fault::Stopped),
    ];
    for (name, fault) in dead {
        for (part, whom) in [("one endpoint", 0..1), ("half a cloud", 0..2), ("a cloud", 0..4)] {
            all.push(Scenario::new(&format!("{part}: {name}")).with(fault, whom, 10.0, 40.0));
        }
    }
    let mut asked =
        Scenario::new("a cloud: stopped, probes want an answer").with(Fault::Stopped, 0..4, 10.0, 40.0);
    asked.knobs.answering = true;
    all.push(asked);
    for (part, whom) in [("one endpoint", 0..1), ("a cloud", 0..4)] {
        let mut watched = Scenario::new(&format!("{part}: stopped, first byte watched"));
        watched.knobs.first_byte = Some(secs(1.0));
        let mut moving = watched.clone();
        moving.name.push_str(", sessions move on");
        moving.knobs.replay = "until_first_byte";
        all.push(watched.with(Fault::Stopped, whom.clone(), 10.0, 40.0));
        all.push(moving.with(Fault::Stopped, whom, 10.0, 40.0));
    }
    let slow = Fault::Slow(Duration::from_millis(400));
    all.push(Scenario::new("a cloud: 10 to 400 ms").with(slow, 0..4, 10.0, 40.0));
    all.push(Scenario::new("a cloud: 3 % loss").with(Fault::Loss(0.03), 0..4, 10.0, 40.0));
    for period in [0.1, 0.3, 1.0, 3.0, 10.0, 30.0] {
        let flaps = Scenario::new(&format!("a cloud: rejects, every {period} s"));
        all.push(flaps.flapping(Fault::Reject, 0..4, (10.0, 55.0), period));
    }
    all.push(Scenario::new("one endpoint: flaps, every 1 s").flapping(
        Fault::Refuse,
        0..1,
        (10.0, 55.0),
        1.0,
    ));
    for (part, whom) in [("a cloud", 0..4), ("everywhere", 0..8)] {
        let alternating = Scenario::new(&format!("{part}: checks alternate every 5 s, traffic fine"));
        all.push(alternating.flapping(Fault::Unchecked, whom, (10.0, 55.0), 10.0));
    }
    all.push(Scenario::new("a cloud: checks dead, traffic fine").with(Fault::Unchecked, 0..4, 10.0, 40.0));
    all.push(Scenario::new("everywhere: checks dead, traffic fine").with(Fault::Unchecked, 0..8, 10.0, 40.0));
    all.push(
        Scenario::new("checks dead in one cloud, the other truly dead")
            .with(Fault::Unchecked, 0..4, 10.0, 50.0)
            .with(Fault::Blackhole, 4..8, 20.0, 40.0),
    );
    all.push(Scenario::new("both clouds: killed and back").with(Fault::Refuse, 0..8, 10.0, 30.0));
    all.push(Scenario::new("both clouds: black hole and back").with(Fault::Blackhole, 0..8, 10.0, 30.0));
    let mut three = Scenario::new("three clouds: one after the other");
    three.clouds = vec![3, 3, 3];
    all.push(three.with(Fault::Blackhole, 0..3, 10.0, 50.0).with(Fault::Blackhole, 3..6, 20.0, 40.0));
    let mut two = Scenario::new("three clouds: two rejected at once");
    two.clouds = vec![3, 3, 3];
    all.push(two.with(Fault::Reject, 0..6, 10.0, 40.0));
    all.push(october());
    all
}

/// 20 October 2025 (AWS post-event summary 101925), in the world of a pool whose endpoints are names.
fn october() -> Scenario {
    let mut day = Scenario::new("20 October");
    day.length = secs(240.0);
    day.knobs.names = true;
    day.phases = vec![
        (Duration::ZERO, "names empty"),
        (secs(30.0), "checks alternate"),
        (secs(100.0), "the cloud dies"),
        (secs(160.0), "it returns"),
    ];
    // A name without addresses is no change; the simulation sends none.
    day.flapping(Fault::Unchecked, 0..4, (30.0, 90.0), 2.0).with(Fault::Blackhole, 0..4, 100.0, 160.0)
}

/// Any outage.
pub(crate) fn random(seed: u64) -> Scenario {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut scenario = Scenario::new(&format!("random, seed {seed}"));
    scenario.clouds = (0..rng.random_range(2..=3)).map(|_| rng.random_range(1..=5)).collect();
    scenario.rate = rng.random_range(10.0..50.0);
    scenario.length = secs(rng.random_range(12.0..24.0));
    scenario.knobs = Knobs {
        weighted: rng.random(),
        balance: ["least-sessions", "least-latency", "round-robin", "random"][rng.random_range(0..4)],
        when_all_down: if rng.random() { "try_anyway" } else { "refuse" },
        interval: Duration::from_millis(rng.random_range(100..2000)),
        hasty: None,
        rise: rng.random_range(1..5),
        fall: rng.random_range(1..5),
        slow_start: Duration::from_millis(rng.random_range(0..8000)),
        answering: rng.random(),
        names: rng.random_bool(0.2),
        first_byte: rng.random_bool(0.3).then(|| Duration::from_millis(rng.random_range(500..3000))),
        replay: if rng.random_bool(0.3) { "until_first_byte" } else { "off" },
    };
    for _ in 0..rng.random_range(1..6) {
        let (fault, whom) = (any_fault(&mut rng), anyone(&scenario, &mut rng));
        let from = rng.random_range(2.0..scenario.length.as_secs_f64());
        let to = from + rng.random_range(0.1..15.0);
        scenario = if rng.random_bool(0.3) {
            let period = rng.random_range(0.1..5.0);
            scenario.flapping(fault, whom, (from, to), period)
        } else {
            scenario.with(fault, whom, from, to)
        };
    }
    scenario
}

/// Faults that take turns between two clouds: when one of them fails, the other has only just come back.
pub(crate) fn alternating(seed: u64) -> Scenario {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut scenario = Scenario::new(&format!("alternating, seed {seed}"));
    scenario.clouds = vec![rng.random_range(2..=4), rng.random_range(2..=4)];
    scenario.rate = rng.random_range(50.0..200.0);
    scenario.knobs.weighted = true;
    scenario.knobs.interval = secs(0.5);
    scenario.knobs.hasty = Some((secs(0.1), secs(0.3)));
    scenario.knobs.answering = true;
    let kinds = [Fault::Refuse, Fault::Reject, Fault::Blackhole, Fault::OneWay, Fault::Stopped];
    let (mut at, first) = (4.0, rng.random_range(0..2));
    for number in 0..rng.random_range(5..16) {
        let fault = kinds[rng.random_range(0..kinds.len())];
        let cloud = scenario.cloud((first + number) % 2);
        let one = cloud.start + rng.random_range(0..cloud.len());
        let whom = if rng.random() { cloud } else { one..one + 1 };
        let to = at + rng.random_range(0.3..if fault.is_silent() { 3.0 } else { 1.5 });
        scenario = scenario.with(fault, whom, at, to);
        at = to + rng.random_range(0.2..1.0);
    }
    scenario.length = secs(at + 1.0);
    scenario
}

fn any_fault(rng: &mut impl Rng) -> Fault {
    match rng.random_range(0..8) {
        0 => Fault::Refuse,
        1 => Fault::Reject,
        2 => Fault::Blackhole,
        3 => Fault::OneWay,
        4 => Fault::Stopped,
        5 => Fault::Slow(Duration::from_millis(rng.random_range(50..900))),
        6 => Fault::Loss(rng.random_range(0.01..0.3)),
        _ => Fault::Unchecked,
    }
}

fn anyone(scenario: &Scenario, rng: &mut impl Rng) -> Vec<usize> {
    let all: usize = scenario.clouds.iter().sum();
    let cloud = scenario.cloud(rng.random_range(0..scenario.clouds.len()));
    match rng.random_range(0..5) {
        0 => vec![rng.random_range(0..all)],
        // Everything but one cloud.
        3 => (0..all).filter(|endpoint| !cloud.contains(endpoint)).collect(),
        1 => cloud.clone().take(cloud.len().div_ceil(2)).collect(),
        2 => cloud.collect(),
        _ => (0..all).collect(),
    }
}
