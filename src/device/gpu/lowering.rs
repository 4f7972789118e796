//! From operator calls to dispatches. Lowering is pure: it sees types and capabilities, never a device, so every variant of
//! every shader can be listed, validated and counted on a machine without a GPU.

use super::shader;
use super::tiles::{Choices, Class};
use crate::device::{Call, Unsupported, Work};
use crate::tensor::{DType, TensorType};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

/// Optional abilities a kernel may use. Each has a plain WGSL form beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Features {
    /// `subgroupAdd` and friends; sizes lie in `Caps::subgroup_sizes`.
    pub subgroups: bool,
    pub f16: bool,
    /// `dot4I8Packed` runs in hardware.
    pub packed_dot: bool,
    /// Matrices shared by a subgroup, f16 in and f32 out, 16 or 8 on a side (`Caps::cooperative_size`).
    pub cooperative_matrix: bool,
    pub timestamps: bool,
    pub pipeline_cache: bool,
}

impl Features {
    pub const NONE: Features = Features {
        subgroups: false,
        f16: false,
        packed_dot: false,
        cooperative_matrix: false,
        timestamps: false,
        pipeline_cache: false,
    };
    pub const ALL: Features = Features {
        subgroups: true,
        f16: true,
        packed_dot: true,
        cooperative_matrix: true,
        timestamps: true,
        pipeline_cache: true,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Bytes of one storage binding.
    pub max_binding: u64,
    pub max_buffer: u64,
    /// Alignment of the start of a binding.
    pub offset_alignment: u64,
    pub max_groups_per_dimension: u32,
    pub max_invocations: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    pub max_storage_buffers: u32,
}

impl Limits {
    /// WebGPU's defaults: what every device has.
    pub const WEBGPU: Limits = Limits {
        max_binding: 128 << 20,
        max_buffer: 256 << 20,
        offset_alignment: 256,
        max_groups_per_dimension: 65535,
        max_invocations: 256,
        workgroup_memory: 16 << 10,
        max_storage_buffers: 8,
    };
}

/// What a device can do and how fast it is thought to be: everything a kernel may base a choice on.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Caps {
    pub features: Features,
    pub limits: Limits,
    /// Smallest and largest subgroup.
    pub subgroup_sizes: (u32, u32),
    /// A CPU pretending to be a GPU: barriers and workgroup memory are slow there.
    pub software: bool,
    /// What the driver says the hardware is; see `Caps::class`.
    pub class: Class,
    /// Side of a cooperative matrix, 0 without the feature.
    pub cooperative_size: u32,
    /// What was measured to be best here, in place of the table's row.
    pub tuned: Option<Choices>,
    /// Rough rates that cut work for the watchdog: FLOP/s and bytes/s.
    pub flops_per_second: f64,
    pub bytes_per_second: f64,
    /// Longest time one dispatch may be expected to take.
    pub seconds_per_dispatch: f64,
}

impl Caps {
    /// The least a WebGPU device offers.
    pub const PLAIN: Caps = Caps {
        features: Features::NONE,
        limits: Limits::WEBGPU,
        subgroup_sizes: (0, 0),
        software: false,
        class: Class::Unknown,
        cooperative_size: 0,
        tuned: None,
        flops_per_second: 5e9,
        bytes_per_second: 5e9,
        seconds_per_dispatch: 0.1,
    };

    /// The class that decides the shapes of kernels. A GPU of which only the subgroups are known is taken for a discrete one where
    /// these are 32 or wider.
    pub fn class(&self) -> Class {
        match self.class {
            _ if self.software => Class::Software,
            Class::Unknown | Class::Software if self.features.subgroups && self.subgroup_sizes.0 >= 32 => {
                Class::Discrete
            }
            Class::Software => Class::Unknown,
            class => class,
        }
    }
    /// Which form of each kernel this device is given.
    pub fn choices(&self) -> Choices {
        Choices::of(self)
    }
}

