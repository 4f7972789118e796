//! Attention to a cache of keys and values: what generation runs, one token or a segment at a time. Time grows with the length of
//! the text, not with the room that the cache has.
//!
//! Layouts, row-major: `q`, `o` `[batch, tokens, heads, head_dim]`; keys and values `[batch, kv_heads, slots, head_dim]`, their
//! scales `[batch, kv_heads, slots]`; `place` `[batch, 2]`. All query heads of a key/value head, and all tokens of a call, share
//! one pass over its keys and values. Few queries read them in place and divide long texts among threads; many are computed by
//! tiles of scores. Both are the online form of softmax (Milakov and Gimelshein 2018).

mod few;
mod many;
mod stored;

use crate::math;
use crate::simd::{Isa, axpy};
use crate::threads::{SharedMut, par_blocks};
use std::cell::Cell;
use std::ops::Range;
pub use stored::Stored;

/// Positions beyond this one are taken for it, so that sums of positions fit 32 bits.
pub const LAST_POSITION: i64 = 1 << 30;

/// Up to this many query rows of a key/value head, keys and values are read in place: a transposed copy would cost more than it
/// saves.
const FEW_ROWS: usize = 8;
/// Query rows that share one transposed copy of a tile of keys.
const ROW_BLOCK: usize = 128;
/// Texts are cut into parts of so many positions where few rows, or some, attend. Parts do not depend on the number of threads, nor
/// on what else is in the batch.
const FEW_PART: usize = 256;
const SOME_PART: usize = 1024;
/// With more rows than this, rows alone are work enough.
const SOME_ROWS: usize = 64;

/// Sizes and mask. With a row's place (start, count) and last = start + count - 1, slot s holds the position last - ((last - s) mod
/// slots); token t < count stands at i = start + t and sees positions in 0 ..= i, of which `window` keeps the last so many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CachedShape {
    pub batch: usize,
    /// At most `slots`.
    pub tokens: usize,
    pub heads: usize,
    /// Divides `heads`; query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    pub slots: usize,
    pub head_dim: usize,
    pub window: Option<usize>,
    /// Factor on the scores `q . k`.
    pub scale: f32,
    /// Scores x become `softcap * tanh(x / softcap)`.
    pub softcap: Option<f32>,
}

/// Where the new tokens of a batch row stand: (position of the first, how many there are). Start is taken into 0 ..=
/// [`LAST_POSITION`], count into 0 ..= `tokens`.
pub fn place_of(place: &[i32], b: usize, tokens: usize) -> (i64, usize) {
    let (start, count) = (i64::from(place[2 * b]), i64::from(place[2 * b + 1]));
    (start.clamp(0, LAST_POSITION), count.clamp(0, tokens as i64) as usize)
}

impl CachedShape {
    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements of `q` and `o`.
    pub fn q_len(&self) -> usize {
        self.batch * self.tokens * self.heads * self.head_dim
    }

    /// Vectors of a cache.
    pub fn vectors(&self) -> usize {
        self.batch * self.kv_heads * self.slots
    }

    /// The positions that token `t` of a row at `place` sees.
    #[inline(always)]
    pub fn visible(&self, place: (i64, usize), t: usize) -> Range<i64> {
        let (end, position) = (place.0 + place.1 as i64, place.0 + t as i64);
        let window = self.window.map_or(i64::MAX / 4, |w| w.min(1 << 40) as i64);
        let low = (end - self.slots as i64).max(position - window + 1).max(0);
        low..(position + 1).max(low)
    }

    fn check(&self, q: &[f32], k: &Stored, v: &Stored, place: &[i32], o: &[f32]) {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "cached attention: {} query heads are not a multiple of {} key/value heads",
            self.heads,
            self.kv_heads
        );
        assert!(self.tokens <= self.slots, "cached attention: {} tokens in {} slots", self.tokens, self.slots);
        assert!(self.head_dim > 0, "cached attention: head_dim must be at least 1");
        assert_eq!(q.len(), self.q_len(), "cached attention: q must be [batch, tokens, heads, head_dim]");
        assert_eq!(o.len(), self.q_len(), "cached attention: o must be [batch, tokens, heads, head_dim]");
        assert_eq!(place.len(), 2 * self.batch, "cached attention: place must be [batch, 2]");
        let alike = std::mem::discriminant(k) == std::mem::discriminant(v);
        assert!(alike, "cached attention: keys and values must be stored alike");
        k.check(self.vectors(), self.head_dim);
        v.check(self.vectors(), self.head_dim);
    }
}

