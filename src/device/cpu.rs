//! The CPU executor: calls `kernels-cpu` in plan order on 64-byte aligned buffers allocated once.

use super::kernel::Operand;
use super::{CallTime, CpuCall, Executable, Home, Memory, Place, Store, Work};
use crate::tensor::HostTensor;
use crate::{Error, Result};
use formats::MappedBytes;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;
use std::time::Instant;

/// A cache line, which is also the widest SIMD register.
const LINE: usize = 64;
/// From this size on a block begins where a huge page can.
const LARGE: usize = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Memory of the allocator, zeroed. Pages that are never written take none, such as those of a cache whose context is not reached.
#[derive(Debug)]
struct Block {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is owned; concurrent access is ruled out by the executor (see `Operand`).
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

impl Block {
    /// None when the system has no memory for it.
    fn zeroed(bytes: u64) -> Option<Self> {
        // No more than the allocator's own alignment is asked for: it clears what it aligns further, and so touches every page.
        let layout = Layout::from_size_align(usize::try_from(bytes).ok()?.max(1), 16).ok()?;
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        (!start.is_null()).then_some(Block { start, layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with the same layout.
        unsafe { dealloc(self.start, self.layout) }
    }
}

/// What keeps the memory of a buffer.
#[derive(Debug)]
enum Owner {
    Block(Arc<Block>),
    /// Read-only.
    File(MappedBytes),
}

/// Memory of one tensor: aligned to a cache line, or where it lies in a file, aligned to a word.
#[derive(Debug)]
pub struct Buffer {
    /// Inside what `owner` keeps.
    ptr: *mut u8,
    bytes: usize,
    owner: Owner,
}

// SAFETY: as for `Block`.
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    /// # Errors
    /// `Error::Device` when the system has no memory for it.
    pub fn zeroed(bytes: u64) -> Result<Self> {
        let mut buffers = Self::zeroed_together(&[bytes])?;
        buffers.pop().ok_or_else(|| Error::Device("a buffer just made is gone".into()))
    }

    /// Buffers one after the other in a single block: small ones share huge pages.
    ///
    /// # Errors
    /// `Error::Device` when the system has no memory for them.
    pub fn zeroed_together(sizes: &[u64]) -> Result<Vec<Self>> {
        let sum = |sum: u64, bytes: &u64| sum.checked_add(bytes.checked_next_multiple_of(LINE as u64)?);
        let total = sizes.iter().try_fold(0u64, sum);
        let align = if total.is_some_and(|t| t >= LARGE as u64) { HUGE_PAGE } else { LINE };
        let Some(block) = total.and_then(|t| t.checked_add(align as u64)).and_then(Block::zeroed) else {
            return Err(Error::Device(format!(
                "no memory for a buffer of {} bytes; use a smaller batch (--set train.batch_size=N) or context",
                total.unwrap_or(u64::MAX)
            )));
        };
        let block = Arc::new(block);
        let mut at = block.start.align_offset(align);
        let buffers = sizes.iter().map(|bytes| {
            let bytes = *bytes as usize;
            // SAFETY: the block is larger than all of them by `align`.
            let ptr = unsafe { block.start.add(at) };
            at += bytes.next_multiple_of(LINE);
            Buffer { ptr, bytes, owner: Owner::Block(block.clone()) }
        });
        Ok(buffers.collect())
    }

    /// What lies in a file, to be read only; none where it begins within a word.
    pub fn mapped(bytes: MappedBytes) -> Option<Self> {
        let aligned = bytes.as_ptr().addr().is_multiple_of(size_of::<u32>());
        aligned.then(|| Buffer { ptr: bytes.as_ptr().cast_mut(), bytes: bytes.len(), owner: Owner::File(bytes) })
    }

    /// Whether it may be written.
    pub fn is_writable(&self) -> bool {
        matches!(self.owner, Owner::Block(_))
    }

    /// Gives back the memory of what lies in a file; it comes again when it is touched.
    fn release(&self) {
        if let Owner::File(bytes) = &self.owner {
            bytes.release();
        }
    }

    /// Says that all of its block will be written: memory comes in huge pages then, which makes reading it some percent faster.
    pub fn expect_whole(&self) {
        #[cfg(target_os = "linux")]
        if let Owner::Block(block) = &self.owner
            && block.layout.size() >= LARGE
        {
            const PAGE: usize = 4096;
            let from = block.start as usize / PAGE * PAGE;
            let length = block.start as usize + block.layout.size() - from;
            // SAFETY: advice changes no content, and pages at the ends belong to this process's heap like the rest.
            unsafe { libc::madvise(from as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
        }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size and zero-initialised.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }
    /// # Safety
    /// No other reference into the buffer may be alive.
    ///
    /// # Panics
    /// If it may not be written.
    #[allow(clippy::mut_from_ref, reason = "the executor rules out other references")]
    pub unsafe fn bytes_mut(&self) -> &mut [u8] {
        assert!(self.is_writable(), "a buffer in a file is only read");
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.bytes) }
    }
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }
    /// # Safety
    /// No other reference into the buffer may be alive.
    ///
    /// # Panics
    /// If it may not be written, or is shorter.
    pub unsafe fn write(&self, bytes: &[u8]) {
        assert!(self.is_writable() && bytes.len() <= self.bytes);
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr, bytes.len()) }
    }
}

