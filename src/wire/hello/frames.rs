//! When it is worth to ask rustls: once the records hold as many bytes as the handshake message in them announces.
//!
//! It reads what says how long a record is (RFC 8446 section 5.1) and how long the message in it (section 4), and gives
//! no meaning to either. A wrong hint costs a look or delays one; it never decides.

/// Type, version, length.
const RECORD_HEADER: usize = 5;

/// Type, length.
const MESSAGE_HEADER: usize = 4;

/// The content type of handshake messages.
const HANDSHAKE: u8 = 22;

/// The longest content of a record.
const LONGEST: u16 = 16_384;

/// How far the records have been walked through. Linear in the bytes, however they come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Where the next record begins.
    next: usize,
    /// Bytes of content in the whole records before it.
    content: usize,
    /// The first of these.
    head: [u8; MESSAGE_HEADER],
    /// How much of the next record's header was worth a look, being none that a hello can have.
    odd: usize,
    /// Nothing more to be had from here.
    over: bool,
}

impl Frames {
    /// Walks on through `bytes`, the whole connection so far. True when a look is worth it: at the end of the message;
    /// at each byte of the header, and at the end, of a record that does not belong there.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> bool {
        while !self.over {
            let rest = bytes.get(self.next..).unwrap_or_default();
            let header = rest.get(..RECORD_HEADER).unwrap_or(rest);
            if !fits(header) && header.len() > self.odd {
                self.odd = header.len();
                return true;
            }
            let Some(&[_, _, _, high, low]) = header.first_chunk() else {
                return false;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let begin = self.next + RECORD_HEADER;
            let Some(content) = bytes.get(begin..begin + length) else {
                return false;
            };
            if self.odd > 0 {
                self.over = true;
                return true;
            }
            for (slot, &byte) in self.head.iter_mut().skip(self.content).zip(content) {
                *slot = byte;
            }
            self.content += length;
            self.next = begin + length;
            if self.content >= MESSAGE_HEADER && self.content >= self.message() {
                self.over = true;
                return true;
            }
        }
        false
    }

    /// How many bytes the message takes by its own account. 0: it has not said.
    pub(super) fn announced(&self) -> usize {
        if self.content >= MESSAGE_HEADER { self.message() } else { 0 }
    }

    fn message(&self) -> usize {
        let [_, high, middle, low] = self.head;
        MESSAGE_HEADER + (usize::from(high) << 16 | usize::from(u16::from_be_bytes([middle, low])))
    }
}

/// Whether a record that begins like this, as far as it goes, can be part of a hello.
fn fits(header: &[u8]) -> bool {
    match *header {
        [] => true,
        [kind] => kind == HANDSHAKE,
        [kind, major] | [kind, major, _] | [kind, major, _, _] => kind == HANDSHAKE && major == 3,
        [kind, major, _, high, low, ..] => {
            kind == HANDSHAKE && major == 3 && (1..=LONGEST).contains(&u16::from_be_bytes([high, low]))
        }
    }
}
