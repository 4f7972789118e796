//! Runs a lowered `Work`: pre-built pipelines and bind groups, one compute pass and one submission where the time budget
//! allows, and CPU twins for the calls a GPU cannot take.

use super::context::{Context, Origin, Pipeline};
use super::lowering::{Buf, Caps, Dispatch, Lowered, lower};
use super::tiles::Choices;
use super::twin::Twin;
use crate::device::{Call, CallTime, Executable, ExecutionNotes, Home, Memory, Place, Store, Work};
use crate::tensor::HostTensor;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Desktops reset a GPU that is busy for about this long.
const WATCHDOG_SECONDS: f64 = 2.0;

/// A submission is ended when its expected time passes this.
const SECONDS_PER_SUBMISSION: f64 = 0.5;

/// Until dispatches were measured their expected times are guesses: submissions are kept this much shorter.
const CAUTION: f64 = 4.0;

/// The run whose times are kept: drivers compile and allocate in the first.
const MEASURED_RUN: u64 = 1;

/// Shorter submissions say more about the cost of submitting than about the work.
const MEASURABLE_SECONDS: f64 = 2e-3;

pub struct Runner {
    pub(super) context: Arc<Context>,
    pub(super) work: Work,
    buffers: Vec<wgpu::Buffer>,
    /// Scratch memory and uniform parameters.
    workspace: Vec<wgpu::Buffer>,
    pub(super) steps: Vec<Step>,
    pub(super) batches: Vec<Batch>,
    runs: u64,
    notes: ExecutionNotes,
}

pub(super) enum Step {
    Gpu(Prepared),
    Cpu(Twin),
}

pub(super) struct Prepared {
    /// Index of the call it is part of.
    pub call: usize,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: [u32; 3],
    /// Expected, then measured.
    seconds: f64,
}

impl Prepared {
    pub fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.groups[0], self.groups[1], self.groups[2]);
    }
}

/// Neighbouring steps that go to the GPU in one submission, or one step that runs on the CPU.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Batch {
    Gpu(Range<usize>),
    Cpu(usize),
}

/// Cuts a plan into submissions of at most `budget` seconds; `seconds` are None for steps of the CPU. A step that is longer alone
/// is submitted alone.
fn batches(seconds: impl Iterator<Item = Option<f64>>, budget: f64) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut used = 0.0;
    for (i, step) in seconds.enumerate() {
        match (step, batches.last_mut()) {
            (None, _) => batches.push(Batch::Cpu(i)),
            (Some(s), Some(Batch::Gpu(range))) if used + s <= budget => {
                used += s;
                range.end = i + 1;
            }
            (Some(s), _) => {
                used = s;
                batches.push(Batch::Gpu(i..i + 1));
            }
        }
    }
    batches
}

/// Bytes of scratch memory and parameter blocks that `work` needs on a device with these capabilities.
pub fn workspace_bytes(work: &Work, caps: &Caps) -> u64 {
    let lowered = lower(work, caps);
    // A device has no empty buffers: an empty tensor takes one word.
    let padding: u64 = work.buffers.iter().map(|b| Context::rounded(b.bytes) - b.bytes).sum();
    scratch_sizes(&lowered).iter().sum::<u64>() + params_layout(&lowered).1 + padding
}

/// The calls of `work` that a device with these capabilities runs on the CPU, and those it cuts.
pub fn foreseen_notes(work: &Work, caps: &Caps) -> ExecutionNotes {
    notes_of(work, &lower(work, caps))
}

