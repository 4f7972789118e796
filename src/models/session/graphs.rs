//! The graphs of a training step, of evaluation and of generation.

use super::loss_scale::LossScale;
use crate::Result;
use crate::config::{OptimizerConfig, OptimizerKind};
use crate::device::Executable;
use crate::graph::{Graph, Precision, Role, Value};
use crate::models::LanguageModel;
use crate::models::session::carried::Reads;
use crate::models::session::kept::Wants;
use crate::nn::{Builder, CacheShape, Carry, Dropout, Parameter, StoredMatrices};
use crate::ops::optimizer::{AdamW, SgdMomentum};
use crate::tensor::{DType, HostTensor, TensorType};
use crate::train::model::StepInfo;

/// Weights, inputs and the loss of one micro-batch: sum of the targets' negative log-likelihoods times `inverse_tokens`.
struct Forward {
    builder: Builder,
    loss: Value,
}

fn forward(
    model: &dyn LanguageModel,
    (batch, time): (usize, usize),
    training: bool,
    mut b: Builder,
) -> Result<Forward> {
    let tokens = b.tokens("tokens", &[batch, time]);
    let targets = b.tokens("targets", &[batch, time]);
    let inverse = b.graph.input("inverse_tokens", TensorType::f32(&[]));
    if training && model.dropout() > 0.0 {
        let rng = b.graph.input("rng", TensorType::new(DType::U32, &[3]));
        b.dropout = Some(Dropout { p: model.dropout(), rng });
    }
    let hidden = model.hidden(&mut b, tokens)?;
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[batch * time, width])?;
    let targets = b.graph.reshape(targets, &[batch * time])?;
    let nll = log_losses(model, &mut b, hidden, targets)?;
    b.graph.output("nll", nll);
    let loss = b.scoped("loss", |b| {
        let sum = b.graph.sum_all(nll)?;
        b.graph.mul(sum, inverse)
    })?;
    b.graph.output("loss", loss);
    Ok(Forward { builder: b, loss })
}

/// Logits of more bytes than this are made in blocks of rows.
const MOST_LOGITS: usize = 128 << 20;
/// Rows of a block at least, unless these too have more than `MOST_LOGITS`; more where they have less than a quarter of it.
const BLOCK_ROWS: usize = 512;
/// A graph does not grow with the batch.
const MOST_BLOCKS: usize = 64;

/// Hidden states [N, width] and targets [N] to the negative log-likelihood of every row, [N]. Where the logits of all rows would be large
/// they are made block by block, and again block by block in the backward pass: those of one block are in memory at a time, for a third
/// more work in the head.
fn log_losses(model: &dyn LanguageModel, b: &mut Builder, hidden: Value, targets: Value) -> Result<Value> {
    let (rows, row_bytes) = (b.graph.shape(hidden)[0], 4 * model.vocab_size());
    let within = |bytes: usize| bytes / row_bytes.max(1) / 64 * 64;
    let block =
        within(MOST_LOGITS / 4).max(BLOCK_ROWS).min(within(MOST_LOGITS)).max(64).max(rows.div_ceil(MOST_BLOCKS));
    if rows.saturating_mul(row_bytes) <= MOST_LOGITS || rows <= block {
        let logits = model.head(b, hidden)?;
        b.graph.output("logits", logits);
        return b.scoped("loss", |b| Ok(b.graph.cross_entropy(logits, targets)?.0));
    }
    let mut parts = Vec::new();
    for start in (0..rows).step_by(block) {
        let count = block.min(rows - start);
        let some = b.graph.slice(hidden, 0, start, count)?;
        let logits = model.head(b, some)?;
        b.graph.remake(logits);
        let targets = b.graph.slice(targets, 0, start, count)?;
        parts.push(b.scoped("loss", |b| Ok(b.graph.cross_entropy(logits, targets)?.0))?);
    }
    b.graph.concat(&parts, 0)
}

/// Drops outputs that the host does not read: what nobody reads need not be kept (or computed).
fn keep_outputs(graph: &mut Graph, names: &[&str]) {
    graph.retain_outputs(|n| names.contains(&n));
}

