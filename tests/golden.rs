//! The gpt model against PyTorch: logits, loss, every gradient, ten AdamW losses. `golden/make_golden.py` made the values.

use lynx_gpu::config::{FeedForward, GptConfig, Init, Norm, OptimizerConfig, Positions, RopeLayout};
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Executable, Store};
use lynx_gpu::graph::{Plan, Precision};
use lynx_gpu::models::gpt::Gpt;
use lynx_gpu::models::session::graphs;
use lynx_gpu::tensor::HostTensor;
use lynx_gpu::train::model::StepInfo;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

fn load(name: &str) -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let number = |dtype: Dtype, c: &[u8]| {
        let word = [c[0], c[1], c[2], c[3]];
        if dtype == Dtype::F32 { f32::from_le_bytes(word) as f64 } else { i32::from_le_bytes(word) as f64 }
    };
    let tensor = |(n, t): (String, safetensors::tensor::TensorView)| {
        let values = t.data().chunks_exact(4).map(|c| number(t.dtype(), c)).collect();
        (n, (t.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn variants() -> [(&'static str, GptConfig); 2] {
    let base = GptConfig {
        layers: 2,
        heads: 4,
        kv_heads: 0,
        width: 32,
        context: 16,
        vocab_size: 61,
        init: Init::Gpt2,
        ..GptConfig::default()
    };
    let first = GptConfig {
        ff_width: 96,
        ff_kind: FeedForward::Gelu,
        norm: Norm::Layernorm,
        norm_bias: true,
        attention_bias: true,
        ff_bias: true,
        tied_head: true,
        positions: Positions::Learned,
        ..base.clone()
    };
    let second = GptConfig {
        kv_heads: 2,
        ff_width: 80,
        ff_kind: FeedForward::Swiglu,
        norm: Norm::Rmsnorm,
        norm_eps: 1e-6,
        norm_bias: false,
        attention_bias: false,
        ff_bias: false,
        tied_head: false,
        positions: Positions::Rope,
        rope_layout: RopeLayout::HalfSplit,
        ..base
    };
    [("layernorm-gelu-learned", first), ("rmsnorm-swiglu-rope-gqa", second)]
}

fn host(t: &(Vec<usize>, Vec<f64>)) -> HostTensor {
    HostTensor::f32(&t.0, t.1.iter().map(|v| *v as f32).collect())
}

fn host_i32(t: &(Vec<usize>, Vec<f64>)) -> HostTensor {
    HostTensor::i32(&t.0, t.1.iter().map(|v| *v as i32).collect())
}

fn write_weights(golden: &Tensors, store: &mut Store) {
    let weights: Vec<_> = golden.iter().filter_map(|(n, t)| n.strip_prefix("weights/").map(|n| (n, t))).collect();
    let names: Vec<String> = store.names().map(|(n, _)| n.to_string()).collect();
    for (name, t) in &weights {
        assert!(names.iter().any(|n| n == name), "the model has no weight {name}: {names:?}");
        store.write(name, &host(t)).unwrap();
    }
}

fn write_batch(exe: &mut dyn Executable, golden: &Tensors) {
    let valid = golden["targets"].1.iter().filter(|t| **t >= 0.0).count();
    exe.write_input("tokens", &host_i32(&golden["tokens"])).unwrap();
    exe.write_input("targets", &host_i32(&golden["targets"])).unwrap();
    exe.write_input("inverse_tokens", &HostTensor::scalar(1.0 / valid as f32)).unwrap();
}

fn largest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (x, y)| m.max((x - y).abs()))
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Error relative to the gradient's norm. The gradient of a key bias is zero in exact arithmetic (softmax ignores what is added to a
/// whole row of scores), so what rounding leaves of it is measured against the global norm instead.
fn relative_norm(have: &[f64], want: &[f64], global: f64) -> f64 {
    let own = norm(want.iter().copied());
    norm(have.iter().zip(want).map(|(h, w)| h - w)) / if own > 1e-6 * global { own } else { global }
}

fn agrees_with_pytorch(device: &Device) {
    for (name, config) in variants() {
        let golden = load(name);
        let model = Gpt::new(config).unwrap();
        let (batch, time) = (golden["tokens"].0[0], golden["tokens"].0[1]);

        let graph = graphs::gradient_only(&model, (batch, time)).unwrap();
        let plan = Plan::new(&graph).unwrap();
        let mut store = Store::new(device);
        let mut exe = plan.prepare(&mut store).unwrap();
        write_weights(&golden, &mut store);
        write_batch(exe.as_mut(), &golden);
        exe.run().unwrap();
        let logits = exe.read_output("logits").unwrap().to_f64().data;
        let worst = largest(&logits, &golden["logits"].1);
        assert!(worst <= 1e-4, "{name} on {}: logits differ by {worst:e}", device.name());
        let loss = exe.read_output("loss").unwrap().to_f64().data[0];
        assert!((loss - golden["loss"].1[0]).abs() <= 1e-4, "{name}: loss {loss}");
        let mut checked = 0;
        let gradients = golden.iter().filter(|(k, _)| k.starts_with("grads/"));
        let global = norm(gradients.flat_map(|(_, t)| t.1.iter().copied()));
        for (key, want) in golden.iter().filter(|(k, _)| k.starts_with("grads/")) {
            let key = key.trim_start_matches("grads/");
            let have = exe.read_output(&format!("gradient.{key}")).unwrap().to_f64().data;
            let error = relative_norm(&have, &want.1, global);
            assert!(error <= 1e-3, "{name} on {}: gradient of {key} differs by {error:e}", device.name());
            checked += 1;
        }
        assert_eq!(checked, golden.keys().filter(|k| k.starts_with("weights/")).count());

        let optimizer =
            OptimizerConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0, ..Default::default() };
        let plan = Plan::new(&graphs::whole_step(&model, &optimizer, (batch, time), Precision::F32).unwrap()).unwrap();
        let mut store = Store::new(device);
        let mut exe = plan.prepare(&mut store).unwrap();
        write_weights(&golden, &mut store);
        write_batch(exe.as_mut(), &golden);
        for (step, want) in golden["losses"].1.iter().enumerate() {
            let info = StepInfo { step: step as u64 + 1, lr: 1e-3, seed: 0, target_tokens: 0 };
            graphs::write_hyper(exe.as_mut(), &optimizer, &info).unwrap();
            exe.run().unwrap();
            let loss = exe.read_output("loss").unwrap().to_f64().data[0];
            assert!((loss - want).abs() <= 1e-4, "{name} on {}: loss {step} is {loss}, PyTorch {want}", device.name());
        }
        say!("{name} on {}: logits within {worst:.1e}, {checked} gradients, ten losses", device.name());
    }
}

#[test]
fn the_reference_agrees_with_pytorch() {
    agrees_with_pytorch(&Device::Reference);
}

#[test]
fn the_cpu_agrees_with_pytorch() {
    agrees_with_pytorch(&Device::Cpu);
}

#[test]
fn the_gpu_agrees_with_pytorch() {
    match Context::adapters().into_iter().next() {
        Some(a) => agrees_with_pytorch(&Device::Gpu(Context::open(&a, Options::default()).unwrap())),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => panic!("LYNX_REQUIRE_GPU is set and there is no GPU"),
        None => say!("SKIPPED: no GPU adapter"),
    }
}
