//! Reading GGUF.

use super::value::{Array, Metadata, Strings, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY, MAX_NAME, PACKING_KEY, TensorType};
use crate::cursor::Cursor;
use crate::{Error, Result, Source};
use kernels_cpu::blocks::Format;
use std::collections::HashMap;
use std::path::Path;

/// Arrays in arrays in arrays: no file has a use for more, and recursion must end.
const MAX_DEPTH: usize = 4;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    dims: Vec<u64>,
    kind: TensorType,
    format: Option<Format>,
    offset: u64,
    bytes: u64,
}

impl Tensor {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dimensions as in the file: the innermost, a row's length, first. Empty: a scalar.
    pub fn dims(&self) -> &[u64] {
        &self.dims
    }

    /// Dimensions with the outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().map(|&d| d as usize).collect()
    }

    /// The type in the file.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// What its rows are read as; `None` for types that this program lists but does not read.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// The name of the format, or of the type where it has none.
    pub fn type_name(&self) -> &'static str {
        match self.format {
            Some(format) if self.kind == TensorType::I8 => format.name(),
            _ => self.kind.name(),
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// Where its bytes start, from the beginning of the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn byte_len(&self) -> u64 {
        self.bytes
    }
}

/// A file that was read: metadata, the list of tensors, and access to their bytes.
#[derive(Debug)]
pub struct File {
    source: Source,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl File {
    /// Maps and reads the file at `path`. Tensors' bytes are not touched.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] or [`Error::Unsupported`] if it is not a sound GGUF file of version 2 or 3.
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
        let version = version(name, &mut cursor)?;
        let tensor_count = cursor.u64("the number of tensors")?;
        let key_count = cursor.u64("the number of metadata keys")?;
        // the shortest: an empty key or name, a one-byte value, no dimensions
        let key_count = cursor.count(key_count, 8 + 4 + 1, "metadata keys")?;
        let tensor_count = cursor.count(tensor_count, 8 + 4 + 4 + 8, "tensors")?;
        let metadata = read_metadata(name, &mut cursor, key_count)?;
        let alignment = alignment(name, &metadata)?;
        let (mut tensors, index) = read_infos(name, &mut cursor, tensor_count, &metadata)?;
        let data = cursor.at().next_multiple_of(alignment);
        place(name, &mut tensors, data, alignment, source.bytes().len() as u64)?;
        source.release(0..data);
        Ok(File { version, alignment, metadata, tensors, index, source })
    }

    /// What messages call it: the path.
    pub fn name(&self) -> &str {
        self.source.name()
    }

    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Length of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.source.bytes().len() as u64
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The same file for its tensors alone: a vocabulary among the metadata can be larger than everything else that is kept in memory.
    pub fn without_metadata(self) -> Self {
        let metadata = Metadata::of_file(self.source.name());
        File { metadata, ..self }
    }

    /// The tensors in the order of their infos.
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

    /// Lets the system take back the memory of a tensor that was read through [`File::data`].
    pub fn release(&self, tensor: &Tensor) {
        self.source.release(tensor.offset..tensor.offset + tensor.bytes);
    }
}

/// Checks magic and version.
fn version(name: &str, cursor: &mut Cursor) -> Result<u32> {
    if cursor.remaining() < 4 || cursor.take(4, "the magic")? != MAGIC {
        return Err(Error::damaged(name, 0, "not a GGUF file: it does not begin with the bytes 'GGUF'"));
    }
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(Error::unsupported(
            name,
            "GGUF version 1, which only programs of August 2023 wrote: convert the model again with a current one",
        )),
        swapped if swapped & 0xffff == 0 => Err(Error::unsupported(
            name,
            "GGUF with swapped bytes, for big-endian machines: turn it round with gguf-convert-endian of the gguf package",
        )),
        other => Err(Error::unsupported(name, format!("GGUF version {other}; versions 2 and 3 are known"))),
    }
}

/// A string's bytes; `limit` is the greatest length that makes sense.
fn string<'a>(cursor: &mut Cursor<'a>, limit: u64, what: &str) -> Result<&'a [u8]> {
    let len = cursor.u64(what)?;
    if len > limit {
        return Err(cursor.damaged(format!("{what} of {len} bytes; no more than {limit} are allowed")));
    }
    cursor.take(len, what)
}

fn utf8<'a>(cursor: &Cursor, bytes: &'a [u8], what: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|e| cursor.damaged(format!("{what} is not UTF-8 from its byte {} on", e.valid_up_to())))
}

fn read_metadata(name: &str, cursor: &mut Cursor, count: usize) -> Result<Metadata> {
    let mut metadata = Metadata::of_file(name);
    for i in 0..count {
        let what = format!("metadata key {i}");
        let key = string(cursor, MAX_KEY, &what)?;
        let key = utf8(cursor, key, &what)?;
        if metadata.get(key).is_some() {
            return Err(cursor.damaged(format!("metadata key '{key}' occurs twice")));
        }
        let what = format!("the value of metadata key '{key}'");
        let kind = cursor.u32(&what)?;
        let value = read_value(cursor, kind, &what)?;
        metadata.set(key, value);
    }
    Ok(metadata)
}

