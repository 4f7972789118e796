//! A model with its weights in the formats of a recipe, ready to be run or written.

use super::awq::{self, divide_rows, scale_columns};
use super::fold::{Before, Pair, pairs};
use super::gptq::{Factor, output_error};
use super::rows::{Options, dequantise, quantise};
use super::scheme::{Recipe, Role, Scheme};
use crate::config::ModelConfig;
use crate::models::LanguageModel;
use crate::models::session::observe::Moments;
use crate::models::weights::{StoredWeight, WeightSource};
use crate::nn::{Builder, Parameter};
use crate::{Error, Result};
use kernels_cpu::blocks::Format;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What a calibration text said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    pub moments: Vec<Moments>,
    /// What was read, for people and for files.
    pub about: String,
    /// Chunks and tokens of each.
    pub chunks: (usize, usize),
}

impl Calibration {
    /// For people: "32 chunks of 512 tokens of FILE".
    pub fn about_text(&self) -> String {
        let (chunks, tokens) = self.chunks;
        format!("{chunks} chunks of {tokens} tokens of {}", self.about)
    }

    /// The moments of the input of a matrix.
    pub fn of(&self, matrix: &str) -> Option<&Moments> {
        self.moments.iter().find(|m| m.matrices.iter().any(|n| n == matrix))
    }
}

/// One weight before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub name: String,
    pub shape: Vec<usize>,
    pub from: &'static str,
    pub to: &'static str,
    pub bytes_before: u64,
    pub bytes: u64,
    /// Root mean square of what the weights are off by, relative to that of the weights.
    pub error: f64,
    /// Largest difference.
    pub largest: f64,
    /// Root mean square of what the outputs are off by on the calibration text, relative to that of the outputs.
    pub output_error: Option<f64>,
    /// The exponent of activation-aware scaling.
    pub alpha: Option<f64>,
    /// Why it is not stored as was asked.
    pub note: Option<String>,
}

struct Entry {
    stored: StoredWeight,
    /// None: as the source has it.
    bytes: Option<Vec<u8>>,
}

/// The weights of `source` by a recipe. What the recipe leaves alone is read from the source.
pub struct Quantised {
    source: Arc<dyn WeightSource>,
    entries: BTreeMap<String, Entry>,
    /// In the order of the model.
    pub changes: Vec<Change>,
}

impl Quantised {
    /// Bytes of all weights, and what they were.
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |of: fn(&Change) -> u64| self.changes.iter().map(of).sum();
        (sum(|c| c.bytes), sum(|c| c.bytes_before))
    }

    /// What a person should know, one line each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<(String, usize)> = vec![];
        for note in self.changes.iter().filter_map(|c| c.note.as_ref()) {
            match notes.iter_mut().find(|(text, _)| text == note) {
                Some((_, count)) => *count += 1,
                None => notes.push((note.clone(), 1)),
            }
        }
        let said = |(text, count): (String, usize)| if count > 1 { format!("{text} ({count} weights)") } else { text };
        notes.into_iter().map(said).collect()
    }

    fn missing(&self, name: &str) -> Error {
        Error::Checkpoint(format!("{}: no weight '{name}'", self.origin()))
    }
}

impl WeightSource for Quantised {
    fn find(&self, name: &str) -> Option<StoredWeight> {
        match self.entries.get(name) {
            Some(entry) => Some(entry.stored.clone()),
            None => self.source.find(name),
        }
    }

    fn read(&self, name: &str, into: &mut [u8]) -> Result<()> {
        match self.entries.get(name).map(|e| &e.bytes) {
            Some(Some(bytes)) if bytes.len() == into.len() => {
                into.copy_from_slice(bytes);
                Ok(())
            }
            Some(Some(_)) => Err(self.missing(name)),
            _ => self.source.read(name, into),
        }
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, into: &mut [u8]) -> Result<()> {
        let Some(Entry { stored, bytes: Some(bytes) }) = self.entries.get(name) else {
            return self.source.read_rows(name, rows, into);
        };
        let row = bytes.len() / stored.rows().0.max(1);
        match bytes.get(rows.start * row..rows.end * row).filter(|part| part.len() == into.len()) {
            Some(part) => {
                into.copy_from_slice(part);
                Ok(())
            }
            None => Err(self.missing(name)),
        }
    }

    fn origin(&self) -> String {
        self.source.origin()
    }
}

