//! `lynx-gpu imatrix`: reads a text with a model and writes which columns of its weights matter.

use super::quantize::read_calibration;
use super::report::emit;
use crate::device::choose;
use crate::models::files::{self, OpenOptions};
use crate::models::session::observe::Moment;
use crate::ops::workloads::workloads;
use crate::quant::calibration::Reading;
use crate::quant::imatrix;
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// GGUF file, Hugging Face folder, llama2.c file, run folder or checkpoint
    model: PathBuf,
    /// UTF-8 text that is read
    text: PathBuf,
    /// GGUF file to write, as llama.cpp's llama-quantize takes with --imatrix
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Chunks of the text that are read
    #[arg(long, default_value_t = 32, value_name = "N")]
    chunks: usize,
    /// Tokens of a chunk, at most the model's context
    #[arg(long, default_value_t = 512, value_name = "N")]
    ctx: usize,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// The tokenizer, where it is not with the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Of a run: the last checkpoint instead of the best
    #[arg(long)]
    last: bool,
    /// Every line of the text is a text of its own: for models that were trained on rows
    #[arg(long)]
    lines: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    if args.output.exists() && !args.force {
        return Err(Error::Io { path: args.output, message: "exists; --force replaces it".into() });
    }
    let options = OpenOptions { tokenizer: args.tokenizer.clone(), last: args.last };
    let file = files::open_with(&args.model, &options)?;
    file.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let device = choose::choose(&args.device, workloads)?.device;
    let reading = Reading { tokens: args.ctx, chunks: args.chunks, lines: args.lines };
    let read = read_calibration(&file, file.weights.as_ref(), device, &args.text, reading, Moment::Squares)?;
    let matrices = imatrix::write(&args.output, &file.config, &read)?;
    if json {
        return emit(
            &json!({ "output": args.output, "matrices": matrices, "chunks": read.chunks.0, "tokens": read.chunks.1 }),
        );
    }
    println!("wrote {}: {matrices} matrices, {}", args.output.display(), read.about_text());
    Ok(())
}
