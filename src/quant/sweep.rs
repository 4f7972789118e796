//! One model under many schemes: perplexity, bytes and tokens per second of each, and which of its parts suffer most.

use super::model::{Calibration, Quantised, quantise_model, roles};
use super::scheme::{Recipe, Role, Scheme};
use super::symmetric::Clip;
use crate::config::ModelConfig;
use crate::device::Device;
use crate::evals::perplexity::{Perplexity, Text};
use crate::infer::NextToken;
use crate::models::session::Storing;
use crate::models::weights::WeightSource;
use crate::models::{Session, setup};
use crate::ops::packed::Activations;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use kernels_cpu::blocks::Format;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

/// The seven schemes of phase 26 of Lynx Cortex, in its order.
pub const SEVEN: [Scheme; 7] = [
    Scheme::Nearest(Format::F32),
    Scheme::Nearest(Format::F16),
    Scheme::Int8Tensor,
    Scheme::Nearest(Format::Int8Row),
    Scheme::Nearest(Format::Int4Group(64)),
    Scheme::Nearest(Format::Int4Group(128)),
    Scheme::Gptq(64),
];
/// What is measured beside them.
pub const MORE: [Scheme; 5] = [
    Scheme::Awq(64),
    Scheme::Nearest(Format::Nf4),
    Scheme::Nearest(Format::Q8_0),
    Scheme::Nearest(Format::Q4_0),
    Scheme::Nearest(Format::Q4K),
];

/// A model that is measured.
pub struct Subject<'a> {
    pub config: &'a ModelConfig,
    pub tokenizer: &'a Tokenizer,
    pub weights: Arc<dyn WeightSource>,
    pub device: Device,
    /// Of every scheme: how scales are chosen (none: as the scheme has it), and what happens to the head, see [`Recipe`].
    pub clip: Option<Clip>,
    pub keep_head: bool,
    pub pure: bool,
}

/// How tokens per second are measured: in turn, `rounds` times, so that what slows the machine slows every scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timing {
    pub rounds: usize,
    /// Tokens that are read first, and those that are then decoded one by one.
    pub prompt: usize,
    pub tokens: usize,
}

/// One scheme.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub scheme: String,
    pub bytes: u64,
    pub perplexity: Perplexity,
    /// Perplexity over that of f32, less 1.
    pub change: f64,
    /// Of decoding: the median of the rounds.
    pub tokens_per_second: f64,
    /// The median of the rounds' ratios to f32 in the same round.
    pub speed: f64,
    /// No other scheme is smaller without a higher perplexity.
    pub on_front: bool,
    pub notes: Vec<String>,
}

impl Subject<'_> {
    /// How a scheme is applied in a sweep.
    fn recipe(&self, scheme: Scheme) -> Recipe {
        Recipe::with(scheme, self.clip, self.keep_head, self.pure)
    }

    fn quantised(&self, recipe: &Recipe, calibration: Option<&Calibration>) -> Result<Quantised> {
        let model = setup::model(self.config)?;
        quantise_model(model.as_ref(), self.config, &self.weights, recipe, calibration, &mut |_| true)
    }

    /// A session with these weights.
    ///
    /// # Errors
    /// As `Session::for_weights`.
    pub fn session(&self, weights: &dyn WeightSource) -> Result<Session> {
        let model = setup::model(self.config)?;
        // As `generate` and `eval perplexity` do by themselves.
        let storing = Storing { widened: false, activations: Activations::Int8 };
        Session::for_weights(model, self.tokenizer.clone(), self.device.clone(), weights, storing)
    }
}

/// Measures every scheme. The first has to be f32, which the others are compared with; `calibration` is needed for those that learn.
/// `after` hears every scheme.
///
/// # Errors
/// As quantising, loading, and [`Text::score`].
pub fn sweep(
    subject: &Subject,
    schemes: &[Scheme],
    calibration: Option<&Calibration>,
    text: &Text,
    timing: Timing,
    after: &mut dyn FnMut(&str),
) -> Result<Vec<Point>> {
    if schemes.first() != Some(&Scheme::Nearest(Format::F32)) {
        return Err(Error::Config("the first scheme of a sweep is f32: the others are compared with it".into()));
    }
    let mut points: Vec<Point> = vec![];
    let mut sessions = vec![];
    for scheme in schemes {
        let quantised = subject.quantised(&subject.recipe(*scheme), learned(*scheme, calibration))?;
        let mut session = subject.session(&quantised)?;
        let result = text.score(&mut session, &mut |_, _| true)?;
        let base = points.first().map_or(result.perplexity, |p| p.perplexity.perplexity);
        points.push(Point {
            scheme: scheme.name(),
            bytes: quantised.bytes().0,
            change: result.perplexity / base - 1.0,
            perplexity: result,
            tokens_per_second: 0.0,
            speed: 0.0,
            on_front: false,
            notes: quantised.notes(),
        });
        sessions.push(session);
        after(&scheme.name());
    }
    after("tokens per second");
    let rates = rates(&mut sessions, text, timing)?;
    for (i, point) in points.iter_mut().enumerate() {
        point.tokens_per_second = median(rates.iter().map(|round| round[i]).collect());
        point.speed = median(rates.iter().map(|round| round[i] / round[0]).collect());
    }
    mark_front(&mut points);
    Ok(points)
}

/// Plain rounding does not look at the calibration text, so that every scheme is what its name says.
fn learned(scheme: Scheme, calibration: Option<&Calibration>) -> Option<&Calibration> {
    calibration.filter(|_| scheme.learns())
}

