//! `lynx-gpu chat`: a conversation with a trained model. Its state is carried from message to message, so that no message is read twice.

use super::model::{Found, ModelArgs};
use super::sampling::SamplingArgs;
use crate::infer::chat::{Conversation, Form, Template};
use crate::infer::{Finish, Options, Sampling};
use crate::models::Session;
use crate::tokenizer::ChatTemplate;
use crate::{Error, Result};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Longest answer in tokens
    #[arg(short = 'n', long, default_value_t = 512)]
    tokens: usize,
    /// How a message becomes text, with {message} in it; `\n` ends a line (default: the model's chat template, else "User: {message}\nCoeus:")
    #[arg(long, value_name = "TEXT")]
    template: Option<String>,
    /// The text that ends an answer (default: the model's end token, or an empty line where it has no chat template)
    #[arg(long, value_name = "TEXT")]
    stop: Option<String>,
    /// What the model is told first, where it has a chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "template")]
    system: Option<String>,
    /// Begin after the text whose state this file holds
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

const HELP: &str = "/reset            forget the conversation
/save FILE        write the state of the conversation
/load FILE        go on after a saved state
/set KEY VALUE    change a setting of the draw, or tokens; /set alone lists them
/status           what was read, and the memory it takes
/quit             leave (so does Ctrl-D)";

struct Chat {
    session: Session,
    conversation: Conversation,
    options: Options,
    json: bool,
    interrupted: Arc<AtomicBool>,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    args.sampling.checked()?;
    let (path, found) = args.model.find()?;
    found.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let (tokenizer, opening) = (found.tokenizer(), &args.model.options);
    let form = form(&args, &found)?;
    let mut options = Options::new(args.tokens, args.sampling.for_tokens(tokenizer)?);
    if let (Form::Whole(_), Some(stop)) = (&form, &args.stop) {
        options.stop.push(stop.replace("\\n", "\n"));
    }
    let conversation = match &args.system {
        Some(system) => Conversation::new(form).with_system(system)?,
        None => Conversation::new(form),
    };
    let mut session = opening.session(&found, opening.device()?)?;
    if let Some(path) = &args.state {
        session.load_text_state(path)?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    listen(&interrupted)?;
    if !json {
        let step = found.step().map_or(String::new(), |step| format!(" (step {step})"));
        eprintln!("{}{step} on {}", path.display(), session.device().name());
        eprintln!("/help lists commands; Ctrl-C ends an answer, twice the program");
    }
    Chat { session, conversation, options, json, interrupted }.talk()
}

/// The text around messages that was asked for, else the model's own template, else a plain one.
fn form(args: &Args, found: &Found) -> Result<Form> {
    if let (None, Some(source)) = (&args.template, found.chat_template()) {
        return Ok(Form::Whole(ChatTemplate::new(source)?));
    }
    let text = args.template.as_deref().unwrap_or("User: {message}\\nCoeus:");
    let template = Template::parse(text, args.stop.as_deref().unwrap_or("\\n\\n"))?;
    // Messages are anything; what is around them must be text that the model knows.
    found.tokenizer().encode(&template.wrap("")).map_err(|e| {
        Error::Config(format!(
            "the template {text:?} cannot be written in the model's tokens ({e}): give --template and --stop"
        ))
    })?;
    Ok(Form::Around(template))
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
            // The next Ctrl-C is the first again.
            self.interrupted.store(false, Ordering::SeqCst);
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
        let made = self.conversation.answer(&mut self.session, message, &self.options, &mut on_text)?;
        let seconds = begun.elapsed().as_secs_f64();
        let rate = made.tokens.len() as f64 / seconds.max(1e-9);
        // Another draw for the next answer.
        self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        let ended = matches!(made.finish, Finish::Stop | Finish::Eos);
        if self.json {
            let line = json!({
                "message": message, "answer": made.text.trim_start(), "tokens": made.tokens.len(), "finished": ended, "finish": made.finish,
                "seconds": seconds, "tokens_per_second": rate, "tokens_read": self.session.position(),
            });
            println!("{line}");
            return Ok(());
        }
        println!();
        let read = self.session.position();
        let stopped = if self.interrupted.load(Ordering::SeqCst) { ", stopped" } else { "" };
        eprintln!("[{} tokens{stopped}, {rate:.1} tokens/s; {read} read in all]", made.tokens.len());
        if self.conversation.forgotten() > 0 {
            eprintln!(
                "[without the oldest {} messages: the model has no room for them]",
                self.conversation.forgotten()
            );
        }
        Ok(())
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["help"] => eprintln!("{HELP}"),
            ["reset"] => self.conversation.reset(&mut self.session)?,
            ["save", file] => self.session.save_text_state(Path::new(file))?,
            ["load", file] => {
                let read = self.session.load_text_state(Path::new(file))?;
                eprintln!("[after a text of {read} tokens]");
            }
            ["set"] => eprintln!("{}, tokens", Sampling::KEYS.join(", ")),
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
        let refused = |why: String| Error::Config(format!("/set {key} {value}: {why}"));
        if key == "tokens" {
            self.options.tokens = value.parse().map_err(|_| refused("not a number of the right kind".into()))?;
            return Ok(());
        }
        self.options.sampling.set(key, value).map_err(|e| match e {
            Error::Config(why) => refused(why),
            other => other,
        })
    }
}
