//! Training with activations stored in 16 bits: what the pass keeps where, how far losses move, loss scaling, resumption, memory.

use lynx_gpu::config::{Config, OptimizerConfig};
use lynx_gpu::data::{Cache, TrainBatches};
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Store};
use lynx_gpu::graph::{Graph, Kind, Plan, Precision};
use lynx_gpu::models::Session;
use lynx_gpu::models::session::graphs;
use lynx_gpu::models::session::loss_scale::LossScale;
use lynx_gpu::models::setup;
use lynx_gpu::tensor::{DType, HostTensor};
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{BatchSource, ModelState, StepInfo, TensorData, TrainModel};

/// Shown whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

/// The largest relative error of storing a number.
fn roundoff(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2f64.powi(-24),
        Precision::Bf16 => 2f64.powi(-8),
        Precision::F16 => 2f64.powi(-11),
    }
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

fn config(precision: Precision, sets: &[&str]) -> Config {
    let precision = format!("train.precision={precision}");
    let small = ["model.width=32", "model.context=16", "train.batch_size=4", "data.batching=packed", &precision];
    let sets: Vec<String> = small.iter().chain(sets).map(|s| s.to_string()).collect();
    Config::load("minigpt", &sets).unwrap().0
}

struct Run {
    session: Session,
    batches: TrainBatches,
    accumulation: usize,
    step: u64,
}

impl Run {
    fn new(mut config: Config, device: &Device) -> Run {
        let data = Prepared::new(&mut config, None, &Cache::disabled()).unwrap();
        let session = setup::training_session(&config, &data.tokenizer, device.clone()).unwrap();
        let batches = data.train_batches(&config).unwrap();
        Run { session, batches, accumulation: config.train.accumulation, step: 0 }
    }

    /// Takes `n` steps; the losses.
    fn take(&mut self, n: u64) -> Vec<f64> {
        let mut losses = Vec::new();
        for _ in 0..n {
            self.step += 1;
            let batches: Vec<_> =
                (0..self.accumulation).map(|_| BatchSource::next_batch(&mut self.batches).unwrap()).collect();
            let target_tokens = batches.iter().map(|b| b.scored() as u64).sum();
            let info = StepInfo { step: self.step, lr: 3e-3, seed: 42, target_tokens };
            let stats = self.session.train_step(&batches, &info).unwrap();
            assert!(stats.loss.is_finite() && stats.grad_norm.is_finite(), "step {}: {stats:?}", self.step);
            losses.push(stats.loss);
        }
        losses
    }
}

fn bits(state: &ModelState) -> Vec<(String, Vec<u32>)> {
    let all = state.weights.iter().chain(&state.optimizer);
    all.map(|t| {
        let TensorData::F32(v) = &t.data else { panic!("{} is f32", t.name) };
        (t.name.clone(), v.iter().map(|x| x.to_bits()).collect())
    })
    .collect()
}

fn step_graph(config: &Config) -> Graph {
    let mut config = config.clone();
    config.set_vocab_size(64).unwrap();
    let model = setup::model(&config.model).unwrap();
    let shape = (config.train.batch_size, config.model.context());
    graphs::whole_step(model.as_ref(), &OptimizerConfig::default(), shape, config.train.precision).unwrap()
}

fn styles() -> [&'static [&'static str]; 2] {
    [&[], &["model.norm=rmsnorm", "model.ff_kind=swiglu", "model.positions=rope", "model.kv_heads=1", "model.heads=2"]]
}

#[test]
fn products_read_16_bits_and_everything_that_lasts_between_steps_stays_f32() {
    for precision in [Precision::Bf16, Precision::F16] {
        for style in styles() {
            let graph = step_graph(&config(precision, style));
            let plan = Plan::stored_in(&graph, precision).unwrap();
            let half = precision.half().unwrap();
            let (mut products, mut stored) = (0, 0);
            for node in plan.graph.nodes() {
                stored += node.outputs.iter().filter(|t| t.dtype == half).count();
                let Kind::Op(op) = &node.kind else { continue };
                if op.name() == "matmul" {
                    products += 1;
                    assert!(node.inputs[..2].iter().all(|v| plan.graph.ty(*v).dtype == half), "{}", node.name);
                }
            }
            // Forward, and the gradients of both operands, of every projection.
            assert!(products >= 3 * 13, "{products} products");
            assert!(stored > products, "{stored} values are kept in {half}");
            for (v, name, _) in plan.graph.variables() {
                assert_eq!(plan.graph.ty(v).dtype, DType::F32, "{name}");
            }
            for (name, v) in plan.graph.outputs() {
                assert_eq!(plan.graph.ty(*v).dtype, DType::F32, "{name}");
            }
        }
    }
}

#[test]
fn in_f32_the_plan_is_what_it_was() {
    let graph = step_graph(&config(Precision::F32, &[]));
    let (a, b) = (Plan::new(&graph).unwrap(), Plan::stored_in(&graph, Precision::F32).unwrap());
    assert_eq!(format!("{:?}", a.graph), format!("{:?}", b.graph));
}

