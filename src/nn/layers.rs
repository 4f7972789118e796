//! Linear maps, norms, dropout sites, position tables.

use super::{Builder, Init};
use crate::Result;
use crate::config::Norm;
use crate::graph::Value;
use crate::ops::rope::Layout;
use kernels_cpu::philox::stream;

impl Builder {
    /// y = x W^T + b with W `weight` [outputs, inputs] (the layout of PyTorch and Hugging Face) and b `bias` [outputs].
    pub fn linear(&mut self, name: &str, x: Value, outputs: usize, bias: bool, init: Init) -> Result<Value> {
        self.scoped(name, |b| {
            let inputs = b.graph.shape(x).last().copied().unwrap_or(1);
            let y = b.product("weight", x, [outputs, inputs], init)?;
            if !bias {
                return Ok(y);
            }
            let bias = b.parameter("bias", &[outputs], Init::Zeros)?;
            b.graph.add(y, bias)
        })
    }

    /// x W^T with the matrix `leaf` of the current scope.
    fn product(&mut self, leaf: &str, x: Value, shape: [usize; 2], init: Init) -> Result<Value> {
        let (w, stored) = self.matrix(leaf, shape, init)?;
        self.multiplied.insert(self.graph.path(leaf));
        if let Some(observed) = &mut self.observed {
            observed.push((self.graph.path(leaf), x));
        }
        match stored {
            None => self.graph.matmul_t(x, w, false, true),
            Some(s) => self.graph.packed_linear(x, w, s.packing, s.activations),
        }
    }

    /// Rows of the table `weight` [rows, width] of the current scope: ids [..] to [.., width].
    pub fn embed(&mut self, ids: Value, rows: usize, width: usize, init: Init) -> Result<Value> {
        match self.matrix("weight", [rows, width], init)? {
            (table, None) => self.graph.embedding(table, ids),
            (table, Some(s)) => self.graph.packed_embedding(table, ids, s.packing),
        }
    }

    /// Products with every row of the same table: hidden states [N, width] to [N, rows].
    pub fn unembed(&mut self, hidden: Value, rows: usize, init: Init) -> Result<Value> {
        let width = self.graph.shape(hidden).last().copied().unwrap_or(1);
        self.product("weight", hidden, [rows, width], init)
    }

    /// Rotates queries or keys x [B, T, H, D] by their places in the text.
    pub fn rope(&mut self, x: Value, cos: Value, sin: Value, layout: Layout) -> Result<Value> {
        match self.kept_positions() {
            Some(positions) => self.graph.rope_at(x, cos, sin, positions, layout),
            None => self.graph.rope(x, cos, sin, 0, layout),
        }
    }

    /// cap tanh(x / cap): bounded, and almost x near 0 (Gemma 2, arXiv:2408.00118).
    pub fn softcap(&mut self, x: Value, cap: f64) -> Result<Value> {
        let small = self.graph.scale(x, (1.0 / cap) as f32)?;
        let bounded = self.graph.tanh(small)?;
        self.graph.scale(bounded, cap as f32)
    }

    /// Root-mean-square norm of the last axis with the gain `weight`, or 1 + `weight` (Gemma).
    pub fn rms_norm(&mut self, name: &str, x: Value, eps: f64, plus_one: bool) -> Result<Value> {
        self.scoped(name, |b| {
            let width = b.graph.shape(x).last().copied().unwrap_or(1);
            let gain = b.parameter("weight", &[width], if plus_one { Init::Zeros } else { Init::Ones })?;
            Ok(b.graph.rms_norm(x, gain, eps as f32, plus_one)?.0)
        })
    }

    /// [`Builder::linear`] with a bias that starts from `bias`.
    pub fn linear_from(&mut self, name: &str, x: Value, outputs: usize, init: Init, bias: Init) -> Result<Value> {
        let y = self.linear(name, x, outputs, false, init)?;
        let bias = self.scoped(name, |b| b.parameter("bias", &[outputs], bias))?;
        self.graph.add(y, bias)
    }

    /// Normalises the last axis, with gain `weight` and, for LayerNorm, an optional `bias`.
    pub fn norm(&mut self, name: &str, x: Value, kind: Norm, bias: bool, eps: f64) -> Result<Value> {
        self.scoped(name, |b| {
            let width = b.graph.shape(x).last().copied().unwrap_or(1);
            let gain = b.parameter("weight", &[width], Init::Ones)?;
            match kind {
                Norm::Layernorm => {
                    let bias = if bias { Some(b.parameter("bias", &[width], Init::Zeros)?) } else { None };
                    Ok(b.graph.layer_norm(x, gain, bias, eps as f32)?.0)
                }
                Norm::Rmsnorm => Ok(b.graph.rms_norm(x, gain, eps as f32, false)?.0),
            }
        })
    }

    /// Drops elements with the builder's probability while training; the mask belongs to this site's name.
    pub fn dropout(&mut self, site: &str, x: Value) -> Result<Value> {
        match self.dropout {
            Some(d) if d.p > 0.0 => {
                let stream = stream(&self.graph.path(site));
                self.graph.dropout(x, d.rng, d.p as f32, stream)
            }
            _ => Ok(x),
        }
    }
}

/// Fixed interleaved sines and cosines, [positions, width] (Vaswani et al. 2017, section 3.5).
pub fn sinusoidal_table(positions: usize, width: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * width);
    for t in 0..positions {
        for c in 0..width {
            let angle = t as f64 * 10000f64.powf(-((c / 2 * 2) as f64) / width as f64);
            table.push(if c % 2 == 0 { angle.sin() } else { angle.cos() } as f32);
        }
    }
    table
}
