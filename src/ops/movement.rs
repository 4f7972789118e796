//! Moving elements without arithmetic: permute, slice, concatenate, pad. They take f32, i32 and u32.

pub(crate) mod gpu;

use super::{Case, Graph, Op, Sample, Spec};
use crate::device::gpu::{Buf, Lowering};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType, strides};
use crate::{Error, Result};
use gpu::{Axis, Copy};

#[derive(Clone, Debug, PartialEq)]
pub enum Movement {
    /// Axis i of the output is axis `axes[i]` of the input.
    Permute { axes: Vec<usize> },
    /// Elements `start .. start + len` of an axis.
    Slice { axis: usize, start: usize, len: usize },
    /// The inputs one after another along an axis.
    Concat { axis: usize },
    /// `before` and `after` elements of `value` at the ends of an axis.
    Pad { axis: usize, before: usize, after: usize, value: f32 },
}

use Movement::{Concat, Pad, Permute, Slice};

impl Movement {
    /// Where the output's element at `index` comes from: input and index in it; `None` where it is padding.
    fn origin(&self, index: &[usize], inputs: &[&RefTensor]) -> Option<(usize, Vec<usize>)> {
        let mut from = index.to_vec();
        match self {
            Permute { axes } => axes.iter().zip(index).for_each(|(a, i)| from[*a] = *i),
            Slice { axis, start, .. } => from[*axis] += start,
            Concat { axis } => {
                let mut input = 0;
                while from[*axis] >= inputs[input].shape[*axis] {
                    from[*axis] -= inputs[input].shape[*axis];
                    input += 1;
                }
                return Some((input, from));
            }
            Pad { axis, before, .. } => {
                from[*axis] = index[*axis].checked_sub(*before).filter(|i| *i < inputs[0].shape[*axis])?;
            }
        }
        Some((0, from))
    }

    /// The bits of the padding value in a tensor of this type.
    fn word(value: f32, dtype: DType) -> u32 {
        match dtype {
            DType::F32 => value.to_bits(),
            DType::I32 => value as i32 as u32,
            _ => value as u32,
        }
    }

    /// The strided copies that make the output.
    fn copies(&self, inputs: &[TensorType], output: &TensorType) -> Vec<Copy> {
        let own = strides(&output.shape);
        let one = |input: usize, shape: &[usize], src: &[usize], from: usize, to: usize| Copy {
            src: Buf::In(input),
            dst: Buf::Out(0),
            from,
            to,
            axes: (0..shape.len()).map(|i| Axis { size: shape[i], src: src[i], dst: own[i] }).collect(),
        };
        let first = strides(&inputs[0].shape);
        match self {
            Permute { axes } => {
                let src: Vec<usize> = axes.iter().map(|a| first[*a]).collect();
                vec![one(0, &output.shape, &src, 0, 0)]
            }
            Slice { axis, start, .. } => vec![one(0, &output.shape, &first, start * first[*axis], 0)],
            Pad { axis, before, .. } => vec![one(0, &inputs[0].shape, &first, 0, before * own[*axis])],
            Concat { axis } => {
                let mut at = 0;
                let part = |(i, t): (usize, &TensorType)| {
                    let to = at * own[*axis];
                    at += t.shape[*axis];
                    one(i, &t.shape, &strides(&t.shape), 0, to)
                };
                inputs.iter().enumerate().map(part).collect()
            }
        }
    }
}

impl Kernel for Movement {
    fn name(&self) -> &'static str {
        match self {
            Permute { .. } => "permute",
            Slice { .. } => "slice",
            Concat { .. } => "concat",
            Pad { .. } => "pad",
        }
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let mut out = RefTensor::zeros(&outputs[0].shape);
        let own = strides(&outputs[0].shape);
        for (at, value) in out.data.iter_mut().enumerate() {
            let index: Vec<usize> = own.iter().zip(&outputs[0].shape).map(|(s, n)| at / s % n).collect();
            *value = match (self.origin(&index, inputs), self) {
                (Some((input, from)), _) => {
                    let strides = strides(&inputs[input].shape);
                    inputs[input].data[from.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>()]
                }
                (None, Pad { value, .. }) => *value as f64,
                (None, _) => unreachable!("only padding has no origin"),
            };
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        use kernels_cpu::movement;
        // All element types are moved as words.
        let (x, shape, out) = (call.u32(0), &call.input(0).shape, call.out_u32(0));
        let along = |axis: usize, n: usize| (0..shape.len()).map(|i| if i == axis { n } else { 0 }).collect::<Vec<_>>();
        match self {
            Permute { axes } => movement::permute(x, shape, axes, out),
            Slice { axis, start, .. } => {
                let steps = vec![1; shape.len()];
                movement::slice(x, shape, &along(*axis, *start), &steps, &call.output(0).shape, out);
            }
            Concat { axis } => {
                let parts: Vec<(&[u32], &[usize])> =
                    (0..call.inputs.len()).map(|i| (call.u32(i), call.input(i).shape.as_slice())).collect();
                movement::concat(&parts, *axis, out);
            }
            Pad { axis, before, after, value } => {
                let word = Self::word(*value, call.output(0).dtype);
                movement::pad(x, shape, &along(*axis, *before), &along(*axis, *after), word, out);
            }
        }
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let inputs: Vec<TensorType> = (0..lowering.inputs()).map(|i| lowering.input(i).clone()).collect();
        let output = lowering.output(0).clone();
        if let Pad { value, .. } = self {
            gpu::fill(lowering, Buf::Out(0), output.elements(), Self::word(*value, output.dtype))?;
        }
        self.copies(&inputs, &output).into_iter().try_for_each(|c| c.lower(lowering))
    }
}

