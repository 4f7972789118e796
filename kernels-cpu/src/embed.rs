//! Row gather (embedding look-up) and its gradient, a deterministic row scatter-add.

use crate::register::with_register;
use crate::stream::{self, past_caches, prefetch};
use crate::threads::{SharedMut, par_blocks, par_rows_mut, threads};
use crate::vector::Vector;
use std::fmt;

/// An index that lies outside the axis it selects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexOutOfRange {
    /// Where in the list of indices it stands.
    pub position: usize,
    pub value: i32,
    /// The indices that are allowed are `0..limit`.
    pub limit: usize,
}

impl fmt::Display for IndexOutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IndexOutOfRange { position, value, limit } = self;
        write!(f, "index {value} at position {position} is not in 0..{limit}")
    }
}

impl std::error::Error for IndexOutOfRange {}

pub(crate) fn check(ids: &[i32], limit: usize) -> Result<(), IndexOutOfRange> {
    match ids.iter().position(|&id| id < 0 || id as usize >= limit) {
        Some(position) => Err(IndexOutOfRange { position, value: ids[position], limit }),
        None => Ok(()),
    }
}

/// `out[i] = table[ids[i]]`: `table` is [v, d], `out` is [ids.len(), d].
///
/// # Errors
/// [`IndexOutOfRange`] for the first id outside `0..v`; `out` is then unchanged.
pub fn gather_rows(table: &[f32], v: usize, d: usize, ids: &[i32], out: &mut [f32]) -> Result<(), IndexOutOfRange> {
    assert_eq!(table.len(), v * d, "table is [{v}, {d}]");
    assert_eq!(out.len(), ids.len() * d, "out is [{}, {d}]", ids.len());
    check(ids, v)?;
    let past = past_caches(8 * out.len());
    par_rows_mut(out, d, d, |first, out| {
        for (out, &id) in out.chunks_exact_mut(d).zip(&ids[first..]) {
            let row = &table[id as usize * d..][..d];
            if past {
                // SAFETY: slices of one length; other threads read after the fence below.
                unsafe { stream::copy(row.as_ptr(), out.as_mut_ptr(), d) };
            } else {
                out.copy_from_slice(row);
            }
        }
        if past {
            stream::fence();
        }
    });
    Ok(())
}

/// `y += x`, while the row at `next` is fetched.
#[inline(always)]
fn add_row<R: Vector>(y: &mut [f32], x: &[f32], next: *const f32) {
    let n = y.len();
    assert_eq!(x.len(), n, "rows of one length");
    // SAFETY: within the rows; a hint may go anywhere.
    unsafe {
        for i in (0..n).step_by(16) {
            prefetch(next.wrapping_add(i));
            let (y, x, rest) = (y.as_mut_ptr().add(i), x.as_ptr().add(i), (n - i).min(16));
            if rest == 16 {
                R::load(y).add(R::load(x)).store(y);
            } else {
                R::load_partial(y, rest, 0.0).add(R::load_partial(x, rest, 0.0)).store_partial(y, rest);
            }
        }
    }
}

crate::multiversion! {
    fn add_assign<V>(y: &mut [f32], x: &[f32], next: *const f32) {
        with_register!(V, add_row(y, x, next))
    }
}

/// Terms of a row that are summed before their sum joins the row's total: a serial sum of all terms of a frequent id would lose
/// digits in proportion to their number.
const STRETCH: usize = 64;
/// Columns that one task sums where rows are few, and the most at any time.
const COLUMNS: usize = 128;
const LONGEST: usize = 2048;

