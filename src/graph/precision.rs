//! Storage of values in 16 bits: which tensors of a graph are kept in bfloat16 or binary16 (Micikevicius et al. 2018, "Mixed precision
//! training"; Kalamkar et al. 2019 for bfloat16). Arithmetic is not touched: operators compute in f32 on what is stored.
//!
//! Stays f32: variables (master weights, optimiser state, sums of gradients), results the host reads, gradients of weights, and
//! every operand that an operator does not declare in `Op::storage`: the residual stream into a norm, statistics, losses.
//! Weights that a product reads get one 16-bit copy a run.

use super::op::Storage;
use super::passes::Rewrite;
use super::stored::Stored;
use super::{Graph, Kind, Node, Value};
use crate::tensor::{DType, TensorType};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What activations and the weights that products read are stored in. Arithmetic is f32 in every case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// The range of f32 with 8 significant bits.
    Bf16,
    /// 11 significant bits up to 65 504: gradients need a scaled loss.
    F16,
}

impl Precision {
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

    /// The 16-bit type, if it is one.
    pub fn half(self) -> Option<DType> {
        match self {
            Precision::F32 => None,
            Precision::Bf16 => Some(DType::Bf16),
            Precision::F16 => Some(DType::F16),
        }
    }
    /// Whether gradients would leave the type's range without a factor on the loss.
    pub fn scales_loss(self) -> bool {
        self == Precision::F16
    }
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let known = Precision::ALL.into_iter().find(|p| p.name() == s);
        known.ok_or_else(|| Error::Config(format!("precision '{s}' is not known; choose f32, bf16 or f16")))
    }
}

/// How a value is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Keep {
    /// As it is.
    Full,
    /// In 16 bits only.
    Half,
    /// As it is, with a 16-bit copy beside it for those that read one.
    Both,
}

impl Graph {
    /// The graph with values stored in the 16-bit type of `precision` where that saves memory held for the backward pass or makes a
    /// product faster. Run it last, on an optimised graph: what fusion removes needs no storage.
    pub fn stored_in(&self, precision: Precision) -> Result<Graph> {
        let Some(dtype) = precision.half() else { return Ok(self.clone()) };
        let survey = Survey::new(self);
        let mut writer = Writer { survey: &survey, dtype, rewrite: Rewrite::new(self), half: HashMap::new() };
        for (i, node) in self.nodes.iter().enumerate() {
            writer.node(i, node)?;
        }
        Ok(writer.rewrite.finish().without_dead(&mut 0))
    }
}

/// What is known of every value before anything is rewritten.
struct Survey<'g> {
    graph: &'g Graph,
    storage: Vec<Storage>,
    /// The value whose memory each value is: itself, or what it is a view of.
    root: HashMap<Value, Value>,
    keep: HashMap<Value, Keep>,
}

fn is_view(node: &Node) -> bool {
    matches!(&node.kind, Kind::Op(op) if op.is_view())
}

fn values(index: usize, node: &Node) -> impl Iterator<Item = Value> + use<> {
    (0..node.outputs.len()).map(move |port| Value { node: index as u32, port: port as u16 })
}

impl<'g> Survey<'g> {
    fn new(graph: &'g Graph) -> Self {
        let types = |node: &Node| node.inputs.iter().map(|v| graph.ty(*v).clone()).collect::<Vec<TensorType>>();
        let storage = |node: &Node| match &node.kind {
            Kind::Op(op) => op.storage(&types(node)),
            _ => Storage::default(),
        };
        let mut survey = Survey {
            graph,
            storage: graph.nodes.iter().map(storage).collect(),
            root: HashMap::new(),
            keep: HashMap::new(),
        };
        let mut readers: HashMap<Value, Vec<(usize, usize)>> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in values(i, node) {
                let root = if is_view(node) { survey.root[&node.inputs[0]] } else { v };
                survey.root.insert(v, root);
            }
            if !is_view(node) {
                for (k, v) in node.inputs.iter().enumerate() {
                    readers.entry(survey.root[v]).or_default().push((i, k));
                }
            }
        }
        let outside = graph.outputs.iter().map(|(_, v)| v).chain(graph.updates.iter().flat_map(|(a, b)| [a, b]));
        let held: HashSet<Value> = outside.chain(graph.tags.iter().map(|(v, _)| v)).map(|v| survey.root[v]).collect();
        // Readers come after what they read: walking backwards, how they keep their own results is decided already.
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            for v in values(i, node).filter(|v| survey.root[v] == *v && graph.ty(*v).dtype == DType::F32) {
                let readers = readers.get(&v).map_or(&[][..], |r| r);
                let keep = survey.decide(v, readers, held.contains(&v));
                survey.keep.insert(v, keep);
            }
        }
        survey
    }

    fn decide(&self, v: Value, readers: &[(usize, usize)], held: bool) -> Keep {
        let producer = &self.graph.nodes[v.node as usize];
        let preferred = readers.iter().any(|(n, k)| self.storage[*n].prefers.contains(k));
        let all_read = !held && !readers.is_empty() && readers.iter().all(|(n, k)| self.storage[*n].reads.contains(k));
        let saved = !producer.is_backward() && readers.iter().any(|(n, _)| self.graph.nodes[*n].is_backward());
        let is_op = matches!(producer.kind, Kind::Op(_));
        let ends_in_half = || readers.iter().all(|(n, _)| self.writes_half_only(*n));
        if !(preferred || is_op && all_read && (saved || ends_in_half())) {
            return Keep::Full;
        }
        let written = self.storage[v.node as usize].writes.contains(&(v.port as usize));
        if written && all_read { Keep::Half } else { Keep::Both }
    }

    /// Whether every result of the node that could be of 16 bits will be: more bits in its operands would be lost there.
    fn writes_half_only(&self, node: usize) -> bool {
        let writes = &self.storage[node].writes;
        let half = |port: &usize| {
            let v = Value { node: node as u32, port: *port as u16 };
            self.keep.get(&v) == Some(&Keep::Half)
        };
        !writes.is_empty() && writes.iter().all(half)
    }

    fn keeps(&self, v: Value) -> Keep {
        self.keep.get(&self.root[&v]).copied().unwrap_or(Keep::Full)
    }
}

