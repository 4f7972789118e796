//! Exact softmax attention in the online form (Milakov and Gimelshein 2018; Dao et al. 2022, FlashAttention): tiles of
//! scores live in cache, and no queries x keys matrix is ever stored. The backward pass is in [`crate::attention_grad`].
//!
//! Layouts, row-major: `q`, `o` `[batch, queries, heads, head_dim]`; `k`, `v` `[batch, keys, kv_heads, head_dim]`;
//! `lse` `[batch, heads, queries]`, the natural logarithm of each row's softmax denominator.

use std::cell::RefCell;
use std::ops::Range;

use crate::math;
use crate::register::with_register;
use crate::simd::{LANES, axpy, dot};
use crate::threads::{SharedMut, par_blocks};
use crate::tile::{Left, matmul, pack, pack_transposed, pad_cols, pad_rows};
use crate::vector::{Vector, exp};

/// Query rows of a tile of scores.
pub(crate) const QUERY_TILE: usize = 16;
/// Keys of a tile of scores.
pub(crate) const KEY_TILE: usize = 64;
/// Query rows that share one transposed copy of a tile of keys.
const QUERY_BLOCK: usize = 256;
/// Below this many query rows (decoding), keys are read in place: a transposed copy would cost more than it saves.
const FEW_QUERIES: usize = 8;

/// What `lse` holds for a row that sees no key.
pub const EMPTY_LSE: f32 = -1.0e30;

/// Keys that are snapshots of every `every`-th position, kept in a ring: the key in row `r` is slot `first_slot + r` and may be
/// read at position `t` when `every * slot + ready <= t`, as long as it is one of the last `capacity` such slots. Beside them
/// every query sees a null slot of score 0 and value 0, so that a query without a key gives zeros and `lse` 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slots {
    /// At least 1.
    pub every: usize,
    pub capacity: usize,
    /// Positions between a slot's first token and its first reader.
    pub ready: usize,
    /// Position of query 0.
    pub position: i64,
    /// Slot of row 0; rows of slots below 0 do not exist.
    pub first_slot: i64,
}

impl Slots {
    /// First and one past the last slot that are read at `position`.
    #[inline(always)]
    pub fn readable(&self, position: i64) -> (i64, i64) {
        let since = position - self.ready as i64;
        let available = if since < 0 { 0 } else { since / self.every as i64 + 1 };
        ((available - self.capacity.min(1 << 40) as i64).max(0), available)
    }
}

/// Sizes and mask of an attention. Query `i` stands at absolute position `i + keys - queries`, key `j` at `j`; with `slots`,
/// these say where both stand and what is seen, and `causal` and `window` do nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    /// Divides `heads`; query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Keys after the query's position are hidden.
    pub causal: bool,
    /// Only keys nearer than this many positions are seen: `p - w < j <= p` when causal, `|p - j| < w` when not.
    pub window: Option<usize>,
    /// Factor on the scores `q . k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    pub slots: Option<Slots>,
}

impl AttentionShape {
    /// Elements of `q` and `o`.
    pub fn q_len(&self) -> usize {
        self.batch * self.queries * self.heads * self.head_dim
    }

    /// Elements of `k` and `v`.
    pub fn kv_len(&self) -> usize {
        self.batch * self.keys * self.kv_heads * self.head_dim
    }

    /// Elements of `lse`.
    pub fn lse_len(&self) -> usize {
        self.batch * self.heads * self.queries
    }

