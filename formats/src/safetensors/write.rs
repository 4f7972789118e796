//! Writing safetensors.

use super::{Dtype, INDEX, MAX_HEADER, WHOLE};
use crate::atomic::Atomic;
use crate::order::Order;
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    bytes: u64,
}

impl NewTensor {
    /// A tensor of `shape`, the outermost dimension first.
    ///
    /// # Errors
    /// A shape whose bytes cannot be counted, or are not whole.
    pub fn new(name: impl Into<String>, shape: &[usize], dtype: Dtype) -> Result<Self, String> {
        let name = name.into();
        let dims: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let bytes = dtype.byte_len(&dims).map_err(|e| format!("tensor '{name}' {shape:?}: {e}"))?;
        Ok(NewTensor { name, shape: shape.to_vec(), dtype, bytes })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn byte_len(&self) -> u64 {
        self.bytes
    }
}

/// Writes a file: the header at once, then the tensors' bytes in the order in which they were announced.
#[derive(Debug)]
pub struct Writer {
    file: Atomic,
    order: Order,
}

impl Writer {
    /// Starts a file that will be `path`. `metadata` becomes `__metadata__`, with `"format": "pt"` unless it says something else
    /// (`transformers` asks for it). Data is written by [`Writer::write`]; the file appears with [`Writer::finish`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] for two tensors of one name or a header that readers refuse.
    pub fn create(path: impl AsRef<Path>, metadata: &BTreeMap<String, String>, tensors: &[NewTensor]) -> Result<Self> {
        let path = path.as_ref();
        check_names(path, tensors)?;
        let mut file = Atomic::create(path)?;
        let header = header(metadata, tensors).map_err(|what| file.refuse(what))?;
        file.write(&header)?;
        Ok(Writer { file, order: Order::new(tensors.iter().map(|t| (t.name.clone(), t.bytes)).collect()) })
    }

    /// Appends bytes to tensor `name`, which must be the first that is not complete. A tensor may be written in pieces.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if it is another tensor's turn, or these are more bytes than the tensor has.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.order.give(name, bytes.len() as u64).map_err(|what| self.file.refuse(what))?;
        self.file.write(bytes)
    }

    /// Gives the file its name, once the disk has it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if a tensor lacks bytes. No file appears then.
    pub fn finish(self) -> Result<()> {
        self.order.finish().map_err(|what| self.file.refuse(what))?;
        self.file.commit()
    }
}

fn check_names(path: &Path, tensors: &[NewTensor]) -> Result<()> {
    let mut names = HashSet::new();
    let wrong = tensors.iter().find(|t| t.name == "__metadata__" || !names.insert(&t.name));
    wrong.map_or(Ok(()), |t| {
        let what = format!("there are two tensors called '{}', or it is reserved", t.name);
        Err(Error::unwritable(&path.display().to_string(), what))
    })
}

/// Length and text of the header, padded with spaces so that the data starts at a multiple of 8.
fn header(metadata: &BTreeMap<String, String>, tensors: &[NewTensor]) -> Result<Vec<u8>, String> {
    let mut object = Map::new();
    let mut metadata = metadata.clone();
    metadata.entry("format".into()).or_insert_with(|| "pt".into());
    object.insert("__metadata__".into(), json!(metadata));
    let mut at = 0u64;
    for t in tensors {
        let end = at.checked_add(t.bytes).ok_or("more bytes than a file can have")?;
        object.insert(t.name.clone(), json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER {
        return Err(format!("a header of {} bytes; {MAX_HEADER} are allowed", text.len()));
    }
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// Writes a model into a folder: `model.safetensors` if it fits into one file, else `model-00001-of-00003.safetensors` and so on with
/// their index.
#[derive(Debug)]
pub struct ShardedWriter {
    folder: PathBuf,
    shards: Vec<Writer>,
    /// The shard of every tensor.
    order: Order,
    shard_of: Vec<usize>,
    index: Option<Value>,
}

impl ShardedWriter {
    /// Starts the files; a tensor larger than `max_shard` bytes gets a file of its own. They appear with [`ShardedWriter::finish`].
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn create(
        folder: impl AsRef<Path>,
        metadata: &BTreeMap<String, String>,
        tensors: &[NewTensor],
        max_shard: u64,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        check_names(folder, tensors)?;
        let (mut starts, mut filled) = (vec![0], 0u64);
        for (i, t) in tensors.iter().enumerate() {
            if filled > 0 && filled.saturating_add(t.bytes) > max_shard {
                starts.push(i);
                filled = 0;
            }
            filled = filled.saturating_add(t.bytes);
        }
        let n = starts.len();
        let file = |i: usize| if n == 1 { WHOLE.into() } else { format!("model-{:05}-of-{n:05}.safetensors", i + 1) };
        let (mut shards, mut shard_of, mut map) = (Vec::new(), Vec::new(), Map::new());
        for (i, &start) in starts.iter().enumerate() {
            let part = &tensors[start..starts.get(i + 1).copied().unwrap_or(tensors.len())];
            shards.push(Writer::create(folder.join(file(i)), metadata, part)?);
            shard_of.extend(part.iter().map(|_| i));
            map.extend(part.iter().map(|t| (t.name.clone(), file(i).into())));
        }
        let total: u64 = tensors.iter().map(|t| t.bytes).sum();
        let index = (n > 1).then(|| json!({"metadata": {"total_size": total}, "weight_map": map}));
        let order = Order::new(tensors.iter().map(|t| (t.name.clone(), t.bytes)).collect());
        Ok(ShardedWriter { folder: folder.into(), shards, order, shard_of, index })
    }

    /// As [`Writer::write`].
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let refuse = |what| Error::unwritable(&self.folder.display().to_string(), what);
        let at = self.order.current();
        self.order.give(name, bytes.len() as u64).map_err(refuse)?;
        match self.shard_of.get(at) {
            Some(&shard) if !bytes.is_empty() => self.shards[shard].write(name, bytes),
            _ => Ok(()),
        }
    }

    /// Gives the files their names, the index last, and removes what an earlier model of the folder would be found by instead.
    ///
    /// # Errors
    /// As [`Writer::finish`].
    pub fn finish(self) -> Result<()> {
        self.order.finish().map_err(|what| Error::unwritable(&self.folder.display().to_string(), what))?;
        for shard in self.shards {
            shard.finish()?;
        }
        let stale = match &self.index {
            Some(index) => {
                let mut file = Atomic::create(&self.folder.join(INDEX))?;
                let text = serde_json::to_string_pretty(index).expect("JSON of strings and numbers");
                file.write(text.as_bytes())?;
                file.commit()?;
                WHOLE
            }
            None => INDEX,
        };
        match std::fs::remove_file(self.folder.join(stale)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(self.folder.join(stale), e)),
            _ => Ok(()),
        }
    }
}
