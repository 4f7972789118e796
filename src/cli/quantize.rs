//! `lynx-gpu quantize`: a model made smaller and written, or measured under many schemes.

mod pareto;

use super::report::{bytes, emit, grouped};
use crate::device::{Device, choose};
use crate::models::files::write::{Target, WriteOptions, Written, write};
use crate::models::files::{self, ModelFile, OpenOptions};
use crate::models::session::Storing;
use crate::models::session::observe::Moment;
use crate::models::weights::WeightSource;
use crate::models::{Session, setup};
use crate::ops::workloads::workloads;
use crate::quant::calibration::{Reading, calibrate};
use crate::quant::imatrix;
use crate::quant::model::{Calibration, Change, quantise_model};
use crate::quant::scheme::{Recipe, Scheme};
use crate::quant::symmetric::Clip;
use crate::train::files::read_text;
use crate::{Error, Result};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub struct Args {
    /// GGUF file, Hugging Face folder, llama2.c file, run folder or checkpoint
    model: PathBuf,
    /// f16, bf16, q8_0, q6_k, q5_1, q5_0, q4_k, q4_1, q4_0 (llama.cpp opens these); int8-tensor, int8-row, int4-g32, int4-g64, int4-g128, nf4, gptq-g64, gptq-g128, awq-g64, awq-g128
    #[arg(long, value_name = "SCHEME", required_unless_present = "pareto")]
    to: Option<String>,
    /// Text that gptq and awq learn from, and that tells the others which columns matter
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Importance matrix (GGUF, of llama.cpp or of `lynx-gpu imatrix`), instead of a text
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    imatrix: Option<PathBuf>,
    /// Chunks of the calibration text that are read
    #[arg(long, default_value_t = 32, value_name = "N")]
    chunks: usize,
    /// Tokens of a chunk, at most the model's context; with --pareto those of the scored text too
    #[arg(long, default_value_t = 512, value_name = "N")]
    ctx: usize,
    /// Keep the head in f16, tied or not
    #[arg(long)]
    keep_head: bool,
    /// llama.cpp's formats: give the head the same type as the rest, not a finer one
    #[arg(long)]
    pure: bool,
    /// How scales of int8 and int4 are chosen: max, mse, or a percentile such as 99.9 [default: mse for gptq, max for others]
    #[arg(long, value_name = "HOW")]
    clip: Option<String>,
    /// File to write (default: the model's name with the scheme, beside it, in GGUF)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// Where the calibration text is read: auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// The tokenizer, where it is not with the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Of a run: the last checkpoint instead of the best
    #[arg(long)]
    last: bool,
    /// Every line of the texts that are read and scored is a text of its own: for models that were trained on rows
    #[arg(long)]
    lines: bool,
    #[command(flatten)]
    pareto: pareto::Args,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let options = OpenOptions { tokenizer: args.tokenizer.clone(), last: args.last };
    let recipe = args.recipe()?;
    if args.pareto.pareto {
        return pareto::run(&args, files::open_with(&args.model, &options)?, recipe, json);
    }
    let recipe = recipe.ok_or_else(|| Error::Config("--to names what is written".into()))?;
    let output = args.output.clone().unwrap_or_else(|| beside(&args.model, &recipe.scheme.name()));
    if output.exists() && !args.force {
        return Err(Error::Io { path: output, message: "exists; --force replaces it".into() });
    }
    let file = files::open_with(&args.model, &options)?;
    file.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let weights: Arc<dyn WeightSource> = Arc::from(file.weights);
    let file = ModelFile { weights: Box::new(Shared(weights.clone())), ..file };
    let calibration = args.calibration(&file, weights.as_ref(), recipe.scheme)?;
    let model = setup::model(&file.config)?;
    let progress = Progress::new(!json);
    let mut after = |change: &Change| {
        progress.say(&change.name);
        true
    };
    let quantised = quantise_model(model.as_ref(), &file.config, &weights, &recipe, calibration.as_ref(), &mut after)?;
    progress.end();
    let (notes, changes) = (quantised.notes(), quantised.changes.clone());
    let (after, before) = quantised.bytes();
    let file = ModelFile { weights: Box::new(quantised), ..file };
    let written = write(&file, &output, Target::Gguf, &WriteOptions { format: None, force: args.force })?;
    let told = Told { scheme: recipe.scheme, before, after, changes: &changes, notes, written, output: &output };
    told.tell(calibration.as_ref(), json)
}

impl Args {
    fn recipe(&self) -> Result<Option<Recipe>> {
        let clip = self.clip()?;
        let Some(name) = &self.to else { return Ok(None) };
        let scheme = Scheme::from_name(&name.to_lowercase()).ok_or_else(|| {
            let known: Vec<String> = Scheme::ALL.into_iter().map(Scheme::name).collect();
            Error::Config(format!("--to {name}: use one of {}", known.join(", ")))
        })?;
        Ok(Some(Recipe::with(scheme, clip, self.keep_head, self.pure)))
    }

    fn clip(&self) -> Result<Option<Clip>> {
        let named = |name: &String| {
            Clip::from_name(name)
                .ok_or_else(|| Error::Config(format!("--clip {name}: use max, mse, or a percentile of 50 to 100")))
        };
        self.clip.as_ref().map(named).transpose()
    }

    fn reading(&self) -> Reading {
        Reading { tokens: self.ctx, chunks: self.chunks, lines: self.lines }
    }

