//! Rows of stored numbers as `f32`, bit for bit as ggml and the `gguf` package define them: scales are widened from f16, multiplied in
//! f32 in the order of the definition, and nothing is fused.

use super::{Format, NF4};
use crate::half::{bf16_to_f32, f16_to_f32};
use crate::simd::Isa;
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
        dequantise_row_inline::<V>(format, bytes, x);
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
fn dequantise_row_inline<V: Isa>(format: Format, bytes: &[u8], x: &mut [f32]) {
    assert_eq!(bytes.len(), row_bytes(format, x.len()), "blocks: a row of {} numbers in {format}", x.len());
    // A loop here and no function that calls another: what is called through a value is compiled for the oldest processor.
    macro_rules! each {
        ($block:ident $(::<$V:ident>)?) => {
            for (b, x) in bytes.as_chunks().0.iter().zip(x.as_chunks_mut().0) {
                $block$(::<$V>)?(b, x);
            }
        };
    }
    match format {
        Format::F32 => {
            for (b, x) in bytes.as_chunks().0.iter().zip(x) {
                *x = f32::from_le_bytes(*b);
            }
        }
        Format::F16 => {
            for (b, x) in bytes.as_chunks().0.iter().zip(x) {
                *x = f16_to_f32(u16::from_le_bytes(*b));
            }
        }
        Format::Bf16 => {
            for (b, x) in bytes.as_chunks().0.iter().zip(x) {
                *x = bf16_to_f32(u16::from_le_bytes(*b));
            }
        }
        Format::Q4_0 => each!(q4_0::<V>),
        Format::Q4_1 => each!(q4_1::<V>),
        Format::Q5_0 => each!(q5_0::<V>),
        Format::Q5_1 => each!(q5_1::<V>),
        Format::Q8_0 => each!(q8_0::<V>),
        Format::Q2K => each!(q2_k::<V>),
        Format::Q3K => each!(q3_k::<V>),
        Format::Q4K => each!(q4_k::<V>),
        Format::Q5K => each!(q5_k::<V>),
        Format::Q6K => each!(q6_k::<V>),
        Format::Int8Row => int8_row(bytes, x),
        Format::Int4Group(n) => int4_groups(n as usize, bytes, x),
        Format::Nf4 => each!(nf4),
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

/// Sixteen bytes, taken apart with shifts and masks of words: whole blocks are unrolled, and what LLVM makes of loops over single bytes
/// there is several times slower.
type Bytes = [u64; 2];

#[inline(always)]
fn bytes_at(b: &[u8], at: usize) -> Bytes {
    [u64::from_le_bytes(*part(b, at)), u64::from_le_bytes(*part(b, at + 8))]
}

/// `bits` bits of every byte, from bit `shift` on.
#[inline(always)]
fn bits(v: Bytes, shift: usize, bits: u32) -> Bytes {
    let mask = ((1u64 << bits) - 1) * 0x0101_0101_0101_0101;
    v.map(|v| v >> shift & mask)
}

/// `low | high << shift` in every byte.
#[inline(always)]
fn join(low: Bytes, high: Bytes, shift: usize) -> Bytes {
    [low[0] | high[0] << shift, low[1] | high[1] << shift]
}

/// The low sixteen bits of `v`, each a byte.
#[inline(always)]
fn spread(v: u32) -> Bytes {
    [v, v >> 8].map(|v| {
        let own = (u64::from(v & 255) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        (own + 0x7f7f_7f7f_7f7f_7f7f) >> 7 & 0x0101_0101_0101_0101
    })
}

/// `d (q - offset) - m` for sixteen numbers from `at` on; neither the offset, which is exact, nor `m` rounds where it is 0.
#[inline(always)]
fn put<V: Isa>(q: Bytes, offset: f32, d: f32, m: f32, x: &mut [f32], at: usize) {
    let x: &mut [f32; 16] = (&mut x[at..at + 16]).try_into().expect("sixteen numbers");
    #[cfg(target_arch = "x86_64")]
    {
        use crate::simd::Level;
        use std::arch::x86_64::*;
        // SAFETY (both): V says that the instructions are there; x holds sixteen numbers.
        if V::LEVEL == Level::Avx512 {
            return unsafe {
                let q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(q[1] as i64, q[0] as i64)));
                let scaled = _mm512_mul_ps(_mm512_set1_ps(d), _mm512_sub_ps(q, _mm512_set1_ps(offset)));
                _mm512_storeu_ps(x.as_mut_ptr(), _mm512_sub_ps(scaled, _mm512_set1_ps(m)));
            };
        }
        if V::LEVEL == Level::Avx2 {
            for (i, q) in q.into_iter().enumerate() {
                unsafe {
                    let q = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi64x(0, q as i64)));
                    let scaled = _mm256_mul_ps(_mm256_set1_ps(d), _mm256_sub_ps(q, _mm256_set1_ps(offset)));
                    _mm256_storeu_ps(x.as_mut_ptr().add(8 * i), _mm256_sub_ps(scaled, _mm256_set1_ps(m)));
                }
            }
            return;
        }
    }
    for (x, q) in x.iter_mut().zip(q.into_iter().flat_map(u64::to_le_bytes)) {
        *x = d * (f32::from(q) - offset) - m;
    }
}

