//! What a token is drawn from, and the draw.

use kernels_cpu::philox::{philox4x32, stream};

/// Probabilities of the next token.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// This token, certainly.
    One(u32),
    /// Weights by token id, 0 for those left out; `total` is their sum in the order of ids, `whole` the sum before any was left out.
    Weights { weights: Vec<f64>, total: f64, whole: f64 },
}

impl Distribution {
    /// Weights with a positive sum; `whole` is the sum before some were left out.
    pub(super) fn new(weights: Vec<f64>, whole: f64) -> Self {
        let total = weights.iter().sum();
        Distribution::Weights { weights, total, whole }
    }

    pub fn probability(&self, token: u32) -> f64 {
        match self {
            Distribution::One(one) => f64::from(u8::from(*one == token)),
            Distribution::Weights { weights, total, .. } => weights.get(token as usize).map_or(0.0, |w| w / total),
        }
    }

    /// Bits of surprise at `token` under the distribution before truncation.
    pub fn surprise(&self, token: u32) -> f64 {
        match self {
            Distribution::One(_) => 0.0,
            Distribution::Weights { weights, whole, .. } => {
                weights.get(token as usize).map_or(f64::INFINITY, |w| (whole / w).log2())
            }
        }
    }

    /// The token at which the cumulative distribution, in the order of ids, passes `uniform` in [0, 1).
    pub fn draw(&self, uniform: f64) -> u32 {
        let (weights, total) = match self {
            Distribution::One(one) => return *one,
            Distribution::Weights { weights, total, .. } => (weights, total),
        };
        let target = uniform * total;
        let (mut sum, mut last) = (0.0, 0);
        for (token, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            sum += weight;
            last = token as u32;
            if target < sum {
                break;
            }
        }
        // `uniform * total` can round up to the whole sum: then it is the last token.
        last
    }

    /// max(0, self - other), scaled to a distribution: what is drawn from when a token of `other` was refused. Where rounding leaves nothing
    /// the two are equal, and it is `self`.
    pub fn beyond(&self, other: &Distribution) -> Distribution {
        let Distribution::Weights { weights, .. } = self else { return self.clone() };
        let left = |token: usize| (self.probability(token as u32) - other.probability(token as u32)).max(0.0);
        let rest: Vec<f64> = (0..weights.len()).map(left).collect();
        if rest.iter().any(|w| *w > 0.0) { Distribution::new(rest, 1.0) } else { self.clone() }
    }
}

/// What a random number of a place in the text decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The token.
    Token,
    /// The token that a draft proposes.
    Proposal,
    /// Whether a proposed token is taken.
    Acceptance,
    /// The token in place of a refused one.
    Replacement,
}

/// In [0, 1), 53 bits: the number of place `index` of the text.
pub fn uniform(seed: u64, index: u32, purpose: Purpose) -> f64 {
    let words = philox4x32([seed as u32, (seed >> 32) as u32], [index, 0, stream("sampling"), purpose as u32]);
    let bits = (words[0] as u64) << 21 ^ (words[1] as u64) >> 11;
    (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_unit_interval_draw_tokens_with_weight() {
        let d = Distribution::new(vec![0.0, 0.1, 0.0, 0.7, 0.0], 0.8);
        assert_eq!((d.draw(0.0), d.draw(1.0 - f64::EPSILON / 2.0), d.draw(0.1), d.draw(0.2)), (1, 3, 1, 3));
    }

    #[test]
    fn what_is_beyond_an_equal_distribution_is_the_distribution() {
        let d = Distribution::new(vec![1.0, 2.0], 3.0);
        assert_eq!(d.beyond(&d), d);
        let rest = d.beyond(&Distribution::One(1));
        assert_eq!((rest.probability(0), rest.probability(1)), (1.0, 0.0));
        let rest = d.beyond(&Distribution::new(vec![0.9, 0.1], 1.0));
        assert_eq!((rest.probability(0), rest.probability(1)), (0.0, 1.0));
        assert_eq!(Distribution::One(1).beyond(&d), Distribution::One(1));
    }
}
