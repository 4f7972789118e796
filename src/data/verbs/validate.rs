//! Twelve checks of a corpus and the checks of its splits. They read JSON values, not typed rows, because what they look
//! for is what a typed row could not hold.

use super::rows::{ErrorType, LABEL_CORRECT, LABEL_WRONG, Row, fingerprint};
use super::split::{Policy, Splits};
use super::{Person, Tense, grammar};
use crate::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use unicode_normalization::is_nfc;

/// Allowed UTF-8 lengths of `text` and of `spanish`, in bytes.
pub const TEXT_BYTES: std::ops::RangeInclusive<usize> = 2..=30;
pub const SPANISH_BYTES: std::ops::RangeInclusive<usize> = 2..=40;

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub name: String,
    pub passed: bool,
    /// How many rows or cells failed it.
    pub failures: usize,
    /// The first few failures, or what was checked.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub passed: bool,
    pub rows: usize,
    pub checks: Vec<Check>,
}

impl Report {
    fn new(rows: usize, checks: Vec<Check>) -> Self {
        Report { passed: checks.iter().all(|c| c.passed), rows, checks }
    }

    /// The check of this name, if the report has it.
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|c| c.name == name)
    }
}

fn check(name: &str, what: &str, failures: Vec<String>) -> Check {
    const SHOWN: usize = 3;
    let message = if failures.is_empty() {
        what.to_owned()
    } else {
        let more =
            if failures.len() > SHOWN { format!(" (and {} more)", failures.len() - SHOWN) } else { String::new() };
        format!("{}{more}", failures[..failures.len().min(SHOWN)].join("; "))
    };
    Check { name: name.into(), passed: failures.is_empty(), failures: failures.len(), message }
}

/// Parses JSONL. A line that is not JSON is an error with its number; what the JSON says is left to [`validate`].
pub fn parse_jsonl(path: &Path, text: &str) -> Result<Vec<Value>> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line)
                .map_err(|e| Error::Data(format!("{} line {}: not a JSON object: {e}", path.display(), number + 1)))
        })
        .collect()
}

fn schema_fault(value: &Value) -> Option<String> {
    let row: Row = match serde_json::from_value(value.clone()) {
        Ok(row) => row,
        Err(e) => return Some(e.to_string()),
    };
    let known_regularity = |r: &str| ["regular", "irregular"].contains(&r);
    if row.id.len() < 4 || !row.id.bytes().all(|b| b.is_ascii_digit()) {
        Some(format!("id '{}' is not at least four digits", row.id))
    } else if !known_regularity(&row.english_regularity) || !known_regularity(&row.spanish_regularity) {
        Some("regularity is neither 'regular' nor 'irregular'".into())
    } else if row.label != LABEL_CORRECT && row.label != LABEL_WRONG {
        Some(format!("label '{}' is neither '{LABEL_CORRECT}' nor '{LABEL_WRONG}'", row.label))
    } else if row.fingerprint.len() != 64 || !row.fingerprint.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Some("fingerprint is not 64 lower-case hexadecimal digits".into())
    } else if let Err(e) = Tense::parse(&row.tense).and(Person::parse(&row.person).map(|_| ())) {
        Some(e.to_string())
    } else if grammar::find(&row.verb_lemma).is_none_or(|v| v.spanish != row.spanish_lemma) {
        Some(format!("verb '{}'/'{}' is not in the inventory", row.verb_lemma, row.spanish_lemma))
    } else {
        None
    }
}

