//! What is known of a session at the edge, beside what routes ask for: for its line in the log, and for its endpoint.

use std::net::SocketAddr;

use crate::{
    ids::Tlv,
    state::Told,
    telemetry::Edge,
    wire::{proxy_header::Tlvs, shown::Shown},
};

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Note {
    /// Who connected, where a PROXY header names another client.
    pub(super) via: Option<SocketAddr>,
    /// The client asked for another address than that of the listener.
    pub(super) asked_elsewhere: bool,
    /// The version of TLS with the client, where that ends here.
    pub(super) tls: Option<&'static str>,
    /// The client has shown a certificate, and it was right.
    pub(super) verified: bool,
    /// The common name in that certificate.
    pub(super) common_name: Option<Box<str>>,
    /// A ClientHello was looked at, whatever it said.
    pub(super) hello: bool,
    /// The protocol that was agreed on.
    pub(super) alpn: Option<Box<[u8]>>,
    /// Why it was refused: a word, and a sentence.
    pub(super) refused: Option<(&'static str, Box<str>)>,
    /// What the PROXY header carries.
    pub(super) header: Option<Box<Tlvs>>,
    /// The id of our own that the endpoint was given.
    pub(super) unique_id: Option<Box<str>>,
}

impl Note {
    /// What stands in the session's line; nothing where there is nothing to say.
    pub(super) fn record(self, told: Told) -> Option<Box<Edge>> {
        let shown = |bytes: &[u8]| Box::from(Shown::from(bytes));
        let own = self.unique_id.map(|id| (Tlv::UniqueId, id));
        let edge = Edge {
            via: self.via,
            destination: told.destination.filter(|_| self.asked_elsewhere),
            sni: told.sni.map(|name| Shown::from(name).into()),
            tls: self.tls,
            alpn: self.alpn.map(|protocol| shown(&protocol)),
            tlvs: told
                .tlvs
                .into_iter()
                .chain(own)
                .map(|(tlv, value)| (tlv, shown(value.as_bytes())))
                .collect(),
            refused: self.refused.map(|(word, reason)| (word, reason.chars().map(plain).collect())),
        };
        (edge != Edge::default()).then(|| Box::new(edge))
    }
}

/// Our own words stand between quotes. Names in them are escaped already.
const fn plain(char: char) -> char {
    match char {
        '"' => '\'',
        ' '..='~' => char,
        _ => '?',
    }
}
