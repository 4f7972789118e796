//! The gradients of the norms: by x row by row, by gamma and beta as a column reduction in a fixed order.

use super::{KINDS, NormKind, cost};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Op, Value};
use crate::ops::reduce::{self, Reduction};
use crate::ops::rows::{RowKernel, cut, element_variables, lanes, window};
use crate::ops::{Case, Sample, Values};
use crate::tensor::{RefTensor, TensorType};
use crate::{Error, Result, shader};

/// Inputs x [.., d], gamma [d], mean [..] (layer only), rstd [..], dy like x; output dx.
#[derive(Clone, Debug)]
pub struct NormGradX {
    pub kind: NormKind,
}

/// Inputs x [.., d], mean [..] (layer only), rstd [..], dy like x; outputs dgamma [d] and, where the kind has beta, dbeta [d].
#[derive(Clone, Debug)]
pub struct NormGradParams {
    pub kind: NormKind,
}

fn no_second(name: &str) -> Result<Vec<Option<Value>>> {
    Err(Error::Graph(format!("{name}: second derivatives are not implemented")))
}

impl Kernel for NormGradX {
    fn name(&self) -> &'static str {
        if self.kind.layer() { "layer_norm_grad_x" } else { "rms_norm_grad_x" }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (rows, d) = outputs[0].rows();
        let (x, gamma, rstd, dy) = (inputs[0], inputs[1], inputs[inputs.len() - 2], inputs[inputs.len() - 1]);
        let mut dx = RefTensor::zeros(&outputs[0].shape);
        for row in 0..rows {
            let mean = if self.kind.layer() { inputs[2].data[row] } else { 0.0 };
            let r = rstd.data[row];
            let n: Vec<f64> = (0..d).map(|i| (x.data[row * d + i] - mean) * r).collect();
            let g: Vec<f64> = (0..d).map(|i| dy.data[row * d + i] * (gamma.data[i] + self.kind.offset())).collect();
            let a = if self.kind.layer() { g.iter().sum::<f64>() / d as f64 } else { 0.0 };
            let b = g.iter().zip(&n).map(|(g, n)| g * n).sum::<f64>() / d as f64;
            for i in 0..d {
                dx.data[row * d + i] = r * (g[i] - a - n[i] * b);
            }
        }
        vec![dx]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (rows, d) = call.output(0).rows();
        let (x, gamma, dx) = (call.f32(0), call.f32(1), call.out_f32(0));
        match self.kind {
            NormKind::Layer { .. } => {
                let (mean, rstd, dy) = (call.f32(2), call.f32(3), call.f32(4));
                kernels_cpu::norm::layer_norm_grad_x(x, rows, d, gamma, mean, rstd, dy, dx);
            }
            NormKind::Rms { plus_one } => {
                kernels_cpu::norm::rms_norm_grad_x(x, rows, d, gamma, plus_one, call.f32(2), call.f32(3), dx);
            }
        }
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, d) = lowering.output(0).rows();
        let last = lowering.inputs() - 1;
        let mut kernel = RowKernel::new(self.name(), shader!("norm_grad_x.wgsl"), rows, d, 10.0)
            .read("x", Buf::In(0))
            .read_whole("gamma", Buf::In(1))
            .read_one("rstd", Buf::In(last - 1))
            .read("dy", Buf::In(last))
            .write("dx", Buf::Out(0));
        if self.kind.layer() {
            kernel = kernel.read_one("mean", Buf::In(2));
        }
        kernel
            .f32("scale", 1.0 / d as f64)
            .f32("offset", self.kind.offset())
            .flag("layer", self.kind.layer())
            .lower(lowering)
    }
}

impl Op for NormGradX {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        Ok(vec![inputs[0].clone()])
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        no_second(self.name())
    }
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs, 10.0)
    }
}

