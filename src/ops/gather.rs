//! Embedding look-up, a gather of rows, and its gradient, a scatter-add of rows. Each is the other's gradient.

use super::{Case, Graph, Op, Sample, Spec, Values};
use crate::device::gpu::{Buf, Lowering, Params};
use crate::device::{Cost, CpuCall, Kernel, LookUp, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{DType, RefTensor, TensorType};
use crate::{Error, Result};
use minijinja::context;

/// `out[n, :] = table[ids[n], :]`: inputs `table [V, D]` f32 and `ids [...]` i32, output `[..., D]`.
#[derive(Clone, Debug)]
pub struct Embedding;

/// `out[r, :] = sum of g[n, :] over the n with ids[n] = r`, in the order of n: inputs `ids [...]` i32 and `g [..., D]` f32, output
/// `[rows, D]`.
#[derive(Clone, Debug)]
pub struct ScatterAddRows {
    pub rows: usize,
}

/// Fails on the first id outside `0..limit`. Hosts call it before they upload ids: a GPU kernel cannot report one (it takes the
/// nearest row).
pub fn check_ids(ids: &[i32], limit: usize) -> Result<()> {
    match ids.iter().position(|&id| id < 0 || id as usize >= limit) {
        None => Ok(()),
        Some(position) => Err(Error::Data(format!(
            "token id {} at position {position} is not in 0..{limit}: the tokenizer does not belong to this model",
            ids[position]
        ))),
    }
}

/// The row an id selects: the nearest one when it is out of range.
fn row(id: f64, limit: usize) -> usize {
    (id.max(0.0) as usize).min(limit - 1)
}

impl Kernel for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn looks_up(&self) -> Option<LookUp> {
        Some(LookUp { table: 0, ids: 1 })
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let (v, d) = (inputs[0].shape[0], inputs[0].shape[1]);
        let rows = inputs[1].data.iter().flat_map(|&id| &inputs[0].data[row(id, v) * d..][..d]);
        vec![RefTensor::new(&outputs[0].shape, rows.copied().collect())]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let (v, d) = (call.input(0).shape[0], call.input(0).shape[1]);
        kernels_cpu::embed::gather_rows(call.f32(0), v, d, call.i32(1), call.out_f32(0))
            .map_err(|e| Error::Graph(format!("embedding of {}: {e}", call.input(0))))
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (v, d) = (lowering.input(0).shape[0], lowering.input(0).shape[1]);
        let n = lowering.input(1).elements();
        let (ty, lanes) = if d.is_multiple_of(4) { ("vec4<f32>", 4) } else { ("f32", 1) };
        let bytes = 4 * d as u64;
        let table_parts = lowering.chunks(v, &[bytes], 0.0)?;
        for out in lowering.chunks(n, &[bytes], 0.0)? {
            for rows in &table_parts {
                let binds = [
                    lowering.read_part(Buf::In(0), rows.start as u64 * bytes..rows.end as u64 * bytes),
                    lowering.read(Buf::In(1)),
                    lowering.write_part(Buf::Out(0), out.start as u64 * bytes..out.end as u64 * bytes),
                ];
                let params = Params::new().u32(out.len()).u32(d / lanes).u32(out.start);
                let params = params.u32(rows.start).u32(rows.len()).u32(v);
                let groups = lowering.line((out.len() * d / lanes).div_ceil(64));
                let label = format!("embedding/vec{lanes}");
                lowering.dispatch(
                    label,
                    crate::shader!("embedding.wgsl"),
                    context! { T => ty },
                    &binds,
                    params,
                    groups,
                )?;
            }
        }
        Ok(())
    }
}

impl Op for Embedding {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [table, ids] = inputs else { return Err("a table and ids are needed".into()) };
        if table.dtype != DType::F32 || table.rank() != 2 || table.shape[0] == 0 {
            return Err(format!("the table must be f32 [V, D] with V > 0, it is {table}"));
        }
        if ids.dtype != DType::I32 {
            return Err(format!("ids must be i32, they are {ids}"));
        }
        Ok(vec![TensorType::f32(&[&ids.shape[..], &table.shape[1..]].concat())])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (table, ids, g) = (cx.inputs[0], cx.inputs[1], cx.grad(0));
        let rows = cx.graph.shape(table)[0];
        Ok(vec![Some(cx.graph.scatter_add_rows(ids, g, rows)?), None])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let out = outputs[0].bytes() as f64;
        // Only the rows that are looked up are read.
        Cost { flops: 0.0, bytes_read: inputs[1].bytes() as f64 + out, bytes_written: out }
    }
}

/// Positions sorted together before the merges.
const SORT_BLOCK: usize = 256;
/// Neighbouring terms of one row that are summed on their own.
const SEGMENT: usize = 64;

