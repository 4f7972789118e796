//! Rewrites that keep every output's meaning: dead nodes, common subexpressions, fusion of elementwise chains, and
//! absorption of elementwise consumers into the epilogue of the operator that feeds them.

use super::{Graph, Kind, Node, Op, Value};
use crate::Result;
use crate::tensor::{DType, TensorType};
use kernels_cpu::program::{Instr, Program};
use std::collections::HashMap;
use std::sync::Arc;

/// WebGPU's default limit is 8 storage buffers a stage: seven inputs and one output.
const MAX_FUSED_INPUTS: usize = 7;
/// Keeps generated shaders quick to compile and the CPU's block registers in L1.
const MAX_FUSED_INSTRS: usize = 48;

#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct PassStats {
    pub dead: usize,
    pub common: usize,
    pub fused: usize,
    pub absorbed: usize,
}

impl Graph {
    /// Applies all passes. Node indices change; names, inputs, outputs and variables stay.
    pub fn optimised(&self) -> Result<(Graph, PassStats)> {
        let mut stats = PassStats::default();
        let graph = self.without_dead(&mut stats.dead);
        let graph = graph.without_common(&mut stats.common);
        let graph = graph.with_fused_chains(&mut stats.fused)?.without_dead(&mut 0);
        let graph = graph.with_absorbed_epilogues(&mut stats.absorbed)?.without_dead(&mut 0);
        Ok((graph, stats))
    }

    /// The value whose memory `v` is: itself, or through views the value viewed.
    pub(super) fn viewed(&self, mut v: Value) -> Value {
        while let Kind::Op(op) = &self.nodes[v.node as usize].kind
            && op.is_view()
        {
            v = self.nodes[v.node as usize].inputs[0];
        }
        v
    }

    /// What node `index` always changes in place (optimisers: `Op::must_alias`).
    pub(super) fn changed_in_place(&self, index: usize) -> Vec<Value> {
        let node = &self.nodes[index];
        let Kind::Op(op) = &node.kind else { return vec![] };
        op.must_alias().iter().map(|(i, _)| self.viewed(node.inputs[*i])).collect()
    }

    fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        for (_, v) in &self.outputs {
            live[v.node as usize] = true;
        }
        for (a, b) in &self.updates {
            live[a.node as usize] = true;
            live[b.node as usize] = true;
        }
        for i in (0..self.nodes.len()).rev() {
            live[i] |= matches!(self.nodes[i].kind, Kind::Input(_));
            if live[i] {
                for v in &self.nodes[i].inputs {
                    live[v.node as usize] = true;
                }
            }
        }
        live
    }

    /// Drops nodes that no output and no update needs. Inputs stay, so that the host can always write them.
    pub fn without_dead(&self, dropped: &mut usize) -> Graph {
        let live = self.live();
        let mut rewrite = Rewrite::new(self);
        for (i, node) in self.nodes.iter().enumerate() {
            if live[i] {
                rewrite.keep(i, node);
            } else {
                *dropped += 1;
            }
        }
        rewrite.finish()
    }

    /// Merges nodes that compute the same thing from the same inputs.
    fn without_common(&self, merged: &mut usize) -> Graph {
        let mut rewrite = Rewrite::new(self);
        let mut seen: HashMap<(String, Vec<Value>), u32> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            let key = match &node.kind {
                Kind::Op(op) if op.is_pure() => Some(format!("{} {op:?}", op.name())),
                Kind::Constant(c) if c.ty().elements() <= 16 => Some(format!("constant {c:?}")),
                _ => None,
            };
            let Some(key) = key else {
                rewrite.keep(i, node);
                continue;
            };
            let key = (key, node.inputs.iter().map(|v| rewrite.map(*v)).collect());
            if let Some(&same) = seen.get(&key) {
                rewrite.replace(i, same);
                *merged += 1;
            } else {
                seen.insert(key, rewrite.keep(i, node));
            }
        }
        rewrite.finish()
    }

    /// How often each value is read, outputs and updates included.
    fn uses(&self) -> HashMap<Value, usize> {
        let mut uses = HashMap::new();
        let reads = self.nodes.iter().flat_map(|n| n.inputs.iter());
        for v in reads.chain(self.outputs.iter().map(|(_, v)| v)).chain(self.updates.iter().map(|(_, v)| v)) {
            *uses.entry(*v).or_insert(0) += 1;
        }
        uses
    }

    fn with_fused_chains(&self, fused: &mut usize) -> Result<Graph> {
        let uses = self.uses();
        let mut rewrite = Rewrite::new(self);
        for (i, node) in self.nodes.iter().enumerate() {
            let Some((op, program)) = program_of(node) else {
                rewrite.keep(i, node);
                continue;
            };
            let mut inputs: Vec<Value> = node.inputs.iter().map(|v| rewrite.map(*v)).collect();
            let mut program = program.clone();
            // Originals of the operands, to look up how often they are read.
            let mut single: HashMap<Value, bool> = HashMap::new();
            for v in &node.inputs {
                let reads_here = node.inputs.iter().filter(|w| *w == v).count();
                single.insert(rewrite.map(*v), uses.get(v) == Some(&reads_here));
            }
            let mut operand = 0;
            while operand < inputs.len() {
                let v = inputs[operand];
                let producer = &rewrite.graph.nodes[v.node as usize];
                let fits = single.get(&v) == Some(&true) && producer.outputs.len() == 1;
                let same_space = producer.outputs[0].shape == node.outputs[0].shape && node.outputs.len() == 1;
                if let (true, true, Some((_, inner))) =
                    (fits, same_space && producer.outputs[0].dtype == DType::F32, program_of(producer))
                    && !rewrite.overwritten_since(v.node)
                    && let Some((merged, operands)) = inline(&program, &inputs, operand, inner, &producer.inputs)
                {
                    // Operands taken over from the producer have already been through this loop.
                    (program, inputs) = (merged, operands);
                    *fused += 1;
                    operand = 0;
                    continue;
                }
                operand += 1;
            }
            match op.with_program(program.clone(), &node.outputs[0].shape) {
                Some(op) if Some(&program) != node_program(node) => {
                    rewrite.push(i, Node { kind: Kind::Op(op), inputs, ..node.clone() });
                }
                _ => {
                    rewrite.keep(i, node);
                }
            }
        }
        Ok(rewrite.finish())
    }

    fn with_absorbed_epilogues(&self, absorbed: &mut usize) -> Result<Graph> {
        let uses = self.uses();
        let mut rewrite = Rewrite::new(self);
        for (i, node) in self.nodes.iter().enumerate() {
            match self.absorbed(node, &uses, &rewrite) {
                Some((op, inputs)) => {
                    let inputs = inputs.iter().map(|v| rewrite.map(*v)).collect();
                    rewrite.push(i, Node { kind: Kind::Op(op), inputs, ..node.clone() });
                    *absorbed += 1;
                }
                None => {
                    rewrite.keep(i, node);
                }
            }
        }
        Ok(rewrite.finish())
    }

    fn absorbed(
        &self,
        node: &Node,
        uses: &HashMap<Value, usize>,
        rewrite: &Rewrite,
    ) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        let (_, program) = program_of(node)?;
        if node.outputs.len() != 1 {
            return None;
        }
        let types: Vec<TensorType> = node.inputs.iter().map(|v| self.ty(*v).clone()).collect();
        (0..node.inputs.len()).find_map(|position| {
            let v = node.inputs[position];
            let producer = &self.nodes[v.node as usize];
            let Kind::Op(op) = &producer.kind else { return None };
            if producer.outputs.len() != 1 || uses.get(&v) != Some(&1) || *self.ty(v) != node.outputs[0] {
                return None;
            }
            if rewrite.overwritten_since(rewrite.map(v).node) {
                return None;
            }
            let own: Vec<TensorType> = producer.inputs.iter().map(|v| self.ty(*v).clone()).collect();
            let fused = op.absorb(&own, program, position, &types)?;
            let rest = node.inputs.iter().enumerate().filter(|(p, _)| *p != position).map(|(_, v)| *v);
            Some((fused, producer.inputs.iter().copied().chain(rest).collect()))
        })
    }
}

fn node_program(node: &Node) -> Option<&Program> {
    if let Kind::Op(op) = &node.kind { op.program() } else { None }
}

fn program_of(node: &Node) -> Option<(&Arc<dyn Op>, &Program)> {
    if let Kind::Op(op) = &node.kind { op.program().map(|p| (op, p)) } else { None }
}

