//! The dots: every operator of the registry at the sizes it is timed with, forward and backward, under the roof of a device.

use super::levels::level_of;
pub use super::nothing::run_and_wait;
use super::report::{Bound, Ceilings, Direction, Dot, Stat};
use super::timing::{Effort, measure};
use crate::Result;
use crate::device::roof::Roof;
use crate::device::{Device, Executable, Store, Work};
use crate::graph::{Graph, Plan, Role, Value};
use crate::ops::{Case, Sample, Values};
use crate::tensor::{HostData, HostTensor, RefTensor, TensorType};

/// One thing to time: an operator's case in one direction.
#[derive(Clone, Debug)]
pub struct Item {
    pub operator: &'static str,
    pub case: Case,
    pub direction: Direction,
}

impl Item {
    /// What `--filter` looks at.
    pub fn title(&self) -> String {
        format!("{} {} {:?}", self.operator, self.case.label, self.direction).to_lowercase()
    }
}

/// The first `most` timed sizes of every operator, forward and, where it has a gradient, backward.
pub fn items(most: usize) -> Vec<Item> {
    let mut items = Vec::new();
    for spec in crate::ops::registry() {
        for case in (spec.sizes)().into_iter().take(most) {
            let backward = !case.cotangents.is_empty() && case.inputs.iter().any(|s| s.differentiable);
            let item = |direction| Item { operator: spec.name, case: case.clone(), direction };
            items.push(item(Direction::Forward));
            if backward {
                items.push(item(Direction::Backward));
            }
        }
    }
    items
}

/// The case as a plan. Backward: the gradients of all differentiable operands given those of the outputs; of the forward pass only
/// what the gradient needs is left.
pub fn plan(item: &Item) -> Result<Plan> {
    let mut graph = Graph::new();
    let in_place = item.case.op.must_alias();
    let mut inputs = Vec::new();
    for (i, s) in item.case.inputs.iter().enumerate() {
        let name = format!("x{i}");
        inputs.push(match in_place.iter().any(|(input, _)| *input == i) {
            true => graph.variable(&name, Role::State, s.ty.clone())?,
            false => graph.input(&name, s.ty.clone()),
        });
    }
    let outputs = graph.apply_arc(item.case.op.clone(), &inputs)?;
    if item.direction == Direction::Forward {
        for (i, o) in in_place {
            graph.update(inputs[i], outputs[o])?;
        }
        for (o, v) in outputs.iter().enumerate() {
            graph.output(&format!("y{o}"), *v);
        }
        return Plan::new(&graph);
    }
    let mut seeds = Vec::new();
    for o in &item.case.cotangents {
        let ty = graph.ty(outputs[*o]).clone();
        seeds.push((outputs[*o], graph.input(&format!("dy{o}"), ty)));
    }
    let differentiable = |i: &usize| item.case.inputs[*i].differentiable;
    let wrt: Vec<Value> = (0..inputs.len()).filter(differentiable).map(|i| inputs[i]).collect();
    for (i, g) in graph.vector_jacobian(&seeds, &wrt)?.into_iter().enumerate() {
        graph.output(&format!("g{i}"), g);
    }
    Plan::new(&graph)
}

/// Values of the case's kind for an operand, repeated after a prime number of elements: drawing each of millions would take longer
/// than timing them.
pub(super) fn fill(values: &Values, ty: &TensorType, seed: u64) -> HostTensor {
    const PERIOD: usize = 65_521;
    fn repeat<T: Copy>(period: &[T], n: usize) -> Vec<T> {
        let mut all = Vec::with_capacity(n);
        while all.len() < n {
            all.extend_from_slice(&period[..period.len().min(n - all.len())]);
        }
        all
    }
    let n = ty.elements();
    let drawn = match values {
        Values::Fixed(v) => return RefTensor::new(&ty.shape, v.clone()).to_host(ty.dtype),
        _ => {
            let ty = TensorType::new(ty.dtype, &[n.min(PERIOD)]);
            Sample { ty: ty.clone(), values: values.clone(), differentiable: false }.draw(seed).to_host(ty.dtype)
        }
    };
    let data = match &drawn.data {
        HostData::F32(v) => HostData::F32(repeat(v, n)),
        HostData::I32(v) => HostData::I32(repeat(v, n)),
        HostData::U32(v) => HostData::U32(repeat(v, n)),
        HostData::I8(v) => HostData::I8(repeat(v, n)),
        HostData::F16(v) => HostData::F16(repeat(v, n)),
        HostData::Bf16(v) => HostData::Bf16(repeat(v, n)),
    };
    HostTensor { shape: ty.shape.clone(), data }
}

