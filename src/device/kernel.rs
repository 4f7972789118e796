//! What a device asks of an operator: three ways to run it. `graph::Op` adds what a graph asks.

use super::gpu::Lowering;
use crate::Result;
use crate::tensor::{RefTensor, TensorType};

/// Why a GPU cannot run an operator as asked; the executor then runs its CPU twin and says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsupported(pub String);

pub trait Kernel: std::fmt::Debug + Send + Sync + 'static {
    /// The operator's name in listings and errors.
    fn name(&self) -> &'static str;

    /// Which of its forms an operator that has several is in.
    fn form(&self) -> Option<&'static str> {
        None
    }

    /// The input of which only the rows are read that another input names, if there is one.
    fn looks_up(&self) -> Option<LookUp> {
        None
    }

    /// The definition: naive loops in f64, written to be read. Returns one tensor for every entry of `outputs`.
    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor>;

    /// Runs on the CPU by calling `kernels-cpu`.
    fn cpu(&self, call: &mut CpuCall) -> Result<()>;

    /// Writes the dispatches that run it on a GPU. Pure: needs no device, so variants can be listed and validated anywhere.
    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported>;
}

/// Which input of an operator is a table, and which has the i32 ids of the rows that are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LookUp {
    pub table: usize,
    pub ids: usize,
}

/// One tensor operand of a CPU call. The memory is owned by the executor and outlives the call.
#[derive(Clone, Debug)]
pub struct Operand {
    pub ty: TensorType,
    pub(crate) ptr: *mut u8,
}

// SAFETY: operands are only dereferenced inside `Executable::run`, which has exclusive access to the buffers.
unsafe impl Send for Operand {}
unsafe impl Sync for Operand {}

/// The operands of one operator on the CPU.
#[derive(Clone, Debug)]
pub struct CpuCall {
    pub inputs: Vec<Operand>,
    pub outputs: Vec<Operand>,
}

impl CpuCall {
    pub fn input(&self, i: usize) -> &TensorType {
        &self.inputs[i].ty
    }
    pub fn output(&self, i: usize) -> &TensorType {
        &self.outputs[i].ty
    }
    /// Values of an f32 input. Must not be used for an input that `in_place` lets an output overwrite.
    pub fn f32(&self, i: usize) -> &[f32] {
        self.slice(i)
    }
    pub fn i32(&self, i: usize) -> &[i32] {
        self.slice(i)
    }
    pub fn u32(&self, i: usize) -> &[u32] {
        self.slice(i)
    }
    pub fn i8(&self, i: usize) -> &[i8] {
        self.slice(i)
    }
    /// The bits of a 16-bit floating-point input.
    pub fn bits16(&self, i: usize) -> &[u16] {
        self.slice(i)
    }
    fn slice<T>(&self, i: usize) -> &[T] {
        let o = &self.inputs[i];
        assert_eq!(std::mem::size_of::<T>(), o.ty.dtype.bytes(), "operand {i} is {}", o.ty);
        assert!(self.outputs.iter().all(|out| out.ptr != o.ptr), "operand {i} is written in place: use `input_ptr`");
        // SAFETY: the executor allocated `ty.bytes()` bytes, aligned to 64; tensors start at their buffer's first byte, so no
        // output overlaps them when none has the same address.
        unsafe { std::slice::from_raw_parts(o.ptr.cast(), o.ty.elements()) }
    }
    /// An output and the inputs at once: outputs never overlap each other.
    #[allow(clippy::mut_from_ref)]
    pub fn out_f32(&self, o: usize) -> &mut [f32] {
        self.out_slice(o)
    }
    #[allow(clippy::mut_from_ref)]
    pub fn out_i32(&self, o: usize) -> &mut [i32] {
        self.out_slice(o)
    }
    #[allow(clippy::mut_from_ref)]
    pub fn out_u32(&self, o: usize) -> &mut [u32] {
        self.out_slice(o)
    }
    #[allow(clippy::mut_from_ref)]
    pub fn out_i8(&self, o: usize) -> &mut [i8] {
        self.out_slice(o)
    }
    /// The bits of a 16-bit floating-point output.
    #[allow(clippy::mut_from_ref)]
    pub fn out_bits16(&self, o: usize) -> &mut [u16] {
        self.out_slice(o)
    }
    #[allow(clippy::mut_from_ref)]
    fn out_slice<T>(&self, o: usize) -> &mut [T] {
        let t = &self.outputs[o];
        assert_eq!(std::mem::size_of::<T>(), t.ty.dtype.bytes(), "output {o} is {}", t.ty);
        // SAFETY: as above; outputs never share a buffer, and each output is asked for once per call by the operators.
        unsafe { std::slice::from_raw_parts_mut(t.ptr.cast(), t.ty.elements()) }
    }
    pub fn input_ptr(&self, i: usize) -> *const u8 {
        self.inputs[i].ptr
    }
    pub fn output_ptr(&self, o: usize) -> *mut u8 {
        self.outputs[o].ptr
    }
    /// Whether output `o` lives in the memory of input `i` (an in-place call).
    pub fn aliases(&self, i: usize, o: usize) -> bool {
        std::ptr::eq(self.inputs[i].ptr, self.outputs[o].ptr)
    }
}
