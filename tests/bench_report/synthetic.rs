//! A report like the ones that measurements give: a CPU at one and at all threads, a discrete GPU and a software one.

use lynx_gpu::bench::report::*;

/// Noise with the shape of timings: uniform in (0, 1), from a counter.
pub struct Noise(pub u64);

impl Noise {
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        let (u, v) = (self.uniform().max(1e-300), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// `n` timings about `seconds`: a floor, normal jitter on top, now and then a straggler.
pub fn timings(noise: &mut Noise, seconds: f64, jitter: f64, n: usize) -> Stat {
    let samples: Vec<f64> = (0..n)
        .map(|_| {
            let straggler = if noise.uniform() < 0.05 { 1.0 + noise.uniform() } else { 1.0 };
            seconds * (1.0 + jitter * noise.normal().abs()) * straggler
        })
        .collect();
    Stat::of(&samples)
}

pub struct Machine {
    pub id: &'static str,
    pub name: &'static str,
    pub driver: &'static str,
    pub threads: Option<usize>,
    pub software: bool,
    /// FLOP/s.
    pub peaks: &'static [(&'static str, f64)],
    /// Largest working set and bytes/s.
    pub levels: &'static [(&'static str, Option<u64>, f64)],
    pub overheads: &'static [(&'static str, f64)],
    /// Share of the roof that its kernels reach, about.
    pub skill: f64,
}

pub const CPU1: Machine = Machine {
    id: "cpu1",
    name: "AMD Ryzen 7 7840U",
    driver: "",
    threads: Some(1),
    software: false,
    peaks: &[("f32", 137e9), ("bf16 dot", 275e9), ("int8 dot", 549e9)],
    levels: &[
        ("L1", Some(32 << 10), 260e9),
        ("L2", Some(1 << 20), 150e9),
        ("L3", Some(16 << 20), 82e9),
        ("memory", None, 31e9),
    ],
    overheads: &[("call", 4e-9)],
    skill: 0.8,
};

pub const CPU: Machine = Machine {
    id: "cpu",
    threads: Some(8),
    peaks: &[("f32", 870e9), ("bf16 dot", 1740e9), ("int8 dot", 3480e9)],
    levels: &[
        ("L1", Some(256 << 10), 2000e9),
        ("L2", Some(8 << 20), 1100e9),
        ("L3", Some(16 << 20), 420e9),
        ("memory", None, 62e9),
    ],
    overheads: &[("call", 4e-9), ("fork and join", 4.2e-6)],
    skill: 0.75,
    ..CPU1
};

pub const GPU: Machine = Machine {
    id: "gpu:0",
    name: "NVIDIA GeForce RTX 4060 Laptop GPU",
    driver: "NVIDIA 570.133.07",
    threads: None,
    software: false,
    peaks: &[("f32", 14.2e12), ("f16", 14.4e12), ("int8 dot", 28e12), ("cooperative matrix f16", 51e12)],
    levels: &[("cache", Some(32 << 20), 1300e9), ("memory", None, 238e9)],
    overheads: &[("dispatch", 2.1e-6), ("pass", 3.5e-6), ("submit", 11e-6), ("map back", 45e-6), ("pipeline", 8e-3)],
    skill: 0.55,
};

pub const LLVMPIPE: Machine = Machine {
    id: "gpu:1",
    name: "llvmpipe (LLVM 15.0.6, 256 bits)",
    driver: "llvmpipe Mesa 22.3.6",
    threads: None,
    software: true,
    peaks: &[("f32", 96e9), ("f16", 21e9), ("int8 dot", 38e9)],
    levels: &[("cache", Some(8 << 20), 24e9), ("memory", None, 14e9)],
    overheads: &[("dispatch", 9e-6), ("pass", 14e-6), ("submit", 60e-6), ("map back", 90e-6), ("pipeline", 60e-3)],
    skill: 0.3,
};

