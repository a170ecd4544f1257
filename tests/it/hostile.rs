//! What clients chose, in whatever the proxy writes: a log of plain text, the pages of the operator, the metrics. None of it
//! may begin a line, end a quotation, steer a terminal or go on without a bound.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

use crate::harness::{
    Authority, Backend, Files, Place, Proxy, Setup, Speaker, binary, connect, eventually,
    header::{FOUR, tlv, two},
    hello::{message, names, protocols, record},
    listener, pool, run, soon,
};

/// Bytes that somebody may choose, and that do harm if they are written as they are.
fn hostile() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        &b"EvIl\x1b[2J\x1b]0;owned\x07"[..],
        b"EvIl\r\n2026-01-01T00:00:00Z session=1 cause=closed forged=1\nEvIl",
        b"EvIl\0rest",
        "EvIl\u{202e}gpj.exe\u{2066}\u{200f}".as_bytes(),
        b"EvIl\xff\xfe\xc3\x28",
        b"EvIl\x9b31m\xc2\x9b31m\x7f",
        b"EvIl\" forged=1 x=\"\\",
        b"EvIl forged=1",
    ]
    .map(<[u8]>::to_vec)
    .into();
    all.extend([[b"EvIl".as_slice(), &[b'a'; 250]].concat(), [b"EvIl".as_slice(), &[0x1b; 2000]].concat()]);
    all
}

/// What clients send to a listener that reads a PROXY header, and a hello after it.
fn headers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let eight = [bytes, &[b'E'; 8]].concat()[..8].to_vec();
    let ssl = [&[7, 0, 0, 0, 0][..], &tlv(0x21, bytes), &tlv(0x22, bytes)].concat();
    let tlvs = [
        tlv(1, bytes),
        tlv(2, bytes),
        tlv(5, bytes),
        tlv(0x30, bytes),
        tlv(0xea, &[&[1], bytes].concat()),
        tlv(0xe0, &eight),
        tlv(0xee, &[&[1], &eight[..4]].concat()),
        tlv(0x20, &ssl),
        tlv(0xf0, bytes),
    ];
    let mut all: Vec<_> = tlvs.iter().map(|tlv| two(1, 0x11, &[FOUR, tlv].concat())).collect();
    for [before, after] in
        [["UNKNOWN ", ""], ["TCP4 ", " 198.51.100.9 1 2"], ["TCP4 192.0.2.7 198.51.100.9 1 ", ""]]
    {
        all.push([b"PROXY ", before.as_bytes(), bytes, after.as_bytes(), b"\r\n"].concat());
    }
    all
}

/// What they send to one that reads a hello.
fn hellos(bytes: &[u8]) -> Vec<Vec<u8>> {
    let short = &bytes[..bytes.len().min(255)];
    let well: &[&[u8]] = &[b"well.test"];
    vec![
        record(&message(&[names(&[bytes])], 0)),
        record(&message(&[names(well), protocols(&[short])], 0)),
        record(&message(&[names(well), protocols(&[short; 40])], 0)),
        bytes.to_vec(),
    ]
}

/// Everybody at once: how many they are, and those that were let in, with their sessions open.
async fn crowd(behind: SocketAddr, named: SocketAddr) -> (usize, Vec<TcpStream>) {
    let well = record(&message(&[names(&[b"well.test"])], 0));
    let mut all = Vec::new();
    for bytes in &hostile() {
        all.extend(headers(bytes).into_iter().map(|header| (behind, [header, well.clone()].concat())));
        all.extend(hellos(bytes).into_iter().map(|hello| (named, hello)));
    }
    let mut open = Vec::new();
    for (address, bytes) in &all {
        let mut stream = connect(*address).await;
        drop(stream.write_all(bytes).await);
        // Garbage that may still become something is not waited for.
        drop(stream.shutdown().await);
        // What is let in reaches the endpoint, which answers with a byte.
        if let Ok(1..) = soon("an answer or an end", stream.read(&mut [0])).await {
            open.push(stream);
        }
    }
    (all.len(), open)
}

