//! Runs and checkpoints of this program as models.

use super::links::LinkedWeights;
use super::safetensors::SafetensorsModel;
use super::{FileFormat, ModelFile, hf, tables};
use crate::config::{Config, ModelConfig};
use crate::tokenizer::{TOKENIZER_JSON, Tokenizer};
use crate::train::checkpoint::{CheckpointStore, Which};
use crate::train::files::read_text;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// `path` is a run folder (its best checkpoint, else its last) or a checkpoint folder.
pub(super) fn open(path: &Path, last: bool) -> Result<ModelFile> {
    let (folder, mut config) =
        if path.join("config.toml").is_file() { of_run(path, last)? } else { of_checkpoint(path)? };
    let tokenizer = Tokenizer::load(&folder.join(TOKENIZER_JSON))?;
    config.set_vocab_size(tokenizer.vocab_size())?;
    config.resolve();
    config.validate()?;
    if let ModelConfig::Gpt(c) = &config.model
        && c.layers > 1 << 10
    {
        return Err(Error::Checkpoint(format!("{}: {} layers are more than 1024", folder.display(), c.layers)));
    }
    let table = match &config.model {
        ModelConfig::Gpt(c) => tables::own_gpt(c),
        ModelConfig::Llama(c) => tables::own_llama(c),
        ModelConfig::Coeus(_) => {
            return Err(Error::Checkpoint(format!(
                "{}: a coeus model; other programs have none, so it stays in its run folder",
                path.display()
            )));
        }
    };
    let (weights, notes) = LinkedWeights::new(SafetensorsModel::in_folder(&folder)?, table, |_| false)?;
    Ok(ModelFile {
        config: config.model,
        tokenizer,
        chat_template: None,
        weights: Box::new(weights),
        origin: folder,
        format: FileFormat::Checkpoint,
        notes,
    })
}

fn of_run(run: &Path, last: bool) -> Result<(PathBuf, Config)> {
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
