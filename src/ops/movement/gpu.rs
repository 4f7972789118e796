//! Strided copies on a GPU: a box of elements from one tensor to another, four words at a time where the layout allows it, and through
//! workgroup memory where the two sides are contiguous along different axes.

use crate::device::Unsupported;
use crate::device::gpu::{Buf, Lowering, Params};
use crate::ops::rows::window;
use minijinja::context;

/// One axis of a box: its size, and the distance between neighbours in source and destination.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    pub size: usize,
    pub src: usize,
    pub dst: usize,
}

/// Element (i0, i1, ..) goes from `src[from + sum i src]` to `dst[to + sum i dst]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub src: Buf,
    pub dst: Buf,
    pub from: usize,
    pub to: usize,
    pub axes: Vec<Axis>,
}

/// Axes that a copy shader takes.
const RANKS: [usize; 3] = [2, 4, 8];

impl Copy {
    fn elements(&self) -> usize {
        self.axes.iter().map(|a| a.size).product()
    }

    /// Elements from the first to the last that is touched, in source and destination.
    fn extents(&self) -> (usize, usize) {
        let reach = |stride: fn(&Axis) -> usize| self.axes.iter().map(|a| (a.size - 1) * stride(a)).sum::<usize>() + 1;
        (reach(|a| a.src), reach(|a| a.dst))
    }

    /// Drops axes of one element, orders the rest by destination, and merges neighbours that are one axis on both sides.
    fn simplify(&mut self) {
        let mut axes: Vec<Axis> = self.axes.drain(..).filter(|a| a.size != 1).collect();
        axes.sort_by_key(|a| std::cmp::Reverse(a.dst));
        for a in axes {
            match self.axes.last_mut() {
                Some(outer) if outer.src == a.src * a.size && outer.dst == a.dst * a.size => {
                    *outer = Axis { size: outer.size * a.size, ..a };
                }
                _ => self.axes.push(a),
            }
        }
    }

    pub fn lower(mut self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        if self.elements() == 0 {
            return Ok(());
        }
        self.simplify();
        self.split(lowering)
    }

    /// Halves the axis that reaches farthest until both sides fit a binding and the time is short.
    fn split(self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let limits = &lowering.caps.limits;
        let most = (limits.max_binding.saturating_sub(limits.offset_alignment) / 4) as usize;
        let (src, dst) = self.extents();
        let seconds = 8.0 * self.elements() as f64 / lowering.caps.bytes_per_second;
        if src.max(dst) <= most && seconds <= lowering.caps.seconds_per_dispatch {
            return self.dispatch(lowering);
        }
        let by_source = src > most;
        let reach = |a: &Axis| (a.size - 1) * if by_source { a.src } else { a.dst };
        let Some(k) = (0..self.axes.len()).max_by_key(|k| reach(&self.axes[*k])) else {
            return Err(Unsupported(format!("one element does not fit a binding of {} bytes", limits.max_binding)));
        };
        let axis = self.axes[k];
        // Halves of whole vectors keep the rest copied by vectors.
        let half = if axis.size >= 8 { (axis.size / 2).next_multiple_of(4) } else { axis.size / 2 };
        let (mut first, mut second) = (self.clone(), self);
        first.axes[k].size = half;
        second.axes[k].size = axis.size - half;
        second.from += half * axis.src;
        second.to += half * axis.dst;
        first.split(lowering)?;
        second.split(lowering)
    }

    fn dispatch(self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (src, dst) = self.extents();
        let (from, from_start) = window(lowering, self.src, self.from..self.from + src, false);
        let (to, to_start) = window(lowering, self.dst, self.to..self.to + dst, true);
        let offsets = (self.from - from_start, self.to - to_start);
        if !lowering.caps.software
            && let Some((params, tiles)) = self.planes(offsets)
        {
            let groups = lowering.line(tiles);
            let template = crate::shader!("transpose.wgsl");
            return lowering.dispatch("transpose", template, context! {}, &[from, to], params, groups);
        }
        let mut axes = self.axes.clone();
        let whole = |n: usize| n.is_multiple_of(4);
        let width = match axes.split_last() {
            Some((inner, outer))
                if (inner.src, inner.dst) == (1, 1)
                    && whole(inner.size)
                    && whole(offsets.0)
                    && whole(offsets.1)
                    && outer.iter().all(|a| whole(a.src) && whole(a.dst)) =>
            {
                4
            }
            _ => 1,
        };
        if width == 4 {
            // Distances count vectors from here on.
            let inner = axes.len() - 1;
            axes[inner].size /= 4;
            axes[..inner].iter_mut().for_each(|a| (a.src, a.dst) = (a.src / 4, a.dst / 4));
        }
        let Some(rank) = RANKS.into_iter().find(|r| *r >= axes.len()) else {
            return Err(Unsupported(format!("a copy of {} axes; {} at most", axes.len(), RANKS[2])));
        };
        let n: usize = axes.iter().map(|a| a.size).product();
        let mut params = Params::new().u32(n).u32(offsets.0 / width).u32(offsets.1 / width);
        let missing = vec![Axis { size: 1, src: 0, dst: 0 }; rank - axes.len()];
        for a in missing.iter().chain(&axes) {
            params = params.u32(a.size).u32(a.src).u32(a.dst);
        }
        let element = if width == 4 { "vec4<u32>" } else { "u32" };
        let label = format!("copy/{rank}{}", if width == 4 { "/vec4" } else { "" });
        let groups = lowering.line(n.div_ceil(64));
        let variables = context! { T => element, rank };
        lowering.dispatch(label, crate::shader!("copy.wgsl"), variables, &[from, to], params, groups)
    }

