//! The JSON Schema of the file: for editors, and for our own check, which walks a file along it.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<File>();
    let mut schema = schema.to_value();
    tell_defaults(&mut schema);
    schema
});

/// The schema of a config file (JSON Schema 2020-12).
#[must_use]
pub fn schema() -> Value {
    SCHEMA.clone()
}

pub(super) fn shared() -> &'static Value {
    &SCHEMA
}

/// The table that `schema` stands for, if it refers to one.
pub(super) fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix("#/$defs/"));
    name.and_then(|name| root.get("$defs")?.get(name)).unwrap_or(schema)
}

/// The default of a key in words, as a reader would write it.
pub(super) fn default_of(schema: &Value) -> Option<String> {
    let written = schema.get("default").map(|value| format!("`{value}`"));
    written.or_else(|| schema.get("x-default")?.as_str().map(str::to_owned))
}

/// Ends each description with the default, which editors show nowhere else.
fn tell_defaults(schema: &mut Value) {
    if let (Some(default), Some(description)) = (default_of(schema), schema.get("description")) {
        let description = description.as_str().unwrap_or_default().replace('\n', " ");
        let stop = if default.ends_with('`') || !default.ends_with('.') { "." } else { "" };
        let told = format!("{description} Default: {default}{stop}");
        if let Some(object) = schema.as_object_mut() {
            object.insert("description".to_owned(), told.into());
        }
    }
    match schema {
        Value::Object(object) => object.values_mut().for_each(tell_defaults),
        Value::Array(items) => items.iter_mut().for_each(tell_defaults),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
