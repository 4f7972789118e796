//! Moving data without arithmetic: strided copies of 4-byte elements, and what is made of them (permute, slice, concat, pad).

use crate::stream::{self, past_caches, prefetch};
use crate::threads::{par_blocks, worth_threads};

/// Types that are moved as 4-byte words.
pub trait Word: Copy + Send + Sync + 'static {}
impl Word for f32 {}
impl Word for i32 {}
impl Word for u32 {}

/// Side of the square blocks of a transpose: two of them fit in the first-level cache.
const TRANSPOSE_BLOCK: usize = 32;
/// Elements that one task moves.
const TASK: usize = 1 << 15;

/// One axis of a copy: its size and the distances between neighbours in source and destination.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    size: usize,
    src: usize,
    dst: usize,
}

/// Drops axes of size 1, orders the rest by destination stride, and merges neighbours that are one axis in memory.
fn simplify(shape: &[usize], src: &[usize], dst: &[usize]) -> Vec<Axis> {
    let axes = shape.iter().zip(src).zip(dst).map(|((&size, &src), &dst)| Axis { size, src, dst });
    let mut axes: Vec<Axis> = axes.filter(|a| a.size != 1).collect();
    axes.sort_by_key(|a| std::cmp::Reverse(a.dst));
    let mut merged: Vec<Axis> = Vec::with_capacity(axes.len());
    for a in axes {
        match merged.last_mut() {
            Some(outer) if outer.src == a.src * a.size && outer.dst == a.dst * a.size => {
                *outer = Axis { size: outer.size * a.size, ..a };
            }
            _ => merged.push(a),
        }
    }
    merged
}

fn extent(offset: usize, shape: &[usize], strides: &[usize]) -> usize {
    offset + shape.iter().zip(strides).map(|(&n, &s)| (n - 1) * s).sum::<usize>() + 1
}

#[derive(Clone, Copy)]
struct DstPtr<T>(*mut T);
// SAFETY: tasks write disjoint elements (see `copy_strided`).
unsafe impl<T: Send> Send for DstPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for DstPtr<T> {}

impl<T> DstPtr<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Copies the box `shape`: element (i0, i1, ..) goes from `src[src_offset + sum i src_strides]` to `dst[dst_offset + sum i dst_strides]`. A source stride may be 0
/// (broadcast); destination elements must be distinct.
///
/// # Panics
/// If the lists differ in length, an element is out of bounds, or destination elements coincide.
pub fn copy_strided<T: Word>(
    src: &[T],
    src_offset: usize,
    src_strides: &[usize],
    dst: &mut [T],
    dst_offset: usize,
    dst_strides: &[usize],
    shape: &[usize],
) {
    assert!(src_strides.len() == shape.len() && dst_strides.len() == shape.len(), "one stride per axis");
    if shape.contains(&0) {
        return;
    }
    assert!(extent(src_offset, shape, src_strides) <= src.len(), "the source box lies in the source");
    assert!(extent(dst_offset, shape, dst_strides) <= dst.len(), "the destination box lies in the destination");
    let mut axes = simplify(shape, src_strides, dst_strides);
    // sorted by stride: each must step over all that the smaller ones reach
    let mut reach = 0;
    for a in axes.iter().rev() {
        assert!(a.dst > reach, "destination elements are distinct");
        reach += (a.size - 1) * a.dst;
    }
    // the two innermost axes of the loop: the one that is contiguous in the destination, and the one contiguous in the source
    let inner = axes.pop().unwrap_or(Axis { size: 1, src: 1, dst: 1 });
    let across = match axes.iter().position(|a| a.src == 1 && inner.src != 1 && inner.src != 0) {
        Some(i) => axes.remove(i),
        None => axes.pop().unwrap_or(Axis { size: 1, src: 0, dst: 0 }),
    };
    // rows of `across` are cut so that there is work for several threads in one plane
    let outer: usize = axes.iter().map(|a| a.size).product();
    let band = (TASK / inner.size).next_multiple_of(STRIP).clamp(1, across.size);
    let bands = across.size.div_ceil(band);
    let past = past_caches(8 * outer * across.size * inner.size);
    let dst = DstPtr(dst.as_mut_ptr());
    let task = |i: usize| {
        let (mut rest, first) = (i / bands, i % bands * band);
        let (mut s, mut d) = (src_offset + first * across.src, dst_offset + first * across.dst);
        for a in axes.iter().rev() {
            s += rest % a.size * a.src;
            d += rest % a.size * a.dst;
            rest /= a.size;
        }
        let across = Axis { size: band.min(across.size - first), ..across };
        // SAFETY: both boxes are in bounds, and destination elements are distinct, by the checks above.
        unsafe { plane(src.as_ptr().add(s), dst.get().add(d), across, inner, past) };
        if past {
            stream::fence();
        }
    };
    let tasks = outer * bands;
    let per_task = band * inner.size;
    if worth_threads(tasks * per_task) {
        par_blocks(tasks, (TASK / per_task).max(1), per_task, |_, r| r.for_each(task));
    } else {
        (0..tasks).for_each(task);
    }
}

