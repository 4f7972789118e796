//! Perplexity of a text by the protocol of llama.cpp's `llama-perplexity`, so that numbers can be set beside its: the text is cut into
//! chunks of n_ctx tokens, each read from the beginning, and the second half of every chunk is scored.

use crate::infer::NextToken;
use crate::{Error, Result};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// perplexity times the standard error of the mean: what llama.cpp prints after "+/-".
    pub error: f64,
    /// Mean negative log-likelihood of a scored token, in nats.
    pub loss: f64,
    pub n_ctx: usize,
    pub chunks: usize,
    /// Tokens scored: n_ctx - n_ctx / 2 - 1 of every chunk.
    pub scored: usize,
    /// Tokens of the text; those after the last whole chunk are left out.
    pub tokens: usize,
}

/// Sums over scored tokens.
#[derive(Clone, Copy, Default)]
struct Sums {
    nll: f64,
    squares: f64,
    count: usize,
}

impl Sums {
    fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.squares += nll * nll;
        self.count += 1;
    }
    fn perplexity(&self) -> f64 {
        (self.nll / self.count as f64).exp()
    }
    fn error(&self) -> f64 {
        let n = self.count as f64;
        let mean = self.nll / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        self.perplexity() * (variance / (n - 1.0).max(1.0)).sqrt()
    }
}

/// Scores `tokens`, the whole text with `bos` before it where the model's texts begin with one; the first token of every chunk is then
/// replaced by `bos`. At most `chunks` chunks (none: all). `after` hears the number of chunks read and the perplexity so far, and returns
/// false to stop.
///
/// # Errors
/// A text of fewer than two chunks, or chunks longer than the model's context.
pub fn perplexity(
    model: &mut dyn NextToken,
    tokens: &[u32],
    bos: Option<u32>,
    n_ctx: usize,
    chunks: Option<usize>,
    after: &mut dyn FnMut(usize, f64) -> bool,
) -> Result<Perplexity> {
    if n_ctx < 4 || n_ctx > model.context() {
        return Err(Error::Config(format!(
            "chunks of {n_ctx} tokens: use 4 to the model's context, {}",
            model.context()
        )));
    }
    if tokens.len() < 2 * n_ctx {
        return Err(Error::Data(format!(
            "the text has {} tokens, the protocol needs at least two chunks of {n_ctx}: use a longer text or a smaller --ctx",
            tokens.len()
        )));
    }
    let count = (tokens.len() / n_ctx).min(chunks.unwrap_or(usize::MAX));
    let first = n_ctx / 2;
    let mut sums = Sums::default();
    let mut read = 0;
    for chunk in tokens.chunks_exact(n_ctx).take(count) {
        let mut inputs = chunk.to_vec();
        if let Some(bos) = bos {
            inputs[0] = bos;
        }
        let targets: Vec<i32> =
            (0..n_ctx).map(|j| if j >= first && j + 1 < n_ctx { chunk[j + 1] as i32 } else { -1 }).collect();
        let losses = model.log_losses(&inputs, &targets)?;
        losses.iter().zip(&targets).filter(|(_, t)| **t >= 0).for_each(|(nll, _)| sums.add(*nll));
        read += 1;
        if let Some(bad) = losses.iter().position(|l| !l.is_finite()) {
            return Err(Error::Numerics(format!("chunk {read}: the loss of token {bad} is {}", losses[bad])));
        }
        if !after(read, sums.perplexity()) {
            break;
        }
    }
    if read == 0 {
        return Err(Error::Config("0 chunks: there is nothing to score".into()));
    }
    let loss = sums.nll / sums.count as f64;
    let (perplexity, error, scored) = (sums.perplexity(), sums.error(), sums.count);
    Ok(Perplexity { perplexity, error, loss, n_ctx, chunks: read, scored, tokens: tokens.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{ByteTokenizer, SpecialTokens, Tokenizer};

    /// The loss of a target is its own number, and texts that are read are written down.
    struct Teller {
        tokenizer: Tokenizer,
        read: Vec<Vec<u32>>,
    }

    impl NextToken for Teller {
        fn tokenizer(&self) -> &Tokenizer {
            &self.tokenizer
        }
        fn context(&self) -> usize {
            8
        }
        fn next_logits(&mut self, _: &[u32]) -> Result<Vec<f32>> {
            Ok(vec![])
        }
        fn restart(&mut self) -> Result<()> {
            Ok(())
        }
        fn advance(&mut self, _: &[u32]) -> Result<Vec<f32>> {
            Ok(vec![])
        }
        fn position(&self) -> u64 {
            0
        }
        fn log_losses(&mut self, tokens: &[u32], targets: &[i32]) -> Result<Vec<f64>> {
            self.read.push(tokens.to_vec());
            Ok(targets.iter().map(|t| f64::from(*t).max(0.0)).collect())
        }
    }

    #[test]
    fn the_second_half_of_every_chunk_is_scored_but_for_its_first_token() {
        let tokenizer = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()));
        let mut model = Teller { tokenizer, read: vec![] };
        // 19 tokens in chunks of 8: the last three are left out.
        let tokens: Vec<u32> = (0..19).collect();
        let mut seen = vec![];
        let result = perplexity(&mut model, &tokens, Some(99), 8, None, &mut |n, _| {
            seen.push(n);
            true
        })
        .unwrap();
        assert_eq!((result.chunks, result.scored, result.tokens), (2, 6, 19));
        // Targets 5, 6, 7 of the first chunk and 13, 14, 15 of the second.
        assert!((result.loss - 10.0).abs() < 1e-12);
        assert!((result.perplexity - 10f64.exp()).abs() < 1e-6);
        let variance: f64 =
            [5.0, 6.0, 7.0, 13.0, 14.0, 15.0].iter().map(|x: &f64| (x - 10.0).powi(2)).sum::<f64>() / 6.0;
        assert!((result.error / result.perplexity - (variance / 5.0).sqrt()).abs() < 1e-9);
        assert_eq!(seen, [1, 2]);
        assert_eq!(model.read[1], [99, 9, 10, 11, 12, 13, 14, 15]);
        assert!(perplexity(&mut model, &tokens[..15], None, 8, None, &mut |_, _| true).is_err());
        assert!(perplexity(&mut model, &tokens, None, 16, None, &mut |_, _| true).is_err());
    }
}
