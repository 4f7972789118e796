//! Layers: functions that write graph nodes and name their weights. A `Builder` carries the graph, the list of weights with
//! how they start, and the source of dropout's random numbers.

mod attention;
mod cache;
mod carry;
mod feed_forward;
mod layers;

pub use attention::Attention;
pub use cache::{CacheShape, PLACE, POSITIONS};
pub use carry::{Carry, Feed, Slots};
pub use feed_forward::FeedForward;
pub use layers::sinusoidal_table;

use crate::graph::{Graph, Role, Value};
use crate::ops::packed::{Activations, Packing};
use crate::tensor::{DType, HostTensor, TensorType};
use crate::{Error, Result};
use kernels_cpu::philox;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// N(0, std^2)
    Normal(f64),
    /// U(-bound, bound)
    Uniform(f64),
    /// From the first number to the second, evenly over the elements.
    Spread(f64, f64),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
}

impl Parameter {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Matrices and embeddings decay; gains and biases do not.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }

    /// The starting values: a function of the seed and the weight's name alone, so that they are the same on every device and
    /// do not depend on what other weights a model has.
    pub fn initial(&self, seed: u64) -> HostTensor {
        let mut data = vec![0.0f32; self.elements()];
        match self.init {
            Init::Zeros => {}
            Init::Ones => data.fill(1.0),
            Init::Spread(first, last) => {
                let steps = data.len().saturating_sub(1).max(1) as f64;
                data.iter_mut().enumerate().for_each(|(i, v)| *v = (first + (last - first) * i as f64 / steps) as f32);
            }
            Init::Normal(std) => {
                philox::fill_normal(seed, philox::stream(&self.name), &mut data);
                data.iter_mut().for_each(|v| *v = (*v as f64 * std) as f32);
            }
            Init::Uniform(bound) => {
                let key = [seed as u32, (seed >> 32) as u32];
                for (i, v) in data.iter_mut().enumerate() {
                    let block = (i / 4) as u64;
                    let words =
                        philox::philox4x32(key, [block as u32, (block >> 32) as u32, philox::stream(&self.name), 1]);
                    *v = (bound * (2.0 * philox::uniform_f32(words[i % 4]) as f64 - 1.0)) as f32;
                }
            }
        }
        HostTensor::f32(&self.shape, data)
    }
}

/// Dropout during training.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub p: f64,
    /// u32 [3]: seed (low, high) and step. Masks are a function of these and the site's name.
    pub rng: Value,
}

/// A matrix that is not stored as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub packing: Packing,
    pub activations: Activations,
}

/// The matrices of a model that are not stored as f32, by name.
pub type StoredMatrices = Arc<BTreeMap<String, Stored>>;

#[derive(Debug, Default)]
pub struct Builder {
    pub graph: Graph,
    pub parameters: Vec<Parameter>,
    /// Present while training with dropout.
    pub dropout: Option<Dropout>,
    /// Present where states are carried from segment to segment of a text.
    pub carry: Option<Carry>,
    /// Present where keys and values are kept between runs.
    pub cache: Option<cache::Cache>,
    /// Matrices of products and tables that are not stored as f32.
    pub stored: StoredMatrices,
    /// Names of the matrices that may be: those that only products and look-ups read.
    pub matrices: Vec<String>,
    /// Those of them that products read.
    pub multiplied: BTreeSet<String>,
    /// Every product's matrix and what it was multiplied with, where somebody wants to know (`Some`).
    pub observed: Option<Vec<(String, Value)>>,
}

impl Builder {
    /// For a model some of whose matrices are not stored as f32.
    pub fn of(stored: &StoredMatrices) -> Self {
        Builder { stored: stored.clone(), ..Self::default() }
    }

    /// Appends `name` to the names of everything `f` writes.
    pub fn scoped<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.graph.enter(name);
        let result = f(self);
        self.graph.leave();
        result
    }

    fn declare(&mut self, name: String, shape: &[usize], init: Init) {
        if !self.parameters.iter().any(|p| p.name == name) {
            self.parameters.push(Parameter { name, shape: shape.to_vec(), init });
        }
    }

    /// The weight `leaf` of the current scope. Asking twice for one name gives one weight.
    pub fn parameter(&mut self, leaf: &str, shape: &[usize], init: Init) -> Result<Value> {
        let name = self.graph.path(leaf);
        self.declare(name, shape, init);
        self.graph.parameter(leaf, shape)
    }

    /// As `parameter`, for a matrix [rows, columns] that only products and look-ups read: it comes as it is stored.
    fn matrix(&mut self, leaf: &str, shape: [usize; 2], init: Init) -> Result<(Value, Option<Stored>)> {
        let name = self.graph.path(leaf);
        if !self.matrices.contains(&name) {
            self.matrices.push(name.clone());
        }
        let Some(stored) = self.stored.get(&name).copied() else {
            return Ok((self.parameter(leaf, &shape, init)?, None));
        };
        if [stored.packing.rows, stored.packing.columns] != shape {
            let have = [stored.packing.rows, stored.packing.columns];
            return Err(Error::Graph(format!("'{name}' is stored as {have:?} where the model has {shape:?}")));
        }
        self.declare(name.clone(), &shape, init);
        let ty = TensorType::new(DType::I8, &[stored.packing.bytes()]);
        Ok((self.graph.variable(&name, Role::Parameter, ty)?, Some(stored)))
    }

    /// A table made on the host, part of the graph and not trained.
    pub fn table(&mut self, shape: &[usize], values: Vec<f32>) -> Value {
        self.graph.constant(HostTensor::f32(shape, values))
    }

    pub fn tokens(&mut self, name: &str, shape: &[usize]) -> Value {
        self.graph.input(name, TensorType::i32(shape))
    }
}
