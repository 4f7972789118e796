//! Matrix products of kernels-cpu beside faer, gemm and OpenBLAS: see `scripts/compare-gemm`.

mod clock;
mod contestants;
mod peak;

use contestants::{Contestant, Problem};
use std::time::{Duration, Instant};

struct Options {
    filter: Vec<String>,
    threads: Vec<usize>,
    rounds: usize,
    bf16: bool,
    quick: bool,
    cpu_time: bool,
}

const USAGE: &str = "compare-gemm [--threads 1,2] [--rounds 7] [--only 1024,logits,tn] [--bf16] [--quick] [--cpu-time]";

fn options() -> Result<Options, String> {
    let mut o = Options { filter: vec![], threads: vec![1, 2], rounds: 7, bf16: false, quick: false, cpu_time: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--only" => o.filter = value()?.split(',').map(String::from).collect(),
            "--threads" => {
                let parsed = value()?.split(',').map(str::parse).collect::<Result<_, _>>();
                o.threads = parsed.map_err(|e| format!("--threads: {e}"))?;
            }
            "--rounds" => o.rounds = value()?.parse().map_err(|e| format!("--rounds: {e}"))?,
            "--bf16" => o.bf16 = true,
            "--quick" => o.quick = true,
            "--cpu-time" => o.cpu_time = true,
            _ => return Err(format!("unknown option {arg}\n{USAGE}")),
        }
    }
    Ok(o)
}

/// (name, m, n, k, transposes) of everything that is compared.
fn shapes() -> Vec<(String, usize, usize, usize, &'static str)> {
    let mut shapes = vec![];
    let mut add = |name: &str, m, n, k, transposes: &[&'static str]| {
        for t in transposes {
            shapes.push((name.to_string(), m, n, k, *t));
        }
    };
    for size in [256, 512, 768, 1024, 1536, 2048] {
        add("square", size, size, size, &["nn", "nt", "tn"]);
    }
    // A training step of a preset: tokens, width; its forward products, gradients of activations and gradients of weights.
    for (preset, tokens, width) in [("char-cpu", 768, 128), ("char", 2048, 384)] {
        for (layer, to) in [("square", width), ("qkv", 3 * width), ("up", 4 * width)] {
            add(&format!("{preset} {layer}"), tokens, to, width, &["nn", "nt"]);
            add(&format!("{preset} {layer} dx"), tokens, width, to, &["nt"]);
            add(&format!("{preset} {layer} dw"), width, to, tokens, &["tn"]);
        }
        add(&format!("{preset} down"), tokens, width, 4 * width, &["nn"]);
        add(&format!("{preset} down dw"), 4 * width, width, tokens, &["tn"]);
        add(&format!("{preset} logits"), tokens, 65, width, &["nn", "nt"]);
        add(&format!("{preset} logits dx"), tokens, width, 65, &["nn", "nt"]);
        add(&format!("{preset} logits dw"), 65, width, tokens, &["tn"]);
    }
    add("attention", 256, 256, 64, &["nt"]);
    add("attention", 256, 64, 256, &["nn", "tn"]);
    shapes
}

#[derive(Clone, Copy)]
struct Times {
    best: f64,
    median: f64,
}

/// Times every contestant in turn, round after round; each turn repeats the product for at least some milliseconds.
fn race(
    problem: &mut Problem,
    contestants: &[Contestant],
    threads: usize,
    rounds: usize,
    now: fn() -> f64,
) -> Vec<Times> {
    let mut times = vec![vec![]; contestants.len()];
    keep_busy(threads);
    for round in 0..rounds + 1 {
        // Each comes after each other one in turn.
        for place in 0..contestants.len() {
            let place = (place + round) % contestants.len();
            let (contestant, times) = (&contestants[place], &mut times[place]);
            let start = Instant::now();
            let mut calls = 0;
            while calls < 3 || start.elapsed() < Duration::from_millis(15) {
                let call = now();
                contestant.run(problem, threads);
                let seconds = now() - call;
                if round > 0 {
                    times.push(seconds);
                }
                calls += 1;
            }
            // The threads of OpenBLAS wait for more work by spinning.
            if threads > 1 && contestant.spins() {
                std::thread::sleep(Duration::from_millis(60));
                keep_busy(threads);
            }
        }
    }
    let summary = |t: &mut Vec<f64>| {
        t.sort_by(f64::total_cmp);
        Times { best: t[0], median: t[t.len() / 2] }
    };
    times.iter_mut().map(summary).collect()
}

/// All threads busy for a while. A virtual machine whose processors have idled may find two of them on one core for some 100 ms,
/// which would be charged to whoever comes next.
fn keep_busy(threads: usize) {
    let busy = || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(150) {
            std::hint::black_box(peak::f32_fma());
        }
    };
    if threads > 1 {
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(busy))));
    }
}

fn main() -> Result<(), String> {
    let options = options()?;
    let contestants = if options.bf16 { Contestant::bf16() } else { Contestant::f32() };
    let one = if options.bf16 { peak::bf16_dot() } else { peak::f32_fma() };
    let one = one.ok_or("this processor has no such instructions")?;
    println!("peak of one thread: {one:.1} GFLOP/s, {}", if options.bf16 { "bf16 dot products" } else { "f32 FMA" });
    let mut worst: Vec<(f64, f64, String)> = vec![];
    for &threads in &options.threads {
        contestants::set_threads(threads);
        // Time of the processor is what a busy machine leaves to compare by, where all work is on the calling thread.
        let now = if options.cpu_time && threads == 1 { clock::thread_seconds } else { clock::wall_seconds };
        let names: Vec<&str> = contestants.iter().map(|c| c.name()).collect();
        println!(
            "\n{threads} thread(s): best (median) GFLOP/s; ratio of best times to the best peer; share of the peak"
        );
        print!("{:>22} {:>5} {:>5} {:>5}   ", "product", "m", "n", "k");
        names.iter().for_each(|n| print!("{n:>16}"));
        println!("{:>8}{:>8}", "ratio", "share");
        for (name, m, n, k, transposes) in shapes() {
            let label = format!("{name} {transposes}");
            let keep = options.filter.is_empty()
                || options.filter.iter().any(|f| format!("{label} {m} ").contains(f.as_str()));
            if !keep || options.quick && m * n * k > 1 << 30 {
                continue;
            }
            let mut problem = Problem::new(m, n, k, transposes);
            let times = race(&mut problem, &contestants, threads, options.rounds, now);
            let flops = 2.0 * (m * n * k) as f64;
            print!("{label:>22} {m:>5} {n:>5} {k:>5}   ");
            for t in &times {
                print!("{:>16}", format!("{:.1} ({:.1})", flops / t.best / 1e9, flops / t.median / 1e9));
            }
            let best_peer = times[1..].iter().map(|t| t.best).fold(f64::INFINITY, f64::min);
            let median_peer = times[1..].iter().map(|t| t.median).fold(f64::INFINITY, f64::min);
            let ratio = best_peer / times[0].best;
            println!("{ratio:>8.3}{:>8.3}", flops / times[0].best / 1e9 / (one * threads as f64));
            worst.push((ratio, median_peer / times[0].median, format!("{label} {m}x{n}x{k}, {threads} thread(s)")));
        }
    }
    worst.sort_by(|a, b| a.0.total_cmp(&b.0));
    if worst.iter().any(|w| w.0.is_finite()) {
        println!("\nlowest ratios to the best peer (of the best times; of the medians):");
        worst.iter().take(8).for_each(|(best, median, label)| println!("  {best:.3}  {median:.3}  {label}"));
    }
    Ok(())
}
