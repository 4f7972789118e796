//! Files that models are stored in. Every reader takes bytes that may come from anywhere: it checks before it believes, allocates no
//! more than a small multiple of the file's length, and answers with an [`Error`] that names file, place and remedy. It does not panic.
//!
//! Readers map their file. [`gguf::File::data`] and its like borrow from the map; `read_into` copies by a positioned read instead, so
//! that loading a model does not leave its file in the process's memory as well.
//! Writers stream: data goes into a temporary file beside the target, which takes the target's name when it is complete.

mod atomic;
mod cursor;
mod error;
pub mod gguf;
pub mod gguf_lite;
pub mod imatrix;
pub mod llama2c;
mod order;
pub mod safetensors;
mod source;

pub use error::{Error, Result};
pub use source::{FilePart, Source, open_regular};