/// The weights of a model, in its order, with what each is to it.
///
/// # Errors
/// A model that cannot be written as a graph.
pub fn roles(model: &dyn LanguageModel) -> Result<Vec<(Parameter, Role)>> {
    let mut b = Builder { observed: Some(vec![]), ..Builder::default() };
    let tokens = b.tokens("tokens", &[1, 1]);
    let hidden = model.hidden(&mut b, tokens)?;
    let width = b.graph.shape(hidden)[2];
    let flat = b.graph.reshape(hidden, &[1, width])?;
    let before = b.observed.as_ref().map_or(0, Vec::len);
    model.head(&mut b, flat)?;
    let products = b.observed.take().unwrap_or_default();
    let (body, head) = products.split_at(before);
    let in_list = |list: &[(String, crate::graph::Value)], name: &str| list.iter().any(|(n, _)| n == name);
    let role = |name: &str| {
        let table = name.ends_with("embed_tokens.weight");
        match (b.matrices.iter().any(|m| m == name), in_list(head, name)) {
            (true, true) if table => Role::TiedHead,
            (true, true) => Role::Head,
            (true, false) if table => Role::Embedding,
            (true, false) if in_list(body, name) => Role::Matrix,
            _ => Role::Other,
        }
    };
    Ok(b.parameters
        .into_iter()
        .map(|p| {
            let r = role(&p.name);
            (p, r)
        })
        .collect())
}

/// Reads a weight as f32.
///
/// # Errors
/// No such weight, another shape, or a file that cannot be read.
pub fn widened(source: &dyn WeightSource, p: &Parameter) -> Result<(Format, Vec<f32>)> {
    let bad = |e: String| Error::Checkpoint(format!("{}: '{}': {e}", source.origin(), p.name));
    let found = source.find(&p.name).ok_or_else(|| bad("there is no such weight in the file".into()))?;
    if found.shape != p.shape {
        return Err(bad(format!("its shape is {:?}, the model wants {:?}", found.shape, p.shape)));
    }
    let mut bytes = vec![0; found.bytes().map_err(bad)?];
    source.read(&p.name, &mut bytes)?;
    Ok((found.format, dequantise(found.format, &bytes, found.rows().1).map_err(bad)?))
}

/// Factors of activation-aware scaling, by the names of the weights.
#[derive(Default)]
struct Factors {
    /// Columns are multiplied; with the exponent that was found.
    columns: BTreeMap<String, (Vec<f32>, f64)>,
    /// Rows, or elements of a vector, are divided.
    rows: BTreeMap<String, Vec<f32>>,
    /// Gains that are stored less 1.
    plus_one: Vec<String>,
}

impl Factors {
    /// The weights that the scaled model has.
    fn fold(&self, name: &str, weights: &mut [f32]) {
        if let Some(by) = self.rows.get(name) {
            self.divide(name, weights, by);
        }
        if let Some((by, _)) = self.columns.get(name) {
            scale_columns(weights, by);
        }
    }

    /// What weights of the scaled model are in the one that was there before.
    fn unfold(&self, name: &str, weights: &mut [f32]) {
        let inverse = |by: &[f32]| by.iter().map(|s| 1.0 / s).collect::<Vec<_>>();
        if let Some((by, _)) = self.columns.get(name) {
            scale_columns(weights, &inverse(by));
        }
        if let Some(by) = self.rows.get(name) {
            self.divide(name, weights, &inverse(by));
        }
    }

    fn divide(&self, name: &str, weights: &mut [f32], by: &[f32]) {
        let less = if self.plus_one.iter().any(|n| n == name) { 1.0 } else { 0.0 };
        weights.iter_mut().for_each(|v| *v += less);
        divide_rows(weights, by);
        weights.iter_mut().for_each(|v| *v -= less);
    }
}

