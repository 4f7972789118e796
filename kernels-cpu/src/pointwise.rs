//! Runs pointwise programs ([`Program`]) over tensors with broadcasting: block by block, with the values of a block in registers of
//! some hundred elements that stay in the first-level cache. Memory is read and written once however long the program is.

use crate::half::{bf16_to_f32, f16_to_f32};
use crate::pointwise_ops as ops;
use crate::program::{Instr, Program};
use crate::threads::par_rows;
use std::cell::Cell;

/// Where an input lies, and as what.
#[derive(Clone, Copy, Debug)]
pub enum InData {
    F32(*const f32),
    I32(*const i32),
    /// bfloat16 bits.
    Bf16(*const u16),
    /// binary16 bits.
    F16(*const u16),
}

/// An input tensor.
#[derive(Clone, Copy, Debug)]
pub struct In<'a> {
    pub data: InData,
    /// The distance in elements between neighbours along each axis of the output shape; 0 where the input is broadcast.
    pub strides: &'a [usize],
}

/// An output tensor, contiguous in the output shape. Floats become integers by truncation toward zero, 16-bit floats by rounding to
/// the nearest.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    F32(*mut f32),
    I32(*mut i32),
    /// bfloat16 bits.
    Bf16(*mut u16),
    /// binary16 bits.
    F16(*mut u16),
}

impl<'a> In<'a> {
    pub fn f32(data: *const f32, strides: &'a [usize]) -> Self {
        In { data: InData::F32(data), strides }
    }

    pub fn i32(data: *const i32, strides: &'a [usize]) -> Self {
        In { data: InData::I32(data), strides }
    }
}

/// The strides of a contiguous tensor of shape `from` when it is broadcast to `to` (right-aligned; axes of size 1 repeat).
/// `None` if it does not broadcast to it.
pub fn broadcast_strides(from: &[usize], to: &[usize]) -> Option<Vec<usize>> {
    let lead = to.len().checked_sub(from.len())?;
    let mut strides = vec![0; to.len()];
    let mut step = 1;
    for i in (0..from.len()).rev() {
        if from[i] == to[lead + i] {
            strides[lead + i] = if from[i] == 1 { 0 } else { step };
        } else if from[i] != 1 {
            return None;
        }
        step *= from[i];
    }
    Some(strides)
}

/// Rows shorter than this are run several to a block.
const MIN_ROW: usize = 512;
/// All registers together stay below this many floats (24 KiB) where the block length allows it.
const REGISTER_FLOATS: usize = 6 * 1024;

/// The output shape after merging axes: the innermost axis apart, and per input the strides.
struct Space {
    outer: Vec<usize>,
    inner: usize,
    /// [input][outer axis]
    outer_strides: Vec<Vec<usize>>,
    inner_strides: Vec<usize>,
}

impl Space {
    fn new(inputs: &[In], shape: &[usize]) -> Self {
        // from the innermost axis out; an axis merges with the one inside it when every input steps through both as through one
        let mut sizes: Vec<usize> = Vec::new();
        let mut strides: Vec<Vec<usize>> = vec![Vec::new(); inputs.len()];
        for axis in (0..shape.len()).rev().filter(|&a| shape[a] != 1) {
            let merges = sizes.last().is_some_and(|&size| {
                inputs.iter().zip(&strides).all(|(i, s)| i.strides[axis] == s[s.len() - 1] * size)
            });
            if merges {
                *sizes.last_mut().expect("merges with it") *= shape[axis];
            } else {
                sizes.push(shape[axis]);
                strides.iter_mut().zip(inputs).for_each(|(s, i)| s.push(i.strides[axis]));
            }
        }
        let inner = sizes.first().copied().unwrap_or(1);
        let inner_strides = strides.iter().map(|s| s.first().copied().unwrap_or(0)).collect();
        let outer_strides = strides.iter().map(|s| s.iter().skip(1).rev().copied().collect()).collect();
        Space { outer: sizes.into_iter().skip(1).rev().collect(), inner, outer_strides, inner_strides }
    }

    fn rows(&self) -> usize {
        self.outer.iter().product()
    }

    fn row_offset(&self, input: usize, mut row: usize) -> usize {
        let mut offset = 0;
        for (size, stride) in self.outer.iter().zip(&self.outer_strides[input]).rev() {
            offset += row % size * stride;
            row /= size;
        }
        offset
    }

    /// Whether the input repeats one element everywhere.
    fn is_scalar(&self, input: usize) -> bool {
        self.inner_strides[input] == 0 && self.outer_strides[input].iter().all(|&s| s == 0)
    }

    /// Whether the input is contiguous in the output shape.
    fn is_linear(&self, input: usize) -> bool {
        let mut step = self.inner;
        let mut linear = self.inner_strides[input] == 1 || self.inner == 1;
        for (&size, &stride) in self.outer.iter().zip(&self.outer_strides[input]).rev() {
            linear &= stride == step;
            step *= size;
        }
        linear
    }
}

