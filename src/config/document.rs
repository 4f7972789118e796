//! TOML text and `--set` overrides, laid over the default configuration with every key and type checked on the way.

use super::{Config, ModelConfig};
use crate::error::{Error, Result};
use std::ops::Range;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// The default configuration with a file's values, and then overrides, laid over it.
pub(super) struct Document {
    merged: Table,
}

/// Where a value came from, for messages: `file:line` or `--set`.
struct Origin<'a> {
    file: &'a str,
    text: &'a str,
}

impl Origin<'_> {
    fn at(&self, span: Range<usize>) -> String {
        let line = 1 + self.text.as_bytes()[..span.start.min(self.text.len())].iter().filter(|&&b| b == b'\n').count();
        format!("{}:{line}", self.file)
    }
}

impl Document {
    pub(super) fn new(text: &str, file: &str) -> Result<Self> {
        let origin = Origin { file, text };
        // Plain values come from one parse and places in the text from another: the spanned form has no public integers.
        let spanned = DeTable::parse(text)
            .map_err(|e| Error::Config(format!("{}: {}", origin.at(e.span().unwrap_or(0..0)), e.message())))?;
        let values: Table = toml::from_str(text).map_err(|e| Error::Config(format!("{file}: {}", e.message())))?;

        let mut config = Config::default();
        if let Some(kind) = values.get("model").and_then(|model| model.get("kind")) {
            config.model = model_defaults(kind, &kind_place(spanned.get_ref(), &origin))?;
        }
        let mut document = Document { merged: to_table(&config) };
        document.merge(spanned.get_ref(), &values, &mut Vec::new(), &origin)?;
        Ok(document)
    }

    fn merge(&mut self, spans: &DeTable, values: &Table, path: &mut Vec<String>, origin: &Origin) -> Result<()> {
        for (key, spanned) in spans.iter() {
            let place = origin.at(key.span());
            let name = key.get_ref().to_string();
            let value = &values[&name];
            path.push(name);
            let schema = self.lookup(path, &place)?;
            match (schema.is_table(), spanned.get_ref(), value) {
                (true, DeValue::Table(inner), Value::Table(inner_values)) => {
                    self.merge(inner, inner_values, path, origin)?;
                }
                _ => self.put(path, value.clone(), &place)?,
            }
            path.pop();
        }
        Ok(())
    }

    /// Applies one `path.to.key=value`.
    pub(super) fn set(&mut self, assignment: &str) -> Result<()> {
        let place = format!("--set {assignment}");
        let Some((key, raw)) = assignment.split_once('=') else {
            return Err(Error::Config(format!("{place}: expected path.to.key=value")));
        };
        let (key, raw) = (key.trim(), raw.trim());
        let path: Vec<String> = key.split('.').map(str::to_string).collect();
        let schema = self.lookup(&path, &place)?;
        let parsed = || toml::from_str::<Table>(&format!("v = {raw}")).ok().and_then(|mut table| table.remove("v"));
        let value = match schema {
            Value::String(_) => match parsed() {
                Some(Value::String(quoted)) => Value::String(quoted),
                _ => Value::String(raw.to_string()),
            },
            _ => parsed().unwrap_or_else(|| Value::String(raw.to_string())),
        };
        if key == "model.kind" {
            let model = model_defaults(&value, &place)?;
            let mut defaults = to_table(&Config { model, ..Config::default() });
            if defaults["model"]["kind"] != self.merged["model"]["kind"] {
                self.merged["model"] = defaults.remove("model").expect("every configuration has a model");
            }
            return Ok(());
        }
        self.put(&path, value, &place)
    }

    /// The default at `path`: the schema of the value there.
    fn lookup(&self, path: &[String], place: &str) -> Result<Value> {
        let mut table = &self.merged;
        for (depth, key) in path.iter().enumerate() {
            match table.get(key) {
                None => return Err(self.unknown(path, depth, table, place)),
                Some(Value::Table(inner)) if depth + 1 < path.len() => table = inner,
                Some(_) if depth + 1 < path.len() => {
                    return Err(Error::Config(format!(
                        "{place}: `{}` is a single value and has no key `{}`",
                        path[..=depth].join("."),
                        path[depth + 1]
                    )));
                }
                Some(value) => return Ok(value.clone()),
            }
        }
        Err(Error::Config(format!("{place}: an empty key")))
    }

