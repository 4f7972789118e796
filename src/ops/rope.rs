//! Rotary position embedding (Su et al. 2021). The tables of cosines and sines are made on the host in f64: WGSL's built-in
//! sine and cosine are far too coarse at large angles.

use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, HostTensor, RefTensor, TensorType};
use crate::{Error, Result};
pub use kernels_cpu::rope::Layout;
use minijinja::context;

/// Rotates the first `R` elements of every head of `x [B, T, H, D]` by the angles of its position; the rest is copied.
/// Inputs: `x`; tables `cos`, `sin` `[positions, R/2]`; optionally i32 positions: `[B, T]` (each token's own; `offset` is then not
/// used) or a single element that is added to `offset`. Token t is at position `offset + t` otherwise.
#[derive(Clone, Debug)]
pub struct Rope {
    pub offset: usize,
    pub layout: Layout,
    /// Rotates back: the gradient.
    pub inverse: bool,
}

/// What the optional fourth input holds.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    None,
    Offset,
    Tokens,
}

fn source(x: &TensorType, positions: Option<&TensorType>) -> Source {
    match positions {
        None => Source::None,
        Some(p) if p.shape == x.shape[..2] && p.rank() == 2 => Source::Tokens,
        Some(_) => Source::Offset,
    }
}

/// Tables for `positions` positions and `rot` rotated elements: `cos, sin [positions, rot/2]`, angle `p base^(-2i/rot)` in f64.
pub fn rope_tables(positions: usize, rot: usize, base: f64) -> (HostTensor, HostTensor) {
    let (cos, sin) = kernels_cpu::rope::tables(positions, rot, base);
    (HostTensor::f32(&[positions, rot / 2], cos), HostTensor::f32(&[positions, rot / 2], sin))
}

/// Tables for the pairs whose angles grow by `frequencies` radians a token, times `factor` (computed in f64).
pub fn rope_tables_of(positions: usize, frequencies: &[f64], factor: f64) -> (HostTensor, HostTensor) {
    let angle = |i: usize| (i / frequencies.len()) as f64 * frequencies[i % frequencies.len()];
    let table = |f: fn(f64) -> f64| {
        let values = (0..positions * frequencies.len()).map(|i| (factor * f(angle(i))) as f32).collect();
        HostTensor::f32(&[positions, frequencies.len()], values)
    };
    (table(f64::cos), table(f64::sin))
}

impl Rope {
    /// The position of token `t` of batch row `b`; `positions` are the values of the fourth input.
    fn position(&self, source: Source, positions: &[i32], b: usize, t: usize, time: usize) -> i64 {
        match source {
            Source::None => (self.offset + t) as i64,
            Source::Offset => positions[0] as i64 + (self.offset + t) as i64,
            Source::Tokens => positions[b * time + t] as i64,
        }
    }
}

