//! Matrix products of a few rows (GEMV): bound by reading the other operand, which is read once. Used through [`crate::gemm`].

use crate::gemm::Matrix;
use crate::gemm::matrix::{Bf16, F16, F32, Format};
use crate::simd::{Isa, LANES, Lanes, dot};
use crate::stream::{FAR, prefetch_far};
use crate::threads::{SharedMut, par_blocks};
use std::ops::Range;

/// Products with at most this many rows (or columns) are bound by reading the other operand once.
pub const GEMV_MAX_ROWS: usize = 4;
/// Columns of a GEMV that one task computes.
const GEMV_TILE: usize = 128;

/// A matrix in memory: element (i, j) is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub data: Matrix<'a>,
    pub row: usize,
    pub column: usize,
}

impl<'a> Strided<'a> {
    pub fn new(data: Matrix<'a>, ld: usize, transposed: bool) -> Self {
        if transposed { Strided { data, row: 1, column: ld } } else { Strided { data, row: ld, column: 1 } }
    }

    pub fn t(self) -> Self {
        Strided { data: self.data, row: self.column, column: self.row }
    }

    /// Rows of `f32` that lie one element after the other, each of `columns` elements: the matrix itself or a copy.
    fn packed_rows(self, rows: usize, columns: usize, copy: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        if let Matrix::F32(data) = self.data
            && (self.column == 1 || columns <= 1)
        {
            return (data, self.row);
        }
        copy.clear();
        copy.extend((0..rows).flat_map(|i| (0..columns).map(move |j| self.data.get(i * self.row + j * self.column))));
        (copy, columns)
    }
}

crate::multiversion! {
    /// Adds the first `width` columns of the product of `M` rows with `b`, stored as [k, n], to `acc`.
    fn gemv_columns<V, const M: usize>(
        a: &[f32], lda: usize, b: Matrix, ldb: usize, k: usize, width: usize, acc: &mut [[f32; GEMV_TILE]],
    ) {
        match b {
            Matrix::F32(b) => gemv_tiles::<V, F32, M>(a, lda, b, ldb, k, width, acc),
            Matrix::Bf16(b) => gemv_tiles::<V, Bf16, M>(a, lda, b, ldb, k, width, acc),
            Matrix::F16(b) => gemv_tiles::<V, F16, M>(a, lda, b, ldb, k, width, acc),
        }
    }

    /// The product of `m` rows of `a` with the rows of `b`, stored as [n, k].
    fn gemv_dots<V>(m: usize, a: &[f32], lda: usize, b: Matrix, ldb: usize, k: usize, n: usize, acc: &mut [[f32; GEMV_TILE]]) {
        for j in 0..n {
            for (i, acc) in acc.iter_mut().enumerate().take(m) {
                let a = &a[i * lda..][..k];
                acc[j] = match b {
                    Matrix::F32(b) => dot::<V>(a, &b[j * ldb..][..k]),
                    Matrix::Bf16(b) => dot_stored::<V, Bf16>(a, &b[j * ldb..][..k]),
                    Matrix::F16(b) => dot_stored::<V, F16>(a, &b[j * ldb..][..k]),
                };
            }
        }
    }
}

/// [`dot`] with numbers that are widened as they are read.
#[inline(always)]
fn dot_stored<V: Isa, F: Format>(a: &[f32], b: &[F::Bits]) -> f32 {
    let mut sums = [Lanes::splat(0.0); 4];
    let (mut a4, mut b4) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
    for (a, b) in (&mut a4).zip(&mut b4) {
        // Numbers of 32 bits need none: so few instructions go with a line of them that many are asked for at once without.
        for line in (0..size_of_val(b)).step_by(64) {
            prefetch_far(b.as_ptr().cast::<u8>().wrapping_add(FAR + line));
        }
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = Lanes::load(&a[j * LANES..]).fma::<V>(F::widen_lanes::<V>(&b[j * LANES..]), *sum);
        }
    }
    let rest = a4.remainder().iter().zip(b4.remainder()).fold(0.0, |sum, (&a, &b)| V::fma(a, F::widen(b), sum));
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum() + rest
}

#[inline(always)]
fn gemv_tiles<V: Isa, F: Format, const M: usize>(
    a: &[f32],
    lda: usize,
    b: &[F::Bits],
    ldb: usize,
    k: usize,
    width: usize,
    acc: &mut [[f32; GEMV_TILE]],
) {
    if width == GEMV_TILE {
        gemv_tile::<V, F, M>(a, lda, b, ldb, k, GEMV_TILE, acc); // a constant width keeps the sums in registers
    } else {
        gemv_tile::<V, F, M>(a, lda, b, ldb, k, width, acc);
    }
}

/// Rows of `b` are taken in groups of 64 that are summed apart: the error grows with k / 64.
#[inline(always)]
fn gemv_tile<V: Isa, F: Format, const M: usize>(
    a: &[f32],
    lda: usize,
    b: &[F::Bits],
    ldb: usize,
    k: usize,
    width: usize,
    acc: &mut [[f32; GEMV_TILE]],
) {
    for start in (0..k).step_by(64) {
        let mut group = [[0.0f32; GEMV_TILE]; M];
        for l in start..k.min(start + 64) {
            let row = &b[l * ldb..][..width];
            for (i, group) in group.iter_mut().enumerate() {
                let a = a[i * lda + l];
                for (g, &b) in group[..width].iter_mut().zip(row) {
                    *g = V::fma(a, F::widen(b), *g);
                }
            }
        }
        for (acc, group) in acc.iter_mut().zip(&group) {
            for (acc, &g) in acc[..width].iter_mut().zip(&group[..width]) {
                *acc += g;
            }
        }
    }
}

/// A product with at most [`GEMV_MAX_ROWS`] rows: the right-hand side is read once, tiles of columns go to threads.
pub(crate) fn gemv(
    m: usize,
    n: usize,
    k: usize,
    a: Strided,
    b: Strided,
    accumulate: bool,
    c: &mut [f32],
    ldc: usize,
    parallel: bool,
) {
    let mut copy = Vec::new();
    let (a, lda) = a.packed_rows(m, k, &mut copy);
    let shared = SharedMut::new(c);
    let tile = |columns: Range<usize>| {
        let (first, width) = (columns.start, columns.len());
        let mut acc = [[0.0f32; GEMV_TILE]; GEMV_MAX_ROWS];
        let data = b.data.tail(first * b.column);
        match m {
            _ if b.row == 1 => gemv_dots(m, a, lda, data, b.column, k, width, &mut acc),
            1 => gemv_columns::<1>(a, lda, data, b.row, k, width, &mut acc),
            2 => gemv_columns::<2>(a, lda, data, b.row, k, width, &mut acc),
            3 => gemv_columns::<3>(a, lda, data, b.row, k, width, &mut acc),
            _ => gemv_columns::<4>(a, lda, data, b.row, k, width, &mut acc),
        }
        for (i, acc) in acc.iter().enumerate().take(m) {
            // SAFETY: tiles of columns are disjoint.
            let c = unsafe { shared.slice(i * ldc + first..i * ldc + first + width) };
            for (c, &v) in c.iter_mut().zip(acc) {
                *c = if accumulate { *c + v } else { v };
            }
        }
    };
    if parallel {
        par_blocks(n, GEMV_TILE, m * k, |_, columns| tile(columns));
    } else {
        (0..n).step_by(GEMV_TILE).for_each(|first| tile(first..n.min(first + GEMV_TILE)));
    }
}
