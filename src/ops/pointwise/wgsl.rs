//! WGSL for an elementwise program: one thread computes one element, or four neighbours when the innermost axis allows it. A result
//! of 16 bits is written in whole words: two elements a thread, or four.

use super::Pointwise;
use crate::device::Unsupported;
use crate::device::gpu::{Bind, Buf, Lowering, Params, Shader, render};
use crate::tensor::{DType, broadcast_strides};
use kernels_cpu::program::{Binary, Instr, Program, Unary};
use minijinja::context;
use std::fmt::Write;

const MATH: &str = include_str!("../../../shaders/math.wgsl");
const HALVES: &str = include_str!("../../../shaders/halves.wgsl");
const WORKGROUP: usize = 64;

/// How one operand is read, after neighbouring axes with the same pattern are merged.
struct Access {
    dtype: DType,
    /// Stride of each merged axis in elements; 0 where the operand is broadcast.
    strides: Vec<usize>,
    /// Written as output 0 (the operand shares its memory).
    aliased: bool,
}

impl Access {
    /// Contiguous over the whole iteration space.
    fn full(&self, dims: &[usize]) -> bool {
        let mut expect = 1;
        dims.iter().zip(&self.strides).rev().all(|(d, s)| {
            let ok = *s == expect || *d == 1;
            expect *= d;
            ok
        })
    }
    fn scalar(&self) -> bool {
        self.strides.iter().all(|s| *s == 0)
    }
}

pub fn lower(op: &Pointwise, lowering: &mut Lowering) -> Result<(), Unsupported> {
    let shape = &lowering.output(0).shape;
    let elements = lowering.output(0).elements();
    let mut accesses: Vec<Access> = (0..lowering.inputs())
        .map(|i| Access {
            dtype: lowering.input(i).dtype,
            strides: broadcast_strides(&lowering.input(i).shape, shape),
            aliased: lowering.alias_of(i).is_some(),
        })
        .collect();
    let dims = merge(shape, &mut accesses);
    let inner = *dims.last().unwrap_or(&1);
    let quad = inner.is_multiple_of(4) && accesses.iter().all(|a| matches!(a.strides.last(), Some(0 | 1) | None));
    let out = lowering.output(0).dtype;
    // Elements an invocation writes. Where some operand is of 16 bits, parts of a cut start at whole words too.
    let width = if quad {
        4
    } else if out.is_half() || accesses.iter().any(|a| a.dtype.is_half() && a.full(&dims)) {
        2
    } else {
        1
    };

    // Only operands that walk along with the output can be cut with it.
    let unit = |dtype: DType| (dtype.bytes() * width) as u64;
    let row_bytes: Vec<u64> = std::iter::once(unit(out))
        .chain(accesses.iter().filter(|a| a.full(&dims) && !a.aliased).map(|a| unit(a.dtype)))
        .collect();
    let work = op.program.instrs.len() * width;
    let source = source(op, out, &accesses, &dims, width)?;
    for range in lowering.chunks(elements.div_ceil(width), &row_bytes, work as f64)? {
        let end = (range.end * width).min(elements);
        let bytes = |dtype: DType| (range.start * width * dtype.bytes()) as u64..(end * dtype.bytes()) as u64;
        let mut binds: Vec<Bind> = vec![lowering.write_part(Buf::Out(0), bytes(out))];
        for (i, a) in accesses.iter().enumerate().filter(|(_, a)| !a.aliased) {
            let part = match a.full(&dims) {
                true => lowering.read_part(Buf::In(i), bytes(a.dtype)),
                false => lowering.read(Buf::In(i)),
            };
            binds.push(part);
        }
        let mut params = Params::new().u32(end - range.start * width).u32(range.start * width);
        for d in &dims {
            params = params.u32(*d);
        }
        for a in accesses.iter().filter(|a| !a.full(&dims) && !a.scalar()) {
            for s in &a.strides {
                params = params.u32(*s);
            }
        }
        let groups = lowering.line(range.len().div_ceil(WORKGROUP));
        let form = ["scalar", "pairs", "vec4"][width / 2];
        let label = format!("pointwise/{form}{}", op.program.instrs.len());
        lowering.dispatch_source(Shader { label, source: source.clone(), entry: "main" }, &binds, params, groups)?;
    }
    Ok(())
}

