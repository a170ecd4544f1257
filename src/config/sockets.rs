//! Reading and writing of socket options: what the kernel will take is sorted out here, as far as it can be known without
//! the machine that the file is for.

use std::{fs, net::IpAddr};

use bytesize::ByteSize;

use super::{
    problem::{Code, similar},
    values::{Mistake, is_of_many},
};
use crate::net::Dscp;

/// Congestion controls that come with Linux. Which of them a machine has is another matter.
const CONGESTION: [&str; 17] = [
    "bbr",
    "bic",
    "cdg",
    "cubic",
    "dctcp",
    "highspeed",
    "htcp",
    "hybla",
    "illinois",
    "lp",
    "nv",
    "reno",
    "scalable",
    "vegas",
    "veno",
    "westwood",
    "yeah",
];

/// What this machine has of them, and of others.
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// The smallest and the largest buffer. Below, TCP crawls; above, the kernel cannot count.
const SIZES: (u64, u64) = (4096, 1 << 30);

/// Names of code points: RFC 2474, 2597, 3246, 5865, 8622.
const CLASSES: [(&str, u8); 25] = [
    ("BE", 0),
    ("DF", 0),
    ("LE", 1),
    ("CS0", 0),
    ("CS1", 8),
    ("CS2", 16),
    ("CS3", 24),
    ("CS4", 32),
    ("CS5", 40),
    ("CS6", 48),
    ("CS7", 56),
    ("AF11", 10),
    ("AF12", 12),
    ("AF13", 14),
    ("AF21", 18),
    ("AF22", 20),
    ("AF23", 22),
    ("AF31", 26),
    ("AF32", 28),
    ("AF33", 30),
    ("AF41", 34),
    ("AF42", 36),
    ("AF43", 38),
    ("EF", 46),
    ("VA", 44),
];

/// Reads the name of a congestion control: one of Linux, or one that this machine has.
pub(super) fn congestion(text: &str) -> Result<String, Mistake> {
    let here = || fs::read_to_string(AVAILABLE).unwrap_or_default();
    if CONGESTION.contains(&text) || here().split_whitespace().any(|known| known == text) {
        return Ok(text.to_owned());
    }
    let hint = match similar(&text.to_ascii_lowercase(), CONGESTION) {
        Some(word) => format!("did you mean \"{word}\"?"),
        None => format!("this machine has those in {AVAILABLE}"),
    };
    Err(Mistake::new(format!("`{text}` is no congestion control of Linux"), hint))
}

/// Reads a number of bytes with its unit.
pub(super) fn size(text: &str) -> Result<u32, Mistake> {
    let bare = text.trim();
    if bare.parse::<f64>().is_ok() {
        return Err(Mistake::new(format!("`{bare}` has no unit"), format!("write \"{bare}B\"")));
    }
    let read = bare.parse::<ByteSize>().ok().filter(|_| bare.ends_with(['B', 'b']));
    let Some(ByteSize(bytes)) = read else {
        return Err(Mistake::new(
            format!("`{text}` is not a number of bytes"),
            "write a number and a unit: \"256KiB\", \"4MiB\"",
        ));
    };
    let (least, most) = SIZES;
    u32::try_from(bytes).ok().filter(|_| (least..=most).contains(&bytes)).ok_or_else(|| {
        Mistake::new(format!("`{text}` is not within 4KiB and 1GiB"), "the kernel takes no other size")
            .coded(Code::OutOfRange)
    })
}

/// A number of bytes as it would be written.
pub(super) fn size_text(bytes: u32) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

/// Reads the class of a DSCP mark, or its number in quotes.
pub(super) fn dscp(text: &str) -> Result<Dscp, Mistake> {
    let named = CLASSES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, number)| *number);
    let number = named.or_else(|| text.parse().ok());
    number.and_then(Dscp::new).ok_or_else(|| {
        Mistake::new(
            format!("`{text}` is no class of DSCP"),
            "write a number from 0 to 63, or CS0 to CS7, AF11 to AF43, EF, VA, LE",
        )
    })
}

/// Reads an address of this machine to connect from.
pub(super) fn source(text: &str) -> Result<IpAddr, Mistake> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || is_of_many(ip) => Err(Mistake::new(
            format!("`{ip}` is not the address of one machine"),
            "leave it to the kernel, or write an address that this machine has",
        )),
        Ok(ip) => Ok(ip),
        Err(_) if text.parse::<std::net::SocketAddr>().is_ok() => Err(Mistake::new(
            format!("`{text}` has a port"),
            "write the IP address alone: each connection has a port of its own",
        )),
        Err(_) => Err(Mistake::new(format!("`{text}` is not an IP address"), "write \"10.0.0.5\"")),
    }
}

/// Reads the name of a network interface.
pub(super) fn interface(text: &str) -> Result<String, Mistake> {
    // IFNAMSIZ of include/uapi/linux/if.h, without the zero at the end.
    const LONGEST: usize = 15;
    let plain = |char: char| char.is_ascii_graphic() && !matches!(char, '/' | ':');
    if (1..=LONGEST).contains(&text.len()) && text.chars().all(plain) && !matches!(text, "." | "..") {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("no interface can be called `{text}`"),
        format!("write a name as `ip link` shows it, of at most {LONGEST} characters: \"eth0\""),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_limits() {
        assert_eq!(size("4KiB"), Ok(4096));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("64kB"), Ok(64_000));
        assert_eq!(size("1.5 MiB"), Ok(1_572_864));
        for (text, code) in [
            ("", Code::BadValue),
            ("4096", Code::BadValue),
            ("64K", Code::BadValue),
            ("4095B", Code::OutOfRange),
            ("-4KiB", Code::BadValue),
            ("2GiB", Code::OutOfRange),
            ("99999999GiB", Code::OutOfRange),
        ] {
            assert_eq!(size(text).unwrap_err().code, code, "{text}");
        }
        for bytes in [4096, 4097, 65_536, 1 << 20, 3 << 20, 1 << 30] {
            assert_eq!(size(&size_text(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn marks_are_numbers_or_classes() {
        let number = |text| dscp(text).unwrap().number();
        assert_eq!(
            [number("EF"), number("ef"), number("AF21"), number("CS1"), number("0")],
            [46, 46, 18, 8, 0]
        );
        for text in ["", "AF14", "CS8", "64", "-1", "0x2e", "46 "] {
            assert!(dscp(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_source_is_an_address_without_a_port() {
        assert!(source("10.0.0.5").is_ok() && source("2001:db8::5").is_ok());
        for text in ["", "0.0.0.0", "::", "224.0.0.1", "10.0.0.5:80", "[::1]:80", "eth0"] {
            assert!(source(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_interface_is_one_that_the_kernel_could_have() {
        assert!(interface("eth0.100").is_ok() && interface("wg-aws").is_ok());
        for text in ["", "a b", "a/b", "eth0:1", "..", "sixteen-letters-", "é"] {
            assert!(interface(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_congestion_control_is_one_of_linux_or_of_this_machine() {
        assert_eq!(congestion("bbr").as_deref(), Ok("bbr"));
        assert_eq!(congestion("BBR").unwrap_err().hint.as_deref(), Some("did you mean \"bbr\"?"));
        assert!(congestion("").is_err() && congestion("quibic-5000").is_err());
    }
}
