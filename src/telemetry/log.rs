//! Event lines: what `tracing` is set up to write, and where. Writing happens on a thread of its own behind a bounded
//! queue; lines that find it full are dropped and counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
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
    /// Reopens the file, for those who rotate it.
    pub reopen: Reopen,
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
    let reopen = Reopen::default();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(CAPACITY)
        .thread_name("log")
        .finish(open(options.file.as_deref(), &reopen)?);
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
    Ok(Logging { format, reopen, file: options.file, dropped, _guard: guard })
}

impl Logging {
    /// Another handle to the same output, for session lines.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn output(&self) -> io::Result<Box<dyn Write + Send>> {
        open(self.file.as_deref(), &self.reopen)
    }

    /// A reader of how many event lines were dropped.
    #[must_use]
    pub fn dropped(&self) -> ErrorCounter {
        self.dropped.clone()
    }
}

/// An order to open the log file anew: after logrotate has moved it away, lines go to a new one.
#[derive(Clone, Debug, Default)]
pub struct Reopen(Arc<AtomicU64>);

impl Reopen {
    /// Gives the order; every writer follows it before its next line.
    pub fn reopen(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    reopen: Reopen,
    opened: u64,
}

impl LogFile {
    fn open(path: &Path, reopen: &Reopen) -> io::Result<Self> {
        let opened = reopen.0.load(Relaxed);
        Ok(Self { path: path.to_owned(), file: append(path)?, reopen: reopen.clone(), opened })
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ordered = self.reopen.0.load(Relaxed);
        if ordered != self.opened {
            self.opened = ordered;
            // If the new file cannot be opened, lines go on into the old one.
            if let Ok(file) = append(&self.path) {
                self.file = file;
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn open(file: Option<&Path>, reopen: &Reopen) -> io::Result<Box<dyn Write + Send>> {
    match file {
        None => Ok(Box::new(io::stderr())),
        Some(path) => Ok(Box::new(LogFile::open(path, reopen)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let reopen = Reopen::default();
        let mut output = open(Some(&path), &reopen).unwrap();
        output.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        output.write_all(b"two\n").unwrap();
        reopen.reopen();
        output.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }
}
