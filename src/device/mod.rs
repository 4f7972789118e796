//! Devices and the executors that run a `Work` on them: `reference` (f64, naive: the judge), `cpu` (SIMD kernels)
//! and `gpu` (WGSL through wgpu). A device knows buffers, kernels and calls; it never knows what a model is.

pub mod choose;
pub mod cpu;
pub mod gpu;
pub mod host;
pub mod kernel;
pub mod probe;
pub mod reference;
pub mod roof;
pub mod work;

pub use kernel::{CpuCall, Kernel, LookUp, Unsupported};
pub use work::{BufferSpec, Call, Cost, Home, Place, Work};

use crate::tensor::{HostTensor, TensorType};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A place that can run work.
#[derive(Clone, Debug)]
pub enum Device {
    Reference,
    Cpu,
    Gpu(Arc<gpu::Context>),
}

impl Device {
    pub fn name(&self) -> String {
        match self {
            Device::Reference => "reference (f64)".into(),
            Device::Cpu => "cpu".into(),
            Device::Gpu(context) => context.name(),
        }
    }

    /// Makes `work` ready to run: allocates its buffers (variables come from `store`, created there when new) and, on a GPU,
    /// compiles its pipelines.
    pub fn prepare(&self, work: Work, store: &mut Store) -> Result<Box<dyn Executable>> {
        Ok(match self {
            Device::Reference => Box::new(reference::Runner::new(work, store)?),
            Device::Cpu => Box::new(cpu::Runner::new(work, store)?),
            Device::Gpu(context) => Box::new(gpu::Runner::new(context.clone(), work, store)?),
        })
    }
}

/// Work made ready on one device; can be run any number of times without allocating.
pub trait Executable {
    /// Fills an input. The type must be the declared one.
    fn write_input(&mut self, name: &str, value: &HostTensor) -> Result<()>;
    fn run(&mut self) -> Result<()>;
    fn read_output(&mut self, name: &str) -> Result<HostTensor>;
    /// Bytes of the buffers this executable owns or uses (variables included).
    fn allocated_bytes(&self) -> u64;
    /// What the device could not do as asked: calls that fell back to the CPU (with reasons), dispatches that were split.
    fn notes(&self) -> ExecutionNotes {
        ExecutionNotes::default()
    }
    /// Runs `runs` times (at least once, after warming up) and gives the median seconds of each kernel, in order. These are whole
    /// runs: variables change as they do in `run`. Empty on a device that cannot tell its calls apart.
    ///
    /// # Errors
    /// Those of `run`.
    fn profile(&mut self, runs: usize) -> Result<Vec<CallTime>> {
        let _ = runs;
        Ok(vec![])
    }
}

/// How long one kernel of a plan takes. A call that needs several has an entry for each.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct CallTime {
    /// Index in `Work::calls`.
    pub call: usize,
    /// The graph node's name.
    pub label: String,
    /// Label of the kernel, as in `ExecutionNotes::kernels`.
    pub kernel: String,
    /// Seconds on the device, or wall clock where it has no timestamps.
    pub seconds: f64,
}

#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct ExecutionNotes {
    pub dispatches: usize,
    /// Calls that needed more dispatches than one because of a binding, workgroup-count or time limit.
    pub split: Vec<String>,
    /// "node: reason" of each call that runs on its CPU twin.
    pub fallback: Vec<String>,
    /// Labels of the kernels chosen, one per dispatch (tests assert which variant ran).
    pub kernels: Vec<String>,
    pub submissions: usize,
    /// Pipelines made for this plan, beside those that the device had already.
    pub pipelines: usize,
    /// Of these, how many the pipeline cache of an earlier run held.
    pub pipelines_cached: usize,
    /// Seconds spent making them. Some drivers compile in the first run instead.
    pub pipeline_seconds: f64,
}

/// Named variables (weights, optimiser state) in a device's memory, shared by every executable made with this store.
#[derive(Debug)]
pub struct Store {
    pub(crate) device: Device,
    pub(crate) variables: BTreeMap<String, Variable>,
}

#[derive(Debug)]
pub(crate) struct Variable {
    pub ty: TensorType,
    pub memory: Memory,
}

#[derive(Clone, Debug)]
pub(crate) enum Memory {
    Reference(reference::Shared),
    Cpu(Arc<cpu::Buffer>),
    Gpu(wgpu::Buffer),
}

/// Where the rows of a variable lie in a file, one after the other.
#[derive(Clone, Debug)]
pub struct FileRows {
    pub part: formats::FilePart,
    pub row_bytes: usize,
}

fn comes_from_a_file(name: &str) -> Error {
    Error::Graph(format!("variable '{name}' comes from a file row by row and cannot be written"))
}

impl Store {
    pub fn new(device: &Device) -> Self {
        Store { device: device.clone(), variables: BTreeMap::new() }
    }

    /// Creates a variable of zeros, or checks that the existing one has this type.
    pub fn declare(&mut self, name: &str, ty: &TensorType) -> Result<()> {
        if let Some(v) = self.variables.get(name) {
            if v.ty != *ty {
                return Err(Error::Graph(format!("variable '{name}' is {} but a graph declares it {ty}", v.ty)));
            }
            return Ok(());
        }
        let memory = match &self.device {
            Device::Reference => Memory::Reference(reference::Shared::zeros(ty)),
            Device::Cpu => Memory::Cpu(Arc::new(cpu::Buffer::zeroed(ty.bytes())?)),
            Device::Gpu(context) => Memory::Gpu(context.create_buffer(name, ty.bytes())?),
        };
        self.variables.insert(name.into(), Variable { ty: ty.clone(), memory });
        Ok(())
    }