/// Block of [`Format::Q4_0`].
#[inline(always)]
fn q4_0<V: Isa>(b: &[u8; 18], x: &mut [f32; 32]) {
    let (d, qs) = (f16_at(b, 0), bytes_at(b, 2));
    put::<V>(bits(qs, 0, 4), 8.0, d, 0.0, x, 0);
    put::<V>(bits(qs, 4, 4), 8.0, d, 0.0, x, 16);
}

/// Block of [`Format::Q4_1`].
#[inline(always)]
fn q4_1<V: Isa>(b: &[u8; 20], x: &mut [f32; 32]) {
    let (d, m, qs) = (f16_at(b, 0), f16_at(b, 2), bytes_at(b, 4));
    put::<V>(bits(qs, 0, 4), 0.0, d, -m, x, 0);
    put::<V>(bits(qs, 4, 4), 0.0, d, -m, x, 16);
}

/// The 32 codes of 5 bits: nibbles `qs`, the fifth bits in `qh`.
#[inline(always)]
fn five_bits(qh: &[u8; 4], qs: Bytes) -> [Bytes; 2] {
    let qh = u32::from_le_bytes(*qh);
    [join(bits(qs, 0, 4), spread(qh), 4), join(bits(qs, 4, 4), spread(qh >> 16), 4)]
}

/// Block of [`Format::Q5_0`].
#[inline(always)]
fn q5_0<V: Isa>(b: &[u8; 22], x: &mut [f32; 32]) {
    let (d, q) = (f16_at(b, 0), five_bits(part(b, 2), bytes_at(b, 6)));
    put::<V>(q[0], 16.0, d, 0.0, x, 0);
    put::<V>(q[1], 16.0, d, 0.0, x, 16);
}

/// Block of [`Format::Q5_1`].
#[inline(always)]
fn q5_1<V: Isa>(b: &[u8; 24], x: &mut [f32; 32]) {
    let (d, m, q) = (f16_at(b, 0), f16_at(b, 2), five_bits(part(b, 4), bytes_at(b, 8)));
    put::<V>(q[0], 0.0, d, -m, x, 0);
    put::<V>(q[1], 0.0, d, -m, x, 16);
}

/// Block of [`Format::Q8_0`].
#[inline(always)]
fn q8_0<V: Isa>(b: &[u8; 34], x: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for half in 0..2 {
        // Signed bytes plus 128.
        let q = bytes_at(b, 2 + 16 * half).map(|q| q ^ 0x8080_8080_8080_8080);
        put::<V>(q, 128.0, d, 0.0, x, 16 * half);
    }
}

/// Superblock of [`Format::Q2K`]: 16 bytes with a 4-bit scale (low) and minimum (high) for every 16 numbers, 64 bytes of codes, f16 d
/// and dmin. Each half of 128 numbers has 32 bytes of codes; its block of 32 numbers number j has bits 2j and 2j + 1 of them.
#[inline(always)]
fn q2_k<V: Isa>(b: &[u8; 84], x: &mut [f32; 256]) {
    let (scales, d, dmin) = (part::<16>(b, 0), f16_at(b, 80), f16_at(b, 82));
    for (g, &scale) in scales.iter().enumerate() {
        let (half, j, side) = (g / 8, g / 2 % 4, g % 2);
        let q = bits(bytes_at(b, 16 + 32 * half + 16 * side), 2 * j, 2);
        put::<V>(q, 0.0, d * (scale & 15) as f32, dmin * (scale >> 4) as f32, x, 16 * g);
    }
}

