//! What happens to a product before it is final.

use super::matrix::Matrix;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    #[default]
    None,
    Relu,
    Silu,
    GeluTanh,
    GeluErf,
}

/// What happens to the product before it is final: `activation(c + bias) + residual`, in `f32`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One number per column, [n].
    pub bias: Option<Matrix<'a>>,
    pub activation: Activation,
    /// Like the product, with the same row stride (`ldc`), and in a batch the same distance between matrices.
    pub residual: Option<Matrix<'a>>,
}

impl<'a> Epilogue<'a> {
    pub fn is_none(&self) -> bool {
        self.bias.is_none() && self.activation == Activation::None && self.residual.is_none()
    }

    /// The epilogue of the part of the product that starts `elements` into the result.
    pub(super) fn at(self, elements: usize) -> Self {
        Epilogue { residual: self.residual.map(|r| r.tail(elements)), ..self }
    }
}
