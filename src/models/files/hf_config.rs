//! `config.json` of a Hugging Face folder, read as a configuration of ours. Defaults are those of `transformers` 5; what it would
//! compute differently from this program is refused by name.

use super::keys::Keys;
use super::layers::set_windows;
use crate::config::{FeedForward, GptConfig, LlamaConfig, ModelConfig, Norm, Positions, RopeLayout, RopeScaling};
use crate::{Error, Result};
use serde_json::Value;

/// The classes that can be read, by the name in `architectures`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Gemma,
    Gemma2,
    Gpt2,
}

impl Architecture {
    pub const ALL: [Architecture; 6] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Gemma,
        Architecture::Gemma2,
        Architecture::Gpt2,
    ];

    /// The class in `transformers`.
    pub fn class(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Gemma => "GemmaForCausalLM",
            Architecture::Gemma2 => "Gemma2ForCausalLM",
            Architecture::Gpt2 => "GPT2LMHeadModel",
        }
    }

    /// `model_type` in `transformers`.
    pub fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Gemma => "gemma",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gpt2 => "gpt2",
        }
    }

    pub(super) fn of(file: &str, config: &Value) -> Result<Architecture> {
        let known = || Self::ALL.map(Self::class).join(", ");
        let classes = config["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let names: Vec<&str> = classes.collect();
        let by_class = Self::ALL.into_iter().find(|a| names.contains(&a.class()));
        // Folders of the bare model, without a head's class, have only a type.
        let by_type = Self::ALL.into_iter().find(|a| names.is_empty() && config["model_type"] == a.model_type());
        let found = by_class.or(by_type).ok_or_else(|| {
            let found = if names.is_empty() { config["model_type"].to_string() } else { names.join(", ") };
            Error::Checkpoint(format!("{file}: architectures = {found} is not supported; known are {}", known()))
        })?;
        // `transformers` goes by one or the other, according to how it is called.
        match config["model_type"].as_str() {
            Some(other) if other != found.model_type() => Err(Error::Checkpoint(format!(
                "{file}: architectures says {}, model_type {other}: they contradict each other (that class has model_type {})",
                found.class(),
                found.model_type()
            ))),
            _ => Ok(found),
        }
    }
}

