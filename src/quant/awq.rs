//! Activation-aware scaling (Lin et al. 2023, arXiv:2306.00978): columns whose inputs are large are multiplied before rounding, so that
//! they lose less, and what feeds them is divided by as much; the model computes what it did before.

use super::rows::{Options, dequantise, quantise};
use super::symmetric::Clip;
use kernels_cpu::blocks::Format;
use kernels_cpu::gemm::gemm;

/// Exponents that are tried: 0 (no scaling) to 1 in steps of 0.05.
pub const GRID: usize = 21;

/// Scales for the inputs of one or several matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// Scales are the inputs' root mean squares to this power, divided by the root of the product of the largest and smallest.
    pub alpha: f64,
    /// One factor a column; all 1 with alpha 0.
    pub factors: Vec<f32>,
    /// Mean squared error of the outputs, and what it is with alpha 0.
    pub error: f64,
    pub plain: f64,
}

/// Searches the exponent for `matrices`, each [rows, columns], that share the inputs whose second moments are `gram` [columns, columns].
/// Columns of one class have the same factor, where there are `classes`.
///
/// # Errors
/// As [`quantise`].
pub fn search(
    matrices: &[&[f32]],
    columns: usize,
    gram: &[f64],
    classes: Option<&[usize]>,
    format: Format,
    clip: Clip,
) -> Result<Scaling, String> {
    let h: Vec<f32> = gram.iter().map(|v| *v as f32).collect();
    let squares: Vec<f64> = (0..columns).map(|i| gram[i * columns + i]).collect();
    let magnitudes = magnitudes(&squares, classes);
    let mut best: Option<Scaling> = None;
    for step in 0..GRID {
        let alpha = step as f64 / (GRID - 1) as f64;
        let factors = factors(&magnitudes, alpha);
        let mut error = 0.0;
        for weights in matrices {
            error += error_of(weights, columns, &h, &factors, format, clip)?;
        }
        let plain = best.as_ref().map_or(error, |b| b.plain);
        if best.as_ref().is_none_or(|b| error < b.error) {
            best = Some(Scaling { alpha, factors, error, plain });
        }
    }
    best.ok_or_else(|| "no exponents to try".into())
}

/// Root mean squares of the inputs, those of a class together; those that are hardly there count as 1e-4 of the mean.
fn magnitudes(squares: &[f64], classes: Option<&[usize]>) -> Vec<f64> {
    let class = |i: usize| classes.map_or(i, |c| c[i]);
    let count = (0..squares.len()).map(class).max().map_or(0, |m| m + 1);
    let mut sums = vec![(0.0, 0.0); count];
    for (i, square) in squares.iter().enumerate() {
        let (sum, n) = &mut sums[class(i)];
        *sum += square.max(0.0);
        *n += 1.0;
    }
    let mean = (squares.iter().sum::<f64>() / squares.len().max(1) as f64).sqrt();
    let root = |i: usize| (sums[class(i)].0 / sums[class(i)].1).sqrt().max(1e-4 * mean);
    let roots = (0..squares.len()).map(root);
    roots.map(|r| if r.is_finite() && r > 0.0 { r } else { 1.0 }).collect()
}

fn factors(magnitudes: &[f64], alpha: f64) -> Vec<f32> {
    let powers: Vec<f64> = magnitudes.iter().map(|m| m.powf(alpha)).collect();
    let most = powers.iter().fold(0.0f64, |m, p| m.max(*p));
    let least = powers.iter().fold(f64::INFINITY, |m, p| m.min(*p));
    let middle = (most * least).sqrt();
    powers.iter().map(|p| (p / middle) as f32).collect()
}

