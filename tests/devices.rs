//! Choosing a device, losing one, and running out of room on one. The tests that need a GPU run on any, software ones too.

use lynx_gpu::Error;
use lynx_gpu::device::gpu::tiles::{Choices, Family};
use lynx_gpu::device::gpu::{Context, Options, tune};
use lynx_gpu::device::{Device, Executable, Store, probe};
use lynx_gpu::graph::{Graph, Plan, Role};
use lynx_gpu::ops::workloads::workloads;
use lynx_gpu::ops::{check, registry};
use lynx_gpu::tensor::{HostTensor, TensorType};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn open(options: Options) -> Option<Arc<Context>> {
    match Context::adapters().first() {
        Some(a) => Some(Context::open(a, options).expect("an adapter that is listed opens")),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => {
            panic!("LYNX_REQUIRE_GPU is set and no GPU adapter was found")
        }
        None => {
            eprintln!("SKIPPED: no GPU adapter (install mesa-vulkan-drivers for a software one)");
            None
        }
    }
}

/// Runs the program with a cache folder of its own.
fn lynx(arguments: &[&str], cache: &std::path::Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lynx-gpu"))
        .args(arguments)
        .env("LYNX_CACHE", cache)
        .output()
        .expect("the program was built")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Gradient descent on `sum (x * w - t)^2`, with `w` a variable.
fn descent(n: usize) -> Plan {
    let mut g = Graph::new();
    let ty = TensorType::f32(&[n]);
    let (x, t) = (g.input("x", ty.clone()), g.input("t", ty.clone()));
    let w = g.variable("w", Role::Parameter, ty).unwrap();
    let y = g.mul(x, w).unwrap();
    let error = g.sub(y, t).unwrap();
    let square = g.mul(error, error).unwrap();
    let loss = g.sum_all(square).unwrap();
    let gradient = g.gradients(loss, &[w]).unwrap()[0];
    let change = g.scale(gradient, 0.1).unwrap();
    let new = g.sub(w, change).unwrap();
    g.update(w, new).unwrap();
    g.output("loss", loss);
    Plan::new(&g).unwrap()
}

fn feed(executable: &mut dyn Executable, n: usize) {
    executable.write_input("x", &HostTensor::f32(&[n], vec![1.0; n])).unwrap();
    executable.write_input("t", &HostTensor::f32(&[n], vec![0.5; n])).unwrap();
}

fn loss(executable: &mut dyn Executable) -> lynx_gpu::Result<f32> {
    executable.run()?;
    Ok(executable.read_output("loss")?.as_f32().unwrap()[0])
}

fn assert_lost<T: std::fmt::Debug>(what: &str, result: lynx_gpu::Result<T>) {
    match result {
        Err(Error::Device(m)) => assert!(m.contains("lost") && m.contains("--device cpu"), "{what}: {m}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn every_call_on_a_lost_gpu_is_an_error_that_says_so_and_what_to_do() {
    let Some(context) = open(Options::default()) else { return };
    let device = Device::Gpu(context.clone());
    let plan = descent(1000);
    let mut store = Store::new(&device);
    let mut executable = plan.prepare(&mut store).unwrap();
    feed(executable.as_mut(), 1000);
    loss(executable.as_mut()).unwrap();
    context.lose();
    assert_lost("run", executable.run());
    assert_lost("read", executable.read_output("loss"));
    assert_lost("write", executable.write_input("x", &HostTensor::f32(&[1000], vec![0.0; 1000])));
    assert_lost("store read", store.read("w"));
    assert_lost("store write", store.write("w", &HostTensor::f32(&[1000], vec![0.0; 1000])));
    assert_lost("prepare", plan.prepare(&mut store).map(|_| ()));
    assert_lost("prepare with new variables", plan.prepare(&mut Store::new(&device)).map(|_| ()));
    assert_lost("wait", context.wait());
    assert_lost("a second time", executable.run());
}

#[test]
fn a_gpu_lost_in_mid_run_ends_the_run_with_an_error() {
    let Some(context) = open(Options::default()) else { return };
    let mut store = Store::new(&Device::Gpu(context.clone()));
    let n = 1 << 16;
    let mut executable = descent(n).prepare(&mut store).unwrap();
    feed(executable.as_mut(), n);
    let started = Arc::new(AtomicBool::new(false));
    let losing = std::thread::spawn({
        let (context, started) = (context.clone(), started.clone());
        move || {
            while !started.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            context.lose();
        }
    });
    let mut steps = 0;
    let end = loop {
        match loss(executable.as_mut()) {
            Ok(l) => assert!(l.is_finite()),
            Err(e) => break e,
        }
        steps += 1;
        started.store(true, Ordering::Release);
        assert!(steps < 1_000_000, "the loss of the device went unnoticed");
    };
    losing.join().unwrap();
    assert_lost("the run", Err::<(), _>(end));
}

#[test]
fn a_lost_gpu_can_be_opened_again() {
    let Some(context) = open(Options::default()) else { return };
    context.lose();
    let again = open(Options::default()).unwrap();
    let mut store = Store::new(&Device::Gpu(again));
    let mut executable = descent(10).prepare(&mut store).unwrap();
    feed(executable.as_mut(), 10);
    assert_eq!(loss(executable.as_mut()).unwrap(), 2.5);
}

#[test]
fn a_tensor_beyond_the_buffer_limit_is_named_with_what_to_do() {
    let Some(context) = open(Options::default()) else { return };
    let most = context.caps().limits.max_buffer;
    let mut g = Graph::new();
    let rows = (most / 4 / 1024 + 1) as usize;
    let x = g.input("tokens", TensorType::f32(&[rows, 1024]));
    let y = g.sum_all(x).unwrap();
    g.output("y", y);
    let plan = Plan::new(&g).unwrap();
    let error = plan.prepare(&mut Store::new(&Device::Gpu(context))).map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    let message = error.to_string();
    for part in ["input 'tokens'", &format!("f32[{rows}, 1024]"), &most.to_string(), "batch", "--device cpu"] {
        assert!(message.contains(part), "{part} is missing: {message}");
    }
}

#[test]
fn plan_bytes_are_the_bytes_of_the_buffers_made_for_every_case() {
    let Some(context) = open(Options::default()) else { return };
    let gpu = Device::Gpu(context.clone());
    let mut compared = 0;
    for spec in registry() {
        for case in (spec.cases)().iter().take(4) {
            let plan = Plan::new(&check::build(case, true).unwrap().graph).unwrap();
            let before = context.created_bytes();
            let executable = plan.prepare(&mut Store::new(&gpu)).unwrap();
            let at = format!("{} [{}]", spec.name, case.label);
            assert_eq!(executable.allocated_bytes(), context.created_bytes() - before, "{at}: buffers made");
            assert_eq!(executable.allocated_bytes(), plan.memory_on(&gpu).total(), "{at}: planned on the gpu");
            let on_cpu = plan.prepare(&mut Store::new(&Device::Cpu)).unwrap();
            assert_eq!(on_cpu.allocated_bytes(), plan.memory_on(&Device::Cpu).total(), "{at}: planned on the cpu");
            compared += 1;
        }
    }
    println!("{compared} plans: bytes planned = bytes allocated");
}

#[test]
fn devices_lists_the_cpu_and_says_what_auto_takes() {
    let cache = tempfile::tempdir().unwrap();
    let output = lynx(&["devices", "--json"], cache.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout");
    assert!(listing["cpu"]["threads"].as_u64().unwrap() > 0);
    let adapters = Context::adapters();
    assert_eq!(listing["gpus"].as_array().unwrap().len(), adapters.len());
    for (gpu, adapter) in listing["gpus"].as_array().unwrap().iter().zip(&adapters) {
        assert_eq!(gpu["name"], adapter.get_info().name);
    }
    if listing["gpus"].as_array().unwrap().iter().all(|g| g["software"] == true) {
        assert_eq!(listing["auto"]["device"], "cpu");
    }
    let text = lynx(&["devices"], cache.path());
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("auto uses") && text.contains("cpu"), "{text}");
}

#[test]
fn a_device_name_that_matches_nothing_lists_what_exists_and_exits_with_5() {
    let cache = tempfile::tempdir().unwrap();
    for name in ["voodoo", "gpu:99", "gpu:one", ""] {
        let output = lynx(&["verify", "--device", name, "--op", "reshape"], cache.path());
        assert_eq!(output.status.code(), Some(5), "{name}: {}", stderr(&output));
        let message = stderr(&output);
        assert!(message.contains("there are: auto, cpu"), "{name}: {message}");
        for (i, adapter) in Context::adapters().iter().enumerate() {
            assert!(message.contains(&format!("gpu:{i} {}", adapter.get_info().name)), "{name}: {message}");
        }
    }
}

#[test]
fn an_operator_name_that_matches_nothing_lists_the_operators() {
    let cache = tempfile::tempdir().unwrap();
    let output = lynx(&["verify", "--device", "cpu", "--op", "no-such-operator"], cache.path());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("reshape"), "{}", stderr(&output));
}

#[test]
fn verify_checks_an_operator_on_every_device_and_writes_a_report() {
    let cache = tempfile::tempdir().unwrap();
    let report = cache.path().join("report.md");
    let arguments = ["verify", "--op", "reshape", "--json", "--report", report.to_str().unwrap()];
    let output = lynx(&arguments, cache.path());
    assert!(output.status.success(), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout");
    let devices = json["devices"].as_array().unwrap().len();
    assert_eq!(devices == 1, Context::adapters().is_empty());
    assert_eq!(json["comparisons"].as_u64().unwrap(), json["cases"].as_u64().unwrap() * devices as u64);
    let text = std::fs::read_to_string(report).unwrap();
    for part in ["- system: ", "- cpu: ", "- device: ", "| reshape |", "0 differences"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn a_report_that_cannot_be_written_names_the_path() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::write(cache.path().join("file"), "").unwrap();
    let path = cache.path().join("file/report.md");
    let output =
        lynx(&["verify", "--device", "cpu", "--op", "reshape", "--report", path.to_str().unwrap()], cache.path());
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert!(stderr(&output).contains("file/report.md"), "{}", stderr(&output));
}

#[test]
fn measuring_gives_rates_a_device_could_have() {
    let workloads = workloads().unwrap();
    let mut devices = vec![Device::Cpu];
    devices.extend(open(Options::default()).map(Device::Gpu));
    for device in devices {
        let m = probe::measure(&device, &workloads).unwrap();
        println!("{}: {m:?}", device.name());
        // Slower than any device this runs on, and faster than any one that could be in a laptop.
        for (rate, least, most) in [(m.flops_per_second, 1e7, 1e15), (m.bytes_per_second, 1e7, 1e14)] {
            assert!((least..most).contains(&rate), "{}: {m:?}", device.name());
        }
        let (flops, bytes) = m.cautious_rates();
        assert!(flops < m.flops_per_second && bytes < m.bytes_per_second && m.step_seconds > 0.0);
    }
}

#[test]
fn rates_given_when_opening_decide_how_work_is_cut() {
    let Some(fast) = open(Options { rates: Some((1e12, 1e12)), ..Options::default() }) else { return };
    let slow = open(Options { rates: Some((1e6, 1e6)), ..Options::default() }).unwrap();
    let n = 1 << 20;
    let submissions = |context: Arc<Context>| {
        let notes = descent(n).prepare(&mut Store::new(&Device::Gpu(context))).unwrap().notes();
        (notes.dispatches, notes.submissions)
    };
    let ((_, fast), (dispatches, slow)) = (submissions(fast), submissions(slow));
    assert_eq!(fast, 1, "a second's worth of time takes all");
    assert_eq!(slow, dispatches, "each dispatch is expected to take seconds: none may share a submission");
}

#[test]
fn pipelines_are_cached_on_disk_and_a_damaged_cache_does_no_harm() {
    let Some(context) = open(Options::default()) else { return };
    if !context.caps().features.pipeline_cache {
        eprintln!("SKIPPED: this backend has no pipeline cache");
        return;
    }
    drop(context);
    // The folder comes from the environment, so the test that uses it is run as a process of its own.
    const CHILD: &str = "LYNX_TEST_PIPELINES";
    if std::env::var_os(CHILD).is_some() {
        let context = open(Options::default()).unwrap();
        let mut store = Store::new(&Device::Gpu(context));
        let mut executable = descent(10).prepare(&mut store).unwrap();
        feed(executable.as_mut(), 10);
        assert_eq!(loss(executable.as_mut()).unwrap(), 2.5);
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let run = || {
        let name = "pipelines_are_cached_on_disk_and_a_damaged_cache_does_no_harm";
        let status = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact"])
            .env(CHILD, "1")
            .env("LYNX_CACHE", cache.path())
            .status()
            .unwrap();
        assert!(status.success());
    };
    let file = || {
        let mut files = std::fs::read_dir(cache.path().join("pipelines")).unwrap();
        let file = files.next().expect("a cache file was written").unwrap().path();
        assert!(files.next().is_none(), "one file only");
        file
    };
    run();
    let whole = std::fs::read(file()).unwrap();
    run();
    std::fs::write(file(), &whole[..whole.len() / 2]).unwrap();
    run();
    assert!(std::fs::read(file()).unwrap().len() > whole.len() / 2, "a damaged file is written anew");
}

#[test]
fn a_profile_has_a_time_for_every_kernel_and_leaves_the_run_as_it_was() {
    let Some(context) = open(Options::default()) else { return };
    let n = 1 << 18;
    let plan = descent(n);
    let device = Device::Gpu(context);
    let prepared = || {
        let mut executable = plan.prepare(&mut Store::new(&device)).unwrap();
        feed(executable.as_mut(), n);
        executable
    };
    let mut executable = prepared();
    let times = executable.profile(3).unwrap();
    let notes = executable.notes();
    assert_eq!(times.iter().map(|t| t.kernel.clone()).collect::<Vec<_>>(), notes.kernels);
    assert!(times.is_sorted_by_key(|t| t.call) && times.last().unwrap().call + 1 == plan.work.calls.len());
    assert!(times.iter().all(|t| t.label == plan.work.calls[t.call].label && t.seconds.is_finite()));
    assert!(times.iter().map(|t| t.seconds).sum::<f64>() > 0.0);
    // Two runs to warm up and three timed ones are five steps of gradient descent.
    let mut other = prepared();
    let losses: Vec<f32> = (0..6).map(|_| loss(other.as_mut()).unwrap()).collect();
    assert_eq!(loss(executable.as_mut()).unwrap(), losses[5]);
}

#[test]
fn pipelines_are_counted_once_for_a_context_and_come_from_the_cache_in_the_next_run() {
    let Some(context) = open(Options::default()) else { return };
    let device = Device::Gpu(context.clone());
    let prepare = || descent(64).prepare(&mut Store::new(&device)).unwrap().notes();
    let (first, second) = (prepare(), prepare());
    assert!(first.pipelines > 0 && first.pipeline_seconds > 0.0);
    assert_eq!((second.pipelines, second.pipelines_cached, second.pipeline_seconds), (0, 0, 0.0));
    if !context.caps().features.pipeline_cache {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let start = |name: &str| {
        let out = dir.path().join(name);
        let sets = "train.steps=1 train.eval_interval=0 train.eval_batches=1 train.sample_tokens=0 model.layers=1";
        let mut arguments = vec!["train", "--device", "gpu", "--json", "--out", out.to_str().unwrap()];
        sets.split(' ').for_each(|set| arguments.extend(["--set", set]));
        let output = lynx(&arguments, &dir.path().join("cache"));
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|l| l.contains("\"start\"")).expect("a line about the start");
        let start: serde_json::Value = serde_json::from_str(line).unwrap();
        (start["pipelines"].as_u64().unwrap(), start["pipelines_cached"].as_u64().unwrap())
    };
    let (cold, warm) = (start("cold"), start("warm"));
    assert!(cold.0 > 0 && cold.1 < cold.0);
    assert_eq!(warm, (cold.0, cold.0));
}

#[test]
fn the_tuner_times_every_form_of_a_family_and_keeps_one_that_the_device_can_run() {
    let Some(context) = open(Options::default()) else { return };
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32(&[64, 256]));
    let y = g.softmax(x, 1).unwrap();
    g.output("result", y);
    let work = Plan::new(&g).unwrap().work;
    let tuned = tune::tune(&context, &[(Family::Rows, work)]).unwrap();
    assert!(tuned.timings.len() > 1, "{tuned:?}");
    assert!(tuned.timings.iter().all(|t| t.family == Family::Rows && t.seconds.len() == 1 && t.seconds[0] > 0.0));
    assert_eq!(tuned.timings.iter().filter(|t| t.kept).count(), 1);
    assert_eq!(tuned.choices.misfit(context.caps()), None);
    let kept = tuned.timings.iter().find(|t| t.kept).unwrap();
    let row = context.caps().class().choices();
    assert_eq!(tuned.choices, kept.change.map_or(row, |change| change.of(row)));
}

#[test]
fn what_the_tuner_found_is_used_when_a_device_is_opened_and_damage_is_a_warning() {
    let Some(context) = open(Options::default()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let devices = || {
        let output = lynx(&["devices", "--json"], dir.path());
        let listing: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let gpu = &listing["gpus"][0];
        (gpu["kernels_tuned"].as_bool().unwrap(), gpu["kernels"]["split_tiles"].as_u64().unwrap(), stderr(&output))
    };
    let row = context.caps().class().choices();
    assert_eq!((devices().0, devices().1), (false, row.split_tiles as u64));
    let path = dir.path().join("tuned.json");
    let tuned = Choices { split_tiles: 77, ..row };
    probe::Memory::<Choices>::at(Some(path.clone())).put(&probe::gpu_key(context.info()), tuned);
    assert_eq!((devices().0, devices().1), (true, 77));
    let chosen = lynx(&["train", "--dry-run", "--device", "gpu"], dir.path());
    assert!(chosen.status.success() && !stderr(&chosen).contains("tuned.json"), "{}", stderr(&chosen));
    std::fs::write(&path, "{ damaged").unwrap();
    let (used, split, warning) = devices();
    assert!(!used && split == row.split_tiles as u64 && warning.contains("tuned.json is damaged"), "{warning}");
    let chosen = lynx(&["train", "--dry-run", "--device", "gpu"], dir.path());
    assert!(chosen.status.success() && stderr(&chosen).contains("tuned.json is damaged"), "{}", stderr(&chosen));
}
