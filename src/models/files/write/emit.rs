//! The numbers of one tensor, read from a model and made what the file to be written has there: other rows, other types.

use crate::config::RopeLayout;
use crate::models::files::links::{Link, Part};
use crate::models::weights::{StoredWeight, WeightSource};
use crate::{Error, Result};
use kernels_cpu::blocks::{Format, dequantise_rows, quantise_rows};
use std::ops::Range;

/// About how many bytes of f32 are in memory at a time, beside the row being written.
const PIECE: usize = 1 << 22;

/// What two files mean differently by the same numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    /// Of the model that is read, and of the file that is written.
    pub from_layout: RopeLayout,
    pub to_layout: RopeLayout,
    pub head_dim: usize,
    /// Dimensions of a head that RoPE turns.
    pub turned: usize,
    /// What is added to the gains of RMSNorm: 1, 0 or -1.
    pub add_to_gains: f32,
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub link: Link,
    pub shape: Vec<usize>,
    pub format: Format,
}

/// Gives the bytes of `tensor` to `sink`, in order.
pub(super) fn emit(
    source: &dyn WeightSource,
    tensor: &Outgoing,
    meaning: &Meaning,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if tensor.link.transposed {
        return emit_transposed(source, tensor, sink);
    }
    for part in &tensor.link.parts {
        emit_part(source, part, tensor.format, meaning, sink)?;
    }
    Ok(())
}

/// The weight that is read for `part`; none where the model has no such bias.
pub(super) fn stored(source: &dyn WeightSource, part: &Part) -> Result<Option<StoredWeight>> {
    let bad = |what: String| Err(Error::Checkpoint(format!("{}: `{}` {what}", source.origin(), part.ours)));
    match source.find(&part.ours) {
        Some(found) if found.shape == part.shape => Ok(Some(found)),
        Some(found) => bad(format!("has shape {:?}, {:?} is expected", found.shape, part.shape)),
        None if part.ours.ends_with(".bias") => Ok(None),
        None => bad("is missing".into()),
    }
}

fn emit_part(
    source: &dyn WeightSource,
    part: &Part,
    format: Format,
    meaning: &Meaning,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let bad = |e: String| Error::Checkpoint(format!("{}: `{}`: {e}", source.origin(), part.ours));
    let reorder = part.turned_heads > 0 && meaning.from_layout != meaning.to_layout && meaning.turned > 0;
    let Some(found) = stored(source, part)? else {
        let bytes = format.row_bytes(part.shape[0]).map_err(bad)?;
        return sink(&vec![0; bytes]);
    };
    if part.shape.len() == 1 {
        let mut x = read_f32(source, part, &found, 0..1)?;
        if reorder {
            x = order(meaning, part.shape[0]).map(|row| x[row]).collect();
        }
        if part.gain {
            x.iter_mut().for_each(|x| *x += meaning.add_to_gains);
        }
        return sink(&encode(format, part.shape[0], &x).map_err(bad)?);
    }
    let (rows, columns) = found.rows();
    let row = found.format.row_bytes(columns).map_err(bad)?;
    // A head is the least that can be put in another order.
    let unit = if reorder { meaning.head_dim } else { 1 };
    let step = (PIECE / (4 * columns.max(1))).next_multiple_of(unit).max(unit);
    for first in (0..rows).step_by(step) {
        let range = first..rows.min(first + step);
        if found.format == format {
            let mut bytes = vec![0; range.len() * row];
            source.read_rows(&part.ours, range.clone(), &mut bytes)?;
            if reorder {
                let moved = order(meaning, range.len()).flat_map(|r| bytes[r * row..(r + 1) * row].to_vec());
                bytes = moved.collect();
            }
            sink(&bytes)?;
            continue;
        }
        let mut x = read_f32(source, part, &found, range.clone())?;
        if reorder {
            x = order(meaning, range.len()).flat_map(|r| x[r * columns..(r + 1) * columns].to_vec()).collect();
        }
        sink(&encode(format, columns, &x).map_err(bad)?)?;
    }
    Ok(())
}

