//! The walk over a file along the schema: every key and every value on its own, so that one mistake hides no other.
//! What is wrong is told and taken out; what is left can be deserialized.

use std::{collections::HashSet, ops::Range};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    super::{
        problem::{Code, Problem, similar},
        schema::{resolve, shared},
        values,
        words::plain,
    },
    place::{Place, homes},
};

/// Stands for the file as a whole where a table is meant by its start.
pub(super) const ROOT: usize = usize::MAX;

/// What the walk found.
#[derive(Default)]
pub(super) struct Sifted {
    /// What is wrong, in no order.
    pub(super) problems: Vec<Problem>,
    lost: HashSet<(usize, String)>,
}

impl Sifted {
    /// True if the table that starts at `table` ([`ROOT`] for the file) has `key`, but with a value that could not be
    /// used.
    pub(super) fn lost(&self, table: usize, key: &str) -> bool {
        !self.lost.is_empty() && self.lost.contains(&(table, key.to_owned()))
    }
}

/// Takes out of `tree` what is wrong. `broken` are the offsets of values that are not TOML.
pub(super) fn sift(tree: &mut Spanned<DeTable<'_>>, broken: &[usize]) -> Sifted {
    let mut walk = Walk { root: shared(), broken, found: Sifted::default() };
    walk.table(tree.get_mut(), &(0..0), shared(), &Place::root());
    walk.found
}

struct Walk<'a> {
    root: &'a Value,
    broken: &'a [usize],
    found: Sifted,
}

