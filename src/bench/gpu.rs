//! A GPU's ceilings: the same kinds of loops as the CPU's, in WGSL, through the same compiler and executor as the program's kernels.

use super::nothing::{self, run_and_wait};
use super::report::{Access, Ceilings, ComputePeak, MemoryPoint, Overhead, Stat, StridePoint};
use super::timing::{Effort, measure, seconds};
use super::{Scope, levels};
use crate::device::gpu::{Buf, Caps, Context, Lowering, Params};
use crate::device::{
    BufferSpec, Call, Cost, CpuCall, Device, Executable, Home, Kernel, Place, Store, Unsupported, Work,
};
use crate::tensor::{HostTensor, RefTensor, TensorType};
use crate::{Error, Result};
use std::sync::Arc;
use std::time::Instant;

/// Invocations of a workgroup in all of these shaders.
const GROUP: usize = 256;
/// Rounds of a loop: software devices end longer ones early (`Lowering::loops`).
const MOST_ROUNDS: usize = 32_768;

/// One dispatch of a measuring shader. Binding 0 is the output, the inputs follow.
#[derive(Clone, Debug)]
struct Loop {
    label: String,
    template: &'static str,
    variables: minijinja::Value,
    params: Params,
    invocations: usize,
}

impl Kernel for Loop {
    fn name(&self) -> &'static str {
        "measuring loop"
    }
    fn reference(&self, _: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect()
    }
    fn cpu(&self, _: &mut CpuCall) -> Result<()> {
        Err(Error::Device(format!("{} measures GPUs only", self.label)))
    }
    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let mut binds = vec![lowering.write(Buf::Out(0))];
        binds.extend((0..lowering.inputs()).map(|i| lowering.read(Buf::In(i))));
        let groups = lowering.line(self.invocations / GROUP);
        lowering.dispatch(
            self.label.clone(),
            self.template,
            self.variables.clone(),
            &binds,
            self.params.clone(),
            groups,
        )
    }
}

/// The loop over an output of `out` floats and inputs of so many each.
fn work(kernel: &Loop, out: usize, inputs: &[usize]) -> Work {
    let sizes: Vec<usize> = std::iter::once(out).chain(inputs.iter().copied()).collect();
    let place = |b: usize| Place { buffer: b, ty: TensorType::f32(&[sizes[b]]) };
    let call = Call {
        kernel: Arc::new(kernel.clone()),
        label: kernel.label.clone(),
        inputs: (1..sizes.len()).map(place).collect(),
        outputs: vec![place(0)],
        cost: Cost::default(),
    };
    Work {
        buffers: sizes.iter().map(|n| BufferSpec { bytes: 4 * *n as u64, home: Home::Transient }).collect(),
        calls: vec![call],
        outputs: vec![("y".into(), place(0))],
        ..Work::default()
    }
}

struct Bench<'a> {
    device: Device,
    context: &'a Context,
    effort: Effort,
    scope: Scope,
}

/// A dispatch should take this long: long beside a time stamp's resolution, short beside a watchdog.
const DISPATCH_SECONDS: f64 = 4e-3;

/// The largest working set is measured so many times more, the best counts.
const LATER_ROUNDS: usize = 3;

