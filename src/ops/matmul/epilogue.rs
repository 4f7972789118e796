//! What happens to a product before it is stored, and how an elementwise consumer is recognised as that.

use super::half::operand;
use crate::Result;
use crate::device::CpuCall;
use crate::graph::{Gradient, Graph, Value};
use crate::ops::pointwise::Pointwise;
use crate::tensor::{DType, RefTensor, TensorType};
use kernels_cpu::gemm::{self, Activation};
use kernels_cpu::program::{Binary, Instr, Program, Unary};

/// `activation(c + bias) + residual`. `bias` and `residual` are positions among the operator's operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epilogue {
    /// One number for every column: N elements, the last axis of length N.
    pub bias: Option<usize>,
    pub activation: Activation,
    /// Of the result's shape.
    pub residual: Option<usize>,
}

/// The elementwise operator that an activation is.
fn function(activation: Activation) -> Option<Unary> {
    match activation {
        Activation::None => None,
        Activation::Relu => Some(Unary::Relu),
        Activation::Silu => Some(Unary::Silu),
        Activation::GeluTanh => Some(Unary::GeluTanh),
        Activation::GeluErf => Some(Unary::GeluErf),
    }
}

fn activation(op: Unary) -> Option<Activation> {
    let all = [Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
    all.into_iter().find(|a| function(*a) == Some(op))
}

/// The derivative of an activation.
fn slope(activation: Activation) -> Option<Unary> {
    match activation {
        Activation::None => None,
        Activation::Relu => Some(Unary::Step),
        Activation::Silu => Some(Unary::SiluGrad),
        Activation::GeluTanh => Some(Unary::GeluTanhGrad),
        Activation::GeluErf => Some(Unary::GeluErfGrad),
    }
}

/// A consumer read as sums around an activation: operands added before it and after it.
#[derive(Default)]
struct Chain {
    before: Vec<u16>,
    activation: Activation,
    after: Vec<u16>,
}

impl Epilogue {
    pub fn is_none(&self) -> bool {
        *self == Epilogue::default()
    }

    /// Operands besides the two matrices.
    pub(in crate::ops) fn operands(&self) -> usize {
        usize::from(self.bias.is_some()) + usize::from(self.residual.is_some())
    }

    /// Operations per element of the result.
    pub fn steps(&self) -> usize {
        self.operands() + usize::from(self.activation != Activation::None)
    }

    /// Element `at` of the result, in column `column`.
    pub fn reference(&self, sum: f64, operands: &[&RefTensor], column: usize, at: usize) -> f64 {
        let biased = sum + self.bias.map_or(0.0, |i| operands[i].data[column]);
        let value = function(self.activation).map_or(biased, |f| f.eval_f64(biased));
        value + self.residual.map_or(0.0, |i| operands[i].data[at])
    }

    /// What comes before the activation, its bias operand following `own` others.
    pub(in crate::ops) fn before(&self, own: usize) -> Self {
        Epilogue { bias: self.bias.map(|_| own), ..Self::default() }
    }

    /// Takes the gradient `g` of the result back to the product. Returns it with the gradients of the epilogue's own operands, one
    /// place for every operand. `again` writes the product with the bias, given here, added: the epilogue did not keep it.
    pub(in crate::ops) fn gradient(
        &self,
        cx: &mut Gradient,
        g: Value,
        again: impl FnOnce(&mut Graph, Option<Value>) -> Result<Value>,
    ) -> Result<(Value, Vec<Option<Value>>)> {
        let mut result = vec![None; cx.inputs.len()];
        let mut g = g;
        if let Some(i) = self.residual {
            result[i] = Some(g);
        }
        if let Some(slope) = slope(self.activation) {
            let bias = self.bias.map(|i| cx.inputs[i]);
            let z = again(cx.graph, bias)?;
            let times =
                vec![Instr::Input(0), Instr::Unary(slope, 0), Instr::Input(1), Instr::Binary(Binary::Mul, 1, 2)];
            g = cx.graph.apply1(Pointwise::f32(times, 2), &[z, g])?;
        }
        if let Some(i) = self.bias {
            let shape = cx.graph.shape(cx.inputs[i]).to_vec();
            result[i] = Some(cx.graph.sum_to(g, &shape)?);
        }
        Ok((g, result))
    }

    pub fn check(&self, operands: &[TensorType], result: &[usize]) -> Result<(), String> {
        if let Some(t) = self.bias.map(|i| &operands[i])
            && !is_bias(t, result)
        {
            return Err(format!("the bias must have {} elements along the last axis", result[result.len() - 1]));
        }
        if let Some(t) = self.residual.map(|i| &operands[i])
            && t.shape != result
        {
            return Err(format!("the residual must have the shape of the result, {result:?}"));
        }
        Ok(())
    }

    /// The epilogue with its operands, as `kernels-cpu` takes it.
    pub fn on_cpu<'a>(&self, call: &'a CpuCall) -> gemm::Epilogue<'a> {
        gemm::Epilogue {
            bias: self.bias.map(|i| operand(call, i)),
            activation: self.activation,
            residual: self.residual.map(|i| operand(call, i)),
        }
    }

    /// The epilogue that does what `consumer` does to its operand `position`, a result of shape `result`. Its operands are those of
    /// the consumer without that one, after `own` others.
    pub fn recognise(
        consumer: &Program,
        position: usize,
        operands: &[TensorType],
        result: &[usize],
        own: usize,
    ) -> Option<Self> {
        let output = *consumer.outputs.first()?;
        if consumer.outputs.len() != 1 || operands.iter().any(|t| t.dtype != DType::F32) {
            return None;
        }
        let chain = chain(&consumer.instrs, output, position as u16)?;
        if chain.before.len() + chain.after.len() + 1 != operands.len() {
            return None;
        }
        let bias = |n: &u16| is_bias(&operands[*n as usize], result);
        let residual = |n: &u16| operands[*n as usize].shape == result;
        let (first, second) = if chain.activation == Activation::None {
            match chain.before[..] {
                [] => (None, None),
                [x] if bias(&x) => (Some(x), None),
                [x] => (None, Some(x)),
                [x, y] if bias(&x) && residual(&y) => (Some(x), Some(y)),
                [x, y] => (Some(y), Some(x)),
                _ => return None,
            }
        } else {
            match (&chain.before[..], &chain.after[..]) {
                (before, after) if before.len() <= 1 && after.len() <= 1 => {
                    (before.first().copied(), after.first().copied())
                }
                _ => return None,
            }
        };
        if !first.as_ref().is_none_or(bias)
            || !second.as_ref().is_none_or(residual)
            || first == second && first.is_some()
        {
            return None;
        }
        // The consumer's operands move up behind the product's own; the product itself is not among them.
        let place = |n: u16| own + n as usize - usize::from(n as usize > position);
        let epilogue = Epilogue { bias: first.map(place), activation: chain.activation, residual: second.map(place) };
        (!epilogue.is_none()).then_some(epilogue)
    }
}

