//! Opening what training wrote: a run folder, or one checkpoint in it.

use crate::config::Config;
use crate::device::Device;
use crate::models::{Session, setup};
use crate::tokenizer::Tokenizer;
use crate::train::checkpoint::{CheckpointStore, Which};
use crate::train::files;
use crate::train::model::{ModelState, TrainModel};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A trained model: its configuration, tokenizer and where its weights are.
pub struct Opened {
    pub config: Config,
    pub tokenizer: Tokenizer,
    store: CheckpointStore,
    which: Which,
    pub step: u64,
}

impl Opened {
    /// `path` is a run folder (its best checkpoint, else its last) or a checkpoint folder inside one.
    pub fn find(path: &Path, last: bool) -> Result<Self> {
        let (run, step) = locate(path)?;
        let config_path = run.join("config.toml");
        let mut config = Config::parse(&files::read_text(&config_path)?, &config_path.to_string_lossy(), &[])?;
        let store = CheckpointStore::new(run.join("checkpoints"), config.train.keep_checkpoints);
        let which = match step {
            Some(step) => Which::Step(step),
            None if last || store.find(Which::Best).is_none() => Which::Last,
            None => Which::Best,
        };
        let step = store.find(which).ok_or_else(|| {
            Error::Checkpoint(format!("{}: the run has no checkpoint yet; train it for longer", run.display()))
        })?;
        let tokenizer = Tokenizer::load(&store.path(step).join("tokenizer.json"))?;
        config.set_vocab_size(tokenizer.vocab_size())?;
        Ok(Opened { config, tokenizer, store, which, step })
    }

    /// The model with its weights on `device`.
    pub fn session(&self, device: Device) -> Result<Session> {
        let model = setup::model(&self.config.model)?;
        let (optimizer, seed) = (self.config.optimizer.clone(), self.config.train.seed);
        let mut session = Session::for_inference(model, self.tokenizer.clone(), optimizer, device, seed)?
            .stored_in(self.config.train.precision);
        let weights = self.store.load_weights(self.which, &session.layout().weights)?;
        session.load_state(ModelState { weights, optimizer: vec![] })?;
        Ok(session)
    }
}

/// The run folder of `path`, and the step if `path` is a checkpoint.
fn locate(path: &Path) -> Result<(PathBuf, Option<u64>)> {
    if path.join("config.toml").is_file() {
        return Ok((path.to_path_buf(), None));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let step = name.strip_prefix("step-").and_then(|s| s.parse().ok());
    let run = path.parent().and_then(Path::parent);
    match (run, step) {
        (Some(run), Some(step)) if path.is_dir() && run.join("config.toml").is_file() => {
            Ok((run.to_path_buf(), Some(step)))
        }
        _ => Err(Error::Checkpoint(format!(
            "{}: neither a run folder (with config.toml) nor a checkpoint in one (checkpoints/step-N)",
            path.display()
        ))),
    }
}

/// The newest run folder under `runs/`, for commands without an argument.
pub fn newest_run() -> Result<PathBuf> {
    let runs = Path::new("runs");
    let newest = std::fs::read_dir(runs).ok().and_then(|entries| {
        let folders = entries.flatten().map(|e| e.path()).filter(|p| p.join("checkpoints").is_dir());
        folders.max_by_key(|p| p.metadata().and_then(|m| m.modified()).ok())
    });
    newest.ok_or_else(|| Error::Checkpoint("no run under runs/: train a model first, or name its folder".into()))
}

/// The tokenizer that a run's checkpoints were made with, if it has one yet.
pub fn tokenizer_of(run: &Path) -> Result<Option<Tokenizer>> {
    let store = CheckpointStore::new(run.join("checkpoints"), 1);
    match store.find(Which::Last).map(|step| store.path(step).join("tokenizer.json")) {
        Some(path) if path.is_file() => Tokenizer::load(&path).map(Some),
        _ => Ok(None),
    }
}
