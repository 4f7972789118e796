//! `lynx-gpu chat`: a conversation with a trained model. Its state is carried from message to message, so that no message is read twice.

use super::checkpoint::{Opened, newest_run};
use super::sampling::SamplingArgs;
use crate::device::choose;
use crate::infer::chat::{Template, answer};
use crate::infer::{NextToken, Sampling};
use crate::models::Session;
use crate::ops::workloads::workloads;
use crate::{Error, Result};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint (default: the newest run under runs/)
    model: Option<PathBuf>,
    /// Longest answer in tokens
    #[arg(short = 'n', long, default_value_t = 512)]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// How a message becomes text; `\n` ends a line
    #[arg(long, default_value = "User: {message}\\nCoeus:", value_name = "TEXT")]
    template: String,
    /// The text that ends an answer
    #[arg(long, default_value = "\\n\\n", value_name = "TEXT")]
    stop: String,
    /// Begin after the text whose state this file holds
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// The last checkpoint instead of the best
    #[arg(long)]
    last: bool,
}

const HELP: &str = "/reset            forget the conversation
/save FILE        write the state of the conversation
/load FILE        go on after a saved state
/set KEY VALUE    temperature, top_k, top_p, seed or tokens
/status           what was read, and the memory it takes
/quit             leave (so does Ctrl-D)";

struct Chat {
    session: Session,
    template: Template,
    sampling: Sampling,
    tokens: usize,
    json: bool,
    interrupted: Arc<AtomicBool>,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let sampling = args.sampling.checked()?;
    let template = Template::parse(&args.template, &args.stop)?;
    let path = match args.model {
        Some(path) => path,
        None => newest_run()?,
    };
    let opened = Opened::find(&path, args.last)?;
    // Messages are anything; what is around them must be text that the model knows.
    opened.tokenizer.encode(&template.wrap("")).map_err(|e| {
        Error::Config(format!(
            "the template {:?} cannot be written in the model's tokens ({e}): give --template and --stop",
            args.template
        ))
    })?;
    let chosen = choose::choose(&args.device, workloads)?;
    let mut session = opened.session(chosen.device)?;
    if let Some(path) = &args.state {
        session.load_text_state(path)?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    listen(&interrupted)?;
    if !json {
        eprintln!("{} (step {}) on {}", path.display(), opened.step, session.device().name());
        eprintln!("/help lists commands; Ctrl-C ends an answer, twice the program");
    }
    Chat { session, template, sampling, tokens: args.tokens, json, interrupted }.talk()
}

/// Ctrl-C sets the flag. A second one before anything else happens ends the program: a device may be stuck.
#[cfg(unix)]
fn listen(interrupted: &Arc<AtomicBool>) -> Result<()> {
    use signal_hook::consts::SIGINT;
    use signal_hook::flag;
    // Actions run in the order of registration: the shutdown looks at the flag before this signal sets it.
    flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(interrupted))
        .and_then(|_| flag::register(SIGINT, Arc::clone(interrupted)))
        .map(|_| ())
        .map_err(|e| Error::Failed(format!("cannot listen to Ctrl-C: {e}")))
}

#[cfg(not(unix))]
fn listen(interrupted: &Arc<AtomicBool>) -> Result<()> {
    let flag = Arc::clone(interrupted);
    let handler = move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Error::Failed(format!("cannot listen to Ctrl-C: {e}")))
}

impl Chat {
    fn talk(&mut self) -> Result<()> {
        let stdin = std::io::stdin();
        let prompt = stdin.is_terminal() && !self.json;
        loop {
            if prompt {
                eprint!("> ");
            }
            let mut line = String::new();
            if stdin.lock().read_line(&mut line).map_err(|e| Error::Data(format!("standard input: {e}")))? == 0 {
                return Ok(());
            }
            self.interrupted.store(false, Ordering::SeqCst);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.trim().is_empty() {
                continue;
            }
            let done = match line.strip_prefix('/') {
                Some("quit" | "exit") => return Ok(()),
                Some(command) => self.command(command),
                None => self.answer(line),
            };
            // A message that cannot be read does not end the conversation; a lost device does.
            match done {
                Err(e @ (Error::Config(_) | Error::Data(_) | Error::Checkpoint(_) | Error::Io { .. })) => {
                    eprintln!("error: {e}")
                }
                other => other?,
            }
        }
    }

    fn answer(&mut self, message: &str) -> Result<()> {
        let begun = Instant::now();
        let first = self.session.position() == 0;
        // Checked before any of it is read, and as it was typed.
        self.session.tokenizer().encode(message)?;
        let (json, interrupted) = (self.json, Arc::clone(&self.interrupted));
        let mut leading = true;
        let mut on_text = |piece: &str| {
            let piece = if leading { piece.trim_start() } else { piece };
            leading &= piece.is_empty();
            let mut out = std::io::stdout().lock();
            let written = json || out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_ok();
            written && !interrupted.load(Ordering::SeqCst)
        };
        let (template, tokens, sampling) = (&self.template, self.tokens, &self.sampling);
        let made = answer(&mut self.session, first, message, template, tokens, sampling, &mut on_text)?;
        let seconds = begun.elapsed().as_secs_f64();
        let rate = made.tokens.len() as f64 / seconds.max(1e-9);
        if self.json {
            let line = json!({
                "message": message, "answer": made.text.trim_start(), "tokens": made.tokens.len(), "finished": made.finished,
                "seconds": seconds, "tokens_per_second": rate, "tokens_read": self.session.position(),
            });
            println!("{line}");
            return Ok(());
        }
        println!();
        let read = self.session.position();
        let stopped = if self.interrupted.load(Ordering::SeqCst) { ", stopped" } else { "" };
        eprintln!("[{} tokens{stopped}, {rate:.1} tokens/s; {read} read in all]", made.tokens.len());
        // Another draw for the next answer.
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        Ok(())
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["help"] => eprintln!("{HELP}"),
            ["reset"] => self.session.restart()?,
            ["save", file] => self.session.save_text_state(Path::new(file))?,
            ["load", file] => {
                let read = self.session.load_text_state(Path::new(file))?;
                eprintln!("[after a text of {read} tokens]");
            }
            ["set", key, value] => self.set(key, value)?,
            ["status"] => {
                let (read, bytes) = (self.session.position(), self.session.reading_bytes());
                eprintln!("[{read} tokens read; {:.1} MB on {}]", bytes as f64 / 1e6, self.session.device().name());
            }
            _ => eprintln!("no such command: /{command}\n{HELP}"),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut sampling = self.sampling;
        let bad = || Error::Config(format!("/set {key} {value}: not a number of the right kind"));
        match key {
            "temperature" => sampling.temperature = value.parse().map_err(|_| bad())?,
            "top_p" => sampling.top_p = value.parse().map_err(|_| bad())?,
            "top_k" => sampling.top_k = value.parse().map_err(|_| bad())?,
            "seed" => sampling.seed = value.parse().map_err(|_| bad())?,
            "tokens" => self.tokens = value.parse().map_err(|_| bad())?,
            _ => {
                return Err(Error::Config(format!("/set {key}: there are temperature, top_k, top_p, seed and tokens")));
            }
        }
        sampling.validate()?;
        self.sampling = sampling;
        Ok(())
    }
}
