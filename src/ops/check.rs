//! Checks an operator's case: every executor against the f64 reference, forward and gradient, and the gradient against central
//! differences in f64 with the operator in mid-graph (an operator used as the final loss would hide a missing output gradient).
//!
//! Tolerance. A result of a 16-bit type may differ from the reference, which is not rounded, by half a unit in its own last place more.
//! Otherwise a result may differ from the reference by what one f32 rounding of every operand changes it by (its conditioning,
//! measured in f64 on the same values), times `SAFETY`, plus `ulps` roundings of the largest output. Nothing is tuned to pass.

use super::Case;
use super::case::SplitMix;
use crate::device::gpu::{Caps, lower};
use crate::device::{Device, Executable, ExecutionNotes, Memory, Store, reference};
use crate::graph::{Graph, Plan, Role, Value};
use crate::tensor::{DType, HostTensor, RefTensor};
use crate::{Error, Result};
use std::sync::Arc;

/// Accumulated roundings inside an operator behave like perturbed operands; several per operand are allowed.
const SAFETY: f64 = 8.0;
const EPS: f64 = f32::EPSILON as f64;
const PERTURBATIONS: u64 = 3;

/// Outcome of comparing one case on one device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Parity {
    pub operator: String,
    pub case: String,
    pub device: String,
    pub ok: bool,
    /// Largest error over its tolerance; above 1 is a failure.
    pub worst: f64,
    pub message: String,
    pub split: usize,
    pub fallback: usize,
}

/// The case as a graph: operands are inputs `x0, x1, ..`, or variables of these names where the operator changes them in place
/// (`must_alias`); outputs `y0, ..` and, when differentiable, gradients `g<i>`.
pub struct CaseGraph {
    pub graph: Graph,
    pub differentiable: Vec<usize>,
    pub outputs: usize,
    pub types: Vec<DType>,
}

/// Builds the case with the operator in mid-graph: `loss = sum over outputs of sum(sin-weighted output * (1 + output / 4))`.
pub fn build(case: &Case, with_gradient: bool) -> Result<CaseGraph> {
    let mut graph = Graph::new();
    let in_place = case.op.must_alias();
    let mut inputs = Vec::new();
    for (i, s) in case.inputs.iter().enumerate() {
        let name = format!("x{i}");
        inputs.push(match in_place.iter().any(|(input, _)| *input == i) {
            true => graph.variable(&name, Role::State, s.ty.clone())?,
            false => graph.input(&name, s.ty.clone()),
        });
    }
    let outputs = graph.apply_arc(case.op.clone(), &inputs)?;
    for (i, o) in in_place {
        graph.update(inputs[i], outputs[o])?;
    }
    for (o, v) in outputs.iter().enumerate() {
        graph.output(&format!("y{o}"), *v);
    }
    let mut differentiable = Vec::new();
    if with_gradient && !case.cotangents.is_empty() {
        differentiable = (0..inputs.len()).filter(|i| case.inputs[*i].differentiable).collect();
        let mut loss = None;
        for (k, o) in case.cotangents.iter().enumerate() {
            let y = outputs[*o];
            let ty = graph.ty(y).clone();
            let weights = (0..ty.elements()).map(|i| ((i * 7 + k * 3 + 1) as f32).sin()).collect();
            let w = graph.constant(HostTensor::f32(&ty.shape, weights));
            let bent = graph.affine(y, 0.25, 1.0)?;
            let bent = graph.mul(bent, y)?;
            let weighted = graph.mul(w, bent)?;
            let part = graph.sum_all(weighted)?;
            loss = Some(match loss {
                Some(l) => graph.add(l, part)?,
                None => part,
            });
        }
        if let Some(loss) = loss {
            graph.output("loss", loss);
            let wrt: Vec<Value> = differentiable.iter().map(|i| inputs[*i]).collect();
            for (i, g) in differentiable.iter().zip(graph.gradients(loss, &wrt)?) {
                graph.output(&format!("g{i}"), g);
            }
        }
    }
    let types = outputs.iter().map(|v| graph.ty(*v).dtype).collect();
    Ok(CaseGraph { graph, differentiable, outputs: outputs.len(), types })
}

impl CaseGraph {
    /// Names of what is compared.
    fn names(&self) -> Vec<String> {
        (0..self.outputs).map(|o| format!("y{o}")).chain(self.differentiable.iter().map(|i| format!("g{i}"))).collect()
    }
}

