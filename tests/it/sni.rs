//! Sessions that are routed by what their ClientHello says, and carried as they are: every byte of it reaches the
//! endpoint, and what is no hello, or one that two readers could understand differently, reaches none.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, sleep},
};

use crate::harness::{
    Backend, Carrier, Ending, Pattern, Place, Proxy, Setup, binary, connect,
    hello::{hello, message, names, protocols, record, records},
    listener, on_both_carriers, pool, read_out, run,
};

on_both_carriers!(
    #[tokio::test]
    hellos_of_every_shape_reach_the_endpoint_of_their_name_unchanged,
    what_is_no_hello_or_an_ambiguous_one_is_closed_at_once_and_reaches_nobody,
    the_most_specific_route_takes_the_session,
    a_hello_that_never_ends_is_closed_at_the_deadline,
    thousands_of_names_leave_no_trace_in_the_metrics,
    ten_thousand_names_are_routed_each_to_its_own_pool,
);

/// An endpoint that keeps what it was sent, and then says its name.
async fn endpoint(place: &Place, name: &'static str) -> Backend<Vec<u8>> {
    Backend::serve(place, move |mut stream: TcpStream| async move {
        let (bytes, _) = read_out(&mut stream).await;
        drop(stream.write_all(name.as_bytes()).await);
        bytes
    })
    .await
}

/// A proxy with two names and a default, and what stands there.
struct Bed {
    proxy: Proxy,
    address: SocketAddr,
    first: Backend<Vec<u8>>,
    fallback: Backend<Vec<u8>>,
}

impl Bed {
    async fn new(carrier: Carrier, place: &Place, settings: &str) -> Self {
        let (first, fallback) = (endpoint(place, "first").await, endpoint(place, "fallback").await);
        let address = place.free();
        let routes = "[[listener.route]]\nsni = [\"first.test\"]\npool = \"first\"\n";
        let tables = pool("first", "", &[("aws", first.address)])
            + &pool("fallback", "", &[("aws", fallback.address)])
            + &listener(address, "fallback", &format!("{settings}\n{routes}"));
        let proxy = Proxy::start(Setup::new(place, tables).carrier(carrier)).await;
        Self { proxy, address, first, fallback }
    }

    /// Sends these segments, and fails if not the right endpoint gets all of them.
    async fn takes(&mut self, what: &str, segments: &[&[u8]], name: &str) {
        let mut client = connect(self.address).await;
        for (place, segment) in segments.iter().enumerate() {
            if place > 0 {
                sleep(Duration::from_millis(1)).await;
            }
            client.write_all(segment).await.unwrap();
        }
        client.shutdown().await.unwrap();
        let (answer, ending) = read_out(&mut client).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!((answer.as_str(), ending), (name, Ending::Clean), "{what}");
        let reached = if name == "first" { &mut self.first } else { &mut self.fallback };
        assert!(reached.next().await == segments.concat(), "{what}: other bytes than were sent");
    }
}

async fn hellos_of_every_shape_reach_the_endpoint_of_their_name_unchanged(carrier: Carrier) {
    let place = Place::new();
    let mut bed = Bed::new(carrier, &place, "").await;
    let hello = hello("first.test");
    let whole = record(&hello);
    bed.takes("one record", &[&whole], "first").await;
    let bytes: Vec<_> = whole.chunks(1).collect();
    bed.takes("bytes one by one", &bytes, "first").await;
    for at in (1..hello.len()).step_by(9).chain([2, 3, 4, 5]) {
        bed.takes(&format!("two records, {at}"), &[&records(&hello, &[at])], "first").await;
    }
    let many = records(&hello, &vec![1; hello.len() - 1]);
    bed.takes("records of one byte", &[&many], "first").await;
    let quantum = record(&message(&[names(&[b"first.test"])], 1800));
    let (one, two) = quantum.split_at(1400);
    bed.takes("a post-quantum hello in two segments", &[one, two], "first").await;
    bed.takes("15 KiB", &[&record(&message(&[names(&[b"first.test"])], 15 * 1024))], "first").await;
    let long = records(&message(&[names(&[b"first.test"])], 20 * 1024), &[16_384]);
    bed.takes("20 KiB in two records", &[&long], "first").await;
    let mut rest = vec![0; 100 * 1024];
    Pattern(51).fill(0, &mut rest);
    let followed = [whole.as_slice(), &rest].concat();
    bed.takes("100 KiB after it", &[&followed], "first").await;
    for (what, name, wanted) in [
        ("upper case", "FIRST.Test", "first"),
        ("a dot at the end", "first.test.", "first"),
        ("a name below", "x.first.test", "fallback"),
        ("an unknown name", "other.test", "fallback"),
        ("an address", "127.0.0.1", "fallback"),
    ] {
        bed.takes(what, &[&record(&self::hello(name))], wanted).await;
    }
    bed.takes("no name", &[&record(&message(&[], 0))], "fallback").await;
}

