//! The rows of `x` in the order in which the kernels of tiles read them. Rows are taken in groups; a group's numbers are interleaved, so
//! that a kernel goes through them with one pointer: `[group][step][row of the group]`. A step is one number of f32, or a word of four int8.

use super::lanes::Kind;
use crate::simd::{Isa, LANES, Lanes};
use crate::threads::{SharedMut, par_rows};
use std::cell::Cell;
use std::ops::Range;

/// Numbers of a row of activations that share a scale when they are rounded to int8.
pub const BLOCK: usize = 32;
/// Words of a block.
pub(super) const BLOCK_WORDS: usize = BLOCK / 4;

/// The scale of a block, `max |x| / 127` in f32, or 0 where that is no normal number, and its inverse. With a number that is not finite the
/// scale is not, so that it stays visible.
#[inline(always)]
fn scale<V: Isa>(x: &[f32; BLOCK]) -> (f32, f32) {
    let (mut greatest, mut poison) = (Lanes::splat(0.0), Lanes::splat(0.0));
    for part in x.chunks_exact(LANES) {
        let part = Lanes::load(part);
        let mut magnitude = part;
        for m in &mut magnitude.0 {
            *m = m.abs();
        }
        greatest = magnitude.max(greatest);
        poison = part.fma::<V>(Lanes::splat(0.0), poison);
    }
    let scale = greatest.reduce_max() / 127.0 + poison.sum();
    let usable = scale >= f32::MIN_POSITIVE;
    (if usable || scale.is_nan() { scale } else { 0.0 }, if usable { 1.0 / scale } else { 0.0 })
}

/// `x / scale`, rounded to the nearest integer, ties to even.
#[inline(always)]
fn round(x: f32, inverse: f32) -> i8 {
    // adding 1.5 * 2^23 leaves the integer in the low bits
    ((x * inverse).clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i8
}

/// A block of a row, filled up with zeros.
#[inline(always)]
fn block(x: &[f32]) -> [f32; BLOCK] {
    let mut all = [0.0; BLOCK];
    all[..x.len()].copy_from_slice(x);
    all
}

crate::multiversion! {
    /// Rounds one row to int8: words for all its blocks `stride` apart, and for every block the scale and, for each of its `parts`, what
    /// the sum of the codes is multiplied with `offset`, also `stride` apart.
    fn quantise_row<V>(
        x: &[f32], stride: usize, offset: i32, parts: usize, words: &mut [i32], scales: &mut [f32], offsets: &mut [i32],
    ) {
        for (b, part) in x.chunks(BLOCK).enumerate() {
            let part = block(part);
            let (scale, inverse) = scale::<V>(&part);
            let mut q = [0i8; BLOCK];
            for (q, &x) in q.iter_mut().zip(&part) {
                *q = round(x, inverse);
            }
            scales[b * stride] = scale;
            for (p, q) in q.chunks_exact(BLOCK / parts).enumerate() {
                offsets[(b * parts + p) * stride] = offset * q.iter().map(|&q| i32::from(q)).sum::<i32>();
            }
            let word = |q: &[i8; 4]| i32::from_le_bytes(q.map(|q| q as u8));
            let q = q.as_chunks::<4>().0.iter().map(word);
            if stride == 1 {
                // A copy, which the loop over a distance that is not known is not.
                words[b * BLOCK_WORDS..][..BLOCK_WORDS].iter_mut().zip(q).for_each(|(word, q)| *word = q);
            } else {
                q.enumerate().for_each(|(w, q)| words[(b * BLOCK_WORDS + w) * stride] = q);
            }
        }
    }

    /// One row rounded to int8 and back.
    fn round_row<V>(x: &[f32], rounded: &mut [f32]) {
        for (x, rounded) in x.chunks(BLOCK).zip(rounded.chunks_mut(BLOCK)) {
            let part = block(x);
            let (scale, inverse) = scale::<V>(&part);
            for (r, &x) in rounded.iter_mut().zip(&part) {
                *r = scale * f32::from(round(x, inverse));
            }
        }
    }
}

/// Rows of `columns` numbers as what [`Activations::Int8`](super::Activations) makes of them, in f32: in every block of [`BLOCK`] numbers (the
/// last of a row may be shorter) `scale round(x (1 / scale))` with `scale = max |x| / 127`, ties to even, all in f32 arithmetic; a block
/// whose scale is no normal number becomes zeros.
///
/// # Panics
/// If the lengths differ or are not whole rows.
pub fn round_rows(columns: usize, x: &[f32], rounded: &mut [f32]) {
    assert!(x.len() == rounded.len() && x.len().is_multiple_of(columns.max(1)), "rows of {columns} numbers");
    let out = SharedMut::new(rounded);
    par_rows(x.len() / columns.max(1), 4 * columns, |rows| {
        for r in rows {
            let row = r * columns..(r + 1) * columns;
            // SAFETY: rows are disjoint.
            round_row(&x[row.clone()], unsafe { out.slice(row) });
        }
    });
}

/// How rows are grouped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub m: usize,
    /// Rows of a group; the last may have fewer.
    pub rows: usize,
}

