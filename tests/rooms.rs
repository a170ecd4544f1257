//! The rules of the house: who may import whom, how long a file may be, where `unsafe` stands, and how many packages
//! the default build may take. The table is in `ROOMS`; ARCHITECTURE.md draws it.

#![cfg(test)]

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// What each room may import. A room that is not here may not exist.
const ROOMS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("sys", &[]),
    ("wire", &[]),
    ("balance", &[]),
    ("telemetry", &["ids"]),
    ("api", &["ids"]),
    ("net", &["sys"]),
    ("config", &["ids", "net"]),
    ("tls", &["config", "net"]),
    ("state", &["ids", "balance", "net", "telemetry"]),
    ("proxy", &["state", "balance", "net", "wire", "tls", "sys", "telemetry", "ids"]),
    ("control", &["state", "balance", "config", "tls", "net", "wire", "telemetry", "api", "ids"]),
    ("lab", &["net", "wire", "ids"]),
    ("cli", &["config", "api", "app", "lab", "telemetry", "ids"]),
    (
        "app",
        &[
            "api",
            "balance",
            "config",
            "control",
            "ids",
            "lab",
            "net",
            "proxy",
            "state",
            "sys",
            "telemetry",
            "tls",
            "wire",
        ],
    ),
];

/// Crates that a room must not touch: the data plane neither speaks HTTP nor reads documents.
const BANNED: &[(&str, &[&str])] =
    &[("proxy", &["hyper", "axum", "serde", "serde_json", "toml", "schemars"])];

/// Crates of a feature of the build, and the one file that knows each.
const OF_FEATURES: &[(&str, &str)] =
    &[("spiffe", "control/spiffe/feed.rs"), ("futures_util", "control/spiffe/feed.rs")];

/// Lines of a file, tests not counted.
const LINES: usize = 500;

/// Packages that the default build compiles, build scripts included.
const PACKAGES: usize = 250;

#[test]
fn rooms_import_only_what_the_table_allows() {
    let mut breaches = Vec::new();
    for source in sources() {
        let Some(room) = source.room() else { continue }; // lib.rs and main.rs see every room
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            breaches.push(format!("{source}: no room `{room}` in the table"));
            continue;
        };
        for import in source.imports() {
            let fine = import.room == room
                || allowed.contains(&import.room.as_str())
                || (import.in_tests && import.room == "lab");
            if !fine {
                breaches.push(format!("{source}:{}: {room} -> {}", import.line, import.room));
            }
        }
        let banned = BANNED.iter().filter(|(name, _)| *name == room).flat_map(|(_, crates)| *crates);
        for name in banned {
            let uses = source.tokens.iter().filter(|token| token.text == *name);
            breaches.extend(uses.map(|token| format!("{source}:{}: {room} -> crate {name}", token.line)));
        }
    }
    assert!(breaches.is_empty(), "imports that the table does not allow:\n{}", breaches.join("\n"));
}

#[test]
fn the_crates_of_a_feature_are_known_to_one_file() {
    let sources = sources();
    for (name, home) in OF_FEATURES {
        let uses = |source: &&Source| {
            source.tokens.windows(2).any(|two| two[0].text == "use" && two[1].text == *name)
        };
        let files: Vec<_> = sources.iter().filter(uses).map(|source| source.path.as_path()).collect();
        assert_eq!(files, [Path::new(home)], "crate {name}");
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    let mut breaches = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//!") {
            breaches.push(format!("{source}:1: does not begin with //!"));
        }
        let lines = source.lines_without_tests();
        if lines > LINES {
            breaches.push(format!("{source}: {lines} lines, {LINES} are allowed"));
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn unsafe_stands_in_sys_and_nowhere_else() {
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| source.room() != Some("sys")) {
        let uses = source.tokens.iter().filter(|token| token.text == "unsafe");
        breaches.extend(uses.map(|token| format!("{source}:{}", token.line)));
    }
    assert!(breaches.is_empty(), "unsafe outside src/sys:\n{}", breaches.join("\n"));
}

#[test]
fn the_default_build_keeps_to_its_budget_of_packages() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    let packages: BTreeSet<_> = text
        .lines()
        .map(|line| line.trim_end_matches(" (*)").trim_end_matches(" (proc-macro)"))
        .filter(|line| !line.is_empty())
        .collect();
    assert!(packages.iter().any(|package| package.starts_with("tokio ")), "{text}");
    assert!(packages.len() <= PACKAGES, "{} packages, {PACKAGES} are allowed", packages.len());
}

/// A file of the library.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    text: String,
    tokens: Vec<Token>,
}

/// A word or a mark; `::` is one mark. Comments and literals are gone.
struct Token {
    text: String,
    line: usize,
}

/// A path that leads into a room.
#[derive(Debug, PartialEq, Eq)]
struct Import {
    room: String,
    line: usize,
    in_tests: bool,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}", self.path.display())
    }
}

