//! Every format in both orders of its bytes; rows that fill no tile, one block and several, operands over 1 MiB.

use super::{Activations, Layout, PackedEmbedding, PackedLinear, Packing, Unpack};
use crate::ops::matmul::Epilogue;
use crate::ops::{Case, Sample, Values};
use crate::tensor::DType;
use kernels_cpu::blocks::Format;
use kernels_cpu::gemm::Activation;
use kernels_cpu::half::f32_to_f16;
use kernels_cpu::packed;
use kernels_cpu::packed::samples::random_rows;

/// The bytes of rows as a packed operand.
fn operand(packing: &Packing, rows: &[u8]) -> Sample {
    let mut packed = vec![0; packing.bytes()];
    packed::pack(packing, rows, &mut packed);
    let values = packed.iter().map(|b| f64::from(*b as i8)).collect();
    Sample::typed(DType::I8, &[packed.len()], Values::Fixed(values))
}

fn random(packing: &Packing) -> Sample {
    operand(packing, &random_rows(packing.format, packing.rows, packing.columns, 5))
}

/// Both orders, or the one that the format has.
fn packings(format: Format, rows: usize, columns: usize) -> Vec<Packing> {
    [Layout::Rows, Layout::Tiles].into_iter().flat_map(|l| Packing::new(format, l, rows, columns)).collect()
}

fn label(p: &Packing) -> String {
    let order = if p.layout == Layout::Tiles { "tiles" } else { "rows" };
    format!("{} {order} [{},{}]", p.format, p.rows, p.columns)
}

fn product(packing: Packing, activations: Activations, m: usize, epilogue: Epilogue) -> Case {
    let x = Sample::normal(&[m, packing.columns]);
    let int8 = activations == Activations::Int8;
    let mut operands = vec![if int8 { x.fixed() } else { x }, random(&packing)];
    if epilogue.bias.is_some() {
        operands.push(Sample::normal(&[packing.rows]));
    }
    if epilogue.residual.is_some() {
        operands.push(Sample::normal(&[m, packing.rows]));
    }
    let label = format!("m {m} {}{}", label(&packing), if int8 { " int8" } else { "" });
    // Sums of many terms of which the smallest weight is not 0 are large before they are small.
    let ulps = 4.0 + packing.columns as f64 / 64.0;
    let case = Case::new(label, PackedLinear { packing, activations, epilogue }, operands).ulps(ulps);
    // What a rounded x changes by has no derivative.
    if int8 { case.forward_only() } else { case }
}

/// Columns of several blocks of a format, and of one.
fn widths(format: Format) -> [usize; 2] {
    match format.block_len() {
        None => [67, 36],
        Some(1) => [37, 3],
        Some(256) => [512, 256],
        Some(len) => [3 * len, len],
    }
}

pub fn linear() -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = Epilogue::default();
    for format in Format::ALL {
        let [several, one] = widths(format);
        for packing in packings(format, 17, several) {
            cases.push(product(packing, Activations::F32, 1, plain));
            cases.push(product(packing, Activations::F32, 33, plain));
        }
        if let Ok(packing) = Packing::fastest_for_int8(format, 5, one) {
            cases.push(product(packing, Activations::Int8, 1, plain));
            cases.push(product(packing, Activations::Int8, 9, plain));
        }
    }
    for format in [Format::Q8_0, Format::Q4_0, Format::Int8Row] {
        let [several, one] = widths(format);
        for (n, m) in [(1, 1), (15, 2), (16, 5), (33, 3), (31, 4), (70, 9)] {
            if let Ok(packing) = Packing::fastest(format, n, if n % 2 == 0 { one } else { several }) {
                let both = [Activations::F32, Activations::Int8];
                cases.extend(both.map(|activations| product(packing, activations, m, plain)));
            }
        }
    }
    for layout in [Layout::Rows, Layout::Tiles] {
        // More than 1 MiB, few rows and many; sums that are added up in parts.
        let large = |n, k| Packing { format: Format::Q8_0, layout, rows: n, columns: k };
        cases.push(product(large(2100, 1024), Activations::F32, 1, plain).forward_only());
        cases.push(product(large(2100, 1024), Activations::Int8, 1, plain).forward_only());
        cases.push(product(large(1100, 1984), Activations::F32, 9, plain).forward_only());
        cases.push(product(large(9, 3008), Activations::F32, 9, plain));
    }
    let packing = Packing { format: Format::Q8_0, layout: Layout::Tiles, rows: 24, columns: 64 };
    for activation in [Activation::None, Activation::GeluErf] {
        for (m, activations) in [(1, Activations::F32), (18, Activations::F32), (3, Activations::Int8)] {
            let epilogue = Epilogue { bias: Some(2), activation, residual: Some(3) };
            cases.push(product(packing, activations, m, epilogue).ulps(32.0));
        }
    }
    cases.extend(extremes());
    let op = PackedLinear::new(packing, Activations::F32);
    cases.push(Case::new("x [2, 3, 64]", op, vec![Sample::normal(&[2, 3, 64]), random(&packing)]));
    cases
}

