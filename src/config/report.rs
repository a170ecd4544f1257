//! Problems as the operator sees them: each with its line of the file, or as JSON for programs.

use std::{fmt, ops::Range, sync::Arc};

use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use super::problem::{Problem, Severity};

/// Everything that is wrong with one file, in the order of its lines.
#[derive(Clone)]
pub struct Report {
    name: Arc<str>,
    source: Arc<str>,
    /// Where each line starts.
    lines: Arc<[usize]>,
    problems: Vec<Problem>,
    untold: usize,
}

/// Problems told of one file. A file that has more is not a config, and its owner does not read on.
const MOST_TOLD: usize = 1000;

/// Longer lines are not shown: their place must do.
const LONGEST_LINE: usize = 4096;

/// Two places this near are shown in one picture.
const NEAR_LINES: usize = 20;

impl Report {
    pub(super) fn new(name: &str, source: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| {
            (problem.span.as_ref().map(|span| (span.start, span.end)), problem.severity())
        });
        let untold = problems.len().saturating_sub(MOST_TOLD);
        if untold > 0 {
            // Errors are never pushed out by warnings.
            problems.sort_by_key(Problem::severity);
            problems.truncate(MOST_TOLD);
        }
        let lines = if problems.is_empty() { Arc::from([0]) } else { starts(source) };
        // A file can have a name that would steer the terminal.
        let name: String = name
            .chars()
            .map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char })
            .collect();
        Self { name: Arc::from(name), source: Arc::from(source), lines, problems, untold }
    }

    /// The same with more problems.
    pub(super) fn and(&self, more: Vec<Problem>) -> Self {
        let problems = self.problems.iter().cloned().chain(more).collect();
        let report = Self::new(&self.name, &self.source, problems);
        Self { untold: report.untold + self.untold, ..report }
    }

    /// The text of the file.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The problems, in the order of the file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many of them are errors.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many of them are warnings.
    #[must_use]
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    /// True when there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity() == severity).count()
    }

    /// Line and column of a byte of the file, both from 1, columns in characters.
    #[must_use]
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let start = self.lines.get(line).copied().unwrap_or(0);
        let before = self.source.get(start..offset).unwrap_or_default();
        (line + 1, before.chars().filter(|char| *char != '\u{feff}').count() + 1)
    }

    /// The text for a person: each problem with its line of the file, and a count at the end.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for problem in &self.problems {
            text += &renderer.render(&[self.group(problem)]);
            text += "\n\n";
        }
        if self.untold > 0 {
            text += &format!("... and {} more that are not shown\n", self.untold);
        }
        if !self.problems.is_empty() {
            let (errors, warnings) = (self.errors(), self.warnings());
            text += &format!("{}, {}\n", counted(errors, "error"), counted(warnings, "warning"));
        }
        text
    }

    /// The first error in one line, with the number of those that follow: for logs and lists.
    #[must_use]
    pub fn one_line(&self) -> String {
        let errors = self.problems.iter().filter(|problem| problem.severity() == Severity::Error);
        let Some(first) = errors.chain(&self.problems).next() else {
            return format!("{}: nothing is wrong", self.name);
        };
        let place = first.span.as_ref().map(|span| self.position(span.start));
        let place = place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"));
        let more = match self.errors().saturating_sub(1) + self.untold {
            0 => String::new(),
            more => format!(", {more} more"),
        };
        let line = format!("{}{place}: {} [{}]{more}", self.name, first.what, first.code.as_str());
        line.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
    }

    /// The object for a program.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "file": &*self.name,
            "errors": self.errors(),
            "warnings": self.warnings(),
            "untold": self.untold,
            "problems": self.problems.iter().map(|problem| self.problem_json(problem)).collect::<Vec<_>>(),
        })
    }

    fn problem_json(&self, problem: &Problem) -> Value {
        let place = problem.span.as_ref().map(|span| self.position(span.start));
        let also = problem.also.as_ref().map(|(span, label)| {
            let (line, column) = self.position(span.start);
            json!({ "line": line, "column": column, "label": label })
        });
        json!({
            "severity": problem.severity().as_str(),
            "code": problem.code.as_str(),
            "file": &*self.name,
            "line": place.map(|(line, _)| line),
            "column": place.map(|(_, column)| column),
            "message": problem.what,
            "label": problem.label,
            "hint": problem.hint,
            "also": also,
        })
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let level = match problem.severity() {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(problem.what.as_str()).id(problem.code.as_str());
        let mut group = match &problem.span {
            Some(span) => title.elements(self.pictures(problem, span)),
            None if problem.hint.is_none() => return Group::with_title(title),
            None => title.elements(Vec::<Element<'_>>::new()),
        };
        if let Some(hint) = &problem.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        group
    }

    fn pictures<'a>(&'a self, problem: &'a Problem, span: &Range<usize>) -> Vec<Element<'a>> {
        let Some((first, also)) = problem.also.as_ref().map(|(span, label)| (span.clone(), label)) else {
            return vec![self.picture(&[(span.clone(), AnnotationKind::Primary, problem.label.as_ref())])];
        };
        let primary = (span.clone(), AnnotationKind::Primary, problem.label.as_ref());
        let context = (first.clone(), AnnotationKind::Context, Some(also));
        if self.line(first.start).abs_diff(self.line(span.start)) <= NEAR_LINES {
            vec![self.picture(&[primary, context])]
        } else {
            vec![self.picture(&[primary]), self.picture(&[context])]
        }
    }

    /// The lines around some places, cut out of the file so that the cost does not grow with its size.
    fn picture<'a>(&'a self, marks: &[(Range<usize>, AnnotationKind, Option<&'a String>)]) -> Element<'a> {
        let lines = marks.iter().map(|(span, ..)| self.line(span.start));
        let (first, last) = (lines.clone().min().unwrap_or(0), lines.max().unwrap_or(0));
        let window = self.start(first)..self.end(last);
        let long = (first..=last).any(|line| self.end(line) - self.start(line) > LONGEST_LINE);
        let shown = self.source.get(window.clone()).filter(|text| !text.is_empty() && !long);
        let Some(shown) = shown else {
            let (line, column) = self.position(marks.first().map_or(0, |(span, ..)| span.start));
            return Origin::path(&*self.name).line(line).char_column(column).into();
        };
        // Without the byte order mark the columns are the ones that editors show.
        let mark = if shown.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let offset = window.start + mark;
        let shown = shown.get(mark..).unwrap_or_default();
        let annotations = marks.iter().map(|(span, kind, label)| {
            // What runs over several lines is marked in its first.
            let end = span.end.min(self.end(self.line(span.start))).max(span.start);
            let within = |at: usize| at.saturating_sub(offset).min(shown.len());
            kind.span(within(span.start)..within(end)).label(label.map(String::as_str))
        });
        Snippet::source(shown).path(&*self.name).line_start(first + 1).annotations(annotations).into()
    }

    /// The index of the line that holds a byte.
    fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    fn start(&self, line: usize) -> usize {
        self.lines.get(line).copied().unwrap_or(self.source.len())
    }

    /// Where a line ends, without its line break.
    fn end(&self, line: usize) -> usize {
        let text = self.source.get(self.start(line)..self.start(line + 1)).unwrap_or_default();
        self.start(line) + text.trim_end_matches(['\n', '\r']).len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

/// Without the text of the file, which may be long.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").field("name", &self.name).field("problems", &self.problems).finish()
    }
}

/// A number with its noun: `1 error`, `2 errors`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

fn starts(source: &str) -> Arc<[usize]> {
    let breaks = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
    std::iter::once(0).chain(breaks).collect()
}
