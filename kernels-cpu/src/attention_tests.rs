//! Attention, forward and backward, against the textbook form in `f64`.

use crate::attention::{AttentionShape, EMPTY_LSE, attention_forward};
use crate::attention_grad::attention_backward;
use crate::polar::tests::noise;
use crate::threads::with_threads;

const BASE: AttentionShape = AttentionShape {
    batch: 1,
    queries: 1,
    keys: 1,
    heads: 1,
    kv_heads: 1,
    head_dim: 1,
    causal: true,
    window: None,
    scale: 0.5,
    slots: None,
};

fn with(size: [usize; 6], causal: bool, window: Option<usize>) -> AttentionShape {
    let [batch, queries, keys, heads, kv_heads, head_dim] = size;
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { batch, queries, keys, heads, kv_heads, head_dim, causal, window, scale, slots: None }
}

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

fn inputs(s: &AttentionShape) -> Inputs {
    Inputs { q: noise(s.q_len(), 1), k: noise(s.kv_len(), 2), v: noise(s.kv_len(), 3), d_o: noise(s.q_len(), 4) }
}

/// A tensor in `f64` and, per element, the rounding error that the `f32` kernel may make.
#[derive(Clone)]
struct Bounded {
    value: Vec<f64>,
    bound: Vec<f64>,
}

impl Bounded {
    fn new(n: usize) -> Self {
        Bounded { value: vec![0.0; n], bound: vec![0.0; n] }
    }

    fn add(&mut self, at: usize, value: f64, bound: f64) {
        self.value[at] += value;
        self.bound[at] += bound;
    }

    fn assert_near(&self, got: &[f32], what: &str) {
        for (i, ((&x, &want), &bound)) in got.iter().zip(&self.value).zip(&self.bound).enumerate() {
            assert!((x as f64 - want).abs() <= bound + 1e-30, "{what}[{i}]: {x} for {want}, bound {bound}");
        }
    }
}

struct Naive {
    o: Bounded,
    lse: Bounded,
    dq: Bounded,
    dk: Bounded,
    dv: Bounded,
}

/// The definition, one query row at a time. The error model: a score of `d` products errs by `d eps` of their absolute
/// sum; that error and the exponential's make each probability wrong by a relative `e`, sums over keys add `keys eps`.
fn naive(s: &AttentionShape, x: &Inputs, key_range: Option<&[i32]>) -> Naive {
    let eps = 2f64.powi(-24);
    let (d, group) = (s.head_dim, s.heads / s.kv_heads);
    let mut out = Naive {
        o: Bounded::new(s.q_len()),
        lse: Bounded::new(s.lse_len()),
        dq: Bounded::new(s.q_len()),
        dk: Bounded::new(s.kv_len()),
        dv: Bounded::new(s.kv_len()),
    };
    for b in 0..s.batch {
        for h in 0..s.heads {
            for i in 0..s.queries {
                let position = i as i64 + s.keys as i64 - s.queries as i64;
                let sees = |j: i64| {
                    let w = s.window.map_or(i64::MAX / 2, |w| w as i64);
                    let inside = if s.causal { j <= position && j > position - w } else { (j - position).abs() < w };
                    inside && key_range.is_none_or(|r| j >= r[2 * b] as i64 && j < r[2 * b + 1] as i64)
                };
                let visible: Vec<usize> = (0..s.keys).filter(|&j| sees(j as i64)).collect();
                let q = &x.q[((b * s.queries + i) * s.heads + h) * d..][..d];
                let d_o = &x.d_o[((b * s.queries + i) * s.heads + h) * d..][..d];
                let at = ((b * s.queries + i) * s.heads + h) * d;
                let row = (b * s.heads + h) * s.queries + i;
                if visible.is_empty() {
                    out.lse.value[row] = EMPTY_LSE as f64;
                    continue;
                }
                let kv = |j: usize| ((b * s.keys + j) * s.kv_heads + h / group) * d;
                let dot = |a: &[f32], b: &[f32]| -> (f64, f64) {
                    a.iter()
                        .zip(b)
                        .map(|(&a, &b)| a as f64 * b as f64)
                        .fold((0.0, 0.0), |s, t| (s.0 + t, s.1 + t.abs()))
                };
                let scores: Vec<(f64, f64)> = visible.iter().map(|&j| dot(q, &x.k[kv(j)..][..d])).collect();
                let scale = s.scale as f64;
                let largest = scores.iter().map(|t| t.1 * scale).fold(0.0, f64::max);
                let e = eps * (2.0 * (d as f64 + 4.0) * largest + 2.0 * visible.len() as f64 + d as f64 + 16.0);
                let max = scores.iter().map(|t| t.0 * scale).fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|t| (t.0 * scale - max).exp()).sum();
                out.lse.add(row, max + sum.ln(), e + eps * (max + sum.ln()).abs());
                let p: Vec<f64> = scores.iter().map(|t| (t.0 * scale - max).exp() / sum).collect();
                let dp: Vec<(f64, f64)> = visible.iter().map(|&j| dot(d_o, &x.v[kv(j)..][..d])).collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, t)| p * t.0).sum();
                let dp_size = dp.iter().map(|t| t.1).fold(0.0, f64::max);
                for (n, &j) in visible.iter().enumerate() {
                    let ds = p[n] * (dp[n].0 - delta);
                    // p off by e against differences of at most 2 dp_size, and dp and delta themselves off by e dp_size
                    let ds_bound = p[n] * 4.0 * e * dp_size;
                    for c in 0..d {
                        let (kc, vc) = (x.k[kv(j) + c] as f64, x.v[kv(j) + c] as f64);
                        let (qc, gc) = (q[c] as f64, d_o[c] as f64);
                        out.o.add(at + c, p[n] * vc, e * p[n] * vc.abs());
                        out.dv.add(kv(j) + c, p[n] * gc, (e + eps * s.queries as f64) * p[n] * gc.abs());
                        out.dq.add(at + c, scale * ds * kc, scale * kc.abs() * ds_bound);
                        let over_rows = eps * (s.queries * group) as f64 * ds.abs();
                        out.dk.add(kv(j) + c, scale * ds * qc, scale * qc.abs() * (ds_bound + over_rows));
                    }
                }
            }
        }
    }
    out
}

