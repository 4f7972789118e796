//! Row lengths that are not whole words, groups that end inside a word, all-zero groups, operands over 1 MiB.

use super::{Dequantize, MatmulQ8, MatmulQ8Q8, QuantizeRows};
use crate::ops::matmul::Epilogue;
use crate::ops::{Case, Sample, Values};
use crate::tensor::DType;
use kernels_cpu::gemm::Activation;

fn weights(rows: usize, columns: usize, group: usize) -> [Sample; 2] {
    let q = Sample::typed(DType::I8, &[rows, columns], Values::Int(-127, 128));
    let scales = Sample::new(&[rows, columns.div_ceil(group)], Values::Uniform(0.001, 0.02)).fixed();
    [q, scales]
}

const SHAPES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [1, 4, 4],
    [3, 5, 2],
    [5, 7, 3],
    [7, 33, 33],
    [4, 64, 64],
    [9, 128, 64],
    [3, 130, 64],
    [2, 257, 128],
    [1, 0, 4],
    [33, 20, 6],
    [1100, 1021, 64],
];

pub fn dequantize() -> Vec<Case> {
    let case = |[rows, columns, group]: [usize; 3]| {
        Case::new(
            format!("[{rows},{columns}] groups of {group}"),
            Dequantize { group },
            weights(rows, columns, group).to_vec(),
        )
        .forward_only()
    };
    SHAPES.into_iter().map(case).collect()
}

pub fn quantize() -> Vec<Case> {
    let case = |[rows, columns, group]: [usize; 3]| {
        let label = format!("[{rows},{columns}] groups of {group}");
        Case::new(label, QuantizeRows { group }, vec![Sample::normal(&[rows, columns]).fixed()]).forward_only()
    };
    let mut cases: Vec<Case> = SHAPES[..11].iter().map(|s| case(*s)).collect();
    cases.push(case([600, 501, 64]));
    // A group of zeros, magnitudes that differ by 1e30, and ties: 127 steps of one.
    let mut values = vec![0.0; 4];
    values.extend([1e-30, -1e-30, 5e-31, 0.0, 1e30, -1e30, 3e29, 1.0, 127.0, 0.5, 1.5, -2.5]);
    let x = Sample::new(&[2, 8], Values::Fixed(values)).fixed();
    cases.push(Case::new("zeros, extremes and ties", QuantizeRows { group: 4 }, vec![x]).forward_only());
    cases
}

/// (rows of x, weight rows, K, group)
const PRODUCTS: [[usize; 4]; 20] = [
    [1, 1, 1, 1],
    [1, 5, 3, 3],
    [2, 9, 64, 64],
    [4, 64, 128, 64],
    [3, 33, 129, 64],
    [1, 17, 30, 7],
    [5, 2, 31, 5],
    [5, 33, 64, 64],
    [7, 65, 130, 128],
    [17, 9, 12, 12],
    [33, 64, 256, 64],
    [16, 127, 67, 67],
    [65, 66, 128, 32],
    [9, 40, 20, 6],
    [6, 9, 0, 4],
    [2, 3, 0, 4],
    [1, 2100, 520, 64],
    [6, 2100, 501, 501],
    [600, 12, 500, 128],
    [9, 24, 3000, 3000],
];

pub fn matmul_q8() -> Vec<Case> {
    let case = |[m, n, k, group]: [usize; 4], epilogue: Epilogue| {
        let label = format!("m {m} n {n} k {k} groups of {group}");
        let [q, scales] = weights(n, k, group);
        let mut operands = vec![Sample::normal(&[m, k]), q, scales];
        if epilogue.bias.is_some() {
            operands.push(Sample::normal(&[n]));
        }
        if epilogue.residual.is_some() {
            operands.push(Sample::normal(&[m, n]));
        }
        Case::new(label, MatmulQ8 { group, epilogue }, operands)
    };
    let mut cases: Vec<Case> = PRODUCTS.iter().map(|s| case(*s, Epilogue::default())).collect();
    for shape in [[3, 33, 129, 64], [1, 17, 30, 7], [17, 70, 45, 9], [65, 66, 128, 32], [9, 24, 3000, 3000]] {
        cases.push(case(shape, Epilogue::default()));
    }
    cases.push(case([130, 129, 68, 64], Epilogue::default()));
    for activation in [Activation::None, Activation::GeluErf] {
        for shape in [[2, 12, 40, 40], [18, 36, 24, 8]] {
            cases.push(case(shape, Epilogue { bias: Some(3), activation, residual: Some(4) }).ulps(32.0));
        }
    }
    let [q, scales] = weights(6, 10, 10);
    let op = MatmulQ8 { group: 10, epilogue: Epilogue::default() };
    cases.push(Case::new("x [2, 3, 10]", op, vec![Sample::normal(&[2, 3, 10]), q, scales]));
    cases
}

pub fn matmul_q8q8() -> Vec<Case> {
    let case = |[m, n, k, group]: [usize; 4]| {
        let [q, scales] = weights(n, k, group);
        let operands = vec![Sample::normal(&[m, k]).fixed(), q, scales];
        Case::new(format!("m {m} n {n} k {k} groups of {group}"), MatmulQ8Q8 { group }, operands).forward_only()
    };
    PRODUCTS.into_iter().map(case).collect()
}

/// Decoding one token and a prefill, at the presets' width and a large model's: (rows of x, weight rows, K).
const TIMED: [[usize; 3]; 5] =
    [[1, 4096, 4096], [512, 1024, 1024], [1, 1536, 384], [256, 1536, 384], [2048, 2048, 2048]];
/// Values that share a scale.
const TIMED_GROUP: usize = 64;

pub fn matmul_q8_sizes() -> Vec<Case> {
    let case = |[m, n, k]: [usize; 3]| {
        let [q, scales] = weights(n, k, TIMED_GROUP);
        let op = MatmulQ8 { group: TIMED_GROUP, epilogue: Epilogue::default() };
        Case::new(format!("{m}x{n}x{k}"), op, vec![Sample::normal(&[m, k]), q, scales]).forward_only()
    };
    TIMED.map(case).into()
}

pub fn matmul_q8q8_sizes() -> Vec<Case> {
    let case = |[m, n, k]: [usize; 3]| {
        let [q, scales] = weights(n, k, TIMED_GROUP);
        let operands = vec![Sample::normal(&[m, k]).fixed(), q, scales];
        Case::new(format!("{m}x{n}x{k}"), MatmulQ8Q8 { group: TIMED_GROUP }, operands).forward_only()
    };
    TIMED.map(case).into()
}

const TIMED_MATRICES: [[usize; 2]; 2] = [[1536, 384], [4096, 4096]];

pub fn dequantize_sizes() -> Vec<Case> {
    let case = |[rows, columns]: [usize; 2]| {
        let operands = weights(rows, columns, TIMED_GROUP).to_vec();
        Case::new(format!("[{rows},{columns}]"), Dequantize { group: TIMED_GROUP }, operands).forward_only()
    };
    TIMED_MATRICES.map(case).into()
}

pub fn quantize_sizes() -> Vec<Case> {
    let case = |[rows, columns]: [usize; 2]| {
        let x = Sample::normal(&[rows, columns]).fixed();
        Case::new(format!("[{rows},{columns}]"), QuantizeRows { group: TIMED_GROUP }, vec![x]).forward_only()
    };
    TIMED_MATRICES.map(case).into()
}
