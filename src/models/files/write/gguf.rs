//! GGUF files that llama.cpp runs.

use super::emit::{Meaning, Outgoing, emit};
use super::{Job, Written, less_one};
use crate::config::{FeedForward, GptConfig, LlamaConfig, RopeScaling};
use crate::models::files::gguf_config::{Architecture, yarn_magnitude};
use crate::models::files::shape::{self, Shape};
use crate::models::files::{llama3, tables};
use crate::tokenizer::gguf::GgufVocabulary;
use crate::tokenizer::spm::PieceKind;
use crate::{Error, Result};
use formats::gguf::{Array, Metadata, NewTensor, Value, Writer};
use kernels_cpu::blocks::Format;
use std::path::Path;

/// What a file will hold, besides the numbers.
pub(super) struct Plan {
    pub metadata: Metadata,
    pub tensors: Vec<Outgoing>,
    pub meaning: Meaning,
    /// `rope_freqs.weight`.
    pub divisors: Option<Vec<f32>>,
    pub architecture: Architecture,
    pub notes: Vec<String>,
}

pub(super) fn plan(job: &Job) -> Result<Plan> {
    let shape = Shape::of(&job.model.config)?;
    let mut metadata = Metadata::new();
    let (architecture, mut notes) = match &shape {
        Shape::Llama(c) => shape::for_gguf(c)?,
        Shape::Gpt2(c) if c.ff_kind == FeedForward::Gelu => (Architecture::Gpt2, vec![]),
        Shape::Gpt2(c) => {
            return Err(Error::Config(format!(
                "model.ff_kind = {:?} has no place in a GGUF file: llama.cpp's GPT-2 has the tanh form of GELU (\"gelu\"); a Hugging Face folder can be written",
                c.ff_kind
            )));
        }
    };
    metadata.set("general.architecture", architecture.name());
    metadata.set("general.type", "model");
    metadata.set("general.name", job.name.as_str());
    let (table, meaning, divisors) = match &shape {
        Shape::Llama(c) => {
            llama_keys(c, architecture, &mut metadata);
            let meaning = Meaning {
                from_layout: c.rope_layout,
                to_layout: architecture.layout(),
                head_dim: c.head_dim,
                turned: c.rope_dims,
                add_to_gains: less_one(c.norm_plus_one),
            };
            let divisors = (c.rope_scaling == RopeScaling::Llama3).then(|| llama3::factors(c));
            (tables::gguf_llama(c, architecture.layout()), meaning, divisors)
        }
        Shape::Gpt2(c) => {
            gpt2_keys(c, &mut metadata);
            let layout = c.rope_layout;
            let meaning = Meaning { from_layout: layout, to_layout: layout, head_dim: 1, turned: 0, add_to_gains: 0.0 };
            (tables::gguf_gpt2(c), meaning, None)
        }
    };
    let mut tensors = Vec::new();
    let mut kept = Vec::new();
    for link in table.links {
        let shape = link.shape();
        let found = link.parts.iter().find_map(|part| job.model.weights.find(&part.ours));
        let stored = found.map_or(Format::F32, |weight| weight.format);
        let mut format = if shape.len() == 1 { Format::F32 } else { job.format.unwrap_or(stored) };
        if link.stored == "position_embd.weight" {
            // llama.cpp keeps the table of positions wide.
            format = Format::F32;
        }
        let columns = shape.last().copied().unwrap_or(1);
        if format.row_bytes(columns).is_err() {
            format = if stored.row_bytes(columns).is_ok() { stored } else { Format::F16 };
            kept.push(link.stored.clone());
        }
        // The parts of one tensor have one type.
        tensors.push(Outgoing { link, shape, format });
    }
    if let (Some(first), Some(wanted)) = (kept.first(), job.format) {
        notes.push(format!(
            "{} tensors do not have rows of whole blocks of {wanted} and keep a wider type (`{first}` and others)",
            kept.len()
        ));
    }
    metadata.set("general.file_type", file_type(&tensors));
    metadata.set("general.quantization_version", 2u32);
    tokenizer(job, &mut metadata, &mut notes)?;
    Ok(Plan { metadata, tensors, meaning, divisors, architecture, notes })
}

