//! GGUF-lite files, by our own names.

use super::emit::{Meaning, Outgoing, emit};
use super::{Job, Written};
use crate::config::{ModelConfig, RopeLayout};
use crate::models::files::lite::{MODEL, ROLES, TEMPLATE, TOKENIZER};
use crate::models::files::{links::Table, tables};
use crate::{Error, Result};
use formats::gguf_lite::{Tensor, Type, Writer};
use kernels_cpu::blocks::Format;
use serde_json::Value;
use std::path::Path;

pub(super) fn write(job: &Job, path: &Path) -> Result<Written> {
    let (model, source) = (job.model, job.model.weights.as_ref());
    let table: Table = match &model.config {
        ModelConfig::Gpt(c) => tables::own_gpt(c),
        ModelConfig::Llama(c) => tables::own_llama(c),
        ModelConfig::Coeus(_) => return Err(Error::Config("coeus models are not written as GGUF-lite".into())),
    };
    let wanted = match job.format {
        None => None,
        Some(Format::F32) => Some(Type::F32),
        Some(Format::F16) => Some(Type::F16),
        Some(Format::Int8Row) => Some(Type::Q8),
        Some(Format::Int4Group(64)) => Some(Type::Q4),
        Some(other) => {
            let what = format!("--type {other} has no place in GGUF-lite: use f32, f16, int8-row or int4-g64");
            return Err(Error::Config(what));
        }
    };
    let mut notes = Vec::new();
    let mut kept = 0;
    let mut infos = Vec::new();
    for link in &table.links {
        let (shape, name) = (link.shape(), &link.stored);
        let stored = source.find(name).map_or(Format::F32, |weight| weight.format);
        let as_it_is = if stored == Format::F16 { Type::F16 } else { Type::F32 };
        let kind = if shape.len() == 1 { Type::F32 } else { wanted.unwrap_or(as_it_is) };
        let info = Tensor::new(name, &shape, kind).or_else(|_| {
            // Rows that are not whole groups.
            kept += 1;
            Tensor::new(name, &shape, Type::F16)
        });
        infos.push(info.map_err(Error::Checkpoint)?);
    }
    if kept > 0 {
        notes.push(format!("{kept} tensors do not have rows of whole groups of 64 and are f16"));
    }
    let line = |value: &Value| value.to_string();
    let json = |e: serde_json::Error| Error::Failed(format!("cannot write JSON: {e}"));
    let config = line(&serde_json::to_value(&model.config).map_err(json)?);
    let tokenizer: Value = serde_json::from_str(&model.tokenizer.to_huggingface_json()).map_err(json)?;
    let (tokenizer, template) = (line(&tokenizer), model.chat_template.as_ref().map(|t| line(&t.as_str().into())));
    let mut metadata = vec![("general.name", job.name.as_str()), (MODEL, &config), (TOKENIZER, &tokenizer)];
    let roles = model.tokenizer.roles().map(serde_json::to_string).transpose().map_err(json)?;
    metadata.extend(roles.as_ref().map(|roles| (ROLES, roles.as_str())));
    metadata.extend(template.as_ref().map(|template| (TEMPLATE, template.as_str())));
    let mut writer = Writer::create(path, &metadata, infos)?;
    // Our names mean what they mean in the model itself.
    let layout = RopeLayout::HalfSplit;
    let meaning = Meaning { from_layout: layout, to_layout: layout, head_dim: 1, turned: 0, add_to_gains: 0.0 };
    let tensors = table.links.len();
    for link in table.links {
        let tensor = Outgoing { shape: link.shape(), link, format: Format::F32 };
        let mut x = Vec::new();
        emit(source, &tensor, &meaning, &mut |bytes| {
            x.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            Ok(())
        })?;
        writer.write(&tensor.link.stored, &x)?;
    }
    writer.finish()?;
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    let architecture = config_kind(&model.config).into();
    Ok(Written { bytes, tensors, architecture, notes })
}

fn config_kind(config: &ModelConfig) -> &'static str {
    match config {
        ModelConfig::Gpt(_) => "gpt",
        ModelConfig::Llama(_) => "llama",
        ModelConfig::Coeus(_) => "coeus",
    }
}