/// `grad[ids[i]] += g[i]` from zero, in the order of `i` for every row (in stretches of 64 terms): `g` is [ids.len(), d], `grad` is
/// [v, d] and is overwritten.
/// The bits do not depend on the number of threads, which divide the rows of `grad`.
///
/// # Errors
/// [`IndexOutOfRange`] for the first id outside `0..v`; `grad` is then unchanged.
pub fn scatter_add_rows(ids: &[i32], g: &[f32], v: usize, d: usize, grad: &mut [f32]) -> Result<(), IndexOutOfRange> {
    assert_eq!(g.len(), ids.len() * d, "g is [{}, {d}]", ids.len());
    assert_eq!(grad.len(), v * d, "grad is [{v}, {d}]");
    check(ids, v)?;
    // counting sort of positions by id: stable, so each row's terms stay in order
    let mut start = vec![0usize; v + 1];
    for &id in ids {
        start[id as usize + 1] += 1;
    }
    for r in 0..v {
        start[r + 1] += start[r];
    }
    let mut next = start.clone();
    let mut order = vec![0usize; ids.len()];
    for (i, &id) in ids.iter().enumerate() {
        order[next[id as usize]] = i;
        next[id as usize] += 1;
    }
    // Few rows with many terms each: threads divide the columns as well. Rows are whole otherwise, as memory likes them.
    let width = if v < 16 * threads() { COLUMNS } else { d.clamp(1, LONGEST) };
    let tiles = d.div_ceil(width);
    let terms = ids.len().div_ceil(v.max(1));
    let shared = SharedMut::new(grad);
    par_blocks(v * tiles, 4, (terms + 1) * d.min(width), |_, tasks| {
        let mut part = [0.0; LONGEST];
        for task in tasks {
            let (r, column) = (task / tiles, task % tiles * width);
            let width = width.min(d - column);
            // SAFETY: each task has its own row and column tile.
            let row = unsafe { shared.slice(r * d + column..r * d + column + width) };
            row.fill(0.0);
            let part = &mut part[..width];
            let mut from = start[r];
            while from < start[r + 1] {
                let to = start[r + 1].min(from + STRETCH);
                let first = from == start[r];
                part.fill(0.0);
                for k in from..to {
                    let term = &g[order[k] * d + column..][..width];
                    let ahead = order.get(k + 2).map_or(term.as_ptr(), |&i| g[i * d + column..].as_ptr());
                    add_assign(if first { &mut *row } else { &mut *part }, term, ahead);
                }
                if !first {
                    add_assign(row, part, part.as_ptr());
                }
                from = to;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::with_threads;

    fn case(v: usize, d: usize, n: usize) -> (Vec<f32>, Vec<i32>, Vec<f32>) {
        let table = (0..v * d).map(|i| (i * 31 % 97) as f32 * 0.37 - 11.0).collect();
        let ids = (0..n).map(|i| ((i * i + 3 * i) % v.max(1)) as i32).collect();
        let g = (0..n * d).map(|i| (i * 53 % 89) as f32 * 0.13 - 5.0).collect();
        (table, ids, g)
    }

    #[test]
    fn gather_copies_rows() {
        for (v, d, n) in [(1, 1, 1), (5, 3, 17), (65, 128, 1000), (7, 129, 0), (3, 0, 4)] {
            let (table, ids, _) = case(v, d, n);
            let mut out = vec![0.0; n * d];
            for held in [usize::MAX, 0] {
                out.fill(f32::NAN);
                stream::with_cache(held, || gather_rows(&table, v, d, &ids, &mut out)).unwrap();
                for i in 0..n {
                    assert_eq!(out[i * d..(i + 1) * d], table[ids[i] as usize * d..][..d]);
                }
            }
        }
    }

    #[test]
    fn scatter_add_sums_stretches_of_terms_in_order_for_any_number_of_threads() {
        for (v, d, n) in [(1, 1, 1), (5, 3, 17), (65, 128, 1000), (3, 300, 700), (7, 129, 0), (3, 0, 4), (1000, 16, 5)]
        {
            let (_, ids, g) = case(v, d, n);
            let mut want = vec![0.0f32; v * d];
            for r in 0..v {
                let terms: Vec<usize> = (0..n).filter(|&i| ids[i] as usize == r).collect();
                for j in 0..d {
                    let sums = terms.chunks(STRETCH).map(|s| s.iter().fold(0.0, |sum, &i| sum + g[i * d + j]));
                    want[r * d + j] = sums.fold(0.0, |total, sum| total + sum);
                }
            }
            for threads in [1, 2, 5] {
                let mut grad = vec![f32::NAN; v * d];
                with_threads(threads, || scatter_add_rows(&ids, &g, v, d, &mut grad)).unwrap();
                assert_eq!(grad, want);
            }
        }
    }

    #[test]
    fn an_index_out_of_range_is_named_and_nothing_is_written() {
        let mut out = [9.0; 4];
        for bad in [-1, 3] {
            let want = IndexOutOfRange { position: 1, value: bad, limit: 3 };
            assert_eq!(gather_rows(&[0.0; 6], 3, 2, &[2, bad], &mut out), Err(want));
            assert_eq!(scatter_add_rows(&[2, bad], &[1.0; 2], 3, 1, &mut out[..3]), Err(want));
        }
        assert_eq!(out, [9.0; 4]);
        let text = IndexOutOfRange { position: 1, value: -1, limit: 3 }.to_string();
        assert_eq!(text, "index -1 at position 1 is not in 0..3");
    }
}
