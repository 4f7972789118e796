//! The gated scan `h_t = g_t h_{t-1} + u_t`, elementwise over `[batch, time, channels]`, in three forms that agree: naive
//! (the definition), recurrent (one step, carried state) and chunked (parallel over stretches of time: each is scanned from
//! zero beside the product of its gates, the carries are combined, then each is scanned again from its true start; Blelloch
//! 1990). The gradient is a gated scan in reversed time: `s_t = dy_t + g_{t+1} s_{t+1}`, `du = s`, `dg_t = s_t h_{t-1}`,
//! `dh0 = g_0 s_0`.
//!
//! A gate may be given as its logarithm `a` (see [`Gate`]): gates near one then keep the digits that `g = e^a` loses in rounding.

use std::ops::Range;

use crate::channels::{BLOCK, Block, Column, add, expm1, fma, load, mul, splat, store, tail, zero};
use crate::register::{Register, with_register};
use crate::simd::{Baseline, Isa};
use crate::threads::{SharedMut, par_blocks};
use crate::vector::Vector;

/// How the operand `g` gives the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The gate itself: `h = g h + u`.
    Factor,
    /// Its logarithm `a`, at most 88: `h = h + (expm1(a) h + u)`. Gradients are those of `a`.
    Log,
}

impl Gate {
    /// `g s + u`
    #[inline(always)]
    fn step<R: Vector>(self, g: Block<R>, s: Block<R>, u: Block<R>) -> Block<R> {
        match self {
            Gate::Factor => fma(g, s, u),
            Gate::Log => add(s, fma(expm1(g), s, u)),
        }
    }
    /// The gate of two stretches of time, one after the other, from those of each.
    #[inline(always)]
    fn both<R: Register>(self, first: Block<R>, second: Block<R>) -> Block<R> {
        match self {
            Gate::Factor => mul(first, second),
            Gate::Log => add(first, second),
        }
    }
    /// The gate that keeps the state as it is.
    fn one(self) -> f32 {
        match self {
            Gate::Factor => 1.0,
            Gate::Log => 0.0,
        }
    }
    /// `g s + u`
    #[inline(always)]
    fn step_scalar<V: Isa>(self, g: f32, s: f32, u: f32) -> f32 {
        match self {
            Gate::Factor => V::fma(g, s, u),
            Gate::Log => s + V::fma(crate::math::expm1::<V>(g), s, u),
        }
    }
    /// (gradient of the operand for `s` at the state after, gradient of the state before)
    #[inline(always)]
    fn back_scalar<V: Isa>(self, g: f32, before: f32, s: f32) -> (f32, f32) {
        match self {
            Gate::Factor => (s * before, g * s),
            Gate::Log => {
                let carry = V::fma(crate::math::expm1::<V>(g), s, s);
                (carry * before, carry)
            }
        }
    }
}

/// Sizes of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanShape {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
}