impl Groups {
    pub fn count(&self) -> usize {
        self.m.div_ceil(self.rows)
    }
    pub fn range(&self, group: usize) -> Range<usize> {
        group * self.rows..self.m.min((group + 1) * self.rows)
    }
}

/// Activations rounded to int8.
#[derive(Default)]
pub(super) struct Quantised {
    /// Blocks of a row.
    pub blocks: usize,
    pub words: Vec<i32>,
    pub scales: Vec<f32>,
    /// What the sum of a block, or of a part of one, starts from: it makes up for the offset that the codes of weights have.
    pub offsets: Vec<i32>,
}

thread_local! {
    static QUANTISED: Cell<Option<Quantised>> = const { Cell::new(None) };
    static INTERLEAVED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `x` [m, columns] rounded to int8, for weights whose codes are `-offset` too large; sums are those of `parts` equal parts of
/// each block.
pub(super) fn with_quantised(
    groups: Groups,
    columns: usize,
    x: &[f32],
    offset: i32,
    parts: usize,
    f: impl FnOnce(&Quantised),
) {
    let mut q = QUANTISED.take().unwrap_or_default();
    q.blocks = columns.div_ceil(BLOCK);
    let blocks = groups.m * q.blocks;
    q.words.resize(blocks * BLOCK_WORDS, 0);
    q.scales.resize(blocks, 0.0);
    q.offsets.resize(blocks * parts, 0);
    let per_row = q.blocks;
    let (words, scales, offsets) =
        (SharedMut::new(&mut q.words), SharedMut::new(&mut q.scales), SharedMut::new(&mut q.offsets));
    par_rows(groups.count(), 4 * columns * groups.rows, |range| {
        for group in range {
            let rows = groups.range(group);
            let part = rows.start * per_row..rows.end * per_row;
            // SAFETY: groups are disjoint.
            let (words, scales, offsets) = unsafe {
                (
                    words.slice(part.start * BLOCK_WORDS..part.end * BLOCK_WORDS),
                    scales.slice(part.clone()),
                    offsets.slice(part.start * parts..part.end * parts),
                )
            };
            for (i, r) in rows.clone().enumerate() {
                let row = &x[r * columns..][..columns];
                quantise_row(row, rows.len(), offset, parts, &mut words[i..], &mut scales[i..], &mut offsets[i..]);
            }
        }
    });
    f(&q);
    QUANTISED.set(Some(q));
}

/// Calls `f` with `x` [m, columns] interleaved, rows filled up with zeros to `padded` numbers.
pub(super) fn with_interleaved(groups: Groups, columns: usize, padded: usize, x: &[f32], f: impl FnOnce(&[f32])) {
    if groups.m == 1 && padded == columns {
        return f(x);
    }
    let mut all = INTERLEAVED.take();
    all.resize(groups.m * padded, 0.0);
    let out = SharedMut::new(&mut all);
    par_rows(groups.count(), 2 * columns * groups.rows, |range| {
        for group in range {
            let rows = groups.range(group);
            // SAFETY: groups are disjoint.
            let part = unsafe { out.slice(rows.start * padded..rows.end * padded) };
            for (k, step) in part.chunks_exact_mut(rows.len()).enumerate() {
                for (to, r) in step.iter_mut().zip(rows.clone()) {
                    *to = if k < columns { x[r * columns + k] } else { 0.0 };
                }
            }
        }
    });
    f(&all);
    INTERLEAVED.set(all);
}

/// The groups that an instruction set's kernels take.
pub(super) fn groups(kind: Kind, m: usize) -> Groups {
    Groups { m, rows: kind.rows() }
}
