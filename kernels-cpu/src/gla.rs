//! Gated linear attention (Yang et al. 2024; with one gate a head also Dao and Gu 2024): a matrix state for each head,
//! `S_t = Diag(e^a_t) S_{t-1} + k_t' v_t`, `o_t = q_t S_t`, with log gates `a <= 0` of one number a head or one a key channel.
//!
//! Two forms: recurrent (one step after another, constant state) and chunked (products of matrices within a chunk, states passed
//! between chunks). No difference of cumulative sums of gates is ever taken: after one closed gate such a difference has lost the
//! digits of the open ones. Prefixes, suffixes and the sums between two steps are each made by additions of numbers of one sign.
//! The gradient of the gates adds within a chunk only; what later chunks ask comes as one inner product of states.

mod backward;
#[cfg(test)]
mod tests;

pub use backward::gla_backward;

use crate::attention::with_scratch;
use crate::gemm::gemm;
use crate::math::{exp, expm1};
use crate::simd::dot;
use crate::threads::{SharedMut, par_blocks};
use std::ops::Range;

/// Sizes: q `[batch, time, heads, key_dim]`, k `[batch, time, key_heads, key_dim]`, v `[batch, time, value_heads, value_dim]`,
/// a `[batch, time, heads, gates]`, states `[batch, heads, key_dim, value_dim]`, o `[batch, time, heads, value_dim]`. Query head h reads
/// key head `h / (heads / key_heads)`, and likewise its value head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlaShape {
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
    /// One gate a key channel; else one a head.
    pub channel_gates: bool,
}

impl GlaShape {
    /// Gates of a head at one step.
    pub fn gates(&self) -> usize {
        if self.channel_gates { self.key_dim } else { 1 }
    }
    pub fn state(&self) -> usize {
        self.key_dim * self.value_dim
    }
    pub fn q_len(&self) -> usize {
        self.batch * self.time * self.heads * self.key_dim
    }
    pub fn k_len(&self) -> usize {
        self.batch * self.time * self.key_heads * self.key_dim
    }
    pub fn v_len(&self) -> usize {
        self.batch * self.time * self.value_heads * self.value_dim
    }
    pub fn gate_len(&self) -> usize {
        self.batch * self.time * self.heads * self.gates()
    }
    pub fn state_len(&self) -> usize {
        self.batch * self.heads * self.state()
    }
    pub fn o_len(&self) -> usize {
        self.batch * self.time * self.heads * self.value_dim
    }

    fn q(&self, b: usize, h: usize) -> Rows {
        Rows::new(self, b, h, self.heads, self.key_dim)
    }
    fn k(&self, b: usize, h: usize) -> Rows {
        Rows::new(self, b, h * self.key_heads / self.heads, self.key_heads, self.key_dim)
    }
    fn v(&self, b: usize, h: usize) -> Rows {
        Rows::new(self, b, h * self.value_heads / self.heads, self.value_heads, self.value_dim)
    }
    fn a(&self, b: usize, h: usize) -> Rows {
        Rows::new(self, b, h, self.heads, self.gates())
    }
    fn o(&self, b: usize, h: usize) -> Rows {
        Rows::new(self, b, h, self.heads, self.value_dim)
    }

    fn check(&self, tensors: &[(&str, usize, usize)]) {
        let GlaShape { heads, key_heads, value_heads, .. } = *self;
        let divides = |n: usize| n > 0 && heads.is_multiple_of(n);
        assert!(
            heads == 0 || divides(key_heads) && divides(value_heads),
            "gla: heads of {self:?} must be shared evenly"
        );
        for (name, have, want) in tensors {
            assert_eq!(have, want, "gla: length of {name} in {self:?}");
        }
    }
}

/// One head's rows of a tensor `[batch, time, heads, width]`.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    stride: usize,
    width: usize,
}

