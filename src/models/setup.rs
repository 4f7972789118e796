//! From a configuration to a model on a device.

use super::coeus::Coeus;
use super::gpt::Gpt;
use super::llama::Llama;
use super::session::{Step, TrainingPlans};
use super::{LanguageModel, Session};
use crate::Result;
use crate::config::{Config, ModelConfig};
use crate::device::Device;
use crate::tokenizer::Tokenizer;

/// The model of a configuration whose vocabulary is known.
pub fn model(config: &ModelConfig) -> Result<Box<dyn LanguageModel>> {
    match config {
        ModelConfig::Gpt(gpt) => Ok(Box::new(Gpt::new(gpt.clone())?)),
        ModelConfig::Coeus(coeus) => Ok(Box::new(Coeus::new(coeus.clone())?)),
        ModelConfig::Llama(llama) => Ok(Box::new(Llama::new(llama.clone())?)),
    }
}

/// A session ready to train `config` on `device`.
pub fn training_session(config: &Config, tokenizer: &Tokenizer, device: Device) -> Result<Session> {
    let model = model(&config.model)?;
    let optimizer = config.optimizer.clone();
    Session::for_training(model, tokenizer.clone(), optimizer, device, step(config)?, config.train.seed)
}

/// The plans of a training step of `config` on `device`, with nothing allocated.
pub fn training_plans(config: &Config, device: &Device) -> Result<TrainingPlans> {
    let step = step(config)?;
    TrainingPlans::new(model(&config.model)?.as_ref(), &config.optimizer, step, device)
}

/// FLOPs of a training step, about: six for every parameter and token (Kaplan et al. 2020).
pub fn step_flops(config: &Config) -> f64 {
    let tokens = config.train.batch_size * config.model.context() * config.train.accumulation;
    6.0 * config.model.parameter_count() as f64 * tokens as f64
}

fn step(config: &Config) -> Result<Step> {
    let train = &config.train;
    let shape = (train.batch_size, config.model.context());
    let budget = config.run.budget()?;
    Ok(Step { shape, accumulation: train.accumulation, precision: train.precision, budget })
}
