//! Matrix products of tiles that stay in cache, for kernels that keep their operands packed (attention, the matrix form
//! of the Chebyshev filter). One register block of C is held while a strip of A and a panel of B stream by.

use crate::register::{Base, Register};
use crate::simd::Isa;

/// Rows of C come in multiples of this (pad with zeros).
pub const ROWS: usize = 8;
/// Columns of B and C come in multiples of this (pad with zeros).
pub const COLS: usize = 16;

/// `n` rounded up to whole [`ROWS`].
#[inline(always)]
pub const fn pad_rows(n: usize) -> usize {
    n.next_multiple_of(ROWS)
}

/// `n` rounded up to whole [`COLS`].
#[inline(always)]
pub const fn pad_cols(n: usize) -> usize {
    n.next_multiple_of(COLS)
}

/// The left operand: element `(i, k)` is at `ptr + i * row + k * col`.
#[derive(Clone, Copy)]
pub struct Left {
    pub ptr: *const f32,
    pub row: usize,
    pub col: usize,
}

impl Left {
    /// A row-major matrix with `stride` floats from row to row.
    #[inline(always)]
    pub fn rows(x: &[f32], stride: usize) -> Self {
        Left { ptr: x.as_ptr(), row: stride, col: 1 }
    }

    /// The transpose of a row-major matrix with `stride` floats from row to row.
    #[inline(always)]
    pub fn transposed(x: &[f32], stride: usize) -> Self {
        Left { ptr: x.as_ptr(), row: 1, col: stride }
    }
}

/// `C = A B`, or `C += A B` where `accumulate`: A is `m x k`, B row-major `k x n`, C row-major `m x n`; `m` is a multiple
/// of [`ROWS`] and `n` of [`COLS`]. Each element of C sums over k in ascending order in one accumulator, so its bits do
/// not depend on the other rows and columns. For use inside kernel bodies.
///
/// # Safety
/// All of A is readable; `V`'s instruction set is there.
///
/// # Panics
/// If `m` or `n` is no such multiple, or B or C is too short.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn matmul<V: Isa>(
    [m, n, k]: [usize; 3],
    a: Left,
    b: &[f32],
    b_stride: usize,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(m % ROWS == 0 && n % COLS == 0, "tile product: {m} x {n} is not padded");
    assert!(n <= c_stride && (m - 1) * c_stride + n <= c.len(), "tile product: C is too short");
    assert!(k == 0 || (k - 1) * b_stride + n <= b.len(), "tile product: B is too short");
    let (b, c) = (b.as_ptr(), c.as_mut_ptr());
    // SAFETY: sizes are checked above, A and the instruction set are the caller's word.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match V::LEVEL {
            crate::simd::Level::Avx512 => {
                use crate::register::__m512;
                let wide = n / 32 * 32;
                columns::<__m512, 8, 2>(0, wide, m, k, a, b, b_stride, c, c_stride, accumulate);
                return columns::<__m512, 8, 1>(wide, n, m, k, a, b, b_stride, c, c_stride, accumulate);
            }
            crate::simd::Level::Avx2 => {
                use crate::register::__m256;
                return columns::<__m256, 4, 2>(0, n, m, k, a, b, b_stride, c, c_stride, accumulate);
            }
            crate::simd::Level::Baseline => {}
        }
        columns::<Base, 4, 2>(0, n, m, k, a, b, b_stride, c, c_stride, accumulate)
    }
}

/// # Safety
/// As [`matmul`]; `from..to` is a multiple of `VECTORS * WIDTH` and `m` of `HEIGHT`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn columns<R: Register, const HEIGHT: usize, const VECTORS: usize>(
    from: usize,
    to: usize,
    m: usize,
    k: usize,
    a: Left,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
) {
    // SAFETY: the contract above keeps every offset inside its matrix.
    unsafe {
        for j in (from..to).step_by(VECTORS * R::WIDTH) {
            for i in (0..m).step_by(HEIGHT) {
                let mut acc = [[R::splat(0.0); VECTORS]; HEIGHT];
                let c = c.add(i * c_stride + j);
                if accumulate {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = R::load(c.add(r * c_stride + v * R::WIDTH));
                        }
                    }
                }
                let (mut a_at, mut b_at) = (a.ptr.add(i * a.row), b.add(j));
                for _ in 0..k {
                    let mut right = [R::splat(0.0); VECTORS];
                    for (v, right) in right.iter_mut().enumerate() {
                        *right = R::load(b_at.add(v * R::WIDTH));
                    }
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let left = R::splat(*a_at.add(r * a.row));
                        for (acc, right) in acc.iter_mut().zip(right) {
                            *acc = acc.accumulate(left, right);
                        }
                    }
                    a_at = a_at.wrapping_add(a.col);
                    b_at = b_at.wrapping_add(b_stride);
                }
                for (r, acc) in acc.iter().enumerate() {
                    for (v, acc) in acc.iter().enumerate() {
                        acc.store(c.add(r * c_stride + v * R::WIDTH));
                    }
                }
            }
        }
    }
}

