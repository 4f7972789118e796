//! Matrices of weights in the formats they are stored in (`kernels_cpu::packed`): products with them, rows of them, and all of them as
//! f32. A packed matrix is one int8 variable of as many bytes as its [`Packing`] says.

mod cases;
mod gpu;
mod linear;
mod rows;
#[cfg(test)]
mod tests;

use super::Spec;
use crate::tensor::{DType, RefTensor, TensorType};
pub(in crate::ops) use gpu::values;
pub use kernels_cpu::packed::{Activations, Layout, Packing};
pub use linear::PackedLinear;
pub use rows::{PackedEmbedding, Unpack};

/// Checks the operand that is a packed matrix.
fn check(packing: &Packing, w: &TensorType) -> Result<(), String> {
    let bytes = packing.checked_bytes()?;
    if w.dtype != DType::I8 || w.shape != [bytes] {
        let Packing { format, layout, rows, columns } = packing;
        let order = if *layout == Layout::Tiles { "tiles" } else { "rows" };
        return Err(format!("[{rows}, {columns}] of {format} in {order} must be int8 [{bytes}], it is {w}"));
    }
    Ok(())
}

/// The type of a variable that holds a packed matrix.
///
/// # Errors
/// As [`Packing::new`].
pub fn packed_type(packing: &Packing) -> Result<TensorType, String> {
    Ok(TensorType::new(DType::I8, &[packing.checked_bytes()?]))
}

/// The numbers of a packed matrix [rows, columns], as the definition of its format gives them in f32.
fn numbers(packing: &Packing, w: &RefTensor) -> Vec<f64> {
    let bytes: Vec<u8> = w.data.iter().map(|b| *b as i8 as u8).collect();
    let mut wide = vec![0.0f32; packing.rows * packing.columns];
    kernels_cpu::packed::unpack(packing, &bytes, &mut wide);
    wide.into_iter().map(f64::from).collect()
}

/// The bytes of a packed operand on the CPU.
fn bytes(w: &[i8]) -> &[u8] {
    // SAFETY: int8 and unsigned bytes have one layout.
    unsafe { std::slice::from_raw_parts(w.as_ptr().cast(), w.len()) }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("packed_embedding", cases::embedding).timed(cases::embedding_sizes),
        Spec::new("packed_linear", cases::linear).timed(cases::linear_sizes),
        Spec::new("packed_unpack", cases::unpack).timed(cases::unpack_sizes),
    ]
}
