//! 16-bit operands of CPU kernels that are written for f32: rows are widened block by block into memory that stays in cache, and
//! results are rounded from there. Memory outside sees 16 bits only.

use crate::device::CpuCall;
use crate::tensor::DType;
use kernels_cpu::half;
use kernels_cpu::threads::{SharedMut, par_blocks};
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Whether an operand is of 16 bits.
pub(super) fn any_half(call: &CpuCall) -> bool {
    call.inputs.iter().chain(&call.outputs).any(|o| o.ty.dtype.is_half())
}

/// Elements of a tensor that belong to one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Number among the inputs or the outputs.
    pub operand: usize,
    pub row: usize,
}

pub(super) fn part(operand: usize, row: usize) -> Part {
    Part { operand, row }
}

/// A 16-bit or f32 result that threads write disjoint rows of.
enum Target<'a> {
    Wide(SharedMut<'a, f32>),
    Half(SharedMut<'a, u16>, DType),
}

/// Calls `kernel(rows, inputs, outputs)` for blocks of `block` of the `rows` rows, on several threads: rows must not depend on one
/// another. Operands are f32 or of 16 bits; the kernel sees f32.
pub(super) fn by_rows<const I: usize, const O: usize>(
    call: &CpuCall,
    rows: usize,
    block: usize,
    inputs: [Part; I],
    outputs: [Part; O],
    kernel: impl Fn(Range<usize>, [&[f32]; I], [&mut [f32]; O]) + Sync + Send,
) {
    let targets = outputs.map(|o| match call.output(o.operand).dtype {
        DType::F32 => Target::Wide(SharedMut::new(call.out_f32(o.operand))),
        dtype => Target::Half(SharedMut::new(call.out_bits16(o.operand)), dtype),
    });
    let half_input = |p: &Part| call.input(p.operand).dtype.is_half();
    let half_output = |p: &Part| call.output(p.operand).dtype.is_half();
    let widened: usize = inputs.iter().filter(|p| half_input(p)).map(|p| p.row).sum::<usize>()
        + outputs.iter().filter(|p| half_output(p)).map(|p| p.row).sum::<usize>();
    let cost = 8 * inputs.iter().chain(&outputs).map(|p| p.row).sum::<usize>();
    par_blocks(rows, block, cost, |_, r| {
        let mut scratch = SCRATCH.take();
        scratch.resize((widened * r.len()).max(scratch.len()), 0.0);
        let mut rest = &mut scratch[..];
        let mut take = |n: usize| {
            let (first, others) = std::mem::take(&mut rest).split_at_mut(n);
            rest = others;
            first
        };
        let ins = inputs.map(|p| {
            let span = r.start * p.row..r.end * p.row;
            let dtype = call.input(p.operand).dtype;
            if dtype == DType::F32 {
                return &call.f32(p.operand)[span];
            }
            let wide = take(span.len());
            widen(dtype, &call.bits16(p.operand)[span], wide);
            &*wide
        });
        let mut k = 0;
        let outs = outputs.map(|p| {
            k += 1;
            match &targets[k - 1] {
                // SAFETY: blocks are disjoint, and each output is listed once.
                Target::Wide(t) => unsafe { t.slice(r.start * p.row..r.end * p.row) },
                Target::Half(..) => take(r.len() * p.row),
            }
        });
        let results = outs.each_ref().map(|o| o.as_ptr());
        kernel(r.clone(), ins, outs);
        for ((p, target), result) in outputs.iter().zip(&targets).zip(results) {
            if let Target::Half(t, dtype) = target {
                let span = r.start * p.row..r.end * p.row;
                // SAFETY: the result lies in `scratch`, whose borrow by the kernel has ended; blocks are disjoint.
                let (wide, out) = unsafe { (std::slice::from_raw_parts(result, span.len()), t.slice(span)) };
                narrow(*dtype, wide, out);
            }
        }
        SCRATCH.set(scratch);
    });
}

fn widen(dtype: DType, bits: &[u16], wide: &mut [f32]) {
    match dtype {
        DType::Bf16 => half::widen_bf16(bits, wide),
        _ => half::widen_f16(bits, wide),
    }
}

fn narrow(dtype: DType, wide: &[f32], bits: &mut [u16]) {
    match dtype {
        DType::Bf16 => half::narrow_bf16(wide, bits),
        _ => half::narrow_f16(wide, bits),
    }
}
