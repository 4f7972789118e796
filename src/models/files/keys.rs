//! Values of a file's keys, checked as they are taken: an error names the file and the key.

use crate::config::ModelConfig;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// Largest size that a file may give: no width, context or vocabulary in use is near it, and no product of three leaves 128 bits.
pub(super) const LARGEST: u64 = 1 << 24;

/// Checks a configuration that comes from `file`. Messages call keys as the file does: `names` has pairs of our name and its own.
pub(super) fn check(file: &str, model: &ModelConfig, names: &[(&str, &str)]) -> Result<()> {
    let valid = match model {
        ModelConfig::Gpt(c) => c.validate(),
        ModelConfig::Llama(c) => c.validate(),
        ModelConfig::Coeus(_) => Ok(()),
    };
    valid.map_err(|e| {
        let message = e.to_string();
        let mut names = names.to_vec();
        // No name is to be taken for a longer one that begins like it.
        names.sort_by_key(|(ours, _)| std::cmp::Reverse(ours.len()));
        let put = |said: String, (ours, theirs): (&str, &str)| said.replace(&format!("model.{ours}"), theirs);
        let said = names.into_iter().fold(message.trim_start_matches("config: ").to_string(), put);
        Error::Checkpoint(format!("{file}: {said}"))
    })
}

/// The keys of one object in a JSON file. A key that is null is a key that is not there, as in `transformers`.
pub(super) struct Keys<'a> {
    file: &'a str,
    /// What stands before a key in messages: `rope_scaling.`, or nothing.
    within: String,
    map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::Checkpoint(format!("{file}: not a JSON object")))?;
        Ok(Keys { file, within: String::new(), map })
    }

    /// The object that is the value of `key`.
    pub fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.bad(key, "must be an object"))?;
        Ok(Some(Keys { file: self.file, within: format!("{}{key}.", self.within), map }))
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A key whose value is an object.
    pub fn nested(&self) -> Option<&'a str> {
        self.map.iter().find(|(_, value)| value.is_object()).map(|(key, _)| key.as_str())
    }

    /// It is there, as null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// `FILE: KEY = VALUE WHAT`.
    pub fn bad(&self, key: &str, what: impl std::fmt::Display) -> Error {
        let value = self.map.get(key).map_or_else(|| "nothing".into(), Value::to_string);
        let value = if value.len() > 80 { "..".into() } else { value };
        Error::Checkpoint(format!("{}: {}{key} = {value} {what}", self.file, self.within))
    }

    /// A whole number from `least` to [`LARGEST`].
    pub fn size(&self, key: &str, least: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().filter(|n| (least..=LARGEST).contains(n));
        let number =
            number.ok_or_else(|| self.bad(key, format!("must be a whole number from {least} to {LARGEST}")))?;
        Ok(Some(number as usize))
    }

    /// As [`Keys::size`], of a key that must be there, at least 1.
    pub fn needed(&self, key: &str) -> Result<usize> {
        self.size(key, 1)?.ok_or_else(|| {
            Error::Checkpoint(format!("{}: {}{key} is missing: it says how large the model is", self.file, self.within))
        })
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| self.bad(key, "must be a number"))
    }

    /// A finite number greater than 0.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(self.bad(key, "must be greater than 0")),
            x => Ok(x),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.bad(key, "must be true or false"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(key, "must be a text"))
    }

    /// An error unless `key` is absent or `allowed`; `what` says what the other values would mean.
    pub fn must_be(&self, key: &str, allowed: impl Into<Value>, what: &str) -> Result<()> {
        let allowed = allowed.into();
        match self.get(key) {
            Some(value) if *value != allowed && !same_number(value, &allowed) => {
                Err(self.bad(key, format!("is not supported ({what}); only {allowed} is")))
            }
            _ => Ok(()),
        }
    }
}

/// 1 and 1.0 are one number in JSON.
fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}
