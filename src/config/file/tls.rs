//! TLS as it is written in the file: where it ends at a listener, and where it begins towards a pool.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::{
    TlsVersion, defaults,
    keys::{Items, Key},
    values::{AlpnText, FilePath, NameRuleText, ServerNameText, TicketsText, time_text},
    words::{ClientWord, Vocabulary as _, Word},
};

/// TLS that ends at a listener. Files are read at the start and at each reload, and looked at every second: a new
/// certificate is used for the next handshake, one that cannot be used is told of and changes nothing.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ListenerTlsTable {
    /// Take the certificate and its key from the SPIFFE Workload API (`[spiffe]`), and judge those of clients by its trust
    /// bundles: in place of `certificates` and `client_ca`.
    #[schemars(extend("default" = false))]
    pub(in crate::config) spiffe: Key<bool>,

    /// Certificates with their keys. A client is shown the one that is for the name it asks for; the first one if none is.
    #[schemars(extend("minItems" = 1, "x-default" = "none: needed without `spiffe`", "examples" = [[{"certificate": "server.pem", "key": "server.key"}]]))]
    pub(in crate::config) certificates: Key<Items<CertificateTable>>,

    /// The oldest version: `"1.2"` or `"1.3"`. Older ones are broken.
    #[schemars(extend("default" = TlsVersion::V12.word()))]
    pub(in crate::config) min_version: Key<Word<TlsVersion>>,

    /// The protocols that are offered (ALPN), best first, such as `["h2", "http/1.1"]`. By default ALPN is not answered.
    #[schemars(extend("x-default" = "none"))]
    pub(in crate::config) alpn: Key<Items<AlpnText>>,

    /// Whether clients show certificates: `off`, `optional` (one that is shown must be right) or `required`.
    #[schemars(extend("x-default" = "`off`; with `spiffe`, `required`"))]
    pub(in crate::config) client_certificates: Key<Word<ClientWord>>,

    /// The authorities whose certificates clients may show, PEM.
    #[schemars(extend("x-default" = "none: needed with `client_certificates`, unless there is `spiffe`"))]
    pub(in crate::config) client_ca: Key<FilePath>,

    /// Names of which the client's certificate must have one: `"app.example.com"`, `"*.example.com"`,
    /// `"spiffe://example.org/ns/prod/*"`. With `spiffe` they are SPIFFE ids, and those of other trust domains than our own
    /// must be named here.
    #[schemars(extend("x-default" = "every certificate of the authorities will do; with `spiffe`, every id of our own trust domain"))]
    pub(in crate::config) client_names: Key<Items<NameRuleText>>,

    /// How long a ticket is good, at most, with which a client resumes a session: a minute to 12 hours; `"off"` for no
    /// resumption. Its key is used for half of that, and forgotten with the last ticket. The keys are made here, never
    /// leave the memory, and are shared with no other listener.
    #[schemars(extend("default" = time_text(defaults::TICKET_LIFETIME)))]
    pub(in crate::config) tickets: Key<TicketsText>,
}

/// A certificate and its key: at least one of them, unless there is `spiffe`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["certificate", "key"]))]
pub(in crate::config) struct CertificateTable {
    /// The certificate, and after it those of the authorities up to the root, PEM.
    #[schemars(extend("examples" = ["server.pem"]))]
    pub(in crate::config) certificate: Key<FilePath>,

    /// Its private key, PEM, not encrypted.
    #[schemars(extend("examples" = ["server.key"]))]
    pub(in crate::config) key: Key<FilePath>,
}

/// TLS towards the endpoints of a pool: an endpoint whose certificate is not right has failed, as one that refuses the
/// connection has, and is never spoken to without TLS. `[pool.tls]` alone is enough.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct PoolTlsTable {
    /// Show what the SPIFFE Workload API (`[spiffe]`) gives us, and judge endpoints by its trust bundles and by their SPIFFE
    /// ids (`names`), not by their host names: in place of `ca`, `certificate` and `key`.
    #[schemars(extend("default" = false))]
    pub(in crate::config) spiffe: Key<bool>,

    /// The authorities that are believed, PEM.
    #[schemars(extend("x-default" = "those of the system"))]
    pub(in crate::config) ca: Key<FilePath>,

    /// The name that is asked for (SNI), and that the certificate must be for unless there are `names` or `spiffe`.
    #[schemars(extend("x-default" = "the host name of the endpoint, or its IP address"))]
    pub(in crate::config) server_name: Key<ServerNameText>,

    /// Names of which the certificate must have one, in place of the name that is asked for: `"spiffe://example.org/db"`.
    /// With `spiffe` they are SPIFFE ids, and those of other trust domains than our own must be named here.
    #[schemars(extend("x-default" = "the name that is asked for; with `spiffe`, every id of our own trust domain"))]
    pub(in crate::config) names: Key<Items<NameRuleText>>,

    /// The certificate that is shown to endpoints that ask for one, PEM.
    #[schemars(extend("x-default" = "none"))]
    pub(in crate::config) certificate: Key<FilePath>,

    /// Its private key, PEM, not encrypted.
    #[schemars(extend("x-default" = "none: needed with `certificate`"))]
    pub(in crate::config) key: Key<FilePath>,

    /// The oldest version: `"1.2"` or `"1.3"`.
    #[schemars(extend("default" = TlsVersion::V12.word()))]
    pub(in crate::config) min_version: Key<Word<TlsVersion>>,

    /// The protocols that are asked for (ALPN), best first. By default the one that the client and the listener have
    /// agreed on, so that an endpoint does not speak another one.
    #[schemars(extend("x-default" = "what the client has agreed on"))]
    pub(in crate::config) alpn: Key<Items<AlpnText>>,
}
