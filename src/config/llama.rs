//! The `llama` model family: RMSNorm, rotary positions, gated feed-forward. Llama, Mistral, Qwen2 and Gemma (1 and 2) are settings of
//! these keys; `models::files` reads them from the files of those families.

use super::gpt::{FeedForward, Init, RopeLayout};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the frequencies of RoPE are changed for texts longer than those of the first training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    None,
    /// Positions are divided by the factor (Chen et al., arXiv:2306.15595).
    Linear,
    /// The base becomes base factor^(d / (d - 2)), which leaves the fastest pair as it is (bloc97, 2023).
    Ntk,
    /// Slow pairs are divided by the factor, fast ones are not, with a ramp between; tables times 0.1 ln(factor) + 1
    /// (Peng et al., arXiv:2309.00071).
    Yarn,
    /// Long wavelengths are divided by the factor, short ones are not, with a ramp between (Llama 3.1).
    Llama3,
}

/// Shape and options of a `llama` model. Zero stands for "derived" or "none": see each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads (grouped-query attention, arXiv:2305.13245); 0 = as many as `heads`.
    pub kv_heads: usize,
    /// Residual stream width.
    pub width: usize,
    /// Width of one head; 0 = width / heads.
    pub head_dim: usize,
    /// Hidden width of the feed-forward network; 0 = 8/3 width rounded up to a multiple of 32.
    pub ff_width: usize,
    /// `swiglu` or `geglu`.
    pub ff_kind: FeedForward,
    /// Added to the mean square under the root.
    pub norm_eps: f64,
    /// Gains are 1 + weight (Gemma).
    pub norm_plus_one: bool,
    /// Norms after attention and feed-forward too, before the residual sum (Gemma 2).
    pub post_norms: bool,
    /// Query, key and value projections have bias vectors (Qwen2).
    pub qkv_bias: bool,
    /// The attention's output projection has one.
    pub output_bias: bool,
    /// The feed-forward matrices have bias vectors.
    pub ff_bias: bool,
    /// The head is the transposed token embedding.
    pub tied_head: bool,
    /// Factor on the token embedding; 0 = none (Gemma: sqrt(width)).
    pub embedding_scale: f64,
    /// Factor on the attention's scores; 0 = 1 / sqrt(head_dim).
    pub attention_scale: f64,
    /// Scores become cap tanh(score / cap); 0 = they do not (Gemma 2: 50).
    pub attention_softcap: f64,
    /// Logits become cap tanh(logit / cap); 0 = they do not (Gemma 2: 30).
    pub final_softcap: f64,
    /// Sliding attention window in tokens, the token itself included; 0 = the whole context.
    pub window: usize,
    /// Every so manieth layer sees the whole context in spite of `window`; 0 = none does (Gemma 2: 2).
    pub window_period: usize,
    /// Layers before this one, counted from 0, see the whole context in spite of `window` (Qwen2's `max_window_layers`).
    pub window_from: usize,
    /// Base of RoPE's frequencies.
    pub rope_base: f64,
    pub rope_layout: RopeLayout,
    /// How many dimensions of a head RoPE rotates; 0 = all.
    pub rope_dims: usize,
    pub rope_scaling: RopeScaling,
    /// What the context is longer by than in the first training.
    pub rope_factor: f64,
    /// Context of the first training (`yarn`, `llama3`); 0 = context / rope_factor.
    pub rope_original_context: usize,
    /// `llama3`: wavelengths longer than original context / this are divided by the factor.
    pub rope_low_freq_factor: f64,
    /// `llama3`: wavelengths shorter than original context / this are left alone.
    pub rope_high_freq_factor: f64,
    /// `yarn`: pairs that turn more often than this in the original context are left alone.
    pub rope_beta_fast: f64,
    /// `yarn`: pairs that turn less often than this are divided by the factor.
    pub rope_beta_slow: f64,
    /// `yarn`: factor on the tables; 0 = 0.1 ln(rope_factor) + 1.
    pub rope_attention_factor: f64,
    /// Probability of dropping an element of the embedding and the residual branches; in [0, 1).
    pub dropout: f64,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Rows of the token embedding; 0 = what the tokenizer has.
    pub vocab_size: usize,
    pub init: Init,
}

