//! Gradients of the parameters of normalisations: sums over rows in fixed blocks, so that their bits do not depend on the number of
//! threads.

use crate::norm::AHEAD;
use crate::register::with_register;
use crate::stream::prefetch;
use crate::threads::{SharedMut, par_blocks};
use crate::vector::Vector;

/// Rows added in `f32` before they go to the `f64` accumulator; rows and columns that one task reduces.
const ROW_GROUP: usize = 32;
const ROW_CHUNK: usize = 128;
const COLUMN_TILE: usize = 1024;
/// From this width on rows are reduced four at a time, and fetched ahead; narrower ones are faster one by one.
const WIDE: usize = 1024;

/// Sums of the columns of a tile.
#[repr(align(64))]
struct Tile([f32; COLUMN_TILE]);

/// Adds dy (x - mean) rstd of `N` rows, `d` apart, to `gamma` and dy to `beta`, in the order of the rows; all are `width` columns, the
/// sums padded to whole vectors. (A store of part of a vector would hold up the load of it that follows.) Returns `N`.
#[inline(always)]
fn param_rows<R: Vector, const N: usize>(
    x: &[f32],
    dy: &[f32],
    d: usize,
    width: usize,
    mean: Option<&[f32]>,
    rstd: &[f32],
    gamma: &mut [f32],
    mut beta: Option<&mut [f32]>,
) -> usize {
    assert!((N - 1) * d + width <= x.len().min(dy.len()), "{N} rows");
    assert!(width <= gamma.len() && gamma.len().is_multiple_of(16), "sums are padded");
    assert!(beta.as_ref().is_none_or(|beta| beta.len() == gamma.len()), "sums of one size");
    let r: [R; N] = std::array::from_fn(|k| R::splat(rstd[k]));
    let m: [R; N] = std::array::from_fn(|k| R::splat(mean.map_or(0.0, |m| m[k])));
    let ahead = (N * d).max(AHEAD);
    for i in (0..width).step_by(16) {
        let n = (width - i).min(16);
        // SAFETY: `n` floats of rows and whole vectors of sums, which were checked; a hint may go anywhere.
        unsafe {
            let load = |p: *const f32| if n == 16 { R::load(p) } else { R::load_partial(p, n, 0.0) };
            let mut g = R::load(gamma.as_ptr().add(i));
            let mut b = beta.as_ref().map_or(g, |b| R::load(b.as_ptr().add(i)));
            for k in 0..N {
                let (x, dy) = (x.as_ptr().wrapping_add(k * d + i), dy.as_ptr().wrapping_add(k * d + i));
                prefetch(x.wrapping_add(ahead));
                prefetch(dy.wrapping_add(ahead));
                let dy = load(dy);
                g = g.accumulate(dy, load(x).sub(m[k]).mul(r[k]));
                b = b.add(dy);
            }
            g.store(gamma.as_mut_ptr().add(i));
            if let Some(beta) = &mut beta {
                b.store(beta.as_mut_ptr().add(i));
            }
        }
    }
    N
}

#[inline(always)]
fn param_rows4<R: Vector>(
    x: &[f32],
    dy: &[f32],
    d: usize,
    width: usize,
    m: Option<&[f32]>,
    r: &[f32],
    gamma: &mut [f32],
    beta: Option<&mut [f32]>,
) -> usize {
    param_rows::<R, 4>(x, dy, d, width, m, r, gamma, beta)
}

#[inline(always)]
fn param_rows1<R: Vector>(
    x: &[f32],
    dy: &[f32],
    d: usize,
    width: usize,
    m: Option<&[f32]>,
    r: &[f32],
    gamma: &mut [f32],
    beta: Option<&mut [f32]>,
) -> usize {
    param_rows::<R, 1>(x, dy, d, width, m, r, gamma, beta)
}

