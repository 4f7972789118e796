//! Micro-kernels for AVX2 with FMA, AVX-512, and AVX-512 with bfloat16 dot products.

use super::kernel::{Kernel, Micro, Simd, Tile, table, tile};
use std::arch::x86_64::*;

struct Avx512;

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m512 {
        unsafe { _mm512_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps((1u16 << count).wrapping_sub(1), p) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, count: usize, v: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, (1u16 << count).wrapping_sub(1), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// As [`Avx512`], with elements that are pairs of bfloat16: a step multiplies two numbers along k.
struct Avx512Bf16;

impl Simd for Avx512Bf16 {
    const LANES: usize = 16;
    type V = __m512;
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { Avx512::zero() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m512 {
        unsafe { Avx512::splat(p) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { Avx512::load(p) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the three types are 512 bits without invalid values.
        unsafe {
            _mm512_dpbf16_ps(c, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { Avx512::add(a, b) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { Avx512::store(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> __m512 {
        unsafe { Avx512::load_first(p, count) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, count: usize, v: __m512) {
        unsafe { Avx512::store_first(p, count, v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { Avx512::prefetch(p) }
    }
}

struct Avx2;

/// Lanes below `count` have their highest bit set.
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m256 {
        unsafe { _mm256_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(p, first(count)) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, count: usize, v: __m256) {
        unsafe { _mm256_maskstore_ps(p, first(count), v) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

// SAFETY of the three: the contract of `Micro`.

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
unsafe fn avx512<const M: usize, const N: usize>(t: &Tile) {
    unsafe { tile::<Avx512, M, N>(t) }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
unsafe fn avx512_bf16<const M: usize, const N: usize>(t: &Tile) {
    unsafe { tile::<Avx512Bf16, M, N>(t) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const M: usize, const N: usize>(t: &Tile) {
    unsafe { tile::<Avx2, M, N>(t) }
}

const AVX512_TABLE: &[[Micro; 3]] = table!(avx512; 1 2 3 4 5 6 7 8);
const BF16_TABLE: &[[Micro; 3]] = table!(avx512_bf16; 1 2 3 4 5 6 7 8);
const AVX2_TABLE: &[[Micro; 3]] = table!(avx2; 1 2 3 4);

pub(super) static AVX512: Kernel =
    Kernel { name: "avx512", lanes: 16, rows: 8, depth: 1, avx2: true, table: AVX512_TABLE };
pub(super) static AVX512_BF16: Kernel =
    Kernel { name: "avx512-bf16", lanes: 16, rows: 8, depth: 2, avx2: true, table: BF16_TABLE };
pub(super) static AVX2: Kernel = Kernel { name: "avx2", lanes: 8, rows: 4, depth: 1, avx2: true, table: AVX2_TABLE };
