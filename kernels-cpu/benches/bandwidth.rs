//! Every memory-bound kernel beside a copy loop, on tensors far beyond the caches:
//! `cargo bench -p kernels-cpu --bench bandwidth -- [part of a name] [--reps N] [--mib N] [--threads N]`.
//!
//! Bytes are those an operator must move: each operand read once, each result written once. Kernel and copy run in turns, the least
//! time of each counts. `copy` loads and stores; `stream` stores past the caches, which saves reading what is overwritten; `kept` is the
//! kernel with plain stores.

use kernels_cpu::attention::{AttentionShape, attention_forward};
use kernels_cpu::optim::{AdamW, SgdMomentum, adamw, sgd_momentum};
use kernels_cpu::pointwise::{In, Out, broadcast_strides, run};
use kernels_cpu::program::{Binary, Instr, Program, Unary};
use kernels_cpu::rope::Layout;
use kernels_cpu::stream::with_cache;
use kernels_cpu::threads::{par_rows_mut, with_threads};
use kernels_cpu::{embed, loss, movement, norm, philox, reduce, rope, softmax};
use std::hint::black_box;
use std::time::Instant;

kernels_cpu::multiversion! {
    /// Not a call of `memcpy`, which LLVM would make of a plain copy: x * 1 + 0 is not always x.
    fn copy_part<V>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = V::fma(x, 1.0, 0.0);
        }
    }
}

fn copy(x: &[f32], y: &mut [f32]) {
    par_rows_mut(y, 1024, 1024, |first, y| copy_part(&x[first * 1024..][..y.len()], y));
}

/// Copies with stores that pass the caches, where the processor has them.
fn stream(x: &[f32], y: &mut [f32]) {
    par_rows_mut(y, 1024, 1024, |first, y| {
        let x = &x[first * 1024..][..y.len()];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx") {
            // SAFETY: the instruction set is there; rows of `y` are whole cache lines of an aligned allocation.
            return unsafe { stream_avx(x, y) };
        }
        copy_part(x, y);
    });
}

/// # Safety
/// `y` is aligned to 32 bytes, both have one length, a multiple of 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn stream_avx(x: &[f32], y: &mut [f32]) {
    use std::arch::x86_64::*;
    for (x, y) in x.chunks_exact(8).zip(y.chunks_exact_mut(8)) {
        // SAFETY: eight floats each, aligned by the contract.
        unsafe { _mm256_stream_ps(y.as_mut_ptr(), _mm256_loadu_ps(x.as_ptr())) };
    }
    _mm_sfence();
}

/// A vector that starts at a page.
fn aligned(n: usize, value: impl Fn(usize) -> f32) -> &'static mut [f32] {
    let data: &'static mut [f32] = Vec::leak(vec![0.0; n + 1024]);
    let skip = (4096 - data.as_ptr() as usize % 4096) / 4 % 1024;
    let data = &mut data[skip..skip + n];
    data.iter_mut().enumerate().for_each(|(i, x)| *x = value(i));
    data
}

struct Bench {
    filter: String,
    reps: usize,
    from: &'static [f32],
    to: &'static mut [f32],
}

impl Bench {
    fn row(&mut self, name: &str, bytes: usize, mut f: impl FnMut()) {
        if !name.contains(self.filter.as_str()) {
            return;
        }
        let [mut kernel, mut kept, mut plain, mut past] = [f64::INFINITY; 4];
        let time = |f: &mut dyn FnMut()| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        };
        for _ in 0..self.reps {
            plain = plain.min(time(&mut || copy(self.from, self.to)));
            kernel = kernel.min(time(&mut f));
            kept = kept.min(with_cache(usize::MAX, || time(&mut f)));
            past = past.min(time(&mut || stream(self.from, self.to)));
        }
        let moved = 8.0 * self.from.len() as f64;
        let bytes = bytes as f64;
        let [kernel, kept, plain, past] =
            [bytes / kernel, bytes / kept, moved / plain, moved / past].map(|rate| rate * 1e-9);
        println!(
            "{name:34} {kernel:7.1} GB/s   copy {plain:6.1}   {:4.2} of it   stream {past:6.1}   {:4.2} of it   kept {kept:6.1}",
            kernel / plain,
            kernel / past
        );
    }
}

