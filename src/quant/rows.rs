//! Matrices as rows of a format's bytes, rounded to the nearest: each number by itself, with the scales that were asked for.

use super::symmetric::{Clip, Grid};
use half::f16;
use kernels_cpu::blocks::{self, Format};
use kernels_cpu::threads::par_rows_mut;

/// How scales are chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Of the formats of symmetric integers; others choose as llama.cpp does.
    pub clip: Clip,
    /// How much each column counts, 0 or more: the mean square of what it is multiplied with. Formats that search a scale use it.
    pub importance: Option<&'a [f32]>,
    /// One scale for the whole matrix (`Int8Row`).
    pub one_scale: bool,
}

/// Refuses what no scale can hold.
pub(super) fn finite(weights: &[f32]) -> Result<(), String> {
    match weights.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(format!("number {at} of the weight is {}: it cannot be quantised", weights[at])),
        None => Ok(()),
    }
}

/// `weights` [rows, columns] as rows of `format`.
///
/// # Errors
/// Rows that are not whole blocks, a format that is only read, an importance of another length, or weights that are not finite.
pub fn quantise(format: Format, weights: &[f32], columns: usize, options: &Options) -> Result<Vec<u8>, String> {
    finite(weights)?;
    let row = format.row_bytes(columns)?;
    if columns == 0 || !weights.len().is_multiple_of(columns) {
        return Err(format!("{} numbers are no rows of {columns}", weights.len()));
    }
    if let Some(h) = options.importance.filter(|h| h.len() != columns) {
        return Err(format!("an importance of {} columns for rows of {columns}", h.len()));
    }
    let rows = weights.len() / columns;
    let length =
        rows.checked_mul(row).ok_or_else(|| format!("{rows} rows of {row} bytes are more than can be counted"))?;
    let mut bytes = vec![0; length];
    let cost = if options.clip == Clip::Mse { 512 } else { 16 };
    match format {
        Format::Int8Row if options.one_scale || options.clip != Clip::Max => {
            let whole = options.one_scale.then(|| {
                // The columns count in every row alike.
                let h = options.importance.map(|h| h.repeat(rows));
                Grid::Int8.scale(weights, h.as_deref(), options.clip)
            });
            par_rows_mut(&mut bytes, row, columns * cost, |first, part| {
                for (r, out) in part.chunks_exact_mut(row).enumerate() {
                    let values = &weights[(first + r) * columns..][..columns];
                    let s = whole.unwrap_or_else(|| Grid::Int8.scale(values, options.importance, options.clip));
                    out[..4].copy_from_slice(&s.to_le_bytes());
                    out[4..].iter_mut().zip(values).for_each(|(b, v)| *b = Grid::Int8.code(*v, s) as i8 as u8);
                }
            });
        }
        Format::Int4Group(group) if options.clip != Clip::Max => {
            let (layout, group) = (Int4Row::new(columns, group as usize)?, group as usize);
            par_rows_mut(&mut bytes, row, columns * cost, |first, part| {
                for (r, out) in part.chunks_exact_mut(row).enumerate() {
                    let values = &weights[(first + r) * columns..][..columns];
                    let importance = |g: usize| options.importance.map(|h| &h[g * group..(g + 1) * group]);
                    let groups = values.chunks_exact(group).enumerate();
                    let scales: Vec<f32> =
                        groups.map(|(g, v)| Grid::Int4.scale(v, importance(g), options.clip)).collect();
                    let code = |(i, v): (usize, &f32)| Grid::Int4.code(*v, scales[i / group]) as i8;
                    let codes: Vec<i8> = values.iter().enumerate().map(code).collect();
                    layout.write(&codes, &scales, out);
                }
            });
        }
        _ => blocks::quantise_rows(format, columns, weights, options.importance, &mut bytes)?,
    }
    Ok(bytes)
}

/// Rows of `format` as numbers.
///
/// # Errors
/// Rows that are not whole blocks, or bytes that are not whole rows.
pub fn dequantise(format: Format, bytes: &[u8], columns: usize) -> Result<Vec<f32>, String> {
    let row = format.row_bytes(columns)?;
    if row == 0 || !bytes.len().is_multiple_of(row) {
        return Err(format!("{} bytes are no rows of {row}", bytes.len()));
    }
    let mut weights = vec![0.0; bytes.len() / row * columns];
    blocks::dequantise_rows(format, columns, bytes, &mut weights);
    Ok(weights)
}

/// Where the codes and scales of a row of `Int4Group` stand.
pub(super) struct Int4Row {
    group: usize,
    bytes: usize,
}

impl Int4Row {
    pub fn new(columns: usize, group: usize) -> Result<Self, String> {
        let bytes = match group {
            32 | 64 | 128 => Format::Int4Group(group as u16).row_bytes(columns)?,
            _ => return Err(format!("groups of {group}: 32, 64 and 128 are stored")),
        };
        Ok(Int4Row { group, bytes })
    }