/// Columns of the file are rows of ours, so the whole tensor is in memory.
fn emit_transposed(
    source: &dyn WeightSource,
    tensor: &Outgoing,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (inputs, outputs) = (tensor.shape[0], tensor.shape[1]);
    let mut turned = vec![0.0f32; inputs * outputs];
    let mut before = 0;
    for part in &tensor.link.parts {
        let rows = part.shape[0];
        if let Some(found) = stored(source, part)? {
            let x = read_f32(source, part, &found, 0..rows)?;
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                x.iter().enumerate().for_each(|(input, &x)| turned[input * outputs + before + row] = x);
            }
        }
        before += rows;
    }
    let bad = |e: String| Error::Checkpoint(format!("{}: `{}`: {e}", source.origin(), tensor.link.stored));
    sink(&encode(tensor.format, outputs, &turned).map_err(bad)?)
}

fn read_f32(source: &dyn WeightSource, part: &Part, found: &StoredWeight, rows: Range<usize>) -> Result<Vec<f32>> {
    let columns = found.rows().1;
    let bad = |e: String| Error::Checkpoint(format!("{}: `{}`: {e}", source.origin(), part.ours));
    let mut bytes = vec![0; found.format.row_bytes(columns).map_err(bad)? * rows.len()];
    let mut x = vec![0.0; columns * rows.len()];
    source.read_rows(&part.ours, rows, &mut bytes)?;
    dequantise_rows(found.format, columns, &bytes, &mut x);
    Ok(x)
}

fn encode(format: Format, columns: usize, x: &[f32]) -> Result<Vec<u8>, String> {
    let keeps_all = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
    if let Some(at) = x.iter().position(|x| !x.is_finite()).filter(|_| !keeps_all) {
        return Err(format!(
            "{} at column {}, which {format} has no code for: the weights are damaged",
            x[at],
            at % columns
        ));
    }
    let mut bytes = vec![0; format.row_bytes(columns)? * (x.len() / columns.max(1))];
    quantise_rows(format, columns, x, None, &mut bytes)?;
    Ok(bytes)
}

/// For each of `rows` rows to write, whole heads, the row to take.
fn order(meaning: &Meaning, rows: usize) -> impl Iterator<Item = usize> + use<> {
    let (head, turned, to) = (meaning.head_dim, meaning.turned, meaning.to_layout);
    (0..rows).map(move |row| {
        let (first, within) = (row / head * head, row % head);
        if within >= turned {
            return row;
        }
        first
            + match to {
                // Pair k is (2k, 2k + 1) there and (k, k + half) here.
                RopeLayout::Interleaved => within / 2 + within % 2 * (turned / 2),
                RopeLayout::HalfSplit => within % (turned / 2) * 2 + within / (turned / 2),
            }
    })
}

/// The narrowest of `format` and f32 that has every number of a vector exactly.
pub(super) fn exact_in(
    source: &dyn WeightSource,
    tensor: &Outgoing,
    meaning: &Meaning,
    format: Format,
) -> Result<bool> {
    let mut wide = Vec::new();
    let as_f32 = Outgoing { format: Format::F32, ..tensor.clone() };
    emit(source, &as_f32, meaning, &mut |bytes| {
        wide.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(())
    })?;
    let bad = |e: String| Error::Checkpoint(format!("{}: `{}`: {e}", source.origin(), tensor.link.stored));
    let narrow = encode(format, wide.len(), &wide).map_err(bad)?;
    let mut back = vec![0.0f32; wide.len()];
    dequantise_rows(format, wide.len(), &narrow, &mut back);
    Ok(wide.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_orders_undo_each_other_and_leave_what_is_not_turned() {
        let to = |to_layout| Meaning {
            from_layout: RopeLayout::HalfSplit,
            to_layout,
            head_dim: 6,
            turned: 4,
            add_to_gains: 0.0,
        };
        let interleaved: Vec<usize> = order(&to(RopeLayout::Interleaved), 12).collect();
        assert_eq!(interleaved, [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
        let whole = Meaning { turned: 6, ..to(RopeLayout::Interleaved) };
        let there: Vec<usize> = order(&whole, 6).collect();
        assert_eq!(there, [0, 3, 1, 4, 2, 5]);
        let back: Vec<usize> = order(&Meaning { turned: 6, ..to(RopeLayout::HalfSplit) }, 6).collect();
        assert!((0..6).all(|row| there[back[row]] == row));
    }
}
