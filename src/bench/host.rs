//! What of the machine decides whether its numbers can be trusted: power, governor, load.

use super::report::Host;
use crate::device::host;
use std::path::Path;

pub fn describe() -> Host {
    let cpu = host::cpu();
    Host {
        cpu: cpu.model,
        cores: cpu.cores,
        simd: cpu.simd.into(),
        system: host::system(),
        memory_bytes: meminfo("MemTotal:"),
        power: power(Path::new("/sys/class/power_supply")),
        power_profile: profile(),
    }
}

fn meminfo(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Seconds that all threads of this program have had on the processors (Linux).
pub fn cpu_seconds() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let of = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    let nanoseconds = tasks.flatten().map(of).collect::<Option<Vec<u64>>>()?;
    Some(nanoseconds.iter().sum::<u64>() as f64 / 1e9)
}

/// Most memory that this program has had resident, in bytes (Linux).
pub fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|s| s.trim().to_string()).filter(|s| !s.is_empty())
}

/// "AC" or "battery", from the folder of Linux's power supplies; none where there is no battery to tell of.
fn power(supplies: &Path) -> Option<String> {
    let (mut mains, mut battery) = (None, None);
    for supply in std::fs::read_dir(supplies).ok()?.flatten() {
        match read(supply.path().join("type")).as_deref() {
            Some("Mains" | "USB") => {
                let online = read(supply.path().join("online")).as_deref() == Some("1");
                mains = Some(mains.unwrap_or(false) || online);
            }
            // Batteries of mice and pens say that they belong to a device.
            Some("Battery") if read(supply.path().join("scope")).as_deref() != Some("Device") => {
                let discharging = read(supply.path().join("status")).as_deref() == Some("Discharging");
                battery = Some(battery.unwrap_or(false) || discharging);
            }
            _ => {}
        }
    }
    match (mains, battery) {
        (Some(true), _) | (_, Some(false)) => Some("AC".into()),
        (_, Some(true)) => Some("battery".into()),
        _ => None,
    }
}

/// The firmware's power profile, else the frequency governor of the first core.
fn profile() -> Option<String> {
    read("/sys/firmware/acpi/platform_profile")
        .or_else(|| read("/sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference"))
        .or_else(|| read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
}

/// What about the machine makes measurements doubtful.
pub fn warnings(host: &Host) -> Vec<String> {
    let mut warnings = Vec::new();
    if host.power.as_deref() == Some("battery") {
        warnings.push("the machine runs on its battery, which slows most laptops: plug it in".into());
    }
    if let Some(profile) = host.power_profile.as_deref()
        && ["powersave", "power", "low-power", "quiet", "balance_power"].contains(&profile)
    {
        warnings.push(format!("the power profile is '{profile}': choose a performance profile for the full speed"));
    }
    if let Some(load) = load()
        && load > 0.5
    {
        warnings
            .push(format!("other programs are using the CPU (load average {load:.1}): close them and measure again"));
    }
    warnings
}

/// Load average of the last minute.
fn load() -> Option<f64> {
    read("/proc/loadavg")?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(root: &Path, name: &str, fields: &[(&str, &str)]) {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (field, value) in fields {
            std::fs::write(folder.join(field), format!("{value}\n")).unwrap();
        }
    }

    #[test]
    fn power_is_told_from_the_supplies_of_the_system() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(power(&dir.path().join("absent")), None);
        assert_eq!(power(dir.path()), None);
        supply(dir.path(), "mouse", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        assert_eq!(power(dir.path()), None);
        supply(dir.path(), "BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        assert_eq!(power(dir.path()).as_deref(), Some("battery"));
        supply(dir.path(), "AC", &[("type", "Mains"), ("online", "0")]);
        assert_eq!(power(dir.path()).as_deref(), Some("battery"));
        supply(dir.path(), "AC", &[("type", "Mains"), ("online", "1")]);
        assert_eq!(power(dir.path()).as_deref(), Some("AC"));
    }

    #[test]
    fn a_battery_and_a_slow_profile_are_warned_of() {
        let mut host = describe();
        (host.power, host.power_profile) = (Some("battery".into()), Some("powersave".into()));
        let text = warnings(&host).join("\n");
        assert!(text.contains("battery") && text.contains("powersave"), "{text}");
    }
}
