//! Which device a run uses: `--device auto|cpu|gpu|gpu:N|<part of a name>`.

use super::gpu::tiles::Choices;
use super::probe::{self, Measured, Memory, Workloads};
use super::{Device, gpu, roof};
use crate::{Error, Result};
use std::path::Path;

/// A device and, for the user, why it was chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    pub device: Device,
    pub reason: String,
    /// Its number in the list of GPUs.
    pub gpu: Option<usize>,
}

/// An adapter as far as choosing is concerned.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Adapter {
    pub name: String,
    pub backend: String,
    /// Discrete, virtual, integrated, other or software.
    pub kind: Kind,
    /// PCI vendor and device, 0 where unknown.
    pub vendor: u32,
    pub device: u32,
}

/// In order of preference, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Software,
    Other,
    Integrated,
    Virtual,
    Discrete,
}

impl Adapter {
    pub fn new(info: &wgpu::AdapterInfo) -> Self {
        let kind = match info.device_type {
            _ if gpu::adapter::is_software(info) => Kind::Software,
            wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
            wgpu::DeviceType::VirtualGpu => Kind::Virtual,
            wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
            _ => Kind::Other,
        };
        let (name, backend) = (info.name.clone(), info.backend.to_string());
        Adapter { name, backend, kind, vendor: info.vendor, device: info.device }
    }

    fn title(&self) -> String {
        format!("{} ({})", self.name, self.backend)
    }

    /// Backends on which the same GPU is reached best, best first.
    fn backend_rank(&self) -> usize {
        let known = ["metal", "vulkan", "dx12"];
        known.iter().position(|b| *b == self.backend).unwrap_or(known.len())
    }
}

/// For each adapter, the one that reaches the same GPU through a better backend, if there is one. Of several equal cards the k-th
/// of one backend is taken for the k-th of the other.
pub fn duplicates(adapters: &[Adapter]) -> Vec<Option<usize>> {
    let same = |a: &Adapter, b: &Adapter| {
        (a.vendor, a.device) == (b.vendor, b.device) && (a.vendor != 0 || a.name.eq_ignore_ascii_case(&b.name))
    };
    let ordinal = |i: usize| {
        let own = &adapters[i];
        adapters[..i].iter().filter(|a| a.backend == own.backend && same(a, own)).count()
    };
    (0..adapters.len())
        .map(|i| {
            let better = |j: &usize| {
                let (a, b) = (&adapters[i], &adapters[*j]);
                same(a, b) && b.backend_rank() < a.backend_rank() && ordinal(i) == ordinal(*j)
            };
            (0..adapters.len()).filter(better).min_by_key(|j| adapters[*j].backend_rank())
        })
        .collect()
}

/// What a `--device` value means on a machine with these adapters.
#[derive(Clone, Debug, PartialEq)]
pub enum Pick {
    Reference,
    Cpu(String),
    Gpu(usize, String),
    /// An integrated GPU: measure it against the CPU.
    Measure(usize),
}

/// Resolves `spec` without touching any device.
pub fn pick(spec: &str, adapters: &[Adapter]) -> Result<Pick> {
    let wanted = spec.trim().to_lowercase();
    let duplicate = duplicates(adapters);
    let best = (0..adapters.len())
        .filter(|i| duplicate[*i].is_none())
        // The first of equals, as the driver lists them.
        .max_by_key(|i| (adapters[*i].kind, std::cmp::Reverse(*i)));
    if let Some(number) = wanted.strip_prefix("gpu:") {
        return match number.parse::<usize>() {
            Ok(n) if n < adapters.len() => Ok(Pick::Gpu(n, named(&adapters[n]))),
            _ => Err(Error::Device(format!("--device {spec}: there is no such GPU; {}", listing(adapters)))),
        };
    }
    match (wanted.as_str(), best) {
        ("reference", _) => Ok(Pick::Reference),
        ("cpu", _) => Ok(Pick::Cpu("as asked".into())),
        ("auto", None) => Ok(Pick::Cpu("no GPU was found".into())),
        ("auto", Some(i)) => Ok(match adapters[i].kind {
            Kind::Software => {
                let name = &adapters[i].name;
                Pick::Cpu(format!("the only GPU is a software one, {name}, which the CPU kernels outrun"))
            }
            Kind::Discrete => Pick::Gpu(i, "a discrete GPU".into()),
            Kind::Virtual => Pick::Gpu(i, "the GPU of this virtual machine".into()),
            Kind::Integrated | Kind::Other => Pick::Measure(i),
        }),
        ("gpu", None) => Err(Error::Device(
            "--device gpu: no GPU was found; install its driver (Vulkan on Linux), or use --device cpu".into(),
        )),
        ("gpu", Some(i)) => Ok(Pick::Gpu(i, named(&adapters[i]))),
        ("", _) => Err(Error::Device(format!("--device is empty; {}", listing(adapters)))),
        (part, _) => by_name(spec, part, adapters, &duplicate),
    }
}

