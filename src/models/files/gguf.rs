//! GGUF files as tensors, and as models.

use super::gguf_config::{self, Architecture};
use super::links::{LinkedWeights, Table, Tensors};
use super::{FileFormat, ModelFile, tables};
use crate::config::ModelConfig;
use crate::models::weights::StoredWeight;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use formats::gguf::File;
use formats::{FilePart, Source};
use std::path::Path;

struct GgufTensors {
    file: File,
    /// The same file, for positioned reads of parts of a tensor.
    source: Source,
}

impl Tensors for GgufTensors {
    fn names(&self) -> Vec<String> {
        self.file.tensors().iter().map(|t| t.name().to_string()).collect()
    }

    fn find(&self, name: &str) -> Result<Option<StoredWeight>> {
        let Some(tensor) = self.file.find(name) else { return Ok(None) };
        let format = tensor.format().ok_or_else(|| {
            let (origin, kind) = (self.origin(), tensor.type_name());
            Error::Checkpoint(format!("{origin}: tensor `{name}` is stored as {kind}, which is not supported"))
        })?;
        Ok(Some(StoredWeight { shape: tensor.shape(), format }))
    }

    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> Result<()> {
        let tensor = self.file.tensor(name)?;
        super::links::check_range(&self.origin(), name, at, into.len(), tensor.byte_len())?;
        Ok(self.source.read_at(tensor.offset() + at, into)?)
    }

    fn part(&self, name: &str, at: u64, length: u64) -> Option<FilePart> {
        let tensor = self.file.tensor(name).ok()?;
        let fits = at.checked_add(length)? <= tensor.byte_len();
        fits.then(|| self.source.part(tensor.offset() + at, length))?
    }

    fn origin(&self) -> String {
        self.file.name().to_string()
    }
}

/// What a model of this architecture consists of in GGUF.
pub(super) fn table(architecture: Architecture, config: &ModelConfig) -> Option<Table> {
    match config {
        ModelConfig::Llama(c) => Some(tables::gguf_llama(c, architecture.layout())),
        ModelConfig::Gpt(c) => Some(tables::gguf_gpt2(c)),
        ModelConfig::Coeus(_) => None,
    }
}

pub(super) fn open(path: &Path, given: Option<Tokenizer>) -> Result<ModelFile> {
    let file = File::open(path)?;
    if let Some(parts) = file.metadata().find::<u64>("split.count")?.filter(|parts| *parts > 1) {
        return Err(Error::Checkpoint(format!(
            "{}: one of {parts} parts of a model; make one file of them with llama.cpp's `gguf-split --merge`",
            file.name()
        )));
    }
    let (architecture, config) = gguf_config::read(&file)?;
    let table = table(architecture, &config).ok_or_else(|| Error::Checkpoint("no such model".into()))?;
    let read = || super::tokenizer_of(file.name(), || Tokenizer::from_gguf(file.metadata()));
    let tokenizer = given.map_or_else(read, Ok)?;
    super::check_vocabulary(file.name(), &config, &tokenizer)?;
    let tensors = GgufTensors { file: file.without_metadata(), source: Source::open(path)? };
    let (weights, notes) = LinkedWeights::new(tensors, table, |name| name == "rope_freqs.weight")?;
    Ok(ModelFile {
        config,
        chat_template: tokenizer.chat_template().map(str::to_owned),
        tokenizer,
        weights: Box::new(weights),
        origin: path.to_path_buf(),
        format: FileFormat::Gguf,
        notes,
    })
}
