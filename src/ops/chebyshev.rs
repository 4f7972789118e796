//! Chebyshev filters over time, y = sum_k c_k T_k(L) x with coefficients per channel (Hammond et al. 2011; Defferrard
//! et al. 2016): for the rescaled normalised Laplacian of a path, for a given small matrix, and the causal all-pass
//! bank, whose terms are powers of the section y_t = a y_{t-1} + x_{t-1} - a x_t. One dispatch each; the terms never
//! reach memory.

mod definition;
#[cfg(test)]
mod tests;

use super::sequence::{Piece, Sequence};
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::Result;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use kernels_cpu::allpass::{allpass_bank, allpass_bank_backward_params};
use kernels_cpu::chebyshev::{
    ChebShape, MAX_ORDER, cheb_matrix, cheb_matrix_backward, cheb_path, cheb_path_backward_coeffs,
};
use minijinja::context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// T_k of the path graph on T nodes; one node has no edge, and L = 0.
    Path,
    /// B^k of the all-pass section with pole a [C], operand 2; `reverse` runs time backward (the adjoint).
    Bank { reverse: bool },
    /// T_k of the matrix [T, T], operand 2, or of its transpose. The matrix is a constant: no gradient flows to it.
    Matrix { transpose: bool },
}

/// Inputs x [B, T, C], coefficients [C, order + 1] and the operand that `Terms` names; output y [B, T, C].
#[derive(Clone, Debug)]
pub struct Chebyshev {
    pub terms: Terms,
    pub order: usize,
}

/// Gradient of the parameters. Inputs x, dy and, for a bank, pole and coefficients, for a matrix the matrix; outputs
/// dcoefficients [C, order + 1] and, for a bank, dpole [C].
#[derive(Clone, Debug)]
pub struct ChebyshevGrad {
    pub terms: Terms,
    pub order: usize,
}

impl Terms {
    fn adjoint(self) -> Self {
        match self {
            Terms::Path => Terms::Path,
            Terms::Bank { reverse } => Terms::Bank { reverse: !reverse },
            Terms::Matrix { transpose } => Terms::Matrix { transpose: !transpose },
        }
    }
    fn name(self) -> &'static str {
        match self {
            Terms::Path => "path",
            Terms::Bank { .. } => "bank",
            Terms::Matrix { .. } => "matrix",
        }
    }
    fn operand(self, x: &TensorType) -> Option<TensorType> {
        match self {
            Terms::Path => None,
            Terms::Bank { .. } => Some(TensorType::f32(&[x.shape[2]])),
            Terms::Matrix { .. } => Some(TensorType::f32(&[x.shape[1], x.shape[1]])),
        }
    }
}

fn shape(x: &TensorType, order: usize) -> ChebShape {
    ChebShape { batch: x.shape[0], time: x.shape[1], channels: x.shape[2], order }
}

fn check(x: &TensorType, order: usize) -> Result<(), String> {
    if x.rank() != 3 || x.dtype != DType::F32 {
        return Err("x must be f32 [batch, time, channels]".into());
    }
    if x.shape[1] == 0 {
        return Err("x must have at least one step".into());
    }
    if order > MAX_ORDER {
        return Err(format!("order {order} is above {MAX_ORDER}"));
    }
    Ok(())
}

fn expect(have: &[TensorType], want: &[TensorType], after: &str) -> Result<(), String> {
    if have != want {
        let want: Vec<_> = want.iter().map(|t| t.to_string()).collect();
        return Err(format!("the operands after {after} must be {}", want.join(", ")));
    }
    Ok(())
}

fn transposed(l: &[f32], n: usize) -> Vec<f32> {
    (0..n * n).map(|i| l[i % n * n + i / n]).collect()
}

impl Kernel for Chebyshev {
    fn name(&self) -> &'static str {
        "chebyshev"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        vec![definition::apply(self.terms, self.order, inputs, &outputs[0])]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = shape(call.input(0), self.order);
        let (x, c, y) = (call.f32(0), call.f32(1), call.out_f32(0));
        match self.terms {
            Terms::Path => cheb_path(s, x, c, y),
            Terms::Bank { reverse } => allpass_bank(s, x, c, call.f32(2), reverse, y),
            Terms::Matrix { transpose: false } => cheb_matrix(s, call.f32(2), x, c, y),
            Terms::Matrix { transpose: true } => cheb_matrix(s, &transposed(call.f32(2), s.time), x, c, y),
        }
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        lower(l, self.terms, self.order, false)
    }
}

