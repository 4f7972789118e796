//! Rows of stored numbers as `f32`, bit for bit as ggml and the `gguf` package define them: scales are widened from f16, multiplied in
//! f32 in the order of the definition, and nothing is fused.

use super::{Format, NF4};
use crate::half::{bf16_to_f32, f16_to_f32};
use crate::threads::par_rows_mut;

/// Widens one row: `x` gets the numbers that `bytes` stand for.
///
/// # Panics
/// If `bytes` are not as many as a row of `x.len()` numbers has.
pub fn dequantise_row(format: Format, bytes: &[u8], x: &mut [f32]) {
    dispatched(format, bytes, x);
}

crate::multiversion! {
    fn dispatched<V>(format: Format, bytes: &[u8], x: &mut [f32]) {
        dequantise_row_inline(format, bytes, x);
    }
}

/// Widens `rows [rows, row_bytes]` into `x [rows, columns]`, on several threads where that is worth it.
///
/// # Panics
/// If a slice does not have its shape's length, or rows are not whole blocks.
pub fn dequantise_rows(format: Format, columns: usize, bytes: &[u8], x: &mut [f32]) {
    if x.is_empty() && bytes.is_empty() {
        return;
    }
    let row_bytes = row_bytes(format, columns);
    assert!(columns > 0 && x.len().is_multiple_of(columns), "blocks: x must be rows of {columns}");
    assert_eq!(bytes.len(), x.len() / columns * row_bytes, "blocks: bytes must be rows of {row_bytes}");
    par_rows_mut(x, columns, columns, |first, part| {
        for (i, x) in part.chunks_exact_mut(columns).enumerate() {
            dequantise_row(format, &bytes[(first + i) * row_bytes..][..row_bytes], x);
        }
    });
}

/// [`Format::row_bytes`] of rows that the caller vouches for.
///
/// # Panics
/// If rows are not whole blocks.
pub(super) fn row_bytes(format: Format, columns: usize) -> usize {
    match format.row_bytes(columns) {
        Ok(bytes) => bytes,
        Err(e) => panic!("blocks: {e}"),
    }
}

/// [`dequantise_row`] without the choice of an instruction set: for bodies of [`multiversion!`](crate::multiversion).
///
/// # Panics
/// As [`dequantise_row`].
#[inline(always)]
pub fn dequantise_row_inline(format: Format, bytes: &[u8], x: &mut [f32]) {
    assert_eq!(bytes.len(), row_bytes(format, x.len()), "blocks: a row of {} numbers in {format}", x.len());
    match format {
        Format::F32 => each(bytes, x, |b: &[u8; 4], x: &mut [f32; 1]| x[0] = f32::from_le_bytes(*b)),
        Format::F16 => each(bytes, x, |b: &[u8; 2], x: &mut [f32; 1]| x[0] = f16_to_f32(u16::from_le_bytes(*b))),
        Format::Bf16 => each(bytes, x, |b: &[u8; 2], x: &mut [f32; 1]| x[0] = bf16_to_f32(u16::from_le_bytes(*b))),
        Format::Q4_0 => each(bytes, x, q4_0),
        Format::Q4_1 => each(bytes, x, q4_1),
        Format::Q5_0 => each(bytes, x, q5_0),
        Format::Q5_1 => each(bytes, x, q5_1),
        Format::Q8_0 => each(bytes, x, q8_0),
        Format::Q2K => each(bytes, x, q2_k),
        Format::Q3K => each(bytes, x, q3_k),
        Format::Q4K => each(bytes, x, q4_k),
        Format::Q5K => each(bytes, x, q5_k),
        Format::Q6K => each(bytes, x, q6_k),
        Format::Int8Row => int8_row(bytes, x),
        Format::Int4Group(n) => int4_groups(n as usize, bytes, x),
        Format::Nf4 => each(bytes, x, nf4),
    }
}

#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    x: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (b, x) in bytes.as_chunks::<BYTES>().0.iter().zip(x.as_chunks_mut::<LEN>().0) {
        block(b, x);
    }
}

/// The f16 at `at`.
#[inline(always)]
fn f16_at(b: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([b[at], b[at + 1]]))
}

/// `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(b: &[u8], at: usize) -> &[u8; N] {
    b[at..at + N].try_into().expect("N bytes")
}

/// `N` numbers from `at` on.
#[inline(always)]
fn part_mut<const N: usize>(x: &mut [f32], at: usize) -> &mut [f32; N] {
    (&mut x[at..at + N]).try_into().expect("N numbers")
}

/// Block of [`Format::Q4_0`].
#[inline(always)]
pub fn q4_0(b: &[u8; 18], x: &mut [f32; 32]) {
    let (d, qs) = (f16_at(b, 0), part::<16>(b, 2));
    for i in 0..16 {
        x[i] = d * ((qs[i] & 15) as i32 - 8) as f32;
        x[i + 16] = d * ((qs[i] >> 4) as i32 - 8) as f32;
    }
}

