//! Inputs of strangers, and of operators, by the million: what reads them may not panic, not loop, and not say different
//! things of the same bytes. Runs a second each on a stable compiler, and longer when told to:
//!
//!     cargo test --release --manifest-path fuzz/Cargo.toml --target-dir target
//!     BOLERO_RANDOM_ITERATIONS=10000000 cargo test …        so many runs of each
//!     BOLERO_RANDOM_TEST_TIME_MS=60000 cargo test …         so long each
//!
//! An input is a recipe: which seed of `corpus/` to take, and what to do to it. So random bytes come past the first checks,
//! and an engine that looks at coverage (`cargo bolero`) has short inputs to work on.

#![cfg(test)]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bolero::check;
use twinspan::wire::{
    hello::{Hello, Progress},
    proxy_header::{self, Beginning, Malformed, Name, Outgoing, OutgoingTls, Version},
    shown::{BOUND, Shown},
};

/// How long a recipe may be.
const RECIPE: usize = 64;

#[test]
fn hello() {
    const LIMIT: usize = 4096;
    let seeds = Seeds::of("hello");
    check!().with_max_len(RECIPE).for_each(|recipe: &[u8]| {
        let (bytes, cut) = seeds.cook(recipe);
        let whole = Hello::new(LIMIT).look(&bytes);
        assert!(bytes.len() < LIMIT || whole != Progress::More, "neither read nor refused at its limit");
        if let Progress::Done(said) = &whole {
            if let Some(sni) = &said.sni {
                assert!(!sni.is_empty() && sni.len() <= 253 && !sni.ends_with('.'), "{sni}");
                assert!(
                    sni.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()),
                    "{sni}"
                );
            }
            assert!(said.alpn.iter().all(|protocol| !protocol.is_empty()));
        }
        // In three pieces, of which the second ends a byte after the first.
        let mut hello = Hello::new(LIMIT);
        let mut pieces = Progress::More;
        for end in [cut, (cut + 1).min(bytes.len()), bytes.len()] {
            if pieces == Progress::More {
                pieces = hello.look(&bytes[..end]);
            }
        }
        match (&whole, &pieces) {
            // Which of two faults is met first depends on what is there.
            (Progress::Refused(_), Progress::Refused(_)) => {}
            _ => assert_eq!(whole, pieces, "cut at {cut}"),
        }
    });
}

#[test]
fn proxy_header_in() {
    let seeds = Seeds::of("proxy_header");
    check!().with_max_len(RECIPE).for_each(|recipe: &[u8]| {
        let (bytes, cut) = seeds.cook(recipe);
        let whole = proxy_header::read(&bytes, 4096);
        match &whole {
            Ok(Some((header, length))) => {
                assert!(*length <= bytes.len().min(4096));
                assert_eq!(proxy_header::begins_like_one(&bytes), Beginning::Yes(header.version));
                // It needs all of its bytes, and none that follow.
                assert_eq!(proxy_header::read(&bytes[..*length], 4096), whole);
                assert_eq!(proxy_header::read(&bytes[..*length - 1], 4096), Ok(None));
                written(header.version, header.addresses, &header.tlvs);
            }
            Ok(None) => assert!(bytes.len() < 4096),
            Err(why) => {
                let begins = proxy_header::begins_like_one(&bytes);
                assert_eq!(*why == Malformed::NoHeader, begins == Beginning::No);
            }
        }
        let part = proxy_header::read(&bytes[..cut], 4096);
        if part != Ok(None) {
            assert_eq!(part.is_ok(), whole.is_ok(), "cut at {cut}");
        }
    });
}

/// What came in goes out again, and is the same.
fn written(version: Version, addresses: Option<(SocketAddr, SocketAddr)>, tlvs: &proxy_header::Tlvs) {
    let authority = tlvs.text(Name::Authority);
    let tls = OutgoingTls { version: "TLSv1.3", verified: true, common_name: authority.as_deref() };
    let outgoing = Outgoing {
        authority: authority.as_deref(),
        alpn: tlvs.bytes(Name::Alpn),
        unique_id: tlvs.bytes(Name::UniqueId),
        tls: Some(tls),
        passed_on: Some(tlvs),
    };
    let bytes = proxy_header::write(version, addresses, &outgoing);
    let (header, length) =
        proxy_header::read(&bytes, usize::MAX).expect("ours is right").expect("ours is whole");
    assert_eq!((header.addresses, length), (addresses, bytes.len()));
    if version == Version::V2 && addresses.is_some() {
        for name in [Name::UniqueId, Name::GcpPscConnection, Name::AzurePrivateLink] {
            assert_eq!(header.tlvs.bytes(name), tlvs.bytes(name));
        }
        assert_eq!(header.tlvs.text(Name::Authority), authority.filter(|name| !name.is_empty()));
    }
}

