//! Memory is what the plan says and does not grow. In a process of its own: other tests would disturb the resident size.

use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Store};
use lynx_gpu::graph::{Graph, Plan, Role};
use lynx_gpu::tensor::{HostTensor, TensorType};

const N: usize = 4096;

/// Gradient descent with momentum on `mean (x * w + b - t)^2`.
fn training_step() -> Plan {
    let mut g = Graph::new();
    let ty = TensorType::f32(&[16, N]);
    let (x, t) = (g.input("x", ty.clone()), g.input("t", ty));
    let row = TensorType::f32(&[N]);
    let parameters = ["w", "b"].map(|n| g.variable(n, Role::Parameter, row.clone()).unwrap());
    let momenta = ["w.m", "b.m"].map(|n| g.variable(n, Role::Optimizer, row.clone()).unwrap());
    let y = g.mul(x, parameters[0]).unwrap();
    let y = g.add(y, parameters[1]).unwrap();
    let error = g.sub(y, t).unwrap();
    let square = g.mul(error, error).unwrap();
    let loss = g.sum_all(square).unwrap();
    let gradients = g.gradients(loss, &parameters).unwrap();
    for ((p, m), gradient) in parameters.into_iter().zip(momenta).zip(gradients) {
        let kept = g.scale(m, 0.9).unwrap();
        let momentum = g.add(kept, gradient).unwrap();
        let change = g.scale(momentum, 1e-3).unwrap();
        let new = g.sub(p, change).unwrap();
        g.update(m, momentum).unwrap();
        g.update(p, new).unwrap();
    }
    g.output("loss", loss);
    Plan::new(&g).unwrap()
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn memory_is_as_planned_and_the_same_at_step_1000_as_at_the_start() {
    let mut devices = vec![Device::Cpu];
    match Context::adapters().first() {
        Some(a) => devices.push(Device::Gpu(Context::open(a, Options::default()).unwrap())),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => panic!("no GPU adapter was found"),
        None => eprintln!("SKIPPED on the GPU: no adapter"),
    }
    for device in devices {
        let made = |d: &Device| if let Device::Gpu(c) = d { c.created_bytes() } else { 0 };
        let plan = training_step();
        let mut store = Store::new(&device);
        let mut executable = plan.prepare(&mut store).unwrap();
        let name = device.name();
        let planned = plan.memory_on(&device).total();
        assert_eq!(executable.allocated_bytes(), planned, "{name}");
        let values = |f: fn(usize) -> f32| HostTensor::f32(&[16, N], (0..16 * N).map(f).collect());
        let (mut at_2, mut at_50, mut first) = (0, None, 0.0);
        let mut loss = 0.0;
        for step in 1..=1000 {
            executable.write_input("x", &values(|i| (i % 7) as f32 / 7.0)).unwrap();
            executable.write_input("t", &values(|i| (i % 5) as f32 / 5.0)).unwrap();
            executable.run().unwrap();
            loss = executable.read_output("loss").unwrap().as_f32().unwrap()[0];
            match step {
                1 => first = loss,
                2 => at_2 = made(&device),
                50 => at_50 = resident(),
                _ => {}
            }
        }
        assert!(loss < first, "{name}: it must learn, or nothing was run: {first} to {loss}");
        assert_eq!(made(&device), at_2, "{name}: buffers were made after step 2");
        assert_eq!(executable.allocated_bytes(), planned, "{name}");
        if let (Some(early), Some(late)) = (at_50, resident()) {
            println!("{name}: {planned} bytes planned; resident {early} at step 50, {late} at step 1000");
            // One leaked copy of an input a step would be 250 MB; allocators and drivers may keep a few pages more.
            assert!(late < early + (8 << 20), "{name}: the process grew from {early} to {late} bytes");
        }
    }
}
