//! The cooperative-matrix product on a device that has none: each cooperative operation of its shader is replaced by a plain function
//! over workgroup memory, so that tiles, edges, transposes and stores are executed and compared with the error bound that the
//! shader states.

use half::f16;
use lynx_gpu::Result;
use lynx_gpu::device::gpu::tiles::{Change, Class, MatmulForm};
use lynx_gpu::device::gpu::{Caps, Context, Features, Limits, Lowered, Lowering, Options, Params, Shader, lower};
use lynx_gpu::device::{CpuCall, Device, Kernel, Store, Unsupported};
use lynx_gpu::graph::{Graph, Plan};
use lynx_gpu::tensor::{HostTensor, RefTensor, TensorType};
use std::sync::Arc;

/// A kernel whose dispatches are those of `lowered`, emulated.
#[derive(Debug)]
struct Emulated {
    inner: Arc<dyn Kernel>,
    lowered: Lowered,
    side: usize,
}

impl Kernel for Emulated {
    fn name(&self) -> &'static str {
        "emulated"
    }
    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        self.inner.reference(inputs, outputs)
    }
    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        self.inner.cpu(call)
    }
    fn gpu(&self, l: &mut Lowering) -> std::result::Result<(), Unsupported> {
        for bytes in &self.lowered.scratch {
            l.scratch(*bytes);
        }
        for d in &self.lowered.dispatches {
            let source = emulated(&d.shader.source, self.side).into();
            let shader = Shader { source, ..d.shader.clone() };
            l.dispatch_source(shader, &d.binds, Params(d.params.clone()), d.groups)?;
        }
        Ok(())
    }
}

/// A matrix of A or B is the place of its first element in its tile; one of C is a slot of `sums`, of which each lane of the subgroup
/// keeps every eighth element.
fn emulated(source: &str, side: usize) -> String {
    if !source.contains("enable wgpu_cooperative_matrix;") {
        return source.into(); // the second pass of a split sum
    }
    let matrix = |kind: &str| format!("coopLoadT<coop_mat{side}x{side}<{kind}>>");
    let source = source
        .replace("enable wgpu_cooperative_matrix;", "")
        .replace("let tile = tile_at(t);", "let tile = tile_at(t);\n    lane = local % 8u;\n    own = team;")
        .replace(&format!("{}(&tile_a[", matrix("f16, A")), "(")
        .replace(&format!("{}(&tile_b[", matrix("f16, B")), "(")
        .replace(&format!("{}(&fragments[", matrix("f32, C")), "load_c(")
        .replace("coopStoreT(", "store_c(")
        .replace(", &fragments[", ", ")
        .replace("], LINE_A)", ")")
        .replace("], LINE_B)", ")")
        .replace(&format!("], {side}u)"), ")")
        .replace("coopMultiplyAdd(", "multiply_add(");
    assert!(["coop_mat", "coopLoad", "coopStore", "coopMul"].iter().all(|word| !source.contains(word)), "{source}");
    let (all, slots) = (side * side, (32 / side) * (32 / side));
    let each = format!("for (var e = lane; e < {all}u; e += 8u)");
    let terms: Vec<String> = (0..side)
        .map(|k| format!("f32(tile_a[a + e / {side}u * LINE_A + {k}u]) * f32(tile_b[b + {k}u * LINE_B + e % {side}u])"))
        .collect();
    let terms = terms.join(" + ");
    source
        + &format!(
            "var<private> lane: u32;
            var<private> own: u32;
            var<private> slots: u32;
            var<workgroup> sums: array<f32, {}>;
            fn load_c(at: u32) -> u32 {{
                let slot = (own * {slots}u + slots) * {all}u;
                slots += 1u;
                {each} {{ sums[slot + e] = fragments[at + e]; }}
                return slot;
            }}
            fn store_c(slot: u32, at: u32) {{ {each} {{ fragments[at + e] = sums[slot + e]; }} }}
            fn multiply_add(a: u32, b: u32, slot: u32) -> u32 {{
                {each} {{ sums[slot + e] += {terms}; }}
                return slot;
            }}\n",
            4 * slots * all
        )
}

/// A device with subgroups of 8 and cooperative matrices.
fn caps(side: u32) -> Caps {
    let features = Features { cooperative_matrix: true, subgroups: true, f16: true, ..Features::NONE };
    let limits = Limits { workgroup_memory: 32 << 10, ..Limits::WEBGPU };
    let tuned = Some(Change::Matmul(MatmulForm::Cooperative).of(Class::Discrete.choices()));
    let rates = Caps { flops_per_second: 1e12, bytes_per_second: 1e11, ..Caps::PLAIN };
    Caps { features, limits, tuned, subgroup_sizes: (8, 8), cooperative_size: side, ..rates }
}

