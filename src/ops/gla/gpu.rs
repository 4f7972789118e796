//! The stages of gated linear attention on a GPU; `shaders/gla.wgsl` says what each does.

use crate::device::Unsupported;
use crate::device::gpu::{Bind, Buf, Lowering, Params};
use kernels_cpu::gla::GlaShape;
use minijinja::context;
use std::ops::Range;

/// A stage: how many threads it has, and what one costs.
struct Stage {
    name: &'static str,
    units: usize,
    flops: f64,
    /// Rounds of loops of one thread.
    rounds: usize,
    /// Heads of its operands x and y.
    heads: [usize; 2],
}

/// Batch rows that are bound at once, and memory for them.
struct Part {
    s: GlaShape,
    chunk: usize,
    chunks: usize,
    rows: Range<usize>,
}

impl Part {
    fn heads(&self) -> usize {
        self.rows.len() * self.s.heads
    }
    /// Bytes of one batch row of a tensor over time.
    fn over_time(&self, heads: usize, width: usize) -> u64 {
        (self.s.time * heads * width * 4) as u64
    }
    fn read(&self, l: &Lowering, buf: Buf, row_bytes: u64) -> Bind {
        l.read_part(buf, self.rows.start as u64 * row_bytes..self.rows.end as u64 * row_bytes)
    }
    fn write(&self, l: &Lowering, buf: Buf, row_bytes: u64) -> Bind {
        Bind { write: true, ..self.read(l, buf, row_bytes) }
    }
    fn q(&self) -> u64 {
        self.over_time(self.s.heads, self.s.key_dim)
    }
    fn k(&self) -> u64 {
        self.over_time(self.s.key_heads, self.s.key_dim)
    }
    fn v(&self) -> u64 {
        self.over_time(self.s.value_heads, self.s.value_dim)
    }
    fn a(&self) -> u64 {
        self.over_time(self.s.heads, self.s.gates())
    }
    fn o(&self) -> u64 {
        self.over_time(self.s.heads, self.s.value_dim)
    }
    fn state(&self) -> u64 {
        (self.s.heads * self.s.state() * 4) as u64
    }
    fn edges(&self) -> u64 {
        self.state() * (self.chunks as u64 + 1)
    }
    fn pairs(&self) -> u64 {
        (self.s.heads * self.chunks * self.chunk * self.chunk * 4) as u64
    }
    fn totals(&self) -> u64 {
        (self.s.heads * self.chunks * self.s.gates() * 4) as u64
    }
    fn inner(&self) -> u64 {
        (self.s.heads * self.chunks * self.s.key_dim * 4) as u64
    }

