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
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

pub(super) fn json(path: &Path) -> Result<Value> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::Checkpoint(format!("{}: not JSON: {e}", path.display())))
}

pub(super) fn open(folder: &Path) -> Result<ModelFile> {
    let path = folder.join(CONFIG);
    let (_, mut config) = hf_config::read(&path.display().to_string(), &json(&path)?)?;
    let tensors = SafetensorsModel::in_folder(folder)?;
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
    let tokenizer = folder.join(TOKENIZER_JSON);
    if !tokenizer.is_file() {
        return Err(Error::Checkpoint(format!(
            "{}: there is no {TOKENIZER_JSON}; in `transformers`, AutoTokenizer.from_pretrained(..).save_pretrained(..) writes one",
            folder.display()
        )));
    }
    let tokenizer = Tokenizer::load(&tokenizer)?;
    super::check_vocabulary(&path.display().to_string(), &config, &tokenizer)?;
    Ok(ModelFile {
        config,
        tokenizer,
        chat_template: chat_template(folder)?,
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

/// The template of conversations: a file of its own, or a key of the tokenizer's configuration (a text, or a list of named ones).
fn chat_template(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(TEMPLATE);
    if path.is_file() {
        return read_text(&path).map(Some);
    }
    let path = folder.join(TOKENIZER_CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let config = json(&path)?;
    let named = config["chat_template"].as_array().into_iter().flatten().find(|t| t["name"] == "default");
    let template = named.map_or(&config["chat_template"], |t| &t["template"]);
    Ok(template.as_str().map(str::to_owned))
}
