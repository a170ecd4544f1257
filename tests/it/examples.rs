//! The config files that people copy: each is run for real, with its addresses moved to this test's place, and every
//! listener of it carries traffic. What stands in the documents is checked too.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use toml::{Table, Value};

use crate::harness::{
    Backend, Net, Place, Process, binary, command, connect, eventually, missing, run, skip, soon,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn paths(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// Speaks both: answers a request of HTTP, sends everything else back.
async fn either(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut bytes = vec![0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        let read = &bytes[..length];
        let answer: &[u8] = if read.starts_with(b"GET ") {
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
        } else {
            read
        };
        if stream.write_all(answer).await.is_err() || read.starts_with(b"GET ") {
            return;
        }
    }
}

/// What an upstream expects before it is asked.
#[derive(Clone, Default)]
struct Manner {
    /// A PROXY header of version 2.
    header: bool,
    tls: Option<TlsAcceptor>,
}

async fn upstream(mut stream: TcpStream, manner: Manner) {
    if manner.header {
        let mut head = [0; 16];
        // A probe may have been given up.
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n", "a PROXY header comes first");
        let mut rest = vec![0; u16::from_be_bytes([head[14], head[15]]).into()];
        if stream.read_exact(&mut rest).await.is_err() {
            return;
        }
    }
    match manner.tls {
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                either(stream).await;
            }
        }
        None => either(stream).await,
    }
}

/// The files that an example names: made anew, by one authority.
struct Files {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    authority: Certificate,
    made: usize,
}

impl Files {
    fn new() -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files = Self { folder, issuer: Issuer::new(params, key), authority, made: 0 };
        std::fs::write(files.ca(), files.authority.pem()).unwrap();
        files
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn issue(&self, names: &[String]) -> (Certificate, KeyPair) {
        let (key, params) = (KeyPair::generate().unwrap(), CertificateParams::new(names).unwrap());
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Puts a certificate for these names where a table says `certificate` and `key`.
    fn put(&mut self, table: &mut Table, names: &[String]) {
        self.made += 1;
        let (certificate, key) = self.issue(names);
        for (word, text) in [("certificate", certificate.pem()), ("key", key.serialize_pem())] {
            let path = self.folder.path().join(format!("{}.{word}", self.made));
            std::fs::write(&path, text).unwrap();
            table.insert(word.to_owned(), path.to_str().unwrap().into());
        }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let (certificate, key) = self.issue(&[name.to_owned()]);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap()))
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        TlsConnector::from(Arc::new(config.with_no_client_auth()))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn tables<'a>(value: &'a mut Table, key: &str) -> Vec<&'a mut Table> {
    let Some(Value::Array(list)) = value.get_mut(key) else { return Vec::new() };
    list.iter_mut().map(|entry| entry.as_table_mut().unwrap()).collect()
}

/// A listener that was moved: where it is, and the names to ask for if TLS ends there.
struct Door {
    bind: SocketAddr,
    names: Option<Vec<String>>,
}

/// Moves every address of `config` to `place`, and every file to `files`. Returns its listeners, and the upstreams that
/// keep serving.
async fn transplant(
    config: &mut Table,
    place: &Place,
    files: &mut Files,
) -> (Vec<Door>, Vec<Backend>, SocketAddr) {
    let mut upstreams: HashMap<String, Backend> = HashMap::new();
    for pool in tables(config, "pool") {
        if let Some(Value::Table(health)) = pool.get_mut("health") {
            for (_, probe) in health.iter_mut() {
                // Upstreams here stand at other ports, and only the endpoint's own one is served.
                probe.as_table_mut().unwrap().remove("port");
            }
        }
        let header = pool.get("proxy_header").is_some_and(|version| version.as_str() == Some("v2"));
        let mut manner = Manner { header, tls: None };
        if let Some(Value::Table(tls)) = pool.get_mut("tls") {
            manner.tls = Some(files.acceptor(tls["server_name"].as_str().unwrap()));
            tls.insert("ca".to_owned(), files.ca().to_str().unwrap().into());
        }
        for endpoint in tables(pool, "endpoint") {
            let address = endpoint.get("address").unwrap().as_str().unwrap().to_owned();
            if !upstreams.contains_key(&address) {
                let manner = manner.clone();
                let story = move |stream| upstream(stream, manner.clone());
                upstreams.insert(address.clone(), Backend::serve(place, story).await);
            }
            let new = upstreams[&address].address;
            endpoint.insert("address".to_owned(), new.to_string().into());
        }
    }
    let mut doors = Vec::new();
    for listener in tables(config, "listener") {
        let bind = place.free();
        listener.insert("bind".to_owned(), bind.to_string().into());
        for route in tables(listener, "route") {
            if route.contains_key("destination") {
                // No firewall sends anything here: what clients ask for is the listener.
                route.insert("destination".to_owned(), Value::Array(vec![bind.to_string().into()]));
            }
        }
        let routes = tables(listener, "route").into_iter().filter_map(|route| route.get("sni")?.as_array());
        let names: Vec<String> = routes.flatten().map(|name| name.as_str().unwrap().to_owned()).collect();
        let mut door = Door { bind, names: None };
        if let Some(Value::Table(tls)) = listener.get_mut("tls") {
            for pair in tables(tls, "certificates") {
                files.put(pair, &names);
            }
            door.names = Some(names);
        }
        doors.push(door);
    }
    let telemetry = place.free();
    for (key, bind) in [("admin", place.free()), ("telemetry", telemetry)] {
        let table = config.entry(key).or_insert_with(|| Table::new().into()).as_table_mut().unwrap();
        table.insert("bind".to_owned(), bind.to_string().into());
    }
    if let Some(log) = config.get_mut("log") {
        log.as_table_mut().unwrap().remove("file");
    }
    (doors, upstreams.into_values().collect(), telemetry)
}

