//! Importance matrices, which llama.cpp writes and reads too: a calibration reduced to the squares of what columns are multiplied with.

use super::model::Calibration;
use crate::config::ModelConfig;
use crate::models::files::gguf_names;
use crate::models::session::observe::Moments;
use crate::{Error, Result};
use formats::imatrix::{Entry, Imatrix};
use std::path::Path;

/// Reads an importance matrix for a model of this configuration. Matrices that it does not have are quantised without.
///
/// # Errors
/// A file that is damaged or none; columns of another number than the model has; nothing about any matrix of the model.
pub fn read(path: &Path, config: &ModelConfig) -> Result<Calibration> {
    let file = Imatrix::open(path)?;
    let bad = |what: String| Error::Checkpoint(format!("{}: {what}", path.display()));
    let mut moments = vec![];
    for (name, ours, columns) in gguf_names(config)? {
        let Some(Entry { sums, counts }) = file.entries.get(&name) else { continue };
        if sums.len() != columns || counts.len() != 1 {
            return Err(bad(format!(
                "'{name}' has {} columns of {} matrices, the model has {columns} of one: it belongs to another model",
                sums.len() / counts.len().max(1),
                counts.len()
            )));
        }
        if counts[0] >= 1.0 {
            let squares = sums.iter().map(|s| f64::from(*s)).collect();
            moments.push(Moments { matrices: ours, rows: counts[0] as u64, squares, products: None });
        }
    }
    if moments.is_empty() {
        return Err(bad("it knows no matrix of this model".into()));
    }
    let chunks = (file.chunk_count as usize, file.chunk_size as usize);
    Ok(Calibration { moments, about: file.datasets.join(", "), chunks })
}

/// Writes the squares of a calibration for llama.cpp; gives the number of matrices.
///
/// # Errors
/// A family that GGUF has no names for; a file that cannot be written.
pub fn write(path: &Path, config: &ModelConfig, calibration: &Calibration) -> Result<usize> {
    let mut file = Imatrix {
        datasets: vec![calibration.about.clone()],
        chunk_count: calibration.chunks.0 as u32,
        chunk_size: calibration.chunks.1 as u32,
        ..Imatrix::default()
    };
    for (name, ours, _) in gguf_names(config)? {
        // The parts of one tensor share their input.
        if let Some(moments) = ours.first().and_then(|first| calibration.of(first)) {
            let sums = moments.squares.iter().map(|s| *s as f32).collect();
            file.entries.insert(name, Entry { sums, counts: vec![moments.rows as f32] });
        }
    }
    file.write(path)?;
    Ok(file.entries.len())
}
