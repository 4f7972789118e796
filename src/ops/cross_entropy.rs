//! Cross-entropy of integer targets, fused with log-softmax: neither probabilities nor log-probabilities are stored.

use super::pointwise::Pointwise;
use super::rows::RowKernel;
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result, shader};
use kernels_cpu::program::{Binary, Instr};

/// Inputs logits [.., v], targets i32 [..]; outputs nll [..] and lse [..]: `lse = ln sum exp logits`,
/// `nll = lse - logits[target]`, 0 where the target is negative. A target from v on is an error on the CPU; a GPU, which cannot
/// stop, gives a loss of 3e38.
#[derive(Clone, Debug)]
pub struct CrossEntropy;

/// Inputs logits [.., v], targets i32 [..], lse [..], dnll [..]; output dlogits: `dnll (softmax(logits) - onehot(target))`, 0 where the
/// target is negative.
#[derive(Clone, Debug)]
pub struct CrossEntropyGrad;

fn refused(e: kernels_cpu::embed::IndexOutOfRange) -> Error {
    Error::Graph(format!("cross_entropy target: {e}; a negative target is ignored"))
}

fn check(inputs: &[TensorType], rows_of: usize) -> Result<(), String> {
    let (x, targets) = (&inputs[0], &inputs[1]);
    match x.shape.split_last() {
        Some((&v, lead)) if v > 0 && x.dtype == DType::F32 => {
            if targets.dtype != DType::I32 || targets.shape != lead {
                return Err(format!("targets must be i32{lead:?}, one for each row of logits"));
            }
            match inputs[2..rows_of].iter().find(|t| t.shape != lead || t.dtype != DType::F32) {
                Some(bad) => Err(format!("{bad} must be f32{lead:?}")),
                None => Ok(()),
            }
        }
        _ => Err("logits must be f32 [.., classes] with at least one class".into()),
    }
}

impl Kernel for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let v = *inputs[0].shape.last().expect("inferred");
        let (mut nll, mut lse) = (RefTensor::zeros(&outputs[0].shape), RefTensor::zeros(&outputs[1].shape));
        for (row, &target) in inputs[1].data.iter().enumerate() {
            let x = &inputs[0].data[row * v..][..v];
            let most = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
            let log_sum = x.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
            lse.data[row] = most + log_sum;
            if target >= v as f64 {
                nll.data[row] = 3e38;
            } else if target >= 0.0 {
                // Relative to the largest logit, which may be huge.
                nll.data[row] = (most - x[target as usize]) + log_sum;
            }
        }
        vec![nll, lse]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (n, v) = call.input(0).rows();
        let (nll, lse) = (call.out_f32(0), call.out_f32(1));
        kernels_cpu::loss::cross_entropy(call.f32(0), call.i32(1), n, v, nll, lse).map_err(refused)
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (n, v) = lowering.input(0).rows();
        RowKernel::new("cross_entropy", shader!("cross_entropy.wgsl"), n, v, 10.0)
            .read("x", Buf::In(0))
            .read_index("targets", Buf::In(1))
            .write_one("nll", Buf::Out(0))
            .write_one("lse", Buf::Out(1))
            .lower(lowering)
    }
}

impl Op for CrossEntropy {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        check(inputs, 2)?;
        Ok(vec![TensorType::f32(&inputs[1].shape); 2])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (x, targets, lse) = (cx.inputs[0], cx.inputs[1], cx.outputs[1]);
        let mut total = None;
        if cx.has_grad(0) {
            let dnll = cx.grad(0);
            total = Some(cx.graph.apply1(CrossEntropyGrad, &[x, targets, lse, dnll])?);
        }
        if cx.has_grad(1) {
            // d lse / d logits = softmax(logits): what a penalty on lse (z-loss) needs.
            let (dlse, g) = (cx.grad(1), &mut cx.graph);
            let column = [g.shape(lse), &[1]].concat();
            let (lse, dlse) = (g.reshape(lse, &column)?, g.reshape(dlse, &column)?);
            let shifted = g.sub(x, lse)?;
            let softmax = g.exp(shifted)?;
            let part = g.mul(softmax, dlse)?;
            total = Some(match total {
                Some(t) => g.add(t, part)?,
                None => part,
            });
        }
        Ok(vec![total, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs)
    }
}

