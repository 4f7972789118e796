//! Products with rows of any format. Plain numbers are multiplied where they lie; blocks are dequantised a row or a panel at a time.

use super::{Layout, Packing, TILE_ROWS};
use crate::attention::with_scratch;
use crate::blocks::{Format, dequantise_row};
use crate::gemm::{self, Epilogue, Matrix};
use crate::simd::dot;
use crate::threads::{SharedMut, par_rows};

/// Up to this many rows of x, weights are dequantised a row at a time.
const FEW_ROWS: usize = 8;
/// Floats of a dequantised panel: half of a large L2, or a few rows however long they are.
const PANEL: usize = 1 << 18;

/// Row `r` as `f32`.
pub(super) fn dequantise(packing: &Packing, packed: &[u8], r: usize, out: &mut [f32]) {
    let bytes = packing.row_bytes();
    dequantise_row(packing.format, &packed[r * bytes..][..bytes], out);
}

/// The matrix as numbers that the products of [`gemm`] read themselves; none for blocks, or where the bytes are not aligned.
fn plain<'a>(packing: &Packing, w: &'a [u8]) -> Option<Matrix<'a>> {
    let w = &w[..packing.bytes()];
    if cfg!(target_endian = "big") {
        return None;
    }
    let matrix = match packing.format {
        // SAFETY (all three): every pattern of bits is a number.
        Format::F32 => match unsafe { w.align_to::<f32>() } {
            ([], w, []) => Matrix::F32(w),
            _ => return None,
        },
        Format::F16 | Format::Bf16 => match unsafe { w.align_to::<u16>() } {
            ([], w, []) if packing.format == Format::F16 => Matrix::F16(w),
            ([], w, []) => Matrix::Bf16(w),
            _ => return None,
        },
        _ => return None,
    };
    Some(matrix)
}

/// `y = activation(x w^T + bias) + residual`, all sizes at least 1.
pub(super) fn linear(packing: &Packing, m: usize, x: &[f32], w: &[u8], y: &mut [f32], epilogue: Epilogue) {
    let (n, k) = (packing.rows, packing.columns);
    if let Some(matrix) = plain(packing, w) {
        return gemm::gemm_mixed(false, true, m, n, k, x.into(), k, matrix, k, false, y.into(), n, epilogue);
    }
    if m <= FEW_ROWS {
        few_rows(packing, m, x, w, y);
    } else {
        let panel = (PANEL / k).next_multiple_of(48).max(48);
        let mut wide = vec![0.0; panel.min(n) * k];
        for first in (0..n).step_by(panel) {
            let count = panel.min(n - first);
            let part = Packing { rows: count, ..*packing };
            // A panel is whole tiles.
            let at = match packing.layout {
                Layout::Rows => first * packing.row_bytes(),
                Layout::Tiles => first / TILE_ROWS * packing.tile_bytes(),
            };
            super::unpack(&part, &w[at..], &mut wide[..count * k]);
            gemm::gemm_mixed(
                false,
                true,
                m,
                count,
                k,
                x.into(),
                k,
                (&wide[..count * k]).into(),
                k,
                false,
                (&mut y[first..]).into(),
                n,
                Epilogue::default(),
            );
        }
    }
    if !epilogue.is_none() {
        gemm::gemm_epilogue(false, false, m, n, 0, &[], 0, &[], n, true, y, n, epilogue);
    }
}

crate::multiversion! {
    fn dots<V>(m: usize, x: &[f32], w: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(w.len())).take(m) {
            *out = dot::<V>(x, w);
        }
    }
}

fn few_rows(packing: &Packing, m: usize, x: &[f32], w: &[u8], y: &mut [f32]) {
    let (n, k) = (packing.rows, packing.columns);
    let y = SharedMut::new(y);
    par_rows(n, k * (4 + m) / 4, |range| {
        with_scratch(k, |row| {
            for j in range {
                super::unpack_row(packing, w, j, row);
                let mut out = [0.0; FEW_ROWS];
                dots(m, x, row, &mut out);
                for (i, out) in out.into_iter().take(m).enumerate() {
                    // SAFETY: each row of w has its own column of y.
                    let y = unsafe { y.slice(i * n + j..i * n + j + 1) };
                    y[0] = out;
                }
            }
        });
    });
}
