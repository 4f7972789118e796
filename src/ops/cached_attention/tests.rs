//! Writing a text token by token, or in segments, and attending to what was written gives what attention over the whole text gives.

use super::*;
use crate::device::{Device, Store};
use crate::graph::{Plan, Role};
use crate::ops::attention::Attention;
use crate::ops::on_devices::{devices, run};
use crate::ops::{Sample, Values};
use crate::tensor::HostTensor;
use kernels_cpu::half::F16_ROUNDOFF;

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const D: usize = 16;

/// Keys and values in caches of `slots`, for segments of `tokens`.
fn plan(dtype: DType, op: CachedAttention, tokens: usize, slots: usize) -> Plan {
    let mut g = Graph::new();
    let q = g.input("q", TensorType::f32(&[1, tokens, HEADS, D]));
    let place = g.input("place", TensorType::i32(&[1, 2]));
    let [k, v] = ["k", "v"].map(|name| {
        let new = g.input(name, TensorType::f32(&[1, tokens, KV_HEADS, D]));
        let shape = [1, KV_HEADS, slots, D];
        let cache = g.variable(&format!("{name} cache"), Role::State, TensorType::new(dtype, &shape)).unwrap();
        let scales = (dtype == DType::I8)
            .then(|| g.variable(&format!("{name} scales"), Role::State, TensorType::f32(&shape[..3])).unwrap());
        g.cache_write(cache, scales, new, place).unwrap()
    });
    let o = g.cached_attention(q, k, v, place, op).unwrap();
    g.output("o", o);
    Plan::new(&g).unwrap()
}

/// The text `[q, k, v]`, each `[1, length, heads, D]`, in segments of `tokens` of which the last may be short.
fn in_segments(device: &Device, plan: &Plan, tokens: usize, text: &[HostTensor; 3]) -> Vec<f32> {
    let mut store = Store::new(device);
    let mut executable = plan.prepare(&mut store).unwrap();
    let length = text[0].shape[1];
    let mut result = Vec::new();
    for start in (0..length).step_by(tokens) {
        let count = tokens.min(length - start);
        for (name, x) in ["q", "k", "v"].iter().zip(text) {
            let row = x.shape[2] * D;
            let mut part = x.as_f32().unwrap()[start * row..(start + count) * row].to_vec();
            part.resize(tokens * row, 3.0);
            executable.write_input(name, &HostTensor::f32(&[1, tokens, x.shape[2], D], part)).unwrap();
        }
        executable.write_input("place", &HostTensor::i32(&[1, 2], vec![start as i32, count as i32])).unwrap();
        executable.run().unwrap();
        let o = executable.read_output("o").unwrap();
        let (there, padding) = o.as_f32().unwrap().split_at(count * HEADS * D);
        assert!(padding.iter().all(|x| *x == 0.0), "tokens that are not there give zeros");
        result.extend_from_slice(there);
    }
    result
}

fn text(length: usize) -> [HostTensor; 3] {
    let draw = |heads: usize, seed: u64| {
        Sample::new(&[1, length, heads, D], Values::Normal(1.0)).draw(seed).to_host(DType::F32)
    };
    [draw(HEADS, 1), draw(KV_HEADS, 2), draw(KV_HEADS, 3)]
}

/// What one relative error of `each` in every stored number changes a result by: the score's own error and the value's. Both are
/// sums of D products of normal numbers, none of which exceeds 5 here.
fn bound(each: f32) -> f32 {
    let (largest, score) = (5.0, (D as f32).sqrt() * 5.0);
    each * largest * (1.0 + 2.0 * score)
}

fn compare(dtype: DType, window: Option<usize>, slots: usize, tokens: usize, tolerance: f32) {
    let scale = 1.0 / (D as f32).sqrt();
    let text = text(150);
    let whole = Attention { causal: true, window, scale };
    let plan = plan(dtype, CachedAttention { window, scale, softcap: None }, tokens, slots);
    for device in devices() {
        let want = run(&device, whole, &text).0.remove(0);
        let have = in_segments(&device, &plan, tokens, &text);
        assert_eq!(have.len(), want.len());
        let worst = have.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{} {dtype} window {window:?}, {tokens} at a time: {worst}", device.name());
    }
}

#[test]
fn token_by_token_a_dense_cache_gives_what_attention_gives() {
    compare(DType::F32, None, 150, 1, bound(8.0 * f32::EPSILON));
    compare(DType::F16, None, 200, 1, bound(F16_ROUNDOFF));
    // A step of int8 is 1/127 of the largest number of a vector, the error half of one.
    compare(DType::I8, None, 150, 1, bound(0.5 / 127.0));
}

#[test]
fn segments_and_token_by_token_agree_in_a_ring_as_long_as_its_window() {
    compare(DType::F32, Some(40), 40, 1, bound(8.0 * f32::EPSILON));
    // The first query of a segment looks back from there, after its last token was written.
    compare(DType::F32, Some(40), 40 + 31, 32, bound(8.0 * f32::EPSILON));
    compare(DType::F16, Some(40), 44, 5, bound(F16_ROUNDOFF));
    compare(DType::F32, None, 150, 64, bound(8.0 * f32::EPSILON));
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let error = |q: &[usize], dtype: DType, op: CachedAttention| {
        let mut g = Graph::new();
        let cache = TensorType::new(dtype, &[2, 3, 8, 16]);
        let [k, v] = ["k", "v"].map(|n| (g.input(n, cache.clone()), None));
        let (q, place) = (g.input("q", TensorType::f32(q)), g.input("place", TensorType::i32(&[2, 2])));
        g.cached_attention(q, k, v, place, op).unwrap_err().to_string()
    };
    let op = CachedAttention { window: None, scale: 1.0, softcap: None };
    assert!(error(&[2, 9, 6, 16], DType::F32, op).contains("9 tokens cannot be in a cache of 8"));
    assert!(error(&[2, 1, 4, 16], DType::F32, op).contains("not a multiple of 3"));
    assert!(error(&[2, 1, 3, 16], DType::I8, op).contains("needs scales"));
    assert!(error(&[2, 1, 3, 16], DType::F32, CachedAttention { window: Some(0), ..op }).contains("window of 0"));
    assert!(error(&[2, 1, 3, 16], DType::F32, CachedAttention { softcap: Some(0.0), ..op }).contains("positive"));
}

#[test]
fn it_cannot_be_differentiated() {
    let mut g = Graph::new();
    let q = g.input("q", TensorType::f32(&[1, 1, 1, 4]));
    let [k, v] = ["k", "v"].map(|n| (g.input(n, TensorType::f32(&[1, 1, 2, 4])), None));
    let place = g.input("place", TensorType::i32(&[1, 2]));
    let op = CachedAttention { window: None, scale: 1.0, softcap: None };
    let o = g.cached_attention(q, k, v, place, op).unwrap();
    let loss = g.sum_all(o).unwrap();
    assert!(g.gradients(loss, &[q]).unwrap_err().to_string().contains("train with attention"));
}
