//! `lynx-gpu generate`: continues a prompt with a trained model.

mod prompts;
mod show;

use super::model::{Found, FullContext, ModelArgs, ModelOptions};
use super::report::emit;
use super::sampling::SamplingArgs;
use crate::data::files::check_writable;
use crate::device::Device;
use crate::infer::beams::{self, Beams};
use crate::infer::speculative::{self, Draft};
use crate::infer::{self, NextToken, Options};
use crate::models::Session;
use crate::models::session::carried::TextState;
use crate::train::files::read_text;
use crate::{Error, Result};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue
    #[arg(short, long, default_value = "")]
    prompt: String,
    /// Read this UTF-8 text first, then --prompt
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Continue every line of this file, or of a .jsonl file every {"prompt": ..}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "state", "save_state", "samples", "beams", "draft", "draft_ngram"])]
    prompts: Option<PathBuf>,
    /// How many of --prompts go side by side
    #[arg(long, default_value_t = 1, value_name = "N", requires = "prompts")]
    batch: usize,
    /// Go on after the text whose state this file holds (written by --save-state) instead of a new one
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Write the state after the prompt, so that a long text is read once
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,
    /// Longest continuation in tokens
    #[arg(short = 'n', long, default_value_t = 200)]
    tokens: usize,
    /// A text that ends the continuation and is not shown; `\n` ends a line. May be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on to --tokens: tokens that end a text are never chosen
    #[arg(long)]
    ignore_eos: bool,
    /// Show every token's log-probability and the N most likely tokens in its place
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// How many continuations
    #[arg(long, default_value_t = 1, value_name = "N")]
    samples: u64,
    /// The N most likely continuations that a beam search of this width finds, instead of drawing
    #[arg(long, value_name = "N", conflicts_with_all = ["state", "save_state", "samples", "logprobs", "draft", "draft_ngram"])]
    beams: Option<usize>,
    /// Beams compare log-probability / length^A
    #[arg(long, default_value_t = 1.0, value_name = "A", requires = "beams", allow_negative_numbers = true)]
    length_penalty: f64,
    /// A smaller model of the same tokens that proposes tokens for this one to check; the texts' distribution stays the same
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["state", "save_state", "draft_ngram"])]
    draft: Option<PathBuf>,
    /// Propose what followed the longest repeated run of at most N tokens that ends the text
    #[arg(long, value_name = "N", conflicts_with_all = ["state", "save_state"])]
    draft_ngram: Option<usize>,
    /// How many tokens are proposed at a time
    #[arg(long, default_value_t = 5, value_name = "K")]
    draft_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    args.sampling.checked()?;
    if let Some(path) = &args.save_state {
        // Before a long text is read.
        check_writable(path)?;
    }
    if args.batch == 0 {
        return Err(Error::Config("--batch 0 continues nothing: at least 1".into()));
    }
    if args.samples == 0 {
        return Err(Error::Config("--samples 0 makes no text: at least 1".into()));
    }
    if args.draft_tokens == 0 || args.draft_ngram == Some(0) {
        return Err(Error::Config("--draft-tokens and --draft-ngram: at least 1".into()));
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(Error::Config("--stop: a stop text needs at least one character".into()));
    }
    let (_, found) = args.model.find()?;
    found.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let (tokenizer, opening) = (found.tokenizer(), &args.model.options);
    let mut options = Options {
        tokens: args.tokens,
        sampling: args.sampling.for_tokens(tokenizer)?,
        stop: args.stop.iter().map(|s| s.replace("\\n", "\n")).collect(),
        ends: vec![],
        ignore_ends: args.ignore_eos,
        logprobs: args.logprobs,
        before: vec![],
    };
    if let Some(file) = &args.prompts {
        let prompts = prompts::read(file, tokenizer)?;
        let mut session = opening.session(&found, opening.device()?)?;
        return prompts::run(&mut session, &prompts, &options, args.batch, json);
    }
    // A prompt that the tokenizer cannot take is refused before any of it is printed.
    let document = args.prompt_file.as_deref().map(read_text).transpose()?.unwrap_or_default();
    let text = document + &args.prompt;
    let ids = match args.state {
        Some(_) => tokenizer.encode(&text)?,
        None => infer::beginning(tokenizer, &text)?,
    };
    if args.beams.is_none() && args.draft.is_none() && args.draft_ngram.is_none() {
        // The prompt is read before, so that its time and state are known.
        options.before.clone_from(&ids);
    }
    let draft = args.draft.as_ref().map(|path| opening.find(path)).transpose()?;
    let device = opening.device()?;
    let draft = draft.map(|draft| draft_session(opening, &draft, device.clone())).transpose()?;
    let session = opening.session(&found, device)?;
    let seen = seen(&session, &ids);
    if seen < ids.len() {
        eprintln!("[the model sees the newest {seen} of {} tokens]", ids.len());
    }
    let step = found.step();
    drop(found);
    let mut continuing = Continuing { args: &args, session, draft, ids, options, step, json };
    match args.beams {
        Some(width) => continuing.search(width),
        None => continuing.samples(),
    }
}

