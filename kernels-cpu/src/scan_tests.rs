//! The three forms of the gated scan against its definition in `f64`.

use crate::polar::tests::noise;
use crate::scan::{
    Gate, ScanShape, gated_scan_chunked, gated_scan_chunked_backward, gated_scan_naive, gated_scan_naive_backward,
    gated_scan_step, gated_scan_step_backward,
};
use crate::threads::with_threads;

struct Case {
    shape: ScanShape,
    gate: Gate,
    g: Vec<f32>,
    u: Vec<f32>,
    h0: Vec<f32>,
    dy: Vec<f32>,
}

fn cases() -> Vec<Case> {
    let sizes = [(1, 1, 1), (2, 7, 3), (1, 129, 33), (3, 64, 32), (2, 65, 31), (1, 300, 70), (2, 0, 50), (0, 3, 2)];
    let both = [Gate::Factor, Gate::Log];
    let shape = |&(batch, time, channels)| ScanShape { batch, time, channels };
    sizes.iter().flat_map(|s| both.map(|gate| case(shape(s), gate))).collect()
}

fn case(shape: ScanShape, gate: Gate) -> Case {
    let n = shape.len();
    // gates inside (-1, 1), some exactly 0 (a reset)
    let g = noise(n, 1).into_iter().enumerate().map(|(i, x)| match gate {
        Gate::Factor if i % 11 == 5 => 0.0,
        Gate::Factor => x.sin(),
        Gate::Log if i % 11 == 5 => -200.0,
        Gate::Log => -x * x,
    });
    let g = g.collect();
    Case { shape, gate, g, u: noise(n, 2), h0: noise(shape.batch * shape.channels, 3), dy: noise(n, 4) }
}

/// The gate itself.
fn factor(c: &Case, at: usize) -> f64 {
    match c.gate {
        Gate::Factor => c.g[at] as f64,
        Gate::Log => (c.g[at] as f64).exp(),
    }
}

/// Values and gradients in `f64`: `[h, dg, du, dh0]`.
fn exact(c: &Case, with_h0: bool) -> [Vec<f64>; 4] {
    let ScanShape { batch, time, channels } = c.shape;
    let (n, row) = (c.shape.len(), batch * channels);
    let mut out = [vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; row]];
    for r in 0..row {
        let start = if with_h0 { c.h0[r] as f64 } else { 0.0 };
        let at = |t: usize| (r / channels * time + t) * channels + r % channels;
        let mut state = start;
        for t in 0..time {
            state = factor(c, at(t)) * state + c.u[at(t)] as f64;
            out[0][at(t)] = state;
        }
        let mut carry = 0.0;
        for t in (0..time).rev() {
            let s = c.dy[at(t)] as f64 + carry;
            out[2][at(t)] = s;
            let before = if t > 0 { out[0][at(t - 1)] } else { start };
            out[1][at(t)] = s * before * if c.gate == Gate::Log { factor(c, at(t)) } else { 1.0 };
            carry = factor(c, at(t)) * s;
        }
        out[3][r] = carry;
    }
    out
}

fn assert_near(got: &[f32], want: &[f64], time: usize, what: &str) {
    // Each step rounds twice at the size of the state; a gate below 1 never amplifies. A product of two errs twice.
    let size = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    let bound = 8.0 * (time as f64 + 1.0) * f32::EPSILON as f64 * size;
    for (i, (x, y)) in got.iter().zip(want).enumerate() {
        assert!((*x as f64 - y).abs() <= bound, "{what}[{i}]: {x} for {y}");
    }
}

fn check(c: &Case, with_h0: bool, got: [&[f32]; 4], what: &str) {
    let want = exact(c, with_h0);
    for ((got, want), name) in got.into_iter().zip(&want).zip(["h", "dg", "du", "dh0"]) {
        assert_near(got, want, c.shape.time, &format!("{what} {name} {:?}", c.shape));
    }
}

#[test]
fn naive_recurrent_and_chunked_agree_in_values_and_gradients() {
    for c in cases() {
        let (n, row) = (c.shape.len(), c.shape.batch * c.shape.channels);
        for with_h0 in [true, false] {
            let h0 = with_h0.then_some(&c.h0[..]);
            let fresh = || (vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; row]);
            let (mut h, mut dg, mut du, mut dh0) = fresh();
            gated_scan_naive(c.shape, c.gate, &c.g, &c.u, h0, &mut h);
            gated_scan_naive_backward(c.shape, c.gate, &c.g, &h, h0, &c.dy, &mut dg, &mut du, Some(&mut dh0));
            check(&c, with_h0, [&h, &dg, &du, &dh0], "naive");
            for chunk in [1, 7, 64, 1000] {
                let (mut h, mut dg, mut du, mut dh0) = fresh();
                let mut last = vec![f32::NAN; row];
                gated_scan_chunked(c.shape, c.gate, chunk, &c.g, &c.u, h0, &mut h, Some(&mut last));
                check_last(&c, with_h0, &last);
                gated_scan_chunked_backward(
                    c.shape,
                    c.gate,
                    chunk,
                    &c.g,
                    &h,
                    h0,
                    &c.dy,
                    &mut dg,
                    &mut du,
                    Some(&mut dh0),
                );
                check(&c, with_h0, [&h, &dg, &du, &dh0], &format!("chunk {chunk}"));
            }
            recurrent(&c, with_h0);
        }
    }
}

