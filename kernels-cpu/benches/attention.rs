//! Attention forward and backward at the shapes of the presets: `cargo bench -p kernels-cpu --bench attention -- [--threads N]`.
//! FLOPs are those of the scores that the mask leaves: four for each element of a head forward, ten backward.

use kernels_cpu::attention::{AttentionShape, attention_forward};
use kernels_cpu::attention_grad::attention_backward;
use kernels_cpu::threads::with_threads;
use std::time::Instant;

const REPS: usize = 40;

fn least(mut f: impl FnMut()) -> f64 {
    let once = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..REPS).map(once).fold(f64::INFINITY, f64::min)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads = args.iter().position(|a| a == "--threads").and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(1);
    for (name, batch, time, heads, kv_heads, head_dim) in [
        ("shakespeare-char-cpu", 12, 64, 4, 4, 32),
        ("shakespeare-char", 8, 256, 6, 6, 64),
        ("grouped, 1024", 1, 1024, 8, 2, 64),
    ] {
        let shape = AttentionShape {
            batch,
            queries: time,
            keys: time,
            heads,
            kv_heads,
            head_dim,
            causal: true,
            window: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            slots: None,
        };
        let data = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 337.0 - 1.5).collect()
        };
        let (q, k, v) = (data(shape.q_len(), 1), data(shape.kv_len(), 2), data(shape.kv_len(), 3));
        let (mut o, mut lse, d_o) = (vec![0.0; q.len()], vec![0.0; shape.lse_len()], data(q.len(), 4));
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let pairs = (batch * heads * time * (time + 1) / 2 * head_dim) as f64;
        with_threads(threads, || {
            let forward = least(|| attention_forward(&shape, &q, &k, &v, None, &mut o, &mut lse));
            let backward =
                least(|| attention_backward(&shape, &q, &k, &v, &o, &lse, None, &d_o, &mut dq, &mut dk, &mut dv));
            let rate = |flops: f64, seconds: f64| 1e-9 * flops * pairs / seconds;
            println!(
                "{name:22} forward {:7.3} ms {:6.1} GFLOP/s   backward {:7.3} ms {:6.1} GFLOP/s",
                1e3 * forward,
                rate(4.0, forward),
                1e3 * backward,
                rate(10.0, backward)
            );
        });
    }
}
