//! Numbers of 16 and 32 bits, as bytes.

use half::{bf16, f16};
use kernels_cpu::blocks::Format;

/// Bytes of one number in a format that has every number by itself.
pub(super) fn vector_format(format: Format) -> Option<usize> {
    match format {
        Format::F32 => Some(4),
        Format::F16 | Format::Bf16 => Some(2),
        _ => None,
    }
}

/// The numbers in `bytes`, which are of one of the formats that [`vector_format`] knows.
pub(super) fn to_f32(format: Format, bytes: &[u8]) -> impl Iterator<Item = f32> {
    let size = vector_format(format).unwrap_or(4);
    bytes.chunks_exact(size).map(move |b| match format {
        Format::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Format::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    })
}
