//! Gradient checkpointing: a plan within a memory budget. A training step keeps the values of the forward part that the
//! backward part reads; where they do not fit, some are dropped after the forward part and computed again from kept ones when
//! the backward part first needs them (Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174).
//!
//! This is the last pass, on nodes that are already fused: the copies cannot be merged back with their originals, and run the
//! same kernels on the same operands, so that every number is the same to the bit. Each node runs again at most once: a step
//! costs at most one forward part more.
//!
//! What to drop is searched for. `segments` proposes sets of values to keep (where few bytes cross the forward part, spaced
//! for several sizes of segment); under each, the others are dropped one after the other, by bytes saved per cost and segment
//! by segment. The judge of every candidate is the plan made from it: bytes after reuse of buffers, not an estimate. The list
//! of candidates does not depend on the budget, and the cheapest one that fits is taken: a smaller budget never uses more.

use super::{Graph, Kind, Node, Plan, Value, segments};
use crate::Result;
use crate::device::{Cost, Device};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Plans tried along one order of dropping.
const STEPS_OF_AN_ORDER: usize = 16;
/// FLOPs that take the time of moving one byte: machines from laptops to large GPUs compute 5 to 20 per byte of memory traffic.
const FLOPS_PER_BYTE: f64 = 8.0;

/// What a plan runs again to save memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recomputed {
    /// Bytes on the device if everything were kept.
    pub bytes_before: u64,
    /// Bytes on the device as planned.
    pub bytes_after: u64,
    /// FLOPs and bytes moved by what is run again, for one run.
    pub extra: Cost,
    /// FLOPs of one run with everything kept.
    pub flops_before: f64,
    /// Nodes run again: their names, with `*` for the number of a layer, and how many there are of each.
    pub nodes: Vec<(String, usize)>,
}

impl Recomputed {
    /// One line for a person.
    pub fn line(&self) -> String {
        let count: usize = self.nodes.iter().map(|(_, n)| n).sum();
        let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
        format!(
            "{count} nodes run again in the backward pass: {:.1} MiB instead of {:.1} MiB, for {:.1} % more FLOPs",
            mib(self.bytes_after),
            mib(self.bytes_before),
            100.0 * self.extra.flops / self.flops_before.max(1.0)
        )
    }
}

impl Plan {
    /// This plan, or one with the same results that needs at most `budget` bytes on `device` and computes as little again as was
    /// found. When nothing fits, the smallest plan that was found: the caller compares `memory_on(device).total()` with `budget`.
    pub fn within(self, budget: u64, device: &Device) -> Result<Plan> {
        let whole = self;
        let before = whole.memory_on(device).total();
        if before <= budget {
            return Ok(whole);
        }
        let Some(search) = Search::new(&whole) else { return Ok(whole) };
        let candidates = search.candidates()?;
        let mut smallest: Option<(u64, &Candidate)> = None;
        for candidate in &candidates {
            // A device adds workspace to the host's bytes: what does not fit without need not be looked at with it.
            if candidate.bytes > budget.max(smallest.as_ref().map_or(u64::MAX, |s| s.0)) {
                continue;
            }
            let bytes = search.plan(&candidate.keep)?.map_or(u64::MAX, |p| p.memory_on(device).total());
            if bytes <= budget {
                smallest = Some((bytes, candidate));
                break;
            }
            if smallest.as_ref().is_none_or(|(least, _)| bytes < *least) {
                smallest = Some((bytes, candidate));
            }
        }
        match smallest {
            Some((bytes, candidate)) if bytes < before => match search.plan(&candidate.keep)? {
                Some(plan) => Ok(search.finished(plan, device)),
                None => Ok(whole),
            },
            _ => Ok(whole),
        }
    }
}

impl Graph {
    /// Lets the backward part compute the values of [`Graph::remake`] again.
    pub(super) fn with_remade(self) -> Graph {
        let Some(forward) = self.forward.filter(|_| !self.remade.is_empty()) else { return self };
        let mut keep = vec![true; forward];
        for v in self.remade.iter().filter(|v| (v.node as usize) < forward) {
            keep[v.node as usize] = false;
        }
        match self.recomputing(forward, &keep) {
            Some(graph) => graph.without_dead(&mut 0),
            None => self,
        }
    }