impl Kernel for ScatterAddRows {
    fn name(&self) -> &'static str {
        "scatter_add_rows"
    }

    fn reference(&self, inputs: &[&RefTensor], outputs: &[TensorType]) -> Vec<RefTensor> {
        let d = outputs[0].shape[1];
        let mut out = RefTensor::zeros(&outputs[0].shape);
        for (n, &id) in inputs[0].data.iter().enumerate() {
            for c in 0..d {
                out.data[row(id, self.rows) * d + c] += inputs[1].data[n * d + c];
            }
        }
        vec![out]
    }

    fn cpu(&self, call: &mut CpuCall) -> Result<()> {
        let d = call.output(0).shape[1];
        kernels_cpu::embed::scatter_add_rows(call.i32(0), call.f32(1), self.rows, d, call.out_f32(0))
            .map_err(|e| Error::Graph(format!("scatter_add_rows into {}: {e}", call.output(0))))
    }

    fn gpu(&self, lowering: &mut Lowering) -> Result<(), Unsupported> {
        let (d, n) = (lowering.output(0).shape[1], lowering.input(0).elements());
        let bytes = 4 * d as u64;
        let out_parts = lowering.chunks(self.rows, &[bytes], 0.0)?;
        let g_parts = lowering.chunks(n, &[bytes], 0.0)?;
        let longest = g_parts[0].len();
        let pairs = [lowering.scratch(8 * longest as u64), lowering.scratch(8 * longest as u64)];
        let starts = lowering.scratch(4 * (self.rows as u64 + 1));
        let sums = lowering.scratch((longest / SEGMENT) as u64 * bytes);
        // A tensor without terms is bound as four bytes.
        let (ty, lanes) = if d.is_multiple_of(4) && n > 0 { ("vec4<f32>", 4) } else { ("f32", 1) };
        let width = d / lanes;
        let stage = |lowering: &mut Lowering, name: &str, binds: &[_], params: Params, threads: usize| {
            let groups = lowering.line(threads.div_ceil(64));
            let variables = context! { stage => name, T => ty };
            let label = format!("scatter/{name}");
            lowering.dispatch(label, crate::shader!("scatter.wgsl"), variables, binds, params, groups)
        };
        for part in g_parts {
            let n = part.len();
            let g = lowering.read_part(Buf::In(1), part.start as u64 * bytes..part.end as u64 * bytes);
            let binds = [lowering.read(Buf::In(0)), lowering.write(pairs[0])];
            stage(lowering, "sort", &binds, Params::new().u32(n).u32(part.start).u32(self.rows), n)?;
            let (mut from, mut to) = (pairs[0], pairs[1]);
            let mut run = SORT_BLOCK;
            while run < n {
                let binds = [lowering.read(from), lowering.write(to)];
                stage(lowering, "merge", &binds, Params::new().u32(n).u32(run), n)?;
                (from, to) = (to, from);
                run *= 2;
            }
            let binds = [lowering.read(from), lowering.write(starts)];
            stage(lowering, "starts", &binds, Params::new().u32(n).u32(self.rows), self.rows + 1)?;
            let segments = n / SEGMENT;
            if segments > 0 {
                let binds = [lowering.read(from), g, lowering.write(sums)];
                stage(lowering, "segments", &binds, Params::new().u32(segments).u32(width), segments * width)?;
            }
            for rows in &out_parts {
                let out = lowering.write_part(Buf::Out(0), rows.start as u64 * bytes..rows.end as u64 * bytes);
                let binds = [lowering.read(from), lowering.read(starts), g, lowering.read(sums), out];
                let params = Params::new().u32(rows.start).u32(rows.len()).u32(width).u32(usize::from(part.start > 0));
                stage(lowering, "rows", &binds, params, rows.len() * width)?;
            }
        }
        Ok(())
    }
}

impl Op for ScatterAddRows {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let [ids, g] = inputs else { return Err("ids and rows are needed".into()) };
        if ids.dtype != DType::I32 {
            return Err(format!("ids must be i32, they are {ids}"));
        }
        if g.dtype != DType::F32 || g.rank() != ids.rank() + 1 || g.shape[..ids.rank()] != ids.shape || self.rows == 0 {
            return Err(format!("the terms must be f32 [ids.., D] for {} > 0 rows, they are {g}", self.rows));
        }
        Ok(vec![TensorType::f32(&[self.rows, g.shape[ids.rank()]])])
    }

    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (ids, g) = (cx.inputs[0], cx.grad(0));
        Ok(vec![None, Some(cx.graph.embedding(g, ids)?)])
    }

    fn cost(&self, inputs: &[TensorType], outputs: &[TensorType]) -> Cost {
        let bytes_read = inputs.iter().map(|t| t.bytes() as f64).sum();
        Cost { flops: inputs[1].elements() as f64, bytes_read, bytes_written: outputs[0].bytes() as f64 }
    }
}

