//! Calls that run on the CPU inside a GPU plan.

use super::context::Context;
use crate::device::kernel::Operand;
use crate::device::{CpuCall, Place, Work, cpu};
use crate::{Error, Result};
use std::sync::Arc;

/// A call that a GPU cannot take, with host copies of its operands.
pub(super) struct Twin {
    pub call: usize,
    operands: CpuCall,
    inputs: Vec<Arc<cpu::Buffer>>,
    outputs: Vec<Arc<cpu::Buffer>>,
}

impl Twin {
    /// # Errors
    /// `Error::Device` when the host has no memory for the copies.
    pub fn new(index: usize, work: &Work) -> Result<Twin> {
        let call = &work.calls[index];
        let host = |p: &Place| Ok(Arc::new(cpu::Buffer::zeroed(p.ty.bytes())?));
        let inputs: Vec<Arc<cpu::Buffer>> = call.inputs.iter().map(host).collect::<Result<_>>()?;
        // An in-place output writes over its input's host copy, as it does on the device.
        let outputs: Vec<Arc<cpu::Buffer>> = call
            .outputs
            .iter()
            .map(|o| match call.inputs.iter().position(|i| i.buffer == o.buffer) {
                Some(i) => Ok(inputs[i].clone()),
                None => host(o),
            })
            .collect::<Result<_>>()?;
        let operands = |places: &[Place], hosts: &[Arc<cpu::Buffer>]| {
            places.iter().zip(hosts).map(|(p, h)| Operand { ty: p.ty.clone(), ptr: h.as_ptr() }).collect()
        };
        let operands = CpuCall { inputs: operands(&call.inputs, &inputs), outputs: operands(&call.outputs, &outputs) };
        Ok(Twin { call: index, operands, inputs, outputs })
    }

    /// Fetches the operands from the device's `buffers`, computes, and sends the results back.
    pub fn run(&self, work: &Work, context: &Context, buffers: &[wgpu::Buffer]) -> Result<()> {
        let call = &work.calls[self.call];
        for (place, host) in call.inputs.iter().zip(&self.inputs) {
            let bytes = context.read(&buffers[place.buffer], place.ty.bytes())?;
            // SAFETY: the host copies belong to this runner and nothing else runs.
            unsafe { host.write(&bytes) };
        }
        call.kernel.cpu(&mut self.operands.clone()).map_err(|e| match e {
            Error::Graph(m) => Error::Graph(format!("node '{}': {m}", call.label)),
            other => other,
        })?;
        for (place, host) in call.outputs.iter().zip(&self.outputs) {
            context.write(&buffers[place.buffer], host.bytes())?;
        }
        Ok(())
    }
}