async fn says_hello(mut client: impl AsyncRead + AsyncWrite + Unpin, what: &str) {
    client.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    soon("an echo", client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"hello", "{what}");
}

#[tokio::test]
async fn every_example_is_right_as_it_stands_and_carries_traffic() {
    let examples = paths(&root().join("config"), "toml");
    assert!(examples.len() >= 4, "{examples:?}");
    let mut secured = 0;
    for example in examples {
        let checked = run(binary(), &["check".as_ref(), example.as_os_str()]).await;
        assert_eq!(checked.code, Some(0), "{}: {}{}", example.display(), checked.stdout, checked.stderr);

        let (place, mut files) = (Place::new(), Files::new());
        let mut config: Table = toml::from_str(&std::fs::read_to_string(&example).unwrap()).unwrap();
        let (doors, upstreams, telemetry) = transplant(&mut config, &place, &mut files).await;
        assert!(!doors.is_empty() && !upstreams.is_empty(), "{}", example.display());
        let file = files.folder.path().join("example.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let checked = run(binary(), &["check".as_ref(), file.as_os_str()]).await;
        assert_eq!(checked.code, Some(0), "{}", example.display());
        for of_files in ["TS1107", "TS1108", "TS1109"] {
            assert!(!checked.stderr.contains(of_files), "{}: {}", example.display(), checked.stderr);
        }
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&file);
        let proxy = Process::start(command).listens(telemetry).await;
        for Door { bind, names } in doors {
            let what = format!("{bind} of {}", example.display());
            let client = eventually(&what, async || TcpStream::connect(bind).await.ok()).await;
            let Some(names) = names else {
                says_hello(client, &what).await;
                drop(connect(bind).await);
                continue;
            };
            for name in names {
                let server = ServerName::try_from(name.clone()).unwrap();
                let shaking = files.connector().connect(server, connect(bind).await);
                let client = soon("a handshake", shaking).await.unwrap();
                says_hello(client, &format!("{name} at {what}")).await;
                secured += 1;
            }
        }
        drop(proxy);
    }
    assert!(secured >= 2, "TLS ends in an example");
}

#[test]
fn the_firewall_takes_every_rule_in_the_examples() {
    let test = "the_firewall_takes_every_rule_in_the_examples";
    if let Some(reason) = missing(&["nft", "iptables"]) {
        return skip(test, &reason);
    }
    let Some(net) = Net::new(test) else { return };
    net.run(async || {
        let mut rules = 0;
        for example in paths(&root().join("config"), "toml") {
            let text = std::fs::read_to_string(&example).unwrap();
            for line in text.lines().filter_map(|line| line.strip_prefix("#     ")) {
                if ["nft ", "iptables ", "ip "].iter().any(|program| line.starts_with(program)) {
                    command(&["sh", "-c", line]).unwrap();
                    rules += 1;
                }
            }
        }
        assert!(rules >= 10, "{rules}");
    });
}

#[tokio::test]
async fn every_config_in_the_documents_is_right() {
    let mut documents = paths(root(), "md");
    documents.extend(paths(&root().join("docs"), "md"));
    let folder = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            if !block.contains("version = 1") {
                continue; // a part of a config, or of something else
            }
            let file = folder.path().join("block.toml");
            std::fs::write(&file, block).unwrap();
            let output = run(binary(), &["check".as_ref(), file.as_os_str()]).await;
            let place = document.display();
            assert_eq!(output.code, Some(0), "{place}:\n{block}\n{}{}", output.stdout, output.stderr);
            checked += 1;
        }
    }
    assert!(checked > 0, "no document shows a whole config");
}
