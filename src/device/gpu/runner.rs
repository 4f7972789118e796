//! Runs a lowered `Work`: pre-built pipelines and bind groups, one compute pass and one submission where the time budget
//! allows, and CPU twins for the calls a GPU cannot take.

use super::context::{Context, Pipeline};
use super::lowering::{Buf, Caps, Dispatch, Lowered, lower};
use crate::device::kernel::Operand;
use crate::device::{CpuCall, Executable, ExecutionNotes, Home, Memory, Place, Store, Work, cpu};
use crate::tensor::HostTensor;
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

/// A submission is ended when its expected time passes this: desktops reset a GPU that is busy for about 2 s.
const SECONDS_PER_SUBMISSION: f64 = 0.5;

pub struct Runner {
    context: Arc<Context>,
    work: Work,
    buffers: Vec<wgpu::Buffer>,
    /// Scratch memory and uniform parameters.
    extra_bytes: u64,
    segments: Vec<Segment>,
    notes: ExecutionNotes,
}

enum Segment {
    Gpu(Vec<Prepared>),
    Cpu(Twin),
}

struct Prepared {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: [u32; 3],
}

/// A call that runs on the CPU inside a GPU plan: host copies of its operands.
struct Twin {
    call: usize,
    operands: CpuCall,
    inputs: Vec<Arc<cpu::Buffer>>,
    outputs: Vec<Arc<cpu::Buffer>>,
}

/// Bytes of scratch memory and parameter blocks that `work` needs on a device with these capabilities.
pub fn workspace_bytes(work: &Work, caps: &Caps) -> u64 {
    let lowered = lower(work, caps);
    scratch_sizes(&lowered).iter().sum::<u64>() + params_layout(&lowered).1
}

/// Scratch buffers are shared by all calls: the k-th is as large as the largest k-th request.
fn scratch_sizes(lowered: &[Lowered]) -> Vec<u64> {
    let mut sizes = Vec::new();
    for l in lowered {
        for (k, bytes) in l.scratch.iter().enumerate() {
            if k == sizes.len() {
                sizes.push(0);
            }
            sizes[k] = (*bytes).max(sizes[k]);
        }
    }
    sizes
}

/// Uniform offset alignment that every device accepts.
const UNIFORM_ALIGN: u64 = 256;

/// Offset of each dispatch's parameters in the shared uniform buffer, and the buffer's size.
fn params_layout(lowered: &[Lowered]) -> (Vec<Vec<u64>>, u64) {
    let mut end = 0;
    let offsets = lowered
        .iter()
        .map(|l| {
            let place = |d: &Dispatch| {
                let at = end;
                end += (d.params.len() as u64 * 4).next_multiple_of(UNIFORM_ALIGN);
                at
            };
            l.dispatches.iter().map(place).collect()
        })
        .collect();
    (offsets, end)
}

