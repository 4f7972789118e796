//! How a cache is stored, and how its vectors become floats.

use crate::half;
use crate::register::Register;
use crate::vector::Vector;

/// Keys or values of a cache, `[batch, kv_heads, slots, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    F32(&'a [f32]),
    /// IEEE 754 binary16 as bits.
    F16(&'a [u16]),
    /// Symmetric int8 with a scale for each vector, `[batch, kv_heads, slots]`.
    Int8(&'a [i8], &'a [f32]),
}

impl Stored<'_> {
    pub(super) fn check(&self, vectors: usize, d: usize) {
        let (len, scales) = match self {
            Stored::F32(x) => (x.len(), vectors),
            Stored::F16(x) => (x.len(), vectors),
            Stored::Int8(x, scales) => (x.len(), scales.len()),
        };
        assert_eq!(len, vectors * d, "cached attention: a cache must be [batch, kv_heads, slots, head_dim]");
        assert_eq!(scales, vectors, "cached attention: scales must be [batch, kv_heads, slots]");
    }
}

/// A number of a cache as kernels read it.
pub(super) trait Element: Copy {
    /// # Safety
    /// `p` is valid for `R::WIDTH` reads.
    unsafe fn load<R: Lanes16>(p: *const Self) -> R;
    fn widen(self) -> f32;

    /// The first `n` (at most 16) numbers at `p`, then zeros.
    ///
    /// # Safety
    /// `p` is valid for `n` reads.
    #[inline(always)]
    unsafe fn load_partial<R: Lanes16>(p: *const Self, n: usize) -> R {
        let mut lanes = [0.0; 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: the contract.
            *lane = unsafe { *p.add(i) }.widen();
        }
        // SAFETY: sixteen floats.
        unsafe { R::load(lanes.as_ptr()) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<R: Lanes16>(p: *const f32) -> R {
        // SAFETY: the contract.
        unsafe { R::load(p) }
    }
    #[inline(always)]
    unsafe fn load_partial<R: Lanes16>(p: *const f32, n: usize) -> R {
        // SAFETY: the contract.
        unsafe { <R as Vector>::load_partial(p, n, 0.0) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load<R: Lanes16>(p: *const u16) -> R {
        // SAFETY: the contract.
        unsafe { R::load_f16(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        half::f16_to_f32(self)
    }
}

impl Element for i8 {
    #[inline(always)]
    unsafe fn load<R: Lanes16>(p: *const i8) -> R {
        // SAFETY: the contract.
        unsafe { R::load_i8(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

/// What reading a cache needs of a register beyond [`Vector`].
pub(super) trait Lanes16: Vector {
    /// Sums that are in registers at a time.
    const SUMS: usize = 4;

    /// Sixteen binary16 numbers.
    ///
    /// # Safety
    /// `p` is valid for 16 reads.
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the contract, and sixteen floats.
        unsafe {
            let mut lanes = [0.0f32; 16];
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane = half::f16_to_f32(*p.add(i));
            }
            Self::load(lanes.as_ptr())
        }
    }

    /// The sums of each register's lanes: those of the first row at `to`, of the next `stride` further.
    ///
    /// # Safety
    /// There is room for `N` numbers a row.
    #[inline(always)]
    unsafe fn store_sums<const ROWS: usize, const N: usize>(acc: [[Self; ROWS]; N], to: *mut f32, stride: usize) {
        for (i, acc) in acc.into_iter().enumerate() {
            for (r, acc) in acc.into_iter().enumerate() {
                // SAFETY: the contract.
                unsafe { *to.add(r * stride + i) = acc.sum() };
            }
        }
    }
}

impl Lanes16 for crate::register::Two<crate::register::Two<crate::register::Base>> {}

// SAFETY (all below): a register is made only where its instruction set is there; pointers keep the contracts of the trait.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe)]
impl Lanes16 for crate::register::Two<crate::register::__m256> {
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        use std::arch::x86_64::*;
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()));
            let mut lanes = [0.0f32; 16];
            _mm256_storeu_ps(lanes.as_mut_ptr(), low);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
            Self::load(lanes.as_ptr())
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe)]
impl Lanes16 for crate::register::__m512 {
    const SUMS: usize = 16;

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        use std::arch::x86_64::*;
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_sums<const ROWS: usize, const N: usize>(acc: [[Self; ROWS]; N], to: *mut f32, stride: usize) {
        // SAFETY: sixteen registers are summed to as many floats; room is the contract's.
        unsafe {
            if ROWS * N == 16 {
                let all = sums(&*(&raw const acc).cast::<[Self; 16]>());
                if ROWS == 1 {
                    return all.store(to);
                }
                for (n, x) in all.lanes().into_iter().enumerate() {
                    *to.add(n % ROWS * stride + n / ROWS) = x;
                }
                return;
            }
            for (i, acc) in acc.into_iter().enumerate() {
                for (r, acc) in acc.into_iter().enumerate() {
                    *to.add(r * stride + i) = acc.sum();
                }
            }
        }
    }
}

/// Lane i becomes the sum of the lanes of `r[i]`: a transposition that adds what it brings together. (Loops, not closures: those
/// are compiled for the least instruction set.)
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unused_unsafe)]
unsafe fn sums(r: &[std::arch::x86_64::__m512; 16]) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    // SAFETY: AVX-512 F is there, where these registers are.
    unsafe {
        let (mut pairs, mut quads, mut eights) = ([r[0]; 8], [r[0]; 4], [r[0]; 2]);
        for (i, pair) in pairs.iter_mut().enumerate() {
            let (a, b) = (r[2 * i], r[2 * i + 1]);
            *pair = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        for (i, quad) in quads.iter_mut().enumerate() {
            let (a, b) = (_mm512_castps_pd(pairs[2 * i]), _mm512_castps_pd(pairs[2 * i + 1]));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            *quad = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        }
        // Quarters of a quad hold parts of the same four sums.
        for (i, eight) in eights.iter_mut().enumerate() {
            let (a, b) = (quads[2 * i], quads[2 * i + 1]);
            *eight = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        }
        let [a, b] = eights;
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    }
}
