//! Event lines: what `tracing` is set up to write, and where. Writing happens on a thread of its own behind a bounded
//! queue; lines that find it full are dropped and counted.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use super::LineFormat;

/// Lines that may wait to be written.
const CAPACITY: usize = 8192;

/// What to log, and where.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A filter: a level, or `tracing` directives such as `info,twinspan::control=debug`.
    pub filter: String,
    /// `None` decides by the output: text on a terminal, JSON elsewhere.
    pub format: Option<LineFormat>,
    /// `None` is standard error.
    pub file: Option<PathBuf>,
}

/// Logging that is set up; dropping it writes what is queued.
#[derive(Debug)]
pub struct Logging {
    /// The shape of lines, decided.
    pub format: LineFormat,
    file: Option<PathBuf>,
    dropped: ErrorCounter,
    _guard: WorkerGuard,
}

/// Sets up the process's log.
///
/// # Errors
/// The file cannot be opened, the filter cannot be read, or logging was set up before.
pub fn set_up(options: LogOptions) -> anyhow::Result<Logging> {
    let format = options.format.unwrap_or_else(|| {
        let on_terminal = options.file.is_none() && io::stderr().is_terminal();
        if on_terminal { LineFormat::Text } else { LineFormat::Json }
    });
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(CAPACITY)
        .thread_name("log")
        .finish(open(options.file.as_ref())?);
    let dropped = writer.error_counter();
    let filter = EnvFilter::try_new(&options.filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    let colours =
        options.file.is_none() && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match format {
        LineFormat::Text => builder.with_ansi(colours).try_init(),
        LineFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    }
    .map_err(|error| anyhow::anyhow!("set up logging: {error}"))?;
    Ok(Logging { format, file: options.file, dropped, _guard: guard })
}

impl Logging {
    /// Another handle to the same output, for session lines.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn output(&self) -> io::Result<Box<dyn Write + Send>> {
        open(self.file.as_ref())
    }

    /// A reader of how many event lines were dropped.
    #[must_use]
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

fn open(file: Option<&PathBuf>) -> io::Result<Box<dyn Write + Send>> {
    match file {
        None => Ok(Box::new(io::stderr())),
        Some(path) => Ok(Box::new(OpenOptions::new().create(true).append(true).open(path)?)),
    }
}
