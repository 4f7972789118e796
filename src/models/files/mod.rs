//! Models in files: what a file or folder holds, by its content, and its weights by our names.
//!
//! A file is read as tensors (`links::Tensors`) and a configuration; a table (`tables`) says where in the tensors each weight of ours
//! is. The same tables serve writing.

mod gguf;
mod gguf_config;
mod hf;
mod hf_config;
mod keys;
mod layers;
mod links;
mod llama3;
mod numbers;
mod own;
mod safetensors;
mod tables;

use super::weights::WeightSource;
use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// How a model is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    Gguf,
    HuggingFace,
    Llama2c,
    GgufLite,
    /// A run of ours, or one of its checkpoints.
    Checkpoint,
}

/// A model in a file: everything but the numbers, and where those are.
pub struct ModelFile {
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
    pub chat_template: Option<String>,
    pub weights: Box<dyn WeightSource>,
    pub origin: PathBuf,
    pub format: FileFormat,
    /// What a person should know, one line each.
    pub notes: Vec<String>,
}

/// How to open a model.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The tokenizer, instead of the one with the model.
    pub tokenizer: Option<PathBuf>,
    /// Of a run, its last checkpoint instead of its best.
    pub last: bool,
}

/// Opens the model at `path`: a GGUF file, a Hugging Face folder or a file of one, a run folder of ours or a checkpoint.
///
/// # Errors
/// `Error::Checkpoint` for what is none of these, is damaged, or has settings that are not supported; `Error::Io`.
pub fn open(path: &Path) -> Result<ModelFile> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`].
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<ModelFile> {
    match detect(path)? {
        FileFormat::Gguf => gguf::open(path),
        FileFormat::HuggingFace => hf::open(&folder_of(path)),
        FileFormat::Checkpoint => own::open(&folder_of(path), options.last),
        format => Err(Error::Checkpoint(format!("{}: {format:?} is not read", path.display()))),
    }
}

/// The folder that a file of a model belongs to; `path` itself if it is one.
fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_path_buf();
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_path_buf() }
}

/// What is at `path`, by its content and not by its name.
///
/// # Errors
/// Nothing known, or nothing there.
pub fn detect(path: &Path) -> Result<FileFormat> {
    let unknown = |what: &str| {
        Err(Error::Checkpoint(format!(
            "{}: {what}; models are GGUF files, Hugging Face folders (config.json, safetensors, tokenizer.json), llama2.c and GGUF-lite files, run folders and checkpoints of this program",
            path.display()
        )))
    };
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if meta.is_dir() {
        if path.join("config.toml").is_file() {
            return Ok(FileFormat::Checkpoint);
        }
        let config = path.join(hf::CONFIG);
        if !config.is_file() {
            return unknown("a folder without config.json or config.toml");
        }
        // Checkpoints of ours say `kind` where Hugging Face says `architectures`.
        let own = hf::json(&config)?.get("kind").is_some();
        return Ok(if own { FileFormat::Checkpoint } else { FileFormat::HuggingFace });
    }
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(64).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    match head[..] {
        [b'G', b'G', b'U', b'F', ..] => Ok(FileFormat::Gguf),
        // A length of less than 2^32 and a JSON object: safetensors; it is a part of a folder.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] | [b'{', ..] if folder_of(path).join(hf::CONFIG).is_file() => {
            detect(&folder_of(path))
        }
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => {
            unknown("a safetensors file without the config.json that says what it is")
        }
        _ => unknown("not a model in a known format"),
    }
}

/// Refuses a tokenizer whose ids have no row in the embedding.
fn check_vocabulary(file: &str, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<()> {
    let (ids, rows) = (tokenizer.vocab_size(), config.vocab_size());
    if ids > rows {
        return Err(Error::Checkpoint(format!(
            "{file}: the tokenizer has {ids} ids, the model {rows} rows for them; the tokenizer belongs to another model"
        )));
    }
    Ok(())
}
