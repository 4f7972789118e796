//! SIMD CPU kernels over slices. This crate knows nothing of graphs or GPUs: every function takes slices and sizes,
//! is deterministic for a given machine and thread count setting, and accumulates in `f32` unless it says otherwise.

pub mod embed;
pub mod loss;
pub mod math;
pub mod norm;
pub mod optim;
pub mod philox;
pub mod polar;
pub mod procrustes;
pub mod program;
pub mod reduce;
pub mod simd;
pub mod softmax;
pub mod threads;