struct Outputs {
    o: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

fn kernel(s: &AttentionShape, x: &Inputs, key_range: Option<&[i32]>) -> Outputs {
    let mut out = Outputs {
        o: vec![f32::NAN; s.q_len()],
        lse: vec![f32::NAN; s.lse_len()],
        dq: vec![f32::NAN; s.q_len()],
        dk: vec![f32::NAN; s.kv_len()],
        dv: vec![f32::NAN; s.kv_len()],
    };
    attention_forward(s, &x.q, &x.k, &x.v, key_range, &mut out.o, &mut out.lse);
    let Outputs { o, lse, dq, dk, dv } = &mut out;
    attention_backward(s, &x.q, &x.k, &x.v, o, lse, key_range, &x.d_o, dq, dk, dv);
    out
}

fn compare(s: &AttentionShape, x: &Inputs, key_range: Option<&[i32]>) {
    let (want, got) = (naive(s, x, key_range), kernel(s, x, key_range));
    want.o.assert_near(&got.o, &format!("o {s:?}"));
    want.lse.assert_near(&got.lse, &format!("lse {s:?}"));
    want.dq.assert_near(&got.dq, &format!("dq {s:?}"));
    want.dk.assert_near(&got.dk, &format!("dk {s:?}"));
    want.dv.assert_near(&got.dv, &format!("dv {s:?}"));
}

fn shapes() -> Vec<AttentionShape> {
    let mut all = vec![BASE];
    for causal in [true, false] {
        for window in [None, Some(1), Some(5), Some(64), Some(1000)] {
            all.extend([
                with([2, 13, 13, 4, 2, 7], causal, window),
                with([1, 65, 65, 3, 1, 17], causal, window),
                with([1, 3, 130, 2, 2, 33], causal, window),
                with([1, 70, 201, 2, 1, 16], causal, window),
                with([1, 31, 11, 1, 1, 5], causal, window),
            ]);
        }
    }
    all.extend([
        with([1, 259, 259, 2, 1, 64], true, None),
        with([1, 66, 66, 1, 1, 256], true, Some(20)),
        with([1, 66, 66, 1, 1, 129], false, None),
        with([2, 1, 97, 6, 2, 64], true, None),
    ]);
    all
}

#[test]
fn values_and_gradients_agree_with_the_definition() {
    for s in shapes() {
        compare(&s, &inputs(&s), None);
    }
}

#[test]
fn padding_on_either_side_hides_keys() {
    for s in shapes().into_iter().filter(|s| s.batch == 2) {
        let keys = s.keys as i32;
        for range in [[2, keys, 0, keys - 3], [0, 0, 5, 2], [1, 2, -4, keys + 9], [keys, keys, 0, keys]] {
            compare(&s, &inputs(&s), Some(&range));
        }
    }
}

#[test]
fn rows_that_see_nothing_give_zeros_and_the_empty_lse() {
    let s = with([1, 12, 12, 2, 1, 8], true, None);
    let got = kernel(&s, &inputs(&s), Some(&[4, 4]));
    assert!(got.lse.iter().all(|&x| x == EMPTY_LSE));
    for x in [got.o, got.dq, got.dk, got.dv] {
        assert!(x.iter().all(|&x| x == 0.0));
    }
    let none = with([2, 9, 0, 2, 1, 4], true, None);
    let got = kernel(&none, &inputs(&none), None);
    assert!(got.o.iter().chain(&got.dq).all(|&x| x == 0.0));
}

#[test]
fn huge_scores_stay_finite() {
    let s = with([1, 70, 70, 1, 1, 16], true, None);
    let mut x = inputs(&s);
    x.q.iter_mut().chain(&mut x.k).for_each(|x| *x *= 1e4);
    let got = kernel(&s, &x, None);
    for x in [got.o, got.lse, got.dq, got.dk, got.dv] {
        assert!(x.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn the_definitions_gradients_agree_with_central_differences() {
    let s = with([1, 9, 14, 4, 2, 6], true, Some(6));
    let range = [3, 12];
    let base = inputs(&s);
    let want = naive(&s, &base, Some(&range));
    let loss =
        |x: &Inputs| -> f64 { naive(&s, x, Some(&range)).o.value.iter().zip(&x.d_o).map(|(o, &g)| o * g as f64).sum() };
    // Steps of a power of two leave no rounding in the f32 inputs; the error of the difference is of order step^2.
    let step = 2f32.powi(-9);
    let round = |x: &[f32]| x.iter().map(|x| (x * 256.0).round() / 256.0).collect::<Vec<_>>();
    let base = Inputs { q: round(&base.q), k: round(&base.k), v: round(&base.v), d_o: base.d_o };
    let exact = naive(&s, &base, Some(&range));
    assert!(want.dq.value.iter().any(|&x| x != 0.0));
    for (tensor, gradient) in [(0, &exact.dq), (1, &exact.dk), (2, &exact.dv)] {
        for at in (0..gradient.value.len()).step_by(7) {
            let at_step = |sign: f32| {
                let mut x = Inputs { q: base.q.clone(), k: base.k.clone(), v: base.v.clone(), d_o: base.d_o.clone() };
                [&mut x.q, &mut x.k, &mut x.v][tensor][at] += sign * step;
                loss(&x)
            };
            let slope = (at_step(1.0) - at_step(-1.0)) / (2.0 * step as f64);
            let size = gradient.value.iter().fold(1.0f64, |m, x| m.max(x.abs()));
            assert!(
                (slope - gradient.value[at]).abs() < 16.0 * (step as f64).powi(2) * size,
                "tensor {tensor} at {at}"
            );
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let s = with([3, 130, 130, 4, 2, 40], true, Some(100));
    let x = inputs(&s);
    let one = with_threads(1, || kernel(&s, &x, None));
    for threads in [2, 5] {
        let many = with_threads(threads, || kernel(&s, &x, None));
        assert_eq!(one.o, many.o);
        assert_eq!(one.lse, many.lse);
        assert_eq!((one.dq.clone(), one.dk.clone(), one.dv.clone()), (many.dq, many.dk, many.dv));
    }
}

#[test]
fn decoding_one_token_agrees_with_the_last_row_of_the_whole() {
    let whole = with([1, 40, 40, 4, 2, 24], true, Some(17));
    let x = inputs(&whole);
    let all = kernel(&whole, &x, None);
    let one = AttentionShape { queries: 1, ..whole };
    let at = whole.q_len() - one.q_len();
    let (mut o, mut lse) = (vec![0.0; one.q_len()], vec![0.0; one.lse_len()]);
    attention_forward(&one, &x.q[at..], &x.k, &x.v, None, &mut o, &mut lse);
    let want = naive(&whole, &x, None);
    for (i, (got, full)) in o.iter().zip(&all.o[at..]).enumerate() {
        assert!(((got - full).abs() as f64) < 2.0 * want.o.bound[at + i]);
    }
}
