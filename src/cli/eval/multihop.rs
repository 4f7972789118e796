//! `lynx-gpu eval multihop`: chains of facts.

use super::common::{ModelArgs, progress, to_value};
use crate::evals::filler::Filler;
use crate::evals::multihop::{self, Options, Row, chance};
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: ModelArgs,
    /// Chains for each number of steps
    #[arg(short, long, default_value_t = multihop::CHAINS)]
    n: usize,
    /// Text to tell the facts in: a UTF-8 file, best one that was not trained on, or a folder written by data logic-mix with
    /// literature, for its test blocks (default: generated sentences)
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Seed of names and places
    #[arg(long, default_value_t = crate::data::logic_mix::SEED)]
    seed: u64,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let options = Options { seed: args.seed, n: args.n };
    let filler = match &args.text {
        Some(path) => Filler::read(path)?,
        None => Filler::generated(args.seed),
    };
    if options.n == 0 {
        return Err(Error::Config("--n 0: give at least one chain for each number of steps".into()));
    }
    let mut asked = args.models.open()?;
    for a in &asked {
        multihop::check(&a.opened.tokenizer, &a.name, &filler)?;
    }
    let (mut described, mut results) = (vec![], vec![]);
    for a in &mut asked {
        let rows = multihop::run(&mut a.session, &a.name, &options, &filler, &mut progress("multihop"))?;
        let mut model = a.describe();
        model["result"] = to_value(&rows)?;
        described.push(model);
        results.push((a.name.clone(), rows));
    }
    let chances: Vec<_> = multihop::STEPS.map(|steps| json!({ "steps": steps, "rate": chance(steps) })).into();
    let result = json!({ "options": to_value(&options)?, "filler": filler.about, "chance": { "choice": chances } });
    args.models.finish("multihop", &described, result, json, || print(&options, &filler, &results))
}

fn print(options: &Options, filler: &Filler, results: &[(String, Vec<Row>)]) {
    println!("facts told in {}; {} chains a row, seed {}", filler.about, options.n, options.seed);
    println!("{:>6}  {:>22}  {:>22}  model", "steps", "of six names", "name written");
    for steps in multihop::STEPS {
        println!("{steps:>6}  {:>20.1} %  {:>22}  guessing", 100.0 * chance(steps), "-");
        for (name, rows) in results {
            for row in rows.iter().filter(|row| row.steps == steps) {
                println!("{steps:>6}  {:>22}  {:>22}  {name}", row.choice, row.exact);
            }
        }
    }
}
