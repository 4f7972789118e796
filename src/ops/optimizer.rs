//! Optimiser steps. They change parameters and state in place, so their outputs must be the updates of these variables
//! (`Graph::update`), and nothing may read the variables afterwards in the same graph. What changes from step to step is a small tensor
//! (`hyper`), so one plan serves a whole run.

use super::rows::{element_variables, lanes};
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result, shader};

/// AdamW (Loshchilov and Hutter 2019) for parameters that share these constants.
///
/// Inputs p, g, m, v of one shape, `hyper` [4] (see [`AdamW::hyper`]) and the gradient's scale, a scalar. Outputs p, m, v, in place:
/// with g' = scale g: m = beta1 m + (1 - beta1) g'; v = beta2 v + (1 - beta2) g'^2;
/// p = p (1 - lr decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), decay = weight_decay * its factor in `hyper`.
/// A negative scale changes nothing: it says that the gradient is not to be used.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

impl AdamW {
    /// The values of `hyper` for step `t`, counted from 1: learning rate, 1 / (1 - beta1^t), 1 / (1 - beta2^t), and a factor on every group's
    /// weight decay (1 unless it is scheduled). In f64, because 1 - beta2^t cancels in f32.
    pub fn hyper(&self, lr: f64, t: u64, decay_factor: f64) -> [f32; 4] {
        // The kernels use the f32 values of beta; so does the correction.
        let correction = |beta: f32| 1.0 / (1.0 - (beta as f64).powf(t.max(1) as f64));
        [lr, correction(self.beta1), correction(self.beta2), decay_factor].map(|v| v as f32)
    }
}

/// Stochastic gradient descent with momentum, as in PyTorch except that dampening applies to the first step too.
///
/// Inputs p, g, v of one shape, `hyper` [2] (learning rate, factor on the weight decay) and the gradient's scale, a scalar.
/// Outputs p, v, in place: with g' = scale g + decay p: v = momentum v + (1 - dampening) g'; p = p - lr (nesterov ? g' + momentum v : v).
/// A negative scale changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SgdMomentum {
    pub momentum: f32,
    pub dampening: f32,
    pub nesterov: bool,
    pub weight_decay: f32,
}

fn check(inputs: &[TensorType], tensors: usize, hyper: usize) -> Result<(), String> {
    if inputs.len() != tensors + 2 || inputs.iter().any(|t| t.dtype != DType::F32) {
        return Err(format!("{} f32 operands are expected", tensors + 2));
    }
    if inputs[1..tensors].iter().any(|t| t.shape != inputs[0].shape) {
        return Err("the parameter, its gradient and its state must have one shape".into());
    }
    if inputs[tensors].shape != [hyper] || inputs[tensors + 1].elements() != 1 {
        return Err(format!("hyper must be f32[{hyper}] and the gradient's scale a scalar"));
    }
    Ok(())
}

/// Lowers an elementwise step: the first `tensors` operands are as long as the parameter, `outputs` names the operand that each
/// output is; then hyper and the scale.
fn lower(
    lowering: &mut Lowering,
    label: &str,
    template: &'static str,
    (tensors, outputs): (usize, &[usize]),
    constants: &[f64],
) -> Result<(), Unsupported> {
    let n = lowering.input(0).elements();
    let width = lanes(n);
    let row_bytes = vec![4 * width as u64; tensors];
    for range in lowering.chunks(n / width, &row_bytes, 16.0 * width as f64)? {
        let bytes = (range.start * 4 * width) as u64..(range.end * 4 * width) as u64;
        let mut binds = Vec::new();
        for i in 0..tensors {
            binds.push(match outputs.iter().position(|k| *k == i) {
                Some(o) => lowering.write_part(Buf::Out(o), bytes.clone()),
                None => lowering.read_part(Buf::In(i), bytes.clone()),
            });
        }
        binds.extend([lowering.read(Buf::In(tensors)), lowering.read(Buf::In(tensors + 1))]);
        let params = constants.iter().fold(Params::new().u32(range.len()), |p, c| p.f32(*c));
        let groups = lowering.line(range.len().div_ceil(64));
        let label = format!("{label}{}", if width == 4 { "/vec4" } else { "" });
        let variables = minijinja::Value::from_pairs(element_variables(width));
        lowering.dispatch(label, template, variables, &binds, params, groups)?;
    }
    Ok(())
}

