//! Which kernel computes a product on a GPU, and how the product is cut where operands exceed a binding or a dispatch its time.

use super::{Dims, Epilogue};
use crate::device::Unsupported;
use crate::device::gpu::tiles::{GemvForm, MatmulForm, cooperative_teams};
use crate::device::gpu::{Bind, Buf, Caps, Lowering, Params};
use crate::ops::packed;
use kernels_cpu::gemm::Activation;
use kernels_cpu::packed::{Layout, Packing, TILE_ROWS};
use minijinja::value::merge_maps;
use minijinja::{Value, context};
use std::ops::Range;

/// Terms that the kernels add up at once (`FOLD` of `matmul_common.wgsl`).
const FOLD: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Tiles(MatmulForm),
    /// At most four rows, or (`transposed`) columns.
    Gemv {
        transposed: bool,
    },
}

impl Variant {
    fn choose(op: &Product, l: &Lowering) -> Self {
        let (caps, choices, d) = (l.caps, l.caps.choices(), &op.dims);
        if d.m <= choices.gemv_rows || d.n <= choices.gemv_rows && op.weights == Weights::F32 {
            return Variant::Gemv { transposed: d.m > choices.gemv_rows };
        }
        let (rows, columns) = choices.matmul.tile(caps);
        let tiles = d.batch * d.m.div_ceil(rows.max(1)) * d.n.div_ceil(columns.max(1));
        let mut form = if tiles >= choices.large_tiles { choices.matmul } else { choices.matmul_small };
        // Operands that are stored as f16 lose nothing by it.
        if op.a == Buf::In(0) && l.holds_f16(0) && l.holds_f16(1) && MatmulForm::Cooperative.fits(caps) {
            form = MatmulForm::Cooperative;
        }
        if op.weights != Weights::F32 && form == MatmulForm::Cooperative {
            form = MatmulForm::Tiled64; // quantised weights are not f16
        }
        if !form.fits(caps) {
            form = MatmulForm::Direct;
        }
        // The tile is wide: where more than half of it would lie beyond the edge, registers alone are faster.
        if form == MatmulForm::Subgroup && 2 * d.n < d.n.next_multiple_of(columns) {
            form = MatmulForm::Direct;
        }
        Variant::Tiles(form)
    }

    /// Rows and columns of a tile.
    fn tile(self, caps: &Caps) -> (usize, usize) {
        match self {
            Variant::Tiles(form) => form.tile(caps),
            Variant::Gemv { .. } => (4, 64),
        }
    }
}

/// The part of a product that one dispatch (with its second pass, if the sum is split) computes.
#[derive(Clone, Debug)]
struct Part {
    batch: Range<usize>,
    m: Range<usize>,
    n: Range<usize>,
    k: Range<usize>,
    /// Adds to an earlier part's result.
    accumulate: bool,
    /// The sum is complete after this part.
    last: bool,
}

/// A product of inputs 0 and 1 into output 0.
pub(in crate::ops) struct Product {
    pub dims: Dims,
    pub trans_a: bool,
    pub trans_b: bool,
    pub epilogue: Epilogue,
    /// Where operand A is.
    pub a: Buf,
    pub weights: Weights,
}

/// What input 1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Weights {
    F32,
    /// int8, transposed and a single matrix; input 2 has a scale for every so many of its terms.
    Int8(usize),
    /// A packed matrix, transposed and single.
    Packed(Packing),
}

pub(in crate::ops) fn lower(op: &Product, l: &mut Lowering) -> Result<(), Unsupported> {
    let variant = Variant::choose(op, l);
    let mut lower = Lower { op, d: op.dims, variant, scratch: None };
    for part in lower.parts(l)? {
        lower.part(l, &part)?;
    }
    Ok(())
}

struct Lower<'a> {
    op: &'a Product,
    d: Dims,
    variant: Variant,
    /// Memory of the partial results, shared by all parts.
    scratch: Option<(Buf, u64)>,
}

/// An operand as the kernels see it.
struct Matrix {
    bind: Bind,
    /// Elements between stored lines, first element, elements between matrices.
    ld: usize,
    at: usize,
    batch: usize,
    /// Stored with the summed axis across its lines.
    trans: bool,
    /// May be read as vec4.
    quads: bool,
}

