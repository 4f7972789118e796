//! The gated scan `h_t = g_t h_{t-1} + u_t`, elementwise over `[batch, time, channels]`, in three forms that agree: naive
//! (the definition), recurrent (one step, carried state) and chunked (parallel over stretches of time: each is scanned from
//! zero beside the product of its gates, the carries are combined, then each is scanned again from its true start; Blelloch
//! 1990). The gradient is a gated scan in reversed time: `s_t = dy_t + g_{t+1} s_{t+1}`, `du = s`, `dg_t = s_t h_{t-1}`,
//! `dh0 = g_0 s_0`.

use std::ops::Range;

use crate::channels::{BLOCK, Column, add, fma, load, mul, splat, store, tail};
use crate::threads::{SharedMut, par_blocks};

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
pub fn gated_scan_naive(shape: ScanShape, g: &[f32], u: &[f32], h0: Option<&[f32]>, h: &mut [f32]) {
    shape.check(&[g, u, h], h0);
    let ScanShape { batch, time, channels } = shape;
    for b in 0..batch {
        for c in 0..channels {
            let mut state = h0.map_or(0.0, |h0| h0[b * channels + c]);
            for t in 0..time {
                let at = (b * time + t) * channels + c;
                state = g[at] * state + u[at];
                h[at] = state;
            }
        }
    }
}

/// The gradient by its definition, in scalar loops: see [`gated_scan_chunked_backward`].
#[allow(clippy::too_many_arguments)]
pub fn gated_scan_naive_backward(
    shape: ScanShape,
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
                dg[at] = s * before;
                carry = g[at] * s;
            }
            start[b * channels + c] = carry;
        }
    }
    if let Some(dh0) = dh0 {
        dh0.copy_from_slice(&start);
    }
}

