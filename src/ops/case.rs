//! Test cases of operators: what to feed them.

use super::Op;
use crate::graph::stored::Stored;
use crate::tensor::{DType, RefTensor, TensorType};
use std::sync::Arc;

/// Where an operand's values come from. All are drawn from a seed, so every machine sees the same.
#[derive(Clone, Debug)]
pub enum Values {
    /// Normal with this standard deviation.
    Normal(f64),
    Uniform(f64, f64),
    /// Integers from the first up to, not including, the second.
    Int(i64, i64),
    Fixed(Vec<f64>),
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub ty: TensorType,
    pub values: Values,
    /// Whether the gradient with respect to this operand is checked (f32 only).
    pub differentiable: bool,
}

/// One operator applied to operands of certain shapes and values.
#[derive(Clone, Debug)]
pub struct Case {
    pub label: String,
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Sample>,
    /// Outputs whose gradient the operator accepts (0 unless it says otherwise); empty: not differentiable.
    pub cotangents: Vec<usize>,
    /// Rounding errors, in units of f32 epsilon times the largest magnitude of an output, that the operator's own arithmetic
    /// may add beyond what its conditioning explains: what the WGSL specification grants its built-ins, mostly.
    pub ulps: f64,
}

impl Sample {
    /// f32 operand, normal with standard deviation 1, differentiable.
    pub fn normal(shape: &[usize]) -> Self {
        Self::new(shape, Values::Normal(1.0))
    }
    pub fn new(shape: &[usize], values: Values) -> Self {
        Sample { ty: TensorType::f32(shape), values, differentiable: true }
    }
    pub fn ints(shape: &[usize], from: i64, to: i64) -> Self {
        Sample { ty: TensorType::i32(shape), values: Values::Int(from, to), differentiable: false }
    }
    pub fn typed(dtype: DType, shape: &[usize], values: Values) -> Self {
        Sample { ty: TensorType::new(dtype, shape), values, differentiable: false }
    }
    /// The same operand, not differentiated.
    pub fn fixed(mut self) -> Self {
        self.differentiable = false;
        self
    }

    /// The values, already rounded to the operand's type.
    pub fn draw(&self, seed: u64) -> RefTensor {
        let n = self.ty.elements();
        let mut rng = SplitMix(seed);
        let data = match &self.values {
            Values::Normal(s) => (0..n).map(|_| s * rng.normal()).collect(),
            Values::Uniform(lo, hi) => (0..n).map(|_| lo + (hi - lo) * rng.uniform()).collect(),
            Values::Int(lo, hi) => {
                (0..n).map(|_| (lo + (rng.next_u64() % (hi - lo).max(1) as u64) as i64) as f64).collect()
            }
            Values::Fixed(v) => v.clone(),
        };
        RefTensor::new(&self.ty.shape, data).to_host(self.ty.dtype).to_f64()
    }
}

impl Case {
    pub fn new(label: impl Into<String>, op: impl Op, inputs: Vec<Sample>) -> Self {
        Case { label: label.into(), op: Arc::new(op), inputs, cotangents: vec![0], ulps: 4.0 }
    }
    pub fn ulps(mut self, ulps: f64) -> Self {
        self.ulps = ulps;
        self
    }
    pub fn cotangents(mut self, outputs: &[usize]) -> Self {
        self.cotangents = outputs.to_vec();
        self
    }
    /// The same case with the operands `inputs` and the results `outputs` stored as `dtype`; not differentiable.
    pub fn stored(mut self, dtype: DType, inputs: &[usize], outputs: &[usize]) -> Self {
        for i in inputs {
            self.inputs[*i].ty.dtype = dtype;
        }
        let count = outputs.iter().max().map_or(0, |o| o + 1);
        let outputs: Vec<Option<DType>> = (0..count).map(|o| outputs.contains(&o).then_some(dtype)).collect();
        self.label += &format!(" {dtype} {inputs:?} to {outputs:?}");
        self.op = Arc::new(Stored { op: self.op, outputs });
        self.forward_only()
    }
    /// Not differentiable (gradient operators themselves, integer results).
    pub fn forward_only(self) -> Self {
        self.cotangents(&[])
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): enough for test values.
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}
