//! The machine around the devices: its CPU and operating system, for listings, manifests and bug reports.

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cpu {
    pub model: String,
    /// Hardware threads this process may use.
    pub cores: usize,
    /// Threads that kernels use.
    pub threads: usize,
    /// Instruction set that `kernels-cpu` dispatches to.
    pub simd: &'static str,
}

pub fn cpu() -> Cpu {
    Cpu {
        model: cpu_model(),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
        threads: kernels_cpu::threads::threads(),
        simd: kernels_cpu::simd::level().name(),
    }
}

/// The name its maker gave the CPU, or the architecture where the system does not tell.
pub fn cpu_model() -> String {
    model_of_system().unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

#[cfg(target_os = "linux")]
fn model_of_system() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    field(&text, "model name", ':').or_else(|| field(&text, "Model", ':'))
}

#[cfg(target_os = "macos")]
fn model_of_system() -> Option<String> {
    let output = std::process::Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (!text.is_empty()).then_some(text)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn model_of_system() -> Option<String> {
    std::env::var("PROCESSOR_IDENTIFIER").ok()
}

/// Operating system, its version where it is told, and the architecture.
pub fn system() -> String {
    let name = std::fs::read_to_string("/etc/os-release").ok().and_then(|text| field(&text, "PRETTY_NAME", '='));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    let kernel = kernel.map_or(String::new(), |k| format!(" {}", k.trim()));
    let distribution = name.map_or(String::new(), |n| format!(", {n}"));
    format!("{}{kernel} {}{distribution}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The value of the first line `key <separator> value`, without quotes.
#[cfg_attr(not(any(unix, test)), allow(dead_code))]
fn field(text: &str, key: &str, separator: char) -> Option<String> {
    let value = |line: &str| {
        let (k, v) = line.split_once(separator)?;
        (k.trim() == key).then(|| v.trim().trim_matches('"').to_string())
    };
    text.lines().find_map(value).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\n";
        assert_eq!(field(text, "model name", ':').as_deref(), Some("AMD EPYC 9R14"));
        assert_eq!(
            field("NAME=\"Debian\"\nPRETTY_NAME=\"Debian 12\"", "PRETTY_NAME", '=').as_deref(),
            Some("Debian 12")
        );
        assert_eq!(field(text, "name", ':'), None);
    }

    #[test]
    fn the_cpu_has_a_name_cores_and_threads() {
        let cpu = cpu();
        assert!(!cpu.model.is_empty() && cpu.cores > 0 && cpu.threads > 0 && !cpu.simd.is_empty());
    }
}
