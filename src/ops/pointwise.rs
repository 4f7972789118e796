//! Elementwise operators with NumPy broadcasting. Each is a small program of scalar instructions; a pass fuses chains of them, so
//! a whole chain is one kernel.

mod gradient;
mod wgsl;

use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::Result;
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Storage, Value};
use crate::tensor::{DType, RefTensor, TensorType, broadcast, broadcast_strides};
use kernels_cpu::program::{Binary, Instr, Program, Unary};
use std::sync::Arc;

/// out = program(inputs), elementwise over the broadcast shape of the inputs.
#[derive(Clone, Debug)]
pub struct Pointwise {
    pub program: Program,
    /// f32, f16 or bf16 (rounded to the nearest), or i32 (truncated toward zero).
    pub out: DType,
    /// The output is at least this shape: operands may all be smaller (`[]` when they decide alone).
    pub shape: Vec<usize>,
}

impl Pointwise {
    pub fn unary(op: Unary) -> Self {
        Self::f32(vec![Instr::Input(0), Instr::Unary(op, 0)], 1)
    }
    pub fn binary(op: Binary) -> Self {
        Self::f32(vec![Instr::Input(0), Instr::Input(1), Instr::Binary(op, 0, 1)], 2)
    }
    /// `x * mul + add`
    pub fn affine(mul: f32, add: f32) -> Self {
        let mut instrs = vec![Instr::Input(0)];
        if mul != 1.0 {
            instrs.extend([Instr::Const(mul), Instr::Binary(Binary::Mul, 0, 1)]);
        }
        if add != 0.0 {
            let x = instrs.len() as u16 - 1;
            instrs.extend([Instr::Const(add), Instr::Binary(Binary::Add, x, x + 1)]);
        }
        Self::f32(instrs, 1)
    }
    /// A program whose last instruction is its output.
    pub fn f32(instrs: Vec<Instr>, inputs: usize) -> Self {
        let outputs = vec![instrs.len() as u16 - 1];
        Pointwise { program: Program { instrs, outputs, inputs }, out: DType::F32, shape: vec![] }
    }
}

impl Kernel for Pointwise {
    fn name(&self) -> &'static str {
        "pointwise"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let shape = &outputs[0].shape;
        let strides: Vec<Vec<usize>> = inputs.iter().map(|x| broadcast_strides(&x.shape, shape)).collect();
        let mut out = RefTensor::zeros(shape);
        let mut index = vec![0; shape.len()];
        let (mut operands, mut scratch) = (vec![0.0; inputs.len()], Vec::new());
        for value in &mut out.data {
            for (x, (input, strides)) in operands.iter_mut().zip(inputs.iter().zip(&strides)) {
                *x = input.data[index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>()];
            }
            self.program.eval_f64(&operands, &mut scratch);
            *value = scratch[self.program.outputs[0] as usize];
            if !self.out.is_float() {
                *value = value.trunc();
            }
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        use kernels_cpu::pointwise::{In, InData, Out, run};
        let shape = &call.output(0).shape;
        let strides: Vec<Vec<usize>> = call.inputs.iter().map(|x| broadcast_strides(&x.ty.shape, shape)).collect();
        let inputs: Vec<In> = (0..call.inputs.len())
            .map(|i| {
                let data = match call.input(i).dtype {
                    DType::F32 => InData::F32(call.input_ptr(i).cast()),
                    DType::Bf16 => InData::Bf16(call.input_ptr(i).cast()),
                    DType::F16 => InData::F16(call.input_ptr(i).cast()),
                    _ => InData::I32(call.input_ptr(i).cast()),
                };
                In { data, strides: &strides[i] }
            })
            .collect();
        let out = match call.output(0).dtype {
            DType::F32 => Out::F32(call.output_ptr(0).cast()),
            DType::Bf16 => Out::Bf16(call.output_ptr(0).cast()),
            DType::F16 => Out::F16(call.output_ptr(0).cast()),
            _ => Out::I32(call.output_ptr(0).cast()),
        };
        // SAFETY: operands are valid for their types' sizes; an output shares memory with an input of its own type only
        // (`in_place`), and that input is then contiguous in `shape`.
        unsafe { run(&self.program, &inputs, &[out], shape) };
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        wgsl::lower(self, lowering)
    }
}