/// A program laid out for one call: which values are in which register, which are in the tensors themselves.
struct Layout<'a> {
    program: &'a Program,
    space: Space,
    /// Per instruction: its register, if the value is needed.
    register: Vec<Option<usize>>,
    registers: usize,
    /// Per instruction: the same for every element (constants and scalar inputs).
    constant: Vec<bool>,
    /// Per instruction: read where the tensor lies instead of copying (inputs).
    direct_in: Vec<bool>,
    /// Per instruction: the output whose memory takes the result.
    direct_out: Vec<Option<usize>>,
    /// Whether a block lies within one row (else it may span rows).
    by_row: bool,
}

impl<'a> Layout<'a> {
    fn new(program: &'a Program, inputs: &[In], outputs: &[Out], shape: &[usize]) -> Self {
        assert!(
            inputs.len() == program.inputs && outputs.len() == program.outputs.len(),
            "tensors as the program says"
        );
        assert!(inputs.iter().all(|i| i.strides.len() == shape.len()), "one stride per axis of {shape:?}");
        let space = Space::new(inputs, shape);
        let by_row = space.inner >= MIN_ROW || space.outer.is_empty();
        let n = program.instrs.len();
        // the last instruction that reads each value; n: an output does
        let mut last_use: Vec<Option<usize>> = vec![None; n];
        for (i, instr) in program.instrs.iter().enumerate() {
            for a in operands(instr) {
                assert!(a < i, "instruction {i} reads {a}, which comes later");
                last_use[a] = Some(i);
            }
            assert!(!matches!(*instr, Instr::Input(k) if k as usize >= inputs.len()), "instruction {i}: no such input");
        }
        program.outputs.iter().for_each(|&o| last_use[o as usize] = Some(n));
        let constant: Vec<bool> = (program.instrs.iter())
            .map(|instr| match *instr {
                Instr::Const(_) => true,
                Instr::Input(k) => space.is_scalar(k as usize),
                _ => false,
            })
            .collect();
        let direct_in: Vec<bool> = (program.instrs.iter().zip(&last_use))
            .map(|(instr, &last)| match *instr {
                Instr::Input(k) => {
                    let k = k as usize;
                    let in_order = if by_row { space.inner_strides[k] == 1 } else { space.is_linear(k) };
                    in_order && last != Some(n) && matches!(inputs[k].data, InData::F32(_))
                }
                _ => false,
            })
            .collect();
        // an output may be an input's own memory, so results go there only when no input is read in place any more
        let inputs_done = (0..n).filter(|&i| direct_in[i]).filter_map(|i| last_use[i]).max().unwrap_or(0);
        let mut direct_out = vec![None; n];
        for (k, &o) in program.outputs.iter().enumerate() {
            let o = o as usize;
            let computed = !matches!(program.instrs[o], Instr::Input(_) | Instr::Const(_));
            if computed && o >= inputs_done && direct_out[o].is_none() && matches!(outputs[k], Out::F32(_)) {
                direct_out[o] = Some(k);
            }
        }
        let mut layout =
            Layout { program, space, register: vec![None; n], registers: 0, constant, direct_in, direct_out, by_row };
        layout.allocate(&last_use);
        layout
    }

    /// Constants keep a register for good, inputs from the start of the block to their last use, results from their instruction on.
    fn allocate(&mut self, last_use: &[Option<usize>]) {
        let mut free: Vec<usize> = Vec::new();
        let n = last_use.len();
        let mut take = |free: &mut Vec<usize>| {
            free.pop().unwrap_or_else(|| {
                self.registers += 1;
                self.registers - 1
            })
        };
        for i in (0..n).filter(|&i| last_use[i].is_some()) {
            if matches!(self.program.instrs[i], Instr::Input(_) | Instr::Const(_)) {
                self.register[i] = Some(take(&mut free));
            }
        }
        for i in (0..n).filter(|&i| last_use[i].is_some()) {
            let instr = &self.program.instrs[i];
            if matches!(instr, Instr::Input(_) | Instr::Const(_)) {
                continue;
            }
            let mut seen = [usize::MAX; 3];
            for (k, a) in operands(instr).enumerate() {
                if last_use[a] == Some(i) && !self.constant[a] && !seen.contains(&a) {
                    seen[k] = a;
                    free.extend(self.register[a]);
                }
            }
            self.register[i] = Some(take(&mut free));
        }
    }

    fn cost_per_element(&self) -> usize {
        let of = |instr: &Instr| match *instr {
            Instr::Unary(op, _) => ops::unary_cost(op),
            _ => 1,
        };
        self.program.instrs.iter().map(of).sum::<usize>() + self.program.outputs.len()
    }
}

