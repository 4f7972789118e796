//! Gradients of [`crate::attention`]: tiles of probabilities are recomputed from `lse` (Dao et al. 2022, algorithm 4).

use std::ops::Range;

use crate::attention::{AttentionShape, KEY_TILE, QUERY_TILE, take, with_scratch};
use crate::register::with_register;
use crate::simd::dot;
use crate::threads::{SharedMut, par_blocks};
use crate::tile::{Left, matmul, pack, pack_transposed, pad_cols, pad_rows};
use crate::vector::{Vector, exp};

/// Gradients `dq`, `dk`, `dv` of [`attention_forward`](crate::attention::attention_forward) for the gradient `d_o` of its
/// output; `o` and `lse` are what it gave. All are overwritten. Each key/value head of each batch row is one item of work,
/// so the sums over its query heads need no atomics and have a fixed order.
///
/// # Panics
/// If a slice does not have its shape's length, or `heads` is not a multiple of `kv_heads`.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    o: &[f32],
    lse: &[f32],
    key_range: Option<&[i32]>,
    d_o: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    shape.check(q, k, v, key_range, o, lse);
    assert_eq!(d_o.len(), shape.q_len(), "attention: d_o must be [batch, queries, heads, head_dim]");
    assert_eq!(dq.len(), shape.q_len(), "attention: dq must be [batch, queries, heads, head_dim]");
    assert_eq!(dk.len(), shape.kv_len(), "attention: dk must be [batch, keys, kv_heads, head_dim]");
    assert_eq!(dv.len(), shape.kv_len(), "attention: dv must be [batch, keys, kv_heads, head_dim]");
    let (dq, dk, dv) = (SharedMut::new(dq), SharedMut::new(dk), SharedMut::new(dv));
    let cost = shape.group() * shape.queries * shape.keys * shape.head_dim / 4;
    par_blocks(shape.batch * shape.kv_heads, 1, cost.max(1), |item, _| {
        let (b, kv_head) = (item / shape.kv_heads, item % shape.kv_heads);
        let valid = shape.valid_keys(key_range, b);
        let work = Work { shape, b, kv_head, valid: &valid, q, k, v, o, lse, d_o, dq: &dq, dk: &dk, dv: &dv };
        let width = pad_cols(shape.head_dim);
        let len = (5 * KEY_TILE + 3 * QUERY_TILE) * width + 2 * QUERY_TILE * KEY_TILE + shape.group() * shape.queries;
        with_scratch(len, |scratch| kv_head_backward(&work, scratch));
    });
}

/// One item of the backward pass: key/value head `kv_head` of batch row `b`, with all query heads that read it.
struct Work<'a> {
    shape: &'a AttentionShape,
    b: usize,
    kv_head: usize,
    valid: &'a Range<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    o: &'a [f32],
    lse: &'a [f32],
    d_o: &'a [f32],
    dq: &'a SharedMut<'a, f32>,
    dk: &'a SharedMut<'a, f32>,
    dv: &'a SharedMut<'a, f32>,
}

/// `p = exp(score - lse)` in place of the score and `ds = p (dp - delta)` in place of `dp`, 0 where hidden. Both are a whole number
/// of vectors.
#[inline(always)]
fn probabilities<R: Vector>(scores: &mut [f32], dp: &mut [f32], seen: &Range<usize>, lse: f32, delta: f32) {
    let end = seen.end.next_multiple_of(R::WIDTH);
    let (s, d) = (scores[..end].as_mut_ptr(), dp[..end].as_mut_ptr());
    let (lse, delta) = (R::splat(lse), R::splat(delta));
    for j in (0..end).step_by(R::WIDTH) {
        // SAFETY: the first `end` floats of each.
        unsafe {
            let p = exp(R::load(s.add(j)).sub(lse));
            p.store(s.add(j));
            p.mul(R::load(d.add(j)).sub(delta)).store(d.add(j));
        }
    }
    for hidden in [0..seen.start, seen.end..scores.len()] {
        scores[hidden.clone()].fill(0.0);
        dp[hidden].fill(0.0);
    }
}

