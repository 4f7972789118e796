//! Reductions over one or several axes: sum, mean, max, min, sum of squares.

pub(crate) mod gpu;

use super::{Case, Graph, Op, Sample, Spec};
use crate::Result;
use crate::device::gpu::{Buf, Lowering};
use crate::device::{CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Mean,
    Max,
    Min,
    SumSquares,
}

/// Reduces neighbouring axes `axes.0 .. axes.1`, which keep length 1 when `keep`. Over no element: 0 (sum, sum of squares).
#[derive(Clone, Debug)]
pub struct Reduce {
    pub kind: Reduction,
    pub axes: (usize, usize),
    pub keep: bool,
}

impl Reduce {
    /// (outer, length, inner): the input as three axes, of which the middle one is reduced.
    fn split(&self, shape: &[usize]) -> (usize, usize, usize) {
        let (a, b) = self.axes;
        (shape[..a].iter().product(), shape[a..b].iter().product(), shape[b..].iter().product())
    }
}

impl Kernel for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (outer, length, inner) = self.split(&inputs[0].shape);
        let mut out = RefTensor::zeros(&outputs[0].shape);
        for o in 0..outer {
            for i in 0..inner {
                let values = (0..length).map(|l| inputs[0].data[(o * length + l) * inner + i]);
                out.data[o * inner + i] = match self.kind {
                    Reduction::Sum => values.sum(),
                    Reduction::Mean => values.sum::<f64>() / length as f64,
                    Reduction::Max => values.fold(f64::NEG_INFINITY, f64::max),
                    Reduction::Min => values.fold(f64::INFINITY, f64::min),
                    Reduction::SumSquares => values.map(|v| v * v).sum(),
                };
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        use kernels_cpu::reduce::{Kind, reduce};
        let (outer, length, inner) = self.split(&call.input(0).shape);
        let kind = match self.kind {
            Reduction::Sum => Kind::Sum,
            Reduction::Mean => Kind::Mean,
            Reduction::Max => Kind::Max,
            Reduction::Min => Kind::Min,
            Reduction::SumSquares => Kind::SumSq,
        };
        reduce(kind, call.f32(0), outer, length, inner, call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (outer, length, inner) = self.split(&lowering.input(0).shape);
        if outer * inner == 0 {
            return Ok(());
        }
        gpu::lower(lowering, self.kind, (Buf::In(0), Buf::Out(0)), (outer, length, inner))
    }
}

impl Op for Reduce {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let (a, b) = self.axes;
        let x = &inputs[0];
        if a >= b || b > x.rank() || x.dtype != DType::F32 {
            return Err(format!("axes {a}..{b} of an f32 tensor cannot be reduced in {x}"));
        }
        let (_, length, _) = self.split(&x.shape);
        if length == 0 && !matches!(self.kind, Reduction::Sum | Reduction::SumSquares) {
            return Err(format!("{:?} over no element", self.kind));
        }
        let middle = if self.keep { vec![1; b - a] } else { vec![] };
        let shape = [&x.shape[..a], &middle, &x.shape[b..]].concat();
        Ok(vec![TensorType::f32(&shape)])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (x, y, g) = (cx.inputs[0], cx.outputs[0], cx.grad(0));
        let shape = cx.graph.shape(x).to_vec();
        let (a, b) = self.axes;
        let kept: Vec<usize> = (0..shape.len()).map(|i| if (a..b).contains(&i) { 1 } else { shape[i] }).collect();
        let g = cx.graph.reshape(g, &kept)?;
        let (_, length, _) = self.split(&shape);
        Ok(vec![Some(match self.kind {
            Reduction::Sum => cx.graph.broadcast_to(g, &shape)?,
            Reduction::Mean => {
                let g = cx.graph.scale(g, 1.0 / length as f32)?;
                cx.graph.broadcast_to(g, &shape)?
            }
            Reduction::SumSquares => {
                let twice = cx.graph.scale(x, 2.0)?;
                cx.graph.mul(twice, g)?
            }
            Reduction::Max | Reduction::Min => {
                // Ties share the gradient equally.
                let y = cx.graph.reshape(y, &kept)?;
                let hit = cx.graph.equal(x, y)?;
                let hits = cx.graph.reduce(hit, Reduction::Sum, self.axes, true)?;
                let share = cx.graph.div(g, hits)?;
                cx.graph.mul(hit, share)?
            }
        })])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> crate::device::Cost {
        let bytes = |t: &TensorType| t.bytes() as f64;
        crate::device::Cost {
            flops: inputs[0].elements() as f64,
            bytes_read: bytes(&inputs[0]),
            bytes_written: bytes(&outputs[0]),
        }
    }
}

impl Graph {
    /// Reduces neighbouring axes `axes.0 .. axes.1`.
    pub fn reduce(&mut self, x: Value, kind: Reduction, axes: (usize, usize), keep: bool) -> Result<Value> {
        self.apply1(Reduce { kind, axes, keep }, &[x])
    }
    /// The sum of all elements, a scalar.
    pub fn sum_all(&mut self, x: Value) -> Result<Value> {
        self.reduce_all(x, Reduction::Sum)
    }
    /// All elements reduced to a scalar.
    pub fn reduce_all(&mut self, x: Value, kind: Reduction) -> Result<Value> {
        let n = self.ty(x).elements();
        let flat = self.reshape(x, &[n])?;
        self.reduce(flat, kind, (0, 1), false)
    }
    /// Sums away broadcasting: the gradient of using a tensor of `shape` as one of `x`'s shape.
    pub fn sum_to(&mut self, x: Value, shape: &[usize]) -> Result<Value> {
        let mut x = x;
        let lead = self.shape(x).len() - shape.len();
        // Runs of neighbouring axes that were broadcast, the last first.
        let mut axis = self.shape(x).len();
        while axis > 0 {
            let wide = |g: &Graph, k: usize| k < lead || shape[k - lead] == 1 && g.shape(x)[k] != 1;
            let end = axis;
            while axis > 0 && wide(self, axis - 1) {
                axis -= 1;
            }
            if axis < end {
                x = self.reduce(x, Reduction::Sum, (axis, end), true)?;
            } else {
                axis -= 1;
            }
        }
        self.reshape(x, shape)
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("reduce", cases).timed(sizes)]
}

fn sizes() -> Vec<Case> {
    let case = |kind: Reduction, shape: &[usize], axes: (usize, usize)| {
        let label = format!("{kind:?} {shape:?} over {axes:?}");
        Case::new(label, Reduce { kind, axes, keep: false }, vec![Sample::normal(shape)])
    };
    vec![
        case(Reduction::Sum, &[2048, 1536], (0, 1)),
        case(Reduction::SumSquares, &[4096, 4096], (0, 2)),
        case(Reduction::Sum, &[4096, 4096], (1, 2)),
        case(Reduction::Sum, &[4096, 4096], (0, 1)),
        case(Reduction::Max, &[2048, 384], (1, 2)),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes: &[(&[usize], (usize, usize))] = &[
        (&[7], (0, 1)),
        (&[1, 1], (0, 2)),
        (&[5, 33], (1, 2)),
        (&[5, 33], (0, 1)),
        (&[3, 4, 5], (1, 2)),
        (&[3, 4, 5, 2], (1, 3)),
        (&[257, 129], (0, 2)),
        (&[3, 1025], (1, 2)),
        (&[1025, 3], (0, 1)),
        (&[3, 130, 8], (1, 2)),
    ];
    for kind in [Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min, Reduction::SumSquares] {
        for (shape, axes) in shapes {
            for keep in [false, true] {
                let label = format!("{kind:?} {shape:?} over {axes:?}{}", if keep { " kept" } else { "" });
                cases.push(Case::new(label, Reduce { kind, axes: *axes, keep }, vec![Sample::normal(shape)]));
            }
        }
    }
    let empty = Reduce { kind: Reduction::Sum, axes: (0, 1), keep: false };
    // Long lines and whole tensors are reduced in stages; these are also larger than the smallest bindings that are tested.
    let long: &[(&[usize], (usize, usize))] = &[
        (&[300_007], (0, 1)),
        (&[2, 150_000], (1, 2)),
        (&[20_011, 17], (0, 1)),
        (&[3, 2_000, 64], (1, 2)),
        (&[600, 601], (1, 2)),
    ];
    for (shape, axes) in long {
        for kind in [Reduction::Sum, Reduction::SumSquares, Reduction::Max] {
            let op = Reduce { kind, axes: *axes, keep: false };
            cases.push(Case::new(format!("{kind:?} {shape:?} over {axes:?}"), op, vec![Sample::normal(shape)]));
        }
    }
    cases.push(Case::new("Sum of nothing", empty.clone(), vec![Sample::normal(&[0, 3])]));
    cases.push(Case::new("Sum of nothing, in fours", empty, vec![Sample::normal(&[0, 4])]));
    cases
}