impl Op for Movement {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let Some(x) = inputs.first() else { return Err("no operand".into()) };
        if let Some(t) = inputs.iter().find(|t| t.dtype.bytes() != 4 || t.dtype != x.dtype) {
            return Err(format!("{t} cannot be moved with {}: operands are of one type of four bytes", x.dtype));
        }
        let mut shape = x.shape.clone();
        if let Slice { axis, .. } | Concat { axis } | Pad { axis, .. } = self
            && *axis >= shape.len()
        {
            return Err(format!("there is no axis {axis}"));
        }
        match self {
            Permute { axes } => {
                let mut sorted = axes.clone();
                sorted.sort_unstable();
                if !sorted.into_iter().eq(0..shape.len()) {
                    return Err(format!("{axes:?} does not order {} axes", shape.len()));
                }
                shape = axes.iter().map(|a| x.shape[*a]).collect();
            }
            Slice { axis, start, len } => {
                if start.checked_add(*len).is_none_or(|end| end > shape[*axis]) {
                    return Err(format!("{len} elements from {start} are not in axis {axis}"));
                }
                shape[*axis] = *len;
            }
            Concat { axis } => {
                let fits = |t: &TensorType| {
                    t.rank() == x.rank() && (0..x.rank()).all(|i| i == *axis || t.shape[i] == x.shape[i])
                };
                if !inputs.iter().all(fits) {
                    return Err(format!("shapes may differ along axis {axis} only"));
                }
                shape[*axis] = inputs.iter().map(|t| t.shape[*axis]).sum();
            }
            Pad { axis, before, after, .. } => shape[*axis] += before + after,
        }
        if inputs.len() != 1 && !matches!(self, Concat { .. }) {
            return Err(format!("one operand is expected, not {}", inputs.len()));
        }
        Ok(vec![TensorType::new(x.dtype, &shape)])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let g = cx.grad(0);
        let shape = cx.graph.shape(cx.inputs[0]).to_vec();
        Ok(match *self {
            Permute { ref axes } => {
                let mut inverse = vec![0; axes.len()];
                axes.iter().enumerate().for_each(|(i, a)| inverse[*a] = i);
                vec![Some(cx.graph.permute(g, &inverse)?)]
            }
            Slice { axis, start, len } => {
                vec![Some(cx.graph.pad(g, axis, start, shape[axis] - start - len, 0.0)?)]
            }
            Pad { axis, before, .. } => vec![Some(cx.graph.slice(g, axis, before, shape[axis])?)],
            Concat { axis } => {
                let (mut at, mut grads) = (0, Vec::new());
                for i in 0..cx.inputs.len() {
                    let len = cx.graph.shape(cx.inputs[i])[axis];
                    grads.push(if cx.needs(i) { Some(cx.graph.slice(g, axis, at, len)?) } else { None });
                    at += len;
                }
                grads
            }
        })
    }

    fn cost(&self, _: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes = outputs[0].bytes() as f64;
        Cost { flops: 0.0, bytes_read: bytes, bytes_written: bytes }
    }
}

impl Graph {
    /// `x` with its axes in another order: axis i of the result is axis `axes[i]` of `x`. Free where no element has to move.
    pub fn permute(&mut self, x: Value, axes: &[usize]) -> Result<Value> {
        let shape = self.shape(x);
        // Axes of one element do not matter to the order in memory.
        let long: Vec<usize> = axes.iter().copied().filter(|a| shape.get(*a).is_some_and(|n| *n != 1)).collect();
        let out = Permute { axes: axes.to_vec() }.infer(&[self.ty(x).clone()]);
        match out {
            Ok(out) if long.is_sorted() => self.reshape(x, &out[0].shape),
            _ => self.apply1(Permute { axes: axes.to_vec() }, &[x]),
        }
    }

    /// `x` with two axes exchanged.
    pub fn transpose(&mut self, x: Value, a: usize, b: usize) -> Result<Value> {
        let rank = self.shape(x).len();
        if a >= rank || b >= rank {
            let (name, ty) = (self.name(x), self.ty(x));
            return Err(Error::Graph(format!("axes {a} and {b} of '{name}', which is {ty}, cannot be exchanged")));
        }
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(a, b);
        self.permute(x, &axes)
    }

