//! Recall of a fact over a distance: `The code of Lodura is 0613. ` stands in running text, and some bytes later its first words stand
//! again; the code has to follow.
//!
//! The distance is the number of bytes between the fact's last and the query's first, so a model has to look back [`reach`] tokens more
//! than that: from where it predicts a digit to where it read it. Other facts of the same form, about other names, may stand anywhere
//! before the query. Names are of the test class and in no training text.

use super::filler::Filler;
use super::{Proportion, STREAM, continuations, follow};
use crate::data::logic_mix::Split;
use crate::data::logic_mix::draws::Draws;
use crate::data::logic_mix::recall::{BEFORE_CODE, FACT, code, every_letter, fact, names, query};
use crate::infer::NextToken;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde::Serialize;

pub const DISTANCES: [usize; 9] = [16, 64, 120, 200, 400, 700, 900, 1500, 3000];
/// Numbers of facts.
pub const FACTS: [usize; 3] = [1, 2, 4];
/// Texts of a cell.
pub const TEXTS: usize = 64;
/// Where the fact begins, at least.
const START: usize = 100;
/// Alignments are places modulo this, what an episodic memory commonly stores one position of.
pub const ALIGNMENTS: usize = 8;
/// Longest distance: a text of it is drawn in memory.
const LONGEST: usize = 10_000_000;
const MOST_FACTS: usize = 1000;

/// What guessing gets: all four digits, one digit, and nats of a digit.
pub const CHANCE: (f64, f64, f64) = (1e-4, 0.1, std::f64::consts::LN_10);

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Options {
    pub seed: u64,
    pub distances: Vec<usize>,
    pub facts: Vec<usize>,
    /// Where the fact begins, modulo 8; the texts of a cell take them in turn.
    pub alignments: Vec<usize>,
    /// Texts of a cell.
    pub n: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: crate::data::logic_mix::SEED,
            distances: DISTANCES.to_vec(),
            facts: FACTS.to_vec(),
            alignments: (0..ALIGNMENTS).collect(),
            n: TEXTS,
        }
    }
}

impl Options {
    /// Refuses empty lists and what no text can have.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        if self.n == 0 {
            return fail("--n 0: give at least one text for each cell".into());
        }
        for (flag, list) in [("distances", &self.distances), ("facts", &self.facts), ("alignments", &self.alignments)] {
            if list.is_empty() {
                return fail(format!("--{flag} is empty; give numbers with commas between"));
            }
        }
        if let Some(d) = self.distances.iter().find(|&&d| d > LONGEST) {
            return fail(format!("--distances {d}: at most {LONGEST} bytes"));
        }
        if let Some(f) = self.facts.iter().find(|&&f| !(1..=MOST_FACTS).contains(&f)) {
            return fail(format!("--facts {f}: 1 to {MOST_FACTS} facts"));
        }
        match self.alignments.iter().find(|&&a| a >= ALIGNMENTS) {
            Some(a) => fail(format!("--alignments {a}: places modulo {ALIGNMENTS}, so 0 to {}", ALIGNMENTS - 1)),
            None => Ok(()),
        }
    }
}

/// A text with a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Ends with the query.
    pub prompt: String,
    /// Four digits.
    pub answer: String,
    /// Where the code stands in `prompt`.
    pub told: usize,
    /// Where the fact begins.
    pub start: usize,
}

/// Tokens that a model of bytes has to look back, beyond the distance: from the byte before a digit of the answer to that digit in
/// the fact.
pub fn reach(distance: usize) -> usize {
    distance + (FACT - BEFORE_CODE) + BEFORE_CODE - 1
}

/// A text whose fact begins at the first place from 100 on with this alignment (later with many facts, which need room).
pub fn sample(filler: &Filler, draws: &mut Draws, distance: usize, facts: usize, alignment: usize) -> Sample {
    let least = START.max(FACT * (facts - 1));
    let start = least + (alignment + ALIGNMENTS - least % ALIGNMENTS) % ALIGNMENTS;
    let names = names(draws, facts, Split::Test);
    let codes: Vec<String> = names.iter().map(|_| code(draws)).collect();
    let mut before = filler.piece(draws, start);
    let mut between = filler.piece(draws, distance);
    // Distractors replace filler, so that nothing moves: their places are drawn among all that there is room for.
    let places = draws.distinct(facts - 1, (start / FACT + distance / FACT) as u64);
    for (i, place) in places.into_iter().map(|p| p as usize).enumerate() {
        let other = fact(&names[i + 1], &codes[i + 1]);
        let (text, at) = match place.checked_sub(start / FACT) {
            None => (&mut before, place * FACT),
            Some(place) => (&mut between, place * FACT),
        };
        text.replace_range(at..at + FACT, &other);
    }
    let prompt = [before, fact(&names[0], &codes[0]), between, query(&names[0])].concat();
    Sample { prompt, answer: codes[0].clone(), told: start + BEFORE_CODE, start }
}

