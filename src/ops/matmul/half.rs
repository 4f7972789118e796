//! Products on the CPU with operands or a result of 16 bits.

use super::{Dims, Matmul};
use crate::device::CpuCall;
use crate::tensor::DType;
use kernels_cpu::gemm::{self, Epilogue, Matrix, MatrixMut};

/// Operand `i` in the format it is stored in.
pub(super) fn operand(call: &CpuCall, i: usize) -> Matrix<'_> {
    match call.input(i).dtype {
        DType::Bf16 => Matrix::Bf16(call.bits16(i)),
        DType::F16 => Matrix::F16(call.bits16(i)),
        _ => Matrix::F32(call.f32(i)),
    }
}

pub(super) fn product(op: &Matmul, d: Dims, call: &CpuCall, epilogue: Epilogue) {
    let (ta, tb) = (op.trans_a, op.trans_b);
    let (lda, ldb) = (if ta { d.m } else { d.k }, if tb { d.k } else { d.n });
    let (a, b) = (operand(call, 0), operand(call, 1));
    let c = match call.output(0).dtype {
        DType::Bf16 => MatrixMut::Bf16(call.out_bits16(0)),
        DType::F16 => MatrixMut::F16(call.out_bits16(0)),
        _ => MatrixMut::F32(call.out_f32(0)),
    };
    if d.batch == 1 {
        return gemm::gemm_mixed(ta, tb, d.m, d.n, d.k, a, lda, b, ldb, false, c, d.n, epilogue);
    }
    let (sa, sb, sc) = (d.a_batch, d.b_batch, d.m * d.n);
    gemm::gemm_mixed_batched(ta, tb, d.m, d.n, d.k, a, lda, sa, b, ldb, sb, false, c, d.n, sc, d.batch, epilogue);
}
