//! The files of the llama2.c project: models of three versions, and vocabularies.
//!
//! All numbers are little-endian; tensors follow each other without gaps, the same weight of all layers in a row.
//! - Legacy: seven i32 (dim, hidden_dim, layers, heads, kv_heads, vocabulary, sequence length; a negative vocabulary says that the
//!   classifier is not the embedding), then f32: embedding, attention norms, wq, wk, wv, wo, feed-forward norms, w1, w2, w3, final norm,
//!   the cosines and sines of the rotation, [sequence, head / 2] each, and the classifier if it is separate.
//! - Version 1: magic "ak42" (u32 0x616b3432), i32 version, the seven i32, u8 whether the classifier is shared, zeros up to byte 256; then
//!   f32: attention norms, feed-forward norms, final norm, embedding, wq, wk, wv, wo, w1, w2, w3, classifier if separate.
//! - Version 2: as version 1 with an i32 group size after the flag; norms are f32, all else is int8 and then one f32 scale for every group
//!   of the tensor's numbers.
//!
//! Tensors have the names of Meta's checkpoints (`layers.0.attention.wq.weight`). Queries and keys are in the order of that layout: each
//! head's numbers 2i and 2i + 1 are rotated together. Source: run.c and export.py of the llama2.c project.

mod read;
#[cfg(test)]
mod tests;
mod tokenizer;
mod write;

pub use read::{File, Tensor};
pub use tokenizer::Tokenizer;
pub use write::Writer;

/// "ak42" as a little-endian number.
const MAGIC: u32 = 0x616b_3432;
/// Bytes before the tensors.
const LEGACY_HEADER: u64 = 28;
const HEADER: u64 = 256;
/// More than any model has: sizes stay far from overflow, and lists of tensors short.
const MAX_LAYERS: usize = 4096;
const MAX_SIZE: usize = 1 << 20;

/// What the header says of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub dim: usize,
    pub hidden_dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab_size: usize,
    /// Longest text that it was trained for.
    pub seq_len: usize,
    /// Whether the classifier is the embedding.
    pub shared_classifier: bool,
}

impl Config {
    pub fn head_size(&self) -> usize {
        self.dim / self.heads
    }

    /// Numbers of a key or a value.
    pub fn kv_dim(&self) -> usize {
        self.head_size() * self.kv_heads
    }

    /// # Errors
    /// Sizes that no model has: what is wrong with which.
    pub fn check(&self) -> Result<(), String> {
        let sizes = [
            ("dim", self.dim, MAX_SIZE),
            ("hidden_dim", self.hidden_dim, MAX_SIZE),
            ("layers", self.layers, MAX_LAYERS),
            ("heads", self.heads, MAX_SIZE),
            ("kv_heads", self.kv_heads, MAX_SIZE),
            ("vocabulary", self.vocab_size, MAX_SIZE),
            ("sequence length", self.seq_len, MAX_SIZE),
        ];
        if let Some((name, size, max)) = sizes.into_iter().find(|&(_, size, max)| size == 0 || size > max) {
            return Err(format!("{name} is {size}; it must be from 1 to {max}"));
        }
        if !self.dim.is_multiple_of(self.heads) || !self.head_size().is_multiple_of(2) {
            return Err(format!("{} heads do not divide dim {} into pairs", self.heads, self.dim));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} kv_heads do not divide {} heads", self.kv_heads, self.heads));
        }
        Ok(())
    }
}

/// Which of the three files it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Legacy,
    V1,
    /// With this many numbers to a scale.
    V2 {
        group: usize,
    },
}

/// A tensor's place in the order of a file.
struct Slot {
    name: String,
    shape: Vec<usize>,
    /// Stored as int8 in version 2.
    matrix: bool,
}

/// What the names of a layer's tensors begin with.
const LAYERS: &str = "layers.";
/// Names of the rotation's tables, which legacy files carry and nothing needs.
const TABLES: [&str; 2] = ["freqs_cos", "freqs_sin"];

/// All tensors of a file, in its order.
fn layout(config: &Config, version: Version) -> Vec<Slot> {
    let Config { dim, hidden_dim: hidden, vocab_size: vocab, .. } = *config;
    let kv = config.kv_dim();
    let one = |name: &str, shape: &[usize]| Slot { name: name.into(), shape: shape.to_vec(), matrix: shape.len() == 2 };
    let layers = |name: &str, shape: &[usize]| -> Vec<Slot> {
        (0..config.layers).map(|l| one(&format!("{LAYERS}{l}.{name}.weight"), shape)).collect()
    };
    let embedding = one("tok_embeddings.weight", &[vocab, dim]);
    let attention_norms = layers("attention_norm", &[dim]);
    let attention = [("wq", dim, dim), ("wk", kv, dim), ("wv", kv, dim), ("wo", dim, dim)];
    let attention = attention.map(|(w, rows, columns)| layers(&format!("attention.{w}"), &[rows, columns]));
    let ffn_norms = layers("ffn_norm", &[dim]);
    let ffn = [("w1", hidden, dim), ("w2", dim, hidden), ("w3", hidden, dim)];
    let ffn = ffn.map(|(w, rows, columns)| layers(&format!("feed_forward.{w}"), &[rows, columns]));
    let norm = one("norm.weight", &[dim]);
    let mut slots = Vec::new();
    if version == Version::Legacy {
        slots.push(embedding);
        slots.extend(attention_norms);
        slots.extend(attention.into_iter().flatten());
        slots.extend(ffn_norms);
        slots.extend(ffn.into_iter().flatten());
        slots.push(norm);
        slots.extend(TABLES.map(|name| one(name, &[config.seq_len, config.head_size() / 2])));
    } else {
        slots.extend(attention_norms);
        slots.extend(ffn_norms);
        slots.extend([norm, embedding]);
        slots.extend(attention.into_iter().chain(ffn).flatten());
    }
    if !config.shared_classifier {
        slots.push(one("output.weight", &[vocab, dim]));
    }
    slots
}
