//! The panel as a value, and how it is drawn: six lines of at most 80 columns.

use std::time::Duration;

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Style},
    text::{Line, Span},
    widgets::{Paragraph, Widget},
};

use super::{
    books::{Books, Quantiles, Totals},
    judge::count,
    proxy::Sample,
};

/// Lines of the panel with two clouds.
pub(super) const HEIGHT: u16 = 6;

/// One look at everything.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    /// What is running, and since when.
    pub(super) title: String,
    pub(super) rows: Vec<Row>,
    pub(super) totals: Totals,
    /// What may be pressed.
    pub(super) keys: &'static str,
}

/// A cloud. Rates and quantiles are of the last seconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) state: String,
    /// 0 to 1.
    pub(super) weight: f64,
    pub(super) sessions: u64,
    pub(super) new_per_second: f64,
    /// The proxy's connects.
    pub(super) connect: Option<Quantiles>,
    /// From a client's start to its first byte.
    pub(super) answer: Option<Quantiles>,
    /// Bytes a second.
    pub(super) to_upstream: f64,
}

impl Picture {
    /// The rows, from two looks at the proxy and the sessions of the time between them.
    pub(super) fn rows(earlier: &Sample, now: &Sample, books: &Books) -> Vec<Row> {
        let seconds = now.at.duration_since(earlier.at).max(Duration::from_millis(1)).as_secs_f64();
        let rate = |before: u64, after: u64| count(after.saturating_sub(before)) / seconds;
        let pairs = earlier.clouds.iter().zip(&now.clouds).enumerate();
        pairs
            .map(|(place, (before, cloud))| {
                let connect = cloud.connect.since(&before.connect);
                let quantile = |q| connect.quantile(q).map(|seconds| seconds * 1e3);
                Row {
                    name: cloud.name.clone(),
                    state: cloud.state(),
                    weight: cloud.share,
                    sessions: cloud.active,
                    new_per_second: rate(before.sessions, cloud.sessions),
                    connect: quantile(0.5).zip(quantile(0.99)).map(|(p50, p99)| Quantiles { p50, p99 }),
                    answer: books.first_bytes(place, earlier.at),
                    to_upstream: rate(before.to_upstream, cloud.to_upstream),
                }
            })
            .collect()
    }

    /// Draws the panel.
    pub(super) fn draw(&self, area: Rect, buffer: &mut Buffer, colours: bool) {
        let paint = |colour| if colours { Style::new().fg(colour) } else { Style::new() };
        let mut lines = vec![
            Line::styled(self.title.as_str(), Style::new().bold()),
            Line::styled(
                " CLOUD STATE  WEIGHT SESSIONS NEW/s CONNECT p50/p99 ANSWER p50/p99 TO UPSTREAM",
                paint(Color::DarkGray),
            ),
        ];
        for row in &self.rows {
            let colour = match row.state.as_str() {
                "up" => Color::Green,
                "down" => Color::Red,
                _ => Color::Yellow,
            };
            lines.push(Line::from_iter([
                Span::raw(format!(" {:<5} ", row.name)),
                Span::styled(format!("{:<6}", row.state), paint(colour)),
                Span::raw(row.numbers()),
            ]));
        }
        lines.push(Line::raw(format!(" {}", load(&self.totals))));
        lines.push(Line::styled(format!(" {}", self.keys), paint(Color::DarkGray)));
        Paragraph::new(lines).render(area, buffer);
    }

    /// The same in one line, for where there is no panel.
    pub(super) fn line(&self) -> String {
        let clouds = self.rows.iter().map(|row| {
            let answer =
                row.answer.map_or_else(String::new, |answer| format!(", answer p50 {:.1} ms", answer.p50));
            format!(
                "{} {} {:.0} %, {:.0} new/s{answer}",
                row.name,
                row.state,
                row.weight * 100.0,
                row.new_per_second
            )
        });
        clouds.chain([load(&self.totals)]).collect::<Vec<_>>().join(" · ")
    }
}

