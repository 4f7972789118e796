//! `lynx-gpu bench MODEL`: tokens per second of a model with its weights, in the manner of llama.cpp's `llama-bench`.

use super::Spinner;
use crate::bench::generation::{self, Options};
use crate::cli::model::{ActivationType, CacheType, ModelOptions};
use crate::{Error, Result};
use std::path::Path;

/// Flags that only a MODEL has.
#[derive(clap::Args)]
pub struct Args {
    /// With a MODEL: runs of each test
    #[arg(short = 'r', long, default_value = "5", value_name = "N", requires = "model")]
    repeats: usize,
    /// With a MODEL: threads of the CPU (default: one a core)
    #[arg(short = 't', long, value_name = "N", requires = "model")]
    threads: Option<usize>,
    /// With a MODEL: tokens whose keys and values are kept (default: what the tests need)
    #[arg(long, value_name = "N", requires = "model")]
    context: Option<usize>,
    /// With a MODEL: what keys and values are kept as
    #[arg(long, value_enum, default_value_t, value_name = "TYPE", requires = "model")]
    cache_type: CacheType,
    /// With a MODEL: what products with quantised weights do with the other operand
    #[arg(long, value_enum, default_value_t, value_name = "TYPE", requires = "model")]
    activations: ActivationType,
    /// With a MODEL: keep quantised weights as f32 in memory
    #[arg(long, requires = "model")]
    widen: bool,
}

pub fn run(path: &Path, device: String, (prompt, generate): (usize, usize), args: Args, json: bool) -> Result<()> {
    if args.repeats == 0 || (prompt, generate) == (0, 0) || args.threads == Some(0) {
        return Err(Error::Config("nothing to measure: -r and -t are at least 1, and one of -p and -n is".into()));
    }
    let open = ModelOptions {
        device: device.clone(),
        last: false,
        tokenizer: None,
        context: args.context,
        cache_type: args.cache_type,
        no_cache: false,
        when_full: Default::default(),
        activations: args.activations,
        widen: args.widen,
    };
    let found = open.find(path)?;
    found.notes().iter().for_each(|note| eprintln!("note: {note}"));
    let options = Options { device, threads: args.threads, prompt, generate, repeats: args.repeats };
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut on = |target: &crate::bench::Target| {
        let mut session = open.session(&found, target.device.clone())?;
        if args.context.is_none() && session.keeps() {
            // As llama-bench: no more than the tests need.
            let context = prompt.max(generate).min(session.model().context());
            let keeping = session.keeping();
            session.keep(crate::models::session::kept::Keeping { context: Some(context), ..keeping })?;
        }
        Ok(session)
    };
    let table = generation::measure((&name, file_bytes(path)), &options, &mut on, &mut Spinner::new())?;
    if json {
        return crate::cli::report::emit(&table);
    }
    print!("{}", generation::text(&table));
    table.warnings.iter().for_each(|w| eprintln!("warning: {w}"));
    Ok(())
}

/// Of a file, or of all files directly in a folder.
fn file_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |m| m.len());
    };
    entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}
