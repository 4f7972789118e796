//! The training loop.
//!
//! A step is: micro-batches from the source, one call of the model, one record; then, when due and in this order, validation,
//! samples, a checkpoint. A checkpoint therefore holds everything the next step depends on, and a resumed run takes the
//! same steps as one that was never stopped.

use super::checkpoint::{CheckpointStore, ModelFiles, TrainState, Which};
use super::manifest::Status;
use super::meter::Meter;
use super::metrics::{EvalRecord, Record, SampleRecord, SourcesRecord, TrainRecord};
use super::model::{
    Batch, BatchSource, EvalSource, EvalSum, ModelInfo, SampleRequest, StepInfo, StepStats, TrainModel,
};
use super::observer::{Event, Observer, StepEvent};
use super::outcome::{Ending, Outcome};
use super::recorder::{ARTEFACTS, Recorder};
use super::run_dir::RunDir;
use super::schedule::{EarlyStopping, learning_rate};
use super::signals::Control;
use super::sources::{SourceLoss, SourceSums};
use crate::config::Config;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Positions over which the untrained model is validated: enough to see that its loss is about ln(vocabulary) (the mean of 2048 losses
/// that differ by half a nat is good to 0.01), and little enough that the first step does not wait for it.
const UNTRAINED_POSITIONS: usize = 2048;

/// How much of the validation split is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// The first sequences, at most `UNTRAINED_POSITIONS` and one sequence at least.
    Untrained,
    /// `train.eval_batches` batches; 0 = all.
    Configured,
    Whole,
}

/// Everything a run is made of.
pub struct Training<'a> {
    pub config: &'a Config,
    pub model: &'a mut dyn TrainModel,
    pub train: &'a mut dyn BatchSource,
    pub validation: &'a mut dyn EvalSource,
    pub run: &'a mut RunDir,
    /// Written beside the weights of every checkpoint.
    pub files: ModelFiles,
    pub control: Arc<Control>,
    pub observers: Vec<Box<dyn Observer + 'a>>,
}

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Fresh,
    /// From a checkpoint of the run folder. `Which::Last` of a run that was killed before its first checkpoint starts afresh.
    Resume(Which),
}

impl Training<'_> {
    /// Runs to the end, to an early stop, or until somebody asks to stop. The run folder tells which in either case.
    ///
    /// # Errors
    /// Those of the model, the data and the file system; `Error::Numerics` when a number is not finite. The message says
    /// how to go on where a checkpoint is there.
    pub fn run(self, start: Start) -> Result<Outcome> {
        let store = self.run.checkpoints(self.config.train.keep_checkpoints);
        let mut active = Loop::new(self, store);
        let result = active.start(start).and_then(|()| active.run());
        active.close(&result);
        result.map_err(|error| active.with_hint(error))
    }
}

struct Loop<'a> {
    job: Training<'a>,
    store: CheckpointStore,
    info: ModelInfo,
    state: TrainState,
    recorder: Option<Recorder>,
    meter: Meter,
    /// Step of the checkpoint that holds the present state.
    saved: Option<u64>,
    last_eval: Option<EvalRecord>,
    /// The same by the origins of a mix.
    last_sources: Vec<SourceLoss>,
    started: Instant,
    seconds_before: f64,
}

impl<'a> Loop<'a> {
    fn new(job: Training<'a>, store: CheckpointStore) -> Self {
        let state = TrainState {
            step: 0,
            seed: job.config.train.seed,
            config_hash: job.config.hash(),
            data: job.train.state(),
            early_stopping: EarlyStopping::default(),
            tokens: 0,
            seconds: 0.0,
        };
        let info = job.model.info();
        Self {
            job,
            store,
            info,
            state,
            recorder: None,
            meter: Meter::default(),
            saved: None,
            last_eval: None,
            last_sources: vec![],
            started: Instant::now(),
            seconds_before: 0.0,
        }
    }