impl Default for LlamaConfig {
    /// A small model with full heads; its vocabulary comes from the tokenizer.
    fn default() -> Self {
        Self {
            layers: 4,
            heads: 4,
            kv_heads: 0,
            width: 128,
            head_dim: 0,
            ff_width: 0,
            ff_kind: FeedForward::Swiglu,
            norm_eps: 1e-5,
            norm_plus_one: false,
            post_norms: false,
            qkv_bias: false,
            output_bias: false,
            ff_bias: false,
            tied_head: true,
            embedding_scale: 0.0,
            attention_scale: 0.0,
            attention_softcap: 0.0,
            final_softcap: 0.0,
            window: 0,
            window_period: 0,
            window_from: 0,
            rope_base: 10000.0,
            rope_layout: RopeLayout::HalfSplit,
            rope_dims: 0,
            rope_scaling: RopeScaling::None,
            rope_factor: 1.0,
            rope_original_context: 0,
            rope_low_freq_factor: 1.0,
            rope_high_freq_factor: 4.0,
            rope_beta_fast: 32.0,
            rope_beta_slow: 1.0,
            rope_attention_factor: 0.0,
            dropout: 0.0,
            context: 64,
            vocab_size: 0,
            init: Init::Gpt2,
        }
    }
}

impl LlamaConfig {
    /// Replaces "0 = derived" where the value is a size, but for `vocab_size`.
    pub fn resolve(&mut self) {
        if self.kv_heads == 0 {
            self.kv_heads = self.heads;
        }
        if self.head_dim == 0 {
            self.head_dim = self.width / self.heads.max(1);
        }
        if self.ff_width == 0 {
            self.ff_width = self.width.saturating_mul(8).div_ceil(3).next_multiple_of(32);
        }
        if self.rope_dims == 0 {
            self.rope_dims = self.head_dim;
        }
        if self.rope_original_context == 0 {
            self.rope_original_context = (self.context as f64 / self.rope_factor.max(1.0)).round() as usize;
        }
    }

    /// Width of the attention window of layer `i`; 0: it sees the whole context.
    pub fn window_of(&self, i: usize) -> usize {
        let whole = self.window_period > 0 && (i + 1).is_multiple_of(self.window_period);
        if whole || i < self.window_from { 0 } else { self.window }
    }

    /// Number of trained scalars, in closed form; needs `vocab_size`. Derived fields may still be 0.
    pub fn parameter_count(&self) -> u64 {
        let mut c = self.clone();
        c.resolve();
        let (d, f, v) = (c.width as u64, c.ff_width as u64, c.vocab_size as u64);
        let (q, kv) = ((c.heads * c.head_dim) as u64, (c.kv_heads * c.head_dim) as u64);
        let when = |flag: bool, n: u64| if flag { n } else { 0 };
        let attention = 2 * d * q + 2 * d * kv + when(c.qkv_bias, q + 2 * kv) + when(c.output_bias, d);
        let feed_forward = 3 * d * f + when(c.ff_bias, 2 * f + d);
        let norms = if c.post_norms { 4 * d } else { 2 * d };
        v * d * if c.tied_head { 1 } else { 2 } + c.layers as u64 * (attention + feed_forward + norms) + d
    }

