//! `twinspan bench stream`: bulk.

use std::process::ExitCode;

use serde_json::json;

use super::{
    client::{Bench, ClientArgs, WarmupArgs},
    report::{Figures, bytes, gigabits},
};
use crate::lab::load::{Ask, Kind, Tally};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Direction {
    /// From the target, as `bench source` sends them
    Down,
    /// To the target, as `bench sink` takes them
    Up,
    /// Both at once: `bench echo` sends back what it gets
    Both,
}

/// What `stream` takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StreamArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Which way the bytes go
    #[arg(long, value_enum, default_value = "down")]
    direction: Direction,
    /// Connections that are busy at once
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Say at first which way, as the target `twinspan bench reply` needs it
    #[arg(long)]
    ask: bool,
    #[command(flatten)]
    warmup: WarmupArgs,
}

/// Bulk on a few connections.
pub(super) fn run(args: &StreamArgs) -> anyhow::Result<ExitCode> {
    let (name, ask, hint) = match args.direction {
        Direction::Down => {
            ("down", Ask::Source, "\n  hint: does the target send by itself, as `bench source` does?")
        }
        Direction::Up => ("up", Ask::Sink, "\n  hint: does the target take bytes, as `bench sink` does?"),
        Direction::Both => {
            ("both", Ask::Both, "\n  hint: does the target take and send, as `bench echo` does?")
        }
    };
    let bench = Bench {
        name: "stream",
        client: &args.client,
        connections: args.connections,
        kind: Kind::Stream { ask, say: args.ask },
        warmup: args.warmup.warmup,
        pace: None,
        what: name.to_owned(),
        settings: json!({ "direction": name }),
        unit: "B",
        figures,
        worked: match args.direction {
            Direction::Down => |tally| tally.down > 0,
            Direction::Up => |tally| tally.up > 0,
            Direction::Both => |tally| tally.down > 0 && tally.up > 0,
        },
        hint,
    };
    bench.run()
}

fn figures(tally: &Tally) -> Figures {
    let round = |speed: f64| (speed * 1e6).round() / 1e6;
    let (down, up) = (gigabits(tally.down, tally), gigabits(tally.up, tally));
    let fields = json!({
        "bytes_down": tally.down,
        "bytes_up": tally.up,
        "gbit_per_s_down": round(down),
        "gbit_per_s_up": round(up),
        "gbit_per_s": round(down + up),
    });
    let line = |speed, count| format!("{speed:.2} Gbit/s ({})", bytes(count));
    let mut lines = Vec::new();
    if tally.down > 0 {
        lines.push(("down", line(down, tally.down)));
    }
    if tally.up > 0 {
        lines.push(("up", line(up, tally.up)));
    }
    Figures { fields, lines }
}
