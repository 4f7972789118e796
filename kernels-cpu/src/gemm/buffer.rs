//! Memory for packed blocks, kept by each thread from one product to the next: fresh pages would cost a large product several per
//! cent of its time.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Floats aligned to a page, not initialised.
#[derive(Default)]
pub(super) struct Buffer {
    memory: Option<(NonNull<f32>, Layout)>,
}

const ALIGNMENT: usize = 4096;

impl Buffer {
    /// A pointer to at least `len` floats. What was in the buffer is lost.
    pub fn reserve(&mut self, len: usize) -> *mut f32 {
        if let Some((memory, layout)) = self.memory
            && layout.size() >= 4 * len
        {
            return memory.as_ptr();
        }
        self.free();
        let layout = Layout::from_size_align(4 * len.max(1), ALIGNMENT).expect("no more floats than memory has");
        // SAFETY: the layout is not empty.
        let Some(memory) = NonNull::new(unsafe { alloc(layout) }.cast()) else { handle_alloc_error(layout) };
        self.memory = Some((memory, layout));
        memory.as_ptr()
    }

    /// Gives memory beyond `keep` floats back.
    fn shrink(&mut self, keep: usize) {
        if self.memory.is_some_and(|(_, layout)| layout.size() > 4 * keep) {
            self.free();
        }
    }

    fn free(&mut self) {
        if let Some((memory, layout)) = self.memory.take() {
            // SAFETY: allocated above with this layout.
            unsafe { dealloc(memory.as_ptr().cast(), layout) };
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.free();
    }
}

/// What a thread needs for its tasks.
#[derive(Default)]
pub(super) struct Buffers {
    /// A packed block of `a`.
    pub a: Buffer,
    /// Sums of a result in 16 bits.
    pub sums: Buffer,
}

thread_local! {
    static TASK: RefCell<Buffers> = RefCell::default();
    /// Packed panels of `b`, shared by all threads that work on the product.
    static PANELS: RefCell<Buffer> = RefCell::default();
}

/// Calls `f` with the buffers of this thread, which it has to itself: a product that starts on this thread meanwhile gets others.
pub(super) fn with_task_buffers<R>(f: impl FnOnce(&mut Buffers) -> R) -> R {
    let mut buffers = TASK.take();
    let result = f(&mut buffers);
    TASK.set(buffers);
    result
}

/// As [`with_task_buffers`], for panels of `b`; of more than `keep` floats none are kept.
pub(super) fn with_panels<R>(keep: usize, f: impl FnOnce(&mut Buffer) -> R) -> R {
    let mut panels = PANELS.take();
    let result = f(&mut panels);
    panels.shrink(keep);
    PANELS.set(panels);
    result
}
