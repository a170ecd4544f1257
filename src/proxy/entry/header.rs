//! The PROXY header of a balancer before us.

use std::net::IpAddr;

use ipnet::IpNet;
use tokio::time::Instant;

use super::{Look, ended, peruse, take};
use crate::{
    ids::Tlv,
    proxy::{connect, relay::Watched, session::Books},
    state::{Entry, ProxyIn},
    telemetry::{Cause, End, Side, Stage},
    wire::proxy_header::{self, Beginning, DEFAULT_LIMIT, Header, Malformed, Name},
};

/// What is known to routes and logs by a name of its own.
const NAMES: [(Tlv, Name); 7] = [
    (Tlv::Authority, Name::Authority),
    (Tlv::Alpn, Name::Alpn),
    (Tlv::UniqueId, Name::UniqueId),
    (Tlv::Netns, Name::Netns),
    (Tlv::AwsVpcEndpoint, Name::AwsVpcEndpoint),
    (Tlv::GcpPscConnection, Name::GcpPscConnection),
    (Tlv::AzurePrivateLink, Name::AzurePrivateLink),
];

/// Reads the header, if this listener has its clients send one, and takes its addresses for those of the session.
pub(super) async fn read(client: &Watched<'_>, books: &mut Books, entry: &Entry) -> Result<(), End> {
    let peer = books.client.ip();
    let optional = match &entry.proxy_header {
        ProxyIn::Off => return Ok(()),
        ProxyIn::Required(from) if from.is_empty() || holds(from, peer) => false,
        ProxyIn::Required(_) => {
            books.turn_away("untrusted", "this address may send no PROXY header".into());
            return Err(ended(Side::Client, Stage::Accept, Cause::BadHeader));
        }
        ProxyIn::Optional(from) if holds(from, peer) => true,
        ProxyIn::Optional(_) => return Ok(()),
    };
    let deadline = Instant::now() + entry.header_timeout;
    let mut why = None;
    let found = peruse(client, DEFAULT_LIMIT, deadline, |bytes| {
        if optional && proxy_header::begins_like_one(bytes) == Beginning::No {
            return Ok(Look::Found(None));
        }
        match proxy_header::read(bytes, DEFAULT_LIMIT) {
            Ok(None) => Ok(Look::More),
            Ok(Some(found)) => Ok(Look::Found(Some(found))),
            Err(malformed) => {
                why = Some(malformed);
                Err(ended(Side::Client, Stage::Accept, Cause::BadHeader))
            }
        }
    })
    .await;
    if let Some(malformed) = why {
        books.turn_away(malformed.as_str(), reason(malformed).into());
    }
    let is_silent = || !connect::has_sent(client.get_ref());
    if optional && matches!(found, Err(End { cause: Cause::TimedOut, .. })) && is_silent() {
        // Who waits for the endpoint to speak first has no header to send.
        return Ok(());
    }
    let Some((header, length)) = found? else { return Ok(()) };
    take(client, length)?;
    believe(books, header);
    Ok(())
}

fn believe(books: &mut Books, header: Header) {
    if let Some((source, destination)) = header.addresses {
        let via = std::mem::replace(&mut books.client, source);
        books.note().via = Some(via);
        books.tell_more().destination = Some(destination);
    }
    let tlvs = NAMES.iter().filter_map(|(tlv, name)| {
        let value = header.tlvs.text(*name)?;
        Some((*tlv, value.into()))
    });
    let tlvs: Vec<_> = tlvs.collect();
    if !tlvs.is_empty() {
        books.tell_more().tlvs = tlvs;
    }
    // Also what has no text: endpoints are given it as it is.
    if !header.tlvs.is_empty() {
        books.note().header = Some(Box::new(header.tlvs));
    }
    books.show();
}

fn holds(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
}

const fn reason(malformed: Malformed) -> &'static str {
    match malformed {
        Malformed::NoHeader => "the connection begins with no PROXY header",
        Malformed::TooLong => "the PROXY header is too long",
        Malformed::Line => "the line of the PROXY header is not as it must be",
        Malformed::Address => "an address in the PROXY header is none of its family",
        Malformed::Port => "a port in the PROXY header is none",
        Malformed::Command => "the PROXY header has a version or a command that does not exist",
        Malformed::Family => "the PROXY header has a family that does not exist",
        Malformed::Length => "the PROXY header is too short for its addresses",
        Malformed::Tlv => "a TLV of the PROXY header does not fit",
        Malformed::RepeatedTlv => "the PROXY header has a TLV twice",
        Malformed::Checksum => "the checksum of the PROXY header is wrong",
    }
}
