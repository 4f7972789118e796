//! Matrix multiplication.
//!
//! | file | what it does |
//! |---|---|
//! | `kernel`, `x86`, `portable` | the micro-kernel: one tile of the result in registers |
//! | `pack`, `pack_x86` | copies blocks of the operands into the micro-kernel's order, transposing and widening |
//! | `blocked` | blocks for the caches, tasks for the threads |
//! | `epilogue` | bias, activation, residual and rounding to 16 bits, on each tile while it is in L1 |
//! | [`crate::gemv`] | products of a few rows, bound by reading the other operand once |
//!
//! A result is the same bits for any number of threads. Sums are `f32`. Where both operands are bfloat16 and the processor has
//! AVX512-BF16, products of pairs are added by `vdpbf16ps`: the products are exact, every addition is rounded to nearest, and subnormal
//! numbers count as zero. So the error is that of any order of summation, `k u sum |a b|` with u = 2^-24, plus 2^-126 for each term that
//! was flushed.

mod blocked;
mod buffer;
mod epilogue;
mod kernel;
pub(crate) mod matrix;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_x86;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::gemv::{GEMV_MAX_ROWS, Strided, gemv};
use crate::simd::{self, Level};
use crate::threads::{self, SharedMut, par_rows};
use blocked::{Output, Product};
pub use epilogue::{Activation, Epilogue};
use kernel::Kernel;
pub use matrix::{Matrix, MatrixMut};
use pack::Lanes;

/// The micro-kernel for operands of these formats at a SIMD level.
fn kernel_at(level: Level, a: Matrix, b: Matrix) -> &'static Kernel {
    match (level, a, b) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Matrix::Bf16(_), Matrix::Bf16(_)) if is_x86_feature_detected!("avx512bf16") => {
            &x86::AVX512_BF16
        }
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, ..) => &x86::AVX512,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, ..) => &x86::AVX2,
        _ => &portable::PORTABLE,
    }
}

/// The name of the micro-kernel that a product of these operands runs on: for reports and tests.
pub fn kernel_name(a: Matrix, b: Matrix) -> &'static str {
    kernel_at(simd::level(), a, b).name
}

fn check_matrix(name: &str, len: usize, rows: usize, columns: usize, ld: usize) {
    assert!(columns <= ld, "{name} has {columns} columns but a row stride of {ld}");
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * ld + columns };
    assert!(len >= needed, "{name} is [{rows}, {columns}] with row stride {ld}: {needed} elements, given {len}");
}

/// `c = op(a) op(b)`, or `c += ..` with `accumulate`: `c` is [m, n] with row stride `ldc`, `op(a)` is [m, k] and `op(b)` is [k, n]. With
/// `trans_a`, `a` is stored as [k, m] (row stride `lda`), else as [m, k]; with `trans_b`, `b` is stored as [n, k], else as [k, n]. With
/// k = 0 the product is 0.
///
/// # Panics
/// If a slice is too short for its shape and stride.
pub fn gemm(
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
) {
    gemm_epilogue(trans_a, trans_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, Epilogue::default());
}

/// [`gemm`], followed by `c = activation(c + bias) + residual` on each tile while it is in cache.
///
/// # Panics
/// If a slice is too short for its shape and stride.
pub fn gemm_epilogue(
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
    epilogue: Epilogue,
) {
    gemm_mixed(trans_a, trans_b, m, n, k, a.into(), lda, b.into(), ldb, accumulate, c.into(), ldc, epilogue);
}

/// [`gemm_epilogue`] with operands and result stored in any format. Products are accumulated in `f32` and the final number is rounded
/// once to the format of `c`.
///
/// # Panics
/// If a slice is too short for its shape and stride.
pub fn gemm_mixed(
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix,
    lda: usize,
    b: Matrix,
    ldb: usize,
    accumulate: bool,
    c: MatrixMut,
    ldc: usize,
    epilogue: Epilogue,
) {
    gemm_mixed_batched(trans_a, trans_b, m, n, k, a, lda, 0, b, ldb, 0, accumulate, c, ldc, 0, 1, epilogue);
}