    /// The running maximum and sum of a row before its first key: of the null slot, where there is one.
    fn start(&self) -> (f32, f32) {
        if self.slots.is_some() { (0.0, 1.0) } else { (f32::MIN, 0.0) }
    }

    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(crate) fn check(&self, q: &[f32], k: &[f32], v: &[f32], key_range: Option<&[i32]>, o: &[f32], lse: &[f32]) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "attention: {} query heads are not a multiple of {} key/value heads",
            self.heads,
            self.kv_heads
        );
        assert!(self.head_dim > 0, "attention: head_dim must be at least 1");
        assert_eq!(q.len(), self.q_len(), "attention: q must be [batch, queries, heads, head_dim]");
        assert_eq!(k.len(), self.kv_len(), "attention: k must be [batch, keys, kv_heads, head_dim]");
        assert_eq!(v.len(), self.kv_len(), "attention: v must be [batch, keys, kv_heads, head_dim]");
        assert_eq!(o.len(), self.q_len(), "attention: o must be [batch, queries, heads, head_dim]");
        assert_eq!(lse.len(), self.lse_len(), "attention: lse must be [batch, heads, queries]");
        if let Some(r) = key_range {
            assert_eq!(r.len(), 2 * self.batch, "attention: key_range must be [batch, 2]");
        }
    }

    /// The valid keys of batch row `b`, inside `0..keys`.
    pub(crate) fn valid_keys(&self, key_range: Option<&[i32]>, b: usize) -> Range<usize> {
        match key_range {
            Some(r) => {
                let clamp = |x: i32| (x.max(0) as usize).min(self.keys);
                clamp(r[2 * b])..clamp(r[2 * b + 1])
            }
            None => 0..self.keys,
        }
    }

    /// First and one past last key that query `i` sees; both ends grow with `i`. None are seen where the range is empty.
    #[inline(always)]
    pub(crate) fn visible(&self, i: usize, valid: &Range<usize>) -> (i64, i64) {
        if let Some(slots) = &self.slots {
            let (low, high) = slots.readable(slots.position + i as i64);
            let row =
                |slot: i64| (slot - slots.first_slot).clamp(valid.start as i64, valid.end.max(valid.start) as i64);
            return (row(low), row(high));
        }
        let position = i as i64 + self.keys as i64 - self.queries as i64;
        let (mut lo, mut hi) = (valid.start as i64, valid.end as i64);
        if self.causal {
            hi = hi.min(position + 1);
        }
        if let Some(w) = self.window {
            let w = w.min(i64::MAX as usize / 4) as i64;
            lo = lo.max(position - w + 1);
            if !self.causal {
                hi = hi.min(position + w);
            }
        }
        (lo, hi)
    }

    /// The keys that any of `rows` may see.
    #[inline(always)]
    pub(crate) fn visible_to_any(&self, rows: &Range<usize>, valid: &Range<usize>) -> Range<usize> {
        let lo = self.visible(rows.start, valid).0.max(0) as usize;
        let hi = self.visible(rows.end - 1, valid).1.max(0) as usize;
        lo..hi.max(lo)
    }

    /// The part of key tile `tile` that query `i` sees, counted from the tile's first key.
    #[inline(always)]
    pub(crate) fn visible_in_tile(&self, i: usize, valid: &Range<usize>, tile: &Range<usize>) -> Range<usize> {
        let (lo, hi) = self.visible(i, valid);
        let lo = lo.clamp(tile.start as i64, tile.end as i64) as usize - tile.start;
        let hi = hi.clamp(tile.start as i64, tile.end as i64) as usize - tile.start;
        lo..hi.max(lo)
    }

    /// Offset of the first element of head `h` at query `i` in `q`.
    #[inline(always)]
    pub(crate) fn q_at(&self, b: usize, i: usize, h: usize) -> usize {
        ((b * self.queries + i) * self.heads + h) * self.head_dim
    }

    /// Offset of the first element of key/value head `h` at key `j` in `k`.
    #[inline(always)]
    pub(crate) fn kv_at(&self, b: usize, j: usize, h: usize) -> usize {
        ((b * self.keys + j) * self.kv_heads + h) * self.head_dim
    }

    pub(crate) fn q_stride(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(crate) fn kv_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Runs `f` on this thread's scratch floats, which keep whatever the last use left in them.
pub(crate) fn with_scratch(len: usize, f: impl FnOnce(&mut [f32])) {
    thread_local!(static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    SCRATCH.with_borrow_mut(|s| {
        if s.len() < len {
            s.resize(len, 0.0);
        }
        f(&mut s[..len]);
    });
}

/// Cuts `n` floats off the front of `buffer`.
pub(crate) fn take<'a>(buffer: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (head, tail) = std::mem::take(buffer).split_at_mut(n);
    *buffer = tail;
    head
}

/// `o = softmax(scale q k^T + mask) v` per head, and the rows' `lse`.
///
/// `key_range [batch, 2]` gives each batch row's first and one-past-last valid key (padding on either side); None makes
/// all valid. A row that sees no key gets `o = 0` and `lse = `[`EMPTY_LSE`].
///
/// # Panics
/// If a slice does not have its shape's length, or `heads` is not a multiple of `kv_heads`.
pub fn attention_forward(
    shape: &AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    key_range: Option<&[i32]>,
    o: &mut [f32],
    lse: &mut [f32],
) {
    shape.check(q, k, v, key_range, o, lse);
    let blocks = shape.queries.div_ceil(QUERY_BLOCK);
    let (o, lse) = (SharedMut::new(o), SharedMut::new(lse));
    let cost = QUERY_BLOCK.min(shape.queries) * shape.keys * shape.head_dim / 8;
    par_blocks(shape.batch * shape.heads * blocks, 1, cost.max(1), |item, _| {
        let (bh, block) = (item / blocks, item % blocks);
        let (b, h) = (bh / shape.heads, bh % shape.heads);
        let rows = block * QUERY_BLOCK..((block + 1) * QUERY_BLOCK).min(shape.queries);
        let valid = shape.valid_keys(key_range, b);
        let width = pad_cols(shape.head_dim);
        let work = Work { shape, b, h, rows: &rows, valid: &valid, q, k, v, o: &o, lse: &lse };
        if shape.queries < FEW_QUERIES {
            with_scratch(KEY_TILE + width, |scratch| few_queries(&work, scratch));
        } else {
            let len = 2 * QUERY_BLOCK * (width + 1) + 2 * KEY_TILE * width + QUERY_TILE * KEY_TILE;
            with_scratch(len, |scratch| query_block(&work, scratch));
        }
    });
}

/// One item of the forward pass: query rows `rows` of head `h` in batch row `b`.
struct Work<'a> {
    shape: &'a AttentionShape,
    b: usize,
    h: usize,
    rows: &'a Range<usize>,
    valid: &'a Range<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    o: &'a SharedMut<'a, f32>,
    lse: &'a SharedMut<'a, f32>,
}

