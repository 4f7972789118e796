//! Perplexity of a text by the protocol of llama.cpp's `llama-perplexity`, so that numbers can be set beside its: the text is cut into
//! chunks of n_ctx tokens, each read from the beginning, and the second half of every chunk is scored. Models that were trained on rows
//! see in such chunks what they never saw; for them every line can be scored as a text of its own.

use crate::infer::NextToken;
use crate::tokenizer::Tokenizer;
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
    /// Tokens of a chunk, or of the longest line.
    pub n_ctx: usize,
    pub chunks: usize,
    /// Whether chunks are the lines of the text.
    pub lines: bool,
    /// Tokens scored: n_ctx - n_ctx / 2 - 1 of every chunk, or all of a line but the one it begins with.
    pub scored: usize,
    /// Tokens of the text; those after the last whole chunk are left out.
    pub tokens: usize,
}

impl Perplexity {
    /// What was scored, in words.
    pub fn extent(&self) -> String {
        match self.lines {
            true => format!("{} lines of at most {} tokens, {} scored", self.chunks, self.n_ctx, self.scored),
            false => format!("{} chunks of {} tokens, {} scored", self.chunks, self.n_ctx, self.scored),
        }
    }
}

/// A text that is scored.
#[derive(Clone, Debug)]
pub enum Text {
    /// See [`perplexity`].
    Chunks { tokens: Vec<u32>, bos: Option<u32>, n_ctx: usize, chunks: Option<usize> },
    /// See [`perplexity_of_lines`].
    Lines(Vec<Vec<u32>>),
}

impl Text {
    /// # Errors
    /// As [`perplexity`] and [`perplexity_of_lines`].
    pub fn score(&self, model: &mut dyn NextToken, after: &mut dyn FnMut(usize, f64) -> bool) -> Result<Perplexity> {
        match self {
            Text::Chunks { tokens, bos, n_ctx, chunks } => perplexity(model, tokens, *bos, *n_ctx, *chunks, after),
            Text::Lines(lines) => perplexity_of_lines(model, lines, after),
        }
    }

    /// Its first tokens, at most `count`.
    pub fn beginning(&self, count: usize) -> Vec<u32> {
        match self {
            Text::Chunks { tokens, .. } => tokens.iter().copied().take(count).collect(),
            Text::Lines(lines) => lines.iter().flatten().copied().take(count).collect(),
        }
    }
}

/// The lines of a text that are not empty, each with the token that texts of this model begin with and the one that ends them, if there
/// are such.
///
/// # Errors
/// A line that the tokenizer cannot take.
pub fn lines(tokenizer: &Tokenizer, text: &str) -> Result<Vec<Vec<u32>>> {
    let end = tokenizer.eos_ids().first().copied();
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.is_empty());
    let row = |(i, line): (usize, &str)| {
        let mut tokens = tokenizer.encode_whole(line).map_err(|e| match e {
            Error::Data(why) => Error::Data(format!("line {}: {why}", i + 1)),
            other => other,
        })?;
        tokens.extend(end);
        Ok(tokens)
    };
    numbered.map(row).collect()
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
    Ok(Perplexity { perplexity, error, loss, n_ctx, chunks: read, lines: false, scored, tokens: tokens.len() })
}

/// Scores every line ([`lines`]) as a text of its own: all its tokens but the first. Of one that is longer than the model's context each
/// further window begins with half a context that was scored before. `after` as for [`perplexity`].
///
/// # Errors
/// No line of two tokens.
pub fn perplexity_of_lines(
    model: &mut dyn NextToken,
    lines: &[Vec<u32>],
    after: &mut dyn FnMut(usize, f64) -> bool,
) -> Result<Perplexity> {
    let longest = lines.iter().map(Vec::len).max().unwrap_or(0);
    if longest < 2 {
        return Err(Error::Data("the text has no line of two tokens: there is nothing to score".into()));
    }
    let window = model.context().min(longest - 1);
    let mut sums = Sums::default();
    let mut read = 0;
    for line in lines.iter().filter(|line| line.len() > 1) {
        let (mut first, mut scored) = (0, 1);
        while scored < line.len() {
            // One length, and so one plan: what follows a line is neither seen by it nor scored.
            let part = &line[first..line.len().min(first + window + 1)];
            let mut inputs = part[..part.len() - 1].to_vec();
            let new = |i: usize| if first + i < scored { -1 } else { part[i] as i32 };
            let mut targets: Vec<i32> = (1..part.len()).map(new).collect();
            inputs.resize(window, 0);
            targets.resize(window, -1);
            let losses = model.log_losses(&inputs, &targets)?;
            losses.iter().zip(&targets).filter(|(_, t)| **t >= 0).for_each(|(nll, _)| sums.add(*nll));
            scored = first + part.len();
            first = scored - 1 - window / 2;
        }
        read += 1;
        if !sums.nll.is_finite() {
            return Err(Error::Numerics(format!("line {read}: its loss is {}", sums.nll)));
        }
        if !after(read, sums.perplexity()) {
            break;
        }
    }
    let (perplexity, error, loss) = (sums.perplexity(), sums.error(), sums.nll / sums.count as f64);
    let tokens = lines.iter().map(Vec::len).sum();
    Ok(Perplexity { perplexity, error, loss, n_ctx: longest, chunks: read, lines: true, scored: sums.count, tokens })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{ByteTokenizer, SpecialTokens};

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

    #[test]
    fn lines_are_scored_whole_and_by_themselves() {
        let tokenizer = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()));
        let (bos, eos) = (tokenizer.start_id(), tokenizer.eos_ids().first().copied());
        let rows = lines(&tokenizer, "ab\n\nc\n").unwrap();
        let around = |text: &[u32]| bos.into_iter().chain(text.iter().copied()).chain(eos).collect::<Vec<_>>();
        assert_eq!(rows, [around(&[97, 98]), around(&[99])]);
        let mut model = Teller { tokenizer, read: vec![] };
        let result = Text::Lines(vec![vec![50, 1, 2, 3], vec![50, 4]]).score(&mut model, &mut |_, _| true).unwrap();
        assert_eq!((result.chunks, result.scored, result.tokens, result.n_ctx, result.lines), (2, 4, 6, 4, true));
        assert!((result.loss - 2.5).abs() < 1e-12);
        assert_eq!(model.read, [[50, 1, 2], [50, 0, 0]]);
        // The context is 8: 20 tokens are windows of 9, each with the one after it, of which all but the first begin with half of one.
        model.read.clear();
        let long: Vec<u32> = (100..120).collect();
        let result = Text::Lines(vec![long.clone()]).score(&mut model, &mut |_, _| true).unwrap();
        assert_eq!((result.scored, result.n_ctx), (19, 20));
        assert!((result.loss - long[1..].iter().sum::<u32>() as f64 / 19.0).abs() < 1e-12);
        assert_eq!(model.read.iter().map(|r| r[0]).collect::<Vec<_>>(), [100, 104, 108, 112]);
        assert!(Text::Lines(vec![vec![1]]).score(&mut model, &mut |_, _| true).is_err());
    }
}