impl Op for Pointwise {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let mut shape = self.shape.clone();
        if inputs.len() != self.program.inputs {
            return Err(format!("the program takes {} operands, {} were given", self.program.inputs, inputs.len()));
        }
        for t in inputs {
            if !(t.dtype.is_float() || t.dtype == DType::I32) {
                return Err(format!("operands are f32, f16, bf16 or i32, not {}", t.dtype));
            }
            shape = broadcast(&shape, &t.shape)
                .ok_or_else(|| format!("shape {:?} does not broadcast with {shape:?}", t.shape))?;
        }
        Ok(vec![TensorType::new(self.out, &shape)])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        gradient::write(self, cx)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let n = outputs[0].elements() as f64;
        let work = |i: &Instr| !matches!(i, Instr::Input(_) | Instr::Const(_));
        let instrs = self.program.instrs.iter().filter(|i| work(i)).count() as f64;
        let bytes_read = inputs.iter().map(|t| t.bytes() as f64).sum();
        Cost { flops: n * instrs, bytes_read, bytes_written: outputs[0].bytes() as f64 }
    }

    fn in_place(&self) -> Vec<(usize, usize)> {
        (0..self.program.inputs).map(|i| (i, 0)).collect()
    }

    fn storage(&self, _: &[TensorType]) -> Storage {
        let all: Vec<usize> = (0..self.program.inputs).collect();
        let writes = if self.out == DType::F32 { vec![0] } else { vec![] };
        Storage { reads: all, writes, gpu: true, ..Storage::default() }
    }

    fn program(&self) -> Option<&Program> {
        Some(&self.program)
    }

    fn with_program(&self, program: Program, shape: &[usize]) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Pointwise { program, out: self.out, shape: shape.to_vec() }))
    }
}

