//! Where in the file a key stands, in words.

use std::fmt;

use serde_json::Value;

use super::super::schema::resolve;

/// A step of the walk: a key, the table that holds it, and whether we are in one of several items.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    holder: Option<&'a Self>,
    /// The key.
    pub(super) name: &'a str,
    item: bool,
}

impl<'a> Place<'a> {
    /// The file as a whole.
    pub(super) const fn root() -> Self {
        Self { holder: None, name: "", item: false }
    }

    /// True for the file as a whole.
    pub(super) const fn is_root(&self) -> bool {
        self.holder.is_none()
    }

    /// The place of `name` in the table here.
    pub(super) const fn under(&'a self, name: &'a str) -> Self {
        Self { holder: Some(self), name, item: false }
    }

    /// The place of an item of the list here.
    pub(super) const fn item(&self) -> Self {
        Self { item: true, ..*self }
    }

    /// The place of the table that holds this key.
    pub(super) const fn holder(&self) -> Self {
        match self.holder {
            Some(holder) => *holder,
            None => *self,
        }
    }

    fn path(&self) -> String {
        match self.holder.map(Self::path) {
            Some(path) if !path.is_empty() => format!("{path}.{}", self.name),
            _ => self.name.to_owned(),
        }
    }
}

/// `in [[pool.endpoint]]`, to follow the name of a key.
impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holder {
            Some(_) => write!(f, "in {self:?}"),
            None => f.write_str("at the top level"),
        }
    }
}

/// The header of the table: `[[pool.endpoint]]`.
impl fmt::Debug for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.item { write!(f, "[[{}]]", self.path()) } else { write!(f, "[{}]", self.path()) }
    }
}

/// The tables that know the key `name`, if there are any.
pub(super) fn homes(name: &str, root: &Value) -> Option<String> {
    let mut found = Vec::new();
    visit(root, root, &Place::root(), &mut |key, place| {
        if key == name {
            found.push(if place.holder.is_some() {
                format!("{place:?}")
            } else {
                "the top level".to_owned()
            });
        }
    });
    (!found.is_empty()).then(|| found.join(" or "))
}

/// Calls `see` with every key of the schema and the place of its table.
fn visit(schema: &Value, root: &Value, place: &Place<'_>, see: &mut impl FnMut(&str, &Place<'_>)) {
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        see(key, place);
        let (property, here) = (resolve(property, root), place.under(key));
        visit(property, root, &here, see);
        if let Some(items) = property.get("items") {
            visit(resolve(items, root), root, &here.item(), see);
        }
        if let Some(others) = property.get("additionalProperties") {
            visit(resolve(others, root), root, &here.under("NAME"), see);
        }
    }
}
