//! What the verbs that ask the admin API have in common: whom they ask, and how they say that it did not work.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use hyper::Method;
use serde::de::DeserializeOwned;

use super::{
    check::{BAD_CONFIG, USAGE},
    client::{self, Answer, AskError, Target},
    status::table::plain,
    target::{Door, TargetError},
};
use crate::api::Status;

/// Where the admin API listens if the config does not say.
const DEFAULT: &str = "127.0.0.1:9797";

/// Time for the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Exit code: the admin API cannot be reached (EX_UNAVAILABLE of sysexits).
const UNREACHABLE: u8 = 69;

/// Which proxy is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct AdminArgs {
    /// Where the proxy's admin API listens: HOST:PORT or unix:PATH. If nothing is said: TWINSPAN_ADMIN, then 127.0.0.1:9797.
    #[arg(long, value_name = "ADDR", conflicts_with = "config")]
    pub admin: Option<Target>,
    /// The proxy's config file, to read that address from.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("{target} answered {status}: {complaint}")]
    Refused { target: Target, status: u16, complaint: String },
    #[error("{target} is not a twinspan of this version: {source}")]
    Foreign { target: Target, source: serde_json::Error },
    #[error("cannot write: {0}")]
    Output(io::Error),
    #[error("cannot ask: {0}")]
    Runtime(io::Error),
    #[error("{0}")]
    Target(#[from] TargetError),
    /// Why some of what was asked for was not done.
    #[error("{}", .0.join("\nerror: "))]
    Partly(Vec<String>),
}

impl AdminArgs {
    /// The address, from the arguments or the environment.
    pub(super) fn target(&self) -> Result<Target, TargetError> {
        // Read here and not by the parser, for which an empty variable would be a wrong address.
        self.target_or(std::env::var("TWINSPAN_ADMIN").ok().as_deref())
    }

    pub(super) fn target_or(&self, variable: Option<&str>) -> Result<Target, TargetError> {
        let variable = variable.filter(|text| !text.is_empty());
        match (&self.admin, &self.config, variable) {
            (Some(target), ..) => Ok(target.clone()),
            (None, Some(file), _) => Door::Admin.of_file(file),
            (None, None, Some(text)) => Door::parse("TWINSPAN_ADMIN", text),
            (None, None, None) => Door::parse("--admin", DEFAULT),
        }
    }
}

/// Does `work` on a runtime of its own.
pub(super) fn wait(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(Failure::Runtime(error)),
    }
}

/// Says on standard error what is wrong, and gives the exit code.
pub(super) fn exit(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // With nobody to read it, the exit code has to do.
            drop(writeln!(io::stderr().lock(), "{}", failure.report()));
            failure.code()
        }
    }
}

/// Asks, and takes no answer but a good one.
pub(super) async fn ask(target: &Target, method: Method, path: &str) -> Result<Answer, Failure> {
    let answer = client::ask(target, method, path, LIMIT).await?;
    if answer.status.is_success() {
        return Ok(answer);
    }
    Err(Failure::refused(target, &answer))
}

/// Says on standard error that the proxy has no such pool: for who has asked for something of it and got nothing.
pub(super) async fn warn_of_unknown(
    (pool, cloud): (Option<&str>, Option<&str>),
    target: &Target,
    talk: &mut impl Write,
) {
    if pool.is_none() && cloud.is_none() {
        return;
    }
    // This is a help only: where the proxy does not say which pools it has, there is none.
    let Ok(answer) = ask(target, Method::GET, "/api/v1/status").await else { return };
    let Ok(status) = read::<Status>(target, &answer) else { return };
    let pools = status.pools.iter().map(|known| known.name.as_str()).collect::<Vec<_>>();
    let clouds = status.clouds.iter().map(|known| known.name.as_str()).collect::<Vec<_>>();
    for (what, wish, known) in [("pool", pool, pools), ("cloud", cloud, clouds)] {
        let Some(wish) = wish.filter(|wish| !known.contains(wish)) else { continue };
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let warning = format!("warning: the proxy has no {what} {wish:?}; it has: {known}");
        drop(writeln!(talk, "{}", plain(&warning)));
    }
}

