//! `twinspan status`: what a running proxy is doing, asked of its admin API.

#[cfg(test)]
mod sample;
mod table;
mod text;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::ValueEnum;

use super::{
    check::{BAD_CONFIG, USAGE},
    client::{self, AskError, Target},
    target::{Door, TargetError},
};
use crate::api::Status;

/// Where the admin API listens if the config does not say.
const DEFAULT: &str = "127.0.0.1:9797";

/// The shortest pause of `--watch`.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// Time for the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Exit code: the admin API cannot be reached (EX_UNAVAILABLE of sysexits).
const UNREACHABLE: u8 = 69;

/// The arguments of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Where the proxy's admin API listens: HOST:PORT or unix:PATH. If nothing is said: TWINSPAN_ADMIN, then 127.0.0.1:9797.
    #[arg(long, value_name = "ADDR", conflicts_with = "config")]
    pub admin: Option<Target>,
    /// The proxy's config file, to read that address from.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A table for people or JSON for programs.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Ask again and again, with this pause; 1s if none is given, 100ms at least.
    #[arg(long, value_name = "PAUSE", num_args = 0..=1, default_missing_value = "1s")]
    #[arg(value_parser = pause)]
    pub watch: Option<Duration>,
}

/// The shape of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// What the admin API said; with `--watch` one line each time.
    Json,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum Failure {
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
}

/// Asks and shows.
#[must_use]
pub fn run(args: &StatusArgs) -> ExitCode {
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(show(args, &mut io::stdout().lock())),
        Err(error) => Err(Failure::Runtime(error)),
    };
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

async fn show(args: &StatusArgs, out: &mut (impl Write + IsTerminal)) -> Result<(), Failure> {
    // Read here and not by the parser, for which an empty variable would be a wrong address.
    let variable = std::env::var("TWINSPAN_ADMIN").ok();
    let target = target(args, variable.as_deref())?;
    let terminal = out.is_terminal();
    let colours = super::colours(out);
    loop {
        let text = picture(&target, args, colours).await?;
        if args.watch.is_some() && terminal && args.output == Output::Table {
            // Home, and clear what is below: without the flicker of clearing first.
            out.write_all(b"\x1b[H\x1b[J").map_err(Failure::Output)?;
        }
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)?;
        match args.watch {
            None => return Ok(()),
            Some(pause) => tokio::time::sleep(pause).await,
        }
    }
}

fn target(args: &StatusArgs, variable: Option<&str>) -> Result<Target, TargetError> {
    let variable = variable.filter(|text| !text.is_empty());
    match (&args.admin, &args.config, variable) {
        (Some(target), ..) => Ok(target.clone()),
        (None, Some(file), _) => Door::Admin.of_file(file),
        (None, None, Some(text)) => Door::parse("TWINSPAN_ADMIN", text),
        (None, None, None) => Door::parse("--admin", DEFAULT),
    }
}

/// A pause that leaves the proxy time for others.
fn pause(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text).map(|pause| pause.max(SHORTEST_PAUSE))
}

async fn picture(target: &Target, args: &StatusArgs, colours: bool) -> Result<String, Failure> {
    let answer = client::get(target, "/api/v1/status", LIMIT).await?;
    if !answer.status.is_success() {
        let (status, complaint) = (answer.status.as_u16(), answer.complaint());
        return Err(Failure::Refused { target: target.clone(), status, complaint });
    }
    let foreign = |source| Failure::Foreign { target: target.clone(), source };
    let status: Status = serde_json::from_slice(&answer.body).map_err(foreign)?;
    match args.output {
        Output::Table => Ok(text::text(&status, colours)),
        Output::Json => {
            // From the answer and not from `status`, so that nothing a newer proxy says is lost.
            let value: serde_json::Value = serde_json::from_slice(&answer.body).map_err(foreign)?;
            let text = if args.watch.is_some() { value.to_string() } else { format!("{value:#}") };
            Ok(text + "\n")
        }
    }
}