impl Lower<'_> {
    #[allow(clippy::single_range_in_vec_init, reason = "the usual list of ranges has one")]
    fn parts(&self, l: &Lowering) -> Result<Vec<Part>, Unsupported> {
        let Dims { batch, m, n, k, a_batch, b_batch } = self.d;
        let (ta, tb) = (self.op.trans_a, self.op.trans_b);
        let flops = |terms: usize| 2.0 * terms as f64;
        let bytes = |elements: usize| 4 * elements as u64;
        let residual = if self.op.epilogue.residual.is_some() { 1 } else { 0 };
        if batch > 1 {
            let rows = [bytes(m * n), bytes(m * n * residual), bytes(a_batch), bytes(b_batch)];
            let cuts = l.chunks(batch, &rows, flops(m * n * k))?;
            let part = |batch| Part { batch, m: 0..m, n: 0..n, k: 0..k, accumulate: false, last: true };
            return Ok(cuts.into_iter().map(part).collect());
        }
        let limit = l.caps.limits.max_binding;
        let (rows, columns) = self.variant.tile(l.caps);
        let row = [bytes(n), bytes(n * residual), bytes(if ta { 0 } else { k })];
        let m_cuts = cut(l, m, rows, &row, flops(n * k))?;
        let n_cuts = match self.op.weights {
            Weights::Packed(packing) => packed_cuts(l, &packing)?,
            Weights::Int8(group) if n as u64 * bytes(k.div_ceil(group)).max(k as u64) > limit => {
                cut(l, n, columns, &[k as u64, bytes(k.div_ceil(group))], 0.0)?
            }
            Weights::F32 if tb && n as u64 * bytes(k) > limit => cut(l, n, columns, &[bytes(k)], 0.0)?,
            _ => vec![0..n],
        };
        let deep = (ta && bytes(m * k) > limit) || (!tb && bytes(k * n) > limit);
        let term = [bytes(if ta { m } else { 0 }), bytes(if tb { 0 } else { n })];
        let k_cuts = if deep { cut(l, k, 16, &term, 0.0)? } else { vec![0..k] };
        let mut parts = Vec::new();
        for m in &m_cuts {
            for n in &n_cuts {
                for (i, k) in k_cuts.iter().enumerate() {
                    let (accumulate, last) = (i > 0, i + 1 == k_cuts.len());
                    parts.push(Part { batch: 0..1, m: m.clone(), n: n.clone(), k: k.clone(), accumulate, last });
                }
            }
        }
        Ok(parts)
    }

    /// The matrices A and B restricted to `part`.
    fn matrices(&self, l: &Lowering, part: &Part) -> (Matrix, Matrix) {
        let d = &self.d;
        let matrix = |input, trans: bool, lines: &Range<usize>, across: &Range<usize>, ld: usize, batch: usize| {
            // Bound from its first needed line; single matrices are bound whole for a batch.
            let elements = if d.batch > 1 {
                if batch == 0 { 0..l.input(input).elements() } else { part.batch.start * batch..part.batch.end * batch }
            } else {
                lines.start * ld..lines.end * ld
            };
            let size = l.input(input).dtype.bytes() as u64;
            let buf = if input == 0 { self.op.a } else { Buf::In(input) };
            let bind = l.read_part(buf, size * elements.start as u64..size * elements.end as u64);
            let quads = ld.is_multiple_of(4) && across.start.is_multiple_of(4) && !elements.is_empty();
            Matrix { bind, ld, at: across.start, batch, trans, quads }
        };
        let (ta, tb) = (self.op.trans_a, self.op.trans_b);
        let a = match ta {
            true => matrix(0, true, &part.k, &part.m, d.m, d.a_batch),
            false => matrix(0, false, &part.m, &part.k, d.k, d.a_batch),
        };
        let b = match tb {
            _ if let Weights::Packed(packing) = self.op.weights => {
                let (bind, at) = packed_bind(l, Buf::In(1), &packing, &part.n);
                // Its lines are bytes; that a quad of them is four terms of one row says that there is no rest of terms.
                let ld = packed_line(&packing);
                Matrix { bind, ld, at, batch: 0, trans: true, quads: d.k.is_multiple_of(4) }
            }
            true => matrix(1, true, &part.n, &part.k, d.k, d.b_batch),
            false => matrix(1, false, &part.k, &part.n, d.n, d.b_batch),
        };
        (a, b)
    }

    /// The scales of int8 weights, and the template variables that describe them.
    fn quantised(&self, l: &Lowering, part: &Part) -> (Vec<Bind>, usize, Value) {
        let group = match self.op.weights {
            Weights::Int8(group) => group,
            Weights::Packed(packing) => {
                return (vec![], 0, merge_maps([context! { q8 => 1, n_scales => 0 }, packed::values(&packing)]));
            }
            Weights::F32 => {
                return (vec![], 0, context! { q8 => 0, n_scales => 0, group => 0, quads_in_group => true });
            }
        };
        let k = self.d.k;
        let groups = k.div_ceil(group);
        let line = 4 * groups as u64;
        let bind = l.read_part(Buf::In(2), part.n.start as u64 * line..part.n.end as u64 * line);
        let quads_in_group = group.is_multiple_of(4) || groups == 1;
        let group = if groups == 1 { 0 } else { group };
        (vec![bind], groups, context! { q8 => 1, n_scales => 1, group, quads_in_group })
    }

    /// Elements of the result that `part` covers, in whole rows.
    fn rows(&self, part: &Part) -> Range<usize> {
        let Dims { batch, m, n, .. } = self.d;
        if batch > 1 { part.batch.start * m * n..part.batch.end * m * n } else { part.m.start * n..part.m.end * n }
    }

    /// The epilogue's operands, and the template variables that describe it; nothing where it does not apply yet.
    fn epilogue(&self, l: &Lowering, part: &Part, apply: bool) -> (Vec<Bind>, Value) {
        if !apply {
            return (vec![], context! { n_bias => 0, n_residual => 0, activation => "None", epilogue => false });
        }
        let e = &self.op.epilogue;
        let mut binds = Vec::new();
        binds.extend(e.bias.map(|i| l.read(Buf::In(i))));
        let rows = self.rows(part);
        let bytes = 4 * rows.start as u64..4 * rows.end as u64;
        binds.extend(e.residual.map(|i| l.read_part(Buf::In(i), bytes)));
        let (n_bias, n_residual) = (u8::from(e.bias.is_some()), u8::from(e.residual.is_some()));
        let activation = match e.activation {
            Activation::None => "None",
            Activation::Relu => "Relu",
            Activation::Silu => "Silu",
            Activation::GeluTanh => "GeluTanh",
            Activation::GeluErf => "GeluErf",
        };
        (binds, context! { n_bias, n_residual, activation, epilogue => !e.is_none() })
    }

    /// How many ways the sum of `part` is split, and the terms of each split.
    fn split(&mut self, l: &mut Lowering, part: &Part, tiles: usize) -> Option<(usize, usize)> {
        let k = part.k.len();
        let whole = part.n.len() == self.d.n && !matches!(self.variant, Variant::Gemv { .. });
        let choices = l.caps.choices();
        let result = 4 * self.rows(part).len() as u64;
        let room = self.scratch.map_or(l.caps.limits.max_binding, |(_, bytes)| bytes) / result.max(1);
        let ways = (choices.split_tiles / tiles.max(1)).min(k / choices.split_terms).min(room as usize);
        if !whole || ways < 2 {
            return None;
        }
        let terms = k.div_ceil(ways).next_multiple_of(64);
        let ways = k.div_ceil(terms);
        if ways < 2 {
            return None;
        }
        if self.scratch.is_none() {
            let bytes = ways as u64 * result;
            self.scratch = Some((l.scratch(bytes), bytes));
        }
        Some((ways, terms))
    }

    fn part(&mut self, l: &mut Lowering, part: &Part) -> Result<(), Unsupported> {
        let form = match self.variant {
            Variant::Gemv { transposed } => return self.gemv(l, part, transposed),
            Variant::Tiles(form) => form,
        };
        let (mut a, b) = self.matrices(l, part);
        let batch = part.batch.len();
        let (tile_rows, tile_columns) = self.variant.tile(l.caps);
        let (m, n, k) = (part.m.len(), part.n.len(), part.k.len());
        let tiles_n = n.div_ceil(tile_columns);
        let tiles = m.div_ceil(tile_rows) * tiles_n;
        let split = self.split(l, part, batch * tiles);
        let (ways, terms) = split.unwrap_or((1, k.max(1)));
        let rows = self.rows(part);
        let target = match (split, self.scratch) {
            (Some(_), Some((scratch, _))) => l.write_part(scratch, 0..(ways * rows.len() * 4) as u64),
            _ => l.write_part(Buf::Out(0), 4 * rows.start as u64..4 * rows.end as u64),
        };
        let (extra, epilogue) = self.epilogue(l, part, split.is_none() && part.last);
        let tiled = matches!(form, MatmulForm::Tiled64 | MatmulForm::Tiled128);
        let by_row = !b.trans || !tiled;
        let cv = self.d.n.is_multiple_of(4) && by_row;
        if form == MatmulForm::Subgroup && a.trans {
            a.quads = false; // each lane reads a row of its own
        }
        let (scales, groups, quantised) = self.quantised(l, part);
        let common = context! { av => a.quads, bv => b.quads, cv, trans_a => a.trans, trans_b => b.trans };
        let count = ways * batch * tiles;
        let params = Params::new().u32(m).u32(n).u32(k).u32(a.ld).u32(b.ld).u32(self.d.n);
        let params = params.u32(a.at).u32(b.at).u32(part.n.start).u32(a.batch).u32(b.batch).u32(m * n).u32(batch);
        let accumulate = usize::from(part.accumulate && split.is_none());
        let params = params.u32(tiles_n).u32(tiles).u32(count).u32(terms).u32(rows.len()).u32(accumulate).u32(groups);
        let binds = [&[target, a.bind, b.bind][..], &scales, &extra].concat();
        let lanes = if form == MatmulForm::Subgroup { l.caps.subgroup_sizes.1 } else { 0 };
        let (label, template, own, groups) = match form {
            MatmulForm::Direct | MatmulForm::Subgroup => {
                let (label, groups) =
                    if lanes == 0 { ("matmul/direct", count.div_ceil(16)) } else { ("matmul/subgroup", count) };
                // Most products need neither, and software devices compile at the first dispatch: code left out is time won.
                let own = context! { lanes, blocks => terms > FOLD, accumulate => accumulate == 1 };
                (label, crate::shader!("matmul_direct.wgsl"), own, groups)
            }
            MatmulForm::Tiled128 => {
                ("matmul/tiled128", crate::shader!("matmul_tiled.wgsl"), context! { wide => 2 }, count)
            }
            MatmulForm::Tiled64 => {
                ("matmul/tiled64", crate::shader!("matmul_tiled.wgsl"), context! { wide => 1 }, count)
            }
            MatmulForm::Cooperative => {
                let (threads, teams) = cooperative_teams(l.caps);
                let own = context! { side => l.caps.cooperative_size, threads, teams };
                ("matmul/cooperative", crate::shader!("matmul_cooperative.wgsl"), own, count)
            }
        };
        let variables = merge_maps([own, common, quantised, epilogue]);
        l.dispatch(label, template, variables, &binds, params, l.line(groups))?;
        if split.is_some() { self.reduce(l, part, ways) } else { Ok(()) }
    }

    /// Adds up the partial results of a split sum.
    fn reduce(&self, l: &mut Lowering, part: &Part, ways: usize) -> Result<(), Unsupported> {
        let Some((scratch, _)) = self.scratch else { return Ok(()) };
        let rows = self.rows(part);
        let (extra, epilogue) = self.epilogue(l, part, part.last);
        let quads = self.d.n.is_multiple_of(4);
        let width = if quads { 4 } else { 1 };
        let count = rows.len() / width;
        let out = l.write_part(Buf::Out(0), 4 * rows.start as u64..4 * rows.end as u64);
        let partial = l.read_part(scratch, 0..(ways * rows.len() * 4) as u64);
        let binds = [&[out, partial, partial][..], &extra].concat();
        let params = Params::new().u32(0).u32(self.d.n / width).u32(0).u32(0).u32(0).u32(0).u32(0).u32(0).u32(0);
        let params = params.u32(0).u32(0).u32(0).u32(ways).u32(1).u32(1).u32(count).u32(0).u32(count);
        let params = params.u32(usize::from(part.accumulate)).u32(0);
        let variables = context! { av => quads, bv => quads, cv => quads, q8 => 0, n_scales => 0, ..epilogue };
        let groups = l.line(count.div_ceil(64));
        l.dispatch("matmul/reduce", crate::shader!("matmul_reduce.wgsl"), variables, &binds, params, groups)
    }

    fn gemv(&self, l: &mut Lowering, part: &Part, transposed: bool) -> Result<(), Unsupported> {
        let (mut a, mut b) = self.matrices(l, part);
        let (mut m, mut n) = (part.m.len(), part.n.len());
        if transposed {
            // c^T = op(b)^T op(a)^T
            (a, b) = (Matrix { trans: !b.trans, ..b }, Matrix { trans: !a.trans, ..a });
            (m, n) = (n, m);
        }
        let subgroups = b.trans && l.caps.features.subgroups;
        a.quads &= b.trans && !a.trans;
        // An invocation alone takes more of a wide matrix, as long as there are 16 tiles and not too many sums.
        let lone = l.caps.choices().gemv == GemvForm::Lone && !b.trans && b.quads;
        let quads = if lone { [4, 2].into_iter().find(|q| q * m <= 4 && n >= 512 * q).unwrap_or(1) } else { 1 };
        // Invocations that share a column (or quad of columns), and how many of those a workgroup computes.
        let (slices, columns) = match (l.caps.choices().gemv, b.trans) {
            (GemvForm::Lone, true) if subgroups => (8, 8),
            (GemvForm::Lone, _) => (1, if quads > 1 { 8 } else { 16 }),
            (GemvForm::Team64, true) if !subgroups => (16, 4),
            (GemvForm::Team64, _) => (8, 8),
            (GemvForm::Team256, _) => (32, 8),
        };
        let tiles = n.div_ceil(if b.trans { columns } else { 4 * quads * columns });
        let batch = part.batch.len();
        let (extra, epilogue) = self.epilogue(l, part, part.last);
        let rows = self.rows(part);
        let target = l.write_part(Buf::Out(0), 4 * rows.start as u64..4 * rows.end as u64);
        let k = part.k.len();
        let count = batch * tiles;
        let params = Params::new().u32(m).u32(n).u32(k).u32(a.ld).u32(b.ld).u32(self.d.n);
        let params = params.u32(a.at).u32(b.at).u32(part.n.start).u32(a.batch).u32(b.batch).u32(m * n).u32(batch);
        let params = params.u32(tiles).u32(tiles).u32(count).u32(k.max(1)).u32(0).u32(usize::from(part.accumulate));
        let (scales, groups, quantised) = self.quantised(l, part);
        let params = params.u32(groups);
        let variables = context! {
            av => a.quads, bv => b.quads, cv => false, trans_a => a.trans, trans_b => b.trans, rows => m,
            slices, columns, quads, subgroups, transposed
        };
        let variables = merge_maps([variables, quantised, epilogue]);
        let label = match (b.trans, subgroups) {
            (true, true) => "gemv/subgroup",
            (true, false) => "gemv/dots",
            (false, _) => "gemv/columns",
        };
        let binds = [&[target, a.bind, b.bind][..], &scales, &extra].concat();
        l.dispatch(label, crate::shader!("gemv.wgsl"), variables, &binds, params, l.line(count))
    }
}