/// Fails if something in `text` would do more than stand there.
fn is_harmless(what: &str, text: &str, longest: usize) {
    for line in text.lines() {
        let odd = line.chars().find(|char| char.is_control() || matches!(char, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffd}'));
        assert_eq!(odd, None, "{what}: {line:?}");
        assert!(line.len() <= longest, "{what}: {} bytes: {line:.300}", line.len());
    }
}

/// A line without what stands in quotes.
fn unquoted(line: &str) -> String {
    line.split('"').step_by(2).collect()
}

/// What the operator reads holds nothing of all that, however the clients are called.
async fn pages_are_clean(proxy: &Proxy) {
    let admin = format!("--admin={}", proxy.setup().admin);
    let pages = [
        &["status"][..],
        &["status", "--output=json"],
        &["sessions", "--limit=1000"],
        &["sessions", "--limit=1000", "--json"],
        &["events"],
        &["events", "--json"],
    ];
    let mut texts = Vec::new();
    for page in pages {
        let output = run(binary(), &[page, &[admin.as_str()]].concat()).await;
        assert_eq!(output.code, Some(0), "{page:?}: {output:?}");
        texts.push((page.join(" "), output.stdout));
    }
    texts.push(("metrics".to_owned(), proxy.get("/metrics").await.unwrap().1));
    for (what, text) in texts {
        assert!(text.len() > 100, "{what}: {text}");
        is_harmless(&what, &text, 100_000);
        for word in ["evil", "forged", "well.test"] {
            assert!(!text.to_lowercase().contains(word), "{what}: {text}");
        }
    }
}

#[tokio::test]
async fn what_clients_choose_is_escaped_and_bounded_wherever_it_is_written() {
    let place = Place::new();
    let (go, gate) = watch::channel(false);
    let backend = Backend::serve(&place, move |mut stream| {
        let mut gate = gate.clone();
        async move {
            stream.write_all(b"!").await.unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
    })
    .await;
    let (edge, clients, files) = (Authority::new("edge"), Authority::new("clients"), Files::new());
    let ca = files.put("clients.pem", &clients.pem);
    let asking = format!(
        "client_certificates = \"required\"\nclient_ca = \"{}\"\nclient_names = [\"spiffe://well.test/a\"]",
        ca.display()
    );
    let [behind, named, mutual] = [(); 3].map(|()| place.free());
    let route = "[[listener.route]]\nsni = [\"well.test\"]\npool = \"only\"\n";
    let tables = pool("only", "", &[("aws", backend.address)])
        + &listener(behind, "only", &format!("proxy_header = \"required\"\n{route}"))
        + &listener(named, "only", route)
        + &listener(mutual, "only", &files.listener("edge", &edge.issue(&["edge.test"]), &asking));
    let proxy = Proxy::start(Setup::new(&place, tables).in_text()).await;

    let (mut sent, open) = crowd(behind, named).await;
    for name in
        ["spiffe://evil.test/\u{1b}[2J", "spiffe://evil.test/\r\nforged=1", "spiffe://evil.test/\" forged=1"]
    {
        let client = Speaker::new(&edge, Some(&clients.issue(&[name])));
        if let Ok(mut stream) = client.dial(mutual, "edge.test").await {
            assert!(soon("the end", stream.read(&mut [0])).await.is_err(), "{name:?} was let in");
        }
        sent += 1;
    }
    assert!(open.len() > 50, "{} were let in", open.len());
    pages_are_clean(&proxy).await;
    go.send(true).unwrap();
    drop(open);
    the_log_is_clean(&proxy, sent).await;
}

/// A line for each of so many sessions, and nothing that a client has written.
async fn the_log_is_clean(proxy: &Proxy, sent: usize) {
    let lines = eventually("every session's line", async || {
        let said = proxy.said();
        let lines: Vec<_> =
            said.lines().filter(|line| unquoted(line).contains(" session=")).map(ToOwned::to_owned).collect();
        (lines.len() >= sent).then_some(lines)
    })
    .await;
    assert_eq!(lines.len(), sent);
    let said = proxy.said();
    is_harmless("the log", &said, 2048);
    for line in said.lines() {
        assert!(!unquoted(line).contains("forged"), "{line}");
        assert!(line.matches('"').count() % 2 == 0, "{line}");
    }
    for escaped in [
        r#" unique_id="EvIl\x22 forged=1 x=\x22\x5c""#,
        r#" authority="evil\x22 forged=1 x=\x22\x5c""#,
        r#" aws_vpc_endpoint="4576496c1b5b324a1b5d303b6f776e656407""#,
        " refused=server_name ",
        " refused=bad_certificate ",
        "…\"",
    ] {
        assert!(lines.iter().any(|line| line.contains(escaped)), "no {escaped} in\n{}", lines.join("\n"));
    }
}
