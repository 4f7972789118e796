//! Encoded corpora: tokens of each split, cached on disk under the hash of what they were made from.

use super::corpus::{Layout, Part, TextCorpus};
use super::files::{sha256_hex, write_atomic};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The tokens of one split as one sequence. In the layout of rows it is `b row b row .. b` with `b` the boundary token;
/// running text is one document as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenSplit {
    /// "train", "val" or "test".
    pub name: String,
    pub layout: Layout,
    pub tokens: Vec<u32>,
    /// Where documents meet: document `d` is `tokens[bounds[d]..=bounds[d + 1]]`, boundary tokens included. Its first
    /// token is given and the others are predicted, so a split of `n` tokens has `n - 1` scored ones.
    pub bounds: Vec<usize>,
    /// What fills the right of short sequences.
    pub pad: u32,
    /// UTF-8 bytes of the text that the scored tokens stand for (boundaries count as none), for bits per byte.
    pub scored_bytes: usize,
    /// Of a mix: which documents are of which origin ([`TextCorpus::parts`]).
    pub parts: Vec<Part>,
}

impl TokenSplit {
    /// Running text.
    pub fn stream(name: &str, tokens: Vec<u32>) -> Self {
        let bounds = if tokens.is_empty() { vec![] } else { vec![0, tokens.len() - 1] };
        Self { name: name.into(), layout: Layout::Stream, tokens, bounds, pad: 0, scored_bytes: 0, parts: vec![] }
    }

    /// Documents between boundary tokens.
    pub fn rows(name: &str, documents: &[Vec<u32>], boundary: u32, pad: u32) -> Self {
        let (mut tokens, mut bounds) = (vec![], vec![]);
        if !documents.is_empty() {
            tokens.push(boundary);
            bounds.push(0);
        }
        for document in documents {
            tokens.extend_from_slice(document);
            tokens.push(boundary);
            bounds.push(tokens.len() - 1);
        }
        Self { name: name.into(), layout: Layout::Rows, tokens, bounds, pad, scored_bytes: 0, parts: vec![] }
    }

    pub fn documents(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// First and last token of a document, boundaries included.
    pub fn span(&self, document: usize) -> (usize, usize) {
        (self.bounds[document], self.bounds[document + 1])
    }

    /// How many tokens a model (or an n-gram) is judged on.
    pub fn scored_tokens(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// Bits per UTF-8 byte from a mean loss in nats per scored token.
    pub fn bits_per_byte(&self, nats_per_token: f64) -> f64 {
        nats_per_token * self.scored_tokens() as f64 / std::f64::consts::LN_2 / self.scored_bytes as f64
    }
}

/// Where a split's tokens came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Read from the cache.
    Cached,
    /// Encoded now.
    Encoded,
    /// Encoded now because the cached file was damaged: the reason.
    Repaired(String),
}

/// A folder of encoded splits, or none.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    pub fn disabled() -> Self {
        Self { folder: None }
    }

    /// `LYNX_CACHE` (empty: no cache), else `$XDG_CACHE_HOME/lynx-gpu`, `~/.cache/lynx-gpu` or
    /// `%LOCALAPPDATA%\lynx-gpu`; none if the environment names no home.
    pub fn from_environment() -> Self {
        Self { folder: crate::cache::folder() }
    }

    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join("tokens").join(format!("{key}.bin")))
    }
}

const MAGIC: &[u8; 8] = b"LYNXTOK1";

/// Header of a cache file: magic, header length (u32 little-endian), this as JSON, then the payload of little-endian
/// u32: all tokens, then all bounds.
#[derive(Serialize, Deserialize)]
struct Header {
    key: String,
    tokens: usize,
    bounds: usize,
    scored_bytes: usize,
    payload_sha256: String,
}