    /// Dispatches a stage, cut where it would take too long.
    fn launch(
        &self,
        l: &mut Lowering,
        stage: Stage,
        variables: minijinja::Value,
        binds: &[(&'static str, Bind)],
    ) -> Result<(), Unsupported> {
        let s = &self.s;
        if stage.units == 0 {
            return Ok(());
        }
        l.loops(stage.rounds)?;
        let constants =
            context! { stage => stage.name, D => s.key_dim, E => s.value_dim, CHUNK => self.chunk, GATES => s.gates() };
        let variables = context! { ..variables, ..constants };
        for units in l.chunks(stage.units, &[], stage.flops)? {
            let params = Params::new().u32(units.start).u32(units.len()).u32(s.time).u32(s.heads).u32(self.chunks);
            let params = params.u32(stage.heads[0]).u32(stage.heads[1]).u32(self.rows.len());
            let groups = l.line(units.len().div_ceil(64));
            let label = format!("gla/{}", stage.name);
            l.dispatch_named(label, crate::shader!("gla.wgsl"), variables.clone(), binds, params, groups)?;
        }
        Ok(())
    }

    fn gates(&self, l: &mut Lowering, weights: Buf, totals: Buf) -> Result<(), Unsupported> {
        let units = self.heads() * self.chunks * self.s.gates();
        let (rounds, flops) = (2 * self.chunk, 40.0 * self.chunk as f64);
        let binds =
            [("a", self.read(l, Buf::In(3), self.a())), ("weights", l.write(weights)), ("totals", l.write(totals))];
        self.launch(l, Stage { name: "gates", units, flops, rounds, heads: [1, 1] }, context! {}, &binds)
    }

    /// The states at the edges of chunks: sums of `weight x' y`, carried from `near`; the farthest goes to `far`.
    fn edge_states(
        &self,
        l: &mut Lowering,
        backward: bool,
        [x, y]: [(Bind, usize); 2],
        [weights, totals, states]: [Buf; 3],
        near: Option<Bind>,
        far: Option<Bind>,
    ) -> Result<(), Unsupported> {
        let (tiles, elements) =
            (self.s.key_dim.div_ceil(4) * self.s.value_dim.div_ceil(4), self.heads() * self.s.state());
        let units = self.heads() * self.chunks * tiles;
        let stage =
            Stage { name: "sums", units, flops: 40.0 * self.chunk as f64, rounds: self.chunk, heads: [x.1, y.1] };
        let binds = [("x", x.0), ("y", y.0), ("weights", l.read(weights)), ("states", l.write(states))];
        self.launch(l, stage, context! { backward }, &binds)?;
        let rounds = self.chunks;
        let stage = Stage { name: "carry", units: elements, flops: 20.0 * rounds as f64, rounds, heads: [1, 1] };
        let mut binds = vec![("states", l.write(states)), ("totals", l.read(totals))];
        binds.extend(near.map(|near| ("near", near)));
        binds.extend(far.map(|far| ("far", far)));
        self.launch(l, stage, context! { backward, given => near.is_some(), kept => far.is_some() }, &binds)
    }

    /// Products of rows of x with rows of y, `over` keys or values, times what lies between where `decayed`.
    fn pairs_of(
        &self,
        l: &mut Lowering,
        over: &str,
        decayed: bool,
        [x, y]: [(Bind, usize); 2],
        pairs: Buf,
    ) -> Result<(), Unsupported> {
        let width = if over == "keys" { self.s.key_dim } else { self.s.value_dim };
        let units = self.heads() * self.chunks * self.chunk.div_ceil(4).pow(2);
        let powers = if decayed { if self.s.channel_gates { width } else { 1 } } else { 0 };
        let rounds = width + powers * self.chunk;
        let flops = (32 * width + powers * (200 + 8 * self.chunk)) as f64;
        let mut binds = vec![("x", x.0), ("y", y.0), ("pairs", l.write(pairs))];
        if decayed {
            binds.push(("a", self.read(l, Buf::In(3), self.a())));
        }
        let stage = Stage { name: "pairs", units, flops, rounds, heads: [x.1, y.1] };
        self.launch(l, stage, context! { over, decayed }, &binds)
    }

    /// Rows of a product with pairs and what the states give; see the shader.
    fn mix(
        &self,
        l: &mut Lowering,
        [turned, flipped]: [bool; 2],
        [x, y]: [(Bind, usize); 2],
        [pairs, weights, states]: [Buf; 3],
        result: Bind,
    ) -> Result<(), Unsupported> {
        let (d, e) = (self.s.key_dim, self.s.value_dim);
        let (width, other) = if flipped { (d, e) } else { (e, d) };
        let units = self.heads() * self.chunks * self.chunk.div_ceil(4) * width.div_ceil(4);
        let between = flipped && self.s.channel_gates;
        let mut binds = vec![("pairs", l.read(pairs)), ("x", x.0), ("y", y.0), ("weights", l.read(weights))];
        binds.extend([("states", l.read(states)), ("result", result)]);
        if between {
            binds.push(("a", self.read(l, Buf::In(3), self.a())));
        }
        let (each, rows) = if between { (300, 4) } else { (40, 1) };
        let (rounds, flops) = (other + rows * self.chunk, (32 * other + each * self.chunk) as f64);
        let stage = Stage { name: "mix", units, flops, rounds, heads: [x.1, y.1] };
        self.launch(l, stage, context! { turned, flipped, between }, &binds)
    }

    /// Adds up the gradients of heads that share one of `shared`.
    fn group(&self, l: &mut Lowering, over: &str, shared: usize, x: Bind, result: Bind) -> Result<(), Unsupported> {
        let width = if over == "keys" { self.s.key_dim } else { self.s.value_dim };
        let (units, rounds) = (self.rows.len() * self.s.time * shared * width, self.s.heads / shared);
        let stage = Stage { name: "group", units, flops: 2.0 * rounds as f64, rounds, heads: [shared, shared] };
        self.launch(l, stage, context! { over }, &[("x", x), ("result", result)])
    }
}

/// Batch rows that can be bound at once, for tensors of these bytes a row.
fn parts(
    l: &Lowering,
    s: &GlaShape,
    chunk: usize,
    bytes: impl Fn(&Part) -> Vec<u64>,
) -> Result<Vec<Part>, Unsupported> {
    // Short sequences need no long chunks; few lengths keep the shaders few.
    let chunk = chunk.min(s.time.next_multiple_of(16).max(16));
    let part = |rows| Part { s: *s, chunk, chunks: s.time.div_ceil(chunk), rows };
    let one = part(0..1);
    Ok(l.chunks(s.batch, &bytes(&one), 0.0)?.into_iter().map(part).collect())
}

fn forward_bytes(p: &Part) -> Vec<u64> {
    vec![p.q(), p.k(), p.v(), p.a(), p.o(), p.state(), 2 * p.a(), p.edges(), p.pairs(), p.totals()]
}

/// q, k, v, a and, when `initial`, the first state; o and the last state.
pub fn chunked(l: &mut Lowering, s: &GlaShape, chunk: usize, initial: bool) -> Result<(), Unsupported> {
    let parts = parts(l, s, chunk, forward_bytes)?;
    let Some(most) = parts.iter().max_by_key(|p| p.rows.len()) else { return Ok(()) };
    let rows = most.rows.len() as u64;
    let [weights, totals, states, pairs] =
        [2 * most.a(), most.totals(), most.edges(), most.pairs()].map(|bytes| l.scratch(bytes * rows));
    for p in &parts {
        let q = (p.read(l, Buf::In(0), p.q()), s.heads);
        let k = (p.read(l, Buf::In(1), p.k()), s.key_heads);
        let v = (p.read(l, Buf::In(2), p.v()), s.value_heads);
        let first = initial.then(|| p.read(l, Buf::In(4), p.state()));
        let last = Some(p.write(l, Buf::Out(1), p.state()));
        p.gates(l, weights, totals)?;
        p.edge_states(l, false, [k, v], [weights, totals, states], first, last)?;
        p.pairs_of(l, "keys", true, [q, k], pairs)?;
        let o = p.write(l, Buf::Out(0), p.o());
        p.mix(l, [false, false], [v, q], [pairs, weights, states], o)?;
    }
    Ok(())
}

/// q, k, v, a, the gradients of o and the last state and, when `initial`, the first state; the gradients of q, k, v, a and, when
/// `initial`, the first state.
pub fn backward(l: &mut Lowering, s: &GlaShape, chunk: usize, initial: bool) -> Result<(), Unsupported> {
    let [keys_shared, values_shared] = [s.key_heads != s.heads, s.value_heads != s.heads];
    let parts = parts(l, s, chunk, |p| [forward_bytes(p), vec![p.inner()]].concat())?;
    let Some(most) = parts.iter().max_by_key(|p| p.rows.len()) else { return Ok(()) };
    let rows = most.rows.len() as u64;
    let [weights, totals, states, wanted, pairs, d_pairs, inner, deltas] =
        [2 * most.a(), most.totals(), most.edges(), most.edges(), most.pairs(), most.pairs(), most.inner(), most.a()]
            .map(|bytes| l.scratch(bytes * rows));
    let dk_heads = keys_shared.then(|| l.scratch(most.q() * rows));
    let dv_heads = values_shared.then(|| l.scratch(most.o() * rows));
    for p in &parts {
        let q = (p.read(l, Buf::In(0), p.q()), s.heads);
        let k = (p.read(l, Buf::In(1), p.k()), s.key_heads);
        let v = (p.read(l, Buf::In(2), p.v()), s.value_heads);
        let d_o = (p.read(l, Buf::In(4), p.o()), s.heads);
        let first = initial.then(|| p.read(l, Buf::In(6), p.state()));
        let d_last = Some(p.read(l, Buf::In(5), p.state()));
        let d_first = initial.then(|| p.write(l, Buf::Out(4), p.state()));
        p.gates(l, weights, totals)?;
        p.edge_states(l, false, [k, v], [weights, totals, states], first, None)?;
        p.edge_states(l, true, [q, d_o], [weights, totals, wanted], d_last, d_first)?;
        p.pairs_of(l, "keys", true, [q, k], pairs)?;
        p.pairs_of(l, "values", !s.channel_gates, [d_o, v], d_pairs)?;
        let dq = p.write(l, Buf::Out(0), p.q());
        let dk = dk_heads.map_or_else(|| p.write(l, Buf::Out(1), p.k()), |heads| l.write(heads));
        let dv = dv_heads.map_or_else(|| p.write(l, Buf::Out(2), p.v()), |heads| l.write(heads));
        p.mix(l, [false, true], [k, d_o], [d_pairs, weights, states], dq)?;
        p.mix(l, [true, true], [q, v], [d_pairs, weights, wanted], dk)?;
        p.mix(l, [true, false], [d_o, k], [pairs, weights, wanted], dv)?;
        p.gate_gradient(l, [q.0, k.0, dq, dk], [states, wanted, inner, deltas])?;
        if let Some(heads) = dk_heads {
            let result = p.write(l, Buf::Out(1), p.k());
            p.group(l, "keys", s.key_heads, l.read(heads), result)?;
        }
        if let Some(heads) = dv_heads {
            let result = p.write(l, Buf::Out(2), p.v());
            p.group(l, "values", s.value_heads, l.read(heads), result)?;
        }
    }
    Ok(())
}

impl Part {
    fn gate_gradient(
        &self,
        l: &mut Lowering,
        [q, k, dq, dk]: [Bind; 4],
        [states, wanted, inner, deltas]: [Buf; 4],
    ) -> Result<(), Unsupported> {
        let s = &self.s;
        let (d, e, gates) = (s.key_dim, s.value_dim, s.gates());
        let heads = [s.key_heads, 1];
        let units = self.heads() * self.chunks * d;
        let stage = Stage { name: "inner", units, flops: 2.0 * e as f64, rounds: e, heads };
        let binds = [("states", l.read(states)), ("wanted", l.read(wanted)), ("result", l.write(inner))];
        self.launch(l, stage, context! {}, &binds)?;
        let read = |bind: Bind| Bind { write: false, ..bind };
        let units = self.heads() * s.time * gates;
        let stage = Stage { name: "deltas", units, flops: (4 * d / gates) as f64, rounds: d, heads };
        let binds = [("q", q), ("k", k), ("dq", read(dq)), ("dk", read(dk)), ("result", l.write(deltas))];
        self.launch(l, stage, context! {}, &binds)?;
        let units = self.heads() * self.chunks * gates;
        let rounds = d + self.chunk;
        let stage = Stage { name: "suffix", units, flops: rounds as f64, rounds, heads };
        let da = self.write(l, Buf::Out(3), self.a());
        let a = self.read(l, Buf::In(3), self.a());
        let binds = [("inner", l.read(inner)), ("deltas", l.read(deltas)), ("a", a), ("da", da)];
        self.launch(l, stage, context! {}, &binds)
    }
}

/// Keys wider than this would spill a thread's state out of its registers.
const WIDEST: usize = 256;

/// One step after another; the operands of `chunked`.
pub fn recurrent(l: &mut Lowering, s: &GlaShape, initial: bool) -> Result<(), Unsupported> {
    if s.key_dim > WIDEST {
        return Err(Unsupported(format!("a column of {} numbers of state does not fit registers", s.key_dim)));
    }
    let parts = parts(l, s, 1, |p| vec![p.q(), p.k(), p.v(), p.a(), p.o(), p.state()])?;
    for p in parts {
        let units = p.heads() * s.value_dim;
        // Steps of a dispatch: within the time budget and the rounds of loops a software device runs.
        let seconds = (units * 16 * s.key_dim) as f64 / l.caps.flops_per_second;
        let in_time = (l.caps.seconds_per_dispatch / seconds.max(1e-15)).clamp(1.0, 1e9) as usize;
        let steps = if l.caps.software { in_time.min((30_000 / s.key_dim).max(1)) } else { in_time };
        // Without a step the first state is still the last.
        for i in 0..s.time.div_ceil(steps).max(1) {
            let times = i * steps..((i + 1) * steps).min(s.time);
            let mut binds = vec![
                ("q", p.read(l, Buf::In(0), p.q())),
                ("k", p.read(l, Buf::In(1), p.k())),
                ("v", p.read(l, Buf::In(2), p.v())),
                ("a", p.read(l, Buf::In(3), p.a())),
                ("o", p.write(l, Buf::Out(0), p.o())),
                ("last", p.write(l, Buf::Out(1), p.state())),
            ];
            if initial && i == 0 {
                binds.push(("near", p.read(l, Buf::In(4), p.state())));
            }
            let params = Params::new().u32(units).u32(s.time).u32(s.heads).u32(s.key_heads).u32(s.value_heads);
            let params = params.u32(times.start).u32(times.end);
            let variables = context! {
                D => s.key_dim, E => s.value_dim, GATES => s.gates(), given => initial, resumed => i > 0,
            };
            let (shader, groups) = (crate::shader!("gla_recurrent.wgsl"), l.line(units.div_ceil(64)));
            l.dispatch_named("gla/recurrent", shader, variables, &binds, params, groups)?;
        }
    }
    Ok(())
}
