//! The proxy beside an agent.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use rustix::process::Signal;
use rustls::{AlertDescription as Alert, Error, pki_types::CertificateDer};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, split},
    process::Command,
    time::sleep,
};

use super::agent::{Agent, Said, message, svid};
use crate::harness::{
    Authority, Backend, Ending, Files, Issued, Listener, Place, Proxy, Setup, Speaker, binary, built_here,
    connect, eventually, listener, pool, read_out, run, soon, tls_error,
};

/// The name that clients ask for; it is in our identities beside the SPIFFE id.
const NAME: &str = "edge.test";

/// Who we are.
const PROXY: &str = "spiffe://one.test/proxy";

/// Two trust domains, and where the agent of this machine is.
struct World {
    place: Place,
    files: Files,
    one: Authority,
    two: Authority,
}

impl World {
    fn new() -> Self {
        let (one, two) = (Authority::new("one"), Authority::new("two"));
        Self { place: Place::new(), files: Files::new(), one, two }
    }

    fn socket(&self) -> PathBuf {
        self.files.path().join("api.sock")
    }

    /// A new identity of ours.
    fn ours(&self) -> Issued {
        svid(&self.one, &[PROXY, NAME])
    }

    /// What the agent says of it: `two.test` is federated.
    fn said(&self, ours: &Issued) -> Said {
        message(PROXY, ours, &[&self.one], &[("two.test", &self.two)])
    }

    /// The table that names the socket, and what else there is.
    fn setup(&self, tables: &str) -> Setup {
        let text = format!("[spiffe]\nsocket = \"unix://{}\"\n{tables}", self.socket().display());
        Setup::new(&self.place, text)
    }
}

/// Starts the proxy that was built with these tests. Only the config says where the agent is.
fn launch(setup: Setup) -> Proxy {
    let mut command = Command::new(built_here());
    command.env_remove("SPIFFE_ENDPOINT_SOCKET");
    Proxy::launch_as(command, setup)
}

/// An endpoint that has this identity, asks us for ours, and sends everything back.
async fn endpoint(place: &Place, identity: &Issued, authority: &Authority) -> Backend<()> {
    let acceptor = Listener::asking(identity, authority);
    Backend::serve(place, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let (mut from, mut to) = split(stream);
            drop(copy(&mut from, &mut to).await);
            drop(to.shutdown().await);
        }
    })
    .await
}