/// Time steps of a segment of the path filter: long enough to hide the overlap of `order` on either side.
const SEGMENT: usize = 128;

/// Steps whose share of a coefficient's gradient one thread of the matrix form adds up.
const STRETCH: usize = 64;

/// The filter, or with `gradient` the gradient of its parameters: a dispatch a piece, and then the sums of the parts'
/// shares.
fn lower(l: &mut Lowering, terms: Terms, order: usize, gradient: bool) -> Result<(), Unsupported> {
    let whole = Sequence::new(&l.input(0).shape);
    let (halo, work) = match terms {
        Terms::Path => (Some(order), 6.0 * order as f64),
        Terms::Bank { .. } => (Some(0), 8.0 * order as f64),
        Terms::Matrix { .. } => (None, 2.0 * (whole.time * order) as f64),
    };
    let mut pieces = whole.pieces(l, 2, work, halo)?;
    if terms == (Terms::Bank { reverse: true }) {
        pieces.reverse();
    }
    let bank = matches!(terms, Terms::Bank { .. });
    let cut = pieces.iter().any(|p| p.times.len() < whole.time);
    let kept = (bank && cut).then(|| l.scratch((2 * (order + 1) * whole.channels * 4) as u64));
    let shares = pieces.iter().map(|p| parts(terms, p)).max().unwrap_or(0);
    let n = whole.channels * (order + 1);
    let share = gradient.then(|| l.scratch((shares * n * 4) as u64));
    let pole_share = (gradient && bank).then(|| l.scratch((shares * whole.channels * 4) as u64));
    for (i, piece) in pieces.iter().enumerate() {
        let filter = Filter { terms, order, whole: &whole, kept, share, pole_share };
        filter.dispatch(l, piece)?;
        if let Some(share) = share {
            sum_parts(l, share, Buf::Out(0), parts(terms, piece), n, i > 0)?;
        }
        if let Some(share) = pole_share {
            sum_parts(l, share, Buf::Out(1), parts(terms, piece), whole.channels, i > 0)?;
        }
    }
    Ok(())
}

/// How many shares of the gradient a piece gives.
fn parts(terms: Terms, piece: &Piece) -> usize {
    piece.rows.len()
        * match terms {
            Terms::Path => piece.times.len().div_ceil(SEGMENT),
            Terms::Bank { .. } => 1,
            Terms::Matrix { .. } => piece.times.len().div_ceil(STRETCH),
        }
}

/// Threads of a workgroup of the matrix form.
const MATRIX_THREADS: usize = 256;

struct Filter<'a> {
    terms: Terms,
    order: usize,
    whole: &'a Sequence,
    /// Hands a bank's state from one piece of a row's time to the next.
    kept: Option<Buf>,
    /// Shares of the gradients, when these are wanted.
    share: Option<Buf>,
    pole_share: Option<Buf>,
}

