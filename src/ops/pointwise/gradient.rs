//! Reverse-mode differentiation of a scalar program: the gradient of an elementwise chain is an elementwise chain.

use super::Pointwise;
use crate::graph::{Gradient, Value};
use crate::tensor::DType;
use crate::{Error, Result};
use kernels_cpu::program::{Binary, Instr, Program, Unary};

pub fn write(op: &Pointwise, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
    if op.out != DType::F32 {
        return Ok(vec![None; cx.inputs.len()]);
    }
    let g = cx.grad(0);
    let mut operands = cx.inputs.clone();
    operands.push(g);
    let mut result = Vec::new();
    for i in 0..cx.inputs.len() {
        if !cx.needs(i) {
            result.push(None);
            continue;
        }
        let Some((program, used)) = derivative(&op.program, i as u16)? else {
            result.push(None);
            continue;
        };
        let used: Vec<Value> = used.iter().map(|n| operands[*n as usize]).collect();
        let full = cx.graph.apply1(Pointwise { program, out: DType::F32, shape: vec![] }, &used)?;
        let shape = cx.graph.shape(cx.inputs[i]).to_vec();
        result.push(Some(cx.graph.sum_to(full, &shape)?));
    }
    Ok(result)
}

/// The program of dL/d(input `wrt`): its operands are those of `program` that it uses, and dL/d(output) (numbered
/// `program.inputs`). `None` when the derivative is zero everywhere.
fn derivative(program: &Program, wrt: u16) -> Result<Option<(Program, Vec<u16>)>> {
    let mut t = Tape { instrs: program.instrs.clone() };
    let g = t.push(Instr::Input(program.inputs as u16));
    let mut adjoint: Vec<Option<u16>> = vec![None; program.instrs.len()];
    adjoint[program.outputs[0] as usize] = Some(g);
    let mut total = None;
    for i in (0..program.instrs.len()).rev() {
        let Some(g) = adjoint[i] else { continue };
        let y = i as u16;
        let mut give = |t: &mut Tape, to: u16, value: u16| {
            let slot = &mut adjoint[to as usize];
            *slot = Some(match *slot {
                Some(before) => t.binary(Binary::Add, before, value),
                None => value,
            });
        };
        match program.instrs[i] {
            Instr::Input(n) if n == wrt => {
                total = Some(match total {
                    Some(before) => t.binary(Binary::Add, before, g),
                    None => g,
                });
            }
            Instr::Input(_) | Instr::Const(_) => {}
            Instr::Unary(op, x) => {
                if let Some(dx) = unary(&mut t, op, x, y, g)? {
                    give(&mut t, x, dx);
                }
            }
            Instr::Binary(op, a, b) => {
                let (da, db) = binary(&mut t, op, a, b, y, g);
                if let (Some(da), Some(db)) = (da, db) {
                    give(&mut t, a, da);
                    give(&mut t, b, db);
                }
            }
            Instr::Select(c, a, b) => {
                let zero = t.push(Instr::Const(0.0));
                let (da, db) = (t.push(Instr::Select(c, g, zero)), t.push(Instr::Select(c, zero, g)));
                give(&mut t, a, da);
                give(&mut t, b, db);
            }
        }
    }
    Ok(total.map(|out| t.finish(out)))
}

fn unary(t: &mut Tape, op: Unary, x: u16, y: u16, g: u16) -> Result<Option<u16>> {
    let local = match op {
        Unary::Sign | Unary::Step | Unary::Trunc => return Ok(None),
        Unary::Neg => return Ok(Some(t.unary(Unary::Neg, g))),
        Unary::Log => return Ok(Some(t.binary(Binary::Div, g, x))),
        Unary::Abs => t.unary(Unary::Sign, x),
        Unary::Exp => y,
        Unary::Expm1 => t.unary(Unary::Exp, x),
        Unary::Log1p => {
            let one = t.push(Instr::Const(1.0));
            let sum = t.binary(Binary::Add, x, one);
            t.unary(Unary::Recip, sum)
        }
        Unary::Sqrt => {
            let r = t.unary(Unary::Recip, y);
            t.times(0.5, r)
        }
        Unary::Rsqrt => {
            let square = t.binary(Binary::Mul, y, y);
            let cube = t.binary(Binary::Mul, square, y);
            t.times(-0.5, cube)
        }
        Unary::Recip => {
            let square = t.binary(Binary::Mul, y, y);
            t.unary(Unary::Neg, square)
        }
        Unary::Sin => t.unary(Unary::Cos, x),
        Unary::Cos => {
            let s = t.unary(Unary::Sin, x);
            t.unary(Unary::Neg, s)
        }
        Unary::Tanh => {
            let square = t.binary(Binary::Mul, y, y);
            let one = t.push(Instr::Const(1.0));
            t.binary(Binary::Sub, one, square)
        }
        Unary::Sigmoid => {
            let one = t.push(Instr::Const(1.0));
            let rest = t.binary(Binary::Sub, one, y);
            t.binary(Binary::Mul, y, rest)
        }
        Unary::Softplus => t.unary(Unary::Sigmoid, x),
        Unary::Silu => t.unary(Unary::SiluGrad, x),
        Unary::GeluTanh => t.unary(Unary::GeluTanhGrad, x),
        Unary::GeluErf => t.unary(Unary::GeluErfGrad, x),
        Unary::Relu => t.unary(Unary::Step, x),
        Unary::SiluGrad | Unary::GeluTanhGrad | Unary::GeluErfGrad => {
            return Err(Error::Graph(format!("the second derivative of {op:?} is not implemented")));
        }
    };
    Ok(Some(t.binary(Binary::Mul, g, local)))
}

