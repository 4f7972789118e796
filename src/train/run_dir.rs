//! The folder a run writes: who owns it, what is in it.
//!
//! ```text
//! manifest.json    what ran: program, git state, configuration hash, seed, device, times, hashes of artefacts
//! config.toml      the resolved configuration
//! metrics.jsonl    one line per measurement
//! events.out.*     TensorBoard
//! loss.svg         the loss curve
//! samples.txt      generated text
//! checkpoints/     see `checkpoint`
//! run.lock         held by the process that trains here
//! ```

use super::checkpoint::CheckpointStore;
use super::files;
use super::manifest::Manifest;
use crate::config::Config;
use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::macros::format_description;

const LOCK_FILE: &str = "run.lock";
const PID_FILE: &str = "run.pid";
const CONFIG_FILE: &str = "config.toml";
const MANIFEST_FILE: &str = "manifest.json";

/// A run folder this process may write to.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    pub manifest: Manifest,
    _lock: RunLock,
}

/// The operating system's lock on `run.lock`. It ends with the process, however that ends, so it is never stale.
#[derive(Debug)]
struct RunLock {
    file: File,
    pid_path: PathBuf,
}

impl RunLock {
    fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK_FILE);
        // The process id has its own file: on Windows nobody can read a file while another process has it locked.
        let pid_path = folder.join(PID_FILE);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = std::fs::read_to_string(&pid_path).unwrap_or_default();
                let owner =
                    if owner.trim().is_empty() { String::new() } else { format!(" (process {})", owner.trim()) };
                return Err(Error::Config(format!(
                    "{}: another run{owner} is training in this folder; wait for it, stop it, or choose another folder",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
        }
        std::fs::write(&pid_path, format!("{}\n", std::process::id())).map_err(|e| Error::io(&pid_path, e))?;
        Ok(Self { file, pid_path })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.pid_path);
        // Closing alone is not enough: a child process between fork and exec still holds a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

impl RunDir {
    /// Makes a new run folder under `config.run.root`, named `config.run.name` or else by time and `preset`.
    ///
    /// # Errors
    /// `Error::Io` when the folder cannot be made; `Error::Config` when it already holds a run.
    pub fn create(config: &Config, preset: &str) -> Result<Self> {
        let root = Path::new(&config.run.root);
        let path = if config.run.name.is_empty() {
            std::fs::create_dir_all(root).map_err(|e| Error::io(root, e))?;
            fresh_folder(root, preset)?
        } else {
            let path = root.join(&config.run.name);
            std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
            path
        };
        let lock = RunLock::take(&path)?;
        if path.join(MANIFEST_FILE).exists() {
            return Err(Error::Config(format!(
                "{0}: this folder already holds a run; go on with `{1}`, or choose another name",
                path.display(),
                resume_command(&path)
            )));
        }
        let run = Self { manifest: Manifest::new(config, preset), path, _lock: lock };
        run.write_config(config)?;
        run.write_manifest()?;
        Ok(run)
    }

    fn write_config(&self, config: &Config) -> Result<()> {
        files::write_atomic(&self.path.join(CONFIG_FILE), config.to_toml().as_bytes())
    }

    /// Notes that training begins at `step` with `config`: from here on these are the run's settings.
    pub fn begin(&mut self, config: &Config, step: u64) -> Result<()> {
        self.manifest.begin(step);
        self.write_config(config)?;
        self.write_manifest()
    }

    /// Takes over an existing run folder and reads its configuration, with `sets` applied on top. Nothing in it changes before
    /// [`RunDir::begin`]: settings that turn out not to fit the checkpoint leave the run as it was.
    ///
    /// # Errors
    /// `Error::Config` when the folder holds no run, or another process is training in it.
    pub fn open(path: &Path, sets: &[String]) -> Result<(Self, Config)> {
        let manifest_path = path.join(MANIFEST_FILE);
        let config_path = path.join(CONFIG_FILE);
        if !manifest_path.is_file() || !config_path.is_file() {
            return Err(Error::Config(format!(
                "{}: not a run folder ({MANIFEST_FILE} and {CONFIG_FILE} are expected in it)",
                path.display()
            )));
        }
        let lock = RunLock::take(path)?;
        let mut config = Config::parse(&files::read_text(&config_path)?, &config_path.to_string_lossy(), sets)?;
        // A run keeps its folder, wherever that has been moved to.
        config.run.name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let manifest = Manifest::parse(&files::read_text(&manifest_path)?)
            .map_err(|e| Error::Config(format!("{}: not a run manifest: {e}", manifest_path.display())))?;
        let mut run = Self { path: path.to_path_buf(), manifest, _lock: lock };
        run.manifest.reopen(&config);
        Ok((run, config))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn checkpoints(&self, keep: usize) -> CheckpointStore {
        CheckpointStore::new(self.path.join("checkpoints"), keep)
    }

    /// Writes `manifest.json` as it stands.
    pub fn write_manifest(&self) -> Result<()> {
        files::write_atomic(&self.path.join(MANIFEST_FILE), self.manifest.to_json().as_bytes())
    }

    /// Records length and SHA-256 of a file or of every file in a folder of the run. What is not there is left out.
    pub fn add_artefact(&mut self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        if path.is_dir() {
            let mut names: Vec<String> = std::fs::read_dir(&path)
                .map_err(|e| Error::io(&path, e))?
                .flatten()
                .map(|entry| format!("{name}/{}", entry.file_name().to_string_lossy()))
                .collect();
            names.sort();
            names.iter().try_for_each(|name| self.add_artefact(name))
        } else if path.is_file() {
            let (bytes, sha256) = files::fingerprint(&path)?;
            self.manifest.add_artefact(name, bytes, sha256);
            Ok(())
        } else {
            Ok(())
        }
    }

    /// The command that goes on with this run.
    pub fn resume_command(&self) -> String {
        resume_command(&self.path)
    }
}

/// `lynx-gpu train --resume FOLDER`, quoted for a shell where it must be.
pub fn resume_command(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/\\._-:+=@,".contains(c);
    if path.chars().all(plain) {
        format!("lynx-gpu train --resume {path}")
    } else if cfg!(windows) {
        format!("lynx-gpu train --resume \"{path}\"")
    } else {
        format!("lynx-gpu train --resume '{}'", path.replace('\'', r"'\''"))
    }
}

/// Makes `TIME-PRESET` under `root`, with a number behind it when two runs start in the same second.
fn fresh_folder(root: &Path, preset: &str) -> Result<PathBuf> {
    let stamp = OffsetDateTime::now_utc()
        .format(format_description!("[year]-[month]-[day]T[hour]-[minute]-[second]Z"))
        .expect("a date can be written");
    for attempt in 1u32.. {
        let suffix = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        let path = root.join(format!("{stamp}-{preset}{suffix}"));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(&path, e)),
        }
    }
    unreachable!("one of four billion names is free")
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Status;
    use super::*;

    fn config(root: &Path, name: &str) -> Config {
        let mut config = Config::parse("", "test", &[]).unwrap();
        config.run.root = root.to_string_lossy().into_owned();
        config.run.name = name.into();
        config
    }

    #[test]
    fn a_run_is_named_by_time_and_preset_and_no_two_runs_share_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir.path().join("runs"), "");
        let runs: Vec<RunDir> = (0..3).map(|_| RunDir::create(&config, "minigpt").unwrap()).collect();
        for run in &runs {
            let name = run.path().file_name().unwrap().to_string_lossy().into_owned();
            assert!(name.starts_with("20") && name.contains("Z-minigpt"), "{name}");
            assert!(run.file("config.toml").is_file() && run.file("manifest.json").is_file());
        }
        assert!(runs[0].path() != runs[1].path() && runs[1].path() != runs[2].path());
    }

    #[test]
    fn two_runs_in_one_folder_are_refused_with_the_owners_process() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "mine");
        let first = RunDir::create(&config, "minigpt").unwrap();
        let error = RunDir::create(&config, "minigpt").unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        let error = RunDir::open(first.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("another run"), "{error}");
        drop(first);
        let error = RunDir::create(&config, "minigpt").unwrap_err().to_string();
        assert!(error.contains("already holds a run") && error.contains("train --resume"), "{error}");
        assert!(RunDir::open(&dir.path().join("mine"), &[]).is_ok());
    }

    #[test]
    fn what_a_dead_process_left_locks_nobody_out_even_if_its_number_lives_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "mine");
        drop(RunDir::create(&config, "minigpt").unwrap());
        let path = dir.path().join("mine");
        // Process 1 is always alive; the file alone must not count.
        std::fs::write(path.join("run.pid"), "1\n").unwrap();
        std::fs::write(path.join("run.lock"), "").unwrap();
        assert!(RunDir::open(&path, &[]).is_ok());
    }

    #[test]
    fn reopening_keeps_the_configuration_and_applies_overrides_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "mine");
        let run = RunDir::create(&config, "minigpt").unwrap();
        let path = run.path().to_path_buf();
        drop(run);
        let (mut run, reopened) = RunDir::open(&path, &[]).unwrap();
        assert_eq!(reopened, config);
        run.begin(&reopened, 0).unwrap();
        drop(run);
        let (mut run, longer) = RunDir::open(&path, &["train.steps=4000".into()]).unwrap();
        assert_eq!(longer.train.steps, 4000);
        run.begin(&longer, 0).unwrap();
        drop(run);
        let (run, again) = RunDir::open(&path, &[]).unwrap();
        assert_eq!(again, longer);
        assert_eq!(run.manifest.status, Status::Running);
        assert_eq!(run.manifest.sessions.len(), 4);
        assert!(run.manifest.sessions[..3].iter().all(|session| session.status == Status::Killed));
    }

    #[test]
    fn opening_a_run_changes_nothing_in_it_before_training_begins() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "mine");
        let path = RunDir::create(&config, "minigpt").unwrap().path().to_path_buf();
        let contents = || [CONFIG_FILE, MANIFEST_FILE].map(|name| std::fs::read(path.join(name)).unwrap());
        let before = contents();
        drop(RunDir::open(&path, &["model.width=128".into()]).unwrap());
        assert_eq!(contents(), before);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let config = config(Path::new("/dev/null/x"), "");
        let error = RunDir::create(&config, "minigpt").unwrap_err();
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains("/dev/null/x"), "{error}");
    }

    #[test]
    fn a_folder_without_a_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = RunDir::open(dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("not a run folder"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written there");
    }

    #[test]
    fn resume_commands_can_be_pasted() {
        assert_eq!(resume_command(Path::new("runs/a-b")), "lynx-gpu train --resume runs/a-b");
        if cfg!(unix) {
            assert_eq!(resume_command(Path::new("my run's")), r"lynx-gpu train --resume 'my run'\''s'");
        }
    }
}
