//! A unit of work for a device: buffers and the ordered operator calls that use them. A `graph::Plan` makes it;
//! a device runs it without knowing what it is for.

use super::kernel::Kernel;
use crate::tensor::{HostTensor, TensorType};
use std::sync::Arc;

/// Where a buffer's contents come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Home {
    /// Lives in the `Store`, keeps its value between runs.
    Variable(String),
    /// Written by the host before a run.
    Input(String),
    /// Written once, when the work is made ready.
    Constant(Arc<HostTensor>),
    /// Reused between values whose lifetimes do not meet.
    Transient,
}

#[derive(Clone, Debug)]
pub struct BufferSpec {
    pub bytes: u64,
    pub home: Home,
}

/// A tensor inside a buffer (tensors always start at the buffer's first byte).
#[derive(Clone, Debug)]
pub struct Place {
    pub buffer: usize,
    pub ty: TensorType,
}

/// What a call costs: the roofline's coordinates.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    pub flops: f64,
    pub bytes_read: f64,
    pub bytes_written: f64,
}

impl Cost {
    pub fn bytes(&self) -> f64 {
        self.bytes_read + self.bytes_written
    }
    /// Of `n` runs.
    pub fn times(self, n: usize) -> Cost {
        let n = n as f64;
        Cost { flops: self.flops * n, bytes_read: self.bytes_read * n, bytes_written: self.bytes_written * n }
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, o: Cost) {
        self.flops += o.flops;
        self.bytes_read += o.bytes_read;
        self.bytes_written += o.bytes_written;
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    pub kernel: Arc<dyn Kernel>,
    /// The graph node's name, for messages.
    pub label: String,
    pub inputs: Vec<Place>,
    pub outputs: Vec<Place>,
    pub cost: Cost,
}

#[derive(Clone, Debug, Default)]
pub struct Work {
    pub buffers: Vec<BufferSpec>,
    pub calls: Vec<Call>,
    /// Run after the calls, in order: (from, to), both whole tensors of one type.
    pub copies: Vec<(Place, Place)>,
    /// Tensors the host writes before a run.
    pub inputs: Vec<(String, Place)>,
    /// Tensors the host may read after a run.
    pub outputs: Vec<(String, Place)>,
}

impl Work {
    /// The input called `name`, checked to have the type of the value given.
    pub fn input(&self, name: &str, given: &TensorType) -> crate::Result<&Place> {
        let place = super::find("input", self.inputs.iter().map(|(n, p)| (n.as_str(), p)), name)?;
        if place.ty != *given {
            let declared = &place.ty;
            return Err(crate::Error::Graph(format!("input '{name}' is {declared}, the value given is {given}")));
        }
        Ok(place)
    }

    pub fn output(&self, name: &str) -> crate::Result<&Place> {
        super::find("output", self.outputs.iter().map(|(n, p)| (n.as_str(), p)), name)
    }
}
