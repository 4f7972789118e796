//! `lynx-gpu eval recall`: facts asked for over distances.

use super::common::{ModelArgs, progress, to_value};
use super::reach::Reach;
use crate::Result;
use crate::evals::filler::Filler;
use crate::evals::recall::{self, CHANCE, Cell, Options, Report, Score};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    models: ModelArgs,
    /// Bytes between a fact and its query
    #[arg(long, value_delimiter = ',', default_values_t = recall::DISTANCES)]
    distances: Vec<usize>,
    /// Facts in a text, one of which is asked for
    #[arg(long, value_delimiter = ',', default_values_t = recall::FACTS)]
    facts: Vec<usize>,
    /// Where the fact begins, modulo 8; the texts of a cell take them in turn
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,3,4,5,6,7")]
    alignments: Vec<usize>,
    /// Texts of each cell
    #[arg(short, long, default_value_t = recall::TEXTS)]
    n: usize,
    /// Text to tell the facts in: a UTF-8 file, best one that was not trained on, or a folder written by data logic-mix with
    /// literature, for its test blocks (default: generated sentences)
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Seed of names, codes and places
    #[arg(long, default_value_t = crate::data::logic_mix::SEED)]
    seed: u64,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let options = Options {
        seed: args.seed,
        distances: args.distances,
        facts: args.facts,
        alignments: args.alignments,
        n: args.n,
    };
    options.validate()?;
    let filler = match &args.text {
        Some(path) => Filler::read(path)?,
        None => Filler::generated(args.seed),
    };
    let mut asked = args.models.open()?;
    for a in &asked {
        recall::check(&a.opened.tokenizer, &a.name, &filler)?;
    }
    let (mut about, mut reports) = (vec![], vec![]);
    for a in &mut asked {
        let report = recall::run(&mut a.session, &a.name, &options, &filler, &mut progress("recall"))?;
        let carries = a.session.carries().is_ok() && a.session.model().last_position().is_none();
        let reach = Reach::of(&a.opened.config.model, carries);
        about.push((a.name.clone(), reach));
        reports.push(report);
    }
    let described = asked.iter().zip(&about).zip(&reports).map(|((a, (_, reach)), report)| {
        let mut model = a.describe();
        model["reach"] = to_value(reach)?;
        model["result"] = to_value(report)?;
        Ok(model)
    });
    let described = described.collect::<Result<Vec<_>>>()?;
    let result = json!({
        "options": to_value(&options)?, "filler": filler.about,
        "chance": { "exact": CHANCE.0, "digits": CHANCE.1, "nats_per_digit": CHANCE.2 },
    });
    args.models.finish("recall", &described, result, json, || print(&options, &filler, &about, &reports))
}

fn line(label: &str, score: &Score, note: &str) {
    println!("{label:>10}  {:>22}  {:>22}  {:>10.3}{note}", score.exact, score.digits, score.nats_per_digit);
}

fn print(options: &Options, filler: &Filler, about: &[(String, Reach)], reports: &[Report]) {
    println!("facts told in {}; {} texts a cell, seed {}", filler.about, options.n, options.seed);
    for ((name, reach), report) in about.iter().zip(reports) {
        println!("\n{name}: {reach}");
        println!("{:>10}  {:>22}  {:>22}  {:>10}", "distance", "4 digits", "single digits", "nats/digit");
        let chance = (100.0 * CHANCE.0, 100.0 * CHANCE.1, CHANCE.2);
        println!("{:>10}  {:>20} %  {:>20} %  {:>10.3}", "chance", chance.0, chance.1, chance.2);
        for &facts in &options.facts {
            println!("{}", if facts == 1 { "one fact".to_owned() } else { format!("{facts} facts") });
            for cell in report.cells.iter().filter(|cell| cell.facts == facts) {
                line(&cell.distance.to_string(), &cell.score, &note(reach, cell));
            }
        }
        if options.alignments.len() > 1 {
            println!("by where the fact begins, modulo {}", recall::ALIGNMENTS);
            for (alignment, score) in options.alignments.iter().zip(&report.by_alignment) {
                line(&alignment.to_string(), score, "");
            }
        }
    }
}

fn note(reach: &Reach, cell: &Cell) -> String {
    reach.note(cell.reach).map_or(String::new(), |note| format!("  {note}"))
}
