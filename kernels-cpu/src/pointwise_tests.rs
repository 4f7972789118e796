//! Tests of [`crate::pointwise`] against the `f64` definition of programs.

use crate::pointwise::{In, Out, broadcast_strides, run};
use crate::program::{Binary, Instr, Program, Unary};
use crate::threads::with_threads;

const UNARY: [Unary; 24] = [
    Unary::Neg,
    Unary::Abs,
    Unary::Sign,
    Unary::Exp,
    Unary::Expm1,
    Unary::Log,
    Unary::Log1p,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Recip,
    Unary::Sin,
    Unary::Cos,
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::Softplus,
    Unary::Silu,
    Unary::SiluGrad,
    Unary::GeluTanh,
    Unary::GeluTanhGrad,
    Unary::GeluErf,
    Unary::GeluErfGrad,
    Unary::Relu,
    Unary::Step,
    Unary::Trunc,
];
const BINARY: [Binary; 9] =
    [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min, Binary::Lt, Binary::Le, Binary::Eq];

fn data(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 101.0 - 4.0).collect()
}

fn element(strides: &[usize], shape: &[usize], mut flat: usize) -> usize {
    let mut at = 0;
    for (n, s) in shape.iter().zip(strides).rev() {
        at += flat % n * s;
        flat /= n;
    }
    at
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Runs `program` on float inputs of the given shapes and compares every output with the definition.
fn check(program: &Program, inputs: &[(&[f32], &[usize])], shape: &[usize], tolerance: impl Fn(f64) -> f64) {
    let n = size(shape);
    let strides: Vec<Vec<usize>> = inputs.iter().map(|(_, from)| broadcast_strides(from, shape).unwrap()).collect();
    let ins: Vec<In> = inputs.iter().zip(&strides).map(|((x, _), s)| In::f32(x.as_ptr(), s)).collect();
    let mut results = vec![vec![f32::NAN; n]; program.outputs.len()];
    let outs: Vec<Out> = results.iter_mut().map(|r| Out::F32(r.as_mut_ptr())).collect();
    // SAFETY: the strides come from the shapes of the inputs, the outputs have n elements.
    unsafe { run(program, &ins, &outs, shape) };
    let mut scratch = Vec::new();
    for i in 0..n {
        let x: Vec<f64> = inputs.iter().zip(&strides).map(|((x, _), s)| x[element(s, shape, i)] as f64).collect();
        program.eval_f64(&x, &mut scratch);
        for (k, &o) in program.outputs.iter().enumerate() {
            let (got, want) = (results[k][i] as f64, scratch[o as usize]);
            let same = got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= tolerance(want);
            assert!(same, "{program:?} {shape:?} output {k} element {i}: {got}, not {want}");
        }
    }
}

fn ulps(n: f64) -> impl Fn(f64) -> f64 {
    move |want| n * 2f64.powi(-23) * want.abs().max(0.5)
}

#[test]
fn every_unary_instruction_follows_its_definition() {
    for op in UNARY {
        let program = Program { instrs: vec![Instr::Input(0), Instr::Unary(op, 0)], outputs: vec![1], inputs: 1 };
        for n in [1, 31, 32, 33, 511, 1024, 1025, 3000] {
            check(&program, &[(&data(n, 1), &[n])], &[n], ulps(8.0));
        }
    }
}

#[test]
fn every_binary_instruction_follows_its_definition() {
    for op in BINARY {
        let instrs = vec![Instr::Input(0), Instr::Input(1), Instr::Binary(op, 0, 1)];
        let program = Program { instrs, outputs: vec![2], inputs: 2 };
        for n in [1, 33, 1024, 1500] {
            let (a, mut b) = (data(n, 1), data(n, 2));
            b.iter_mut().zip(&a).step_by(3).for_each(|(b, a)| *b = *a); // equal ones too
            check(&program, &[(&a, &[n]), (&b, &[n])], &[n], ulps(1.0));
        }
    }
}

#[test]
fn sines_of_large_arguments_are_right() {
    let x: Vec<f32> = (0..100).map(|i| if i % 7 == 0 { 1e7 * i as f32 } else { i as f32 }).collect();
    for op in [Unary::Sin, Unary::Cos] {
        let program = Program { instrs: vec![Instr::Input(0), Instr::Unary(op, 0)], outputs: vec![1], inputs: 1 };
        check(&program, &[(&x, &[100])], &[100], |_| 1.2e-7);
    }
}

/// (x + b) * sigmoid(y), x - y, and the select of them where x < y: three outputs, values with several uses.
fn chain() -> Program {
    let instrs = vec![
        Instr::Input(0),
        Instr::Input(1),
        Instr::Binary(Binary::Add, 0, 1),
        Instr::Input(2),
        Instr::Unary(Unary::Sigmoid, 3),
        Instr::Binary(Binary::Mul, 2, 4),
        Instr::Binary(Binary::Sub, 0, 3),
        Instr::Const(0.5),
        Instr::Binary(Binary::Mul, 6, 7),
        Instr::Binary(Binary::Lt, 0, 3),
        Instr::Unary(Unary::Exp, 9), // nobody reads it
        Instr::Select(9, 5, 8),
    ];
    Program { instrs, outputs: vec![5, 6, 11], inputs: 3 }
}

#[test]
fn all_broadcasts_give_what_the_definition_gives() {
    type Case<'a> = (&'a [usize], [&'a [usize]; 3]);
    let cases: [Case; 16] = [
        (&[], [&[], &[], &[]]),
        (&[7], [&[7], &[1], &[]]),
        (&[3, 5], [&[3, 5], &[5], &[3, 1]]),
        (&[37, 64], [&[37, 64], &[64], &[37, 1]]),
        (&[5, 1000], [&[5, 1000], &[1000], &[5, 1]]),
        (&[3, 1537], [&[1, 1537], &[3, 1], &[1, 1]]),
        (&[2, 3, 4, 5], [&[2, 3, 4, 5], &[3, 1, 5], &[2, 1, 4, 1]]),
        (&[2, 3, 600], [&[3, 600], &[2, 1, 600], &[2, 3, 1]]),
        (&[4, 9, 33], [&[9, 1], &[4, 1, 33], &[33]]),
        (&[129, 1], [&[129, 1], &[1], &[129, 1]]),
        (&[1, 513], [&[513], &[1, 1], &[1, 513]]),
        (&[1, 1, 1], [&[1], &[1, 1], &[]]),
        (&[0, 4], [&[0, 4], &[4], &[1, 1]]),
        (&[300, 3], [&[300, 3], &[3], &[300, 1]]),
        (&[17, 1, 512], [&[17, 1, 512], &[512], &[17, 1, 1]]),
        (&[70_001], [&[70_001], &[], &[70_001]]),
    ];
    for (shape, from) in cases {
        let tensors: Vec<Vec<f32>> = from.iter().enumerate().map(|(k, s)| data(size(s), k + 1)).collect();
        let inputs: Vec<(&[f32], &[usize])> = tensors.iter().zip(from).map(|(t, s)| (&t[..], s)).collect();
        check(&chain(), &inputs, shape, ulps(12.0));
    }
}

#[test]
fn transposed_and_stepped_inputs_are_read_by_their_strides() {
    let shape = [70, 90];
    let (a, b, c) = (data(70 * 90, 1), data(70 * 90 * 2, 2), data(70, 3));
    let strides = [[1, 70], [180, 2], [1, 0]];
    let mut y = vec![vec![0.0; 70 * 90]; 3];
    let outs: Vec<Out> = y.iter_mut().map(|y| Out::F32(y.as_mut_ptr())).collect();
    let ins = [In::f32(a.as_ptr(), &strides[0]), In::f32(b.as_ptr(), &strides[1]), In::f32(c.as_ptr(), &strides[2])];
    // SAFETY: 69 + 89 * 70, 69 * 180 + 89 * 2 and 69 are within the inputs.
    unsafe { run(&chain(), &ins, &outs, &shape) };
    for i in 0..70 {
        for j in 0..90 {
            assert_eq!(y[1][i * 90 + j], a[i + j * 70] - c[i]);
            let sum = a[i + j * 70] + b[i * 180 + j * 2];
            let want = sum as f64 / (1.0 + (-c[i] as f64).exp());
            assert!((y[0][i * 90 + j] as f64 - want).abs() <= 12.0 * 2f64.powi(-23) * want.abs().max(0.5));
        }
    }
}

#[test]
fn outputs_in_place_of_inputs_give_the_same_bits() {
    for shape in [&[1000][..], &[1024], &[37, 600], &[600, 37], &[3, 5], &[64, 1024]] {
        let n = size(shape);
        let full = broadcast_strides(shape, shape).unwrap();
        let (x, b, z) = (data(n, 1), data(*shape.last().unwrap(), 2), data(n, 3));
        let bias = broadcast_strides(&shape[shape.len() - 1..], shape).unwrap();
        let mut apart = vec![vec![0.0f32; n]; 3];
        let outs: Vec<Out> = apart.iter_mut().map(|y| Out::F32(y.as_mut_ptr())).collect();
        let ins = [In::f32(x.as_ptr(), &full), In::f32(b.as_ptr(), &bias), In::f32(z.as_ptr(), &full)];
        // SAFETY: sizes as the shapes say.
        unsafe { run(&chain(), &ins, &outs, shape) };
        // every pairing of the full inputs 0 and 2 with two of the three outputs
        for (k0, k2) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            let (mut x, mut z, mut other) = (x.clone(), z.clone(), vec![0.0f32; n]);
            let mut outs = [Out::F32(other.as_mut_ptr()); 3];
            (outs[k0], outs[k2]) = (Out::F32(x.as_mut_ptr()), Out::F32(z.as_mut_ptr()));
            let ins = [In::f32(x.as_mut_ptr(), &full), In::f32(b.as_ptr(), &bias), In::f32(z.as_mut_ptr(), &full)];
            // SAFETY: outputs are the memory of contiguous inputs or of nobody else.
            unsafe { run(&chain(), &ins, &outs, shape) };
            assert!(x == apart[k0] && z == apart[k2] && other == apart[3 - k0 - k2], "{shape:?} {k0} {k2}");
        }
    }
}

#[test]
fn inputs_and_constants_can_be_outputs_and_an_output_can_be_wanted_twice() {
    let instrs = vec![Instr::Input(0), Instr::Const(2.5), Instr::Unary(Unary::Neg, 0)];
    let program = Program { instrs, outputs: vec![0, 1, 2, 2], inputs: 1 };
    for n in [1, 64, 1000] {
        check(&program, &[(&data(n, 1), &[n])], &[n], |_| 0.0);
        // the first output in place of the input while another output is its negative, and the other way round
        for in_place in [0, 2] {
            let x = data(n, 1);
            let mut y = vec![vec![0.0f32; n]; 4];
            y[in_place] = x.clone();
            let outs: Vec<Out> = y.iter_mut().map(|y| Out::F32(y.as_mut_ptr())).collect();
            let source = y[in_place].as_mut_ptr();
            // SAFETY: one output is the memory of the contiguous input.
            unsafe { run(&program, &[In::f32(source, &[1])], &outs, &[n]) };
            assert!((0..n).all(|i| y[0][i] == x[i] && y[1][i] == 2.5 && y[2][i] == -x[i] && y[3][i] == -x[i]));
        }
    }
}

#[test]
fn integers_convert_on_the_way_in_and_out() {
    let instrs = vec![Instr::Input(0), Instr::Const(1.75), Instr::Binary(Binary::Mul, 0, 1), Instr::Input(1)];
    let program = Program { instrs, outputs: vec![2, 3, 2], inputs: 2 };
    for n in [1usize, 33, 1100] {
        let x: Vec<i32> = (0..n as i32).map(|i| i - 20).collect();
        let scalar = [-7i32];
        let (mut ints, mut copies, mut floats) = (vec![0i32; n], vec![0i32; n], vec![0f32; n]);
        let ins = [In::i32(x.as_ptr(), &[1]), In::i32(scalar.as_ptr(), &[0])];
        let outs = [Out::I32(ints.as_mut_ptr()), Out::I32(copies.as_mut_ptr()), Out::F32(floats.as_mut_ptr())];
        // SAFETY: n elements each.
        unsafe { run(&program, &ins, &outs, &[n]) };
        for i in 0..n {
            let want = x[i] as f32 * 1.75;
            assert_eq!((ints[i], copies[i], floats[i]), (want as i32, -7, want));
        }
    }
}

#[test]
fn a_long_program_reuses_registers_and_threads_do_not_change_bits() {
    // x_{k+1} = tanh(x_k) + x_{k-1}: eighty instructions, few alive at once
    let mut instrs = vec![Instr::Input(0), Instr::Input(1)];
    for k in 0..40u16 {
        let (last, before) = (instrs.len() as u16 - 1, if k == 0 { 0 } else { instrs.len() as u16 - 3 });
        instrs.push(Instr::Unary(Unary::Tanh, last));
        instrs.push(Instr::Binary(Binary::Add, last + 1, before));
    }
    let outputs = vec![instrs.len() as u16 - 1];
    let program = Program { instrs, outputs, inputs: 2 };
    let n = 20_011;
    let (a, b) = (data(n, 1), data(n, 2));
    // forty sums below 50, each with a few ULP
    check(&program, &[(&a, &[n]), (&b, &[n])], &[n], |_| 40.0 * 4.0 * 50.0 * 2f64.powi(-23));
    let go = |threads| {
        let mut y = vec![0.0f32; n];
        with_threads(threads, || {
            // SAFETY: n elements each.
            unsafe {
                run(
                    &program,
                    &[In::f32(a.as_ptr(), &[1]), In::f32(b.as_ptr(), &[1])],
                    &[Out::F32(y.as_mut_ptr())],
                    &[n],
                )
            }
        });
        y
    };
    let one = go(1);
    assert!([2, 3, 8].into_iter().all(|threads| go(threads) == one));
}

#[test]
fn broadcast_strides_refuse_what_does_not_broadcast() {
    assert_eq!(broadcast_strides(&[3, 1], &[2, 3, 4]), Some(vec![0, 1, 0]));
    assert_eq!(broadcast_strides(&[2], &[3]), None);
    assert_eq!(broadcast_strides(&[1, 3], &[3]), None);
    assert_eq!(broadcast_strides(&[], &[5]), Some(vec![0]));
}