impl Rows {
    fn new(s: &GlaShape, b: usize, h: usize, heads: usize, width: usize) -> Self {
        Rows { first: (b * s.time * heads + h) * width, stride: heads * width, width }
    }
    #[inline(always)]
    fn at(&self, t: usize) -> Range<usize> {
        self.first + t * self.stride..self.first + t * self.stride + self.width
    }
    /// From row `t` on, for a product with row stride `stride`.
    fn from<'a>(&self, x: &'a [f32], t: usize) -> &'a [f32] {
        &x[self.first + t * self.stride..]
    }
}

/// The cut of time into chunks, and where the states at their edges lie: `[batch, heads, chunks + 1, key_dim, value_dim]`.
#[derive(Clone, Copy)]
struct Cut {
    s: GlaShape,
    chunk: usize,
    chunks: usize,
}

/// One chunk of one head.
#[derive(Clone, Copy)]
struct Item {
    b: usize,
    h: usize,
    n: usize,
    start: usize,
    len: usize,
}

impl Cut {
    fn new(s: GlaShape, chunk: usize) -> Self {
        assert!(chunk > 0, "gla: chunks of no steps");
        Cut { s, chunk, chunks: s.time.div_ceil(chunk) }
    }
    fn run(&self, f: impl Fn(Item) + Sync + Send) {
        let heads = self.s.batch * self.s.heads;
        let cost = self.chunk * (self.chunk + self.s.value_dim) * self.s.key_dim / 4;
        par_blocks(heads * self.chunks, 1, cost.max(1), |item, _| {
            let (row, n) = (item / self.chunks, item % self.chunks);
            let start = n * self.chunk;
            let len = self.chunk.min(self.s.time - start);
            f(Item { b: row / self.s.heads, h: row % self.s.heads, n, start, len });
        });
    }
    fn states_len(&self) -> usize {
        self.s.batch * self.s.heads * (self.chunks + 1) * self.s.state()
    }
    /// The state at edge `edge` (0: before the first chunk) of head `row`.
    fn edge(&self, row: usize, edge: usize) -> Range<usize> {
        let first = (row * (self.chunks + 1) + edge) * self.s.state();
        first..first + self.s.state()
    }
    fn row(&self, item: &Item) -> usize {
        item.b * self.s.heads + item.h
    }
    /// The sum of the log gates of a chunk, `[batch, heads, chunks, gates]`.
    fn total(&self, row: usize, n: usize) -> Range<usize> {
        let first = (row * self.chunks + n) * self.s.gates();
        first..first + self.s.gates()
    }
}

/// Which way states are carried, and so how steps are weighted.
#[derive(Clone, Copy, PartialEq)]
enum Walk {
    /// By what remains of each step at the end of its chunk.
    Forward,
    /// By what remains of the chunk's start at each step.
    Backward,
}

