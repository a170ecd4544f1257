//! Random headers and random bytes.

use proptest::prelude::*;

use super::*;
use crate::wire::shown::Shown;

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
    fn what_is_known_of_a_session_is_written_whole_or_not_at_all(
        (authority, common_name) in ("\\PC{0,300}", "\\PC{0,300}"),
        alpn in proptest::collection::vec(any::<u8>(), 0..300),
        id in proptest::collection::vec(any::<u8>(), 0..200),
        verified in any::<bool>(),
        link in proptest::collection::vec(any::<u8>(), 0..1100),
    ) {
        let passed_on = header(&with_tlvs(&[tlv(0xea, &[&[1], link.as_slice()].concat())])).tlvs;
        let tls = OutgoingTls { version: "TLSv1.2", verified, common_name: Some(&common_name) };
        let outgoing = Outgoing {
            authority: Some(&authority),
            alpn: Some(&alpn),
            unique_id: Some(&id),
            tls: Some(tls),
            passed_on: Some(&passed_on),
        };
        let bytes = write(Version::V2, addresses("192.0.2.1:1", "192.0.2.2:2"), &outgoing);
        prop_assert!(bytes.len() <= DEFAULT_LIMIT);
        let tlvs = header(&bytes).tlvs;
        let within = |most: usize, value| Some(value).filter(|value: &&[u8]| value.len() <= most);
        prop_assert_eq!(tlvs.bytes(Name::Authority), within(255, authority.as_bytes()));
        prop_assert_eq!(tlvs.bytes(Name::Alpn), within(255, &alpn));
        prop_assert_eq!(tlvs.bytes(Name::UniqueId), within(128, &id));
        prop_assert_eq!(tlvs.bytes(Name::AwsVpcEndpoint), within(1024, &link));
        let ssl = tlvs.ssl().unwrap();
        prop_assert!(ssl.over_tls() && ssl.verified() == verified);
        prop_assert_eq!(ssl.version(), Some(Shown::from("TLSv1.2")));
        let told = within(255, common_name.as_bytes()).filter(|_| verified).map(Shown::from);
        prop_assert_eq!(ssl.common_name(), told);
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