impl Kernel for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let x = inputs[0];
        let [batch, time, heads, d] = x.shape[..] else { return vec![x.clone()] };
        let (rows, half) = (inputs[1].shape[0], inputs[1].shape[1]);
        let given: Vec<i32> = inputs.get(3).map_or(vec![], |p| p.data.iter().map(|&v| v as i32).collect());
        let kind = source(&outputs[0], inputs.get(3).map(|p| TensorType::i32(&p.shape)).as_ref());
        let mut y = x.clone();
        for b in 0..batch {
            for t in 0..time {
                let row = self.position(kind, &given, b, t, time).clamp(0, rows as i64 - 1) as usize;
                for h in 0..heads {
                    let at = ((b * time + t) * heads + h) * d;
                    for i in 0..half {
                        let (first, second) = match self.layout {
                            Layout::Interleaved => (at + 2 * i, at + 2 * i + 1),
                            Layout::HalfSplit => (at + i, at + half + i),
                        };
                        let (a, b) = (x.data[first], x.data[second]);
                        let c = inputs[1].data[row * half + i];
                        let s = inputs[2].data[row * half + i] * if self.inverse { -1.0 } else { 1.0 };
                        y.data[first] = a * c - b * s;
                        y.data[second] = b * c + a * s;
                    }
                }
            }
        }
        vec![y]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let [batch, time, heads, d] = call.input(0).shape[..] else { return Ok(()) };
        let (rows, half) = (call.input(1).shape[0], call.input(1).shape[1]);
        let kind = source(call.input(0), call.inputs.get(3).map(|p| &p.ty));
        let given = if kind == Source::None { &[] } else { call.i32(3) };
        let (x, cos, sin, y) = (call.f32(0), call.f32(1), call.f32(2), call.out_f32(0));
        for b in 0..batch {
            let mut t = 0;
            while t < time {
                // A run of neighbouring positions is one call; usually the whole batch row.
                let first = self.position(kind, given, b, t, time);
                let mut end = t + 1;
                while end < time && self.position(kind, given, b, end, time) == first + (end - t) as i64 {
                    end += 1;
                }
                // The first token of the run that the tables do not cover.
                let wrong = if first < 0 { first } else { first.max(rows as i64) };
                if wrong < first + (end - t) as i64 {
                    let at = t + (wrong - first) as usize;
                    return Err(Error::Graph(format!(
                        "rope: token {at} of sequence {b} is at position {wrong}, the tables cover 0..{rows}"
                    )));
                }
                let span = (b * time + t) * heads * d..(b * time + end) * heads * d;
                let (x, y, offset) = (&x[span.clone()], &mut y[span], first as usize);
                let (layout, inverse) = (self.layout, self.inverse);
                kernels_cpu::rope::rope(x, 1, end - t, heads, d, 2 * half, cos, sin, offset, layout, inverse, y);
                t = end;
            }
        }
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let [batch, time, heads, d] = lowering.input(0).shape[..] else {
            return Err(Unsupported("x is not [B, T, H, D]".into()));
        };
        let (rows, half) = (lowering.input(1).shape[0], lowering.input(1).shape[1]);
        let positions = (lowering.inputs() > 3).then(|| lowering.input(3));
        let kind = source(lowering.input(0), positions);
        // Four elements at once where the rotated part and the head divide; the tables are read in step.
        let halves = self.layout == Layout::HalfSplit;
        let wide = half > 0 && d.is_multiple_of(4) && half % if halves { 4 } else { 2 } == 0;
        let (per_head, pairs, ty, table) = match (halves, wide) {
            (true, true) => ((d - half) / 4, half / 4, "vec4<f32>", "vec4<f32>"),
            (false, true) => (d / 4, half / 2, "vec4<f32>", "vec2<f32>"),
            (_, false) => (d - half, half, "f32", "f32"),
        };
        let unit = if wide { "four elements" } else { "a pair, or an element that is copied" };
        let variables = context! {
            T => ty, C => table, unit, wide,
            layout => if halves { "half" } else { "interleaved" },
            source => match kind { Source::None => "none", Source::Offset => "offset", Source::Tokens => "tokens" },
        };
        let bytes = 4 * (heads * d) as u64;
        for tokens in lowering.chunks(batch * time, &[bytes, bytes], 3.0 * (heads * d) as f64)? {
            let part = tokens.start as u64 * bytes..tokens.end as u64 * bytes;
            let mut binds = vec![
                lowering.read_part(Buf::In(0), part.clone()),
                lowering.read(Buf::In(1)),
                lowering.read(Buf::In(2)),
            ];
            if kind != Source::None {
                binds.push(lowering.read(Buf::In(3)));
            }
            binds.push(lowering.write_part(Buf::Out(0), part));
            let units = tokens.len() * heads * per_head;
            let params = Params::new().u32(units).u32(per_head).u32(heads).u32(time).u32(tokens.start);
            let params = params.u32(pairs).u32(rows).i32(self.offset as i64);
            let params = params.f32(if self.inverse { -1.0 } else { 1.0 });
            let groups = lowering.line(units.div_ceil(64));
            let label = format!("rope/{}", if wide { "vec4" } else { "scalar" });
            lowering.dispatch(label, crate::shader!("rope.wgsl"), variables.clone(), &binds, params, groups)?;
        }
        Ok(())
    }
}

