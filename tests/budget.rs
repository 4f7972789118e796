//! Training within a memory budget: the plan fits and is what is allocated, and no bit of the results changes.

use lynx_gpu::config::Config;
use lynx_gpu::data::{Cache, TrainBatches};
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Store};
use lynx_gpu::graph::{Graph, Plan, Role};
use lynx_gpu::models::session::PlanReport;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::ops::reduce::Reduction;
use lynx_gpu::tensor::{HostTensor, TensorType};
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{Batch, ModelState, StepInfo, TrainModel};

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    match Context::adapters().first() {
        Some(a) => devices.push(Device::Gpu(Context::open(a, Options::default()).unwrap())),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => panic!("no GPU adapter was found"),
        None => eprintln!("SKIPPED on the GPU: no adapter"),
    }
    devices
}

fn prepared(sets: &[&str]) -> (Config, Prepared) {
    let small = [
        "model.width=32",
        "model.layers=5",
        "model.context=32",
        "model.dropout=0.1",
        "train.batch_size=8",
        "tokenizer.kind=char",
        "data.batching=packed",
    ];
    let sets: Vec<String> = small.iter().chain(sets).map(|s| s.to_string()).collect();
    let mut config = Config::load("minigpt", &sets).unwrap().0;
    let data = Prepared::new(&mut config, None, &Cache::disabled()).unwrap();
    (config, data)
}

fn with_budget(config: &Config, bytes: u64) -> Config {
    let mut config = config.clone();
    config.run.memory_budget = bytes.to_string();
    config
}

fn report(config: &Config, device: &Device) -> PlanReport {
    setup::training_plans(config, device).unwrap().report(device)
}

/// The least budget that the message of an impossible one tells.
fn least(config: &Config, device: &Device) -> u64 {
    let error = match setup::training_plans(&with_budget(config, 1), device) {
        Ok(_) => panic!("a step in one byte"),
        Err(error) => error,
    };
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    let (_, rest) = text.split_once("at least ").unwrap();
    let (_, rest) = rest.split_once("run.memory_budget, at least ").unwrap();
    rest.split_once(" bytes").unwrap().0.parse().unwrap()
}

/// Losses of some steps, the state after them, and the session's allocation.
fn trained(config: &Config, data: &Prepared, device: &Device, steps: u64) -> (Vec<f64>, ModelState, u64) {
    let mut session: Session = setup::training_session(config, &data.tokenizer, device.clone()).unwrap();
    let mut batches: TrainBatches = data.train_batches(config).unwrap();
    let mut losses = Vec::new();
    for step in 1..=steps {
        let micro: Vec<Batch> = (0..config.train.accumulation).map(|_| batches.next_batch()).collect();
        let target_tokens = micro.iter().map(|b| b.scored() as u64).sum();
        let info = StepInfo { step, lr: 1e-3, seed: 42, target_tokens };
        losses.push(session.train_step(&micro, &info).unwrap().loss);
    }
    let planned: Vec<u64> = session.plans().map(|p| p.memory_on(device).total()).collect();
    assert_eq!(session.allocated_bytes(), planned, "{}", device.name());
    (losses, session.state().unwrap(), session.report().total_bytes)
}

#[test]
fn a_step_within_a_budget_gives_the_same_bits_in_no_more_bytes_than_it_was_given() {
    for device in devices() {
        for sets in [&["train.accumulation=1"][..], &["train.accumulation=2", "optimizer.kind=sgd"]] {
            let (config, data) = prepared(sets);
            let whole = report(&config, &device).total_bytes;
            let least = least(&config, &device);
            assert!(least * 10 < whole * 8, "{}: only from {whole} to {least} bytes", device.name());
            let want = trained(&config, &data, &device, 3);
            assert_eq!(want.2, whole);
            for budget in [least, (least + whole) / 2] {
                let got = trained(&with_budget(&config, budget), &data, &device, 3);
                assert!(got.2 <= budget, "{}: {} bytes of {budget}", device.name(), got.2);
                assert_eq!((&got.0, &got.1), (&want.0, &want.1), "{} within {budget} bytes", device.name());
            }
        }
    }
}

#[test]
fn less_memory_never_takes_more_bytes_and_at_most_one_more_forward_pass() {
    for sets in [&[][..], &["train.accumulation=3"], &["model.norm=rmsnorm", "model.ff_kind=swiglu", "model.layers=8"]]
    {
        let (config, _) = prepared(sets);
        let device = Device::Cpu;
        let (whole, least) = (report(&config, &device), least(&config, &device));
        let forward: f64 = {
            let model = setup::model(&config.model).unwrap();
            let shape = (config.train.batch_size, config.model.context());
            let graph =
                lynx_gpu::models::session::graphs::evaluation(model.as_ref(), shape, &Default::default()).unwrap();
            Plan::new(&graph).unwrap().cost().flops * config.train.accumulation as f64
        };
        let (mut bytes, mut time) = (u64::MAX, 0.0);
        for part in (0..=8).rev() {
            let budget = least + (whole.total_bytes - least) * part / 8;
            let planned = report(&with_budget(&config, budget), &device);
            assert!(planned.total_bytes <= budget.min(bytes), "{} bytes of {budget}", planned.total_bytes);
            // As the search weighs them: a byte moved takes the time of 8 FLOPs.
            let takes = planned.cost.flops + 8.0 * planned.cost.bytes();
            assert!(takes >= time, "a smaller budget with less to do: {takes} after {time}, at {budget}");
            let extra = planned.cost.flops - whole.cost.flops;
            // Dropout is part of training's forward pass and not of evaluation's: at most some FLOPs an element.
            assert!(extra <= 1.03 * forward, "{extra} FLOPs more where a forward pass takes {forward}");
            (bytes, time) = (planned.total_bytes, takes);
            assert_eq!(planned.recomputed.is_some(), part < 8);
            if let Some(r) = planned.recomputed {
                assert_eq!((r.bytes_before, r.bytes_after), (whole.total_bytes, planned.total_bytes));
                let tally: usize = r.nodes.iter().map(|(_, n)| n).sum();
                assert!(tally > 0 && planned.nodes <= whole.nodes + tally);
                assert!(r.nodes.iter().any(|(name, _)| name.contains("layers.*.")), "{:?}", r.nodes);
            }
        }
    }
}

