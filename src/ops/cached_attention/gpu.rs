//! How attention to a cache is written as dispatches. Rows are the queries of one key/value head, token by token and in each by query
//! head. A text is cut into parts where rows alone keep too few invocations busy; a last dispatch merges what the parts gave.

use super::longest;
use crate::device::Unsupported;
use crate::device::gpu::{Bind, Buf, Lowering, Params};
use crate::ops::cache::whole_words;
use crate::tensor::DType;
use kernels_cpu::cached_attention::CachedShape;
use minijinja::context;
use std::ops::Range;

/// Fewer positions than this are not cut.
const SHORTEST_PART: usize = 128;

/// How a text is cut: parts of `len` positions.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Parts {
    count: usize,
    len: usize,
}

impl Parts {
    /// Cuts for `rows` rows that work side by side.
    fn choose(longest: usize, rows: usize, wanted: usize) -> Parts {
        let most = wanted.div_ceil(rows.max(1)).min(longest.div_ceil(SHORTEST_PART)).max(1);
        let len = longest.div_ceil(most).max(1);
        Parts { count: longest.div_ceil(len), len }
    }
}

/// The (batch row, key/value head) pairs of a dispatch and what it binds of q and o.
struct Bound {
    heads: Range<usize>,
    /// First batch row whose q and o are bound.
    batch: usize,
    q: Bind,
    o: Bind,
    /// Words of q and o before it.
    ahead: usize,
}

pub(super) fn lower(l: &mut Lowering, s: &CachedShape) -> Result<(), Unsupported> {
    let cache = l.input(1);
    whole_words(cache)?;
    let (d, rows, longest) = (s.head_dim, s.tokens * s.group(), longest(s));
    let head_bytes = (s.slots * d * cache.dtype.bytes()) as u64;
    let scale_bytes = if cache.dtype == DType::I8 { 4 * s.slots as u64 } else { 0 };
    let q_bytes = (4 * s.tokens * s.heads * d) as u64;
    let flops = (4 * d * rows * longest) as f64;
    for heads in l.chunks(s.batch * s.kv_heads, &[head_bytes, scale_bytes], flops)? {
        let batch = heads.start / s.kv_heads..heads.end.div_ceil(s.kv_heads);
        let bytes = batch.start as u64 * q_bytes..batch.end as u64 * q_bytes;
        let (q, ahead) = l.window(Buf::In(0), bytes.clone(), false);
        let (o, _) = l.window(Buf::Out(0), bytes, true);
        let bound = Bound { heads, batch: batch.start, q, o, ahead };
        launch(l, s, &bound, [head_bytes, scale_bytes])?;
    }
    Ok(())
}

fn launch(
    l: &mut Lowering,
    s: &CachedShape,
    bound: &Bound,
    [head_bytes, scale_bytes]: [u64; 2],
) -> Result<(), Unsupported> {
    let (cache, d, rows) = (l.input(1), s.head_dim, s.tokens * s.group());
    let last = l.inputs() - 1;
    let heads = &bound.heads;
    let parts = Parts::choose(longest(s), rows * heads.len(), if l.caps.software { 512 } else { 1 << 14 });
    let (quads, units) = if d.is_multiple_of(4) { (true, d / 4) } else { (false, d) };
    l.loops((parts.len / 4 + 1).saturating_mul(if units > 32 { 8 * units } else { 1 }))?;
    let store = cache.dtype.to_string();
    let part = |bytes: u64| heads.start as u64 * bytes..heads.end as u64 * bytes;
    let mut binds = vec![
        bound.q,
        l.read_part(Buf::In(1), part(head_bytes)),
        l.read_part(Buf::In(2), part(head_bytes)),
        l.read(Buf::In(last)),
    ];
    if scale_bytes > 0 {
        binds.extend([3, 4].map(|i| l.read_part(Buf::In(i), part(scale_bytes))));
    }
    let results = heads.len() * rows;
    let scratch = (parts.count > 1).then(|| {
        let sums = l.scratch((4 * d * results * parts.count) as u64);
        (sums, l.scratch((8 * results * parts.count) as u64))
    });
    match scratch {
        Some((sums, ends)) => binds.extend([l.write(sums), l.write(ends)]),
        None => binds.push(bound.o),
    }
    let unit = if quads { 4 } else { 1 };
    let params = |count: usize| {
        // Far beyond any text, and small enough to add positions to.
        let window = s.window.unwrap_or(usize::MAX).min(1 << 29);
        let params =
            Params::new().u32(count).u32(heads.start).u32(heads.len()).u32(bound.batch).u32(bound.ahead / unit);
        let params = params.u32(s.tokens).u32(s.heads).u32(s.kv_heads).u32(s.slots).u32(window);
        params.u32(parts.count).u32(parts.len).f32(f64::from(s.scale)).f32(f64::from(s.softcap.unwrap_or(1.0)))
    };
    let element = if quads { "vec4<f32>" } else { "f32" };
    let template = concat!(
        include_str!("../../../shaders/cached_attention_rows.wgsl"),
        include_str!("../../../shaders/cached_attention_place.wgsl")
    );
    let count = results * parts.count;
    let grid = l.line(count.div_ceil(64));
    let label = format!("cached_attention/rows/{store}");
    let variables = context! {
        store, quads, NV => units, T => element, capped => s.softcap.is_some(), parted => parts.count > 1,
    };
    l.dispatch(label, template, variables, &binds, params(count), grid)?;
    if let Some((sums, ends)) = scratch {
        let template = concat!(
            include_str!("../../../shaders/cached_attention_merge.wgsl"),
            include_str!("../../../shaders/cached_attention_place.wgsl")
        );
        let binds = [l.read(sums), l.read(ends), l.read(Buf::In(last)), bound.o];
        let count = results * units;
        let grid = l.line(count.div_ceil(64));
        let variables = context! { NV => units, T => element };
        l.dispatch("cached_attention/merge", template, variables, &binds, params(count), grid)?;
    }
    Ok(())
}
