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
    /// Keys whose products with a query are in registers at a time.
    const KEYS: usize = 4;

    /// Sixteen binary16 numbers.
    ///
    /// # Safety
    /// `p` is valid for 16 reads.
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the contract, and sixteen floats.
        unsafe {
            let lanes: [f32; 16] = std::array::from_fn(|i| half::f16_to_f32(*p.add(i)));
            Self::load(lanes.as_ptr())
        }
    }

    /// The sums of `N` (at most 16) registers' lanes, written to `to`.
    ///
    /// # Safety
    /// `to` is valid for `N` writes.
    #[inline(always)]
    unsafe fn store_sums<const N: usize>(acc: [Self; N], to: *mut f32) {
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: the contract.
            unsafe { *to.add(i) = acc.sum() };
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
    const KEYS: usize = 16;

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        use std::arch::x86_64::*;
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn store_sums<const N: usize>(acc: [Self; N], to: *mut f32) {
        if N == 16 {
            // SAFETY: sixteen registers and sixteen floats.
            unsafe { sums(&*(&raw const acc).cast::<[Self; 16]>()).store(to) };
            return;
        }
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: the contract.
            unsafe { *to.add(i) = acc.sum() };
        }
    }
}

/// Lane i becomes the sum of the lanes of `r[i]`: a transposition that adds what it brings together.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unused_unsafe)]
unsafe fn sums(r: &[std::arch::x86_64::__m512; 16]) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    // SAFETY: AVX-512 F is there, where these registers are.
    unsafe {
        let add = |a, b| _mm512_add_ps(a, b);
        let pair = |i: usize| add(_mm512_unpacklo_ps(r[i], r[i + 1]), _mm512_unpackhi_ps(r[i], r[i + 1]));
        let quad = |i: usize| {
            let (a, b) = (_mm512_castps_pd(pair(i)), _mm512_castps_pd(pair(i + 2)));
            add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
        };
        // Quarters of a quad hold parts of the same four sums.
        let eight = |i: usize| {
            let (a, b) = (quad(i), quad(i + 4));
            add(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
        };
        let (a, b) = (eight(0), eight(8));
        add(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
    }
}
