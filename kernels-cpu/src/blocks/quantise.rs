//! Rows of `f32` into stored formats. Scales are rounded to their stored precision before codes are chosen with them, in our own
//! formats; in those of ggml codes are chosen as its reference does. A block with a number that is not finite gets a scale that is not
//! finite, so that it stays visible.

use super::dequantise::row_bytes;
use super::search::{best_affine, best_symmetric, q4_k, q6_k};
use super::{Format, NF4};
use crate::half::{f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::simd::{LANES, Lanes};
use crate::threads::par_rows_mut;

/// Whether [`quantise_row`] writes the format.
pub fn can_quantise(format: Format) -> bool {
    !matches!(format, Format::Q2K | Format::Q3K | Format::Q5K)
}

/// Narrows one row. With `importance`, one weight of at least 0 a column (the mean square of what the column is multiplied with),
/// scales minimise the error so weighted; `F32`, `F16`, `BF16`, `Q8_0` and `Int8Row` have nothing to choose and ignore it.
///
/// # Errors
/// A format that is only read, or rows that are not whole blocks.
///
/// # Panics
/// If `bytes` or `importance` do not have the length that a row of `x.len()` numbers asks for.
pub fn quantise_row(format: Format, x: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) -> Result<(), String> {
    if !can_quantise(format) {
        return Err(format!("{format} is only read; write q4_k or q6_k instead"));
    }
    let expected = format.row_bytes(x.len())?;
    assert_eq!(bytes.len(), expected, "blocks: a row of {} numbers in {format}", x.len());
    if let Some(importance) = importance {
        assert_eq!(importance.len(), x.len(), "blocks: one importance a column");
    }
    dispatched(format, x, importance, bytes);
    Ok(())
}

crate::multiversion! {
    fn dispatched<V>(format: Format, x: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
        row(format, x, importance, bytes);
    }
}

#[inline(always)]
fn row(format: Format, x: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    match format {
        Format::F32 => each(x, None, bytes, |x: &[f32; 1], _, b: &mut [u8; 4]| *b = x[0].to_le_bytes()),
        Format::F16 => each(x, None, bytes, |x: &[f32; 1], _, b: &mut [u8; 2]| *b = f32_to_f16(x[0]).to_le_bytes()),
        Format::Bf16 => each(x, None, bytes, |x: &[f32; 1], _, b: &mut [u8; 2]| *b = f32_to_bf16(x[0]).to_le_bytes()),
        Format::Q4_0 => each(x, importance, bytes, q4_0),
        Format::Q4_1 => each(x, importance, bytes, q4_1),
        Format::Q5_0 => each(x, importance, bytes, q5_0),
        Format::Q5_1 => each(x, importance, bytes, q5_1),
        Format::Q8_0 => each(x, None, bytes, |x: &[f32; 32], _, b: &mut [u8; 34]| q8_0(x, b)),
        Format::Q4K => each(x, importance, bytes, q4_k),
        Format::Q6K => each(x, importance, bytes, q6_k),
        Format::Int8Row => int8_row(x, bytes),
        Format::Int4Group(n) => {
            for (i, (x, b)) in x.chunks_exact(n as usize).zip(bytes.chunks_exact_mut(2 + n as usize / 2)).enumerate() {
                levels(x, importance.map(|w| &w[i * n as usize..][..n as usize]), b, &INT4);
            }
        }
        Format::Nf4 => each(x, importance, bytes, |x: &[f32; 64], w, b: &mut [u8; 34]| {
            levels(x, w.map(|w| w.as_slice()), b, &NF4_LEVELS);
        }),
        Format::Q2K | Format::Q3K | Format::Q5K => unreachable!("only read"),
    }
}

/// Narrows rows of `columns` numbers, on several threads where that is worth it; `importance` is one weight a column.
///
/// # Errors
/// As [`quantise_row`].
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn quantise_rows(
    format: Format,
    columns: usize,
    x: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
) -> Result<(), String> {
    format.row_bytes(columns)?;
    if !can_quantise(format) {
        return quantise_row(format, &[], None, &mut []);
    }
    if x.is_empty() && bytes.is_empty() {
        return Ok(());
    }
    let row_bytes = row_bytes(format, columns);
    assert!(columns > 0 && x.len().is_multiple_of(columns), "blocks: x must be rows of {columns}");
    assert_eq!(bytes.len(), x.len() / columns * row_bytes, "blocks: bytes must be rows of {row_bytes}");
    // the searches of Q4_K and Q6_K take some twenty passes
    let cost = if matches!(format, Format::Q4K | Format::Q6K) || importance.is_some() { 64 } else { 4 };
    par_rows_mut(bytes, row_bytes, cost * columns, |first, part| {
        for (i, b) in part.chunks_exact_mut(row_bytes).enumerate() {
            let done = quantise_row(format, &x[(first + i) * columns..][..columns], importance, b);
            debug_assert!(done.is_ok(), "checked before");
        }
    });
    Ok(())
}

#[inline(always)]
fn each<const LEN: usize, const BYTES: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
    block: impl Fn(&[f32; LEN], Option<&[f32; LEN]>, &mut [u8; BYTES]),
) {
    let importance = importance.map(|w| w.as_chunks::<LEN>().0);
    for (i, (x, b)) in x.as_chunks::<LEN>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0).enumerate() {
        block(x, importance.map(|w| &w[i]), b);
    }
}

