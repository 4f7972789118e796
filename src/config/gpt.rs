//! The `gpt` model family: a pre-norm decoder-only transformer with every choice that changes its shape in one place.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Activation of the position-wise feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// GELU in its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel, arXiv:1606.08415).
    Gelu,
    /// GELU with the exact error function, x Phi(x).
    GeluErf,
    /// Gated unit (x W_gate * sigmoid(x W_gate)) * (x W_up), three matrices (Shazeer, arXiv:2002.05202).
    Swiglu,
    /// The same with GELU in its tanh form for the gate (Shazeer, arXiv:2002.05202).
    Geglu,
    /// max(x, 0).
    Relu,
}

impl FeedForward {
    /// True when the unit has a gate matrix beside the up projection.
    pub fn is_gated(self) -> bool {
        matches!(self, FeedForward::Swiglu | FeedForward::Geglu)
    }
}

/// Normalisation before each sub-layer and before the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// (x - mean) / sqrt(var + eps) * gain (+ bias) (Ba et al., arXiv:1607.06450).
    Layernorm,
    /// x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich, arXiv:1910.07467).
    Rmsnorm,
}

/// How a token's place enters the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Nothing but the causal mask.
    None,
    /// A trained table of `context` rows, added to the token embedding.
    Learned,
    /// Fixed interleaved sine and cosine table (Vaswani et al., arXiv:1706.03762, section 3.5), added to the embedding.
    Sinusoidal,
    /// Rotation of queries and keys (Su et al., arXiv:2104.09864).
    Rope,
}

/// Which two dimensions of a head RoPE rotates together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeLayout {
    /// Pairs (2k, 2k + 1), as in the RoFormer paper and GPT-J.
    Interleaved,
    /// Pairs (k, k + head_dim / 2), as in GPT-NeoX and Llama on Hugging Face.
    HalfSplit,
}

/// Initial values of the parameters. Norm gains are 1 and all biases 0 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Every matrix N(0, 0.02^2); the two projections that end a residual branch N(0, 0.02^2 / (2 layers)) (GPT-2).
    Gpt2,
    /// Embeddings N(0, 0.02^2), attention matrices N(0, 1 / width), feed-forward matrices Xavier uniform.
    Xavier,
}

/// Shape and options of a `gpt` model. Zero stands for "derived": see [`GptConfig::resolve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GptConfig {
    /// Number of transformer blocks.
    pub layers: usize,
    /// Query heads; `width` is split evenly among them.
    pub heads: usize,
    /// Key and value heads (grouped-query attention, arXiv:2305.13245); 0 = as many as `heads`.
    pub kv_heads: usize,
    /// Residual stream width.
    pub width: usize,
    /// Hidden width of the feed-forward network; 0 = 4 width, or 8/3 width rounded up to a multiple of 32 when gated.
    pub ff_width: usize,
    pub ff_kind: FeedForward,
    pub norm: Norm,
    /// Added to the variance (or mean square) under the root.
    pub norm_eps: f64,
    /// LayerNorm has a bias vector. RMSNorm never has one.
    pub norm_bias: bool,
    /// Query, key, value and output projections have bias vectors.
    pub attention_bias: bool,
    /// The feed-forward matrices have bias vectors.
    pub ff_bias: bool,
    /// The head is the transposed token embedding: one tensor, gradients summed.
    pub tied_head: bool,
    /// Probability of dropping an element of the embedding, the attention weights and the residual branches; in [0, 1).
    pub dropout: f64,
    pub positions: Positions,
    /// Base of RoPE's frequencies, theta_k = base^(-2k / head_dim).
    pub rope_base: f64,
    pub rope_layout: RopeLayout,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Rows of the token embedding; 0 = what the tokenizer has.
    pub vocab_size: usize,
    /// Sliding attention window in tokens, the token itself included; 0 = the whole context.
    pub window: usize,
    pub init: Init,
}

impl Default for GptConfig {
    /// The `minigpt` architecture; its vocabulary comes from the tokenizer.
    fn default() -> Self {
        Self {
            layers: 2,
            heads: 4,
            kv_heads: 0,
            width: 64,
            ff_width: 0,
            ff_kind: FeedForward::Gelu,
            norm: Norm::Layernorm,
            norm_eps: 1e-5,
            norm_bias: true,
            attention_bias: false,
            ff_bias: true,
            tied_head: true,
            dropout: 0.0,
            positions: Positions::Rope,
            rope_base: 10000.0,
            rope_layout: RopeLayout::Interleaved,
            context: 32,
            vocab_size: 0,
            window: 0,
            init: Init::Xavier,
        }
    }
}

