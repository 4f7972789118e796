//! The most multiply-adds that one core does, measured: independent chains in registers, nothing loaded.

use std::hint::black_box;
use std::time::Instant;

/// The best of many short runs of `f`, which does `flops` operations: GFLOP/s.
#[cfg(target_arch = "x86_64")]
fn best(flops: f64, mut f: impl FnMut()) -> f64 {
    let mut seconds = f64::INFINITY;
    for _ in 0..200 {
        let start = Instant::now();
        f();
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    flops / seconds / 1e9
}

/// f32 fused multiply-add, with the widest vectors there are.
#[cfg(target_arch = "x86_64")]
pub fn f32_fma() -> Option<f64> {
    const STEPS: usize = 100_000;
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: detected.
        return Some(best((STEPS * 16 * 16 * 2) as f64, || unsafe { avx512(black_box(STEPS)) }));
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: detected.
        return Some(best((STEPS * 12 * 8 * 2) as f64, || unsafe { avx2(black_box(STEPS)) }));
    }
    None
}

/// Dot products of pairs of bfloat16.
#[cfg(target_arch = "x86_64")]
pub fn bf16_dot() -> Option<f64> {
    const STEPS: usize = 100_000;
    if !is_x86_feature_detected!("avx512bf16") {
        return None;
    }
    // SAFETY: detected.
    Some(best((STEPS * 16 * 32 * 2) as f64, || unsafe { bf16(black_box(STEPS)) }))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(steps: usize) {
    use std::arch::x86_64::*;
    let (x, mut sums) = (_mm512_set1_ps(black_box(0.5)), [_mm512_set1_ps(black_box(1.0)); 16]);
    for _ in 0..steps {
        for s in &mut sums {
            *s = _mm512_fmadd_ps(x, *s, x);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(steps: usize) {
    use std::arch::x86_64::*;
    let (x, mut sums) = (_mm256_set1_ps(black_box(0.5)), [_mm256_set1_ps(black_box(1.0)); 12]);
    for _ in 0..steps {
        for s in &mut sums {
            *s = _mm256_fmadd_ps(x, *s, x);
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16(steps: usize) {
    use std::arch::x86_64::*;
    let bits = _mm512_set1_epi32(black_box(0x3f00_3f00));
    // SAFETY: both are 512 bits without invalid values.
    let x: __m512bh = unsafe { std::mem::transmute(bits) };
    let mut sums = [_mm512_set1_ps(black_box(1.0)); 16];
    for _ in 0..steps {
        for s in &mut sums {
            *s = _mm512_dpbf16_ps(*s, x, x);
        }
    }
    black_box(sums);
}

#[cfg(not(target_arch = "x86_64"))]
pub fn f32_fma() -> Option<f64> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
pub fn bf16_dot() -> Option<f64> {
    None
}
