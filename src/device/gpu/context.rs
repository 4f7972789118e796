//! A wgpu device with what the kernels need to know of it: features, limits, cached pipelines, and whether it is still alive.

use super::lowering::{Caps, Features, Limits, Shader};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

/// How to open a device. Tests switch features off and lower limits to walk the paths that weak devices take.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Validate every memory access and bound every loop (slow); release runs trust the shaders, which `verify` checks.
    pub checked: bool,
    /// Features to use when present.
    pub features: Features,
    /// Never bind more than this many bytes at once.
    pub max_binding: Option<u64>,
    /// Expected seconds that one dispatch may take (the watchdog of a desktop resets the GPU after about 2 s).
    pub seconds_per_dispatch: f64,
}

impl Default for Options {
    fn default() -> Self {
        let all = Features { subgroups: true, f16: true, packed_dot: true, timestamps: true, pipeline_cache: true };
        Options { checked: false, features: all, max_binding: None, seconds_per_dispatch: 0.1 }
    }
}

pub struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    caps: Caps,
    checked: bool,
    pipelines: Mutex<HashMap<PipelineKey, Arc<OnceLock<Pipeline>>>>,
    layouts: Mutex<HashMap<Vec<bool>, wgpu::BindGroupLayout>>,
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

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "gpu::Context({})", self.name())
    }
}

impl Context {
    /// Every adapter of every backend this program was built with.
    pub fn adapters() -> Vec<wgpu::Adapter> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
    }

    pub fn open(adapter: &wgpu::Adapter, options: Options) -> Result<Arc<Context>> {
        let info = adapter.get_info();
        let has = |f| adapter.features().contains(f);
        let want = options.features;
        let features = Features {
            subgroups: want.subgroups && has(wgpu::Features::SUBGROUP),
            f16: want.f16 && has(wgpu::Features::SHADER_F16),
            packed_dot: want.packed_dot,
            timestamps: want.timestamps && has(wgpu::Features::TIMESTAMP_QUERY),
            pipeline_cache: want.pipeline_cache && has(wgpu::Features::PIPELINE_CACHE),
        };
        let mut required = wgpu::Features::empty();
        required.set(wgpu::Features::SUBGROUP, features.subgroups);
        required.set(wgpu::Features::SHADER_F16, features.f16);
        required.set(wgpu::Features::TIMESTAMP_QUERY, features.timestamps);
        required.set(wgpu::Features::PIPELINE_CACHE, features.pipeline_cache);
        let limits = adapter.limits();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("lynx-gpu"),
            required_features: required,
            required_limits: limits.clone(),
            // The plan decides what is allocated; the allocator should not keep more.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| Error::Device(format!("{} cannot be opened: {e}; try --device cpu", info.name)))?;
        let max_binding = limits.max_storage_buffer_binding_size.min(i32::MAX as u64) & !255;
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let caps = Caps {
            features,
            limits: Limits {
                max_binding: options.max_binding.map_or(max_binding, |m| m.min(max_binding)),
                max_buffer: limits.max_buffer_size,
                offset_alignment: limits.min_storage_buffer_offset_alignment as u64,
                max_groups_per_dimension: limits.max_compute_workgroups_per_dimension,
                max_invocations: limits.max_compute_invocations_per_workgroup,
                workgroup_memory: limits.max_compute_workgroup_storage_size,
                max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            },
            subgroup_sizes: if features.subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
            software,
            // Low guesses: they only decide how finely work is cut for the watchdog.
            flops_per_second: if software { 2e9 } else { 100e9 },
            bytes_per_second: if software { 1e9 } else { 10e9 },
            seconds_per_dispatch: options.seconds_per_dispatch,
        };
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
        Ok(Arc::new(Context {
            device,
            queue,
            info,
            caps,
            checked: options.checked,
            pipelines: Mutex::default(),
            layouts: Mutex::default(),
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
        let _ = self.device.poll(wgpu::PollType::Poll);
    }

    /// A zeroed storage buffer.
    pub fn create_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let (bytes, max) = (bytes.next_multiple_of(4).max(4), self.caps.limits.max_buffer);
        if bytes > max {
            return Err(Error::Device(format!(
                "'{label}' needs {bytes} bytes, {} allows {max} in one buffer; use a smaller batch or context, or --device cpu",
                self.info.name
            )));
        }
        self.check()?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Err(Error::Device(format!(
                "{} has no room for '{label}' ({bytes} bytes); use a smaller batch (--set train.batch=N) or context, or --device cpu",
                self.info.name
            )));
        }
        Ok(buffer)
    }

    /// Queues a write; it takes effect before anything submitted later.
    pub fn write(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        self.check()?;
        self.queue.write_buffer(buffer, 0, bytes);
        Ok(())
    }

    /// Waits for the device and copies the first `bytes` of `buffer` to the host.
    pub fn read(&self, buffer: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        self.check()?;
        if bytes == 0 {
            return Ok(vec![]);
        }
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read-back"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let slice = staging.slice(..);
        slice.map_async(wgpu::MapMode::Read, |_| {});
        self.wait()?;
        let view = slice
            .get_mapped_range()
            .map_err(|e| Error::Device(format!("{}: read-back failed: {e}", self.info.name)))?;
        Ok(view.to_vec())
    }

    /// Blocks until everything submitted has run.
    pub fn wait(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: None });
        self.check()?;
        polled.map(|_| ()).map_err(|e| Error::Device(format!("{} does not answer: {e}", self.info.name)))
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

    /// The pipeline of a shader, compiled on first use (by any thread).
    pub(super) fn pipeline(&self, shader: &Shader, writable: &[bool], uniform: bool) -> Result<Pipeline> {
        let key = (shader.source.clone(), writable.to_vec(), uniform);
        let cell = self.pipelines.lock().unwrap_or_else(|e| e.into_inner()).entry(key).or_default().clone();
        if let Some(p) = cell.get() {
            return Ok(p.clone());
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
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
            cache: None,
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(Error::Device(format!("{} refuses shader {}: {e}", self.info.name, shader.label)));
        }
        Ok(cell.get_or_init(|| Pipeline { pipeline, layout }).clone())
    }
}
