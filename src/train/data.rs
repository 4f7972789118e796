//! From a configuration to tokens and batches.

use super::model::{BatchSource, EvalSource};
use crate::config::{Config, TokenizerKind};
use crate::data::{Batch, BatchState, Cache, EncodedCorpus, EvalBatches, Source, TextCorpus, TrainBatches};
use crate::error::{Error, Result};
use crate::tokenizer::{Kind, Tokenizer};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

impl BatchSource for TrainBatches {
    fn next_batch(&mut self) -> Result<Batch> {
        Ok(TrainBatches::next_batch(self))
    }

    fn state(&self) -> serde_json::Value {
        serde_json::to_value(TrainBatches::state(self)).expect("a position is plain data")
    }

    fn restore(&mut self, state: &serde_json::Value) -> Result<()> {
        let state: BatchState = serde_json::from_value(state.clone())
            .map_err(|e| Error::Checkpoint(format!("the saved data position cannot be read: {e}")))?;
        TrainBatches::restore(self, &state)
    }
}

impl EvalSource for EvalBatches {
    fn len(&self) -> usize {
        EvalBatches::len(self)
    }

    fn batch(&mut self, index: usize) -> Result<Batch> {
        Ok(EvalBatches::batch(self, index))
    }

    fn sources(&self) -> &[Source] {
        EvalBatches::sources(self)
    }

    fn sources_of(&self, index: usize) -> &[usize] {
        EvalBatches::sources_of(self, index)
    }
}

/// Text, tokenizer and tokens of one run.
pub struct Prepared {
    pub text: TextCorpus,
    pub tokenizer: Tokenizer,
    pub corpus: EncodedCorpus,
}

impl Prepared {
    /// Loads the corpus, makes or loads the tokenizer, encodes the text, and settles `config.model.vocab_size`.
    ///
    /// With `tokenizer`, that one is used: a resumed run keeps the tokenizer of its checkpoint.
    ///
    /// # Errors
    /// `Error::Data` for text that cannot be used; `Error::Config` when the model's vocabulary is too small for the tokenizer.
    pub fn new(config: &mut Config, tokenizer: Option<Tokenizer>, cache: &Cache) -> Result<Self> {
        let text = config.data.load()?;
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => {
                let kind = match config.tokenizer.kind {
                    TokenizerKind::Char => Some(Kind::Char),
                    TokenizerKind::Byte => Some(Kind::Byte),
                    TokenizerKind::Bpe => Some(Kind::Bpe { vocab_size: config.tokenizer.vocab_size }),
                    TokenizerKind::File => None,
                };
                match kind {
                    Some(kind) => Tokenizer::for_corpus(&text, kind)?,
                    None => Tokenizer::load(Path::new(&config.tokenizer.path))?,
                }
            }
        };
        config.set_vocab_size(tokenizer.vocab_size())?;
        let corpus = EncodedCorpus::encode(&text, &tokenizer, cache)?;
        Ok(Self { text, tokenizer, corpus })
    }

    /// Training batches from their beginning.
    pub fn train_batches(&self, config: &Config) -> Result<TrainBatches> {
        let sampling = config.data.batching.sampling(self.corpus.layout);
        let train = Arc::clone(&self.corpus.train);
        TrainBatches::new(train, sampling, config.train.batch_size, config.model.context(), config.data.seed)
    }

    /// One pass over the validation split.
    pub fn validation_batches(&self, config: &Config) -> Result<EvalBatches> {
        EvalBatches::new(Arc::clone(&self.corpus.val), config.train.batch_size, config.model.context())
    }

    /// Refuses a configuration that these texts are too short for, or that has nothing to validate on.
    ///
    /// # Errors
    /// Those of both kinds of batches.
    pub fn check(&self, config: &Config) -> Result<()> {
        self.train_batches(config)?;
        self.validation_batches(config).map(|_| ())
    }

    /// What the run's manifest says of the data: hashes and sizes.
    pub fn describe(&self) -> serde_json::Value {
        let tokens = |split: &crate::data::TokenSplit| split.tokens.len();
        json!({
            "corpus": self.text.name,
            "corpus_sha256": self.text.fingerprint(),
            "tokenizer": self.tokenizer.kind(),
            "tokenizer_sha256": self.tokenizer.fingerprint(),
            "vocab_size": self.tokenizer.vocab_size(),
            "train_tokens": tokens(&self.corpus.train),
            "validation_tokens": tokens(&self.corpus.val),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(sets: &[&str]) -> Result<(Config, Prepared)> {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let mut config = Config::parse("", "test", &sets)?;
        let prepared = Prepared::new(&mut config, None, &Cache::disabled())?;
        Ok((config, prepared))
    }

    #[test]
    fn minigpt_gets_512_tokens_and_its_published_size_from_the_built_in_corpus() {
        let (config, prepared) = prepared(&[]).unwrap();
        assert_eq!(config.model.vocab_size(), 512);
        assert_eq!(config.model.parameter_count(), 132_352);
        let batch = BatchSource::next_batch(&mut prepared.train_batches(&config).unwrap()).unwrap();
        assert_eq!((batch.batch, batch.context, batch.inputs.len()), (8, 32, 256));
        assert!(!EvalSource::is_empty(&prepared.validation_batches(&config).unwrap()));
        assert_eq!(prepared.describe()["vocab_size"], 512);
    }

    #[test]
    fn a_saved_position_goes_through_json_and_gives_the_same_batches() {
        // TOML's whole numbers end at 2^63 - 1.
        let (config, prepared) = prepared(&["data.seed=9223372036854775807"]).unwrap();
        let mut straight = prepared.train_batches(&config).unwrap();
        for _ in 0..37 {
            straight.next_batch();
        }
        let state = serde_json::to_string(&BatchSource::state(&straight)).unwrap();
        let mut resumed = prepared.train_batches(&config).unwrap();
        BatchSource::restore(&mut resumed, &serde_json::from_str(&state).unwrap()).unwrap();
        for _ in 0..50 {
            assert_eq!(straight.next_batch(), resumed.next_batch());
        }
        let foreign = serde_json::json!({ "next_row": 3 });
        assert_eq!(BatchSource::restore(&mut resumed, &foreign).unwrap_err().exit_code(), 6);
    }

    #[test]
    fn a_vocabulary_too_small_for_the_tokenizer_is_refused() {
        let error = prepared(&["model.vocab_size=64"]).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("512 tokens"), "{error}");
        let (config, _) = prepared(&["model.vocab_size=64", "tokenizer.kind=char"]).unwrap();
        assert_eq!(config.model.parameter_count(), 103_680);
    }
}