/// Block of [`Format::Q4_1`].
#[inline(always)]
pub fn q4_1(b: &[u8; 20], x: &mut [f32; 32]) {
    let (d, m, qs) = (f16_at(b, 0), f16_at(b, 2), part::<16>(b, 4));
    for i in 0..16 {
        x[i] = d * (qs[i] & 15) as f32 + m;
        x[i + 16] = d * (qs[i] >> 4) as f32 + m;
    }
}

/// The 32 codes of 5 bits: nibbles `qs`, the fifth bits in `qh`.
#[inline(always)]
fn five_bits(qh: &[u8; 4], qs: &[u8; 16]) -> [i32; 32] {
    let qh = u32::from_le_bytes(*qh);
    let mut q = [0; 32];
    for i in 0..16 {
        q[i] = (qs[i] & 15) as i32 | ((qh >> i & 1) << 4) as i32;
        q[i + 16] = (qs[i] >> 4) as i32 | ((qh >> (i + 16) & 1) << 4) as i32;
    }
    q
}

/// Block of [`Format::Q5_0`].
#[inline(always)]
pub fn q5_0(b: &[u8; 22], x: &mut [f32; 32]) {
    let (d, q) = (f16_at(b, 0), five_bits(part(b, 2), part(b, 6)));
    for (x, q) in x.iter_mut().zip(q) {
        *x = d * (q - 16) as f32;
    }
}

/// Block of [`Format::Q5_1`].
#[inline(always)]
pub fn q5_1(b: &[u8; 24], x: &mut [f32; 32]) {
    let (d, m, q) = (f16_at(b, 0), f16_at(b, 2), five_bits(part(b, 4), part(b, 8)));
    for (x, q) in x.iter_mut().zip(q) {
        *x = d * q as f32 + m;
    }
}

/// Block of [`Format::Q8_0`].
#[inline(always)]
pub fn q8_0(b: &[u8; 34], x: &mut [f32; 32]) {
    let (d, qs) = (f16_at(b, 0), part::<32>(b, 2));
    for (x, &q) in x.iter_mut().zip(qs) {
        *x = d * (q as i8) as f32;
    }
}

/// Superblock of [`Format::Q2K`]: 16 bytes with a 4-bit scale (low) and minimum (high) for every 16 numbers, 64 bytes of codes, f16 d
/// and dmin. Each half of 128 numbers has 32 bytes of codes; its block of 32 numbers number j has bits 2j and 2j + 1 of them.
#[inline(always)]
pub fn q2_k(b: &[u8; 84], x: &mut [f32; 256]) {
    let (scales, d, dmin) = (part::<16>(b, 0), f16_at(b, 80), f16_at(b, 82));
    for (g, &scale) in scales.iter().enumerate() {
        let (half, j, side) = (g / 8, g / 2 % 4, g % 2);
        let qs = part::<16>(b, 16 + 32 * half + 16 * side);
        let (dl, ml) = (d * (scale & 15) as f32, dmin * (scale >> 4) as f32);
        let x = part_mut::<16>(x, 16 * g);
        for i in 0..16 {
            x[i] = dl * (qs[i] >> (2 * j) & 3) as f32 - ml;
        }
    }
}

/// Superblock of [`Format::Q3K`]: 32 bytes of third bits (bit g / 2 of byte i: block of 32 number g / 2, number i; a set bit means that
/// nothing is subtracted), 64 bytes of codes as in [`q2_k`], 12 bytes of 6-bit scales plus 32, f16 d.
#[inline(always)]
pub fn q3_k(b: &[u8; 110], x: &mut [f32; 256]) {
    let (scales, d) = (part::<12>(b, 96), f16_at(b, 108));
    for g in 0..16 {
        let (half, j, side) = (g / 8, g / 2 % 4, g % 2);
        let low = if g < 8 { scales[g] & 15 } else { scales[g - 8] >> 4 };
        let high = scales[8 + g % 4] >> (2 * (g / 4)) & 3;
        let dl = d * ((low | high << 4) as i32 - 32) as f32;
        let qs = part::<16>(b, 32 + 32 * half + 16 * side);
        let mask = part::<16>(b, 16 * side);
        let x = part_mut::<16>(x, 16 * g);
        for i in 0..16 {
            let high = (mask[i] >> (g / 2) & 1) << 2;
            x[i] = dl * ((qs[i] >> (2 * j) & 3 | high) as i32 - 4) as f32;
        }
    }
}