/// The last state: that of the last step, or the first where there is no step.
fn check_last(c: &Case, with_h0: bool, last: &[f32]) {
    let (h, ScanShape { batch, time, channels }) = (&exact(c, with_h0)[0], c.shape);
    let want = (0..batch * channels).map(|r| match time {
        0 if with_h0 => c.h0[r] as f64,
        0 => 0.0,
        _ => h[(r / channels * time + time - 1) * channels + r % channels],
    });
    assert_near(last, &want.collect::<Vec<_>>(), time, "last state");
}

fn recurrent(c: &Case, with_h0: bool) {
    let ScanShape { batch, time, channels } = c.shape;
    let (n, row) = (c.shape.len(), batch * channels);
    // the steps see [batch, channels] slices of time
    let slice = |x: &[f32], t: usize| -> Vec<f32> {
        (0..row).map(|r| x[(r / channels * time + t) * channels + r % channels]).collect()
    };
    let put = |x: &mut [f32], t: usize, s: &[f32]| {
        (0..row).for_each(|r| x[(r / channels * time + t) * channels + r % channels] = s[r])
    };
    let start = if with_h0 { c.h0.clone() } else { vec![0.0; row] };
    let (mut h, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let mut state = start.clone();
    for t in 0..time {
        gated_scan_step(c.gate, &slice(&c.g, t), &slice(&c.u, t), &mut state);
        put(&mut h, t, &state);
    }
    let mut carry = vec![0.0; row];
    for t in (0..time).rev() {
        let before = if t > 0 { slice(&h, t - 1) } else { start.clone() };
        let (mut dgt, mut dut) = (vec![0.0; row], vec![0.0; row]);
        let (g, dy) = (slice(&c.g, t), slice(&c.dy, t));
        gated_scan_step_backward(c.gate, &g, &before, &dy, &mut carry, &mut dgt, &mut dut);
        put(&mut dg, t, &dgt);
        put(&mut du, t, &dut);
    }
    check(c, with_h0, [&h, &dg, &du, &carry], "recurrent");
}

#[test]
fn exact_gradients_agree_with_central_differences() {
    let c = case(ScanShape { batch: 2, time: 9, channels: 3 }, Gate::Factor);
    let loss = |c: &Case| exact(c, true)[0].iter().zip(&c.dy).map(|(h, &d)| h * d as f64).sum::<f64>();
    let want = exact(&c, true);
    let step = 2f32.powi(-10);
    for tensor in 0..3 {
        for at in 0..want[tensor + 1].len() {
            let moved = |sign: f32| {
                let mut m = Case {
                    shape: c.shape,
                    gate: c.gate,
                    g: c.g.clone(),
                    u: c.u.clone(),
                    h0: c.h0.clone(),
                    dy: c.dy.clone(),
                };
                let x = match tensor {
                    0 => &mut m.g,
                    1 => &mut m.u,
                    _ => &mut m.h0,
                };
                x[at] += sign * step;
                (x[at] as f64, loss(&m))
            };
            let ((above, high), (below, low)) = (moved(1.0), moved(-1.0));
            // the loss is linear in each single element, so the difference is exact up to rounding in f64
            let slope = (high - low) / (above - below);
            assert!((slope - want[tensor + 1][at]).abs() < 1e-9, "{tensor} {at}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let c = case(ScanShape { batch: 3, time: 200, channels: 100 }, Gate::Log);
    let run = |threads| {
        with_threads(threads, || {
            let n = c.shape.len();
            let (mut h, mut dg, mut du, mut dh0) = (vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; 300]);
            gated_scan_chunked(c.shape, c.gate, 32, &c.g, &c.u, Some(&c.h0), &mut h, None);
            let h0 = Some(&c.h0[..]);
            gated_scan_chunked_backward(c.shape, c.gate, 32, &c.g, &h, h0, &c.dy, &mut dg, &mut du, Some(&mut dh0));
            (h, dg, du, dh0)
        })
    };
    assert_eq!(run(1), run(4));
}
