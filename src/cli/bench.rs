//! `lynx-gpu bench`: what the devices of this machine can do at most, and how near each kernel comes.

use crate::bench::{self, Options, Progress, Report};
use crate::{Error, Result, cache};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
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
}

pub fn run(args: Args, json: bool) -> Result<()> {
    if !args.roofline {
        return Err(Error::Config("use --roofline".into()));
    }
    // Before minutes of measuring.
    writable(&args.out)?;
    let options = Options { device: args.device, filter: args.filter, quick: args.quick };
    let report = bench::roofline(&options, &mut Spinner::new())?;
    let text = to_json(&report)?;
    let path = args.out.join("roofline.json");
    cache::replace(&path, text.as_bytes())?;
    if json {
        println!("{text}");
    } else {
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

fn to_json(report: &Report) -> Result<String> {
    serde_json::to_string_pretty(report).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))
}

/// Makes the folder and sees that files can be made in it.
fn writable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    tempfile::NamedTempFile::new_in(folder).map(|_| ()).map_err(|e| Error::io(folder, e))
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
