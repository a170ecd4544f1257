//! Settings that are one word out of a few. `_` and `-` are the same in them.

use std::{borrow::Cow, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Balance, Intercept, Level, LogFormat, Replay, SessionLines, TlsVersion, WhenAllDown};

/// A choice with a word for each case.
pub(super) trait Vocabulary: Copy + PartialEq + 'static {
    /// Every word with what it stands for.
    const WORDS: &'static [(&'static str, Self)];

    /// What `word` stands for.
    fn read(word: &str) -> Option<Self> {
        let word = plain(word);
        Self::WORDS.iter().find(|(known, _)| plain(known) == word).map(|(_, meaning)| *meaning)
    }

    /// The word for this case.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, meaning)| *meaning == self).map_or("", |(word, _)| word)
    }
}

/// The spelling in which words are compared.
pub(super) fn plain(word: &str) -> Cow<'_, str> {
    if word.contains('_') { Cow::Owned(word.replace('_', "-")) } else { Cow::Borrowed(word) }
}

/// The policy's word; the policy itself also has clouds in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PolicyWord {
    Failover,
    Weighted,
}

impl Vocabulary for PolicyWord {
    const WORDS: &'static [(&'static str, Self)] =
        &[("failover", Self::Failover), ("weighted", Self::Weighted)];
}

impl Vocabulary for Level {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

impl Vocabulary for LogFormat {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("text", Self::Text), ("json", Self::Json)];
}

impl Vocabulary for SessionLines {
    const WORDS: &'static [(&'static str, Self)] =
        &[("all", Self::All), ("errors", Self::Errors), ("off", Self::Off)];
}

impl Vocabulary for Balance {
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::LeastSessions.as_str(), Self::LeastSessions),
        (Self::LeastLatency.as_str(), Self::LeastLatency),
        (Self::RoundRobin.as_str(), Self::RoundRobin),
        (Self::Random.as_str(), Self::Random),
        (Self::SourceHash.as_str(), Self::SourceHash),
    ];
}

impl Vocabulary for Replay {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("until_first_byte", Self::UntilFirstByte)];
}

impl Vocabulary for WhenAllDown {
    const WORDS: &'static [(&'static str, Self)] =
        &[("try_anyway", Self::TryAnyway), ("refuse", Self::Refuse)];
}

/// Whether PROXY headers are read; which ones are believed stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyInWord {
    Off,
    Optional,
    Required,
}

/// Whether PROXY headers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyOutWord {
    Off,
    V1,
    V2,
}

/// Whether clients show certificates; which ones are right stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientWord {
    Off,
    Optional,
    Required,
}

impl Vocabulary for ProxyInWord {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("optional", Self::Optional), ("required", Self::Required)];
}

impl Vocabulary for ProxyOutWord {
    const WORDS: &'static [(&'static str, Self)] = &[("off", Self::Off), ("v1", Self::V1), ("v2", Self::V2)];
}

impl Vocabulary for ClientWord {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("optional", Self::Optional), ("required", Self::Required)];
}

impl Vocabulary for Intercept {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("redirect", Self::Redirect), ("tproxy", Self::Tproxy)];
}

impl Vocabulary for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("1.2", Self::V12), ("1.3", Self::V13)];
}

/// One word of a vocabulary, as it stands in the file.
pub(super) struct Word<T>(pub(super) T);

impl<'de, T: Vocabulary> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Cow::<str>::deserialize(deserializer)?;
        T::read(&word).map(Self).ok_or_else(|| D::Error::custom(format!("`{word}` is not known")))
    }
}

impl<T: Vocabulary> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Word")
    }

    fn schema_id() -> Cow<'static, str> {
        Cow::Borrowed(std::any::type_name::<PhantomData<T>>())
    }

    /// Both spellings, the one we write first.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut words: Vec<String> = T::WORDS.iter().map(|(word, _)| (*word).to_owned()).collect();
        for (from, to) in [("_", "-"), ("-", "_")] {
            let others = T::WORDS.iter().filter(|(word, _)| word.contains(from));
            words.extend(others.map(|(word, _)| word.replace(from, to)));
        }
        json_schema!({ "type": "string", "enum": words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_word_means_its_case<T: Vocabulary + std::fmt::Debug>() {
        for (word, meaning) in T::WORDS {
            assert_eq!(meaning.word(), *word);
            assert_eq!(T::read(word), Some(*meaning));
            assert_eq!(T::read(&word.replace('_', "-")), Some(*meaning));
            assert_eq!(T::read(&word.replace('-', "_")), Some(*meaning));
        }
        assert_eq!(T::read("no such word"), None);
    }

    #[test]
    fn words_are_read_in_both_spellings() {
        each_word_means_its_case::<PolicyWord>();
        each_word_means_its_case::<Level>();
        each_word_means_its_case::<LogFormat>();
        each_word_means_its_case::<SessionLines>();
        each_word_means_its_case::<Balance>();
        each_word_means_its_case::<WhenAllDown>();
        each_word_means_its_case::<Replay>();
        each_word_means_its_case::<ProxyInWord>();
        each_word_means_its_case::<ProxyOutWord>();
        each_word_means_its_case::<ClientWord>();
        each_word_means_its_case::<Intercept>();
        each_word_means_its_case::<TlsVersion>();
    }
}
