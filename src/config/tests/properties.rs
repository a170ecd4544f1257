//! What holds for every config, and for every text.

use std::fs;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{Config, VALIDATOR, effective, files, generate::config, json, parse};

fn same(config: &Config) -> Result<(), TestCaseError> {
    let text = effective(config);
    let loaded =
        parse(&text, "effective.toml").map_err(|refused| TestCaseError::fail(refused.to_string()))?;
    prop_assert_eq!(&loaded.config, config);
    prop_assert_eq!(effective(&loaded.config), text);
    Ok(())
}

proptest! {
    #[test]
    fn what_a_config_means_survives_being_spelled_out(config in config()) {
        same(&config)?;
    }

    #[test]
    fn what_is_spelled_out_fits_the_json_schema(config in config()) {
        let text = effective(&config);
        let errors: Vec<String> = VALIDATOR.iter_errors(&json(&text)).map(|error| error.to_string()).collect();
        prop_assert_eq!(errors, Vec::<String>::new(), "{}", text);
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC*|[\\x00-\\xff]{0,200}|[\\[\\]{}=.,\"'#a-c0-9\n ]{0,200}") {
        look_at(&text);
    }

    #[test]
    fn no_typo_is_too_strange(file in any::<Index>(), typos in vec(typo(), 1..5)) {
        let files = files("config");
        let mut text: Vec<char> = fs::read_to_string(file.get(&files)).unwrap().chars().collect();
        for typo in typos {
            typo.make(&mut text);
        }
        look_at(&text.into_iter().collect::<String>());
    }
}

/// Whatever comes out, it can be shown, and what is accepted can be spelled out.
fn look_at(text: &str) {
    match parse(text, "x.toml") {
        Ok(loaded) => {
            assert_eq!(loaded.warnings.errors(), 0);
            let again = parse(&effective(&loaded.config), "effective.toml").unwrap();
            assert_eq!(again.config, loaded.config);
        }
        Err(refused) => {
            let report = refused.0;
            assert!(report.errors() > 0);
            assert!(!report.render(true).is_empty());
            let json = report.to_json();
            for problem in json["problems"].as_array().unwrap() {
                let line = usize::try_from(problem["line"].as_u64().unwrap()).unwrap();
                assert!((1..=text.split('\n').count()).contains(&line), "{problem}");
                assert!(problem["column"].as_u64().unwrap() >= 1);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Typo {
    Drop(Index, usize),
    Insert(Index, String),
    Swap(Index, Index),
    Repeat(Index, Index),
}

fn typo() -> impl Strategy<Value = Typo> {
    let parts = [
        "[",
        "]",
        "\"",
        "=",
        "\n",
        "[[pool]]\n",
        "{",
        "}",
        "0",
        "é",
        "\u{0}",
        ",",
        "#",
        ".",
        "'''",
        "-1",
        "x",
    ];
    prop_oneof![
        (any::<Index>(), 1..30_usize).prop_map(|(at, count)| Typo::Drop(at, count)),
        (any::<Index>(), prop::sample::select(parts.to_vec()))
            .prop_map(|(at, part)| Typo::Insert(at, part.to_owned())),
        any::<(Index, Index)>().prop_map(|(a, b)| Typo::Swap(a, b)),
        any::<(Index, Index)>().prop_map(|(a, b)| Typo::Repeat(a, b)),
    ]
}

impl Typo {
    fn make(&self, text: &mut Vec<char>) {
        match self {
            _ if text.is_empty() => {}
            Self::Drop(at, count) => {
                let at = at.index(text.len());
                text.drain(at..(at + count).min(text.len()));
            }
            Self::Insert(at, part) => {
                let at = at.index(text.len());
                text.splice(at..at, part.chars());
            }
            Self::Swap(a, b) => {
                let (a, b) = (a.index(text.len()), b.index(text.len()));
                text.swap(a, b);
            }
            Self::Repeat(a, b) => {
                let (a, b) = (a.index(text.len()), b.index(text.len()));
                let part: Vec<char> = text[a.min(b)..a.max(b)].iter().copied().take(300).collect();
                text.extend(part);
            }
        }
    }
}
