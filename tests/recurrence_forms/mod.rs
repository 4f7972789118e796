//! Problems for the tests of recurrences: operands, graphs of any form, exact results.

use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Executable, Store, reference};
use lynx_gpu::graph::{Graph, Plan, Value};
use lynx_gpu::ops::case::SplitMix;
use lynx_gpu::ops::gla::Gla;
use lynx_gpu::ops::scan::{Gate, GatedScan};
use lynx_gpu::tensor::HostTensor;
use std::cell::OnceCell;

/// What came out, by name: o, last, and gradients by the names of the operands; a and z are log gates and their logits.
pub type Results = Vec<(String, Vec<f64>)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Head,
    Channel,
    Scan,
}

impl Kind {
    pub fn chunk(self) -> usize {
        if self == Kind::Scan { 64 } else { Gla::default_chunk(self == Kind::Channel) }
    }
}

pub struct Problem {
    pub kind: Kind,
    pub batch: usize,
    pub time: usize,
    /// Query, key and value heads.
    pub heads: [usize; 3],
    /// Width of keys and values; channels of a scan.
    pub dim: usize,
    /// q, k, v, z or z, u; the first state; the gradients of the results and of the last state.
    pub inputs: Vec<HostTensor>,
    pub exact: [OnceCell<Results>; 2],
}

/// Written whether or not the test passes: the test runner catches `println!`, not this.
pub fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

pub fn devices() -> Vec<Device> {
    let adapter = Context::adapters().into_iter().next();
    if adapter.is_none() {
        assert!(std::env::var_os("LYNX_REQUIRE_GPU").is_none(), "LYNX_REQUIRE_GPU is set and no GPU adapter was found");
        say("SKIPPED: no GPU adapter (install mesa-vulkan-drivers for a software one)");
    }
    let gpu =
        adapter.map(|a| Device::Gpu(Context::open(&a, Options::default()).expect("an adapter that is listed opens")));
    std::iter::once(Device::Cpu).chain(gpu).collect()
}

pub fn e_max(have: &[f64], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len());
    let size = want.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
    // A NaN must not be lost in a maximum.
    have.iter().zip(want).map(|(h, w)| (h - w).abs() / size).fold(0.0, |m, x| if x <= m { m } else { x })
}