fn by_name(spec: &str, part: &str, adapters: &[Adapter], duplicate: &[Option<usize>]) -> Result<Pick> {
    let all: Vec<usize> = (0..adapters.len()).filter(|i| adapters[*i].title().to_lowercase().contains(part)).collect();
    // A whole name, and the best way to a GPU, win over other matches.
    let exact: Vec<usize> = all.iter().copied().filter(|i| adapters[*i].name.to_lowercase() == part).collect();
    let matches = if exact.is_empty() { all } else { exact };
    let distinct: Vec<usize> =
        matches.iter().copied().filter(|i| duplicate[*i].is_none_or(|d| !matches.contains(&d))).collect();
    match distinct.as_slice() {
        [one] => Ok(Pick::Gpu(*one, named(&adapters[*one]))),
        [] => Err(Error::Device(format!("--device {spec}: no device has this in its name; {}", listing(adapters)))),
        several => {
            let names: Vec<_> = several.iter().map(|i| format!("gpu:{i} {}", adapters[*i].title())).collect();
            Err(Error::Device(format!("--device {spec} could be {}; use one of the numbers", names.join(", or "))))
        }
    }
}

fn named(adapter: &Adapter) -> String {
    match adapter.kind {
        Kind::Software => "as asked; warning: this is a software GPU, much slower than --device cpu".into(),
        _ => "as asked".into(),
    }
}

fn listing(adapters: &[Adapter]) -> String {
    let gpus = adapters.iter().enumerate().map(|(i, a)| format!(", gpu:{i} {}", a.title()));
    format!("there are: auto, cpu{}", gpus.collect::<String>())
}

/// The adapters of this machine, ready to open.
pub fn adapters() -> Vec<(Adapter, wgpu::Adapter)> {
    gpu::Context::adapters().into_iter().map(|a| (Adapter::new(&a.get_info()), a)).collect()
}

/// Chooses and opens the device that `spec` asks for. A GPU used for the first time is measured with `workloads`, and so is the CPU
/// where the two compete; measurements are remembered.
pub fn choose(spec: &str, workloads: impl FnOnce() -> Result<Workloads>) -> Result<Choice> {
    choose_with(spec, gpu::Options::default(), workloads)
}

/// As `choose`, for training with steps of so many FLOPs: between an integrated GPU and the CPU, `auto` goes by where
/// `bench --roofline` found that the GPU pays off, if that was measured.
pub fn choose_for_step(spec: &str, flops: f64, workloads: impl FnOnce() -> Result<Workloads>) -> Result<Choice> {
    choose_between(spec, gpu::Options::default(), Some(flops), workloads)
}

pub fn choose_with(spec: &str, options: gpu::Options, workloads: impl FnOnce() -> Result<Workloads>) -> Result<Choice> {
    choose_between(spec, options, None, workloads)
}

