//! Operands of a product: slices of `f32` or of 16-bit numbers.

use crate::half;
use crate::simd::{Isa, LANES, Lanes};
use crate::stream::prefetch;

/// A matrix that is read, in the format it is stored in.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    F32(&'a [f32]),
    /// bfloat16 as bits.
    Bf16(&'a [u16]),
    /// IEEE 754 binary16 as bits.
    F16(&'a [u16]),
}

impl<'a> From<&'a [f32]> for Matrix<'a> {
    fn from(data: &'a [f32]) -> Self {
        Matrix::F32(data)
    }
}

impl<'a> Matrix<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Matrix::F32(x) => x.len(),
            Matrix::Bf16(x) | Matrix::F16(x) => x.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements from `start` on: none where that is beyond the end (an operand without elements).
    pub fn tail(&self, start: usize) -> Matrix<'a> {
        let start = start.min(self.len());
        match self {
            Matrix::F32(x) => Matrix::F32(&x[start..]),
            Matrix::Bf16(x) => Matrix::Bf16(&x[start..]),
            Matrix::F16(x) => Matrix::F16(&x[start..]),
        }
    }

    /// Says that `count` elements from `start` on will be read soon.
    #[inline(always)]
    pub(super) fn prefetch(&self, start: usize, count: usize) {
        let (first, size) = match self {
            Matrix::F32(x) => (x.as_ptr().cast::<u8>(), 4),
            Matrix::Bf16(x) | Matrix::F16(x) => (x.as_ptr().cast(), 2),
        };
        for at in (size * start..size * (start + count)).step_by(64) {
            prefetch(first.wrapping_add(at).cast());
        }
    }

    /// Element `i` as an `f32`.
    #[inline(always)]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Matrix::F32(x) => x[i],
            Matrix::Bf16(x) => half::bf16_to_f32(x[i]),
            Matrix::F16(x) => half::f16_to_f32(x[i]),
        }
    }
}

/// A matrix that is written, in the format it is stored in.
#[derive(Debug)]
pub enum MatrixMut<'a> {
    F32(&'a mut [f32]),
    /// bfloat16 as bits.
    Bf16(&'a mut [u16]),
    /// IEEE 754 binary16 as bits.
    F16(&'a mut [u16]),
}

impl<'a> From<&'a mut [f32]> for MatrixMut<'a> {
    fn from(data: &'a mut [f32]) -> Self {
        MatrixMut::F32(data)
    }
}

impl MatrixMut<'_> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_ref(&self) -> Matrix<'_> {
        match self {
            MatrixMut::F32(x) => Matrix::F32(x),
            MatrixMut::Bf16(x) => Matrix::Bf16(x),
            MatrixMut::F16(x) => Matrix::F16(x),
        }
    }

    /// As [`Matrix::tail`].
    pub fn tail(&mut self, start: usize) -> MatrixMut<'_> {
        let start = start.min(self.len());
        match self {
            MatrixMut::F32(x) => MatrixMut::F32(&mut x[start..]),
            MatrixMut::Bf16(x) => MatrixMut::Bf16(&mut x[start..]),
            MatrixMut::F16(x) => MatrixMut::F16(&mut x[start..]),
        }
    }
}

/// A format that numbers are stored in, as a type: for loops that widen what they read.
pub(crate) trait Format {
    type Bits: Copy;
    fn widen(bits: Self::Bits) -> f32;
    /// The first [`LANES`] of `bits`, which must have as many.
    #[inline(always)]
    fn widen_lanes<V: Isa>(bits: &[Self::Bits]) -> Lanes {
        let bits = bits.first_chunk::<LANES>().expect("at least LANES numbers");
        Lanes(bits.map(Self::widen))
    }
}

pub(crate) struct F32;
impl Format for F32 {
    type Bits = f32;
    #[inline(always)]
    fn widen(bits: f32) -> f32 {
        bits
    }
}

pub(crate) struct Bf16;
impl Format for Bf16 {
    type Bits = u16;
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        half::bf16_to_f32(bits)
    }
}

pub(crate) struct F16;
impl Format for F16 {
    type Bits = u16;
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        half::f16_to_f32(bits)
    }

    /// By the instruction where there is one; LLVM does not find it in the arithmetic of [`Self::widen`].
    #[inline(always)]
    fn widen_lanes<V: Isa>(bits: &[u16]) -> Lanes {
        let bits = bits.first_chunk::<LANES>().expect("at least LANES numbers");
        #[cfg(target_arch = "x86_64")]
        {
            use crate::simd::Level;
            use std::arch::x86_64::*;
            let (from, mut wide) = (bits.as_ptr(), Lanes::splat(0.0));
            let to = wide.0.as_mut_ptr();
            // SAFETY (both): V says that the instructions are there; sixteen numbers are read and written.
            match V::LEVEL {
                Level::Avx512 => unsafe {
                    _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())));
                    return wide;
                },
                Level::Avx2 => unsafe {
                    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
                    _mm256_storeu_ps(to.add(8), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())));
                    return wide;
                },
                Level::Baseline => {}
            }
        }
        Lanes(bits.map(Self::widen))
    }
}
