//! Checkpoints: folders `step-N` that are complete or absent, with the pointers `last` and `best` beside them.
//!
//! A checkpoint is written into a temporary folder, every file is fsynced, `manifest.json` with the SHA-256 of every file
//! comes last, and then the folder is renamed. Killing the process at any point leaves the checkpoints before it as they were.
//! `last` names the step to resume from; it moves only after its checkpoint is complete.

use super::files;
use super::model::{ModelState, NamedTensor, StateLayout, TensorSpec};
use super::schedule::EarlyStopping;
use super::tensor_file::{self, Checksums};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const WEIGHTS_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";
const MANIFEST_FILE: &str = "manifest.json";
const SCHEMA_VERSION: u32 = 1;

/// Where training stands, besides the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimiser steps done. With `seed` it fixes the learning rate and every random number of the steps to come.
    pub step: u64,
    pub seed: u64,
    /// [`crate::config::Config::hash`] of the run.
    pub config_hash: String,
    /// What the batch source needs to go on.
    pub data: serde_json::Value,
    pub early_stopping: EarlyStopping,
    /// Target tokens seen.
    pub tokens: u64,
    /// Wall-clock seconds of training so far.
    #[serde(with = "super::exact")]
    pub seconds: f64,
}

/// Text that makes the folder a model other tools can open, both in Hugging Face's form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFiles {
    /// `config.json`
    pub config_json: String,
    /// `tokenizer.json`; empty = not written.
    pub tokenizer_json: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    schema_version: u32,
    step: u64,
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
    /// CRC-32C of each tensor, for safetensors files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tensors: Checksums,
}

/// Which checkpoint to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Last,
    Best,
    Step(u64),
}

impl std::str::FromStr for Which {
    type Err = Error;

    /// `last`, `best`, `step-N` or `N`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "last" => Ok(Which::Last),
            "best" => Ok(Which::Best),
            text => text.strip_prefix("step-").unwrap_or(text).parse().map(Which::Step).map_err(|_| {
                Error::Checkpoint(format!("there is no checkpoint called \"{text}\"; use last, best or step-N"))
            }),
        }
    }
}

/// What was read back.
#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub train: TrainState,
    pub model: ModelState,
}

/// The `checkpoints` folder of one run. The run's lock makes this process its only writer.
#[derive(Debug)]
pub struct CheckpointStore {
    folder: PathBuf,
    keep: usize,
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Checkpoint(format!("{}: {what}", path.display()))
}

fn folder_name(step: u64) -> String {
    format!("step-{step}")
}

impl CheckpointStore {
    /// `keep`: how many of the newest checkpoints stay, at least 1; the best one stays besides.
    pub fn new(folder: PathBuf, keep: usize) -> Self {
        Self { folder, keep: keep.max(1) }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(folder_name(step))
    }

    /// Steps that have a complete checkpoint folder, in ascending order.
    pub fn steps(&self) -> Vec<u64> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut steps: Vec<u64> = entries
            .filter(|entry| entry.path().join(MANIFEST_FILE).is_file())
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    fn pointer(&self, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
        let step = text.trim().strip_prefix("step-")?.parse().ok()?;
        self.path(step).join(MANIFEST_FILE).is_file().then_some(step)
    }

    fn point(&self, name: &str, step: u64) -> Result<()> {
        files::write_atomic(&self.folder.join(name), format!("{}\n", folder_name(step)).as_bytes())
    }

    /// The step `which` stands for, if there is such a checkpoint.
    pub fn find(&self, which: Which) -> Option<u64> {
        match which {
            Which::Last => self.pointer("last").or_else(|| self.steps().last().copied()),
            Which::Best => self.pointer("best"),
            Which::Step(step) => self.steps().contains(&step).then_some(step),
        }
    }