impl ScanShape {
    /// Elements of `g`, `u` and `h`.
    pub fn len(&self) -> usize {
        self.batch * self.time * self.channels
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A chunk for [`gated_scan_chunked`]: all of time where batch rows and channels alone keep many threads busy.
    pub fn default_chunk(&self) -> usize {
        if self.batch * self.channels.div_ceil(BLOCK) >= 32 { self.time.max(1) } else { 128 }
    }

    fn check(&self, tensors: &[&[f32]], h0: Option<&[f32]>) {
        for x in tensors {
            assert_eq!(x.len(), self.len(), "gated scan: tensors must be [batch, time, channels] of {self:?}");
        }
        if let Some(h0) = h0 {
            assert_eq!(h0.len(), self.batch * self.channels, "gated scan: h0 must be [batch, channels] of {self:?}");
        }
    }
}

/// The definition, in scalar loops. `h0 [batch, channels]` is 0 where None.
pub fn gated_scan_naive(shape: ScanShape, gate: Gate, g: &[f32], u: &[f32], h0: Option<&[f32]>, h: &mut [f32]) {
    shape.check(&[g, u, h], h0);
    let ScanShape { batch, time, channels } = shape;
    for b in 0..batch {
        for c in 0..channels {
            let mut state = h0.map_or(0.0, |h0| h0[b * channels + c]);
            for t in 0..time {
                let at = (b * time + t) * channels + c;
                state = gate.step_scalar::<Baseline>(g[at], state, u[at]);
                h[at] = state;
            }
        }
    }
}

/// The gradient by its definition, in scalar loops: see [`gated_scan_chunked_backward`].
#[allow(clippy::too_many_arguments)]
pub fn gated_scan_naive_backward(
    shape: ScanShape,
    gate: Gate,
    g: &[f32],
    h: &[f32],
    h0: Option<&[f32]>,
    dy: &[f32],
    dg: &mut [f32],
    du: &mut [f32],
    dh0: Option<&mut [f32]>,
) {
    shape.check(&[g, h, dy, dg, du], h0);
    shape.check(&[], dh0.as_deref());
    let ScanShape { batch, time, channels } = shape;
    let mut start = vec![0.0; batch * channels];
    for b in 0..batch {
        for c in 0..channels {
            let mut carry = 0.0;
            for t in (0..time).rev() {
                let at = (b * time + t) * channels + c;
                let s = dy[at] + carry;
                let before = if t > 0 { h[at - channels] } else { h0.map_or(0.0, |h0| h0[b * channels + c]) };
                du[at] = s;
                (dg[at], carry) = gate.back_scalar::<Baseline>(g[at], before, s);
            }
            start[b * channels + c] = carry;
        }
    }
    if let Some(dh0) = dh0 {
        dh0.copy_from_slice(&start);
    }
}

#[inline(always)]
fn scan_block_in<R: Vector>(
    gate: Gate,
    g: View<'_>,
    u: View<'_>,
    range: Range<usize>,
    state: &mut [f32],
    h: Option<Column<'_>>,
) {
    let (mut s, mut h) = (load::<R>(state), h);
    for t in range {
        s = gate.step(g.at(t), s, u.at(t));
        if let Some(h) = &mut h {
            store(s, h.at(t));
        }
    }
    store(s, state);
}

#[inline(always)]
fn product_block_in<R: Register>(gate: Gate, g: View<'_>, range: Range<usize>, product: &mut [f32]) {
    let mut p = splat::<R>(gate.one());
    for t in range {
        p = gate.both(p, g.at(t));
    }
    store(p, product);
}

#[inline(always)]
fn reverse_block_in<R: Vector>(
    gate: Gate,
    g: View<'_>,
    dy: View<'_>,
    range: Range<usize>,
    carry: &mut [f32],
    out: Option<Gradients<'_>>,
) {
    let mut c = load::<R>(carry);
    match out {
        None => {
            for t in range.rev() {
                let s = add(dy.at(t), c);
                c = gate.step(g.at(t), s, zero());
            }
        }
        Some(mut out) => {
            for t in range.rev() {
                let s = add(dy.at(t), c);
                store(s, out.du.at(t));
                let before = if t > 0 { out.h.at(t - 1) } else { load(out.before) };
                c = gate.step(g.at(t), s, zero());
                let with_gate = if gate == Gate::Log { c } else { s };
                store(mul(with_gate, before), out.dg.at(t));
            }
        }
    }
    store(c, carry);
}

crate::multiversion! {
    /// One step: `h = g h + u` over slices of one length (`batch * channels`); `h` carries the state.
    pub fn gated_scan_step<V>(gate: Gate, g: &[f32], u: &[f32], h: &mut [f32]) {
        assert!(g.len() == h.len() && u.len() == h.len(), "gated scan step: g, u and h must have one length");
        for ((h, &g), &u) in h.iter_mut().zip(g).zip(u) {
            *h = gate.step_scalar::<V>(g, *h, u);
        }
    }

    /// The gradient of one step, going back in time: `carry` holds the gradient that reaches `h` from later steps and
    /// receives the one that reaches `h_before`. Slices of one length.
    pub fn gated_scan_step_backward<V>(
        gate: Gate,
        g: &[f32],
        h_before: &[f32],
        dy: &[f32],
        carry: &mut [f32],
        dg: &mut [f32],
        du: &mut [f32],
    ) {
        let n = carry.len();
        assert!(
            [g.len(), h_before.len(), dy.len(), dg.len(), du.len()] == [n; 5],
            "gated scan step: all slices must have one length"
        );
        for i in 0..n {
            let s = dy[i] + carry[i];
            du[i] = s;
            (dg[i], carry[i]) = gate.back_scalar::<V>(g[i], h_before[i], s);
        }
    }

    /// Scans `range` from `state`; returns the last state through `state` and, where asked for, writes all states.
    fn scan_block<V>(
        gate: Gate,
        g: View<'_>,
        u: View<'_>,
        range: Range<usize>,
        state: &mut [f32],
        h: Option<Column<'_>>,
    ) { with_register!(V, scan_block_in(gate, g, u, range, state, h)) }

    /// The product of the gates of `range`.
    fn product_block<V>(gate: Gate, g: View<'_>, range: Range<usize>, product: &mut [f32]) { with_register!(V, product_block_in(gate, g, range, product)) }

    /// Scans `range` backward; `carry` is what reaches its last state from later, then what reaches the state before it.
    fn reverse_block<V>(
        gate: Gate,
        g: View<'_>,
        dy: View<'_>,
        range: Range<usize>,
        carry: &mut [f32],
        out: Option<Gradients<'_>>,
    ) { with_register!(V, reverse_block_in(gate, g, dy, range, carry, out)) }
}

/// One block of channels of one batch row, to read.
#[derive(Clone, Copy)]
struct View<'a> {
    x: &'a [f32],
    width: usize,
    stride: usize,
}

impl<'a> View<'a> {
    fn new(x: &'a [f32], shape: ScanShape, b: usize, block: &Range<usize>) -> Self {
        let first = b * shape.time * shape.channels + block.start;
        View { x: tail(x, first), width: block.len(), stride: shape.channels }
    }

