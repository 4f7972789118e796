//! A language model on a device: its weights and optimiser state in the device's memory, and the plans that train it,
//! evaluate it and sample from it. Implements what the training loop asks (`train::model::TrainModel`).

pub mod carried;
pub mod graphs;
pub mod kept;
mod load;
pub mod loss_scale;
mod next_token;
pub mod observe;
mod report;
mod state_file;

pub use load::Storing;
use loss_scale::LossScale;
pub use report::{PlanReport, TensorRow, TrainingPlans, lines};

use super::LanguageModel;
use crate::config::OptimizerConfig;
use crate::device::{Device, Executable, Store};
use crate::graph::{Plan, Precision};
use crate::infer::{Generation, Sampling};
use crate::nn::{Parameter, StoredMatrices};
use crate::tensor::{HostData, HostTensor};
use crate::tokenizer::Tokenizer;
use crate::train::model::{
    Batch, EvalSum, ModelInfo, ModelState, NamedTensor, SampleRequest, StateLayout, StepInfo, StepStats, TensorData,
    TensorSpec, TensorType, TrainModel,
};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// What a training step is made of, besides the model and the optimiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Sequences and tokens per sequence of a micro-batch.
    pub shape: (usize, usize),
    /// Micro-batches.
    pub accumulation: usize,
    /// What activations, and the weights that products read, are stored in.
    pub precision: Precision,
    /// Most bytes that the plans may need on their device (`Plan::within`).
    pub budget: Option<u64>,
}

/// A plan and its executable.
struct Ready {
    plan: Plan,
    run: Box<dyn Executable>,
}

pub struct Session {
    model: Box<dyn LanguageModel>,
    tokenizer: Tokenizer,
    optimizer: OptimizerConfig,
    device: Device,
    store: Store,
    parameters: Vec<Parameter>,
    /// Matrices that are not stored as f32: such a session does not train.
    stored: StoredMatrices,
    training: Step,
    /// The factor on the loss where gradients are stored in binary16.
    loss_scale: Option<LossScale>,
    /// One plan when a step is one micro-batch; else one that adds a micro-batch's gradients and one that applies them.
    step: Vec<Ready>,
    /// By (batch, context).
    evaluation: BTreeMap<(usize, usize), Ready>,
    generation: Option<Ready>,
    carried: carried::Carried,
    kept: kept::Kept,
}

impl Session {
    /// Plans the training step, allocates its memory and starts the weights from `seed`.
    pub fn for_training(
        model: Box<dyn LanguageModel>,
        tokenizer: Tokenizer,
        optimizer: OptimizerConfig,
        device: Device,
        step: Step,
        seed: u64,
    ) -> Result<Self> {
        let mut session = Self::for_inference(model, tokenizer, optimizer, device, seed)?;
        session.training = step;
        session.loss_scale = step.precision.scales_loss().then(LossScale::default);
        let (model, optimizer) = (session.model.as_ref(), &session.optimizer);
        for plan in report::plans(model, &session.parameters, optimizer, step, &session.device)? {
            let run = plan.prepare(&mut session.store)?;
            session.step.push(Ready { plan, run });
        }
        Ok(session)
    }

    /// The weights only, started from `seed`: to evaluate and to generate.
    pub fn for_inference(
        model: Box<dyn LanguageModel>,
        tokenizer: Tokenizer,
        optimizer: OptimizerConfig,
        device: Device,
        seed: u64,
    ) -> Result<Self> {
        let parameters = model.parameters()?;
        let mut store = Store::new(&device);
        let variable = |p: &Parameter| (p.name.clone(), crate::tensor::TensorType::f32(&p.shape));
        store.declare_together(&parameters.iter().map(variable).collect::<Vec<_>>())?;
        for p in &parameters {
            store.write(&p.name, &p.initial(seed))?;
        }
        let training = Step { shape: (1, model.context()), accumulation: 1, precision: Precision::F32, budget: None };
        let session = Self::empty(model, tokenizer, optimizer, device, store, training)?;
        Ok(Session { parameters, ..session })
    }

