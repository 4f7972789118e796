//! Choosing a token from logits.
//!
//! # The order, always this one
//! 1. logits beyond the tokenizer's ids are cut off by the caller; a logit that is not finite is an error;
//! 2. `logit_bias` is added, `banned` tokens are left out;
//! 3. repetition, then frequency and presence penalty, over the newest generated tokens (the prompt is not among them);
//! 4. at temperature 0 the greatest logit is taken, of equals the smaller id, and nothing of what follows happens;
//! 5. logits are divided by the temperature;
//! 6. top-k, typical, top-p, min-p, each on what the ones before it left, rescaled; or mirostat 2 in their place;
//! 7. one uniform number of the text's Philox stream draws by the inverse cumulative distribution in the order of ids.
//!
//! Sums are `f64` in the order of ids. As one number is used for a token whatever the settings, settings that leave nothing out (top-p 1,
//! top-k of the whole vocabulary) draw the same tokens as none, and the draw is a function of (logits, settings, seed, place, what was
//! generated): equal logits give equal tokens on every device.
//!
//! Ties: top-k keeps everything equal to the k-th (so top-k 1 is greedy where the greatest is alone); top-p and typical take smaller ids first.

mod distribution;
mod options;
mod penalties;
mod truncate;

pub use distribution::{Distribution, Purpose, uniform};
pub use options::Sampling;

use crate::{Error, Result};
use penalties::Recent;

/// The state of a text's draws: its place, what the penalties remember, mirostat's limit.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    index: u32,
    recent: Recent,
    /// Mirostat's greatest surprise in bits.
    limit: f64,
}

impl Sampler {
    pub fn new(options: &Sampling) -> Result<Self> {
        options.validate()?;
        Ok(Sampler {
            options: options.clone(),
            index: 0,
            recent: Recent::default(),
            // As its authors begin.
            limit: 2.0 * options.mirostat_tau,
        })
    }

    pub fn options(&self) -> &Sampling {
        &self.options
    }

    /// Tokens generated so far.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Steps 1 to 3: what is chosen from, before any temperature; -inf for banned tokens.
    pub fn adjusted(&self, logits: &[f32]) -> Result<Vec<f64>> {
        check(logits)?;
        let mut adjusted: Vec<f64> = logits.iter().map(|z| f64::from(*z)).collect();
        let outside = |token: u32| {
            let known = logits.len();
            Error::Config(format!("logit-bias: token {token} is outside the vocabulary of {known}"))
        };
        for (token, bias) in &self.options.logit_bias {
            *adjusted.get_mut(*token as usize).ok_or_else(|| outside(*token))? += bias;
        }
        if self.options.penalises() {
            self.recent.apply(&mut adjusted, &self.options);
        }
        adjusted.iter_mut().filter(|z| **z != f64::NEG_INFINITY).for_each(|z| *z = z.clamp(f64::MIN, f64::MAX));
        for token in &self.options.banned {
            *adjusted.get_mut(*token as usize).ok_or_else(|| outside(*token))? = f64::NEG_INFINITY;
        }
        match adjusted.iter().any(|z| z.is_finite()) {
            true => Ok(adjusted),
            false => Err(Error::Config("logit-bias: every token is banned, none can be chosen".into())),
        }
    }

    /// Steps 1 to 6: what the next token is drawn from.
    pub fn distribution(&self, logits: &[f32]) -> Result<Distribution> {
        let options = &self.options;
        if options.takes_greatest() {
            return most_likely(logits).map(Distribution::One);
        }
        let mut z = self.adjusted(logits)?;
        let best = greatest(&z);
        if options.temperature == 0.0 {
            return Ok(Distribution::One(best as u32));
        }
        let top = z[best];
        z.iter_mut().for_each(|z| *z = (*z - top) / options.temperature);
        truncate::top_k(&mut z, options.top_k);
        let mut weights = z;
        weights.iter_mut().for_each(|z| *z = z.exp());
        let whole = weights.iter().sum();
        if options.mirostat_tau > 0.0 {
            truncate::surprise_at_most(&mut weights, self.limit);
        }
        if options.typical < 1.0 {
            truncate::typical(&mut weights, options.typical);
        }
        if options.top_p < 1.0 {
            truncate::top_p(&mut weights, options.top_p);
        }
        if options.min_p > 0.0 {
            truncate::min_p(&mut weights, options.min_p);
        }
        Ok(Distribution::new(weights, whole))
    }

    /// The uniform number of the next token.
    pub fn uniform(&self, purpose: Purpose) -> f64 {
        uniform(self.options.seed, self.index, purpose)
    }

    /// `token`, from `from`, is the text's next.
    pub fn accept(&mut self, token: u32, from: &Distribution) {
        if self.options.mirostat_tau > 0.0 {
            self.limit -= self.options.mirostat_eta * (from.surprise(token) - self.options.mirostat_tau);
        }
        if self.options.penalises() {
            self.recent.push(token, self.options.repeat_last_n);
        }
        self.index = self.index.wrapping_add(1);
    }