fn choose_between(
    spec: &str,
    options: gpu::Options,
    step_flops: Option<f64>,
    workloads: impl FnOnce() -> Result<Workloads>,
) -> Result<Choice> {
    let cpu = |why: String| Choice { device: Device::Cpu, reason: format!("cpu ({why})"), gpu: None };
    if spec.trim().eq_ignore_ascii_case("cpu") {
        return Ok(cpu("as asked".into()));
    }
    let automatic = spec.trim().eq_ignore_ascii_case("auto");
    if automatic && cfg!(target_os = "linux") && !has_gpu_file(Path::new("/dev")) {
        return Ok(cpu("/dev has no GPU; --device gpu asks Vulkan all the same".into()));
    }
    let adapters = adapters();
    let summary: Vec<Adapter> = adapters.iter().map(|(a, _)| a.clone()).collect();
    let (index, why) = match pick(spec, &summary)? {
        Pick::Reference => {
            return Ok(Choice { device: Device::Reference, reason: "reference (as asked)".into(), gpu: None });
        }
        Pick::Cpu(why) => return Ok(cpu(why)),
        Pick::Gpu(index, why) => (index, Some(why)),
        Pick::Measure(index) => (index, None),
    };
    let (mut why, mut slower) = (why, None);
    if why.is_none()
        && let Some(flops) = step_flops
        && let Some(wins) = known_winner(&probe::gpu_key(&adapters[index].1.get_info()), flops)
    {
        let told = format!("bench --roofline: for steps of {:.2} GFLOP", flops / 1e9);
        match wins {
            true => why = Some(format!("an integrated GPU, faster than the CPU by {told}")),
            false => slower = Some(format!("faster than {} by {told}", summary[index].title())),
        }
    }
    if let Some(why) = slower {
        return Ok(cpu(why));
    }
    let opened = open(&adapters[index].1, options, why.is_none(), workloads);
    let name = summary[index].title();
    let (context, compared, warning) = match opened {
        Ok(opened) => opened,
        // Nobody asked for this GPU: the CPU can always run.
        Err(e) if automatic => return Ok(cpu(format!("{name} cannot be used: {e}"))),
        Err(e) => return Err(e),
    };
    let warning = warning.map_or(String::new(), |w| format!("; {w}"));
    let gpu = |why: &str| Choice {
        device: Device::Gpu(context),
        reason: format!("{name} ({why}{warning})"),
        gpu: Some(index),
    };
    Ok(match (why, compared) {
        (Some(why), _) => gpu(&why),
        (None, None) => gpu("the only measurement is of the GPU"),
        (None, Some((g, c))) if prefer_gpu(&g, &c) => gpu(&format!("an integrated GPU: {}", comparison(&g, &c))),
        (None, Some((g, c))) => cpu(format!("faster than {name}: {}{warning}", comparison(&g, &c))),
    })
}

/// Whether a folder like Linux's /dev has a file through which a driver reaches a GPU: those of the kernel's graphics drivers, of NVIDIA's
/// own, of WSL, and of phones' and boards' chips. Without one Vulkan has software GPUs at most, which `auto` does not take, and whose
/// compilers cost a small run more memory than the model.
fn has_gpu_file(dev: &Path) -> bool {
    const BEGINNINGS: [&str; 8] = ["nvidia", "dxg", "kfd", "mali", "kgsl", "nvhost", "nvgpu", "pvr"];
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    !names(&dev.join("dri")).is_empty() || names(dev).iter().any(|name| BEGINNINGS.iter().any(|b| name.starts_with(b)))
}

/// Whether a GPU was found faster than the CPU for training steps of so many FLOPs; none where that was not measured.
fn known_winner(gpu_key: &str, flops: f64) -> Option<bool> {
    roof::remembered(gpu_key)?.step_crossover?.gpu_wins(flops)
}

fn prefer_gpu(gpu: &Measured, cpu: &Measured) -> bool {
    gpu.step_seconds < cpu.step_seconds
}

fn comparison(gpu: &Measured, cpu: &Measured) -> String {
    let (g, c) = (gpu.step_seconds * 1e3, cpu.step_seconds * 1e3);
    format!("{g:.2} ms for a test step, {c:.2} ms on the CPU")
}

type Opened = (std::sync::Arc<gpu::Context>, Option<(Measured, Measured)>, Option<String>);

