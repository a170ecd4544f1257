//! Values that are written as text. One function reads each kind: the check of the file and the making of the config
//! cannot disagree.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    Address, AdminBind, Destination, NamePattern, SniPattern, WorkloadApi, names, problem::Code, sockets,
};
use crate::net::Dscp;

/// Why a text is not what it should be, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) code: Code,
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Mistake {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: Code::BadValue, what: what.into(), hint: Some(hint.into()) }
    }

    pub(super) fn coded(self, code: Code) -> Self {
        Self { code, ..self }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

macro_rules! texts {
    ($($(#[doc = $doc:literal])* $name:ident($type:ty) = $kind:literal, $noun:literal, $read:path, $schema:tt;)*) => {
        $(
            $(#[doc = $doc])*
            pub(super) struct $name(pub(super) $type);

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let text = Cow::<str>::deserialize(deserializer)?;
                    $read(&text).map(Self).map_err(D::Error::custom)
                }
            }

            impl JsonSchema for $name {
                fn inline_schema() -> bool {
                    true
                }

                fn schema_name() -> Cow<'static, str> {
                    Cow::Borrowed(stringify!($name))
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    let mut schema = json_schema!($schema);
                    schema.insert("type".to_owned(), "string".into());
                    schema.insert("x-text".to_owned(), $kind.into());
                    schema
                }
            }
        )*

        /// Reads `text` as the kind that a schema names with `x-text`, only to see whether that can be done.
        pub(super) fn check(kind: &str, text: &str) -> Result<(), Mistake> {
            match kind {
                $($kind => $read(text).map(drop),)*
                _ => Ok(()),
            }
        }

        /// What a kind is called in a sentence.
        pub(super) fn noun(kind: &str) -> &'static str {
            match kind {
                $($kind => $noun,)*
                _ => "text",
            }
        }

        #[cfg(test)]
        pub(super) const KINDS: &[&str] = &[$($kind),*];
    };
}

// What the schema says of times is checked by the same walk that checks types: from `x-min`, shorter than `x-below`,
// and a warning above `x-long`.
texts! {
    /// A time within a day.
    Time(Duration) = "time", "a time with its unit", time,
        { "x-min": "1ms", "x-below": "1day", "x-long": "1h" };
    /// A time that may last for days.
    LongTime(Duration) = "long-time", "a time with its unit", time,
        { "x-min": "1ms", "x-below": "366days" };
    /// A time that the kernel counts in seconds.
    Seconds(Duration) = "seconds", "a time of whole seconds", seconds,
        { "x-min": "1s", "x-below": "32768s" };
    /// Where a listener accepts, and how that was written.
    BindText((SocketAddr, String)) = "bind", "an address to accept on", bind, {};
    /// Where the admin API listens.
    AdminText(AdminBind) = "admin-bind", "a loopback address, a unix socket or \"off\"", admin, {};
    /// Where telemetry listens; `None` is off.
    TelemetryText(Option<SocketAddr>) = "telemetry-bind", "an address to accept on, or \"off\"", telemetry, {};
    /// What is dialled.
    AddressText(Address) = "address", "an address to connect to", address, {};
    /// A name that stands in logs and labels.
    Name(String) = "name", "a name", name,
        { "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z0-9._:\\[\\]-]+$" };
    /// A number of dollars, exact.
    Decimal(String) = "decimal", "a decimal number in quotes", decimal, { "pattern": "^[0-9]+([.][0-9]+)?$" };
    /// A file.
    FilePath(PathBuf) = "path", "the path of a file", path, { "minLength": 1 };
    /// The path of an HTTP request.
    HttpPath(String) = "http-path", "the path of an HTTP request", http_path, { "pattern": "^/" };
    /// A Host header.
    HttpHost(String) = "http-host", "a Host header", http_host, { "minLength": 1 };
    /// Bytes that a probe sends or looks for.
    ProbeText(String) = "bytes", "a text of 1 to 4096 bytes", probe_text, { "minLength": 1, "maxLength": 4096 };
    /// The name of a congestion control.
    CongestionText(String) = "congestion", "a congestion control", sockets::congestion, { "minLength": 1 };
    /// The size of a buffer.
    SizeText(u32) = "size", "a number of bytes with its unit", sockets::size, { "pattern": "^[0-9.]+ ?[A-Za-z]+$" };
    /// The class of a DSCP mark.
    DscpText(Dscp) = "dscp", "a class of DSCP", sockets::dscp, { "pattern": "^[0-9A-Za-z]+$" };
    /// What connections come from.
    SourceText(IpAddr) = "source", "an IP address without a port", sockets::source, { "minLength": 2 };
    /// A network interface.
    InterfaceText(String) = "interface", "the name of an interface", sockets::interface,
        { "minLength": 1, "maxLength": 15 };
    /// A network.
    NetText(IpNet) = "network", "a network or an address", names::network, { "minLength": 2 };
    /// A server name in a route.
    SniText(SniPattern) = "server-name", "a server name, or `*.` and a name", names::sni, { "minLength": 1 };
    /// A protocol of ALPN.
    AlpnText(String) = "alpn", "the name of a protocol", names::alpn, { "minLength": 1, "maxLength": 255 };
    /// What a client asked for.
    DestinationText(Destination) = "destination", "a network, a port, or both", names::destination,
        { "minLength": 2 };
    /// The value of a TLV.
    TlvText(String) = "tlv", "a text of 1 to 256 characters", names::tlv, { "minLength": 1, "maxLength": 256 };
    /// A pattern for names in certificates.
    NameRuleText(NamePattern) = "certificate-name", "a DNS name or a SPIFFE id", names::rule, { "minLength": 1 };
    /// The name that an endpoint's certificate is for.
    ServerNameText(String) = "tls-name", "a DNS name or an IP address", names::server_name, { "minLength": 1 };
    /// How long ticket keys live; `None` is off.
    TicketsText(Option<Duration>) = "tickets", "a time with its unit, or \"off\"", names::tickets, {};
    /// The address of a SPIFFE Workload API.
    WorkloadText(WorkloadApi) = "workload-api", "the address of a Workload API", workload, { "pattern": "^(unix|tcp):" };
    /// A number of bytes; `None` is off.
    CountText(Option<u64>) = "bytes-count", "a number of bytes with its unit, or \"off\"", names::count, {};
    /// A class or a range of HTTP status codes.
    StatusText((u16, u16)) = "http-status", "a class or a range of status codes", status,
        { "pattern": "^([1-5]xx|[1-5][0-9][0-9](-[1-5][0-9][0-9])?)$" };
}

