//! Every shader that lowering can produce is parsed, validated and written as SPIR-V, Metal, HLSL and GLSL by naga, and stays
//! inside the limits of the device it was made for. Lowering is pure, so this needs no GPU: it keeps Metal and DX12 working on a
//! machine that has neither.

use lynx_gpu::device::gpu::tiles::{Change, Class, MatmulForm};
use lynx_gpu::device::gpu::{Buf, Caps, Dispatch, Features, Limits, lower};
use lynx_gpu::device::{Call, Work};
use lynx_gpu::graph::Plan;
use lynx_gpu::ops::{check, registry};
use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use rayon::prelude::*;
use std::collections::HashMap;

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

const SUBGROUPS: Features = Features { subgroups: true, ..Features::NONE };

/// Devices that exist, as far as a kernel can tell them apart.
fn devices() -> Vec<(&'static str, Caps)> {
    let plain = Caps::PLAIN;
    let fast = Caps { flops_per_second: 1e12, bytes_per_second: 1e11, ..plain };
    let with = |features, sizes| Caps { features, subgroup_sizes: sizes, ..fast };
    let large = Limits { workgroup_memory: 32 << 10, max_invocations: 1024, max_storage_buffers: 16, ..Limits::WEBGPU };
    let all = Features { cooperative_matrix: false, ..Features::ALL };
    let cooperative = |side, sizes| {
        let product = Change::Matmul(MatmulForm::Cooperative).of(Class::Discrete.choices());
        Caps { limits: large, cooperative_size: side, tuned: Some(product), ..with(Features::ALL, sizes) }
    };
    vec![
        ("plain WebGPU", plain),
        ("plain WebGPU, fast", fast),
        ("plain WebGPU, 1 MiB bindings", Caps { limits: Limits { max_binding: 1 << 20, ..Limits::WEBGPU }, ..fast }),
        ("plain WebGPU, 32 KiB workgroup memory", Caps { limits: large, ..fast }),
        ("software, plain", Caps { software: true, ..plain }),
        ("software, subgroups of 4", Caps { software: true, ..with(SUBGROUPS, (4, 4)) }),
        ("software, subgroups of 8, 32 KiB", Caps { software: true, limits: large, ..with(all, (8, 8)) }),
        ("subgroups of 8", with(SUBGROUPS, (8, 8))),
        ("subgroups of 8 to 32", with(SUBGROUPS, (8, 32))),
        ("subgroups of 32", with(SUBGROUPS, (32, 32))),
        ("subgroups of 64", with(SUBGROUPS, (64, 64))),
        ("subgroups of 128", with(SUBGROUPS, (128, 128))),
        ("f16", with(Features { f16: true, ..Features::NONE }, (0, 0))),
        ("packed dot", with(Features { packed_dot: true, ..Features::NONE }, (0, 0))),
        ("everything, subgroups of 32", Caps { limits: large, ..with(all, (32, 32)) }),
        ("everything, subgroups of 64", Caps { limits: large, ..with(all, (64, 64)) }),
        (
            "everything, subgroups of 32, 1 MiB bindings",
            Caps { limits: Limits { max_binding: 1 << 20, ..large }, ..with(all, (32, 32)) },
        ),
        ("cooperative matrices of 16", cooperative(16, (32, 32))),
        ("cooperative matrices of 16, subgroups of 32 to 64", cooperative(16, (32, 64))),
        ("cooperative matrices of 8", cooperative(8, (32, 32))),
    ]
}

/// What decides how a shader is compiled: its text, and whether the device has subgroups and f16.
type Variant = (std::sync::Arc<str>, bool, bool);

/// Where a variant was met first, and on the strictest limits under which it was met.
struct Met {
    label: String,
    place: String,
    limits: Limits,
}

fn capabilities(subgroups: bool, f16: bool) -> Capabilities {
    // `unpack2x16float`: part of WGSL, on every native backend.
    let mut c = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    c.set(Capabilities::SUBGROUP, subgroups);
    c.set(Capabilities::SHADER_FLOAT16, f16);
    // A shader that uses them says so, and then devices without them never see it.
    c.set(Capabilities::COOPERATIVE_MATRIX, subgroups && f16);
    c
}

fn parse((source, subgroups, f16): &Variant) -> Result<(naga::Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|e| e.emit_to_string(source))?;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities(*subgroups, *f16));
    validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

