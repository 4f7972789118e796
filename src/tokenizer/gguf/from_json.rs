//! The vocabulary of a GGUF file from a Hugging Face `tokenizer.json`.

use super::write::{Written, pre_name};
use super::{GgufVocabulary, pre};
use crate::tokenizer::HfTokenizer;
use crate::tokenizer::spm::{PieceKind, SPACE_MARK};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

fn cannot(why: impl std::fmt::Display) -> Error {
    Error::Data(format!("a GGUF vocabulary cannot hold this tokenizer.json: {why}"))
}

/// The vocabulary without its special ids, which [`crate::tokenizer::Tokenizer::to_gguf_vocabulary`] fills in.
pub(super) fn vocabulary(t: &HfTokenizer) -> Result<Written> {
    let json: Value = serde_json::from_str(t.json()).map_err(cannot)?;
    let model = &json["model"];
    // Old files leave the type out.
    if model["type"] != "BPE" && (!model["type"].is_null() || model["merges"].is_null()) {
        return Err(cannot(format!("its model is {}, and llama.cpp's tokenizers of this kind are BPE", model["type"])));
    }
    let mut written = Written {
        vocabulary: GgufVocabulary {
            tokens: vec![vec![]; t.vocab_size()],
            types: vec![PieceKind::Unused as i32; t.vocab_size()],
            ..GgufVocabulary::default()
        },
        notes: vec![],
    };
    let into = &mut written.vocabulary;
    let at = |id: &Value| id.as_u64().map(|id| id as usize).filter(|&id| id < t.vocab_size());
    for (token, id) in model["vocab"].as_object().into_iter().flatten() {
        let id = at(id).ok_or_else(|| cannot(format!("token '{token}' has no id")))?;
        into.tokens[id] = token.clone().into_bytes();
        into.types[id] = PieceKind::Normal as i32;
    }
    let unknown = model["unk_token"].as_str();
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(text)) = (at(&token["id"]), token["content"].as_str()) else { continue };
        into.tokens[id] = text.as_bytes().to_vec();
        let special = token["special"] == true;
        into.types[id] = if special { PieceKind::Control } else { PieceKind::UserDefined } as i32;
        if token["lstrip"] == true || token["rstrip"] == true {
            written.notes.push(format!("the token '{text}' takes in the spaces around it here, and not in llama.cpp"));
        }
    }
    for (id, token) in into.tokens.iter_mut().enumerate() {
        if token.is_empty() {
            *token = format!("[PAD{id}]").into_bytes();
        }
        if unknown.is_some_and(|unknown| unknown.as_bytes() == token.as_slice()) {
            into.types[id] = PieceKind::Unknown as i32;
            into.unk = Some(id as u32);
        }
    }
    let merges = model["merges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|merge| match merge {
            Value::String(text) => text.split_once(' ').map(|(l, r)| (l.to_owned(), r.to_owned())),
            pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| cannot("a merge is not a pair of tokens"))?;
    if model["byte_fallback"] == true || uses_mark(&json) {
        sentence_piece(&json, merges, &mut written)?;
    } else {
        byte_level(&json, merges, &mut written)?;
    }
    Ok(written)
}

/// The steps of a normalizer, pre-tokenizer or decoder, out of its sequence.
fn steps<'a>(of: &'a Value, inner: &str) -> Vec<&'a Value> {
    match of[inner].as_array() {
        Some(list) => list.iter().flat_map(|step| steps(step, inner)).collect(),
        None if of.is_null() => vec![],
        None => vec![of],
    }
}

/// True if spaces become U+2581.
fn uses_mark(json: &Value) -> bool {
    let replaces = |step: &&Value| step["type"] == "Replace" && step["content"] == SPACE_MARK.to_string();
    steps(&json["normalizer"], "normalizers").iter().any(replaces)
        || steps(&json["pre_tokenizer"], "pretokenizers").iter().any(|step| step["type"] == "Metaspace")
}

