//! What a language model is to the trainer, the evaluator and the generator.

use crate::Result;
use crate::graph::Value;
use crate::nn::{Builder, CacheShape, Parameter};

pub trait LanguageModel: Send {
    /// One line, for example "gpt, 2 layers, width 64".
    fn summary(&self) -> String;
    /// Everything that decides what the weights compute, as text: a saved state belongs to one of these.
    fn identity(&self) -> String;
    fn vocab_size(&self) -> usize;
    /// Longest sequence in tokens.
    fn context(&self) -> usize;
    /// Probability of dropping an element in training.
    fn dropout(&self) -> f64;

    /// Whether `hidden` can carry states from segment to segment (`Builder::carry`), or why not.
    fn carries(&self) -> Result<(), String> {
        Err("models of this kind carry no state, they read their newest tokens again: use a coeus model for this"
            .into())
    }

    /// Where the positions that a carried text can have end.
    fn last_position(&self) -> Option<usize> {
        None
    }

    /// Whether `hidden` can keep keys and values between runs (`Builder::keep`).
    fn keeps(&self) -> bool {
        false
    }

    /// Bytes of the keys and values of all layers, where it keeps them.
    fn cache_bytes(&self, shape: &CacheShape) -> u64 {
        let _ = shape;
        0
    }

    /// tokens i32 [B, T] to the last hidden state [B, T, width], after the final norm.
    fn hidden(&self, b: &mut Builder, tokens: Value) -> Result<Value>;
    /// Hidden states [N, width] to logits [N, vocabulary].
    fn head(&self, b: &mut Builder, hidden: Value) -> Result<Value>;

    /// The weights, with how they start.
    fn parameters(&self) -> Result<Vec<Parameter>> {
        let mut b = Builder::default();
        let tokens = b.tokens("tokens", &[1, 1]);
        let hidden = self.hidden(&mut b, tokens)?;
        let width = b.graph.shape(hidden)[2];
        let flat = b.graph.reshape(hidden, &[1, width])?;
        self.head(&mut b, flat)?;
        Ok(b.parameters)
    }
}