#[test]
fn shown() {
    let seeds = Seeds::of("shown");
    check!().with_max_len(RECIPE).for_each(|recipe: &[u8]| {
        let (bytes, _) = seeds.cook(recipe);
        let shown = Shown::from(bytes.as_slice());
        let plain = shown.as_str().strip_suffix('…').unwrap_or(shown.as_str());
        assert_eq!(plain.len() < shown.as_str().len(), bytes.len() > BOUND);
        let mut back = Vec::new();
        let mut rest = plain.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            assert!((b' '..=b'~').contains(&first), "{first:02x} came through");
            assert!(!b"\"'".contains(&first));
            let escaped = first == b'\\';
            back.push(if escaped {
                u8::from_str_radix(std::str::from_utf8(&after[1..3]).expect("digits"), 16).expect("digits")
            } else {
                first
            });
            rest = if escaped { &after[3..] } else { after };
        }
        assert_eq!(back, bytes[..bytes.len().min(BOUND)]);
    });
}

#[test]
fn config() {
    let mut seeds = Seeds::of("config");
    seeds.add(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../config"));
    check!().with_max_len(RECIPE).for_each(|recipe: &[u8]| {
        let (bytes, _) = seeds.cook(recipe);
        if let Err(refused) = twinspan::config::parse(&String::from_utf8_lossy(&bytes), "fuzz") {
            assert!(!refused.to_string().is_empty(), "refused without a word");
        }
    });
}

/// What inputs are made of.
struct Seeds(Vec<Vec<u8>>);

impl Seeds {
    fn of(target: &str) -> Self {
        let mut seeds = Self(Vec::new());
        seeds.add(&Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target));
        seeds
    }

    fn add(&mut self, directory: &Path) {
        let entries = fs::read_dir(directory).expect("a directory of seeds");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a seed").path()).collect();
        paths.sort();
        assert!(!paths.is_empty());
        self.0.extend(paths.iter().map(|path| fs::read(path).expect("a seed")));
    }

    /// What a recipe says, and where to cut it.
    fn cook(&self, recipe: &[u8]) -> (Vec<u8>, usize) {
        let mut steps = Steps(recipe);
        // One in sixteen is the recipe itself.
        let kind = usize::from(steps.byte());
        if kind.is_multiple_of(16) {
            return (steps.0.to_vec(), (kind / 16).min(steps.0.len()));
        }
        let mut bytes = self.0[(kind / 16 * 15 + kind % 16 - 1) % self.0.len()].clone();
        let cut = steps.place(bytes.len());
        // Few, or nothing is left of the seed.
        for _ in 0..steps.byte() % 6 {
            self.change(&mut bytes, &mut steps);
        }
        bytes.truncate(70_000);
        let cut = cut.min(bytes.len());
        (bytes, cut)
    }

    fn change(&self, bytes: &mut Vec<u8>, steps: &mut Steps<'_>) {
        let step = steps.byte();
        let at = steps.place(bytes.len());
        match step % 10 {
            // Nearby values, as lengths are best wrong by a little.
            0 => set(bytes, at, |byte| byte.wrapping_add(1)),
            1 => set(bytes, at, |byte| byte.wrapping_sub(1)),
            2 => set(bytes, at, |byte| byte ^ (1 << (step / 10 % 8))),
            3 => {
                let value = steps.byte();
                set(bytes, at, |_| value);
            }
            4 => {
                let length = usize::from(steps.byte());
                bytes.drain(at..(at + length).min(bytes.len()));
            }
            5 => {
                let value = steps.byte();
                bytes.insert(at, value);
            }
            6 => {
                let length = usize::from(steps.byte());
                let again = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
            7 => bytes.truncate(at),
            8 => {
                // The rest of another seed.
                let other = &self.0[usize::from(steps.byte()) % self.0.len()];
                let from = steps.place(other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => {
                let values = [0, 0xff, 0x7f, 0x80, b' ', b'\n', b'\r', b'"', b'[', b'.'];
                set(bytes, at, |_| values[usize::from(step / 10) % values.len()]);
            }
        }
    }
}

fn set(bytes: &mut [u8], at: usize, value: impl FnOnce(u8) -> u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value(*byte);
    }
}

/// What is left of a recipe.
struct Steps<'a>(&'a [u8]);

impl Steps<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A place in so many bytes, or after them.
    fn place(&mut self, length: usize) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()])) % (length + 1)
    }
}
