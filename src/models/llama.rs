//! The llama family: Llama, Mistral, Qwen2, Gemma and Gemma 2, written from a `LlamaConfig`. Weights carry Hugging Face's names.

use super::LanguageModel;
use crate::Result;
use crate::config::{Init as Scheme, LlamaConfig, RopeLayout};
use crate::graph::Value;
use crate::nn::{Attention, Builder, CacheShape, FeedForward, Init};
use crate::ops::rope::{Layout, rope_tables_of};

pub struct Llama {
    config: LlamaConfig,
}

impl Llama {
    /// `config` must be valid, with `vocab_size` set.
    pub fn new(mut config: LlamaConfig) -> Result<Self> {
        config.validate()?;
        if config.vocab_size == 0 {
            return Err(crate::Error::Config("model.vocab_size is not known yet: it comes from the tokenizer".into()));
        }
        config.resolve();
        Ok(Llama { config })
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn init(&self, inputs: usize) -> Init {
        match self.config.init {
            Scheme::Gpt2 => Init::Normal(0.02),
            Scheme::Xavier => Init::Normal(1.0 / (inputs as f64).sqrt()),
        }
    }

    /// The two projections that end a residual branch.
    fn branch_end(&self, inputs: usize) -> Init {
        match self.config.init {
            Scheme::Gpt2 => Init::Normal(0.02 / (2.0 * self.config.layers as f64).sqrt()),
            Scheme::Xavier => self.init(inputs),
        }
    }

    fn norm(&self, b: &mut Builder, name: &str, x: Value) -> Result<Value> {
        let c = &self.config;
        b.rms_norm(name, x, c.norm_eps, c.norm_plus_one)
    }

    fn block(&self, b: &mut Builder, i: usize, x: Value, rope: (Value, Value, Layout)) -> Result<Value> {
        let c = &self.config;
        let attention = Attention {
            width: c.width,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            qkv_bias: c.qkv_bias,
            output_bias: c.output_bias,
            window: c.window_of(i),
            scale: (c.attention_scale > 0.0).then_some(c.attention_scale),
            softcap: (c.attention_softcap > 0.0).then_some(c.attention_softcap),
            rope: Some(rope),
            init: self.init(c.width),
            output_init: self.branch_end(c.heads * c.head_dim),
        };
        let h = self.norm(b, "input_layernorm", x)?;
        let mut h = b.scoped("self_attn", |b| attention.write(b, h))?;
        if c.post_norms {
            h = self.norm(b, "post_attention_layernorm", h)?;
        }
        let h = b.dropout("attention_dropout", h)?;
        let x = b.graph.add(x, h)?;
        let before = if c.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let h = self.norm(b, before, x)?;
        let feed_forward = FeedForward {
            width: c.width,
            hidden: c.ff_width,
            kind: c.ff_kind,
            bias: c.ff_bias,
            init: self.init(c.width),
            output_init: self.branch_end(c.ff_width),
        };
        let mut h = b.scoped("mlp", |b| feed_forward.write(b, h))?;
        if c.post_norms {
            h = self.norm(b, "post_feedforward_layernorm", h)?;
        }
        let h = b.dropout("mlp_dropout", h)?;
        b.graph.add(x, h)
    }
}

impl LanguageModel for Llama {
    fn summary(&self) -> String {
        let c = &self.config;
        let (l, h, kv, w, t, v) = (c.layers, c.heads, c.kv_heads, c.width, c.context, c.vocab_size);
        format!("llama: {l} layers, {h} heads ({kv} of keys and values), width {w}, context {t}, vocabulary {v}")
    }
    fn identity(&self) -> String {
        format!("llama {:?}", self.config)
    }
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }
    fn context(&self) -> usize {
        self.config.context
    }
    fn dropout(&self) -> f64 {
        self.config.dropout
    }

    fn keeps(&self) -> bool {
        true
    }
    fn cache_bytes(&self, shape: &CacheShape) -> u64 {
        let c = &self.config;
        (0..c.layers).map(|i| shape.layer_bytes(c.kv_heads, c.head_dim, c.window_of(i))).sum()
    }

    fn hidden(&self, b: &mut Builder, tokens: Value) -> Result<Value> {
        let c = &self.config;
        let positions = b.positions(tokens);
        b.scoped("model", |b| {
            let mut x = b.scoped("embed_tokens", |b| b.embed(tokens, c.vocab_size, c.width, Init::Normal(0.02)))?;
            if c.embedding_scale > 0.0 {
                x = b.graph.scale(x, c.embedding_scale as f32)?;
            }
            x = b.dropout("embed_dropout", x)?;
            let (frequencies, factor) = c.rope_frequencies();
            let (cos, sin) = rope_tables_of(positions, &frequencies, factor);
            let layout = match c.rope_layout {
                RopeLayout::Interleaved => Layout::Interleaved,
                RopeLayout::HalfSplit => Layout::HalfSplit,
            };
            let rope = (b.graph.constant(cos), b.graph.constant(sin), layout);
            for i in 0..c.layers {
                x = b.scoped(&format!("layers.{i}"), |b| self.block(b, i, x, rope))?;
            }
            self.norm(b, "norm", x)
        })
    }

    fn head(&self, b: &mut Builder, hidden: Value) -> Result<Value> {
        let c = &self.config;
        let logits = if c.tied_head {
            b.scoped("model", |b| b.scoped("embed_tokens", |b| b.unembed(hidden, c.vocab_size, Init::Normal(0.02))))?
        } else {
            b.linear("lm_head", hidden, c.vocab_size, false, self.init(c.width))?
        };
        if c.final_softcap <= 0.0 {
            return Ok(logits);
        }
        b.softcap(logits, c.final_softcap)
    }
}
