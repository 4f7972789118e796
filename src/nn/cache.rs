//! Keys and values kept between runs, so that a text goes on without being read again: variables that the attention layers write
//! and read, and the inputs that say where the tokens of a run stand.

use super::Builder;
use crate::Result;
use crate::graph::{Role, Value};
use crate::ops::cached_attention::CachedAttention;
use crate::tensor::{DType, TensorType};

/// What a cache is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CacheShape {
    /// Texts side by side.
    pub texts: usize,
    /// Tokens of a text at most.
    pub capacity: usize,
    /// Tokens that one run reads of a text at most: a layer with a window keeps so many more than the window has.
    pub longest: usize,
    /// f32, f16, or int8 with one f32 scale a vector.
    pub storage: DType,
}

impl CacheShape {
    /// Tokens that a layer keeps of a text; `window` 0: it sees all.
    pub fn slots(&self, window: usize) -> usize {
        match window {
            0 => self.capacity,
            _ => self.capacity.min(window + self.longest - 1),
        }
    }

    /// Bytes of keys and values of one layer: 2 texts kv_heads slots head_dim elements, and the scales of int8.
    pub fn layer_bytes(&self, kv_heads: usize, head_dim: usize, window: usize) -> u64 {
        let vectors = (2 * self.texts * kv_heads * self.slots(window)) as u64;
        let scale = if self.storage == DType::I8 { 4 } else { 0 };
        vectors * (head_dim as u64 * self.storage.bytes() as u64 + scale)
    }
}

/// Present in a builder where keys and values are kept.
#[derive(Debug)]
pub struct Cache {
    pub shape: CacheShape,
    place: Value,
    positions: Value,
    pub states: Vec<(String, TensorType)>,
}

/// i32 [texts, 2]: how many tokens of each text were read before, and how many of this run's are there.
pub const PLACE: &str = "cache.place";
/// i32 [texts, T]: the position of every token, below the capacity (for those that are not there, any).
pub const POSITIONS: &str = "cache.positions";

impl Builder {
    /// Layers written from now on keep keys and values for runs of `tokens` tokens of each text.
    pub fn keep(&mut self, shape: CacheShape, tokens: usize) {
        let place = self.graph.input(PLACE, TensorType::i32(&[shape.texts, 2]));
        let positions = self.graph.input(POSITIONS, TensorType::i32(&[shape.texts, tokens]));
        self.cache = Some(Cache { shape, place, positions, states: vec![] });
    }

    /// The position of every token, where keys and values are kept.
    pub fn kept_positions(&self) -> Option<Value> {
        self.cache.as_ref().map(|c| c.positions)
    }

    /// How many positions tables need for `tokens` [B, T].
    pub fn positions(&self, tokens: Value) -> usize {
        self.cache.as_ref().map_or(self.graph.shape(tokens)[1], |c| c.shape.capacity)
    }

    /// Attention of q [B, T, H, D] to what was kept and to the new k, v [B, T, Hkv, D], which it keeps; `window` 0: to all.
    pub(super) fn attend_kept(
        &mut self,
        [q, k, v]: [Value; 3],
        window: usize,
        scale: f32,
        softcap: Option<f32>,
    ) -> Result<Option<Value>> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let (shape, place) = (cache.shape, cache.place);
        let slots = shape.slots(window);
        let k = self.kept("k", k, slots)?;
        let v = self.kept("v", v, slots)?;
        let window = (window > 0 && window < shape.capacity).then_some(window);
        self.graph.cached_attention(q, k, v, place, CachedAttention { window, scale, softcap }).map(Some)
    }

    /// The variable `leaf` of the current scope with `new` [B, T, H, D] written to it, and its scales.
    fn kept(&mut self, leaf: &str, new: Value, slots: usize) -> Result<(Value, Option<Value>)> {
        let dims = self.graph.shape(new).to_vec();
        let (batch, heads, d) = (dims[0], dims[2], dims[3]);
        let storage = self.cache.as_ref().map_or(DType::F32, |c| c.shape.storage);
        let mut variable = |leaf: &str, ty: TensorType| -> Result<Value> {
            let name = format!("cache.{}", self.graph.path(leaf));
            if let Some(cache) = &mut self.cache {
                cache.states.push((name.clone(), ty.clone()));
            }
            self.graph.variable(&name, Role::State, ty)
        };
        let old = variable(leaf, TensorType::new(storage, &[batch, heads, slots, d]))?;
        let scales = match storage {
            DType::I8 => Some(variable(&format!("{leaf}_scales"), TensorType::f32(&[batch, heads, slots]))?),
            _ => None,
        };
        let place = self.cache.as_ref().map(|c| c.place);
        let place = place.ok_or_else(|| crate::Error::Graph("no keys and values are kept here".into()))?;
        // The graph updates the variables.
        self.graph.cache_write(old, scales, new, place)
    }
}
