//! What `quantize --to` can be told, and which format each weight of a model gets by it.

use super::symmetric::Clip;
use kernels_cpu::blocks::{Format, can_quantise};

/// How the matrices of a model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Rounded to the nearest in this format.
    Nearest(Format),
    /// int8 with one scale for a whole matrix; stored as `Int8Row` with the same scale in every row.
    Int8Tensor,
    /// int4 in groups of so many, by GPTQ.
    Gptq(u16),
    /// int4 in groups of so many, after activation-aware scaling.
    Awq(u16),
}

impl Scheme {
    pub const ALL: [Scheme; 20] = [
        Scheme::Nearest(Format::F32),
        Scheme::Nearest(Format::F16),
        Scheme::Nearest(Format::Bf16),
        Scheme::Nearest(Format::Q8_0),
        Scheme::Nearest(Format::Q6K),
        Scheme::Nearest(Format::Q5_1),
        Scheme::Nearest(Format::Q5_0),
        Scheme::Nearest(Format::Q4K),
        Scheme::Nearest(Format::Q4_1),
        Scheme::Nearest(Format::Q4_0),
        Scheme::Int8Tensor,
        Scheme::Nearest(Format::Int8Row),
        Scheme::Nearest(Format::Int4Group(32)),
        Scheme::Nearest(Format::Int4Group(64)),
        Scheme::Nearest(Format::Int4Group(128)),
        Scheme::Nearest(Format::Nf4),
        Scheme::Gptq(64),
        Scheme::Gptq(128),
        Scheme::Awq(64),
        Scheme::Awq(128),
    ];

    pub fn name(self) -> String {
        match self {
            Scheme::Nearest(format) => format.name().into(),
            Scheme::Int8Tensor => "int8-tensor".into(),
            Scheme::Gptq(group) => format!("gptq-g{group}"),
            Scheme::Awq(group) => format!("awq-g{group}"),
        }
    }

    pub fn from_name(name: &str) -> Option<Scheme> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// What matrices are stored in.
    pub fn format(self) -> Format {
        match self {
            Scheme::Nearest(format) => format,
            Scheme::Int8Tensor => Format::Int8Row,
            Scheme::Gptq(group) | Scheme::Awq(group) => Format::Int4Group(group),
        }
    }

    /// X^T X of a calibration text is needed.
    pub fn learns(self) -> bool {
        matches!(self, Scheme::Gptq(_) | Scheme::Awq(_))
    }

    /// The format is one of GGUF's.
    pub fn is_gguf(self) -> bool {
        !matches!(self.format(), Format::Int8Row | Format::Int4Group(_) | Format::Nf4)
    }

    /// Weights lose more than a cast to 16 bits.
    fn quantises(self) -> bool {
        !matches!(self.format(), Format::F32 | Format::F16 | Format::Bf16)
    }
}

/// What a weight is to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gains and biases, and what is neither multiplied nor looked up as a matrix: never changed.
    Other,
    /// The table of token vectors.
    Embedding,
    /// The same table where it is the head as well.
    TiedHead,
    Head,
    /// Any other matrix.
    Matrix,
}

/// A scheme with its options.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    pub scheme: Scheme,
    pub clip: Clip,
    /// The head, tied or not, is kept in f16.
    pub keep_head: bool,
    /// GGUF's formats: the head too has the format that was asked for, instead of a finer one.
    pub pure: bool,
    /// Only the weights of these names are changed; none: all are.
    pub only: Option<Vec<String>>,
}

impl Recipe {
    pub fn new(scheme: Scheme) -> Self {
        // What is taken out of a group's greatest weights GPTQ makes up for elsewhere.
        let clip = if matches!(scheme, Scheme::Gptq(_)) { Clip::Mse } else { Clip::Max };
        Recipe { scheme, clip, keep_head: false, pure: false, only: None }
    }

    /// With the scheme's own clip where none is given.
    pub fn with(scheme: Scheme, clip: Option<Clip>, keep_head: bool, pure: bool) -> Self {
        let recipe = Self::new(scheme);
        Recipe { clip: clip.unwrap_or(recipe.clip), keep_head, pure, ..recipe }
    }

