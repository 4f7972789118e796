//! The Hugging Face `tokenizer.json` format: writing ours, recognising ours, and running anybody's with the
//! `tokenizers` library.

use super::special::SpecialTokens;
use super::{BpeTokenizer, ByteTokenizer, CharTokenizer, PreSplit, Tokenizer};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The pattern of one character, whatever it is.
const ANY_CHARACTER: &str = r"[\s\S]";
/// [`PreSplit::Whitespace`] as a pattern.
const WORDS: &str = r" ?\S+|\s+";

/// A tokenizer that runs in the `tokenizers` library.
#[derive(Clone)]
pub struct HfTokenizer {
    inner: tokenizers::Tokenizer,
    json: String,
    specials: HashMap<String, u32>,
    vocab_size: usize,
}

impl std::fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HfTokenizer").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl HfTokenizer {
    /// Loads the text of a `tokenizer.json`; `name` stands in messages. Truncation and padding that the file may ask for
    /// are switched off: they belong to batching, and would silently cut a corpus.
    pub fn from_json(name: &str, json: String) -> Result<Self> {
        let bad = |why: String| {
            Error::Data(format!("{name}: not a tokenizer.json that the tokenizers library understands: {why}"))
        };
        let mut inner: tokenizers::Tokenizer = json.parse().map_err(|e: tokenizers::Error| bad(e.to_string()))?;
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        inner.with_padding(None);
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 {
            return Err(bad("its vocabulary is empty".into()));
        }
        let specials = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        Ok(Self { inner, json, specials, vocab_size })
    }

    pub fn json(&self) -> &str {
        &self.json
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| {
            Error::Data(format!(
                "this text has no encoding in the loaded tokenizer.json: {e} (is a character missing?)"
            ))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(Error::Data(format!(
                "token id {id} is not in the vocabulary (ids 0 to {}): the ids belong to another tokenizer",
                self.vocab_size - 1
            )));
        }
        self.inner.decode(ids, skip_special).map_err(|e| Error::Data(format!("these ids cannot be decoded: {e}")))
    }

    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.inner.id_to_token(id).map(String::into_bytes)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.specials.values().any(|&special| special == id)
    }

    pub fn special_id(&self, token: &str) -> Option<u32> {
        self.specials.get(token).copied()
    }
}

/// GPT-2's printable stand-in for each byte: itself where it prints, otherwise U+0100 and on.
fn byte_characters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).expect("below U+0200 every code is a character")
    })
}

fn byte_level(bytes: &[u8]) -> String {
    let characters = byte_characters();
    bytes.iter().map(|&b| characters[b as usize]).collect()
}

fn from_byte_level(text: &str) -> Option<Vec<u8>> {
    let characters = byte_characters();
    text.chars().map(|c| characters.iter().position(|&k| k == c).map(|b| b as u8)).collect()
}

fn document(specials: &SpecialTokens, pre_tokenizer: Value, decoder: Value, model: Value) -> Value {
    let added: Vec<Value> = specials
        .names()
        .iter()
        .zip(specials.first()..)
        .map(|(name, id)| {
            json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    })
}

fn byte_level_step() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false })
}

fn split_step(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

fn vocabulary(tokens: impl Iterator<Item = String>) -> Value {
    Value::Object(tokens.enumerate().map(|(id, token)| (token, Value::from(id))).collect::<Map<_, _>>())
}

/// A word-level model over single characters. Its unknown token is none of the vocabulary, so that an unknown character
/// is an error there as it is here.
pub(super) fn export_char(t: &CharTokenizer) -> Value {
    let specials = t.specials().names().iter().cloned();
    let vocab = vocabulary(specials.chain(t.characters().iter().map(char::to_string)));
    let model = json!({ "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" });
    document(t.specials(), split_step(ANY_CHARACTER), json!({ "type": "Fuse" }), model)
}

fn bpe_document<'a>(
    specials: &SpecialTokens,
    merges: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    pre_split: PreSplit,
) -> Value {
    let bytes = (0..=255u8).map(|b| byte_level(&[b]));
    let joined = merges.clone().map(|(left, right)| byte_level(left) + &byte_level(right));
    let names = || specials.names().iter().cloned();
    let vocab = match specials.first() {
        0 => vocabulary(names().chain(bytes).chain(joined)),
        // A byte tokenizer: it has no merges.
        _ => vocabulary(bytes.chain(names())),
    };
    let merges: Vec<Value> = merges.map(|(left, right)| json!([byte_level(left), byte_level(right)])).collect();
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    });
    let pre_tokenizer = match pre_split {
        PreSplit::None => byte_level_step(),
        PreSplit::Whitespace => {
            json!({ "type": "Sequence", "pretokenizers": [split_step(WORDS), byte_level_step()] })
        }
    };
    document(specials, pre_tokenizer, byte_level_step(), model)
}

pub(super) fn export_byte(t: &ByteTokenizer) -> Value {
    bpe_document(t.specials(), std::iter::empty(), PreSplit::None)
}

pub(super) fn export_bpe(t: &BpeTokenizer) -> Value {
    let merges: Vec<(&[u8], &[u8])> = t.merge_bytes().collect();
    bpe_document(t.specials(), merges.into_iter(), t.pre_split())
}

/// The tokenizer of ours that this document looks like. The caller compares what it would write with the document.
pub(super) fn recognise(value: &Value) -> Option<Tokenizer> {
    let added = value["added_tokens"].as_array()?;
    let names: Option<Vec<String>> = added.iter().map(|token| token["content"].as_str().map(str::to_owned)).collect();
    let specials = SpecialTokens::new(names?).ok()?;
    let model = &value["model"];
    match model["type"].as_str()? {
        "WordLevel" => {
            let mut characters: Vec<char> = model["vocab"]
                .as_object()?
                .keys()
                .filter(|token| specials.id(token).is_none())
                .map(|token| token.chars().next().filter(|c| c.len_utf8() == token.len()))
                .collect::<Option<_>>()?;
            characters.sort_unstable();
            CharTokenizer::new(characters, specials).ok().map(Tokenizer::Char)
        }
        "BPE" => {
            let merges: Vec<(Vec<u8>, Vec<u8>)> = model["merges"]
                .as_array()?
                .iter()
                .map(|merge| {
                    Some((from_byte_level(merge.get(0)?.as_str()?)?, from_byte_level(merge.get(1)?.as_str()?)?))
                })
                .collect::<Option<_>>()?;
            let split = value["pre_tokenizer"]["type"] == "Sequence";
            if merges.is_empty() && !split {
                let bytes_first = added.first().is_some_and(|token| token["id"] == 256);
                let specials = if bytes_first { specials.after_bytes() } else { specials };
                return Some(Tokenizer::Byte(ByteTokenizer::new(specials)));
            }
            let pre_split = if split { PreSplit::Whitespace } else { PreSplit::None };
            BpeTokenizer::from_merges(merges, specials, pre_split).ok().map(Tokenizer::Bpe)
        }
        _ => None,
    }
}

pub(super) use crate::data::files::pretty;

/// One line of JSON with sorted keys, whatever order the map type keeps.
pub(super) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            let inner: Vec<String> =
                entries.iter().map(|(key, v)| format!("{}:{}", Value::from(key.as_str()), canonical(v))).collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        scalar => scalar.to_string(),
    }
}
