//! Models: functions that write graphs from a config, and what trains and runs them on a device.

pub mod coeus;
pub mod files;
pub mod gpt;
pub mod language_model;
pub mod llama;
pub mod session;
pub mod setup;
pub mod weights;

pub use language_model::LanguageModel;
pub use session::Session;
