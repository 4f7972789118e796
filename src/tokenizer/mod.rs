//! Text to token ids and back: characters, bytes, byte-level BPE trained here, SentencePiece BPE, and any Hugging Face `tokenizer.json`.
//!
//! Every tokenizer can be written as a `tokenizer.json` that the Hugging Face library loads and that encodes the same
//! way, and its [`Tokenizer::fingerprint`] is the hash of that file's content, so a tokenizer keeps its identity
//! through saving and loading, and a checkpoint can say which tokenizer it belongs to.

pub mod bpe;
pub mod characters;
pub mod chat_template;
pub mod folder;
pub mod gguf;
pub mod huggingface;
pub mod roles;
pub mod special;
pub mod spm;
pub mod stream;

pub use bpe::{BpeOptions, BpeTokenizer, PreSplit};
pub use characters::{ByteTokenizer, CharTokenizer};
pub use chat_template::{ChatOptions, ChatTemplate, Message};
pub use gguf::GgufVocabulary;
pub use huggingface::HfTokenizer;
pub use roles::Roles;
pub use special::{BOUNDARY, BYTE_SPECIALS, DEFAULT_SPECIALS, PAD, START, SpecialTokens};
pub use spm::SpmTokenizer;
pub use stream::StreamDecoder;

use crate::data::corpus::{Layout, TextCorpus};
use crate::data::files::{read_utf8, sha256_hex, write_atomic};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

pub const TOKENIZER_JSON: &str = "tokenizer.json";

/// Cheap to clone: vocabularies of other programs, which have 10^5 entries, are shared.
#[derive(Clone, Debug)]
pub enum Tokenizer {
    Char(CharTokenizer),
    Byte(ByteTokenizer),
    Bpe(BpeTokenizer),
    Spm(Arc<SpmTokenizer>),
    HuggingFace(Arc<HfTokenizer>),
}

/// What to make from a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sorted unique characters.
    Char,
    /// The 256 bytes, then beginning, boundary and padding: 259 ids.
    Byte,
    /// Byte-level BPE with this many ids, special tokens included.
    Bpe { vocab_size: usize },
}

impl Kind {
    /// `char`, `byte`, `bpe` (512 ids) or `bpe:N`.
    pub fn parse(text: &str) -> Result<Kind> {
        let size = |digits: &str| {
            digits
                .parse()
                .map_err(|_| Error::Config(format!("tokenizer '{text}': '{digits}' is not a vocabulary size")))
        };
        match text.split_once(':') {
            None if text == "char" => Ok(Kind::Char),
            None if text == "byte" => Ok(Kind::Byte),
            None if text == "bpe" => Ok(Kind::Bpe { vocab_size: 512 }),
            Some(("bpe", digits)) => Ok(Kind::Bpe { vocab_size: size(digits)? }),
            _ => Err(Error::Config(format!(
                "no such tokenizer kind '{text}': use char, byte, bpe or bpe:N, or the path of a tokenizer.json"
            ))),
        }
    }
}

