//! `lynx-gpu eval iq`: unseen problems, beside baselines.

use super::common::{ModelArgs, progress, to_value};
use crate::evals::iq::solvers::{Majority, Model, NGram, NearestCopy, Solver, Training};
use crate::evals::iq::{self, Options, Report};
use crate::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: ModelArgs,
    /// Problems of each cell
    #[arg(short, long, default_value_t = iq::PROBLEMS)]
    n: usize,
    /// Seed of the problems
    #[arg(long, default_value_t = crate::data::logic_mix::SEED)]
    seed: u64,
    /// Leave the baselines out (and with them the verdict)
    #[arg(long)]
    no_baselines: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    if args.n == 0 {
        return Err(Error::Config("--n 0: give at least one problem for each cell".into()));
    }
    let mut asked = args.models.open()?;
    let describe: Vec<_> = asked.iter().map(|a| a.describe()).collect();
    // Baselines learn from what the first model was trained on.
    let source = asked[0].opened.config.data.corpus_source()?;
    let mut solvers: Vec<Box<dyn Solver + '_>> = vec![];
    for a in &mut asked {
        solvers.push(Box::new(Model::new(&a.name, &mut a.session)?));
    }
    let mut learnt_from = None;
    if !args.no_baselines {
        let training = Training::of(&source)?;
        solvers.push(Box::new(NGram::fit(&training)?));
        solvers.push(Box::new(NearestCopy::fit(&training)));
        solvers.push(Box::new(Majority::fit(&training)));
        learnt_from = Some(training.about);
    }
    let options = Options { seed: args.seed, n: args.n };
    let report = iq::run(&options, &mut solvers, &mut progress("iq"))?;
    let mut result = to_value(&report)?;
    result["baselines_learnt_from"] = learnt_from.clone().into();
    args.models.finish("iq", &describe, result, json, || print(&report, learnt_from.as_deref()))
}

fn print(report: &Report, learnt_from: Option<&str>) {
    const WIDTH: usize = 23;
    print!("{:<11} {:<10} {:>5} {:>7}", "cell", "measure", "n", "chance");
    for name in &report.solvers {
        // The end of a path tells runs apart.
        let skipped = name.chars().count().saturating_sub(WIDTH);
        print!("  {:>WIDTH$}", name.chars().skip(skipped).collect::<String>());
    }
    println!();
    for row in &report.rows {
        let n = row.scores.first().map_or(0, |s| s.n);
        print!("{:<11} {:<10} {n:>5} {:>5.1} %", row.cell, row.measure, 100.0 * row.chance);
        row.scores.iter().for_each(|score| print!("  {score:>WIDTH$}"));
        println!();
    }
    println!("shares with 95 % Wilson intervals; seed {}", report.options.seed);
    if let Some(about) = learnt_from {
        println!("baselines learnt from {about}");
    }
    for claim in &report.claims {
        let verdict = if claim.claimed {
            format!("claimed: beats every baseline with disjoint intervals on {}", claim.cells.join(" and "))
        } else {
            "not claimed: neither A5 nor X beats every baseline with disjoint intervals".into()
        };
        println!("reasoning, {}: {verdict}", claim.solver);
    }
}