impl Filter<'_> {
    fn dispatch(&self, l: &mut Lowering, piece: &Piece) -> Result<(), Unsupported> {
        let &Filter { terms, order, whole, .. } = self;
        let Piece { rows, times } = piece;
        let halo = if terms == Terms::Path { order } else { 0 };
        let seen = times.start.saturating_sub(halo)..(times.end + halo).min(whole.time);
        let (x, x_first) = whole.window(l, Buf::In(0), &Piece { rows: rows.clone(), times: seen.clone() }, false);
        let mut binds = vec![("x", x)];
        let y_first = match self.share {
            None => {
                let (y, first) = whole.window(l, Buf::Out(0), piece, true);
                binds.extend([("coeffs", l.read(Buf::In(1))), ("y", y)]);
                first
            }
            Some(share) => {
                let (dy, first) = whole.window(l, Buf::In(1), piece, false);
                binds.extend([("dy", dy), ("dcoeffs", l.write(share))]);
                first
            }
        };
        if l.inputs() > 2 {
            binds.push((if matches!(terms, Terms::Matrix { .. }) { "matrix" } else { "pole" }, l.read(Buf::In(2))));
        }
        if let Some(pole_share) = self.pole_share {
            binds.extend([("coeffs", l.read(Buf::In(3))), ("dpole", l.write(pole_share))]);
        }
        if let Some(kept) = self.kept {
            binds.push(("kept", l.write(kept)));
        }

        let channels = whole.channels;
        let (segment, segments, groups) = match terms {
            Terms::Path => {
                let segments = times.len().div_ceil(SEGMENT);
                (SEGMENT, segments, (rows.len() * segments * channels).div_ceil(64))
            }
            Terms::Bank { .. } => {
                l.loops(times.len())?;
                (times.len(), 1, (rows.len() * channels).div_ceil(64))
            }
            Terms::Matrix { .. } => {
                let block = matrix_block(l, whole)?;
                l.loops((order + 1) * (whole.time * block).div_ceil(MATRIX_THREADS) * (whole.time / 4 + 6))?;
                (block, channels.div_ceil(block), rows.len() * channels.div_ceil(block))
            }
        };
        let reverse = terms == Terms::Bank { reverse: true };
        let resumed = if reverse { times.end < whole.time } else { times.start > 0 };
        let params = Params::new().u32(rows.len()).u32(whole.time).u32(channels).u32(segment).u32(segments);
        let params = params.u32(times.start).u32(times.len()).u32(seen.start).u32(x_first).u32(y_first);
        let params = params.u32(usize::from(resumed));
        let (kind, mode) = (terms.name(), if self.share.is_some() { "params" } else { "apply" });
        let kept = self.kept.is_some();
        let variables = match terms {
            Terms::Matrix { transpose } => {
                context! { kind, mode, order, transpose, panels => 3 * whole.time * segment, stretch => STRETCH, threads => MATRIX_THREADS }
            }
            _ => context! { kind, mode, order, reverse, kept },
        };
        let (label, groups) = (format!("chebyshev/{kind}/{mode}"), l.line(groups));
        l.dispatch_named(label, crate::shader!("chebyshev.wgsl"), variables, &binds, params, groups)
    }
}

/// Channels of a workgroup of the matrix form: three columns of all of time for each.
fn matrix_block(l: &Lowering, whole: &Sequence) -> Result<usize, Unsupported> {
    let floats = l.caps.limits.workgroup_memory as usize / 4;
    let block = (floats / 3 / whole.time).min(whole.channels).min(64);
    if block == 0 {
        return Err(Unsupported(format!("three columns of {} do not fit workgroup memory", whole.time)));
    }
    Ok(block)
}

/// Adds up the parts' shares, and with `more` what `to` holds already: `to` has `n` elements.
fn sum_parts(l: &mut Lowering, from: Buf, to: Buf, parts: usize, n: usize, more: bool) -> Result<(), Unsupported> {
    let binds = [("parts", l.read(from)), ("total", l.write(to))];
    let params = Params::new().u32(parts).u32(n).u32(usize::from(more));
    let (shader, groups) = (crate::shader!("chebyshev.wgsl"), l.line(n.div_ceil(64)));
    l.dispatch_named("chebyshev/sum", shader, context! { mode => "sum" }, &binds, params, groups)
}

impl Op for Chebyshev {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let x = inputs.first().ok_or("chebyshev takes x and its coefficients")?;
        check(x, self.order)?;
        let mut want = vec![TensorType::f32(&[x.shape[2], self.order + 1])];
        want.extend(self.terms.operand(x));
        expect(&inputs[1..], &want, "x")?;
        Ok(vec![x.clone()])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (inputs, dy) = (cx.inputs.clone(), cx.grad(0));
        let bank = matches!(self.terms, Terms::Bank { .. });
        let mut result = vec![None; inputs.len()];
        if cx.needs(0) {
            let mut operands = vec![dy, inputs[1]];
            operands.extend(inputs.get(2));
            let adjoint = Chebyshev { terms: self.terms.adjoint(), order: self.order };
            result[0] = Some(cx.graph.apply1(adjoint, &operands)?);
        }
        if cx.needs(1) || bank && cx.needs(2) {
            let mut operands = vec![inputs[0], dy];
            operands.extend(inputs.get(2));
            if bank {
                operands.push(inputs[1]);
            }
            let grads = cx.graph.apply(ChebyshevGrad { terms: self.terms, order: self.order }, &operands)?;
            for (to, g) in result[1..].iter_mut().zip(grads) {
                *to = Some(g);
            }
        }
        Ok(result)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(self.terms, self.order, inputs, outputs)
    }
}

