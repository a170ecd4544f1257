//! What a SPIFFE Workload API says: who we are (an X.509-SVID), and whom each trust domain vouches for (bundles).

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use rustls::{
    InconsistentKeys, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};

use super::{Error, Shown, names, provider};
use crate::config::NamePattern;

/// An identity, and the authorities of each trust domain.
#[derive(Clone)]
pub struct Workload {
    shown: Shown,
    domain: String,
    key: Arc<CertifiedKey>,
    bundles: BTreeMap<String, Bundle>,
}

/// The authorities of a trust domain; at least one.
#[derive(Clone)]
struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl Workload {
    /// Takes what the Workload API at `from` has said: our chain with its key, and the authorities of trust domains by
    /// their names. A trust domain without any vouches for nobody.
    ///
    /// # Errors
    ///
    /// If the chain or an authority cannot be read, the key does not belong to the chain, the leaf is no X.509-SVID, or
    /// its own trust domain has no authority.
    pub fn new(
        from: &str,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundles: Vec<(String, Vec<CertificateDer<'static>>)>,
    ) -> Result<Self, Error> {
        let wrong = |what: String| Error::Workload(format!("{from}: {what}"));
        let leaf = chain.first().ok_or_else(|| wrong("the identity has no certificate".to_owned()))?;
        let shown = Shown::of(Path::new(from), leaf)?;
        let (_, domain) =
            names::svid(leaf).map_err(|refused| wrong(format!("our own identity: {refused}")))?;
        let loaded = provider().key_provider.load_private_key(key);
        let key = loaded.map_err(|_| wrong("our private key is of a kind that is not known".to_owned()))?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(error) => {
                return Err(wrong(format!("our private key is not that of our certificate: {error}")));
            }
        }
        let mut known = BTreeMap::new();
        for (domain, certificates) in bundles.into_iter().filter(|(_, certificates)| !certificates.is_empty())
        {
            let mut roots = RootCertStore::empty();
            for certificate in &certificates {
                roots.add(certificate.clone()).map_err(|error| {
                    wrong(format!("an authority of {} cannot be one: {error}", names::shown(&domain)))
                })?;
            }
            known.insert(domain, Bundle { certificates, roots: Arc::new(roots) });
        }
        if !known.contains_key(&domain) {
            return Err(wrong(format!("our own trust domain {domain} has no authority")));
        }
        Ok(Self { shown, domain, key: Arc::new(key), bundles: known })
    }

    /// Our certificate.
    #[must_use]
    pub const fn shown(&self) -> &Shown {
        &self.shown
    }

    pub(super) const fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Our own trust domain.
    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    /// The patterns of settings; without any, every id of our own trust domain.
    pub(super) fn names(&self, patterns: &[NamePattern]) -> Vec<NamePattern> {
        if patterns.is_empty() {
            vec![NamePattern::SpiffeBelow(format!("spiffe://{}/", self.domain))]
        } else {
            patterns.to_vec()
        }
    }

    /// The authorities of each trust domain.
    pub(super) fn roots(&self) -> BTreeMap<String, Arc<RootCertStore>> {
        self.bundles.iter().map(|(domain, bundle)| (domain.clone(), Arc::clone(&bundle.roots))).collect()
    }

    /// Their certificates.
    pub(super) fn authorities(&self) -> Vec<(String, Vec<CertificateDer<'static>>)> {
        self.bundles.iter().map(|(domain, bundle)| (domain.clone(), bundle.certificates.clone())).collect()
    }
}

/// The same chain has the same key.
impl PartialEq for Workload {
    fn eq(&self, other: &Self) -> bool {
        self.shown.file == other.shown.file
            && self.key.cert == other.key.cert
            && self.authorities() == other.authorities()
    }
}

/// Without the key.
impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains: Vec<_> = self.bundles.keys().collect();
        f.debug_struct("Workload")
            .field("shown", &self.shown)
            .field("domains", &domains)
            .finish_non_exhaustive()
    }
}
