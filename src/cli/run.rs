//! `twinspan run`: the proxy in the foreground.

use std::{
    io::{self, Write},
    panic,
    path::Path,
    process::ExitCode,
    thread,
};

use crate::{
    app::{App, Ended, Options},
    cli::{check, file::ConfigFile},
    config::{self, Config, Level, LogFormat},
    telemetry::{
        self, Filter, FilterError, LineFormat, LogOptions, Logging, SessionLines, SessionLog, SessionWriter,
    },
};

/// The kernel did not permit a bind: EX_NOPERM of sysexits.h.
const PERMISSION: u8 = 77;

/// The environment variable of `--log`.
const FILTER: &str = "TWINSPAN_LOG";

/// Arguments of `twinspan run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,twinspan::control=debug
    #[arg(long, value_name = "FILTER", env = FILTER)]
    log: Option<String>,
    /// The shape of log lines
    #[arg(long, value_name = "FORMAT", value_parser = ["auto", "text", "json"])]
    log_format: Option<String>,
}

/// Runs the proxy until it is told to stop. Exits with 78 for a bad config or for TLS files that cannot be used, 77 where a
/// bind is not permitted or another capability is missing, 1 if it cannot start, and 128 + n when signal n cut the drain
/// short.
#[must_use]
pub fn run(args: &RunArgs) -> ExitCode {
    let Some(path) = args.file.path() else {
        return check::no_file();
    };
    let filter = match args.filter() {
        Ok(filter) => filter,
        Err(error) => {
            say(&format!("error: {}: {error}", args.filter_from()));
            return ExitCode::from(check::USAGE);
        }
    };
    let loaded = match config::load(path) {
        Ok(loaded) => loaded,
        Err(refused) => {
            check::tell(&refused.0);
            return ExitCode::from(check::BAD_CONFIG);
        }
    };
    check::tell(&loaded.warnings);
    serve(args, filter, path, loaded.config).unwrap_or_else(|error| {
        say(&format!("twinspan: cannot start: {error:#}"));
        ExitCode::FAILURE
    })
}

fn serve(args: &RunArgs, filter: Option<Filter>, path: &Path, config: Config) -> anyhow::Result<ExitCode> {
    super::raise_descriptor_limit();
    let to_file = config.log.file.is_some();
    let logging = set_up_log(args, filter, &config)?;
    panic::set_hook(Box::new(report_panic));
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
            let code = match &error {
                error if error.is_permission() => ExitCode::from(PERMISSION),
                error if error.is_config() => ExitCode::from(check::BAD_CONFIG),
                _ => ExitCode::FAILURE,
            };
            let advice =
                if error.is_config() { "; `twinspan check` shows the place in the config" } else { "" };
            tracing::error!(error = %format_args!("{error}{advice}"), "cannot start");
            if to_file {
                // Whoever has just typed the command does not look into a file.
                say(&format!("twinspan: cannot start: {error}{advice}"));
            }
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

impl RunArgs {
    /// Where the filter was said.
    fn filter_from(&self) -> &'static str {
        let variable = std::env::var(FILTER).ok();
        // The flag goes before the variable; with both the same, either is true.
        if variable.is_some() && variable == self.log { FILTER } else { "--log" }
    }

    /// What `--log` says. A variable that a service file sets to nothing says nothing.
    fn filter(&self) -> Result<Option<Filter>, FilterError> {
        self.log.as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose()
    }
}

/// Without standard error there is nobody to tell.
fn say(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

/// A panic is an event like others: standard error, which may stall, is not written to by the thread that panicked.
fn report_panic(panic: &panic::PanicHookInfo<'_>) {
    let thread = thread::current();
    let place = panic.location().map_or_else(String::new, ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("no message");
    tracing::error!(thread = thread.name().unwrap_or("unnamed"), place, "panic: {message}");
}

fn set_up_log(args: &RunArgs, filter: Option<Filter>, config: &Config) -> anyhow::Result<Logging> {
    let format = match (args.log_format.as_deref(), config.log.format) {
        (Some("text"), _) | (None, LogFormat::Text) => Some(LineFormat::Text),
        (Some("json"), _) | (None, LogFormat::Json) => Some(LineFormat::Json),
        _ => None,
    };
    let filter = match filter {
        Some(filter) => filter,
        None => level(config.log.level).parse()?,
    };
    let file = config.log.file.clone();
    let colours = file.is_none() && super::colours(&io::stderr());
    Ok(telemetry::set_up(LogOptions { filter, format, file, colours })?)
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

const fn level(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_is_an_event_with_its_thread_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let file = std::fs::File::create(&path).unwrap();
        let before = panic::take_hook();
        panic::set_hook(Box::new(report_panic));
        let worker = thread::Builder::new().name("worker-7".to_owned()).spawn(move || {
            let subscriber = tracing_subscriber::fmt().json().with_writer(Arc::new(file)).finish();
            tracing::subscriber::with_default(subscriber, || panic!("out of {}", "ideas"));
        });
        assert!(worker.unwrap().join().is_err());
        panic::set_hook(before);
        let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let fields = &line["fields"];
        assert_eq!((&line["level"], &fields["thread"]), (&"ERROR".into(), &"worker-7".into()), "{line}");
        assert_eq!(fields["message"], "panic: out of ideas");
        assert!(fields["place"].as_str().unwrap().starts_with("src/cli/run.rs:"), "{line}");
    }
}