/// The eight 6-bit scales and the eight minima of [`Format::Q4K`] and [`Format::Q5K`]: bytes 0 to 3 hold scales 0 to 3 and bytes 4 to 7
/// minima 0 to 3 in their low six bits, and in their high two those of scales and minima 4 to 7, whose low four bits are the nibbles of
/// bytes 8 to 11.
#[inline(always)]
pub fn scales_and_minima(scales: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut s, mut m) = ([0; 8], [0; 8]);
    for i in 0..4 {
        s[i] = scales[i] & 63;
        m[i] = scales[i + 4] & 63;
        s[i + 4] = scales[i + 8] & 15 | scales[i] >> 6 << 4;
        m[i + 4] = scales[i + 8] >> 4 | scales[i + 4] >> 6 << 4;
    }
    (s, m)
}

/// Superblock of [`Format::Q4K`]: f16 d and dmin, 12 bytes of [`scales_and_minima`], 128 bytes of codes: 32 bytes for two blocks of 32,
/// the first in the low nibbles.
#[inline(always)]
pub fn q4_k(b: &[u8; 144], x: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, minima) = scales_and_minima(part(b, 4));
    for j in 0..4 {
        let qs = part::<32>(b, 16 + 32 * j);
        let (d0, m0) = (d * scales[2 * j] as f32, dmin * minima[2 * j] as f32);
        let (d1, m1) = (d * scales[2 * j + 1] as f32, dmin * minima[2 * j + 1] as f32);
        let x = part_mut::<64>(x, 64 * j);
        for i in 0..32 {
            x[i] = d0 * (qs[i] & 15) as f32 - m0;
        }
        for i in 0..32 {
            x[i + 32] = d1 * (qs[i] >> 4) as f32 - m1;
        }
    }
}

/// Superblock of [`Format::Q5K`]: as [`q4_k`] with 32 bytes of fifth bits before the codes; bit j of byte i belongs to number i of block j.
#[inline(always)]
pub fn q5_k(b: &[u8; 176], x: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, minima) = scales_and_minima(part(b, 4));
    let qh = part::<32>(b, 16);
    for j in 0..8 {
        let qs = part::<32>(b, 48 + 32 * (j / 2));
        let (d, m) = (d * scales[j] as f32, dmin * minima[j] as f32);
        let x = part_mut::<32>(x, 32 * j);
        for i in 0..32 {
            let q = qs[i] >> (4 * (j % 2)) & 15 | (qh[i] >> j & 1) << 4;
            x[i] = d * q as f32 - m;
        }
    }
}

/// Superblock of [`Format::Q6K`]: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, f16 d. Each half of 128 numbers has 64
/// bytes of nibbles (numbers 0 to 63 low, 64 to 127 high) and 32 bytes of pairs (block of 32 number j: bits 2j and 2j + 1).
#[inline(always)]
pub fn q6_k(b: &[u8; 210], x: &mut [f32; 256]) {
    let (scales, d) = (part::<16>(b, 192), f16_at(b, 208));
    for (g, &scale) in scales.iter().enumerate() {
        let (half, j, side) = (g / 8, g / 2 % 4, g % 2);
        let dl = d * (scale as i8) as f32;
        let ql = part::<16>(b, 64 * half + 32 * (j % 2) + 16 * side);
        let qh = part::<16>(b, 128 + 32 * half + 16 * side);
        let x = part_mut::<16>(x, 16 * g);
        for i in 0..16 {
            let q = ql[i] >> (4 * (j / 2)) & 15 | (qh[i] >> (2 * j) & 3) << 4;
            x[i] = dl * (q as i32 - 32) as f32;
        }
    }
}

#[inline(always)]
fn int8_row(bytes: &[u8], x: &mut [f32]) {
    let (scale, qs) = bytes.split_at(4);
    let scale = f32::from_le_bytes(scale.try_into().expect("4 bytes"));
    for (x, &q) in x.iter_mut().zip(qs) {
        *x = scale * (q as i8) as f32;
    }
}

#[inline(always)]
fn int4_groups(n: usize, bytes: &[u8], x: &mut [f32]) {
    for (b, x) in bytes.chunks_exact(2 + n / 2).zip(x.chunks_exact_mut(n)) {
        let scale = f16_at(b, 0);
        let (low, high) = x.split_at_mut(n / 2);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(&b[2..]) {
            *low = scale * ((q & 15) as i32 - 8) as f32;
            *high = scale * ((q >> 4) as i32 - 8) as f32;
        }
    }
}

/// Block of [`Format::Nf4`].
#[inline(always)]
pub fn nf4(b: &[u8; 34], x: &mut [f32; 64]) {
    let (scale, qs) = (f16_at(b, 0), part::<32>(b, 2));
    for i in 0..32 {
        x[i] = scale * NF4[(qs[i] & 15) as usize];
        x[i + 32] = scale * NF4[(qs[i] >> 4) as usize];
    }
}
