//! Drawing a token from logits: temperature, top-k, top-p (nucleus, Holtzman et al. 2020). Ties go to the smaller id.

use crate::{Error, Result};
use kernels_cpu::philox::{philox4x32, stream};

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// 0: the most likely token. Logits are divided by it.
    pub temperature: f64,
    /// Keep the k most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities reach this sum (at least one); 1: all.
    pub top_p: f64,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 42 }
    }
}

impl Sampling {
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::Config(format!("temperature {} must be 0 (greedy) or positive", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Config(format!("top-p {} must be greater than 0 and at most 1", self.top_p)));
        }
        Ok(())
    }
}

fn check(logits: &[f32]) -> Result<()> {
    match logits.iter().position(|l| !l.is_finite()) {
        Some(bad) => {
            Err(Error::Numerics(format!("the logit of token {bad} is {}: the weights are damaged", logits[bad])))
        }
        None if logits.is_empty() => Err(Error::Numerics("no logits to choose from".into())),
        None => Ok(()),
    }
}

/// The greatest logit's token, of equals the smaller id.
pub fn most_likely(logits: &[f32]) -> Result<u32> {
    check(logits)?;
    let best = (0..logits.len()).reduce(|best, t| if logits[t] > logits[best] { t } else { best });
    Ok(best.unwrap_or_default() as u32)
}

/// The token drawn from `logits` as number `index` of its text: a function of (logits, sampling, index) alone.
pub fn choose(logits: &[f32], sampling: &Sampling, index: u32) -> Result<u32> {
    check(logits)?;
    if sampling.temperature == 0.0 {
        return most_likely(logits);
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    order.sort_by(by_logit);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let top = logits[order[0] as usize] as f64;
    let mut weights: Vec<f64> =
        order.iter().map(|t| ((logits[*t as usize] as f64 - top) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let mut count = 0;
    while count < weights.len() && kept < sampling.top_p * total {
        kept += weights[count];
        count += 1;
    }
    weights.truncate(count.max(1));
    let mut target = uniform(sampling.seed, index) * weights.iter().sum::<f64>();
    for (t, w) in order.iter().zip(&weights) {
        if target < *w {
            return Ok(*t);
        }
        target -= w;
    }
    // Rounding can leave a sliver past the last weight.
    Ok(order[weights.len() - 1])
}

/// In [0, 1), 53 bits.
fn uniform(seed: u64, index: u32) -> f64 {
    let words = philox4x32([seed as u32, (seed >> 32) as u32], [index, 0, stream("sampling"), 0]);
    let bits = (words[0] as u64) << 21 ^ (words[1] as u64) >> 11;
    (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    #[test]
    fn greedy_takes_the_smaller_id_of_equal_logits() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(choose(&LOGITS, &greedy, 0).unwrap(), 1);
    }

    /// Chi-square of 20,000 draws against the analytic distribution; 99.9 % quantile for 3 degrees of freedom is 16.27.
    #[test]
    fn draws_follow_the_softmax_of_logits_over_temperature() {
        let sampling = Sampling { temperature: 1.5, ..Sampling::default() };
        let mut counts = [0f64; 4];
        let n = 20_000;
        (0..n).for_each(|i| counts[choose(&LOGITS, &sampling, i).unwrap() as usize] += 1.0);
        let weights: Vec<f64> = LOGITS.iter().map(|l| (*l as f64 / 1.5).exp()).collect();
        let total: f64 = weights.iter().sum();
        let chi: f64 =
            counts.iter().zip(&weights).map(|(c, w)| (c - n as f64 * w / total).powi(2) / (n as f64 * w / total)).sum();
        assert!(chi < 16.27, "chi-square {chi}");
    }

    #[test]
    fn top_k_and_top_p_leave_only_the_likely() {
        let k = Sampling { top_k: 2, ..Sampling::default() };
        let p = Sampling { top_p: 0.5, ..Sampling::default() };
        for i in 0..500 {
            assert!([1, 3].contains(&choose(&LOGITS, &k, i).unwrap()));
            // The two best hold 0.422 each: the first alone does not reach one half.
            assert!([1, 3].contains(&choose(&LOGITS, &p, i).unwrap()));
        }
    }

    #[test]
    fn a_damaged_logit_is_an_error() {
        assert!(choose(&[0.0, f32::NAN], &Sampling::default(), 0).is_err());
    }
}
