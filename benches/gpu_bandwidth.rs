//! What a GPU's kernels reach: operators that are bound by memory beside a WGSL copy kernel, at sizes out of cache, and matrix
//! products in all transposes. `cargo bench --bench gpu_bandwidth -- [part of a device's name]`; `LYNX_ROUNDS` sets the number of
//! interleaved rounds (default 7), of which the best counts.

use lynx_gpu::Result;
use lynx_gpu::device::gpu::{Context, Lowering, Options, Params, Shader};
use lynx_gpu::device::{
    BufferSpec, Call, Cost, CpuCall, Device, Executable, Home, Kernel, Place, Store, Unsupported, Work,
};
use lynx_gpu::graph::{Graph, Plan, Role, Value};
use lynx_gpu::ops::optimizer::AdamW;
use lynx_gpu::ops::reduce::Reduction;
use lynx_gpu::tensor::{DType, RefTensor, TensorType};
use std::sync::Arc;

/// `y = x`, four floats an invocation: the bandwidth that other kernels are compared with.
#[derive(Debug)]
struct CopyKernel;

const COPY: &str = "
struct Params { count: u32 }
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if (i < p.count) { y[i] = x[i]; }
}";

impl Kernel for CopyKernel {
    fn name(&self) -> &'static str {
        "copy"
    }
    fn reference(&self, inputs: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
        vec![inputs[0].clone()]
    }
    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        call.out_f32(0).copy_from_slice(call.f32(0));
        Ok(())
    }
    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        use lynx_gpu::device::gpu::Buf;
        let quads = lowering.input(0).elements() / 4;
        let shader = Shader { label: "copy".into(), source: COPY.into(), entry: "main" };
        let binds = [lowering.read(Buf::In(0)), lowering.write(Buf::Out(0))];
        lowering.dispatch_source(shader, &binds, Params::new().u32(quads), lowering.line(quads.div_ceil(64)))
    }
}

fn copy(elements: usize) -> Work {
    let ty = TensorType::f32(&[elements]);
    let place = |buffer| Place { buffer, ty: ty.clone() };
    let bytes = ty.bytes();
    let buffers = ["x", "y"].map(|name| BufferSpec { bytes, home: Home::Input(name.into()) }).to_vec();
    let cost = Cost { flops: 0.0, bytes_read: bytes as f64, bytes_written: bytes as f64 };
    let (kernel, label) = (Arc::new(CopyKernel), "copy".into());
    let call = Call { kernel, label, inputs: vec![place(0)], outputs: vec![place(1)], cost };
    let inputs = vec![("x".into(), place(0))];
    Work { buffers, calls: vec![call], copies: vec![], inputs, outputs: vec![("y".into(), place(1))] }
}

fn planned(write: impl FnOnce(&mut Graph) -> Result<()>) -> Result<Plan> {
    let mut graph = Graph::new();
    write(&mut graph)?;
    Plan::new(&graph)
}

/// One operator as a graph: operands are inputs `x0, x1, ..`, results outputs `y0, ..`.
fn one(shapes: &[&[usize]], write: impl FnOnce(&mut Graph, &[Value]) -> Result<Value>) -> Result<Plan> {
    planned(|g| {
        let inputs: Vec<Value> =
            shapes.iter().enumerate().map(|(i, s)| g.input(&format!("x{i}"), TensorType::f32(s))).collect();
        let y = write(g, &inputs)?;
        g.output("y0", y);
        Ok(())
    })
}

/// The operators of a model that are bound by memory: (name, plan).
fn operators() -> Result<Vec<(&'static str, Plan)>> {
    const ROWS: usize = 16384;
    const WIDTH: usize = 768;
    let wide: &[usize] = &[ROWS, WIDTH];
    let row: &[usize] = &[WIDTH];
    let adamw = planned(|g| {
        let ty = TensorType::f32(&[8 << 20]);
        let variable = |g: &mut Graph, name: &str, role| g.variable(name, role, ty.clone());
        let (p, m, v) =
            (variable(g, "p", Role::Parameter)?, variable(g, "m", Role::State)?, variable(g, "v", Role::State)?);
        let gradient = g.input("x0", ty.clone());
        let (hyper, scale) = (g.input("x1", TensorType::f32(&[4])), g.input("x2", TensorType::f32(&[])));
        let op = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        g.adamw(op, (p, gradient, m, v), hyper, scale)
    })?;
    let with_ids = |shape: &[usize], count: usize, write: fn(&mut Graph, Value, Value) -> Result<Value>| {
        planned(|g| {
            let (x, ids) = (g.input("x0", TensorType::f32(shape)), g.input("x1", TensorType::i32(&[count])));
            let y = write(g, x, ids)?;
            g.output("y0", y);
            Ok(())
        })
    };
    Ok(vec![
        ("add", one(&[wide, wide], |g, x| g.add(x[0], x[1]))?),
        ("gelu (tanh)", one(&[wide], |g, x| g.gelu_tanh(x[0]))?),
        ("softmax of 768", one(&[wide], |g, x| g.softmax(x[0], 1))?),
        ("softmax of 4096", one(&[&[3072, 4096]], |g, x| g.softmax(x[0], 1))?),
        ("layer norm", one(&[wide, row, row], |g, x| Ok(g.layer_norm(x[0], x[1], Some(x[2]), 1e-5)?.0))?),
        ("rms norm", one(&[wide, row], |g, x| Ok(g.rms_norm(x[0], x[1], 1e-6, false)?.0))?),
        ("sum of rows", one(&[wide], |g, x| g.reduce(x[0], Reduction::Sum, (1, 2), false))?),
        ("sum of columns", one(&[wide], |g, x| g.reduce(x[0], Reduction::Sum, (0, 1), false))?),
        ("cross entropy", with_ids(&[3072, 4096], 3072, |g, x, t| Ok(g.cross_entropy(x, t)?.0))?),
        ("embedding", with_ids(&[8192, WIDTH], ROWS, |g, x, ids| g.embedding(x, ids))?),
        ("adamw", adamw),
    ])
}

