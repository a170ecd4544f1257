//! The figures as Markdown: medians and best values.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use crate::{
    host::Machine,
    measure::{Metric, Scenario},
};

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Reading {
    pub(crate) round: u32,
    pub(crate) proxy: &'static str,
    pub(crate) scenario: Scenario,
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// Proxies in the order of the rows, with what each says of its version.
    pub(crate) proxies: Vec<(&'static str, Option<String>)>,
    /// Whose ratios to the others are shown.
    pub(crate) subject: &'static str,
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    pub(crate) idle_sessions: u64,
    pub(crate) readings: Vec<Reading>,
    /// What went wrong or was left out.
    pub(crate) notes: Vec<String>,
    /// Measurements that failed.
    pub(crate) failures: u32,
}

struct Column(&'static str, Scenario, Metric);

struct Section {
    title: &'static str,
    columns: &'static [Column],
    /// What stands before and after its titles in the table of ratios, if it is part of that.
    compared: Option<(&'static str, &'static str)>,
}

const SECTIONS: [Section; 9] = [
    Section {
        title: "CPU per unit of work (microseconds of proxy CPU; lower is better)",
        columns: &[
            Column("rr, saturated", Scenario::Rr, Metric::Cpu),
            Column("rr, 15,000/s", Scenario::RrRate, Metric::Cpu),
            Column("64 KiB replies", Scenario::Big, Metric::Cpu),
            Column("churn, saturated", Scenario::Churn, Metric::Cpu),
            Column("churn, 2,000/s", Scenario::ChurnRate, Metric::Cpu),
        ],
        compared: Some(("", ", CPU")),
    },
    Section {
        title: "Bulk, 4 connections (milliseconds of proxy CPU per GB, lower is better; Gbit/s, higher is better)",
        columns: &[
            Column("down ms/GB", Scenario::Down, Metric::Cpu),
            Column("up ms/GB", Scenario::Up, Metric::Cpu),
            Column("both ms/GB", Scenario::Both, Metric::Cpu),
            Column("down Gbit/s", Scenario::Down, Metric::Rate),
            Column("up Gbit/s", Scenario::Up, Metric::Rate),
            Column("both Gbit/s", Scenario::Both, Metric::Rate),
        ],
        compared: Some(("", "")),
    },
    Section {
        title: "Rates at saturation (higher is better)",
        columns: &[
            Column("rr requests/s", Scenario::Rr, Metric::Rate),
            Column("64 KiB replies/s", Scenario::Big, Metric::Rate),
            Column("churn connections/s", Scenario::Churn, Metric::Rate),
        ],
        compared: Some(("", "")),
    },
    Section {
        title: "Latency from the intended send time, microseconds (rr 15,000/s; churn 2,000/s)",
        columns: &[
            Column("rr p50", Scenario::RrRate, Metric::P50),
            Column("rr p90", Scenario::RrRate, Metric::P90),
            Column("rr p99", Scenario::RrRate, Metric::P99),
            Column("churn p50", Scenario::ChurnRate, Metric::P50),
            Column("churn p99", Scenario::ChurnRate, Metric::P99),
        ],
        compared: Some(("", "")),
    },
    Section {
        title: "Two workers, nothing pinned (us and ms: proxy CPU a request, a connection, a GB; latency in us; bulk on 16 \
                connections)",
        columns: &[
            Column("rr/s", Scenario::RrTwo, Metric::Rate),
            Column("rr us", Scenario::RrTwo, Metric::Cpu),
            Column("rr p50", Scenario::RrTwo, Metric::P50),
            Column("rr p99", Scenario::RrTwo, Metric::P99),
            Column("down Gbit/s", Scenario::DownTwo, Metric::Rate),
            Column("down ms/GB", Scenario::DownTwo, Metric::Cpu),
            Column("churn/s", Scenario::ChurnTwo, Metric::Rate),
            Column("churn us", Scenario::ChurnTwo, Metric::Cpu),
        ],
        compared: Some(("two workers, ", "")),
    },
    Section {
        title: "A generation swap every millisecond, rr at 15,000/s (microseconds: latency, CPU a request)",
        columns: &[
            Column("p50 without", Scenario::Swaps, Metric::StillP50),
            Column("p50 with", Scenario::Swaps, Metric::P50),
            Column("p99 without", Scenario::Swaps, Metric::StillP99),
            Column("p99 with", Scenario::Swaps, Metric::P99),
            Column("data plane without", Scenario::Swaps, Metric::StillCpuTraffic),
            Column("data plane with", Scenario::Swaps, Metric::CpuTraffic),
            Column("all threads without", Scenario::Swaps, Metric::StillCpu),
            Column("all threads with", Scenario::Swaps, Metric::Cpu),
            Column("generations/s", Scenario::Swaps, Metric::Generations),
        ],
        compared: None,
    },
    Section {
        title: "TLS that ends here (P-256, TLS 1.3; microseconds of proxy CPU a session; ms/GB and Gbit/s downwards), and a \
                ClientHello passed on: through a plain listener, and by the name in it",
        columns: &[
            Column("full us", Scenario::TlsFull, Metric::Cpu),
            Column("full/s", Scenario::TlsFull, Metric::Rate),
            Column("resumed us", Scenario::TlsResumed, Metric::Cpu),
            Column("resumed/s", Scenario::TlsResumed, Metric::Rate),
            Column("down ms/GB", Scenario::TlsDown, Metric::Cpu),
            Column("down Gbit/s", Scenario::TlsDown, Metric::Rate),
            Column("hello us", Scenario::Hello, Metric::Cpu),
            Column("hello by name us", Scenario::HelloNamed, Metric::Cpu),
        ],
        compared: Some(("TLS, ", "")),
    },
    Section {
        title: "Idle sessions (user memory; bytes a session, whole proxy in kB)",
        columns: &[
            Column("PSS/session", Scenario::Idle, Metric::Pss),
            Column("RSS/session", Scenario::Idle, Metric::Rss),
            Column("RSS at start kB", Scenario::Idle, Metric::RssStart),
            Column("RSS after all closed kB", Scenario::Idle, Metric::RssAfter),
        ],
        compared: Some(("", "")),
    },
    Section {
        title: "System calls of the proxy per unit of work (counts of one run)",
        columns: &[
            Column("request, 1 connection", Scenario::Calls, Metric::CallsOne),
            Column("request, 64 connections", Scenario::Calls, Metric::CallsRr),
            Column("connection (churn)", Scenario::Calls, Metric::CallsChurn),
            Column("GB, down", Scenario::Calls, Metric::CallsDown),
        ],
        compared: None,
    },
];

impl Report {
    pub(crate) fn markdown(&self) -> String {
        let mut out = self.preamble();
        for section in &SECTIONS {
            let rows: Vec<_> = self
                .proxies
                .iter()
                .map(|(proxy, _)| {
                    let cells: Vec<_> =
                        section.columns.iter().map(|column| self.cell(proxy, column)).collect();
                    ((*proxy).to_owned(), cells)
                })
                .collect();
            let heads: Vec<_> = section.columns.iter().map(|column| column.0).collect();
            table(&mut out, section.title, "proxy", &heads, &rows);
        }
        self.ratios(&mut out, &compared());
        self.wanted(&mut out);
        if !self.notes.is_empty() {
            out.push_str("\nNotes:\n\n");
            for note in &self.notes {
                line(&mut out, format_args!("- {note}"));
            }
        }
        out
    }

    fn preamble(&self) -> String {
        let mut out = String::new();
        let machine = &self.machine;
        let place = if machine.namespace { "a network namespace of its own" } else { "the host's network" };
        line(
            &mut out,
            format_args!(
                "Measured {}: Linux {}, {} x {}; loopback in {place}, congestion control {}; load average {} \
                 before and {} after (the run itself is 1 to 2).",
                machine.date,
                machine.kernel,
                machine.cpus,
                machine.cpu,
                machine.congestion_control,
                machine.load_average_before,
                machine.load_average_after,
            ),
        );
        line(
            &mut out,
            format_args!(
                "{} interleaved rounds of {} s each, four times as long at a fixed rate; {} idle sessions. Cells: median (best; n).\n",
                self.rounds, self.seconds, self.idle_sessions
            ),
        );
        for (proxy, version) in &self.proxies {
            if let Some(version) = version {
                line(&mut out, format_args!("- {proxy}: {version}"));
            }
        }
        out
    }

    /// Values by round.
    pub(crate) fn values(&self, proxy: &str, (scenario, metric): (Scenario, Metric)) -> BTreeMap<u32, f64> {
        let wanted = |reading: &&Reading| {
            reading.proxy == proxy && reading.scenario == scenario && reading.metric == metric
        };
        self.readings.iter().filter(wanted).map(|reading| (reading.round, reading.value)).collect()
    }

    fn cell(&self, proxy: &str, column: &Column) -> Option<String> {
        let values: Vec<f64> = self.values(proxy, (column.1, column.2)).into_values().collect();
        let best = best_of(&values, column.2)?;
        let n = values.len();
        Some(format!("{} ({}; {n})", number(median(values)?), number(best)))
    }
}

/// What the table of ratios has.
fn compared() -> Vec<(String, Scenario, Metric)> {
    let mut figures = Vec::new();
    for Section { columns, compared, .. } in &SECTIONS {
        let Some((before, after)) = compared else { continue };
        let titled = |Column(title, scenario, metric): &Column| {
            (format!("{before}{title}{after}"), *scenario, *metric)
        };
        figures.extend(columns.iter().map(titled));
    }
    figures
}

/// A table of the rows that have something to show, if there are any.
pub(crate) fn table(
    out: &mut String,
    title: &str,
    first: &str,
    heads: &[&str],
    rows: &[(String, Vec<Option<String>>)],
) {
    if rows.iter().all(|(_, cells)| cells.iter().all(Option::is_none)) {
        return;
    }
    line(out, format_args!("\n### {title}\n"));
    line(out, format_args!("| {first} | {} |", heads.join(" | ")));
    line(out, format_args!("|---|{}", "---|".repeat(heads.len())));
    for (name, cells) in rows.iter().filter(|(_, cells)| cells.iter().any(Option::is_some)) {
        let cells: Vec<_> = cells.iter().map(|cell| cell.as_deref().unwrap_or("-")).collect();
        line(out, format_args!("| {name} | {} |", cells.join(" | ")));
    }
}

fn line(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{line}");
}

/// The best one of some values of this metric.
pub(crate) fn best_of(values: &[f64], metric: Metric) -> Option<f64> {
    let better = if metric.more_is_better() { f64::max } else { f64::min };
    values.iter().copied().reduce(better)
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some(lower.midpoint(*upper))
}

/// Three digits that count, and thousands apart.
fn number(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) {
                    out.push(',');
                }
                out.push(digit);
            }
            out
        }
    }
}
