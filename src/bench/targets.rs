//! Which devices a measurement covers.

use crate::device::choose::{self, Kind, Pick};
use crate::device::{Device, gpu, host};
use crate::{Error, Result};
use kernels_cpu::threads;

/// A device at one setting.
#[derive(Clone, Debug)]
pub struct Target {
    /// `cpu1`, `cpu`, `gpu:N`
    pub id: String,
    pub device: Device,
    pub name: String,
    pub driver: String,
    /// Of the CPU's kernels.
    pub threads: Option<usize>,
    pub software: bool,
    pub key: String,
}

/// Puts the number of threads back when dropped.
pub struct Threads(usize);

impl Drop for Threads {
    fn drop(&mut self) {
        threads::set_threads(self.0);
    }
}

/// Threads that kernels use when nothing is said.
pub fn all_threads() -> usize {
    threads::threads()
}

impl Target {
    /// Makes the kernels use this target's threads until the result is dropped.
    pub fn set_threads(&self) -> Threads {
        let before = Threads(threads::threads());
        if let Some(n) = self.threads {
            threads::set_threads(n);
        }
        before
    }

    fn cpu(n: usize) -> Self {
        let cpu = host::cpu();
        let plural = if n == 1 { "thread" } else { "threads" };
        Target {
            id: if n == 1 { "cpu1".into() } else { "cpu".into() },
            device: Device::Cpu,
            name: format!("{}, {n} {plural}", cpu.model),
            driver: String::new(),
            threads: Some(n),
            software: false,
            key: format!("{} | {} | {n} {plural}", cpu.model, cpu.simd),
        }
    }

    fn gpu(index: usize, adapter: &wgpu::Adapter) -> Result<Self> {
        let context = gpu::Context::open(adapter, gpu::Options::default())?;
        let info = context.info().clone();
        let driver = format!("{} {}", info.driver, info.driver_info).trim().to_string();
        Ok(Target {
            id: format!("gpu:{index}"),
            name: context.name(),
            key: format!("{} | {} | {driver}", info.name, info.backend),
            driver,
            threads: None,
            software: context.caps().software,
            device: Device::Gpu(context),
        })
    }

    /// `cpu`, or what the GPU is reached through.
    pub fn backend(&self) -> String {
        match &self.device {
            Device::Gpu(context) => context.info().backend.to_string(),
            _ => "cpu".into(),
        }
    }

    /// The CPU with one thread and, where there are more, with all.
    fn cpus() -> Vec<Self> {
        match all_threads() {
            1 => vec![Target::cpu(1)],
            n => vec![Target::cpu(1), Target::cpu(n)],
        }
    }
}

/// The devices that `spec` names: `all` is every GPU that is not a software one and the CPU; `cpu` the CPU alone; anything else that
/// `--device` takes is that GPU, with the CPU beside it to compare with.
pub fn resolve(spec: &str) -> Result<Vec<Target>> {
    let wanted = spec.trim().to_lowercase();
    if wanted == "cpu" {
        return Ok(Target::cpus());
    }
    let adapters = choose::adapters();
    let summaries: Vec<choose::Adapter> = adapters.iter().map(|(a, _)| a.clone()).collect();
    let mut targets = Target::cpus();
    if wanted == "all" {
        let duplicates = choose::duplicates(&summaries);
        for (i, (summary, adapter)) in adapters.iter().enumerate() {
            if summary.kind != Kind::Software && duplicates[i].is_none() {
                targets.push(Target::gpu(i, adapter)?);
            }
        }
        return Ok(targets);
    }
    match choose::pick(&wanted, &summaries)? {
        Pick::Gpu(i, _) | Pick::Measure(i) => targets.push(Target::gpu(i, &adapters[i].1)?),
        Pick::Cpu(_) => {}
        Pick::Reference => {
            return Err(Error::Config("--device reference is not timed: it is the slow judge of the others".into()));
        }
    }
    Ok(targets)
}

impl Target {
    /// The devices that `--device` names: as `resolve`, without the CPU beside a GPU that is named, and with all threads only.
    pub fn exactly(spec: &str) -> Result<Vec<Target>> {
        resolve_exactly(spec)
    }
}

fn resolve_exactly(spec: &str) -> Result<Vec<Target>> {
    let all = matches!(spec.trim().to_lowercase().as_str(), "all" | "cpu");
    let mut targets = resolve(spec)?;
    let gpus = targets.iter().any(|t| t.threads.is_none());
    targets.retain(|t| t.threads.is_none() || ((all || !gpus) && t.threads == Some(all_threads())));
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_measured_with_one_thread_and_with_all() {
        let targets = resolve("cpu").unwrap();
        assert_eq!(targets[0].id, "cpu1");
        assert_eq!(targets.len(), if all_threads() > 1 { 2 } else { 1 });
        let mut keys: Vec<&String> = targets.iter().map(|t| &t.key).collect();
        keys.dedup();
        assert_eq!(keys.len(), targets.len());
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_lists_the_others() {
        let message = resolve("voodoo").unwrap_err().to_string();
        assert!(message.contains("voodoo") && message.contains("cpu"), "{message}");
        assert!(resolve("reference").is_err());
    }
}
