//! ClientHellos, byte by byte.

/// An extension: type, length, content.
fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &length(content), content].concat()
}

/// A length of two bytes.
fn length(content: &[u8]) -> [u8; 2] {
    u16::try_from(content.len()).unwrap().to_be_bytes()
}

/// `server_name` with these entries.
pub(crate) fn names(names: &[&[u8]]) -> Vec<u8> {
    let entries: Vec<u8> = names.iter().flat_map(|name| [&[0], &length(name)[..], name].concat()).collect();
    extension(0, &[&length(&entries)[..], &entries].concat())
}

/// `application_layer_protocol_negotiation` with these protocols.
pub(crate) fn protocols(names: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let entries: Vec<u8> = names
        .iter()
        .map(AsRef::as_ref)
        .flat_map(|name| [&[u8::try_from(name.len()).unwrap()], name].concat())
        .collect();
    extension(16, &[&length(&entries)[..], &entries].concat())
}

/// A ClientHello, without its record: with these extensions, and filled up to `least` bytes.
pub(crate) fn message(more: &[Vec<u8>], least: usize) -> Vec<u8> {
    let mut extensions = [
        extension(10, &[0, 2, 0, 29]),
        extension(13, &[0, 4, 4, 3, 8, 4]),
        extension(43, &[4, 3, 4, 3, 3]),
        extension(51, &[&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat()),
        more.concat(),
    ]
    .concat();
    // As long as it is without them, and then the header of the padding.
    let now = 4 + 2 + 32 + 1 + 32 + 2 + 4 + 2 + 2 + extensions.len() + 4;
    if least > now {
        extensions.extend(extension(21, &vec![0; least - now]));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([8; 32]);
    body.extend([0, 4, 0x13, 1, 0xc0, 0x2f, 1, 0]);
    body.extend(length(&extensions));
    body.extend(extensions);
    let [_, high, middle, low] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1, high, middle, low][..], &body].concat()
}

/// A hello for this name.
pub(crate) fn hello(name: &str) -> Vec<u8> {
    message(&[names(&[name.as_bytes()])], 0)
}

/// Records of these lengths, the last of the rest.
pub(crate) fn records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = message;
    for &at in lengths.iter().chain([&usize::MAX]) {
        let (content, after) = rest.split_at(at.min(rest.len()));
        bytes.extend([&[22, 3, 1][..], &length(content), content].concat());
        rest = after;
    }
    bytes
}

pub(crate) fn record(message: &[u8]) -> Vec<u8> {
    records(message, &[])
}
