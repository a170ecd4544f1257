//! `twinspan status`: what a running proxy is doing, asked of its admin API.

#[cfg(test)]
mod sample;
mod table;
mod text;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use clap::ValueEnum;

use super::client::{self, AskError, Target};
use crate::api::Status;

/// Time for the answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Exit code: the admin API cannot be reached (EX_UNAVAILABLE of sysexits).
const UNREACHABLE: u8 = 69;

/// The arguments of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Where the proxy's admin API listens: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ADDR", env = "TWINSPAN_ADMIN", default_value = "127.0.0.1:9797")]
    pub admin: Target,
    /// A table for people or JSON for programs.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Ask again and again, with this pause; 1s if none is given.
    #[arg(long, value_name = "PAUSE", num_args = 0..=1, default_missing_value = "1s")]
    #[arg(value_parser = humantime::parse_duration)]
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
    let terminal = out.is_terminal();
    let colours = super::colours(out);
    loop {
        let text = picture(args, colours).await?;
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

async fn picture(args: &StatusArgs, colours: bool) -> Result<String, Failure> {
    let target = || args.admin.clone();
    let answer = client::get(&args.admin, "/api/v1/status", LIMIT).await?;
    if !answer.status.is_success() {
        let (status, complaint) = (answer.status.as_u16(), answer.complaint());
        return Err(Failure::Refused { target: target(), status, complaint });
    }
    let foreign = |source| Failure::Foreign { target: target(), source };
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
                 hint: is the proxy running? its admin API listens where `[admin] bind` says (127.0.0.1:9797 if nothing \
                 does); --admin or TWINSPAN_ADMIN takes another HOST:PORT or unix:PATH"
            ),
            failure => format!("error: {failure}"),
        }
    }

    fn code(&self) -> ExitCode {
        match self {
            Self::Ask(error) if error.is_unreachable() => ExitCode::from(UNREACHABLE),
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
        let text = picture(&args(&target, &["--output", "json"]), false).await.unwrap();
        assert!(asked.await.unwrap().starts_with("GET /api/v1/status HTTP/1.1\r\n"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), said);
        let (target, _asked) = server(answer(&said.to_string())).await;
        let watched = picture(&args(&target, &["--output=json", "--watch"]), false).await.unwrap();
        assert_eq!(watched.lines().count(), 1);
    }

    #[tokio::test]
    async fn a_table_is_the_default() {
        let body = serde_json::to_string(&sample::status()).unwrap();
        let (target, _asked) = server(answer(&body)).await;
        let text = picture(&args(&target, &[]), false).await.unwrap();
        assert!(text.starts_with("twinspan 0.1.0  + ready"), "{text}");
    }

    #[tokio::test]
    async fn nobody_there_is_69_and_anything_else_wrong_is_1() {
        let (target, _socket) = nobody();
        let failure = picture(&args(&target, &[]), false).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::from(69));
        let report = failure.report();
        assert!(
            report.contains(&target.to_string()) && report.contains("hint: is the proxy running?"),
            "{report}"
        );

        let (target, _asked) =
            server("HTTP/1.1 403 no\r\nContent-Length: 15\r\n\r\n{\"error\":\"host\"}").await;
        let failure = picture(&args(&target, &[]), false).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::FAILURE);
        let (target, _asked) = server(answer("{\"not\": \"ours\"}")).await;
        let failure = picture(&args(&target, &[]), false).await.unwrap_err();
        assert_eq!(failure.code(), ExitCode::FAILURE);
        assert!(failure.report().contains("is not a twinspan of this version"), "{}", failure.report());
    }

    #[test]
    fn the_pause_of_watch_may_be_left_out() {
        let (target, _socket) = nobody();
        assert_eq!(args(&target, &["--watch"]).watch, Some(Duration::from_secs(1)));
        assert_eq!(args(&target, &["--watch=250ms"]).watch, Some(Duration::from_millis(250)));
        assert_eq!(args(&target, &[]).watch, None);
        assert!(Line::try_parse_from(["status", "--admin=here"]).is_err());
    }
}
