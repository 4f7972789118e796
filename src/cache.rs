//! The folder for what can be computed again: encoded texts, measurements of devices, compiled pipelines.

use crate::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `LYNX_CACHE` (empty: no cache), else `$XDG_CACHE_HOME/lynx-gpu`, `~/.cache/lynx-gpu` or `%LOCALAPPDATA%\lynx-gpu`; none if
/// the environment names no home.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(explicit) = std::env::var_os("LYNX_CACHE") {
        return if explicit.is_empty() { None } else { Some(PathBuf::from(explicit)) };
    }
    let base = variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .or_else(|| variable("LOCALAPPDATA"));
    base.map(|base| base.join("lynx-gpu"))
}

/// Replaces `path` in one motion, making its folder if need be: readers see the old file or the whole new one. Contents are
/// not waited for on the disk: a cache that a power cut empties is only built again.
pub fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))?;
    let mut builder = tempfile::Builder::new();
    // Temporary files are private; what they become is as readable as any file of this person's.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(parent).map_err(|e| Error::io(parent, e))?;
    temporary.write_all(contents).map_err(|e| Error::io(path, e))?;
    temporary.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replace_makes_the_folder_overwrites_and_leaves_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.bin");
        replace(&path, b"one").unwrap();
        replace(&path, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let plain = dir.path().join("plain");
            std::fs::write(&plain, b"").unwrap();
            let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
            assert_eq!(mode(&path), mode(&plain));
        }
    }

    #[test]
    fn replace_names_a_folder_that_cannot_be_made() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = replace(&file.path().join("x/y"), b"").unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