fn values(n: usize, seed: u64, f16_only: bool) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let v = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        if f16_only { f16::from_f32(v).to_f32() } else { v }
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn cooperative_products_keep_the_error_bound_they_state_at_every_edge_and_transpose() {
    let Some(adapter) = Context::adapters().into_iter().next() else {
        assert!(std::env::var_os("LYNX_REQUIRE_GPU").is_none(), "LYNX_REQUIRE_GPU is set and no GPU was found");
        eprintln!("SKIPPED: no GPU adapter");
        return;
    };
    let context = Context::open(&adapter, Options::default()).unwrap();
    let own = context.caps();
    if !own.features.f16 || own.subgroup_sizes != (8, 8) {
        eprintln!("SKIPPED: the emulation needs f16 and subgroups of 8");
        return;
    }
    let device = Device::Gpu(context.clone());
    let shapes = [[70, 68, 40], [65, 35, 21], [5, 130, 33], [64, 64, 520]];
    for (n, (ta, tb)) in [(false, false), (true, false), (false, true), (true, true)].into_iter().enumerate() {
        for (side, [m, width, k], exact) in [(16, shapes[n], false), (8, shapes[(n + 1) % 4], true)] {
            let what = format!("side {side}, {m} x {width} x {k}, ta {ta}, tb {tb}, f16 values {exact}");
            let mut g = Graph::new();
            let a_shape = if ta { [k, m] } else { [m, k] };
            let b_shape = if tb { [width, k] } else { [k, width] };
            let (a, b) = (g.input("a", TensorType::f32(&a_shape)), g.input("b", TensorType::f32(&b_shape)));
            let (bias, residual) =
                (g.input("bias", TensorType::f32(&[width])), g.input("r", TensorType::f32(&[m, width])));
            let product = g.matmul_t(a, b, ta, tb).unwrap();
            let biased = g.add(product, bias).unwrap();
            let y = g.add(biased, residual).unwrap();
            g.output("y", y);
            let mut work = Plan::new(&g).unwrap().work;
            assert_eq!(work.calls.len(), 1, "{what}");
            let lowered = lower(&work, &caps(side)).remove(0);
            assert_eq!(lowered.dispatches[0].shader.label, "matmul/cooperative", "{what}");
            let inner = work.calls[0].kernel.clone();
            work.calls[0].kernel = Arc::new(Emulated { inner, lowered, side: side as usize });
            let (av, bv) = (values(m * k, 1, exact), values(k * width, 2, exact));
            let (biases, rest) = (values(width, 3, false), values(m * width, 4, false));
            let mut executable = device.prepare(work, &mut Store::new(&device)).unwrap();
            let notes = executable.notes();
            assert!(notes.fallback.is_empty(), "{what}: {:?}", notes.fallback);
            for (name, shape, v) in [
                ("a", &a_shape[..], &av),
                ("b", &b_shape[..], &bv),
                ("bias", &[width], &biases),
                ("r", &[m, width], &rest),
            ] {
                executable.write_input(name, &HostTensor::f32(shape, v.clone())).unwrap();
            }
            executable.run().unwrap();
            let result = executable.read_output("y").unwrap();
            let result = result.as_f32().unwrap();
            let (u, eps) = (if exact { 0.0 } else { f64::powi(2.0, -11) }, f64::powi(2.0, -24));
            for i in 0..m {
                for j in 0..width {
                    let terms = (0..k).map(|l| {
                        let x = if ta { av[l * m + i] } else { av[i * k + l] };
                        let y = if tb { bv[j * k + l] } else { bv[l * width + j] };
                        x as f64 * y as f64
                    });
                    let (sum, magnitude) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                    let (extra, size) = (biases[j] as f64 + rest[i * width + j] as f64, 2.0);
                    // Values below f16's normal range: an absolute error of 2^-25 in an operand of at most 1.
                    let small = if exact { 0.0 } else { 2.0 * k as f64 * f64::powi(2.0, -25) };
                    let bound = (2.0 * u + u * u + k as f64 * eps) * magnitude + small + 3.0 * eps * (magnitude + size);
                    let error = (result[i * width + j] as f64 - sum - extra).abs();
                    assert!(error <= bound, "{what}: [{i}, {j}] is off by {error:e}, the bound is {bound:e}");
                }
            }
        }
    }
}

#[test]
fn products_are_cooperative_only_where_asked_for_or_where_operands_are_stored_as_f16() {
    let label = |caps: &Caps| {
        let mut g = Graph::new();
        let (a, b) = (g.input("a", TensorType::f32(&[512, 256])), g.input("b", TensorType::f32(&[256, 512])));
        let y = g.matmul(a, b).unwrap();
        g.output("y", y);
        lower(&Plan::new(&g).unwrap().work, caps)[0].dispatches[0].shader.label.clone()
    };
    assert_eq!(label(&caps(16)), "matmul/cooperative");
    for class in [Class::Integrated, Class::Discrete, Class::Apple, Class::Unknown] {
        let by_default = Caps { tuned: None, class, ..caps(16) };
        assert!(label(&by_default).starts_with("matmul/tiled"), "{class:?}");
    }
}
