//! Where a run is shown: a panel in a terminal, lines elsewhere, nothing when only the result is wanted.

use std::{
    io::{self, IsTerminal, Stdout, Write},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    crossterm::{
        event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
        terminal,
    },
    text::Line,
    widgets::{Paragraph, Widget},
};
use tokio::time::Instant;

use super::picture::{HEIGHT, Picture};
use crate::cli::colours;

/// Time between two status lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// A way to show a run.
pub(super) enum Screen {
    /// Nothing is shown.
    Nothing,
    /// Event lines and, now and then, a status line.
    Lines {
        /// When the next status line is due.
        due: Instant,
    },
    /// Event lines above a panel.
    Panel(Panel),
}

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// `q`.
    Quit,
    /// Ctrl-C: in raw mode it is a key, not a signal.
    Interrupt,
    /// `k`.
    Kill,
    /// `r`.
    Revive,
}

/// The terminal, in raw mode until this is dropped.
pub(super) struct Panel {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    colours: bool,
}

impl Screen {
    /// A panel if standard output is a terminal that can show one.
    pub(super) fn open() -> Self {
        if io::stdout().is_terminal()
            && let Ok(panel) = Panel::open()
        {
            return Self::Panel(panel);
        }
        Self::Lines { due: Instant::now() + LINE_EVERY }
    }

    /// Shows a line: an event with its time, or plain text.
    pub(super) fn line(&mut self, line: &str) {
        let outcome = match self {
            Self::Nothing => Ok(()),
            Self::Lines { .. } => write_line(line),
            Self::Panel(panel) => panel.above(line),
        };
        self.shown(&outcome);
    }

    /// Shows how things are.
    pub(super) fn draw(&mut self, picture: &Picture) {
        let outcome = match self {
            Self::Nothing => Ok(()),
            Self::Lines { due } if *due > Instant::now() => Ok(()),
            Self::Lines { due } => {
                *due = Instant::now() + LINE_EVERY;
                write_line(&format!("{}  {}", clock(SystemTime::now()), picture.line()))
            }
            Self::Panel(panel) => panel.draw(picture),
        };
        self.shown(&outcome);
    }

    /// The next key that was pressed.
    pub(super) fn key(&self) -> Option<Key> {
        let Self::Panel(_) = self else { return None };
        while event::poll(Duration::ZERO).unwrap_or(false) {
            let Ok(Event::Key(key)) = event::read() else { continue };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            match key.code {
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    return Some(Key::Interrupt);
                }
                KeyCode::Char('q') => return Some(Key::Quit),
                KeyCode::Char('k') => return Some(Key::Kill),
                KeyCode::Char('r') => return Some(Key::Revive),
                _ => {}
            }
        }
        None
    }

    /// Nobody looks any more, as when the output goes to `head`: the run goes on for its exit code.
    fn shown(&mut self, outcome: &io::Result<()>) {
        if outcome.is_err() {
            *self = Self::Nothing;
        }
    }
}

impl Panel {
    fn open() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let options = TerminalOptions { viewport: Viewport::Inline(HEIGHT) };
        // A terminal that does not say where its cursor is cannot show a panel.
        match Terminal::with_options(CrosstermBackend::new(io::stdout()), options) {
            Ok(terminal) => Ok(Self { terminal, colours: colours(&io::stdout()) }),
            Err(error) => {
                terminal::disable_raw_mode()?;
                Err(error)
            }
        }
    }

    fn above(&mut self, line: &str) -> io::Result<()> {
        let width = usize::from(self.terminal.size()?.width).max(1);
        let characters: Vec<char> = line.chars().collect();
        let lines: Vec<_> =
            characters.chunks(width).map(|part| Line::from(part.iter().collect::<String>())).collect();
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        self.terminal.insert_before(height, |buffer| Paragraph::new(lines).render(buffer.area, buffer))
    }

    fn draw(&mut self, picture: &Picture) -> io::Result<()> {
        let colours = self.colours;
        self.terminal.draw(|frame| picture.draw(frame.area(), frame.buffer_mut(), colours)).map(drop)
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        // The last picture stays, and what is written next begins below it. Nothing can be done about a terminal that is
        // gone.
        let area = self.terminal.get_frame().area();
        drop(self.terminal.set_cursor_position((0, area.bottom().saturating_sub(1))));
        drop(self.terminal.show_cursor());
        drop(terminal::disable_raw_mode());
        drop(write_line(""));
    }
}

/// The time of day in UTC, as event lines begin with.
pub(super) fn clock(time: SystemTime) -> String {
    Timestamp::try_from(time)
        .map_or_else(|_| "--:--:--.---".to_owned(), |time| time.strftime("%H:%M:%S%.3f").to_string())
}

/// Writes a line to standard output.
pub(super) fn write_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
