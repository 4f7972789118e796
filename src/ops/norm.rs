//! Layer normalisation (Ba et al. 2016) and root-mean-square normalisation (Zhang and Sennrich 2019) over the last axis.

mod grad;

use super::blocks::{any_half, by_rows, part};
use super::rows::RowKernel;
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::Result;
use crate::device::gpu::{Buf, Lowering};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Storage, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, shader};
use grad::{NormGradParams, NormGradX};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Subtracts the mean; with an additive parameter or without.
    Layer { beta: bool },
    /// Does not; `plus_one`: the weight is `gamma + 1` (Gemma's convention).
    Rms { plus_one: bool },
}

impl NormKind {
    fn layer(self) -> bool {
        matches!(self, NormKind::Layer { .. })
    }
    fn beta(self) -> bool {
        self == NormKind::Layer { beta: true }
    }
    /// What is added to gamma.
    fn offset(self) -> f64 {
        if self == (NormKind::Rms { plus_one: true }) { 1.0 } else { 0.0 }
    }
}

/// Inputs x [.., d], gamma [d], with beta [d] where the kind has it. Outputs y like x, mean [..] (layer only), rstd [..]:
/// `y = (x - mean) rstd (gamma + offset) + beta`, `rstd = 1 / sqrt(mean((x - mean)^2) + eps)`. Only y may have a gradient.
#[derive(Clone, Debug)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f32,
}

impl Kernel for Norm {
    fn name(&self) -> &'static str {
        if self.kind.layer() { "layer_norm" } else { "rms_norm" }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (x, gamma) = (inputs[0], inputs[1]);
        let (rows, d) = outputs[0].rows();
        let mut out: Vec<RefTensor> = outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect();
        for row in 0..rows {
            let x = &x.data[row * d..][..d];
            let mean = if self.kind.layer() { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
            let rstd = 1.0 / (variance + self.eps as f64).sqrt();
            for (i, (x, gamma)) in x.iter().zip(&gamma.data).enumerate() {
                let beta = if self.kind.beta() { inputs[2].data[i] } else { 0.0 };
                out[0].data[row * d + i] = (x - mean) * rstd * (gamma + self.kind.offset()) + beta;
            }
            if self.kind.layer() {
                out[1].data[row] = mean;
            }
            out.last_mut().expect("y and rstd").data[row] = rstd;
        }
        out
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (rows, d) = call.output(0).rows();
        if any_half(call) {
            self.cpu_half(call, rows, d);
            return Ok(());
        }
        let (x, gamma, y) = (call.f32(0), call.f32(1), call.out_f32(0));
        match self.kind {
            NormKind::Layer { beta } => {
                let beta = beta.then(|| call.f32(2));
                let (mean, rstd) = (call.out_f32(1), call.out_f32(2));
                kernels_cpu::norm::layer_norm(x, rows, d, gamma, beta, self.eps, y, mean, rstd);
            }
            NormKind::Rms { plus_one } => {
                kernels_cpu::norm::rms_norm(x, rows, d, gamma, plus_one, self.eps, y, call.out_f32(1));
            }
        }
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, d) = lowering.output(0).rows();
        let mut kernel = RowKernel::new(self.name(), shader!("norm.wgsl"), rows, d, 8.0)
            .read("x", Buf::In(0))
            .read_whole("gamma", Buf::In(1))
            .write("y", Buf::Out(0));
        if self.kind.beta() {
            kernel = kernel.read_whole("beta", Buf::In(2));
        }
        if self.kind.layer() {
            kernel = kernel.write_one("mean_out", Buf::Out(1));
        }
        kernel
            .write_one("rstd_out", Buf::Out(lowering.outputs() - 1))
            .f32("scale", 1.0 / d as f64)
            .f32("eps", self.eps as f64)
            .f32("offset", self.kind.offset())
            .flag("layer", self.kind.layer())
            .flag("beta", self.kind.beta())
            .lower(lowering)
    }
}

