//! TLS settings that fit together. Whether the files are there and right is found out by who serves: `check` on another
//! machine does not have them.

use std::{ops::Range, path::PathBuf};

use super::{
    super::{
        Authority, ClientCertificates, ClientTrust, Identity, KeyPair, ListenerTls, PoolTls, TlsVersion,
        defaults,
        file::{self, CertificateTable, ListenerTlsTable, PoolTlsTable},
        keys::Key,
        problem::{Code, Problem},
        values::FilePath,
        words::ClientWord,
    },
    Build,
    edge::list,
    place,
};

impl Build<'_> {
    /// TLS that ends at this listener. `None` only where a problem was told.
    pub(super) fn listener_tls(&mut self, listener: &file::Listener) -> Option<ListenerTls> {
        let table = listener.tls.get()?;
        let clients = self.client_certificates(table);
        let certificates = self.certificates(listener, table);
        Some(ListenerTls {
            certificates: certificates?,
            min_version: table.min_version.get().map_or(TlsVersion::V12, |word| word.0),
            alpn: list(&table.alpn, |protocol| protocol.0.clone()),
            clients: clients?,
            tickets: table.tickets.get().map_or(Some(defaults::TICKET_LIFETIME), |tickets| tickets.0),
        })
    }

    /// Never empty.
    fn certificates(&mut self, listener: &file::Listener, table: &ListenerTlsTable) -> Option<Vec<Identity>> {
        if has(&table.spiffe) {
            let beside = self.beside(&table.spiffe, "certificates", &table.certificates);
            return (!beside).then(|| vec![Identity::Spiffe]);
        }
        let at = place(listener.tls.span());
        if table.certificates.get().is_none() && !self.sifted.lost(at.start, "certificates") {
            self.tell(
                Problem::at(Code::MissingKey, at, "`certificates` is missing in [listener.tls]").hint(
                    "add `certificates = [{ certificate = \"server.pem\", key = \"server.key\" }]`, or `spiffe = true`"
                        .to_owned(),
                ),
            );
        }
        let pairs = list(&table.certificates, pair).into_iter().collect::<Option<Vec<_>>>();
        // Without one, that was told already.
        let pairs = pairs.filter(|all| !all.is_empty())?;
        Some(pairs.into_iter().map(Identity::Files).collect())
    }

    fn client_certificates(&mut self, table: &ListenerTlsTable) -> Option<ClientCertificates> {
        let spiffe = has(&table.spiffe);
        let usual = if spiffe { ClientWord::Required } else { ClientWord::Off };
        let word = table.client_certificates.get().map_or(usual, |word| word.0);
        if spiffe {
            let other_names = self.has_other_names(&table.client_names);
            if self.beside(&table.spiffe, "client_ca", &table.client_ca) || other_names {
                return None;
            }
        }
        if word == ClientWord::Off {
            self.idle(
                &table.client_ca,
                "`client_ca` without `client_certificates`",
                "no client is asked for one",
            );
            self.idle(
                &table.client_names,
                "`client_names` without `client_certificates`",
                "no client is asked for one",
            );
            return Some(ClientCertificates::Off);
        }
        let file = path(&table.client_ca).map(Authority::File);
        let Some(ca) = file.or_else(|| spiffe.then_some(Authority::Spiffe)) else {
            self.tell(
                Problem::at(
                    Code::Edge,
                    place(table.client_certificates.span()),
                    "client certificates without an authority",
                )
                .label("whose certificates are right?")
                .hint("add `client_ca = \"clients.pem\"`".to_owned()),
            );
            return None;
        };
        let trust = ClientTrust { ca, names: list(&table.client_names, |name| name.0.clone()) };
        Some(match word {
            ClientWord::Required => ClientCertificates::Required(trust),
            ClientWord::Off | ClientWord::Optional => ClientCertificates::Optional(trust),
        })
    }

    /// TLS towards this pool's endpoints. `None` only where a problem was told.
    pub(super) fn pool_tls(&mut self, table: &PoolTlsTable) -> Option<PoolTls> {
        if has(&table.spiffe) {
            return self.spiffe_pool(table);
        }
        let identity = match (path(&table.certificate), path(&table.key)) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Identity::Files(KeyPair { certificate, key })),
            (Some(_), None) => return self.half_a_pair(table.certificate.span(), "key"),
            (None, Some(_)) => return self.half_a_pair(table.key.span(), "certificate"),
        };
        Some(made(table, path(&table.ca).map(Authority::File), identity))
    }

    fn spiffe_pool(&mut self, table: &PoolTlsTable) -> Option<PoolTls> {
        let beside = [("ca", &table.ca), ("certificate", &table.certificate), ("key", &table.key)];
        let beside = beside.map(|(name, key)| self.beside(&table.spiffe, name, key)).contains(&true);
        if self.has_other_names(&table.names) || beside {
            return None;
        }
        Some(made(table, Some(Authority::Spiffe), Some(Identity::Spiffe)))
    }

    fn half_a_pair<T>(&mut self, at: Option<Range<usize>>, missing: &str) -> Option<T> {
        self.tell(
            Problem::at(
                Code::Edge,
                place(at),
                format!("a certificate and its key are both needed: `{missing}` is missing"),
            )
            .label("one half of a pair")
            .hint(format!("add `{missing}`")),
        );
        None
    }
}

fn made(table: &PoolTlsTable, ca: Option<Authority>, identity: Option<Identity>) -> PoolTls {
    PoolTls {
        ca,
        server_name: table.server_name.get().map(|name| name.0.clone()),
        names: list(&table.names, |name| name.0.clone()),
        identity,
        min_version: table.min_version.get().map_or(TlsVersion::V12, |word| word.0),
        alpn: list(&table.alpn, |protocol| protocol.0.clone()),
    }
}

fn has(spiffe: &Key<bool>) -> bool {
    spiffe.get() == Some(&true)
}

fn pair(table: &CertificateTable) -> Option<KeyPair> {
    Some(KeyPair { certificate: path(&table.certificate)?, key: path(&table.key)? })
}

fn path(key: &Key<FilePath>) -> Option<PathBuf> {
    key.get().map(|path| path.0.clone())
}
