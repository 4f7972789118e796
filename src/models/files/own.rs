//! Runs and checkpoints of this program as models.

use super::links::{LinkedWeights, Table};
use super::safetensors::SafetensorsModel;
use super::{FileFormat, ModelFile, hf, tables};
use crate::config::{Config, ModelConfig};
use crate::tokenizer::{TOKENIZER_JSON, Tokenizer};
use crate::train::checkpoint::{CheckpointStore, Which};
use crate::train::files::read_text;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// `path` is a run folder (its best checkpoint, else its last) or a checkpoint folder.
pub(super) fn open(path: &Path, last: bool, given: Option<Tokenizer>) -> Result<ModelFile> {
    let (folder, config) = if path.join("config.toml").is_file() { of_run(path, last)? } else { of_checkpoint(path)? };
    let load = || Tokenizer::load(&folder.join(TOKENIZER_JSON));
    let tokenizer = given.map_or_else(load, Ok)?;
    let (config, table) = checked(&folder.display().to_string(), config, &tokenizer)?;
    let (weights, notes) = LinkedWeights::new(SafetensorsModel::open(&folder)?, table, |_| false)?;
    Ok(ModelFile {
        config,
        tokenizer,
        chat_template: None,
        weights: Box::new(weights),
        origin: folder,
        format: FileFormat::Checkpoint,
        notes,
    })
}

/// A configuration of ours from a file, resolved and within bounds, and the weights that it asks for.
pub(super) fn checked(file: &str, mut config: Config, tokenizer: &Tokenizer) -> Result<(ModelConfig, Table)> {
    let bad = |what: String| Error::Checkpoint(format!("{file}: {what}"));
    let said = |e: Error| bad(e.to_string().trim_start_matches("config: ").to_string());
    // Sums of sizes are made below, so sizes come first.
    if let ModelConfig::Gpt(c) = &config.model {
        let sizes = [c.heads, c.kv_heads, c.width, c.ff_width, c.context, c.vocab_size];
        if c.layers > 1 << 10 || sizes.iter().any(|&size| size as u64 > super::keys::LARGEST) {
            return Err(bad(format!("the model has sizes that no model has: {c:?}")));
        }
    }
    config.set_vocab_size(tokenizer.vocab_size()).map_err(said)?;
    match &config.model {
        ModelConfig::Gpt(c) => c.validate(),
        ModelConfig::Llama(c) => c.validate(),
        ModelConfig::Coeus(_) => Ok(()),
    }
    .map_err(said)?;
    config.resolve();
    let table = match &config.model {
        ModelConfig::Gpt(c) => tables::own_gpt(c),
        ModelConfig::Llama(c) => tables::own_llama(c),
        ModelConfig::Coeus(_) => {
            return Err(bad("a coeus model; other programs have none, so it stays in its run folder".into()));
        }
    };
    Ok((config.model, table))
}

pub(super) fn of_run(run: &Path, last: bool) -> Result<(PathBuf, Config)> {
    let path = run.join("config.toml");
    let config = Config::parse(&read_text(&path)?, &path.to_string_lossy(), &[])?;
    let store = CheckpointStore::new(run.join("checkpoints"), config.train.keep_checkpoints);
    let best = if last { None } else { store.find(Which::Best) };
    let step = best.or_else(|| store.find(Which::Last)).ok_or_else(|| {
        Error::Checkpoint(format!("{}: the run has no checkpoint yet; train it for longer", run.display()))
    })?;
    Ok((store.path(step), config))
}

/// A checkpoint says itself what model it is.
fn of_checkpoint(folder: &Path) -> Result<(PathBuf, Config)> {
    let path = folder.join(hf::CONFIG);
    let model: ModelConfig = serde_json::from_value(hf::json(&path)?)
        .map_err(|e| Error::Checkpoint(format!("{}: not a model of this program: {e}", path.display())))?;
    Ok((folder.to_path_buf(), Config { model, ..Config::default() }))
}
