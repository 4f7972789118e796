//! What is held out. A random 80/20 split of rows is refused: it leaks.

use super::rows::Row;
use super::{Person, Tense, grammar, unknown};
use crate::data::rng::SplitMix64;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The default held-out verbs: two regular, two irregular.
pub const HELD_OUT_VERBS: [&str; 4] = ["look", "like", "see", "eat"];
pub const DEFAULT_RATIOS: [f64; 3] = [0.8, 0.1, 0.1];

/// Which cells the model never sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// Whole (verb, tense) pairs go to train, val or test in these ratios.
    VerbTense { ratios: [f64; 3] },
    /// All rows of these verbs validate; the others train.
    Verbs(Vec<String>),
    /// All rows of this surface validate.
    Tense(Tense),
    /// All rows of this person validate.
    Person(Person),
    /// Everything trains and nothing is held out: what is measured on it is memory, not grammar.
    None,
}

impl Default for Policy {
    fn default() -> Self {
        Policy::Verbs(HELD_OUT_VERBS.map(str::to_owned).to_vec())
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::VerbTense { ratios: [train, val, test] } => write!(f, "verb-tense:{train},{val},{test}"),
            Policy::Verbs(verbs) => write!(f, "verbs:{}", verbs.join(",")),
            Policy::Tense(tense) => write!(f, "tense:{}", tense.name()),
            Policy::Person(person) => write!(f, "person:{}", person.name()),
            Policy::None => write!(f, "none"),
        }
    }
}

/// Train, val, test fractions: none negative, sum 1, something to train on.
pub fn parse_ratios(text: &str) -> Result<[f64; 3]> {
    let complaint = || Error::Config(format!("ratios '{text}': give three fractions that sum to 1, as in 0.8,0.1,0.1"));
    let parts: Vec<f64> =
        text.split(',').map(|part| part.trim().parse().map_err(|_| complaint())).collect::<Result<_>>()?;
    let ratios: [f64; 3] = parts.try_into().map_err(|_| complaint())?;
    let valid = ratios.iter().all(|r| (0.0..=1.0).contains(r)) && (ratios.iter().sum::<f64>() - 1.0).abs() < 1e-9;
    if valid && ratios[0] > 0.0 { Ok(ratios) } else { Err(complaint()) }
}

impl Policy {
    /// `verbs[:look,like,..]` (without a list also `verbs_4`), `verb-tense[:0.8,0.1,0.1]`, `tense[:NAME]`,
    /// `person[:NAME]` or `none`; `_` may stand for `-`.
    pub fn parse(text: &str) -> Result<Policy> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        match name.replace('_', "-").as_str() {
            "none" if argument.is_none() => Ok(Policy::None),
            "verbs-4" if argument.is_none() => Ok(Policy::default()),
            "verbs" => {
                let Some(list) = argument else { return Ok(Policy::default()) };
                let verbs: BTreeSet<&str> = list.split(',').map(str::trim).collect();
                for verb in &verbs {
                    if grammar::find(verb).is_none() {
                        return Err(unknown("verb", verb, grammar::VERBS.iter().map(|v| v.english)));
                    }
                }
                if verbs.len() == grammar::VERBS.len() {
                    return Err(Error::Config("all verbs are held out: none is left to train on".into()));
                }
                // In corpus order, whatever the order they were given in.
                let kept = grammar::VERBS.iter().map(|v| v.english).filter(|v| verbs.contains(v));
                Ok(Policy::Verbs(kept.map(str::to_owned).collect()))
            }
            "verb-tense" => {
                let ratios = argument.map_or(Ok(DEFAULT_RATIOS), parse_ratios)?;
                Ok(Policy::VerbTense { ratios })
            }
            "tense" => Ok(Policy::Tense(argument.map_or(Ok(Tense::FutureGoingTo), Tense::parse)?)),
            "person" => Ok(Policy::Person(argument.map_or(Ok(Person::Third), Person::parse)?)),
            "random" => Err(Error::Config(
                "a random split of rows is refused: the three persons of one (verb, tense) differ by a pronoun, and bare \
                 infinitives and participles are the same text for all three, so validation would contain training \
                 rows and its loss would measure memory. Use verbs, verb-tense, tense or person"
                    .into(),
            )),
            _ => Err(Error::Config(format!(
                "no such split policy '{name}': use verbs[:LIST], verb-tense[:0.8,0.1,0.1], tense[:NAME], \
                 person[:NAME] or none"
            ))),
        }
    }

    /// The unit that must not stand in two splits.
    pub fn group(&self, row: &Row) -> String {
        match self {
            Policy::VerbTense { .. } => format!("{}/{}", row.verb_lemma, row.tense),
            Policy::Verbs(_) => row.verb_lemma.clone(),
            Policy::Tense(_) => row.tense.clone(),
            Policy::Person(_) => row.person.clone(),
            Policy::None => "all".into(),
        }
    }
}

/// Rows by split, each in the order of the corpus (which is shuffled).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Splits {
    pub train: Vec<Row>,
    pub val: Vec<Row>,
    pub test: Vec<Row>,
}

