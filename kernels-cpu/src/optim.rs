//! Optimiser steps over flat parameters: one pass over memory each.

use crate::threads::{SharedMut, par_rows};

/// The scalars of one AdamW step (Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Decoupled: `p -= lr weight_decay p`.
    pub weight_decay: f32,
    /// `1 / (1 - beta1^t)`, t the number of this step, from 1.
    pub bias_correction1: f32,
    /// `1 / (1 - beta2^t)`
    pub bias_correction2: f32,
    /// Gradients are multiplied by this first (clipping, accumulation).
    pub grad_scale: f32,
}

impl AdamW {
    /// Sets both bias corrections for step `t` (from 1), computed in `f64`.
    pub fn at_step(mut self, t: u64) -> Self {
        let correction = |beta: f32| (1.0 / (1.0 - (beta as f64).powf(t as f64))) as f32;
        self.bias_correction1 = correction(self.beta1);
        self.bias_correction2 = correction(self.beta2);
        self
    }
}

/// The scalars of one step of stochastic gradient descent with momentum, as PyTorch defines it except that the first step is like any
/// other (the velocity starts at 0, so `dampening` applies to it too).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdMomentum {
    pub lr: f32,
    pub momentum: f32,
    pub dampening: f32,
    pub nesterov: bool,
    /// Coupled: added to the gradient as `weight_decay p`.
    pub weight_decay: f32,
    /// Gradients are multiplied by this first (clipping, accumulation).
    pub grad_scale: f32,
}

crate::multiversion! {
    fn adamw_step<V>(c: AdamW, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let keep = 1.0 - c.lr * c.weight_decay;
        let rate = c.lr * c.bias_correction1;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * c.grad_scale;
            // m + (1 - beta1)(g - m), which is exact where g = m
            *m = V::fma(1.0 - c.beta1, g - *m, *m);
            *v = V::fma(c.beta2, *v, (1.0 - c.beta2) * g * g);
            let root = (*v * c.bias_correction2).sqrt() + c.eps;
            *p = V::fma(*p, keep, -(rate * *m / root));
        }
    }

    fn sgd_step<V>(c: SgdMomentum, p: &mut [f32], g: &[f32], v: &mut [f32]) {
        let nesterov = if c.nesterov { 1.0 } else { 0.0 };
        for ((p, &g), v) in p.iter_mut().zip(g).zip(v) {
            let g = V::fma(c.weight_decay, *p, g * c.grad_scale);
            *v = V::fma(c.momentum, *v, (1.0 - c.dampening) * g);
            // nesterov: g + momentum v; else v
            let step = if nesterov != 0.0 { V::fma(c.momentum, *v, g) } else { *v };
            *p = V::fma(-c.lr, step, *p);
        }
    }
}

/// One AdamW step in place: `p`, `g`, `m` (first moment) and `v` (second moment) have one length.
///
/// With g' = grad_scale g: m = beta1 m + (1 - beta1) g'; v = beta2 v + (1 - beta2) g'^2;
/// p = p - lr weight_decay p - lr (m bias_correction1) / (sqrt(v bias_correction2) + eps).
pub fn adamw(config: AdamW, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let n = p.len();
    assert!(g.len() == n && m.len() == n && v.len() == n, "p, g, m and v have one length");
    let (p, m, v) = (SharedMut::new(p), SharedMut::new(m), SharedMut::new(v));
    par_rows(n, 4, |r| {
        // SAFETY: the ranges are disjoint.
        let (p, m, v) = unsafe { (p.slice(r.clone()), m.slice(r.clone()), v.slice(r.clone())) };
        adamw_step(config, p, &g[r], m, v);
    });
}

