//! Who may come in: networks, of which the longest that holds an address decides. Pure.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

/// The prefix of IPv6 below which the IPv4 addresses are mapped (RFC 4291, section 2.5.5.2), in bits.
const MAPPED: u8 = 96;

/// Networks that may come in and networks that may not.
#[derive(Clone, Debug, Default)]
pub struct Access {
    v4: PrefixMap<Ipv4Net, bool>,
    v6: PrefixMap<Ipv6Net, bool>,
    /// Somebody may come in, so what no network holds may not.
    listed: bool,
}

impl Access {
    /// Lets the networks of `allow` in, and those of `deny` not: the longest that holds an address decides, and of two that
    /// are the same the one that denies. What none holds may come in only if `allow` is empty.
    #[must_use]
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        let mut access = Self { listed: !allow.is_empty(), ..Self::default() };
        let allowed = allow.iter().map(|network| (*network, true));
        for (network, may) in allowed.chain(deny.iter().map(|network| (*network, false))) {
            match canonical(network) {
                IpNet::V4(network) => drop(access.v4.insert(network.trunc(), may)),
                IpNet::V6(network) => drop(access.v6.insert(network.trunc(), may)),
            }
        }
        access
    }

    /// True if everybody may come in, whatever the address.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.listed && self.v4.is_empty() && self.v6.is_empty()
    }

    /// True if this client may come in. A mapped address is its IPv4 address.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        if self.is_open() {
            return true;
        }
        let found = match client.to_canonical() {
            IpAddr::V4(client) => self.v4.get_lpm(&client.into()).map(|(_, may)| *may),
            IpAddr::V6(client) => self.v6.get_lpm(&client.into()).map(|(_, may)| *may),
        };
        found.unwrap_or(!self.listed)
    }
}

/// A network of mapped addresses as the IPv4 network that it is.
fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED)),
        IpNet::V4(_) => None,
    };
    let v4 = mapped.and_then(|(address, length): (Ipv4Addr, u8)| Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn networks(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|network| network.parse().unwrap()).collect()
    }

    fn admits(access: &Access, client: &str) -> bool {
        access.admits(client.parse().unwrap())
    }

    #[test]
    fn the_longest_network_decides_and_what_none_holds_may_come_in_only_if_nobody_is_allowed() {
        let access = Access::new(&networks(&["10.0.0.0/8", "10.1.2.3/32"]), &networks(&["10.1.0.0/16"]));
        for (client, may) in
            [("10.2.0.1", true), ("10.1.0.1", false), ("10.1.2.3", true), ("11.0.0.1", false), ("::1", false)]
        {
            assert_eq!(admits(&access, client), may, "{client}");
        }
        let denying = Access::new(&[], &networks(&["10.0.0.0/8", "2001:db8::/32"]));
        for (client, may) in
            [("10.0.0.1", false), ("11.0.0.1", true), ("2001:db8::1", false), ("2001:db9::1", true)]
        {
            assert_eq!(admits(&denying, client), may, "{client}");
        }
        assert!(Access::default().is_open() && admits(&Access::default(), "192.0.2.1"));
        assert!(!denying.is_open() && !access.is_open());
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address_in_clients_and_in_networks() {
        let access = Access::new(&[], &networks(&["10.0.0.0/8", "::ffff:192.0.2.0/120"]));
        for (client, may) in [
            ("::ffff:10.0.0.1", false),
            ("::ffff:11.0.0.1", true),
            ("192.0.2.9", false),
            ("::ffff:192.0.2.9", false),
            ("::10.0.0.1", true),
        ] {
            assert_eq!(admits(&access, client), may, "{client}");
        }
        // An IPv4 client is in no network of IPv6.
        assert!(admits(&Access::new(&[], &networks(&["::/0"])), "10.0.0.1"));
    }

    #[test]
    fn what_is_allowed_and_denied_alike_is_denied() {
        assert!(!admits(&Access::new(&networks(&["10.0.0.0/8"]), &networks(&["10.0.0.0/8"])), "10.0.0.1"));
        // Bits behind the prefix say nothing.
        assert!(!admits(&Access::new(&[], &networks(&["10.9.9.9/8"])), "10.0.0.1"));
    }

    /// Addresses that are near each other, so that networks nest and are hit.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0_u8..4, 0_u8..4).prop_map(|(a, b)| IpAddr::from([10, a * 64, 0, b * 64])),
            (0_u8..4, 0_u8..4).prop_map(|(a, b)| IpAddr::from([
                0x2001,
                0xdb8,
                u16::from(a) << 14,
                0,
                0,
                0,
                0,
                b.into()
            ])),
            (0_u8..4).prop_map(|a| IpAddr::V6(Ipv4Addr::new(10, a * 64, 0, 0).to_ipv6_mapped())),
        ]
    }

    fn network() -> impl Strategy<Value = IpNet> {
        (address(), 0_u8..=128).prop_map(|(address, length)| {
            IpNet::new(address, if address.is_ipv4() { length % 33 } else { length }).unwrap()
        })
    }

    /// The same without a trie.
    fn naive(allow: &[IpNet], deny: &[IpNet], client: IpAddr) -> bool {
        let longest = |networks: &[IpNet]| {
            let holding =
                networks.iter().map(|one| canonical(*one)).filter(|one| one.contains(&client.to_canonical()));
            holding.map(|one| one.prefix_len()).max()
        };
        match (longest(allow), longest(deny)) {
            (None, None) => allow.is_empty(),
            (allowed, denied) => allowed > denied,
        }
    }

    proptest! {
        #[test]
        fn it_is_the_naive_longest_match(
            allow in vec(network(), 0..8),
            deny in vec(network(), 0..8),
            clients in vec(address(), 1..20),
        ) {
            let access = Access::new(&allow, &deny);
            for client in clients {
                prop_assert_eq!(access.admits(client), naive(&allow, &deny, client), "{}", client);
            }
        }
    }
}
