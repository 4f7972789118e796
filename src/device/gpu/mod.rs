//! WGSL through wgpu: capabilities, lowering of calls to dispatches (pure), pipelines and buffers, and the runner.

pub mod adapter;
mod context;
mod lowering;
mod memory;
mod overheads;
mod pipeline_cache;
mod profile;
mod runner;
mod shader;
pub mod tiles;
pub mod tune;
mod twin;

pub use context::{Context, Options};
pub use lowering::{Bind, Buf, Caps, Dispatch, Features, Limits, Lowered, Lowering, Params, Shader, lower};
pub use runner::{Runner, foreseen_notes, workspace_bytes};
pub use shader::render;
