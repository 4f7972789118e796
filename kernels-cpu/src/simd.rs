//! Run-time SIMD dispatch: one scalar-looking body, compiled once per instruction set, chosen at the first call.
//!
//! A kernel is written as a branch-free loop over slices (LLVM vectorises it) inside [`multiversion!`](crate::multiversion):
//!
//! ```
//! use kernels_cpu::simd::Isa;
//! kernels_cpu::multiversion! {
//!     /// y += a x
//!     pub fn axpy<V>(a: f32, x: &[f32], y: &mut [f32]) {
//!         for (y, &x) in y.iter_mut().zip(x) {
//!             *y = V::fma(a, x, *y);
//!         }
//!     }
//! }
//! let mut y = [1.0; 5];
//! axpy(2.0, &[1.0, 2.0, 3.0, 4.0, 5.0], &mut y);
//! assert_eq!(y, [3.0, 5.0, 7.0, 9.0, 11.0]);
//! ```
//!
//! `V` names the instruction set inside the body; helpers that the body calls are ordinary
//! `#[inline(always)] fn helper<V: Isa>(..)`. Inlining is what carries the target features to them, so every function on
//! the hot path must be `#[inline(always)]`, and loops must not go through closures that are not inlined.
//! Sums need explicit lanes, because LLVM may not reorder floating-point additions: see [`Lanes`] and [`dot`].

use std::sync::OnceLock;

/// An instruction set that kernels are compiled for, ordered from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// What the compilation target guarantees: SSE2 on x86-64, NEON on AArch64.
    Baseline,
    /// AVX2, FMA, BMI and F16C.
    Avx2,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512,
}

impl Level {
    /// The name used by the environment variable `KERNELS_CPU_SIMD` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Level::Baseline if cfg!(target_arch = "aarch64") => "neon",
            Level::Baseline => "baseline",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

/// The best level this processor has, without regard to `KERNELS_CPU_SIMD`.
pub fn detect() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx2 && avx512 {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// The level that kernels run at: [`detect`], lowered by the environment variable `KERNELS_CPU_SIMD`
/// (`baseline`, `avx2` or `avx512`; other values are ignored) as read at the first call.
#[inline]
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let wanted = std::env::var("KERNELS_CPU_SIMD").ok();
        let cap =
            [Level::Baseline, Level::Avx2, Level::Avx512].into_iter().find(|l| wanted.as_deref() == Some(l.name()));
        detect().min(cap.unwrap_or(Level::Avx512))
    })
}

/// An instruction set as a type: the parameter `V` of kernel bodies.
pub trait Isa: Copy + Send + Sync + 'static {
    const LEVEL: Level;
    /// Whether a fused multiply-add is one instruction.
    const HAS_FMA: bool;

    /// `a * b + c`, fused where that is one instruction (elsewhere a fused operation would be a slow library call).
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        if Self::HAS_FMA { a.mul_add(b, c) } else { a * b + c }
    }
}

/// [`Level::Baseline`] as a type.
#[derive(Clone, Copy)]
pub struct Baseline;
/// [`Level::Avx2`] as a type.
#[derive(Clone, Copy)]
pub struct Avx2;
/// [`Level::Avx512`] as a type.
#[derive(Clone, Copy)]
pub struct Avx512;

impl Isa for Baseline {
    const LEVEL: Level = Level::Baseline;
    const HAS_FMA: bool = cfg!(target_arch = "aarch64") || cfg!(target_feature = "fma");
}
impl Isa for Avx2 {
    const LEVEL: Level = Level::Avx2;
    const HAS_FMA: bool = true;
}
impl Isa for Avx512 {
    const LEVEL: Level = Level::Avx512;
    const HAS_FMA: bool = true;
}

