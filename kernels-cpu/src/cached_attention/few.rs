//! Few query rows: keys and values are read once, where they lie.

use super::stored::{Element, Lanes16, Stored};
use super::{FEW_ROWS, Finish, Tile, Work, cap};
use crate::attention::{exponentiate, take, with_scratch};
use crate::math;
use crate::register::with_register;
use crate::simd::{Isa, LANES};

/// Keys of a tile: scores and the tile's values stay in the nearest cache.
const TILE: usize = 64;

/// Holds the rows of `work` against its positions.
pub(super) fn run(work: &Work, finish: impl Finish) {
    let (d, rows) = (work.shape.head_dim, work.rows.len());
    debug_assert!(rows <= FEW_ROWS);
    with_scratch(rows * d + 2 * TILE, |scratch| {
        let mut rest = scratch;
        let acc = take(&mut rest, rows * d);
        let scores = take(&mut rest, 2 * TILE);
        let mut ends = [[f32::MIN, 0.0]; FEW_ROWS];
        acc.fill(0.0);
        read(work, scores, acc, &mut ends);
        for (i, row) in work.rows.clone().enumerate() {
            finish(row, &acc[i * d..][..d], ends[i]);
        }
    });
}

crate::multiversion! {
    /// Takes the keys and values of `work` into `acc [rows, d]` and `ends`, (greatest score, sum of weights) of each row.
    fn read<V>(work: &Work<'_>, scores: &mut [f32], acc: &mut [f32], ends: &mut [[f32; 2]]) {
        match (work.k, work.v) {
            (Stored::F32(k), Stored::F32(v)) => each_tile::<V, _>(work, k, v, [None; 2], scores, acc, ends),
            (Stored::F16(k), Stored::F16(v)) => each_tile::<V, _>(work, k, v, [None; 2], scores, acc, ends),
            (Stored::Int8(k, ks), Stored::Int8(v, vs)) => {
                each_tile::<V, _>(work, k, v, [Some(ks), Some(vs)], scores, acc, ends);
            }
            _ => unreachable!("checked: keys and values are stored alike"),
        }
    }
}

#[inline(always)]
fn each_tile<V: Isa, E: Element>(
    work: &Work,
    k: &[E],
    v: &[E],
    scales: [Option<&[f32]>; 2],
    scores: &mut [f32],
    acc: &mut [f32],
    ends: &mut [[f32; 2]],
) {
    let d = work.shape.head_dim;
    for tile in work.tiles(TILE) {
        let elements = tile.vector * d..(tile.vector + tile.len) * d;
        let (keys, values) = (&k[elements.clone()], &v[elements]);
        let scales = scales.map(|s| s.map(|s| &s[tile.vector..][..tile.len]));
        // Two rows take what is loaded, and widened, once.
        let mut rows = work.rows.clone();
        while rows.len() > 1 {
            let i = rows.start - work.rows.start;
            let (acc, ends) = (&mut acc[i * d..(i + 2) * d], &mut ends[i..i + 2]);
            some_rows::<V, E, 2>(work, rows.start, &tile, keys, values, scales, scores, acc, ends);
            rows.start += 2;
        }
        if !rows.is_empty() {
            let i = rows.start - work.rows.start;
            let (acc, ends) = (&mut acc[i * d..(i + 1) * d], &mut ends[i..=i]);
            some_rows::<V, E, 1>(work, rows.start, &tile, keys, values, scales, scores, acc, ends);
        }
    }
}

/// Takes a tile into `ROWS` rows from `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn some_rows<V: Isa, E: Element, const ROWS: usize>(
    work: &Work,
    first: usize,
    tile: &Tile,
    keys: &[E],
    values: &[E],
    [key_scales, value_scales]: [Option<&[f32]>; 2],
    scores: &mut [f32],
    acc: &mut [f32],
    ends: &mut [[f32; 2]],
) {
    let (d, scale) = (work.shape.head_dim, work.shape.scale);
    let (mut queries, mut none) = ([&work.q[..d]; ROWS], true);
    for (i, query) in queries.iter_mut().enumerate() {
        *query = &work.q[work.row_at(first + i)..][..d];
        none &= work.visible_in(first + i, tile).is_empty();
    }
    if none {
        return;
    }
    with_register!(V, dots::<E, ROWS>(queries, keys, scores, tile.len));
    for i in 0..ROWS {
        let seen = work.visible_in(first + i, tile);
        let scores = &mut scores[i * TILE..][..tile.len.next_multiple_of(LANES)];
        if seen.is_empty() {
            scores.fill(0.0);
            continue;
        }
        match key_scales {
            Some(s) => scores.iter_mut().zip(s).for_each(|(x, s)| *x *= scale * s),
            None => scores[..tile.len].iter_mut().for_each(|x| *x *= scale),
        }
        if let Some(most) = work.shape.softcap {
            cap::<V>(&mut scores[..tile.len], most);
        }
        let [max, sum] = &mut ends[i];
        let (new_max, tile_sum) = with_register!(V, exponentiate(scores, &seen, *max));
        if new_max != *max {
            let shrink = math::exp::<V>(*max - new_max);
            *sum *= shrink;
            acc[i * d..(i + 1) * d].iter_mut().for_each(|x| *x *= shrink);
            *max = new_max;
        }
        *sum += tile_sum;
        if let Some(s) = value_scales {
            scores.iter_mut().zip(s).for_each(|(x, s)| *x *= s);
        }
    }
    with_register!(V, weigh::<E, ROWS>(scores, values, tile.len, acc));
}

