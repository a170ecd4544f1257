//! What happened, for who looks for a cause: the faults, what the proxy said, and the sessions that went wrong, by time.

use std::{fmt::Write as _, io::Write as _, time::SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;

use super::figures::Run;

/// Adds the run to the file that `TWINSPAN_FAULTS_TALE` names, if it does. Of the sessions that went well at once nothing
/// is told.
pub(super) fn tell(run: &Run, said: &str) {
    let Ok(path) = std::env::var("TWINSPAN_FAULTS_TALE") else { return };
    let (now, clock) = (Instant::now(), SystemTime::now());
    let time = |at: Instant| Timestamp::try_from(clock - now.duration_since(at)).unwrap();
    let seed = run.seed;
    let mut lines = Vec::new();
    for fault in &run.faults {
        let (number, step) = (fault.number, fault.step);
        lines.push(format!("{} FAULT {number} of seed {seed}: {step}", time(fault.begun)));
        lines.push(format!("{} HEALS {number} of seed {seed}", time(fault.healing)));
        lines.push(format!("{} IS WELL {number} of seed {seed}", time(fault.healed)));
    }
    for session in &run.sessions {
        let line = run.lines.get(&session.number);
        if session.outcome.is_err() || line.is_none_or(|line| line.attempts != 1) {
            let took = session.ended - session.begun;
            let mut text = format!("{} SESSION {} of seed {seed}: ", time(session.begun), session.number);
            write!(text, "{:?} after {took:.3?}, late {:.3?}", session.outcome, session.late).unwrap();
            write!(text, ", {line:?}").unwrap();
            lines.push(text);
        }
    }
    let of_proxy = said.lines().filter(|line| !line.contains("\"to_upstream\""));
    lines.extend(of_proxy.map(|line| line.replacen("{\"timestamp\":\"", "", 1)));
    lines.sort();
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{}", lines.join("\n")).unwrap();
}
