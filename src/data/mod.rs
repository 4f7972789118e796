//! Corpora, encoded datasets, batches and the n-gram baseline.
//!
//! The flow is `verbs`, `logic_mix` or `text` -> [`TextCorpus`] -> [`dataset::EncodedCorpus`] (tokens, cached on disk) ->
//! `batch` (training batches with a serialisable position, and full validation passes). [`ngram`] scores the
//! same tokens as the model does, so the two perplexities can be compared.

pub mod batch;
pub mod corpus;
pub mod dataset;
pub mod files;
pub mod logic_mix;
pub mod ngram;
pub mod rng;
pub mod text;
pub mod verbs;

pub use batch::{Batch, BatchState, EvalBatches, Sampling, Source, TrainBatches};
pub use corpus::{Layout, Part, TextCorpus};
pub use dataset::{Cache, EncodedCorpus, TokenSplit};

use crate::Result;
use std::path::{Path, PathBuf};
use verbs::split::Policy;

/// Where text comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum CorpusSource {
    /// The generated verb grammar corpus.
    Verbs { seed: u64, policy: Policy },
    /// The generated part of the logic mix.
    LogicMix,
    /// A folder written by `lynx-gpu data logic-mix`.
    LogicMixFolder { path: PathBuf },
    /// A UTF-8 file, its contiguous tail held out.
    File { path: PathBuf, val_fraction: f64 },
}

impl Default for CorpusSource {
    fn default() -> Self {
        CorpusSource::Verbs { seed: verbs::DEFAULT_SEED, policy: Policy::default() }
    }
}

impl CorpusSource {
    /// `verbs` and `logic-mix` name generated corpora; anything else is a path (a file called verbs is `./verbs`): a folder is a
    /// written logic mix, a file is text.
    pub fn parse(data: &str, seed: u64, policy: Policy, val_fraction: f64) -> Self {
        match data {
            "verbs" => CorpusSource::Verbs { seed, policy },
            "logic-mix" => CorpusSource::LogicMix,
            path if Path::new(path).is_dir() => CorpusSource::LogicMixFolder { path: path.into() },
            path => CorpusSource::File { path: path.into(), val_fraction },
        }
    }

    /// Generates or reads the text.
    pub fn load(&self) -> Result<TextCorpus> {
        match self {
            CorpusSource::Verbs { seed, policy } => verbs::text_corpus(*seed, policy),
            CorpusSource::LogicMix => logic_mix::export::generated(),
            CorpusSource::LogicMixFolder { path } => logic_mix::export::load(path),
            CorpusSource::File { path, val_fraction } => text::load(path, *val_fraction),
        }
    }
}
