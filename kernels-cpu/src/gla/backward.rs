//! The gradient of gated linear attention, in chunks.

use super::{Cut, GlaShape, Item, Rows, Walk, decay_pairs, decays, edge_states, intra, put, weigh, weigh_in_place};
use crate::attention::{take, with_scratch};
use crate::gemm::gemm;
use crate::math::exp;
use crate::simd::dot;
use crate::threads::{SharedMut, par_rows};

/// The gradient of a log gate below this is given as 0: it has a factor e^-30 < 1e-13, far below the rounding of the sum that it would
/// be read from, which other, open gates determine.
const SHUT: f32 = -30.0;

/// Gradients `dq`, `dk`, `dv`, `da` and that of the first state, all overwritten, for the gradients `d_o` of the results and `d_last`
/// of the last state (zero where None). States are computed again, not kept from the forward pass.
///
/// # Panics
/// If a slice does not have its shape's length or `chunk` is 0.
pub fn gla_backward(
    s: &GlaShape,
    chunk: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    a: &[f32],
    first: Option<&[f32]>,
    d_o: &[f32],
    d_last: Option<&[f32]>,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    da: &mut [f32],
    d_first: Option<&mut [f32]>,
) {
    let state = s.state_len();
    s.check(&[("q", q.len(), s.q_len()), ("k", k.len(), s.k_len()), ("v", v.len(), s.v_len())]);
    s.check(&[("a", a.len(), s.gate_len()), ("the gradient of o", d_o.len(), s.o_len())]);
    s.check(&[("dq", dq.len(), s.q_len()), ("dk", dk.len(), s.k_len()), ("dv", dv.len(), s.v_len())]);
    s.check(&[("da", da.len(), s.gate_len()), ("the first state", first.map_or(state, <[f32]>::len), state)]);
    s.check(&[("the last state's gradient", d_last.map_or(state, <[f32]>::len), state)]);
    s.check(&[("the first state's gradient", d_first.as_ref().map_or(state, |x| x.len()), state)]);
    let cut = Cut::new(*s, chunk);
    let states = edge_states(&cut, Walk::Forward, (k, |b, h| s.k(b, h)), (v, |b, h| s.v(b, h)), a, first);
    let wanted = edge_states(&cut, Walk::Backward, (q, |b, h| s.q(b, h)), (d_o, |b, h| s.o(b, h)), a, d_last);

    // Heads that share keys or values leave a gradient each.
    let each =
        |shared: usize, width: usize| vec![0.0; if shared == s.heads { 0 } else { s.batch * s.time * s.heads * width }];
    let (mut dk_heads, mut dv_heads) = (each(s.key_heads, s.key_dim), each(s.value_heads, s.value_dim));
    {
        let out = Gradients {
            dq: SharedMut::new(dq),
            dk: SharedMut::new(if dk_heads.is_empty() { &mut *dk } else { &mut dk_heads }),
            dv: SharedMut::new(if dv_heads.is_empty() { &mut *dv } else { &mut dv_heads }),
            da: SharedMut::new(da),
        };
        let work = Work { s, cut: &cut, q, k, v, a, d_o, states: &states, wanted: &wanted };
        cut.run(|item| work.item(item, &out));
    }
    sum_heads(s.heads, s.key_heads, s.key_dim, &dk_heads, dk);
    sum_heads(s.heads, s.value_heads, s.value_dim, &dv_heads, dv);
    if let Some(d_first) = d_first {
        for (row, d_first) in d_first.chunks_exact_mut(s.state().max(1)).enumerate() {
            d_first.copy_from_slice(&wanted[cut.edge(row, 0)]);
        }
    }
}

/// Adds up the `heads / shared` neighbours that share a head, in their order; nothing when there are none.
fn sum_heads(heads: usize, shared: usize, width: usize, each: &[f32], total: &mut [f32]) {
    if each.is_empty() {
        return;
    }
    let group = heads / shared * width;
    let total = SharedMut::new(total);
    par_rows(each.len() / group, group, |rows| {
        for row in rows {
            // SAFETY: rows are disjoint.
            let total = unsafe { total.slice(row * width..(row + 1) * width) };
            total.fill(0.0);
            for part in each[row * group..(row + 1) * group].chunks_exact(width) {
                total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
            }
        }
    });
}

