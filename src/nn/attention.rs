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
    pub bias: bool,
    /// Keys further back are not seen; 0: all are.
    pub window: usize,
    /// RoPE tables (cos, sin), each [positions, head_dim / 2], and which dimensions make a pair.
    pub rope: Option<(Value, Value, Layout)>,
    pub init: Init,
    pub output_init: Init,
}

impl Attention {
    /// x [B, T, width] to [B, T, width].
    pub fn write(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let (batch, time) = (b.graph.shape(x)[0], b.graph.shape(x)[1]);
        let d = self.width / self.heads;
        let project = |b: &mut Builder, name: &str, heads: usize| {
            let y = b.linear(name, x, heads * d, self.bias, self.init)?;
            b.graph.reshape(y, &[batch, time, heads, d])
        };
        let mut q = project(b, "q_proj", self.heads)?;
        let mut k = project(b, "k_proj", self.kv_heads)?;
        let v = project(b, "v_proj", self.kv_heads)?;
        if let Some((cos, sin, layout)) = self.rope {
            q = b.graph.rope(q, cos, sin, 0, layout)?;
            k = b.graph.rope(k, cos, sin, 0, layout)?;
        }
        let window = (self.window > 0 && self.window < time).then_some(self.window);
        let scale = (1.0 / (d as f64).sqrt()) as f32;
        let o = b.graph.attention(q, k, v, None, AttentionOp { causal: true, window, scale })?;
        let o = b.graph.reshape(o, &[batch, time, self.width])?;
        b.linear("o_proj", o, self.width, self.bias, self.output_init)
    }
}