    fn start(&mut self, start: Start) -> Result<()> {
        let mut notes = Vec::new();
        match start {
            Start::Fresh => {}
            Start::Resume(Which::Last) if self.store.steps().is_empty() => {
                notes.push("the run has no checkpoint yet; starting from the beginning".to_string());
            }
            Start::Resume(which) => notes.extend(self.resume(which)?),
        }
        self.seconds_before = self.state.seconds;
        let recorder = Recorder::open(self.job.run, self.job.config, self.state.step)?;
        self.last_eval = recorder.eval_at(self.state.step);
        self.last_sources = recorder.sources_at(self.state.step);
        self.recorder = Some(recorder);
        let manifest = &mut self.job.run.manifest;
        manifest.device = Some(self.info.device.clone());
        manifest.parameters = Some(self.info.parameters);
        self.job.run.begin(self.job.config, self.state.step)?;
        let (run, step) = (self.job.run.path().to_path_buf(), self.state.step);
        let info = self.info.clone();
        let steps = self.job.config.train.steps;
        if step == steps && step > 0 {
            notes.push(format!(
                "the run is finished: all {steps} steps are done; ask for more with `{} --set train.steps=N`",
                self.job.run.resume_command()
            ));
        }
        self.tell(&Event::Start { info: &info, run: &run, step, steps })?;
        notes.iter().try_for_each(|note| self.tell(&Event::Message(note)))
    }

    /// Loads a checkpoint; returns a warning if the configuration is no longer the one it was made with.
    fn resume(&mut self, which: Which) -> Result<Option<String>> {
        let loaded = self.store.load(which, &self.job.model.layout())?;
        let (step, config_hash) = (loaded.train.step, self.state.config_hash.clone());
        let steps = self.job.config.train.steps;
        if step > steps {
            return Err(Error::Config(format!(
                "train.steps = {steps}, but the run is at step {step} already: ask for more than {step} steps, or go back to an \
                 earlier checkpoint with `--checkpoint step-N` (there are steps {})",
                self.store.steps().iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
            )));
        }
        self.job.model.load_state(loaded.model)?;
        self.job.train.restore(&loaded.train.data)?;
        self.store.rewind(step, loaded.train.early_stopping.best.map(|best| best.step))?;
        let changed = loaded.train.config_hash != config_hash || loaded.train.seed != self.state.seed;
        self.state = TrainState { config_hash, seed: self.state.seed, ..loaded.train };
        self.saved = Some(step);
        let warning =
            "the configuration has changed since the checkpoint: this is no longer the run it would have been";
        Ok(changed.then(|| warning.to_string()))
    }

    fn run(&mut self) -> Result<Outcome> {
        let train = &self.job.config.train;
        let (steps, eval_interval) = (train.steps, train.eval_interval);
        if self.state.step == 0
            && eval_interval > 0
            && self.last_eval.is_none()
            && let Some(record) = self.evaluate(Extent::Untrained)?
        {
            // The untrained model: about ln(vocabulary). It is no candidate for the best.
            self.tell(&Event::Eval { record: &record, is_best: false })?;
        }
        while self.state.step < steps {
            if let Some(exit_code) = self.wait_or_stop() {
                return self.interrupt(exit_code);
            }
            self.step()?;
            let mut stop = false;
            let mut is_best = false;
            if due(self.state.step, eval_interval)
                && let Some(record) = self.evaluate(Extent::Configured)?
            {
                (is_best, stop) = self.judge(&record)?;
            }
            let last = stop || self.state.step == steps;
            if due(self.state.step, self.job.config.train.sample_interval) && !last {
                self.sample()?;
            }
            if (is_best || due(self.state.step, self.job.config.train.checkpoint_interval)) && !last {
                self.save(is_best)?;
            }
            if last {
                return self.finish(if stop { Ending::StoppedEarly } else { Ending::Finished }, is_best);
            }
        }
        self.finish(Ending::Finished, false)
    }

