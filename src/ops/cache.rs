//! The cache of keys and values that generation writes and [`super::cached_attention`] reads: `[B, Hkv, S, D]`, stored as f32, f16 or
//! int8; int8 with scales f32 `[B, Hkv, S]`, one a vector, as [`super::int8`] has them.

use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result, shader};
use kernels_cpu::cache::{CacheShape, StoredMut, cache_write};
use kernels_cpu::cached_attention::LAST_POSITION;
use minijinja::context;

/// Writes new vectors into a cache, in place.
///
/// Inputs cache `[B, Hkv, S, D]`, for int8 its scales `[B, Hkv, S]`, new f32 `[B, T, Hkv, D]`, and place i32 `[B, 2]`: (start, count) of
/// every batch row. Of the T new tokens the first `count` are there; token t goes to slot (start + t) mod S, so a cache with fewer
/// slots than the text is long is a ring of the last S tokens. T <= S. Outputs cache and scales.
///
/// Start is taken into 0 ..= 2^30, count into 0 ..= T. f16 rounds to the nearest, ties to even.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheWrite {
    /// Whether the cache is int8 and has scales.
    pub scaled: bool,
}

/// (start, count) of batch row b.
pub(super) fn place_of(place: &RefTensor, b: usize, tokens: usize) -> (i64, usize) {
    let (start, count) = (place.data[2 * b] as i64, place.data[2 * b + 1]);
    (start.clamp(0, LAST_POSITION), count.clamp(0.0, tokens as f64) as usize)
}

/// Checks a cache and its scales, where it has any; gives its sizes B, Hkv, S, D.
pub(super) fn check_cache(cache: &TensorType, scales: Option<&TensorType>) -> Result<[usize; 4], String> {
    let [b, heads, slots, d] = cache.shape[..] else {
        return Err(format!("a cache must be [B, Hkv, S, D], not {cache}"));
    };
    match (cache.dtype, scales) {
        (DType::F32 | DType::F16, None) => {}
        (DType::I8, Some(s)) if *s == TensorType::f32(&[b, heads, slots]) => {}
        (DType::I8, _) => return Err(format!("an int8 cache {cache} needs scales f32[{b}, {heads}, {slots}]")),
        (DType::F32 | DType::F16, Some(_)) => return Err(format!("only int8 caches have scales, not {cache}")),
        _ => return Err(format!("a cache is f32, f16 or int8, not {cache}")),
    }
    if !(1..=256).contains(&d) {
        return Err(format!("head size {d} is not in 1..=256"));
    }
    Ok([b, heads, slots, d])
}

/// Why a GPU does not take a cache: 16-bit and 8-bit numbers are read and written by words of 32 bits.
pub(super) fn whole_words(cache: &TensorType) -> Result<(), Unsupported> {
    let d = cache.shape[3];
    match cache.dtype == DType::F32 || d.is_multiple_of(4) {
        true => Ok(()),
        false => Err(Unsupported(format!("vectors of {d} numbers of {} are not whole quads", cache.dtype))),
    }
}

impl CacheWrite {
    /// Numbers of the operands new and place.
    fn operands(&self) -> (usize, usize) {
        if self.scaled { (2, 3) } else { (1, 2) }
    }

    fn shape(&self, cache: &TensorType, new: &TensorType) -> CacheShape {
        let [batch, kv_heads, slots, head_dim] = std::array::from_fn(|i| cache.shape[i]);
        CacheShape { batch, tokens: new.shape[1], kv_heads, slots, head_dim }
    }
}

