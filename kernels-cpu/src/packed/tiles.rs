//! Products with tiles: a kernel takes one tile and a group of rows of x, and keeps their sums in registers.

use super::activations::{BLOCK_WORDS, Groups, groups, round_rows, with_interleaved, with_quantised};
use super::lanes::{Kind, Plain, Tile};
use super::layout::{Geometry, TILE_ROWS, VECTOR, levels};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Avx512};
use super::{Activations, Packing};
use crate::blocks::Format;
use crate::stream::{FAR, prefetch_far};
use crate::threads::{SharedMut, par_rows};

/// The most rows of x in a group.
pub(super) const MOST: usize = 8;
/// With up to so many rows of x, products are bound by reading the tiles.
pub(super) const FEW: usize = 4;
/// Columns whose products are summed apart where many share a scale: rounding errors grow with the number of such parts.
const FOLD: usize = 64;

/// One tile and one group of rows.
struct Task<'a> {
    geometry: &'a Geometry,
    levels: &'a [f32; 16],
    /// The tile.
    w: &'a [u8],
    x: X<'a>,
    /// [rows][16]
    out: *mut f32,
}

/// A group of rows, interleaved.
enum X<'a> {
    Floats(&'a [f32]),
    Integers { words: &'a [i32], scales: &'a [f32], offsets: &'a [i32], blocks: usize },
}

/// `y = x w^T`, all sizes at least 1.
pub(super) fn linear(packing: &Packing, activations: Activations, m: usize, x: &[f32], w: &[u8], y: &mut [f32]) {
    let geometry = packing.geometry();
    let columns = packing.columns;
    // The levels of NF4 are no integers.
    let integers = activations == Activations::Int8 && packing.format != Format::Nf4;
    let kind = Kind::best(integers);
    let groups = groups(kind, m);
    let levels = levels(packing.format);
    let tile = |tile: usize| &w[tile * geometry.bytes..][..geometry.bytes];
    if integers {
        let offset = if geometry.bits == 4 { -8 } else { kind.offset8() };
        with_quantised(groups, columns, x, offset, 1, |q| {
            let cost = columns * (1 + m);
            run(packing, groups, cost, y, |index, rows, out| {
                let at = rows.start * q.blocks;
                let x = X::Integers {
                    words: &q.words[at * BLOCK_WORDS..],
                    scales: &q.scales[at..],
                    offsets: &q.offsets[at..],
                    blocks: q.blocks,
                };
                let task = Task { geometry: &geometry, levels: &levels, w: tile(index), x, out };
                // SAFETY: the tile and the rows are there, `kind` is one this processor has.
                unsafe { dispatch(kind, true, rows.len(), &task) };
            });
        });
        return;
    }
    let mut rounded = Vec::new();
    let x = if activations == Activations::Int8 {
        rounded.resize(x.len(), 0.0);
        round_rows(columns, x, &mut rounded);
        &rounded
    } else {
        x
    };
    let padded = geometry.vectors * (32 / geometry.bits);
    with_interleaved(groups, columns, padded, x, |x| {
        let cost = 2 * columns * (1 + m);
        run(packing, groups, cost, y, |index, rows, out| {
            let x = X::Floats(&x[rows.start * padded..]);
            let task = Task { geometry: &geometry, levels: &levels, w: tile(index), x, out };
            // SAFETY: as above.
            unsafe { dispatch(kind, false, rows.len(), &task) };
        });
    });
}

/// Calls `kernel(tile, rows, out)` for every tile and group, on several threads where `cost` for each tile is worth it, and puts what it
/// wrote to `out` [rows][16] into `y`.
pub(super) fn run(
    packing: &Packing,
    groups: Groups,
    cost: usize,
    y: &mut [f32],
    kernel: impl Fn(usize, std::ops::Range<usize>, *mut f32) + Sync + Send,
) {
    let n = packing.rows;
    let y = SharedMut::new(y);
    par_rows(packing.tiles(), cost, |tiles| {
        let mut out = [0.0f32; MOST * TILE_ROWS];
        for tile in tiles {
            let first = tile * TILE_ROWS;
            let lanes = TILE_ROWS.min(n - first);
            for group in 0..groups.count() {
                let rows = groups.range(group);
                kernel(tile, rows.clone(), out.as_mut_ptr());
                for (r, out) in rows.zip(out.chunks_exact(TILE_ROWS)) {
                    // SAFETY: tiles own disjoint columns of y.
                    let y = unsafe { y.slice(r * n + first..r * n + first + lanes) };
                    y.copy_from_slice(&out[..lanes]);
                }
            }
        }
    });
}

impl Kind {
    fn offset8(self) -> i32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::OFFSET8,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::OFFSET8,
            _ => Plain::OFFSET8,
        }
    }
}

