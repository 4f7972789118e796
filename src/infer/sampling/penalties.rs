//! Penalties on tokens that were generated before.

use super::Sampling;
use std::collections::{BTreeMap, VecDeque};

/// The newest generated tokens, as many as the penalties look at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Recent {
    tokens: VecDeque<u32>,
    counts: BTreeMap<u32, u32>,
}

impl Recent {
    /// `last`: how many are remembered; 0: all.
    pub(super) fn push(&mut self, token: u32, last: usize) {
        *self.counts.entry(token).or_default() += 1;
        if last == 0 {
            return;
        }
        self.tokens.push_back(token);
        if self.tokens.len() > last
            && let Some(old) = self.tokens.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    /// Repetition as in CTRL (Keskar et al. 2019) for negative logits too: z / rho where z > 0, else z rho. Then frequency and presence as
    /// the OpenAI API has them: z - count f - p.
    pub(super) fn apply(&self, logits: &mut [f64], sampling: &Sampling) {
        for (token, count) in &self.counts {
            let Some(z) = logits.get_mut(*token as usize) else { continue };
            let rho = sampling.repeat_penalty;
            *z = if *z > 0.0 { *z / rho } else { *z * rho };
            *z -= f64::from(*count) * sampling.frequency_penalty + sampling.presence_penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_have_the_values_of_their_formulas() {
        let sampling =
            Sampling { repeat_penalty: 2.0, frequency_penalty: 0.5, presence_penalty: 0.25, ..Sampling::default() };
        let mut recent = Recent::default();
        [0, 1, 1, 9].iter().for_each(|t| recent.push(*t, 64));
        let mut logits = [3.0, -1.0, 2.0];
        recent.apply(&mut logits, &sampling);
        assert_eq!(logits, [3.0 / 2.0 - 0.75, -2.0 - 1.25, 2.0]);
    }

    #[test]
    fn old_tokens_are_forgotten() {
        let mut recent = Recent::default();
        [5, 5, 6, 7].iter().for_each(|t| recent.push(*t, 3));
        assert_eq!(recent.counts, BTreeMap::from([(5, 1), (6, 1), (7, 1)]));
        recent.push(8, 3);
        assert_eq!(recent.counts, BTreeMap::from([(6, 1), (7, 1), (8, 1)]));
        let mut all = Recent::default();
        (0..100).for_each(|t| all.push(t, 0));
        assert_eq!(all.counts.len(), 100);
    }
}