/// Joins neighbouring axes that every operand walks in the same way, and drops axes of one element.
fn merge(shape: &[usize], accesses: &mut [Access]) -> Vec<usize> {
    let mut dims: Vec<usize> = Vec::new();
    let mut merged: Vec<Vec<usize>> = vec![vec![]; accesses.len()];
    for (axis, &d) in shape.iter().enumerate() {
        if d == 1 {
            continue;
        }
        let joins = !dims.is_empty()
            && accesses.iter().zip(&merged).all(|(a, m)| m.last().is_some_and(|outer| *outer == a.strides[axis] * d));
        if joins {
            *dims.last_mut().expect("checked above") *= d;
            for (a, m) in accesses.iter().zip(&mut merged) {
                *m.last_mut().expect("one stride an axis") = a.strides[axis];
            }
        } else {
            dims.push(d);
            for (a, m) in accesses.iter().zip(&mut merged) {
                m.push(a.strides[axis]);
            }
        }
    }
    for (a, m) in accesses.iter_mut().zip(merged) {
        a.strides = m;
    }
    dims
}

/// The WGSL text. The parameter `n` counts elements from `base` on; an invocation computes `width` of them: four at once, or one
/// after another by the function `element`.
fn source(
    op: &Pointwise,
    out: DType,
    accesses: &[Access],
    dims: &[usize],
    width: usize,
) -> Result<std::sync::Arc<str>, Unsupported> {
    let scalar_type = |d: DType| match d {
        DType::F32 => "f32",
        DType::I32 => "i32",
        _ => "u32",
    };
    // What an array holds: one element or a quad; 16-bit elements two to a word.
    let stored = |d: DType, wide: bool| match (d.is_half(), wide) {
        (true, true) => "vec2<u32>".to_string(),
        (true, false) => "u32".to_string(),
        (false, true) => format!("vec4<{}>", scalar_type(d)),
        (false, false) => scalar_type(d).to_string(),
    };
    let quad = width == 4;
    let float = if quad { "vec4<f32>" } else { "f32" };
    let mut w = render(MATH, &context! {}).map_err(|e| Unsupported(e.to_string()))?.to_string();
    if out.is_half() || accesses.iter().any(|a| a.dtype.is_half()) {
        w.push_str(HALVES);
    }
    let out_type = stored(out, quad);
    let _ = writeln!(w, "@group(0) @binding(0) var<storage, read_write> out: array<{out_type}>;");
    let mut binding = 1;
    for (i, a) in accesses.iter().enumerate().filter(|(_, a)| !a.aliased) {
        let wide = quad && a.strides.last() == Some(&1);
        let _ = writeln!(w, "@group(0) @binding({binding}) var<storage, read> x{i}: array<{}>;", stored(a.dtype, wide));
        binding += 1;
    }
    let mut fields = String::from("n: u32, base: u32,");
    for k in 0..dims.len() {
        let _ = write!(fields, " d{k}: u32,");
    }
    for (i, _) in accesses.iter().enumerate().filter(|(_, a)| !a.full(dims) && !a.scalar()) {
        for k in 0..dims.len() {
            let _ = write!(fields, " s{i}_{k}: u32,");
        }
    }
    let _ = writeln!(w, "struct Params {{ {fields} }}\n@group(0) @binding({binding}) var<uniform> p: Params;");
    // Element (or quad) `i` of the part that is bound.
    let _ = writeln!(w, "fn element(i: u32) -> {float} {{");
    if accesses.iter().any(|a| !a.full(dims) && !a.scalar()) {
        let step = if quad { 4 } else { 1 };
        let _ = writeln!(w, "var rest = p.base + i * {step}u;");
        for k in (1..dims.len()).rev() {
            let _ = writeln!(w, "let q{k} = rest / p.d{k}; let i{k} = rest - q{k} * p.d{k}; rest = q{k};");
        }
        let _ = writeln!(w, "let i0 = rest;");
    }
    for (i, a) in accesses.iter().enumerate() {
        let index = index(i, a, dims, width);
        let name = if a.aliased { "out".to_string() } else { format!("x{i}") };
        let wide = quad && (a.aliased || a.strides.last() == Some(&1));
        let value = match (a.dtype, wide) {
            (DType::F32, _) => format!("{name}[{index}]"),
            (DType::F16 | DType::Bf16, true) => {
                let unpack = format!("unpack_{}", a.dtype);
                format!("vec4<f32>({unpack}({name}[{index}].x), {unpack}({name}[{index}].y))")
            }
            (DType::F16 | DType::Bf16, false) => {
                let _ = writeln!(w, "let e{i} = {index};");
                format!("unpack_{}({name}[e{i} >> 1u])[e{i} & 1u]", a.dtype)
            }
            (_, true) => format!("vec4<f32>({name}[{index}])"),
            (_, false) => format!("f32({name}[{index}])"),
        };
        let value = if quad && !wide { format!("vec4<f32>({value})") } else { value };
        let _ = writeln!(w, "let a{i} = {value};");
    }
    body(&mut w, &op.program, if quad { 4 } else { 1 });
    let _ = writeln!(w, "return v{};\n}}", op.program.outputs[0]);
    let _ = writeln!(
        w,
        "@compute @workgroup_size({WORKGROUP})\nfn main(@builtin(global_invocation_id) gid: vec3<u32>, @builtin(num_workgroups) nwg: vec3<u32>) {{\n\
         let i = gid.x + gid.y * nwg.x * {WORKGROUP}u;\nif (i * {width}u >= p.n) {{ return; }}"
    );
    let cast = |value: &str| if out == DType::F32 { value.to_string() } else { format!("{out_type}({value})") };
    let text = match (width, out.is_half()) {
        (4, true) => format!("let v = element(i);\nout[i] = vec2<u32>(pack_{out}(v.xy), pack_{out}(v.zw));"),
        (2, true) => format!(
            "var v = vec2<f32>(element(2u * i), 0.0);\n\
             if (2u * i + 1u < p.n) {{ v.y = element(2u * i + 1u); }}\nout[i] = pack_{out}(v);"
        ),
        (2, false) => format!(
            "out[2u * i] = {};\nif (2u * i + 1u < p.n) {{ out[2u * i + 1u] = {}; }}",
            cast("element(2u * i)"),
            cast("element(2u * i + 1u)")
        ),
        _ => format!("out[i] = {};", cast("element(i)")),
    };
    let _ = writeln!(w, "{text}\n}}");
    Ok(w.into())
}

