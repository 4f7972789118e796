//! Softmax and its logarithm over the last axis. The maximum is subtracted first, so logits of any finite size are safe; masks are large
//! finite negatives, and a row of nothing but masks is uniform.

use super::rows::RowKernel;
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result, shader};

/// y = softmax(x), or its logarithm, over the last axis of x [.., n].
#[derive(Clone, Debug)]
pub struct Softmax {
    pub logarithm: bool,
}

/// Inputs y (the result of [`Softmax`]) and dy; output dx, all of one shape.
#[derive(Clone, Debug)]
pub struct SoftmaxGrad {
    pub logarithm: bool,
}

impl Kernel for Softmax {
    fn name(&self) -> &'static str {
        if self.logarithm { "log_softmax" } else { "softmax" }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (rows, n) = outputs[0].rows();
        let mut y = RefTensor::zeros(&outputs[0].shape);
        for row in 0..rows {
            let x = &inputs[0].data[row * n..][..n];
            let most = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
            let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
            for (y, x) in y.data[row * n..].iter_mut().zip(x) {
                *y = if self.logarithm { (x - most) - sum.ln() } else { (x - most).exp() / sum };
            }
        }
        vec![y]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (rows, n) = call.output(0).rows();
        let kernel = if self.logarithm { kernels_cpu::softmax::log_softmax } else { kernels_cpu::softmax::softmax };
        kernel(call.f32(0), rows, n, call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, n) = lowering.output(0).rows();
        RowKernel::new(self.name(), shader!("softmax.wgsl"), rows, n, 20.0)
            .read("x", Buf::In(0))
            .write("y", Buf::Out(0))
            .flag("logarithm", self.logarithm)
            .lower(lowering)
    }
}

impl Op for Softmax {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let x = &inputs[0];
        if x.dtype != DType::F32 || x.shape.last().is_none_or(|n| *n == 0) {
            return Err("an f32 tensor with a last axis of at least one element is expected".into());
        }
        Ok(vec![x.clone()])
    }
    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (y, dy) = (cx.outputs[0], cx.grad(0));
        Ok(vec![Some(cx.graph.apply1(SoftmaxGrad { logarithm: self.logarithm }, &[y, dy])?)])
    }
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs, 20.0)
    }
}

impl Kernel for SoftmaxGrad {
    fn name(&self) -> &'static str {
        if self.logarithm { "log_softmax_grad" } else { "softmax_grad" }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (rows, n) = outputs[0].rows();
        let mut dx = RefTensor::zeros(&outputs[0].shape);
        for row in 0..rows {
            let at = row * n..(row + 1) * n;
            let (y, dy) = (&inputs[0].data[at.clone()], &inputs[1].data[at.clone()]);
            let sum: f64 = if self.logarithm { dy.iter().sum() } else { y.iter().zip(dy).map(|(y, d)| y * d).sum() };
            for ((dx, y), dy) in dx.data[at].iter_mut().zip(y).zip(dy) {
                *dx = if self.logarithm { dy - y.exp() * sum } else { y * (dy - sum) };
            }
        }
        vec![dx]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        use kernels_cpu::softmax::{log_softmax_grad, softmax_grad};
        let (rows, n) = call.output(0).rows();
        let kernel = if self.logarithm { log_softmax_grad } else { softmax_grad };
        kernel(call.f32(0), call.f32(1), rows, n, call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, n) = lowering.output(0).rows();
        RowKernel::new(self.name(), shader!("softmax_grad.wgsl"), rows, n, 10.0)
            .read("y", Buf::In(0))
            .read("dy", Buf::In(1))
            .write("dx", Buf::Out(0))
            .flag("logarithm", self.logarithm)
            .lower(lowering)
    }
}

impl Op for SoftmaxGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        if inputs[0] != inputs[1] {
            return Err("y and dy must have one shape".into());
        }
        Ok(vec![inputs[0].clone()])
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph(format!("{}: second derivatives are not implemented", self.name())))
    }
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs, if self.logarithm { 10.0 } else { 4.0 })
    }
}

