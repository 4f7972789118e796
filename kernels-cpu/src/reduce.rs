//! Reductions of one axis. Sums run in `f32` over short fixed blocks and in `f64` across blocks, in an order that depends only on the
//! shape: the error does not grow with the length, and the bits do not depend on the number of threads.

use crate::register::with_register;
use crate::simd::Isa;
use crate::stream::prefetch;
use crate::threads::{SharedMut, par_blocks, par_rows_mut, worth_threads};
use crate::vector::Vector;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    /// The sum of squares.
    SumSq,
}

// the const parameter of the kernels; Mean is a Sum until the end
const SUM: usize = 0;
const MAX: usize = 1;
const MIN: usize = 2;
const SUM_SQ: usize = 3;

/// Elements of a row summed in `f32`: 16 additions in each of 64 accumulators.
pub(crate) const ROW_BLOCK: usize = 1024;
/// Rows of a column reduction added in `f32` before they go to the `f64` accumulator.
const ROW_GROUP: usize = 32;
/// Rows of a column reduction that one task reduces.
const ROW_CHUNK: usize = 512;
/// Columns of a column reduction that one task reduces: the accumulators fit in the first-level cache.
const COLUMN_TILE: usize = 1024;

#[inline(always)]
fn identity<const KIND: usize>() -> f32 {
    match KIND {
        MAX => f32::NEG_INFINITY,
        MIN => f32::INFINITY,
        _ => 0.0,
    }
}

#[inline(always)]
fn step<R: Vector, const KIND: usize>(acc: R, x: R) -> R {
    match KIND {
        SUM => acc.add(x),
        _ => acc.accumulate(x, x),
    }
}

#[inline(always)]
fn combine<const KIND: usize>(a: f64, b: f64) -> f64 {
    match KIND {
        MAX => a.max(b),
        MIN => a.min(b),
        _ => a + b,
    }
}

/// An integer that orders as the float does: integer maxima vectorise, float ones may not because of NaN and signed zeros.
#[inline(always)]
fn order_key(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) & i32::MAX)
}

/// The inverse of [`order_key`], which is its own.
#[inline(always)]
fn from_order_key(key: i32) -> f32 {
    f32::from_bits((key ^ ((key >> 31) & i32::MAX)) as u32)
}

/// Reduces at most [`ROW_BLOCK`] elements.
#[inline(always)]
fn block<V: Isa, const KIND: usize>(x: &[f32]) -> f32 {
    if KIND == MAX {
        return from_order_key(x.iter().fold(order_key(f32::NEG_INFINITY), |m, &x| m.max(order_key(x))));
    }
    if KIND == MIN {
        return from_order_key(x.iter().fold(order_key(f32::INFINITY), |m, &x| m.min(order_key(x))));
    }
    with_register!(V, block_sum::<KIND>(x))
}

#[inline(always)]
fn block_sum<R: Vector, const KIND: usize>(x: &[f32]) -> f32 {
    let (n, p) = (x.len(), x.as_ptr());
    let mut acc = [R::splat(0.0); 4];
    let mut i = 0;
    // SAFETY: (whole body) loads stay within the slice.
    unsafe {
        while i + 64 <= n {
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = step::<R, KIND>(*acc, R::load(p.add(i + 16 * j)));
            }
            i += 64;
        }
        while i + 16 <= n {
            acc[0] = step::<R, KIND>(acc[0], R::load(p.add(i)));
            i += 16;
        }
        if i < n {
            acc[1] = step::<R, KIND>(acc[1], R::load_partial(p.add(i), n - i, 0.0));
        }
    }
    acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum()
}

#[inline(always)]
fn row<V: Isa, const KIND: usize>(x: &[f32]) -> f64 {
    let mut total = identity::<KIND>() as f64;
    for x in x.chunks(ROW_BLOCK) {
        total = combine::<KIND>(total, block::<V, KIND>(x) as f64);
    }
    total
}

