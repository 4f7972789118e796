//! Reading text and writing files whole or not at all.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lower-case hexadecimal of any bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Writes `bytes` to a temporary name in the same folder, flushes it to the disk and renames it onto `path`, so a
/// reader sees the old file or the new one and never a part. The folder is created.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let name = path.file_name().ok_or_else(|| Error::Io {
        path: path.to_path_buf(),
        message: "this is not a file name (give a path that ends in a name)".into(),
    })?;
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary: PathBuf = folder.join(format!(".{}.{}-{unique}.tmp", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// Sees that [`write_atomic`] can write `path`, before what is to be written takes its time. The folder is created.
pub fn check_writable(path: &Path) -> Result<()> {
    let fail = |message: &str| Err(Error::Io { path: path.to_path_buf(), message: message.into() });
    if path.is_dir() {
        return fail("this is a folder; name a file in it");
    }
    if path.file_name().is_none() {
        return fail("this is not a file name (give a path that ends in a name)");
    }
    check_folder_writable(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Makes the folder and sees that files can be made in it.
pub fn check_folder_writable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    tempfile::NamedTempFile::new_in(folder).map(|_| ()).map_err(|e| Error::io(folder, e))
}

/// JSON for people to read, with a line end.
pub fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value is valid JSON") + "\n"
}

/// Reads the JSON file that describes a corpus.
pub fn read_manifest(path: &Path) -> Result<serde_json::Value> {
    serde_json::from_str(&read_utf8(path)?)
        .map_err(|e| Error::Data(format!("{}: not JSON: {e} (write the corpus again)", path.display())))
}

/// Reads a UTF-8 file. A byte that is not UTF-8 is reported with its offset and line (1-based).
pub fn read_utf8(path: &Path) -> Result<String> {
    if path.is_dir() {
        return Err(Error::Io { path: path.to_path_buf(), message: "this is a folder; name a file in it".into() });
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count();
        let byte = error.as_bytes()[offset];
        Error::Data(format!(
            "{}: not UTF-8 at byte offset {offset} (line {line}): byte 0x{byte:02x} cannot stand there; \
             convert the file to UTF-8 first (for example: iconv -f latin1 -t utf-8)",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_said_beforehand_and_what_can_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("new/result.json");
        check_writable(&inside).unwrap();
        assert_eq!(std::fs::read_dir(inside.parent().unwrap()).unwrap().count(), 0);
        std::fs::write(folder.path().join("file"), "").unwrap();
        for wrong in [folder.path().to_path_buf(), folder.path().join("file/result.json"), PathBuf::from("/")] {
            let error = check_writable(&wrong).unwrap_err();
            assert_eq!(error.exit_code(), 7, "{error}");
        }
    }

    #[test]
    fn invalid_utf8_is_reported_with_offset_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.txt");
        std::fs::write(&path, b"one\ntwo\nth\xffee").unwrap();
        let message = read_utf8(&path).unwrap_err().to_string();
        assert!(message.contains("offset 10 (line 3)") && message.contains("0xff"), "{message}");
        assert!(matches!(read_utf8(&folder.path().join("none")), Err(Error::Io { .. })));
        assert!(matches!(read_utf8(folder.path()), Err(Error::Io { .. })));
    }

    #[test]
    fn write_atomic_replaces_the_file_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // A path whose parent is a file cannot be created, and the error names a path.
        assert!(matches!(write_atomic(&path.join("x"), b""), Err(Error::Io { .. })));
    }
}