/// Reads what an answer says.
pub(super) fn read<T: DeserializeOwned>(target: &Target, answer: &Answer) -> Result<T, Failure> {
    let foreign = |source| Failure::Foreign { target: target.clone(), source };
    serde_json::from_slice(&answer.body).map_err(foreign)
}

impl Failure {
    /// An answer that is not the one wished for.
    pub(super) fn refused(target: &Target, answer: &Answer) -> Self {
        let (status, complaint) = (answer.status.as_u16(), answer.complaint());
        Self::Refused { target: target.clone(), status, complaint }
    }

    /// What is wrong, and what may help.
    pub(super) fn report(&self) -> String {
        match self {
            Self::Ask(error) if error.is_unreachable() => format!(
                "error: {error}\n  \
                 hint: is the proxy running? its admin API listens where `[admin] bind` says ({DEFAULT} if nothing \
                 does); --admin or TWINSPAN_ADMIN takes another HOST:PORT or unix:PATH, -c reads it from a config file"
            ),
            failure => format!("error: {failure}"),
        }
    }

    pub(super) fn code(&self) -> ExitCode {
        match self {
            Self::Ask(error) if error.is_unreachable() => ExitCode::from(UNREACHABLE),
            Self::Target(TargetError::Config(_)) => ExitCode::from(BAD_CONFIG),
            // The question was wrong.
            Self::Target(TargetError::Address { .. }) | Self::Refused { status: 400, .. } => {
                ExitCode::from(USAGE)
            }
            _ => ExitCode::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::{client::tests::server, status::sample},
        *,
    };

    #[tokio::test]
    async fn a_pool_that_the_proxy_does_not_have_is_told() {
        for (pools, wish, wanted) in [
            (&["db", "cache"][..], Some("dB"), "warning: the proxy has no pool \"dB\"; it has: db, cache\n"),
            (&[], Some("a\nb"), "warning: the proxy has no pool \"a\\nb\"; it has: none\n"),
            (&["db"], Some("db"), ""),
            (&["db"], None, ""),
        ] {
            let mut status = sample::status();
            status.pools.retain(|pool| pools.contains(&pool.name.as_str()));
            let body = serde_json::to_string(&status).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let (target, _asked) = server(head + &body).await;
            let mut talk = Vec::new();
            warn_of_unknown((wish, None), &target, &mut talk).await;
            assert_eq!(String::from_utf8(talk).unwrap(), wanted, "{wish:?}");
        }
        let body = serde_json::to_string(&sample::status()).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let (target, _asked) = server(head + &body).await;
        let mut talk = Vec::new();
        warn_of_unknown((None, Some("asw")), &target, &mut talk).await;
        let told = String::from_utf8(talk).unwrap();
        assert!(told.starts_with("warning: the proxy has no cloud \"asw\"; it has: "), "{told}");
        let (target, _asked) = server("HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n").await;
        let mut talk = Vec::new();
        warn_of_unknown((Some("db"), None), &target, &mut talk).await;
        assert!(talk.is_empty(), "who does not know says nothing");
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        admin: AdminArgs,
    }

    #[test]
    fn the_address_is_given_or_in_the_file_or_in_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.toml");
        std::fs::write(&file, "version = 1\nadmin.bind = \"127.0.0.1:3\"").unwrap();
        let target = |arguments: &[&str], variable: Option<&str>| {
            let args = Line::parse_from([&["status"], arguments].concat()).admin;
            args.target_or(variable).map(|target| target.to_string())
        };
        let file = file.to_str().unwrap();
        assert_eq!(target(&["--admin=a:1"], Some("b:2")).unwrap(), "a:1");
        assert_eq!(target(&["-c", file], Some("b:2")).unwrap(), "127.0.0.1:3");
        assert_eq!(target(&[], Some("b:2")).unwrap(), "b:2");
        assert_eq!(target(&[], Some("")).unwrap(), "127.0.0.1:9797");
        assert_eq!(target(&[], None).unwrap(), "127.0.0.1:9797");
        let failure = Failure::from(target(&[], Some("here")).unwrap_err());
        assert_eq!(failure.code(), ExitCode::from(USAGE));
        assert!(failure.report().starts_with("error: TWINSPAN_ADMIN here: not an address"));
        let failure = Failure::from(target(&["-c", "/nowhere/x.toml"], None).unwrap_err());
        assert_eq!(failure.code(), ExitCode::from(BAD_CONFIG));
    }
}