crate::multiversion! {
    /// `weights [len, gates]`: e to the sum of the log gates after each step (`Forward`), or up to and with it; their sum in `total`.
    fn decays<V>(rows: Rows, a: &[f32], item: Item, walk: Walk, weights: &mut [f32], total: &mut [f32]) {
        total.fill(0.0);
        for i in 0..item.len {
            let t = if walk == Walk::Forward { item.len - 1 - i } else { i };
            let gates = &a[rows.at(item.start + t)];
            let out = &mut weights[t * rows.width..][..rows.width];
            for ((w, sum), &a) in out.iter_mut().zip(total.iter_mut()).zip(gates) {
                let with = *sum + a;
                *w = exp::<V>(if walk == Walk::Forward { *sum } else { with });
                *sum = with;
            }
        }
    }

    /// `y [len, width] = x`'s rows, each times its weight or weights.
    fn weigh<V>(rows: Rows, x: &[f32], item: Item, weights: &[f32], y: &mut [f32]) {
        let gates = weights.len() / item.len;
        for (i, y) in y.chunks_exact_mut(rows.width).take(item.len).enumerate() {
            let (x, w) = (&x[rows.at(item.start + i)], &weights[i * gates..][..gates]);
            if gates == 1 {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = w[0] * x);
            } else {
                y.iter_mut().zip(x).zip(w).for_each(|((y, x), w)| *y = w * x);
            }
        }
    }

    /// `y [len, width]` times the weights of each row.
    fn weigh_in_place<V>(weights: &[f32], gates: usize, width: usize, y: &mut [f32]) {
        for (y, w) in y.chunks_exact_mut(width).zip(weights.chunks_exact(gates)) {
            if gates == 1 {
                y.iter_mut().for_each(|y| *y *= w[0]);
            } else {
                y.iter_mut().zip(w).for_each(|(y, w)| *y *= w);
            }
        }
    }

    /// `to += from + expm1(total) from`: a state taken across a chunk.
    fn carry<V>(total: &[f32], from: &[f32], to: &mut [f32]) {
        let width = from.len() / total.len();
        for ((to, from), &total) in to.chunks_exact_mut(width).zip(from.chunks_exact(width)).zip(total) {
            let grown = expm1::<V>(total);
            to.iter_mut().zip(from).for_each(|(to, &from)| *to += V::fma(grown, from, from));
        }
    }

    /// Multiplies `p [len, len]` below and on the diagonal by e to the sum of the gates between the two steps, running down each
    /// column; 0 above. `sums` has room for `len`. With `second`, that too.
    fn decay_pairs<V>(rows: Rows, a: &[f32], item: Item, sums: &mut [f32], p: &mut [f32], second: Option<&mut [f32]>) {
        let n = item.len;
        let mut second = second;
        for i in 0..n {
            let gate = a[rows.at(item.start + i).start];
            sums[..i].iter_mut().for_each(|s| *s += gate);
            sums[i] = 0.0;
            let row = &mut p[i * n..][..n];
            row[i + 1..].fill(0.0);
            match &mut second {
                None => row.iter_mut().zip(&sums[..=i]).for_each(|(p, &s)| *p *= exp::<V>(s)),
                Some(second) => {
                    let other = &mut second[i * n..][..n];
                    other[i + 1..].fill(0.0);
                    for ((p, o), &s) in row.iter_mut().zip(other).zip(&sums[..=i]) {
                        let e = exp::<V>(s);
                        *p *= e;
                        *o *= e;
                    }
                }
            }
        }
    }

    /// `p_ij = sum over c of q_ic k_jc e^(sum of the gates of c between j and i)`, j <= i; 0 above. `sums` has room for
    /// `[len, key_dim]`, `terms` for two rows.
    fn channel_pairs<V>(s: &GlaShape, q: &[f32], k: &[f32], a: &[f32], item: Item, sums: &mut [f32], terms: &mut [f32], p: &mut [f32]) {
        let (n, d) = (item.len, s.key_dim);
        let (rows_q, rows_k, rows_a) = (s.q(item.b, item.h), s.k(item.b, item.h), s.a(item.b, item.h));
        let (products, powers) = terms.split_at_mut(d);
        for i in 0..n {
            let (q, gate) = (&q[rows_q.at(item.start + i)], &a[rows_a.at(item.start + i)]);
            for j in 0..=i {
                let sum = &mut sums[j * d..][..d];
                if j == i {
                    sum.fill(0.0);
                } else {
                    sum.iter_mut().zip(gate).for_each(|(s, g)| *s += g);
                }
                products.iter_mut().zip(q).zip(&k[rows_k.at(item.start + j)]).for_each(|((x, q), k)| *x = q * k);
                powers.iter_mut().zip(sum).for_each(|(x, s)| *x = exp::<V>(*s));
                p[i * n + j] = dot::<V>(products, powers);
            }
            p[i * n + i + 1..(i + 1) * n].fill(0.0);
        }
    }

    /// All steps of one head, one after another; `state` holds the first and receives the last.
    fn walk<V>(s: &GlaShape, b: usize, h: usize, q: &[f32], k: &[f32], v: &[f32], a: &[f32], state: &mut [f32], o: &SharedMut<'_, f32>) {
        let (rows_q, rows_k, rows_v) = (s.q(b, h), s.k(b, h), s.v(b, h));
        let (rows_a, rows_o) = (s.a(b, h), s.o(b, h));
        for t in 0..s.time {
            let (q, k, v, a) = (&q[rows_q.at(t)], &k[rows_k.at(t)], &v[rows_v.at(t)], &a[rows_a.at(t)]);
            // SAFETY: heads own disjoint rows.
            let o = unsafe { o.slice(rows_o.at(t)) };
            o.fill(0.0);
            let mut grown = expm1::<V>(a[0]);
            for (c, row) in state.chunks_exact_mut(s.value_dim).enumerate() {
                if s.channel_gates {
                    grown = expm1::<V>(a[c]);
                }
                for ((x, &v), o) in row.iter_mut().zip(v).zip(o.iter_mut()) {
                    *x += V::fma(grown, *x, k[c] * v);
                    *o = V::fma(q[c], *x, *o);
                }
            }
        }
    }
}

