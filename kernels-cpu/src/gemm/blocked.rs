//! The loops around the micro-kernel: which blocks are packed, in what order tiles are computed, and by which thread.
//!
//! The result is cut into *slabs* of columns whose packed panels of `b` have a bounded size, and a slab into *tasks*, each some rows of
//! it. A task goes through k in blocks: it packs its rows of `a` for the block (they stay in L2), then takes one panel of `b` after the
//! other and runs the micro-kernel down the rows. The panels are shared: whoever needs one first packs it, and computes with it while it
//! is in cache. Tasks start at different panels, so threads seldom want the same one at the same time. A thread waits only for a panel
//! that another is packing at that moment, never for a thread that may not be running, so any number of threads may join.
//!
//! Every element of the result is the sum over blocks of k, in order, of a chain of multiply-adds, and the blocks depend on the length of k
//! alone. So the bits of a result do not depend on the number of threads or on the rest of the matrix.

use super::buffer::{Buffers, with_panels, with_task_buffers};
use super::epilogue::{Epilogue, finish_tile};
use super::kernel::{Kernel, Tile};
use super::matrix::{Bf16, F16, Format, Matrix, MatrixMut};
use super::pack::{Block, Lanes, pack};
use crate::simd::{Isa, LANES};
use crate::threads;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

/// Steps along k in a block: a tile's share of `a` fills half of L1, and its panel of `b` a tenth of L2.
const BLOCK_STEPS: usize = 512;
/// Rows of `a` that are packed at a time: with [`BLOCK_STEPS`] steps, a third of an L2 of 1 MiB.
const BLOCK_ROWS: usize = 192;
/// Elements of packed `b` in a slab: 16 MiB.
const SLAB_ELEMENTS: usize = 4 << 20;
/// The fewest panels in a slab, however long k is.
const SLAB_PANELS: usize = 4;
/// Multiply-adds below which a product stays on one thread: about 10 microseconds.
const MIN_PARALLEL: usize = 1 << 19;

/// A product `c = op(a) op(b)` with its epilogue. `c` has one format; its pointer is valid for the whole result, which nobody else uses.
pub(super) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Rows of `op(a)` by k.
    pub a: Lanes<'a>,
    /// Columns of `op(b)` by k.
    pub b: Lanes<'a>,
    pub accumulate: bool,
    pub c: Output,
    pub ldc: usize,
    pub epilogue: Epilogue<'a>,
    /// `a` is much larger than `b`, and k is contiguous in it: its rows are at most copied, never transposed, since too few columns follow
    /// that would make up for it. `c` is f32, with neither `accumulate` nor epilogue, and the kernel's depth is 1.
    pub tall: bool,
}

/// Where a result goes.
#[derive(Clone, Copy)]
pub(super) enum Output {
    F32(*mut f32),
    Bf16(*mut u16),
    F16(*mut u16),
}

// SAFETY: threads write disjoint parts.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl From<MatrixMut<'_>> for Output {
    fn from(c: MatrixMut) -> Self {
        match c {
            MatrixMut::F32(c) => Output::F32(c.as_mut_ptr()),
            MatrixMut::Bf16(c) => Output::Bf16(c.as_mut_ptr()),
            MatrixMut::F16(c) => Output::F16(c.as_mut_ptr()),
        }
    }
}

impl Output {
    /// The result that starts `elements` into this one.
    pub fn at(self, elements: usize) -> Self {
        match self {
            Output::F32(c) => Output::F32(c.wrapping_add(elements)),
            Output::Bf16(c) => Output::Bf16(c.wrapping_add(elements)),
            Output::F16(c) => Output::F16(c.wrapping_add(elements)),
        }
    }
}

/// How a slab is cut.
struct Slab<'a> {
    product: &'a Product<'a>,
    kernel: &'static Kernel,
    columns: Range<usize>,
    panels: usize,
    /// Numbers along k in a block (the last may be shorter), a multiple of the kernel's depth.
    block: usize,
    /// Rows of a task.
    rows: usize,
    row_tasks: usize,
    /// Panels of a task.
    group: usize,
    tasks: usize,
    threads: usize,
    packed_b: Shared,
    /// For each block and panel: [`EMPTY`], [`BUSY`] or [`READY`].
    states: Vec<AtomicU8>,
    /// Whether the micro-kernel reads an operand where it is.
    a_direct: bool,
    b_direct: bool,
}

#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: a panel is written by the thread that set it `BUSY` and read after it is `READY`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const EMPTY: u8 = 0;
const BUSY: u8 = 1;
const READY: u8 = 2;

