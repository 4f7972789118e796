//! Causal self-attention with grouped key/value heads, RoPE and a sliding window.

use super::{Builder, Init};
use crate::Result;
use crate::graph::Value;
use crate::ops::attention::Attention as AttentionOp;
use crate::ops::rope::Layout;

#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Query, key and value projections have bias vectors.
    pub qkv_bias: bool,
    pub output_bias: bool,
    /// Keys further back are not seen; 0: all are.
    pub window: usize,
    /// Factor on the scores; none: 1 / sqrt(head_dim).
    pub scale: Option<f64>,
    /// Scores become cap tanh(score / cap) (Gemma 2).
    pub softcap: Option<f64>,
    /// RoPE tables (cos, sin), each [positions, rotated / 2], and which dimensions make a pair.
    pub rope: Option<(Value, Value, Layout)>,
    pub init: Init,
    pub output_init: Init,
}

/// Hides a key: far below any score, and finite (WGSL need not know infinities).
const HIDDEN: f32 = -1e30;

impl Attention {
    /// x [B, T, width] to [B, T, width].
    pub fn write(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let (batch, time) = (b.graph.shape(x)[0], b.graph.shape(x)[1]);
        let d = self.head_dim;
        let project = |b: &mut Builder, name: &str, heads: usize| {
            let y = b.linear(name, x, heads * d, self.qkv_bias, self.init)?;
            b.graph.reshape(y, &[batch, time, heads, d])
        };
        let mut q = project(b, "q_proj", self.heads)?;
        let mut k = project(b, "k_proj", self.kv_heads)?;
        let v = project(b, "v_proj", self.kv_heads)?;
        if let Some((cos, sin, layout)) = self.rope {
            q = b.rope(q, cos, sin, layout)?;
            k = b.rope(k, cos, sin, layout)?;
        }
        let scale = self.scale.unwrap_or(1.0 / (d as f64).sqrt()) as f32;
        let window = (self.window > 0 && self.window < time).then_some(self.window);
        let kept = b.attend_kept([q, k, v], self.window, scale, self.softcap.map(|c| c as f32))?;
        let o = match (kept, self.softcap) {
            (Some(o), _) => o,
            (None, Some(cap)) => self.capped(b, [q, k, v], scale, cap)?,
            (None, None) => b.graph.attention(q, k, v, None, AttentionOp { causal: true, window, scale })?,
        };
        let o = b.graph.reshape(o, &[batch, time, self.heads * d])?;
        b.linear("o_proj", o, self.width, self.output_bias, self.output_init)
    }

    /// Attention whose scores are capped, written out: the matrix of scores is in memory.
    fn capped(&self, b: &mut Builder, [q, k, v]: [Value; 3], scale: f32, cap: f64) -> Result<Value> {
        let (batch, time) = (b.graph.shape(q)[0], b.graph.shape(q)[1]);
        let (d, kv, group) = (self.head_dim, self.kv_heads, self.heads / self.kv_heads);
        // Queries of one key/value head are rows of one product: [B, Hkv, group * T, D].
        let q = b.graph.reshape(q, &[batch, time, kv, group, d])?;
        let q = b.graph.permute(q, &[0, 2, 3, 1, 4])?;
        let q = b.graph.reshape(q, &[batch, kv, group * time, d])?;
        let k = b.graph.permute(k, &[0, 2, 1, 3])?;
        let v = b.graph.permute(v, &[0, 2, 1, 3])?;
        let scores = b.graph.matmul_t(q, k, false, true)?;
        let scores = b.graph.scale(scores, scale)?;
        let scores = b.softcap(scores, cap)?;
        let scores = b.graph.reshape(scores, &[batch, kv, group, time, time])?;
        let window = if self.window == 0 { time } else { self.window };
        let sees = |i: usize, j: usize| j <= i && i - j < window;
        let mask = (0..time * time).map(|n| if sees(n / time, n % time) { 0.0 } else { HIDDEN }).collect();
        let mask = b.table(&[time, time], mask);
        let scores = b.graph.add(scores, mask)?;
        let weights = b.graph.softmax(scores, 4)?;
        let weights = b.graph.reshape(weights, &[batch, kv, group * time, time])?;
        let o = b.graph.matmul(weights, v)?;
        let o = b.graph.reshape(o, &[batch, kv, group, time, d])?;
        let o = b.graph.permute(o, &[0, 3, 1, 2, 4])?;
        b.graph.reshape(o, &[batch, time, self.heads, d])
    }
}