/// The sum of a slice, for use inside kernel bodies.
#[inline(always)]
pub(crate) fn sum<V: Isa>(x: &[f32]) -> f64 {
    row::<V, SUM>(x)
}

/// How many floats ahead the rows of a column reduction are fetched, at least.
const AHEAD: usize = 1024;

/// Results of the columns of a tile.
#[repr(align(64))]
struct Tile([f32; COLUMN_TILE]);

/// Reduces `N` rows (1 or 4) of `width` columns, `stride` apart, into `group`, which is padded to whole vectors: a store of part of a
/// vector would hold up the load of it that follows.
#[inline(always)]
fn column_step<V: Isa, const KIND: usize, const N: usize>(x: &[f32], stride: usize, width: usize, group: &mut [f32]) {
    with_register!(V, column_step_on::<KIND, N>(x, stride, width, group))
}

#[inline(always)]
fn column_step_on<R: Vector, const KIND: usize, const N: usize>(
    x: &[f32],
    stride: usize,
    width: usize,
    group: &mut [f32],
) {
    assert!((N - 1) * stride + width <= x.len(), "{N} rows");
    assert!(width <= group.len() && group.len().is_multiple_of(16), "results are padded");
    let ahead = (N * stride).max(AHEAD);
    for i in (0..width).step_by(16) {
        let n = (width - i).min(16);
        // SAFETY: `n` floats of rows and whole vectors of results, which were checked; a hint may go anywhere.
        unsafe {
            let load = |p: *const f32| if n == 16 { R::load(p) } else { R::load_partial(p, n, 0.0) };
            let rows: [R; N] = std::array::from_fn(|k| {
                let p = x.as_ptr().wrapping_add(k * stride + i);
                prefetch(p.wrapping_add(ahead));
                load(p)
            });
            let square = |k: usize| rows[k].mul(rows[k]);
            let to = group.as_mut_ptr().add(i);
            let g = R::load(to);
            let g = match (KIND, N) {
                (SUM, 4) => g.add(rows[0].add(rows[1]).add(rows[2].add(rows[3]))),
                (SUM, _) => g.add(rows[0]),
                (MAX, 4) => rows[0].max(rows[1]).max(rows[2].max(rows[3])).max(g),
                (MAX, _) => rows[0].max(g),
                (MIN, 4) => rows[0].min(rows[1]).min(rows[2].min(rows[3])).min(g),
                (MIN, _) => rows[0].min(g),
                (_, 4) => g.add(square(1).accumulate(rows[0], rows[0]).add(square(3).accumulate(rows[2], rows[2]))),
                _ => g.accumulate(rows[0], rows[0]),
            };
            g.store(to);
        }
    }
}

crate::multiversion! {
    fn rows<V, const KIND: usize>(x: &[f32], len: usize, scale: f64, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(len).zip(out) {
            *out = (row::<V, KIND>(x) * scale) as f32;
        }
    }

    fn one_block<V, const KIND: usize>(x: &[f32]) -> f32 {
        block::<V, KIND>(x)
    }

    /// Reduces `rows` rows of `acc.len()` columns, `stride` apart, into `acc`.
    fn columns<V, const KIND: usize>(x: &[f32], stride: usize, rows: usize, acc: &mut [f64]) {
        let width = acc.len();
        let mut group = Tile([0.0; COLUMN_TILE]);
        let group = &mut group.0[..width.next_multiple_of(16)];
        for start in (0..rows).step_by(ROW_GROUP) {
            group.fill(identity::<KIND>());
            let end = (start + ROW_GROUP).min(rows);
            let mut r = start;
            while r + 4 <= end {
                column_step::<V, KIND, 4>(&x[r * stride..], stride, width, group);
                r += 4;
            }
            for r in r..end {
                column_step::<V, KIND, 1>(&x[r * stride..], stride, width, group);
            }
            for (acc, &g) in acc.iter_mut().zip(&*group) {
                *acc = combine::<KIND>(*acc, g as f64);
            }
        }
    }
}

