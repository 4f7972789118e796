//! Chebyshev filters `y = sum_k c_k T_k(L) x` over time, with coefficients per channel: for the rescaled normalised Laplacian of
//! the path graph on `time` nodes, and for a given small matrix. The causal all-pass bank is in [`crate::allpass`].
//!
//! The path's `L = -D^{-1/2} A D^{-1/2}` is tridiagonal with eigenvalues `cos(pi j / (time - 1))`; a path of one node has
//! no edge, and `L = 0` there. `T_{k+1} = 2 L T_k - T_{k-1}` (Hammond et al. 2011; Defferrard et al. 2016).

use crate::attention::{take, with_scratch};
use crate::channels::{
    BLOCK, Block, Column, add, fma, for_each_block, load, mul, splat, store, sub, sum_parts, tail, transpose, zero,
};
use crate::register::{Register, with_register};
use crate::threads::{SharedMut, par_blocks};
use crate::tile::{Left, matmul, pack_transposed, pad_cols, pad_rows};

/// The greatest order of a filter.
pub const MAX_ORDER: usize = 16;

/// Positions in flight in the one-pass path filter: the least power of two above [`MAX_ORDER`].
const RING: usize = (MAX_ORDER + 1).next_power_of_two();

/// Steps summed before their sum joins the total, in the gradients of coefficients: keeps rounding errors small.
pub(crate) const STRETCH: usize = 64;

/// Channels of one item of the matrix form.
const MATRIX_BLOCK: usize = 64;

/// Sizes of a filter: `x`, `y` `[batch, time, channels]`, coefficients `[channels, order + 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChebShape {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
    /// At most [`MAX_ORDER`].
    pub order: usize,
}

