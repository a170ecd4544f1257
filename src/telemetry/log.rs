//! Event lines: what `tracing` is set up to write, and where. Writing happens on a thread of its own behind a bounded
//! queue; lines that find it full are dropped and counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use super::{
    LineFormat,
    whole::{Torn, Whole},
};

/// What a filter may name as a level.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Lines that may wait to be written.
const CAPACITY: usize = 8192;

/// What to log, and where.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Which events are written.
    pub filter: Filter,
    /// `None` decides by the output: text on a terminal, JSON elsewhere.
    pub format: Option<LineFormat>,
    /// `None` is standard error.
    pub file: Option<PathBuf>,
    /// Whether text lines are in colour.
    pub colours: bool,
}

/// Which events are written: a level, or `tracing` directives such as `info,twinspan::control=debug`.
#[derive(Clone, Debug)]
pub struct Filter(String);

/// Not a [`Filter`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A word stands where a level belongs.
    #[error("{0:?} is not a level: error, warn, info, debug, trace, or target=level")]
    Level(String),
    /// The directives cannot be read.
    #[error("{filter:?} cannot be read: {reason}")]
    Directives {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its file cannot be opened.
    #[error("cannot open the log file {} ([log] file): {}", .path.display(), path_hint(.reason))]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said; not a source, as the text has it already.
        reason: io::Error,
    },
    /// This process has set up its log before.
    #[error("cannot set up the log: {0}")]
    Twice(String),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        // `tracing` takes a word alone for a target, so that a mistyped level would silence everything.
        let plain = !text.contains('[');
        for directive in text.split(',').map(str::trim).filter(|part| plain && !part.is_empty()) {
            let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level.trim());
            if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
                return Err(FilterError::Level(level.to_owned()));
            }
        }
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(FilterError::Directives { filter: text.to_owned(), reason: error.to_string() }),
        }
    }
}

/// Logging that is set up; dropping it writes what is queued.
#[derive(Debug)]
pub struct Logging {
    /// The shape of lines, decided.
    pub format: LineFormat,
    /// Reopens the file, for those who rotate it.
    pub reopen: Reopen,
    file: Option<PathBuf>,
    torn: Torn,
    dropped: LogDropped,
    _guard: WorkerGuard,
}

/// Sets up the process's log.
///
/// # Errors
/// The file cannot be opened, or logging was set up before.
pub fn set_up(options: LogOptions) -> Result<Logging, LogError> {
    let format = options.format.unwrap_or_else(|| {
        let on_terminal = options.file.is_none() && io::stderr().is_terminal();
        if on_terminal { LineFormat::Text } else { LineFormat::Json }
    });
    let reopen = Reopen::default();
    let torn = Torn::default();
    let failed = Arc::new(AtomicU64::new(0));
    let output = open(options.file.as_deref(), &reopen, &torn)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(CAPACITY)
        .thread_name("log")
        .finish(Counted { output, failed: Arc::clone(&failed) });
    let dropped = LogDropped { queue: writer.error_counter(), failed };
    let filter = EnvFilter::new(&options.filter.0);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    match format {
        LineFormat::Text => builder.with_ansi(options.colours).try_init(),
        LineFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
    }
    .map_err(|error| LogError::Twice(error.to_string()))?;
    Ok(Logging { format, reopen, file: options.file, torn, dropped, _guard: guard })
}

impl Logging {
    /// Another handle to the same output, for session lines.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn output(&self) -> Result<Box<dyn Write + Send>, LogError> {
        open(self.file.as_deref(), &self.reopen, &self.torn)
    }

    /// A reader of how many event lines were dropped.
    #[must_use]
    pub fn dropped(&self) -> LogDropped {
        self.dropped.clone()
    }
}

/// Counts event lines that were not written: those that found the queue full, and those that the output refused.
#[derive(Clone, Debug)]
pub struct LogDropped {
    queue: ErrorCounter,
    failed: Arc<AtomicU64>,
}

impl LogDropped {
    /// Lines not written since the start.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.queue.dropped_lines() as u64 + self.failed.load(Relaxed)
    }
}

/// An output that counts what it refuses. The queue in front of it hands over a line at a time, and forgets errors.
struct Counted<W> {
    output: W,
    failed: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes);
        match &written {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failed.fetch_add(1, Relaxed);
            }
            _ => {}
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
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
    /// The order that was followed last.
    opened: u64,
    /// The order that could not be followed, and was told of.
    failed: Option<u64>,
}