/// Loss and gradients of one batch on the reference executor, which rounds what is stored and nothing else. A gradient comes out of a
/// chain of storages, each with the type's roundoff u: about 24 lie on the longest path through two layers and back (of each layer
/// and direction: a norm's result, projections, attention, activation, the operands of products). Roundings of different values are
/// independent, so their squares add: the relative error of the whole gradient stays below sqrt(24) u, and that of the loss.
#[test]
fn storage_moves_loss_and_gradients_by_no_more_than_its_roundings() {
    for style in styles() {
        let mut config = config(Precision::F32, style);
        config.set_vocab_size(64).unwrap();
        let model = setup::model(&config.model).unwrap();
        let graph = graphs::gradient_only(model.as_ref(), (4, config.model.context())).unwrap();
        let run = |precision: Precision| {
            let mut store = Store::new(&Device::Reference);
            let mut graph = graph.clone();
            graph.retain_outputs(|n| n != "logits");
            let plan = Plan::stored_in(&graph, precision).unwrap();
            let mut exe = plan.prepare(&mut store).unwrap();
            for p in model.parameters().unwrap() {
                store.write(&p.name, &p.initial(3)).unwrap();
            }
            let ids = |k: usize| (0..64).map(|i| ((i * k + i / 7) % 64) as i32).collect::<Vec<_>>();
            let shape = [4, config.model.context()];
            exe.write_input("tokens", &HostTensor::i32(&shape, ids(11))).unwrap();
            exe.write_input("targets", &HostTensor::i32(&shape, ids(5))).unwrap();
            exe.write_input("inverse_tokens", &HostTensor::scalar(1.0 / 64.0)).unwrap();
            exe.run().unwrap();
            let mut values = Vec::new();
            for (name, _) in plan.graph.outputs().iter().filter(|(n, _)| n.starts_with("gradient.")) {
                values.extend(exe.read_output(name).unwrap().to_f64().data);
            }
            (exe.read_output("loss").unwrap().to_f64().data[0], values)
        };
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (loss, gradient) = run(Precision::F32);
        for precision in [Precision::Bf16, Precision::F16] {
            let u = roundoff(precision);
            let (other, moved) = run(precision);
            let difference: Vec<f64> = gradient.iter().zip(&moved).map(|(a, b)| a - b).collect();
            let error = norm(&difference) / norm(&gradient);
            say!("{precision} {style:?}: loss {loss} to {other}, gradients by {:.2} u", error / u);
            assert!((loss - other).abs() <= 24f64.sqrt() * u * loss, "{precision}: loss {loss} became {other}");
            assert!(error <= 24f64.sqrt() * u, "{precision}: gradients moved by {error}");
            assert_ne!(gradient, moved, "nothing was stored in {precision}");
        }
    }
}

