//! What an endpoint said, as far as we care to listen, and how it may be repeated to people.

/// Bytes of an answer that are looked at.
pub(super) const LIMIT: usize = 64 * 1024;

/// Characters of an answer that get into a reason.
const QUOTED: usize = 64;

/// The first [`LIMIT`] bytes of an answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    bytes: Vec<u8>,
    /// Everything before this has been searched.
    searched: usize,
}

impl Answer {
    /// Adds bytes; what is beyond the limit is dropped.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let room = LIMIT.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// What has come so far.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True when no more is listened to.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes.len() >= LIMIT
    }

    /// True when `wanted` has been seen. Asked for the same bytes each time, it searches each byte once.
    pub(super) fn contains(&mut self, wanted: &[u8]) -> bool {
        if wanted.is_empty() {
            return true;
        }
        let news = self.bytes.get(self.searched..).unwrap_or_default();
        let found = news.windows(wanted.len()).any(|window| window == wanted);
        if !found {
            // A match may have begun in what is there.
            self.searched = self.bytes.len().saturating_sub(wanted.len() - 1);
        }
        found
    }
}

/// `bytes` in quotes, escaped, and cut short.
pub(super) fn quote(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for byte in bytes {
        let escaped = byte.escape_ascii();
        if text.len() + escaped.len() > QUOTED {
            text.push_str("\"..");
            return text;
        }
        text.extend(escaped.map(char::from));
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_are_escaped_and_cut() {
        assert_eq!(quote(b"+PONG\r\n"), r#""+PONG\r\n""#);
        assert_eq!(quote(b"\x1b[2J\""), r#""\x1b[2J\"""#);
        assert_eq!(quote(b""), r#""""#);
        let long = quote(&[b'a'; 1000]);
        assert_eq!(long.len(), QUOTED + 3, "{long}");
        assert!(long.ends_with("a\".."), "{long}");
    }

    #[test]
    fn a_full_answer_takes_no_more() {
        let mut answer = Answer::default();
        answer.add(&vec![b'x'; LIMIT - 1]);
        assert!(!answer.is_full() && !answer.contains(b"xyz"));
        answer.add(b"yz");
        assert!(answer.is_full());
        assert_eq!(answer.bytes().len(), LIMIT);
        assert!(answer.contains(b"xy") && !answer.contains(b"xyz"));
    }

    proptest! {
        #[test]
        fn a_quote_is_short_and_printable(bytes: Vec<u8>) {
            let text = quote(&bytes);
            prop_assert!(text.len() <= QUOTED + 3);
            prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }

        #[test]
        fn chunks_hide_nothing(
            answer in prop::collection::vec(0_u8..3, 0..60),
            wanted in prop::collection::vec(0_u8..3, 0..4),
            chunk in 1_usize..8,
        ) {
            let mut window = Answer::default();
            let mut found = window.contains(&wanted);
            for chunk in answer.chunks(chunk) {
                window.add(chunk);
                found = found || window.contains(&wanted);
            }
            let really = wanted.is_empty() || answer.windows(wanted.len()).any(|bytes| bytes == wanted);
            prop_assert_eq!(found, really);
        }
    }
}
