//! The coeus family: every block mixes a gated linear recurrence, whose memory is of one size however long the text, with attention
//! over a short window. Equations in docs/coeus.md.

mod local;
mod memory;
#[cfg(test)]
mod tests;

use super::LanguageModel;
use crate::Result;
use crate::config::{CoeusConfig, ForgetGate, Fusion, LocalMode, Positions, Recurrence};
use crate::graph::Value;
use crate::nn::{Builder, Feed, FeedForward, Init};
use crate::ops::attention::Attention as AttentionOp;
use crate::ops::form::Form;
use crate::ops::rope::{Layout, rope_tables};
use crate::tensor::HostTensor;

const EPS: f32 = 1e-5;
const STD: f64 = 0.02;

pub struct Coeus {
    config: CoeusConfig,
}

/// Queries, keys and values in heads: [B, T, H, D], and two of [B, T, K, D].
#[derive(Clone, Copy)]
struct Heads {
    q: Value,
    k: Value,
    v: Value,
}

impl Coeus {
    /// `config` must be valid, with `vocab_size` set.
    pub fn new(mut config: CoeusConfig) -> Result<Self> {
        config.validate()?;
        if config.vocab_size == 0 {
            return Err(crate::Error::Config("model.vocab_size is not known yet: it comes from the tokenizer".into()));
        }
        config.resolve();
        Ok(Coeus { config })
    }

    pub fn config(&self) -> &CoeusConfig {
        &self.config
    }

    /// Of the matrices that end a residual branch.
    fn branch_end(&self) -> Init {
        Init::Normal(STD / (2.0 * self.config.layers as f64).sqrt())
    }

    fn token_table(&self, b: &mut Builder) -> Result<Value> {
        let shape = [self.config.vocab_size, self.config.width];
        b.scoped("embed_tokens", |b| b.parameter("weight", &shape, Init::Normal(STD)))
    }

    fn embed(&self, b: &mut Builder, tokens: Value) -> Result<Value> {
        let c = &self.config;
        let time = b.graph.shape(tokens)[1];
        let table = self.token_table(b)?;
        let mut x = b.graph.embedding(table, tokens)?;
        if c.positions == Positions::Learned {
            let shape = [c.context, c.width];
            let table = b.scoped("embed_positions", |b| b.parameter("weight", &shape, Init::Normal(STD)))?;
            let rows = if b.segment().is_some() {
                let positions = b.feed(Feed::Positions { limit: c.context })?;
                b.graph.embedding(table, positions)?
            } else if time < c.context {
                // Shorter sequences read the first rows.
                let positions = b.graph.constant(HostTensor::i32(&[time], (0..time as i32).collect()));
                b.graph.embedding(table, positions)?
            } else {
                table
            };
            x = b.graph.add(x, rows)?;
        }
        b.dropout("embed_dropout", x)
    }

    /// RMS norm over the last axis without weight.
    fn plain_norm(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let width = *b.graph.shape(x).last().unwrap_or(&1);
        let ones = b.table(&[width], vec![1.0; width]);
        Ok(b.graph.rms_norm(x, ones, EPS, false)?.0)
    }

    fn norm(&self, b: &mut Builder, name: &str, x: Value) -> Result<Value> {
        b.norm(name, x, crate::config::Norm::Rmsnorm, false, f64::from(EPS))
    }

    fn heads(&self, b: &mut Builder, n: Value) -> Result<Heads> {
        let c = &self.config;
        let (batch, time, d) = (b.graph.shape(n)[0], b.graph.shape(n)[1], c.head_dim());
        let mut project = |name: &str, heads: usize| {
            let y = b.linear(name, n, heads * d, false, Init::Normal(STD))?;
            b.graph.reshape(y, &[batch, time, heads, d])
        };
        Ok(Heads {
            q: project("q_proj", c.heads)?,
            k: project("k_proj", c.kv_heads)?,
            v: project("v_proj", c.kv_heads)?,
        })
    }

