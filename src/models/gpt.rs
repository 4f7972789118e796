//! The gpt family: a pre-norm decoder-only transformer written from a `GptConfig`. Weights carry Hugging Face's names for
//! the Llama layout, so a checkpoint reads like one.

use super::LanguageModel;
use crate::Result;
use crate::config::{GptConfig, Init as Scheme, Positions, RopeLayout};
use crate::graph::Value;
use crate::nn::{Attention, Builder, CacheShape, FeedForward, Init, sinusoidal_table};
use crate::ops::rope::{Layout, rope_tables};
use crate::tensor::HostTensor;

pub struct Gpt {
    config: GptConfig,
}

impl Gpt {
    /// `config` must be resolved and valid, with `vocab_size` set.
    pub fn new(config: GptConfig) -> Result<Self> {
        config.validate()?;
        if config.vocab_size == 0 {
            return Err(crate::Error::Config("model.vocab_size is not known yet: it comes from the tokenizer".into()));
        }
        let mut config = config;
        config.resolve();
        Ok(Gpt { config })
    }

    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    fn embedding_init(&self) -> Init {
        Init::Normal(0.02)
    }
    fn attention_init(&self) -> Init {
        match self.config.init {
            Scheme::Gpt2 => Init::Normal(0.02),
            Scheme::Xavier => Init::Normal(1.0 / (self.config.width as f64).sqrt()),
        }
    }
    fn feed_forward_init(&self, inputs: usize, outputs: usize) -> Init {
        match self.config.init {
            Scheme::Gpt2 => Init::Normal(0.02),
            Scheme::Xavier => Init::Uniform((6.0 / (inputs + outputs) as f64).sqrt()),
        }
    }
    /// The two projections that end a residual branch.
    fn branch_end(&self, otherwise: Init) -> Init {
        match self.config.init {
            Scheme::Gpt2 => Init::Normal(0.02 / (2.0 * self.config.layers as f64).sqrt()),
            Scheme::Xavier => otherwise,
        }
    }

    fn norm(&self, b: &mut Builder, name: &str, x: Value) -> Result<Value> {
        let c = &self.config;
        b.norm(name, x, c.norm, c.norm_bias, c.norm_eps)
    }

    fn embed(&self, b: &mut Builder, tokens: Value) -> Result<Value> {
        let c = &self.config;
        let (time, kept) = (b.graph.shape(tokens)[1], b.kept_positions());
        let init = self.embedding_init();
        let x = b.scoped("embed_tokens", |b| b.embed(tokens, c.vocab_size, c.width, init))?;
        let x = match c.positions {
            Positions::Learned => {
                let table = b.scoped("embed_positions", |b| b.parameter("weight", &[c.context, c.width], init))?;
                let rows = match kept {
                    Some(positions) => b.graph.embedding(table, positions)?,
                    // Shorter sequences read the first rows.
                    None if time < c.context => {
                        let positions = HostTensor::i32(&[time], (0..time as i32).collect());
                        let positions = b.graph.constant(positions);
                        b.graph.embedding(table, positions)?
                    }
                    None => table,
                };
                b.graph.add(x, rows)?
            }
            Positions::Sinusoidal => {
                let count = b.positions(tokens);
                let table = b.table(&[count, c.width], sinusoidal_table(count, c.width));
                let rows = match kept {
                    Some(positions) => b.graph.embedding(table, positions)?,
                    None => table,
                };
                b.graph.add(x, rows)?
            }
            Positions::None | Positions::Rope => x,
        };
        b.dropout("embed_dropout", x)
    }

    fn block(&self, b: &mut Builder, x: Value, rope: Option<(Value, Value, Layout)>) -> Result<Value> {
        let c = &self.config;
        let attention = Attention {
            width: c.width,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim(),
            qkv_bias: c.attention_bias,
            output_bias: c.attention_bias,
            window: c.window,
            scale: None,
            softcap: None,
            rope,
            init: self.attention_init(),
            output_init: self.branch_end(self.attention_init()),
        };
        let h = self.norm(b, "input_layernorm", x)?;
        let h = b.scoped("self_attn", |b| attention.write(b, h))?;
        let h = b.dropout("attention_dropout", h)?;
        let x = b.graph.add(x, h)?;
        let h = self.norm(b, "post_attention_layernorm", x)?;
        let feed_forward = FeedForward {
            width: c.width,
            hidden: c.ff_width,
            kind: c.ff_kind,
            bias: c.ff_bias,
            init: self.feed_forward_init(c.width, c.ff_width),
            output_init: self.branch_end(self.feed_forward_init(c.ff_width, c.width)),
        };
        let h = b.scoped("mlp", |b| feed_forward.write(b, h))?;
        let h = b.dropout("mlp_dropout", h)?;
        b.graph.add(x, h)
    }
}

impl LanguageModel for Gpt {
    fn summary(&self) -> String {
        let c = &self.config;
        let (l, h, w, t, v) = (c.layers, c.heads, c.width, c.context, c.vocab_size);
        format!("gpt: {l} layers, {h} heads, width {w}, context {t}, vocabulary {v}")
    }
    fn identity(&self) -> String {
        format!("gpt {:?}", self.config)
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
        c.layers as u64 * shape.layer_bytes(c.kv_heads, c.head_dim(), c.window)
    }

    fn hidden(&self, b: &mut Builder, tokens: Value) -> Result<Value> {
        let c = &self.config;
        let positions = b.positions(tokens);
        b.scoped("model", |b| {
            let mut x = self.embed(b, tokens)?;
            let rope = (c.positions == Positions::Rope).then(|| {
                let d = c.head_dim();
                let (cos, sin) = rope_tables(positions, d, c.rope_base);
                let layout = match c.rope_layout {
                    RopeLayout::Interleaved => Layout::Interleaved,
                    RopeLayout::HalfSplit => Layout::HalfSplit,
                };
                (b.graph.constant(cos), b.graph.constant(sin), layout)
            });
            for i in 0..c.layers {
                x = b.scoped(&format!("layers.{i}"), |b| self.block(b, x, rope))?;
            }
            self.norm(b, "norm", x)
        })
    }

    fn head(&self, b: &mut Builder, hidden: Value) -> Result<Value> {
        let c = &self.config;
        if c.tied_head {
            let init = self.embedding_init();
            return b.scoped("model", |b| b.scoped("embed_tokens", |b| b.unembed(hidden, c.vocab_size, init)));
        }
        b.linear("lm_head", hidden, c.vocab_size, false, self.embedding_init())
    }
}
