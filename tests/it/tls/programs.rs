//! TLS with other people's programs: OpenSSL, curl, Python and nginx, as clients and as endpoints.

use std::{net::SocketAddr, path::Path, process::Stdio};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use super::{Edge, NAME, listeners};
use crate::harness::{
    Authority, Backend, Carrier, Pattern, Place, Process, Proxy, Setup, connect, listener, missing, pool,
    run, skip, soon,
};

const LENGTH: u64 = 20 * 1024 * 1024;

/// Says so, and is true, where a program is not here.
fn lacks(test: &str, programs: &[&str]) -> bool {
    let reason = missing(programs);
    reason.iter().for_each(|reason| skip(test, reason));
    reason.is_some()
}

/// An endpoint that greets and closes.
async fn greeter(place: &Place) -> Backend {
    Backend::serve(place, |mut stream| async move {
        drop(stream.write_all(b"well met\n").await);
    })
    .await
}

/// What `openssl s_client` says of a session with what it was sent before the end.
async fn s_client(address: SocketAddr, ca: &Path, more: &[&str]) -> String {
    let (address, ca) = (address.to_string(), ca.display().to_string());
    let always = [
        "s_client",
        "-connect",
        &address,
        "-servername",
        NAME,
        "-CAfile",
        &ca,
        "-verify_return_error",
        "-ign_eof",
    ];
    let arguments: Vec<_> = always.iter().chain(more).copied().collect();
    let output = run("openssl", &arguments).await;
    output.stdout + &output.stderr
}

#[tokio::test]
async fn openssl_resumes_its_session_at_the_listener_that_gave_it() {
    if lacks("openssl_resumes", &["openssl"]) {
        return;
    }
    let place = Place::new();
    let greeter = greeter(&place).await;
    let edge = Edge::new();
    let clients = Authority::new("clients");
    let trust = edge.files.put("clients.pem", &clients.pem);
    let ca = edge.files.put("ca.pem", &edge.authority.pem);
    let mutual = format!("client_certificates = \"required\"\nclient_ca = \"{}\"", trust.display());
    let settings = [edge.ends_here(""), edge.ends_here(&mutual), edge.ends_here("min_version = \"1.3\"")];
    let (_proxy, [own, mutual, newest]) = listeners(&place, &greeter, settings).await;
    let ticket = edge.files.path().join("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(own, &ca, &[version, "-sess_out", &ticket]).await;
        assert!(said.contains("\nNew, TLSv1.") && said.contains("well met"), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        let said = s_client(own, &ca, &[version, "-sess_in", &ticket]).await;
        assert!(said.contains("\nReused, TLSv1.") && said.contains("well met"), "{said}");
        let said = s_client(mutual, &ca, &[version, "-sess_in", &ticket]).await;
        assert!(!said.contains("\nReused, ") && !said.contains("well met"), "{said}");
        assert!(said.contains("Acceptable client certificate CA names"), "{said}");
    }
    assert!(
        s_client(own, &ca, &["-tls1_3", "-early_data", "/etc/hostname"])
            .await
            .contains("Early data was not sent")
    );
    let said = s_client(newest, &ca, &["-tls1_2"]).await;
    assert!(said.contains("alert protocol version"), "{said}");
    // Without signature algorithms it is no hello of TLS 1.2 either.
    let said = s_client(own, &ca, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).await;
    assert!(said.contains("alert handshake failure") && !said.contains("well met"), "{said}");
}

#[tokio::test]
async fn a_client_that_asks_for_another_handshake_is_told_at_once_that_there_is_none() {
    if lacks("a_client_that_asks_for_another_handshake", &["openssl"]) {
        return;
    }
    let place = Place::new();
    let silent = Backend::serve(&place, |mut stream| async move {
        // Until the end.
        drop(stream.read_to_end(&mut Vec::new()).await);
    })
    .await;
    let edge = Edge::new();
    let (_proxy, [address]) = listeners(&place, &silent, [edge.ends_here("")]).await;
    let address = address.to_string();
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", NAME, "-msg", "-tls1_2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut until = async |wanted: &str| {
        let found = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.starts_with(wanted) {
                    return;
                }
            }
            panic!("an end before {wanted}");
        };
        soon(wanted, found).await;
    };
    until("SSL handshake has read").await;
    client.stdin.as_mut().unwrap().write_all(b"R\n").await.unwrap();
    until("<<< TLS 1.2, Alert [length 0002], warning no_renegotiation").await;
}

