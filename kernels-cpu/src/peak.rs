//! Loops that saturate one resource and do nothing else: arithmetic in registers, and traffic to one level of memory. Their rates are
//! the ceilings that kernels are measured against.
//!
//! Each loop carries its values from round to round and ends in [`black_box`], so that no compiler can remove, hoist or reassociate
//! it, and uses the registers of the instruction set that [`simd::level`](crate::simd::level) chose. All run on the calling thread.

use crate::register::{Register, with_register};
use crate::simd::{Isa, Level, level};
use std::hint::black_box;

/// What a compute loop multiplies and adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Fused multiply-add of f32 (where there is none, a product and a sum).
    F32,
    /// Dot products of pairs of bf16 added to f32 (`vdpbf16ps`).
    Bf16Dot,
    /// Dot products of int8 added to i32: `vpdpbusd` where present, else the widening products that the int8 kernels use.
    Int8Dot,
}

impl Arithmetic {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::Bf16Dot => "bf16 dot",
            Arithmetic::Int8Dot => "int8 dot",
        }
    }

    /// Whether this processor has instructions for it, within [`simd::level`](crate::simd::level).
    pub fn available(self) -> bool {
        match self {
            Arithmetic::F32 => true,
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Bf16Dot => level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Arithmetic::Bf16Dot => false,
            Arithmetic::Int8Dot => cfg!(any(target_arch = "x86_64", target_arch = "aarch64")),
        }
    }

    /// Runs `rounds` rounds and returns the operations done (a product and a sum are two). Does nothing when not available.
    pub fn run(self, rounds: usize) -> f64 {
        let per_round = match self {
            _ if !self.available() => 0.0,
            Arithmetic::F32 => fma(rounds),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available` found the instructions.
            Arithmetic::Bf16Dot => unsafe { x86::bf16_dot(rounds) },
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Int8Dot => x86::int8_dot(rounds),
            #[cfg(target_arch = "aarch64")]
            Arithmetic::Int8Dot => neon::int8_dot(rounds),
            #[allow(unreachable_patterns, reason = "kinds that other architectures have")]
            _ => 0.0,
        };
        per_round * rounds as f64
    }
}

crate::multiversion! {
    /// Returns the floating-point operations of one round.
    fn fma<V>(rounds: usize) -> f64 {
        // Enough independent sums to cover latency times issue width, few enough to stay in registers.
        // SAFETY: inside the body that was dispatched for V.
        unsafe {
            match V::LEVEL {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => fma_rounds::<crate::register::__m512, 24>(rounds),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => fma_rounds::<crate::register::__m256, 12>(rounds),
                _ if cfg!(target_arch = "aarch64") => fma_rounds::<crate::register::Base, 24>(rounds),
                _ => fma_rounds::<crate::register::Base, 12>(rounds),
            }
        }
    }
}

/// # Safety
/// The instruction set of `R` is there.
#[inline(always)]
unsafe fn fma_rounds<R: Register, const N: usize>(rounds: usize) -> f64 {
    // x = 0.999 x + 0.001 tends to 1: no subnormals, no overflow.
    let (factor, term) = (R::splat(black_box(0.999)), R::splat(black_box(0.001)));
    let mut x: [R; N] = std::array::from_fn(|i| R::splat(i as f32));
    for _ in 0..rounds {
        for x in &mut x {
            *x = term.accumulate(*x, factor);
        }
    }
    keep(&x);
    (2 * N * R::WIDTH) as f64
}

/// Makes the values count as used.
#[inline(always)]
fn keep<R: Register>(x: &[R]) {
    let mut sum = x[0];
    for x in &x[1..] {
        sum = sum.add(*x);
    }
    let mut out = [0.0f32; 16];
    assert!(R::WIDTH <= out.len());
    // SAFETY: long enough.
    unsafe { sum.store(out.as_mut_ptr()) };
    black_box(out);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX-512 F and BF16 are there.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn bf16_dot(rounds: usize) -> f64 {
        // SAFETY: both are 64 bytes of plain integers.
        let pairs: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi32(black_box(0x3c00_3c00))) };
        let mut x: [__m512; 24] = [_mm512_setzero_ps(); 24];
        for _ in 0..rounds {
            for x in &mut x {
                *x = _mm512_dpbf16_ps(*x, pairs, pairs);
            }
        }
        black_box(x);
        (24 * 32 * 2) as f64
    }

    pub(super) fn int8_dot(rounds: usize) -> f64 {
        // SAFETY (all): detected just now.
        match level() {
            Level::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe { vnni(rounds) },
            Level::Avx512 | Level::Avx2 => unsafe { avx2(rounds) },
            Level::Baseline => sse2(rounds),
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vnni(rounds: usize) -> f64 {
        let ones = _mm512_set1_epi8(black_box(1));
        let mut x = [_mm512_setzero_si512(); 24];
        for _ in 0..rounds {
            for x in &mut x {
                *x = _mm512_dpbusd_epi32(*x, ones, ones);
            }
        }
        black_box(x);
        (24 * 64 * 2) as f64
    }

    /// `vpmaddwd` multiplies what the sum holds, so that the product is not the same in every round.
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(rounds: usize) -> f64 {
        let (ones, term) = (_mm256_set1_epi16(black_box(1)), _mm256_set1_epi32(black_box(3)));
        let mut x = [_mm256_setzero_si256(); 12];
        for _ in 0..rounds {
            for x in &mut x {
                *x = _mm256_add_epi32(_mm256_madd_epi16(*x, ones), term);
            }
        }
        black_box(x);
        (12 * 16 * 2) as f64
    }

    fn sse2(rounds: usize) -> f64 {
        // SAFETY: x86-64 has SSE2.
        unsafe {
            let (ones, term) = (_mm_set1_epi16(black_box(1)), _mm_set1_epi32(black_box(3)));
            let mut x = [_mm_setzero_si128(); 12];
            for _ in 0..rounds {
                for x in &mut x {
                    *x = _mm_add_epi32(_mm_madd_epi16(*x, ones), term);
                }
            }
            black_box(x);
        }
        (12 * 8 * 2) as f64
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::*;
    use std::arch::aarch64::*;

    /// `smull` and `sadalp`, as the int8 kernels use them; the factor is what the sum holds.
    pub(super) fn int8_dot(rounds: usize) -> f64 {
        // SAFETY: AArch64 has NEON.
        unsafe {
            let ones = vdup_n_s8(black_box(1));
            let mut x = [vdupq_n_s32(0); 12];
            for _ in 0..rounds {
                for x in &mut x {
                    let bytes = vget_low_s8(vreinterpretq_s8_s32(*x));
                    *x = vpadalq_s16(*x, vmull_s8(bytes, ones));
                }
            }
            black_box(x);
        }
        (12 * 8 * 2) as f64
    }
}

/// What a traffic loop does to its arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// Sums `b`.
    Read,
    /// `a = s`
    Write,
    /// `a = b`
    Copy,
    /// `a = b + s c` (McCalpin's STREAM triad)
    Triad,
    /// `a = a + s b`: writes what it has read, as optimisers and residual sums do.
    Update,
}

impl Traffic {
    /// Times that an array is read or written in a pass.
    pub fn moves(self) -> usize {
        match self {
            Traffic::Update => 3,
            other => other.arrays(),
        }
    }

    /// Arrays that it touches.
    pub fn arrays(self) -> usize {
        match self {
            Traffic::Read | Traffic::Write => 1,
            Traffic::Copy | Traffic::Update => 2,
            Traffic::Triad => 3,
        }
    }
}

/// Arrays have whole multiples of this many floats.
pub const UNROLL: usize = 8 * 16;

/// Whether there are non-temporal stores: those that bypass the caches, and so do not read a line before writing it.
pub fn can_stream() -> bool {
    cfg!(target_arch = "x86_64")
}

/// Goes `passes` times over the arrays: `a` is written, `b` and `c` are read; those that `kind` does not touch may be empty. With
/// `streaming`, stores are non-temporal where there are such.
///
/// # Panics
/// If the arrays that are touched differ in length, are not a multiple of [`UNROLL`] long, or (`streaming`) `a` is not aligned to 64
/// bytes.
pub fn traffic(kind: Traffic, streaming: bool, a: &mut [f32], b: &[f32], c: &[f32], passes: usize) {
    let n = if kind == Traffic::Read { b.len() } else { a.len() };
    assert_eq!(n % UNROLL, 0, "{n} floats are not a multiple of {UNROLL}");
    if matches!(kind, Traffic::Copy | Traffic::Triad | Traffic::Update) {
        assert_eq!(b.len(), n, "arrays of one length");
    }
    if kind == Traffic::Triad {
        assert_eq!(c.len(), n, "arrays of one length");
    }
    assert!(!streaming || a.as_ptr().addr().is_multiple_of(64), "streaming needs alignment");
    for _ in 0..passes {
        let (a, b, c) = (black_box(a.as_mut_ptr()), black_box(b.as_ptr()), black_box(c.as_ptr()));
        // SAFETY: lengths and alignment were checked.
        unsafe {
            match (kind, streaming && can_stream()) {
                (Traffic::Read, _) => read(b, n),
                (Traffic::Write, false) => write::<false>(a, n),
                (Traffic::Write, true) => write::<true>(a, n),
                (Traffic::Copy, false) => copy::<false>(a, b, n),
                (Traffic::Copy, true) => copy::<true>(a, b, n),
                (Traffic::Triad, false) => triad::<false>(a, b, c, n),
                (Traffic::Triad, true) => triad::<true>(a, b, c, n),
                (Traffic::Update, false) => triad::<false>(a, a, b, n),
                (Traffic::Update, true) => triad::<true>(a, a, b, n),
            }
        }
    }
    fence();
}

/// Waits for non-temporal stores.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 has SSE2.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Stores without reading the line first, where the architecture can; the address is aligned to the register.
///
/// # Safety
/// `p` is valid for `R::WIDTH` writes, and this is inside a body that was dispatched for the register's instruction set.
#[inline(always)]
unsafe fn put<V: Isa, R: Register, const STREAM: bool>(x: R, p: *mut f32) {
    #[cfg(target_arch = "x86_64")]
    if STREAM {
        use std::arch::x86_64::*;
        // SAFETY: `R` is one or several registers of the type that V has (`with_register`), in order.
        unsafe {
            match V::LEVEL {
                Level::Avx512 => _mm512_stream_ps(p, std::mem::transmute_copy(&x)),
                Level::Avx2 => {
                    let halves: [__m256; 2] = std::mem::transmute_copy(&x);
                    _mm256_stream_ps(p, halves[0]);
                    _mm256_stream_ps(p.add(8), halves[1]);
                }
                Level::Baseline => {
                    let quarters: [__m128; 4] = std::mem::transmute_copy(&x);
                    for (i, q) in quarters.into_iter().enumerate() {
                        _mm_stream_ps(p.add(4 * i), q);
                    }
                }
            }
        }
        return;
    }
    // SAFETY: the contract.
    unsafe { x.store(p) };
}

/// Bodies of the traffic loops over 16-float registers `R`; all pointers are valid for `n` floats, `n` a multiple of [`UNROLL`].
mod rounds {
    use super::*;

    /// Calls `body` with the place of every register of the arrays, eight to a round: no checks between the loads and stores.
    #[inline(always)]
    fn each(n: usize, mut body: impl FnMut(usize, usize)) {
        let mut at = 0usize;
        while at < n {
            for i in 0..8 {
                body(i, at.wrapping_add(i.wrapping_mul(16)));
            }
            at = at.wrapping_add(UNROLL);
        }
    }

    #[inline(always)]
    pub(super) unsafe fn read<R: Register>(b: *const f32, n: usize) {
        let mut sums = [R::splat(0.0); 8];
        each(n, |i, at| sums[i] = sums[i].add(unsafe { R::load(b.wrapping_add(at)) }));
        keep(&sums);
    }

    #[inline(always)]
    pub(super) unsafe fn write<V: Isa, R: Register, const STREAM: bool>(a: *mut f32, n: usize) {
        let value = R::splat(black_box(1.0));
        each(n, |_, at| unsafe { put::<V, R, STREAM>(value, a.wrapping_add(at)) });
    }

    #[inline(always)]
    pub(super) unsafe fn copy<V: Isa, R: Register, const STREAM: bool>(a: *mut f32, b: *const f32, n: usize) {
        each(n, |_, at| unsafe { put::<V, R, STREAM>(R::load(b.wrapping_add(at)), a.wrapping_add(at)) });
    }

    #[inline(always)]
    pub(super) unsafe fn triad<V: Isa, R: Register, const STREAM: bool>(
        a: *mut f32,
        b: *const f32,
        c: *const f32,
        n: usize,
    ) {
        let s = R::splat(black_box(3.0));
        each(n, |_, at| unsafe {
            let sum = R::load(b.wrapping_add(at)).accumulate(s, R::load(c.wrapping_add(at)));
            put::<V, R, STREAM>(sum, a.wrapping_add(at));
        });
    }
}

/// Calls a loop of [`rounds`] with the sixteen-float register of instruction set `$v`.
macro_rules! on_register {
    ($v:ty, $f:ident::<$s:ident>($($arg:expr),*)) => {
        match <$v as Isa>::LEVEL {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => rounds::$f::<$v, crate::register::__m512, $s>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => rounds::$f::<$v, crate::register::Two<crate::register::__m256>, $s>($($arg),*),
            _ => rounds::$f::<$v, crate::register::Two<crate::register::Two<crate::register::Base>>, $s>($($arg),*),
        }
    };
}

use rounds::read as read_rounds;

crate::multiversion! {
    unsafe fn read<V>(b: *const f32, n: usize) {
        unsafe { with_register!(V, read_rounds(b, n)) }
    }

    unsafe fn write<V, const STREAM: bool>(a: *mut f32, n: usize) {
        unsafe { on_register!(V, write::<STREAM>(a, n)) }
    }

    unsafe fn copy<V, const STREAM: bool>(a: *mut f32, b: *const f32, n: usize) {
        unsafe { on_register!(V, copy::<STREAM>(a, b, n)) }
    }

    unsafe fn triad<V, const STREAM: bool>(a: *mut f32, b: *const f32, c: *const f32, n: usize) {
        unsafe { on_register!(V, triad::<STREAM>(a, b, c, n)) }
    }
}

/// Reads one float in every `stride`, from the first to the last of `x`, once: returns the number of reads.
pub fn strided(x: &[f32], stride: usize) -> usize {
    let mut sums = [0u32; 4];
    let count = x.len() / stride.max(1) / 4;
    let mut at = x.as_ptr();
    for _ in 0..count {
        for sum in &mut sums {
            // SAFETY: `count * 4 * stride` floats are inside `x`. Volatile: every read is done, one by one.
            unsafe {
                *sum ^= at.read_volatile().to_bits();
                at = at.wrapping_add(stride);
            }
        }
    }
    black_box(sums);
    4 * count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_arithmetic_counts_its_operations_per_round() {
        for kind in [Arithmetic::F32, Arithmetic::Bf16Dot, Arithmetic::Int8Dot] {
            let (one, ten) = (kind.run(1), kind.run(10));
            assert_eq!(ten, 10.0 * one, "{kind:?}");
            assert_eq!(kind.available(), one > 0.0, "{kind:?}");
        }
    }

    #[test]
    fn traffic_writes_what_its_name_says() {
        #[repr(align(64))]
        struct Aligned([f32; 2 * UNROLL]);
        let n = 2 * UNROLL;
        let (b, c) = (vec![2.0; n], vec![0.5; n]);
        for streaming in [false, true] {
            for (kind, expected) in [(Traffic::Write, 1.0), (Traffic::Copy, 2.0), (Traffic::Triad, 3.5)] {
                let mut a = Aligned([0.0; 2 * UNROLL]);
                traffic(kind, streaming, &mut a.0, &b, &c, 2);
                assert!(a.0.iter().all(|a| *a == expected), "{kind:?} {streaming}");
            }
        }
        traffic(Traffic::Read, false, &mut [], &b, &[], 3);
        let mut a = vec![1.0; n];
        traffic(Traffic::Update, false, &mut a, &c, &[], 2);
        assert!(a.iter().all(|a| *a == 4.0));
    }

    #[test]
    fn strides_reach_the_whole_array() {
        let x = vec![1.0; 4096];
        assert_eq!(strided(&x, 1), 4096);
        assert_eq!(strided(&x, 64), 64);
        assert_eq!(strided(&x, 1024), 4);
    }
}
