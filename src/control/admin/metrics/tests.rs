//! The page against a strict reading of the OpenMetrics text format, and against the document about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::*;
use crate::control::{
    Failover,
    admin::{
        rates::Sampler,
        status,
        tests::{endpoint, overview, view},
    },
};

/// A sample: its name, its labels, its value.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads a page and refuses whatever the format does not allow. Returns the samples of each family.
fn check(page: &str) -> BTreeMap<String, (String, Vec<Sample>)> {
    let body = page.strip_suffix("# EOF\n").expect("ends with EOF");
    assert!(!body.contains("# EOF"), "one EOF");
    let mut families: BTreeMap<String, (String, Vec<Sample>)> = BTreeMap::new();
    let (mut current, mut seen) = (String::new(), BTreeSet::new());
    let mut helped = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help has a text");
            assert!(!help.is_empty() && !families.contains_key(name), "{line}: HELP once");
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "{line}: TYPE follows its HELP");
            assert!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
            let old = families.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
            assert!(old.is_none(), "{line}: TYPE once");
            name.clone_into(&mut current);
        } else {
            let sample = sample(line);
            let (kind, samples) = families.get_mut(&current).expect("a family is open");
            let suffix =
                sample.name.strip_prefix(&current).unwrap_or_else(|| panic!("{line}: not of {current}"));
            let suffixes: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                _ => &["_sum", "_count", "_bucket"],
            };
            assert!(suffixes.contains(&suffix), "{line}: a {kind} has no {suffix}");
            assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "{line}: twice");
            assert!(sample.value.is_finite() && (kind == "gauge" || sample.value >= 0.0), "{line}");
            samples.push(sample);
        }
    }
    for (name, (kind, samples)) in &families {
        if kind == "histogram" {
            histogram(name, samples);
        }
    }
    families
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a name ends");
    let (name, mut rest) = line.split_at(end);
    assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        assert!(!inside.starts_with('}'), "{line}: braces around nothing");
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").expect("a label has a value");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}: label {label} twice");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let value = rest.strip_prefix(' ').expect("one space before the value");
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

/// A label's value without its escapes, and what follows the closing quote.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next().expect("a closing quote") {
            '"' => return (value, chars.as_str()),
            '\\' => match chars.next().unwrap() {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                other => panic!("no such escape: {other}"),
            },
            other => value.push(other),
        }
    }
}

fn histogram(name: &str, samples: &[Sample]) {
    let mut sets: BTreeMap<BTreeMap<String, String>, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let mut key = sample.labels.clone();
        key.remove("le");
        sets.entry(key).or_default().push(sample);
    }
    for (labels, samples) in sets {
        let bucket = |sample: &&Sample| {
            let le = sample.labels.get("le")?;
            Some((if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() }, sample.value))
        };
        let buckets: Vec<_> = samples.iter().filter_map(bucket).collect();
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?}: {buckets:?}");
        let count = samples.iter().find(|sample| sample.name.ends_with("_count")).expect("a count");
        assert!(samples.iter().any(|sample| sample.name.ends_with("_sum")));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, count.value)), "{name} {labels:?}");
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The families of a page, to be asked for single values.
struct Shown(BTreeMap<String, (String, Vec<Sample>)>);

impl Shown {
    fn value(&self, family: &str, name: &str, wanted: &[(&str, &str)]) -> f64 {
        let samples = &self.0[family].1;
        let sample = samples.iter().find(|sample| sample.name == name && sample.labels == labels(wanted));
        sample.unwrap_or_else(|| panic!("{name} {wanted:?} in {samples:#?}")).value
    }

    fn counter(&self, family: &str, wanted: &[(&str, &str)]) -> f64 {
        self.value(family, &format!("{family}_total"), wanted)
    }

    fn gauge(&self, family: &str, wanted: &[(&str, &str)]) -> f64 {
        self.value(family, family, wanted)
    }
}

