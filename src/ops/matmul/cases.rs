//! Shapes that exercise every kernel: 1, primes, one over and under a tile, long sums, operands over 1 MiB.

use super::{Epilogue, Matmul};
use crate::ops::{Case, Sample};
use crate::tensor::DType;
use kernels_cpu::gemm::Activation;

fn stored(lead: &[usize], rows: usize, columns: usize, transposed: bool) -> Sample {
    let last = if transposed { [columns, rows] } else { [rows, columns] };
    Sample::normal(&[lead, &last].concat())
}

fn case(a_lead: &[usize], b_lead: &[usize], [m, n, k]: [usize; 3], op: Matmul) -> Case {
    let flags = format!("{}{}", if op.trans_a { " ta" } else { "" }, if op.trans_b { " tb" } else { "" });
    let label = format!("{a_lead:?} x {b_lead:?} m {m} n {n} k {k}{flags}");
    let operands = vec![stored(a_lead, m, k, op.trans_a), stored(b_lead, k, n, op.trans_b)];
    Case::new(label, op, operands)
}

const TRANSPOSES: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let small = [[1, 1, 1], [2, 3, 5], [5, 5, 1], [1, 17, 33], [3, 64, 65], [4, 65, 64], [33, 2, 17], [65, 1, 129]];
    let medium = [[5, 33, 17], [17, 65, 33], [64, 64, 64], [65, 127, 12], [33, 68, 20], [128, 64, 31], [127, 129, 128]];
    for (ta, tb) in TRANSPOSES {
        for shape in small.iter().chain(&medium) {
            cases.push(case(&[], &[], *shape, Matmul::new(ta, tb)));
        }
        for shape in [[1, 17, 33], [3, 68, 132], [33, 4, 20], [65, 66, 17], [64, 128, 36], [6, 9, 300]] {
            cases.push(case(&[], &[], shape, Matmul::new(ta, tb)));
        }
        for shape in [[129, 65, 33], [128, 132, 44]] {
            cases.push(case(&[], &[], shape, Matmul::new(ta, tb)));
        }
        for (a, b) in [(&[2][..], &[2][..]), (&[2, 3], &[2, 3]), (&[6], &[]), (&[], &[2])] {
            cases.push(case(a, b, [5, 7, 3], Matmul::new(ta, tb)));
        }
        cases.push(case(&[2, 3], &[2, 3], [2, 20, 16], Matmul::new(ta, tb)));
        cases.push(case(&[3], &[3], [66, 12, 8], Matmul::new(ta, tb)));
        // No terms: zeros.
        cases.push(case(&[], &[], [5, 8, 0], Matmul::new(ta, tb)));
        cases.push(case(&[], &[], [2, 8, 0], Matmul::new(ta, tb)));
    }
    // Over 1 MiB: A by rows, B by columns or terms, the result by rows, and the gradients of each.
    cases.push(case(&[], &[], [2100, 8, 132], Matmul::new(false, false)));
    cases.push(case(&[], &[], [8, 130, 2100], Matmul::new(true, false)));
    cases.push(case(&[], &[], [3, 2100, 132], Matmul::new(false, true)));
    cases.push(case(&[], &[], [9, 132, 2100], Matmul::new(false, false)));
    cases.push(case(&[], &[], [700, 401, 6], Matmul::new(false, false)));
    cases.push(case(&[40], &[40], [90, 80, 6], Matmul::new(false, true)));
    // Wide matrices times one or two vectors, of which an invocation may take several quads of columns.
    for shape in [[1, 2052, 37], [1, 2100, 132], [2, 1028, 33], [3, 2048, 5]] {
        cases.push(case(&[], &[], shape, Matmul::new(false, false)));
    }
    cases.push(case(&[], &[], [2056, 1, 35], Matmul::new(true, false)));
    // Sums long enough to be split, as in gradients of weights.
    cases.push(case(&[], &[], [20, 24, 3000], Matmul::new(true, false)));
    cases.push(case(&[], &[], [20, 23, 3001], Matmul::new(true, false)));
    cases.push(case(&[2], &[2], [7, 8, 1500], Matmul::new(false, true)));
    cases.extend(epilogues());
    cases.extend(halves());
    cases
}