/// Query rows of one key/value head and the positions of the text that they are held against here: an item of work.
struct Work<'a> {
    shape: &'a CachedShape,
    b: usize,
    kv_head: usize,
    place: (i64, usize),
    /// Rows of the key/value head, token by token and in each by query head.
    rows: Range<usize>,
    positions: Range<i64>,
    q: &'a [f32],
    k: Stored<'a>,
    v: Stored<'a>,
}

/// A tile of positions that lie one after another in the cache.
#[derive(Clone, Copy)]
struct Tile {
    first: i64,
    /// Vector of the first position, counted over the whole cache.
    vector: usize,
    len: usize,
}

impl Work<'_> {
    /// Offset of row `row` in q and o.
    #[inline(always)]
    fn row_at(&self, row: usize) -> usize {
        let (s, group) = (self.shape, self.shape.group());
        ((self.b * s.tokens + row / group) * s.heads + self.kv_head * group + row % group) * s.head_dim
    }

    /// The positions of `self.positions` that row `row` sees.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<i64> {
        let seen = self.shape.visible(self.place, row / self.shape.group());
        seen.start.max(self.positions.start)..seen.end.min(self.positions.end)
    }

    /// The part of `tile` that row `row` sees, counted from the tile's first key.
    #[inline(always)]
    fn visible_in(&self, row: usize, tile: &Tile) -> Range<usize> {
        let seen = self.visible(row);
        let inside = |p: i64| (p - tile.first).clamp(0, tile.len as i64) as usize;
        inside(seen.start)..inside(seen.end).max(inside(seen.start))
    }

    /// The positions in tiles of at most `most`.
    #[inline(always)]
    fn tiles(&self, most: usize) -> impl Iterator<Item = Tile> {
        let slots = self.shape.slots as i64;
        let base = (self.b * self.shape.kv_heads + self.kv_head) * self.shape.slots;
        let (mut at, end) = (self.positions.start, self.positions.end);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (first, slot) = (at, at % slots);
            let len = (end - at).min(slots - slot).min(most as i64);
            at += len;
            Some(Tile { first, vector: base + slot as usize, len: len as usize })
        })
    }
}

