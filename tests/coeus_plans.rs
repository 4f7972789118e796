//! What the coeus presets need, read from their plans: bytes, how they grow with the context, and the limits of small GPUs. Nothing is
//! allocated and nothing runs.

use lynx_gpu::config::{Config, OptimizerConfig, PRESETS};
use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::{Caps, Limits, lower, workspace_bytes};
use lynx_gpu::graph::{Graph, Plan, Precision};
use lynx_gpu::models::session::graphs;
use lynx_gpu::models::{LanguageModel, setup};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Counts are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

/// The presets of the six versions, without recipes on other data.
fn presets() -> Vec<&'static str> {
    PRESETS.iter().map(|p| p.name).filter(|n| n.starts_with("coeus-v")).collect()
}

fn model(preset: &str, vocab_size: usize, context: usize) -> Box<dyn LanguageModel> {
    let mut config = Config::load(preset, &[format!("model.context={context}")]).unwrap().0;
    config.set_vocab_size(vocab_size).unwrap();
    setup::model(&config.model).unwrap()
}

fn training(model: &dyn LanguageModel, shape: (usize, usize)) -> Plan {
    Plan::new(&graphs::whole_step(model, &OptimizerConfig::default(), shape, Precision::F32).unwrap()).unwrap()
}

/// Scratch memory on a GPU of which only WebGPU's defaults are known.
fn workspace(plan: &Plan) -> u64 {
    workspace_bytes(&plan.work, &Caps::PLAIN)
}

#[test]
fn the_reports_two_training_steps_fit_a_gigabyte_and_a_half() {
    for (preset, vocab_size, batch) in [("coeus-v1-nano", 65, 8), ("coeus-v2.6-nano", 50_257, 4)] {
        let budget = Config::load(preset, &[]).unwrap().0.run.budget().unwrap();
        assert_eq!(budget, Some(1_500_000_000), "the preset asks for what the report had");
        let whole = training(model(preset, vocab_size, 1024).as_ref(), (batch, 1024));
        let before = whole.memory.total() + workspace(&whole);
        let plan = whole.within(1_500_000_000 - 64_000_000, &Device::Cpu).unwrap();
        let total = plan.memory.total() + workspace(&plan);
        say!(
            "{preset}, {vocab_size} tokens, {batch} x 1024: {:.3} GB planned, {:.3} GB with everything kept; {}",
            total as f64 / 1e9,
            before as f64 / 1e9,
            plan.recomputed.as_ref().map_or_else(String::new, |r| r.line())
        );
        assert!(total <= 1_500_000_000, "{preset}: {total} bytes, {:?}", plan.memory);
    }
}

/// The largest deviation of four points from the straight line through the first and the last, relative to the line.
fn bend(points: &[(usize, u64)]) -> f64 {
    let ((x0, y0), (x1, y1)) = (points[0], points[points.len() - 1]);
    let slope = (y1 as f64 - y0 as f64) / (x1 - x0) as f64;
    let off = |&(x, y): &(usize, u64)| {
        let line = y0 as f64 + slope * (x - x0) as f64;
        (y as f64 - line).abs() / line
    };
    points.iter().map(off).fold(0.0, f64::max)
}

/// The nodes with an output that has two axes as long as the context, or one as long as its square: of two plans for contexts of which
/// one is twice the other, what grows more than twofold.
fn quadratic(one: &Graph, two: &Graph) -> Vec<String> {
    assert_eq!(one.nodes().len(), two.nodes().len(), "the plans for two contexts are not alike");
    let pairs = one.nodes().iter().zip(two.nodes());
    let outputs = pairs.flat_map(|(a, b)| a.outputs.iter().zip(&b.outputs).map(move |(x, y)| (&b.name, x, y)));
    outputs
        .filter(|(_, x, y)| {
            let growing = x.shape.iter().zip(&y.shape).filter(|(a, b)| **b as f64 > 1.5 * **a as f64).count();
            growing > 1 || y.elements() > 2 * x.elements() + 64
        })
        .map(|(name, x, y)| format!("{name}: {x}, {y}"))
        .collect()
}

