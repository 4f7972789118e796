//! Depthwise causal convolution over time, the short filter in front of recurrences and attention variants.

use super::{Case, Graph, Op, Sample, Spec};
use crate::Result;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use kernels_cpu::conv::{ConvShape, conv_backward_input, conv_backward_weight, conv_forward};
use minijinja::context;
use std::ops::Range;

/// `y[b, t, c] = bias[c] + sum_k w[c, k] x[b, t - k, c]`: inputs `x [B, T, C]`, `w [C, K]` and optionally `bias [C]`; tap 0 is the
/// current token, tokens before the first are 0. Reversed in time (`x[b, t + k, c]`, no bias) it is the gradient of x.
#[derive(Clone, Debug)]
pub struct CausalConv {
    pub reverse: bool,
}

/// `dw[c, k] = sum over b, t of dy[b, t, c] x[b, t - k, c]` and `dbias[c] = sum over b, t of dy[b, t, c]`: inputs `x`, `dy`
/// `[B, T, C]`, outputs `[C, K]` and `[C]`.
#[derive(Clone, Debug)]
pub struct CausalConvWeightGrad {
    pub taps: usize,
}

fn shape(x: &[usize], taps: usize) -> ConvShape {
    ConvShape { batch: x[0], time: x[1], channels: x[2], taps }
}

/// Visits the terms of a causal convolution: (offset in y, channel, tap, offset in x).
fn each_term(s: ConvShape, mut visit: impl FnMut(usize, usize, usize, usize)) {
    for b in 0..s.batch {
        for t in 0..s.time {
            for c in 0..s.channels {
                let at = (b * s.time + t) * s.channels + c;
                for k in 0..s.taps.min(t + 1) {
                    visit(at, c, k, at - k * s.channels);
                }
            }
        }
    }
}

/// Ranges of batch rows whose parts fit a binding, and the bytes of one batch row.
fn batches(lowering: &Lowering, s: ConvShape) -> Result<(Vec<Range<usize>>, u64), Unsupported> {
    let row = s.time * s.channels;
    let bytes = 4 * row as u64;
    Ok((lowering.chunks(s.batch, &[bytes, bytes], (2 * row * s.taps) as f64)?, bytes))
}

fn lanes(channels: usize) -> (&'static str, usize) {
    if channels.is_multiple_of(4) { ("vec4<f32>", 4) } else { ("f32", 1) }
}

impl Kernel for CausalConv {
    fn name(&self) -> &'static str {
        "causal_conv"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let taps = inputs[1].shape[1];
        let s = shape(&inputs[0].shape, taps);
        let mut y = RefTensor::zeros(&outputs[0].shape);
        if let Some(bias) = inputs.get(2) {
            y.data.iter_mut().enumerate().for_each(|(i, y)| *y = bias.data[i % s.channels]);
        }
        each_term(s, |later, c, k, earlier| {
            let (to, from) = if self.reverse { (earlier, later) } else { (later, earlier) };
            y.data[to] += inputs[1].data[c * taps + k] * inputs[0].data[from];
        });
        vec![y]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = shape(&call.input(0).shape, call.input(1).shape[1]);
        let (x, w, y) = (call.f32(0), call.f32(1), call.out_f32(0));
        if self.reverse {
            conv_backward_input(s, w, x, y);
        } else {
            conv_forward(s, x, w, (call.inputs.len() > 2).then(|| call.f32(2)), y);
        }
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let s = shape(&lowering.input(0).shape, lowering.input(1).shape[1]);
        let bias = lowering.inputs() > 2;
        let (ty, lanes) = lanes(s.channels);
        let (parts, bytes) = batches(lowering, s)?;
        for part in parts {
            let span = part.start as u64 * bytes..part.end as u64 * bytes;
            let mut binds = vec![lowering.read_part(Buf::In(0), span.clone()), lowering.read(Buf::In(1))];
            if bias {
                binds.push(lowering.read(Buf::In(2)));
            }
            binds.push(lowering.write_part(Buf::Out(0), span));
            let (rows, width) = (part.len() * s.time, s.channels / lanes);
            let params = Params::new().u32(rows).u32(s.time).u32(width).u32(s.taps).u32(usize::from(self.reverse));
            let groups = lowering.line((rows * width).div_ceil(64));
            let variables = context! { stage => "apply", T => ty, bias };
            lowering.dispatch("conv/apply", crate::shader!("conv.wgsl"), variables, &binds, params, groups)?;
        }
        Ok(())
    }
}