impl Bench<'_> {
    fn caps(&self) -> &Caps {
        self.context.caps()
    }

    /// Invocations that fill the device.
    fn full(&self) -> usize {
        if self.caps().software { 16_384 } else { 1 << 18 }
    }

    /// Runs `n` times; seconds by the device's clock where it has one. None where the device runs the loop on the CPU.
    fn run(&self, executable: &mut dyn Executable, n: usize) -> Result<f64> {
        if !self.caps().features.timestamps {
            return run_and_wait(&self.device, executable, n);
        }
        let stamped: f64 = executable.profile(n)?.iter().map(|c| c.seconds).sum();
        Ok(stamped * n as f64)
    }

    /// Times the dispatch that `make(rounds)` gives, with as many rounds as take long enough: seconds of one round.
    fn per_round(&self, make: impl Fn(usize) -> Work, multiple: usize) -> Result<Stat> {
        let mut rounds = multiple;
        loop {
            let mut executable = self.device.prepare(make(rounds), &mut Store::new(&self.device))?;
            if let Some(why) = executable.notes().fallback.first() {
                return Err(Error::Device(why.clone()));
            }
            self.run(executable.as_mut(), 1)?;
            let took = self.run(executable.as_mut(), 1)?;
            let most = MOST_ROUNDS / multiple * multiple;
            if took < DISPATCH_SECONDS / 2.0 && rounds < most {
                let growth = (DISPATCH_SECONDS / took.max(1e-7)).clamp(2.0, 64.0);
                rounds = ((rounds as f64 * growth) as usize / multiple * multiple).min(most);
                continue;
            }
            let stat = measure(&self.effort, |n| self.run(executable.as_mut(), n))?;
            let each = 1.0 / rounds as f64;
            return Ok(Stat {
                median: stat.median * each,
                low: stat.low * each,
                high: stat.high * each,
                best: stat.best * each,
                ..stat
            });
        }
    }

    fn compute(&self, kind: &'static str) -> Result<Stat> {
        let invocations = 4 * self.full();
        let make = |rounds| {
            let params = Params::new().u32(rounds).f32(0.999).f32(0.001).u32(0x0101_0101);
            let kernel = Loop {
                label: format!("bench/compute {kind}"),
                template: crate::shader!("bench_compute.wgsl"),
                variables: minijinja::context! { kind },
                params,
                invocations,
            };
            work(&kernel, 4, &[])
        };
        // Of a round: 4 times 8 chains of vec4, or 16 chains of four products and four sums.
        let operations = if kind == "int8" { 4.0 * 16.0 * 8.0 } else { 4.0 * 8.0 * 4.0 * 2.0 };
        Ok(self.per_round(make, 1)?.rate(operations * invocations as f64))
    }

    fn peaks(&self) -> Result<Vec<ComputePeak>> {
        let features = &self.caps().features;
        // Compilers contract a product and a sum, or make fma of two instructions: the better of both is the device's.
        let (plain, fused) = (self.compute("f32")?, self.compute("fma")?);
        let f32 = if fused.best > plain.best { fused } else { plain };
        let mut peaks = vec![ComputePeak { kind: "f32".into(), rate: f32 }];
        if features.f16 {
            peaks.push(ComputePeak { kind: "f16".into(), rate: self.compute("f16")? });
        }
        if features.packed_dot {
            peaks.push(ComputePeak { kind: "int8 dot".into(), rate: self.compute("int8")? });
        }
        Ok(peaks)
    }

    fn traffic(&self, access: Access, arrays: usize, working_set: usize) -> Result<Option<MemoryPoint>> {
        // A power of two of vec4s in each array.
        let vectors = (working_set / 16 / arrays).max(GROUP);
        let vectors = 1usize << vectors.ilog2();
        let held = vectors * 16 * arrays;
        if (vectors * 16) as u64 > self.caps().limits.max_binding {
            return Ok(None);
        }
        let name = format!("{access:?}").to_lowercase();
        let reads = access == Access::Read;
        // Writers have at least eight lines each: stores to one place again and again could be left out.
        let invocations = if reads { self.full() } else { self.full().min(vectors / 8).max(GROUP) };
        let block = (vectors / invocations).max(1);
        let make = |rounds| {
            let params = Params::new().u32(vectors - 1).u32(rounds).u32(block).f32(1e-6);
            let kernel = Loop {
                label: format!("bench/{name}"),
                template: crate::shader!("bench_memory.wgsl"),
                variables: minijinja::context! { access => name.as_str(), team => self.team() },
                params,
                invocations,
            };
            let inputs = match access {
                Access::Write => 0,
                Access::Triad => 2,
                _ => 1,
            };
            work(&kernel, if reads { 4 } else { 4 * vectors }, &vec![4 * vectors; inputs])
        };
        let moves = if access == Access::Update { 3 } else { arrays };
        // At least once over the whole of the arrays.
        let time = self.per_round(make, block.next_multiple_of(8))?;
        let rate = time.rate((16 * moves * invocations) as f64);
        Ok(Some(MemoryPoint { access, streaming: false, working_set: held as u64, rate }))
    }

    fn ladder(&self) -> Result<Vec<MemoryPoint>> {
        let accesses =
            [(Access::Read, 1), (Access::Write, 1), (Access::Copy, 2), (Access::Triad, 3), (Access::Update, 2)];
        let mut points = Vec::new();
        let mut places = Vec::new();
        let mut working_set = 4 << 10;
        while working_set <= self.largest() {
            for (access, arrays) in accesses {
                // With too few invocations only reads show what a small cache can do.
                if (access == Access::Read || working_set >= self.smallest_written())
                    && let Some(point) = self.traffic(access, arrays, working_set)?
                {
                    points.push(point);
                    places.push((access, arrays, working_set));
                }
            }
            working_set *= if self.scope.quick { 4 } else { 2 };
        }
        // Memory behind the caches is the roof of most operators: what runs beside the program for a moment must not lower it.
        let last = places.last().map_or(0, |p| p.2);
        for _ in 0..LATER_ROUNDS {
            for (point, &(access, arrays, working_set)) in points.iter_mut().zip(&places) {
                if working_set == last
                    && let Some(again) = self.traffic(access, arrays, working_set)?
                    && again.rate.best > point.rate.best
                {
                    *point = again;
                }
            }
        }
        points.sort_by_key(|p| p.working_set);
        Ok(points)
    }

    /// Invocations that go side by side: a workgroup. A software device runs the whole of a shader for a few invocations at a time,
    /// so that these must go along the memory themselves.
    fn team(&self) -> usize {
        match self.caps().software {
            true => (self.caps().subgroup_sizes.0 as usize).next_power_of_two().clamp(4, GROUP),
            false => GROUP,
        }
    }

    fn smallest_written(&self) -> usize {
        if self.caps().software { 128 << 10 } else { 1 << 20 }
    }

    /// Bytes of the largest arrays together.
    fn largest(&self) -> usize {
        let device = self.caps().limits.max_buffer.min(if self.caps().software { 256 << 20 } else { 1 << 30 });
        self.scope.largest_working_set().min(device as usize)
    }

    fn strides(&self) -> Result<Vec<StridePoint>> {
        let bytes = (128usize << 20).min(self.caps().limits.max_binding as usize);
        let floats = 1usize << (bytes / 4).ilog2();
        let invocations = self.full();
        (0..=10)
            .map(|log| {
                let stride = 1usize << log;
                let make = |rounds| {
                    let kernel = Loop {
                        label: "bench/stride".into(),
                        template: crate::shader!("bench_stride.wgsl"),
                        variables: minijinja::context! {},
                        params: Params::new().u32(floats - 1).u32(rounds).u32(invocations).u32(stride),
                        invocations,
                    };
                    work(&kernel, 4, &[floats])
                };
                let seconds = self.per_round(make, 16)?.median / invocations as f64;
                Ok(StridePoint { stride_bytes: 4 * stride as u64, seconds })
            })
            .collect()
    }

    fn workgroup_memory(&self) -> Result<Stat> {
        let invocations = self.full();
        let make = |rounds| {
            let kernel = Loop {
                label: "bench/workgroup memory".into(),
                template: crate::shader!("bench_workgroup.wgsl"),
                variables: minijinja::context! {},
                params: Params::new().u32(rounds).f32(1e-3),
                invocations,
            };
            work(&kernel, 4, &[])
        };
        Ok(self.per_round(make, 4)?.rate(16.0 * invocations as f64))
    }

    /// bytes/s to the device and back, as the program moves them.
    fn transfers(&self) -> Result<(Stat, Stat)> {
        let floats = if self.scope.quick { 4 << 20 } else { 16 << 20 };
        let value = HostTensor::f32(&[floats], vec![1.0; floats]);
        let bytes = 4.0 * floats as f64;
        let place = Place { buffer: 0, ty: value.ty() };
        let work = Work {
            buffers: vec![BufferSpec { bytes: bytes as u64, home: Home::Input("x".into()) }],
            inputs: vec![("x".into(), place.clone())],
            outputs: vec![("x".into(), place)],
            ..Work::default()
        };
        let mut executable = self.device.prepare(work, &mut Store::new(&self.device))?;
        let up = measure(&self.effort, |n| {
            seconds(|| {
                for _ in 0..n {
                    executable.write_input("x", &value)?;
                    // What was queued goes with the next submission.
                    self.context.submit_empty_passes(0)?;
                }
                Ok(())
            })
        })?;
        let down =
            measure(&self.effort, |n| seconds(|| (0..n).try_for_each(|_| executable.read_output("x").map(|_| ()))))?;
        Ok((up.rate(bytes), down.rate(bytes)))
    }

    fn overheads(&self) -> Result<Vec<Overhead>> {
        let passes = |count: usize| {
            measure(&self.effort, |n| seconds(|| (0..n).try_for_each(|_| self.context.submit_empty_passes(count))))
        };
        const MANY: usize = 65;
        let (submit, many) = (passes(1)?, passes(MANY)?);
        let each = |t: f64| ((t - submit.median) / (MANY - 1) as f64).max(1e-10);
        let pass = Stat {
            median: each(many.median),
            low: each(many.low),
            high: each(many.high),
            best: each(many.best),
            ..many
        };
        let mut executable = self.device.prepare(nothing::work(1), &mut Store::new(&self.device))?;
        run_and_wait(&self.device, executable.as_mut(), 3)?;
        let map_back =
            measure(&self.effort, |n| seconds(|| (0..n).try_for_each(|_| executable.read_output("y").map(|_| ()))))?;
        let dispatch = nothing::seconds_per_call(&self.device, &self.effort)?;
        let overhead = |kind: &str, time: Stat| Overhead { kind: kind.into(), time };
        Ok(vec![
            overhead("dispatch", dispatch),
            overhead("pass", pass),
            overhead("submit", submit),
            overhead("map back", map_back),
            overhead("pipeline", self.pipeline()?),
        ])
    }

    /// From a shader nobody has seen to the end of its first run, less the second run: some drivers compile then.
    fn pipeline(&self) -> Result<Stat> {
        let nonce = Instant::now();
        let mut samples = Vec::new();
        for i in 0..3 {
            let kernel = Fresh { nonce: (nonce.elapsed().as_nanos() as u64) ^ u64::from(std::process::id()) << 32 | i };
            let start = Instant::now();
            let mut work = nothing::work(1);
            work.calls[0].kernel = Arc::new(kernel);
            let mut executable = self.device.prepare(work, &mut Store::new(&self.device))?;
            run_and_wait(&self.device, executable.as_mut(), 1)?;
            let first = start.elapsed().as_secs_f64();
            let second = run_and_wait(&self.device, executable.as_mut(), 1)?;
            samples.push((first - second).max(0.0));
        }
        Ok(Stat::of(&samples))
    }
}