/// Tokens and targets to the negative log-likelihood of every position, [B * T].
pub fn evaluation(model: &dyn LanguageModel, shape: (usize, usize), stored: &StoredMatrices) -> Result<Graph> {
    let mut graph = forward(model, shape, false, Builder::of(stored))?.builder.graph;
    keep_outputs(&mut graph, &["nll"]);
    Ok(graph)
}

/// The loss as it is differentiated: binary16 has it scaled by the input `loss_scale` (see `loss_scale`).
fn scaled(graph: &mut Graph, loss: Value, precision: Precision) -> Result<Value> {
    match loss_scale(graph, precision) {
        Some(scale) => graph.mul(loss, scale),
        None => Ok(loss),
    }
}

fn loss_scale(graph: &mut Graph, precision: Precision) -> Option<Value> {
    precision.scales_loss().then(|| graph.shared_input(LossScale::NAME, TensorType::f32(&[])))
}

/// One forward and backward pass and the update, in one plan.
pub fn whole_step(
    model: &dyn LanguageModel,
    optimizer: &OptimizerConfig,
    shape: (usize, usize),
    precision: Precision,
) -> Result<Graph> {
    let Forward { builder, loss } = forward(model, shape, true, Builder::default())?;
    let (mut graph, parameters) = (builder.graph, builder.parameters);
    keep_outputs(&mut graph, &["loss"]);
    let weights = weights(&mut graph, &parameters)?;
    let scaled = scaled(&mut graph, loss, precision)?;
    let grads = graph.gradients(scaled, &weights)?;
    grads.iter().for_each(|g| graph.tag(*g, Role::Gradient));
    update(&mut graph, &parameters, &weights, &grads, loss, optimizer, precision)?;
    Ok(graph)
}

/// Adds one micro-batch's gradients to the sums: `sum = sum * keep + gradient`.
pub fn micro_step(model: &dyn LanguageModel, shape: (usize, usize), precision: Precision) -> Result<Graph> {
    let Forward { builder, loss } = forward(model, shape, true, Builder::default())?;
    let (mut graph, parameters) = (builder.graph, builder.parameters);
    keep_outputs(&mut graph, &["loss"]);
    let keep = graph.input("keep", TensorType::f32(&[]));
    let weights = weights(&mut graph, &parameters)?;
    let scaled = scaled(&mut graph, loss, precision)?;
    let grads = graph.gradients(scaled, &weights)?;
    for (p, g) in parameters.iter().zip(grads) {
        let sum = graph.variable(&format!("gradient.{}", p.name), Role::Gradient, TensorType::f32(&p.shape))?;
        let zero = graph.constant(HostTensor::scalar(0.0));
        let kept = graph.mul(sum, keep)?;
        // 0 * NaN is NaN: the first micro-batch must not inherit what an abandoned step left behind.
        let kept = graph.where_(keep, kept, zero)?;
        let total = graph.add(kept, g)?;
        graph.update(sum, total)?;
    }
    Ok(graph)
}

/// Applies the summed gradients.
pub fn apply_step(parameters: &[Parameter], optimizer: &OptimizerConfig, precision: Precision) -> Result<Graph> {
    let mut graph = Graph::new();
    let loss = graph.input("loss", TensorType::f32(&[]));
    let weights = weights(&mut graph, parameters)?;
    let mut grads = Vec::new();
    for p in parameters {
        grads.push(graph.variable(&format!("gradient.{}", p.name), Role::Gradient, TensorType::f32(&p.shape))?);
    }
    update(&mut graph, parameters, &weights, &grads, loss, optimizer, precision)?;
    Ok(graph)
}