/// A plan made ready with values in its inputs.
pub struct Ready {
    pub work: Work,
    pub run: Box<dyn Executable>,
    // Holds the variables.
    _store: Store,
}

pub fn ready(item: &Item, plan: &Plan, device: &Device) -> Result<Ready> {
    let mut store = Store::new(device);
    let mut run = plan.prepare(&mut store)?;
    let value = |name: &str, ty: &TensorType| {
        let operand = name.strip_prefix('x').and_then(|i| i.parse::<usize>().ok());
        let sample = operand.and_then(|i| item.case.inputs.get(i));
        fill(sample.map_or(&Values::Normal(1.0), |s| &s.values), ty, operand.map_or(77, |i| 11 + i as u64))
    };
    for (name, place) in &plan.work.inputs {
        run.write_input(name, &value(name, &place.ty))?;
    }
    let variables: Vec<_> = store.names().map(|(n, t)| (n.to_string(), t.clone())).collect();
    for (name, ty) in variables {
        store.write(&name, &value(&name, &ty))?;
    }
    Ok(Ready { work: plan.work.clone(), run, _store: store })
}

/// Times what was made ready and places it under the roof.
pub fn time(
    item: &Item,
    ready: &mut Ready,
    device: &Device,
    under: (&Roof, &Ceilings),
    effort: &Effort,
) -> Result<Dot> {
    let seconds = measure(effort, |n| run_and_wait(device, ready.run.as_mut(), n))?;
    let device_seconds = match device {
        Device::Gpu(context) if context.caps().features.timestamps => Some(stamped(ready, effort)?),
        _ => None,
    };
    let kernels = ready.run.notes().kernels;
    let mut cost = crate::device::Cost::default();
    ready.work.calls.iter().for_each(|c| cost += c.cost);
    let (roof, ceilings) = under;
    let least = roof.least(&ready.work, &kernels);
    let bound = match () {
        _ if least.overhead_seconds > least.seconds => Bound::Overhead,
        _ if least.compute_seconds >= least.memory_seconds => Bound::Compute,
        _ => Bound::Memory,
    };
    let mut labels = kernels;
    labels.sort();
    labels.dedup();
    Ok(Dot {
        operator: item.operator.into(),
        case: item.case.label.clone(),
        direction: item.direction,
        flops: cost.flops,
        bytes: cost.bytes(),
        compute: least.kind,
        level: level_of(ceilings, least.distance),
        seconds,
        device_seconds,
        roof_seconds: least.seconds,
        share: least.seconds / device_seconds.unwrap_or(seconds).median,
        bound,
        kernels: labels,
        tokens_per_second: None,
    })
}

/// Seconds of one run by the device's clock: the sum of its kernels, each run a sample.
fn stamped(ready: &mut Ready, effort: &Effort) -> Result<Stat> {
    let begin = std::time::Instant::now();
    let mut samples = Vec::new();
    while samples.len() < 3 || (samples.len() < effort.samples && begin.elapsed().as_secs_f64() < effort.seconds) {
        samples.push(ready.run.profile(1)?.iter().map(|c| c.seconds).sum());
    }
    Ok(Stat::of(&samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_is_timed_and_every_item_can_be_planned() {
        let items = items(usize::MAX);
        // Views cost nothing.
        let works = |spec: &crate::ops::Spec| (spec.cases)().iter().any(|c| !c.op.is_view());
        for spec in crate::ops::registry().iter().filter(|s| works(s)) {
            assert!(items.iter().any(|i| i.operator == spec.name), "{} has no timed size", spec.name);
        }
        let mut titles: Vec<String> = items.iter().map(Item::title).collect();
        titles.sort();
        let all = titles.len();
        titles.dedup();
        assert_eq!(titles.len(), all, "two items have one title");
        for item in &items {
            let plan = plan(item).unwrap_or_else(|e| panic!("{}: {e}", item.title()));
            assert!(!plan.work.calls.is_empty(), "{}", item.title());
        }
    }
}