fn notes_of(work: &Work, lowered: &[Lowered]) -> ExecutionNotes {
    let mut notes = ExecutionNotes::default();
    for (call, l) in work.calls.iter().zip(lowered) {
        let name = format!("{} ({})", call.label, call.kernel.name());
        match &l.fallback {
            Some(why) => notes.fallback.push(format!("{name}: {why}")),
            None if l.split => notes.split.push(format!("{name}: {} dispatches", l.dispatches.len())),
            None => {}
        }
    }
    notes
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
        Self::of_lowered(context, work, lowered, store)
    }

    /// As `new`, with other forms of the kernels than the context's.
    pub fn with_choices(context: Arc<Context>, work: Work, store: &mut Store, choices: Choices) -> Result<Self> {
        let lowered = lower(&work, &Caps { tuned: Some(choices), ..*context.caps() });
        Self::of_lowered(context, work, lowered, store)
    }

    fn of_lowered(context: Arc<Context>, work: Work, lowered: Vec<Lowered>, store: &mut Store) -> Result<Self> {
        let mut buffers = Vec::new();
        for (i, spec) in work.buffers.iter().enumerate() {
            buffers.push(match &spec.home {
                Home::Variable(name) => match &store.get(name)?.memory {
                    Memory::Gpu(m) => m.clone(),
                    _ => return Err(Error::Graph(format!("variable '{name}' lives on another device"))),
                },
                Home::Constant(value) => {
                    let buffer = context.create_buffer(&describe(&work, i), spec.bytes)?;
                    context.write(&buffer, &value.to_bytes())?;
                    buffer
                }
                Home::Input(_) | Home::Transient => context.create_buffer(&describe(&work, i), spec.bytes)?,
            });
        }
        let scratch: Vec<wgpu::Buffer> = scratch_sizes(&lowered)
            .iter()
            .map(|b| context.create_buffer("scratch memory", *b))
            .collect::<Result<_>>()?;
        let (offsets, params_bytes) = params_layout(&lowered);
        let params = uniform_buffer(&context, &lowered, &offsets, params_bytes)?;

        let mut notes = notes_of(&work, &lowered);
        let pipelines = compile(&context, &lowered, &mut notes)?;
        let mut steps = Vec::new();
        for (index, l) in lowered.iter().enumerate() {
            let call = &work.calls[index];
            if l.fallback.is_some() {
                steps.push(Step::Cpu(Twin::new(index, &work)?));
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
                let call = index;
                steps.push(Step::Gpu(Prepared { call, pipeline, bind_group, groups: d.groups, seconds: d.seconds }));
                notes.dispatches += 1;
                notes.kernels.push(d.shader.label.clone());
            }
        }
        context.check()?;
        let mut workspace = scratch;
        workspace.extend(params);
        let mut runner = Runner { context, work, buffers, workspace, steps, batches: vec![], runs: 0, notes };
        runner.cut(SECONDS_PER_SUBMISSION / CAUTION / runner.context.slowness());
        Ok(runner)
    }

    /// Cuts the steps into submissions.
    fn cut(&mut self, budget: f64) {
        let seconds = self.steps.iter().map(|s| match s {
            Step::Gpu(p) => Some(p.seconds),
            Step::Cpu(_) => None,
        });
        self.batches = batches(seconds, budget);
        if self.batches.is_empty() && !self.work.copies.is_empty() {
            self.batches.push(Batch::Gpu(0..0));
        }
        self.notes.submissions = self.batches.iter().filter(|b| matches!(b, Batch::Gpu(_))).count();
    }

    /// Submits the dispatches of `range` and, with the last of a run, the copies at its end.
    pub(super) fn submit(&self, range: Range<usize>, last: bool) {
        let mut encoder = self.context.device.create_command_encoder(&Default::default());
        if !range.is_empty() {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for step in &self.steps[range] {
                if let Step::Gpu(p) = step {
                    p.encode(&mut pass);
                }
            }
        }
        if last {
            for (from, to) in &self.work.copies {
                let (a, b) = (&self.buffers[from.buffer], &self.buffers[to.buffer]);
                encoder.copy_buffer_to_buffer(a, 0, b, 0, from.ty.bytes());
            }
        }
        self.context.queue.submit([encoder.finish()]);
    }

    /// Runs the plan waiting after each submission, so that no unmeasured work queues up; gives the seconds each took.
    fn run_and_time(&self) -> Result<Vec<f64>> {
        self.context.wait()?;
        let mut times = Vec::new();
        for (i, batch) in self.batches.iter().enumerate() {
            let start = Instant::now();
            self.run_batch(batch, i + 1 == self.batches.len())?;
            self.context.wait()?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok(times)
    }

    fn run_and_learn(&mut self) -> Result<()> {
        let times = self.run_and_time()?;
        if self.runs == MEASURED_RUN {
            self.learn(&times);
        }
        self.runs += 1;
        Ok(())
    }

    /// Runs until nothing is compiled or measured any more.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        while self.runs <= MEASURED_RUN {
            self.run_and_learn()?;
        }
        Ok(())
    }

    pub(super) fn run_batch(&self, batch: &Batch, last: bool) -> Result<()> {
        match batch {
            Batch::Gpu(range) => self.submit(range.clone(), last),
            Batch::Cpu(step) => {
                if let Step::Cpu(twin) = &self.steps[*step] {
                    twin.run(&self.work, &self.context, &self.buffers)?;
                }
                if last && !self.work.copies.is_empty() {
                    self.submit(0..0, true);
                }
            }
        }
        Ok(())
    }

    /// Replaces expected by measured times and cuts the plan again.
    fn learn(&mut self, times: &[f64]) {
        let (mut expected_total, mut measured_total) = (0.0, 0.0);
        for (batch, &measured) in self.batches.iter().zip(times) {
            let Batch::Gpu(range) = batch else { continue };
            let steps = &mut self.steps[range.clone()];
            let all = || steps.iter().map(|s| if let Step::Gpu(p) = s { p.seconds } else { 0.0 });
            let (expected, n) = (all().sum::<f64>(), steps.len() as f64);
            for step in steps {
                let Step::Gpu(p) = step else { continue };
                // A dispatch costs something even when no work was foreseen.
                let share = if expected > 0.0 { 0.9 * p.seconds / expected + 0.1 / n } else { 1.0 / n };
                p.seconds = measured * share;
            }
            if measured >= MEASURABLE_SECONDS && expected > 0.0 {
                expected_total += expected;
                measured_total += measured;
            }
            if range.len() == 1 && measured > WATCHDOG_SECONDS && !self.context.caps().software {
                let index = self.steps[..range.start].iter().filter(|s| matches!(s, Step::Gpu(_))).count();
                let kernel = &self.notes.kernels[index];
                tracing::warn!(
                    "one dispatch of {kernel} took {measured:.1} s: the desktop may reset the GPU; use a smaller batch"
                );
            }
        }
        if expected_total > 0.0 {
            self.context.measured_slowness(measured_total / expected_total);
        }
        self.cut(SECONDS_PER_SUBMISSION);
    }
}

