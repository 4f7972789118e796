//! Packed matrices on a GPU. Products run on the kernels of `matmul`, which read a quad of weights through `packed_values.wgsl`.

use super::{Activations, Layout, PackedLinear, Packing};
use crate::device::Unsupported;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::ops::matmul::Dims;
use crate::ops::matmul::gpu::{self, Product, Weights, packed_bind, packed_cuts};
use kernels_cpu::blocks::{Format, NF4};
use kernels_cpu::packed::BLOCK;
use minijinja::value::merge_maps;
use minijinja::{Value, context};

/// The variables of `packed_values.wgsl`.
pub(in crate::ops) fn values(packing: &Packing) -> Value {
    let (format, group) = match packing.format {
        Format::Int4Group(n) => ("int4", n as usize),
        format => (format.name(), format.block_len().unwrap_or(packing.columns)),
    };
    let levels: Vec<String> = NF4.iter().map(|level| format!("{level:?}")).collect();
    let levels = if packing.format == Format::Nf4 { levels } else { vec![] };
    let tiles = packing.layout == Layout::Tiles;
    // The length of rows is no part of the shader where its parameters say it.
    let group = if packing.format == Format::Int8Row { 0 } else { group };
    context! { format, group, levels, tiles }
}

/// Refuses tiles of superblocks: GPUs read the rows of these formats.
fn check(packing: &Packing) -> Result<(), Unsupported> {
    match packing.layout {
        Layout::Tiles if !Packing::has_tiles(packing.format) => {
            Err(Unsupported(format!("tiles of {} are for the CPU: use rows", packing.format)))
        }
        _ => Ok(()),
    }
}

pub(super) fn linear(op: &PackedLinear, dims: Dims, l: &mut Lowering) -> Result<(), Unsupported> {
    check(&op.packing)?;
    let a = match op.activations {
        Activations::F32 => Buf::In(0),
        Activations::Int8 => round(dims, l)?,
    };
    let weights = Weights::Packed(op.packing);
    let product = Product { dims, trans_a: false, trans_b: true, epilogue: op.epilogue, a, weights };
    gpu::lower(&product, l)
}

/// Rounds x into scratch memory.
fn round(d: Dims, l: &mut Lowering) -> Result<Buf, Unsupported> {
    let row = 4 * d.k as u64;
    let rounded = l.scratch(d.m as u64 * row);
    let blocks = d.k.div_ceil(BLOCK);
    for rows in l.chunks(d.m, &[row], 8.0 * d.k as f64)? {
        let bytes = rows.start as u64 * row..rows.end as u64 * row;
        let binds = [l.write_part(rounded, bytes.clone()), l.read_part(Buf::In(0), bytes)];
        let count = rows.len() * blocks;
        let params = Params::new().u32(count).u32(d.k).u32(blocks);
        let grid = l.line(count.div_ceil(64));
        l.dispatch("packed/round", crate::shader!("packed_round.wgsl"), context! {}, &binds, params, grid)?;
    }
    Ok(rounded)
}

/// Rows of input 0 as f32: those that input 1 names, or all.
pub(super) fn rows(packing: &Packing, ids: bool, l: &mut Lowering) -> Result<(), Unsupported> {
    check(packing)?;
    let Packing { rows: count, columns, .. } = *packing;
    let n = if ids { l.input(1).elements() } else { count };
    let row = 4 * columns as u64;
    let quads = columns.is_multiple_of(4);
    let table = packed_cuts(l, packing)?;
    for out in l.chunks(n, &[row], 2.0 * columns as f64)? {
        for part in &table {
            if !ids && (part.end <= out.start || out.end <= part.start) {
                continue;
            }
            let (w, at) = packed_bind(l, Buf::In(0), packing, part);
            let mut binds = vec![l.write_part(Buf::Out(0), out.start as u64 * row..out.end as u64 * row), w];
            if ids {
                binds.push(l.read(Buf::In(1)));
            }
            let params = Params::new().u32(out.len()).u32(columns).u32(out.start).u32(part.start).u32(part.len());
            let params = params.u32(count).u32(gpu::packed_line(packing)).u32(at);
            let variables = merge_maps([context! { quads, ids => usize::from(ids) }, values(packing)]);
            let groups = l.line((out.len() * columns.div_ceil(4)).div_ceil(64));
            let label = if ids { "packed/gather" } else { "packed/unpack" };
            l.dispatch(label, crate::shader!("packed_rows.wgsl"), variables, &binds, params, groups)?;
        }
    }
    Ok(())
}