impl Runner {
    pub fn new(context: Arc<Context>, work: Work, store: &mut Store) -> Result<Self> {
        let lowered = lower(&work, context.caps());
        let mut buffers = Vec::new();
        for (i, spec) in work.buffers.iter().enumerate() {
            buffers.push(match &spec.home {
                Home::Variable(name) => match &store.get(name)?.memory {
                    Memory::Gpu(m) => m.clone(),
                    _ => return Err(Error::Graph(format!("variable '{name}' lives on another device"))),
                },
                Home::Constant(value) => {
                    let buffer = context.create_buffer("constant", spec.bytes)?;
                    context.write(&buffer, &value.to_bytes())?;
                    buffer
                }
                Home::Input(name) => context.create_buffer(name, spec.bytes)?,
                Home::Transient => context.create_buffer(&format!("activation {i}"), spec.bytes)?,
            });
        }
        let scratch_sizes = scratch_sizes(&lowered);
        let scratch: Vec<wgpu::Buffer> =
            scratch_sizes.iter().map(|b| context.create_buffer("scratch", *b)).collect::<Result<_>>()?;
        let (offsets, params_bytes) = params_layout(&lowered);
        let params = uniform_buffer(&context, &lowered, &offsets, params_bytes);

        let pipelines = compile(&context, &lowered)?;
        let mut notes = ExecutionNotes::default();
        let mut segments = Vec::new();
        let mut seconds = 0.0;
        for (index, l) in lowered.iter().enumerate() {
            let call = &work.calls[index];
            if let Some(why) = &l.fallback {
                notes.fallback.push(format!("{} ({}): {why}", call.label, call.kernel.name()));
                segments.push(Segment::Cpu(twin(index, &work)));
                seconds = 0.0;
                continue;
            }
            for (k, d) in l.dispatches.iter().enumerate() {
                let Pipeline { pipeline, layout } = pipelines[index][k].clone();
                let resolve = |buf: Buf| match buf {
                    Buf::In(i) => &buffers[call.inputs[i].buffer],
                    Buf::Out(o) => &buffers[call.outputs[o].buffer],
                    Buf::Scratch(s) => &scratch[s],
                };
                let bind_group = bind_group(&context, d, &layout, resolve, params.as_ref(), offsets[index][k]);
                if !matches!(segments.last(), Some(Segment::Gpu(_))) || seconds + d.seconds > SECONDS_PER_SUBMISSION {
                    segments.push(Segment::Gpu(vec![]));
                    seconds = 0.0;
                }
                seconds += d.seconds;
                if let Some(Segment::Gpu(list)) = segments.last_mut() {
                    list.push(Prepared { pipeline, bind_group, groups: d.groups });
                }
                notes.dispatches += 1;
                notes.kernels.push(d.shader.label.clone());
            }
            let mut labels: Vec<_> = l.dispatches.iter().map(|d| &d.shader.label).collect();
            labels.dedup();
            if labels.len() < l.dispatches.len() {
                notes.split.push(format!("{} ({}): {} dispatches", call.label, call.kernel.name(), l.dispatches.len()));
            }
        }
        notes.submissions = segments.iter().filter(|s| matches!(s, Segment::Gpu(_))).count();
        context.check()?;
        let extra_bytes = scratch_sizes.iter().sum::<u64>() + params_bytes;
        Ok(Runner { context, work, buffers, extra_bytes, segments, notes })
    }

    fn submit(&self, list: &[Prepared]) {
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for p in list {
                pass.set_pipeline(&p.pipeline);
                pass.set_bind_group(0, &p.bind_group, &[]);
                pass.dispatch_workgroups(p.groups[0], p.groups[1], p.groups[2]);
            }
        }
        self.context.queue.submit([encoder.finish()]);
    }

    fn run_twin(&self, twin: &Twin) -> Result<()> {
        let call = &self.work.calls[twin.call];
        for (place, host) in call.inputs.iter().zip(&twin.inputs) {
            let bytes = self.context.read(&self.buffers[place.buffer], place.ty.bytes())?;
            // SAFETY: the host copies belong to this runner and nothing else runs.
            unsafe { host.write(&bytes) };
        }
        call.kernel.cpu(&mut twin.operands.clone())?;
        for (place, host) in call.outputs.iter().zip(&twin.outputs) {
            self.context.write(&self.buffers[place.buffer], host.bytes())?;
        }
        Ok(())
    }
}

/// Compiles every distinct pipeline, several at a time (drivers compile in parallel; it dominates the start).
fn compile(context: &Context, lowered: &[Lowered]) -> Result<Vec<Vec<Pipeline>>> {
    let mut distinct: Vec<&Dispatch> = Vec::new();
    for d in lowered.iter().flat_map(|l| &l.dispatches) {
        if !distinct.iter().any(|e| same_pipeline(e, d)) {
            distinct.push(d);
        }
    }
    distinct.par_iter().try_for_each(|d| pipeline(context, d).map(|_| ()))?;
    lowered.iter().map(|l| l.dispatches.iter().map(|d| pipeline(context, d)).collect()).collect()
}

fn same_pipeline(a: &Dispatch, b: &Dispatch) -> bool {
    Arc::ptr_eq(&a.shader.source, &b.shader.source)
        && a.binds.iter().map(|x| x.write).eq(b.binds.iter().map(|x| x.write))
}

fn pipeline(context: &Context, d: &Dispatch) -> Result<Pipeline> {
    let writable: Vec<bool> = d.binds.iter().map(|b| b.write).collect();
    context.pipeline(&d.shader, &writable, !d.params.is_empty())
}