pub struct Runner {
    work: Work,
    buffers: Vec<Arc<Buffer>>,
    calls: Vec<CpuCall>,
}

impl Runner {
    pub fn new(work: Work, store: &mut Store) -> Result<Self> {
        let mut buffers = Vec::new();
        for spec in &work.buffers {
            buffers.push(match &spec.home {
                Home::Variable(name) => match &store.get(name)?.memory {
                    Memory::Cpu(m) => m.clone(),
                    _ => return Err(Error::Graph(format!("variable '{name}' lives on another device"))),
                },
                Home::Constant(value) => {
                    let m = Buffer::zeroed(spec.bytes)?;
                    // SAFETY: just created.
                    unsafe { m.write(&value.to_bytes()) };
                    Arc::new(m)
                }
                Home::Input(_) | Home::Transient => {
                    let m = Buffer::zeroed(spec.bytes)?;
                    m.expect_whole();
                    Arc::new(m)
                }
            });
        }
        let written = work.calls.iter().flat_map(|c| &c.outputs).chain(work.copies.iter().map(|(_, to)| to));
        for place in written {
            if !buffers[place.buffer].is_writable() {
                let home = &work.buffers[place.buffer].home;
                return Err(Error::Graph(format!("{home:?} lies in a file that is only read, and would be written")));
            }
        }
        let operand = |p: &Place| Operand { ty: p.ty.clone(), ptr: buffers[p.buffer].ptr };
        let calls = work
            .calls
            .iter()
            .map(|c| CpuCall {
                inputs: c.inputs.iter().map(operand).collect(),
                outputs: c.outputs.iter().map(operand).collect(),
            })
            .collect();
        Ok(Runner { work, buffers, calls })
    }

    /// Runs the calls in order and tells `after` when each has ended.
    fn run_calls(&mut self, mut after: impl FnMut(usize)) -> Result<()> {
        for (i, (call, operands)) in self.work.calls.iter().zip(&mut self.calls).enumerate() {
            call.kernel.cpu(operands).map_err(|e| match e {
                Error::Graph(m) => Error::Graph(format!("node '{}': {m}", call.label)),
                other => other,
            })?;
            after(i);
        }
        for (from, to) in &self.work.copies {
            // SAFETY: distinct buffers, no operator is running.
            unsafe { self.buffers[to.buffer].write(&self.buffers[from.buffer].bytes()[..from.ty.bytes() as usize]) };
        }
        // A row that was looked up brought its neighbours' pages: after some hundred tokens that is the whole table.
        self.buffers.iter().for_each(|b| b.release());
        Ok(())
    }
}

impl Executable for Runner {
    fn write_input(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let place = self.work.input(name, &value.ty())?;
        // SAFETY: `&mut self`: no run is in progress.
        unsafe { self.buffers[place.buffer].write(&value.to_bytes()) };
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        self.run_calls(|_| ())
    }

    fn profile(&mut self, runs: usize) -> Result<Vec<CallTime>> {
        let runs = runs.max(1);
        let mut seconds = vec![Vec::with_capacity(runs); self.work.calls.len()];
        self.run()?;
        for _ in 0..runs {
            let mut start = Instant::now();
            self.run_calls(|i| {
                let now = Instant::now();
                seconds[i].push((now - start).as_secs_f64());
                start = now;
            })?;
        }
        let calls = self.work.calls.iter().zip(seconds).enumerate();
        Ok(calls
            .map(|(call, (c, mut seconds))| {
                seconds.sort_by(f64::total_cmp);
                let (label, kernel) = (c.label.clone(), c.kernel.name().to_string());
                CallTime { call, label, kernel, seconds: seconds[runs / 2] }
            })
            .collect())
    }

