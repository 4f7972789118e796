//! Corpus rows: the JSONL schema, fingerprints, and the closed taxonomy of mis-conjugations.

use super::grammar::{self, ENGLISH_PRONOUNS, PAST_BE, PERFECT_HAVE, PRESENT_BE, participle, regular_past};
use super::{Cell, Person, Tense, cells};
use crate::data::files::sha256_hex;
use crate::data::rng::SplitMix64;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

pub const LABEL_CORRECT: &str = "correct";
pub const LABEL_WRONG: &str = "mis_conjugated";

/// One JSONL row. Fields stand in alphabetical order, so the keys of a written line are sorted. The coded fields are
/// strings and not enums, so that the validator can read a row that is wrong and say what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What a mis-conjugated text should have been; null for a correct row.
    #[serde(deserialize_with = "required_option")]
    pub correct_form: Option<String>,
    pub english_regularity: String,
    /// [`fingerprint`] of this row.
    pub fingerprint: String,
    /// Sequential, zero-padded to at least four digits.
    pub id: String,
    pub label: String,
    #[serde(deserialize_with = "required_option")]
    pub mis_conjugation_type: Option<String>,
    pub person: String,
    /// Corpus seed * 1000 + row number.
    pub seed: u64,
    /// Always the correct Spanish sentence of the cell.
    pub spanish: String,
    pub spanish_lemma: String,
    pub spanish_regularity: String,
    pub tense: String,
    pub text: String,
    pub verb_lemma: String,
}

/// A nullable key that must be present (serde fills a missing `Option` with `None` otherwise).
fn required_option<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer)
}

/// NFC, trimmed, lower case except the pronoun "I".
pub fn normalize(text: &str) -> String {
    let lowered = |word: &str| if word == "I" { word.to_owned() } else { word.to_lowercase() };
    text.nfc().collect::<String>().trim().split(' ').map(lowered).collect::<Vec<_>>().join(" ")
}

/// SHA-256 over verb, tense, person, label and normalised text. The text alone would not do: a bare participle is the
/// same for three persons, and each of the three cells needs its own row.
pub fn fingerprint(verb: &str, tense: &str, person: &str, label: &str, text: &str) -> String {
    sha256_hex([verb, tense, person, label, &normalize(text)].join("\t").as_bytes())
}

/// The closed taxonomy of learner errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorType {
    MissingThirdPersonS,
    OverregularizationPast,
    WrongAuxWillWithTo,
    WrongAuxGoingToMissingIng,
    SubjectVerbDisagreement,
    BareParticipleMissingAux,
}

impl ErrorType {
    pub const ALL: [ErrorType; 6] = [
        ErrorType::MissingThirdPersonS,
        ErrorType::OverregularizationPast,
        ErrorType::WrongAuxWillWithTo,
        ErrorType::WrongAuxGoingToMissingIng,
        ErrorType::SubjectVerbDisagreement,
        ErrorType::BareParticipleMissingAux,
    ];

