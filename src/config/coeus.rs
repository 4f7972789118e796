//! The `coeus` model family: a gated linear recurrence beside windowed attention, mixed in every block. Six published versions are
//! presets of these keys; see docs/coeus.md.

use super::gpt::{FeedForward, Positions, check_heads};
use crate::error::{Error, Result};
use crate::ops::form::Form;
use serde::{Deserialize, Serialize};

/// The recurrence of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recurrence {
    /// A matrix state for each head, one gate a head (gated linear attention, arXiv:2312.06635, with scalar gates).
    GlaHead,
    /// A matrix state for each head, one gate for each of its key channels.
    GlaChannel,
    /// One number a channel, h <- g h + u.
    Scan,
}

/// The network that makes the gates of the recurrence from a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForgetGate {
    /// One linear map.
    Linear,
    /// Two, with SiLU between them and half of the width there.
    MlpHalf,
    /// Two, with SiLU between them and the whole width there.
    MlpFull,
}

/// How recurrence and attention become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// One trained number a layer.
    Alpha,
    /// A gate for each channel that compares the two.
    Judge,
    /// Attention alone, for comparison.
    LocalOnly,
    /// The recurrence alone, for comparison.
    RecurrentOnly,
}

/// Which tokens the attention over the window reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalMode {
    /// The last `window` tokens, whatever block they lie in.
    BandBlocks,
    /// Those of its own block of `window` tokens, for comparison: the first token of a block sees only itself.
    IsolatedBlocks,
}

/// What a slot of the episodic memory keeps of its `mem_update_freq` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemSource {
    /// The first; read from the next token on.
    Pick,
    /// Their mean; read from the token after the last one on.
    Mean,
}

/// Shape and options of a `coeus` model. Zero stands for "derived": see [`CoeusConfig::resolve`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoeusConfig {
    pub layers: usize,
    /// Query heads; `width` is split evenly among them.
    pub heads: usize,
    /// Key and value heads; 0 = as many as `heads`.
    pub kv_heads: usize,
    pub width: usize,
    /// Hidden width of the feed-forward network; 0 = 4 width, or 8/3 width rounded up to a multiple of 64 when gated.
    pub ff_width: usize,
    pub ff_kind: FeedForward,
    /// `learned` (a table of `context` rows) or `rope` (queries and keys of the attention are rotated; the recurrence orders tokens by
    /// forgetting).
    pub positions: Positions,
    pub rope_base: f64,
    pub recurrence: Recurrence,
    /// Recurrence and attention read the same queries, keys and values, and share their output projection.
    pub share_qkv: bool,
    pub forget_gate: ForgetGate,
    /// How the recurrence is computed, with the same answers to rounding: `auto`, `chunked`, `recurrent`, `cpu_simd` (the
    /// CPU's kernels, on any device) or `naive` (the definition in f64, on the CPU).
    pub backend: Form,
    /// Where the bias of the gates starts: from `forget_bias_low` at the first gate to `forget_bias_high` at the last. At 3 a gate
    /// starts at 0.95 and halves a memory in 14 tokens; at 8, in 2,066.
    pub forget_bias_low: f64,
    pub forget_bias_high: f64,
    /// A sigmoid gate on what is written to the state.
    pub input_scale: bool,
    pub fusion: Fusion,
    /// Tokens that attention sees, the token itself included.
    pub window: usize,
    pub local_mode: LocalMode,
    /// Every token also reads snapshots of tokens before it.
    pub use_episodic_mem: bool,
    /// Snapshots that are kept; older ones are forgotten.
    pub mem_capacity: usize,
    /// Tokens from one snapshot to the next.
    pub mem_update_freq: usize,
    /// `width` over the width of a snapshot.
    pub mem_compression: usize,
    pub mem_source: MemSource,
    /// Times that the feed-forward network of a block is applied, with the same weights.
    pub reason_iterations: usize,
    /// The head is the transposed token embedding.
    pub tied_head: bool,
    pub dropout: f64,
    /// Sequence length in training, and rows of a learned position table.
    pub context: usize,
    /// Rows of the token embedding; 0 = what the tokenizer has.
    pub vocab_size: usize,
}