impl Op for Rope {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [x, cos, sin, rest @ ..] = inputs else { return Err("x, cos and sin are needed".into()) };
        if x.dtype != DType::F32 || x.rank() != 4 {
            return Err(format!("x must be f32 [B, T, H, D], it is {x}"));
        }
        if cos != sin
            || cos.dtype != DType::F32
            || cos.rank() != 2
            || cos.shape[0] == 0
            || 2 * cos.shape[1] > x.shape[3]
        {
            return Err(format!(
                "the tables must both be f32 [positions, R/2] with R <= {}, they are {cos}, {sin}",
                x.shape[3]
            ));
        }
        match rest {
            [] if self.offset + x.shape[1] > cos.shape[0] => {
                let (t, rows) = (x.shape[1], cos.shape[0]);
                Err(format!(
                    "{t} tokens from position {} need more than the {rows} positions of the tables",
                    self.offset
                ))
            }
            [] => Ok(vec![x.clone()]),
            [p] if p.dtype == DType::I32 && (p.elements() == 1 || p.shape == x.shape[..2]) => Ok(vec![x.clone()]),
            _ => Err("positions must be one i32 tensor: a single element or [B, T]".into()),
        }
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let mut operands = cx.inputs.clone();
        operands[0] = cx.grad(0);
        let back = cx.graph.apply1(Rope { inverse: !self.inverse, ..self.clone() }, &operands)?;
        let mut gradients = vec![None; operands.len()];
        gradients[0] = Some(back);
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let half = inputs[1].shape[1] as f64;
        let heads: usize = outputs[0].shape[..3].iter().product();
        let read = inputs.iter().map(|t| t.bytes() as f64).sum();
        Cost { flops: 6.0 * half * heads as f64, bytes_read: read, bytes_written: outputs[0].bytes() as f64 }
    }
}

impl Graph {
    /// Rotary embedding of `x [B, T, H, D]` with tables `cos`, `sin` `[positions, R/2]` (see [`rope_tables`]); token t is at position
    /// `offset + t`.
    pub fn rope(&mut self, x: Value, cos: Value, sin: Value, offset: usize, layout: Layout) -> Result<Value> {
        self.apply1(Rope { offset, layout, inverse: false }, &[x, cos, sin])
    }
    /// As `rope`, with positions known when it runs: `positions` (i32) is `[B, T]`, or one element that is the position of token 0.
    pub fn rope_at(&mut self, x: Value, cos: Value, sin: Value, positions: Value, layout: Layout) -> Result<Value> {
        self.apply1(Rope { offset: 0, layout, inverse: false }, &[x, cos, sin, positions])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("rope", cases).timed(sizes)]
}