impl Work<'_> {
    /// Writes row `i`: the weighted sum `acc`, its denominator and the greatest score.
    #[inline(always)]
    fn finish(&self, i: usize, acc: &[f32], sum: f32, max: f32) {
        let (s, d) = (self.shape, self.shape.head_dim);
        let at = s.q_at(self.b, i, self.h);
        // SAFETY: items own disjoint rows of o and lse.
        let (out, lse) = unsafe {
            let l = (self.b * s.heads + self.h) * s.queries + i;
            (self.o.slice(at..at + d), self.lse.slice(l..l + 1))
        };
        if sum == 0.0 {
            out.fill(0.0);
            lse[0] = EMPTY_LSE;
        } else {
            let inverse = 1.0 / sum;
            for (o, a) in out.iter_mut().zip(acc) {
                *o = a * inverse;
            }
            lse[0] = max + sum.ln();
        }
    }
}

/// Turns a row of scores into `exp(score - max)`, hidden ones into 0, for the greater of the row's and the running
/// maximum; returns `(max, sum)`. `row` is a whole number of vectors, `seen` the visible part of it, which is not empty.
#[inline(always)]
pub(crate) fn exponentiate<R: Vector>(row: &mut [f32], seen: &Range<usize>, max: f32) -> (f32, f32) {
    row[..seen.start].fill(f32::MIN);
    let (whole, end) = (seen.end / R::WIDTH * R::WIDTH, seen.end.next_multiple_of(R::WIDTH));
    row[end..].fill(0.0);
    let p = row[..end].as_mut_ptr();
    let (mut greatest, mut sum) = (R::splat(f32::MIN), R::splat(0.0));
    // SAFETY: (whole block) the first `end` floats of the row.
    unsafe {
        for j in (0..whole).step_by(R::WIDTH) {
            greatest = R::load(p.add(j)).max(greatest);
        }
        if whole < end {
            let last = R::load_partial(p.add(whole), seen.end - whole, f32::MIN);
            last.store(p.add(whole));
            greatest = last.max(greatest);
        }
        let max = greatest.greatest().max(max);
        for j in (0..end).step_by(R::WIDTH) {
            let e = exp(R::load(p.add(j)).sub(R::splat(max)));
            e.store(p.add(j));
            sum = sum.add(e);
        }
        (max, sum.sum())
    }
}

