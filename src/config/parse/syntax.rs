//! What is not TOML. The parser goes on after an error; this says which of its complaints are worth telling, and how
//! much of the tree that it made can be trusted.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::super::problem::{Code, Problem};

/// What the syntax errors of a file mean for the rest of it.
#[derive(Default)]
pub(super) struct Syntax {
    /// One for each mistake, not one for each complaint.
    pub(super) problems: Vec<Problem>,
    /// Offsets of errors within single values, in order: those values mean nothing, the tree around them is right.
    pub(super) broken: Vec<usize>,
    /// From this line on, keys may stand in the wrong table or be missing.
    pub(super) damage: Option<usize>,
}

/// How the parser starts to say that a list or a table has no end.
const UNCLOSED: [&str; 2] = ["unclosed array,", "unclosed inline table"];

/// Sorts out what the parser said about `text`.
pub(super) fn judge(text: &str, tree: &Spanned<DeTable<'_>>, errors: &[toml::de::Error]) -> Syntax {
    let mut syntax = Syntax::default();
    if errors.is_empty() {
        return syntax;
    }
    let mut scalars = Vec::new();
    collect(tree.get_ref(), &mut scalars);
    scalars.sort_unstable_by_key(|span| span.start);

    let mut complaints: Vec<(Range<usize>, &str)> =
        errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message())).collect();
    complaints.sort_by_key(|(span, _)| span.start);
    let swallowed = drop_what_a_bracket_swallowed(&mut complaints);
    let (mut line, mut seen, mut last_line) = (0, 0, None);
    for (span, message) in complaints {
        // From one complaint to the next, so that a long line is not searched for each of them.
        if let Some(at) = text.get(seen..span.start).and_then(|between| between.rfind('\n')) {
            line = seen + at + 1;
        }
        seen = span.start;
        let scalar = scalar_at(&scalars, span.start).filter(|_| swallowed != Some(span.start));
        if scalar.is_some() {
            syntax.broken.push(span.start);
        } else if message != "duplicate key" {
            syntax.damage.get_or_insert(line);
        }
        if last_line.replace(line) != Some(line) {
            syntax.problems.push(told(text, scalar.unwrap_or(span), message));
        }
    }
    syntax
}

/// A bracket that is never closed takes in all that follows, and each line of that is a complaint of its own. The first
/// one is where the bracket should have been.
fn drop_what_a_bracket_swallowed(complaints: &mut Vec<(Range<usize>, &str)>) -> Option<usize> {
    let parts = ["array element", "in array", "inline table", "key-value pair"];
    let in_brackets = |message: &str| parts.iter().any(|part| message.contains(part));
    let is_unclosed = |message: &str| UNCLOSED.iter().any(|start| message.starts_with(start));
    let unclosed = complaints.iter().map(|(_, message)| *message).find(|message| is_unclosed(message))?;
    let first =
        complaints.iter().position(|(_, message)| in_brackets(message) || is_unclosed(message)).unwrap_or(0);
    complaints.truncate(first + 1);
    let (span, message) = complaints.last_mut()?;
    *message = unclosed;
    Some(span.start)
}

fn told(text: &str, span: Range<usize>, message: &str) -> Problem {
    let value = text.get(span.clone()).unwrap_or_default();
    let problem = |what: String| Problem::at(Code::Syntax, span.clone(), what);
    let bare = |char: char| char.is_ascii_alphanumeric() || "._:/%+- ".contains(char);
    if message.starts_with("string values must be quoted") && value.is_empty() {
        return problem("the value is missing".to_owned()).hint("write a value after the `=`".to_owned());
    }
    if message == "duplicate key" {
        return problem(format!("`{value}` is there twice"))
            .label("the second one")
            .hint("keep one of the two; for a list of tables each header is `[[double]]`".to_owned());
    }
    let unquoted =
        value.chars().all(bare) && value.contains(|char: char| char.is_alphabetic() || char == ':');
    if unquoted && (message.starts_with("string values") || message.starts_with("invalid")) {
        return problem(format!("`{value}` is not in quotes"))
            .label("a text stands in quotes")
            .hint(format!("write \"{value}\""));
    }
    let hint = match message {
        "invalid basic string, expected `\"`" => Some("end the text with `\"`, in the same line"),
        "invalid literal string, expected `'`" => Some("end the text with `'`, in the same line"),
        _ if message.starts_with(UNCLOSED[0]) => {
            Some("a list that starts before this is not closed with `]`")
        }
        _ if message.starts_with(UNCLOSED[1]) => {
            Some("a table that starts before this is not closed with `}`")
        }
        _ if message.starts_with("key with no value") => Some("a setting is written `key = value`"),
        _ => None,
    };
    problem(message.to_owned()).label("not TOML").hint(hint.map(str::to_owned))
}

fn collect(table: &DeTable<'_>, scalars: &mut Vec<Range<usize>>) {
    for value in table.values() {
        collect_value(value, scalars);
    }
}

fn collect_value(value: &Spanned<DeValue<'_>>, scalars: &mut Vec<Range<usize>>) {
    match value.get_ref() {
        DeValue::Table(table) => collect(table, scalars),
        DeValue::Array(items) => items.iter().for_each(|item| collect_value(item, scalars)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => scalars.push(value.span()),
    }
}

/// The value that `offset` is in, or at the end of.
fn scalar_at(scalars: &[Range<usize>], offset: usize) -> Option<Range<usize>> {
    let next = scalars.partition_point(|span| span.start <= offset);
    scalars.get(next.checked_sub(1)?).filter(|span| offset <= span.end).cloned()
}