fn to_file(key: &str, split: &TokenSplit) -> Option<Vec<u8>> {
    let mut payload = Vec::with_capacity(4 * (split.tokens.len() + split.bounds.len()));
    split.tokens.iter().for_each(|t| payload.extend_from_slice(&t.to_le_bytes()));
    for &bound in &split.bounds {
        payload.extend_from_slice(&u32::try_from(bound).ok()?.to_le_bytes());
    }
    let header = Header {
        key: key.to_owned(),
        tokens: split.tokens.len(),
        bounds: split.bounds.len(),
        scored_bytes: split.scored_bytes,
        payload_sha256: sha256_hex(&payload),
    };
    let header = serde_json::to_vec(&header).ok()?;
    Some([MAGIC.as_slice(), &(header.len() as u32).to_le_bytes(), &header, &payload].concat())
}

/// The tokens, bounds and scored bytes of a cache file, or what is wrong with it.
fn from_file(key: &str, bytes: &[u8]) -> Result<(Vec<u32>, Vec<usize>, usize), &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin like a token file")?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("it is truncated")?;
    let (header, payload) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("it is truncated")?;
    let header: Header = serde_json::from_slice(header).map_err(|_| "its header cannot be read")?;
    if header.key != key {
        return Err("it was made from other text");
    }
    if header.tokens.checked_add(header.bounds).and_then(|n| n.checked_mul(4)) != Some(payload.len()) {
        return Err("it is truncated");
    }
    if header.payload_sha256 != sha256_hex(payload) {
        return Err("its content does not match its hash");
    }
    let mut numbers = payload.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
    let tokens = numbers.by_ref().take(header.tokens).collect();
    Ok((tokens, numbers.map(|n| n as usize).collect(), header.scored_bytes))
}

/// A corpus in tokens. Splits are shared, so that iterators over them can outlive the caller's borrow.
#[derive(Clone, Debug)]
pub struct EncodedCorpus {
    pub name: String,
    pub layout: Layout,
    pub train: Arc<TokenSplit>,
    pub val: Arc<TokenSplit>,
    pub test: Arc<TokenSplit>,
    /// Of train, val and test.
    pub origins: [Origin; 3],
    /// SHA-256 over the corpus and the tokenizer: what a checkpoint should say it was trained on.
    pub fingerprint: String,
    /// Ids that the tokenizer can give; a model needs at least as many rows in its embedding.
    pub vocab_size: usize,
}

impl EncodedCorpus {
    /// Encodes the splits, or reads them from the cache. A damaged cache file is encoded again and replaced; a cache
    /// that cannot be written costs a warning.
    pub fn encode(corpus: &TextCorpus, tokenizer: &Tokenizer, cache: &Cache) -> Result<Self> {
        let tokenizer_print = tokenizer.fingerprint();
        let mut splits = Vec::with_capacity(3);
        let mut origins = Vec::with_capacity(3);
        for (name, documents) in corpus.splits() {
            let (mut split, origin) = cached_split(corpus, name, documents, tokenizer, &tokenizer_print, cache)?;
            split.parts = match name {
                "train" => corpus.parts.clone(),
                "val" => corpus.val_parts.clone(),
                _ => corpus.test_parts.clone(),
            };
            splits.push(Arc::new(split));
            origins.push(origin);
        }
        let [train, val, test]: [Arc<TokenSplit>; 3] = splits.try_into().expect("three splits");
        Ok(Self {
            name: corpus.name.clone(),
            layout: corpus.layout,
            train,
            val,
            test,
            origins: origins.try_into().expect("three splits"),
            fingerprint: sha256_hex(format!("{}\n{tokenizer_print}", corpus.fingerprint()).as_bytes()),
            vocab_size: tokenizer.vocab_size(),
        })
    }

    /// Refuses a model whose embedding has fewer rows than the tokenizer has ids.
    pub fn check_vocab(&self, model_vocab_size: usize) -> Result<()> {
        if self.vocab_size > model_vocab_size {
            return Err(Error::Config(format!(
                "vocab_size = {model_vocab_size}: the tokenizer has {} ids, so the model needs at least that many",
                self.vocab_size
            )));
        }
        Ok(())
    }
}