/// `o` and the last state, one step after another from `first` (zero where None).
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn gla_recurrent(
    s: &GlaShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    a: &[f32],
    first: Option<&[f32]>,
    o: &mut [f32],
    last: &mut [f32],
) {
    check_forward(s, q, k, v, a, first, o, last);
    match first {
        Some(first) => last.copy_from_slice(first),
        None => last.fill(0.0),
    }
    let (o, last) = (SharedMut::new(o), SharedMut::new(last));
    par_blocks(s.batch * s.heads, 1, (s.time * s.state()).max(1), |row, _| {
        // SAFETY: heads own disjoint states.
        let state = unsafe { last.slice(row * s.state()..(row + 1) * s.state()) };
        walk(s, row / s.heads, row % s.heads, q, k, v, a, state, &o);
    });
}

fn check_forward(
    s: &GlaShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    a: &[f32],
    first: Option<&[f32]>,
    o: &[f32],
    last: &[f32],
) {
    let first = first.map_or(s.state_len(), <[f32]>::len);
    s.check(&[("q", q.len(), s.q_len()), ("k", k.len(), s.k_len()), ("v", v.len(), s.v_len())]);
    s.check(&[("a", a.len(), s.gate_len()), ("o", o.len(), s.o_len())]);
    s.check(&[("the first state", first, s.state_len()), ("the last state", last.len(), s.state_len())]);
}

/// The states at all edges of chunks, from `first` at the near end: `sum over steps of weight x_t' y_t`, carried across chunks.
fn edge_states(
    cut: &Cut,
    walk: Walk,
    x: (&[f32], impl Fn(usize, usize) -> Rows + Sync + Send),
    y: (&[f32], impl Fn(usize, usize) -> Rows + Sync + Send),
    a: &[f32],
    first: Option<&[f32]>,
) -> Vec<f32> {
    let s = &cut.s;
    let (d, e, gates) = (s.key_dim, s.value_dim, s.gates());
    let mut states = vec![0.0; cut.states_len()];
    let mut totals = vec![0.0; s.batch * s.heads * cut.chunks * gates];
    {
        let (states, totals) = (SharedMut::new(&mut states), SharedMut::new(&mut totals));
        cut.run(|item| {
            let (rows_x, rows_y) = (x.1(item.b, item.h), y.1(item.b, item.h));
            let (row, edge) = (cut.row(&item), item.n + usize::from(walk == Walk::Forward));
            // SAFETY: items own disjoint edges and totals.
            let (state, total) = unsafe { (states.slice(cut.edge(row, edge)), totals.slice(cut.total(row, item.n))) };
            with_scratch(item.len * (gates + d), |scratch| {
                let (weights, weighed) = scratch.split_at_mut(item.len * gates);
                decays(s.a(item.b, item.h), a, item, walk, weights, total);
                weigh(rows_x, x.0, item, weights, weighed);
                gemm(
                    true,
                    false,
                    d,
                    e,
                    item.len,
                    weighed,
                    d,
                    rows_y.from(y.0, item.start),
                    rows_y.stride,
                    false,
                    state,
                    e,
                );
            });
        });
    }
    let shared = SharedMut::new(&mut states);
    par_blocks(s.batch * s.heads, 1, (cut.chunks * s.state()).max(1), |row, _| {
        // SAFETY: each edge of each head is used by one thread, and two different ones at once.
        let state = |edge: usize| unsafe { shared.slice(cut.edge(row, edge)) };
        let near = state(if walk == Walk::Forward { 0 } else { cut.chunks });
        if let Some(first) = first {
            near.copy_from_slice(&first[row * s.state()..(row + 1) * s.state()]);
        }
        for i in 0..cut.chunks {
            match walk {
                Walk::Forward => carry(&totals[cut.total(row, i)], state(i), state(i + 1)),
                Walk::Backward => {
                    let n = cut.chunks - 1 - i;
                    carry(&totals[cut.total(row, n)], state(n + 1), state(n));
                }
            }
        }
    });
    states
}

