//! The bytes of a file that is read: mapped, or in memory.

use crate::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The bytes of one file, and the name that messages give it.
#[derive(Debug)]
pub struct Source {
    name: String,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Mapped { map: Mmap, file: Arc<File> },
    Owned(Vec<u8>),
}

/// A part of a file, which stays open as long as this lives.
#[derive(Clone, Debug)]
pub struct FilePart {
    name: Arc<str>,
    file: Arc<File>,
    range: Range<u64>,
}

impl FilePart {
    /// Its length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Copies its bytes from `offset` on into `into`.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file has become shorter; [`Error::Damaged`] if the range ends beyond the part.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(into.len() as u64).filter(|&end| end <= self.byte_len());
        if end.is_none() {
            let what = format!("{} bytes were asked for, beyond the end of this part", into.len());
            return Err(Error::damaged(&self.name, self.range.start.saturating_add(offset), what));
        }
        read_exact_at(&self.file, self.range.start + offset, into).map_err(|e| Error::io(&*self.name, e))
    }
}

/// Opens a file to read, with its length.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |e| Error::io(path, e);
    let length = |meta: std::io::Result<std::fs::Metadata>| match meta {
        Ok(meta) if !meta.is_file() => {
            Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")))
        }
        meta => meta.map(|meta| meta.len()).map_err(io),
    };
    // Asked before too: opening a pipe waits for somebody who writes.
    length(std::fs::metadata(path))?;
    let file = File::open(path).map_err(io)?;
    let length = length(file.metadata())?;
    Ok((file, length))
}

impl Source {
    /// Maps the file at `path`. Another program that shortens the file while it is mapped ends this one when the missing pages are
    /// touched; replacing it by renaming, as the writers of this crate do, is safe.
    ///
    /// # Errors
    /// [`Error::Io`]; also for a folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (file, length) = open_regular(path)?;
        let name = path.display().to_string();
        if length == 0 {
            // Linux maps no empty files
            return Ok(Source { name, backing: Backing::Owned(Vec::new()) });
        }
        // SAFETY: the map is only read. That no other program writes the file meanwhile is the documented condition of use.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Source { name, backing: Backing::Mapped { map, file: Arc::new(file) } })
    }

    /// Bytes in memory, called `name` in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        Source { name: name.into(), backing: Backing::Owned(bytes) }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.backing {
            Backing::Mapped { map, .. } => map,
            Backing::Owned(bytes) => bytes,
        }
    }

    /// `length` bytes from `offset` on, to be read later; none where there is no file, or it does not have them.
    pub fn part(&self, offset: u64, length: u64) -> Option<FilePart> {
        let Backing::Mapped { map, file } = &self.backing else { return None };
        let range = offset..offset.checked_add(length)?;
        (range.end <= map.len() as u64).then(|| FilePart { name: self.name.as_str().into(), file: file.clone(), range })
    }

    /// Copies the bytes from `offset` on into `into`, by a positioned read where there is a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`] if the range ends beyond the file.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(into.len() as u64).filter(|&end| end <= self.bytes().len() as u64);
        if end.is_none() {
            let what = format!("{} bytes were asked for, beyond the end of the file", into.len());
            return Err(Error::damaged(&self.name, offset, what));
        }
        match &self.backing {
            Backing::Mapped { file, .. } => read_exact_at(file, offset, into).map_err(|e| Error::io(&self.name, e)),
            Backing::Owned(bytes) => {
                into.copy_from_slice(&bytes[offset as usize..][..into.len()]);
                Ok(())
            }
        }
    }

    /// Tells the system that pages of the map are not needed for now: they leave this process's memory and are read again if touched.
    pub fn release(&self, range: Range<u64>) {
        #[cfg(unix)]
        if let Backing::Mapped { map, .. } = &self.backing {
            let end = range.end.min(map.len() as u64);
            if range.start < end {
                // SAFETY: the map is shared and read-only, so dropped pages come back with the same bytes. A refusal changes nothing.
                let _ = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        range.start as usize,
                        (end - range.start) as usize,
                    )
                };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut into: &mut [u8]) -> std::io::Result<()> {
    while !into.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, into, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        offset += n as u64;
        into = &mut into[n..];
    }
    Ok(())
}