/// Copies a two-dimensional box.
///
/// # Safety
/// Every element of the box is valid to read at `src` and to write at `dst`, and nobody else touches the latter.
unsafe fn plane<T: Word>(src: *const T, dst: *mut T, rows: Axis, columns: Axis, past: bool) {
    // SAFETY: (whole body) offsets stay within the box.
    unsafe {
        if columns.dst == 1 && columns.src == 1 {
            // Short rows would be ends of lines for the most part, which are not written past the caches.
            let past = past && columns.size >= STRIP;
            for i in 0..rows.size {
                let (s, d) = (src.add(i * rows.src), dst.add(i * rows.dst));
                if past {
                    stream::copy(s.cast(), d.cast(), columns.size);
                } else {
                    std::ptr::copy_nonoverlapping(s, d, columns.size);
                }
            }
        } else if columns.dst == 1 && columns.src == 0 {
            for i in 0..rows.size {
                std::slice::from_raw_parts_mut(dst.add(i * rows.dst), columns.size).fill(*src.add(i * rows.src));
            }
        } else if rows.src == 1 && columns.dst == 1 {
            transpose(src, dst, rows, columns, past);
        } else {
            // blocks keep the lines of both sides in cache
            for i0 in (0..rows.size).step_by(TRANSPOSE_BLOCK) {
                for j0 in (0..columns.size).step_by(TRANSPOSE_BLOCK) {
                    for i in i0..rows.size.min(i0 + TRANSPOSE_BLOCK) {
                        let (s, d) = (src.add(i * rows.src), dst.add(i * rows.dst));
                        for j in j0..columns.size.min(j0 + TRANSPOSE_BLOCK) {
                            *d.add(j * columns.dst) = *s.add(j * columns.src);
                        }
                    }
                }
            }
        }
    }
}

/// [`plane`] where the rows' axis is contiguous in the source and the columns' axis in the destination, of blocks that are read and
/// written along lines and turned in between. With `past`, lines of the destination are stored past the caches.
///
/// # Safety
/// That of [`plane`].
unsafe fn transpose<T: Word>(src: *const T, dst: *mut T, rows: Axis, columns: Axis, past: bool) {
    const { assert!(size_of::<T>() == 4) };
    // Lines of the destination are whole in every row, or in none.
    let skip = dst.cast::<f32>().align_offset(64);
    let past = past && rows.dst.is_multiple_of(B) && skip < B;
    let first = if past { skip.min(columns.size) } else { 0 };
    let last = first + (columns.size - first) / B * B;
    let whole = rows.size / B * B;
    // SAFETY: (whole body) offsets stay within the box, blocks are whole, and lines aligned where they are asked to be.
    unsafe {
        if past {
            turn::<true>(src.cast(), dst.cast(), columns.src, rows.dst, [whole, first, last]);
        } else {
            turn::<false>(src.cast(), dst.cast(), columns.src, rows.dst, [whole, first, last]);
        }
        let each = |i: usize, j: usize| *dst.add(i * rows.dst + j) = *src.add(i + j * columns.src);
        for i in 0..rows.size {
            if i < whole {
                (0..first).chain(last..columns.size).for_each(|j| each(i, j));
            } else {
                (0..columns.size).for_each(|j| each(i, j));
            }
        }
    }
}

