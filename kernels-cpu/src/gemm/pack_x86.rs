//! Packing with AVX2: eight lanes by eight elements at a time, transposed in registers where k is the contiguous direction. Vectors of
//! 256 bits are used with AVX-512 as well: shuffles of 512 bits take twice as long on the processors where it matters.

use super::matrix::Matrix;
use super::pack::{Block, Lanes};
use std::arch::x86_64::*;

/// How numbers are read into elements of 32 bits.
trait Source {
    type E: Copy + Default;
    /// Numbers in an element.
    const DEPTH: usize;
    /// Eight elements that follow one another along k.
    unsafe fn along_k(p: *const Self::E) -> __m256;
    /// One element of each of eight adjacent lanes: the first number of each at `p`, the second, if there are two, at `q`.
    unsafe fn across(p: *const Self::E, q: *const Self::E) -> __m256;
}

struct F32;
impl Source for F32 {
    type E = f32;
    const DEPTH: usize = 1;
    #[inline(always)]
    unsafe fn along_k(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn across(p: *const f32, _: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
}

struct Bf16;
impl Source for Bf16 {
    type E = u16;
    const DEPTH: usize = 1;
    #[inline(always)]
    unsafe fn along_k(p: *const u16) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn across(p: *const u16, _: *const u16) -> __m256 {
        unsafe { Self::along_k(p) }
    }
}

struct F16;
impl Source for F16 {
    type E = u16;
    const DEPTH: usize = 1;
    #[inline(always)]
    unsafe fn along_k(p: *const u16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn across(p: *const u16, _: *const u16) -> __m256 {
        unsafe { Self::along_k(p) }
    }
}

/// Two bfloat16 numbers in an element, the first along k in the lower half.
struct Bf16Pair;
impl Source for Bf16Pair {
    type E = u16;
    const DEPTH: usize = 2;
    #[inline(always)]
    unsafe fn along_k(p: *const u16) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn across(p: *const u16, q: *const u16) -> __m256 {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(q.cast()));
            _mm256_castsi256_ps(_mm256_or_si256(low, _mm256_slli_epi32::<16>(high)))
        }
    }
}

/// As [`super::pack::pack`].
///
/// # Safety
/// As there; the processor has AVX2 and F16C.
pub(super) unsafe fn pack(x: &Lanes, block: &Block, out: *mut f32) {
    let at = block.lanes.start * x.lane + block.k.start * x.k;
    // SAFETY: the contract of this function; the block's first number exists unless the block is empty.
    unsafe {
        match (x.data, block.depth) {
            (Matrix::F32(d), _) => pack_from::<F32>(d.as_ptr().wrapping_add(at), x, block, out),
            (Matrix::F16(d), _) => pack_from::<F16>(d.as_ptr().wrapping_add(at), x, block, out),
            (Matrix::Bf16(d), 1) => pack_from::<Bf16>(d.as_ptr().wrapping_add(at), x, block, out),
            (Matrix::Bf16(d), _) => pack_from::<Bf16Pair>(d.as_ptr().wrapping_add(at), x, block, out),
        }
    }
}

/// Eight lanes of the block.
#[derive(Clone, Copy)]
struct Group<E> {
    from: *const E,
    to: *mut f32,
    /// Lanes that exist.
    count: usize,
}

/// Groups that are packed together: a panel of 48 lanes.
const GROUPS: usize = 6;

/// How the groups of a block are read and written.
struct Walk {
    /// Numbers between lanes (with k contiguous) or between numbers along k (with lanes contiguous).
    ld: usize,
    /// Numbers along k, and elements.
    numbers: usize,
    steps: usize,
    /// Lanes in a panel.
    width: usize,
    along_k: bool,
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c")]
unsafe fn pack_from<S: Source>(data: *const S::E, x: &Lanes, block: &Block, out: *mut f32) {
    let (lanes, steps, width) = (block.lanes.len(), block.steps(), block.width);
    let ld = if x.k == 1 { x.lane } else { x.k };
    let walk = Walk { ld, numbers: block.k.len(), steps, width, along_k: x.k == 1 };
    let padded = lanes.next_multiple_of(width);
    // Together: the groups of a wide panel; of narrow panels, as many as two cache lines of adjacent lanes hold.
    let together = if width > 8 { width / 8 } else { 4 };
    let mut groups = [Group { from: data, to: out, count: 0 }; GROUPS];
    let (mut n, mut panel, mut offset) = (0, out, 0);
    for lane in (0..padded).step_by(8) {
        let from = data.wrapping_add(lane * x.lane);
        groups[n] = Group { from, to: panel.wrapping_add(offset), count: lanes.saturating_sub(lane).min(8) };
        n += 1;
        offset += 8;
        if offset >= width {
            panel = panel.wrapping_add(steps * width.max(8));
            offset = 0;
        }
        if n == together || n == GROUPS || lane + 8 >= padded {
            // SAFETY: the contract of `pack`.
            unsafe { pack_groups::<S>(&groups[..n], &walk, lane + 4 < padded) };
            n = 0;
        }
    }
}

/// `upper`: the last group's upper four lanes have a place (panels of 4 may end in the middle of a group).
#[inline(always)]
unsafe fn pack_groups<S: Source>(groups: &[Group<S::E>], walk: &Walk, upper: bool) {
    // SAFETY: the contract of `pack`.
    unsafe {
        if groups.iter().any(|g| g.count < 8) || !upper {
            for (i, g) in groups.iter().enumerate() {
                partial::<S>(g, walk, upper || i + 1 < groups.len());
            }
            return;
        }
        match groups.len() {
            6 => whole::<S, 6>(groups, walk),
            5 => whole::<S, 5>(groups, walk),
            4 => whole::<S, 4>(groups, walk),
            3 => whole::<S, 3>(groups, walk),
            2 => whole::<S, 2>(groups, walk),
            _ => whole::<S, 1>(groups, walk),
        }
    }
}

/// Groups of which all lanes exist.
#[inline(always)]
unsafe fn whole<S: Source, const G: usize>(groups: &[Group<S::E>], walk: &Walk) {
    /// Elements along k that are read of each lane before the next lanes: a cache line of `f32`.
    const RUN: usize = 16;
    let groups: &[Group<S::E>; G] = groups.try_into().expect("as many groups as the caller counted");
    let &Walk { ld, numbers, steps, width, along_k } = walk;
    let split = width == 4;
    // SAFETY: the contract of `pack`.
    unsafe {
        if along_k {
            let full = numbers / S::DEPTH / 8 * 8;
            for run in (0..full).step_by(RUN) {
                for g in groups {
                    for step in (run..(run + RUN).min(full)).step_by(8) {
                        let mut v = [_mm256_setzero_ps(); 8];
                        for (i, v) in v.iter_mut().enumerate() {
                            *v = S::along_k(g.from.add(i * ld + step * S::DEPTH));
                        }
                        transpose(&mut v);
                        for (i, &v) in v.iter().enumerate() {
                            put(g.to.add((step + i) * width), split.then_some(4 * steps), v);
                        }
                    }
                }
            }
            for g in groups {
                transpose_edge::<S>(g, walk, full, true);
            }
        } else {
            let full = numbers / S::DEPTH;
            for step in 0..full {
                for g in groups {
                    let p = g.from.add(step * S::DEPTH * ld);
                    let v = S::across(p, p.wrapping_add(ld));
                    put(g.to.add(step * width), split.then_some(4 * steps), v);
                }
            }
            if full < steps {
                for g in groups {
                    copy_edge::<S>(g, walk, full, true);
                }
            }
        }
    }
}

/// A group of which some lanes may not exist.
#[inline(always)]
unsafe fn partial<S: Source>(g: &Group<S::E>, walk: &Walk, upper: bool) {
    // SAFETY: the contract of `pack`.
    unsafe {
        if walk.along_k {
            transpose_edge::<S>(g, walk, 0, upper);
        } else {
            copy_edge::<S>(g, walk, 0, upper);
        }
    }
}

/// The elements from `start` on of a group, of which lanes or numbers may be missing.
#[inline(always)]
unsafe fn transpose_edge<S: Source>(g: &Group<S::E>, walk: &Walk, start: usize, upper: bool) {
    let &Walk { ld, numbers, steps, width, .. } = walk;
    for step in (start..steps).step_by(8) {
        // SAFETY: numbers that exist are copied, the others are zero.
        unsafe {
            let mut v = [_mm256_setzero_ps(); 8];
            let count = (numbers - step * S::DEPTH).min(8 * S::DEPTH);
            for (i, v) in v.iter_mut().enumerate().take(g.count) {
                let mut part = [S::E::default(); 16];
                std::ptr::copy_nonoverlapping(g.from.add(i * ld + step * S::DEPTH), part.as_mut_ptr(), count);
                *v = S::along_k(part.as_ptr());
            }
            transpose(&mut v);
            for (i, &v) in v.iter().enumerate().take(steps - step) {
                put_edge(g.to.add((step + i) * width), walk, upper, v);
            }
        }
    }
}

/// As [`transpose_edge`], where lanes are contiguous.
#[inline(always)]
unsafe fn copy_edge<S: Source>(g: &Group<S::E>, walk: &Walk, start: usize, upper: bool) {
    let &Walk { ld, numbers, steps, width, .. } = walk;
    for step in start..steps {
        // SAFETY: numbers that exist are copied, the others are zero.
        unsafe {
            let (mut first, mut second) = ([S::E::default(); 16], [S::E::default(); 16]);
            let p = g.from.wrapping_add(step * S::DEPTH * ld);
            std::ptr::copy_nonoverlapping(p, first.as_mut_ptr(), g.count);
            if S::DEPTH == 2 && step * 2 + 1 < numbers {
                std::ptr::copy_nonoverlapping(p.wrapping_add(ld), second.as_mut_ptr(), g.count);
            }
            put_edge(g.to.add(step * width), walk, upper, S::across(first.as_ptr(), second.as_ptr()));
        }
    }
}

/// Stores eight lanes of one step: all in one panel, or with panels of 4 lanes the upper half `next` elements further on.
#[inline(always)]
unsafe fn put(to: *mut f32, next: Option<usize>, v: __m256) {
    // SAFETY: the callers point into the packed block.
    unsafe {
        match next {
            None => _mm256_storeu_ps(to, v),
            Some(next) => {
                _mm_storeu_ps(to, _mm256_castps256_ps128(v));
                _mm_storeu_ps(to.add(next), _mm256_extractf128_ps::<1>(v));
            }
        }
    }
}

/// As [`put`], without the upper half where it has no place.
#[inline(always)]
unsafe fn put_edge(to: *mut f32, walk: &Walk, upper: bool, v: __m256) {
    // SAFETY: as in `put`.
    unsafe {
        match walk.width {
            4 if !upper => _mm_storeu_ps(to, _mm256_castps256_ps128(v)),
            4 => put(to, Some(4 * walk.steps), v),
            _ => put(to, None, v),
        }
    }
}

/// Transposes eight vectors of eight.
#[inline(always)]
unsafe fn transpose(v: &mut [__m256; 8]) {
    // SAFETY: AVX, which the callers have.
    unsafe {
        let (mut pairs, mut fours) = (*v, *v);
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        // fours[4 q + j]: columns j and 4 + j of the four rows of half q
        for q in [0, 4] {
            for j in 0..2 {
                fours[q + 2 * j] = _mm256_shuffle_ps::<0x44>(pairs[q + j], pairs[q + 2 + j]);
                fours[q + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(pairs[q + j], pairs[q + 2 + j]);
            }
        }
        for j in 0..4 {
            v[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
            v[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
        }
    }
}
