//! Continuing a text: sampling from logits, and the loop that feeds tokens back.

pub mod beams;
pub mod chat;
mod generation;
mod sampling;
pub mod speculative;
mod stop;
mod text;

pub use generation::{Options, batch, continue_text, continue_with, generate};
pub use sampling::{Distribution, Purpose, Sampler, Sampling, choose, log_softmax, most_likely, uniform};
pub use text::{Alternative, Finish, Generation, TokenScore};

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What generating asks of a model.
pub trait NextToken {
    fn tokenizer(&self) -> &Tokenizer;
    /// Longest sequence in tokens.
    fn context(&self) -> usize;
    /// The logits [vocabulary] that follow `tokens` (1 to `context` of them).
    fn next_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;
    /// Forgets what `advance` read.
    fn restart(&mut self) -> Result<()>;
    /// Takes in `tokens` after those it was given before and gives the logits that follow; without tokens, the last ones again. A model
    /// that carries a state reads a text of any length this way; another one looks at the newest `context` tokens.
    fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;
    /// Tokens read since the beginning of the text.
    fn position(&self) -> u64;
    /// How many more tokens `advance` takes in: what is left of a cache or of learned positions, and no end for a model that reads on for
    /// ever. Of several texts, what each of them surely has.
    fn room(&self) -> u64 {
        u64::MAX
    }

    /// How many more tokens `advance` takes in without giving up the beginning of the text.
    fn at_once(&self) -> u64 {
        self.room()
    }

    /// Forgets all but the first `length` tokens read; reading goes on after them. `rewind(position())` changes nothing and tells whether
    /// the model can.
    ///
    /// # Errors
    /// The model keeps no past, or `length` is not one of 0 to `position`.
    fn rewind(&mut self, length: u64) -> Result<()> {
        Err(Error::Config(format!(
            "this model cannot go back to its first {length} of {} tokens: it keeps no keys and values of them. Leave out --draft, --draft-ngram and --beams, or use a model with a cache (a llama or gpt model)",
            self.position()
        )))
    }

    /// As [`advance`](Self::advance), with the logits after each of `tokens`.
    fn advance_each(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        tokens.iter().map(|t| self.advance(&[*t])).collect()
    }

    /// Reads `tokens` as a text of its own (what was read before is forgotten) and gives the negative log-likelihood, in nats, of each of
    /// `targets`, one a token and usually the one after it; 0 where the target is negative.
    fn log_losses(&mut self, tokens: &[u32], targets: &[i32]) -> Result<Vec<f64>> {
        losses_of_each(self, tokens, targets)
    }

    /// As [`advance`](Self::advance), for who needs the most likely of the tokenizer's tokens only (of equals the smaller id): a device can
    /// find it without handing the logits over.
    fn advance_greedy(&mut self, tokens: &[u32]) -> Result<u32> {
        let mut logits = self.advance(tokens)?;
        logits.truncate(self.tokenizer().vocab_size());
        most_likely(&logits)
    }

    /// Forgets everything and begins `texts` texts, which are read side by side by [`advance_texts`](Self::advance_texts).
    ///
    /// # Errors
    /// More texts than the model reads at once.
    fn begin(&mut self, texts: usize) -> Result<()> {
        if texts != 1 {
            return Err(Error::Config(format!("this model reads one text at a time, not {texts}: leave out --batch")));
        }
        self.restart()
    }

    /// Takes in each text's new tokens and gives the logits that follow, text by text; a text without new tokens gets an empty row.
    fn advance_texts(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        match tokens {
            [] => Ok(vec![]),
            [none] if none.is_empty() => Ok(vec![vec![]]),
            [one] => Ok(vec![self.advance(one)?]),
            _ => Err(Error::Config(format!("{} texts for a model that reads one at a time", tokens.len()))),
        }
    }

    /// Text i of those begun goes on as a copy of what text `from[i]` has read: one place for each text.
    ///
    /// # Errors
    /// The model cannot copy what it has read. `arrange` of 0, 1, 2, .. changes nothing and tells.
    fn arrange(&mut self, from: &[usize]) -> Result<()> {
        match from {
            [0] => Ok(()),
            _ => Err(Error::Config(format!("this model cannot copy its reading between {} texts", from.len()))),
        }
    }
}

/// [`NextToken::log_losses`] by [`NextToken::advance_each`].
pub(crate) fn losses_of_each<M: NextToken + ?Sized>(
    model: &mut M,
    tokens: &[u32],
    targets: &[i32],
) -> Result<Vec<f64>> {
    model.restart()?;
    let rows = model.advance_each(tokens)?;
    Ok(rows.iter().zip(targets).map(|(row, target)| log_loss(row, *target)).collect())
}

/// The negative log-likelihood of `target` under the softmax of `logits`, in nats; 0 for a negative target.
fn log_loss(logits: &[f32], target: i32) -> f64 {
    let Some(own) = usize::try_from(target).ok().and_then(|t| logits.get(t)) else { return 0.0 };
    let most = logits.iter().fold(f64::NEG_INFINITY, |m, l| m.max(f64::from(*l)));
    most + logits.iter().map(|l| (f64::from(*l) - most).exp()).sum::<f64>().ln() - f64::from(*own)
}

/// The tokens of `prompt` as the beginning of a text: after the token that texts begin with where they do ([`Tokenizer::start_id`]), and at
/// least one token.
pub fn beginning(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(prompt)?;
    if let Some(start) = tokenizer.start_id() {
        ids.insert(0, start);
    }
    if ids.is_empty() {
        let start = tokenizer.encode("\n").ok().and_then(|t| t.first().copied());
        ids.push(start.ok_or_else(|| Error::Data("an empty prompt has no first token: give --prompt".into()))?);
    }
    Ok(ids)
}
