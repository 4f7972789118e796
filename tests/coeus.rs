//! The coeus models: sizes, causality, that every device computes the same, that they learn.

use lynx_gpu::config::{Config, ModelConfig, OptimizerConfig, PRESETS};
use lynx_gpu::data::rng::SplitMix64;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Executable, Store};
use lynx_gpu::graph::{Plan, Precision};
use lynx_gpu::models::session::graphs;
use lynx_gpu::models::{LanguageModel, setup};
use lynx_gpu::tensor::HostTensor;
use lynx_gpu::train::model::StepInfo;
use std::collections::BTreeMap;

#[path = "coeus/forms.rs"]
mod forms;
#[path = "coeus/local.rs"]
mod local;
#[path = "coeus/memory.rs"]
mod memory;
#[path = "coeus/mixing.rs"]
mod mixing;

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

const VERSIONS: [&str; 6] = ["v1", "v2", "v2.5", "v2.6", "v3.0", "v3.1"];
const SIZES: [&str; 3] = ["tiny", "mini", "nano"];

fn gpu() -> Option<Device> {
    match Context::adapters().into_iter().next() {
        Some(a) => Some(Device::Gpu(Context::open(&a, Options::default()).unwrap())),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => panic!("LYNX_REQUIRE_GPU is set and there is no GPU"),
        None => {
            say!("SKIPPED: no GPU adapter");
            None
        }
    }
}

fn config(version: &str, size: &str, vocab_size: usize, sets: &[&str]) -> ModelConfig {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut config = Config::load(&format!("coeus-{version}-{size}"), &sets).unwrap().0;
    config.set_vocab_size(vocab_size).unwrap();
    config.model
}

fn tiny(version: &str, vocab_size: usize, sets: &[&str]) -> Box<dyn LanguageModel> {
    setup::model(&config(version, "tiny", vocab_size, sets)).unwrap()
}

/// A plan of a model in a device's memory, its weights as they start from seed 1.
struct Ready {
    exe: Box<dyn Executable>,
    shape: (usize, usize),
}

impl Ready {
    fn new(model: &dyn LanguageModel, graph: &lynx_gpu::graph::Graph, shape: (usize, usize), device: &Device) -> Self {
        let plan = Plan::new(graph).unwrap();
        let mut store = Store::new(device);
        let exe = plan.prepare(&mut store).unwrap();
        for p in model.parameters().unwrap() {
            store.write(&p.name, &p.initial(1)).unwrap();
        }
        Ready { exe, shape }
    }

    fn run(&mut self, tokens: &[i32], targets: &[i32]) {
        let shape = [self.shape.0, self.shape.1];
        self.exe.write_input("tokens", &HostTensor::i32(&shape, tokens.to_vec())).unwrap();
        self.exe.write_input("targets", &HostTensor::i32(&shape, targets.to_vec())).unwrap();
        let valid = targets.iter().filter(|t| **t >= 0).count();
        self.exe.write_input("inverse_tokens", &HostTensor::scalar(1.0 / valid as f32)).unwrap();
        self.exe.run().unwrap();
    }

    fn read(&mut self, name: &str) -> Vec<f64> {
        self.exe.read_output(name).unwrap().to_f64().data
    }
}

fn random(n: usize, below: u64, seed: u64) -> Vec<i32> {
    let mut rng = SplitMix64::new(seed);
    (0..n).map(|_| rng.below(below) as i32).collect()
}

/// Every entry of the specification's table of sizes, against the closed form and against the weights a model writes.
#[test]
fn parameter_counts_are_the_specified_ones() {
    let want: [(&str, usize, [u64; 6]); 5] = [
        ("tiny", 65, [236_570, 236_570, 205_850, 214_586, 351_744, 368_114]),
        ("mini", 65, [1_842_868, 1_842_868, 1_597_108, 1_668_916, 2_770_560, 2_900_548]),
        ("nano", 65, [11_070_030, 11_070_030, 9_497_166, 9_933_774, 16_556_544, 17_333_574]),
        ("nano", 259, [11_144_526, 11_144_526, 9_571_662, 10_008_270, 16_631_040, 17_408_070]),
        ("nano", 50_257, [30_343_758, 30_343_758, 28_770_894, 29_207_502, 35_830_272, 36_607_302]),
    ];
    for (size, vocab_size, counts) in want {
        for (version, count) in VERSIONS.into_iter().zip(counts) {
            let config = config(version, size, vocab_size, &[]);
            assert_eq!(config.parameter_count(), count, "{version} {size} {vocab_size}");
            let parameters = setup::model(&config).unwrap().parameters().unwrap();
            assert_eq!(parameters.iter().map(|p| p.elements() as u64).sum::<u64>(), count, "{version} {size}");
        }
    }
    // Four layers of the third version have the parameters of six of the first, to 0.2 %.
    assert_eq!(config("v3.0", "nano", 65, &["model.layers=4"]).parameter_count(), 11_046_144);
    let presets: Vec<&str> = PRESETS.iter().map(|p| p.name).filter(|n| n.starts_with("coeus-v")).collect();
    assert_eq!(presets.len(), VERSIONS.len() * SIZES.len());
}

