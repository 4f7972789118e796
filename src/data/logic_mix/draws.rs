//! The random numbers of the generator: one short stream for each document, so that documents can be made in any order and in
//! parallel, and a longer corpus begins with the shorter one.

use crate::data::rng::{GOLDEN_GAMMA, mix};

/// The draws of one document.
#[derive(Clone, Debug)]
pub struct Draws {
    state: u64,
}

impl Draws {
    /// The stream of document `index` of a kind. Kinds lie 2^56 apart, so their documents never share a stream.
    pub fn of(seed: u64, kind: u64, index: u64) -> Self {
        Draws { state: mix(seed.wrapping_add(kind << 56).wrapping_add(index)) }
    }

    /// 64 uniform bits: SplitMix64.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// An integer in `0..bound` by the high half of a product: one draw each, always. Its bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    pub fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A list of `n` numbers from `0..bound`, none twice: each draw counts only what is left, in order.
    pub fn distinct(&mut self, n: usize, bound: u64) -> Vec<u64> {
        let mut chosen: Vec<u64> = Vec::with_capacity(n);
        let mut sorted: Vec<u64> = Vec::with_capacity(n);
        for taken in 0..n as u64 {
            let mut value = self.below(bound - taken);
            for &other in &sorted {
                value += u64::from(value >= other);
            }
            sorted.insert(sorted.partition_point(|&x| x < value), value);
            chosen.push(value);
        }
        chosen
    }
}

/// FNV-1a of 64 bits.
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_draws_of_the_first_document_are_the_published_ones() {
        let mut draws = Draws::of(20_260_118, 1, 0);
        assert_eq!(
            [draws.bits(), draws.bits(), draws.bits()],
            [0xb334_7814_f610_1a3c, 0x05c9_1f43_a3c0_0632, 0x5e18_22b0_1886_95f7]
        );
    }

    #[test]
    fn fnv1a_matches_its_published_values() {
        assert_eq!(fnv1a64(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a64(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a64(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn distinct_draws_are_a_uniform_choice_without_repeats() {
        let mut counts = std::collections::BTreeMap::new();
        for index in 0..6_000 {
            let list = Draws::of(7, 3, index).distinct(2, 3);
            assert_ne!(list[0], list[1]);
            *counts.entry(list).or_insert(0) += 1;
        }
        // Six ordered pairs; binomial(6000, 1/6) has a standard deviation of 29: six of them either way.
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|&n| (827..=1173).contains(&n)), "{counts:?}");
        let mut all = Draws::of(7, 3, 0).distinct(100, 100);
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }
}
