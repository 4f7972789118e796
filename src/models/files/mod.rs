//! Models in files: what a file or folder holds, by its content, and its weights by our names.
//!
//! A file is read as tensors (`links::Tensors`) and a configuration; a table (`tables`) says where in the tensors each weight of ours
//! is. The same tables serve writing.

mod gguf;
mod gguf_config;
mod hf;
mod hf_config;
pub mod inspect;
mod keys;
mod layers;
mod links;
mod lite;
mod llama2c;
mod llama3;
mod numbers;
mod own;
mod safetensors;
mod shape;
mod tables;
pub mod write;

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
    let given = options.tokenizer.as_deref().map(load_tokenizer).transpose()?;
    match detect(path)? {
        FileFormat::Gguf => gguf::open(path, given),
        FileFormat::HuggingFace => hf::open(&folder_of(path), given),
        FileFormat::Checkpoint => own::open(&folder_of(path), options.last, given),
        FileFormat::Llama2c => llama2c::open(path, given),
        FileFormat::GgufLite => lite::open(path, given),
    }
}

/// A tokenizer that is given by itself: a folder, a `tokenizer.json`, a GGUF file, or llama2.c's `tokenizer.bin`.
///
/// # Errors
/// A file that cannot be read, is none of these, or contradicts itself.
pub fn load_tokenizer(path: &Path) -> Result<Tokenizer> {
    let name = path.display().to_string();
    if path.is_dir() {
        let whole = path.join(crate::tokenizer::TOKENIZER_JSON).is_file();
        return if whole { Tokenizer::from_folder(path) } else { Tokenizer::load(path) };
    }
    let mut head = [0; 4];
    let (file, _) = formats::open_regular(path)?;
    let read = file.take(4).read(&mut head).map_err(|e| Error::io(path, e))?;
    match head {
        formats::gguf::MAGIC => {
            let file = formats::gguf::File::open(path)?;
            tokenizer_of(&name, || Tokenizer::from_gguf(file.metadata()))
        }
        // The length of its longest token.
        [_, _, 0, 0] if read == 4 => {
            let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            tokenizer_of(&name, || Tokenizer::from_llama2c_bytes(&bytes))
        }
        // What its tokens mean stands beside it.
        _ if path.file_name().is_some_and(|name| name == crate::tokenizer::TOKENIZER_JSON) => {
            Tokenizer::from_folder(&parent_of(path))
        }
        _ => Tokenizer::load(path),
    }
}

/// The folder that a file of a model belongs to; `path` itself if it is one.
fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_path_buf();
    }
    parent_of(path)
}

/// The folder that `path` is in.
fn parent_of(path: &Path) -> PathBuf {
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
    let (file, _) = formats::open_regular(path)?;
    file.take(64).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    match head[..] {
        [b'G', b'G', b'U', b'F', ..] => Ok(FileFormat::Gguf),
        // A length of less than 2^32 and a JSON object: safetensors; it is a part of a folder, as is what describes it.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] if folder_of(path).join(hf::CONFIG).is_file() => detect(&folder_of(path)),
        [b'{', ..] if [hf::CONFIG, formats::safetensors::INDEX].iter().any(|name| path.ends_with(name)) => {
            detect(&folder_of(path))
        }
        [b'2', b'4', b'k', b'a', ..] => Ok(FileFormat::Llama2c),
        [b'T', b'F', b'L', b'G', ..] => Ok(FileFormat::GgufLite),
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => {
            unknown("a safetensors file without the config.json that says what it is")
        }
        // Files of llama2.c before version 1 have no mark but that their sizes give their length.
        _ if formats::llama2c::File::open(path).is_ok() => Ok(FileFormat::Llama2c),
        _ => unknown("not a model in a known format"),
    }
}

/// A tokenizer whose errors name the file that it is in.
fn tokenizer_of(file: &str, read: impl FnOnce() -> Result<Tokenizer>) -> Result<Tokenizer> {
    read().map_err(|e| match e {
        Error::Data(message) if !message.starts_with(file) => Error::Data(format!("{file}: {message}")),
        e => e,
    })
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

/// The matrices of a model by llama.cpp's names, with ours for the weights in each, and their columns.
///
/// # Errors
/// A model that GGUF has no names for.
pub fn gguf_names(config: &ModelConfig) -> Result<Vec<(String, Vec<String>, usize)>> {
    let table = match shape::Shape::of(config)? {
        shape::Shape::Llama(c) => tables::gguf_llama(&c, c.rope_layout),
        shape::Shape::Gpt2(c) => tables::gguf_gpt2(&c),
    };
    let matrices = table.links.into_iter().filter_map(|link| {
        let [_, columns] = link.shape()[..] else { return None };
        Some((link.stored, link.parts.into_iter().map(|p| p.ours).collect(), columns))
    });
    Ok(matrices.collect())
}