crate::multiversion! {
    /// Adds the rows `first..` of dy (x - mean) rstd and of dy, columns `column..`, to the accumulators.
    fn param_columns<V>(
        x: &[f32], dy: &[f32], d: usize, column: usize, mean: Option<&[f32]>, rstd: &[f32],
        dgamma: &mut [f64], dbeta: Option<&mut [f64]>,
    ) {
        let width = dgamma.len();
        let (mut group_gamma, mut group_beta) = (Tile([0.0; COLUMN_TILE]), Tile([0.0; COLUMN_TILE]));
        let padded = width.next_multiple_of(16);
        let (group_gamma, group_beta) = (&mut group_gamma.0[..padded], &mut group_beta.0[..padded]);
        let mut dbeta = dbeta;
        for first in (0..rstd.len()).step_by(ROW_GROUP) {
            group_gamma.fill(0.0);
            group_beta.fill(0.0);
            let end = rstd.len().min(first + ROW_GROUP);
            let mut row = first;
            while row < end {
                let at = row * d + column;
                let (x, dy, r) = (&x[at..], &dy[at..], &rstd[row..end]);
                let m = mean.map(|mean| &mean[row..end]);
                if d < WIDE {
                    let m = m.map_or(0.0, |m| m[0]);
                    for ((g, &x), &dy) in group_gamma[..width].iter_mut().zip(x).zip(dy) {
                        *g = V::fma(dy, (x - m) * r[0], *g);
                    }
                    if dbeta.is_some() {
                        for (b, &dy) in group_beta[..width].iter_mut().zip(dy) {
                            *b += dy;
                        }
                    }
                    row += 1;
                    continue;
                }
                let beta = dbeta.is_some().then_some(&mut *group_beta);
                row += if r.len() >= 4 {
                    with_register!(V, param_rows4(x, dy, d, width, m, r, group_gamma, beta))
                } else {
                    with_register!(V, param_rows1(x, dy, d, width, m, r, group_gamma, beta))
                };
            }
            for (acc, &g) in dgamma.iter_mut().zip(&*group_gamma) {
                *acc += g as f64;
            }
            if let Some(dbeta) = &mut dbeta {
                for (acc, &b) in dbeta.iter_mut().zip(&*group_beta) {
                    *acc += b as f64;
                }
            }
        }
    }
}

pub(crate) fn param_grads(
    x: &[f32],
    rows: usize,
    d: usize,
    mean: Option<&[f32]>,
    rstd: &[f32],
    dy: &[f32],
    dgamma: &mut [f32],
    dbeta: Option<&mut [f32]>,
) {
    let (tiles, chunks) = (d.div_ceil(COLUMN_TILE), rows.div_ceil(ROW_CHUNK));
    let mut partial_gamma = vec![0.0f64; chunks * d];
    let mut partial_beta = vec![0.0f64; if dbeta.is_some() { chunks * d } else { 0 }];
    let (shared_gamma, shared_beta) = (SharedMut::new(&mut partial_gamma), SharedMut::new(&mut partial_beta));
    par_blocks(chunks * tiles, 1, 2 * rows.min(ROW_CHUNK) * d.min(COLUMN_TILE), |task, _| {
        let (chunk, column) = (task / tiles, task % tiles * COLUMN_TILE);
        let r = chunk * ROW_CHUNK..rows.min((chunk + 1) * ROW_CHUNK);
        let range = chunk * d + column..chunk * d + d.min(column + COLUMN_TILE);
        // SAFETY: each task has its own chunk and tile.
        let (acc_gamma, acc_beta) = unsafe {
            (
                shared_gamma.slice(range.clone()),
                if shared_beta.is_empty() { None } else { Some(shared_beta.slice(range)) },
            )
        };
        let e = r.start * d..r.end * d;
        param_columns(&x[e.clone()], &dy[e], d, column, mean.map(|m| &m[r.clone()]), &rstd[r], acc_gamma, acc_beta);
    });
    let finish = |partial: &[f64], out: &mut [f32]| {
        let mut total = vec![0.0; d];
        for part in partial.chunks_exact(d.max(1)) {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
        out.iter_mut().zip(total).for_each(|(out, total)| *out = total as f32);
    };
    finish(&partial_gamma, dgamma);
    if let Some(dbeta) = dbeta {
        finish(&partial_beta, dbeta);
    }
}
