//! Attention to a cache of keys and values ([`super::cache`]): what generation runs, one token or a segment at a time. Work grows with
//! the length of the text, not with the room that the cache has.

mod cases;
mod gpu;
#[cfg(test)]
mod tests;

use super::cache::{check_cache, place_of};
use super::{Graph, Op, Spec};
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::cached_attention::{CachedShape, Stored, cached_attention};

/// Inputs q f32 `[B, T, H, D]`, keys and values `[B, Hkv, S, D]` stored alike (int8: then the scales of both, f32 `[B, Hkv, S]`), and
/// place i32 `[B, 2]`: (start, count) of every batch row, as [`super::cache::CacheWrite`] was given it. Output o `[B, T, H, D]`.
///
/// With last = start + count - 1, slot s holds position p = last - ((last - s) mod S). Query t < count stands at i = start + t and sees p
/// where 0 <= p <= i and, with a window w, i - p < w; others give zeros. Query head h reads key/value head h / (H / Hkv). T <= S. A ring
/// whose every query shall see a whole window has S >= w + T - 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CachedAttention {
    pub window: Option<usize>,
    /// Factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f32,
    /// Scores x become `softcap * tanh(x / softcap)`.
    pub softcap: Option<f32>,
}

impl CachedAttention {
    fn shape(&self, q: &[usize], k: &[usize]) -> CachedShape {
        let ([batch, tokens, heads, head_dim], [_, kv_heads, slots, _]) =
            ([q[0], q[1], q[2], q[3]], [k[0], k[1], k[2], k[3]]);
        let CachedAttention { window, scale, softcap } = *self;
        CachedShape { batch, tokens, heads, kv_heads, slots, head_dim, window, scale, softcap }
    }
}

/// The positions that a call can see at most.
fn longest(s: &CachedShape) -> usize {
    s.slots.min(s.window.map_or(usize::MAX, |w| w.saturating_add(s.tokens) - 1))
}

impl Kernel for CachedAttention {
    fn name(&self) -> &'static str {
        "cached_attention"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v] = std::array::from_fn(|i| &inputs[i].data);
        let s = self.shape(&inputs[0].shape, &inputs[1].shape);
        let (scales, place) = (&inputs[3..inputs.len() - 1], inputs[inputs.len() - 1]);
        let (d, slots) = (s.head_dim, s.slots as i64);
        // Element c of a vector of the keys (0) or values (1).
        let stored = |x: &[f64], which: usize, vector: usize, c: usize| {
            x[vector * d + c] * scales.get(which).map_or(1.0, |s| s.data[vector])
        };
        let mut o = RefTensor::zeros(&outputs[0].shape);
        for b in 0..s.batch {
            let (start, count) = place_of(place, b, s.tokens);
            let last = start + count as i64 - 1;
            for (t, h) in (0..count).flat_map(|t| (0..s.heads).map(move |h| (t, h))) {
                let row = ((b * s.tokens + t) * s.heads + h) * d;
                let first = (b * s.kv_heads + h / s.group()) * s.slots;
                let i = start + t as i64;
                let sees = |slot: &i64| {
                    let p = last - (last - slot).rem_euclid(slots);
                    p >= 0 && p <= i && self.window.is_none_or(|w| ((i - p) as usize) < w)
                };
                let score = |slot: i64| {
                    let vector = first + slot as usize;
                    let product: f64 = (0..d).map(|c| q[row + c] * stored(k, 0, vector, c)).sum();
                    let x = f64::from(self.scale) * product;
                    (vector, self.softcap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh()))
                };
                let scores: Vec<(usize, f64)> = (0..slots).filter(sees).map(score).collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.1));
                let sum: f64 = scores.iter().map(|x| (x.1 - max).exp()).sum();
                for (vector, x) in scores {
                    for c in 0..d {
                        o.data[row + c] += (x - max).exp() / sum * stored(v, 1, vector, c);
                    }
                }
            }
        }
        vec![o]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.shape(&call.input(0).shape, &call.input(1).shape);
        let place = call.i32(call.inputs.len() - 1);
        let [k, v] = [1, 2].map(|i| match call.input(i).dtype {
            DType::F32 => Stored::F32(call.f32(i)),
            DType::F16 => Stored::F16(call.bits16(i)),
            _ => Stored::Int8(call.i8(i), call.f32(i + 2)),
        });
        cached_attention(&s, call.f32(0), k, v, place, call.out_f32(0));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let shape = self.shape(&lowering.input(0).shape, &lowering.input(1).shape);
        gpu::lower(lowering, &shape)
    }
}