crate::multiversion! {
    /// One step: `h = g h + u` over slices of one length (`batch * channels`); `h` carries the state.
    pub fn gated_scan_step<V>(g: &[f32], u: &[f32], h: &mut [f32]) {
        assert!(g.len() == h.len() && u.len() == h.len(), "gated scan step: g, u and h must have one length");
        for ((h, &g), &u) in h.iter_mut().zip(g).zip(u) {
            *h = V::fma(g, *h, u);
        }
    }

    /// The gradient of one step, going back in time: `carry` holds the gradient that reaches `h` from later steps and
    /// receives the one that reaches `h_before`. Slices of one length.
    pub fn gated_scan_step_backward<V>(
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
            dg[i] = s * h_before[i];
            carry[i] = g[i] * s;
        }
    }

    /// Scans `range` from `state`; returns the last state through `state` and, where asked for, writes all states.
    fn scan_block<V>(g: View<'_>, u: View<'_>, range: Range<usize>, state: &mut [f32], h: Option<Column<'_>>) {
        let (mut s, mut h) = (load(state), h);
        for t in range {
            s = fma::<V>(g.at(t), s, u.at(t));
            if let Some(h) = &mut h {
                store(s, h.at(t));
            }
        }
        store(s, state);
    }

    /// The product of the gates of `range`.
    fn product_block<V>(g: View<'_>, range: Range<usize>, product: &mut [f32]) {
        let mut p = splat(1.0);
        for t in range {
            p = mul(p, g.at(t));
        }
        store(p, product);
    }

    /// Scans `range` backward; `carry` is what reaches its last state from later, then what reaches the state before it.
    fn reverse_block<V>(
        g: View<'_>,
        dy: View<'_>,
        range: Range<usize>,
        carry: &mut [f32],
        out: Option<Gradients<'_>>,
    ) {
        let mut c = load(carry);
        match out {
            None => {
                for t in range.rev() {
                    c = mul(g.at(t), add(dy.at(t), c));
                }
            }
            Some(mut out) => {
                for t in range.rev() {
                    let s = add(dy.at(t), c);
                    store(s, out.du.at(t));
                    let before = if t > 0 { out.h.at(t - 1) } else { load(out.before) };
                    store(mul(s, before), out.dg.at(t));
                    c = mul(g.at(t), s);
                }
            }
        }
        store(c, carry);
    }
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
    fn at(&self, t: usize) -> crate::channels::Block {
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
/// over time; see [`ScanShape::default_chunk`]). The bits depend on `chunk` and not on the number of threads.
///
/// # Panics
/// If a slice does not have its shape's length or `chunk` is 0.
pub fn gated_scan_chunked(shape: ScanShape, chunk: usize, g: &[f32], u: &[f32], h0: Option<&[f32]>, h: &mut [f32]) {
    shape.check(&[g, u, h], h0);
    let cut = Cut::new(shape, chunk);
    let row = shape.batch * shape.channels;
    let mut starts = vec![0.0; cut.chunks * row];
    if let Some(h0) = h0 {
        starts[..row].copy_from_slice(h0);
    }
    if cut.chunks > 1 {
        // Chunk n leaves its end (from a zero start) in starts[n + 1] and the product of its gates in products[n].
        let mut products = vec![0.0; (cut.chunks - 1) * row];
        let (ends, gates) = (SharedMut::new(&mut starts), SharedMut::new(&mut products));
        cut.run(0..cut.chunks - 1, |n, times, b, block| {
            // SAFETY: items own disjoint blocks.
            let (end, product) = unsafe { (ends.slice(cut.at(n + 1, b, &block)), gates.slice(cut.at(n, b, &block))) };
            let (g, u) = (View::new(g, shape, b, &block), View::new(u, shape, b, &block));
            scan_block(g, u, times.clone(), end, None);
            product_block(g, times, product);
        });
        for n in 1..cut.chunks {
            let (before, after) = starts.split_at_mut(n * row);
            gated_scan_carry(&products[(n - 1) * row..n * row], &before[(n - 1) * row..], &mut after[..row]);
        }
    }
    let (starts, h) = (SharedMut::new(&mut starts), SharedMut::new(h));
    cut.run(0..cut.chunks, |n, times, b, block| {
        // SAFETY: items own disjoint blocks.
        let (state, h) =
            unsafe { (starts.slice(cut.at(n, b, &block)), Column::new(&h, b, shape.time, shape.channels, &block)) };
        scan_block(View::new(g, shape, b, &block), View::new(u, shape, b, &block), times, state, Some(h));
    });
}

crate::multiversion! {
    /// `end += product * start`
    fn gated_scan_carry<V>(product: &[f32], start: &[f32], end: &mut [f32]) {
        for ((e, &p), &s) in end.iter_mut().zip(product).zip(start) {
            *e = V::fma(p, s, *e);
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
            reverse_block(g, dy, times.clone(), end, None);
            product_block(g, times, product);
        });
        for n in (0..cut.chunks - 1).rev() {
            let (before, after) = carries.split_at_mut((n + 1) * row);
            gated_scan_carry(&products[(n + 1) * row..][..row], &after[..row], &mut before[n * row..]);
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
            reverse_block(View::new(g, shape, b, &block), View::new(dy, shape, b, &block), times, carry, Some(out));
        });
    }
    if let Some(dh0) = dh0 {
        dh0.copy_from_slice(&carries[..row]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::polar::tests::noise;
    use crate::threads::with_threads;

    struct Case {
        shape: ScanShape,
        g: Vec<f32>,
        u: Vec<f32>,
        h0: Vec<f32>,
        dy: Vec<f32>,
    }

    fn cases() -> Vec<Case> {
        let sizes = [(1, 1, 1), (2, 7, 3), (1, 129, 33), (3, 64, 32), (2, 65, 31), (1, 300, 70), (2, 0, 50), (0, 3, 2)];
        sizes.iter().map(|&(batch, time, channels)| case(ScanShape { batch, time, channels })).collect()
    }

    fn case(shape: ScanShape) -> Case {
        let n = shape.len();
        // gates inside (-1, 1), some exactly 0 (a reset)
        let g = noise(n, 1).iter().enumerate().map(|(i, x)| if i % 11 == 5 { 0.0 } else { x.sin() }).collect();
        Case { shape, g, u: noise(n, 2), h0: noise(shape.batch * shape.channels, 3), dy: noise(n, 4) }
    }

    /// Values and gradients in `f64`: `[h, dg, du, dh0]`.
    fn exact(c: &Case, with_h0: bool) -> [Vec<f64>; 4] {
        let ScanShape { batch, time, channels } = c.shape;
        let (n, row) = (c.shape.len(), batch * channels);
        let mut out = [vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; row]];
        for r in 0..row {
            let start = if with_h0 { c.h0[r] as f64 } else { 0.0 };
            let at = |t: usize| (r / channels * time + t) * channels + r % channels;
            let mut state = start;
            for t in 0..time {
                state = c.g[at(t)] as f64 * state + c.u[at(t)] as f64;
                out[0][at(t)] = state;
            }
            let mut carry = 0.0;
            for t in (0..time).rev() {
                let s = c.dy[at(t)] as f64 + carry;
                out[2][at(t)] = s;
                out[1][at(t)] = s * if t > 0 { out[0][at(t - 1)] } else { start };
                carry = c.g[at(t)] as f64 * s;
            }
            out[3][r] = carry;
        }
        out
    }

    fn assert_near(got: &[f32], want: &[f64], time: usize, what: &str) {
        // Each step rounds twice at the size of the state; a gate below 1 never amplifies. A product of two errs twice.
        let size = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        let bound = 8.0 * (time as f64 + 1.0) * f32::EPSILON as f64 * size;
        for (i, (x, y)) in got.iter().zip(want).enumerate() {
            assert!((*x as f64 - y).abs() <= bound, "{what}[{i}]: {x} for {y}");
        }
    }

    fn check(c: &Case, with_h0: bool, got: [&[f32]; 4], what: &str) {
        let want = exact(c, with_h0);
        for ((got, want), name) in got.into_iter().zip(&want).zip(["h", "dg", "du", "dh0"]) {
            assert_near(got, want, c.shape.time, &format!("{what} {name} {:?}", c.shape));
        }
    }

    #[test]
    fn naive_recurrent_and_chunked_agree_in_values_and_gradients() {
        for c in cases() {
            let (n, row) = (c.shape.len(), c.shape.batch * c.shape.channels);
            for with_h0 in [true, false] {
                let h0 = with_h0.then_some(&c.h0[..]);
                let fresh = || (vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; n], vec![f32::NAN; row]);
                let (mut h, mut dg, mut du, mut dh0) = fresh();
                gated_scan_naive(c.shape, &c.g, &c.u, h0, &mut h);
                gated_scan_naive_backward(c.shape, &c.g, &h, h0, &c.dy, &mut dg, &mut du, Some(&mut dh0));
                check(&c, with_h0, [&h, &dg, &du, &dh0], "naive");
                for chunk in [1, 7, 64, 1000] {
                    let (mut h, mut dg, mut du, mut dh0) = fresh();
                    gated_scan_chunked(c.shape, chunk, &c.g, &c.u, h0, &mut h);
                    gated_scan_chunked_backward(c.shape, chunk, &c.g, &h, h0, &c.dy, &mut dg, &mut du, Some(&mut dh0));
                    check(&c, with_h0, [&h, &dg, &du, &dh0], &format!("chunk {chunk}"));
                }
                recurrent(&c, with_h0);
            }
        }
    }

    fn recurrent(c: &Case, with_h0: bool) {
        let ScanShape { batch, time, channels } = c.shape;
        let (n, row) = (c.shape.len(), batch * channels);
        // the steps see [batch, channels] slices of time
        let slice = |x: &[f32], t: usize| -> Vec<f32> {
            (0..row).map(|r| x[(r / channels * time + t) * channels + r % channels]).collect()
        };
        let put = |x: &mut [f32], t: usize, s: &[f32]| {
            (0..row).for_each(|r| x[(r / channels * time + t) * channels + r % channels] = s[r])
        };
        let start = if with_h0 { c.h0.clone() } else { vec![0.0; row] };
        let (mut h, mut dg, mut du) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
        let mut state = start.clone();
        for t in 0..time {
            gated_scan_step(&slice(&c.g, t), &slice(&c.u, t), &mut state);
            put(&mut h, t, &state);
        }
        let mut carry = vec![0.0; row];
        for t in (0..time).rev() {
            let before = if t > 0 { slice(&h, t - 1) } else { start.clone() };
            let (mut dgt, mut dut) = (vec![0.0; row], vec![0.0; row]);
            gated_scan_step_backward(&slice(&c.g, t), &before, &slice(&c.dy, t), &mut carry, &mut dgt, &mut dut);
            put(&mut dg, t, &dgt);
            put(&mut du, t, &dut);
        }
        check(c, with_h0, [&h, &dg, &du, &carry], "recurrent");
    }

    #[test]
    fn exact_gradients_agree_with_central_differences() {
        let c = case(ScanShape { batch: 2, time: 9, channels: 3 });
        let loss = |c: &Case| exact(c, true)[0].iter().zip(&c.dy).map(|(h, &d)| h * d as f64).sum::<f64>();
        let want = exact(&c, true);
        let step = 2f32.powi(-10);
        for tensor in 0..3 {
            for at in 0..want[tensor + 1].len() {
                let moved = |sign: f32| {
                    let mut m =
                        Case { shape: c.shape, g: c.g.clone(), u: c.u.clone(), h0: c.h0.clone(), dy: c.dy.clone() };
                    let x = match tensor {
                        0 => &mut m.g,
                        1 => &mut m.u,
                        _ => &mut m.h0,
                    };
                    x[at] += sign * step;
                    (x[at] as f64, loss(&m))
                };
                let ((above, high), (below, low)) = (moved(1.0), moved(-1.0));
                // the loss is linear in each single element, so the difference is exact up to rounding in f64
                let slope = (high - low) / (above - below);
                assert!((slope - want[tensor + 1][at]).abs() < 1e-9, "{tensor} {at}");
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let c = case(ScanShape { batch: 3, time: 200, channels: 100 });
        let run = |threads| {
            with_threads(threads, || {
                let n = c.shape.len();
                let (mut h, mut dg, mut du, mut dh0) = (vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; 300]);
                gated_scan_chunked(c.shape, 32, &c.g, &c.u, Some(&c.h0), &mut h);
                let h0 = Some(&c.h0[..]);
                gated_scan_chunked_backward(c.shape, 32, &c.g, &h, h0, &c.dy, &mut dg, &mut du, Some(&mut dh0));
                (h, dg, du, dh0)
            })
        };
        assert_eq!(run(1), run(4));
    }
}
