//! The Hugging Face `tokenizer.json` format: writing ours, recognising ours, and running anybody's with the
//! `tokenizers` library.

use super::roles::{END_NAMES, Roles};
use super::special::{PAD_NAMES, SpecialTokens};
use super::{BpeTokenizer, ByteTokenizer, CharTokenizer, PreSplit, Tokenizer};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::OnceLock;
use tokenizers::PostProcessor;

/// The pattern of one character, whatever it is.
const ANY_CHARACTER: &str = r"[\s\S]";
/// [`PreSplit::Whitespace`] as a pattern.
const WORDS: &str = r" ?\S+|\s+";

/// A tokenizer that runs in the `tokenizers` library.
#[derive(Clone)]
pub struct HfTokenizer {
    inner: tokenizers::Tokenizer,
    /// The same with special tokens' names as text; made when it is first asked for.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
    json: String,
    specials: HashMap<String, u32>,
    vocab_size: usize,
    roles: Roles,
}

impl std::fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HfTokenizer").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

/// A token that a template of the post-processor uses without defining it: the library panics there.
fn undefined(processor: &Value) -> Option<String> {
    let list = |key: &str| processor[key].as_array().map_or(&[][..], Vec::as_slice);
    let used = ["single", "pair"].into_iter().flat_map(list).filter_map(|piece| piece["SpecialToken"]["id"].as_str());
    let own = used.filter(|id| !processor["special_tokens"][*id].is_object()).map(str::to_owned).next();
    own.or_else(|| list("processors").iter().find_map(undefined))
}

/// Whether the decoder cuts characters off the ends of tokens: the library panics where a token has fewer.
fn strips_ends(decoder: &Value) -> bool {
    let parts = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
    decoder["type"] == "Strip" && decoder["stop"] != 0 || parts.iter().any(strips_ends)
}

/// Normalisation and division of a text into words, all steps in order.
fn steps<'a>(step: &'a Value, all: &mut Vec<&'a Value>) {
    let parts = ["normalizers", "pretokenizers"].into_iter().filter_map(|key| step[key].as_array()).flatten();
    parts.for_each(|part| steps(part, all));
    if step["type"].is_string() && step["type"] != "Sequence" {
        all.push(step);
    }
}

/// Steps that the library panics at, or that make a short text long without an end.
fn endless(file: &Value) -> Option<&'static str> {
    const MOST_STEPS: usize = 32;
    const MOST_GROWTH: usize = 4096;
    let mut all = Vec::new();
    ["normalizer", "pre_tokenizer"].into_iter().for_each(|key| steps(&file[key], &mut all));
    let is = |step: &Value, kind: &str| step["type"] == kind;
    let inserted = |step: &&Value| match is(step, "Replace") || is(step, "Prepend") {
        true => step["content"].as_str().or(step["prepend"].as_str()).map_or(1, |s| s.len().max(1)),
        false => 1,
    };
    let growth = all.iter().map(inserted).fold(1, usize::saturating_mul);
    let empty = |step: &Value| [&step["pattern"]["String"], &step["pattern"]["Regex"]].iter().any(|p| **p == "");
    match () {
        _ if all.len() > MOST_STEPS => Some("it has more than 32 steps before the model"),
        _ if all.iter().filter(|step| is(step, "ByteLevel")).count() > 1 => Some("it has more than one ByteLevel step"),
        _ if growth > MOST_GROWTH => Some("its replacements make a text thousands of times longer"),
        _ if all.iter().any(|step| is(step, "Replace") && empty(step)) => Some("it replaces the empty text"),
        _ if all.iter().any(|step| is(step, "FixedLength") && step["length"] == 0) => {
            Some("it cuts words of no length")
        }
        _ => None,
    }
}

