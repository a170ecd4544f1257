//! TLS settings made of the operator's files, or of what a SPIFFE Workload API says: certificates, keys, trust, tickets.
//!
//! [`server`] is for listeners, [`client`] for pools. What they make is a crate's configuration and facts about the
//! certificates in it; [`why`] says in words what went wrong in a handshake.

mod client;
mod clients;
mod endpoints;
mod facts;
mod files;
mod names;
mod server;
mod sni;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tickets;
mod why;
mod workload;

pub use client::{Client, client, client_with};
pub use facts::{Shown, Validity};
pub use files::{files_of_listener, files_of_pool};
pub use names::common_name;
pub use server::{Server, server, server_with};
pub use why::{Negotiated, negotiated, recheck, version_word, why, why_io};
pub use workload::Workload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{SupportedProtocolVersion, crypto::CryptoProvider};

use crate::config::TlsVersion;

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A file is missing, or is not what it must be.
    #[error("{}: {what}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A key does not belong to its certificate.
    #[error("{}: the key does not belong to the certificate in {}{hint}", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What may be the reason, from a colon on, or nothing.
        hint: &'static str,
    },
    /// The system has no certificates of authorities.
    #[error("the system's certificates of authorities cannot be read ({0}): name a file with `ca`")]
    NoSystemRoots(String),
    /// This is neither a host name nor an address.
    #[error("{0} is neither a host name nor an IP address")]
    Name(String),
    /// The SPIFFE Workload API does not answer, or says something that cannot be used.
    #[error("{0}")]
    Workload(String),
    /// The library refuses the settings.
    #[error("these TLS settings cannot be used: {0}")]
    Settings(rustls::Error),
}

impl Error {
    /// Settings that take something from a Workload API where none is asked.
    fn no_workload() -> Self {
        Self::Workload("no SPIFFE Workload API is asked".to_owned())
    }

    fn file(file: &Path, what: impl Into<String>) -> Self {
        Self::File { file: file.to_owned(), what: what.into() }
    }
}

/// The one provider of cryptography: aws-lc-rs, which prefers X25519MLKEM768 for the key exchange.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The versions that are spoken, from the oldest allowed one on.
fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match oldest {
        TlsVersion::V12 => ALL,
        TlsVersion::V13 => NEWEST,
    }
}

static ALL: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
static NEWEST: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Protocol names as the library wants them.
fn alpn(names: &[String]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.as_bytes().to_vec()).collect()
}