    /// A session that knows no weights yet.
    fn empty(
        model: Box<dyn LanguageModel>,
        tokenizer: Tokenizer,
        optimizer: OptimizerConfig,
        device: Device,
        store: Store,
        training: Step,
    ) -> Result<Self> {
        if tokenizer.vocab_size() > model.vocab_size() {
            let (need, have) = (tokenizer.vocab_size(), model.vocab_size());
            return Err(Error::Config(format!(
                "the tokenizer has {need} tokens, the model's vocabulary is {have}; set model.vocab_size to at least {need} (or 0)"
            )));
        }
        Ok(Session {
            model,
            tokenizer,
            optimizer,
            device,
            store,
            parameters: vec![],
            stored: StoredMatrices::default(),
            training,
            loss_scale: None,
            step: vec![],
            evaluation: BTreeMap::new(),
            generation: None,
            carried: carried::Carried::default(),
            kept: kept::Kept::default(),
        })
    }

    /// Evaluates and generates with values stored in `precision`.
    pub fn stored_in(mut self, precision: Precision) -> Self {
        self.training.precision = precision;
        (self.evaluation, self.generation) = (BTreeMap::new(), None);
        self.carried.clear();
        self.kept.clear();
        self
    }

    pub fn model(&self) -> &dyn LanguageModel {
        self.model.as_ref()
    }
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    pub fn device(&self) -> &Device {
        &self.device
    }
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }
    /// The plans of a training step, as they run on the device.
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        self.step.iter().map(|r| &r.plan)
    }
    /// The factor on the loss, where training in this precision has one.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }
    pub fn set_loss_scale(&mut self, scale: LossScale) {
        self.loss_scale = self.loss_scale.map(|_| scale);
    }
    /// What the device runs differently from what was asked (fallbacks, splits).
    pub fn notes(&self) -> Vec<crate::device::ExecutionNotes> {
        self.step.iter().map(|r| r.run.notes()).collect()
    }
    /// Bytes allocated by the training plans.
    pub fn allocated_bytes(&self) -> Vec<u64> {
        self.step.iter().map(|r| r.run.allocated_bytes()).collect()
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        let vocabulary = self.model.vocab_size() as i32;
        let ids = batch.inputs.iter().chain(batch.targets.iter().filter(|t| **t >= 0));
        if let Some(id) = ids.copied().find(|id| *id < 0 || *id >= vocabulary) {
            return Err(Error::Data(format!(
                "token {id} is outside the model's vocabulary of {vocabulary}: tokenizer and model do not belong together"
            )));
        }
        Ok(())
    }

    fn write_batch(run: &mut dyn Executable, batch: &Batch, inverse: f64, rng: Option<[u32; 3]>) -> Result<()> {
        let shape = [batch.batch, batch.context];
        run.write_input("tokens", &HostTensor::i32(&shape, batch.inputs.clone()))?;
        run.write_input("targets", &HostTensor::i32(&shape, batch.targets.clone()))?;
        run.write_input("inverse_tokens", &HostTensor::scalar(inverse as f32))?;
        if let Some(words) = rng {
            run.write_input("rng", &HostTensor::u32(&[3], words.to_vec()))?;
        }
        Ok(())
    }

    /// Seed and counter of dropout's random numbers: every micro-batch has its own.
    fn rng(&self, info: &StepInfo, micro: usize) -> Option<[u32; 3]> {
        let counter = info.step.wrapping_mul(self.training.accumulation as u64).wrapping_add(micro as u64);
        (self.model.dropout() > 0.0).then_some([info.seed as u32, (info.seed >> 32) as u32, counter as u32])
    }

    fn scalar(run: &mut dyn Executable, name: &str) -> Result<f64> {
        Ok(run.read_output(name)?.to_f64().data[0])
    }

    /// See [`crate::infer::generate`].
    pub fn generate(
        &mut self,
        prompt: &str,
        tokens: usize,
        sampling: &Sampling,
        mut on_text: impl FnMut(&str) -> bool,
    ) -> Result<Generation> {
        crate::infer::generate(self, prompt, tokens, sampling, &mut on_text)
    }

    fn optimizer_names(&self) -> Vec<(String, usize)> {
        let kinds = graphs::optimizer_slots(&self.optimizer);
        let of = |(i, p): (usize, &Parameter)| kinds.iter().map(|k| (format!("{k}.{}", p.name), i)).collect::<Vec<_>>();
        self.parameters.iter().enumerate().flat_map(of).collect()
    }

    fn write_loss_scale(run: &mut dyn Executable, scale: Option<LossScale>) -> Result<()> {
        scale.map_or(Ok(()), |s| run.write_input(LossScale::NAME, &HostTensor::scalar(s.scale())))
    }

    fn train_whole(&mut self, batch: &Batch, info: &StepInfo) -> Result<StepStats> {
        let rng = self.rng(info, 0);
        let scale = self.loss_scale;
        let run = self.step[0].run.as_mut();
        Self::write_batch(run, batch, 1.0 / info.target_tokens as f64, rng)?;
        Self::write_loss_scale(run, scale)?;
        graphs::write_hyper(run, &self.optimizer, info)?;
        run.run()?;
        Ok(StepStats { loss: Self::scalar(run, "loss")?, grad_norm: Self::scalar(run, "grad_norm")? })
    }

    fn train_accumulated(&mut self, batches: &[Batch], info: &StepInfo) -> Result<StepStats> {
        let mut loss = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            let rng = self.rng(info, i);
            let scale = self.loss_scale;
            let run = self.step[0].run.as_mut();
            Self::write_batch(run, batch, 1.0 / info.target_tokens as f64, rng)?;
            Self::write_loss_scale(run, scale)?;
            // The first micro-batch starts the sums afresh.
            run.write_input("keep", &HostTensor::scalar(if i == 0 { 0.0 } else { 1.0 }))?;
            run.run()?;
            loss += Self::scalar(run, "loss")?;
        }
        let scale = self.loss_scale;
        let run = self.step[1].run.as_mut();
        Self::write_loss_scale(run, scale)?;
        graphs::write_hyper(run, &self.optimizer, info)?;
        // A loss that is not a number must not change the weights even if the gradients are.
        run.write_input("loss", &HostTensor::scalar(loss as f32))?;
        run.run()?;
        Ok(StepStats { loss, grad_norm: Self::scalar(run, "grad_norm")? })
    }

    /// The negative log-likelihood of every position of a batch, without dropout; 0 where there is no target.
    fn batch_losses(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        self.check_batch(batch)?;
        let key = (batch.batch, batch.context);
        if !self.evaluation.contains_key(&key) {
            let graph = graphs::evaluation(self.model.as_ref(), key, &self.stored)?;
            let plan = Plan::stored_in(&graph, self.training.precision)?;
            let run = plan.prepare(&mut self.store)?;
            self.evaluation.insert(key, Ready { plan, run });
        }
        let Some(ready) = self.evaluation.get_mut(&key) else { unreachable!("made above") };
        Self::write_batch(ready.run.as_mut(), batch, 1.0, None)?;
        ready.run.run()?;
        Ok(ready.run.read_output("nll")?.to_f64().data)
    }

    /// One run of the step's plans. Changes no weight when a number is not finite.
    fn attempt(&mut self, batches: &[Batch], info: &StepInfo) -> Result<StepStats> {
        let accumulation = self.training.accumulation;
        match batches {
            [batch] if accumulation == 1 => self.train_whole(batch, info),
            _ if batches.len() == accumulation => self.train_accumulated(batches, info),
            _ => Err(Error::Graph(format!("{} micro-batches for a step of {accumulation}", batches.len()))),
        }
    }

    fn read_named(&self, names: impl Iterator<Item = String>) -> Result<Vec<NamedTensor>> {
        names
            .map(|name| {
                let t = self.store.read(&name)?;
                let data = match t.data {
                    HostData::F32(v) => TensorData::F32(v),
                    HostData::I32(v) => TensorData::I32(v),
                    HostData::U32(v) => TensorData::U32(v),
                    other => {
                        let ty = HostTensor { shape: t.shape, data: other }.ty();
                        return Err(Error::Checkpoint(format!("'{name}' is {ty}, which no checkpoint holds")));
                    }
                };
                Ok(NamedTensor { name, shape: t.shape, data })
            })
            .collect()
    }
}