impl Kernel for NormGradParams {
    fn name(&self) -> &'static str {
        if self.kind.layer() { "layer_norm_grad_params" } else { "rms_norm_grad_params" }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let d = outputs[0].elements();
        let (x, rstd, dy) = (inputs[0], inputs[inputs.len() - 2], inputs[inputs.len() - 1]);
        let mut out: Vec<RefTensor> = outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect();
        for row in 0..rstd.data.len() {
            let mean = if self.kind.layer() { inputs[1].data[row] } else { 0.0 };
            for i in 0..d {
                let at = row * d + i;
                out[0].data[i] += dy.data[at] * (x.data[at] - mean) * rstd.data[row];
                if self.kind.beta() {
                    out[1].data[i] += dy.data[at];
                }
            }
        }
        out
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (rows, d) = call.input(0).rows();
        let (x, dgamma) = (call.f32(0), call.out_f32(0));
        match self.kind {
            NormKind::Layer { beta } => {
                let (mean, rstd, dy) = (call.f32(1), call.f32(2), call.f32(3));
                let dbeta = beta.then(|| call.out_f32(1));
                kernels_cpu::norm::layer_norm_grad_params(x, rows, d, mean, rstd, dy, dgamma, dbeta);
            }
            NormKind::Rms { .. } => {
                kernels_cpu::norm::rms_norm_grad_params(x, rows, d, call.f32(1), call.f32(2), dgamma);
            }
        }
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, d) = lowering.input(0).rows();
        let last = lowering.inputs() - 1;
        let block = reduce::gpu::column_block(lowering, 1, rows, d)?;
        let units = rows.div_ceil(block).max(1);
        // One block needs no second stage: its sums are the result.
        let bytes = (units * d * 4) as u64;
        let parts: Vec<Buf> =
            (0..lowering.outputs()).map(|o| if units == 1 { Buf::Out(o) } else { lowering.scratch(bytes) }).collect();
        // No row: sums of nothing, and bindings too small for a vector.
        let width = if rows == 0 { 1 } else { lanes(d) };
        let mut variables = element_variables(width);
        variables.insert("layer".into(), self.kind.layer().into());
        variables.insert("beta".into(), self.kind.beta().into());
        let optional = self.kind.layer() as usize;
        variables.insert("uniform".into(), (4 + optional + self.kind.beta() as usize).into());
        let variables = minijinja::Value::from_pairs(variables);
        let block_bytes = (block * d * 4) as u64;
        let row_bytes = [block_bytes, block as u64 * 4, d as u64 * 4];
        for range in cut(lowering.caps, units, &row_bytes, (4 * block * d) as f64)? {
            let (first, end) = (range.start * block, (range.end * block).min(rows));
            let (x, x_start) = window(lowering, Buf::In(0), first * d..end * d, false);
            let (dy, _) = window(lowering, Buf::In(last), first * d..end * d, false);
            let (rstd, stat_start) = window(lowering, Buf::In(last - 1), first..end, false);
            let part = |p: Buf| window(lowering, p, range.start * d..range.end * d, true);
            let (gamma_part, part_start) = part(parts[0]);
            let mut binds = vec![x, dy, rstd, gamma_part];
            if self.kind.layer() {
                binds.push(window(lowering, Buf::In(1), first..end, false).0);
            }
            if self.kind.beta() {
                binds.push(part(parts[1]).0);
            }
            let params = Params::new().u32(range.len()).u32(range.start).u32(rows).u32(block).u32(d / width);
            let params = params.u32(x_start / width).u32(stat_start).u32(part_start / width);
            let groups = lowering.line((range.len() * d / width).div_ceil(64));
            let label = format!("{}{}", self.name(), if width == 4 { "/vec4" } else { "" });
            lowering.dispatch(label, shader!("norm_grad_params.wgsl"), variables.clone(), &binds, params, groups)?;
        }
        if units > 1 {
            for (o, part) in parts.into_iter().enumerate() {
                reduce::gpu::lower(lowering, Reduction::Sum, (part, Buf::Out(o)), (1, units, d))?;
            }
        }
        Ok(())
    }
}

impl Op for NormGradParams {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let (_, d) = inputs[0].rows();
        Ok(vec![TensorType::f32(&[d]); 1 + self.kind.beta() as usize])
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        no_second(self.name())
    }
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs, 5.0)
    }
}

const SHAPES: [&[usize]; 6] = [&[1, 1], &[5, 7], &[2, 33, 64], &[67, 65], &[1025, 12], &[1023, 300]];

/// Random statistics serve: the operators take them as they are.
fn stats(kind: NormKind, shape: &[usize]) -> Vec<Sample> {
    let lead = &shape[..shape.len() - 1];
    let mean = kind.layer().then(|| Sample::new(lead, Values::Normal(0.1)));
    mean.into_iter().chain([Sample::new(lead, Values::Uniform(0.5, 2.0))]).collect()
}

fn x_case(kind: NormKind, shape: &[usize]) -> Case {
    let gamma = Sample::new(&shape[shape.len() - 1..], Values::Uniform(0.5, 1.5));
    let inputs = [vec![Sample::normal(shape), gamma], stats(kind, shape), vec![Sample::normal(shape)]].concat();
    Case::new(format!("{kind:?} {shape:?}"), NormGradX { kind }, inputs).forward_only()
}

fn params_case(kind: NormKind, shape: &[usize]) -> Case {
    let inputs = [vec![Sample::normal(shape)], stats(kind, shape), vec![Sample::normal(shape)]].concat();
    Case::new(format!("{kind:?} {shape:?}"), NormGradParams { kind }, inputs).forward_only()
}

pub fn x_cases() -> Vec<Case> {
    cases(x_case)
}

pub fn params_cases() -> Vec<Case> {
    cases(params_case)
}

pub fn x_sizes() -> Vec<Case> {
    super::timed(x_case)
}

pub fn params_sizes() -> Vec<Case> {
    super::timed(params_case)
}

fn cases(case: impl Fn(NormKind, &[usize]) -> Case) -> Vec<Case> {
    KINDS.iter().flat_map(|k| SHAPES.map(|s| case(*k, s))).collect()
}
