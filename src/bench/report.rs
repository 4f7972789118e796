//! What `bench --roofline` measures, as data: the JSON it writes, and all that its tables and pictures are drawn from.
//! Units are SI throughout: seconds, bytes, FLOP/s, bytes/s.

use serde::{Deserialize, Serialize};

/// Names the schema in the file; readers refuse another.
pub const SCHEMA: &str = "lynx-gpu/roofline";
/// Raised when a reader of the former version would misread the file.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    pub version: u32,
    /// Version of the program that measured.
    pub program: String,
    /// Seconds since 1970 (UTC) when the measurement began, and how long it took.
    pub unix_time: u64,
    pub took_seconds: f64,
    pub host: Host,
    /// A short measurement: fewer points, wider spreads.
    pub quick: bool,
    /// The `--filter` given, if any.
    pub filter: Option<String>,
    pub devices: Vec<DeviceReport>,
    pub crossovers: Vec<Crossover>,
    /// Noise, drift, battery: what makes the numbers doubtful.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub simd: String,
    pub system: String,
    pub memory_bytes: Option<u64>,
    /// "AC", "battery"; absent where the system does not tell.
    pub power: Option<String>,
    /// Frequency governor or power profile, where the system tells.
    pub power_profile: Option<String>,
}

/// One device at one setting: each GPU, the CPU with one thread, the CPU with all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// `cpu1` (one thread), `cpu` (all threads), `gpu:0`, ...: unique within a report.
    pub id: String,
    pub name: String,
    /// Driver and its version; empty for the CPU.
    pub driver: String,
    pub threads: Option<usize>,
    /// Emulated on the CPU.
    pub software: bool,
    /// Says that two reports measured the same thing: device, driver, threads.
    pub key: String,
    pub ceilings: Ceilings,
    pub dots: Vec<Dot>,
}

/// Median and spread of repeated measurements of one quantity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    pub median: f64,
    /// First and third quartiles.
    pub low: f64,
    pub high: f64,
    pub best: f64,
    pub samples: usize,
    /// Median of the last third over that of the first: above 1 where a time grew (heat, clocks).
    pub drift: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    pub compute: Vec<ComputePeak>,
    pub memory: Vec<MemoryPoint>,
    /// The plateaus found in `memory`, fastest first; the last one is main memory.
    pub levels: Vec<Level>,
    /// bytes/s of workgroup memory (GPU).
    pub workgroup_memory: Option<Stat>,
    /// bytes/s from host to device and back (GPU).
    pub upload: Option<Stat>,
    pub download: Option<Stat>,
    pub strides: Vec<StridePoint>,
    pub overheads: Vec<Overhead>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComputePeak {
    /// `f32`, `f16`, `bf16 dot`, `int8 dot`.
    pub kind: String,
    /// Operations (multiply and add count two) per second.
    pub rate: Stat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    Read,
    Write,
    /// One read, one write.
    Copy,
    /// `a = b + s c`: two reads, one write.
    Triad,
    /// `a = a + s b`: two reads, one write of what was read.
    Update,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPoint {
    pub access: Access,
    /// With non-temporal stores, which do not read a line before they write it (CPU).
    #[serde(default)]
    pub streaming: bool,
    /// Bytes of all arrays together.
    pub working_set: u64,
    /// bytes/s; reads and writes both count, write-allocation does not.
    pub rate: Stat,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// `L1`, `L2`, `L3`, `cache`, `memory`.
    pub name: String,
    /// Largest working set that it holds; absent for the last.
    pub holds: Option<u64>,
    /// bytes/s, the best access.
    pub bytes_per_second: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StridePoint {
    pub stride_bytes: u64,
    /// Seconds of one access.
    pub seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// `dispatch`, `pass`, `submit`, `map back`, `pipeline`; on the CPU `call`, `fork and join`.
    pub kind: String,
    /// Seconds.
    pub time: Stat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Forward,
    Backward,
    /// A whole training step.
    Step,
    /// A whole prefill.
    Prefill,
    /// One token of generation.
    Decode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    Compute,
    Memory,
    /// Launching it costs more than doing it.
    Overhead,
}

/// One operator at one size: a point under the roof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dot {
    /// The operator's name, or the preset of a step.
    pub operator: String,
    /// Shape and variant, e.g. `1024x1024x1024 nt`.
    pub case: String,
    pub direction: Direction,
    pub flops: f64,
    pub bytes: f64,
    /// Which compute peak limits it (`ComputePeak::kind`).
    pub compute: String,
    /// Which level of memory it streams from (`Level::name`).
    pub level: String,
    /// Wall clock of one run.
    pub seconds: Stat,
    /// Device timestamps of one run, where they exist.
    pub device_seconds: Option<Stat>,
    /// The least time the ceilings allow.
    pub roof_seconds: f64,
    /// `roof_seconds` over the measured time (device time where it exists).
    pub share: f64,
    pub bound: Bound,
    /// Labels of the GPU kernels that ran.
    pub kernels: Vec<String>,
    /// Tokens/s, for steps and generation.
    pub tokens_per_second: Option<f64>,
}

impl Dot {
    /// FLOPs per byte.
    pub fn intensity(&self) -> f64 {
        self.flops / self.bytes.max(1.0)
    }
    /// What identifies it between reports.
    pub fn id(&self) -> (&str, &str, Direction) {
        (&self.operator, &self.case, self.direction)
    }
    /// Seconds by the better clock.
    pub fn time(&self) -> Stat {
        self.device_seconds.unwrap_or(self.seconds)
    }
}

/// From which size on a GPU is faster than the CPU with all its threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Crossover {
    /// Operator, or `training step`.
    pub operator: String,
    pub direction: Direction,
    pub gpu: String,
    /// FLOPs of the smallest size from which on the GPU wins at every larger one measured; absent: it never did.
    pub flops: Option<f64>,
    /// That size in words.
    pub case: Option<String>,
}

impl Stat {
    /// Of samples in the order they were taken. Panics without samples.
    pub fn of(samples: &[f64]) -> Stat {
        let third = samples.len().div_ceil(3);
        let drift = median(&samples[samples.len() - third..]) / median(&samples[..third]).max(f64::MIN_POSITIVE);
        let best = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let (low, high) = (quantile(samples, 0.25), quantile(samples, 0.75));
        Stat { median: median(samples), low, high, best, samples: samples.len(), drift }
    }

    /// Seconds turned into a rate of `amount` per second (so the quartiles change places).
    pub fn rate(self, amount: f64) -> Stat {
        Stat {
            median: amount / self.median,
            low: amount / self.high,
            high: amount / self.low,
            best: amount / self.best,
            ..self
        }
    }

    /// Distance of the quartiles over the median.
    pub fn spread(&self) -> f64 {
        (self.high - self.low) / self.median
    }
}

fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// Linear interpolation between order statistics.
fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate_and_drift_compares_the_ends() {
        let s = Stat::of(&[1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
        assert_eq!((s.median, s.low, s.high, s.best, s.samples, s.drift), (2.0, 1.0, 3.0, 1.0, 9, 3.0));
        assert_eq!(Stat::of(&[4.0]), Stat { median: 4.0, low: 4.0, high: 4.0, best: 4.0, samples: 1, drift: 1.0 });
        let r = Stat::of(&[1.0, 2.0, 4.0]).rate(8.0);
        assert_eq!((r.median, r.low, r.high, r.best), (4.0, 8.0 / 3.0, 8.0 / 1.5, 8.0));
    }
}
