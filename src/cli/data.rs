//! `lynx-gpu data`: generate, check and describe corpora.

use crate::config::size;
use crate::data::files::{read_utf8, sha256_hex};
use crate::data::logic_mix::export::Check;
use crate::data::ngram::{BestNGram, best_ngram};
use crate::data::verbs::split::{Policy, parse_ratios};
use crate::data::verbs::validate::Report;
use crate::data::verbs::{DEFAULT_SEED, export};
use crate::data::{Cache, CorpusSource, EncodedCorpus, TextCorpus, logic_mix, text};
use crate::tokenizer::{Kind, Tokenizer};
use crate::{Error, Result};
use clap::Subcommand;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate the bilingual verb grammar corpus: rows, splits, text, report and manifest
    Verbs {
        /// Folder to write; without it the corpus is generated, checked and described only
        #[arg(long)]
        out: Option<PathBuf>,
        /// Seed of the mis-conjugations, of the row order and of the verb-tense split
        #[arg(long, default_value_t = DEFAULT_SEED)]
        seed: u64,
        /// What is held out: verbs[:look,like,..], verb-tense, tense[:NAME] or person[:NAME]
        #[arg(long)]
        split: Option<String>,
        /// Fractions of train, val and test for --split verb-tense
        #[arg(long, value_name = "TRAIN,VAL,TEST")]
        ratios: Option<String>,
    },
    /// Generate the logic mix: worked arithmetic, arguments and small algorithms, with books mixed in; splits, entropy floors, manifest
    LogicMix {
        /// Folder to write; without it the mix is generated and described only
        #[arg(long)]
        out: Option<PathBuf>,
        /// Seed of every document
        #[arg(long, default_value_t = logic_mix::SEED)]
        seed: u64,
        /// Size of the whole mix, such as 17.68MB; 36 % of it is arithmetic, 14 % arguments, 10 % algorithms
        #[arg(long, value_name = "BYTES", default_value = "17680000")]
        bytes: String,
        /// UTF-8 text files of literature, one book each (40 % of what training sees); Project Gutenberg's frame is taken off
        #[arg(long, value_name = "FILE", num_args = 1..)]
        literature: Vec<PathBuf>,
        /// Add texts whose facts come back later, 5 % of what training sees (what `eval recall` asks for)
        #[arg(long)]
        recall: bool,
    },
    /// Check a written corpus: hashes, every row or worked answer, and that nothing leaks between splits
    Validate {
        /// Folder written by `data verbs --out` or `data logic-mix --out`
        folder: PathBuf,
    },
    /// Describe a corpus and, with --ngram, the baseline a model has to beat on it
    Inspect {
        /// `verbs`, `logic-mix`, a text file, or a folder written by `data verbs --out` or `data logic-mix --out`
        path: String,
        /// Tokenizer to count with: char, byte, bpe, bpe:N, or the path of a tokenizer.json
        #[arg(long, default_value = "char")]
        tokenizer: String,
        /// Score n-gram models of orders 1 to 7 on the held-out split
        #[arg(long)]
        ngram: bool,
        /// What the verb corpus holds out
        #[arg(long)]
        split: Option<String>,
        #[arg(long, default_value_t = DEFAULT_SEED)]
        seed: u64,
        /// How much of the end of a text file validates
        #[arg(long, default_value_t = text::DEFAULT_VAL_FRACTION)]
        val_fraction: f64,
    },
}

pub fn run(args: Args, json: bool) -> Result<()> {
    match args.command {
        Command::Verbs { out, seed, split, ratios } => verbs(out.as_deref(), seed, &policy(split, ratios)?, json),
        Command::LogicMix { out, seed, bytes, literature, recall } => {
            let bytes = size::parse(&bytes).map_err(|why| Error::Config(format!("--bytes {bytes}: {why}")))?;
            mix(out.as_deref(), &logic_mix::export::Options { seed, bytes, literature, recall }, json)
        }
        Command::Validate { folder } => validate(&folder, json),
        Command::Inspect { path, tokenizer, ngram, split, seed, val_fraction } => {
            let source = CorpusSource::parse(&path, seed, policy(split, None)?, val_fraction);
            inspect(&path, &source, &tokenizer, ngram, json)
        }
    }
}

fn policy(split: Option<String>, ratios: Option<String>) -> Result<Policy> {
    let Some(ratios) = ratios else { return split.map_or(Ok(Policy::default()), |text| Policy::parse(&text)) };
    let ratios = parse_ratios(&ratios)?;
    match split.as_deref() {
        None | Some("verb-tense") => Ok(Policy::VerbTense { ratios }),
        Some(other) => Err(Error::Config(format!("--ratios belongs to --split verb-tense, not to --split {other}"))),
    }
}