/// [`gemm`] for `batch` products whose operands are `stride_a`, `stride_b` and `stride_c` elements apart (0: the same operand for all; `stride_c` must be at least
/// the extent of one result). Threads divide the batch when it is large enough, else each product.
///
/// # Panics
/// If a slice is too short, or results overlap.
pub fn gemm_batched(
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    stride_a: usize,
    b: &[f32],
    ldb: usize,
    stride_b: usize,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
    stride_c: usize,
    batch: usize,
) {
    let (a, b, c) = (a.into(), b.into(), c.into());
    let epilogue = Epilogue::default();
    gemm_mixed_batched(
        trans_a, trans_b, m, n, k, a, lda, stride_a, b, ldb, stride_b, accumulate, c, ldc, stride_c, batch, epilogue,
    );
}

/// [`gemm_mixed`] for `batch` products as in [`gemm_batched`]; the matrices of a residual are `stride_c` apart, and the bias serves all.
///
/// # Panics
/// If a slice is too short, or results overlap.
pub fn gemm_mixed_batched(
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix,
    lda: usize,
    stride_a: usize,
    b: Matrix,
    ldb: usize,
    stride_b: usize,
    accumulate: bool,
    c: MatrixMut,
    ldc: usize,
    stride_c: usize,
    batch: usize,
    epilogue: Epilogue,
) {
    if batch == 0 {
        return;
    }
    let last = batch - 1;
    let (rows, columns) = if trans_a { (k, m) } else { (m, k) };
    check_matrix("a", a.tail(last * stride_a).len(), rows, columns, lda);
    let (rows, columns) = if trans_b { (n, k) } else { (k, n) };
    check_matrix("b", b.tail(last * stride_b).len(), rows, columns, ldb);
    check_matrix("c", c.len().saturating_sub(last * stride_c), m, n, ldc);
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), n, "bias is [{n}]");
    }
    if let Some(residual) = epilogue.residual {
        check_matrix("residual", residual.tail(last * stride_c).len(), m, n, ldc);
    }
    if m == 0 || n == 0 {
        return;
    }
    let extent = (m - 1) * ldc + n;
    assert!(batch == 1 || stride_c >= extent, "results {stride_c} apart, each of {extent} elements, overlap");
    let kernel = kernel_at(simd::level(), a, b);
    let c = Output::from(c);
    let one = |i: usize, parallel: bool| {
        let (a, b) = (a.tail(i * stride_a), b.tail(i * stride_b));
        let (a, b) = (Strided::new(a, lda, trans_a), Strided::new(b, ldb, trans_b));
        let c = c.at(i * stride_c);
        // SAFETY: operands and results cover their shapes and results do not overlap (checked above); each index is visited once.
        unsafe { product(kernel, m, n, k, a, b, accumulate, c, ldc, epilogue.at(i * stride_c), parallel) };
    };
    if batch == 1 {
        one(0, true);
    } else if batch >= threads::threads() || m * n * k < 1 << 18 {
        par_rows(batch, m * n * k / 4 + m * n, |r| r.for_each(|i| one(i, false)));
    } else {
        (0..batch).for_each(|i| one(i, true));
    }
}

/// Up to this many rows of a, transposing b for the micro-kernel takes a noticeable share of the time.
const TURNED_ROWS: usize = 256;
/// Rows and columns of a square that is transposed at a time.
const SQUARE: usize = 16;

thread_local! {
    static TURNED: std::cell::Cell<Vec<f32>> = const { std::cell::Cell::new(Vec::new()) };
}

