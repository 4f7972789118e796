//! Writing GGUF, version 3.

use super::read::{byte_len, id};
use super::value::{Array, Metadata, Strings, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY, PACKING_KEY, Tensor, TensorType};
use crate::atomic::Atomic;
use crate::order::Order;
use crate::{Error, Result};
use kernels_cpu::blocks::Format;
use std::collections::HashSet;
use std::path::Path;

/// Longest name of a tensor that llama.cpp reads.
const MAX_NAME: usize = 63;

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    name: String,
    /// As stored: bytes for packed formats, the innermost first.
    dims: Vec<u64>,
    kind: TensorType,
    packing: Option<Format>,
}

impl NewTensor {
    /// A tensor of `shape`, the outermost dimension first, in `format`; formats that GGUF does not have are packed as bytes
    /// (see [`gguf`](super)).
    ///
    /// # Errors
    /// Rows that are not whole blocks of the format, or that are packed and have no dimension.
    pub fn new(name: impl Into<String>, shape: &[usize], format: Format) -> Result<Self, String> {
        let mut dims: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        let kind = TensorType::of(format);
        let name = name.into();
        let packing = (kind == TensorType::I8).then_some(format);
        if packing.is_some() {
            let row = dims.first_mut().ok_or_else(|| format!("tensor '{name}': {format} needs rows"))?;
            *row = format.row_bytes(*row as usize).map_err(|e| format!("tensor '{name}': {e}"))? as u64;
        }
        byte_len(&dims, kind).map_err(|e| format!("tensor '{name}': {e}"))?;
        Ok(NewTensor { name, dims, kind, packing })
    }

    /// The same name, dimensions and type as a tensor of a file, whatever its type.
    pub fn like(tensor: &Tensor) -> Self {
        let (kind, packing) = (tensor.kind(), tensor.format().filter(|_| tensor.kind() == TensorType::I8));
        let mut dims = tensor.dims().to_vec();
        if let (Some(format), Some(row)) = (packing, dims.first_mut()) {
            *row = format.row_bytes(*row as usize).expect("whole rows were read") as u64;
        }
        NewTensor { name: tensor.name().into(), dims, kind, packing }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn byte_len(&self) -> u64 {
        byte_len(&self.dims, self.kind).expect("checked when made")
    }
}

/// Writes a file: the head at once, then the tensors' bytes in the order in which they were announced.
#[derive(Debug)]
pub struct Writer {
    file: Atomic,
    order: Order,
    alignment: u64,
}

impl Writer {
    /// Starts a file that will be `path`. `general.alignment` of the metadata is obeyed; `lynx.packing.*` keys are those of `tensors`
    /// and no others. Data is written by [`Writer::write`]; the file appears with [`Writer::finish`].
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] for names, keys or an alignment that readers refuse.
    pub fn create(path: impl AsRef<Path>, metadata: &Metadata, tensors: Vec<NewTensor>) -> Result<Self> {
        let path = path.as_ref();
        let refuse = |what: String| Err(Error::unwritable(&path.display().to_string(), what));
        let mut metadata = metadata.clone();
        metadata.retain(|key| !key.starts_with(PACKING_KEY));
        let mut names = HashSet::new();
        for t in &tensors {
            if t.name.len() > MAX_NAME {
                return refuse(format!("tensor name '{}' is longer than {MAX_NAME} bytes", t.name));
            }
            if t.dims.len() > MAX_DIMS {
                return refuse(format!("tensor '{}' has {} dimensions, more than {MAX_DIMS}", t.name, t.dims.len()));
            }
            if !names.insert(t.name.as_str()) {
                return refuse(format!("there are two tensors called '{}'", t.name));
            }
            if let Some(format) = t.packing {
                metadata.set(format!("{PACKING_KEY}{}", t.name), format.name());
            }
        }
        if let Some((key, _)) = metadata.iter().find(|(key, _)| key.len() as u64 > MAX_KEY) {
            return refuse(format!("a metadata key of {} bytes; {MAX_KEY} are allowed", key.len()));
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::U32(n)) if n.is_power_of_two() && n >= 8 => n.into(),
            Some(_) => return refuse("general.alignment must be a u32, a power of two of at least 8".into()),
        };
        let mut file = Atomic::create(path)?;
        file.write(&head(&metadata, &tensors, alignment))?;
        file.pad(alignment)?;
        let order = Order::new(tensors.iter().map(|t| (t.name.clone(), t.byte_len())).collect());
        Ok(Writer { file, order, alignment })
    }

    /// Appends bytes to tensor `name`, which must be the first that is not complete. A tensor may be written in pieces.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] if it is another tensor's turn, or these are more bytes than the tensor has.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let complete = self.order.give(name, bytes.len() as u64).map_err(|what| self.file.refuse(what))?;
        self.file.write(bytes)?;
        if complete.is_some() { self.file.pad(self.alignment) } else { Ok(()) }
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

fn head(metadata: &Metadata, tensors: &[NewTensor], alignment: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key.as_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for t in tensors {
        put_string(&mut out, t.name.as_bytes());
        out.extend((t.dims.len() as u32).to_le_bytes());
        t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(t.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += t.byte_len().next_multiple_of(alignment);
    }
    out
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn put_strings(out: &mut Vec<u8>, strings: &Strings) {
    strings.iter().for_each(|s| put_string(out, s));
}

/// A value's type and the value.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut number = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(x) => number(id::U8, &[*x]),
        Value::I8(x) => number(id::I8, &x.to_le_bytes()),
        Value::U16(x) => number(id::U16, &x.to_le_bytes()),
        Value::I16(x) => number(id::I16, &x.to_le_bytes()),
        Value::U32(x) => number(id::U32, &x.to_le_bytes()),
        Value::I32(x) => number(id::I32, &x.to_le_bytes()),
        Value::F32(x) => number(id::F32, &x.to_le_bytes()),
        Value::Bool(x) => number(id::BOOL, &[*x as u8]),
        Value::U64(x) => number(id::U64, &x.to_le_bytes()),
        Value::I64(x) => number(id::I64, &x.to_le_bytes()),
        Value::F64(x) => number(id::F64, &x.to_le_bytes()),
        Value::String(x) => {
            out.extend(id::STRING.to_le_bytes());
            put_string(out, x.as_bytes());
        }
        Value::Array(x) => {
            out.extend(id::ARRAY.to_le_bytes());
            put_array(out, x);
        }
    }
}

/// An array's type, length and elements.
fn put_array(out: &mut Vec<u8>, array: &Array) {
    macro_rules! numbers {
        ($id:ident, $values:expr) => {{
            out.extend(id::$id.to_le_bytes());
            out.extend(($values.len() as u64).to_le_bytes());
            $values.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(v) => numbers!(U8, v),
        Array::I8(v) => numbers!(I8, v),
        Array::U16(v) => numbers!(U16, v),
        Array::I16(v) => numbers!(I16, v),
        Array::U32(v) => numbers!(U32, v),
        Array::I32(v) => numbers!(I32, v),
        Array::F32(v) => numbers!(F32, v),
        Array::U64(v) => numbers!(U64, v),
        Array::I64(v) => numbers!(I64, v),
        Array::F64(v) => numbers!(F64, v),
        Array::Bool(v) => {
            let v: Vec<u8> = v.iter().map(|&b| b as u8).collect();
            numbers!(BOOL, v);
        }
        Array::String(v) => {
            out.extend(id::STRING.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            put_strings(out, v);
        }
        Array::Array(v) => {
            out.extend(id::ARRAY.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|a| put_array(out, a));
        }
    }
}
