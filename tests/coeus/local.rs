//! Attention over the window: against its definition, at its edges, with shared heads, with rotated queries and keys.

use super::memory::{devices, normal, prepared};
use super::*;
use lynx_gpu::graph::{Graph, Value};
use lynx_gpu::ops::attention::Attention;
use lynx_gpu::ops::rope::{Layout, Rope, rope_tables};
use lynx_gpu::tensor::TensorType;

/// Batch, time, query heads, key heads, head size.
type Size = [usize; 5];

fn shapes([b, t, h, kv, d]: Size) -> [Vec<usize>; 3] {
    [vec![b, t, h, d], vec![b, t, kv, d], vec![b, t, kv, d]]
}

fn operands(size: Size) -> [HostTensor; 3] {
    let [q, k, v] = shapes(size);
    [normal(&q, 1), normal(&k, 2), normal(&v, 3)]
}

/// o and the gradients of q, k and v for the loss sum(o * w) with w drawn from seed 4.
fn attend(size: Size, window: usize, operands: &[HostTensor; 3], device: &Device) -> [Vec<f64>; 4] {
    let mut g = Graph::new();
    let [q, k, v] = shapes(size);
    let inputs = [("q", q), ("k", k), ("v", v)].map(|(name, shape)| g.input(name, TensorType::f32(&shape)));
    let scale = 1.0 / (size[4] as f32).sqrt();
    let op = Attention { causal: true, window: Some(window), scale };
    let o = g.attention(inputs[0], inputs[1], inputs[2], None, op).unwrap();
    let w = g.constant(normal(&shapes(size)[0], 4));
    let weighted = g.mul(o, w).unwrap();
    let loss = g.sum_all(weighted).unwrap();
    let gradients = g.gradients(loss, &inputs).unwrap();
    g.output("o", o);
    gradients.iter().zip(["dq", "dk", "dv"]).for_each(|(x, name)| g.output(name, *x));
    let (mut exe, _store) = prepared(&g, device);
    operands.iter().zip(["q", "k", "v"]).for_each(|(x, name)| exe.write_input(name, x).unwrap());
    exe.run().unwrap();
    ["o", "dq", "dk", "dv"].map(|name| exe.read_output(name).unwrap().to_f64().data)
}

/// The definition with its T x T scores, in f64, for one query head a key head.
fn naive([b, t, h, kv, d]: Size, window: usize, [q, k, v]: &[HostTensor; 3]) -> [Vec<f64>; 4] {
    assert_eq!(h, kv);
    let [q, k, v, w] = [q, k, v, &normal(&[b, t, h, d], 4)].map(|x| x.to_f64().data);
    let mut out = [(); 4].map(|()| vec![0.0; q.len()]);
    let row = |b: usize, i: usize, h: usize| ((b * t + i) * kv + h) * d..((b * t + i) * kv + h + 1) * d;
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let scale = 1.0 / (d as f64).sqrt();
    for (b, i, h) in (0..b * t * h).map(|n| (n / h / t, n / h % t, n % h)) {
        let at = row(b, i, h);
        let seen: Vec<usize> = (0..t).filter(|j| *j <= i && i - j < window).collect();
        let e: Vec<f64> = seen.iter().map(|j| (scale * dot(&q[at.clone()], &k[row(b, *j, h)])).exp()).collect();
        let sum: f64 = e.iter().sum();
        for (j, e) in seen.iter().zip(&e) {
            out[0][at.clone()].iter_mut().zip(&v[row(b, *j, h)]).for_each(|(o, v)| *o += e / sum * v);
        }
        let delta = dot(&out[0][at.clone()], &w[at.clone()]);
        for (j, e) in seen.iter().zip(&e) {
            let key = row(b, *j, h);
            let p = e / sum;
            let ds = scale * p * (dot(&w[at.clone()], &v[key.clone()]) - delta);
            for c in 0..d {
                out[1][at.start + c] += ds * k[key.start + c];
                out[2][key.start + c] += ds * q[at.start + c];
                out[3][key.start + c] += p * w[at.start + c];
            }
        }
    }
    out
}

#[test]
fn attention_over_a_window_is_its_definition() {
    let window = 16;
    for device in devices() {
        for time in [1, window - 1, window, window + 1, 2 * window, 5 * window + 3] {
            let size = [2, time, 2, 2, 16];
            let x = operands(size);
            let (have, want) = (attend(size, window, &x, &device), naive(size, window, &x));
            let most = |x: &[f64]| x.iter().fold(1e-6f64, |m, x| m.max(x.abs()));
            let differences: Vec<f64> = have[0].iter().zip(&want[0]).map(|(a, b)| a - b).collect();
            let error = most(&differences) / most(&want[0]);
            assert!(error <= 1e-5, "{time} tokens on {}: {error:e}", device.name());
            let rms = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            for (have, want) in have.iter().zip(&want).skip(1) {
                let scale = rms(&mut want.iter().copied()) + 1e-8 * (want.len() as f64).sqrt();
                let error = rms(&mut have.iter().zip(want).map(|(a, b)| a - b)) / scale;
                // One token alone has the gradient zero, in f64 as a rest of 1e-17.
                assert!(error <= 1e-4 || time == 1 && most(have) <= 1e-6, "{time} on {}: {error:e}", device.name());
            }
        }
    }
}