/// A merge whose second part does not begin as continuing parts do: the library cuts that beginning off without looking.
fn discontinued(model: &Value) -> Option<String> {
    let prefix = model["continuing_subword_prefix"].as_str().filter(|prefix| !prefix.is_empty())?;
    let second = |merge: &Value| match merge {
        Value::String(both) => both.split_once(' ').map(|(_, second)| second.to_owned()),
        parts => parts[1].as_str().map(str::to_owned),
    };
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    merges.iter().filter_map(second).find(|second| !second.starts_with(prefix))
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread will be told as an error, so that a panic hook need not say anything.
pub fn panics_are_errors() -> bool {
    GUARDED.get()
}

/// What `f` gives. For files that the checks here did not see through: a panic of the library is an error.
fn guarded<T>(what: &str, f: impl FnOnce() -> T) -> Result<T> {
    let failed = |_| Error::Data(format!("the tokenizers library fails at {what}: the tokenizer.json is damaged"));
    let before = GUARDED.replace(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).map_err(failed);
    GUARDED.set(before);
    result
}

/// The steps around the model as the library understood them: a file may leave out what they are called.
fn understood(inner: &tokenizers::Tokenizer) -> serde_json::Result<Value> {
    Ok(json!({
        "normalizer": serde_json::to_value(inner.get_normalizer())?,
        "pre_tokenizer": serde_json::to_value(inner.get_pre_tokenizer())?,
        "post_processor": serde_json::to_value(inner.get_post_processor())?,
        "decoder": serde_json::to_value(inner.get_decoder())?,
    }))
}

impl HfTokenizer {
    /// Loads the text of a `tokenizer.json`; `name` stands in messages. Truncation and padding that the file may ask for
    /// are switched off: they belong to batching, and would silently cut a corpus.
    pub fn from_json(name: &str, json: String) -> Result<Self> {
        let bad = |why: String| {
            Error::Data(format!("{name}: not a tokenizer.json that the tokenizers library understands: {why}"))
        };
        let mut file: Value = serde_json::from_str(&json).map_err(|e| bad(e.to_string()))?;
        if let Some(second) = discontinued(&file["model"]) {
            return Err(bad(format!("the second part '{second}' of a merge lacks the prefix of continuing parts")));
        }
        // Left out at random, merges would make an encoding that cannot be repeated.
        let dropout = file["model"]["dropout"].is_number();
        if dropout {
            file["model"]["dropout"] = Value::Null;
        }
        let parsed = guarded("reading", || if dropout { file.to_string().parse() } else { json.parse() });
        let mut inner: tokenizers::Tokenizer =
            parsed.map_err(|e| bad(e.to_string()))?.map_err(|e: tokenizers::Error| bad(e.to_string()))?;
        let around = understood(&inner).map_err(|e| bad(e.to_string()))?;
        if let Some(why) = endless(&around) {
            return Err(bad(why.into()));
        }
        if strips_ends(&around["decoder"]) {
            return Err(bad("its decoder has a Strip with a stop above 0, which fails at shorter tokens".into()));
        }
        if let Some(name) = undefined(&around["post_processor"]) {
            return Err(bad(format!("its post-processor uses the special token '{name}' and does not define it")));
        }
        inner.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        inner.with_padding(None);
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 {
            return Err(bad("its vocabulary is empty".into()));
        }
        let specials: HashMap<String, u32> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        let roles = guarded("its post-processor", || roles_of(&inner, &specials)).map_err(|e| bad(e.to_string()))?;
        let named = roles.bos.iter().chain(&roles.eos).chain(&roles.pad).chain(&roles.unk);
        if let Some(id) = named.copied().find(|id| *id as usize >= vocab_size) {
            return Err(bad(format!("it puts id {id} to a text, which its {vocab_size} ids do not have")));
        }
        Ok(Self { inner, plain: OnceLock::new(), json, specials, vocab_size, roles })
    }

    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    pub(crate) fn roles_mut(&mut self) -> &mut Roles {
        &mut self.roles
    }

    pub fn json(&self) -> &str {
        &self.json
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.inner, text)
    }

    /// As [`HfTokenizer::encode`], with special tokens' names as text. A vocabulary whose model itself knows such a name as a word gets
    /// it in pieces; if even they make a special token, that is an error.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let plain = self.plain.get_or_init(|| {
            let mut plain = Box::new(self.inner.clone());
            plain.set_encode_special_tokens(true);
            plain
        });
        let unknown = self.unknown_id();
        let control = |ids: &[u32]| ids.iter().copied().find(|&id| Some(id) != unknown && self.is_special(id));
        let ids = encode(plain, text)?;
        if control(&ids).is_none() {
            return Ok(ids);
        }
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let first =
                self.specials.keys().filter(|name| !name.is_empty()).filter_map(|name| rest.find(name.as_str())).min();
            // Cut after the first character of a name.
            let end = first.map_or(rest.len(), |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
            ids.extend(encode(plain, &rest[..end])?);
            rest = &rest[end..];
        }
        match control(&ids) {
            None => Ok(ids),
            Some(id) => Err(Error::Data(format!(
                "this text cannot be written without the control token '{}' (id {id}) in the loaded tokenizer",
                self.inner.id_to_token(id).unwrap_or_default()
            ))),
        }
    }

    pub(crate) fn control_names(&self) -> Vec<String> {
        self.specials.keys().cloned().collect()
    }

    /// The id that stands for what the vocabulary cannot say.
    fn unknown_id(&self) -> Option<u32> {
        use tokenizers::ModelWrapper::{BPE, Unigram, WordLevel, WordPiece};
        match self.inner.get_model() {
            BPE(model) => self.inner.token_to_id(model.unk_token.as_deref()?),
            WordLevel(model) => self.inner.token_to_id(&model.unk_token),
            WordPiece(model) => self.inner.token_to_id(&model.unk_token),
            Unigram(_) => self.roles.unk,
        }
    }

    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(Error::Data(format!(
                "token id {id} is not in the vocabulary (ids 0 to {}): the ids belong to another tokenizer",
                self.vocab_size - 1
            )));
        }
        let text = guarded("decoding", || self.inner.decode(ids, skip_special))?;
        text.map_err(|e| Error::Data(format!("these ids cannot be decoded: {e}")))
    }

    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.inner.id_to_token(id).map(String::into_bytes)
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.specials.values().any(|&special| special == id)
    }

    pub(crate) fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub fn special_id(&self, token: &str) -> Option<u32> {
        self.specials.get(token).copied()
    }
}