/// Compiles a function once per instruction set and dispatches on [`simd::level`](crate::simd::level) at each call.
///
/// Forms: `[pub] [unsafe] fn name<V [, const N: type]*>(arg: type, ..) [-> type] { body }`. `V` is bound to a type that
/// implements [`Isa`](crate::simd::Isa) inside the body and is not a parameter of the generated function. Arguments are plain names
/// (no patterns, no `mut`); elided lifetimes only. Several functions may stand in one invocation.
#[macro_export]
macro_rules! multiversion {
    () => {};
    ($(#[$attr:meta])* $vis:vis fn $name:ident<$V:ident $(, const $N:ident : $nt:ty)*>($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block $($rest:tt)*) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$(const $N: $nt),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters)]
            fn body<$V: $crate::simd::Isa $(, const $N: $nt)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            fn avx512<$(const $N: $nt),*>($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::simd::Avx512 $(, $N)*>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c")]
            fn avx2<$(const $N: $nt),*>($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::simd::Avx2 $(, $N)*>($($arg),*)
            }
            match $crate::simd::level() {
                // SAFETY: `level` never exceeds what the processor was detected to have.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512::<$($N),*>($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2::<$($N),*>($($arg),*) },
                _ => body::<$crate::simd::Baseline $(, $N)*>($($arg),*),
            }
        }
        $crate::multiversion! { $($rest)* }
    };
    ($(#[$attr:meta])* $vis:vis unsafe fn $name:ident<$V:ident $(, const $N:ident : $nt:ty)*>($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block $($rest:tt)*) => {
        $(#[$attr])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name<$(const $N: $nt),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::extra_unused_type_parameters)]
            unsafe fn body<$V: $crate::simd::Isa $(, const $N: $nt)*>($($arg: $ty),*) $(-> $ret)? $body
            // SAFETY (all four): the caller keeps the contract of the body, and `level` never exceeds the processor.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
            unsafe fn avx512<$(const $N: $nt),*>($($arg: $ty),*) $(-> $ret)? {
                unsafe { body::<$crate::simd::Avx512 $(, $N)*>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c")]
            unsafe fn avx2<$(const $N: $nt),*>($($arg: $ty),*) $(-> $ret)? {
                unsafe { body::<$crate::simd::Avx2 $(, $N)*>($($arg),*) }
            }
            match $crate::simd::level() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512::<$($N),*>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2::<$($N),*>($($arg),*) },
                _ => unsafe { body::<$crate::simd::Baseline $(, $N)*>($($arg),*) },
            }
        }
        $crate::multiversion! { $($rest)* }
    };
}

/// Independent partial results of a reduction: 16 floats are one AVX-512 register, two AVX2 or four NEON ones.
pub const LANES: usize = 16;

/// [`LANES`] floats that LLVM keeps in registers.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
pub struct Lanes(pub [f32; LANES]);

#[allow(clippy::should_implement_trait, reason = "methods chain with fma, max and min")]
impl Lanes {
    #[inline(always)]
    pub fn splat(v: f32) -> Self {
        Lanes([v; LANES])
    }

    /// The first [`LANES`] elements of `x`, which must have as many.
    #[inline(always)]
    pub fn load(x: &[f32]) -> Self {
        Lanes(*x.first_chunk::<LANES>().expect("at least LANES elements"))
    }

    /// The elements of `x` (at most [`LANES`]), then `fill`.
    #[inline(always)]
    pub fn load_partial(x: &[f32], fill: f32) -> Self {
        let mut out = Lanes::splat(fill);
        for (o, &x) in out.0.iter_mut().zip(x) {
            *o = x;
        }
        out
    }

    /// Writes all lanes to the first [`LANES`] elements of `y`.
    #[inline(always)]
    pub fn store(self, y: &mut [f32]) {
        *y.first_chunk_mut::<LANES>().expect("at least LANES elements") = self.0;
    }

    #[inline(always)]
    pub fn add(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self.0[i] += other.0[i];
        }
        self
    }

    #[inline(always)]
    pub fn mul(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self.0[i] *= other.0[i];
        }
        self
    }

    /// `self * b + c` per lane.
    #[inline(always)]
    pub fn fma<V: Isa>(mut self, b: Self, c: Self) -> Self {
        for i in 0..LANES {
            self.0[i] = V::fma(self.0[i], b.0[i], c.0[i]);
        }
        self
    }

    /// The greater of each pair; NaN counts as absent.
    #[inline(always)]
    pub fn max(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self.0[i] = self.0[i].max(other.0[i]);
        }
        self
    }

    /// The lesser of each pair; NaN counts as absent.
    #[inline(always)]
    pub fn min(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self.0[i] = self.0[i].min(other.0[i]);
        }
        self
    }

    /// The sum of all lanes, as a balanced tree.
    #[inline(always)]
    pub fn sum(mut self) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                self.0[i] += self.0[i + half];
            }
            half /= 2;
        }
        self.0[0]
    }

    /// The greatest lane.
    #[inline(always)]
    pub fn reduce_max(mut self) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                self.0[i] = self.0[i].max(self.0[i + half]);
            }
            half /= 2;
        }
        self.0[0]
    }

    /// The least lane.
    #[inline(always)]
    pub fn reduce_min(mut self) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                self.0[i] = self.0[i].min(self.0[i + half]);
            }
            half /= 2;
        }
        self.0[0]
    }
}

