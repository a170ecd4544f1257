//! For tests of the control plane that touch what belongs to the whole process.

use std::{
    env, io,
    process::Command,
    sync::{Arc, Mutex},
};

/// Set in a child process that runs one test.
const ALONE: &str = "TWINSPAN_TEST_ALONE";

/// True in a process that runs no other test. Otherwise runs the test of this path in a process of its own, insists
/// that it passes, and returns false.
pub(super) fn alone(test: &str) -> bool {
    if env::var(ALONE).is_ok_and(|named| named == test) {
        return true;
    }
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, test)
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}\n{complained}");
    false
}

/// What is logged by this thread while the guard lives. Only for a test that is alone: tracing remembers across
/// threads that nobody wants a line.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Begins to listen.
    pub(super) fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let lines = self.clone();
        let log =
            tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || lines.clone());
        tracing::subscriber::set_default(log.finish())
    }

    /// The lines so far that contain these words.
    pub(super) fn with(&self, words: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(words)).map(String::from).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
