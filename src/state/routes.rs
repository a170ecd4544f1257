//! Which route a session takes, by what is known of it. Pure: the same facts take the same route.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::ids::Tlv;

/// What a session has told before it has a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What the client asked for: the original destination, that of the PROXY header, or the listener's own address.
    pub destination: Option<SocketAddr>,
    /// The server name: lower case, without a trailing dot.
    pub sni: Option<Box<str>>,
    /// The protocols that the client offers.
    pub alpn: Vec<Box<[u8]>>,
    /// What the PROXY header carries of what routes know.
    pub tlvs: Vec<(Tlv, Box<str>)>,
}

impl Told {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { destination: None, sni: None, alpn: Vec::new(), tlvs: Vec::new() }
    }
}

/// What a session must be like to take a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// One of these server names. Empty: any, or none.
    pub sni: Vec<ServerName>,
    /// One of these protocols. Empty: any, or none.
    pub alpn: Vec<Box<[u8]>>,
    /// The client is in one of these networks. Empty: anywhere.
    pub source: Vec<IpNet>,
    /// One of these networks and ports. Empty: any.
    pub destination: Vec<(Option<IpNet>, Option<u16>)>,
    /// Each of these, with one of its values.
    pub tlvs: Vec<(Tlv, Vec<Box<str>>)>,
}

/// A server name in a condition: lower case, without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// This name.
    Exact(Box<str>),
    /// Every name that ends in this, which begins with a dot.
    Below(Box<str>),
}

/// The conditions of a listener's routes, by number. Routes that ask for a server name are found by it, so that a listener
/// may have thousands of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Routes {
    conditions: Vec<Condition>,
    exact: HashMap<Box<str>, Vec<usize>>,
    below: HashMap<Box<str>, Vec<usize>>,
    /// Those that ask for no server name.
    others: Vec<usize>,
    /// One asks for what stands in a ClientHello.
    ask_for_hello: bool,
    /// One asks what the client asked for.
    ask_for_destination: bool,
}

/// How specific a condition is for the session that it fits: what stands first decides first.
type Rank = (usize, bool, Option<u8>, Option<(Option<u8>, bool)>, usize);

