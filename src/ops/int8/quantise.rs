//! Between f32 and int8 with scales.

use super::{check, scales_shape};
use crate::device::gpu::{Bind, Buf, Lowering, Params};
use crate::device::{CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Graph, Op, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::int8;
use minijinja::context;

/// `scale * q`: q int8 [.., C] and scales f32 [.., ceil(C / group)] to f32 [.., C].
#[derive(Clone, Debug)]
pub struct Dequantize {
    pub group: usize,
}

/// f32 [.., C] to int8 [.., C] and scales f32 [.., ceil(C / group)]. A group of zeros has scale 0. The arithmetic is f32 on every
/// executor, the reference too: that is what defines which way a number between two steps goes (ties to even). No gradient.
#[derive(Clone, Debug)]
pub struct QuantizeRows {
    pub group: usize,
}

/// The scale of a group and the factor that numbers are multiplied by before rounding.
pub(in crate::ops) fn group_scale(x: &[f64]) -> (f32, f32) {
    let scale = x.iter().fold(0.0f32, |m, v| m.max((*v as f32).abs())) / 127.0;
    if scale >= f32::MIN_POSITIVE { (scale, 1.0 / scale) } else { (0.0, 0.0) }
}

pub(in crate::ops) fn round(x: f64, inverse: f32) -> f64 {
    f64::from((x as f32 * inverse).clamp(-127.0, 127.0).round_ties_even())
}

impl Kernel for Dequantize {
    fn name(&self) -> &'static str {
        "dequantize"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (_, columns) = outputs[0].rows();
        let groups = columns.div_ceil(self.group);
        let value = |(i, q): (usize, &f64)| {
            let (row, column) = (i / columns, i % columns);
            q * inputs[1].data[row * groups + column / self.group]
        };
        vec![RefTensor::new(&outputs[0].shape, inputs[0].data.iter().enumerate().map(value).collect())]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (rows, columns) = call.output(0).rows();
        if rows * columns > 0 {
            int8::dequantize(rows, columns, self.group, call.i8(0), call.f32(1), call.out_f32(0));
        }
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, columns) = l.output(0).rows();
        let groups = columns.div_ceil(self.group);
        let bytes = [columns as u64, 4 * columns as u64, 4 * groups as u64];
        // A quad of one row and one group is written as a vec4.
        let quads = columns.is_multiple_of(4) && (self.group.is_multiple_of(4) || groups == 1);
        for r in l.chunks(rows, &bytes, columns as f64)? {
            let part = |bytes: u64| r.start as u64 * bytes..r.end as u64 * bytes;
            let binds = [
                l.write_part(Buf::Out(0), part(bytes[1])),
                l.read_part(Buf::In(0), part(bytes[0])),
                l.read_part(Buf::In(1), part(bytes[2])),
            ];
            let elements = r.len() * columns;
            let params = Params::new().u32(elements).u32(columns).u32(self.group.min(columns)).u32(groups);
            let grid = l.line(elements.div_ceil(4).div_ceil(64));
            let variables = context! { quads };
            l.dispatch("dequantize", crate::shader!("int8_dequantize.wgsl"), variables, &binds, params, grid)?;
        }
        Ok(())
    }
}

impl Op for Dequantize {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [q, scales] = inputs else { return Err("int8 values and their scales are needed".into()) };
        check(q, scales, self.group)?;
        Ok(vec![TensorType::f32(&q.shape)])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        constant_scales(cx, 1)?;
        Ok(vec![None, None])
    }
}

/// Quantised weights are constants: an error where someone wants to train their scales.
pub(super) fn constant_scales(cx: &Gradient, input: usize) -> Result<()> {
    if cx.needs(input) {
        let name = cx.graph.name(cx.inputs[input]);
        return Err(Error::Graph(format!("the scales '{name}' of int8 weights have no gradient: train f32 weights")));
    }
    Ok(())
}

