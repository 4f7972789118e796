//! The instructions of pointwise programs over blocks of elements: one vectorised loop per instruction and instruction set.

use crate::math;
use crate::program::{Binary, Unary};
use crate::simd::Isa;

/// Blocks are processed in chunks of this many elements, and their lengths are multiples of it.
pub(crate) const CHUNK: usize = 32;

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
        Log => math::log::<V>(x),
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

type Chunk = [f32; CHUNK];

#[inline(always)]
unsafe fn load(p: *const f32, i: usize) -> Chunk {
    // SAFETY: the contract of the kernels.
    unsafe { p.add(i).cast::<Chunk>().read_unaligned() }
}

#[inline(always)]
unsafe fn store(p: *mut f32, i: usize, v: Chunk) {
    // SAFETY: the contract of the kernels.
    unsafe { p.add(i).cast::<Chunk>().write_unaligned(v) }
}

// The contract of all kernels: `n` is a multiple of `CHUNK`, and the pointers are valid for `n` elements. A result may stand where an
// operand stands (each chunk is loaded before it is stored), but may not overlap one otherwise.
crate::multiversion! {
    unsafe fn unary_block<V, const OP: u8>(n: usize, a: *const f32, y: *mut f32) {
        for i in (0..n).step_by(CHUNK) {
            // SAFETY: the contract above.
            let x = unsafe { load(a, i) };
            let mut v = [0.0; CHUNK];
            for l in 0..CHUNK {
                v[l] = unary::<V, OP>(x[l]);
            }
            if OP == Unary::Sin as u8 || OP == Unary::Cos as u8 {
                // arguments beyond the range of the fast reduction are rare
                let mut beyond = false;
                for x in x {
                    beyond |= x.abs() > math::SIN_COS_RANGE;
                }
                if beyond {
                    for (v, x) in v.iter_mut().zip(x).filter(|(_, x)| x.abs() > math::SIN_COS_RANGE) {
                        let (sin, cos) = math::sin_cos_f64(x);
                        *v = if OP == Unary::Sin as u8 { sin } else { cos };
                    }
                }
            }
            // SAFETY: the contract above.
            unsafe { store(y, i, v) };
        }
    }

    unsafe fn binary_block<V, const OP: u8>(n: usize, a: *const f32, b: *const f32, y: *mut f32) {
        for i in (0..n).step_by(CHUNK) {
            // SAFETY: the contract above.
            let (a, b) = unsafe { (load(a, i), load(b, i)) };
            let mut v = [0.0; CHUNK];
            for l in 0..CHUNK {
                v[l] = binary::<OP>(a[l], b[l]);
            }
            // SAFETY: the contract above.
            unsafe { store(y, i, v) };
        }
    }

    /// `y = c != 0 ? a : b`
    pub(crate) unsafe fn select_block<V>(n: usize, c: *const f32, a: *const f32, b: *const f32, y: *mut f32) {
        for i in (0..n).step_by(CHUNK) {
            // SAFETY: the contract above.
            let (c, a, b) = unsafe { (load(c, i), load(a, i), load(b, i)) };
            let mut v = [0.0; CHUNK];
            for l in 0..CHUNK {
                v[l] = if c[l] != 0.0 { a[l] } else { b[l] };
            }
            // SAFETY: the contract above.
            unsafe { store(y, i, v) };
        }
    }

    /// `n` integers as floats; the two do not overlap, and `n` need not be a multiple of `CHUNK`.
    pub(crate) unsafe fn int_to_float<V>(n: usize, x: *const i32, y: *mut f32) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = *x.add(i) as f32 };
        }
    }

    /// `n` floats as integers, toward zero, saturating, NaN as 0; the two do not overlap, and `n` need not be a multiple of `CHUNK`.
    pub(crate) unsafe fn float_to_int<V>(n: usize, x: *const f32, y: *mut i32) {
        for i in 0..n {
            // SAFETY: the contract above.
            unsafe { *y.add(i) = *x.add(i) as i32 };
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
            match op { $(Unary::$name => unsafe { unary_block::<{ Unary::$name as u8 }>(n, a, y) },)* }
        };
    }
    dispatch!(Neg Abs Sign Exp Log Sqrt Rsqrt Recip Sin Cos Tanh Sigmoid Softplus Silu SiluGrad GeluTanh GeluTanhGrad GeluErf GeluErfGrad Relu Step Trunc)
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
        Exp | Log | Sin | Cos | Tanh | Sigmoid | Silu | SiluGrad | GeluTanh | GeluTanhGrad => 8,
        Softplus | GeluErf | GeluErfGrad => 14,
    }
}
