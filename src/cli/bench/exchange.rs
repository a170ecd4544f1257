//! `twinspan bench rr`, `churn` and `idle`: requests and replies on connections that stay, that come and go, or that do
//! nothing more.

use std::process::ExitCode;

use serde_json::json;

use super::{
    client::{Bench, ClientArgs, RateArgs, WarmupArgs},
    report::{Figures, bytes, per_second, quantiles, quantiles_line},
    words,
};
use crate::{
    cli::check,
    lab::load::{HEAD, Kind, LARGEST_REQUEST, Script, Tally},
};

/// What may help where a target sends back what it gets.
const NEEDS_ECHO: &str =
    "\n  hint: the target has to send back what it gets, byte for byte, as `twinspan bench echo` does";

/// What may help where a target reads heads.
const NEEDS_REPLY: &str =
    "\n  hint: --ask, or a --reply that differs from --size, needs the target `twinspan bench reply`";

/// The sizes of an exchange.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ExchangeArgs {
    /// Bytes of a request: 128, 64KiB, 1MB
    #[arg(short, long, default_value = "128", value_parser = words::request)]
    size: u32,
    /// Bytes of a reply, as many as of a request if not given; another size needs the target `twinspan bench reply`
    #[arg(long, value_name = "SIZE", value_parser = words::size)]
    reply: Option<u32>,
    /// Say in each request how large a reply it wants, as the target `twinspan bench reply` needs it
    #[arg(long)]
    ask: bool,
}

/// What `rr` takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct RrArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Connections, each with one request at a time
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    #[command(flatten)]
    exchange: ExchangeArgs,
    #[command(flatten)]
    warmup: WarmupArgs,
    #[command(flatten)]
    pace: RateArgs,
}

/// What `churn` takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ChurnArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Connections at a time, at most
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    #[command(flatten)]
    exchange: ExchangeArgs,
    #[command(flatten)]
    warmup: WarmupArgs,
    #[command(flatten)]
    pace: RateArgs,
}

/// What `idle` takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct IdleArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Connections to hold
    #[arg(short, long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    #[command(flatten)]
    exchange: ExchangeArgs,
}

/// Requests and replies on connections that stay.
pub(super) fn rr(args: &RrArgs) -> anyhow::Result<ExitCode> {
    let Some((script, hint)) = args.exchange.script() else { return Ok(wrong_size()) };
    let what = args.exchange.what();
    let settings = args.exchange.settings();
    let bench = Bench {
        name: "rr",
        client: &args.client,
        connections: args.connections,
        kind: Kind::Exchange(script),
        warmup: args.warmup.warmup,
        pace: Some(args.pace),
        what,
        settings,
        unit: "req",
        figures: |tally| units("requests", tally, false),
        worked: |tally| tally.units > 0,
        hint,
    };
    bench.run()
}

/// Connections that come, ask once, and go.
pub(super) fn churn(args: &ChurnArgs) -> anyhow::Result<ExitCode> {
    let Some((script, hint)) = args.exchange.script() else { return Ok(wrong_size()) };
    let bench = Bench {
        name: "churn",
        client: &args.client,
        connections: args.connections,
        kind: Kind::Churn(script),
        warmup: args.warmup.warmup,
        pace: Some(args.pace),
        what: args.exchange.what(),
        settings: args.exchange.settings(),
        unit: "sessions",
        figures: |tally| units("sessions", tally, true),
        worked: |tally| tally.units > 0,
        hint,
    };
    bench.run()
}

/// Connections that do nothing after one exchange.
pub(super) fn idle(args: &IdleArgs) -> anyhow::Result<ExitCode> {
    let Some((script, hint)) = args.exchange.script() else { return Ok(wrong_size()) };
    let bench = Bench {
        name: "idle",
        client: &args.client,
        connections: args.connections,
        kind: Kind::Hold(script),
        warmup: std::time::Duration::ZERO,
        pace: None,
        what: args.exchange.what(),
        settings: args.exchange.settings(),
        unit: "sessions",
        figures: held,
        worked: |tally| tally.held > 0,
        hint,
    };
    bench.run()
}

