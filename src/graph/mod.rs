//! A model is a `Graph`: plain data, an arena of nodes in topological order, each an operator with its inputs and the
//! types of its outputs. Nothing is traced at run time. `autodiff` turns a graph into a graph with gradients, `passes`
//! rewrite it, and `plan` makes it ready for a device.

pub mod autodiff;
pub mod export;
pub mod op;
pub mod passes;
pub mod plan;
pub mod precision;
pub mod recompute;
mod segments;
mod sharing;
pub mod stored;

pub use autodiff::Gradient;
pub use op::{Op, Storage};
pub use plan::{MemoryReport, Plan};
pub use precision::Precision;
pub use recompute::Recomputed;

use crate::tensor::{HostTensor, TensorType};
use crate::{Error, Result};
use std::sync::Arc;

/// One output of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    pub node: u32,
    pub port: u16,
}

/// What a variable is for: a line of the memory report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Parameter,
    Gradient,
    Optimizer,
    State,
}

#[derive(Clone, Debug)]
pub enum Kind {
    /// Written by the host before each run.
    Input(String),
    /// Kept on the device between runs, in the `Store`, under this name.
    Variable(String, Role),
    Constant(Arc<HostTensor>),
    Op(Arc<dyn Op>),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub inputs: Vec<Value>,
    pub outputs: Vec<TensorType>,
    /// Dotted path of the layer that wrote it, e.g. `blocks.0.attention.rope`.
    pub name: String,
}

impl Node {
    /// Whether differentiation wrote it.
    pub fn is_backward(&self) -> bool {
        self.name.strip_prefix(autodiff::SCOPE).is_some_and(|rest| rest.starts_with('.'))
    }
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, Value)>,
    /// (variable, its value after the run)
    pub(crate) updates: Vec<(Value, Value)>,
    /// Values with a role of their own in the memory report (gradients of parameters).
    pub(crate) tags: Vec<(Value, Role)>,
    /// Values of the forward part that the backward part makes again.
    pub(crate) remade: Vec<Value>,
    /// How many of the nodes were there before the first gradient was written: the forward part.
    pub(crate) forward: Option<usize>,
    scope: Vec<String>,
}

