//! Random headers and random bytes.

use proptest::prelude::*;

use super::*;

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any::<bool>(), any::<[u8; 16]>(), any::<u16>()).prop_map(|(four, octets, port)| {
        let ip =
            if four { Ipv4Addr::from(*octets.first_chunk::<4>().unwrap()).into() } else { octets.into() };
        SocketAddr::new(ip, port)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        source in any_address(), destination in any_address(), text in any::<bool>(),
        authority in "[a-z]{1,20}", id in proptest::collection::vec(any::<u8>(), 0..128), cut in 0.0..1.0_f64,
    ) {
        let version = if text { Version::V1 } else { Version::V2 };
        let outgoing = Outgoing { authority: Some(&authority), unique_id: Some(&id), ..Outgoing::default() };
        let bytes = write(version, Some((source, destination)), &outgoing);
        let header = header(&bytes);
        prop_assert_eq!(header.addresses, Some((canonical(source), canonical(destination))));
        prop_assert_eq!(header.version, version);
        if version == Version::V2 {
            prop_assert_eq!(header.tlvs.text(Name::Authority), Some(authority));
            prop_assert_eq!(header.tlvs.bytes(Name::UniqueId), Some(&id[..]));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                 reason = "a place in a short header")]
        let cut = (bytes.len() as f64 * cut) as usize;
        prop_assert_eq!(all(&bytes[..cut]), Ok(None));
    }

    #[test]
    fn random_and_changed_bytes_never_confuse(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), which in 0_usize..23, keep in 0_usize..60,
    ) {
        let (valid, _) = &valid()[which];
        let bytes = [&valid[..keep.min(valid.len())], &bytes].concat();
        // What is an answer for some bytes stays the answer when more come.
        let mut answer = Ok(None);
        for end in 0..=bytes.len() {
            let now = all(&bytes[..end]);
            if answer != Ok(None) {
                prop_assert_eq!(now.is_ok(), answer.is_ok());
                if answer.is_ok() {
                    prop_assert_eq!(&now, &answer);
                }
            }
            answer = now;
        }
    }
}
