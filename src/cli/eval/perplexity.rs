//! `lynx-gpu eval perplexity`: perplexity of a text by the protocol of llama.cpp.

use crate::Result;
use crate::cli::model::ModelArgs;
use crate::cli::report;
use crate::evals::perplexity::{Text, lines};
use crate::train::files::read_text;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// UTF-8 text that is scored
    #[arg(value_name = "FILE", required = true)]
    text: PathBuf,
    /// Tokens of a chunk; the second half of every chunk is scored
    #[arg(long, default_value_t = 512, value_name = "N")]
    ctx: usize,
    /// The first chunks (or lines) only
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Score every line as a text of its own, whole: for models that were trained on rows
    #[arg(long, conflicts_with = "ctx")]
    lines: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let text = read_text(&args.text)?;
    let (path, found) = args.model.find()?;
    found.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let tokenizer = found.tokenizer();
    let scored = if args.lines {
        let mut rows = lines(tokenizer, &text)?;
        rows.truncate(args.chunks.unwrap_or(usize::MAX));
        Text::Lines(rows)
    } else {
        // As in llama.cpp: names of control tokens are text like any other, and the end of the last line is none.
        let tokens = tokenizer.encode_whole(text.strip_suffix('\n').unwrap_or(&text))?;
        Text::Chunks { tokens, bos: tokenizer.start_id(), n_ctx: args.ctx, chunks: args.chunks }
    };
    let device = args.model.options.device()?;
    let mut session = args.model.options.session(&found, device)?;
    let begun = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut shown = Instant::now();
    let mut after = |chunk: usize, value: f64| {
        if terminal && shown.elapsed().as_millis() > 200 {
            shown = Instant::now();
            eprint!("\r[{chunk}] {value:.4} ");
            let _ = std::io::stderr().flush();
        }
        true
    };
    let result = scored.score(&mut session, &mut after)?;
    if terminal {
        eprint!("\r{:40}\r", "");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let device = session.device().name();
    if json {
        return report::emit(&json!({
            "model": path, "text": args.text, "checkpoint_step": found.step(), "device": device, "seconds": seconds,
            "weight_bytes": session.weight_bytes(), "result": result,
        }));
    }
    println!("{}: {}, {seconds:.1} s on {device}", path.display(), result.extent());
    println!("PPL = {:.4} +/- {:.5}", result.perplexity, result.error);
    Ok(())
}
