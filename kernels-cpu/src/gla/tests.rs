//! Both forms and the gradient against the definition, one step after another in `f64`.

use super::{GlaShape, gla_backward, gla_chunked, gla_recurrent};
use crate::polar::tests::noise;
use crate::threads::with_threads;

struct Case {
    s: GlaShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    a: Vec<f32>,
    first: Vec<f32>,
    d_o: Vec<f32>,
    d_last: Vec<f32>,
}

fn case(time: usize, heads: [usize; 3], dims: [usize; 2], channel_gates: bool) -> Case {
    let [heads, key_heads, value_heads] = heads;
    let s =
        GlaShape { batch: 2, time, heads, key_heads, value_heads, key_dim: dims[0], value_dim: dims[1], channel_gates };
    // every ninth gate closed
    let gates = noise(s.gate_len(), 4).into_iter().enumerate();
    let a = gates.map(|(i, x)| if i % 9 == 4 { -200.0 } else { -0.2 * x * x }).collect();
    Case {
        s,
        q: noise(s.q_len(), 1),
        k: noise(s.k_len(), 2),
        v: noise(s.v_len(), 3),
        a,
        first: noise(s.state_len(), 5),
        d_o: noise(s.o_len(), 6),
        d_last: noise(s.state_len(), 7),
    }
}

fn cases() -> Vec<Case> {
    let times = [1, 2, 7, 16, 17, 65, 130];
    let kinds = [([2, 2, 2], [4, 4]), ([6, 2, 2], [5, 3]), ([6, 6, 2], [16, 8]), ([1, 1, 1], [1, 1])];
    let with = |t: usize| kinds.into_iter().flat_map(move |(h, d)| [false, true].map(|c| case(t, h, d, c)));
    times.into_iter().flat_map(with).collect()
}

/// `[o, last, dq, dk, dv, da, d_first]` by the equations of the definition.
fn exact(c: &Case) -> [Vec<f64>; 7] {
    let s = &c.s;
    let (d, e) = (s.key_dim, s.value_dim);
    let mut out = [s.o_len(), s.state_len(), s.q_len(), s.k_len(), s.v_len(), s.gate_len(), s.state_len()]
        .map(|n| vec![0.0f64; n]);
    for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads).map(move |h| (b, h))) {
        let row = b * s.heads + h;
        let gate = |t: usize, i: usize| (c.a[s.a(b, h).at(t).start + if s.channel_gates { i } else { 0 }] as f64).exp();
        let mut states = vec![c.first[row * d * e..][..d * e].iter().map(|&x| x as f64).collect::<Vec<_>>()];
        for t in 0..s.time {
            let (q, k, v) = (&c.q[s.q(b, h).at(t)], &c.k[s.k(b, h).at(t)], &c.v[s.v(b, h).at(t)]);
            let mut state = states[t].clone();
            for (i, j) in (0..d).flat_map(|i| (0..e).map(move |j| (i, j))) {
                state[i * e + j] = gate(t, i) * state[i * e + j] + k[i] as f64 * v[j] as f64;
                out[0][s.o(b, h).at(t).start + j] += q[i] as f64 * state[i * e + j];
            }
            states.push(state);
        }
        out[1][row * d * e..][..d * e].copy_from_slice(&states[s.time]);
        let mut wanted: Vec<f64> = c.d_last[row * d * e..][..d * e].iter().map(|&x| x as f64).collect();
        for t in (0..s.time).rev() {
            let (q, k, v) = (&c.q[s.q(b, h).at(t)], &c.k[s.k(b, h).at(t)], &c.v[s.v(b, h).at(t)]);
            let d_o = &c.d_o[s.o(b, h).at(t)];
            for (i, j) in (0..d).flat_map(|i| (0..e).map(move |j| (i, j))) {
                let at = i * e + j;
                out[2][s.q(b, h).at(t).start + i] += d_o[j] as f64 * states[t + 1][at];
                wanted[at] += q[i] as f64 * d_o[j] as f64;
                out[3][s.k(b, h).at(t).start + i] += v[j] as f64 * wanted[at];
                out[4][s.v(b, h).at(t).start + j] += k[i] as f64 * wanted[at];
                wanted[at] *= gate(t, i);
                out[5][s.a(b, h).at(t).start + if s.channel_gates { i } else { 0 }] += wanted[at] * states[t][at];
            }
        }
        out[6][row * d * e..][..d * e].copy_from_slice(&wanted);
    }
    out
}

fn forward(c: &Case, chunk: usize) -> [Vec<f32>; 2] {
    let [mut o, mut last] = [vec![f32::NAN; c.s.o_len()], vec![f32::NAN; c.s.state_len()]];
    match chunk {
        0 => gla_recurrent(&c.s, &c.q, &c.k, &c.v, &c.a, Some(&c.first), &mut o, &mut last),
        _ => gla_chunked(&c.s, chunk, &c.q, &c.k, &c.v, &c.a, Some(&c.first), &mut o, &mut last),
    }
    [o, last]
}

fn backward(c: &Case, chunk: usize) -> [Vec<f32>; 5] {
    let s = &c.s;
    let [mut dq, mut dk, mut dv, mut da, mut d_first] =
        [s.q_len(), s.k_len(), s.v_len(), s.gate_len(), s.state_len()].map(|n| vec![f32::NAN; n]);
    let (first, d_last) = (Some(&c.first[..]), Some(&c.d_last[..]));
    gla_backward(
        s,
        chunk,
        &c.q,
        &c.k,
        &c.v,
        &c.a,
        first,
        &c.d_o,
        d_last,
        &mut dq,
        &mut dk,
        &mut dv,
        &mut da,
        Some(&mut d_first),
    );
    [dq, dk, dv, da, d_first]
}

fn assert_near(got: &[f32], want: &[f64], bound: f64, what: &str) {
    let size = want.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(want).map(|(x, y)| (*x as f64 - y).abs() / size).fold(0.0, f64::max);
    assert!(worst <= bound, "{what}: {worst:e}");
    assert!(got.iter().all(|x| x.is_finite()), "{what}");
}

#[test]
fn both_forms_and_the_gradient_agree_with_the_definition() {
    for c in cases() {
        let want = exact(&c);
        for chunk in [0, 1, 5, 16, 64] {
            let what = format!("{:?} chunk {chunk}", c.s);
            for (got, want) in forward(&c, chunk).iter().zip(&want) {
                assert_near(got, want, 3e-6, &what);
            }
            if chunk > 0 {
                for (got, want) in backward(&c, chunk).iter().zip(&want[2..]) {
                    assert_near(got, want, 3e-6, &what);
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for channels in [false, true] {
        let c = case(200, [4, 2, 1], [24, 40], channels);
        let run = |threads| with_threads(threads, || (forward(&c, 32), forward(&c, 0), backward(&c, 32)));
        assert_eq!(run(1), run(4));
    }
}
