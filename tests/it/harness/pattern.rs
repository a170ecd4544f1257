//! Bytes that know where they belong. A stream is a row of numbered blocks, so that a byte that is lost, doubled,
//! changed, or taken from another stream shows at its place, and comparing is as fast as memory.

use std::{io, sync::OnceLock};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const BLOCK: u64 = 4096;
const NUMBER: u64 = 8;
const PIECE: usize = 128 * 1024;

/// Seeded chance: the same seed gives the same throws.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice that fall as `seed` says.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number (splitmix64).
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// One endless stream of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern(pub(crate) u64);

impl Pattern {
    /// The bytes that stand at `offset` and after it.
    pub(crate) fn fill(self, offset: u64, bytes: &mut [u8]) {
        self.pieces(offset, bytes.len(), |place, piece| {
            bytes[place..place + piece.len()].copy_from_slice(piece);
        });
    }

    /// Fails if `bytes` are not those that stand at `offset`.
    pub(crate) fn check(self, offset: u64, bytes: &[u8]) {
        self.pieces(offset, bytes.len(), |place, piece| {
            let found = &bytes[place..place + piece.len()];
            assert!(found == piece, "stream {}: wrong bytes from offset {}", self.0, offset + place as u64);
        });
    }

    /// Writes the bytes from `from` up to `to`.
    pub(crate) async fn send(
        self,
        to_peer: &mut (impl AsyncWrite + Unpin),
        from: u64,
        to: u64,
    ) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut offset = from;
        while offset < to {
            let length = usize::try_from(to - offset).unwrap().min(PIECE);
            let piece = &mut buffer[..length];
            self.fill(offset, piece);
            to_peer.write_all(piece).await?;
            offset += length as u64;
        }
        Ok(())
    }

    /// Reads and checks the bytes from `from` up to `to`, or to the end if that comes first. Returns where it stopped.
    pub(crate) async fn receive(
        self,
        from_peer: &mut (impl AsyncRead + Unpin),
        from: u64,
        to: u64,
    ) -> io::Result<u64> {
        let mut buffer = vec![0; PIECE];
        let mut offset = from;
        while offset < to {
            let limit = usize::try_from(to - offset).unwrap().min(PIECE);
            let length = from_peer.read(&mut buffer[..limit]).await?;
            if length == 0 {
                break;
            }
            self.check(offset, &buffer[..length]);
            offset += length as u64;
        }
        Ok(offset)
    }

    /// Reads and checks everything: exactly `total` bytes and then a clean end.
    pub(crate) async fn receive_all(self, from_peer: &mut (impl AsyncRead + Unpin), total: u64) {
        let received = self.receive(from_peer, 0, u64::MAX).await;
        assert!(matches!(received, Ok(n) if n == total), "stream {}: {received:?} of {total}", self.0);
    }

    /// Calls `each` with a place in the caller's bytes and what belongs there.
    fn pieces(self, offset: u64, length: usize, mut each: impl FnMut(usize, &[u8])) {
        let table = table();
        let mut place = 0;
        while place < length {
            let at = offset + place as u64;
            let (block, within) = (at / BLOCK, at % BLOCK);
            let number = (block ^ self.0.rotate_left(32)).to_le_bytes();
            let whole = if within < NUMBER {
                &number[usize::try_from(within).unwrap()..]
            } else {
                let start = (block.wrapping_mul(31).wrapping_add(self.0) % BLOCK) + within;
                let end = start + BLOCK - within;
                &table[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()]
            };
            let piece = &whole[..whole.len().min(length - place)];
            each(place, piece);
            place += piece.len();
        }
    }
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut dice = Dice::new(1);
        (0..BLOCK / 4).flat_map(|_| dice.next().to_le_bytes()).collect()
    })
}

#[test]
fn a_pattern_notices_a_byte_that_is_out_of_place() {
    let mut bytes = vec![0; 10_000];
    Pattern(7).fill(3, &mut bytes);
    Pattern(7).check(3, &bytes);
    let mut rest = vec![0; 5_000];
    Pattern(7).fill(5_003, &mut rest);
    assert_eq!(bytes[5_000..], rest);
    for (pattern, offset) in [(Pattern(8), 3), (Pattern(7), 4), (Pattern(7), 3 + BLOCK)] {
        assert!(std::panic::catch_unwind(|| pattern.check(offset, &bytes)).is_err());
    }
}
