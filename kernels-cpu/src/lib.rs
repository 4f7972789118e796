//! SIMD CPU kernels over slices. This crate knows nothing of graphs or GPUs: every function takes slices and sizes,
//! is deterministic for a given machine and thread count setting, and accumulates in `f32` unless it says otherwise.

#![allow(clippy::too_many_arguments, reason = "kernels take slices and sizes, not structures")]

pub mod allpass;
pub mod argmax;
pub mod attention;
pub mod attention_grad;
#[cfg(test)]
mod attention_tests;
pub mod blocks;
pub mod cache;
pub mod cached_attention;
#[cfg(test)]
mod cached_attention_tests;
mod channels;
pub mod chebyshev;
#[cfg(test)]
mod chebyshev_tests;
pub mod conv;
pub mod embed;
pub mod gemm;
mod gemv;
pub mod gla;
pub mod half;
pub mod int8;
pub mod int8_dot;
#[cfg(test)]
mod int8_tests;
pub mod loss;
pub mod math;
pub mod movement;
pub mod norm;
mod norm_params;
#[cfg(test)]
mod norm_tests;
pub mod optim;
pub mod packed;
pub mod peak;
pub mod philox;
pub mod pointwise;
mod pointwise_ops;
#[cfg(test)]
mod pointwise_tests;
pub mod polar;
pub mod procrustes;
pub mod program;
pub mod reduce;
mod register;
pub mod rope;
pub mod scan;
#[cfg(test)]
mod scan_tests;
pub mod simd;
pub mod softmax;
pub mod stream;
mod team;
pub mod threads;
pub mod tile;
mod vector;