/// Ids of value types.
pub(super) mod id {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

macro_rules! number {
    ($cursor:expr, $what:expr, $type:ident) => {
        $type::from_le_bytes($cursor.take(size_of::<$type>() as u64, $what)?.try_into().expect("as many as taken"))
    };
}

macro_rules! numbers {
    ($cursor:expr, $n:expr, $what:expr, $type:ident) => {{
        const SIZE: usize = size_of::<$type>();
        let n = $cursor.count($n, SIZE as u64, $what)?;
        let bytes = $cursor.take((n * SIZE) as u64, $what)?;
        bytes.chunks_exact(SIZE).map(|b| $type::from_le_bytes(b.try_into().expect("SIZE bytes"))).collect()
    }};
}

fn read_value(cursor: &mut Cursor, kind: u32, what: &str) -> Result<Value> {
    Ok(match kind {
        id::U8 => Value::U8(number!(cursor, what, u8)),
        id::I8 => Value::I8(number!(cursor, what, i8)),
        id::U16 => Value::U16(number!(cursor, what, u16)),
        id::I16 => Value::I16(number!(cursor, what, i16)),
        id::U32 => Value::U32(number!(cursor, what, u32)),
        id::I32 => Value::I32(number!(cursor, what, i32)),
        id::F32 => Value::F32(number!(cursor, what, f32)),
        id::U64 => Value::U64(number!(cursor, what, u64)),
        id::I64 => Value::I64(number!(cursor, what, i64)),
        id::F64 => Value::F64(number!(cursor, what, f64)),
        id::BOOL => {
            let byte = cursor.u8(what)?;
            Value::Bool(boolean(cursor, byte, what)?)
        }
        id::STRING => {
            let bytes = string(cursor, u64::MAX, what)?;
            Value::String(utf8(cursor, bytes, what)?.into())
        }
        id::ARRAY => Value::Array(read_array(cursor, what, 1)?),
        other => return Err(cursor.damaged(format!("{what} has type id {other}, which is none of 0 to 12"))),
    })
}

fn boolean(cursor: &Cursor, byte: u8, what: &str) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.damaged(format!("{what} is a bool of {other}, which is neither 0 nor 1"))),
    }
}

fn read_array(cursor: &mut Cursor, what: &str, depth: usize) -> Result<Array> {
    let kind = cursor.u32(what)?;
    let n = cursor.u64(what)?;
    Ok(match kind {
        id::U8 => Array::U8(cursor.take(n, what)?.to_vec()),
        id::I8 => Array::I8(cursor.take(n, what)?.iter().map(|&b| b as i8).collect()),
        id::U16 => Array::U16(numbers!(cursor, n, what, u16)),
        id::I16 => Array::I16(numbers!(cursor, n, what, i16)),
        id::U32 => Array::U32(numbers!(cursor, n, what, u32)),
        id::I32 => Array::I32(numbers!(cursor, n, what, i32)),
        id::F32 => Array::F32(numbers!(cursor, n, what, f32)),
        id::U64 => Array::U64(numbers!(cursor, n, what, u64)),
        id::I64 => Array::I64(numbers!(cursor, n, what, i64)),
        id::F64 => Array::F64(numbers!(cursor, n, what, f64)),
        id::BOOL => {
            let bytes = cursor.take(n, what)?;
            Array::Bool(bytes.iter().map(|&b| boolean(cursor, b, what)).collect::<Result<_>>()?)
        }
        id::STRING => {
            let n = cursor.count(n, 8, what)?;
            let mut strings = Strings::with_capacity(n);
            for _ in 0..n {
                strings.push(string(cursor, u64::MAX, what)?);
            }
            Array::String(strings)
        }
        id::ARRAY if depth >= MAX_DEPTH => {
            return Err(cursor.damaged(format!("{what} has arrays in arrays more than {MAX_DEPTH} deep")));
        }
        id::ARRAY => {
            let n = cursor.count(n, 4 + 8, what)?;
            let mut arrays = Vec::with_capacity(n);
            for _ in 0..n {
                arrays.push(read_array(cursor, what, depth + 1)?);
            }
            Array::Array(arrays)
        }
        other => return Err(cursor.damaged(format!("{what} is an array of type id {other}, which is none of 0 to 12"))),
    })
}

fn alignment(name: &str, metadata: &Metadata) -> Result<u64> {
    match metadata.find::<u32>("general.alignment")? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(n) if n.is_power_of_two() && n >= 8 => Ok(n.into()),
        Some(n) => {
            Err(Error::unsupported(name, format!("general.alignment is {n}; it must be a power of two of at least 8")))
        }
    }
}

type Infos = (Vec<Tensor>, HashMap<String, usize>);