/// `outer` with its operand `position` computed by `inner` instead of read. `None` when the result would be too big.
fn inline(
    outer: &Program,
    operands: &[Value],
    position: usize,
    inner: &Program,
    inner_operands: &[Value],
) -> Option<(Program, Vec<Value>)> {
    let target = operands[position];
    let mut inputs: Vec<Value> = Vec::new();
    for v in operands.iter().filter(|v| **v != target) {
        if !inputs.contains(v) {
            inputs.push(*v);
        }
    }
    let mut slot = |v: Value| -> u16 {
        let at = inputs.iter().position(|x| *x == v).unwrap_or_else(|| {
            inputs.push(v);
            inputs.len() - 1
        });
        at as u16
    };
    let mut instrs: Vec<Instr> = Vec::new();
    let mut place_inner = HashMap::new();
    for (i, instr) in inner.instrs.iter().enumerate() {
        let mapped = remap(*instr, |n| Instr::Input(slot(inner_operands[n as usize])), &place_inner);
        instrs.push(mapped);
        place_inner.insert(i as u16, instrs.len() as u16 - 1);
    }
    let result = place_inner[&inner.outputs[0]];
    let mut place = HashMap::new();
    for (i, instr) in outer.instrs.iter().enumerate() {
        if let Instr::Input(n) = instr
            && operands[*n as usize] == target
        {
            place.insert(i as u16, result);
            continue;
        }
        let mapped = remap(*instr, |n| Instr::Input(slot(operands[n as usize])), &place);
        instrs.push(mapped);
        place.insert(i as u16, instrs.len() as u16 - 1);
    }
    let outputs = outer.outputs.iter().map(|o| place[o]).collect();
    if inputs.len() > MAX_FUSED_INPUTS || instrs.len() > MAX_FUSED_INSTRS {
        return None;
    }
    Some((Program { instrs, outputs, inputs: inputs.len() }, inputs))
}

fn remap(instr: Instr, input: impl FnOnce(u16) -> Instr, place: &HashMap<u16, u16>) -> Instr {
    match instr {
        Instr::Input(n) => input(n),
        Instr::Const(c) => Instr::Const(c),
        Instr::Unary(op, a) => Instr::Unary(op, place[&a]),
        Instr::Binary(op, a, b) => Instr::Binary(op, place[&a], place[&b]),
        Instr::Select(c, a, b) => Instr::Select(place[&c], place[&a], place[&b]),
    }
}

/// Copies a graph node by node while keeping track of where each old node went.
pub(super) struct Rewrite<'g> {
    old: &'g Graph,
    pub(super) graph: Graph,
    place: Vec<Option<u32>>,
    /// The node that changed a variable in place, by the variable's node.
    changed: HashMap<u32, u32>,
}

impl<'g> Rewrite<'g> {
    pub(super) fn new(old: &'g Graph) -> Self {
        Rewrite { old, graph: Graph::new(), place: vec![None; old.nodes.len()], changed: HashMap::new() }
    }
    pub(super) fn map(&self, v: Value) -> Value {
        Value { node: self.place[v.node as usize].expect("a node's inputs come before it"), port: v.port }
    }
    pub(super) fn keep(&mut self, index: usize, node: &Node) -> u32 {
        let inputs = node.inputs.iter().map(|v| self.map(*v)).collect();
        self.push(index, Node { inputs, ..node.clone() })
    }
    /// Adds a node already written in new indices.
    pub(super) fn push(&mut self, index: usize, node: Node) -> u32 {
        self.graph.nodes.push(node);
        let at = self.graph.nodes.len() as u32 - 1;
        self.place[index] = Some(at);
        for variable in self.graph.changed_in_place(at as usize) {
            self.changed.insert(variable.node, at);
        }
        at
    }
    /// Whether an operand of `node` was changed in place after `node` read it: it cannot be read again further down.
    fn overwritten_since(&self, node: u32) -> bool {
        let operands = &self.graph.nodes[node as usize].inputs;
        operands.iter().any(|v| self.changed.get(&self.graph.viewed(*v).node).is_some_and(|&by| by > node))
    }
    fn replace(&mut self, index: usize, by: u32) {
        self.place[index] = Some(by);
    }
    pub(super) fn finish(mut self) -> Graph {
        self.graph.outputs = self.old.outputs.iter().map(|(n, v)| (n.clone(), self.map(*v))).collect();
        self.graph.updates = self.old.updates.iter().map(|(a, b)| (self.map(*a), self.map(*b))).collect();
        let live = self.old.tags.iter().filter(|(v, _)| self.place[v.node as usize].is_some());
        self.graph.tags = live.map(|(v, r)| (self.map(*v), *r)).collect();
        let live = self.old.remade.iter().filter(|v| self.place[v.node as usize].is_some());
        self.graph.remade = live.map(|v| self.map(*v)).collect();
        self.graph.forward = self.old.forward.map(|count| {
            let kept = self.place[..count].iter().flatten();
            kept.max().map_or(0, |last| *last as usize + 1)
        });
        self.graph
    }
}
