//! BPE training with incremental pair counts.

use crate::data::rng::mix;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

type Bytes = Arc<[u8]>;
/// Left id in the upper half, right id in the lower.
type Pair = u64;

fn pair(left: u32, right: u32) -> Pair {
    u64::from(left) << 32 | u64::from(right)
}

/// Pairs are counted many million times and no adversary picks them: one multiply-shift mix is enough.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.0 = mix(self.0 ^ u64::from(b)));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(value);
    }
}

type PairMap<V> = HashMap<Pair, V, BuildHasherDefault<PairHasher>>;

/// A pair with the count it had when it was queued. The greatest is the most frequent, then the one whose (left, right)
/// byte strings come first.
#[derive(PartialEq, Eq)]
struct Candidate {
    count: u64,
    bytes: Reverse<(Bytes, Bytes)>,
    pair: Pair,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.count.cmp(&other.count).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One distinct unit of the text.
struct Unit {
    symbols: Vec<u32>,
    count: u64,
}

#[derive(Default)]
struct Pairs {
    counts: PairMap<u64>,
    /// Units that may hold the pair: some no longer do, and some are named twice.
    places: PairMap<Vec<u32>>,
}

impl Pairs {
    fn add(&mut self, pair: Pair, count: u64, index: u32) {
        *self.counts.entry(pair).or_default() += count;
        let places = self.places.entry(pair).or_default();
        if places.last() != Some(&index) {
            places.push(index);
        }
    }

    fn subtract(&mut self, pair: Pair, count: u64) {
        *self.counts.get_mut(&pair).expect("every pair of a unit was counted") -= count;
    }

    /// Replaces `joined` by `new` in one unit, from left to right, and counts anew the pairs at the places that change.
    /// Pairs that come to be are noted in `fresh`.
    fn merge(&mut self, unit: &mut Unit, index: u32, joined: Pair, new: u32, fresh: &mut Vec<Pair>) {
        let old = &unit.symbols;
        let mut merged = Vec::with_capacity(old.len());
        let mut at = 0;
        // Windows before this one have been taken out already: neighbouring merges share a window.
        let mut next_window = 0;
        while at < old.len() {
            if at + 1 < old.len() && pair(old[at], old[at + 1]) == joined {
                for window in at.saturating_sub(1).max(next_window)..(at + 2).min(old.len() - 1) {
                    self.subtract(pair(old[window], old[window + 1]), unit.count);
                }
                next_window = at + 2;
                merged.push(new);
                at += 2;
            } else {
                merged.push(old[at]);
                at += 1;
            }
        }
        for window in merged.windows(2).filter(|window| window.contains(&new)) {
            let pair = pair(window[0], window[1]);
            self.add(pair, unit.count, index);
            fresh.push(pair);
        }
        unit.symbols = merged;
    }
}

/// The first `wanted` merges of the units, as pairs of byte strings. Pairs are counted where they overlap too ("aaa"
/// has two of (a, a)), and replaced from left to right.
pub(super) fn merges(unit_counts: HashMap<Vec<u8>, u64>, wanted: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut tokens: Vec<Bytes> = (0..=255u8).map(|b| Arc::from([b])).collect();
    let mut spelled: HashSet<Bytes> = tokens.iter().cloned().collect();
    let mut units: Vec<Unit> = unit_counts
        .into_iter()
        .map(|(bytes, count)| Unit { symbols: bytes.into_iter().map(u32::from).collect(), count })
        .collect();
    let mut pairs = Pairs::default();
    for (index, unit) in units.iter().enumerate() {
        for window in unit.symbols.windows(2) {
            pairs.add(pair(window[0], window[1]), unit.count, index as u32);
        }
    }
    let candidate = |tokens: &[Bytes], pair: Pair, count: u64| Candidate {
        count,
        bytes: Reverse((tokens[(pair >> 32) as usize].clone(), tokens[pair as u32 as usize].clone())),
        pair,
    };
    let mut queue: BinaryHeap<Candidate> =
        pairs.counts.iter().map(|(&pair, &count)| candidate(&tokens, pair, count)).collect();

    let mut merges = Vec::new();
    let mut fresh = Vec::new();
    while merges.len() < wanted {
        let Some(best) = queue.pop() else { break };
        let count = pairs.counts.get(&best.pair).copied().unwrap_or(0);
        if count == 0 {
            continue;
        }
        if count != best.count {
            // An old pair's count only falls, so an outdated entry goes back with the present one.
            queue.push(Candidate { count, ..best });
            continue;
        }
        let Reverse((left, right)) = best.bytes;
        let joined: Bytes = [&left[..], &right[..]].concat().into();
        if !spelled.insert(joined.clone()) {
            continue;
        }
        let new = tokens.len() as u32;
        tokens.push(joined);
        merges.push((left.to_vec(), right.to_vec()));

        let mut places = pairs.places.remove(&best.pair).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        for index in places {
            pairs.merge(&mut units[index as usize], index, best.pair, new, &mut fresh);
        }
        fresh.sort_unstable();
        fresh.dedup();
        queue.extend(fresh.drain(..).map(|pair| candidate(&tokens, pair, pairs.counts[&pair])));
    }
    merges
}