fn workload(text: &str) -> Result<WorkloadApi, Mistake> {
    WorkloadApi::read(text).map_err(|(what, hint)| Mistake::new(what, hint))
}

/// Reads a duration with its unit.
pub(super) fn time(text: &str) -> Result<Duration, Mistake> {
    let bare = text.trim();
    if bare.parse::<f64>().is_ok() {
        return Err(Mistake::new(format!("`{bare}` has no unit"), format!("write \"{bare}s\"")));
    }
    humantime::parse_duration(text).map_err(|_| {
        Mistake::new(
            format!("`{text}` is not a time"),
            "write a number and a unit: \"250ms\", \"5s\", \"1h 30m\"",
        )
    })
}

fn seconds(text: &str) -> Result<Duration, Mistake> {
    let time = time(text)?;
    if time.subsec_nanos() == 0 {
        return Ok(time);
    }
    Err(Mistake::new(
        format!("`{text}` is not a number of whole seconds"),
        "the kernel counts keepalive in seconds",
    )
    .coded(Code::OutOfRange))
}

/// A time as it would be written.
pub(super) fn time_text(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

fn without_tcp(text: &str) -> Result<&str, Mistake> {
    let text = text.strip_prefix("tcp://").unwrap_or(text);
    match text.split_once("://") {
        Some((scheme, rest)) => {
            Err(Mistake::new(format!("`{scheme}` is not served, only tcp is"), format!("write \"{rest}\"")))
        }
        None => Ok(text),
    }
}

fn bind(text: &str) -> Result<(SocketAddr, String), Mistake> {
    let text = without_tcp(text)?;
    let address = of_one(socket(text, "0.0.0.0")?)?;
    // A scope (`%eth0`) has no place in a label.
    Ok((address, text.replace('%', "-")))
}

/// `usual` is the IP address to propose where there is none.
fn socket(text: &str, usual: &str) -> Result<SocketAddr, Mistake> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.rsplit(':').next().unwrap_or_default();
    let port = if port.parse::<u16>().is_ok() { port } else { "5432" };
    let (what, hint) = match text.rsplit_once(':') {
        _ if text.parse::<u16>().is_ok() => ("has no address".to_owned(), format!("{usual}:{port}")),
        _ if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {
            ("is an IPv6 address without a port".to_owned(), format!("[{text}]:5432"))
        }
        _ if text.parse::<IpAddr>().is_ok() => ("has no port".to_owned(), format!("{text}:5432")),
        Some((_, number)) if number.parse::<u16>().is_err() => {
            (format!("ends in `{number}`, which is no port (0 to 65535)"), format!("{usual}:{port}"))
        }
        Some(("" | "*", _)) => ("has no IP address".to_owned(), format!("{usual}:{port}")),
        Some(("localhost", _)) => ("is a name, not an IP address".to_owned(), format!("127.0.0.1:{port}")),
        _ => ("is not an IP address and a port".to_owned(), format!("{usual}:{port}")),
    };
    Err(Mistake::new(format!("`{text}` {what}"), format!("write \"{hint}\"")))
}

