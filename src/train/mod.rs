//! Training: the loop, its schedule, checkpoints, the run folder, and those who watch.
//!
//! The loop knows models and data only through the traits of [`model`].

pub mod checkpoint;
pub mod data;
mod exact;
pub mod files;
pub mod manifest;
pub mod meter;
pub mod metrics;
pub mod model;
pub mod observer;
pub mod outcome;
pub mod plot;
mod recorder;
pub mod run_dir;
pub mod schedule;
pub mod signals;
pub mod sources;
mod tensor_file;
pub mod tensorboard;
pub mod trainer;
pub mod tui;