#[test]
fn planned_memory_grows_as_a_straight_line_with_the_context_in_every_preset() {
    let contexts = [1024, 2048, 4096, 8192];
    let lines: Vec<String> = presets()
        .par_iter()
        .map(|preset| {
            let mut lines = vec![];
            for kind in ["training", "inference"] {
                let plans: Vec<(usize, Plan)> = contexts
                    .iter()
                    .map(|&t| {
                        let model = model(preset, 65, t);
                        let plan = match kind {
                            "training" => training(model.as_ref(), (1, t)),
                            _ => Plan::new(&graphs::evaluation(model.as_ref(), (1, t), &Default::default()).unwrap())
                                .unwrap(),
                        };
                        (t, plan)
                    })
                    .collect();
                let points: Vec<(usize, u64)> = plans.iter().map(|(t, plan)| (*t, plan.memory.total())).collect();
                let bent = bend(&points);
                let mega: Vec<String> = points.iter().map(|(_, y)| format!("{:.1}", *y as f64 / 1e6)).collect();
                lines.push(format!("{preset} {kind}: {} MB, {:.2} % off the line", mega.join(", "), 100.0 * bent));
                assert!(bent <= 0.01, "{preset} {kind}: {points:?}");
                // Scratch memory depends on the forms that kernels take at a size (partial sums of a product come and go), so it is
                // on no line; it must not grow faster than one.
                let scratch: Vec<u64> = plans.iter().map(|(_, plan)| workspace(plan)).collect();
                let slow = scratch.windows(2).all(|w| w[1] <= 2 * w[0] + (4 << 20));
                assert!(slow, "{preset} {kind}: workspaces of {scratch:?} bytes");
                for pair in plans.windows(2) {
                    let found = quadratic(&pair[0].1.graph, &pair[1].1.graph);
                    assert!(found.is_empty(), "{preset} {kind}: {found:#?}");
                }
            }
            lines.join("\n")
        })
        .collect();
    lines.iter().for_each(|line| say!("{line}"));
}

/// Bytes of workgroup memory of a shader.
fn workgroup_memory(source: &str) -> u32 {
    let module = naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    let shared = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
    shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum()
}

#[test]
fn nano_plans_stay_inside_the_default_limits_of_webgpu() {
    let caps = Caps::PLAIN;
    assert_eq!(caps.limits, Limits::WEBGPU);
    let limits = caps.limits;
    let nano: Vec<&str> = presets().into_iter().filter(|n| n.ends_with("nano")).collect();
    let shaders: Vec<BTreeMap<String, String>> = nano
        .par_iter()
        .flat_map(|preset| [65, 50_257].map(|vocab_size| (*preset, vocab_size)))
        .map(|(preset, vocab_size)| {
            let mut shaders = BTreeMap::new();
            let model = model(preset, vocab_size, 1024);
            let evaluation =
                Plan::new(&graphs::evaluation(model.as_ref(), (4, 1024), &Default::default()).unwrap()).unwrap();
            for plan in [training(model.as_ref(), (4, 1024)), evaluation] {
                for buffer in &plan.work.buffers {
                    assert!(buffer.bytes <= limits.max_buffer, "{preset}, {vocab_size}: {buffer:?}");
                }
                for (call, lowered) in plan.work.calls.iter().zip(lower(&plan.work, &caps)) {
                    let at = format!("{preset}, {vocab_size} tokens: {} ({})", call.label, call.kernel.name());
                    assert_eq!(lowered.fallback, None, "{at}");
                    for d in lowered.dispatches {
                        assert!(
                            d.binds.len() <= limits.max_storage_buffers as usize,
                            "{at}: {} buffers",
                            d.binds.len()
                        );
                        let largest = d.binds.iter().map(|b| b.bytes).max().unwrap_or(0);
                        assert!(largest <= limits.max_binding, "{at}: a binding of {largest} bytes");
                        shaders.insert(d.shader.source.to_string(), at.clone());
                    }
                }
            }
            shaders
        })
        .collect();
    let shaders: BTreeMap<String, String> = shaders.into_iter().flatten().collect();
    let most = shaders.par_iter().map(|(source, at)| {
        let memory = workgroup_memory(source);
        assert!(memory <= limits.workgroup_memory, "{at}: {memory} bytes of workgroup memory");
        memory
    });
    say!("{} shaders, at most {} bytes of workgroup memory", shaders.len(), most.max().unwrap_or(0));
}