/// Quantises the weights of `source` by `recipe`; `after` hears every weight and returns false to stop.
///
/// # Errors
/// A scheme that needs a calibration text without one; weights that cannot be read or are not finite; `Error::Interrupted`.
pub fn quantise_model(
    model: &dyn LanguageModel,
    config: &ModelConfig,
    source: &Arc<dyn WeightSource>,
    recipe: &Recipe,
    calibration: Option<&Calibration>,
    after: &mut dyn FnMut(&Change) -> bool,
) -> Result<Quantised> {
    let weights = roles(model)?;
    if recipe.scheme.learns() && !calibration.is_some_and(|c| c.moments.iter().any(|m| m.products.is_some())) {
        return Err(Error::Config(format!(
            "{} learns from a text: give one with --calibrate FILE",
            recipe.scheme.name()
        )));
    }
    let factors = match (recipe.scheme, calibration) {
        (Scheme::Awq(_), Some(c)) => factors(config, source.as_ref(), &weights, recipe, c)?,
        _ => Factors::default(),
    };
    let mut result = Quantised { source: source.clone(), entries: BTreeMap::new(), changes: vec![] };
    let mut known: Option<(String, Result<Factor, String>)> = None;
    for (p, role) in &weights {
        let (from, original) = widened(source.as_ref(), p)?;
        let bad = |e: String| Error::Checkpoint(format!("{}: '{}': {e}", source.origin(), p.name));
        let mut work = original.clone();
        factors.fold(&p.name, &mut work);
        let columns = p.shape.last().copied().unwrap_or(1);
        let chosen = recipe.only.as_ref().is_none_or(|names| names.contains(&p.name));
        let moved = factors.rows.contains_key(&p.name) || factors.columns.contains_key(&p.name);
        let to = match recipe.format(*role, columns).filter(|_| chosen) {
            Some(format) => format,
            // Vectors are always f32; other weights that nobody asked for stay as they are.
            None if p.shape.len() < 2 || moved => Format::F32,
            None => from,
        };
        let moments = calibration.and_then(|c| c.of(&p.name));
        let mut note = lesser(recipe, *role, columns, to).filter(|_| chosen);
        // One scale for the whole matrix is stored as rows are, so the format does not tell what the scales are.
        let same = to == from && !(chosen && recipe.scheme == Scheme::Int8Tensor);
        if same && chosen && p.shape.len() > 1 && !matches!(to, Format::F32 | Format::F16 | Format::Bf16) {
            note = Some(format!("{to} already: left as it is"));
        }
        let bytes = if same && !moved {
            None
        } else {
            let importance = moments.map(Moments::importance);
            let learned = match (recipe.scheme, to) {
                (Scheme::Gptq(_), Format::Int4Group(group)) => {
                    let moments = moments.ok_or_else(|| bad("the calibration text says nothing of it".into()))?;
                    let key = &moments.matrices[0];
                    if known.as_ref().is_none_or(|(k, _)| k != key) {
                        let gram = moments.gram().ok_or_else(|| bad("its inputs have no X^T X".into()))?;
                        known = Some((key.clone(), Factor::new(&gram, columns)));
                    }
                    match &known {
                        Some((_, Ok(factor))) => {
                            Some(factor.quantise(&work, group as usize, recipe.clip).map_err(bad)?)
                        }
                        Some((_, Err(why))) => {
                            note = Some(format!("{why}: rounded to the nearest"));
                            None
                        }
                        None => None,
                    }
                }
                _ => None,
            };
            // Importance is for formats that search their scales; schemes that learn have used X^T X instead.
            let options = Options {
                clip: recipe.clip,
                importance: importance.as_deref().filter(|_| !recipe.scheme.learns()),
                one_scale: recipe.scheme == Scheme::Int8Tensor,
            };
            match learned {
                Some(bytes) => Some(bytes),
                None => Some(quantise(to, &work, columns, &options).map_err(bad)?),
            }
        };
        let back = match &bytes {
            None => original.clone(),
            Some(bytes) => {
                let mut back = dequantise(to, bytes, columns).map_err(bad)?;
                factors.unfold(&p.name, &mut back);
                back
            }
        };
        if let Some(at) = original.iter().position(|x| !x.is_finite()) {
            return Err(bad(format!("number {at} of it is {}: the weights are damaged", original[at])));
        }
        let (error, largest) = difference(&original, &back);
        if !error.is_finite() {
            return Err(bad(format!("its numbers do not fit {to}: they are too large")));
        }
        let stored = StoredWeight { shape: p.shape.clone(), format: to };
        let size = |format| StoredWeight { shape: p.shape.clone(), format }.bytes().map(|b| b as u64).map_err(bad);
        let change = Change {
            name: p.name.clone(),
            shape: p.shape.clone(),
            from: from.name(),
            to: to.name(),
            bytes_before: size(from)?,
            bytes: size(to)?,
            error,
            largest,
            output_error: moments.filter(|_| bytes.is_some()).map(|m| outputs(&original, &back, m)),
            alpha: factors.columns.get(&p.name).map(|(_, alpha)| *alpha),
            note,
        };
        let go_on = after(&change);
        result.changes.push(change);
        result.entries.insert(p.name.clone(), Entry { stored, bytes });
        if !go_on {
            return Err(Error::Interrupted("quantising was stopped; nothing was written".into()));
        }
    }
    Ok(result)
}

