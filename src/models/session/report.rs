//! What a training plan will need, before it runs: the table of parameters, the memory plan, FLOPs and bytes per step.

use super::{Session, Step, graphs};
use crate::config::{OptimizerConfig, size};
use crate::device::{Cost, Device, ExecutionNotes, host, probe, roof};
use crate::graph::{MemoryReport, Plan, Precision, Recomputed};
use crate::models::LanguageModel;
use crate::nn::Parameter;
use crate::{Error, Result};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct TensorRow {
    pub name: String,
    pub shape: Vec<usize>,
    pub parameters: usize,
    pub decays: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    pub summary: String,
    pub device: String,
    pub tensors: Vec<TensorRow>,
    pub parameters: usize,
    /// What activations, and the weights that products read, are stored in.
    pub precision: Precision,
    /// The memory of the same step in f32, where it is another one and was planned too (dry runs).
    pub memory_f32: Option<MemoryReport>,
    /// Bytes by purpose. Weights, gradients and optimiser state are shared by the plans and counted once.
    pub memory: MemoryReport,
    pub total_bytes: u64,
    /// What the device has; absent where it does not tell.
    pub available_bytes: Option<u64>,
    /// FLOPs and bytes of one optimiser step.
    pub cost: Cost,
    pub tokens_per_step: usize,
    /// Calls of the plan, and what the passes did.
    pub nodes: usize,
    pub passes: Vec<crate::graph::passes::PassStats>,
    /// What is computed again to fit `run.memory_budget`.
    pub recomputed: Option<Recomputed>,
    /// Calls that run on the CPU inside a GPU plan, and calls that were cut.
    pub fallback: Vec<String>,
    pub split: Vec<String>,
    /// The forms that recurrences are in, as "gla_head: chunked"; those of gradients too.
    pub forms: Vec<String>,
}

/// The plans of a training step, made but not given any memory: what a dry run looks at.
pub struct TrainingPlans {
    summary: String,
    parameters: Vec<Parameter>,
    step: Step,
    pub plans: Vec<Plan>,
    /// The plans of the same step in f32, where it is stored in another precision.
    full: Vec<Plan>,
}

impl TrainingPlans {
    pub fn new(model: &dyn LanguageModel, optimizer: &OptimizerConfig, step: Step, device: &Device) -> Result<Self> {
        let (summary, parameters) = (model.summary(), model.parameters()?);
        let made = plans(model, &parameters, optimizer, step, device)?;
        let full = match step.precision {
            Precision::F32 => vec![],
            _ => {
                let full = Step { precision: Precision::F32, budget: None, ..step };
                plans(model, &parameters, optimizer, full, device)?
            }
        };
        Ok(TrainingPlans { summary, parameters, step, plans: made, full })
    }

    /// What the plans will need on `device`.
    pub fn report(&self, device: &Device) -> PlanReport {
        let of =
            |plans: &[Plan]| report(self.summary.clone(), &self.parameters, device, plans.iter().collect(), self.step);
        let memory_f32 = (!self.full.is_empty()).then(|| of(&self.full).memory);
        PlanReport { memory_f32, ..of(&self.plans) }
    }
}

/// One plan when a step is one micro-batch; else one that adds a micro-batch's gradients and one that applies them.
///
/// # Errors
/// `Error::Config` when they need more than the budget however much is computed again.
pub(super) fn plans(
    model: &dyn LanguageModel,
    parameters: &[Parameter],
    optimizer: &OptimizerConfig,
    step: Step,
    device: &Device,
) -> Result<Vec<Plan>> {
    let whole = step.accumulation == 1;
    let Step { shape, precision, .. } = step;
    let pass = if whole {
        graphs::whole_step(model, optimizer, shape, precision)?
    } else {
        graphs::micro_step(model, shape, precision)?
    };
    let mut plans = vec![Plan::stored_in(&pass, precision)?];
    if !whole {
        plans.push(Plan::stored_in(&graphs::apply_step(parameters, optimizer, precision)?, precision)?);
    }
    let Some(budget) = step.budget else { return Ok(plans) };
    let total = |plans: &[Plan]| memory(&plans.iter().collect::<Vec<_>>(), device).total();
    let before = total(&plans);
    if before > budget {
        // What the other plan adds to the first one's bytes stays as it is.
        let rest = before - plans[0].memory_on(device).total();
        let first = plans.remove(0);
        plans.insert(0, first.within(budget.saturating_sub(rest), device)?);
        if let Some(recomputed) = &mut plans[0].recomputed {
            recomputed.bytes_before += rest;
            recomputed.bytes_after += rest;
        }
    }
    if total(&plans) > budget {
        let least = memory(&plans.iter().collect::<Vec<_>>(), device);
        return Err(too_small(budget, before, &least, step, device));
    }
    Ok(plans)
}

/// Bytes of all plans of a step: what they share is counted once.
fn memory(plans: &[&Plan], device: &Device) -> MemoryReport {
    let mut memory = MemoryReport::default();
    for m in plans.iter().map(|p| p.memory_on(device)) {
        memory.weights = memory.weights.max(m.weights);
        memory.gradients = memory.gradients.max(m.gradients);
        memory.optimizer = memory.optimizer.max(m.optimizer);
        memory.other += m.other;
        memory.activations += m.activations;
        memory.workspace += m.workspace;
    }
    memory
}

