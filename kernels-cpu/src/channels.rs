//! Blocks of channels: time-mixing kernels on `[batch, time, channels]` give each lane a channel and keep the recurrent state of
//! one block in registers while time goes by.

use std::ops::Range;

use crate::simd::{LANES, Lanes};
use crate::threads::{SharedMut, par_blocks};

/// Registers of a block.
pub(crate) const REGISTERS: usize = 2;
/// Channels of a block.
pub(crate) const BLOCK: usize = REGISTERS * LANES;

/// One value for each channel of a block.
pub(crate) type Block = [Lanes; REGISTERS];

pub(crate) const ZERO: Block = [Lanes([0.0; LANES]); REGISTERS];

/// Up to [`BLOCK`] floats; 0 in the lanes past the end of `x`.
#[inline(always)]
pub(crate) fn load(x: &[f32]) -> Block {
    if x.len() >= BLOCK {
        std::array::from_fn(|r| Lanes::load(&x[r * LANES..]))
    } else {
        std::array::from_fn(|r| Lanes::load_partial(x.get(r * LANES..).unwrap_or(&[]), 0.0))
    }
}

/// Writes as many lanes as `y` has room for.
#[inline(always)]
pub(crate) fn store(x: Block, y: &mut [f32]) {
    if y.len() >= BLOCK {
        for (r, x) in x.into_iter().enumerate() {
            x.store(&mut y[r * LANES..]);
        }
    } else {
        for (y, x) in y.chunks_mut(LANES).zip(x) {
            y.copy_from_slice(&x.0[..y.len()]);
        }
    }
}

/// `f` of each register.
#[inline(always)]
pub(crate) fn map(a: Block, b: Block, f: impl Fn(Lanes, Lanes) -> Lanes) -> Block {
    std::array::from_fn(|r| f(a[r], b[r]))
}

/// `a * b + c`
#[inline(always)]
pub(crate) fn fma<V: crate::simd::Isa>(a: Block, b: Block, c: Block) -> Block {
    std::array::from_fn(|r| a[r].fma::<V>(b[r], c[r]))
}

#[inline(always)]
pub(crate) fn mul(a: Block, b: Block) -> Block {
    map(a, b, Lanes::mul)
}

#[inline(always)]
pub(crate) fn add(a: Block, b: Block) -> Block {
    map(a, b, Lanes::add)
}

#[inline(always)]
pub(crate) fn splat(x: f32) -> Block {
    [Lanes::splat(x); REGISTERS]
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
