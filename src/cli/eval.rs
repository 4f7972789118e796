//! `lynx-gpu eval`: loss, perplexity and bits per byte of a trained model on a split, beside the best n-gram; and batteries of
//! problems.

mod common;
mod iq;
mod multihop;
mod perplexity;
mod reach;
mod recall;

use super::checkpoint::{Opened, newest_run};
use crate::data::{Cache, EvalBatches, TokenSplit, ngram};
use crate::device::choose;
use crate::ops::workloads::workloads;
use crate::train::data::Prepared;
use crate::train::files::read_text;
use crate::train::model::{EvalSum, TrainModel};
use crate::train::sources::{SourceLoss, SourceSums};
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, Copy, clap::ValueEnum)]
enum Split {
    Train,
    Val,
    Test,
}

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    battery: Option<Battery>,
    #[command(flatten)]
    split: SplitArgs,
}

#[derive(clap::Subcommand)]
enum Battery {
    /// Unseen problems of the logic mix, of trained and untrained lengths and forms, beside baselines that do not reason
    Iq(iq::Args),
    /// Facts in a text, asked for over distances from tens to thousands of bytes
    Recall(recall::Args),
    /// Chains of facts: who has the key after one, two or three steps
    Multihop(multihop::Args),
    /// Perplexity of a text by the protocol of llama.cpp: chunks of --ctx tokens, the second half of each scored
    Perplexity(perplexity::Args),
}

#[derive(clap::Args)]
struct SplitArgs {
    /// Run folder or checkpoint (default: the newest run under runs/)
    model: Option<PathBuf>,
    /// Which part of the data
    #[arg(long, value_enum, default_value = "val")]
    split: Split,
    /// Another UTF-8 text file (all of it is scored)
    #[arg(long, value_name = "FILE", conflicts_with = "split")]
    data: Option<PathBuf>,
    /// Sequences per batch (default: the run's)
    #[arg(long)]
    batch: Option<usize>,
    #[arg(long, default_value = "auto")]
    device: String,
    /// The last checkpoint instead of the best
    #[arg(long)]
    last: bool,
    /// Leave the n-gram baseline out
    #[arg(long)]
    no_ngram: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    match args.battery {
        Some(Battery::Iq(args)) => iq::run(args, json),
        Some(Battery::Recall(args)) => recall::run(args, json),
        Some(Battery::Multihop(args)) => multihop::run(args, json),
        Some(Battery::Perplexity(args)) => perplexity::run(args, json),
        None => split(args.split, json),
    }
}

fn split(args: SplitArgs, json: bool) -> Result<()> {
    let path = match &args.model {
        Some(path) => path.clone(),
        None => newest_run()?,
    };
    let opened = Opened::find(&path, args.last)?;
    let mut config = opened.config.clone();
    let data = Prepared::new(&mut config, Some(opened.tokenizer.clone()), &Cache::from_environment())?;
    let (name, split) = chosen_split(&args, &opened, &data)?;
    if split.tokens.len() < 2 {
        return Err(Error::Data(format!(
            "the data of this run has no {name} split (data.heldout = \"{}\"); choose another --split",
            config.data.heldout
        )));
    }
    let chosen = choose::choose(&args.device, workloads)?;
    let mut session = opened.session(chosen.device)?;
    let batch = args.batch.unwrap_or(opened.config.train.batch_size);
    let batches = EvalBatches::new(split.clone(), batch, opened.config.model.context())?;
    let mut sum = EvalSum::default();
    let mut sources = SourceSums::new(batches.sources());
    for index in 0..batches.len() {
        let rows = session.evaluate_rows(&batches.batch(index))?;
        sources.add(batches.sources_of(index), &rows);
        for part in rows {
            sum.nll += part.nll;
            sum.tokens += part.tokens;
        }
    }
    let sources = sources.losses();
    if sum.tokens == 0 {
        return Err(Error::Data(format!("the {name} split has nothing to score; choose another --split")));
    }
    let loss = sum.nll / sum.tokens as f64;
    let baseline = match args.no_ngram {
        true => None,
        false => Some(ngram::best_ngram(&data.corpus.train, &split, data.corpus.vocab_size)?),
    };
    let (perplexity, bits) = (loss.exp(), split.bits_per_byte(loss));
    if json {
        return super::report::emit(&json!({
            "run": path, "checkpoint_step": opened.step, "split": name, "tokens": sum.tokens, "loss": loss,
            "perplexity": perplexity, "bits_per_byte": bits, "sources": sources.iter().map(source_json).collect::<Vec<_>>(), "device": session.device().name(), "ngram": baseline,
            "beats_ngram": baseline.as_ref().map(|b| perplexity < b.perplexity),
        }));
    }
    println!("{} (step {}), {name}: {} tokens on {}", path.display(), opened.step, sum.tokens, session.device().name());
    println!("{:<22} {:>10} {:>12} {:>10}", "", "loss", "perplexity", "bits/byte");
    println!("{:<22} {loss:>10.4} {perplexity:>12.3} {bits:>10.4}", "model");
    for source in &sources {
        let floor = source.floor.map_or(String::new(), |floor| format!("  (at least {floor:.4} unless it was seen)"));
        println!("{:<22} {:>10} {:>12} {:>10.4}{floor}", format!("  {}", source.name), "", "", source.bits_per_byte);
    }
    for row in baseline.iter().flat_map(|b| &b.table) {
        let mark = if baseline.as_ref().is_some_and(|b| b.n == row.n) { "  best" } else { "" };
        let label = format!("{}-gram", row.n);
        println!("{label:<22} {:>10.4} {:>12.3} {:>10.4}{mark}", row.nats_per_token, row.perplexity, row.bits_per_byte);
    }
    sources.iter().filter_map(|source| source.warning()).for_each(|warning| println!("{warning}"));
    Ok(())
}

fn source_json(source: &SourceLoss) -> serde_json::Value {
    json!({
        "name": source.name, "tokens": source.tokens, "bits_per_byte": source.bits_per_byte, "floor": source.floor,
        "below_floor": source.is_leak(),
    })
}

fn chosen_split(args: &SplitArgs, opened: &Opened, data: &Prepared) -> Result<(String, Arc<TokenSplit>)> {
    if let Some(path) = &args.data {
        // Read as running text, whatever the run was trained on.
        let text = read_text(path)?;
        let text = if opened.config.data.lowercase { text.to_lowercase() } else { text };
        let name = path.display().to_string();
        let tokens = opened.tokenizer.encode(&text)?;
        let mut split = TokenSplit::stream(&name, tokens);
        // The first token is given, not predicted.
        let given = split.tokens.first().map_or(Ok(0), |&id| opened.tokenizer.decode(&[id]).map(|t| t.len()))?;
        split.scored_bytes = text.len().saturating_sub(given);
        return Ok((name, Arc::new(split)));
    }
    Ok(match args.split {
        Split::Train => ("train".into(), data.corpus.train.clone()),
        Split::Val => ("val".into(), data.corpus.val.clone()),
        Split::Test => ("test".into(), data.corpus.test.clone()),
    })
}