crate::multiversion! {
    fn query_block<V>(work: &Work<'_>, scratch: &mut [f32]) {
        let Work { shape, b, h, rows, valid, q, k, v, .. } = *work;
        let (d, width) = (shape.head_dim, pad_cols(shape.head_dim));
        let kv_head = h / shape.group();
        let mut rest = scratch;
        let queries = take(&mut rest, QUERY_BLOCK * width);
        let acc = take(&mut rest, QUERY_BLOCK * width);
        let max = take(&mut rest, QUERY_BLOCK);
        let sum = take(&mut rest, QUERY_BLOCK);
        let keys_t = take(&mut rest, KEY_TILE * width);
        let values = take(&mut rest, KEY_TILE * width);
        let scores = take(&mut rest, QUERY_TILE * KEY_TILE);
        pack(&q[shape.q_at(b, rows.start, h)..], shape.q_stride(), rows.len(), d, shape.scale, queries);
        acc[..pad_rows(rows.len()) * width].fill(0.0);
        let (no_max, no_sum) = shape.start();
        max[..rows.len()].fill(no_max);
        sum[..rows.len()].fill(no_sum);

        let all = shape.visible_to_any(rows, valid);
        for tile_index in all.start / KEY_TILE..all.end.div_ceil(KEY_TILE) {
            let tile = tile_index * KEY_TILE..((tile_index + 1) * KEY_TILE).min(shape.keys);
            let at = shape.kv_at(b, tile.start, kv_head);
            let columns = pad_cols(tile.len());
            pack_transposed::<V>(&k[at..], shape.kv_stride(), tile.len(), d, columns, keys_t);
            pack(&v[at..], shape.kv_stride(), tile.len(), d, 1.0, values);
            for first in (rows.start..rows.end).step_by(QUERY_TILE) {
                let part = first..(first + QUERY_TILE).min(rows.end);
                let seen = shape.visible_to_any(&part, valid);
                if seen.start >= tile.end || seen.end <= tile.start {
                    continue;
                }
                let local = first - rows.start;
                let padded = pad_rows(part.len());
                // Keys past the last one that these rows see need no scores.
                let near = seen.end.min(tile.end) - tile.start;
                let computed = pad_cols(near);
                let left = Left::rows(&queries[local * width..][..padded * width], width);
                // SAFETY: `left` is a whole packed tile; V is the dispatched instruction set.
                unsafe { matmul::<V>([padded, computed, d], left, keys_t, columns, scores, columns, false) };
                for i in part.clone() {
                    let row = &mut scores[(i - first) * columns..][..computed];
                    let seen = shape.visible_in_tile(i, valid, &tile);
                    if seen.is_empty() {
                        row.fill(0.0);
                        continue;
                    }
                    let r = i - rows.start;
                    let (new_max, row_sum) = with_register!(V, exponentiate(row, &seen, max[r]));
                    if new_max != max[r] {
                        let shrink = math::exp::<V>(max[r] - new_max);
                        sum[r] *= shrink;
                        for x in &mut acc[r * width..][..width] {
                            *x *= shrink;
                        }
                        max[r] = new_max;
                    }
                    sum[r] += row_sum;
                }
                let left = Left::rows(&scores[..padded * columns], columns);
                let out = &mut acc[local * width..][..padded * width];
                // SAFETY: as above.
                unsafe { matmul::<V>([padded, width, near], left, values, width, out, width, true) };
            }
        }
        for i in rows.clone() {
            let r = i - rows.start;
            work.finish(i, &acc[r * width..][..d], sum[r], max[r]);
        }
    }

    fn few_queries<V>(work: &Work<'_>, scratch: &mut [f32]) {
        let Work { shape, b, h, rows, valid, q, k, v, .. } = *work;
        let d = shape.head_dim;
        let kv_head = h / shape.group();
        let (scores, acc) = scratch.split_at_mut(KEY_TILE);
        let acc = &mut acc[..d];
        for i in rows.clone() {
            let query = &q[shape.q_at(b, i, h)..][..d];
            acc.fill(0.0);
            let (mut max, mut sum) = shape.start();
            let (lo, hi) = shape.visible(i, valid);
            for first in (lo.max(0)..hi).step_by(KEY_TILE) {
                let (first, count) = (first as usize, (hi - first).min(KEY_TILE as i64) as usize);
                let row = &mut scores[..count.next_multiple_of(LANES)];
                for (j, x) in row[..count].iter_mut().enumerate() {
                    *x = shape.scale * dot::<V>(query, &k[shape.kv_at(b, first + j, kv_head)..][..d]);
                }
                let (new_max, row_sum) = with_register!(V, exponentiate(row, &(0..count), max));
                if new_max != max {
                    let shrink = math::exp::<V>(max - new_max);
                    sum *= shrink;
                    acc.iter_mut().for_each(|x| *x *= shrink);
                    max = new_max;
                }
                sum += row_sum;
                for (j, &p) in row[..count].iter().enumerate() {
                    axpy::<V>(p, &v[shape.kv_at(b, first + j, kv_head)..][..d], acc);
                }
            }
            work.finish(i, acc, sum, max);
        }
    }
}
