use super::*;
use crate::device::gpu::{Context, Options};
use crate::device::{Device, Executable, Store};
use crate::graph::{Plan, Role};
use crate::tensor::HostTensor;

fn devices() -> Vec<Device> {
    let adapter = Context::adapters().into_iter().next();
    let gpu = adapter.map(|a| Device::Gpu(Context::open(&a, Options::default()).expect("a listed adapter opens")));
    if gpu.is_none() {
        eprintln!("SKIPPED on the GPU: no adapter");
    }
    [Device::Cpu].into_iter().chain(gpu).collect()
}

/// AdamW on one number theta: its gradient is an input (`quadratic`: the gradient of theta^2 instead).
struct Bench {
    op: AdamW,
    store: Store,
    run: Box<dyn Executable>,
    quadratic: bool,
}

impl Bench {
    fn new(device: &Device, op: AdamW, theta: f32, quadratic: bool) -> Bench {
        let mut g = Graph::new();
        let scalar = TensorType::f32(&[1]);
        let p = g.variable("p", Role::Parameter, scalar.clone()).unwrap();
        let [m, v] = ["m", "v"].map(|n| g.variable(n, Role::Optimizer, scalar.clone()).unwrap());
        let hyper = g.input("hyper", TensorType::f32(&[4]));
        let scale = g.constant(HostTensor::scalar(1.0));
        let grad = if quadratic {
            let square = g.mul(p, p).unwrap();
            let loss = g.sum_all(square).unwrap();
            g.gradients(loss, &[p]).unwrap()[0]
        } else {
            g.input("grad", scalar)
        };
        g.adamw(op.clone(), (p, grad, m, v), hyper, scale).unwrap();
        let mut store = Store::new(device);
        let run = Plan::new(&g).unwrap().prepare(&mut store).unwrap();
        store.write("p", &HostTensor::f32(&[1], vec![theta])).unwrap();
        Bench { op, store, run, quadratic }
    }

    fn step(&mut self, hyper: [f32; 4], grad: f32) -> f32 {
        self.run.write_input("hyper", &HostTensor::f32(&[4], hyper.to_vec())).unwrap();
        if !self.quadratic {
            self.run.write_input("grad", &HostTensor::f32(&[1], vec![grad])).unwrap();
        }
        self.run.run().unwrap();
        self.store.read("p").unwrap().as_f32().unwrap()[0]
    }
}

fn adam(beta2: f32, weight_decay: f32) -> AdamW {
    AdamW { beta1: 0.9, beta2, eps: 1e-8, weight_decay }
}

/// theta .4, g .01, lr 3e-4, decay .1: m = .001, v = 5e-6, so m / sqrt(v) = .44721 raw and 1 corrected.
#[test]
fn one_step_by_hand() {
    for device in devices() {
        let near = |x: f32, y: f64| assert!((x as f64 - y).abs() < 6e-8, "{x} is not {y} on {}", device.name());
        let raw = Bench::new(&device, adam(0.95, 0.1), 0.4, false).step([3e-4, 1.0, 1.0, 1.0], 0.01);
        near(raw, 0.4 - 3e-4 * (0.001 / 5e-6f64.sqrt() + 0.04));
        let mut corrected = Bench::new(&device, adam(0.95, 0.1), 0.4, false);
        let hyper = corrected.op.hyper(3e-4, 1, 1.0);
        near(corrected.step(hyper, 0.01), 0.4 - 3e-4 * (1.0 + 0.04));
        let mut without_decay = Bench::new(&device, adam(0.95, 0.1), 0.4, false);
        let hyper = without_decay.op.hyper(3e-4, 1, 0.0);
        near(without_decay.step(hyper, 0.01), 0.4 - 3e-4);
    }
}

#[test]
fn the_first_step_on_a_square_from_one_goes_to_nine_tenths_and_a_hundred_follow_f64() {
    for device in devices() {
        let op = adam(0.999, 0.0);
        let mut bench = Bench::new(&device, op.clone(), 1.0, true);
        let (mut p, mut m, mut v) = (1.0f64, 0.0, 0.0);
        let (b1, b2) = (op.beta1 as f64, op.beta2 as f64);
        for t in 1..=100 {
            let have = bench.step(op.hyper(0.1, t, 1.0), 0.0);
            let g = 2.0 * p;
            m = b1 * m + (1.0 - b1) * g;
            v = b2 * v + (1.0 - b2) * g * g;
            let (mc, vc) = (m / (1.0 - b1.powf(t as f64)), v / (1.0 - b2.powf(t as f64)));
            p -= 0.1 * mc / (vc.sqrt() + 1e-8);
            if t == 1 {
                assert!((have - 0.9).abs() < 1e-6, "{have} on {}", device.name());
            }
            // Each step adds about ten roundings of numbers below 1, and the descent does not amplify them.
            let tolerance = 10.0 * t as f64 * f32::EPSILON as f64;
            assert!((have as f64 - p).abs() < tolerance, "step {t}: {have}, f64 {p} on {}", device.name());
        }
    }
}

#[test]
fn clipping_scales_every_gradient_by_one_factor() {
    for device in devices() {
        let mut g = Graph::new();
        let a = g.input("a", TensorType::f32(&[2]));
        let b = g.input("b", TensorType::f32(&[1, 1]));
        let norm = g.global_norm(&[a, b]).unwrap();
        for (name, max) in [("clipped", 6.5), ("kept", 20.0)] {
            let scale = g.clip_scale(norm, max).unwrap();
            g.output(name, scale);
        }
        g.output("norm", norm);
        let mut run = Plan::new(&g).unwrap().prepare(&mut Store::new(&device)).unwrap();
        let mut with = |a: [f32; 2], b: f32| {
            run.write_input("a", &HostTensor::f32(&[2], a.to_vec())).unwrap();
            run.write_input("b", &HostTensor::f32(&[1, 1], vec![b])).unwrap();
            run.run().unwrap();
            ["norm", "clipped", "kept"].map(|n| run.read_output(n).unwrap().as_f32().unwrap()[0])
        };
        assert_eq!(with([3.0, 4.0], 12.0), [13.0, 0.5, 1.0]);
        assert_eq!(with([0.0, 0.0], 0.0), [0.0, 1.0, 1.0]);
    }
}

#[test]
fn a_step_that_is_not_the_variables_update_is_refused() {
    let mut g = Graph::new();
    let [p, m, v] = ["p", "m", "v"].map(|n| g.variable(n, Role::State, TensorType::f32(&[2])).unwrap());
    let (hyper, scale) = (g.input("hyper", TensorType::f32(&[4])), g.constant(HostTensor::scalar(1.0)));
    let out = g.apply(adam(0.999, 0.0), &[p, p, m, v, hyper, scale]).unwrap();
    g.output("p", out[0]);
    let message = Plan::new(&g).unwrap_err().to_string();
    assert!(message.contains("in place"), "{message}");
}
