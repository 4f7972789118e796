//! Cached attention and writing into a cache against the definition in f64.

use crate::attention::{AttentionShape, attention_forward};
use crate::cache::{CacheShape, StoredMut, cache_write};
use crate::cached_attention::{CachedShape, Stored, cached_attention, place_of};
use crate::half;
use crate::polar::tests::noise;
use crate::threads::with_threads;

const SHAPE: CachedShape = CachedShape {
    batch: 1,
    tokens: 1,
    heads: 1,
    kv_heads: 1,
    slots: 64,
    head_dim: 16,
    window: None,
    scale: 0.25,
    softcap: None,
};

/// The definition, slot by slot.
fn naive(s: &CachedShape, q: &[f32], k: &[f64], v: &[f64], place: &[i32]) -> Vec<f64> {
    let mut o = vec![0.0; s.q_len()];
    for b in 0..s.batch {
        let (start, count) = place_of(place, b, s.tokens);
        let last = start + count as i64 - 1;
        for t in 0..count {
            for h in 0..s.heads {
                let row = ((b * s.tokens + t) * s.heads + h) * s.head_dim;
                let at = |slot: usize| ((b * s.kv_heads + h / s.group()) * s.slots + slot) * s.head_dim;
                let i = start + t as i64;
                let seen = |slot: &usize| {
                    let p = last - (last - *slot as i64).rem_euclid(s.slots as i64);
                    p >= 0 && p <= i && s.window.is_none_or(|w| i - p < w as i64)
                };
                let score = |slot: usize| {
                    let dot: f64 = (0..s.head_dim).map(|c| q[row + c] as f64 * k[at(slot) + c]).sum();
                    let x = s.scale as f64 * dot;
                    s.softcap.map_or(x, |cap| cap as f64 * (x / cap as f64).tanh())
                };
                let scores: Vec<(usize, f64)> = (0..s.slots).filter(seen).map(|j| (j, score(j))).collect();
                let max = scores.iter().fold(f64::MIN, |m, x| m.max(x.1));
                let sum: f64 = scores.iter().map(|x| (x.1 - max).exp()).sum();
                for (slot, x) in scores {
                    for c in 0..s.head_dim {
                        o[row + c] += (x - max).exp() / sum * v[at(slot) + c];
                    }
                }
            }
        }
    }
    o
}

/// A cache in each storage, with the values that it holds.
fn stored(n: usize, d: usize, seed: u64) -> Vec<(Owned, Vec<f64>)> {
    let x = noise(n * d, seed);
    let bits: Vec<u16> = x.iter().map(|x| half::f32_to_f16(*x)).collect();
    let (mut q, mut scales) = (vec![0; n * d], vec![0.0; n]);
    crate::int8::quantize(n, d, d, &x, &mut q, &mut scales);
    let wide = |x: &[f32]| x.iter().map(|x| *x as f64).collect();
    let f16 = bits.iter().map(|b| half::f16_to_f32(*b) as f64).collect();
    let int8 = q.iter().enumerate().map(|(i, q)| *q as f64 * scales[i / d] as f64).collect();
    vec![(Owned::F32(x.clone()), wide(&x)), (Owned::F16(bits), f16), (Owned::Int8(q, scales), int8)]
}

enum Owned {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Int8(Vec<i8>, Vec<f32>),
}

impl Owned {
    fn get(&self) -> Stored<'_> {
        match self {
            Owned::F32(x) => Stored::F32(x),
            Owned::F16(x) => Stored::F16(x),
            Owned::Int8(x, s) => Stored::Int8(x, s),
        }
    }
}

#[test]
fn every_storage_group_ring_and_window_agrees_with_the_definition() {
    let cases: [(CachedShape, &[i32]); 11] = [
        (CachedShape { head_dim: 3, slots: 1, ..SHAPE }, &[7, 1]),
        (CachedShape { head_dim: 4, slots: 5, tokens: 3, heads: 2, ..SHAPE }, &[1, 3]),
        (CachedShape { head_dim: 80, slots: 130, heads: 7, window: Some(50), ..SHAPE }, &[1_000_001, 1]),
        (CachedShape { slots: 1000, heads: 4, kv_heads: 2, ..SHAPE }, &[900, 1]),
        (CachedShape { slots: 1000, heads: 4, kv_heads: 2, batch: 3, ..SHAPE }, &[3, 1, 999, 0, 3000, 1]),
        (CachedShape { slots: 700, tokens: 5, window: Some(300), softcap: Some(2.0), ..SHAPE }, &[699, 4]),
        (CachedShape { slots: 130, tokens: 17, heads: 3, batch: 2, ..SHAPE }, &[0, 17, 260, 11]),
        (CachedShape { slots: 130, tokens: 40, heads: 14, kv_heads: 2, window: Some(60), ..SHAPE }, &[77, 40]),
        (CachedShape { slots: 3000, tokens: 9, heads: 4, kv_heads: 1, head_dim: 67, ..SHAPE }, &[2900, 9]),
        (CachedShape { slots: 200, tokens: 130, heads: 2, softcap: Some(5.0), head_dim: 64, ..SHAPE }, &[150, 129]),
        (CachedShape { slots: 64, tokens: 1, heads: 256, head_dim: 20, ..SHAPE }, &[-4, 9]),
    ];
    for (s, place) in cases {
        let q = noise(s.q_len(), 1);
        let (keys, values) = (stored(s.vectors(), s.head_dim, 2), stored(s.vectors(), s.head_dim, 3));
        for ((k, k64), (v, v64)) in keys.iter().zip(&values) {
            let want = naive(&s, &q, k64, v64, place);
            let run = |threads| {
                let mut o = vec![f32::NAN; s.q_len()];
                with_threads(threads, || cached_attention(&s, &q, k.get(), v.get(), place, &mut o));
                o
            };
            let have = run(1);
            assert_eq!(have, run(3), "{s:?}: the bits depend on the number of threads");
            for (i, (h, w)) in have.iter().zip(&want).enumerate() {
                // Scores of some units are wrong by some roundings each, and so are weights; values are below 4.
                let bound = 4.0 * (s.head_dim as f64 + 30.0) * f32::EPSILON as f64;
                assert!((*h as f64 - w).abs() <= bound, "{s:?} {:?} [{i}]: {h} {w}", k.get());
            }
        }
    }
}

