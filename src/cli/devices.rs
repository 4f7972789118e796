//! `lynx-gpu devices`: what GPUs and CPU this machine has, what they can do, and which one `auto` uses and why.

use crate::device::choose::{self, Adapter};
use crate::device::gpu::tiles::{COOPERATIVE_ERROR, Choices};
use crate::device::gpu::tune::{self, Tuned};
use crate::device::gpu::{Caps, Context, Options, adapter};
use crate::device::host;
use crate::device::probe::{self, Memory};
use crate::ops::workloads::{self, workloads};
use crate::{Error, Result};
use serde::Serialize;

#[derive(clap::Args)]
pub struct Args {
    /// Time the forms of the kernels on each GPU, and remember the fastest for later runs (seconds on a GPU)
    #[arg(long)]
    tune: bool,
}

#[derive(Serialize)]
struct Gpu {
    /// `--device` value.
    id: String,
    #[serde(flatten)]
    adapter: Adapter,
    software: bool,
    driver: String,
    driver_info: String,
    /// The `--device` value of the same GPU through a better backend.
    same_gpu_as: Option<String>,
    features_used: Vec<String>,
    features_absent: Vec<String>,
    caps: Caps,
    /// Forms of kernels in use, and whether they are the table's or what the tuner found.
    kernels: Choices,
    kernels_tuned: bool,
    /// Forms timed by `--tune`.
    timings: Option<Tuned>,
}

#[derive(Serialize)]
struct Listing {
    cpu: host::Cpu,
    gpus: Vec<Gpu>,
    /// What `--device auto` takes.
    auto: Auto,
}

#[derive(Serialize)]
struct Auto {
    device: String,
    reason: String,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let gpus = gpus(args.tune)?;
    let chosen = choose::choose("auto", workloads)?;
    let device = chosen.gpu.map_or_else(|| "cpu".to_string(), |i| format!("gpu:{i}"));
    let listing = Listing { cpu: host::cpu(), gpus, auto: Auto { device, reason: chosen.reason } };
    if json {
        let text =
            serde_json::to_string_pretty(&listing).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?;
        println!("{text}");
    } else {
        print(&listing);
    }
    Ok(())
}

/// The GPUs; with `tune`, each is tuned first, but for those that are reached better in another way.
fn gpus(tune: bool) -> Result<Vec<Gpu>> {
    let adapters = choose::adapters();
    let summary: Vec<Adapter> = adapters.iter().map(|(a, _)| a.clone()).collect();
    let duplicates = choose::duplicates(&summary);
    adapters
        .iter()
        .enumerate()
        .map(|(i, (summary, adapter))| {
            let info = adapter.get_info();
            let timings = if tune && duplicates[i].is_none() { Some(tuned(adapter)?) } else { None };
            let (choices, warning) = choose::tuned(adapter, &Options::default());
            if let Some(warning) = warning {
                eprintln!("warning: {warning}");
            }
            let caps = adapter::caps(adapter, &Options { choices, ..Options::default() });
            let (features_used, features_absent) = features(&caps);
            Ok(Gpu {
                id: format!("gpu:{i}"),
                adapter: summary.clone(),
                software: caps.software,
                driver: info.driver,
                driver_info: info.driver_info,
                same_gpu_as: duplicates[i].map(|d| format!("gpu:{d}")),
                features_used,
                features_absent,
                kernels: caps.choices(),
                kernels_tuned: choices.is_some(),
                timings,
                caps,
            })
        })
        .collect()
}

/// Tunes an adapter and remembers the result.
fn tuned(adapter: &wgpu::Adapter) -> Result<Tuned> {
    let info = adapter.get_info();
    eprintln!("tuning {} ...", info.name);
    let context = Context::open(adapter, Options::default())?;
    let tuned = tune::tune(&context, &workloads::tuning()?)?;
    let mut memory = Memory::tuned();
    memory.put(&probe::gpu_key(&info), tuned.choices);
    if let Some(warning) = memory.warning {
        eprintln!("warning: {warning}");
    }
    Ok(tuned)
}