    #[inline(always)]
    fn at<R: Register>(&self, t: usize) -> Block<R> {
        load(&self.x[t * self.stride..][..self.width])
    }
}

/// Where the backward scan writes, and the states it needs.
struct Gradients<'a> {
    h: View<'a>,
    /// The state before time 0.
    before: &'a [f32],
    dg: Column<'a>,
    du: Column<'a>,
}

/// The cut of a scan into `(chunk, batch row, block of channels)` items.
struct Cut {
    shape: ScanShape,
    chunk: usize,
    chunks: usize,
    blocks: usize,
}

impl Cut {
    fn new(shape: ScanShape, chunk: usize) -> Self {
        assert!(chunk > 0, "gated scan: chunks of no steps");
        Cut { shape, chunk, chunks: shape.time.div_ceil(chunk).max(1), blocks: shape.channels.div_ceil(BLOCK) }
    }

    /// Calls `f(chunk, times, batch row, channels)` for `chunks` chunks.
    fn run(&self, chunks: Range<usize>, f: impl Fn(usize, Range<usize>, usize, Range<usize>) + Sync + Send) {
        let ScanShape { batch, time, channels } = self.shape;
        let cost = self.chunk.min(time.max(1)) * BLOCK;
        par_blocks(chunks.len() * batch * self.blocks, 1, cost, |item, _| {
            let (n, row) = (chunks.start + item / (batch * self.blocks), item % (batch * self.blocks));
            let first = row % self.blocks * BLOCK;
            let times = n * self.chunk..((n + 1) * self.chunk).min(time);
            f(n, times, row / self.blocks, first..(first + BLOCK).min(channels));
        });
    }

    /// Offset of a block in a `[chunks, batch, channels]` tensor.
    fn at(&self, n: usize, b: usize, block: &Range<usize>) -> Range<usize> {
        let first = (n * self.shape.batch + b) * self.shape.channels + block.start;
        first..first + block.len()
    }
}

/// `h [batch, time, channels]`, parallel over chunks of `chunk` steps as well as batch rows and channels (`chunk >= time`: not
/// over time; see [`ScanShape::default_chunk`]), and the last state `[batch, channels]` (`h0` or 0 without time) where asked for. The
/// bits depend on `chunk` and not on the number of threads. A sequence that is cut after whole chunks (two or more of them in each part),
/// the last state of one part given to the next as `h0`, gives the bits of the whole.
///
/// # Panics
/// If a slice does not have its shape's length or `chunk` is 0.
pub fn gated_scan_chunked(
    shape: ScanShape,
    gate: Gate,
    chunk: usize,
    g: &[f32],
    u: &[f32],
    h0: Option<&[f32]>,
    h: &mut [f32],
    last: Option<&mut [f32]>,
) {
    shape.check(&[g, u, h], h0);
    let cut = Cut::new(shape, chunk);
    let row = shape.batch * shape.channels;
    shape.check(&[], last.as_deref());
    let mut starts = vec![0.0; (cut.chunks + 1) * row];
    if let Some(h0) = h0 {
        starts[..row].copy_from_slice(h0);
    }
    if cut.chunks > 1 {
        // Chunk n leaves its end (from a zero start) in starts[n + 1] and the product of its gates in products[n].
        let mut products = vec![0.0; cut.chunks * row];
        let (ends, gates) = (SharedMut::new(&mut starts), SharedMut::new(&mut products));
        cut.run(0..cut.chunks, |n, times, b, block| {
            // SAFETY: items own disjoint blocks.
            let (end, product) = unsafe { (ends.slice(cut.at(n + 1, b, &block)), gates.slice(cut.at(n, b, &block))) };
            let (g, u) = (View::new(g, shape, b, &block), View::new(u, shape, b, &block));
            scan_block(gate, g, u, times.clone(), end, None);
            product_block(gate, g, times, product);
        });
        for n in 1..=cut.chunks {
            let (before, after) = starts.split_at_mut(n * row);
            gated_scan_carry(gate, &products[(n - 1) * row..n * row], &before[(n - 1) * row..], &mut after[..row]);
        }
    }
    let mut last = last;
    if let (Some(last), true) = (&mut last, cut.chunks > 1) {
        last.copy_from_slice(&starts[cut.chunks * row..]);
    }
    {
        let (starts, h) = (SharedMut::new(&mut starts), SharedMut::new(h));
        cut.run(0..cut.chunks, |n, times, b, block| {
            // SAFETY: items own disjoint blocks.
            let (state, h) =
                unsafe { (starts.slice(cut.at(n, b, &block)), Column::new(&h, b, shape.time, shape.channels, &block)) };
            scan_block(gate, View::new(g, shape, b, &block), View::new(u, shape, b, &block), times, state, Some(h));
        });
    }
    // the end of the only chunk
    if let (Some(last), 1) = (last, cut.chunks) {
        last.copy_from_slice(&starts[..row]);
    }
}

