//! Safetensors files of one model as tensors.

use super::links::Tensors;
use crate::models::weights::StoredWeight;
use crate::{Error, Result};
use formats::safetensors::Model;
use formats::{FilePart, Source};
use std::path::Path;

pub(crate) struct SafetensorsModel {
    pub model: Model,
    /// The same files, for positioned reads of parts of a tensor.
    sources: Vec<Source>,
}

impl SafetensorsModel {
    /// The model of a folder, or of one file.
    pub fn open(path: &Path) -> Result<Self> {
        let model = Model::open(path)?;
        let sources = model.files().map(Source::open).collect::<formats::Result<_>>()?;
        Ok(SafetensorsModel { model, sources })
    }

    pub fn has(&self, name: &str) -> bool {
        self.model.find(name).is_some()
    }
}

impl Tensors for SafetensorsModel {
    fn names(&self) -> Vec<String> {
        self.model.tensors().iter().map(|t| t.name().to_string()).collect()
    }

    fn find(&self, name: &str) -> Result<Option<StoredWeight>> {
        let Some(tensor) = self.model.find(name) else { return Ok(None) };
        let format = tensor.format().ok_or_else(|| {
            let (origin, kind) = (self.origin(), tensor.dtype().name());
            Error::Checkpoint(format!("{origin}: tensor `{name}` is stored as {kind}; F32, F16 and BF16 are supported"))
        })?;
        Ok(Some(StoredWeight { shape: tensor.shape().to_vec(), format }))
    }

    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> Result<()> {
        let tensor = self.model.tensor(name)?;
        super::links::check_range(&self.origin(), name, at, into.len(), tensor.byte_len())?;
        Ok(self.sources[tensor.shard()].read_at(tensor.offset() + at, into)?)
    }

    fn part(&self, name: &str, at: u64, length: u64) -> Option<FilePart> {
        let tensor = self.model.tensor(name).ok()?;
        let fits = at.checked_add(length)? <= tensor.byte_len();
        fits.then(|| self.sources[tensor.shard()].part(tensor.offset() + at, length))?
    }

    fn origin(&self) -> String {
        self.model.name().to_string()
    }
}
