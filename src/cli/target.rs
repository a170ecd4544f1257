//! Which proxy a question goes to: the address that was given, or the one that a config file has.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use super::client::{NotATarget, Target};
use crate::config::{self, AdminBind, Refused};

/// One of the two places where a proxy answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The admin API.
    Admin,
    /// Health and metrics.
    Telemetry,
}

/// Why it is not known whom to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    /// The address is none.
    #[error("{option} {text}: {reason}")]
    Address {
        /// Where it was given.
        option: &'static str,
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: NotATarget,
    },
    /// The file cannot be served.
    #[error("{0}")]
    Config(Refused),
    /// The file turns it off.
    #[error("{file}: `[{table}] bind` is \"off\": nothing there could answer")]
    Off {
        /// The file.
        file: String,
        /// The table.
        table: &'static str,
    },
    /// The file leaves the port to the system.
    #[error(
        "{file}: `[{table}] bind` has port 0: the log of the proxy says which port it got; give it with --{table}"
    )]
    AnyPort {
        /// The file.
        file: String,
        /// The table.
        table: &'static str,
    },
}

impl Door {
    const fn table(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Telemetry => "telemetry",
        }
    }

    /// Reads an address that was given.
    pub(super) fn parse(option: &'static str, text: &str) -> Result<Target, TargetError> {
        text.parse().map_err(|reason| TargetError::Address { option, text: text.to_owned(), reason })
    }

    /// Where the proxy of this config file answers, as seen from this machine.
    pub(super) fn of_file(self, path: &Path) -> Result<Target, TargetError> {
        let config = config::load(path).map_err(TargetError::Config)?.config;
        let (file, table) = (path.display().to_string(), self.table());
        let address = match self {
            Self::Telemetry => config.telemetry.bind,
            Self::Admin => match config.admin.bind {
                AdminBind::Off => None,
                AdminBind::Tcp(address) => Some(address),
                AdminBind::Unix(socket) => return Ok(Target::Unix(socket)),
            },
        };
        match address {
            None => Err(TargetError::Off { file, table }),
            Some(address) if address.port() == 0 => Err(TargetError::AnyPort { file, table }),
            Some(address) => Ok(Target::Tcp(nearby(address).to_string())),
        }
    }
}

/// What listens at every address is asked over loopback.
fn nearby(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(door: Door, text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, format!("version = 1\n{text}")).unwrap();
        match door.of_file(&path) {
            Ok(target) => target.to_string(),
            Err(error) => error.to_string().replace(&path.display().to_string(), "x.toml"),
        }
    }

    #[test]
    fn the_address_is_the_one_of_the_file() {
        assert_eq!(told(Door::Admin, ""), "127.0.0.1:9797");
        assert_eq!(told(Door::Telemetry, ""), "127.0.0.1:9798");
        assert_eq!(told(Door::Admin, "admin.bind = \"unix:/run/x.sock\""), "unix:/run/x.sock");
        assert_eq!(told(Door::Telemetry, "telemetry.bind = \"0.0.0.0:7\""), "127.0.0.1:7");
        assert_eq!(told(Door::Telemetry, "telemetry.bind = \"[::]:7\""), "[::1]:7");
    }

    #[test]
    fn a_file_without_an_address_is_told_as_such() {
        let off = told(Door::Telemetry, "telemetry.bind = \"off\"");
        assert_eq!(off, "x.toml: `[telemetry] bind` is \"off\": nothing there could answer");
        assert!(told(Door::Admin, "admin.bind = \"off\"").contains("`[admin] bind` is \"off\""));
        assert!(told(Door::Telemetry, "telemetry.bind = \"127.0.0.1:0\"").contains("--telemetry"));
        assert!(told(Door::Admin, "admni = 1").starts_with("x.toml:2:1: "));
    }
}
