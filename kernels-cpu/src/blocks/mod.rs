//! Formats that a row of weights is stored in: plain 16- and 32-bit floats, the blocks of GGUF, and this program's own groups.
//! A row of `columns` numbers is `row_bytes(columns)` bytes, rows follow each other without gaps.

mod dequantise;
mod quantise;
mod search;

pub use dequantise::*;
pub use quantise::{can_quantise, quantise_row, quantise_rows};

/// How numbers are stored. A quantised row is cut into blocks of `block_len` numbers, each of `block_bytes` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// Blocks of 32: f16 scale d, 4-bit q; d (q - 8).
    Q4_0,
    /// Blocks of 32: f16 scale d and minimum m, 4-bit q; d q + m.
    Q4_1,
    /// Blocks of 32: f16 scale d, 5-bit q; d (q - 16).
    Q5_0,
    /// Blocks of 32: f16 scale d and minimum m, 5-bit q; d q + m.
    Q5_1,
    /// Blocks of 32: f16 scale d, int8 q; d q.
    Q8_0,
    /// Superblocks of 256 with 16 blocks of 16, 2-bit q.
    Q2K,
    /// Superblocks of 256 with 16 blocks of 16, 3-bit q.
    Q3K,
    /// Superblocks of 256 with 8 blocks of 32, 4-bit q.
    Q4K,
    /// Superblocks of 256 with 8 blocks of 32, 5-bit q.
    Q5K,
    /// Superblocks of 256 with 16 blocks of 16, 6-bit q.
    Q6K,
    /// The whole row is one block: f32 scale s, then an int8 q in -127 ..= 127 for every number; s q. Not in GGUF.
    Int8Row,
    /// Blocks of 32, 64 or 128 (`Int4Group(32)` ..): f16 scale s, then half as many bytes; the low nibbles are the first half of the
    /// block, the high ones the second; s (q - 8), q in 1 ..= 15. Not in GGUF (of 32: the bytes of `Q4_0`).
    Int4Group(u16),
    /// Blocks of 64: f16 scale s, then 32 bytes of indices in the order of `Int4Group`; s times an entry of [`NF4`]. Not in GGUF.
    Nf4,
}

/// The 16 levels of NormalFloat4 (Dettmers et al. 2023, QLoRA, appendix E).
#[allow(clippy::excessive_precision, reason = "the digits that were published")]
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

impl Format {
    pub const ALL: [Format; 18] = [
        Format::F32,
        Format::F16,
        Format::Bf16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Int8Row,
        Format::Int4Group(32),
        Format::Int4Group(64),
        Format::Int4Group(128),
        Format::Nf4,
    ];

    /// Numbers of a block; `None` where a block is the whole row.
    pub fn block_len(self) -> Option<usize> {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => Some(1),
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => Some(32),
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => Some(256),
            Format::Int8Row => None,
            Format::Int4Group(n) => Some(n as usize),
            Format::Nf4 => Some(64),
        }
    }

    /// Bytes of a row of `columns` numbers.
    ///
    /// # Errors
    /// `columns` is not a whole number of blocks, or more than can be counted.
    pub fn row_bytes(self, columns: usize) -> Result<usize, String> {
        let (len, bytes) = match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::Bf16 => (1, 2),
            Format::Q4_0 => (32, 18),
            Format::Q4_1 => (32, 20),
            Format::Q5_0 => (32, 22),
            Format::Q5_1 => (32, 24),
            Format::Q8_0 => (32, 34),
            Format::Q2K => (256, 84),
            Format::Q3K => (256, 110),
            Format::Q4K => (256, 144),
            Format::Q5K => (256, 176),
            Format::Q6K => (256, 210),
            Format::Int8Row => {
                return columns.checked_add(4).ok_or_else(|| format!("rows of {columns} numbers are too long"));
            }
            Format::Int4Group(n) => (n as usize, 2 + n as usize / 2),
            Format::Nf4 => (64, 34),
        };
        if len == 0 || !columns.is_multiple_of(len) {
            return Err(format!("rows of {columns} numbers are not whole blocks of {len}, which {self} has"));
        }
        (columns / len).checked_mul(bytes).ok_or_else(|| format!("rows of {columns} numbers are too long"))
    }

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Q8_0 => "q8_0",
            Format::Q2K => "q2_k",
            Format::Q3K => "q3_k",
            Format::Q4K => "q4_k",
            Format::Q5K => "q5_k",
            Format::Q6K => "q6_k",
            Format::Int8Row => "int8-row",
            Format::Int4Group(32) => "int4-g32",
            Format::Int4Group(64) => "int4-g64",
            Format::Int4Group(_) => "int4-g128",
            Format::Nf4 => "nf4",
        }
    }

    pub fn from_name(name: &str) -> Option<Format> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_rows_are_whole_blocks() {
        for format in Format::ALL {
            assert_eq!(Format::from_name(format.name()), Some(format));
            assert!(format.row_bytes(512).is_ok());
            let odd = format.row_bytes(511);
            assert_eq!(odd.is_ok(), matches!(format.block_len(), None | Some(1)), "{format}");
        }
    }
}