fn admin(text: &str) -> Result<AdminBind, Mistake> {
    // The kernel's sockaddr_un has 108 bytes, the last of them a zero.
    const LONGEST: usize = 107;
    if text == "off" {
        return Ok(AdminBind::Off);
    }
    if let Some(path) = text.strip_prefix("unix:") {
        let plain = !path.contains('\0') && path.len() <= LONGEST && !path.ends_with('/');
        if Path::new(path).is_absolute() && plain {
            return Ok(AdminBind::Unix(PathBuf::from(path)));
        }
        return Err(Mistake::new(
            format!("`{path}` is not an absolute path of at most {LONGEST} bytes"),
            "write \"unix:/run/twinspan/admin.sock\"",
        ));
    }
    let address = socket(without_tcp(text)?, "127.0.0.1")?;
    if address.ip().to_canonical().is_loopback() {
        return Ok(AdminBind::Tcp(address));
    }
    Err(Mistake::new(
        format!("`{text}` can be reached from the network, and the admin API asks nobody for a password"),
        format!("write \"127.0.0.1:{}\" or \"unix:/run/twinspan/admin.sock\"", address.port()),
    )
    .coded(Code::AdminExposed))
}

fn telemetry(text: &str) -> Result<Option<SocketAddr>, Mistake> {
    if text == "off" { Ok(None) } else { of_one(socket(without_tcp(text)?, "0.0.0.0")?).map(Some) }
}

/// TCP is between two machines.
fn of_one(address: SocketAddr) -> Result<SocketAddr, Mistake> {
    let ip = address.ip();
    if is_of_many(ip) {
        let hint = "write an address that this machine has, or \"0.0.0.0\" or \"[::]\" for all of them";
        return Err(Mistake::new(format!("`{ip}` is not the address of one machine"), hint));
    }
    Ok(address)
}

/// True for multicast, and for all machines of the network.
pub(super) fn is_of_many(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_multicast() || ip == IpAddr::from([255; 4])
}

fn address(text: &str) -> Result<Address, Mistake> {
    let text = without_tcp(text)?;
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => Address::Socket(address),
        Err(_) => host_and_port(text)?,
    };
    match &address {
        Address::Socket(socket) if socket.ip().to_canonical().is_unspecified() || is_of_many(socket.ip()) => {
            Err(Mistake::new(
                format!("`{}` is not the address of one machine", socket.ip()),
                "write the address that clients would connect to",
            ))
        }
        Address::Socket(socket) if socket.port() == 0 => Err(no_port()),
        Address::Name { port: 0, .. } => Err(no_port()),
        Address::Socket(_) | Address::Name { .. } => Ok(address),
    }
}

fn no_port() -> Mistake {
    Mistake::new("port 0 cannot be connected to", "ports are 1 to 65535").coded(Code::OutOfRange)
}

fn host_and_port(text: &str) -> Result<Address, Mistake> {
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(Mistake::new(format!("`{text}` has no port"), format!("write \"{text}:5432\"")));
    };
    if text.parse::<IpAddr>().is_ok() || host.contains(':') {
        return Err(Mistake::new(
            format!("`{text}` is not an IPv6 address and a port"),
            "an IPv6 address stands in brackets: \"[2001:db8::1]:5432\"",
        ));
    }
    let Ok(port) = port.parse() else {
        return Err(Mistake::new(
            format!("`{port}` in `{text}` is not a port"),
            "ports are numbers from 1 to 65535",
        ));
    };
    if is_host_name(host) {
        return Ok(Address::Name { host: host.to_owned(), port });
    }
    Err(Mistake::new(
        format!("`{host}` is neither an IP address nor a host name"),
        "write \"10.0.0.1:5432\", \"[2001:db8::1]:5432\" or \"db.example.com:5432\"",
    ))
}