    /// Writes the checkpoint of `train.step`, moves `last` to it (and `best`, if asked), and drops old ones.
    ///
    /// # Errors
    /// `Error::Io` naming the path, for example when the disk is full. Earlier checkpoints are untouched then.
    pub fn save(&self, train: &TrainState, model: &ModelState, extra: &ModelFiles, is_best: bool) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io(&self.folder, e))?;
        self.remove_leftovers();
        let temporary = self.folder.join(format!(".tmp-{}", folder_name(train.step)));
        let path = self.path(train.step);
        let written = write_folder(&temporary, train, model, extra).and_then(|()| self.move_in(&temporary, &path));
        if let Err(error) = written {
            let _ = std::fs::remove_dir_all(&temporary);
            return Err(error);
        }
        self.point("last", train.step)?;
        if is_best {
            self.point("best", train.step)?;
        }
        self.prune(train.step);
        Ok(path)
    }

    /// Renames the finished folder into place. A folder already there (training went back and came here again) steps aside first.
    fn move_in(&self, temporary: &Path, path: &Path) -> Result<()> {
        if path.exists() {
            let aside = path.with_file_name(format!(".old-{}", path.file_name().unwrap_or_default().to_string_lossy()));
            std::fs::rename(path, &aside).map_err(|e| Error::io(path, e))?;
            std::fs::rename(temporary, path).map_err(|e| Error::io(path, e))?;
            let _ = std::fs::remove_dir_all(aside);
        } else {
            std::fs::rename(temporary, path).map_err(|e| Error::io(path, e))?;
        }
        files::sync_folder(&self.folder)
    }

    /// Removes what interrupted saves left behind.
    fn remove_leftovers(&self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let half_removed = name.starts_with("step-") && !entry.path().join(MANIFEST_FILE).exists();
            if name.starts_with(".tmp-step-") || name.starts_with(".old-step-") || half_removed {
                let _ = std::fs::remove_dir_all(entry.path());
            } else if name.starts_with(".tmp-") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Keeps the newest `keep` checkpoints up to `now` and the best. Later ones, of a future that was abandoned by going
    /// back, stay until they are written again.
    fn prune(&self, now: u64) {
        let best = self.pointer("best");
        let past: Vec<u64> = self.steps().into_iter().filter(|&step| step <= now).collect();
        for &step in past.iter().rev().skip(self.keep).filter(|&&step| Some(step) != best) {
            // Without its manifest a folder is no checkpoint, so a removal cut short leaves nothing that looks like one.
            let _ = std::fs::remove_file(self.path(step).join(MANIFEST_FILE));
            let _ = std::fs::remove_dir_all(self.path(step));
        }
    }

    /// Makes `step` the one to go on from, and `best` what its state says.
    pub fn rewind(&self, step: u64, best: Option<u64>) -> Result<()> {
        self.point("last", step)?;
        match best.filter(|best| self.steps().contains(best)) {
            Some(best) => self.point("best", best),
            None => {
                let _ = std::fs::remove_file(self.folder.join("best"));
                Ok(())
            }
        }
    }

    /// Reads a checkpoint and checks it: hashes of all files, then names, shapes and types of all tensors.
    ///
    /// # Errors
    /// `Error::Checkpoint` naming the file and tensor at fault, and the newest other checkpoint that is sound.
    pub fn load(&self, which: Which, layout: &StateLayout) -> Result<Loaded> {
        self.load_with(which, |step| self.load_step(step, layout))
    }

    /// The weights alone, to use a model without training it; checked as by [`CheckpointStore::load`].
    pub fn load_weights(&self, which: Which, specs: &[TensorSpec]) -> Result<Vec<NamedTensor>> {
        self.load_with(which, |step| {
            let path = self.path(step);
            verify(&path)?;
            tensor_file::read(&path.join(WEIGHTS_FILE), specs)
        })
    }

    fn load_with<T>(&self, which: Which, read: impl Fn(u64) -> Result<T>) -> Result<T> {
        let Some(step) = self.find(which) else {
            let have: Vec<String> = self.steps().into_iter().map(folder_name).collect();
            let have = if have.is_empty() { "there are none".into() } else { format!("there are {}", have.join(", ")) };
            return Err(damaged(&self.folder, format!("no checkpoint for {which:?}; {have}")));
        };
        read(step).map_err(|error| match error {
            // Its files are as they were saved, so it is the model asked for that is another one.
            Error::Checkpoint(message) if verify(&self.path(step)).is_ok() => Error::Checkpoint(format!(
                "{message}; the checkpoint is undamaged but was made with other settings: keep those in the run's config.toml"
            )),
            Error::Checkpoint(message) => Error::Checkpoint(format!("{message}; {}", self.offer_instead(step))),
            error => error,
        })
    }

    fn load_step(&self, step: u64, layout: &StateLayout) -> Result<Loaded> {
        let path = self.path(step);
        verify(&path)?;
        let state_path = path.join(STATE_FILE);
        let train: TrainState = serde_json::from_str(&files::read_text(&state_path)?)
            .map_err(|e| damaged(&state_path, format!("not a training state: {e}")))?;
        if train.step != step {
            return Err(damaged(&state_path, format!("belongs to step {}, not {step}", train.step)));
        }
        let weights = tensor_file::read(&path.join(WEIGHTS_FILE), &layout.weights)?;
        let optimizer = tensor_file::read_with(&path.join(OPTIMIZER_FILE), &layout.optimizer, &layout.optional)?;
        Ok(Loaded { path, train, model: ModelState { weights, optimizer } })
    }

    fn offer_instead(&self, bad: u64) -> String {
        let sound = |step: &u64| *step != bad && verify(&self.path(*step)).is_ok();
        let steps = self.steps();
        let earlier = steps.iter().rev().filter(|step| **step < bad).find(|step| sound(step));
        match earlier.or_else(|| steps.iter().rev().find(|step| sound(step))) {
            Some(step) => format!("step-{step} is sound: go on from it with `--checkpoint step-{step}`"),
            None => "no other checkpoint in this run is sound".into(),
        }
    }
}