/// A client that reads to the end and takes no end without `close_notify`.
const READER: &str = r#"
import socket, ssl, sys
host, port, ca, name = sys.argv[1:]
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    raw = socket.create_connection((host, int(port)))
    with context.wrap_socket(raw, server_hostname=name, suppress_ragged_eofs=False) as s:
        got = b""
        while (more := s.recv(65536)):
            got += more
        spoken = s.version()
        s.unwrap()
        print(spoken, got.decode().strip())
"#;

#[tokio::test]
async fn curl_and_python_read_to_a_clean_end() {
    if lacks("curl_and_python", &["curl", "python3"]) {
        return;
    }
    let place = Place::new();
    let edge = Edge::new();
    let ca = edge.files.put("ca.pem", &edge.authority.pem).display().to_string();
    let (greeter, web) = (
        greeter(&place).await,
        Backend::serve(&place, |mut stream| async move {
            let mut request = [0; 4096];
            drop(stream.read(&mut request).await);
            drop(stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nwell met").await);
        })
        .await,
    );
    let (bind, greets) = (place.free(), place.free());
    let tables = pool("web", "", &[("aws", web.address)])
        + &pool("greeter", "", &[("aws", greeter.address)])
        + &listener(bind, "web", &edge.ends_here("alpn = [\"http/1.1\"]"))
        + &listener(greets, "greeter", &edge.ends_here(""));
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    let resolve = format!("{NAME}:{}:{}", bind.port(), bind.ip());
    let url = format!("https://{NAME}:{}/", bind.port());
    for (version, highest) in [("--tlsv1.2", "1.2"), ("--tlsv1.3", "1.3")] {
        let common = ["--silent", "--show-error", "--cacert", &ca, "--resolve", &resolve];
        let arguments: Vec<_> = common.into_iter().chain([version, "--tls-max", highest, &url]).collect();
        let output = run("curl", &arguments).await;
        assert_eq!((output.code, output.stdout.as_str()), (Some(0), "well met"), "{output:?}");
    }
    let (host, port) = (greets.ip().to_string(), greets.port().to_string());
    let output = run("python3", &["-c", READER, &host, &port, &ca, NAME]).await;
    assert_eq!(output.stdout, "TLSv1.2 well met\nTLSv1.3 well met\n", "{output:?}");
}

/// An endpoint of Python: it wants a client's certificate, and sends back twenty mebibytes and their hash.
const SUMMER: &str = r#"
import hashlib, socket, ssl, sys
host, port, folder = sys.argv[1:]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder + "/ca.pem")
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain(folder + "/db.pem", folder + "/db.key")
listener = socket.create_server((host, int(port)))
while True:
    raw, _ = listener.accept()
    try:
        with context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False) as s:
            got, hash = 0, hashlib.sha256()
            while got < 20 * 1024 * 1024:
                piece = s.recv(65536)
                got += len(piece)
                hash.update(piece)
                s.sendall(piece)
            s.sendall(hash.digest())
            s.unwrap()
    except OSError as error:
        print(error, flush=True)
"#;