fn operands(instr: &Instr) -> impl Iterator<Item = usize> + use<> {
    let list = match *instr {
        Instr::Input(_) | Instr::Const(_) => [None, None, None],
        Instr::Unary(_, a) => [Some(a), None, None],
        Instr::Binary(_, a, b) => [Some(a), Some(b), None],
        Instr::Select(c, a, b) => [Some(c), Some(a), Some(b)],
    };
    list.into_iter().flatten().map(usize::from)
}

/// The tensors of a call, shared by threads that touch disjoint elements.
#[derive(Clone, Copy)]
struct Tensors<'a> {
    inputs: &'a [In<'a>],
    outputs: &'a [Out],
}
// SAFETY: inputs are only read; the blocks that threads write are disjoint, and an input that shares memory with an output is read in the same block only.
unsafe impl Sync for Tensors<'_> {}
// SAFETY: as above.
unsafe impl Send for Tensors<'_> {}

thread_local! {
    static REGISTERS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `program` for every element of `shape`. `inputs` and `outputs` are in the program's order; outputs are contiguous. The result of an element
/// does not depend on threads or blocks.
///
/// # Panics
/// If the numbers of tensors or strides do not fit, or an operand comes after its use.
///
/// # Safety
/// - Every input element that the strides reach within `shape` may be read, every output element (the product of `shape`) may be written, and pointers are
///   aligned for their types.
/// - Outputs do not overlap one another. An output may be exactly the memory of an input that is contiguous in `shape`
///   (in place), and overlaps no input otherwise.
/// - Nobody else writes the inputs or touches the outputs during the call.
pub unsafe fn run(program: &Program, inputs: &[In], outputs: &[Out], shape: &[usize]) {
    if shape.contains(&0) || outputs.is_empty() {
        return;
    }
    let layout = Layout::new(program, inputs, outputs, shape);
    let longest = (REGISTER_FLOATS / layout.registers.max(1)).clamp(128, 1024) / 64 * 64;
    // units of work: equal pieces of each row, or of the whole when rows are short
    let (rows, length) = if layout.by_row {
        (layout.space.rows(), layout.space.inner)
    } else {
        (1, layout.space.rows() * layout.space.inner)
    };
    let pieces = length.div_ceil(longest);
    let block = length.div_ceil(pieces).next_multiple_of(64);
    let tensors = Tensors { inputs, outputs };
    par_rows(rows * pieces, block * layout.cost_per_element(), |units| {
        let mut registers = REGISTERS.take();
        registers.resize((layout.registers * block).max(registers.len()), 0.0);
        let mut worker = Worker {
            layout: &layout,
            tensors,
            registers,
            block,
            place: vec![std::ptr::null_mut(); program.instrs.len()],
        };
        // SAFETY: the contract of this function; units are disjoint.
        unsafe {
            worker.fill_constants();
            for unit in units {
                let (row, first) = (unit / pieces, unit % pieces * block);
                if first < length {
                    worker.run_block(row, first, block.min(length - first), row * length + first);
                }
            }
        }
        REGISTERS.set(worker.registers);
    });
}

/// One thread's registers.
struct Worker<'a> {
    layout: &'a Layout<'a>,
    tensors: Tensors<'a>,
    registers: Vec<f32>,
    block: usize,
    /// Per instruction: where its value of this block lies.
    place: Vec<*mut f32>,
}