/// Why a matrix is not stored as the scheme says.
fn lesser(recipe: &Recipe, role: Role, columns: usize, to: Format) -> Option<String> {
    let wanted = recipe.scheme.format();
    (role == Role::Matrix && to != wanted)
        .then(|| format!("rows of {columns} numbers are no whole blocks of {wanted}: stored as {to}"))
}

/// The exponent for every pair of the model, and what follows from it for each weight.
fn factors(
    config: &ModelConfig,
    source: &dyn WeightSource,
    weights: &[(Parameter, Role)],
    recipe: &Recipe,
    calibration: &Calibration,
) -> Result<Factors> {
    let mut found = Factors::default();
    for Pair { matrices, before, classes } in pairs(config).map_err(Error::Config)? {
        let parameter = |name: &str| weights.iter().find(|(p, _)| p.name == *name);
        let members: Vec<&(Parameter, Role)> = matrices.iter().filter_map(|n| parameter(n)).collect();
        let Some((first, role)) = members.first() else { continue };
        let columns = first.shape.last().copied().unwrap_or(1);
        let format = match recipe.format(*role, columns) {
            Some(format @ Format::Int4Group(_)) => format,
            // In 16 bits there is nothing to win.
            _ => continue,
        };
        let skip = |n: &String| recipe.only.as_ref().is_some_and(|only| !only.contains(n));
        if matrices.iter().any(skip) {
            continue;
        }
        let bad = |e: String| Error::Checkpoint(format!("{}: '{}': {e}", source.origin(), first.name));
        let gram = calibration.of(&first.name).and_then(Moments::gram);
        let gram = gram.ok_or_else(|| bad("the calibration text says nothing of it".into()))?;
        let numbers: Vec<Vec<f32>> =
            members.iter().map(|(p, _)| widened(source, p).map(|(_, w)| w)).collect::<Result<_>>()?;
        let numbers: Vec<&[f32]> = numbers.iter().map(Vec::as_slice).collect();
        let scaling = awq::search(&numbers, columns, &gram, classes.as_deref(), format, recipe.clip).map_err(bad)?;
        for name in matrices {
            found.columns.insert(name, (scaling.factors.clone(), scaling.alpha));
        }
        let (name, by) = match before {
            Before::Norm { name, plus_one } => {
                if plus_one {
                    found.plus_one.push(format!("{name}.weight"));
                }
                (name, scaling.factors)
            }
            Before::Rows { name, channels } => (name, channels.iter().map(|c| scaling.factors[*c]).collect()),
        };
        for part in ["weight", "bias"].map(|part| format!("{name}.{part}")) {
            if parameter(&part).is_some() {
                found.rows.insert(part, by.clone());
            }
        }
    }
    Ok(found)
}

/// Relative root mean square, and the largest, of what `back` is off by.
fn difference(original: &[f32], back: &[f32]) -> (f64, f64) {
    let (mut off, mut all, mut largest) = (0.0, 0.0, 0.0f64);
    for (a, b) in original.iter().zip(back) {
        let d = f64::from(*a) - f64::from(*b);
        off += d * d;
        all += f64::from(*a).powi(2);
        largest = largest.max(d.abs());
    }
    (if off == 0.0 { 0.0 } else { (off / all).sqrt() }, largest)
}

/// As [`Change::output_error`]; inputs of which only squares are known count as independent.
fn outputs(original: &[f32], back: &[f32], moments: &Moments) -> f64 {
    let columns = moments.columns();
    let (off, all) = match moments.gram() {
        Some(gram) => {
            let nothing = vec![0.0; original.len()];
            (output_error(original, back, &gram, columns), output_error(original, &nothing, &gram, columns))
        }
        None => {
            let h = moments.importance();
            let weighted = |of: &dyn Fn(usize) -> f64| -> f64 {
                (0..original.len()).map(|i| f64::from(h[i % columns]) * of(i).powi(2)).sum()
            };
            let off = weighted(&|i| f64::from(original[i]) - f64::from(back[i]));
            (off, weighted(&|i| f64::from(original[i])))
        }
    };
    if off <= 0.0 { 0.0 } else { (off / all).sqrt() }
}

#[cfg(test)]
mod tests;