/// Where and how an f32 matrix is quantised on a GPU.
pub(in crate::ops) struct Quantising {
    pub rows: usize,
    pub columns: usize,
    /// Bytes between rows of the result, a multiple of 4 or `columns`; those beyond `columns` become 0.
    pub stride: usize,
    pub group: usize,
    pub x: Bind,
    pub q: Bind,
    pub scales: Bind,
}

impl Quantising {
    /// Adds the two dispatches: scales, then values.
    pub fn dispatch(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let groups = self.columns.div_ceil(self.group);
        let group = self.group.min(self.columns);
        // A workgroup looks for each greatest magnitude; alone on devices where barriers are slow.
        let lanes = if l.caps.software { 1 } else { 64 };
        let params = |count: usize| Params::new().u32(count).u32(self.columns).u32(group).u32(groups).u32(self.stride);
        let count = self.rows * groups;
        let grid = l.line(if lanes == 1 { count.div_ceil(64) } else { count });
        let binds = [self.scales, self.x];
        let template = crate::shader!("int8_scales.wgsl");
        l.dispatch("quantize/scales", template, context! { lanes }, &binds, params(count), grid)?;
        let words = (self.rows * self.stride).div_ceil(4);
        let binds = [Bind { write: true, ..self.q }, self.x, Bind { write: false, ..self.scales }];
        let template = crate::shader!("int8_quantize.wgsl");
        let grid = l.line(words.div_ceil(64));
        l.dispatch("quantize/values", template, context! {}, &binds, params(self.rows * self.stride), grid)
    }
}

impl Kernel for QuantizeRows {
    fn name(&self) -> &'static str {
        "quantize_rows"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (_, columns) = outputs[0].rows();
        let (mut q, mut scales) = (Vec::new(), Vec::new());
        for row in inputs[0].data.chunks(columns.max(1)) {
            for group in row.chunks(self.group) {
                let (scale, inverse) = group_scale(group);
                scales.push(f64::from(scale));
                q.extend(group.iter().map(|x| round(*x, inverse)));
            }
        }
        vec![RefTensor::new(&outputs[0].shape, q), RefTensor::new(&outputs[1].shape, scales)]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (rows, columns) = call.output(0).rows();
        if rows * columns > 0 {
            int8::quantize(rows, columns, self.group, call.f32(0), call.out_i8(0), call.out_f32(1));
        }
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, columns) = l.output(0).rows();
        let groups = columns.div_ceil(self.group);
        let bytes = [4 * columns as u64, columns as u64, 4 * groups as u64];
        for r in l.chunks(rows, &bytes, 4.0 * columns as f64)? {
            let part = |bytes: u64| r.start as u64 * bytes..r.end as u64 * bytes;
            let quantising = Quantising {
                rows: r.len(),
                columns,
                stride: columns,
                group: self.group,
                x: l.read_part(Buf::In(0), part(bytes[0])),
                q: l.write_part(Buf::Out(0), part(bytes[1])),
                scales: l.write_part(Buf::Out(1), part(bytes[2])),
            };
            quantising.dispatch(l)?;
        }
        Ok(())
    }
}

impl Op for QuantizeRows {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("one operand is needed".into()) };
        if x.dtype != DType::F32 {
            return Err("only f32 values can be quantised".into());
        }
        let scales = scales_shape(&x.shape, self.group)?;
        Ok(vec![TensorType::new(DType::I8, &x.shape), TensorType::f32(&scales)])
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }
}

impl Graph {
    /// int8 `q` [.., C] with `scales` [.., ceil(C / group)] as f32 [.., C].
    pub fn dequantize(&mut self, q: Value, scales: Value, group: usize) -> Result<Value> {
        self.apply1(Dequantize { group }, &[q, scales])
    }
    /// `x` [.., C] as int8 [.., C] and scales [.., ceil(C / group)].
    pub fn quantize_rows(&mut self, x: Value, group: usize) -> Result<(Value, Value)> {
        let outputs = self.apply(QuantizeRows { group }, &[x])?;
        Ok((outputs[0], outputs[1]))
    }
}
