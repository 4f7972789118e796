//! Reverse-mode differentiation, graph to graph: walks the nodes backwards and lets each operator write its gradient.

use super::{Graph, Kind, Op, Value};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// First part of the names of the nodes that differentiation writes.
pub const SCOPE: &str = "grad";

/// What an operator's `gradient` sees: its inputs and outputs in the graph, and the gradients of its outputs.
pub struct Gradient<'g> {
    pub graph: &'g mut Graph,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    grads: Vec<Option<Value>>,
    needed: Vec<bool>,
}

impl Gradient<'_> {
    /// The gradient of output `o`; a tensor of zeros when nothing downstream used it.
    pub fn grad(&mut self, o: usize) -> Value {
        if let Some(g) = self.grads[o] {
            return g;
        }
        let ty = self.graph.ty(self.outputs[o]).clone();
        let zeros = self.graph.constant(HostTensor::zeros(&ty));
        self.grads[o] = Some(zeros);
        zeros
    }
    pub fn has_grad(&self, o: usize) -> bool {
        self.grads[o].is_some()
    }
    /// Whether the gradient with respect to input `i` leads anywhere; others need not be written.
    pub fn needs(&self, i: usize) -> bool {
        self.needed[i]
    }
}

impl Graph {
    /// Appends nodes that compute d`loss`/d`v` for every `v` in `wrt`. `loss` must be an f32 scalar.
    pub fn gradients(&mut self, loss: Value, wrt: &[Value]) -> Result<Vec<Value>> {
        if self.ty(loss).elements() != 1 || self.ty(loss).dtype != DType::F32 {
            let (name, ty) = (self.name(loss), self.ty(loss));
            return Err(Error::Graph(format!("gradients need an f32 scalar loss; '{name}' is {ty}")));
        }
        let one = HostTensor::f32(self.shape(loss), vec![1.0]);
        let seed = self.constant(one);
        self.vector_jacobian(&[(loss, seed)], wrt)
    }

    /// Appends nodes that compute, for every `v` in `wrt`, the sum over the pairs (value, its gradient) of that gradient times
    /// d value / d `v`. A gradient has the type of its value.
    pub fn vector_jacobian(&mut self, seeds: &[(Value, Value)], wrt: &[Value]) -> Result<Vec<Value>> {
        self.forward.get_or_insert(self.nodes.len());
        let active = self.active(wrt);
        let mut grads: HashMap<Value, Value> = HashMap::new();
        for &(value, gradient) in seeds {
            let (want, have) = (self.ty(value), self.ty(gradient));
            if want != have {
                let name = self.name(value);
                return Err(Error::Graph(format!("the gradient given for '{name}' is {have}, the value is {want}")));
            }
            let sum = match grads.get(&value) {
                Some(&before) => self.add(before, gradient)?,
                None => gradient,
            };
            grads.insert(value, sum);
        }
        let last = seeds.iter().map(|(value, _)| value.node + 1).max().unwrap_or(0);

        let scope = std::mem::take(&mut self.scope);
        for node in (0..last).rev() {
            let Kind::Op(op) = self.nodes[node as usize].kind.clone() else { continue };
            let (inputs, count, name) = {
                let n = &self.nodes[node as usize];
                (n.inputs.clone(), n.outputs.len() as u16, n.name.clone())
            };
            let outputs: Vec<Value> = (0..count).map(|port| Value { node, port }).collect();
            let own: Vec<Option<Value>> = outputs.iter().map(|o| grads.get(o).copied()).collect();
            let needed: Vec<bool> =
                inputs.iter().map(|i| active[i.node as usize] && self.ty(*i).dtype == DType::F32).collect();
            if own.iter().all(Option::is_none) || !needed.contains(&true) {
                continue;
            }
            self.scope = vec![SCOPE.into(), name];
            let mut cx = Gradient { graph: self, inputs: inputs.clone(), outputs, grads: own, needed: needed.clone() };
            let written = op.gradient(&mut cx)?;
            self.accumulate(&op, &inputs, &needed, written, &mut grads)?;
        }
        self.scope = scope;
        wrt.iter()
            .map(|v| match grads.get(v) {
                Some(&g) => Ok(g),
                None => {
                    let ty = self.ty(*v).clone();
                    Ok(self.constant(HostTensor::zeros(&ty)))
                }
            })
            .collect()
    }

    fn accumulate(
        &mut self,
        op: &Arc<dyn Op>,
        inputs: &[Value],
        needed: &[bool],
        written: Vec<Option<Value>>,
        grads: &mut HashMap<Value, Value>,
    ) -> Result<()> {
        for (i, g) in written.into_iter().enumerate() {
            let Some(g) = g else { continue };
            if !needed[i] {
                continue;
            }
            let (want, have) = (self.ty(inputs[i]), self.ty(g));
            if want != have {
                let name = op.name();
                return Err(Error::Graph(format!("{name}: gradient of input {i} is {have}, the input is {want}")));
            }
            let sum = match grads.get(&inputs[i]) {
                Some(&before) => self.add(before, g)?,
                None => g,
            };
            grads.insert(inputs[i], sum);
        }
        Ok(())
    }

    /// Which nodes depend on a value of `wrt`.
    fn active(&self, wrt: &[Value]) -> Vec<bool> {
        let mut active = vec![false; self.nodes.len()];
        for v in wrt {
            active[v.node as usize] = true;
        }
        for i in 0..self.nodes.len() {
            active[i] |= self.nodes[i].inputs.iter().any(|v| active[v.node as usize]);
        }
        active
    }
}
