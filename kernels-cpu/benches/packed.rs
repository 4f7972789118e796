//! Products with packed matrices, beside reading memory and beside f32:
//! `cargo bench -p kernels-cpu --bench packed -- [part of a format's name] [--m N] [--rows N] [--columns N] [--reps N] [--threads N]`.
//!
//! All formats run in turns, the least time of each counts. GB/s are the bytes of the matrix, GOP/s two operations a weight and row of x;
//! `read` sums the largest matrix's memory.

use kernels_cpu::blocks::Format;
use kernels_cpu::gemm::Epilogue;
use kernels_cpu::packed::samples::random_rows;
use kernels_cpu::packed::{Activations, Layout, Packing, linear, pack};
use kernels_cpu::simd::{LANES, Lanes};
use kernels_cpu::threads::{SharedMut, par_rows, with_threads};
use std::hint::black_box;
use std::time::Instant;

kernels_cpu::multiversion! {
    fn sum<V>(x: &[f32]) -> f32 {
        let mut sums = [Lanes::splat(0.0); 8];
        for part in x.chunks_exact(8 * LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add(Lanes::load(&part[i * LANES..]));
            }
        }
        sums.into_iter().fold(Lanes::splat(0.0), Lanes::add).sum()
    }
}

/// Sums all of memory, in parts.
fn read(x: &[f32]) {
    const PART: usize = 1 << 16;
    let mut sums = vec![0.0; x.len() / PART];
    let out = SharedMut::new(&mut sums);
    par_rows(x.len() / PART, PART, |parts| {
        for i in parts {
            // SAFETY: parts are disjoint.
            let out = unsafe { out.slice(i..i + 1) };
            out[0] = sum(&x[i * PART..][..PART]);
        }
    });
    black_box(sums);
}

struct Candidate {
    packing: Packing,
    activations: Activations,
    /// Words, so that numbers of every size are aligned.
    weights: std::rc::Rc<Vec<u64>>,
    best: f64,
}

fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: words are bytes.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 8 * words.len()) }
}

fn candidates(filter: &str, rows: usize, columns: usize) -> Vec<Candidate> {
    let mut all = Vec::new();
    for format in Format::ALL.into_iter().filter(|f| f.name().contains(filter)) {
        let Ok(packing) = Packing::fastest_for_int8(format, rows, columns) else { continue };
        let mut weights = vec![0u64; packing.bytes().div_ceil(8)];
        // SAFETY: as above.
        let to = unsafe { std::slice::from_raw_parts_mut(weights.as_mut_ptr().cast(), 8 * weights.len()) };
        pack(&packing, &random_rows(format, rows, columns, 1), to);
        let weights = std::rc::Rc::new(weights);
        for activations in [Activations::F32, Activations::Int8] {
            if activations == Activations::F32 || packing.layout == Layout::Tiles {
                all.push(Candidate { packing, activations, weights: weights.clone(), best: f64::INFINITY });
            }
        }
    }
    all
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let (mut filter, mut reps, mut rows, mut columns) = (String::new(), 7, 0, 4096);
    let (mut threads, mut ms) = (vec![1, 2], vec![1, 4, 128]);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number follows the option");
        match arg.as_str() {
            "--m" => ms = vec![number()],
            "--rows" => rows = number(),
            "--columns" => columns = number(),
            "--reps" => reps = number(),
            "--threads" => threads = vec![number()],
            name => filter = name.into(),
        }
    }
    let memory = vec![1.0f32; 64 << 20];
    for m in ms {
        // Few rows of x: a matrix that no cache holds.
        let rows = if rows > 0 { rows } else { (if m <= 8 { 1 << 26 } else { 1 << 23 }) / columns };
        let mut all = candidates(&filter, rows, columns);
        let x: Vec<f32> = (0..m * columns).map(|i| (i * 7919 % 1013) as f32 / 506.0 - 1.0).collect();
        let mut y = vec![0.0; m * rows];
        for &threads in &threads {
            let mut reading = f64::INFINITY;
            with_threads(threads, || {
                for _ in 0..reps {
                    let start = Instant::now();
                    read(&memory);
                    reading = reading.min(start.elapsed().as_secs_f64());
                    for c in &mut all {
                        let start = Instant::now();
                        linear(&c.packing, c.activations, m, &x, bytes(&c.weights), &mut y, Epilogue::default());
                        c.best = c.best.min(start.elapsed().as_secs_f64());
                    }
                }
            });
            let rate = 4.0 * memory.len() as f64 / reading * 1e-9;
            println!("m {m}, [{rows}, {columns}], {threads} thread(s), least of {reps}; read {rate:.1} GB/s");
            for c in &mut all {
                let int8 = if c.activations == Activations::Int8 { "int8" } else { "f32" };
                let (size, operations) = (c.packing.bytes() as f64, 2.0 * (m * rows * columns) as f64);
                println!(
                    "  {:10} x {int8:5} {:9.3} ms {:7.1} GB/s {:8.1} GOP/s",
                    c.packing.format.name(),
                    c.best * 1e3,
                    size / c.best * 1e-9,
                    operations / c.best * 1e-9
                );
                c.best = f64::INFINITY;
            }
        }
    }
}