impl Default for CoeusConfig {
    /// Version 2.5 in size tiny.
    fn default() -> Self {
        Self {
            layers: 2,
            heads: 6,
            kv_heads: 2,
            width: 96,
            ff_width: 0,
            ff_kind: FeedForward::Swiglu,
            positions: Positions::Rope,
            rope_base: 10000.0,
            recurrence: Recurrence::GlaHead,
            share_qkv: true,
            forget_gate: ForgetGate::Linear,
            backend: Form::Auto,
            forget_bias_low: 0.0,
            forget_bias_high: 0.0,
            input_scale: true,
            fusion: Fusion::Alpha,
            window: 16,
            local_mode: LocalMode::BandBlocks,
            use_episodic_mem: false,
            mem_capacity: 8,
            mem_update_freq: 4,
            mem_compression: 4,
            mem_source: MemSource::Pick,
            reason_iterations: 1,
            tied_head: true,
            dropout: 0.0,
            context: 64,
            vocab_size: 0,
        }
    }
}

impl CoeusConfig {
    /// Replaces every "0 = derived" field but `vocab_size` by its value.
    pub fn resolve(&mut self) {
        if self.kv_heads == 0 {
            self.kv_heads = self.heads;
        }
        if self.ff_width == 0 {
            self.ff_width = if self.ff_kind.is_gated() {
                self.width.saturating_mul(8).div_ceil(3).next_multiple_of(64)
            } else {
                self.width.saturating_mul(4)
            };
        }
    }

    pub fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// Gates of a token: one a head, or one a channel.
    pub fn gates(&self) -> usize {
        if self.recurrence == Recurrence::GlaHead { self.heads } else { self.width }
    }

    /// Width of a snapshot of the episodic memory.
    pub fn mem_width(&self) -> usize {
        self.width / self.mem_compression.max(1)
    }

    /// Tokens from the first one of a snapshot to its first reader.
    pub fn mem_ready(&self) -> usize {
        if self.mem_source == MemSource::Pick { 1 } else { self.mem_update_freq }
    }

    fn has_recurrence(&self) -> bool {
        self.fusion != Fusion::LocalOnly
    }

    fn has_attention(&self) -> bool {
        self.fusion != Fusion::RecurrentOnly
    }

    /// Number of trained scalars, in closed form. Needs `vocab_size` set; derived fields may still be 0.
    pub fn parameter_count(&self) -> u64 {
        let mut c = self.clone();
        c.resolve();
        let (d, f, v, h) = (c.width as u64, c.ff_width as u64, c.vocab_size as u64, c.heads as u64);
        let kv = (c.kv_heads * c.head_dim()) as u64;
        let gates = c.gates() as u64;
        let when = |flag: bool, n: u64| if flag { n } else { 0 };
        let embeddings =
            v * d * if c.tied_head { 1 } else { 2 } + when(c.positions == Positions::Learned, c.context as u64 * d);
        let feed_forward = if c.ff_kind.is_gated() { 3 } else { 2 } * d * f;
        let gate = match c.forget_gate {
            ForgetGate::Linear => d * gates + gates,
            ForgetGate::MlpHalf => d * (d / 2) + d / 2 + (d / 2) * gates + gates,
            ForgetGate::MlpFull => d * d + d + d * gates + gates,
        };
        let qkv = d * d + 2 * d * kv;
        let scan = c.recurrence == Recurrence::Scan;
        // Writing gate, own projections where they are not shared, and the norm of what comes out.
        let scale = when(c.input_scale, if scan { d * d + d } else { d * h + h });
        let own = if scan { 3 * d * d } else { when(!c.share_qkv, qkv + d * d) };
        let recurrent = when(c.has_recurrence(), gate + scale + own + d);
        let projections = when(c.share_qkv || c.has_attention(), qkv + d * d);
        let fusion = match c.fusion {
            Fusion::Alpha => 1,
            Fusion::Judge => 2 * d * d + d,
            _ => 0,
        };
        // Compression with its norm, keys and values, queries and output, and the gate.
        let m = c.mem_width() as u64;
        let memory = when(c.use_episodic_mem, 3 * d * m + 2 * m * m + m + d + 1);
        embeddings + c.layers as u64 * (projections + recurrent + feed_forward + fusion + memory + 2 * d) + d
    }