/// Cuts `0..n` into ranges of whole tiles (of four lines where a tile does not fit a binding).
#[allow(clippy::single_range_in_vec_init, reason = "the usual list of ranges has one")]
pub(in crate::ops) fn cut(
    l: &Lowering,
    n: usize,
    tile: usize,
    bytes: &[u64],
    flops: f64,
) -> Result<Vec<Range<usize>>, Unsupported> {
    let cut = |unit: usize| {
        let bytes: Vec<u64> = bytes.iter().map(|b| b * unit as u64).collect();
        let ranges = l.chunks(n.div_ceil(unit), &bytes, flops * unit as f64)?;
        Ok(ranges.into_iter().map(|r| r.start * unit..(r.end * unit).min(n)).collect())
    };
    if n <= tile && bytes.iter().all(|b| b * n as u64 <= l.caps.limits.max_binding) {
        return Ok(vec![0..n]);
    }
    cut(tile).or_else(|_| cut(4))
}

/// Cuts the rows of a packed matrix into ranges that fit a binding: whole tiles, or fours.
#[allow(clippy::single_range_in_vec_init, reason = "the usual list of ranges has one")]
pub(in crate::ops) fn packed_cuts(l: &Lowering, packing: &Packing) -> Result<Vec<Range<usize>>, Unsupported> {
    let n = packing.rows;
    let (unit, bytes) = match packing.layout {
        Layout::Tiles => (TILE_ROWS, packed_line(packing)),
        Layout::Rows => (4, 4 * packed_line(packing)),
    };
    if packing.bytes() as u64 <= l.caps.limits.max_binding {
        return Ok(vec![0..n]);
    }
    let ranges = l.pieces(n.div_ceil(unit), &[bytes as u64], 0.0, 0)?;
    Ok(ranges.into_iter().map(|r| r.start * unit..(r.end * unit).min(n)).collect())
}

/// Binds rows of a packed matrix, from where [`packed_cuts`] cut it; returns the byte of the binding where they begin.
pub(in crate::ops) fn packed_bind(l: &Lowering, buf: Buf, packing: &Packing, rows: &Range<usize>) -> (Bind, usize) {
    let line = packed_line(packing);
    let bytes = match packing.layout {
        Layout::Tiles => rows.start / TILE_ROWS * line..rows.end.div_ceil(TILE_ROWS) * line,
        Layout::Rows => rows.start * line..rows.end * line,
    };
    let (bind, _) = l.window(buf, bytes.start as u64..bytes.end as u64, false);
    (bind, bytes.start - bind.offset as usize)
}

/// Bytes of a row of a packed matrix, or of a tile.
pub(in crate::ops) fn packed_line(packing: &Packing) -> usize {
    match packing.layout {
        Layout::Tiles => packing.tile_bytes(),
        Layout::Rows => packing.row_bytes(),
    }
}