async fn what_is_no_hello_or_an_ambiguous_one_is_closed_at_once_and_reaches_nobody(carrier: Carrier) {
    let place = Place::new();
    let bed = Bed::new(carrier, &place, "").await;
    let named = |names_of: &[&[u8]]| record(&message(&[names(names_of)], 0));
    let ends = |mut bytes: Vec<u8>, at: usize, byte: u8| {
        bytes[at] = byte;
        bytes
    };
    let first = record(&hello("first.test"));
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("two names", named(&[b"first.test", b"other.test"]), "server_name"),
        (
            "two extensions",
            record(&message(&[names(&[b"first.test"]), names(&[b"b.test"])], 0)),
            "repeated_extension",
        ),
        ("NUL", named(&[b"first.test\0.evil.test"]), "server_name"),
        ("control bytes", named(&[b"a\r\n\x1b[2J\"cause\":\"closed\""]), "server_name"),
        ("no ASCII", named(&["\u{202e}tset.tsrif".as_bytes()]), "server_name"),
        ("no characters", named(&[b""]), "malformed_hello"),
        ("4 KiB of a name", named(&[&[b'a'; 4096]]), "server_name"),
        (
            "40 KiB",
            records(&message(&[names(&[b"first.test"])], 40 * 1024), &[16_384, 16_384]),
            "hello_too_long",
        ),
        (
            "16 MiB announced",
            [22, 3, 1, 0x40, 0].into_iter().chain([1, 255, 255, 255]).chain([0; 16_380]).collect(),
            "hello_too_long",
        ),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: first.test\r\n\r\n".to_vec(), "not_tls"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "not_tls"),
        ("SSL 2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80".to_vec(), "not_tls"),
        ("garbage", vec![0xff; 600], "not_tls"),
        ("an alert", b"\x15\x03\x01\x00\x02\x02\x28".to_vec(), "not_hello"),
        ("an empty record", b"\x16\x03\x01\x00\x00".to_vec(), "empty_record"),
        ("a list that overruns", ends(first.clone(), 5 + 4 + 2 + 32, 255), "malformed_hello"),
    ];
    for (what, bytes, word) in table {
        let before = bed.proxy.lines();
        let mut client = connect(bed.address).await;
        let begun = Instant::now();
        // The proxy may be done before all is sent.
        drop(client.write_all(&bytes).await);
        let (answer, _) = read_out(&mut client).await;
        assert!(answer.is_empty(), "{what}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}: {:?}", begun.elapsed());
        let line = bed.proxy.session_line(before).await;
        assert_eq!((&line["cause"], &line["refused"]), (&"bad_hello".into(), &word.into()), "{what}: {line}");
    }
    assert_eq!((bed.first.accepted(), bed.fallback.accepted()), (0, 0));
    assert!(!bed.proxy.said().bytes().any(|byte| byte < b' ' && byte != b'\n'), "control bytes in the log");
}

async fn the_most_specific_route_takes_the_session(carrier: Carrier) {
    let place = Place::new();
    let bind = place.free();
    let kinds = ["exact", "near", "far", "h2", "both"];
    let mut tables = String::new();
    for name in kinds {
        let backend = Box::leak(Box::new(endpoint(&place, name).await));
        tables += &pool(name, "", &[("aws", backend.address)]);
    }
    let routes = [
        ("sni = [\"*.test\"]", "far"),
        ("sni = [\"*.b.test\"]", "near"),
        ("sni = [\"a.b.test\", \"c.test\"]", "exact"),
        ("alpn = [\"h2\"]", "h2"),
        ("sni = [\"c.test\"]\nalpn = [\"h2\"]", "both"),
    ];
    tables += &format!("[[listener]]\nname = \"main\"\nbind = \"{bind}\"\n");
    for (condition, name) in routes {
        tables += &format!("[[listener.route]]\n{condition}\npool = \"{name}\"\n");
    }
    let proxy = Proxy::start(Setup::new(&place, tables).carrier(carrier)).await;
    for (name, alpn, wanted) in [
        ("a.b.test", &[][..], "exact"),
        ("x.b.test", &[], "near"),
        ("y.x.b.test", &[], "near"),
        ("b.test", &[], "far"),
        ("c.test", &[], "exact"),
        ("c.test", &["http/1.1", "h2"], "both"),
        ("c.test", &["http/1.1"], "exact"),
        ("elsewhere.example", &["h2"], "h2"),
    ] {
        let mut client = connect(bind).await;
        let hello =
            message(&[names(&[name.as_bytes()]), protocols(alpn)][..1 + usize::from(!alpn.is_empty())], 0);
        client.write_all(&record(&hello)).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await.0, wanted.as_bytes(), "{name} {alpn:?}");
    }
    for hello in [hello("elsewhere.example"), hello("test"), message(&[], 0)] {
        let before = proxy.lines();
        let mut client = connect(bind).await;
        client.write_all(&record(&hello)).await.unwrap();
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset));
        let cause = |line: &str| line.contains("\"cause\":\"no_route\"").then_some(());
        proxy.line_from(before, "a session without a route", cause).await;
    }
}