impl Source {
    fn new(path: impl Into<PathBuf>, text: String) -> Self {
        let tokens = tokens(&text);
        Self { path: path.into(), text, tokens }
    }

    /// Modules from the crate's root to this file: `net::listen` has two.
    fn depth(&self) -> usize {
        let name = self.path.file_stem().unwrap();
        self.path.components().count() - usize::from(name == "mod" || name == "lib" || name == "main")
    }

    /// The room it stands in; `None` for the roots.
    fn room(&self) -> Option<&str> {
        let first = self.path.iter().next()?.to_str()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(name, "lib" | "main")).then_some(name)
    }

    fn is_tests(&self) -> bool {
        self.path.file_stem().is_some_and(|name| name == "tests")
            || self.path.iter().any(|part| part == "tests")
    }

    /// Every path to a room: `crate::room`, each member of `crate::{…}`, and `super::` that climbs to the root.
    fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        let mut modules = Modules::default();
        for (index, token) in self.tokens.iter().enumerate() {
            modules.pass(&self.tokens, index);
            let after = |offset: usize| self.tokens.get(index + offset).map(|token| token.text.as_str());
            let begins = index == 0 || self.tokens[index - 1].text != "::";
            let root = match token.text.as_str() {
                "crate" if after(1) == Some("::") => Some(index + 2),
                "super" if begins => self.climb(index, self.depth() + modules.depth()),
                _ => None,
            };
            let Some(start) = root else { continue };
            let in_tests = self.is_tests() || modules.in_tests();
            for room in members(&self.tokens, start) {
                let Token { text, line } = &self.tokens[room];
                imports.push(Import { room: text.clone(), line: *line, in_tests });
            }
        }
        imports
    }

    /// Where a chain of `super::` ends, if it ends at the root of the crate.
    fn climb(&self, start: usize, depth: usize) -> Option<usize> {
        let mut index = start;
        while self.tokens.get(index)?.text == "super" && self.tokens.get(index + 1)?.text == "::" {
            index += 2;
        }
        ((index - start) / 2 == depth).then_some(index)
    }

    fn lines_without_tests(&self) -> usize {
        if self.is_tests() {
            return 0;
        }
        let mut modules = Modules::default();
        let mut lines = BTreeSet::new();
        let mut tests = BTreeSet::new();
        for (index, token) in self.tokens.iter().enumerate() {
            modules.pass(&self.tokens, index);
            if modules.in_tests() {
                tests.insert(token.line)
            } else {
                lines.insert(token.line)
            };
        }
        let total = self.text.lines().count();
        match (tests.first(), tests.last()) {
            (Some(first), Some(last)) => total - (last - first + 1),
            _ => total,
        }
    }
}

/// The inline modules around a place in a file.
#[derive(Default)]
struct Modules {
    braces: usize,
    /// The brace depth of each open module, and whether it is `#[cfg(test)]`.
    open: Vec<(usize, bool)>,
}

impl Modules {
    fn pass(&mut self, tokens: &[Token], index: usize) {
        match tokens[index].text.as_str() {
            "{" => {
                self.braces += 1;
                if index >= 2 && tokens[index - 2].text == "mod" {
                    let head: Vec<_> =
                        tokens[..index - 2].iter().rev().take(7).map(|token| token.text.as_str()).collect();
                    let tests = head == ["]", ")", "test", "(", "cfg", "[", "#"];
                    self.open.push((self.braces, tests));
                }
            }
            "}" => {
                if self.open.last().is_some_and(|(depth, _)| *depth == self.braces) {
                    self.open.pop();
                }
                self.braces -= 1;
            }
            _ => {}
        }
    }

    fn depth(&self) -> usize {
        self.open.len()
    }

    fn in_tests(&self) -> bool {
        self.open.iter().any(|(_, tests)| *tests)
    }
}

/// The places of the rooms named after `crate::`: one word, or the first word of each member of a group.
fn members(tokens: &[Token], start: usize) -> Vec<usize> {
    let text = |index: usize| tokens.get(index).map(|token| token.text.as_str());
    if text(start) != Some("{") {
        return vec![start];
    }
    let (mut depth, mut index, mut found) = (1, start + 1, Vec::new());
    let mut expects = true;
    while depth > 0 {
        match text(index) {
            Some("{") => depth += 1,
            Some("}") => depth -= 1,
            Some(",") if depth == 1 => expects = true,
            Some(word) if depth == 1 && expects && word != "self" => {
                found.push(index);
                expects = false;
            }
            Some(_) => {}
            None => break,
        }
        index += 1;
    }
    found
}

