//! `lynx-gpu export`: a trained model as a file of another program.

use super::checkpoint::newest_run;
use super::convert::{parse_type, write_and_tell};
use crate::Result;
use crate::models::files::write::{Target, WriteOptions};
use crate::models::files::{self, OpenOptions};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Run folder or checkpoint (default: the newest run under runs/)
    model: Option<PathBuf>,
    /// Write a GGUF file, which llama.cpp runs
    #[arg(long, value_name = "FILE", required_unless_present = "hf")]
    gguf: Option<PathBuf>,
    /// Write a Hugging Face folder, which transformers loads
    #[arg(long, value_name = "DIR")]
    hf: Option<PathBuf>,
    /// Type of the matrices (default: f32, as they were trained)
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The last checkpoint instead of the best
    #[arg(long)]
    last: bool,
    /// Replace what is there
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let path = args.model.map_or_else(newest_run, Ok)?;
    let options = WriteOptions { format: args.kind.as_deref().map(parse_type).transpose()?, force: args.force };
    let model = files::open_with(&path, &OpenOptions { last: args.last, ..OpenOptions::default() })?;
    let targets = [(args.gguf, Target::Gguf), (args.hf, Target::HuggingFace)];
    for (path, target) in targets.into_iter().filter_map(|(path, target)| Some((path?, target))) {
        write_and_tell(&model, &path, target, &options, json)?;
    }
    Ok(())
}
