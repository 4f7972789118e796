//! Writing models as files of other programs: one tensor at a time, complete or not at all.

mod emit;
mod gguf;
mod hf;
mod lite;
mod llama2c;
mod safetensors;

use super::ModelFile;
use crate::config::ModelConfig;
use crate::train::files::sync_folder;
use crate::{Error, Result};
use formats::llama2c::Version;
use kernels_cpu::blocks::Format;
use std::path::{Path, PathBuf};

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Gguf,
    HuggingFace,
    /// As `run.c` reads it.
    Llama2c,
    Llama2cV1,
    GgufLite,
}

/// How to write it.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// The type of matrices; none: as they are, where the target has that type. Vectors keep 32 bits in GGUF.
    pub format: Option<Format>,
    /// Replace what is there.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Written {
    pub bytes: u64,
    pub tensors: usize,
    /// The architecture's name in the target.
    pub architecture: String,
    /// What a person should know, one line each.
    pub notes: Vec<String>,
}

/// A model on its way into a file.
struct Job<'a> {
    model: &'a ModelFile,
    format: Option<Format>,
    /// What the model is called in the file.
    name: String,
}

impl Job<'_> {
    /// Names of the matrices that are multiplied with.
    fn matrices(&self) -> Vec<String> {
        let (layers, tied) = match &self.model.config {
            ModelConfig::Gpt(c) => (c.layers, c.tied_head),
            ModelConfig::Llama(c) => (c.layers, c.tied_head),
            ModelConfig::Coeus(_) => (0, true),
        };
        const EACH: [&str; 7] = [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        let each = (0..layers).flat_map(|i| EACH.map(|module| format!("model.layers.{i}.{module}.weight")));
        let head = (!tied).then(|| "lm_head.weight".to_string());
        std::iter::once("model.embed_tokens.weight".to_string()).chain(each).chain(head).collect()
    }
}

/// What a stored gain of a norm lacks.
fn less_one(stored_less_one: bool) -> f32 {
    if stored_less_one { 1.0 } else { 0.0 }
}

/// Writes `model` to `path`, as a file or folder.
///
/// # Errors
/// `path` is there already and `force` is not set; settings that the target has no place for; `Error::Io`. Nothing is left behind then.
pub fn write(model: &ModelFile, path: &Path, target: Target, options: &WriteOptions) -> Result<Written> {
    let name = path.file_stem().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let job = Job { model, format: options.format, name };
    check_target(model, path, target, options.force)?;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::Io {
            path: parent.to_path_buf(),
            message: format!("no folder can be made there for {}: {e}", path.display()),
        })?;
    }
    match target {
        Target::Gguf => gguf::write(&job, path),
        Target::GgufLite => lite::write(&job, path),
        Target::Llama2c => llama2c::write(&job, path, Version::Legacy, options.force),
        Target::Llama2cV1 => llama2c::write(&job, path, Version::V1, options.force),
        Target::HuggingFace => {
            let folder = hf::plan(&job)?;
            replace_folder(path, |temporary| {
                hf::write_texts(&job, &folder, temporary)?;
                safetensors::write(job.model.weights.as_ref(), &folder.tensors, &folder.meaning, temporary)
            })?;
            let bytes = formats::safetensors::Model::open(path)?.byte_len();
            let architecture = folder.config["architectures"][0].as_str().unwrap_or_default().to_string();
            Ok(Written { bytes, tensors: folder.tensors.len(), architecture, notes: folder.notes })
        }
    }
}

/// Refuses to overwrite, unless told to; never the model itself, nor a folder that is no model.
fn check_target(model: &ModelFile, path: &Path, target: Target, force: bool) -> Result<()> {
    let refuse = |what: &str| Err(Error::Io { path: path.to_path_buf(), message: what.into() });
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(path, &model.origin) || model.origin.ancestors().skip(1).any(|p| !p.as_os_str().is_empty() && same(path, p))
    {
        return refuse("is the model that is read, or a folder around it; give another path");
    }
    if meta.is_dir() != (target == Target::HuggingFace) {
        return refuse(if meta.is_dir() {
            "is a folder; give the path of a file"
        } else {
            "is a file; give the path of a folder"
        });
    }
    let empty = meta.is_dir() && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        return Ok(());
    }
    if !force {
        return refuse("exists; --force replaces it");
    }
    if meta.is_dir() && !path.join("config.json").is_file() {
        return refuse("is a folder without a config.json, so no model; it is not replaced");
    }
    Ok(())
}

/// Fills a temporary folder beside `path` and gives it that name when it is complete; what had the name is removed then.
fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let temporary = beside(path, ".tmp-");
    let _ = std::fs::remove_dir_all(&temporary);
    let moved = std::fs::create_dir(&temporary).map_err(|e| Error::io(&temporary, e)).and_then(|()| {
        fill(&temporary)?;
        sync_folder(&temporary)?;
        let old = beside(path, ".old-");
        let _ = std::fs::remove_dir_all(&old);
        let there = path.exists();
        if there {
            std::fs::rename(path, &old).map_err(|e| Error::io(path, e))?;
        }
        std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e)).inspect_err(|_| {
            if there {
                let _ = std::fs::rename(&old, path);
            }
        })?;
        let _ = std::fs::remove_dir_all(&old);
        Ok(())
    });
    moved.inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&temporary);
    })?;
    sync_folder(parent)
}

/// A hidden name in the same folder.
fn beside(path: &Path, prefix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{prefix}{name}"))
}