macro_rules! unary_builders {
    ($($(#[$doc:meta])* $name:ident => $op:ident),* $(,)?) => {
        impl Graph { $($(#[$doc])* pub fn $name(&mut self, x: Value) -> Result<Value> {
            self.apply1(Pointwise::unary(Unary::$op), &[x])
        })* }
    };
}

unary_builders! {
    neg => Neg, abs => Abs, sign => Sign, exp => Exp,
    /// Natural logarithm.
    log => Log,
    /// e^x - 1, relative to itself also near 0.
    expm1 => Expm1,
    /// ln(1 + x), relative to itself also near 0.
    log1p => Log1p,
    sqrt => Sqrt, rsqrt => Rsqrt, recip => Recip, sin => Sin, cos => Cos, tanh => Tanh, sigmoid => Sigmoid,
    /// ln(1 + e^x)
    softplus => Softplus,
    /// x * sigmoid(x)
    silu => Silu,
    /// The tanh form of GELU (Hendrycks and Gimpel 2016).
    gelu_tanh => GeluTanh,
    /// x * Phi(x), with the error function.
    gelu_erf => GeluErf,
    relu => Relu,
}

macro_rules! binary_builders {
    ($($(#[$doc:meta])* $name:ident => $op:ident),* $(,)?) => {
        impl Graph { $($(#[$doc])* pub fn $name(&mut self, a: Value, b: Value) -> Result<Value> {
            self.apply1(Pointwise::binary(Binary::$op), &[a, b])
        })* }
    };
}

binary_builders! {
    add => Add, sub => Sub, mul => Mul, div => Div,
    /// Where equal, the gradient goes to `a`.
    maximum => Max,
    /// Where equal, the gradient goes to `a`.
    minimum => Min,
    /// 1 where a < b, else 0.
    less => Lt,
    less_equal => Le,
    equal => Eq,
}

impl Graph {
    /// `x * mul + add`
    pub fn affine(&mut self, x: Value, mul: f32, add: f32) -> Result<Value> {
        self.apply1(Pointwise::affine(mul, add), &[x])
    }
    pub fn scale(&mut self, x: Value, by: f32) -> Result<Value> {
        self.affine(x, by, 0.0)
    }
    /// `a` where `condition` is not 0, else `b`.
    pub fn where_(&mut self, condition: Value, a: Value, b: Value) -> Result<Value> {
        let instrs = vec![Instr::Input(0), Instr::Input(1), Instr::Input(2), Instr::Select(0, 1, 2)];
        self.apply1(Pointwise::f32(instrs, 3), &[condition, a, b])
    }
    /// `x` limited to [lo, hi]; the gradient passes inside and at the ends.
    pub fn clamp(&mut self, x: Value, lo: f32, hi: f32) -> Result<Value> {
        let instrs = vec![
            Instr::Input(0),
            Instr::Const(lo),
            Instr::Binary(Binary::Max, 0, 1),
            Instr::Const(hi),
            Instr::Binary(Binary::Min, 2, 3),
        ];
        self.apply1(Pointwise::f32(instrs, 1), &[x])
    }
    /// Converts between f32, f16, bf16 (to the nearest) and i32 (toward zero).
    pub fn cast(&mut self, x: Value, dtype: DType) -> Result<Value> {
        if self.ty(x).dtype == dtype {
            return Ok(x);
        }
        let program = Program { instrs: vec![Instr::Input(0)], outputs: vec![0], inputs: 1 };
        self.apply1(Pointwise { program, out: dtype, shape: vec![] }, &[x])
    }
    /// `x` repeated along axes of length 1 and new leading axes.
    pub fn broadcast_to(&mut self, x: Value, shape: &[usize]) -> Result<Value> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        let program = Program { instrs: vec![Instr::Input(0)], outputs: vec![0], inputs: 1 };
        let out = self.ty(x).dtype;
        self.apply1(Pointwise { program, out, shape: shape.to_vec() }, &[x])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("pointwise", cases).timed(sizes)]
}

/// Residual sums and activations of the presets, and the same out of cache.
fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[2048, 1536][..], &[4096, 4096], &[768, 512]] {
        let normal = || Sample::normal(shape);
        cases.push(Case::new(format!("add {shape:?}"), Pointwise::binary(Binary::Add), vec![normal(), normal()]));
        cases.push(Case::new(format!("gelu_tanh {shape:?}"), Pointwise::unary(Unary::GeluTanh), vec![normal()]));
    }
    let gate = vec![Instr::Input(0), Instr::Unary(Unary::Silu, 0), Instr::Input(1), Instr::Binary(Binary::Mul, 1, 2)];
    let operands = vec![Sample::normal(&[2048, 1024]), Sample::normal(&[2048, 1024])];
    cases.push(Case::new("silu(a) * b [2048, 1024]", Pointwise::f32(gate, 2), operands));
    cases
}

fn cases() -> Vec<Case> {
    use Values::{Fixed, Normal, Uniform};
    let mut cases = Vec::new();
    let unary = [
        (Unary::Neg, Normal(1.0), 1.0),
        (Unary::Abs, Normal(1.0), 1.0),
        (Unary::Exp, Normal(3.0), 32.0),
        (Unary::Expm1, Normal(3.0), 4.0),
        (Unary::Log, Uniform(1e-3, 10.0), 8.0),
        (Unary::Log1p, Uniform(-0.9, 10.0), 4.0),
        (Unary::Sqrt, Uniform(1e-3, 10.0), 4.0),
        (Unary::Rsqrt, Uniform(1e-2, 10.0), 4.0),
        (Unary::Recip, Uniform(0.1, 10.0), 4.0),
        (Unary::Sin, Normal(3.0), 8.0),
        (Unary::Cos, Normal(3.0), 8.0),
        (Unary::Tanh, Normal(2.0), 8.0),
        (Unary::Sigmoid, Normal(4.0), 16.0),
        (Unary::Softplus, Normal(4.0), 16.0),
        (Unary::Silu, Normal(4.0), 16.0),
        (Unary::GeluTanh, Normal(3.0), 16.0),
        (Unary::GeluErf, Normal(3.0), 16.0),
        (Unary::Relu, Normal(1.0), 1.0),
    ];
    for (op, values, ulps) in unary {
        cases.push(
            Case::new(format!("{op:?} [7,13]"), Pointwise::unary(op), vec![Sample::new(&[7, 13], values)]).ulps(ulps),
        );
    }
    let extremes = vec![-1e4, -88.0, -30.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 30.0, 88.0, 1e4];
    for op in [Unary::Tanh, Unary::Sigmoid, Unary::Softplus, Unary::Silu, Unary::GeluTanh, Unary::GeluErf] {
        let x = Sample::new(&[11], Fixed(extremes.clone()));
        cases.push(Case::new(format!("{op:?} extremes"), Pointwise::unary(op), vec![x]).ulps(16.0));
    }
    let shapes: &[(&[usize], &[usize])] = &[
        (&[], &[]),
        (&[1], &[257]),
        (&[5, 7], &[7]),
        (&[5, 7], &[5, 1]),
        (&[4, 1, 8], &[3, 1]),
        (&[2, 3, 4, 5], &[3, 1, 5]),
        (&[33, 64], &[33, 64]),
        (&[3, 1], &[1, 5]),
        (&[0, 4], &[4]),
    ];
    for (a, b) in shapes {
        for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div] {
            let b = Sample::new(b, Uniform(0.5, 2.0));
            cases.push(Case::new(
                format!("{op:?} {a:?} {:?}", b.ty.shape),
                Pointwise::binary(op),
                vec![Sample::normal(a), b],
            ));
        }
    }
    for op in [Binary::Max, Binary::Min, Binary::Lt, Binary::Le, Binary::Eq] {
        let x = || Sample::normal(&[9, 8]);
        cases.push(Case::new(format!("{op:?}"), Pointwise::binary(op), vec![x(), x()]));
    }
    let select = vec![Instr::Input(0), Instr::Input(1), Instr::Input(2), Instr::Select(0, 1, 2)];
    let condition = Sample::ints(&[6, 1], 0, 2);
    let operands = vec![condition, Sample::normal(&[6, 5]), Sample::normal(&[5])];
    cases.push(Case::new("where", Pointwise::f32(select, 3), operands));
    let copy = Program { instrs: vec![Instr::Input(0)], outputs: vec![0], inputs: 1 };
    let to_int = Pointwise { program: copy.clone(), out: DType::I32, shape: vec![] };
    cases.push(Case::new("cast to i32", to_int, vec![Sample::new(&[65], Uniform(-9.0, 9.0))]).forward_only());
    let from_int = Pointwise { program: copy.clone(), out: DType::F32, shape: vec![] };
    cases.push(Case::new("cast from i32", from_int, vec![Sample::ints(&[65], -9, 9)]));
    let expand = Pointwise { program: copy, out: DType::F32, shape: vec![3, 4, 5] };
    cases.push(Case::new("broadcast to [3,4,5]", expand, vec![Sample::normal(&[4, 1])]));
    // A fused chain with every broadcast at once: silu(a * b + c) / (1 + exp(d)).
    let chain = vec![
        Instr::Input(0),
        Instr::Input(1),
        Instr::Binary(Binary::Mul, 0, 1),
        Instr::Input(2),
        Instr::Binary(Binary::Add, 2, 3),
        Instr::Unary(Unary::Silu, 4),
        Instr::Input(3),
        Instr::Unary(Unary::Exp, 6),
        Instr::Const(1.0),
        Instr::Binary(Binary::Add, 7, 8),
        Instr::Binary(Binary::Div, 5, 9),
    ];
    let operands: Vec<Sample> = [&[4, 6, 8][..], &[8], &[6, 1], &[]].map(Sample::normal).into();
    cases.push(Case::new("fused chain", Pointwise::f32(chain, 4), operands).ulps(32.0));
    for dtype in [DType::Bf16, DType::F16] {
        cases.extend(halves(dtype));
    }
    cases.push(Case::new("a million", Pointwise::affine(1.5, -0.25), vec![Sample::normal(&[1000, 1001])]));
    cases
}

