//! Sixteen lanes of an instruction set, and what the kernels of tiles do with them. A lane is a row of the tile.

use crate::half::f16_to_f32;
use crate::simd::{Level, level};

/// Which lanes a product runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Plain code; LLVM vectorises it for the compilation target.
    Plain,
    Avx2,
    Avx512,
}

impl Kind {
    /// The best that this processor has, within [`simd::level`](crate::simd::level); `integers`: for sums of int8.
    pub fn best(integers: bool) -> Self {
        match level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if !integers || is_x86_feature_detected!("avx512vnni") => Kind::Avx512,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx2 => Kind::Avx2,
            _ => Kind::Plain,
        }
    }

    /// Rows of x that one kernel takes, limited by the registers.
    pub fn rows(self) -> usize {
        match self {
            Kind::Avx512 => 8,
            Kind::Avx2 | Kind::Plain => 4,
        }
    }
}

/// # Safety
/// Methods need the instruction set, and pointers valid for what they read and write. All are inlined into functions that have it.
pub(super) trait Tile {
    /// 16 words of four bytes, or of eight nibbles.
    type Codes: Copy;
    /// 16 integers of 32 bits.
    type I: Copy;
    /// 16 floats.
    type F: Copy;
    /// 16 levels that nibbles select from.
    type Levels: Copy;
    /// What `dot8` takes the unsigned codes to be too large by.
    const OFFSET8: i32;

    unsafe fn load(p: *const u8) -> Self::Codes;
    /// The low and the high nibble of every byte, as bytes.
    unsafe fn nibbles(w: Self::Codes) -> (Self::Codes, Self::Codes);
    unsafe fn splat_i32(x: i32) -> Self::I;
    /// Adds to every lane the products of its four unsigned bytes, less 128 or not (`OFFSET8`), with the four signed bytes of `x`.
    unsafe fn dot8(sum: Self::I, w: Self::Codes, x: i32) -> Self::I;
    /// As `dot8` with bytes of at most 15.
    unsafe fn dot4(sum: Self::I, w: Self::Codes, x: i32) -> Self::I;
    unsafe fn to_f32(x: Self::I) -> Self::F;

    unsafe fn splat(x: f32) -> Self::F;
    /// `a b + c`
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// Sixteen bytes, unsigned and signed.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    unsafe fn load_i8(p: *const u8) -> Self::F;
    /// The `BITS` bits from `shift` on of every byte of `upper`, put before four bits `low`.
    unsafe fn join<const BITS: usize>(low: Self::Codes, upper: Self::Codes, shift: usize) -> Self::Codes;
    unsafe fn load_f16(p: *const u8) -> Self::F;
    unsafe fn load_f32(p: *const u8) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// Byte `J` of every word, less 128.
    unsafe fn byte<const J: u32>(w: Self::Codes) -> Self::F;
    unsafe fn levels(levels: &[f32; 16]) -> Self::Levels;
    /// The level that the nibble from bit `SHIFT` on selects.
    unsafe fn level<const SHIFT: u32>(w: Self::Codes, levels: Self::Levels) -> Self::F;
}

/// The lanes as arrays.
pub(super) struct Plain;

impl Tile for Plain {
    type Codes = [u32; 16];
    type I = [i32; 16];
    type F = [f32; 16];
    type Levels = [f32; 16];
    const OFFSET8: i32 = -128;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [u32; 16] {
        // SAFETY: the trait's contract.
        let bytes = unsafe { p.cast::<[[u8; 4]; 16]>().read_unaligned() };
        bytes.map(u32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn nibbles(w: [u32; 16]) -> ([u32; 16], [u32; 16]) {
        (w.map(|w| w & 0x0f0f_0f0f), w.map(|w| w >> 4 & 0x0f0f_0f0f))
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn dot8(mut sum: [i32; 16], w: [u32; 16], x: i32) -> [i32; 16] {
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        for (sum, w) in sum.iter_mut().zip(w) {
            for (j, x) in x.into_iter().enumerate() {
                *sum += (w >> (8 * j) & 255) as i32 * x;
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn dot4(sum: [i32; 16], w: [u32; 16], x: i32) -> [i32; 16] {
        // SAFETY: no requirements.
        unsafe { Self::dot8(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: [i32; 16]) -> [f32; 16] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| <crate::simd::Baseline as crate::simd::Isa>::fma(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [f32; 16] {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[u8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [f32; 16] {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn join<const BITS: usize>(low: [u32; 16], upper: [u32; 16], shift: usize) -> [u32; 16] {
        let mask = 0x0101_0101 * ((1 << BITS) - 1);
        std::array::from_fn(|i| low[i] | (upper[i] >> shift & mask) << 4)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32; 16] {
        // SAFETY: the trait's contract.
        let bytes = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        bytes.map(|b| f16_to_f32(u16::from_le_bytes(b)))
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> [f32; 16] {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[[u8; 4]; 16]>().read_unaligned() }.map(f32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [f32; 16]) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(w: [u32; 16]) -> [f32; 16] {
        w.map(|w| ((w >> (8 * J) & 255) as i32 - 128) as f32)
    }
    #[inline(always)]
    unsafe fn levels(levels: &[f32; 16]) -> [f32; 16] {
        *levels
    }
    #[inline(always)]
    unsafe fn level<const SHIFT: u32>(w: [u32; 16], levels: [f32; 16]) -> [f32; 16] {
        w.map(|w| levels[(w >> SHIFT & 15) as usize])
    }
}
