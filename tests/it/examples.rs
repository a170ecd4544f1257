//! The config files that people copy: each is run for real, with its addresses moved to this test's place, and every
//! listener of it carries traffic. What stands in the documents is checked too.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use toml::{Table, Value};

use crate::harness::{Backend, Place, Process, binary, connect, eventually, run, soon};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// Speaks both: answers a request of HTTP, sends everything else back.
async fn either(mut stream: TcpStream) {
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

fn tables<'a>(value: &'a mut Table, key: &str) -> Vec<&'a mut Table> {
    let Some(Value::Array(list)) = value.get_mut(key) else { return Vec::new() };
    list.iter_mut().map(|entry| entry.as_table_mut().unwrap()).collect()
}

/// Moves every address of `config` to `place`. Returns its listeners, and the upstreams that keep serving.
async fn transplant(config: &mut Table, place: &Place) -> (Vec<SocketAddr>, Vec<Backend>, SocketAddr) {
    let mut upstreams: HashMap<String, Backend> = HashMap::new();
    for pool in tables(config, "pool") {
        if let Some(Value::Table(health)) = pool.get_mut("health") {
            for (_, probe) in health.iter_mut() {
                // Upstreams here stand at other ports, and only the endpoint's own one is served.
                probe.as_table_mut().unwrap().remove("port");
            }
        }
        for endpoint in tables(pool, "endpoint") {
            let address = endpoint.get("address").unwrap().as_str().unwrap().to_owned();
            if !upstreams.contains_key(&address) {
                upstreams.insert(address.clone(), Backend::serve(place, either).await);
            }
            let new = upstreams[&address].address;
            endpoint.insert("address".to_owned(), new.to_string().into());
        }
    }
    let mut binds = Vec::new();
    for listener in tables(config, "listener") {
        let bind = place.free();
        listener.insert("bind".to_owned(), bind.to_string().into());
        binds.push(bind);
    }
    let telemetry = place.free();
    for (key, bind) in [("admin", place.free()), ("telemetry", telemetry)] {
        let table = config.entry(key).or_insert_with(|| Table::new().into()).as_table_mut().unwrap();
        table.insert("bind".to_owned(), bind.to_string().into());
    }
    if let Some(log) = config.get_mut("log") {
        log.as_table_mut().unwrap().remove("file");
    }
    (binds, upstreams.into_values().collect(), telemetry)
}

#[tokio::test]
async fn every_example_is_right_as_it_stands_and_carries_traffic() {
    let examples = files(&root().join("config"), "toml");
    assert!(examples.len() >= 3, "{examples:?}");
    for example in examples {
        let checked = run(binary(), &["check".as_ref(), example.as_os_str()]).await;
        assert_eq!(checked.code, Some(0), "{}: {}{}", example.display(), checked.stdout, checked.stderr);

        let place = Place::new();
        let mut config: Table = toml::from_str(&std::fs::read_to_string(&example).unwrap()).unwrap();
        let (binds, upstreams, telemetry) = transplant(&mut config, &place).await;
        assert!(!binds.is_empty() && !upstreams.is_empty(), "{}", example.display());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("example.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&file);
        let proxy = Process::start(command).listens(telemetry).await;
        for bind in binds {
            let mut client = eventually(format!("{bind} of {}", example.display()), async || {
                TcpStream::connect(bind).await.ok()
            })
            .await;
            client.write_all(b"hello").await.unwrap();
            let mut echo = [0; 5];
            soon("an echo", client.read_exact(&mut echo)).await.unwrap();
            assert_eq!(&echo, b"hello", "{}", example.display());
            drop(connect(bind).await);
        }
        drop(proxy);
    }
}

#[tokio::test]
async fn every_config_in_the_documents_is_right() {
    let mut documents = files(root(), "md");
    documents.extend(files(&root().join("docs"), "md"));
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