/// Superblock of [`Format::Q3K`]: 32 bytes of third bits (bit g / 2 of byte i: block of 32 number g / 2, number i; a set bit means that
/// nothing is subtracted), 64 bytes of codes as in [`q2_k`], 12 bytes of 6-bit scales plus 32, f16 d.
#[inline(always)]
fn q3_k<V: Isa>(b: &[u8; 110], x: &mut [f32; 256]) {
    let (scales, d) = (part::<12>(b, 96), f16_at(b, 108));
    for g in 0..16 {
        let (half, j, side) = (g / 8, g / 2 % 4, g % 2);
        let low = if g < 8 { scales[g] & 15 } else { scales[g - 8] >> 4 };
        let high = scales[8 + g % 4] >> (2 * (g / 4)) & 3;
        let dl = d * ((low | high << 4) as i32 - 32) as f32;
        let qs = bits(bytes_at(b, 32 + 32 * half + 16 * side), 2 * j, 2);
        let third = bits(bytes_at(b, 16 * side), g / 2, 1);
        put::<V>(join(qs, third, 2), 4.0, dl, 0.0, x, 16 * g);
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
fn q4_k<V: Isa>(b: &[u8; 144], x: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, minima) = scales_and_minima(part(b, 4));
    for (j, (scale, minimum)) in scales.into_iter().zip(minima).enumerate() {
        let (d, m) = (d * scale as f32, dmin * minimum as f32);
        for side in 0..2 {
            let qs = bytes_at(b, 16 + 32 * (j / 2) + 16 * side);
            put::<V>(bits(qs, 4 * (j % 2), 4), 0.0, d, m, x, 32 * j + 16 * side);
        }
    }
}

/// Superblock of [`Format::Q5K`]: as [`q4_k`] with 32 bytes of fifth bits before the codes; bit j of byte i belongs to number i of block j.
#[inline(always)]
fn q5_k<V: Isa>(b: &[u8; 176], x: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    let (scales, minima) = scales_and_minima(part(b, 4));
    for (j, (scale, minimum)) in scales.into_iter().zip(minima).enumerate() {
        let (d, m) = (d * scale as f32, dmin * minimum as f32);
        for side in 0..2 {
            let qs = bits(bytes_at(b, 48 + 32 * (j / 2) + 16 * side), 4 * (j % 2), 4);
            let fifth = bits(bytes_at(b, 16 + 16 * side), j, 1);
            put::<V>(join(qs, fifth, 4), 0.0, d, m, x, 32 * j + 16 * side);
        }
    }
}

/// Superblock of [`Format::Q6K`]: 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, f16 d. Each half of 128 numbers has 64
/// bytes of nibbles (numbers 0 to 63 low, 64 to 127 high) and 32 bytes of pairs (block of 32 number j: bits 2j and 2j + 1).
#[inline(always)]
fn q6_k<V: Isa>(b: &[u8; 210], x: &mut [f32; 256]) {
    let (scales, d) = (part::<16>(b, 192), f16_at(b, 208));
    for (g, &scale) in scales.iter().enumerate() {
        let (half, j, side) = (g / 8, g / 2 % 4, g % 2);
        let low = bits(bytes_at(b, 64 * half + 32 * (j % 2) + 16 * side), 4 * (j / 2), 4);
        let high = bits(bytes_at(b, 128 + 32 * half + 16 * side), 2 * j, 2);
        put::<V>(join(low, high, 4), 32.0, d * (scale as i8) as f32, 0.0, x, 16 * g);
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
fn nf4(b: &[u8; 34], x: &mut [f32; 64]) {
    let (scale, qs) = (f16_at(b, 0), part::<32>(b, 2));
    for i in 0..32 {
        x[i] = scale * NF4[(qs[i] & 15) as usize];
        x[i + 32] = scale * NF4[(qs[i] >> 4) as usize];
    }
}
