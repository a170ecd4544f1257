//! The config room as a whole: files that are right, files that are not, and every text there could be.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use serde_json::Value;

use super::{AdminBind, Code, Config, Loaded, Refused, effective, load, parse, schema, values};

use crate::ids::CloudName;

mod generate;
mod properties;

/// The schema, ready for use.
static VALIDATOR: LazyLock<jsonschema::Validator> =
    LazyLock::new(|| jsonschema::draft202012::new(&schema()).unwrap());

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every TOML file in a directory, in order.
fn files(directory: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 3, "{directory} is nearly empty");
    files
}

fn parse_file(path: &Path) -> Result<Loaded, Refused> {
    let name = path.file_name().unwrap().to_str().unwrap();
    parse(&fs::read_to_string(path).unwrap(), name)
}

/// Compares with the file beside `path` that ends in `.txt`. BLESS=1 writes it anew: read the difference.
fn compare(path: &Path, text: &str, complaints: &mut Vec<String>) {
    let expected = path.with_extension("txt");
    if std::env::var_os("BLESS").is_some() {
        if text.is_empty() {
            drop(fs::remove_file(&expected));
        } else {
            fs::write(&expected, text).unwrap();
        }
    }
    let written = fs::read_to_string(&expected).unwrap_or_default();
    if written != text {
        complaints.push(format!("{} says\n{text}\nnot\n{written}", path.display()));
    }
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "{}\n(BLESS=1 takes it as right)", complaints.join("\n"));
}

/// One problem of a text: code, line, column.
fn places(text: &str) -> Vec<(&'static str, usize, usize)> {
    let report = match parse(text, "x.toml") {
        Ok(loaded) => loaded.warnings,
        Err(refused) => refused.0,
    };
    report
        .problems()
        .iter()
        .map(|problem| {
            let (line, column) = report.position(problem.span.as_ref().unwrap().start);
            (problem.code.as_str(), line, column)
        })
        .collect()
}

#[test]
fn files_that_are_wrong_are_refused_with_every_reason() {
    let mut complaints = Vec::new();
    for path in files("tests/fixtures/config/invalid") {
        match parse_file(&path) {
            Ok(_) => complaints.push(format!("{} is accepted", path.display())),
            Err(Refused(report)) => compare(&path, &report.render(false), &mut complaints),
        }
    }
    complain(&complaints);
}

#[test]
fn files_that_are_right_are_accepted_with_their_warnings() {
    let mut complaints = Vec::new();
    for path in files("tests/fixtures/config/valid") {
        match parse_file(&path) {
            Ok(loaded) => compare(&path, &loaded.warnings.render(false), &mut complaints),
            Err(refused) => complaints.push(refused.to_string()),
        }
    }
    complain(&complaints);
}

#[test]
fn examples_are_right_and_nothing_is_odd_about_them() {
    for path in files("config") {
        let loaded = load(&path).unwrap();
        assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
        assert!(!loaded.config.listeners.is_empty(), "{}", path.display());
    }
}

#[test]
fn what_is_accepted_fits_the_json_schema() {
    let validator = &*VALIDATOR;
    for path in files("config").into_iter().chain(files("tests/fixtures/config/valid")) {
        let text = fs::read_to_string(&path).unwrap();
        let json = json(text.trim_start_matches('\u{feff}'));
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{}", path.display());
    }
    for text in ["", "version = 2", "version = 1\nworkers = 0", "version = 1\nx = 1", "version = 1\n[[pool]]"]
    {
        assert!(!validator.is_valid(&json(text)), "{text:?} fits the schema");
    }
}

fn json(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Value>(text).unwrap()).unwrap()
}

