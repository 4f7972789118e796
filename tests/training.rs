//! The engine under the training loop: counts, equivalences, bit-exact resumption, what happens when a device is lost.

use lynx_gpu::config::{Config, GptConfig, OptimizerConfig};
use lynx_gpu::data::{Cache, TrainBatches};
use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::Session;
use lynx_gpu::models::gpt::Gpt;
use lynx_gpu::models::setup;
use lynx_gpu::train::checkpoint::{ModelFiles, Which};
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{Batch, BatchSource, ModelState, StepInfo, TensorData, TrainModel};
use lynx_gpu::train::observer::{Event, Observer};
use lynx_gpu::train::outcome::Outcome;
use lynx_gpu::train::run_dir::RunDir;
use lynx_gpu::train::signals::Control;
use lynx_gpu::train::trainer::{Start, Training};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

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

fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain(gpu()).collect()
}

fn config(sets: &[&str]) -> Config {
    let small =
        ["model.width=32", "model.context=16", "train.batch_size=4", "data.batching=packed", "train.eval_interval=0"];
    let sets: Vec<String> = small.iter().chain(sets).map(|s| s.to_string()).collect();
    Config::load("minigpt", &sets).unwrap().0
}

fn session(config: &mut Config, device: &Device) -> (Session, TrainBatches, Prepared) {
    let data = Prepared::new(config, None, &Cache::disabled()).unwrap();
    let session = setup::training_session(config, &data.tokenizer, device.clone()).unwrap();
    let batches = data.train_batches(config).unwrap();
    (session, batches, data)
}

fn step(session: &mut Session, batches: &[Batch], step: u64) -> (f64, f64) {
    let target_tokens = batches.iter().map(|b| b.scored() as u64).sum();
    let stats = session.train_step(batches, &StepInfo { step, lr: 1e-3, seed: 42, target_tokens }).unwrap();
    (stats.loss, stats.grad_norm)
}