#[test]
fn parameter_counts_hold_for_every_choice() {
    for sets in [
        vec!["model.recurrence=gla_channel"],
        vec!["model.recurrence=gla_channel", "model.forget_gate=mlp_half", "model.input_scale=false"],
        vec!["model.fusion=local_only", "model.positions=learned"],
        vec!["model.fusion=recurrent_only", "model.tied_head=false"],
        vec!["model.share_qkv=false", "model.fusion=judge", "model.forget_gate=mlp_full"],
        vec!["model.share_qkv=false", "model.fusion=recurrent_only", "model.kv_heads=0"],
        vec!["model.share_qkv=false", "model.recurrence=scan", "model.fusion=local_only"],
        vec!["model.share_qkv=false", "model.recurrence=scan", "model.fusion=judge", "model.input_scale=false"],
        vec!["model.use_episodic_mem=true", "model.mem_compression=3", "model.mem_source=mean"],
        vec!["model.share_qkv=false", "model.fusion=local_only", "model.use_episodic_mem=true"],
        vec!["model.ff_kind=gelu", "model.ff_width=0", "model.reason_iterations=3"],
    ] {
        let config = config("v2.5", "tiny", 65, &sets);
        let model = setup::model(&config).unwrap();
        let counted: usize = model.parameters().unwrap().iter().map(|p| p.elements()).sum();
        assert_eq!(config.parameter_count(), counted as u64, "{sets:?}");
    }
}

#[test]
fn settings_without_a_meaning_are_refused_by_name() {
    for (set, words) in [
        ("model.window=65", &["model.window = 65", "model.context = 64"][..]),
        ("model.window=0", &["model.window = 0"]),
        ("model.heads=7", &["96", "model.heads = 7"]),
        ("model.kv_heads=4", &["model.kv_heads = 4"]),
        ("model.positions=sinusoidal", &["model.positions", "learned", "rope"]),
        ("model.recurrence=scan", &["model.share_qkv"]),
        ("model.fusion=judge", &["model.fusion", "share_qkv"]),
        ("model.forget_bias_low=inf", &["model.forget_bias_low"]),
        ("model.reason_iterations=0", &["model.reason_iterations = 0"]),
        ("model.dropout=1", &["model.dropout = 1"]),
        ("model.layer=3", &["model.layer", "layers"]),
        ("model.local_mode=band", &["model.local_mode", "isolated_blocks"]),
    ] {
        let error = Config::load("coeus-v2.5-tiny", &[set.to_string()]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{set}");
        let message = error.to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{set}: {message}");
    }
}

/// ln V for tied heads that start small, and no more than a quarter above it.
#[test]
fn the_first_loss_is_about_ln_of_the_vocabulary() {
    for version in VERSIONS {
        for vocab_size in [65usize, 259] {
            let model = tiny(version, vocab_size, &[]);
            let shape = (4, 64);
            let graph = graphs::evaluation(model.as_ref(), shape, &Default::default()).unwrap();
            let mut ready = Ready::new(model.as_ref(), &graph, shape, &Device::Cpu);
            let tokens = random(4 * 65, vocab_size as u64, 5);
            ready.run(&tokens[..256], &tokens[4..260]);
            let nll = ready.read("nll");
            let excess = nll.iter().sum::<f64>() / nll.len() as f64 - (vocab_size as f64).ln();
            assert!((-0.05..=0.25).contains(&excess), "{version}, {vocab_size} tokens: {excess}");
        }
    }
}

/// Every position of a sequence is replaced in turn: what comes before keeps its bits, what is there changes, and the other row of
/// the batch keeps its bits.
#[test]
fn no_position_sees_the_future() {
    let (batch, time, vocab_size) = (2, 64, 40);
    for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
        for version in VERSIONS {
            let model =
                tiny(version, vocab_size, &["model.dropout=0", "model.forget_bias_low=5", "model.forget_bias_high=5"]);
            let graph = graphs::gradient_only(model.as_ref(), (batch, time)).unwrap();
            let mut ready = Ready::new(model.as_ref(), &graph, (batch, time), &device);
            let tokens = random(batch * time, vocab_size as u64, 3);
            let mut logits = |tokens: &[i32]| {
                ready.run(tokens, tokens);
                ready.read("logits")
            };
            let base = logits(&tokens);
            let every = if device.name() == Device::Cpu.name() { 1 } else { 7 };
            for t in (0..time).step_by(every) {
                let mut other = tokens.clone();
                other[t] = (other[t] + 17) % vocab_size as i32;
                let changed = logits(&other);
                let row = |at: usize| at * vocab_size..(at + 1) * vocab_size;
                for at in (0..t).chain(time..2 * time) {
                    assert_eq!(base[row(at)], changed[row(at)], "{version} on {}: {t} moves {at}", device.name());
                }
                assert_ne!(base[row(t)], changed[row(t)], "{version} on {}: {t}", device.name());
            }
            // The recurrence carries what lies beyond all windows: the first token is felt at the last position.
            let mut other = tokens.clone();
            other[0] = (other[0] + 17) % vocab_size as i32;
            let changed = logits(&other);
            let last = (time - 1) * vocab_size..time * vocab_size;
            let most = base[last.clone()].iter().zip(&changed[last]).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(most > 1e-7, "{version} on {}: the first token is forgotten, {most:e}", device.name());
        }
    }
}

