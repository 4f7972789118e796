//! A team of threads that runs the blocks of one piece of work at a time. Between pieces its workers spin for some tens of
//! microseconds before they sleep: the kernels of a training step follow each other within that time, and waking a sleeping thread
//! costs more than many of them take.
//!
//! Nobody waits for a worker that has not yet come: whoever leads takes blocks too, closes the work when none is left, and then waits
//! for those alone that had joined. So a team on a busy machine loses little over one thread.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps.
const SPIN: Duration = Duration::from_micros(60);

/// [`Shared::state`]: the workers that have joined in the low bits, then whether the work takes more, then its number.
const OPEN: u64 = 1 << 16;
const NUMBER: u64 = 1 << 17;
const JOINED: u64 = OPEN - 1;

thread_local! {
    /// Whether this thread runs a block now.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is running a block of a team: work that it starts then stays with it.
pub(crate) fn inside() -> bool {
    INSIDE.get()
}

/// The work that is open: a function of the block's index, and how many blocks there are.
#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    blocks: usize,
}

struct Worker {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

struct Shared {
    state: AtomicU64,
    /// The next block that nobody has taken.
    next: AtomicUsize,
    /// Written by whoever leads while the work is closed and nobody is in it.
    job: UnsafeCell<Option<Job>>,
    /// What a worker's block panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    workers: Vec<Worker>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while `state` keeps every worker out (closed, none joined), and read only by those that joined.
unsafe impl Sync for Shared {}
// SAFETY: as above; the function it points to is `Sync` and outlives the work.
unsafe impl Send for Shared {}

/// Threads that share work with whoever calls [`Team::run`].
pub(crate) struct Team {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// Whether someone leads the team now.
    busy: AtomicBool,
}

impl Team {
    /// A team of `threads`, the caller of [`run`](Team::run) among them. Smaller when the system refuses to start as many.
    pub(crate) fn new(threads: usize) -> Self {
        let worker = |_| Worker { asleep: AtomicBool::new(false), thread: OnceLock::new() };
        let count = threads.clamp(1, JOINED as usize) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            workers: (0..count).map(worker).collect(),
            stop: AtomicBool::new(false),
        });
        let start = |i| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("kernels-cpu-{}", i + 1)).spawn(move || work(&shared, i)).ok()
        };
        let handles = (0..count).map_while(start).collect();
        Team { shared, handles, busy: AtomicBool::new(false) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `f` once for every index below `blocks`, on any of the team's threads, and returns when all calls have. Runs them all on
    /// the caller's thread when the team is led by another thread now, or the caller is inside a block.
    pub(crate) fn run(&self, blocks: usize, f: &(dyn Fn(usize) + Sync)) {
        let alone = blocks <= 1 || self.handles.is_empty() || inside();
        if alone || self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return (0..blocks).for_each(f);
        }
        let shared = &*self.shared;
        // SAFETY: the lifetime ends with this call, which returns only when nobody is in the work any more.
        let run: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f as *const (dyn Fn(usize) + Sync)) };
        // SAFETY: only one thread leads (`busy`), and the work before was closed and left.
        unsafe { *shared.job.get() = Some(Job { run, blocks }) };
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) & !(OPEN | JOINED)).wrapping_add(NUMBER);
        shared.state.store(number | OPEN, Ordering::Release);
        // Orders the opening before the looks at `asleep`; a worker says that it sleeps before it looks at the state again.
        fence(Ordering::SeqCst);
        for worker in shared.workers.iter().take((blocks - 1).min(self.handles.len())) {
            if worker.asleep.load(Ordering::Relaxed)
                && worker.asleep.swap(false, Ordering::Relaxed)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        let own = take_blocks(shared, f, blocks);
        shared.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut waited = 0u32;
        while shared.state.load(Ordering::Acquire) & JOINED != 0 {
            waited += 1;
            // A worker whose core was taken away needs one more than this thread needs its own.
            if waited.is_multiple_of(1 << 10) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = own.or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches what its blocks panic with, so it ends in order.
            let _ = handle.join();
        }
    }
}

/// Runs blocks until none is left; what the first that panicked said.
fn take_blocks(shared: &Shared, f: &(dyn Fn(usize) + Sync), blocks: usize) -> Option<Box<dyn Any + Send>> {
    INSIDE.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let block = shared.next.fetch_add(1, Ordering::Relaxed);
            if block >= blocks {
                break;
            }
            f(block);
        }
    }));
    INSIDE.set(false);
    if result.is_err() {
        shared.next.store(blocks, Ordering::Relaxed);
    }
    result.err()
}

/// The life of worker `index`.
fn work(shared: &Shared, index: usize) {
    let me = &shared.workers[index];
    me.thread.get_or_init(std::thread::current);
    // The number of the last work that this worker was in.
    let mut last = 0;
    let mut idle = Instant::now();
    let mut spins = 0u32;
    while !shared.stop.load(Ordering::SeqCst) {
        let state = shared.state.load(Ordering::Relaxed);
        let number = state & !(OPEN | JOINED);
        if state & OPEN != 0 && number != last {
            if shared.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            last = number;
            // SAFETY: this worker has joined: the job stays until it leaves.
            if let Some(Job { run, blocks }) = unsafe { *shared.job.get() } {
                // SAFETY: as above.
                if let Some(panic) = take_blocks(shared, unsafe { &*run }, blocks) {
                    shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                }
            }
            shared.state.fetch_sub(1, Ordering::Release);
            (idle, spins) = (Instant::now(), 0);
            continue;
        }
        std::hint::spin_loop();
        spins += 1;
        if spins.is_multiple_of(64) && idle.elapsed() > SPIN {
            me.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let state = shared.state.load(Ordering::Relaxed);
            let nothing = state & OPEN == 0 || state & !(OPEN | JOINED) == last;
            while nothing && me.asleep.load(Ordering::Relaxed) && !shared.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            me.asleep.store(false, Ordering::Relaxed);
            (idle, spins) = (Instant::now(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_runs_every_block_once_whether_its_workers_spin_or_sleep() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for round in 0..300 {
                if round % 100 == 0 {
                    // long enough for the workers to fall asleep
                    std::thread::sleep(4 * SPIN);
                }
                let counts: Vec<AtomicUsize> = (0..round % 37).map(|_| AtomicUsize::new(0)).collect();
                team.run(counts.len(), &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.into_iter().all(|c| c.into_inner() == 1));
            }
        }
    }

    #[test]
    fn several_callers_may_use_one_team_and_blocks_may_start_work() {
        let team = Team::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        team.run(7, &|i| {
                            team.run(3, &|j| {
                                sum.fetch_add(10 * i + j, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.into_inner(), 10 * 21 * 3 + 7 * 3);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_block_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3);
        for bad in 0..6 {
            let caught = catch_unwind(AssertUnwindSafe(|| team.run(6, &|i| assert_ne!(i, bad, "block {bad} is bad"))));
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains("is bad"), "{message}");
            let done = AtomicUsize::new(0);
            team.run(9, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 9);
        }
    }
}