/// Forward and backward with nothing updated: to look for the first bad value.
pub fn gradient_only(model: &dyn LanguageModel, shape: (usize, usize)) -> Result<Graph> {
    let Forward { builder, loss } = forward(model, shape, true, Builder::default())?;
    let (mut graph, parameters) = (builder.graph, builder.parameters);
    let weights = weights(&mut graph, &parameters)?;
    for (p, g) in parameters.iter().zip(graph.gradients(loss, &weights)?) {
        graph.output(&format!("gradient.{}", p.name), g);
    }
    Ok(graph)
}

/// tokens [1, context] and the position to read [1] to its logits [1, vocabulary].
pub fn generation(model: &dyn LanguageModel, context: usize, stored: &StoredMatrices) -> Result<Graph> {
    let mut b = Builder::of(stored);
    let tokens = b.tokens("tokens", &[1, context]);
    let position = b.tokens("position", &[1]);
    let hidden = model.hidden(&mut b, tokens)?;
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[context, width])?;
    // Only the row that is asked for goes through the head.
    let row = b.graph.embedding(hidden, position)?;
    let logits = model.head(&mut b, row)?;
    b.graph.output("logits", logits);
    Ok(b.graph)
}

/// tokens [1, T], of which the first are there, after a text whose states it carries on; with `Reads::Next` the position to read [1] gives
/// its logits [1, vocabulary], with `Reads::Scores` targets [T] give their negative log-likelihoods [T]. And what else the host writes.
pub fn segment(model: &dyn LanguageModel, tokens: usize, reads: Reads) -> Result<(Graph, Carry)> {
    let mut b = Builder { carry: Some(Carry::new(tokens)), ..Builder::default() };
    let ids = b.tokens("tokens", &[1, tokens]);
    let hidden = model.hidden(&mut b, ids)?;
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[tokens, width])?;
    match reads {
        Reads::Next => {
            let position = b.tokens("position", &[1]);
            let row = b.graph.embedding(hidden, position)?;
            let logits = model.head(&mut b, row)?;
            b.graph.output("logits", logits);
        }
        Reads::Scores => {
            let targets = b.tokens("targets", &[tokens]);
            let logits = model.head(&mut b, hidden)?;
            let (nll, _) = b.graph.cross_entropy(logits, targets)?;
            b.graph.output("nll", nll);
        }
    }
    let carry = b.carry.take().unwrap_or_else(|| Carry::new(tokens));
    Ok((b.graph, carry))
}

/// tokens [texts, T], of which the first of each text are there, after those whose keys and values are kept. With `Wants::Last` the rows to
/// read [texts] give logits [texts, vocabulary] and the likeliest of the first `known` tokens, i32 [texts]; with `Wants::Each` all rows do,
/// [texts T, vocabulary]. And the variables that keep.
pub fn kept(
    model: &dyn LanguageModel,
    shape: CacheShape,
    tokens: usize,
    wants: Wants,
    known: usize,
    stored: &StoredMatrices,
) -> Result<(Graph, Vec<(String, TensorType)>)> {
    let mut b = Builder::of(stored);
    b.keep(shape, tokens);
    let ids = b.tokens("tokens", &[shape.texts, tokens]);
    let hidden = model.hidden(&mut b, ids)?;
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[shape.texts * tokens, width])?;
    match wants {
        Wants::Last => {
            let rows = b.tokens("rows", &[shape.texts]);
            let last = b.graph.embedding(hidden, rows)?;
            let logits = model.head(&mut b, last)?;
            b.graph.output("logits", logits);
            let token = b.graph.argmax(logits, known.min(model.vocab_size()))?;
            b.graph.output("token", token);
        }
        Wants::Each => {
            let logits = model.head(&mut b, hidden)?;
            b.graph.output("logits", logits);
        }
    }
    let states = b.cache.take().map(|c| c.states).unwrap_or_default();
    Ok((b.graph, states))
}

fn weights(graph: &mut Graph, parameters: &[Parameter]) -> Result<Vec<Value>> {
    parameters.iter().map(|p| graph.variable(&p.name, Role::Parameter, TensorType::f32(&p.shape))).collect()
}