fn program(instrs: &[Instr], inputs: usize) -> Program {
    Program { instrs: instrs.to_vec(), outputs: vec![instrs.len() as u16 - 1], inputs }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut filter, mut reps, mut mib, mut counts) = (String::new(), 7, 32, vec![1, 2]);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number follows the option");
        match arg.as_str() {
            "--reps" => reps = number(),
            "--mib" => mib = number(),
            "--threads" => counts = vec![number()],
            name => filter = name.into(),
        }
    }
    let n = mib << 18;
    let buffers: [&'static mut [f32]; 5] = std::array::from_fn(|k| {
        aligned(n, move |i| ((i * 7919 + k * 131) % 1013) as f32 / 337.0 - if k == 3 { 0.0 } else { 1.5 })
    });
    let [a, b, c, d, e] = buffers;
    let (from, to) = (&*aligned(n, |i| i as f32), aligned(n, |_| 0.0));
    let mut bench = Bench { filter, reps, from, to };
    for threads in counts {
        println!("{threads} thread(s), tensors of {mib} MiB, least of {reps}");
        with_threads(threads, || {
            pointwise(&mut bench, a, b, c, e);
            rows(&mut bench, a, b, c);
            norms(&mut bench, a, b, c);
            optimisers(&mut bench, a, b, c, d);
            indexed(&mut bench, a, b, c);
            moves(&mut bench, a, c);
        });
        println!();
    }
}

fn pointwise(bench: &mut Bench, a: &[f32], b: &[f32], c: &mut [f32], e: &mut [f32]) {
    let n = a.len();
    let (i0, i1) = (Instr::Input(0), Instr::Input(1));
    let unary = |op| program(&[i0, Instr::Unary(op, 0)], 1);
    let product = |op| program(&[i0, i1, Instr::Unary(op, 0), Instr::Binary(Binary::Mul, 1, 2)], 2);
    let add = program(&[i0, i1, Instr::Binary(Binary::Add, 0, 1)], 2);
    let scale = program(&[i0, Instr::Const(0.5), Instr::Binary(Binary::Mul, 0, 1)], 1);
    let bias = [n / 384, 384];
    for (name, program, inputs, shape) in [
        ("pointwise x * 0.5", &scale, vec![vec![n]], vec![n]),
        ("pointwise a + b", &add, vec![vec![n], vec![n]], vec![n]),
        ("pointwise a + bias", &add, vec![bias.to_vec(), vec![384]], bias.to_vec()),
        ("pointwise relu", &unary(Unary::Relu), vec![vec![n]], vec![n]),
        ("pointwise silu", &unary(Unary::Silu), vec![vec![n]], vec![n]),
        ("pointwise gelu_tanh", &unary(Unary::GeluTanh), vec![vec![n]], vec![n]),
        ("pointwise gelu_erf", &unary(Unary::GeluErf), vec![vec![n]], vec![n]),
        ("pointwise dy * silu'(x)", &product(Unary::SiluGrad), vec![vec![n], vec![n]], vec![n]),
        ("pointwise dy * gelu_tanh'(x)", &product(Unary::GeluTanhGrad), vec![vec![n], vec![n]], vec![n]),
        ("pointwise dy * gelu_erf'(x)", &product(Unary::GeluErfGrad), vec![vec![n], vec![n]], vec![n]),
    ] {
        let strides: Vec<_> = inputs.iter().map(|i| broadcast_strides(i, &shape).expect("broadcasts")).collect();
        let data = [a.as_ptr(), b.as_ptr()];
        let inputs_at: Vec<In> = strides.iter().zip(data).map(|(s, p)| In::f32(p, s)).collect();
        let moved: usize = inputs.iter().chain([&shape]).map(|s| 4 * s.iter().product::<usize>()).sum();
        let out = [Out::F32(c.as_mut_ptr())];
        // SAFETY: the tensors have the sizes of their shapes.
        bench.row(name, moved, || unsafe { run(program, &inputs_at, &out, &shape) });
    }
    let state = [7, 11];
    bench.row("dropout", 8 * n, || philox::dropout(a, 0.2, state, 3, 5, e));
}

