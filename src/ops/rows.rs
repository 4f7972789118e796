//! What row kernels on a GPU have in common: which invocations share a row, how rows are cut for bindings, and the declarations
//! of a shader's tensors. The shader side is `shaders/rows.wgsl`.

use crate::device::Unsupported;
use crate::device::gpu::tiles::{RowForm, WIDE_ROW};
use crate::device::gpu::{Bind, Buf, Caps, Lowering, Params};
use minijinja::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

/// The invocations that share one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Team {
    /// The variable `team` of the shader.
    pub kind: &'static str,
    /// Invocations of a workgroup.
    pub size: u32,
    /// Teams in a workgroup, at least.
    per_group: u32,
}

impl Team {
    pub fn choose(caps: &Caps, width: usize) -> Team {
        let (_, largest) = caps.subgroup_sizes;
        let (form, narrow) = (caps.choices().rows.available(caps), width <= WIDE_ROW);
        let subgroup = |size| Team { kind: "subgroup", size, per_group: size / largest };
        match form {
            RowForm::Subgroup => subgroup(largest),
            RowForm::PackedSubgroups if narrow => subgroup(largest.max(64)),
            _ => {
                let kind = if caps.features.subgroups { "subgroups" } else { "workgroup" };
                Team { kind, size: if narrow { 64 } else { 256 }, per_group: 1 }
            }
        }
    }

    pub fn groups(&self, lowering: &Lowering, rows: usize) -> [u32; 3] {
        lowering.line(rows.div_ceil(self.per_group as usize))
    }

    /// Variables of `rows.wgsl` for elements of `lanes` floats (1 or 4).
    pub fn variables(&self, lanes: usize) -> BTreeMap<String, Value> {
        let mut v = element_variables(lanes);
        v.insert("team".into(), self.kind.into());
        v.insert("size".into(), self.size.into());
        v
    }
}

/// `T` and `W`: the type of an element of `lanes` floats, and its width.
pub fn element_variables(lanes: usize) -> BTreeMap<String, Value> {
    let element = if lanes == 4 { "vec4<f32>" } else { "f32" };
    BTreeMap::from([("T".to_string(), element.into()), ("W".to_string(), lanes.into())])
}

/// Four when `width` elements can be read four at a time.
pub fn lanes(width: usize) -> usize {
    if width.is_multiple_of(4) && width > 0 { 4 } else { 1 }
}

/// A binding of the 4-byte elements `range` of `buf`, and the element it starts at: bindings start aligned, at or before the
/// range. The start is a multiple of four elements.
pub fn window(lowering: &Lowering, buf: Buf, range: Range<usize>, write: bool) -> (Bind, usize) {
    let align = (lowering.caps.limits.offset_alignment / 4).max(4) as usize;
    let start = range.start / align * align;
    let bytes = start as u64 * 4..range.end as u64 * 4;
    let bind = if write { lowering.write_part(buf, bytes) } else { lowering.read_part(buf, bytes) };
    (bind, start)
}

/// Cuts `units` into ranges so that each tensor, `unit_bytes` of it a unit at most, fits a binding with room to start aligned
/// (see `window`), and one range's expected time is inside the watchdog's budget.
pub fn cut(caps: &Caps, units: usize, unit_bytes: &[u64], unit_flops: f64) -> Result<Vec<Range<usize>>, Unsupported> {
    let limits = &caps.limits;
    let largest = unit_bytes.iter().copied().max().unwrap_or(0);
    let total: u64 = unit_bytes.iter().sum();
    let seconds = (unit_flops / caps.flops_per_second).max(total as f64 / caps.bytes_per_second).max(1e-15);
    let by_time = (caps.seconds_per_dispatch / seconds).max(1.0) as usize;
    let by_binding = match largest {
        0 => usize::MAX,
        b if units as u64 * b <= limits.max_binding => usize::MAX,
        b => (limits.max_binding.saturating_sub(limits.offset_alignment) / b) as usize,
    };
    let size = by_time.min(by_binding);
    if size == 0 {
        return Err(Unsupported(format!(
            "a row of {largest} bytes does not fit a binding of {} bytes",
            limits.max_binding
        )));
    }
    Ok((0..units.div_ceil(size)).map(|i| i * size..((i + 1) * size).min(units)).collect())
}

/// How a kernel uses a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    /// This many elements belong to each row.
    Row(usize),
    /// All of it, read by every row.
    Whole,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: &'static str,
    buf: Buf,
    usage: Use,
    write: bool,
    integer: bool,
}