/// The dot product of two slices of equal length, for use inside kernel bodies: four independent [`Lanes`].
#[inline(always)]
pub fn dot<V: Isa>(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut acc = [Lanes::splat(0.0); 4];
    let (mut a4, mut b4) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
    for (a, b) in (&mut a4).zip(&mut b4) {
        for j in 0..4 {
            acc[j] = Lanes::load(&a[j * LANES..]).fma::<V>(Lanes::load(&b[j * LANES..]), acc[j]);
        }
    }
    let (mut a1, mut b1) = (a4.remainder().chunks_exact(LANES), b4.remainder().chunks_exact(LANES));
    for (a, b) in (&mut a1).zip(&mut b1) {
        acc[0] = Lanes::load(a).fma::<V>(Lanes::load(b), acc[0]);
    }
    let (a, b) = (Lanes::load_partial(a1.remainder(), 0.0), Lanes::load_partial(b1.remainder(), 0.0));
    acc[1] = a.fma::<V>(b, acc[1]);
    acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum()
}

/// `y += a x` over slices of equal length, for use inside kernel bodies.
#[inline(always)]
pub fn axpy<V: Isa>(a: f32, x: &[f32], y: &mut [f32]) {
    debug_assert_eq!(x.len(), y.len());
    for (y, &x) in y.iter_mut().zip(x) {
        *y = V::fma(a, x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::multiversion! {
        fn which<V>() -> Level { V::LEVEL }

        fn dot_product<V>(a: &[f32], b: &[f32]) -> f32 { dot::<V>(a, b) }

        /// # Safety
        /// `p` is valid for `n` reads.
        unsafe fn sum_raw<V, const K: usize>(p: *const f32, n: usize) -> f32 {
            let mut s = K as f32;
            for i in 0..n {
                // SAFETY: the contract above.
                s += unsafe { *p.add(i) };
            }
            s
        }
    }

    #[test]
    fn dispatch_runs_the_level_that_was_chosen() {
        assert_eq!(which(), level());
        assert!(level() <= detect());
    }

    #[test]
    fn unsafe_and_const_generic_forms_work() {
        let x = [1.0, 2.0, 3.0];
        // SAFETY: three elements.
        assert_eq!(unsafe { sum_raw::<4>(x.as_ptr(), 3) }, 10.0);
    }

    #[test]
    fn dot_is_within_the_bound_of_blocked_summation_at_every_length() {
        for n in [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 1000, 4099] {
            let a: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let b: Vec<f32> = (0..n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 5.0).collect();
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| a as f64 * b as f64).sum();
            let magnitude: f64 = a.iter().zip(&b).map(|(&a, &b)| (a as f64 * b as f64).abs()).sum();
            // each element passes through at most n / 64 + 1 + 6 roundings of its lane, plus one for its product
            let bound = (n as f64 / 64.0 + 11.0) * 2f64.powi(-24) * magnitude;
            assert!((dot_product(&a, &b) as f64 - exact).abs() <= bound, "n = {n}");
        }
    }

    #[test]
    fn lane_reductions_agree_with_loops() {
        let x = Lanes(std::array::from_fn(|i| ((i * 7) % 16) as f32 - 5.0));
        assert_eq!(x.sum(), x.0.iter().sum::<f32>());
        assert_eq!(x.reduce_max(), 10.0);
        assert_eq!(x.reduce_min(), -5.0);
        assert_eq!(Lanes::load_partial(&[1.0, 2.0], 9.0).0[..3], [1.0, 2.0, 9.0]);
    }
}
