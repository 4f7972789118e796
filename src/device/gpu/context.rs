//! A wgpu device with what the kernels need to know of it: capabilities, pipelines, and whether it is still alive.

use super::adapter;
use super::lowering::{Caps, Features, Shader};
use super::pipeline_cache::PipelineCache;
use super::tiles::Choices;
use crate::{Error, Result};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How to open a device. Tests switch features off and lower limits to walk the paths that weak devices take.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Validate every memory access and bound every loop (slow); release runs trust the shaders, which `verify` checks.
    pub checked: bool,
    /// Features to use when present.
    pub features: Features,
    /// Never bind more than this many bytes at once.
    pub max_binding: Option<u64>,
    /// Never use more than this many bytes of workgroup memory.
    pub max_workgroup_memory: Option<u32>,
    /// Expected seconds that one dispatch may take. None: a tenth of a second on a GPU (the watchdog of a desktop resets it after about
    /// two); as good as no limit on a software device, which nothing watches.
    pub seconds_per_dispatch: Option<f64>,
    /// FLOP/s and bytes/s by measurement, in place of cautious guesses: they decide how finely work is cut.
    pub rates: Option<(f64, f64)>,
    /// Choose kernels as for real hardware on a software device too: tests walk the paths that other GPUs take.
    pub as_hardware: bool,
    /// The forms of kernels to use, in place of the table's.
    pub choices: Option<Choices>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            checked: false,
            features: Features::ALL,
            max_binding: None,
            max_workgroup_memory: None,
            seconds_per_dispatch: None,
            rates: None,
            as_hardware: false,
            choices: None,
        }
    }
}

/// A GPU that does not answer for this long is given up. Submissions are cut to fractions of a second, but many may be queued.
const PATIENCE: Duration = Duration::from_secs(300);

/// Compilation time worth saving at once; less is saved when the context ends.
const WORTH_SAVING: Duration = Duration::from_secs(1);

pub struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    caps: Caps,
    checked: bool,
    pipelines: Mutex<HashMap<PipelineKey, Arc<OnceLock<Pipeline>>>>,
    layouts: Mutex<HashMap<Vec<bool>, wgpu::BindGroupLayout>>,
    pipeline_cache: Option<PipelineCache>,
    pub(super) staging: Mutex<Option<wgpu::Buffer>>,
    /// Bytes of all buffers made so far.
    pub(super) created: AtomicU64,
    /// Measured over expected time of the slowest plan so far, once one was measured.
    slowness: Mutex<Option<f64>>,
    /// Set by callbacks: the reason a device was lost, and the first error nobody caught.
    lost: Arc<OnceLock<String>>,
    error: Arc<Mutex<Option<String>>>,
}

/// Source text, and for each storage binding whether it is writable; `true` at the end when there is a uniform block.
type PipelineKey = (Arc<str>, Vec<bool>, bool);

#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// Where a pipeline came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Made earlier by this context.
    Context,
    /// Compiled by an earlier run; the driver read it from the pipeline cache.
    Cache,
    Compiled,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "gpu::Context({})", self.name())
    }
}

impl Context {
    /// Every adapter of every backend this program was built with.
    pub fn adapters() -> Vec<wgpu::Adapter> {
        adapter::adapters()
    }

