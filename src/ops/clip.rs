//! Clipping gradients by their global norm (Pascanu et al. 2013): one factor for all tensors, so the direction stays.

use super::reduce::Reduction;
use super::{Graph, Spec};
use crate::graph::Value;
use crate::{Error, Result};
use kernels_cpu::program::{Binary, Instr};

use super::pointwise::Pointwise;

impl Graph {
    /// The L2 norm of all elements of `grads` together, an f32 scalar.
    pub fn global_norm(&mut self, grads: &[Value]) -> Result<Value> {
        let mut parts = Vec::new();
        for g in grads {
            parts.push(self.reduce_all(*g, Reduction::SumSquares)?);
        }
        // Pairs of sums, then pairs of pairs: rounding grows with the logarithm of their number.
        while parts.len() > 1 {
            parts = parts
                .chunks(2)
                .map(|pair| if let [a, b] = pair { self.add(*a, *b) } else { Ok(pair[0]) })
                .collect::<Result<_>>()?;
        }
        match parts.first() {
            Some(total) => self.sqrt(*total),
            None => Err(Error::Graph("the norm of no gradient was asked for".into())),
        }
    }

    /// What to multiply gradients of global norm `norm` by, so that their norm is `max` at most: min(1, max / (norm + 1e-12)).
    pub fn clip_scale(&mut self, norm: Value, max: f32) -> Result<Value> {
        let instrs = vec![
            Instr::Input(0),
            Instr::Const(1e-12),
            Instr::Binary(Binary::Add, 0, 1),
            Instr::Const(max),
            Instr::Binary(Binary::Div, 3, 2),
            Instr::Const(1.0),
            Instr::Binary(Binary::Min, 4, 5),
        ];
        self.apply1(Pointwise::f32(instrs, 1), &[norm])
    }
}

/// Made of other operators.
pub fn specs() -> Vec<Spec> {
    vec![]
}