fn hash(state: &ModelState) -> String {
    let mut h = Sha256::new();
    for t in state.weights.iter().chain(&state.optimizer) {
        h.update(&t.name);
        if let TensorData::F32(v) = &t.data {
            v.iter().for_each(|x| h.update(x.to_bits().to_le_bytes()));
        }
    }
    h.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn the_graphs_own_parameter_table_matches_the_closed_formula() {
    for (sets, want) in [
        (vec!["model.vocab_size=64"], 103_680),
        (vec!["model.vocab_size=512"], 132_352),
        (vec!["model.vocab_size=512", "model.norm=rmsnorm", "model.ff_bias=false"], 131_392),
        (vec!["model.vocab_size=100", "model.kv_heads=2", "model.ff_kind=swiglu", "model.tied_head=false"], 0),
        (vec!["model.vocab_size=70", "model.positions=learned", "model.attention_bias=true"], 0),
    ] {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let config = Config::load("minigpt", &sets).unwrap().0;
        let model = setup::model(&config.model).unwrap();
        let counted: usize = model.parameters().unwrap().iter().map(|p| p.elements()).sum();
        assert_eq!(counted as u64, config.model.parameter_count(), "{sets:?}");
        if want > 0 {
            assert_eq!(counted, want, "{sets:?}");
        }
    }
}

#[test]
fn the_first_loss_is_about_ln_of_the_vocabulary() {
    let mut config = config(&[]);
    let (mut session, mut batches, _) = session(&mut config, &Device::Cpu);
    let batch = BatchSource::next_batch(&mut batches).unwrap();
    let sum = session.evaluate(&batch).unwrap();
    let (loss, uniform) = (sum.nll / sum.tokens as f64, (config.model.vocab_size() as f64).ln());
    assert!((loss - uniform).abs() < 0.35, "{loss} against ln V = {uniform}");
}

/// A change of one token moves no logits before it, and some from it on.
#[test]
fn no_position_sees_the_future() {
    let gpt = GptConfig { vocab_size: 40, context: 32, ..GptConfig::default() };
    let tokenizer = Prepared::new(&mut config(&["tokenizer.kind=char"]), None, &Cache::disabled()).unwrap().tokenizer;
    for device in devices() {
        let gpt = GptConfig { vocab_size: tokenizer.vocab_size().max(gpt.vocab_size), ..gpt.clone() };
        let model = Box::new(Gpt::new(gpt).unwrap());
        let mut s = Session::for_inference(model, tokenizer.clone(), OptimizerConfig::default(), device, 1).unwrap();
        let base: Vec<u32> = (0..32).map(|i| (i * 7 + 3) % 30).collect();
        for k in [1usize, 8, 16, 31] {
            let mut other = base.clone();
            other[k] = (other[k] + 5) % 30;
            let before = (s.next_logits(&base[..k]).unwrap(), s.next_logits(&other[..k]).unwrap());
            assert_eq!(before.0, before.1, "position {} sees token {k}", k - 1);
            assert_ne!(s.next_logits(&base[..=k]).unwrap(), s.next_logits(&other[..=k]).unwrap());
        }
    }
}

#[test]
fn accumulated_micro_batches_take_the_same_step_as_one_large_batch() {
    for device in devices() {
        let mut one = config(&["train.batch_size=8"]);
        let mut four = config(&["train.batch_size=2", "train.accumulation=4"]);
        let (mut a, mut batches, _) = session(&mut one, &device);
        let (mut b, _, _) = session(&mut four, &device);
        for n in 1..=3 {
            let whole = BatchSource::next_batch(&mut batches).unwrap();
            let rows = 2 * whole.context;
            let part = |i: usize| Batch {
                inputs: whole.inputs[i * rows..(i + 1) * rows].to_vec(),
                targets: whole.targets[i * rows..(i + 1) * rows].to_vec(),
                lengths: vec![whole.context as u32; 2],
                batch: 2,
                context: whole.context,
            };
            let parts: Vec<Batch> = (0..4).map(part).collect();
            let (x, y) = (step(&mut a, std::slice::from_ref(&whole), n), step(&mut b, &parts, n));
            assert!((x.0 - y.0).abs() < 1e-5 && (x.1 - y.1).abs() < 1e-4 * x.1, "step {n}: {x:?} {y:?}");
        }
    }
}

#[test]
fn cpu_and_gpu_take_the_same_fifty_steps_dropout_included() {
    let Some(gpu) = gpu() else { return };
    let mut c = config(&["model.dropout=0.1"]);
    let (mut cpu, mut batches, _) = session(&mut c.clone(), &Device::Cpu);
    let (mut other, _, _) = session(&mut c, &gpu);
    for n in 1..=50 {
        let batch = BatchSource::next_batch(&mut batches).unwrap();
        let (x, y) = (step(&mut cpu, std::slice::from_ref(&batch), n), step(&mut other, &[batch], n));
        assert!((x.0 - y.0).abs() < 1e-3, "step {n}: cpu {} gpu {}", x.0, y.0);
    }
}

/// The preset itself, on the text it is meant for, where that is at hand.
#[test]
fn shakespeare_char_cpu_takes_the_same_fifty_steps_on_cpu_and_gpu() {
    let shared = std::env::var_os("LYNX_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), Into::into);
    let text = shared.join("data/text/tinyshakespeare.txt");
    if !text.is_file() {
        say!("SKIPPED: {} is not there (set LYNX_SHARED)", text.display());
        return;
    }
    let Some(gpu) = gpu() else { return };
    let source = format!("data.source={}", text.display());
    let mut c = Config::load("shakespeare-char-cpu", &[source]).unwrap().0;
    let (mut cpu, mut batches, _) = session(&mut c, &Device::Cpu);
    let (mut other, _, _) = session(&mut c, &gpu);
    let mut worst = 0.0f64;
    for n in 1..=50 {
        let batch = [BatchSource::next_batch(&mut batches).unwrap()];
        let (x, y) = (step(&mut cpu, &batch, n), step(&mut other, &batch, n));
        worst = worst.max((x.0 - y.0).abs());
        assert!((x.0 - y.0).abs() < 1e-3, "step {n}: cpu {} gpu {}", x.0, y.0);
    }
    say!("shakespeare-char-cpu, 50 steps: losses within {worst:.1e} of the CPU's");
}

#[test]
fn a_tokenizer_larger_than_the_models_vocabulary_is_refused() {
    let tokenizer = Prepared::new(&mut config(&[]), None, &Cache::disabled()).unwrap().tokenizer;
    let model = Box::new(Gpt::new(GptConfig { vocab_size: 20, ..GptConfig::default() }).unwrap());
    let made = Session::for_inference(model, tokenizer, OptimizerConfig::default(), Device::Cpu, 1);
    let text = made.err().unwrap().to_string();
    assert!(text.contains("38 tokens") && text.contains("20"), "{text}");
}

#[test]
fn a_loss_that_is_not_finite_leaves_the_weights_alone_and_names_the_node() {
    for device in devices() {
        let mut c = config(&[]);
        let (mut s, mut batches, _) = session(&mut c, &device);
        let mut state = s.state().unwrap();
        let bad = state.weights.iter_mut().find(|t| t.name.ends_with("layers.1.mlp.up_proj.weight")).unwrap();
        if let TensorData::F32(v) = &mut bad.data {
            // Finite, but its product with the activations is not.
            v.iter_mut().for_each(|x| *x = 3e38);
        }
        s.load_state(state).unwrap();
        let before = hash(&s.state().unwrap());
        let batch = [BatchSource::next_batch(&mut batches).unwrap()];
        let (loss, norm) = step(&mut s, &batch, 1);
        assert!(!(loss.is_finite() && norm.is_finite()));
        assert_eq!(hash(&s.state().unwrap()), before, "{} changed its weights", device.name());
        let info = StepInfo { step: 1, lr: 1e-3, seed: 42, target_tokens: 64 };
        let node = s.find_non_finite(&batch, &info).unwrap().unwrap();
        assert!(node.contains("layers.1.mlp.up_proj"), "{node}");
    }
}

#[test]
fn the_memory_plan_is_what_is_allocated() {
    for device in devices() {
        for sets in [&["train.accumulation=1"][..], &["train.accumulation=3"]] {
            let mut c = config(sets);
            let (s, _, _) = session(&mut c, &device);
            for (plan, allocated) in s.plans().zip(s.allocated_bytes()) {
                assert_eq!(plan.memory_on(&device).total(), allocated);
            }
        }
    }
}

/// Runs the loop on a folder, stopping (as Ctrl-C does) after `stop` steps if given.
fn train(
    c: &mut Config,
    device: &Device,
    root: &Path,
    name: &str,
    start: Start,
    stop: Option<u64>,
) -> (Outcome, String) {
    c.run.root = root.to_string_lossy().into_owned();
    c.run.name = name.into();
    let (mut s, mut batches, data) = session(c, device);
    let mut validation = data.validation_batches(c).unwrap();
    let mut run = match start {
        Start::Fresh => RunDir::create(c, "test").unwrap(),
        Start::Resume(_) => RunDir::open(&root.join(name), &[]).unwrap().0,
    };
    struct StopAt(u64, Arc<Control>);
    impl Observer for StopAt {
        fn on(&mut self, event: &Event) -> lynx_gpu::Result<()> {
            if let Event::Step(s) = event
                && s.record.step == self.0
            {
                self.1.request_stop(130);
            }
            Ok(())
        }
    }
    let control = Arc::new(Control::default());
    let observer = StopAt(stop.unwrap_or(u64::MAX), control.clone());
    let outcome = Training {
        config: c,
        model: &mut s,
        train: &mut batches,
        validation: &mut validation,
        run: &mut run,
        files: ModelFiles { config_json: "{}".into(), tokenizer_json: data.tokenizer.to_huggingface_json() },
        control,
        observers: vec![Box::new(observer)],
    }
    .run(start)
    .unwrap();
    (outcome, hash(&s.state().unwrap()))
}

#[test]
fn ten_steps_and_ten_resumed_are_the_twenty_steps_bit_for_bit() {
    for device in devices() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = config(&["train.steps=20", "model.dropout=0.1"]);
        let (_, straight) = train(&mut c, &device, dir.path(), "straight", Start::Fresh, None);
        let (outcome, _) = train(&mut c, &device, dir.path(), "halves", Start::Fresh, Some(10));
        assert_eq!(outcome.step, 10);
        let (outcome, resumed) = train(&mut c, &device, dir.path(), "halves", Start::Resume(Which::Last), None);
        assert_eq!(outcome.step, 20);
        assert_eq!(straight, resumed, "on {}", device.name());
    }
}

#[test]
fn a_gpu_lost_in_mid_run_ends_with_a_message_and_the_run_goes_on_from_its_checkpoint() {
    let Some(Device::Gpu(context)) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut c = config(&["train.steps=12", "train.checkpoint_interval=4"]);
    c.run.root = dir.path().to_string_lossy().into_owned();
    c.run.name = "lost".into();
    let (mut s, mut batches, data) = session(&mut c, &Device::Gpu(context.clone()));
    let mut validation = data.validation_batches(&c).unwrap();
    let mut run = RunDir::create(&c, "test").unwrap();
    struct LoseAt(u64, Arc<Context>);
    impl Observer for LoseAt {
        fn on(&mut self, event: &Event) -> lynx_gpu::Result<()> {
            if let Event::Step(s) = event
                && s.record.step == self.0
            {
                self.1.lose();
            }
            Ok(())
        }
    }
    let error = Training {
        config: &c,
        model: &mut s,
        train: &mut batches,
        validation: &mut validation,
        run: &mut run,
        files: ModelFiles { config_json: "{}".into(), tokenizer_json: data.tokenizer.to_huggingface_json() },
        control: Arc::new(Control::default()),
        observers: vec![Box::new(LoseAt(6, context))],
    }
    .run(Start::Fresh)
    .unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    let text = error.to_string();
    assert!(text.contains("--device cpu") && text.contains("step-4") && text.contains("--resume"), "{text}");
    drop(run);
    // The same run goes on from step 4 on another device.
    let (outcome, _) = train(&mut c, &Device::Cpu, dir.path(), "lost", Start::Resume(Which::Last), None);
    assert_eq!(outcome.step, 12);
}