impl Kernel for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross_entropy_grad"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (rows, v) = outputs[0].rows();
        let mut dx = RefTensor::zeros(&outputs[0].shape);
        for row in 0..rows {
            let (target, lse, d) = (inputs[1].data[row], inputs[2].data[row], inputs[3].data[row]);
            if target < 0.0 || target >= v as f64 {
                continue;
            }
            for k in 0..v {
                let hit = if k == target as usize { 1.0 } else { 0.0 };
                dx.data[row * v + k] = d * ((inputs[0].data[row * v + k] - lse).exp() - hit);
            }
        }
        vec![dx]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (n, v) = call.input(0).rows();
        let (lse, dnll, dx) = (call.f32(2), call.f32(3), call.out_f32(0));
        kernels_cpu::loss::cross_entropy_grad(call.f32(0), call.i32(1), lse, dnll, n, v, dx).map_err(refused)
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (n, v) = lowering.input(0).rows();
        RowKernel::new("cross_entropy_grad", shader!("cross_entropy_grad.wgsl"), n, v, 10.0)
            .read("x", Buf::In(0))
            .read_index("targets", Buf::In(1))
            .read_one("lse", Buf::In(2))
            .read_one("dnll", Buf::In(3))
            .write("dx", Buf::Out(0))
            .lower(lowering)
    }
}

impl Op for CrossEntropyGrad {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        check(inputs, 4)?;
        Ok(vec![inputs[0].clone()])
    }
    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph("cross_entropy_grad: second derivatives are not implemented".into()))
    }
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        cost(inputs, outputs)
    }
}