/// A row kernel in the making: its tensors and parameters. The shader gets them declared where it says `{{ declarations }}`: each tensor
/// under its name, and the uniform block `p` with `rows`, `width` (elements of type T in a row), for each tensor cut by rows `<name>0`
/// (what to add to `row * elements a row` to index its binding), and the parameters.
pub struct RowKernel {
    label: &'static str,
    template: &'static str,
    rows: usize,
    width: usize,
    flops: f64,
    tensors: Vec<Tensor>,
    fields: Vec<(&'static str, &'static str)>,
    params: Params,
    flags: BTreeMap<String, Value>,
}

impl RowKernel {
    /// `rows` rows of `width` elements; `flops` for each element.
    pub fn new(label: &'static str, template: &'static str, rows: usize, width: usize, flops: f64) -> Self {
        let (tensors, fields, params, flags) = Default::default();
        RowKernel { label, template, rows, width, flops, tensors, fields, params, flags }
    }
    fn tensor(mut self, name: &'static str, buf: Buf, usage: Use, write: bool, integer: bool) -> Self {
        self.tensors.push(Tensor { name, buf, usage, write, integer });
        self
    }
    /// Reads a tensor of `rows` rows of the kernel's width.
    pub fn read(self, name: &'static str, buf: Buf) -> Self {
        let width = self.width;
        self.tensor(name, buf, Use::Row(width), false, false)
    }
    pub fn write(self, name: &'static str, buf: Buf) -> Self {
        let width = self.width;
        self.tensor(name, buf, Use::Row(width), true, false)
    }
    /// Reads one number a row.
    pub fn read_one(self, name: &'static str, buf: Buf) -> Self {
        self.tensor(name, buf, Use::Row(1), false, false)
    }
    pub fn write_one(self, name: &'static str, buf: Buf) -> Self {
        self.tensor(name, buf, Use::Row(1), true, false)
    }
    /// Reads one i32 a row.
    pub fn read_index(self, name: &'static str, buf: Buf) -> Self {
        self.tensor(name, buf, Use::Row(1), false, true)
    }
    /// Reads a tensor of one row that all rows use.
    pub fn read_whole(self, name: &'static str, buf: Buf) -> Self {
        self.tensor(name, buf, Use::Whole, false, false)
    }
    pub fn f32(mut self, name: &'static str, value: f64) -> Self {
        self.fields.push((name, "f32"));
        self.params = self.params.f32(value);
        self
    }
    /// A variable of the template.
    pub fn flag(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.flags.insert(name.into(), value.into());
        self
    }

    fn declarations(&self, element: &str) -> String {
        let (mut text, mut bases) = (String::new(), String::new());
        for (k, t) in self.tensors.iter().enumerate() {
            let access = if t.write { "read_write" } else { "read" };
            let element = match t.usage {
                _ if t.integer => "i32",
                Use::Row(1) if self.width != 1 => "f32",
                _ => element,
            };
            let _ = writeln!(text, "@group(0) @binding({k}) var<storage, {access}> {}: array<{element}>;", t.name);
            if t.usage != Use::Whole {
                let _ = write!(bases, ", {}0: u32", t.name);
            }
        }
        let fields: String = self.fields.iter().map(|(name, ty)| format!(", {name}: {ty}")).collect();
        let _ = writeln!(text, "struct Params {{ rows: u32, width: u32{bases}{fields} }}");
        let _ = writeln!(text, "@group(0) @binding({}) var<uniform> p: Params;", self.tensors.len());
        text
    }

    pub fn lower(self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        if self.rows == 0 {
            return Ok(());
        }
        let lanes = lanes(self.width);
        let team = Team::choose(lowering.caps, self.width);
        let mut variables = team.variables(lanes);
        variables.extend(self.flags.clone());
        let element = if lanes == 4 { "vec4<f32>" } else { "f32" };
        variables.insert("declarations".into(), self.declarations(element).into());
        let variables = Value::from_pairs(variables);
        let row_bytes: Vec<u64> =
            self.tensors.iter().map(|t| if let Use::Row(n) = t.usage { 4 * n as u64 } else { 0 }).collect();
        for range in cut(lowering.caps, self.rows, &row_bytes, self.flops * self.width as f64)? {
            let mut binds = Vec::new();
            let mut params = Params::new().u32(range.len()).u32(self.width / lanes);
            for t in &self.tensors {
                let Use::Row(n) = t.usage else {
                    binds.push(lowering.read(t.buf));
                    continue;
                };
                let (bind, start) = window(lowering, t.buf, range.start * n..range.end * n, t.write);
                binds.push(bind);
                let per_element = if n == self.width { lanes } else { 1 };
                params = params.u32((range.start * n - start) / per_element);
            }
            params.0.extend(&self.params.0);
            let groups = team.groups(lowering, range.len());
            let label = format!("{}/{}{}", self.label, team.kind, if lanes == 4 { "/vec4" } else { "" });
            lowering.dispatch(label, self.template, variables.clone(), &binds, params, groups)?;
        }
        Ok(())
    }
}
