//! What is typed after the options: sizes, rates, times, addresses.

use std::time::Duration;

use bytesize::ByteSize;

use crate::lab::load::LARGEST_REQUEST;

/// The largest reply.
const LARGEST: u64 = 1 << 30;

/// The highest rate: nobody gets there.
const FASTEST: f64 = 1e9;

/// `128`, `64KiB`, `1MB`.
pub(super) fn size(text: &str) -> Result<u32, String> {
    bytes(text, LARGEST)
}

/// The [`size`] of a request.
pub(super) fn request(text: &str) -> Result<u32, String> {
    bytes(text, LARGEST_REQUEST.into())
}

fn bytes(text: &str, most: u64) -> Result<u32, String> {
    let bytes = text.parse::<ByteSize>().map_err(|_| "not a size: 128, 64KiB, 1MB")?.as_u64();
    match u32::try_from(bytes) {
        Ok(size @ 1..) if bytes <= most => Ok(size),
        _ => Err(format!("from 1 to {most} bytes")),
    }
}

/// `200`, `15k`, `1.5M`; a second, which may be said: `200/s`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let bare = text.strip_suffix("/s").unwrap_or(text).trim();
    let (number, factor) = match bare.as_bytes().last() {
        Some(b'k' | b'K') => (bare.get(..bare.len() - 1), 1e3),
        Some(b'm' | b'M') => (bare.get(..bare.len() - 1), 1e6),
        _ => (Some(bare), 1.0),
    };
    match number.and_then(|number| number.trim().parse::<f64>().ok()).map(|rate| rate * factor) {
        Some(rate) if (1.0..=FASTEST).contains(&rate) =>
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 1 to a billion"
            )]
            Ok(rate.round() as u64)
        }
        Some(_) => Err(format!("from 1 to {FASTEST:.0} a second")),
        None => Err("not a rate: 200, 15k, 1.5M".to_owned()),
    }
}

/// `10s`, `250ms`, `1m 30s`; a number alone is seconds.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|_| "not a time: 10s, 250ms, 1m 30s".to_owned()),
    }
}

/// A [`time`] that is not zero.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("longer than nothing".to_owned()),
        span if span > Duration::from_secs(100 * 24 * 3600) => Err("at most a hundred days".to_owned()),
        span => Ok(span),
    }
}

/// HOST:PORT; who that is will be seen.
pub(super) fn address(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    // An IPv6 address needs its brackets, or its end would be taken for a port.
    let good = parts.is_some_and(|(host, port)| {
        !host.is_empty() && (host.starts_with('[') || !host.contains(':')) && port.parse::<u16>().is_ok()
    });
    if good { Ok(text.to_owned()) } else { Err("not an address: give HOST:PORT".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(["1", "128", "64KiB", "1MB"].map(size), [1, 128, 65_536, 1_000_000].map(Ok));
        for bad in ["", "0", "x", "-1", "2GiB", "99999999999"] {
            assert!(size(bad).is_err(), "{bad}");
            assert!(request(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_a_second() {
        assert_eq!(["1", "200/s", "15k", "1.5M"].map(rate), [1, 200, 15_000, 1_500_000].map(Ok));
        for bad in ["", "k", "0", "0.2", "0.5", "-5", "nan", "inf", "1e12", "10q"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_without_a_unit_is_seconds() {
        let milliseconds = |text| time(text).map(|time| time.as_millis());
        assert_eq!(
            ["2", "0.5", "250ms", "1m 30s", "0s"].map(milliseconds),
            [2000, 500, 250, 90_000, 0].map(Ok)
        );
        assert!(["", "-1", "x", "1e30"].map(time).iter().all(Result::is_err));
        assert!(["0", "0s", "200days"].map(span).iter().all(Result::is_err));
        assert_eq!(span("1s"), Ok(Duration::from_secs(1)));
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert!(["localhost:1", "127.0.0.1:80", "[::1]:9"].map(address).iter().all(Result::is_ok));
        assert!(["", "localhost", ":1", "::1:9", "host:70000"].map(address).iter().all(Result::is_err));
    }
}
