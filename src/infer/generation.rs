//! The loop that feeds tokens back.

use super::text::{Generation, Text};
use super::{NextToken, Sampling, beginning};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What is asked of a continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// At most this many tokens.
    pub tokens: usize,
    pub sampling: Sampling,
    /// Any of these texts ends it and is not part of it.
    pub stop: Vec<String>,
    /// Tokens that end it, besides the tokenizer's own.
    pub ends: Vec<u32>,
    /// Tokens that end a text are banned: it goes on to its length.
    pub ignore_ends: bool,
    /// Keep the log-probability of every token and of so many of the most likely ones.
    pub logprobs: Option<usize>,
    /// Tokens read before the prompt, as far as they are known. Where a text begins SentencePiece's first space is none of it.
    pub before: Vec<u32>,
}

impl Options {
    pub fn new(tokens: usize, sampling: Sampling) -> Self {
        Options { tokens, sampling, ..Options::default() }
    }

    /// Every token that ends a text.
    pub fn ends(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ends: Vec<u32> = tokenizer.eos_ids().into_iter().chain(self.ends.iter().copied()).collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

/// Continues `prompt` as the beginning of a text; `on_text` gets each piece of text as soon as its bytes are whole characters (nothing, for a
/// token that settles none). Stops at a boundary token, after `tokens` tokens, or when `on_text` returns false.
pub fn generate(
    model: &mut dyn NextToken,
    prompt: &str,
    tokens: usize,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    let ids = beginning(model.tokenizer(), prompt)?;
    model.restart()?;
    continue_with(model, &ids, tokens, sampling, on_text)
}

/// As [`generate`], after the text that the model has read so far and `prompt` (perhaps none).
pub fn continue_with(
    model: &mut dyn NextToken,
    prompt: &[u32],
    tokens: usize,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    continue_text(model, prompt, &Options::new(tokens, sampling.clone()), on_text)
}

/// # Errors
/// `tokens` more are more than the model has room for.
pub(super) fn check_room(model: &dyn NextToken, tokens: usize) -> Result<()> {
    let room = model.room();
    if tokens as u64 <= room {
        return Ok(());
    }
    let read = model.position();
    Err(Error::Data(format!(
        "the prompt has {tokens} tokens and the model reads at most {} (it has read {read}): shorten the prompt",
        room.saturating_add(read)
    )))
}

/// What a model said comes next.
enum Next {
    Logits(Vec<f32>),
    Token(u32),
}

/// As [`continue_with`], with all that can be asked.
pub fn continue_text(
    model: &mut dyn NextToken,
    prompt: &[u32],
    options: &Options,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    let tokenizer = model.tokenizer().clone();
    let mut text = Text::new(&tokenizer, options, options.sampling.seed, prompt)?;
    check_room(model, prompt.len())?;
    let greedy = text.sampler.options().takes_greatest() && options.logprobs.is_none() && options.tokens > 0;
    let mut ask = |tokens: &[u32]| match greedy {
        true => model.advance_greedy(tokens).map(|t| (Next::Token(t), model.room())),
        false => model.advance(tokens).map(|l| (Next::Logits(l), model.room())),
    };
    let (mut next, mut room) = ask(prompt)?;
    while !text.is_full() {
        let on = match &next {
            Next::Token(token) => text.take(*token, None, on_text)?,
            Next::Logits(logits) => {
                let token = text.sampler.draw(text.known(logits))?;
                text.take(token, Some(logits), on_text)?
            }
        };
        let (false, Some(token)) = (text.ended_by_token() || room == 0, text.tokens().last()) else { break };
        // The last token is read too: what follows goes on after it.
        (next, room) = ask(&[*token])?;
        if !on {
            break;
        }
    }
    text.finish(on_text)
}

/// Continues each of `prompts` as a text of its own, `at_once` of them side by side. Text i draws with the seed plus i, so that a text does
/// not depend on how many go at once. `on_done` gets every text as it ends, by its place in `prompts`.
pub fn batch(
    model: &mut dyn NextToken,
    prompts: &[Vec<u32>],
    options: &Options,
    at_once: usize,
    on_done: &mut dyn FnMut(usize, &Generation) -> Result<()>,
) -> Result<Vec<Generation>> {
    let mut made = Vec::with_capacity(prompts.len());
    for (group, prompts) in prompts.chunks(at_once.max(1)).enumerate() {
        let first = group * at_once.max(1);
        for (i, text) in side_by_side(model, prompts, options, first)?.into_iter().enumerate() {
            on_done(first + i, &text)?;
            made.push(text);
        }
    }
    Ok(made)
}

fn side_by_side(
    model: &mut dyn NextToken,
    prompts: &[Vec<u32>],
    options: &Options,
    first: usize,
) -> Result<Vec<Generation>> {
    let tokenizer = model.tokenizer().clone();
    let seed = |i: usize| options.sampling.seed.wrapping_add((first + i) as u64);
    let begun = |i: usize| Text::new(&tokenizer, options, seed(i), &prompts[i]);
    let mut texts = (0..prompts.len()).map(begun).collect::<Result<Vec<Text>>>()?;
    model.begin(prompts.len())?;
    for (i, prompt) in prompts.iter().enumerate() {
        check_room(model, prompt.len()).map_err(|e| match e {
            Error::Data(message) => Error::Data(format!("prompt {}: {message}", first + i + 1)),
            other => other,
        })?;
    }
    let mut new = prompts.to_vec();
    while new.iter().any(|n| !n.is_empty()) && options.tokens > 0 {
        let logits = model.advance_texts(&new)?;
        let room = model.room();
        for ((text, new), logits) in texts.iter_mut().zip(&mut new).zip(&logits) {
            if std::mem::take(new).is_empty() {
                continue;
            }
            let token = text.sampler.draw(text.known(logits))?;
            if text.take(token, Some(logits), &mut |_| true)? && room > 0 {
                new.push(token);
            }
        }
    }
    texts.into_iter().map(|text| text.finish(&mut |_| true)).collect()
}
