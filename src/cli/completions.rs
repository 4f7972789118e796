//! `lynx-gpu completions`: shell completions and manual pages, from the same definitions as the commands.

use crate::{Error, Result};
use clap::CommandFactory;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Shell to write completions for (to stdout)
    #[arg(value_enum, required_unless_present = "man")]
    shell: Option<clap_complete::Shell>,
    /// Write manual pages into this folder instead
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
}

pub fn run(args: Args, _json: bool) -> Result<()> {
    let mut command = super::Cli::command();
    if let Some(folder) = &args.man {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        return clap_mangen::generate_to(command, folder).map_err(|e| Error::io(folder, e));
    }
    if let Some(shell) = args.shell {
        clap_complete::generate(shell, &mut command, "lynx-gpu", &mut std::io::stdout());
    }
    Ok(())
}
