//! Sessions whose weights come from a file: matrices stay in the format they are stored in, everything else becomes f32.

use super::{Session, Step, kept};
use crate::config::OptimizerConfig;
use crate::device::{Device, FileRows, Store};
use crate::graph::Precision;
use crate::models::LanguageModel;
use crate::models::weights::{StoredWeight, WeightSource};
use crate::nn::{Builder, Parameter, Stored, StoredMatrices};
use crate::ops::packed::{Activations, Layout, Packing};
use crate::tensor::{DType, TensorType};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use kernels_cpu::blocks::Format;
use kernels_cpu::packed::{self, TILE_ROWS};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a session stores the matrices of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storing {
    /// Everything becomes f32, as training and 16-bit storage of activations need it.
    pub widened: bool,
    /// What products with matrices of 8-bit and 4-bit integers do with their other operand; it is left alone by other products.
    pub activations: Activations,
}

impl Default for Storing {
    fn default() -> Self {
        Storing { widened: false, activations: Activations::F32 }
    }
}

/// Bytes that are read at once beside the weight they are for.
const SLAB: usize = 256 << 10;

fn damaged(source: &dyn WeightSource, name: &str, why: impl std::fmt::Display) -> Error {
    Error::Checkpoint(format!("{}: '{name}': {why}", source.origin()))
}

/// The weight called as `p`, checked to have its shape.
fn find(source: &dyn WeightSource, p: &Parameter) -> Result<StoredWeight> {
    let found = source.find(&p.name).ok_or_else(|| damaged(source, &p.name, "there is no such weight in the file"))?;
    if found.shape != p.shape {
        return Err(damaged(source, &p.name, format!("its shape is {:?}, the model wants {:?}", found.shape, p.shape)));
    }
    found.bytes().map_err(|e| damaged(source, &p.name, e))?;
    Ok(found)
}

/// How the matrices of a model will be stored.
struct Matrices {
    stored: StoredMatrices,
    /// Those that are only looked up: a text needs few of their rows, which come from the file when they are needed.
    late: BTreeMap<String, FileRows>,
}

fn matrices(
    model: &dyn LanguageModel,
    source: &dyn WeightSource,
    storing: Storing,
    device: &Device,
) -> Result<Matrices> {
    let mut b = Builder::default();
    let tokens = b.tokens("tokens", &[1, 1]);
    let hidden = model.hidden(&mut b, tokens)?;
    let width = b.graph.shape(hidden)[2];
    let flat = b.graph.reshape(hidden, &[1, width])?;
    model.head(&mut b, flat)?;
    let (mut stored, mut late) = (BTreeMap::new(), BTreeMap::new());
    for p in b.parameters.iter().filter(|p| b.matrices.contains(&p.name)) {
        let found = find(source, p)?;
        let plain = found.format == Format::F32;
        let part = match device {
            Device::Cpu if !b.multiplied.contains(&p.name) && (plain || !storing.widened) => source.part(&p.name),
            _ => None,
        };
        // Numbers in the order of this machine's words.
        let part = part.filter(|_| !plain || cfg!(target_endian = "little"));
        let is_late = part.is_some();
        if let Some(part) = part {
            let row_bytes = found.format.row_bytes(found.rows().1).map_err(|e| damaged(source, &p.name, e))?;
            late.insert(p.name.clone(), FileRows { part, row_bytes });
        }
        if storing.widened || plain {
            continue;
        }
        let packing = match (device, storing.activations) {
            _ if is_late => Packing::new(found.format, Layout::Rows, p.shape[0], p.shape[1]),
            (Device::Gpu(_), _) | (_, Activations::F32) => Packing::fastest(found.format, p.shape[0], p.shape[1]),
            (_, Activations::Int8) => Packing::fastest_for_int8(found.format, p.shape[0], p.shape[1]),
        };
        let packing = packing.map_err(|e| damaged(source, &p.name, e))?;
        // Of other formats products are no faster in integers.
        let integers = packing.layout == Layout::Tiles && found.format != Format::Nf4;
        let activations = if integers { storing.activations } else { Activations::F32 };
        stored.insert(p.name.clone(), Stored { packing, activations });
    }
    Ok(Matrices { stored: Arc::new(stored), late })
}

/// Reads the rows of a weight in slabs of a multiple of `unit` rows: `take` gets the number of the first row and the slab's bytes.
fn in_slabs(
    source: &dyn WeightSource,
    name: &str,
    found: &StoredWeight,
    unit: usize,
    mut take: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let (rows, columns) = found.rows();
    let row = found.format.row_bytes(columns).map_err(|e| damaged(source, name, e))?;
    let most = (SLAB / row.max(1)).max(1).next_multiple_of(unit);
    let mut slab = vec![0; most.min(rows) * row];
    let mut first = 0;
    while first < rows {
        let count = most.min(rows - first);
        source.read_rows(name, first..first + count, &mut slab[..count * row])?;
        take(first, &slab[..count * row])?;
        first += count;
    }
    Ok(())
}