fn verbs(out: Option<&Path>, seed: u64, policy: &Policy, json: bool) -> Result<()> {
    let manifest = match out {
        Some(folder) => export::write_corpus(folder, seed, policy)?,
        None => {
            let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
            export::write_corpus(folder.path(), seed, policy)?
        }
    };
    if json {
        println!("{manifest}");
        return Ok(());
    }
    print_manifest(&manifest);
    match out {
        Some(folder) => println!("written to {}", folder.display()),
        None => println!("nothing was written: --out DIR writes it"),
    }
    Ok(())
}

fn print_manifest(manifest: &Value) {
    let counts = &manifest["counts"];
    println!(
        "{} {}: {} rows ({} correct, {} mis-conjugated), seed {}, split {}",
        manifest["name"].as_str().unwrap_or("?"),
        manifest["version"].as_str().unwrap_or("?"),
        counts["total"],
        counts["correct"],
        counts["mis_conjugated"],
        manifest["seed"],
        manifest["config"]["split"].as_str().unwrap_or("?"),
    );
    for name in ["train", "val", "test"] {
        let split = &counts["splits"][name];
        println!(
            "  {name:<6} {:>4} rows, {:>4} correct, {:>4} (verb, tense) pairs",
            split["rows"].to_string(),
            split["correct"].to_string(),
            split["verb_tense_pairs"].to_string()
        );
    }
    for (code, count) in counts["by_error_type"].as_object().into_iter().flatten() {
        println!("  {count:>4} {code}");
    }
}

fn mix(out: Option<&Path>, options: &logic_mix::export::Options, json: bool) -> Result<()> {
    let manifest = match out {
        Some(folder) => logic_mix::export::write(folder, options)?,
        None => {
            let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
            logic_mix::export::write(folder.path(), options)?
        }
    };
    if json {
        println!("{manifest}");
        return Ok(());
    }
    print_mix(&manifest);
    match out {
        Some(folder) => println!("written to {0}; train on it with --data {0}", folder.display()),
        None => println!("nothing was written: --out DIR writes it"),
    }
    Ok(())
}

fn print_mix(manifest: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    println!("{} {}: seed {}", text(&manifest["name"]), text(&manifest["version"]), manifest["seed"]);
    println!(
        "  {:<6} {:<11} {:>9} {:>11} {:>12} {:>12}  sha256",
        "split", "kind", "documents", "bytes", "random bits", "least loss"
    );
    println!("  {:<6} {:<11} {:>9} {:>11} {:>12} {:>12}", "", "", "", "", "per byte", "bits/byte");
    for entry in manifest["files"].as_object().into_iter().flat_map(|files| files.values()) {
        let bits = |name: &str| entry[name].as_f64().map_or("-".into(), |bits| format!("{bits:.4}"));
        println!(
            "  {:<6} {:<11} {:>9} {:>11} {:>12} {:>12}  {:.16}",
            text(&entry["split"]),
            text(&entry["kind"]),
            entry["documents"].to_string(),
            entry["bytes"].to_string(),
            bits("random_bits_per_byte"),
            bits("floor_bits_per_byte"),
            text(&entry["sha256"]),
        );
    }
    let weights: Vec<String> = manifest["weights"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(kind, weight)| format!("{kind} {:.1} %", 100.0 * weight.as_f64().unwrap_or(0.0)))
        .collect();
    println!("  training sees, by bytes: {}", weights.join(", "));
    if manifest["literature"].as_array().is_none_or(Vec::is_empty) {
        println!("  no literature: --literature FILE.. mixes books in");
    }
}

fn validate_mix(folder: &Path, json: bool) -> Result<()> {
    let checks = logic_mix::export::validate(folder)?;
    let failed = checks.iter().filter(|c| c.message.is_err()).count();
    if json {
        let rows: Vec<Value> = checks
            .iter()
            .map(|c| {
                let message = c.message.as_ref().unwrap_or_else(|fault| fault);
                json!({ "name": c.name, "passed": c.message.is_ok(), "message": message })
            })
            .collect();
        println!("{}", json!({ "passed": failed == 0, "checks": rows }));
    } else {
        for Check { name, message } in &checks {
            match message {
                Ok(fine) => println!("  ok     {name:<28} {fine}"),
                Err(fault) => println!("  FAILED {name:<28} {fault}"),
            }
        }
    }
    if failed == 0 {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "{}: {failed} of {} checks failed; write the corpus again with data logic-mix --out",
        folder.display(),
        checks.len()
    )))
}

