//! `twinspan events`: what happened to a running proxy, asked of its admin API, and what happens from here on.

mod frames;
mod text;

use std::{
    fmt::Write as _,
    future::pending,
    io::{self, Write},
    os::fd::AsFd,
    process::ExitCode,
    time::Duration,
};

use hyper::{
    Method,
    header::{ACCEPT, HeaderName},
};
use tokio::{io::Interest, net::unix::pipe, time::sleep};

use self::frames::{Frame, Frames};
use super::{
    admin::{self, AdminArgs, Failure},
    client::{self, AskError, Target},
};
use crate::api::Event;

/// Time for an answer to come, or to begin.
const LIMIT: Duration = Duration::from_secs(5);

/// A stream that says nothing for this long is dead: a living one has a heartbeat every 15 s.
const SILENCE: Duration = Duration::from_secs(45);

/// Pauses between attempts to find the proxy again, the shortest and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The arguments of `events`.
#[derive(Clone, Debug, clap::Args)]
pub struct EventsArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Go on with each new event, over restarts of the proxy too; Ctrl-C ends it
    #[arg(short, long)]
    pub follow: bool,
    /// This many events at the most, the newest; 100 if neither this nor --since is given
    #[arg(long, value_name = "N")]
    pub last: Option<usize>,
    /// Events of this time only: 10m, 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// Events of this kind only, such as verdict or failover; may be given again
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<String>,
    /// Events about this pool only
    #[arg(long)]
    pub pool: Option<String>,
    /// Events about this cloud and its endpoints only
    #[arg(long)]
    pub cloud: Option<String>,
    /// Events that matter this much at least
    #[arg(long, default_value = "info", value_parser = ["debug", "info", "warn", "error"])]
    pub level: String,
    /// One JSON object a line, as the admin API has it
    #[arg(long)]
    pub json: bool,
}

/// Asks and shows.
#[must_use]
pub fn run(args: &EventsArgs) -> ExitCode {
    admin::exit(admin::wait(async {
        let mut out = io::stdout().lock();
        let colours = super::colours(&out);
        let mut page = Page { out: &mut out, json: args.json, colours };
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c(), if args.follow => Ok(()),
            outcome = show(args, &mut page) => outcome,
            () = unread(), if args.follow => Ok(()),
        }
    }))
}

/// Waits until nobody can read standard output any more, where it is a pipe: `events -f | head -1` is to end with its
/// reader, and not at the next event.
async fn unread() {
    // Nothing is written over this one, so that the pipe goes on to block.
    match io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked) {
        Ok(out) if out.ready(Interest::ERROR).await.is_ok() => {}
        // A file has no end of its own.
        _ => pending().await,
    }
}

async fn show(args: &EventsArgs, page: &mut Page<'_>) -> Result<(), Failure> {
    let target = args.admin.target()?;
    if args.follow { follow(&target, args, page).await } else { list(&target, args, page).await }
}

async fn list(target: &Target, args: &EventsArgs, page: &mut Page<'_>) -> Result<(), Failure> {
    let answer = admin::ask(target, Method::GET, &path(args)).await?;
    let events: Vec<serde_json::Value> = admin::read(target, &answer)?;
    if events.is_empty() {
        admin::warn_of_unknown((args.pool.as_deref(), args.cloud.as_deref()), target, &mut io::stderr())
            .await;
    }
    for event in events {
        page.event(event).map_err(|error| error.failure(target))?;
    }
    page.out.flush().map_err(Failure::Output)
}

/// Where a follower is.
#[derive(Debug, Default)]
struct Place {
    /// The last event that was shown, or passed over.
    last: Option<String>,
    /// The proxy has answered once.
    known: bool,
    /// It was said that it is away.
    said: bool,
    /// Attempts to find it since it went.
    attempts: u32,
}

