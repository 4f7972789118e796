//! The instructions of pointwise programs over blocks of elements: one vectorised loop per instruction and instruction set.

use crate::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::math;
use crate::program::{Binary, Unary};
use crate::register::with_register;
use crate::simd::Isa;
use crate::vector::{Vector, gelu_erf, gelu_erf_grad, lanewise, row_map};

/// Elements that a kernel holds apart where it must.
const CHUNK: usize = 128;

#[inline(always)]
fn unary<V: Isa, const OP: u8>(x: f32) -> f32 {
    // a chain of comparisons of constants: one arm remains after compilation
    macro_rules! pick {
        ($($name:ident => $value:expr,)*) => {
            $(if OP == Unary::$name as u8 { $value } else)* { x }
        };
    }
    pick! {
        Neg => -x,
        Abs => x.abs(),
        Sign => ((x > 0.0) as u32 as f32) - ((x < 0.0) as u32 as f32),
        Exp => math::exp::<V>(x),
        Expm1 => math::expm1::<V>(x),
        Log => math::log::<V>(x),
        Log1p => math::log1p::<V>(x),
        Sqrt => x.sqrt(),
        Rsqrt => 1.0 / x.sqrt(),
        Recip => 1.0 / x,
        Sin => math::sin::<V>(x),
        Cos => math::cos::<V>(x),
        Tanh => math::tanh::<V>(x),
        Sigmoid => math::sigmoid::<V>(x),
        Softplus => math::softplus::<V>(x),
        Silu => math::silu::<V>(x),
        SiluGrad => math::silu_grad::<V>(x),
        GeluTanh => math::gelu_tanh::<V>(x),
        GeluTanhGrad => math::gelu_tanh_grad::<V>(x),
        GeluErf => math::gelu_erf::<V>(x),
        GeluErfGrad => math::gelu_erf_grad::<V>(x),
        Relu => x.max(0.0),
        Step => (x > 0.0) as u32 as f32,
        Trunc => x.trunc(),
    }
}

#[inline(always)]
fn binary<const OP: u8>(a: f32, b: f32) -> f32 {
    macro_rules! pick {
        ($($name:ident => $value:expr,)*) => {
            $(if OP == Binary::$name as u8 { $value } else)* { a }
        };
    }
    pick! {
        Add => a + b,
        Sub => a - b,
        Mul => a * b,
        Div => a / b,
        Max => a.max(b),
        Min => a.min(b),
        Lt => (a < b) as u32 as f32,
        Le => (a <= b) as u32 as f32,
        Eq => (a == b) as u32 as f32,
    }
}

lanewise! {
    GeluErf() = |x, _y| gelu_erf(x);
    GeluErfGrad() = |x, _y| gelu_erf_grad(x);
}

/// # Safety
/// The contract of the kernels below.
#[inline(always)]
unsafe fn gelu_erf_run<R: Vector>(n: usize, a: *const f32, y: *mut f32) {
    // SAFETY: passed on.
    unsafe { row_map::<R>(a, a, n, y, GeluErf::new()) }
}

/// # Safety
/// The contract of the kernels below.
#[inline(always)]
unsafe fn gelu_erf_grad_run<R: Vector>(n: usize, a: *const f32, y: *mut f32) {
    // SAFETY: passed on.
    unsafe { row_map::<R>(a, a, n, y, GeluErfGrad::new()) }
}