/// Compiles every distinct pipeline, several at a time (drivers compile in parallel; it dominates the start), and notes how many
/// and how long.
fn compile(context: &Context, lowered: &[Lowered], notes: &mut ExecutionNotes) -> Result<Vec<Vec<Pipeline>>> {
    let mut distinct: Vec<&Dispatch> = Vec::new();
    for d in lowered.iter().flat_map(|l| &l.dispatches) {
        if !distinct.iter().any(|e| same_pipeline(e, d)) {
            distinct.push(d);
        }
    }
    let start = Instant::now();
    let origins = distinct.par_iter().map(|d| pipeline(context, d).map(|(_, o)| o)).collect::<Result<Vec<Origin>>>()?;
    notes.pipelines = origins.iter().filter(|o| **o != Origin::Context).count();
    notes.pipelines_cached = origins.iter().filter(|o| **o == Origin::Cache).count();
    if notes.pipelines > 0 {
        notes.pipeline_seconds = start.elapsed().as_secs_f64();
    }
    context.save_pipelines();
    let known = |d: &Dispatch| pipeline(context, d).map(|(p, _)| p);
    lowered.iter().map(|l| l.dispatches.iter().map(known).collect()).collect()
}

fn same_pipeline(a: &Dispatch, b: &Dispatch) -> bool {
    Arc::ptr_eq(&a.shader.source, &b.shader.source)
        && a.binds.iter().map(|x| x.write).eq(b.binds.iter().map(|x| x.write))
}

fn pipeline(context: &Context, d: &Dispatch) -> Result<(Pipeline, Origin)> {
    let writable: Vec<bool> = d.binds.iter().map(|b| b.write).collect();
    context.pipeline(&d.shader, &writable, !d.params.is_empty())
}