pub fn e_rms(have: &[f64], want: &[f64]) -> f64 {
    assert_eq!(have.len(), want.len());
    let rms = |x: &mut dyn Iterator<Item = f64>| (x.map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    rms(&mut have.iter().zip(want).map(|(h, w)| h - w)) / (rms(&mut want.iter().copied()) + 1e-8)
}

/// Whether gate `i` is among the one in `every` that are shut, by a hash.
pub fn shut(i: usize, every: u64) -> bool {
    SplitMix(i as u64 * 77 + 5).next_u64().is_multiple_of(every)
}

fn noise(shape: &[usize], scale: f64, shift: f64, seed: u64) -> HostTensor {
    let mut rng = SplitMix(seed);
    let n = shape.iter().product();
    HostTensor::f32(shape, (0..n).map(|_| (scale * rng.normal() + shift) as f32).collect())
}

impl Problem {
    /// Normal operands; logits of the gates are normal around `bias`. A scan has no heads.
    pub fn new(kind: Kind, batch: usize, time: usize, heads: [usize; 3], dim: usize, bias: f64) -> Self {
        let [h, hk, hv] = heads;
        let exact = [OnceCell::new(), OnceCell::new()];
        let logits = |shape: &[usize]| noise(shape, 1.0, bias, 4);
        let normal = |shape: &[usize], seed| noise(shape, 1.0, 0.0, seed);
        let inputs = if kind == Kind::Scan {
            let all = [batch, time, dim];
            let state = [batch, dim];
            vec![logits(&all), normal(&all, 1), normal(&state, 5), normal(&all, 6), normal(&state, 7)]
        } else {
            let gates: &[usize] = if kind == Kind::Channel { &[batch, time, h, dim] } else { &[batch, time, h] };
            let state = [batch, h, dim, dim];
            vec![
                noise(&[batch, time, h, dim], (dim as f64).powf(-0.5), 0.0, 1),
                normal(&[batch, time, hk, dim], 2),
                normal(&[batch, time, hv, dim], 3),
                logits(gates),
                normal(&state, 5),
                normal(&[batch, time, h, dim], 6),
                normal(&state, 7),
            ]
        };
        Problem { kind, batch, time, heads, dim, inputs, exact }
    }

    fn logits_at(&self) -> usize {
        if self.kind == Kind::Scan { 0 } else { 3 }
    }
    pub fn values(&self, i: usize) -> &[f32] {
        self.inputs[i].as_f32().unwrap()
    }
    fn replace(&mut self, at: usize, f: impl Fn(usize) -> f64) {
        let ty = self.inputs[at].ty();
        self.inputs[at] = HostTensor::f32(&ty.shape, (0..ty.elements()).map(|i| f(i) as f32).collect());
        self.exact = [OnceCell::new(), OnceCell::new()];
    }
    pub fn set_logits(&mut self, f: impl Fn(usize) -> f64) {
        self.replace(self.logits_at(), f);
    }
    pub fn clear_first(&mut self) {
        self.replace(self.inputs.len() - 3, |_| 0.0);
    }

    /// The form with this chunk (0: recurrent) and its gradients; `last`: with a gradient of the last state.
    pub fn graph(&self, chunk: usize, last: bool) -> Graph {
        let mut graph = Graph::new();
        let x: Vec<Value> =
            self.inputs.iter().enumerate().map(|(i, x)| graph.input(&format!("x{i}"), x.ty())).collect();
        let z = x[self.logits_at()];
        let a = graph.log_sigmoid(z).unwrap();
        let [first, d_o, d_last] = x[x.len() - 3..] else { unreachable!("every problem has three such operands") };
        let (outputs, mut wrt) = match self.kind {
            Kind::Scan => {
                let op = GatedScan { chunk, initial: true, gate: Gate::Log };
                (graph.apply(op, &[a, x[1], first]).unwrap(), vec![("u", x[1])])
            }
            kind => {
                let op = Gla { channel_gates: kind == Kind::Channel, chunk, initial: true };
                (graph.apply(op, &[x[0], x[1], x[2], a, first]).unwrap(), vec![("q", x[0]), ("k", x[1]), ("v", x[2])])
            }
        };
        wrt.extend([("a", a), ("z", z), ("first", first)]);
        let mut seeds = vec![(outputs[0], d_o)];
        seeds.extend(last.then_some((outputs[1], d_last)));
        let values: Vec<Value> = wrt.iter().map(|(_, v)| *v).collect();
        graph.output("o", outputs[0]);
        graph.output("last", outputs[1]);
        for ((name, _), g) in wrt.iter().zip(graph.vector_jacobian(&seeds, &values).unwrap()) {
            graph.output(name, g);
        }
        graph
    }

    /// The definition in f64, nothing rounded between operators.
    pub fn exact(&self, last: bool) -> Results {
        let make = || {
            let plan = Plan::new(&self.graph(0, last)).unwrap();
            let mut store = Store::new(&Device::Reference);
            let runner = reference::Runner::new(plan.work.clone(), &mut store).unwrap().exact();
            results(runner, &plan, &self.inputs)
        };
        self.exact[usize::from(last)].get_or_init(make).clone()
    }

    /// o and the last state by the builders, of time up to `cut` and then from there; 0: in one.
    pub fn in_parts(&self, device: &Device, cut: usize) -> [Vec<f64>; 2] {
        let mut outputs = [vec![], vec![]];
        let mut state = self.inputs[self.inputs.len() - 3].clone();
        let mut parts = vec![];
        for times in [0..cut, cut..self.time].into_iter().filter(|t| !t.is_empty()) {
            let mut graph = Graph::new();
            let count = self.inputs.len() - 3;
            let mut inputs: Vec<HostTensor> = self.inputs[..count].iter().map(|x| cut_time(x, &times)).collect();
            inputs.push(state);
            let x: Vec<Value> = inputs.iter().enumerate().map(|(i, x)| graph.input(&format!("x{i}"), x.ty())).collect();
            let a = graph.log_sigmoid(x[self.logits_at()]).unwrap();
            let (o, last) = match self.kind {
                Kind::Scan => graph.scan(a, x[1], Some(x[2])),
                Kind::Head => graph.gla_head(x[0], x[1], x[2], a, Some(x[4])),
                Kind::Channel => graph.gla_channel(x[0], x[1], x[2], a, Some(x[4])),
            }
            .unwrap();
            graph.output("o", o);
            graph.output("last", last);
            let mut have = on(device, &graph, &inputs);
            let last = have.pop().unwrap().1;
            state = HostTensor::f32(&self.inputs[count].ty().shape, last.iter().map(|x| *x as f32).collect());
            parts.push((times.len(), have.pop().unwrap().1));
            outputs[1] = last;
        }
        // Batch rows of the parts, side by side.
        for b in 0..self.batch {
            for (_, part) in &parts {
                let row = part.len() / self.batch;
                outputs[0].extend_from_slice(&part[b * row..(b + 1) * row]);
            }
        }
        outputs
    }

    /// A scan as linear attention with a head of one number for every channel.
    pub fn as_heads_of_one(&self) -> Problem {
        let (b, t, c) = (self.batch, self.time, self.dim);
        let ones = || HostTensor::f32(&[b, t, c, 1], vec![1.0; b * t * c]);
        let shaped = |i: usize, shape: &[usize]| HostTensor::f32(shape, self.values(i).to_vec());
        let (all, state) = ([b, t, c, 1], [b, c, 1, 1]);
        let inputs = vec![
            ones(),
            ones(),
            shaped(1, &all),
            shaped(0, &[b, t, c]),
            shaped(2, &state),
            shaped(3, &all),
            shaped(4, &state),
        ];
        Problem { inputs, ..Problem::new(Kind::Head, b, t, [c, c, c], 1, 0.0) }
    }

    /// Gates of heads repeated for every key channel.
    pub fn with_channel_gates(&self) -> Problem {
        let mut p = Problem::new(Kind::Channel, self.batch, self.time, self.heads, self.dim, 0.0);
        let gates = self.values(3).to_vec();
        p.inputs = self.inputs.iter().map(|x| HostTensor::f32(&x.ty().shape, x.as_f32().unwrap().to_vec())).collect();
        p.inputs[3] =
            HostTensor::f32(&[self.batch, self.time, self.heads[0], self.dim], vec![0.0; gates.len() * self.dim]);
        p.set_logits(|i| gates[i / self.dim] as f64);
        p
    }

    /// Where head `h` (of `self.heads[0]`) has its row in a tensor of `heads` heads.
    fn row(&self, b: usize, t: usize, h: usize, heads: usize) -> usize {
        ((b * self.time + t) * heads + h * heads / self.heads[0]) * self.dim
    }

    /// o_t = sum over the steps s with `keep(t, s)` of (q_t . k_s) v_s, in f64.
    pub fn scores_times_values(&self, keep: impl Fn(usize, usize) -> bool) -> Vec<f64> {
        let [h_all, hk, hv] = self.heads;
        let (q, k, v, d) = (self.values(0), self.values(1), self.values(2), self.dim);
        let mut o = vec![0.0; q.len()];
        for (b, h) in (0..self.batch).flat_map(|b| (0..h_all).map(move |h| (b, h))) {
            for t in 0..self.time {
                for s in (0..=t).filter(|s| keep(t, *s)) {
                    let (at_q, at_k, at_v) = (self.row(b, t, h, h_all), self.row(b, s, h, hk), self.row(b, s, h, hv));
                    let score: f64 = (0..d).map(|c| q[at_q + c] as f64 * k[at_k + c] as f64).sum();
                    (0..d).for_each(|e| o[at_q + e] += score * v[at_v + e] as f64);
                }
            }
        }
        o
    }

    /// o of heads by the textbook: powers of e to differences of cumulative sums in f32; all else in f64.
    pub fn by_differences(&self, chunk: usize) -> Vec<f64> {
        let [h_all, hk, hv] = self.heads;
        let (q, k, v, d) = (self.values(0), self.values(1), self.values(2), self.dim);
        let mut o = vec![0.0; q.len()];
        for (b, h) in (0..self.batch).flat_map(|b| (0..h_all).map(move |h| (b, h))) {
            let first = (b * h_all + h) * d * d;
            let mut state: Vec<f64> = self.values(4)[first..first + d * d].iter().map(|x| *x as f64).collect();
            for begin in (0..self.time).step_by(chunk) {
                let end = (begin + chunk).min(self.time);
                let mut sums = vec![];
                for t in begin..end {
                    let z = self.values(3)[(b * self.time + t) * h_all + h] as f64;
                    let a = (z.min(0.0) - (-z.abs()).exp().ln_1p()) as f32;
                    sums.push(sums.last().copied().unwrap_or(0.0f32) + a);
                }
                for t in begin..end {
                    let at_q = self.row(b, t, h, h_all);
                    let carried = (sums[t - begin] as f64).exp();
                    for (at, s) in state.iter().enumerate() {
                        o[at_q + at % d] += carried * q[at_q + at / d] as f64 * s;
                    }
                    for s in begin..=t {
                        let (at_k, at_v) = (self.row(b, s, h, hk), self.row(b, s, h, hv));
                        let power = ((sums[t - begin] - sums[s - begin]) as f64).exp();
                        let score: f64 = (0..d).map(|c| q[at_q + c] as f64 * k[at_k + c] as f64).sum();
                        (0..d).for_each(|e| o[at_q + e] += power * score * v[at_v + e] as f64);
                    }
                }
                let total = *sums.last().unwrap();
                state.iter_mut().for_each(|s| *s *= (total as f64).exp());
                for s in begin..end {
                    let (at_k, at_v) = (self.row(b, s, h, hk), self.row(b, s, h, hv));
                    let power = ((total - sums[s - begin]) as f64).exp();
                    for (at, x) in state.iter_mut().enumerate() {
                        *x += power * k[at_k + at / d] as f64 * v[at_v + at % d] as f64;
                    }
                }
            }
        }
        o
    }
}

/// The steps `times` of a tensor [batch, time, ...].
fn cut_time(x: &HostTensor, times: &std::ops::Range<usize>) -> HostTensor {
    let ty = x.ty();
    let step: usize = ty.shape[2..].iter().product();
    let rows = x.as_f32().unwrap().chunks(ty.shape[1] * step);
    let values = rows.flat_map(|row| row[times.start * step..times.end * step].to_vec()).collect();
    let mut shape = ty.shape.clone();
    shape[1] = times.len();
    HostTensor::f32(&shape, values)
}

/// Runs a graph with inputs x0, x1, ..
pub fn on(device: &Device, graph: &Graph, inputs: &[HostTensor]) -> Results {
    let plan = Plan::new(graph).unwrap();
    let mut store = Store::new(device);
    let mut executable = plan.prepare(&mut store).unwrap();
    for (i, x) in inputs.iter().enumerate() {
        executable.write_input(&format!("x{i}"), x).unwrap();
    }
    executable.run().unwrap();
    assert_eq!(executable.notes().fallback, Vec::<String>::new(), "on the CPU twin");
    let mut read = |name: &String| {
        let value = executable.read_output(name).unwrap();
        (name.clone(), value.as_f32().unwrap().iter().map(|x| *x as f64).collect())
    };
    plan.work.outputs.iter().map(|(name, _)| read(name)).collect()
}

fn results(mut runner: reference::Runner, plan: &Plan, inputs: &[HostTensor]) -> Results {
    for (i, x) in inputs.iter().enumerate() {
        runner.write_f64(&format!("x{i}"), x.to_f64()).unwrap();
    }
    runner.run().unwrap();
    plan.work.outputs.iter().map(|(name, _)| (name.clone(), runner.read_f64(name).unwrap().data)).collect()
}

/// Holds a form on a device against the definition: o and the last state by `e_max`, gradients by `e_rms`.
pub fn compare(p: &Problem, device: &Device, chunk: usize, last: bool, [values, gradients]: [f64; 2]) {
    let have = on(device, &p.graph(chunk, last), &p.inputs);
    for ((name, have), (other, want)) in have.iter().zip(&p.exact(last)) {
        assert_eq!(name, other);
        let value = name == "o" || name == "last";
        let (error, bound) = if value { (e_max(have, want), values) } else { (e_rms(have, want), gradients) };
        let what = format!("{:?} x {} steps, chunk {chunk}, {name} on {}", p.kind, p.time, device.name());
        assert!(error <= bound, "{what}: {error:e} above {bound:e}");
    }
}
