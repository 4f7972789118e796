//! Folders that `transformers` loads.

use super::emit::{self, Meaning, Outgoing};
use super::{Job, less_one};
use crate::config::{FeedForward, GptConfig, LlamaConfig, RopeLayout, RopeScaling};
use crate::data::files::pretty;
use crate::models::files::hf_config::Architecture;
use crate::models::files::shape::{self, Shape};
use crate::models::files::tables;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use kernels_cpu::blocks::Format;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What a folder will hold, besides the numbers.
pub(super) struct Folder {
    pub config: Value,
    pub tensors: Vec<Outgoing>,
    pub meaning: Meaning,
    pub notes: Vec<String>,
}

/// Decides class, tensors and types. Vectors take the type of the matrices where that has their numbers exactly.
pub(super) fn plan(job: &Job) -> Result<Folder> {
    let shape = Shape::of(&job.model.config)?;
    let (table, mut config, meaning) = match &shape {
        Shape::Llama(c) => {
            let class = shape::for_hf(c)?;
            let wants_less_one = matches!(class, Architecture::Gemma | Architecture::Gemma2);
            // A Llama class has either all biases of attention or none.
            let table = tables::hf_llama(c, "model.", wants_less_one);
            let meaning = Meaning {
                from_layout: c.rope_layout,
                to_layout: RopeLayout::HalfSplit,
                head_dim: c.head_dim,
                turned: c.rope_dims,
                add_to_gains: less_one(c.norm_plus_one) - less_one(wants_less_one),
            };
            (table, llama_config(c, class)?, meaning)
        }
        Shape::Gpt2(c) => {
            let layout = RopeLayout::HalfSplit;
            let meaning = Meaning { from_layout: layout, to_layout: layout, head_dim: 1, turned: 0, add_to_gains: 0.0 };
            (tables::hf_gpt2(c, "transformer."), gpt2_config(c), meaning)
        }
    };
    let matrices = job.format.unwrap_or_else(|| stored_type(job));
    if !matches!(matrices, Format::F32 | Format::F16 | Format::Bf16) {
        return Err(Error::Config(format!(
            "--type {matrices} has no place in safetensors that transformers reads; use f32, f16 or bf16, or write a GGUF file"
        )));
    }
    let source = job.model.weights.as_ref();
    let mut tensors = Vec::new();
    for link in table.links {
        let mut tensor = Outgoing { shape: link.shape(), link, format: matrices };
        if tensor.shape.len() == 1 && matrices != Format::F32 && !emit::exact_in(source, &tensor, &meaning, matrices)? {
            tensor.format = Format::F32;
        }
        tensors.push(tensor);
    }
    let mut notes = Vec::new();
    if job.format.is_none() && stored_quantised(job) {
        notes.push("quantised weights were widened to f32; --type f16 or bf16 halves the folder".into());
    }
    let wide = if tensors.iter().any(|t| t.format == Format::F32) { Format::F32 } else { matrices };
    let name = match wide {
        Format::F16 => "float16",
        Format::Bf16 => "bfloat16",
        _ => "float32",
    };
    config["torch_dtype"] = name.into();
    for (key, id) in ids(&job.model.tokenizer) {
        config[key] = id;
    }
    Ok(Folder { config, tensors, meaning, notes })
}

fn formats<'a>(job: &Job<'a>) -> impl Iterator<Item = Format> + use<'a> {
    let names = job.matrices();
    let model = job.model;
    names.into_iter().filter_map(|name| model.weights.find(&name)).map(|w| w.format)
}

fn stored_quantised(job: &Job) -> bool {
    formats(job).any(|f| !matches!(f, Format::F32 | Format::F16 | Format::Bf16))
}

/// The type that all matrices have; f32 where they have several or are quantised.
fn stored_type(job: &Job) -> Format {
    let mut all = formats(job);
    let first = all.next().unwrap_or(Format::F32);
    let same = matches!(first, Format::F16 | Format::Bf16) && all.all(|f| f == first);
    if same { first } else { Format::F32 }
}

/// Beginning, end and padding as `config.json` has them.
fn ids(tokenizer: &Tokenizer) -> Vec<(&'static str, Value)> {
    let ends = tokenizer.eos_ids();
    let end = match ends[..] {
        [] => Value::Null,
        [only] => only.into(),
        _ => json!(ends),
    };
    let begin = tokenizer.bos_id().or(tokenizer.start_id());
    vec![("bos_token_id", json!(begin)), ("eos_token_id", end)]
}

