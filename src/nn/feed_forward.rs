//! The feed-forward network of a block.

use super::{Builder, Init};
use crate::Result;
use crate::config::FeedForward as Kind;
use crate::graph::Value;

#[derive(Clone, Copy, Debug)]
pub struct FeedForward {
    pub width: usize,
    pub hidden: usize,
    pub kind: Kind,
    pub bias: bool,
    /// How the projections into the hidden width start.
    pub init: Init,
    pub output_init: Init,
}

impl FeedForward {
    /// x [.., width] to act(x W_up) W_down, or to (act(x W_gate) * (x W_up)) W_down when gated (Shazeer 2020).
    pub fn write(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let up = b.linear("up_proj", x, self.hidden, self.bias, self.init)?;
        let h = match self.kind {
            Kind::Swiglu | Kind::Geglu => {
                let gate = b.linear("gate_proj", x, self.hidden, self.bias, self.init)?;
                let gate = if self.kind == Kind::Swiglu { b.graph.silu(gate)? } else { b.graph.gelu_tanh(gate)? };
                b.graph.mul(gate, up)?
            }
            Kind::Gelu => b.graph.gelu_tanh(up)?,
            Kind::GeluErf => b.graph.gelu_erf(up)?,
            Kind::Relu => b.graph.relu(up)?,
        };
        b.linear("down_proj", h, self.width, self.bias, self.output_init)
    }
}
