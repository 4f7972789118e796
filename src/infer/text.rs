//! A text as it grows: what its tokens say, and where it ends.

use super::generation::Options;
use super::sampling::{Sampler, log_softmax};
use super::stop::Stops;
use crate::Result;
use crate::tokenizer::{StreamDecoder, Tokenizer, display};
use serde::Serialize;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// A stop text came.
    Stop,
    /// An end-of-text token came.
    Eos,
    /// As many tokens as were asked for, or as the model has room for.
    Length,
    /// Whoever reads it wanted no more.
    Interrupted,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// The continuation, without the prompt and without the stop text.
    pub text: String,
    /// Its tokens, those of the stop text among them; not the end-of-text token.
    pub tokens: Vec<u32>,
    pub finish: Finish,
    /// One for each of `tokens`, where asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenScore>,
}

/// A token under the model's own distribution: the softmax of its logits as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenScore {
    #[serde(flatten)]
    pub chosen: Alternative,
    /// The most likely tokens, best first; of equals the smaller id.
    pub top: Vec<Alternative>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alternative {
    pub token: u32,
    pub text: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
}

/// The score of `token` after `logits`, and the `top` best.
fn score(tokenizer: &Tokenizer, logits: &[f32], token: u32, top: usize) -> Result<TokenScore> {
    let logprobs = log_softmax(logits.iter().map(|z| f64::from(*z)));
    let alternative = |token: u32| {
        let text = display(&tokenizer.token_bytes(token)?);
        Ok(Alternative { token, text, logprob: logprobs[token as usize] })
    };
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if top < ids.len() {
        ids.select_nth_unstable_by(top, better);
        ids.truncate(top);
    }
    ids.sort_unstable_by(better);
    Ok(TokenScore { chosen: alternative(token)?, top: ids.into_iter().map(alternative).collect::<Result<_>>()? })
}

/// What `tokens` say where they follow `before`.
pub(super) fn said(tokenizer: &Tokenizer, before: &[u32], tokens: &[u32]) -> Result<String> {
    let mut decoder = StreamDecoder::after(tokenizer, true, before);
    let mut text = tokens.iter().map(|t| decoder.push(*t)).collect::<Result<String>>()?;
    text.push_str(&decoder.finish()?);
    Ok(text)
}

pub(super) struct Text<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a Options,
    pub(super) sampler: Sampler,
    ends: Vec<u32>,
    decoder: StreamDecoder<'a>,
    stops: Stops<'a>,
    made: Generation,
}

impl<'a> Text<'a> {
    /// What follows `prompt`; `seed` in place of the options'.
    pub(super) fn new(tokenizer: &'a Tokenizer, options: &'a Options, seed: u64, prompt: &[u32]) -> Result<Self> {
        let ends = options.ends(tokenizer);
        let mut sampling = options.sampling.clone();
        sampling.seed = seed;
        if options.ignore_ends {
            sampling.banned.extend(&ends);
        }
        let made = Generation { text: String::new(), tokens: vec![], finish: Finish::Length, logprobs: vec![] };
        let decoder = StreamDecoder::after(tokenizer, true, &[&options.before, prompt].concat());
        let stops = Stops::new(&options.stop)?;
        Ok(Text { tokenizer, options, sampler: Sampler::new(&sampling)?, ends, decoder, stops, made })
    }

    /// Logits of the tokenizer's ids: rows of the embedding beyond the last one stand for nothing.
    pub(super) fn known<'l>(&self, logits: &'l [f32]) -> &'l [f32] {
        &logits[..self.tokenizer.vocab_size().min(logits.len())]
    }

    pub(super) fn is_full(&self) -> bool {
        self.made.tokens.len() >= self.options.tokens
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.made.tokens
    }

    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    pub(super) fn ended_by_token(&self) -> bool {
        self.made.finish == Finish::Eos
    }

    /// Takes in the next token, and the logits that it was chosen from where they are at hand. False: the text is over.
    pub(super) fn take(
        &mut self,
        token: u32,
        logits: Option<&[f32]>,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<bool> {
        if self.is_end(token) {
            self.made.finish = Finish::Eos;
            return Ok(false);
        }
        if let (Some(top), Some(logits)) = (self.options.logprobs, logits) {
            self.made.logprobs.push(score(self.tokenizer, self.known(logits), token, top)?);
        }
        self.made.tokens.push(token);
        let piece = self.decoder.push(token)?;
        let (text, stopped) = self.stops.push(&piece);
        self.made.text.push_str(&text);
        let wanted = on_text(&text);
        if stopped {
            self.made.finish = Finish::Stop;
        } else if !wanted {
            self.made.finish = Finish::Interrupted;
        }
        Ok(wanted && !stopped && !self.is_full())
    }

    /// Shows what was held back.
    pub(super) fn finish(mut self, on_text: &mut dyn FnMut(&str) -> bool) -> Result<Generation> {
        if self.made.finish == Finish::Stop {
            return Ok(self.made);
        }
        let (mut rest, stopped) = self.stops.push(&self.decoder.finish()?);
        if stopped {
            self.made.finish = Finish::Stop;
        } else {
            rest.push_str(&self.stops.finish());
        }
        self.made.text.push_str(&rest);
        if !rest.is_empty() {
            on_text(&rest);
        }
        Ok(self.made)
    }
}