/// Parses, validates and writes a variant for every backend; checks it against the limits.
fn translate(variant: &Variant, met: &Met) -> Result<(), String> {
    let (module, info) = parse(variant)?;
    let entry = module.entry_points.first().ok_or("no entry point")?;
    let name = entry.name.clone();

    let invocations: u32 = entry.workgroup_size.iter().product();
    if invocations > met.limits.max_invocations || entry.workgroup_size[2] > 64 {
        return Err(format!(
            "workgroup of {:?}, the device allows {}",
            entry.workgroup_size, met.limits.max_invocations
        ));
    }
    let workgroup = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    let memory: u32 = workgroup.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
    if memory > met.limits.workgroup_memory {
        return Err(format!("{memory} bytes of workgroup memory, the device allows {}", met.limits.workgroup_memory));
    }

    let stage = naga::ShaderStage::Compute;
    let options = spv::PipelineOptions { shader_stage: stage, entry_point: name.clone() };
    let words =
        spv::write_vec(&module, &info, &spv::Options { lang_version: (1, 3), ..Default::default() }, Some(&options))
            .map_err(|e| format!("SPIR-V: {e}"))?;
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let (metal, translated) =
        msl::write_string(&module, &info, &options, &Default::default()).map_err(|e| format!("MSL: {e}"))?;
    for entry in translated.entry_point_names {
        entry.map_err(|e| format!("MSL: {e}"))?;
    }
    if words.len() < 20 || !metal.contains("kernel void") {
        return Err("a backend wrote no compute kernel".into());
    }
    // Vulkan and Metal offer them, and no other backend.
    if variant.0.contains("enable wgpu_cooperative_matrix") {
        return match metal.contains("simdgroup_multiply_accumulate") {
            true => Ok(()),
            false => Err("MSL does not multiply matrices".into()),
        };
    }
    let shader_model = if variant.2 { hlsl::ShaderModel::V6_2 } else { hlsl::ShaderModel::V6_0 };
    let options = hlsl::Options { shader_model, ..Default::default() };
    let pipeline = Default::default();
    let mut text = String::new();
    let written = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    for entry in written.entry_point_names {
        entry.map_err(|e| format!("HLSL: {e}"))?;
    }
    if !text.contains("numthreads") {
        return Err("HLSL has no compute kernel".into());
    }
    // GLSL has no f16.
    if !variant.2 {
        let options = glsl::Options { version: glsl::Version::Desktop(430), ..Default::default() };
        let pipeline = glsl::PipelineOptions { shader_stage: stage, entry_point: name, multiview: None };
        glsl::Writer::new(&mut text, &module, &info, &options, &pipeline, BoundsCheckPolicies::default())
            .and_then(|mut w| w.write())
            .map_err(|e| format!("GLSL: {e}"))?;
    }
    Ok(())
}

/// Bindings of the dispatch against those the shader declares: number, access, and the uniform block's exact size.
fn interface(dispatch: &Dispatch, module: &naga::Module) -> Result<(), String> {
    let n = dispatch.binds.len();
    let mut declared = vec![None; n + usize::from(!dispatch.params.is_empty())];
    for (_, v) in module.global_variables.iter() {
        let Some(at) = &v.binding else { continue };
        let known = at.group == 0 && (at.binding as usize) < declared.len();
        if !known {
            return Err(format!(
                "declares group {} binding {}, the dispatch binds {}",
                at.group,
                at.binding,
                declared.len()
            ));
        }
        declared[at.binding as usize] = Some(v);
    }
    for (i, v) in declared.into_iter().enumerate() {
        let Some(v) = v else { return Err(format!("binding {i} is bound but not declared")) };
        match v.space {
            naga::AddressSpace::Storage { access } if i < n => {
                let writes = access.contains(naga::StorageAccess::STORE);
                if writes != dispatch.binds[i].write {
                    return Err(format!(
                        "binding {i} is declared {access:?}, bound with write = {}",
                        dispatch.binds[i].write
                    ));
                }
            }
            naga::AddressSpace::Uniform if i == n => {
                let (have, want) = (dispatch.params.len() as u32 * 4, module.types[v.ty].inner.size(module.to_ctx()));
                if have != want {
                    return Err(format!("the uniform block has {want} bytes, the dispatch gives {have}"));
                }
            }
            other => return Err(format!("binding {i} is in {other:?}")),
        }
    }
    Ok(())
}

