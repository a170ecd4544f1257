//! PROXY headers of version 2, byte by byte.

/// What version 2 begins with.
pub(crate) const MAGIC: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The addresses of one of these headers, IPv4: 192.0.2.7:1234 to 198.51.100.9:443.
pub(crate) const FOUR: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 9, 0x04, 0xd2, 0x01, 0xbb];

/// A header of version 2 with this command, family and content.
pub(crate) fn two(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [MAGIC, &[0x20 | command, family], &length, content].concat()
}

/// A TLV.
pub(crate) fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, value].concat()
}

/// CRC32C, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1)))
    })
}

/// A header with TLVs and, at its end, its checksum.
pub(crate) fn summed(content: &[u8]) -> Vec<u8> {
    let mut header = two(1, 0x11, &[content, &tlv(3, &[0; 4])].concat());
    let sum = crc32c(&header).to_be_bytes();
    header.truncate(header.len() - 4);
    [header, sum.to_vec()].concat()
}