impl Splits {
    pub fn named(&self) -> [(&'static str, &[Row]); 3] {
        [("train", &self.train), ("val", &self.val), ("test", &self.test)]
    }
}

/// Splits rows by policy. Mis-conjugated rows go where the correct row of their cell goes.
pub fn split(rows: &[Row], policy: &Policy, seed: u64) -> Result<Splits> {
    let groups: BTreeSet<String> = rows.iter().map(|row| policy.group(row)).collect();
    let mut part_of: BTreeMap<String, usize> = BTreeMap::new();
    match policy {
        Policy::VerbTense { ratios } => {
            let mut keys: Vec<String> = groups.into_iter().collect();
            SplitMix64::keyed(seed, 0x7370_6c69_7421).shuffle(&mut keys);
            // The small constant keeps a product such as 0.29 * 100 = 28.999... from losing a whole group.
            let count = |ratio: f64| (ratio * keys.len() as f64 + 1e-9) as usize;
            let (train, val) = (count(ratios[0]), count(ratios[1]));
            for (place, key) in keys.into_iter().enumerate() {
                part_of.insert(key, usize::from(place >= train) + usize::from(place >= train + val));
            }
        }
        Policy::Verbs(held_out) => {
            part_of.extend(groups.into_iter().map(|verb| (verb.clone(), usize::from(held_out.contains(&verb)))));
        }
        Policy::Tense(held_out) => {
            part_of.extend(groups.into_iter().map(|t| (t.clone(), usize::from(t == held_out.name()))));
        }
        Policy::Person(held_out) => {
            part_of.extend(groups.into_iter().map(|p| (p.clone(), usize::from(p == held_out.name()))));
        }
        Policy::None => part_of.extend(groups.into_iter().map(|all| (all, 0))),
    }
    let mut splits = Splits::default();
    for row in rows {
        match part_of[&policy.group(row)] {
            0 => splits.train.push(row.clone()),
            1 => splits.val.push(row.clone()),
            _ => splits.test.push(row.clone()),
        }
    }
    if splits.train.is_empty() {
        return Err(Error::Config(format!("split {policy}: nothing is left to train on")));
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::super::rows::{LABEL_CORRECT, generate};
    use super::*;

    fn pairs(rows: &[Row]) -> usize {
        rows.iter().map(|r| (&r.verb_lemma, &r.tense)).collect::<BTreeSet<_>>().len()
    }

    fn correct(rows: &[Row]) -> usize {
        rows.iter().filter(|r| r.label == LABEL_CORRECT).count()
    }

    #[test]
    fn verb_tense_gives_96_12_12_pairs_and_288_36_36_correct_rows() {
        let splits = split(&generate(42), &Policy::parse("verb-tense").unwrap(), 42).unwrap();
        assert_eq!(splits.named().map(|(_, rows)| pairs(rows)), [96, 12, 12]);
        assert_eq!(splits.named().map(|(_, rows)| correct(rows)), [288, 36, 36]);
    }

    #[test]
    fn a_hundred_pairs_split_80_10_10() {
        let verbs: Vec<&str> = grammar::VERBS.iter().map(|v| v.english).collect();
        let mut rows = generate(42);
        rows.retain(|r| r.tense != "infinitive" && verbs.contains(&r.verb_lemma.as_str()));
        assert_eq!(pairs(&rows), 100);
        let splits = split(&rows, &Policy::VerbTense { ratios: DEFAULT_RATIOS }, 42).unwrap();
        assert_eq!(splits.named().map(|(_, rows)| pairs(rows)), [80, 10, 10]);
    }

    #[test]
    fn no_group_stands_in_two_splits_under_any_policy() {
        let rows = generate(42);
        for policy in ["verbs", "verbs:be,work", "verb-tense", "verb-tense:0.5,0.25,0.25", "tense", "person:1sg"] {
            let policy = Policy::parse(policy).unwrap();
            let splits = split(&rows, &policy, 7).unwrap();
            let groups = splits.named().map(|(_, rows)| rows.iter().map(|r| policy.group(r)).collect::<BTreeSet<_>>());
            assert!(groups[0].is_disjoint(&groups[1]) && groups[0].is_disjoint(&groups[2]), "{policy}");
            assert!(groups[1].is_disjoint(&groups[2]) && !splits.val.is_empty(), "{policy}");
            assert_eq!(splits.named().iter().map(|(_, rows)| rows.len()).sum::<usize>(), rows.len());
            assert_eq!(Policy::parse(&policy.to_string()).unwrap(), policy);
        }
    }

    #[test]
    fn the_default_holds_out_look_like_see_eat() {
        let splits = split(&generate(42), &Policy::default(), 42).unwrap();
        let verbs: BTreeSet<&str> = splits.val.iter().map(|r| r.verb_lemma.as_str()).collect();
        assert_eq!(verbs, HELD_OUT_VERBS.into_iter().collect());
        assert_eq!((correct(&splits.train), correct(&splits.val)), (288, 72));
    }

    #[test]
    fn none_holds_nothing_out_and_configuration_spellings_are_understood() {
        let rows = generate(42);
        let splits = split(&rows, &Policy::parse("none").unwrap(), 42).unwrap();
        assert_eq!((splits.train.len(), splits.val.len(), splits.test.len()), (rows.len(), 0, 0));
        assert_eq!(Policy::parse("verbs_4").unwrap(), Policy::default());
        assert_eq!(Policy::parse("verb_tense").unwrap(), Policy::VerbTense { ratios: DEFAULT_RATIOS });
    }

    #[test]
    fn random_is_refused_with_the_reason_and_typos_with_a_hint() {
        let message = Policy::parse("random:0.8").unwrap_err().to_string();
        assert!(message.contains("refused") && message.contains("training rows"), "{message}");
        assert!(Policy::parse("verbs:lok").unwrap_err().to_string().contains("did you mean 'look'"));
        assert!(Policy::parse("tense:past").is_err() && Policy::parse("thirds").is_err());
        for bad in ["0.8,0.1", "0.8,0.1,0.2", "a,b,c", "0,0.5,0.5", "1.2,-0.1,-0.1"] {
            assert!(parse_ratios(bad).is_err(), "{bad}");
        }
    }
}
