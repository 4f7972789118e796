//! An operator whose operands or results are 16-bit floats where it was written for f32.

use super::{Gradient, Op, Storage, Value};
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use std::sync::Arc;

/// `op`, with the results that have a type in `outputs` stored in it, and operands of 16 bits where `Op::storage` allows them. Made
/// after differentiation and fusion (see `graph::precision`), so it has no gradient and does not fuse.
#[derive(Clone, Debug)]
pub struct Stored {
    pub op: Arc<dyn Op>,
    pub outputs: Vec<Option<DType>>,
}

impl Stored {
    /// The types that `op` was written for.
    fn widened(types: &[TensorType]) -> Vec<TensorType> {
        let wide = |t: &TensorType| if t.dtype.is_half() { TensorType::f32(&t.shape) } else { t.clone() };
        types.iter().map(wide).collect()
    }
}

impl Kernel for Stored {
    fn name(&self) -> &'static str {
        self.op.name()
    }
    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        self.op.reference(inputs, outputs)
    }
    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        self.op.cpu(call)
    }
    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let types: Vec<TensorType> = (0..lowering.inputs()).map(|i| lowering.input(i).clone()).collect();
        let native = self.op.storage(&Self::widened(&types)).gpu;
        if native { self.op.gpu(lowering) } else { lowering.widened(|l| self.op.gpu(l)) }
    }
}

impl Op for Stored {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let wide = Self::widened(inputs);
        let mut outputs = self.op.infer(&wide)?;
        let storage = self.op.storage(&wide);
        if let Some(i) = (0..inputs.len()).find(|i| inputs[*i].dtype.is_half() && !storage.reads.contains(i)) {
            return Err(format!("operand {i} cannot be {}", inputs[i].dtype));
        }
        for (o, (ty, dtype)) in outputs.iter_mut().zip(&self.outputs).enumerate() {
            let Some(dtype) = *dtype else { continue };
            if ty.dtype != DType::F32 || !storage.writes.contains(&o) {
                return Err(format!("result {o} ({ty}) cannot be stored as {dtype}"));
            }
            ty.dtype = dtype;
        }
        Ok(outputs)
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let name = self.name();
        Err(Error::Graph(format!(
            "{name} on 16-bit operands has no gradient: differentiate first, then choose storage"
        )))
    }
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        self.op.cost(inputs, outputs)
    }
    fn in_place(&self) -> Vec<(usize, usize)> {
        self.op.in_place()
    }
    fn must_alias(&self) -> Vec<(usize, usize)> {
        self.op.must_alias()
    }
    fn is_pure(&self) -> bool {
        self.op.is_pure()
    }
    fn storage(&self, inputs: &[TensorType]) -> Storage {
        self.op.storage(&Self::widened(inputs))
    }
}
