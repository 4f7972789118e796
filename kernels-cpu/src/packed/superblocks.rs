//! Tiles of the superblocks of 256 numbers (`Q4_K`, `Q5_K`, `Q6_K`), and products with them in integers.
//!
//! A superblock of sixteen rows has, one after the other: the low four bits of its codes, 8 columns in 64 bytes as in the tiles of 4-bit
//! formats; the fifth bits (32 columns in 64 bytes) or the fifth and sixth (16 columns): bits E s to E s + E - 1 of byte b of a row's word
//! belong to column 4 s + b; for every group of columns 16 scales and, where there are any, 16 minima, a byte each; 16 f16 d and dmin.
//! Everything that the format says is kept: it is two bytes a row longer where it does not come to whole 64 bytes, and scales have a byte
//! instead of six bits.

use super::activations::{BLOCK_WORDS, Groups, Quantised, groups, with_quantised};
use super::lanes::{Kind, Plain, Tile};
use super::layout::{TILE_ROWS, VECTOR};
use super::tiles::{FEW, MOST, run};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{BLOCK, Packing};
use crate::blocks::{Format, dequantise_row, scales_and_minima};
use crate::stream::{FAR, prefetch_far};
use crate::threads::{SharedMut, par_rows, par_rows_mut};

/// Numbers of a superblock.
const LEN: usize = 256;
/// Bytes of the low bits of a tile's superblock.
const LOW: usize = LEN / 8 * VECTOR;

/// Where things lie in a tile's superblock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    format: Format,
    /// Bits of a code above the fourth.
    extra: usize,
    /// Groups of columns that share a scale.
    groups: usize,
    /// Whether a minimum is subtracted; else 32 from every code.
    minima: bool,
    scales_at: usize,
    d_at: usize,
    bytes: usize,
}

impl Shape {
    /// None for other formats.
    pub fn of(format: Format) -> Option<Self> {
        let (extra, groups, minima) = match format {
            Format::Q4K => (0, 8, true),
            Format::Q5K => (1, 8, true),
            Format::Q6K => (2, 16, false),
            _ => return None,
        };
        let kinds = 1 + usize::from(minima);
        let scales_at = LOW + extra * LEN / 32 * VECTOR;
        let d_at = scales_at + kinds * groups * TILE_ROWS;
        let bytes = (d_at + kinds * TILE_ROWS * 2).next_multiple_of(VECTOR);
        Some(Shape { format, extra, groups, minima, scales_at, d_at, bytes })
    }

    /// Bytes of a tile of so many columns, which are whole superblocks.
    pub fn tile_bytes(&self, columns: usize) -> usize {
        columns / LEN * self.bytes
    }
}

/// Bytes of a superblock of a row.
fn block_bytes(packing: &Packing) -> usize {
    packing.row_bytes() / (packing.columns / LEN)
}

/// What a superblock of a row says.
struct Parts {
    codes: [u8; LEN],
    scales: [u8; 16],
    minima: [u8; 16],
    d: [u8; 2],
    dmin: [u8; 2],
}

/// Where the four low bits of code `i` are in the format's bytes of them, and by how much they are shifted.
fn low_at(format: Format, i: usize) -> (usize, usize) {
    match format {
        // Halves of 128: 64 bytes, whose low nibbles come first.
        Format::Q6K => (i / 128 * 64 + i % 64, i % 128 / 64 * 4),
        // Pairs of blocks of 32: 32 bytes.
        _ => (i / 64 * 32 + i % 32, i % 64 / 32 * 4),
    }
}

/// Where the other bits of code `i` are, likewise.
fn extra_at(format: Format, i: usize) -> (usize, usize) {
    match format {
        Format::Q6K => (i / 128 * 32 + i % 32, i % 128 / 32 * 2),
        _ => (i % 32, i / 32),
    }
}

