//! Server-sent events, read from the pieces in which they come.

use std::collections::VecDeque;

/// The longest frame that is read, in bytes.
const LENGTH: usize = 1024 * 1024;

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// What it is.
    pub(super) kind: String,
    /// What it says.
    pub(super) data: String,
}

/// What has come so far and is not taken yet.
#[derive(Debug, Default)]
pub(super) struct Frames {
    line: Vec<u8>,
    frame: Frame,
    id: Option<String>,
    last: Option<String>,
    whole: VecDeque<Frame>,
}

impl Frames {
    /// Takes bytes in.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.len() + self.frame.data.len() > LENGTH {
                return Err("an event is too long".to_owned());
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.take(&String::from_utf8_lossy(line.trim_ascii_end()));
            }
        }
        Ok(())
    }

    /// The next whole event.
    pub(super) fn next(&mut self) -> Option<Frame> {
        self.whole.pop_front()
    }

    /// Where to go on after everything that has come whole.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last.as_deref()
    }

    fn take(&mut self, line: &str) {
        if line.is_empty() {
            self.last = self.id.take().or_else(|| self.last.take());
            let frame = std::mem::take(&mut self.frame);
            if !frame.data.is_empty() {
                self.whole.push_back(frame);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.frame.kind),
            "data" => {
                if !self.frame.data.is_empty() {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            // A comment, or something that only browsers need.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_in_any_pieces() {
        let text = "retry: 1000\n\nid: 7-1\nevent: verdict\ndata: {\"text\":\"ü\"}\n\n: still here\n\n\
                    event: lost\r\ndata: {}\r\n\r\nid: 7-2\ndata:a\ndata: b\n\nid: 7-3\ndata: unfin";
        let all = |size: usize| {
            let mut frames = Frames::default();
            let mut taken = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                frames.push(piece).unwrap();
                taken.extend(std::iter::from_fn(|| frames.next()));
            }
            assert_eq!(frames.last_id(), Some("7-2"), "{size}");
            taken
        };
        let frame = |kind: &str, data: &str| Frame { kind: kind.to_owned(), data: data.to_owned() };
        let wanted = [frame("verdict", "{\"text\":\"ü\"}"), frame("lost", "{}"), frame("", "a\nb")];
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(all(size), wanted, "{size}");
        }
    }

    #[test]
    fn an_event_without_end_is_an_error() {
        let mut frames = Frames::default();
        let outcome = (0..2 * LENGTH / 1000).try_for_each(|_| frames.push(&[b'x'; 1000]));
        assert!(outcome.is_err());
    }
}
