//! `manifest.json`: what ran, where, from which source, and what came out.

use crate::config::Config;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::process::Command;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How a run, or one start of it, stands or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Running,
    /// All steps done.
    Finished,
    /// Validation stopped improving.
    StoppedEarly,
    /// Somebody asked it to stop; the state was saved.
    Interrupted,
    /// It ended with an error.
    Failed,
    /// The process ended without a word.
    Killed,
}

/// Length and hash of one file of the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    pub bytes: u64,
    pub sha256: String,
}

/// One start of the program on this run. Times are UTC, RFC 3339.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub started: String,
    pub ended: Option<String>,
    pub status: Status,
    pub command: Vec<String>,
    pub program_version: String,
    pub git: Option<GitState>,
    pub config_hash: String,
    pub first_step: u64,
    pub last_step: u64,
    pub error: Option<String>,
}

/// State of the git work tree the program was started in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitState {
    pub commit: String,
    /// Tracked files were changed.
    pub dirty: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema_version: u32,
    pub program: String,
    pub preset: String,
    pub status: Status,
    pub seed: u64,
    pub config_hash: String,
    pub parameters: Option<u64>,
    /// Device and driver in words.
    pub device: Option<String>,
    pub host: Host,
    /// Description and hashes of the data, as the data room gives them.
    pub data: serde_json::Value,
    /// Closing numbers: best and final validation loss, tokens, seconds.
    pub results: serde_json::Value,
    pub sessions: Vec<Session>,
    pub artefacts: BTreeMap<String, Artefact>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub os: String,
    pub architecture: String,
    pub cpus: usize,
}

impl Manifest {
    pub(super) fn new(config: &Config, preset: &str) -> Self {
        Self {
            schema_version: 1,
            program: env!("CARGO_PKG_NAME").into(),
            preset: preset.into(),
            status: Status::Running,
            seed: config.train.seed,
            config_hash: config.hash(),
            parameters: None,
            device: None,
            host: Host {
                os: std::env::consts::OS.into(),
                architecture: std::env::consts::ARCH.into(),
                cpus: std::thread::available_parallelism().map_or(1, usize::from),
            },
            data: serde_json::Value::Null,
            results: serde_json::Value::Null,
            sessions: vec![Session::start(config)],
            artefacts: BTreeMap::new(),
        }
    }

    pub fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a manifest is plain data")
    }

    /// Begins another session. One that never said how it ended was killed.
    pub(super) fn reopen(&mut self, config: &Config) {
        for session in self.sessions.iter_mut().filter(|session| session.status == Status::Running) {
            session.status = Status::Killed;
        }
        self.status = Status::Running;
        self.config_hash = config.hash();
        self.sessions.push(Session::start(config));
    }

    /// Notes where this session began.
    pub(super) fn begin(&mut self, step: u64) {
        let session = self.session();
        (session.first_step, session.last_step) = (step, step);
    }

    /// Notes how this session, and with it the run, ended.
    pub(super) fn end(&mut self, status: Status, step: u64, error: Option<String>) {
        self.status = status;
        let session = self.session();
        session.ended = Some(now());
        session.status = status;
        session.last_step = step;
        session.error = error;
    }

    fn session(&mut self) -> &mut Session {
        self.sessions.last_mut().expect("a manifest is made with a session")
    }

    pub(super) fn add_artefact(&mut self, name: &str, bytes: u64, sha256: String) {
        self.artefacts.insert(name.into(), Artefact { bytes, sha256 });
    }
}

impl Session {
    fn start(config: &Config) -> Self {
        Self {
            started: now(),
            ended: None,
            status: Status::Running,
            command: std::env::args().collect(),
            program_version: env!("CARGO_PKG_VERSION").into(),
            git: git_state(),
            config_hash: config.hash(),
            first_step: 0,
            last_step: 0,
            error: None,
        }
    }
}

/// This second, UTC, RFC 3339.
pub fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).expect("a date can be written")
}

/// None without git, or outside a work tree.
fn git_state() -> Option<GitState> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    Some(GitState { commit, dirty: !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_tells_each_session_and_reads_back() {
        let mut manifest = Manifest::new(&Config::default(), "minigpt");
        manifest.begin(0);
        manifest.end(Status::Interrupted, 10, None);
        manifest.reopen(&Config::default());
        manifest.begin(10);
        manifest.reopen(&Config::default());
        manifest.begin(15);
        manifest.end(Status::Failed, 17, Some("numerics: x".into()));
        manifest.add_artefact("loss.svg", 3, "abc".into());
        let back = Manifest::parse(&manifest.to_json()).unwrap();
        assert_eq!(back, manifest);
        let told: Vec<_> = back.sessions.iter().map(|s| (s.status, s.first_step, s.last_step)).collect();
        assert_eq!(told, [(Status::Interrupted, 0, 10), (Status::Killed, 10, 10), (Status::Failed, 15, 17)]);
        assert_eq!(back.status, Status::Failed);
        assert!(back.sessions[0].started.ends_with('Z') && back.sessions[0].ended.is_some());
    }
}