impl Walk<'_> {
    /// False if anything had to go.
    fn table(
        &mut self,
        table: &mut DeTable<'_>,
        at: &Range<usize>,
        schema: &Value,
        place: &Place<'_>,
    ) -> bool {
        let mut whole = true;
        let id = if place.is_root() { ROOT } else { at.start };
        let properties = schema.get("properties").and_then(Value::as_object);
        let names = schema.get("propertyNames");
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        let mut sifted = DeTable::new();
        for (key, mut value) in std::mem::take(table) {
            let name: &str = key.get_ref();
            if let Some(names) = names {
                whole &= self.text(name, name, &key.span(), names);
            }
            let Some(schema) = properties.and_then(|known| known.get(name)).or(others) else {
                self.unknown(name, key.span(), schema, place);
                whole = false;
                continue;
            };
            if self.value(&mut value, resolve(schema, self.root), &place.under(name)) {
                sifted.insert(key, value);
            } else {
                self.found.lost.insert((id, name.to_owned()));
                whole = false;
            }
        }
        *table = sifted;
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if !table.contains_key(key) && !self.found.lost(id, key) {
                self.missing(key, at, properties.and_then(|known| known.get(key)), place);
            }
        }
        whole
    }

    /// False if the value must go.
    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, schema: &Value, place: &Place<'_>) -> bool {
        let span = value.span();
        let schema = match schema.get("anyOf").and_then(Value::as_array) {
            Some(choices) => {
                choices.iter().find(|choice| type_of(choice) == json_type(value.get_ref())).unwrap_or(schema)
            }
            None => schema,
        };
        match (type_of(schema), value.get_mut()) {
            ("object", DeValue::Table(table)) => {
                let whole = self.table(table, &span, schema, place);
                // One bad share spoils the shares; one bad key does not spoil a table of settings.
                whole || schema.get("additionalProperties").is_none_or(|others| type_of(others) != "integer")
            }
            ("array", DeValue::Array(items)) => {
                let before = items.len();
                let item = schema.get("items").map_or(schema, |items| resolve(items, self.root));
                *items = std::mem::replace(items, DeArray::new())
                    .into_iter()
                    .filter_map(|mut value| self.value(&mut value, item, &place.item()).then_some(value))
                    .collect();
                let enough = u64::try_from(before).ok() >= schema.get("minItems").and_then(Value::as_u64);
                if !enough {
                    self.missing(place.name, &span, None, &place.holder());
                }
                enough && (items.len() == before || type_of(item) == "object")
            }
            (_, DeValue::Table(_) | DeValue::Array(_)) => self.wrong_type(value, &span, schema, place),
            _ if self.is_broken(&span) => false,
            ("string", DeValue::String(text)) => self.text(place.name, text, &span, schema),
            ("integer", DeValue::Integer(number)) => {
                let number = i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX);
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "limits are small, and so is what is within them"
                )]
                self.range(place.name, number as f64, &span, schema)
            }
            ("number", DeValue::Float(number)) => {
                self.range(place.name, number.as_str().parse().unwrap_or(f64::NAN), &span, schema)
            }
            ("number", DeValue::Integer(number)) => {
                self.range(place.name, number.as_str().parse().unwrap_or(f64::NAN), &span, schema)
            }
            ("boolean", DeValue::Boolean(_)) => true,
            _ => self.wrong_type(value, &span, schema, place),
        }
    }

    fn text(&mut self, name: &str, text: &str, span: &Range<usize>, schema: &Value) -> bool {
        if let Some(words) = schema.get("enum").and_then(Value::as_array) {
            return self.word(name, text, span, words);
        }
        let kind = schema.get("x-text").and_then(Value::as_str).unwrap_or_default();
        if let Err(mistake) = values::check(kind, text) {
            let label = format!("not {}", values::noun(kind));
            self.tell(
                Problem::at(mistake.code, span.clone(), format!("bad `{name}`: {}", mistake.what))
                    .label(label)
                    .hint(mistake.hint),
            );
            return false;
        }
        schema.get("x-below").is_none() || self.time(name, text, span, schema)
    }

    fn word(&mut self, name: &str, text: &str, span: &Range<usize>, words: &[Value]) -> bool {
        let word = plain(text);
        let words = || words.iter().filter_map(Value::as_str);
        if words().any(|known| plain(known) == word) {
            return true;
        }
        let mut known: Vec<&str> = Vec::new();
        for word in words() {
            if !known.iter().any(|first| plain(first) == plain(word)) {
                known.push(word);
            }
        }
        let hint = match similar(text, known.iter().copied()) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => format!("write one of \"{}\"", known.join("\", \"")),
        };
        self.tell(
            Problem::at(Code::BadValue, span.clone(), format!("bad `{name}`: `{text}` is not known"))
                .label("not one of its words")
                .hint(hint),
        );
        false
    }

    fn time(&mut self, name: &str, text: &str, span: &Range<usize>, schema: &Value) -> bool {
        let limit = |key: &str| {
            let text = schema.get(key)?.as_str()?;
            values::time(text).ok().map(|time| (time, text))
        };
        let Ok(time) = values::time(text) else {
            return false;
        };
        let wrong = match (limit("x-min"), limit("x-below")) {
            (Some((least, text)), _) if time < least => Some(format!("at least {text}")),
            (_, Some((limit, text))) if time >= limit => Some(format!("shorter than {text}")),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let what = format!("`{name}` must be {wrong}, not {text}");
            self.tell(Problem::at(Code::OutOfRange, span.clone(), what).label("out of range"));
            return false;
        }
        if let Some((_, long)) = limit("x-long").filter(|(long, _)| time > *long) {
            let what = format!("`{name}` is longer than {long}");
            self.tell(
                Problem::at(Code::LongTime, span.clone(), what)
                    .label("unusually long")
                    .hint("check the unit: ms, s, m, h".to_owned()),
            );
        }
        true
    }

    fn range(&mut self, name: &str, number: f64, span: &Range<usize>, schema: &Value) -> bool {
        let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
        let (least, most) = (limit("minimum").unwrap_or(f64::MIN), limit("maximum").unwrap_or(f64::MAX));
        if (least..=most).contains(&number) {
            return true;
        }
        let what = if limit("maximum").is_some() {
            format!("`{name}` must be {least} to {most}")
        } else {
            format!("`{name}` must be at least {least}")
        };
        self.tell(Problem::at(Code::OutOfRange, span.clone(), what).label("out of range"));
        false
    }

    fn unknown(&mut self, name: &str, span: Range<usize>, schema: &Value, place: &Place<'_>) {
        let known = || schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        let hint = if let Some(homes) = homes(name, self.root) {
            format!("`{name}` belongs to {homes}")
        } else if let Some(word) = similar(name, known().map(|(key, _)| key.as_str())) {
            format!("did you mean `{word}`?")
        } else {
            let keys: Vec<&str> = known().map(|(key, _)| key.as_str()).collect();
            format!("known keys: {}", keys.join(", "))
        };
        let what = format!("unknown key `{name}` {place}");
        self.tell(Problem::at(Code::UnknownKey, span, what).label("no such key").hint(hint));
    }

    fn missing(&mut self, name: &str, at: &Range<usize>, schema: Option<&Value>, place: &Place<'_>) {
        let problem = if name == "endpoint" {
            Problem::at(Code::NoEndpoints, at.clone(), "this pool has no endpoints")
                .hint("add a [[pool.endpoint]] with `address` and `cloud`".to_owned())
        } else {
            let example = schema.and_then(|schema| schema.get("examples")?.get(0));
            Problem::at(Code::MissingKey, at.clone(), format!("`{name}` is missing {place}"))
                .hint(example.map(|example| format!("add `{name} = {example}`")))
        };
        self.tell(problem);
    }

    fn wrong_type(
        &mut self,
        value: &mut Spanned<DeValue<'_>>,
        span: &Range<usize>,
        schema: &Value,
        place: &Place<'_>,
    ) -> bool {
        let wanted = wanted(schema);
        let found = match json_type(value.get_ref()) {
            "object" => "a table",
            "array" => "a list",
            "integer" => "a bare integer",
            "number" => "a bare number",
            "boolean" => "a boolean",
            "date" => "a date",
            _ => "a text",
        };
        let hint = type_hint(value.get_ref(), schema, place);
        self.tell(
            Problem::at(
                Code::WrongType,
                span.clone(),
                format!("`{}` must be {wanted}, not {found}", place.name),
            )
            .label(format!("expected {wanted}"))
            .hint(hint),
        );
        // A single `[pool]` in place of `[[pool]]` is read all the same, for what else is wrong in it.
        if let (DeValue::Table(table), Some(items)) = (value.get_mut(), schema.get("items")) {
            let items = resolve(items, self.root);
            if type_of(items) == "object" {
                self.table(table, span, items, &place.item());
            }
        }
        false
    }

    fn is_broken(&self, span: &Range<usize>) -> bool {
        let next = self.broken.partition_point(|offset| *offset < span.start);
        self.broken.get(next).is_some_and(|offset| *offset <= span.end)
    }

    fn tell(&mut self, problem: Problem) {
        self.found.problems.push(problem);
    }
}