// The contract of the kernels: the pointers are valid for `n` elements, and the result either stands exactly where an operand stands or overlaps none. The cases are
// told apart because LLVM vectorises a loop only where it can show that stores do not reach later loads.
crate::multiversion! {
    unsafe fn unary_block<V, const OP: u8>(n: usize, a: *const f32, y: *mut f32) {
        // SAFETY: the contract above.
        let y = unsafe { std::slice::from_raw_parts_mut(y, n) };
        if !std::ptr::eq(a, y.as_ptr()) {
            // SAFETY: the contract above.
            let a = unsafe { std::slice::from_raw_parts(a, n) };
            for (y, &a) in y.iter_mut().zip(a) {
                *y = unary::<V, OP>(a);
            }
        } else {
            for y in y {
                *y = unary::<V, OP>(*y);
            }
        }
    }

    /// The functions of the normal distribution, whose time is their exponentials.
    unsafe fn normal_block<V, const GRAD: bool>(n: usize, a: *const f32, y: *mut f32) {
        // SAFETY: the contract above.
        unsafe {
            if GRAD { with_register!(V, gelu_erf_grad_run(n, a, y)) } else { with_register!(V, gelu_erf_run(n, a, y)) }
        }
    }

    /// Sine or cosine: arguments beyond the range of the fast reduction are rare, and done apart.
    unsafe fn sin_cos_block<V, const OP: u8>(n: usize, a: *const f32, y: *mut f32) {
        let mut x = [0.0; CHUNK];
        for i in (0..n).step_by(CHUNK) {
            let len = CHUNK.min(n - i);
            let x = &mut x[..len];
            // SAFETY: the contract above; the arguments are copied before results take their place.
            let y = unsafe {
                std::ptr::copy_nonoverlapping(a.add(i), x.as_mut_ptr(), len);
                std::slice::from_raw_parts_mut(y.add(i), len)
            };
            let mut beyond = 0;
            for (y, &x) in y.iter_mut().zip(&*x) {
                *y = unary::<V, OP>(x);
                beyond |= (x.abs() > math::SIN_COS_RANGE) as u32;
            }
            if beyond != 0 {
                for (y, &x) in y.iter_mut().zip(&*x).filter(|(_, x)| x.abs() > math::SIN_COS_RANGE) {
                    let (sin, cos) = math::sin_cos_f64(x);
                    *y = if OP == Unary::Sin as u8 { sin } else { cos };
                }
            }
        }
    }

    unsafe fn binary_block<V, const OP: u8>(n: usize, a: *const f32, b: *const f32, y: *mut f32) {
        let (in_a, in_b) = (std::ptr::eq(a, y), std::ptr::eq(b, y));
        // SAFETY: the contract above; slices are made of those operands that do not stand where the result stands.
        let (y, operand) =
            unsafe { (std::slice::from_raw_parts_mut(y, n), |p: *const f32| std::slice::from_raw_parts(p, n)) };
        match (in_a, in_b) {
            (false, false) => {
                for ((y, &a), &b) in y.iter_mut().zip(operand(a)).zip(operand(b)) {
                    *y = binary::<OP>(a, b);
                }
            }
            (true, false) => {
                for (y, &b) in y.iter_mut().zip(operand(b)) {
                    *y = binary::<OP>(*y, b);
                }
            }
            (false, true) => {
                for (y, &a) in y.iter_mut().zip(operand(a)) {
                    *y = binary::<OP>(a, *y);
                }
            }
            (true, true) => {
                for y in y {
                    *y = binary::<OP>(*y, *y);
                }
            }
        }
    }

    /// `y = c != 0 ? a : b`
    pub(crate) unsafe fn select_block<V>(n: usize, c: *const f32, a: *const f32, b: *const f32, y: *mut f32) {
        let mut v = [0.0; CHUNK];
        for i in (0..n).step_by(CHUNK) {
            let len = CHUNK.min(n - i);
            let v = &mut v[..len];
            // SAFETY: the contract above; a chunk is complete before it is stored.
            unsafe {
                let operand = |p: *const f32| std::slice::from_raw_parts(p.add(i), len);
                for (((v, &c), &a), &b) in v.iter_mut().zip(operand(c)).zip(operand(a)).zip(operand(b)) {
                    *v = if c != 0.0 { a } else { b };
                }
                std::ptr::copy_nonoverlapping(v.as_ptr(), y.add(i), len);
            }
        }
    }

    /// `n` integers as floats; the two do not overlap.
    pub(crate) unsafe fn int_to_float<V>(n: usize, x: *const i32, y: *mut f32) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = *x.add(i) as f32 };
        }
    }

    /// `n` floats as integers, toward zero, saturating, NaN as 0; the two do not overlap.
    pub(crate) unsafe fn float_to_int<V>(n: usize, x: *const f32, y: *mut i32) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = *x.add(i) as i32 };
        }
    }

    /// `n` bfloat16 numbers as floats; the two do not overlap.
    pub(crate) unsafe fn bf16_to_float<V>(n: usize, x: *const u16, y: *mut f32) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = bf16_to_f32(*x.add(i)) };
        }
    }

    /// `n` binary16 numbers as floats; the two do not overlap.
    pub(crate) unsafe fn f16_to_float<V>(n: usize, x: *const u16, y: *mut f32) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = f16_to_f32(*x.add(i)) };
        }
    }

    /// The bfloat16 numbers nearest to `n` floats; the two do not overlap.
    pub(crate) unsafe fn float_to_bf16<V>(n: usize, x: *const f32, y: *mut u16) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = f32_to_bf16(*x.add(i)) };
        }
    }

    /// The binary16 numbers nearest to `n` floats; the two do not overlap.
    pub(crate) unsafe fn float_to_f16<V>(n: usize, x: *const f32, y: *mut u16) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = f32_to_f16(*x.add(i)) };
        }
    }
}

/// `y = op(a)`
///
/// # Safety
/// The contract of the kernels above.
pub(crate) unsafe fn run_unary(op: Unary, n: usize, a: *const f32, y: *mut f32) {
    macro_rules! dispatch {
        ($($name:ident)*) => {
            // SAFETY: passed on.
            match op {
                Unary::GeluErf => unsafe { normal_block::<false>(n, a, y) },
                Unary::GeluErfGrad => unsafe { normal_block::<true>(n, a, y) },
                $(Unary::$name => unsafe { unary_block::<{ Unary::$name as u8 }>(n, a, y) },)*
                Unary::Sin => unsafe { sin_cos_block::<{ Unary::Sin as u8 }>(n, a, y) },
                Unary::Cos => unsafe { sin_cos_block::<{ Unary::Cos as u8 }>(n, a, y) },
            }
        };
    }
    dispatch!(Neg Abs Sign Exp Expm1 Log Log1p Sqrt Rsqrt Recip Tanh Sigmoid Softplus Silu SiluGrad GeluTanh GeluTanhGrad Relu Step Trunc)
}

/// `y = op(a, b)`
///
/// # Safety
/// The contract of the kernels above.
pub(crate) unsafe fn run_binary(op: Binary, n: usize, a: *const f32, b: *const f32, y: *mut f32) {
    macro_rules! dispatch {
        ($($name:ident)*) => {
            // SAFETY: passed on.
            match op { $(Binary::$name => unsafe { binary_block::<{ Binary::$name as u8 }>(n, a, b, y) },)* }
        };
    }
    dispatch!(Add Sub Mul Div Max Min Lt Le Eq)
}

/// What an instruction costs beside an addition, for deciding on threads.
pub(crate) fn unary_cost(op: Unary) -> usize {
    use Unary::*;
    match op {
        Neg | Abs | Sign | Relu | Step | Trunc => 1,
        Sqrt | Rsqrt | Recip => 3,
        Exp | Expm1 | Log | Sin | Cos | Tanh | Sigmoid | Silu | SiluGrad | GeluTanh | GeluTanhGrad => 8,
        Log1p | Softplus | GeluErf | GeluErfGrad => 14,
    }
}
