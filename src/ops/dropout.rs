//! Inverted dropout (Srivastava et al. 2014) with counter-based random bits: every executor drops the same elements, in any
//! order, and the gradient drops them again without a stored mask.

use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::philox::{philox4x32, uniform_f32};
use minijinja::context;

/// `y[i] = x[i] / (1 - p)` where kept, else 0: inputs `x` (f32, any shape) and `state` (u32 `[3]`: seed low, seed high, step).
/// Which elements are kept depends on `state`, `stream` and `i` alone (`kernels_cpu::philox` defines the bits).
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability that an element is dropped, in `0 .. 1`.
    pub p: f32,
    /// Number of the dropout layer: layers with the same state must differ in it.
    pub stream: u32,
}

impl Dropout {
    fn scale(&self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}

impl Kernel for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn reference(&self, inputs: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
        let state: Vec<u32> = inputs[1].data.iter().map(|&w| w as u32).collect();
        let kept = |i: usize| {
            let j = (i / 4) as u64;
            let counter = [j as u32, (j >> 32) as u32, self.stream, state[2]];
            uniform_f32(philox4x32([state[0], state[1]], counter)[i % 4]) >= self.p
        };
        let x = inputs[0].data.iter().enumerate();
        let y = x.map(|(i, &x)| if kept(i) { x * self.scale() as f64 } else { 0.0 }).collect();
        vec![RefTensor::new(&inputs[0].shape, y)]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let state = call.u32(1);
        let (seed, step) = ([state[0], state[1]], state[2]);
        kernels_cpu::philox::dropout(call.f32(0), self.p, seed, self.stream, step, call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let n = lowering.input(0).elements();
        let ty = if n.is_multiple_of(4) { "vec4<f32>" } else { "f32" };
        for blocks in lowering.chunks(n.div_ceil(4), &[16, 16], 400.0)? {
            let elements = 4 * blocks.start..n.min(4 * blocks.end);
            let bytes = 4 * elements.start as u64..4 * elements.end as u64;
            let binds = [
                lowering.read_part(Buf::In(0), bytes.clone()),
                lowering.read(Buf::In(1)),
                lowering.write_part(Buf::Out(0), bytes),
            ];
            let params = Params::new().u32(elements.len()).u32(blocks.start).u32(self.stream as usize);
            let params = params.f32(self.p as f64).f32(self.scale() as f64);
            let groups = lowering.line(blocks.len().div_ceil(64));
            let variables = context! { T => ty };
            lowering.dispatch("dropout", crate::shader!("dropout.wgsl"), variables, &binds, params, groups)?;
        }
        Ok(())
    }
}

impl Op for Dropout {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(format!("the probability {} is not in 0 .. 1", self.p));
        }
        match inputs {
            [x, state] if x.dtype == DType::F32 && *state == TensorType::new(DType::U32, &[3]) => Ok(vec![x.clone()]),
            _ => Err("x (f32) and a state u32[3] (seed low, seed high, step) are needed".into()),
        }
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (state, g) = (cx.inputs[1], cx.grad(0));
        Ok(vec![Some(cx.graph.apply1(self.clone(), &[g, state])?), None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes = outputs[0].bytes() as f64;
        // The ten rounds of a block are about 100 integer operations for four elements.
        Cost { flops: 26.0 * inputs[0].elements() as f64, bytes_read: bytes, bytes_written: bytes }
    }
}

impl Graph {
    /// Drops elements of `x` with probability `p`; `state` is u32 `[3]` (seed low, seed high, step), written by the host before each
    /// run; every layer needs its own `stream`. With `p` 0 it is `x` itself.
    pub fn dropout(&mut self, x: Value, state: Value, p: f32, stream: u32) -> Result<Value> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::Graph(format!("dropout probability {p} is not in 0 .. 1")));
        }
        if p == 0.0 { Ok(x) } else { self.apply1(Dropout { p, stream }, &[x, state]) }
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("dropout", cases).timed(sizes)]
}

fn sizes() -> Vec<Case> {
    let case = |shape: &[usize]| {
        Case::new(format!("{shape:?}"), Dropout { p: 0.2, stream: 1 }, vec![Sample::normal(shape), state([42, 0, 1])])
    };
    vec![case(&[2048, 384]), case(&[4096, 4096])]
}

fn state(words: [u32; 3]) -> Sample {
    Sample::typed(DType::U32, &[3], Values::Fixed(words.map(f64::from).to_vec()))
}