impl LogFile {
    fn open(path: &Path, reopen: &Reopen) -> Result<Self, LogError> {
        let opened = reopen.0.load(Relaxed);
        Ok(Self { path: path.to_owned(), file: append(path)?, reopen: reopen.clone(), opened, failed: None })
    }

    /// Opens the file anew. If that cannot be done, lines go on into the old one, and the next line tries again.
    fn follow(&mut self, order: u64) {
        match append(&self.path) {
            Ok(file) => {
                self.file = file;
                self.opened = order;
                if self.failed.take().is_some() {
                    tracing::info!(file = %self.path.display(), "the log file is open again");
                }
            }
            // Said once an order: saying it is a line, too.
            Err(error) if self.failed != Some(order) => {
                self.failed = Some(order);
                tracing::error!("{error}; lines go on into the old file");
            }
            Err(_) => {}
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ordered = self.reopen.0.load(Relaxed);
        if ordered != self.opened {
            self.follow(ordered);
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> Result<File, LogError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|reason| LogError::File { path: path.to_owned(), reason })
}

/// What the kernel said of a file or socket that was to be made, and what may help.
#[must_use]
pub fn path_hint(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{text}; make its directory"),
        io::ErrorKind::PermissionDenied => {
            format!("{text}; let the user that twinspan runs as write there")
        }
        _ => text.to_owned(),
    }
}

fn open(file: Option<&Path>, reopen: &Reopen, torn: &Torn) -> Result<Box<dyn Write + Send>, LogError> {
    match file {
        None => Ok(Box::new(Whole::new(io::stderr(), torn.clone()))),
        Some(path) => Ok(Box::new(Whole::new(LogFile::open(path, reopen)?, torn.clone()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_the_output_refuses_is_counted() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let failed = Arc::new(AtomicU64::new(0));
        let output = Counted { output: full, failed: Arc::clone(&failed) };
        let (mut writer, guard) = NonBlockingBuilder::default().lossy(true).finish(output);
        let dropped = LogDropped { queue: writer.error_counter(), failed };
        for _ in 0..3 {
            writer.write_all(b"a line\n").unwrap();
        }
        // Writes what is queued.
        drop(guard);
        assert_eq!(dropped.lines(), 3);
    }

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let reopen = Reopen::default();
        let mut output = open(Some(&path), &reopen, &Torn::default()).unwrap();
        output.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        output.write_all(b"two\n").unwrap();
        reopen.reopen();
        output.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_with_what_to_do() {
        let error = open(Some(Path::new("/nowhere/y.log")), &Reopen::default(), &Torn::default());
        let error = error.err().unwrap();
        assert_eq!(
            error.to_string(),
            "cannot open the log file /nowhere/y.log ([log] file): No such file or directory; make its directory"
        );
    }

    #[test]
    fn a_reopening_that_fails_is_told_once_and_tried_again_at_each_line() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, moved) = (folder.path().join("in"), folder.path().join("moved"));
        std::fs::create_dir(&inner).unwrap();
        let path = inner.join("log");
        let events = folder.path().join("events");
        let subscriber = tracing_subscriber::fmt().with_writer(File::create(&events).unwrap()).finish();
        let reopen = Reopen::default();
        let mut output = open(Some(&path), &reopen, &Torn::default()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            std::fs::rename(&inner, &moved).unwrap();
            reopen.reopen();
            output.write_all(b"one\n").unwrap();
            output.write_all(b"two\n").unwrap();
            std::fs::create_dir(&inner).unwrap();
            output.write_all(b"three\n").unwrap();
        });
        assert_eq!(std::fs::read_to_string(moved.join("log")).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        let events = std::fs::read_to_string(&events).unwrap();
        assert_eq!(events.matches("cannot open the log file").count(), 1, "{events}");
        assert_eq!(events.matches("is open again").count(), 1, "{events}");
    }

    #[test]
    fn a_word_that_is_not_a_level_is_refused() {
        let good = ["info", "WARN", "off", "info,twinspan::control=debug", "", "twinspan[session]=trace"];
        for good in good {
            assert!(good.parse::<Filter>().is_ok(), "{good}");
        }
        for (bad, word) in [("warning", "warning"), ("verbose", "verbose"), ("info,hyper=loud", "loud")] {
            let error = bad.parse::<Filter>().unwrap_err();
            let expected =
                format!("{word:?} is not a level: error, warn, info, debug, trace, or target=level");
            assert_eq!(error.to_string(), expected);
        }
    }
}
