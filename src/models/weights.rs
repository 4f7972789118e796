//! Where a model's weights come from: a file of another program, or a checkpoint of ours.

use crate::{Error, Result};
use formats::FilePart;
use kernels_cpu::blocks::Format;
use std::ops::Range;

/// One weight as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWeight {
    pub shape: Vec<usize>,
    pub format: Format,
}

impl StoredWeight {
    /// Rows and columns: the last axis is the row that a format cuts into blocks.
    pub fn rows(&self) -> (usize, usize) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().rev().skip(1).product(), columns)
    }

    /// # Errors
    /// Rows that are not whole blocks.
    pub fn bytes(&self) -> Result<usize, String> {
        let (rows, columns) = self.rows();
        let row = self.format.row_bytes(columns)?;
        rows.checked_mul(row).ok_or_else(|| format!("{rows} rows of {row} bytes are more than memory can hold"))
    }
}

/// Weights by the names that our models give them (those of Hugging Face's llama layout), whatever their file calls them.
pub trait WeightSource {
    /// What is stored under this name, if anything.
    fn find(&self, name: &str) -> Option<StoredWeight>;

    /// Fills `into`, of `StoredWeight::bytes` bytes, with the rows of the weight in its format.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged; no such weight.
    fn read(&self, name: &str, into: &mut [u8]) -> Result<()>;

    /// Fills `into` with some of its rows, so that loading needs little memory beside the weight itself. Sources that can read a part of
    /// a weight should.
    ///
    /// # Errors
    /// As `read`.
    fn read_rows(&self, name: &str, rows: Range<usize>, into: &mut [u8]) -> Result<()> {
        let stored =
            self.find(name).ok_or_else(|| Error::Checkpoint(format!("{}: no weight '{name}'", self.origin())))?;
        let row = stored.bytes().map_err(|e| Error::Checkpoint(format!("{}: '{name}': {e}", self.origin())))?
            / stored.rows().0.max(1);
        let mut whole = vec![0; row * stored.rows().0];
        self.read(name, &mut whole)?;
        into.copy_from_slice(&whole[rows.start * row..rows.end * row]);
        Ok(())
    }

    /// The bytes that `read` would give, to be read later, if they lie in a file just so.
    fn part(&self, name: &str) -> Option<FilePart> {
        let _ = name;
        None
    }

    /// What messages call it: a path.
    fn origin(&self) -> String;
}