async fn follow(target: &Target, args: &EventsArgs, page: &mut Page<'_>) -> Result<(), Failure> {
    admin::warn_of_unknown((args.pool.as_deref(), args.cloud.as_deref()), target, &mut io::stderr()).await;
    let mut place = Place::default();
    loop {
        let why = match stream(target, args, &mut place, page).await {
            Ok(()) => "it has stopped".to_owned(),
            Err(failure @ (Failure::Ask(_) | Failure::Refused { status: 503, .. })) if place.known => {
                failure.to_string()
            }
            Err(failure) => return Err(failure),
        };
        if !std::mem::replace(&mut place.said, true) {
            // With nobody to read it, there is nobody to tell.
            drop(writeln!(io::stderr().lock(), "{target} is away, trying again: {why}"));
        }
        sleep(pause(place.attempts, rand::random())).await;
        place.attempts = place.attempts.saturating_add(1);
    }
}

/// The pause before another attempt: longer each time, within bounds, and not the same for everyone. `dice`: 0 to 1.
fn pause(attempts: u32, dice: f64) -> Duration {
    let (shortest, longest) = PAUSES;
    shortest.saturating_mul(1 << attempts.min(10)).min(longest).mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0)
}

/// Shows a stream to its end.
async fn stream(
    target: &Target,
    args: &EventsArgs,
    place: &mut Place,
    page: &mut Page<'_>,
) -> Result<(), Failure> {
    let mut fields = vec![(ACCEPT, "text/event-stream".to_owned())];
    if let Some(last) = &place.last {
        fields.push((HeaderName::from_static("last-event-id"), last.clone()));
    }
    let path = if place.last.is_some() { resumed(args) } else { path(args) };
    let mut stream = match client::follow(target, &path, &fields, LIMIT).await? {
        Ok(stream) => stream,
        Err(answer) => return Err(Failure::refused(target, &answer)),
    };
    let mut frames = Frames::default();
    place.known = true;
    while let Some(bytes) = stream.next(SILENCE).await? {
        (place.said, place.attempts) = (false, 0);
        frames.push(&bytes).map_err(|reason| AskError::NotHttp { target: target.clone(), reason })?;
        while let Some(Frame { kind, data }) = frames.next() {
            let told = serde_json::from_str(&data).map_err(Trouble::Foreign);
            let shown =
                told.and_then(|value| if kind == "lost" { page.lost(&value) } else { page.event(value) });
            shown.map_err(|error| error.failure(target))?;
        }
        page.out.flush().map_err(Failure::Output)?;
        place.last = frames.last_id().map(str::to_owned).or_else(|| place.last.take());
    }
    Ok(())
}

/// What is asked for at first.
fn path(args: &EventsArgs) -> String {
    let mut path = resumed(args);
    let more = [
        ("last", args.last.map(|last| last.to_string())),
        ("since", args.since.map(|since| format!("{}ms", since.as_millis()))),
    ];
    for (name, value) in more {
        if let Some(value) = value {
            add(&mut path, name, &value);
        }
    }
    path
}

/// What is asked for by who has a part already.
fn resumed(args: &EventsArgs) -> String {
    let mut path = "/api/v1/events?min_level=".to_owned() + &args.level;
    if !args.kind.is_empty() {
        add(&mut path, "kind", &args.kind.join(","));
    }
    for (name, value) in [("pool", &args.pool), ("cloud", &args.cloud)] {
        if let Some(value) = value {
            add(&mut path, name, value);
        }
    }
    path
}

/// One more part of a query.
fn add(path: &mut String, name: &str, value: &str) {
    path.push('&');
    path.push_str(name);
    path.push('=');
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.,".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
}

/// Where events go.
struct Page<'a> {
    out: &'a mut dyn Write,
    json: bool,
    colours: bool,
}

/// Why an event is not shown.
enum Trouble {
    Foreign(serde_json::Error),
    Output(io::Error),
}

impl Page<'_> {
    fn event(&mut self, value: serde_json::Value) -> Result<(), Trouble> {
        if self.json {
            return self.line(&value.to_string());
        }
        let event: Event = serde_json::from_value(value).map_err(Trouble::Foreign)?;
        self.line(&text::line(&event, self.colours))
    }

    /// Says that events are missing here.
    fn lost(&mut self, value: &serde_json::Value) -> Result<(), Trouble> {
        if self.json {
            return self.line(&value.to_string());
        }
        let count = value.get("lost").and_then(serde_json::Value::as_u64).unwrap_or_default();
        self.line(&format!("({count} events are missing here: the proxy no longer had them)"))
    }

    fn line(&mut self, text: &str) -> Result<(), Trouble> {
        writeln!(self.out, "{text}").map_err(Trouble::Output)
    }
}

