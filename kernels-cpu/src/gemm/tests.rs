//! What every product promises, for all entry points.

use super::*;
use crate::half;
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
            let epilogue =
                Epilogue { bias: Some(Matrix::F32(&bias)), activation, residual: Some(Matrix::F32(&residual)) };
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

/// `x` in each format, as stored and as the numbers that this stands for.
fn stored(x: &[f32], format: usize) -> (Vec<u16>, Vec<f32>) {
    let (mut bits, mut wide) = (vec![0; x.len()], x.to_vec());
    match format {
        1 => {
            half::narrow_bf16(x, &mut bits);
            half::widen_bf16(&bits, &mut wide);
        }
        2 => {
            half::narrow_f16(x, &mut bits);
            half::widen_f16(&bits, &mut wide);
        }
        _ => {}
    }
    (bits, wide)
}

fn matrix<'a>(wide: &'a [f32], bits: &'a [u16], format: usize) -> Matrix<'a> {
    match format {
        1 => Matrix::Bf16(bits),
        2 => Matrix::F16(bits),
        _ => Matrix::F32(wide),
    }
}

/// The greatest error of rounding `x` to the format.
fn roundoff(format: usize, x: f64) -> f64 {
    match format {
        1 => half::BF16_ROUNDOFF as f64 * x.abs(),
        2 => half::F16_ROUNDOFF as f64 * x.abs() + 2f64.powi(-25),
        _ => 0.0,
    }
}

#[test]
fn every_combination_of_storage_formats_agrees_with_f64() {
    let formats = || (0..27).map(|f| (f % 3, f / 3 % 3, f / 9));
    for (case, (m, n, k)) in SHAPES.into_iter().enumerate() {
        for (fa, fb, fc) in formats() {
            let (ta, tb) = (case % 2 == 0, fa == fb);
            let (accumulate, pad) = (fc == 1, case % 3);
            let (ra, ca) = if ta { (k, m) } else { (m, k) };
            let (rb, cb) = if tb { (n, k) } else { (k, n) };
            let (lda, ldb, ldc) = (ca + pad, cb + 2 * pad, n + pad);
            let (a_bits, a) = stored(&data(ra * lda, 1), fa);
            let (b_bits, b) = stored(&data(rb * ldb, 2), fb);
            let (mut c_bits, mut c) = stored(&data(m * ldc, 3), fc);
            let (r_bits, r) = stored(&data(m * ldc, 4), fc);
            let (v_bits, v) = stored(&data(n, 5), fb);
            let before = c.clone();
            let target = match fc {
                1 => MatrixMut::Bf16(&mut c_bits),
                2 => MatrixMut::F16(&mut c_bits),
                _ => MatrixMut::F32(&mut c),
            };
            let epilogue = Epilogue {
                bias: Some(matrix(&v, &v_bits, fb)),
                activation: Activation::Relu,
                residual: Some(matrix(&r, &r_bits, fc)),
            };
            let (am, bm) = (matrix(&a, &a_bits, fa), matrix(&b, &b_bits, fb));
            gemm_mixed(ta, tb, m, n, k, am, lda, bm, ldb, accumulate, target, ldc, epilogue);
            let c = matrix(&c, &c_bits, fc);
            for (i, j) in (0..m).flat_map(|i| (0..ldc).map(move |j| (i, j))) {
                let at = i * ldc + j;
                let got = c.get(at) as f64;
                if j >= n {
                    assert_eq!(got, before[at] as f64, "padding is left alone");
                    continue;
                }
                let (mut z, mut size) = element(ta, tb, k, &a, lda, &b, ldb, i, j);
                if accumulate {
                    z += before[at] as f64;
                    size += before[at].abs() as f64;
                }
                z += v[j] as f64;
                size += v[j].abs() as f64;
                let want = z.max(0.0) + r[at] as f64;
                size += r[at].abs() as f64;
                // k + 3 additions in any order, then one rounding to the format of the result
                let sum = U * (k as f64 + 4.0) * size;
                let bound = sum + roundoff(fc, want.abs() + sum);
                assert!((got - want).abs() <= bound, "{m} {n} {k} formats {fa} {fb} {fc}: {got} {want} {bound:e}");
            }
        }
    }
}

#[test]
fn mixed_batches_agree_with_single_products() {
    let (batch, m, n, k) = (3, 17, 33, 29);
    for format in 0..3 {
        let (a_bits, a) = stored(&data(batch * m * k, 1), format);
        let (b_bits, b) = stored(&data(batch * k * n, 2), format);
        let residual = data(batch * m * n, 3);
        let epilogue = Epilogue { residual: Some(Matrix::F32(&residual)), ..Epilogue::default() };
        let (a, b) = (matrix(&a, &a_bits, format), matrix(&b, &b_bits, format));
        let (mut all, mut each) = (vec![0u16; batch * m * n], vec![0u16; batch * m * n]);
        let c = MatrixMut::Bf16(&mut all);
        gemm_mixed_batched(false, false, m, n, k, a, k, m * k, b, n, k * n, false, c, n, m * n, batch, epilogue);
        for i in 0..batch {
            let (a, b, at) = (a.tail(i * m * k), b.tail(i * k * n), i * m * n);
            let c = MatrixMut::Bf16(&mut each[at..]);
            gemm_mixed(false, false, m, n, k, a, k, b, n, false, c, n, epilogue.at(at));
        }
        assert_eq!(all, each);
    }
}

