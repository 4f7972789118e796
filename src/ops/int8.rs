//! Symmetric int8: a row is cut into groups of `group` numbers (the last may be short; `group` at least the row's length means one
//! group), and `x ~ scale * q` with `scale = max |x| / 127` in each group and `q` in -127 ..= 127.

mod cases;
mod product;
pub(super) mod quantise;
#[cfg(test)]
mod tests;

use super::Spec;
use crate::tensor::{DType, TensorType};
pub use product::{MatmulQ8, MatmulQ8Q8};
pub use quantise::{Dequantize, QuantizeRows};
pub(super) use quantise::{group_scale, round};

/// Checks int8 values [.., C] and their scales [.., ceil(C / group)].
fn check(q: &TensorType, scales: &TensorType, group: usize) -> Result<(), String> {
    if q.dtype != DType::I8 || scales.dtype != DType::F32 {
        return Err("the values must be int8 and the scales f32".into());
    }
    let expected = scales_shape(&q.shape, group)?;
    if scales.shape != expected {
        return Err(format!("with groups of {group}, values {:?} need scales {expected:?}", q.shape));
    }
    Ok(())
}

/// The shape of the scales of values of this shape.
fn scales_shape(values: &[usize], group: usize) -> Result<Vec<usize>, String> {
    let Some((columns, lead)) = values.split_last() else {
        return Err("int8 values need at least one axis".into());
    };
    if group == 0 {
        return Err("a group must hold at least one number".into());
    }
    Ok([lead, &[columns.div_ceil(group)]].concat())
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("dequantize", cases::dequantize).timed(cases::dequantize_sizes),
        Spec::new("quantize_rows", cases::quantize).timed(cases::quantize_sizes),
        Spec::new("matmul_q8", cases::matmul_q8).timed(cases::matmul_q8_sizes),
        Spec::new("matmul_q8q8", cases::matmul_q8q8).timed(cases::matmul_q8q8_sizes),
    ]
}