async fn a_hello_that_never_ends_is_closed_at_the_deadline(carrier: Carrier) {
    let place = Place::new();
    let bed = Bed::new(carrier, &place, "handshake_timeout = \"400ms\"").await;
    let hello = record(&hello("first.test"));
    for (sent, and_fin, cause) in [
        (0, false, "timed_out"),
        (1, false, "timed_out"),
        (hello.len() - 1, false, "timed_out"),
        (0, true, "closed"),
        (hello.len() - 1, true, "truncated"),
    ] {
        let before = bed.proxy.lines();
        let mut client = connect(bed.address).await;
        client.write_all(&hello[..sent]).await.unwrap();
        if and_fin {
            client.shutdown().await.unwrap();
        }
        assert!(read_out(&mut client).await.0.is_empty());
        let line = bed.proxy.session_line(before).await;
        assert_eq!((&line["cause"], &line["stage"]), (&cause.into(), &"accept".into()), "{sent}: {line}");
    }
    assert_eq!((bed.first.accepted(), bed.fallback.accepted()), (0, 0));
}

async fn thousands_of_names_leave_no_trace_in_the_metrics(carrier: Carrier) {
    let place = Place::new();
    let mut bed = Bed::new(carrier, &place, "").await;
    let series = async |bed: &Bed| bed.proxy.get("/metrics").await.unwrap().1.lines().count();
    bed.takes("one", &[&record(&hello("name-0.example"))], "fallback").await;
    let before = series(&bed).await;
    for turn in 0..10 {
        let mut clients = Vec::new();
        for number in 0..100 {
            let mut client = connect(bed.address).await;
            client.write_all(&record(&hello(&format!("name-{turn}-{number}.example")))).await.unwrap();
            client.shutdown().await.unwrap();
            clients.push(client);
        }
        for mut client in clients {
            assert_eq!(read_out(&mut client).await.0, b"fallback");
        }
    }
    let (after, page) = (series(&bed).await, bed.proxy.get("/metrics").await.unwrap().1);
    assert!(after <= before + 4, "{before} lines, then {after}");
    assert!(!page.contains("name-"), "a client's name is in the metrics");
}

async fn ten_thousand_names_are_routed_each_to_its_own_pool(carrier: Carrier) {
    const NAMES: usize = 10_000;
    let place = Place::new();
    let bind = place.free();
    let pools = ["p0", "p1", "p2", "below", "rest"];
    let mut tables = String::new();
    for name in pools {
        let backend = Box::leak(Box::new(endpoint(&place, name).await));
        tables += &pool(name, "", &[("aws", backend.address)]);
    }
    tables += &listener(bind, "rest", "");
    let name = |number: usize| format!("n{number}.d{}.test", number % 50);
    for domain in 0..50 {
        tables += &format!("[[listener.route]]\nsni = [\"*.d{domain}.test\"]\npool = \"below\"\n");
    }
    for number in 0..NAMES {
        tables += &format!("[[listener.route]]\nsni = [\"{}\"]\npool = \"p{}\"\n", name(number), number % 3);
    }
    let setup = Setup::new(&place, tables).carrier(carrier);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("twinspan.toml");
    std::fs::write(&config, setup.text()).unwrap();
    let begun = Instant::now();
    let checked = run(binary(), &["check", "-c", config.to_str().unwrap()]).await;
    let took = begun.elapsed();
    println!("check takes {took:?}");
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(took < Duration::from_secs(5), "check takes {took:?}");
    let _proxy = Proxy::start(setup).await;
    let sample = (0..NAMES).step_by(97).map(|number| (name(number), pools[number % 3]));
    let others = [
        ("n10000.d0.test", "below"),
        ("x.n0.d0.test", "below"),
        ("n1.d0.test", "below"),
        ("d0.test", "rest"),
        ("n0.d50.test", "rest"),
        ("test", "rest"),
    ];
    let others = others.map(|(name, wanted)| (name.to_owned(), wanted));
    for (name, wanted) in sample.chain(others) {
        let mut client = connect(bind).await;
        client.write_all(&record(&hello(&name))).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_out(&mut client).await.0, wanted.as_bytes(), "{name}");
    }
}