impl Graph {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `f` with `name` appended to the names of the nodes it writes.
    pub fn scoped<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.enter(name);
        let result = f(self);
        self.leave();
        result
    }

    /// Appends `name` to the names of the nodes written until `leave`.
    pub fn enter(&mut self, name: &str) {
        self.scope.push(name.into());
    }
    pub fn leave(&mut self) {
        self.scope.pop();
    }

    /// The dotted name of `leaf` in the current scope.
    pub fn path(&self, leaf: &str) -> String {
        if self.scope.is_empty() { leaf.into() } else { format!("{}.{leaf}", self.scope.join(".")) }
    }

    fn leaf(&mut self, kind: Kind, ty: TensorType, name: String) -> Value {
        self.nodes.push(Node { kind, inputs: vec![], outputs: vec![ty], name });
        Value { node: self.nodes.len() as u32 - 1, port: 0 }
    }

    /// A tensor the host writes before each run.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Value {
        self.leaf(Kind::Input(name.into()), ty, name.into())
    }

    /// The input called `name`, added if there is none yet.
    pub fn shared_input(&mut self, name: &str, ty: TensorType) -> Value {
        let known =
            self.nodes.iter().position(|n| matches!(&n.kind, Kind::Input(i) if i == name) && n.outputs[0] == ty);
        known.map_or_else(|| self.input(name, ty), |node| Value { node: node as u32, port: 0 })
    }

    /// A tensor that keeps its value between runs. The same name gives the same variable; its type must then agree.
    pub fn variable(&mut self, name: &str, role: Role, ty: TensorType) -> Result<Value> {
        let known = self.nodes.iter().position(|n| matches!(&n.kind, Kind::Variable(v, _) if v == name));
        if let Some(node) = known {
            let have = &self.nodes[node].outputs[0];
            if *have != ty {
                return Err(Error::Graph(format!("variable '{name}' is declared as {have} and again as {ty}")));
            }
            return Ok(Value { node: node as u32, port: 0 });
        }
        Ok(self.leaf(Kind::Variable(name.into(), role), ty, name.into()))
    }

    /// A weight called `leaf` in the current scope.
    pub fn parameter(&mut self, leaf: &str, shape: &[usize]) -> Result<Value> {
        let name = self.path(leaf);
        self.variable(&name, Role::Parameter, TensorType::f32(shape))
    }

    pub fn constant(&mut self, value: HostTensor) -> Value {
        let (ty, name) = (value.ty(), self.path("constant"));
        self.leaf(Kind::Constant(Arc::new(value)), ty, name)
    }

    /// Adds an operator; infers the types of its outputs, or says which node cannot be and why.
    pub fn apply(&mut self, op: impl Op, inputs: &[Value]) -> Result<Vec<Value>> {
        self.apply_arc(Arc::new(op), inputs)
    }

    pub fn apply_arc(&mut self, op: Arc<dyn Op>, inputs: &[Value]) -> Result<Vec<Value>> {
        let types: Vec<TensorType> = inputs.iter().map(|&v| self.ty(v).clone()).collect();
        let name = self.path(op.name());
        let outputs = op.infer(&types).map_err(|why| {
            let shapes: Vec<_> = types.iter().map(|t| t.to_string()).collect();
            let names: Vec<_> = inputs.iter().map(|v| self.nodes[v.node as usize].name.as_str()).collect();
            let (op, shapes, names) = (op.name(), shapes.join(", "), names.join(", "));
            Error::Graph(format!("node '{name}' ({op}) cannot take {shapes} (from {names}): {why}"))
        })?;
        let count = outputs.len() as u16;
        self.nodes.push(Node { kind: Kind::Op(op), inputs: inputs.to_vec(), outputs, name });
        let node = self.nodes.len() as u32 - 1;
        Ok((0..count).map(|port| Value { node, port }).collect())
    }

    /// As `apply`, for operators with one output.
    pub fn apply1(&mut self, op: impl Op, inputs: &[Value]) -> Result<Value> {
        Ok(self.apply(op, inputs)?[0])
    }

    pub fn ty(&self, v: Value) -> &TensorType {
        &self.nodes[v.node as usize].outputs[v.port as usize]
    }
    pub fn shape(&self, v: Value) -> &[usize] {
        &self.ty(v).shape
    }
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
    pub fn name(&self, v: Value) -> &str {
        &self.nodes[v.node as usize].name
    }

    /// Lets the host read `v` under `name` after a run.
    pub fn output(&mut self, name: &str, v: Value) {
        self.outputs.push((name.into(), v));
    }

    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// Drops the outputs that `keep` refuses by name.
    pub fn retain_outputs(&mut self, keep: impl Fn(&str) -> bool) {
        self.outputs.retain(|(n, _)| keep(n));
    }

    /// After the run, `variable` holds `value`.
    pub fn update(&mut self, variable: Value, value: Value) -> Result<()> {
        let (a, b) = (self.ty(variable), self.ty(value));
        if !matches!(self.nodes[variable.node as usize].kind, Kind::Variable(..)) || a != b {
            let name = self.name(variable);
            return Err(Error::Graph(format!("update of '{name}' ({a}) with {b}: not a variable of that type")));
        }
        if self.updates.iter().any(|(v, _)| *v == variable) {
            return Err(Error::Graph(format!("variable '{}' is updated twice", self.name(variable))));
        }
        self.updates.push((variable, value));
        Ok(())
    }

    /// The backward part will not read `v` but compute it again when it needs it, from what `v` was made of: `v` is not kept until then.
    pub fn remake(&mut self, v: Value) {
        self.remade.push(v);
    }

    pub fn tag(&mut self, v: Value, role: Role) {
        self.tags.push((v, role));
    }

    /// Every variable: value, name, role.
    pub fn variables(&self) -> impl Iterator<Item = (Value, &str, Role)> {
        self.nodes.iter().enumerate().filter_map(|(i, n)| match &n.kind {
            Kind::Variable(name, role) => Some((Value { node: i as u32, port: 0 }, name.as_str(), *role)),
            _ => None,
        })
    }

    pub fn parameters(&self) -> Vec<(Value, String)> {
        self.variables().filter(|(_, _, r)| *r == Role::Parameter).map(|(v, n, _)| (v, n.to_string())).collect()
    }

    /// Makes every floating-point value readable after a run, under `#node.port` (debugging, first bad node, parity).
    pub fn expose_all(&mut self) {
        for (i, node) in self.nodes.iter().enumerate() {
            for port in 0..node.outputs.len() {
                self.outputs.push((format!("#{i}.{port}"), Value { node: i as u32, port: port as u16 }));
            }
        }
    }
}
