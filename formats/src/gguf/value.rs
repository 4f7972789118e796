//! Metadata of GGUF files: keys in the file's order, typed values.

use crate::{Error, Result};
use std::collections::HashMap;

/// A value, of one of the types that GGUF has.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array: all elements have one type. Arrays of arrays may differ in their elements' lengths and types.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Array {
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers of an array of any type of integers; `None` for other arrays and for integers beyond i64.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        Some(match self {
            Array::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I64(v) => v.clone(),
            Array::U64(v) => v.iter().map(|&x| x.try_into().ok()).collect::<Option<_>>()?,
            _ => return None,
        })
    }

    fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::String(_) => "string",
            Array::Array(_) => "array",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }
}

impl Value {
    /// `u32`, `string`, `array of f32` and so on.
    pub fn type_name(&self) -> String {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::F32(_) => "f32",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(array) => return format!("array of {}", array.type_name()),
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F64(_) => "f64",
        }
        .into()
    }

    /// The value of any type of integer.
    fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(x) => x.into(),
            Value::I8(x) => x.into(),
            Value::U16(x) => x.into(),
            Value::I16(x) => x.into(),
            Value::U32(x) => x.into(),
            Value::I32(x) => x.into(),
            Value::U64(x) => x.into(),
            Value::I64(x) => x.into(),
            _ => return None,
        })
    }
}

/// Strings one after another in one piece of memory. GGUF asks for UTF-8, but vocabularies exist whose tokens are not, so the bytes
/// are kept as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Strings {
    pub(super) fn with_capacity(strings: usize) -> Self {
        Strings { bytes: Vec::new(), ends: Vec::with_capacity(strings) }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    /// The bytes of string `i`.
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.bytes[start..end])
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i).expect("i < len"))
    }

    /// The strings as text; those that are not UTF-8 get replacement characters.
    pub fn iter_lossy(&self) -> impl ExactSizeIterator<Item = std::borrow::Cow<'_, str>> {
        self.iter().map(String::from_utf8_lossy)
    }
}

impl<B: AsRef<[u8]>> FromIterator<B> for Strings {
    fn from_iter<I: IntoIterator<Item = B>>(strings: I) -> Self {
        let mut all = Strings::default();
        for s in strings {
            all.push(s.as_ref());
        }
        all
    }
}

/// What [`Metadata::find`] and [`Metadata::require`] can give. Integers may be stored in any integer type that their value fits;
/// nothing else is converted.
pub trait FromValue<'a>: Sized {
    /// What the message asks for.
    const WHAT: &'static str;

    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($type:ty, $what:literal, $pattern:pat => $result:expr;)*) => {$(
        impl<'a> FromValue<'a> for $type {
            const WHAT: &'static str = $what;

            fn from_value(value: &'a Value) -> Option<Self> {
                match value { $pattern => Some($result), _ => None }
            }
        }
    )*};
}

from_value! {
    bool, "a bool", Value::Bool(x) => *x;
    f32, "an f32", Value::F32(x) => *x;
    &'a str, "a string", Value::String(x) => x;
    &'a Array, "an array", Value::Array(x) => x;
    &'a Strings, "an array of strings", Value::Array(Array::String(x)) => x;
    &'a [f32], "an array of f32", Value::Array(Array::F32(x)) => x;
    &'a [i32], "an array of i32", Value::Array(Array::I32(x)) => x;
    &'a [u32], "an array of u32", Value::Array(Array::U32(x)) => x;
    &'a [bool], "an array of bools", Value::Array(Array::Bool(x)) => x;
}

macro_rules! integer_from_value {
    ($($type:ident, $what:literal;)*) => {$(
        impl FromValue<'_> for $type {
            const WHAT: &'static str = $what;

            fn from_value(value: &Value) -> Option<Self> {
                value.integer()?.try_into().ok()
            }
        }
    )*};
}

integer_from_value! {
    u32, "an integer from 0 to 4294967295";
    i32, "an integer from -2147483648 to 2147483647";
    u64, "an integer of at least 0";
    i64, "an integer of 64 bits";
    usize, "an integer of at least 0";
}

impl FromValue<'_> for f64 {
    const WHAT: &'static str = "an f64";

    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::F64(x) => Some(x),
            Value::F32(x) => Some(x.into()),
            _ => None,
        }
    }
}

macro_rules! into_value {
    ($($type:ty => |$x:ident| $value:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($x: $type) -> Value { $value }
        }
    )*};
}

into_value! {
    bool => |x| Value::Bool(x);
    u32 => |x| Value::U32(x);
    i32 => |x| Value::I32(x);
    u64 => |x| Value::U64(x);
    f32 => |x| Value::F32(x);
    &str => |x| Value::String(x.into());
    String => |x| Value::String(x);
    Array => |x| Value::Array(x);
    Strings => |x| Value::Array(Array::String(x));
    Vec<f32> => |x| Value::Array(Array::F32(x));
    Vec<i32> => |x| Value::Array(Array::I32(x));
    Vec<u32> => |x| Value::Array(Array::U32(x));
    Vec<bool> => |x| Value::Array(Array::Bool(x));
}

/// Keys and values, in order; every key once.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    file: String,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    /// The same keys in the same order with the same values; what file they come from does not matter.
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Metadata {
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn of_file(file: &str) -> Self {
        Metadata { file: file.into(), ..Self::default() }
    }

    /// Sets a key: a new one comes last, an old one keeps its place.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.index.get(&key) {
            Some(&i) => self.entries[i].1 = value,
            None => {
                self.index.insert(key.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    /// Takes the keys out for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.entries.retain(|(key, _)| keep(key));
        self.index = self.entries.iter().enumerate().map(|(i, (key, _))| (key.clone(), i)).collect();
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// The value of a key that need not be there.
    ///
    /// # Errors
    /// [`Error::Missing`] if it is there with another type; the message names file, key and both types.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        T::from_value(value).map(Some).ok_or_else(|| {
            let found = match value.integer() {
                Some(x) => format!("the {} {x}", value.type_name()),
                None => format!("of type {}", value.type_name()),
            };
            Error::missing(&self.file, format!("metadata key '{key}' must be {}, but is {found}", T::WHAT))
        })
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// As [`Metadata::find`], and if the key is not there.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        self.find(key)?.ok_or_else(|| {
            Error::missing(&self.file, format!("metadata key '{key}' is missing; it must be {}", T::WHAT))
        })
    }
}
