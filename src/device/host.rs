//! The machine around the devices: its CPU and operating system, for listings, manifests and bug reports.

use serde::Serialize;
use std::path::Path;

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

/// Bytes that can be allocated without swapping and within the limits of the container that the program runs in, where the system
/// tells (Linux).
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(spare_in_groups(Path::new("/sys/fs/cgroup"), &groups).map_or(free, |spare| spare.min(free)))
}

/// What the control group (version 2) that `groups` names, and those around it, leave of their limits; none where there is no limit.
fn spare_in_groups(root: &Path, groups: &str) -> Option<u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let number = |folder: &Path, name: &str| -> Option<u64> {
        std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
    };
    let spare = |folder: &Path| Some(number(folder, "memory.max")?.saturating_sub(number(folder, "memory.current")?));
    root.join(own).ancestors().take_while(|folder| folder.starts_with(root)).filter_map(spare).min()
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
    fn the_tightest_limit_of_the_groups_around_the_program_counts() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, max: &str, current: &str| {
            let folder = root.path().join(path);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("memory.max"), max).unwrap();
            std::fs::write(folder.join("memory.current"), current).unwrap();
        };
        group("a", "1000\n", "900\n");
        group("a/b", "max\n", "500\n");
        group("c", "max\n", "1\n");
        assert_eq!(spare_in_groups(root.path(), "1:memory:/x\n0::/a/b\n"), Some(100));
        assert_eq!(spare_in_groups(root.path(), "0::/c\n"), None);
        assert_eq!(spare_in_groups(root.path(), "0::/\n"), None);
        assert_eq!(spare_in_groups(root.path(), ""), None);
    }

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
