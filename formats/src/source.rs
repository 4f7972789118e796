//! The bytes of a file that is read: mapped, or in memory.

use crate::{Error, Result};
use memmap2::Mmap;
use std::ops::{Deref, Range};
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
    Mapped { map: Arc<Mmap>, file: std::fs::File },
    Owned(Vec<u8>),
}

/// A part of a mapped file, which stays mapped as long as this lives. Pages come into memory when they are touched. The condition of
/// [`Source::open`] holds as long.
#[derive(Clone, Debug)]
pub struct MappedBytes {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl MappedBytes {
    /// As [`Source::release`].
    pub fn release(&self) {
        release(&self.map, self.range.clone());
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }
}

/// Opens a file to read, with its length.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn open_regular(path: &Path) -> Result<(std::fs::File, u64)> {
    let io = |e| Error::io(path, e);
    let length = |meta: std::io::Result<std::fs::Metadata>| match meta {
        Ok(meta) if !meta.is_file() => {
            Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")))
        }
        meta => meta.map(|meta| meta.len()).map_err(io),
    };
    // Asked before too: opening a pipe waits for somebody who writes.
    length(std::fs::metadata(path))?;
    let file = std::fs::File::open(path).map_err(io)?;
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
        Ok(Source { name, backing: Backing::Mapped { map: Arc::new(map), file } })
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

    /// `length` bytes from `offset` on where they lie in the file; none where it is not mapped, or does not have them.
    pub fn mapped(&self, offset: u64, length: u64) -> Option<MappedBytes> {
        let Backing::Mapped { map, .. } = &self.backing else { return None };
        let range = usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(length)?).ok()?;
        if range.end > map.len() {
            return None;
        }
        // Where files lie in huge pages, one row would bring 2 MiB. A refusal changes nothing.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::NoHugePage, range.start, range.len());
        Some(MappedBytes { map: map.clone(), range })
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
        if let Backing::Mapped { map, .. } = &self.backing {
            let length = map.len() as u64;
            release(map, range.start.min(length) as usize..range.end.min(length) as usize);
        }
    }
}

/// The part of [`Source::release`] for one map.
fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    if !range.is_empty() {
        // SAFETY: the map is shared and read-only, so dropped pages come back with the same bytes. A refusal changes nothing.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

#[cfg(unix)]
fn read_exact_at(file: &std::fs::File, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &std::fs::File, mut offset: u64, mut into: &mut [u8]) -> std::io::Result<()> {
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