/// Opens an adapter with the rates measured on it, now or earlier; with `compare`, measures the CPU too. Also gives a warning.
fn open(
    adapter: &wgpu::Adapter,
    mut options: gpu::Options,
    compare: bool,
    workloads: impl FnOnce() -> Result<Workloads>,
) -> Result<Opened> {
    let info = adapter.get_info();
    let (tuned, not_tuned) = tuned(adapter, &options);
    options.choices = tuned;
    // Guesses do for a software GPU, which has no watchdog, and for checked shaders, which are not in a hurry.
    if (gpu::adapter::is_software(&info) || options.checked) && !compare {
        return Ok((gpu::Context::open(adapter, options)?, None, not_tuned));
    }
    let mut memory = Memory::open();
    let (gpu_key, cpu_key) = (probe::gpu_key(&info), probe::cpu_key(&super::host::cpu_model()));
    let (mut on_gpu, mut on_cpu) = (memory.get(&gpu_key), memory.get(&cpu_key));
    if on_gpu.is_none() || (compare && on_cpu.is_none()) {
        let workloads = workloads()?;
        if on_gpu.is_none() {
            // What is remembered holds for the device as it is used by default.
            let context = gpu::Context::open(adapter, gpu::Options::default())?;
            match probe::measure(&Device::Gpu(context), &workloads) {
                Ok(measured) => {
                    memory.put(&gpu_key, measured);
                    on_gpu = Some(measured);
                }
                Err(e) if compare => return Err(e),
                // Asked for by name: guesses will do, and the work itself may run.
                Err(e) => memory.warning = Some(format!("its speed could not be measured: {e}")),
            }
        }
        if compare && on_cpu.is_none() {
            let measured = probe::measure(&Device::Cpu, &workloads)?;
            memory.put(&cpu_key, measured);
            on_cpu = Some(measured);
        }
    }
    options.rates = on_gpu.map(|m| m.cautious_rates());
    let context = gpu::Context::open(adapter, options)?;
    Ok((context, on_gpu.zip(on_cpu.filter(|_| compare)), memory.warning.or(not_tuned)))
}

