//! A graph made ready: order, lifetimes, buffers, in-place decisions, bytes. Built once, replayed every step, so memory is
//! known before the first step and does not grow.

use super::passes::PassStats;
use super::recompute::Recomputed;
use super::sharing::{self, Span};
use super::{Graph, Kind, Op, Precision, Role, Value};
use crate::device::{BufferSpec, Call, Cost, Device, Executable, ExecutionNotes, Home, Place, Store, Work, gpu};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::HashMap;

/// Bytes by purpose. The sum is what the device allocates for this plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MemoryReport {
    pub weights: u64,
    pub gradients: u64,
    pub optimizer: u64,
    /// Variables with another purpose, inputs and constants.
    pub other: u64,
    pub activations: u64,
    /// Scratch memory and parameter blocks of GPU kernels.
    pub workspace: u64,
}

impl MemoryReport {
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.other + self.activations + self.workspace
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph after the passes; `Work::calls` follow its nodes.
    pub graph: Graph,
    pub passes: PassStats,
    pub work: Work,
    pub memory: MemoryReport,
    /// What a memory budget had recomputed; absent without one and where everything fits as it is.
    pub recomputed: Option<Recomputed>,
}

impl Plan {
    pub fn new(graph: &Graph) -> Result<Plan> {
        Self::stored_in(graph, Precision::F32)
    }

    /// As `new`, with values stored in `precision` where the operators allow it.
    pub fn stored_in(graph: &Graph, precision: Precision) -> Result<Plan> {
        let (graph, passes) = graph.optimised()?;
        Self::without_passes(graph.stored_in(precision)?.with_remade(), passes)
    }

    /// Plans the graph as it is written (tests compare both ways).
    pub fn unoptimised(graph: &Graph) -> Result<Plan> {
        Self::without_passes(graph.without_dead(&mut 0), PassStats::default())
    }

    pub(super) fn without_passes(graph: Graph, passes: PassStats) -> Result<Plan> {
        let (work, memory) = Builder::new(&graph).build()?;
        Ok(Plan { graph, passes, work, memory, recomputed: None })
    }

    /// FLOPs and bytes moved by one run.
    pub fn cost(&self) -> Cost {
        let mut total = Cost::default();
        self.work.calls.iter().for_each(|c| total += c.cost);
        total
    }

    /// The memory report with the workspace that `device` needs.
    pub fn memory_on(&self, device: &Device) -> MemoryReport {
        let workspace = match device {
            Device::Gpu(context) => gpu::workspace_bytes(&self.work, context.caps()),
            _ => 0,
        };
        MemoryReport { workspace, ..self.memory.clone() }
    }

    /// Which calls `device` will cut or run on the CPU; known without preparing the plan.
    pub fn notes_on(&self, device: &Device) -> ExecutionNotes {
        match device {
            Device::Gpu(context) => gpu::foreseen_notes(&self.work, context.caps()),
            _ => ExecutionNotes::default(),
        }
    }

    /// Declares the variables in `store` and makes the plan ready on the store's device.
    pub fn prepare(&self, store: &mut Store) -> Result<Box<dyn Executable>> {
        for (v, name, _) in self.graph.variables() {
            store.declare(name, self.graph.ty(v))?;
        }
        let device = store.device.clone();
        device.prepare(self.work.clone(), store)
    }
}

struct Builder<'g> {
    graph: &'g Graph,
    /// The value whose memory each value uses: itself, or through views the value viewed.
    root: HashMap<Value, Value>,
    /// Index of the last node that reads a root; `usize::MAX` when the host or an update needs it at the end.
    last_use: HashMap<Value, usize>,
    update_of: HashMap<Value, Value>,
    buffers: Vec<BufferSpec>,
    buffer_of: HashMap<Value, usize>,
    /// First and last node that use a transient buffer.
    spans: HashMap<usize, (usize, usize)>,
}