/// `o = softmax(softcap(scale q k^T) + mask) v` per head. Tokens from `count` on give zeros.
///
/// # Panics
/// If a slice does not have its shape's length, `heads` is not a multiple of `kv_heads`, or there are more tokens than slots.
pub fn cached_attention(shape: &CachedShape, q: &[f32], k: Stored, v: Stored, place: &[i32], o: &mut [f32]) {
    shape.check(q, &k, &v, place, o);
    let (d, group) = (shape.head_dim, shape.group());
    let places: Vec<(i64, usize)> = (0..shape.batch).map(|b| place_of(place, b, shape.tokens)).collect();
    for (b, &(_, count)) in places.iter().enumerate() {
        let row = shape.heads * d;
        o[(b * shape.tokens + count) * row..(b + 1) * shape.tokens * row].fill(0.0);
    }
    let span = |place: (i64, usize)| shape.visible(place, 0).start..place.0 + place.1 as i64;
    let length = |place: (i64, usize)| if place.1 == 0 { 0 } else { (span(place).end - span(place).start) as usize };
    let most_rows = group * places.iter().map(|p| p.1).max().unwrap_or(0);
    let longest = places.iter().map(|p| length(*p)).max().unwrap_or(0);
    if most_rows == 0 {
        return;
    }
    let part = match most_rows {
        rows if rows <= FEW_ROWS => FEW_PART,
        rows if rows <= SOME_ROWS => SOME_PART,
        _ => longest,
    };
    let (parts, blocks) = (longest.div_ceil(part), most_rows.div_ceil(ROW_BLOCK));
    let (block_rows, heads) = (most_rows.min(ROW_BLOCK), shape.batch * shape.kv_heads);
    // Few rows wait for keys and values, which the weights read since have pushed out of the caches.
    let waiting = if block_rows <= FEW_ROWS { 3 } else { 0 };
    let cost = part.min(longest) * d * (block_rows + 1 + 2 * waiting) / 4;
    // With one part rows are finished where they are computed; with several, which all have one block, they are put aside.
    let stride = block_rows * (d + 2);
    let mut memory = if parts > 1 { MEMORY.take() } else { Vec::new() };
    if parts > 1 && memory.len() < heads * parts * stride {
        memory.resize(heads * parts * stride, 0.0);
    }
    let (partials, out) = (SharedMut::new(&mut memory), SharedMut::new(o));
    par_blocks(heads * blocks * parts, 1, cost.max(1), |item, _| {
        let (head, block, n) = (item / parts / blocks, item / parts % blocks, item % parts);
        let (b, kv_head) = (head / shape.kv_heads, head % shape.kv_heads);
        let place = places[b];
        let rows = block * ROW_BLOCK..((block + 1) * ROW_BLOCK).min(place.1 * group);
        let all = span(place);
        let from = all.start + (n * part) as i64;
        // Rows of this block see no further than its last token, and no less far back than its first.
        let last = place.0 + rows.end.div_ceil(group) as i64;
        let first = shape.visible(place, rows.start / group).start;
        let positions = from.max(first)..(from + part as i64).min(all.end).min(last);
        if rows.is_empty() || positions.is_empty() {
            return;
        }
        let work = Work { shape, b, kv_head, place, rows, positions, q, k, v };
        let finish = |row: usize, acc: &[f32], [max, sum]: [f32; 2]| {
            if parts > 1 {
                let at = item * stride;
                // SAFETY: items own disjoint parts of the memory.
                let part = unsafe { partials.slice(at..at + stride) };
                let (sums, ends) = part.split_at_mut(block_rows * d);
                sums[row * d..][..d].copy_from_slice(acc);
                ends[2 * row..][..2].copy_from_slice(&[max, sum]);
                return;
            }
            let at = work.row_at(row);
            // SAFETY: items own disjoint rows of o.
            write(unsafe { out.slice(at..at + d) }, acc, sum);
        };
        if most_rows <= FEW_ROWS { few::run(&work, finish) } else { many::run(&work, finish) }
    });
    if parts > 1 {
        par_blocks(heads, 1, block_rows * parts * d, |head, _| {
            let (b, kv_head) = (head / shape.kv_heads, head % shape.kv_heads);
            let place = places[b];
            let live = length(place).div_ceil(part);
            // SAFETY: only read from here on.
            let all = unsafe { partials.slice(head * parts * stride..(head * parts + live) * stride) };
            let work = Work { shape, b, kv_head, place, rows: 0..place.1 * group, positions: 0..0, q, k, v };
            for row in work.rows.clone() {
                let at = work.row_at(row);
                // SAFETY: rows are disjoint.
                merge(all, stride, block_rows * d, row, d, unsafe { out.slice(at..at + d) });
            }
        });
        MEMORY.set(memory);
    }
}

thread_local! {
    /// What parts of texts gave, before it is merged.
    static MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Scores x become `most * tanh(x / most)`.
#[inline(always)]
fn cap<V: Isa>(scores: &mut [f32], most: f32) {
    let inverse = 1.0 / most;
    for x in scores {
        *x = most * math::tanh::<V>(*x * inverse);
    }
}

/// A row that saw nothing gives zeros.
#[inline(always)]
fn write(out: &mut [f32], acc: &[f32], sum: f32) {
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for (o, a) in out.iter_mut().zip(acc) {
        *o = a * inverse;
    }
}

crate::multiversion! {
    /// Adds up what the parts of a text, each `stride` floats, gave for a row: their ends follow `sums` floats of weighted sums.
    fn merge<V>(parts: &[f32], stride: usize, sums: usize, row: usize, d: usize, out: &mut [f32]) {
        let end = |part: &[f32]| [part[sums + 2 * row], part[sums + 2 * row + 1]];
        let max = parts.chunks_exact(stride).fold(f32::MIN, |m, p| m.max(end(p)[0]));
        out.fill(0.0);
        let mut total = 0.0;
        for part in parts.chunks_exact(stride) {
            let [own, sum] = end(part);
            let weight = math::exp::<V>(own - max);
            total = V::fma(weight, sum, total);
            axpy::<V>(weight, &part[row * d..][..d], out);
        }
        let inverse = if total == 0.0 { 0.0 } else { 1.0 / total };
        out.iter_mut().for_each(|o| *o *= inverse);
    }
}

/// What an item does with its rows when it has them: (row of the item's key/value head, weighted sums, [max, sum]).
trait Finish: Fn(usize, &[f32], [f32; 2]) {}
impl<F: Fn(usize, &[f32], [f32; 2])> Finish for F {}