fn rows(bench: &mut Bench, a: &[f32], b: &[f32], c: &mut [f32]) {
    for width in [65, 600, 50_257] {
        let rows = a.len() / width;
        let n = rows * width;
        let (x, dy, y) = (&a[..n], &b[..n], &mut c[..n]);
        bench.row(&format!("softmax {width}"), 8 * n, || softmax::softmax(x, rows, width, y));
        bench.row(&format!("log_softmax {width}"), 8 * n, || softmax::log_softmax(x, rows, width, y));
        bench.row(&format!("softmax_grad {width}"), 12 * n, || softmax::softmax_grad(x, dy, rows, width, y));
        bench.row(&format!("log_softmax_grad {width}"), 12 * n, || softmax::log_softmax_grad(x, dy, rows, width, y));
        let targets: Vec<i32> = (0..rows).map(|r| (r * 37 % width) as i32).collect();
        let (mut nll, mut lse, dnll) = (vec![0.0; rows], vec![0.0; rows], vec![1.0; rows]);
        bench.row(&format!("cross_entropy {width}"), 4 * n + 12 * rows, || {
            loss::cross_entropy(x, &targets, rows, width, &mut nll, &mut lse).expect("targets are classes")
        });
        bench.row(&format!("cross_entropy_grad {width}"), 8 * n + 12 * rows, || {
            loss::cross_entropy_grad(x, &targets, &lse, &dnll, rows, width, y).expect("targets are classes")
        });
        let mut sums = vec![0.0; rows];
        bench.row(&format!("reduce rows {width}"), 4 * (n + rows), || {
            reduce::reduce(reduce::Kind::Sum, x, rows, width, 1, &mut sums)
        });
        let mut sums = vec![0.0; width];
        bench.row(&format!("reduce columns {width}"), 4 * (n + width), || {
            reduce::reduce(reduce::Kind::Sum, x, 1, rows, width, &mut sums)
        });
    }
    bench.row("reduce all, squares", 4 * a.len(), || {
        reduce::reduce(reduce::Kind::SumSq, a, 1, a.len(), 1, black_box(&mut [0.0]))
    });
}

fn norms(bench: &mut Bench, a: &[f32], b: &[f32], c: &mut [f32]) {
    for d in [128, 384, 1024, 4096] {
        let rows = a.len() / d;
        let n = rows * d;
        let (x, dy, y) = (&a[..n], &b[..n], &mut c[..n]);
        let (gamma, beta) = (vec![1.1; d], vec![0.1; d]);
        let (mut mean, mut rstd, mut dgamma, mut dbeta) =
            (vec![0.0; rows], vec![1.0; rows], vec![0.0; d], vec![0.0; d]);
        bench.row(&format!("layer_norm {d}"), 8 * (n + rows + d), || {
            norm::layer_norm(x, rows, d, &gamma, Some(&beta), 1e-5, y, &mut mean, &mut rstd)
        });
        bench.row(&format!("layer_norm_grad_x {d}"), 12 * n + 8 * rows + 4 * d, || {
            norm::layer_norm_grad_x(x, rows, d, &gamma, &mean, &rstd, dy, y)
        });
        bench.row(&format!("layer_norm_grad_params {d}"), 8 * (n + rows + d), || {
            norm::layer_norm_grad_params(x, rows, d, &mean, &rstd, dy, &mut dgamma, Some(&mut dbeta))
        });
        bench.row(&format!("rms_norm {d}"), 8 * n + 4 * (rows + d), || {
            norm::rms_norm(x, rows, d, &gamma, false, 1e-5, y, &mut rstd)
        });
        bench.row(&format!("rms_norm_grad_x {d}"), 12 * n + 4 * (rows + d), || {
            norm::rms_norm_grad_x(x, rows, d, &gamma, false, &rstd, dy, y)
        });
        bench.row(&format!("rms_norm_grad_params {d}"), 8 * n + 4 * (rows + d), || {
            norm::rms_norm_grad_params(x, rows, d, &rstd, dy, &mut dgamma)
        });
    }
}