fn cached_split(
    corpus: &TextCorpus,
    name: &str,
    documents: &[String],
    tokenizer: &Tokenizer,
    tokenizer_print: &str,
    cache: &Cache,
) -> Result<(TokenSplit, Origin)> {
    let source = TextCorpus {
        name: String::new(),
        layout: corpus.layout,
        train: documents.to_vec(),
        val: vec![],
        test: vec![],
        parts: vec![],
        val_parts: vec![],
        test_parts: vec![],
    };
    let key = sha256_hex(format!("{}\n{tokenizer_print}", source.fingerprint()).as_bytes());
    let pad = tokenizer.pad_id().unwrap_or(0);
    let mut origin = Origin::Encoded;
    let path = cache.path(&key);
    if let Some(path) = &path
        && let Ok(bytes) = std::fs::read(path)
    {
        match from_file(&key, &bytes) {
            Ok((tokens, bounds, scored_bytes)) => {
                let layout = corpus.layout;
                let split = TokenSplit { name: name.into(), layout, tokens, bounds, pad, scored_bytes, parts: vec![] };
                return Ok((split, Origin::Cached));
            }
            Err(why) => {
                tracing::warn!("{}: {why}; encoding the text again", path.display());
                origin = Origin::Repaired(why.into());
            }
        }
    }
    let split = encode_split(corpus, name, documents, tokenizer, pad)?;
    if let Some(path) = &path
        && let Some(bytes) = to_file(&key, &split)
        && let Err(e) = write_atomic(path, &bytes)
    {
        tracing::warn!("the encoded text could not be cached: {e} (set LYNX_CACHE to a folder that can be written)");
    }
    Ok((split, origin))
}

