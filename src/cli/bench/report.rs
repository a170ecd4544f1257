//! What came out, as text and as one JSON object.

use std::{process::ExitCode, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::{
    cli::check,
    lab::load::{Failures, Tally},
};

/// Everything there is to say about a run. Settings come first, then the figures of the verb.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) json: bool,
    /// What was to be done, in one line.
    pub(super) title: String,
    /// The settings, as fields.
    pub(super) settings: Value,
    /// What the verb makes of its tally.
    pub(super) figures: Figures,
    pub(super) failures: Failures,
    pub(super) elapsed: Duration,
    pub(super) interrupted: bool,
    /// Why it is no success, if it is none.
    pub(super) error: Option<String>,
}

/// The figures of a verb.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// As fields.
    pub(super) fields: Value,
    /// As lines: what, how much.
    pub(super) lines: Vec<(&'static str, String)>,
}

impl Report {
    /// Prints it. Success means that there is no error and that no byte was wrong.
    pub(super) fn print(&self) -> ExitCode {
        let code = if self.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        let code = match self.json {
            true => check::print(&format!("{:#}\n", self.object()), code),
            // Where nothing was done there are no figures.
            false if self.elapsed.is_zero() => code,
            false => check::print(&self.text(), code),
        };
        if let Some(error) = &self.error {
            super::say(&format!("error: {error}"));
        }
        code
    }

    fn is_ok(&self) -> bool {
        self.error.is_none() && self.failures.wrong_bytes == 0
    }

    fn object(&self) -> Value {
        let mut errors = json!(self.failures);
        put(&mut errors, json!({ "total": self.failures.total() }));
        let mut object = self.settings.clone();
        put(
            &mut object,
            json!({
                "ok": self.is_ok(),
                "interrupted": self.interrupted,
                "error": self.error.as_deref(),
                "elapsed_s": self.elapsed.as_secs_f64(),
            }),
        );
        put(&mut object, self.figures.fields.clone());
        put(&mut object, json!({ "errors": errors }));
        object
    }

    fn text(&self) -> String {
        let interrupted = if self.interrupted { ", interrupted" } else { "" };
        let took = format!("{:.1} s{interrupted}", self.elapsed.as_secs_f64());
        let lines = [("measured", took)]
            .into_iter()
            .chain(self.figures.lines.iter().cloned())
            .chain([("errors", failures(&self.failures))]);
        let lines: Vec<_> = lines.map(|(what, text)| format!("  {what:<10} {text}\n")).collect();
        format!("{}\n{}", self.title, lines.concat())
    }
}

/// Adds the fields of an object to another.
pub(super) fn put(object: &mut Value, more: Value) {
    if let (Some(fields), Value::Object(more)) = (object.as_object_mut(), more) {
        fields.extend::<Map<String, Value>>(more);
    }
}

/// The quantiles of a histogram of nanoseconds, in microseconds; null where there is nothing.
pub(super) fn quantiles(histogram: &Histogram<u64>) -> Value {
    let some = |value: f64| (!histogram.is_empty()).then_some(value);
    let at = |quantile| some(microseconds(histogram.value_at_quantile(quantile)));
    json!({
        "count": histogram.len(),
        "mean": some(histogram.mean().round() / 1e3),
        "p50": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "p99_9": at(0.999),
        "max": some(microseconds(histogram.max())),
    })
}

/// The same as a line.
pub(super) fn quantiles_line(histogram: &Histogram<u64>) -> String {
    if histogram.is_empty() {
        return "none".to_owned();
    }
    let at = |quantile| time(histogram.value_at_quantile(quantile));
    format!(
        "p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        time(histogram.max())
    )
}

/// Units a second.
pub(super) fn per_second(units: u64, tally: &Tally) -> f64 {
    let seconds = tally.elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "more than 2^53 of anything will not be counted")]
    if seconds > 0.0 { units as f64 / seconds } else { 0.0 }
}

/// Bytes a second as Gbit/s.
pub(super) fn gigabits(bytes: u64, tally: &Tally) -> f64 {
    per_second(bytes, tally) * 8e-9
}

/// A number of bytes, for people.
pub(super) fn bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().si().to_string()
}

/// Each kind that happened.
fn failures(failures: &Failures) -> String {
    let kinds: Vec<_> = failures
        .kinds()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(failure, count)| format!("{count} {failure}"))
        .collect();
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn microseconds(nanoseconds: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a histogram has three digits")]
    let nanoseconds = nanoseconds as f64;
    nanoseconds / 1e3
}

fn time(nanoseconds: u64) -> String {
    let microseconds = microseconds(nanoseconds);
    match microseconds {
        short if short < 1e3 => format!("{short:.1} us"),
        middle if middle < 1e6 => format!("{:.2} ms", middle / 1e3),
        long => format!("{:.2} s", long / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failures: Failures, error: Option<&str>) -> Report {
        Report {
            json: true,
            title: "rr 127.0.0.1:1".to_owned(),
            settings: json!({ "bench": "rr" }),
            figures: Figures { fields: json!({ "requests": 7 }), lines: vec![("requests", "7".to_owned())] },
            failures,
            elapsed: Duration::from_millis(1500),
            interrupted: false,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::new_with_bounds(100, 600_000_000_000, 3).unwrap();
        (1..=1000).for_each(|millisecond| histogram.record(millisecond * 1_000_000).unwrap());
        let object = quantiles(&histogram);
        for (name, wanted) in [
            ("p50", 500e3),
            ("p90", 900e3),
            ("p99", 990e3),
            ("p99_9", 999e3),
            ("max", 1e6),
            ("mean", 500.5e3),
        ] {
            let found = object[name].as_f64().unwrap();
            assert!((found / wanted - 1.0).abs() < 0.002, "{name}: {found}, not {wanted}");
        }
        assert_eq!(object["count"], 1000);
        assert!(
            quantiles_line(&histogram).starts_with("p50 500.17 ms  p90 900"),
            "{}",
            quantiles_line(&histogram)
        );
        histogram.reset();
        assert_eq!(
            (quantiles_line(&histogram).as_str(), &quantiles(&histogram)["max"]),
            ("none", &json!(null))
        );
    }

    #[test]
    fn an_object_has_the_settings_the_figures_and_the_errors() {
        let object = report(Failures { reset: 2, refused: 1, ..Failures::default() }, None).object();
        assert_eq!((&object["bench"], &object["requests"]), (&json!("rr"), &json!(7)));
        assert_eq!(
            (&object["ok"], &object["error"], &object["elapsed_s"]),
            (&json!(true), &json!(null), &json!(1.5))
        );
        assert_eq!((&object["errors"]["reset"], &object["errors"]["total"]), (&json!(2), &json!(3)));
    }

    #[test]
    fn wrong_bytes_and_nothing_at_all_are_failures() {
        assert!(report(Failures { reset: 2, ..Failures::default() }, None).is_ok());
        assert!(!report(Failures { wrong_bytes: 1, ..Failures::default() }, None).is_ok());
        assert!(!report(Failures::default(), Some("nothing worked")).is_ok());
    }

    #[test]
    fn the_text_names_each_kind_of_error() {
        let text = report(Failures { reset: 2, timed_out: 1, ..Failures::default() }, None).text();
        let wanted =
            "rr 127.0.0.1:1\n  measured   1.5 s\n  requests   7\n  errors     2 reset, 1 timed out\n";
        assert_eq!(text, wanted);
    }
}