#[test]
fn a_budget_that_is_large_enough_changes_nothing() {
    let (config, _) = prepared(&[]);
    let whole = setup::training_plans(&config, &Device::Cpu).unwrap();
    let bytes = whole.report(&Device::Cpu).total_bytes;
    let same = setup::training_plans(&with_budget(&config, bytes), &Device::Cpu).unwrap();
    assert_eq!(whole.plans[0].graph.to_json(), same.plans[0].graph.to_json());
    assert!(same.report(&Device::Cpu).recomputed.is_none());
}

#[test]
fn an_impossible_budget_says_what_is_missing_and_what_to_change() {
    let (config, _) = prepared(&[]);
    let least = least(&config, &Device::Cpu);
    let say = |bytes: u64| match setup::training_plans(&with_budget(&config, bytes), &Device::Cpu) {
        Ok(_) => panic!("{bytes} bytes were enough"),
        Err(error) => error.to_string(),
    };
    let close = say(least - 1);
    for part in ["activations", "train.batch_size=4", "train.accumulation=2", "model.context", "cpu", "with nothing"] {
        assert!(close.contains(part), "'{part}' is missing in: {close}");
    }
    let hopeless = say(1000);
    assert!(hopeless.contains("model.width") && !hopeless.contains("batch_size"), "{hopeless}");
}

#[test]
fn a_budget_that_is_no_size_is_refused_by_key() {
    for text in ["plenty", "2 GiBs", "-3GiB", "0"] {
        let error = Config::load("minigpt", &[format!("run.memory_budget={text}")]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let message = error.to_string();
        assert!(message.contains("run.memory_budget") && message.contains("512MiB"), "{message}");
    }
}

/// An unrolled recurrence `h = tanh(h w + x)` over 40 steps with a weight that is changed in place at the end.
fn recurrence() -> Graph {
    let mut g = Graph::new();
    let ty = TensorType::f32(&[64, 64]);
    let w = g.variable("w", Role::Parameter, ty.clone()).unwrap();
    let momentum = g.variable("w.m", Role::Optimizer, ty.clone()).unwrap();
    let hyper = g.input("hyper", TensorType::f32(&[2]));
    let x = g.input("x", ty.clone());
    let mut h = x;
    for _ in 0..40 {
        let product = g.matmul(h, w).unwrap();
        let sum = g.add(product, x).unwrap();
        h = g.tanh(sum).unwrap();
    }
    let loss = g.reduce_all(h, Reduction::Sum).unwrap();
    g.output("loss", loss);
    let gradient = g.gradients(loss, &[w]).unwrap()[0];
    g.tag(gradient, Role::Gradient);
    let scale = g.constant(HostTensor::scalar(1.0));
    let sgd =
        lynx_gpu::ops::optimizer::SgdMomentum { momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.0 };
    g.sgd_momentum(sgd, (w, gradient, momentum), hyper, scale).unwrap();
    g
}

#[test]
fn a_recurrence_needs_memory_like_the_root_of_its_length() {
    let graph = recurrence();
    let device = Device::Cpu;
    let whole = Plan::new(&graph).unwrap();
    let small = whole.clone().within(0, &device).unwrap();
    // 40 states kept; cut into segments of 6 or 7, about 6 kept and 7 computed again, each of up to two tensors, and some for the
    // backward pass itself.
    let tensor = 64 * 64 * 4;
    assert!(whole.memory.activations >= 40 * tensor, "{}", whole.memory.activations);
    assert!(small.memory.activations <= 22 * tensor, "{} tensors", small.memory.activations / tensor);
    let run = |plan: &Plan| {
        let mut store = Store::new(&device);
        let mut exe = plan.prepare(&mut store).unwrap();
        assert_eq!(exe.allocated_bytes(), plan.memory_on(&device).total());
        let values = |f: fn(usize) -> f32| HostTensor::f32(&[64, 64], (0..4096).map(f).collect());
        store.write("w", &values(|i| ((i * 7919) % 101) as f32 * 2e-3 - 0.1)).unwrap();
        exe.write_input("x", &values(|i| ((i * 31) % 17) as f32 * 0.1 - 0.8)).unwrap();
        exe.write_input("hyper", &HostTensor::f32(&[2], vec![1e-3, 1.0])).unwrap();
        (0..3).for_each(|_| exe.run().unwrap());
        let loss = exe.read_output("loss").unwrap().as_f32().unwrap()[0].to_bits();
        (loss, store.read("w").unwrap())
    };
    assert_eq!(run(&small), run(&whole));
}

#[test]
fn a_graph_without_gradients_is_planned_as_it_is() {
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32(&[8]));
    let y = g.exp(x).unwrap();
    g.output("y", y);
    let plan = Plan::new(&g).unwrap().within(1, &Device::Cpu).unwrap();
    assert!(plan.recomputed.is_none());
    assert_eq!(plan.work.calls.len(), 1);
}