crate::multiversion! {
    /// `end += product * start`
    fn gated_scan_carry<V>(gate: Gate, product: &[f32], start: &[f32], end: &mut [f32]) {
        for ((e, &p), &s) in end.iter_mut().zip(product).zip(start) {
            *e = gate.step_scalar::<V>(p, s, *e);
        }
    }
}

/// Gradients `dg`, `du` (overwritten) and, where asked for, `dh0 [batch, channels]`, for the gradient `dy` of all states;
/// `h` is what the forward pass gave. Chunked as [`gated_scan_chunked`].
///
/// # Panics
/// If a slice does not have its shape's length or `chunk` is 0.
#[allow(clippy::too_many_arguments)]
pub fn gated_scan_chunked_backward(
    shape: ScanShape,
    gate: Gate,
    chunk: usize,
    g: &[f32],
    h: &[f32],
    h0: Option<&[f32]>,
    dy: &[f32],
    dg: &mut [f32],
    du: &mut [f32],
    dh0: Option<&mut [f32]>,
) {
    shape.check(&[g, h, dy, dg, du], h0);
    shape.check(&[], dh0.as_deref());
    let cut = Cut::new(shape, chunk);
    let row = shape.batch * shape.channels;
    // carries[n] is what reaches the end of chunk n from later chunks.
    let mut carries = vec![0.0; cut.chunks * row];
    if cut.chunks > 1 {
        let mut products = vec![0.0; cut.chunks * row];
        let (ends, gates) = (SharedMut::new(&mut carries), SharedMut::new(&mut products));
        cut.run(1..cut.chunks, |n, times, b, block| {
            // SAFETY: items own disjoint blocks.
            let (end, product) = unsafe { (ends.slice(cut.at(n - 1, b, &block)), gates.slice(cut.at(n, b, &block))) };
            let (g, dy) = (View::new(g, shape, b, &block), View::new(dy, shape, b, &block));
            reverse_block(gate, g, dy, times.clone(), end, None);
            product_block(gate, g, times, product);
        });
        for n in (0..cut.chunks - 1).rev() {
            let (before, after) = carries.split_at_mut((n + 1) * row);
            gated_scan_carry(gate, &products[(n + 1) * row..][..row], &after[..row], &mut before[n * row..]);
        }
    }
    let zeros = [0.0; BLOCK];
    {
        let (carries, dg, du) = (SharedMut::new(&mut carries), SharedMut::new(dg), SharedMut::new(du));
        cut.run(0..cut.chunks, |n, times, b, block| {
            let at = cut.at(0, b, &block);
            // SAFETY: items own disjoint blocks.
            let (carry, dg, du) = unsafe {
                (
                    carries.slice(cut.at(n, b, &block)),
                    Column::new(&dg, b, shape.time, shape.channels, &block),
                    Column::new(&du, b, shape.time, shape.channels, &block),
                )
            };
            let before = h0.map_or(&zeros[..block.len()], |h0| &h0[at]);
            let out = Gradients { h: View::new(h, shape, b, &block), before, dg, du };
            reverse_block(
                gate,
                View::new(g, shape, b, &block),
                View::new(dy, shape, b, &block),
                times,
                carry,
                Some(out),
            );
        });
    }
    if let Some(dh0) = dh0 {
        dh0.copy_from_slice(&carries[..row]);
    }
}