/// Refuses heads that do not divide the width or each other, and heads that RoPE cannot turn in pairs: for every family with heads.
pub(super) fn check_heads(width: usize, heads: usize, kv_heads: usize, positions: Positions) -> Result<()> {
    let fail = |message: String| Err(Error::Config(message));
    if !width.is_multiple_of(heads) {
        let near = width.next_multiple_of(heads);
        return fail(format!(
            "model.width = {width} is not divisible by model.heads = {heads}; try width {near}, or a number of heads that divides {width}"
        ));
    }
    if kv_heads > heads || (kv_heads > 0 && !heads.is_multiple_of(kv_heads)) {
        return fail(format!(
            "model.heads = {heads} is not divisible by model.kv_heads = {kv_heads}; each key/value head serves the same number of query heads"
        ));
    }
    if positions == Positions::Rope && !(width / heads).is_multiple_of(2) {
        return fail(format!(
            "model.positions = \"rope\" rotates pairs of dimensions, but width {width} / heads {heads} = {} is odd; choose an even head size or other positions",
            width / heads
        ));
    }
    Ok(())
}

impl GptConfig {
    /// Replaces every "0 = derived" field but `vocab_size` and `window` by its value, and drops the bias RMSNorm does not have.
    pub fn resolve(&mut self) {
        if self.kv_heads == 0 {
            self.kv_heads = self.heads;
        }
        if self.ff_width == 0 {
            self.ff_width = if self.ff_kind.is_gated() {
                self.width.saturating_mul(8).div_ceil(3).next_multiple_of(32)
            } else {
                self.width.saturating_mul(4)
            };
        }
        if self.norm == Norm::Rmsnorm {
            self.norm_bias = false;
        }
    }

    /// Width of one head, `width / heads`.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// Number of trained scalars, in closed form. A tied head counts once; fixed position tables count nothing.
    /// Needs `vocab_size` set; derived fields may still be 0.
    ///
    /// With full heads, V d + L (4 d^2 + 2 d f) matrices, plus norms, biases and the position table as chosen.
    pub fn parameter_count(&self) -> u64 {
        let mut c = self.clone();
        c.resolve();
        let (d, f, v) = (c.width as u64, c.ff_width as u64, c.vocab_size as u64);
        let kv = (c.kv_heads * c.head_dim()) as u64;
        let when = |flag: bool, n: u64| if flag { n } else { 0 };

        let attention = 2 * d * d + 2 * d * kv + when(c.attention_bias, 2 * d + 2 * kv);
        let ups = if c.ff_kind.is_gated() { 2 } else { 1 };
        let feed_forward = (ups + 1) * d * f + when(c.ff_bias, ups * f + d);
        let norm = d + when(c.norm_bias, d);
        let embeddings = v * d * if c.tied_head { 1 } else { 2 };
        let positions = when(c.positions == Positions::Learned, c.context as u64 * d);
        embeddings + positions + c.layers as u64 * (attention + feed_forward + 2 * norm) + norm
    }

    /// Checks what the types cannot: divisibility, ranges, and combinations that have no meaning.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        for (key, value) in
            [("layers", self.layers), ("heads", self.heads), ("width", self.width), ("context", self.context)]
        {
            if value == 0 {
                return fail(format!("model.{key} is 0; it must be at least 1"));
            }
        }
        check_heads(self.width, self.heads, self.kv_heads, self.positions)?;
        let width = self.width;
        if self.positions == Positions::Sinusoidal && !width.is_multiple_of(2) {
            return fail(format!("model.positions = \"sinusoidal\" needs an even model.width, not {width}"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("model.dropout = {} must be at least 0 and less than 1", self.dropout));
        }
        for (key, value) in [("norm_eps", self.norm_eps), ("rope_base", self.rope_base)] {
            if !(value.is_finite() && value > 0.0) {
                return fail(format!("model.{key} = {value} must be a positive number"));
            }
        }
        if self.vocab_size == 1 {
            return fail("model.vocab_size = 1 leaves nothing to predict; use 0 to take it from the tokenizer".into());
        }
        self.check_size()
    }

    /// Refuses sizes whose products no machine can hold, before any of them is allocated or overflows.
    fn check_size(&self) -> Result<()> {
        const LIMIT: usize = 1 << 24;
        // A graph has some hundred nodes a layer.
        const MOST_LAYERS: usize = 1 << 10;
        for (key, value, limit) in [
            ("layers", self.layers, MOST_LAYERS),
            ("width", self.width, LIMIT),
            ("ff_width", self.ff_width, LIMIT),
            ("context", self.context, LIMIT),
            ("vocab_size", self.vocab_size, LIMIT),
            ("window", self.window, LIMIT),
        ] {
            if value > limit {
                return Err(Error::Config(format!("model.{key} = {value} is beyond the limit of {limit}")));
            }
        }
        Ok(())
    }
}
