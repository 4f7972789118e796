//! The forms of a recurrence, and which of them a graph asks for.

use crate::Result;
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Op, Value};
use crate::tensor::{RefTensor, TensorType};
use serde::{Deserialize, Serialize};

/// How a recurrence is computed. All forms give the same answers to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Chunked, or recurrent where a sequence is too short for chunks to pay.
    #[default]
    Auto,
    /// Products of matrices within chunks, states passed between them: training and long texts.
    Chunked,
    /// One step after another with a constant state: generation. The gradient of gated linear attention is taken in chunks in this form
    /// too: backwards it would need the state before every step.
    Recurrent,
    /// The definition in f64, on the CPU whatever the device: slow, and what the others are judged by.
    Naive,
}

impl Form {
    /// Steps of a chunk, 0 for none: `chunk` where there are chunks, which `Auto` has for sequences of at least `from` steps.
    pub fn chunk(self, time: usize, from: usize, chunk: usize) -> usize {
        match self {
            Form::Auto if time < from => 0,
            Form::Recurrent => 0,
            _ => chunk,
        }
    }
}

/// The name of a form with chunks of this length.
pub fn name(chunk: usize) -> &'static str {
    if chunk == 0 { "recurrent" } else { "chunked" }
}

/// An operator with a naive form.
pub trait Recurrence: Op {
    /// As `Op::gradient`, by operators in the naive form.
    fn naive_gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>>;
}

/// An operator run by its definition, in f64 on the CPU.
#[derive(Clone, Debug)]
pub struct Naive<O>(pub O);

impl<O: Recurrence> Kernel for Naive<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn form(&self) -> Option<&'static str> {
        Some("naive")
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        self.0.reference(inputs, outputs)
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let wide = |i: usize| {
            let data = call.f32(i).iter().map(|&x| f64::from(x)).collect();
            RefTensor::new(&call.input(i).shape, data)
        };
        let inputs: Vec<RefTensor> = (0..call.inputs.len()).map(wide).collect();
        let outputs: Vec<TensorType> = call.outputs.iter().map(|o| o.ty.clone()).collect();
        let results = self.0.reference(&inputs.iter().collect::<Vec<_>>(), &outputs);
        for (o, result) in results.iter().enumerate() {
            call.out_f32(o).iter_mut().zip(&result.data).for_each(|(y, &x)| *y = x as f32);
        }
        Ok(())
    }

    fn gpu(&self, _: &mut Lowering) -> Result<(), Unsupported> {
        Err(Unsupported("the naive form is the definition in f64, which GPUs do not have".into()))
    }
}

impl<O: Recurrence> Op for Naive<O> {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        self.0.infer(inputs)
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        self.0.naive_gradient(cx)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        self.0.cost(inputs, outputs)
    }
}
