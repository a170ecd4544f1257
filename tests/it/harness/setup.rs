//! Config files, put together from a few words.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use super::Place;

/// What carries plain sessions in the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The engine, as by default.
    #[default]
    Engine,
    /// Tokio.
    Tokio,
}

impl Carrier {
    /// Every one.
    pub(crate) const ALL: [Self; 2] = [Self::Engine, Self::Tokio];
}

/// Makes two tests of each function named: `on_engine::NAME` and `on_tokio::NAME` call it with the carrier.
macro_rules! on_both_carriers {
    (#[$test:meta] $($name:ident),+ $(,)?) => {
        mod on_engine {
            $(#[$test] async fn $name() { super::$name($crate::harness::Carrier::Engine).await; })+
        }
        mod on_tokio {
            $(#[$test] async fn $name() { super::$name($crate::harness::Carrier::Tokio).await; })+
        }
    };
}
pub(crate) use on_both_carriers;

/// A config file to be. The operator's addresses stand on the test's own place.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Where `status` asks.
    pub(crate) admin: SocketAddr,
    /// Where health and metrics are.
    pub(crate) telemetry: SocketAddr,
    /// How long a drain may take.
    pub(crate) drain_timeout: &'static str,
    /// What carries plain sessions.
    pub(crate) carrier: Carrier,
    /// How many workers, unless the proxy decides.
    pub(crate) workers: Option<usize>,
    /// The shape of its log.
    pub(crate) format: &'static str,
    /// Pools and listeners, and clouds that have settings.
    pub(crate) tables: String,
}

impl Setup {
    /// A config with these tables.
    pub(crate) fn new(place: &Place, tables: impl Into<String>) -> Self {
        Self {
            admin: place.free(),
            telemetry: place.free(),
            drain_timeout: "5s",
            carrier: Carrier::default(),
            workers: Some(2),
            format: "json",
            tables: tables.into(),
        }
    }

    /// A config with these tables, in a network of its own: its operator's addresses are the ports 5001 and 5002 of this one.
    pub(crate) fn at(address: IpAddr, tables: impl Into<String>) -> Self {
        Self {
            admin: SocketAddr::new(address, 5001),
            telemetry: SocketAddr::new(address, 5002),
            drain_timeout: "1s",
            carrier: Carrier::default(),
            workers: Some(2),
            format: "json",
            tables: tables.into(),
        }
    }

    /// The same over this carrier.
    pub(crate) fn carrier(mut self, carrier: Carrier) -> Self {
        self.carrier = carrier;
        self
    }

    /// The same with so many workers, or as many as the proxy likes.
    pub(crate) fn workers(mut self, workers: Option<usize>) -> Self {
        self.workers = workers;
        self
    }

    /// The same with a log of plain text.
    pub(crate) fn in_text(mut self) -> Self {
        self.format = "text";
        self
    }

    /// The same with another drain deadline.
    pub(crate) fn drain_timeout(mut self, timeout: &'static str) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// The same with other tables: what a reload finds.
    pub(crate) fn with(&self, tables: impl Into<String>) -> Self {
        Self { tables: tables.into(), ..self.clone() }
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        let mut clouds = String::new();
        for cloud in ["aws", "gcp"] {
            let named = self.tables.contains(&format!("cloud = \"{cloud}\""));
            if named && !self.tables.contains(&format!("[cloud.{cloud}]")) {
                writeln!(clouds, "[cloud.{cloud}]").unwrap();
            }
        }
        format!(
            r#"version = 1
{}engine = {}
drain_timeout = "{}"

[log]
level = "info"
format = "{}"
sessions = "all"

[admin]
bind = "{}"

[telemetry]
bind = "{}"

{clouds}
{}"#,
            self.workers.map(|workers| format!("workers = {workers}\n")).unwrap_or_default(),
            self.carrier == Carrier::Engine,
            self.drain_timeout,
            self.format,
            self.admin,
            self.telemetry,
            self.tables
        )
    }
}

/// A `[[pool]]`: its settings (keys first, then tables such as `[pool.health.tcp]`) and its endpoints.
pub(crate) fn pool(name: &str, settings: &str, endpoints: &[(&str, SocketAddr)]) -> String {
    let mut text = format!("[[pool]]\nname = \"{name}\"\n{settings}\n");
    for (cloud, address) in endpoints {
        write!(text, "[[pool.endpoint]]\naddress = \"{address}\"\ncloud = \"{cloud}\"\n").unwrap();
    }
    text
}

/// A `[[listener]]` named `main`, or by its address where there are several.
pub(crate) fn listener(bind: SocketAddr, pool: &str, settings: &str) -> String {
    format!("[[listener]]\nname = \"at-{}\"\nbind = \"{bind}\"\npool = \"{pool}\"\n{settings}\n", bind.port())
}
