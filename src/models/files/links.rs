//! How weights of ours lie in the tensors of a file, and the weights read through that.

use super::numbers::{to_f32, vector_format};
use crate::config::RopeLayout;
use crate::models::weights::{StoredWeight, WeightSource};
use crate::{Error, Result};
use formats::FilePart;
use kernels_cpu::blocks::Format;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Tensors by the names that a file gives them, shapes with the outermost dimension first.
pub(crate) trait Tensors {
    fn names(&self) -> Vec<String>;

    /// What is stored under this name.
    ///
    /// # Errors
    /// A type that is not numbers of a known format.
    fn find(&self, name: &str) -> Result<Option<StoredWeight>>;

    /// Fills `into` with the tensor's bytes from `at` on, by a positioned read.
    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> Result<()>;

    /// `length` of the tensor's bytes from `at` on, to be read later.
    fn part(&self, name: &str, at: u64, length: u64) -> Option<FilePart> {
        let _ = (name, at, length);
        None
    }

    /// What messages call it: a path.
    fn origin(&self) -> String;
}

/// One weight of ours in a tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub ours: String,
    pub shape: Vec<usize>,
    /// Its rows are those of this many heads that RoPE turns; 0: it does not turn them.
    pub turned_heads: usize,
    /// The gain of an RMSNorm, which files store as it is or less 1.
    pub gain: bool,
}

/// A tensor of a file: weights of ours, one after the other along its rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub stored: String,
    pub parts: Vec<Part>,
    /// The file has inputs as rows (`Conv1D` of GPT-2).
    pub transposed: bool,
}

impl Link {
    /// The tensor's shape in the file.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.parts[0].shape.clone();
        shape[0] = self.parts.iter().map(|p| p.shape[0]).sum();
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

/// All tensors of a model in a file, and what its numbers mean there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    pub links: Vec<Link>,
    /// Which rows of a head make a pair.
    pub layout: RopeLayout,
    /// Gains of RMSNorm are stored less 1 (Gemma on Hugging Face).
    pub less_one: bool,
}

/// Where a weight of ours is.
#[derive(Clone, Debug)]
struct Place {
    link: usize,
    /// Rows of the link before it.
    before: usize,
    weight: StoredWeight,
}

/// A model's weights in a file. Matrices are given in the format they have there, vectors as f32.
pub(crate) struct LinkedWeights<T> {
    tensors: T,
    links: Vec<Link>,
    stored: Vec<StoredWeight>,
    places: HashMap<String, Place>,
}

impl<T: Tensors> LinkedWeights<T> {
    /// Finds every tensor of the table and checks its shape before anything is read. The second value says which tensors nobody
    /// asked for; `harmless` knows those that files carry without need.
    ///
    /// # Errors
    /// Tensors that are missing, or have another shape than the configuration asks for.
    pub fn new(tensors: T, table: Table, harmless: fn(&str) -> bool) -> Result<(Self, Vec<String>)> {
        let origin = tensors.origin();
        let (mut places, mut stored, mut missing) = (HashMap::new(), Vec::new(), Vec::new());
        for (index, link) in table.links.iter().enumerate() {
            let Some(found) = tensors.find(&link.stored)? else {
                missing.push(link.stored.clone());
                continue;
            };
            check(&origin, link, &found)?;
            let mut before = 0;
            for part in &link.parts {
                let format = if part.shape.len() == 1 { Format::F32 } else { found.format };
                let weight = StoredWeight { shape: part.shape.clone(), format };
                weight.bytes().map_err(|e| Error::Checkpoint(format!("{origin}: tensor `{}`: {e}", link.stored)))?;
                places.insert(part.ours.clone(), Place { link: index, before, weight });
                before += part.shape[0];
            }
            stored.push(found);
        }
        if !missing.is_empty() {
            return Err(Error::Checkpoint(format!(
                "{origin}: {} of the {} tensors that its configuration asks for: {}; the file is incomplete, or its configuration belongs to another model",
                if missing.len() == 1 { "one is missing".into() } else { format!("{} are missing", missing.len()) },
                table.links.len(),
                some_of(&missing)
            )));
        }
        let known: HashSet<&str> = table.links.iter().map(|l| l.stored.as_str()).collect();
        let mut unused: Vec<String> =
            tensors.names().into_iter().filter(|name| !known.contains(name.as_str()) && !harmless(name)).collect();
        unused.sort_unstable();
        let notes = match unused.len() {
            0 => vec![],
            n => vec![format!("{origin}: {n} tensors that this model has no use for: {}", some_of(&unused))],
        };
        Ok((LinkedWeights { tensors, links: table.links, stored, places }, notes))
    }

    fn place(&self, name: &str) -> Result<&Place> {
        let none = || Error::Checkpoint(format!("{}: there is no weight `{name}`", self.tensors.origin()));
        self.places.get(name).ok_or_else(none)
    }

