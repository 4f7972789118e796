//! safetensors, the file format of Hugging Face: a JSON header, then the tensors' bytes; one file, or several with an index.
//!
//! A file is: u64 length of the header, the header, the data. The header maps names to `dtype`, `shape` and `data_offsets` (begin and
//! end, from the start of the data), and `__metadata__` to strings. The tensors cover the data without holes or overlaps.
//! Source: the README of the safetensors project.

mod header;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::{Model, Tensor};
pub use write::{NewTensor, ShardedWriter, Writer};

use kernels_cpu::blocks::Format;

/// The file that a folder's model is in when it is one.
pub const WHOLE: &str = "model.safetensors";
/// The file that says which of several files a tensor is in.
pub const INDEX: &str = "model.safetensors.index.json";
/// Longest header, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

macro_rules! dtypes {
    ($($variant:ident $name:literal $bits:literal,)*) => {
        /// The types that elements have. Those with a [`Dtype::format`] can be read as numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Dtype { $($variant),* }

        impl Dtype {
            pub const ALL: &[Dtype] = &[$(Dtype::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name),* }
            }

            /// Bits of an element.
            pub fn bits(self) -> u64 {
                match self { $(Dtype::$variant => $bits),* }
            }
        }
    };
}

dtypes! {
    F64 "F64" 64,
    F32 "F32" 32,
    F16 "F16" 16,
    Bf16 "BF16" 16,
    I64 "I64" 64,
    I32 "I32" 32,
    I16 "I16" 16,
    I8 "I8" 8,
    U64 "U64" 64,
    U32 "U32" 32,
    U16 "U16" 16,
    U8 "U8" 8,
    Bool "BOOL" 8,
    C64 "C64" 64,
    F8E4m3 "F8_E4M3" 8,
    F8E5m2 "F8_E5M2" 8,
    F8E8m0 "F8_E8M0" 8,
    F6E2m3 "F6_E2M3" 6,
    F6E3m2 "F6_E3M2" 6,
    F4 "F4" 4,
}

impl Dtype {
    pub fn from_name(name: &str) -> Option<Dtype> {
        Self::ALL.iter().copied().find(|d| d.name() == name)
    }

    /// What its rows are read as.
    pub fn format(self) -> Option<Format> {
        match self {
            Dtype::F32 => Some(Format::F32),
            Dtype::F16 => Some(Format::F16),
            Dtype::Bf16 => Some(Format::Bf16),
            _ => None,
        }
    }

    /// Bytes of a tensor.
    ///
    /// # Errors
    /// More than can be counted, or not whole bytes.
    fn byte_len(self, shape: &[u64]) -> Result<u64, String> {
        let bits =
            shape.iter().try_fold(self.bits(), |n, &d| n.checked_mul(d)).ok_or("more bytes than can be counted")?;
        if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(format!("{bits} bits are not whole bytes")) }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