    /// Elements `start .. start + len` of an axis.
    pub fn slice(&mut self, x: Value, axis: usize, start: usize, len: usize) -> Result<Value> {
        if start == 0 && self.shape(x).get(axis) == Some(&len) {
            return Ok(x);
        }
        self.apply1(Slice { axis, start, len }, &[x])
    }

    /// `parts` one after another along an axis; their shapes may differ there only.
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value> {
        match parts {
            [] => Err(Error::Graph("concat of no tensor".into())),
            [one] if axis < self.shape(*one).len() => Ok(*one),
            _ => self.apply1(Concat { axis }, parts),
        }
    }

    /// `x` with `before` and `after` elements of `value` at the ends of an axis.
    pub fn pad(&mut self, x: Value, axis: usize, before: usize, after: usize, value: f32) -> Result<Value> {
        if before + after == 0 && axis < self.shape(x).len() {
            return Ok(x);
        }
        self.apply1(Pad { axis, before, after, value }, &[x])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("movement", cases).timed(sizes)]
}

fn sizes() -> Vec<Case> {
    let case = |label: &str, op: Movement, shapes: &[&[usize]]| {
        let label = format!("{label} {:?}", shapes[0]);
        Case::new(label, op, shapes.iter().map(|s| Sample::normal(s)).collect())
    };
    let swap_heads = || Permute { axes: vec![0, 2, 1, 3] };
    vec![
        case("transpose", Permute { axes: vec![1, 0] }, &[&[4096, 4096]]),
        case("heads first", swap_heads(), &[&[8, 256, 6, 64]]),
        case("transpose", Permute { axes: vec![1, 0] }, &[&[2048, 384]]),
        case("third of the columns", Slice { axis: 1, start: 384, len: 384 }, &[&[2048, 1152]]),
        case("two side by side", Concat { axis: 1 }, &[&[2048, 384], &[2048, 384]]),
        case("one row before", Pad { axis: 1, before: 1, after: 0, value: 0.0 }, &[&[8, 255, 384]]),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |op: Movement, shapes: &[&[usize]]| {
        let label = format!("{op:?} of {shapes:?}");
        cases.push(Case::new(label.clone(), op.clone(), shapes.iter().map(|s| Sample::normal(s)).collect()));
        if shapes[0].iter().product::<usize>() < 10_000 {
            let ints = shapes.iter().map(|s| Sample::ints(s, -1000, 1000)).collect();
            cases.push(Case::new(format!("{label}, i32"), op, ints).forward_only());
        }
    };
    let permutations: [(&[usize], &[usize]); 9] = [
        (&[1, 0], &[1, 1]),
        (&[1, 0], &[7, 13]),
        (&[1, 0], &[64, 33]),
        (&[0, 2, 1, 3], &[2, 5, 3, 8]),
        (&[2, 0, 1], &[4, 3, 5]),
        (&[3, 2, 1, 0], &[2, 3, 4, 5]),
        (&[1, 0], &[0, 3]),
        (&[4, 1, 3, 0, 2], &[2, 3, 4, 3, 8]),
        (&[1, 0], &[513, 601]),
    ];
    for (axes, shape) in permutations {
        add(Permute { axes: axes.to_vec() }, &[shape]);
    }
    add(Permute { axes: vec![0, 2, 1, 3] }, &[&[3, 129, 12, 64]]);
    for (shape, axis, start, len) in
        [(&[9][..], 0, 2, 5), (&[4, 12], 1, 4, 8), (&[4, 12], 1, 3, 7), (&[5, 6, 8], 1, 2, 3), (&[3, 4], 0, 1, 0)]
    {
        add(Slice { axis, start, len }, &[shape]);
        let n = shape[axis];
        let part: Vec<usize> = (0..shape.len()).map(|i| if i == axis { len } else { shape[i] }).collect();
        add(Pad { axis, before: start, after: n - start - len, value: 0.0 }, &[&part]);
    }
    add(Pad { axis: 1, before: 1, after: 2, value: -7.0 }, &[&[3, 4, 4]]);
    add(Slice { axis: 1, start: 200, len: 301 }, &[&[700, 601]]);
    add(Pad { axis: 0, before: 3, after: 50_000, value: 1.0 }, &[&[50_001, 3]]);
    add(Concat { axis: 0 }, &[&[2, 3], &[1, 3]]);
    add(Concat { axis: 1 }, &[&[2, 3], &[2, 5], &[2, 1], &[2, 0]]);
    add(Concat { axis: 2 }, &[&[3, 2, 4], &[3, 2, 8]]);
    // More operands than a kernel may bind.
    add(Concat { axis: 0 }, &[&[3, 4][..]; 12]);
    add(Concat { axis: 1 }, &[&[500, 300], &[500, 301]]);
    cases
}