#[test]
fn new_vectors_go_to_their_slots_and_nothing_else_is_written() {
    let s = CacheShape { batch: 2, tokens: 5, kv_heads: 3, slots: 7, head_dim: 6 };
    let (vectors, n) = (s.batch * s.kv_heads * s.slots, s.batch * s.kv_heads * s.slots * s.head_dim);
    let new = noise(s.batch * s.tokens * s.kv_heads * s.head_dim, 4);
    let place = [5, 4, 1_000_000, 2];
    let mut f32s = vec![9.0; n];
    let mut f16s = vec![0x1234; n];
    let (mut q, mut scales) = (vec![77; n], vec![5.0; vectors]);
    cache_write(&s, &new, &place, StoredMut::F32(&mut f32s));
    cache_write(&s, &new, &place, StoredMut::F16(&mut f16s));
    cache_write(&s, &new, &place, StoredMut::Int8(&mut q, &mut scales));
    for b in 0..s.batch {
        for h in 0..s.kv_heads {
            for slot in 0..s.slots {
                let (start, count) = place_of(&place, b, s.tokens);
                let t = (0..count).find(|t| (start as usize + t) % s.slots == slot);
                let vector = (b * s.kv_heads + h) * s.slots + slot;
                let range = vector * s.head_dim..(vector + 1) * s.head_dim;
                let Some(t) = t else {
                    assert!(f32s[range.clone()].iter().all(|x| *x == 9.0) && scales[vector] == 5.0);
                    assert!(f16s[range.clone()].iter().all(|x| *x == 0x1234) && q[range].iter().all(|x| *x == 77));
                    continue;
                };
                let x = &new[((b * s.tokens + t) * s.kv_heads + h) * s.head_dim..][..s.head_dim];
                assert_eq!(&f32s[range.clone()], x);
                assert!(f16s[range.clone()].iter().zip(x).all(|(b, x)| *b == half::f32_to_f16(*x)));
                let (mut want, mut scale) = (vec![0; s.head_dim], [0.0]);
                crate::int8::quantize(1, s.head_dim, s.head_dim, x, &mut want, &mut scale);
                assert!(q[range] == want && scales[vector] == scale[0]);
            }
        }
    }
}

#[test]
fn a_text_from_its_start_gives_what_attention_without_a_cache_gives() {
    let (t, h, kv, d) = (70, 4, 2, 32);
    let s = CachedShape { tokens: t, heads: h, kv_heads: kv, slots: 90, head_dim: d, window: Some(33), ..SHAPE };
    let (q, k, v) = (noise(t * h * d, 5), noise(t * kv * d, 6), noise(t * kv * d, 7));
    let (mut keys, mut values) = (vec![0.0; 90 * kv * d], vec![0.0; 90 * kv * d]);
    let cache = CacheShape { batch: 1, tokens: t, kv_heads: kv, slots: 90, head_dim: d };
    cache_write(&cache, &k, &[0, t as i32], StoredMut::F32(&mut keys));
    cache_write(&cache, &v, &[0, t as i32], StoredMut::F32(&mut values));
    let (mut have, mut want, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; t * h]);
    cached_attention(&s, &q, Stored::F32(&keys), Stored::F32(&values), &[0, t as i32], &mut have);
    let whole = AttentionShape {
        batch: 1,
        queries: t,
        keys: t,
        heads: h,
        kv_heads: kv,
        head_dim: d,
        causal: true,
        window: s.window,
        scale: s.scale,
        slots: None,
    };
    attention_forward(&whole, &q, &k, &v, None, &mut want, &mut lse);
    assert!(have.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5));
}
