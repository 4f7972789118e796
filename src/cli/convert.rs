//! `lynx-gpu convert`: a model as a file of another program.

use super::report::{bytes, emit};
use crate::models::files::write::{Target, WriteOptions, write};
use crate::models::files::{self, ModelFile, OpenOptions};
use crate::{Error, Result};
use kernels_cpu::blocks::{Format, can_quantise};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// The model: a GGUF file, a Hugging Face folder, a llama2.c or GGUF-lite file, a run folder or a checkpoint
    input: PathBuf,
    /// The file or folder to write
    output: PathBuf,
    /// What to write: gguf, hf, llama2c (what run.c reads), llama2c-v1 or gguf-lite (default: gguf or llama2c if OUTPUT ends in .gguf or .bin, else hf)
    #[arg(long, value_name = "FORMAT")]
    to: Option<String>,
    /// Type of the matrices (default: as they are, where the target has it): f32, f16, bf16; in GGUF also q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q6_k
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Use this tokenizer (a tokenizer.json, a folder with one, a GGUF file, a llama2.c tokenizer.bin) instead of the model's
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Replace what is there
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let target = match args.to.as_deref() {
        Some("gguf") => Target::Gguf,
        Some("hf") => Target::HuggingFace,
        Some("llama2c") => Target::Llama2c,
        Some("gguf-lite") => Target::GgufLite,
        Some("llama2c-v1") => Target::Llama2cV1,
        Some(other) => {
            return Err(Error::Config(format!("--to {other}: use gguf, hf, llama2c, llama2c-v1 or gguf-lite")));
        }
        None if args.output.extension().is_some_and(|e| e == "gguf") => Target::Gguf,
        None if args.output.extension().is_some_and(|e| e == "bin") => Target::Llama2c,
        None => Target::HuggingFace,
    };
    let options = WriteOptions { format: args.kind.as_deref().map(parse_type).transpose()?, force: args.force };
    let model = files::open_with(&args.input, &OpenOptions { tokenizer: args.tokenizer, last: false })?;
    write_and_tell(&model, &args.output, target, &options, json)
}

/// The type that `--type` names.
pub(super) fn parse_type(name: &str) -> Result<Format> {
    let format = Format::from_name(&name.to_lowercase()).filter(|&f| can_quantise(f));
    format.ok_or_else(|| {
        let known: Vec<&str> = Format::ALL.into_iter().filter(|&f| can_quantise(f)).map(Format::name).collect();
        Error::Config(format!("--type {name}: use one of {}", known.join(", ")))
    })
}

pub(super) fn write_and_tell(
    model: &ModelFile,
    path: &Path,
    target: Target,
    options: &WriteOptions,
    json: bool,
) -> Result<()> {
    for note in &model.notes {
        eprintln!("[{note}]");
    }
    let written = write(model, path, target, options)?;
    if json {
        return emit(&written);
    }
    println!(
        "wrote {}: {}, {} tensors, {}",
        path.display(),
        written.architecture,
        written.tensors,
        bytes(written.bytes)
    );
    for note in &written.notes {
        eprintln!("[{note}]");
    }
    Ok(())
}
