//! A tokenizer from the vocabulary of a GGUF file.

use super::{GgufVocabulary, pre};
use crate::tokenizer::huggingface::{HfTokenizer, byte_level, byte_level_step, post_processor, split_step};
use crate::tokenizer::roles::{END_NAMES, Roles};
use crate::tokenizer::spm::{Piece, PieceKind, SPACE_MARK, SpmOptions, SpmTokenizer};
use crate::tokenizer::{Tokenizer, display};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::Arc;

impl Tokenizer {
    /// The tokenizer of a GGUF file. Models `llama` and `gpt2` are known. Refused, with the entry named: lists of different lengths, token
    /// types and scores that mean nothing, text that is not UTF-8, equal tokens, merges of tokens that do not exist, ids outside the
    /// vocabulary.
    pub fn from_gguf_vocabulary(vocabulary: GgufVocabulary) -> Result<Tokenizer> {
        let count = vocabulary.tokens.len();
        if count == 0 {
            return Err(Error::Data("tokenizer.ggml.tokens is empty: the file has no vocabulary".into()));
        }
        for (key, length) in [("scores", vocabulary.scores.len()), ("token_type", vocabulary.types.len())] {
            if length != 0 && length != count {
                return Err(Error::Data(format!("tokenizer.ggml.{key} has {length} entries for {count} tokens")));
            }
        }
        let ids = [
            ("bos", vocabulary.bos),
            ("eos", vocabulary.eos),
            ("unknown", vocabulary.unk),
            ("padding", vocabulary.pad),
            ("eot", vocabulary.eot),
        ];
        for (key, id) in ids {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return Err(Error::Data(format!(
                    "tokenizer.ggml.{key}_token_id = {id} is not in the vocabulary of {count} tokens (ids 0 to {})",
                    count - 1
                )));
            }
        }
        match vocabulary.model.as_str() {
            "llama" => Ok(Tokenizer::Spm(Arc::new(sentence_piece(vocabulary)?))),
            "gpt2" => Ok(Tokenizer::HuggingFace(Arc::new(byte_level_bpe(vocabulary)?))),
            other => Err(Error::Data(format!(
                "tokenizer.ggml.model = '{other}': this program runs 'llama' (SentencePiece BPE) and 'gpt2' (byte-level BPE)"
            ))),
        }
    }
}

impl GgufVocabulary {
    fn kind(&self, id: usize) -> Result<PieceKind> {
        let number = self.types.get(id).copied().unwrap_or(1);
        PieceKind::from_number(number).ok_or_else(|| {
            Error::Data(format!("tokenizer.ggml.token_type[{id}] = {number}: token types are numbers from 0 to 6"))
        })
    }

    fn text(&self, id: usize) -> Result<&str> {
        std::str::from_utf8(&self.tokens[id]).map_err(|_| {
            Error::Data(format!("tokenizer.ggml.tokens[{id}] '{}' is not UTF-8", display(&self.tokens[id])))
        })
    }

    fn roles(&self, add_bos: bool) -> Result<Roles> {
        let mut roles = Roles {
            bos: self.bos,
            eos: vec![],
            pad: self.pad,
            unk: self.unk,
            add_bos: Some(self.add_bos.unwrap_or(add_bos)),
            add_eos: self.add_eos.unwrap_or(false),
            chat_template: self.chat_template.clone(),
        };
        [self.eos, self.eot].into_iter().flatten().for_each(|id| roles.ends_with(id));
        let mut named: Vec<(usize, u32)> = Vec::new();
        for id in 0..self.tokens.len() {
            if let PieceKind::Control | PieceKind::UserDefined = self.kind(id)?
                && let Some(rank) = END_NAMES.iter().position(|name| name.as_bytes() == self.tokens[id])
            {
                named.push((rank, id as u32));
            }
        }
        named.sort_unstable();
        named.into_iter().for_each(|(_, id)| roles.ends_with(id));
        Ok(roles)
    }
}

