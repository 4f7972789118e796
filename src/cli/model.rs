//! Opening a model for a command: a run of ours, or a file or folder of another program. The flags are the same everywhere.

use super::checkpoint::{Opened, newest_run};
use crate::device::{Device, choose};
use crate::models::files::{self, FileFormat, ModelFile, OpenOptions};
use crate::models::session::Storing;
use crate::models::session::kept::{Keeping, WhenFull};
use crate::models::{Session, setup};
use crate::ops::packed::Activations;
use crate::ops::workloads::workloads;
use crate::tensor::DType;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheType {
    #[default]
    F32,
    F16,
    Int8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FullContext {
    #[default]
    Forget,
    Stop,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ActivationType {
    /// Left as they are
    F32,
    /// Rounded to int8 in blocks of 32, as llama.cpp does: products with 8-bit and 4-bit weights are sums of integers then
    #[default]
    Int8,
}

#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// Run folder, checkpoint, GGUF file, Hugging Face folder or llama2.c file (default: the newest run under runs/)
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub options: ModelOptions,
}

#[derive(Clone, Debug, clap::Args)]
pub struct ModelOptions {
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Of a run: the last checkpoint instead of the best
    #[arg(long)]
    pub last: bool,
    /// The tokenizer, where it is not in the model's file or folder
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a text whose keys and values are kept (default: the model's context, at most 4096)
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// What keys and values are kept as
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub cache_type: CacheType,
    /// Keep no keys and values: read the whole text again for every token
    #[arg(long)]
    pub no_cache: bool,
    /// When the context is full: give up the beginning of the text (what is kept is then read again), or end the text
    #[arg(long, value_enum, default_value_t, value_name = "WHAT", conflicts_with = "no_cache")]
    pub when_full: FullContext,
    /// What products with weights of 8-bit or 4-bit integers do with their other operand
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    pub activations: ActivationType,
    /// Keep quantised weights as f32 in memory
    #[arg(long)]
    pub widen: bool,
}

/// A model that was found, before its weights are read.
pub enum Found {
    Run(Box<Opened>),
    File(Box<ModelFile>),
}

impl ModelArgs {
    pub fn find(&self) -> Result<(PathBuf, Found)> {
        let path = match &self.model {
            Some(path) => path.clone(),
            None => newest_run()?,
        };
        let found = self.options.find(&path)?;
        Ok((path, found))
    }
}

impl ModelOptions {
    /// What is at `path`.
    pub fn find(&self, path: &Path) -> Result<Found> {
        if files::detect(path)? == FileFormat::Checkpoint {
            if let Some(tokenizer) = &self.tokenizer {
                return Err(Error::Config(format!(
                    "--tokenizer {}: a run has the tokenizer it was trained with; leave it out",
                    tokenizer.display()
                )));
            }
            return Ok(Found::Run(Box::new(Opened::find(path, self.last)?)));
        }
        let options = OpenOptions { tokenizer: self.tokenizer.clone(), last: self.last };
        Ok(Found::File(Box::new(files::open_with(path, &options)?)))
    }

    pub fn device(&self) -> Result<Device> {
        Ok(choose::choose(&self.device, workloads)?.device)
    }

    /// The model with its weights on `device`.
    pub fn session(&self, found: &Found, device: Device) -> Result<Session> {
        let mut session = match found {
            Found::Run(opened) => opened.session(device)?,
            Found::File(file) => {
                let activations = match self.activations {
                    ActivationType::F32 => Activations::F32,
                    ActivationType::Int8 => Activations::Int8,
                };
                let storing = Storing { widened: self.widen, activations };
                let model = setup::model(&file.config)?;
                Session::for_weights(model, file.tokenizer.clone(), device, file.weights.as_ref(), storing)?
            }
        };
        let storage = match self.cache_type {
            CacheType::F32 => DType::F32,
            CacheType::F16 => DType::F16,
            CacheType::Int8 => DType::I8,
        };
        let when_full = match self.when_full {
            FullContext::Forget => WhenFull::Forget,
            FullContext::Stop => WhenFull::Stop,
        };
        let wanted = Keeping { context: self.context, storage, off: self.no_cache, when_full };
        if wanted != session.keeping() {
            if !session.model().keeps() {
                return Err(Error::Config(
                    "--context, --cache-type, --no-cache and --when-full are for models that keep keys and values (gpt and llama)"
                        .into(),
                ));
            }
            session.keep(wanted)?;
        }
        Ok(session)
    }
}

impl Found {
    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Found::Run(opened) => &opened.tokenizer,
            Found::File(file) => &file.tokenizer,
        }
    }

    /// The step of a checkpoint.
    pub fn step(&self) -> Option<u64> {
        match self {
            Found::Run(opened) => Some(opened.step),
            Found::File(_) => None,
        }
    }

    /// Tokens that the model can read at most.
    pub fn context(&self) -> usize {
        match self {
            Found::Run(opened) => opened.config.model.context(),
            Found::File(file) => file.config.context(),
        }
    }

    /// What a person should know of a file, one line each.
    pub fn notes(&self) -> &[String] {
        match self {
            Found::Run(_) => &[],
            Found::File(file) => &file.notes,
        }
    }

    pub fn chat_template(&self) -> Option<&str> {
        match self {
            Found::Run(_) => None,
            Found::File(file) => file.chat_template.as_deref(),
        }
    }
}