#[test]
fn every_kind_of_text_in_the_schema_is_one_that_is_checked() {
    fn kinds(schema: &Value, found: &mut Vec<String>) {
        found.extend(schema.get("x-text").and_then(Value::as_str).map(str::to_owned));
        match schema {
            Value::Object(object) => object.values().for_each(|value| kinds(value, found)),
            Value::Array(items) => items.iter().for_each(|value| kinds(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    kinds(&schema(), &mut found);
    found.sort();
    found.dedup();
    let mut known: Vec<&str> = values::KINDS.to_vec();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn six_mistakes_are_six_problems_each_in_its_place() {
    let text = fs::read_to_string(root().join("tests/fixtures/config/invalid/six_mistakes.toml")).unwrap();
    let expected = [
        ("TS1008", 6, 12),
        ("TS1007", 7, 11),
        ("TS1006", 9, 12),
        ("TS1012", 12, 9),
        ("TS1004", 14, 1),
        ("TS1011", 16, 8),
    ];
    assert_eq!(places(&text), expected);
}

#[test]
fn json_says_the_same_as_the_text() {
    let Refused(report) = parse("version = 1\n[log]\n# é\nlevle = \"x\"", "dir/x.toml").unwrap_err();
    assert_eq!(
        report.to_json(),
        serde_json::json!({
            "file": "dir/x.toml",
            "errors": 1,
            "warnings": 0,
            "untold": 0,
            "problems": [{
                "severity": "error",
                "code": "TS1004",
                "file": "dir/x.toml",
                "line": 4,
                "column": 1,
                "message": "unknown key `levle` in [log]",
                "label": "no such key",
                "hint": "did you mean `level`?",
                "also": null,
            }],
        })
    );
    assert!(report.to_string().contains("dir/x.toml:4:1"));
}

#[test]
fn colours_are_there_only_when_asked_for() {
    let Refused(report) = parse("x = 1", "x.toml").unwrap_err();
    assert!(report.render(true).contains('\u{1b}'));
    assert!(!report.render(false).contains('\u{1b}'));
    let Refused(report) = parse("version = 1\n\"\\u001b[31m\" = 1", "\u{1b}[31mx.toml").unwrap_err();
    assert!(!report.render(false).contains('\u{1b}'), "control characters of the file reach the terminal");
}

#[test]
fn a_file_that_cannot_be_read_is_not_an_empty_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let says = |name: &str, words: &str| {
        let Refused(report) = load(&path(name)).unwrap_err();
        assert_eq!(
            report.problems().iter().map(|problem| problem.code).collect::<Vec<_>>(),
            [Code::Unreadable]
        );
        assert!(report.to_string().contains(words), "{report}");
    };
    says("missing.toml", "No such file or directory");
    says(".", "is a directory");
    fs::write(path("latin1.toml"), b"version = 1\n# caf\xe9\n").unwrap();
    says("latin1.toml", "not UTF-8: byte 0xe9 at offset 17, in line 2");
    fs::write(path("long.toml"), vec![b'\n'; 16 * 1024 * 1024 + 1]).unwrap();
    says("long.toml", "larger than 16 MiB");
    fs::write(path("right.toml"), "version = 1\n").unwrap();
    assert!(load(&path("right.toml")).is_ok());
}

#[test]
fn defaults_are_the_ones_of_the_defaults_file() {
    use super::defaults;
    let text = "version = 1\ncloud.a = {}\ncloud.b = {}\nlistener = [{ bind = \"[::]:1\", pool = \"p\" }]\n[[pool]]\n\
        name = \"p\"\nhealth.http = {}\nendpoint = [{ address = \"x:1\", cloud = \"b\" }, { address = \"y:1\", cloud = \"a\" }]";
    let config = parse(text, "x.toml").unwrap().config;
    assert_eq!(config.workers, None);
    assert_eq!((config.drain_timeout, config.admin.explicit), (defaults::DRAIN_TIMEOUT, false));
    assert_eq!(config.admin.bind, AdminBind::Tcp(defaults::ADMIN));
    assert_eq!((config.telemetry.bind, config.telemetry.explicit), (Some(defaults::TELEMETRY), false));
    let listener = &config.listeners[0];
    assert_eq!((listener.name.as_str(), listener.bind.only_v6), ("[::]:1", false));
    assert_eq!((listener.keepalive, listener.backlog), (defaults::KEEPALIVE, defaults::BACKLOG));
    let pool = &config.pools[0];
    let super::Policy::Failover { order } = &pool.policy else { panic!("{:?}", pool.policy) };
    assert_eq!(order.iter().map(CloudName::as_str).collect::<Vec<_>>(), ["b", "a"]);
    let health = pool.health.as_ref().unwrap();
    assert_eq!((health.timeout, health.interval), (defaults::HTTP_PROBE_TIMEOUT, defaults::PROBE_INTERVAL));
}

#[test]
fn the_fast_interval_is_never_the_slower_one_by_default() {
    let text = "version = 1\ncloud.a = {}\n[[pool]]\nname = \"p\"\nhealth.tcp.interval = \"20ms\"\n\
        endpoint = [{ address = \"x:1\", cloud = \"a\" }]";
    let config = parse(text, "x.toml").unwrap().config;
    assert_eq!(config.pools[0].health.as_ref().unwrap().fast_interval, Duration::from_millis(20));
}

#[test]
fn an_endpoint_on_an_address_of_this_machine_is_a_loop() {
    // The address that this machine would send from; without a network there is none but loopback.
    let Ok(source) = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    }) else {
        return;
    };
    let text = |port: u16| {
        format!(
            "version = 1\ncloud.a = {{}}\nlistener = [{{ bind = \"0.0.0.0:5000\", pool = \"p\" }}]\n[[pool]]\nname = \"p\"\n\
             health.tcp = {{}}\nendpoint = [{{ address = \"{}:{port}\", cloud = \"a\" }}]",
            source.ip()
        )
    };
    assert_eq!(places(&text(5000)), [("TS1016", 7, 25)]);
    assert_eq!(places(&text(5001)), []);
}

/// A config with many endpoints, in `pools` pools.
fn large(pools: usize, endpoints: usize) -> String {
    let mut text = "version = 1\n[cloud.aws]\n[cloud.gcp]\n".to_owned();
    for pool in 0..pools {
        text += &format!(
            "[[listener]]\nbind = \"0.0.0.0:{}\"\npool = \"p{pool}\"\n[[pool]]\nname = \"p{pool}\"\nhealth.tcp = {{}}\n",
            1000 + pool
        );
        for endpoint in 0..endpoints {
            let cloud = if endpoint % 2 == 0 { "aws" } else { "gcp" };
            text += &format!(
                "[[pool.endpoint]]\naddress = \"198.18.{}.{}:{}\"\ncloud = \"{cloud}\"\nzone = \"z\"\nweight = 2\n",
                endpoint / 256,
                endpoint % 256,
                1000 + pool,
            );
        }
    }
    text
}

#[test]
fn a_file_of_20_000_endpoints_is_checked_in_moments() {
    for (pools, endpoints) in [(1, 20_000), (200, 100)] {
        let text = large(pools, endpoints);
        let start = tokio::time::Instant::now();
        let loaded = parse(&text, "large.toml").unwrap();
        assert_eq!(loaded.config.pools.iter().map(|pool| pool.endpoints.len()).sum::<usize>(), 20_000);
        // Around a second unoptimized; what is quadratic in it takes minutes.
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

#[test]
fn as_many_problems_as_there_are_keys_are_told_in_moments() {
    let wrong =
        large(1, 20_000).replace("\"gcp\"", "\"gpc\"").replace("weight", "wieght").replace("version", "v");
    for text in [wrong, "]\n".repeat(200_000), "[[pool]]\nname = 1\n".repeat(20_000), "x=1\n".repeat(100_000)]
    {
        let start = tokio::time::Instant::now();
        let Refused(report) = parse(&text, "large.toml").unwrap_err();
        assert!(!report.render(false).is_empty() && report.errors() > 0);
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

#[test]
fn in_a_log_a_refusal_is_one_line() {
    let text = "version = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:1\"\npool = \"q\"\n";
    let refused = parse(text, "live.toml").unwrap_err();
    let expected = format!("live.toml:5:8: {} [TS1011]", refused.0.problems()[0].what);
    assert_eq!(refused.to_string(), expected);

    let refused = parse("version = 1\n[log]\nlevle = 1\nfromat = 2\n", "live.toml").unwrap_err();
    assert_eq!(refused.0.errors(), 2);
    let line = refused.to_string();
    assert!(line.starts_with("live.toml:3:1: ") && line.ends_with(" [TS1004], 1 more"), "{line}");

    let refused = load(Path::new("/nowhere/x.toml")).unwrap_err().to_string();
    assert!(refused.starts_with("/nowhere/x.toml: ") && !refused.contains('\n'), "{refused}");
}

#[test]
fn a_probe_speaks_the_tls_of_its_pool_at_the_port_of_the_endpoint() {
    let tls = |pool: &str, health: &str| {
        let text = format!(
            "version = 1\ncloud.a = {{}}\n[[pool]]\nname = \"p\"\n{pool}\nhealth.{health}\n\
             endpoint = [{{ address = \"192.0.2.1:1\", cloud = \"a\" }}]\n"
        );
        parse(&text, "x.toml").unwrap().config.pools[0].health.as_ref().unwrap().tls
    };
    for kind in ["tcp", "http"] {
        assert!(!tls("", &format!("{kind} = {{}}")));
        assert!(tls("tls = {}", &format!("{kind} = {{}}")));
        assert!(!tls("tls = {}", &format!("{kind} = {{ tls = false }}")));
        assert!(!tls("tls = {}", &format!("{kind} = {{ port = 8080 }}")));
        assert!(tls("tls = {}", &format!("{kind} = {{ port = 8080, tls = true }}")));
    }
}
