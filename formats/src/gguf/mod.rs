//! GGUF, the file format of ggml and llama.cpp, versions 2 and 3: metadata, then tensors in blocks of many types.
//!
//! A file is: the magic `GGUF`, u32 version, u64 number of tensors, u64 number of keys; keys (string, u32 type, value); tensor
//! infos (name, u32 number of dimensions, u64 each with the innermost first, u32 type, u64 offset); padding to `general.alignment`
//! (32 where absent); the tensors, each padded to the alignment. Strings are a u64 length and bytes; all numbers little-endian.
//! Source: docs/gguf.md of the ggml project.
//!
//! # Formats that GGUF does not have
//! Rows of [`Format::Int8Row`], [`Format::Int4Group`] and [`Format::Nf4`] are stored as tensors of type `I8` whose innermost
//! dimension is the bytes of a row, with the metadata key `lynx.packing.<tensor name>` saying the format by name. [`Tensor`] undoes
//! this: its dimensions are numbers, not bytes. Other programs find no weights of a type they know, and refuse instead of misreading.
//!
//! [`Format::Int8Row`]: kernels_cpu::blocks::Format::Int8Row
//! [`Format::Int4Group`]: kernels_cpu::blocks::Format::Int4Group
//! [`Format::Nf4`]: kernels_cpu::blocks::Format::Nf4

mod read;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod write;
#[cfg(test)]
mod write_tests;

pub use read::{File, Tensor};
pub use types::TensorType;
pub use value::{Array, FromValue, Metadata, Strings, Value};
pub use write::{NewTensor, Writer};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// What tensors are aligned to unless `general.alignment` says otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;
/// The key that says what a tensor of bytes really holds, before the tensor's name.
pub const PACKING_KEY: &str = "lynx.packing.";
/// Dimensions that a tensor may have (`GGML_MAX_DIMS`).
pub const MAX_DIMS: usize = 4;
/// Longest name of a tensor that is read; llama.cpp takes no more than 63 bytes, other programs up to 127.
const MAX_NAME: u64 = 255;
/// Longest key, as the specification has it.
const MAX_KEY: u64 = 65535;