impl Tokenizer {
    /// Builds a tokenizer for a corpus from all its splits: a row corpus gets the four special tokens, running text
    /// (which has no boundaries) gets none from `char`. `byte` is the same for every corpus.
    pub fn for_corpus(corpus: &TextCorpus, kind: Kind) -> Result<Tokenizer> {
        let rows = corpus.layout == Layout::Rows;
        let specials = if rows { SpecialTokens::default() } else { SpecialTokens::none() };
        match kind {
            Kind::Char => Ok(Tokenizer::Char(CharTokenizer::train(corpus.documents(), specials)?)),
            Kind::Byte => Ok(Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()))),
            Kind::Bpe { vocab_size } => {
                let options = BpeOptions { vocab_size, ..BpeOptions::default() };
                Ok(Tokenizer::Bpe(BpeTokenizer::train(corpus.documents(), &options)?))
            }
        }
    }

    /// `char`, `byte`, `bpe`, `spm` or `huggingface`.
    pub fn kind(&self) -> &'static str {
        match self {
            Tokenizer::Char(_) => "char",
            Tokenizer::Byte(_) => "byte",
            Tokenizer::Bpe(_) => "bpe",
            Tokenizer::Spm(_) => "spm",
            Tokenizer::HuggingFace(_) => "huggingface",
        }
    }

    /// One more than the largest id: the least `vocab_size` a model needs.
    pub fn vocab_size(&self) -> usize {
        match self {
            Tokenizer::Char(t) => t.vocab_size(),
            Tokenizer::Byte(t) => t.vocab_size(),
            Tokenizer::Bpe(t) => t.vocab_size(),
            Tokenizer::Spm(t) => t.vocab_size(),
            Tokenizer::HuggingFace(t) => t.vocab_size(),
        }
    }

    /// Ids of `text`. Special tokens written out in the text become their ids and nothing merges across them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Char(t) => t.encode(text),
            Tokenizer::Byte(t) => Ok(t.encode(text)),
            Tokenizer::Bpe(t) => Ok(t.encode(text)),
            Tokenizer::Spm(t) => t.encode(text, true),
            Tokenizer::HuggingFace(t) => t.encode(text),
        }
    }

    /// Ids of `text` that is nothing but text: the names of control tokens in it are characters like others, so that what a user wrote
    /// cannot end a message or begin another one.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Tokenizer::Char(t) => t.encode_plain(text),
            Tokenizer::Byte(t) => Ok(t.encode_plain(text)),
            Tokenizer::Bpe(t) => Ok(t.encode_plain(text)),
            Tokenizer::Spm(t) => t.encode(text, false),
            Tokenizer::HuggingFace(t) => t.encode_plain(text),
        }
    }

    /// [`Tokenizer::encode_plain`] after [`Tokenizer::start_id`]: a text that is scored or learned from as a whole.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.start_id().into_iter().collect();
        ids.extend(self.encode_plain(text)?);
        Ok(ids)
    }

    /// Text of `ids`, special tokens written out, bytes that are not UTF-8 replaced by U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_with(ids, false)
    }

    /// [`Tokenizer::decode`], leaving special tokens out if asked.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Tokenizer::HuggingFace(t) = self {
            return t.decode(ids, skip_special);
        }
        let mut bytes = Vec::new();
        let mut beginning = true;
        for &id in ids {
            let token = self.token_bytes(id)?;
            let skipped = skip_special && self.is_special(id);
            if !skipped {
                bytes.extend_from_slice(&token[self.prefix_bytes(beginning, id)..]);
            }
            beginning = self.begins_text(id) || beginning && skipped;
        }
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// The bytes one id stands for. For a Hugging Face tokenizer these are the bytes of its vocabulary entry, which
    /// need not be what it contributes to decoded text.
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        let bytes = match self {
            Tokenizer::Char(t) => t.token_bytes(id),
            Tokenizer::Byte(t) => t.token_bytes(id),
            Tokenizer::Bpe(t) => t.token_bytes(id).map(<[u8]>::to_vec),
            Tokenizer::Spm(t) => t.token_bytes(id),
            Tokenizer::HuggingFace(t) => t.token_bytes(id),
        };
        bytes.ok_or_else(|| {
            Error::Data(format!(
                "token id {id} is not in the vocabulary (ids 0 to {}): the ids belong to another tokenizer",
                self.vocab_size().saturating_sub(1)
            ))
        })
    }

    /// How many bytes of this token are the space that encoding put before a text (SentencePiece), and not text.
    pub(crate) fn prefix_bytes(&self, beginning: bool, id: u32) -> usize {
        match self {
            Tokenizer::Spm(t) => usize::from(beginning && t.prefixed(id)),
            _ => 0,
        }
    }

    /// True for the token before a text.
    pub(crate) fn begins_text(&self, id: u32) -> bool {
        self.bos_id() == Some(id)
    }

    pub fn is_special(&self, id: u32) -> bool {
        match self {
            Tokenizer::Char(t) => t.specials().contains(id),
            Tokenizer::Byte(t) => t.specials().contains(id),
            Tokenizer::Bpe(t) => t.specials().contains(id),
            Tokenizer::Spm(t) => t.is_special(id),
            Tokenizer::HuggingFace(t) => t.is_special(id),
        }
    }

    /// The id of a special token by its text.
    pub fn special_id(&self, token: &str) -> Option<u32> {
        match self {
            Tokenizer::Char(t) => t.specials().id(token),
            Tokenizer::Byte(t) => t.specials().id(token),
            Tokenizer::Bpe(t) => t.specials().id(token),
            Tokenizer::Spm(t) => t.special_id(token),
            Tokenizer::HuggingFace(t) => t.special_id(token),
        }
    }

    /// What is known of the tokens' parts from a model file; `None` for the kinds made here, whose special tokens say it by their names.
    pub fn roles(&self) -> Option<&Roles> {
        match self {
            Tokenizer::Spm(t) => Some(t.roles()),
            Tokenizer::HuggingFace(t) => Some(t.roles()),
            _ => None,
        }
    }

    /// The texts of the tokens that are structure and not text.
    pub fn control_names(&self) -> Vec<String> {
        match self {
            Tokenizer::Char(t) => t.specials().names().to_vec(),
            Tokenizer::Byte(t) => t.specials().names().to_vec(),
            Tokenizer::Bpe(t) => t.specials().names().to_vec(),
            Tokenizer::Spm(t) => t.control_names(),
            Tokenizer::HuggingFace(t) => t.control_names(),
        }
    }

    /// The token between documents. It both begins and ends a row, as in GPT-2; generation starts from it.
    pub fn boundary_id(&self) -> Option<u32> {
        let named = || special::BOUNDARY_NAMES.iter().find_map(|name| self.special_id(name));
        self.roles().and_then(|roles| roles.eos.first().copied()).or_else(named)
    }

    /// The token that fills short rows; the boundary where there is no other (it is masked anyway).
    pub fn pad_id(&self) -> Option<u32> {
        let named = || special::PAD_NAMES.iter().find_map(|name| self.special_id(name));
        self.roles().and_then(|roles| roles.pad).or_else(named).or_else(|| self.boundary_id())
    }

    /// The token before a text, if the tokenizer names one. Whether a text begins with it says [`Tokenizer::add_bos`].
    pub fn bos_id(&self) -> Option<u32> {
        match self.roles() {
            Some(roles) => roles.bos,
            None => self.special_id(special::START),
        }
    }

    /// True if a text begins with [`Tokenizer::bos_id`].
    pub fn add_bos(&self) -> bool {
        self.roles().is_some_and(|roles| roles.bos.is_some() && roles.add_bos == Some(true))
    }

    /// The token that a text to continue begins with: the one before a text where the model file says so, none where it says that there is
    /// none, and the boundary where nothing is said, since rows of a training text begin after one.
    pub fn start_id(&self) -> Option<u32> {
        match self.roles().map(|roles| (roles.add_bos, roles.bos)) {
            Some((Some(true), bos)) => bos,
            Some((Some(false), _)) => None,
            _ => self.boundary_id(),
        }
    }

    /// Every token that ends a text or an answer.
    pub fn eos_ids(&self) -> Vec<u32> {
        match self.roles() {
            Some(roles) if !roles.eos.is_empty() => roles.eos.clone(),
            _ => self.boundary_id().into_iter().collect(),
        }
    }

    /// The Jinja template by which the model's conversations are written, see [`ChatTemplate`].
    pub fn chat_template(&self) -> Option<&str> {
        self.roles()?.chat_template.as_deref()
    }

    /// The content of a Hugging Face `tokenizer.json` that encodes as this tokenizer does.
    pub fn to_huggingface_json(&self) -> String {
        match self {
            Tokenizer::Char(t) => huggingface::pretty(&huggingface::export_char(t)),
            Tokenizer::Byte(t) => huggingface::pretty(&huggingface::export_byte(t)),
            Tokenizer::Bpe(t) => huggingface::pretty(&huggingface::export_bpe(t)),
            Tokenizer::Spm(t) => huggingface::pretty(&t.to_huggingface()),
            Tokenizer::HuggingFace(t) => t.json().to_owned(),
        }
    }

    /// SHA-256 of the tokenizer's canonical JSON (keys sorted, no whitespace): equal exactly when the
    /// `tokenizer.json` says the same.
    pub fn fingerprint(&self) -> String {
        let value: Value = serde_json::from_str(&self.to_huggingface_json())
            .expect("a tokenizer holds JSON that was parsed or written");
        sha256_hex(huggingface::canonical(&value).as_bytes())
    }

    /// Writes `tokenizer.json` into a folder (a model folder, say).
    pub fn save_huggingface(&self, folder: &Path) -> Result<()> {
        write_atomic(&folder.join(TOKENIZER_JSON), self.to_huggingface_json().as_bytes())
    }

    /// Writes a tokenizer folder: `tokenizer.json`, and for our own kinds `vocab.json` (id, display form, hex bytes),
    /// `config.json` and, for BPE, `merges.txt`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let specials = match self {
            Tokenizer::Char(t) => t.specials(),
            Tokenizer::Byte(t) => t.specials(),
            Tokenizer::Bpe(t) => t.specials(),
            Tokenizer::Spm(_) | Tokenizer::HuggingFace(_) => return self.save_huggingface(folder),
        };
        let mut vocab = Vec::with_capacity(self.vocab_size());
        for id in 0..self.vocab_size() as u32 {
            let bytes = self.token_bytes(id)?;
            vocab.push(json!({ "id": id, "token": display(&bytes), "bytes": crate::data::files::hex(&bytes) }));
        }
        let mut config = json!({
            "version": 1,
            "kind": self.kind(),
            "vocab_size": self.vocab_size(),
            "special_tokens": specials.names(),
            "first_special": specials.first(),
        });
        if let Tokenizer::Bpe(bpe) = self {
            config["pre_split"] = bpe.pre_split().name().into();
            config["normalization"] = json!({ "training": "NFC", "encoding": "none" });
            let merges: String = bpe.merges_text();
            write_atomic(&folder.join("merges.txt"), merges.as_bytes())?;
        }
        write_atomic(&folder.join("vocab.json"), huggingface::pretty(&Value::Array(vocab)).as_bytes())?;
        write_atomic(&folder.join("config.json"), huggingface::pretty(&config).as_bytes())?;
        self.save_huggingface(folder)
    }

    /// Loads a `tokenizer.json`, or a folder that has one, or one written by [`Tokenizer::save`] without it. A file
    /// that this program wrote comes back as the kind it was; any other one runs in the Hugging Face library.
    pub fn load(path: &Path) -> Result<Tokenizer> {
        if !path.is_dir() {
            return Self::from_json(&path.display().to_string(), read_utf8(path)?);
        }
        let file = path.join(TOKENIZER_JSON);
        if file.exists() {
            return Self::from_json(&file.display().to_string(), read_utf8(&file)?);
        }
        if path.join("config.json").exists() && path.join("vocab.json").exists() {
            return Self::load_native(path);
        }
        Err(Error::Data(format!(
            "{}: no tokenizer here (expected tokenizer.json, or config.json with vocab.json)",
            path.display()
        )))
    }

    /// A tokenizer from the text of a `tokenizer.json`; `name` stands in messages.
    pub fn from_json(name: &str, json: String) -> Result<Tokenizer> {
        let value: Value = serde_json::from_str(&json).map_err(|e| {
            Error::Data(format!("{name}: not JSON: {e} (a tokenizer.json in the Hugging Face format is expected)"))
        })?;
        // Native if writing what was recognised gives the same content again: nothing of the file is then ignored.
        if let Some(native) = huggingface::recognise(&value) {
            let written: Value = serde_json::from_str(&native.to_huggingface_json()).expect("we wrote JSON");
            if huggingface::canonical(&written) == huggingface::canonical(&value) {
                return Ok(native);
            }
        }
        Ok(Tokenizer::HuggingFace(Arc::new(HfTokenizer::from_json(name, json)?)))
    }

    /// The tokenizer of a llama2.c `tokenizer.bin`, from the texts and scores of its pieces; see [`SpmTokenizer::from_llama2c`].
    pub fn from_llama2c(pieces: Vec<(Vec<u8>, f32)>) -> Result<Tokenizer> {
        Ok(Tokenizer::Spm(Arc::new(SpmTokenizer::from_llama2c(pieces)?)))
    }

    /// The tokenizer of a llama2.c `tokenizer.bin`, from the bytes of the file.
    pub fn from_llama2c_bytes(data: &[u8]) -> Result<Tokenizer> {
        Ok(Tokenizer::Spm(Arc::new(SpmTokenizer::from_llama2c_bytes(data)?)))
    }

    fn load_native(folder: &Path) -> Result<Tokenizer> {
        let parse = |name: &str| -> Result<Value> {
            let path = folder.join(name);
            serde_json::from_str(&read_utf8(&path)?)
                .map_err(|e| Error::Data(format!("{}: not JSON: {e}", path.display())))
        };
        let (config, vocab) = (parse("config.json")?, parse("vocab.json")?);
        let bad = |what: &str| Error::Data(format!("{}: {what} (train the tokenizer again)", folder.display()));
        if config["version"] != 1 {
            return Err(bad("config.json has a version this program does not know"));
        }
        let names: Option<Vec<String>> =
            config["special_tokens"].as_array().and_then(|a| a.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        let specials = SpecialTokens::new(names.ok_or_else(|| bad("config.json has no list special_tokens"))?)?;
        let tokenizer = match config["kind"].as_str() {
            Some("byte") => {
                // Absent from folders of versions that had the special tokens first.
                let bytes_first = config["first_special"] == 256;
                let specials = if bytes_first { specials.after_bytes() } else { specials };
                Tokenizer::Byte(ByteTokenizer::new(specials))
            }
            Some("char") => {
                let entries = vocab.as_array().ok_or_else(|| bad("vocab.json is not a list"))?;
                let characters: Option<Vec<char>> = entries
                    .iter()
                    .skip(specials.len())
                    .map(|entry| {
                        let text = String::from_utf8(unhex(entry["bytes"].as_str()?)?).ok()?;
                        let mut chars = text.chars();
                        chars.next().filter(|_| chars.next().is_none())
                    })
                    .collect();
                let characters = characters.ok_or_else(|| bad("vocab.json has an entry that is not one character"))?;
                Tokenizer::Char(CharTokenizer::new(characters, specials)?)
            }
            Some("bpe") => {
                let pre_split = PreSplit::parse(config["pre_split"].as_str().unwrap_or("none"))?;
                let text = read_utf8(&folder.join("merges.txt"))?;
                Tokenizer::Bpe(BpeTokenizer::from_merges_text(&text, specials, pre_split)?)
            }
            _ => return Err(bad("config.json names no known kind")),
        };
        if config["vocab_size"] != tokenizer.vocab_size()
            || vocab.as_array().map(Vec::len) != Some(tokenizer.vocab_size())
        {
            return Err(bad("config.json, vocab.json and merges.txt disagree about the vocabulary size"));
        }
        for (id, entry) in vocab.as_array().into_iter().flatten().enumerate() {
            if entry["bytes"] != crate::data::files::hex(&tokenizer.token_bytes(id as u32)?) {
                return Err(bad(&format!("vocab.json says something else of id {id} than the merges do")));
            }
        }
        Ok(tokenizer)
    }
}

/// Bytes as a person can read them: printable UTF-8 as it is, everything else as `\xNN`, a backslash doubled.
pub fn display(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => c.to_string().bytes().for_each(|b| text.push_str(&format!("\\x{b:02x}"))),
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
    }
    text
}

/// The inverse of [`crate::data::files::hex`].
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}