/// One momentum step in place: `p`, `g` and `v` (velocity) have one length.
///
/// With g' = grad_scale g + weight_decay p: v = momentum v + (1 - dampening) g'; p = p - lr (nesterov ? g' + momentum v : v).
pub fn sgd_momentum(config: SgdMomentum, p: &mut [f32], g: &[f32], v: &mut [f32]) {
    let n = p.len();
    assert!(g.len() == n && v.len() == n, "p, g and v have one length");
    let (p, v) = (SharedMut::new(p), SharedMut::new(v));
    par_rows(n, 3, |r| {
        // SAFETY: the ranges are disjoint.
        let (p, v) = unsafe { (p.slice(r.clone()), v.slice(r.clone())) };
        sgd_step(config, p, &g[r], v);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 1013.0 - 0.5).collect()
    }

    const LENGTHS: [usize; 6] = [0, 1, 15, 17, 1021, 70_001];

    #[test]
    fn adamw_follows_the_f64_definition_over_ten_steps() {
        for n in LENGTHS {
            let (mut p, mut m, mut v) = (data(n, 1), vec![0.0; n], vec![0.0; n]);
            let (mut p64, mut m64, mut v64) =
                (p.iter().map(|&x| x as f64).collect::<Vec<_>>(), vec![0.0; n], vec![0.0; n]);
            let base = AdamW {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-8,
                weight_decay: 0.1,
                bias_correction1: 0.0,
                bias_correction2: 0.0,
                grad_scale: 0.5,
            };
            for t in 1..=10 {
                let g = data(n, t as usize + 5);
                adamw(base.at_step(t), &mut p, &g, &mut m, &mut v);
                let (b1, b2) = (base.beta1 as f64, base.beta2 as f64);
                for i in 0..n {
                    let g = g[i] as f64 * 0.5;
                    m64[i] = b1 * m64[i] + (1.0 - b1) * g;
                    v64[i] = b2 * v64[i] + (1.0 - b2) * g * g;
                    let (mh, vh) = (m64[i] / (1.0 - b1.powf(t as f64)), v64[i] / (1.0 - b2.powf(t as f64)));
                    p64[i] -= base.lr as f64 * (base.weight_decay as f64 * p64[i] + mh / (vh.sqrt() + 1e-8));
                }
            }
            // a step moves p by at most about lr; ten steps of some eight roundings of p (|p| < 1) and of the update
            for i in 0..n {
                assert!((p[i] as f64 - p64[i]).abs() <= 10.0 * 8.0 * 2f64.powi(-24), "{} {}", p[i], p64[i]);
            }
        }
    }

    #[test]
    fn adamw_with_a_zero_gradient_only_decays() {
        let c = AdamW {
            lr: 0.5,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.5,
            bias_correction1: 1.0,
            bias_correction2: 1.0,
            grad_scale: 1.0,
        };
        let (mut p, mut m, mut v) = ([4.0, -8.0], [0.0; 2], [0.0; 2]);
        adamw(c, &mut p, &[0.0; 2], &mut m, &mut v);
        assert_eq!(p, [3.0, -6.0]);
    }

    #[test]
    fn sgd_momentum_follows_the_f64_definition_over_five_steps() {
        for n in LENGTHS {
            for (nesterov, dampening) in [(false, 0.0), (true, 0.0), (false, 0.25)] {
                let c =
                    SgdMomentum { lr: 0.1, momentum: 0.9, dampening, nesterov, weight_decay: 0.01, grad_scale: 2.0 };
                let (mut p, mut v) = (data(n, 1), vec![0.0; n]);
                let (mut p64, mut v64) = (p.iter().map(|&x| x as f64).collect::<Vec<_>>(), vec![0.0f64; n]);
                for t in 0..5 {
                    let g = data(n, t + 5);
                    sgd_momentum(c, &mut p, &g, &mut v);
                    for i in 0..n {
                        let g = g[i] as f64 * 2.0 + c.weight_decay as f64 * p64[i];
                        v64[i] = c.momentum as f64 * v64[i] + (1.0 - dampening as f64) * g;
                        p64[i] -= c.lr as f64 * if nesterov { g + c.momentum as f64 * v64[i] } else { v64[i] };
                    }
                }
                // values stay below 8; five steps of some four roundings
                for i in 0..n {
                    assert!((p[i] as f64 - p64[i]).abs() <= 8.0 * 20.0 * 2f64.powi(-24), "{} {}", p[i], p64[i]);
                }
            }
        }
    }
}