fn cases() -> Vec<Case> {
    let case = |shape: &[usize], p: f32, stream: u32, words: [u32; 3]| {
        let inputs = vec![Sample::normal(shape), state(words)];
        Case::new(format!("{shape:?} p {p} stream {stream} state {words:?}"), Dropout { p, stream }, inputs)
    };
    vec![
        case(&[], 0.5, 0, [0, 0, 0]),
        case(&[1], 0.1, 1, [1, 2, 3]),
        case(&[7, 3], 0.1, 7, [u32::MAX, 5, u32::MAX - 1]),
        case(&[2, 3, 8], 0.25, u32::MAX, [7, u32::MAX, 100]),
        case(&[257], 0.9, 2, [123, 0, 9]),
        case(&[0, 3], 0.3, 2, [123, 0, 9]),
        case(&[300, 1001], 0.2, 3, [42, 0, 17]),
        case(&[5, 61, 1001], 0.2, 3, [42, 0, 18]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::{Context, Options};
    use crate::device::{Device, Store};
    use crate::graph::Plan;
    use crate::tensor::HostTensor;

    fn run(device: &Device, n: usize, p: f32, stream: u32, words: [u32; 3]) -> Vec<u32> {
        let mut graph = Graph::new();
        let x = graph.constant(HostTensor::f32(&[n], (0..n).map(|i| 1.0 + i as f32 / 7.0).collect()));
        let state = graph.input("state", TensorType::new(DType::U32, &[3]));
        let y = graph.dropout(x, state, p, stream).unwrap();
        graph.output("y", y);
        let mut store = Store::new(device);
        let mut run = Plan::new(&graph).unwrap().prepare(&mut store).unwrap();
        run.write_input("state", &HostTensor::u32(&[3], words.to_vec())).unwrap();
        run.run().unwrap();
        let y = run.read_output("y").unwrap();
        y.as_f32().unwrap().iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn every_executor_gives_the_same_bits() {
        let mut devices = vec![Device::Cpu];
        if let Some(adapter) = Context::adapters().first() {
            devices.push(Device::Gpu(Context::open(adapter, Options::default()).unwrap()));
            let small = Options { max_binding: Some(1 << 12), ..Options::default() };
            devices.push(Device::Gpu(Context::open(adapter, small).unwrap()));
        } else {
            eprintln!("no GPU adapter: only the CPU is compared with the reference");
        }
        for (n, p, stream, words) in
            [(1, 0.5, 0, [0, 0, 0]), (5003, 0.1, 7, [1, 2, 3]), (4096, 0.7, u32::MAX, [u32::MAX, 0x8000_0001, 999])]
        {
            let want = run(&Device::Reference, n, p, stream, words);
            for device in &devices {
                assert_eq!(run(device, n, p, stream, words), want, "{} n {n}", device.name());
            }
        }
    }

    #[test]
    fn the_share_kept_is_binomial_and_streams_steps_and_seeds_are_independent() {
        let (n, p) = (40_000, 0.3f64);
        let kept = |stream, words| -> Vec<bool> {
            run(&Device::Cpu, n, p as f32, stream, words).iter().map(|&bits| bits != 0).collect()
        };
        let base = kept(0, [1, 2, 3]);
        // Five standard deviations of a binomial.
        let bound = |q: f64| 5.0 * (n as f64 * q * (1.0 - q)).sqrt();
        let count = base.iter().filter(|k| **k).count() as f64;
        assert!((count - (1.0 - p) * n as f64).abs() < bound(p), "{count}");
        let agree = p * p + (1.0 - p) * (1.0 - p);
        for other in [kept(1, [1, 2, 3]), kept(0, [2, 2, 3]), kept(0, [1, 3, 3]), kept(0, [1, 2, 4])] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count() as f64;
            assert!((same - agree * n as f64).abs() < bound(agree), "{same}");
        }
    }

    #[test]
    fn probabilities_outside_0_to_1_are_refused() {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorType::f32(&[4]));
        let state = graph.input("state", TensorType::new(DType::U32, &[3]));
        for p in [-0.1, 1.0, f32::NAN] {
            assert!(graph.dropout(x, state, p, 0).is_err(), "{p}");
        }
        assert_eq!(graph.dropout(x, state, 0.0, 0).unwrap(), x);
    }
}
