//! SIMD CPU kernels over slices. This crate knows nothing of graphs or GPUs: every function takes slices and sizes,
//! is deterministic for a given machine and thread count setting, and accumulates in `f32` unless it says otherwise.

pub mod program;
pub mod simd;
pub mod threads;
