//! Symmetric int8 quantisation, and products with quantised weights.
//!
//! A matrix `[rows, cols]` is cut along each row into groups of `group` numbers; the last group of a row may be short, and
//! `group >= cols` means one scale a row. A group's scale is its greatest magnitude over 127, and `x ~ scale * q` with
//! `q = round(x / scale)` in `-127..=127`, ties to even. Scales are `[rows, ceil(cols / group)]`.

use std::ops::Range;

use crate::attention::with_scratch;
use crate::int8_dot::{self, Product};
use crate::register::{Register, with_register};
use crate::simd::{Isa, LANES, Lanes};
use crate::threads::{SharedMut, par_blocks, par_rows, par_rows_mut};
use crate::tile::{Left, matmul, pack_transposed};

/// Up to this many rows of `x`, weights are dequantised in registers, once for every four rows.
const FEW_ROWS: usize = 8;
/// Weight rows of one item of work.
const WEIGHT_ROWS: usize = 32;
/// Rows of x that a dequantised panel of weights meets at a time.
const COLUMNS: usize = 32;

/// Groups in a row of `cols`.
///
/// # Panics
/// If `group` is 0.
pub fn groups(cols: usize, group: usize) -> usize {
    assert!(group > 0, "int8: groups of no elements");
    cols.div_ceil(group)
}

/// The columns of group `g`.
#[inline(always)]
pub(crate) fn group_range(g: usize, group: usize, cols: usize) -> Range<usize> {
    g * group..(g * group).saturating_add(group).min(cols)
}

fn check(rows: usize, cols: usize, group: usize, q: &[i8], scales: &[f32]) {
    assert_eq!(q.len(), rows * cols, "int8: quantised values must be [{rows}, {cols}]");
    let groups = groups(cols, group);
    assert_eq!(scales.len(), rows * groups, "int8: scales must be [{rows}, {groups}] for groups of {group}");
}

/// Quantises `x [rows, cols]` to `q` of that shape and `scales`. A group of zeros, or of numbers too small for a normal
/// inverse scale (below about 1.5e-36), gets scale 0. A group with a non-finite number gets a non-finite scale, so that it stays
/// visible.
///
/// # Panics
/// If a slice does not have its shape's length, or `group` is 0.
pub fn quantize(rows: usize, cols: usize, group: usize, x: &[f32], q: &mut [i8], scales: &mut [f32]) {
    check(rows, cols, group, q, scales);
    assert_eq!(x.len(), rows * cols, "int8: x must be [{rows}, {cols}]");
    let groups = groups(cols, group);
    let (q, scales) = (SharedMut::new(q), SharedMut::new(scales));
    par_rows(rows, 4 * cols, |range| {
        for r in range {
            // SAFETY: items own disjoint rows.
            let (q, scales) =
                unsafe { (q.slice(r * cols..(r + 1) * cols), scales.slice(r * groups..(r + 1) * groups)) };
            quantize_row(group, &x[r * cols..][..cols], q, scales);
        }
    });
}

/// Takes `x` into the greatest magnitude; `poison` stays 0 while numbers are finite and becomes NaN otherwise.
#[inline(always)]
fn look<V: Isa>(x: Lanes, greatest: &mut Lanes, poison: &mut Lanes) {
    let mut magnitude = x;
    for m in &mut magnitude.0 {
        *m = m.abs();
    }
    *greatest = magnitude.max(*greatest);
    *poison = x.fma::<V>(Lanes::splat(0.0), *poison);
}

/// Quantises one group and returns its scale.
#[inline(always)]
fn quantize_group<V: Isa>(x: &[f32], q: &mut [i8]) -> f32 {
    let (mut greatest, mut poison) = (Lanes::splat(0.0), Lanes::splat(0.0));
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        look::<V>(Lanes::load(chunk), &mut greatest, &mut poison);
    }
    look::<V>(Lanes::load_partial(chunks.remainder(), 0.0), &mut greatest, &mut poison);
    let scale = greatest.reduce_max() / 127.0 + poison.sum();
    let usable = scale >= f32::MIN_POSITIVE;
    let inverse = if usable { 1.0 / scale } else { 0.0 };
    for (q, &x) in q.iter_mut().zip(x) {
        // adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits
        let scaled = (x * inverse).clamp(-127.0, 127.0);
        *q = (scaled + 12_582_912.0).to_bits() as i8;
    }
    if usable || scale.is_nan() { scale } else { 0.0 }
}

