//! What is asked and what has to come back: an echo of bytes that differ from request to request, or an answer of any
//! size from a target that reads the head of a request.

/// What a connection asks of a target that reads heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Each request gets a reply.
    Reply {
        /// Bytes of a request, its head included.
        request: u32,
        /// Bytes of a reply.
        reply: u32,
    },
    /// Bytes from the target until the connection ends.
    Source,
    /// Bytes to the target.
    Sink,
    /// Both at once.
    Both,
}

/// Bytes of a head: what is asked for (1), the size of a request (3), the size of a reply (4).
pub const HEAD: usize = 8;

/// The largest request that a head can tell of.
pub const LARGEST_REQUEST: u32 = (1 << 24) - 1;

/// What the target sends where nothing else is asked for.
pub(super) const FILLER: u8 = b'x';

/// Starts that the requests of an echo rotate through, so that an old answer is found out.
const SHIFTS: usize = 1021;

/// Requests, and the replies they must get.
#[derive(Clone, Debug)]
pub struct Script {
    /// Every request is a window of `size` bytes in this.
    bytes: Vec<u8>,
    size: usize,
    reply: usize,
    /// The window moves by one for each request, modulo this.
    shifts: usize,
    check: Check,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    /// The reply is the request.
    Echo,
    /// The reply is [`FILLER`].
    Filler,
}

impl Ask {
    /// The head that says so.
    #[must_use]
    pub const fn head(self) -> [u8; HEAD] {
        let (kind, request, reply) = match self {
            Self::Reply { request, reply } => (b'r', request, reply),
            Self::Source => (b'<', 0, 0),
            Self::Sink => (b'>', 0, 0),
            Self::Both => (b'=', 0, 0),
        };
        let [_, a, b, c] = request.to_be_bytes();
        let [d, e, f, g] = reply.to_be_bytes();
        [kind, a, b, c, d, e, f, g]
    }

    pub(super) const fn parse(head: [u8; HEAD]) -> Option<Self> {
        let [kind, a, b, c, d, e, f, g] = head;
        let (request, reply) = (u32::from_be_bytes([0, a, b, c]), u32::from_be_bytes([d, e, f, g]));
        match kind {
            b'r' if request as usize >= HEAD => Some(Self::Reply { request, reply }),
            b'<' => Some(Self::Source),
            b'>' => Some(Self::Sink),
            b'=' => Some(Self::Both),
            _ => None,
        }
    }

    pub(super) const fn sends(self) -> bool {
        matches!(self, Self::Source | Self::Both)
    }
}

impl Script {
    /// Requests of `size` bytes that come back as they are.
    #[must_use]
    pub fn echo(size: usize) -> Self {
        let bytes = numbers().flat_map(u64::to_le_bytes).take(size + SHIFTS).collect();
        Self { bytes, size, reply: size, shifts: SHIFTS, check: Check::Echo }
    }

    /// Requests of at least [`HEAD`] bytes that say how large a reply they want.
    #[must_use]
    pub fn reply(request: u32, reply: u32) -> Self {
        let request = request.clamp(u32::try_from(HEAD).unwrap_or_default(), LARGEST_REQUEST);
        let mut bytes = vec![FILLER; request as usize];
        for (byte, value) in bytes.iter_mut().zip(Ask::Reply { request, reply }.head()) {
            *byte = value;
        }
        let size = bytes.len();
        Self { bytes, size, reply: reply as usize, shifts: 1, check: Check::Filler }
    }

    /// Without looking at what comes back, as that costs time.
    #[must_use]
    pub const fn unchecked(mut self) -> Self {
        self.check = Check::Nothing;
        self
    }

    pub(super) fn is_checked(&self) -> bool {
        self.check != Check::Nothing
    }

    /// Bytes of a request.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Bytes of a reply.
    #[must_use]
    pub const fn reply_size(&self) -> usize {
        self.reply
    }

    /// Where the first request of a line starts.
    pub(super) const fn start(&self, line: usize) -> usize {
        line % self.shifts
    }

    /// Where the request after the one at `shift` starts.
    pub(super) const fn next(&self, shift: usize) -> usize {
        (shift + 1) % self.shifts
    }

    /// What is left of the request at `shift` after `sent` bytes.
    pub(super) fn rest(&self, shift: usize, sent: usize) -> &[u8] {
        self.bytes.get(shift + sent..shift + self.size).unwrap_or_default()
    }

    /// True if `bytes` may follow the first `received` bytes of the reply to the request at `shift`.
    pub(super) fn fits(&self, shift: usize, received: usize, bytes: &[u8]) -> bool {
        match self.check {
            Check::Nothing => true,
            Check::Echo => self.rest(shift, received).starts_with(bytes),
            Check::Filler => received + bytes.len() <= self.reply && bytes.iter().all(|byte| *byte == FILLER),
        }
    }
}

/// Numbers that do not repeat (splitmix64).
fn numbers() -> impl Iterator<Item = u64> {
    let mut state = 0_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for ask in [
            Ask::Reply { request: 128, reply: 65_536 },
            Ask::Reply { request: LARGEST_REQUEST, reply: u32::MAX },
            Ask::Source,
            Ask::Sink,
            Ask::Both,
        ] {
            assert_eq!(Ask::parse(ask.head()), Some(ask));
        }
        assert_eq!(Ask::parse(*b"GET / HT"), None);
        assert_eq!(Ask::parse(Ask::Reply { request: 7, reply: 1 }.head()), None, "smaller than its head");
    }

    #[test]
    fn only_the_echo_of_this_request_fits() {
        let script = Script::echo(100);
        let request = script.rest(5, 0).to_vec();
        assert_eq!(request.len(), 100);
        assert!(script.fits(5, 0, &request) && script.fits(5, 40, &request[40..]));
        assert!(!script.fits(6, 0, &request), "an old answer");
        assert!(!script.fits(5, 40, &request), "more than was asked for");
        let mut wrong = request;
        wrong[99] ^= 1;
        assert!(!script.fits(5, 0, &wrong));
        assert!(script.unchecked().fits(5, 0, &wrong));
    }

    #[test]
    fn a_reply_has_its_size_and_its_filler() {
        let script = Script::reply(128, 10);
        assert_eq!((script.size(), script.reply_size(), script.next(0)), (128, 10, 0));
        assert!(script.fits(0, 0, b"xxxxxxxxxx") && script.fits(0, 9, b"x"));
        assert!(!script.fits(0, 9, b"xx") && !script.fits(0, 0, b"y"));
    }

    #[test]
    fn windows_go_round() {
        let script = Script::echo(1);
        assert_eq!((script.next(0), script.next(SHIFTS - 1)), (1, 0));
        assert_eq!(script.rest(SHIFTS - 1, 0).len(), 1);
    }
}
