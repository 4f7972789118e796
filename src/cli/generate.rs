//! `lynx-gpu generate`: continues a prompt with a trained model.

use super::checkpoint::{Opened, newest_run};
use crate::Result;
use crate::device::choose;
use crate::infer::Sampling;
use crate::ops::workloads::workloads;
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
    /// Longest continuation in tokens
    #[arg(short = 'n', long, default_value_t = 200)]
    tokens: usize,
    /// 0 takes the most likely token; higher is bolder
    #[arg(short, long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K most likely tokens only (0: all)
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Draw from the fewest tokens that hold this much probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,
    #[arg(long, default_value_t = 42)]
    seed: u64,
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
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.validate()?;
    let path = match args.model {
        Some(path) => path,
        None => newest_run()?,
    };
    let opened = Opened::find(&path, args.last)?;
    let chosen = choose::choose(&args.device, workloads)?;
    // A prompt that the tokenizer cannot take is refused before any of it is printed.
    opened.tokenizer.encode(&args.prompt)?;
    let mut session = opened.session(chosen.device)?;
    let mut results = Vec::new();
    for index in 0..args.samples {
        let sampling = Sampling { seed: args.seed.wrapping_add(index), ..sampling };
        let begun = Instant::now();
        if !json {
            print!("{}", args.prompt);
            let _ = std::io::stdout().flush();
        }
        let generation = session.generate(&args.prompt, args.tokens, &sampling, |piece| {
            if json {
                return true;
            }
            // A closed pipe (`| head`) ends the text, quietly.
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok()
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        let rate = generation.tokens.len() as f64 / seconds.max(1e-9);
        if json {
            results.push(json!({
                "prompt": args.prompt, "generation": generation, "sampling": sampling, "seconds": seconds,
                "tokens_per_second": rate, "checkpoint_step": opened.step, "device": session.device().name(),
            }));
        } else {
            println!();
            eprintln!("[{} tokens, {rate:.1} tokens/s on {}]", generation.tokens.len(), session.device().name());
        }
    }
    if json { super::report::emit(&results) } else { Ok(()) }
}
