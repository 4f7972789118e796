//! What a trained model can do, beyond its loss: problems with known answers, set from fixed streams of random numbers, answered
//! greedily, and scored by programs. Every share comes with its interval ([`wilson`]) and beside what a model gets by chance.
//!
//! [`iq`] sets unseen problems of the kinds that the logic mix trains, beside baselines that do not reason. [`recall`] asks for a fact
//! that was told some distance ago, and [`multihop`] for the end of a chain of facts.

pub mod filler;
pub mod iq;
pub mod multihop;
pub mod perplexity;
pub mod recall;
pub mod wilson;

pub use wilson::Proportion;

use crate::infer::{NextToken, Sampling, choose};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Number of the stream of random numbers that draws names, codes and places.
pub const STREAM: u64 = 8;

/// The ids of a text of a battery, which every model has to be able to read.
pub fn encode(tokenizer: &Tokenizer, name: &str, text: &str) -> Result<Vec<u32>> {
    tokenizer.encode(text).map_err(|e| {
        Error::Data(format!(
            "{name}: its tokenizer ({}) cannot write {text:?}, which this battery asks: {e}; train with tokenizer.kind = \"byte\", or on a text that has every letter and digit",
            tokenizer.kind()
        ))
    })
}

/// The tokens of a text up to where possible continuations of it begin to differ, and what is left of each. A continuation may change
/// how the last characters of the text are cut into tokens.
pub(crate) fn continuations(
    tokenizer: &Tokenizer,
    name: &str,
    text: &str,
    continuations: &[&str],
) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
    let mut prompt = encode(tokenizer, name, text)?;
    let whole: Vec<Vec<u32>> =
        continuations.iter().map(|c| encode(tokenizer, name, &format!("{text}{c}"))).collect::<Result<_>>()?;
    for ids in &whole {
        let common = prompt.iter().zip(ids).take_while(|(a, b)| a == b).count();
        prompt.truncate(common);
    }
    let rests = whole.into_iter().map(|ids| ids[prompt.len()..].to_vec()).collect();
    Ok((prompt, rests))
}

/// What a model makes of an answer that it is given token by token.
pub(crate) struct Followed {
    /// Nats that each token costs.
    pub nats: Vec<f64>,
    /// Whether each token is the most likely one. If all are, greedy decoding writes this answer.
    pub likeliest: Vec<bool>,
}

/// Goes through an answer from the logits that precede it, each token given after it was scored.
pub(crate) fn follow(model: &mut dyn NextToken, mut logits: Vec<f32>, answer: &[u32]) -> Result<Followed> {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let known = model.tokenizer().vocab_size();
    let mut followed = Followed { nats: vec![], likeliest: vec![] };
    for (i, &token) in answer.iter().enumerate() {
        // Rows of the embedding beyond the tokenizer's last id stand for nothing.
        logits.truncate(known);
        followed.likeliest.push(choose(&logits, &greedy, 0)? == token);
        let most = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)) as f64;
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - most).exp()).sum();
        followed.nats.push(most + sum.ln() - f64::from(logits[token as usize]));
        if i + 1 < answer.len() {
            logits = model.advance(&[token])?;
        }
    }
    Ok(followed)
}
