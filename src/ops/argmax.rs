//! Greedy choice on the device: the place of the largest number, so that logits need not be read back.

use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result, shader};
use minijinja::context;

/// x f32 [.., V] to i32 [..]: the index of the largest of the first `limit` numbers, the smallest such index; -1
/// where one of them is NaN, which nothing can be compared with. Not differentiable.
#[derive(Clone, Debug, PartialEq)]
pub struct Argmax {
    pub limit: usize,
}

/// Numbers of a row that one workgroup looks at, where a row is shared among several.
const PART: usize = 4096;

impl Kernel for Argmax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let width = inputs[0].shape.last().copied().unwrap_or(1);
        let row = |x: &[f64]| {
            let x = &x[..self.limit];
            let best = (1..self.limit).fold(0, |best, i| if x[i] > x[best] { i } else { best });
            if x.iter().any(|v| v.is_nan()) { -1.0 } else { best as f64 }
        };
        vec![RefTensor::new(&outputs[0].shape, inputs[0].data.chunks(width).map(row).collect())]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (_, width) = call.input(0).rows();
        kernels_cpu::argmax::argmax(call.f32(0), width, self.limit, call.out_i32(0));
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let (rows, width) = l.input(0).rows();
        let row_bytes = 4 * width as u64;
        // A barrier is dear on a software device, and so is a long loop: there a row is cut into more parts.
        let lanes = if l.caps.software { 1 } else { 256 };
        let part = if lanes == 1 { 512.max(self.limit.div_ceil(4096)) } else { PART.max(self.limit.div_ceil(4096)) };
        let parts = self.limit.div_ceil(part);
        for r in l.pieces(rows, &[row_bytes], self.limit as f64, 0)? {
            let (x, ahead) = l.window(Buf::In(0), r.start as u64 * row_bytes..r.end as u64 * row_bytes, false);
            let out = r.start as u64 * 4..r.end as u64 * 4;
            let (y, y_ahead) = l.window(Buf::Out(0), out, true);
            let params = |n: usize, parts: usize| {
                let params = Params::new().u32(n).u32(width).u32(part).u32(parts).u32(self.limit);
                params.u32(ahead).u32(y_ahead)
            };
            let line = |l: &Lowering, n: usize| l.line(if lanes == 1 { n.div_ceil(64) } else { n });
            let template = shader!("argmax.wgsl");
            if parts == 1 {
                let (variables, grid) = (context! { lanes, stage => "whole" }, line(l, r.len()));
                l.dispatch("argmax/whole", template, variables, &[x, y], params(r.len(), 1), grid)?;
                continue;
            }
            let count = r.len() * parts;
            let found = l.scratch(8 * count as u64);
            let (variables, grid, binds) = (context! { lanes, stage => "parts" }, line(l, count), [x, l.write(found)]);
            l.dispatch("argmax/parts", template, variables, &binds, params(count, parts), grid)?;
            let (variables, grid, binds) = (context! { lanes, stage => "merge" }, line(l, r.len()), [l.read(found), y]);
            l.dispatch("argmax/merge", template, variables, &binds, params(r.len(), parts), grid)?;
        }
        Ok(())
    }
}

impl Op for Argmax {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [x] = inputs else { return Err("one operand is needed".into()) };
        let Some((width, lead)) = x.shape.split_last() else { return Err("a scalar has no largest number".into()) };
        if x.dtype != DType::F32 {
            return Err(format!("x must be f32 [.., V], not {x}"));
        }
        if !(1..=*width).contains(&self.limit) {
            return Err(format!("the first {} of {width} numbers cannot be searched", self.limit));
        }
        Ok(vec![TensorType::i32(lead)])
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph("argmax: a choice has no gradient".into()))
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let (rows, _) = inputs[0].rows();
        let seen = (rows * self.limit) as f64;
        Cost { flops: seen, bytes_read: 4.0 * seen, bytes_written: outputs[0].bytes() as f64 }
    }
}

impl Graph {
    /// For each row of `x` f32 [.., V] the index of the largest of its first `limit` numbers, i32 [..]; the smaller index on ties. See
    /// [`Argmax`].
    pub fn argmax(&mut self, x: Value, limit: usize) -> Result<Value> {
        self.apply1(Argmax { limit }, &[x])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("argmax", cases).timed(sizes)]
}

