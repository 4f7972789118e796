//! What a graph asks of an operator, beyond running it (`device::Kernel`). One file in `ops/` implements both.

use super::{Gradient, Value};
use crate::Result;
use crate::device::{Cost, Kernel};
use crate::tensor::TensorType;
use kernels_cpu::program::Program;
use std::sync::Arc;

/// Where an operator may meet 16-bit floats in place of f32. It computes as ever, on the values stored, and each result is rounded
/// once to the type it is stored in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Storage {
    /// Operands that may be of 16 bits.
    pub reads: Vec<usize>,
    /// Results that may be.
    pub writes: Vec<usize>,
    /// Operands that should be, because the operator is then faster.
    pub prefers: Vec<usize>,
    /// The GPU kernels know 16-bit operands; else they are widened in scratch memory (see `graph::stored`).
    pub gpu: bool,
}

pub trait Op: Kernel {
    /// The types of the outputs, or why the inputs do not fit. The graph adds the node's name and the shapes.
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String>;

    /// Writes the gradient with respect to each input as graph nodes: `None` where there is none (indices, masks).
    /// Called only when some output has a gradient; `cx.grad(o)` gives it, or zeros where it has none.
    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>>;

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
        let flops = outputs.iter().map(|t| t.elements() as f64).sum();
        Cost { flops, bytes_read: sum(inputs), bytes_written: sum(outputs) }
    }

    /// Pairs (input, output): the output may be written over the input's memory. The types must be equal.
    fn in_place(&self) -> Vec<(usize, usize)> {
        vec![]
    }

    /// Pairs that are always in place (optimisers): the input must be a variable that this node updates.
    fn must_alias(&self) -> Vec<(usize, usize)> {
        vec![]
    }

    /// Operands and results that may be stored in 16 bits. What is named here, `cpu` reads and writes in any combination.
    fn storage(&self, _inputs: &[TensorType]) -> Storage {
        Storage::default()
    }

    /// The output is the input's bytes under another shape: costs nothing.
    fn is_view(&self) -> bool {
        false
    }

    /// The elementwise program, when the operator is one: chains of these are fused.
    fn program(&self) -> Option<&Program> {
        None
    }

    /// The same elementwise operator with another program (made by fusion), over the iteration space `shape`.
    fn with_program(&self, _program: Program, _shape: &[usize]) -> Option<Arc<dyn Op>> {
        None
    }

    /// An elementwise operator over `inputs` may be absorbed into this operator's epilogue: `position` is the consumer's
    /// operand that is this operator's output. Returns the fused operator; its inputs are this one's followed by the
    /// consumer's others in order.
    fn absorb(
        &self,
        _own: &[TensorType],
        _consumer: &Program,
        _position: usize,
        _inputs: &[TensorType],
    ) -> Option<Arc<dyn Op>> {
        None
    }

    /// Operators whose every run must happen even when the same one with the same inputs exists (none so far: random
    /// operators are functions of their counter). Kept out of common-subexpression elimination when false.
    fn is_pure(&self) -> bool {
        true
    }
}
