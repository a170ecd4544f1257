//! Real software on both sides: nginx and curl, Redis, PostgreSQL. Each server is this test's own, in a folder of its
//! own.

use std::{
    fmt::Write as _,
    fs::File,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use crate::harness::{
    Carrier, Pattern, Place, Process, Proxy, Setup, ask_http, eventually, listener, missing, pool, run, skip,
};

const GIB: u64 = 1 << 30;
const MIB: usize = 1 << 20;

/// Long enough for the heaviest of these programs.
const LONG: Duration = Duration::from_secs(240);

fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

async fn nginx(folder: &Path, address: SocketAddr) -> Process {
    let config = folder.join("nginx.conf");
    let shown = folder.display();
    let text = format!(
        "daemon off;\nmaster_process off;\nerror_log stderr warn;\npid {shown}/nginx.pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n access_log off;\n sendfile on;\n\
         client_body_temp_path {shown}/a; proxy_temp_path {shown}/b; fastcgi_temp_path {shown}/c;\n\
         uwsgi_temp_path {shown}/d; scgi_temp_path {shown}/e;\n\
         server {{\n listen {address};\n root {shown}/www;\n\
         location /name {{ return 200 \"{address}\"; }}\n\
         location /health {{ try_files /well =503; }}\n }}\n}}\n"
    );
    std::fs::create_dir_all(folder.join("www")).unwrap();
    std::fs::write(folder.join("www/well"), "well\n").unwrap();
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("nginx");
    command.env("PATH", path()).arg("-p").arg(folder).arg("-c").arg(&config).arg("-e").arg("stderr");
    Process::start(command).listens(address).await
}

/// Where Debian keeps what only administrators run.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

#[tokio::test]
async fn a_gibibyte_from_nginx_has_the_right_sha256() {
    if let Some(reason) = missing(&["nginx", "curl"]) {
        return skip("a_gibibyte_from_nginx", &reason);
    }
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let server = place.free();
    let _nginx = nginx(folder.path(), server).await;
    let wanted = {
        let mut file = File::create(folder.path().join("www/big")).unwrap();
        let mut hash = Sha256::new();
        let mut bytes = vec![0; MIB];
        for offset in (0..GIB).step_by(MIB) {
            Pattern(21).fill(offset, &mut bytes);
            hash.update(&bytes);
            file.write_all(&bytes).unwrap();
        }
        hex(&hash.finalize())
    };
    let (_engine, by_engine) = Proxy::before_on(Carrier::Engine, &place, server, "").await;
    let (_tokio, by_tokio) = Proxy::before_on(Carrier::Tokio, &place, server, "").await;
    for url in [server, by_engine, by_tokio].map(|address| format!("http://{address}/big")) {
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", &url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = curl.stdout.take().unwrap();
        let hashing = async {
            let mut hash = Sha256::new();
            let mut bytes = vec![0; MIB];
            let mut total = 0;
            loop {
                let length = output.read(&mut bytes).await.unwrap();
                if length == 0 {
                    return (total, hex(&hash.finalize()));
                }
                hash.update(&bytes[..length]);
                total += length as u64;
            }
        };
        let (total, found) = timeout(LONG, hashing).await.unwrap();
        assert!(curl.wait().await.unwrap().success(), "{url}");
        assert_eq!((total, &found), (GIB, &wanted), "{url}");
    }
}

#[tokio::test]
async fn a_server_that_says_503_to_probes_loses_its_traffic_and_gets_it_back() {
    if let Some(reason) = missing(&["nginx"]) {
        return skip("a_server_that_says_503", &reason);
    }
    let place = Place::new();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = [place.free(), place.free()];
    open(folders[0].path());
    open(folders[1].path());
    let _first = nginx(folders[0].path(), first).await;
    let _second = nginx(folders[1].path(), second).await;
    let bind = place.free();
    let settings = "policy = \"failover\"\norder = [\"aws\", \"gcp\"]\nslow_start = \"0s\"\n[pool.health.http]\n\
                    path = \"/health\"\ninterval = \"200ms\"\nfast_interval = \"50ms\"";
    let tables = pool("web", settings, &[("aws", first), ("gcp", second)]) + &listener(bind, "web", "");
    let proxy = Proxy::start(Setup::new(&place, tables)).await;
    proxy.judges(&[first, second], "up").await;
    assert_eq!(name(bind).await, first.to_string());
    let well = folders[0].path().join("www/well");
    std::fs::remove_file(&well).unwrap();
    proxy.judges(&[first], "down").await;
    assert_eq!(name(bind).await, second.to_string());
    std::fs::write(&well, "well\n").unwrap();
    proxy.judges(&[first], "up").await;
    eventually("the first cloud has its traffic back", async || {
        (name(bind).await == first.to_string()).then_some(())
    })
    .await;
}

/// Which server answers at `address`.
async fn name(address: SocketAddr) -> String {
    ask_http(address, "/name").await.unwrap().1
}

async fn redis(folder: &Path, address: SocketAddr) -> Process {
    let mut command = Command::new("redis-server");
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    command.args(["--bind", &ip, "--port", &port, "--save", "", "--appendonly", "no"]);
    command.args(["--enable-debug-command", "yes", "--protected-mode", "no", "--dir"]).arg(folder);
    Process::start(command).listens(address).await
}

async fn redis_says(address: SocketAddr, words: &[&str]) -> String {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let output = run("redis-cli", &[&["-h", &ip, "-p", &port], words].concat()).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout.trim().to_owned()
}

/// `redis-cli --pipe` of a million keys; what it says at its end.
async fn redis_fill(address: SocketAddr) -> String {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new("redis-cli");
    command.args(["-h", &ip, "-p", &port, "--pipe"]).kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let feeding = tokio::spawn(async move {
        let mut text = String::new();
        for key in 0..1_000_000_u64 {
            let value = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            write!(text, "*3\r\n$3\r\nSET\r\n$9\r\nk{key:08}\r\n$20\r\n{value:020}\r\n").unwrap();
            if text.len() > MIB {
                input.write_all(text.as_bytes()).await.unwrap();
                text.clear();
            }
        }
        input.write_all(text.as_bytes()).await.unwrap();
    });
    let output = timeout(LONG, child.wait_with_output()).await.unwrap().unwrap();
    feeding.await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_keys_reach_redis_and_its_benchmark_runs_without_an_error() {
    if let Some(reason) = missing(&["redis-server", "redis-cli", "redis-benchmark"]) {
        return skip("a_million_keys_reach_redis", &reason);
    }
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let [direct, behind] = [place.free(), place.free()];
    let _direct = redis(folder.path(), direct).await;
    let _behind = redis(folder.path(), behind).await;
    let (_tokio, by_tokio) = Proxy::before_on(Carrier::Tokio, &place, behind, "").await;
    let (_engine, address) = Proxy::before_on(Carrier::Engine, &place, behind, "").await;

    let fill = async |target| {
        let said = redis_fill(target).await;
        assert!(said.contains("errors: 0, replies: 1000000"), "{said}");
    };
    fill(direct).await;
    let digest = redis_says(direct, &["DEBUG", "DIGEST"]).await;
    assert_eq!(digest.len(), 40, "{digest}");
    for target in [by_tokio, address] {
        redis_says(behind, &["FLUSHALL"]).await;
        fill(target).await;
        assert_eq!(redis_says(target, &["DBSIZE"]).await, "1000000");
        assert_eq!(redis_says(behind, &["DEBUG", "DIGEST"]).await, digest);
    }

    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let arguments = ["-h", &ip, "-p", &port, "-c", "100", "-d", "1000", "-q"];
    for tests in [
        &["-n", "50000", "-t", "set,get,incr,lpush,lrange_100"][..],
        &["-n", "200000", "-t", "set,get", "-P", "32"],
        // A new connection for each request.
        &["-n", "10000", "-t", "get", "-k", "0"],
    ] {
        let output = run("redis-benchmark", &[&arguments, tests].concat()).await;
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stdout.contains("requests per second"), "{output:?}");
        let said = (output.stdout + &output.stderr).to_lowercase();
        assert!(!said.contains("error") && !said.contains("reset by peer"), "{said}");
    }
}

/// PostgreSQL in a folder of its own, run by an unprivileged user.
struct Postgres {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

/// Where PostgreSQL's own programs are.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut folders: Vec<_> = versions.map(|version| version.unwrap().path().join("bin")).collect();
    folders.sort();
    folders.into_iter().rev().find(|folder| folder.join("initdb").is_file())
}

fn open(folder: &Path) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// `postgres` if we are root (it refuses to run as root), else ourselves.
fn as_user(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

async fn numeric(option: &str) -> u32 {
    run("id", &[option, "postgres"]).await.stdout.trim().parse().unwrap()
}

impl Postgres {
    async fn start(programs: &Path, address: SocketAddr) -> Self {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        if rustix::process::geteuid().is_root() {
            chown(folder.path(), Some(numeric("-u").await), Some(numeric("-g").await)).unwrap();
        }
        let cluster = folder.path().join("cluster");
        let mut command = as_user(&programs.join("initdb"));
        command.args([
            "--auth=trust",
            "--username=postgres",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
        ]);
        command.arg(&cluster).current_dir(folder.path()).kill_on_drop(true).stdin(Stdio::null());
        let output = timeout(LONG, command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut command = as_user(&programs.join("postgres"));
        command.arg("-D").arg(&cluster).arg("-k").arg(folder.path()).current_dir(folder.path());
        command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
        command.args(["-c", "fsync=off", "-c", "max_connections=50"]);
        let process = Process::start(command).farewell(Signal::QUIT);
        process
            .line("readiness", |line| {
                line.contains("database system is ready to accept connections").then_some(())
            })
            .await;
        Self { address, _process: process, _folder: folder }
    }
}

/// Runs a program of PostgreSQL's against the server at `address`.
async fn postgres_runs(program: &Path, address: SocketAddr, arguments: &[&str]) -> String {
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let mut command = Command::new(program);
    command.args(["-h", &host, "-p", &port, "-U", "postgres"]).args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONG, command.output()).await.unwrap().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every table's content in one number each.
async fn checksums(psql: &Path, address: SocketAddr, database: &str) -> String {
    let mut query = String::new();
    for (table, key) in [
        ("pgbench_accounts", "aid"),
        ("pgbench_branches", "bid"),
        ("pgbench_tellers", "tid"),
        ("pgbench_history", "tid, bid, aid, delta, mtime"),
    ] {
        write!(
            query,
            "SELECT '{table}', count(*), md5(string_agg(t::text, ';' ORDER BY {key})) FROM {table} t;"
        )
        .unwrap();
    }
    postgres_runs(psql, address, &["-d", database, "-At", "-c", &query]).await
}

#[tokio::test]
async fn pgbench_runs_and_a_dump_through_the_proxy_restores_to_equal_tables() {
    let test = "pgbench_runs_and_a_dump";
    let Some(programs) = postgres_programs() else { return skip(test, "not installed: postgresql") };
    if let Some(reason) = missing(&["setpriv", "id", "sh"]) {
        return skip(test, &reason);
    }
    let place = Place::new();
    let server = Postgres::start(&programs, place.free()).await;
    let (_proxy, address) = Proxy::before(&place, server.address, "").await;
    let [psql, pgbench] = ["psql", "pgbench"].map(|name| programs.join(name));

    postgres_runs(&psql, address, &["-d", "postgres", "-c", "CREATE DATABASE one"]).await;
    postgres_runs(&psql, address, &["-d", "postgres", "-c", "CREATE DATABASE two"]).await;
    postgres_runs(&pgbench, address, &["-i", "-q", "-s", "5", "one"]).await;
    let ran = postgres_runs(&pgbench, address, &["-c", "10", "-j", "2", "-t", "300", "one"]).await;
    assert!(ran.contains("number of transactions actually processed: 3000/3000"), "{ran}");
    // A new connection for each transaction.
    let ran = postgres_runs(&pgbench, address, &["-n", "-C", "-S", "-c", "4", "-t", "100", "one"]).await;
    assert!(ran.contains("number of transactions actually processed: 400/400"), "{ran}");

    let pipe = format!(
        "{{ {0}/pg_dump -h {1} -p {2} -U postgres one || echo 'SELECT broken;'; }} \
         | {0}/psql -h {1} -p {2} -U postgres -q -v ON_ERROR_STOP=1 -o /dev/null two",
        programs.display(),
        address.ip(),
        address.port()
    );
    let restored = timeout(LONG, Command::new("sh").args(["-c", &pipe]).stdin(Stdio::null()).output());
    let restored = restored.await.unwrap().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let wanted = checksums(&psql, server.address, "one").await;
    assert!(
        wanted.contains("pgbench_accounts|500000|") && wanted.contains("pgbench_history|3000|"),
        "{wanted}"
    );
    assert_eq!(checksums(&psql, address, "two").await, wanted);
}
