//! Cross-entropy of integer targets, fused with log-softmax: neither probabilities nor log-probabilities are stored.

use crate::embed::IndexOutOfRange;
use crate::register::with_register;
use crate::softmax::EXP_COST;
use crate::threads::{SharedMut, par_rows, par_rows_mut};
use crate::vector::{Vector, exp, lanewise, row_exp, row_map, row_max};

/// The sum of exp(x - m) over a row.
#[inline(always)]
fn sum_exp<R: Vector>(x: &[f32], m: f32) -> f64 {
    // SAFETY: the row; nothing is stored.
    unsafe { row_exp::<R, false>(x.as_ptr(), x.len(), m, std::ptr::null_mut()) }
}

lanewise! {
    WeightedProbability(lse, d) = |x, _y| d.mul(exp(x.sub(lse)));
}

/// `dx = d exp(x - lse)`
#[inline(always)]
fn weighted_probabilities<R: Vector>(x: &[f32], lse: f32, d: f32, dx: &mut [f32]) {
    // SAFETY: rows of one length.
    unsafe { row_map::<R>(x.as_ptr(), x.as_ptr(), dx.len(), dx.as_mut_ptr(), WeightedProbability::new(lse, d)) }
}

crate::multiversion! {
    fn forward<V>(logits: &[f32], targets: &[i32], v: usize, nll: &mut [f32], lse: &mut [f32]) {
        // Rows that are short go through each step together: the latency of one is hidden behind the others.
        let group = if v <= 1024 { 8 } else { 1 };
        let rows = logits.chunks(group * v).zip(targets.chunks(group));
        for ((x, targets), (nll, lse)) in rows.zip(nll.chunks_mut(group).zip(lse.chunks_mut(group))) {
            let mut terms = [(0.0f32, 0.0f64); 8];
            for (x, terms) in x.chunks_exact(v).zip(&mut terms) {
                terms.0 = with_register!(V, row_max(x));
            }
            for (x, terms) in x.chunks_exact(v).zip(&mut terms) {
                terms.1 = with_register!(V, sum_exp(x, terms.0));
            }
            for ((((x, &t), nll), lse), (m, sum)) in x.chunks_exact(v).zip(targets).zip(nll).zip(lse).zip(terms) {
                let log_sum = sum.ln();
                *lse = (m as f64 + log_sum) as f32;
                // relative to the maximum, so that a confident right answer among huge logits keeps its digits
                *nll = if t < 0 { 0.0 } else { ((m as f64 - x[t as usize] as f64) + log_sum) as f32 };
            }
        }
    }

    fn backward<V>(logits: &[f32], targets: &[i32], lse: &[f32], dnll: &[f32], v: usize, dlogits: &mut [f32]) {
        let rows = logits.chunks_exact(v).zip(dlogits.chunks_exact_mut(v));
        for ((((x, dx), &t), &lse), &d) in rows.zip(targets).zip(lse).zip(dnll) {
            if t < 0 {
                dx.fill(0.0);
                continue;
            }
            with_register!(V, weighted_probabilities(x, lse, d, dx));
            dx[t as usize] -= d;
        }
    }
}

fn check(n: usize, v: usize, targets: &[i32]) -> Result<(), IndexOutOfRange> {
    assert_eq!(targets.len(), n, "one target per row");
    match targets.iter().position(|&t| t >= 0 && t as usize >= v) {
        Some(position) => Err(IndexOutOfRange { position, value: targets[position], limit: v }),
        None => Ok(()),
    }
}

/// `nll[i] = -log softmax(logits[i])[targets[i]]` and `lse[i] = log sum exp logits[i]`; `logits` is [n, v]. A negative target is
/// ignored: its `nll` is 0.
///
/// # Errors
/// [`IndexOutOfRange`] for the first target that is not below `v`.
pub fn cross_entropy(
    logits: &[f32],
    targets: &[i32],
    n: usize,
    v: usize,
    nll: &mut [f32],
    lse: &mut [f32],
) -> Result<(), IndexOutOfRange> {
    assert_eq!(logits.len(), n * v, "logits are [{n}, {v}]");
    assert!(nll.len() == n && lse.len() == n, "nll and lse are [{n}]");
    check(n, v, targets)?;
    if v == 0 {
        nll.fill(0.0); // every target is negative
        lse.fill(f32::NEG_INFINITY);
        return Ok(());
    }
    let (nll, lse) = (SharedMut::new(nll), SharedMut::new(lse));
    par_rows(n, v * EXP_COST, |r| {
        // SAFETY: the ranges are disjoint.
        let (nll, lse) = unsafe { (nll.slice(r.clone()), lse.slice(r.clone())) };
        forward(&logits[r.start * v..r.end * v], &targets[r], v, nll, lse);
    });
    Ok(())
}

