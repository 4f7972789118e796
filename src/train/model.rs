//! What the training loop asks of a model and of data. A compute backend implements [`TrainModel`]; `train::data` makes
//! [`BatchSource`] and [`EvalSource`] of the data room's batches; nothing here knows how either works.

pub use crate::data::{Batch, Source};

use crate::error::Result;
use serde::{Deserialize, Serialize};

/// An endless stream of training batches whose place can be saved and found again exactly.
pub trait BatchSource {
    /// The next micro-batch.
    fn next_batch(&mut self) -> Result<Batch>;
    /// Everything needed to go on from here (epoch, position, random state).
    fn state(&self) -> serde_json::Value;
    /// Goes back to a place that `state` gave; the batches that follow are the same, bit for bit.
    fn restore(&mut self, state: &serde_json::Value) -> Result<()>;
}

/// A validation split as a fixed list of batches, the same at every evaluation.
pub trait EvalSource {
    /// Number of batches.
    fn len(&self) -> usize;
    /// Batch `index`, below `len`.
    fn batch(&mut self, index: usize) -> Result<Batch>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of what origins the text is a mix; none where it is of one kind.
    fn sources(&self) -> &[Source] {
        &[]
    }
    /// The place in `sources` of each sequence of batch `index` that is not filling.
    fn sources_of(&self, _index: usize) -> &[usize] {
        &[]
    }
}

/// What one optimiser step is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepInfo {
    /// Number of this step, from 1: AdamW's bias correction uses it, and it is the counter of dropout's random numbers.
    pub step: u64,
    /// Learning rate of this step.
    pub lr: f64,
    /// `train.seed`.
    pub seed: u64,
    /// Targets that count, over all micro-batches: the loss and its gradient are divided by this.
    pub target_tokens: u64,
}

/// What one optimiser step reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Mean negative log-likelihood per target token over all micro-batches, in nats, before the update.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// Summed negative log-likelihood in nats, and the targets it is summed over.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EvalSum {
    pub nll: f64,
    pub tokens: u64,
}

/// How a sample is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRequest {
    pub prompt: String,
    /// Longest continuation in tokens.
    pub tokens: usize,
    /// 0 = greedy.
    pub temperature: f64,
    pub seed: u64,
}

/// Values of one tensor, in the type they are stored in.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U32(Vec<u32>),
}

impl TensorData {
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::I32(v) => v.len(),
            TensorData::U32(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn dtype(&self) -> TensorType {
        match self {
            TensorData::F32(_) => TensorType::F32,
            TensorData::I32(_) => TensorType::I32,
            TensorData::U32(_) => TensorType::U32,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    F32,
    I32,
    U32,
}

/// Name, shape and type of a tensor without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: TensorType,
}

/// A tensor on the host, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: TensorData,
}

impl NamedTensor {
    pub fn f32(name: impl Into<String>, shape: &[usize], data: Vec<f32>) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), data: TensorData::F32(data) }
    }

    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), shape: self.shape.clone(), dtype: self.data.dtype() }
    }
}

/// All that a model carries from one step to the next. A tied tensor appears once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelState {
    pub weights: Vec<NamedTensor>,
    /// Moments and anything else the optimiser keeps; names are its own.
    pub optimizer: Vec<NamedTensor>,
}

/// The tensors a model expects, in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateLayout {
    pub weights: Vec<TensorSpec>,
    pub optimizer: Vec<TensorSpec>,
    /// Kept beside the optimiser's by some settings only (the loss scale of f16): read where a checkpoint has them.
    pub optional: Vec<TensorSpec>,
}

/// What a model says of itself before the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// One line, for example "gpt, 2 layers, width 64".
    pub summary: String,
    pub parameters: u64,
    /// Device and driver in words.
    pub device: String,
    /// (what, bytes) of the memory plan, in the order to print.
    pub memory: Vec<(String, u64)>,
    /// Tokens per second at the device's roofline for this step, where it is known.
    pub roof_tokens_per_second: Option<f64>,
}

/// A model together with its optimiser, on some device.
pub trait TrainModel {
    fn info(&self) -> ModelInfo;

    /// Forward, backward, clipping and update over all micro-batches: one call is one optimiser step, so that a backend
    /// may do it in one submission. Gradients are summed over the micro-batches and divided by `info.target_tokens`;
    /// a negative target counts in neither.
    ///
    /// A step whose loss or gradient norm is not finite must leave weights and moments as they were and report the
    /// numbers it got; the loop then asks [`TrainModel::find_non_finite`] and ends the run.
    fn train_step(&mut self, batches: &[Batch], info: &StepInfo) -> Result<StepStats>;

    /// Loss of one batch without dropout and without gradients.
    fn evaluate(&mut self, batch: &Batch) -> Result<EvalSum>;

    /// As [`TrainModel::evaluate`], of each sequence of the batch.
    fn evaluate_rows(&mut self, batch: &Batch) -> Result<Vec<EvalSum>> {
        (0..batch.batch).map(|row| self.evaluate(&batch.row(row))).collect()
    }

    /// The tensors `state` gives and `load_state` takes.
    fn layout(&self) -> StateLayout;

    /// Copies weights and optimiser state to the host, bit for bit.
    fn state(&mut self) -> Result<ModelState>;

    /// Puts back what `state` gave. The loop has checked it against `layout`.
    fn load_state(&mut self, state: ModelState) -> Result<()>;

    /// Continues a prompt. Must not disturb training: the same steps follow whether or not samples are drawn.
    fn sample(&mut self, request: &SampleRequest) -> Result<String>;

    /// Runs the step again, slowly, and names the first node (or parameter) that holds a value that is not finite.
    fn find_non_finite(&mut self, batches: &[Batch], info: &StepInfo) -> Result<Option<String>>;
}