/// A term costs a product with L (or a section of the bank) and its share of the sum; a bank's gradient twice that.
fn cost(terms: Terms, order: usize, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
    let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
    let per_term = match terms {
        Terms::Matrix { .. } => 2.0 * inputs[0].shape[1] as f64 + 4.0,
        Terms::Bank { .. } if outputs.len() > 1 => 14.0,
        _ => 7.0,
    };
    let flops = inputs[0].elements() as f64 * (per_term * order as f64 + 2.0);
    Cost { flops, bytes_read: sum(inputs), bytes_written: sum(outputs) }
}

impl Kernel for ChebyshevGrad {
    fn name(&self) -> &'static str {
        "chebyshev_grad"
    }

    fn reference(&self, inputs: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
        definition::parameter_gradients(self.terms, self.order, inputs)
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = shape(call.input(0), self.order);
        let (x, dy, dc) = (call.f32(0), call.f32(1), call.out_f32(0));
        match self.terms {
            Terms::Path => cheb_path_backward_coeffs(s, x, dy, dc),
            Terms::Bank { reverse } => {
                allpass_bank_backward_params(s, x, call.f32(3), call.f32(2), reverse, dy, dc, Some(call.out_f32(1)));
            }
            Terms::Matrix { transpose } => {
                let turned = if transpose { transposed(call.f32(2), s.time) } else { vec![] };
                let l = if transpose { &turned } else { call.f32(2) };
                let (zeros, mut dx) = (vec![0.0; dc.len()], vec![0.0; x.len()]);
                cheb_matrix_backward(s, l, x, &zeros, dy, &mut dx, dc, None);
            }
        }
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        lower(l, self.terms, self.order, true)
    }
}

impl Op for ChebyshevGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let x = inputs.first().ok_or("chebyshev_grad takes x and the gradient of y")?;
        check(x, self.order)?;
        let bank = matches!(self.terms, Terms::Bank { .. });
        let dc = TensorType::f32(&[x.shape[2], self.order + 1]);
        let mut want = vec![x.clone()];
        want.extend(self.terms.operand(x));
        if bank {
            want.push(dc.clone());
        }
        expect(&inputs[1..], &want, "x")?;
        Ok(if bank { vec![dc, TensorType::f32(&[x.shape[2]])] } else { vec![dc] })
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(crate::Error::Graph("the second derivative of chebyshev is not implemented".into()))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(self.terms, self.order, inputs, outputs)
    }
}

impl Graph {
    /// y = sum_k c_k T_k(L) x over time, L the rescaled Laplacian of the path graph; x [B, T, C], coefficients [C,
    /// order + 1].
    pub fn chebyshev_path(&mut self, x: Value, coefficients: Value) -> Result<Value> {
        let order = self.order_of(coefficients);
        self.apply1(Chebyshev { terms: Terms::Path, order }, &[x, coefficients])
    }
    /// As `chebyshev_path` for the constant matrix `l` [T, T], whose spectrum should lie in [-1, 1].
    pub fn chebyshev_matrix(&mut self, x: Value, coefficients: Value, l: Value) -> Result<Value> {
        let order = self.order_of(coefficients);
        self.apply1(Chebyshev { terms: Terms::Matrix { transpose: false }, order }, &[x, coefficients, l])
    }
    /// y = sum_k c_k B^k x, B the causal all-pass section with pole `a` [C], 0 <= a < 1.
    pub fn allpass_bank(&mut self, x: Value, coefficients: Value, a: Value) -> Result<Value> {
        let order = self.order_of(coefficients);
        self.apply1(Chebyshev { terms: Terms::Bank { reverse: false }, order }, &[x, coefficients, a])
    }
    fn order_of(&self, coefficients: Value) -> usize {
        self.shape(coefficients).last().copied().unwrap_or(1).saturating_sub(1)
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("chebyshev", forward_cases).timed(|| forward(TIMED)),
        Spec::new("chebyshev_grad", gradient_cases).timed(|| gradient(TIMED)),
    ]
}

