//! Models: functions that write graphs from a config, and what trains and runs them on a device.

pub mod coeus;
pub mod gpt;
pub mod language_model;
pub mod session;
pub mod setup;

pub use language_model::LanguageModel;
pub use session::Session;