impl Routes {
    /// Routes with these conditions, in the order of the file.
    #[must_use]
    pub fn new(conditions: Vec<Condition>) -> Self {
        let mut routes = Self::default();
        for (place, condition) in conditions.iter().enumerate() {
            for name in &condition.sni {
                let (map, name) = match name {
                    ServerName::Exact(name) => (&mut routes.exact, name),
                    ServerName::Below(name) => (&mut routes.below, name),
                };
                map.entry(name.clone()).or_default().push(place);
            }
            if condition.sni.is_empty() {
                routes.others.push(place);
            }
        }
        let ask_for_hello = conditions.iter().any(|one| !one.sni.is_empty() || !one.alpn.is_empty());
        let ask_for_destination = conditions.iter().any(|one| !one.destination.is_empty());
        Self { conditions, ask_for_hello, ask_for_destination, ..routes }
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// True if a route asks for what stands in a ClientHello.
    #[must_use]
    pub const fn ask_for_hello(&self) -> bool {
        self.ask_for_hello
    }

    /// True if a route asks what the client asked for.
    #[must_use]
    pub const fn ask_for_destination(&self) -> bool {
        self.ask_for_destination
    }

    /// The number of the most specific route that this session fits; the first in the file of several.
    #[must_use]
    pub fn find(&self, source: IpAddr, told: &Told) -> Option<usize> {
        let mut best: Option<(Rank, usize)> = None;
        let mut look = |places: Option<&Vec<usize>>, name: usize| {
            for place in places.into_iter().flatten() {
                let Some(condition) = self.conditions.get(*place) else { continue };
                let Some(rank) = condition.rank(name, source, told) else { continue };
                if best.is_none_or(|(known, first)| (rank, first) > (known, *place)) {
                    best = Some((rank, *place));
                }
            }
        };
        look(Some(&self.others), 0);
        if let Some(sni) = told.sni.as_deref() {
            look(self.exact.get(sni), usize::MAX);
            // `*.example.com` takes `a.example.com`, and not `.example.com`, which has no first label.
            for (dot, _) in sni.match_indices('.').filter(|(dot, _)| *dot > 0) {
                let below = sni.get(dot..).unwrap_or_default();
                look(self.below.get(below), below.len());
            }
        }
        best.map(|(_, place)| place)
    }
}

impl Condition {
    /// How specific it is for this session, if that fits. `name` says it of the server name, which fits already.
    fn rank(&self, name: usize, source: IpAddr, told: &Told) -> Option<Rank> {
        let protocol = self.alpn.is_empty() || self.alpn.iter().any(|wanted| told.alpn.contains(wanted));
        let tlvs = self.tlvs.iter().all(|(wanted, values)| {
            told.tlvs.iter().any(|(tlv, value)| tlv == wanted && values.contains(value))
        });
        if !protocol || !tlvs {
            return None;
        }
        let source = longest(&self.source, source.to_canonical())?;
        let destination = match self.destination.as_slice() {
            [] => None,
            wanted => Some(nearest(wanted, told.destination?)?),
        };
        Some((name, !self.alpn.is_empty(), source, destination, self.tlvs.len()))
    }
}

/// The length of the longest of these networks that has this address; nothing if there are no networks, and no answer if
/// none has it.
fn longest(networks: &[IpNet], address: IpAddr) -> Option<Option<u8>> {
    if networks.is_empty() {
        return Some(None);
    }
    networks.iter().filter(|network| network.contains(&address)).map(IpNet::prefix_len).max().map(Some)
}

fn nearest(wanted: &[(Option<IpNet>, Option<u16>)], address: SocketAddr) -> Option<(Option<u8>, bool)> {
    let ip = address.ip().to_canonical();
    let fits = wanted.iter().filter(|(network, port)| {
        network.is_none_or(|network| network.contains(&ip)) && port.is_none_or(|port| port == address.port())
    });
    fits.map(|(network, port)| (network.map(|network| network.prefix_len()), port.is_some())).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<ServerName> {
        let name = |name: &&str| match name.strip_prefix('*') {
            Some(below) => ServerName::Below(below.into()),
            None => ServerName::Exact((*name).into()),
        };
        names.iter().map(name).collect()
    }

    fn sni(all: &[&str]) -> Condition {
        Condition { sni: names(all), ..Condition::default() }
    }

    fn told(sni: Option<&str>) -> Told {
        Told { sni: sni.map(Into::into), ..Told::default() }
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    #[test]
    fn the_most_specific_server_name_decides_whatever_its_place() {
        let routes = Routes::new(vec![
            sni(&["*.example.com"]),
            sni(&["*.b.example.com"]),
            sni(&["a.b.example.com"]),
            Condition { source: vec!["10.0.0.0/8".parse().unwrap()], ..Condition::default() },
        ]);
        let taken = |name| routes.find(CLIENT, &told(name));
        assert_eq!(taken(Some("a.b.example.com")), Some(2));
        assert_eq!(taken(Some("x.b.example.com")), Some(1));
        assert_eq!(taken(Some("x.y.b.example.com")), Some(1));
        assert_eq!(taken(Some("b.example.com")), Some(0));
        for other in [Some("example.com"), Some(".example.com"), Some("example.org"), None] {
            assert_eq!(taken(other), Some(3), "{other:?}");
        }
        assert_eq!(routes.find([11, 0, 0, 1].into(), &told(None)), None);
    }

    #[test]
    fn after_the_name_come_protocol_source_destination_and_tlvs() {
        let network = |text: &str| text.parse::<IpNet>().unwrap();
        let plain = sni(&["a"]);
        let routes = Routes::new(vec![
            plain.clone(),
            Condition { source: vec![network("10.1.0.0/16"), network("0.0.0.0/0")], ..plain.clone() },
            Condition { source: vec![network("10.0.0.0/8")], ..plain.clone() },
            Condition { destination: vec![(Some(network("192.0.2.0/24")), None)], ..plain.clone() },
            Condition { destination: vec![(None, Some(443))], ..plain.clone() },
            Condition { alpn: vec![b"h2"[..].into()], ..plain.clone() },
            Condition { tlvs: vec![(Tlv::AwsVpcEndpoint, vec!["vpce-1".into()])], ..plain.clone() },
            plain,
        ]);
        let base = told(Some("a"));
        let taken = |client: [u8; 4], told: &Told| routes.find(client.into(), told);
        let far = [172, 16, 0, 1];
        assert_eq!(taken([10, 1, 0, 1], &base), Some(1));
        assert_eq!(taken([10, 2, 0, 1], &base), Some(2));
        assert_eq!(taken(far, &base), Some(1), "0.0.0.0/0 is a network too");
        let to = |address: &str| Told { destination: Some(address.parse().unwrap()), ..base.clone() };
        assert_eq!(taken([10, 2, 0, 1], &to("192.0.2.1:443")), Some(2), "the source comes first");
        let wanted = Condition { destination: vec![(None, Some(443))], ..sni(&["a"]) };
        let network_first = Routes::new(vec![
            wanted,
            Condition { destination: vec![(Some(network("192.0.2.0/24")), None)], ..sni(&["a"]) },
        ]);
        assert_eq!(network_first.find(far.into(), &to("192.0.2.1:443")), Some(1));
        assert_eq!(network_first.find(far.into(), &to("198.51.100.1:443")), Some(0));
        assert_eq!(network_first.find(far.into(), &to("198.51.100.1:80")), None);
        let protocol = Told { alpn: vec![b"http/1.1"[..].into(), b"h2"[..].into()], ..base.clone() };
        assert_eq!(taken([10, 1, 0, 1], &protocol), Some(5));
        let two = Routes::new(vec![
            sni(&["a"]),
            Condition { tlvs: vec![(Tlv::AwsVpcEndpoint, vec!["vpce-1".into()])], ..sni(&["a"]) },
        ]);
        let tlv = Told { tlvs: vec![(Tlv::AwsVpcEndpoint, "vpce-1".into())], ..base.clone() };
        assert_eq!(two.find(CLIENT, &tlv), Some(1));
        assert_eq!(two.find(CLIENT, &base), Some(0));
    }

    #[test]
    fn of_two_that_fit_as_well_the_first_in_the_file_is_taken() {
        let routes = Routes::new(vec![sni(&["b"]), sni(&["a"]), sni(&["a", "b"])]);
        assert_eq!(routes.find(CLIENT, &told(Some("a"))), Some(1));
        assert_eq!(routes.find(CLIENT, &told(Some("b"))), Some(0));
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        let routes = Routes::new(vec![Condition {
            source: vec!["10.0.0.0/8".parse().unwrap()],
            ..Condition::default()
        }]);
        assert_eq!(routes.find("::ffff:10.0.0.1".parse().unwrap(), &Told::default()), Some(0));
        assert_eq!(routes.find("::1".parse().unwrap(), &Told::default()), None);
    }
}
