//! Facts that come back: a sentence gives a name its code, and later the same sentence can be finished only by who remembers it. A
//! model without attention over its whole past, or a memory, has to carry the code through everything between.
//!
//! Names of training, validation and test texts are different names: what is learnt is to remember, not whom.

use super::draws::Draws;
use super::syllogism::{self, NOUNS};
use super::{Document, Split};

const CONSONANTS: &[u8; 14] = b"bdfghklmnprstv";
const VOWELS: &[u8; 5] = b"aeiou";
/// Of three syllables.
const NAMES: f64 = 343_000.0;
/// Facts of a training text, each asked for once.
pub const FACTS: usize = 8;
/// Bytes of a name.
pub const NAME: usize = 6;
/// Bytes of a fact with its space, and of the part of it that stands before the code.
pub const FACT: usize = 28;
pub const BEFORE_CODE: usize = 22;

/// Three syllables of a consonant and a vowel, with a capital: "Lodura".
pub fn name(draws: &mut Draws) -> String {
    let mut name = String::with_capacity(NAME);
    for _ in 0..NAME / 2 {
        name.push(char::from(CONSONANTS[draws.below(CONSONANTS.len() as u64) as usize]));
        name.push(char::from(VOWELS[draws.below(VOWELS.len() as u64) as usize]));
    }
    name[..1].make_ascii_uppercase();
    name
}

/// Names with every letter that a name can have, at its start and inside.
pub fn every_letter() -> Vec<String> {
    let of = |(i, &consonant): (usize, &u8)| {
        let vowel = |more: usize| char::from(VOWELS[(i + more) % VOWELS.len()]);
        let inner = char::from(consonant);
        let first = inner.to_ascii_uppercase();
        format!("{first}{}{inner}{}{inner}{}", vowel(0), vowel(1), vowel(2))
    };
    CONSONANTS.iter().enumerate().map(of).collect()
}