/// Tokens per second of every session in every round. The first round is thrown away.
fn rates(sessions: &mut [Session], text: &Text, timing: Timing) -> Result<Vec<Vec<f64>>> {
    let prompt = &text.beginning(timing.prompt.max(1));
    let mut rounds = vec![];
    for _ in 0..=timing.rounds.max(1) {
        let mut round = vec![];
        for session in sessions.iter_mut() {
            NextToken::restart(session)?;
            let mut next = session.advance_greedy(prompt)?;
            let begun = Instant::now();
            for _ in 0..timing.tokens.max(1) {
                next = session.advance_greedy(&[next])?;
            }
            round.push(timing.tokens.max(1) as f64 / begun.elapsed().as_secs_f64().max(1e-9));
        }
        rounds.push(round);
    }
    Ok(rounds.split_off(1))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { 0.0 } else { 0.5 * (values[(n - 1) / 2] + values[n / 2]) }
}

fn mark_front(points: &mut [Point]) {
    let all: Vec<(u64, f64)> = points.iter().map(|p| (p.bytes, p.perplexity.perplexity)).collect();
    let beaten = |i: usize| {
        let (bytes, loss) = all[i];
        let better =
            |(j, (b, l)): (usize, &(u64, f64))| *b <= bytes && *l <= loss && (*b < bytes || *l < loss || j < i);
        all.iter().enumerate().any(|(j, p)| j != i && better((j, p)))
    };
    points.iter_mut().enumerate().for_each(|(i, p)| p.on_front = !beaten(i));
}

/// What is quantised alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// All matrices of a layer
    Layer,
    /// One matrix
    Tensor,
}

/// A part of the model that was quantised alone.
#[derive(Clone, Debug, Serialize)]
pub struct Sensitivity {
    pub part: String,
    pub weights: usize,
    /// Numbers in them.
    pub numbers: u64,
    pub perplexity: f64,
    /// Perplexity over that of f32, less 1.
    pub change: f64,
}

/// Quantises one part at a time and everything else not at all; the part that costs most comes first.
///
/// # Errors
/// As [`sweep`].
pub fn sensitivity(
    subject: &Subject,
    scheme: Scheme,
    part: Part,
    calibration: Option<&Calibration>,
    text: &Text,
    after: &mut dyn FnMut(&str),
) -> Result<(Perplexity, Vec<Sensitivity>)> {
    let recipe = |only: Option<Vec<String>>| Recipe { only, ..subject.recipe(scheme) };
    let base = text.score(&mut subject.session(subject.weights.as_ref())?, &mut |_, _| true)?;
    let mut parts: Vec<(String, Vec<String>, u64)> = vec![];
    for (p, role) in roles(setup::model(subject.config)?.as_ref())? {
        let columns = p.shape.last().copied().unwrap_or(1);
        // Parts that the scheme leaves in 16 bits or more are no question.
        let small = |f: Format| !matches!(f, Format::F32 | Format::F16 | Format::Bf16);
        let cast = !small(scheme.format());
        if role == Role::Other || !recipe(None).format(role, columns).is_some_and(|f| cast || small(f)) {
            continue;
        }
        let name = match part {
            Part::Tensor => p.name.clone(),
            Part::Layer => layer_of(&p.name),
        };
        let numbers = p.elements() as u64;
        match parts.iter_mut().find(|(n, ..)| *n == name) {
            Some((_, names, sum)) => {
                names.push(p.name);
                *sum += numbers;
            }
            None => parts.push((name, vec![p.name], numbers)),
        }
    }
    let mut rows = vec![];
    for (part, names, numbers) in parts {
        let weights = names.len();
        let quantised = subject.quantised(&recipe(Some(names)), learned(scheme, calibration))?;
        let result = text.score(&mut subject.session(&quantised)?, &mut |_, _| true)?;
        after(&part);
        let change = result.perplexity / base.perplexity - 1.0;
        rows.push(Sensitivity { part, weights, numbers, perplexity: result.perplexity, change });
    }
    rows.sort_by(|a, b| b.change.total_cmp(&a.change));
    Ok((base, rows))
}

/// `model.layers.3` of `model.layers.3.mlp.up_proj.weight`; weights outside of layers stand alone.
fn layer_of(name: &str) -> String {
    let mut parts = name.split('.');
    let layer = parts.position(|p| p == "layers").and_then(|_| parts.next());
    layer.map_or_else(|| name.to_string(), |n| format!("model.layers.{n}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(bytes: u64, perplexity: f64) -> Point {
        let result =
            Perplexity { perplexity, error: 0.0, loss: 0.0, n_ctx: 8, chunks: 2, lines: false, scored: 6, tokens: 16 };
        Point {
            scheme: String::new(),
            bytes,
            perplexity: result,
            change: 0.0,
            tokens_per_second: 0.0,
            speed: 0.0,
            on_front: false,
            notes: vec![],
        }
    }

    #[test]
    fn the_front_is_what_nothing_beats_in_both() {
        let mut points =
            [point(400, 5.0), point(200, 5.0), point(100, 5.3), point(110, 5.4), point(60, 6.0), point(60, 6.0)];
        mark_front(&mut points);
        assert_eq!(points.map(|p| p.on_front), [false, true, true, false, true, false]);
    }

    #[test]
    fn weights_belong_to_their_layer() {
        assert_eq!(layer_of("model.layers.12.mlp.up_proj.weight"), "model.layers.12");
        assert_eq!(layer_of("lm_head.weight"), "lm_head.weight");
        assert_eq!(median(vec![3.0, 1.0, 2.0, 10.0]), 2.5);
    }
}