/// As [`gla_recurrent`], by chunks of `chunk` steps. The bits depend on `chunk` and not on the number of threads; a sequence cut after
/// whole chunks, the last state given on, gives the bits of the whole.
///
/// # Panics
/// If a slice does not have its shape's length or `chunk` is 0.
pub fn gla_chunked(
    s: &GlaShape,
    chunk: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    a: &[f32],
    first: Option<&[f32]>,
    o: &mut [f32],
    last: &mut [f32],
) {
    check_forward(s, q, k, v, a, first, o, last);
    let cut = Cut::new(*s, chunk);
    let (d, e, gates) = (s.key_dim, s.value_dim, s.gates());
    let states = edge_states(&cut, Walk::Forward, (k, |b, h| s.k(b, h)), (v, |b, h| s.v(b, h)), a, first);
    let out = SharedMut::new(o);
    cut.run(|item| {
        let (rows_v, n) = (s.v(item.b, item.h), item.len);
        with_scratch(n * (n + d + gates + e) + gates, |scratch| {
            let (pairs, rest) = scratch.split_at_mut(n * n);
            let (weighed, rest) = rest.split_at_mut(n * d);
            let (o, rest) = rest.split_at_mut(n * e);
            let (weights, total) = rest.split_at_mut(n * gates);
            intra(s, q, k, a, item, weighed, pairs);
            gemm(false, false, n, e, n, pairs, n, rows_v.from(v, item.start), rows_v.stride, false, o, e);
            decays(s.a(item.b, item.h), a, item, Walk::Backward, weights, total);
            weigh(s.q(item.b, item.h), q, item, weights, weighed);
            let before = &states[cut.edge(cut.row(&item), item.n)];
            gemm(false, false, n, e, d, weighed, d, before, e, true, o, e);
            put(s.o(item.b, item.h), item, o, &out);
        });
    });
    for (row, last) in last.chunks_exact_mut(s.state().max(1)).enumerate() {
        last.copy_from_slice(&states[cut.edge(row, cut.chunks)]);
    }
}

/// Scores of a chunk times their decays, in `pairs [len, len]`; `scratch` has room for `[len, key_dim]`.
fn intra(s: &GlaShape, q: &[f32], k: &[f32], a: &[f32], item: Item, scratch: &mut [f32], pairs: &mut [f32]) {
    let (rows_q, rows_k, n) = (s.q(item.b, item.h), s.k(item.b, item.h), item.len);
    if s.channel_gates {
        let mut terms = vec![0.0; 2 * s.key_dim];
        return channel_pairs(s, q, k, a, item, scratch, &mut terms, pairs);
    }
    let (left, right) = (rows_q.from(q, item.start), rows_k.from(k, item.start));
    gemm(false, true, n, n, s.key_dim, left, rows_q.stride, right, rows_k.stride, false, pairs, n);
    let mut sums = vec![0.0; n];
    decay_pairs(s.a(item.b, item.h), a, item, &mut sums, pairs, None);
}

/// Writes `x [len, width]` to the rows of a chunk.
fn put(rows: Rows, item: Item, x: &[f32], to: &SharedMut<'_, f32>) {
    for (i, x) in x.chunks_exact(rows.width).take(item.len).enumerate() {
        // SAFETY: items own disjoint rows.
        unsafe { to.slice(rows.at(item.start + i)) }.copy_from_slice(x);
    }
}