/// Splits Rust into words and marks, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let (mut index, mut line, mut tokens) = (0, 1, Vec::new());
    while index < bytes.len() {
        let start = index;
        match at(index) {
            b'/' if at(index + 1) == b'/' => index += length_until(&bytes[index..], b"\n"),
            b'/' if at(index + 1) == b'*' => index += comment(&bytes[index..]),
            b'"' => index += string(&bytes[index..]),
            b'r' | b'b' | b'c' if raw(&bytes[index..]).is_some() => index += raw(&bytes[index..]).unwrap(),
            b'\'' => index += character(&bytes[index..]),
            b':' if at(index + 1) == b':' => {
                index += 2;
                tokens.push(Token { text: "::".to_owned(), line });
            }
            byte if is_word(byte) => {
                while is_word(at(index)) {
                    index += 1;
                }
                let word = String::from_utf8_lossy(&bytes[start..index]).into_owned();
                tokens.push(Token { text: word, line });
            }
            byte => {
                index += 1;
                if !byte.is_ascii_whitespace() {
                    tokens.push(Token { text: char::from(byte).to_string(), line });
                }
            }
        }
        line += bytes[start..index].iter().filter(|byte| **byte == b'\n').count();
    }
    tokens
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn length_until(bytes: &[u8], end: &[u8]) -> usize {
    bytes.windows(end.len()).position(|window| window == end).map_or(bytes.len(), |place| place + end.len())
}

/// The length of a block comment; they nest.
fn comment(bytes: &[u8]) -> usize {
    let (mut depth, mut index) = (0, 0);
    while index < bytes.len() {
        match &bytes[index..] {
            [b'/', b'*', ..] => {
                depth += 1;
                index += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                index += 2;
                if depth == 0 {
                    break;
                }
            }
            _ => index += 1,
        }
    }
    index
}

/// The length of a string with escapes, quotes included.
fn string(bytes: &[u8]) -> usize {
    let mut index = 1;
    while index < bytes.len() {
        match bytes[index] {
            b'\\' => index += 2,
            b'"' => return index + 1,
            _ => index += 1,
        }
    }
    bytes.len()
}

/// The length of a literal with a prefix (`r"…"`, `br#"…"#`, `b"…"`, `b'…'`), if this is one.
fn raw(bytes: &[u8]) -> Option<usize> {
    let prefix = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let name = &bytes[..prefix];
    let hashes = bytes[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let quote = *bytes.get(prefix + hashes)?;
    match name {
        b"r" | b"br" | b"cr" if quote == b'"' => {
            let start = prefix + hashes + 1;
            let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            Some(start + length_until(&bytes[start..], &end))
        }
        b"b" | b"c" if hashes == 0 && quote == b'"' => Some(prefix + string(&bytes[prefix..])),
        b"b" if hashes == 0 && quote == b'\'' => Some(prefix + character(&bytes[prefix..])),
        _ => None,
    }
}

/// The length of a character, or of the mark that begins a lifetime.
fn character(bytes: &[u8]) -> usize {
    match bytes {
        [_, b'\\', ..] => 3 + length_until(&bytes[3..], b"'"),
        [_, b'\'', ..] => 1,
        _ => {
            // One character of up to four bytes between two quotes; everything else is a lifetime.
            let width = bytes.iter().skip(1).take(5).position(|byte| *byte == b'\'');
            let whole = width.filter(|width| {
                std::str::from_utf8(&bytes[1..=*width]).is_ok_and(|c| c.chars().count() == 1)
            });
            whole.map_or(1, |width| width + 2)
        }
    }
}

fn sources() -> Vec<Source> {
    fn walk(root: &Path, folder: &Path, sources: &mut Vec<Source>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                sources.push(Source::new(path.strip_prefix(root).unwrap(), text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    walk(&root, &root, &mut sources);
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 20, "only {} files under {}", sources.len(), root.display());
    sources
}

#[test]
fn a_forbidden_edge_is_found_in_every_spelling() {
    let text = r##"//! crate::comment
use crate::config::Config;
use crate::{
    state::{Shared, cell::Thing},
    /* crate::ignored */ control,
    proxy::{self, relay},
};
fn f<'a>(_: &'a str) -> char { let _ = ("crate::string", r#"use crate::raw; "quote" "#, b'"', '"', '\''); crate::app::run(); 'c' }
use super::super::lab;
use super::sibling;
mod inner { use super::super::super::tls; use super::super::near; }
#[cfg(test)]
mod tests { use crate::lab::Echo; }
"##;
    let source = Source::new("net/listen.rs", text.to_owned());
    let found: Vec<_> =
        source.imports().into_iter().map(|import| (import.room, import.line, import.in_tests)).collect();
    let wanted = [
        ("config", 2, false),
        ("state", 4, false),
        ("control", 5, false),
        ("proxy", 6, false),
        ("app", 8, false),
        ("lab", 9, false),
        ("tls", 11, false),
        ("lab", 13, true),
    ];
    assert_eq!(found, wanted.map(|(room, line, tests)| (room.to_owned(), line, tests)));
    assert_eq!(source.lines_without_tests(), text.lines().count() - 1);
    assert_eq!((source.room(), source.depth()), (Some("net"), 2));
    assert_eq!(Source::new("net/mod.rs", String::new()).depth(), 1);
    assert_eq!(Source::new("ids.rs", String::new()).depth(), 1);
}