/// How many of a prompt's tokens the model reads: one that forgets, the newest of them.
fn seen(session: &Session, ids: &[u32]) -> usize {
    let forgets = session.room() == u64::MAX && session.carries().is_err();
    if forgets { ids.len().min(session.context()) } else { ids.len() }
}

/// One prompt, and the model that continues it.
struct Continuing<'a> {
    args: &'a Args,
    session: Session,
    draft: Option<Session>,
    ids: Vec<u32>,
    options: Options,
    /// Of a checkpoint.
    step: Option<u64>,
    json: bool,
}

/// A continuation and the time it took.
struct Sample {
    generation: infer::Generation,
    speculation: Option<speculative::Acceptance>,
    /// The text's tokens before the first one was made.
    read: u64,
    /// How many of the prompt's were run for this sample.
    run: usize,
    reading: f64,
    seconds: f64,
}

/// A draft keeps no more than its own context has.
fn draft_session(opening: &ModelOptions, draft: &Found, device: Device) -> Result<Session> {
    let context = opening.context.map(|context| context.min(draft.context()));
    // Where the text ends is for the other model to say.
    let opening = ModelOptions { context, when_full: FullContext::Forget, ..opening.clone() };
    opening.session(draft, device).map_err(|e| match e {
        Error::Config(what) => Error::Config(format!("--draft: {what}")),
        other => other,
    })
}

