//! The micro-kernel: one tile of the result, held in registers while the terms of one block of k are added.
//!
//! A tile is [`Kernel::rows`] rows by up to three vectors of columns. Each step along k loads three vectors of `b` and multiplies them
//! with one number of `a` for every row. With AVX-512 that is 8 rows by 48 columns: 24 registers of sums, 3 of `b` and one broadcast
//! number of `a`; 11 loads feed 24 multiply-adds, and 24 sums in flight hide the latency of the multiply-add
//! (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008; Van Zee and van de Geijn, "BLIS", 2015).
//!
//! The code is written once over [`Simd`] and compiled for every size of tile, so that the edges of a result run at the same speed per
//! vector as its middle.

/// The vectors of an instruction set.
///
/// # Safety
/// Methods need the instruction set, and pointers valid for what they load and store. All are inlined into functions that have it.
pub(super) trait Simd {
    /// `f32` sums in a vector.
    const LANES: usize;
    type V: Copy;
    unsafe fn zero() -> Self::V;
    /// One 32-bit element of `a` in all lanes.
    unsafe fn splat(p: *const f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// `a b + c` per lane.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `count` lanes, the others zero; memory beyond them is not touched.
    unsafe fn load_first(p: *const f32, count: usize) -> Self::V;
    unsafe fn store_first(p: *mut f32, count: usize, v: Self::V);
    /// Says that the cache line of `p`, which need not be valid, will be used soon.
    unsafe fn prefetch(p: *const f32);
}

/// What a micro-kernel computes: `c = a b`, or `c += a b`, on one tile.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Steps along k.
    pub k: usize,
    pub a: *const f32,
    /// Elements between rows of `a`, and between its steps.
    pub a_row: usize,
    pub a_step: usize,
    pub b: *const f32,
    /// Elements between the steps of `b`; its columns are adjacent, and whole vectors of them can be read.
    pub b_step: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// Columns of the tile that exist: the last vector may be cut.
    pub columns: usize,
    pub accumulate: bool,
}

/// # Safety
/// The pointers of the tile are valid for what [`Tile`] says, and the processor has the instruction set.
pub(super) type Micro = unsafe fn(&Tile);

/// A micro-kernel for an instruction set.
pub(super) struct Kernel {
    pub name: &'static str,
    /// Columns in a vector.
    pub lanes: usize,
    /// Rows of a whole tile.
    pub rows: usize,
    /// Numbers along k in one step: 2 where elements are pairs of bfloat16.
    pub depth: usize,
    /// Whether packing may use AVX2 and F16C.
    pub avx2: bool,
    /// `table[rows - 1][vectors - 1]`.
    pub table: &'static [[Micro; VECTORS]],
}

/// Vectors of columns in a whole tile.
pub(super) const VECTORS: usize = 3;

impl Kernel {
    /// Columns of a whole tile.
    pub fn columns(&self) -> usize {
        VECTORS * self.lanes
    }
}

#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const M: usize, const N: usize>(t: &Tile) {
    // SAFETY: the contract of `Micro`.
    unsafe {
        let mut sums = [[S::zero(); N]; M];
        for i in 0..M {
            for j in 0..N {
                S::prefetch(t.c.wrapping_add(i * t.ldc + j * S::LANES));
            }
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            let mut columns = [S::zero(); N];
            for (j, v) in columns.iter_mut().enumerate() {
                *v = S::load(b.add(j * S::LANES));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(a.add(i * t.a_row));
                for (sum, &v) in sums.iter_mut().zip(&columns) {
                    *sum = S::fma(x, v, *sum);
                }
            }
            a = a.wrapping_add(t.a_step);
            b = b.wrapping_add(t.b_step);
        }
        let last = t.columns - (N - 1) * S::LANES;
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let c = t.c.add(i * t.ldc + j * S::LANES);
                if j + 1 < N || last == S::LANES {
                    S::store(c, if t.accumulate { S::add(S::load(c), sum) } else { sum });
                } else {
                    let sum = if t.accumulate { S::add(S::load_first(c, last), sum) } else { sum };
                    S::store_first(c, last, sum);
                }
            }
        }
    }
}

/// The table of a kernel from a function that is generic over rows and vectors.
macro_rules! table {
    ($micro:ident; $($rows:literal)*) => {
        &[$([$micro::<$rows, 1>, $micro::<$rows, 2>, $micro::<$rows, 3>]),*]
    };
}
pub(super) use table;