/// The epilogue alone, on a finished product `c` [rows, n].
pub(in crate::ops) fn finish(rows: usize, n: usize, c: &mut [f32], epilogue: gemm::Epilogue) {
    if !epilogue.is_none() {
        // A product without terms, added to `c`.
        gemm::gemm_epilogue(false, false, rows, n, 0, &[], 0, &[], n, true, c, n, epilogue);
    }
}

fn is_bias(t: &TensorType, result: &[usize]) -> bool {
    let n = result[result.len() - 1];
    t.shape.last() == Some(&n) && t.elements() == n
}

/// Instruction `at` as a chain from operand `product`, which it must use exactly once.
fn chain(instrs: &[Instr], at: u16, product: u16) -> Option<Chain> {
    match instrs[at as usize] {
        Instr::Input(n) if n == product => Some(Chain::default()),
        Instr::Unary(op, x) => {
            let inner = chain(instrs, x, product)?;
            let activation = activation(op)?;
            (inner.activation == Activation::None).then_some(Chain { activation, ..inner })
        }
        Instr::Binary(Binary::Add, x, y) => {
            let (mut inner, other) = match chain(instrs, x, product) {
                Some(inner) => (inner, y),
                None => (chain(instrs, y, product)?, x),
            };
            let added = if inner.activation == Activation::None { &mut inner.before } else { &mut inner.after };
            addends(instrs, other, product, added)?;
            Some(inner)
        }
        _ => None,
    }
}

/// The operands whose sum instruction `at` is.
fn addends(instrs: &[Instr], at: u16, product: u16, into: &mut Vec<u16>) -> Option<()> {
    match instrs[at as usize] {
        Instr::Input(n) if n != product => into.push(n),
        Instr::Binary(Binary::Add, x, y) => {
            addends(instrs, x, product, into)?;
            addends(instrs, y, product, into)?;
        }
        _ => return None,
    }
    Some(())
}
