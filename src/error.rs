//! One error type for the whole program. Every variant says what was wrong, where, and what to do next;
//! `exit_code` gives each class of failure its own process exit status.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration key or value (TOML file, `--set`, or flag) that cannot be used. Exit code 2.
    #[error("config: {0}")]
    Config(String),
    /// Text, corpus or tokenizer input that cannot be used. Exit code 3.
    #[error("data: {0}")]
    Data(String),
    /// A graph node whose operands do not fit the operator. Names the node and the shapes. Exit code 4.
    #[error("graph: {0}")]
    Graph(String),
    /// A compute device that is missing, lost, too small or refused the work. Exit code 5.
    #[error("device: {0}")]
    Device(String),
    /// A checkpoint or model file that is damaged or does not belong to this model. Exit code 6.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// The file system refused: the path is always named. Exit code 7.
    #[error("{path}: {message}")]
    Io { path: PathBuf, message: String },
    /// Training produced a number that is not finite. Exit code 8.
    #[error("numerics: {0}")]
    Numerics(String),
    /// A comparison found something that got slower beyond noise. Exit code 9.
    #[error("{0}")]
    Slower(String),
    /// The user asked to stop (Ctrl-C, SIGTERM); state was saved. Exit code 130.
    #[error("{0}")]
    Interrupted(String),
    /// The system asked the program to stop (SIGTERM); state was saved. Exit code 143.
    #[error("{0}")]
    Terminated(String),
    /// `verify` or another self-check found a difference. Exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::NotFound => " (check the path)",
            std::io::ErrorKind::PermissionDenied => " (no permission: choose another folder or change its mode)",
            std::io::ErrorKind::StorageFull => " (the disk is full: free some space or choose another folder)",
            _ => "",
        };
        Error::Io { path: path.as_ref().to_path_buf(), message: format!("{source}{hint}") }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Failed(_) => 1,
            Error::Config(_) => 2,
            Error::Data(_) => 3,
            Error::Graph(_) => 4,
            Error::Device(_) => 5,
            Error::Checkpoint(_) => 6,
            Error::Io { .. } => 7,
            Error::Numerics(_) => 8,
            Error::Slower(_) => 9,
            Error::Interrupted(_) => 130,
            Error::Terminated(_) => 143,
        }
    }
}

impl From<formats::Error> for Error {
    fn from(error: formats::Error) -> Self {
        match error {
            formats::Error::Io { path, source } => Error::io(path, source),
            other => Error::Checkpoint(other.to_string()),
        }
    }
}
