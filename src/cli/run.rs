//! `twinspan run`: the proxy in the foreground.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    app::{App, Ended, Options},
    cli::check,
    config::{self, Config, Level, LogFormat},
    telemetry::{self, LineFormat, LogOptions, Logging, SessionLines, SessionLog, SessionWriter},
};

/// The kernel did not permit a bind: EX_NOPERM of sysexits.h.
const PERMISSION: u8 = 77;

/// Arguments of `twinspan run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The config file; it goes before `--config`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The config file
    #[arg(short, long, value_name = "FILE", env = "TWINSPAN_CONFIG")]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,twinspan::control=debug
    #[arg(long, value_name = "FILTER", env = "TWINSPAN_LOG")]
    log: Option<String>,
    /// The shape of log lines
    #[arg(long, value_name = "FORMAT", value_parser = ["auto", "text", "json"])]
    log_format: Option<String>,
}

/// Runs the proxy until it is told to stop. Exits with 78 for a bad config, 77 where a bind is not permitted, 1 if it
/// cannot start, and 128 + n when signal n cut the drain short.
#[must_use]
pub fn run(args: &RunArgs) -> ExitCode {
    let Some(path) = args.file.as_deref().or(args.config.as_deref()) else {
        return check::no_file();
    };
    let loaded = match config::load(path) {
        Ok(loaded) => loaded,
        Err(refused) => {
            check::tell(&refused.0);
            return ExitCode::from(check::BAD_CONFIG);
        }
    };
    check::tell(&loaded.warnings);
    serve(args, path, loaded.config).unwrap_or_else(|error| {
        // Without standard error there is nobody to tell.
        drop(writeln!(std::io::stderr().lock(), "twinspan: {error:#}"));
        ExitCode::FAILURE
    })
}

fn serve(args: &RunArgs, path: &Path, config: Config) -> anyhow::Result<ExitCode> {
    super::raise_descriptor_limit();
    let logging = set_up_log(args, &config)?;
    let (session_log, writer) = session_log(&config, &logging)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), "starting");
    let options = Options {
        config_path: Some(path.to_owned()),
        session_log: Some(session_log),
        signals: Some(logging.reopen.clone()),
    };
    let app = match App::start(config, options) {
        Ok(app) => app,
        Err(error) => {
            let code = if error.is_permission() { ExitCode::from(PERMISSION) } else { ExitCode::FAILURE };
            tracing::error!(%error, "cannot start");
            drop((writer, logging));
            return Ok(code);
        }
    };
    // Set once, here: nobody else knows the log.
    drop(app.view().log_dropped.set(logging.dropped()));
    let ended = app.wait();
    drop((writer, logging));
    Ok(exit_code(ended))
}

/// A drain is success however many sessions its deadline cut; an end that a second signal forced is that signal's.
fn exit_code(ended: Ended) -> ExitCode {
    let code = ended.forced_by.and_then(|signal| u8::try_from(128 + signal).ok());
    code.map_or(ExitCode::SUCCESS, ExitCode::from)
}

fn set_up_log(args: &RunArgs, config: &Config) -> anyhow::Result<Logging> {
    let level = match config.log.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let format = match (args.log_format.as_deref(), config.log.format) {
        (Some("text"), _) | (None, LogFormat::Text) => Some(LineFormat::Text),
        (Some("json"), _) | (None, LogFormat::Json) => Some(LineFormat::Json),
        _ => None,
    };
    let filter = args.log.clone().unwrap_or_else(|| level.to_owned());
    telemetry::set_up(LogOptions { filter, format, file: config.log.file.clone() })
}

fn session_log(config: &Config, logging: &Logging) -> anyhow::Result<(SessionLog, Option<SessionWriter>)> {
    let lines = match config.log.sessions {
        config::SessionLines::All => SessionLines::All,
        config::SessionLines::Errors => SessionLines::Errors,
        config::SessionLines::Off => return Ok((SessionLog::off(), None)),
    };
    let (log, writer) = SessionLog::start(lines, logging.format, logging.output()?)?;
    Ok((log, Some(writer)))
}