/// A name that a resolver could be asked for. `10.0.0.300` is not one: a last part of digits means an address.
pub(super) fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(part) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

/// Reads a name: it goes into logs and labels, so it is short and needs no quotes there.
pub(super) fn name(text: &str) -> Result<String, Mistake> {
    const LONGEST: usize = 64;
    let bad = |what: String| {
        let hint = format!("1 to {LONGEST} letters, digits and . _ - : [ ]");
        Err(Mistake::new(what, hint).coded(Code::BadName))
    };
    if text.is_empty() {
        return bad("it is empty".to_owned());
    }
    if text.chars().count() > LONGEST {
        return bad(format!("it is longer than {LONGEST} characters"));
    }
    let allowed = |char: char| char.is_ascii_alphanumeric() || "._:[]-".contains(char);
    match text.chars().find(|char| !allowed(*char)) {
        Some(char) => bad(format!("it contains {char:?}")),
        None => Ok(text.to_owned()),
    }
}

fn decimal(text: &str) -> Result<String, Mistake> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let whole = text.split_once('.').map_or_else(|| digits(text), |(a, b)| digits(a) && digits(b));
    if whole && text.len() <= 32 {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("`{text}` is not a decimal number of at most 32 characters, 0 or more"),
        "write \"0.09\"",
    ))
}

fn path(text: &str) -> Result<PathBuf, Mistake> {
    if text.is_empty() || text.contains('\0') {
        return Err(Mistake::new("no file can have this path", "write \"/var/log/twinspan.log\""));
    }
    Ok(PathBuf::from(text))
}

fn http_path(text: &str) -> Result<String, Mistake> {
    if !text.starts_with('/') {
        return Err(Mistake::new(format!("`{text}` does not start with `/`"), format!("write \"/{text}\"")));
    }
    match text.chars().find(|char| !char.is_ascii_graphic() || *char == '#') {
        Some(char) => Err(Mistake::new(
            format!("a request's path cannot contain {char:?}"),
            "write it percent-encoded, a space as %20",
        )),
        None => Ok(text.to_owned()),
    }
}

fn http_host(text: &str) -> Result<String, Mistake> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || "-._:[]".contains(char);
    if !text.is_empty() && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("`{text}` is not a host"),
        "write \"db.example.com\" or \"db.example.com:8080\"",
    ))
}

fn probe_text(text: &str) -> Result<String, Mistake> {
    if (1..=4096).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(Mistake::new("it must have 1 to 4096 bytes", "leave the key out if there is nothing to say")
        .coded(Code::OutOfRange))
}

fn status(text: &str) -> Result<(u16, u16), Mistake> {
    let code = |text: &str| {
        let code = text.parse::<u16>().ok()?;
        (text.len() == 3 && (100..=599).contains(&code)).then_some(code)
    };
    let range = match text.split_once('-') {
        Some((first, last)) => code(first).zip(code(last)).filter(|(first, last)| first <= last),
        None => match text.strip_suffix("xx") {
            Some(class) => code(&format!("{class}00")).map(|first| (first, first + 99)),
            None => code(text).map(|code| (code, code)),
        },
    };
    range.ok_or_else(|| {
        Mistake::new(
            format!("`{text}` is not a status code, a class or a range"),
            "write 200, \"2xx\" or \"200-299\"",
        )
    })
}