impl Continuing<'_> {
    fn samples(&mut self) -> Result<()> {
        let speculates = self.draft.is_some() || self.args.draft_ngram.is_some();
        let seed = self.options.sampling.seed;
        let mut results = Vec::new();
        let mut read_once = None;
        for index in 0..self.args.samples {
            self.options.sampling.seed = seed.wrapping_add(index);
            let sample = match speculates {
                true => self.speculate()?,
                false => self.plain(index, &mut read_once)?,
            };
            match self.json {
                true => results.push(self.record(&sample)),
                false => self.tell(&sample),
            }
        }
        if self.json { emit(&results) } else { Ok(()) }
    }

    /// Reads the prompt, or takes up the state after it.
    fn read_prompt(&mut self, read_once: &mut Option<TextState>) -> Result<()> {
        if let Some(state) = read_once.clone() {
            return self.session.set_text_state(state);
        }
        match &self.args.state {
            Some(path) => {
                self.session.load_text_state(path)?;
            }
            None => self.session.restart()?,
        }
        self.session.advance(&self.ids)?;
        // Other samples begin where this one does; a model without a state has little to read again.
        *read_once = if self.args.samples > 1 { self.session.text_state().ok() } else { None };
        Ok(())
    }

    fn plain(&mut self, index: u64, read_once: &mut Option<TextState>) -> Result<Sample> {
        let run = if read_once.is_some() { 0 } else { seen(&self.session, &self.ids) };
        let begun = Instant::now();
        self.read_prompt(read_once)?;
        let (read, reading) = (self.session.position(), begun.elapsed().as_secs_f64());
        if let Some(path) = self.args.save_state.as_ref().filter(|_| index == 0) {
            self.session.save_text_state(path)?;
            let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
            eprintln!("[wrote {}: the state after {read} tokens, {:.2} MB]", path.display(), bytes as f64 / 1e6);
        }
        self.print_prompt();
        let begun = Instant::now();
        let mut on_text = printer(self.json);
        let generation = infer::continue_text(&mut self.session, &[], &self.options, &mut on_text);
        let generation = self.end_line(generation)?;
        Ok(Sample { generation, speculation: None, read, run, reading, seconds: begun.elapsed().as_secs_f64() })
    }

    fn speculate(&mut self) -> Result<Sample> {
        self.session.restart()?;
        let run = seen(&self.session, &self.ids);
        self.print_prompt();
        let begun = Instant::now();
        let mut first = None;
        let mut print = printer(self.json);
        let mut on_text = |piece: &str| {
            first.get_or_insert_with(|| begun.elapsed().as_secs_f64());
            print(piece)
        };
        let draft = match (&mut self.draft, self.args.draft_ngram) {
            (Some(model), _) => Draft::Model(model),
            (None, longest) => Draft::Text { longest: longest.unwrap_or(3) },
        };
        let (ids, ahead) = (&self.ids, self.args.draft_tokens);
        let result = speculative::continue_text(&mut self.session, draft, ids, &self.options, ahead, &mut on_text);
        let (generation, acceptance) = self.end_line(result)?;
        let all = begun.elapsed().as_secs_f64();
        let reading = first.unwrap_or(all);
        let read = self.ids.len() as u64;
        Ok(Sample { generation, speculation: Some(acceptance), read, run, reading, seconds: all - reading })
    }

    fn search(&mut self, width: usize) -> Result<()> {
        let begun = Instant::now();
        let beams = Beams { width, length_penalty: self.args.length_penalty };
        let found = beams::search(&mut self.session, &self.ids, &self.options, &beams)?;
        let seconds = begun.elapsed().as_secs_f64();
        let device = self.session.device().name();
        if self.json {
            return emit(&json!({
                "prompt": self.args.prompt, "prompt_tokens": self.ids.len(), "beams": found, "width": width,
                "length_penalty": beams.length_penalty, "seconds": seconds, "checkpoint_step": self.step, "device": device,
            }));
        }
        for beam in &found {
            println!("{}{}", self.args.prompt, beam.text);
            eprintln!("[log-probability {:.4}, score {:.4}, {:?}]", beam.logprob, beam.score, beam.finish);
        }
        eprintln!("[{} of {width} beams, {seconds:.2} s on {device}]", found.len());
        Ok(())
    }

    fn print_prompt(&self) {
        if !self.json && self.args.tokens > 0 {
            print!("{}", self.args.prompt);
            let _ = std::io::stdout().flush();
        }
    }

    /// An error's message does not stand behind the text that was begun.
    fn end_line<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() && !self.json && self.args.tokens > 0 {
            println!();
        }
        result
    }

    fn record(&self, sample: &Sample) -> serde_json::Value {
        let Sample { generation, speculation, read, reading, seconds, .. } = sample;
        let mut record = json!({
            "prompt": self.args.prompt, "prompt_tokens": self.ids.len(), "tokens_read": read, "prompt_seconds": reading,
            "generation": generation, "sampling": self.options.sampling, "seconds": seconds,
            "tokens_per_second": generation.tokens.len() as f64 / seconds.max(1e-9),
            "checkpoint_step": self.step, "device": self.session.device().name(),
        });
        if let Some(a) = speculation {
            record["speculation"] = json!({
                "proposed": a.proposed, "accepted": a.accepted, "passes": a.passes,
                "acceptance_rate": a.rate(), "tokens_per_pass": a.tokens_per_pass(),
            });
        }
        record
    }

    fn tell(&self, sample: &Sample) {
        let Sample { generation, speculation, run, reading, seconds, .. } = sample;
        let (made, device) = (generation.tokens.len(), self.session.device().name());
        if self.args.tokens > 0 {
            println!();
        }
        show::logprobs(&generation.logprobs);
        let prompt = match run {
            0 if self.ids.is_empty() => "no prompt".into(),
            0 => "prompt not read again".into(),
            run => format!("prompt {run} tokens, {:.1} tokens/s", *run as f64 / reading.max(1e-9)),
        };
        let rate = made as f64 / seconds.max(1e-9);
        match self.args.tokens {
            0 => eprintln!("[{prompt} on {device}]"),
            _ => eprintln!("[{made} tokens, {rate:.1} tokens/s on {device}; {prompt}]"),
        }
        if self.session.room() == 0 && made < self.args.tokens {
            eprintln!("[the context of {} tokens is full]", self.session.context());
        }
        if let Some(a) = speculation {
            eprintln!(
                "[{} of {} proposed tokens taken ({:.1} %), {:.2} tokens a pass]",
                a.accepted,
                a.proposed,
                100.0 * a.rate(),
                a.tokens_per_pass()
            );
        }
    }
}

/// Writes pieces of text to stdout as they come, but for JSON.
fn printer(json: bool) -> impl FnMut(&str) -> bool {
    move |piece| {
        if json {
            return true;
        }
        // A closed pipe (`| head`) ends the text, quietly.
        let mut out = std::io::stdout().lock();
        out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok()
    }
}