fn no_gradient(name: &str) -> Result<Vec<Option<Value>>> {
    Err(Error::Graph(format!("{name}: an optimiser step cannot be differentiated")))
}

impl Kernel for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn reference(&self, inputs: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
        let [b1, b2, eps, decay] = [self.beta1, self.beta2, self.eps, self.weight_decay].map(f64::from);
        let (mut p, mut m, mut v) = (inputs[0].clone(), inputs[2].clone(), inputs[3].clone());
        let (hyper, scale) = (&inputs[4].data, inputs[5].data[0]);
        if scale < 0.0 {
            return vec![p, m, v];
        }
        for i in 0..p.data.len() {
            let g = scale * inputs[1].data[i];
            m.data[i] = b1 * m.data[i] + (1.0 - b1) * g;
            v.data[i] = b2 * v.data[i] + (1.0 - b2) * g * g;
            let step = m.data[i] * hyper[1] / ((v.data[i] * hyper[2]).sqrt() + eps);
            p.data[i] -= hyper[0] * (decay * hyper[3] * p.data[i] + step);
        }
        vec![p, m, v]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (g, hyper, scale) = (call.f32(1), call.f32(4), call.f32(5));
        if scale[0] < 0.0 {
            return Ok(());
        }
        let config = kernels_cpu::optim::AdamW {
            lr: hyper[0],
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay * hyper[3],
            bias_correction1: hyper[1],
            bias_correction2: hyper[2],
            grad_scale: scale[0],
        };
        // In place: the outputs hold the inputs' values (`must_alias`).
        kernels_cpu::optim::adamw(config, call.out_f32(0), g, call.out_f32(1), call.out_f32(2));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (b1, b2) = (self.beta1 as f64, self.beta2 as f64);
        let constants = [b1, b2, self.eps as f64, self.weight_decay as f64, 1.0 - b1, 1.0 - b2];
        lower(lowering, "adamw", shader!("adamw.wgsl"), (4, &[0, 2, 3]), &constants)
    }
}

impl Op for AdamW {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        check(inputs, 4, 4)?;
        Ok(vec![inputs[0].clone(); 3])
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        no_gradient(self.name())
    }
    fn must_alias(&self) -> Vec<(usize, usize)> {
        vec![(0, 0), (2, 1), (3, 2)]
    }
    fn is_pure(&self) -> bool {
        false
    }
    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Cost {
        let bytes = inputs[0].bytes() as f64;
        Cost { flops: 14.0 * inputs[0].elements() as f64, bytes_read: 4.0 * bytes, bytes_written: 3.0 * bytes }
    }
}

impl Kernel for SgdMomentum {
    fn name(&self) -> &'static str {
        "sgd_momentum"
    }

    fn reference(&self, inputs: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
        let [momentum, dampening, decay] = [self.momentum, self.dampening, self.weight_decay].map(f64::from);
        let (mut p, mut v) = (inputs[0].clone(), inputs[2].clone());
        let (hyper, scale) = (&inputs[3].data, inputs[4].data[0]);
        if scale < 0.0 {
            return vec![p, v];
        }
        for i in 0..p.data.len() {
            let g = scale * inputs[1].data[i] + decay * hyper[1] * p.data[i];
            v.data[i] = momentum * v.data[i] + (1.0 - dampening) * g;
            p.data[i] -= hyper[0] * if self.nesterov { g + momentum * v.data[i] } else { v.data[i] };
        }
        vec![p, v]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (g, hyper, scale) = (call.f32(1), call.f32(3), call.f32(4));
        if scale[0] < 0.0 {
            return Ok(());
        }
        let config = kernels_cpu::optim::SgdMomentum {
            lr: hyper[0],
            momentum: self.momentum,
            dampening: self.dampening,
            nesterov: self.nesterov,
            weight_decay: self.weight_decay * hyper[1],
            grad_scale: scale[0],
        };
        kernels_cpu::optim::sgd_momentum(config, call.out_f32(0), g, call.out_f32(1));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let keep = 1.0 - self.dampening as f64;
        let nesterov = if self.nesterov { 1.0 } else { 0.0 };
        let constants = [self.momentum as f64, keep, nesterov, self.weight_decay as f64];
        lower(lowering, "sgd_momentum", shader!("sgd_momentum.wgsl"), (3, &[0, 2]), &constants)
    }
}