/// Side of the blocks of a transpose: a line.
const B: usize = 16;
/// Blocks side by side along the lines of the source: its pages are visited once for each such strip.
const STRIP: usize = 4 * B;

#[repr(align(64))]
struct Block([f32; B * B]);

crate::multiversion! {
    /// `dst[i * to + j] = src[j * from + i]` for i below `rows` and j in `first..last`, whose numbers are multiples of [`B`].
    ///
    /// # Safety
    /// The elements are valid; with `PAST` the destinations of `j == first` are aligned to lines, and a fence follows.
    unsafe fn turn<V, const PAST: bool>(src: *const f32, dst: *mut f32, from: usize, to: usize, sizes: [usize; 3]) {
        let [rows, first, last] = sizes;
        let mut block = Block([0.0; B * B]);
        for strip in (0..rows).step_by(STRIP) {
            let end = rows.min(strip + STRIP);
            for j in (first..last).step_by(B) {
                for i in (strip..end).step_by(B) {
                    // SAFETY: blocks are whole; the block after the next is only hinted at.
                    unsafe {
                        let s = src.add(i + j * from);
                        for k in 0..B {
                            prefetch(s.wrapping_add((2 * B + k) * from));
                        }
                        #[cfg(target_arch = "x86_64")]
                        let done = if V::LEVEL == crate::simd::Level::Avx512 {
                            let lines = std::array::from_fn(|k| s.wrapping_add(k * from));
                            crate::tile::transpose(lines, block.0.as_mut_ptr(), B);
                            true
                        } else {
                            false
                        };
                        #[cfg(not(target_arch = "x86_64"))]
                        let done = false;
                        if !done {
                            for k in 0..B {
                                let line = s.add(k * from).cast::<[f32; B]>().read_unaligned();
                                for (r, x) in line.into_iter().enumerate() {
                                    block.0[r * B + k] = x;
                                }
                            }
                        }
                        for r in 0..B {
                            let (line, d) = (block.0.as_ptr().add(r * B), dst.add((i + r) * to + j));
                            if PAST {
                                stream::line::<V>(line, d);
                            } else {
                                std::ptr::copy_nonoverlapping(line, d, B);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The strides of a contiguous row-major tensor.
pub fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Axis i of `dst` is axis `perm[i]` of `src`, whose shape is `shape`; both are contiguous.
pub fn permute<T: Word>(src: &[T], shape: &[usize], perm: &[usize], dst: &mut [T]) {
    assert!(src.len() == size(shape) && dst.len() == src.len(), "src and dst have the size of {shape:?}");
    let mut seen = vec![false; shape.len()];
    assert!(
        perm.len() == shape.len() && perm.iter().all(|&p| p < shape.len() && !std::mem::replace(&mut seen[p], true)),
        "{perm:?} orders the axes of {shape:?}"
    );
    let strides = contiguous_strides(shape);
    let out_shape: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
    let src_strides: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    copy_strided(src, 0, &src_strides, dst, 0, &contiguous_strides(&out_shape), &out_shape);
}

/// The box of `src` (contiguous, shape `shape`) that starts at `start`, every `step`-th element, of shape `out_shape`.
pub fn slice<T: Word>(src: &[T], shape: &[usize], start: &[usize], step: &[usize], out_shape: &[usize], dst: &mut [T]) {
    assert!(src.len() == size(shape) && dst.len() == size(out_shape), "src is {shape:?}, dst is {out_shape:?}");
    let rank = shape.len();
    assert!(start.len() == rank && step.len() == rank && out_shape.len() == rank, "one start, step and size per axis");
    for i in 0..rank {
        let fits = out_shape[i] == 0 || start[i] + (out_shape[i] - 1) * step[i] < shape[i];
        assert!(fits, "{} elements from {} by {} of axis {i} of {shape:?}", out_shape[i], start[i], step[i]);
    }
    if dst.is_empty() {
        return;
    }
    let strides = contiguous_strides(shape);
    let offset = start.iter().zip(&strides).map(|(a, b)| a * b).sum();
    let src_strides: Vec<usize> = step.iter().zip(&strides).map(|(a, b)| a * b).collect();
    copy_strided(src, offset, &src_strides, dst, 0, &contiguous_strides(out_shape), out_shape);
}

/// Joins contiguous tensors along `axis`: each part is (data, shape), and the shapes differ in that axis only.
pub fn concat<T: Word>(parts: &[(&[T], &[usize])], axis: usize, dst: &mut [T]) {
    let Some(&(_, first)) = parts.first() else {
        assert!(dst.is_empty(), "nothing joins to nothing");
        return;
    };
    let mut shape = first.to_vec();
    shape[axis] = parts.iter().map(|(_, s)| s[axis]).sum();
    assert_eq!(dst.len(), size(&shape), "dst is {shape:?}");
    let strides = contiguous_strides(&shape);
    let mut at = 0;
    for (data, part) in parts {
        assert_eq!(data.len(), size(part), "a part is {part:?}");
        let same = part.len() == shape.len() && (0..shape.len()).all(|i| i == axis || part[i] == shape[i]);
        assert!(same, "{part:?} does not join {shape:?} along axis {axis}");
        if !data.is_empty() {
            copy_strided(data, 0, &contiguous_strides(part), dst, at * strides[axis], &strides, part);
        }
        at += part[axis];
    }
}

/// Surrounds `src` (contiguous, shape `shape`) with `before[i]` and `after[i]` elements of `value` along axis i.
pub fn pad<T: Word>(src: &[T], shape: &[usize], before: &[usize], after: &[usize], value: T, dst: &mut [T]) {
    assert!(before.len() == shape.len() && after.len() == shape.len(), "one margin on each side per axis");
    let out: Vec<usize> = (0..shape.len()).map(|i| before[i] + shape[i] + after[i]).collect();
    assert!(src.len() == size(shape) && dst.len() == size(&out), "src is {shape:?}, dst is {out:?}");
    dst.fill(value);
    if !src.is_empty() {
        let strides = contiguous_strides(&out);
        let offset = before.iter().zip(&strides).map(|(a, b)| a * b).sum();
        copy_strided(src, 0, &contiguous_strides(shape), dst, offset, &strides, shape);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(mut flat: usize, shape: &[usize]) -> Vec<usize> {
        let mut out = vec![0; shape.len()];
        for i in (0..shape.len()).rev() {
            out[i] = flat % shape[i];
            flat /= shape[i];
        }
        out
    }

    fn flat(index: &[usize], shape: &[usize]) -> usize {
        index.iter().zip(shape).fold(0, |f, (&i, &n)| f * n + i)
    }

    fn numbers(n: usize) -> Vec<i32> {
        (0..n as i32).collect()
    }

    #[test]
    fn permute_moves_every_element_to_its_place() {
        let cases: [(&[usize], &[usize]); 14] = [
            (&[], &[]),
            (&[5], &[0]),
            (&[7, 11], &[1, 0]),
            (&[257, 300], &[1, 0]),
            (&[160, 112], &[1, 0]),
            (&[3, 176, 70], &[0, 2, 1]),
            (&[2, 3, 5], &[2, 0, 1]),
            (&[3, 33, 4, 65], &[0, 2, 1, 3]),
            (&[2, 5, 3, 64], &[0, 2, 3, 1]),
            (&[4, 1, 6], &[1, 2, 0]),
            (&[0, 3], &[1, 0]),
            (&[9, 2, 31, 7], &[3, 2, 1, 0]),
            (&[1, 1], &[1, 0]),
            (&[3, 4, 5], &[0, 1, 2]),
        ];
        for (shape, perm) in cases {
            let src = numbers(size(shape));
            let out: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
            for (held, offset) in [(usize::MAX, 0), (0, 0), (0, 5)] {
                let mut dst = vec![-1; src.len() + offset];
                stream::with_cache(held, || permute(&src, shape, perm, &mut dst[offset..]));
                for (i, &got) in dst[offset..].iter().enumerate() {
                    let at = index(i, &out);
                    let mut from = vec![0; shape.len()];
                    for (a, &p) in perm.iter().enumerate() {
                        from[p] = at[a];
                    }
                    assert_eq!(got, src[flat(&from, shape)], "{shape:?} {perm:?} {held} {offset}");
                }
            }
        }
    }

    #[test]
    fn large_transposes_on_threads_are_right() {
        let (m, n) = (1031, 517);
        let src = numbers(m * n);
        let mut dst = vec![0; m * n];
        crate::threads::with_threads(3, || permute(&src, &[m, n], &[1, 0], &mut dst));
        assert!((0..m * n).all(|i| dst[i] == src[i % m * n + i / m]));
    }

    #[test]
    fn slice_with_steps_and_pad_and_concat_agree_with_index_loops() {
        let src = numbers(5 * 7 * 9);
        let mut dst = vec![-1; 2 * 3 * 4];
        slice(&src, &[5, 7, 9], &[1, 0, 2], &[2, 3, 1], &[2, 3, 4], &mut dst);
        for (i, &got) in dst.iter().enumerate() {
            let at = index(i, &[2, 3, 4]);
            assert_eq!(got, src[flat(&[1 + at[0] * 2, at[1] * 3, 2 + at[2]], &[5, 7, 9])]);
        }
        let mut padded = vec![0; 4 * 6];
        pad(&numbers(6), &[2, 3], &[1, 0], &[1, 3], -9, &mut padded);
        assert_eq!(padded[..6], [-9; 6]);
        assert_eq!(padded[6..18], [0, 1, 2, -9, -9, -9, 3, 4, 5, -9, -9, -9]);
        let (a, b) = (numbers(6), numbers(3));
        let mut joined = vec![-1; 9];
        concat(&[(&a, &[3, 2]), (&b, &[3, 1])], 1, &mut joined);
        assert_eq!(joined, [0, 1, 0, 2, 3, 1, 4, 5, 2]);
        let mut joined = vec![-1; 9];
        concat(&[(&a[..], &[2, 3][..]), (&[], &[0, 3]), (&b, &[1, 3])], 0, &mut joined);
        assert_eq!(joined, [0, 1, 2, 3, 4, 5, 0, 1, 2]);
        let mut none: [i32; 0] = [];
        slice(&src, &[5, 7, 9], &[5, 0, 0], &[1, 1, 1], &[0, 7, 9], &mut none);
    }

    #[test]
    fn a_source_may_broadcast_and_a_destination_may_have_gaps() {
        let mut dst = [0.0f32; 14];
        copy_strided(&[1.0, 2.0, 3.0], 0, &[0, 1], &mut dst, 1, &[7, 2], &[2, 3]);
        assert_eq!(dst, [0., 1., 0., 2., 0., 3., 0., 0., 1., 0., 2., 0., 3., 0.]);
        copy_strided(&[5.0], 0, &[0], &mut dst, 0, &[1], &[14]);
        assert_eq!(dst, [5.0; 14]);
    }

    #[test]
    #[should_panic(expected = "destination elements are distinct")]
    fn overlapping_destinations_are_refused() {
        copy_strided(&[1, 2, 3, 4], 0, &[2, 1], &mut [0; 4], 0, &[1, 1], &[2, 2]);
    }

    #[test]
    #[should_panic(expected = "lies in the source")]
    fn a_box_beyond_the_source_is_refused() {
        copy_strided(&[1, 2, 3], 0, &[2, 1], &mut [0; 4], 0, &[2, 1], &[2, 2]);
    }
}
