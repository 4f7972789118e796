//! Orthogonal Procrustes (Schonemann 1966) of batches of small clouds, with a cross-validated strength: the rotation
//! that best maps the states `zb` of some observations onto other states `za` of the same observations, and how far to
//! trust it.
//!
//! M = Zb^T Za, scaled to Frobenius norm sqrt(d), plus ridge times the identity; its polar factor by the cubic
//! Newton-Schulz iteration X <- 1.5 X - 0.5 X X^T X (Bjorck and Bowie 1971). Directions whose singular values are too
//! small to reach 1 in the given iterations are shrunk, so the result is a contraction and need not be orthogonal.

#[cfg(test)]
mod tests;

use super::case::SplitMix;
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::Result;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use kernels_cpu::procrustes::{ProcrustesOptions, stitch};
use minijinja::context;

/// The greatest width of a cloud: a tile of 4x4 a thread then covers a matrix with 256 threads.
pub const MAX_WIDTH: usize = 64;

/// Inputs za, zb [B, O, d] with d from 1 to 64; outputs omega [B, d, d], for which zb omega is near za, and strength
/// [B] in [0, 1]: the share of the held-out squared distance that a rotation fitted on the even observations removes
/// from the odd ones and the other way round (0 where that is not a finite number). Without evidence (all zeros, O = 0,
/// not finite) omega is the identity.
///
/// Detached: no gradient flows to the clouds. For the alignment loss L = min over rotations of ||Zb Omega - Za||^2 that
/// is exact: Omega minimises L, so by the envelope theorem dL/dZb = 2 (Zb Omega - Za) Omega^T with Omega held constant.
/// Elsewhere it is a choice: the gradient of a polar factor is ill-conditioned where singular values are small, and the
/// strength is a measurement.
#[derive(Clone, Debug, PartialEq)]
pub struct Procrustes {
    /// Weight of the identity against M scaled to Frobenius norm sqrt(d); finite and not negative.
    pub ridge: f32,
    /// Subtract each cloud's mean first.
    pub center: bool,
    /// Newton-Schulz iterations.
    pub iterations: usize,
}

impl Default for Procrustes {
    fn default() -> Self {
        let ProcrustesOptions { ridge, center, iters } = ProcrustesOptions::default();
        Procrustes { ridge, center, iterations: iters }
    }
}

/// Batch rows, observations and width.
fn sizes(cloud: &TensorType) -> [usize; 3] {
    [cloud.shape[0], cloud.shape[1], cloud.shape[2]]
}

/// One fit in f64: the rotation and the means taken away.
struct Fit {
    omega: Vec<f64>,
    mean_a: Vec<f64>,
    mean_b: Vec<f64>,
}

impl Procrustes {
    /// Fits observations `first, first + step, ..` of clouds [O, d].
    fn fit(&self, za: &[f64], zb: &[f64], d: usize, first: usize, step: usize) -> Fit {
        let rows: Vec<usize> = (first..za.len() / d).step_by(step).collect();
        let mean = |z: &[f64], c: usize| {
            let sum: f64 = rows.iter().map(|i| z[i * d + c]).sum();
            if self.center && !rows.is_empty() { sum / rows.len() as f64 } else { 0.0 }
        };
        let mean_a: Vec<f64> = (0..d).map(|c| mean(za, c)).collect();
        let mean_b: Vec<f64> = (0..d).map(|c| mean(zb, c)).collect();
        let mut m = vec![0.0; d * d];
        for i in &rows {
            for r in 0..d {
                for c in 0..d {
                    m[r * d + c] += (zb[i * d + r] - mean_b[r]) * (za[i * d + c] - mean_a[c]);
                }
            }
        }
        let norm = m.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm > 0.0 {
            m.iter_mut().for_each(|x| *x *= (d as f64).sqrt() / norm);
        }
        m.iter_mut().step_by(d + 1).for_each(|x| *x += self.ridge as f64);
        Fit { omega: newton_schulz(m, d, self.iterations), mean_a, mean_b }
    }

