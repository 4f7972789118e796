//! The sections of a configuration besides the model: data, tokenizer, training, optimiser, schedule, run.

use super::size;
use crate::data::verbs::DEFAULT_SEED;
use crate::data::verbs::split::Policy;
use crate::data::{CorpusSource, Layout, Sampling, TextCorpus};
use crate::error::{Error, Result};
use crate::graph::Precision;
use serde::{Deserialize, Serialize};

fn fail<T>(message: String) -> Result<T> {
    Err(Error::Config(message))
}

/// How training text becomes sequences; see [`Sampling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// Random windows for running text, packed rows for a corpus of rows.
    Auto,
    Windows,
    Packed,
    Padded,
}

impl Batching {
    /// The way of sampling for a corpus of this layout.
    pub fn sampling(self, layout: Layout) -> Sampling {
        match self {
            Batching::Auto => Sampling::for_layout(layout),
            Batching::Windows => Sampling::Windows,
            Batching::Packed => Sampling::Packed,
            Batching::Padded => Sampling::Padded,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataConfig {
    /// `verbs` for the built-in generated corpus; anything else is the path of a UTF-8 text file.
    pub source: String,
    /// Text files: the last part of the text, by characters, is the validation split.
    pub val_fraction: f64,
    /// Text files: capital letters are read as small ones.
    pub lowercase: bool,
    /// Verb corpus: what is held out, as `lynx-gpu data verbs` takes it (`verbs_4`, `verb-tense`, `tense:NAME`, ...).
    pub heldout: String,
    /// Verb corpus: seed of its generator.
    pub corpus_seed: u64,
    pub batching: Batching,
    /// Seed of shuffling and window places, apart from `train.seed`.
    pub seed: u64,
}

impl DataConfig {
    /// The corpus this section names.
    pub fn corpus_source(&self) -> Result<CorpusSource> {
        Ok(CorpusSource::parse(&self.source, self.corpus_seed, Policy::parse(&self.heldout)?, self.val_fraction))
    }

    /// The text of the corpus this section names.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn load(&self) -> Result<TextCorpus> {
        let corpus = self.corpus_source()?.load()?;
        Ok(if self.lowercase { corpus.lowercase() } else { corpus })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerKind {
    /// One token per character seen in the text.
    Char,
    /// The 256 bytes.
    Byte,
    /// Byte-level BPE trained on the text.
    Bpe,
    /// A Hugging Face `tokenizer.json`.
    File,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizerConfig {
    pub kind: TokenizerKind,
    /// `bpe`: tokens in all, the special tokens and the 256 bytes included.
    pub vocab_size: usize,
    /// `file`: path of the `tokenizer.json`.
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches whose gradients make one step.
    pub accumulation: usize,
    /// `f32`, `bf16` or `f16`: what activations, and the weights that products read, are stored in. Arithmetic, master weights and
    /// optimiser state are f32.
    pub precision: Precision,
    /// Seed of the initial weights and of dropout.
    pub seed: u64,
    /// Steps between validations; 0 = only at the end. Else the untrained model is validated too (step 0), over the split's first
    /// 2048 positions at most: the first step does not wait for the whole split.
    pub eval_interval: u64,
    /// Validation batches; 0 = the whole split.
    pub eval_batches: usize,
    /// Steps between lines on the console and points in TensorBoard.
    pub log_interval: u64,
    /// Steps between checkpoints; 0 = only best and last.
    pub checkpoint_interval: u64,
    /// Newest checkpoints kept, besides the best one.
    pub keep_checkpoints: usize,
    /// Steps between samples of text; 0 = only at the end.
    pub sample_interval: u64,
    /// Longest sample in tokens; 0 = no samples.
    pub sample_tokens: usize,
    pub sample_temperature: f64,
    pub sample_prompts: Vec<String>,
    /// Validations without improvement before training stops; 0 = never.
    pub patience: u64,
    /// Steps before which training never stops early.
    pub burn_in: u64,
    /// Smallest fall of the validation loss that counts as improvement for `patience`.
    pub min_delta: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).
    Adamw,
    /// Stochastic gradient descent with heavy-ball momentum.
    Sgd,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    pub kind: OptimizerKind,
    /// Decay of the first moment (`adamw`).
    pub beta1: f64,
    /// Decay of the second moment (`adamw`).
    pub beta2: f64,
    /// Added to the root of the second moment (`adamw`).
    pub eps: f64,
    /// Momentum (`sgd`).
    pub momentum: f64,
    /// Decoupled weight decay of matrices and embeddings; vectors (gains, biases) are never decayed.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; 0 = no clipping.
    pub clip: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine from `lr` to `min_lr` (Loshchilov and Hutter, arXiv:1608.03983, without restarts).
    Cosine,
    /// A straight line from `lr` to `min_lr`.
    Linear,
    /// `lr` after the warm-up.
    Constant,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduleConfig {
    pub kind: ScheduleKind,
    /// Largest learning rate.
    pub lr: f64,
    /// Learning rate at the end of the decay.
    pub min_lr: f64,
    /// Steps of linear warm-up. A run shorter than its warm-up never reaches `lr`.
    pub warmup: u64,
    /// Steps at `lr` between the warm-up and the decay.
    pub hold: u64,
    /// Step at which `min_lr` is reached; 0 = `train.steps`.
    pub decay_steps: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Folder that holds run folders.
    pub root: String,
    /// Name of the run's folder; empty = time and preset.
    pub name: String,
    /// auto, cpu, gpu, gpu:N or part of a device's name.
    pub device: String,
    /// CPU threads; 0 = one per core.
    pub threads: usize,
    /// Most bytes that the plan of a training step may need on its device, such as `2GiB`: what does not fit is computed again in
    /// the backward pass instead of kept, with the same results. Empty = keep everything.
    pub memory_budget: String,
    /// Write a TensorBoard event file.
    pub tensorboard: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            source: "verbs".into(),
            val_fraction: 0.1,
            lowercase: false,
            heldout: "verbs_4".into(),
            corpus_seed: DEFAULT_SEED,
            batching: Batching::Auto,
            seed: 7,
        }
    }
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self { kind: TokenizerKind::Bpe, vocab_size: 512, path: String::new() }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 2000,
            batch_size: 8,
            accumulation: 1,
            precision: Precision::F32,
            seed: 42,
            eval_interval: 50,
            eval_batches: 0,
            log_interval: 10,
            checkpoint_interval: 500,
            keep_checkpoints: 3,
            sample_interval: 500,
            sample_tokens: 48,
            sample_temperature: 0.8,
            sample_prompts: vec![String::new()],
            patience: 0,
            burn_in: 0,
            min_delta: 0.0,
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            momentum: 0.9,
            weight_decay: 0.1,
            clip: 1.0,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, lr: 3e-4, min_lr: 3e-5, warmup: 100, hold: 0, decay_steps: 0 }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            root: "runs".into(),
            name: String::new(),
            device: "auto".into(),
            threads: 0,
            memory_budget: String::new(),
            tensorboard: true,
        }
    }
}