    /// log sigmoid of the forget gates: n [B, T, width] to [B, T, gates].
    fn log_gates(&self, b: &mut Builder, n: Value) -> Result<Value> {
        let c = &self.config;
        let start = Init::Spread(c.forget_bias_low, c.forget_bias_high);
        let hidden = match c.forget_gate {
            ForgetGate::Linear => None,
            ForgetGate::MlpHalf => Some(c.width / 2),
            ForgetGate::MlpFull => Some(c.width),
        };
        b.scoped("forget_gate", |b| {
            let n = match hidden {
                None => n,
                Some(hidden) => {
                    let u = b.linear("up_proj", n, hidden, true, Init::Normal(STD))?;
                    b.graph.silu(u)?
                }
            };
            let z = b.linear_from("down_proj", n, c.gates(), Init::Normal(STD), start)?;
            b.graph.log_sigmoid(z)
        })
    }

    /// Gated linear attention over `h`, normalised head by head: [B, T, width].
    fn linear_attention(&self, b: &mut Builder, n: Value, h: Heads) -> Result<Value> {
        let c = &self.config;
        let (batch, time, d) = (b.graph.shape(n)[0], b.graph.shape(n)[1], c.head_dim());
        let a = self.log_gates(b, n)?;
        let q = b.graph.scale(h.q, (1.0 / (d as f64).sqrt()) as f32)?;
        let mut k = h.k;
        if c.input_scale {
            // The keys of a group are written by each of its query heads as much as that head wants.
            let scale = b.linear("input_scale", n, c.heads, true, Init::Normal(STD))?;
            let scale = b.graph.sigmoid(scale)?;
            let group = c.heads / c.kv_heads;
            let scale = b.graph.reshape(scale, &[batch, time, c.kv_heads, group, 1])?;
            let keys = b.graph.reshape(k, &[batch, time, c.kv_heads, 1, d])?;
            let keys = b.graph.mul(keys, scale)?;
            k = b.graph.reshape(keys, &[batch, time, c.heads, d])?;
        }
        let (a, k) = (b.only_valid(a)?, b.only_valid(k)?);
        let first = match b.segment() {
            Some(_) => Some(b.state("recurrence", &[1, c.heads, d, d])?),
            None => None,
        };
        let (o, last) = match c.recurrence {
            Recurrence::GlaChannel => {
                let a = b.graph.reshape(a, &[batch, time, c.heads, d])?;
                b.graph.gla(c.backend, true, [q, k, h.v, a], first)?
            }
            _ => b.graph.gla(c.backend, false, [q, k, h.v, a], first)?,
        };
        if let Some(first) = first {
            b.graph.update(first, last)?;
        }
        let o = self.plain_norm(b, o)?;
        let o = b.graph.reshape(o, &[batch, time, c.width])?;
        let gain = b.scoped("recurrent_norm", |b| b.parameter("weight", &[c.width], Init::Ones))?;
        b.graph.mul(o, gain)
    }

    /// The scan with its projections: n [B, T, width] to [B, T, width], the output projection included.
    fn scan(&self, b: &mut Builder, n: Value) -> Result<Value> {
        let c = &self.config;
        b.scoped("scan", |b| {
            let a = self.log_gates(b, n)?;
            let mut u = b.linear("v_proj", n, c.width, false, Init::Normal(STD))?;
            if c.input_scale {
                let scale = b.linear("input_scale", n, c.width, true, Init::Normal(STD))?;
                let scale = b.graph.sigmoid(scale)?;
                u = b.graph.mul(scale, u)?;
            }
            let (a, u) = (b.only_valid(a)?, b.only_valid(u)?);
            let first = match b.segment() {
                Some(_) => Some(b.state("recurrence", &[1, c.width])?),
                None => None,
            };
            let (h, last) = b.graph.scan_as(c.backend, a, u, first)?;
            if let Some(first) = first {
                b.graph.update(first, last)?;
            }
            let h = self.norm(b, "recurrent_norm", h)?;
            let q = b.linear("q_proj", n, c.width, false, Init::Normal(STD))?;
            let q = b.graph.silu(q)?;
            let r = b.graph.mul(h, q)?;
            b.linear("o_proj", r, c.width, false, self.branch_end())
        })
    }