crate::multiversion! {
    pub(crate) fn quantize_row<V>(group: usize, x: &[f32], q: &mut [i8], scales: &mut [f32]) {
        for (g, scale) in scales.iter_mut().enumerate() {
            let part = group_range(g, group, x.len());
            *scale = quantize_group::<V>(&x[part.clone()], &mut q[part]);
        }
    }

    fn dequantize_row<V>(group: usize, q: &[i8], scales: &[f32], x: &mut [f32]) {
        for (g, &scale) in scales.iter().enumerate() {
            let part = group_range(g, group, q.len());
            for (x, &q) in x[part.clone()].iter_mut().zip(&q[part]) {
                *x = scale * q as f32;
            }
        }
    }
}

/// `x [rows, cols] = scale * q`.
///
/// # Panics
/// If a slice does not have its shape's length, or `group` is 0.
pub fn dequantize(rows: usize, cols: usize, group: usize, q: &[i8], scales: &[f32], x: &mut [f32]) {
    check(rows, cols, group, q, scales);
    assert_eq!(x.len(), rows * cols, "int8: x must be [{rows}, {cols}]");
    let groups = groups(cols, group);
    par_rows_mut(x, cols, 2 * cols, |first, part| {
        for (i, x) in part.chunks_exact_mut(cols).enumerate() {
            let r = first + i;
            dequantize_row(group, &q[r * cols..][..cols], &scales[r * groups..][..groups], x);
        }
    });
}

fn check_product(m: usize, n: usize, k: usize, group: usize, x: &[f32], w: &[i8], scales: &[f32], y: &[f32]) {
    check(n, k, group, w, scales);
    assert_eq!(x.len(), m * k, "int8 product: x must be [{m}, {k}]");
    assert_eq!(y.len(), m * n, "int8 product: y must be [{m}, {n}]");
}

/// `y [m, n] = x [m, k] w^T` for weights `w [n, k]` with `scales [n, ceil(k / group)]`, in `f32` arithmetic. Few rows: weights are
/// read once and dequantised in registers; many: panels of weights are dequantised into cache and multiplied there.
///
/// # Panics
/// If a slice does not have its shape's length, or `group` is 0.
#[allow(clippy::too_many_arguments)]
pub fn matmul_q8(m: usize, n: usize, k: usize, group: usize, x: &[f32], w: &[i8], scales: &[f32], y: &mut [f32]) {
    check_product(m, n, k, group, x, w, scales, y);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        return y.fill(0.0);
    }
    let groups = groups(k, group);
    let y = SharedMut::new(y);
    if m <= FEW_ROWS {
        par_blocks(n, WEIGHT_ROWS, (m * k / 4).max(1), |_, range| {
            let job = Few { m, n, k, group, x, y: &y };
            for j in range {
                few_rows(&job, j, &w[j * k..][..k], &scales[j * groups..][..groups]);
            }
        });
        return;
    }
    // x^T in panels of COLUMNS rows of x: [panel][k][COLUMNS]
    let panels = m.div_ceil(COLUMNS);
    let mut x_t = vec![0.0; panels * k * COLUMNS];
    par_rows_mut(&mut x_t, k * COLUMNS, k * COLUMNS, |first, part| {
        for (i, panel) in part.chunks_exact_mut(k * COLUMNS).enumerate() {
            let row = (first + i) * COLUMNS;
            pack_transposed::<crate::simd::Baseline>(&x[row * k..], k, COLUMNS.min(m - row), k, COLUMNS, panel);
        }
    });
    par_blocks(n, WEIGHT_ROWS, (m * k / 8).max(1), |_, range| {
        with_scratch(WEIGHT_ROWS * (k + COLUMNS), |scratch| {
            let (panel, product) = scratch.split_at_mut(WEIGHT_ROWS * k);
            for (j, row) in range.clone().zip(panel.chunks_exact_mut(k)) {
                dequantize_row(group, &w[j * k..][..k], &scales[j * groups..][..groups], row);
            }
            for (p, x_t) in x_t.chunks_exact(k * COLUMNS).enumerate() {
                panel_product(k, panel, x_t, product);
                for r in 0..COLUMNS.min(m - p * COLUMNS) {
                    let at = (p * COLUMNS + r) * n;
                    // SAFETY: items own disjoint columns of y.
                    let out = unsafe { y.slice(at + range.start..at + range.end) };
                    for (j, y) in out.iter_mut().enumerate() {
                        *y = product[j * COLUMNS + r];
                    }
                }
            }
        });
    });
}

crate::multiversion! {
    /// `product [WEIGHT_ROWS, COLUMNS] = w [WEIGHT_ROWS, k] x_t [k, COLUMNS]`
    fn panel_product<V>(k: usize, w: &[f32], x_t: &[f32], product: &mut [f32]) {
        assert_eq!(w.len(), WEIGHT_ROWS * k);
        // SAFETY: all of w is there; V is the dispatched instruction set.
        unsafe {
            matmul::<V>([WEIGHT_ROWS, COLUMNS, k], Left::rows(w, k), x_t, COLUMNS, product, COLUMNS, false);
        }
    }
}