    /// Parameters of transpose.wgsl and its tiles, when the box is planes whose sides are contiguous along different axes.
    fn planes(&self, (from, to): (usize, usize)) -> Option<(Params, usize)> {
        let r = self.axes.iter().position(|a| a.src == 1)?;
        let c = self.axes.iter().position(|a| a.dst == 1)?;
        let (rows, columns) = (self.axes[r], self.axes[c]);
        if r == c || rows.size < 8 || columns.size < 8 || self.axes.len() > 4 {
            return None;
        }
        let mut outer: Vec<Axis> = (0..self.axes.len()).filter(|k| *k != r && *k != c).map(|k| self.axes[k]).collect();
        outer.resize(2, Axis { size: 1, src: 0, dst: 0 });
        let (row_tiles, column_tiles) = (rows.size.div_ceil(32), columns.size.div_ceil(32));
        let tiles = row_tiles * column_tiles * outer[0].size * outer[1].size;
        let params = Params::new().u32(from).u32(to).u32(columns.size).u32(columns.src).u32(rows.size).u32(rows.dst);
        let params = params.u32(tiles).u32(column_tiles).u32(row_tiles).u32(outer[1].size);
        let params = params.u32(outer[1].src).u32(outer[1].dst).u32(outer[0].src).u32(outer[0].dst);
        Some((params, tiles))
    }
}

/// Writes `word` to all of `dst`, `n` elements.
pub fn fill(lowering: &mut Lowering, dst: Buf, n: usize, word: u32) -> Result<(), Unsupported> {
    for range in lowering.chunks(n, &[4], 1.0)? {
        let bind = lowering.write_part(dst, range.start as u64 * 4..range.end as u64 * 4);
        let groups = lowering.line(range.len().div_ceil(64));
        let params = Params::new().u32(range.len()).u32(word as usize);
        lowering.dispatch("fill", crate::shader!("fill.wgsl"), context! {}, &[bind], params, groups)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(axes: &[(usize, usize, usize)]) -> Copy {
        let axes = axes.iter().map(|&(size, src, dst)| Axis { size, src, dst }).collect();
        Copy { src: Buf::In(0), dst: Buf::Out(0), from: 0, to: 0, axes }
    }

    #[test]
    fn axes_that_are_one_in_memory_merge() {
        let mut c = copy(&[(1, 60, 60), (3, 20, 20), (4, 5, 5), (5, 1, 1)]);
        c.simplify();
        assert_eq!(c, copy(&[(60, 1, 1)]));
        let mut c = copy(&[(4, 1, 15), (3, 20, 5), (5, 4, 1)]);
        c.simplify();
        assert_eq!(c, copy(&[(4, 1, 15), (15, 4, 1)]));
    }

    #[test]
    fn planes_are_walked_as_transpose_wgsl_does_it() {
        // [2, 40, 3, 9] with axes 1 and 3 swapped.
        let c = copy(&[(2, 1080, 1080), (9, 1, 120), (3, 9, 40), (40, 27, 1)]);
        let (Params(p), tiles) = c.planes((0, 0)).expect("two contiguous axes of at least 8");
        let p: Vec<usize> = p.into_iter().map(|w| w as usize).collect();
        let mut seen = vec![None; 2160];
        for tile in 0..tiles {
            let (column0, row0) = (tile % p[7] * 32, tile / p[7] % p[8] * 32);
            let plane = tile / (p[7] * p[8]);
            let (a, b) = (plane / p[9], plane % p[9]);
            for (i, j) in (0..32).flat_map(|i| (0..32).map(move |j| (i, j))) {
                let (r, col) = (row0 + i, column0 + j);
                if r < p[4] && col < p[2] {
                    let to = p[1] + a * p[13] + b * p[11] + col + r * p[5];
                    seen[to] = Some(p[0] + a * p[12] + b * p[10] + r + col * p[3]);
                }
            }
        }
        let want = |to: usize| {
            let (i, j, k, l) = (to / 1080, to / 120 % 9, to / 40 % 3, to % 40);
            Some(i * 1080 + l * 27 + k * 9 + j)
        };
        assert!((0..2160).all(|to| seen[to] == want(to)));
    }
}
