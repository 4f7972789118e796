//! `lynx-gpu bench context`: texts of growing length through a model that carries a state.

use super::{Spinner, write};
use crate::bench::{context, stand_in};
use crate::cli::checkpoint::Opened;
use crate::config::{Config, ModelConfig};
use crate::data::Cache;
use crate::data::files::check_folder_writable;
use crate::device::choose;
use crate::models::{Session, setup};
use crate::ops::workloads::workloads;
use crate::train::data::Prepared;
use crate::train::files::read_text;
use crate::{Error, Result};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint of a trained model
    #[arg(conflicts_with_all = ["config", "set"])]
    model: Option<PathBuf>,
    /// Without a MODEL: preset or TOML file, with fresh weights
    #[arg(short, long, default_value = "coeus-v2.5-nano", value_name = "PRESET|FILE")]
    config: String,
    /// Change one setting of the preset, as in `--set model.layers=2`; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Lengths of the texts, in tokens
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000,20000,30000,100000", value_name = "N,N,..")]
    lengths: Vec<u64>,
    /// With a trained MODEL: the UTF-8 text whose loss is shown by position (default: the run's validation split)
    #[arg(long, value_name = "FILE", requires = "model")]
    text: Option<PathBuf>,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// Folder for context.json and context.svg
    #[arg(long, default_value = "context", value_name = "DIR")]
    out: PathBuf,
    /// The last checkpoint instead of the best
    #[arg(long, requires = "model")]
    last: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    if args.lengths.is_empty() || args.lengths.contains(&0) {
        return Err(Error::Config("--lengths: each text needs at least 1 token".into()));
    }
    let mut lengths = args.lengths.clone();
    lengths.sort_unstable();
    lengths.dedup();
    // Before minutes of measuring.
    check_folder_writable(&args.out)?;
    let mut spinner = Spinner::new();
    let (mut session, config, text) = match &args.model {
        Some(path) => trained(path, &args)?,
        None => (fresh(&args)?, Config::load(&args.config, &args.set)?.0, None),
    };
    let shape = match &config.model {
        ModelConfig::Gpt(c) => (c.layers, c.width),
        ModelConfig::Coeus(c) => (c.layers, c.width),
        ModelConfig::Llama(c) => (c.layers, c.width),
    };
    let mut report = context::measure(&mut session, &lengths, shape, &mut spinner)?;
    if let Some((name, mut tokens)) = text {
        // As far as a table of positions goes; one more token is the last target.
        tokens.truncate(session.model().last_position().map_or(usize::MAX, |limit| limit + 1));
        report.stretches = context::loss_by_position(&mut session, &tokens)?;
        report.text = Some(name);
    }
    drop(spinner);
    let file = serde_json::to_string_pretty(&report).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?;
    let written = [
        write(&args.out, "context.json", file.as_bytes())?,
        write(&args.out, "context.svg", context::svg(&report)?.as_bytes())?,
    ];
    if json {
        return crate::cli::report::emit(&report);
    }
    print!("{}", report.text());
    eprintln!("wrote {}", written.join(", "));
    Ok(())
}

fn fresh(args: &Args) -> Result<Session> {
    let mut config = Config::load(&args.config, &args.set)?.0;
    let tokenizer = stand_in(config.model.vocab_size())?;
    config.set_vocab_size(tokenizer.vocab_size())?;
    let device = choose::choose(&args.device, workloads)?.device;
    let model = setup::model(&config.model)?;
    Session::for_inference(model, tokenizer, config.optimizer.clone(), device, config.train.seed)
}

/// A text's name and its tokens.
type Text = Option<(String, Vec<u32>)>;

fn trained(path: &std::path::Path, args: &Args) -> Result<(Session, Config, Text)> {
    let opened = Opened::find(path, args.last)?;
    let text = match &args.text {
        Some(path) => (path.display().to_string(), opened.tokenizer.encode(&read_text(path)?)?),
        None => {
            let mut config = opened.config.clone();
            let data = Prepared::new(&mut config, Some(opened.tokenizer.clone()), &Cache::from_environment())?;
            (format!("the validation split of {}", data.text.name), data.corpus.val.tokens.clone())
        }
    };
    let device = choose::choose(&args.device, workloads)?.device;
    Ok((opened.session(device)?, opened.config, Some(text)))
}