impl Kernel for CacheWrite {
    fn name(&self) -> &'static str {
        "cache_write"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (new, place) = (inputs[self.operands().0], inputs[self.operands().1]);
        let mut cache = inputs[0].clone();
        let mut scales = self.scaled.then(|| inputs[1].clone());
        let [batch, heads, slots, d] = std::array::from_fn(|i| cache.shape[i]);
        let tokens = new.shape[1];
        for b in 0..batch {
            let (start, count) = place_of(place, b, tokens);
            for (t, h) in (0..count).flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let x = &new.data[((b * tokens + t) * heads + h) * d..][..d];
                let vector = (b * heads + h) * slots + (start as usize + t) % slots;
                let to = &mut cache.data[vector * d..][..d];
                if let Some(scales) = &mut scales {
                    let (scale, inverse) = super::int8::group_scale(x);
                    scales.data[vector] = f64::from(scale);
                    to.iter_mut().zip(x).for_each(|(q, x)| *q = super::int8::round(*x, inverse));
                } else {
                    to.iter_mut().zip(x).for_each(|(y, x)| *y = outputs[0].dtype.round(*x));
                }
            }
        }
        std::iter::once(cache).chain(scales).collect()
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (new, place) = self.operands();
        let shape = self.shape(call.input(0), call.input(new));
        // In place: the outputs hold the inputs' values (`must_alias`).
        let cache = match call.output(0).dtype {
            DType::F32 => StoredMut::F32(call.out_f32(0)),
            DType::F16 => StoredMut::F16(call.out_bits16(0)),
            _ => StoredMut::Int8(call.out_i8(0), call.out_f32(1)),
        };
        cache_write(&shape, call.f32(new), call.i32(place), cache);
        Ok(())
    }

    fn gpu(&self, l: &mut Lowering) -> Result<(), Unsupported> {
        let (new, place) = self.operands();
        let cache = l.input(0);
        whole_words(cache)?;
        let CacheShape { batch, tokens, kv_heads, slots, head_dim: d } = self.shape(cache, l.input(new));
        let head_bytes = (slots * d * cache.dtype.bytes()) as u64;
        let scale_bytes = if self.scaled { 4 * slots as u64 } else { 0 };
        let new_bytes = (4 * tokens * kv_heads * d) as u64;
        // f32 by single numbers, where vectors are not whole quads.
        let unit = if d.is_multiple_of(4) { 4 } else { 1 };
        // A workgroup looks for the greatest magnitude of a vector; an invocation alone where barriers are slow.
        let lanes = if l.caps.software { 1 } else { 32 };
        let units = if self.scaled { 1 } else { d / unit };
        for heads in l.chunks(batch * kv_heads, &[head_bytes, scale_bytes], (8 * tokens * d) as f64)? {
            let rows = heads.start / kv_heads..heads.end.div_ceil(kv_heads);
            let (x, ahead) = l.window(Buf::In(new), rows.start as u64 * new_bytes..rows.end as u64 * new_bytes, false);
            let part = |bytes: u64| heads.start as u64 * bytes..heads.end as u64 * bytes;
            let mut binds = vec![l.write_part(Buf::Out(0), part(head_bytes)), x, l.read(Buf::In(place))];
            if self.scaled {
                binds.push(l.write_part(Buf::Out(1), part(scale_bytes)));
            }
            let count = heads.len() * tokens * units;
            let params = Params::new().u32(count).u32(heads.start).u32(rows.start).u32(ahead / unit);
            let params = params.u32(tokens).u32(kv_heads).u32(slots);
            let store = cache.dtype.to_string();
            let label = format!("cache_write/{store}");
            let variables = context! { store, NV => d / unit, quads => unit == 4, lanes };
            let grid = l.line(if self.scaled && lanes > 1 { count } else { count.div_ceil(64) });
            l.dispatch(label, shader!("cache_write.wgsl"), variables, &binds, params, grid)?;
        }
        Ok(())
    }
}