/// Status codes as they would be written, without the quotes.
pub(super) fn status_text((first, last): (u16, u16)) -> String {
    match last.saturating_sub(first) {
        0 => first.to_string(),
        99 if first % 100 == 0 => format!("{}xx", first / 100),
        _ => format!("{first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_needs_its_unit() {
        assert_eq!(time("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        for (text, hint) in [("5", "write \"5s\""), ("0", "write \"0s\""), ("1.5", "write \"1.5s\"")] {
            assert_eq!(time(text).unwrap_err().hint.as_deref(), Some(hint));
        }
        for text in ["", "s", "5 parsecs", "-1s", "99999999999999999999s"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert!(seconds("1500ms").is_err());
        assert_eq!(seconds("1m"), Ok(Duration::from_secs(60)));
    }

    #[test]
    fn binds_are_ip_addresses_with_a_port() {
        let (address, name) = bind("tcp://[::]:80").unwrap();
        assert_eq!((address.to_string().as_str(), name.as_str()), ("[::]:80", "[::]:80"));
        let hint = |text| bind(text).unwrap_err().hint.unwrap();
        assert_eq!(hint("80"), "write \"0.0.0.0:80\"");
        assert_eq!(hint(":80"), "write \"0.0.0.0:80\"");
        assert_eq!(hint("*:80"), "write \"0.0.0.0:80\"");
        assert_eq!(hint("localhost:80"), "write \"127.0.0.1:80\"");
        assert_eq!(hint("10.0.0.1"), "write \"10.0.0.1:5432\"");
        assert_eq!(hint("::1"), "write \"[::1]:5432\"");
        assert_eq!(hint("0.0.0.0:65536"), "write \"0.0.0.0:5432\"");
        assert_eq!(hint("udp://0.0.0.0:53"), "write \"0.0.0.0:53\"");
    }

    #[test]
    fn the_admin_api_is_never_on_the_network() {
        assert_eq!(admin("off"), Ok(AdminBind::Off));
        assert_eq!(admin("unix:/run/x.sock"), Ok(AdminBind::Unix("/run/x.sock".into())));
        for text in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:0", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(admin(text), Ok(AdminBind::Tcp(text.parse().unwrap())));
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(admin(text).unwrap_err().code, Code::AdminExposed);
        }
        for text in ["unix:x.sock", "unix:", "unix:/run/", &format!("unix:/{}", "x".repeat(107))] {
            assert_eq!(admin(text).unwrap_err().code, Code::BadValue);
        }
    }

    #[test]
    fn an_address_is_one_that_can_be_dialled() {
        let name = |host: &str, port| Ok(Address::Name { host: host.to_owned(), port });
        assert_eq!(address("db.example.com:5432"), name("db.example.com", 5432));
        assert_eq!(address("tcp://localhost:1"), name("localhost", 1));
        assert_eq!(address("db_1.internal.:1"), name("db_1.internal.", 1));
        assert_eq!(address("[fe80::1%3]:1"), Ok(Address::Socket("[fe80::1%3]:1".parse().unwrap())));
        for text in ["x:0", "10.0.0.1:0", "[::1]:0"] {
            assert_eq!(address(text).unwrap_err().code, Code::OutOfRange, "{text}");
        }
        for text in [
            "",
            ":1",
            "x",
            "x:",
            "x:y",
            "x:65536",
            "10.0.0.300:1",
            "10.0.0.1",
            "::1",
            "fe80::1:1",
            "0.0.0.0:1",
            "[::]:1",
            "[::ffff:0.0.0.0]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[ff02::1]:1",
            "-x:1",
            "a b:1",
            "udp://x:1",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_is_bound_to_addresses_of_one_machine() {
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1%2]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(bind(text).is_ok() && telemetry(text).is_ok(), "{text}");
        }
        for text in ["224.0.0.1:1", "255.255.255.255:1", "[ff02::1]:1", "[::ffff:224.0.0.1]:1"] {
            assert_eq!(bind(text).unwrap_err().code, Code::BadValue, "{text}");
            assert_eq!(telemetry(text).unwrap_err().code, Code::BadValue, "{text}");
        }
    }

    #[test]
    fn names_fit_into_labels() {
        assert_eq!(name("[::1]:5432").as_deref(), Ok("[::1]:5432"));
        for text in ["", "a b", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(name(text).unwrap_err().code, Code::BadName, "{text}");
        }
    }

    #[test]
    fn decimals_are_exact_and_not_negative() {
        for text in ["0", "0.09", "12.5"] {
            assert_eq!(decimal(text).as_deref(), Ok(text));
        }
        for text in ["", ".", "1.", ".1", "-1", "1e3", "NaN", "1.2.3", "٣"] {
            assert!(decimal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn status_codes_are_numbers_classes_and_ranges() {
        assert_eq!(status("2xx"), Ok((200, 299)));
        assert_eq!(status("200-204"), Ok((200, 204)));
        assert_eq!(status("404"), Ok((404, 404)));
        for text in ["", "xx", "6xx", "0xx", "20x", "299-200", "99", "1000", "+20", "2xx-3xx", "200-"] {
            assert!(status(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_and_hosts_are_what_http_allows() {
        assert!(http_path("/health?full=1").is_ok());
        for text in ["", "health", "/a b", "/a\r\nX: y", "/a#b", "/é"] {
            assert!(http_path(text).is_err(), "{text:?}");
        }
        assert!(http_host("[::1]:80").is_ok());
        for text in ["", "a b", "a\r\nb", "a/b"] {
            assert!(http_host(text).is_err(), "{text:?}");
        }
    }
}
