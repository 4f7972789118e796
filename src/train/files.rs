//! Files that are either there in full or not at all, and fingerprints of what is there.

use crate::data::files::hex;
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Replaces `path` by `contents` in one motion: a temporary name in the same folder, fsync, rename, fsync of the folder.
/// After a crash the file holds either what it held before or all of `contents`.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = temporary_name(path);
    write_synced(&temporary, contents)
        .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| Error::io(path, e)))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&temporary);
        })?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".tmp-{name}"))
}

/// Writes a file and waits until the disk has it.
pub fn write_synced(path: &Path, contents: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(|e| Error::io(path, e))?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(|e| Error::io(path, e))
}

/// Waits until the disk has the names in a folder. Windows cannot open a folder for this and orders renames itself.
pub fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match File::open(path) {
        Ok(folder) if cfg!(unix) => folder.sync_all().map_err(|e| Error::io(path, e)),
        Err(e) if cfg!(unix) => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Reads a text file, without the byte order mark that some editors put first; the error names it.
pub fn read_text(path: &Path) -> Result<String> {
    let mut text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// Length and SHA-256 (hex) of a file, read in pieces.
pub fn fingerprint(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, e))? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
    Ok((bytes, hex(&hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_write_replaces_the_file_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_exist_is_named() {
        let error = write_atomic(Path::new("/dev/null/x/a.json"), b"").unwrap_err();
        assert!(error.to_string().contains("/dev/null/x"), "{error}");
        assert_eq!(error.exit_code(), 7);
    }

    #[test]
    fn a_byte_order_mark_is_no_text_and_elsewhere_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marked.txt");
        for (written, read) in [("\u{feff}one", "one"), ("o\u{feff}ne", "o\u{feff}ne"), ("\u{feff}", ""), ("", "")] {
            std::fs::write(&path, written).unwrap();
            assert_eq!(read_text(&path).unwrap(), read);
        }
    }

    #[test]
    fn fingerprint_is_sha256_of_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-4, example B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(fingerprint(&path).unwrap(), (3, expected.into()));
    }
}
