//! The causal all-pass bank: the exactly causal half of a Chebyshev filter of the path graph, warped by a pole per channel.
//!
//! With `B(z) = (z - a) / (1 - a z)`, `z` the unit delay and `0 <= a < 1`, the bank is `y = sum_k c_k B^k x`: sections
//! `u^k_t = a u^k_{t-1} + u^{k-1}_{t-1} - a u^{k-1}_t`, `u^0 = x`, from zero state. Each section of a causal Toeplitz matrix is
//! a contraction, so `||y|| <= sum |c_k| ||x||`; for `a = 0` the bank is a delay line. The adjoint is the bank run in
//! reversed time.

use crate::channels::{Block, transpose};
use crate::channels::{Column, add, fma, for_each_block, load, mul, splat, store, sub, sum_parts, tail, zero};
use crate::chebyshev::{ChebShape, MAX_ORDER, STRETCH};
use crate::register::{Register, with_register};
use crate::threads::SharedMut;

fn check_poles(shape: ChebShape, a: &[f32]) {
    assert_eq!(a.len(), shape.channels, "all-pass bank: poles must be [channels] of {shape:?}");
}

/// `y [batch, time, channels]` for `x` of that shape, `coeffs [channels, order + 1]` and poles `a [channels]`; `reverse` runs
/// time backward. The gradient of `x` is this bank with the other `reverse`, applied to that of `y`.
///
/// # Panics
/// If a slice does not have its shape's length or the order is above [`MAX_ORDER`].
pub fn allpass_bank(shape: ChebShape, x: &[f32], coeffs: &[f32], a: &[f32], reverse: bool, y: &mut [f32]) {
    shape.check(&[x, y], coeffs);
    check_poles(shape, a);
    let ChebShape { batch, time, channels, order } = shape;
    let coeffs = transpose(coeffs, channels, order + 1);
    let y = SharedMut::new(y);
    for_each_block(batch, channels, shape.block_cost(), |b, block| {
        // SAFETY: items own disjoint blocks.
        let mut out = unsafe { Column::new(&y, b, time, channels, &block) };
        let x = tail(x, b * time * channels + block.start);
        bank_apply(shape, x, tail(&coeffs, block.start), &a[block], reverse, &mut out);
    });
}

/// Gradients of the parameters (overwritten), in a fixed order: `dcoeffs[c, k] = sum_{b, t} dy_t u^k_t` and, where asked
/// for, `da[c]` by the forward sensitivity of each section,
/// `w^k_t = a w^k_{t-1} + w^{k-1}_{t-1} - a w^{k-1}_t + u^k_{t-1} - u^{k-1}_t`. Nothing of the forward pass is needed but `x`.
///
/// # Panics
/// As [`allpass_bank`].
#[allow(clippy::too_many_arguments)]
pub fn allpass_bank_backward_params(
    shape: ChebShape,
    x: &[f32],
    coeffs: &[f32],
    a: &[f32],
    reverse: bool,
    dy: &[f32],
    dcoeffs: &mut [f32],
    da: Option<&mut [f32]>,
) {
    shape.check(&[x, dy], coeffs);
    shape.check(&[], dcoeffs);
    check_poles(shape, a);
    if let Some(da) = &da {
        check_poles(shape, da);
    }
    let ChebShape { batch, time, channels, order } = shape;
    let coeffs = transpose(coeffs, channels, order + 1);
    // parts[b] holds order + 1 rows for dcoeffs and one for da
    let rows = order + 2;
    let mut parts = vec![0.0; batch * rows * channels];
    let shared = SharedMut::new(&mut parts);
    let with_poles = da.is_some();
    for_each_block(batch, channels, 2 * shape.block_cost(), |b, block| {
        // SAFETY: items own disjoint blocks.
        let mut out = unsafe { Column::new(&shared, b, rows, channels, &block) };
        let first = b * time * channels + block.start;
        let (x, dy, c) = (tail(x, first), tail(dy, first), tail(&coeffs, block.start));
        bank_params(shape, x, c, &a[block], reverse, dy, with_poles, &mut out);
    });
    let mut total = vec![0.0; rows * channels];
    sum_parts(&parts, &mut total);
    dcoeffs.copy_from_slice(&transpose(&total[..(order + 1) * channels], order + 1, channels));
    if let Some(da) = da {
        da.copy_from_slice(&total[(order + 1) * channels..]);
    }
}