/// What the items of a product with few rows share.
struct Few<'a> {
    m: usize,
    n: usize,
    k: usize,
    group: usize,
    x: &'a [f32],
    y: &'a SharedMut<'a, f32>,
}

/// The products of weight row `w` with `M` rows of `x`, starting at row `first`. Every row is summed in the same order,
/// whatever `M` is.
#[inline(always)]
fn weight_row<R: Register, const M: usize>(job: &Few<'_>, first: usize, w: &[i8], scales: &[f32]) -> [f32; M] {
    const { assert!(R::WIDTH == LANES) };
    let x: [&[f32]; M] = std::array::from_fn(|i| &job.x[(first + i) * job.k..][..job.k]);
    assert_eq!(w.len(), job.k);
    let mut total = [R::splat(0.0); M];
    for (g, &scale) in scales.iter().enumerate() {
        let part = group_range(g, job.group, job.k);
        let (mut even, mut odd) = ([R::splat(0.0); M], [R::splat(0.0); M]);
        let mut at = part.start;
        // SAFETY: LANES elements from `at` on lie inside w and every row of x, all of length k.
        unsafe {
            while at + 2 * LANES <= part.end {
                let (a, b) = (R::load_i8(w.as_ptr().add(at)), R::load_i8(w.as_ptr().add(at + LANES)));
                for i in 0..M {
                    even[i] = even[i].accumulate(R::load(x[i].as_ptr().add(at)), a);
                    odd[i] = odd[i].accumulate(R::load(x[i].as_ptr().add(at + LANES)), b);
                }
                at += 2 * LANES;
            }
        }
        while at < part.end {
            let rest = at..part.end.min(at + LANES);
            let mut weights = [0i8; LANES];
            weights[..rest.len()].copy_from_slice(&w[rest.clone()]);
            // SAFETY: both arrays have LANES elements.
            unsafe {
                let a = R::load_i8(weights.as_ptr());
                for i in 0..M {
                    let mut values = [0.0f32; LANES];
                    values[..rest.len()].copy_from_slice(&x[i][rest.clone()]);
                    even[i] = even[i].accumulate(R::load(values.as_ptr()), a);
                }
            }
            at = rest.end;
        }
        for i in 0..M {
            total[i] = total[i].accumulate(even[i].add(odd[i]), R::splat(scale));
        }
    }
    total.map(|t| {
        let mut lanes = Lanes::splat(0.0);
        // SAFETY: LANES floats.
        unsafe { t.store(lanes.0.as_mut_ptr()) };
        lanes.sum()
    })
}

/// Weight row `w` against all rows of `x`.
#[inline(always)]
fn few_rows_in<R: Register>(job: &Few<'_>, j: usize, w: &[i8], scales: &[f32]) {
    let mut first = 0;
    while first < job.m {
        if job.m - first >= 4 {
            put(job, first, j, weight_row::<R, 4>(job, first, w, scales));
            first += 4;
        } else {
            put(job, first, j, weight_row::<R, 1>(job, first, w, scales));
            first += 1;
        }
    }
}

crate::multiversion! {
    fn few_rows<V>(job: &Few<'_>, j: usize, w: &[i8], scales: &[f32]) {
        with_register!(V, few_rows_in(job, j, w, scales))
    }
}

#[inline(always)]
fn put<const M: usize>(job: &Few<'_>, first: usize, j: usize, values: [f32; M]) {
    for (i, value) in values.into_iter().enumerate() {
        let at = (first + i) * job.n + j;
        // SAFETY: items own disjoint columns of y.
        let out = unsafe { job.y.slice(at..at + 1) };
        out[0] = value;
    }
}

/// As [`matmul_q8`], but `x` too is quantised to int8, one scale a row, and products are summed in integers:
/// `y = sx sum_g sw_g (sum_{k in g} qx qw)`. The integer sums are exact and the groups are added in order, so every
/// instruction set gives the same bits.
///
/// # Panics
/// As [`matmul_q8`].
#[allow(clippy::too_many_arguments)]
pub fn matmul_q8q8(m: usize, n: usize, k: usize, group: usize, x: &[f32], w: &[i8], scales: &[f32], y: &mut [f32]) {
    check_product(m, n, k, group, x, w, scales, y);
    if k == 0 {
        return y.fill(0.0);
    }
    let (mut qx, mut sx) = (vec![0; m * k], vec![0.0; m]);
    quantize(m, k, k, x, &mut qx, &mut sx);
    let kind = int8_dot::kind();
    int8_dot::prepare(kind, &mut qx);
    let y = SharedMut::new(y);
    let product = Product { m, n, k, group, x: &qx, x_scales: &sx, w, w_scales: scales, y: &y };
    par_blocks(n, WEIGHT_ROWS, (m * k / 16).max(1), |_, range| int8_dot::run(kind, &product, range));
}
