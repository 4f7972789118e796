//! The baseline that a language model has to beat: an n-gram model with additive smoothing, trained and scored on the
//! same tokens as the model.

use super::dataset::TokenSplit;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;

/// The smoothing constant of the baseline.
pub const ALPHA: f64 = 0.01;
/// The orders that are tried.
pub const ORDERS: std::ops::RangeInclusive<usize> = 1..=7;

/// Stands before the beginning of a document; no tokenizer has this id.
const BEFORE: u32 = u32::MAX;

/// p(token | last n - 1 tokens) = (count + alpha) / (context count + alpha * |V|)  (Lidstone).
#[derive(Clone, Debug)]
pub struct NGramLm {
    n: usize,
    alpha: f64,
    vocab_size: usize,
    /// Context tokens to a dense index.
    contexts: HashMap<Box<[u32]>, u32>,
    totals: Vec<u64>,
    counts: HashMap<(u32, u32), u64>,
}

impl NGramLm {
    /// An untrained model of order `n` (context of n - 1 tokens) over ids `0..vocab_size`.
    pub fn new(n: usize, alpha: f64, vocab_size: usize) -> Result<Self> {
        if n == 0 || vocab_size == 0 || !(alpha > 0.0 && alpha.is_finite()) {
            return Err(Error::Config(format!(
                "n-gram of order {n}, alpha {alpha}, vocabulary {vocab_size}: all must be positive"
            )));
        }
        Ok(Self { n, alpha, vocab_size, contexts: HashMap::new(), totals: vec![], counts: HashMap::new() })
    }

    pub fn order(&self) -> usize {
        self.n
    }

    /// Counts one document: its first token is given (the boundary, in rows), the others are events.
    pub fn count(&mut self, document: &[u32]) {
        for_each_event(self.n, document, |context, token| {
            let index = match self.contexts.get(context) {
                Some(&index) => index,
                None => {
                    let index = self.totals.len() as u32;
                    self.contexts.insert(context.into(), index);
                    self.totals.push(0);
                    index
                }
            };
            self.totals[index as usize] += 1;
            *self.counts.entry((index, token)).or_default() += 1;
        });
    }

    /// Counts every document of a split.
    pub fn fit(&mut self, split: &TokenSplit) {
        for document in 0..split.documents() {
            let (first, last) = split.span(document);
            self.count(&split.tokens[first..=last]);
        }
    }

    /// Natural log of p(token | context), the context being exactly the last n - 1 tokens.
    fn logp_in(&self, context: &[u32], token: u32) -> f64 {
        let (count, total) = match self.contexts.get(context) {
            Some(&index) => (self.counts.get(&(index, token)).copied().unwrap_or(0), self.totals[index as usize]),
            None => (0, 0),
        };
        ((count as f64 + self.alpha) / (total as f64 + self.alpha * self.vocab_size as f64)).ln()
    }

    /// The last n - 1 tokens of `history`, filled on the left where it is shorter.
    fn context(&self, history: &[u32]) -> Vec<u32> {
        let kept = &history[history.len() - history.len().min(self.n - 1)..];
        let mut context = vec![BEFORE; self.n - 1 - kept.len()];
        context.extend_from_slice(kept);
        context
    }

    /// Natural log of p(token | history).
    pub fn logp_token(&self, history: &[u32], token: u32) -> f64 {
        self.logp_in(&self.context(history), token)
    }

    /// Natural log of the probability of a document's tokens after its first.
    pub fn logp_sequence(&self, document: &[u32]) -> f64 {
        let mut sum = 0.0;
        for_each_event(self.n, document, |context, token| sum += self.logp_in(context, token));
        sum
    }

    /// The `k` most probable next tokens with their probabilities, most probable first, smaller ids first among equals.
    pub fn top(&self, history: &[u32], k: usize) -> Vec<(u32, f64)> {
        let context = self.context(history);
        let mut all: Vec<(u32, f64)> =
            (0..self.vocab_size as u32).map(|t| (t, self.logp_in(&context, t).exp())).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all
    }

    /// The most frequent next token after every context of n - 1 tokens that was seen, the smallest id among equals.
    pub fn modes(&self) -> HashMap<Box<[u32]>, u32> {
        let mut best = vec![(0, 0); self.totals.len()];
        for (&(context, token), &count) in &self.counts {
            let (most, of) = &mut best[context as usize];
            if (count, std::cmp::Reverse(token)) > (*most, std::cmp::Reverse(*of)) {
                (*most, *of) = (count, token);
            }
        }
        self.contexts.iter().map(|(context, &index)| (context.clone(), best[index as usize].1)).collect()
    }

    /// Mean negative log-likelihood in nats per scored token of a split.
    pub fn nats_per_token(&self, split: &TokenSplit) -> Result<f64> {
        if split.scored_tokens() == 0 {
            return Err(Error::Data(format!("the {} split has no token to score", split.name)));
        }
        let total: f64 = (0..split.documents())
            .map(|d| split.span(d))
            .map(|(first, last)| self.logp_sequence(&split.tokens[first..=last]))
            .sum();
        Ok(-total / split.scored_tokens() as f64)
    }

    /// exp of [`NGramLm::nats_per_token`].
    pub fn perplexity(&self, split: &TokenSplit) -> Result<f64> {
        self.nats_per_token(split).map(f64::exp)
    }
}

/// Calls `event(context, token)` for every token of a document but the first. Contexts reach back to the beginning of
/// the document and are filled with [`BEFORE`] there.
fn for_each_event(n: usize, document: &[u32], mut event: impl FnMut(&[u32], u32)) {
    let mut start = vec![BEFORE; n - 1];
    for at in 1..document.len() {
        if at >= n - 1 {
            event(&document[at - (n - 1)..at], document[at]);
        } else {
            start.fill(BEFORE);
            start[n - 1 - at..].copy_from_slice(&document[..at]);
            event(&start, document[at]);
        }
    }
}