/// After fifty steps the runs are fifty slightly different updates apart. The gradient's errors are a few u and of no preferred
/// direction, so they average out along the way where the loss falls steadily; the mean of the last ten losses is asked to agree to u
/// times itself, 0.4 % for bf16 and 0.05 % for f16.
#[test]
fn fifty_steps_end_at_nearly_the_loss_of_f32_on_every_device() {
    let mean = |l: &[f64]| l[40..].iter().sum::<f64>() / 10.0;
    for device in devices() {
        let full = Run::new(config(Precision::F32, &[]), &device).take(50);
        assert!(mean(&full) < 0.8 * full[0], "it must learn: {} to {}", full[0], mean(&full));
        for precision in [Precision::Bf16, Precision::F16] {
            let losses = Run::new(config(precision, &[]), &device).take(50);
            let (want, have) = (mean(&full), mean(&losses));
            say!("{} {precision}: {have:.5} against {want:.5} in f32", device.name());
            assert!((have - want).abs() <= roundoff(precision) * want, "{precision}: {have} against {want}");
            assert_ne!(full, losses);
        }
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() {
    for device in devices() {
        for (precision, sets) in
            [(Precision::Bf16, &["model.dropout=0.1"][..]), (Precision::F16, &["train.accumulation=2"])]
        {
            let mut whole = Run::new(config(precision, sets), &device);
            whole.session.set_loss_scale(LossScale::new(16_777_216.0));
            whole.take(5);
            let (state, place) = (whole.session.state().unwrap(), BatchSource::state(&whole.batches));
            whole.take(5);
            let mut resumed = Run::new(config(precision, sets), &device);
            resumed.session.load_state(state).unwrap();
            BatchSource::restore(&mut resumed.batches, &place).unwrap();
            resumed.step = 5;
            resumed.take(5);
            assert_eq!(resumed.session.loss_scale(), whole.session.loss_scale());
            assert_eq!(precision == Precision::F16, whole.session.loss_scale().is_some());
            let (a, b) = (whole.session.state().unwrap(), resumed.session.state().unwrap());
            assert!(bits(&a) == bits(&b), "{} {precision}: the resumed run went elsewhere", device.name());
        }
    }
}

#[test]
fn the_loss_scale_backs_off_when_gradients_overflow_and_training_goes_on() {
    for device in devices() {
        // One target among many makes its gradient large: with the largest scale it leaves binary16.
        let sets = ["model.width=32", "train.batch_size=1", "optimizer.clip=1.0"];
        let mut run = Run::new(config(Precision::F16, &sets), &device);
        run.session.set_loss_scale(LossScale::new(16_777_216.0));
        let before = bits(&run.session.state().unwrap());
        let losses = run.take(40);
        let scale = run.session.loss_scale().unwrap().scale();
        assert!(scale < 16_777_216.0, "{}: nothing overflowed", device.name());
        assert!(scale >= 1.0);
        let after = run.session.state().unwrap();
        assert_ne!(bits(&after), before);
        assert!(losses[30..].iter().sum::<f64>() < 0.9 * losses[..10].iter().sum::<f64>(), "{losses:?}");
        let finite = |v: &Vec<u32>| v.iter().all(|x| f32::from_bits(*x).is_finite());
        assert!(bits(&after).iter().all(|(_, v)| finite(v)), "a weight is not finite");
        say!(
            "{}: the scale went from 2^24 to {scale}, the loss from {:.3} to {:.3}",
            device.name(),
            losses[0],
            losses[39]
        );
    }
}

/// The updates of f16 are those of unscaled gradients: a power of two cancels but for what overflows or underflows.
#[test]
fn loss_scales_that_do_not_overflow_give_the_same_first_loss_and_nearly_the_same_step() {
    let after = |scale: f32| {
        let mut run = Run::new(config(Precision::F16, &[]), &Device::Cpu);
        run.session.set_loss_scale(LossScale::new(scale));
        let losses = run.take(3);
        assert_eq!(run.session.loss_scale().unwrap().scale(), scale);
        losses
    };
    let (a, b) = (after(1024.0), after(4096.0));
    assert_eq!(a[0], b[0]);
    assert!((a[2] - b[2]).abs() <= roundoff(Precision::F16) * a[2], "{a:?} {b:?}");
}

/// Saved for the backward pass of each layer: two norms' results, q, k, v and the attention's result (six widths), the activation's
/// operand and result (two hidden widths). They halve, and the products' weights get a copy of two bytes an element. The most memory is
/// used while one layer's gradients are computed, with f32 values that cannot take the place of freed 16-bit ones: the gain of all
/// layers but two is expected.
#[test]
fn sixteen_bits_save_the_activations_they_should() {
    let sets = ["train.batch_size=32", "model.context=128", "model.width=64", "model.layers=6"];
    for precision in [Precision::Bf16, Precision::F16] {
        let mut config = config(precision, &sets);
        config.set_vocab_size(64).unwrap();
        let report = setup::training_plans(&config, &Device::Cpu).unwrap().report(&Device::Cpu);
        let full = report.memory_f32.clone().unwrap();
        let lynx_gpu::config::ModelConfig::Gpt(gpt) = &config.model else { panic!("{:?}", config.model) };
        let tokens = (config.train.batch_size * gpt.context) as u64;
        let saved = 2 * tokens * (gpt.layers - 2) as u64 * (6 * gpt.width + 2 * gpt.ff_width) as u64;
        let copies = 2 * report.parameters as u64;
        let gain = full.activations - report.memory.activations;
        say!(
            "{precision}: activations {} instead of {}; {saved} expected less",
            report.memory.activations,
            full.activations
        );
        assert!(gain + copies >= saved, "{gain} bytes saved, {saved} less {copies} expected");
        assert_eq!((full.weights, full.optimizer), (report.memory.weights, report.memory.optimizer));
        let again =
            setup::training_plans(&Config { train: config.train.clone(), ..config.clone() }, &Device::Cpu).unwrap();
        assert_eq!(again.report(&Device::Cpu).total_bytes, report.total_bytes);
    }
}

#[test]
fn what_is_allocated_is_what_was_planned() {
    for device in devices() {
        let run = Run::new(config(Precision::Bf16, &[]), &device);
        let planned: Vec<u64> = run.session.plans().map(|p| p.memory_on(&device).total()).collect();
        assert_eq!(run.session.allocated_bytes(), planned, "{}", device.name());
    }
}

#[test]
fn an_unknown_precision_is_refused_with_the_choices() {
    let message = "fp8".parse::<Precision>().unwrap_err().to_string();
    assert!(message.contains("fp8") && message.contains("f32, bf16 or f16"), "{message}");
    let sets = ["train.precision=fp8".to_string()];
    let message = Config::load("minigpt", &sets).unwrap_err().to_string();
    assert!(message.contains("train.precision") && message.contains("bf16"), "{message}");
}
