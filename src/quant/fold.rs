//! Where activation-aware scaling finds what it divides, so that inference needs nothing new.
//!
//! | multiplied: columns of | divided |
//! |---|---|
//! | `q_proj`, `k_proj`, `v_proj` | the gain (and bias) of the norm before attention |
//! | `gate_proj`, `up_proj` | the gain (and bias) of the norm before the feed-forward network |
//! | `o_proj` | rows (and bias) of `v_proj`; channels of query heads that share a value head have one factor |
//! | `down_proj` | rows (and bias) of `up_proj`, where the network is gated (up is a factor) or its activation is ReLU |
//! | `lm_head` | the gain (and bias) of the last norm |
//!
//! Tied heads, and `down_proj` after GELU, have nothing that could be divided: they are rounded as they are.

use super::awq::head_classes;
use crate::config::{FeedForward, ModelConfig};

/// What is divided by the factors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// A norm of this name.
    Norm { name: String, plus_one: bool },
    /// The rows of this linear map; row i by the factor of channel `channels[i]`.
    Rows { name: String, channels: Vec<usize> },
}

/// Matrices that share an input, and what makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub matrices: Vec<String>,
    pub before: Before,
    /// Channels that must have the same factor.
    pub classes: Option<Vec<usize>>,
}

/// What the pairs of a model depend on.
struct Shape {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ff_width: usize,
    gated: bool,
    /// Nothing but a positive factor passes the activation.
    relu: bool,
    plus_one: bool,
    feed_forward_norm: &'static str,
    tied_head: bool,
}

/// The pairs of a model.
///
/// # Errors
/// A family whose layers are not known here.
pub fn pairs(config: &ModelConfig) -> Result<Vec<Pair>, String> {
    let shape = match config {
        ModelConfig::Llama(c) => {
            let mut c = c.clone();
            c.resolve();
            Shape {
                layers: c.layers,
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                ff_width: c.ff_width,
                gated: true,
                relu: false,
                plus_one: c.norm_plus_one,
                feed_forward_norm: if c.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" },
                tied_head: c.tied_head,
            }
        }
        ModelConfig::Gpt(c) => {
            let mut c = c.clone();
            c.resolve();
            Shape {
                layers: c.layers,
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim(),
                ff_width: c.ff_width,
                gated: c.ff_kind.is_gated(),
                relu: c.ff_kind == FeedForward::Relu,
                plus_one: false,
                feed_forward_norm: "post_attention_layernorm",
                tied_head: c.tied_head,
            }
        }
        ModelConfig::Coeus(_) => {
            return Err("activation-aware scaling is for gpt and llama models; use gptq or round to the nearest".into());
        }
    };
    Ok(of(&shape))
}

fn of(s: &Shape) -> Vec<Pair> {
    let mut pairs = vec![];
    let norm = |name: String| Before::Norm { name, plus_one: s.plus_one };
    for i in 0..s.layers {
        let at = |name: &str| format!("model.layers.{i}.{name}");
        let weights = |names: &[&str]| names.iter().map(|n| at(&format!("{n}.weight"))).collect();
        pairs.push(Pair {
            matrices: weights(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            before: norm(at("input_layernorm")),
            classes: None,
        });
        // The first query head of every value head stands for all of its heads.
        let group = s.heads / s.kv_heads;
        let channel = |row: usize| row / s.head_dim * group * s.head_dim + row % s.head_dim;
        pairs.push(Pair {
            matrices: weights(&["self_attn.o_proj"]),
            before: Before::Rows {
                name: at("self_attn.v_proj"),
                channels: (0..s.kv_heads * s.head_dim).map(channel).collect(),
            },
            classes: (group > 1).then(|| head_classes(s.heads, s.kv_heads, s.head_dim)),
        });
        let into: &[&str] = if s.gated { &["mlp.gate_proj", "mlp.up_proj"] } else { &["mlp.up_proj"] };
        pairs.push(Pair { matrices: weights(into), before: norm(at(s.feed_forward_norm)), classes: None });
        if s.gated || s.relu {
            pairs.push(Pair {
                matrices: weights(&["mlp.down_proj"]),
                before: Before::Rows { name: at("mlp.up_proj"), channels: (0..s.ff_width).collect() },
                classes: None,
            });
        }
    }
    if !s.tied_head {
        pairs.push(Pair { matrices: vec!["lm_head.weight".into()], before: norm("model.norm".into()), classes: None });
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GptConfig, LlamaConfig};

    #[test]
    fn value_rows_are_divided_by_the_factor_of_the_heads_that_read_them() {
        let config = LlamaConfig { layers: 1, heads: 4, kv_heads: 2, width: 8, ff_width: 32, ..LlamaConfig::default() };
        let pairs = pairs(&ModelConfig::Llama(config)).unwrap();
        assert_eq!(pairs.len(), 4);
        assert_eq!(pairs[0].matrices.len(), 3);
        let Before::Rows { name, channels } = &pairs[1].before else { panic!("{:?}", pairs[1]) };
        assert_eq!(name, "model.layers.0.self_attn.v_proj");
        // Head width 2: value head 1 is read by query heads 2 and 3, channels 4 .. 8.
        assert_eq!(channels, &[0, 1, 4, 5]);
        assert_eq!(pairs[1].classes.as_deref(), Some(&[0, 1, 0, 1, 2, 3, 2, 3][..]));
        assert_eq!(pairs[3].matrices, ["model.layers.0.mlp.down_proj.weight"]);
    }

    #[test]
    fn gelu_between_up_and_down_leaves_down_alone() {
        let gelu = GptConfig { layers: 1, ff_kind: FeedForward::Gelu, tied_head: false, ..GptConfig::default() };
        let found = pairs(&ModelConfig::Gpt(gelu.clone())).unwrap();
        assert!(!found.iter().any(|p| p.matrices[0].contains("down_proj")));
        assert_eq!(found.last().unwrap().matrices, ["lm_head.weight"]);
        let relu = GptConfig { ff_kind: FeedForward::Relu, ..gelu };
        assert!(pairs(&ModelConfig::Gpt(relu)).unwrap().iter().any(|p| p.matrices[0].contains("down_proj")));
    }
}
