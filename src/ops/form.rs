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
    /// As `Auto`, by the CPU's kernels whatever the device.
    CpuSimd,
    /// The definition in f64, on the CPU whatever the device: slow, and what the others are judged by.
    Naive,
}

impl Form {
    /// Steps of a chunk, 0 for none: `chunk` where there are chunks, which `Auto` has for sequences of at least `from` steps.
    pub fn chunk(self, time: usize, from: usize, chunk: usize) -> usize {
        match self {
            Form::Auto | Form::CpuSimd if time < from => 0,
            Form::Recurrent => 0,
            _ => chunk,
        }
    }
}

/// The name of a form with chunks of this length.
pub fn name(chunk: usize) -> &'static str {
    if chunk == 0 { "recurrent" } else { "chunked" }
}

/// An operator with forms that run on the CPU whatever the device.
pub trait Recurrence: Op {
    /// As `Op::gradient`, by operators that stay there.
    fn gradient_on_cpu(&self, cx: &mut Gradient, naive: bool) -> Result<Vec<Option<Value>>>;
}

/// An operator that runs on the CPU inside any plan: by its kernels there, or by its definition in f64.
#[derive(Clone, Debug)]
pub struct OnCpu<O> {
    pub op: O,
    pub naive: bool,
}

impl Form {
    /// `op` as this form has it, or as it is.
    pub fn placed<O: Recurrence + 'static>(self, op: O) -> std::sync::Arc<dyn Op> {
        match self {
            Form::CpuSimd => std::sync::Arc::new(OnCpu { op, naive: false }),
            Form::Naive => std::sync::Arc::new(OnCpu { op, naive: true }),
            _ => std::sync::Arc::new(op),
        }
    }
}

impl<O: Recurrence> Kernel for OnCpu<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn form(&self) -> Option<&'static str> {
        Some(if self.naive { "naive" } else { "cpu_simd" })
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        self.op.reference(inputs, outputs)
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        if !self.naive {
            return self.op.cpu(call);
        }
        let wide = |i: usize| {
            let data = call.f32(i).iter().map(|&x| f64::from(x)).collect();
            RefTensor::new(&call.input(i).shape, data)
        };
        let inputs: Vec<RefTensor> = (0..call.inputs.len()).map(wide).collect();
        let outputs: Vec<TensorType> = call.outputs.iter().map(|o| o.ty.clone()).collect();
        let results = self.op.reference(&inputs.iter().collect::<Vec<_>>(), &outputs);
        for (o, result) in results.iter().enumerate() {
            call.out_f32(o).iter_mut().zip(&result.data).for_each(|(y, &x)| *y = x as f32);
        }
        Ok(())
    }

    fn gpu(&self, _: &mut Lowering) -> Result<(), Unsupported> {
        Err(Unsupported(match self.naive {
            true => "the naive form is the definition in f64, which GPUs do not have".into(),
            false => "the kernels of the CPU are asked for".into(),
        }))
    }
}

impl<O: Recurrence> Op for OnCpu<O> {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        self.op.infer(inputs)
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        self.op.gradient_on_cpu(cx, self.naive)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        self.op.cost(inputs, outputs)
    }
}
