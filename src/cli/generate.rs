//! `lynx-gpu generate`: continues a prompt with a trained model.

use super::checkpoint::{Opened, newest_run};
use super::sampling::SamplingArgs;
use crate::Result;
use crate::data::files::check_writable;
use crate::device::choose;
use crate::infer::{self, NextToken, Sampling};
use crate::ops::workloads::workloads;
use crate::train::files::read_text;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint (default: the newest run under runs/)
    model: Option<PathBuf>,
    /// Text to continue
    #[arg(short, long, default_value = "")]
    prompt: String,
    /// Read this UTF-8 text first, then --prompt
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Go on after the text whose state this file holds (written by --save-state) instead of a new one
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Write the state after the prompt, so that a long text is read once
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Longest continuation in tokens
    #[arg(short = 'n', long, default_value_t = 200)]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// How many continuations
    #[arg(long, default_value_t = 1, value_name = "N")]
    samples: u64,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// The last checkpoint instead of the best
    #[arg(long)]
    last: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let sampling = args.sampling.checked()?;
    if let Some(path) = &args.save_state {
        // Before a long text is read.
        check_writable(path)?;
    }
    let path = match args.model {
        Some(path) => path,
        None => newest_run()?,
    };
    let opened = Opened::find(&path, args.last)?;
    let chosen = choose::choose(&args.device, workloads)?;
    // A prompt that the tokenizer cannot take is refused before any of it is printed.
    let document = args.prompt_file.as_deref().map(read_text).transpose()?.unwrap_or_default();
    let text = document + &args.prompt;
    let ids = match args.state {
        Some(_) => opened.tokenizer.encode(&text)?,
        None => infer::beginning(&opened.tokenizer, &text)?,
    };
    let mut session = opened.session(chosen.device)?;
    let mut results = Vec::new();
    let mut read_once = None;
    for index in 0..args.samples {
        let sampling = Sampling { seed: sampling.seed.wrapping_add(index), ..sampling };
        let begun = Instant::now();
        match read_once.clone() {
            Some(state) => session.set_text_state(state)?,
            None => {
                match &args.state {
                    Some(path) => {
                        session.load_text_state(path)?;
                    }
                    None => session.restart()?,
                }
                session.advance(&ids)?;
                // Other samples begin where this one does; a model without a state has little to read again.
                read_once = if args.samples > 1 { session.text_state().ok() } else { None };
            }
        }
        let read = session.position();
        let reading = begun.elapsed().as_secs_f64();
        if let Some(path) = args.save_state.as_ref().filter(|_| index == 0) {
            session.save_text_state(path)?;
            let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
            eprintln!("[wrote {}: the state after {read} tokens, {:.2} MB]", path.display(), bytes as f64 / 1e6);
        }
        if !json && args.tokens > 0 {
            print!("{}", args.prompt);
            let _ = std::io::stdout().flush();
        }
        let begun = Instant::now();
        let generation = infer::continue_with(&mut session, &[], args.tokens, &sampling, &mut |piece| {
            if json {
                return true;
            }
            // A closed pipe (`| head`) ends the text, quietly.
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok()
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        let rate = generation.tokens.len() as f64 / seconds.max(1e-9);
        let device = session.device().name();
        if json {
            results.push(json!({
                "prompt": args.prompt, "prompt_tokens": ids.len(), "tokens_read": read, "prompt_seconds": reading,
                "generation": generation, "sampling": sampling, "seconds": seconds, "tokens_per_second": rate,
                "checkpoint_step": opened.step, "device": device,
            }));
        } else {
            if args.tokens > 0 {
                println!();
            }
            let prompt = format!("prompt {} tokens, {:.1} tokens/s", ids.len(), ids.len() as f64 / reading.max(1e-9));
            match args.tokens {
                0 => eprintln!("[{prompt} on {device}]"),
                _ => eprintln!("[{} tokens, {rate:.1} tokens/s on {device}; {prompt}]", generation.tokens.len()),
            }
        }
    }
    if json { super::report::emit(&results) } else { Ok(()) }
}