    /// Draws the text's next token.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let from = self.distribution(logits)?;
        let token = from.draw(self.uniform(Purpose::Token));
        self.accept(token, &from);
        Ok(token)
    }
}

/// A logit of -inf is a token that is never chosen.
fn check(logits: &[f32]) -> Result<()> {
    if let Some(bad) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
        return Err(Error::Numerics(format!("the logit of token {bad} is {}: the weights are damaged", logits[bad])));
    }
    match logits.iter().all(|l| *l == f32::NEG_INFINITY) {
        true => Err(Error::Numerics(format!("of {} logits none is a number: no token can be chosen", logits.len()))),
        false => Ok(()),
    }
}

/// The place of the greatest number, of equals the first.
fn greatest<T: PartialOrd>(numbers: &[T]) -> usize {
    (0..numbers.len()).reduce(|best, i| if numbers[i] > numbers[best] { i } else { best }).unwrap_or_default()
}

/// The greatest logit's token, of equals the smaller id.
pub fn most_likely(logits: &[f32]) -> Result<u32> {
    check(logits)?;
    Ok(greatest(logits) as u32)
}

/// The token drawn from `logits` as number `index` of a text of which nothing is remembered.
pub fn choose(logits: &[f32], sampling: &Sampling, index: u32) -> Result<u32> {
    let mut sampler = Sampler::new(sampling)?;
    sampler.index = index;
    sampler.draw(logits)
}

/// ln of the softmax of `logits`.
pub fn log_softmax(logits: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let most = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.clone().map(|z| (z - most).exp()).sum();
    logits.map(|z| z - most - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    #[test]
    fn greedy_takes_the_smaller_id_of_equal_logits() {
        assert_eq!(choose(&LOGITS, &Sampling::greedy(), 0).unwrap(), 1);
        // Negative zero equals zero.
        assert_eq!(most_likely(&[-0.0, 0.0]).unwrap(), 0);
    }

    #[test]
    fn damaged_logits_are_an_error_that_names_the_token() {
        for bad in [f32::NAN, f32::INFINITY] {
            for sampling in [Sampling::default(), Sampling::greedy()] {
                let message = choose(&[0.0, 1.0, bad], &sampling, 0).unwrap_err().to_string();
                assert!(message.contains("token 2"), "{message}");
            }
        }
        assert!(choose(&[], &Sampling::greedy(), 0).is_err());
        assert!(choose(&[f32::NEG_INFINITY; 3], &Sampling::default(), 0).is_err());
    }

    #[test]
    fn a_logit_of_minus_infinity_is_a_token_that_is_never_chosen() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.5];
        let penalised = Sampling { repeat_penalty: 1.3, presence_penalty: 0.5, ..Sampling::default() };
        for sampling in [Sampling::default(), Sampling::greedy(), penalised] {
            let drawn: Vec<u32> = (0..200).map(|i| choose(&logits, &sampling, i).unwrap()).collect();
            assert!(drawn.iter().all(|t| [1, 3].contains(t)), "{drawn:?}");
        }
    }

    #[test]
    fn banned_tokens_are_never_chosen_and_bias_is_added() {
        let banned = Sampling { banned: vec![1, 3], ..Sampling::greedy() };
        assert_eq!(choose(&LOGITS, &banned, 0).unwrap(), 2);
        let hot = Sampling { temperature: 50.0, ..banned.clone() };
        assert!((0..500).all(|i| [0, 2].contains(&choose(&LOGITS, &hot, i).unwrap())));
        let biased = Sampling { logit_bias: vec![(0, 2.5)], ..Sampling::greedy() };
        assert_eq!(choose(&LOGITS, &biased, 0).unwrap(), 0);
        let all = Sampling { banned: vec![0, 1, 2, 3], ..Sampling::default() };
        assert!(choose(&LOGITS, &all, 0).unwrap_err().to_string().contains("every token is banned"));
        let outside = Sampling { logit_bias: vec![(4, 1.0)], ..Sampling::default() };
        assert!(choose(&LOGITS, &outside, 0).unwrap_err().to_string().contains("token 4"));
    }

    #[test]
    fn penalties_make_a_greedy_text_move_on() {
        let mut sampler = Sampler::new(&Sampling { presence_penalty: 1.5, ..Sampling::greedy() }).unwrap();
        let text: Vec<u32> = (0..4).map(|_| sampler.draw(&LOGITS).unwrap()).collect();
        assert_eq!(text, [1, 3, 2, 1]);
    }

    #[test]
    fn extreme_settings_stay_numbers() {
        let wild = Sampling {
            temperature: 1e-300,
            repeat_penalty: 1e300,
            frequency_penalty: -1e300,
            logit_bias: vec![(0, 1e300)],
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(&wild).unwrap();
        for _ in 0..5 {
            let d = sampler.distribution(&[f32::MAX, f32::MIN, 0.0]).unwrap();
            let sum: f64 = (0..3).map(|t| d.probability(t)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{d:?}");
            sampler.draw(&[f32::MAX, f32::MIN, 0.0]).unwrap();
        }
    }
}
