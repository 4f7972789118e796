//! The CPU's ceilings, with as many threads as the kernels use: arithmetic in registers, bandwidth by working set, strided reads,
//! and what calling a kernel and waking threads cost.

use super::report::{Access, Ceilings, ComputePeak, MemoryPoint, Overhead, StridePoint};
use super::timing::{Effort, measure};
use super::{Scope, levels};
use crate::Result;
use crate::device::cpu::Buffer;
use kernels_cpu::peak::{self, Arithmetic, Traffic};
use kernels_cpu::threads;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Measures with the number of threads that kernels use now.
pub fn ceilings(scope: &Scope) -> Result<Ceilings> {
    let n = threads::threads();
    let effort = scope.effort();
    keep_busy(n);
    let mut ceilings = Ceilings { compute: compute(n, &effort)?, ..Ceilings::default() };
    ceilings.memory = ladder(n, scope)?;
    ceilings.levels = levels::levels(&ceilings.memory, &["L1", "L2", "L3"]);
    if n == 1 {
        ceilings.strides = strides(scope)?;
    }
    ceilings.overheads = overheads(n, &effort)?;
    // What took the processors away for a moment is seldom there twice.
    keep_busy(n);
    for (peak, again) in ceilings.compute.iter_mut().zip(compute(n, &effort)?) {
        if again.rate.best > peak.rate.best {
            *peak = again;
        }
    }
    Ok(ceilings)
}

/// All threads at work for a while. Processors of a virtual machine that have idled may find two of them on one core for some 100 ms,
/// each with half of it; and clocks take their time to rise.
fn keep_busy(n: usize) {
    const LONG: Duration = Duration::from_millis(150);
    together(n, |_| {
        let start = Instant::now();
        while start.elapsed() < LONG {
            Arithmetic::F32.run(1000);
        }
    });
}

/// Runs `work(thread)` on all threads at once; gives the seconds from when all were ready until the last ended.
fn together(n: usize, work: impl Fn(usize) + Sync) -> f64 {
    if n == 1 {
        let start = Instant::now();
        work(0);
        return start.elapsed().as_secs_f64();
    }
    let waiting = AtomicUsize::new(n);
    let times = threads::install(|| {
        rayon::broadcast(|thread| {
            waiting.fetch_sub(1, Ordering::AcqRel);
            let mut spins = 0u32;
            while waiting.load(Ordering::Acquire) > 0 {
                spins += 1;
                match spins % 64 {
                    0 => std::thread::yield_now(),
                    _ => std::hint::spin_loop(),
                }
            }
            let start = Instant::now();
            work(thread.index());
            (start, Instant::now())
        })
    });
    let first = times.iter().map(|t| t.0).min();
    let last = times.iter().map(|t| t.1).max();
    first.zip(last).map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64())
}

fn compute(n: usize, effort: &Effort) -> Result<Vec<ComputePeak>> {
    let mut peaks = Vec::new();
    for kind in [Arithmetic::F32, Arithmetic::Bf16Dot, Arithmetic::Int8Dot] {
        let per_round = kind.run(1);
        if !kind.available() {
            continue;
        }
        const ROUNDS: usize = 64;
        let time = measure(effort, |runs| {
            Ok(together(n, |_| {
                kind.run(ROUNDS * runs);
            }))
        })?;
        let operations = per_round * (ROUNDS * n) as f64;
        peaks.push(ComputePeak { kind: kind.name().into(), rate: time.rate(operations) });
    }
    Ok(peaks)
}

/// The arrays of one thread. They start in different places of a page: equal low address bits make loads wait for stores.
struct Arrays {
    a: Buffer,
    b: Buffer,
    c: Buffer,
}

const PAGE_OFFSETS: [usize; 3] = [0, 17 * 16, 34 * 16];

impl Arrays {
    fn new(bytes: usize) -> Result<Self> {
        let room = |part: usize| Buffer::zeroed((bytes / part + 8192) as u64);
        Ok(Arrays { a: room(1)?, b: room(1)?, c: room(3)? })
    }

    /// The first `n` floats of each array.
    ///
    /// # Safety
    /// One thread at a time, and no more floats than were allocated.
    #[allow(clippy::mut_from_ref)]
    unsafe fn parts(&self, n: usize) -> (&mut [f32], &[f32], &[f32]) {
        let start = |buffer: &Buffer, i: usize| buffer.as_ptr().cast::<f32>().wrapping_add(PAGE_OFFSETS[i]);
        let third = n.min((self.c.bytes().len() / 4).saturating_sub(PAGE_OFFSETS[2]));
        // SAFETY: `new` left room for the offsets.
        unsafe {
            (
                std::slice::from_raw_parts_mut(start(&self.a, 0), n),
                std::slice::from_raw_parts(start(&self.b, 1), n),
                std::slice::from_raw_parts(start(&self.c, 2), third),
            )
        }
    }
}

/// Smallest working set.
const SMALLEST: usize = 4 << 10;
/// Below this, stores that bypass the caches cannot be the best ones.
const STREAM_FROM: usize = 1 << 20;

