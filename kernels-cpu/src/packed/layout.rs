//! Between rows of a format's bytes and tiles (see [`Layout::Tiles`](super::Layout)).

use super::Packing;
use crate::blocks::{Format, NF4};
use crate::half::f16_to_f32;
use crate::threads::{SharedMut, par_rows, par_rows_mut};

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Bytes that one vector of codes has: a word for every row.
pub(super) const VECTOR: usize = 64;

/// Where things lie in a tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Bits of a code: 8 or 4.
    pub bits: usize,
    /// Vectors of codes.
    pub vectors: usize,
    /// Columns that share a scale.
    pub group: usize,
    /// Bytes of a scale: 2 (f16) or 4 (f32).
    pub scale: usize,
    /// Where the scales begin.
    pub scales_at: usize,
    pub bytes: usize,
}

impl Geometry {
    /// None where the format has no tiles. `columns` must be whole blocks.
    pub fn of(format: Format, columns: usize) -> Option<Self> {
        let (bits, group, scale) = match format {
            Format::Q8_0 => (8, 32, 2),
            Format::Int8Row => (8, columns, 4),
            Format::Q4_0 => (4, 32, 2),
            Format::Int4Group(n) => (4, n as usize, 2),
            Format::Nf4 => (4, 64, 2),
            _ => return None,
        };
        let vectors = columns.div_ceil(32 / bits);
        let scales_at = vectors * VECTOR;
        let groups = columns.div_ceil(group);
        let bytes = (scales_at + groups * TILE_ROWS * scale).next_multiple_of(VECTOR);
        Some(Geometry { bits, vectors, group, scale, scales_at, bytes })
    }

    /// Bytes of a block in the format's rows.
    fn block_bytes(&self) -> usize {
        self.scale + self.group * self.bits / 8
    }
}

/// What a code of the format stands for, before the scale.
pub(super) fn levels(format: Format) -> [f32; 16] {
    match format {
        Format::Nf4 => NF4,
        _ => std::array::from_fn(|q| q as f32 - 8.0),
    }
}

/// Row `r` of a matrix in tiles as `f32`.
pub(super) fn dequantise(packing: &Packing, packed: &[u8], r: usize, out: &mut [f32]) {
    let g = packing.geometry();
    let tile = &packed[r / TILE_ROWS * g.bytes..][..g.bytes];
    let lane = r % TILE_ROWS;
    let levels = levels(packing.format);
    for (i, out) in out.chunks_mut(g.group).enumerate() {
        let at = g.scales_at + (i * TILE_ROWS + lane) * g.scale;
        let scale = match g.scale {
            2 => f16_to_f32(u16::from_le_bytes([tile[at], tile[at + 1]])),
            _ => f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]),
        };
        let first = i * g.group * g.bits / 32;
        for (v, out) in out.chunks_mut(32 / g.bits).enumerate() {
            let at = (first + v) * VECTOR + 4 * lane;
            for (j, out) in out.iter_mut().enumerate() {
                let code = tile[at + j % 4];
                *out = scale
                    * match g.bits {
                        8 => f32::from((code ^ 0x80) as i8),
                        _ => levels[(code >> (j / 4 * 4) & 15) as usize],
                    };
            }
        }
    }
}

/// Eight 4-bit codes, one in the low half of each byte, as the word of a vector.
fn nibbles(codes: u64) -> u32 {
    (codes as u32) | ((codes >> 32) as u32) << 4
}

/// Packs the rows from `16 first_tile` on into whole tiles.
pub(super) fn pack(packing: &Packing, first_tile: usize, rows: &[u8], tiles: &mut [u8]) {
    let g = packing.geometry();
    let row_bytes = packing.row_bytes();
    let count = (tiles.len() / g.bytes).min(packing.tiles().saturating_sub(first_tile));
    par_rows_mut(&mut tiles[..count * g.bytes], g.bytes, g.bytes / 2, |first, tiles| {
        for (i, tile) in tiles.chunks_exact_mut(g.bytes).enumerate() {
            let from = (first + i) * TILE_ROWS;
            let lanes = TILE_ROWS.min(packing.rows - first_tile * TILE_ROWS - from);
            tile.fill(0);
            for (lane, row) in rows[from * row_bytes..][..lanes * row_bytes].chunks_exact(row_bytes).enumerate() {
                pack_row(&g, row, lane, tile);
            }
        }
    });
}

fn pack_row(g: &Geometry, row: &[u8], lane: usize, tile: &mut [u8]) {
    for (i, block) in row.chunks(g.block_bytes()).enumerate() {
        let (scale, codes) = block.split_at(g.scale);
        tile[g.scales_at + (i * TILE_ROWS + lane) * g.scale..][..g.scale].copy_from_slice(scale);
        let mut at = i * g.group * g.bits / 32 * VECTOR + 4 * lane;
        if g.bits == 8 {
            for word in codes.chunks(4) {
                for (to, code) in tile[at..].iter_mut().zip(word) {
                    *to = code ^ 0x80;
                }
                at += VECTOR;
            }
            continue;
        }
        // The low nibbles are the block's first half.
        for shift in [0, 4] {
            for bytes in codes.chunks_exact(8) {
                let bytes = u64::from_le_bytes(std::array::from_fn(|j| bytes[j]));
                let word = nibbles(bytes >> shift & 0x0f0f_0f0f_0f0f_0f0f);
                tile[at..at + 4].copy_from_slice(&word.to_le_bytes());
                at += VECTOR;
            }
        }
    }
}

/// The format's bytes of all rows.
pub(super) fn unpack(packing: &Packing, packed: &[u8], rows: &mut [u8]) {
    let g = packing.geometry();
    let row_bytes = packing.row_bytes();
    let out = SharedMut::new(rows);
    par_rows(packing.rows, row_bytes / 2, |range| {
        for r in range {
            // SAFETY: rows are disjoint.
            let row = unsafe { out.slice(r * row_bytes..(r + 1) * row_bytes) };
            unpack_bytes_of_row(&g, &packed[r / TILE_ROWS * g.bytes..][..g.bytes], r % TILE_ROWS, row);
        }
    });
}

fn unpack_bytes_of_row(g: &Geometry, tile: &[u8], lane: usize, row: &mut [u8]) {
    for (i, block) in row.chunks_mut(g.block_bytes()).enumerate() {
        let (scale, codes) = block.split_at_mut(g.scale);
        scale.copy_from_slice(&tile[g.scales_at + (i * TILE_ROWS + lane) * g.scale..][..g.scale]);
        let first = i * g.group * g.bits / 32 * VECTOR + 4 * lane;
        if g.bits == 8 {
            for (j, code) in codes.iter_mut().enumerate() {
                *code = tile[first + j / 4 * VECTOR + j % 4] ^ 0x80;
            }
            continue;
        }
        let half = codes.len();
        let nibble = |k: usize| tile[first + k / 8 * VECTOR + k % 4] >> (k % 8 / 4 * 4) & 15;
        for (j, code) in codes.iter_mut().enumerate() {
            *code = nibble(j) | nibble(j + half) << 4;
        }
    }
}