fn encode_split(
    corpus: &TextCorpus,
    name: &str,
    documents: &[String],
    tokenizer: &Tokenizer,
    pad: u32,
) -> Result<TokenSplit> {
    let place = |document: usize, e: Error| match e {
        Error::Data(why) if documents.len() > 1 => {
            Error::Data(format!("{}, {name} split, row {}: {why}", corpus.name, document + 1))
        }
        Error::Data(why) => Error::Data(format!("{}, {name} split: {why}", corpus.name)),
        other => other,
    };
    let mut encoded = documents
        .iter()
        .enumerate()
        .map(|(i, text)| tokenizer.encode(text).map_err(|e| place(i, e)))
        .collect::<Result<Vec<_>>>()?;
    let bytes: usize = documents.iter().map(String::len).sum();
    match corpus.layout {
        Layout::Rows => {
            let boundary = tokenizer.boundary_id().ok_or_else(|| {
                Error::Data(format!(
                    "{}: its rows need a boundary token between them and this tokenizer has none (looked for {})",
                    corpus.name,
                    crate::tokenizer::special::BOUNDARY_NAMES.join(", ")
                ))
            })?;
            let mut split = TokenSplit::rows(name, &encoded, boundary, pad);
            split.scored_bytes = bytes;
            Ok(split)
        }
        Layout::Stream => {
            let tokens = if encoded.len() == 1 { encoded.remove(0) } else { encoded.concat() };
            let mut split = TokenSplit::stream(name, tokens);
            split.pad = pad;
            // The first token is given, not predicted.
            let given = split.tokens.first().map_or(Ok(0), |&id| tokenizer.decode(&[id]).map(|text| text.len()))?;
            split.scored_bytes = bytes.saturating_sub(given);
            Ok(split)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Kind;

    fn corpus() -> TextCorpus {
        let rows = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        TextCorpus::new("c".into(), Layout::Rows, rows(&["ab", "", "ñ"]), rows(&["ba"]), vec![]).unwrap()
    }

    #[test]
    fn rows_stand_between_boundaries_and_bytes_are_counted() {
        let corpus = corpus();
        let tokenizer = Tokenizer::for_corpus(&corpus, Kind::Char).unwrap();
        let data = EncodedCorpus::encode(&corpus, &tokenizer, &Cache::disabled()).unwrap();
        assert_eq!(data.train.tokens, [1, 4, 5, 1, 1, 6, 1]);
        assert_eq!(data.train.bounds, [0, 3, 4, 6]);
        assert_eq!((data.train.scored_tokens(), data.train.scored_bytes, data.train.pad), (6, 4, 0));
        assert!(data.test.tokens.is_empty() && data.test.documents() == 0);
        // One bit a token, six tokens, four bytes.
        assert!((data.train.bits_per_byte(std::f64::consts::LN_2) - 1.5).abs() < 1e-12);
        assert!(data.check_vocab(7).is_ok() && data.check_vocab(6).is_err());
    }

    #[test]
    fn running_text_is_one_document_without_boundaries() {
        let corpus = super::super::text::from_text("t", "ñabcabcabc".into(), 0.2).unwrap();
        let tokenizer = Tokenizer::for_corpus(&corpus, Kind::Char).unwrap();
        let data = EncodedCorpus::encode(&corpus, &tokenizer, &Cache::disabled()).unwrap();
        assert_eq!(data.train.tokens, [3, 0, 1, 2, 0, 1, 2, 0]);
        assert_eq!((data.train.bounds.as_slice(), data.train.scored_bytes), ([0, 7].as_slice(), 7));
        assert_eq!(data.val.tokens, [1, 2]);
    }

    #[test]
    fn the_cache_is_hit_repaired_when_damaged_and_keyed_by_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let corpus = corpus();
        let chars = Tokenizer::for_corpus(&corpus, Kind::Char).unwrap();
        let encode = |tokenizer: &Tokenizer| EncodedCorpus::encode(&corpus, tokenizer, &cache).unwrap();
        let fresh = encode(&chars);
        assert!(fresh.origins.iter().all(|o| *o == Origin::Encoded));
        let again = encode(&chars);
        assert!(again.origins.iter().all(|o| *o == Origin::Cached));
        assert_eq!((&again.train, &again.val, &again.test), (&fresh.train, &fresh.val, &fresh.test));

        let files: Vec<PathBuf> =
            std::fs::read_dir(folder.path().join("tokens")).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 3);
        for damage in [
            (|bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1) as fn(&mut Vec<u8>),
            |bytes| bytes.truncate(bytes.len() / 2),
            |bytes| bytes.clear(),
            |bytes| bytes[0] = b'x',
        ] {
            for file in &files {
                let mut bytes = std::fs::read(file).unwrap();
                damage(&mut bytes);
                std::fs::write(file, bytes).unwrap();
            }
            let repaired = encode(&chars);
            // The empty test split has no payload to flip a bit of: there the flip hits the header.
            assert!(repaired.origins.iter().all(|o| matches!(o, Origin::Repaired(_))), "{:?}", repaired.origins);
            assert_eq!(repaired.train, fresh.train);
            assert!(encode(&chars).origins.iter().all(|o| *o == Origin::Cached));
        }

        let bytes = Tokenizer::for_corpus(&corpus, Kind::Byte).unwrap();
        let other = encode(&bytes);
        assert!(other.origins.iter().all(|o| *o == Origin::Encoded));
        assert_ne!(other.fingerprint, fresh.fingerprint);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let corpus = corpus();
        let chars = Tokenizer::for_corpus(&corpus, Kind::Char).unwrap();
        let data = EncodedCorpus::encode(&corpus, &chars, &Cache::at(&file)).unwrap();
        assert_eq!(data.origins[0], Origin::Encoded);
    }

    #[test]
    fn text_without_an_encoding_is_reported_with_split_and_row() {
        let tokenizer = Tokenizer::for_corpus(&corpus(), Kind::Char).unwrap();
        let mut other = corpus();
        other.train[2] = "bZ".into();
        let message = EncodedCorpus::encode(&other, &tokenizer, &Cache::disabled()).unwrap_err().to_string();
        assert!(message.contains("train split, row 3") && message.contains("'Z'"), "{message}");
        let plain = Tokenizer::Byte(crate::tokenizer::ByteTokenizer::new(crate::tokenizer::SpecialTokens::none()));
        let message = EncodedCorpus::encode(&corpus(), &plain, &Cache::disabled()).unwrap_err().to_string();
        assert!(message.contains("boundary token"), "{message}");
    }
}