/// The token `window` before is not felt, not in one bit; the next one is.
#[test]
fn the_window_ends_where_it_says() {
    let (window, size) = (16, [1, 70, 1, 1, 16]);
    let base = operands(size);
    for device in devices() {
        let before = attend(size, window, &base, &device);
        for s in [0, 1, 15, 16, 31, 40] {
            let mut other = base.clone();
            for x in &mut other {
                let mut data = x.to_f64().data;
                data[s * 16..(s + 1) * 16].iter_mut().for_each(|x| *x += 1.0);
                *x = HostTensor::f32(&[1, 70, 1, 16], data.iter().map(|x| *x as f32).collect());
            }
            let after = attend(size, window, &other, &device);
            for t in 0..70 {
                let (a, b) = (&before[0][t * 16..(t + 1) * 16], &after[0][t * 16..(t + 1) * 16]);
                let most = a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
                if (s..s + window).contains(&t) {
                    assert!(most > 1e-4, "{s} is not felt at {t} on {}: {most:e}", device.name());
                } else {
                    assert_eq!(a, b, "{s} is felt at {t} on {}", device.name());
                }
            }
        }
    }
}

/// The first token of a block sees the block before it; in isolated blocks it sees itself alone, at the same positions.
#[test]
fn isolated_blocks_do_not_see_each_other() {
    let (time, window, vocab_size) = (50, 16, 40);
    for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
        for mode in ["band_blocks", "isolated_blocks"] {
            let mode = format!("model.local_mode={mode}");
            let model = tiny("v2.5", vocab_size, &["model.fusion=local_only", "model.layers=1", &mode]);
            let graph = graphs::gradient_only(model.as_ref(), (2, time)).unwrap();
            let mut ready = Ready::new(model.as_ref(), &graph, (2, time), &device);
            let tokens = random(2 * time, vocab_size as u64, 3);
            let mut logits = |tokens: &[i32]| {
                ready.run(tokens, tokens);
                ready.read("logits")
            };
            let base = logits(&tokens);
            for s in [1, 15, 16, 33, 49] {
                let mut other = tokens.clone();
                other[s] = (other[s] + 17) % vocab_size as i32;
                let changed = logits(&other);
                for t in 0..2 * time {
                    let row = t * vocab_size..(t + 1) * vocab_size;
                    let felt = base[row.clone()] != changed[row];
                    let near = if mode.ends_with("band_blocks") { t < s + window } else { t / window == s / window };
                    assert_eq!(felt, t < time && t >= s && near, "{mode}: {s} at {t} on {}", device.name());
                }
            }
        }
    }
}

/// In a block they are one and the same: rotated alike, summed alike.
#[test]
fn one_isolated_block_is_the_window() {
    let run = |mode: &str, window: usize, time: usize| {
        let sets = [format!("model.local_mode={mode}"), format!("model.window={window}")];
        let model = tiny("v2.5", 40, &[&sets[0], &sets[1], "model.fusion=local_only"]);
        let graph = graphs::gradient_only(model.as_ref(), (1, time)).unwrap();
        let mut ready = Ready::new(model.as_ref(), &graph, (1, time), &Device::Cpu);
        ready.run(&random(time, 40, 3), &random(time, 40, 4));
        (ready.read("logits"), ready.read("gradient.model.layers.0.mixer.k_proj.weight"))
    };
    let (one, other) = (run("isolated_blocks", 64, 60), run("band_blocks", 64, 60));
    for (a, b) in [(&one.0, &other.0), (&one.1, &other.1)] {
        let most = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * most));
    }
    assert_ne!(run("isolated_blocks", 16, 60).0, run("band_blocks", 16, 60).0);
}

