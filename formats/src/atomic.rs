//! Files that are there in full or not at all.

use crate::{Error, Result};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file being written under a temporary name beside `path`, which it takes when it is complete. Dropped before, it is removed.
#[derive(Debug)]
pub(crate) struct Atomic {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    written: u64,
}

impl Atomic {
    pub fn create(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tmp-");
        // Temporary files are private; what they become is as readable as any file of this person's.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        Ok(Atomic { file: BufWriter::with_capacity(1 << 20, file), path: path.into(), written: 0 })
    }

    /// The error that `what` cannot be written to this file.
    pub fn refuse(&self, what: impl Into<String>) -> Error {
        Error::unwritable(&self.path.display().to_string(), what)
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to the next multiple of `alignment`.
    pub fn pad(&mut self, alignment: u64) -> Result<()> {
        let mut left = self.written.next_multiple_of(alignment) - self.written;
        while left > 0 {
            let n = left.min(64);
            self.write(&[0; 64][..n as usize])?;
            left -= n;
        }
        Ok(())
    }

    /// Waits until the disk has the bytes, then gives the file its name.
    pub fn commit(self) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&self.path).map_err(|e| io(e.error))?;
        Ok(())
    }
}