/// The largest working set is measured so many times more, the best counts.
const LATER_ROUNDS: usize = 3;

const ACCESSES: [(Access, Traffic); 5] = [
    (Access::Read, Traffic::Read),
    (Access::Write, Traffic::Write),
    (Access::Copy, Traffic::Copy),
    (Access::Triad, Traffic::Triad),
    (Access::Update, Traffic::Update),
];

fn ladder(n: usize, scope: &Scope) -> Result<Vec<MemoryPoint>> {
    let largest = scope.largest_working_set();
    let arrays: Vec<Arrays> = (0..n).map(|_| Arrays::new(largest / n)).collect::<Result<_>>()?;
    // Each thread touches its own memory first, so that it lies near; pages nobody wrote to would all be one page of zeros.
    together(n, |t| {
        for buffer in [&arrays[t].a, &arrays[t].b, &arrays[t].c] {
            // SAFETY: each thread has its own arrays, and writes inside the buffer.
            unsafe { std::ptr::write_bytes(buffer.as_ptr(), 0, buffer.bytes().len()) };
        }
    });
    let effort = Effort { seconds: scope.point_seconds(), samples: 15, sample_seconds: scope.point_seconds() / 15.0 };
    let one = |working_set: usize, access: Access, traffic: Traffic, streaming: bool| -> Result<Option<MemoryPoint>> {
        let floats = working_set / 4 / n / traffic.arrays() / peak::UNROLL * peak::UNROLL;
        if floats == 0 {
            return Ok(None);
        }
        let held = floats * 4 * n * traffic.arrays();
        let moved = floats * 4 * n * traffic.moves();
        let time = measure(&effort, |passes| {
            Ok(together(n, |t| {
                // SAFETY: each thread has its own arrays, of at least `floats` floats in those that are touched.
                let (a, b, c) = unsafe { arrays[t].parts(floats) };
                peak::traffic(traffic, streaming, a, b, c, passes);
            }))
        })?;
        Ok(Some(MemoryPoint { access, streaming, working_set: held as u64, rate: time.rate(moved as f64) }))
    };
    let mut points = Vec::new();
    let mut places = Vec::new();
    for working_set in scope.working_sets(SMALLEST, largest) {
        for (access, traffic) in ACCESSES {
            let stores = !matches!(access, Access::Read | Access::Update);
            let stores = stores && peak::can_stream() && working_set >= STREAM_FROM;
            for streaming in [false, true] {
                if streaming && !stores {
                    continue;
                }
                if let Some(point) = one(working_set, access, traffic, streaming)? {
                    points.push(point);
                    places.push((working_set, access, traffic, streaming));
                }
            }
        }
    }
    // Memory behind the caches is the roof of most operators: what runs beside the program for a moment must not lower it.
    let last = places.last().map_or(0, |p| p.0);
    for _ in 0..LATER_ROUNDS {
        for (point, &(working_set, access, traffic, streaming)) in points.iter_mut().zip(&places) {
            if working_set == last
                && let Some(again) = one(working_set, access, traffic, streaming)?
                && again.rate.best > point.rate.best
            {
                *point = again;
            }
        }
    }
    Ok(points)
}

/// Seconds of a read for strides of 2^0 to 2^10 floats over an array that no cache should hold.
fn strides(scope: &Scope) -> Result<Vec<StridePoint>> {
    const BYTES: usize = 128 << 20;
    let buffer = Buffer::zeroed(BYTES.min(scope.largest_working_set()) as u64)?;
    let floats = buffer.bytes().len() / 4;
    // SAFETY: this thread only; written so that pages are distinct.
    let x = unsafe {
        std::ptr::write_bytes(buffer.as_ptr(), 1, buffer.bytes().len());
        std::slice::from_raw_parts(buffer.as_ptr().cast::<f32>(), floats)
    };
    (0..=10)
        .map(|log| {
            let stride = 1usize << log;
            let mut reads = 0;
            let effort = Effort { seconds: scope.point_seconds(), samples: 9, sample_seconds: 1e-4 };
            let time = measure(&effort, |passes| {
                let start = Instant::now();
                for _ in 0..passes {
                    reads = peak::strided(x, stride);
                }
                Ok(start.elapsed().as_secs_f64())
            })?;
            Ok(StridePoint { stride_bytes: 4 * stride as u64, seconds: time.median / reads.max(1) as f64 })
        })
        .collect()
}

fn overheads(n: usize, effort: &Effort) -> Result<Vec<Overhead>> {
    let call = super::nothing::seconds_per_call(&crate::device::Device::Cpu, effort)?;
    let mut overheads = vec![Overhead { kind: "call".into(), time: call }];
    if n > 1 {
        let time = measure(effort, |runs| {
            let start = Instant::now();
            for _ in 0..runs {
                threads::par_blocks(n, 1, threads::MIN_PARALLEL_COST, |i, _| {
                    std::hint::black_box(i);
                });
            }
            Ok(start.elapsed().as_secs_f64())
        })?;
        overheads.push(Overhead { kind: "fork and join".into(), time });
    }
    Ok(overheads)
}