    /// The format of a weight with rows of `columns` numbers; none: it stays f32.
    ///
    /// The formats of GGUF are given as llama.cpp does: the table of tokens too, and a head, tied or not, in `q6_k` (`q8_0` where its
    /// rows are not whole blocks). With our own, tables of tokens stay f16, even where they are the head.
    pub fn format(&self, role: Role, columns: usize) -> Option<Format> {
        let scheme = self.scheme;
        let wanted = match role {
            Role::Other => return None,
            Role::Head | Role::TiedHead if self.keep_head && scheme.quantises() => Format::F16,
            Role::Embedding | Role::TiedHead if !scheme.is_gguf() => Format::F16,
            Role::Head | Role::TiedHead
                if scheme.is_gguf() && scheme.quantises() && !self.pure && scheme.format() != Format::Q8_0 =>
            {
                if columns.is_multiple_of(256) { Format::Q6K } else { Format::Q8_0 }
            }
            _ => scheme.format(),
        };
        Some(fitting(wanted, columns))
    }
}

/// The format itself where rows of `columns` numbers are whole blocks of it, else the next that they are: smaller groups, llama.cpp's
/// stand-ins for K-quants, in the end f16.
pub fn fitting(format: Format, columns: usize) -> Format {
    if format.row_bytes(columns).is_ok() && can_quantise(format) {
        return format;
    }
    let next = match format {
        Format::Int4Group(group) if group > 32 => Format::Int4Group(group / 2),
        Format::Nf4 => Format::Int4Group(32),
        Format::Q2K | Format::Q3K | Format::Q4K => Format::Q5_0,
        Format::Q5K => Format::Q5_1,
        Format::Q6K => Format::Q8_0,
        _ => return Format::F16,
    };
    fitting(next, columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for scheme in Scheme::ALL {
            assert_eq!(Scheme::from_name(&scheme.name()), Some(scheme));
        }
        assert_eq!(Scheme::from_name("q2_k"), None);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_the_next_format_that_they_are() {
        assert_eq!(fitting(Format::Int4Group(128), 64), Format::Int4Group(64));
        assert_eq!(fitting(Format::Int4Group(64), 172), Format::F16);
        assert_eq!(fitting(Format::Nf4, 96), Format::Int4Group(32));
        assert_eq!(fitting(Format::Q4K, 64), Format::Q5_0);
        assert_eq!(fitting(Format::Q4K, 172), Format::F16);
        assert_eq!(fitting(Format::Q6K, 512), Format::Q6K);
        assert_eq!(fitting(Format::Int8Row, 172), Format::Int8Row);
    }

    #[test]
    fn tables_of_tokens_stay_in_16_bits_in_our_own_formats_and_follow_llama_cpp_in_its() {
        let ours = Recipe::new(Scheme::Gptq(64));
        assert_eq!(ours.format(Role::Embedding, 64), Some(Format::F16));
        assert_eq!(ours.format(Role::TiedHead, 64), Some(Format::F16));
        assert_eq!(ours.format(Role::Head, 64), Some(Format::Int4Group(64)));
        assert_eq!(ours.format(Role::Other, 64), None);
        let kept = Recipe { keep_head: true, ..ours };
        assert_eq!(kept.format(Role::Head, 64), Some(Format::F16));
        let theirs = Recipe::new(Scheme::Nearest(Format::Q4K));
        assert_eq!(theirs.format(Role::Embedding, 512), Some(Format::Q4K));
        assert_eq!(theirs.format(Role::TiedHead, 512), Some(Format::Q6K));
        assert_eq!(theirs.format(Role::Head, 64), Some(Format::Q8_0));
        let pure = Recipe { pure: true, ..theirs };
        assert_eq!(pure.format(Role::Head, 512), Some(Format::Q4K));
        let half = Recipe { keep_head: true, ..Recipe::new(Scheme::Nearest(Format::F32)) };
        assert_eq!(half.format(Role::Head, 64), Some(Format::F32));
    }
}
