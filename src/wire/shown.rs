//! Bytes that a stranger chose, as text that can go into logs, labels and terminals.

use std::fmt::{self, Write as _};

/// How many bytes are shown; what follows is cut.
pub const BOUND: usize = 255;

/// Bounded, escaped text of hostile bytes: printable ASCII as it is, but for quotes and the backslash; everything else as
/// `\xNN`. What was longer than [`BOUND`] ends in `…`, which cannot come from the bytes themselves. Different bytes (up to
/// the bound) never look alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shown(Box<str>);

impl Shown {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&[u8]> for Shown {
    fn from(bytes: &[u8]) -> Self {
        let shown = bytes.get(..BOUND).unwrap_or(bytes);
        let mut text = String::with_capacity(shown.len());
        for &byte in shown {
            if is_plain(byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
        if shown.len() < bytes.len() {
            text.push('…');
        }
        Self(text.into_boxed_str())
    }
}

impl From<&str> for Shown {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

/// What may stand as it is stays where it is.
impl From<Box<str>> for Shown {
    fn from(text: Box<str>) -> Self {
        if text.len() <= BOUND && text.bytes().all(is_plain) {
            Self(text)
        } else {
            Self::from(text.as_bytes())
        }
    }
}

const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\'' | b'\\')
}

impl From<Shown> for Box<str> {
    fn from(shown: Shown) -> Self {
        shown.0
    }
}

impl AsRef<str> for Shown {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What was escaped, back again.
    fn read_back(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            if first == b'\\' {
                let digits = std::str::from_utf8(&after[1..3]).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &after[3..];
            } else {
                bytes.push(first);
                rest = after;
            }
        }
        bytes
    }

    #[test]
    fn ordinary_names_stay_as_they_are() {
        assert_eq!(Shown::from("db-1.example.com:443 (a)").as_str(), "db-1.example.com:443 (a)");
    }

    #[test]
    fn what_a_terminal_or_a_log_would_act_on_is_escaped() {
        let hostile = b"a\r\n\x1b[2Jb\0\"'\\\x7f\xff".as_slice();
        assert_eq!(Shown::from(hostile).to_string(), r"a\x0d\x0a\x1b[2Jb\x00\x22\x27\x5c\x7f\xff");
        assert_eq!(Shown::from("\u{202e}é").as_str(), r"\xe2\x80\xae\xc3\xa9");
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let whole = [b'x'; BOUND];
        assert_eq!(Shown::from(whole.as_slice()).as_str(), "x".repeat(BOUND));
        let longer = [b'x'; BOUND + 1];
        assert_eq!(Shown::from(longer.as_slice()).as_str(), format!("{}…", "x".repeat(BOUND)));
    }

    proptest! {
        #[test]
        fn text_is_printable_bounded_and_says_which_bytes_it_was(
            bytes in proptest::collection::vec(any::<u8>(), 0..600)
        ) {
            let shown = Shown::from(bytes.as_slice());
            let text = shown.as_str();
            let (plain, cut) = match text.strip_suffix('…') {
                Some(plain) => (plain, true),
                None => (text, false),
            };
            prop_assert!(plain.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            prop_assert!(plain.len() <= BOUND * 4);
            prop_assert_eq!(cut, bytes.len() > BOUND);
            prop_assert_eq!(read_back(plain), &bytes[..bytes.len().min(BOUND)]);
        }

        #[test]
        fn text_that_is_given_away_is_shown_like_any_other(text in "[ -~]{0,300}|[a-z.]{0,300}") {
            prop_assert_eq!(Shown::from(text.clone().into_boxed_str()), Shown::from(text.as_str()));
        }
    }
}