/// [`product`] of a few rows with a large `b` whose columns are contiguous: `c^T = b^T a^T`, so that b is read where it is, and then c. Every
/// element is the same chain of multiply-adds, and so the same bits.
///
/// # Safety
/// As [`product`].
#[allow(clippy::too_many_arguments)]
unsafe fn turned(
    kernel: &'static Kernel,
    m: usize,
    n: usize,
    k: usize,
    a: Lanes,
    b: Lanes,
    c: *mut f32,
    ldc: usize,
    epilogue: Epilogue,
    parallel: bool,
) {
    let mut memory = TURNED.take();
    memory.resize(m * n, 0.0);
    let to = Output::F32(memory.as_mut_ptr());
    let none = Epilogue::default();
    let product = Product { m: n, n: m, k, a: b, b: a, accumulate: false, c: to, ldc: m, epilogue: none, tall: true };
    blocked::run(&product, kernel, parallel);
    let (from, out) = (&memory[..], Output::F32(c));
    // SAFETY: the contract of this function.
    let sums = SharedMut::new(unsafe { std::slice::from_raw_parts_mut(c, (m - 1) * ldc + n) });
    let finish = |rows: std::ops::Range<usize>| {
        for i in rows.clone().step_by(SQUARE) {
            let count = SQUARE.min(rows.end - i);
            for j in (0..n).step_by(SQUARE) {
                for r in i..i + count {
                    let end = n.min(j + SQUARE);
                    // SAFETY: ranges of rows are disjoint.
                    let c = unsafe { sums.slice(r * ldc + j..r * ldc + end) };
                    c.iter_mut().zip(j..).for_each(|(c, j)| *c = from[j * m + r]);
                }
            }
        }
        if !epilogue.is_none() {
            let part = sums.as_ptr().wrapping_add(rows.start * ldc);
            // SAFETY: as above.
            unsafe { epilogue::finish_tile(rows.len(), n, part, ldc, out, rows.start * ldc, 0, ldc, false, &epilogue) };
        }
    };
    let cost = n * if matches!(epilogue.activation, Activation::None | Activation::Relu) { 4 } else { 14 };
    if parallel {
        par_rows(m, cost, finish)
    } else {
        finish(0..m)
    }
    TURNED.set(memory);
}

/// A product with at least one element.
///
/// # Safety
/// Operands and result cover their shapes, and nobody else uses the result.
unsafe fn product(
    kernel: &'static Kernel,
    m: usize,
    n: usize,
    k: usize,
    a: Strided,
    b: Strided,
    accumulate: bool,
    c: Output,
    ldc: usize,
    epilogue: Epilogue,
    parallel: bool,
) {
    if k > 0 && m > GEMV_MAX_ROWS && n > GEMV_MAX_ROWS {
        let (a, b) =
            (Lanes { data: a.data, lane: a.row, k: a.column }, Lanes { data: b.data, lane: b.column, k: b.row });
        if let Output::F32(to) = c
            && !accumulate
            && b.k == 1
            && kernel.depth == 1
            && m <= TURNED_ROWS
            && n >= 2 * m
        {
            // SAFETY: the contract of this function.
            return unsafe { turned(kernel, m, n, k, a, b, to, ldc, epilogue, parallel) };
        }
        let product = Product { m, n, k, a, b, accumulate, c, ldc, epilogue, tall: false };
        return blocked::run(&product, kernel, parallel);
    }
    // The sums of a result in 16 bits have their own place.
    let mut wide = Vec::new();
    let (sums, ld, add) = match c {
        // SAFETY: the contract of this function.
        Output::F32(c) => (unsafe { std::slice::from_raw_parts_mut(c, (m - 1) * ldc + n) }, ldc, accumulate),
        _ => {
            wide.resize(m * n, 0.0);
            (&mut wide[..], n, false)
        }
    };
    if k == 0 {
        if !add {
            sums.chunks_mut(ld).for_each(|row| row[..n].fill(0.0));
        }
    } else if m <= GEMV_MAX_ROWS {
        gemv(m, n, k, a, b, add, sums, ld, parallel);
    } else {
        // c^T = op(b)^T op(a)^T
        let mut t = vec![0.0; n * m];
        gemv(n, m, k, b.t(), a.t(), false, &mut t, m, parallel);
        for (i, row) in sums.chunks_mut(ld).enumerate() {
            for (j, c) in row[..n].iter_mut().enumerate() {
                *c = if add { *c + t[j * m + i] } else { t[j * m + i] };
            }
        }
    }
    let cost = n * if matches!(epilogue.activation, Activation::None | Activation::Relu) { 2 } else { 12 };
    let sums = SharedMut::new(sums);
    let finish = |r: std::ops::Range<usize>| {
        let part = sums.as_ptr().wrapping_add(r.start * ld);
        // SAFETY: ranges of rows are disjoint.
        unsafe { epilogue::finish_tile(r.len(), n, part, ld, c, r.start * ldc, 0, ldc, accumulate, &epilogue) };
    };
    if parallel { par_rows(m, cost, finish) } else { finish(0..m) }
}