    /// Sleeps while paused; the exit code if somebody wants the run to stop.
    fn wait_or_stop(&self) -> Option<usize> {
        while self.job.control.is_paused() && self.job.control.stop_requested().is_none() {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.job.control.stop_requested()
    }

    fn step(&mut self) -> Result<()> {
        let config = self.job.config;
        let begun = Instant::now();
        let batches: Vec<Batch> =
            (0..config.train.accumulation).map(|_| self.job.train.next_batch()).collect::<Result<_>>()?;
        let target_tokens = batches.iter().map(|batch| batch.scored() as u64).sum();
        if target_tokens == 0 {
            return Err(Error::Data(format!("the batch of step {} has nothing to predict", self.state.step + 1)));
        }
        let step = self.state.step + 1;
        let info = StepInfo { step, lr: learning_rate(&config.schedule, step), seed: config.train.seed, target_tokens };
        let stats = self.job.model.train_step(&batches, &info)?;
        if !(stats.loss.is_finite() && stats.grad_norm.is_finite()) {
            return Err(self.not_finite(&batches, &info, stats));
        }
        self.state.step = step;
        self.state.tokens += target_tokens;
        let took = begun.elapsed();
        self.meter.step(target_tokens, took);
        self.report_step(&info, stats, took)
    }

    fn report_step(&mut self, info: &StepInfo, stats: StepStats, took: Duration) -> Result<()> {
        let train = &self.job.config.train;
        let clip = self.job.config.optimizer.clip;
        let tokens_per_second = self.meter.tokens_per_second();
        let record = TrainRecord {
            step: info.step,
            loss: stats.loss,
            lr: info.lr,
            grad_norm: stats.grad_norm,
            clipped: clip > 0.0 && stats.grad_norm > clip,
            tokens: self.state.tokens,
            tokens_per_second,
            seconds: self.seconds(),
        };
        let log = due(info.step, train.log_interval) || info.step == train.steps;
        let evals_until = |step: u64| step.checked_div(train.eval_interval).unwrap_or(0);
        let evals = evals_until(train.steps) - evals_until(info.step);
        let event = StepEvent {
            record,
            steps: train.steps,
            took,
            remaining: self.meter.remaining(train.steps - info.step, evals),
            roof_share: self.info.roof_tokens_per_second.map(|roof| tokens_per_second / roof),
            log,
        };
        self.record(Record::Train(record), log)?;
        self.tell(&Event::Step(event))
    }

    /// Names what went wrong; weights and checkpoints are those of the last good step.
    fn not_finite(&mut self, batches: &[Batch], info: &StepInfo, stats: StepStats) -> Error {
        let what = if stats.loss.is_finite() {
            format!("the gradient norm is {}", stats.grad_norm)
        } else {
            format!("the loss is {}", stats.loss)
        };
        let place = match self.job.model.find_non_finite(batches, info) {
            Ok(Some(node)) => format!("the first value that is not finite is in node `{node}`"),
            Ok(None) => "no single node could be blamed when the step was run again".into(),
            Err(error) => format!("looking for the node at fault failed as well ({error})"),
        };
        Error::Numerics(format!(
            "step {}: {what}; {place}; try a lower schedule.lr, a longer schedule.warmup or a smaller optimizer.clip",
            info.step
        ))
    }

    /// Validation loss; None without validation data.
    fn evaluate(&mut self, extent: Extent) -> Result<Option<EvalRecord>> {
        let all = self.job.validation.len();
        let limit = self.job.config.train.eval_batches;
        let count = if extent == Extent::Whole || limit == 0 { all } else { limit.min(all) };
        let mut positions = if extent == Extent::Untrained { UNTRAINED_POSITIONS } else { usize::MAX };
        let begun = Instant::now();
        let mut sum = EvalSum::default();
        let mut used = 0;
        let mut sources = SourceSums::new(self.job.validation.sources());
        let mixed = extent != Extent::Untrained && !self.job.validation.sources().is_empty();
        for index in 0..count {
            let batch = self.job.validation.batch(index)?;
            let whole = batch.batch;
            let rows = (positions / batch.context.max(1)).max(usize::from(index == 0));
            let batch = batch.first(rows);
            if batch.batch == 0 {
                break;
            }
            let rows = if mixed {
                let rows = self.job.model.evaluate_rows(&batch)?;
                sources.add(self.job.validation.sources_of(index), &rows);
                rows
            } else {
                vec![self.job.model.evaluate(&batch)?]
            };
            for part in rows {
                sum.nll += part.nll;
                sum.tokens += part.tokens;
            }
            if batch.batch < whole {
                break;
            }
            used += 1;
            positions = positions.saturating_sub(whole * batch.context);
        }
        if sum.tokens == 0 {
            return Ok(None);
        }
        let loss = sum.nll / sum.tokens as f64;
        let step = self.state.step;
        if !loss.is_finite() {
            return Err(Error::Numerics(format!("the validation loss after step {step} is {loss}")));
        }
        if extent != Extent::Untrained {
            self.meter.eval(begun.elapsed());
        }
        let (perplexity, seconds) = (loss.exp(), begun.elapsed().as_secs_f64());
        let record = EvalRecord { step, loss, perplexity, tokens: sum.tokens, whole_split: used == all, seconds };
        self.last_eval = Some(record);
        self.record(Record::Eval(record), true)?;
        self.last_sources = if mixed { sources.losses() } else { vec![] };
        if mixed {
            self.record(Record::Sources(SourcesRecord { step, sources: self.last_sources.clone() }), true)?;
        }
        if let Some(recorder) = &self.recorder {
            recorder.draw()?;
        }
        Ok(Some(record))
    }

    /// Compares a validation with those before: (is it the best, should the run stop).
    fn judge(&mut self, record: &EvalRecord) -> Result<(bool, bool)> {
        let train = &self.job.config.train;
        let verdict =
            self.state.early_stopping.update(record.step, record.loss, train.patience, train.burn_in, train.min_delta);
        self.tell(&Event::Eval { record, is_best: verdict.is_best })?;
        self.tell_sources(record.step)?;
        Ok((verdict.is_best, verdict.stop))
    }

    fn tell_sources(&mut self, step: u64) -> Result<()> {
        if self.last_sources.is_empty() {
            return Ok(());
        }
        let record = SourcesRecord { step, sources: self.last_sources.clone() };
        self.tell(&Event::Sources(&record))
    }

    fn sample(&mut self) -> Result<()> {
        let train = &self.job.config.train;
        if train.sample_tokens == 0 {
            return Ok(());
        }
        for prompt in train.sample_prompts.clone() {
            let request = SampleRequest {
                prompt,
                tokens: train.sample_tokens,
                temperature: train.sample_temperature,
                seed: train.seed.wrapping_add(self.state.step),
            };
            match self.job.model.sample(&request) {
                Ok(text) => {
                    let temperature = request.temperature;
                    let sample = SampleRecord { step: self.state.step, prompt: request.prompt, text, temperature };
                    self.record(Record::Sample(sample.clone()), true)?;
                    self.tell(&Event::Sample(&sample))?;
                }
                // A prompt the tokenizer cannot read must not cost the run.
                Err(Error::Data(message)) => self.tell(&Event::Message(&format!("no sample: {message}")))?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn save(&mut self, is_best: bool) -> Result<()> {
        self.state.data = self.job.train.state();
        self.state.seconds = self.seconds();
        let model = self.job.model.state()?;
        let path = self.store.save(&self.state, &model, &self.job.files, is_best)?;
        self.saved = Some(self.state.step);
        self.tell(&Event::Saved { path: &path, is_best })
    }

    fn interrupt(&mut self, exit_code: usize) -> Result<Outcome> {
        if self.saved != Some(self.state.step) {
            self.save(false)?;
        }
        Ok(self.outcome(Ending::Interrupted { exit_code }, None))
    }

    fn finish(&mut self, ending: Ending, mut is_best: bool) -> Result<Outcome> {
        let step = self.state.step;
        let fresh = |record: &EvalRecord| record.step == step && record.whole_split;
        let mut validation = self.last_eval.filter(fresh);
        if validation.is_none() {
            validation = self.evaluate(Extent::Whole)?;
            // Comparable with the validations before only if those were over the whole split too.
            if let Some(record) = validation {
                if self.job.config.train.eval_batches == 0 {
                    is_best = self.judge(&record)?.0;
                } else {
                    self.tell(&Event::Eval { record: &record, is_best: false })?;
                    self.tell_sources(step)?;
                }
            }
        }
        if self.recorder.as_ref().is_none_or(|recorder| !recorder.has_samples_at(step)) {
            self.sample()?;
        }
        if self.saved != Some(step) || is_best {
            self.save(is_best)?;
        }
        Ok(self.outcome(ending, validation))
    }

    fn outcome(&self, ending: Ending, validation: Option<EvalRecord>) -> Outcome {
        Outcome {
            ending,
            step: self.state.step,
            steps: self.job.config.train.steps,
            tokens: self.state.tokens,
            seconds: self.seconds(),
            best: self.state.early_stopping.best,
            sources: if validation.is_some() { self.last_sources.clone() } else { vec![] },
            validation,
            run: self.job.run.path().to_path_buf(),
            resume_command: self.job.run.resume_command(),
        }
    }

    /// Leaves the run folder in order however the run ended. The ending itself matters more than what fails here.
    fn close(&mut self, result: &Result<Outcome>) {
        if let Some(recorder) = &self.recorder {
            let _ = recorder.draw();
        }
        let (status, error) = match result {
            Ok(outcome) => {
                self.job.run.manifest.results = serde_json::to_value(outcome).unwrap_or_default();
                let status = match outcome.ending {
                    Ending::Finished => Status::Finished,
                    Ending::StoppedEarly => Status::StoppedEarly,
                    Ending::Interrupted { .. } => Status::Interrupted,
                };
                (status, None)
            }
            Err(error) => (Status::Failed, Some(error.to_string())),
        };
        self.job.run.manifest.artefacts.clear();
        for name in ARTEFACTS {
            let _ = self.job.run.add_artefact(name);
        }
        // A checkpoint's manifest holds the hashes of its other files.
        for step in self.store.steps() {
            let _ = self.job.run.add_artefact(&format!("checkpoints/step-{step}/manifest.json"));
        }
        self.job.run.manifest.end(status, self.state.step, error);
        let _ = self.job.run.write_manifest();
        self.job.observers.clear();
    }

    /// Adds to an error what is left and how to go on.
    fn with_hint(&self, error: Error) -> Error {
        let Some(step) = self.store.find(Which::Last) else { return error };
        let hint = format!("the last good checkpoint is step-{step}; go on with `{}`", self.job.run.resume_command());
        match error {
            Error::Data(m) => Error::Data(format!("{m}; {hint}")),
            Error::Device(m) => Error::Device(format!("{m}; {hint}")),
            Error::Numerics(m) => Error::Numerics(format!("{m}; {hint}")),
            Error::Io { path, message } => Error::Io { path, message: format!("{message}; {hint}") },
            other => other,
        }
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn record(&mut self, record: Record, log: bool) -> Result<()> {
        match &mut self.recorder {
            Some(recorder) => recorder.record(record, log),
            None => Ok(()),
        }
    }

    fn tell(&mut self, event: &Event) -> Result<()> {
        self.job.observers.iter_mut().try_for_each(|observer| observer.on(event))
    }
}

fn due(step: u64, interval: u64) -> bool {
    interval > 0 && step.is_multiple_of(interval)
}