impl Worker<'_> {
    fn register(&mut self, i: usize) -> Option<*mut f32> {
        let r = self.layout.register[i]?;
        Some(self.registers[r * self.block..(r + 1) * self.block].as_mut_ptr())
    }

    /// # Safety
    /// The contract of [`run`], for scalar inputs.
    unsafe fn fill_constants(&mut self) {
        for (i, instr) in self.layout.program.instrs.iter().enumerate() {
            let value = match *instr {
                Instr::Const(c) => c,
                Instr::Input(k) if self.layout.constant[i] => match self.tensors.inputs[k as usize].data {
                    // SAFETY: one element at least.
                    InData::F32(p) => unsafe { *p },
                    InData::I32(p) => unsafe { *p as f32 },
                    InData::Bf16(p) => bf16_to_f32(unsafe { *p }),
                    InData::F16(p) => f16_to_f32(unsafe { *p }),
                },
                _ => continue,
            };
            if let Some(p) = self.register(i) {
                // SAFETY: a register has `block` elements.
                unsafe { std::slice::from_raw_parts_mut(p, self.block) }.fill(value);
                self.place[i] = p;
            }
        }
    }

    /// Elements `first..first + n` of a row (of the whole, when blocks span rows), which are output elements `at..at + n`.
    ///
    /// # Safety
    /// The contract of [`run`].
    unsafe fn run_block(&mut self, row: usize, first: usize, n: usize, at: usize) {
        let layout = self.layout;
        let program = layout.program;
        // SAFETY: (whole body) registers have at least `n` elements, and the `n` elements of tensors are in bounds.
        unsafe {
            for (i, instr) in program.instrs.iter().enumerate() {
                let Instr::Input(k) = *instr else { continue };
                if layout.constant[i] {
                    continue;
                }
                match self.tensors.inputs[k as usize].data {
                    InData::F32(p) if layout.direct_in[i] => {
                        let offset =
                            if layout.by_row { layout.space.row_offset(k as usize, row) + first } else { first };
                        self.place[i] = p.add(offset).cast_mut();
                    }
                    _ => {
                        if let Some(register) = self.register(i) {
                            self.load(k as usize, row, first, n, register);
                            self.place[i] = register;
                        }
                    }
                }
            }
            for (i, instr) in program.instrs.iter().enumerate() {
                if matches!(instr, Instr::Input(_) | Instr::Const(_)) {
                    continue;
                }
                let y = match layout.direct_out[i].map(|k| self.tensors.outputs[k]) {
                    Some(Out::F32(p)) => p.add(at),
                    _ => match self.register(i) {
                        Some(register) => register,
                        None => continue, // nobody reads it
                    },
                };
                let place = |a: u16| self.place[a as usize].cast_const();
                match *instr {
                    Instr::Unary(op, a) => ops::run_unary(op, n, place(a), y),
                    Instr::Binary(op, a, b) => ops::run_binary(op, n, place(a), place(b), y),
                    Instr::Select(c, a, b) => ops::select_block(n, place(c), place(a), place(b), y),
                    Instr::Input(_) | Instr::Const(_) => {}
                }
                self.place[i] = y;
            }
            for (&o, out) in program.outputs.iter().zip(self.tensors.outputs) {
                let value = self.place[o as usize].cast_const();
                match *out {
                    Out::F32(p) if std::ptr::eq(p.add(at), value) => {} // it was computed there
                    Out::F32(p) => std::ptr::copy_nonoverlapping(value, p.add(at), n),
                    Out::I32(p) => ops::float_to_int(n, value, p.add(at)),
                    Out::Bf16(p) => ops::float_to_bf16(n, value, p.add(at)),
                    Out::F16(p) => ops::float_to_f16(n, value, p.add(at)),
                }
            }
        }
    }

    /// Copies the elements of input `k` for a block into a register.
    ///
    /// # Safety
    /// The contract of [`run`]; `to` has room for `n` elements.
    unsafe fn load(&self, k: usize, row: usize, first: usize, n: usize, to: *mut f32) {
        let space = &self.layout.space;
        let data = self.tensors.inputs[k].data;
        let stride = space.inner_strides[k];
        // SAFETY: (both calls) the elements are reached by the strides.
        if self.layout.by_row {
            unsafe { load_run(data, space.row_offset(k, row) + first * stride, stride, n, to) };
            return;
        }
        if space.is_linear(k) {
            return unsafe { load_run(data, first, 1, n, to) };
        }
        let (mut row, mut column, mut done) = (first / space.inner, first % space.inner, 0);
        while done < n {
            let len = (space.inner - column).min(n - done);
            unsafe { load_run(data, space.row_offset(k, row) + column * stride, stride, len, to.add(done)) };
            (row, column, done) = (row + 1, 0, done + len);
        }
    }
}

/// Copies `n` elements that are `stride` apart.
///
/// # Safety
/// They may be read, and `to` has room for them.
unsafe fn load_run(data: InData, offset: usize, stride: usize, n: usize, to: *mut f32) {
    // SAFETY: (whole body) the contract above.
    unsafe {
        match (data, stride) {
            (InData::F32(p), 1) => std::ptr::copy_nonoverlapping(p.add(offset), to, n),
            (InData::F32(p), 0) => std::slice::from_raw_parts_mut(to, n).fill(*p.add(offset)),
            (InData::F32(p), _) => (0..n).for_each(|i| *to.add(i) = *p.add(offset + i * stride)),
            (InData::I32(p), 1) => ops::int_to_float(n, p.add(offset), to),
            (InData::I32(p), _) => (0..n).for_each(|i| *to.add(i) = *p.add(offset + i * stride) as f32),
            (InData::Bf16(p), 1) => ops::bf16_to_float(n, p.add(offset), to),
            (InData::F16(p), 1) => ops::f16_to_float(n, p.add(offset), to),
            (InData::Bf16(p), _) => (0..n).for_each(|i| *to.add(i) = bf16_to_f32(*p.add(offset + i * stride))),
            (InData::F16(p), _) => (0..n).for_each(|i| *to.add(i) = f16_to_f32(*p.add(offset + i * stride))),
        }
    }
}