/// Different names of a split: class by name, as of any problem.
pub fn names(draws: &mut Draws, n: usize, split: Split) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    while names.len() < n {
        let name = name(draws);
        if Split::of(&name) == split && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Four digits.
pub fn code(draws: &mut Draws) -> String {
    format!("{:04}", draws.below(10_000))
}

/// What stands before the code.
pub fn query(name: &str) -> String {
    format!("The code of {name} is ")
}

/// `The code of Lodura is 0613. `
pub fn fact(name: &str, code: &str) -> String {
    format!("{}{code}. ", query(name))
}

/// Sentences without digits, at least this many bytes of them, each with a space at its end.
pub fn prose(draws: &mut Draws, bytes: usize) -> String {
    let mut text = String::new();
    while text.len() < bytes {
        let drawn = syllogism::draw(draws, NOUNS.len());
        text += &drawn.argument(&NOUNS).premises();
        text.push(' ');
    }
    text
}

/// Eight facts, and each again later, in drawn order with prose between. How much prose differs from text to text: from a sentence
/// to about a hundred bytes, so that near facts teach what far ones need.
pub fn document(draws: &mut Draws) -> Document {
    // Whose names a text has is decided by its key, which says nothing else.
    let key = format!("r|{:016x}", draws.bits());
    let split = Split::of(&key);
    let names = names(draws, FACTS, split);
    let codes: Vec<String> = names.iter().map(|_| code(draws)).collect();
    let most = 8u64 << draws.below(6);
    let (mut text, mut told, mut open) = (String::new(), 0, vec![]);
    while told < FACTS || !open.is_empty() {
        let gap = draws.below(most) as usize;
        text += &prose(draws, gap);
        let tell = told < FACTS && (open.is_empty() || draws.below(2) == 0);
        let which = if tell {
            open.push(told);
            told += 1;
            told - 1
        } else {
            open.swap_remove(draws.below(open.len() as u64) as usize)
        };
        text += &fact(&names[which], &codes[which]);
    }
    // The least that these texts cost: the names and codes, each the first time. A text of held-out names has fewer to choose from.
    let share = if split == Split::Train { 0.9 } else { 0.05 };
    let bits = FACTS as f64 * ((share * NAMES).log2() + 10_000f64.log2());
    Document { key, text: text.trim_end().to_owned() + "\n\n", bits }
}

/// Checks that every name has one code and is told and asked once, and that its class is that of the text's split.
pub fn check(text: &str) -> Result<(), String> {
    let mut facts: Vec<(&str, &str, usize)> = vec![];
    for part in text.split("The code of ").skip(1) {
        let (name, rest) = part.split_once(" is ").ok_or_else(|| format!("{part:?} gives no code"))?;
        let code = rest.split_once('.').map(|(code, _)| code).ok_or_else(|| format!("{part:?} does not end"))?;
        if code.len() != 4 || !code.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{code:?} is no code of four digits"));
        }
        match facts.iter_mut().find(|(known, _, _)| *known == name) {
            Some((_, known, _)) if *known != code => return Err(format!("the code of {name} is {known}, not {code}")),
            Some((_, _, times)) => *times += 1,
            None => facts.push((name, code, 1)),
        }
    }
    match facts.iter().find(|(_, _, times)| *times != 2) {
        Some((name, _, times)) => Err(format!("the code of {name} is there {times} times, not twice")),
        None if facts.is_empty() => Err("no fact is told".into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, SEED, class_of, documents};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sentences_have_their_lengths_and_names_their_syllables() {
        let mut draws = Draws::of(SEED, 8, 0);
        for _ in 0..1000 {
            let name = name(&mut draws);
            let bytes = name.to_lowercase().into_bytes();
            assert!(
                bytes.chunks(2).all(|s| CONSONANTS.contains(&s[0]) && VOWELS.contains(&s[1])) && name.len() == NAME
            );
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()));
            assert_eq!(query(&name).len(), BEFORE_CODE);
            assert_eq!(fact(&name, &code(&mut draws)).len(), FACT);
        }
        assert!(!prose(&mut draws, 20_000).contains(|c: char| c.is_ascii_digit()));
    }

    #[test]
    fn texts_are_right_and_names_of_the_splits_never_meet() {
        let mut names: [BTreeSet<String>; 3] = Default::default();
        for document in documents(SEED, Kind::Recall, 400_000) {
            check(&document.text).unwrap();
            let split = Split::of(&document.key);
            for part in document.text.split("The code of ").skip(1) {
                let name = &part[..NAME];
                let class = class_of(name);
                let held = match split {
                    Split::Train => class < 90,
                    Split::Val => (90..95).contains(&class),
                    Split::Test => class >= 95,
                };
                assert!(held, "{name} of class {class} in {split:?}");
                names[split as usize].insert(name.to_owned());
            }
        }
        assert!(
            names.iter().all(|n| n.len() > 8) && names[0].is_disjoint(&names[2]) && names[0].is_disjoint(&names[1])
        );
        let text = document(&mut Draws::of(SEED, 8, 0)).text;
        let at = text.rfind(" is ").unwrap() + 4;
        let digit = (text.as_bytes()[at] - b'0' + 1) % 10;
        assert!(check(&format!("{}{digit}{}", &text[..at], &text[at + 1..])).unwrap_err().contains("not"));
        assert!(check("All cats are poets.\n\n").is_err() && check("The code of Bado is 1.").is_err());
    }

    #[test]
    fn distances_reach_from_a_sentence_to_thousands_of_bytes() {
        let mut all: Vec<usize> = vec![];
        for document in documents(SEED, Kind::Recall, 400_000) {
            let places: Vec<(usize, &str)> = document
                .text
                .match_indices("The code of ")
                .map(|(at, _)| (at, &document.text[at + 12..at + 18]))
                .collect();
            for (i, (at, name)) in places.iter().enumerate() {
                all.extend(places[..i].iter().find(|(_, n)| n == name).map(|(first, _)| at - first));
            }
        }
        all.sort_unstable();
        assert!(
            all[0] == FACT && all[all.len() / 2] < 1000 && all[all.len() - 1] > 1500,
            "{:?}",
            (all[0], all[all.len() / 2], all.last())
        );
    }
}
