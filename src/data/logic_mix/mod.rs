//! Logic Mix: a deterministic corpus of worked arithmetic, arguments and small algorithms, with literature mixed in from files that
//! the person gives. Every document is a pure function of (seed, kind, number), so corpora can be made in parallel and a larger one
//! begins with the smaller one. The split is by problem, not by wording: no problem of the held-out splits occurs in training.

pub mod arithmetic;
pub mod check;
pub mod draws;
pub mod export;
pub mod literature;
pub mod pseudocode;
pub mod recall;
pub mod syllogism;

use draws::{Draws, fnv1a64};
use rayon::prelude::*;

pub const SEED: u64 = 20_260_118;
/// Bytes of the whole mix if nothing else is asked for.
pub const BYTES: u64 = 17_680_000;

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Literature,
    Arithmetic,
    Syllogism,
    Pseudocode,
    /// Only where it is asked for. Its discriminant is its stream of random numbers, as for the others.
    Recall = 8,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Literature, Kind::Arithmetic, Kind::Syllogism, Kind::Pseudocode, Kind::Recall];
    /// What the generator makes for every mix.
    pub const SYNTHETIC: [Kind; 3] = [Kind::Arithmetic, Kind::Syllogism, Kind::Pseudocode];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Literature => "literature",
            Kind::Arithmetic => "arithmetic",
            Kind::Syllogism => "syllogism",
            Kind::Pseudocode => "pseudocode",
            Kind::Recall => "recall",
        }
    }

    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Share of the bytes that training sees: of recall, beside the others, which then divide the rest.
    pub fn weight(self) -> f64 {
        match self {
            Kind::Literature => 0.40,
            Kind::Arithmetic => 0.36,
            Kind::Syllogism => 0.14,
            Kind::Pseudocode => 0.10,
            Kind::Recall => 0.05,
        }
    }
}

/// A generated document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The problem, whatever its wording: what the split goes by.
    pub key: String,
    /// Ends with an empty line.
    pub text: String,
    /// -log2 of the probability that the generator writes this text. Whatever a model knows of the generator, it pays at least
    /// this on problems it has not seen.
    pub bits: f64,
}

/// Document `index` of a synthetic kind.
///
/// # Panics
/// For [`Kind::Literature`], which is not generated.
pub fn document(seed: u64, kind: Kind, index: u64) -> Document {
    let mut draws = Draws::of(seed, kind as u64, index);
    match kind {
        Kind::Literature => panic!("literature is given, not generated"),
        Kind::Arithmetic => arithmetic::document(&mut draws),
        Kind::Syllogism => syllogism::document(&mut draws),
        Kind::Pseudocode => pseudocode::document(&mut draws),
        Kind::Recall => recall::document(&mut draws),
    }
}

/// Documents of a kind in order, up to and with the first that brings their bytes to `target`.
pub fn documents(seed: u64, kind: Kind, target: u64) -> Vec<Document> {
    const PIECE: u64 = 4096;
    let (mut all, mut bytes) = (vec![], 0);
    while bytes < target {
        let first = all.len() as u64;
        let piece: Vec<Document> =
            (first..first + PIECE).into_par_iter().map(|index| document(seed, kind, index)).collect();
        for document in piece {
            if bytes >= target {
                break;
            }
            bytes += document.text.len() as u64;
            all.push(document);
        }
    }
    all
}

/// Which split a problem is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Split {
    Train,
    Val,
    Test,
}

impl Split {
    pub const ALL: [Split; 3] = [Split::Train, Split::Val, Split::Test];

    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::Test => "test",
        }
    }

    /// Of a problem: 90 of 100 classes train, 5 validate, 5 test.
    pub fn of(key: &str) -> Split {
        match class_of(key) {
            0..90 => Split::Train,
            90..95 => Split::Val,
            _ => Split::Test,
        }
    }
}

/// One of 100 classes of problems.
pub fn class_of(key: &str) -> u64 {
    crate::data::rng::mix(fnv1a64(key.as_bytes())) % 100
}

/// `User: .. Coeus: Step 1: .. Step 2: .. CONCLUSION` and an empty line.
pub fn dialogue(question: &str, steps: &[String], conclusion: &str) -> String {
    use std::fmt::Write;
    let mut text = format!("User: {question}\nCoeus:");
    for (i, step) in steps.iter().enumerate() {
        write!(text, " Step {}: {step}", i + 1).expect("a string takes what is written");
    }
    text + " " + conclusion + "\n\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_corpus_begins_with_the_shorter_one_and_stops_at_its_target() {
        for kind in Kind::SYNTHETIC {
            let (short, long) = (documents(SEED, kind, 10_000), documents(SEED, kind, 30_000));
            assert_eq!(long[..short.len()], short);
            let bytes: usize = short.iter().map(|d| d.text.len()).sum();
            assert!(bytes >= 10_000 && bytes - short.last().unwrap().text.len() < 10_000);
            assert_ne!(documents(SEED + 1, kind, 1_000), documents(SEED, kind, 1_000));
        }
    }

    #[test]
    fn kinds_keep_their_size_and_surprise() {
        // Documents, mean bytes and bits of the prototype's figures: 33,262 of 191 bytes and 22.4 bits; 10,014 of 247 and at most
        // 19.9 bits; 8,257 of 214 and at most 38 bits.
        for (kind, target, count, bits) in [
            (Kind::Arithmetic, 6_364_800, 33_262, 22.4),
            (Kind::Syllogism, 2_475_200, 10_014, 19.9),
            (Kind::Pseudocode, 1_768_000, 8_257, 38.0),
        ] {
            let all = documents(SEED, kind, target);
            let mean = all.iter().map(|d| d.bits).sum::<f64>() / all.len() as f64;
            eprintln!("{}: {} documents, {mean:.2} bits", kind.name(), all.len());
            let off = all.len() as f64 / f64::from(count) - 1.0;
            assert!(off.abs() < 0.02 && mean <= bits * 1.01, "{}: {} documents, {mean} bits", kind.name(), all.len());
        }
    }
}