impl Op for SgdMomentum {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        check(inputs, 3, 2)?;
        Ok(vec![inputs[0].clone(); 2])
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        no_gradient(self.name())
    }
    fn must_alias(&self) -> Vec<(usize, usize)> {
        vec![(0, 0), (2, 1)]
    }
    fn is_pure(&self) -> bool {
        false
    }
    fn cost(&self, inputs: &[TensorType], _: &[TensorType]) -> Cost {
        let bytes = inputs[0].bytes() as f64;
        Cost { flops: 8.0 * inputs[0].elements() as f64, bytes_read: 3.0 * bytes, bytes_written: 2.0 * bytes }
    }
}

impl Graph {
    /// One AdamW step on the variable `p` with gradient `g` and state variables `m` and `v` (zeros at first), in place; `hyper` is an input
    /// f32[4] ([`AdamW::hyper`]), `grad_scale` a scalar (1, or from [`Graph::clip_scale`]). Registers the variables' updates.
    pub fn adamw(
        &mut self,
        op: AdamW,
        (p, g, m, v): (Value, Value, Value, Value),
        hyper: Value,
        grad_scale: Value,
    ) -> Result<()> {
        let out = self.apply(op, &[p, g, m, v, hyper, grad_scale])?;
        [p, m, v].into_iter().zip(out).try_for_each(|(variable, new)| self.update(variable, new))
    }

    /// One momentum step on the variable `p` with gradient `g` and velocity `v` (zeros at first), in place; `hyper` is an input f32[2]:
    /// learning rate and a factor on the weight decay. Registers the variables' updates.
    pub fn sgd_momentum(
        &mut self,
        op: SgdMomentum,
        (p, g, v): (Value, Value, Value),
        hyper: Value,
        grad_scale: Value,
    ) -> Result<()> {
        let out = self.apply(op, &[p, g, v, hyper, grad_scale])?;
        [p, v].into_iter().zip(out).try_for_each(|(variable, new)| self.update(variable, new))
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("adamw", adamw_cases).timed(|| TIMED.map(|s| adamw_case(s, 0.1)).into()),
        Spec::new("sgd_momentum", sgd_cases).timed(|| TIMED.map(|s| sgd_case(s, false)).into()),
    ]
}

const TIMED: [&[usize]; 3] = [&[1536, 384], &[4096, 4096], &[128, 128]];

const SHAPES: [&[usize]; 6] = [&[], &[1], &[7, 13], &[64, 65], &[0], &[601, 500]];

fn adamw_case(shape: &[usize], weight_decay: f32) -> Case {
    let op = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay };
    let hyper = op.hyper(3e-2, 3, 0.5).map(f64::from).to_vec();
    let n = || Sample::normal(shape);
    let second = Sample::new(shape, Values::Uniform(0.0, 2.0));
    let inputs = vec![
        n(),
        n(),
        n(),
        second,
        Sample::new(&[4], Values::Fixed(hyper)),
        Sample::new(&[], Values::Fixed(vec![0.7])),
    ];
    Case::new(format!("{shape:?} decay {weight_decay}"), op, inputs).forward_only()
}

fn adamw_cases() -> Vec<Case> {
    SHAPES.iter().flat_map(|s| [adamw_case(s, 0.0), adamw_case(s, 0.1)]).collect()
}

fn sgd_case(shape: &[usize], nesterov: bool) -> Case {
    let op = SgdMomentum { momentum: 0.9, dampening: 0.1, nesterov, weight_decay: 0.01 };
    let n = || Sample::normal(shape);
    let hyper = Sample::new(&[2], Values::Fixed(vec![0.05, 2.0]));
    let inputs = vec![n(), n(), n(), hyper, Sample::new(&[], Values::Fixed(vec![0.7]))];
    Case::new(format!("{shape:?} nesterov {nesterov}"), op, inputs).forward_only()
}

fn sgd_cases() -> Vec<Case> {
    SHAPES.iter().flat_map(|s| [sgd_case(s, false), sgd_case(s, true)]).collect()
}

#[cfg(test)]
mod tests;