/// The forms of kernels to open an adapter with: those asked for, else those that the tuner found; and a warning.
pub fn tuned(adapter: &wgpu::Adapter, options: &gpu::Options) -> (Option<Choices>, Option<String>) {
    if options.choices.is_some() {
        return (options.choices, None);
    }
    let mut memory = Memory::tuned();
    let choices = memory.get(&probe::gpu_key(&adapter.get_info()), &gpu::adapter::caps(adapter, options));
    (choices, memory.warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, backend: &str, kind: Kind, device: u32) -> Adapter {
        Adapter { name: name.into(), backend: backend.into(), kind, vendor: 0x10de, device }
    }

    #[test]
    fn a_gpu_has_a_file() {
        let dev = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::write(dev.path().join(name), "").unwrap();
        ["null", "nvme0n1", "nvram", "kvm", "dsp"].into_iter().for_each(file);
        std::fs::create_dir(dev.path().join("dri")).unwrap();
        assert!(!has_gpu_file(dev.path()) && !has_gpu_file(&dev.path().join("none")));
        for name in ["dri/renderD128", "nvidia0", "nvidiactl", "dxg", "mali0", "kgsl-3d0"] {
            file(name);
            assert!(has_gpu_file(dev.path()), "{name}");
            std::fs::remove_file(dev.path().join(name)).unwrap();
        }
    }

    fn laptop() -> Vec<Adapter> {
        vec![
            adapter("Intel(R) Iris(R) Xe Graphics", "vulkan", Kind::Integrated, 1),
            adapter("NVIDIA GeForce RTX 4070 Laptop GPU", "dx12", Kind::Discrete, 2),
            adapter("llvmpipe (LLVM 15.0.6, 256 bits)", "vulkan", Kind::Software, 3),
            adapter("NVIDIA GeForce RTX 4070 Laptop GPU", "vulkan", Kind::Discrete, 2),
        ]
    }

    fn gpu(spec: &str, adapters: &[Adapter]) -> usize {
        match pick(spec, adapters) {
            Ok(Pick::Gpu(i, _)) => i,
            other => panic!("{spec}: {other:?}"),
        }
    }

    fn refused(spec: &str, adapters: &[Adapter]) -> String {
        let error = pick(spec, adapters).expect_err(spec);
        assert_eq!(error.exit_code(), 5);
        error.to_string()
    }

    #[test]
    fn auto_takes_a_discrete_gpu_over_an_integrated_one_through_its_best_backend() {
        assert_eq!(gpu("auto", &laptop()), 3);
        assert_eq!(gpu(" AUTO ", &laptop()), 3);
        assert_eq!(gpu("gpu", &laptop()), 3);
        assert_eq!(duplicates(&laptop()), [None, Some(3), None, None]);
    }

    #[test]
    fn auto_measures_an_integrated_gpu_and_never_takes_a_software_one() {
        assert_eq!(pick("auto", &laptop()[..1]).unwrap(), Pick::Measure(0));
        assert!(matches!(pick("auto", &laptop()[2..3]).unwrap(), Pick::Cpu(why) if why.contains("llvmpipe")));
        assert!(matches!(pick("auto", &[]).unwrap(), Pick::Cpu(_)));
    }

    #[test]
    fn a_software_gpu_is_used_when_asked_for_with_a_warning() {
        for spec in ["gpu", "gpu:0", "llvmpipe"] {
            let Ok(Pick::Gpu(0, why)) = pick(spec, &laptop()[2..3]) else { panic!("{spec}") };
            assert!(why.contains("warning"), "{spec}: {why}");
        }
    }

    #[test]
    fn a_number_or_part_of_a_name_is_found_in_any_case() {
        assert_eq!(gpu("gpu:1", &laptop()), 1);
        assert_eq!(gpu("RTX 4070", &laptop()), 3);
        assert_eq!(gpu("iris", &laptop()), 0);
        assert_eq!(gpu("dx12", &laptop()), 1);
        assert_eq!(pick("reference", &[]).unwrap(), Pick::Reference);
    }

    #[test]
    fn a_number_out_of_range_and_an_unknown_name_list_what_exists() {
        for spec in ["gpu:4", "gpu:x", "gpu:", "gpu:-1", "voodoo", ""] {
            let message = refused(spec, &laptop());
            assert!(message.contains("gpu:0 Intel") && message.contains("cpu"), "{message}");
        }
        assert!(refused("gpu", &[]).contains("--device cpu"));
        assert!(refused("gpu:0", &[]).contains("auto, cpu"));
    }

    #[test]
    fn a_name_that_fits_several_gpus_is_refused_with_their_numbers() {
        let two =
            [adapter("RTX 3090", "vulkan", Kind::Discrete, 7), adapter("RTX 3090 Ti", "vulkan", Kind::Discrete, 8)];
        let message = refused("rtx", &two);
        assert!(message.contains("gpu:0") && message.contains("gpu:1"), "{message}");
        // The whole name of one is not ambiguous.
        assert_eq!(gpu("rtx 3090", &two), 0);
    }

    #[test]
    fn between_an_integrated_gpu_and_the_cpu_the_shorter_step_wins() {
        let took = |step_seconds| Measured { flops_per_second: 1e9, bytes_per_second: 1e9, step_seconds };
        assert!(prefer_gpu(&took(0.001), &took(0.002)));
        assert!(!prefer_gpu(&took(0.002), &took(0.001)) && !prefer_gpu(&took(0.001), &took(0.001)));
        assert_eq!(comparison(&took(0.001), &took(0.0025)), "1.00 ms for a test step, 2.50 ms on the CPU");
    }

    #[test]
    fn equal_cards_are_not_taken_for_one() {
        let card = |backend| adapter("RTX 3090", backend, Kind::Discrete, 7);
        let cards = [card("vulkan"), card("vulkan"), card("dx12"), card("dx12")];
        assert_eq!(duplicates(&cards), [None, None, Some(0), Some(1)]);
        assert!(refused("3090", &cards).contains("gpu:1"));
        assert_eq!(gpu("auto", &cards), 0);
    }
}