/// Shares and cost of some answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// All four digits, as greedy decoding writes them.
    pub exact: Proportion,
    /// Single digits, each after the right ones before it.
    pub digits: Proportion,
    pub nats_per_digit: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub distance: usize,
    pub facts: usize,
    #[serde(flatten)]
    pub score: Score,
    /// Tokens that the model has to look back, the least of the cell's texts.
    pub reach: usize,
    /// In the order of [`Options::alignments`].
    pub by_alignment: Vec<Score>,
}

/// One model's cells: for each number of facts, by distance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub cells: Vec<Cell>,
    /// Over all cells, in the order of [`Options::alignments`].
    pub by_alignment: Vec<Score>,
}

/// One answer.
#[derive(Clone, Copy)]
struct Mark {
    exact: bool,
    /// Of four.
    digits: u64,
    nats: f64,
    reach: usize,
}

fn ask(model: &mut dyn NextToken, name: &str, sample: &Sample) -> Result<Mark> {
    let (prompt, answers) = continuations(model.tokenizer(), name, &sample.prompt, &[&sample.answer])?;
    let told = super::encode(model.tokenizer(), name, &sample.prompt[..sample.told])?.len();
    let answer = &answers[0];
    let digits: Vec<u64> = answer
        .iter()
        .map(|&id| Ok(model.tokenizer().token_bytes(id)?.iter().filter(|b| b.is_ascii_digit()).count() as u64))
        .collect::<Result<_>>()?;
    model.restart()?;
    let logits = model.advance(&prompt)?;
    let followed = follow(model, logits, answer)?;
    Ok(Mark {
        exact: followed.likeliest.iter().all(|&right| right),
        digits: digits.iter().zip(&followed.likeliest).filter(|(_, right)| **right).map(|(n, _)| n).sum::<u64>().min(4),
        nats: followed.nats.iter().sum::<f64>(),
        reach: prompt.len().saturating_sub(told + 1),
    })
}

fn score<'a>(marks: impl Iterator<Item = &'a Mark> + Clone) -> Score {
    let n = marks.clone().count() as u64;
    let digits: u64 = marks.clone().map(|m| m.digits).sum();
    let nats: f64 = marks.clone().map(|m| m.nats).sum();
    Score {
        exact: Proportion::of(marks.map(|m| m.exact)),
        digits: Proportion::new(digits, 4 * n),
        nats_per_digit: nats / (4 * n).max(1) as f64,
    }
}

/// Whether a tokenizer can write what this battery asks: facts about names of every letter with every digit, a query, and filler.
pub fn check(tokenizer: &Tokenizer, name: &str, filler: &Filler) -> Result<()> {
    filler.readable(tokenizer)?;
    // Name by name, so that a message shows little more than what cannot be written.
    every_letter()
        .iter()
        .try_for_each(|n| super::encode(tokenizer, name, &(fact(n, "0123456789") + &query(n))).map(drop))
}

/// Asks a model; `name` stands in messages. `progress` is told how many texts are done, and of how many.
pub fn run(
    model: &mut dyn NextToken,
    name: &str,
    options: &Options,
    filler: &Filler,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Report> {
    options.validate()?;
    let filler = filler.readable(model.tokenizer())?;
    let cells: Vec<(usize, usize)> =
        options.facts.iter().flat_map(|&f| options.distances.iter().map(move |&d| (f, d))).collect();
    let alignments = options.alignments.len();
    let mut marks: Vec<Vec<Mark>> = vec![];
    for &(facts, distance) in &cells {
        let mut of_cell = vec![];
        for number in 0..options.n {
            let index = (facts as u64) << 44 ^ (distance as u64) << 20 ^ number as u64 ^ 1 << 55;
            let mut draws = Draws::of(options.seed, STREAM, index);
            let sample = sample(&filler, &mut draws, distance, facts, options.alignments[number % alignments]);
            of_cell.push(ask(model, name, &sample)?);
            progress(marks.len() * options.n + number + 1, cells.len() * options.n);
        }
        marks.push(of_cell);
    }
    let aligned = |marks: &[Mark]| -> Vec<Score> {
        (0..alignments).map(|a| score(marks.iter().skip(a).step_by(alignments))).collect()
    };
    let cell = |(&(facts, distance), marks): (&(usize, usize), &Vec<Mark>)| Cell {
        distance,
        facts,
        score: score(marks.iter()),
        reach: marks.iter().map(|m| m.reach).min().unwrap_or(0),
        by_alignment: aligned(marks),
    };
    let of = |a: usize| marks.iter().flat_map(move |of_cell| of_cell.iter().skip(a).step_by(alignments));
    Ok(Report {
        cells: cells.iter().zip(&marks).map(cell).collect(),
        by_alignment: (0..alignments).map(|a| score(of(a))).collect(),
    })
}