    /// A vector, in whatever 16 or 32 bits it is stored.
    fn read_vector(&self, place: &Place, rows: Range<usize>, into: &mut [u8]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let (name, format) = (&self.links[place.link].stored, self.stored[place.link].format);
        let size = vector_format(format).unwrap_or(4);
        let mut raw = vec![0; size * place.weight.shape[0]];
        self.tensors.read_at(name, (place.before * size) as u64, &mut raw)?;
        for (x, into) in to_f32(format, &raw).zip(into.chunks_exact_mut(4)) {
            into.copy_from_slice(&x.to_le_bytes());
        }
        Ok(())
    }

    /// Rows of a matrix that the file has as columns.
    fn read_columns(&self, place: &Place, rows: Range<usize>, into: &mut [u8]) -> Result<()> {
        let (name, stored) = (&self.links[place.link].stored, &self.stored[place.link]);
        let size = vector_format(stored.format).unwrap_or(4);
        let (inputs, outputs) = (stored.shape[0], stored.shape[1]);
        let mut slice = vec![0; rows.len() * size];
        for input in 0..inputs {
            let at = (input * outputs + place.before + rows.start) * size;
            self.tensors.read_at(name, at as u64, &mut slice)?;
            for (row, x) in slice.chunks_exact(size).enumerate() {
                into[(row * inputs + input) * size..][..size].copy_from_slice(x);
            }
        }
        Ok(())
    }
}

impl<T: Tensors> WeightSource for LinkedWeights<T> {
    fn find(&self, name: &str) -> Option<StoredWeight> {
        self.places.get(name).map(|place| place.weight.clone())
    }

    fn read(&self, name: &str, into: &mut [u8]) -> Result<()> {
        let rows = self.place(name)?.weight.rows().0;
        self.read_rows(name, 0..rows, into)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, into: &mut [u8]) -> Result<()> {
        let place = self.place(name)?;
        let weight = &place.weight;
        let (all, columns) = weight.rows();
        let bad = |e: String| Error::Checkpoint(format!("{}: `{name}`: {e}", self.tensors.origin()));
        let row = weight.format.row_bytes(columns).map_err(bad)?;
        if rows.end > all || rows.start > rows.end || into.len() != rows.len() * row {
            let (start, end, space) = (rows.start, rows.end, into.len());
            return Err(bad(format!("rows {start} to {end} of {all}, of {row} bytes, do not fill {space} bytes")));
        }
        let link = &self.links[place.link];
        if weight.shape.len() == 1 {
            return self.read_vector(place, rows, into);
        }
        if link.transposed {
            return self.read_columns(place, rows, into);
        }
        self.tensors.read_at(&link.stored, (place.before + rows.start) as u64 * row as u64, into)
    }

    fn part(&self, name: &str) -> Option<FilePart> {
        let place = self.places.get(name)?;
        let (weight, link) = (&place.weight, &self.links[place.link]);
        let turned = link.parts.iter().any(|p| p.ours == name && p.turned_heads > 0);
        // Vectors may be widened, these are put into another order.
        if weight.shape.len() < 2 || link.transposed || turned {
            return None;
        }
        let row = weight.format.row_bytes(weight.rows().1).ok()?;
        let (at, length) = (place.before.checked_mul(row)?, weight.bytes().ok()?);
        self.tensors.part(&link.stored, at as u64, length as u64)
    }

    fn origin(&self) -> String {
        self.tensors.origin()
    }
}

/// Refuses bytes beyond a tensor's end.
pub(super) fn check_range(origin: &str, name: &str, at: u64, length: usize, bytes: u64) -> Result<()> {
    if at.checked_add(length as u64).is_none_or(|end| end > bytes) {
        return Err(Error::Checkpoint(format!("{origin}: {length} bytes at {at} of `{name}` go beyond its {bytes}")));
    }
    Ok(())
}

fn check(origin: &str, link: &Link, found: &StoredWeight) -> Result<()> {
    let (name, expected) = (&link.stored, link.shape());
    if found.shape != expected {
        return Err(Error::Checkpoint(format!(
            "{origin}: tensor `{name}` has shape {:?}, the configuration asks for {expected:?}",
            found.shape
        )));
    }
    let numbers = vector_format(found.format).is_some();
    if !numbers && (link.transposed || expected.len() == 1) {
        return Err(Error::Checkpoint(format!(
            "{origin}: tensor `{name}` is stored as {}, which is supported for matrices only: f32, f16 and bf16 are",
            found.format
        )));
    }
    Ok(())
}

/// The first few names of a list.
fn some_of(names: &[String]) -> String {
    const MOST: usize = 5;
    let mut text = names.iter().take(MOST).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        text.push_str(", ..");
    }
    text
}
