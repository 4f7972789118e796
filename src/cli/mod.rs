//! The command line: one file per command. A command parses, calls the library and prints; it holds no mathematics.

pub mod ablate;
pub mod bench;
pub mod chat;
pub mod checkpoint;
pub mod completions;
pub mod convert;
pub mod data;
pub mod devices;
pub mod eval;
pub mod export;
pub mod generate;
pub mod imatrix;
pub mod inspect;
pub mod model;
pub mod quantize;
pub mod report;
mod sampling;
mod start;
pub mod tokenizer;
pub mod train;
pub mod verify;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "lynx-gpu", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Machine-readable output on stdout; messages go to stderr.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// Train a model; watch it; stop and resume it
    Train(train::Args),
    /// Continue a text with a trained model
    Generate(generate::Args),
    /// Talk with a trained model
    Chat(chat::Args),
    /// Loss, perplexity and bits per byte of a trained model, beside the best n-gram
    Eval(eval::Args),
    /// Generate, check and describe training corpora
    Data(data::Args),
    /// List the GPUs and the CPU, what they can do, and which one is used
    Devices(devices::Args),
    /// Train, inspect and use tokenizers
    Tokenizer(tokenizer::Args),
    /// Check every operator on this machine's devices against the f64 reference
    Verify(verify::Args),
    /// Measure this machine: ceilings and kernels under them (--roofline), or tokens per second of a model
    Bench(bench::Args),
    /// Run a table of training runs that differ in a few settings, and report what they show
    Ablate(ablate::Args),
    /// Say what a model file holds: metadata, tensors, bytes
    Inspect(inspect::Args),
    /// Turn a model into the files of another program
    Convert(convert::Args),
    /// Write a trained model as a file of another program
    Export(export::Args),
    /// Make a model smaller, or measure what that costs (--pareto)
    Quantize(quantize::Args),
    /// Which columns of a model's weights matter on a text, for `quantize` and llama.cpp
    Imatrix(imatrix::Args),
    /// Shell completions and manual pages
    Completions(completions::Args),
}

/// No message of a panic where another is given: `lynx-gpu ... | head` ends when the reader does, for which `println!` has no other way,
/// and failures of the tokenizers library are errors.
fn quiet_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            // 128 + SIGPIPE, what a program that the signal ends has.
            std::process::exit(141);
        }
        if !crate::tokenizer::huggingface::panics_are_errors() {
            default(info);
        }
    }));
}

pub fn main() -> ExitCode {
    quiet_panics();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Train(args) => train::run(args, cli.json),
        Command::Generate(args) => generate::run(args, cli.json),
        Command::Chat(args) => chat::run(args, cli.json),
        Command::Eval(args) => eval::run(args, cli.json),
        Command::Completions(args) => completions::run(args, cli.json),
        Command::Data(args) => data::run(args, cli.json),
        Command::Devices(args) => devices::run(args, cli.json),
        Command::Tokenizer(args) => tokenizer::run(args, cli.json),
        Command::Inspect(args) => inspect::run(args, cli.json),
        Command::Convert(args) => convert::run(args, cli.json),
        Command::Export(args) => export::run(args, cli.json),
        Command::Ablate(args) => ablate::run(args, cli.json),
        Command::Bench(args) => bench::run(args, cli.json),
        Command::Quantize(args) => quantize::run(args, cli.json),
        Command::Imatrix(args) => imatrix::run(args, cli.json),
        Command::Verify(args) => verify::run(args, cli.json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