fn binary(t: &mut Tape, op: Binary, a: u16, b: u16, y: u16, g: u16) -> (Option<u16>, Option<u16>) {
    let (da, db) = match op {
        Binary::Add => (g, g),
        Binary::Sub => (g, t.unary(Unary::Neg, g)),
        Binary::Mul => (t.binary(Binary::Mul, g, b), t.binary(Binary::Mul, g, a)),
        Binary::Div => {
            let da = t.binary(Binary::Div, g, b);
            let product = t.binary(Binary::Mul, da, y);
            (da, t.unary(Unary::Neg, product))
        }
        Binary::Max | Binary::Min => {
            let first = if op == Binary::Max { t.binary(Binary::Le, b, a) } else { t.binary(Binary::Le, a, b) };
            let zero = t.push(Instr::Const(0.0));
            (t.push(Instr::Select(first, g, zero)), t.push(Instr::Select(first, zero, g)))
        }
        Binary::Lt | Binary::Le | Binary::Eq => return (None, None),
    };
    (Some(da), Some(db))
}

struct Tape {
    instrs: Vec<Instr>,
}

impl Tape {
    fn push(&mut self, i: Instr) -> u16 {
        self.instrs.push(i);
        self.instrs.len() as u16 - 1
    }
    fn unary(&mut self, op: Unary, a: u16) -> u16 {
        self.push(Instr::Unary(op, a))
    }
    fn binary(&mut self, op: Binary, a: u16, b: u16) -> u16 {
        self.push(Instr::Binary(op, a, b))
    }
    fn times(&mut self, c: f32, a: u16) -> u16 {
        let c = self.push(Instr::Const(c));
        self.binary(Binary::Mul, c, a)
    }

    /// Keeps what `out` needs; renumbers the operands that remain and lists them.
    fn finish(self, out: u16) -> (Program, Vec<u16>) {
        let mut live = vec![false; self.instrs.len()];
        live[out as usize] = true;
        for i in (0..self.instrs.len()).rev() {
            if !live[i] {
                continue;
            }
            match self.instrs[i] {
                Instr::Unary(_, a) => live[a as usize] = true,
                Instr::Binary(_, a, b) => [a, b].iter().for_each(|x| live[*x as usize] = true),
                Instr::Select(c, a, b) => [c, a, b].iter().for_each(|x| live[*x as usize] = true),
                Instr::Input(_) | Instr::Const(_) => {}
            }
        }
        let (mut instrs, mut place, mut used) = (Vec::new(), vec![0u16; self.instrs.len()], Vec::new());
        for (i, instr) in self.instrs.iter().enumerate().filter(|(i, _)| live[*i]) {
            let at = |x: u16| place[x as usize];
            let mapped = match *instr {
                Instr::Input(n) => {
                    let k = used.iter().position(|u| *u == n).unwrap_or_else(|| {
                        used.push(n);
                        used.len() - 1
                    });
                    Instr::Input(k as u16)
                }
                Instr::Const(c) => Instr::Const(c),
                Instr::Unary(op, a) => Instr::Unary(op, at(a)),
                Instr::Binary(op, a, b) => Instr::Binary(op, at(a), at(b)),
                Instr::Select(c, a, b) => Instr::Select(at(c), at(a), at(b)),
            };
            instrs.push(mapped);
            place[i] = instrs.len() as u16 - 1;
        }
        (Program { outputs: vec![place[out as usize]], inputs: used.len(), instrs }, used)
    }
}