fn llama_config(c: &LlamaConfig, class: Architecture) -> Result<Value> {
    let (base, scaling) = shape::rope_of(c);
    let mut config = json!({
        "architectures": [class.class()],
        "model_type": class.model_type(),
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "intermediate_size": c.ff_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": base,
        "tie_word_embeddings": c.tied_head,
        "use_cache": true,
    });
    if !c.width.is_multiple_of(c.heads) && matches!(class, Architecture::Llama | Architecture::Gemma2) {
        return Err(Error::Config(format!(
            "model.width = {} is not divisible by model.heads = {}, which transformers asks of a {}",
            c.width,
            c.heads,
            class.class()
        )));
    }
    if let Some(scaling) = rope_scaling(c, scaling) {
        config["rope_scaling"] = scaling;
    }
    let activation = if c.ff_kind == FeedForward::Geglu { "gelu_pytorch_tanh" } else { "silu" };
    config["hidden_act"] = activation.into();
    let layer_types = || -> Value {
        let kind = |i| if c.window_of(i) > 0 { "sliding_attention" } else { "full_attention" };
        (0..c.layers).map(kind).collect()
    };
    let window = if c.window > 0 { json!(c.window) } else { Value::Null };
    match class {
        Architecture::Llama => {
            config["attention_bias"] = c.qkv_bias.into();
            config["mlp_bias"] = c.ff_bias.into();
        }
        Architecture::Mistral => config["sliding_window"] = window,
        Architecture::Qwen2 => {
            let windowed = c.window > 0;
            config["use_sliding_window"] = windowed.into();
            config["sliding_window"] = window;
            config["max_window_layers"] = if windowed { c.window_from } else { c.layers }.into();
            config["layer_types"] = layer_types();
        }
        Architecture::Gemma => {
            config["attention_bias"] = c.qkv_bias.into();
            config["hidden_activation"] = activation.into();
        }
        Architecture::Gemma2 => {
            config["attention_bias"] = c.qkv_bias.into();
            config["hidden_activation"] = activation.into();
            // It must be a number, also where `layer_types` says that no layer has a window.
            config["sliding_window"] = (if c.window > 0 { c.window } else { c.context }).into();
            config["layer_types"] = layer_types();
            let cap = |cap: f64| if cap > 0.0 { json!(cap) } else { Value::Null };
            config["attn_logit_softcapping"] = cap(c.attention_softcap);
            config["final_logit_softcapping"] = cap(c.final_softcap);
            let scalar = shape::scale_of(c).powi(-2);
            if (scalar - scalar.round()).abs() > 1e-4 * scalar {
                return Err(Error::Config(format!(
                    "model.attention_scale = {} is the root of 1 / {scalar}; a Gemma 2 on Hugging Face has a whole number there",
                    c.attention_scale
                )));
            }
            config["query_pre_attn_scalar"] = (scalar.round() as u64).into();
        }
        Architecture::Gpt2 => {}
    }
    Ok(config)
}

fn rope_scaling(c: &LlamaConfig, scaling: RopeScaling) -> Option<Value> {
    let original = c.rope_original_context;
    match scaling {
        RopeScaling::None | RopeScaling::Ntk => None,
        RopeScaling::Linear => Some(json!({ "rope_type": "linear", "factor": c.rope_factor })),
        RopeScaling::Yarn => {
            let mut scaling = json!({
                "rope_type": "yarn", "factor": c.rope_factor, "original_max_position_embeddings": original,
                "beta_fast": c.rope_beta_fast, "beta_slow": c.rope_beta_slow,
            });
            if c.rope_attention_factor > 0.0 {
                scaling["attention_factor"] = c.rope_attention_factor.into();
            }
            Some(scaling)
        }
        RopeScaling::Llama3 => Some(json!({
            "rope_type": "llama3", "factor": c.rope_factor, "original_max_position_embeddings": original,
            "low_freq_factor": c.rope_low_freq_factor, "high_freq_factor": c.rope_high_freq_factor,
        })),
    }
}

fn gpt2_config(c: &GptConfig) -> Value {
    let activation = match c.ff_kind {
        FeedForward::GeluErf => "gelu",
        FeedForward::Relu => "relu",
        _ => "gelu_new",
    };
    json!({
        "architectures": [Architecture::Gpt2.class()],
        "model_type": Architecture::Gpt2.model_type(),
        "vocab_size": c.vocab_size,
        "n_positions": c.context,
        "n_ctx": c.context,
        "n_embd": c.width,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": c.ff_width,
        "activation_function": activation,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tied_head,
        "use_cache": true,
    })
}

/// Everything but the weights.
pub(super) fn write_texts(job: &Job, folder: &Folder, into: &Path) -> Result<()> {
    let write =
        |name: &str, value: &Value| crate::train::files::write_synced(&into.join(name), (pretty(value)).as_bytes());
    write("config.json", &folder.config)?;
    let tokenizer = &job.model.tokenizer;
    let mut generation = Map::new();
    generation
        .extend(ids(tokenizer).into_iter().map(|(key, id)| (key.to_string(), id)).filter(|(_, id)| !id.is_null()));
    write("generation_config.json", &Value::Object(generation))?;
    let template = job.model.chat_template.as_deref();
    write("tokenizer_config.json", &tokenizer.tokenizer_config(job.model.config.context(), template))?;
    crate::train::files::write_synced(&into.join("tokenizer.json"), tokenizer.to_huggingface_json().as_bytes())
}
