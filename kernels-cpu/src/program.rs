//! Pointwise programs: a chain of scalar instructions in SSA form, run once per output element. The graph fuses chains of
//! elementwise operators into one `Program`; the GPU executor turns it into WGSL, `pointwise` runs it with SIMD, and
//! `eval_f64` is the readable definition.

/// One scalar instruction. `u16` operands are indices of earlier instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// The element of input tensor `n` that broadcasts to this output position (integers are converted to float).
    Input(u16),
    Const(f32),
    Unary(Unary, u16),
    Binary(Binary, u16, u16),
    /// `if a != 0 { b } else { c }`
    Select(u16, u16, u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    Neg,
    Abs,
    /// -1, 0 or 1
    Sign,
    Exp,
    /// e^x - 1, relative to itself also near 0
    Expm1,
    /// natural logarithm
    Log,
    /// ln(1 + x), relative to itself also near 0
    Log1p,
    Sqrt,
    Rsqrt,
    Recip,
    Sin,
    Cos,
    Tanh,
    Sigmoid,
    /// ln(1 + e^x)
    Softplus,
    /// x * sigmoid(x)
    Silu,
    SiluGrad,
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    GeluTanh,
    GeluTanhGrad,
    /// 0.5 x (1 + erf(x / sqrt 2))
    GeluErf,
    GeluErfGrad,
    Relu,
    /// 1 where x > 0, else 0
    Step,
    /// toward zero: the float value that a cast to an integer and back gives
    Trunc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    /// comparisons give 1 or 0
    Lt,
    Le,
    Eq,
}

/// SSA instructions and the indices of those that are outputs (in output order).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Program {
    pub instrs: Vec<Instr>,
    pub outputs: Vec<u16>,
    pub inputs: usize,
}

impl Unary {
    pub fn eval_f64(self, x: f64) -> f64 {
        const C: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
        const A: f64 = 0.044715;
        match self {
            Unary::Neg => -x,
            Unary::Abs => x.abs(),
            Unary::Sign => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    0.0
                }
            }
            Unary::Exp => x.exp(),
            Unary::Expm1 => x.exp_m1(),
            Unary::Log => x.ln(),
            Unary::Log1p => x.ln_1p(),
            Unary::Sqrt => x.sqrt(),
            Unary::Rsqrt => 1.0 / x.sqrt(),
            Unary::Recip => 1.0 / x,
            Unary::Sin => x.sin(),
            Unary::Cos => x.cos(),
            Unary::Tanh => x.tanh(),
            Unary::Sigmoid => sigmoid(x),
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::Silu => x * sigmoid(x),
            Unary::SiluGrad => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Unary::GeluTanh => 0.5 * x * (1.0 + (C * (x + A * x * x * x)).tanh()),
            Unary::GeluTanhGrad => {
                let t = (C * (x + A * x * x * x)).tanh();
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * C * (1.0 + 3.0 * A * x * x)
            }
            Unary::GeluErf => x * normal_cdf(x),
            Unary::GeluErfGrad => {
                normal_cdf(x) + x * (-0.5 * x * x).exp() * 0.398_942_280_401_432_7 // 1 / sqrt(2 pi)
            }
            Unary::Relu => x.max(0.0),
            Unary::Step => (x > 0.0) as u8 as f64,
            Unary::Trunc => x.trunc(),
        }
    }
}

impl Binary {
    pub fn eval_f64(self, a: f64, b: f64) -> f64 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::Lt => (a < b) as u8 as f64,
            Binary::Le => (a <= b) as u8 as f64,
            Binary::Eq => (a == b) as u8 as f64,
        }
    }
}

impl Program {
    /// The definition: evaluates the program for one element. `inputs[i]` is the broadcast element of input `i`.
    pub fn eval_f64(&self, inputs: &[f64], scratch: &mut Vec<f64>) {
        scratch.clear();
        for instr in &self.instrs {
            let v = match *instr {
                Instr::Input(n) => inputs[n as usize],
                Instr::Const(c) => c as f64,
                Instr::Unary(op, a) => op.eval_f64(scratch[a as usize]),
                Instr::Binary(op, a, b) => op.eval_f64(scratch[a as usize], scratch[b as usize]),
                Instr::Select(c, a, b) => {
                    if scratch[c as usize] != 0.0 {
                        scratch[a as usize]
                    } else {
                        scratch[b as usize]
                    }
                }
            };
            scratch.push(v);
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// Phi(x) = 0.5 erfc(-x / sqrt 2) in f64, by the series near zero and the continued fraction in the tails (relative error < 1e-14).
fn normal_cdf(x: f64) -> f64 {
    let t = x.abs() / std::f64::consts::SQRT_2;
    // erfc(t) for t >= 0
    let erfc = if t < 2.0 {
        let (mut term, mut sum, mut n) = (t, t, 0.0);
        while term.abs() > 1e-17 * sum.abs().max(1e-300) {
            n += 1.0;
            term *= -t * t / n;
            sum += term / (2.0 * n + 1.0);
            if n > 100.0 {
                break;
            }
        }
        1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        // Lentz-free backward recurrence of the continued fraction for erfc
        let mut f = 0.0;
        for k in (1..=60).rev() {
            f = k as f64 / 2.0 / (t + f);
        }
        (-t * t).exp() / ((t + f) * std::f64::consts::PI.sqrt())
    };
    if x >= 0.0 { 1.0 - 0.5 * erfc } else { 0.5 * erfc }
}
