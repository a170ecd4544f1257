//! How the keys of the file hold their values: each with its place, so that a later check can point at it.

use std::{borrow::Cow, fmt, marker::PhantomData, ops::Range};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use toml::Spanned;

use super::values::{DscpText, Name, StatusText};
use crate::net::Dscp;

macro_rules! schema_of {
    ($outer:ident, $inner:ident) => {
        impl<$inner: JsonSchema> JsonSchema for $outer<$inner> {
            fn inline_schema() -> bool {
                $inner::inline_schema()
            }

            fn schema_name() -> Cow<'static, str> {
                $inner::schema_name()
            }

            fn schema_id() -> Cow<'static, str> {
                $inner::schema_id()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                $inner::json_schema(generator)
            }
        }
    };
}

/// A key that may be left out.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Key<T>(Option<Spanned<T>>);

schema_of!(Key, T);

impl<T> Default for Key<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Key<T> {
    /// The value, if the key is there.
    pub(super) fn get(&self) -> Option<&T> {
        self.0.as_ref().map(Spanned::get_ref)
    }

    /// Where the value stands, if the key is there.
    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.0.as_ref().map(Spanned::span)
    }
}

/// `[...]`, or one `[[table]]` after the other.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Items<T>(pub(super) Vec<Spanned<T>>);

impl<T: JsonSchema> JsonSchema for Items<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Owned(format!("Items_of_{}", T::schema_name()))
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": generator.subschema_for::<T>() })
    }
}

/// A table whose keys are names that the operator chose, in the order of the file.
pub(super) struct Named<T>(pub(super) Vec<(Spanned<String>, Spanned<T>)>);

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Owned(format!("Named_{}", T::schema_name()))
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "additionalProperties": generator.subschema_for::<T>(),
            "propertyNames": Name::json_schema(generator),
        })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}

struct NamedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NamedVisitor<T> {
    type Value = Named<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::<(Spanned<String>, Spanned<T>)>::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        entries.sort_by_key(|(name, _)| name.span().start);
        Ok(Named(entries))
    }
}

/// The share of a cloud.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Share(pub(super) u32);

impl JsonSchema for Share {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Share")
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 0, "maximum": 1000 })
    }
}

/// A status code, or several as a text, as an inclusive range.
pub(super) struct Status(pub(super) (u16, u16));

impl JsonSchema for Status {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Status")
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 100, "maximum": 599 },
                StatusText::json_schema(generator),
            ],
        })
    }
}

/// By hand, as `untagged` would lose the place of the value.
impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StatusVisitor)
    }
}

struct StatusVisitor;

impl Visitor<'_> for StatusVisitor {
    type Value = Status;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a status code")
    }

    fn visit_i64<E: serde::de::Error>(self, code: i64) -> Result<Status, E> {
        let code = u16::try_from(code).map_err(E::custom)?;
        Ok(Status((code, code)))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Status, E> {
        let StatusText(range) =
            StatusText::deserialize(serde::de::value::StrDeserializer::<E>::new(text)).map_err(E::custom)?;
        Ok(Status(range))
    }
}

/// A DSCP mark: its number, or its class as a text.
pub(super) struct Mark(pub(super) Dscp);

impl JsonSchema for Mark {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Mark")
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0, "maximum": 63 },
                DscpText::json_schema(generator),
            ],
        })
    }
}

/// By hand, as `untagged` would lose the place of the value.
impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MarkVisitor)
    }
}

struct MarkVisitor;

impl Visitor<'_> for MarkVisitor {
    type Value = Mark;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a DSCP mark")
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Mark, E> {
        let mark = u8::try_from(number).ok().and_then(Dscp::new);
        mark.map(Mark).ok_or_else(|| E::custom("0 to 63"))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Mark, E> {
        let DscpText(mark) =
            DscpText::deserialize(serde::de::value::StrDeserializer::<E>::new(text)).map_err(E::custom)?;
        Ok(Mark(mark))
    }
}