impl DataConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.source.is_empty() {
            return fail("data.source is empty; use \"verbs\" or the path of a text file".into());
        }
        if !(self.val_fraction > 0.0 && self.val_fraction < 1.0) {
            return fail(format!("data.val_fraction = {} must lie between 0 and 1", self.val_fraction));
        }
        Policy::parse(&self.heldout).map_err(|error| Error::Config(format!("data.heldout: {error}")))?;
        let file = matches!(self.corpus_source()?, CorpusSource::File { .. });
        if self.lowercase && !file {
            return fail(format!(
                "data.lowercase is for text files, and data.source = \"{}\" is a corpus of its own; leave it out",
                self.source
            ));
        }
        let rows_wanted = matches!(self.batching, Batching::Packed | Batching::Padded);
        if rows_wanted && file {
            return fail(format!(
                "data.batching needs the rows of the verb corpus, but data.source = \"{}\" is running text; use \"auto\" or \"windows\"",
                self.source
            ));
        }
        Ok(())
    }
}

impl RunConfig {
    /// Bytes of `memory_budget`; None where there is none.
    pub fn budget(&self) -> Result<Option<u64>> {
        if self.memory_budget.is_empty() {
            return Ok(None);
        }
        let bytes = size::parse(&self.memory_budget);
        bytes.map(Some).map_err(|why| Error::Config(format!("run.memory_budget: {why}")))
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.budget().map(|_| ())
    }
}

impl TokenizerConfig {
    pub(super) fn validate(&self) -> Result<()> {
        match self.kind {
            TokenizerKind::Bpe if self.vocab_size < 257 => fail(format!(
                "tokenizer.vocab_size = {} is too small for byte-level BPE: the 256 bytes alone need 256, plus special tokens and merges",
                self.vocab_size
            )),
            TokenizerKind::File if self.path.is_empty() => {
                fail("tokenizer.kind = \"file\" needs tokenizer.path, a Hugging Face tokenizer.json".into())
            }
            _ => Ok(()),
        }
    }
}

impl TrainConfig {
    /// Of one micro-batch, and micro-batches of one step.
    const MOST_SEQUENCES: usize = 1 << 24;

    pub(super) fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("accumulation", self.accumulation as u64),
            ("log_interval", self.log_interval),
            ("keep_checkpoints", self.keep_checkpoints as u64),
        ] {
            if value == 0 {
                return fail(format!("train.{key} is 0; it must be at least 1"));
            }
        }
        for (key, value) in [("batch_size", self.batch_size), ("accumulation", self.accumulation)] {
            if value > Self::MOST_SEQUENCES {
                return fail(format!("train.{key} = {value} is beyond the limit of {}", Self::MOST_SEQUENCES));
            }
        }
        if !(self.sample_temperature.is_finite() && self.sample_temperature >= 0.0) {
            return fail(format!(
                "train.sample_temperature = {} must be 0 (greedy) or a positive number",
                self.sample_temperature
            ));
        }
        if !(self.min_delta.is_finite() && self.min_delta >= 0.0) {
            return fail(format!("train.min_delta = {} must be 0 or a positive number", self.min_delta));
        }
        if self.patience > 0 && self.eval_interval == 0 {
            return fail("train.patience counts validations, but train.eval_interval = 0 switches them off".into());
        }
        Ok(())
    }
}

impl OptimizerConfig {
    pub(super) fn validate(&self) -> Result<()> {
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2), ("momentum", self.momentum)] {
            if !(0.0..1.0).contains(&value) {
                return fail(format!("optimizer.{key} = {value} must be at least 0 and less than 1"));
            }
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return fail(format!("optimizer.eps = {} must be a positive number", self.eps));
        }
        for (key, value) in [("weight_decay", self.weight_decay), ("clip", self.clip)] {
            if !(value.is_finite() && value >= 0.0) {
                return fail(format!("optimizer.{key} = {value} must be 0 or a positive number"));
            }
        }
        Ok(())
    }
}

impl ScheduleConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return fail(format!("schedule.lr = {} must be a positive number", self.lr));
        }
        if !(self.min_lr >= 0.0 && self.min_lr <= self.lr) {
            return fail(format!("schedule.min_lr = {} must lie between 0 and schedule.lr = {}", self.min_lr, self.lr));
        }
        Ok(())
    }
}
