//! Recurrences in their chunked and in their recurrent form, forward alone and in training, the two forms in turn, so that both meet
//! the same machine.

use super::Progress;
use super::dots::{fill, run_and_wait};
use super::targets;
use crate::device::{Device, Executable, Store};
use crate::graph::{Graph, Plan, Value};
use crate::ops::Values;
use crate::ops::form::Form;
use crate::tensor::TensorType;
use crate::{Error, Result};
use serde::Serialize;
use std::fmt::Write;
use std::time::Instant;

#[derive(Clone, Debug)]
pub struct Options {
    /// As `bench --device`.
    pub device: String,
    /// Lengths of the sequence.
    pub times: Vec<usize>,
    /// For each pair of forms, after one run of each to warm up; three runs of each are made at least.
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    Forward,
    /// Forward and all gradients.
    Training,
}

/// One recurrence at one length on one device. Seconds are the least of the runs: what others do on a machine only adds.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub device: String,
    pub operator: &'static str,
    pub time: usize,
    pub pass: Pass,
    pub chunked: f64,
    pub recurrent: f64,
    /// Runs of each.
    pub runs: usize,
}

impl Pair {
    /// How many times faster the chunked form is.
    pub fn gain(&self) -> f64 {
        self.recurrent / self.chunked
    }
}

const OPERATORS: [&str; 3] = ["gla_head", "gla_channel", "scan"];
/// Query, key and value heads, and their width: the shape of the nano presets.
const HEADS: [usize; 3] = [6, 6, 2];
const WIDTH: usize = 64;

/// Measures every recurrence at every length on the devices that `options` names (the CPU with all threads).
pub fn measure(options: &Options, progress: &mut dyn Progress) -> Result<Vec<Pair>> {
    if options.times.is_empty() || options.times.contains(&0) {
        return Err(Error::Config("--times: each sequence needs at least 1 step".into()));
    }
    let mut pairs = Vec::new();
    for target in targets::resolve(&options.device)?.iter().filter(|target| target.id != "cpu1") {
        let _threads = target.set_threads();
        for operator in OPERATORS {
            for &time in &options.times {
                for pass in [Pass::Forward, Pass::Training] {
                    progress.step(&format!("{}: {operator}, {time} steps", target.id));
                    pairs.push(pair(&target.id, &target.device, operator, time, pass, options.seconds)?);
                }
            }
        }
    }
    Ok(pairs)
}

fn pair(id: &str, device: &Device, operator: &'static str, time: usize, pass: Pass, seconds: f64) -> Result<Pair> {
    // The stores hold the memory that the executables run in.
    let mut stores = [Store::new(device), Store::new(device)];
    let mut best = [f64::INFINITY; 2];
    let mut forms: Vec<Box<dyn Executable>> = Vec::new();
    for (store, form) in stores.iter_mut().zip([Form::Chunked, Form::Recurrent]) {
        let plan = Plan::new(&graph(operator, form, time, pass)?)?;
        let mut run = plan.prepare(store)?;
        for (i, (name, place)) in plan.work.inputs.iter().enumerate() {
            // Log gates of sequences that remember: between 10 and 1000 steps.
            let values = if name == "a" { Values::Uniform(-0.1, -1e-3) } else { Values::Normal(0.5) };
            run.write_input(name, &fill(&values, &place.ty, 11 + i as u64))?;
        }
        run_and_wait(device, run.as_mut(), 1)?;
        forms.push(run);
    }
    let begun = Instant::now();
    let mut runs = 0;
    while runs < 3 || (runs < 1000 && begun.elapsed().as_secs_f64() < seconds) {
        for (run, best) in forms.iter_mut().zip(&mut best) {
            *best = best.min(run_and_wait(device, run.as_mut(), 1)?);
        }
        runs += 1;
    }
    let [chunked, recurrent] = best;
    Ok(Pair { device: id.into(), operator, time, pass, chunked, recurrent, runs })
}

/// One sequence through a recurrence; in training with the gradients of all its operands.
fn graph(operator: &str, form: Form, time: usize, pass: Pass) -> Result<Graph> {
    let mut g = Graph::new();
    let [h, hk, hv] = HEADS;
    let mut input = |name: &str, shape: &[usize]| g.input(name, TensorType::f32(shape));
    let wrt: Vec<Value> = match operator {
        "scan" => vec![input("a", &[1, time, h * WIDTH]), input("u", &[1, time, h * WIDTH])],
        _ => {
            let gates: &[usize] = if operator == "gla_channel" { &[1, time, h, WIDTH] } else { &[1, time, h] };
            vec![
                input("q", &[1, time, h, WIDTH]),
                input("k", &[1, time, hk, WIDTH]),
                input("v", &[1, time, hv, WIDTH]),
                input("a", gates),
            ]
        }
    };
    let (o, last) = match wrt[..] {
        [a, u] => g.scan_as(form, a, u, None)?,
        [q, k, v, a] => g.gla(form, operator == "gla_channel", [q, k, v, a], None)?,
        _ => unreachable!("a recurrence has two or four operands"),
    };
    g.output("o", o);
    if pass == Pass::Forward {
        g.output("last", last);
        return Ok(g);
    }
    let ty = g.ty(o).clone();
    let seed = g.input("d_o", ty);
    for (i, gradient) in g.vector_jacobian(&[(o, seed)], &wrt)?.into_iter().enumerate() {
        g.output(&format!("g{i}"), gradient);
    }
    Ok(g)
}

/// A table, and the pairs in which the chunked form loses.
pub fn text(pairs: &[Pair]) -> String {
    let mut out = String::from("device    operator         steps  pass       chunked ms  recurrent ms   gain\n");
    for p in pairs {
        let pass = if p.pass == Pass::Forward { "forward" } else { "training" };
        let _ = writeln!(
            out,
            "{:<8}  {:<11}  {:>9}  {pass:<8}  {:>11.3}  {:>12.3}  {:>4.2}x",
            p.device,
            p.operator,
            p.time,
            1e3 * p.chunked,
            1e3 * p.recurrent,
            p.gain()
        );
    }
    let lost: Vec<String> = pairs
        .iter()
        .filter(|p| p.pass == Pass::Training && p.gain() < 1.0)
        .map(|p| format!("{} {} at {}", p.device, p.operator, p.time))
        .collect();
    match lost.is_empty() {
        true => out.push_str("\nchunked is faster in training everywhere\n"),
        false => {
            let _ = writeln!(out, "\nchunked is slower in training: {}", lost.join("; "));
        }
    }
    out
}