fn validate(folder: &Path, json: bool) -> Result<()> {
    if logic_mix::export::read_manifest(folder)?.is_some() {
        return validate_mix(folder, json);
    }
    let report = export::validate_folder(folder)?;
    if json {
        println!("{}", serde_json::to_string(&report).expect("a report is valid JSON"));
    } else {
        print_report(&report);
    }
    if report.passed {
        return Ok(());
    }
    let failed = report.checks.iter().filter(|c| !c.passed).count();
    Err(Error::Failed(format!(
        "{}: {failed} of {} checks failed; write the corpus again with data verbs --out",
        folder.display(),
        report.checks.len()
    )))
}

fn print_report(report: &Report) {
    println!("{} rows", report.rows);
    for check in &report.checks {
        println!("  {} {:<28} {}", if check.passed { "ok    " } else { "FAILED" }, check.name, check.message);
    }
}

/// The tokenizer a flag names: a kind, built on the corpus, or a file.
pub(super) fn tokenizer_for(corpus: &TextCorpus, text: &str) -> Result<Tokenizer> {
    match Kind::parse(text) {
        Ok(kind) => Tokenizer::for_corpus(corpus, kind),
        Err(_) if Path::new(text).exists() => Tokenizer::load(Path::new(text)),
        Err(e) => Err(e),
    }
}

fn inspect(path: &str, source: &CorpusSource, tokenizer: &str, ngram: bool, json: bool) -> Result<()> {
    let folder = Path::new(path);
    if folder.join(export::MANIFEST).exists() {
        let mix = logic_mix::export::read_manifest(folder)?;
        // A mix can be trained on, so it can be counted and scored too.
        if mix.is_none() || !ngram {
            let manifest = mix.clone().map_or_else(|| export::read_manifest(folder), Ok)?;
            match (json, &mix) {
                (true, _) => println!("{manifest}"),
                (false, Some(_)) => print_mix(&manifest),
                (false, None) => print_manifest(&manifest),
            }
            return Ok(());
        }
    }
    let corpus = source.load()?;
    let tokenizer = tokenizer_for(&corpus, tokenizer)?;
    let data = EncodedCorpus::encode(&corpus, &tokenizer, &Cache::from_environment())?;
    let baseline = if ngram { Some(best_ngram(&data.train, &data.val, tokenizer.vocab_size())?) } else { None };
    let alphabet: std::collections::BTreeSet<char> = corpus.documents().flat_map(str::chars).collect();
    let splits = [&data.train, &data.val, &data.test];
    let sizes: Vec<Value> = corpus
        .splits()
        .iter()
        .zip(splits)
        .map(|((name, documents), split)| {
            json!({
                "name": name, "documents": documents.len(), "bytes": TextCorpus::bytes(documents),
                "tokens": split.tokens.len(),
                "longest_document": (0..split.documents()).map(|d| split.span(d).1 - split.span(d).0).max(),
            })
        })
        .collect();
    let mut report = json!({
        "corpus": corpus.name, "layout": corpus.layout.name(), "sha256": corpus.fingerprint(),
        "characters": alphabet.len(), "splits": sizes,
        "tokenizer": { "kind": tokenizer.kind(), "vocab_size": tokenizer.vocab_size(), "sha256": tokenizer.fingerprint() },
        "ngram": baseline,
    });
    if let CorpusSource::File { path, .. } = source {
        let text = read_utf8(path)?;
        report["file"] = json!({
            "bytes": text.len(), "characters": text.chars().count(), "lines": text.lines().count(),
            "longest_line": text.lines().map(|l| l.chars().count()).max(), "sha256": sha256_hex(text.as_bytes()),
        });
    }
    if json {
        println!("{report}");
        return Ok(());
    }
    println!("{} ({}), sha256 {}", corpus.name, corpus.layout.name(), corpus.fingerprint());
    if let Some(file) = report.get("file") {
        println!(
            "  {} bytes, {} characters, {} lines (the longest {})",
            file["bytes"], file["characters"], file["lines"], file["longest_line"]
        );
    }
    println!("  {} different characters", alphabet.len());
    println!("  tokenizer {} with {} ids", tokenizer.kind(), tokenizer.vocab_size());
    for split in &sizes {
        println!(
            "  {:<6} {:>6} documents {:>9} bytes {:>9} tokens",
            split["name"].as_str().unwrap_or_default(),
            split["documents"].to_string(),
            split["bytes"].to_string(),
            split["tokens"].to_string()
        );
    }
    if let Some(baseline) = &baseline {
        print_ngrams(baseline);
    }
    Ok(())
}

fn print_ngrams(best: &BestNGram) {
    println!("  n-gram, additive smoothing 0.01: perplexity by order");
    println!("  {:>3} {:>12} {:>12} {:>14}", "n", "train", "held out", "bits per byte");
    for row in &best.table {
        let mark = if row.n == best.n { "  best" } else { "" };
        println!(
            "  {:>3} {:>12.3} {:>12.3} {:>14.3}{mark}",
            row.n, row.train_perplexity, row.perplexity, row.bits_per_byte
        );
    }
}