    /// A variable of the CPU whose rows are read from a file when they are first needed. It cannot be written.
    ///
    /// # Errors
    /// A variable of that name, another device, or rows that are not those of the type.
    pub fn declare_late(&mut self, name: &str, ty: &TensorType, rows: FileRows) -> Result<()> {
        let bytes = rows.part.byte_len();
        let fits =
            bytes == (ty.elements() * ty.dtype.bytes()) as u64 && bytes.is_multiple_of(rows.row_bytes.max(1) as u64);
        if self.variables.contains_key(name) || !matches!(self.device, Device::Cpu) || !fits {
            return Err(Error::Graph(format!(
                "variable '{name}' ({ty}) cannot be read late: {bytes} bytes in rows of {}, on {}",
                rows.row_bytes,
                self.device.name()
            )));
        }
        let memory = Memory::Cpu(Arc::new(cpu::Buffer::late(ty.bytes(), rows)?));
        self.variables.insert(name.into(), Variable { ty: ty.clone(), memory });
        Ok(())
    }

    /// [`Store::declare`] for variables that will be written whole and read together, such as the weights of a model.
    pub fn declare_together(&mut self, variables: &[(String, TensorType)]) -> Result<()> {
        if !matches!(self.device, Device::Cpu) || variables.iter().any(|(name, _)| self.variables.contains_key(name)) {
            return variables.iter().try_for_each(|(name, ty)| self.declare(name, ty));
        }
        let sizes: Vec<u64> = variables.iter().map(|(_, ty)| ty.bytes()).collect();
        let buffers = cpu::Buffer::zeroed_together(&sizes)?;
        if let Some(first) = buffers.first() {
            first.expect_whole();
        }
        for ((name, ty), buffer) in variables.iter().zip(buffers) {
            self.variables.insert(name.clone(), Variable { ty: ty.clone(), memory: Memory::Cpu(Arc::new(buffer)) });
        }
        Ok(())
    }

    pub fn names(&self) -> impl Iterator<Item = (&str, &TensorType)> {
        self.variables.iter().map(|(n, v)| (n.as_str(), &v.ty))
    }

    fn get(&self, name: &str) -> Result<&Variable> {
        self.variables.get(name).ok_or_else(|| Error::Graph(format!("no variable is named '{name}'")))
    }

    pub fn write(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let v = self.get(name)?;
        if v.ty != value.ty() {
            return Err(Error::Graph(format!("variable '{name}' is {}, the value given is {}", v.ty, value.ty())));
        }
        match (&v.memory, &self.device) {
            (Memory::Reference(m), _) => m.set(value.to_f64()),
            (Memory::Cpu(m), _) if !m.is_writable() => return Err(comes_from_a_file(name)),
            // SAFETY: executables only touch the memory inside `run`, which cannot overlap this call on one thread.
            (Memory::Cpu(m), _) => unsafe { m.write(&value.to_bytes()) },
            (Memory::Gpu(m), Device::Gpu(context)) => context.write(m, &value.to_bytes())?,
            (Memory::Gpu(_), _) => unreachable!("a GPU buffer belongs to a GPU store"),
        }
        Ok(())
    }

    /// Lets `f` write the bytes of a variable, whole words, which hold what they held before (or zeros); on the CPU in their place.
    pub fn fill(&mut self, name: &str, f: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let v = self.get(name)?;
        if let Memory::Cpu(m) = &v.memory {
            if !m.is_writable() {
                return Err(comes_from_a_file(name));
            }
            // SAFETY: executables only touch the memory inside `run`, which cannot overlap this call on one thread.
            return f(unsafe { m.bytes_mut() });
        }
        let mut bytes = vec![0; v.ty.bytes() as usize];
        f(&mut bytes)?;
        self.write(name, &HostTensor::from_bytes(&v.ty.clone(), &bytes))
    }

    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let v = self.get(name)?;
        Ok(match (&v.memory, &self.device) {
            (Memory::Reference(m), _) => m.get().to_host(v.ty.dtype),
            (Memory::Cpu(m), _) => {
                m.bring_all()?;
                HostTensor::from_bytes(&v.ty, m.bytes())
            }
            (Memory::Gpu(m), Device::Gpu(context)) => HostTensor::from_bytes(&v.ty, &context.read(m, v.ty.bytes())?),
            (Memory::Gpu(_), _) => unreachable!("a GPU buffer belongs to a GPU store"),
        })
    }

    /// Drops the variables whose names begin with `prefix`. Executables that use them keep their memory until they are dropped too.
    pub fn forget(&mut self, prefix: &str) {
        self.variables.retain(|name, _| !name.starts_with(prefix));
    }

    pub fn bytes(&self) -> u64 {
        self.variables.values().map(|v| v.ty.bytes()).sum()
    }
}

/// Finds an input or output by name, or says which names exist.
pub(crate) fn find<'a, T>(what: &str, items: impl Iterator<Item = (&'a str, T)> + Clone, name: &str) -> Result<T> {
    items.clone().find(|(n, _)| *n == name).map(|(_, t)| t).ok_or_else(|| {
        let names: Vec<_> = items.map(|(n, _)| n).collect();
        Error::Graph(format!("no {what} is named '{name}' (there are: {})", names.join(", ")))
    })
}