/// Operator, case, FLOPs, bytes, compute peak, how well it does beside the others.
type Work = (&'static str, &'static str, f64, f64, &'static str, f64);

fn works() -> Vec<Work> {
    let mut out = Vec::new();
    for (n, name) in [(256, "256x256x256"), (512, "512x512x512"), (1024, "1024x1024x1024"), (2048, "2048x2048x2048")] {
        let n = n as f64;
        out.push(("matmul", name, 2.0 * n.powi(3), 12.0 * n * n, "f32", 1.15));
    }
    out.push(("matmul", "2048x384x1536 nt", 2.0 * 2048.0 * 384.0 * 1536.0, 18.0e6, "f32", 1.1));
    out.push(("gemv", "1x4096x4096", 2.0 * 16.8e6, 67.2e6, "f32", 1.2));
    out.push(("gemv", "1x384x1536", 2.0 * 0.59e6, 2.37e6, "f32", 0.9));
    out.push(("softmax", "256x600", 5.0 * 153600.0, 8.0 * 153600.0, "f32", 0.8));
    out.push(("softmax", "64x50257", 5.0 * 3.2e6, 8.0 * 3.2e6, "f32", 1.1));
    for (t, name) in [(64, "6x64x64"), (256, "6x256x64"), (1024, "6x1024x64"), (4096, "6x4096x64")] {
        let t = t as f64;
        out.push(("attention", name, 4.0 * 6.0 * t * t * 64.0 / 2.0, 4.0 * 4.0 * 6.0 * t * 64.0, "f32", 0.7));
    }
    out.push(("int8 matmul", "1024x1024x1024", 2.0 * 1.07e9, 6.3e6, "f32", 0.9));
    out.push(("chebyshev", "256x600 k4", 8.0 * 600.0 * 256.0 * 4.0, 1.2e6, "f32", 0.5));
    out.push(("procrustes", "64x64", 9.0e6, 48e3, "f32", 0.2));
    out.push(("scan", "8x256x384", 3.0 * 786432.0, 12.0 * 786432.0, "f32", 0.6));
    out.push(("adamw", "10.7M", 12.0 * 10.7e6, 28.0 * 10.7e6, "f32", 1.2));
    out.push(("layer norm", "2048x384", 8.0 * 786432.0, 8.0 * 786432.0, "f32", 0.9));
    out.push(("cross entropy", "2048x65", 6.0 * 133120.0, 4.0 * 133120.0, "f32", 0.5));
    out.push(("embedding", "2048x384", 0.0, 8.0 * 786432.0, "f32", 0.7));
    out.push(("transpose", "2048x2048", 0.0, 33.5e6, "f32", 0.5));
    out
}

fn dot(machine: &Machine, work: &Work, direction: Direction, noise: &mut Noise, samples: usize) -> Dot {
    let (operator, case, mut flops, mut bytes, compute, grade) = *work;
    if direction == Direction::Backward {
        flops *= 2.0;
        bytes *= 1.6;
    }
    let (_, peak) = machine.peaks.iter().find(|(kind, _)| *kind == compute).unwrap();
    let (level, _, bandwidth) =
        machine.levels.iter().find(|(_, holds, _)| holds.is_none_or(|holds| bytes <= holds as f64)).unwrap();
    let (by_compute, by_memory) = (flops / peak, bytes / bandwidth);
    let overhead = machine.overheads.iter().map(|o| o.1).filter(|&t| t < 2e-5).sum::<f64>();
    let roof_seconds = by_compute.max(by_memory);
    let share = (machine.skill * grade * (0.75 + 0.3 * noise.uniform())).min(0.97);
    let seconds = timings(noise, roof_seconds / share + overhead, 0.02, samples);
    let device_seconds = machine.threads.is_none().then(|| timings(noise, roof_seconds / share, 0.01, samples));
    let bound = if overhead > roof_seconds {
        Bound::Overhead
    } else if by_compute > by_memory {
        Bound::Compute
    } else {
        Bound::Memory
    };
    Dot {
        operator: operator.into(),
        case: case.into(),
        direction,
        flops,
        bytes,
        compute: compute.into(),
        level: (*level).into(),
        seconds,
        device_seconds,
        roof_seconds,
        share: roof_seconds / device_seconds.unwrap_or(seconds).median,
        bound,
        kernels: if machine.threads.is_none() { vec![format!("{operator} {case}")] } else { Vec::new() },
        tokens_per_second: None,
    }
}

pub fn device(machine: &Machine, noise: &mut Noise, samples: usize) -> DeviceReport {
    let rate = |noise: &mut Noise, rate: f64| timings(noise, 1.0 / rate, 0.01, samples).rate(1.0);
    let mut memory = Vec::new();
    for access in [Access::Read, Access::Write, Access::Copy, Access::Triad, Access::Update] {
        for power in 12..28 {
            let working_set = 1u64 << power;
            let level = machine.levels.iter().find(|(_, holds, _)| holds.is_none_or(|h| working_set <= h)).unwrap();
            let part = if access == Access::Read { 1.0 } else { 0.8 };
            memory.push(MemoryPoint { access, streaming: false, working_set, rate: rate(noise, part * level.2) });
        }
    }
    let level = |&(name, holds, bytes_per_second): &(&str, Option<u64>, f64)| Level {
        name: name.into(),
        holds,
        bytes_per_second,
    };
    let gpu = machine.threads.is_none();
    let ceilings = Ceilings {
        compute: (machine.peaks.iter())
            .map(|&(kind, peak)| ComputePeak { kind: kind.into(), rate: rate(noise, peak) })
            .collect(),
        memory,
        levels: machine.levels.iter().map(level).collect(),
        workgroup_memory: gpu.then(|| rate(noise, machine.peaks[0].1 / 2.0)),
        upload: gpu.then(|| rate(noise, 11e9)),
        download: gpu.then(|| rate(noise, 6e9)),
        strides: (2..12).map(|p| StridePoint { stride_bytes: 1 << p, seconds: 1e-9 * p as f64 }).collect(),
        overheads: (machine.overheads.iter())
            .map(|&(kind, t)| Overhead { kind: kind.into(), time: timings(noise, t, 0.1, samples) })
            .collect(),
    };
    let mut dots = Vec::new();
    for work in works() {
        dots.push(dot(machine, &work, Direction::Forward, noise, samples));
        if !matches!(work.0, "adamw" | "gemv" | "transpose" | "procrustes" | "int8 matmul") {
            dots.push(dot(machine, &work, Direction::Backward, noise, samples));
        }
    }
    let steps: [(Work, Direction, f64); 5] = [
        (("shakespeare-char-cpu", "batch 12 x 64", 0.61e12 / 10.0, 0.9e9, "f32", 0.8), Direction::Step, 768.0),
        (("shakespeare-char", "batch 8 x 256", 1.32e11, 2.1e9, "f32", 0.9), Direction::Step, 2048.0),
        (("verbs", "batch 32 x 16", 1.1e9, 60e6, "f32", 0.5), Direction::Step, 512.0),
        (("shakespeare-char", "256 tokens", 5.6e9, 0.12e9, "f32", 0.8), Direction::Prefill, 256.0),
        (("shakespeare-char", "1 token", 21.5e6, 43.5e6, "f32", 0.9), Direction::Decode, 1.0),
    ];
    for (work, direction, tokens) in steps {
        let mut d = dot(machine, &work, direction, noise, samples);
        d.tokens_per_second = Some(tokens / d.seconds.median);
        dots.push(d);
    }
    let threads = machine.threads.map_or(String::new(), |n| format!(", {n} threads"));
    DeviceReport {
        id: machine.id.into(),
        name: machine.name.into(),
        driver: machine.driver.into(),
        threads: machine.threads,
        software: machine.software,
        key: format!("{} {}{threads}", machine.name, machine.driver),
        ceilings,
        dots,
    }
}

fn crossovers() -> Vec<Crossover> {
    vec![
        Crossover {
            operator: "matmul".into(),
            direction: Direction::Forward,
            gpu: "gpu:0".into(),
            flops: Some(3.4e7),
            case: Some("256x256x256".into()),
        },
        Crossover {
            operator: "training step".into(),
            direction: Direction::Step,
            gpu: "gpu:1".into(),
            flops: None,
            case: None,
        },
    ]
}

pub fn report_of(machines: &[&Machine], seed: u64) -> Report {
    let mut noise = Noise(seed);
    Report {
        schema: SCHEMA.into(),
        version: VERSION,
        program: "0.1.0".into(),
        unix_time: 1_793_000_000,
        took_seconds: 214.0,
        host: Host {
            cpu: "AMD Ryzen 7 7840U".into(),
            cores: 8,
            simd: "AVX-512".into(),
            system: "Linux 6.12".into(),
            memory_bytes: Some(32 << 30),
            power: Some("AC".into()),
            power_profile: Some("balanced".into()),
        },
        quick: false,
        filter: None,
        devices: machines.iter().map(|m| device(m, &mut noise, 30)).collect(),
        crossovers: crossovers().into_iter().filter(|c| machines.iter().any(|m| m.id == c.gpu)).collect(),
        warnings: vec!["cpu: times grew by 6 % from the first third to the last: heat or clocks".into()],
    }
}

pub fn report() -> Report {
    report_of(&[&CPU1, &CPU, &GPU, &LLVMPIPE], 1)
}
