//! Attention in blocks that cannot see each other: the band's defect, kept to measure what it costs.

use super::{Coeus, Heads};
use crate::Result;
use crate::graph::Value;
use crate::nn::Builder;
use crate::ops::attention::Attention;

impl Coeus {
    /// Causal attention within each block of `window` tokens: heads, already rotated, to [B, T, width].
    pub(super) fn isolated_blocks(&self, b: &mut Builder, h: Heads) -> Result<Value> {
        let c = &self.config;
        let (batch, time, d) = (b.graph.shape(h.q)[0], b.graph.shape(h.q)[1], c.head_dim());
        let block = c.window.min(time);
        let blocks = time.div_ceil(block);
        let mut cut = |x: Value, heads: usize| {
            // The ragged end is filled with keys that come after all tokens, so that none sees them.
            let whole = b.graph.pad(x, 1, 0, blocks * block - time, 0.0)?;
            b.graph.reshape(whole, &[batch * blocks, block, heads, d])
        };
        let (q, k, v) = (cut(h.q, c.heads)?, cut(h.k, c.kv_heads)?, cut(h.v, c.kv_heads)?);
        let scale = (1.0 / (d as f64).sqrt()) as f32;
        let o = b.graph.attention(q, k, v, None, Attention { causal: true, window: None, scale })?;
        let o = b.graph.reshape(o, &[batch, blocks * block, c.width])?;
        b.graph.slice(o, 1, 0, time)
    }
}
