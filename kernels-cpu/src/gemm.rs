//! Matrix multiplication: the `gemm` crate for large products, own kernels for a few rows (GEMV), batches over threads, and an
//! epilogue applied while the result is in cache. Runs repeat bit for bit with the same number of threads.

use crate::gemv::{GEMV_MAX_ROWS, Strided, gemv};
use crate::math;
use crate::threads::{self, SharedMut, par_rows};
use gemm::Parallelism;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    #[default]
    None,
    Relu,
    Silu,
    GeluTanh,
    GeluErf,
}

/// What happens to the product before it is final: `activation(c + bias) + residual`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One number per column, [n].
    pub bias: Option<&'a [f32]>,
    pub activation: Activation,
    /// Like the product, with the same row stride (`ldc`).
    pub residual: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    pub fn is_none(&self) -> bool {
        self.bias.is_none() && self.activation == Activation::None && self.residual.is_none()
    }
}

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
            let residual = epilogue.residual.map(|r| &r[first * ldc..]);
            finish(rows, n, c, ldc, Epilogue { residual, ..epilogue });
        }
    }
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
                gemm::gemm(
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
    fn finish_rows<V>(n: usize, c: &mut [f32], ldc: usize, bias: Option<&[f32]>, act: Activation, residual: Option<&[f32]>) {
        for (i, row) in c.chunks_mut(ldc).enumerate() {
            let row = &mut row[..n];
            if let Some(bias) = bias {
                for (c, &b) in row.iter_mut().zip(bias) {
                    *c += b;
                }
            }
            match act {
                Activation::None => {}
                Activation::Relu => row.iter_mut().for_each(|c| *c = c.max(0.0)),
                Activation::Silu => row.iter_mut().for_each(|c| *c = math::silu::<V>(*c)),
                Activation::GeluTanh => row.iter_mut().for_each(|c| *c = math::gelu_tanh::<V>(*c)),
                Activation::GeluErf => row.iter_mut().for_each(|c| *c = math::gelu_erf::<V>(*c)),
            }
            if let Some(residual) = residual {
                for (c, &r) in row.iter_mut().zip(&residual[i * ldc..]) {
                    *c += r;
                }
            }
        }
    }
}

