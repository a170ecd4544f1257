//! The line of a session: which fields it has, and how they are written. Each session pays for this on some CPU, so numbers
//! and addresses do not go through `std::fmt`.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use jiff::Timestamp;

use super::{LineFormat, SessionRecord};

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Number(u64),
    /// In milliseconds, with three decimals.
    Millis(Duration),
    /// An IPv4 client of a dual-stack listener is written as IPv4.
    Address(SocketAddr),
    /// A word of ours.
    Word(&'static str),
    /// A name from the operator's file, which allows no spaces, quotes or control characters in it.
    Name(&'a str),
    /// What a client sent: escaped already, and in quotes.
    Text(&'a str),
}

/// Writes times; most lines share the second with the line before.
#[derive(Default)]
pub(super) struct Clock {
    second: Option<i64>,
    text: String,
}

impl Clock {
    /// A time in RFC 3339 form, with microseconds.
    fn write(&mut self, out: &mut String, time: Timestamp) {
        let (mut second, mut nanos) = (time.as_second(), time.subsec_nanosecond());
        if nanos < 0 {
            (second, nanos) = (second - 1, nanos + 1_000_000_000);
        }
        if self.second != Some(second) {
            self.second = Some(second);
            self.text.clear();
            let whole = Timestamp::from_second(second).unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(self.text, "{whole:.0}");
            let _zulu = self.text.pop();
        }
        out.push_str(&self.text);
        decimals::<6>(out, nanos.unsigned_abs() / 1000);
        out.push('Z');
    }
}

/// One line, with its end.
pub(super) fn line(
    out: &mut String,
    record: &SessionRecord,
    format: LineFormat,
    (clock, now): (&mut Clock, Timestamp),
) {
    match format {
        LineFormat::Text => {
            clock.write(out, now);
            each(record, |key, value| text(out, key, value));
            out.push('\n');
        }
        LineFormat::Json => {
            out.push_str(r#"{"timestamp":""#);
            clock.write(out, now);
            out.push_str(r#"","target":"session""#);
            each(record, |key, value| json(out, key, value));
            out.push_str("}\n");
        }
    }
}

/// The fields of a line, in their order.
fn each<'a>(record: &'a SessionRecord, mut give: impl FnMut(&'static str, Value<'a>)) {
    let end = record.end;
    give("session", Value::Number(record.session));
    give("client", Value::Address(record.client));
    give("listener", Value::Name(record.listener.as_str()));
    if let Some(pool) = &record.pool {
        give("pool", Value::Name(pool.as_str()));
    }
    if let Some(endpoint) = &record.endpoint {
        give("cloud", Value::Name(endpoint.cloud.as_str()));
        give("endpoint", Value::Address(endpoint.address));
    }
    give("generation", Value::Number(record.generation.0));
    give("to_upstream", Value::Number(record.to_upstream));
    give("to_client", Value::Number(record.to_client));
    if let Some(connect) = record.connect {
        give("connect_ms", Value::Millis(connect));
    }
    give("total_ms", Value::Millis(record.total));
    give("attempts", Value::Number(record.attempts.into()));
    give("side", Value::Word(end.side.as_str()));
    give("stage", Value::Word(end.stage.as_str()));
    give("cause", Value::Word(end.cause.as_str()));
    give("flags", Value::Word(end.flags()));
    if let Some(edge) = &record.edge {
        edge.each(give);
    }
}

/// Adds ` key=value`.
pub(super) fn text(out: &mut String, key: &str, value: Value<'_>) {
    out.push(' ');
    out.push_str(key);
    out.push('=');
    match value {
        Value::Number(number) => decimal(out, number),
        Value::Millis(time) => millis(out, time),
        Value::Address(address) => self::address(out, address),
        Value::Word(word) => out.push_str(word),
        Value::Name(name) => out.push_str(name),
        Value::Text(text) => {
            out.push('"');
            out.push_str(text);
            out.push('"');
        }
    }
}

/// Adds `,"key":value`.
pub(super) fn json(out: &mut String, key: &str, value: Value<'_>) {
    out.push_str(",\"");
    out.push_str(key);
    out.push_str("\":");
    match value {
        Value::Number(number) => decimal(out, number),
        Value::Millis(time) => millis(out, time),
        Value::Address(address) => {
            out.push('"');
            self::address(out, address);
            out.push('"');
        }
        Value::Word(text) | Value::Name(text) | Value::Text(text) => quoted(out, text),
    }
}

/// A JSON string.
fn quoted(out: &mut String, text: &str) {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        let _ = write!(out, "{}", serde_json::Value::from(text));
    }
}

fn decimal(out: &mut String, number: impl itoa::Integer) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// A point, and a number as so many digits.
fn decimals<const DIGITS: usize>(out: &mut String, number: u32) {
    out.push('.');
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number);
    (digits.len()..DIGITS).for_each(|_| out.push('0'));
    out.push_str(digits);
}

fn millis(out: &mut String, time: Duration) {
    let micros = time.subsec_micros();
    decimal(out, u128::from(time.as_secs()) * 1000 + u128::from(micros / 1000));
    decimals::<3>(out, micros % 1000);
}

fn address(out: &mut String, address: SocketAddr) {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            for (place, octet) in ip.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push('.');
                }
                decimal(out, octet);
            }
            out.push(':');
            decimal(out, address.port());
        }
        IpAddr::V6(_) => {
            let _ = write!(out, "{address}");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        ids::{CloudName, EndpointIdentity, Generation, ListenerName, PoolName},
        telemetry::{Cause, End, Side, Stage},
    };

    /// Of a session with every field that all of them have.
    pub(in crate::telemetry) fn record(end: End) -> SessionRecord {
        SessionRecord {
            session: 7,
            client: "[::ffff:192.0.2.1]:40000".parse().unwrap(),
            listener: ListenerName::from("pg"),
            pool: Some(PoolName::from("db")),
            endpoint: Some(Arc::new(EndpointIdentity {
                pool: PoolName::from("db"),
                cloud: CloudName::from("aws"),
                address: "10.0.1.10:5432".parse().unwrap(),
            })),
            generation: Generation(12),
            to_upstream: 10,
            to_client: 20,
            connect: Some(Duration::from_micros(2_100)),
            ended: Instant::now(),
            total: Duration::from_millis(1_500),
            attempts: 1,
            end,
            edge: None,
        }
    }

    fn written(format: LineFormat) -> String {
        let record = record(End { side: Side::Upstream, stage: Stage::Relay, cause: Cause::Reset });
        let mut out = String::new();
        line(&mut out, &record, format, (&mut Clock::default(), Timestamp::UNIX_EPOCH));
        out
    }

    #[test]
    fn a_text_line_has_every_field_once() {
        assert_eq!(
            written(LineFormat::Text),
            "1970-01-01T00:00:00.000000Z session=7 client=192.0.2.1:40000 listener=pg pool=db cloud=aws \
             endpoint=10.0.1.10:5432 generation=12 to_upstream=10 to_client=20 connect_ms=2.100 \
             total_ms=1500.000 attempts=1 side=upstream stage=relay cause=reset flags=SD\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_the_same_fields() {
        assert_eq!(
            written(LineFormat::Json),
            concat!(
                r#"{"timestamp":"1970-01-01T00:00:00.000000Z","target":"session","session":7,"#,
                r#""client":"192.0.2.1:40000","listener":"pg","pool":"db","cloud":"aws","#,
                r#""endpoint":"10.0.1.10:5432","generation":12,"to_upstream":10,"to_client":20,"#,
                r#""connect_ms":2.100,"total_ms":1500.000,"attempts":1,"side":"upstream","#,
                r#""stage":"relay","cause":"reset","flags":"SD"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let mut clock = Clock::default();
        for (nanos, text) in [
            (1_700_000_000_000_001_999_i128, "2023-11-14T22:13:20.000001Z"),
            (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999999Z"),
            (1_700_000_001_000_000_000, "2023-11-14T22:13:21.000000Z"),
            (-1_000, "1969-12-31T23:59:59.999999Z"),
            (951_782_400_500_000_000, "2000-02-29T00:00:00.500000Z"),
        ] {
            let mut out = String::new();
            clock.write(&mut out, Timestamp::from_nanosecond(nanos).unwrap());
            assert_eq!(out, text);
        }
    }

    #[test]
    fn names_that_json_must_escape_are_escaped() {
        for name in ["plain-1.x", "with \"quotes\"", "back\\slash", "new\nline", "é"] {
            let mut out = String::new();
            quoted(&mut out, name);
            assert_eq!(serde_json::from_str::<String>(&out).unwrap(), name);
        }
    }

    proptest! {
        #[test]
        fn addresses_and_times_read_back_as_what_they_were(
            ip: IpAddr,
            mapped: bool,
            port: u16,
            micros in 0..u64::MAX / 2000,
        ) {
            let shown = SocketAddr::new(ip.to_canonical(), port);
            let asked = match ip {
                IpAddr::V4(ip) if mapped => IpAddr::V6(ip.to_ipv6_mapped()),
                _ => ip,
            };
            let mut out = String::new();
            address(&mut out, SocketAddr::new(asked, port));
            prop_assert_eq!(&out, &shown.to_string());
            out.clear();
            millis(&mut out, Duration::from_micros(micros));
            prop_assert_eq!(out, format!("{}.{:03}", micros / 1000, micros % 1000));
        }
    }
}