fn optimisers(bench: &mut Bench, g: &[f32], m: &mut [f32], p: &mut [f32], v: &mut [f32]) {
    let n = g.len();
    let config = AdamW {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 1.0,
        bias_correction2: 1.0,
        grad_scale: 1.0,
    };
    bench.row("adamw", 28 * n, || adamw(config, p, g, m, v));
    let config =
        SgdMomentum { lr: 1e-3, momentum: 0.9, dampening: 0.0, nesterov: false, weight_decay: 0.1, grad_scale: 1.0 };
    bench.row("sgd_momentum", 20 * n, || sgd_momentum(config, p, g, m));
}

fn indexed(bench: &mut Bench, a: &[f32], table: &mut [f32], out: &mut [f32]) {
    for d in [384, 768] {
        let v = 8192.min(a.len() / d);
        let tokens = a.len() / d;
        let ids: Vec<i32> = (0..tokens).map(|i| (i * 7919 % v) as i32).collect();
        let n = tokens * d;
        bench.row(&format!("embedding {d}"), 8 * n + 4 * tokens, || {
            embed::gather_rows(&table[..v * d], v, d, &ids, &mut out[..n]).expect("ids are in the table")
        });
        bench.row(&format!("embedding gradient {d}"), 4 * (n + v * d + tokens), || {
            embed::scatter_add_rows(&ids, &a[..n], v, d, &mut table[..v * d]).expect("ids are in the table")
        });
    }
}

fn moves(bench: &mut Bench, a: &[f32], c: &mut [f32]) {
    let (heads, d) = (8, 64);
    let time = a.len() / (4 * heads * d);
    let n = 4 * time * heads * d;
    let (x, y) = (&a[..n], &mut c[..n]);
    let (cos, sin) = rope::tables(time, d, 10_000.0);
    bench.row("rope", 8 * n + 8 * cos.len(), || {
        rope::rope(x, 4, time, heads, d, d, &cos, &sin, 0, Layout::HalfSplit, false, y)
    });
    let side = (a.len() as f64).sqrt() as usize / 64 * 64;
    bench.row("transpose", 8 * side * side, || {
        movement::permute(&a[..side * side], &[side, side], &[1, 0], &mut c[..side * side])
    });
    let shape = [4, time, heads, d];
    bench.row("permute heads", 8 * n, || movement::permute(&a[..n], &shape, &[0, 2, 1, 3], &mut c[..n]));
    // One query against a long cache reads keys and values once.
    let keys = a.len() / (2 * heads * d);
    let shape = AttentionShape {
        batch: 1,
        queries: 1,
        keys,
        heads,
        kv_heads: heads,
        head_dim: d,
        causal: true,
        window: None,
        scale: 0.125,
        slots: None,
    };
    let half = keys * heads * d;
    let (q, mut o, mut lse) = (vec![0.1; heads * d], vec![0.0; heads * d], vec![0.0; heads]);
    bench.row("attention, one query", 8 * half, || {
        attention_forward(&shape, &q, &a[..half], &c[..half], None, &mut o, &mut lse)
    });
}
