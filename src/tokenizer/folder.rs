//! The files beside a `tokenizer.json` that say what single tokens mean: `tokenizer_config.json`, `special_tokens_map.json`,
//! `generation_config.json` and `chat_template.jinja`.

use super::{Roles, TOKENIZER_JSON, Tokenizer};
use crate::data::files::{pretty, read_utf8, write_atomic};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A JSON file that need not be there: an empty object then.
fn optional(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(json!({}));
    }
    let value: Value = serde_json::from_str(&read_utf8(&path)?)
        .map_err(|e| Error::Data(format!("{}: not JSON: {e}", path.display())))?;
    if !value.is_object() {
        return Err(Error::Data(format!("{}: a JSON object is expected", path.display())));
    }
    Ok(value)
}

impl Tokenizer {
    /// The tokenizer of a folder that `transformers` wrote: its `tokenizer.json`, and what the files beside it say of the beginning, the
    /// ends and the chat template. Files that are not there say nothing.
    pub fn from_folder(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join(TOKENIZER_JSON);
        let mut tokenizer = Tokenizer::from_json(&path.display().to_string(), read_utf8(&path)?)?;
        let config = optional(folder, TOKENIZER_CONFIG)?;
        let map = optional(folder, SPECIAL_TOKENS_MAP)?;
        // A token is its text, or an object with it.
        let token = |key: &str| -> Option<u32> {
            let text = [&config[key], &map[key]].into_iter().find_map(|v| v.as_str().or(v["content"].as_str()))?;
            tokenizer.token_id(text)
        };
        let mut said = Roles { bos: token("bos_token"), pad: token("pad_token"), ..Roles::default() };
        said.unk = token("unk_token");
        token("eos_token").into_iter().for_each(|id| said.ends_with(id));
        // In the library the post-processor of tokenizer.json has the last word.
        said.add_bos = tokenizer.roles().and_then(|roles| roles.add_bos).or(config["add_bos_token"].as_bool());
        if said.add_bos.is_none() && (said.bos.is_some() || !config["tokenizer_class"].is_null()) {
            said.add_bos = Some(false);
        }
        said.add_eos = tokenizer.roles().is_some_and(|roles| roles.add_eos) || config["add_eos_token"] == true;
        let generation = optional(folder, GENERATION_CONFIG)?;
        let ends = &generation["eos_token_id"];
        let ends = ends.as_array().map_or(std::slice::from_ref(ends), Vec::as_slice);
        // A list that was not made for this vocabulary, as copied folders have it, says nothing.
        let known = |id: &u32| (*id as usize) < tokenizer.vocab_size();
        ends.iter().filter_map(|id| id.as_u64()?.try_into().ok()).filter(known).for_each(|id| said.ends_with(id));
        said.chat_template = chat_template(folder, &config)?;
        tokenizer.set_roles(said)?;
        Ok(tokenizer)
    }

    /// Takes over what a file says of the tokens' parts; what it does not say stays. Kinds made here keep the parts that their special
    /// tokens' names give them.
    pub(crate) fn set_roles(&mut self, said: Roles) -> Result<()> {
        let count = self.vocab_size();
        let used = said.bos.iter().chain(&said.eos).chain(&said.pad).chain(&said.unk);
        if let Some(id) = used.copied().find(|&id| id as usize >= count) {
            return Err(Error::Data(format!(
                "special token id {id} is not in the vocabulary of {count} tokens (ids 0 to {})",
                count.saturating_sub(1)
            )));
        }
        if let Tokenizer::HuggingFace(t) = self {
            let known = Arc::make_mut(t).roles_mut();
            let mut ends = said.eos;
            ends.extend(known.eos.iter().copied().filter(|id| !ends.contains(id)).collect::<Vec<_>>());
            *known = Roles {
                // In the library the post-processor has the last word.
                bos: known.bos.filter(|_| known.add_bos == Some(true)).or(said.bos).or(known.bos),
                eos: ends,
                pad: said.pad.or(known.pad),
                unk: said.unk.or(known.unk),
                add_bos: said.add_bos.or(known.add_bos),
                add_eos: said.add_eos,
                chat_template: said.chat_template.or(known.chat_template.take()),
            };
        }
        Ok(())
    }

    /// A text begins with its first token where the files of a folder do not say whether something goes before it.
    pub(crate) fn begins_with_nothing_unless_said(&mut self) {
        if let Tokenizer::HuggingFace(t) = self
            && t.roles().add_bos.is_none()
        {
            Arc::make_mut(t).roles_mut().add_bos = Some(false);
        }
    }

    /// The id of a token by its text, special or not.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        match self {
            Tokenizer::HuggingFace(t) => t.token_id(text),
            _ => self.special_id(text),
        }
    }

    /// The content of a `tokenizer_config.json` for this tokenizer. `context` is the longest text in tokens; `chat_template` replaces the
    /// tokenizer's own.
    pub fn tokenizer_config(&self, context: usize, chat_template: Option<&str>) -> Value {
        let name = |id: Option<u32>| -> Value {
            let bytes = id.and_then(|id| self.token_bytes(id).ok());
            bytes.map_or(Value::Null, |bytes| String::from_utf8_lossy(&bytes).into())
        };
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": false,
            "bos_token": name(self.start_id().or(self.bos_id())),
            "eos_token": name(self.eos_ids().first().copied()),
            "pad_token": name(self.pad_id()),
        });
        if let Some(unknown) = self.roles().and_then(|roles| roles.unk) {
            config["unk_token"] = name(Some(unknown));
        }
        if self.roles().is_some() {
            config["add_bos_token"] = self.add_bos().into();
        }
        if let Some(template) = chat_template.or(self.chat_template()) {
            config["chat_template"] = template.into();
        }
        config
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, from which `transformers` makes the same tokenizer.
    pub fn save_folder(&self, folder: &Path, context: usize, chat_template: Option<&str>) -> Result<()> {
        self.save_huggingface(folder)?;
        let config = self.tokenizer_config(context, chat_template);
        write_atomic(&folder.join(TOKENIZER_CONFIG), pretty(&config).as_bytes())
    }
}

/// The template of conversations: a file of its own, or a key of the configuration: a text, or a list of named ones, of which the one
/// called `default` counts, or else the first.
fn chat_template(folder: &Path, config: &Value) -> Result<Option<String>> {
    let path = folder.join(CHAT_TEMPLATE);
    if path.is_file() {
        return read_utf8(&path).map(Some);
    }
    let template = match &config["chat_template"] {
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default").or(named.first());
            default.and_then(|template| template["template"].as_str())
        }
        template => template.as_str(),
    };
    Ok(template.map(str::to_owned))
}