    /// The graph in which what comes after the first `forward` nodes reads copies of those that `keep` leaves out; None when one would
    /// have to run again after a variable that it reads has been changed in place.
    fn recomputing(&self, forward: usize, keep: &[bool]) -> Option<Graph> {
        let old = self;
        let mut late = Late {
            keep,
            copies: HashMap::new(),
            graph: Graph { nodes: old.nodes[..forward].to_vec(), ..Graph::default() },
            changed: HashSet::new(),
        };
        let mut place: Vec<u32> = (0..forward as u32).collect();
        for (i, node) in old.nodes.iter().enumerate().skip(forward) {
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for v in &node.inputs {
                let at = if (v.node as usize) < forward { late.node(v.node)? } else { place[v.node as usize] };
                inputs.push(Value { node: at, port: v.port });
            }
            late.changed.extend(old.changed_in_place(i));
            late.graph.nodes.push(Node { inputs, ..node.clone() });
            place.push(late.graph.nodes.len() as u32 - 1);
        }
        let moved = |v: &Value| Value { node: place[v.node as usize], port: v.port };
        let mut graph = late.graph;
        graph.outputs = old.outputs.iter().map(|(n, v)| (n.clone(), moved(v))).collect();
        graph.updates = old.updates.iter().map(|(a, b)| (moved(a), moved(b))).collect();
        graph.tags = old.tags.iter().map(|(v, r)| (moved(v), *r)).collect();
        graph.forward = Some(forward);
        Some(graph)
    }
}

/// A set of nodes to keep, and what a plan with it costs.
struct Candidate {
    keep: Vec<bool>,
    /// Bytes without a device's workspace.
    bytes: u64,
    cost: Cost,
}

struct Search<'p> {
    whole: &'p Plan,
    /// Nodes of the forward part.
    forward: usize,
    /// Bytes of each forward node that the backward part reads.
    crossing: Vec<u64>,
    /// Forward nodes that cannot run again with the same result.
    fixed: Vec<bool>,
    /// Time of one run of each forward node, in FLOPs.
    cost: Vec<f64>,
}

impl<'p> Search<'p> {
    /// None when the graph has no backward part, or when it reads nothing that could be computed again.
    fn new(whole: &'p Plan) -> Option<Self> {
        let graph = &whole.graph;
        let forward = graph.forward?;
        let mut read = HashSet::new();
        for node in &graph.nodes[forward..] {
            read.extend(node.inputs.iter().map(|v| graph.viewed(*v)).filter(|v| (v.node as usize) < forward));
        }
        let mut crossing = vec![0; forward];
        for v in read.iter().filter(|v| is_computed(&graph.nodes[v.node as usize])) {
            crossing[v.node as usize] += graph.ty(*v).bytes();
        }
        let mut search = Search { whole, forward, crossing, fixed: vec![], cost: vec![] };
        search.fixed = search.find_fixed();
        search.cost = graph.nodes[..forward].iter().map(|n| time_of(graph, n)).collect();
        (0..forward).any(|i| search.can_drop(i)).then_some(search)
    }

    /// Operators that are not functions of their operands, those that change a variable in place, and the readers of a variable
    /// that the forward part changes; values that stay to the end save nothing.
    fn find_fixed(&self) -> Vec<bool> {
        let graph = &self.whole.graph;
        let changed: HashSet<Value> = (0..self.forward).flat_map(|i| graph.changed_in_place(i)).collect();
        let mut fixed: Vec<bool> = graph.nodes[..self.forward]
            .iter()
            .map(|node| match &node.kind {
                Kind::Op(op) => {
                    let reads_changed = node.inputs.iter().any(|v| changed.contains(&graph.viewed(*v)));
                    !op.is_pure() || !op.must_alias().is_empty() || reads_changed
                }
                _ => true,
            })
            .collect();
        let held = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        for v in held.map(|v| graph.viewed(*v).node as usize).filter(|n| *n < self.forward) {
            fixed[v] = true;
        }
        fixed
    }

    fn can_drop(&self, node: usize) -> bool {
        self.crossing[node] > 0 && !self.fixed[node]
    }

