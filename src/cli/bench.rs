//! `lynx-gpu bench`: tokens per second of a model, or with `--roofline` what the devices of this machine can do at most and how near
//! each kernel comes.

mod context;
mod forms;
mod model;

use crate::bench::{self, Options, Progress, Report, chart, compare, describe, schema, table, terminal, throughput};
use crate::data::files::check_folder_writable;
use crate::{Error, Result, cache};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    models: ModelArgs,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Texts of growing length through a model that carries a state: time, memory, loss by position
    Context(context::Args),
    /// The chunked form of every recurrence beside the recurrent one, forward and in training
    Forms(forms::Args),
}

#[derive(clap::Args)]
struct ModelArgs {
    /// A model with its weights (run folder, checkpoint, GGUF file, Hugging Face folder or llama2.c file): only reading and generating
    /// are measured
    #[arg(conflicts_with_all = ["roofline", "config", "set", "quick", "filter", "compare", "from"])]
    model: Option<PathBuf>,
    /// Measure ceilings and every operator under them
    #[arg(long)]
    roofline: bool,
    /// all, cpu, gpu:N or part of a device's name (with --roofline the CPU is measured beside a GPU)
    #[arg(long, default_value = "all", value_name = "DEVICE")]
    device: String,
    /// Only measurements whose operator, shape or direction contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Fewer points and shorter samples: under a minute on a CPU
    #[arg(long)]
    quick: bool,
    /// Folder for roofline.json and the pictures
    #[arg(long, default_value = "roofline", value_name = "DIR")]
    out: PathBuf,
    /// Say what got faster or slower beyond noise since this roofline.json; exit code 9 if anything got slower
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Measure nothing: print, draw and compare this roofline.json
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["quick", "filter"])]
    from: Option<PathBuf>,
    /// Explain every quantity and the chart, and measure nothing
    #[arg(long)]
    describe: bool,
    /// Without --roofline: preset or TOML file of the model to measure [default: minigpt]
    #[arg(short, long, visible_alias = "preset", value_name = "PRESET|FILE", conflicts_with = "roofline")]
    config: Option<String>,
    /// Change one setting of the model, as in `--set train.batch_size=8`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "roofline")]
    set: Vec<String>,
    /// Tokens of the prompt (at most the context, but for models that carry a state); of a MODEL, 0 leaves the test out
    #[arg(short = 'p', long, default_value = "512", value_name = "N", conflicts_with = "roofline")]
    prompt: usize,
    /// Tokens to generate (at most the context) [default: 32, or 128 of a MODEL]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "roofline")]
    generate: Option<usize>,
    #[command(flatten)]
    with_model: model::Args,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    match args.command {
        Some(Command::Context(args)) => context::run(args, json),
        Some(Command::Forms(args)) => forms::run(args, json),
        None => models(args.models, json),
    }
}

fn models(args: ModelArgs, json: bool) -> Result<()> {
    if args.describe {
        print!("{}", describe::describe());
        return Ok(());
    }
    if let Some(path) = &args.model {
        return model::run(path, args.device, (args.prompt, args.generate.unwrap_or(128)), args.with_model, json);
    }
    if args.roofline { roofline(args, json) } else { tokens(args, json) }
}

fn tokens(args: ModelArgs, json: bool) -> Result<()> {
    let only =
        [("--filter", args.filter.is_some()), ("--compare", args.compare.is_some()), ("--from", args.from.is_some())];
    if let Some((flag, _)) = only.iter().find(|(_, given)| *given) {
        return Err(Error::Config(format!("{flag} belongs to --roofline: add it")));
    }
    let generate = args.generate.unwrap_or(32);
    if args.prompt == 0 || generate == 0 {
        return Err(Error::Config("--prompt and --generate are at least 1 without a MODEL".into()));
    }
    let options = throughput::Options {
        config: args.config.unwrap_or_else(|| "minigpt".into()),
        sets: args.set,
        device: args.device,
        quick: args.quick,
        prompt: args.prompt,
        generate,
    };
    let table = throughput::measure(&options, &mut Spinner::new())?;
    if json {
        return super::report::emit(&table);
    }
    print!("{}", throughput::text(&table));
    table.warnings.iter().for_each(|w| eprintln!("warning: {w}"));
    Ok(())
}

fn roofline(args: ModelArgs, json: bool) -> Result<()> {
    // Before minutes of measuring.
    check_folder_writable(&args.out)?;
    let old = args.compare.as_deref().map(schema::read).transpose()?;
    let mut written = Vec::new();
    let report = match &args.from {
        Some(path) => schema::read(path)?,
        None => {
            let options = Options { device: args.device, filter: args.filter, quick: args.quick };
            let report = bench::roofline(&options, &mut Spinner::new())?;
            written.push(write(&args.out, "roofline.json", to_json(&report)?.as_bytes())?);
            report
        }
    };
    written.push(write(&args.out, "roofline.svg", chart::svg(&report)?.as_bytes())?);
    written.push(write(&args.out, "roofline.png", &chart::png(&report)?)?);
    let comparison = old.map(|old| compare::compare(&old, &report)).transpose();
    if json {
        match &comparison {
            Ok(Some(comparison)) => super::report::emit(comparison)?,
            _ => println!("{}", to_json(&report)?),
        }
    } else {
        let page = Page::of_stdout();
        println!("{}", table::render(&report, page.columns, page.colour));
        println!("{}", terminal::plot(&report, page.columns.min(120), page.rows.clamp(24, 36), page.colour));
        if let Ok(Some(comparison)) = &comparison {
            println!("{}", comparison.render(page.columns, page.colour));
        }
        eprintln!("wrote {}", written.join(", "));
    }
    comparison?.map_or(Ok(()), |comparison| comparison.verdict())
}

fn write(folder: &Path, name: &str, contents: &[u8]) -> Result<String> {
    let path = folder.join(name);
    cache::replace(&path, contents)?;
    Ok(path.display().to_string())
}

/// What there is to write on. https://no-color.org: any value but the empty one turns colours off.
struct Page {
    columns: usize,
    rows: usize,
    colour: bool,
}

impl Page {
    fn of_stdout() -> Page {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        let number = |name: &str| set(name)?.to_str()?.parse().ok();
        if !std::io::stdout().is_terminal() {
            return Page { columns: number("COLUMNS").unwrap_or(100), rows: 30, colour: false };
        }
        let (columns, rows) = crossterm::terminal::size().unwrap_or((100, 30));
        let dumb = set("TERM").is_some_and(|t| t == "dumb");
        Page { columns: columns.into(), rows: rows.into(), colour: set("NO_COLOR").is_none() && !dumb }
    }
}

fn to_json(report: &Report) -> Result<String> {
    serde_json::to_string_pretty(report).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))
}

/// One line that says what is being measured; nothing when nobody watches.
struct Spinner(ProgressBar);

impl Spinner {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {wide_msg}") {
            bar.set_style(style);
        }
        Spinner(bar)
    }
}

impl Progress for Spinner {
    fn step(&mut self, what: &str) {
        self.0.set_message(what.to_string());
        self.0.tick();
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