/// The vocabulary. llama.cpp wants a token for every row of the embedding, so rows beyond the tokenizer's ids get tokens that stand for
/// nothing.
fn tokenizer(job: &Job, metadata: &mut Metadata, notes: &mut Vec<String>) -> Result<()> {
    let model = job.model;
    notes.extend(model.tokenizer.write_gguf(metadata)?);
    let (ids, rows) = (model.tokenizer.vocab_size(), model.config.vocab_size());
    if rows > ids {
        let mut vocabulary = GgufVocabulary::from_metadata(metadata)?;
        let types = vocabulary.types.len() == vocabulary.tokens.len();
        vocabulary.tokens.extend((ids..rows).map(|id| format!("[PAD{id}]").into_bytes()));
        if types {
            vocabulary.types.resize(rows, PieceKind::Unused as i32);
        }
        if !vocabulary.scores.is_empty() {
            vocabulary.scores.resize(rows, -1000.0);
        }
        vocabulary.write_metadata(metadata);
    }
    if let Some(template) = &model.chat_template {
        metadata.set("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// `general.file_type`: what most matrices are.
fn file_type(tensors: &[Outgoing]) -> u32 {
    let mut bytes: Vec<(Format, usize)> = Vec::new();
    for tensor in tensors.iter().filter(|t| t.shape.len() > 1) {
        let numbers = tensor.shape.iter().product::<usize>();
        match bytes.iter_mut().find(|(format, _)| *format == tensor.format) {
            Some((_, sum)) => *sum += numbers,
            None => bytes.push((tensor.format, numbers)),
        }
    }
    let most = bytes.into_iter().max_by_key(|(_, numbers)| *numbers).map_or(Format::F32, |(format, _)| format);
    match most {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::Q5_0 => 8,
        Format::Q5_1 => 9,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 14,
        Format::Q5K => 16,
        Format::Q6K => 18,
        Format::Bf16 => 32,
        // One of ours: "guessed".
        Format::Int8Row | Format::Int4Group(_) | Format::Nf4 => 1024,
    }
}

fn llama_keys(c: &LlamaConfig, architecture: Architecture, metadata: &mut Metadata) {
    let mut set = |key: &str, value: Value| metadata.set(format!("{}.{key}", architecture.name()), value);
    let size = |n: usize| Value::U32(n as u32);
    let number = |x: f64| Value::F32(x as f32);
    set("block_count", size(c.layers));
    set("context_length", size(c.context));
    set("embedding_length", size(c.width));
    set("feed_forward_length", size(c.ff_width));
    set("attention.head_count", size(c.heads));
    set("attention.head_count_kv", size(c.kv_heads));
    set("attention.key_length", size(c.head_dim));
    set("attention.value_length", size(c.head_dim));
    set("attention.layer_norm_rms_epsilon", number(c.norm_eps));
    set("vocab_size", size(c.vocab_size));
    let (base, scaling) = shape::rope_of(c);
    set("rope.dimension_count", size(c.rope_dims));
    set("rope.freq_base", number(base));
    match scaling {
        RopeScaling::None | RopeScaling::Ntk => {}
        RopeScaling::Linear => {
            set("rope.scaling.type", Value::String("linear".into()));
            set("rope.scaling.factor", number(c.rope_factor));
        }
        RopeScaling::Yarn => {
            set("rope.scaling.type", Value::String("yarn".into()));
            set("rope.scaling.factor", number(c.rope_factor));
            set("rope.scaling.original_context_length", size(c.rope_original_context));
            set("rope.scaling.yarn_beta_fast", number(c.rope_beta_fast));
            set("rope.scaling.yarn_beta_slow", number(c.rope_beta_slow));
            if c.rope_attention_factor > 0.0 {
                // llama.cpp multiplies the usual factor by this one.
                set("rope.scaling.attn_factor", number(c.rope_attention_factor / yarn_magnitude(c.rope_factor)));
            }
        }
        // The divisors are a tensor.
        RopeScaling::Llama3 => set("rope.scaling.original_context_length", size(c.rope_original_context)),
    }
    // Readers take 4096 where a Gemma 2 does not say it.
    if c.window == 0 && architecture == Architecture::Gemma2 {
        set("attention.sliding_window", size(c.context));
    }
    if c.window > 0 {
        set("attention.sliding_window", size(c.window));
        if architecture != Architecture::Gemma2 && (c.window_period > 0 || c.window_from > 0) {
            let windowed = (0..c.layers).map(|i| c.window_of(i) > 0).collect();
            set("attention.sliding_window_pattern", Value::Array(Array::Bool(windowed)));
        }
    }
    if architecture == Architecture::Gemma2 {
        set("attn_logit_softcapping", number(c.attention_softcap));
        set("final_logit_softcapping", number(c.final_softcap));
        set("attention.scale", number(shape::scale_of(c)));
    }
}

fn gpt2_keys(c: &GptConfig, metadata: &mut Metadata) {
    let mut set = |key: &str, value: Value| metadata.set(format!("{}.{key}", Architecture::Gpt2.name()), value);
    let size = |n: usize| Value::U32(n as u32);
    set("block_count", size(c.layers));
    set("context_length", size(c.context));
    set("embedding_length", size(c.width));
    set("feed_forward_length", size(c.ff_width));
    set("attention.head_count", size(c.heads));
    set("attention.layer_norm_epsilon", Value::F32(c.norm_eps as f32));
    set("vocab_size", size(c.vocab_size));
}

pub(super) fn write(job: &Job, path: &Path) -> Result<Written> {
    let plan = plan(job)?;
    const DIVISORS: &str = "rope_freqs.weight";
    let new = |name: &str, shape: &[usize], format: Format| {
        NewTensor::new(name, shape, format).map_err(|e| Error::Checkpoint(format!("{}: {e}", path.display())))
    };
    let mut infos = Vec::new();
    if let Some(divisors) = &plan.divisors {
        infos.push(new(DIVISORS, &[divisors.len()], Format::F32)?);
    }
    for tensor in &plan.tensors {
        infos.push(new(&tensor.link.stored, &tensor.shape, tensor.format)?);
    }
    let count = infos.len();
    let mut writer = Writer::create(path, &plan.metadata, infos)?;
    if let Some(divisors) = &plan.divisors {
        let bytes: Vec<u8> = divisors.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.write(DIVISORS, &bytes)?;
    }
    for tensor in &plan.tensors {
        let name = &tensor.link.stored;
        emit(job.model.weights.as_ref(), tensor, &plan.meaning, &mut |bytes| Ok(writer.write(name, bytes)?))?;
    }
    writer.finish()?;
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    Ok(Written { bytes, tensors: count, architecture: plan.architecture.name().into(), notes: plan.notes })
}