/// The gradient of [`cross_entropy`]: `dlogits[i] = dnll[i] (softmax(logits[i]) - onehot(targets[i]))`, 0 where the target is negative.
/// `lse` is what [`cross_entropy`] returned.
///
/// # Errors
/// [`IndexOutOfRange`] for the first target that is not below `v`.
pub fn cross_entropy_grad(
    logits: &[f32],
    targets: &[i32],
    lse: &[f32],
    dnll: &[f32],
    n: usize,
    v: usize,
    dlogits: &mut [f32],
) -> Result<(), IndexOutOfRange> {
    assert!(logits.len() == n * v && dlogits.len() == n * v, "logits and dlogits are [{n}, {v}]");
    assert!(lse.len() == n && dnll.len() == n, "lse and dnll are [{n}]");
    check(n, v, targets)?;
    par_rows_mut(dlogits, v, v * EXP_COST, |first, dlogits| {
        let r = first..first + dlogits.len() / v;
        let x = &logits[r.start * v..r.end * v];
        backward(x, &targets[r.clone()], &lse[r.clone()], &dnll[r], v, dlogits);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const U: f64 = 1.0 / (1 << 24) as f64;

    #[test]
    fn values_and_gradients_agree_with_f64() {
        for (n, v, scale) in [(1, 1, 1.0), (3, 2, 5.0), (17, 65, 8.0), (5, 1025, 100.0), (64, 513, 1e4), (0, 7, 1.0)] {
            let x: Vec<f32> = (0..n * v).map(|i| ((i * 7919 % 1013) as f32 / 1013.0 - 0.5) * scale).collect();
            let t: Vec<i32> = (0..n).map(|i| if i % 5 == 3 { -1 } else { (i * 37 % v) as i32 }).collect();
            let dnll: Vec<f32> = (0..n).map(|i| 0.5 + i as f32 * 0.25).collect();
            let (mut nll, mut lse, mut dx) = (vec![0.0; n], vec![0.0; n], vec![f32::NAN; n * v]);
            cross_entropy(&x, &t, n, v, &mut nll, &mut lse).unwrap();
            cross_entropy_grad(&x, &t, &lse, &dnll, n, v, &mut dx).unwrap();
            for i in 0..n {
                let row: Vec<f64> = x[i * v..(i + 1) * v].iter().map(|&v| v as f64).collect();
                let m = row.iter().cloned().fold(f64::MIN, f64::max);
                let want = m + row.iter().map(|x| (x - m).exp()).sum::<f64>().ln();
                let span = scale as f64;
                assert!((lse[i] as f64 - want).abs() <= U * (want.abs() + 30.0 + 105.0));
                let target = t[i];
                let expected = if target < 0 { 0.0 } else { want - row[target as usize] };
                assert!((nll[i] as f64 - expected).abs() <= U * (expected.abs() + 30.0 + 105.0));
                for j in 0..v {
                    let d = dnll[i] as f64;
                    let p = (row[j] - want).exp();
                    let hot = (target == j as i32) as u8 as f64;
                    let expected = if target < 0 { 0.0 } else { d * (p - hot) };
                    // lse is rounded (U |lse|), x - lse too, then exp
                    let bound = U * d * (p * (want.abs() + span.min(105.0) + 8.0) + hot) + 1e-40;
                    assert!((dx[i * v + j] as f64 - expected).abs() <= bound, "{n} {v} {scale}");
                }
            }
        }
    }

    #[test]
    fn huge_logits_and_masks_are_safe() {
        let x = [1e4, -1e30, 0.0, -1e30, -1e30, -1e30];
        let (mut nll, mut lse) = ([0.0; 2], [0.0; 2]);
        cross_entropy(&x, &[0, 1], 2, 3, &mut nll, &mut lse).unwrap();
        assert_eq!(nll[0], 0.0);
        assert!((nll[1] - 3f32.ln()).abs() < 1e-6);
        let mut dx = [0.0; 6];
        cross_entropy_grad(&x, &[0, 1], &lse, &[1.0, 1.0], 2, 3, &mut dx).unwrap();
        assert!(dx.iter().all(|d| d.is_finite()));
        assert_eq!(dx[..3], [0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_an_error_and_negative_ones_are_not() {
        let (mut nll, mut lse) = ([0.0; 2], [0.0; 2]);
        let err = cross_entropy(&[0.0; 6], &[-100, 3], 2, 3, &mut nll, &mut lse).unwrap_err();
        assert_eq!(err, IndexOutOfRange { position: 1, value: 3, limit: 3 });
        cross_entropy(&[0.0; 6], &[-100, 2], 2, 3, &mut nll, &mut lse).unwrap();
        assert_eq!(nll[0], 0.0);
    }
}
