//! Few query rows: keys and values are read once, where they lie.

use super::stored::{Element, Lanes16, Stored};
use super::{FEW_ROWS, Finish, Work, cap};
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
    with_scratch(rows * d + TILE, |scratch| {
        let mut rest = scratch;
        let acc = take(&mut rest, rows * d);
        let scores = take(&mut rest, TILE);
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
        let [key_scales, value_scales] = scales.map(|s| s.map(|s| &s[tile.vector..][..tile.len]));
        for (i, row) in work.rows.clone().enumerate() {
            let seen = work.visible_in(row, &tile);
            if seen.is_empty() {
                continue;
            }
            let query = &work.q[work.row_at(row)..][..d];
            let scores = &mut scores[..tile.len.next_multiple_of(LANES)];
            with_register!(V, dots::<E>(query, keys, &mut scores[..tile.len]));
            let scale = work.shape.scale;
            match key_scales {
                Some(s) => scores.iter_mut().zip(s).for_each(|(x, s)| *x *= scale * s),
                None => scores[..tile.len].iter_mut().for_each(|x| *x *= scale),
            }
            if let Some(most) = work.shape.softcap {
                cap::<V>(&mut scores[..tile.len], most);
            }
            let [max, sum] = &mut ends[i];
            let acc = &mut acc[i * d..][..d];
            let (new_max, tile_sum) = with_register!(V, exponentiate(scores, &seen, *max));
            if new_max != *max {
                let shrink = math::exp::<V>(*max - new_max);
                *sum *= shrink;
                acc.iter_mut().for_each(|x| *x *= shrink);
                *max = new_max;
            }
            *sum += tile_sum;
            if let Some(s) = value_scales {
                scores.iter_mut().zip(s).for_each(|(x, s)| *x *= s);
            }
            with_register!(V, weigh::<E>(&scores[seen.clone()], &values[seen.start * d..seen.end * d], acc));
        }
    }
}

/// `scores[j] = query . keys[j]`, keys one after another.
#[inline(always)]
fn dots<R: Lanes16, E: Element>(query: &[f32], keys: &[E], scores: &mut [f32]) {
    let (d, n) = (query.len(), scores.len());
    assert!(keys.len() >= n * d, "as many keys as scores");
    let (q, mut k, mut to, mut left) = (query.as_ptr(), keys.as_ptr(), scores.as_mut_ptr(), n);
    // SAFETY: (whole body) keys and scores are counted down together.
    unsafe {
        while left >= R::KEYS {
            if R::KEYS == 16 {
                some::<R, E, 16>(q, k, d, to)
            } else {
                some::<R, E, 4>(q, k, d, to)
            }
            (k, to, left) = (k.add(R::KEYS * d), to.add(R::KEYS), left - R::KEYS);
        }
        while left >= 4 {
            some::<R, E, 4>(q, k, d, to);
            (k, to, left) = (k.add(4 * d), to.add(4), left - 4);
        }
        for _ in 0..left {
            some::<R, E, 1>(q, k, d, to);
            (k, to) = (k.add(d), to.add(1));
        }
    }
}

/// The products of a query with `N` keys.
///
/// # Safety
/// `q` is valid for `d` reads, `k` for `N * d`, `to` for `N` writes.
#[inline(always)]
unsafe fn some<R: Lanes16, E: Element, const N: usize>(q: *const f32, k: *const E, d: usize, to: *mut f32) {
    let mut acc = [R::splat(0.0); N];
    let whole = d / R::WIDTH * R::WIDTH;
    // SAFETY: the contract.
    unsafe {
        for c in (0..whole).step_by(R::WIDTH) {
            let q = R::load(q.add(c));
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = acc.accumulate(q, E::load(k.add(j * d + c)));
            }
        }
        if whole < d {
            let q = R::load_partial(q.add(whole), d - whole, 0.0);
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = acc.accumulate(q, E::load_partial(k.add(j * d + whole), d - whole));
            }
        }
        R::store_sums(acc, to);
    }
}

/// `acc += sum over j of weights[j] values[j]`, values one after another.
#[inline(always)]
fn weigh<R: Lanes16, E: Element>(weights: &[f32], values: &[E], acc: &mut [f32]) {
    let (d, n) = (acc.len(), weights.len());
    assert!(values.len() >= n * d, "as many values as weights");
    let (v, acc) = (values.as_ptr(), acc.as_mut_ptr());
    let mut c = 0;
    // SAFETY: (whole body) `c` plus what is handled stays within `d`.
    unsafe {
        while c + 4 * R::WIDTH <= d {
            columns::<R, E, 4>(weights, v.add(c), d, acc.add(c));
            c += 4 * R::WIDTH;
        }
        while c + R::WIDTH <= d {
            columns::<R, E, 1>(weights, v.add(c), d, acc.add(c));
            c += R::WIDTH;
        }
        if c < d {
            let mut sum = R::load_partial(acc.add(c), d - c, 0.0);
            for (j, &w) in weights.iter().enumerate() {
                sum = sum.accumulate(R::splat(w), E::load_partial(v.add(j * d + c), d - c));
            }
            sum.store_partial(acc.add(c), d - c);
        }
    }
}

/// [`weigh`] for `N` registers' worth of columns.
///
/// # Safety
/// They are there in every value and in `acc`.
#[inline(always)]
unsafe fn columns<R: Lanes16, E: Element, const N: usize>(weights: &[f32], v: *const E, d: usize, acc: *mut f32) {
    // SAFETY: the contract.
    unsafe {
        let mut sums: [R; N] = std::array::from_fn(|i| R::load(acc.add(i * R::WIDTH)));
        for (j, &w) in weights.iter().enumerate() {
            let w = R::splat(w);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = sum.accumulate(w, E::load(v.add(j * d + i * R::WIDTH)));
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            sum.store(acc.add(i * R::WIDTH));
        }
    }
}