fn too_small(budget: u64, before: u64, least: &MemoryReport, step: Step, device: &Device) -> Error {
    let mut lines = lines(least);
    lines.retain(|(name, bytes)| name != "total" && *bytes > 0);
    lines.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let lines: Vec<String> = lines.into_iter().map(|(name, bytes)| format!("{name} {}", size::show(bytes))).collect();
    let batch = step.shape.0;
    let per_batch = least.activations + least.workspace;
    let mut advice = vec![format!("a larger budget (run.memory_budget, at least {} bytes)", least.total())];
    if batch > 1 && least.total() - per_batch < budget {
        let divisor = (2..=batch).find(|d| batch.is_multiple_of(*d)).unwrap_or(batch);
        let (smaller, more) = (batch / divisor, step.accumulation * divisor);
        advice.push(format!(
            "smaller micro-batches of the same step (--set train.batch_size={smaller} --set train.accumulation={more})"
        ));
    }
    if step.precision == Precision::F32 {
        advice.push("16-bit storage (--precision bf16)".into());
    }
    if least.total() - per_batch < budget {
        advice.push("a shorter model.context".into());
    } else {
        advice.push("a smaller model (model.layers, model.width)".into());
        advice.push("optimizer.kind = \"sgd\", which keeps half of adamw's state".into());
    }
    Error::Config(format!(
        "a memory budget of {} is too small: on {} a training step needs at least {} ({} with nothing computed again): {}. Use {}",
        size::show(budget),
        device.name(),
        size::show(least.total()),
        size::show(before),
        lines.join(", "),
        advice.join(", or "),
    ))
}

impl Session {
    pub fn report(&self) -> PlanReport {
        let plans = self.plans().collect();
        report(self.model.summary(), &self.parameters, &self.device, plans, self.training)
    }
}

fn report(summary: String, parameters: &[Parameter], device: &Device, plans: Vec<&Plan>, step: Step) -> PlanReport {
    let memory = memory(&plans, device);
    let mut cost = Cost::default();
    let mut notes = ExecutionNotes::default();
    for (i, plan) in plans.iter().enumerate() {
        // The first of two plans runs once for every micro-batch.
        cost += plan.cost().times(if i == 0 { step.accumulation } else { 1 });
        let foreseen = plan.notes_on(device);
        notes.fallback.extend(foreseen.fallback);
        notes.split.extend(foreseen.split);
    }
    let tensors: Vec<TensorRow> = parameters
        .iter()
        .map(|p| TensorRow {
            name: p.name.clone(),
            shape: p.shape.clone(),
            parameters: p.elements(),
            decays: p.decays(),
        })
        .collect();
    PlanReport {
        summary,
        device: device.name(),
        parameters: tensors.iter().map(|t| t.parameters).sum(),
        tensors,
        total_bytes: memory.total(),
        memory,
        precision: step.precision,
        memory_f32: None,
        available_bytes: available_bytes(device),
        cost,
        tokens_per_step: step.shape.0 * step.shape.1 * step.accumulation,
        nodes: plans.iter().map(|p| p.work.calls.len()).sum(),
        passes: plans.iter().map(|p| p.passes).collect(),
        recomputed: plans.iter().find_map(|p| p.recomputed.clone()),
        fallback: notes.fallback,
        split: notes.split,
        forms: forms(&plans),
    }
}

/// Every operator of the plans that has forms, once with each of its forms.
fn forms(plans: &[&Plan]) -> Vec<String> {
    let mut forms = Vec::new();
    for call in plans.iter().flat_map(|plan| &plan.work.calls) {
        let line = call.kernel.form().map(|form| format!("{}: {form}", call.kernel.name()));
        forms.extend(line.filter(|line| !forms.contains(line)));
    }
    forms
}

impl PlanReport {
    pub fn memory_lines(&self) -> Vec<(String, u64)> {
        lines(&self.memory)
    }
}

/// Bytes by purpose, in the order to print.
pub fn lines(m: &MemoryReport) -> Vec<(String, u64)> {
    let lines = [
        ("weights", m.weights),
        ("gradients", m.gradients),
        ("optimizer", m.optimizer),
        ("activations", m.activations),
        ("workspace", m.workspace),
        ("inputs and constants", m.other),
        ("total", m.total()),
    ];
    lines.map(|(n, b)| (n.to_string(), b)).into()
}

impl Session {
    /// Tokens per second at the roof of this device, if `bench --roofline` measured one: the least time that its ceilings allow a step.
    /// Else if every FLOP of a step ran at the rate that `device::probe` measured, where it has.
    pub(super) fn roof_tokens_per_second(&self, report: &PlanReport) -> Option<f64> {
        let key = match &self.device {
            Device::Reference => return None,
            Device::Cpu => probe::cpu_key(&host::cpu_model()),
            Device::Gpu(context) => probe::gpu_key(context.info()),
        };
        if let Some(roof) = roof::remembered(&key) {
            let kernels: Vec<String> = self.notes().into_iter().flat_map(|n| n.kernels).collect();
            // The first of two plans runs once for every micro-batch.
            let times = |i: usize| if i == 0 { self.training.accumulation as f64 } else { 1.0 };
            let least = self.plans().enumerate().map(|(i, p)| times(i) * roof.least(&p.work, &kernels).seconds);
            return Some(report.tokens_per_step as f64 / least.sum::<f64>());
        }
        let measured = probe::Memory::open().get(&key)?;
        Some(report.tokens_per_step as f64 * measured.flops_per_second / report.cost.flops.max(1.0))
    }
}

/// Free memory where the system tells; WebGPU does not tell a GPU's.
fn available_bytes(device: &Device) -> Option<u64> {
    if matches!(device, Device::Gpu(c) if !c.caps().software) {
        return None;
    }
    crate::device::host::available_bytes()
}