/// A case with its reference results and tolerances, to compare with any number of devices.
pub struct Judged {
    pub case: Case,
    pub operator: &'static str,
    built: CaseGraph,
    plan: Plan,
    inputs: Vec<RefTensor>,
    /// Name, values, tolerance, type of storage.
    expected: Vec<(String, RefTensor, f64, DType)>,
}

pub fn judge(operator: &'static str, case: &Case) -> Result<Judged> {
    let built = build(case, true)?;
    let plan = Plan::new(&built.graph)?;
    let inputs: Vec<RefTensor> = case.inputs.iter().enumerate().map(|(i, s)| s.draw(0x5eed + i as u64)).collect();
    let (mut runner, store) = on_reference(&plan)?;
    let names = built.names();
    let exact = evaluate((&mut runner, &store), &inputs, &names)?;
    let mut spread = vec![0.0f64; names.len()];
    for round in 0..PERTURBATIONS {
        let moved: Vec<RefTensor> = inputs
            .iter()
            .zip(&case.inputs)
            .enumerate()
            .map(|(i, (x, s))| if s.ty.dtype.is_float() { perturbed(x, round * 31 + i as u64) } else { x.clone() })
            .collect();
        for ((new, old), s) in evaluate((&mut runner, &store), &moved, &names)?.iter().zip(&exact).zip(&mut spread) {
            *s = new.data.iter().zip(&old.data).fold(*s, |m, (a, b)| m.max((a - b).abs()));
        }
    }
    let expected = names
        .into_iter()
        .zip(exact)
        .zip(spread)
        .map(|((name, value), spread)| {
            // Gradients pass through several operators of the same kind: the same allowance again for each stage.
            let stages = if name.starts_with('g') { 4.0 } else { 1.0 };
            let tolerance = stages * (SAFETY * spread + case.ulps * EPS * value.max_abs()) + f32::MIN_POSITIVE as f64;
            let dtype = built.types.iter().enumerate().find(|(o, _)| name == format!("y{o}")).map(|(_, t)| *t);
            (name, value, tolerance, dtype.unwrap_or(DType::F32))
        })
        .collect();
    Ok(Judged { case: case.clone(), operator, built, plan, inputs, expected })
}

fn perturbed(x: &RefTensor, seed: u64) -> RefTensor {
    let mut rng = SplitMix(seed + 99);
    // Half an epsilon is one rounding; signs are random, so that errors add up as roundings do.
    let data = x.data.iter().map(|v| v * (1.0 + if rng.next_u64() & 1 == 0 { 0.5 } else { -0.5 } * EPS)).collect();
    RefTensor::new(&x.shape, data)
}

/// The plan on the reference executor, and its variables.
fn on_reference(plan: &Plan) -> Result<(reference::Runner, Store)> {
    let mut store = Store::new(&Device::Reference);
    for (v, name, _) in plan.graph.variables() {
        store.declare(name, plan.graph.ty(v))?;
    }
    Ok((reference::Runner::new(plan.work.clone(), &mut store)?.exact(), store))
}

fn evaluate(
    (runner, store): (&mut reference::Runner, &Store),
    inputs: &[RefTensor],
    names: &[String],
) -> Result<Vec<RefTensor>> {
    for (i, x) in inputs.iter().enumerate() {
        let name = format!("x{i}");
        match store.variables.get(&name).map(|v| &v.memory) {
            // Not through `Store::write`, which rounds to f32: perturbations are smaller than that.
            Some(Memory::Reference(memory)) => memory.set(x.clone()),
            _ => runner.write_f64(&name, x.clone())?,
        }
    }
    runner.run()?;
    names.iter().map(|n| runner.read_f64(n)).collect()
}

impl Judged {
    /// Runs the case on `device` and compares every output and gradient.
    pub fn compare(&self, device: &Device) -> Parity {
        let mut parity = Parity {
            operator: self.operator.into(),
            case: self.case.label.clone(),
            device: device.name(),
            ok: true,
            worst: 0.0,
            message: String::new(),
            split: 0,
            fallback: 0,
        };
        match self.run(device) {
            Ok((values, notes)) => {
                (parity.split, parity.fallback) = (notes.split.len(), notes.fallback.len());
                for ((name, want, tolerance, dtype), have) in self.expected.iter().zip(values) {
                    let (ratio, at) = worst(&want.data, &have.data, *tolerance, *dtype);
                    if ratio > parity.worst {
                        parity.worst = ratio;
                    }
                    if ratio > 1.0 {
                        parity.ok = false;
                        let (w, h) = (want.data[at], have.data[at]);
                        parity.message = format!("{name}[{at}]: {h:e}, reference {w:e}, tolerance {tolerance:e}");
                    }
                }
            }
            Err(e) => {
                parity.ok = false;
                parity.worst = f64::INFINITY;
                parity.message = e.to_string();
            }
        }
        parity
    }

