//! GGUF-lite, the small file format of the Lynx Cortex course.
//!
//! All numbers little-endian: u32 magic "GLFT" (the bytes read `TFLG`), u32 version 1, u32 number of tensors, u32 length of the metadata; the
//! metadata, lines `key=value` in UTF-8; for each tensor u16 length and name, u8 number of dimensions, u32 each with the outermost first, u8
//! type, u64 offset from the start of the data; the data, one tensor after another without gaps.
//! Types: 0 f32; 1 f16; 2 int8 with an f16 scale a row: all scales, then all codes, x = s q; 3 int4 with an f16 scale for 64 numbers of a row:
//! all scales, then codes of two's complement nibbles, number 2i in the low one; x = s q.
//! Scales are rounded to f16 before codes are chosen, so that reading gives exactly what was chosen; rows that are not whole groups of
//! 64 are refused, which the format leaves undefined.

use crate::atomic::Atomic;
use crate::cursor::Cursor;
use crate::order::Order;
use crate::{Error, Result, Source};
use half::f16;
use std::collections::HashSet;
use std::path::Path;

const MAGIC: u32 = 0x474C_4654;
/// Numbers to a scale of [`Type::Q4`].
const GROUP: u64 = 64;
const MAX_DIMS: usize = 8;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    F32 = 0,
    F16 = 1,
    /// int8, one scale a row.
    Q8 = 2,
    /// int4, one scale for 64 numbers of a row.
    Q4 = 3,
}

impl Type {
    pub fn name(self) -> &'static str {
        match self {
            Type::F32 => "F32",
            Type::F16 => "F16",
            Type::Q8 => "Q8_per_channel",
            Type::Q4 => "Q4_per_group_64",
        }
    }

    /// Bytes of a tensor: of its scales and of its numbers.
    fn bytes(self, dims: &[u32]) -> Result<(u64, u64), String> {
        let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into())).filter(|&n| n <= 1 << 60);
        let elements = elements.ok_or("more elements than can be counted")?;
        match (self, dims) {
            (Type::F32, _) => Ok((0, 4 * elements)),
            (Type::F16, _) => Ok((0, 2 * elements)),
            (Type::Q8, &[rows, _]) => Ok((2 * rows as u64, elements)),
            (Type::Q4, &[_, columns]) if !(columns as u64).is_multiple_of(GROUP) => {
                Err(format!("rows of {columns} are not whole groups of {GROUP}"))
            }
            (Type::Q4, &[_, _]) => Ok((2 * (elements / GROUP), elements / 2)),
            (Type::Q8 | Type::Q4, _) => Err(format!("{} is for matrices", self.name())),
        }
    }
}

/// A tensor of a file, or one that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    dims: Vec<u32>,
    kind: Type,
    offset: u64,
    scales: u64,
    bytes: u64,
}

impl Tensor {
    /// A tensor to write, of `shape` with the outermost dimension first.
    ///
    /// # Errors
    /// A name or shape that the format cannot hold.
    pub fn new(name: impl Into<String>, shape: &[usize], kind: Type) -> Result<Self, String> {
        let name = name.into();
        let bad = |what: String| format!("tensor '{name}' {shape:?}: {what}");
        let dims = shape.iter().map(|&d| u32::try_from(d)).collect::<Result<Vec<_>, _>>();
        let dims = dims.map_err(|e| bad(e.to_string()))?;
        if dims.len() > MAX_DIMS || name.len() > u16::MAX as usize {
            return Err(bad(format!("more than {MAX_DIMS} dimensions, or a name of more than 65535 bytes")));
        }
        let (scales, codes) = kind.bytes(&dims).map_err(bad)?;
        Ok(Tensor { name, dims, kind, offset: 0, scales, bytes: scales + codes })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions, the outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().map(|&d| d as usize).collect()
    }

    pub fn kind(&self) -> Type {
        self.kind
    }

    /// Where its bytes start, from the beginning of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn byte_len(&self) -> u64 {
        self.bytes
    }

    pub fn elements(&self) -> usize {
        self.dims.iter().map(|&d| d as usize).product()
    }

    /// Numbers to a scale, and scales.
    fn groups(&self) -> (usize, usize) {
        let group = if self.kind == Type::Q8 { self.dims[1] as usize } else { GROUP as usize };
        (group.max(1), self.scales as usize / 2)
    }
}

/// A file that was read.
#[derive(Debug)]
pub struct File {
    source: Source,
    metadata: Vec<(String, String)>,
    tensors: Vec<Tensor>,
}

