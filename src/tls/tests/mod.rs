//! Handshakes in memory between what this room makes.

mod clients;
mod files;
mod pools;
mod resumption;
mod servers;
mod workloads;

use rustls::{AlertDescription, Error, pki_types::CertificateDer, pki_types::pem::PemObject};

use super::{
    Client, Server, client, server,
    testing::{Authority, Files, Issued, Met, listener, pool},
    why,
};

fn der(issued: &Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()
}

/// The listener refused: the word, the words, and the alert that the client has got.
fn refused_by_listener(met: &Met) -> (&'static str, String, AlertDescription) {
    let (word, words) = why(met.server_error.as_ref().expect("the listener refuses"));
    match &met.client_error {
        Some(Error::AlertReceived(alert)) => (word, words, *alert),
        other => panic!("the client has got no alert: {other:?}"),
    }
}

/// The client refused: the word, the words, and the alert that the listener has got.
fn refused_by_client(met: &Met) -> (&'static str, String, AlertDescription) {
    let (word, words) = why(met.client_error.as_ref().expect("the client refuses"));
    match &met.server_error {
        Some(Error::AlertReceived(alert)) => (word, words, *alert),
        other => panic!("the listener has got no alert: {other:?}"),
    }
}

/// A listener with a certificate for `edge.example`, and a client that trusts it.
fn usual(files: &Files, authority: &Authority) -> (Server, Client) {
    let settings = listener(vec![files.pair("edge", &authority.issue(&["edge.example"]))]);
    let ca = files.put("ca.pem", &authority.pem);
    (server(&settings, None).unwrap(), client(&pool(ca)).unwrap())
}
