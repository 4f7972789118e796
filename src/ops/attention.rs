//! Exact softmax attention in the online form (Milakov and Gimelshein 2018; Dao et al. 2022, FlashAttention): no executor ever
//! holds a queries x keys matrix. The gradient is in [`super::attention_grad`].

use super::blocks::{any_half, by_rows, part};
use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::tiles::AttentionForm;
use crate::device::gpu::{Bind, Buf, Caps, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Storage, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::attention::{AttentionShape, EMPTY_LSE};
use minijinja::context;
use std::ops::Range;

/// Inputs `q [B, Tq, H, D]`, `k`, `v` `[B, Tk, Hkv, D]`, optionally `key_range` i32 `[B, 2]`. Outputs `o [B, Tq, H, D]` and
/// `lse [B, H, Tq]`, the logarithm of each row's softmax denominator.
///
/// Query head h reads key/value head `h / (H / Hkv)`. Query i stands at position `i + Tk - Tq`, key j at j. A query that sees no
/// key gives zeros and [`EMPTY_LSE`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Hides keys after the query.
    pub causal: bool,
    /// Hides keys at this distance and beyond: `p - w < j` (and `j < p + w` when not causal).
    pub window: Option<usize>,
    /// Factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f32,
}

/// `key_range [b, 0] .. key_range [b, 1]` are the keys of batch row b that exist; others are padding.
fn key_range(range: Option<&RefTensor>, b: usize, keys: usize) -> Range<usize> {
    let clamp = |x: f64| x.clamp(0.0, keys as f64) as usize;
    range.map_or(0..keys, |r| clamp(r.data[2 * b])..clamp(r.data[2 * b + 1]))
}

impl Attention {
    pub(super) fn shape(&self, q: &[usize], k: &[usize]) -> AttentionShape {
        let (batch, queries, heads, head_dim) = (q[0], q[1], q[2], q[3]);
        let (keys, kv_heads) = (k[1], k[2]);
        let Attention { causal, window, scale } = *self;
        AttentionShape { batch, queries, keys, heads, kv_heads, head_dim, causal, window, scale, slots: None }
    }

    /// Whether query i may see key j, padding aside.
    fn sees(&self, s: &AttentionShape, i: usize, j: usize) -> bool {
        let distance = (i + s.keys) as i64 - (j + s.queries) as i64;
        let near = self.window.is_none_or(|w| distance.unsigned_abs() < w as u64);
        near && (distance >= 0 || !self.causal)
    }

    /// The scores that are not hidden: for every one `visit(b, h, i, j, offset of q's row, offset of k's row)`.
    pub(super) fn each_row(
        &self,
        s: &AttentionShape,
        range: Option<&RefTensor>,
        mut visit: impl FnMut(usize, usize, &[usize], &dyn Fn(usize) -> usize),
    ) {
        let d = s.head_dim;
        for b in 0..s.batch {
            for h in 0..s.heads {
                for i in 0..s.queries {
                    let keys: Vec<usize> = key_range(range, b, s.keys).filter(|&j| self.sees(s, i, j)).collect();
                    let at = |j: usize| ((b * s.keys + j) * s.kv_heads + h / s.group()) * d;
                    visit(((b * s.queries + i) * s.heads + h) * d, (b * s.heads + h) * s.queries + i, &keys, &at);
                }
            }
        }
    }

    /// Scores computed, padding aside.
    pub(super) fn pairs(&self, q: &TensorType, k: &TensorType) -> f64 {
        let s = self.shape(&q.shape, &k.shape);
        let w = self.window.unwrap_or(usize::MAX / 4) as i64;
        let row = |i: usize| {
            let p = (i + s.keys) as i64 - s.queries as i64;
            let high = (s.keys as i64).min(if self.causal { p + 1 } else { p.saturating_add(w) });
            (high - (p - w + 1).max(0)).max(0) as f64
        };
        (0..s.queries).map(row).sum::<f64>() * (s.batch * s.heads) as f64
    }