/// Reduces the middle axis of `x`, shaped [outer, len, inner], to `out`, shaped [outer, inner]. With `len == 0` a sum is 0, a mean NaN, a maximum -infinity and
/// a minimum +infinity. Where NaN is among the elements, a maximum or minimum is unspecified.
///
/// # Panics
/// If a slice does not have the size of its shape.
pub fn reduce(kind: Kind, x: &[f32], outer: usize, len: usize, inner: usize, out: &mut [f32]) {
    assert_eq!(x.len(), outer * len * inner, "x is [{outer}, {len}, {inner}]");
    assert_eq!(out.len(), outer * inner, "out is [{outer}, {inner}]");
    let scale = if kind == Kind::Mean { 1.0 / len as f64 } else { 1.0 };
    match kind {
        Kind::Sum | Kind::Mean => reduce_as::<SUM>(x, outer, len, inner, scale, out),
        Kind::Max => reduce_as::<MAX>(x, outer, len, inner, scale, out),
        Kind::Min => reduce_as::<MIN>(x, outer, len, inner, scale, out),
        Kind::SumSq => reduce_as::<SUM_SQ>(x, outer, len, inner, scale, out),
    }
}

fn reduce_as<const KIND: usize>(x: &[f32], outer: usize, len: usize, inner: usize, scale: f64, out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    if len == 0 {
        out.fill((identity::<KIND>() as f64 * scale) as f32);
    } else if inner != 1 {
        reduce_columns::<KIND>(x, outer, len, inner, scale, out);
    } else if outer < 16 && len >= 64 * ROW_BLOCK && worth_threads(x.len()) {
        // few long rows: threads share each row; the blocks and their order are those of `row`
        let mut partial = vec![0.0f32; len.div_ceil(ROW_BLOCK)];
        for (x, out) in x.chunks_exact(len).zip(out) {
            par_rows_mut(&mut partial, 1, ROW_BLOCK, |first, part| {
                for (x, p) in x[first * ROW_BLOCK..].chunks(ROW_BLOCK).zip(part) {
                    *p = one_block::<KIND>(x);
                }
            });
            let total = partial.iter().fold(identity::<KIND>() as f64, |t, &p| combine::<KIND>(t, p as f64));
            *out = (total * scale) as f32;
        }
    } else {
        par_rows_mut(out, 1, len, |first, out| rows::<KIND>(&x[first * len..][..out.len() * len], len, scale, out));
    }
}