/// # Safety
/// The processor has what `kind` says, and the task's pointers are valid for a tile and `rows` rows, at most [`Kind::rows`].
unsafe fn dispatch(kind: Kind, integers: bool, rows: usize, task: &Task) {
    // SAFETY: passed on.
    unsafe {
        match (kind, integers) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, true) => integers_avx512(rows, task),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, false) => floats_avx512(rows, task),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, true) => integers_avx2(rows, task),
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx2, false) => floats_avx2(rows, task),
            (_, true) => integers_of::<Plain>(rows, task),
            (_, false) => floats_of::<Plain>(rows, task),
        }
    }
}

// SAFETY of the four: the contract of `dispatch`.

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn integers_avx512(rows: usize, task: &Task) {
    unsafe { integers_of_eight::<Avx512>(rows, task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn floats_avx512(rows: usize, task: &Task) {
    unsafe { floats_of_eight::<Avx512>(rows, task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn integers_avx2(rows: usize, task: &Task) {
    unsafe { integers_of::<Avx2>(rows, task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn floats_avx2(rows: usize, task: &Task) {
    unsafe { floats_of::<Avx2>(rows, task) }
}

/// Chooses the kernel for a number of rows, of at most four or eight.
macro_rules! by_rows {
    ($name:ident, $bits:ident::<$($n:literal)*>) => {
        #[inline(always)]
        unsafe fn $name<T: Tile>(rows: usize, task: &Task) {
            // SAFETY: the contract of `dispatch`.
            unsafe {
                match (rows, task.geometry.bits) {
                    $(($n, 8) => $bits::<T, 8, $n>(task),
                    ($n, _) => $bits::<T, 4, $n>(task),)*
                    _ => unreachable!("{rows} rows in a group"),
                }
            }
        }
    };
}

by_rows!(integers_of, integer_sums::<1 2 3 4>);
by_rows!(integers_of_eight, integer_sums::<1 2 3 4 5 6 7 8>);
by_rows!(floats_of, float_sums::<1 2 3 4>);
by_rows!(floats_of_eight, float_sums::<1 2 3 4 5 6 7 8>);

/// The scales of a tile's block.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn tile_scales<T: Tile>(g: &Geometry, w: &[u8], block: usize) -> T::F {
    // SAFETY: inside the tile.
    unsafe {
        let at = w.as_ptr().add(g.scales_at + block * TILE_ROWS * g.scale);
        if g.scale == 2 { T::load_f16(at) } else { T::load_f32(at) }
    }
}

/// `M` rows of int8 with codes of `BITS` bits. Blocks of the weights are whole blocks of the activations, or shorter rows.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn integer_sums<T: Tile, const BITS: usize, const M: usize>(t: &Task) {
    let (g, X::Integers { words, scales, offsets, blocks }) = (t.geometry, &t.x) else { return };
    let (mut w, mut x, blocks) = (t.w.as_ptr(), words.as_ptr(), *blocks);
    let mut vectors = g.vectors;
    // SAFETY: walks through the tile's vectors, the words, scales and offsets once, in order.
    unsafe {
        let mut totals = [T::splat(0.0); M];
        let (mut block, mut group) = (0, 0);
        while block < blocks {
            let end = blocks.min(block + g.group.div_ceil(super::BLOCK));
            let mut sums = [T::splat(0.0); M];
            while block < end {
                let mut dots: [T::I; M] = std::array::from_fn(|i| T::splat_i32(*offsets.as_ptr().add(block * M + i)));
                let steps = (BLOCK_WORDS * BITS / 8).min(vectors);
                for _ in 0..steps {
                    let codes = T::load(w);
                    if M <= FEW {
                        prefetch_far(w.wrapping_add(FAR));
                    }
                    w = w.add(VECTOR);
                    if BITS == 8 {
                        for (i, dot) in dots.iter_mut().enumerate() {
                            *dot = T::dot8(*dot, codes, *x.add(i));
                        }
                        x = x.add(M);
                    } else {
                        let (low, high) = T::nibbles(codes);
                        for (i, dot) in dots.iter_mut().enumerate() {
                            *dot = T::dot4(*dot, low, *x.add(i));
                        }
                        for (i, dot) in dots.iter_mut().enumerate() {
                            *dot = T::dot4(*dot, high, *x.add(M + i));
                        }
                        x = x.add(2 * M);
                    }
                }
                vectors -= steps;
                for (i, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                    *sum = T::fma(T::to_f32(dot), T::splat(*scales.as_ptr().add(block * M + i)), *sum);
                }
                block += 1;
            }
            let scale = tile_scales::<T>(g, t.w, group);
            if M <= FEW {
                // Those of the next tile, which are not on the way of its codes.
                prefetch_far(t.w.as_ptr().wrapping_add(g.bytes + g.scales_at + group * TILE_ROWS * g.scale));
            }
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = T::fma(sum, scale, *total);
            }
            group += 1;
        }
        for (i, total) in totals.into_iter().enumerate() {
            T::store(t.out.add(i * TILE_ROWS), total);
        }
    }
}

/// `M` rows of floats with codes of `BITS` bits.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn float_sums<T: Tile, const BITS: usize, const M: usize>(t: &Task) {
    match M {
        // Few rows leave the multiply-add waiting for the one before: several chains of sums.
        // SAFETY: passed on.
        1 => unsafe { float_chains::<T, BITS, M, 4>(t) },
        2 | 3 => unsafe { float_chains::<T, BITS, M, 2>(t) },
        _ => unsafe { float_chains::<T, BITS, M, 1>(t) },
    }
}

/// As [`float_sums`] with `C` sums for every row.
///
/// # Safety
/// As [`dispatch`].
#[inline(always)]
unsafe fn float_chains<T: Tile, const BITS: usize, const M: usize, const C: usize>(t: &Task) {
    let (g, X::Floats(x)) = (t.geometry, &t.x) else { return };
    let in_vector = 32 / BITS;
    let (mut w, mut x) = (t.w.as_ptr(), x.as_ptr());
    // SAFETY: walks through the tile's vectors and the numbers of x once, in order.
    unsafe {
        let levels = T::levels(t.levels);
        let mut totals = [T::splat(0.0); M];
        let fold = FOLD.min(g.group).div_ceil(in_vector);
        let per_group = g.group.div_ceil(in_vector);
        let mut vector = 0;
        while vector < g.vectors {
            let end = g.vectors.min(vector + fold);
            let scale = tile_scales::<T>(g, t.w, vector / per_group);
            let mut sums = [[T::splat(0.0); C]; M];
            while vector < end {
                let codes = T::load(w);
                if M <= FEW {
                    prefetch_far(w.wrapping_add(FAR));
                }
                w = w.add(VECTOR);
                macro_rules! steps {
                    ($($j:literal $values:expr),*) => {$(
                        let values = $values;
                        for (i, sums) in sums.iter_mut().enumerate() {
                            sums[$j % C] = T::fma(values, T::splat(*x.add($j * M + i)), sums[$j % C]);
                        }
                    )*};
                }
                if BITS == 8 {
                    steps!(0 T::byte::<0>(codes), 1 T::byte::<1>(codes), 2 T::byte::<2>(codes), 3 T::byte::<3>(codes));
                } else {
                    steps!(0 T::level::<0>(codes, levels), 1 T::level::<8>(codes, levels), 2 T::level::<16>(codes, levels),
                        3 T::level::<24>(codes, levels), 4 T::level::<4>(codes, levels), 5 T::level::<12>(codes, levels),
                        6 T::level::<20>(codes, levels), 7 T::level::<28>(codes, levels));
                }
                x = x.add(in_vector * M);
                vector += 1;
            }
            for (total, sums) in totals.iter_mut().zip(sums) {
                let mut sum = sums[0];
                for &other in &sums[1..] {
                    sum = T::add(sum, other);
                }
                *total = T::fma(sum, scale, *total);
            }
        }
        for (i, total) in totals.into_iter().enumerate() {
            T::store(t.out.add(i * TILE_ROWS), total);
        }
    }
}
