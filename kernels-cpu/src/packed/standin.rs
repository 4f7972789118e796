//! Stands in for `blocks::dequantise_row` until it is there.
use crate::blocks::{Format, NF4};
use crate::half::{bf16_to_f32, f16_to_f32};

fn h(b: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([b[at], b[at + 1]]))
}

fn scale_min(j: usize, q: &[u8]) -> (f32, f32) {
    if j < 4 {
        ((q[j] & 63).into(), (q[j + 4] & 63).into())
    } else {
        (((q[j + 4] & 15) | (q[j - 4] >> 6) << 4).into(), ((q[j + 4] >> 4) | (q[j] >> 6) << 4).into())
    }
}

pub fn dequantise_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    let k = out.len();
    if k == 0 {
        return;
    }
    let row = format.row_bytes(k).unwrap();
    assert_eq!(bytes.len(), row);
    let len = format.block_len().unwrap_or(k);
    let size = row / (k / len);
    for (b, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(len)) {
        match format {
            Format::F32 => out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Format::F16 => out[0] = h(b, 0),
            Format::Bf16 => out[0] = bf16_to_f32(u16::from_le_bytes([b[0], b[1]])),
            Format::Q4_0 | Format::Int4Group(_) | Format::Nf4 => {
                let d = h(b, 0);
                let half = len / 2;
                for i in 0..len {
                    let q = b[2 + i % half] >> (i / half * 4) & 15;
                    out[i] = d * if format == Format::Nf4 { NF4[q as usize] } else { f32::from(q) - 8.0 };
                }
            }
            Format::Q4_1 => {
                for i in 0..32 {
                    out[i] = f32::from(b[4 + i % 16] >> (i / 16 * 4) & 15) * h(b, 0) + h(b, 2);
                }
            }
            Format::Q5_0 | Format::Q5_1 => {
                let at = if format == Format::Q5_0 { 2 } else { 4 };
                let high = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
                for i in 0..32 {
                    let q = u32::from(b[at + 4 + i % 16] >> (i / 16 * 4) & 15) | (high >> i & 1) << 4;
                    out[i] = if at == 2 { (q as f32 - 16.0) * h(b, 0) } else { q as f32 * h(b, 0) + h(b, 2) };
                }
            }
            Format::Q8_0 => (0..32).for_each(|i| out[i] = h(b, 0) * f32::from(b[2 + i] as i8)),
            Format::Int8Row => {
                let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                (0..k).for_each(|i| out[i] = d * f32::from(b[4 + i] as i8));
            }
            Format::Q2K => {
                let (d, min) = (h(b, 80), h(b, 82));
                for i in 0..256 {
                    let s = b[i / 16];
                    let q = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    out[i] = d * f32::from(s & 15) * f32::from(q) - min * f32::from(s >> 4);
                }
            }
            Format::Q3K => {
                let d = h(b, 108);
                for i in 0..256 {
                    let j = i / 16;
                    let low = b[96 + j % 8] >> (j / 8 * 4) & 15;
                    let s = i32::from(low | (b[104 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
                    let q = i32::from(b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
                    let q = q - if b[i % 32] >> (i / 32) & 1 == 1 { 0 } else { 4 };
                    out[i] = d * s as f32 * q as f32;
                }
            }
            Format::Q4K | Format::Q5K => {
                let (d, min) = (h(b, 0), h(b, 2));
                for i in 0..256 {
                    let (s, m) = scale_min(i / 32, &b[4..16]);
                    let at = if format == Format::Q4K { 16 } else { 48 };
                    let mut q = b[at + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
                    if format == Format::Q5K {
                        q |= (b[16 + i % 32] >> (i / 32) & 1) << 4;
                    }
                    out[i] = d * s * f32::from(q) - min * m;
                }
            }
            Format::Q6K => {
                let d = h(b, 208);
                for i in 0..256 {
                    let (half, r) = (i / 128, i % 128);
                    let low = b[half * 64 + r % 64] >> (r / 64 * 4) & 15;
                    let high = b[128 + half * 32 + r % 32] >> (r / 32 * 2) & 3;
                    let q = f32::from(low | high << 4) - 32.0;
                    out[i] = d * f32::from(b[192 + i / 16] as i8) * q;
                }
            }
        }
    }
}