/// `scores[i * TILE + j] = queries[i] . keys[j]` for `n` keys, one after another.
#[inline(always)]
fn dots<R: Lanes16, E: Element, const ROWS: usize>(queries: [&[f32]; ROWS], keys: &[E], scores: &mut [f32], n: usize) {
    let d = queries[0].len();
    assert!(n <= TILE && keys.len() >= n * d && scores.len() >= ROWS * TILE, "room for all products");
    let (mut k, mut to, mut left) = (keys.as_ptr(), scores.as_mut_ptr(), n);
    // SAFETY: (whole body) keys and scores are counted down together.
    unsafe {
        let step = R::SUMS / ROWS;
        while left >= step {
            match step {
                16 => some_keys::<R, E, ROWS, 16>(&queries, k, d, to),
                8 => some_keys::<R, E, ROWS, 8>(&queries, k, d, to),
                4 => some_keys::<R, E, ROWS, 4>(&queries, k, d, to),
                _ => some_keys::<R, E, ROWS, 2>(&queries, k, d, to),
            }
            (k, to, left) = (k.add(step * d), to.add(step), left - step);
        }
        for _ in 0..left {
            some_keys::<R, E, ROWS, 1>(&queries, k, d, to);
            (k, to) = (k.add(d), to.add(1));
        }
    }
}

/// The products of each query with `N` keys.
///
/// # Safety
/// Each of `queries` has `d` floats, `k` is valid for `N * d` reads, `to` for `N` writes and again [`TILE`] further for every other query.
#[inline(always)]
unsafe fn some_keys<R: Lanes16, E: Element, const ROWS: usize, const N: usize>(
    queries: &[&[f32]; ROWS],
    k: *const E,
    d: usize,
    to: *mut f32,
) {
    let mut acc = [[R::splat(0.0); ROWS]; N];
    let whole = d / R::WIDTH * R::WIDTH;
    // SAFETY: the contract.
    unsafe {
        for c in (0..whole).step_by(R::WIDTH) {
            let mut q = [R::splat(0.0); ROWS];
            for (q, query) in q.iter_mut().zip(queries) {
                *q = R::load(query.as_ptr().add(c));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let k = E::load(k.add(j * d + c));
                for (acc, q) in acc.iter_mut().zip(q) {
                    *acc = acc.accumulate(q, k);
                }
            }
        }
        if whole < d {
            let mut q = [R::splat(0.0); ROWS];
            for (q, query) in q.iter_mut().zip(queries) {
                *q = R::load_partial(query.as_ptr().add(whole), d - whole, 0.0);
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let k = E::load_partial(k.add(j * d + whole), d - whole);
                for (acc, q) in acc.iter_mut().zip(q) {
                    *acc = acc.accumulate(q, k);
                }
            }
        }
        R::store_sums(acc, to, TILE);
    }
}

/// `acc[i] += sum over j of scores[i * TILE + j] values[j]` for `n` values, one after another.
#[inline(always)]
fn weigh<R: Lanes16, E: Element, const ROWS: usize>(scores: &[f32], values: &[E], n: usize, acc: &mut [f32]) {
    let d = acc.len() / ROWS;
    assert!(n <= TILE && values.len() >= n * d && scores.len() >= ROWS * TILE, "a weight for each value");
    let (w, v, acc) = (scores.as_ptr(), values.as_ptr(), acc.as_mut_ptr());
    let mut c = 0;
    // SAFETY: (whole body) `c` plus what is handled stays within `d`.
    unsafe {
        while c + 4 * R::WIDTH <= d {
            columns::<R, E, ROWS, 4>(w, v.add(c), n, d, acc.add(c));
            c += 4 * R::WIDTH;
        }
        while c + R::WIDTH <= d {
            columns::<R, E, ROWS, 1>(w, v.add(c), n, d, acc.add(c));
            c += R::WIDTH;
        }
        if c < d {
            let mut sums = [R::splat(0.0); ROWS];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = R::load_partial(acc.add(r * d + c), d - c, 0.0);
            }
            for j in 0..n {
                let v = E::load_partial(v.add(j * d + c), d - c);
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.accumulate(R::splat(*w.add(r * TILE + j)), v);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                sum.store_partial(acc.add(r * d + c), d - c);
            }
        }
    }
}

/// [`weigh`] for `N` registers' worth of columns.
///
/// # Safety
/// They are there in each of the `n` values and in each row of `acc`; weights are there for all values.
#[inline(always)]
unsafe fn columns<R: Lanes16, E: Element, const ROWS: usize, const N: usize>(
    w: *const f32,
    v: *const E,
    n: usize,
    d: usize,
    acc: *mut f32,
) {
    // SAFETY: the contract.
    unsafe {
        let mut sums = [[R::splat(0.0); ROWS]; N];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = R::load(acc.add(r * d + i * R::WIDTH));
            }
        }
        for j in 0..n {
            let mut weights = [R::splat(0.0); ROWS];
            for (r, weight) in weights.iter_mut().enumerate() {
                *weight = R::splat(*w.add(r * TILE + j));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let v = E::load(v.add(j * d + i * R::WIDTH));
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = sum.accumulate(weight, v);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (r, sum) in sums.into_iter().enumerate() {
                sum.store(acc.add(r * d + i * R::WIDTH));
            }
        }
    }
}
