//! The vocabulary of a GGUF file (`tokenizer.ggml.*`) as plain data, made into a tokenizer and made from one.

mod from_json;
mod metadata;
pub mod pre;
mod read;
mod write;

pub use metadata::WHOLE_TOKENIZER;
pub use write::Written;

/// The `tokenizer.*` keys of a GGUF file. What is absent there is empty or `None` here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: `llama` (SentencePiece BPE) or `gpt2` (byte-level BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`, see [`pre`].
    pub pre: String,
    /// `tokenizer.ggml.tokens`: the text of every id, bytes as the file has them.
    pub tokens: Vec<Vec<u8>>,
    /// `tokenizer.ggml.scores`: one a token, or none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: one a token, or none; numbers of [`super::spm::PieceKind`].
    pub types: Vec<i32>,
    /// `tokenizer.ggml.merges`: "left right".
    pub merges: Vec<String>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    /// The token that ends an answer (`tokenizer.ggml.eot_token_id`).
    pub eot: Option<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: Option<bool>,
    pub add_space_prefix: Option<bool>,
    /// Read and written, and otherwise without effect: llama.cpp squeezes spaces for no BPE vocabulary.
    pub remove_extra_whitespaces: Option<bool>,
    pub chat_template: Option<String>,
}