    pub fn code(self) -> &'static str {
        match self {
            ErrorType::MissingThirdPersonS => "missing_third_person_s",
            ErrorType::OverregularizationPast => "overregularization_past",
            ErrorType::WrongAuxWillWithTo => "wrong_aux_will_with_to",
            ErrorType::WrongAuxGoingToMissingIng => "wrong_aux_going_to_missing_ing",
            ErrorType::SubjectVerbDisagreement => "subject_verb_disagreement",
            ErrorType::BareParticipleMissingAux => "bare_participle_missing_aux",
        }
    }

    /// The wrong text and its correction for a cell, or `None` where the error cannot be made.
    pub fn apply(self, cell: &Cell) -> Option<(String, String)> {
        let base = cell.verb.english;
        let i = cell.person.index();
        let pronoun = ENGLISH_PRONOUNS[i];
        let correct = cell.english.clone();
        match (self, cell.tense) {
            (ErrorType::MissingThirdPersonS, Tense::PresentSimple) if cell.person == Person::Third => {
                Some((format!("{pronoun} {base}"), correct))
            }
            (ErrorType::OverregularizationPast, Tense::PastSimple) if cell.verb.english_irregular => {
                Some((format!("{pronoun} {}", regular_past(base)), correct))
            }
            (ErrorType::OverregularizationPast, Tense::PastParticiple) if cell.verb.english_irregular => {
                Some((regular_past(base), correct))
            }
            (ErrorType::WrongAuxWillWithTo, Tense::FutureWill) => Some((format!("{pronoun} will to {base}"), correct)),
            (ErrorType::WrongAuxGoingToMissingIng, Tense::FutureGoingTo) => {
                Some((format!("{pronoun} {} go to {base}", PRESENT_BE[i]), correct))
            }
            (ErrorType::SubjectVerbDisagreement, Tense::PastSimple) if base == "be" => {
                let wrong = if PAST_BE[i] == "was" { "were" } else { "was" };
                Some((format!("{pronoun} {wrong}"), correct))
            }
            (ErrorType::SubjectVerbDisagreement, Tense::PastParticiple) => {
                let wrong = if PERFECT_HAVE[i] == "has" { "have" } else { "has" };
                Some((format!("{pronoun} {wrong} {}", participle(base)), perfect(base, cell.person)))
            }
            (ErrorType::SubjectVerbDisagreement, Tense::FutureGoingTo) => {
                let wrong = ["is", "is", "are"][i];
                Some((format!("{pronoun} {wrong} going to {base}"), correct))
            }
            // For regular verbs, have and come, pronoun + participle is itself a correct past or present form.
            (ErrorType::BareParticipleMissingAux, Tense::PastParticiple)
                if ["be", "do", "go", "see", "eat", "write"].contains(&base) =>
            {
                Some((format!("{pronoun} {}", participle(base)), perfect(base, cell.person)))
            }
            _ => None,
        }
    }
}

fn perfect(base: &str, person: Person) -> String {
    format!("{} {} {}", ENGLISH_PRONOUNS[person.index()], PERFECT_HAVE[person.index()], participle(base))
}

fn regularity(irregular: bool) -> String {
    if irregular { "irregular" } else { "regular" }.into()
}

fn row(cell: &Cell, text: String, error: Option<(ErrorType, String)>) -> Row {
    let label = if error.is_some() { LABEL_WRONG } else { LABEL_CORRECT };
    let grammar::Verb { english, spanish, english_irregular, spanish_irregular } = *cell.verb;
    let (tense, person) = (cell.tense.name(), cell.person.name());
    Row {
        fingerprint: fingerprint(english, tense, person, label, &text),
        mis_conjugation_type: error.as_ref().map(|(kind, _)| kind.code().into()),
        correct_form: error.map(|(_, correction)| correction),
        english_regularity: regularity(english_irregular),
        id: String::new(),
        label: label.into(),
        person: person.into(),
        seed: 0,
        spanish: cell.spanish.clone(),
        spanish_lemma: spanish.into(),
        spanish_regularity: regularity(spanish_irregular),
        tense: tense.into(),
        text,
        verb_lemma: english.into(),
    }
}

/// All rows of the corpus: one correct row a cell, and for each cell two coin flips' worth (0 to 2) of distinct
/// eligible errors; then a seeded shuffle and sequential ids. The same seed gives the same bytes on every platform.
pub fn generate(seed: u64) -> Vec<Row> {
    let mut rng = SplitMix64::keyed(seed, 0x7665_7262_7321);
    let mut rows = Vec::new();
    for cell in cells() {
        rows.push(row(&cell, cell.english.clone(), None));
        let mut errors: Vec<(ErrorType, String, String)> = ErrorType::ALL
            .into_iter()
            .filter_map(|kind| kind.apply(&cell).map(|(wrong, correction)| (kind, wrong, correction)))
            .collect();
        let wanted = (rng.below(2) + rng.below(2)) as usize;
        rng.shuffle(&mut errors);
        for (kind, wrong, correction) in errors.into_iter().take(wanted) {
            rows.push(row(&cell, wrong, Some((kind, correction))));
        }
    }
    rng.shuffle(&mut rows);
    for (number, row) in rows.iter_mut().enumerate() {
        row.id = format!("{number:04}");
        row.seed = seed.wrapping_mul(1000).wrapping_add(number as u64);
    }
    rows
}