/// What our keys are called in a `config.json`.
const NAMES: [(&str, &str); 19] = [
    ("layers", "num_hidden_layers"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("width", "hidden_size"),
    ("head_dim", "head_dim"),
    ("ff_width", "intermediate_size"),
    ("vocab_size", "vocab_size"),
    ("context", "max_position_embeddings"),
    ("window", "sliding_window"),
    ("window_from", "max_window_layers"),
    ("norm_eps", "rms_norm_eps"),
    ("rope_base", "rope_theta"),
    ("rope_dims", "head_dim"),
    ("rope_factor", "factor"),
    ("rope_low_freq_factor", "low_freq_factor"),
    ("rope_high_freq_factor", "high_freq_factor"),
    ("rope_beta_fast", "beta_fast"),
    ("rope_beta_slow", "beta_slow"),
    ("rope_original_context", "original_max_position_embeddings"),
];
const GPT2_NAMES: [(&str, &str); 7] = [
    ("layers", "n_layer"),
    ("heads", "n_head"),
    ("width", "n_embd"),
    ("ff_width", "n_inner"),
    ("vocab_size", "vocab_size"),
    ("context", "n_positions"),
    ("norm_eps", "layer_norm_epsilon"),
];

/// The configuration in the text of a `config.json` that messages call `file`.
pub(super) fn read(file: &str, config: &Value) -> Result<(Architecture, ModelConfig)> {
    let keys = Keys::new(file, config)?;
    let architecture = Architecture::of(file, config)?;
    if keys.has("quantization_config") {
        return Err(keys.bad("quantization_config", "is not supported: convert the model that it was quantised from"));
    }
    let model = match architecture {
        Architecture::Gpt2 => ModelConfig::Gpt(gpt2(&keys)?),
        _ => ModelConfig::Llama(llama(&keys, architecture)?),
    };
    super::keys::check(file, &model, if architecture == Architecture::Gpt2 { &GPT2_NAMES } else { &NAMES })?;
    Ok((architecture, model))
}

fn llama(keys: &Keys, architecture: Architecture) -> Result<LlamaConfig> {
    let gemma = matches!(architecture, Architecture::Gemma | Architecture::Gemma2);
    let heads = keys.needed("num_attention_heads")?;
    let width = keys.needed("hidden_size")?;
    let head_dim = keys.size("head_dim", 1)?.unwrap_or(if gemma { 256 } else { 0 });
    if head_dim == 0 && !width.is_multiple_of(heads) {
        return Err(keys.bad("hidden_size", format!("is not divisible by num_attention_heads = {heads}")));
    }
    let context = keys.needed("max_position_embeddings")?;
    let mut c = LlamaConfig {
        layers: keys.needed("num_hidden_layers")?,
        heads,
        kv_heads: keys.size("num_key_value_heads", 1)?.unwrap_or(heads),
        width,
        head_dim: if head_dim == 0 { width / heads } else { head_dim },
        ff_width: keys.needed("intermediate_size")?,
        norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        norm_plus_one: gemma,
        post_norms: architecture == Architecture::Gemma2,
        tied_head: keys.flag("tie_word_embeddings")?.unwrap_or(gemma),
        embedding_scale: if gemma { f64::from((width as f32).sqrt()) } else { 0.0 },
        rope_layout: RopeLayout::HalfSplit,
        context,
        vocab_size: keys.needed("vocab_size")?,
        ..LlamaConfig::default()
    };
    activation(keys, architecture, &mut c)?;
    match architecture {
        Architecture::Llama => {
            let bias = keys.flag("attention_bias")?.unwrap_or(false);
            (c.qkv_bias, c.output_bias) = (bias, bias);
            c.ff_bias = keys.flag("mlp_bias")?.unwrap_or(false);
        }
        Architecture::Qwen2 => c.qkv_bias = true,
        Architecture::Gemma | Architecture::Gemma2 => {
            let bias = keys.flag("attention_bias")?.unwrap_or(false);
            (c.qkv_bias, c.output_bias) = (bias, bias);
            keys.must_be("use_bidirectional_attention", false, "tokens see only those before them here")?;
        }
        _ => {}
    }
    window(keys, architecture, &mut c)?;
    if architecture == Architecture::Gemma2 {
        let query_scalar = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
        c.attention_scale = query_scalar.powf(-0.5);
        // Absent means the default; null means none.
        let cap = |key: &str, default: f64| match keys.positive(key)? {
            Some(cap) => Ok(cap),
            None if keys.is_null(key) => Ok(0.0),
            None => Ok::<_, Error>(default),
        };
        c.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
        c.final_softcap = cap("final_logit_softcapping", 30.0)?;
    }
    rope(keys, &mut c)?;
    Ok(c)
}

fn activation(keys: &Keys, architecture: Architecture, c: &mut LlamaConfig) -> Result<()> {
    // Gemma's first files say "gelu" and mean the tanh form; `hidden_activation`, where there is one, is what counts.
    let key = match architecture {
        Architecture::Gemma2 => "hidden_activation",
        Architecture::Gemma if keys.has("hidden_activation") => "hidden_activation",
        _ => "hidden_act",
    };
    let gemma = matches!(architecture, Architecture::Gemma | Architecture::Gemma2);
    let default = if gemma { "gelu_pytorch_tanh" } else { "silu" };
    c.ff_kind = match keys.text(key)?.unwrap_or(default) {
        "silu" | "swish" => FeedForward::Swiglu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => FeedForward::Geglu,
        "gelu" if architecture == Architecture::Gemma => FeedForward::Geglu,
        _ => return Err(keys.bad(key, "is not supported as a gate; silu and gelu_pytorch_tanh are")),
    };
    Ok(())
}

/// Which layers have a sliding window.
fn window(keys: &Keys, architecture: Architecture, c: &mut LlamaConfig) -> Result<()> {
    let absent = |default: usize| if keys.is_null("sliding_window") { 0 } else { default };
    let size = keys.size("sliding_window", 1)?;
    (c.window, c.window_period, c.window_from) = match architecture {
        Architecture::Mistral => (size.unwrap_or_else(|| absent(4096)), 0, 0),
        Architecture::Gemma2 => (size.unwrap_or_else(|| absent(4096)), 2, 0),
        Architecture::Qwen2 if keys.flag("use_sliding_window")?.unwrap_or(false) => {
            let whole = keys.size("max_window_layers", 0)?.unwrap_or(28);
            match size.unwrap_or_else(|| absent(4096)) {
                _ if !keys.has("layer_types") && whole >= c.layers => (0, 0, 0),
                0 => (0, 0, 0),
                window => (window, 0, whole),
            }
        }
        _ => (0, 0, 0),
    };
    if let (Some(types), true) = (keys.get("layer_types"), c.window > 0) {
        let types: Option<Vec<bool>> = types
            .as_array()
            .and_then(|list| {
                list.iter()
                    .map(|t| match t.as_str()? {
                        "sliding_attention" => Some(true),
                        "full_attention" => Some(false),
                        _ => None,
                    })
                    .collect()
            })
            .filter(|list: &Vec<bool>| list.len() == c.layers);
        let types = types.ok_or_else(|| {
            keys.bad("layer_types", "must name sliding_attention or full_attention for every layer, nothing else")
        })?;
        if !set_windows(c, &types) {
            let what = "is not supported: layers that see the whole context must come at every n-th place, as n, 2n, .., or before all others";
            return Err(keys.bad("layer_types", what));
        }
    }
    Ok(())
}

/// RoPE, as `rope_parameters` of `transformers` 5 or as `rope_theta` and `rope_scaling` before it.
fn rope(keys: &Keys, c: &mut LlamaConfig) -> Result<()> {
    const PARTIAL: &str = "the whole head is rotated";
    keys.must_be("partial_rotary_factor", 1.0, PARTIAL)?;
    c.rope_base = keys.positive("rope_theta")?.unwrap_or(10000.0);
    // Where there are both, the older key counts, as in `transformers`.
    let (scaling, name) = match keys.object("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
        Some(scaling) => (Some(scaling), "rope_scaling"),
        None => (keys.object("rope_parameters")?, "rope_parameters"),
    };
    let Some(scaling) = scaling else { return Ok(()) };
    if let Some(key) = scaling.nested() {
        return Err(scaling.bad(key, "is an object: settings of RoPE that differ between layers are not supported"));
    }
    scaling.must_be("partial_rotary_factor", 1.0, PARTIAL)?;
    if let Some(base) = scaling.positive("rope_theta")? {
        c.rope_base = base;
    }
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    let factor = || {
        let factor = scaling.positive("factor")?;
        factor.ok_or_else(|| scaling.bad("factor", format!("is missing, which {name} of type {kind} needs")))
    };
    match kind {
        "default" => {}
        // The base grows only once a text is longer than max_position_embeddings, which is our context.
        "dynamic" => {}
        "linear" => (c.rope_scaling, c.rope_factor) = (RopeScaling::Linear, factor()?),
        "yarn" => {
            (c.rope_scaling, c.rope_factor) = (RopeScaling::Yarn, factor()?);
            c.rope_original_context = original_context(keys, &scaling, c)?;
            c.rope_beta_fast = scaling.positive("beta_fast")?.unwrap_or(32.0);
            c.rope_beta_slow = scaling.positive("beta_slow")?.unwrap_or(1.0);
            scaling.must_be("truncate", true, "the ramp begins and ends at whole pairs")?;
            let magnitude =
                |scale: f64| if c.rope_factor <= 1.0 { 1.0 } else { 0.1 * scale * c.rope_factor.ln() + 1.0 };
            c.rope_attention_factor = match scaling.positive("attention_factor")? {
                Some(factor) => factor,
                None => match (scaling.number("mscale")?, scaling.number("mscale_all_dim")?) {
                    (Some(some), Some(all)) if some != 0.0 && all != 0.0 => magnitude(some) / magnitude(all),
                    _ => 0.0,
                },
            };
        }
        "llama3" => {
            (c.rope_scaling, c.rope_factor) = (RopeScaling::Llama3, factor()?);
            c.rope_original_context = original_context(keys, &scaling, c)?;
            let needed = |key: &str| {
                scaling.positive(key)?.ok_or_else(|| scaling.bad(key, "is missing, which RoPE of type llama3 needs"))
            };
            c.rope_low_freq_factor = needed("low_freq_factor")?;
            c.rope_high_freq_factor = needed("high_freq_factor")?;
        }
        _ => {
            let key = if scaling.has("rope_type") { "rope_type" } else { "type" };
            return Err(scaling.bad(key, "is not supported; default, linear, dynamic, yarn and llama3 are"));
        }
    }
    Ok(())
}

fn original_context(keys: &Keys, scaling: &Keys, c: &LlamaConfig) -> Result<usize> {
    const KEY: &str = "original_max_position_embeddings";
    let outside = keys.size(KEY, 1)?;
    Ok(outside.or(scaling.size(KEY, 1)?).unwrap_or(c.context))
}

fn gpt2(keys: &Keys) -> Result<GptConfig> {
    let (width, heads) = (keys.needed("n_embd")?, keys.needed("n_head")?);
    let layers = keys.needed("n_layer")?;
    if layers > 1 << 10 {
        return Err(keys.bad("n_layer", "must be at most 1024"));
    }
    if !width.is_multiple_of(heads) {
        return Err(keys.bad("n_embd", format!("is not divisible by n_head = {heads}")));
    }
    keys.must_be("scale_attn_weights", true, "scores are divided by the root of the head's width")?;
    keys.must_be("scale_attn_by_inverse_layer_idx", false, "every layer scales its scores alike")?;
    keys.must_be("add_cross_attention", false, "there is no encoder")?;
    let ff_kind = match keys.text("activation_function")?.unwrap_or("gelu_new") {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => FeedForward::Gelu,
        "gelu" => FeedForward::GeluErf,
        "relu" => FeedForward::Relu,
        _ => return Err(keys.bad("activation_function", "is not supported; gelu_new, gelu and relu are")),
    };
    Ok(GptConfig {
        layers,
        heads,
        kv_heads: heads,
        width,
        ff_width: keys.size("n_inner", 1)?.unwrap_or(4 * width),
        ff_kind,
        norm: Norm::Layernorm,
        norm_eps: keys.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        norm_bias: true,
        attention_bias: true,
        ff_bias: true,
        tied_head: keys.flag("tie_word_embeddings")?.unwrap_or(true),
        positions: Positions::Learned,
        context: keys.needed("n_positions")?,
        vocab_size: keys.needed("vocab_size")?,
        ..GptConfig::default()
    })
}