fn encode(inner: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = guarded("encoding", || inner.encode_fast(text, false))?.map_err(|e| {
        Error::Data(format!("this text has no encoding in the loaded tokenizer.json: {e} (is a character missing?)"))
    })?;
    Ok(encoding.get_ids().to_vec())
}

/// The parts of tokens as far as a `tokenizer.json` alone says them: what its post-processor puts before and after a text, and the names of
/// its special tokens.
fn roles_of(inner: &tokenizers::Tokenizer, specials: &HashMap<String, u32>) -> Roles {
    let named = |names: &[&str]| names.iter().find_map(|&name| specials.get(name).copied());
    let mut roles = Roles {
        bos: named(&["<s>", "<bos>", "<|begin_of_text|>", super::START]),
        pad: named(&PAD_NAMES),
        unk: named(&["<unk>", "<|unk|>", "[UNK]"]),
        ..Roles::default()
    };
    if let Some(processor) = inner.get_post_processor() {
        let text = tokenizers::Encoding::from_tokens(vec![tokenizers::Token::new(0, "x".into(), (0, 1))], 0);
        if let Ok(processed) = processor.process(text, None, true) {
            let words = processed.get_special_tokens_mask();
            let at = words.iter().position(|&special| special == 0).unwrap_or(words.len());
            if let Some(&first) = processed.get_ids()[..at].first() {
                (roles.bos, roles.add_bos) = (Some(first), Some(true));
            }
            if let Some(&last) = processed.get_ids().get(at + 1) {
                roles.ends_with(last);
                roles.add_eos = true;
            }
        }
    }
    END_NAMES.iter().filter_map(|&name| specials.get(name)).for_each(|&id| roles.ends_with(id));
    roles
}

/// What puts the tokens before and after a text that `roles` ask for, in the form of a `tokenizer.json`; null if they ask for none.
pub(super) fn post_processor(roles: &Roles, name: impl Fn(u32) -> String) -> Value {
    let before = roles.bos.filter(|_| roles.add_bos == Some(true));
    let after = roles.eos.first().copied().filter(|_| roles.add_eos);
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let special = |id: u32| json!({ "SpecialToken": { "id": name(id), "type_id": 0 } });
    let sequence = |which: &str| -> Vec<Value> {
        let text = json!({ "Sequence": { "id": which, "type_id": 0 } });
        before.map(special).into_iter().chain([text]).chain(after.map(special)).collect()
    };
    let entry = |id: u32| (name(id), json!({ "id": name(id), "ids": [id], "tokens": [name(id)] }));
    let pair = [sequence("A"), sequence("B")].concat();
    let tokens: Map<String, Value> = before.into_iter().chain(after).map(entry).collect();
    json!({
        "type": "TemplateProcessing", "single": sequence("A"), "pair": pair, "special_tokens": tokens,
    })
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

pub(super) fn byte_level(bytes: &[u8]) -> String {
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

pub(super) fn byte_level_step() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false })
}

pub(super) fn split_step(pattern: &str) -> Value {
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