fn byte_level(json: &Value, merges: Vec<(String, String)>, written: &mut Written) -> Result<()> {
    let mut patterns: Vec<String> = Vec::new();
    let mut bytes = false;
    for step in steps(&json["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str().unwrap_or_default() {
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                patterns.push(step["pattern"]["Regex"].as_str().unwrap_or_default().to_owned());
            }
            "Digits" if step["individual_digits"] == true => patterns.push(r"\p{N}".into()),
            "ByteLevel" => {
                bytes = true;
                if step["use_regex"] != false {
                    patterns.push(pre::GPT2.into());
                }
                if step["add_prefix_space"] == true {
                    written.notes.push("a text gets a space before it here, and not in llama.cpp".into());
                }
            }
            other => return Err(cannot(format!("its pre-tokenizer has a step '{other}' that llama.cpp has not"))),
        }
    }
    if !bytes {
        return Err(cannot("its tokens are neither byte-level nor SentencePiece's"));
    }
    for step in steps(&json["normalizer"], "normalizers") {
        written.notes.push(format!("the text is normalized here ({}), and not in llama.cpp", step["type"]));
    }
    let ignore_merges = json["model"]["ignore_merges"] == true;
    let name = pre_name(&patterns, ignore_merges).ok_or_else(|| {
        cannot(format!("llama.cpp cuts no text by the patterns {patterns:?} with ignore_merges = {ignore_merges}"))
    })?;
    written.vocabulary.model = "gpt2".into();
    written.vocabulary.pre = name.into();
    written.vocabulary.merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    Ok(())
}

fn sentence_piece(json: &Value, merges: Vec<(String, String)>, written: &mut Written) -> Result<()> {
    let mut prefix = false;
    for step in steps(&json["normalizer"], "normalizers") {
        match step["type"].as_str().unwrap_or_default() {
            "Prepend" => prefix = true,
            "Replace" if step["content"] == SPACE_MARK.to_string() => {}
            other => written.notes.push(format!("the text is normalized here ({other}), and not in llama.cpp")),
        }
    }
    for step in steps(&json["pre_tokenizer"], "pretokenizers") {
        match (step["type"].as_str().unwrap_or_default(), step["prepend_scheme"].as_str()) {
            ("Metaspace", Some("never")) => {}
            ("Metaspace", Some("first")) => {
                prefix = true;
                written.notes.push("llama.cpp puts a space after special tokens too, not only before a text".into());
            }
            ("Metaspace", _) => prefix = step["add_prefix_space"] != false,
            // Gemma's: no merge goes beyond it.
            ("Split", _) => {}
            (other, _) => return Err(cannot(format!("its pre-tokenizer has a step '{other}' that llama.cpp has not"))),
        }
    }
    let into = &mut written.vocabulary;
    let mut ids: HashMap<String, usize> = HashMap::new();
    for (id, token) in into.tokens.iter_mut().enumerate() {
        let text = String::from_utf8_lossy(token).into_owned();
        let looks_like_byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        if into.types[id] == PieceKind::Normal as i32 && looks_like_byte {
            into.types[id] = PieceKind::Byte as i32;
        } else if into.types[id] == PieceKind::UserDefined as i32 {
            *token = text.replace(SPACE_MARK, " ").into_bytes();
        } else if into.types[id] == PieceKind::Normal as i32 {
            ids.insert(text, id);
        }
    }
    // The earlier a token is merged, the better its score; what is not merged comes last.
    let last = -(merges.len() as f32) - 1.0;
    into.scores = vec![last; into.tokens.len()];
    let mut scored: HashSet<usize> = HashSet::new();
    let (mut current, mut scattered) = (None, 0);
    for (rank, (left, right)) in merges.iter().enumerate() {
        let Some(&id) = ids.get(&format!("{left}{right}")) else { continue };
        if scored.insert(id) {
            into.scores[id] = -(rank as f32);
        } else if current != Some(id) {
            scattered += 1;
        }
        current = Some(id);
    }
    for (id, kind) in into.types.iter().enumerate() {
        if !matches!(*kind, 1 | 5) {
            into.scores[id] = 0.0;
        }
    }
    let pairs: HashSet<(&str, &str)> = merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
    let more = ids.keys().flat_map(|text| text.char_indices().skip(1).map(|(at, _)| text.split_at(at)));
    let more =
        more.filter(|pair| ids.contains_key(pair.0) && ids.contains_key(pair.1) && !pairs.contains(pair)).count();
    if more > 0 || scattered > 0 {
        written.notes.push(format!(
            "llama.cpp joins any two pieces whose text together is a piece: {more} pairs that are no merge here, and {scattered} merges \
             that come later here than others of the same token, may give other tokens there"
        ));
    }
    into.model = "llama".into();
    into.pre = "default".into();
    into.add_space_prefix = Some(prefix);
    into.remove_extra_whitespaces = Some(false);
    Ok(())
}
