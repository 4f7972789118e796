//! A bigram language model with AdamW in plain f32, and windows over a fixed text: small enough to read, real enough to train.

use lynx_gpu::config::Config;
use lynx_gpu::train::checkpoint::ModelFiles;
use lynx_gpu::train::model::{
    Batch, BatchSource, EvalSource, EvalSum, ModelInfo, ModelState, NamedTensor, SampleRequest, StateLayout, StepInfo,
    StepStats, TrainModel,
};
use lynx_gpu::train::observer::{Event, Observer};
use lynx_gpu::train::outcome::Outcome;
use lynx_gpu::train::run_dir::RunDir;
use lynx_gpu::train::signals::Control;
use lynx_gpu::train::trainer::{Start, Training};
use lynx_gpu::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const VOCAB: usize = 8;
pub const CONTEXT: usize = 6;

/// A counter-based generator (SplitMix64): the value depends on the counter alone.
fn random(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Token `i` of an endless text in which each token mostly follows from the one before.
fn token(i: u64) -> i32 {
    let noise = random(i);
    if noise.is_multiple_of(4) { (noise / 4 % VOCAB as u64) as i32 } else { (i * 3 % VOCAB as u64) as i32 }
}

/// Rows of `CONTEXT` tokens; row r starts at a place that depends on r alone.
pub struct Rows {
    pub batch: usize,
    pub next_row: u64,
    first: u64,
}

impl Rows {
    fn row(&self, row: u64) -> impl Iterator<Item = i32> {
        let start = self.first + random(row) % 1000;
        (start..=start + CONTEXT as u64).map(token)
    }

    fn make(&self, rows: impl Iterator<Item = u64>) -> Batch {
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for row in rows {
            let tokens: Vec<i32> = self.row(row).collect();
            inputs.extend(&tokens[..CONTEXT]);
            targets.extend(&tokens[1..]);
        }
        let batch = inputs.len() / CONTEXT;
        Batch { lengths: vec![CONTEXT as u32; batch], batch, context: CONTEXT, inputs, targets }
    }
}

impl BatchSource for Rows {
    fn next_batch(&mut self) -> Result<Batch> {
        let rows = self.next_row..self.next_row + self.batch as u64;
        self.next_row = rows.end;
        Ok(self.make(rows))
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "next_row": self.next_row })
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        self.next_row =
            state["next_row"].as_u64().ok_or_else(|| Error::Checkpoint(format!("no row in data state {state}")))?;
        Ok(())
    }
}

pub struct Validation(pub Vec<Batch>);

impl EvalSource for Validation {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn batch(&mut self, index: usize) -> Result<Batch> {
        Ok(self.0[index].clone())
    }
}

/// logits(next) = table[token], trained by AdamW without weight decay, with noise on the gradient that depends on
/// (seed, step) only, as dropout's does.
pub struct Bigram {
    tensors: [Vec<f32>; 3],
    pub delay: Duration,
    /// Step at which the loss becomes NaN.
    pub poison: Option<u64>,
    /// Extra optimiser state, to fill disks with.
    pub ballast: usize,
}

const NAMES: [&str; 3] = ["table", "table.exp_avg", "table.exp_avg_sq"];

impl Bigram {
    pub fn new() -> Self {
        let zeros = || vec![0.0; VOCAB * VOCAB];
        Self { tensors: [zeros(), zeros(), zeros()], delay: Duration::ZERO, poison: None, ballast: 0 }
    }

    fn probabilities(&self, token: i32) -> Vec<f32> {
        let row = &self.tensors[0][token as usize * VOCAB..][..VOCAB];
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let exps: Vec<f32> = row.iter().map(|x| (x - max).exp()).collect();
        let sum: f32 = exps.iter().sum();
        exps.iter().map(|e| e / sum).collect()
    }

    fn pairs(batch: &Batch) -> impl Iterator<Item = (i32, i32)> {
        batch.inputs.iter().copied().zip(batch.targets.iter().copied()).filter(|pair| pair.1 >= 0)
    }
}

