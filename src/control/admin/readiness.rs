//! Liveness and readiness, in the words that Kubernetes uses. Alive: the control plane answers at all. Ready: sessions
//! are accepted. Endpoints that are down do not make the proxy unready: a restart or another replica would not bring
//! them back.

use std::fmt::Write as _;

use crate::{control::View, state::Phase};

/// What `/readyz` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Readiness {
    /// True when sessions are accepted.
    pub(super) ready: bool,
    /// The text.
    pub(super) text: String,
}

/// Is the process ready? `verbose` adds a line for each thing looked at.
pub(super) fn readiness(view: &View, verbose: bool) -> Readiness {
    let phase = view.shared.sessions.phase();
    let ready = phase == Phase::Ready;
    let mut text = String::new();
    if verbose {
        details(&mut text, view, phase);
    }
    let answer = match phase {
        Phase::Starting => {
            "not ready: starting: addresses are bound and resolved, first probes are under way"
        }
        Phase::Ready => "ready",
        Phase::Draining => "not ready: draining: no new sessions are accepted",
        Phase::Stopping => "not ready: stopping: what is left is reset",
    };
    text.push_str(answer);
    text.push('\n');
    Readiness { ready, text }
}

fn details(text: &mut String, view: &View, phase: Phase) {
    let overview = view.overview.load();
    let mark = if phase == Phase::Ready { '+' } else { '-' };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "[{mark}] phase: {}", phase.as_str());
    let _ = writeln!(text, "[i] generation: {}", overview.generation);
    let _ = writeln!(text, "[i] listeners: {}", overview.listeners.len());
    for pool in &overview.pools {
        let state = if pool.all_down.is_some() { "every endpoint is down" } else { "has endpoints" };
        let _ = writeln!(text, "[i] pool {}: {state}", pool.name);
    }
    if let Some(reload) = view.last_reload().as_ref() {
        // Not why it was refused: that quotes the config, and the network may read this.
        let outcome = if reload.error.is_none() { "applied" } else { "refused" };
        let _ = writeln!(text, "[i] last reload: {outcome}");
    }
}