/// tr(D H D^T) with D what rounding W S is off by, divided by S again.
fn error_of(
    weights: &[f32],
    columns: usize,
    h: &[f32],
    factors: &[f32],
    format: Format,
    clip: Clip,
) -> Result<f64, String> {
    let mut scaled = weights.to_vec();
    scale_columns(&mut scaled, factors);
    let bytes = quantise(format, &scaled, columns, &Options { clip, ..Options::default() })?;
    let mut off = dequantise(format, &bytes, columns)?;
    for (row, weights) in off.chunks_exact_mut(columns).zip(weights.chunks_exact(columns)) {
        row.iter_mut().zip(weights).zip(factors).for_each(|((q, w), s)| *q = *q / s - w);
    }
    let rows = weights.len() / columns;
    let mut product = vec![0.0; off.len()];
    gemm(false, false, rows, columns, columns, &off, columns, h, columns, false, &mut product, columns);
    Ok(off.iter().zip(&product).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
}

/// Multiplies every row by the factors, element by element.
pub fn scale_columns(weights: &mut [f32], factors: &[f32]) {
    for row in weights.chunks_exact_mut(factors.len()) {
        row.iter_mut().zip(factors).for_each(|(w, s)| *w *= s);
    }
}

/// Divides row i by factor i; a vector is rows of one number.
pub fn divide_rows(weights: &mut [f32], factors: &[f32]) {
    let columns = weights.len() / factors.len().max(1);
    for (row, s) in weights.chunks_exact_mut(columns.max(1)).zip(factors) {
        row.iter_mut().for_each(|w| *w /= s);
    }
}

/// Classes of the attention's output channels: query heads that read one value head see the same channels of it.
pub fn head_classes(heads: usize, kv_heads: usize, head_dim: usize) -> Vec<usize> {
    let group = heads / kv_heads.max(1);
    (0..heads * head_dim).map(|c| c / head_dim / group.max(1) * head_dim + c % head_dim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::gptq::output_error;
    use kernels_cpu::philox;

    const FORMAT: Format = Format::Int4Group(64);

    fn normal(stream: u32, std: f32, n: usize) -> Vec<f32> {
        let mut values = vec![0.0; n];
        philox::fill_normal(42, stream, &mut values);
        values.iter_mut().for_each(|v| *v *= std);
        values
    }

    /// Second moments of independent inputs, a few of which are large.
    fn gram(columns: usize) -> Vec<f64> {
        let mut h = vec![0.0; columns * columns];
        (0..columns).for_each(|i| h[i * columns + i] = if i % 37 == 5 { 400.0 } else { 1.0 });
        h
    }

    #[test]
    fn large_inputs_are_served_better_and_never_worse_than_without() {
        let n = 256;
        let (a, b) = (normal(0, 0.02, 96 * n), normal(1, 0.02, 32 * n));
        let h = gram(n);
        let found = search(&[&a, &b], n, &h, None, FORMAT, Clip::Max).unwrap();
        assert!(found.alpha > 0.0 && found.error < 0.7 * found.plain, "{found:?}");
        // The same by another way.
        let error = |w: &[f32], factors: &[f32]| {
            let mut scaled = w.to_vec();
            scale_columns(&mut scaled, factors);
            let bytes = quantise(FORMAT, &scaled, n, &Options::default()).unwrap();
            let mut back = dequantise(FORMAT, &bytes, n).unwrap();
            scale_columns(&mut back, &factors.iter().map(|s| 1.0 / s).collect::<Vec<_>>());
            output_error(w, &back, &h, n)
        };
        let both = |factors: &[f32]| error(&a, factors) + error(&b, factors);
        assert!((both(&found.factors) / found.error - 1.0).abs() < 1e-4);
        assert!((both(&vec![1.0; n]) / found.plain - 1.0).abs() < 1e-4);
        // Inputs that are all alike leave nothing to win: whatever is chosen is not worse.
        let mut h = vec![0.0; n * n];
        (0..n).for_each(|i| h[i * n + i] = 1.0);
        let found = search(&[&a], n, &h, None, FORMAT, Clip::Max).unwrap();
        assert!(found.error <= found.plain && found.factors.iter().all(|s| *s == 1.0));
    }

    #[test]
    fn channels_of_one_value_head_share_their_factor() {
        let classes = head_classes(4, 2, 2);
        assert_eq!(classes, [0, 1, 0, 1, 2, 3, 2, 3]);
        let (n, classes) = (256, head_classes(8, 2, 32));
        let found = search(&[&normal(2, 0.02, 64 * n)], n, &gram(n), Some(&classes), FORMAT, Clip::Max).unwrap();
        let of = |head: usize, d: usize| found.factors[head * 32 + d];
        assert!((0..32).all(|d| (1..4).all(|h| of(h, d) == of(0, d)) && (5..8).all(|h| of(h, d) == of(4, d))));
        assert!(found.factors.iter().any(|s| *s != found.factors[0]));
    }

    #[test]
    fn rows_divided_and_columns_multiplied_leave_the_product() {
        let mut first = normal(3, 1.0, 4 * 3);
        let mut second = normal(4, 1.0, 2 * 4);
        let product = |first: &[f32], second: &[f32]| -> Vec<f32> {
            (0..6).map(|p| (0..4).map(|k| second[p / 3 * 4 + k] * first[k * 3 + p % 3]).sum()).collect()
        };
        let before = product(&first, &second);
        let factors = [0.5, 2.0, 3.0, 0.1];
        divide_rows(&mut first, &factors);
        scale_columns(&mut second, &factors);
        let after = product(&first, &second);
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
