//! The subject beside its peers: ratios between measurements of the same round, and what they are wanted to be. Rounds lie
//! minutes apart and the machine has faster and slower minutes, so only figures of one round are compared.

use std::{collections::BTreeMap, fmt};

use crate::{
    measure::{Metric, Scenario},
    table::{Report, best_of, median, table},
};

/// The rounds' ratios.
struct Ratio {
    median: f64,
    low: f64,
    high: f64,
    /// The best figure of the one to the best of the other, whichever rounds they are from.
    bests: f64,
    rounds: usize,
}

/// What a ratio is wanted to be.
struct Wanted(&'static str, Scenario, Metric, Beside, f64);

/// With whom a figure is compared.
#[derive(Clone, Copy)]
enum Beside {
    /// Whichever peer has the best median.
    Best,
    Nginx,
    /// The better one of the two ways to run it.
    Haproxy,
    HaproxySplice,
    /// The subject itself, while nothing is swapped.
    Still,
    /// The subject itself, through a plain listener.
    Plain,
}

/// Less is better but for rates: there the ratio is to be at least this, elsewhere at most.
const WANTED: [Wanted; 26] = [
    Wanted("rr, saturated, CPU", Scenario::Rr, Metric::Cpu, Beside::Nginx, 0.95),
    Wanted("rr, 15,000/s, CPU", Scenario::RrRate, Metric::Cpu, Beside::Nginx, 0.92),
    Wanted("rr, 15,000/s, p50", Scenario::RrRate, Metric::P50, Beside::Best, 1.0),
    Wanted("rr, 15,000/s, p99", Scenario::RrRate, Metric::P99, Beside::Best, 1.0),
    Wanted("64 KiB replies, CPU", Scenario::Big, Metric::Cpu, Beside::Nginx, 0.5),
    Wanted("64 KiB replies, CPU", Scenario::Big, Metric::Cpu, Beside::Haproxy, 0.9),
    Wanted("down ms/GB", Scenario::Down, Metric::Cpu, Beside::Nginx, 0.35),
    Wanted("down ms/GB", Scenario::Down, Metric::Cpu, Beside::HaproxySplice, 0.9),
    Wanted("down Gbit/s", Scenario::Down, Metric::Rate, Beside::Best, 1.0),
    Wanted("up ms/GB", Scenario::Up, Metric::Cpu, Beside::Nginx, 0.35),
    Wanted("up ms/GB", Scenario::Up, Metric::Cpu, Beside::HaproxySplice, 0.9),
    Wanted("up Gbit/s", Scenario::Up, Metric::Rate, Beside::Best, 1.0),
    Wanted("both ms/GB", Scenario::Both, Metric::Cpu, Beside::Nginx, 0.35),
    Wanted("both ms/GB", Scenario::Both, Metric::Cpu, Beside::HaproxySplice, 0.9),
    Wanted("both Gbit/s", Scenario::Both, Metric::Rate, Beside::Best, 1.0),
    Wanted("churn, saturated, CPU", Scenario::Churn, Metric::Cpu, Beside::Nginx, 0.95),
    Wanted("churn, 2,000/s, p99", Scenario::ChurnRate, Metric::P99, Beside::Best, 1.0),
    Wanted("idle session, PSS", Scenario::Idle, Metric::Pss, Beside::Haproxy, 0.15),
    Wanted("two workers, rr, CPU", Scenario::RrTwo, Metric::Cpu, Beside::Best, 1.0),
    Wanted("two workers, rr/s", Scenario::RrTwo, Metric::Rate, Beside::Best, 1.0),
    Wanted("two workers, down ms/GB", Scenario::DownTwo, Metric::Cpu, Beside::Best, 1.0),
    Wanted("two workers, down Gbit/s", Scenario::DownTwo, Metric::Rate, Beside::Best, 1.0),
    Wanted("two workers, churn, CPU", Scenario::ChurnTwo, Metric::Cpu, Beside::Best, 1.0),
    Wanted("two workers, churn/s", Scenario::ChurnTwo, Metric::Rate, Beside::Best, 1.0),
    Wanted("hello by name, CPU", Scenario::HelloNamed, Metric::Cpu, Beside::Plain, 1.1),
    Wanted("1,000 swaps/s, p99", Scenario::Swaps, Metric::P99, Beside::Still, 1.0),
];

impl Report {
    /// Every figure of the subject to that of each other.
    pub(crate) fn ratios(&self, out: &mut String, figures: &[(String, Scenario, Metric)]) {
        let others = self.others();
        if others.is_empty() {
            return;
        }
        let row = |(title, scenario, metric): &(String, Scenario, Metric)| {
            let figure = (*scenario, *metric);
            let mut cells: Vec<_> =
                others.iter().map(|other| Some(self.ratio(figure, other, figure)?.to_string())).collect();
            let best = self.best(figure, &self.peers());
            cells.push(best.and_then(|best| Some(format!("{} {best}", self.ratio(figure, best, figure)?))));
            (title.clone(), cells)
        };
        let rows: Vec<_> =
            figures.iter().map(row).filter(|(_, cells)| cells.iter().any(Option::is_some)).collect();
        let mut heads: Vec<_> = others.iter().map(|other| format!("to {other}")).collect();
        heads.push("to the best peer".to_owned());
        let heads: Vec<_> = heads.iter().map(String::as_str).collect();
        let heading =
            format!("{}: ratio to the others (median of the rounds' ratios; least..most)", self.subject);
        table(out, &heading, "figure", &heads, &rows);
    }

    /// The ratios that are wanted, and whether they are there.
    pub(crate) fn wanted(&self, out: &mut String) {
        let row = |wanted: &Wanted| {
            let Wanted(title, scenario, metric, beside, bound) = wanted;
            let figure = (*scenario, *metric);
            let (name, ratio) = match beside {
                Beside::Still => {
                    let still = (*scenario, Metric::StillP99);
                    ("itself without", self.ratio(figure, self.subject, still))
                }
                Beside::Plain => {
                    let plain = (Scenario::Hello, Metric::Cpu);
                    ("itself, plain", self.ratio(figure, self.subject, plain))
                }
                _ => {
                    let best = self.best(figure, &self.candidates(*beside))?;
                    (best, self.ratio(figure, best, figure))
                }
            };
            let ratio = ratio?;
            let sign = if metric.more_is_better() { ">=" } else { "<=" };
            let (name, target) = match beside {
                Beside::Best => (format!("{name} (best)"), format!("{sign} {bound:.2}")),
                Beside::Still => (name.to_owned(), format!("{sign} {bound:.2}, or in the noise")),
                _ => (name.to_owned(), format!("{sign} {bound:.2}")),
            };
            let (met, noise) = ratio.judge(*metric, *bound);
            let met = met || noise && matches!(beside, Beside::Still);
            let verdict =
                format!("{}{}", if met { "yes" } else { "no" }, if noise { ", in the noise" } else { "" });
            let bests = format!("{:.2}", ratio.bests);
            let cells = [name, ratio.to_string(), bests, target, verdict].map(Some).to_vec();
            Some(((*title).to_owned(), cells))
        };
        let rows: Vec<_> = WANTED.iter().filter_map(row).collect();
        let heads = ["beside", "ratio", "of the bests", "target", "met"];
        table(out, &format!("{}: targets", self.subject), "figure", &heads, &rows);
    }

    /// All but the subject and no proxy at all.
    fn others(&self) -> Vec<&'static str> {
        let names = || self.proxies.iter().map(|(proxy, _)| *proxy);
        if !names().any(|name| name == self.subject) {
            return Vec::new();
        }
        names().filter(|name| *name != self.subject && *name != "direct").collect()
    }

    /// Other people's proxies.
    fn peers(&self) -> Vec<&'static str> {
        self.others().into_iter().filter(|name| !name.starts_with("twinspan")).collect()
    }

    fn candidates(&self, beside: Beside) -> Vec<&'static str> {
        match beside {
            Beside::Best => self.peers(),
            Beside::Nginx => vec!["nginx"],
            Beside::Haproxy => vec!["haproxy", "haproxy-splice"],
            Beside::HaproxySplice => vec!["haproxy-splice"],
            Beside::Still | Beside::Plain => Vec::new(),
        }
    }

    /// Who of them has the best median. Not the best of each round: of several equal ones that would be the luckiest.
    fn best(&self, figure: (Scenario, Metric), among: &[&'static str]) -> Option<&'static str> {
        let medians = among
            .iter()
            .filter_map(|name| Some((*name, median(self.values(name, figure).into_values().collect())?)));
        let by_value = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
        let best =
            if figure.1.more_is_better() { medians.max_by(by_value) } else { medians.min_by(by_value) };
        best.map(|(name, _)| name)
    }

    fn ratio(&self, figure: (Scenario, Metric), other: &str, others: (Scenario, Metric)) -> Option<Ratio> {
        let others: BTreeMap<u32, f64> = self.values(other, others);
        let paired = self.values(self.subject, figure).into_iter().filter_map(|(round, value)| {
            let other = others.get(&round).copied().filter(|other| *other > 0.0)?;
            Some((value, other))
        });
        let (ours, theirs): (Vec<f64>, Vec<f64>) = paired.unzip();
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(our, their)| our / their).collect();
        Some(Ratio {
            bests: best_of(&ours, figure.1)? / best_of(&theirs, figure.1)?,
            low: ratios.iter().copied().reduce(f64::min)?,
            high: ratios.iter().copied().reduce(f64::max)?,
            rounds: ratios.len(),
            median: median(ratios)?,
        })
    }
}

impl Ratio {
    /// Whether the median is as wanted, and whether some round says otherwise: then another run may too.
    fn judge(&self, metric: Metric, bound: f64) -> (bool, bool) {
        let met = |ratio: f64| if metric.more_is_better() { ratio >= bound } else { ratio <= bound };
        (met(self.median), met(self.low) != met(self.high))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high, rounds, .. } = self;
        if *rounds > 1 { write!(f, "{median:.2} ({low:.2}..{high:.2})") } else { write!(f, "{median:.2}") }
    }
}
