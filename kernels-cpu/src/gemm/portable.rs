//! The micro-kernel in plain Rust: vectors of four that LLVM maps to SSE2 or NEON registers.

use super::kernel::{Kernel, Micro, Simd, Tile, table, tile};
use crate::simd::{Baseline, Isa};

struct Four;

impl Simd for Four {
    const LANES: usize = 4;
    type V = [f32; 4];
    #[inline(always)]
    unsafe fn zero() -> [f32; 4] {
        [0.0; 4]
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> [f32; 4] {
        [unsafe { *p }; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { *p.cast() }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| Baseline::fma(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { *p.cast() = v }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, count: usize) -> [f32; 4] {
        std::array::from_fn(|i| if i < count { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, count: usize, v: [f32; 4]) {
        for (i, &x) in v.iter().enumerate().take(count) {
            unsafe { *p.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}

unsafe fn micro<const M: usize, const N: usize>(t: &Tile) {
    // SAFETY: the contract of `Micro`.
    unsafe { tile::<Four, M, N>(t) }
}

/// 12 sums fill the sixteen registers of SSE2, 24 the thirty-two of NEON.
const TABLE: &[[Micro; 3]] =
    if cfg!(target_arch = "x86_64") { table!(micro; 1 2 3 4) } else { table!(micro; 1 2 3 4 5 6 7 8) };

pub(super) static PORTABLE: Kernel =
    Kernel { name: "portable", lanes: 4, rows: TABLE.len(), depth: 1, avx2: false, table: TABLE };
