//! Continuing a text: sampling from logits, and the loop that feeds tokens back.

mod sampling;

pub use sampling::{Sampling, choose};

use crate::tokenizer::{StreamDecoder, Tokenizer};
use crate::{Error, Result};

/// What generating asks of a model.
pub trait NextToken {
    fn tokenizer(&self) -> &Tokenizer;
    /// Longest sequence in tokens.
    fn context(&self) -> usize;
    /// The logits [vocabulary] that follow `tokens` (1 to `context` of them).
    fn next_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Generation {
    /// The continuation, without the prompt.
    pub text: String,
    pub tokens: Vec<u32>,
    /// A boundary token ended it (not the limit).
    pub finished: bool,
}

/// Continues `prompt`; `on_text` gets each piece of text as soon as its bytes are whole characters. Stops at a boundary
/// token, after `tokens` tokens, or when `on_text` returns false. Contexts longer than the model's keep their newest tokens.
pub fn generate(
    model: &mut dyn NextToken,
    prompt: &str,
    tokens: usize,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    sampling.validate()?;
    let tokenizer = model.tokenizer().clone();
    let boundary = tokenizer.boundary_id();
    let mut ids = tokenizer.encode(prompt)?;
    if let Some(b) = boundary {
        // Training rows begin after a boundary; so does a generated one.
        ids.insert(0, b);
    }
    if ids.is_empty() {
        let start = tokenizer.encode("\n").ok().and_then(|t| t.first().copied());
        ids.push(start.ok_or_else(|| Error::Data("an empty prompt has no first token: give --prompt".into()))?);
    }
    let context = model.context();
    let known = tokenizer.vocab_size();
    let mut decoder = StreamDecoder::new(&tokenizer, true);
    let mut result = Generation { text: String::new(), tokens: vec![], finished: false };
    for index in 0..tokens {
        let start = ids.len().saturating_sub(context);
        let mut logits = model.next_logits(&ids[start..])?;
        // Rows of the embedding beyond the tokenizer's last id stand for nothing.
        logits.truncate(known);
        let next = choose(&logits, sampling, index as u32)?;
        if Some(next) == boundary {
            result.finished = true;
            break;
        }
        ids.push(next);
        result.tokens.push(next);
        let piece = decoder.push(next)?;
        result.text.push_str(&piece);
        if !piece.is_empty() && !on_text(&piece) {
            return Ok(result);
        }
    }
    let rest = decoder.finish()?;
    result.text.push_str(&rest);
    if !rest.is_empty() {
        on_text(&rest);
    }
    Ok(result)
}
