//! Whole models: a training step, evaluation, reading a prompt and generating a token, as `train` and `generate` run them.

use super::Under;
use super::levels::level_of;
use super::report::{Bound, Direction, Dot, Stat};
use super::timing::{Allowance, Effort, measure, seconds};
use crate::config::Config;
use crate::device::{Cost, Device, Work};
use crate::graph::Plan;
use crate::infer::NextToken;
use crate::models::session::graphs;
use crate::models::{Session, setup};
use crate::nn::StoredMatrices;
use crate::tokenizer::{CharTokenizer, SpecialTokens, Tokenizer};
use crate::train::model::{Batch, StepInfo, TrainModel};
use crate::{Error, Result};

/// Presets whose steps are dots, with what is changed of them; smallest step first.
const MODELS: [(&str, &[&str]); 3] =
    [("minigpt", &[]), ("shakespeare-char-cpu", &[]), ("shakespeare-char", &["train.batch_size=8"])];

/// The characters of a model whose configuration leaves the vocabulary open: as many as Shakespeare's.
const ALPHABET: usize = 65;

/// What a model is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A training step.
    Train,
    /// Forward and loss of a batch.
    Evaluate,
    /// Logits after a prompt of so many tokens.
    Prefill(usize),
    /// So many tokens, one after another.
    Decode(usize),
}

impl Task {
    /// In words, as `--filter` finds it.
    pub fn name(self) -> &'static str {
        match self {
            Task::Train => super::STEP_WORDS[0],
            Task::Evaluate => super::STEP_WORDS[1],
            Task::Prefill(_) => super::STEP_WORDS[2],
            Task::Decode(_) => super::STEP_WORDS[3],
        }
    }

    fn direction(self) -> Direction {
        match self {
            Task::Train => Direction::Step,
            Task::Evaluate => Direction::Forward,
            Task::Prefill(_) => Direction::Prefill,
            Task::Decode(_) => Direction::Decode,
        }
    }
}

/// A tokenizer for a model that reads random tokens: of 65 characters, or as few as a configuration's vocabulary (0: open) has.
pub fn stand_in(vocabulary: usize) -> Result<Tokenizer> {
    let size = if vocabulary == 0 { ALPHABET } else { vocabulary.min(ALPHABET) };
    let characters = (0..size as u32).filter_map(|i| char::from_u32(0x21 + i)).collect();
    Ok(Tokenizer::Char(CharTokenizer::new(characters, SpecialTokens::none())?))
}

/// A configured model on a device, with random tokens to work on: speed does not depend on which.
pub struct Model {
    pub name: String,
    pub config: Config,
    session: Session,
    batches: Vec<Batch>,
    step: u64,
}

impl Model {
    /// `source`: preset or file; `sets`: changes, as `--set` has them.
    pub fn new(source: &str, sets: &[String], device: &Device) -> Result<Self> {
        let (mut config, name) = Config::load(source, sets)?;
        let tokenizer = stand_in(config.model.vocab_size())?;
        config.set_vocab_size(tokenizer.vocab_size())?;
        // A system that promises more memory than it has would end the program without a word.
        let plan = setup::training_plans(&config, device)?.report(device);
        if let Some(spare) = plan.available_bytes
            && plan.total_bytes > spare
        {
            let (needed, spare) = (plan.total_bytes >> 20, spare >> 20);
            return Err(Error::Config(format!(
                "a training step of {name} needs {needed} MiB on {}, and {spare} MiB are free; use a smaller train.batch_size or \
                 model.context, or --set run.memory_budget={spare}MiB",
                plan.device
            )));
        }
        let session = setup::training_session(&config, &tokenizer, device.clone())?;
        let (batch, context) = (config.train.batch_size, config.model.context());
        let mut rng = crate::ops::case::SplitMix(1);
        let vocabulary = config.model.vocab_size() as u64;
        let mut tokens = || (0..batch * context).map(|_| (rng.next_u64() % vocabulary) as i32).collect::<Vec<i32>>();
        let mut one =
            || Batch { inputs: tokens(), targets: tokens(), lengths: vec![context as u32; batch], batch, context };
        let batches = (0..config.train.accumulation).map(|_| one()).collect();
        Ok(Model { name, config, session, batches, step: 0 })
    }