#[tokio::test]
async fn twenty_mebibytes_to_python_and_back_have_the_right_sha256() {
    if lacks("twenty_mebibytes_to_python", &["python3"]) {
        return;
    }
    let place = Place::new();
    let edge = Edge::new();
    let endpoint = place.free();
    edge.files.put("ca.pem", &edge.authority.pem);
    edge.files.pair("db", &edge.authority.issue(&["db.test"]));
    edge.files.pair("edge", &edge.issued);
    let folder = edge.files.path().display().to_string();
    let mut command = Command::new("python3");
    command.args(["-c", SUMMER, &endpoint.ip().to_string(), &endpoint.port().to_string(), &folder]);
    let _python = Process::start(command).listens(endpoint).await;
    let tls = format!(
        "[pool.tls]\nca = \"{folder}/ca.pem\"\nserver_name = \"db.test\"\ncertificate = \"{folder}/edge.pem\"\n\
         key = \"{folder}/edge.key\"\n"
    );
    let bind = place.free();
    let tables = pool("only", &tls, &[("aws", endpoint)]) + &listener(bind, "only", "");
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    let mut client = connect(bind).await;
    let (mut from, mut to) = client.split();
    let (sent, received) =
        tokio::join!(Pattern(41).send(&mut to, 0, LENGTH), Pattern(41).receive(&mut from, 0, LENGTH));
    sent.unwrap();
    assert_eq!(received.unwrap(), LENGTH);
    let mut found = Vec::new();
    soon("the hash", from.read_to_end(&mut found)).await.unwrap();
    let mut bytes = vec![0; usize::try_from(LENGTH).unwrap()];
    Pattern(41).fill(0, &mut bytes);
    assert_eq!(found, Sha256::digest(&bytes).to_vec());
}

#[tokio::test]
async fn curl_to_nginx_over_tls_on_both_sides_has_the_right_sha256() {
    if lacks("curl_to_nginx", &["curl", "nginx", "sha256sum"]) {
        return;
    }
    let place = Place::new();
    let edge = Edge::new();
    let web = place.free();
    let folder = edge.files.path().display().to_string();
    let ca = edge.files.put("ca.pem", &edge.authority.pem).display().to_string();
    edge.files.pair("web", &edge.authority.issue(&["web.test"]));
    let mut bytes = vec![0; usize::try_from(LENGTH).unwrap()];
    Pattern(42).fill(0, &mut bytes);
    std::fs::write(edge.files.path().join("big"), &bytes).unwrap();
    let config = edge.files.put(
        "nginx.conf",
        &format!(
            "daemon off;\nmaster_process off;\nuser root;\nerror_log stderr warn;\npid {folder}/nginx.pid;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n access_log off;\n client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;\n\
             fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n\
             server {{ listen {web} ssl http2; root {folder}; ssl_certificate {folder}/web.pem;\n\
             ssl_certificate_key {folder}/web.key; }} }}\n"
        ),
    );
    let mut command = Command::new("nginx");
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()));
    command.arg("-p").arg(&folder).arg("-c").arg(&config).args(["-e", "stderr"]).stdin(Stdio::null());
    let _nginx = Process::start(command).listens(web).await;
    let tls = format!("[pool.tls]\nca = \"{ca}\"\nserver_name = \"web.test\"\n");
    let bind = place.free();
    let tables = pool("web", &tls, &[("aws", web)])
        + &listener(bind, "web", &edge.ends_here("alpn = [\"h2\", \"http/1.1\"]"));
    let _proxy = Proxy::start(Setup::new(&place, tables).carrier(Carrier::Engine)).await;
    let (resolve, url) =
        (format!("{NAME}:{}:{}", bind.port(), bind.ip()), format!("https://{NAME}:{}/big", bind.port()));
    for protocol in ["--http1.1", "--http2"] {
        let file = edge.files.path().join("got").display().to_string();
        let arguments = [
            "--silent",
            "--show-error",
            "--fail",
            protocol,
            "--cacert",
            &ca,
            "--resolve",
            &resolve,
            "--output",
            &file,
            "--write-out",
            "%{http_version}",
            &url,
        ];
        let output = run("curl", &arguments).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        assert_eq!(output.stdout, if protocol == "--http2" { "2" } else { "1.1" });
        assert_eq!(Sha256::digest(std::fs::read(&file).unwrap()), Sha256::digest(&bytes), "{protocol}");
    }
}