fn uniform_buffer(context: &Context, lowered: &[Lowered], offsets: &[Vec<u64>], bytes: u64) -> Option<wgpu::Buffer> {
    if bytes == 0 {
        return None;
    }
    let mut data = vec![0u8; bytes as usize];
    for (l, offsets) in lowered.iter().zip(offsets) {
        for (d, at) in l.dispatches.iter().zip(offsets) {
            let words: &[u8] = bytemuck::cast_slice(&d.params);
            data[*at as usize..*at as usize + words.len()].copy_from_slice(words);
        }
    }
    let buffer = context.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("parameters"),
        size: bytes,
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    context.queue.write_buffer(&buffer, 0, &data);
    Some(buffer)
}

fn bind_group<'a>(
    context: &Context,
    d: &Dispatch,
    layout: &wgpu::BindGroupLayout,
    resolve: impl Fn(Buf) -> &'a wgpu::Buffer,
    params: Option<&wgpu::Buffer>,
    params_at: u64,
) -> wgpu::BindGroup {
    let part = |buffer, offset, bytes| {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(bytes) })
    };
    let mut entries: Vec<wgpu::BindGroupEntry> = d
        .binds
        .iter()
        .enumerate()
        .map(|(i, b)| wgpu::BindGroupEntry {
            binding: i as u32,
            resource: part(resolve(b.buf), b.offset, b.bytes.max(4)),
        })
        .collect();
    if let (Some(params), false) = (params, d.params.is_empty()) {
        let bytes = (d.params.len() as u64 * 4).next_multiple_of(UNIFORM_ALIGN);
        entries.push(wgpu::BindGroupEntry { binding: d.binds.len() as u32, resource: part(params, params_at, bytes) });
    }
    context.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(&d.shader.label),
        layout,
        entries: &entries,
    })
}

fn twin(index: usize, work: &Work) -> Twin {
    let call = &work.calls[index];
    let hosts = |places: &[Place]| -> Vec<Arc<cpu::Buffer>> {
        places.iter().map(|p| Arc::new(cpu::Buffer::zeroed(p.ty.bytes()))).collect()
    };
    let inputs = hosts(&call.inputs);
    // An in-place output writes over its input's host copy, as it does on the device.
    let outputs: Vec<Arc<cpu::Buffer>> = call
        .outputs
        .iter()
        .map(|o| match call.inputs.iter().position(|i| i.buffer == o.buffer) {
            Some(i) => inputs[i].clone(),
            None => Arc::new(cpu::Buffer::zeroed(o.ty.bytes())),
        })
        .collect();
    let operands = |places: &[Place], hosts: &[Arc<cpu::Buffer>]| {
        places.iter().zip(hosts).map(|(p, h)| Operand { ty: p.ty.clone(), ptr: h.as_ptr() }).collect()
    };
    let operands = CpuCall { inputs: operands(&call.inputs, &inputs), outputs: operands(&call.outputs, &outputs) };
    Twin { call: index, operands, inputs, outputs }
}

impl Executable for Runner {
    fn write_input(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let place = self.work.input(name, &value.ty())?;
        self.context.write(&self.buffers[place.buffer], &value.to_bytes())
    }

    fn run(&mut self) -> Result<()> {
        self.context.check()?;
        for segment in &self.segments {
            match segment {
                Segment::Gpu(list) => self.submit(list),
                Segment::Cpu(twin) => self.run_twin(twin)?,
            }
        }
        if !self.work.copies.is_empty() {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            for (from, to) in &self.work.copies {
                encoder.copy_buffer_to_buffer(
                    &self.buffers[from.buffer],
                    0,
                    &self.buffers[to.buffer],
                    0,
                    from.ty.bytes(),
                );
            }
            self.context.queue.submit([encoder.finish()]);
        }
        Ok(())
    }

    fn read_output(&mut self, name: &str) -> Result<HostTensor> {
        let place = self.work.output(name)?;
        let bytes = self.context.read(&self.buffers[place.buffer], place.ty.bytes())?;
        Ok(HostTensor::from_bytes(&place.ty, &bytes))
    }

    fn allocated_bytes(&self) -> u64 {
        self.work.buffers.iter().map(|b| b.bytes).sum::<u64>() + self.extra_bytes
    }

    fn notes(&self) -> ExecutionNotes {
        self.notes.clone()
    }
}
