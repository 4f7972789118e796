//! Folders as Hugging Face's `transformers` writes them.

use super::links::{LinkedWeights, Tensors};
use super::safetensors::SafetensorsModel;
use super::{FileFormat, ModelFile, hf_config, tables};
use crate::config::{GptConfig, LlamaConfig, ModelConfig};
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
    let json = json(&path)?;
    let (_, mut config) = hf_config::read(&path.display().to_string(), &json)?;
    let tensors = SafetensorsModel::open(folder)?;
    let mut head_note = None;
    if let ModelConfig::Llama(LlamaConfig { tied_head, .. }) | ModelConfig::Gpt(GptConfig { tied_head, .. }) =
        &mut config
    {
        if !tensors.has(HEAD) && json["tie_word_embeddings"] != false {
            // Without a head of its own a model can only use the embedding.
            *tied_head = true;
        } else if *tied_head && differs_from_embedding(&tensors)? {
            // What `transformers` does.
            *tied_head = false;
            head_note = Some(format!(
                "{}: tie_word_embeddings is set, but {HEAD} is not the table of tokens: it is used as the head",
                path.display()
            ));
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
    let (weights, mut notes) = LinkedWeights::new(tensors, table, harmless)?;
    notes.extend(head_note);
    if given.is_none() && !folder.join(TOKENIZER_JSON).is_file() {
        return Err(Error::Checkpoint(format!(
            "{}: there is no {TOKENIZER_JSON}; in `transformers`, AutoTokenizer.from_pretrained(..).save_pretrained(..) writes one",
            folder.display()
        )));
    }
    let read = || -> Result<Tokenizer> {
        let mut tokenizer = Tokenizer::from_folder(folder)?;
        // Where nothing is said `transformers` puts nothing before a text.
        tokenizer.begins_with_nothing_unless_said();
        Ok(tokenizer)
    };
    let tokenizer = given.map_or_else(read, Ok)?;
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

const HEAD: &str = "lm_head.weight";

/// Whether the file has a head that is another matrix than the table of tokens.
fn differs_from_embedding(tensors: &SafetensorsModel) -> Result<bool> {
    const TABLES: [&str; 4] =
        ["model.embed_tokens.weight", "embed_tokens.weight", "transformer.wte.weight", "wte.weight"];
    let Some(head) = tensors.find(HEAD)? else { return Ok(false) };
    let Some(name) = TABLES.into_iter().find(|name| tensors.has(name)) else { return Ok(false) };
    if tensors.find(name)?.as_ref() != Some(&head) {
        return Ok(true);
    }
    let bytes = head.bytes().map_err(|e| Error::Checkpoint(format!("{}: {HEAD}: {e}", tensors.origin())))?;
    let mut parts = [vec![0; bytes.min(1 << 18)], vec![0; bytes.min(1 << 18)]];
    for at in (0..bytes).step_by(1 << 18) {
        let count = (bytes - at).min(1 << 18);
        for (part, name) in parts.iter_mut().zip([HEAD, name]) {
            tensors.read_at(name, at as u64, &mut part[..count])?;
        }
        if parts[0][..count] != parts[1][..count] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tensors that files carry though nothing needs them: tables that follow from the configuration, and the tied head.
fn harmless(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || name == HEAD
        || (name.contains("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")))
}