/// A small kernel whose text no cache holds.
#[derive(Debug)]
struct Fresh {
    nonce: u64,
}

impl Kernel for Fresh {
    fn name(&self) -> &'static str {
        "fresh"
    }
    fn reference(&self, _: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        outputs.iter().map(|t| RefTensor::zeros(&t.shape)).collect()
    }
    fn cpu(&self, _: &mut CpuCall) -> Result<()> {
        Ok(())
    }
    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (low, high) = (self.nonce as u32, (self.nonce >> 32) as u32);
        let source = format!(
            "@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;\n\
             @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{\n\
             y[0] = vec4<f32>(vec4<u32>(id, {low}u) ^ vec4<u32>({high}u)) * 1e-9; }}\n"
        );
        let shader = crate::device::gpu::Shader { label: "bench/fresh".into(), source: source.into(), entry: "main" };
        let out = lowering.write(Buf::Out(0));
        lowering.dispatch_source(shader, &[out], Params::new(), [1, 1, 1])
    }
}

/// Measures a GPU.
pub fn ceilings(context: &Arc<Context>, scope: &Scope) -> Result<Ceilings> {
    let bench = Bench {
        device: Device::Gpu(context.clone()),
        context,
        effort: Effort { samples: 9, ..scope.effort() },
        scope: *scope,
    };
    let memory = bench.ladder()?;
    let names: &[&str] = if context.caps().software { &["L1", "L2", "L3"] } else { &["L1", "L2"] };
    let (upload, download) = bench.transfers()?;
    Ok(Ceilings {
        compute: bench.peaks()?,
        levels: levels::levels(&memory, names),
        memory,
        workgroup_memory: Some(bench.workgroup_memory()?),
        upload: Some(upload),
        download: Some(download),
        strides: bench.strides()?,
        overheads: bench.overheads()?,
    })
}

#[cfg(test)]
mod tests {
    use crate::device::gpu::render;

    #[test]
    fn every_measuring_shader_is_valid() {
        let mut sources = vec![
            (crate::shader!("bench_stride.wgsl"), minijinja::context! {}),
            (crate::shader!("bench_workgroup.wgsl"), minijinja::context! {}),
            (crate::shader!("bench_nothing.wgsl"), minijinja::context! {}),
        ];
        for kind in ["f32", "fma", "f16", "int8"] {
            sources.push((crate::shader!("bench_compute.wgsl"), minijinja::context! { kind }));
        }
        for access in ["read", "write", "copy", "triad", "update"] {
            sources.push((crate::shader!("bench_memory.wgsl"), minijinja::context! { access, team => 8 }));
        }
        for (template, variables) in sources {
            let text = render(template, &variables).unwrap();
            let module = naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(&text)));
            let mut validator =
                naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
            validator.validate(&module).unwrap_or_else(|e| panic!("{}\n{text}", e.emit_to_string(&text)));
        }
    }
}
