//! Certificates that are replaced while sessions run.

use std::{os::unix::fs::symlink, path::Path, time::Duration};

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};
use tokio_rustls::client::TlsStream;

use super::{Edge, NAME, answers};
use crate::harness::{
    Authority, Backend, Carrier, Files, Issued, Listener, Place, Proxy, Setup, Speaker, binary, connect,
    entry, eventually, eventually_within, listener, pool, run,
};

/// New certificates are in force within this time.
const SOON: Duration = Duration::from_secs(3);

/// What a new client is shown.
async fn shown(client: &Speaker, address: std::net::SocketAddr) -> CertificateDer<'static> {
    let mut stream = client.dial(address, NAME).await.unwrap();
    answers(&mut stream).await.unwrap();
    leaf(&stream)
}

fn leaf(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

async fn shows(client: &Speaker, address: std::net::SocketAddr, issued: &Issued) {
    eventually_within(SOON, "the new certificate", async || {
        (shown(client, address).await == issued.chain()[0]).then_some(())
    })
    .await;
}

/// The events of certificates so far, as `twinspan events` tells them.
async fn events(proxy: &Proxy) -> Vec<String> {
    let admin = proxy.setup().admin.to_string();
    let output =
        run(binary(), &["events", "--admin", &admin, "--kind", "certificate", "--last", "1000"]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout.lines().map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn new_files_are_in_force_for_the_next_handshake_and_bad_ones_never() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let edge = Edge::new();
    let (proxy, address) = edge.before(Carrier::default(), &place, echo.address, "").await;
    let client = Speaker::new(&edge.authority, None);
    let mut old = client.dial(address, NAME).await.unwrap();
    answers(&mut old).await.unwrap();
    let load = tokio::spawn({
        let client = client.clone();
        async move {
            // New clients all the while: none may fail.
            for _ in 0..u32::MAX {
                shown(&client, address).await;
                sleep(Duration::from_millis(20)).await;
            }
        }
    });

    // In place, the key after the certificate.
    let second = edge.authority.issue(&[NAME]);
    edge.files.pair("edge", &second);
    shows(&client, address, &second).await;

    // A pair that does not match, then a half of a file.
    let third = edge.authority.issue(&[NAME]);
    for (certificate, key) in [
        (third.certificate.as_str(), second.key.as_str()),
        (third.certificate.get(..300).unwrap(), &second.key),
        ("", &second.key),
        (&second.certificate, second.key.get(..40).unwrap()),
    ] {
        let told = events(&proxy).await.len();
        edge.files.put("edge.pem", certificate);
        edge.files.put("edge.key", key);
        eventually("what is wrong with the files", async || {
            (events(&proxy).await.len() > told).then_some(())
        })
        .await;
        assert_eq!(shown(&client, address).await, second.chain()[0], "{certificate}{key}");
    }
    // A reload by signal refuses them too, and says why.
    let refused = proxy.metric("twinspan_config_reloads_total", &[("result", "refused")]).await;
    proxy.signal(Signal::HUP);
    eventually("a refused reload", async || {
        let now = proxy.metric("twinspan_config_reloads_total", &[("result", "refused")]).await;
        (now > refused).then_some(())
    })
    .await;
    assert_eq!(shown(&client, address).await, second.chain()[0]);
    edge.files.pair("edge", &third);
    shows(&client, address, &third).await;

    // By signal, at once.
    let fourth = edge.authority.issue(&[NAME]);
    edge.files.pair("edge", &fourth);
    let before = proxy.reloads().await;
    proxy.signal(Signal::HUP);
    eventually("a reload", async || (proxy.reloads().await > before).then_some(())).await;
    shows(&client, address, &fourth).await;

    assert!(!load.is_finished(), "a client has failed meanwhile");
    load.abort();
    answers(&mut old).await.unwrap();
    assert_eq!(leaf(&old), edge.issued.chain()[0]);
    old.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_volume_of_kubernetes_that_changes_its_link_is_noticed() {
    let place = Place::new();
    let echo = Backend::echo(&place).await;
    let authority = Authority::new("edge authority");
    let files = Files::new();
    let version = |name: &str, issued: &Issued| {
        let folder = files.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tls.crt"), &issued.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &issued.key).unwrap();
    };
    let swap = |name: &str| {
        let new = files.path().join("..data_tmp");
        symlink(name, &new).unwrap();
        std::fs::rename(new, files.path().join("..data")).unwrap();
    };
    let first = authority.issue(&[NAME]);
    version("..1", &first);
    swap("..1");
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), files.path().join(file)).unwrap();
    }
    let pair = entry(&files.path().join("tls.crt"), &files.path().join("tls.key"));
    let settings = format!("[listener.tls]\ncertificates = [{pair}]\n");
    let (_proxy, address) = Proxy::before(&place, echo.address, &settings).await;
    let client = Speaker::new(&authority, None);
    assert_eq!(shown(&client, address).await, first.chain()[0]);
    for name in ["..2", "..3"] {
        let issued = authority.issue(&[NAME]);
        version(name, &issued);
        swap(name);
        shows(&client, address, &issued).await;
    }
}

#[tokio::test]
async fn a_new_authority_of_a_pool_is_believed_at_once() {
    let place = Place::new();
    let files = Files::new();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let acceptor = Listener::new(&new.issue(&["db.test"]));
    let endpoint = Backend::serve(&place, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                drop(stream.write_all(b"well").await);
                drop(stream.shutdown().await);
            }
        }
    })
    .await;
    let ca = files.put("ca.pem", &old.pem);
    let tls = format!(
        "ejection = {{ enabled = false }}\n[pool.tls]\nca = \"{}\"\nserver_name = \"db.test\"\n",
        ca.display()
    );
    let bind = place.free();
    let tables = pool("only", &tls, &[("aws", endpoint.address)]) + &listener(bind, "only", "");
    let _proxy = Proxy::start(Setup::new(&place, tables)).await;
    let asked = async || {
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut connect(bind).await, &mut answer).await.map(|_| answer)
    };
    assert!(asked().await.is_err(), "an endpoint of another authority was believed");
    files.put("ca.pem", &new.pem);
    eventually_within(SOON, "the new authority", async || {
        asked().await.ok().filter(|answer| answer == b"well")
    })
    .await;
}