impl Trouble {
    fn failure(self, target: &Target) -> Failure {
        match self {
            Self::Foreign(source) => Failure::Foreign { target: target.clone(), source },
            Self::Output(error) => Failure::Output(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::client::tests::{nobody, server},
        *,
    };

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        events: EventsArgs,
    }

    fn args(target: &Target, more: &[&str]) -> EventsArgs {
        let admin = format!("--admin={target}");
        Line::parse_from([&["events", &admin], more].concat()).events
    }

    async fn shown(args: &EventsArgs) -> (String, Result<(), Failure>) {
        let mut out = Vec::new();
        let mut page = Page { out: &mut out, json: args.json, colours: false };
        let outcome = show(args, &mut page).await;
        (String::from_utf8(out).unwrap(), outcome)
    }

    fn answer(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn what_is_asked_for_is_what_was_said() {
        let (target, asked) = server(answer("[]")).await;
        let wish =
            ["--last=5", "--since=10m", "--kind=verdict", "--kind=freeze", "--pool=a b", "--cloud=aws"];
        let (text, outcome) = shown(&args(&target, &wish)).await;
        assert!(text.is_empty() && outcome.is_ok());
        let asked = asked.await.unwrap();
        let wanted = "GET /api/v1/events?min_level=info&kind=verdict,freeze&pool=a%20b&cloud=aws&last=5&since=600000ms ";
        assert!(asked.starts_with(wanted), "{asked}");
    }

    #[tokio::test]
    async fn an_event_is_a_line_for_people_or_for_programs() {
        let event = r#"{"id":7,"time":"2026-11-22T10:00:00.125Z","generation":12,"kind":"failover","level":"warn",
            "pool":"db","text":"pool db: moved","evidence":"aws 0 of 2 up","new":1}"#;
        let (target, _asked) = server(answer(&format!("[{event}]"))).await;
        let (text, outcome) = shown(&args(&target, &[])).await;
        outcome.unwrap();
        assert!(text.starts_with("2026-11-22T10:00:00.125Z  gen 12 "), "{text}");
        assert!(text.ends_with("pool db: moved (aws 0 of 2 up)\n") && text.lines().count() == 1, "{text}");
        let (target, _asked) = server(answer(&format!("[{event},{event}]"))).await;
        let (text, _) = shown(&args(&target, &["--json"])).await;
        assert_eq!(text.lines().count(), 2);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["new"], 1, "nothing that a newer proxy says is lost");
    }

    #[tokio::test]
    async fn nobody_there_is_69_a_wrong_question_2_and_anything_else_1() {
        for more in [&[][..], &["--follow"]] {
            let (target, _socket) = nobody();
            let failure = shown(&args(&target, more)).await.1.unwrap_err();
            assert_eq!(failure.code(), ExitCode::from(69), "{more:?}");
            let (target, _asked) =
                server("HTTP/1.1 400 no\r\nContent-Length: 16\r\n\r\n{\"error\":\"kind\"}").await;
            let failure = shown(&args(&target, more)).await.1.unwrap_err();
            assert_eq!((failure.code(), failure.report().ends_with("400: kind")), (ExitCode::from(2), true));
            let (target, _asked) = server("HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n").await;
            assert_eq!(shown(&args(&target, more)).await.1.unwrap_err().code(), ExitCode::FAILURE);
        }
        let (target, _asked) = server(answer("{}")).await;
        assert_eq!(shown(&args(&target, &[])).await.1.unwrap_err().code(), ExitCode::FAILURE);
        assert!(Line::try_parse_from(["events", "--level=loud"]).is_err());
    }

    #[test]
    fn pauses_grow_within_bounds() {
        assert_eq!(pause(0, 1.0), PAUSES.0);
        assert_eq!(pause(0, 0.0), PAUSES.0 / 2);
        assert!(pause(3, 0.5) > pause(1, 1.0));
        assert_eq!(pause(u32::MAX, 1.0), PAUSES.1);
    }
}
