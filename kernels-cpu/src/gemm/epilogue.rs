//! What happens to a product before it is final.

use super::blocked::Output;
use super::matrix::Matrix;
use crate::simd::{LANES, Lanes};
use crate::{half, math};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    #[default]
    None,
    Relu,
    Silu,
    GeluTanh,
    GeluErf,
}

/// What happens to the product before it is final: `activation(c + bias) + residual`, in `f32`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One number per column, [n].
    pub bias: Option<Matrix<'a>>,
    pub activation: Activation,
    /// Like the product, with the same row stride (`ldc`), and in a batch the same distance between matrices.
    pub residual: Option<Matrix<'a>>,
}

impl<'a> Epilogue<'a> {
    pub fn is_none(&self) -> bool {
        self.bias.is_none() && self.activation == Activation::None && self.residual.is_none()
    }

    /// The epilogue of the part of the product that starts `elements` into the result.
    pub(super) fn at(self, elements: usize) -> Self {
        Epilogue { residual: self.residual.map(|r| r.tail(elements)), ..self }
    }
}

/// Finishes a tile of `rows` by `columns` sums, `ld` apart in `sums`: `c = activation(sums + bias) + residual`, plus the old `c` before the
/// bias when accumulating into a result of 16 bits (in `f32` the sums are in `c` itself and include it). The tile starts `at` elements
/// into the result and at `column`.
///
/// # Safety
/// `sums` and `c` are valid for the tile.
pub(super) unsafe fn finish_tile(
    rows: usize,
    columns: usize,
    sums: *mut f32,
    ld: usize,
    c: Output,
    at: usize,
    column: usize,
    ldc: usize,
    accumulate: bool,
    epilogue: &Epilogue,
) {
    if matches!(c, Output::F32(_)) && epilogue.is_none() {
        return;
    }
    let bias = epilogue.bias.map(|b| b.tail(column));
    let (activation, residual) = (epilogue.activation, epilogue.residual.map(|r| r.tail(at)));
    // SAFETY: the contract of this function.
    unsafe { finish_rows(rows, columns, sums, ld, c.at(at), ldc, accumulate, bias, activation, residual) };
}

crate::multiversion! {
    /// [`finish_tile`] with a result, a bias and a residual that start at the tile.
    unsafe fn finish_rows<V>(
        rows: usize,
        columns: usize,
        sums: *mut f32,
        ld: usize,
        c: Output,
        ldc: usize,
        accumulate: bool,
        bias: Option<Matrix>,
        activation: Activation,
        residual: Option<Matrix>,
    ) {
        for i in 0..rows {
            // SAFETY: a row of the tile, in `sums` and in the result.
            let (row, c) = unsafe {
                let c = match c {
                    Output::F32(_) => None,
                    Output::Bf16(c) => Some((std::slice::from_raw_parts_mut(c.add(i * ldc), columns), true)),
                    Output::F16(c) => Some((std::slice::from_raw_parts_mut(c.add(i * ldc), columns), false)),
                };
                (std::slice::from_raw_parts_mut(sums.add(i * ld), columns), c)
            };
            if let Some((c, bf16)) = &c
                && accumulate
            {
                add(row, Some(if *bf16 { Matrix::Bf16(c) } else { Matrix::F16(c) }));
            }
            add(row, bias);
            match activation {
                Activation::None => {}
                Activation::Relu => apply(row, |x| x.max(0.0)),
                Activation::Silu => apply(row, |x| math::silu::<V>(x)),
                Activation::GeluTanh => apply(row, |x| math::gelu_tanh::<V>(x)),
                Activation::GeluErf => apply(row, |x| math::gelu_erf::<V>(x)),
            }
            add(row, residual.map(|r| r.tail(i * ldc)));
            match c {
                None => {}
                Some((c, true)) => c.iter_mut().zip(row).for_each(|(c, x)| *c = half::f32_to_bf16(*x)),
                Some((c, false)) => c.iter_mut().zip(row).for_each(|(c, x)| *c = half::f32_to_f16(*x)),
            }
        }
    }
}

/// Applies `f` to whole vectors, the last filled up with zeros, so that no element takes the slow way.
#[inline(always)]
fn apply(row: &mut [f32], f: impl Fn(f32) -> f32) {
    let mut chunks = row.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for x in chunk {
            *x = f(*x);
        }
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        let mut whole = Lanes::load_partial(rest, 0.0);
        for x in &mut whole.0 {
            *x = f(*x);
        }
        rest.copy_from_slice(&whole.0[..rest.len()]);
    }
}

#[inline(always)]
fn add(row: &mut [f32], x: Option<Matrix>) {
    match x {
        None => {}
        Some(Matrix::F32(x)) => row.iter_mut().zip(x).for_each(|(c, &x)| *c += x),
        Some(Matrix::Bf16(x)) => row.iter_mut().zip(x).for_each(|(c, &x)| *c += half::bf16_to_f32(x)),
        Some(Matrix::F16(x)) => row.iter_mut().zip(x).for_each(|(c, &x)| *c += half::f16_to_f32(x)),
    }
}