impl Norm {
    /// On the CPU, with y of 16 bits.
    fn cpu_half(&self, call: &CpuCall, rows: usize, d: usize) {
        // As many rows as stay in the first-level cache.
        let block = (4096 / d.max(1)).max(1);
        let gamma = call.f32(1);
        match self.kind {
            NormKind::Layer { beta } => {
                let beta = beta.then(|| call.f32(2));
                let outputs = [part(0, d), part(1, 1), part(2, 1)];
                by_rows(call, rows, block, [part(0, d)], outputs, |r, [x], [y, mean, rstd]| {
                    kernels_cpu::norm::layer_norm(x, r.len(), d, gamma, beta, self.eps, y, mean, rstd);
                });
            }
            NormKind::Rms { plus_one } => {
                by_rows(call, rows, block, [part(0, d)], [part(0, d), part(1, 1)], |r, [x], [y, rstd]| {
                    kernels_cpu::norm::rms_norm(x, r.len(), d, gamma, plus_one, self.eps, y, rstd);
                });
            }
        }
    }
}

impl Op for Norm {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let expected = 2 + self.kind.beta() as usize;
        if inputs.len() != expected || inputs.iter().any(|t| t.dtype != DType::F32) {
            return Err(format!("{expected} f32 operands are expected"));
        }
        let Some((&d, lead)) = inputs[0].shape.split_last().filter(|(d, _)| **d > 0) else {
            return Err("x needs a last axis with elements".into());
        };
        if let Some(bad) = inputs[1..].iter().find(|t| t.shape != [d]) {
            return Err(format!("a weight has shape {:?}, the last axis of x has {d} elements", bad.shape));
        }
        let stat = TensorType::f32(lead);
        let mut outputs = vec![inputs[0].clone(), stat.clone()];
        if self.kind.layer() {
            outputs.push(stat);
        }
        Ok(outputs)
    }

    fn storage(&self, _: &[TensorType]) -> Storage {
        Storage { writes: vec![0], ..Storage::default() }
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        if (1..cx.outputs.len()).any(|o| cx.has_grad(o)) {
            return Err(Error::Graph(format!("{}: the mean and rstd outputs have no gradient; use y", self.name())));
        }
        let dy = cx.grad(0);
        let (x, gamma) = (cx.inputs[0], cx.inputs[1]);
        let stats = cx.outputs[1..].to_vec();
        let mut result = vec![None; cx.inputs.len()];
        if cx.needs(0) {
            let inputs = [&[x, gamma][..], &stats, &[dy]].concat();
            result[0] = Some(cx.graph.apply1(NormGradX { kind: self.kind }, &inputs)?);
        }
        if (1..cx.inputs.len()).any(|i| cx.needs(i)) {
            let inputs = [&[x][..], &stats, &[dy]].concat();
            let grads = cx.graph.apply(NormGradParams { kind: self.kind }, &inputs)?;
            result[1..].iter_mut().zip(grads).for_each(|(r, g)| *r = Some(g));
        }
        Ok(result)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs, 8.0)
    }
}

