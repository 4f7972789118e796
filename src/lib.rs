//! lynx-gpu trains and runs small language models through WGSL compute shaders (wgpu), with SIMD CPU kernels
//! as oracle and fallback. `ARCHITECTURE.md` shows the house; rooms are listed top to bottom, and a room uses
//! only the rooms below it.

pub mod ablate;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod evals;
pub mod graph;
pub mod infer;
pub mod models;
pub mod nn;
pub mod ops;
pub mod quant;
pub mod tensor;
pub mod tokenizer;
pub mod train;

pub use error::{Error, Result};