/// The scale, or NaN where a number is not finite.
#[inline(always)]
fn visible(scale: f32, x: &[f32]) -> f32 {
    if sum(x.len(), |i| x[i] * 0.0) == 0.0 { scale } else { f32::NAN }
}

/// Sums in a fixed order that vectorises: term i goes to partial sum i mod 16.
#[inline(always)]
pub(super) fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = n / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, s) in lanes.iter_mut().enumerate() {
            *s += term(first + lane);
        }
    }
    for (i, s) in (whole..n).zip(&mut lanes) {
        *s += term(i);
    }
    Lanes(lanes).sum()
}

#[inline(always)]
pub(super) fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The number of greatest magnitude, with its sign; the first of equals.
#[inline(always)]
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m: f32, &x| if x.abs() > m.abs() { x } else { m })
}

#[inline(always)]
fn put_f16(b: &mut [u8], at: usize, value: f32) {
    b[at..at + 2].copy_from_slice(&f32_to_f16(value).to_le_bytes());
}

/// The weights of a search: importance times what ggml found to follow large numbers a little more, sqrt(2 mean square + x^2).
#[inline(always)]
pub(super) fn search_weights<const N: usize>(x: &[f32; N], importance: &[f32; N], mean_square: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (2.0 * mean_square + x[i] * x[i]).sqrt())
}

#[inline(always)]
pub(super) fn mean_square(x: &[f32]) -> f32 {
    sum(x.len(), |i| x[i] * x[i]) / x.len() as f32
}

/// Scale and codes, 0 to `2 levels - 1`, of a symmetric block: as ggml's reference, or the best for the weights.
#[inline(always)]
fn symmetric(x: &[f32; 32], importance: Option<&[f32; 32]>, levels: i32) -> (f32, [u8; 32]) {
    let d = match importance {
        Some(importance) => best_symmetric(x, &search_weights(x, importance, mean_square(x)), levels),
        None => extreme(x) / -levels as f32,
    };
    let (id, half) = (inverse(d), levels as f32 + 0.5);
    (visible(d, x), x.map(|x| ((x * id + half) as u8).min((2 * levels - 1) as u8)))
}

/// Scale, minimum and codes, 0 to `levels`, of a block with a minimum.
#[inline(always)]
fn affine(x: &[f32; 32], importance: Option<&[f32; 32]>, levels: u8) -> (f32, f32, [u8; 32]) {
    let (d, m) = match importance {
        Some(importance) => best_affine(x, &search_weights(x, importance, mean_square(x)), levels, false),
        None => {
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let min = x.iter().copied().fold(f32::INFINITY, f32::min);
            ((max - min) / levels as f32, min)
        }
    };
    let id = inverse(d);
    (visible(d, x), m, x.map(|x| (((x - m) * id + 0.5) as u8).min(levels)))
}

/// The low nibbles of the codes: the first half of the block low, the second high.
#[inline(always)]
fn put_nibbles(q: &[u8; 32], b: &mut [u8]) {
    for i in 0..16 {
        b[i] = q[i] & 15 | q[i + 16] << 4;
    }
}

#[inline(always)]
fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    q.iter().enumerate().fold(0u32, |bits, (i, &q)| bits | (q as u32 >> 4 & 1) << i).to_le_bytes()
}

