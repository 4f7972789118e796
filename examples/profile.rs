//! Where the time of a plan goes on the CPU, call by call:
//! `cargo run --release --example profile -- CONFIG [--eval] [--threads N] [--runs N] [--vocab N] [--calls] [--set KEY=VALUE]..`
//! Prints the operators' total times with their rates, and with `--calls` every call in order.

use lynx_gpu::config::Config;
use lynx_gpu::device::{Call, Cost, Device, Store};
use lynx_gpu::graph::Plan;
use lynx_gpu::models::session::graphs;
use lynx_gpu::models::setup;
use lynx_gpu::nn::Builder;
use lynx_gpu::tensor::{DType, HostTensor, TensorType};
use lynx_gpu::{Error, Result};
use std::collections::BTreeMap;
use std::time::Instant;

struct Options {
    config: String,
    evaluation: bool,
    threads: usize,
    runs: usize,
    vocab: usize,
    calls: bool,
    sets: Vec<String>,
}

fn options() -> Result<Options> {
    let mut o = Options {
        config: "shakespeare-char".into(),
        evaluation: false,
        threads: 0,
        runs: 5,
        vocab: 65,
        calls: false,
        sets: vec![],
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::Config(format!("{arg} needs a value")));
        let number = |v: String| v.parse().map_err(|_| Error::Config(format!("{v} is not a number")));
        match arg.as_str() {
            "--eval" => o.evaluation = true,
            "--calls" => o.calls = true,
            "--threads" => o.threads = number(value()?)?,
            "--runs" => o.runs = number(value()?)?,
            "--vocab" => o.vocab = number(value()?)?,
            "--set" => o.sets.push(value()?),
            name if name.starts_with('-') => return Err(Error::Config(format!("no option is called {name}"))),
            name => o.config = name.into(),
        }
    }
    Ok(o)
}

fn main() -> Result<()> {
    let options = options()?;
    let (mut config, _) = Config::load(&options.config, &options.sets)?;
    config.set_vocab_size(options.vocab)?;
    kernels_cpu::threads::set_threads(options.threads);
    let model = setup::model(&config.model)?;
    let shape = (config.train.batch_size, config.model.context());
    let graph = if options.evaluation {
        graphs::evaluation(model.as_ref(), shape, &Default::default())?
    } else {
        graphs::whole_step(model.as_ref(), &config.optimizer, shape, config.train.precision)?
    };
    let plan = Plan::stored_in(&graph, config.train.precision)?;
    let mut store = Store::new(&Device::Cpu);
    let mut run = plan.prepare(&mut store)?;
    let mut builder = Builder::default();
    let tokens = builder.tokens("tokens", &[shape.0, shape.1]);
    model.hidden(&mut builder, tokens)?;
    for p in &builder.parameters {
        store.write(&p.name, &p.initial(config.train.seed))?;
    }
    for (name, place) in &plan.work.inputs {
        run.write_input(name, &sample(name, &place.ty, options.vocab))?;
    }
    run.run()?;
    let mut whole = f64::INFINITY;
    for _ in 0..options.runs {
        let start = Instant::now();
        run.run()?;
        whole = whole.min(start.elapsed().as_secs_f64());
    }
    // The least of the runs: other programs only add.
    let mut seconds = vec![f64::INFINITY; plan.work.calls.len()];
    for _ in 0..options.runs {
        run.profile(1)?.iter().for_each(|t| seconds[t.call] = seconds[t.call].min(t.seconds));
    }
    let times: Vec<(&Call, f64)> = plan.work.calls.iter().zip(seconds).collect();
    if options.calls {
        times.iter().for_each(|(c, seconds)| line(&format!("{} {}", c.kernel.name(), c.label), 1, *seconds, c.cost));
        println!();
    }
    print_totals(&times);
    let tokens = (shape.0 * shape.1) as f64;
    let (threads, best) = (kernels_cpu::threads::threads(), 1e3 * whole);
    println!(
        "{threads} threads, {} calls: best of {} runs {best:.2} ms, {:.0} tokens/s",
        times.len(),
        options.runs,
        tokens / whole
    );
    Ok(())
}

/// Values that a step accepts.
fn sample(name: &str, ty: &TensorType, vocab: usize) -> HostTensor {
    let n = ty.elements();
    match ty.dtype {
        DType::I32 => HostTensor::i32(&ty.shape, (0..n).map(|i| (i * 7919 % vocab) as i32).collect()),
        DType::U32 => HostTensor::u32(&ty.shape, vec![1; n]),
        _ if name == "hyper" => HostTensor::f32(&ty.shape, vec![1e-4, 10.0, 20.0, 1.0][..n].to_vec()),
        _ => HostTensor::f32(&ty.shape, vec![1e-3; n]),
    }
}

fn print_totals(times: &[(&Call, f64)]) {
    let mut totals: BTreeMap<&str, (usize, f64, Cost)> = BTreeMap::new();
    for (call, took) in times {
        let (count, seconds, cost) = totals.entry(call.kernel.name()).or_default();
        *count += 1;
        *seconds += took;
        *cost += call.cost;
    }
    let mut rows: Vec<_> = totals.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    rows.iter().for_each(|(name, (count, seconds, cost))| line(name, *count, *seconds, *cost));
    line("sum", times.len(), times.iter().map(|t| t.1).sum(), Cost::default());
}

fn line(name: &str, calls: usize, seconds: f64, cost: Cost) {
    let (ms, gflops, gbytes) = (1e3 * seconds, 1e-9 * cost.flops / seconds, 1e-9 * cost.bytes() / seconds);
    println!("{ms:9.3} ms {calls:4} calls {gflops:8.1} GFLOP/s {gbytes:7.1} GB/s  {name}");
}
