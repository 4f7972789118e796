//! Packing: copying a block of an operand into the order in which the micro-kernel reads it, one *panel* after the other.
//!
//! A panel holds `width` lanes (rows of `a`, columns of `b`) for all steps along k: `[steps][width]` elements of 32 bits, each an `f32`
//! or, for kernels of depth 2, a pair of bfloat16 that follow one another along k. Lanes and numbers that do not exist are zero.
//! Transposition and the widening of 16-bit numbers happen here, once per element, so the micro-kernel knows neither.

use super::matrix::Matrix;
use crate::half;
use std::ops::Range;

/// An operand seen as lanes by k: number (lane, k) is at `lane * self.lane + k * self.k`; one of the strides is 1.
#[derive(Clone, Copy)]
pub(super) struct Lanes<'a> {
    pub data: Matrix<'a>,
    pub lane: usize,
    pub k: usize,
}

/// What to pack, and how.
pub(super) struct Block {
    pub lanes: Range<usize>,
    pub k: Range<usize>,
    /// Lanes in a panel, a multiple of 4.
    pub width: usize,
    /// Numbers along k in an element: 1, or 2 for pairs of bfloat16.
    pub depth: usize,
}

impl Block {
    /// Elements along k.
    pub fn steps(&self) -> usize {
        self.k.len().div_ceil(self.depth)
    }

    /// Elements that the packed block has.
    pub fn len(&self) -> usize {
        self.lanes.len().div_ceil(self.width) * self.width * self.steps()
    }
}

/// Packs a block. Pairs need bfloat16 data.
///
/// # Safety
/// The operand has the lanes and the numbers along k, `out` is valid for `block.len()` elements, and with `avx2` the processor has AVX2
/// and F16C.
pub(super) unsafe fn pack(x: &Lanes, block: &Block, avx2: bool, out: *mut f32) {
    debug_assert!(block.width.is_multiple_of(4) && (x.lane == 1 || x.k == 1));
    #[cfg(target_arch = "x86_64")]
    if avx2 {
        // SAFETY: the contract of this function.
        return unsafe { super::pack_x86::pack(x, block, out) };
    }
    let _ = avx2;
    let steps = block.steps();
    for (i, lane) in block.lanes.clone().enumerate() {
        let panel = i / block.width * block.width * steps + i % block.width;
        for step in 0..steps {
            let at = |k: usize| if k < block.k.end { x.data.get(lane * x.lane + k * x.k) } else { 0.0 };
            let k = block.k.start + step * block.depth;
            let element = match block.depth {
                1 => at(k),
                _ => {
                    let pair = half::f32_to_bf16(at(k)) as u32 | (half::f32_to_bf16(at(k + 1)) as u32) << 16;
                    f32::from_bits(pair)
                }
            };
            // SAFETY: within the packed block.
            unsafe { out.add(panel + step * block.width).write(element) };
        }
    }
    zero_missing_lanes(block, out);
}

/// Fills the lanes of the last panel that do not exist.
fn zero_missing_lanes(block: &Block, out: *mut f32) {
    let (whole, rest) = (block.lanes.len() / block.width, block.lanes.len() % block.width);
    if rest > 0 {
        let steps = block.steps();
        for step in 0..steps {
            for lane in rest..block.width {
                // SAFETY: within the packed block.
                unsafe { out.add((whole * steps + step) * block.width + lane).write(0.0) };
            }
        }
    }
}