/// An exponential is counted as eight operations.
fn cost(inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
    let bytes = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum();
    Cost { flops: 10.0 * inputs[0].elements() as f64, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
}

impl Graph {
    /// Cross-entropy of each row of `logits` [.., v] with `targets` i32 [..], a negative one being ignored. Returns (nll [..], lse [..]).
    pub fn cross_entropy(&mut self, logits: Value, targets: Value) -> Result<(Value, Value)> {
        let out = self.apply(CrossEntropy, &[logits, targets])?;
        Ok((out[0], out[1]))
    }

    /// The mean cross-entropy over the rows whose target is not negative, and their count, both f32 scalars. With no such row the
    /// mean is 0, and so is its gradient.
    pub fn cross_entropy_mean(&mut self, logits: Value, targets: Value) -> Result<(Value, Value)> {
        let (nll, _) = self.cross_entropy(logits, targets)?;
        let counted = vec![Instr::Const(0.0), Instr::Input(0), Instr::Binary(Binary::Le, 0, 1)];
        let counted = self.apply1(Pointwise::f32(counted, 1), &[targets])?;
        let (sum, count) = (self.sum_all(nll)?, self.sum_all(counted)?);
        let one = vec![Instr::Input(0), Instr::Const(1.0), Instr::Binary(Binary::Max, 0, 1)];
        let divisor = self.apply1(Pointwise::f32(one, 1), &[count])?;
        Ok((self.div(sum, divisor)?, count))
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("cross_entropy", cases).timed(sizes),
        Spec::new("cross_entropy_grad", grad_cases).timed(|| TIMED.map(|s| grad_case(s, 1.0)).into()),
    ]
}

const TIMED: [&[usize]; 4] = [&[2048, 65], &[2048, 600], &[256, 50_257], &[768, 65]];

fn sizes() -> Vec<Case> {
    let case = |shape: &[usize]| {
        Case::new(format!("{shape:?}"), CrossEntropy, inputs(shape, Values::Normal(2.0), Values::Int(0, 0)))
    };
    TIMED.map(case).into()
}

/// WGSL grants exp(x) an error of 3 + 2|x| ulp; relative to the largest exponential of a row that is at most 3 for each term, and for
/// the sum about as much.
const ULPS: f64 = 8.0;

const SHAPES: [&[usize]; 8] =
    [&[1, 1], &[3, 1], &[0, 5], &[5, 65], &[2, 3, 64], &[67, 600], &[2, 50_257], &[300, 1000]];

fn inputs(shape: &[usize], logits: Values, targets: Values) -> Vec<Sample> {
    let (v, lead) = shape.split_last().expect("cases have an axis");
    let targets = match targets {
        Values::Int(from, _) => Values::Int(from, *v as i64),
        other => other,
    };
    vec![Sample::new(shape, logits), Sample::typed(DType::I32, lead, targets)]
}

fn cases() -> Vec<Case> {
    let case = |label: &str, inputs: Vec<Sample>| {
        let label = format!("{label} {:?}", inputs[0].ty.shape);
        Case::new(label, CrossEntropy, inputs).ulps(ULPS)
    };
    let mut cases: Vec<Case> =
        SHAPES.map(|s| case("some ignored", inputs(s, Values::Normal(2.0), Values::Int(-2, 0)))).into();
    let huge = inputs(&[9, 33], Values::Normal(1e4), Values::Int(0, 0));
    cases.push(case("huge logits", huge));
    cases.push(case("all ignored", inputs(&[4, 12], Values::Normal(1.0), Values::Fixed(vec![-1.0; 4]))));
    let mask = -1e30;
    let masked = Values::Fixed([[mask, 1.0, mask, 2.0], [mask; 4]].concat());
    cases.push(case("masked classes", inputs(&[2, 4], masked, Values::Fixed(vec![1.0, 2.0]))).forward_only());
    cases.push(
        case("with a gradient of lse", inputs(&[5, 40], Values::Normal(1.0), Values::Int(-1, 0))).cotangents(&[0, 1]),
    );
    cases.push(
        case("gradient of lse alone", inputs(&[5, 41], Values::Normal(1.0), Values::Int(-1, 0))).cotangents(&[1]),
    );
    cases
}

fn grad_case(shape: &[usize], spread: f64) -> Case {
    let mut inputs = inputs(shape, Values::Normal(spread), Values::Int(-2, 0));
    let lead = shape[..shape.len() - 1].to_vec();
    // lse of so many normal logits, about; the operator takes it as it is.
    let lse = (shape[shape.len() - 1] as f64).ln() + spread;
    inputs.extend([Sample::new(&lead, Values::Uniform(lse, lse + 1.0)), Sample::normal(&lead)]);
    Case::new(format!("{shape:?} spread {spread}"), CrossEntropyGrad, inputs).ulps(ULPS).forward_only()
}

fn grad_cases() -> Vec<Case> {
    SHAPES.iter().map(|s| grad_case(s, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, Store};
    use crate::graph::Plan;
    use crate::tensor::HostTensor;

    fn mean_of(targets: Vec<i32>) -> (f32, f32, Vec<f32>) {
        let n = targets.len();
        let mut g = Graph::new();
        let (x, t) = (g.input("x", TensorType::f32(&[n, 3])), g.input("t", TensorType::i32(&[n])));
        let (loss, count) = g.cross_entropy_mean(x, t).unwrap();
        let dx = g.gradients(loss, &[x]).unwrap()[0];
        [("loss", loss), ("count", count), ("dx", dx)].into_iter().for_each(|(name, v)| g.output(name, v));
        let mut run = Plan::new(&g).unwrap().prepare(&mut Store::new(&Device::Cpu)).unwrap();
        run.write_input("x", &HostTensor::f32(&[n, 3], vec![0.0; n * 3])).unwrap();
        run.write_input("t", &HostTensor::i32(&[n], targets)).unwrap();
        run.run().unwrap();
        let mut read = |name| run.read_output(name).unwrap().as_f32().unwrap().to_vec();
        (read("loss")[0], read("count")[0], read("dx"))
    }

    #[test]
    fn the_mean_is_over_the_rows_that_are_not_ignored() {
        let (loss, count, dx) = mean_of(vec![0, -1, 2, -100]);
        assert!((loss - 3f32.ln()).abs() < 1e-6 && count == 2.0, "{loss} over {count}");
        let third = 1.0 / 6.0;
        let want = [third - 0.5, third, third, 0.0, 0.0, 0.0, third, third, third - 0.5, 0.0, 0.0, 0.0];
        assert!(dx.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{dx:?}");
    }

    #[test]
    fn the_mean_over_no_row_is_zero_and_so_is_its_gradient() {
        for targets in [vec![-1, -1], vec![]] {
            let (loss, count, dx) = mean_of(targets);
            assert_eq!((loss, count), (0.0, 0.0));
            assert!(dx.iter().all(|d| *d == 0.0));
        }
    }

    #[test]
    fn a_target_that_is_no_class_is_an_error_that_names_it() {
        let mut g = Graph::new();
        let (x, t) = (g.input("x", TensorType::f32(&[1, 3])), g.input("t", TensorType::i32(&[1])));
        let (nll, _) = g.cross_entropy(x, t).unwrap();
        g.output("nll", nll);
        let mut run = Plan::new(&g).unwrap().prepare(&mut Store::new(&Device::Cpu)).unwrap();
        run.write_input("t", &HostTensor::i32(&[1], vec![3])).unwrap();
        let message = run.run().unwrap_err().to_string();
        assert!(message.contains('3') && message.contains("0..3"), "{message}");
    }
}