impl TrainModel for Session {
    fn info(&self) -> ModelInfo {
        let report = self.report();
        ModelInfo {
            summary: self.model.summary(),
            parameters: self.parameters.iter().map(|p| p.elements() as u64).sum(),
            device: self.device.name(),
            memory: report.memory_lines(),
            roof_tokens_per_second: self.roof_tokens_per_second(&report),
        }
    }

    fn train_step(&mut self, batches: &[Batch], info: &StepInfo) -> Result<StepStats> {
        batches.iter().try_for_each(|b| self.check_batch(b))?;
        loop {
            let stats = self.attempt(batches, info)?;
            let Some(scale) = &mut self.loss_scale else { return Ok(stats) };
            let finite = stats.loss.is_finite() && stats.grad_norm.is_finite();
            let tried = scale.scale();
            if finite {
                scale.taken();
                return Ok(stats);
            }
            // A loss that is not finite does not come from its scale.
            if !stats.loss.is_finite() || !scale.back_off() {
                return Ok(stats);
            }
            tracing::info!("step {}: gradients overflow with the loss times {tried}; taken again with half", info.step);
        }
    }

    fn evaluate(&mut self, batch: &Batch) -> Result<EvalSum> {
        // Summed on the host in f64: the same order on every device.
        let nll = self.batch_losses(batch)?.iter().sum();
        Ok(EvalSum { nll, tokens: batch.scored() as u64 })
    }

