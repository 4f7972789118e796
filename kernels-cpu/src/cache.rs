//! Writing new keys or values into a cache: see [`crate::cached_attention`] for its layout.

use crate::cached_attention::place_of;
use crate::half;
use crate::int8::quantize_row;
use crate::threads::{SharedMut, par_rows};

/// A cache that is written, in the format it is stored in.
#[derive(Debug)]
pub enum StoredMut<'a> {
    F32(&'a mut [f32]),
    /// IEEE 754 binary16 as bits.
    F16(&'a mut [u16]),
    /// int8 as `crate::int8` has it, one scale for each vector.
    Int8(&'a mut [i8], &'a mut [f32]),
}

/// What threads write disjoint rows of.
enum Target<'a> {
    F32(SharedMut<'a, f32>),
    F16(SharedMut<'a, u16>),
    Int8(SharedMut<'a, i8>, SharedMut<'a, f32>),
}

/// Sizes of a cache `[batch, kv_heads, slots, head_dim]` and of new vectors `[batch, tokens, kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheShape {
    pub batch: usize,
    pub tokens: usize,
    pub kv_heads: usize,
    pub slots: usize,
    pub head_dim: usize,
}

/// Token t < count of batch row b goes to slot (start + t) mod slots, with (start, count) in `place [batch, 2]`. Other slots keep
/// what they hold.
///
/// # Panics
/// If a slice does not have its shape's length, or there are more tokens than slots.
pub fn cache_write(shape: &CacheShape, new: &[f32], place: &[i32], cache: StoredMut) {
    let CacheShape { batch, tokens, kv_heads, slots, head_dim: d } = *shape;
    assert!(tokens <= slots, "cache: {tokens} new tokens do not fit {slots} slots");
    assert_eq!(new.len(), batch * tokens * kv_heads * d, "cache: new must be [batch, tokens, kv_heads, head_dim]");
    assert_eq!(place.len(), 2 * batch, "cache: place must be [batch, 2]");
    let vectors = batch * kv_heads * slots;
    let len = match &cache {
        StoredMut::F32(x) => x.len(),
        StoredMut::F16(x) => x.len(),
        StoredMut::Int8(x, scales) => {
            assert_eq!(scales.len(), vectors, "cache: scales must be [batch, kv_heads, slots]");
            x.len()
        }
    };
    assert_eq!(len, vectors * d, "cache: it must be [batch, kv_heads, slots, head_dim]");
    let target = match cache {
        StoredMut::F32(x) => Target::F32(SharedMut::new(x)),
        StoredMut::F16(x) => Target::F16(SharedMut::new(x)),
        StoredMut::Int8(x, scales) => Target::Int8(SharedMut::new(x), SharedMut::new(scales)),
    };
    par_rows(batch * kv_heads, tokens * d, |heads| {
        for head in heads {
            let (b, h) = (head / kv_heads, head % kv_heads);
            let (start, count) = place_of(place, b, tokens);
            for t in 0..count {
                let x = &new[((b * tokens + t) * kv_heads + h) * d..][..d];
                let vector = head * slots + ((start + t as i64) % slots as i64) as usize;
                let to = vector * d..(vector + 1) * d;
                // SAFETY (all): heads are disjoint.
                match &target {
                    Target::F32(cache) => unsafe { cache.slice(to) }.copy_from_slice(x),
                    Target::F16(cache) => narrow(x, unsafe { cache.slice(to) }),
                    Target::Int8(cache, scales) => {
                        let (q, scale) = unsafe { (cache.slice(to), scales.slice(vector..vector + 1)) };
                        quantize_row(d, x, q, scale);
                    }
                }
            }
        }
    });
}

crate::multiversion! {
    fn narrow<V>(x: &[f32], y: &mut [u16]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = half::f32_to_f16(x);
        }
    }
}