struct Gradients<'a> {
    dq: SharedMut<'a, f32>,
    dk: SharedMut<'a, f32>,
    dv: SharedMut<'a, f32>,
    da: SharedMut<'a, f32>,
}

struct Work<'a> {
    s: &'a GlaShape,
    cut: &'a Cut,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    a: &'a [f32],
    d_o: &'a [f32],
    /// States at the edges of chunks, and their gradients.
    states: &'a [f32],
    wanted: &'a [f32],
}

impl Work<'_> {
    fn item(&self, item: Item, out: &Gradients<'_>) {
        let &Work { s, cut, q, k, v, a, d_o, states, wanted } = self;
        let (d, e, gates, n) = (s.key_dim, s.value_dim, s.gates(), item.len);
        let (rows_q, rows_k, rows_v) = (s.q(item.b, item.h), s.k(item.b, item.h), s.v(item.b, item.h));
        let (rows_a, rows_o) = (s.a(item.b, item.h), s.o(item.b, item.h));
        let (q_n, k_n, v_n) = (rows_q.from(q, item.start), rows_k.from(k, item.start), rows_v.from(v, item.start));
        let d_o_n = rows_o.from(d_o, item.start);
        let (stride_q, stride_k, stride_v, stride_o) = (rows_q.stride, rows_k.stride, rows_v.stride, rows_o.stride);
        let row = cut.row(&item);
        let (before, after) = (&states[cut.edge(row, item.n)], &states[cut.edge(row, item.n + 1)]);
        let wanted = &wanted[cut.edge(row, item.n + 1)];
        with_scratch(2 * n * n + 3 * n * d + n * e + 2 * n * gates + gates + n.max(2 * d), |mut scratch| {
            let [pairs, d_pairs] = std::array::from_fn(|_| take(&mut scratch, n * n));
            let [dq, dk, weighed] = std::array::from_fn(|_| take(&mut scratch, n * d));
            let dv = take(&mut scratch, n * e);
            let [up_to, after_each] = std::array::from_fn(|_| take(&mut scratch, n * gates));
            let total = take(&mut scratch, gates);
            decays(rows_a, a, item, Walk::Backward, up_to, total);
            decays(rows_a, a, item, Walk::Forward, after_each, total);

            // What crosses the chunk's edges.
            gemm(false, true, n, d, e, d_o_n, stride_o, before, e, false, dq, d);
            weigh_in_place(up_to, gates, d, dq);
            gemm(false, true, n, d, e, v_n, stride_v, wanted, e, false, dk, d);
            weigh_in_place(after_each, gates, d, dk);
            weigh(rows_k, k, item, after_each, weighed);
            gemm(false, false, n, e, d, weighed, d, wanted, e, false, dv, e);

            // What stays inside.
            gemm(false, true, n, n, e, d_o_n, stride_o, v_n, stride_v, false, d_pairs, n);
            if s.channel_gates {
                intra(s, q, k, a, item, weighed, pairs);
                channel_pairs_backward(s, q, k, a, item, d_pairs, weighed, scratch, dq, dk);
            } else {
                gemm(false, true, n, n, d, q_n, stride_q, k_n, stride_k, false, pairs, n);
                decay_pairs(rows_a, a, item, scratch, pairs, Some(&mut *d_pairs));
                gemm(false, false, n, d, n, d_pairs, n, k_n, stride_k, true, dq, d);
                gemm(true, false, n, d, n, d_pairs, n, q_n, stride_q, true, dk, d);
            }
            gemm(true, false, n, e, n, pairs, n, d_o_n, stride_o, true, dv, e);

            gate_gradient(s, q, k, a, item, dq, dk, after, wanted, &mut scratch[..gates], &out.da);
            put(rows_q, item, dq, &out.dq);
            put(Rows::new(s, item.b, item.h, s.heads, d), item, dk, &out.dk);
            put(rows_o, item, dv, &out.dv);
        });
    }
}