#[test]
fn the_page_is_open_metrics_and_says_what_the_cells_hold() {
    let shown = Shown(check(&page(&view()).unwrap()));
    let families = &shown.0;
    let value = |family: &str, name: &str, wanted: &[_]| shown.value(family, name, wanted);
    let counter = |family: &str, wanted: &[_]| shown.counter(family, wanted);
    let gauge = |family: &str, wanted: &[_]| shown.gauge(family, wanted);
    assert_eq!(counter("twinspan_connections_accepted", &[("listener", "pg"), ("transport", "tcp")]), 2.0);
    assert_eq!(counter("twinspan_connections_rejected", &[("listener", "pg"), ("reason", "exhausted")]), 1.0);
    let end = [("listener", "pg"), ("side", "upstream"), ("stage", "relay"), ("cause", "reset")];
    assert_eq!(counter("twinspan_connections_closed", &end), 1.0);
    assert_eq!(families["twinspan_connections_closed"].1.len(), 1, "only ends that were seen");
    let denied = [("listener", "pg"), ("reason", "denied")];
    assert_eq!(counter("twinspan_connections_refused", &denied), 0.0, "none yet is told too");
    let aws = [("pool", "db"), ("cloud", "aws")];
    assert_eq!(counter("twinspan_upstream_unanswered", &[aws[0], aws[1], ("sign", "mute")]), 0.0);
    let to_client = [aws[0], aws[1], ("direction", "to_client")];
    assert_eq!(counter("twinspan_transferred_bytes", &to_client), 4000.0);
    let refused = [aws[0], aws[1], ("reason", "refused")];
    assert_eq!(counter("twinspan_upstream_connect_failures", &refused), 1.0);
    let connects = "twinspan_upstream_connect_duration_seconds";
    assert_eq!(value(connects, &format!("{connects}_count"), &aws), 2.0);
    assert_eq!(value(connects, &format!("{connects}_bucket"), &[aws[0], aws[1], ("le", "0.0025")]), 0.0);
    assert_eq!(value(connects, &format!("{connects}_bucket"), &[aws[0], aws[1], ("le", "0.005")]), 2.0);
    let down = [aws[0], aws[1], ("endpoint", "[2001:db8::1]:5432")];
    assert_eq!(gauge("twinspan_endpoint_healthy", &down), 0.0);
    assert_eq!(counter("twinspan_endpoint_flaps", &down), 3.0);
    assert_eq!(counter("twinspan_ejections", &aws), 1.0);
    assert_eq!(
        counter("twinspan_ejections", &[("pool", "db"), ("cloud", "gcp")]),
        0.0,
        "none yet is told too"
    );
    for (standing, count) in [("in", 1.0), ("kept", 1.0), ("out", 0.0), ("trial", 0.0), ("new", 0.0)] {
        assert_eq!(
            gauge("twinspan_endpoints", &[aws[0], aws[1], ("standing", standing)]),
            count,
            "{standing}"
        );
    }
    assert_eq!(gauge("twinspan_cloud_up", &[("cloud", "aws")]), 0.0);
    assert_eq!(gauge("twinspan_cloud_up", &[("cloud", "gcp")]), 1.0, "one that comes back is used");
    assert_eq!(gauge("twinspan_cloud_share_ratio", &[("pool", "db"), ("cloud", "gcp")]), 0.3);
    assert_eq!(gauge("twinspan_checks_frozen", &[("pool", "db")]), 0.0);
    assert_eq!(gauge("twinspan_removals_held", &[("pool", "db"), ("reason", "floor")]), 1.0);
    assert_eq!(families["twinspan_removals_held"].1.len(), 7, "every reason");
    assert_eq!(gauge("twinspan_pool_out_ratio", &[("pool", "db"), ("by", "ejected")]), 0.25);
    assert_eq!(gauge("twinspan_upstream_connections_active", &down), 1.0);
    assert_eq!(gauge("twinspan_route_weight_ratio", &aws), 1.0);
    let gcp = [("pool", "db"), ("cloud", "gcp")];
    assert_eq!(gauge("twinspan_route_weight_ratio", &gcp), 0.0, "one that gets nothing is told too");
    assert_eq!(counter("twinspan_failovers", &[("pool", "db"), ("from", "aws"), ("to", "gcp")]), 1.0);
    for (from, to) in [("gcp", "aws"), ("gcp", "none"), ("none", "gcp")] {
        let told = counter("twinspan_failovers", &[("pool", "db"), ("from", from), ("to", to)]);
        assert_eq!(told, 0.0, "from {from} to {to}: none yet is told too");
    }
    assert_eq!(counter("twinspan_config_reloads", &[("result", "refused")]), 1.0);
    assert_eq!(gauge("twinspan_config_last_reload_successful", &[]), 0.0);
    assert!(gauge("twinspan_config_last_reload_success_timestamp_seconds", &[]) > 1.7e9);
    assert_eq!(gauge("twinspan_generation", &[]), 7.0);
    assert!(gauge("process_open_fds", &[]) > 0.0);
    assert_eq!(families["twinspan_build"].1[0].name, "twinspan_build_info");
}

