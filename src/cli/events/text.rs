//! An event as one line: when, under which generation, what kind, about whom, and what happened.

use super::super::status::table::{Paint, paint, plain};
use crate::api::Event;

/// The line, without its end.
pub(super) fn line(event: &Event, colours: bool) -> String {
    let (sign, colour) = match event.level.as_str() {
        "error" => ('x', Paint::Bad),
        "warn" => ('~', Paint::Warning),
        _ => (' ', Paint::Plain),
    };
    let kind = paint(&format!("{sign} {:<14}", plain(&event.kind)), colour, colours);
    let text = plain(&event.text);
    let evidence = plain(&event.evidence);
    let why = if evidence.is_empty() || text.contains(&evidence) {
        String::new()
    } else {
        format!(" ({evidence})")
    };
    format!(
        "{}  gen {:<5} {kind} {:<16}  {text}{why}",
        plain(&event.time),
        event.generation,
        plain(&subject(event))
    )
}

/// Pool and cloud, and the endpoint if the sentence does not name it.
fn subject(event: &Event) -> String {
    let endpoint = event.endpoint.as_deref().filter(|endpoint| !event.text.contains(endpoint));
    let places = match (&event.pool, &event.cloud) {
        (Some(pool), Some(cloud)) => format!("{pool}/{cloud}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "-".to_owned(),
    };
    endpoint.map_or_else(|| places.clone(), |endpoint| format!("{places} {endpoint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            id: 7,
            time: "2026-11-22T10:00:00.125Z".into(),
            generation: 12,
            kind: "verdict".into(),
            level: "warn".into(),
            pool: Some("db".into()),
            endpoint: Some("10.0.1.10:5432".into()),
            cloud: Some("aws".into()),
            before: "up".into(),
            after: "down".into(),
            evidence: "3 probes failed: connect: timed out".into(),
            text: "endpoint 10.0.1.10:5432 (pool db) down: 3 probes failed: connect: timed out".into(),
        }
    }

    #[test]
    fn a_line_says_when_what_whom_and_why_once() {
        let wanted = "2026-11-22T10:00:00.125Z  gen 12    ~ verdict        db/aws            \
                      endpoint 10.0.1.10:5432 (pool db) down: 3 probes failed: connect: timed out";
        assert_eq!(line(&event(), false), wanted);
        let short = Event { text: "it is gone".into(), ..event() };
        let short = line(&short, false);
        assert!(short.contains("db/aws 10.0.1.10:5432  it is gone (3 probes failed: connect"), "{short}");
        let nobody =
            Event { kind: "reload".into(), level: "info".into(), text: "x".into(), ..Event::default() };
        assert!(line(&nobody, true).contains("  reload         -  "), "{}", line(&nobody, true));
    }

    #[test]
    fn what_a_proxy_sends_cannot_move_the_cursor() {
        let hostile = Event { text: "\u{1b}[2J\n".into(), pool: Some("\r".into()), ..event() };
        assert!(line(&hostile, false).chars().all(|char| !char.is_control()));
    }
}