/// The loss of one position alone sends no gradient to any later token: not a small one, none. Every position has a token of its own,
/// and a head of its own keeps the embedding's gradient to what the input got.
#[test]
fn no_gradient_flows_to_the_future() {
    let time = 64;
    for version in VERSIONS {
        let model = tiny(version, time, &["model.dropout=0", "model.tied_head=false"]);
        let width = 96;
        let graph = graphs::gradient_only(model.as_ref(), (1, time)).unwrap();
        let mut ready = Ready::new(model.as_ref(), &graph, (1, time), &Device::Cpu);
        let tokens: Vec<i32> = (0..time as i32).map(|i| (i * 29 + 5) % time as i32).collect();
        for t in 0..time {
            let mut targets = vec![-1; time];
            targets[t] = 3;
            ready.run(&tokens, &targets);
            let gradient = ready.read("gradient.model.embed_tokens.weight");
            let of = |s: usize| &gradient[tokens[s] as usize * width..][..width];
            assert!(of(t).iter().any(|g| *g != 0.0), "{version}: {t} sends nothing to itself");
            for s in t + 1..time {
                assert!(of(s).iter().all(|g| *g == 0.0), "{version}: {t} sends a gradient to {s}");
            }
        }
    }
}

/// The whole model with its gradients, on the CPU and the GPU against f64.
#[test]
fn every_device_computes_the_same_logits_and_gradients() {
    let shape = (2, 50);
    let tokens = random(101, 33, 11);
    for version in VERSIONS {
        let model = tiny(version, 33, &["model.dropout=0"]);
        let graph = graphs::gradient_only(model.as_ref(), shape).unwrap();
        let names: Vec<String> = model.parameters().unwrap().into_iter().map(|p| p.name).collect();
        let run = |device: &Device| -> BTreeMap<String, Vec<f64>> {
            let mut ready = Ready::new(model.as_ref(), &graph, shape, device);
            ready.run(&tokens[..100], &tokens[1..]);
            let gradients = names.iter().map(|n| format!("gradient.{n}"));
            ["logits".to_owned(), "loss".to_owned()]
                .into_iter()
                .chain(gradients)
                .map(|n| (n.clone(), ready.read(&n)))
                .collect()
        };
        let want = run(&Device::Reference);
        let rms = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let global =
            rms(&mut want.iter().filter(|(n, _)| n.starts_with("gradient")).flat_map(|(_, v)| v.iter().copied()));
        for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
            let mut worst = (0.0, "");
            let have = run(&device);
            for (name, values) in &want {
                let own = rms(&mut values.iter().copied());
                let scale = if name.starts_with("gradient") { own.max(1e-4 * global) } else { own };
                let error = rms(&mut values.iter().zip(&have[name]).map(|(a, b)| a - b)) / scale;
                assert!(error < 5e-4, "{version} on {}: {name} differs by {error:e}", device.name());
                if error > worst.0 {
                    worst = (error, name);
                }
            }
            say!("{version} on {}: {} tensors, the worst {} by {:.1e}", device.name(), want.len(), worst.1, worst.0);
        }
    }
}

/// Two sequences are learnt by heart.
#[test]
fn one_batch_is_learnt_by_heart() {
    for version in VERSIONS {
        let model = tiny(version, 65, &["model.dropout=0"]);
        let shape = (2, 64);
        let optimizer = OptimizerConfig { weight_decay: 0.0, clip: 1.0, ..Default::default() };
        let graph = graphs::whole_step(model.as_ref(), &optimizer, shape, Precision::F32).unwrap();
        let mut ready = Ready::new(model.as_ref(), &graph, shape, &Device::Cpu);
        let tokens = random(129, 65, 7);
        let mut loss = f64::INFINITY;
        let mut steps = 0;
        while loss >= 0.05 && steps < 150 {
            steps += 1;
            let info = StepInfo { step: steps, lr: 2e-3, seed: 0, target_tokens: 0 };
            graphs::write_hyper(ready.exe.as_mut(), &optimizer, &info).unwrap();
            ready.run(&tokens[..128], &tokens[1..]);
            loss = ready.read("loss")[0];
        }
        assert!(loss < 0.05, "{version}: {loss} after {steps} steps");
        say!("{version}: {loss:.3} after {steps} steps");
    }
}

/// One round of thought is the plain block, and any number has the same weights.
#[test]
fn rounds_of_thought_share_their_weights() {
    let names = |rounds: &str| -> Vec<String> {
        let model = tiny("v3.0", 65, &[&format!("model.reason_iterations={rounds}")]);
        model.parameters().unwrap().into_iter().map(|p| p.name).collect()
    };
    assert_eq!(names("1"), names("3"));
}