/// Shakes hands and asks something: what was shown, or the alert that came instead.
async fn enter(client: &Speaker, address: SocketAddr) -> Result<CertificateDer<'static>, Alert> {
    let entered = async {
        let mut stream = client.dial(address, NAME).await?;
        let mut answer = [0; 4];
        stream.write_all(b"ping").await?;
        soon("an answer", stream.read_exact(&mut answer)).await?;
        assert_eq!(&answer, b"ping");
        Ok::<_, io::Error>(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
    };
    entered.await.map_err(|error| match tls_error(&error) {
        Some(Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert but {error:?}"),
    })
}

/// The events of certificates so far.
async fn events(proxy: &Proxy) -> Vec<String> {
    let admin = proxy.setup().admin.to_string();
    let output =
        run(binary(), &["events", "--admin", &admin, "--kind", "certificate", "--last", "100"]).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout.lines().map(ToOwned::to_owned).collect()
}

async fn told(proxy: &Proxy, words: &str) {
    eventually(words, async || events(proxy).await.iter().any(|line| line.contains(words)).then_some(()))
        .await;
}

#[tokio::test]
async fn an_endpoint_is_taken_by_its_spiffe_id_and_the_bundle_of_its_own_trust_domain() {
    let world = World::new();
    let (one, two) = (&world.one, &world.two);
    let _agent = Agent::serve(&world.socket(), world.said(&world.ours()));
    let right = endpoint(&world.place, &svid(one, &["spiffe://one.test/db"]), one).await;
    let federated = endpoint(&world.place, &svid(two, &["spiffe://two.test/db"]), one).await;
    // The authority of the other domain says that it is ours.
    let forged = endpoint(&world.place, &svid(two, &["spiffe://one.test/db"]), one).await;
    let mut tables = String::new();
    let cases = [
        ("any", right.address, "", None),
        ("named", right.address, "names = [\"spiffe://one.test/db\"]", None),
        ("federated", federated.address, "names = [\"spiffe://two.test/*\"]", None),
        ("other", right.address, "names = [\"spiffe://one.test/web\"]", Some("name_not_allowed")),
        ("stranger", federated.address, "", Some("name_not_allowed")),
        ("forged", forged.address, "names = [\"spiffe://one.test/*\"]", Some("unknown_ca")),
    ]
    .map(|(name, address, names, word)| {
        let bind = world.place.free();
        tables +=
            &pool(name, &format!("hedge = false\n[pool.tls]\nspiffe = true\n{names}\n"), &[("aws", address)]);
        tables += &listener(bind, name, "");
        (name, bind, word)
    });
    let proxy = launch(world.setup(&tables)).ready().await;
    for (name, bind, word) in cases {
        let before = proxy.lines();
        let mut client = connect(bind).await;
        client.write_all(b"secret").await.unwrap();
        let Some(word) = word else {
            client.shutdown().await.unwrap();
            assert_eq!(read_out(&mut client).await, (b"secret".to_vec(), Ending::Clean), "{name}");
            continue;
        };
        assert_eq!(read_out(&mut client).await, (Vec::new(), Ending::Reset), "{name}");
        // The lines of sessions that ended before may come after it was looked for.
        let refused = |line: &str| {
            serde_json::from_str::<Value>(line).ok().filter(|line| line.get("refused").is_some())
        };
        let line = proxy.line_from(before, "a refusal", refused).await;
        assert_eq!((&line["refused"], &line["to_upstream"]), (&word.into(), &0.into()), "{line}");
    }
}

#[tokio::test]
async fn a_client_is_taken_by_its_spiffe_id_and_the_bundle_of_its_own_trust_domain() {
    let world = World::new();
    let (one, two) = (&world.one, &world.two);
    let ours = world.ours();
    let _agent = Agent::serve(&world.socket(), world.said(&ours));
    let echo = Backend::echo(&world.place).await;
    let mut tables = pool("only", "", &[("aws", echo.address)]);
    let [own, foreign] = ["", "client_names = [\"spiffe://two.test/*\"]"].map(|names| {
        let bind = world.place.free();
        tables += &listener(bind, "only", &format!("[listener.tls]\nspiffe = true\n{names}\n"));
        bind
    });
    let proxy = launch(world.setup(&tables)).ready().await;
    let (app, guest) = (svid(one, &["spiffe://one.test/app"]), svid(two, &["spiffe://two.test/app"]));
    assert_eq!(enter(&Speaker::new(one, Some(&app)), own).await, Ok(ours.chain()[0].clone()));
    assert_eq!(enter(&Speaker::new(one, Some(&guest)), foreign).await.map(drop), Ok(()));
    for (what, issued, address, alert) in [
        ("no id", Some(one.issue(&["app.test"])), own, Alert::AccessDenied),
        ("not named", Some(guest), own, Alert::AccessDenied),
        ("not named", Some(app), foreign, Alert::AccessDenied),
        ("ours, said by them", Some(svid(two, &["spiffe://one.test/app"])), own, Alert::UnknownCA),
        ("theirs, said by us", Some(svid(one, &["spiffe://two.test/app"])), foreign, Alert::UnknownCA),
        ("of nobody's domain", Some(svid(one, &["spiffe://three.test/app"])), own, Alert::UnknownCA),
        ("nothing", None, own, Alert::CertificateRequired),
    ] {
        let met = enter(&Speaker::new(one, issued.as_ref()), address).await.map(drop);
        assert_eq!(met, Err(alert), "{what}");
    }

    // What is in force is told as that of files is.
    let status = proxy.status().await;
    let told = status["certificates"].as_array().unwrap();
    assert_eq!(told.len(), 2, "{status:#}");
    let socket = format!("unix://{}", world.socket().display());
    for owner in told {
        let one = &owner["shown"][0];
        assert_eq!((&one["file"], &owner["alarm"]), (&socket.as_str().into(), &Value::Null), "{owner:#}");
        assert!(one["names"].as_array().unwrap().contains(&PROXY.into()), "{owner:#}");
    }
    let page = proxy.get("/metrics").await.unwrap().1;
    let (name, label) = ("twinspan_certificate_expiry_timestamp_seconds{", format!("file=\"{socket}\""));
    let series = page.lines().filter(|line| line.starts_with(name) && line.contains(&label));
    assert_eq!(series.count(), 2, "{page}");
}

#[tokio::test]
async fn new_identities_and_bundles_are_in_force_while_sessions_go_on() {
    let world = World::new();
    let echo = Backend::echo(&world.place).await;
    let first = world.ours();
    let agent = Agent::serve(&world.socket(), world.said(&first));
    let bind = world.place.free();
    let tables = pool("only", "", &[("aws", echo.address)])
        + &listener(bind, "only", "[listener.tls]\nspiffe = true\n");
    // The environment says where the agent is.
    let mut command = Command::new(built_here());
    command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", world.socket().display()));
    let proxy = Proxy::launch_as(command, Setup::new(&world.place, tables)).ready().await;
    let client = Speaker::new(&world.one, Some(&svid(&world.one, &["spiffe://one.test/app"])));
    let mut old = client.dial(bind, NAME).await.unwrap();
    let load = tokio::spawn({
        let client = client.clone();
        async move {
            // New clients all the while: none may fail.
            for _ in 0..u32::MAX {
                enter(&client, bind).await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        }
    });
    for _ in 0..3 {
        let generation = proxy.metric("twinspan_generation", &[]).await;
        let next = world.ours();
        agent.say(world.said(&next));
        eventually("the new identity", async || {
            (enter(&client, bind).await == Ok(next.chain()[0].clone())).then_some(())
        })
        .await;
        assert_eq!(proxy.metric("twinspan_generation", &[]).await, generation + 1);
    }
    assert!(!load.is_finished(), "a client has failed meanwhile");
    load.abort();

    // A new authority beside the old one, then in its place: who has an identity of the old one is out.
    let new = Authority::new("one, renewed");
    let renewed = Speaker::new(&world.one, Some(&svid(&new, &["spiffe://one.test/app"])));
    assert_eq!(enter(&renewed, bind).await, Err(Alert::UnknownCA));
    let ours = world.ours();
    agent.say(message(PROXY, &ours, &[&world.one, &new], &[]));
    eventually("the new authority", async || enter(&renewed, bind).await.ok()).await;
    enter(&client, bind).await.unwrap();
    agent.say(message(PROXY, &ours, &[&new], &[]));
    eventually("the end of the old authority", async || enter(&client, bind).await.err()).await;
    enter(&renewed, bind).await.unwrap();

    let mut answer = [0; 4];
    old.write_all(b"ping").await.unwrap();
    soon("an answer", old.read_exact(&mut answer)).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_dies_leaves_what_it_said_in_force_and_is_asked_again() {
    let world = World::new();
    let echo = Backend::echo(&world.place).await;
    let first = world.ours();
    let mut agent = Agent::serve(&world.socket(), world.said(&first));
    let bind = world.place.free();
    let tables = pool("only", "", &[("aws", echo.address)])
        + &listener(bind, "only", "[listener.tls]\nspiffe = true\n");
    let setup = world.setup(&tables);
    let proxy = launch(setup.clone()).ready().await;
    let client = Speaker::new(&world.one, Some(&svid(&world.one, &["spiffe://one.test/app"])));
    let failed = async || proxy.metric("twinspan_certificate_reload_failed", &[]).await;
    assert_eq!((enter(&client, bind).await, failed().await), (Ok(first.chain()[0].clone()), 0));

    agent.die().await;
    told(&proxy, "the old certificate stays").await;
    assert_eq!(enter(&client, bind).await, Ok(first.chain()[0].clone()));
    eventually("the alarm", async || (failed().await == 1).then_some(())).await;
    let alarm = proxy.status().await["certificates"][0]["alarm"].to_string();
    assert!(alarm.contains("api.sock"), "{alarm}");
    // A reload needs no agent for what is known; at another socket it does.
    let refused = async || proxy.metric("twinspan_config_reloads_total", &[("result", "refused")]).await;
    proxy.reload(&setup.text()).await;
    assert_eq!(refused().await, 0);
    proxy.reload(&setup.text().replace("api.sock", "other.sock")).await;
    assert_eq!(refused().await, 1);
    assert!(proxy.said().contains("other.sock has given no identity"), "{}", proxy.said());
    assert_eq!(enter(&client, bind).await, Ok(first.chain()[0].clone()));

    // What is wrong changes nothing either.
    let generation = async || proxy.metric("twinspan_generation", &[]).await;
    let before = generation().await;
    agent.rise();
    told(&proxy, "what is in force is what there is again").await;
    assert_eq!(generation().await, before, "the same identity again is nothing new");
    let second = world.ours();
    let mixed = Issued { certificate: second.certificate.clone(), key: first.key.clone() };
    agent.say(world.said(&mixed));
    told(&proxy, "private key is not that of our certificate").await;
    assert_eq!(enter(&client, bind).await, Ok(first.chain()[0].clone()));
    agent.say(world.said(&second));
    eventually("the new identity", async || {
        (enter(&client, bind).await == Ok(second.chain()[0].clone())).then_some(())
    })
    .await;
    eventually("the end of the alarm", async || (failed().await == 0).then_some(())).await;
    // A stop waits for no agent.
    agent.die().await;
    proxy.signal(Signal::TERM);
    let mut proxy = proxy;
    assert_eq!(proxy.end().await.code(), Some(0));
}

#[tokio::test]
async fn without_an_identity_there_is_no_start_and_the_error_names_the_socket() {
    let world = World::new();
    let bind = world.place.free();
    let echo = Backend::echo(&world.place).await;
    let tables = pool("only", "", &[("aws", echo.address)])
        + &listener(bind, "only", "[listener.tls]\nspiffe = true\n");
    let nobody = world.files.path().join("nobody.sock");
    let _refusing = Agent::serve(&nobody, Said::Nobody);
    let silent = world.files.path().join("silent.sock");
    let _silent = Agent::serve(&silent, Said::Nothing);
    let cases = [
        (world.files.path().join("absent.sock"), "No such file or directory"),
        (nobody, "no identity issued"),
        (silent, "no answer within 5s"),
    ];
    let starts = cases.map(|(socket, words)| {
        let text = world
            .setup(&tables)
            .text()
            .replace(&world.socket().display().to_string(), &socket.display().to_string());
        let config = world.files.put(&format!("{}.toml", words.replace(' ', "-")), &text);
        async move {
            let output = run(built_here(), &["run".into(), "-c".into(), config.into_os_string()]).await;
            assert_eq!(output.code, Some(1), "{output:?}");
            let said = output.stdout + &output.stderr;
            assert!(said.contains(&socket.display().to_string()) && said.contains(words), "{words}: {said}");
        }
    });
    let [absent, nobody, silent] = starts;
    tokio::join!(absent, nobody, silent);

    // Nothing says where it is.
    let config = world.files.put("nowhere.toml", &Setup::new(&world.place, &*tables).text());
    let output = run(built_here(), &["run".into(), "-c".into(), config.into_os_string()]).await;
    let said = output.stdout + &output.stderr;
    assert!(output.code == Some(1) && said.contains("SPIFFE_ENDPOINT_SOCKET in the environment"), "{said}");

    // An agent that comes a moment after the proxy is waited for.
    let ours = world.ours();
    let proxy = launch(world.setup(&tables));
    sleep(Duration::from_millis(300)).await;
    let _agent = Agent::serve(&world.socket(), world.said(&ours));
    let _proxy = proxy.ready().await;
    let client = Speaker::new(&world.one, Some(&svid(&world.one, &["spiffe://one.test/app"])));
    assert_eq!(enter(&client, bind).await, Ok(ours.chain()[0].clone()));
}