    /// Checks the type of `value` against the default at `path` and stores it.
    fn put(&mut self, path: &[String], value: Value, place: &str) -> Result<()> {
        let schema = self.lookup(path, place)?;
        let key = path.join(".");
        let value = match (&schema, value) {
            (Value::Float(_), Value::Integer(n)) => Value::Float(n as f64),
            (_, value) => value,
        };
        if std::mem::discriminant(&schema) != std::mem::discriminant(&value) {
            return Err(Error::Config(format!(
                "{place}: `{key}` expects {}, found {}",
                type_name(&schema),
                describe(&value)
            )));
        }
        let mut candidate = self.merged.clone();
        *leaf(&mut candidate, path) = value.clone();
        // Each value is tried alone on what is already good, so an error below belongs to this key.
        if let Err(error) = candidate.clone().try_into::<Config>() {
            return Err(Error::Config(format!("{place}: `{key}`: {}", explain(error.message(), &value))));
        }
        self.merged = candidate;
        Ok(())
    }

    fn unknown(&self, path: &[String], depth: usize, siblings: &Table, place: &str) -> Error {
        let wanted = path[..=depth].join(".");
        let prefix = path[..depth].join(".");
        let mut leaves = Vec::new();
        collect_keys(&self.merged, "", &mut leaves);
        // A key of the same section that is spelled alike; else the same key in another section.
        let near = closest(&path[depth], siblings.keys().map(String::as_str)).map(|key| join(&prefix, key));
        let elsewhere = || {
            let last = &path[path.len() - 1];
            leaves.iter().find(|leaf| leaf.rsplit('.').next() == Some(last)).cloned()
        };
        let anywhere = || closest(&wanted, leaves.iter().map(String::as_str)).map(str::to_string);
        let hint = match near.or_else(elsewhere).or_else(anywhere) {
            Some(suggestion) => format!("did you mean `{suggestion}`?"),
            None => {
                let keys: Vec<&str> = siblings.keys().map(String::as_str).collect();
                let section = if prefix.is_empty() { "the top level".into() } else { format!("[{prefix}]") };
                format!("{section} has {}", keys.join(", "))
            }
        };
        Error::Config(format!("{place}: unknown key `{wanted}`; {hint}"))
    }

    pub(super) fn into_config(self) -> Result<Config> {
        self.merged.try_into().map_err(|e| Error::Config(e.message().to_string()))
    }
}

fn model_defaults(kind: &Value, place: &str) -> Result<ModelConfig> {
    let Value::String(kind) = kind else {
        return Err(Error::Config(format!("{place}: `model.kind` expects text, found {}", describe(kind))));
    };
    ModelConfig::default_of(kind).ok_or_else(|| {
        let hint = match closest(kind, ModelConfig::KINDS.into_iter()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("there is {}", ModelConfig::KINDS.join(", ")),
        };
        Error::Config(format!("{place}: `model.kind`: there is no model family \"{kind}\"; {hint}"))
    })
}

fn kind_place(root: &DeTable, origin: &Origin) -> String {
    let span = root.iter().find(|(key, _)| key.get_ref() == "model").and_then(|(key, model)| match model.get_ref() {
        DeValue::Table(table) => {
            table.iter().find(|(key, _)| key.get_ref() == "kind").map(|(key, _)| key.span()).or(Some(key.span()))
        }
        _ => None,
    });
    origin.at(span.unwrap_or(0..0))
}

fn to_table(config: &Config) -> Table {
    Table::try_from(config).expect("a configuration has only TOML types")
}

fn leaf<'a>(table: &'a mut Table, path: &[String]) -> &'a mut Value {
    let mut value = &mut table[&path[0]];
    for key in &path[1..] {
        value = &mut value[key.as_str()];
    }
    value
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") }
}

fn collect_keys(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = join(prefix, key);
        match value {
            Value::Table(inner) => collect_keys(inner, &path, out),
            _ => out.push(path),
        }
    }
}

/// The candidate spelled most like `word`, if it is alike enough to be a slip of the hand.
pub(super) fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, candidate)| *score >= 0.85 || strsim::damerau_levenshtein(word, candidate) <= 2)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section of keys",
        Value::Datetime(_) => "a date",
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Table(_) => "a section of keys".into(),
        value => format!("{} ({value})", type_name(value)),
    }
}

/// Serde's message in this program's words, with a suggestion where a word from a fixed list was misspelled.
fn explain(message: &str, value: &Value) -> String {
    let message = message.lines().next().unwrap_or_default();
    if let (Value::String(word), Some((_, list))) = (value, message.split_once("expected one of ")) {
        let choices: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let hint = closest(word, choices.iter().copied()).map(|near| format!("; did you mean \"{near}\"?"));
        return format!("\"{word}\" is not one of {}{}", choices.join(", "), hint.unwrap_or_default());
    }
    if let Value::Integer(n) = value
        && *n < 0
    {
        return format!("{n} is negative");
    }
    format!("{value} cannot be used: {message}")
}