    pub fn parameters(&self) -> usize {
        self.session.parameters().iter().map(|p| p.elements()).sum()
    }
    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        4 * self.parameters()
    }
    pub fn context(&self) -> usize {
        self.config.model.context()
    }

    /// Tokens of the longest text: a model that carries a state has no end but that of its positions.
    pub fn reach(&self) -> usize {
        match self.session.carries() {
            Ok(()) => self.session.model().last_position().unwrap_or(usize::MAX),
            Err(_) => self.context(),
        }
    }

    /// Sequences, tokens of each, and how often per step.
    fn shape(&self) -> (usize, usize, usize) {
        (self.config.train.batch_size, self.context(), self.config.train.accumulation)
    }

    /// What a task works on, in words.
    pub fn case(&self, task: Task) -> String {
        let (batch, context, accumulation) = self.shape();
        match task {
            Task::Train if accumulation > 1 => format!("training step {accumulation}x{batch}x{context}"),
            Task::Train => format!("training step {batch}x{context}"),
            Task::Evaluate => format!("evaluation {batch}x{context}"),
            Task::Prefill(n) => format!("prefill {n}"),
            Task::Decode(n) => format!("decode {n}"),
        }
    }

    /// Tokens that one run of a task handles.
    pub fn tokens(&self, task: Task) -> usize {
        let (batch, context, accumulation) = self.shape();
        match task {
            Task::Train => batch * context * accumulation,
            Task::Evaluate => batch * context,
            Task::Prefill(n) | Task::Decode(n) => n,
        }
    }

    /// Runs a task once. Results are read back, so the end of the call is the end of the work.
    pub fn run(&mut self, task: Task) -> Result<()> {
        match task {
            Task::Train => {
                self.step += 1;
                let target_tokens = self.tokens(task) as u64;
                // A rate so small that no number of steps makes the weights overflow.
                let info = StepInfo { step: self.step, lr: 1e-6, seed: 1, target_tokens };
                let stats = self.session.train_step(&self.batches, &info)?;
                match stats.loss.is_finite() {
                    true => Ok(()),
                    false => Err(Error::Numerics(format!("{}: the loss is {}", self.name, stats.loss))),
                }
            }
            Task::Evaluate => self.session.evaluate(&self.batches[0]).map(|_| ()),
            Task::Prefill(n) => {
                let prompt = self.prompt(n);
                self.session.restart()?;
                self.session.advance(&prompt).map(|_| ())
            }
            Task::Decode(n) => {
                // The first half of the context is the prompt's.
                let start = (self.context() / 2).clamp(1, self.context() - n.min(self.context() - 1));
                if self.session.carries().is_err() && !self.session.keeps() {
                    let mut tokens = self.prompt(start);
                    for i in 0..n {
                        self.session.next_logits(&tokens)?;
                        tokens.push((i % 50) as u32);
                    }
                    return Ok(());
                }
                let end = self.session.position() + n as u64;
                if self.session.position() == 0 || end > self.reach() as u64 {
                    let prompt = self.prompt(start);
                    self.session.restart()?;
                    self.session.advance(&prompt)?;
                }
                (0..n).try_for_each(|i| self.session.advance(&[(i % 50) as u32]).map(|_| ()))
            }
        }
    }

    fn prompt(&self, n: usize) -> Vec<u32> {
        self.batches[0].inputs.iter().cycle().take(n).map(|t| *t as u32).collect()
    }

    pub fn time(&mut self, task: Task, effort: &Effort) -> Result<Stat> {
        measure(effort, |n| seconds(|| (0..n).try_for_each(|_| self.run(task))))
    }

    /// The works that a run of a task goes through, each with how often.
    fn works(&mut self, task: Task) -> Result<Vec<(Work, usize)>> {
        let (batch, context, accumulation) = self.shape();
        Ok(match task {
            // The first of two plans runs for every micro-batch.
            Task::Train => {
                let times = |i| if i == 0 { accumulation } else { 1 };
                self.session.plans().enumerate().map(|(i, p)| (p.work.clone(), times(i))).collect()
            }
            Task::Evaluate => {
                let graph = graphs::evaluation(self.session.model(), (batch, context), &StoredMatrices::default())?;
                vec![(Plan::new(&graph)?.work, 1)]
            }
            Task::Prefill(n) => self.session.reading_works(n)?,
            Task::Decode(n) => {
                self.session.reading_works(1)?.into_iter().map(|(work, times)| (work, n * times)).collect()
            }
        })
    }

    /// The task as a dot.
    pub fn dot(&mut self, task: Task, under: &Under, effort: &Effort) -> Result<Dot> {
        let mut kernels: Vec<String> = match task {
            Task::Train => self.session.notes().into_iter().flat_map(|n| n.kernels).collect(),
            _ => vec![],
        };
        let (mut cost, mut roof, mut overhead, mut compute, mut longest) = (Cost::default(), 0.0, 0.0, 0.0, 0.0);
        let (mut kind, mut distance) = (String::new(), 0);
        for (work, times) in self.works(task)? {
            work.calls.iter().for_each(|c| cost += c.cost.times(times));
            let (least, n) = (under.roof.least(&work, &kernels), times as f64);
            roof += n * least.seconds;
            overhead += n * least.overhead_seconds;
            compute += n * least.compute_seconds;
            if n * least.seconds > longest {
                (longest, kind, distance) = (n * least.seconds, least.kind, least.distance);
            }
        }
        kernels.sort();
        kernels.dedup();
        let seconds = self.time(task, effort)?;
        let bound = match () {
            _ if overhead > roof => Bound::Overhead,
            _ if compute * 2.0 >= roof => Bound::Compute,
            _ => Bound::Memory,
        };
        Ok(Dot {
            operator: self.name.clone(),
            case: self.case(task),
            direction: task.direction(),
            flops: cost.flops,
            bytes: cost.bytes(),
            compute: kind,
            level: level_of(under.ceilings, distance),
            seconds,
            device_seconds: None,
            roof_seconds: roof,
            share: roof / seconds.median,
            bound,
            kernels,
            tokens_per_second: Some(self.tokens(task) as f64 / seconds.median),
        })
    }
}