    pub(super) fn infer_output(&self, inputs: &[TensorType]) -> Result<(), String> {
        let [q, k, v, rest @ ..] = inputs else { return Err("q, k and v are needed".into()) };
        if [q, k, v].iter().any(|t| t.dtype != DType::F32 || t.rank() != 4) || k != v {
            return Err("q must be f32 [B, Tq, H, D], k and v f32 [B, Tk, Hkv, D]".into());
        }
        if q.shape[0] != k.shape[0] || q.shape[3] != k.shape[3] {
            return Err("q and k differ in batch or head size".into());
        }
        let (heads, kv_heads, dim) = (q.shape[2], k.shape[2], q.shape[3]);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(format!("{heads} query heads are not a multiple of {kv_heads} key/value heads"));
        }
        if !(1..=256).contains(&dim) {
            return Err(format!("head size {dim} is not in 1..=256"));
        }
        if self.window == Some(0) {
            return Err("a window of 0 hides every key; use at least 1".into());
        }
        match rest {
            [] => Ok(()),
            [r] if *r == TensorType::i32(&[q.shape[0], 2]) => Ok(()),
            _ => Err(format!("key_range must be one i32[{}, 2]", q.shape[0])),
        }
    }
}

/// One stage of attention on a GPU: which rows it walks and what it binds.
pub(super) struct Stage {
    pub name: &'static str,
    pub shape: AttentionShape,
    /// Rows (queries or keys) and heads that are the units of work.
    pub rows: usize,
    pub heads: usize,
    /// FLOPs for one row and one score.
    pub flops: f64,
    pub ranged: Option<Buf>,
}

/// Row sums alone share nothing.
fn form(caps: &Caps, stage: &str) -> AttentionForm {
    if stage == "delta" { AttentionForm::Rows } else { caps.choices().attention }
}

impl Stage {
    /// The most scores of one row.
    fn others(&self) -> usize {
        let s = &self.shape;
        let (all, seen) = match (self.name, &s.slots) {
            ("dkv", Some(slots)) => (s.queries, slots.every.saturating_mul(slots.capacity)),
            (_, Some(slots)) => (s.keys, slots.capacity),
            ("dkv", None) => (s.queries * s.group(), s.window.unwrap_or(usize::MAX).saturating_mul(2)),
            (_, None) => (s.keys, s.window.unwrap_or(usize::MAX).saturating_mul(2)),
        };
        all.min(seen)
    }

    /// Dispatches the stage for the batch rows `batches`, whose parts `binds` holds, cut by tiles where it would take too long.
    pub fn launch(
        &self,
        lowering: &mut Lowering,
        batches: Range<usize>,
        mut binds: Vec<Bind>,
    ) -> Result<(), Unsupported> {
        let s = &self.shape;
        let form = form(lowering.caps, self.name);
        let (rows_per_tile, name) = if form == AttentionForm::Rows { (64, "rows") } else { (32, "tiles") };
        let (ty, units) =
            if s.head_dim.is_multiple_of(4) { ("vec4<f32>", s.head_dim / 4) } else { ("f32", s.head_dim) };
        let variables = context! {
            stage => self.name, T => ty, NV => units, chunks => s.head_dim.div_ceil(32), ranged => self.ranged.is_some(),
            slots => s.slots.is_some(),
        };
        if let Some(range) = self.ranged {
            binds.push(lowering.read(range));
        }
        let template = match form {
            AttentionForm::Rows => concat!(
                include_str!("../../shaders/attention_rows.wgsl"),
                include_str!("../../shaders/attention_mask.wgsl")
            ),
            AttentionForm::Tiles => concat!(
                include_str!("../../shaders/attention_tiles.wgsl"),
                include_str!("../../shaders/attention_mask.wgsl")
            ),
        };
        let tiles = self.rows.div_ceil(rows_per_tile);
        let others = self.others();
        if s.slots.is_some() {
            // Two at a time; head sizes beyond 32 units are walked by loops of their own.
            lowering.loops((others / 2 + 1).saturating_mul(if units > 32 { 8 * units } else { 1 }))?;
        }
        let tile_flops = self.flops * (rows_per_tile * others) as f64;
        for items in lowering.chunks(batches.len() * self.heads * tiles, &[], tile_flops)? {
            let params = Params::new().u32(items.start).u32(items.len()).u32(tiles);
            let params = params.u32(s.queries).u32(s.keys).u32(s.heads).u32(s.kv_heads).u32(usize::from(s.causal));
            // Far beyond any sequence, and small enough to add positions to.
            let window = s.window.unwrap_or(usize::MAX).min(1 << 29);
            let mut params = params.u32(window).u32(batches.start).f32(s.scale as f64);
            if let Some(slots) = &s.slots {
                const FAR: usize = 1 << 30;
                let reach = slots.every.saturating_mul(slots.capacity).min(FAR);
                params = params.u32(slots.every).u32(slots.capacity.min(FAR)).u32(slots.ready);
                params = params.u32(reach).u32(FAR / slots.every);
            }
            let groups = lowering.line(items.len());
            let family = if s.slots.is_some() { "episodic" } else { "attention" };
            let label = format!("{family}/{name}/{}", self.name);
            lowering.dispatch(label, template, variables.clone(), &binds, params, groups)?;
        }
        Ok(())
    }
}