impl Op for CachedAttention {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let (q, k, v, scales, place) = match inputs {
            [q, k, v, place] => (q, k, v, None, place),
            [q, k, v, ks, vs, place] => (q, k, v, Some([ks, vs]), place),
            _ => return Err("q, keys, values, the scales of both where they are int8, and the place are needed".into()),
        };
        if q.dtype != DType::F32 || q.rank() != 4 {
            return Err(format!("q must be f32 [B, T, H, D], not {q}"));
        }
        if k != v {
            return Err(format!("keys {k} and values {v} must be stored alike"));
        }
        let [b, kv_heads, slots, d] = check_cache(k, scales.map(|s| s[0]))?;
        check_cache(v, scales.map(|s| s[1]))?;
        let (tokens, heads) = (q.shape[1], q.shape[2]);
        if q.shape[0] != b || q.shape[3] != d {
            return Err(format!("q {q} and the cache {k} differ in batch or head size"));
        }
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} query heads are not a multiple of {kv_heads} key/value heads"));
        }
        if tokens > slots {
            return Err(format!("{tokens} tokens cannot be in a cache of {slots}; read them in smaller pieces"));
        }
        if self.window == Some(0) {
            return Err("a window of 0 hides every key; use at least 1".into());
        }
        if self.softcap.is_some_and(|c| !(c.is_finite() && c > 0.0)) {
            return Err("a cap on scores must be positive".into());
        }
        if *place != TensorType::i32(&[b, 2]) {
            return Err(format!("the place must be i32[{b}, 2]: start and count of every row, not {place}"));
        }
        Ok(vec![q.clone()])
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph(
            "cached_attention is for generation and cannot be differentiated: train with attention".into(),
        ))
    }

    /// That of a full cache: what is in it is known only when the plan runs.
    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let s = self.shape(&inputs[0].shape, &inputs[1].shape);
        let seen = |t: usize| (s.slots + t + 1 - s.tokens).min(s.window.unwrap_or(usize::MAX)) as f64;
        let scores = (0..s.tokens).map(seen).sum::<f64>() * (s.batch * s.heads) as f64;
        let read = longest(&s) as f64 / s.slots as f64;
        let cached: f64 = inputs[1..inputs.len() - 1].iter().map(|t| t.bytes() as f64).sum();
        let [q, o] = [&inputs[0], &outputs[0]].map(|t| t.bytes() as f64);
        let each = if s.softcap.is_some() { 12.0 } else { 0.0 };
        Cost { flops: scores * (4.0 * s.head_dim as f64 + each), bytes_read: q + read * cached, bytes_written: o }
    }
}

impl Graph {
    /// Attention of `q` f32 [B, T, H, D] to what [`Graph::cache_write`] gave for keys and values (caches [B, Hkv, S, D] and, for int8, their
    /// scales) at `place` i32 [B, 2]; gives [B, T, H, D]. See [`CachedAttention`].
    pub fn cached_attention(
        &mut self,
        q: Value,
        k: (Value, Option<Value>),
        v: (Value, Option<Value>),
        place: Value,
        op: CachedAttention,
    ) -> Result<Value> {
        let operands: Vec<Value> = [q, k.0, v.0].into_iter().chain(k.1).chain(v.1).chain([place]).collect();
        self.apply1(op, &operands)
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("cached_attention", cases::cases).timed(cases::sizes)]
}