struct Writer<'g> {
    survey: &'g Survey<'g>,
    dtype: DType,
    rewrite: Rewrite<'g>,
    /// Old values to the new ones of 16 bits.
    half: HashMap<Value, Value>,
}

impl Writer<'_> {
    fn node(&mut self, index: usize, node: &Node) -> Result<()> {
        let Kind::Op(op) = &node.kind else {
            self.rewrite.keep(index, node);
            return Ok(());
        };
        if is_view(node) {
            let half = self.survey.keeps(node.inputs[0]) == Keep::Half;
            let at = if half { self.push_half_view(index, node)? } else { self.rewrite.keep(index, node) };
            if half {
                self.half.insert(Value { node: index as u32, port: 0 }, Value { node: at, port: 0 });
            }
            return Ok(());
        }
        let mut inputs = Vec::new();
        for (k, v) in node.inputs.iter().enumerate() {
            let narrow = self.survey.keeps(*v) != Keep::Full && self.survey.storage[index].reads.contains(&k);
            inputs.push(if narrow { self.half_of(*v)? } else { self.rewrite.map(*v) });
        }
        let stored = |v: Value| (self.survey.keeps(v) == Keep::Half).then_some(self.dtype);
        let outputs: Vec<Option<DType>> = values(index, node).map(stored).collect();
        let changed =
            outputs.iter().any(Option::is_some) || inputs.iter().any(|v| self.rewrite.graph.ty(*v).dtype.is_half());
        if !changed {
            self.rewrite.keep(index, node);
            return Ok(());
        }
        let mut types = node.outputs.clone();
        types.iter_mut().zip(&outputs).for_each(|(ty, dtype)| ty.dtype = dtype.unwrap_or(ty.dtype));
        let halves: Vec<Value> = values(index, node).filter(|v| stored(*v).is_some()).collect();
        let kind = Kind::Op(Arc::new(Stored { op: op.clone(), outputs }));
        let at = self.rewrite.push(index, Node { kind, inputs, outputs: types, name: node.name.clone() });
        for v in halves {
            self.half.insert(v, Value { node: at, port: v.port });
        }
        Ok(())
    }

    /// The 16-bit form of an old value: what was stored so, a view of that, or a copy made now.
    fn half_of(&mut self, v: Value) -> Result<Value> {
        if let Some(half) = self.half.get(&v) {
            return Ok(*half);
        }
        let node = &self.survey.graph.nodes[v.node as usize];
        let half = if is_view(node) {
            let input = self.half_of(node.inputs[0])?;
            self.append_view(node, input)
        } else {
            let full = self.rewrite.map(v);
            let graph = &mut self.rewrite.graph;
            graph.scoped(&node.name, |g| g.cast(full, self.dtype))?
        };
        self.half.insert(v, half);
        Ok(half)
    }

    fn append_view(&mut self, node: &Node, input: Value) -> Value {
        let ty = TensorType::new(self.dtype, &node.outputs[0].shape);
        let (kind, name) = (node.kind.clone(), node.name.clone());
        self.rewrite.graph.nodes.push(Node { kind, inputs: vec![input], outputs: vec![ty], name });
        Value { node: self.rewrite.graph.nodes.len() as u32 - 1, port: 0 }
    }

    fn push_half_view(&mut self, index: usize, node: &Node) -> Result<u32> {
        let input = self.half_of(node.inputs[0])?;
        let ty = TensorType::new(self.dtype, &node.outputs[0].shape);
        let node = Node { inputs: vec![input], outputs: vec![ty], ..node.clone() };
        Ok(self.rewrite.push(index, node))
    }
}
