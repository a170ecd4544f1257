//! What is told of a certificate: its names, its time, its number.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;

use super::{
    Error,
    names::{Names, shown},
};

/// What `status` and the metrics tell of a certificate that we show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The file it is in, or the address of the SPIFFE Workload API that gave it.
    pub file: PathBuf,
    /// Names that it is for (SAN), else the common name: the first 16, escaped, each at most 253 characters long.
    pub names: Vec<String>,
    /// The start of its time, in seconds since 1970.
    pub not_before: i64,
    /// The end of its time, in seconds since 1970.
    pub not_after: i64,
    /// Its serial number, in hexadecimal digits with colons.
    pub serial: String,
}

/// Whether a certificate is in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Its time has not come.
    NotYet,
    /// It is.
    Current,
    /// Its time is over.
    Expired,
}

/// Names that are told of one certificate.
const NAMES: usize = 16;

/// A serial number has at most 20 octets (RFC 5280 section 4.1.2.2).
const SERIAL: usize = 20 * 3;

impl Shown {
    /// Whether it is in its time at `now`, in seconds since 1970.
    #[must_use]
    pub const fn validity(&self, now: i64) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now > self.not_after {
            Validity::Expired
        } else {
            Validity::Current
        }
    }

    pub(super) fn of(file: &Path, certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| Error::file(file, format!("certificate 1 cannot be read: {error}")))?;
        let mut names = Names::of(&parsed).everything();
        if names.is_empty() {
            let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names = common.map(shown).collect();
        }
        names.truncate(NAMES);
        Ok(Self {
            file: file.to_owned(),
            names,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            serial: parsed.raw_serial_as_string().chars().take(SERIAL).collect(),
        })
    }
}