/// Two key heads for six query heads are six key heads of which three each are alike, and their gradients add up.
#[test]
fn shared_heads_are_repeated_heads() {
    let (grouped, full) = ([2, 37, 6, 2, 16], [2, 37, 6, 6, 16]);
    let x = operands(grouped);
    let repeat = |x: &HostTensor| {
        let data: Vec<f32> = x.to_f64().data.iter().map(|x| *x as f32).collect();
        let heads = data.chunks(16).flat_map(|head| [head; 3].concat()).collect();
        HostTensor::f32(&[2, 37, 6, 16], heads)
    };
    let repeated = [x[0].clone(), repeat(&x[1]), repeat(&x[2])];
    for device in devices() {
        let (have, want) = (attend(grouped, 16, &x, &device), attend(full, 16, &repeated, &device));
        let near = |a: &[f64], b: &[f64], tolerance: f64| {
            let most = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            assert_eq!(a.len(), b.len());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * most), "{}", device.name());
        };
        near(&have[0], &want[0], 1e-6);
        near(&have[1], &want[1], 1e-5);
        for i in [2, 3] {
            let sums =
                want[i].chunks(3 * 16).flat_map(|group| (0..16).map(|c| group[c] + group[16 + c] + group[32 + c]));
            near(&have[i], &sums.collect::<Vec<_>>(), 1e-5);
        }
    }
    // As many key heads as query heads are heads that nobody shares, by either name.
    let logits = |kv_heads: &str| {
        let model = tiny("v2.5", 40, &[kv_heads]);
        let graph = graphs::gradient_only(model.as_ref(), (1, 50)).unwrap();
        let mut ready = Ready::new(model.as_ref(), &graph, (1, 50), &Device::Cpu);
        ready.run(&random(50, 40, 3), &random(50, 40, 4));
        ready.read("logits")
    };
    assert_eq!(logits("model.kv_heads=6"), logits("model.kv_heads=0"));
}

const FAR: usize = 100_000;

/// x [1, T, 1, 16] rotated to `positions`, and back from there.
fn rotated(positions: &[i32], x: &HostTensor, device: &Device) -> [Vec<f64>; 3] {
    let mut g = Graph::new();
    let (cos, sin) = rope_tables(FAR + 64, 16, 10_000.0);
    let (cos, sin) = (g.constant(cos), g.constant(sin));
    let input = g.input("x", TensorType::f32(&x.ty().shape));
    let at = g.constant(HostTensor::i32(&[1, positions.len()], positions.to_vec()));
    let y = g.rope_at(input, cos, sin, at, Layout::Interleaved).unwrap();
    let w = g.constant(normal(&x.ty().shape, 9));
    let weighted = g.mul(y, w).unwrap();
    let loss = g.sum_all(weighted).unwrap();
    let gradient = g.gradients(loss, &[input]).unwrap()[0];
    let mut back = |x: Value| {
        let inverse = Rope { offset: 0, layout: Layout::Interleaved, inverse: true };
        g.apply1(inverse, &[x, cos, sin, at]).unwrap()
    };
    let (y_back, w_back) = (back(y), back(w));
    let difference = g.sub(gradient, w_back).unwrap();
    [("y", y), ("y_back", y_back), ("difference", difference)].into_iter().for_each(|(n, v)| g.output(n, v));
    let (mut exe, _store) = prepared(&g, device);
    exe.write_input("x", x).unwrap();
    exe.run().unwrap();
    ["y", "y_back", "difference"].map(|n| exe.read_output(n).unwrap().to_f64().data)
}

#[test]
fn rotation_keeps_lengths_and_tells_distances_only() {
    let x = normal(&[1, 4, 1, 16], 5);
    let data = x.to_f64().data;
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    for device in devices() {
        let near = |a: f64, b: f64, tolerance: f64| {
            assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{a} for {b} on {}", device.name());
        };
        assert_eq!(rotated(&[0; 4], &x, &device)[0], data);
        let places = [3, 17, 0, 40];
        let here = rotated(&places, &x, &device)[0].clone();
        for shift in [1, 1000, FAR as i32] {
            let moved = places.map(|p| p + shift);
            let [y, back, difference] = rotated(&moved, &x, &device);
            assert!(difference.iter().all(|d| d.abs() <= 1e-6), "the gradient is the rotation back");
            for i in 0..4 {
                let row = |x: &[f64], i: usize| x[16 * i..16 * (i + 1)].to_vec();
                near(dot(&row(&y, i), &row(&y, i)), dot(&row(&data, i), &row(&data, i)), 1e-6);
                near(dot(&row(&y, i), &row(&y, 0)), dot(&row(&here, i), &row(&here, 0)), 1e-5);
                for c in 0..16 {
                    near(back[16 * i + c], data[16 * i + c], 1e-6);
                    // The rotation itself, in f64.
                    let (even, odd) = (data[16 * i + c / 2 * 2], data[16 * i + c / 2 * 2 + 1]);
                    let angle = f64::from(moved[i]) * 10_000f64.powf(-((c / 2 * 2) as f64) / 16.0);
                    let (sin, cos) = angle.sin_cos();
                    let want = if c % 2 == 0 { even * cos - odd * sin } else { even * sin + odd * cos };
                    near(y[16 * i + c], want, 1e-6);
                }
            }
        }
    }
}