impl Row {
    fn numbers(&self) -> String {
        let times = |times: Option<Quantiles>| {
            times.map_or_else(|| "-".to_owned(), |times| format!("{:.1}/{:.1} ms", times.p50, times.p99))
        };
        format!(
            " {:>4.0} % {:>8} {:>5.0} {:>15} {:>14} {:>11}",
            self.weight * 100.0,
            self.sessions,
            self.new_per_second,
            times(self.connect),
            times(self.answer),
            bytes(self.to_upstream)
        )
    }
}

fn load(totals: &Totals) -> String {
    let cut = match totals.cut + totals.long_cut {
        0 => String::new(),
        cut => format!(" · {cut} died with their cloud"),
    };
    format!(
        "new sessions {} · ok {} · failed {} · long {}{cut}",
        totals.started, totals.ok, totals.failed, totals.long
    )
}

fn bytes(rate: f64) -> String {
    if rate >= 1e6 { format!("{:.1} MB/s", rate / 1e6) } else { format!("{:.1} kB/s", rate / 1e3) }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn picture() -> Picture {
        let row = |name: &str, state: &str, weight| Row {
            name: name.to_owned(),
            state: state.to_owned(),
            weight,
            sessions: 181,
            new_per_second: 300.4,
            connect: Some(Quantiles { p50: 0.25, p99: 0.5 }),
            answer: Some(Quantiles { p50: 118.3, p99: 121.7 }),
            to_upstream: 1_234_567.0,
        };
        let mut rows = vec![row("aws", "down", 0.0), row("gcp", "up", 1.0)];
        rows[0].connect = None;
        rows[0].answer = None;
        let totals = Totals { started: 1_234, ok: 1_200, failed: 0, cut: 3, long: 50, long_cut: 50 };
        Picture { title: "twinspan demo".to_owned(), rows, totals, keys: "q quit" }
    }

    fn drawn(colours: bool) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(80, HEIGHT)).unwrap();
        terminal.draw(|frame| picture().draw(frame.area(), frame.buffer_mut(), colours)).unwrap();
        terminal
    }

    #[test]
    fn the_panel_shows_a_line_for_each_cloud_under_its_heads() {
        drawn(true).backend().assert_buffer_lines_text(&[
            "twinspan demo",
            " CLOUD STATE  WEIGHT SESSIONS NEW/s CONNECT p50/p99 ANSWER p50/p99 TO UPSTREAM",
            " aws   down      0 %      181   300               -              -    1.2 MB/s",
            " gcp   up      100 %      181   300      0.2/0.5 ms 118.3/121.7 ms    1.2 MB/s",
            " new sessions 1234 · ok 1200 · failed 0 · long 50 · 53 died with their cloud",
            " q quit",
        ]);
    }

    #[test]
    fn colours_are_for_those_who_want_them() {
        let coloured = |terminal: &Terminal<TestBackend>| {
            terminal.backend().buffer().content().iter().any(|cell| cell.fg != Color::Reset)
        };
        assert!(coloured(&drawn(true)));
        assert!(!coloured(&drawn(false)));
    }

    #[test]
    fn elsewhere_one_line_says_the_same() {
        assert_eq!(
            picture().line(),
            "aws down 0 %, 300 new/s · gcp up 100 %, 300 new/s, answer p50 118.3 ms · new sessions 1234 · ok 1200 · \
             failed 0 · long 50 · 53 died with their cloud"
        );
    }

    trait Text {
        fn assert_buffer_lines_text(&self, lines: &[&str]);
    }

    impl Text for TestBackend {
        fn assert_buffer_lines_text(&self, lines: &[&str]) {
            let width = usize::from(self.buffer().area.width);
            let symbols: Vec<_> = self.buffer().content().iter().map(ratatui::buffer::Cell::symbol).collect();
            let text: Vec<_> =
                symbols.chunks(width).map(|line| line.concat().trim_end().to_owned()).collect();
            assert_eq!(text, lines);
        }
    }
}