/// Names of the optimiser's state tensors of each weight.
pub fn optimizer_slots(optimizer: &OptimizerConfig) -> &'static [&'static str] {
    match optimizer.kind {
        OptimizerKind::Adamw => &["adamw.m", "adamw.v"],
        OptimizerKind::Sgd => &["sgd.v"],
    }
}

/// Global norm, clipping, and the optimiser. A loss or norm that is not finite leaves everything as it was.
fn update(
    graph: &mut Graph,
    parameters: &[Parameter],
    weights: &[Value],
    grads: &[Value],
    loss: Value,
    optimizer: &OptimizerConfig,
    precision: Precision,
) -> Result<()> {
    let mut norm = graph.global_norm(grads)?;
    let inverse = match loss_scale(graph, precision) {
        Some(scale) => Some(graph.recip(scale)?),
        None => None,
    };
    if let Some(inverse) = inverse {
        norm = graph.mul(norm, inverse)?;
    }
    graph.output("grad_norm", norm);
    let scale = guarded_scale(graph, norm, loss, optimizer.clip, inverse)?;
    let hyper = graph.input("hyper", TensorType::f32(&[hyper_values(optimizer, 1, 0.0).len()]));
    for ((p, w), g) in parameters.iter().zip(weights).zip(grads) {
        let ty = TensorType::f32(&p.shape);
        let mut slots = Vec::new();
        for kind in optimizer_slots(optimizer) {
            slots.push(graph.variable(&format!("{kind}.{}", p.name), Role::Optimizer, ty.clone())?);
        }
        let decay = if p.decays() { optimizer.weight_decay as f32 } else { 0.0 };
        graph.enter(&p.name);
        match optimizer.kind {
            OptimizerKind::Adamw => {
                graph.adamw(adamw(optimizer, decay), (*w, *g, slots[0], slots[1]), hyper, scale)?;
            }
            OptimizerKind::Sgd => {
                let op = SgdMomentum {
                    momentum: optimizer.momentum as f32,
                    dampening: 0.0,
                    nesterov: false,
                    weight_decay: decay,
                };
                graph.sgd_momentum(op, (*w, *g, slots[0]), hyper, scale)?;
            }
        }
        graph.leave();
    }
    Ok(())
}

fn adamw(o: &OptimizerConfig, weight_decay: f32) -> AdamW {
    AdamW { beta1: o.beta1 as f32, beta2: o.beta2 as f32, eps: o.eps as f32, weight_decay }
}

/// The factor on all gradients: 1, or what brings their norm down to `clip`, times `inverse` of the loss scale; negative, which the optimisers take as "change
/// nothing", when the norm or the loss is not finite (a comparison with NaN is false).
fn guarded_scale(graph: &mut Graph, norm: Value, loss: Value, clip: f64, inverse: Option<Value>) -> Result<Value> {
    let one = graph.constant(HostTensor::scalar(1.0));
    let mut scale = if clip > 0.0 { graph.clip_scale(norm, clip as f32)? } else { one };
    if let Some(inverse) = inverse {
        scale = graph.mul(scale, inverse)?;
    }
    let largest = graph.constant(HostTensor::scalar(f32::MAX));
    let stop = graph.constant(HostTensor::scalar(-1.0));
    let size = graph.abs(loss)?;
    let (a, b) = (graph.less_equal(norm, largest)?, graph.less_equal(size, largest)?);
    let both = graph.mul(a, b)?;
    graph.where_(both, scale, stop)
}

fn hyper_values(optimizer: &OptimizerConfig, step: u64, lr: f64) -> Vec<f32> {
    match optimizer.kind {
        OptimizerKind::Adamw => adamw(optimizer, 0.0).hyper(lr, step, 1.0).to_vec(),
        OptimizerKind::Sgd => vec![lr as f32, 1.0],
    }
}

/// Learning rate and bias corrections of a step.
pub fn write_hyper(run: &mut dyn Executable, optimizer: &OptimizerConfig, info: &StepInfo) -> Result<()> {
    let values = hyper_values(optimizer, info.step, info.lr);
    run.write_input("hyper", &HostTensor::f32(&[values.len()], values))
}
