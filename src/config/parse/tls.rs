//! TLS settings that fit together. Whether the files are there and right is found out by who serves: `check` on another
//! machine does not have them.

use std::{ops::Range, path::PathBuf};

use super::{
    super::{
        ClientCertificates, ClientTrust, KeyPair, ListenerTls, PoolTls, TlsVersion, defaults,
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
        let certificates = list(&table.certificates, pair).into_iter().collect::<Option<Vec<_>>>();
        Some(ListenerTls {
            // Without one, that was told already.
            certificates: certificates.filter(|all| !all.is_empty())?,
            min_version: table.min_version.get().map_or(TlsVersion::V12, |word| word.0),
            alpn: list(&table.alpn, |protocol| protocol.0.clone()),
            clients: clients?,
            tickets: table.tickets.get().map_or(Some(defaults::TICKET_LIFETIME), |tickets| tickets.0),
        })
    }

    fn client_certificates(&mut self, table: &ListenerTlsTable) -> Option<ClientCertificates> {
        let word = table.client_certificates.get().map_or(ClientWord::Off, |word| word.0);
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
        let Some(ca) = path(&table.client_ca) else {
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
        let identity = match (path(&table.certificate), path(&table.key)) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(KeyPair { certificate, key }),
            (Some(_), None) => return self.half_a_pair(table.certificate.span(), "key"),
            (None, Some(_)) => return self.half_a_pair(table.key.span(), "certificate"),
        };
        Some(PoolTls {
            ca: path(&table.ca),
            server_name: table.server_name.get().map(|name| name.0.clone()),
            names: list(&table.names, |name| name.0.clone()),
            identity,
            min_version: table.min_version.get().map_or(TlsVersion::V12, |word| word.0),
            alpn: list(&table.alpn, |protocol| protocol.0.clone()),
        })
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

fn pair(table: &CertificateTable) -> Option<KeyPair> {
    Some(KeyPair { certificate: path(&table.certificate)?, key: path(&table.key)? })
}

fn path(key: &Key<FilePath>) -> Option<PathBuf> {
    key.get().map(|path| path.0.clone())
}
