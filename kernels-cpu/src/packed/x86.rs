//! The lanes of AVX2, as two registers of eight, and of AVX-512 with VNNI.

use super::lanes::Tile;
use std::arch::x86_64::*;

pub(super) struct Avx512;

impl Tile for Avx512 {
    type Codes = __m512i;
    type I = __m512i;
    type F = __m512;
    type Levels = __m512;
    const OFFSET8: i32 = -128;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(w: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            (_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(w), mask))
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn dot8(sum: __m512i, w: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn dot4(sum: __m512i, w: __m512i, x: i32) -> __m512i {
        unsafe { Self::dot8(sum, w, x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
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
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn join<const BITS: usize>(low: __m512i, upper: __m512i, shift: usize) -> __m512i {
        unsafe {
            let mask = _mm512_set1_epi8((1 << BITS) - 1);
            let upper = _mm512_and_si512(_mm512_srlv_epi32(upper, _mm512_set1_epi32(shift as i32)), mask);
            _mm512_or_si512(low, _mm512_slli_epi32::<4>(upper))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(w: __m512i) -> __m512 {
        unsafe {
            // 2^23 + code, and that exactly less 2^23 + 128
            let shifted = _mm512_srlv_epi32(w, _mm512_set1_epi32(8 * J as i32));
            let (mask, magic) = (_mm512_set1_epi32(255), _mm512_set1_epi32(0x4b00_0000));
            // shifted & mask | magic
            let bits = _mm512_ternarylogic_epi32::<0xea>(shifted, mask, magic);
            _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(8_388_736.0))
        }
    }
    #[inline(always)]
    unsafe fn levels(levels: &[f32; 16]) -> __m512 {
        unsafe { _mm512_loadu_ps(levels.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn level<const SHIFT: u32>(w: __m512i, levels: __m512) -> __m512 {
        // The permutation looks at the lowest four bits of each index.
        unsafe { _mm512_permutexvar_ps(_mm512_srlv_epi32(w, _mm512_set1_epi32(SHIFT as i32)), levels) }
    }
}

pub(super) struct Avx2;

/// Both registers.
macro_rules! both {
    (|$i:ident| $e:expr) => {
        unsafe {
            [
                {
                    let $i = 0;
                    $e
                },
                {
                    let $i = 1;
                    $e
                },
            ]
        }
    };
}

impl Tile for Avx2 {
    type Codes = [__m256i; 2];
    type I = [__m256i; 2];
    type F = [__m256; 2];
    type Levels = [__m256; 2];
    const OFFSET8: i32 = 0;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [__m256i; 2] {
        both!(|i| _mm256_loadu_si256(p.add(32 * i).cast()))
    }
    #[inline(always)]
    unsafe fn nibbles(w: [__m256i; 2]) -> ([__m256i; 2], [__m256i; 2]) {
        let mask = unsafe { _mm256_set1_epi8(15) };
        (both!(|i| _mm256_and_si256(w[i], mask)), both!(|i| _mm256_and_si256(_mm256_srli_epi32::<4>(w[i]), mask)))
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> [__m256i; 2] {
        both!(|_i| _mm256_set1_epi32(x))
    }
    #[inline(always)]
    unsafe fn dot8(sum: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        // Of unsigned by signed bytes pairs of products must fit 16 bits: the weight's sign goes to the activation, which is never -128.
        both!(|i| {
            let w = _mm256_xor_si256(w[i], _mm256_set1_epi8(-128));
            let x = _mm256_sign_epi8(_mm256_set1_epi32(x), w);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), x);
            _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    unsafe fn dot4(sum: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        both!(|i| {
            let pairs = _mm256_maddubs_epi16(w[i], _mm256_set1_epi32(x));
            _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        })
    }
    #[inline(always)]
    unsafe fn to_f32(x: [__m256i; 2]) -> [__m256; 2] {
        both!(|i| _mm256_cvtepi32_ps(x[i]))
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> [__m256; 2] {
        both!(|_i| _mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(|i| _mm256_add_ps(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        both!(|i| _mm256_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [__m256; 2] {
        both!(|i| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()))))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> [__m256; 2] {
        both!(|i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()))))
    }
    #[inline(always)]
    unsafe fn join<const BITS: usize>(low: [__m256i; 2], upper: [__m256i; 2], shift: usize) -> [__m256i; 2] {
        both!(|i| {
            let mask = _mm256_set1_epi8((1 << BITS) - 1);
            let upper = _mm256_and_si256(_mm256_srlv_epi32(upper[i], _mm256_set1_epi32(shift as i32)), mask);
            _mm256_or_si256(low[i], _mm256_slli_epi32::<4>(upper))
        })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [__m256; 2] {
        both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(16 * i).cast())))
    }
    #[inline(always)]
    unsafe fn load_f32(p: *const u8) -> [__m256; 2] {
        both!(|i| _mm256_loadu_ps(p.add(32 * i).cast()))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: [__m256; 2]) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn byte<const J: u32>(w: [__m256i; 2]) -> [__m256; 2] {
        both!(|i| {
            let code =
                _mm256_and_si256(_mm256_srlv_epi32(w[i], _mm256_set1_epi32(8 * J as i32)), _mm256_set1_epi32(255));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(128)))
        })
    }
    #[inline(always)]
    unsafe fn levels(levels: &[f32; 16]) -> [__m256; 2] {
        both!(|i| _mm256_loadu_ps(levels.as_ptr().add(8 * i)))
    }
    #[inline(always)]
    unsafe fn level<const SHIFT: u32>(w: [__m256i; 2], levels: [__m256; 2]) -> [__m256; 2] {
        both!(|i| {
            let code = _mm256_srlv_epi32(w[i], _mm256_set1_epi32(SHIFT as i32));
            // The permutation looks at three bits; the fourth, moved to the sign, chooses the half.
            let low = _mm256_permutevar8x32_ps(levels[0], code);
            let high = _mm256_permutevar8x32_ps(levels[1], code);
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code)))
        })
    }
}
