//! What the tests share: a place to stand, upstreams with a story, the proxy as a process, load, and patience.

mod backend;
mod calls;
mod certificates;
pub(crate) mod header;
pub(crate) mod hello;
mod load;
mod net;
mod pattern;
mod place;
mod process;
mod proxy;
mod secure;
mod setup;

pub(crate) use backend::{Backend, Full};
pub(crate) use calls::{Calls, Counted};
pub(crate) use certificates::{Authority, Files, Issued, entry};
pub(crate) use load::{Load, Outcome, ask};
pub(crate) use net::{Net, command, rule};
pub(crate) use pattern::{Dice, Pattern};
pub(crate) use place::Place;
pub(crate) use process::{Output, Process, binary, built_here, missing, run};
pub(crate) use proxy::{Proxy, ask_http};
pub(crate) use secure::{Listener, Speaker, VERSIONS, tls_error};
pub(crate) use setup::{Carrier, Setup, listener, on_both_carriers, pool};

use std::{fmt, io, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Long enough for anything on a busy machine. A test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer; fails after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: impl fmt::Display, probe: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, probe).await
}

/// Asks again and again until there is an answer; fails after `limit`.
pub(crate) async fn eventually_within<T>(
    limit: Duration,
    what: impl fmt::Display,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Awaits something that must happen within [`PATIENCE`].
pub(crate) async fn soon<F: Future>(what: impl fmt::Display, future: F) -> F::Output {
    let Ok(output) = timeout(PATIENCE, future).await else { panic!("not within {PATIENCE:?}: {what}") };
    output
}

/// How a direction ended, as its receiver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// End of stream.
    Clean,
    /// Connection reset.
    Reset,
}

/// Reads to the end: the bytes, and how it ended.
pub(crate) async fn read_out(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, Ending) {
    let mut bytes = Vec::new();
    let ending = match soon("the end of the stream", stream.read_to_end(&mut bytes)).await {
        Ok(_) => Ending::Clean,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            Ending::Reset
        }
    };
    (bytes, ending)
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Connects, as a client of the proxy would.
pub(crate) async fn connect(address: std::net::SocketAddr) -> TcpStream {
    let stream = soon("a connection", TcpStream::connect(address)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Connects to an address that resets every client: true if it did. The reset may be faster than the client's own
/// connect.
pub(crate) async fn is_reset(address: std::net::SocketAddr) -> bool {
    match soon("a connection", TcpStream::connect(address)).await {
        Ok(mut stream) => read_out(&mut stream).await == (Vec::new(), Ending::Reset),
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// True when `stream` stays silent, neither bytes nor an end, for this long.
pub(crate) async fn silent_for(stream: &TcpStream, span: Duration) -> bool {
    timeout(span, stream.readable()).await.is_err()
}

/// A test cannot run: a program is not installed. Says so where `tests/run` finds it, and fails where everything could
/// be installed.
pub(crate) fn skip(test: &str, reason: &str) {
    left_out(test, reason, &["packages", "all"]);
}

/// A test cannot run: this machine does not let it. Says so where `tests/run` finds it, and fails where nothing may be
/// left out.
pub(crate) fn skip_on_this_machine(test: &str, reason: &str) {
    left_out(test, reason, &["all"]);
}

fn left_out(test: &str, reason: &str, failures: &[&str]) {
    let line = format!("SKIPPED: {test}: {reason}");
    let required = std::env::var("TWINSPAN_NO_SKIP").unwrap_or_default();
    assert!(!failures.contains(&required.as_str()), "{line}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("TWINSPAN_SKIPS") {
        use io::Write as _;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        // In one piece, as other tests write too.
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// A number from the environment, for runs that are longer than the everyday one.
pub(crate) fn count_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}
