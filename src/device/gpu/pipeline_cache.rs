//! Compiled pipelines on disk, for drivers that keep none themselves (Vulkan only). A file that is damaged or belongs to another
//! adapter, driver or version is ignored and written anew.

use crate::{Result, cache};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first bytes of the file; then the SHA-256 of the rest: the number of shaders (u32), 8 bytes for each, what the driver gave.
const MAGIC: &[u8; 8] = b"LYNXPIP2";

/// The start of the SHA-256 of a shader's text.
type Key = [u8; 8];

pub(super) struct PipelineCache {
    pub cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Pipelines and microseconds of compiling since the last save.
    unsaved: AtomicU64,
    compiling: AtomicU64,
    saving: Mutex<()>,
    /// Shaders whose pipelines the file held, and those compiled since.
    held: BTreeSet<Key>,
    added: Mutex<BTreeSet<Key>>,
}

impl PipelineCache {
    /// None without a cache folder or on a backend without pipeline caches.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Self> {
        let key = wgpu::util::pipeline_cache_key(info)?;
        let version = env!("CARGO_PKG_VERSION");
        let driver = Sha256::digest(format!("{} {} {} {version}", info.name, info.driver, info.driver_info));
        let name = format!("{key}_{:08x}.bin", u32::from_be_bytes([driver[0], driver[1], driver[2], driver[3]]));
        let path = cache::folder()?.join("pipelines").join(name);
        let (held, data) = load(&path).unzip();
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("lynx-gpu"), data: data.as_deref(), fallback: true };
        // SAFETY: the hash says that these are the bytes `save` wrote, which `get_data` gave; wgpu checks adapter and driver.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self {
            cache,
            path,
            unsaved: 0.into(),
            compiling: 0.into(),
            saving: Mutex::default(),
            held: held.unwrap_or_default(),
            added: Mutex::default(),
        })
    }

    /// Takes note of a pipeline that was made of this shader; true if the file held it already.
    pub fn compiled(&self, source: &str, time: Duration) -> bool {
        let mut key = Key::default();
        key.copy_from_slice(&Sha256::digest(source)[..8]);
        if self.held.contains(&key) {
            return true;
        }
        self.added.lock().unwrap_or_else(|e| e.into_inner()).insert(key);
        self.unsaved.fetch_add(1, Ordering::Relaxed);
        self.compiling.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        false
    }

    /// Saves when what would be lost took longer to compile than `worth`.
    pub fn save_if_worth(&self, worth: Duration) -> Result<()> {
        let Ok(_alone) = self.saving.try_lock() else { return Ok(()) };
        let unsaved = self.unsaved.load(Ordering::Relaxed);
        if unsaved == 0 || self.compiling.load(Ordering::Relaxed) < worth.as_micros() as u64 {
            return Ok(());
        }
        self.unsaved.fetch_sub(unsaved, Ordering::Relaxed);
        self.compiling.store(0, Ordering::Relaxed);
        match self.cache.get_data() {
            Some(data) => {
                let added = self.added.lock().unwrap_or_else(|e| e.into_inner());
                cache::replace(&self.path, &framed(&self.held.union(&added).copied().collect(), &data))
            }
            None => Ok(()),
        }
    }
}

fn framed(keys: &BTreeSet<Key>, data: &[u8]) -> Vec<u8> {
    let mut rest = (keys.len() as u32).to_le_bytes().to_vec();
    keys.iter().for_each(|key| rest.extend(key));
    rest.extend(data);
    [MAGIC, Sha256::digest(&rest).as_slice(), &rest].concat()
}

/// What `framed` framed, if the file is whole.
fn load(path: &Path) -> Option<(BTreeSet<Key>, Vec<u8>)> {
    let file = std::fs::read(path).ok()?;
    let (hash, rest) = file.strip_prefix(MAGIC)?.split_at_checked(32)?;
    if Sha256::digest(rest).as_slice() != hash {
        return None;
    }
    let (count, rest) = rest.split_at_checked(4)?;
    let count = u32::from_le_bytes(count.try_into().ok()?) as usize;
    let (keys, data) = rest.split_at_checked(count.checked_mul(8)?)?;
    let keys = keys.chunks_exact(8).map(|k| k.try_into().expect("eight bytes")).collect();
    Some((keys, data.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_file_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.bin");
        let keys = BTreeSet::from([*b"a shader", *b"another1"]);
        let whole = framed(&keys, b"what the driver gave");
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(load(&path), Some((keys, b"what the driver gave".to_vec())));
        for damaged in [&whole[..whole.len() - 1], &whole[..20], b"", b"something else entirely, longer than a header"]
        {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path), None);
        }
        for bit in [0, 9, 45] {
            let mut flipped = whole.clone();
            flipped[bit] ^= 4;
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(load(&path), None);
        }
        assert_eq!(load(&dir.path().join("missing")), None);
    }
}
