//! Threads: one team for the crate, and helpers that cut work into blocks.
//!
//! Reductions must be cut into blocks whose size does not depend on the number of threads ([`par_blocks`]); then results are the same
//! bits for any number. Work without reductions may be cut freely ([`par_rows`], [`par_rows_mut`]).
//! A kernel that is called inside a block runs on the block's thread alone.

use crate::team::{Team, inside};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

struct Pool {
    team: Team,
    /// For libraries that know rayon only. None: one thread.
    rayon: OnceLock<Option<ThreadPool>>,
}

static POOL: RwLock<Option<Arc<Pool>>> = RwLock::new(None);

thread_local! {
    /// The pool of the innermost [`with_threads`].
    static LOCAL: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) };
}

/// Work below this many cost units (about one simple operation on one `f32` each) stays on the calling thread: some tens of
/// microseconds, several times what waking another thread costs.
pub const MIN_PARALLEL_COST: usize = 1 << 16;

fn build(n: usize) -> Arc<Pool> {
    let n = match n {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    Arc::new(Pool { team: Team::new(n), rayon: OnceLock::new() })
}

fn current() -> Arc<Pool> {
    if let Some(pool) = LOCAL.with_borrow(Clone::clone) {
        return pool;
    }
    if let Some(pool) = &*POOL.read().unwrap_or_else(PoisonError::into_inner) {
        return pool.clone();
    }
    POOL.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| build(0)).clone()
}

/// Sets the number of threads that kernels use from now on; 0 means one per available core (the default). Kernels that are running
/// keep the number they started with.
pub fn set_threads(n: usize) {
    let pool = build(n);
    *POOL.write().unwrap_or_else(PoisonError::into_inner) = Some(pool);
}

/// The number of threads that a kernel called here uses: that of [`with_threads`] around it, else that of [`set_threads`]; one inside
/// a block of work.
pub fn threads() -> usize {
    if inside() { 1 } else { current().team.threads() }
}

/// Runs `f` inside a rayon pool of as many threads as kernels use, for libraries that divide their work with rayon.
pub fn install<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let pool = current();
    let make = || match pool.team.threads() {
        1 => None,
        n => ThreadPoolBuilder::new().num_threads(n).thread_name(|i| format!("kernels-cpu-rayon-{i}")).build().ok(),
    };
    match pool.rayon.get_or_init(make) {
        Some(rayon) if rayon::current_thread_index().is_none() => rayon.install(f),
        _ => f(),
    }
}

/// Runs `f` with `n` threads (at least one), whatever [`set_threads`] says: for tests and measurements.
pub fn with_threads<R>(n: usize, f: impl FnOnce() -> R) -> R {
    /// Puts back what was there, also when `f` panics.
    struct Restore(Option<Arc<Pool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOCAL.set(self.0.take());
        }
    }
    let _restore = Restore(LOCAL.replace(Some(build(n.max(1)))));
    f()
}

/// Whether work of this total cost (see [`MIN_PARALLEL_COST`]) is worth more than one thread.
pub fn worth_threads(total_cost: usize) -> bool {
    total_cost >= MIN_PARALLEL_COST && threads() > 1
}

/// Calls `f(block_index, range)` for each block of `block` items of `0..n` (the last may be shorter), on several threads when
/// `n * cost_per_item` is worth it. The blocks are the same for any number of threads.
pub fn par_blocks(n: usize, block: usize, cost_per_item: usize, f: impl Fn(usize, Range<usize>) + Sync + Send) {
    assert!(block > 0, "blocks of no items");
    let blocks = n.div_ceil(block);
    let one = |i: usize| f(i, i * block..((i + 1) * block).min(n));
    if blocks > 1 && worth_threads(n.saturating_mul(cost_per_item)) {
        current().team.run(blocks, &one);
    } else {
        (0..blocks).for_each(one);
    }
}

/// Calls `f(range)` for disjoint ranges that cover `0..rows`: about four per thread when `rows * cost_per_row` is worth threads, else
/// one. The ranges depend on the number of threads, so nothing may be reduced across the rows of a range.
pub fn par_rows(rows: usize, cost_per_row: usize, f: impl Fn(Range<usize>) + Sync + Send) {
    if rows == 0 {
        return;
    }
    let total = rows.saturating_mul(cost_per_row);
    if rows > 1 && worth_threads(total) {
        let parts = (4 * threads()).min(total / (MIN_PARALLEL_COST / 4)).clamp(1, rows);
        par_blocks(rows, rows.div_ceil(parts), cost_per_row, |_, r| f(r));
    } else {
        f(0..rows);
    }
}

/// [`par_rows`] over the rows of `out` (`row_len` elements each): `f(first_row, rows_of_out)`.
pub fn par_rows_mut<T: Send>(
    out: &mut [T],
    row_len: usize,
    cost_per_row: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if row_len == 0 || out.is_empty() {
        return;
    }
    assert_eq!(out.len() % row_len, 0, "a whole number of rows");
    let rows = out.len() / row_len;
    let out = SharedMut::new(out);
    par_rows(rows, cost_per_row, |r| {
        // SAFETY: `par_rows` gives disjoint ranges.
        f(r.start, unsafe { out.slice(r.start * row_len..r.end * row_len) });
    });
}

/// A mutable slice that several threads write disjoint parts of.
#[derive(Clone, Copy)]
pub struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose contract forbids overlapping use.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedMut { ptr: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `range` of the slice.
    ///
    /// # Panics
    /// If the range is out of bounds.
    ///
    /// # Safety
    /// No two parts that are in use at the same time overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a slice of {}", self.len);
        // SAFETY: in bounds by the check, unaliased by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.end - range.start) }
    }

    pub fn as_ptr(&self) -> *mut T {
        self.ptr
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_visited_once_for_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            with_threads(threads, || {
                for n in [0, 1, 2, 17, 1000, 4099] {
                    let mut out = vec![0u32; n * 3];
                    par_rows_mut(&mut out, 3, MIN_PARALLEL_COST, |first, part| {
                        for (i, v) in part.iter_mut().enumerate() {
                            *v += (first * 3 + i) as u32 + 1;
                        }
                    });
                    assert!(out.iter().enumerate().all(|(i, &v)| v == i as u32 + 1));
                    let count = AtomicUsize::new(0);
                    par_blocks(n, 16, MIN_PARALLEL_COST, |i, r| {
                        assert_eq!(r.start, i * 16);
                        count.fetch_add(r.len(), Ordering::Relaxed);
                    });
                    assert_eq!(count.into_inner(), n);
                }
            });
        }
    }

    #[test]
    fn small_work_stays_on_the_calling_thread() {
        let me = std::thread::current().id();
        par_rows(10, 10, |_| assert_eq!(std::thread::current().id(), me));
        par_blocks(10, 1, 10, |_, _| assert_eq!(std::thread::current().id(), me));
    }

    #[test]
    fn set_threads_is_what_threads_reports() {
        set_threads(3);
        assert_eq!(threads(), 3);
        assert_eq!(install(rayon::current_num_threads), 3);
        set_threads(0);
        assert!(threads() >= 1);
    }
}
