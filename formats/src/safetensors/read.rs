//! Reading safetensors.

use super::header::{Header, Index};
use super::{Dtype, INDEX, MAX_HEADER, WHOLE};
use crate::cursor::Cursor;
use crate::{Error, Result, Source};
use kernels_cpu::blocks::Format;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    shard: usize,
    offset: u64,
    bytes: u64,
}

impl Tensor {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, the outermost first. Empty: a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What its rows are read as; `None` for types that this program lists but does not read.
    pub fn format(&self) -> Option<Format> {
        self.dtype.format()
    }

    /// Which of [`Model::files`] it is in.
    pub fn shard(&self) -> usize {
        self.shard
    }

    /// Where its bytes start, from the beginning of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn byte_len(&self) -> u64 {
        self.bytes
    }
}

/// The tensors of a file, or of all files of a folder.
#[derive(Debug)]
pub struct Model {
    name: String,
    shards: Vec<Source>,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl Model {
    /// Reads a file, an index (`*.index.json`), or a folder: its `model.safetensors.index.json`, else `model.safetensors`, else the one
    /// safetensors file in it. Tensors' bytes are not touched.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] or [`Error::Unsupported`] for what is not sound; [`Error::Missing`] if a folder has no model or
    /// a file lacks a tensor that the index promises.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            let (index, whole) = (path.join(INDEX), path.join(WHOLE));
            if index.is_file() {
                return Self::indexed(&index);
            }
            let file = if whole.is_file() { whole } else { only_file(path)? };
            return Self::read(path, vec![Source::open(file)?]);
        }
        if path.extension().is_some_and(|e| e == "json") {
            return Self::indexed(path);
        }
        Self::read(path, vec![Source::open(path)?])
    }

    /// Reads one file in memory, called `name` in messages.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::read(Path::new(name), vec![Source::from_bytes(name, bytes)])
    }

    fn indexed(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        let map = index(source.name(), source.bytes())?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let files: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let shards = files.iter().map(|f| Source::open(folder.join(f))).collect::<Result<Vec<_>>>()?;
        let model = Self::read(folder, shards)?;
        for (tensor, file) in &map {
            let found = model.find(tensor).and_then(|t| Path::new(model.shards[t.shard].name()).file_name());
            if found != Some(file.as_ref()) {
                let what = format!("tensor '{tensor}' should be in {file}, but is not: fetch both files again");
                return Err(Error::missing(source.name(), what));
            }
        }
        Ok(model)
    }

    fn read(path: &Path, shards: Vec<Source>) -> Result<Self> {
        let (mut metadata, mut tensors, mut index) = (BTreeMap::new(), Vec::<Tensor>::new(), HashMap::new());
        for (shard, source) in shards.iter().enumerate() {
            let (said, found) = read_header(source, shard)?;
            metadata.extend(said);
            for tensor in found {
                if let Some(other) = index.insert(tensor.name.clone(), tensors.len()) {
                    let other: &Tensor = &tensors[other];
                    let what = format!("tensor '{}' is in {} too", tensor.name, shards[other.shard].name());
                    return Err(Error::damaged(source.name(), 8, what));
                }
                tensors.push(tensor);
            }
        }
        Ok(Model { name: path.display().to_string(), shards, metadata, tensors, index })
    }

    /// What messages call it: the path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What messages call its files.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(Source::name)
    }

    /// Length of all files in bytes.
    pub fn byte_len(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes().len() as u64).sum()
    }

    /// `__metadata__` of all files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors, file by file in the order of their data.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.find(name).ok_or_else(|| Error::missing(self.name(), format!("there is no tensor '{name}' in it")))
    }

    /// The bytes of a tensor of this model, from the map.
    ///
    /// # Panics
    /// If the tensor is another model's and does not lie inside this one.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        &self.shards[tensor.shard].bytes()[tensor.offset as usize..][..tensor.bytes as usize]
    }

    /// Copies the bytes of a tensor, by a positioned read: they do not stay in this process's memory as pages of the map do.
    ///
    /// # Errors
    /// [`Error::Io`]; `into` is not as long as the tensor.
    pub fn read_into(&self, tensor: &Tensor, into: &mut [u8]) -> Result<()> {
        if into.len() as u64 != tensor.bytes {
            let what =
                format!("tensor '{}' has {} bytes, but {} were asked for", tensor.name, tensor.bytes, into.len());
            return Err(Error::missing(self.name(), what));
        }
        self.shards[tensor.shard].read_at(tensor.offset, into)
    }

    /// Lets the system take back the memory of a tensor that was read through [`Model::data`].
    pub fn release(&self, tensor: &Tensor) {
        self.shards[tensor.shard].release(tensor.offset..tensor.offset + tensor.bytes);
    }
}