/// Copies `rows` rows of `cols` floats, `stride` apart in `x`, times `scale`, into a row-major tile of width
/// `pad_cols(cols)`; the padding columns and the rows up to `pad_rows(rows)` become zero.
#[inline(always)]
pub fn pack(x: &[f32], stride: usize, rows: usize, cols: usize, scale: f32, tile: &mut [f32]) {
    let width = pad_cols(cols);
    for (r, out) in tile[..pad_rows(rows) * width].chunks_exact_mut(width).enumerate() {
        if r < rows {
            for (o, &x) in out[..cols].iter_mut().zip(&x[r * stride..][..cols]) {
                *o = x * scale;
            }
            out[cols..].fill(0.0);
        } else {
            out.fill(0.0);
        }
    }
}

/// As [`pack`], transposed and unscaled: `tile` becomes `cols` rows of `width` floats, the first `rows` of each filled.
#[inline(always)]
pub fn pack_transposed<V: Isa>(x: &[f32], stride: usize, rows: usize, cols: usize, width: usize, tile: &mut [f32]) {
    // Sixteen source rows at a time: their current cache lines stay in L1 while one line of each output row is written.
    for r0 in (0..width).step_by(COLS) {
        let n = rows.saturating_sub(r0).min(COLS);
        let source: [&[f32]; COLS] =
            std::array::from_fn(|r| if r < n { &x[(r0 + r) * stride..][..cols] } else { &[] as &[f32] });
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if V::LEVEL == crate::simd::Level::Avx512 && n == COLS {
            while done + COLS <= cols {
                let out = &mut tile[done * width + r0..][..(COLS - 1) * width + COLS];
                // SAFETY: sixteen rows of sixteen floats on both sides; V is the dispatched instruction set.
                unsafe { transpose(source.map(|row| row.as_ptr().add(done)), out.as_mut_ptr(), width) };
                done += COLS;
            }
        }
        if n == COLS {
            for c in done..cols {
                let out: &mut [f32; COLS] = tile[c * width + r0..].first_chunk_mut().expect("a tile of cols x width");
                for r in 0..COLS {
                    out[r] = source[r][c];
                }
            }
        } else {
            for c in 0..cols {
                let out = &mut tile[c * width + r0..][..COLS];
                for (r, out) in out.iter_mut().enumerate() {
                    *out = if r < n { source[r][c] } else { 0.0 };
                }
            }
        }
    }
}

