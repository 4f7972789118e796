//! Tensors in safetensors files, with a CRC-32C per tensor so that damage can be named.

use super::model::{NamedTensor, TensorData, TensorSpec, TensorType};
use crate::error::{Error, Result};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

impl View for &NamedTensor {
    fn dtype(&self) -> Dtype {
        match self.data.dtype() {
            TensorType::F32 => Dtype::F32,
            TensorType::I32 => Dtype::I32,
            TensorType::U32 => Dtype::U32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        little_endian(&self.data)
    }

    fn data_len(&self) -> usize {
        4 * self.data.len()
    }
}

/// The values as the file stores them.
fn little_endian(data: &TensorData) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        return Cow::Borrowed(match data {
            TensorData::F32(v) => bytemuck::cast_slice(v),
            TensorData::I32(v) => bytemuck::cast_slice(v),
            TensorData::U32(v) => bytemuck::cast_slice(v),
        });
    }
    Cow::Owned(match data {
        TensorData::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorData::I32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorData::U32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
    })
}

/// Name of each tensor and the CRC-32C of its bytes in the file.
pub(super) type Checksums = BTreeMap<String, u32>;

/// Writes `tensors` to `path` and waits until the disk has them.
pub(super) fn write(path: &Path, tensors: &[NamedTensor]) -> Result<Checksums> {
    // The library makes its file readable by the owner only; an ordinary file shows what the user's umask wants.
    let permissions =
        File::create(path).and_then(|file| file.metadata()).map_err(|e| Error::io(path, e))?.permissions();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let views = tensors.iter().map(|tensor| (&tensor.name, tensor));
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| match e {
        SafeTensorError::IoError(e) => Error::io(path, e),
        e => Error::Checkpoint(format!("{}: cannot be written: {e}", path.display())),
    })?;
    let sync = || {
        std::fs::set_permissions(path, permissions)?;
        File::options().append(true).open(path)?.sync_all()
    };
    sync().map_err(|e| Error::io(path, e))?;
    Ok(tensors.iter().map(|tensor| (tensor.name.clone(), crc32c::crc32c(&little_endian(&tensor.data)))).collect())
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    // SAFETY: the run's lock keeps other writers away, and files are replaced by rename, never changed in place.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Checkpoint(format!("{}: {what}", path.display()))
}

/// The first tensor whose bytes differ from its checksum; None when the damage lies in the header or cannot be placed.
pub(super) fn first_damaged(path: &Path, checksums: &Checksums) -> Option<String> {
    let bytes = map(path).ok()?;
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let bad = |(name, crc): &(&String, &u32)| file.tensor(name).is_ok_and(|view| crc32c::crc32c(view.data()) != **crc);
    checksums.iter().find(bad).map(|(name, _)| name.clone())
}

/// Reads the tensors `expected` asks for and nothing else.
///
/// # Errors
/// `Error::Checkpoint` naming the file and the tensor that is missing, unexpected, or of another shape or type.
pub(super) fn read(path: &Path, expected: &[TensorSpec]) -> Result<Vec<NamedTensor>> {
    read_with(path, expected, &[])
}

/// As [`read`], and those of `optional` that are there.
pub(super) fn read_with(path: &Path, expected: &[TensorSpec], optional: &[TensorSpec]) -> Result<Vec<NamedTensor>> {
    let bytes = map(path)?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| damaged(path, format!("not a readable safetensors file: {e}")))?;
    let known = |name: &str| expected.iter().chain(optional).any(|spec| spec.name == name);
    let names = file.names();
    if let Some(name) = names.iter().find(|name| !known(name)) {
        return Err(damaged(path, format!("holds a tensor `{name}` that this model does not have")));
    }
    let present = optional.iter().filter(|spec| names.contains(&spec.name.as_str()));
    expected.iter().chain(present).map(|spec| read_one(path, &file, spec)).collect()
}

fn read_one(path: &Path, file: &SafeTensors, spec: &TensorSpec) -> Result<NamedTensor> {
    let name = &spec.name;
    let view = file.tensor(name).map_err(|_| damaged(path, format!("tensor `{name}` is missing")))?;
    if view.shape() != spec.shape {
        return Err(damaged(
            path,
            format!("tensor `{name}` has shape {:?}, the model expects {:?}", view.shape(), spec.shape),
        ));
    }
    let words = view.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let data = match (view.dtype(), spec.dtype) {
        (Dtype::F32, TensorType::F32) => TensorData::F32(words.map(f32::from_le_bytes).collect()),
        (Dtype::I32, TensorType::I32) => TensorData::I32(words.map(i32::from_le_bytes).collect()),
        (Dtype::U32, TensorType::U32) => TensorData::U32(words.map(u32::from_le_bytes).collect()),
        (found, wanted) => {
            return Err(damaged(path, format!("tensor `{name}` is stored as {found:?}, the model expects {wanted:?}")));
        }
    };
    Ok(NamedTensor { name: name.clone(), shape: spec.shape.clone(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors() -> Vec<NamedTensor> {
        let odd = [f32::MIN_POSITIVE / 8.0, -0.0, f32::INFINITY, f32::from_bits(0x7fc0_1234), 1.0 / 3.0, f32::MAX];
        vec![
            NamedTensor::f32("h.0.weight", &[2, 3], odd.to_vec()),
            NamedTensor { name: "count".into(), shape: vec![], data: TensorData::U32(vec![u32::MAX]) },
            NamedTensor { name: "ids".into(), shape: vec![2], data: TensorData::I32(vec![i32::MIN, 7]) },
            NamedTensor::f32("empty", &[0, 4], vec![]),
        ]
    }

    fn specs() -> Vec<TensorSpec> {
        tensors().iter().map(NamedTensor::spec).collect()
    }

    #[test]
    fn values_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        write(&path, &tensors()).unwrap();
        for (read, written) in read(&path, &specs()).unwrap().iter().zip(&tensors()) {
            assert_eq!(read.spec(), written.spec());
            assert_eq!(little_endian(&read.data), little_endian(&written.data), "{}", read.name);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_fit_the_model_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        write(&path, &tensors()).unwrap();
        let refused = |change: &dyn Fn(&mut Vec<TensorSpec>)| {
            let mut specs = specs();
            change(&mut specs);
            read(&path, &specs).unwrap_err().to_string()
        };
        let message = refused(&|specs| specs[0].shape = vec![3, 2]);
        assert!(message.contains("`h.0.weight` has shape [2, 3], the model expects [3, 2]"), "{message}");
        let message = refused(&|specs| specs[2].dtype = TensorType::F32);
        assert!(message.contains("`ids` is stored as I32"), "{message}");
        let message = refused(&|specs| specs.push(TensorSpec { name: "extra".into(), ..specs[0].clone() }));
        assert!(message.contains("`extra` is missing"), "{message}");
        let message = refused(&|specs| drop(specs.remove(0)));
        assert!(message.contains("`h.0.weight` that this model does not have"), "{message}");
    }

    #[test]
    fn a_flipped_bit_is_traced_to_its_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let checksums = write(&path, &tensors()).unwrap();
        assert_eq!(first_damaged(&path, &checksums), None);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(4).position(|w| w == f32::MAX.to_le_bytes()).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(first_damaged(&path, &checksums), Some("h.0.weight".into()));
    }
}