impl Parts {
    fn read(shape: &Shape, b: &[u8]) -> Self {
        let mut parts = Parts { codes: [0; LEN], scales: [0; 16], minima: [0; 16], d: [0; 2], dmin: [0; 2] };
        let (low, extra) = match shape.format {
            Format::Q6K => {
                parts.scales.copy_from_slice(&b[192..208]);
                parts.d.copy_from_slice(&b[208..]);
                (&b[..128], &b[128..192])
            }
            _ => {
                let (scales, minima) = scales_and_minima(b[4..16].try_into().expect("12 bytes"));
                parts.scales[..8].copy_from_slice(&scales);
                parts.minima[..8].copy_from_slice(&minima);
                parts.d.copy_from_slice(&b[..2]);
                parts.dmin.copy_from_slice(&b[2..4]);
                b[16..].split_at_checked(32 * shape.extra).map_or((&b[16..], &b[..0]), |(extra, low)| (low, extra))
            }
        };
        let mask = (1u8 << shape.extra) - 1;
        for (i, code) in parts.codes.iter_mut().enumerate() {
            let (at, shift) = low_at(shape.format, i);
            *code = low[at] >> shift & 15;
            if shape.extra > 0 {
                let (at, shift) = extra_at(shape.format, i);
                *code |= (extra[at] >> shift & mask) << 4;
            }
        }
        parts
    }

    fn write(&self, shape: &Shape, b: &mut [u8]) {
        b.fill(0);
        let (low, extra) = match shape.format {
            Format::Q6K => {
                b[192..208].copy_from_slice(&self.scales);
                b[208..].copy_from_slice(&self.d);
                b[..192].split_at_mut(128)
            }
            _ => {
                b[..2].copy_from_slice(&self.d);
                b[2..4].copy_from_slice(&self.dmin);
                let (s, m) = (&self.scales, &self.minima);
                for i in 0..4 {
                    b[4 + i] = s[i] | s[i + 4] >> 4 << 6;
                    b[8 + i] = m[i] | m[i + 4] >> 4 << 6;
                    b[12 + i] = s[i + 4] & 15 | m[i + 4] << 4;
                }
                let (extra, low) = b[16..].split_at_mut(32 * shape.extra);
                (low, extra)
            }
        };
        for (i, code) in self.codes.iter().enumerate() {
            let (at, shift) = low_at(shape.format, i);
            low[at] |= (code & 15) << shift;
            if shape.extra > 0 {
                let (at, shift) = extra_at(shape.format, i);
                extra[at] |= code >> 4 << shift;
            }
        }
    }

    /// Of row `lane` of a tile's superblock.
    fn load(shape: &Shape, tile: &[u8], lane: usize) -> Self {
        let byte = |at: usize| tile[shape.scales_at + at * TILE_ROWS + lane];
        let half = |at: usize| [tile[at + 2 * lane], tile[at + 2 * lane + 1]];
        let mut parts = Parts { codes: [0; LEN], scales: [0; 16], minima: [0; 16], d: half(shape.d_at), dmin: [0; 2] };
        (0..shape.groups).for_each(|g| parts.scales[g] = byte(g));
        if shape.minima {
            (0..shape.groups).for_each(|g| parts.minima[g] = byte(shape.groups + g));
            parts.dmin = half(shape.d_at + 2 * TILE_ROWS);
        }
        let mask = (1u8 << shape.extra) - 1;
        for (i, code) in parts.codes.iter_mut().enumerate() {
            *code = tile[i / 8 * VECTOR + 4 * lane + i % 4] >> (i % 8 / 4 * 4) & 15;
            if let Some((at, shift)) = shape.extra_of(i) {
                *code |= (tile[at + 4 * lane + i % 4] >> shift & mask) << 4;
            }
        }
        parts
    }

    /// Into row `lane` of a tile's superblock of zeros.
    fn store(&self, shape: &Shape, tile: &mut [u8], lane: usize) {
        for g in 0..shape.groups {
            tile[shape.scales_at + g * TILE_ROWS + lane] = self.scales[g];
            if shape.minima {
                tile[shape.scales_at + (shape.groups + g) * TILE_ROWS + lane] = self.minima[g];
            }
        }
        tile[shape.d_at + 2 * lane..][..2].copy_from_slice(&self.d);
        if shape.minima {
            tile[shape.d_at + 2 * (TILE_ROWS + lane)..][..2].copy_from_slice(&self.dmin);
        }
        for (i, code) in self.codes.iter().enumerate() {
            tile[i / 8 * VECTOR + 4 * lane + i % 4] |= (code & 15) << (i % 8 / 4 * 4);
            if let Some((at, shift)) = shape.extra_of(i) {
                tile[at + 4 * lane + i % 4] |= code >> 4 << shift;
            }
        }
    }
}

impl Shape {
    /// The vector with the upper bits of column `i`, and by how much they are shifted there.
    fn extra_of(&self, i: usize) -> Option<(usize, usize)> {
        let columns = 32usize.checked_div(self.extra)?;
        Some((LOW + i / columns * VECTOR, i % columns / 4 * self.extra))
    }
}