/// The table of what was timed, a line for each form.
fn print_timings(tuned: &Tuned) {
    println!("       tuned in {:.1} s (ms of each work; * is used)", tuned.seconds);
    for t in &tuned.timings {
        let form = t.change.map_or_else(|| "in use before".to_string(), |c| format!("{c:?}"));
        let family = format!("{:?}", t.family).to_lowercase();
        let times: String = t.seconds.iter().map(|s| format!(" {:>9.3}", 1e3 * s)).collect();
        println!("       {} {family:<10} {form:<28}{times}", if t.kept { '*' } else { ' ' });
    }
}

/// The forms of kernels in a line.
fn kernels(c: &Choices) -> String {
    let products = match c.matmul == c.matmul_small {
        true => format!("products {:?}", c.matmul),
        false => format!("products {:?} from {} tiles, else {:?}", c.matmul, c.large_tiles, c.matmul_small),
    };
    format!("{products}; vectors {:?}; attention {:?}; rows {:?}", c.gemv, c.attention, c.rows)
}

/// Optional features in words: those that will be used, and those the adapter lacks.
fn features(caps: &Caps) -> (Vec<String>, Vec<String>) {
    let f = &caps.features;
    let subgroups = match caps.subgroup_sizes {
        (0, 0) => "subgroups".to_string(),
        (a, b) if a == b => format!("subgroups of {a}"),
        (a, b) => format!("subgroups of {a} to {b}"),
    };
    let cooperative = match caps.cooperative_size {
        0 => String::new(),
        side => format!(" {side} x {side}, f16 to f32"),
    };
    let all = [
        (f.subgroups, subgroups),
        (f.f16, "f16".into()),
        (f.packed_dot, "packed int8 dot product".into()),
        (f.cooperative_matrix, format!("cooperative matrices{cooperative}")),
        (f.timestamps, "timestamps".into()),
        (f.pipeline_cache, "pipeline cache".into()),
    ];
    let (used, absent): (Vec<_>, Vec<_>) = all.into_iter().partition(|(present, _)| *present);
    let names = |list: Vec<(bool, String)>| list.into_iter().map(|(_, name)| name).collect();
    (names(used), names(absent))
}

fn bytes(n: u64) -> String {
    match n {
        0..1_048_576 => format!("{} KiB", n >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", n >> 20),
        _ => format!("{:.1} GiB", n as f64 / (1u64 << 30) as f64),
    }
}

fn print(listing: &Listing) {
    let cpu = &listing.cpu;
    println!("cpu    {}", cpu.model);
    println!("       {} cores, {} threads used, kernels for {}", cpu.cores, cpu.threads, cpu.simd);
    for gpu in &listing.gpus {
        let (a, limits) = (&gpu.adapter, &gpu.caps.limits);
        let kind = format!("{:?}", a.kind).to_lowercase();
        println!("{:<6} {}", gpu.id, a.name);
        println!("       {} through {}, vendor {:#06x}, device {:#06x}", kind, a.backend, a.vendor, a.device);
        if let Some(other) = &gpu.same_gpu_as {
            println!("       the same GPU as {other}, which is used instead");
        }
        println!("       driver   {} {}", gpu.driver, gpu.driver_info);
        println!(
            "       memory   buffers up to {}, bindings up to {}, {} of workgroup memory, {} invocations a workgroup",
            bytes(limits.max_buffer),
            bytes(limits.max_binding),
            bytes(limits.workgroup_memory.into()),
            limits.max_invocations
        );
        for (title, list) in [("used", &gpu.features_used), ("absent", &gpu.features_absent)] {
            if !list.is_empty() {
                println!("       {title:<8} {}", list.join(", "));
            }
        }
        let origin = if gpu.kernels_tuned { "tuned on this GPU" } else { "from the table; try devices --tune" };
        println!("       kernels  {} ({origin})", kernels(&gpu.kernels));
        if gpu.caps.features.cooperative_matrix {
            println!("       cooperative matrices {COOPERATIVE_ERROR}");
        }
        if let Some(timings) = &gpu.timings {
            print_timings(timings);
        }
    }
    if listing.gpus.is_empty() {
        println!("no GPU was found (on Linux, install a Vulkan driver: mesa-vulkan-drivers, or the vendor's)");
    }
    println!("\nauto uses {}: {}", listing.auto.device, listing.auto.reason);
}