impl ChebShape {
    /// Elements of `x` and `y`.
    pub fn len(&self) -> usize {
        self.batch * self.time * self.channels
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of the coefficients.
    pub fn coeffs_len(&self) -> usize {
        self.channels * (self.order + 1)
    }

    pub(crate) fn check(&self, tensors: &[&[f32]], coeffs: &[f32]) {
        assert!(self.order <= MAX_ORDER, "chebyshev filter: order {} is above {MAX_ORDER}", self.order);
        for x in tensors {
            assert_eq!(x.len(), self.len(), "chebyshev filter: tensors must be [batch, time, channels] of {self:?}");
        }
        assert_eq!(coeffs.len(), self.coeffs_len(), "chebyshev filter: coefficients must be [channels, order + 1]");
    }

    /// Floating-point work of one block of channels of one batch row.
    pub(crate) fn block_cost(&self) -> usize {
        self.time * (self.order + 1) * BLOCK
    }
}

/// `L[i, i + 1]` of the path graph on `time` nodes; 0 past either end.
#[inline(always)]
fn edge(i: isize, time: usize) -> f32 {
    let last = time as isize - 2;
    if i < 0 || i > last {
        0.0
    } else if last == 0 {
        -1.0
    } else if i == 0 || i == last {
        -std::f32::consts::FRAC_1_SQRT_2
    } else {
        -0.5
    }
}

/// The path filter. `L` is symmetric, so the gradient of `x` is the same filter applied to that of `y`.
///
/// # Panics
/// If a slice does not have its shape's length or the order is above [`MAX_ORDER`].
pub fn cheb_path(shape: ChebShape, x: &[f32], coeffs: &[f32], y: &mut [f32]) {
    shape.check(&[x, y], coeffs);
    let ChebShape { batch, time, channels, order } = shape;
    let coeffs = transpose(coeffs, channels, order + 1);
    let y = SharedMut::new(y);
    for_each_block(batch, channels, shape.block_cost(), |b, block| {
        // SAFETY: items own disjoint blocks.
        let mut out = unsafe { Column::new(&y, b, time, channels, &block) };
        let x = tail(x, b * time * channels + block.start);
        path_apply(shape, block.len(), x, tail(&coeffs, block.start), &mut out);
    });
}

/// `dcoeffs[c, k] = sum_{b, t} dy[b, t, c] (T_k(L) x)[b, t, c]` of the path filter, in a fixed order.
///
/// # Panics
/// As [`cheb_path`].
pub fn cheb_path_backward_coeffs(shape: ChebShape, x: &[f32], dy: &[f32], dcoeffs: &mut [f32]) {
    shape.check(&[x, dy], dcoeffs);
    let ChebShape { batch, time, channels, order } = shape;
    let mut parts = vec![0.0; batch * (order + 1) * channels];
    let shared = SharedMut::new(&mut parts);
    for_each_block(batch, channels, shape.block_cost(), |b, block| {
        // SAFETY: items own disjoint blocks.
        let mut out = unsafe { Column::new(&shared, b, order + 1, channels, &block) };
        let first = b * time * channels + block.start;
        path_coeffs(shape, block.len(), tail(x, first), tail(dy, first), &mut out);
    });
    let mut total = vec![0.0; (order + 1) * channels];
    sum_parts(&parts, &mut total);
    dcoeffs.copy_from_slice(&transpose(&total, order + 1, channels));
}

/// The last three values of every term. Term `k` runs `k` positions behind the input, so that one pass over time has
/// `T_{k-1}` at both neighbours and `T_{k-2}` at the position itself when `T_k` needs them.
struct Wave<R>([[Block<R>; MAX_ORDER + 1]; 3]);

impl<R: Register> Wave<R> {
    /// Moves all terms one position on; `use_term(k, position, value)` gets each new value inside the path.
    #[inline(always)]
    fn step(&mut self, shape: &ChebShape, s: usize, input: Block<R>, mut use_term: impl FnMut(usize, usize, Block<R>)) {
        let (new, two_ago) = (s % 3, (s + 1) % 3);
        for k in 0..=shape.order.min(s) {
            let p = s - k;
            let mut value = zero();
            if p < shape.time {
                value = match k {
                    0 => input,
                    _ => {
                        let factor = if k == 1 { 1.0 } else { 2.0 };
                        let left = splat(factor * edge(p as isize - 1, shape.time));
                        let right = splat(factor * edge(p as isize, shape.time));
                        let sum = fma(right, self.0[new][k - 1], mul(left, self.0[two_ago][k - 1]));
                        if k == 1 { sum } else { sub(sum, self.0[two_ago][k - 2]) }
                    }
                };
                use_term(k, p, value);
            }
            self.0[new][k] = value;
        }
    }
}

#[inline(always)]
fn path_apply_in<R: Register>(shape: ChebShape, width: usize, x: &[f32], coeffs: &[f32], y: &mut Column<'_>) {
    let mut c = [zero::<R>(); MAX_ORDER + 1];
    for (k, c) in c.iter_mut().enumerate().take(shape.order + 1) {
        *c = load(&coeffs[k * shape.channels..][..width]);
    }
    let mut wave = Wave::<R>([[zero(); MAX_ORDER + 1]; 3]);
    let mut sums = [zero(); RING];
    for s in 0..shape.time + shape.order {
        let input = if s < shape.time { load(&x[s * shape.channels..][..width]) } else { zero() };
        sums[s % RING] = zero();
        wave.step(
            &shape,
            s,
            input,
            #[inline(always)]
            |k, p, value| {
                sums[p % RING] = fma(c[k], value, sums[p % RING]);
            },
        );
        if s >= shape.order {
            store(sums[(s - shape.order) % RING], y.at(s - shape.order));
        }
    }
}

#[inline(always)]
fn path_coeffs_in<R: Register>(shape: ChebShape, width: usize, x: &[f32], dy: &[f32], out: &mut Column<'_>) {
    let mut wave = Wave::<R>([[zero(); MAX_ORDER + 1]; 3]);
    let mut gradients = [zero(); RING];
    let (mut total, mut acc) = ([zero(); MAX_ORDER + 1], [zero(); MAX_ORDER + 1]);
    for s in 0..shape.time + shape.order {
        let mut input = zero();
        if s < shape.time {
            input = load(&x[s * shape.channels..][..width]);
            gradients[s % RING] = load(&dy[s * shape.channels..][..width]);
        }
        wave.step(
            &shape,
            s,
            input,
            #[inline(always)]
            |k, p, value| {
                acc[k] = fma(gradients[p % RING], value, acc[k]);
            },
        );
        if s % STRETCH == STRETCH - 1 || s + 1 == shape.time + shape.order {
            for (total, acc) in total.iter_mut().zip(&mut acc) {
                *total = add(*total, *acc);
                *acc = zero();
            }
        }
    }
    for (k, total) in total.iter().enumerate().take(shape.order + 1) {
        store(*total, out.at(k));
    }
}

crate::multiversion! {
    fn path_apply<V>(shape: ChebShape, width: usize, x: &[f32], coeffs: &[f32], y: &mut Column<'_>) { with_register!(V, path_apply_in(shape, width, x, coeffs, y)) }

    fn path_coeffs<V>(shape: ChebShape, width: usize, x: &[f32], dy: &[f32], out: &mut Column<'_>) { with_register!(V, path_coeffs_in(shape, width, x, dy, out)) }
}

/// `2 l` or `2 l^T`, its rows padded with zeros for the tile product.
fn doubled(l: &[f32], time: usize, transposed: bool) -> Vec<f32> {
    let mut out = vec![0.0; pad_rows(time) * time];
    for r in 0..time {
        for c in 0..time {
            out[r * time + c] = 2.0 * if transposed { l[c * time + r] } else { l[r * time + c] };
        }
    }
    out
}

fn check_matrix(shape: ChebShape, l: &[f32]) {
    assert_eq!(l.len(), shape.time * shape.time, "chebyshev filter: the matrix must be [time, time] of {shape:?}");
}

/// The filter of a given matrix `l [time, time]`, not necessarily symmetric; its spectrum should lie in `[-1, 1]`.
///
/// # Panics
/// If a slice does not have its shape's length or the order is above [`MAX_ORDER`].
pub fn cheb_matrix(shape: ChebShape, l: &[f32], x: &[f32], coeffs: &[f32], y: &mut [f32]) {
    shape.check(&[x, y], coeffs);
    check_matrix(shape, l);
    let ChebShape { batch, time, channels, order } = shape;
    let (l2, coeffs) = (doubled(l, time, false), transpose(coeffs, channels, order + 1));
    let y = SharedMut::new(y);
    let blocks = channels.div_ceil(MATRIX_BLOCK);
    let cost = (time * time * (order + 1) * MATRIX_BLOCK / 8).max(1);
    par_blocks(batch * blocks, 1, cost, |item, _| {
        let (b, first) = (item / blocks, item % blocks * MATRIX_BLOCK);
        let item = MatrixItem { shape, b, first, width: MATRIX_BLOCK.min(channels - first), l2: &l2, coeffs: &coeffs };
        with_scratch(3 * item.plane(), |scratch| matrix_apply(&item, x, &y, scratch));
    });
}

/// Gradients of [`cheb_matrix`] (overwritten): `dx`, `dcoeffs` and, where asked for, `dl [time, time]`. The adjoints of
/// the terms are Clenshaw's recurrence: `b_k = c_k dy + 2 l^T b_{k+1} - b_{k+2}`, `dx = b_0` (with `l^T b_1` once), and
/// `dl = b_1 (T_0 x)^T + 2 sum_{k >= 1} b_{k+1} (T_k x)^T`. Sums over batch and channels have a fixed order.
///
/// # Panics
/// As [`cheb_matrix`].
#[allow(clippy::too_many_arguments)]
pub fn cheb_matrix_backward(
    shape: ChebShape,
    l: &[f32],
    x: &[f32],
    coeffs: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dcoeffs: &mut [f32],
    dl: Option<&mut [f32]>,
) {
    shape.check(&[x, dy, dx], coeffs);
    shape.check(&[], dcoeffs);
    check_matrix(shape, l);
    if let Some(dl) = &dl {
        check_matrix(shape, dl);
    }
    let ChebShape { batch, time, channels, order } = shape;
    let (l2, l2_t) = (doubled(l, time, false), doubled(l, time, true));
    let coeffs = transpose(coeffs, channels, order + 1);
    let (coeff_rows, matrix) = ((order + 1) * channels, pad_rows(time) * pad_cols(time));
    let mut coeff_parts = vec![0.0; batch * coeff_rows];
    let mut matrix_parts = vec![0.0; if dl.is_some() { batch * matrix } else { 0 }];
    {
        let (dx, coeff_parts, matrix_parts) =
            (SharedMut::new(dx), SharedMut::new(&mut coeff_parts), SharedMut::new(&mut matrix_parts));
        let cost = (time * time * (order + 1) * channels / 2).max(1);
        par_blocks(batch, 1, cost, |b, _| {
            for first in (0..channels).step_by(MATRIX_BLOCK) {
                let width = MATRIX_BLOCK.min(channels - first);
                let item = MatrixItem { shape, b, first, width, l2: &l2, coeffs: &coeffs };
                let len = (order + 4) * item.plane() + item.columns() * pad_cols(time);
                // SAFETY: items own disjoint batch rows.
                let (dc, dl) = unsafe {
                    let dl = (!matrix_parts.is_empty()).then(|| matrix_parts.slice(b * matrix..(b + 1) * matrix));
                    (coeff_parts.slice(b * coeff_rows..(b + 1) * coeff_rows), dl)
                };
                with_scratch(len, |scratch| matrix_backward(&item, &l2_t, x, dy, &dx, dc, dl, scratch));
            }
        });
    }
    let mut total = vec![0.0; coeff_rows];
    sum_parts(&coeff_parts, &mut total);
    dcoeffs.copy_from_slice(&transpose(&total, order + 1, channels));
    if let Some(dl) = dl {
        let mut total = vec![0.0; matrix];
        sum_parts(&matrix_parts, &mut total);
        for (row, sum) in dl.chunks_exact_mut(time.max(1)).zip(total.chunks_exact(pad_cols(time).max(1))) {
            for (d, s) in row.iter_mut().zip(sum) {
                *d = 2.0 * s;
            }
        }
    }
}

/// A block of channels of one batch row in the matrix form.
struct MatrixItem<'a> {
    shape: ChebShape,
    b: usize,
    first: usize,
    width: usize,
    /// `2 l`, rows padded.
    l2: &'a [f32],
    /// `[order + 1, channels]`
    coeffs: &'a [f32],
}

impl MatrixItem<'_> {
    #[inline(always)]
    fn columns(&self) -> usize {
        pad_cols(self.width)
    }

    /// Floats of one packed `[time, width]` operand.
    #[inline(always)]
    fn plane(&self) -> usize {
        pad_rows(self.shape.time) * self.columns()
    }

    #[inline(always)]
    fn at(&self, t: usize) -> usize {
        (self.b * self.shape.time + t) * self.shape.channels + self.first
    }

    #[inline(always)]
    fn pack(&self, x: &[f32], plane: &mut [f32]) {
        plane.fill(0.0);
        for (t, row) in plane.chunks_exact_mut(self.columns()).enumerate().take(self.shape.time) {
            row[..self.width].copy_from_slice(&x[self.at(t)..][..self.width]);
        }
    }

    #[inline(always)]
    fn coeff(&self, k: usize) -> &[f32] {
        &self.coeffs[k * self.shape.channels + self.first..][..self.width]
    }

    /// `out += l2 x`, where `l2` is `2 l` or `2 l^T`.
    #[inline(always)]
    fn multiply<V: crate::simd::Isa>(&self, l2: &[f32], x: &[f32], out: &mut [f32]) {
        let (time, columns) = (self.shape.time, self.columns());
        // SAFETY: l2 is a whole padded matrix; V is the dispatched instruction set.
        unsafe {
            matmul::<V>([pad_rows(time), columns, time], Left::rows(l2, time), x, columns, out, columns, true);
        }
    }

    /// `out[t, c] += coeff[k][c] x[t, c]`
    #[inline(always)]
    fn add_scaled<V: crate::simd::Isa>(&self, k: usize, x: &[f32], out: &mut [f32]) {
        let coeff = self.coeff(k);
        for (out, x) in out.chunks_exact_mut(self.columns()).zip(x.chunks_exact(self.columns())) {
            for ((o, &x), &c) in out.iter_mut().zip(x).zip(coeff) {
                *o = V::fma(c, x, *o);
            }
        }
    }
}

#[inline(always)]
fn scale(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

crate::multiversion! {
    fn matrix_apply<V>(item: &MatrixItem<'_>, x: &[f32], y: &SharedMut<'_, f32>, scratch: &mut [f32]) {
        let plane = item.plane();
        let mut rest = scratch;
        let [mut before, mut now, sum] = std::array::from_fn(|_| take(&mut rest, plane));
        item.pack(x, before);
        sum.fill(0.0);
        item.add_scaled::<V>(0, before, sum);
        if item.shape.order > 0 {
            now.fill(0.0);
            item.multiply::<V>(item.l2, before, now);
            scale(now, 0.5);
            item.add_scaled::<V>(1, now, sum);
        }
        for k in 2..=item.shape.order {
            scale(before, -1.0);
            item.multiply::<V>(item.l2, now, before);
            std::mem::swap(&mut before, &mut now);
            item.add_scaled::<V>(k, now, sum);
        }
        for (t, row) in sum.chunks_exact(item.columns()).enumerate().take(item.shape.time) {
            // SAFETY: items own disjoint blocks of y.
            unsafe { y.slice(item.at(t)..item.at(t) + item.width) }.copy_from_slice(&row[..item.width]);
        }
    }

    /// `dl` gets half its gradient added: see the factor of `l2`.
    fn matrix_backward<V>(
        item: &MatrixItem<'_>,
        l2_t: &[f32],
        x: &[f32],
        dy: &[f32],
        dx: &SharedMut<'_, f32>,
        dcoeffs: &mut [f32],
        dl: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        let (plane, columns, order, time) = (item.plane(), item.columns(), item.shape.order, item.shape.time);
        let mut rest = scratch;
        let terms = take(&mut rest, (order + 1) * plane);
        let [gradient, mut now, mut after] = std::array::from_fn(|_| take(&mut rest, plane));
        let term_t = rest;
        item.pack(x, &mut terms[..plane]);
        item.pack(dy, gradient);
        for k in 1..=order {
            let (done, next) = terms.split_at_mut(k * plane);
            let next = &mut next[..plane];
            if k == 1 {
                next.fill(0.0);
            } else {
                next.copy_from_slice(&done[(k - 2) * plane..][..plane]);
                scale(next, -1.0);
            }
            item.multiply::<V>(item.l2, &done[(k - 1) * plane..], next);
            if k == 1 {
                scale(next, 0.5);
            }
        }
        for k in 0..=order {
            let out = &mut dcoeffs[k * item.shape.channels + item.first..][..item.width];
            out.fill(0.0);
            let term = &terms[k * plane..][..plane];
            for (u, g) in term.chunks_exact(columns).zip(gradient.chunks_exact(columns)) {
                for ((o, &u), &g) in out.iter_mut().zip(u).zip(g) {
                    *o = V::fma(u, g, *o);
                }
            }
        }
        let mut dl = dl;
        now.fill(0.0);
        after.fill(0.0);
        for k in (0..=order).rev() {
            // now is b_{k+1} and after b_{k+2}; term 1 came of l, the later ones of 2 l
            if k == 0 {
                scale(now, 0.5);
            }
            if let Some(dl) = dl.as_deref_mut().filter(|_| k < order) {
                pack_transposed::<V>(&terms[k * plane..], columns, time, columns, pad_cols(time), term_t);
                let size = [pad_rows(time), pad_cols(time), columns];
                // SAFETY: now is a whole padded operand; V is the dispatched instruction set.
                unsafe {
                    matmul::<V>(size, Left::rows(now, columns), term_t, pad_cols(time), dl, pad_cols(time), true);
                }
            }
            scale(after, -1.0);
            item.multiply::<V>(l2_t, now, after);
            item.add_scaled::<V>(k, gradient, after);
            std::mem::swap(&mut now, &mut after);
        }
        for (t, row) in now.chunks_exact(columns).enumerate().take(time) {
            // SAFETY: items own disjoint batch rows of dx.
            unsafe { dx.slice(item.at(t)..item.at(t) + item.width) }.copy_from_slice(&row[..item.width]);
        }
    }
}