/// Numbers along k in a block: `k` cut evenly into blocks of at most [`BLOCK_STEPS`] steps.
fn block_length(k: usize, depth: usize) -> usize {
    let blocks = k.div_ceil(BLOCK_STEPS * depth);
    k.div_ceil(blocks).next_multiple_of(8)
}

/// Rows that lie a multiple of this many `f32` apart share the same few sets of L1 and L2.
const ALIASING: usize = 1024;

/// Whether the rows of `a` are better read where they are than packed.
fn a_direct(p: &Product, panels: usize) -> bool {
    // Along a row every cache line serves 16 steps. Down a column it serves one, once for each panel of columns.
    let most = if p.a.k.is_multiple_of(ALIASING) { 2 } else { 11 };
    matches!(p.a.data, Matrix::F32(_)) && (p.a.k == 1 || panels <= most)
}

/// Whether the columns of `b` are better read where they are, which must be adjacent: each is read again for every tile of rows.
fn b_direct(p: &Product) -> bool {
    let most = if p.b.k.is_multiple_of(ALIASING) { 32 } else { 512 };
    matches!(p.b.data, Matrix::F32(_)) && p.b.lane == 1 && p.m <= most
}

/// Floats of a cache line: rows of a copy are not a power of two of lines apart.
const LINE: usize = 16;

crate::multiversion! {
    /// The first `to.len()` numbers of `from` as `f32`.
    fn widen<V>(from: Matrix<'_>, to: &mut [f32]) {
        match from {
            Matrix::F32(from) => to.copy_from_slice(&from[..to.len()]),
            Matrix::F16(from) => widen_from::<V, F16>(from, to),
            Matrix::Bf16(from) => widen_from::<V, Bf16>(from, to),
        }
    }
}

#[inline(always)]
fn widen_from<V: Isa, F: Format>(from: &[F::Bits], to: &mut [f32]) {
    let (whole, rest) = to.as_chunks_mut::<LANES>();
    let (from, from_rest) = from.split_at(whole.len() * LANES);
    for (to, from) in whole.iter_mut().zip(from.chunks_exact(LANES)) {
        *to = F::widen_lanes::<V>(from).0;
    }
    rest.iter_mut().zip(from_rest).for_each(|(to, from)| *to = F::widen(*from));
}

/// Computes a product with `m`, `n` and `k` of at least 1.
pub(super) fn run(product: &Product, kernel: &'static Kernel, parallel: bool) {
    let (m, n, k) = (product.m, product.n, product.k);
    let threads = if parallel && m * n * k >= MIN_PARALLEL { threads::threads() } else { 1 };
    let block = block_length(k, kernel.depth);
    let steps = block.div_ceil(kernel.depth) * k.div_ceil(block);
    let width = kernel.columns();
    let slab = (SLAB_ELEMENTS / (steps * width)).max(SLAB_PANELS) * width;
    with_panels(SLAB_ELEMENTS, |buffer| {
        for first in (0..n).step_by(slab) {
            let columns = first..n.min(first + slab);
            let panels = columns.len().div_ceil(width);
            let states = (0..panels * k.div_ceil(block)).map(|_| AtomicU8::new(EMPTY)).collect();
            let packed_b = Shared(buffer.reserve(panels * width * steps));
            let mut slab = Slab {
                product,
                kernel,
                columns,
                panels,
                block,
                rows: 0,
                row_tasks: 0,
                group: 0,
                tasks: 0,
                threads,
                packed_b,
                states,
                a_direct: kernel.depth == 1 && a_direct(product, panels),
                b_direct: kernel.depth == 1 && b_direct(product),
            };
            slab.cut();
            if slab.threads == 1 {
                (0..slab.tasks).for_each(|task| slab.task(task));
            } else {
                let slab = &slab;
                threads::par_blocks(slab.tasks, 1, MIN_PARALLEL, |task, _| slab.task(task));
            }
        }
    });
}