/// Tensor infos; offsets are still relative to the data section.
fn read_infos(name: &str, cursor: &mut Cursor, count: usize, metadata: &Metadata) -> Result<Infos> {
    let mut tensors: Vec<Tensor> = Vec::with_capacity(count);
    let mut index = HashMap::new();
    for i in 0..count {
        let what = format!("the name of tensor {i}");
        let bytes = string(cursor, MAX_NAME, &what)?;
        let tensor = utf8(cursor, bytes, &what)?;
        let what = format!("the description of tensor '{tensor}'");
        let n = cursor.u32(&what)? as usize;
        if n > MAX_DIMS {
            return Err(cursor.damaged(format!("tensor '{tensor}' has {n} dimensions; at most {MAX_DIMS} are allowed")));
        }
        let mut dims = (0..n).map(|_| cursor.u64(&what)).collect::<Result<Vec<_>>>()?;
        let kind = cursor.u32(&what)?;
        let kind = TensorType::from_id(kind).ok_or_else(|| {
            let what = format!("tensor '{tensor}' has type id {kind}, which ggml does not have (any more)");
            Error::unsupported(name, format!("{what}; convert the model again with a current program"))
        })?;
        let offset = cursor.u64(&what)?;
        let bytes = byte_len(&dims, kind).map_err(|e| cursor.damaged(format!("tensor '{tensor}' {dims:?}: {e}")))?;
        let format = match packing(metadata, tensor, kind, &mut dims)? {
            Some(format) => Some(format),
            None => kind.format(),
        };
        if index.insert(tensor.to_string(), i).is_some() {
            return Err(cursor.damaged(format!("there are two tensors called '{tensor}'")));
        }
        tensors.push(Tensor { name: tensor.into(), dims, kind, format, offset, bytes });
    }
    Ok((tensors, index))
}

/// Bytes of a tensor; also checks that the number of elements can be counted.
pub(super) fn byte_len(dims: &[u64], kind: TensorType) -> Result<u64, String> {
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= i64::MAX as u64);
    let elements = elements.ok_or("more elements than can be counted")?;
    let (len, bytes) = kind.block();
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(len) {
        return Err(format!("rows of {row} are not whole blocks of {len}, which {kind} has"));
    }
    (elements / len).checked_mul(bytes).ok_or_else(|| "more bytes than can be counted".into())
}

/// The format that `lynx.packing.<tensor>` names, if it is there; `dims` become numbers instead of bytes.
fn packing(metadata: &Metadata, tensor: &str, kind: TensorType, dims: &mut [u64]) -> Result<Option<Format>> {
    let key = format!("{PACKING_KEY}{tensor}");
    let Some(format) = metadata.find::<&str>(&key)? else { return Ok(None) };
    let wrong = |what: String| Err(Error::unsupported(metadata.file(), format!("metadata key '{key}': {what}")));
    let Some(format) = Format::from_name(format).filter(|&f| TensorType::of(f) == TensorType::I8) else {
        return wrong(format!("'{format}' is no format that is packed in bytes"));
    };
    let Some(row) = dims.first_mut().filter(|_| kind == TensorType::I8) else {
        return wrong(format!("tensor '{tensor}' must be rows of I8, but is {kind}"));
    };
    let Some(columns) = packed_columns(format, *row) else {
        return wrong(format!("rows of {row} bytes are not whole rows of {format}"));
    };
    *row = columns;
    Ok(Some(format))
}

/// Numbers in a packed row of `bytes`.
fn packed_columns(format: Format, bytes: u64) -> Option<u64> {
    match format.block_len() {
        None => bytes.checked_sub(4),
        Some(len) => {
            let block = format.row_bytes(len).ok()? as u64;
            bytes.is_multiple_of(block).then(|| bytes / block * len as u64)
        }
    }
}

/// Makes offsets absolute; checks that they are aligned, inside the file, and that no two tensors overlap.
fn place(name: &str, tensors: &mut [Tensor], data: u64, alignment: u64, file_len: u64) -> Result<()> {
    let mut ranges = Vec::with_capacity(tensors.len());
    for (i, t) in tensors.iter_mut().enumerate() {
        if t.offset % alignment != 0 {
            let what = format!("tensor '{}' starts at offset {}, not a multiple of {alignment}", t.name, t.offset);
            return Err(Error::damaged(name, data, what));
        }
        let start = data.checked_add(t.offset);
        let end = start.and_then(|s| s.checked_add(t.bytes)).filter(|&end| end <= file_len);
        let (Some(start), Some(end)) = (start, end) else {
            let what = format!(
                "tensor '{}' ({} bytes from offset {} of the data) ends beyond the file's {file_len} bytes: \
                 the file was cut short; fetch it again",
                t.name, t.bytes, t.offset
            );
            return Err(Error::damaged(name, data, what));
        };
        t.offset = start;
        if start < end {
            ranges.push((start, end, i));
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(_, end, a), (start, _, b)] = [pair[0], pair[1]];
        if start < end {
            let what = format!("tensors '{}' and '{}' overlap", tensors[a].name, tensors[b].name);
            return Err(Error::damaged(name, start, what));
        }
    }
    Ok(())
}
