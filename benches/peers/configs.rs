//! The configs. Every proxy gets what it needs to do the same work and nothing that its users would not have; twinspan
//! gets what a default install has switched on.

use std::{net::SocketAddr, path::Path};

use crate::tls::NAME;

/// What a config is made from.
pub(crate) struct Setting<'a> {
    /// Where the proxy listens.
    pub(crate) listen: SocketAddr,
    /// Where it tells how it is, if it does.
    pub(crate) health: SocketAddr,
    pub(crate) target: SocketAddr,
    pub(crate) front: Front,
    /// For its files.
    pub(crate) dir: &'a Path,
    pub(crate) workers: u32,
    /// Sessions that must fit at once.
    pub(crate) sessions: u64,
}

/// What the listener of a proxy does besides accepting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Plain,
    /// TLS ends there, with the files in `dir`.
    Tls,
    /// The server name of a ClientHello says where it goes.
    Named,
}

/// The name of the pool in configs of twinspan.
pub(crate) const POOL: &str = "p";

/// `engine`: whether sessions are carried in the event loop of our own, as by default, or by tokio.
pub(crate) fn twinspan(setting: &Setting<'_>, engine: bool) -> String {
    ours(setting, engine, "", "[pool.health.tcp]\ninterval = \"1s\"")
}

/// Without what watches over sessions as they connect.
pub(crate) fn twinspan_plain(setting: &Setting<'_>) -> String {
    ours(setting, true, "hedge = false\nejection.enabled = false", "[pool.health.tcp]\ninterval = \"1s\"")
}

/// With an endpoint in a second cloud that gets nothing while the target is up. Nothing is probed, so that nobody but us has
/// opinions about it, and when it comes back it is at once all there: steps would be generations that nobody has asked for.
pub(crate) fn twinspan_with_spare(setting: &Setting<'_>, engine: bool, spare: SocketAddr) -> String {
    let second = format!("[[pool.endpoint]]\naddress = \"{spare}\"\ncloud = \"gcp\"\n\n[cloud.gcp]");
    ours(setting, engine, "order = [\"aws\", \"gcp\"]\nslow_start = \"0s\"", &second)
}

/// `keys` belong to the pool, `more` to what follows its endpoint.
fn ours(setting: &Setting<'_>, engine: bool, keys: &str, more: &str) -> String {
    let Setting { listen, health, target, workers, .. } = setting;
    let dir = setting.dir.display();
    let front = match setting.front {
        Front::Plain => format!("pool = \"{POOL}\""),
        Front::Tls => format!(
            "pool = \"{POOL}\"\ntls.certificates = [{{ certificate = \"{dir}/cert.pem\", key = \"{dir}/key.pem\" }}]"
        ),
        Front::Named => format!("[[listener.route]]\nsni = [\"{NAME}\"]\npool = \"{POOL}\""),
    };
    format!(
        r#"version = 1
workers = {workers}
engine = {engine}

[log]
sessions = "all"
file = "{}"

[admin]
bind = "off"

[telemetry]
bind = "{health}"

[cloud.aws]

[[pool]]
name = "{POOL}"
{keys}

[[pool.endpoint]]
address = "{target}"
cloud = "aws"

{more}

[[listener]]
bind = "{listen}"
{front}
"#,
        setting.dir.join("sessions.log").display()
    )
}

/// `option`: what is added to the defaults.
pub(crate) fn haproxy(setting: &Setting<'_>, option: &str) -> String {
    let Setting { listen, target, workers, .. } = setting;
    let (sessions, dir) = (setting.sessions + 64, setting.dir.display());
    let front = match setting.front {
        Front::Plain => format!("bind {listen}"),
        Front::Tls => format!("bind {listen} ssl crt {dir}/both.pem"),
        Front::Named => format!(
            "bind {listen}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }} {{ req.ssl_sni -i {NAME} }}
    tcp-request content reject"
        ),
    };
    format!(
        "global
    nbthread {workers}
    maxconn {sessions}
    maxpipes 64

defaults
    mode tcp
    {option}
    timeout connect 5s
    timeout client 1m
    timeout server 1m

listen p
    {front}
    server s {target} check inter 1s
"
    )
}

pub(crate) fn nginx(setting: &Setting<'_>) -> String {
    let Setting { listen, target, workers, .. } = setting;
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if module.is_file() { format!("load_module {};", module.display()) } else { String::new() };
    let (connections, dir) = (setting.sessions * 2 + 128, setting.dir.display());
    // As its documentation advises for several workers: a socket each, or one worker takes most connections.
    let reuseport = if *workers > 1 { " reuseport" } else { "" };
    let (map, ssl, keys, pass) = match setting.front {
        Front::Plain => (String::new(), "", String::new(), target.to_string()),
        Front::Tls => (
            String::new(),
            " ssl",
            format!(
                "ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;"
            ),
            target.to_string(),
        ),
        Front::Named => (
            format!("map $ssl_preread_server_name $named {{ {NAME} {target}; }}"),
            "",
            "ssl_preread on;".to_owned(),
            "$named".to_owned(),
        ),
    };
    format!(
        "{load}
daemon off;
worker_processes {workers};
pid {dir}/pid;
error_log {dir}/error.log error;
events {{
    worker_connections {connections};
}}
stream {{
    {map}
    server {{
        listen {listen}{ssl} backlog=4096{reuseport};
        {keys}
        proxy_pass {pass};
        proxy_timeout 1m;
    }}
}}
"
    )
}

/// Its workers are an argument.
pub(crate) fn envoy(setting: &Setting<'_>) -> String {
    let address = |of: SocketAddr| {
        format!("{{ socket_address: {{ address: {}, port_value: {} }} }}", of.ip(), of.port())
    };
    let (listen, target) = (address(setting.listen), address(setting.target));
    format!(
        r#"static_resources:
  listeners:
  - name: p
    address: {listen}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: p
          cluster: p
  clusters:
  - name: p
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000 }}] }}
    health_checks:
    - {{ timeout: 1s, interval: 1s, unhealthy_threshold: 3, healthy_threshold: 2, tcp_health_check: {{}} }}
    load_assignment:
      cluster_name: p
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {target} }}
"#
    )
}