fn sizes() -> Vec<Case> {
    let case = |shape: [usize; 4], layout: Layout| {
        let (rows, rot) = (shape[1], shape[3]);
        let (cos, sin) = kernels_cpu::rope::tables(rows, rot, 10_000.0);
        let table = |t: &[f32]| {
            let values = Values::Fixed(t.iter().map(|&v| v as f64).collect());
            Sample::new(&[rows, rot / 2], values).fixed()
        };
        let operands = vec![Sample::normal(&shape), table(&cos), table(&sin)];
        Case::new(format!("{shape:?} {layout:?}"), Rope { offset: 0, layout, inverse: false }, operands)
    };
    vec![
        case([8, 256, 6, 64], Layout::HalfSplit),
        case([8, 2048, 16, 128], Layout::HalfSplit),
        case([8, 256, 6, 64], Layout::Interleaved),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // x, R, rows of the tables
    let shapes: &[([usize; 4], usize, usize)] = &[
        ([1, 1, 1, 2], 2, 1),
        ([2, 3, 2, 5], 4, 9),
        ([2, 5, 3, 6], 6, 8),
        ([2, 4, 3, 16], 16, 7),
        ([1, 7, 2, 16], 8, 40),
        ([1, 7, 2, 12], 4, 40),
        ([2, 2, 1, 8], 0, 5),
        ([3, 65, 17, 80], 80, 70),
    ];
    for layout in [Layout::Interleaved, Layout::HalfSplit] {
        for &(shape, rot, rows) in shapes {
            let (cos, sin) = kernels_cpu::rope::tables(rows, rot, 10_000.0);
            let table = |t: &[f32]| {
                let values = Values::Fixed(t.iter().map(|&v| v as f64).collect());
                Sample::new(&[rows, rot / 2], values).fixed()
            };
            let operands = || vec![Sample::normal(&shape), table(&cos), table(&sin)];
            let slack = rows - shape[1];
            let label = |what: &str| format!("{shape:?} R {rot} {layout:?}{what}");
            for inverse in [false, true] {
                let op = Rope { offset: slack, layout, inverse };
                cases.push(Case::new(label(if inverse { " inverse" } else { "" }), op, operands()));
            }
            let op = Rope { offset: 0, layout, inverse: false };
            let mut inputs = operands();
            inputs.push(Sample::typed(DType::I32, &[], Values::Fixed(vec![slack as f64])));
            cases.push(Case::new(label(" at an offset"), op.clone(), inputs));
            let mut inputs = operands();
            inputs.push(Sample::ints(&shape[..2], 0, rows as i64));
            cases.push(Case::new(label(" at positions"), op, inputs));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, Store};
    use crate::graph::Plan;

    fn run(layout: Layout, positions: &[i32], x: &[f32]) -> Result<Vec<f32>> {
        let mut graph = Graph::new();
        let (cos, sin) = rope_tables(8, 4, 100.0);
        let (cos, sin) = (graph.constant(cos), graph.constant(sin));
        let at = graph.input("at", TensorType::i32(&[1, positions.len()]));
        let x = graph.constant(HostTensor::f32(&[1, positions.len(), 1, 4], x.to_vec()));
        let y = graph.rope_at(x, cos, sin, at, layout)?;
        graph.output("y", y);
        let mut store = Store::new(&Device::Cpu);
        let mut run = Plan::new(&graph)?.prepare(&mut store)?;
        run.write_input("at", &HostTensor::i32(&[1, positions.len()], positions.to_vec()))?;
        run.run()?;
        Ok(run.read_output("y")?.as_f32().unwrap_or(&[]).to_vec())
    }

    #[test]
    fn inner_products_depend_on_the_difference_of_positions_only() {
        let (q, k) = ([0.3f32, -1.2, 0.7, 2.0], [1.1f32, 0.4, -0.9, 0.2]);
        for layout in [Layout::Interleaved, Layout::HalfSplit] {
            let product = |i: i32, j: i32| -> f32 {
                let y = run(layout, &[i, j], &[q, k].concat()).unwrap();
                y[..4].iter().zip(&y[4..]).map(|(a, b)| a * b).sum()
            };
            for shift in 1..5 {
                assert!((product(0, 2) - product(shift, 2 + shift)).abs() < 16.0 * f32::EPSILON, "{layout:?}");
            }
            assert!((product(0, 2) - product(0, 3)).abs() > 1e-3);
        }
    }

    #[test]
    fn a_position_beyond_the_tables_is_an_error_that_names_it() {
        for (positions, token, position) in [([3, 8], 1, 8), ([7, 8], 1, 8), ([9, 1], 0, 9), ([0, -1], 1, -1)] {
            let message = run(Layout::HalfSplit, &positions, &[0.0; 8]).unwrap_err().to_string();
            assert!(message.contains(&format!("token {token} of sequence 0 is at position {position},")), "{message}");
        }
        let types = [TensorType::f32(&[1, 5, 1, 4]), TensorType::f32(&[8, 2]), TensorType::f32(&[8, 2])];
        let rope = |offset| Rope { offset, layout: Layout::HalfSplit, inverse: false };
        assert!(rope(3).infer(&types).is_ok());
        assert!(rope(4).infer(&types).is_err());
    }
}