/// All scales 0, all scales the greatest, and activations whose blocks are zeros, tiny and ties.
fn extremes() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in [Format::Q8_0, Format::Q4_0, Format::Nf4] {
        for (name, scale) in [("zero", 0.0), ("greatest", 65504.0)] {
            for packing in packings(format, 18, 128) {
                let mut rows = random_rows(format, 18, 128, 9);
                let block = packing.row_bytes() / (128 / format.block_len().unwrap_or(128));
                for block in rows.chunks_exact_mut(block) {
                    block[..2].copy_from_slice(&f32_to_f16(scale).to_le_bytes());
                }
                let int8 = packing.layout == Layout::Tiles;
                let activations = if int8 { Activations::Int8 } else { Activations::F32 };
                let mut case = product(packing, activations, 1, Epilogue::default()).forward_only();
                case.inputs[1] = operand(&packing, &rows);
                case.label += &format!(", {name} scales");
                cases.push(case);
            }
        }
    }
    let packing = Packing { format: Format::Q8_0, layout: Layout::Tiles, rows: 5, columns: 128 };
    let mut x = vec![0.0; 32];
    x.extend((0..32).map(|i| f64::from(i - 16) * 1e-41));
    x.extend((0..32).map(|i| if i == 0 { 127.0 } else { f64::from(i) - 16.5 }));
    x.extend((0..32).map(|i| f64::from(i - 9) * 1e30));
    let mut case = product(packing, Activations::Int8, 1, Epilogue::default());
    case.inputs[0] = Sample::new(&[1, 128], Values::Fixed(x)).fixed();
    case.label += ", zeros, subnormal numbers, ties and large ones";
    cases.push(case);
    cases
}

pub fn embedding() -> Vec<Case> {
    let case = |packing: Packing, ids: &[usize]| {
        let operands = vec![random(&packing), Sample::ints(ids, 0, packing.rows as i64)];
        Case::new(format!("{} by {ids:?}", label(&packing)), PackedEmbedding { packing }, operands).forward_only()
    };
    let mut cases = Vec::new();
    for format in [Format::F16, Format::Int8Row, Format::Q4_0, Format::Q6K] {
        let [several, one] = widths(format);
        cases.extend(packings(format, 21, several).into_iter().map(|p| case(p, &[2, 9])));
        cases.extend(packings(format, 1, one).into_iter().map(|p| case(p, &[])));
    }
    let large = Packing { format: Format::Q8_0, layout: Layout::Tiles, rows: 2100, columns: 544 };
    cases.push(case(large, &[3, 211]));
    cases.push(case(Packing { layout: Layout::Rows, ..large }, &[300]));
    cases.push(case(Packing { rows: 7, ..large }, &[0]));
    cases
}

pub fn unpack() -> Vec<Case> {
    let case = |packing: Packing| Case::new(label(&packing), Unpack { packing }, vec![random(&packing)]).forward_only();
    let mut cases = Vec::new();
    for format in Format::ALL {
        let [several, one] = widths(format);
        cases.extend(packings(format, 33, several).into_iter().map(case));
        cases.extend(Packing::fastest(format, 1, one).map(case));
    }
    let large = Packing { format: Format::Q8_0, layout: Layout::Tiles, rows: 2100, columns: 544 };
    cases.push(case(large));
    cases.push(case(Packing { layout: Layout::Rows, ..large }));
    cases
}

const TIMED: [Format; 7] =
    [Format::F16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q6K, Format::Int4Group(64), Format::Nf4];

/// Zeros of the right size: what is timed does not depend on the values.
fn zeros(packing: &Packing) -> Sample {
    Sample::typed(DType::I8, &[packing.bytes()], Values::Int(0, 1))
}

/// Decoding a token, a few texts side by side and a prompt, with a layer of a large model.
pub fn linear_sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in TIMED {
        for m in [1, 4, 128] {
            for activations in [Activations::F32, Activations::Int8] {
                if let Ok(packing) = Packing::fastest(format, 4096, 4096) {
                    let int8 = if activations == Activations::Int8 { " int8" } else { "" };
                    let operands = vec![Sample::normal(&[m, 4096]).fixed(), zeros(&packing)];
                    let op = PackedLinear::new(packing, activations);
                    cases.push(Case::new(format!("{m}x4096x4096 {format}{int8}"), op, operands).forward_only());
                }
            }
        }
    }
    cases
}

pub fn embedding_sizes() -> Vec<Case> {
    let case = |format| {
        let packing = Packing::fastest(format, 32_000, 1024).ok()?;
        let operands = vec![zeros(&packing), Sample::ints(&[512], 0, 32_000)];
        Some(Case::new(label(&packing), PackedEmbedding { packing }, operands).forward_only())
    };
    TIMED.into_iter().filter_map(case).collect()
}

pub fn unpack_sizes() -> Vec<Case> {
    let case = |format| {
        let packing = Packing::fastest(format, 4096, 4096).ok()?;
        Some(Case::new(label(&packing), Unpack { packing }, vec![zeros(&packing)]).forward_only())
    };
    TIMED.into_iter().filter_map(case).collect()
}