    fn strength(&self, za: &[f64], zb: &[f64], d: usize) -> f64 {
        let observations = za.len() / d;
        let (mut residual, mut baseline) = (0.0, 0.0);
        for fold in 0..2 {
            let Fit { omega, mean_a, mean_b } = self.fit(za, zb, d, fold, 2);
            for i in (1 - fold..observations).step_by(2) {
                let b: Vec<f64> = (0..d).map(|r| zb[i * d + r] - mean_b[r]).collect();
                for c in 0..d {
                    let a = za[i * d + c] - mean_a[c];
                    let rotated: f64 = (0..d).map(|r| b[r] * omega[r * d + c]).sum();
                    residual += (rotated - a).powi(2);
                    baseline += (b[c] - a).powi(2);
                }
            }
        }
        let w = 1.0 - residual / baseline;
        if observations > 1 && w.is_finite() { w.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// The polar factor of m [d, d], as far as `iterations` bring it; the identity for the zero matrix or one that is not
/// finite.
fn newton_schulz(m: Vec<f64>, d: usize, iterations: usize) -> Vec<f64> {
    let row = |r: usize| (0..d).map(|c| m[r * d + c].abs()).sum::<f64>();
    let column = |c: usize| (0..d).map(|r| m[r * d + c].abs()).sum::<f64>();
    let largest = |sum: &dyn Fn(usize) -> f64| (0..d).map(sum).fold(0.0, f64::max);
    let bound = (largest(&row) * largest(&column)).sqrt();
    if !(bound > 0.0 && m.iter().all(|x| x.is_finite())) {
        return (0..d * d).map(|i| f64::from(u8::from(i.is_multiple_of(d + 1)))).collect();
    }
    let mut x: Vec<f64> = m.iter().map(|v| v / bound).collect();
    for _ in 0..iterations {
        let transposed: Vec<f64> = (0..d * d).map(|i| x[i % d * d + i / d]).collect();
        let y = product(&x, &product(&transposed, &x, d), d);
        x.iter_mut().zip(&y).for_each(|(x, y)| *x = 1.5 * *x - 0.5 * y);
    }
    x
}

fn product(a: &[f64], b: &[f64], d: usize) -> Vec<f64> {
    let mut out = vec![0.0; d * d];
    for r in 0..d {
        for k in 0..d {
            for c in 0..d {
                out[r * d + c] += a[r * d + k] * b[k * d + c];
            }
        }
    }
    out
}

impl Kernel for Procrustes {
    fn name(&self) -> &'static str {
        "procrustes"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let shape = &inputs[0].shape;
        let (size, d) = (shape[1] * shape[2], shape[2]);
        let (mut omega, mut strength) = (vec![], vec![]);
        for b in 0..shape[0] {
            let (za, zb) = (&inputs[0].data[b * size..][..size], &inputs[1].data[b * size..][..size]);
            omega.extend(self.fit(za, zb, d, 0, 1).omega);
            strength.push(self.strength(za, zb, d));
        }
        vec![RefTensor::new(&outputs[0].shape, omega), RefTensor::new(&outputs[1].shape, strength)]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let [batch, observations, d] = sizes(call.input(0));
        let options = ProcrustesOptions { ridge: self.ridge, center: self.center, iters: self.iterations };
        stitch(batch, observations, d, call.f32(0), call.f32(1), options, call.out_f32(0), call.out_f32(1));
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let [batch, observations, d] = sizes(l.input(0));
        // X and its Gram matrix; the latter also holds the means, two rows.
        let words = d * d + (d * d).max(2 * d);
        // Powers of two: few sizes, so few shaders.
        let memory = words.next_power_of_two().max(512);
        let in_storage = memory * 4 > l.caps.limits.workgroup_memory as usize;
        let threads = if d <= 32 { 64 } else { 256 };
        // Means, M, the products and the small sums; then the scoring.
        l.loops(observations * 3 + self.iterations * (2 * d + 1) + 12 * d)?;
        l.loops((observations * d).div_ceil(256) * (d / 4 + 4))?;
        let cloud = (observations * d * 4) as u64;
        let (rotation, folds) = ((d * d * 4) as u64, (2 * (d * d + 2 * d) * 4) as u64);
        let shared = (3 * words * 4) as u64;
        let mut row_bytes = vec![cloud, cloud, rotation, folds];
        if in_storage {
            row_bytes.push(shared);
        }
        let pieces = l.pieces(batch, &row_bytes, self.flops(observations, d), 0)?;
        let most = pieces.iter().map(|p| p.len()).max().unwrap_or(0) as u64;
        let fold_memory = l.scratch(most * folds);
        let work = in_storage.then(|| l.scratch(most * shared));
        let shader = crate::shader!("procrustes.wgsl");
        for rows in pieces {
            let range = |row: u64| rows.start as u64 * row..rows.end as u64 * row;
            let (za, first) = l.window(Buf::In(0), range(cloud), false);
            let (zb, _) = l.window(Buf::In(1), range(cloud), false);
            let params = |out_first: usize| {
                let p = Params::new().u32(rows.len()).u32(observations).u32(d).u32(self.iterations);
                let p = p.f32(self.ridge as f64).u32(usize::from(self.center));
                p.u32(first).u32(out_first).u32(words)
            };
            let (omega, ahead) = l.window(Buf::Out(0), range(rotation), true);
            let mut binds = vec![("za", za), ("zb", zb), ("omega", omega), ("folds", l.write(fold_memory))];
            binds.extend(work.map(|w| ("work", l.write(w))));
            let form = if in_storage { "storage" } else { "workgroup" };
            let variables = match in_storage {
                false => context! { phase => "solve", in_storage, threads, words => memory },
                true => context! { phase => "solve", in_storage, threads },
            };
            let groups = l.line(3 * rows.len());
            l.dispatch_named(format!("procrustes/{form}"), shader, variables, &binds, params(ahead), groups)?;

            let (strength, ahead) = l.window(Buf::Out(1), range(4), true);
            let binds = [("za", za), ("zb", zb), ("folds", l.read(fold_memory)), ("strength", strength)];
            let variables = context! { phase => "strength", threads => 256 };
            let groups = l.line(rows.len());
            l.dispatch_named("procrustes/strength", shader, variables, &binds, params(ahead), groups)?;
        }
        Ok(())
    }
}

impl Procrustes {
    /// Work for one batch row: three solves (two of half the observations) and two scorings of half of them.
    fn flops(&self, observations: usize, d: usize) -> f64 {
        let d = d as f64;
        6.0 * observations as f64 * d * d + 3.0 * self.iterations as f64 * 4.0 * d.powi(3)
    }
}

impl Op for Procrustes {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [za, zb] = inputs else { return Err(format!("procrustes takes two clouds, not {}", inputs.len())) };
        if za.rank() != 3 || za.dtype != DType::F32 || za != zb {
            return Err("the clouds must be f32 of one shape [batch, observations, width]".into());
        }
        let d = za.shape[2];
        if !(1..=MAX_WIDTH).contains(&d) {
            return Err(format!("the width of the clouds is {d}; it must be from 1 to {MAX_WIDTH}"));
        }
        if !(self.ridge.is_finite() && self.ridge >= 0.0) {
            return Err(format!("the ridge is {}; it must be finite and not negative", self.ridge));
        }
        Ok(vec![TensorType::f32(&[za.shape[0], d, d]), TensorType::f32(&[za.shape[0]])])
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Ok(vec![None, None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let sum = |ts: &[TensorType]| ts.iter().map(|t| t.bytes() as f64).sum::<f64>();
        let shape = &inputs[0].shape;
        let flops = shape[0] as f64 * self.flops(shape[1], shape[2]);
        Cost { flops, bytes_read: sum(inputs), bytes_written: sum(outputs) }
    }
}

impl Graph {
    /// The rotations `omega` [B, d, d] with `zb omega` near `za`, and their cross-validated strengths [B], of clouds
    /// [B, O, d]. Detached; see [`Procrustes`].
    pub fn procrustes(&mut self, za: Value, zb: Value, options: Procrustes) -> Result<(Value, Value)> {
        let out = self.apply(options, &[za, zb])?;
        Ok((out[0], out[1]))
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("procrustes", cases).timed(timed_sizes)]
}

fn timed_sizes() -> Vec<Case> {
    let case = |shape: [usize; 3]| {
        let label = format!("{shape:?}");
        Case::new(label, Procrustes::default(), vec![Sample::normal(&shape), Sample::normal(&shape)]).forward_only()
    };
    vec![case([8, 256, 16]), case([8, 256, 64]), case([64, 512, 32])]
}

/// Clouds `(za, zb)`: zb normal and za a rotation of it plus `noise`, for every batch row. The rotation is the polar
/// factor of I + `turn` N with N normal: near the identity for a small `turn`, anywhere for one of 1 and more.
fn planted([batch, observations, d]: [usize; 3], turn: f64, noise: f64, seed: u64) -> (Vec<f64>, Vec<f64>) {
    let mut rng = SplitMix(seed);
    let (mut za, mut zb) = (vec![], vec![]);
    for _ in 0..batch {
        let identity = |i: usize| f64::from(u8::from(i.is_multiple_of(d + 1)));
        let random: Vec<f64> = (0..d * d).map(|i| identity(i) + turn * rng.normal()).collect();
        let rotation = kernels_cpu::polar::polar_svd(d, &random);
        for _ in 0..observations {
            let b: Vec<f64> = (0..d).map(|_| rng.normal()).collect();
            let rotated = |c: usize| (0..d).map(|r| b[r] * rotation[r * d + c]).sum::<f64>();
            za.extend((0..d).map(|c| rotated(c) + noise * rng.normal()));
            zb.extend(b);
        }
    }
    (za, zb)
}

fn cases() -> Vec<Case> {
    let case = |label: &str, op: Procrustes, shape: [usize; 3], za: Values, zb: Values| {
        // Each iteration multiplies d x d matrices of entries of order one twice: sqrt(d) roundings an entry.
        let ulps = 4.0 + op.iterations as f64 * (shape[2] as f64).sqrt();
        let label = format!("{label} {shape:?} {op:?}");
        Case::new(label, op, vec![Sample::new(&shape, za), Sample::new(&shape, zb)]).ulps(ulps).forward_only()
    };
    let default = Procrustes::default;
    let mut cases = vec![];
    // Widths around tiles of 4, the change of workgroup size and of memory; observations below and above the width.
    let shapes: [[usize; 3]; 12] = [
        [1, 1, 1],
        [3, 5, 1],
        [2, 6, 2],
        [2, 131, 7],
        [3, 4, 8],
        [2, 24, 16],
        [1, 50, 33],
        [1, 66, 44],
        [1, 68, 45],
        [1, 20, 48],
        [2, 96, 48],
        [1, 160, 64],
    ];
    for shape in shapes {
        let (za, zb) = planted(shape, 1.0, 0.05, 7 + shape[2] as u64);
        cases.push(case("planted", default(), shape, Values::Fixed(za), Values::Fixed(zb)));
    }
    for shape in [[2, 9, 4], [1, 12, 16], [1, 40, 64]] {
        cases.push(case("unrelated", default(), shape, Values::Normal(1.0), Values::Normal(3.0)));
    }
    for (ridge, center, iterations) in [(0.0, true, 16), (0.3, false, 16), (0.1, false, 0), (0.1, true, 5)] {
        let (za, zb) = planted([2, 40, 6], 1.0, 0.2, 3);
        let op = Procrustes { ridge, center, iterations };
        cases.push(case("planted", op, [2, 40, 6], Values::Fixed(za), Values::Fixed(zb)));
    }
    let zeros = || Values::Fixed(vec![0.0; 2 * 5 * 9]);
    cases.push(case("zeros", default(), [2, 5, 9], zeros(), zeros()));
    cases.push(case("zeros", Procrustes { ridge: 0.0, ..default() }, [2, 5, 9], zeros(), zeros()));
    cases.push(case("one side zero", default(), [2, 5, 9], zeros(), Values::Normal(1.0)));
    cases.push(case("no observation", default(), [2, 0, 3], Values::Normal(1.0), Values::Normal(1.0)));
    cases.push(case("no row", default(), [0, 4, 3], Values::Normal(1.0), Values::Normal(1.0)));
    for scale in [1e-12, 1e12] {
        let (za, zb) = planted([1, 20, 5], 1.0, 0.1, 4);
        let scaled = |z: Vec<f64>| Values::Fixed(z.iter().map(|x| x * scale).collect());
        cases.push(case(&format!("times {scale:e}"), default(), [1, 20, 5], scaled(za), scaled(zb)));
    }
    // Above 1 MiB, rows of an odd size.
    let (za, zb) = planted([29, 601, 17], 1.0, 0.3, 5);
    cases.push(case("large", default(), [29, 601, 17], Values::Fixed(za), Values::Fixed(zb)));
    cases
}