    pub fn group(&self) -> usize {
        self.group
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Codes -7 ..= 7 of a row, and the scale of each group, which f16 can hold.
    pub fn write(&self, codes: &[i8], scales: &[f32], out: &mut [u8]) {
        let blocks = codes.chunks_exact(self.group).zip(scales);
        for ((codes, scale), out) in blocks.zip(out.chunks_exact_mut(2 + self.group / 2)) {
            out[..2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
            let (low, high) = codes.split_at(self.group / 2);
            for ((b, low), high) in out[2..].iter_mut().zip(low).zip(high) {
                *b = (low + 8) as u8 | ((high + 8) as u8) << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_cpu::philox;

    fn normal(n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        philox::fill_normal(42, 7, &mut values);
        values.iter_mut().for_each(|v| *v *= 0.02);
        values
    }

    fn error(format: Format, weights: &[f32], columns: usize, options: &Options) -> f64 {
        let bytes = quantise(format, weights, columns, options).unwrap();
        let back = dequantise(format, &bytes, columns).unwrap();
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        weights.iter().zip(&back).map(square).sum::<f64>() / weights.len() as f64
    }

    /// 768 x 768 in phase 26: 2,359,296 bytes in f32, 313,344 in int4 with groups of 64. Its int8 has f16 scales, 591,360 bytes (as in
    /// GGUF-lite); those of `Int8Row` are f32.
    #[test]
    fn bytes_are_those_of_the_formula() {
        let n = 768;
        let w = normal(n * n);
        let bytes = |f| quantise(f, &w, n, &Options::default()).unwrap().len();
        assert_eq!(bytes(Format::F32), 2_359_296);
        assert_eq!(bytes(Format::Int8Row), 591_360 + 2 * n);
        assert_eq!(bytes(Format::Int4Group(64)), 313_344);
        assert_eq!(bytes(Format::Nf4), 313_344);
    }

    /// Measured for normal numbers in blocks of 64: 0.73.
    #[test]
    fn levels_of_the_normal_distribution_fit_normal_weights_better() {
        let w = normal(1 << 18);
        let plain = Options::default();
        let (nf4, int4) = (error(Format::Nf4, &w, 1024, &plain), error(Format::Int4Group(64), &w, 1024, &plain));
        let ratio = nf4 / int4;
        assert!((0.70..0.77).contains(&ratio), "{ratio}");
        assert!(((int4.sqrt() / 0.02) - 0.108).abs() < 0.004, "{}", int4.sqrt() / 0.02);
    }

    #[test]
    fn smaller_blocks_and_searched_scales_lose_less() {
        // Rows of different sizes, which one scale for all does not suit.
        let columns = 256;
        let mut w = normal(64 * columns);
        w.chunks_exact_mut(columns)
            .enumerate()
            .for_each(|(r, row)| row.iter_mut().for_each(|v| *v *= 1.0 + r as f32 / 8.0));
        let plain = Options::default();
        let one = Options { one_scale: true, ..plain };
        assert!(error(Format::Int8Row, &w, columns, &plain) < 0.5 * error(Format::Int8Row, &w, columns, &one));
        let of = |g| error(Format::Int4Group(g), &w, columns, &plain);
        assert!(of(32) < of(64) && of(64) < of(128));
        let mse = Options { clip: Clip::Mse, ..plain };
        for format in [Format::Int8Row, Format::Int4Group(64)] {
            assert!(error(format, &w, columns, &mse) < error(format, &w, columns, &plain), "{format}");
        }
    }

    /// Both ways to the same format agree where they are asked the same.
    #[test]
    fn the_codes_are_those_of_the_kernels() {
        let (columns, w) = (256, normal(32 * 256));
        for (format, group) in [(Format::Int4Group(32), 32), (Format::Int4Group(64), 64), (Format::Int8Row, columns)] {
            let kernels = quantise(format, &w, columns, &Options::default()).unwrap();
            let whole = Options { clip: Clip::Percentile(1.0), ..Options::default() };
            assert_eq!(kernels, quantise(format, &w, columns, &whole).unwrap(), "{format} in blocks of {group}");
        }
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        let plain = Options::default();
        assert!(quantise(Format::Int4Group(64), &[0.0; 172], 172, &plain).unwrap_err().contains("172"));
        assert!(quantise(Format::Q8_0, &[f32::NAN; 32], 32, &plain).unwrap_err().contains("NaN"));
        assert!(quantise(Format::Q5K, &[0.0; 256], 256, &plain).is_err());
        let short = Options { importance: Some(&[1.0; 8]), ..plain };
        assert!(quantise(Format::Q4_0, &[0.0; 32], 32, &short).is_err());
    }
}