    /// Checks what the types cannot: divisibility, ranges, and combinations that have no meaning.
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        const LIMIT: usize = 1 << 24;
        for (key, value, limit) in [
            ("layers", self.layers, 1 << 10),
            ("heads", self.heads, LIMIT),
            ("width", self.width, LIMIT),
            ("context", self.context, LIMIT),
            ("window", self.window, LIMIT),
            ("reason_iterations", self.reason_iterations, 1 << 10),
        ] {
            if value == 0 || value > limit {
                return fail(format!("model.{key} = {value}; it must be between 1 and {limit}"));
            }
        }
        for (key, value) in [("ff_width", self.ff_width), ("vocab_size", self.vocab_size)] {
            if value > LIMIT {
                return fail(format!("model.{key} = {value} is beyond the limit of {LIMIT}"));
            }
        }
        check_heads(self.width, self.heads, self.kv_heads, self.positions)?;
        if self.window > self.context {
            return fail(format!(
                "model.window = {} is larger than model.context = {}: attention would see the whole context; use a smaller window or a longer context",
                self.window, self.context
            ));
        }
        if !matches!(self.positions, Positions::Learned | Positions::Rope) {
            return fail("model.positions: a coeus model has \"learned\" or \"rope\"".into());
        }
        if self.recurrence == Recurrence::Scan && self.share_qkv {
            return fail(
                "model.share_qkv = true: the scan has no heads to share queries, keys and values with; use false"
                    .into(),
            );
        }
        if !self.share_qkv && self.fusion == Fusion::Alpha {
            return fail(
                "model.fusion = \"alpha\" mixes branches before their common output projection; use \"judge\", or share_qkv = true".into(),
            );
        }
        if self.share_qkv && self.fusion == Fusion::Judge {
            return fail(
                "model.fusion = \"judge\" compares branches after their own output projections; use \"alpha\", or share_qkv = false".into(),
            );
        }
        if self.forget_gate == ForgetGate::MlpHalf && self.width < 2 {
            return fail(format!(
                "model.forget_gate = \"mlp_half\" halves model.width = {}; use at least 2",
                self.width
            ));
        }
        if self.use_episodic_mem {
            self.check_memory()?;
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("model.dropout = {} must be at least 0 and less than 1", self.dropout));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return fail(format!("model.rope_base = {} must be a positive number", self.rope_base));
        }
        for (key, value) in [("low", self.forget_bias_low), ("high", self.forget_bias_high)] {
            if !value.is_finite() || value.abs() > 100.0 {
                return fail(format!("model.forget_bias_{key} = {value} must be a number between -100 and 100"));
            }
        }
        if self.vocab_size == 1 {
            return fail("model.vocab_size = 1 leaves nothing to predict; use 0 to take it from the tokenizer".into());
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        for (key, value) in [
            ("mem_capacity", self.mem_capacity),
            ("mem_update_freq", self.mem_update_freq),
            ("mem_compression", self.mem_compression),
        ] {
            if value == 0 || value > 1 << 24 {
                let limit = 1 << 24;
                return fail(format!(
                    "model.{key} = {value}; it must be between 1 and {limit}, or model.use_episodic_mem = false"
                ));
            }
        }
        if !self.width.is_multiple_of(self.mem_compression) {
            return fail(format!(
                "model.mem_compression = {} does not divide model.width = {}",
                self.mem_compression, self.width
            ));
        }
        if self.mem_width() > 256 {
            return fail(format!(
                "model.mem_compression = {} makes snapshots {} wide, more than 256; use at least {}",
                self.mem_compression,
                self.mem_width(),
                self.width.div_ceil(256)
            ));
        }
        Ok(())
    }
}
