//! A short measurement of a device: the rates that cut work for the watchdog, and how long a training-like step takes, which
//! decides between an integrated GPU and the CPU beside it. Results are remembered per adapter, driver and program version.

use super::gpu::Caps;
use super::gpu::tiles::Choices;
use super::{Cost, Device, Store, Work};
use crate::tensor::{HostTensor, TensorType};
use crate::{Error, Result, cache};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::marker::PhantomData;
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
pub(super) fn ramp(ty: &TensorType) -> HostTensor {
    let values = (0..ty.elements()).map(|i| ((i * 37 % 101) as f64 - 50.0) / 101.0).collect();
    crate::tensor::RefTensor::new(&ty.shape, values).to_host(ty.dtype)
}

/// What earlier runs measured, of one kind: a JSON file in the cache folder, an entry for each device.
#[derive(Debug)]
pub struct Memory<T> {
    path: Option<PathBuf>,
    /// Entries of another form are kept as they are: another version of this program may know them.
    entries: BTreeMap<String, serde_json::Value>,
    /// Why earlier measurements are not used.
    pub warning: Option<String>,
    kind: PhantomData<T>,
}

impl Memory<Measured> {
    /// Speeds of devices.
    pub fn open() -> Self {
        Self::at(cache::folder().map(|f| f.join("devices.json")))
    }

    pub fn get(&self, key: &str) -> Option<Measured> {
        let sound = |m: &Measured| {
            [m.flops_per_second, m.bytes_per_second, m.step_seconds].iter().all(|x| x.is_finite() && *x > 0.0)
        };
        self.entry(key).filter(sound)
    }
}

impl Memory<Choices> {
    /// What the tuner found.
    pub fn tuned() -> Self {
        Self::at(cache::folder().map(|f| f.join("tuned.json")))
    }

    /// The forms of kernels found best on an adapter with these capabilities; forms that it cannot run are a warning.
    pub fn get(&mut self, key: &str, caps: &Caps) -> Option<Choices> {
        let choices = self.entry(key)?;
        let Some(why) = choices.misfit(caps) else { return Some(choices) };
        self.warning = Some(format!("what was tuned for this GPU is not used: {why}; run `lynx-gpu devices --tune`"));
        None
    }
}

impl<T: Serialize + DeserializeOwned> Memory<T> {
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
            for (key, value) in &entries {
                if let Err(e) = T::deserialize(value) {
                    warning = Some(format!("{}: the entry '{key}' is ignored ({e})", path.display()));
                }
            }
        }
        Memory { path, entries, warning, kind: PhantomData }
    }

    fn entry(&self, key: &str) -> Option<T> {
        T::deserialize(self.entries.get(key)?).ok()
    }

    /// Remembers a measurement; a file that cannot be written is only a warning.
    pub fn put(&mut self, key: &str, measured: T) {
        let Ok(value) = serde_json::to_value(measured) else { return };
        self.entries.insert(key.into(), value);
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
    use crate::device::gpu::tiles::{Class, MatmulForm};

    const SAMPLE: Measured = Measured { flops_per_second: 1e9, bytes_per_second: 2e9, step_seconds: 0.25 };

    #[test]
    fn measurements_are_remembered_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = Some(dir.path().join("sub/devices.json"));
        let mut memory = Memory::<Measured>::at(path.clone());
        assert_eq!(memory.get("a"), None);
        memory.put("a", SAMPLE);
        assert_eq!(memory.warning, None);
        let again = Memory::<Measured>::at(path);
        assert_eq!((again.get("a"), again.get("b"), again.warning), (Some(SAMPLE), None, None));
    }

    #[test]
    fn a_corrupt_file_is_reported_and_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("devices.json");
        for damage in ["{\"a\": {\"flops", "[1, 2]", "{\"a\": {\"flops_per_second\": \"fast\"}}"] {
            std::fs::write(&path, damage).unwrap();
            let mut memory = Memory::<Measured>::at(Some(path.clone()));
            assert!(memory.warning.is_some() && memory.get("a").is_none());
            memory.put("a", SAMPLE);
            assert_eq!(Memory::<Measured>::at(Some(path.clone())).get("a"), Some(SAMPLE));
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_measured_again() {
        let mut memory = Memory::<Measured>::at(None);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            memory.put("a", Measured { step_seconds: bad, ..SAMPLE });
            assert_eq!(memory.get("a"), None);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_only_a_warning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut memory = Memory::<Measured>::at(Some(file.path().join("devices.json")));
        memory.put("a", SAMPLE);
        assert_eq!(memory.get("a"), Some(SAMPLE));
        assert!(memory.warning.unwrap().contains("LYNX_CACHE"));
    }

    #[test]
    fn tuned_forms_that_are_foreign_or_do_not_fit_are_ignored_with_a_warning_and_others_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tuned.json");
        let row = Class::Unknown.choices();
        let mut memory = Memory::<Choices>::at(Some(path.clone()));
        memory.put("sound", row);
        memory.put("too much", Choices { matmul: MatmulForm::Subgroup, ..row });
        let mut entries: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        entries["foreign"] = serde_json::json!({ "matmul": "of_tomorrow" });
        std::fs::write(&path, entries.to_string()).unwrap();
        let mut memory = Memory::<Choices>::at(Some(path.clone()));
        assert!(memory.warning.take().unwrap().contains("'foreign' is ignored"));
        assert_eq!(memory.get("sound", &Caps::PLAIN), Some(row));
        assert_eq!((memory.get("foreign", &Caps::PLAIN), memory.warning.take()), (None, None));
        assert_eq!(memory.get("too much", &Caps::PLAIN), None);
        assert!(memory.warning.take().unwrap().contains("--tune"));
        memory.put("new", row);
        assert!(std::fs::read_to_string(&path).unwrap().contains("of_tomorrow"), "foreign entries are kept");
        std::fs::write(&path, "{ damaged").unwrap();
        let mut memory = Memory::<Choices>::at(Some(path));
        assert!(memory.get("sound", &Caps::PLAIN).is_none() && memory.warning.unwrap().contains("damaged"));
    }
}