/// Bytes of one batch row of q, of k, and of lse.
pub(super) fn batch_bytes(s: &AttentionShape) -> [u64; 3] {
    let n = s.batch.max(1);
    [s.q_len() / n, s.kv_len() / n, s.lse_len() / n].map(|len| 4 * len as u64)
}

/// The part of a tensor with rows of `bytes` that holds the rows `range`.
pub(super) fn rows_part(range: &Range<usize>, bytes: u64) -> Range<u64> {
    range.start as u64 * bytes..range.end as u64 * bytes
}

/// Writes the dispatches of a call with operands q, k, v and, where there is one, the range of keys (with slots: the place), and
/// results o and lse.
pub(super) fn lower(lowering: &mut Lowering, shape: AttentionShape) -> Result<(), Unsupported> {
    let [q, kv, lse] = batch_bytes(&shape);
    let ranged = (lowering.inputs() > 3).then_some(Buf::In(3));
    let (rows, heads, flops) = (shape.queries, shape.heads, 4.0 * shape.head_dim as f64);
    let stage = Stage { name: "forward", shape, rows, heads, flops, ranged };
    for batches in lowering.chunks(shape.batch, &[q, kv, lse], 0.0)? {
        let binds = vec![
            lowering.read_part(Buf::In(0), rows_part(&batches, q)),
            lowering.read_part(Buf::In(1), rows_part(&batches, kv)),
            lowering.read_part(Buf::In(2), rows_part(&batches, kv)),
            lowering.write_part(Buf::Out(0), rows_part(&batches, q)),
            lowering.write_part(Buf::Out(1), rows_part(&batches, lse)),
        ];
        stage.launch(lowering, batches, binds)?;
    }
    Ok(())
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let [q, k, v] = [inputs[0], inputs[1], inputs[2]].map(|t| &t.data);
        let s = self.shape(&inputs[0].shape, &inputs[1].shape);
        let (d, scale) = (s.head_dim, self.scale as f64);
        let mut o = RefTensor::zeros(&outputs[0].shape);
        let mut lse = RefTensor::zeros(&outputs[1].shape);
        self.each_row(&s, inputs.get(3).copied(), |at, row, keys, kv| {
            let score = |&j: &usize| scale * (0..d).map(|c| q[at + c] * k[kv(j) + c]).sum::<f64>();
            let scores: Vec<f64> = keys.iter().map(score).collect();
            if scores.is_empty() {
                lse.data[row] = EMPTY_LSE as f64;
                return;
            }
            let max = scores.iter().fold(f64::NEG_INFINITY, |m: f64, x| m.max(*x));
            let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
            lse.data[row] = max + sum.ln();
            for (&j, x) in keys.iter().zip(&scores) {
                for c in 0..d {
                    o.data[at + c] += (x - max).exp() / sum * v[kv(j) + c];
                }
            }
        });
        vec![o, lse]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let s = self.shape(&call.input(0).shape, &call.input(1).shape);
        let range = (call.inputs.len() > 3).then(|| call.i32(3));
        if any_half(call) {
            let n = s.batch.max(1);
            let (q, kv, lse) = (s.q_len() / n, s.kv_len() / n, s.lse_len() / n);
            let (inputs, outputs) = ([part(0, q), part(1, kv), part(2, kv)], [part(0, q), part(1, lse)]);
            by_rows(call, s.batch, 1, inputs, outputs, |rows, [q, k, v], [o, lse]| {
                let range = range.map(|r| &r[2 * rows.start..2 * rows.end]);
                let s = AttentionShape { batch: rows.len(), ..s };
                kernels_cpu::attention::attention_forward(&s, q, k, v, range, o, lse);
            });
            return Ok(());
        }
        let (q, k, v) = (call.f32(0), call.f32(1), call.f32(2));
        kernels_cpu::attention::attention_forward(&s, q, k, v, range, call.out_f32(0), call.out_f32(1));
        Ok(())
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let shape = self.shape(&lowering.input(0).shape, &lowering.input(1).shape);
        lower(lowering, shape)
    }
}

