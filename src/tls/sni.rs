//! The certificate for a server name: exact names before wildcards, and the first certificate for everything else.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::names::Names;

/// Certificates that are for the same name, in the order of the file: one of each kind of key.
type Candidates = Vec<Arc<CertifiedKey>>;

/// The certificates of a listener by name.
#[derive(Debug, Default)]
pub(super) struct ByName {
    /// Names in full.
    exact: HashMap<String, Candidates>,
    /// `*.rest` by `.rest`.
    wildcard: HashMap<String, Candidates>,
    /// The first certificate, and those that are for all the names it is for.
    first: Candidates,
    first_names: Vec<String>,
}

impl ByName {
    pub(super) fn add(&mut self, key: &Arc<CertifiedKey>) {
        let mut names = key
            .end_entity_cert()
            .ok()
            .and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
            .map(|(_, parsed)| Names::of(&parsed).dns)
            .unwrap_or_default();
        names.sort();
        names.dedup();
        for name in &names {
            let candidates = match name.strip_prefix('*') {
                Some(rest) => self.wildcard.entry(rest.to_owned()),
                None => self.exact.entry(name.clone()),
            };
            candidates.or_default().push(Arc::clone(key));
        }
        if self.first.is_empty() {
            self.first_names = names;
            self.first.push(Arc::clone(key));
        } else if names == self.first_names {
            self.first.push(Arc::clone(key));
        }
    }

    /// True if a certificate is for this name, or for every name below one that begins with a dot.
    pub(super) fn is_for(&self, name: &str) -> bool {
        let below = |name: &str| self.wildcard.contains_key(name);
        let parent = name.find('.').and_then(|dot| name.get(dot..));
        self.exact.contains_key(name) || below(name) || (!name.starts_with('.') && parent.is_some_and(below))
    }

    fn candidates(&self, name: Option<&str>) -> &Candidates {
        let Some(name) = name else { return &self.first };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let wildcard = || {
            let (label, rest) = name.split_at_checked(name.find('.')?)?;
            if label.is_empty() { None } else { self.wildcard.get(rest) }
        };
        self.exact.get(&name).or_else(wildcard).unwrap_or(&self.first)
    }

    /// The first one whose key the client can check, else the first one.
    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let candidates = self.candidates(name);
        candidates
            .iter()
            .find(|key| key.key.choose_scheme(schemes).is_some())
            .or_else(|| candidates.first())
            .cloned()
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}
