//! `lynx-gpu train`: trains a model and shows it happening.

use super::start::FirstStep;
use crate::Result;
use crate::config::Config;
use crate::data::Cache;
use crate::data::ngram;
use crate::device::choose;
use crate::graph::Precision;
use crate::models::setup;
use crate::ops::workloads::workloads;
use crate::train::checkpoint::ModelFiles;
use crate::train::data::Prepared;
use crate::train::observer::{Console, JsonLines, Observer};
use crate::train::run_dir::RunDir;
use crate::train::signals::Control;
use crate::train::trainer::{Start, Training};
use crate::train::tui::Tui;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Preset or TOML file (default: minigpt, which trains on the built-in corpus in minutes)
    #[arg(short, long, visible_alias = "preset", default_value = "minigpt", value_name = "PRESET|FILE")]
    config: String,
    /// Change one setting, as in `--set train.steps=500`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Train on this UTF-8 text file instead of the configured data
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// What activations are stored in: f32, bf16 or f16
    #[arg(long, value_name = "TYPE")]
    precision: Option<Precision>,
    /// Most memory for a training step, such as 2GiB or 512MiB: what does not fit is computed again in the backward pass
    #[arg(long, value_name = "BYTES")]
    memory_budget: Option<String>,
    /// Folder of the run (default: runs/TIME-PRESET)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "data", "out"])]
    resume: Option<PathBuf>,
    /// With --resume: from this checkpoint (last, best or step-N)
    #[arg(long, requires = "resume", default_value = "last", value_name = "WHICH")]
    checkpoint: String,
    /// Print parameters, memory plan and cost of a step, and stop
    #[arg(long)]
    dry_run: bool,
    /// Write the graph of the training step to this file (.dot or .json); with --dry-run nothing is trained
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,
    /// A dashboard in the terminal instead of lines
    #[arg(long, conflicts_with = "json")]
    tui: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let begun = Instant::now();
    let sets = overrides(&args);
    let mut start = Start::Fresh;
    let (mut config, name, mut run) = match &args.resume {
        Some(folder) => {
            let (run, config) = RunDir::open(folder, &sets)?;
            start = Start::Resume(args.checkpoint.parse()?);
            (config, String::new(), Some(run))
        }
        None => {
            let (config, name) = Config::load(&args.config, &sets)?;
            (config, name, None)
        }
    };
    if config.run.threads > 0 {
        kernels_cpu::threads::set_threads(config.run.threads);
    }
    let chosen = choose::choose_for_step(&config.run.device, setup::step_flops(&config), workloads)?;
    eprintln!("device: {}", chosen.reason);
    let saved_tokenizer = match &run {
        Some(run) => super::checkpoint::tokenizer_of(run.path())?,
        None => None,
    };
    let data = Prepared::new(&mut config, saved_tokenizer, &Cache::from_environment())?;
    if args.dry_run || args.graph.is_some() {
        let planned = setup::training_plans(&config, &chosen.device)?;
        if let Some(path) = &args.graph {
            super::report::write_graph(&planned.plans, path)?;
        }
        if args.dry_run {
            return super::report::plan(&planned.report(&chosen.device), json);
        }
    }
    let mut session = setup::training_session(&config, &data.tokenizer, chosen.device)?;
    let mut train = data.train_batches(&config)?;
    let mut validation = data.validation_batches(&config)?;
    let mut run = match run.take() {
        Some(run) => run,
        None => RunDir::create(&config, &name)?,
    };
    run.manifest.data = data.describe();
    let control = Arc::new(Control::default());
    control.listen_to_signals()?;
    let inner: Box<dyn Observer> = match (args.tui, json) {
        (true, _) => Box::new(Tui::start(control.clone())?),
        (false, true) => Box::new(JsonLines::new(std::io::stdout())),
        (false, false) => Box::new(Console::new()),
    };
    let planned = session.report();
    if !planned.forms.is_empty() {
        eprintln!("forms: {}", planned.forms.join(", "));
    }
    if let Some(recomputed) = &planned.recomputed {
        eprintln!("recomputed: {}", recomputed.line());
    }
    let (memory, recomputed) = (planned.memory, planned.recomputed);
    let observer =
        FirstStep { begun, notes: session.notes(), memory, recomputed, json, inner, said: false, validation: 0.0 };
    let files = ModelFiles {
        config_json: serde_json::to_string_pretty(&config.model).unwrap_or_default(),
        tokenizer_json: data.tokenizer.to_huggingface_json(),
    };
    let training = Training {
        config: &config,
        model: &mut session,
        train: &mut train,
        validation: &mut validation,
        run: &mut run,
        files,
        control,
        observers: vec![Box::new(observer)],
    };
    let outcome = training.run(start)?.into_result()?;
    let baseline = ngram::best_ngram(&data.corpus.train, &data.corpus.val, data.corpus.vocab_size)?;
    super::report::outcome(&outcome, &baseline, &run, json)
}

/// Flags as settings, so that the run's config.toml holds everything.
fn overrides(args: &Args) -> Vec<String> {
    let mut sets = Vec::new();
    if let Some(path) = &args.data {
        sets.push(format!("data.source={}", path.display()));
        sets.push("data.batching=auto".into());
        // Another text has another vocabulary.
        sets.push("model.vocab_size=0".into());
    }
    sets.extend(args.set.iter().cloned());
    if let Some(device) = &args.device {
        sets.push(format!("run.device={device}"));
    }
    if let Some(precision) = args.precision {
        sets.push(format!("train.precision={precision}"));
    }
    if let Some(budget) = &args.memory_budget {
        sets.push(format!("run.memory_budget={budget}"));
    }
    if let Some(out) = &args.out {
        let root = out.parent().filter(|p| !p.as_os_str().is_empty()).map_or(".".into(), |p| p.display().to_string());
        let name = out.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        sets.push(format!("run.root={root}"));
        sets.push(format!("run.name={name}"));
    }
    sets
}