/// An exponential is counted as eight operations.
fn cost(inputs: &[TensorType], outputs: &[TensorType], flops: f64) -> Cost {
    let bytes = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum();
    Cost { flops: flops * outputs[0].elements() as f64, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
}

impl Graph {
    /// Softmax over `axis`.
    pub fn softmax(&mut self, x: Value, axis: usize) -> Result<Value> {
        self.softmax_over(x, axis, false)
    }

    /// The logarithm of softmax over `axis`.
    pub fn log_softmax(&mut self, x: Value, axis: usize) -> Result<Value> {
        self.softmax_over(x, axis, true)
    }

    fn softmax_over(&mut self, x: Value, axis: usize, logarithm: bool) -> Result<Value> {
        let rank = self.shape(x).len();
        if axis >= rank {
            let (name, ty) = (self.name(x), self.ty(x));
            return Err(Error::Graph(format!("softmax over axis {axis} of '{name}', which is {ty}")));
        }
        let last = self.transpose(x, axis, rank - 1)?;
        let y = self.apply1(Softmax { logarithm }, &[last])?;
        self.transpose(y, axis, rank - 1)
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("softmax", cases).timed(sizes), Spec::new("softmax_grad", grad_cases).timed(grad_sizes)]
}

const TIMED: [&[usize]; 4] = [&[2048, 600], &[256, 50_257], &[12_288, 256], &[32, 600]];

fn sizes() -> Vec<Case> {
    let case = |logarithm: bool, shape: &[usize]| {
        let label = format!("{}{shape:?}", if logarithm { "logarithm " } else { "" });
        Case::new(label, Softmax { logarithm }, vec![Sample::normal(shape)])
    };
    let mut cases: Vec<Case> = TIMED.map(|shape| case(false, shape)).into();
    cases.push(case(true, &[2048, 600]));
    cases
}

fn grad_sizes() -> Vec<Case> {
    let case = |shape: &[usize]| {
        let y = Values::Uniform(0.0, 2.0 / shape[shape.len() - 1] as f64);
        let inputs = vec![Sample::new(shape, y), Sample::normal(shape)];
        Case::new(format!("{shape:?}"), SoftmaxGrad { logarithm: false }, inputs).forward_only()
    };
    TIMED.map(case).into()
}

/// WGSL grants exp(x) an error of 3 + 2|x| ulp: relative to the largest result of a row at most 3, and as much again in the sum.
const ULPS: f64 = 8.0;

const SHAPES: [&[usize]; 9] =
    [&[1], &[3, 1], &[0, 5], &[5, 7], &[2, 3, 64], &[67, 600], &[129, 33], &[2, 50_257], &[1023, 300]];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for logarithm in [false, true] {
        let case = |label: &str, x: Sample| {
            let label = format!("{label} {:?} logarithm {logarithm}", x.ty.shape);
            Case::new(label, Softmax { logarithm }, vec![x]).ulps(ULPS)
        };
        cases.extend(SHAPES.map(|s| case("normal", Sample::new(s, Values::Normal(2.0)))));
        cases.push(case("huge logits", Sample::new(&[9, 33], Values::Normal(1e4))));
        cases.push(case("equal", Sample::new(&[3, 10], Values::Fixed(vec![5.0; 30]))));
        let mask = -1e30;
        let masked = [vec![mask; 6], vec![mask, 1.0, mask, mask, 2.0, mask]].concat();
        // Differences of 1e30 are not for finite differences.
        cases.push(case("masks", Sample::new(&[2, 6], Values::Fixed(masked))).forward_only());
    }
    cases
}

fn grad_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for logarithm in [false, true] {
        for shape in SHAPES {
            let n = shape[shape.len() - 1] as f64;
            let y = if logarithm { Values::Uniform(-n.ln() - 2.0, -n.ln()) } else { Values::Uniform(0.0, 2.0 / n) };
            let inputs = vec![Sample::new(shape, y), Sample::normal(shape)];
            let label = format!("{shape:?} logarithm {logarithm}");
            cases.push(Case::new(label, SoftmaxGrad { logarithm }, inputs).ulps(ULPS).forward_only());
        }
    }
    cases
}
