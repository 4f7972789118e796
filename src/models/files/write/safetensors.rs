//! Tensors as safetensors: one file, or shards with an index where they are many bytes.

use super::emit::{Meaning, Outgoing, emit};
use crate::models::weights::WeightSource;
use crate::{Error, Result};
use formats::safetensors::{Dtype, NewTensor, ShardedWriter};
use kernels_cpu::blocks::Format;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of a shard, about: what `transformers` takes.
const SHARD: u64 = 5_000_000_000;

/// Writes `tensors` into `folder`.
pub(super) fn write(source: &dyn WeightSource, tensors: &[Outgoing], meaning: &Meaning, folder: &Path) -> Result<()> {
    let new = |tensor: &Outgoing| {
        let dtype = match tensor.format {
            Format::F16 => Dtype::F16,
            Format::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        };
        NewTensor::new(&tensor.link.stored, &tensor.shape, dtype).map_err(Error::Checkpoint)
    };
    let infos = tensors.iter().map(new).collect::<Result<Vec<_>>>()?;
    let mut writer = ShardedWriter::create(folder, &BTreeMap::new(), &infos, SHARD)?;
    for tensor in tensors {
        emit(source, tensor, meaning, &mut |bytes| Ok(writer.write(&tensor.link.stored, bytes)?))?;
    }
    Ok(writer.finish()?)
}
