//! The bilingual verb grammar corpus: 20 English verbs with their Spanish counterparts, six surface forms, three
//! singular persons, so 360 cells. It is enumerated from rules, needs no file and no network, and every row is
//! known to be right, which makes it a corpus on which a small model's grammar can be measured.
//!
//! [`grammar`] writes the two sentences of a cell, [`rows`] adds labelled mis-conjugations, [`validate`] checks a
//! corpus, [`split`] holds out what must be held out, [`export`] writes the files and their manifest.

pub mod export;
pub mod grammar;
pub mod rows;
pub mod split;
pub mod validate;

use crate::data::corpus::{Layout, TextCorpus};
use crate::{Error, Result};
use split::Policy;

pub const CORPUS_NAME: &str = "lynx-verbgrammar-v1";
pub const CORPUS_VERSION: &str = "1.0.0";
pub const DEFAULT_SEED: u64 = 42;

/// The six surface forms. The two futures are one tense with two surfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tense {
    Infinitive,
    PresentSimple,
    PastSimple,
    PastParticiple,
    FutureWill,
    FutureGoingTo,
}

impl Tense {
    pub const ALL: [Tense; 6] = [
        Tense::Infinitive,
        Tense::PresentSimple,
        Tense::PastSimple,
        Tense::PastParticiple,
        Tense::FutureWill,
        Tense::FutureGoingTo,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Tense::Infinitive => "infinitive",
            Tense::PresentSimple => "present_simple",
            Tense::PastSimple => "past_simple",
            Tense::PastParticiple => "past_participle",
            Tense::FutureWill => "future_will",
            Tense::FutureGoingTo => "future_going_to",
        }
    }

    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| unknown("tense", name, Self::ALL.map(Self::name)))
    }
}

/// The three singular persons: I/yo, you/tú, he/él.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Person {
    First,
    Second,
    Third,
}

impl Person {
    pub const ALL: [Person; 3] = [Person::First, Person::Second, Person::Third];

    pub fn name(self) -> &'static str {
        ["1sg", "2sg", "3sg"][self.index()]
    }

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|p| p.name() == name)
            .ok_or_else(|| unknown("person", name, Self::ALL.map(Self::name)))
    }
}

/// "no such tense 'futur': did you mean 'future_will'? (known: ...)".
pub(crate) fn unknown<'a>(what: &str, given: &str, known: impl IntoIterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, given));
    let hint = match nearest {
        Some(name) if strsim::damerau_levenshtein(name, given) <= 3 => format!("did you mean '{name}'? "),
        _ => String::new(),
    };
    Error::Data(format!("no such {what} '{given}': {hint}(known: {})", known.join(", ")))
}

/// One of the 360 cells with its correct sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub verb: &'static grammar::Verb,
    pub tense: Tense,
    pub person: Person,
    pub english: String,
    pub spanish: String,
}

/// All cells, nested verb, tense, person, in the inventory's order.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::with_capacity(360);
    for verb in &grammar::VERBS {
        for tense in Tense::ALL {
            for person in Person::ALL {
                cells.push(Cell {
                    verb,
                    tense,
                    person,
                    english: grammar::english(verb, tense, person),
                    spanish: grammar::spanish(verb, tense, person),
                });
            }
        }
    }
    cells
}

/// The row a language model reads: the Spanish sentence first, so that the English one is a translation task.
pub fn language_model_row(spanish: &str, english: &str) -> String {
    format!("es:{spanish} / en:{english}")
}

/// The corpus for language modelling: one document per cell, correct forms only, split by `policy` and shuffled
/// within each split (so the order of rows tells a model nothing about the next row). Under [`Policy::None`] the training
/// rows also validate.
pub fn text_corpus(seed: u64, policy: &Policy) -> Result<TextCorpus> {
    let rows = rows::generate(seed);
    let splits = split::split(&rows, policy, seed)?;
    let documents = |rows: &[rows::Row]| -> Vec<String> {
        rows.iter()
            .filter(|row| row.label == rows::LABEL_CORRECT)
            .map(|row| language_model_row(&row.spanish, &row.text))
            .collect()
    };
    let train = documents(&splits.train);
    let val = if *policy == Policy::None { train.clone() } else { documents(&splits.val) };
    TextCorpus::new(format!("verbs ({policy})"), Layout::Rows, train, val, documents(&splits.test))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::files::sha256_hex;

    #[test]
    fn the_360_lines_have_the_golden_size_and_hash() {
        let lines: String = cells()
            .iter()
            .map(|c| {
                format!("{}\t{}\t{}\t{}\t{}\n", c.verb.english, c.tense.name(), c.person.name(), c.english, c.spanish)
            })
            .collect();
        assert_eq!(lines.lines().count(), 360);
        assert_eq!(lines.len(), 15_943);
        assert_eq!(sha256_hex(lines.as_bytes()), "98accde6f39fe0d0919adbafcd1f01f9229c51283998c425c524949208d2742d");
    }

    #[test]
    fn the_corpus_has_280_distinct_english_texts_of_2_to_23_bytes() {
        let cells = cells();
        let distinct: std::collections::HashSet<&str> = cells.iter().map(|c| c.english.as_str()).collect();
        assert_eq!(distinct.len(), 280);
        assert_eq!(cells.iter().map(|c| c.english.len()).sum::<usize>(), 3_581);
        assert_eq!(cells.iter().map(|c| c.spanish.len()).sum::<usize>(), 3_482);
        assert_eq!(cells.iter().map(|c| c.english.len()).max(), Some("you are going to listen".len()));
    }

    #[test]
    fn names_parse_back_and_a_typo_is_answered_with_a_suggestion() {
        for tense in Tense::ALL {
            assert_eq!(Tense::parse(tense.name()).unwrap(), tense);
        }
        for person in Person::ALL {
            assert_eq!(Person::parse(person.name()).unwrap(), person);
        }
        assert!(Tense::parse("future_wil").unwrap_err().to_string().contains("did you mean 'future_will'"));
        assert!(Person::parse("4pl").is_err());
    }
}