/// Packs the rows from `16 first_tile` on into whole tiles.
pub(super) fn pack(shape: &Shape, packing: &Packing, first_tile: usize, rows: &[u8], tiles: &mut [u8]) {
    let (row, tile_bytes) = (packing.row_bytes(), shape.tile_bytes(packing.columns));
    let count = (tiles.len() / tile_bytes).min(packing.tiles().saturating_sub(first_tile));
    par_rows_mut(&mut tiles[..count * tile_bytes], tile_bytes, 4 * tile_bytes, |first, tiles| {
        for (i, tile) in tiles.chunks_exact_mut(tile_bytes).enumerate() {
            let from = (first + i) * TILE_ROWS;
            let lanes = TILE_ROWS.min(packing.rows - first_tile * TILE_ROWS - from);
            tile.fill(0);
            for (lane, row) in rows[from * row..][..lanes * row].chunks_exact(row).enumerate() {
                let blocks = row.chunks_exact(block_bytes(packing)).zip(tile.chunks_exact_mut(shape.bytes));
                blocks.for_each(|(block, tile)| Parts::read(shape, block).store(shape, tile, lane));
            }
        }
    });
}

/// The format's bytes of row `r`.
fn bytes_of_row(shape: &Shape, packing: &Packing, packed: &[u8], r: usize, row: &mut [u8]) {
    let tile_bytes = shape.tile_bytes(packing.columns);
    let tile = &packed[r / TILE_ROWS * tile_bytes..][..tile_bytes];
    let blocks = row.chunks_exact_mut(block_bytes(packing)).zip(tile.chunks_exact(shape.bytes));
    blocks.for_each(|(block, tile)| Parts::load(shape, tile, r % TILE_ROWS).write(shape, block));
}

/// The format's bytes of all rows.
pub(super) fn unpack(shape: &Shape, packing: &Packing, packed: &[u8], rows: &mut [u8]) {
    let row = packing.row_bytes();
    let out = SharedMut::new(rows);
    par_rows(packing.rows, 4 * packing.columns, |range| {
        for r in range {
            // SAFETY: rows are disjoint.
            bytes_of_row(shape, packing, packed, r, unsafe { out.slice(r * row..(r + 1) * row) });
        }
    });
}

/// Row `r` as `f32`.
pub(super) fn dequantise(shape: &Shape, packing: &Packing, packed: &[u8], r: usize, out: &mut [f32]) {
    let mut row = vec![0; packing.row_bytes()];
    bytes_of_row(shape, packing, packed, r, &mut row);
    dequantise_row(packing.format, &row, out);
}

/// One tile and one group of rows.
struct Task<'a> {
    shape: &'a Shape,
    superblocks: usize,
    w: &'a [u8],
    words: &'a [i32],
    scales: &'a [f32],
    /// Sums of codes of x: of every block, or -32 times those of its halves.
    sums: &'a [i32],
    /// [rows][16]
    out: *mut f32,
}

/// `y = x w^T` with x rounded to int8, all sizes at least 1.
pub(super) fn linear(shape: &Shape, packing: &Packing, m: usize, x: &[f32], w: &[u8], y: &mut [f32]) {
    let kind = Kind::best(true);
    let groups: Groups = groups(kind, m);
    let (columns, tile_bytes) = (packing.columns, shape.tile_bytes(packing.columns));
    let (offset, parts) = if shape.minima { (1, 1) } else { (-32, 2) };
    with_quantised(groups, columns, x, offset, parts, |q: &Quantised| {
        run(packing, groups, columns * (1 + m), y, |index, rows, out| {
            let at = rows.start * q.blocks;
            let task = Task {
                shape,
                superblocks: columns / LEN,
                w: &w[index * tile_bytes..][..tile_bytes],
                words: &q.words[at * BLOCK_WORDS..],
                scales: &q.scales[at..],
                sums: &q.offsets[at * parts..],
                out,
            };
            // SAFETY: the tile and the rows are there, `kind` is one this processor has.
            unsafe { dispatch(kind, rows.len(), &task) };
        });
    });
}

