//! Adapters: the GPUs that the drivers offer, and what of each the kernels may use.

use super::context::Options;
use super::lowering::{Caps, Features, Limits};
use super::tiles::Class;
use std::sync::OnceLock;

/// Every adapter of the native backends (Vulkan, Metal, DX12), in the order `--device gpu:N` counts. `WGPU_BACKEND` narrows it.
pub fn adapters() -> Vec<wgpu::Adapter> {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    let backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::PRIMARY);
    let instance = INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = backends;
        // Driver-side validation layers are for debugging wgpu itself; our own checks do not need them.
        descriptor.flags = wgpu::InstanceFlags::empty().with_env();
        wgpu::Instance::new(descriptor)
    });
    pollster::block_on(instance.enumerate_adapters(backends))
}

/// Whether the adapter is a CPU pretending to be a GPU (llvmpipe, SwiftShader, WARP).
pub fn is_software(info: &wgpu::AdapterInfo) -> bool {
    const NAMES: [&str; 5] = ["llvmpipe", "lavapipe", "softpipe", "swiftshader", "microsoft basic render"];
    let name = info.name.to_lowercase();
    info.device_type == wgpu::DeviceType::Cpu || NAMES.iter().any(|n| name.contains(n))
}

/// What the driver says the hardware is.
fn class(info: &wgpu::AdapterInfo) -> Class {
    /// PCI vendor of Apple.
    const APPLE: u32 = 0x106b;
    match info.device_type {
        _ if is_software(info) => Class::Software,
        _ if info.backend == wgpu::Backend::Metal && (info.vendor == APPLE || info.name.starts_with("Apple")) => {
            Class::Apple
        }
        wgpu::DeviceType::IntegratedGpu => Class::Integrated,
        wgpu::DeviceType::DiscreteGpu => Class::Discrete,
        _ => Class::Unknown,
    }
}

/// Side of the cooperative matrices that the adapter multiplies in f16 and adds up in f32: 16, else 8, else 0 (none).
fn cooperative_size(adapter: &wgpu::Adapter) -> u32 {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16) {
        return 0;
    }
    let offered = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        offered.iter().any(|p| [p.m_size, p.n_size, p.k_size] == [side; 3] && p.ab_type == F16 && p.cr_type == F32)
    };
    [16, 8].into_iter().find(|side| has(*side)).unwrap_or(0)
}

/// What the kernels may use of an adapter that is opened with these options.
pub fn caps(adapter: &wgpu::Adapter, options: &Options) -> Caps {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let has = |f| adapter.features().contains(f);
    let want = options.features;
    let cooperative_size = cooperative_size(adapter);
    let features = Features {
        subgroups: want.subgroups && has(wgpu::Features::SUBGROUP),
        f16: want.f16 && has(wgpu::Features::SHADER_F16),
        // Part of the language; wgpu does not tell whether the hardware has an instruction for it.
        packed_dot: want.packed_dot,
        cooperative_matrix: want.cooperative_matrix && cooperative_size > 0,
        timestamps: want.timestamps && has(wgpu::Features::TIMESTAMP_QUERY),
        pipeline_cache: want.pipeline_cache && has(wgpu::Features::PIPELINE_CACHE),
    };
    let max_binding = limits.max_storage_buffer_binding_size.min(i32::MAX as u64) & !255;
    let software = is_software(&info);
    let unwatched = software && !options.as_hardware;
    // Low guesses: they only decide how finely work is cut for the watchdog.
    let (flops, bytes) = options.rates.unwrap_or(if software { (2e9, 1e9) } else { (100e9, 10e9) });
    Caps {
        features,
        limits: Limits {
            max_binding: options.max_binding.map_or(max_binding, |m| m.min(max_binding)),
            max_buffer: limits.max_buffer_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment as u64,
            max_groups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            workgroup_memory: limits
                .max_compute_workgroup_storage_size
                .min(options.max_workgroup_memory.unwrap_or(u32::MAX)),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        },
        subgroup_sizes: if features.subgroups { (info.subgroup_min_size, info.subgroup_max_size) } else { (0, 0) },
        software: unwatched,
        class: class(&info),
        cooperative_size: if features.cooperative_matrix { cooperative_size } else { 0 },
        tuned: options.choices,
        flops_per_second: flops,
        bytes_per_second: bytes,
        seconds_per_dispatch: options.seconds_per_dispatch.unwrap_or(if unwatched { NO_WATCHDOG } else { 0.1 }),
    }
}

/// Seconds of a dispatch that nothing watches.
const NO_WATCHDOG: f64 = 3600.0;

/// The wgpu features to request of `adapter` for these capabilities.
pub(super) fn required(adapter: &wgpu::Adapter, features: &Features) -> wgpu::Features {
    let mut required = wgpu::Features::empty();
    required.set(wgpu::Features::SUBGROUP, features.subgroups);
    required.set(wgpu::Features::SHADER_F16, features.f16 || features.cooperative_matrix);
    required.set(wgpu::Features::TIMESTAMP_QUERY, features.timestamps);
    // f16 operands of cooperative matrices are f16 of the language, too.
    required.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, features.cooperative_matrix);
    let inside = wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
    required.set(inside, features.timestamps && adapter.features().contains(inside));
    required.set(wgpu::Features::PIPELINE_CACHE, features.pipeline_cache);
    required
}

/// Leave to use what wgpu calls experimental, where these features need it.
pub(super) fn experimental(features: &Features) -> wgpu::ExperimentalFeatures {
    match features.cooperative_matrix {
        // SAFETY: the kernels use cooperative matrices as their specification says; naga validates each of them in the tests.
        true => unsafe { wgpu::ExperimentalFeatures::enabled() },
        false => wgpu::ExperimentalFeatures::disabled(),
    }
}
