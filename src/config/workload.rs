//! Where the SPIFFE Workload API is asked.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The address of a SPIFFE Workload API (SPIFFE Workload Endpoint, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadApi {
    /// A unix socket: `unix:///run/spire/agent/public/api.sock`.
    Unix(PathBuf),
    /// An address, without TLS: `tcp://127.0.0.1:8000`.
    Tcp(SocketAddr),
}

impl WorkloadApi {
    /// The variable that names it where the config does not.
    pub const VARIABLE: &'static str = "SPIFFE_ENDPOINT_SOCKET";

    /// Reads an address.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what to write instead.
    pub fn read(text: &str) -> Result<Self, (String, &'static str)> {
        let refuse = |what: &str, hint| Err((format!("`{text}` {what}"), hint));
        if let Some(rest) = text.strip_prefix("tcp:") {
            return match rest.strip_prefix("//").unwrap_or(rest).parse::<SocketAddr>() {
                Ok(address) if address.port() > 0 => Ok(Self::Tcp(address)),
                _ => refuse("is not an IP address and a port", "write \"tcp://127.0.0.1:8000\""),
            };
        }
        let Some(rest) = text.strip_prefix("unix:") else {
            let hint = if text.starts_with('/') { "write \"unix://\" before it" } else { UNIX };
            return refuse("is no address of a Workload API: it begins with neither unix: nor tcp:", hint);
        };
        let path = rest.strip_prefix("//").unwrap_or(rest);
        if !path.starts_with('/') || path.ends_with('/') {
            return refuse("names no absolute path of a socket", UNIX);
        }
        // Parts of a URI that must not be there; a NUL is in no path.
        if path.contains(['?', '#', '\0']) {
            return refuse("has more than a path", UNIX);
        }
        if path.len() > LONGEST {
            return refuse("is longer than the 107 bytes that a socket's path may have", UNIX);
        }
        Ok(Self::Unix(PathBuf::from(path)))
    }

    /// The socket in the file system, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

const UNIX: &str = "write \"unix:///run/spire/agent/public/api.sock\"";

/// The longest path of a socket in bytes, unix(7).
const LONGEST: usize = 107;

impl fmt::Display for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_standard_writes_them() {
        let unix = |path: &str| Ok(WorkloadApi::Unix(path.into()));
        assert_eq!(WorkloadApi::read("unix:///run/spire/api.sock"), unix("/run/spire/api.sock"));
        assert_eq!(WorkloadApi::read("unix:/run/spire/api.sock"), unix("/run/spire/api.sock"));
        let tcp = |address: &str| Ok(WorkloadApi::Tcp(address.parse().unwrap()));
        assert_eq!(WorkloadApi::read("tcp://127.0.0.1:8000"), tcp("127.0.0.1:8000"));
        assert_eq!(WorkloadApi::read("tcp:127.0.0.1:8000"), tcp("127.0.0.1:8000"));
        assert_eq!(WorkloadApi::read("tcp://[::1]:8000"), tcp("[::1]:8000"));
        for text in ["unix:///a/b.sock", "tcp://[::1]:8000"] {
            assert_eq!(WorkloadApi::read(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        let long = format!("unix:///{}", "x".repeat(107));
        for text in [
            "",
            "/run/api.sock",
            "run/api.sock",
            "unix:",
            "unix://",
            "unix:///",
            "unix:api.sock",
            "unix://host/api.sock",
            "unix:///a?b",
            "unix:///a#b",
            "unix:///a\0b",
            long.as_str(),
            "tcp://localhost:8000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:8000/x",
            "http://127.0.0.1:8000",
        ] {
            assert!(WorkloadApi::read(text).is_err(), "{text}");
        }
    }
}
