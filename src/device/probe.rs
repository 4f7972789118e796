//! A short measurement of a device: the rates that cut work for the watchdog, and how long a training-like step takes, which
//! decides between an integrated GPU and the CPU beside it. Results are remembered per adapter, driver and program version.

use super::{Cost, Device, Store, Work};
use crate::tensor::{HostTensor, TensorType};
use crate::{Error, Result, cache};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is timed. Each has a small output called `result`, which is read back after every run: that is how a training step ends,
/// too.
#[derive(Clone, Debug)]
pub struct Workloads {
    /// Bound by arithmetic.
    pub compute: Work,
    /// Bound by memory traffic.
    pub memory: Work,
    /// Forward and backward of a small network: what a model does.
    pub step: Work,
}

/// What was measured on one device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub flops_per_second: f64,
    pub bytes_per_second: f64,
    pub step_seconds: f64,
}

/// A kernel may reach this much less of the rates than the workloads do, and must still stay inside the watchdog's budget.
const HEADROOM: f64 = 4.0;

impl Measured {
    /// `gpu::Options::rates`: FLOP/s and bytes/s to plan with.
    pub fn cautious_rates(&self) -> (f64, f64) {
        (self.flops_per_second / HEADROOM, self.bytes_per_second / HEADROOM)
    }
}

const RESULT: &str = "result";

/// Longest time spent on one workload after its first runs.
const TIME_PER_WORKLOAD: Duration = Duration::from_millis(150);
const MOST_RUNS: usize = 20;

/// Times the workloads on a device; about half a second after compilation.
pub fn measure(device: &Device, workloads: &Workloads) -> Result<Measured> {
    let (compute_seconds, compute) = time(device, &workloads.compute)?;
    let (memory_seconds, memory) = time(device, &workloads.memory)?;
    let (step_seconds, _) = time(device, &workloads.step)?;
    Ok(Measured {
        flops_per_second: compute.flops / compute_seconds,
        bytes_per_second: memory.bytes() / memory_seconds,
        step_seconds,
    })
}

/// Median seconds of a run, and its cost.
fn time(device: &Device, work: &Work) -> Result<(f64, Cost)> {
    let mut cost = Cost::default();
    work.calls.iter().for_each(|c| cost += c.cost);
    let mut executable = device.prepare(work.clone(), &mut Store::new(device))?;
    for (name, place) in &work.inputs {
        executable.write_input(name, &ramp(&place.ty))?;
    }
    // The first runs compile, allocate and measure for the watchdog.
    for _ in 0..3 {
        executable.run()?;
        executable.read_output(RESULT)?;
    }
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || (times.len() < MOST_RUNS && begin.elapsed() < TIME_PER_WORKLOAD) {
        let start = Instant::now();
        executable.run()?;
        executable.read_output(RESULT)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2].max(1e-9), cost))
}

/// Values of ordinary size: subnormals and overflows would be slow on some devices only.
fn ramp(ty: &TensorType) -> HostTensor {
    let values = (0..ty.elements()).map(|i| ((i * 37 % 101) as f64 - 50.0) / 101.0).collect();
    crate::tensor::RefTensor::new(&ty.shape, values).to_host(ty.dtype)
}

/// Measurements of earlier runs: a JSON file in the cache folder.
#[derive(Debug)]
pub struct Memory {
    path: Option<PathBuf>,
    entries: BTreeMap<String, Measured>,
    /// Why earlier measurements are not used.
    pub warning: Option<String>,
}

impl Memory {
    pub fn open() -> Self {
        Self::at(cache::folder().map(|f| f.join("devices.json")))
    }

    pub fn at(path: Option<PathBuf>) -> Self {
        let (mut entries, mut warning) = (BTreeMap::new(), None);
        if let Some(path) = &path {
            match std::fs::read(path) {
                Ok(text) => match serde_json::from_slice(&text) {
                    Ok(known) => entries = known,
                    Err(e) => warning = Some(format!("{} is damaged ({e}) and is built again", path.display())),
                },
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => warning = Some(format!("{} cannot be read: {e}", path.display())),
            }
        }
        Memory { path, entries, warning }
    }

    pub fn get(&self, key: &str) -> Option<Measured> {
        let sound = |m: &Measured| {
            [m.flops_per_second, m.bytes_per_second, m.step_seconds].iter().all(|x| x.is_finite() && *x > 0.0)
        };
        self.entries.get(key).copied().filter(sound)
    }

    /// Remembers a measurement; a file that cannot be written is only a warning.
    pub fn put(&mut self, key: &str, measured: Measured) {
        self.entries.insert(key.into(), measured);
        let Some(path) = &self.path else { return };
        let saved = serde_json::to_vec_pretty(&self.entries)
            .map_err(|e| Error::Failed(e.to_string()))
            .and_then(|text| cache::replace(path, &text));
        if let Err(e) = saved {
            self.warning = Some(format!(
                "the measurement could not be kept: {e} (set LYNX_CACHE to a folder that can be written)"
            ));
        }
    }
}

/// What a measurement of a GPU belongs to.
pub fn gpu_key(info: &wgpu::AdapterInfo) -> String {
    let (name, backend, driver, details) = (&info.name, info.backend, &info.driver, &info.driver_info);
    format!("{name} | {backend} | {driver} {details} | lynx-gpu {}", env!("CARGO_PKG_VERSION"))
}

/// What a measurement of the CPU belongs to.
pub fn cpu_key(model: &str) -> String {
    let (simd, threads) = (kernels_cpu::simd::level().name(), kernels_cpu::threads::threads());
    format!("{model} | {simd} | {threads} threads | lynx-gpu {}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Measured = Measured { flops_per_second: 1e9, bytes_per_second: 2e9, step_seconds: 0.25 };

    #[test]
    fn measurements_are_remembered_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = Some(dir.path().join("sub/devices.json"));
        let mut memory = Memory::at(path.clone());
        assert_eq!(memory.get("a"), None);
        memory.put("a", SAMPLE);
        assert_eq!(memory.warning, None);
        let again = Memory::at(path);
        assert_eq!((again.get("a"), again.get("b"), again.warning), (Some(SAMPLE), None, None));
    }

    #[test]
    fn a_corrupt_file_is_reported_and_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("devices.json");
        for damage in ["{\"a\": {\"flops", "[1, 2]", "{\"a\": {\"flops_per_second\": \"fast\"}}"] {
            std::fs::write(&path, damage).unwrap();
            let mut memory = Memory::at(Some(path.clone()));
            assert!(memory.warning.is_some() && memory.get("a").is_none());
            memory.put("a", SAMPLE);
            assert_eq!(Memory::at(Some(path.clone())).get("a"), Some(SAMPLE));
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_measured_again() {
        let mut memory = Memory::at(None);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            memory.put("a", Measured { step_seconds: bad, ..SAMPLE });
            assert_eq!(memory.get("a"), None);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_only_a_warning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut memory = Memory::at(Some(file.path().join("devices.json")));
        memory.put("a", SAMPLE);
        assert_eq!(memory.get("a"), Some(SAMPLE));
        assert!(memory.warning.unwrap().contains("LYNX_CACHE"));
    }
}
