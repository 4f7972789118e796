//! Safetensors files of one model as tensors: one file, or the shards that an index names.

use super::links::Tensors;
use crate::models::weights::StoredWeight;
use crate::train::files::read_text;
use crate::{Error, Result};
use formats::Source;
use kernels_cpu::blocks::Format;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Where a tensor is.
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// From the beginning of the file.
    offset: u64,
    bytes: u64,
}

pub(crate) struct SafetensorsModel {
    folder: PathBuf,
    shards: Vec<Source>,
    entries: BTreeMap<String, Entry>,
    /// `format`, and whatever else the files say of themselves.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor as `inspect` lists it.
pub(crate) struct Listed<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub kind: String,
    pub offset: u64,
    pub bytes: u64,
    pub file: &'a str,
}

impl SafetensorsModel {
    /// The model of a folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX);
        if index.is_file() {
            return Self::of(folder, &shards(folder, &index)?);
        }
        if folder.join(WHOLE).is_file() {
            return Self::of(folder, &[folder.join(WHOLE)]);
        }
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten().map(|e| e.path());
        let mut found: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => Self::of(folder, &[only]),
            (Some(_), false) => Err(Error::Checkpoint(format!(
                "{}: several safetensors files and no {INDEX} that says what is in which",
                folder.display()
            ))),
            (None, _) => {
                let pickled = folder.join("pytorch_model.bin").is_file();
                let why = if pickled { ": pytorch_model.bin is not read, save the model as safetensors" } else { "" };
                Err(Error::Checkpoint(format!("{}: no {WHOLE} and no {INDEX} in it{why}", folder.display())))
            }
        }
    }

    /// One file by itself.
    pub fn file(path: &Path) -> Result<Self> {
        Self::of(path, &[path.to_path_buf()])
    }

    fn of(origin: &Path, paths: &[PathBuf]) -> Result<Self> {
        let (mut shards, mut entries, mut metadata) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (shard, path) in paths.iter().enumerate() {
            let bad = |what: String| Error::Checkpoint(format!("{}: {what}", path.display()));
            let source = Source::open(path)?;
            let (header, found) = SafeTensors::read_metadata(source.bytes()).map_err(|e| {
                bad(format!("not a sound safetensors file: {e}; it was cut or damaged, fetch it again"))
            })?;
            let data = header as u64 + 8;
            if let Some(said) = found.metadata() {
                metadata.extend(said.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            for (name, info) in found.tensors() {
                let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
                if data + end > source.bytes().len() as u64 {
                    return Err(bad(format!("tensor `{name}` ends beyond the file: it was cut, fetch it again")));
                }
                let (dtype, shape) = (info.dtype, info.shape.clone());
                let entry = Entry { shard, dtype, shape, offset: data + start, bytes: end - start };
                if let Some(other) = entries.insert(name.clone(), entry) {
                    let other: &Source = &shards[other.shard];
                    return Err(bad(format!("tensor `{name}` is in {} too", other.name())));
                }
            }
            source.release(0..data);
            shards.push(source);
        }
        Ok(SafetensorsModel { folder: origin.to_path_buf(), shards, entries, metadata })
    }

    pub fn listed(&self) -> impl Iterator<Item = Listed<'_>> {
        self.entries.iter().map(|(name, entry)| Listed {
            name,
            shape: &entry.shape,
            kind: format!("{:?}", entry.dtype),
            offset: entry.offset,
            bytes: entry.bytes,
            file: self.shards[entry.shard].name(),
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Bytes of all files.
    pub fn byte_len(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes().len() as u64).sum()
    }
}

/// The files that an index names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let bad = |what: String| Error::Checkpoint(format!("{}: {what}", index.display()));
    let value: Value = serde_json::from_str(&read_text(index)?).map_err(|e| bad(format!("not JSON: {e}")))?;
    let map = value["weight_map"].as_object().ok_or_else(|| bad("there is no object weight_map in it".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let plain = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|name| name == *f));
        let plain = plain.ok_or_else(|| bad(format!("weight_map.{tensor} = {file} is no file of this folder")))?;
        names.insert(plain);
    }
    if names.is_empty() {
        return Err(bad("weight_map names no files".into()));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

impl Tensors for SafetensorsModel {
    fn names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Result<Option<StoredWeight>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let format = match entry.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::Bf16,
            other => {
                return Err(Error::Checkpoint(format!(
                    "{}: tensor `{name}` is stored as {other:?}; F32, F16 and BF16 are supported",
                    self.origin()
                )));
            }
        };
        Ok(Some(StoredWeight { shape: entry.shape.clone(), format }))
    }

    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> Result<()> {
        let none = || Error::Checkpoint(format!("{}: there is no tensor `{name}`", self.origin()));
        let entry = self.entries.get(name).ok_or_else(none)?;
        if at.checked_add(into.len() as u64).is_none_or(|end| end > entry.bytes) {
            let (origin, length, bytes) = (self.origin(), into.len(), entry.bytes);
            return Err(Error::Checkpoint(format!(
                "{origin}: {length} bytes at {at} of `{name}` go beyond its {bytes}"
            )));
        }
        Ok(self.shards[entry.shard].read_at(entry.offset + at, into)?)
    }

    fn origin(&self) -> String {
        self.folder.display().to_string()
    }
}
