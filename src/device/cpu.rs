//! The CPU executor: calls `kernels-cpu` in plan order on 64-byte aligned buffers allocated once.

use super::kernel::Operand;
use super::{CallTime, CpuCall, Executable, FileRows, Home, Memory, Place, Store, Work};
use crate::tensor::HostTensor;
use crate::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
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

/// Rows of a buffer that are read from a file when they are first needed.
#[derive(Debug)]
struct Late {
    rows: FileRows,
    /// A bit for every row.
    present: Mutex<Vec<u64>>,
}

/// Memory of one tensor, aligned to a cache line.
#[derive(Debug)]
pub struct Buffer {
    /// Inside `block`.
    ptr: *mut u8,
    bytes: usize,
    block: Arc<Block>,
    late: Option<Late>,
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
            Buffer { ptr, bytes, block: block.clone(), late: None }
        });
        Ok(buffers.collect())
    }

    /// A buffer of rows that are read when they are first needed. It is never written.
    pub fn late(bytes: u64, rows: FileRows) -> Result<Self> {
        let mut buffer = Self::zeroed(bytes)?;
        // A row here and there would bring a huge page each.
        #[cfg(target_os = "linux")]
        buffer.advise(libc::MADV_NOHUGEPAGE);
        let count = (rows.part.byte_len() / rows.row_bytes.max(1) as u64) as usize;
        buffer.late = Some(Late { rows, present: Mutex::new(vec![0; count.div_ceil(64)]) });
        Ok(buffer)
    }

    /// Whether it may be written.
    pub fn is_writable(&self) -> bool {
        self.late.is_none()
    }

    /// Reads what is missing of these rows; such as do not exist are left out.
    fn bring(&self, rows: impl Iterator<Item = usize>) -> Result<()> {
        let Some(late) = &self.late else { return Ok(()) };
        let (part, row_bytes) = (&late.rows.part, late.rows.row_bytes);
        let count = self.late_rows().len();
        let mut present = late.present.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows.filter(|&row| row < count) {
            let (word, bit) = (row / 64, 1 << (row % 64));
            if present[word] & bit == 0 {
                // SAFETY: inside the buffer, as the rows are; nobody reads a row that is not present.
                let into = unsafe { std::slice::from_raw_parts_mut(self.ptr.add(row * row_bytes), row_bytes) };
                part.read_at((row * row_bytes) as u64, into)?;
                present[word] |= bit;
            }
        }
        Ok(())
    }

    fn late_rows(&self) -> Range<usize> {
        let rows = |late: &Late| (late.rows.part.byte_len() / late.rows.row_bytes.max(1) as u64) as usize;
        0..self.late.as_ref().map_or(0, rows)
    }

    /// Reads all that is missing.
    pub fn bring_all(&self) -> Result<()> {
        self.bring(self.late_rows())
    }

    /// Says that all of its block will be written: memory comes in huge pages then, which makes reading it some percent faster.
    pub fn expect_whole(&self) {
        #[cfg(target_os = "linux")]
        self.advise(libc::MADV_HUGEPAGE);
    }

    /// Advice on the pages of its block.
    #[cfg(target_os = "linux")]
    fn advise(&self, advice: libc::c_int) {
        if self.block.layout.size() >= LARGE {
            const PAGE: usize = 4096;
            let from = self.block.start as usize / PAGE * PAGE;
            let length = self.block.start as usize + self.block.layout.size() - from;
            // SAFETY: advice changes no content, and pages at the ends belong to this process's heap like the rest.
            unsafe { libc::madvise(from as *mut libc::c_void, length, advice) };
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
        assert!(self.is_writable(), "rows of a file are only read");
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
    /// Of every call, the buffers with rows of a file, and which of its inputs names those it reads (none: it reads all).
    late: Vec<Vec<(usize, Option<usize>)>>,
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
                return Err(Error::Graph(format!("{home:?} comes from a file row by row and would be written")));
            }
        }
        let whole = work.copies.iter().map(|(from, _)| from).chain(work.outputs.iter().map(|(_, place)| place));
        for place in whole {
            buffers[place.buffer].bring_all()?;
        }
        let late = work.calls.iter().map(|call| {
            let inputs = call.inputs.iter().enumerate().filter(|(_, place)| !buffers[place.buffer].is_writable());
            let ids = |input| call.kernel.looks_up().filter(|looked| looked.table == input).map(|looked| looked.ids);
            inputs.map(|(input, place)| (place.buffer, ids(input))).collect()
        });
        let late = late.collect();
        let operand = |p: &Place| Operand { ty: p.ty.clone(), ptr: buffers[p.buffer].ptr };
        let calls = work
            .calls
            .iter()
            .map(|c| CpuCall {
                inputs: c.inputs.iter().map(operand).collect(),
                outputs: c.outputs.iter().map(operand).collect(),
            })
            .collect();
        Ok(Runner { work, buffers, calls, late })
    }

    /// Runs the calls in order and tells `after` when each has ended.
    fn run_calls(&mut self, mut after: impl FnMut(usize)) -> Result<()> {
        for (i, (call, operands)) in self.work.calls.iter().zip(&mut self.calls).enumerate() {
            for &(buffer, ids) in &self.late[i] {
                match ids {
                    Some(ids) => {
                        self.buffers[buffer].bring(operands.i32(ids).iter().filter_map(|&id| id.try_into().ok()))?
                    }
                    None => self.buffers[buffer].bring_all()?,
                }
            }
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
    use crate::device::{Device, FileRows, Store};
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
    fn rows_of_a_file_are_read_when_they_are_needed_and_never_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let numbers: Vec<f32> = (0..12).map(|i| i as f32).collect();
        std::fs::write(file.path(), [&[0u8; 3], bytemuck::cast_slice::<f32, u8>(&numbers)].concat()).unwrap();
        let source = formats::Source::open(file.path()).unwrap();
        assert!(source.part(3, 49).is_none() && source.part(u64::MAX, 2).is_none());
        let rows = |at, length, row_bytes| FileRows { part: source.part(at, length).unwrap(), row_bytes };
        let ty = TensorType::f32(&[4, 3]);
        for (device, rows) in
            [(Device::Cpu, rows(3, 44, 12)), (Device::Reference, rows(3, 48, 12)), (Device::Cpu, rows(3, 48, 13))]
        {
            assert!(Store::new(&device).declare_late("table", &ty, rows).is_err());
        }
        let mut store = Store::new(&Device::Cpu);
        store.declare_late("table", &ty, rows(3, 48, 12)).unwrap();

        let plan = |read: &str| {
            let mut g = Graph::new();
            let ids = g.input("ids", TensorType::i32(&[2]));
            let table = g.variable("table", Role::State, ty.clone()).unwrap();
            let rows = g.embedding(table, ids).unwrap();
            g.output("rows", rows);
            let twice = g.add(table, table).unwrap();
            match read {
                "rows" => {}
                "twice" => g.output("twice", twice),
                _ => g.update(table, twice).unwrap(),
            }
            Plan::new(&g).unwrap()
        };
        let look_up = |store: &mut Store, ids: [i32; 2]| {
            let mut run = plan("rows").prepare(store).unwrap();
            run.write_input("ids", &HostTensor::i32(&[2], ids.to_vec())).unwrap();
            run.run().map(|()| run.read_output("rows").unwrap().as_f32().unwrap().to_vec())
        };
        assert_eq!(look_up(&mut store, [3, 1]).unwrap(), [9.0, 10.0, 11.0, 3.0, 4.0, 5.0]);
        for id in [-1, 4] {
            assert!(look_up(&mut store, [1, id]).unwrap_err().to_string().contains("embedding"));
        }
        let refused = [
            plan("update").prepare(&mut store).map(|_| ()),
            store.write("table", &HostTensor::f32(&[4, 3], vec![0.0; 12])),
            store.fill("table", |_| Ok(())),
        ];
        for refused in refused {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("table") && message.contains("written"), "{message}");
        }

        // What is present stays when the file is cut; what is missing is told.
        std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(3 + 24).unwrap();
        assert_eq!(look_up(&mut store, [0, 3]).unwrap(), [0.0, 1.0, 2.0, 9.0, 10.0, 11.0]);
        let message = look_up(&mut store, [0, 2]).unwrap_err().to_string();
        assert!(message.contains(&*file.path().to_string_lossy()), "{message}");
        assert!(store.read("table").is_err());

        // Who reads all gets all.
        std::fs::write(file.path(), [&[0u8; 3], bytemuck::cast_slice::<f32, u8>(&numbers)].concat()).unwrap();
        let mut run = plan("twice").prepare(&mut store).unwrap();
        run.write_input("ids", &HostTensor::i32(&[2], vec![0, 0])).unwrap();
        run.run().unwrap();
        let twice: Vec<f32> = numbers.iter().map(|x| 2.0 * x).collect();
        assert_eq!(run.read_output("twice").unwrap().as_f32().unwrap(), twice);
        assert_eq!(store.read("table").unwrap().as_f32().unwrap(), numbers);
    }
}
