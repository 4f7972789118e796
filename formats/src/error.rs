//! One error type for all formats. Every message names the file, what in it was wrong and where, and what to do.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{path}: {source}{hint}", path = .path.display(), hint = hint(.source))]
    Io { path: PathBuf, source: std::io::Error },
    /// The bytes are not what the format promises: the file was cut, damaged or made wrongly.
    #[error("{file}: {what} (at byte {offset})")]
    Damaged { file: String, offset: u64, what: String },
    /// A sound file that holds something this program cannot use.
    #[error("{file}: {what}")]
    Unsupported { file: String, what: String },
    /// A key or tensor that a sound file does not have, or has as another type.
    #[error("{file}: {what}")]
    Missing { file: String, what: String },
    /// What was to be written cannot be written in this format.
    #[error("{file}: cannot write this: {what}")]
    Unwritable { file: String, what: String },
}

fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::NotFound => " (check the path)",
        std::io::ErrorKind::PermissionDenied => " (no permission: choose another folder or change its mode)",
        std::io::ErrorKind::StorageFull => " (the disk is full: free some space or choose another folder)",
        std::io::ErrorKind::UnexpectedEof => " (the file became shorter while it was read: fetch it again)",
        _ => "",
    }
}

impl Error {
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// `what` is wrong with the bytes at `offset` of `file`.
    pub fn damaged(file: &str, offset: u64, what: impl Into<String>) -> Self {
        Error::Damaged { file: file.into(), offset, what: what.into() }
    }

    pub fn unsupported(file: &str, what: impl Into<String>) -> Self {
        Error::Unsupported { file: file.into(), what: what.into() }
    }

    pub fn missing(file: &str, what: impl Into<String>) -> Self {
        Error::Missing { file: file.into(), what: what.into() }
    }

    pub fn unwritable(file: &str, what: impl Into<String>) -> Self {
        Error::Unwritable { file: file.into(), what: what.into() }
    }
}
