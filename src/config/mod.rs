//! What a person sets: one `Config`, read from TOML, changed by `--set path.to.key=value`, checked, and written back resolved.
//!
//! Every key has a default, so the default configuration is also the schema: a key it does not have is an error, and the
//! type of its default is the type a value must have (`document.rs`).

mod coeus;
mod document;
mod gpt;
mod llama;
mod presets;
mod sections;
pub mod size;

pub use coeus::{CoeusConfig, ForgetGate, Fusion, LocalMode, MemSource, Recurrence};
pub use gpt::{FeedForward, GptConfig, Init, Norm, Positions, RopeLayout};
pub use llama::{LlamaConfig, RopeScaling};
pub use presets::{PRESETS, Preset};
pub use sections::{
    Batching, DataConfig, OptimizerConfig, OptimizerKind, RunConfig, ScheduleConfig, ScheduleKind, TokenizerConfig,
    TokenizerKind, TrainConfig,
};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The model family and its shape, told apart by `model.kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModelConfig {
    Gpt(GptConfig),
    Coeus(CoeusConfig),
    Llama(LlamaConfig),
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig::Gpt(GptConfig::default())
    }
}

impl ModelConfig {
    /// Values of `model.kind`.
    pub const KINDS: [&'static str; 3] = ["gpt", "coeus", "llama"];

    /// The defaults of one family; None when there is no such family.
    fn default_of(kind: &str) -> Option<Self> {
        match kind {
            "gpt" => Some(Self::default()),
            "coeus" => Some(ModelConfig::Coeus(CoeusConfig::default())),
            "llama" => Some(ModelConfig::Llama(LlamaConfig::default())),
            _ => None,
        }
    }

    /// Longest sequence in tokens.
    pub fn context(&self) -> usize {
        match self {
            ModelConfig::Gpt(gpt) => gpt.context,
            ModelConfig::Coeus(coeus) => coeus.context,
            ModelConfig::Llama(llama) => llama.context,
        }
    }

    /// Rows of the token embedding; 0 until the tokenizer is known.
    pub fn vocab_size(&self) -> usize {
        match self {
            ModelConfig::Gpt(gpt) => gpt.vocab_size,
            ModelConfig::Coeus(coeus) => coeus.vocab_size,
            ModelConfig::Llama(llama) => llama.vocab_size,
        }
    }

    /// Number of trained scalars (needs the vocabulary).
    pub fn parameter_count(&self) -> u64 {
        match self {
            ModelConfig::Gpt(gpt) => gpt.parameter_count(),
            ModelConfig::Coeus(coeus) => coeus.parameter_count(),
            ModelConfig::Llama(llama) => llama.parameter_count(),
        }
    }

    /// Hidden width of the feed-forward network; 0 until it is resolved.
    pub fn ff_width(&self) -> usize {
        match self {
            ModelConfig::Gpt(gpt) => gpt.ff_width,
            ModelConfig::Coeus(coeus) => coeus.ff_width,
            ModelConfig::Llama(llama) => llama.ff_width,
        }
    }

    /// Changes the hidden width of the feed-forward network.
    pub fn set_ff_width(&mut self, width: usize) {
        match self {
            ModelConfig::Gpt(gpt) => gpt.ff_width = width,
            ModelConfig::Coeus(coeus) => coeus.ff_width = width,
            ModelConfig::Llama(llama) => llama.ff_width = width,
        }
    }

    fn vocab_size_mut(&mut self) -> &mut usize {
        match self {
            ModelConfig::Gpt(gpt) => &mut gpt.vocab_size,
            ModelConfig::Coeus(coeus) => &mut coeus.vocab_size,
            ModelConfig::Llama(llama) => &mut llama.vocab_size,
        }
    }

    /// The most numbers that a token becomes in any tensor.
    fn widest(&self) -> usize {
        let (vocab_size, ff_width, width) = match self {
            ModelConfig::Gpt(gpt) => (gpt.vocab_size, gpt.ff_width, gpt.width),
            ModelConfig::Coeus(coeus) => (coeus.vocab_size, coeus.ff_width, coeus.width),
            ModelConfig::Llama(llama) => (llama.vocab_size, llama.ff_width, llama.width),
        };
        vocab_size.max(ff_width).max(width)
    }
}

/// Everything one training run depends on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    pub model: ModelConfig,
    pub data: DataConfig,
    pub tokenizer: TokenizerConfig,
    pub train: TrainConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: ScheduleConfig,
    pub run: RunConfig,
}

impl Config {
    /// Reads `source`, which is the path of a TOML file or the name of a preset, and applies `sets` in order
    /// (each `path.to.key=value`; strings need no quotes). The result is resolved and validated.
    ///
    /// Returns the configuration and a short name for it: the preset's, or the file's stem.
    pub fn load(source: &str, sets: &[String]) -> Result<(Self, String)> {
        let path = Path::new(source);
        if path.is_file() {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            let name = path.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
            return Ok((Self::parse(&text, source, sets)?, name));
        }
        let preset = presets::find(source)?;
        Ok((Self::parse(preset.toml, &format!("configs/{}.toml", preset.name), sets)?, preset.name.into()))
    }

    /// Reads TOML text; `origin` is what messages call it.
    pub fn parse(text: &str, origin: &str, sets: &[String]) -> Result<Self> {
        let mut document = document::Document::new(text, origin)?;
        for set in sets {
            document.set(set)?;
        }
        let mut config = document.into_config()?;
        config.resolve();
        config.validate()?;
        Ok(config)
    }

    /// Fills in derived values (see [`GptConfig::resolve`]); idempotent.
    pub fn resolve(&mut self) {
        match &mut self.model {
            ModelConfig::Gpt(gpt) => gpt.resolve(),
            ModelConfig::Coeus(coeus) => coeus.resolve(),
            ModelConfig::Llama(llama) => llama.resolve(),
        }
        if self.schedule.decay_steps == 0 {
            self.schedule.decay_steps = self.train.steps;
        }
    }

    /// Checks every section; the message names the key.
    pub fn validate(&self) -> Result<()> {
        match &self.model {
            ModelConfig::Gpt(gpt) => gpt.validate()?,
            ModelConfig::Coeus(coeus) => coeus.validate()?,
            ModelConfig::Llama(llama) => llama.validate()?,
        }
        self.data.validate()?;
        self.tokenizer.validate()?;
        self.train.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.run.validate()?;
        self.check_step_size()
    }

    /// Refuses a micro-batch whose largest tensor has more bytes than can be counted.
    fn check_step_size(&self) -> Result<()> {
        const MOST_ELEMENTS: u128 = 1 << 48;
        let (batch, context, widest) = (self.train.batch_size, self.model.context(), self.model.widest());
        if batch as u128 * context as u128 * widest as u128 > MOST_ELEMENTS {
            return Err(Error::Config(format!(
                "train.batch_size = {batch} x model.context = {context} x {widest} (the widest of model.width, model.ff_width, model.vocab_size) is beyond any memory; use smaller ones"
            )));
        }
        Ok(())
    }

    /// Sets the vocabulary from the tokenizer where the configuration left it open, and refuses one that is too small.
    ///
    /// # Errors
    /// `Error::Config` when `model.vocab_size` is fixed below `tokenizer_size`.
    pub fn set_vocab_size(&mut self, tokenizer_size: usize) -> Result<()> {
        let vocab_size = self.model.vocab_size_mut();
        if *vocab_size == 0 {
            *vocab_size = tokenizer_size;
        }
        if *vocab_size < tokenizer_size {
            return Err(Error::Config(format!(
                "model.vocab_size = {vocab_size} but the tokenizer has {tokenizer_size} tokens; use 0 to take the tokenizer's size, or a larger value"
            )));
        }
        Ok(())
    }

    /// The configuration as TOML; `Config::parse` of it gives the same configuration.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a configuration has only TOML types")
    }

    /// SHA-256 of the TOML form, in hex. The `run` section is left out: where a run is written does not change it.
    pub fn hash(&self) -> String {
        let science = Config { run: RunConfig::default(), ..self.clone() };
        Sha256::digest(science.to_toml().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests;
