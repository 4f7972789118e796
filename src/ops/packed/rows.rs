//! Rows of a packed matrix as f32: those that ids name, or all of them.

use super::{Packing, bytes, check, gpu, numbers};
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, LookUp, Unsupported};
use crate::graph::{Gradient, Graph, Op, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::packed;

/// `out[n, :] = w[ids[n], :]`: inputs a packed w [V, D] and `ids [...]` i32, output f32 `[..., D]`.
#[derive(Clone, Debug)]
pub struct PackedEmbedding {
    pub packing: Packing,
}

/// A packed matrix [N, K] as f32 [N, K].
#[derive(Clone, Debug)]
pub struct Unpack {
    pub packing: Packing,
}

impl Kernel for PackedEmbedding {
    fn name(&self) -> &'static str {
        "packed_embedding"
    }

    fn looks_up(&self) -> Option<LookUp> {
        Some(LookUp { table: 0, ids: 1 })
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (v, d) = (self.packing.rows, self.packing.columns);
        let table = numbers(&self.packing, inputs[0]);
        // The nearest row when the id is out of range.
        let row = |id: &f64| (id.max(0.0) as usize).min(v - 1) * d;
        let rows = inputs[1].data.iter().flat_map(|id| &table[row(id)..][..d]);
        vec![RefTensor::new(&outputs[0].shape, rows.copied().collect())]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        packed::gather_rows(&self.packing, bytes(call.i8(0)), call.i32(1), call.out_f32(0))
            .map_err(|e| Error::Graph(format!("packed embedding of {} rows: {e}", self.packing.rows)))
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        gpu::rows(&self.packing, true, lowering)
    }
}

impl Op for PackedEmbedding {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [table, ids] = inputs else { return Err("a packed matrix and ids are needed".into()) };
        check(&self.packing, table)?;
        if self.packing.rows == 0 || ids.dtype != DType::I32 {
            return Err(format!("ids must be i32 and select from at least one row, they are {ids}"));
        }
        Ok(vec![TensorType::f32(&[&ids.shape[..], &[self.packing.columns]].concat())])
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Ok(vec![None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        // Only the rows that are looked up are read.
        let rows = inputs[1].elements() as f64 * self.packing.row_bytes() as f64;
        let flops = outputs[0].elements() as f64;
        Cost { flops, bytes_read: inputs[1].bytes() as f64 + rows, bytes_written: outputs[0].bytes() as f64 }
    }
}

impl Kernel for Unpack {
    fn name(&self) -> &'static str {
        "packed_unpack"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        vec![RefTensor::new(&outputs[0].shape, numbers(&self.packing, inputs[0]))]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        packed::unpack(&self.packing, bytes(call.i8(0)), call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        gpu::rows(&self.packing, false, lowering)
    }
}

impl Op for Unpack {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [w] = inputs else { return Err("a packed matrix is needed".into()) };
        check(&self.packing, w)?;
        Ok(vec![TensorType::f32(&[self.packing.rows, self.packing.columns])])
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }
}

impl Graph {
    /// Rows of the packed matrix `w` [V, D] chosen by `ids [...]` (i32): f32 `[..., D]`. Ids outside `0..V` are an error on the CPU; on a
    /// GPU they take the nearest row, so hosts check them with [`check_ids`](crate::ops::gather::check_ids).
    pub fn packed_embedding(&mut self, w: Value, ids: Value, packing: Packing) -> Result<Value> {
        self.apply1(PackedEmbedding { packing }, &[w, ids])
    }
    /// The packed matrix `w` as f32 [N, K].
    pub fn unpack(&mut self, w: Value, packing: Packing) -> Result<Value> {
        self.apply1(Unpack { packing }, &[w])
    }
}