crate::multiversion! {
    fn kv_head_backward<V>(work: &Work<'_>, scratch: &mut [f32]) {
        let Work { shape, b, kv_head, valid, q, k, v, o, lse, d_o, dq, dk, dv } = *work;
        let (d, width, group) = (shape.head_dim, pad_cols(shape.head_dim), shape.group());
        let mut rest = scratch;
        let [keys, keys_t, values_t, dk_tile, dv_tile] = std::array::from_fn(|_| take(&mut rest, KEY_TILE * width));
        let [queries, d_out, dq_tile] = std::array::from_fn(|_| take(&mut rest, QUERY_TILE * width));
        let scores = take(&mut rest, QUERY_TILE * KEY_TILE);
        let dp = take(&mut rest, QUERY_TILE * KEY_TILE);
        let delta = take(&mut rest, group * shape.queries);

        for g in 0..group {
            for i in 0..shape.queries {
                let at = shape.q_at(b, i, kv_head * group + g);
                delta[g * shape.queries + i] = dot::<V>(&o[at..at + d], &d_o[at..at + d]);
                // SAFETY: items own disjoint heads of dq.
                unsafe { dq.slice(at..at + d) }.fill(0.0);
            }
        }
        for tile_start in (0..shape.keys).step_by(KEY_TILE) {
            let tile = tile_start..(tile_start + KEY_TILE).min(shape.keys);
            let at = shape.kv_at(b, tile.start, kv_head);
            let (columns, key_rows) = (pad_cols(tile.len()), pad_rows(tile.len()));
            pack_transposed::<V>(&k[at..], shape.kv_stride(), tile.len(), d, columns, keys_t);
            pack_transposed::<V>(&v[at..], shape.kv_stride(), tile.len(), d, columns, values_t);
            // The scale goes into this copy (for dq) and into the queries (for the scores and dk).
            pack(&k[at..], shape.kv_stride(), tile.len(), d, shape.scale, keys);
            dk_tile[..key_rows * width].fill(0.0);
            dv_tile[..key_rows * width].fill(0.0);
            for g in 0..group {
                let h = kv_head * group + g;
                for first in (0..shape.queries).step_by(QUERY_TILE) {
                    let part = first..(first + QUERY_TILE).min(shape.queries);
                    let seen = shape.visible_to_any(&part, valid);
                    if seen.start >= tile.end || seen.end <= tile.start {
                        continue;
                    }
                    let at = shape.q_at(b, first, h);
                    let (rows, padded) = (part.len(), pad_rows(part.len()));
                    pack(&q[at..], shape.q_stride(), rows, d, shape.scale, queries);
                    pack(&d_o[at..], shape.q_stride(), rows, d, 1.0, d_out);
                    // Keys past the last one that these rows see take no part.
                    let near = seen.end.min(tile.end) - tile.start;
                    let computed = pad_cols(near);
                    let size = [padded, computed, d];
                    // SAFETY: the left operand is a whole packed tile; V is the dispatched instruction set.
                    unsafe {
                        matmul::<V>(size, Left::rows(queries, width), keys_t, columns, scores, columns, false);
                        matmul::<V>(size, Left::rows(d_out, width), values_t, columns, dp, columns, false);
                    }
                    for (r, i) in part.clone().enumerate() {
                        let score_row = &mut scores[r * columns..][..computed];
                        let dp_row = &mut dp[r * columns..][..computed];
                        let seen = shape.visible_in_tile(i, valid, &tile);
                        if seen.is_empty() {
                            score_row.fill(0.0);
                            dp_row.fill(0.0);
                        } else {
                            let row_lse = lse[(b * shape.heads + h) * shape.queries + i];
                            with_register!(V, probabilities(score_row, dp_row, &seen, row_lse, delta[g * shape.queries + i]));
                        }
                    }
                    let size = [pad_rows(near), width, rows];
                    // SAFETY: scores and dp hold `rows` rows of `columns` floats, `computed` of them fresh, and as above.
                    unsafe {
                        matmul::<V>(size, Left::transposed(scores, columns), d_out, width, dv_tile, width, true);
                        matmul::<V>(size, Left::transposed(dp, columns), queries, width, dk_tile, width, true);
                        let size = [padded, width, near];
                        matmul::<V>(size, Left::rows(dp, columns), keys, width, dq_tile, width, false);
                    }
                    for (r, i) in part.enumerate() {
                        let at = shape.q_at(b, i, h);
                        // SAFETY: items own disjoint heads of dq.
                        let out = unsafe { dq.slice(at..at + d) };
                        for (out, x) in out.iter_mut().zip(&dq_tile[r * width..][..d]) {
                            *out += x;
                        }
                    }
                }
            }
            for (r, j) in tile.enumerate() {
                let at = shape.kv_at(b, j, kv_head);
                // SAFETY: items own disjoint heads of dk and dv.
                unsafe {
                    dk.slice(at..at + d).copy_from_slice(&dk_tile[r * width..][..d]);
                    dv.slice(at..at + d).copy_from_slice(&dv_tile[r * width..][..d]);
                }
            }
        }
    }
}
