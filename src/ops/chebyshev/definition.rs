//! The definitions in f64: one channel at a time, every term written out.

use super::Terms;
use crate::tensor::{RefTensor, TensorType};

/// One channel's operator L or B as a function of the signal.
struct Channel<'a> {
    terms: Terms,
    pole: f64,
    matrix: Option<&'a RefTensor>,
}

impl Channel<'_> {
    /// The terms T_0 x .. T_order x, or B^0 x .. B^order x.
    fn terms(&self, x: &[f64], order: usize) -> Vec<Vec<f64>> {
        let mut terms = vec![x.to_vec()];
        for k in 1..=order {
            let next = match self.terms {
                Terms::Bank { reverse } => self.section(&terms[k - 1], reverse),
                _ => {
                    let product = self.product(&terms[k - 1]);
                    match k {
                        1 => product,
                        _ => product.iter().zip(&terms[k - 2]).map(|(p, q)| 2.0 * p - q).collect(),
                    }
                }
            };
            terms.push(next);
        }
        terms
    }

    /// L x.
    fn product(&self, x: &[f64]) -> Vec<f64> {
        let n = x.len();
        let row = |t: usize| match (self.terms, self.matrix) {
            (Terms::Matrix { transpose: false }, Some(l)) => (0..n).map(|s| l.data[t * n + s] * x[s]).sum(),
            (Terms::Matrix { transpose: true }, Some(l)) => (0..n).map(|s| l.data[s * n + t] * x[s]).sum(),
            // Only neighbours have an edge.
            _ => (t.saturating_sub(1)..(t + 2).min(n)).map(|s| path_entry(t, s, n) * x[s]).sum(),
        };
        (0..n).map(row).collect()
    }

    /// y_t = a y_{t-1} + x_{t-1} - a x_t, or the same in reversed time.
    fn section(&self, x: &[f64], reverse: bool) -> Vec<f64> {
        let mut y = vec![0.0; x.len()];
        let (mut last_x, mut last_y) = (0.0, 0.0);
        for step in 0..x.len() {
            let t = if reverse { x.len() - 1 - step } else { step };
            y[t] = self.pole * last_y + last_x - self.pole * x[t];
            (last_x, last_y) = (x[t], y[t]);
        }
        y
    }
}

/// -D^{-1/2} A D^{-1/2} of the path graph on n nodes.
pub fn path_entry(t: usize, s: usize, n: usize) -> f64 {
    let degree = |i: usize| if i == 0 || i + 1 == n { 1.0f64 } else { 2.0 };
    if t.abs_diff(s) == 1 { -1.0 / (degree(t) * degree(s)).sqrt() } else { 0.0 }
}

/// Every channel of every batch row: the batch row, channel, its operator, its signal.
fn channels<'a>(
    terms: Terms,
    x: &'a RefTensor,
    operand: Option<&'a RefTensor>,
) -> impl Iterator<Item = (usize, usize, Channel<'a>, Vec<f64>)> {
    let (batch, time, width) = (x.shape[0], x.shape[1], x.shape[2]);
    (0..batch * width).map(move |i| {
        let (b, c) = (i / width, i % width);
        let signal = (0..time).map(|t| x.data[(b * time + t) * width + c]).collect();
        let bank = matches!(terms, Terms::Bank { .. });
        let pole = if bank { operand.map_or(0.0, |a| a.data[c]) } else { 0.0 };
        (b, c, Channel { terms, pole, matrix: if bank { None } else { operand } }, signal)
    })
}

pub fn apply(terms: Terms, order: usize, inputs: &[&RefTensor], out: &TensorType) -> RefTensor {
    let mut y = RefTensor::zeros(&out.shape);
    let (time, width) = (out.shape[1], out.shape[2]);
    for (b, c, channel, signal) in channels(terms, inputs[0], inputs.get(2).copied()) {
        for (k, term) in channel.terms(&signal, order).iter().enumerate() {
            for (t, value) in term.iter().enumerate() {
                y.data[(b * time + t) * width + c] += inputs[1].data[c * (order + 1) + k] * value;
            }
        }
    }
    y
}

/// dc_k = sum_t dy_t (term k)_t, and for a bank da = sum_k c_k <dB^k x / da, dy> by the product rule, written out.
pub fn parameter_gradients(terms: Terms, order: usize, inputs: &[&RefTensor]) -> Vec<RefTensor> {
    let (x, dy) = (inputs[0], inputs[1]);
    let (time, width) = (x.shape[1], x.shape[2]);
    let mut dc = RefTensor::zeros(&[width, order + 1]);
    let mut da = RefTensor::zeros(&[width]);
    for (b, c, channel, signal) in channels(terms, x, inputs.get(2).copied()) {
        let g: Vec<f64> = (0..time).map(|t| dy.data[(b * time + t) * width + c]).collect();
        let dot = |v: &[f64]| v.iter().zip(&g).map(|(a, b)| a * b).sum::<f64>();
        let all = channel.terms(&signal, order);
        for (k, term) in all.iter().enumerate() {
            dc.data[c * (order + 1) + k] += dot(term);
        }
        if let Terms::Bank { reverse } = terms {
            // d(B u)/da = B du/da + dB/da u, and (dB/da u)_t = a (dB/da u)_{t-1} + (B u)_{t-1} - u_t.
            let mut sensitivity = vec![0.0; time];
            for k in 1..=order {
                let mut moved = channel.section(&sensitivity, reverse);
                let (mut own, mut last_out) = (0.0, 0.0);
                for step in 0..time {
                    let t = if reverse { time - 1 - step } else { step };
                    own = channel.pole * own + last_out - all[k - 1][t];
                    moved[t] += own;
                    last_out = all[k][t];
                }
                sensitivity = moved;
                da.data[c] += inputs[3].data[c * (order + 1) + k] * dot(&sensitivity);
            }
        }
    }
    if matches!(terms, Terms::Bank { .. }) { vec![dc, da] } else { vec![dc] }
}