#[inline(always)]
fn load_coeffs<R: Register>(shape: &ChebShape, width: usize, coeffs: &[f32]) -> [Block<R>; MAX_ORDER + 1] {
    let mut c = [zero(); MAX_ORDER + 1];
    for (k, c) in c.iter_mut().enumerate().take(shape.order + 1) {
        *c = load(&coeffs[k * shape.channels..][..width]);
    }
    c
}

#[inline(always)]
fn bank_apply_in<R: Register>(
    shape: ChebShape,
    x: &[f32],
    coeffs: &[f32],
    a: &[f32],
    reverse: bool,
    y: &mut Column<'_>,
) {
    let width = a.len();
    let c = load_coeffs(&shape, width, coeffs);
    let a = load::<R>(a);
    let minus_a = mul(a, splat(-1.0));
    // u[k] is section k's last output and section k + 1's last input
    let mut u = [zero(); MAX_ORDER + 1];
    for step in 0..shape.time {
        let t = if reverse { shape.time - 1 - step } else { step };
        let mut input = load(&x[t * shape.channels..][..width]);
        let mut sum = mul(c[0], input);
        for k in 1..=shape.order {
            let output = fma(minus_a, input, fma(a, u[k], u[k - 1]));
            u[k - 1] = input;
            sum = fma(c[k], output, sum);
            input = output;
        }
        u[shape.order] = input;
        store(sum, y.at(t));
    }
}

#[inline(always)]
fn bank_params_in<R: Register>(
    shape: ChebShape,
    x: &[f32],
    coeffs: &[f32],
    a: &[f32],
    reverse: bool,
    dy: &[f32],
    with_poles: bool,
    out: &mut Column<'_>,
) {
    let width = a.len();
    let c = load_coeffs(&shape, width, coeffs);
    let a = load::<R>(a);
    let minus_a = mul(a, splat(-1.0));
    let (mut u, mut w) = ([zero(); MAX_ORDER + 1], [zero(); MAX_ORDER + 1]);
    // sums over STRETCH steps, then over all; the last place is da
    let (mut acc, mut total) = ([zero(); MAX_ORDER + 2], [zero(); MAX_ORDER + 2]);
    for step in 0..shape.time {
        let t = if reverse { shape.time - 1 - step } else { step };
        let gradient = load(&dy[t * shape.channels..][..width]);
        let (mut input, mut slope) = (load(&x[t * shape.channels..][..width]), zero());
        acc[0] = fma(gradient, input, acc[0]);
        let mut sum = zero();
        for k in 1..=shape.order {
            let output = fma(minus_a, input, fma(a, u[k], u[k - 1]));
            if with_poles {
                let from_sections = sub(u[k], input);
                let carried = fma(a, w[k], add(w[k - 1], from_sections));
                let next = fma(minus_a, slope, carried);
                w[k - 1] = slope;
                sum = fma(c[k], next, sum);
                slope = next;
            }
            u[k - 1] = input;
            acc[k] = fma(gradient, output, acc[k]);
            input = output;
        }
        u[shape.order] = input;
        w[shape.order] = slope;
        acc[MAX_ORDER + 1] = fma(gradient, sum, acc[MAX_ORDER + 1]);
        if step % STRETCH == STRETCH - 1 || step + 1 == shape.time {
            for (total, acc) in total.iter_mut().zip(&mut acc) {
                *total = add(*total, *acc);
                *acc = zero();
            }
        }
    }
    for (k, total) in total.iter().enumerate().take(shape.order + 1) {
        store(*total, out.at(k));
    }
    store(total[MAX_ORDER + 1], out.at(shape.order + 1));
}

