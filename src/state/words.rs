//! How the entry of sessions went, counted by the words that their lines in the log have. The words are a bounded set: what
//! strangers send never becomes a label.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::lanes::Lanes;

/// How handshakes can go, as metrics have it. The last one stands for every other word.
pub const HANDSHAKES: [&str; 17] = [
    "ok",
    "resumed",
    "no_certificate",
    "certificate_expired",
    "unknown_ca",
    "name_not_allowed",
    "bad_certificate",
    "protocol_version",
    "no_shared_cipher",
    "no_shared_protocol",
    "peer_alert",
    "not_tls",
    "bad_message",
    "closed",
    "reset",
    "timed_out",
    "other",
];

/// Why a session can be refused for what its client said before it had a pool. The last one stands for every other word.
pub const REFUSALS: [&str; 23] = [
    "untrusted",
    "no_header",
    "header_too_long",
    "line",
    "address",
    "port",
    "command",
    "family",
    "length",
    "tlv",
    "repeated_tlv",
    "checksum",
    "not_tls",
    "not_hello",
    "empty_record",
    "hello_too_long",
    "server_name",
    "repeated_extension",
    "too_many_protocols",
    "malformed_hello",
    "no_route",
    "loop",
    "other",
];

/// Counts of TLS handshakes.
pub type Handshakes = Words<{ HANDSHAKES.len() }>;

/// Counts of refusals.
pub type Refusals = Words<{ REFUSALS.len() }>;

/// Counts by word: no lock, and a copy for each worker.
#[derive(Debug)]
pub struct Words<const N: usize> {
    words: &'static [&'static str; N],
    lanes: Lanes<Counts<N>>,
}

#[derive(Debug)]
struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

impl Default for Handshakes {
    fn default() -> Self {
        Self { words: &HANDSHAKES, lanes: Lanes::default() }
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self { words: &REFUSALS, lanes: Lanes::default() }
    }
}

impl<const N: usize> Words<N> {
    /// One more of this word.
    pub fn count(&self, word: &str) {
        let place = self.words.iter().position(|known| *known == word).unwrap_or(N - 1);
        self.lanes.with(|lane| {
            if let Some(count) = lane.0.get(place) {
                count.fetch_add(1, Relaxed);
            }
        });
    }

    /// The words that were counted, and how often.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count =
            |place: usize| self.lanes.sum(|lane| lane.0.get(place).map_or(0, |count| count.load(Relaxed)));
        self.words.iter().enumerate().map(move |(place, word)| (*word, count(place))).filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_in_the_set_is_counted_as_other() {
        let handshakes = Handshakes::default();
        for word in ["ok", "ok", "resumed", "a stranger's own word", "other"] {
            handshakes.count(word);
        }
        assert_eq!(handshakes.counts().collect::<Vec<_>>(), [("ok", 2), ("resumed", 1), ("other", 2)]);
    }
}
