//! Reshape: the same bytes under another shape. A view: it costs nothing and no executor runs it.

use super::{Case, Graph, Op, Sample, Spec};
use crate::Result;
use crate::device::gpu::Lowering;
use crate::device::{Cost, CpuCall, Kernel, Unsupported};
use crate::graph::{Gradient, Value};
use crate::tensor::{RefTensor, TensorType};

#[derive(Clone, Debug)]
pub struct Reshape {
    pub shape: Vec<usize>,
}

impl Kernel for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn reference(&self, inputs: &[&RefTensor], _: &[TensorType]) -> Vec<RefTensor> {
        vec![RefTensor::new(&self.shape, inputs[0].data.clone())]
    }
    // Plans turn views into shared memory, so these two are never called.
    fn cpu(&self, _: &mut CpuCall) -> Result<()> {
        Ok(())
    }
    fn gpu(&self, _: &mut Lowering) -> Result<(), Unsupported> {
        Ok(())
    }
}

impl Op for Reshape {
    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, String> {
        let out = TensorType::new(inputs[0].dtype, &self.shape);
        if out.elements() != inputs[0].elements() {
            return Err(format!("{} elements cannot take the shape {:?}", inputs[0].elements(), self.shape));
        }
        Ok(vec![out])
    }
    fn gradient(&self, cx: &mut Gradient) -> Result<Vec<Option<Value>>> {
        let (g, shape) = (cx.grad(0), cx.graph.shape(cx.inputs[0]).to_vec());
        Ok(vec![Some(cx.graph.reshape(g, &shape)?)])
    }
    fn cost(&self, _: &[TensorType], _: &[TensorType]) -> Cost {
        Cost::default()
    }
    fn is_view(&self) -> bool {
        true
    }
}

impl Graph {
    /// `x` under another shape with the same number of elements. Free.
    pub fn reshape(&mut self, x: Value, shape: &[usize]) -> Result<Value> {
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.apply1(Reshape { shape: shape.to_vec() }, &[x])
    }
}

pub fn specs() -> Vec<Spec> {
    vec![Spec::new("reshape", cases)]
}

fn cases() -> Vec<Case> {
    let case = |from: &[usize], to: &[usize]| {
        Case::new(format!("{from:?} -> {to:?}"), Reshape { shape: to.to_vec() }, vec![Sample::normal(from)])
    };
    vec![case(&[6], &[2, 3]), case(&[2, 3, 5], &[30]), case(&[1], &[]), case(&[], &[1, 1])]
}