impl Op for CausalConv {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, w, rest @ ..] = inputs else { return Err("x and w are needed".into()) };
        if x.dtype != DType::F32 || x.rank() != 3 {
            return Err(format!("x must be f32 [B, T, C], it is {x}"));
        }
        let channels = x.shape[2];
        if w.dtype != DType::F32 || w.rank() != 2 || w.shape[0] != channels || w.shape[1] == 0 {
            return Err(format!("w must be f32 [{channels}, K] with K > 0, it is {w}"));
        }
        match rest {
            [] => Ok(vec![x.clone()]),
            [bias] if *bias == TensorType::f32(&[channels]) && !self.reverse => Ok(vec![x.clone()]),
            _ => Err(format!("bias must be one f32[{channels}], and none in reverse")),
        }
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (x, w, g) = (cx.inputs[0], cx.inputs[1], cx.grad(0));
        let taps = cx.graph.shape(w)[1];
        let dx =
            if cx.needs(0) { Some(cx.graph.apply1(CausalConv { reverse: !self.reverse }, &[g, w])?) } else { None };
        let mut gradients = vec![dx];
        // In reverse, x and the gradient change places: sum_t g[t] x[t + k] = sum_t x[t] g[t - k].
        let (earlier, later) = if self.reverse { (g, x) } else { (x, g) };
        let written = cx.graph.apply(CausalConvWeightGrad { taps }, &[earlier, later])?;
        gradients.extend(written.into_iter().map(Some).take(cx.inputs.len() - 1));
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let flops = (2 * outputs[0].elements() * inputs[1].shape[1]) as f64;
        let bytes_read = inputs.iter().map(|t| t.bytes() as f64).sum();
        Cost { flops, bytes_read, bytes_written: outputs[0].bytes() as f64 }
    }
}

impl Kernel for CausalConvWeightGrad {
    fn name(&self) -> &'static str {
        "causal_conv_weight_grad"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let s = shape(&inputs[0].shape, self.taps);
        let (mut dw, mut d_bias) = (RefTensor::zeros(&outputs[0].shape), RefTensor::zeros(&outputs[1].shape));
        each_term(s, |later, c, k, earlier| {
            dw.data[c * s.taps + k] += inputs[1].data[later] * inputs[0].data[earlier];
        });
        inputs[1].data.iter().enumerate().for_each(|(i, g)| d_bias.data[i % s.channels] += g);
        vec![dw, d_bias]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = shape(&call.input(0).shape, self.taps);
        conv_backward_weight(s, call.f32(0), call.f32(1), call.out_f32(0), Some(call.out_f32(1)));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let s = shape(&lowering.input(0).shape, self.taps);
        // Sums over all of time in two steps of about equal length: short chains of additions, and threads for all.
        let (parts, bytes) = batches(lowering, s)?;
        let longest = parts[0].len() * s.time;
        let segment = ((longest as f64).sqrt() as usize).clamp(32, 1024);
        let row = (s.taps + 1) * s.channels;
        let sums = lowering.scratch(4 * (longest.div_ceil(segment) * row) as u64);
        // Nothing to read is bound as four bytes.
        let (ty, lanes) = if longest == 0 { ("f32", 1) } else { lanes(s.channels) };
        let template = crate::shader!("conv.wgsl");
        for part in parts {
            let span = part.start as u64 * bytes..part.end as u64 * bytes;
            let rows = part.len() * s.time;
            let segments = rows.div_ceil(segment);
            if segments > 0 {
                let read = |i| lowering.read_part(Buf::In(i), span.clone());
                let binds = [read(0), read(1), lowering.write(sums)];
                let params = Params::new().u32(rows).u32(s.time).u32(s.channels / lanes).u32(s.taps);
                let params = params.u32(segment).u32(segments);
                let groups = lowering.line((segments * row / lanes).div_ceil(64));
                let variables = context! { stage => "partial", T => ty };
                lowering.dispatch("conv/partial", template, variables, &binds, params, groups)?;
            }
            let binds = [lowering.read(sums), lowering.write(Buf::Out(0)), lowering.write(Buf::Out(1))];
            let params = Params::new().u32(segments).u32(s.channels).u32(s.taps).u32(usize::from(part.start > 0));
            let groups = lowering.line(row.div_ceil(64));
            let variables = context! { stage => "total", T => "f32" };
            lowering.dispatch("conv/total", template, variables, &binds, params, groups)?;
        }
        Ok(())
    }
}