/// Runs the twelve checks. A row that fails the schema is reported there and left out of the others.
pub fn validate(values: &[Value]) -> Report {
    let mut schema = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut rows: Vec<Row> = Vec::new();
    for (number, value) in values.iter().enumerate() {
        // A row that parses goes on to the other checks even if a coded field is wrong: those checks name it better.
        if let Ok(row) = serde_json::from_value::<Row>(value.clone()) {
            if let Some(first) = ids.insert(row.id.clone(), number + 1) {
                schema.push(format!("row {}: id '{}' was used by row {first}", number + 1, row.id));
            }
            rows.push(row);
        }
        if let Some(fault) = schema_fault(value) {
            let id = value.get("id").and_then(Value::as_str).unwrap_or("without id");
            schema.push(format!("row {} ({id}): {fault}", number + 1));
        }
    }
    let failing = |fault: &dyn Fn(&Row) -> Option<String>| -> Vec<String> {
        rows.iter().filter_map(|row| fault(row).map(|why| format!("row {}: {why}", row.id))).collect()
    };

    let mut first_with: HashMap<&str, &str> = HashMap::new();
    let mut fingerprints = Vec::new();
    for row in &rows {
        if row.fingerprint != fingerprint(&row.verb_lemma, &row.tense, &row.person, &row.label, &row.text) {
            fingerprints.push(format!("row {}: the fingerprint is not that of '{}'", row.id, row.text));
        }
        if let Some(first) = first_with.insert(&row.fingerprint, &row.id) {
            fingerprints.push(format!("row {}: same fingerprint as row {first}", row.id));
        }
    }

    let correct_cells: BTreeSet<(&str, &str, &str)> = rows
        .iter()
        .filter(|r| r.label == LABEL_CORRECT)
        .map(|r| (r.verb_lemma.as_str(), r.tense.as_str(), r.person.as_str()))
        .collect();
    let mut missing_cells = Vec::new();
    let (mut missing_surfaces, mut missing_persons) = (Vec::new(), Vec::new());
    for verb in grammar::VERBS.iter().map(|v| v.english) {
        let surfaces: BTreeSet<&str> = rows.iter().filter(|r| r.verb_lemma == verb).map(|r| r.tense.as_str()).collect();
        if surfaces.len() != Tense::ALL.len() {
            missing_surfaces.push(format!("{verb}: {} surfaces instead of {}", surfaces.len(), Tense::ALL.len()));
        }
        for tense in Tense::ALL.map(Tense::name) {
            let persons: BTreeSet<&str> =
                rows.iter().filter(|r| r.verb_lemma == verb && r.tense == tense).map(|r| r.person.as_str()).collect();
            if persons.len() != Person::ALL.len() {
                missing_persons.push(format!("{verb} {tense}: {} persons instead of 3", persons.len()));
            }
            for person in Person::ALL.map(Person::name) {
                if !correct_cells.contains(&(verb, tense, person)) {
                    missing_cells.push(format!("{verb} {tense} {person}: no correct row"));
                }
            }
        }
    }
    let verbs: BTreeSet<&str> = rows.iter().map(|r| r.verb_lemma.as_str()).collect();
    let verb_count = if verbs.len() == grammar::VERBS.len() {
        vec![]
    } else {
        vec![format!("{} verbs instead of {}", verbs.len(), grammar::VERBS.len())]
    };
    let codes = ErrorType::ALL.map(ErrorType::code);
    let wrong = |row: &Row| row.label == LABEL_WRONG;

    Report::new(
        values.len(),
        vec![
            check("schema", "every row has the fields, types and codes of the schema", schema),
            check("unique_fingerprints", "every fingerprint is right and unique", fingerprints),
            check("cells_covered", "all 360 cells have a correct row", missing_cells),
            check("verbs", "20 verbs", verb_count),
            check("surfaces_per_verb", "6 surfaces for every verb", missing_surfaces),
            check("persons_per_tense", "3 persons for every verb and tense", missing_persons),
            check(
                "known_error_types",
                "every error type is in the taxonomy",
                failing(&|row| {
                    let code = row.mis_conjugation_type.as_deref()?;
                    (!codes.contains(&code)).then(|| format!("'{code}' is not in the taxonomy"))
                }),
            ),
            check(
                "wrong_rows_have_corrections",
                "every mis-conjugated row has its type and a correction that differs from it",
                failing(&|row| {
                    let complete = row.mis_conjugation_type.is_some()
                        && row.correct_form.as_ref().is_some_and(|form| !form.is_empty() && *form != row.text);
                    (wrong(row) && !complete).then(|| "no type, no correction, or one equal to the text".into())
                }),
            ),
            check(
                "correct_rows_have_nulls",
                "no correct row has an error type or a correction",
                failing(&|row| {
                    let clean = row.mis_conjugation_type.is_none() && row.correct_form.is_none();
                    (!wrong(row) && !clean).then(|| "a correct row has an error type or a correction".into())
                }),
            ),
            check(
                "spanish_present",
                "every row has a Spanish sentence",
                failing(&|row| row.spanish.trim().is_empty().then(|| "the Spanish sentence is empty".into())),
            ),
            check(
                "nfc",
                "text, spanish and correct_form are in Unicode normal form C",
                failing(&|row| {
                    let composed =
                        is_nfc(&row.text) && is_nfc(&row.spanish) && row.correct_form.as_deref().is_none_or(is_nfc);
                    (!composed).then(|| "not in normal form C".into())
                }),
            ),
            check(
                "lengths",
                "2 to 30 bytes of English, 2 to 40 of Spanish",
                failing(&|row| {
                    let fits = TEXT_BYTES.contains(&row.text.len()) && SPANISH_BYTES.contains(&row.spanish.len());
                    (!fits).then(|| format!("{} and {} bytes", row.text.len(), row.spanish.len()))
                }),
            ),
        ],
    )
}

