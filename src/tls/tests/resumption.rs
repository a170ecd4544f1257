//! Who may resume, where, and for how long.

use std::{sync::Arc, time::Duration};

use rustls::{
    HandshakeKind,
    client::{Resumption, Tls12Resumption},
    server::{ProducesTickets, StoresServerSessions},
};
use tokio::time::advance;

use super::{
    super::{
        recheck,
        testing::{Authority, Files, Issued, listener, meet, pool},
        tickets::Tickets,
    },
    Client, Server, client, server, usual,
};
use crate::config::{ClientCertificates, Identity, ListenerTls, NamePattern, PoolTls};

fn resumes(client: &Client, server: &Server) -> bool {
    let met = meet(client, server, "edge.example");
    assert!(met.is_well(), "{:?} {:?}", met.client_error, met.server_error);
    met.server.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// The same client, with TLS 1.2 as its newest version.
fn older(client: &Client, files: &Files, authority: &Authority, resumption: Tls12Resumption) -> Client {
    let mut config = rustls::ClientConfig::builder_with_provider(super::super::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(
            super::super::files::authorities(&files.put("ca12.pem", &authority.pem)).unwrap().0,
        )
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(resumption);
    let name = client.name_for(Some("edge.example"), [127, 0, 0, 1].into()).unwrap();
    let mut older = super::client(&PoolTls {
        server_name: Some(name.to_str().into_owned()),
        ..pool(files.put("c", &authority.pem))
    })
    .unwrap();
    older.config = Arc::new(config);
    older
}

#[test]
fn a_client_resumes_and_a_new_certificate_does_not_prevent_it() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let mut settings = listener(vec![files.pair("edge", &authority.issue(&["edge.example"]))]);
    let first = server(&settings, None).unwrap();
    let client = client(&pool(files.put("ca.pem", &authority.pem))).unwrap();
    assert!(!resumes(&client, &first));
    assert!(resumes(&client, &first));
    settings.certificates = vec![Identity::Files(files.pair("new", &authority.issue(&["edge.example"])))];
    let renewed = server(&settings, Some(&first)).unwrap();
    assert!(resumes(&client, &renewed));
    let stranger = server(&settings, None).unwrap();
    assert!(!resumes(&client, &stranger), "keys that were never shared");
}

#[test]
fn older_clients_resume_by_ticket_and_by_id() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (server, client) = usual(&files, &authority);
    for kind in [Tls12Resumption::SessionIdOrTickets, Tls12Resumption::SessionIdOnly] {
        let older = older(&client, &files, &authority, kind);
        assert!(!resumes(&older, &server), "{kind:?}");
        assert!(resumes(&older, &server), "{kind:?}");
    }
}

#[test]
fn nobody_resumes_where_tickets_are_off() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let settings = ListenerTls {
        tickets: None,
        ..listener(vec![files.pair("edge", &authority.issue(&["edge.example"]))])
    };
    let server = server(&settings, None).unwrap();
    let client = client(&pool(files.put("ca.pem", &authority.pem))).unwrap();
    let both = [Tls12Resumption::SessionIdOrTickets, Tls12Resumption::SessionIdOnly]
        .map(|kind| older(&client, &files, &authority, kind));
    for client in both.iter().chain([&client]) {
        assert!(!resumes(client, &server));
        assert!(!resumes(client, &server));
    }
}

#[test]
fn early_data_is_never_offered() {
    let (files, authority) = (Files::new(), Authority::new("ca"));
    let (server, mut client) = usual(&files, &authority);
    let mut eager = (*client.config).clone();
    eager.enable_early_data = true;
    client.config = Arc::new(eager);
    assert!(!resumes(&client, &server));
    let name = client.name_for(Some("edge.example"), [127, 0, 0, 1].into()).unwrap();
    let mut connection = rustls::ClientConnection::new(client.config.clone(), name).unwrap();
    assert!(connection.early_data().is_none());
}

/// A listener that asks for certificates, and one that does not, with the same certificate.
struct Two {
    files: Files,
    authority: Authority,
    clients: Authority,
    edge: Issued,
}

impl Two {
    fn new() -> Self {
        let authority = Authority::new("ca");
        let edge = authority.issue(&["edge.example"]);
        Self { files: Files::new(), clients: Authority::new("clients"), authority, edge }
    }

    fn open(&self) -> ListenerTls {
        listener(vec![self.files.pair("edge", &self.edge)])
    }

    fn asking(&self, names: &[NamePattern]) -> ListenerTls {
        let trust = self.files.trust("clients.pem", &self.clients, names);
        ListenerTls { clients: ClientCertificates::Required(trust), ..self.open() }
    }

    fn client(&self) -> Client {
        let identity = self.files.pair("client", &self.clients.issue(&["client.example"]));
        let identity = Some(Identity::Files(identity));
        client(&PoolTls { identity, ..pool(self.files.put("ca.pem", &self.authority.pem)) }).unwrap()
    }
}