    fn device(&self) -> Result<Device> {
        Ok(choose::choose(&self.device, workloads)?.device)
    }

    /// What the scheme is given to learn from, if anything.
    fn calibration(&self, file: &ModelFile, weights: &dyn WeightSource, scheme: Scheme) -> Result<Option<Calibration>> {
        if let Some(path) = &self.imatrix {
            if scheme.learns() {
                return Err(Error::Config(format!(
                    "{} needs more of the inputs than the squares that an importance matrix has: give a text with --calibrate",
                    scheme.name()
                )));
            }
            return imatrix::read(path, &file.config).map(Some);
        }
        let Some(path) = &self.calibrate else {
            return match scheme.learns() {
                true => {
                    Err(Error::Config(format!("{} learns from a text: give one with --calibrate FILE", scheme.name())))
                }
                false => Ok(None),
            };
        };
        let moment = if scheme.learns() { Moment::Products } else { Moment::Squares };
        read_calibration(file, weights, self.device()?, path, self.reading(), moment).map(Some)
    }
}

/// Reads the calibration text at `path`, telling how far it is.
pub(super) fn read_calibration(
    file: &ModelFile,
    weights: &dyn WeightSource,
    device: Device,
    path: &Path,
    reading: Reading,
    moment: Moment,
) -> Result<Calibration> {
    let text = read_text(path)?;
    let model = setup::model(&file.config)?;
    let mut session = Session::for_weights(model, file.tokenizer.clone(), device, weights, Storing::default())?;
    let progress = Progress::new(true);
    let mut after = |share: f64| {
        progress.say(&format!("calibration {:.0} %", 100.0 * share));
        true
    };
    let about = path.display().to_string();
    let result = calibrate(&mut session, &text, &about, reading, moment, &mut after)?;
    progress.end();
    Ok(result)
}

/// The model's own weights, which quantised ones are made of.
struct Shared(Arc<dyn WeightSource>);

impl WeightSource for Shared {
    fn find(&self, name: &str) -> Option<crate::models::weights::StoredWeight> {
        self.0.find(name)
    }
    fn read(&self, name: &str, into: &mut [u8]) -> Result<()> {
        self.0.read(name, into)
    }
    fn read_rows(&self, name: &str, rows: std::ops::Range<usize>, into: &mut [u8]) -> Result<()> {
        self.0.read_rows(name, rows, into)
    }
    fn origin(&self) -> String {
        self.0.origin()
    }
}

/// `dir/name-scheme.gguf` for `dir/name.gguf` and for the folder `dir/name`.
fn beside(model: &Path, scheme: &str) -> PathBuf {
    let stem = if model.is_dir() { model.file_name() } else { model.file_stem() };
    let stem = stem.map_or_else(|| "model".into(), |s| s.to_string_lossy());
    model.with_file_name(format!("{stem}-{scheme}.gguf"))
}

/// A line on the terminal that is written over.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    pub fn new(wanted: bool) -> Self {
        Progress { shown: wanted && std::io::stderr().is_terminal() }
    }
    pub fn say(&self, text: &str) {
        if self.shown {
            eprint!("\r{text:60.60}");
            let _ = std::io::stderr().flush();
        }
    }
    pub fn end(&self) {
        if self.shown {
            eprint!("\r{:60}\r", "");
        }
    }
}

/// What was done.
struct Told<'a> {
    scheme: Scheme,
    before: u64,
    after: u64,
    changes: &'a [Change],
    notes: Vec<String>,
    written: Written,
    output: &'a Path,
}

impl Told<'_> {
    fn tell(&self, calibration: Option<&Calibration>, json: bool) -> Result<()> {
        let Told { scheme, before, after, changes, notes, written, output } = self;
        let read = calibration.map(Calibration::about_text);
        if json {
            return emit(&json!({
                "scheme": scheme.name(), "output": output, "bytes_before": before, "bytes": after,
                "calibration": read, "weights": changes, "notes": notes, "written": written,
            }));
        }
        println!("{:44} {:>13} {:>8} {:>12} {:>9} {:>9}", "weight", "shape", "as", "bytes", "error", "output");
        for c in changes.iter().filter(|c| c.shape.len() > 1) {
            let shape: Vec<String> = c.shape.iter().map(usize::to_string).collect();
            let output = c.output_error.map_or_else(String::new, |e| format!("{:.3} %", 100.0 * e));
            println!(
                "{:44} {:>13} {:>8} {:>12} {:>7.3} % {output:>9}",
                c.name,
                shape.join(" x "),
                c.to,
                grouped(c.bytes),
                100.0 * c.error
            );
        }
        if let Some(read) = read {
            println!("calibrated on {read}");
        }
        println!("{} -> {} ({:.3} of it)", grouped(*before), grouped(*after), *after as f64 / (*before).max(1) as f64);
        println!("wrote {}: {} tensors, {}", output.display(), written.tensors, bytes(written.bytes));
        notes.iter().chain(&written.notes).for_each(|note| eprintln!("note: {note}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_beside_the_model_with_the_scheme_in_their_name() {
        assert_eq!(beside(Path::new("a/tiny.gguf"), "q8_0"), Path::new("a/tiny-q8_0.gguf"));
        assert_eq!(beside(Path::new("tiny"), "nf4"), Path::new("tiny-nf4.gguf"));
    }
}