/// One row of the sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NGramScore {
    pub n: usize,
    pub train_perplexity: f64,
    /// On the held-out split.
    pub perplexity: f64,
    /// On the held-out split.
    pub nats_per_token: f64,
    pub bits_per_byte: f64,
}

/// The order with the least held-out perplexity, and the whole sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BestNGram {
    pub n: usize,
    pub perplexity: f64,
    pub table: Vec<NGramScore>,
}

/// Fits orders 1 to 7 on `train` and scores them on `held_out`. `vocab_size` should be the tokenizer's: a model's
/// padded vocabulary would only hand smoothing mass to ids that never occur and flatter the model.
pub fn best_ngram(train: &TokenSplit, held_out: &TokenSplit, vocab_size: usize) -> Result<BestNGram> {
    let table: Vec<NGramScore> = ORDERS
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|n| {
            let mut model = NGramLm::new(n, ALPHA, vocab_size)?;
            model.fit(train);
            let nats_per_token = model.nats_per_token(held_out)?;
            Ok(NGramScore {
                n,
                train_perplexity: model.perplexity(train)?,
                perplexity: nats_per_token.exp(),
                nats_per_token,
                bits_per_byte: held_out.bits_per_byte(nats_per_token),
            })
        })
        .collect::<Result<_>>()?;
    let best = table.iter().min_by(|a, b| a.perplexity.total_cmp(&b.perplexity)).expect("seven orders were scored");
    Ok(BestNGram { n: best.n, perplexity: best.perplexity, table: table.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fourteen_of_twenty_with_alpha_a_hundredth_and_64_ids_is_0_679() {
        let mut model = NGramLm::new(2, 0.01, 64).unwrap();
        for follower in [[7; 14].as_slice(), &[8; 6]].concat() {
            model.count(&[5, follower]);
        }
        let p = model.logp_token(&[5], 7).exp();
        assert!((p - 14.01 / 20.64).abs() < 1e-12);
        assert_eq!(format!("{p:.3}"), "0.679");
        assert_eq!(model.top(&[1, 2, 5], 2).iter().map(|t| t.0).collect::<Vec<_>>(), [7, 8]);
    }

    #[test]
    fn modes_are_the_most_frequent_followers() {
        let mut model = NGramLm::new(2, ALPHA, 9).unwrap();
        model.count(&[1, 7, 1, 7, 1, 3, 2, 5, 2, 4]);
        let modes = model.modes();
        assert_eq!([1, 2, 3, 5, 7].map(|c| modes[&[c][..]]), [7, 4, 2, 2, 1]);
        assert_eq!(modes.len(), 5);
        for (context, &token) in &modes {
            assert_eq!(model.top(context, 1)[0].0, token);
        }
    }

    #[test]
    fn probabilities_sum_to_one_in_seen_and_unseen_contexts() {
        for n in 1..=4 {
            let mut model = NGramLm::new(n, ALPHA, 9).unwrap();
            model.count(&[1, 2, 3, 2, 3, 4, 1]);
            for history in [&[][..], &[1], &[2, 3], &[8, 8, 8, 8]] {
                let sum: f64 = (0..9).map(|t| model.logp_token(history, t).exp()).sum();
                assert!((sum - 1.0).abs() < 1e-12, "order {n}, {history:?}: {sum}");
            }
        }
    }

    #[test]
    fn contexts_run_over_a_stream_but_not_from_row_to_row() {
        // After "3" comes 4 in the stream; as the beginning of the second row, 4 follows the boundary only.
        let mut stream = NGramLm::new(2, ALPHA, 10).unwrap();
        stream.fit(&TokenSplit::stream("train", vec![2, 3, 4, 5]));
        assert!(stream.logp_token(&[3], 4) > -0.2);
        let mut rows = NGramLm::new(3, ALPHA, 10).unwrap();
        let split = TokenSplit::rows("train", &[vec![2, 3], vec![4, 5]], 1, 0);
        rows.fit(&split);
        // Both rows begin after a boundary that has nothing before it, and 4 begins one of the two.
        assert!((rows.logp_token(&[1], 4).exp() - 1.01 / 2.1).abs() < 1e-12);
        assert!((rows.logp_token(&[3, 1], 4).exp() - 0.1).abs() < 1e-12);
        assert_eq!(split.scored_tokens(), 6);
    }

    #[test]
    fn a_uniform_guess_has_the_vocabulary_as_perplexity() {
        let model = NGramLm::new(3, ALPHA, 37).unwrap();
        let split = TokenSplit::stream("val", vec![1, 2, 3, 4]);
        assert!((model.perplexity(&split).unwrap() - 37.0).abs() < 1e-9);
        assert!(model.perplexity(&TokenSplit::stream("val", vec![1])).is_err());
        assert!(NGramLm::new(0, ALPHA, 37).is_err() && NGramLm::new(2, 0.0, 37).is_err());
    }

    #[test]
    fn the_best_order_is_the_least_perplexity_of_seven() {
        let cycle: Vec<u32> = (0..600).map(|i| [1, 2, 1, 3][i % 4]).collect();
        let split = TokenSplit::stream("train", cycle);
        let best = best_ngram(&split, &split, 4).unwrap();
        assert_eq!(best.table.iter().map(|row| row.n).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        // A bigram cannot know what follows 1; a trigram can. Longer ones only lose to smoothing at the start.
        assert!(best.table[1].perplexity > 1.3 && best.table[2].perplexity < 1.01 && best.n >= 3);
        assert!(best.table.iter().all(|row| best.perplexity <= row.perplexity));
    }
}
