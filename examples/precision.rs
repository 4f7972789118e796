//! Trains one configuration in f32, bf16 and f16 side by side, steps taken in turn, and prints losses, times and memory:
//! `cargo run --release --example precision -- CONFIG [--data FILE] [--steps N] [--device NAME] [--threads N] [--set KEY=VALUE]..`
//! The evaluation loss is that of the first `train.eval_batches` batches of the validation split (0: all). Times are the least and the
//! median of the steps, so that a busy machine changes the least least.

use lynx_gpu::config::Config;
use lynx_gpu::data::{Cache, TrainBatches};
use lynx_gpu::device::choose;
use lynx_gpu::graph::Precision;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::ops::workloads::workloads;
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{Batch, BatchSource, EvalSource, EvalSum, StepInfo, TrainModel};
use lynx_gpu::train::schedule::learning_rate;
use lynx_gpu::{Error, Result};
use std::time::Instant;

struct Lane {
    precision: Precision,
    config: Config,
    session: Session,
    batches: TrainBatches,
    loss: f64,
    seconds: Vec<f64>,
}

impl Lane {
    fn step(&mut self, step: u64) -> Result<()> {
        let train = &self.config.train;
        let batches: Vec<Batch> =
            (0..train.accumulation).map(|_| BatchSource::next_batch(&mut self.batches)).collect::<Result<_>>()?;
        let target_tokens = batches.iter().map(|b| b.scored() as u64).sum();
        let info = StepInfo { step, lr: learning_rate(&self.config.schedule, step), seed: train.seed, target_tokens };
        let start = Instant::now();
        self.loss = self.session.train_step(&batches, &info)?.loss;
        self.seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    }

    fn evaluate(&mut self, split: &mut dyn EvalSource) -> Result<f64> {
        let limit = self.config.train.eval_batches;
        let mut sum = EvalSum::default();
        for i in 0..if limit == 0 { split.len() } else { limit.min(split.len()) } {
            let part = self.session.evaluate(&split.batch(i)?)?;
            (sum.nll, sum.tokens) = (sum.nll + part.nll, sum.tokens + part.tokens);
        }
        Ok(sum.nll / sum.tokens.max(1) as f64)
    }
}

fn main() -> Result<()> {
    let mut name = "shakespeare-char-cpu".to_string();
    let (mut steps, mut threads, mut every) = (300, 0, 100);
    let mut sets: Vec<String> = vec!["run.device=cpu".into()];
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::Config(format!("{arg} needs a value")));
        let number = |v: String| v.parse::<u64>().map_err(|_| Error::Config(format!("{v} is not a number")));
        match arg.as_str() {
            "--data" => sets.push(format!("data.source={}", value()?)),
            "--device" => sets.push(format!("run.device={}", value()?)),
            "--steps" => steps = number(value()?)?,
            "--every" => every = number(value()?)?.max(1),
            "--threads" => threads = number(value()?)? as usize,
            "--set" => sets.push(value()?),
            flag if flag.starts_with('-') => return Err(Error::Config(format!("no option is called {flag}"))),
            preset => name = preset.into(),
        }
    }
    kernels_cpu::threads::set_threads(threads);
    let (mut config, _) = Config::load(&name, &sets)?;
    let device = choose::choose(&config.run.device, workloads)?.device;
    let data = Prepared::new(&mut config, None, &Cache::from_environment())?;
    let mut split = data.validation_batches(&config)?;
    let mut lanes = Vec::new();
    for precision in Precision::ALL {
        let mut config = config.clone();
        config.train.precision = precision;
        let session = setup::training_session(&config, &data.tokenizer, device.clone())?;
        let batches = data.train_batches(&config)?;
        lanes.push(Lane { precision, config, session, batches, loss: 0.0, seconds: vec![] });
    }
    println!("{name} on {}", device.name());
    for step in 1..=steps {
        lanes.iter_mut().try_for_each(|l| l.step(step))?;
        if step % every == 0 || step == steps {
            for lane in &mut lanes {
                let eval = lane.evaluate(&mut split)?;
                println!("step {step:>5}  {:>4}  train {:.4}  evaluation {eval:.4}", lane.precision, lane.loss);
            }
        }
    }
    let tokens = (config.train.batch_size * config.train.accumulation * config.model.context()) as f64;
    for lane in &mut lanes {
        lane.seconds.sort_by(f64::total_cmp);
        let (least, median) = (lane.seconds[0], lane.seconds[lane.seconds.len() / 2]);
        let report = lane.session.report();
        println!(
            "{:>4}  least {:.2} ms ({:.0} tokens/s), median {:.2} ms; activations {} bytes, in all {}",
            lane.precision,
            1e3 * least,
            tokens / least,
            1e3 * median,
            report.memory.activations,
            report.total_bytes
        );
    }
    Ok(())
}
