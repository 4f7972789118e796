//! Blocks of channels: time-mixing kernels on `[batch, time, channels]` give each lane a channel and keep the recurrent state of
//! one block in registers while time goes by.

use std::ops::Range;

use crate::register::Register;
use crate::threads::{SharedMut, par_blocks};
use crate::vector::{self, Vector};

/// Channels of a block: two sixteen-float registers.
pub(crate) const BLOCK: usize = 32;

/// One value for each channel of a block; `R` holds sixteen floats.
#[derive(Clone, Copy)]
pub(crate) struct Block<R>([R; 2]);

#[inline(always)]
pub(crate) fn splat<R: Register>(x: f32) -> Block<R> {
    Block([R::splat(x); 2])
}

#[inline(always)]
pub(crate) fn zero<R: Register>() -> Block<R> {
    splat(0.0)
}

/// Up to [`BLOCK`] floats; 0 in the lanes past the end of `x`.
#[inline(always)]
pub(crate) fn load<R: Register>(x: &[f32]) -> Block<R> {
    const { assert!(2 * R::WIDTH == BLOCK) };
    if x.len() >= BLOCK {
        // SAFETY: BLOCK floats are there.
        return unsafe { Block([R::load(x.as_ptr()), R::load(x.as_ptr().add(R::WIDTH))]) };
    }
    let mut padded = [0.0; BLOCK];
    padded[..x.len()].copy_from_slice(x);
    // SAFETY: as above.
    unsafe { Block([R::load(padded.as_ptr()), R::load(padded.as_ptr().add(R::WIDTH))]) }
}

/// Writes as many lanes as `y` has room for.
#[inline(always)]
pub(crate) fn store<R: Register>(x: Block<R>, y: &mut [f32]) {
    if y.len() >= BLOCK {
        // SAFETY: there is room for BLOCK floats.
        return unsafe {
            x.0[0].store(y.as_mut_ptr());
            x.0[1].store(y.as_mut_ptr().add(R::WIDTH));
        };
    }
    let mut padded = [0.0; BLOCK];
    // SAFETY: as above.
    unsafe {
        x.0[0].store(padded.as_mut_ptr());
        x.0[1].store(padded.as_mut_ptr().add(R::WIDTH));
    }
    y.copy_from_slice(&padded[..y.len()]);
}

#[inline(always)]
pub(crate) fn add<R: Register>(a: Block<R>, b: Block<R>) -> Block<R> {
    Block([a.0[0].add(b.0[0]), a.0[1].add(b.0[1])])
}

#[inline(always)]
pub(crate) fn sub<R: Register>(a: Block<R>, b: Block<R>) -> Block<R> {
    Block([a.0[0].sub(b.0[0]), a.0[1].sub(b.0[1])])
}

#[inline(always)]
pub(crate) fn mul<R: Register>(a: Block<R>, b: Block<R>) -> Block<R> {
    Block([a.0[0].mul(b.0[0]), a.0[1].mul(b.0[1])])
}

/// `a * b + c`
#[inline(always)]
pub(crate) fn fma<R: Register>(a: Block<R>, b: Block<R>, c: Block<R>) -> Block<R> {
    Block([c.0[0].accumulate(a.0[0], b.0[0]), c.0[1].accumulate(a.0[1], b.0[1])])
}

/// `e^x - 1` for x up to 88.
#[inline(always)]
pub(crate) fn expm1<R: Vector>(x: Block<R>) -> Block<R> {
    Block([vector::expm1(x.0[0]), vector::expm1(x.0[1])])
}

/// `x[first..]`, empty where a tensor without any time steps has no such offset.
pub(crate) fn tail(x: &[f32], first: usize) -> &[f32] {
    x.get(first..).unwrap_or(&[])
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    for r in 0..rows {
        for c in 0..columns {
            out[c * rows + r] = x[r * columns + c];
        }
    }
    out
}

/// Calls `f(batch_row, channels)` for every block of channels of every batch row.
pub(crate) fn for_each_block(
    batch: usize,
    channels: usize,
    cost: usize,
    f: impl Fn(usize, Range<usize>) + Sync + Send,
) {
    let blocks = channels.div_ceil(BLOCK);
    par_blocks(batch * blocks, 1, cost.max(1), |item, _| {
        let first = item % blocks * BLOCK;
        f(item / blocks, first..(first + BLOCK).min(channels));
    });
}

/// One block of channels of one batch row of a `[batch, time, channels]` tensor that several threads write.
pub(crate) struct Column<'a> {
    tensor: &'a SharedMut<'a, f32>,
    first: usize,
    width: usize,
    stride: usize,
}

impl<'a> Column<'a> {
    /// # Safety
    /// While it is used, no other column, and nothing else, touches these channels of this batch row.
    pub(crate) unsafe fn new(
        tensor: &'a SharedMut<'a, f32>,
        b: usize,
        time: usize,
        channels: usize,
        block: &Range<usize>,
    ) -> Self {
        Column { tensor, first: b * time * channels + block.start, width: block.len(), stride: channels }
    }

    /// The block at time `t`.
    #[inline(always)]
    pub(crate) fn at(&mut self, t: usize) -> &mut [f32] {
        let at = self.first + t * self.stride;
        // SAFETY: the word given in `new`; `&mut self` leaves one slice at a time.
        unsafe { self.tensor.slice(at..at + self.width) }
    }
}

/// Sums `parts` (each as long as `out`, one after the other) in their order.
pub(crate) fn sum_parts(parts: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    if out.is_empty() {
        return;
    }
    for part in parts.chunks_exact(out.len()) {
        for (o, p) in out.iter_mut().zip(part) {
            *o += p;
        }
    }
}