    /// Every candidate, cheapest first; the order does not depend on any budget.
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let graph = &self.whole.graph;
        let mut seen: HashSet<Vec<bool>> = HashSet::new();
        let mut found = Vec::new();
        for cuts in segments::proposals(graph, self.forward, &self.crossing) {
            let protected: HashSet<usize> = cuts.kept.into_iter().collect();
            let base: Vec<bool> =
                (0..self.forward).map(|i| self.fixed[i] || self.crossing[i] > 0 || protected.contains(&i)).collect();
            let items: Vec<usize> = (0..self.forward).filter(|i| self.can_drop(*i) && !protected.contains(i)).collect();
            let mut by_score = items.clone();
            let score: HashMap<usize, f64> = items.iter().map(|i| (*i, self.saved_per_cost(*i, &base))).collect();
            // Earlier values first: they lie idle for longest.
            by_score.sort_by(|a, b| score[b].total_cmp(&score[a]).then(a.cmp(b)));
            for order in [by_score, items] {
                for step in 1..=STEPS_OF_AN_ORDER {
                    let count = (order.len() * step).div_ceil(STEPS_OF_AN_ORDER);
                    let mut keep = base.clone();
                    order[..count].iter().for_each(|i| keep[*i] = false);
                    if !seen.insert(keep.clone()) {
                        continue;
                    }
                    if let Some(plan) = self.plan(&keep)? {
                        found.push(Candidate { keep, bytes: plan.memory.total(), cost: plan.cost() });
                    }
                }
            }
        }
        found.sort_by(|a, b| {
            let time = |c: &Candidate| c.cost.flops + FLOPS_PER_BYTE * c.cost.bytes();
            time(a).total_cmp(&time(b)).then(a.bytes.cmp(&b.bytes))
        });
        Ok(found)
    }

    /// Bytes that go when node `i` is dropped and all of `keep` is kept, over the time to compute it again.
    fn saved_per_cost(&self, i: usize, keep: &[bool]) -> f64 {
        let mut wanted = vec![i];
        let mut reached = HashSet::from([i]);
        let mut cost = 0.0;
        while let Some(node) = wanted.pop() {
            cost += self.cost[node];
            for v in &self.whole.graph.nodes[node].inputs {
                let input = v.node as usize;
                if !keep[input] && reached.insert(input) {
                    wanted.push(input);
                }
            }
        }
        self.crossing[i] as f64 / cost.max(1.0)
    }

    /// None when a node would have to run again after a variable that it reads has been changed in place.
    fn plan(&self, keep: &[bool]) -> Result<Option<Plan>> {
        let Some(graph) = self.whole.graph.recomputing(self.forward, keep) else { return Ok(None) };
        Plan::without_passes(graph.without_dead(&mut 0), self.whole.passes).map(Some)
    }

    fn finished(&self, mut plan: Plan, device: &Device) -> Plan {
        let (before, after) = (self.whole.cost(), plan.cost());
        let mut counts: BTreeMap<String, isize> = BTreeMap::new();
        for (graph, sign) in [(&plan.graph, 1), (&self.whole.graph, -1)] {
            for node in graph.nodes.iter().filter(|n| is_computed(n)) {
                *counts.entry(without_numbers(&node.name)).or_default() += sign;
            }
        }
        plan.recomputed = Some(Recomputed {
            bytes_before: self.whole.memory_on(device).total(),
            bytes_after: plan.memory_on(device).total(),
            extra: Cost {
                flops: after.flops - before.flops,
                bytes_read: after.bytes_read - before.bytes_read,
                bytes_written: after.bytes_written - before.bytes_written,
            },
            flops_before: before.flops,
            nodes: counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n as usize)).collect(),
        });
        plan
    }
}

/// Copies of forward nodes in the backward part of a graph under construction.
struct Late<'k> {
    keep: &'k [bool],
    copies: HashMap<u32, u32>,
    graph: Graph,
    /// Variables that the backward part has changed in place so far.
    changed: HashSet<Value>,
}

impl Late<'_> {
    /// The node that holds forward node `wanted` from here on: itself where it is kept, else a copy, made here if there is none yet.
    fn node(&mut self, wanted: u32) -> Option<u32> {
        let mut stack = vec![wanted];
        let mut needed = Vec::new();
        let mut reached = HashSet::from([wanted]);
        while let Some(node) = stack.pop() {
            if self.keep[node as usize] || self.copies.contains_key(&node) {
                continue;
            }
            needed.push(node);
            for v in &self.graph.nodes[node as usize].inputs {
                if reached.insert(v.node) {
                    stack.push(v.node);
                }
            }
        }
        // Arena order is a topological order.
        needed.sort_unstable();
        for node in needed {
            let original = self.graph.nodes[node as usize].clone();
            let inputs: Vec<Value> = original
                .inputs
                .iter()
                .map(|v| Value { node: self.copies.get(&v.node).copied().unwrap_or(v.node), port: v.port })
                .collect();
            // A view of what is kept needs no copy of its own.
            let same = matches!(&original.kind, Kind::Op(op) if op.is_view()) && inputs == original.inputs;
            let at = if same {
                node
            } else {
                if inputs.iter().any(|v| self.changed.contains(&self.graph.viewed(*v))) {
                    return None;
                }
                self.graph.nodes.push(Node { inputs, ..original });
                self.graph.nodes.len() as u32 - 1
            };
            self.copies.insert(node, at);
        }
        Some(self.copies.get(&wanted).copied().unwrap_or(wanted))
    }
}

/// Whether a node's outputs are memory that running it fills.
pub(super) fn is_computed(node: &Node) -> bool {
    matches!(&node.kind, Kind::Op(op) if !op.is_view())
}

/// Time of one run in FLOPs, memory traffic included.
fn time_of(graph: &Graph, node: &Node) -> f64 {
    let Kind::Op(op) = &node.kind else { return 0.0 };
    if op.is_view() {
        return 0.0;
    }
    let types: Vec<_> = node.inputs.iter().map(|v| graph.ty(*v).clone()).collect();
    let cost = op.cost(&types, &node.outputs);
    cost.flops + FLOPS_PER_BYTE * cost.bytes()
}

/// `blocks.*.norm` of `blocks.3.norm`.
fn without_numbers(name: &str) -> String {
    let part = |p: &str| if p.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { p.to_string() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
