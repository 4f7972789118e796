//! What the products of a model are given while it reads a text: second moments of their inputs, which quantisation learns from.

use super::{Ready, Session};
use crate::device::host;
use crate::graph::{Graph, Plan, Precision, Value};
use crate::models::LanguageModel;
use crate::nn::{Builder, StoredMatrices};
use crate::ops::reduce::Reduction;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// What is wanted of every input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Sums of squares, one a column.
    Squares,
    /// X^T X as well.
    Products,
}

/// Sums over the rows of an input that one or several matrices share.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The matrices that are multiplied with it, in the order of the model.
    pub matrices: Vec<String>,
    /// Rows that were added up.
    pub rows: u64,
    /// [columns]
    pub squares: Vec<f64>,
    /// [columns, columns], where they were wanted.
    pub products: Option<Vec<f64>>,
}

impl Moments {
    pub fn columns(&self) -> usize {
        self.squares.len()
    }

    /// Mean squares, one a column.
    pub fn importance(&self) -> Vec<f32> {
        self.squares.iter().map(|s| (s / self.rows.max(1) as f64) as f32).collect()
    }

    /// X^T X / n, where there is one.
    pub fn gram(&self) -> Option<Vec<f64>> {
        let scale = 1.0 / self.rows.max(1) as f64;
        self.products.as_ref().map(|p| p.iter().map(|v| v * scale).collect())
    }
}

/// Bytes of results that one run may have; the inputs of a larger model are observed in several passes over the text.
const MOST_BYTES: u64 = 256 << 20;

fn output(index: usize) -> String {
    format!("moments.{index}")
}

/// An input of products, and the names of the matrices that share it.
type Shared = (Value, Vec<String>);

/// The model for tokens [1, T], and every input of its products with the matrices that share it.
fn observed(model: &dyn LanguageModel, time: usize, stored: &StoredMatrices) -> Result<(Graph, Vec<Shared>)> {
    let mut b = Builder { observed: Some(vec![]), ..Builder::of(stored) };
    let tokens = b.tokens("tokens", &[1, time]);
    let hidden = model.hidden(&mut b, tokens)?;
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[time, width])?;
    model.head(&mut b, hidden)?;
    let mut inputs: Vec<Shared> = vec![];
    for (name, value) in b.observed.take().unwrap_or_default() {
        match inputs.iter_mut().find(|(v, _)| *v == value) {
            Some((_, names)) => names.push(name),
            None => inputs.push((value, vec![name])),
        }
    }
    Ok((b.graph, inputs))
}

/// Appends the moments of the input `x` [.., K]: [K], or [K, K].
fn append(graph: &mut Graph, index: usize, x: Value, moment: Moment) -> Result<()> {
    let columns = graph.shape(x).last().copied().unwrap_or(1);
    let rows = graph.ty(x).elements() / columns.max(1);
    let x = graph.reshape(x, &[rows, columns])?;
    let result = match moment {
        Moment::Squares => {
            let squares = graph.mul(x, x)?;
            graph.reduce(squares, Reduction::Sum, (0, 1), false)?
        }
        Moment::Products => graph.matmul_t(x, x, true, false)?,
    };
    graph.output(&output(index), result);
    Ok(())
}