/// The only safetensors file of a folder.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    let name = folder.display().to_string();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => {
            Err(Error::missing(&name, format!("several safetensors files and no {INDEX} that says what is in which")))
        }
        (None, _) if folder.join("pytorch_model.bin").is_file() => {
            Err(Error::missing(&name, "pytorch_model.bin is not read: save the model as safetensors"))
        }
        (None, _) => Err(Error::missing(&name, format!("no {WHOLE} and no {INDEX} in it"))),
    }
}

/// The tensors of an index and the files that they are in, names of this folder.
pub(super) fn index(name: &str, bytes: &[u8]) -> Result<HashMap<String, String>> {
    if bytes.len() as u64 > MAX_HEADER {
        return Err(Error::unsupported(name, format!("an index of {} bytes", bytes.len())));
    }
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|e| Error::damaged(name, 0, format!("not an index of safetensors files: {e}")))?;
    if index.weight_map.is_empty() {
        return Err(Error::damaged(name, 0, "weight_map names no files"));
    }
    for (tensor, file) in &index.weight_map {
        let plain = Path::new(file).file_name().is_some_and(|n| n == file.as_str()) && !file.contains(['/', '\\']);
        if !plain {
            let what = format!("weight_map has tensor '{tensor}' in '{file}', which is no file of this folder");
            return Err(Error::damaged(name, 0, what));
        }
    }
    Ok(index.weight_map)
}

type Read = (BTreeMap<String, String>, Vec<Tensor>);

/// Metadata, and tensors in the order of their data.
fn read_header(source: &Source, shard: usize) -> Result<Read> {
    let name = source.name();
    let mut cursor = Cursor::new(name, source.bytes());
    let len = cursor.u64("the length of the header")?;
    if len > MAX_HEADER {
        let what = format!("not a safetensors file: its header would have {len} bytes; {MAX_HEADER} are allowed");
        return Err(Error::damaged(name, 0, what));
    }
    let text = cursor.take(len, "the header")?;
    if text.first() != Some(&b'{') {
        return Err(Error::damaged(name, 8, "not a safetensors file: its header does not begin with '{'"));
    }
    let header: Header = serde_json::from_slice(text).map_err(|e| {
        // columns count from 1, lines begin after their line break
        let before: usize = text.split(|&b| b == b'\n').take(e.line().saturating_sub(1)).map(|l| l.len() + 1).sum();
        let at = 8 + (before + e.column()).saturating_sub(1) as u64;
        Error::damaged(name, at, format!("the header cannot be read: {e}"))
    })?;
    let (start, available) = (cursor.at(), cursor.remaining());
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (tensor, info) in header.tensors {
        let bad = |what: String| Error::damaged(name, 8, format!("tensor '{tensor}': {what}"));
        let Some(dtype) = Dtype::from_name(&info.dtype) else {
            let what = format!("tensor '{tensor}' has dtype {}, which this program does not know", info.dtype);
            return Err(Error::unsupported(name, what));
        };
        let shape = info.shape.0;
        let bytes = dtype.byte_len(&shape).map_err(|e| bad(format!("{dtype} {shape:?}: {e}")))?;
        let [begin, end] = info.data_offsets;
        if end.checked_sub(begin) != Some(bytes) {
            return Err(bad(format!("{dtype} {shape:?} has {bytes} bytes, but data_offsets are {begin} to {end}")));
        }
        if end > available {
            return Err(bad(format!(
                "data_offsets end at {end}, but the file has {available} bytes of data: it was cut short; fetch it again"
            )));
        }
        let shape = shape.into_iter().map(|d| d as usize).collect();
        tensors.push(Tensor { name: tensor, shape, dtype, shard, offset: start + begin, bytes });
    }
    covered(source, start, available, &mut tensors)?;
    source.release(0..start);
    Ok((header.metadata, tensors))
}

/// Sorts the tensors by their place, and checks that they cover the data without holes or overlaps.
fn covered(source: &Source, start: u64, available: u64, tensors: &mut [Tensor]) -> Result<()> {
    tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    let mut end = start;
    let mut before = "the header";
    for t in tensors.iter() {
        if t.offset != end {
            let how = if t.offset < end { "overlaps" } else { "leaves a hole after" };
            return Err(Error::damaged(source.name(), t.offset, format!("tensor '{}' {how} '{before}'", t.name)));
        }
        (end, before) = (t.offset + t.bytes, &t.name);
    }
    if end != start + available {
        let what = format!("{} bytes after the last tensor that no tensor has", start + available - end);
        return Err(Error::damaged(source.name(), end, what));
    }
    Ok(())
}
