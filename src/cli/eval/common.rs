//! What the batteries share: opening models, progress, and where results go.

use crate::cli::checkpoint::{Opened, newest_run};
use crate::cli::report;
use crate::data::files::{check_writable, pretty, write_atomic};
use crate::device::choose;
use crate::models::Session;
use crate::ops::workloads::workloads;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct ModelArgs {
    /// Run folders or checkpoints; several are shown side by side (default: the newest run under runs/)
    #[arg(value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, default_value = "auto")]
    device: String,
    /// The last checkpoint instead of the best
    #[arg(long)]
    last: bool,
    /// Write the result as JSON to this file, too
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
}

/// A model that is asked.
pub struct Asked {
    /// Its path as given.
    pub name: String,
    pub opened: Opened,
    pub session: Session,
}

impl ModelArgs {
    /// Opens every model, after a look at whether the result can be written.
    pub fn open(&self) -> Result<Vec<Asked>> {
        if let Some(path) = &self.out {
            check_writable(path)?;
        }
        let paths = if self.models.is_empty() { vec![newest_run()?] } else { self.models.clone() };
        let opened = paths.iter().map(|path| Opened::find(path, self.last)).collect::<Result<Vec<_>>>()?;
        let chosen = choose::choose(&self.device, workloads)?;
        let asked = paths.iter().zip(opened).map(|(path, opened)| {
            let session = opened.session(chosen.device.clone())?;
            Ok(Asked { name: path.display().to_string(), opened, session })
        });
        asked.collect()
    }

    /// Prints a result of a battery, as JSON or as a table, and writes it where that was asked.
    pub fn finish(
        &self,
        battery: &str,
        asked: &[Value],
        result: Value,
        json: bool,
        table: impl FnOnce(),
    ) -> Result<()> {
        let mut all = json!({ "battery": battery, "models": asked });
        for (name, value) in result.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        if json {
            report::emit(&all)?;
        } else {
            table();
        }
        if let Some(path) = &self.out {
            write_atomic(path, pretty(&all).as_bytes())?;
            eprintln!("written to {}", path.display());
        }
        Ok(())
    }
}

impl Asked {
    /// What the JSON says of the model.
    pub fn describe(&self) -> Value {
        json!({ "path": self.name, "checkpoint_step": self.opened.step, "tokenizer": self.opened.tokenizer.kind() })
    }
}

pub fn to_value(result: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(result).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))
}

/// Says on standard error how far a battery is: on a terminal one line that moves, else a line for each tenth.
pub fn progress(what: &'static str) -> impl FnMut(usize, usize) {
    let terminal = std::io::stderr().is_terminal();
    let mut shown = 0;
    move |done, total| {
        let part = if terminal { 100 * done / total } else { 10 * done / total * 10 };
        if part <= shown {
            return;
        }
        shown = part;
        let mut err = std::io::stderr().lock();
        // Nothing is lost where nobody reads it.
        let _ = match (terminal, done == total) {
            (true, true) => write!(err, "\r\x1b[K"),
            (true, false) => write!(err, "\r{what}: {part} %"),
            (false, _) => writeln!(err, "{what}: {part} %"),
        };
        let _ = err.flush();
    }
}
