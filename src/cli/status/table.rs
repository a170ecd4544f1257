//! Columns of text that line up, and numbers that fit into them.

use std::time::Duration;

/// A colour that repeats what a word already says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Paint {
    Plain,
    Good,
    Warning,
    Bad,
}

/// One place in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Cell {
    text: String,
    paint: Paint,
}

/// Which side of its column a cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Align {
    Left,
    Right,
}

/// A heading and rows; notes may stand under a row.
#[derive(Debug)]
pub(in crate::cli) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<(Vec<Cell>, Vec<String>)>,
}

impl Cell {
    /// Text from elsewhere: whatever could move a terminal's cursor is taken out.
    pub(in crate::cli) fn new(text: impl AsRef<str>) -> Self {
        Self { text: plain(text.as_ref()), paint: Paint::Plain }
    }

    /// With a colour, for terminals that show it.
    pub(in crate::cli) fn painted(text: impl AsRef<str>, paint: Paint) -> Self {
        Self { paint, ..Self::new(text) }
    }
}

impl Table {
    pub(in crate::cli) fn new(columns: impl IntoIterator<Item = (&'static str, Align)>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    pub(in crate::cli) fn row(&mut self, cells: Vec<Cell>, notes: Vec<String>) {
        self.rows.push((cells, notes));
    }

    /// True without rows.
    pub(in crate::cli) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes the table, each line behind `indent`. A column that is empty in every row is left out, and so
    /// is a table without rows.
    pub(in crate::cli) fn write(&self, out: &mut String, indent: &str, colours: bool) {
        if self.rows.is_empty() {
            return;
        }
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(at, column)| self.width(at, column.0)).collect();
        let heading: Vec<_> = self.columns.iter().map(|(name, _)| Cell::new(name)).collect();
        self.line(out, indent, &heading, &widths, false);
        for (row, notes) in &self.rows {
            self.line(out, indent, row, &widths, colours);
            for note in notes {
                out.push_str(&format!("{indent}    {}\n", plain(note)));
            }
        }
    }

    /// 0 for a column that is left out.
    fn width(&self, at: usize, heading: &str) -> usize {
        let widest =
            self.rows.iter().filter_map(|(row, _)| row.get(at)).map(|cell| cell.text.chars().count()).max();
        match widest {
            None | Some(0) => 0,
            Some(widest) => widest.max(heading.chars().count()),
        }
    }

    fn line(&self, out: &mut String, indent: &str, row: &[Cell], widths: &[usize], colours: bool) {
        let mut line = String::from(indent);
        let mut first = true;
        for ((cell, width), (_, align)) in row.iter().zip(widths).zip(&self.columns) {
            if *width == 0 {
                continue;
            }
            if !first {
                line.push_str("  ");
            }
            first = false;
            let padding = " ".repeat(width.saturating_sub(cell.text.chars().count()));
            let text = paint(&cell.text, cell.paint, colours);
            match align {
                Align::Left => line.extend([text, padding]),
                Align::Right => line.extend([padding, text]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// The text in its colour.
pub(in crate::cli) fn paint(text: &str, paint: Paint, colours: bool) -> String {
    let code = match paint {
        Paint::Plain => None,
        Paint::Good => Some(32),
        Paint::Warning => Some(33),
        Paint::Bad => Some(31),
    };
    match code {
        Some(code) if colours => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        Some(_) | None => text.to_owned(),
    }
}

/// Without control characters.
pub(in crate::cli) fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

/// At most five characters: `9999`, `12.3k`, `456k`, `1.2M`.
pub(in crate::cli) fn count(count: u64) -> String {
    if count < 10_000 {
        return count.to_string();
    }
    scaled(count as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// A rate: one decimal while that says something.
pub(in crate::cli) fn rate(rate: f64) -> String {
    if rate < 1000.0 {
        return if rate < 100.0 { format!("{rate:.1}") } else { format!("{rate:.0}") };
    }
    scaled(rate, 1000.0, &["", "k", "M", "G", "T"])
}

/// Bytes in powers of 1024.
pub(in crate::cli) fn bytes(bytes: f64) -> String {
    if bytes < 1024.0 {
        return format!("{bytes:.0} B");
    }
    scaled(bytes, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"])
}

fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut place = 0;
    // What would be rounded up to the next unit is written in it.
    while number >= step - 0.5 && place + 1 < units.len() {
        number /= step;
        place += 1;
    }
    let unit = units.get(place).copied().unwrap_or_default();
    if number < 99.95 { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
}

/// `12s`, `3m12s`, `4h05m`, `3d04h`.
pub(in crate::cli) fn duration(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (_, _, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        let counts = [(0, "0"), (9_999, "9999"), (12_345, "12.3k"), (456_789, "457k"), (999_999, "1.0M")];
        for (number, text) in counts {
            assert_eq!(count(number), text);
        }
        assert!(count(u64::MAX).len() <= 5, "{}", count(u64::MAX));
        assert_eq!([rate(0.0), rate(12.34), rate(123.4), rate(12_345.0)], ["0.0", "12.3", "123", "12.3k"]);
        assert_eq!(
            [bytes(0.0), bytes(1023.0), bytes(1024.0), bytes(150.0 * 1048576.0)],
            ["0 B", "1023 B", "1.0 KiB", "150 MiB"]
        );
        let durations =
            [(0.4, "0s"), (59.9, "59s"), (192.0, "3m12s"), (14_700.0, "4h05m"), (273_600.0, "3d04h")];
        for (seconds, text) in durations {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(-1.0), "0s");
    }

    #[test]
    fn columns_line_up_and_empty_ones_go() {
        let mut table = Table::new([("NAME", Align::Left), ("ZONE", Align::Left), ("N", Align::Right)]);
        table.row(vec![Cell::new("a"), Cell::new(""), Cell::new("1")], Vec::new());
        table.row(vec![Cell::new("b\u{1b}[2J\n"), Cell::new(""), Cell::new("100")], vec!["note".into()]);
        let mut out = String::new();
        table.write(&mut out, "  ", false);
        assert_eq!(out, "  NAME      N\n  a         1\n  b [2J   100\n      note\n");
    }
}