/// Operands and results of 16 bits, together and one beside f32.
fn halves() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [DType::Bf16, DType::F16] {
        for (ta, tb) in TRANSPOSES {
            for shape in [[1, 1, 1], [3, 17, 5], [33, 65, 31], [64, 64, 64], [70, 130, 129], [9, 33, 1001]] {
                let one = || case(&[], &[], shape, Matmul::new(ta, tb));
                cases.push(one().stored(dtype, &[0, 1], &[0]));
                cases.push(one().stored(dtype, &[0, 1], &[]));
            }
            cases.push(case(&[], &[], [18, 35, 20], Matmul::new(ta, tb)).stored(dtype, &[0], &[]));
            cases.push(case(&[], &[], [18, 35, 20], Matmul::new(ta, tb)).stored(dtype, &[1], &[0]));
            cases.push(case(&[3], &[3], [6, 11, 9], Matmul::new(ta, tb)).stored(dtype, &[0, 1], &[0]));
            cases.push(case(&[], &[2], [6, 11, 9], Matmul::new(ta, tb)).stored(dtype, &[0, 1], &[]));
        }
        let epilogue = Epilogue { bias: Some(2), activation: Activation::GeluTanh, residual: Some(3) };
        for (inputs, n) in [(&[0, 1][..], 35), (&[0, 1, 2, 3], 35), (&[0, 1, 3], 36)] {
            let mut c = case(&[], &[], [18, n, 12], Matmul { epilogue, ..Matmul::new(false, true) });
            c.inputs.extend([Sample::normal(&[n]), Sample::normal(&[18, n])]);
            cases.push(c.ulps(32.0).stored(dtype, inputs, &[0]));
        }
        cases.push(case(&[], &[], [5, 8, 0], Matmul::new(false, false)).stored(dtype, &[0, 1], &[0]));
        // Over 1 MiB as f32, and as stored.
        cases.push(case(&[], &[], [2100, 9, 133], Matmul::new(false, false)).stored(dtype, &[0, 1], &[0]));
        cases.push(case(&[], &[], [8, 2100, 301], Matmul::new(false, true)).stored(dtype, &[0, 1], &[0]));
    }
    cases
}

fn epilogues() -> Vec<Case> {
    let mut cases = Vec::new();
    let all = [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
    for activation in all {
        for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let epilogue = Epilogue {
                bias: bias.then_some(2),
                activation,
                residual: residual.then_some(if bias { 3 } else { 2 }),
            };
            if epilogue.is_none() {
                continue;
            }
            let mut push = |[m, n, k]: [usize; 3], lead: &[usize]| {
                let tb = activation == Activation::Silu;
                let op = Matmul { epilogue, ..Matmul::new(false, tb) };
                let mut c = case(lead, lead, [m, n, k], op);
                c.label += &format!(" {activation:?} bias {bias} residual {residual}");
                if bias {
                    c.inputs.push(Sample::normal(&[n]));
                }
                if residual {
                    c.inputs.push(Sample::normal(&[lead, &[m, n]].concat()));
                }
                // The activations use exp, for which WGSL allows 3 + 2 |x| ulp.
                cases.push(c.ulps(if activation == Activation::None { 4.0 } else { 32.0 }));
            };
            push([18, 36, 12], &[]);
            push([3, 9, 16], &[]);
            if bias {
                push([18, 35, 12], &[]);
                push([5, 9, 7], &[2]);
            }
            if bias && residual && activation == Activation::GeluTanh {
                push([9, 2, 5], &[]);
                push([17, 20, 1100], &[]);
                push([1100, 257, 5], &[]);
                push([6, 8, 0], &[]);
            }
        }
    }
    cases
}

/// Squares in all three orders, the layers of the presets (forward `nt`, and their gradients), the products of decoding one token, and
/// batches of small products.
pub fn sizes() -> Vec<Case> {
    let named = |lead: &[usize], [m, n, k]: [usize; 3], (ta, tb): (bool, bool)| {
        let order = |t| if t { 't' } else { 'n' };
        let batch: String = lead.iter().map(|b| format!("{b} of ")).collect();
        let label = format!("{batch}{m}x{n}x{k} {}{}", order(ta), order(tb));
        Case { label, ..case(lead, lead, [m, n, k], Matmul::new(ta, tb)) }
    };
    let (nn, nt, tn) = ((false, false), (false, true), (true, false));
    let plain = [
        ([1024, 1024, 1024], nn),
        ([2048, 1536, 384], nt),
        ([1, 4096, 4096], nt),
        ([256, 256, 256], nn),
        ([512, 512, 512], nn),
        ([2048, 2048, 2048], nn),
        ([4096, 4096, 4096], nn),
        ([1024, 1024, 1024], nt),
        ([1024, 1024, 1024], tn),
        // shakespeare-char at batch 8
        ([2048, 384, 384], nt),
        ([2048, 384, 1536], nt),
        ([2048, 65, 384], nt),
        ([384, 1536, 2048], tn),
        // shakespeare-char-cpu, minigpt
        ([768, 512, 128], nt),
        ([256, 256, 64], nt),
        // one token
        ([1, 384, 384], nt),
        ([1, 1536, 384], nt),
        ([1, 50_257, 768], nt),
    ];
    let mut cases: Vec<Case> = plain.into_iter().map(|(s, order)| named(&[], s, order)).collect();
    cases.push(named(&[48], [256, 256, 64], nt));
    cases.push(named(&[48], [256, 64, 256], nn));
    cases
}
