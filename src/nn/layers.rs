//! Linear maps, norms, dropout sites, position tables.

use super::{Builder, Init};
use crate::Result;
use crate::config::Norm;
use crate::graph::Value;
use kernels_cpu::philox::stream;

impl Builder {
    /// y = x W^T + b with W `weight` [outputs, inputs] (the layout of PyTorch and Hugging Face) and b `bias` [outputs].
    pub fn linear(&mut self, name: &str, x: Value, outputs: usize, bias: bool, init: Init) -> Result<Value> {
        self.scoped(name, |b| {
            let inputs = b.graph.shape(x).last().copied().unwrap_or(1);
            let w = b.parameter("weight", &[outputs, inputs], init)?;
            let y = b.graph.matmul_t(x, w, false, true)?;
            if !bias {
                return Ok(y);
            }
            let bias = b.parameter("bias", &[outputs], Init::Zeros)?;
            b.graph.add(y, bias)
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
