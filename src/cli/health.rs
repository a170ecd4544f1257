//! `twinspan health`: is the proxy alive, or ready? For the health checks of containers that have no other program in
//! them. Exit 0 or 1, nothing else.

use std::{io::Write as _, process::ExitCode, time::Duration};

use super::client::{self, Target};

/// Time for the answer: what Docker and Kubernetes give by default is more.
const LIMIT: Duration = Duration::from_secs(2);

/// The arguments of `health`.
#[derive(Clone, Debug, clap::Args)]
pub struct HealthArgs {
    /// Fail unless new sessions are accepted; without it only a process that does not answer fails.
    #[arg(long)]
    pub ready: bool,
    /// Where the proxy's telemetry listens: HOST:PORT.
    // A text, as a wrong one has to end with 1 and not with the 2 of a usage error.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9798")]
    pub telemetry: String,
}

/// Asks, and says what is wrong on standard error.
#[must_use]
pub fn run(args: &HealthArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let healthy = match runtime {
        Ok(runtime) => runtime.block_on(healthy(args)),
        Err(error) => Err(format!("cannot ask: {error}")),
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
    let target: Target =
        args.telemetry.parse().map_err(|error| format!("--telemetry {}: {error}", args.telemetry))?;
    let path = if args.ready { "/readyz" } else { "/livez" };
    let answer = client::get(&target, path, LIMIT).await.map_err(|error| error.to_string())?;
    if answer.status.is_success() {
        return Ok(());
    }
    Err(format!("{target}{path} answered {}: {}", answer.status.as_u16(), answer.complaint()))
}

#[cfg(test)]
mod tests {
    use super::{
        super::client::tests::{nobody, server},
        *,
    };

    fn args(ready: bool, target: &Target) -> HealthArgs {
        HealthArgs { ready, telemetry: target.to_string() }
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
    async fn any_other_outcome_is_one_line() {
        let (target, _asked) =
            server("HTTP/1.1 503 no\r\nContent-Length: 20\r\n\r\nnot ready: draining\n").await;
        let reason = healthy(&args(true, &target)).await.unwrap_err();
        assert_eq!(reason, format!("{target}/readyz answered 503: not ready: draining"));
        let (target, _socket) = nobody();
        let reason = healthy(&args(false, &target)).await.unwrap_err();
        assert!(
            reason.starts_with(&format!("cannot reach {target}: ")) && !reason.contains('\n'),
            "{reason}"
        );
        let wrong = HealthArgs { ready: false, telemetry: "9798".into() };
        let reason = healthy(&wrong).await.unwrap_err();
        assert_eq!(reason, "--telemetry 9798: not an address: give HOST:PORT or unix:PATH");
    }
}