/// One JSON object a line, keys sorted, UTF-8 unescaped, `\n` after each.
pub fn to_jsonl(rows: &[Row]) -> String {
    let line = |row: &Row| serde_json::to_string(row).expect("a row of strings and one integer is valid JSON");
    rows.iter().map(|row| line(row) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    #[test]
    fn each_error_type_is_eligible_in_as_many_cells_as_the_taxonomy_says() {
        let cells = cells();
        let eligible = |kind: ErrorType| cells.iter().filter(|c| kind.apply(c).is_some()).count();
        assert_eq!(ErrorType::ALL.map(eligible), [20, 48, 60, 60, 123, 18]);
    }

    #[test]
    fn no_wrong_text_is_a_correct_text_of_the_corpus_or_its_own_correction() {
        let cells = cells();
        let valid: HashSet<&str> = cells.iter().map(|c| c.english.as_str()).collect();
        for cell in &cells {
            for kind in ErrorType::ALL {
                if let Some((wrong, correction)) = kind.apply(cell) {
                    assert!(!valid.contains(wrong.as_str()), "{}: {wrong}", kind.code());
                    assert_ne!(wrong, correction);
                }
            }
        }
    }

    #[test]
    fn the_taxonomy_examples_come_out_as_written() {
        let cell = |lemma: &str, tense: Tense, person: Person| {
            cells().into_iter().find(|c| c.verb.english == lemma && c.tense == tense && c.person == person).unwrap()
        };
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        let work = cell("work", Tense::PresentSimple, Person::Third);
        assert_eq!(ErrorType::MissingThirdPersonS.apply(&work), pair("he work", "he works"));
        let went = cell("go", Tense::PastSimple, Person::First);
        assert_eq!(ErrorType::OverregularizationPast.apply(&went), pair("I goed", "I went"));
        let will = cell("work", Tense::FutureWill, Person::Third);
        assert_eq!(ErrorType::WrongAuxWillWithTo.apply(&will), pair("he will to work", "he will work"));
        let going = cell("work", Tense::FutureGoingTo, Person::First);
        assert_eq!(ErrorType::WrongAuxGoingToMissingIng.apply(&going), pair("I am go to work", "I am going to work"));
        let were = cell("be", Tense::PastSimple, Person::Second);
        assert_eq!(ErrorType::SubjectVerbDisagreement.apply(&were), pair("you was", "you were"));
        let worked = cell("work", Tense::PastParticiple, Person::Second);
        assert_eq!(ErrorType::SubjectVerbDisagreement.apply(&worked), pair("you has worked", "you have worked"));
        assert_eq!(ErrorType::BareParticipleMissingAux.apply(&worked), None);
        let gone = cell("go", Tense::PastParticiple, Person::Third);
        assert_eq!(ErrorType::BareParticipleMissingAux.apply(&gone), pair("he gone", "he has gone"));
    }

    #[test]
    fn rows_are_sequential_unique_and_at_least_100_wrong_ones_in_4_types() {
        let rows = generate(42);
        for (number, row) in rows.iter().enumerate() {
            assert_eq!(row.id, format!("{number:04}"));
            assert_eq!(row.seed, 42_000 + number as u64);
        }
        assert_eq!(rows.iter().map(|r| &r.fingerprint).collect::<HashSet<_>>().len(), rows.len());
        let mut types: BTreeMap<&str, usize> = BTreeMap::new();
        for kind in rows.iter().filter_map(|r| r.mis_conjugation_type.as_deref()) {
            *types.entry(kind).or_default() += 1;
        }
        assert!(types.values().sum::<usize>() >= 100 && types.len() >= 4, "{types:?}");
    }

    #[test]
    fn normalisation_lower_cases_all_but_the_pronoun_and_composes() {
        assert_eq!(normalize("  You Will WORK "), "you will work");
        assert_eq!(normalize("I am"), "I am");
        assert_eq!(normalize("man\u{0303}ana"), "ma\u{f1}ana");
    }
}