impl File {
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] or [`Error::Unsupported`] if it is not a sound GGUF-lite file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(Source::open(path)?)
    }

    /// Reads a file in memory, called `name` in messages.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn parse(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::read(Source::from_bytes(name, bytes))
    }

    fn read(source: Source) -> Result<Self> {
        let name = source.name();
        let mut cursor = Cursor::new(name, source.bytes());
        if cursor.remaining() < 16 || cursor.u32("the magic")? != MAGIC {
            return Err(Error::damaged(name, 0, "not a GGUF-lite file: it does not begin with the bytes 'TFLG'"));
        }
        let version = cursor.u32("the version")?;
        if version != 1 {
            return Err(Error::unsupported(name, format!("GGUF-lite version {version}; version 1 is known")));
        }
        let count = cursor.u32("the number of tensors")?;
        let metadata_len = cursor.u32("the length of the metadata")?;
        let text = cursor.take(metadata_len.into(), "the metadata")?;
        let text = std::str::from_utf8(text).map_err(|_| cursor.damaged("the metadata is not UTF-8"))?;
        let mut metadata = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let Some((key, value)) = line.split_once('=') else {
                return Err(cursor.damaged(format!("metadata line '{}' has no '='", line.escape_debug())));
            };
            metadata.push((key.to_string(), value.to_string()));
        }
        let count = cursor.count(count.into(), 2 + 1 + 1 + 8, "tensors")?;
        let mut tensors = Vec::with_capacity(count);
        let mut names = HashSet::new();
        for i in 0..count {
            let tensor = descriptor(&mut cursor, i)?;
            if !names.insert(tensor.name.clone()) {
                return Err(cursor.damaged(format!("there are two tensors called '{}'", tensor.name)));
            }
            tensors.push(tensor);
        }
        let (data, len) = (cursor.at(), source.bytes().len() as u64);
        let mut ranges = Vec::with_capacity(count);
        for t in &mut tensors {
            let start = data.checked_add(t.offset);
            let end = start.and_then(|s| s.checked_add(t.bytes)).filter(|&end| end <= len);
            let (Some(start), Some(end)) = (start, end) else {
                let what = format!("tensor '{}' ends beyond the file's {len} bytes: it was cut short", t.name);
                return Err(Error::damaged(name, data, what));
            };
            t.offset = start;
            if start < end {
                ranges.push((start, end, &*t.name));
            }
        }
        ranges.sort_unstable();
        if let Some(pair) = ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            let what = format!("tensors '{}' and '{}' overlap", pair[0].2, pair[1].2);
            return Err(Error::damaged(name, pair[1].0, what));
        }
        Ok(File { metadata, tensors, source })
    }

    /// What messages call it: the path.
    pub fn name(&self) -> &str {
        self.source.name()
    }

    /// Keys and values in the file's order.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The numbers of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut bytes = vec![0; tensor.bytes as usize];
        self.source.read_at(tensor.offset, &mut bytes)?;
        let halves = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
        };
        let (scales, codes) = bytes.split_at(tensor.scales as usize);
        let scales = halves(scales);
        let nibble = |q: u8| (q << 4) as i8 >> 4;
        Ok(match tensor.kind {
            Type::F32 => codes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Type::F16 => halves(codes),
            Type::Q8 => {
                let group = tensor.groups().0;
                codes.iter().enumerate().map(|(i, &q)| scales[i / group] * (q as i8) as f32).collect()
            }
            Type::Q4 => {
                let group = tensor.groups().0;
                let pair =
                    |(i, &q): (usize, &u8)| [nibble(q), nibble(q >> 4)].map(|q| scales[2 * i / group] * q as f32);
                codes.iter().enumerate().flat_map(pair).collect()
            }
        })
    }
}

fn descriptor(cursor: &mut Cursor, i: usize) -> Result<Tensor> {
    let what = format!("the description of tensor {i}");
    let len = cursor.u16(&what)?;
    let name = cursor.take(len.into(), &what)?;
    let name = std::str::from_utf8(name).map_err(|_| cursor.damaged(format!("the name of tensor {i} is not UTF-8")))?;
    let n = cursor.u8(&what)? as usize;
    if n > MAX_DIMS {
        return Err(cursor.damaged(format!("tensor '{name}' has {n} dimensions; at most {MAX_DIMS} are allowed")));
    }
    let dims = (0..n).map(|_| cursor.u32(&what)).collect::<Result<Vec<_>>>()?;
    let kind = match cursor.u8(&what)? {
        0 => Type::F32,
        1 => Type::F16,
        2 => Type::Q8,
        3 => Type::Q4,
        other => return Err(cursor.damaged(format!("tensor '{name}' has type {other}, which is none of 0 to 3"))),
    };
    let offset = cursor.u64(&what)?;
    let (scales, codes) = kind.bytes(&dims).map_err(|e| cursor.damaged(format!("tensor '{name}' {dims:?}: {e}")))?;
    Ok(Tensor { name: name.into(), dims, kind, offset, scales, bytes: scales + codes })
}

