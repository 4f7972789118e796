//! Rows of every format to test and measure with.

use crate::blocks::Format;
use crate::half::f32_to_f16;

/// Rows of random bytes whose scales are numbers of up to 0.0135, of both signs, one in nine of them 0.
///
/// # Panics
/// If rows are not whole blocks.
pub fn random_rows(format: Format, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    let row = format.row_bytes(columns).unwrap_or_else(|e| panic!("{e}"));
    let mut bytes: Vec<u8> = (0..rows * row).map(|_| next() as u8).collect();
    let size = match format.block_len() {
        Some(len) if columns > 0 => row / (columns / len),
        _ => row,
    };
    for block in bytes.chunks_exact_mut(size.max(1)) {
        let mut number = || match next() % 9 {
            0 => 0.0,
            s => (s as f32 - 4.5) * 0.003,
        };
        let f16_at: &[usize] = match format {
            Format::F32 => {
                block.copy_from_slice(&number().to_le_bytes());
                continue;
            }
            Format::Int8Row => {
                block[..4].copy_from_slice(&number().to_le_bytes());
                continue;
            }
            Format::Bf16 => {
                block.copy_from_slice(&((number().to_bits() >> 16) as u16).to_le_bytes());
                continue;
            }
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
            _ => &[0],
        };
        for &at in f16_at {
            block[at..at + 2].copy_from_slice(&f32_to_f16(number()).to_le_bytes());
        }
    }
    bytes
}
