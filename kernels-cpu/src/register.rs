//! SIMD registers as values, for kernels whose state must stay in registers: recurrences over time, register blocks of a
//! matrix product. (Arrays of floats that are loaded on one of two paths, or carried from step to step, do not always stay
//! vectors in LLVM's hands.)

/// One SIMD register, or several that go together, of `WIDTH` floats.
///
/// # Safety
/// Values may be made only where the instruction set is there: inside a kernel body that was dispatched to it.
pub(crate) unsafe trait Register: Copy {
    const WIDTH: usize;
    /// # Safety
    /// `p` is valid for `WIDTH` reads.
    unsafe fn load(p: *const f32) -> Self;
    /// The integers at `p` as floats.
    ///
    /// # Safety
    /// `p` is valid for `WIDTH` reads.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// # Safety
    /// `p` is valid for `WIDTH` writes.
    unsafe fn store(self, p: *mut f32);
    fn splat(x: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// `a * b + self`
    fn accumulate(self, a: Self, b: Self) -> Self;
}

/// Two registers as one.
#[derive(Clone, Copy)]
pub(crate) struct Two<R>(R, R);

// SAFETY: as for R.
unsafe impl<R: Register> Register for Two<R> {
    const WIDTH: usize = 2 * R::WIDTH;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY (all pointers): the trait's contract, for either half.
        unsafe { Two(R::load(p), R::load(p.add(R::WIDTH))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe { Two(R::load_i8(p), R::load_i8(p.add(R::WIDTH))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            self.0.store(p);
            self.1.store(p.add(R::WIDTH));
        }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Two(R::splat(x), R::splat(x))
    }
    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Two(self.0.add(o.0), self.1.add(o.1))
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Two(self.0.sub(o.0), self.1.sub(o.1))
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Two(self.0.mul(o.0), self.1.mul(o.1))
    }
    #[inline(always)]
    fn accumulate(self, a: Self, b: Self) -> Self {
        Two(self.0.accumulate(a.0, b.0), self.1.accumulate(a.1, b.1))
    }
}

/// Implements [`Register`] for one type of `std::arch`: its operations, and how 8-bit integers are loaded.
macro_rules! register {
    ($type:ty, $width:expr, $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident,
     |$acc:ident, $a:ident, $b:ident| $fma:expr, |$p:ident| $bytes:expr) => {
        // SAFETY (all below): the contracts of the trait and of its methods.
        unsafe impl Register for $type {
            const WIDTH: usize = $width;
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn load_i8($p: *const i8) -> Self {
                unsafe { $bytes }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                unsafe { $store(p, self) }
            }
            #[inline(always)]
            fn splat(x: f32) -> Self {
                unsafe { $splat(x) }
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                unsafe { $sub(self, other) }
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                unsafe { $mul(self, other) }
            }
            #[inline(always)]
            fn accumulate(self, $a: Self, $b: Self) -> Self {
                let $acc = self;
                unsafe { $fma }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe)]
mod arch {
    use super::Register;
    use std::arch::x86_64::*;
    pub(crate) use std::arch::x86_64::{__m128, __m256, __m512};

    register!(
        __m512,
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        |acc, a, b| _mm512_fmadd_ps(a, b, acc),
        |p| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    );
    register!(
        __m256,
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        |acc, a, b| _mm256_fmadd_ps(a, b, acc),
        |p| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())))
    );
    // SSE2 has no widening load of bytes.
    register!(
        __m128,
        4,
        _mm_loadu_ps,
        _mm_storeu_ps,
        _mm_set1_ps,
        _mm_add_ps,
        _mm_sub_ps,
        _mm_mul_ps,
        |acc, a, b| _mm_add_ps(_mm_mul_ps(a, b), acc),
        |p| {
            let q = p.cast::<[i8; 4]>().read_unaligned();
            _mm_setr_ps(q[0] as f32, q[1] as f32, q[2] as f32, q[3] as f32)
        }
    );

    /// The four-float register that every processor of this kind has.
    pub(crate) type Base = __m128;
}

#[cfg(target_arch = "aarch64")]
#[allow(unused_unsafe)]
mod arch {
    use super::Register;
    use std::arch::aarch64::*;

    register!(
        float32x4_t,
        4,
        vld1q_f32,
        vst1q_f32,
        vdupq_n_f32,
        vaddq_f32,
        vsubq_f32,
        vmulq_f32,
        |acc, a, b| vfmaq_f32(acc, a, b),
        |p| {
            let q = p.cast::<[i8; 4]>().read_unaligned().map(|q| q as f32);
            vld1q_f32(q.as_ptr())
        }
    );

    pub(crate) type Base = float32x4_t;
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    use super::Register;

    /// Four floats in plain code.
    #[derive(Clone, Copy)]
    pub(crate) struct Base([f32; 4]);

    // SAFETY: no instruction set is needed; pointers keep the trait's contract.
    unsafe impl Register for Base {
        const WIDTH: usize = 4;
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            Base(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
        }
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> Self {
            Base(unsafe { p.cast::<[i8; 4]>().read_unaligned() }.map(|q| q as f32))
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
        }
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Base([x; 4])
        }
        #[inline(always)]
        fn add(self, o: Self) -> Self {
            Base(std::array::from_fn(|i| self.0[i] + o.0[i]))
        }
        #[inline(always)]
        fn sub(self, o: Self) -> Self {
            Base(std::array::from_fn(|i| self.0[i] - o.0[i]))
        }
        #[inline(always)]
        fn mul(self, o: Self) -> Self {
            Base(std::array::from_fn(|i| self.0[i] * o.0[i]))
        }
        #[inline(always)]
        fn accumulate(self, a: Self, b: Self) -> Self {
            Base(std::array::from_fn(|i| a.0[i] * b.0[i] + self.0[i]))
        }
    }
}

pub(crate) use arch::*;

/// Calls `f::<R>(args)` with the sixteen-float register of instruction set `$v`, inside a kernel body.
macro_rules! with_register {
    ($v:ty, $f:ident::<$($n:ident),+>($($arg:expr),* $(,)?)) => {
        match <$v as $crate::simd::Isa>::LEVEL {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx512 => $f::<$crate::register::__m512, $($n),+>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => $f::<$crate::register::Two<$crate::register::__m256>, $($n),+>($($arg),*),
            _ => $f::<$crate::register::Two<$crate::register::Two<$crate::register::Base>>, $($n),+>($($arg),*),
        }
    };
    ($v:ty, $f:ident($($arg:expr),* $(,)?)) => {
        match <$v as $crate::simd::Isa>::LEVEL {
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx512 => $f::<$crate::register::__m512>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::simd::Level::Avx2 => $f::<$crate::register::Two<$crate::register::__m256>>($($arg),*),
            _ => $f::<$crate::register::Two<$crate::register::Two<$crate::register::Base>>>($($arg),*),
        }
    };
}
pub(crate) use with_register;