/// WebGPU forbids a buffer that is writable in one binding and read-only in another of the same dispatch.
fn aliasing(call: &Call, dispatch: &Dispatch) -> Result<(), String> {
    let buffer = |b: Buf| match b {
        Buf::In(i) => Some(call.inputs[i].buffer),
        Buf::Out(o) => Some(call.outputs[o].buffer),
        Buf::Scratch(_) => None,
    };
    let same = |a: Buf, b: Buf| a == b || buffer(a).is_some_and(|x| buffer(b) == Some(x));
    for (i, a) in dispatch.binds.iter().enumerate() {
        for b in &dispatch.binds[i + 1..] {
            if same(a.buf, b.buf) && a.write != b.write {
                return Err(format!("{:?} and {:?} are one buffer, writable in one binding only", a.buf, b.buf));
            }
        }
    }
    Ok(())
}

/// Both plans of every case: fused and in place, and as written.
fn works() -> Vec<(String, Work)> {
    let mut works = Vec::new();
    for spec in registry() {
        for case in (spec.cases)() {
            let at = format!("{} [{}]", spec.name, case.label);
            let built = check::build(&case, true).unwrap_or_else(|e| panic!("{at}: {e}"));
            for plan in [Plan::new(&built.graph), Plan::unoptimised(&built.graph)] {
                works.push((at.clone(), plan.unwrap_or_else(|e| panic!("{at}: {e}")).work));
            }
        }
    }
    works
}

#[test]
fn every_shader_variant_is_written_as_spirv_msl_hlsl_and_glsl_and_stays_inside_the_limits() {
    let works = works();
    let devices = devices();
    let mut variants: HashMap<Variant, Met> = HashMap::new();
    let mut interfaces: HashMap<(Variant, Vec<bool>, usize), (Dispatch, String)> = HashMap::new();
    let mut failures = Vec::new();
    let mut dispatches = 0;
    for (device, caps) in &devices {
        for (at, work) in &works {
            for (call, lowered) in work.calls.iter().zip(lower(work, caps)) {
                for d in lowered.dispatches {
                    dispatches += 1;
                    let place = format!("{} of {at} on {device}", d.shader.label);
                    if d.binds.len() > caps.limits.max_storage_buffers as usize {
                        failures.push(format!("{place}: {} storage buffers", d.binds.len()));
                    }
                    if d.groups.iter().any(|g| *g == 0 || *g > caps.limits.max_groups_per_dimension) {
                        failures.push(format!("{place}: {:?} workgroups", d.groups));
                    }
                    if let Err(e) = aliasing(call, &d) {
                        failures.push(format!("{place}: {e}"));
                    }
                    let variant: Variant = (d.shader.source.clone(), caps.features.subgroups, caps.features.f16);
                    let writes = d.binds.iter().map(|b| b.write).collect();
                    let met = variants.entry(variant.clone()).or_insert_with(|| Met {
                        label: d.shader.label.clone(),
                        place: format!("{at} on {device}"),
                        limits: caps.limits,
                    });
                    met.limits.max_invocations = met.limits.max_invocations.min(caps.limits.max_invocations);
                    met.limits.workgroup_memory = met.limits.workgroup_memory.min(caps.limits.workgroup_memory);
                    interfaces.entry((variant, writes, d.params.len())).or_insert((d, place));
                }
            }
        }
    }
    let mut labels: Vec<_> = variants.values().map(|m| m.label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    let mut sources: Vec<_> = variants.keys().map(|v| &v.0).collect();
    sources.sort_unstable();
    sources.dedup();
    say!(
        "{} distinct shaders ({} kernels), {} variants with the features they are compiled for, from {dispatches} dispatches of {} \
         plans on {} simulated devices",
        sources.len(),
        labels.len(),
        variants.len(),
        works.len(),
        devices.len()
    );
    assert!(variants.len() > 10, "lowering produced hardly any shader");
    failures.extend(
        variants
            .par_iter()
            .filter_map(|(variant, met)| {
                translate(variant, met).err().map(|e| format!("{} of {}: {e}", met.label, met.place))
            })
            .collect::<Vec<_>>(),
    );
    failures.extend(
        interfaces
            .par_iter()
            .filter_map(|((variant, _, _), (dispatch, place))| {
                // A shader that does not parse is reported above.
                let (module, _) = parse(variant).ok()?;
                interface(dispatch, &module).err().map(|e| format!("{place}: {e}"))
            })
            .collect::<Vec<_>>(),
    );
    failures.sort_unstable();
    assert!(failures.is_empty(), "{} defects:\n{}", failures.len(), failures.join("\n"));
}
