//! Folders as Hugging Face's `transformers` writes them.

use super::links::LinkedWeights;
use super::safetensors::SafetensorsModel;
use super::{FileFormat, ModelFile, hf_config, tables};
use crate::config::ModelConfig;
use crate::tokenizer::{TOKENIZER_JSON, Tokenizer};
use crate::train::files::read_text;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

pub(super) const CONFIG: &str = "config.json";

pub(super) fn json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::Checkpoint(format!("{}: not JSON: {e}", path.display())))
}

pub(super) fn open(folder: &Path, given: Option<Tokenizer>) -> Result<ModelFile> {
    let path = folder.join(CONFIG);
    let (_, mut config) = hf_config::read(&path.display().to_string(), &json(&path)?)?;
    let tensors = SafetensorsModel::open(folder)?;
    if !tensors.has("lm_head.weight") {
        // Without a head of its own a model can only use the embedding.
        match &mut config {
            ModelConfig::Llama(c) => c.tied_head = true,
            ModelConfig::Gpt(c) => c.tied_head = true,
            ModelConfig::Coeus(_) => {}
        }
    }
    // Folders of a model saved without its head have no prefix.
    let table = match &config {
        ModelConfig::Llama(c) => {
            let prefix = if tensors.has("embed_tokens.weight") { "" } else { "model." };
            tables::hf_llama(c, prefix, c.norm_plus_one)
        }
        ModelConfig::Gpt(c) => {
            let prefix = if tensors.has("wte.weight") { "" } else { "transformer." };
            tables::hf_gpt2(c, prefix)
        }
        ModelConfig::Coeus(_) => return Err(Error::Checkpoint(format!("{}: no such model", path.display()))),
    };
    let (weights, notes) = LinkedWeights::new(tensors, table, harmless)?;
    if given.is_none() && !folder.join(TOKENIZER_JSON).is_file() {
        return Err(Error::Checkpoint(format!(
            "{}: there is no {TOKENIZER_JSON}; in `transformers`, AutoTokenizer.from_pretrained(..).save_pretrained(..) writes one",
            folder.display()
        )));
    }
    let tokenizer = given.map_or_else(|| Tokenizer::from_folder(folder), Ok)?;
    super::check_vocabulary(&path.display().to_string(), &config, &tokenizer)?;
    Ok(ModelFile {
        config,
        chat_template: tokenizer.chat_template().map(str::to_owned),
        tokenizer,
        weights: Box::new(weights),
        origin: folder.to_path_buf(),
        format: FileFormat::HuggingFace,
        notes,
    })
}

/// Tensors that files carry though nothing needs them: tables that follow from the configuration, and the tied head.
fn harmless(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || name == "lm_head.weight"
        || (name.contains("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")))
}
