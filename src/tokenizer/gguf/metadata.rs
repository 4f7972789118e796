//! The vocabulary as metadata of a GGUF file.

use super::GgufVocabulary;
use crate::tokenizer::{Roles, Tokenizer};
use crate::{Error, Result};
use formats::gguf::{Array, FromValue, Metadata, Strings};

/// A whole `tokenizer.json` in one key: what a tokenizer of this program is read from again.
pub const WHOLE_TOKENIZER: &str = "tokenizer.huggingface.json";

const TEMPLATE: &str = "tokenizer.chat_template";

impl GgufVocabulary {
    /// Reads the `tokenizer.*` keys. A key with a type other than the format's is an error that names it.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self> {
        fn find<'a, T: FromValue<'a>>(metadata: &'a Metadata, key: &str) -> Result<Option<T>> {
            Ok(metadata.find(&format!("tokenizer.ggml.{key}"))?)
        }
        let strings = |key: &str| -> Result<Vec<&[u8]>> {
            match find::<&Array>(metadata, key)? {
                // Writers give an empty list any type.
                Some(array) if array.is_empty() => Ok(vec![]),
                Some(_) => Ok(find::<&Strings>(metadata, key)?.into_iter().flat_map(Strings::iter).collect()),
                None => Ok(vec![]),
            }
        };
        let merges = strings("merges")?.into_iter().enumerate().map(|(rank, merge)| {
            let text = std::str::from_utf8(merge).map(str::to_owned);
            text.map_err(|_| Error::Data(format!("tokenizer.ggml.merges[{rank}] is not UTF-8")))
        });
        let types = match find::<&Array>(metadata, "token_type")? {
            Some(array) => array
                .to_i64s()
                .and_then(|types| types.into_iter().map(|kind| kind.try_into().ok()).collect::<Option<Vec<i32>>>())
                .ok_or_else(|| Error::Data("tokenizer.ggml.token_type is not a list of small integers".into()))?,
            None => vec![],
        };
        Ok(Self {
            model: find::<&str>(metadata, "model")?.unwrap_or_default().to_owned(),
            pre: find::<&str>(metadata, "pre")?.unwrap_or_default().to_owned(),
            tokens: strings("tokens")?.into_iter().map(<[u8]>::to_vec).collect(),
            scores: find::<&[f32]>(metadata, "scores")?.unwrap_or_default().to_vec(),
            types,
            merges: merges.collect::<Result<_>>()?,
            bos: find(metadata, "bos_token_id")?,
            eos: find(metadata, "eos_token_id")?,
            unk: find(metadata, "unknown_token_id")?,
            pad: find(metadata, "padding_token_id")?,
            eot: find(metadata, "eot_token_id")?,
            add_bos: find(metadata, "add_bos_token")?,
            add_eos: find(metadata, "add_eos_token")?,
            add_space_prefix: find(metadata, "add_space_prefix")?,
            remove_extra_whitespaces: find(metadata, "remove_extra_whitespaces")?,
            chat_template: metadata.find::<&str>(TEMPLATE)?.map(str::to_owned),
        })
    }

    /// Sets the `tokenizer.*` keys.
    pub fn write_metadata(&self, metadata: &mut Metadata) {
        let mut set = |key: &str, value: formats::gguf::Value| metadata.set(format!("tokenizer.ggml.{key}"), value);
        set("model", self.model.as_str().into());
        set("pre", self.pre.as_str().into());
        set("tokens", self.tokens.iter().collect::<Strings>().into());
        if !self.scores.is_empty() {
            set("scores", self.scores.clone().into());
        }
        if !self.types.is_empty() {
            set("token_type", self.types.clone().into());
        }
        // llama.cpp wants the key where there are no merges too.
        if self.model == "gpt2" {
            set("merges", self.merges.iter().collect::<Strings>().into());
        }
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("unknown_token_id", self.unk),
            ("padding_token_id", self.pad),
            ("eot_token_id", self.eot),
        ];
        ids.into_iter().filter_map(|(key, id)| Some((key, id?))).for_each(|(key, id)| set(key, id.into()));
        let flags = [
            ("add_bos_token", self.add_bos),
            ("add_eos_token", self.add_eos),
            ("add_space_prefix", self.add_space_prefix),
            ("remove_extra_whitespaces", self.remove_extra_whitespaces),
        ];
        flags.into_iter().filter_map(|(key, flag)| Some((key, flag?))).for_each(|(key, flag)| set(key, flag.into()));
        if let Some(template) = &self.chat_template {
            metadata.set(TEMPLATE, template.as_str());
        }
    }
}

impl Tokenizer {
    /// The tokenizer of a GGUF file: the whole `tokenizer.json` where the file has one, since some of them are more than llama.cpp's keys
    /// can say; those keys otherwise.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer> {
        let Some(json) = metadata.find::<&str>(WHOLE_TOKENIZER)? else {
            if metadata.get("tokenizer.ggml.tokens").is_none() {
                return Err(Error::Data("the GGUF file has no tokenizer (no key tokenizer.ggml.tokens)".into()));
            }
            return Tokenizer::from_gguf_vocabulary(GgufVocabulary::from_metadata(metadata)?);
        };
        let mut tokenizer = Tokenizer::from_json(WHOLE_TOKENIZER, json.to_owned())?;
        let keys = GgufVocabulary { tokens: vec![], types: vec![], ..GgufVocabulary::from_metadata(metadata)? };
        let mut said = Roles {
            bos: keys.bos,
            pad: keys.pad,
            unk: keys.unk,
            add_bos: keys.add_bos,
            add_eos: keys.add_eos == Some(true),
            chat_template: keys.chat_template,
            ..Roles::default()
        };
        [keys.eos, keys.eot].into_iter().flatten().for_each(|id| said.ends_with(id));
        tokenizer.set_roles(said)?;
        Ok(tokenizer)
    }

    /// Sets the `tokenizer.*` keys of a GGUF file, and returns what somebody who runs it in llama.cpp should know, see
    /// [`Tokenizer::to_gguf_vocabulary`]. All kinds but SentencePiece go with their whole `tokenizer.json`, by which they come back as they
    /// were.
    pub fn write_gguf(&self, metadata: &mut Metadata) -> Result<Vec<String>> {
        let written = self.to_gguf_vocabulary()?;
        written.vocabulary.write_metadata(metadata);
        if !matches!(self, Tokenizer::Spm(_)) {
            metadata.set(WHOLE_TOKENIZER, self.to_huggingface_json());
        }
        Ok(written.notes)
    }
}