/// Operands and results of 16 bits, of even and odd lengths, contiguous and broadcast.
fn halves(dtype: DType) -> Vec<Case> {
    let mut cases = Vec::new();
    let copy = || Pointwise::f32(vec![Instr::Input(0)], 1);
    for n in [1, 2, 3, 64, 65, 1027] {
        let x = || vec![Sample::new(&[n], Values::Normal(3.0))];
        cases.push(Case::new(format!("copy {n}"), copy(), x()).stored(dtype, &[], &[0]));
        cases.push(Case::new(format!("copy {n}"), copy(), x()).stored(dtype, &[0], &[]));
        cases.push(Case::new(format!("affine {n}"), Pointwise::affine(1.5, 0.25), x()).stored(dtype, &[0], &[0]));
    }
    // Ties, subnormals of both types, the largest values; signed zeros.
    let largest = if dtype == DType::F16 { 65504.0 } else { 3.3e38 };
    let edge = vec![
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        1.0 + 1.0 / 2048.0,
        1.0 + 3.0 / 2048.0,
        -1.0 - 1.0 / 2048.0,
        6.0e-5,
        -6.0e-8,
        0.0,
        -0.0,
        largest,
        -largest,
    ];
    let edge = || vec![Sample::new(&[11], Values::Fixed(edge.clone()))];
    cases.push(Case::new("edges", copy(), edge()).stored(dtype, &[], &[0]));
    cases.push(Case::new("edges", copy(), edge()).stored(dtype, &[0], &[]));
    let shapes: &[(&[usize], &[usize])] = &[
        (&[5, 7], &[7]),
        (&[5, 7], &[5, 1]),
        (&[4, 1, 8], &[3, 1]),
        (&[33, 64], &[64]),
        (&[3, 1], &[1, 5]),
        (&[0, 4], &[4]),
    ];
    for (a, b) in shapes {
        let operands = || vec![Sample::normal(a), Sample::normal(b)];
        for (inputs, outputs) in [(&[0, 1][..], &[0][..]), (&[0], &[]), (&[1], &[0]), (&[1], &[])] {
            let case = Case::new(format!("Mul {a:?} {b:?}"), Pointwise::binary(Binary::Mul), operands());
            cases.push(case.stored(dtype, inputs, outputs));
        }
    }
    let gelu =
        vec![Instr::Input(0), Instr::Unary(Unary::GeluErfGrad, 0), Instr::Input(1), Instr::Binary(Binary::Mul, 1, 2)];
    let operands = || vec![Sample::normal(&[6, 20]), Sample::normal(&[6, 20])];
    cases.push(Case::new("gelu'", Pointwise::f32(gelu, 2), operands()).ulps(16.0).stored(dtype, &[0, 1], &[0]));
    let million = Case::new("a million and one", Pointwise::affine(1.5, -0.25), vec![Sample::normal(&[1000, 1001])]);
    cases.push(million.clone().stored(dtype, &[0], &[0]));
    cases.push(million.stored(dtype, &[0], &[]));
    cases
}