    /// Attention over the window: [B, T, width], before any output projection.
    fn attention(&self, b: &mut Builder, h: Heads) -> Result<Value> {
        let c = &self.config;
        let (batch, time, d) = (b.graph.shape(h.q)[0], b.graph.shape(h.q)[1], c.head_dim());
        let Heads { mut q, mut k, mut v } = h;
        // A segment sees the keys and values of the window before it. Kept as they were before their rotation, they are rotated by
        // their place relative to the segment: only differences of positions count, so one short table serves any length.
        let mut key_range = None;
        let mut before = 0;
        if b.segment().is_some() {
            before = c.window;
            k = b.lengthen("keys", k, before, Feed::Newest { rows: before })?;
            v = b.lengthen("values", v, before, Feed::Newest { rows: before })?;
            key_range = Some(b.feed(Feed::KeyRange { window: before })?);
        }
        if c.positions == Positions::Rope {
            let (cos, sin) = rope_tables(before + time, d, c.rope_base);
            let (cos, sin) = (b.graph.constant(cos), b.graph.constant(sin));
            q = b.graph.rope(q, cos, sin, before, Layout::Interleaved)?;
            k = b.graph.rope(k, cos, sin, 0, Layout::Interleaved)?;
        }
        if c.local_mode == LocalMode::IsolatedBlocks {
            return self.isolated_blocks(b, Heads { q, k, v });
        }
        let window = (c.window < before + time).then_some(c.window);
        let scale = (1.0 / (d as f64).sqrt()) as f32;
        let o = b.graph.attention(q, k, v, key_range, AttentionOp { causal: true, window, scale })?;
        b.graph.reshape(o, &[batch, time, c.width])
    }

    fn output(&self, b: &mut Builder, y: Value) -> Result<Value> {
        b.linear("o_proj", y, self.config.width, false, self.branch_end())
    }

    /// Recurrence and attention, fused: n [B, T, width] to [B, T, width].
    fn mixer(&self, b: &mut Builder, n: Value) -> Result<Value> {
        let c = &self.config;
        if c.share_qkv {
            let heads = self.heads(b, n)?;
            let y = match c.fusion {
                Fusion::LocalOnly => self.attention(b, heads)?,
                Fusion::RecurrentOnly => self.linear_attention(b, n, heads)?,
                _ => {
                    let r = self.linear_attention(b, n, heads)?;
                    let local = self.attention(b, heads)?;
                    // sigma(alpha) r + (1 - sigma(alpha)) local
                    let alpha = b.parameter("alpha", &[1], Init::Zeros)?;
                    let share = b.graph.sigmoid(alpha)?;
                    let difference = b.graph.sub(r, local)?;
                    let moved = b.graph.mul(difference, share)?;
                    b.graph.add(local, moved)?
                }
            };
            return self.output(b, y);
        }
        let local = |b: &mut Builder| {
            b.scoped("self_attn", |b| {
                let heads = self.heads(b, n)?;
                let o = self.attention(b, heads)?;
                self.output(b, o)
            })
        };
        let recurrent = |b: &mut Builder| {
            if c.recurrence == Recurrence::Scan {
                return self.scan(b, n);
            }
            b.scoped("linear_attn", |b| {
                let heads = self.heads(b, n)?;
                let o = self.linear_attention(b, n, heads)?;
                self.output(b, o)
            })
        };
        match c.fusion {
            Fusion::LocalOnly => local(b),
            Fusion::RecurrentOnly => recurrent(b),
            _ => {
                let (r, t) = (recurrent(b)?, local(b)?);
                b.scoped("judge", |b| self.judge(b, r, t))
            }
        }
    }

