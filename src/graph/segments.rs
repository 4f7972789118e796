//! Where a forward part can be cut so that little has to be kept: candidates for gradient checkpointing.
//!
//! A cut lies before a node; what crosses it are the values made before it and read by forward nodes after it. Keeping these,
//! everything up to the next cut can be computed again. In a residual network the cheapest cuts are those that only the
//! residual stream crosses; nothing here knows that.

use super::recompute::is_computed;
use super::{Graph, Value};
use std::collections::{BTreeSet, HashMap};

/// Positions that are looked at as cuts: those that fewest bytes cross.
const MOST_POSITIONS: usize = 512;
/// Sizes of segment that are tried, from the smallest possible to the whole forward part.
const SIZES: usize = 10;

/// One way of cutting.
pub(super) struct Cuts {
    /// Nodes that cross some cut, ascending.
    pub kept: Vec<usize>,
}

/// Ways of cutting the first `forward` nodes of `graph`, without repetitions: no cut at all, then one for each of several sizes
/// of segment. `crossing` has the bytes of each forward node that the backward part reads: a segment's size is their sum, which
/// is what must be there again while the segment is differentiated. For each size the cuts that keep fewest bytes are taken.
pub(super) fn proposals(graph: &Graph, forward: usize, crossing: &[u64]) -> Vec<Cuts> {
    let live = Live::new(graph, forward);
    let mut positions = live.narrow();
    positions.push(forward);
    let mut before = vec![0u64; forward + 1];
    for i in 0..forward {
        before[i + 1] = before[i] + crossing[i];
    }
    let total = before[forward];
    let mut found = BTreeSet::from([Vec::new()]);
    // The largest gap between neighbouring positions: no size below it can be reached.
    let ends = std::iter::once(0).chain(positions.iter().copied());
    let least = ends.zip(&positions).map(|(a, b)| before[*b] - before[a]).max().unwrap_or(0).max(1);
    let ratio = (total as f64 / least as f64).max(1.0).powf(1.0 / SIZES as f64);
    for step in 0..SIZES {
        let size = (least as f64 * ratio.powi(step as i32)).ceil() as u64;
        found.insert(cheapest(&positions, &before, &live.bytes, size));
    }
    found.into_iter().map(|cuts| Cuts { kept: live.crossing(&cuts) }).collect()
}

/// The cuts among `positions` (the last one is the end, which is free) whose segments are no larger than `size`, with the fewest
/// bytes crossing them. A segment between neighbouring positions that is larger stays as it is.
fn cheapest(positions: &[usize], before: &[u64], bytes: &[u64], size: u64) -> Vec<usize> {
    // Least bytes kept with a cut at each position, and the cut before it.
    let mut best: Vec<(u64, Option<usize>)> = Vec::with_capacity(positions.len());
    for (j, &position) in positions.iter().enumerate() {
        let own = if j + 1 == positions.len() { 0 } else { bytes[position] };
        let mut least = if before[position] <= size || j == 0 { Some((0, None)) } else { None };
        for i in (0..j).rev() {
            if before[position] - before[positions[i]] > size && i + 1 < j {
                break;
            }
            if least.is_none_or(|(b, _)| best[i].0 < b) {
                least = Some((best[i].0, Some(i)));
            }
        }
        let (kept, from) = least.unwrap_or((0, None));
        best.push((kept + own, from));
    }
    let mut cuts = Vec::new();
    let mut at = best.last().and_then(|b| b.1);
    while let Some(i) = at {
        cuts.push(positions[i]);
        at = best[i].1;
    }
    cuts.reverse();
    cuts
}

/// What crosses every position of a forward part.
struct Live {
    /// (node, first position crossed, last position crossed)
    spans: Vec<(usize, usize, usize)>,
    /// Bytes that cross the cut before each node.
    bytes: Vec<u64>,
}

impl Live {
    fn new(graph: &Graph, forward: usize) -> Self {
        let mut last: HashMap<Value, usize> = HashMap::new();
        for (i, node) in graph.nodes[..forward].iter().enumerate() {
            for v in &node.inputs {
                last.insert(graph.viewed(*v), i);
            }
        }
        let mut change = vec![0i64; forward + 2];
        let mut spans = Vec::new();
        for (v, end) in last {
            let start = v.node as usize + 1;
            if is_computed(&graph.nodes[v.node as usize]) && start <= end {
                let size = graph.ty(v).bytes() as i64;
                change[start] += size;
                change[end + 1] -= size;
                spans.push((v.node as usize, start, end));
            }
        }
        spans.sort_unstable();
        let mut now = 0;
        let bytes = change[..=forward].iter().map(|c| {
            now += c;
            now as u64
        });
        Live { bytes: bytes.collect(), spans }
    }

    /// Positions that something crosses and no neighbour beats, fewest bytes first in choosing, ascending in the answer.
    fn narrow(&self) -> Vec<usize> {
        let b = &self.bytes;
        let inner = 1..b.len().saturating_sub(1);
        let mut found: Vec<usize> = inner.filter(|&p| b[p] > 0 && b[p] <= b[p - 1].max(b[p + 1])).collect();
        found.sort_by_key(|&p| (b[p], p));
        found.truncate(MOST_POSITIONS);
        found.sort_unstable();
        found
    }

    /// Nodes that cross one of the cuts.
    fn crossing(&self, cuts: &[usize]) -> Vec<usize> {
        let crosses = |start: usize, end: usize| {
            let next = cuts.partition_point(|c| *c < start);
            cuts.get(next).is_some_and(|c| *c <= end)
        };
        let mut nodes: Vec<usize> = self.spans.iter().filter(|s| crosses(s.1, s.2)).map(|s| s.0).collect();
        nodes.dedup();
        nodes
    }
}
