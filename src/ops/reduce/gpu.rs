//! Reductions on a GPU: the reduced axis is cut into blocks, each block is reduced, and the blocks' results are reduced again until
//! one is left. The order of additions depends on shapes and device only, so the bits of a result do not vary from run to run.

use super::Reduction;
use crate::device::Unsupported;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::ops::rows::{Team, cut, element_variables, lanes, window};
use minijinja::Value;

/// Columns: rows that one invocation adds up at least.
const COLUMN_BLOCK: usize = 32;
/// Rows: elements that one team adds up at least, and rows from which on there is work enough without cutting them.
const ROW_BLOCK: usize = 4096;
const MANY_ROWS: usize = 256;

/// Reduces the middle axis of `src` [outer, length, inner] into `dst` [outer, inner]; both f32.
pub fn lower(
    lowering: &mut Lowering,
    kind: Reduction,
    (src, dst): (Buf, Buf),
    (outer, length, inner): (usize, usize, usize),
) -> Result<(), Unsupported> {
    let mut stage = Stage {
        kind: match kind {
            Reduction::Sum | Reduction::Mean => "sum",
            Reduction::SumSquares => "squares",
            Reduction::Max => "max",
            Reduction::Min => "min",
        },
        src,
        dst,
        outer,
        length,
        inner,
        block: length.max(1),
        scale: 1.0,
    };
    loop {
        stage.block = stage.choose_block(lowering)?;
        let blocks = stage.length.div_ceil(stage.block).max(1);
        let last = blocks == 1;
        stage.dst = if last { dst } else { lowering.scratch((stage.outer * blocks * stage.inner * 4) as u64) };
        stage.scale = if last && kind == Reduction::Mean { 1.0 / length as f64 } else { 1.0 };
        if stage.inner == 1 {
            stage.rows(lowering, blocks)?
        } else {
            stage.columns(lowering, blocks)?
        }
        if last {
            return Ok(());
        }
        (stage.src, stage.length) = (stage.dst, blocks);
        if stage.kind == "squares" {
            stage.kind = "sum";
        }
    }
}

/// Rows of one block of a column reduction [outer, length, inner].
pub fn column_block(lowering: &Lowering, outer: usize, length: usize, inner: usize) -> Result<usize, Unsupported> {
    let limits = &lowering.caps.limits;
    let threads = lowering.caps.choices().busy_invocations;
    let columns = inner / lanes(inner);
    let even = (length * outer * columns).div_ceil(threads);
    let most = (limits.max_binding.saturating_sub(limits.offset_alignment) / (inner as u64 * 4)) as usize;
    if most == 0 {
        return Err(Unsupported(format!(
            "a row of {inner} columns does not fit a binding of {} bytes",
            limits.max_binding
        )));
    }
    Ok(even.max(COLUMN_BLOCK).min(most).min(length.max(1)))
}

struct Stage {
    kind: &'static str,
    src: Buf,
    dst: Buf,
    outer: usize,
    length: usize,
    inner: usize,
    block: usize,
    scale: f64,
}

impl Stage {
    fn choose_block(&self, lowering: &Lowering) -> Result<usize, Unsupported> {
        if self.inner != 1 {
            return column_block(lowering, self.outer, self.length, self.inner);
        }
        let limits = &lowering.caps.limits;
        let most = (limits.max_binding.saturating_sub(limits.offset_alignment) / 4) as usize / 4 * 4;
        let even = if self.outer >= MANY_ROWS {
            self.length
        } else {
            (self.length * self.outer).div_ceil(MANY_ROWS).max(ROW_BLOCK).next_multiple_of(4)
        };
        Ok(even.min(most).min(self.length.max(1)))
    }

    /// Elements of `src` in the units `first..end`: a unit is one block of one outer index.
    fn elements(&self, blocks: usize, units: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let start = |u: usize| (u / blocks * self.length + (u % blocks * self.block).min(self.length)) * self.inner;
        start(units.start)..start(units.end)
    }

    fn rows(&self, lowering: &mut Lowering, blocks: usize) -> Result<(), Unsupported> {
        let width = lanes(self.length).min(lanes(self.block));
        let team = Team::choose(lowering.caps, self.block);
        let mut variables = team.variables(width);
        variables.insert("kind".into(), self.kind.into());
        let variables = Value::from_pairs(variables);
        let unit_bytes = self.block as u64 * 4;
        for units in cut(lowering.caps, self.outer * blocks, &[unit_bytes, 4], self.block as f64)? {
            let (x, x_start) = window(lowering, self.src, self.elements(blocks, &units), false);
            let (y, y_start) = window(lowering, self.dst, units.clone(), true);
            let params = Params::new().u32(units.len()).u32(units.start).u32(blocks).u32(self.block / width);
            let params = params.u32(self.length / width).u32(x_start / width).u32(y_start).f32(self.scale);
            let label = format!("reduce_rows/{}/{}{}", self.kind, team.kind, if width == 4 { "/vec4" } else { "" });
            let groups = team.groups(lowering, units.len());
            let template = crate::shader!("reduce_rows.wgsl");
            lowering.dispatch(label, template, variables.clone(), &[x, y], params, groups)?;
        }
        Ok(())
    }

    fn columns(&self, lowering: &mut Lowering, blocks: usize) -> Result<(), Unsupported> {
        // No row: bindings too small for a vector.
        let width = if self.length == 0 { 1 } else { lanes(self.inner) };
        let mut variables = element_variables(width);
        variables.insert("kind".into(), self.kind.into());
        let variables = Value::from_pairs(variables);
        let unit_bytes = [(self.block * self.inner * 4) as u64, self.inner as u64 * 4];
        let columns = self.inner / width;
        for units in cut(lowering.caps, self.outer * blocks, &unit_bytes, (self.block * self.inner) as f64)? {
            let (x, x_start) = window(lowering, self.src, self.elements(blocks, &units), false);
            let to = units.start * self.inner..units.end * self.inner;
            let (y, y_start) = window(lowering, self.dst, to, true);
            let params = Params::new().u32(units.len()).u32(units.start).u32(blocks).u32(self.block).u32(self.length);
            let params = params.u32(columns).u32(x_start / width).u32(y_start / width).f32(self.scale);
            let label = format!("reduce_columns/{}{}", self.kind, if width == 4 { "/vec4" } else { "" });
            let groups = lowering.line((units.len() * columns).div_ceil(64));
            let template = crate::shader!("reduce_columns.wgsl");
            lowering.dispatch(label, template, variables.clone(), &[x, y], params, groups)?;
        }
        Ok(())
    }
}