#[test]
fn a_ticket_is_worth_nothing_at_a_listener_with_another_rule_about_clients() {
    let two = Two::new();
    let open = server(&two.open(), None).unwrap();
    let asking = server(&two.asking(&[]), None).unwrap();
    let client = two.client();
    assert!(!resumes(&client, &open));
    let met = meet(&client, &asking, "edge.example");
    assert_eq!(met.server.handshake_kind().unwrap(), HandshakeKind::Full);
    assert!(met.server.peer_certificates().is_some(), "the certificate is asked for");

    // One without a certificate gets in at the first, and not with its ticket at the second.
    let bare = super::client(&pool(two.files.put("ca.pem", &two.authority.pem))).unwrap();
    assert!(!resumes(&bare, &open));
    assert!(resumes(&bare, &open));
    let (word, _, _) = super::refused_by_listener(&meet(&bare, &asking, "edge.example"));
    assert_eq!(word, "no_certificate");
}

#[test]
fn a_change_of_the_rule_about_clients_ends_resumption_and_nothing_else_does() {
    let two = Two::new();
    let client = two.client();
    let settings = two.asking(&[]);
    let first = server(&settings, None).unwrap();
    assert!(!resumes(&client, &first));
    assert!(resumes(&client, &first));

    let same =
        server(&ListenerTls { alpn: vec!["h2".to_owned()], ..settings.clone() }, Some(&first)).unwrap();
    assert!(resumes(&client, &same));

    let named = two.asking(&[NamePattern::Dns("client.example".to_owned())]);
    assert!(!resumes(&client, &server(&named, Some(&first)).unwrap()), "names");
    let _fresh = resumes(&client, &first);
    let life = ListenerTls { tickets: Some(Duration::from_secs(60)), ..settings.clone() };
    assert!(!resumes(&client, &server(&life, Some(&first)).unwrap()), "life");
    let _fresh = resumes(&client, &first);
    // The same path, with one authority more.
    let more = format!("{}{}", two.clients.pem, Authority::new("more").pem);
    two.files.put("clients.pem", more);
    assert!(!resumes(&client, &server(&settings, Some(&first)).unwrap()), "authorities");
}

#[test]
fn a_resumed_session_is_judged_again_by_what_holds_now() {
    let two = Two::new();
    let client = two.client();
    let first = server(&two.asking(&[]), None).unwrap();
    assert!(!resumes(&client, &first));
    let met = meet(&client, &first, "edge.example");
    assert_eq!(met.server.handshake_kind().unwrap(), HandshakeKind::Resumed);
    assert!(recheck(&met.server, first.clients.as_ref().unwrap()).is_ok());
    let stricter = two.asking(&[NamePattern::Dns("other.example".to_owned())]);
    let stricter = server(&stricter, None).unwrap();
    let error = recheck(&met.server, stricter.clients.as_ref().unwrap()).unwrap_err();
    assert_eq!(super::why(&error).0, "name_not_allowed");
}

#[tokio::test(start_paused = true)]
async fn a_ticket_lives_for_its_life_at_most_and_half_of_it_at_least() {
    let hour = Duration::from_secs(3600);
    let tickets = Tickets::new(hour).unwrap();
    assert_eq!(tickets.lifetime(), 3600);
    let early = tickets.encrypt(b"early").unwrap();
    advance(hour / 2 - Duration::from_secs(1)).await;
    let late = tickets.encrypt(b"late").unwrap();
    advance(Duration::from_secs(1)).await;
    let next = tickets.encrypt(b"next").unwrap();
    advance(hour / 2 - Duration::from_secs(1)).await;
    for (ticket, plain) in [(&early, &b"early"[..]), (&late, b"late"), (&next, b"next")] {
        assert_eq!(tickets.decrypt(ticket).as_deref(), Some(plain));
    }
    advance(Duration::from_secs(1)).await;
    assert_eq!(tickets.decrypt(&early), None);
    assert_eq!(tickets.decrypt(&late), None);
    assert!(tickets.decrypt(&next).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_key_dies_in_silence_too() {
    let hour = Duration::from_secs(3600);
    let tickets = Tickets::new(hour).unwrap();
    let ticket = tickets.encrypt(b"plain").unwrap();
    tickets.put(vec![1], b"session".to_vec());
    advance(hour - Duration::from_secs(1)).await;
    tickets.roll();
    assert!(tickets.decrypt(&ticket).is_some());
    assert_eq!(tickets.get(&[1]).as_deref(), Some(&b"session"[..]));
    advance(Duration::from_secs(1)).await;
    assert_eq!(tickets.decrypt(&ticket), None, "though nothing has happened for an hour");
    assert_eq!(tickets.get(&[1]), None);
    assert_eq!(tickets.take(&[1]), None);
}

#[tokio::test(start_paused = true)]
async fn the_first_ticket_after_a_long_silence_is_not_opened() {
    let hour = Duration::from_secs(3600);
    let tickets = Tickets::new(hour).unwrap();
    let ticket = tickets.encrypt(b"plain").unwrap();
    advance(hour).await;
    assert_eq!(tickets.decrypt(&ticket), None);
}