fn reduce_columns<const KIND: usize>(x: &[f32], outer: usize, len: usize, inner: usize, scale: f64, out: &mut [f32]) {
    let (tiles, chunks) = (inner.div_ceil(COLUMN_TILE), len.div_ceil(ROW_CHUNK));
    let mut partial = vec![identity::<KIND>() as f64; outer * chunks * inner];
    let shared = SharedMut::new(&mut partial);
    par_blocks(outer * chunks * tiles, 1, len.min(ROW_CHUNK) * inner.min(COLUMN_TILE), |task, _| {
        let (o, chunk, tile) = (task / (chunks * tiles), task / tiles % chunks, task % tiles);
        let (column, row) = (tile * COLUMN_TILE, chunk * ROW_CHUNK);
        let width = COLUMN_TILE.min(inner - column);
        let start = (o * chunks + chunk) * inner + column;
        // SAFETY: each task has its own outer index, chunk and tile.
        let acc = unsafe { shared.slice(start..start + width) };
        columns::<KIND>(&x[(o * len + row) * inner + column..], inner, ROW_CHUNK.min(len - row), acc);
    });
    for (partial, out) in partial.chunks_exact(chunks * inner).zip(out.chunks_exact_mut(inner)) {
        let mut total = vec![identity::<KIND>() as f64; inner];
        for part in partial.chunks_exact(inner) {
            total.iter_mut().zip(part).for_each(|(total, &part)| *total = combine::<KIND>(*total, part));
        }
        out.iter_mut().zip(total).for_each(|(out, total)| *out = (total * scale) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::with_threads;

    fn data(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1009) as f32 - 300.0) / 64.0 + (i % 3) as f32 * 0.1).collect()
    }

    const KINDS: [Kind; 5] = [Kind::Sum, Kind::Mean, Kind::Max, Kind::Min, Kind::SumSq];

    #[test]
    fn every_kind_agrees_with_f64_loops_within_the_blocked_bound() {
        for (outer, len, inner) in [
            (1, 1, 1),
            (3, 17, 1),
            (2, 1023, 1),
            (5, 1025, 1),
            (1, 70001, 1),
            (1, 3, 5),
            (1, 513, 257),
            (3, 31, 2),
            (2, 1025, 7),
            (4, 33, 300),
            (0, 4, 4),
            (4, 4, 0),
            (129, 64, 1),
            (1, 200_003, 1),
            (2, 2, 1),
        ] {
            let x = data(outer * len * inner);
            for kind in KINDS {
                let mut out = vec![f32::NAN; outer * inner];
                reduce(kind, &x, outer, len, inner, &mut out);
                for o in 0..outer {
                    for i in 0..inner {
                        let column = (0..len).map(|l| x[(o * len + l) * inner + i] as f64);
                        let (want, size) = match kind {
                            Kind::Sum => (column.clone().sum::<f64>(), column.map(f64::abs).sum::<f64>()),
                            Kind::Mean => {
                                let n = len as f64;
                                (column.clone().sum::<f64>() / n, column.map(f64::abs).sum::<f64>() / n)
                            }
                            Kind::Max => (column.clone().fold(f64::MIN, f64::max), 0.0),
                            Kind::Min => (column.clone().fold(f64::MAX, f64::min), 0.0),
                            Kind::SumSq => (column.clone().map(|v| v * v).sum::<f64>(), column.map(|v| v * v).sum()),
                        };
                        // at most 33 roundings on any path (a group of rows, or 17 + 6 in a block), and the final one
                        let bound = 36.0 * 2f64.powi(-24) * size;
                        let got = out[o * inner + i] as f64;
                        assert!((got - want).abs() <= bound, "{kind:?} [{outer}, {len}, {inner}]: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        for (outer, len, inner) in [(1, 300_001, 1), (300, 1031, 1), (1, 5003, 67), (3, 1200, 300)] {
            let x = data(outer * len * inner);
            let run = |threads| {
                with_threads(threads, || {
                    let mut out = vec![0.0; outer * inner];
                    reduce(Kind::Sum, &x, outer, len, inner, &mut out);
                    out
                })
            };
            let one = run(1);
            for threads in [2, 3, 8] {
                assert_eq!(one, run(threads));
            }
        }
    }

    #[test]
    fn an_empty_axis_gives_the_identity() {
        let reduce_empty = |kind| {
            let mut out = [7.0; 2];
            reduce(kind, &[], 1, 0, 2, &mut out);
            out[1]
        };
        assert_eq!(reduce_empty(Kind::Sum), 0.0);
        assert!(reduce_empty(Kind::Mean).is_nan());
        assert_eq!(reduce_empty(Kind::Max), f32::NEG_INFINITY);
        assert_eq!(reduce_empty(Kind::Min), f32::INFINITY);
    }

    #[test]
    fn error_does_not_grow_with_the_length() {
        let n = 10_000_019;
        let x = vec![0.1f32; n];
        let mut out = [0.0];
        reduce(Kind::Mean, &x, 1, n, 1, &mut out);
        assert!((out[0] - 0.1).abs() <= 0.1 * 24.0 * 2f32.powi(-24));
    }
}
