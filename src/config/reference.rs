//! `docs/config.md`, made from the schema: what it says is what is checked.

use std::{fmt::Write as _, fs, path::Path};

use serde_json::Value;

use super::{
    problem::Code,
    schema::{resolve, schema},
};

const HEAD: &str = "\
# The config file

<!-- Made from src/config/file/; do not edit. To write it anew: BLESS=1 cargo test --lib the_reference -->

One TOML file holds everything. `twinspan check FILE` tells of every problem in it in one run, with line, column and a
hint, and exits with 78 if it cannot be served. `twinspan config show --effective -c FILE` spells out every default.
`twinspan schema` prints the JSON Schema, with which editors complete and check the file. Worked examples are in
`config/`.

Flags go before the environment (`TWINSPAN_CONFIG`, `TWINSPAN_ADMIN`, `TWINSPAN_LOG`), that goes before the file, and
the file before the defaults. A key that is not known is refused, and so is a file that is not there.

- A *time* is a text with a unit: `\"250ms\"`, `\"5s\"`, `\"1h 30m\"`. A bare number is refused. One of more than an hour
  is told of as a warning, where it is unusual.
- A *name* has 1 to 64 letters, digits and `. _ - : [ ]`: it stands in logs and labels.
- A *size* is a text with a unit: `\"256KiB\"`, `\"4MiB\"`.
- An *address* is `IP:PORT`; IPv6 stands in brackets: `[2001:db8::1]:443`. `tcp://` may stand before it.
- In words such as `least-sessions`, `-` and `_` are the same.

The shortest file that does something:

```toml
version = 1
[cloud.aws]
[cloud.gcp]
[[pool]]
name = \"db\"
health.tcp = {}
endpoint = [{ address = \"192.0.2.10:5432\", cloud = \"aws\" }, { address = \"198.51.100.10:5432\", cloud = \"gcp\" }]
[[listener]]
bind = \"0.0.0.0:5432\"
pool = \"db\"
```
";

fn reference() -> String {
    let root = schema();
    let mut out = HEAD.to_owned();
    section(&mut out, &root, &root, "");
    out += "\n## Problems\n\nWhat `check` tells of. A code never changes its meaning; from TS1100 on they are warnings.\n\n";
    for (code, meaning) in Code::ALL {
        writeln!(out, "- **{}**{meaning}", code.as_str()).unwrap();
    }
    out
}

fn section(out: &mut String, schema: &Value, root: &Value, path: &str) {
    let header = if path.is_empty() { "The top level".to_owned() } else { format!("`{path}`") };
    writeln!(out, "\n## {header}\n\n{}", words(schema)).unwrap();
    let inner = path.trim_matches(['[', ']']);
    let under = |key: &str| if inner.is_empty() { key.to_owned() } else { format!("{inner}.{key}") };
    let mut tables = Vec::new();
    let mut blank = "\n";
    for (key, property) in schema["properties"].as_object().unwrap() {
        let target = resolve(property, root);
        if target.get("properties").is_some() {
            tables.push((target, format!("[{}]", under(key))));
        } else if let Some(items) = table_of(target.get("items"), root) {
            tables.push((items, format!("[[{}]]", under(key))));
        } else if let Some(values) = table_of(target.get("additionalProperties"), root) {
            tables.push((values, format!("[{}.NAME]", under(key))));
        } else {
            let required =
                schema["required"].as_array().is_some_and(|keys| keys.contains(&Value::from(key.as_str())));
            let required = if required { ", required" } else { "" };
            writeln!(out, "{blank}- **`{key}`** ({}{required}). {}", kind(target), words(property)).unwrap();
            blank = "";
        }
    }
    for (table, path) in tables {
        section(out, table, root, &path);
    }
}

fn table_of<'a>(schema: Option<&'a Value>, root: &'a Value) -> Option<&'a Value> {
    schema.map(|schema| resolve(schema, root)).filter(|schema| schema.get("properties").is_some())
}

fn words(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

fn kind(schema: &Value) -> String {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let limits = match (&schema["minimum"], &schema["maximum"]) {
        (least, most) if least.is_number() && most.is_number() => format!(", {least} to {most}"),
        _ => String::new(),
    };
    let times = match (schema["x-min"].as_str(), schema["x-below"].as_str()) {
        (Some(least), Some(below)) => format!(", {least} to less than {below}"),
        _ => String::new(),
    };
    match schema["type"].as_str().unwrap() {
        "array" => format!("list of {}", kind(&schema["items"])),
        "object" => format!("table of {}", kind(&schema["additionalProperties"])),
        "string" if schema["enum"].is_array() => "word".to_owned(),
        "string" => {
            let kind = match schema["x-text"].as_str().unwrap() {
                "time" | "long-time" => "time",
                "seconds" => "time, whole seconds",
                "name" => "name",
                "bind" | "admin-bind" | "telemetry-bind" | "address" => "address",
                "decimal" => "decimal number in quotes",
                "size" => "size",
                "source" => "IP address",
                "dscp" => "class in quotes",
                "http-status" => "class or range in quotes",
                _ => "text",
            };
            format!("{kind}{times}")
        }
        other => format!("{other}{limits}"),
    }
}

#[test]
fn the_reference_says_what_is_checked() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
    let made = reference();
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made,
        "docs/config.md is old; write it anew with BLESS=1 cargo test --lib the_reference"
    );
}

#[test]
fn every_key_and_table_is_described() {
    let root = schema();
    let mut undescribed = Vec::new();
    let mut look = |name: &str, schema: &Value| {
        if words(schema).len() < 5 {
            undescribed.push(name.to_owned());
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            if words(property).is_empty() {
                undescribed.push(format!("{name}.{key}"));
            }
            let target = resolve(property, &root);
            let leaf =
                ["properties", "items", "additionalProperties"].iter().all(|key| target.get(*key).is_none());
            let required =
                schema["required"].as_array().is_some_and(|keys| keys.contains(&Value::from(key.as_str())));
            if leaf && !required && !words(property).contains("Default: ") {
                undescribed.push(format!("default of {name}.{key}"));
            }
        }
    };
    look("file", &root);
    for (name, table) in root["$defs"].as_object().unwrap() {
        look(name, table);
    }
    assert_eq!(undescribed, Vec::<String>::new());
}

#[test]
fn the_shortest_file_of_the_reference_is_right() {
    let text = HEAD.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let loaded = super::parse(text, "shortest.toml").unwrap();
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
}