impl Op for CacheWrite {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let (new_at, place_at) = self.operands();
        if inputs.len() != place_at + 1 {
            return Err(format!("{} operands are expected: the cache, new vectors and their place", place_at + 1));
        }
        let (cache, new, place) = (&inputs[0], &inputs[new_at], &inputs[place_at]);
        let [b, heads, slots, d] = check_cache(cache, self.scaled.then(|| &inputs[1]))?;
        let tokens = match new.shape[..] {
            [nb, t, nh, nd] if [nb, nh, nd] == [b, heads, d] && new.dtype == DType::F32 => t,
            _ => return Err(format!("new vectors for {cache} must be f32[{b}, T, {heads}, {d}], not {new}")),
        };
        if tokens > slots {
            return Err(format!("{tokens} new tokens do not fit a cache of {slots}; write them in smaller pieces"));
        }
        if *place != TensorType::i32(&[b, 2]) {
            return Err(format!("the place must be i32[{b}, 2]: start and count of every row, not {place}"));
        }
        Ok(inputs[..new_at].to_vec())
    }

    fn gradient(&self, _: &mut Gradient) -> Result<Vec<Option<Value>>> {
        Err(Error::Graph("cache_write: a cache is for generation and cannot be differentiated".into()))
    }

    fn must_alias(&self) -> Vec<(usize, usize)> {
        if self.scaled { vec![(0, 0), (1, 1)] } else { vec![(0, 0)] }
    }

    fn is_pure(&self) -> bool {
        false
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let new = &inputs[self.operands().0];
        let (elements, vectors) = (new.elements() as f64, new.elements() as f64 / outputs[0].shape[3] as f64);
        let scales = if self.scaled { 4.0 * vectors } else { 0.0 };
        let bytes_written = elements * outputs[0].dtype.bytes() as f64 + scales;
        let flops = if self.scaled { 4.0 * elements } else { 0.0 };
        Cost { flops, bytes_read: 4.0 * elements, bytes_written }
    }
}

impl Graph {
    /// Writes `new` f32 [B, T, Hkv, D] into the variable `cache` [B, Hkv, S, D] (int8: with its `scales` [B, Hkv, S]) at `place` i32
    /// [B, 2], (start, count) of every row, and registers the variables' updates; gives what now stands there, for
    /// [`Graph::cached_attention`]. See [`CacheWrite`].
    pub fn cache_write(
        &mut self,
        cache: Value,
        scales: Option<Value>,
        new: Value,
        place: Value,
    ) -> Result<(Value, Option<Value>)> {
        let variables: Vec<Value> = std::iter::once(cache).chain(scales).collect();
        let operands = [&variables[..], &[new, place]].concat();
        let written = self.apply(CacheWrite { scaled: scales.is_some() }, &operands)?;
        variables.iter().zip(&written).try_for_each(|(variable, value)| self.update(*variable, *value))?;
        Ok((written[0], written.get(1).copied()))
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("cache_write", cases).timed(sizes)]
}

/// Batch, tokens, heads, slots, head size.
type Size = [usize; 5];

/// A cache and its scales as operands.
pub(super) fn cache_operands(dtype: DType, [b, heads, slots, d]: [usize; 4]) -> Vec<Sample> {
    let shape = [b, heads, slots, d];
    match dtype {
        DType::I8 => vec![
            Sample::typed(dtype, &shape, Values::Int(-127, 128)),
            Sample::new(&shape[..3], Values::Uniform(0.005, 0.02)).fixed(),
        ],
        _ => vec![Sample::typed(dtype, &shape, Values::Normal(1.0))],
    }
}

pub(super) fn place_operand(place: &[i32]) -> Sample {
    let values = place.iter().map(|x| f64::from(*x)).collect();
    Sample::typed(DType::I32, &[place.len() / 2, 2], Values::Fixed(values))
}

pub(super) const STORAGES: [DType; 3] = [DType::F32, DType::F16, DType::I8];

fn case(dtype: DType, [b, t, heads, slots, d]: Size, place: &[i32], values: Values) -> Case {
    let label = format!("{dtype} B {b} T {t} Hkv {heads} S {slots} D {d} place {place:?}");
    let mut inputs = cache_operands(dtype, [b, heads, slots, d]);
    inputs.extend([Sample::new(&[b, t, heads, d], values).fixed(), place_operand(place)]);
    Case::new(label, CacheWrite { scaled: dtype == DType::I8 }, inputs).forward_only()
}