/// Which memory a binding refers to, seen from the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buf {
    In(usize),
    Out(usize),
    /// Index given by `Lowering::scratch`.
    Scratch(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bind {
    pub buf: Buf,
    pub offset: u64,
    pub bytes: u64,
    pub write: bool,
}

/// A shader variant: WGSL text and what to call it.
#[derive(Clone, Debug, PartialEq)]
pub struct Shader {
    /// Names the kernel and variant, e.g. `softmax/subgroup`. Tests assert on it.
    pub label: String,
    pub source: Arc<str>,
    pub entry: &'static str,
}

#[derive(Clone, Debug)]
pub struct Dispatch {
    pub shader: Shader,
    /// Storage bindings 0..n of group 0, in order.
    pub binds: Vec<Bind>,
    /// Words of the uniform block, bound as binding n (absent when empty).
    pub params: Vec<u32>,
    pub groups: [u32; 3],
    /// Expected seconds, for the time budget of a submission.
    pub seconds: f64,
}

/// What an operator's `gpu` writes into.
pub struct Lowering<'a> {
    pub caps: &'a Caps,
    call: &'a Call,
    /// `(input, output)` pairs that share memory in this plan.
    pub aliases: Vec<(usize, usize)>,
    dispatches: Vec<Dispatch>,
    scratch: Vec<u64>,
    /// Whether `chunks` had to cut anything.
    split: Cell<bool>,
    /// Inputs that are widened here but hold values of f16.
    f16_inputs: Vec<usize>,
}

/// Parameters of a dispatch, packed as 32-bit words in the order of the shader's uniform struct.
#[derive(Clone, Debug, Default)]
pub struct Params(pub Vec<u32>);

impl<'a> Lowering<'a> {
    pub fn new(caps: &'a Caps, call: &'a Call) -> Self {
        let mut aliases = Vec::new();
        for (i, p) in call.inputs.iter().enumerate() {
            for (o, q) in call.outputs.iter().enumerate() {
                if p.buffer == q.buffer {
                    aliases.push((i, o));
                }
            }
        }
        Lowering {
            caps,
            call,
            aliases,
            dispatches: vec![],
            scratch: vec![],
            split: Cell::new(false),
            f16_inputs: vec![],
        }
    }