impl TrainModel for Bigram {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            summary: "bigram".into(),
            parameters: (VOCAB * VOCAB) as u64,
            device: "toy".into(),
            memory: vec![("weights".into(), 256), ("optimiser".into(), 512)],
            roof_tokens_per_second: None,
        }
    }

    fn train_step(&mut self, batches: &[Batch], info: &StepInfo) -> Result<StepStats> {
        std::thread::sleep(self.delay);
        if self.poison == Some(info.step) {
            return Ok(StepStats { loss: f64::NAN, grad_norm: f64::NAN });
        }
        let mut gradient = vec![0f32; VOCAB * VOCAB];
        let mut nll = 0f64;
        for (token, target) in batches.iter().flat_map(Self::pairs) {
            let p = self.probabilities(token);
            nll -= f64::from(p[target as usize].ln());
            let row = &mut gradient[token as usize * VOCAB..][..VOCAB];
            row.iter_mut().zip(&p).for_each(|(g, p)| *g += p / info.target_tokens as f32);
            row[target as usize] -= 1.0 / info.target_tokens as f32;
        }
        let grad_norm = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        let (b1, b2) = (0.9f32, 0.95f32);
        let [weights, m, v] = &mut self.tensors;
        for (i, g) in gradient.iter().enumerate() {
            let noise = random(info.seed ^ (info.step << 20) ^ i as u64) as f32 / u64::MAX as f32 - 0.5;
            let g = g + 1e-3 * noise;
            m[i] = b1 * m[i] + (1.0 - b1) * g;
            v[i] = b2 * v[i] + (1.0 - b2) * g * g;
            let m_hat = m[i] / (1.0 - b1.powi(info.step as i32));
            let v_hat = v[i] / (1.0 - b2.powi(info.step as i32));
            weights[i] -= info.lr as f32 * m_hat / (v_hat.sqrt() + 1e-8);
        }
        Ok(StepStats { loss: nll / info.target_tokens as f64, grad_norm })
    }

    fn evaluate(&mut self, batch: &Batch) -> Result<EvalSum> {
        let mut sum = EvalSum::default();
        for (token, target) in Self::pairs(batch) {
            sum.nll -= f64::from(self.probabilities(token)[target as usize].ln());
            sum.tokens += 1;
        }
        Ok(sum)
    }

    fn layout(&self) -> StateLayout {
        let state = self.snapshot();
        StateLayout {
            weights: state.weights.iter().map(NamedTensor::spec).collect(),
            optimizer: state.optimizer.iter().map(NamedTensor::spec).collect(),
            optional: vec![],
        }
    }

    fn state(&mut self) -> Result<ModelState> {
        Ok(self.snapshot())
    }

    fn load_state(&mut self, state: ModelState) -> Result<()> {
        for tensor in state.weights.into_iter().chain(state.optimizer) {
            if let Some(slot) = NAMES.iter().position(|name| *name == tensor.name) {
                let lynx_gpu::train::model::TensorData::F32(values) = tensor.data else { panic!("{}", tensor.name) };
                self.tensors[slot] = values;
            }
        }
        Ok(())
    }

    fn sample(&mut self, request: &SampleRequest) -> Result<String> {
        if request.prompt == "unreadable" {
            return Err(Error::Data("the tokenizer has no token for \"unreadable\"".into()));
        }
        Ok(format!("{} tokens at {}", request.tokens, request.seed))
    }

    fn find_non_finite(&mut self, _: &[Batch], info: &StepInfo) -> Result<Option<String>> {
        Ok((self.poison == Some(info.step)).then(|| "block.0.softmax".into()))
    }
}

impl Bigram {
    pub fn snapshot(&self) -> ModelState {
        let tensor = |i: usize| NamedTensor::f32(NAMES[i], &[VOCAB, VOCAB], self.tensors[i].clone());
        let mut optimizer = vec![tensor(1), tensor(2)];
        if self.ballast > 0 {
            optimizer.push(NamedTensor::f32("ballast", &[self.ballast], vec![0.5; self.ballast]));
        }
        ModelState { weights: vec![tensor(0)], optimizer }
    }
}

/// A configuration with short intervals, changed by `sets`; the run goes to `root`/toy.
pub fn config(root: &Path, sets: &[&str]) -> Config {
    let mut all: Vec<String> = [
        "train.steps=20",
        "train.batch_size=4",
        "train.eval_interval=5",
        "train.log_interval=5",
        "train.checkpoint_interval=4",
        "train.sample_interval=0",
        "schedule.lr=0.05",
        "schedule.min_lr=0.01",
        "schedule.warmup=5",
        "run.name=toy",
    ]
    .map(String::from)
    .to_vec();
    all.push(format!("run.root={}", root.display()));
    all.extend(sets.iter().map(|set| set.to_string()));
    Config::parse("", "toy", &all).unwrap()
}

/// What a test wants from a run besides the defaults.
#[derive(Default)]
pub struct Options<'a> {
    pub delay: Duration,
    pub poison: Option<u64>,
    pub ballast: usize,
    pub control: Arc<Control>,
    pub observers: Vec<Box<dyn Observer + 'a>>,
}

/// Trains in `run`; returns the outcome and the state of the model.
pub fn train(config: &Config, run: &mut RunDir, start: Start, options: Options) -> (Result<Outcome>, ModelState) {
    let mut model = Bigram::new();
    (model.delay, model.poison, model.ballast) = (options.delay, options.poison, options.ballast);
    let mut rows = Rows { batch: config.train.batch_size, next_row: 0, first: 0 };
    let held_out = Rows { batch: 4, next_row: 0, first: 50_000 };
    let mut validation = Validation((0..6).map(|i| held_out.make(4 * i..4 * i + 4)).collect());
    let training = Training {
        config,
        model: &mut model,
        train: &mut rows,
        validation: &mut validation,
        run,
        files: ModelFiles { config_json: "{}".into(), tokenizer_json: "{}".into() },
        control: options.control,
        observers: options.observers,
    };
    let outcome = training.run(start);
    (outcome, model.snapshot())
}

/// Asks the run to stop once step `at` is done.
pub struct StopAt {
    pub at: u64,
    pub control: Arc<Control>,
}

impl Observer for StopAt {
    fn on(&mut self, event: &Event) -> Result<()> {
        if let Event::Step(step) = event
            && step.record.step == self.at
        {
            self.control.request_stop(130);
        }
        Ok(())
    }
}

/// Collects messages.
pub struct Messages<'a>(pub &'a std::cell::RefCell<Vec<String>>);

impl Observer for Messages<'_> {
    fn on(&mut self, event: &Event) -> Result<()> {
        if let Event::Message(message) = event {
            self.0.borrow_mut().push(message.to_string());
        }
        Ok(())
    }
}