const TIMED: &[(Terms, [usize; 3], usize)] = &[
    (Terms::Path, [8, 256, 64], 8),
    (Terms::Bank { reverse: false }, [8, 256, 64], 8),
    (Terms::Matrix { transpose: false }, [8, 256, 64], 8),
    (Terms::Path, [8, 1024, 256], 16),
    (Terms::Bank { reverse: false }, [8, 1024, 256], 16),
];

const SHAPES: &[([usize; 3], usize)] = &[
    ([1, 1, 1], 0),
    ([1, 1, 2], 3),
    ([2, 2, 3], 1),
    ([1, 3, 5], 16),
    ([2, 17, 7], 8),
    ([3, 129, 33], 4),
    ([1, 300, 20], 16),
    ([0, 5, 3], 2),
];

/// Above 1 MiB: several rows of an odd size, so that pieces start anywhere, and rows that must be cut in time.
const LARGE: &[(Terms, [usize; 3], usize)] = &[
    (Terms::Path, [5, 613, 101], 3),
    (Terms::Path, [2, 1409, 193], 5),
    (Terms::Bank { reverse: false }, [5, 613, 101], 2),
    (Terms::Bank { reverse: false }, [2, 1409, 193], 3),
    (Terms::Matrix { transpose: false }, [41, 67, 101], 2),
];

const TERMS: [Terms; 5] = [
    Terms::Path,
    Terms::Bank { reverse: false },
    Terms::Bank { reverse: true },
    Terms::Matrix { transpose: false },
    Terms::Matrix { transpose: true },
];

fn operand(terms: Terms, [_, t, c]: [usize; 3]) -> Option<Sample> {
    match terms {
        Terms::Path => None,
        Terms::Bank { .. } => Some(Sample::new(&[c], Values::Uniform(0.05, 0.85))),
        // Entries this small keep the spectrum inside [-1, 1], so that high orders stay tame.
        Terms::Matrix { .. } => Some(Sample::new(&[t, t], Values::Uniform(-1.0 / t as f64, 1.0 / t as f64)).fixed()),
    }
}

type Shapes<'a> = &'a [(Terms, [usize; 3], usize)];

/// The small shapes for every kind of terms.
fn small() -> Vec<(Terms, [usize; 3], usize)> {
    TERMS.iter().flat_map(|t| SHAPES.iter().map(|(s, order)| (*t, *s, *order))).collect()
}

/// The path's entries -1/sqrt(2) are rounded once, and |T_k'| reaches k^2 at the ends of the spectrum (Markov), where a
/// path has eigenvalues; a given matrix may have them.
fn ulps(terms: Terms, order: usize) -> f64 {
    4.0 + if matches!(terms, Terms::Bank { .. }) { 0.0 } else { (order * order) as f64 }
}

fn forward_cases() -> Vec<Case> {
    [forward(&small()), forward(LARGE)].concat()
}

fn forward(shapes: Shapes) -> Vec<Case> {
    let case = |&(terms, s, order): &(Terms, [usize; 3], usize)| {
        let mut inputs = vec![Sample::normal(&s), Sample::new(&[s[2], order + 1], Values::Normal(0.5))];
        inputs.extend(operand(terms, s));
        let label = format!("{terms:?} {s:?} order {order}");
        Case::new(label, Chebyshev { terms, order }, inputs).ulps(ulps(terms, order))
    };
    shapes.iter().map(case).collect()
}

fn gradient_cases() -> Vec<Case> {
    gradient(&small())
}

fn gradient(shapes: Shapes) -> Vec<Case> {
    let case = |&(terms, s, order): &(Terms, [usize; 3], usize)| {
        let mut inputs = vec![Sample::normal(&s), Sample::normal(&s)];
        inputs.extend(operand(terms, s));
        if matches!(terms, Terms::Bank { .. }) {
            inputs.push(Sample::new(&[s[2], order + 1], Values::Normal(0.5)));
        }
        let label = format!("{terms:?} {s:?} order {order}");
        Case::new(label, ChebyshevGrad { terms, order }, inputs).ulps(ulps(terms, order)).forward_only()
    };
    shapes.iter().map(case).collect()
}