    fn read_output(&mut self, name: &str) -> Result<HostTensor> {
        let place = self.work.output(name)?;
        Ok(HostTensor::from_bytes(&place.ty, self.buffers[place.buffer].bytes()))
    }

    fn allocated_bytes(&self) -> u64 {
        self.buffers.iter().map(|b| b.bytes as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::device::{Device, Store};
    use crate::graph::{Graph, Plan, Role};
    use crate::tensor::{HostTensor, TensorType};

    #[test]
    fn a_profile_times_every_call_and_runs_the_work_as_often_as_asked() {
        let mut g = Graph::new();
        let ty = TensorType::f32(&[300]);
        let (x, sum) = (g.input("x", ty.clone()), g.variable("sum", Role::State, ty.clone()).unwrap());
        let y = g.softmax(x, 0).unwrap();
        let total = g.add(sum, y).unwrap();
        g.update(sum, total).unwrap();
        let mut store = Store::new(&Device::Cpu);
        let plan = Plan::new(&g).unwrap();
        let mut run = plan.prepare(&mut store).unwrap();
        run.write_input("x", &HostTensor::f32(&[300], vec![0.5; 300])).unwrap();
        let times = run.profile(3).unwrap();
        let kernels: Vec<&str> = times.iter().map(|t| t.kernel.as_str()).collect();
        assert_eq!(kernels, plan.work.calls.iter().map(|c| c.kernel.name()).collect::<Vec<_>>());
        assert!(kernels.contains(&"softmax") && times.iter().all(|t| t.seconds.is_finite()));
        // The run that warms up counts too.
        let sum = store.read("sum").unwrap();
        assert!(sum.as_f32().unwrap().iter().all(|v| (v - 4.0 / 300.0).abs() < 1e-8));
    }

    #[test]
    fn a_variable_in_a_file_is_read_where_it_lies_and_never_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let numbers: Vec<f32> = (0..12).map(|i| i as f32).collect();
        std::fs::write(file.path(), [&[0u8; 4], bytemuck::cast_slice::<f32, u8>(&numbers)].concat()).unwrap();
        let source = formats::Source::open(file.path()).unwrap();
        let bytes = |at, length| source.mapped(at, length).unwrap();
        assert!(source.mapped(4, 49).is_none() && source.mapped(u64::MAX, 2).is_none());
        let ty = TensorType::f32(&[4, 3]);
        let mut store = Store::new(&Device::Cpu);
        assert!(store.declare_mapped("table", &ty, bytes(4, 44)).is_err());
        assert!(!store.declare_mapped("table", &ty, bytes(3, 48)).unwrap());
        assert!(!Store::new(&Device::Reference).declare_mapped("table", &ty, bytes(4, 48)).unwrap());
        assert!(store.declare_mapped("table", &ty, bytes(4, 48)).unwrap());
        drop(source);

        let look_up = |update: bool| {
            let mut g = Graph::new();
            let ids = g.input("ids", TensorType::i32(&[2]));
            let table = g.variable("table", Role::State, ty.clone()).unwrap();
            let rows = g.embedding(table, ids).unwrap();
            g.output("rows", rows);
            if update {
                let twice = g.add(table, table).unwrap();
                g.update(table, twice).unwrap();
            }
            Plan::new(&g).unwrap()
        };
        let mut run = look_up(false).prepare(&mut store).unwrap();
        run.write_input("ids", &HostTensor::i32(&[2], vec![3, 1])).unwrap();
        run.run().unwrap();
        assert_eq!(run.read_output("rows").unwrap().as_f32().unwrap(), [9.0, 10.0, 11.0, 3.0, 4.0, 5.0]);
        let refused = [
            look_up(true).prepare(&mut store).map(|_| ()),
            store.write("table", &HostTensor::f32(&[4, 3], vec![0.0; 12])),
            store.fill("table", |_| Ok(())),
        ];
        for refused in refused {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("table") && message.contains("only read"), "{message}");
        }
    }
}