    pub fn input(&self, i: usize) -> &'a TensorType {
        &self.call.inputs[i].ty
    }
    pub fn output(&self, o: usize) -> &'a TensorType {
        &self.call.outputs[o].ty
    }
    /// Whether every value of input `i` is one of f16: rounding it to f16 changes nothing.
    pub fn holds_f16(&self, i: usize) -> bool {
        self.input(i).dtype == DType::F16 || self.f16_inputs.contains(&i)
    }
    pub fn inputs(&self) -> usize {
        self.call.inputs.len()
    }
    pub fn outputs(&self) -> usize {
        self.call.outputs.len()
    }
    /// The output that shares memory with input `i`, if any: the shader must then go through the output's binding.
    pub fn alias_of(&self, i: usize) -> Option<usize> {
        self.aliases.iter().find(|(a, _)| *a == i).map(|(_, o)| *o)
    }

    /// Memory for the duration of this call.
    pub fn scratch(&mut self, bytes: u64) -> Buf {
        self.scratch.push(bytes.next_multiple_of(256).max(256));
        Buf::Scratch(self.scratch.len() - 1)
    }

    fn bytes(&self, buf: Buf) -> u64 {
        match buf {
            Buf::In(i) => self.input(i).bytes(),
            Buf::Out(o) => self.output(o).bytes(),
            Buf::Scratch(s) => self.scratch[s],
        }
    }
    /// Binds the whole of `buf` for reading.
    pub fn read(&self, buf: Buf) -> Bind {
        Bind { buf, offset: 0, bytes: self.bytes(buf), write: false }
    }
    /// Binds the whole of `buf` for reading and writing.
    pub fn write(&self, buf: Buf) -> Bind {
        Bind { write: true, ..self.read(buf) }
    }
    /// Part of `buf`, in bytes; the start must be a multiple of `limits.offset_alignment` (see `chunks`).
    pub fn read_part(&self, buf: Buf, bytes: Range<u64>) -> Bind {
        Bind { buf, offset: bytes.start, bytes: (bytes.end - bytes.start).next_multiple_of(4), write: false }
    }
    pub fn write_part(&self, buf: Buf, bytes: Range<u64>) -> Bind {
        Bind { write: true, ..self.read_part(buf, bytes) }
    }

    /// Cuts `rows` independent rows into ranges, so that each tensor that is bound by rows (`row_bytes`: bytes a row in each)
    /// stays inside a binding, starts aligned, and one range's expected time (from FLOPs and bytes a row) stays inside the
    /// watchdog budget. One range is the usual result.
    pub fn chunks(&self, rows: usize, row_bytes: &[u64], row_flops: f64) -> Result<Vec<Range<usize>>, Unsupported> {
        let limits = &self.caps.limits;
        let bytes: u64 = row_bytes.iter().sum();
        let seconds = (row_flops / self.caps.flops_per_second).max(bytes as f64 / self.caps.bytes_per_second);
        let by_time =
            (self.caps.seconds_per_dispatch / seconds.max(1e-15)).max(1.0).min(usize::MAX as f64 / 4.0) as usize;
        let by_binding = row_bytes.iter().filter(|b| **b > 0).map(|b| (limits.max_binding / b) as usize).min();
        let most = by_time.min(by_binding.unwrap_or(usize::MAX));
        if rows <= most {
            return Ok(std::iter::once(0..rows).collect());
        }
        // Rows per range such that every tensor's range starts aligned.
        let step =
            row_bytes.iter().filter(|b| **b > 0).map(|b| limits.offset_alignment / gcd(*b, limits.offset_alignment));
        let step = step.max().unwrap_or(1) as usize;
        if by_binding.is_some_and(|b| b < step) {
            let (max, row) = (limits.max_binding, row_bytes.iter().max().copied().unwrap_or(0));
            return Err(Unsupported(format!("{step} rows of {row} bytes do not fit a binding of {max} bytes")));
        }
        self.split.set(true);
        let size = (most / step * step).max(step);
        Ok((0..rows.div_ceil(size)).map(|i| i * size..((i + 1) * size).min(rows)).collect())
    }

    /// As `chunks`, but a range may start at any row: bind it with `window`. A binding also holds `slack` bytes beside
    /// the rows.
    pub fn pieces(
        &self,
        rows: usize,
        row_bytes: &[u64],
        row_flops: f64,
        slack: u64,
    ) -> Result<Vec<Range<usize>>, Unsupported> {
        let (widest, bytes) = (row_bytes.iter().max().copied().unwrap_or(0), row_bytes.iter().sum::<u64>());
        let seconds = (row_flops / self.caps.flops_per_second).max(bytes as f64 / self.caps.bytes_per_second);
        let by_time = (self.caps.seconds_per_dispatch / seconds.max(1e-15)).max(1.0);
        let limits = &self.caps.limits;
        if rows as f64 <= by_time && rows as u64 * widest <= limits.max_binding {
            return Ok(std::iter::once(0..rows).collect());
        }
        let by_binding = limits.max_binding.saturating_sub(slack + limits.offset_alignment) / widest.max(1);
        if by_binding == 0 {
            let max = limits.max_binding;
            return Err(Unsupported(format!("a row of {widest} bytes does not fit a binding of {max} bytes")));
        }
        self.split.set(true);
        let size = (by_binding as f64).min(by_time) as usize;
        Ok((0..rows.div_ceil(size)).map(|i| i * size..((i + 1) * size).min(rows)).collect())
    }

    /// Binds `bytes` of `buf`, from the last place before them where a binding may start; returns with it how many
    /// 32-bit words come before the first one asked for.
    pub fn window(&self, buf: Buf, bytes: Range<u64>, write: bool) -> (Bind, usize) {
        let start = bytes.start / self.caps.limits.offset_alignment * self.caps.limits.offset_alignment;
        let ahead = (bytes.start - start) as usize / 4;
        (Bind { write, ..self.read_part(buf, start..bytes.end) }, ahead)
    }

    /// Refuses an invocation that goes round loops `iterations` times in all, where that is more than the device runs:
    /// Mesa's software devices end every loop silently after 65 535 rounds of all loops together (gallivm's loop
    /// limiter).
    pub fn loops(&self, iterations: usize) -> Result<(), Unsupported> {
        const SOFTWARE: usize = 60_000;
        if self.caps.software && iterations > SOFTWARE {
            return Err(Unsupported(format!("{iterations} rounds of loops exceed what a software device runs")));
        }
        Ok(())
    }

    /// Writes the dispatches of `operator` with every 16-bit operand as f32 in scratch memory: widened before, and results rounded
    /// back after. For operators whose shaders read and write f32 only.
    pub fn widened(
        &mut self,
        operator: impl FnOnce(&mut Lowering) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        let mut call = self.call.clone();
        let (inputs, outputs) = (call.inputs.len(), call.outputs.len());
        // A widened operand is in memory of its own, shared with nothing.
        let mut own = call.inputs.iter().chain(&call.outputs).map(|p| p.buffer).max().unwrap_or(0);
        let mut moved: Vec<(Buf, Buf)> = Vec::new();
        let bufs = (0..inputs).map(Buf::In).chain((0..outputs).map(Buf::Out));
        for (place, buf) in call.inputs.iter_mut().chain(&mut call.outputs).zip(bufs) {
            if place.ty.dtype.is_half() {
                own += 1;
                (place.ty.dtype, place.buffer) = (DType::F32, own);
                moved.push((buf, self.scratch(place.ty.bytes())));
            }
        }
        for (buf, wide) in moved.iter().filter(|(b, _)| matches!(b, Buf::In(_))) {
            self.convert(*buf, *wide, false)?;
        }
        let scratch = std::mem::take(&mut self.scratch);
        let f16_inputs = (0..inputs).filter(|i| self.holds_f16(*i)).collect();
        let mut inner = Lowering { scratch, f16_inputs, ..Lowering::new(self.caps, &call) };
        let result = operator(&mut inner);
        self.scratch = inner.scratch;
        self.split.set(self.split.get() || inner.split.get());
        for mut dispatch in inner.dispatches {
            for bind in &mut dispatch.binds {
                bind.buf = moved.iter().find(|(b, _)| *b == bind.buf).map_or(bind.buf, |(_, wide)| *wide);
            }
            self.dispatches.push(dispatch);
        }
        result?;
        for (buf, wide) in moved.iter().filter(|(b, _)| matches!(b, Buf::Out(_))) {
            self.convert(*buf, *wide, true)?;
        }
        Ok(())
    }

    /// Converts the 16-bit operand `half` from or (`narrow`) to the f32 values in `wide`.
    fn convert(&mut self, half: Buf, wide: Buf, narrow: bool) -> Result<(), Unsupported> {
        let ty = match half {
            Buf::In(i) => self.input(i),
            Buf::Out(o) => self.output(o),
            Buf::Scratch(_) => unreachable!("scratch memory has no type"),
        };
        let (n, name) = (ty.elements(), ty.dtype.to_string());
        for pairs in self.chunks(n.div_ceil(2), &[4, 8], 0.0)? {
            let (first, end) = (2 * pairs.start, n.min(2 * pairs.end));
            let (words, floats) = (4 * pairs.start as u64..4 * pairs.end as u64, 4 * first as u64..4 * end as u64);
            let binds = match narrow {
                true => [self.read_part(wide, floats), self.write_part(half, words)],
                false => [self.read_part(half, words), self.write_part(wide, floats)],
            };
            let label = format!("convert/{name}{}", if narrow { "/narrow" } else { "" });
            let variables = minijinja::context! { half => &name, narrow };
            let (params, groups) = (Params::new().u32(end - first), self.line(pairs.len().div_ceil(64)));
            self.dispatch(label, crate::shader!("convert.wgsl"), variables, &binds, params, groups)?;
        }
        Ok(())
    }

    /// Workgroup counts for `n` workgroups in one line; the shader reads `wid.x + wid.y * num_workgroups.x` and must
    /// ignore indices from `n` on.
    pub fn line(&self, n: usize) -> [u32; 3] {
        let max = self.caps.limits.max_groups_per_dimension as usize;
        if n <= max {
            return [n.max(1) as u32, 1, 1];
        }
        let y = n.div_ceil(max);
        [n.div_ceil(y) as u32, y as u32, 1]
    }

    /// Adds a dispatch of the shader file `template` (its text) rendered with `variables`.
    pub fn dispatch(
        &mut self,
        label: impl Into<String>,
        template: &'static str,
        variables: minijinja::Value,
        binds: &[Bind],
        params: Params,
        groups: [u32; 3],
    ) -> Result<(), Unsupported> {
        let source = shader::render(template, &variables).map_err(|e| Unsupported(e.to_string()))?;
        self.dispatch_source(Shader { label: label.into(), source, entry: "main" }, binds, params, groups)
    }

    /// As `dispatch`, for templates that declare their storage from the list `bindings` of `{name, access}`.
    pub fn dispatch_named(
        &mut self,
        label: impl Into<String>,
        template: &'static str,
        variables: minijinja::Value,
        binds: &[(&'static str, Bind)],
        params: Params,
        groups: [u32; 3],
    ) -> Result<(), Unsupported> {
        let access = |b: &Bind| if b.write { "read_write" } else { "read" };
        let bindings: Vec<_> =
            binds.iter().map(|(name, b)| minijinja::context! { name => *name, access => access(b) }).collect();
        let variables = minijinja::context! { bindings, ..variables };
        let binds: Vec<Bind> = binds.iter().map(|(_, b)| *b).collect();
        self.dispatch(label, template, variables, &binds, params, groups)
    }

    /// As `dispatch`, for WGSL made by the operator itself.
    pub fn dispatch_source(
        &mut self,
        shader: Shader,
        binds: &[Bind],
        params: Params,
        groups: [u32; 3],
    ) -> Result<(), Unsupported> {
        let limits = &self.caps.limits;
        let label = &shader.label;
        if binds.len() > limits.max_storage_buffers as usize {
            let (n, max) = (binds.len(), limits.max_storage_buffers);
            return Err(Unsupported(format!("{label} binds {n} storage buffers, the device allows {max}")));
        }
        for b in binds {
            if b.bytes > limits.max_binding {
                return Err(Unsupported(format!(
                    "{label} binds {} bytes, the device allows {}",
                    b.bytes, limits.max_binding
                )));
            }
            if b.offset % limits.offset_alignment != 0 {
                let align = limits.offset_alignment;
                return Err(Unsupported(format!("{label} binds at {}, not a multiple of {align}", b.offset)));
            }
        }
        if groups.iter().any(|g| *g > limits.max_groups_per_dimension) {
            return Err(Unsupported(format!("{label} needs {groups:?} workgroups")));
        }
        if groups.contains(&0) {
            return Ok(());
        }
        self.dispatches.push(Dispatch { shader, binds: binds.to_vec(), params: params.0, groups, seconds: 0.0 });
        Ok(())
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Params {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn u32(mut self, v: usize) -> Self {
        self.0.push(v as u32);
        self
    }
    pub fn i32(mut self, v: i64) -> Self {
        self.0.push(v as i32 as u32);
        self
    }
    pub fn f32(mut self, v: f64) -> Self {
        self.0.push((v as f32).to_bits());
        self
    }
}

/// One call made ready for a GPU: its dispatches, or why its CPU twin must run.
#[derive(Clone, Debug)]
pub struct Lowered {
    pub dispatches: Vec<Dispatch>,
    pub scratch: Vec<u64>,
    pub fallback: Option<String>,
    /// Work was cut because of a limit or the time budget.
    pub split: bool,
}

/// Lowers every call of `work`. A call whose tensors hold no element needs no dispatch.
pub fn lower(work: &Work, caps: &Caps) -> Vec<Lowered> {
    work.calls
        .iter()
        .map(|call| {
            if call.outputs.iter().all(|p| p.ty.elements() == 0) {
                return Lowered { dispatches: vec![], scratch: vec![], fallback: None, split: false };
            }
            let mut lowering = Lowering::new(caps, call);
            match call.kernel.gpu(&mut lowering) {
                Ok(()) => {
                    let mut dispatches = lowering.dispatches;
                    let share = dispatches.len().max(1) as f64;
                    let (flops, bytes) = (call.cost.flops / share, call.cost.bytes() / share);
                    let seconds = (flops / caps.flops_per_second).max(bytes / caps.bytes_per_second);
                    dispatches.iter_mut().for_each(|d| d.seconds = seconds);
                    Lowered { dispatches, scratch: lowering.scratch, fallback: None, split: lowering.split.get() }
                }
                Err(Unsupported(why)) => {
                    Lowered { dispatches: vec![], scratch: vec![], fallback: Some(why), split: false }
                }
            }
        })
        .collect()
}
