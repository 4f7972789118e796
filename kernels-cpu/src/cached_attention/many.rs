//! Many query rows: tiles of scores as products of small matrices, as in [`crate::attention`]. Rows of all query heads that share
//! a key/value head go through its keys together.

use super::stored::Stored;
use super::{Finish, ROW_BLOCK, Tile, Work, cap};
use crate::attention::{KEY_TILE, QUERY_TILE, exponentiate, take, with_scratch};
use crate::half;
use crate::math;
use crate::register::with_register;
use crate::tile::{Left, matmul, pack_transposed, pad_cols, pad_rows};

/// Holds the rows of `work` against its positions.
pub(super) fn run(work: &Work, finish: impl Finish) {
    let (d, rows) = (work.shape.head_dim, work.rows.len());
    debug_assert!(rows <= ROW_BLOCK);
    let width = pad_cols(d);
    let len = 2 * pad_rows(rows) * width + 3 * KEY_TILE * width + QUERY_TILE * KEY_TILE;
    with_scratch(len, |scratch| {
        let mut rest = scratch;
        let acc = take(&mut rest, pad_rows(rows) * width);
        let mut ends = [[f32::MIN, 0.0]; ROW_BLOCK];
        acc.fill(0.0);
        read(work, rest, acc, &mut ends);
        for (i, row) in work.rows.clone().enumerate() {
            finish(row, &acc[i * width..][..d], ends[i]);
        }
    });
}

/// Writes a tile's vectors as rows of `width` floats, zeros beyond `d`.
#[inline(always)]
fn widen(from: &Stored, tile: &Tile, d: usize, width: usize, to: &mut [f32]) {
    let at = |j: usize| (tile.vector + j) * d..(tile.vector + j + 1) * d;
    for (j, row) in to[..tile.len * width].chunks_exact_mut(width).enumerate() {
        let (row, padding) = row.split_at_mut(d);
        padding.fill(0.0);
        match from {
            Stored::F32(x) => row.copy_from_slice(&x[at(j)]),
            Stored::F16(x) => row.iter_mut().zip(&x[at(j)]).for_each(|(y, x)| *y = half::f16_to_f32(*x)),
            Stored::Int8(x, scales) => {
                let scale = scales[tile.vector + j];
                row.iter_mut().zip(&x[at(j)]).for_each(|(y, x)| *y = scale * f32::from(*x));
            }
        }
    }
}

crate::multiversion! {
    /// Takes the keys and values of `work` into `acc`, rows of whole registers, and `ends`, (greatest score, sum of weights) of each row.
    fn read<V>(work: &Work<'_>, scratch: &mut [f32], acc: &mut [f32], ends: &mut [[f32; 2]]) {
        let shape = work.shape;
        let (d, width, rows) = (shape.head_dim, pad_cols(shape.head_dim), &work.rows);
        let mut rest = scratch;
        let queries = take(&mut rest, pad_rows(rows.len()) * width);
        let keys_t = take(&mut rest, KEY_TILE * width);
        let wide_keys = take(&mut rest, KEY_TILE * width);
        let wide_values = take(&mut rest, KEY_TILE * width);
        let scores = take(&mut rest, QUERY_TILE * KEY_TILE);
        queries.fill(0.0);
        for (out, row) in queries.chunks_exact_mut(width).zip(rows.clone()) {
            for (o, x) in out.iter_mut().zip(&work.q[work.row_at(row)..][..d]) {
                *o = shape.scale * x;
            }
        }
        for tile in work.tiles(KEY_TILE) {
            let computed_keys = pad_cols(tile.len);
            let elements = tile.vector * d..(tile.vector + tile.len) * d;
            match work.k {
                Stored::F32(k) => pack_transposed::<V>(&k[elements.clone()], d, tile.len, d, computed_keys, keys_t),
                _ => {
                    widen(&work.k, &tile, d, width, wide_keys);
                    pack_transposed::<V>(wide_keys, width, tile.len, d, computed_keys, keys_t);
                }
            }
            let values: &[f32] = match work.v {
                Stored::F32(v) if d == width => &v[elements],
                _ => {
                    widen(&work.v, &tile, d, width, wide_values);
                    wide_values
                }
            };
            let end = tile.first + tile.len as i64;
            for first in (rows.start..rows.end).step_by(QUERY_TILE) {
                let part = first..(first + QUERY_TILE).min(rows.end);
                // Later rows see further on and less far back.
                let (oldest, newest) = (work.visible(part.start).start, work.visible(part.end - 1).end);
                if oldest >= end || newest <= tile.first {
                    continue;
                }
                let local = first - rows.start;
                let padded = pad_rows(part.len());
                // Keys past the last one that these rows see need no scores.
                let near = (newest.min(end) - tile.first) as usize;
                let computed = pad_cols(near);
                let left = Left::rows(&queries[local * width..][..padded * width], width);
                // SAFETY: `left` is a whole packed tile; V is the dispatched instruction set.
                unsafe { matmul::<V>([padded, computed, d], left, keys_t, computed_keys, scores, computed_keys, false) };
                for row in part.clone() {
                    let line = &mut scores[(row - first) * computed_keys..][..computed];
                    let seen = work.visible_in(row, &tile);
                    if seen.is_empty() {
                        line.fill(0.0);
                        continue;
                    }
                    if let Some(most) = shape.softcap {
                        cap::<V>(line, most);
                    }
                    let i = row - rows.start;
                    let [max, sum] = &mut ends[i];
                    let (new_max, line_sum) = with_register!(V, exponentiate(line, &seen, *max));
                    if new_max != *max {
                        let shrink = math::exp::<V>(*max - new_max);
                        *sum *= shrink;
                        for x in &mut acc[i * width..][..width] {
                            *x *= shrink;
                        }
                        *max = new_max;
                    }
                    *sum += line_sum;
                }
                let left = Left::rows(&scores[..padded * computed_keys], computed_keys);
                let out = &mut acc[local * width..][..padded * width];
                // SAFETY: as above.
                unsafe { matmul::<V>([padded, width, near], left, values, width, out, width, true) };
            }
        }
    }
}