fn case(shape: &[usize], limit: usize, values: Values) -> Case {
    let label = format!("{shape:?} limit {limit}");
    Case::new(label, Argmax { limit }, vec![Sample::new(shape, values).fixed()]).forward_only()
}

fn sizes() -> Vec<Case> {
    [[1, 32_000], [1, 151_936], [64, 32_000]].map(|s| case(&s, s[1], Values::Normal(1.0))).into()
}

fn cases() -> Vec<Case> {
    // Far enough apart that one rounding of every number changes no choice.
    let apart = |n: usize| Values::Fixed((0..n).map(|i| ((i * 7919 + 13) % n) as f64 - n as f64 / 3.0).collect());
    let mut cases = vec![
        case(&[1], 1, apart(1)),
        case(&[5, 3], 2, apart(15)),
        case(&[2, 3, 65], 64, apart(390)),
        case(&[7, 300], 257, apart(2100)),
        case(&[1, 4097], 4097, apart(4097)),
        case(&[3, 9001], 9000, apart(27_003)),
        case(&[1, 150_001], 150_001, apart(150_001)),
        case(&[300, 1021], 1000, apart(306_300)),
        case(&[0, 5], 5, Values::Normal(1.0)),
    ];
    // Ties everywhere: the first must win.
    let few = |n: usize, kinds: usize| Values::Fixed((0..n).map(|i| ((i * 7919 + 5) % kinds) as f64).collect());
    cases.push(case(&[4, 1000], 999, few(4000, 3)));
    cases.push(case(&[2, 10_000], 10_000, few(20_000, 1)));
    cases.push(case(&[2, 200], 200, Values::Fixed(vec![0.0; 400])));
    // All negative, and the largest just outside the limit.
    cases.push(case(&[2, 4], 3, Values::Fixed(vec![-3.0, -1.0, -2.0, 9.0, -1e30, -2e30, -1e30, 1e30])));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Store;
    use crate::graph::Plan;
    use crate::ops::on_devices::devices;
    use crate::tensor::{HostData, HostTensor};

    fn choose(x: &[f32], limit: usize) -> Vec<Vec<i32>> {
        let on = |device| {
            let mut graph = Graph::new();
            let v = graph.input("x", TensorType::f32(&[1, x.len()]));
            let y = graph.argmax(v, limit).unwrap();
            graph.output("y", y);
            let plan = Plan::new(&graph).unwrap();
            let mut run = plan.prepare(&mut Store::new(device)).unwrap();
            run.write_input("x", &HostTensor::f32(&[1, x.len()], x.to_vec())).unwrap();
            run.run().unwrap();
            match run.read_output("y").unwrap().data {
                HostData::I32(v) => v,
                other => panic!("{other:?}"),
            }
        };
        devices().iter().map(on).collect()
    }

    #[test]
    fn the_smaller_index_wins_a_tie_on_every_device_wherever_parts_meet() {
        for n in [2, 65, 511, 513, 4096, 4097, 9000] {
            for (i, j) in [(0, n - 1), (n / 2 - 1, n / 2), (n - 2, n - 1)] {
                let mut x = vec![-5.0; n];
                (x[i], x[j]) = (1.5, 1.5);
                assert!(choose(&x, n).iter().all(|y| *y == [i as i32]), "{n}: {i} and {j}");
            }
        }
    }

    #[test]
    fn one_nan_among_the_numbers_is_told_on_every_device() {
        for n in [1, 65, 513, 9000] {
            for at in [0, n / 2, n - 1] {
                let mut x: Vec<f32> = (0..n).map(|i| i as f32).collect();
                x[at] = f32::NAN;
                assert!(choose(&x, n).iter().all(|y| *y == [-1]), "{n}: {at}");
            }
        }
        assert!(choose(&[f32::NEG_INFINITY, 1.0, f32::INFINITY, f32::INFINITY], 4).iter().all(|y| *y == [2]));
        assert!(choose(&[1.0, f32::NAN], 1).iter().all(|y| *y == [0]));
    }

    #[test]
    fn numbers_beyond_the_limit_are_not_chosen_and_a_limit_beyond_the_row_is_refused() {
        assert!(choose(&[1.0, 3.0, 2.0, 9.0], 3).iter().all(|y| *y == [1]));
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(&[2, 4]));
        for limit in [0, 5] {
            assert!(graph.argmax(x, limit).unwrap_err().to_string().contains("cannot be searched"));
        }
    }
}