crate::multiversion! {
    /// `dq_i += sum_j dp_ij k_j e^(gates between)` and `dk_j += sum_i dp_ij q_i e^(gates between)` over j <= i. `sums` has room for
    /// `[len, key_dim]`, `powers` for a row.
    fn channel_pairs_backward<V>(
        s: &GlaShape,
        q: &[f32],
        k: &[f32],
        a: &[f32],
        item: Item,
        d_pairs: &[f32],
        sums: &mut [f32],
        powers: &mut [f32],
        dq: &mut [f32],
        dk: &mut [f32],
    ) {
        let (n, d) = (item.len, s.key_dim);
        let (rows_q, rows_k, rows_a) = (s.q(item.b, item.h), s.k(item.b, item.h), s.a(item.b, item.h));
        let powers = &mut powers[..d];
        for i in 0..n {
            let (q, gate) = (&q[rows_q.at(item.start + i)], &a[rows_a.at(item.start + i)]);
            let dq = &mut dq[i * d..][..d];
            for j in 0..=i {
                let sum = &mut sums[j * d..][..d];
                if j == i {
                    sum.fill(0.0);
                } else {
                    sum.iter_mut().zip(gate).for_each(|(s, g)| *s += g);
                }
                let dp = d_pairs[i * n + j];
                powers.iter_mut().zip(&*sum).for_each(|(x, s)| *x = dp * exp::<V>(*s));
                let (k, dk) = (&k[rows_k.at(item.start + j)], &mut dk[j * d..][..d]);
                dq.iter_mut().zip(k).zip(&*powers).for_each(|((x, &k), &w)| *x = V::fma(k, w, *x));
                dk.iter_mut().zip(q).zip(&*powers).for_each(|((x, &q), &w)| *x = V::fma(q, w, *x));
            }
        }
    }

    /// `da_i = <state, its gradient> at the chunk's end + sum over j >= i in the chunk of (q_j dq_j - k_j dk_j)`, by key channel or
    /// added up over them; 0 where the gate is shut. `sums` has room for the gates of a step.
    fn gate_gradient<V>(
        s: &GlaShape,
        q: &[f32],
        k: &[f32],
        a: &[f32],
        item: Item,
        dq: &[f32],
        dk: &[f32],
        after: &[f32],
        wanted: &[f32],
        sums: &mut [f32],
        da: &SharedMut<'_, f32>,
    ) {
        let (d, e) = (s.key_dim, s.value_dim);
        let (rows_q, rows_k, rows_a) = (s.q(item.b, item.h), s.k(item.b, item.h), s.a(item.b, item.h));
        let later = |c: usize| dot::<V>(&after[c * e..][..e], &wanted[c * e..][..e]);
        match s.channel_gates {
            true => sums.iter_mut().enumerate().for_each(|(c, sum)| *sum = later(c)),
            false => sums[0] = (0..d).map(later).sum::<f32>(),
        }
        for i in (0..item.len).rev() {
            let (q, k) = (&q[rows_q.at(item.start + i)], &k[rows_k.at(item.start + i)]);
            let (dq, dk) = (&dq[i * d..][..d], &dk[i * d..][..d]);
            if s.channel_gates {
                for c in 0..d {
                    sums[c] += q[c] * dq[c] - k[c] * dk[c];
                }
            } else {
                sums[0] += dot::<V>(q, dq) - dot::<V>(k, dk);
            }
            let rows = rows_a.at(item.start + i);
            // SAFETY: items own disjoint rows.
            let row = unsafe { da.slice(rows.clone()) };
            for ((da, &a), &sum) in row.iter_mut().zip(&a[rows]).zip(&*sums) {
                *da = if a < SHUT { 0.0 } else { sum };
            }
        }
    }
}