/// # Safety
/// The processor has what `kind` says, and the task's slices hold a tile and `rows` rows, at most [`Kind::rows`].
unsafe fn dispatch(kind: Kind, rows: usize, task: &Task) {
    // SAFETY: passed on.
    unsafe {
        match kind {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => avx512(rows, task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2(rows, task),
            _ => few::<Plain>(rows, task),
        }
    }
}

// SAFETY of both: the contract of `dispatch`.

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn avx512(rows: usize, task: &Task) {
    unsafe { many::<Avx512>(rows, task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(rows: usize, task: &Task) {
    unsafe { few::<Avx2>(rows, task) }
}

/// Chooses the kernel for a number of rows.
macro_rules! by_rows {
    ($name:ident: $($n:literal)*) => {
        #[inline(always)]
        unsafe fn $name<T: Tile>(rows: usize, task: &Task) {
            // SAFETY: the contract of `dispatch`.
            unsafe {
                match (rows, task.shape.extra) {
                    $(($n, 0) => sums::<T, 0, $n>(task),
                    ($n, 1) => sums::<T, 1, $n>(task),
                    ($n, _) => sums::<T, 2, $n>(task),)*
                    _ => unreachable!("{rows} rows in a group"),
                }
            }
        }
    };
}

by_rows!(few: 1 2 3 4);
by_rows!(many: 1 2 3 4 5 6 7 8);

const _: () = assert!(MOST == 8 && BLOCK == 32);

/// `M` rows; codes have `E` bits above the fourth, and minima where these are fewer than two.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn sums<T: Tile, const E: usize, const M: usize>(t: &Task) {
    let shape = t.shape;
    // What a block of 32 columns consists of: its groups of columns, and vectors of four bits in each.
    let (groups, vectors) = if E < 2 { (1, 4) } else { (2, 2) };
    let (mut x, mut scales, mut sums) = (t.words.as_ptr(), t.scales.as_ptr(), t.sums.as_ptr());
    // SAFETY: walks through the tile, the words, the scales and the sums once, in order.
    unsafe {
        let mut totals = [T::splat(0.0); M];
        for s in 0..t.superblocks {
            let w = t.w.as_ptr().add(s * shape.bytes);
            let d = T::load_f16(w.add(shape.d_at));
            let less = match E {
                2 => d,
                _ => T::mul(T::load_f16(w.add(shape.d_at + 2 * TILE_ROWS)), T::splat(-1.0)),
            };
            for block in 0..LEN / BLOCK {
                if M <= FEW {
                    let share = shape.bytes.div_ceil(LEN / BLOCK);
                    for line in (block * share..(block + 1) * share).step_by(VECTOR) {
                        prefetch_far(w.wrapping_add(FAR + line));
                    }
                }
                let mut block_sums = [T::splat(0.0); M];
                for part in 0..groups {
                    let group = block * groups + part;
                    let mut dots: [T::I; M] =
                        std::array::from_fn(|i| T::splat_i32(if E < 2 { 0 } else { *sums.add(part * M + i) }));
                    let upper = w.add(LOW + group * VECTOR);
                    for v in 0..vectors {
                        let (mut low, mut high) = T::nibbles(T::load(w.add((group * vectors + v) * VECTOR)));
                        if E > 0 {
                            let upper = T::load(upper);
                            low = T::join::<E>(low, upper, 2 * v * E);
                            high = T::join::<E>(high, upper, (2 * v + 1) * E);
                        }
                        for (i, dot) in dots.iter_mut().enumerate() {
                            *dot = T::dot4(*dot, low, *x.add(i));
                        }
                        for (i, dot) in dots.iter_mut().enumerate() {
                            *dot = T::dot4(*dot, high, *x.add(M + i));
                        }
                        x = x.add(2 * M);
                    }
                    let at = w.add(shape.scales_at + group * TILE_ROWS);
                    if E < 2 {
                        let scale = T::mul(d, T::load_u8(at));
                        let minimum = T::mul(less, T::load_u8(at.add(LEN / BLOCK * TILE_ROWS)));
                        for (i, (sum, dot)) in block_sums.iter_mut().zip(dots).enumerate() {
                            let less = T::mul(minimum, T::splat(*sums.add(i) as f32));
                            *sum = T::fma(T::to_f32(dot), scale, less);
                        }
                    } else {
                        let scale = T::mul(d, T::load_i8(at));
                        for (sum, dot) in block_sums.iter_mut().zip(dots) {
                            *sum = T::fma(T::to_f32(dot), scale, *sum);
                        }
                    }
                }
                for (i, (total, sum)) in totals.iter_mut().zip(block_sums).enumerate() {
                    *total = T::fma(sum, T::splat(*scales.add(i)), *total);
                }
                scales = scales.add(M);
                sums = sums.add(groups * M);
            }
        }
        for (i, total) in totals.into_iter().enumerate() {
            T::store(t.out.add(i * TILE_ROWS), total);
        }
    }
}
