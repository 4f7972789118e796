//! Every operator, every case: cpu and gpu against the f64 reference, forward and gradient; every gradient against central
//! differences. `LYNX_REQUIRE_GPU=1` makes a missing Vulkan device a failure (continuous integration sets it);
//! `LYNX_OP=name` keeps to the operators whose name contains it.

use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::tiles::{Change, Class};
use lynx_gpu::device::gpu::{Context, Features, Options, adapter};
use lynx_gpu::ops::{Spec, check, registry};
use std::collections::HashSet;
use std::sync::Arc;

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

fn gpu(options: Options) -> Option<Device> {
    let adapter = Context::adapters().into_iter().next();
    match adapter {
        Some(a) => Some(Device::Gpu(Context::open(&a, options).expect("an adapter that is listed opens"))),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => {
            panic!("LYNX_REQUIRE_GPU is set and no GPU adapter was found")
        }
        None => {
            say!("SKIPPED: no GPU adapter (install mesa-vulkan-drivers for a software one)");
            None
        }
    }
}

fn chosen() -> Vec<Spec> {
    let only = std::env::var("LYNX_OP").unwrap_or_default();
    registry().into_iter().filter(|s| s.name.contains(&only)).collect()
}

/// Compares every case on `devices`; prints the counts; fails on the first list of differences.
fn suite(title: &str, devices: &[Device]) {
    let (mut cases, mut gradients, mut compared, mut split, mut fallback) = (0, 0, 0, 0, 0);
    let mut failures = Vec::new();
    let specs = chosen();
    for spec in &specs {
        for case in (spec.cases)() {
            let judged =
                check::judge(spec.name, &case).unwrap_or_else(|e| panic!("{} [{}]: {e}", spec.name, case.label));
            cases += 1;
            gradients += judged.gradients();
            for device in devices {
                let p = judged.compare(device);
                compared += 1;
                split += p.split;
                fallback += p.fallback;
                if !p.ok {
                    let (op, case, worst) = (p.operator, p.case, p.worst);
                    failures.push(format!("{op} [{case}] on {}: {worst:.2}x tolerance: {}", p.device, p.message));
                }
            }
        }
    }
    let (operators, devices) = (specs.len(), devices.len());
    say!(
        "{title}: {operators} operators x {cases} cases x {devices} devices = {compared} comparisons, {gradients} gradients; \
         {split} calls split, {fallback} on the CPU twin"
    );
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_operator_on_the_cpu_agrees_with_the_reference() {
    suite("cpu", &[Device::Cpu]);
}

#[test]
fn every_operator_on_the_gpu_agrees_with_the_reference() {
    if let Some(gpu) = gpu(Options { checked: true, ..Options::default() }) {
        suite("gpu", &[gpu]);
    }
}

#[test]
fn every_operator_agrees_with_bindings_limited_to_1_mib() {
    if let Some(gpu) = gpu(Options { checked: true, max_binding: Some(1 << 20), ..Options::default() }) {
        suite("gpu, 1 MiB bindings", &[gpu]);
    }
}

#[test]
fn every_operator_agrees_with_the_kernels_chosen_for_hardware() {
    if let Some(gpu) = gpu(Options { checked: true, as_hardware: true, ..Options::default() }) {
        suite("gpu, as hardware", &[gpu]);
    }
}

#[test]
fn every_operator_agrees_with_each_optional_feature_switched_off() {
    let all = Options::default().features;
    let variants = [
        ("no subgroups", Features { subgroups: false, ..all }),
        ("no f16", Features { f16: false, ..all }),
        ("no packed dot", Features { packed_dot: false, ..all }),
        ("no features", Features::NONE),
    ];
    for (name, features) in variants {
        if let Some(gpu) = gpu(Options { checked: true, features, ..Options::default() }) {
            suite(&format!("gpu, {name}"), &[gpu]);
        }
    }
}

/// Each operator with every form of its kernels that the table or the tuner may give this device, from the row for hardware. What
/// another test or form runs with the same shaders and parameters is not run again.
#[test]
fn every_operator_agrees_with_each_form_of_its_kernels() {
    let Some(adapter) = Context::adapters().into_iter().next() else {
        gpu(Options::default());
        return;
    };
    let row = Class::Discrete.choices();
    let options = Options { checked: true, ..Options::default() };
    let known = [options, Options { as_hardware: true, ..options }].map(|o| adapter::caps(&adapter, &o));
    let forms: Vec<(Change, Arc<Context>)> = Change::all()
        .into_iter()
        .map(|change| (change, change.of(row)))
        .filter(|(_, choices)| *choices != row && choices.misfit(&known[0]).is_none())
        .map(|(change, choices)| {
            let options = Options { choices: Some(choices), ..options };
            (change, Context::open(&adapter, options).expect("an adapter that is listed opens"))
        })
        .collect();
    let (mut compared, mut failures) = (0, Vec::new());
    for spec in chosen() {
        let forms: Vec<_> = forms
            .iter()
            .filter(|(change, _)| change.family().operators().iter().any(|part| spec.name.contains(part)))
            .collect();
        for case in (spec.cases)().iter().filter(|_| !forms.is_empty()) {
            let judged =
                check::judge(spec.name, case).unwrap_or_else(|e| panic!("{} [{}]: {e}", spec.name, case.label));
            let mut seen = HashSet::from(known.map(|caps| judged.dispatches(&caps)));
            for (change, context) in &forms {
                if !seen.insert(judged.dispatches(context.caps())) {
                    continue;
                }
                let p = judged.compare(&Device::Gpu(context.clone()));
                compared += 1;
                if !p.ok {
                    failures.push(format!(
                        "{} [{}] {change:?}: {:.2}x tolerance: {}",
                        p.operator, p.case, p.worst, p.message
                    ));
                }
            }
        }
    }
    say!("gpu, forms of kernels: {} forms, {compared} comparisons that no other test makes", forms.len());
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_gradient_agrees_with_central_differences_in_f64() {
    let (mut checked, mut largest) = (0, 0.0f64);
    for spec in chosen() {
        for case in (spec.cases)() {
            if case.cotangents.is_empty() || case.inputs.iter().map(|s| s.ty.elements()).sum::<usize>() > 20_000 {
                continue;
            }
            largest = largest.max(check::gradient_check(spec.name, &case, 12).unwrap_or_else(|e| panic!("{e}")));
            checked += 1;
        }
    }
    say!("{checked} cases checked against central differences, largest relative error {largest:.1e}");
}
