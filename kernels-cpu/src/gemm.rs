//! Matrix multiplication: the `gemm` crate for large products, own kernels for a few rows (GEMV), batches over threads, and an
//! epilogue applied while the result is in cache. Runs repeat bit for bit with the same number of threads.

mod epilogue;
mod matrix;
#[cfg(test)]
mod tests;

use crate::gemv::{GEMV_MAX_ROWS, Strided, gemv};
use crate::threads::{self, SharedMut, par_rows};
use crate::{half, math};
use ::gemm::Parallelism;
pub use epilogue::{Activation, Epilogue};
pub use matrix::{Matrix, MatrixMut};

/// The rows of a product that are finished together: this many bytes of result stay in a shared cache.
const PANEL_BYTES: usize = 2 << 20;
/// At least this many rows to a panel, so that packing the right-hand side again is worth it.
const PANEL_MIN_ROWS: usize = 256;
fn check_matrix(name: &str, len: usize, rows: usize, columns: usize, ld: usize) {
    assert!(columns <= ld, "{name} has {columns} columns but a row stride of {ld}");
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * ld + columns };
    assert!(len >= needed, "{name} is [{rows}, {columns}] with row stride {ld}: {needed} elements, given {len}");
}

fn check_operands(ta: bool, tb: bool, m: usize, n: usize, k: usize, a: &[f32], lda: usize, b: &[f32], ldb: usize) {
    let (rows, columns) = if ta { (k, m) } else { (m, k) };
    check_matrix("a", a.len(), rows, columns, lda);
    let (rows, columns) = if tb { (n, k) } else { (k, n) };
    check_matrix("b", b.len(), rows, columns, ldb);
}

/// `c = op(a) op(b)`, or `c += ..` with `accumulate`: `c` is [m, n] with row stride `ldc`, `op(a)` is [m, k] and `op(b)` is [k, n]. With `trans_a`, `a` is stored as
/// [k, m] (row stride `lda`), else as [m, k]; with `trans_b`, `b` is stored as [n, k], else as [k, n]. With k = 0 the product is 0.
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

/// [`gemm`], followed by `c = activation(c + bias) + residual` while the rows are in cache.
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
    check_operands(trans_a, trans_b, m, n, k, a, lda, b, ldb);
    check_matrix("c", c.len(), m, n, ldc);
    if let Some(bias) = epilogue.bias {
        assert_eq!(bias.len(), n, "bias is [{n}]");
    }
    if let Some(residual) = epilogue.residual {
        check_matrix("residual", residual.len(), m, n, ldc);
    }
    if m == 0 || n == 0 {
        return;
    }
    let (a, b) = (Strided::new(a, lda, trans_a), Strided::new(b, ldb, trans_b));
    let panel = match epilogue.is_none() {
        true => m,
        false => (PANEL_BYTES / (4 * n)).max(PANEL_MIN_ROWS).next_multiple_of(16),
    };
    for first in (0..m).step_by(panel) {
        let rows = panel.min(m - first);
        let a = Strided { data: &a.data[(first * a.row).min(a.data.len())..], ..a };
        let c = &mut c[first * ldc..];
        product(rows, n, k, a, b, accumulate, c, ldc, true);
        if !epilogue.is_none() {
            finish(rows, n, c, ldc, epilogue.at(first * ldc));
        }
    }
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
    let (mut a_copy, mut b_copy) = (Vec::new(), Vec::new());
    let (a, b) = (widened(a, &mut a_copy), widened(b, &mut b_copy));
    let mut c = match c {
        MatrixMut::F32(c) => {
            return gemm_epilogue(trans_a, trans_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, epilogue);
        }
        narrow => narrow,
    };
    let mut wide = Vec::new();
    widened(c.as_ref(), &mut wide);
    gemm_epilogue(trans_a, trans_b, m, n, k, a, lda, b, ldb, accumulate, &mut wide, ldc, epilogue);
    c.narrow(0, &wide);
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
    mut c: MatrixMut,
    ldc: usize,
    stride_c: usize,
    batch: usize,
    epilogue: Epilogue,
) {
    for i in 0..batch {
        let c = c.tail(i * stride_c);
        let (a, b) = (a.tail(i * stride_a), b.tail(i * stride_b));
        gemm_mixed(trans_a, trans_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, epilogue.at(i * stride_c));
    }
}