fn write_folder(folder: &Path, train: &TrainState, model: &ModelState, extra: &ModelFiles) -> Result<()> {
    std::fs::create_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut records = BTreeMap::new();
    let mut record = |name: &str, tensors: Checksums| -> Result<()> {
        let (bytes, sha256) = files::fingerprint(&folder.join(name))?;
        records.insert(name.to_string(), FileRecord { bytes, sha256, tensors });
        Ok(())
    };
    for (name, tensors) in [(WEIGHTS_FILE, &model.weights), (OPTIMIZER_FILE, &model.optimizer)] {
        record(name, tensor_file::write(&folder.join(name), tensors)?)?;
    }
    let state = serde_json::to_string_pretty(train).expect("a training state is plain data");
    for (name, text) in
        [("config.json", &extra.config_json), ("tokenizer.json", &extra.tokenizer_json), (STATE_FILE, &state)]
    {
        if !text.is_empty() {
            files::write_synced(&folder.join(name), text.as_bytes())?;
            record(name, Checksums::new())?;
        }
    }
    let manifest = Manifest { schema_version: SCHEMA_VERSION, step: train.step, files: records };
    let manifest = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
    files::write_synced(&folder.join(MANIFEST_FILE), manifest.as_bytes())?;
    files::sync_folder(folder)
}

/// Compares every file of a checkpoint folder with its manifest.
///
/// # Errors
/// `Error::Checkpoint` naming the file, and the tensor where the damage can be placed.
pub fn verify(folder: &Path) -> Result<()> {
    let path = folder.join(MANIFEST_FILE);
    let manifest: Manifest = serde_json::from_str(&files::read_text(&path)?)
        .map_err(|e| damaged(&path, format!("not a checkpoint manifest: {e}")))?;
    if manifest.schema_version != SCHEMA_VERSION {
        return Err(damaged(
            &path,
            format!("schema version {}, this program reads {SCHEMA_VERSION}", manifest.schema_version),
        ));
    }
    for name in [WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE] {
        if !manifest.files.contains_key(name) {
            return Err(damaged(&path, format!("does not list {name}")));
        }
    }
    for (name, expected) in &manifest.files {
        let path = folder.join(name);
        if !path.is_file() {
            return Err(damaged(&path, "is missing"));
        }
        let (bytes, sha256) = files::fingerprint(&path)?;
        if bytes != expected.bytes {
            let how = if bytes < expected.bytes { "is truncated" } else { "has grown" };
            return Err(damaged(&path, format!("{how}: {bytes} bytes, the manifest says {}", expected.bytes)));
        }
        if sha256 != expected.sha256 {
            return Err(damaged(
                &path,
                match tensor_file::first_damaged(&path, &expected.tensors) {
                    Some(tensor) => format!("is damaged: the bytes of tensor `{tensor}` are not those that were saved"),
                    None => "is damaged: its SHA-256 is not the one in the manifest".into(),
                },
            ));
        }
    }
    Ok(())
}

/// The model folder that `path` means: a run folder gives its best checkpoint (or its last, if none is best), anything
/// else must hold `model.safetensors` itself. A checkpoint of ours is checked against its manifest.
///
/// # Errors
/// `Error::Checkpoint` when there is no model there, or it is damaged.
pub fn model_folder(path: &Path) -> Result<PathBuf> {
    let folder = if path.join("checkpoints").is_dir() {
        let store = CheckpointStore::new(path.join("checkpoints"), 1);
        let step = store.find(Which::Best).or_else(|| store.find(Which::Last));
        store.path(step.ok_or_else(|| damaged(path, "this run has no checkpoint yet"))?)
    } else {
        path.to_path_buf()
    };
    if !folder.join(WEIGHTS_FILE).is_file() {
        return Err(damaged(
            path,
            format!(
                "neither a run folder nor a model folder (no checkpoints, no {WEIGHTS_FILE}); give the path a training run printed"
            ),
        ));
    }
    if folder.join(STATE_FILE).is_file() {
        verify(&folder)?;
    }
    Ok(folder)
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