impl Session {
    /// Reads `chunks` of tokens, all of one length, each from the beginning, and adds up the moments of the inputs of all products, in
    /// f64. `after` hears the share that is done and returns false to stop.
    ///
    /// # Errors
    /// No chunks, chunks of several lengths or longer than the context; moments that memory cannot hold; `Error::Interrupted`; numbers
    /// that are not finite.
    pub fn observe(
        &mut self,
        chunks: &[Vec<u32>],
        moment: Moment,
        after: &mut dyn FnMut(f64) -> bool,
    ) -> Result<Vec<Moments>> {
        let time = chunks.first().map_or(0, Vec::len);
        if time == 0 || time > self.model.context() || chunks.iter().any(|c| c.len() != time) {
            let context = self.model.context();
            return Err(Error::Data(format!("calibration reads chunks of one length, of 1 to {context} tokens")));
        }
        let vocabulary = self.model.vocab_size();
        if let Some(id) = chunks.iter().flatten().find(|id| **id as usize >= vocabulary) {
            return Err(Error::Data(format!("token {id} is outside the model's vocabulary of {vocabulary}")));
        }
        let (graph, inputs) = observed(self.model.as_ref(), time, &self.stored)?;
        let columns: Vec<usize> = inputs.iter().map(|(v, _)| graph.shape(*v).last().copied().unwrap_or(1)).collect();
        let elements = |k: usize| if moment == Moment::Products { k * k } else { k };
        let bytes: u64 = columns.iter().map(|k| 8 * elements(*k) as u64).sum();
        if host::available_bytes().is_some_and(|free| bytes > free / 4 * 3) {
            return Err(Error::Data(format!(
                "the second moments of the inputs of {} need {bytes} bytes of memory, more than is free: use a format that needs no calibration, or an importance matrix (squares alone)",
                self.model.summary()
            )));
        }
        let mut all: Vec<Moments> = inputs
            .iter()
            .zip(&columns)
            .map(|((_, names), k)| Moments {
                matrices: names.clone(),
                rows: 0,
                squares: vec![0.0; *k],
                products: (moment == Moment::Products).then(|| vec![0.0; k * k]),
            })
            .collect();
        // Passes over the text: runs of inputs whose results fit.
        let mut passes: Vec<Vec<usize>> = vec![];
        let mut filled = u64::MAX;
        for (index, k) in columns.iter().enumerate() {
            let size = 4 * elements(*k) as u64;
            if filled.saturating_add(size) > MOST_BYTES {
                passes.push(vec![]);
                filled = 0;
            }
            filled += size;
            passes.last_mut().into_iter().for_each(|p| p.push(index));
        }
        let total = (passes.len() * chunks.len()) as f64;
        for (number, pass) in passes.iter().enumerate() {
            let mut graph = graph.clone();
            for index in pass {
                append(&mut graph, *index, inputs[*index].0, moment)?;
            }
            let plan = Plan::stored_in(&graph, Precision::F32)?;
            let run = plan.prepare(&mut self.store)?;
            let mut ready = Ready { plan, run };
            for (done, chunk) in chunks.iter().enumerate() {
                let ids = chunk.iter().map(|t| *t as i32).collect();
                ready.run.write_input("tokens", &HostTensor::i32(&[1, time], ids))?;
                ready.run.run()?;
                for index in pass {
                    let result = ready.run.read_output(&output(*index))?;
                    add(&mut all[*index], result.as_f32().unwrap_or_default(), time)?;
                }
                if !after((number * chunks.len() + done + 1) as f64 / total) {
                    return Err(Error::Interrupted("calibration was stopped".into()));
                }
            }
        }
        Ok(all)
    }
}

fn add(moments: &mut Moments, result: &[f32], rows: usize) -> Result<()> {
    if let Some(bad) = result.iter().find(|v| !v.is_finite()) {
        let name = moments.matrices.first().map_or("", String::as_str);
        return Err(Error::Numerics(format!("the input of '{name}' has second moments of {bad}")));
    }
    moments.rows += rows as u64;
    let columns = moments.squares.len();
    match &mut moments.products {
        Some(products) => {
            products.iter_mut().zip(result).for_each(|(sum, v)| *sum += f64::from(*v));
            let diagonal = result.iter().step_by(columns + 1);
            moments.squares.iter_mut().zip(diagonal).for_each(|(sum, v)| *sum += f64::from(*v));
        }
        None => moments.squares.iter_mut().zip(result).for_each(|(sum, v)| *sum += f64::from(*v)),
    }
    Ok(())
}
