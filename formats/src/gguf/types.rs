//! The element types of GGUF tensors.

use kernels_cpu::blocks::Format;

macro_rules! types {
    ($($(#[$attr:meta])* $variant:ident = $id:literal, $name:literal, $len:literal, $bytes:literal;)*) => {
        /// A type of tensor elements, by its id in the file. All that ggml defines are known by name and size; those with a
        /// [`TensorType::format`] can be read as numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum TensorType { $($(#[$attr])* $variant = $id),* }

        impl TensorType {
            pub const ALL: &[TensorType] = &[$(TensorType::$variant),*];

            pub fn from_id(id: u32) -> Option<TensorType> {
                match id { $($id => Some(TensorType::$variant),)* _ => None }
            }

            /// The name that ggml gives it.
            pub fn name(self) -> &'static str {
                match self { $(TensorType::$variant => $name),* }
            }

            /// Numbers of a block and its bytes.
            pub fn block(self) -> (u64, u64) {
                match self { $(TensorType::$variant => ($len, $bytes)),* }
            }
        }
    };
}

types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 36 bytes in ggml (two f16 beside the codes); the `gguf` package says 40. Not met in files.
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2K = 10, "Q2_K", 256, 84;
    Q3K = 11, "Q3_K", 256, 110;
    Q4K = 12, "Q4_K", 256, 144;
    Q5K = 13, "Q5_K", 256, 176;
    Q6K = 14, "Q6_K", 256, 210;
    Q8K = 15, "Q8_K", 256, 292;
    Iq2Xxs = 16, "IQ2_XXS", 256, 66;
    Iq2Xs = 17, "IQ2_XS", 256, 74;
    Iq3Xxs = 18, "IQ3_XXS", 256, 98;
    Iq1S = 19, "IQ1_S", 256, 50;
    Iq4Nl = 20, "IQ4_NL", 32, 18;
    Iq3S = 21, "IQ3_S", 256, 110;
    Iq2S = 22, "IQ2_S", 256, 82;
    Iq4Xs = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    Iq1M = 29, "IQ1_M", 256, 56;
    Bf16 = 30, "BF16", 1, 2;
    Tq1_0 = 34, "TQ1_0", 256, 54;
    Tq2_0 = 35, "TQ2_0", 256, 66;
    Mxfp4 = 39, "MXFP4", 32, 17;
    Nvfp4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
}

impl TensorType {
    pub fn id(self) -> u32 {
        self as u32
    }

    /// What its rows are read as.
    pub fn format(self) -> Option<Format> {
        Some(match self {
            TensorType::F32 => Format::F32,
            TensorType::F16 => Format::F16,
            TensorType::Bf16 => Format::Bf16,
            TensorType::Q4_0 => Format::Q4_0,
            TensorType::Q4_1 => Format::Q4_1,
            TensorType::Q5_0 => Format::Q5_0,
            TensorType::Q5_1 => Format::Q5_1,
            TensorType::Q8_0 => Format::Q8_0,
            TensorType::Q2K => Format::Q2K,
            TensorType::Q3K => Format::Q3K,
            TensorType::Q4K => Format::Q4K,
            TensorType::Q5K => Format::Q5K,
            TensorType::Q6K => Format::Q6K,
            _ => return None,
        })
    }

    /// The type that rows of `format` are stored as; `I8`, as bytes, for those that GGUF does not have.
    pub fn of(format: Format) -> TensorType {
        Self::ALL.iter().copied().find(|t| t.format() == Some(format)).unwrap_or(TensorType::I8)
    }
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_agree_with_the_formats() {
        for &t in TensorType::ALL {
            assert_eq!(TensorType::from_id(t.id()), Some(t));
            let (len, bytes) = t.block();
            if let Some(format) = t.format() {
                assert_eq!(format.row_bytes(len as usize), Ok(bytes as usize), "{t}");
                assert_eq!(TensorType::of(format), t);
            }
        }
        assert_eq!(TensorType::of(Format::Nf4), TensorType::I8);
        assert_eq!(TensorType::from_id(4), None);
    }
}