#[test]
fn the_page_tells_of_handshakes_refusals_and_certificates() {
    let shown = Shown(check(&page(&view()).unwrap()));
    let counter = |family: &str, wanted: &[_]| shown.counter(family, wanted);
    let gauge = |family: &str, wanted: &[_]| shown.gauge(family, wanted);
    assert_eq!(counter("twinspan_tls_handshakes", &[("listener", "pg"), ("result", "resumed")]), 1.0);
    assert_eq!(counter("twinspan_upstream_tls_handshakes", &[("pool", "db"), ("result", "unknown_ca")]), 1.0);
    assert_eq!(counter("twinspan_refused_entries", &[("listener", "pg"), ("reason", "no_route")]), 1.0);
    let owner = [("listener", "pg"), ("pool", "")];
    let file = [owner[0], owner[1], ("file", "/tls/a.pem")];
    assert_eq!(gauge("twinspan_certificate_expiry_timestamp_seconds", &file), 4e9, "the first to expire");
    assert_eq!(gauge("twinspan_certificate_reload_failed", &owner), 1.0);
    assert_eq!(gauge("twinspan_certificate_reload_failed", &[("listener", ""), ("pool", "db")]), 0.0);
}

#[test]
fn names_that_do_not_resolve_are_told() {
    let text = "version = 1\ncloud.aws = {}\n[[pool]]\nname = \"db\"\nendpoint = [\
        { address = \"a.test:1\", cloud = \"aws\" }, { address = \"b.test:2\", cloud = \"aws\" }, \
        { address = \"10.0.0.1:3\", cloud = \"aws\" }]";
    let view = view();
    let config = Arc::new(crate::config::parse(text, "test").unwrap().config);
    view.overview.store(Arc::new(Overview { config, ..overview(Vec::new()) }));
    view.names.failed("b.test:2".into());
    let shown = Shown(check(&page(&view).unwrap()));
    let gauge = |name| shown.gauge("twinspan_name_failing", &[("pool", "db"), ("name", name)]);
    assert_eq!((gauge("a.test:1"), gauge("b.test:2")), (0.0, 1.0));
    assert_eq!(shown.0["twinspan_name_failing"].1.len(), 2, "no name, no line");
    let status = status::status(&view, &Sampler::default());
    let failing: Vec<_> = status.pools[0].failing.keys().collect();
    assert_eq!(failing, ["b.test:2"]);
}

#[test]
fn label_values_are_escaped() {
    let (view, nasty) = (view(), "a\"b\\c\nd} e=\"f");
    view.failed_over(Failover { pool: "db".into(), from: nasty.into(), to: "gcp".into() });
    let families = check(&page(&view).unwrap());
    assert!(families["twinspan_failovers"].1.iter().any(|sample| sample.labels["from"] == nasty));
}

