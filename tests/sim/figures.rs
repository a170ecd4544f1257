//! What an outage cost, and the scoreboard that is made of it.

use std::{fmt::Write as _, time::Duration};

/// What was counted in one phase of a scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// Clients that came.
    pub(crate) sessions: u64,
    /// Those that got no connection.
    pub(crate) failed: u64,
    /// Those that were connected and got no answer.
    pub(crate) mute: u64,
    /// Those that had an answer and were cut later.
    pub(crate) cut: u64,
    /// Time to connect, of each that was connected.
    pub(crate) times: Vec<Duration>,
    /// Those connected in another cloud than the preferred one that worked.
    pub(crate) wrong: u64,
    /// Attempts, first ones included.
    pub(crate) dials: u64,
    /// Changes of verdicts.
    pub(crate) verdicts: u64,
    /// Snapshots.
    pub(crate) generations: u64,
    /// The longest time after which new sessions were offered nothing dead any more.
    pub(crate) evaded: Option<Duration>,
    /// That never happened while something was dead.
    pub(crate) unevaded: bool,
    /// The largest part of the working endpoints that was out of use at once.
    pub(crate) removed: f64,
}

impl Figures {
    /// Every client got an answer.
    pub(crate) const fn lost(&self) -> u64 {
        self.failed + self.mute
    }

    /// The time within which this part of the connected sessions was connected.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list"
        )]
        let place = (times.len() as f64 * part).ceil() as usize;
        times.get(place.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// The cells of its row.
    fn row(&self) -> String {
        let millis = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1000.0);
        let evaded = match self.evaded {
            _ if self.unevaded => "never".to_owned(),
            Some(time) => format!("{:.1} s", time.as_secs_f64()),
            None => "–".to_owned(),
        };
        #[expect(clippy::cast_precision_loss, reason = "for a display")]
        let wrong = self.wrong as f64 * 100.0 / self.times.len().max(1) as f64;
        let mut row = String::new();
        write!(
            row,
            "{} | {} | {} | {} | {} | {} | {} | {wrong:.0} % | {evaded} | {:.0} % | {} | {} | {}",
            self.sessions,
            self.failed,
            self.mute,
            self.cut,
            millis(self.quantile(0.5)),
            millis(self.quantile(0.99)),
            millis(self.quantile(1.0)),
            self.removed * 100.0,
            self.verdicts,
            self.generations,
            self.dials.saturating_sub(self.sessions),
        )
        .unwrap();
        row
    }
}

/// A row: scenario and phase, policy, figures.
pub(crate) type Row = (String, &'static str, Figures);

/// The document.
pub(crate) fn document(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Outages\n\n\
         What an outage costs, in a simulation of the whole proxy but its sockets: verdicts, snapshots, the choice of an\n\
         endpoint and the race between two are the production code; the network and the time are not (`tests/sim`). The same\n\
         seed gives the same clients to every policy, so the figures are exact and the same on every machine.\n\n\
         - `twinspan`: this program as it is.\n\
         - `checks only`: probes with rise and fall, their verdicts carried out at once, up to four attempts one after the\n\
         \u{20} other: what most proxies do.\n\
         - `naive`: the last probe decides, one attempt.\n\n\
         Unless a row says otherwise, there are two clouds of four endpoints, 10 ms and 30 ms away, in an order of preference;\n\
         50 new sessions a second; probes that connect, each second; and what goes wrong does so from second 10 to 40 of 60.\n\n\
         Written by a test; `REGENERATE=1 cargo test --test sim` writes it anew.\n\n\
         - *failed*: sessions that got no connection. *mute*: were connected, and heard nothing. *cut*: ended by the outage\n\
         \u{20} after their first byte, which no proxy can prevent where the endpoint itself dies.\n\
         - *p50*, *p99*, *max*: milliseconds until a session was connected.\n\
         - *elsewhere*: sessions connected in another cloud although one that is preferred to it worked.\n\
         - *evaded*: time from something's death until the first choice of new sessions held nothing dead; the longest.\n\
         - *removed*: the largest part of the endpoints that had worked for 5 s and were out of use all the same.\n\
         - *verdicts*, *generations*: changes of mind, and snapshots. *extra*: attempts beyond one a session.\n\n",
    );
    text.push_str(&totals(rows));
    text.push_str(
        "\n| outage | policy | sessions | failed | mute | cut | p50 | p99 | max | elsewhere | evaded | removed | verdicts | generations | extra |\n\
         | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n",
    );
    let mut last = "";
    for (outage, policy, figures) in rows {
        let shown = if outage == last { "" } else { outage };
        writeln!(text, "| {shown} | {policy} | {} |", figures.row()).unwrap();
        last = outage;
    }
    text
}

/// All outages together.
fn totals(rows: &[Row]) -> String {
    let mut text = String::from(
        "| all outages | sessions | failed | mute | outages without a loss |\n| --- | --: | --: | --: | --: |\n",
    );
    for kind in crate::policy::Kind::ALL.map(crate::policy::Kind::as_str) {
        let of = || rows.iter().filter(|(_, policy, _)| *policy == kind).map(|(.., figures)| figures);
        let sum = |count: fn(&Figures) -> u64| of().map(count).sum::<u64>();
        let unharmed = of().filter(|figures| figures.lost() == 0).count();
        writeln!(
            text,
            "| {kind} | {} | {} | {} | {unharmed} of {} |",
            sum(|figures| figures.sessions),
            sum(|figures| figures.failed),
            sum(|figures| figures.mute),
            of().count(),
        )
        .unwrap();
    }
    text
}