/// Writes a file: the head at once, then whole tensors in the order in which they were announced.
#[derive(Debug)]
pub struct Writer {
    file: Atomic,
    order: Order,
    tensors: Vec<Tensor>,
}

impl Writer {
    /// Starts a file that will be `path`. Data is written by [`Writer::write`]; the file appears with [`Writer::finish`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] for names, keys or values that the format cannot hold.
    pub fn create(path: impl AsRef<Path>, metadata: &[(&str, &str)], tensors: Vec<Tensor>) -> Result<Self> {
        let mut file = Atomic::create(path.as_ref())?;
        let mut names = HashSet::new();
        if let Some(t) = tensors.iter().find(|t| !names.insert(t.name.as_str())) {
            return Err(file.refuse(format!("there are two tensors called '{}'", t.name)));
        }
        let mut text = String::new();
        for (key, value) in metadata {
            if key.is_empty() || key.contains(['=', '\n', '\r']) || value.contains(['\n', '\r']) {
                return Err(file.refuse(format!("metadata '{}' is no line key=value", key.escape_debug())));
            }
            text += &format!("{key}={value}\n");
        }
        let count = u32::try_from(tensors.len()).map_err(|e| file.refuse(e.to_string()))?;
        let text_len = u32::try_from(text.len()).map_err(|e| file.refuse(e.to_string()))?;
        file.write(&[MAGIC, 1, count, text_len].map(u32::to_le_bytes).concat())?;
        file.write(text.as_bytes())?;
        let mut offset = 0u64;
        for t in &tensors {
            file.write(&(t.name.len() as u16).to_le_bytes())?;
            file.write(t.name.as_bytes())?;
            file.write(&[t.dims.len() as u8])?;
            file.write(&t.dims.iter().flat_map(|d| d.to_le_bytes()).collect::<Vec<_>>())?;
            file.write(&[t.kind as u8])?;
            file.write(&offset.to_le_bytes())?;
            offset += t.bytes;
        }
        let order = Order::new(tensors.iter().map(|t| (t.name.clone(), t.bytes)).collect());
        Ok(Writer { file, order, tensors })
    }

    /// Writes all numbers of tensor `name`, which must be the next one, in its type.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if it is another tensor's turn, or has another number of elements.
    pub fn write(&mut self, name: &str, x: &[f32]) -> Result<()> {
        let bytes = match self.tensors.get(self.order.current()) {
            Some(t) if t.name == name && t.elements() == x.len() => encode(t, x),
            Some(t) if t.name == name => {
                let what = format!("tensor '{name}' has {} elements, but {} were given", t.elements(), x.len());
                return Err(self.file.refuse(what));
            }
            // another's turn: the order says whose
            _ => vec![0; x.len()],
        };
        self.order.give(name, bytes.len() as u64).map_err(|what| self.file.refuse(what))?;
        self.file.write(&bytes)
    }

    /// Gives the file its name, once the disk has it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if a tensor is missing. No file appears then.
    pub fn finish(self) -> Result<()> {
        self.order.finish().map_err(|what| self.file.refuse(what))?;
        self.file.commit()
    }
}

/// The stored bytes of a tensor's numbers.
fn encode(tensor: &Tensor, x: &[f32]) -> Vec<u8> {
    let reach = match tensor.kind {
        Type::F32 => return x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Type::F16 => return x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Type::Q8 => 127.0,
        Type::Q4 => 7.0,
    };
    let (group, scales) = tensor.groups();
    let mut out = Vec::with_capacity(tensor.bytes as usize);
    let mut codes: Vec<i8> = Vec::with_capacity(x.len());
    for x in x.chunks_exact(group) {
        let greatest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // a number that is not finite stays visible in the scale
        let finite = x.iter().all(|x| x.is_finite());
        let scale = if finite { f16::from_f32(greatest / reach) } else { f16::NAN };
        out.extend(scale.to_le_bytes());
        let s = scale.to_f32();
        let code = |x: f32| if s > 0.0 { (x / s).round_ties_even().clamp(-reach, reach) as i8 } else { 0 };
        codes.extend(x.iter().map(|&x| code(x)));
    }
    // a matrix with rows of no numbers has scales all the same
    out.resize(2 * scales, 0);
    match tensor.kind {
        Type::Q4 => out.extend(codes.as_chunks::<2>().0.iter().map(|[a, b]| (*a as u8 & 15) | (*b as u8) << 4)),
        _ => out.extend(codes.iter().map(|&q| q as u8)),
    }
    out
}

#[cfg(test)]
mod tests;