    fn run(&self, device: &Device) -> Result<(Vec<RefTensor>, ExecutionNotes)> {
        let mut store = Store::new(device);
        let mut executable = self.plan.prepare(&mut store)?;
        for (i, (x, s)) in self.inputs.iter().zip(&self.case.inputs).enumerate() {
            let (name, value) = (format!("x{i}"), x.to_host(s.ty.dtype));
            match store.variables.contains_key(&name) {
                true => store.write(&name, &value)?,
                false => executable.write_input(&name, &value)?,
            }
        }
        executable.run()?;
        let read = |name: &(String, RefTensor, f64, DType)| Ok(executable.read_output(&name.0)?.to_f64());
        let values = self.expected.iter().map(read).collect::<Result<_>>()?;
        Ok((values, executable.notes()))
    }

    /// What a device with these capabilities would run: equal values are the same dispatches of the same shaders.
    pub fn dispatches(&self, caps: &Caps) -> Vec<(Arc<str>, Vec<u32>, [u32; 3])> {
        let lowered = lower(&self.plan.work, caps).into_iter().flat_map(|l| l.dispatches);
        lowered.map(|d| (d.shader.source, d.params, d.groups)).collect()
    }

    pub fn gradients(&self) -> usize {
        self.built.differentiable.len()
    }
}

fn worst(want: &[f64], have: &[f64], tolerance: f64, dtype: DType) -> (f64, usize) {
    // The tolerance of f32 results covers their own rounding.
    let storage = |w: f64| if dtype.is_half() { dtype.half_ulp(w.abs() + tolerance) } else { 0.0 };
    let mut result = (0.0, 0);
    for (i, (w, h)) in want.iter().zip(have).enumerate() {
        let ratio = if h.is_finite() { (w - h).abs() / (tolerance + storage(*w)) } else { f64::INFINITY };
        if ratio > result.0 {
            result = (ratio, i);
        }
    }
    result
}

/// Compares the case's gradients with central differences of the f64 reference, at up to `samples` elements of each operand.
/// Returns the largest relative error.
pub fn gradient_check(operator: &str, case: &Case, samples: usize) -> Result<f64> {
    let built = build(case, true)?;
    if built.differentiable.is_empty() {
        return Ok(0.0);
    }
    let plan = Plan::unoptimised(&built.graph)?;
    let (mut runner, store) = on_reference(&plan)?;
    let inputs: Vec<RefTensor> = case.inputs.iter().enumerate().map(|(i, s)| s.draw(0x5eed + i as u64)).collect();
    let names = built.names();
    let base = evaluate((&mut runner, &store), &inputs, &names)?;
    let mut largest = 0.0f64;
    for (k, &i) in built.differentiable.iter().enumerate() {
        let analytic = &base[built.outputs + k];
        let n = inputs[i].data.len();
        let mut rng = SplitMix(17 + i as u64);
        let picks: Vec<usize> =
            if n <= samples { (0..n).collect() } else { (0..samples).map(|_| rng.next_u64() as usize % n).collect() };
        for at in picks {
            let x = inputs[i].data[at];
            // Fourth-order central differences: truncation h^4, rounding 1e-16/h.
            let h = 1e-4 * (1.0 + x.abs());
            let mut loss_at = |d: f64| -> Result<f64> {
                let mut moved = inputs.clone();
                moved[i].data[at] = x + d;
                Ok(evaluate((&mut runner, &store), &moved, &["loss".to_string()])?[0].data[0])
            };
            let numeric = (8.0 * (loss_at(h)? - loss_at(-h)?) - (loss_at(2.0 * h)? - loss_at(-2.0 * h)?)) / (12.0 * h);
            let error = (numeric - analytic.data[at]).abs() / (1e-3 + numeric.abs().max(analytic.max_abs() * 1e-3));
            if error > 1e-5 || !error.is_finite() {
                return Err(Error::Failed(format!(
                    "{operator} [{}]: gradient of operand {i} at {at} is {:e}, central differences give {numeric:e}",
                    case.label, analytic.data[at]
                )));
            }
            largest = largest.max(error);
        }
    }
    Ok(largest)
}