impl Failure {
    /// What is wrong, and what may help.
    fn report(&self) -> String {
        match self {
            Self::Ask(error) if error.is_unreachable() => format!(
                "error: {error}\n  \
                 hint: is the proxy running? its admin API listens where `[admin] bind` says ({DEFAULT} if nothing \
                 does); --admin or TWINSPAN_ADMIN takes another HOST:PORT or unix:PATH, -c reads it from a config file"
            ),
            failure => format!("error: {failure}"),
        }
    }

    fn code(&self) -> ExitCode {
        match self {
            Self::Ask(error) if error.is_unreachable() => ExitCode::from(UNREACHABLE),
            Self::Target(TargetError::Config(_)) => ExitCode::from(BAD_CONFIG),
            Self::Target(TargetError::Address { .. }) => ExitCode::from(USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::client::tests::{nobody, server},
        *,
    };

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        status: StatusArgs,
    }

    fn args(target: &Target, more: &[&str]) -> StatusArgs {
        let admin = format!("--admin={target}");
        Line::parse_from([&["status", &admin], more].concat()).status
    }

    fn answer(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn json_is_what_the_proxy_said() {
        let mut said = serde_json::to_value(sample::status()).unwrap();
        said["from_the_future"] = true.into();
        let (target, asked) = server(answer(&said.to_string())).await;
        let text = picture(&target, &args(&target, &["--output", "json"]), false).await.unwrap();
        assert!(asked.await.unwrap().starts_with("GET /api/v1/status HTTP/1.1\r\n"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), said);
        let (target, _asked) = server(answer(&said.to_string())).await;
        let watched = picture(&target, &args(&target, &["--output=json", "--watch"]), false).await.unwrap();
        assert_eq!(watched.lines().count(), 1);
    }

    #[tokio::test]
    async fn a_table_is_the_default() {
        let body = serde_json::to_string(&sample::status()).unwrap();
        let (target, _asked) = server(answer(&body)).await;
        let text = picture(&target, &args(&target, &[]), false).await.unwrap();
        assert!(text.starts_with("twinspan 0.1.0  + ready"), "{text}");
    }

    #[tokio::test]
    async fn nobody_there_is_69_and_anything_else_wrong_is_1() {
        let (target, _socket) = nobody();
        let failure = picture(&target, &args(&target, &[]), false).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::from(69));
        let report = failure.report();
        assert!(
            report.contains(&target.to_string()) && report.contains("hint: is the proxy running?"),
            "{report}"
        );

        let (target, _asked) =
            server("HTTP/1.1 403 no\r\nContent-Length: 15\r\n\r\n{\"error\":\"host\"}").await;
        let failure = picture(&target, &args(&target, &[]), false).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::FAILURE);
        let (target, _asked) = server(answer("{\"not\": \"ours\"}")).await;
        let failure = picture(&target, &args(&target, &[]), false).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::FAILURE);
        assert!(failure.report().contains("is not a twinspan of this version"), "{}", failure.report());
    }

    #[test]
    fn the_pause_of_watch_may_be_left_out() {
        let (target, _socket) = nobody();
        assert_eq!(args(&target, &["--watch"]).watch, Some(Duration::from_secs(1)));
        assert_eq!(args(&target, &["--watch=250ms"]).watch, Some(Duration::from_millis(250)));
        assert_eq!(args(&target, &["--watch=0s"]).watch, Some(Duration::from_millis(100)));
        assert_eq!(args(&target, &[]).watch, None);
        assert!(Line::try_parse_from(["status", "--admin=here"]).is_err());
    }

    #[test]
    fn the_address_is_given_or_in_the_file_or_in_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.toml");
        std::fs::write(&file, "version = 1\nadmin.bind = \"127.0.0.1:3\"").unwrap();
        let target = |arguments: &[&str], variable: Option<&str>| {
            let args = Line::parse_from([&["status"], arguments].concat()).status;
            target(&args, variable).map(|target| target.to_string())
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