fn sizes() -> Vec<Case> {
    let size = |dtype: DType, t: usize| case(dtype, [1, t, 12, 4096, 64], &[1000, t as i32], Values::Normal(1.0));
    STORAGES.iter().flat_map(|dtype| [size(*dtype, 1), size(*dtype, 128)]).collect()
}

fn cases() -> Vec<Case> {
    let sizes: [(Size, &[i32]); 10] = [
        ([1, 1, 1, 1, 4], &[0, 1]),
        ([1, 1, 2, 5, 16], &[1_000_000_001, 1]),
        ([2, 3, 2, 5, 4], &[4, 3, 7, 0]),
        ([3, 17, 1, 64, 80], &[0, 17, 60, 17, 50, 9]),
        ([1, 64, 3, 64, 16], &[130, 64]),
        // Taken into what is possible.
        ([2, 3, 1, 7, 8], &[-5, 2, 3, 900]),
        ([1, 2, 2, 6, 3], &[5, 2]),
        ([1, 2, 2, 3, 67], &[5, 2]),
        ([2, 2, 2, 3, 256], &[2, 1, 0, 2]),
        ([0, 2, 2, 3, 16], &[]),
    ];
    let normal = |dtype: DType| sizes.map(|(size, place)| case(dtype, size, place, Values::Normal(1.0)));
    let mut cases: Vec<Case> = STORAGES.into_iter().flat_map(normal).collect();
    // Caches of more than 1 MiB.
    cases.extend(STORAGES.map(|dtype| {
        let slots = 1200 / dtype.bytes();
        case(dtype, [3, 130, 5, slots, 64], &[0, 130, slots as i32 - 50, 130, 9000, 129], Values::Normal(1.0))
    }));
    // Beyond the range of f16, below its normal numbers, ties and zeros.
    let edges =
        vec![0.0, -0.0, 1e5, -65519.0, 1e-7, -3e-8, 6e-5, 2049.0, 2051.0, 1.0, 127.0, 0.5, 1.5, -2.5, 63.5, 1e-30];
    for dtype in [DType::F32, DType::I8] {
        cases.push(case(dtype, [1, 2, 2, 3, 4], &[1, 2], Values::Fixed(edges.clone())));
    }
    let finite: Vec<f64> = edges.iter().map(|x| if *x == 1e5 { 65504.0 } else { *x }).collect();
    cases.push(case(DType::F16, [1, 2, 2, 3, 4], &[1, 2], Values::Fixed(finite)));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Role;

    fn graph(cache: TensorType, new: &[usize], scales: Option<TensorType>) -> Result<Graph> {
        let mut g = Graph::new();
        let rows = cache.shape[0];
        let cache = g.variable("cache", Role::State, cache)?;
        let scales = scales.map(|s| g.variable("scales", Role::State, s)).transpose()?;
        let (new, place) = (g.input("new", TensorType::f32(new)), g.input("place", TensorType::i32(&[rows, 2])));
        g.cache_write(cache, scales, new, place)?;
        Ok(g)
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let f32s = || TensorType::f32(&[2, 3, 8, 16]);
        let int8 = || TensorType::new(DType::I8, &[2, 3, 8, 16]);
        let error = |r: Result<Graph>| r.unwrap_err().to_string();
        assert!(graph(f32s(), &[2, 8, 3, 16], None).is_ok());
        assert!(error(graph(f32s(), &[2, 9, 3, 16], None)).contains("9 new tokens do not fit a cache of 8"));
        assert!(error(graph(f32s(), &[2, 1, 4, 16], None)).contains("f32[2, T, 3, 16]"));
        assert!(error(graph(int8(), &[2, 1, 3, 16], None)).contains("needs scales f32[2, 3, 8]"));
        assert!(error(graph(f32s(), &[2, 1, 3, 16], Some(TensorType::f32(&[2, 3, 8])))).contains("only int8"));
        assert!(graph(int8(), &[2, 1, 3, 16], Some(TensorType::f32(&[2, 3, 8]))).is_ok());
    }
}