#[inline(always)]
fn q4_0(x: &[f32; 32], importance: Option<&[f32; 32]>, b: &mut [u8; 18]) {
    let (d, q) = symmetric(x, importance, 8);
    put_f16(b, 0, d);
    put_nibbles(&q, &mut b[2..]);
}

#[inline(always)]
fn q5_0(x: &[f32; 32], importance: Option<&[f32; 32]>, b: &mut [u8; 22]) {
    let (d, q) = symmetric(x, importance, 16);
    put_f16(b, 0, d);
    b[2..6].copy_from_slice(&fifth_bits(&q));
    put_nibbles(&q, &mut b[6..]);
}

#[inline(always)]
fn q4_1(x: &[f32; 32], importance: Option<&[f32; 32]>, b: &mut [u8; 20]) {
    let (d, m, q) = affine(x, importance, 15);
    put_f16(b, 0, d);
    put_f16(b, 2, m);
    put_nibbles(&q, &mut b[4..]);
}

#[inline(always)]
fn q5_1(x: &[f32; 32], importance: Option<&[f32; 32]>, b: &mut [u8; 24]) {
    let (d, m, q) = affine(x, importance, 31);
    put_f16(b, 0, d);
    put_f16(b, 2, m);
    b[4..8].copy_from_slice(&fifth_bits(&q));
    put_nibbles(&q, &mut b[8..]);
}

#[inline(always)]
fn q8_0(x: &[f32; 32], b: &mut [u8; 34]) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    put_f16(b, 0, visible(d, x));
    for (b, &x) in b[2..].iter_mut().zip(x) {
        *b = (x * id).round() as i8 as u8;
    }
}

#[inline(always)]
fn int8_row(x: &[f32], bytes: &mut [u8]) {
    let (scale, codes) = bytes.split_at_mut(4);
    let s = extreme(x).abs() / 127.0;
    // below the smallest normal number the inverse may be infinite: all codes are 0
    let s = if s >= f32::MIN_POSITIVE { s } else { 0.0 };
    let id = inverse(s);
    scale.copy_from_slice(&visible(s, x).to_le_bytes());
    for (b, &x) in codes.iter_mut().zip(x) {
        *b = (x * id).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}

/// The numbers that codes stand for, in ascending order, times the scale.
struct Levels {
    /// What the number of greatest magnitude is divided by.
    reach: f32,
    code: fn(f32) -> u8,
    value: fn(u8) -> f32,
}

const INT4: Levels =
    Levels { reach: 7.0, code: |x| (x.round_ties_even().clamp(-7.0, 7.0) + 8.0) as u8, value: |q| q as f32 - 8.0 };

const NF4_LEVELS: Levels = Levels { reach: 1.0, code: nf4_code, value: |q| NF4[q as usize] };

/// The index of the nearest level; of the lower one where two are equally near.
#[inline(always)]
fn nf4_code(x: f32) -> u8 {
    NF4.windows(2).filter(|pair| x > (pair[0] + pair[1]) / 2.0).count() as u8
}

/// Steps of the search for a smaller scale: from 1 down to 0.6 of the one that clips nothing.
const CLIP_STEPS: usize = 20;

#[inline(always)]
fn levels(x: &[f32], importance: Option<&[f32]>, b: &mut [u8], levels: &Levels) {
    let full = extreme(x).abs() / levels.reach;
    let rounded = |s: f32| f16_to_f32(f32_to_f16(s));
    let mut scale = rounded(full);
    if let Some(importance) = importance.filter(|_| scale.is_finite()) {
        let mut best = f32::INFINITY;
        for step in 0..=CLIP_STEPS {
            let s = rounded(full * (1.0 - 0.4 * step as f32 / CLIP_STEPS as f32));
            let id = inverse(s);
            let error = sum(x.len(), |i| {
                let e = x[i] - s * (levels.value)((levels.code)(x[i] * id));
                importance[i] * e * e
            });
            if error < best {
                (best, scale) = (error, s);
            }
        }
    }
    let id = inverse(scale);
    put_f16(b, 0, visible(scale, x));
    let (low, high) = x.split_at(x.len() / 2);
    for ((b, &low), &high) in b[2..].iter_mut().zip(low).zip(high) {
        *b = (levels.code)(low * id) | (levels.code)(high * id) << 4;
    }
}
