//! The data room's own pseudo-random numbers: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014). Its whole state is one `u64`, so a data position is saved as a plain number, and
//! [`mix`] turns a counter into a draw, which makes window sampling a pure function of (seed, step).

use serde::{Deserialize, Serialize};

pub const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The SplitMix64 finaliser: a bijection of `u64` that decorrelates neighbouring inputs.
pub fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequential SplitMix64 stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// An independent stream for `(seed, purpose)`: the two are mixed, so that seed 42 of one purpose is not
    /// seed 43 of another one shifted by a draw.
    pub fn keyed(seed: u64, purpose: u64) -> Self {
        Self { state: mix(mix(seed.wrapping_add(GOLDEN_GAMMA)) ^ purpose.wrapping_mul(GOLDEN_GAMMA)) }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// A uniform integer in `0..bound` without modulo bias (Lemire 2019, rejection form). `bound` must be > 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "below(0) has no value to return");
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// Fisher-Yates, from the last element down.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// A uniform integer in `0..bound`, a pure function of its arguments: the draw number `index` of step `step`.
pub fn counter_below(seed: u64, step: u64, index: u64, bound: u64) -> u64 {
    let key = mix(mix(seed.wrapping_add(GOLDEN_GAMMA)) ^ step.wrapping_mul(GOLDEN_GAMMA));
    SplitMix64 { state: key ^ mix(index.wrapping_add(1)) }.below(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_matches_the_published_sequence_for_seed_1234567() {
        // Rosetta Code's and the C reference implementation's first five outputs.
        let mut rng = SplitMix64::new(1_234_567);
        let expected: [u64; 5] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(std::array::from_fn::<u64, 5, _>(|_| rng.next_u64()), expected);
    }

    #[test]
    fn shuffle_is_a_permutation_and_below_stays_in_range() {
        let mut rng = SplitMix64::keyed(42, 7);
        let mut items: Vec<u32> = (0..100).collect();
        rng.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
        let mut seen = [0usize; 7];
        for draw in 0..7_000 {
            seen[rng.below(7) as usize] += 1;
            assert!(counter_below(1, draw, 3, 7) < 7);
        }
        // Binomial(7000, 1/7): mean 1000, standard deviation 29; six of them either way.
        assert!(seen.iter().all(|&n| (824..=1176).contains(&n)), "{seen:?}");
    }
}