fn finish(m: usize, n: usize, c: &mut [f32], ldc: usize, epilogue: Epilogue) {
    let cost = n * if matches!(epilogue.activation, Activation::None | Activation::Relu) { 2 } else { 12 };
    let shared = SharedMut::new(c);
    par_rows(m, cost, |r| {
        // SAFETY: the ranges of rows are disjoint; the last row of each ends with its last column.
        let c = unsafe { shared.slice(r.start * ldc..(r.end - 1) * ldc + n) };
        finish_rows(n, c, ldc, epilogue.bias, epilogue.activation, epilogue.residual.map(|x| &x[r.start * ldc..]));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Unary;

    const U: f64 = 1.0 / (1 << 24) as f64;

    fn data(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 1013.0 - 0.45).collect()
    }

    /// (value, sum of magnitudes) of element (i, j) of op(a) op(b).
    fn element(
        ta: bool,
        tb: bool,
        k: usize,
        a: &[f32],
        lda: usize,
        b: &[f32],
        ldb: usize,
        i: usize,
        j: usize,
    ) -> (f64, f64) {
        let terms = (0..k).map(|l| {
            let x = if ta { a[l * lda + i] } else { a[i * lda + l] };
            let y = if tb { b[j * ldb + l] } else { b[l * ldb + j] };
            x as f64 * y as f64
        });
        (terms.clone().sum(), terms.map(f64::abs).sum())
    }

    const SHAPES: [(usize, usize, usize); 18] = [
        (1, 1, 1),
        (1, 257, 65),
        (2, 129, 64),
        (3, 5, 1000),
        (4, 128, 127),
        (5, 3, 7),
        (67, 1, 33),
        (129, 4, 17),
        (7, 11, 13),
        (64, 64, 64),
        (65, 33, 129),
        (130, 257, 67),
        (1, 1, 0),
        (5, 6, 0),
        (0, 3, 4),
        (3, 0, 4),
        (1, 1, 4099),
        (300, 129, 31),
    ];

    #[test]
    fn all_transposes_strides_and_accumulation_agree_with_f64() {
        for (m, n, k) in SHAPES {
            for (ta, tb, pad, accumulate) in [
                (false, false, 0, false),
                (true, false, 0, true),
                (false, true, 0, false),
                (true, true, 0, true),
                (false, false, 3, true),
                (true, true, 5, false),
            ] {
                let (ra, ca) = if ta { (k, m) } else { (m, k) };
                let (rb, cb) = if tb { (n, k) } else { (k, n) };
                let (lda, ldb, ldc) = (ca + pad, cb + pad, n + pad);
                let (a, b, c0) = (data(ra * lda, 1), data(rb * ldb, 2), data(m * ldc, 3));
                let mut c = c0.clone();
                gemm(ta, tb, m, n, k, &a, lda, &b, ldb, accumulate, &mut c, ldc);
                for i in 0..m {
                    for j in 0..ldc {
                        let at = i * ldc + j;
                        if j >= n {
                            assert_eq!(c[at], c0[at], "padding is left alone");
                            continue;
                        }
                        let (mut want, mut size) = element(ta, tb, k, &a, lda, &b, ldb, i, j);
                        if accumulate {
                            want += c0[at] as f64;
                            size += c0[at].abs() as f64;
                        }
                        // any order of k fused additions
                        let bound = U * (k as f64 + 2.0) * size;
                        assert!((c[at] as f64 - want).abs() <= bound, "{m} {n} {k} {ta} {tb} {pad}: {} {want}", c[at]);
                    }
                }
            }
        }
    }

    #[test]
    fn epilogues_agree_with_f64_across_panels() {
        for (m, n, k) in [(1, 5, 3), (3, 129, 65), (7, 11, 13), (700, 1031, 9), (257, 1, 5)] {
            for activation in
                [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf]
            {
                let ldc = n + 2;
                let (a, b, bias, residual) = (data(m * k, 1), data(k * n, 2), data(n, 3), data(m * ldc, 4));
                let mut c = vec![0.0; m * ldc];
                let epilogue = Epilogue { bias: Some(&bias), activation, residual: Some(&residual) };
                gemm_epilogue(false, false, m, n, k, &a, k, &b, n, false, &mut c, ldc, epilogue);
                for i in (0..m).step_by(if m > 100 { 37 } else { 1 }) {
                    for j in 0..n {
                        let (product, size) = element(false, false, k, &a, k, &b, n, i, j);
                        let z = product + bias[j] as f64;
                        let f = match activation {
                            Activation::None => z,
                            Activation::Relu => z.max(0.0),
                            Activation::Silu => Unary::Silu.eval_f64(z),
                            Activation::GeluTanh => Unary::GeluTanh.eval_f64(z),
                            Activation::GeluErf => Unary::GeluErf.eval_f64(z),
                        };
                        let want = f + residual[i * ldc + j] as f64;
                        // slopes of the activations are below 1.13; they add at most 20 ULP of their value
                        let bound = U * (1.13 * (k as f64 + 3.0) * (size + 1.0) + 40.0 * f.abs() + want.abs());
                        assert!((c[i * ldc + j] as f64 - want).abs() <= bound, "{m} {n} {k} {activation:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn batches_agree_with_single_products_and_may_share_an_operand() {
        for (batch, m, n, k) in
            [(1, 3, 4, 5), (7, 9, 8, 17), (3, 64, 65, 33), (2, 130, 70, 64), (5, 1, 33, 8), (0, 2, 2, 2), (4, 2, 3, 0)]
        {
            for shared in [false, true] {
                let stride_b = if shared { 0 } else { k * n };
                let (a, b) = (data(batch * m * k, 1), data((batch * k * n).max(k * n), 2));
                let mut c = vec![1.0; batch * m * n];
                gemm_batched(false, true, m, n, k, &a, k, m * k, &b, k, stride_b, true, &mut c, n, m * n, batch);
                for i in 0..batch {
                    for (r, j) in (0..m).flat_map(|r| (0..n).map(move |j| (r, j))) {
                        let (want, size) = element(false, true, k, &a[i * m * k..], k, &b[i * stride_b..], k, r, j);
                        let got = c[(i * m + r) * n + j] as f64;
                        assert!((got - want - 1.0).abs() <= U * (k as f64 + 2.0) * (size + 1.0));
                    }
                }
            }
        }
    }

    #[test]
    fn a_product_repeats_bit_for_bit() {
        let (m, n, k) = (193, 257, 129);
        let (a, b) = (data(m * k, 1), data(k * n, 2));
        let run = || {
            let mut c = vec![0.0; m * n];
            gemm(false, false, m, n, k, &a, k, &b, n, false, &mut c, n);
            c
        };
        let first = run();
        assert!((0..5).all(|_| run() == first));
    }
}
