//! One operator, one place: a file here (its parameters, type rules, gradient, cost, how each executor runs it, and its test
//! cases), a shader in `shaders/`, a kernel in `kernels-cpu`. Adding an operator is adding its name to the list below; parity
//! tests, gradient checks, `verify` and benchmarks find it there.

mod blocks;
pub mod case;
pub mod check;
pub mod form;
#[cfg(test)]
mod on_devices;
mod rows;
mod sequence;
pub mod workloads;

use crate::graph::{Graph, Op};
pub use case::{Case, Sample, Values};

/// An operator as tests and benchmarks see it.
pub struct Spec {
    pub name: &'static str,
    /// Shapes and value distributions that exercise it, the nasty ones included.
    pub cases: fn() -> Vec<Case>,
    /// What it is timed with: the shapes of the presets, and others that matter to whoever trains with it. Large; never run by the
    /// parity suite.
    pub sizes: fn() -> Vec<Case>,
}

impl Spec {
    /// An operator that nothing times yet.
    pub fn new(name: &'static str, cases: fn() -> Vec<Case>) -> Self {
        Spec { name, cases, sizes: Vec::new }
    }
    /// The same operator, timed with these cases.
    pub fn timed(self, sizes: fn() -> Vec<Case>) -> Self {
        Spec { sizes, ..self }
    }
}

macro_rules! operators {
    ($($module:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// Every operator of every module.
        pub fn registry() -> Vec<Spec> {
            let mut all = Vec::new();
            $(all.extend($module::specs());)*
            all
        }
    };
}

operators! {
    argmax,
    attention,
    attention_grad,
    cache,
    cached_attention,
    chebyshev,
    clip,
    conv,
    cross_entropy,
    dropout,
    episodic,
    gather,
    gla,
    int8,
    matmul,
    movement,
    norm,
    optimizer,
    packed,
    pointwise,
    procrustes,
    reduce,
    reshape,
    rope,
    scan,
    softmax,
}

/// The text of a shader file.
#[macro_export]
macro_rules! shader {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name))
    };
}