    /// lambda r + (1 - lambda) t with lambda = sigma(RN(r) W_r - RN(t) W_a + bias), for each channel: the difference decides.
    fn judge(&self, b: &mut Builder, r: Value, t: Value) -> Result<Value> {
        let width = self.config.width;
        let (for_r, for_t) = (self.plain_norm(b, r)?, self.plain_norm(b, t)?);
        let for_r = b.linear("recurrent_proj", for_r, width, true, Init::Normal(STD))?;
        let for_t = b.linear("local_proj", for_t, width, false, Init::Normal(STD))?;
        let z = b.graph.sub(for_r, for_t)?;
        let share = b.graph.sigmoid(z)?;
        let difference = b.graph.sub(r, t)?;
        let moved = b.graph.mul(difference, share)?;
        b.graph.add(t, moved)
    }

    fn block(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let c = &self.config;
        let n = self.norm(b, "input_layernorm", x)?;
        let mut y = b.scoped("mixer", |b| self.mixer(b, n))?;
        if c.use_episodic_mem {
            let e = b.scoped("memory", |b| self.episodic(b, n))?;
            y = b.graph.add(y, e)?;
        }
        let y = b.dropout("mixer_dropout", y)?;
        let mut x = b.graph.add(x, y)?;
        let feed_forward = FeedForward {
            width: c.width,
            hidden: c.ff_width,
            kind: c.ff_kind,
            bias: false,
            init: Init::Normal(STD),
            output_init: self.branch_end(),
        };
        for i in 0..c.reason_iterations {
            let n = self.norm(b, "post_mixer_layernorm", x)?;
            let h = b.scoped("mlp", |b| feed_forward.write(b, n))?;
            // One mask for each round of thought.
            let h = b.dropout(&format!("mlp_dropout.{i}"), h)?;
            x = b.graph.add(x, h)?;
        }
        Ok(x)
    }
}

impl LanguageModel for Coeus {
    fn summary(&self) -> String {
        let c = &self.config;
        let recurrence = match c.recurrence {
            Recurrence::GlaHead => "linear attention with a gate a head",
            Recurrence::GlaChannel => "linear attention with a gate a channel",
            Recurrence::Scan => "a scan of channels",
        };
        format!(
            "coeus: {} layers, {} heads, width {}, {recurrence}, window {}, context {}, vocabulary {}",
            c.layers, c.heads, c.width, c.window, c.context, c.vocab_size
        )
    }
    fn identity(&self) -> String {
        // Forms of a recurrence differ by roundings only.
        let config = CoeusConfig { backend: Form::Auto, dropout: 0.0, ..self.config.clone() };
        format!("coeus {config:?}")
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

    fn carries(&self) -> Result<(), String> {
        if self.config.local_mode == LocalMode::IsolatedBlocks {
            return Err("isolated blocks cannot be cut into segments: the newest tokens are read again".into());
        }
        Ok(())
    }
    fn last_position(&self) -> Option<usize> {
        (self.config.positions == Positions::Learned).then_some(self.config.context)
    }

    fn hidden(&self, b: &mut Builder, tokens: Value) -> Result<Value> {
        b.scoped("model", |b| {
            let mut x = self.embed(b, tokens)?;
            for i in 0..self.config.layers {
                x = b.scoped(&format!("layers.{i}"), |b| self.block(b, x))?;
            }
            self.norm(b, "norm", x)
        })
    }

    fn head(&self, b: &mut Builder, hidden: Value) -> Result<Value> {
        if self.config.tied_head {
            let table = b.scoped("model", |b| self.token_table(b))?;
            return b.graph.matmul_t(hidden, table, false, true);
        }
        b.linear("lm_head", hidden, self.config.vocab_size, false, Init::Normal(STD))
    }
}