/// Sixteen rows of sixteen floats to sixteen columns, whose rows are `stride` apart: pairs of rows are interleaved, then pairs of
/// pairs, then the quarters of four such groups come together.
///
/// # Safety
/// All are valid, and AVX-512 F is there.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[allow(unused_unsafe)]
pub(crate) unsafe fn transpose(rows: [*const f32; COLS], to: *mut f32, stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: (whole body) the contract.
    unsafe {
        let r = rows.map(|p| _mm512_loadu_ps(p));
        let mut quads = r;
        for i in (0..COLS).step_by(4) {
            let (low0, high0) = (_mm512_unpacklo_ps(r[i], r[i + 1]), _mm512_unpackhi_ps(r[i], r[i + 1]));
            let (low1, high1) = (_mm512_unpacklo_ps(r[i + 2], r[i + 3]), _mm512_unpackhi_ps(r[i + 2], r[i + 3]));
            let [low0, high0, low1, high1] = [low0, high0, low1, high1].map(|v| _mm512_castps_pd(v));
            quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
            quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
            quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
            quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
        }
        // Quarter l of quads[4 i + j] holds column 4 l + j of rows 4 i .. 4 i + 4.
        for j in 0..4 {
            let even0 = _mm512_shuffle_f32x4::<0x88>(quads[j], quads[4 + j]);
            let even1 = _mm512_shuffle_f32x4::<0x88>(quads[8 + j], quads[12 + j]);
            let odd0 = _mm512_shuffle_f32x4::<0xdd>(quads[j], quads[4 + j]);
            let odd1 = _mm512_shuffle_f32x4::<0xdd>(quads[8 + j], quads[12 + j]);
            _mm512_storeu_ps(to.add(j * stride), _mm512_shuffle_f32x4::<0x88>(even0, even1));
            _mm512_storeu_ps(to.add((4 + j) * stride), _mm512_shuffle_f32x4::<0x88>(odd0, odd1));
            _mm512_storeu_ps(to.add((8 + j) * stride), _mm512_shuffle_f32x4::<0xdd>(even0, even1));
            _mm512_storeu_ps(to.add((12 + j) * stride), _mm512_shuffle_f32x4::<0xdd>(odd0, odd1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::polar::tests::noise;

    crate::multiversion! {
        fn run<V>(size: [usize; 3], a: Left, b: &[f32], b_stride: usize, c: &mut [f32], c_stride: usize, add: bool) {
            // SAFETY: the tests below give whole matrices.
            unsafe { matmul::<V>(size, a, b, b_stride, c, c_stride, add) }
        }

        fn turn<V>(x: &[f32], stride: usize, rows: usize, cols: usize, width: usize, tile: &mut [f32]) {
            pack_transposed::<V>(x, stride, rows, cols, width, tile)
        }
    }

    #[test]
    fn tile_product_agrees_with_loops_for_both_layouts_of_a() {
        for [m, n, k] in [[8, 16, 1], [16, 32, 5], [8, 48, 64], [24, 80, 33], [8, 16, 0]] {
            let (a, b) = (noise(m * k.max(1), 1), noise(n * k.max(1), 2));
            for add in [false, true] {
                for transposed in [false, true] {
                    let left = if transposed { Left::transposed(&a, m) } else { Left::rows(&a, k) };
                    let mut c = vec![0.5f32; m * (n + 3)];
                    run([m, n, k], left, &b, n, &mut c, n + 3, add);
                    for i in 0..m {
                        for j in 0..n {
                            let term = |l: usize| {
                                let a = if transposed { a[l * m + i] } else { a[i * k + l] };
                                a as f64 * b[l * n + j] as f64
                            };
                            let want = (0..k).map(term).sum::<f64>() + if add { 0.5 } else { 0.0 };
                            let size = (0..k).map(|l| term(l).abs()).sum::<f64>() + 0.5;
                            let bound = (k + 1) as f64 * 2f64.powi(-24) * size;
                            assert!((c[i * (n + 3) + j] as f64 - want).abs() <= bound);
                        }
                        assert!(c[i * (n + 3) + n..][..3].iter().all(|&x| x == 0.5), "wrote past a row");
                    }
                }
            }
        }
    }

    #[test]
    fn packing_pads_with_zeros() {
        let x = noise(7 * 21, 3);
        let mut tile = vec![f32::NAN; pad_rows(7) * pad_cols(19)];
        pack(&x, 21, 7, 19, 2.0, &mut tile);
        for r in 0..pad_rows(7) {
            for c in 0..pad_cols(19) {
                let want = if r < 7 && c < 19 { 2.0 * x[r * 21 + c] } else { 0.0 };
                assert_eq!(tile[r * pad_cols(19) + c], want);
            }
        }
        for (rows, cols, width) in [(7, 19, 32), (16, 16, 16), (33, 37, 48), (64, 32, 64), (17, 1, 32)] {
            let stride = cols + 2;
            let x = noise(rows * stride, 4);
            let mut tile = vec![f32::NAN; cols * width];
            turn(&x, stride, rows, cols, width, &mut tile);
            for c in 0..cols {
                for r in 0..width {
                    assert_eq!(tile[c * width + r], if r < rows { x[r * stride + c] } else { 0.0 });
                }
            }
        }
    }
}
