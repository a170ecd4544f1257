//! `twinspan status`: what a running proxy is doing, asked of its admin API.

mod edge;
#[cfg(test)]
pub(super) mod sample;
pub(super) mod table;
mod text;

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use clap::ValueEnum;
use hyper::Method;

use super::{
    admin::{self, AdminArgs, Failure},
    client::Target,
};
use crate::api::Status;

/// The shortest pause of `--watch`.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The arguments of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// Which proxy.
    #[command(flatten)]
    pub admin: AdminArgs,
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

/// Asks and shows.
#[must_use]
pub fn run(args: &StatusArgs) -> ExitCode {
    admin::exit(admin::wait(show(args, &mut io::stdout().lock())))
}

async fn show(args: &StatusArgs, out: &mut (impl Write + IsTerminal)) -> Result<(), Failure> {
    let target = args.admin.target()?;
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

/// A pause that leaves the proxy time for others.
fn pause(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text).map(|pause| pause.max(SHORTEST_PAUSE))
}

async fn picture(target: &Target, args: &StatusArgs, colours: bool) -> Result<String, Failure> {
    let answer = admin::ask(target, Method::GET, "/api/v1/status").await?;
    let status: Status = admin::read(target, &answer)?;
    match args.output {
        Output::Table => Ok(text::text(&status, colours)),
        Output::Json => {
            // From the answer and not from `status`, so that nothing a newer proxy says is lost.
            let value: serde_json::Value = admin::read(target, &answer)?;
            let text = if args.watch.is_some() { value.to_string() } else { format!("{value:#}") };
            Ok(text + "\n")
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
    async fn a_proxy_that_judges_nothing_yet_is_understood() {
        let mut old = serde_json::to_value(sample::status()).unwrap();
        let cut =
            |value: &mut serde_json::Value, key: &str| value.as_object_mut().unwrap().remove(key).unwrap();
        for cloud in old["clouds"].as_array_mut().unwrap() {
            cut(cloud, "judged");
        }
        for pool in old["pools"].as_array_mut().unwrap() {
            cut(pool, "restraint");
            for endpoint in pool["endpoints"].as_array_mut().unwrap() {
                cut(endpoint, "standing");
            }
        }
        let (target, _asked) = server(answer(&old.to_string())).await;
        let text = picture(&target, &args(&target, &[]), false).await.unwrap();
        assert!(!text.contains("VERDICT") && !text.contains("out:"), "{text}");
        assert!(text.contains("  yes  ") && text.contains("  -  "), "{text}");
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
}
