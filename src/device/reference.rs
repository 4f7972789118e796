//! The reference executor: f64, one naive operator after another. It runs the same plan as the fast executors, so a
//! wrong lifetime or in-place decision shows here too.

use super::{Call, Executable, Home, Memory, Store, Work};
use crate::tensor::{HostTensor, RefTensor, TensorType};
use crate::{Error, Result};
use std::sync::{Arc, Mutex};

/// A buffer of the reference executor, shared between executables when it is a variable.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<RefTensor>>);

impl Shared {
    pub fn zeros(ty: &TensorType) -> Self {
        Shared(Arc::new(Mutex::new(RefTensor::zeros(&ty.shape))))
    }
    pub fn get(&self) -> RefTensor {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
    pub fn set(&self, value: RefTensor) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = value;
    }
}

pub struct Runner {
    work: Work,
    buffers: Vec<Shared>,
    bytes: u64,
    /// Results of a 16-bit type are rounded to it, as every reader of the stored value sees them.
    rounds: bool,
}

impl Runner {
    pub fn new(work: Work, store: &mut Store) -> Result<Self> {
        let mut buffers = Vec::new();
        for spec in &work.buffers {
            buffers.push(match &spec.home {
                Home::Variable(name) => match &store.get(name)?.memory {
                    Memory::Reference(m) => m.clone(),
                    _ => return Err(Error::Graph(format!("variable '{name}' lives on another device"))),
                },
                Home::Constant(value) => {
                    let m = Shared::zeros(&value.ty());
                    m.set(value.to_f64());
                    m
                }
                _ => Shared::zeros(&TensorType::f32(&[0])),
            });
        }
        let bytes = work.buffers.iter().map(|b| b.bytes).sum();
        Ok(Runner { work, buffers, bytes, rounds: true })
    }

    /// Keeps results of 16-bit types as they were before they are rounded: what a device's rounded result is judged by.
    pub fn exact(self) -> Self {
        Runner { rounds: false, ..self }
    }

    /// Sets an input to f64 values (finite differences need more than f32 holds).
    pub fn write_f64(&mut self, name: &str, value: RefTensor) -> Result<()> {
        let place = super::find("input", self.work.inputs.iter().map(|(n, p)| (n.as_str(), p)), name)?;
        self.buffers[place.buffer].set(value);
        Ok(())
    }

    pub fn read_f64(&self, name: &str) -> Result<RefTensor> {
        let place = self.work.output(name)?;
        let value = self.buffers[place.buffer].get();
        Ok(RefTensor::new(&place.ty.shape, value.data))
    }

    fn call(&self, call: &Call) -> Result<()> {
        let inputs: Vec<RefTensor> =
            call.inputs.iter().map(|p| RefTensor::new(&p.ty.shape, self.buffers[p.buffer].get().data)).collect();
        let types: Vec<_> = call.outputs.iter().map(|p| p.ty.clone()).collect();
        let outputs = call.kernel.reference(&inputs.iter().collect::<Vec<_>>(), &types);
        for (place, mut value) in call.outputs.iter().zip(outputs) {
            if value.data.len() != place.ty.elements() {
                let (name, label) = (call.kernel.name(), &call.label);
                return Err(Error::Graph(format!(
                    "{label} ({name}): reference gave {:?}, not {}",
                    value.shape, place.ty
                )));
            }
            if self.rounds && place.ty.dtype.is_half() {
                value.data.iter_mut().for_each(|x| *x = place.ty.dtype.round(*x));
            }
            self.buffers[place.buffer].set(value);
        }
        Ok(())
    }
}

impl Executable for Runner {
    fn write_input(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        self.work.input(name, &value.ty())?;
        self.write_f64(name, value.to_f64())
    }

    fn run(&mut self) -> Result<()> {
        self.work.calls.iter().try_for_each(|c| self.call(c))?;
        for (from, to) in &self.work.copies {
            self.buffers[to.buffer].set(self.buffers[from.buffer].get());
        }
        Ok(())
    }

    fn read_output(&mut self, name: &str) -> Result<HostTensor> {
        let place = self.work.output(name)?;
        Ok(self.read_f64(name)?.to_host(place.ty.dtype))
    }

    fn allocated_bytes(&self) -> u64 {
        self.bytes
    }
}
