//! The libraries, each as a call on the same row-major operands.

use faer::{Accum, MatMut, MatRef, Par};
use kernels_cpu::gemm::{Epilogue, Matrix, MatrixMut, gemm_mixed};
use kernels_cpu::half;
use std::num::NonZero;

/// Operands and result of a product. `a` is stored as [k, m] with `ta`, `b` as [n, k] with `tb`.
pub struct Problem {
    m: usize,
    n: usize,
    k: usize,
    ta: bool,
    tb: bool,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    a16: Vec<u16>,
    b16: Vec<u16>,
    c16: Vec<u16>,
}

impl Problem {
    pub fn new(m: usize, n: usize, k: usize, transposes: &str) -> Self {
        let data = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 1013.0 - 0.45).collect()
        };
        let narrow = |x: &[f32]| {
            let mut bits = vec![0; x.len()];
            half::narrow_bf16(x, &mut bits);
            bits
        };
        let (a, b) = (data(m * k, 1), data(k * n, 2));
        let (a16, b16) = (narrow(&a), narrow(&b));
        let (ta, tb) = (transposes.starts_with('t'), transposes.ends_with('t'));
        Problem { m, n, k, ta, tb, a, b, c: vec![0.0; m * n], a16, b16, c16: vec![0; m * n] }
    }

    /// (row stride, column stride) of op(a) and of op(b).
    fn strides(&self) -> [(isize, isize); 2] {
        let (m, n, k) = (self.m as isize, self.n as isize, self.k as isize);
        [if self.ta { (1, m) } else { (k, 1) }, if self.tb { (1, k) } else { (n, 1) }]
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Contestant {
    Ours,
    /// bfloat16 operands, `f32` result.
    OursBf16,
    /// bfloat16 operands and result.
    OursBf16All,
    Faer,
    Gemm,
    #[cfg(feature = "openblas")]
    OpenBlas,
}

/// Says how many threads all libraries have. faer and gemm take rayon's global pool, so the first number above one stays.
pub fn set_threads(threads: usize) {
    kernels_cpu::threads::set_threads(threads);
    if threads > 1 {
        // fails when already built, which keeps the first
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    #[cfg(feature = "openblas")]
    // SAFETY: a plain setting.
    unsafe {
        openblas::openblas_set_num_threads(threads as i32)
    };
}

impl Contestant {
    /// Ours, then the peers.
    pub fn f32() -> Vec<Self> {
        vec![
            Contestant::Ours,
            Contestant::Faer,
            Contestant::Gemm,
            #[cfg(feature = "openblas")]
            Contestant::OpenBlas,
        ]
    }

    pub fn bf16() -> Vec<Self> {
        vec![Contestant::OursBf16, Contestant::OursBf16All, Contestant::Ours]
    }

    pub fn name(self) -> &'static str {
        match self {
            Contestant::Ours => "kernels-cpu",
            Contestant::OursBf16 => "bf16->f32",
            Contestant::OursBf16All => "bf16->bf16",
            Contestant::Faer => "faer",
            Contestant::Gemm => "gemm",
            #[cfg(feature = "openblas")]
            Contestant::OpenBlas => "OpenBLAS",
        }
    }

    /// Whether its threads go on using the processor after a call.
    pub fn spins(self) -> bool {
        self.name() == "OpenBLAS"
    }

    pub fn run(self, p: &mut Problem, threads: usize) {
        let (m, n, k) = (p.m, p.n, p.k);
        let [(a_row, a_column), (b_row, b_column)] = p.strides();
        let (lda, ldb) = (if p.ta { m } else { k }, if p.tb { k } else { n });
        let ours = |a: Matrix, b: Matrix, c: MatrixMut| {
            gemm_mixed(p.ta, p.tb, m, n, k, a, lda, b, ldb, false, c, n, Epilogue::default());
        };
        match self {
            Contestant::Ours => ours(Matrix::F32(&p.a), Matrix::F32(&p.b), MatrixMut::F32(&mut p.c)),
            Contestant::OursBf16 => ours(Matrix::Bf16(&p.a16), Matrix::Bf16(&p.b16), MatrixMut::F32(&mut p.c)),
            Contestant::OursBf16All => ours(Matrix::Bf16(&p.a16), Matrix::Bf16(&p.b16), MatrixMut::Bf16(&mut p.c16)),
            Contestant::Faer => {
                let par = NonZero::new(threads).filter(|n| n.get() > 1).map_or(Par::Seq, Par::Rayon);
                // SAFETY: the operands have these shapes and strides.
                let (a, b, c) = unsafe {
                    (
                        MatRef::from_raw_parts(p.a.as_ptr(), m, k, a_row, a_column),
                        MatRef::from_raw_parts(p.b.as_ptr(), k, n, b_row, b_column),
                        MatMut::from_raw_parts_mut(p.c.as_mut_ptr(), m, n, n as isize, 1),
                    )
                };
                faer::linalg::matmul::matmul(c, Accum::Replace, a, b, 1.0f32, par);
            }
            Contestant::Gemm => {
                let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
                let (c, a, b) = (p.c.as_mut_ptr(), p.a.as_ptr(), p.b.as_ptr());
                // SAFETY: the operands have these shapes and strides.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        c,
                        1,
                        n as isize,
                        false,
                        a,
                        a_column,
                        a_row,
                        b,
                        b_column,
                        b_row,
                        1.0f32,
                        1.0f32,
                        false,
                        false,
                        false,
                        parallelism,
                    )
                };
            }
            #[cfg(feature = "openblas")]
            Contestant::OpenBlas => {
                let op = |transposed: bool| if transposed { openblas::TRANSPOSED } else { openblas::AS_STORED };
                let (m, n, k, lda, ldb) = (m as i32, n as i32, k as i32, lda as i32, ldb as i32);
                let (a, b, c) = (p.a.as_ptr(), p.b.as_ptr(), p.c.as_mut_ptr());
                // SAFETY: the operands have these shapes and strides.
                unsafe {
                    openblas::cblas_sgemm(
                        openblas::ROW_MAJOR,
                        op(p.ta),
                        op(p.tb),
                        m,
                        n,
                        k,
                        1.0,
                        a,
                        lda,
                        b,
                        ldb,
                        0.0,
                        c,
                        n,
                    )
                };
            }
        }
    }
}

#[cfg(feature = "openblas")]
mod openblas {
    pub const ROW_MAJOR: i32 = 101;
    pub const AS_STORED: i32 = 111;
    pub const TRANSPOSED: i32 = 112;
    unsafe extern "C" {
        pub fn cblas_sgemm(
            order: i32,
            trans_a: i32,
            trans_b: i32,
            m: i32,
            n: i32,
            k: i32,
            alpha: f32,
            a: *const f32,
            lda: i32,
            b: *const f32,
            ldb: i32,
            beta: f32,
            c: *mut f32,
            ldc: i32,
        );
        pub fn openblas_set_num_threads(threads: i32);
    }
}