fn type_of(schema: &Value) -> &str {
    schema.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn json_type(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Float(_) => "number",
        DeValue::Boolean(_) => "boolean",
        DeValue::Datetime(_) => "date",
        DeValue::Array(_) => "array",
        DeValue::Table(_) => "object",
    }
}

fn wanted(schema: &Value) -> String {
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        return choices.iter().map(wanted).collect::<Vec<_>>().join(" or ");
    }
    match type_of(schema) {
        "object" => "a table",
        "array" => "a list",
        "integer" => "an integer",
        "number" => "a number",
        "boolean" => "true or false",
        _ => schema.get("x-text").and_then(Value::as_str).map_or("a text", values::noun),
    }
    .to_owned()
}

fn type_hint(value: &DeValue<'_>, schema: &Value, place: &Place<'_>) -> Option<String> {
    let number = match value {
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
        DeValue::Float(number) => Some(number.as_str()),
        _ => None,
    };
    let text = value.as_str().unwrap_or_default();
    match (type_of(schema), json_type(value)) {
        ("array", "object") => Some(format!("write [{place:?}]")),
        ("object", "array") if schema.get("propertyNames").is_some() => {
            Some(format!("write [{}.NAME]", place.name))
        }
        ("object", "array") => Some(format!("write {place:?}")),
        ("array", "string") => Some(format!("write [\"{text}\"]")),
        ("array", _) => number.map(|number| format!("write [{number}]")),
        ("string", _) => {
            let kind = schema.get("x-text").and_then(Value::as_str)?;
            match values::check(kind, number?) {
                Ok(()) => number.map(|number| format!("write \"{number}\"")),
                Err(mistake) => mistake.hint,
            }
        }
        ("integer" | "number", "string") if text.parse::<f64>().is_ok() => Some(format!("write {text}")),
        ("boolean", "string") if matches!(text, "true" | "false") => Some(format!("write {text}")),
        _ => None,
    }
}