fn uniform_buffer(
    context: &Context,
    lowered: &[Lowered],
    offsets: &[Vec<u64>],
    bytes: u64,
) -> Result<Option<wgpu::Buffer>> {
    if bytes == 0 {
        return Ok(None);
    }
    let mut data = vec![0u8; bytes as usize];
    for (l, offsets) in lowered.iter().zip(offsets) {
        for (d, at) in l.dispatches.iter().zip(offsets) {
            let words: &[u8] = bytemuck::cast_slice(&d.params);
            data[*at as usize..*at as usize + words.len()].copy_from_slice(words);
        }
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let buffer = context.create("kernel parameters", bytes, usage)?;
    context.write(&buffer, &data)?;
    Ok(Some(buffer))
}

/// Says what a buffer holds, for errors: the largest tensor in it and the node that makes or reads it.
fn describe(work: &Work, buffer: usize) -> String {
    let largest = |places: fn(&Call) -> &[Place]| {
        let used = work.calls.iter().flat_map(|c| places(c).iter().map(move |p| (c, p)));
        used.filter(|(_, p)| p.buffer == buffer).max_by_key(|(_, p)| p.ty.bytes())
    };
    match (&work.buffers[buffer].home, largest(|c| &c.outputs), largest(|c| &c.inputs)) {
        (Home::Variable(name), ..) => format!("variable '{name}'"),
        (Home::Input(name), ..) => {
            let declared = work.inputs.iter().find(|(_, p)| p.buffer == buffer);
            format!("input '{name}'{}", declared.map_or(String::new(), |(_, p)| format!(" {}", p.ty)))
        }
        (Home::Constant(value), _, reader) => {
            format!("a constant {} of node '{}'", value.ty(), reader.map_or("", |(c, _)| &c.label))
        }
        (Home::Transient, Some((call, place)), _) => format!("the result {} of node '{}'", place.ty, call.label),
        (Home::Transient, None, _) => "an unused buffer".into(),
    }
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

impl Executable for Runner {
    fn write_input(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let place = self.work.input(name, &value.ty())?;
        self.context.write(&self.buffers[place.buffer], &value.to_bytes())
    }

    fn run(&mut self) -> Result<()> {
        self.context.check()?;
        if self.runs <= MEASURED_RUN {
            return self.run_and_learn();
        }
        for (i, batch) in self.batches.iter().enumerate() {
            self.run_batch(batch, i + 1 == self.batches.len())?;
        }
        self.context.check()
    }

    fn read_output(&mut self, name: &str) -> Result<HostTensor> {
        let place = self.work.output(name)?;
        let bytes = self.context.read(&self.buffers[place.buffer], place.ty.bytes())?;
        Ok(HostTensor::from_bytes(&place.ty, &bytes))
    }

    fn allocated_bytes(&self) -> u64 {
        self.buffers.iter().chain(&self.workspace).map(|b| b.size()).sum()
    }

    fn notes(&self) -> ExecutionNotes {
        self.notes.clone()
    }

    fn profile(&mut self, runs: usize) -> Result<Vec<CallTime>> {
        self.context.check()?;
        self.times(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_ends_when_its_expected_time_is_used_up_and_at_every_step_of_the_cpu() {
        let gpu = |s: f64| Some(s);
        let cut = |steps: &[Option<f64>]| batches(steps.iter().copied(), 0.5);
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[gpu(0.1), gpu(0.2), gpu(0.1)]), [Batch::Gpu(0..3)]);
        assert_eq!(cut(&[gpu(0.3), gpu(0.3), gpu(0.1)]), [Batch::Gpu(0..1), Batch::Gpu(1..3)]);
        assert_eq!(cut(&[gpu(9.0), gpu(0.1)]), [Batch::Gpu(0..1), Batch::Gpu(1..2)]);
        assert_eq!(
            cut(&[gpu(0.0), None, None, gpu(0.0)]),
            [Batch::Gpu(0..1), Batch::Cpu(1), Batch::Cpu(2), Batch::Gpu(3..4)]
        );
    }
}
