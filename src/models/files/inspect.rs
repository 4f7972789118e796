//! What a file says of itself: metadata and tensors, of any architecture, without reading a number.

use super::safetensors::SafetensorsModel;
use super::{FileFormat, detect, folder_of, hf};
use crate::train::files::read_text;
use crate::{Error, Result};
use formats::gguf::{Array, File, Value as GgufValue};
use formats::llama2c::Version;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    pub key: String,
    /// The type in the file.
    pub kind: String,
    pub value: Value,
}

/// A tensor as its file has it; shapes with the outermost dimension first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorEntry {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: String,
    pub bytes: u64,
    /// From the beginning of its file.
    pub offset: u64,
    /// The file, where a model has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    pub path: String,
    /// In words: `GGUF version 3`.
    pub format: String,
    pub architecture: Option<String>,
    pub metadata: Vec<Entry>,
    pub tensors: Vec<TensorEntry>,
    /// Of all tensors' data.
    pub tensor_bytes: u64,
    pub file_bytes: u64,
    /// Numbers in all tensors.
    pub parameters: u64,
}

impl Inspection {
    fn new(path: &Path, format: String, architecture: Option<String>) -> Self {
        Inspection {
            path: path.display().to_string(),
            format,
            architecture,
            metadata: vec![],
            tensors: vec![],
            tensor_bytes: 0,
            file_bytes: 0,
            parameters: 0,
        }
    }

    fn with_tensors(mut self, tensors: Vec<TensorEntry>) -> Self {
        // Shapes were checked against their bytes, so no product is large; saturation is for those with no elements at all.
        let numbers = |t: &TensorEntry| t.shape.iter().fold(1u64, |n, &d| n.saturating_mul(d));
        self.tensor_bytes = tensors.iter().map(|t| t.bytes).fold(0, u64::saturating_add);
        self.parameters = tensors.iter().map(numbers).fold(0, u64::saturating_add);
        self.tensors = tensors;
        self
    }
}

/// Describes the file or folder at `path`.
///
/// # Errors
/// Nothing known, or a damaged file; `Error::Io`.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let lone = path.is_file() && path.extension().is_some_and(|e| e == "safetensors");
    match detect(path) {
        Ok(FileFormat::Gguf) => gguf(path),
        // A file of a folder is described by itself.
        Ok(FileFormat::HuggingFace | FileFormat::Checkpoint) | Err(Error::Checkpoint(_)) if lone => {
            let model = SafetensorsModel::open(path)?;
            Ok(safetensors(Inspection::new(path, "safetensors".into(), None), &model))
        }
        Ok(FileFormat::HuggingFace) => folder(&folder_of(path), "Hugging Face folder"),
        Ok(FileFormat::Checkpoint) => checkpoint(&folder_of(path)),
        Ok(FileFormat::Llama2c) => llama2c(path),
        Ok(FileFormat::GgufLite) => lite(path),
        Err(e) => Err(e),
    }
}

fn gguf(path: &Path) -> Result<Inspection> {
    let file = File::open(path)?;
    let architecture = file.metadata().find::<&str>("general.architecture").ok().flatten().map(str::to_owned);
    let mut inspection = Inspection::new(path, format!("GGUF version {}", file.version()), architecture);
    inspection.file_bytes = file.byte_len();
    let entry =
        |(key, value): (&str, &GgufValue)| Entry { key: key.into(), kind: value.type_name(), value: to_json(value) };
    inspection.metadata = file.metadata().iter().map(entry).collect();
    let tensor = |t: &formats::gguf::Tensor| TensorEntry {
        name: t.name().into(),
        shape: t.dims().iter().rev().copied().collect(),
        kind: t.type_name().into(),
        bytes: t.byte_len(),
        offset: t.offset(),
        file: None,
    };
    Ok(inspection.with_tensors(file.tensors().iter().map(tensor).collect()))
}

fn llama2c(path: &Path) -> Result<Inspection> {
    let file = formats::llama2c::File::open(path)?;
    let format = match file.version() {
        Version::Legacy => "llama2.c, legacy".into(),
        Version::V1 => "llama2.c version 1".into(),
        Version::V2 { group } => format!("llama2.c version 2, groups of {group}"),
    };
    let mut inspection = Inspection::new(path, format, Some("llama".into()));
    inspection.file_bytes = file.byte_len();
    let c = file.config();
    for (key, value) in [
        ("dim", json!(c.dim)),
        ("hidden_dim", json!(c.hidden_dim)),
        ("n_layers", json!(c.layers)),
        ("n_heads", json!(c.heads)),
        ("n_kv_heads", json!(c.kv_heads)),
        ("vocab_size", json!(c.vocab_size)),
        ("seq_len", json!(c.seq_len)),
        ("shared_classifier", json!(c.shared_classifier)),
    ] {
        inspection.metadata.push(Entry { key: key.into(), kind: kind_of(&value).into(), value });
    }
    let tensors = file.tensors().iter().map(|t| TensorEntry {
        name: t.name().into(),
        shape: t.shape().iter().map(|&d| d as u64).collect(),
        kind: if t.group().is_some() { "INT8" } else { "F32" }.into(),
        bytes: t.byte_len(),
        offset: t.offset(),
        file: None,
    });
    Ok(inspection.with_tensors(tensors.collect()))
}