impl Op for CausalConvWeightGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        match inputs {
            [x, dy] if x == dy && x.dtype == DType::F32 && x.rank() == 3 && self.taps > 0 => {
                let channels = x.shape[2];
                Ok(vec![TensorType::f32(&[channels, self.taps]), TensorType::f32(&[channels])])
            }
            _ => Err("x and dy must be f32 [B, T, C] and at least one tap is needed".into()),
        }
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (x, dy, gw, gb) = (cx.inputs[0], cx.inputs[1], cx.grad(0), cx.grad(1));
        let dx = cx.graph.apply1(CausalConv { reverse: true }, &[dy, gw])?;
        let d_dy = cx.graph.apply1(CausalConv { reverse: false }, &[x, gw, gb])?;
        Ok(vec![Some(dx), Some(d_dy)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes = |types: &[TensorType]| types.iter().map(|t| t.bytes() as f64).sum();
        let flops = (inputs[0].elements() * (2 * self.taps + 1)) as f64;
        Cost { flops, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
    }
}

impl Graph {
    /// Depthwise causal convolution of `x [B, T, C]` with `w [C, K]` (tap 0 is the current token) and `bias [C]`.
    pub fn causal_conv(&mut self, x: Value, w: Value, bias: Option<Value>) -> Result<Value> {
        let mut operands = vec![x, w];
        operands.extend(bias);
        self.apply1(CausalConv { reverse: false }, &operands)
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("causal_conv", cases).timed(sizes),
        Spec::new("causal_conv_weight_grad", weight_grad_cases).timed(|| TIMED.iter().map(weight_grad_case).collect()),
    ]
}

/// (x, taps)
const TIMED: [([usize; 3], usize); 2] = [([8, 256, 384], 4), ([8, 2048, 1024], 4)];

fn sizes() -> Vec<Case> {
    let case = |(x, taps): ([usize; 3], usize)| {
        let inputs = vec![Sample::normal(&x), Sample::normal(&[x[2], taps]), Sample::normal(&[x[2]])];
        Case::new(format!("{x:?} {taps} taps bias"), CausalConv { reverse: false }, inputs)
    };
    TIMED.map(case).into()
}

/// (x, taps)
const SHAPES: &[([usize; 3], usize)] = &[
    ([1, 1, 1], 1),
    ([2, 3, 4], 4),
    ([2, 3, 5], 7),
    ([3, 33, 8], 3),
    ([1, 65, 7], 4),
    ([2, 129, 12], 2),
    ([0, 3, 4], 2),
    // More than 1 MiB.
    ([6, 211, 220], 4),
    ([2, 2053, 3], 3),
];

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for &(x, taps) in SHAPES {
        let operands = || vec![Sample::normal(&x), Sample::normal(&[x[2], taps])];
        let with_bias = [operands(), vec![Sample::normal(&[x[2]])]].concat();
        let label = format!("{x:?} {taps} taps");
        cases.push(Case::new(format!("{label} bias"), CausalConv { reverse: false }, with_bias));
        cases.push(Case::new(label.clone(), CausalConv { reverse: false }, operands()));
        cases.push(Case::new(format!("{label} reversed"), CausalConv { reverse: true }, operands()));
    }
    cases
}

fn weight_grad_case(&(x, taps): &([usize; 3], usize)) -> Case {
    let operands = vec![Sample::normal(&x), Sample::normal(&x)];
    Case::new(format!("{x:?} {taps} taps"), CausalConvWeightGrad { taps }, operands).cotangents(&[0, 1])
}

fn weight_grad_cases() -> Vec<Case> {
    SHAPES.iter().map(weight_grad_case).collect()
}
