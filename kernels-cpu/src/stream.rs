//! Stores that pass the caches, for results that no cache would hold until they are read.
//!
//! A plain store first reads the line that it writes into, so a tensor written from end to end crosses the memory bus twice. A
//! non-temporal store of a whole line does not read it, but the line is in no cache afterwards. That is a gain only where the line
//! would be gone anyway when its reader comes: see [`past_caches`].

use crate::simd::Isa;
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;
use std::cell::Cell;
use std::sync::OnceLock;

/// Floats in a cache line.
const LINE: usize = 16;
/// Whether there are non-temporal stores.
pub(crate) fn can_stream() -> bool {
    cfg!(target_arch = "x86_64")
}

/// Whether a call that moves `bytes` (all operands and results together) should store past the caches: the last-level cache cannot
/// hold them, so when the call ends the beginning of its result, where its reader begins, has been evicted.
pub(crate) fn past_caches(bytes: usize) -> bool {
    can_stream() && bytes > HELD.get().unwrap_or_else(last_level_cache)
}

thread_local! {
    /// What the innermost [`with_cache`] says.
    static HELD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs `f` as if the last-level cache held `bytes`, for the kernels that this thread calls: for tests and measurements. 0 makes every
/// kernel that can store past the caches do so, `usize::MAX` none.
pub fn with_cache<R>(bytes: usize, f: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also when `f` panics.
    struct Restore(Option<usize>);
    impl Drop for Restore {
        fn drop(&mut self) {
            HELD.set(self.0);
        }
    }
    let _restore = Restore(HELD.replace(Some(bytes)));
    f()
}

/// Bytes of the largest cache, as the processor says; 32 MiB where it does not.
pub fn last_level_cache() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| largest_cache().unwrap_or(32 << 20))
}

/// From the leaves of CPUID that list the caches: 4 at Intel, 0x8000001D at AMD, of one layout.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe)]
fn largest_cache() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // SAFETY (all): every x86-64 has CPUID, and leaves beyond the highest are not asked for.
    let highest = |base: u32| unsafe { __cpuid(base) }.eax;
    let caches = |leaf: u32| {
        let each = (0..16).map(move |i| unsafe { __cpuid_count(leaf, i) }).take_while(|c| c.eax & 31 != 0);
        each.map(|c| {
            let field = |value: u32, low: u32, bits: u32| (value >> low & ((1 << bits) - 1)) as usize + 1;
            field(c.ebx, 22, 10) * field(c.ebx, 12, 10) * field(c.ebx, 0, 12) * (c.ecx as usize + 1)
        })
        .max()
    };
    let intel = if highest(0) >= 4 { caches(4) } else { None };
    intel.or_else(|| if highest(0x8000_0000) >= 0x8000_001d { caches(0x8000_001d) } else { None })
}

#[cfg(not(target_arch = "x86_64"))]
fn largest_cache() -> Option<usize> {
    None
}

/// Waits until this thread's non-temporal stores can be seen by others.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: x86-64 has SSE2.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// Copies a line to an aligned place, past the caches.
///
/// # Safety
/// `from` is valid for a line's reads, `to` for its writes and aligned to it; the instruction set of `V` is there.
#[inline(always)]
pub(crate) unsafe fn line<V: Isa>(from: *const f32, to: *mut f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the contract.
    unsafe {
        use std::arch::x86_64::*;
        match V::LEVEL {
            Level::Avx512 => _mm512_stream_ps(to, _mm512_loadu_ps(from)),
            Level::Avx2 => {
                let (low, high) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
                _mm256_stream_ps(to, low);
                _mm256_stream_ps(to.add(8), high);
            }
            Level::Baseline => {
                for i in (0..LINE).step_by(4) {
                    _mm_stream_ps(to.add(i), _mm_loadu_ps(from.add(i)));
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the contract.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, LINE)
    }
}

/// Asks for the line at `x`: a hint, of a place that lies anywhere, also outside of the tensor. A kernel that goes over a row in cache
/// more than once asks for the next row meanwhile: the processor's own prefetch follows reads of memory only, and would stand still.
#[inline(always)]
pub(crate) fn prefetch(x: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint reads nothing and faults nowhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(x.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// How far ahead [`prefetch_far`] is asked for, in bytes: at ten bytes a nanosecond, several times the time that memory takes to answer.
pub(crate) const FAR: usize = 8 << 10;

/// Asks for the line at `x` to come as far as L2. For loops that read each byte of a large matrix once, [`FAR`] bytes ahead: L1 has places
/// for too few lines on their way to keep the memory busy, and the processor's own prefetch begins anew at every page.
#[inline(always)]
pub(crate) fn prefetch_far(x: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint reads nothing and faults nowhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(x.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

crate::multiversion! {
    /// Copies `n` floats: whole lines of the destination past the caches, what is left at either end by plain stores.
    ///
    /// # Safety
    /// `from` is valid for `n` reads and `to` for `n` writes, `to` is aligned to 4 bytes, and they do not overlap. Others may read
    /// what was written only after [`fence`].
    pub(crate) unsafe fn copy<V>(from: *const f32, to: *mut f32, n: usize) {
        let head = to.align_offset(4 * LINE).min(n);
        // SAFETY: (whole body) within the `n` floats.
        unsafe {
            std::ptr::copy_nonoverlapping(from, to, head);
            let mut i = head;
            while i + 4 * LINE <= n {
                for k in 0..4 {
                    line::<V>(from.add(i + k * LINE), to.add(i + k * LINE));
                }
                i += 4 * LINE;
            }
            while i + LINE <= n {
                line::<V>(from.add(i), to.add(i));
                i += LINE;
            }
            std::ptr::copy_nonoverlapping(from.add(i), to.add(i), n - i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_alignment_and_length_write_what_they_should_and_no_more() {
        let from: Vec<f32> = (0..400).map(|i| i as f32).collect();
        for start in 0..18 {
            for n in [0, 1, 5, 15, 16, 17, 31, 63, 64, 65, 100, 257] {
                let mut to = vec![-1.0f32; 400];
                // SAFETY: both are long enough.
                unsafe { copy(from[start / 2..].as_ptr(), to[start..].as_mut_ptr(), n) };
                fence();
                for (i, &x) in to.iter().enumerate() {
                    let inside = i >= start && i < start + n;
                    assert_eq!(x, if inside { from[start / 2 + i - start] } else { -1.0 }, "{start} {n} {i}");
                }
            }
        }
    }

    #[test]
    fn the_largest_cache_has_a_plausible_size() {
        let bytes = last_level_cache();
        assert!((1 << 18..1 << 34).contains(&bytes), "{bytes}");
        assert!(!past_caches(bytes) && past_caches(bytes + 1) == can_stream());
        assert_eq!(with_cache(0, || past_caches(1)), can_stream());
        assert!(!with_cache(usize::MAX, || past_caches(usize::MAX)));
    }
}