impl Op for Attention {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        self.infer_output(inputs)?;
        let q = &inputs[0];
        Ok(vec![q.clone(), TensorType::f32(&[q.shape[0], q.shape[2], q.shape[1]])])
    }

    fn storage(&self, _: &[TensorType]) -> Storage {
        Storage { reads: vec![0, 1, 2], writes: vec![0], ..Storage::default() }
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        if cx.has_grad(1) {
            return Err(Error::Graph("the logarithms of attention's denominators (output 1) have no gradient".into()));
        }
        let mut operands = cx.inputs[..3].to_vec();
        operands.extend([cx.outputs[0], cx.outputs[1], cx.grad(0)]);
        operands.extend(&cx.inputs[3..]);
        let written = cx.graph.apply(super::attention_grad::AttentionGrad(*self), &operands)?;
        let mut gradients: Vec<Option<Value>> = written.into_iter().map(Some).collect();
        gradients.resize(cx.inputs.len(), None);
        Ok(gradients)
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes = |types: &[TensorType]| types.iter().map(|t| t.bytes() as f64).sum();
        let flops = 4.0 * inputs[0].shape[3] as f64 * self.pairs(&inputs[0], &inputs[1]);
        Cost { flops, bytes_read: bytes(inputs), bytes_written: bytes(outputs) }
    }
}

impl Graph {
    /// Attention of `q [B, Tq, H, D]` to `k`, `v` `[B, Tk, Hkv, D]`, with `key_range` i32 `[B, 2]` where batch rows are padded;
    /// gives `[B, Tq, H, D]`. See [`Attention`].
    pub fn attention(
        &mut self,
        q: Value,
        k: Value,
        v: Value,
        key_range: Option<Value>,
        op: Attention,
    ) -> Result<Value> {
        let mut operands = vec![q, k, v];
        operands.extend(key_range);
        Ok(self.apply(op, &operands)?[0])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("attention", cases).timed(sizes)]
}

/// The presets' layers, and 64 to 4096 tokens; decoding one token with so many before it.
pub(super) fn timed_settings() -> Vec<Setting> {
    // [B, Tq, Tk, H, Hkv, D]
    let sizes = [
        [8, 256, 256, 6, 6, 64],
        [12, 64, 64, 4, 4, 32],
        [8, 32, 32, 4, 4, 16],
        [1, 1, 1024, 12, 12, 64],
        [1, 64, 64, 12, 12, 64],
        [1, 512, 512, 12, 4, 64],
        [1, 1024, 1024, 12, 12, 64],
        [1, 4096, 4096, 12, 12, 64],
    ];
    let setting = |size: [usize; 6]| {
        let [b, tq, tk, h, hkv, d] = size;
        let label = format!("B {b} Tq {tq} Tk {tk} H {h}/{hkv} D {d} causal");
        let op = Attention { causal: true, window: None, scale: 1.0 / (d as f32).sqrt() };
        Setting { label, op, size, range: None, deviation: 1.0 }
    };
    sizes.into_iter().map(setting).collect()
}

fn sizes() -> Vec<Case> {
    timed_settings().into_iter().map(|s| Case::new(s.label.clone(), s.op, s.operands())).collect()
}

