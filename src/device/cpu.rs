//! The CPU executor: calls `kernels-cpu` in plan order on 64-byte aligned buffers allocated once.

use super::kernel::Operand;
use super::{CpuCall, Executable, Home, Memory, Place, Store, Work};
use crate::tensor::HostTensor;
use crate::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Arc;

/// A block of memory aligned to a cache line, which is also the widest SIMD register.
#[derive(Debug)]
pub struct Buffer {
    ptr: *mut u8,
    bytes: usize,
}

// SAFETY: the pointer is owned; concurrent access is ruled out by the executor (see `Operand`).
unsafe impl Send for Buffer {}
unsafe impl Sync for Buffer {}

impl Buffer {
    /// # Errors
    /// `Error::Device` when the system has no memory for it.
    pub fn zeroed(bytes: u64) -> Result<Self> {
        let bytes = bytes as usize;
        // SAFETY: the layout has a non-zero size and a power-of-two alignment.
        let ptr = unsafe { alloc_zeroed(Self::layout(bytes)) };
        if ptr.is_null() {
            return Err(Error::Device(format!(
                "no memory for a buffer of {bytes} bytes; use a smaller batch (--set train.batch_size=N) or context"
            )));
        }
        Ok(Buffer { ptr, bytes })
    }
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes.max(64), 64).expect("a buffer is smaller than the address space")
    }
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with this size and zero-initialised.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes) }
    }
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }
    /// # Safety
    /// No other reference into the buffer may be alive.
    pub unsafe fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes);
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr, bytes.len()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with the same layout.
        unsafe { dealloc(self.ptr, Self::layout(self.bytes)) }
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
                Home::Input(_) | Home::Transient => Arc::new(Buffer::zeroed(spec.bytes)?),
            });
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
}

impl Executable for Runner {
    fn write_input(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let place = self.work.input(name, &value.ty())?;
        // SAFETY: `&mut self`: no run is in progress.
        unsafe { self.buffers[place.buffer].write(&value.to_bytes()) };
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        for (call, operands) in self.work.calls.iter().zip(&mut self.calls) {
            call.kernel.cpu(operands).map_err(|e| match e {
                Error::Graph(m) => Error::Graph(format!("node '{}': {m}", call.label)),
                other => other,
            })?;
        }
        for (from, to) in &self.work.copies {
            // SAFETY: distinct buffers, no operator is running.
            unsafe { self.buffers[to.buffer].write(&self.buffers[from.buffer].bytes()[..from.ty.bytes() as usize]) };
        }
        Ok(())
    }

    fn read_output(&mut self, name: &str) -> Result<HostTensor> {
        let place = self.work.output(name)?;
        Ok(HostTensor::from_bytes(&place.ty, self.buffers[place.buffer].bytes()))
    }

    fn allocated_bytes(&self) -> u64 {
        self.buffers.iter().map(|b| b.bytes as u64).sum()
    }
}