/// Fills `into` with the weight as f32.
fn widen(source: &dyn WeightSource, name: &str, found: &StoredWeight, into: &mut [u8]) -> Result<()> {
    if found.format == Format::F32 {
        return source.read(name, into);
    }
    let (rows, columns) = found.rows();
    let packing = Packing::new(found.format, Layout::Rows, rows, columns).map_err(|e| damaged(source, name, e))?;
    let (row, mut wide) = (packing.row_bytes(), vec![0f32; columns]);
    in_slabs(source, name, found, 1, |first, slab| {
        let part = Packing { rows: slab.len() / row, ..packing };
        for i in 0..part.rows {
            packed::unpack_row(&part, slab, i, &mut wide);
            into[(first + i) * columns * 4..][..columns * 4].copy_from_slice(bytemuck::cast_slice(&wide));
        }
        Ok(())
    })
}

/// Fills `into` with the weight in its packing.
fn pack(source: &dyn WeightSource, name: &str, found: &StoredWeight, packing: &Packing, into: &mut [u8]) -> Result<()> {
    if packing.layout == Layout::Rows {
        return source.read(name, &mut into[..packing.bytes()]);
    }
    let tile = packing.tile_bytes();
    in_slabs(source, name, found, TILE_ROWS, |first, slab| {
        let tiles = (slab.len() / packing.row_bytes()).div_ceil(TILE_ROWS);
        let at = first / TILE_ROWS;
        packed::pack_tiles(packing, at, slab, &mut into[at * tile..(at + tiles) * tile]);
        Ok(())
    })
}

impl Session {
    /// A session to evaluate and generate with the weights of `source`. They are read one at a time, so that loading needs little more
    /// memory than they do. Of tables that are only looked up, the CPU reads a row when it is first needed, where the file has it in one
    /// piece: what is never looked up takes no memory, and the file must stay as it is meanwhile.
    ///
    /// # Errors
    /// A weight that is missing, has another shape, or cannot be read; a tokenizer with more tokens than the model.
    pub fn for_weights(
        model: Box<dyn LanguageModel>,
        tokenizer: Tokenizer,
        device: Device,
        source: &dyn WeightSource,
        storing: Storing,
    ) -> Result<Self> {
        let Matrices { stored, mut late } = matrices(model.as_ref(), source, storing, &device)?;
        let parameters = model.parameters()?;
        let training = Step { shape: (1, model.context()), accumulation: 1, precision: Precision::F32, budget: None };
        let mut session = Session::empty(
            model,
            tokenizer,
            OptimizerConfig::default(),
            device.clone(),
            Store::new(&device),
            training,
        )?;
        let kept = |p: &Parameter| match stored.get(&p.name) {
            Some(Stored { packing, .. }) => TensorType::new(DType::I8, &[packing.bytes()]),
            None => TensorType::f32(&p.shape),
        };
        let found: Vec<_> = parameters.iter().map(|p| find(source, p)).collect::<Result<_>>()?;
        let (mut read, mut variables) = (Vec::new(), Vec::new());
        for (p, found) in parameters.iter().zip(&found) {
            if let Some(rows) = late.remove(&p.name) {
                session.store.declare_late(&p.name, &kept(p), rows)?;
            } else {
                read.push((p, found));
                variables.push((p.name.clone(), kept(p)));
            }
        }
        session.store.declare_together(&variables)?;
        for (p, found) in read {
            session.store.fill(&p.name, |into| match stored.get(&p.name) {
                Some(Stored { packing, .. }) => pack(source, &p.name, found, packing, into),
                None => widen(source, &p.name, found, into),
            })?;
        }
        (session.parameters, session.stored) = (parameters, stored);
        Ok(session)
    }

    /// Matrices that are not stored as f32.
    pub fn stored(&self) -> &StoredMatrices {
        &self.stored
    }

    /// Bytes of the weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        let wide = |p: &Parameter| 4 * p.elements() as u64;
        let of = |p: &Parameter| self.stored.get(&p.name).map_or(wide(p), |s| s.packing.bytes() as u64);
        self.parameters.iter().map(of).sum()
    }

    /// How keys and values are kept: see [`Session::keep`].
    pub fn keeping(&self) -> kept::Keeping {
        self.kept.keeping
    }
}