/// What `--filter` is compared with.
fn title(name: &str, task: Task) -> String {
    format!("{name} {}", task.name())
}

/// The titles of all steps.
pub fn titles() -> Vec<String> {
    let of = |(name, _): (&str, _)| TASKS.map(|task| title(name, task));
    MODELS.into_iter().flat_map(of).collect()
}

const TASKS: [Task; 4] = [Task::Train, Task::Evaluate, Task::Prefill(0), Task::Decode(0)];

/// The steps of the presets that pass `filter`. A model that does not fit the device is told of in `warnings`.
pub fn dots(
    device: &Device,
    under: &Under,
    filter: Option<&str>,
    warnings: &mut Vec<String>,
    step: &mut dyn FnMut(&str),
) -> Vec<Dot> {
    let allowance = Allowance::new(None, 0.0, if under.scope.quick { 0.25 } else { 3.0 });
    let wanted = filter.map(|f| f.trim().to_lowercase());
    let mut found = Vec::new();
    for (name, sets) in MODELS {
        let passes = |task: Task| wanted.as_ref().is_none_or(|w| title(name, task).contains(w.as_str()));
        let quick = under.scope.quick;
        // In a hurry the large model only trains, where a step does not take seconds.
        let large = name == "shakespeare-char";
        let tasks: Vec<Task> =
            TASKS.into_iter().filter(|t| passes(*t) && !(quick && large && *t != Task::Train)).collect();
        if tasks.is_empty() {
            continue;
        }
        step(name);
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        let one = || -> Result<Result<Vec<Dot>, f64>> {
            let (config, _) = Config::load(name, &sets)?;
            let tokens = (config.train.batch_size * config.model.context() * config.train.accumulation) as f64;
            // Kaplan et al. 2020: six FLOPs for every parameter and token; to be expected is half of the roof.
            let expected = 12.0 * config.model.parameter_count() as f64 * tokens / under.roof.peak("f32");
            if expected > if quick { 1.3 } else { 60.0 } {
                return Ok(Err(expected));
            }
            let mut model = Model::new(name, &sets, device)?;
            let context = model.context();
            let effort = Effort { samples: 9, ..Effort::within(allowance.next(1)) };
            let actual = |task| match task {
                Task::Prefill(_) => Task::Prefill(context / 2),
                Task::Decode(_) => Task::Decode((context / 4).min(16)),
                other => other,
            };
            tasks.iter().map(|t| model.dot(actual(*t), under, &effort)).collect::<Result<Vec<Dot>>>().map(Ok)
        };
        match one() {
            Ok(Ok(dots)) => found.extend(dots),
            Ok(Err(seconds)) => warnings.push(format!("left out: {name} (a step may take {seconds:.0} s)")),
            Err(e) => warnings.push(format!("{name}: {e}")),
        }
    }
    found
}