crate::multiversion! {
    fn bank_apply<V>(shape: ChebShape, x: &[f32], coeffs: &[f32], a: &[f32], reverse: bool, y: &mut Column<'_>) { with_register!(V, bank_apply_in(shape, x, coeffs, a, reverse, y)) }

    fn bank_params<V>(
        shape: ChebShape,
        x: &[f32],
        coeffs: &[f32],
        a: &[f32],
        reverse: bool,
        dy: &[f32],
        with_poles: bool,
        out: &mut Column<'_>,
    ) { with_register!(V, bank_params_in(shape, x, coeffs, a, reverse, dy, with_poles, out)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::polar::tests::noise;
    use crate::threads::with_threads;

    struct Case {
        s: ChebShape,
        x: Vec<f64>,
        dy: Vec<f64>,
        c: Vec<f64>,
        a: Vec<f64>,
        reverse: bool,
    }

    fn f32s(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    fn case(size: [usize; 4], reverse: bool) -> Case {
        let [batch, time, channels, order] = size;
        let s = ChebShape { batch, time, channels, order };
        let wide = |n, seed| noise(n, seed).iter().map(|&x| x as f64).collect::<Vec<_>>();
        let poles = [0.0, 0.5, 0.9, 0.3, 0.75].map(|a: f32| a as f64);
        let a = (0..channels).map(|c| poles[c % 5]).collect();
        Case { s, x: wide(s.len(), 1), dy: wide(s.len(), 2), c: wide(s.coeffs_len(), 3), a, reverse }
    }

    fn cases() -> Vec<Case> {
        let sizes = [[1, 1, 1, 0], [2, 9, 3, 1], [1, 70, 33, 6], [2, 5, 31, 16], [1, 130, 32, 8], [2, 0, 40, 3]];
        sizes.iter().flat_map(|&size| [case(size, false), case(size, true)]).collect()
    }

    /// Every section's output by the definition: `u[k][i]`.
    fn sections(case: &Case, x: &[f64]) -> Vec<Vec<f64>> {
        let ChebShape { batch, time, channels, order } = case.s;
        let mut u = vec![x.to_vec()];
        for k in 0..order {
            let mut next = vec![0.0; x.len()];
            for row in 0..batch * channels {
                let a = case.a[row % channels];
                let at = |step: usize| {
                    let t = if case.reverse { time - 1 - step } else { step };
                    (row / channels * time + t) * channels + row % channels
                };
                for step in 0..time {
                    let (last_out, last_in) =
                        if step > 0 { (next[at(step - 1)], u[k][at(step - 1)]) } else { (0.0, 0.0) };
                    next[at(step)] = a * last_out + last_in - a * u[k][at(step)];
                }
            }
            u.push(next);
        }
        u
    }

    fn apply(case: &Case, x: &[f64]) -> Vec<f64> {
        let u = sections(case, x);
        let term = |i: usize, k: usize| case.c[i % case.s.channels * (case.s.order + 1) + k] * u[k][i];
        (0..x.len()).map(|i| (0..=case.s.order).map(|k| term(i, k)).sum()).collect()
    }

    fn norm(x: &[f64]) -> f64 {
        x.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// Rounding bound of an output: every section keeps norms, and its recurrence lets an error live `1 / (1 - a)` steps.
    fn bound(case: &Case) -> f64 {
        let slowest = case.a.iter().fold(0.0f64, |m, &a| m.max(a));
        let sections = (case.s.order + 1) as f64;
        let c = case.c.iter().fold(0.0f64, |m, c| m.max(c.abs()));
        8.0 * 2f64.powi(-24) * sections * sections / (1.0 - slowest) * c * norm(&case.x).max(norm(&case.dy))
    }

    #[test]
    fn golden_impulse_response_of_the_first_three_sections() {
        let x = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let golden = [
            [-0.5, 0.75, 0.375, 0.1875, 0.09375, 0.046875],
            [0.25, -0.75, 0.1875, 0.375, 0.328125, 0.234375],
            [-0.125, 0.5625, -0.5625, -0.28125, 0.0703125, 0.24609375],
        ];
        for (k, want) in golden.iter().enumerate() {
            let shape = ChebShape { batch: 1, time: 6, channels: 1, order: 3 };
            let mut coeffs = [0.0; 4];
            coeffs[k + 1] = 1.0;
            let mut y = [f32::NAN; 6];
            allpass_bank(shape, &x, &coeffs, &[0.5], false, &mut y);
            assert_eq!(y, *want, "section {}: dyadic numbers are exact", k + 1);
        }
    }

    #[test]
    fn values_agree_with_the_definition_in_both_directions() {
        for case in cases() {
            let mut y = vec![f32::NAN; case.s.len()];
            allpass_bank(case.s, &f32s(&case.x), &f32s(&case.c), &f32s(&case.a), case.reverse, &mut y);
            for (x, want) in y.iter().zip(apply(&case, &case.x)) {
                assert!((*x as f64 - want).abs() <= bound(&case), "{:?}: {x} {want}", case.s);
            }
        }
    }

    #[test]
    fn the_bank_in_reversed_time_is_the_adjoint() {
        for case in cases() {
            let other = Case { reverse: !case.reverse, ..case };
            let mut dx = vec![f32::NAN; other.s.len()];
            allpass_bank(other.s, &f32s(&other.dy), &f32s(&other.c), &f32s(&other.a), other.reverse, &mut dx);
            let case = Case { reverse: !other.reverse, ..other };
            let forward: f64 = apply(&case, &case.x).iter().zip(&case.dy).map(|(y, d)| y * d).sum();
            let backward: f64 = dx.iter().zip(&case.x).map(|(&dx, x)| dx as f64 * x).sum();
            let bound = bound(&case) * norm(&case.x) * (case.s.len() as f64).sqrt();
            assert!((forward - backward).abs() <= bound, "{:?}: {forward} {backward}", case.s);
        }
    }

    #[test]
    fn parameter_gradients_agree_with_central_differences() {
        for mut case in cases() {
            let (mut dc, mut da) = (vec![f32::NAN; case.c.len()], vec![f32::NAN; case.a.len()]);
            let (x, c, a, dy) = (f32s(&case.x), f32s(&case.c), f32s(&case.a), f32s(&case.dy));
            allpass_bank_backward_params(case.s, &x, &c, &a, case.reverse, &dy, &mut dc, Some(&mut da));
            let loss = |case: &Case| apply(case, &case.x).iter().zip(&case.dy).map(|(y, d)| y * d).sum::<f64>();
            let size = bound(&case) * norm(&case.dy) * (case.s.len() as f64).sqrt();
            for (i, &got) in dc.iter().enumerate().step_by(5) {
                let keep = case.c[i];
                case.c[i] = keep + 0.5;
                let above = loss(&case);
                case.c[i] = keep - 0.5;
                let slope = above - loss(&case);
                case.c[i] = keep;
                // linear in each coefficient
                assert!((slope - got as f64).abs() <= size + 1e-9, "{:?} dc[{i}]: {got} {slope}", case.s);
            }
            for (i, &got) in da.iter().enumerate() {
                let (keep, step) = (case.a[i], 1e-5);
                case.a[i] = keep + step;
                let above = loss(&case);
                case.a[i] = keep - step;
                let slope = (above - loss(&case)) / (2.0 * step);
                case.a[i] = keep;
                // a section's slope with respect to its pole has norm at most 2 / (1 - a)
                let bound = size * 2.0 * (case.s.order + 1) as f64 / (1.0 - keep) + 1e-6 * slope.abs().max(1.0);
                assert!((slope - got as f64).abs() <= bound, "{:?} da[{i}]: {got} {slope}, {bound}", case.s);
            }
        }
    }

    #[test]
    fn gain_never_exceeds_the_sum_of_coefficients() {
        let case = case([1, 200, 5, 10], false);
        let mut y = vec![0.0; case.s.len()];
        for k in 0..=10 {
            let coeffs: Vec<f32> = (0..case.c.len()).map(|i| if i % 11 == k { 1.0 } else { 0.0 }).collect();
            allpass_bank(case.s, &f32s(&case.x), &coeffs, &f32s(&case.a), false, &mut y);
            for c in 0..5 {
                let energy = |at: &dyn Fn(usize) -> f64| (0..200).map(|t| at(t * 5 + c).powi(2)).sum::<f64>();
                assert!(energy(&|i| y[i] as f64) <= energy(&|i| case.x[i]) * (1.0 + 1e-5));
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let case = case([3, 150, 70, 6], false);
        let (x, c, a, dy) = (f32s(&case.x), f32s(&case.c), f32s(&case.a), f32s(&case.dy));
        let run = |threads| {
            with_threads(threads, || {
                let (mut y, mut dc, mut da) = (vec![0.0; x.len()], vec![0.0; c.len()], vec![0.0; a.len()]);
                allpass_bank(case.s, &x, &c, &a, false, &mut y);
                allpass_bank_backward_params(case.s, &x, &c, &a, false, &dy, &mut dc, Some(&mut da));
                (y, dc, da)
            })
        };
        assert_eq!(run(1), run(4));
    }
}