/// An attention and its operands: (label, operator, [B, Tq, Tk, H, Hkv, D], key range, deviation of q and k).
pub(super) struct Setting {
    pub label: String,
    pub op: Attention,
    pub size: [usize; 6],
    pub range: Option<Vec<i32>>,
    pub deviation: f64,
}

impl Setting {
    pub fn operands(&self) -> Vec<Sample> {
        let [b, tq, tk, h, hkv, d] = self.size;
        let normal = |shape: &[usize]| {
            let sample = Sample::new(shape, Values::Normal(self.deviation));
            // A query that sees one key always has probability 1: the gradients of q and k are then exactly 0, conditioning
            // explains no error, and what a device gives is the rounding of dP - delta.
            if self.op.window == Some(1) || tk == 1 { sample.fixed() } else { sample }
        };
        vec![normal(&[b, tq, h, d]), normal(&[b, tk, hkv, d]), Sample::normal(&[b, tk, hkv, d])]
    }
    pub fn range_operand(&self) -> Option<Sample> {
        let values = |r: &Vec<i32>| Values::Fixed(r.iter().map(|&x| x as f64).collect());
        self.range.as_ref().map(|r| Sample::typed(DType::I32, &[self.size[0], 2], values(r)))
    }
}

pub(super) fn settings() -> Vec<Setting> {
    let mut all = Vec::new();
    let mut add = |size: [usize; 6], causal: bool, window: Option<usize>, range: Option<Vec<i32>>, deviation: f64| {
        let scale = 1.0 / (size[5] as f32).sqrt();
        let mask = if causal { "causal" } else { "full" };
        let label = format!("{size:?} {mask} window {window:?} range {range:?} sd {deviation}");
        all.push(Setting { label, op: Attention { causal, window, scale }, size, range, deviation });
    };
    for (n, t) in [1, 2, 7, 33, 64, 65, 129].into_iter().enumerate() {
        // Each length with another head size and another grouping of heads.
        let d = [1, 3, 8, 16, 64, 80, 16][n];
        let (h, hkv) = [(1, 1), (4, 4), (6, 2), (4, 1)][n % 4];
        add([1, t, t, h, hkv, d], true, None, None, 1.0);
        add([2, t, t, h, hkv, d], n % 2 == 0, Some([5, 1, t][n % 3]), None, 1.0);
    }
    add([1, 9, 70, 2, 1, 8], true, None, None, 1.0);
    add([2, 1, 37, 4, 2, 16], true, Some(20), None, 1.0);
    add([1, 40, 11, 1, 1, 3], true, None, None, 1.0);
    add([1, 40, 11, 1, 1, 8], false, Some(3), None, 1.0);
    add([3, 35, 35, 2, 2, 8], true, None, Some(vec![0, 35, 5, 30, 20, 20]), 1.0);
    add([2, 34, 66, 2, 1, 8], false, None, Some(vec![-3, 40, 60, 900]), 1.0);
    add([1, 33, 33, 1, 1, 16], true, None, None, 100.0);
    add([1, 5, 5, 1, 1, 67], true, None, None, 1.0);
    add([1, 33, 40, 1, 1, 132], false, None, None, 1.0);
    // More than 1 MiB of queries.
    add([9, 80, 80, 6, 2, 64], true, Some(17), None, 1.0);
    all
}

/// WGSL grants exp an error of 3 + 2 |x| ulp, and probabilities that matter have |x| < 15.
pub(super) const EXP_ULPS: f64 = 32.0;

fn cases() -> Vec<Case> {
    let case = |s: Setting| {
        let mut inputs = s.operands();
        inputs.extend(s.range_operand());
        Case::new(s.label, s.op, inputs).ulps(EXP_ULPS)
    };
    let all: Vec<Case> = settings().into_iter().map(case).collect();
    let halves = [DType::Bf16, DType::F16].into_iter().flat_map(|dtype| {
        let stored = move |c: &Case| c.clone().stored(dtype, &[0, 1, 2], &[0]);
        let mixed = all[5].clone().stored(dtype, &[0, 2], &[]);
        all.iter().step_by(3).map(stored).chain([mixed]).collect::<Vec<_>>()
    });
    all.iter().cloned().chain(halves).collect()
}
