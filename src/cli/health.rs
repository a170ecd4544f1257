//! `twinspan health`: is the proxy alive, or ready? For the health checks of containers that have no other program in
//! them. Exit 0 or 1, nothing else.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use super::{
    client::{self, AskError, Target},
    target::{Door, TargetError},
};

/// Time for the answer: what Docker and Kubernetes give by default is more.
const LIMIT: Duration = Duration::from_secs(2);

/// Where telemetry listens if the config does not say.
const DEFAULT: &str = "127.0.0.1:9798";

/// The arguments of `health`.
#[derive(Clone, Debug, clap::Args)]
pub struct HealthArgs {
    /// Fail unless new sessions are accepted; without it only a process that does not answer fails.
    #[arg(long)]
    pub ready: bool,
    /// Where the proxy's telemetry listens: HOST:PORT; 127.0.0.1:9798 if nothing is said.
    // A text, as a wrong one has to end with 1 and not with the 2 of a usage error.
    #[arg(long, value_name = "ADDR", conflicts_with = "config")]
    pub telemetry: Option<String>,
    /// The proxy's config file, to read that address from.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Asks, and says what is wrong on standard error.
#[must_use]
pub fn run(args: &HealthArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let healthy = match runtime {
        Ok(runtime) => runtime.block_on(healthy(args)),
        Err(error) => Err(format!("error: cannot ask: {error}")),
    };
    match healthy {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // With nobody to read it, the exit code has to do.
            drop(writeln!(std::io::stderr().lock(), "{reason}"));
            ExitCode::FAILURE
        }
    }
}

async fn healthy(args: &HealthArgs) -> Result<(), String> {
    let target = target(args).map_err(|error| format!("error: {error}"))?;
    let path = if args.ready { "/readyz" } else { "/livez" };
    let answer = client::get(&target, path, LIMIT).await.map_err(|error| report(&error))?;
    if answer.status.is_success() {
        return Ok(());
    }
    Err(format!("error: {target}{path} answered {}: {}", answer.status.as_u16(), answer.complaint()))
}

fn target(args: &HealthArgs) -> Result<Target, TargetError> {
    match (&args.telemetry, &args.config) {
        (Some(text), _) => Door::parse("--telemetry", text),
        (None, Some(file)) => Door::Telemetry.of_file(file),
        (None, None) => Door::parse("--telemetry", DEFAULT),
    }
}

/// What is wrong, and what may help.
fn report(error: &AskError) -> String {
    if !error.is_unreachable() {
        return format!("error: {error}");
    }
    format!(
        "error: {error}\n  \
         hint: is the proxy running? its telemetry listens where `[telemetry] bind` says ({DEFAULT} if nothing does); \
         --telemetry takes another HOST:PORT, -c reads it from a config file"
    )
}

#[cfg(test)]
mod tests {
    use super::{
        super::client::tests::{nobody, server},
        *,
    };

    fn args(ready: bool, target: &Target) -> HealthArgs {
        HealthArgs { ready, telemetry: Some(target.to_string()), config: None }
    }

    #[tokio::test]
    async fn a_good_answer_is_healthy() {
        for (ready, path) in [(false, "GET /livez "), (true, "GET /readyz ")] {
            let (target, asked) = server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").await;
            assert_eq!(healthy(&args(ready, &target)).await, Ok(()));
            assert!(asked.await.unwrap().starts_with(path));
        }
    }

    #[tokio::test]
    async fn any_other_outcome_is_an_error_that_may_have_a_hint() {
        let (target, _asked) =
            server("HTTP/1.1 503 no\r\nContent-Length: 20\r\n\r\nnot ready: draining\n").await;
        let reason = healthy(&args(true, &target)).await.unwrap_err();
        assert_eq!(reason, format!("error: {target}/readyz answered 503: not ready: draining"));
        let (target, _socket) = nobody();
        let reason = healthy(&args(false, &target)).await.unwrap_err();
        assert!(
            reason.starts_with(&format!("error: cannot reach {target}: "))
                && reason.contains("\n  hint: is the proxy"),
            "{reason}"
        );
        let wrong = HealthArgs { ready: false, telemetry: Some("9798".into()), config: None };
        let reason = healthy(&wrong).await.unwrap_err();
        assert_eq!(reason, "error: --telemetry 9798: not an address: give HOST:PORT or unix:PATH");
    }

    #[tokio::test]
    async fn a_config_file_has_the_address() {
        let (target, asked) = server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.toml");
        std::fs::write(&file, format!("version = 1\ntelemetry.bind = \"{target}\"")).unwrap();
        let args = HealthArgs { ready: true, telemetry: None, config: Some(file) };
        assert_eq!(healthy(&args).await, Ok(()));
        assert!(asked.await.unwrap().starts_with("GET /readyz "));
    }
}
