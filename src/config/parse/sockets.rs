//! Socket options of clouds and listeners, and what they have to do with the endpoints of a cloud.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use super::{
    super::{
        Address, Cloud, defaults,
        file::{self, File},
        keys::Key,
        problem::{Code, Problem},
        values::CongestionText,
    },
    Build, place,
};
use crate::{
    ids::CloudName,
    net::{Keepalive, Outgoing, Tuning},
};

impl Build<'_> {
    /// Every cloud of the file.
    pub(super) fn clouds(&mut self, file: &File) -> Vec<Cloud> {
        let named = file.cloud.get().map(|clouds| clouds.0.as_slice()).unwrap_or_default();
        for (_, cloud) in named {
            self.congestion_here(&cloud.get_ref().congestion);
        }
        named
            .iter()
            .map(|(name, cloud)| {
                let cloud = cloud.get_ref();
                let domain = self.domain(cloud);
                Cloud {
                    name: CloudName::from(name.get_ref().as_str()),
                    region: cloud.region.get().map(|region| region.0.clone()),
                    egress_usd_per_gb: cloud.egress_usd_per_gb.get().map(|price| price.0.clone()),
                    socket: Arc::new(outgoing(cloud)),
                    domain,
                }
            })
            .collect()
    }

    /// Tells of a congestion control that this machine does not have. Another one may serve the file.
    pub(super) fn congestion_here(&mut self, key: &Key<CongestionText>) {
        let Some((name, at)) = key.get().zip(key.span()) else {
            return;
        };
        let tuning = Tuning { congestion: Some(Arc::from(name.0.as_str())), ..Tuning::default() };
        if let Err(error) = tuning.try_out()
            && error.kind() == io::ErrorKind::InvalidInput
        {
            let what = format!("this machine does not offer congestion control `{}`", name.0);
            self.tell(
                Problem::at(Code::NotHere, at, what).label("no start here").hint(
                    "where it is to run: /proc/sys/net/ipv4/tcp_available_congestion_control".to_owned(),
                ),
            );
        }
    }

    /// Tells of clouds whose `source` cannot reach one of their endpoints.
    pub(super) fn sources(&mut self, file: &File) {
        let mut clouds: HashMap<&str, (Outgoing, Range<usize>)> = HashMap::new();
        for (name, cloud) in file.cloud.get().into_iter().flat_map(|clouds| &clouds.0) {
            let source = &cloud.get_ref().source;
            let Some((sources, at)) = source.get().zip(source.span()) else {
                continue;
            };
            if let [first, second, ..] = sources.0.as_slice()
                && first.get_ref().0.is_ipv4() == second.get_ref().0.is_ipv4()
            {
                self.tell(
                    Problem::at(Code::Source, second.span(), "`source` has two addresses of one family")
                        .label("the second one")
                        .hint("give at most one IPv4 and one IPv6 address".to_owned())
                        .also(first.span(), "the first one"),
                );
            }
            clouds.insert(name.get_ref().as_str(), (outgoing(cloud.get_ref()), at));
        }
        let pools = file.pool.get().into_iter().flat_map(|all| &all.0);
        for endpoint in pools.filter_map(|pool| pool.get_ref().endpoint.get()).flat_map(|all| &all.0) {
            let (key, cloud) = (&endpoint.get_ref().address, endpoint.get_ref().cloud.get());
            let known = cloud.and_then(|cloud| clouds.get_key_value(cloud.0.as_str()));
            if let (Some(Address::Socket(address)), Some((cloud, (socket, at)))) =
                (key.get().map(|address| &address.0), known)
                && !socket.reaches(*address)
            {
                self.unreached(place(key.span()), *address, cloud, at.clone());
            }
        }
    }

    fn unreached(&mut self, endpoint: Range<usize>, address: SocketAddr, cloud: &str, source: Range<usize>) {
        let family = if address.ip().to_canonical().is_ipv4() { "IPv4" } else { "IPv6" };
        let what = format!("cloud `{cloud}` has no {family} address in `source` to connect from");
        self.tell(
            Problem::at(Code::Source, endpoint, what)
                .label(format!("an {family} endpoint"))
                .hint(format!("add an {family} address to `source` in [cloud.{cloud}]"))
                .also(source, "of the other family"),
        );
    }
}

fn outgoing(cloud: &file::Cloud) -> Outgoing {
    let sources = cloud.source.get().map(|sources| sources.0.as_slice()).unwrap_or_default();
    let sources = || sources.iter().map(|source| source.get_ref().0);
    Outgoing {
        tuning: Tuning {
            congestion: cloud.congestion.get().map(|name| Arc::from(name.0.as_str())),
            send_buffer: cloud.send_buffer.get().map(|size| size.0),
            receive_buffer: cloud.receive_buffer.get().map(|size| size.0),
            notsent_lowat: cloud.notsent_lowat.get().map(|size| size.0),
            dscp: cloud.dscp.get().map(|mark| mark.0),
            interface: cloud.interface.get().map(|name| Arc::from(name.0.as_str())),
        },
        source_v4: sources().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
        source_v6: sources().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
        fast_open: cloud.fast_open.get().copied().unwrap_or(defaults::FAST_OPEN),
        keepalive: cloud.keepalive.get().map(keepalive),
        user_timeout: cloud.user_timeout.get().map(|time| time.0),
    }
}

/// What the sockets of a listener have set.
pub(super) fn of_listener(listener: &file::Listener) -> Tuning {
    Tuning {
        congestion: listener.congestion.get().map(|name| Arc::from(name.0.as_str())),
        send_buffer: listener.send_buffer.get().map(|size| size.0),
        receive_buffer: listener.receive_buffer.get().map(|size| size.0),
        notsent_lowat: listener.notsent_lowat.get().map(|size| size.0),
        dscp: listener.dscp.get().map(|mark| mark.0),
        interface: listener.interface.get().map(|name| Arc::from(name.0.as_str())),
    }
}

/// Keepalive with its defaults.
pub(super) fn keepalive(table: &file::KeepaliveTable) -> Keepalive {
    Keepalive {
        idle: table.idle.get().map_or(defaults::KEEPALIVE.idle, |time| time.0),
        interval: table.interval.get().map_or(defaults::KEEPALIVE.interval, |time| time.0),
        count: table.count.get().copied().unwrap_or(defaults::KEEPALIVE.count),
    }
}