/// The micro-kernels that this processor can run.
fn kernels() -> Vec<&'static Kernel> {
    let mut kernels = vec![&portable::PORTABLE];
    #[cfg(target_arch = "x86_64")]
    {
        let level = simd::detect();
        if level >= Level::Avx2 {
            kernels.push(&x86::AVX2);
        }
        if level >= Level::Avx512 {
            kernels.push(&x86::AVX512);
        }
        if level >= Level::Avx512 && is_x86_feature_detected!("avx512bf16") {
            kernels.push(&x86::AVX512_BF16);
        }
    }
    kernels
}

#[test]
fn every_micro_kernel_is_right_at_every_edge_of_its_tile() {
    for kernel in kernels() {
        // bfloat16 numbers suit every kernel
        let format = usize::from(kernel.depth == 2);
        let (rows, columns) = (kernel.rows, kernel.columns());
        let ms = (GEMV_MAX_ROWS + 1..=2 * rows + 1).chain([5 * rows + 3]);
        for m in ms {
            for n in
                [5, kernel.lanes, kernel.lanes + 1, columns - 1, columns, columns + 1, 2 * columns + kernel.lanes + 3]
            {
                for (k, ta, tb) in [
                    (1, false, false),
                    (7, true, false),
                    (18, false, true),
                    (33, true, true),
                    (1031, n % 2 == 0, m % 2 == 0),
                ] {
                    let (a_bits, a) = stored(&data(m * k, 1), 1);
                    let (b_bits, b) = stored(&data(k * n, 2), 1);
                    let (lda, ldb, ldc) = (if ta { m } else { k }, if tb { k } else { n }, n + 1);
                    let before = data(m * ldc, 3);
                    let mut c = before.clone();
                    let a_lanes = Strided::new(matrix(&a, &a_bits, format), lda, ta);
                    let b_lanes = Strided::new(matrix(&b, &b_bits, format), ldb, tb);
                    let out = Output::F32(c.as_mut_ptr());
                    // SAFETY: operands and result have these shapes.
                    unsafe { product(kernel, m, n, k, a_lanes, b_lanes, true, out, ldc, Epilogue::default(), true) };
                    // a few elements of each row; all of them where rows or columns end
                    for (i, j) in (0..m).flat_map(|i| (0..ldc).map(move |j| (i, j))) {
                        if k > 100 && (i + j) % 17 != 0 && i + 1 != m && j + 1 < n {
                            continue;
                        }
                        let at = i * ldc + j;
                        if j == n {
                            assert_eq!(c[at], before[at], "padding is left alone");
                            continue;
                        }
                        let (product, size) = element(ta, tb, k, &a, lda, &b, ldb, i, j);
                        let want = product + before[at] as f64;
                        let bound = U * (k as f64 + 2.0) * (size + before[at].abs() as f64);
                        let name = kernel.name;
                        assert!((c[at] as f64 - want).abs() <= bound, "{name} {m} {n} {k} {ta} {tb}: {} {want}", c[at]);
                    }
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads_nor_on_the_other_rows() {
    let (m, n, k) = (517, 391, 1300);
    for format in [0, 1] {
        let (a_bits, a) = stored(&data(m * k, 1), format);
        let (b_bits, b) = stored(&data(k * n, 2), format);
        let run = |m: usize, threads: usize| {
            let mut c = vec![0.0; m * n];
            let (a, b) = (matrix(&a, &a_bits, format), matrix(&b, &b_bits, format));
            threads::with_threads(threads, || {
                gemm_mixed(false, true, m, n, k, a, k, b, k, false, (&mut c[..]).into(), n, Epilogue::default());
            });
            c
        };
        let one = run(m, 1);
        for threads in [2, 3, 7] {
            assert!(run(m, threads) == one, "{threads} threads");
        }
        assert!(run(100, 2) == one[..100 * n], "fewer rows");
    }
}

#[test]
fn few_rows_by_many_contiguous_columns_give_the_bits_of_the_other_way() {
    for (m, n, k) in [(5, 64, 40), (33, 100, 513), (128, 300, 1024), (48, 96, 7), (256, 512, 64)] {
        let (a, b, bias, residual) = (data(m * k, 1), data(n * k, 2), data(n, 3), data(m * n, 4));
        for format in 0..3 {
            let (bits, wide) = stored(&b, format);
            let epilogue = Epilogue {
                bias: Some((&bias[..]).into()),
                activation: Activation::GeluTanh,
                residual: Some((&residual[..]).into()),
            };
            for epilogue in [Epilogue::default(), epilogue] {
                let mut c = vec![f32::NAN; m * n];
                let b = matrix(&wide, &bits, format);
                gemm_mixed(false, true, m, n, k, (&a[..]).into(), k, b, k, false, (&mut c[..]).into(), n, epilogue);
                // The same by transposing b first, which takes the other way.
                let turned: Vec<f32> = (0..k * n).map(|i| wide[i % n * k + i / n]).collect();
                let mut want = vec![f32::NAN; m * n];
                gemm_epilogue(false, false, m, n, k, &a, k, &turned, n, false, &mut want, n, epilogue);
                assert!(c == want, "[{m}, {k}] by [{n}, {k}], format {format}");
            }
        }
    }
}

#[test]
fn two_bfloat16_operands_take_dot_products_where_the_processor_has_them() {
    let (f32s, bits) = ([0.0f32; 1], [0u16; 1]);
    let name = kernel_name(Matrix::Bf16(&bits), Matrix::Bf16(&bits));
    #[cfg(target_arch = "x86_64")]
    if simd::level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16") {
        assert_eq!(name, "avx512-bf16");
        assert_eq!(kernel_name(Matrix::Bf16(&bits), Matrix::F32(&f32s)), "avx512");
        return;
    }
    assert_eq!(name, kernel_name(Matrix::F32(&f32s), Matrix::F32(&f32s)));
}