#[test]
fn the_cap_drops_the_detail_and_says_so() {
    let view = view();
    let many = (0..200).map(|n| endpoint("db", "aws", &format!("10.0.0.{n}:1"))).collect();
    view.overview.store(Arc::new(overview(many)));
    let whole = check(&page(&view).unwrap());
    let series = |families: &BTreeMap<String, (String, Vec<Sample>)>| {
        families.values().map(|(_, samples)| samples.len()).sum::<usize>()
    };
    assert_eq!(whole["twinspan_metrics_series_dropped"].1[0].value, 0.0);
    let cap = 300;
    let dropped = (series(&whole) - cap) as f64;
    for scrape in [1.0, 2.0] {
        let capped = check(&written(&view, cap).unwrap().0);
        assert_eq!(series(&capped), cap);
        assert_eq!(capped["twinspan_metrics_series_dropped"].1[0].value, scrape * dropped);
        assert_eq!(capped["twinspan_pool_all_down"].1.len(), 1, "what is said of pools stays");
    }
}

/// `REGENERATE=1 cargo test metrics_document` writes the document anew.
#[test]
fn the_metrics_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let wanted = document(&written(&view(), SERIES).unwrap().1);
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/metrics.md is old: REGENERATE=1 cargo test metrics_document");
}

/// What somebody should be woken or told by.
const ALERTS: &str = "
## Alerts

For Prometheus. What somebody must do something about, and what it then says.

```yaml
groups:
  - name: twinspan
    rules:
      - alert: TwinspanCertificateExpires
        # Identities of SPIFFE live for an hour or so: an agent that renews none is the next alert.
        expr: twinspan_certificate_expiry_timestamp_seconds{file!~\"(unix|tcp):.*\"} - time() < 14 * 86400
        for: 1h
        annotations: { summary: \"{{ $labels.file }} expires in {{ $value | humanizeDuration }}\" }
      - alert: TwinspanCertificateNotReloaded
        expr: twinspan_certificate_reload_failed == 1
        for: 5m
        annotations: { summary: \"what is new for the TLS of {{ $labels.listener }}{{ $labels.pool }} is wrong or does not come, the old stays\" }
      - alert: TwinspanHandshakesFail
        expr: >
          sum by (listener) (rate(twinspan_tls_handshakes_total{result!~\"ok|resumed|closed|reset\"}[5m]))
          > 0.1 * sum by (listener) (rate(twinspan_tls_handshakes_total[5m]))
        for: 10m
      - alert: TwinspanEndpointHandshakesFail
        expr: sum by (pool, result) (rate(twinspan_upstream_tls_handshakes_total{result!~\"ok|resumed\"}[5m])) > 0
        for: 10m
      - alert: TwinspanReloadRefused
        expr: twinspan_config_last_reload_successful == 0
        for: 5m
      - alert: TwinspanPoolDown
        expr: twinspan_pool_all_down == 1
        for: 1m
      - alert: TwinspanNameFails
        expr: twinspan_name_failing == 1
        for: 5m
        annotations: { summary: \"{{ $labels.name }} (pool {{ $labels.pool }}) does not resolve: its last addresses stay in use\" }
```
";

fn document(families: &[Family]) -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         `GET /metrics` on the telemetry listener (and on the admin API) answers in the OpenMetrics text format. A\n\
         histogram has samples with the suffixes `_bucket`, `_sum` and `_count`. Counters start at 0 with the process.\n\
         A pool's counters stay whole when an endpoint leaves it. A page has at most 20,000 series; families of single\n\
         endpoints come last and are cut first.\n\n\
         Written by a test; `REGENERATE=1 cargo test metrics_document` writes it anew.\n\n\
         | name | type | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    for family in families {
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let row =
            format!("| `{}` | {} | {} | {} |\n", family.name, family.kind, labels.join(", "), family.help);
        text.push_str(&row);
    }
    text.push_str(ALERTS);
    text
}