    /// Frequencies of the rotated pairs in radians a token, and the factor on the tables.
    pub fn rope_frequencies(&self) -> (Vec<f64>, f64) {
        let mut c = self.clone();
        c.resolve();
        let d = c.rope_dims as f64;
        let plain = |base: f64| (0..c.rope_dims / 2).map(|i| base.powf(-2.0 * i as f64 / d)).collect::<Vec<f64>>();
        let original = c.rope_original_context as f64;
        match c.rope_scaling {
            RopeScaling::None => (plain(c.rope_base), 1.0),
            RopeScaling::Linear => (plain(c.rope_base).into_iter().map(|w| w / c.rope_factor).collect(), 1.0),
            RopeScaling::Ntk if d > 2.0 => (plain(c.rope_base * c.rope_factor.powf(d / (d - 2.0))), 1.0),
            RopeScaling::Ntk => (plain(c.rope_base), 1.0),
            RopeScaling::Yarn => {
                // The pair that turns `turns` times in the original context.
                let pair =
                    |turns: f64| d * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * c.rope_base.ln());
                let low = pair(c.rope_beta_fast).floor().max(0.0);
                let high = pair(c.rope_beta_slow).ceil().min(d - 1.0);
                let span = if high == low { 0.001 } else { high - low };
                let mix = |(i, w): (usize, f64)| {
                    let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
                    w / c.rope_factor * ramp + w * (1.0 - ramp)
                };
                let given = c.rope_attention_factor;
                let factor = if given > 0.0 {
                    given
                } else if c.rope_factor > 1.0 {
                    0.1 * c.rope_factor.ln() + 1.0
                } else {
                    1.0
                };
                (plain(c.rope_base).into_iter().enumerate().map(mix).collect(), factor)
            }
            RopeScaling::Llama3 => {
                let (low, high) = (c.rope_low_freq_factor, c.rope_high_freq_factor);
                let scale = |w: f64| {
                    let length = std::f64::consts::TAU / w;
                    if length < original / high {
                        w
                    } else if length > original / low {
                        w / c.rope_factor
                    } else {
                        let smooth = (original / length - low) / (high - low);
                        (1.0 - smooth) * w / c.rope_factor + smooth * w
                    }
                };
                (plain(c.rope_base).into_iter().map(scale).collect(), 1.0)
            }
        }
    }

    /// Checks what the types cannot: divisibility, ranges, and combinations that have no meaning.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        const LIMIT: usize = 1 << 24;
        for (key, value, least, most) in [
            ("layers", self.layers, 1, 1 << 10),
            ("heads", self.heads, 1, LIMIT),
            ("width", self.width, 1, LIMIT),
            ("context", self.context, 1, LIMIT),
            ("kv_heads", self.kv_heads, 0, LIMIT),
            ("head_dim", self.head_dim, 0, 256),
            ("ff_width", self.ff_width, 0, LIMIT),
            ("vocab_size", self.vocab_size, 0, LIMIT),
            ("window", self.window, 0, LIMIT),
            ("rope_original_context", self.rope_original_context, 0, LIMIT),
        ] {
            if value < least || value > most {
                return fail(format!("model.{key} = {value} must be {least} to {most}"));
            }
        }
        if self.window > 0 && self.window_from >= self.layers {
            return fail(format!(
                "model.window_from = {}: there are {} layers, so none has the window; use a smaller number, or model.window = 0",
                self.window_from, self.layers
            ));
        }
        if self.head_dim == 0 && !self.width.is_multiple_of(self.heads) {
            return fail(format!(
                "model.width = {} is not divisible by model.heads = {}; set model.head_dim, or use numbers that divide",
                self.width, self.heads
            ));
        }
        let mut c = self.clone();
        c.resolve();
        if c.head_dim > 256 {
            return fail(format!("width {} / heads {} = {}: heads are at most 256 wide", c.width, c.heads, c.head_dim));
        }
        if c.kv_heads > c.heads || !c.heads.is_multiple_of(c.kv_heads) {
            return fail(format!(
                "model.heads = {} is not divisible by model.kv_heads = {}; each key/value head serves the same number of query heads",
                c.heads, c.kv_heads
            ));
        }
        if !c.rope_dims.is_multiple_of(2) || c.rope_dims > c.head_dim {
            return fail(format!(
                "RoPE rotates pairs of at most a head's {} dimensions, model.rope_dims = {} (0: the whole head) does not fit",
                c.head_dim, c.rope_dims
            ));
        }
        if !self.ff_kind.is_gated() {
            return fail(
                "model.ff_kind of a llama model is \"swiglu\" or \"geglu\"; use model.kind = \"gpt\" for others".into(),
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("model.dropout = {} must be at least 0 and less than 1", self.dropout));
        }
        for (key, value) in [
            ("norm_eps", self.norm_eps),
            ("rope_base", self.rope_base),
            ("rope_factor", self.rope_factor),
            ("rope_low_freq_factor", self.rope_low_freq_factor),
            ("rope_high_freq_factor", self.rope_high_freq_factor),
            ("rope_beta_fast", self.rope_beta_fast),
            ("rope_beta_slow", self.rope_beta_slow),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return fail(format!("model.{key} = {value} must be a positive number"));
            }
        }
        if self.rope_scaling == RopeScaling::Llama3 && self.rope_low_freq_factor >= self.rope_high_freq_factor {
            return fail("model.rope_low_freq_factor must be less than model.rope_high_freq_factor".into());
        }
        for (key, value) in [
            ("embedding_scale", self.embedding_scale),
            ("attention_scale", self.attention_scale),
            ("attention_softcap", self.attention_softcap),
            ("final_softcap", self.final_softcap),
            ("rope_attention_factor", self.rope_attention_factor),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return fail(format!("model.{key} = {value} must be 0 (none) or a positive number"));
            }
        }
        if self.vocab_size == 1 {
            return fail("model.vocab_size = 1 leaves nothing to predict; use 0 to take it from the tokenizer".into());
        }
        Ok(())
    }
}