impl Slab<'_> {
    /// Cuts the slab into tasks of about equal size, a multiple of the number of threads where there are enough rows.
    fn cut(&mut self) {
        let tile = self.kernel.rows;
        let tiles = self.product.m.div_ceil(tile);
        let threads = self.threads;
        // at least two tasks for each thread, so that one that is held up does not hold up all, while they have 64 rows
        let wanted = threads * self.product.m.div_ceil(threads * BLOCK_ROWS).max(1);
        let wanted = if threads > 1 && self.product.m >= 2 * threads * 64 { wanted.max(2 * threads) } else { wanted };
        let per_task = tiles.div_ceil(wanted).max((16 / tile).max(1));
        self.rows = per_task * tile;
        self.row_tasks = tiles.div_ceil(per_task);
        // too few rows for all threads: columns are divided as well
        let groups = if self.row_tasks.is_multiple_of(threads) || self.row_tasks >= 4 * threads {
            1
        } else {
            (2 * threads).div_ceil(self.row_tasks).min(self.panels)
        };
        self.group = self.panels.div_ceil(groups);
        self.tasks = self.row_tasks * self.panels.div_ceil(self.group);
        self.threads = threads.min(self.tasks);
    }

    fn task(&self, task: usize) {
        let copied = self.product.tall && !self.a_direct;
        with_task_buffers(|buffers| if copied { self.copied(task, buffers) } else { self.rows_of(task, buffers) });
    }

    /// The rows and the panels of a task.
    fn part(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (row_task, group) = (task % self.row_tasks, task / self.row_tasks);
        let rows = row_task * self.rows..self.product.m.min((row_task + 1) * self.rows);
        (rows, group * self.group..self.panels.min((group + 1) * self.group))
    }

    /// A task of a product with a tall `a` in 16 bits: a tile's rows of it, widened into L1, meet all panels before the next come, which
    /// the memory brings meanwhile.
    fn copied(&self, task: usize, buffers: &mut Buffers) {
        let (p, kernel) = (self.product, self.kernel);
        let Output::F32(c) = p.c else { unreachable!("tall products give f32") };
        let (rows, panels) = self.part(task);
        let tile_of = |row: usize| row..rows.end.min(row + kernel.rows);
        for first in (0..p.k).step_by(self.block) {
            let k = first..p.k.min(first + self.block);
            let ld = k.len().next_multiple_of(LINE) + LINE;
            for row in rows.clone().step_by(kernel.rows) {
                let tile = tile_of(row);
                let a = buffers.a.reserve(kernel.rows * ld);
                for (i, row) in tile.clone().enumerate() {
                    // SAFETY: the buffer holds the rows of a tile.
                    let to = unsafe { std::slice::from_raw_parts_mut(a.add(i * ld), k.len()) };
                    widen(p.a.data.tail(row * p.a.lane + k.start), to);
                }
                // What is read next: the same numbers of the next rows, or the first rows' next.
                let (next, next_k) = if tile.end < rows.end {
                    (tile_of(tile.end), k.clone())
                } else {
                    (tile_of(rows.start), k.end..p.k.min(k.end + self.block))
                };
                for (i, panel) in panels.clone().enumerate() {
                    for row in next.clone().skip(i).step_by(panels.len()) {
                        p.a.data.prefetch(row * p.a.lane + next_k.start, next_k.len());
                    }
                    let (b, b_step, columns) = self.panel(panel, &k);
                    let vectors = columns.len().div_ceil(kernel.lanes);
                    let tile_of_c = Tile {
                        k: k.len(),
                        a,
                        a_row: ld,
                        a_step: 1,
                        b,
                        b_step,
                        c: c.wrapping_add(row * p.ldc + columns.start),
                        ldc: p.ldc,
                        columns: columns.len(),
                        accumulate: first > 0,
                    };
                    // SAFETY: operands as the kernel wants them; the tile is in the result.
                    unsafe { (kernel.table[tile.len() - 1][vectors - 1])(&tile_of_c) };
                }
            }
        }
    }

    fn rows_of(&self, task: usize, buffers: &mut Buffers) {
        let p = self.product;
        let (rows, panels) = self.part(task);
        let start = task % self.threads * panels.len() / self.threads;
        let kernel = self.kernel;
        for first in (0..p.k).step_by(self.block) {
            let k = first..p.k.min(first + self.block);
            let last = k.end == p.k && (!p.epilogue.is_none() || !matches!(p.c, Output::F32(_)));
            let a = Block { lanes: rows.clone(), k: k.clone(), width: kernel.rows, depth: kernel.depth };
            let steps = a.steps();
            let (first_a, a_row, a_step) = match p.a.data {
                Matrix::F32(data) if self.a_direct => {
                    (data[rows.start * p.a.lane + k.start * p.a.k..].as_ptr(), p.a.lane, p.a.k)
                }
                _ => {
                    let packed = buffers.a.reserve(a.len());
                    // SAFETY: the operands cover the product, and the buffer the block.
                    unsafe { pack(&p.a, &a, kernel.avx2, packed) };
                    (packed.cast_const(), 1, kernel.rows)
                }
            };
            // from the first row of one tile to that of the next
            let next_a = if self.a_direct { kernel.rows * a_row } else { kernel.rows * steps };
            for i in 0..panels.len() {
                let panel = panels.start + (start + i) % panels.len();
                let (b, b_step, columns) = self.panel(panel, &k);
                let vectors = columns.len().div_ceil(kernel.lanes);
                let (sums, ldc, next_c) = match p.c {
                    Output::F32(c) => (c.wrapping_add(rows.start * p.ldc + columns.start), p.ldc, kernel.rows * p.ldc),
                    // With all of k in one block the sums of a tile are final: one tile's place in L1 serves all.
                    _ if self.block >= p.k => {
                        (buffers.sums.reserve(kernel.rows * kernel.columns()), kernel.columns(), 0)
                    }
                    // sums of the task's rows, for all columns of the slab
                    _ => {
                        let ld = self.columns.len().next_multiple_of(kernel.lanes);
                        let sums = buffers.sums.reserve(self.rows * ld);
                        (sums.wrapping_add(columns.start - self.columns.start), ld, kernel.rows * ld)
                    }
                };
                let mut tile = Tile {
                    k: steps,
                    a: first_a,
                    a_row,
                    a_step,
                    b,
                    b_step,
                    c: sums,
                    ldc,
                    columns: columns.len(),
                    accumulate: first > 0 || p.accumulate && matches!(p.c, Output::F32(_)),
                };
                for row in rows.clone().step_by(kernel.rows) {
                    let count = kernel.rows.min(rows.end - row);
                    // SAFETY: packed operands as the kernel wants them; the tile is in the result or in the sums.
                    unsafe { (kernel.table[count - 1][vectors - 1])(&tile) };
                    if last {
                        let at = row * p.ldc + columns.start;
                        // SAFETY: as above; the epilogue's operands were checked by the caller.
                        unsafe {
                            finish_tile(
                                count,
                                columns.len(),
                                tile.c,
                                ldc,
                                p.c,
                                at,
                                columns.start,
                                p.ldc,
                                p.accumulate,
                                &p.epilogue,
                            )
                        };
                    }
                    tile.a = tile.a.wrapping_add(next_a);
                    tile.c = tile.c.wrapping_add(next_c);
                }
            }
        }
    }

    /// The columns of a panel: whole panels, but where one vector would be left for the last, it takes another from the one before, as a
    /// tile of a single vector of columns is bound by its loads.
    fn panel_columns(&self, panel: usize) -> Range<usize> {
        let (width, lanes) = (self.kernel.columns(), self.kernel.lanes);
        let lonely = self.columns.len() % width;
        let shorter = if self.panels > 1 && lonely > 0 && lonely <= lanes { lanes } else { 0 };
        let first = self.columns.start + panel * width;
        let (start, end) = match self.panels - panel {
            1 => (first - shorter, self.columns.end),
            2 => (first, first + width - shorter),
            _ => (first, first + width),
        };
        start..end.min(self.columns.end)
    }

    /// A panel of `b` for the numbers `k`, packed by this thread or another, and its columns.
    fn panel(&self, panel: usize, k: &Range<usize>) -> (*const f32, usize, Range<usize>) {
        let (p, kernel) = (self.product, self.kernel);
        let width = kernel.columns();
        let columns = self.panel_columns(panel);
        if let Matrix::F32(data) = p.b.data
            && self.b_direct
            && columns.len().is_multiple_of(kernel.lanes)
        {
            return (data[columns.start + k.start * p.b.k..].as_ptr(), p.b.k, columns);
        }
        let step = columns.len().next_multiple_of(kernel.lanes);
        let at = k.start / self.block * self.panels + panel;
        let packed = self.packed_b.0.wrapping_add(at * width * self.block.div_ceil(kernel.depth));
        let state = &self.states[at];
        if state.load(Ordering::Acquire) != READY {
            if state.compare_exchange(EMPTY, BUSY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                let block = Block { lanes: columns.clone(), k: k.clone(), width: step, depth: kernel.depth };
                // SAFETY: the operands cover the product, and each panel has its own part of the buffer.
                unsafe { pack(&p.b, &block, kernel.avx2, packed) };
                state.store(READY, Ordering::Release);
            }
            let mut spins = 0;
            while state.load(Ordering::Acquire) != READY {
                spins += 1;
                match spins {
                    ..1000 => std::hint::spin_loop(),
                    _ => std::thread::yield_now(),
                }
            }
        }
        (packed, step, columns)
    }
}
