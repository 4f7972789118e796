//! Depthwise causal convolution over time: `y[b, t, c] = bias[c] + sum_k w[c, k] x[b, t - k, c]`, tap 0 being the current
//! token and tokens before the first being 0.

use crate::channels::{BLOCK, Block, Column, add, fma, for_each_block, load, store, sum_parts, tail, transpose, zero};
use crate::register::{Register, with_register};
use crate::threads::SharedMut;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
    pub taps: usize,
}

/// Time steps summed before their sum joins the total, in the gradient of the taps: keeps rounding errors small.
const STRETCH: usize = 64;

impl ConvShape {
    /// Elements of `x` and `y`.
    pub fn len(&self) -> usize {
        self.batch * self.time * self.channels
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, tensors: &[&[f32]], w: &[f32], bias: Option<&[f32]>) {
        for x in tensors {
            assert_eq!(x.len(), self.len(), "convolution: tensors must be [batch, time, channels] of {self:?}");
        }
        assert_eq!(w.len(), self.channels * self.taps, "convolution: w must be [channels, taps] of {self:?}");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), self.channels, "convolution: bias must be [channels] of {self:?}");
        }
    }
}

/// `y [batch, time, channels]` for `x` of that shape, `w [channels, taps]` and `bias [channels]`.
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn conv_forward(shape: ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    shape.check(&[x, y], w, bias);
    run(shape, x, w, bias, false, y);
}

/// `dx [batch, time, channels]`: `dx[b, t, c] = sum_k w[c, k] dy[b, t + k, c]`.
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn conv_backward_input(shape: ConvShape, w: &[f32], dy: &[f32], dx: &mut [f32]) {
    shape.check(&[dy, dx], w, None);
    run(shape, dy, w, None, true, dx);
}

/// `dw[c, k] = sum_{b, t} dy[b, t, c] x[b, t - k, c]` and `dbias[c] = sum_{b, t} dy[b, t, c]`, summed in a fixed order.
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn conv_backward_weight(shape: ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32], dbias: Option<&mut [f32]>) {
    shape.check(&[x, dy], dw, dbias.as_deref());
    let ConvShape { batch, time, channels, taps } = shape;
    // parts[b] holds taps rows for dw and one for dbias
    let rows = taps + 1;
    let mut parts = vec![0.0; batch * rows * channels];
    let shared = SharedMut::new(&mut parts);
    for_each_block(batch, channels, time * rows * BLOCK, |b, block| {
        // SAFETY: items own disjoint blocks.
        let mut out = unsafe { Column::new(&shared, b, rows, channels, &block) };
        let first = b * time * channels + block.start;
        weight_block(shape, block.len(), tail(x, first), tail(dy, first), &mut out);
    });
    let mut total = vec![0.0; rows * channels];
    sum_parts(&parts, &mut total);
    dw.copy_from_slice(&transpose(&total[..taps * channels], taps, channels));
    if let Some(dbias) = dbias {
        dbias.copy_from_slice(&total[taps * channels..]);
    }
}

fn run(shape: ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, ahead: bool, y: &mut [f32]) {
    let ConvShape { batch, time, channels, taps } = shape;
    let taps_first = transpose(w, channels, taps);
    let y = SharedMut::new(y);
    for_each_block(batch, channels, time * taps.max(1) * BLOCK, |b, block| {
        // SAFETY: items own disjoint blocks.
        let mut out = unsafe { Column::new(&y, b, time, channels, &block) };
        let first = b * time * channels + block.start;
        let bias = bias.map(|bias| &bias[block.clone()]);
        tap_block(shape, block.len(), tail(x, first), tail(&taps_first, block.start), bias, ahead, &mut out);
    });
}

#[inline(always)]
fn tap_block_in<R: Register>(
    shape: ConvShape,
    width: usize,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    ahead: bool,
    y: &mut Column<'_>,
) {
    let start = bias.map_or(zero::<R>(), load);
    for t in 0..shape.time {
        let mut acc = start;
        let reach = if ahead { shape.time - t } else { t + 1 };
        for k in 0..shape.taps.min(reach) {
            let s = if ahead { t + k } else { t - k };
            let weight = load(&w[k * shape.channels..][..width]);
            acc = fma(weight, load(&x[s * shape.channels..][..width]), acc);
        }
        store(acc, y.at(t));
    }
}

#[inline(always)]
fn weight_block_in<R: Register>(shape: ConvShape, width: usize, x: &[f32], dy: &[f32], out: &mut Column<'_>) {
    let at = |x: &[f32], t: usize| -> Block<R> { load(&x[t * shape.channels..][..width]) };
    for k in 0..=shape.taps {
        let mut total = zero();
        // the row past the taps is the bias: its input is 1 everywhere
        let first = if k < shape.taps { k } else { 0 };
        for from in (first..shape.time).step_by(STRETCH) {
            let mut acc = zero();
            for t in from..(from + STRETCH).min(shape.time) {
                if k < shape.taps {
                    acc = fma(at(dy, t), at(x, t - k), acc);
                } else {
                    acc = add(acc, at(dy, t));
                }
            }
            total = add(total, acc);
        }
        store(total, out.at(k));
    }
}

