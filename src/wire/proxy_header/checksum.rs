//! CRC32C (RFC 4960 appendix B; RFC 3720 section 12.1 for the polynomial).

/// Castagnoli's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of all parts, one after the other.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    let sum = parts.iter().copied().flatten().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { POLYNOMIAL } else { 0 })
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn the_vectors_of_rfc_3720_come_out() {
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(crc32c(&[]), 0);
    }
}
