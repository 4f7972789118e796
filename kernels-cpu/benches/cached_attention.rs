//! Attention to a cache: `cargo bench -p kernels-cpu --bench cached_attention -- [--threads N]`. One token: the bytes of keys and
//! values that are read each second, and the time of short texts. Segments: beside `attention_forward` at the same sizes.

use kernels_cpu::attention::{AttentionShape, attention_forward};
use kernels_cpu::cached_attention::{CachedShape, Stored, cached_attention};
use kernels_cpu::half::narrow_f16;
use kernels_cpu::int8::quantize;
use kernels_cpu::threads::with_threads;
use std::time::Instant;

const REPS: usize = 60;

/// The least time of each, taken in turn so that both meet the same machine.
fn least<const N: usize>(mut f: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..REPS {
        for (f, best) in f.iter_mut().zip(&mut best) {
            let start = Instant::now();
            f();
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best
}

fn data(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 131) % 1013) as f32 / 337.0 - 1.5).collect()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads = args.iter().position(|a| a == "--threads").and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(1);
    with_threads(threads, || {
        // heads, key/value heads, head size, slots, tokens, tokens before them
        for (heads, kv_heads, head_dim, slots, tokens, start) in [
            (12, 12, 64, 4096, 1, 31),
            (12, 12, 64, 4096, 1, 511),
            (12, 12, 64, 4096, 1, 4095),
            (12, 4, 64, 4096, 1, 4095),
            (32, 4, 64, 4096, 1, 4095),
            (8, 8, 128, 4096, 1, 4095),
            (32, 8, 128, 4096, 1, 4095),
            (12, 12, 64, 4096, 4, 4092),
            (12, 12, 64, 512, 128, 384),
            (12, 12, 64, 4096, 128, 3968),
            (12, 4, 64, 4096, 128, 3968),
            (12, 12, 64, 4096, 512, 3584),
            (32, 8, 128, 4096, 16, 4080),
        ] {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let (batch, window, softcap) = (1, None, None);
            let s = CachedShape { batch, tokens, heads, kv_heads, slots, head_dim, window, scale, softcap };
            let (q, n) = (data(s.q_len(), 1), s.vectors() * head_dim);
            let (k, v) = (data(n, 2), data(n, 3));
            let (mut k16, mut v16) = (vec![0; n], vec![0; n]);
            narrow_f16(&k, &mut k16);
            narrow_f16(&v, &mut v16);
            let (mut k8, mut v8) = (vec![0; n], vec![0; n]);
            let (mut ks, mut vs) = (vec![0.0; s.vectors()], vec![0.0; s.vectors()]);
            quantize(s.vectors(), head_dim, head_dim, &k, &mut k8, &mut ks);
            quantize(s.vectors(), head_dim, head_dim, &v, &mut v8, &mut vs);
            let place = [start as i32, tokens as i32];
            let keys = start + tokens;
            let [mut o0, mut o1, mut o2, mut o3] = std::array::from_fn(|_| vec![0.0; q.len()]);
            let shape = AttentionShape {
                batch,
                queries: tokens,
                keys,
                heads,
                kv_heads,
                head_dim,
                causal: true,
                window,
                scale,
                slots: None,
            };
            let mut lse = vec![0.0; shape.lse_len()];
            let kv = shape.kv_len();
            let [f32s, f16s, int8s, dense] = least([
                &mut || cached_attention(&s, &q, Stored::F32(&k), Stored::F32(&v), &place, &mut o0),
                &mut || cached_attention(&s, &q, Stored::F16(&k16), Stored::F16(&v16), &place, &mut o1),
                &mut || cached_attention(&s, &q, Stored::Int8(&k8, &ks), Stored::Int8(&v8, &vs), &place, &mut o2),
                &mut || attention_forward(&shape, &q, &k[..kv], &v[..kv], None, &mut o3, &mut lse),
            ]);
            let gigabytes = |bytes: f64| 2e-9 * bytes * (kv_heads * keys * head_dim) as f64;
            let pairs = (heads * head_dim * tokens) as f64 * (start as f64 + 0.5 * (tokens as f64 + 1.0));
            let one = |name: &str, bytes: f64, seconds: f64| {
                let (rate, flops) = (gigabytes(bytes) / seconds, 4e-9 * pairs / seconds);
                print!("  {name} {:8.1} us {rate:5.1} GB/s {flops:5.1} GF", 1e6 * seconds);
            };
            print!("H {heads}/{kv_heads} D {head_dim} T {tokens} after {start}:");
            one("f32", 4.0, f32s);
            one("f16", 2.0, f16s);
            one("int8", 1.0, int8s);
            println!("  attention {:8.1} us ({:.2} of f32)", 1e6 * dense, dense / f32s);
        }
    });
}