    fn evaluate_rows(&mut self, batch: &Batch) -> Result<Vec<EvalSum>> {
        let nll = self.batch_losses(batch)?;
        let rows = nll.chunks(batch.context).zip(batch.targets.chunks(batch.context));
        let scored = |targets: &[i32]| targets.iter().filter(|t| **t >= 0).count() as u64;
        Ok(rows.map(|(nll, targets)| EvalSum { nll: nll.iter().sum(), tokens: scored(targets) }).collect())
    }

    fn layout(&self) -> StateLayout {
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec(), dtype: TensorType::F32 };
        StateLayout {
            weights: self.parameters.iter().map(|p| spec(p.name.clone(), &p.shape)).collect(),
            optimizer: self.optimizer_names().into_iter().map(|(n, i)| spec(n, &self.parameters[i].shape)).collect(),
            optional: vec![LossScale::spec()],
        }
    }

    fn state(&mut self) -> Result<ModelState> {
        let mut optimizer = self.read_named(self.optimizer_names().into_iter().map(|(n, _)| n))?;
        optimizer.extend(self.loss_scale.map(|s| s.state()));
        Ok(ModelState { weights: self.read_named(self.parameters.iter().map(|p| p.name.clone()))?, optimizer })
    }

    fn load_state(&mut self, state: ModelState) -> Result<()> {
        for t in state.weights.into_iter().chain(state.optimizer) {
            if let (LossScale::NAME, TensorData::F32(values)) = (t.name.as_str(), &t.data) {
                let saved = LossScale::restore(values)?;
                // A run that went on in another precision has none, or begins with a fresh one.
                self.loss_scale = self.loss_scale.map(|_| saved);
                continue;
            }
            let data = match t.data {
                TensorData::F32(v) => HostData::F32(v),
                TensorData::I32(v) => HostData::I32(v),
                TensorData::U32(v) => HostData::U32(v),
            };
            self.store.write(&t.name, &HostTensor { shape: t.shape, data })?;
        }
        Ok(())
    }

    fn sample(&mut self, request: &SampleRequest) -> Result<String> {
        let sampling = Sampling { temperature: request.temperature, seed: request.seed, ..Sampling::default() };
        Ok(self.generate(&request.prompt, request.tokens, &sampling, |_| true)?.text)
    }

    fn find_non_finite(&mut self, batches: &[Batch], info: &StepInfo) -> Result<Option<String>> {
        for p in &self.parameters {
            if self.store.read(&p.name)?.to_f64().data.iter().any(|v| !v.is_finite()) {
                return Ok(Some(format!("{} (a weight)", p.name)));
            }
        }
        let graph = graphs::gradient_only(self.model.as_ref(), self.training.shape)?;
        let mut graph = graph.stored_in(self.training.precision)?;
        graph.expose_all();
        let plan = Plan::unoptimised(&graph)?;
        let mut run = plan.prepare(&mut self.store)?;
        for (i, batch) in batches.iter().enumerate() {
            Self::write_batch(run.as_mut(), batch, 1.0 / info.target_tokens as f64, self.rng(info, i))?;
            run.run()?;
            for (index, node) in plan.graph.nodes().iter().enumerate() {
                for port in 0..node.outputs.len() {
                    let name = format!("#{index}.{port}");
                    if plan.graph.outputs().iter().any(|(n, _)| *n == name)
                        && run.read_output(&name)?.to_f64().data.iter().any(|v| !v.is_finite())
                    {
                        return Ok(Some(node.name.clone()));
                    }
                }
            }
        }
        Ok(None)
    }
}
