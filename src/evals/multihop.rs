//! Chains of facts: seven names, and of six of them who gives the key to whom, in drawn order at drawn places of running text. Asked is
//! who has it after one, two or three steps.

use super::filler::Filler;
use super::{Proportion, STREAM, continuations, follow};
use crate::data::logic_mix::Split;
use crate::data::logic_mix::draws::Draws;
use crate::data::logic_mix::recall::{every_letter, names};
use crate::infer::NextToken;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde::Serialize;

/// Names of a chain.
pub const NAMES: usize = 7;
/// Bytes of filler among the facts.
pub const FILLER: usize = 900;
pub const STEPS: [usize; 3] = [1, 2, 3];
/// Chains for each number of steps.
pub const CHAINS: usize = 200;

/// What the best guesser gets who knows the form, and of each name whether it gives and receives, but follows no fact: more than one
/// in six, because a chain has ends. Its first name never receives, so it is no answer; its last never gives, and is the answer for
/// one of the `NAMES - steps` starts.
pub fn chance(steps: usize) -> f64 {
    let starts = (NAMES - steps) as f64;
    // From the first name: any of those in the middle, alike. From another: the last is right for one of the starts left, and no name
    // in the middle more often, of which the other starts have NAMES - 3 to share.
    (1.0 / (NAMES - 2) as f64 + 1.0) / starts
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    pub seed: u64,
    /// Chains for each number of steps.
    pub n: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { seed: crate::data::logic_mix::SEED, n: CHAINS }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Ends with the query.
    pub prompt: String,
    /// The six names that are not the start, in the order of the alphabet; they and the start have different first letters.
    pub candidates: Vec<String>,
    /// Which of them is right.
    pub answer: usize,
}

/// A chain of names of the test class, asked for `steps` steps from a drawn start.
pub fn sample(filler: &Filler, draws: &mut Draws, steps: usize) -> Sample {
    let mut chain: Vec<String> = vec![];
    while chain.len() < NAMES {
        let name = names(draws, 1, Split::Test).remove(0);
        // The first letter decides: a model is scored by its first token.
        if chain.iter().all(|other| other[..1] != name[..1]) {
            chain.push(name);
        }
    }
    let text = filler.piece(draws, FILLER);
    let order = draws.distinct(NAMES - 1, (NAMES - 1) as u64);
    let mut places: Vec<usize> = order.iter().map(|_| draws.below(FILLER as u64 + 1) as usize).collect();
    places.sort_unstable();
    let mut prompt = String::new();
    let mut done = 0;
    for (&link, &place) in order.iter().zip(&places) {
        prompt += &text[done..place];
        done = place;
        prompt += &fact(&chain[link as usize], &chain[link as usize + 1]);
    }
    prompt += &text[done..];
    let start = draws.below((NAMES - steps) as u64) as usize;
    prompt += &query(&chain[start], steps);
    let last = chain[start + steps].clone();
    chain.remove(start);
    chain.sort_unstable();
    let answer = chain.iter().position(|name| *name == last).unwrap_or(0);
    Sample { prompt, candidates: chain, answer }
}

/// One model's share for a number of steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub steps: usize,
    /// The right name's first token is the most likely of the six.
    pub choice: Proportion,
    /// Greedy decoding writes the right name.
    pub exact: Proportion,
}

/// Whether a tokenizer can write what this battery asks: facts about names of every letter, every query, and filler.
pub fn check(tokenizer: &Tokenizer, name: &str, filler: &Filler) -> Result<()> {
    filler.readable(tokenizer)?;
    let names = every_letter();
    // Piece by piece, so that a message shows little more than what cannot be written.
    let mut told = names.iter().map(|n| fact(n, n)).chain(STEPS.map(|steps| query(&names[0], steps)));
    told.try_for_each(|text| super::encode(tokenizer, name, &text).map(drop))
}

fn fact(giver: &str, receiver: &str) -> String {
    format!("{giver} gives the key to {receiver}. ")
}

fn query(start: &str, steps: usize) -> String {
    format!("Start at {start}, {steps} steps: ")
}

/// Asks a model; `name` stands in messages. `progress` is told how many chains are done, and of how many.
pub fn run(
    model: &mut dyn NextToken,
    name: &str,
    options: &Options,
    filler: &Filler,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Row>> {
    if options.n == 0 {
        return Err(Error::Config("--n 0: give at least one chain for each number of steps".into()));
    }
    let filler = filler.readable(model.tokenizer())?;
    let mut rows: Vec<Row> = vec![];
    for steps in STEPS {
        let mut marks = vec![];
        for number in 0..options.n {
            let index = (steps as u64) << 44 ^ number as u64 ^ 3 << 54;
            let sample = sample(&filler, &mut Draws::of(options.seed, STREAM, index), steps);
            marks.push(ask(model, name, &sample)?);
            progress(rows.len() * options.n + number + 1, STEPS.len() * options.n);
        }
        rows.push(Row {
            steps,
            choice: Proportion::of(marks.iter().map(|m| m.0)),
            exact: Proportion::of(marks.iter().map(|m| m.1)),
        });
    }
    Ok(rows)
}

/// Whether the right one is chosen, and whether it is written.
fn ask(model: &mut dyn NextToken, name: &str, sample: &Sample) -> Result<(bool, bool)> {
    let candidates: Vec<&str> = sample.candidates.iter().map(String::as_str).collect();
    let (prompt, answers) = continuations(model.tokenizer(), name, &sample.prompt, &candidates)?;
    let first: Vec<usize> = answers.iter().map(|ids| ids.first().map_or(0, |&id| id as usize)).collect();
    if (1..first.len()).any(|i| first[..i].contains(&first[i])) {
        return Err(Error::Data(format!(
            "{name}: its tokenizer begins two of the names {} with the same token, so the first does not tell them apart; train with tokenizer.kind = \"byte\"",
            candidates.join(", ")
        )));
    }
    model.restart()?;
    let logits = model.advance(&prompt)?;
    // Among equals the first in the alphabet, which says nothing of the chain: a model that knows nothing gets its chance.
    let best = (0..first.len()).rev().max_by(|&a, &b| logits[first[a]].total_cmp(&logits[first[b]]));
    let followed = follow(model, logits, &answers[sample.answer])?;
    Ok((best == Some(sample.answer), followed.likeliest.iter().all(|&right| right)))
}