impl Graph {
    /// Rows of `table [V, D]` chosen by `ids [...]` (i32): `[..., D]`. Ids outside `0..V` are an error on the CPU; on a GPU they take
    /// the nearest row, so hosts check them with [`check_ids`].
    pub fn embedding(&mut self, table: Value, ids: Value) -> Result<Value> {
        self.apply1(Embedding, &[table, ids])
    }
    /// Sums the rows of `g [..., D]` that share an id of `ids [...]`: `[rows, D]`. Deterministic.
    pub fn scatter_add_rows(&mut self, ids: Value, g: Value, rows: usize) -> Result<Value> {
        self.apply1(ScatterAddRows { rows }, &[ids, g])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![
        Spec::new("embedding", embedding_cases).timed(|| TIMED.iter().map(embedding_case).collect()),
        Spec::new("scatter_add_rows", scatter_cases).timed(scatter_sizes),
    ]
}

/// The presets' tables, and a vocabulary of GPT-2's size.
const TIMED: &[(usize, usize, &[usize])] = &[(65, 384, &[2048]), (50_257, 768, &[4096]), (64, 64, &[256])];

fn scatter_sizes() -> Vec<Case> {
    let case = |&(v, d, ids): &(usize, usize, &[usize])| {
        let operands = vec![Sample::ints(ids, 0, v as i64), Sample::normal(&[ids, &[d]].concat())];
        Case::new(format!("{ids:?} into [{v},{d}]"), ScatterAddRows { rows: v }, operands)
    };
    TIMED.iter().map(case).collect()
}

/// (V, D, shape of ids)
const SHAPES: &[(usize, usize, &[usize])] = &[
    (1, 1, &[]),
    (5, 3, &[17]),
    (7, 8, &[2, 3, 5]),
    (65, 12, &[1025]),
    (1031, 5, &[3, 257]),
    (9, 4, &[0]),
    // Both the table and the rows are more than 1 MiB.
    (1100, 260, &[5, 211]),
    (50257, 4, &[600]),
];

fn embedding_case(&(v, d, ids): &(usize, usize, &[usize])) -> Case {
    let inputs = vec![Sample::normal(&[v, d]), Sample::ints(ids, 0, v as i64)];
    Case::new(format!("[{v},{d}] by {ids:?}"), Embedding, inputs)
}

fn embedding_cases() -> Vec<Case> {
    SHAPES.iter().map(embedding_case).collect()
}

fn scatter_cases() -> Vec<Case> {
    let case = |label: String, v: usize, d: usize, ids: Sample| {
        let g = Sample::normal(&[&ids.ty.shape[..], &[d]].concat());
        Case::new(label, ScatterAddRows { rows: v }, vec![ids, g])
    };
    let mut cases: Vec<Case> = SHAPES
        .iter()
        .map(|&(v, d, ids)| case(format!("{ids:?} into [{v},{d}]"), v, d, Sample::ints(ids, 0, v as i64)))
        .collect();
    let all = |n: usize, id: f64| Sample::typed(DType::I32, &[n], Values::Fixed(vec![id; n]));
    cases.push(case("all ids equal".into(), 3, 5, all(4099, 1.0)));
    cases.push(case("one block of equal ids, vec4".into(), 300, 8, all(256, 299.0)));
    let sorted_down = (0..777).map(|i| (776 - i) as f64 / 3.0).map(f64::floor).collect();
    cases.push(case("descending".into(), 259, 3, Sample::typed(DType::I32, &[777], Values::Fixed(sorted_down))));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, Store};
    use crate::graph::Plan;
    use crate::tensor::HostTensor;

    #[test]
    fn an_id_outside_the_table_is_an_error_that_names_it() {
        assert!(check_ids(&[0, 4], 5).is_ok());
        let message = check_ids(&[0, 5, -1], 5).unwrap_err().to_string();
        assert!(message.contains("token id 5 at position 1 is not in 0..5"), "{message}");

        let mut graph = Graph::new();
        let table = graph.constant(HostTensor::f32(&[2, 1], vec![1.0, 2.0]));
        let ids = graph.input("ids", TensorType::i32(&[3]));
        let y = graph.embedding(table, ids).unwrap();
        graph.output("y", y);
        let mut store = Store::new(&Device::Cpu);
        let mut run = Plan::new(&graph).unwrap().prepare(&mut store).unwrap();
        run.write_input("ids", &HostTensor::i32(&[3], vec![1, 0, -7])).unwrap();
        let message = run.run().unwrap_err().to_string();
        assert!(message.contains("index -7 at position 2 is not in 0..2"), "{message}");
    }

    #[test]
    fn tables_must_be_f32_matrices_and_ids_integers() {
        let (table, ids) = (TensorType::f32(&[4, 2]), TensorType::i32(&[3]));
        assert!(Embedding.infer(&[table.clone(), ids.clone()]).is_ok());
        assert!(Embedding.infer(&[ids.clone(), ids.clone()]).is_err());
        assert!(Embedding.infer(&[table.clone(), table.clone()]).is_err());
        let scatter = ScatterAddRows { rows: 4 };
        assert!(scatter.infer(&[ids.clone(), TensorType::f32(&[3, 2])]).is_ok());
        assert!(scatter.infer(&[ids, TensorType::f32(&[2, 3])]).is_err());
    }
}