impl ExchangeArgs {
    /// What is sent and has to come back, and what may be wrong when it does not; nothing if there is no such request.
    fn script(&self) -> Option<(Script, &'static str)> {
        if !self.asks() {
            let size = usize::try_from(self.size.min(LARGEST_REQUEST)).ok()?;
            return (self.size <= LARGEST_REQUEST).then(|| (Script::echo(size), NEEDS_ECHO));
        }
        let possible =
            usize::try_from(self.size).is_ok_and(|size| size >= HEAD) && self.size <= LARGEST_REQUEST;
        possible.then(|| (Script::reply(self.size, self.reply_size()), NEEDS_REPLY))
    }

    fn asks(&self) -> bool {
        self.ask || self.reply_size() != self.size
    }

    fn reply_size(&self) -> u32 {
        self.reply.unwrap_or(self.size)
    }

    fn what(&self) -> String {
        format!("{} for {}", bytes(self.size.into()), bytes(self.reply_size().into()))
    }

    fn settings(&self) -> serde_json::Value {
        json!({ "size": self.size, "reply": self.reply_size() })
    }
}

fn wrong_size() -> ExitCode {
    super::say(&format!(
        "error: --size: at most {LARGEST_REQUEST} bytes, and at least {HEAD} where the request says how large a reply \
         it wants"
    ));
    ExitCode::from(check::USAGE)
}

/// The figures of whatever begins again and again.
fn units(name: &'static str, tally: &Tally, connect: bool) -> Figures {
    let rate = per_second(tally.units, tally);
    let mut fields = json!({
        name: tally.units,
        format!("{name}_per_s"): (rate * 10.0).round() / 10.0,
        "unsent": tally.unsent,
        "latency_us": quantiles(&tally.latency),
    });
    let mut lines = vec![(name, format!("{} ({rate:.0}/s)", tally.units))];
    if connect {
        super::report::put(&mut fields, json!({ "connect_us": quantiles(&tally.connect) }));
        lines.push(("connect", quantiles_line(&tally.connect)));
        lines.push(("total", quantiles_line(&tally.latency)));
    } else {
        lines.push(("latency", quantiles_line(&tally.latency)));
    }
    // A few are due in the moment of the end.
    if tally.unsent * 100 > tally.units {
        lines.push(("unsent", format!("{} were due and had not begun at the end", tally.unsent)));
    }
    Figures { fields, lines }
}

/// The figures of connections that are held.
fn held(tally: &Tally) -> Figures {
    let (opened, alive) = (tally.held, tally.units);
    let died = opened.saturating_sub(alive);
    let fields = json!({
        "opened": opened,
        "died": died,
        "alive": alive,
        "latency_us": quantiles(&tally.latency),
        "connect_us": quantiles(&tally.connect),
    });
    let lines = vec![
        ("sessions", format!("{opened} opened, {died} died, {alive} alive at the end")),
        ("connect", quantiles_line(&tally.connect)),
        ("total", quantiles_line(&tally.latency)),
    ];
    Figures { fields, lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(size: u32, reply: Option<u32>, ask: bool) -> ExchangeArgs {
        ExchangeArgs { size, reply, ask }
    }

    #[test]
    fn a_reply_of_another_size_is_asked_for() {
        assert!(!args(128, None, false).asks() && !args(128, Some(128), false).asks());
        assert!(args(128, Some(64), false).asks() && args(128, None, true).asks());
    }

    #[test]
    fn a_request_that_asks_has_room_for_its_head() {
        assert!(args(1, None, false).script().is_some());
        assert!(args(7, Some(100), false).script().is_none());
        assert!(args(8, Some(100), false).script().is_some());
        assert!(args(LARGEST_REQUEST + 1, None, false).script().is_none());
    }
}