crate::multiversion! {
    /// Sums taps over earlier tokens, or over later ones where `ahead`. `x` and `w` start at the block's first channel.
    fn tap_block<V>(
        shape: ConvShape,
        width: usize,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        ahead: bool,
        y: &mut Column<'_>,
    ) { with_register!(V, tap_block_in(shape, width, x, w, bias, ahead, y)) }

    fn weight_block<V>(shape: ConvShape, width: usize, x: &[f32], dy: &[f32], out: &mut Column<'_>) { with_register!(V, weight_block_in(shape, width, x, dy, out)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::polar::tests::noise;
    use crate::threads::with_threads;

    fn shapes() -> Vec<ConvShape> {
        [(1, 1, 1, 1), (2, 5, 3, 4), (1, 3, 33, 7), (3, 67, 32, 4), (2, 130, 70, 3), (1, 4, 2, 0), (2, 0, 50, 2)]
            .map(|(batch, time, channels, taps)| ConvShape { batch, time, channels, taps })
            .to_vec()
    }

    /// Every product `w x dy` of the loss `sum y dy`, as `(b, t, c, k, s)` with `s = t - k`.
    fn terms(s: ConvShape) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        (0..s.batch * s.time * s.channels * s.taps).filter_map(move |i| {
            let (k, rest) = (i % s.taps, i / s.taps);
            let (c, rest) = (rest % s.channels, rest / s.channels);
            let (t, b) = (rest % s.time, rest / s.time);
            let at = |t: usize| (b * s.time + t) * s.channels + c;
            (k <= t).then(|| (at(t), at(t - k), c * s.taps + k, c))
        })
    }

    fn assert_near(got: &[f32], want: &[f64], size: &[f64], count: usize) {
        for ((x, y), size) in got.iter().zip(want).zip(size) {
            // a sum of `count` rounded products
            assert!((*x as f64 - y).abs() <= (count + 1) as f64 * 2f64.powi(-24) * size, "{x} {y}");
        }
    }

    #[test]
    fn values_and_gradients_agree_with_loops() {
        for s in shapes() {
            let (x, dy) = (noise(s.len(), 1), noise(s.len(), 2));
            let (w, bias) = (noise(s.channels * s.taps, 3), noise(s.channels, 4));
            let (mut y, mut dx) = (vec![f32::NAN; s.len()], vec![f32::NAN; s.len()]);
            let (mut dw, mut db) = (vec![f32::NAN; w.len()], vec![f32::NAN; s.channels]);
            conv_forward(s, &x, &w, Some(&bias), &mut y);
            conv_backward_input(s, &w, &dy, &mut dx);
            conv_backward_weight(s, &x, &dy, &mut dw, Some(&mut db));
            let start = |i: usize| bias[i % s.channels] as f64;
            let mut want =
                [(0..s.len()).map(start).collect(), vec![0.0; s.len()], vec![0.0; w.len()], vec![0.0; db.len()]];
            let mut size: [Vec<f64>; 4] = want.clone().map(|v: Vec<f64>| v.iter().map(|x| x.abs()).collect());
            let mut put = |n: usize, at: usize, term: f64| {
                want[n][at] += term;
                size[n][at] += term.abs();
            };
            for (out, source, tap, _) in terms(s) {
                let (w, x, dy) = (w[tap] as f64, x[source] as f64, dy[out] as f64);
                put(0, out, w * x);
                put(1, source, w * dy);
                put(2, tap, dy * x);
            }
            for (i, &d) in dy.iter().enumerate() {
                put(3, i % s.channels, d as f64);
            }
            let long = s.batch * s.time;
            for (n, (got, count)) in [(&y, s.taps + 1), (&dx, s.taps), (&dw, long), (&db, long)].into_iter().enumerate()
            {
                assert_near(got, &want[n], &size[n], count);
            }
            let mut plain = vec![f32::NAN; s.len()];
            conv_forward(s, &x, &w, None, &mut plain);
            for (i, (a, b)) in plain.iter().zip(&y).enumerate() {
                assert!(((a - b) as f64 + start(i)).abs() <= 1e-5 * (1.0 + size[0][i]));
            }
        }
    }

    #[test]
    fn a_later_token_changes_no_earlier_output() {
        let s = ConvShape { batch: 1, time: 20, channels: 5, taps: 4 };
        let (mut x, w) = (noise(s.len(), 1), noise(20, 2));
        let (mut before, mut after) = (vec![0.0; s.len()], vec![0.0; s.len()]);
        conv_forward(s, &x, &w, None, &mut before);
        x[12 * 5 + 2] += 1.0;
        conv_forward(s, &x, &w, None, &mut after);
        assert_eq!(before[..60], after[..60]);
        assert_ne!(before[60..], after[60..]);
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let s = ConvShape { batch: 4, time: 150, channels: 100, taps: 5 };
        let (x, dy, w) = (noise(s.len(), 1), noise(s.len(), 2), noise(500, 3));
        let run = |threads| {
            with_threads(threads, || {
                let (mut y, mut dx, mut dw, mut db) =
                    (vec![0.0; s.len()], vec![0.0; s.len()], vec![0.0; 500], vec![0.0; 100]);
                conv_forward(s, &x, &w, None, &mut y);
                conv_backward_input(s, &w, &dy, &mut dx);
                conv_backward_weight(s, &x, &dy, &mut dw, Some(&mut db));
                (y, dx, dw, db)
            })
        };
        assert_eq!(run(1), run(3));
    }
}
