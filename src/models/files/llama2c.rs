//! Files of the llama2.c project as tensors, and as models. They say sizes only: everything else is fixed by `run.c`.

use super::links::{LinkedWeights, Tensors, check_range};
use super::{FileFormat, ModelFile, tables};
use crate::config::{LlamaConfig, ModelConfig, RopeLayout};
use crate::models::weights::StoredWeight;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use formats::Source;
use formats::llama2c::{Config, File, Tensor};
use kernels_cpu::blocks::Format;
use std::path::{Path, PathBuf};

/// What `run.c` has in its code.
pub(super) const NORM_EPS: f64 = 1e-5;
pub(super) const ROPE_BASE: f64 = 10000.0;

struct Llama2cTensors {
    file: File,
    /// The same file, for positioned reads of parts of a tensor.
    source: Source,
}

impl Llama2cTensors {
    /// Numbers `first ..` of a tensor of int8 codes, which come first, and f32 scales, one a group.
    fn widen(&self, tensor: &Tensor, group: usize, first: usize, into: &mut [u8]) -> Result<()> {
        let count = into.len() / 4;
        let mut codes = vec![0; count];
        self.source.read_at(tensor.offset() + first as u64, &mut codes)?;
        let groups = first / group..(first + count).div_ceil(group);
        let mut scales = vec![0; 4 * groups.len()];
        let at = tensor.offset() + (tensor.elements() + 4 * groups.start) as u64;
        self.source.read_at(at, &mut scales)?;
        let scales: Vec<f32> = super::numbers::to_f32(Format::F32, &scales).collect();
        for (i, (code, into)) in codes.iter().zip(into.chunks_exact_mut(4)).enumerate() {
            let x = f32::from(code.cast_signed()) * scales[(first + i) / group - groups.start];
            into.copy_from_slice(&x.to_le_bytes());
        }
        Ok(())
    }
}

impl Tensors for Llama2cTensors {
    fn names(&self) -> Vec<String> {
        self.file.tensors().iter().map(|t| t.name().to_string()).collect()
    }

    /// Everything is f32, or becomes so.
    fn find(&self, name: &str) -> Result<Option<StoredWeight>> {
        let stored = |t: &Tensor| StoredWeight { shape: t.shape().to_vec(), format: Format::F32 };
        Ok(self.file.find(name).map(stored))
    }

    fn read_at(&self, name: &str, at: u64, into: &mut [u8]) -> Result<()> {
        let tensor = self.file.tensor(name)?;
        check_range(&self.origin(), name, at, into.len(), 4 * tensor.elements() as u64)?;
        match tensor.group() {
            Some(group) => self.widen(tensor, group, at as usize / 4, into),
            None => Ok(self.source.read_at(tensor.offset() + at, into)?),
        }
    }

    fn origin(&self) -> String {
        self.file.name().to_string()
    }
}

fn config_of(c: &Config) -> LlamaConfig {
    let mut config = LlamaConfig {
        layers: c.layers,
        heads: c.heads,
        kv_heads: c.kv_heads,
        width: c.dim,
        ff_width: c.hidden_dim,
        norm_eps: NORM_EPS,
        rope_base: ROPE_BASE,
        rope_layout: RopeLayout::Interleaved,
        tied_head: c.shared_classifier,
        context: c.seq_len,
        vocab_size: c.vocab_size,
        ..LlamaConfig::default()
    };
    config.resolve();
    config
}

/// What our keys are called in the header.
const NAMES: [(&str, &str); 7] = [
    ("layers", "n_layers"),
    ("heads", "n_heads"),
    ("kv_heads", "n_kv_heads"),
    ("width", "dim"),
    ("ff_width", "hidden_dim"),
    ("vocab_size", "vocab_size"),
    ("context", "seq_len"),
];

pub(super) fn open(path: &Path, given: Option<Tokenizer>) -> Result<ModelFile> {
    let file = File::open(path)?;
    let config = config_of(file.config());
    let (table, rows) = (tables::llama2c(&config), config.vocab_size);
    let config = ModelConfig::Llama(config);
    super::keys::check(file.name(), &config, &NAMES)?;
    let tokenizer = given.map_or_else(|| tokenizer_beside(path, rows), Ok)?;
    super::check_vocabulary(file.name(), &config, &tokenizer)?;
    let tensors = Llama2cTensors { file, source: Source::open(path)? };
    let (weights, notes) = LinkedWeights::new(tensors, table, |name| name.starts_with("freqs_"))?;
    Ok(ModelFile {
        config,
        chat_template: None,
        tokenizer,
        weights: Box::new(weights),
        origin: path.to_path_buf(),
        format: FileFormat::Llama2c,
        notes,
    })
}

/// The `tokenizer.bin` or `tok*.bin` beside the model that has a token for each of its `rows`.
fn tokenizer_beside(path: &Path, rows: usize) -> Result<Tokenizer> {
    let folder = super::parent_of(path);
    let name = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?.flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = entries
        .filter(|p| name(p).starts_with("tok") && p.extension().is_some_and(|e| e == "bin") && p.as_path() != path)
        .collect();
    found.sort_by_key(|p| (name(p) != "tokenizer.bin", name(p)));
    let mut refused = Vec::new();
    for file in &found {
        match super::load_tokenizer(file) {
            Ok(tokenizer) if tokenizer.vocab_size() == rows => return Ok(tokenizer),
            Ok(other) => refused.push(format!("{} has {} tokens", name(file), other.vocab_size())),
            Err(e) => refused.push(e.to_string()),
        }
    }
    let why = if refused.is_empty() { String::new() } else { format!(" ({})", refused.join("; ")) };
    Err(Error::Checkpoint(format!(
        "{}: no tokenizer.bin or tok*.bin of {rows} tokens beside it{why}; give the tokenizer with --tokenizer",
        path.display()
    )))
}