fn lite(path: &Path) -> Result<Inspection> {
    let file = formats::gguf_lite::File::open(path)?;
    let mut inspection = Inspection::new(path, "GGUF-lite version 1".into(), None);
    inspection.file_bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    for (key, value) in file.metadata() {
        inspection.metadata.push(Entry { key: key.clone(), kind: "string".into(), value: value.clone().into() });
    }
    let tensors = file.tensors().iter().map(|t| TensorEntry {
        name: t.name().into(),
        shape: t.shape().iter().map(|&d| d as u64).collect(),
        kind: t.kind().name().into(),
        bytes: t.byte_len(),
        offset: t.offset(),
        file: None,
    });
    Ok(inspection.with_tensors(tensors.collect()))
}

fn to_json(value: &GgufValue) -> Value {
    match value {
        GgufValue::U8(x) => json!(x),
        GgufValue::I8(x) => json!(x),
        GgufValue::U16(x) => json!(x),
        GgufValue::I16(x) => json!(x),
        GgufValue::U32(x) => json!(x),
        GgufValue::I32(x) => json!(x),
        GgufValue::F32(x) => number(*x),
        GgufValue::Bool(x) => json!(x),
        GgufValue::String(x) => json!(x),
        GgufValue::Array(x) => array(x),
        GgufValue::U64(x) => json!(x),
        GgufValue::I64(x) => json!(x),
        GgufValue::F64(x) => json!(x),
    }
}

/// The digits that an f32 has, instead of those of the f64 next to it.
fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, |x| json!(x))
}

fn array(array: &Array) -> Value {
    match array {
        Array::U8(v) => json!(v),
        Array::I8(v) => json!(v),
        Array::U16(v) => json!(v),
        Array::I16(v) => json!(v),
        Array::U32(v) => json!(v),
        Array::I32(v) => json!(v),
        Array::F32(v) => v.iter().map(|&x| number(x)).collect(),
        Array::Bool(v) => json!(v),
        Array::String(v) => v.iter_lossy().map(|s| Value::String(s.into_owned())).collect(),
        Array::Array(v) => v.iter().map(self::array).collect(),
        Array::U64(v) => json!(v),
        Array::I64(v) => json!(v),
        Array::F64(v) => json!(v),
    }
}

fn safetensors(mut inspection: Inspection, files: &SafetensorsModel) -> Inspection {
    let model = &files.model;
    inspection.file_bytes = model.byte_len();
    for (key, value) in model.metadata() {
        inspection.metadata.push(Entry { key: key.clone(), kind: "string".into(), value: value.clone().into() });
    }
    let names: Vec<String> = model.files().map(file_name).collect();
    let tensors = model.tensors().iter().map(|t| TensorEntry {
        name: t.name().into(),
        shape: t.shape().iter().map(|&d| d as u64).collect(),
        kind: t.dtype().name().into(),
        bytes: t.byte_len(),
        offset: t.offset(),
        file: (names.len() > 1).then(|| names[t.shard()].clone()),
    });
    let tensors = tensors.collect();
    inspection.with_tensors(tensors)
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.into(), |n| n.to_string_lossy().into_owned())
}

fn folder(folder: &Path, format: &str) -> Result<Inspection> {
    let config = hf::json(&folder.join(hf::CONFIG))?;
    let architecture = config["architectures"][0].as_str().or(config["kind"].as_str()).map(str::to_owned);
    let mut inspection = Inspection::new(folder, format.into(), architecture);
    for (key, value) in config.as_object().into_iter().flatten() {
        inspection.metadata.push(Entry { key: key.clone(), kind: kind_of(value).into(), value: value.clone() });
    }
    Ok(safetensors(inspection, &SafetensorsModel::open(folder)?))
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A checkpoint; of a run, the one that would be used.
fn checkpoint(path: &Path) -> Result<Inspection> {
    let run = path.join("config.toml").is_file();
    let at = if run { super::own::of_run(path, false)?.0 } else { path.to_path_buf() };
    let mut inspection = folder(&at, "checkpoint of lynx-gpu")?;
    let manifest = path.join("manifest.json");
    if run && let Ok(Value::Object(said)) = serde_json::from_str(&read_text(&manifest).unwrap_or_default()) {
        for key in ["preset", "status", "seed"] {
            if let Some(value) = said.get(key) {
                let key = format!("run.{key}");
                inspection.metadata.push(Entry { key, kind: kind_of(value).into(), value: value.clone() });
            }
        }
    }
    Ok(inspection)
}