/// A work ready on the device, with how many bytes or FLOPs it costs, and the least seconds seen.
struct Timed {
    executable: Box<dyn Executable>,
    cost: Cost,
    seconds: f64,
    kernels: String,
}

impl Timed {
    fn new(device: &Device, work: Work) -> Result<Timed> {
        let mut cost = Cost::default();
        work.calls.iter().for_each(|c| cost += c.cost);
        let mut store = Store::new(device);
        for spec in &work.buffers {
            if let Home::Variable(name) = &spec.home {
                store.declare(name, &TensorType::f32(&[spec.bytes as usize / 4]))?;
            }
        }
        let inputs = work.inputs.clone();
        let mut executable = device.prepare(work, &mut store)?;
        for (name, place) in inputs {
            // Ids stay in range; other values are of ordinary size.
            let value =
                |i: usize| if place.ty.dtype == DType::F32 { (i % 101) as f64 / 101.0 } else { (i * 37 % 1009) as f64 };
            let values = (0..place.ty.elements()).map(value).collect();
            executable.write_input(&name, &RefTensor::new(&place.ty.shape, values).to_host(place.ty.dtype))?;
        }
        let kernels = executable.notes().kernels.join(", ");
        Ok(Timed { executable, cost, seconds: f64::INFINITY, kernels })
    }
    fn round(&mut self) -> Result<()> {
        let seconds = self.executable.profile(1)?.iter().map(|t| t.seconds).sum();
        self.seconds = self.seconds.min(seconds);
        Ok(())
    }
}

fn main() -> Result<()> {
    let part = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default().to_lowercase();
    let rounds = std::env::var("LYNX_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(7);
    let Some(adapter) = Context::adapters().into_iter().find(|a| a.get_info().name.to_lowercase().contains(&part))
    else {
        eprintln!("no GPU has '{part}' in its name");
        return Ok(());
    };
    let context = Context::open(&adapter, Options::default())?;
    let device = Device::Gpu(context.clone());
    println!("{}, best of {rounds} interleaved rounds, device time", context.name());
    println!("{:<16} {:>9} {:>9}  {:>5}  kernels", "", "ms", "GB/s", "share");
    let mut copy = Timed::new(&device, copy(16 << 20))?;
    for (name, plan) in operators()? {
        let mut timed = Timed::new(&device, plan.work)?;
        for _ in 0..rounds {
            copy.round()?;
            timed.round()?;
        }
        let rate = |t: &Timed| t.cost.bytes() / t.seconds / 1e9;
        let share = rate(&timed) / rate(&copy);
        println!("{name:<16} {:>9.3} {:>9.2}  {share:>5.2}  {}", 1e3 * timed.seconds, rate(&timed), timed.kernels);
    }
    println!("{:<16} {:>9.3} {:>9.2}", "copy", 1e3 * copy.seconds, copy.cost.bytes() / copy.seconds / 1e9);
    println!("\n{:<24} {:>9} {:>9}  kernels", "matmul m n k", "ms", "GFLOP/s");
    for (m, n, k) in [(512, 512, 512), (1024, 1024, 1024), (256, 512, 128), (1, 4096, 4096)] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let stored = |r: usize, c: usize, t: bool| if t { [c, r] } else { [r, c] };
            let (a, b) = (stored(m, k, ta), stored(k, n, tb));
            let plan = one(&[&a, &b], |g, x| g.matmul_t(x[0], x[1], ta, tb))?;
            let mut timed = Timed::new(&device, plan.work)?;
            (0..rounds).try_for_each(|_| timed.round())?;
            let name = format!("{m} {n} {k}{}{}", if ta { " ta" } else { "" }, if tb { " tb" } else { "" });
            let rate = timed.cost.flops / timed.seconds / 1e9;
            println!("{name:<24} {:>9.3} {rate:>9.2}  {}", 1e3 * timed.seconds, timed.kernels);
        }
    }
    Ok(())
}
