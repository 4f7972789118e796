//! BPE training with incremental pair counts.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

type Pair = (u32, u32);
type Bytes = Arc<[u8]>;

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

struct Pairs {
    counts: HashMap<Pair, u64>,
    /// Units that may hold the pair (a superset: entries are not removed).
    places: HashMap<Pair, HashSet<u32>>,
}

impl Pairs {
    fn add(&mut self, unit: &Unit, index: u32) {
        for pair in unit.symbols.windows(2) {
            let pair = (pair[0], pair[1]);
            *self.counts.entry(pair).or_default() += unit.count;
            self.places.entry(pair).or_default().insert(index);
        }
    }

    fn subtract(&mut self, unit: &Unit) {
        for pair in unit.symbols.windows(2) {
            let count = self.counts.get_mut(&(pair[0], pair[1])).expect("every pair of a unit was counted");
            *count -= unit.count;
        }
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
    let mut pairs = Pairs { counts: HashMap::new(), places: HashMap::new() };
    for (index, unit) in units.iter().enumerate() {
        pairs.add(unit, index as u32);
    }
    let candidate = |tokens: &[Bytes], pair: Pair, count: u64| Candidate {
        count,
        bytes: Reverse((tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone())),
        pair,
    };
    let mut queue: BinaryHeap<Candidate> =
        pairs.counts.iter().map(|(&pair, &count)| candidate(&tokens, pair, count)).collect();

    let mut merges = Vec::new();
    while merges.len() < wanted {
        let Some(best) = queue.pop() else { break };
        let count = pairs.counts.get(&best.pair).copied().unwrap_or(0);
        if count != best.count {
            // Counts of old pairs only fall, so an outdated entry goes back with its present count.
            if count > 0 {
                queue.push(Candidate { count, ..best });
            }
            continue;
        }
        if count == 0 {
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

        let mut places: Vec<u32> = pairs.places.remove(&best.pair).unwrap_or_default().into_iter().collect();
        places.sort_unstable();
        for index in places {
            let unit = &mut units[index as usize];
            if !unit.symbols.windows(2).any(|w| (w[0], w[1]) == best.pair) {
                continue;
            }
            pairs.subtract(unit);
            let mut merged = Vec::with_capacity(unit.symbols.len());
            let mut at = 0;
            while at < unit.symbols.len() {
                if unit.symbols[at..].starts_with(&[best.pair.0, best.pair.1]) {
                    merged.push(new);
                    at += 2;
                } else {
                    merged.push(unit.symbols[at]);
                    at += 1;
                }
            }
            unit.symbols = merged;
            pairs.add(unit, index);
            for pair in unit.symbols.windows(2).filter(|w| w.contains(&new)) {
                // Queued once for each place; all but the entry with the final count are outdated when popped.
                let pair = (pair[0], pair[1]);
                queue.push(candidate(&tokens, pair, pairs.counts[&pair]));
            }
        }
    }
    merges
}