fn index(i: usize, a: &Access, dims: &[usize], width: usize) -> String {
    if a.full(dims) {
        return "i".into();
    }
    if a.scalar() {
        return "0u".into();
    }
    let terms: Vec<String> =
        (0..dims.len()).filter(|k| a.strides[*k] != 0).map(|k| format!("i{k} * p.s{i}_{k}")).collect();
    let sum = terms.join(" + ");
    if width == 4 && a.strides.last() == Some(&1) { format!("({sum}) / 4u") } else { sum }
}

fn body(w: &mut String, program: &Program, width: usize) {
    let float = if width == 4 { "vec4<f32>" } else { "f32" };
    for (k, instr) in program.instrs.iter().enumerate() {
        let value = match *instr {
            Instr::Input(n) => format!("a{n}"),
            Instr::Const(c) => format!("{float}(bitcast<f32>({}u))", c.to_bits()),
            Instr::Unary(op, a) => unary(op, &format!("v{a}"), width),
            Instr::Binary(op, a, b) => binary(op, &format!("v{a}"), &format!("v{b}"), float),
            Instr::Select(c, a, b) => format!("select(v{b}, v{a}, v{c} != {float}(0.0))"),
        };
        let _ = writeln!(w, "let v{k} = {value};");
    }
}

fn unary(op: Unary, x: &str, width: usize) -> String {
    let ours = |name: &str| format!("m_{name}_{width}({x})");
    let builtin = |name: &str| format!("{name}({x})");
    match op {
        Unary::Neg => format!("-({x})"),
        Unary::Abs => builtin("abs"),
        Unary::Sign => builtin("sign"),
        Unary::Exp => ours("exp"),
        Unary::Expm1 => ours("expm1"),
        Unary::Log => ours("log"),
        Unary::Log1p => ours("log1p"),
        Unary::Sqrt => builtin("sqrt"),
        Unary::Rsqrt => format!("1.0 / sqrt({x})"),
        Unary::Recip => format!("1.0 / ({x})"),
        Unary::Sin => ours("sin"),
        Unary::Cos => ours("cos"),
        Unary::Tanh => ours("tanh"),
        Unary::Sigmoid => ours("sigmoid"),
        Unary::Softplus => ours("softplus"),
        Unary::Silu => format!("({x}) * m_sigmoid_{width}({x})"),
        Unary::SiluGrad => ours("silu_grad"),
        Unary::GeluTanh => ours("gelu_tanh"),
        Unary::GeluTanhGrad => ours("gelu_tanh_grad"),
        Unary::GeluErf => ours("gelu_erf"),
        Unary::GeluErfGrad => ours("gelu_erf_grad"),
        Unary::Relu => format!("max({x}, {})", if width == 4 { "vec4<f32>(0.0)" } else { "0.0" }),
        Unary::Step => ours("step"),
        Unary::Trunc => builtin("trunc"),
    }
}

fn binary(op: Binary, a: &str, b: &str, float: &str) -> String {
    let compare = |sign: &str| format!("select({float}(0.0), {float}(1.0), {a} {sign} {b})");
    match op {
        Binary::Add => format!("{a} + {b}"),
        Binary::Sub => format!("{a} - {b}"),
        Binary::Mul => format!("{a} * {b}"),
        Binary::Div => format!("{a} / {b}"),
        Binary::Max => format!("max({a}, {b})"),
        Binary::Min => format!("min({a}, {b})"),
        Binary::Lt => compare("<"),
        Binary::Le => compare("<="),
        Binary::Eq => compare("=="),
    }
}
