//! Reading models of llama2.c.

use super::{Config, HEADER, LAYERS, LEGACY_HEADER, MAGIC, Slot, Version, layout};
use crate::cursor::Cursor;
use crate::{Error, Result, Source};
use std::collections::HashMap;
use std::path::Path;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// Numbers to a scale where it is int8.
    group: Option<usize>,
    offset: u64,
    bytes: u64,
}

impl Tensor {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, the outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Numbers to a scale if it is stored as int8 codes followed by f32 scales; `None` for f32.
    pub fn group(&self) -> Option<usize> {
        self.group
    }

    /// Where its bytes start, from the beginning of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn byte_len(&self) -> u64 {
        self.bytes
    }
}

/// A file that was read: its configuration, its tensors, and access to their bytes.
#[derive(Debug)]
pub struct File {
    source: Source,
    config: Config,
    version: Version,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl File {
    /// Maps and reads the model at `path`. Tensors' bytes are not touched.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] or [`Error::Unsupported`] if its sizes are none of a model or do not give the file's length:
    /// legacy files have no other mark.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(Source::open(path)?)
    }

    /// Reads a model in memory, called `name` in messages.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::read(Source::from_bytes(name, bytes))
    }

    fn read(source: Source) -> Result<Self> {
        let name = source.name();
        let (config, version) = header(name, source.bytes())?;
        let mut at = if version == Version::Legacy { LEGACY_HEADER } else { HEADER };
        let (total, len) = (at + data_len(name, &config, version)?, source.bytes().len() as u64);
        if total != len {
            let what = format!(
                "a {version:?} model with {config:?} has {total} bytes, but the file has {len}: \
                 it is no llama2.c model, or was cut or damaged"
            );
            return Err(Error::damaged(name, total.min(len), what));
        }
        let (mut tensors, mut index) = (Vec::new(), HashMap::new());
        for slot in layout(&config, version) {
            let (group, bytes) = stored(name, &slot, version)?;
            index.insert(slot.name.clone(), tensors.len());
            tensors.push(Tensor { name: slot.name, shape: slot.shape, group, offset: at, bytes });
            at += bytes;
        }
        Ok(File { config, version, tensors, index, source })
    }

    /// What messages call it: the path.
    pub fn name(&self) -> &str {
        self.source.name()
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// Length of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.source.bytes().len() as u64
    }

    /// The tensors in the order of the file; those of legacy files include the rotation's `freqs_cos` and `freqs_sin`.
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

    /// The bytes of a tensor of this file, from the map.
    ///
    /// # Panics
    /// If the tensor is another file's and does not lie inside this one.
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        &self.source.bytes()[tensor.offset as usize..][..tensor.bytes as usize]
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
        self.source.read_at(tensor.offset, into)
    }

    /// The numbers of a tensor, whichever way it is stored.
    ///
    /// # Errors
    /// As [`File::read_into`].
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut bytes = vec![0; tensor.bytes as usize];
        self.read_into(tensor, &mut bytes)?;
        let floats =
            |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
        let Some(group) = tensor.group else { return Ok(floats(&bytes)) };
        let (codes, scales) = bytes.split_at(tensor.elements());
        let scales = floats(scales);
        let groups = codes.chunks_exact(group).zip(&scales);
        Ok(groups.flat_map(|(codes, &s)| codes.iter().map(move |&q| (q as i8) as f32 * s)).collect())
    }

    /// Lets the system take back the memory of a tensor that was read through [`File::data`].
    pub fn release(&self, tensor: &Tensor) {
        self.source.release(tensor.offset..tensor.offset + tensor.bytes);
    }
}

/// Numbers to a scale, if there are scales, and bytes of a tensor.
fn stored(name: &str, slot: &Slot, version: Version) -> Result<(Option<usize>, u64)> {
    // at most 2^40, by the limits of the sizes
    let elements: u64 = slot.shape.iter().map(|&d| d as u64).product();
    match version {
        Version::V2 { group } if slot.matrix => {
            if !elements.is_multiple_of(group as u64) {
                let what = format!("'{}' {:?} is not whole groups of {group}", slot.name, slot.shape);
                return Err(Error::damaged(name, 0, what));
            }
            Ok((Some(group), elements + 4 * (elements / group as u64)))
        }
        _ => Ok((None, 4 * elements)),
    }
}

/// Bytes of all tensors, before they are listed: layers are alike.
fn data_len(name: &str, config: &Config, version: Version) -> Result<u64> {
    let mut total = 0;
    for slot in layout(&Config { layers: 1, ..*config }, version) {
        let times = if slot.name.starts_with(LAYERS) { config.layers } else { 1 };
        total += times as u64 * stored(name, &slot, version)?.1;
    }
    Ok(total)
}

fn header(name: &str, bytes: &[u8]) -> Result<(Config, Version)> {
    let mut cursor = Cursor::new(name, bytes);
    let marked = bytes.first_chunk().is_some_and(|b| u32::from_le_bytes(*b) == MAGIC);
    let version = if marked {
        cursor.u32("the magic")?;
        cursor.i32("the version")?
    } else {
        0
    };
    if !(0..=2).contains(&version) {
        return Err(Error::unsupported(
            name,
            format!("version {version} of llama2.c's files; versions 1 and 2 are known"),
        ));
    }
    let mut sizes = [0i32; 7];
    for size in &mut sizes {
        *size = cursor.i32("the header of a llama2.c model")?;
    }
    let shared = if marked { cursor.u8("the header")? != 0 } else { sizes[5] > 0 };
    if !marked {
        sizes[5] = sizes[5].saturating_abs();
    }
    let size = |i: usize| usize::try_from(sizes[i]).unwrap_or(0);
    let config = Config {
        dim: size(0),
        hidden_dim: size(1),
        layers: size(2),
        heads: size(3),
        kv_heads: size(4),
        vocab_size: size(5),
        seq_len: size(6),
        shared_classifier: shared,
    };
    config
        .check()
        .map_err(|e| Error::damaged(name, 0, format!("not a llama2.c model, whose header would say {sizes:?}: {e}")))?;
    let version = match version {
        0 => Version::Legacy,
        1 => Version::V1,
        _ => {
            let group = cursor.i32("the group size")?;
            match usize::try_from(group) {
                Ok(group) if group > 0 => Version::V2 { group },
                _ => return Err(cursor.damaged(format!("a group size of {group}"))),
            }
        }
    };
    Ok((config, version))
}