/// After the split: nothing in two splits, nothing lost, nothing invented.
pub fn validate_splits(all: &[Row], splits: &Splits, policy: &Policy) -> Report {
    let mut groups: BTreeMap<String, &str> = BTreeMap::new();
    let mut fingerprints: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut group_leaks, mut row_leaks) = (BTreeSet::new(), BTreeSet::new());
    for (name, rows) in splits.named() {
        for row in rows {
            let group = policy.group(row);
            let home = *groups.entry(group.clone()).or_insert(name);
            if home != name {
                group_leaks.insert(format!("{group} is in {home} and in {name}"));
            }
            let home = *fingerprints.entry(&row.fingerprint).or_insert(name);
            if home != name {
                row_leaks.insert(format!("row {} is in {home} and in {name}", row.id));
            }
        }
    }
    let corpus: BTreeSet<&str> = all.iter().map(|r| r.fingerprint.as_str()).collect();
    let in_splits: BTreeSet<&str> = fingerprints.keys().copied().collect();
    let difference: Vec<String> = corpus.symmetric_difference(&in_splits).map(|f| format!("row {f}")).collect();
    Report::new(
        all.len(),
        vec![
            check("no_row_in_two_splits", "no fingerprint is in two splits", row_leaks.into_iter().collect()),
            check(
                "no_group_in_two_splits",
                &format!("no group of policy {policy} is in two splits"),
                group_leaks.into_iter().collect(),
            ),
            check("splits_are_the_corpus", "the splits together are the corpus", difference),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::super::rows::generate;
    use super::super::split::split;
    use super::*;
    use serde_json::json;

    fn values() -> Vec<Value> {
        generate(42).iter().map(|row| serde_json::to_value(row).unwrap()).collect()
    }

    fn refresh(value: &mut Value) {
        let row: Row = serde_json::from_value(value.clone()).unwrap();
        value["fingerprint"] = fingerprint(&row.verb_lemma, &row.tense, &row.person, &row.label, &row.text).into();
    }

    /// Applies one violation and returns the names of the checks that fail.
    fn failing(violate: impl FnOnce(&mut Vec<Value>)) -> Vec<String> {
        let mut rows = values();
        violate(&mut rows);
        validate(&rows).checks.into_iter().filter(|c| !c.passed).map(|c| c.name).collect()
    }

    fn find(rows: &[Value], label: &str) -> usize {
        rows.iter().position(|r| r["label"] == label).unwrap()
    }

    #[test]
    fn the_generated_corpus_passes_all_twelve() {
        let report = validate(&values());
        assert!(report.passed, "{report:?}");
        assert_eq!(report.checks.len(), 12);
    }

    #[test]
    fn schema_catches_a_missing_field_a_wrong_type_an_extra_field_and_unknown_codes() {
        for violate in [
            (|r| drop(r.as_object_mut().unwrap().remove("correct_form"))) as fn(&mut Value),
            |r| r["seed"] = json!("42"),
            |r| r["extra"] = json!(1),
            |r| r["id"] = json!("7"),
            |r| r["english_regularity"] = json!("reg-ish"),
            |r| r["fingerprint"] = json!("abc"),
        ] {
            assert!(failing(|rows| violate(&mut rows[0])).contains(&"schema".into()));
        }
        let report = validate(&{
            let mut rows = values();
            rows[3]["tense"] = json!("future_wil");
            rows
        });
        let message = &report.check("schema").unwrap().message;
        assert!(message.contains("0003") && message.contains("future_will"), "{message}");
        assert!(failing(|rows| rows[1]["id"] = rows[0]["id"].clone()) == ["schema"]);
    }

    #[test]
    fn unique_fingerprints_catches_a_repeated_row() {
        assert_eq!(
            failing(|rows| {
                let mut copy = rows[0].clone();
                copy["id"] = json!("9999");
                rows.push(copy);
            }),
            ["unique_fingerprints"]
        );
        assert_eq!(failing(|rows| rows[0]["fingerprint"] = json!("0".repeat(64))), ["unique_fingerprints"]);
    }

    #[test]
    fn cells_covered_catches_a_lost_correct_row() {
        // A cell whose mis-conjugated row stays, so that verbs, surfaces and persons are all still there.
        assert_eq!(
            failing(|rows| {
                let wrong = rows[find(rows, LABEL_WRONG)].clone();
                rows.retain(|r| {
                    r["label"] != LABEL_CORRECT
                        || ["verb_lemma", "tense", "person"].iter().any(|key| r[key] != wrong[key])
                });
            }),
            ["cells_covered"]
        );
    }

    #[test]
    fn verbs_catches_a_twenty_first_verb() {
        let failed = failing(|rows| {
            let mut extra = rows[find(rows, LABEL_CORRECT)].clone();
            extra["id"] = json!("9999");
            extra["verb_lemma"] = json!("run");
            refresh(&mut extra);
            rows.push(extra);
        });
        assert_eq!(failed, ["schema", "verbs"]);
    }

    #[test]
    fn surfaces_per_verb_catches_a_missing_surface() {
        let failed = failing(|rows| rows.retain(|r| r["verb_lemma"] != "go" || r["tense"] != "future_will"));
        assert_eq!(failed, ["cells_covered", "surfaces_per_verb", "persons_per_tense"]);
    }

    #[test]
    fn persons_per_tense_catches_a_missing_person() {
        let failed = failing(|rows| {
            rows.retain(|r| r["verb_lemma"] != "go" || r["tense"] != "past_simple" || r["person"] != "2sg");
        });
        assert_eq!(failed, ["cells_covered", "persons_per_tense"]);
    }

    #[test]
    fn known_error_types_catches_a_type_outside_the_taxonomy() {
        let failed = failing(|rows| {
            let i = find(rows, LABEL_WRONG);
            rows[i]["mis_conjugation_type"] = json!("typo");
        });
        assert_eq!(failed, ["known_error_types"]);
    }

    #[test]
    fn wrong_rows_have_corrections_catches_a_null_and_an_equal_correction() {
        for correction in [|_: &Value| Value::Null, |row: &Value| row["text"].clone()] {
            let failed = failing(|rows| {
                let i = find(rows, LABEL_WRONG);
                rows[i]["correct_form"] = correction(&rows[i]);
            });
            assert_eq!(failed, ["wrong_rows_have_corrections"]);
        }
    }

    #[test]
    fn correct_rows_have_nulls_catches_a_correction_on_a_correct_row() {
        let failed = failing(|rows| {
            let i = find(rows, LABEL_CORRECT);
            rows[i]["correct_form"] = json!("he works");
        });
        assert_eq!(failed, ["correct_rows_have_nulls"]);
    }

    #[test]
    fn spanish_present_catches_blank_spanish() {
        assert_eq!(failing(|rows| rows[0]["spanish"] = json!("   ")), ["spanish_present"]);
    }

    #[test]
    fn nfc_catches_decomposed_spanish() {
        // "él" with a combining acute accent.
        assert_eq!(failing(|rows| rows[0]["spanish"] = json!("e\u{301}l come")), ["nfc"]);
    }

    #[test]
    fn lengths_catches_a_sentence_of_41_bytes() {
        assert_eq!(failing(|rows| rows[0]["spanish"] = json!("a".repeat(41))), ["lengths"]);
    }

    #[test]
    fn a_group_or_a_row_in_two_splits_is_caught() {
        let rows = generate(42);
        let policy = Policy::parse("verb-tense").unwrap();
        let mut splits = split(&rows, &policy, 42).unwrap();
        assert!(validate_splits(&rows, &splits, &policy).passed);
        splits.val.push(splits.train[0].clone());
        let report = validate_splits(&rows, &splits, &policy);
        assert!(!report.check("no_row_in_two_splits").unwrap().passed);
        assert!(!report.check("no_group_in_two_splits").unwrap().passed);
        splits.val.pop();
        splits.train.pop();
        assert!(!validate_splits(&rows, &splits, &policy).check("splits_are_the_corpus").unwrap().passed);
    }
}