impl<'g> Builder<'g> {
    fn new(graph: &'g Graph) -> Self {
        let mut root = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let view = matches!(&node.kind, Kind::Op(op) if op.is_view());
            for port in 0..node.outputs.len() {
                let v = Value { node: i as u32, port: port as u16 };
                let r = if view { root[&node.inputs[0]] } else { v };
                root.insert(v, r);
            }
        }
        let mut last_use = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in &node.inputs {
                last_use.insert(root[v], i);
            }
        }
        let held = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().map(|(_, v)| v));
        for v in held {
            last_use.insert(root[v], usize::MAX);
        }
        let update_of = graph.updates.iter().map(|(var, new)| (*new, *var)).collect();
        Builder { graph, root, last_use, update_of, buffers: vec![], buffer_of: HashMap::new(), spans: HashMap::new() }
    }

    fn build(mut self) -> Result<(Work, MemoryReport)> {
        let mut work = Work::default();
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let value = Value { node: i as u32, port: 0 };
            match &node.kind {
                Kind::Input(name) => {
                    self.dedicated(value, Home::Input(name.clone()));
                    work.inputs.push((name.clone(), self.place(value)));
                }
                Kind::Variable(name, _) => self.dedicated(value, Home::Variable(name.clone())),
                Kind::Constant(c) => self.dedicated(value, Home::Constant(c.clone())),
                Kind::Op(op) if op.is_view() => {}
                Kind::Op(op) => {
                    self.place_outputs(i, op.as_ref())?;
                    let outputs = (0..node.outputs.len()).map(|p| Value { node: i as u32, port: p as u16 });
                    let inputs: Vec<Place> = node.inputs.iter().map(|v| self.place(*v)).collect();
                    let types: Vec<_> = inputs.iter().map(|p| p.ty.clone()).collect();
                    work.calls.push(Call {
                        kernel: op.clone(),
                        label: node.name.clone(),
                        outputs: outputs.map(|v| self.place(v)).collect(),
                        cost: op.cost(&types, &node.outputs),
                        inputs,
                    });
                }
            }
        }
        work.copies = self.copies();
        work.outputs = self.graph.outputs.iter().map(|(n, v)| (n.clone(), self.place(*v))).collect();
        self.share(&mut work);
        let memory = self.report();
        work.buffers = self.buffers;
        Ok((work, memory))
    }

    /// The updates that were not made in place, as copies at the end of a run. All of them read what was there before any is made:
    /// one that reads a variable which another one writes goes through a buffer of its own.
    fn copies(&mut self) -> Vec<(Place, Place)> {
        let updates: Vec<(Place, Place)> =
            self.graph.updates.iter().map(|(var, new)| (self.place(*new), self.place(*var))).collect();
        let (mut first, mut then) = (Vec::new(), Vec::new());
        for (from, to) in updates.iter().filter(|(from, to)| from.buffer != to.buffer) {
            if updates.iter().any(|(_, written)| written.buffer == from.buffer) {
                let buffer = self.transient(from.ty.bytes(), self.graph.nodes.len());
                let staged = Place { buffer, ty: from.ty.clone() };
                first.push((from.clone(), staged.clone()));
                then.push((staged, to.clone()));
            } else {
                then.push((from.clone(), to.clone()));
            }
        }
        first.extend(then);
        first
    }

    fn place(&self, v: Value) -> Place {
        Place { buffer: self.buffer_of[&self.root[&v]], ty: self.graph.ty(v).clone() }
    }

    fn dedicated(&mut self, v: Value, home: Home) {
        self.buffers.push(BufferSpec { bytes: self.graph.ty(v).bytes(), home });
        self.buffer_of.insert(v, self.buffers.len() - 1);
    }

    fn place_outputs(&mut self, index: usize, op: &dyn Op) -> Result<()> {
        let node = &self.graph.nodes[index];
        let mut taken = Vec::new();
        let forced = op.must_alias();
        let allowed = op.in_place();
        for port in 0..node.outputs.len() {
            let out = Value { node: index as u32, port: port as u16 };
            let chosen = match forced.iter().find(|(_, o)| *o == port) {
                Some((i, _)) => Some(self.forced_alias(index, node.inputs[*i], out)?),
                None => allowed
                    .iter()
                    .filter(|(_, o)| *o == port)
                    .find_map(|(i, _)| self.alias(index, *i, out))
                    .filter(|b| !taken.contains(b)),
            };
            let buffer = chosen.unwrap_or_else(|| self.transient(self.graph.ty(out).bytes(), index));
            taken.push(buffer);
            self.buffer_of.insert(out, buffer);
            if let Some((_, end)) = self.spans.get_mut(&buffer) {
                *end = self.last_use.get(&out).map_or(index, |l| *l.max(end));
            }
        }
        Ok(())
    }

    /// The buffer of operand `i` when output `out` may overwrite it.
    fn alias(&self, index: usize, i: usize, out: Value) -> Option<usize> {
        let node = &self.graph.nodes[index];
        let v = node.inputs[i];
        let root = self.root[&v];
        let buffer = *self.buffer_of.get(&root)?;
        let shared = node.inputs.iter().any(|w| *w != v && self.root[w] == root);
        let same = self.graph.ty(v) == self.graph.ty(out);
        let free = match &self.buffers[buffer].home {
            Home::Transient => self.last_use.get(&root) == Some(&index),
            Home::Variable(_) => self.update_of.get(&out) == Some(&root) && self.last_use.get(&root) == Some(&index),
            _ => false,
        };
        (same && free && !shared).then_some(buffer)
    }

    fn forced_alias(&self, index: usize, v: Value, out: Value) -> Result<usize> {
        let root = self.root[&v];
        let ok = self.update_of.get(&out) == Some(&root) && self.last_use.get(&root).is_none_or(|&l| l <= index);
        if !ok {
            let (node, var) = (&self.graph.nodes[index].name, self.graph.name(v));
            return Err(Error::Graph(format!(
                "node '{node}' changes '{var}' in place: it must be the variable's update and its last reader"
            )));
        }
        Ok(self.buffer_of[&root])
    }

    /// A buffer of its own for now; `share` finds out which can be one.
    fn transient(&mut self, bytes: u64, index: usize) -> usize {
        self.buffers.push(BufferSpec { bytes, home: Home::Transient });
        self.spans.insert(self.buffers.len() - 1, (index, index));
        self.buffers.len() - 1
    }

    /// Lets transient buffers whose lifetimes do not meet be one.
    fn share(&mut self, work: &mut Work) {
        let mut transient: Vec<usize> = self.spans.keys().copied().collect();
        transient.sort_unstable();
        let spans: Vec<Span> = transient
            .iter()
            .map(|b| {
                let (start, end) = self.spans[b];
                Span { bytes: self.buffers[*b].bytes, start, end }
            })
            .collect();
        let (shared, bytes) = sharing::share(&spans);
        let shared: HashMap<usize, usize> = transient.into_iter().zip(shared).collect();
        let mut place = Vec::with_capacity(self.buffers.len());
        let mut buffers = Vec::new();
        for (b, spec) in self.buffers.drain(..).enumerate() {
            if shared.contains_key(&b) {
                place.push(usize::MAX);
            } else {
                place.push(buffers.len());
                buffers.push(spec);
            }
        }
        let first = buffers.len();
        shared.iter().for_each(|(b, to)| place[*b] = first + to);
        buffers.extend(bytes.into_iter().map(|bytes| BufferSpec { bytes, home: Home::Transient }));
        self.buffers = buffers;
        self.buffer_of.values_mut().for_each(|b| *b = place[*b]);
        let places = work.calls.iter_mut().flat_map(|c| c.inputs.iter_mut().chain(&mut c.outputs));
        let places = places.chain(work.copies.iter_mut().flat_map(|(from, to)| [from, to]));
        let named = work.inputs.iter_mut().chain(&mut work.outputs).map(|(_, p)| p);
        places.chain(named).for_each(|p| p.buffer = place[p.buffer]);
    }

    fn report(&self) -> MemoryReport {
        let mut report = MemoryReport::default();
        let roles: HashMap<&str, Role> = self.graph.variables().map(|(_, n, r)| (n, r)).collect();
        // A transient buffer that holds a gradient at the end may have held larger activations before: those bytes are theirs.
        let mut gradients: HashMap<usize, u64> = HashMap::new();
        for (v, _) in self.graph.tags.iter().filter(|(_, r)| *r == Role::Gradient) {
            let held = gradients.entry(self.buffer_of[&self.root[v]]).or_default();
            *held = self.graph.ty(*v).bytes().max(*held);
        }
        for (i, spec) in self.buffers.iter().enumerate() {
            let line = match &spec.home {
                Home::Variable(name) => match roles[name.as_str()] {
                    Role::Parameter => &mut report.weights,
                    Role::Gradient => &mut report.gradients,
                    Role::Optimizer => &mut report.optimizer,
                    Role::State => &mut report.other,
                },
                Home::Input(_) | Home::Constant(_) => &mut report.other,
                Home::Transient => {
                    let held = gradients.get(&i).copied().unwrap_or(0).min(spec.bytes);
                    report.gradients += held;
                    report.activations += spec.bytes - held;
                    continue;
                }
            };
            *line += spec.bytes;
        }
        report
    }
}