    pub fn open(adapter: &wgpu::Adapter, options: Options) -> Result<Arc<Context>> {
        let info = adapter.get_info();
        let caps = adapter::caps(adapter, &options);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lynx-gpu"),
            required_features: adapter::required(adapter, &caps.features),
            required_limits: adapter.limits(),
            experimental_features: adapter::experimental(&caps.features),
            // The plan decides what is allocated; the allocator should not keep more.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| {
            let name = &info.name;
            Error::Device(format!(
                "{name} cannot be opened: {e}; close other programs that use it, or use --device cpu"
            ))
        })?;
        let lost = Arc::new(OnceLock::new());
        let error = Arc::new(Mutex::new(None));
        device.set_device_lost_callback({
            let lost = lost.clone();
            move |reason, message| {
                let _ = lost.set(format!("{reason:?}: {message}"));
            }
        });
        device.on_uncaptured_error({
            let error = error.clone();
            Arc::new(move |e: wgpu::Error| {
                error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e.to_string());
            })
        });
        // Checks are compiled into the shaders, and verification should not rest on what an earlier run left.
        let keep = caps.features.pipeline_cache && !options.checked;
        let pipeline_cache = if keep { PipelineCache::open(&device, &info) } else { None };
        Ok(Arc::new(Context {
            device,
            queue,
            info,
            caps,
            checked: options.checked,
            pipelines: Mutex::default(),
            layouts: Mutex::default(),
            pipeline_cache,
            staging: Mutex::default(),
            created: AtomicU64::new(0),
            slowness: Mutex::default(),
            lost,
            error,
        }))
    }

    pub fn name(&self) -> String {
        format!("{} ({})", self.info.name, self.info.backend)
    }
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Fails if the device was lost or an earlier command was refused.
    pub fn check(&self) -> Result<()> {
        if let Some(why) = self.lost.get() {
            return Err(Error::Device(format!(
                "{} was lost ({why}); the last checkpoint is intact: resume it, or use --device cpu",
                self.info.name
            )));
        }
        match self.error.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(e) => Err(Error::Device(format!("{}: {e}", self.info.name))),
            None => Ok(()),
        }
    }

    /// Makes the device unusable, as a driver reset would: for tests of what happens then.
    pub fn lose(&self) {
        self.device.destroy();
        let _ = catch_unwind(AssertUnwindSafe(|| self.device.poll(wgpu::PollType::Poll)));
        let _ = self.lost.set("Destroyed: on request".into());
    }

    /// How much longer work takes than `Caps` says: 1 until a run was measured.
    pub(super) fn slowness(&self) -> f64 {
        self.slowness.lock().unwrap_or_else(|e| e.into_inner()).unwrap_or(1.0)
    }
    pub(super) fn measured_slowness(&self, ratio: f64) {
        let mut slowness = self.slowness.lock().unwrap_or_else(|e| e.into_inner());
        *slowness = Some(slowness.map_or(ratio, |s| s.max(ratio)));
    }

    /// Blocks until everything submitted has run.
    pub fn wait(&self) -> Result<()> {
        let timeout = if self.caps.software { None } else { Some(PATIENCE) };
        let wait = || self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout });
        // wgpu panics when the driver reports the loss of the device while it waits.
        let polled = catch_unwind(AssertUnwindSafe(wait));
        if polled.is_err() {
            let _ = self.lost.set("the driver reset it".into());
        }
        self.check()?;
        match polled {
            Ok(Err(e)) => Err(Error::Device(format!("{} does not answer: {e}; try --device cpu", self.info.name))),
            _ => Ok(()),
        }
    }

    fn bind_group_layout(&self, writable: &[bool], uniform: bool) -> wgpu::BindGroupLayout {
        let mut key = writable.to_vec();
        key.push(uniform);
        let mut layouts = self.layouts.lock().unwrap_or_else(|e| e.into_inner());
        layouts
            .entry(key)
            .or_insert_with(|| {
                let entry = |binding: usize, ty| wgpu::BindGroupLayoutEntry {
                    binding: binding as u32,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                    count: None,
                };
                let mut entries: Vec<_> = writable
                    .iter()
                    .enumerate()
                    .map(|(i, w)| entry(i, wgpu::BufferBindingType::Storage { read_only: !w }))
                    .collect();
                if uniform {
                    entries.push(entry(writable.len(), wgpu::BufferBindingType::Uniform));
                }
                self.device
                    .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
            })
            .clone()
    }

    /// The pipeline of a shader, compiled on first use (by any thread), and where it came from.
    pub(super) fn pipeline(&self, shader: &Shader, writable: &[bool], uniform: bool) -> Result<(Pipeline, Origin)> {
        let key = (shader.source.clone(), writable.to_vec(), uniform);
        let cell = self.pipelines.lock().unwrap_or_else(|e| e.into_inner()).entry(key).or_default().clone();
        if let Some(p) = cell.get() {
            return Ok((p.clone(), Origin::Context));
        }
        self.check()?;
        let start = Instant::now();
        // Scopes end in the opposite order: a driver's compiler that fails is an internal error, a wrong shader a validation error.
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(&shader.label),
            source: wgpu::ShaderSource::Wgsl(shader.source.as_ref().into()),
        };
        let module = if self.checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: the parity suite runs every variant with checks on.
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let layout = self.bind_group_layout(writable, uniform);
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&shader.label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(shader.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels initialise what they read: zeroing costs time on every launch and seconds of compilation on some drivers.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.pipeline_cache.as_ref().map(|c| &c.cache),
        });
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        self.check()?;
        if let Some(e) = validation.or(internal) {
            let (device, label) = (&self.info.name, &shader.label);
            return Err(Error::Device(format!(
                "{device} refuses the kernel {label}: {e}; `lynx-gpu verify` makes a report for a bug thread, --device cpu works meanwhile"
            )));
        }
        let cached = self.pipeline_cache.as_ref().is_some_and(|c| c.compiled(&shader.source, start.elapsed()));
        let origin = if cached { Origin::Cache } else { Origin::Compiled };
        Ok((cell.get_or_init(|| Pipeline { pipeline, layout }).clone(), origin))
    }

    /// Puts compiled pipelines on disk, where they are worth it. A cache that cannot be written only costs the next start.
    pub(super) fn save_pipelines(&self) {
        self.save_pipelines_worth(WORTH_SAVING);
    }

    fn save_pipelines_worth(&self, worth: Duration) {
        if let Some(Err(e)) = self.pipeline_cache.as_ref().map(|c| c.save_if_worth(worth)) {
            tracing::warn!("compiled kernels could not be kept: {e} (set LYNX_CACHE to a folder that can be written)");
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.lost.get().is_none() {
            self.save_pipelines_worth(Duration::ZERO);
        }
    }
}