fn sentence_piece(mut vocabulary: GgufVocabulary) -> Result<SpmTokenizer> {
    let count = vocabulary.tokens.len();
    // Ids of SentencePiece's Llama files where the keys are absent, if they can be what they would be.
    let is = |id: u32, kind: PieceKind| (id as usize) < count && vocabulary.kind(id as usize).ok() == Some(kind);
    let unk = vocabulary.unk.or_else(|| Some(0).filter(|&id| is(id, PieceKind::Unknown)));
    let bos = vocabulary.bos.or_else(|| Some(1).filter(|&id| is(id, PieceKind::Control)));
    let eos = vocabulary.eos.or_else(|| Some(2).filter(|&id| is(id, PieceKind::Control)));
    (vocabulary.unk, vocabulary.bos, vocabulary.eos) = (unk, bos, eos);
    let roles = vocabulary.roles(true)?;
    let mut pieces = Vec::with_capacity(count);
    for id in 0..count {
        let (kind, text) = (vocabulary.kind(id)?, vocabulary.text(id)?);
        let text = match kind {
            PieceKind::Normal | PieceKind::Unused => text.replace(SPACE_MARK, " "),
            _ => text.to_owned(),
        };
        pieces.push(Piece { text, kind, score: vocabulary.scores.get(id).copied().unwrap_or(0.0) });
    }
    let options = SpmOptions { add_space_prefix: vocabulary.add_space_prefix.unwrap_or(true), mark_is_space: true };
    SpmTokenizer::new(pieces, options, roles)
}

/// Byte-level BPE runs in the Hugging Face library: the vocabulary as the `tokenizer.json` it came from.
fn byte_level_bpe(vocabulary: GgufVocabulary) -> Result<HfTokenizer> {
    let pre = pre::find(&vocabulary.pre)?;
    let roles = vocabulary.roles(pre.add_bos)?;
    let mut ids: HashMap<String, usize> = HashMap::with_capacity(vocabulary.tokens.len());
    let mut added = Vec::new();
    for id in 0..vocabulary.tokens.len() {
        let kind = vocabulary.kind(id)?;
        let text = match vocabulary.text(id)? {
            // As llama.cpp calls it.
            "" => format!("[EMPTY_{id}]"),
            text => text.to_owned(),
        };
        if matches!(kind, PieceKind::Control | PieceKind::UserDefined | PieceKind::Unknown) {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != PieceKind::UserDefined,
            }));
        }
        if let Some(first) = ids.insert(text, id) {
            let text = display(&vocabulary.tokens[id]);
            return Err(Error::Data(format!("tokenizer.ggml.tokens: {first} and {id} are both '{text}'")));
        }
    }
    // Bytes that are in no UTF-8 text may be missing.
    let in_text = |byte: &u8| !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff);
    if let Some(byte) = (0..=255u8).filter(in_text).find(|&byte| !ids.contains_key(&byte_level(&[byte]))) {
        return Err(Error::Data(format!(
            "tokenizer.ggml.tokens has no token for the byte 0x{byte:02x} ('{}'): texts with it could not be encoded",
            byte_level(&[byte])
        )));
    }
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for (rank, merge) in vocabulary.merges.iter().enumerate() {
        let bad =
            |why: String| Error::Data(format!("tokenizer.ggml.merges[{rank}] '{}': {why}", display(merge.as_bytes())));
        let (left, right) = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
            .ok_or_else(|| bad("not two tokens with a space between".into()))?;
        let joined = format!("{left}{right}");
        if let Some(missing) = [left, right, &joined].into_iter().find(|&part| !ids.contains_key(part)) {
            return Err(bad(format!("'{}' is not in the vocabulary", display(missing.as_bytes()))));
        }
        merges.push(json!([left, right]));
    }
    let name = |id: u32| String::from_utf8_lossy(&vocabulary.tokens[id as usize]).into_owned();
    let mut steps: Vec<Value> = pre.patterns.iter().map(|pattern| split_step(pattern)).collect();
    steps.push(byte_level_step());
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "post_processor": post_processor(&roles, name),
        "decoder": byte_level_step(),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": ids.into_iter().map(|(text, id)| (text, id.into())).collect::<Map<String, Value>>(), "merges": merges,
        },
    });
    let mut tokenizer = HfTokenizer::from_json("the GGUF file's vocabulary", document.to_string())?;
    *tokenizer.roles_mut() = roles;
    Ok(tokenizer)
}