/// `flops` for each element of the first operand; every operand moves once.
fn cost(inputs: &[TensorType], outputs: &[TensorType], flops: f64) -> Cost {
    let bytes = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum();
    Cost { flops: flops * inputs[0].elements() as f64, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
}

impl Graph {
    /// Layer normalisation over the last axis of `x` [.., d]; `gamma` and `beta` are [d]. Returns (y, mean [..], rstd [..]); the
    /// gradient passes through y only.
    pub fn layer_norm(
        &mut self,
        x: Value,
        gamma: Value,
        beta: Option<Value>,
        eps: f32,
    ) -> Result<(Value, Value, Value)> {
        let op = Norm { kind: NormKind::Layer { beta: beta.is_some() }, eps };
        let inputs: Vec<Value> = [x, gamma].into_iter().chain(beta).collect();
        let out = self.apply(op, &inputs)?;
        Ok((out[0], out[1], out[2]))
    }

    /// Root-mean-square normalisation over the last axis of `x` [.., d] with weight `gamma` [d], or `gamma + 1` when `plus_one`.
    /// Returns (y, rstd [..]); the gradient passes through y only.
    pub fn rms_norm(&mut self, x: Value, gamma: Value, eps: f32, plus_one: bool) -> Result<(Value, Value)> {
        let out = self.apply(Norm { kind: NormKind::Rms { plus_one }, eps }, &[x, gamma])?;
        Ok((out[0], out[1]))
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("norm", cases).timed(sizes),
        Spec::new("norm_grad_x", grad::x_cases).timed(grad::x_sizes),
        Spec::new("norm_grad_params", grad::params_cases).timed(grad::params_sizes),
    ]
}

const TIMED_KINDS: [NormKind; 2] = [NormKind::Layer { beta: true }, NormKind::Rms { plus_one: false }];
const TIMED: [&[usize]; 4] = [&[2048, 384], &[8192, 4096], &[768, 128], &[1, 4096]];

/// Every timed shape, by kind.
fn timed(case: impl Fn(NormKind, &[usize]) -> Case) -> Vec<Case> {
    TIMED.iter().flat_map(|shape| TIMED_KINDS.map(|kind| case(kind, shape))).collect()
}

fn sizes() -> Vec<Case> {
    timed(|kind, shape| {
        let d = shape[shape.len() - 1];
        let mut inputs = vec![Sample::normal(shape), Sample::new(&[d], Values::Uniform(0.5, 1.5))];
        if kind.beta() {
            inputs.push(Sample::normal(&[d]));
        }
        Case::new(format!("{kind:?} {shape:?}"), Norm { kind, eps: 1e-5 }, inputs)
    })
}

const KINDS: [NormKind; 4] = [
    NormKind::Layer { beta: true },
    NormKind::Layer { beta: false },
    NormKind::Rms { plus_one: false },
    NormKind::Rms { plus_one: true },
];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let case = |label: &str, kind: NormKind, x: Sample| {
        let d = *x.ty.shape.last().expect("cases have an axis");
        // One element less its mean is 0: the gradient is nothing but rounding errors, and the reference's is nothing.
        let x = if d == 1 && kind.layer() { x.fixed() } else { x };
        let mut inputs = vec![x, Sample::new(&[d], Values::Uniform(0.5, 1.5))];
        if kind.beta() {
            inputs.push(Sample::normal(&[d]));
        }
        // With one element a row and a small eps the gradient of rms_norm is what is left of two numbers 1e5 times as large.
        let eps = if d == 1 { 0.1 } else { 1e-5 };
        Case::new(format!("{label} {kind:?} {:?}", inputs[0].ty.shape), Norm { kind, eps }, inputs)
    };
    for kind in KINDS {
        for shape in [&[1][..], &[3, 1], &[5, 7], &[2, 3, 64], &[33, 65], &[0, 4], &[3, 1025], &[130, 96]] {
            cases.push(case("normal", kind, Sample::normal(shape)));
        }
        cases.push(case("zeros", kind, Sample::new(&[3, 20], Values::Fixed(vec![0.0; 60]))));
        cases.push(case("offset", kind, Sample::new(&[3, 200], Values::Uniform(10.0, 11.0))));
        for (dtype, shape) in
            [(DType::Bf16, &[33, 65][..]), (DType::F16, &[3, 64]), (DType::Bf16, &[1]), (DType::F16, &[0, 4])]
        {
            cases.push(case("stored", kind, Sample::normal(shape)).stored(dtype, &[], &[0]));
        }
        cases.push(case("large offset", kind, Sample::new(&[3, 200], Values::Uniform(1000.0, 1001.0))).forward_only());
    }
    for kind in [NormKind::Layer { beta: true }, NormKind::Rms { plus_one: false }] {
        cases.push(case("many", kind, Sample::normal(&[1023, 300])));
        cases.push(case("many stored", kind, Sample::normal(&[1023, 301])).stored(DType::Bf16, &[], &[0]));
        cases.push(case("long", kind, Sample::normal(&[3, 20_001])));
    }
    cases
}