fn widened<'a>(x: Matrix<'a>, copy: &'a mut Vec<f32>) -> &'a [f32] {
    if let Matrix::F32(x) = x {
        return x;
    }
    copy.resize(x.len(), 0.0);
    x.widen(0..x.len(), copy);
    copy
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
    if batch == 0 || m == 0 || n == 0 {
        return;
    }
    let last = batch - 1;
    check_operands(trans_a, trans_b, m, n, k, tail(a, last * stride_a), lda, tail(b, last * stride_b), ldb);
    let extent = (m - 1) * ldc + n;
    assert!(batch == 1 || stride_c >= extent, "results {stride_c} apart, each of {extent} elements, overlap");
    check_matrix("c", c.len().saturating_sub(last * stride_c), m, n, ldc);
    let parallel_batch = batch >= threads::threads() || m * n * k < 1 << 18;
    let c = SharedMut::new(c);
    let one = |i: usize, parallel: bool| {
        let (a, b) =
            (Strided::new(tail(a, i * stride_a), lda, trans_a), Strided::new(tail(b, i * stride_b), ldb, trans_b));
        // SAFETY: results do not overlap (checked above), and each index is visited once.
        let c = unsafe { c.slice(i * stride_c..i * stride_c + extent) };
        product(m, n, k, a, b, accumulate, c, ldc, parallel);
    };
    if parallel_batch {
        par_rows(batch, m * n * k / 4 + m * n, |r| r.for_each(|i| one(i, false)));
    } else {
        (0..batch).for_each(|i| one(i, true));
    }
}

/// `x[start..]`, empty where that is beyond the end (an operand without elements).
fn tail(x: &[f32], start: usize) -> &[f32] {
    &x[start.min(x.len())..]
}

fn product(
    m: usize,
    n: usize,
    k: usize,
    a: Strided,
    b: Strided,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
    parallel: bool,
) {
    if k == 0 {
        if !accumulate {
            c.chunks_mut(ldc).take(m).for_each(|row| row[..n].fill(0.0));
        }
    } else if m <= GEMV_MAX_ROWS {
        gemv(m, n, k, a, b, accumulate, c, ldc, parallel);
    } else if n <= GEMV_MAX_ROWS {
        // c^T = op(b)^T op(a)^T
        let mut t = vec![0.0; n * m];
        gemv(n, m, k, b.t(), a.t(), false, &mut t, m, parallel);
        for (i, row) in c.chunks_mut(ldc).take(m).enumerate() {
            for (j, c) in row[..n].iter_mut().enumerate() {
                *c = if accumulate { *c + t[j * m + i] } else { t[j * m + i] };
            }
        }
    } else {
        let threads = if parallel && m * n * k >= 1 << 17 { threads::threads() } else { 1 };
        let c = SharedMut::new(c);
        let run = |parallelism| {
            // SAFETY: the callers checked that every operand covers its shape and strides, and `c` is borrowed mutably.
            unsafe {
                ::gemm::gemm(
                    m,
                    n,
                    k,
                    c.as_ptr(),
                    1,
                    ldc as isize,
                    accumulate,
                    a.data.as_ptr(),
                    a.column as isize,
                    a.row as isize,
                    b.data.as_ptr(),
                    b.column as isize,
                    b.row as isize,
                    1.0f32,
                    1.0f32,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        };
        match threads {
            1 => run(Parallelism::None),
            n => threads::install(|| run(Parallelism::Rayon(n))),
        }
    }
}

crate::multiversion! {
    fn finish_rows<V>(n: usize, c: &mut [f32], ldc: usize, bias: Option<Matrix>, act: Activation, residual: Option<Matrix>) {
        for (i, row) in c.chunks_mut(ldc).enumerate() {
            let row = &mut row[..n];
            if let Some(bias) = bias {
                add(row, bias);
            }
            match act {
                Activation::None => {}
                Activation::Relu => row.iter_mut().for_each(|c| *c = c.max(0.0)),
                Activation::Silu => row.iter_mut().for_each(|c| *c = math::silu::<V>(*c)),
                Activation::GeluTanh => row.iter_mut().for_each(|c| *c = math::gelu_tanh::<V>(*c)),
                Activation::GeluErf => row.iter_mut().for_each(|c| *c = math::gelu_erf::<V>(*c)),
            }
            if let Some(residual) = residual {
                add(row, residual.tail(i * ldc));
            }
        }
    }
}

#[inline(always)]
fn add(row: &mut [f32], x: Matrix) {
    match x {
        Matrix::F32(x) => row.iter_mut().zip(x).for_each(|(c, &x)| *c += x),
        Matrix::Bf16(x) => row.iter_mut().zip(x).for_each(|(c, &x)| *c += half::bf16_to_f32(x)),
        Matrix::F16(x) => row.iter_mut().zip(x).for_each(|(c, &x)| *c += half::f16_to_f32(x)),
    }
}

fn finish(m: usize, n: usize, c: &mut [f32], ldc: usize, epilogue: Epilogue) {
    let cost = n * if matches!(epilogue.activation, Activation::None | Activation::Relu) { 2 } else { 12 };
    let shared = SharedMut::new(c);
    par_rows(m, cost, |r| {
        // SAFETY: the ranges of rows are disjoint; the last row of each ends with its last column.
        let c = unsafe { shared.slice(r.start * ldc..(r.end - 1) * ldc + n) };
        finish_rows(n, c, ldc, epilogue.bias, epilogue.activation, epilogue.residual.map(|x| x.tail(r.start * ldc)));
    });
}
