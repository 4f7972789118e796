//! Metadata of a GGUF file, read as a configuration of ours. What llama.cpp computes differently from this program is refused by name.

use super::layers::set_windows;
use super::llama3;
use crate::config::{FeedForward, GptConfig, LlamaConfig, ModelConfig, Norm, Positions, RopeLayout, RopeScaling};
use crate::models::weights::StoredWeight;
use crate::{Error, Result};
use formats::gguf::{Array, File, FromValue, Metadata, Value};

/// `general.architecture` of the models that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Qwen2,
    Gemma,
    Gemma2,
    Gpt2,
}

impl Architecture {
    pub const ALL: [Architecture; 5] =
        [Architecture::Llama, Architecture::Qwen2, Architecture::Gemma, Architecture::Gemma2, Architecture::Gpt2];

    /// The name in the file, before its keys.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Qwen2 => "qwen2",
            Architecture::Gemma => "gemma",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gpt2 => "gpt2",
        }
    }

    /// Which rows of a head llama.cpp turns together.
    pub(super) fn layout(self) -> RopeLayout {
        match self {
            Architecture::Llama => RopeLayout::Interleaved,
            _ => RopeLayout::HalfSplit,
        }
    }
}

/// Keys `ARCHITECTURE.something` of a file.
struct Keys<'a> {
    file: &'a File,
    architecture: Architecture,
}

impl<'a> Keys<'a> {
    fn metadata(&self) -> &'a Metadata {
        self.file.metadata()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    fn find<T: FromValue<'a>>(&self, name: &str) -> Result<Option<T>> {
        Ok(self.metadata().find(&self.key(name))?)
    }

    fn bad(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::Checkpoint(format!("{}: metadata key '{}' {what}", self.file.name(), self.key(name)))
    }

    /// A whole number from `least` on that a model can have as a size.
    fn size(&self, name: &str, least: u64) -> Result<Option<usize>> {
        // A list has one value a layer; models whose layers differ are none of ours.
        if let Some(Value::Array(array)) = self.metadata().get(&self.key(name)) {
            let values = array.to_i64s().filter(|values| values.windows(2).all(|w| w[0] == w[1]));
            let value = values.and_then(|values| values.first().copied()).and_then(|v| u64::try_from(v).ok());
            return match value.filter(|v| (least..=super::keys::LARGEST).contains(v)) {
                Some(value) => Ok(Some(value as usize)),
                None => Err(self.bad(name, "has different values for the layers, which is not supported")),
            };
        }
        let Some(value) = self.find::<u64>(name)? else { return Ok(None) };
        if !(least..=super::keys::LARGEST).contains(&value) {
            return Err(self.bad(name, format!("= {value} must be {least} to {}", super::keys::LARGEST)));
        }
        Ok(Some(value as usize))
    }

    fn needed(&self, name: &str) -> Result<usize> {
        self.size(name, 1)?.ok_or_else(|| self.bad(name, "is missing: it says how large the model is"))
    }

    /// A finite number greater than 0.
    fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.find::<f32>(name)? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.bad(name, format!("= {x} must be a positive number"))),
            x => Ok(x.map(f64::from)),
        }
    }
}

/// What our keys are called in the metadata, behind the name of the architecture.
const NAMES: [(&str, &str); 13] = [
    ("layers", "block_count"),
    ("heads", "attention.head_count"),
    ("kv_heads", "attention.head_count_kv"),
    ("width", "embedding_length"),
    ("head_dim", "attention.key_length"),
    ("ff_width", "feed_forward_length"),
    ("vocab_size", "vocab_size"),
    ("context", "context_length"),
    ("window", "attention.sliding_window"),
    ("rope_base", "rope.freq_base"),
    ("rope_dims", "rope.dimension_count"),
    ("rope_factor", "rope.scaling.factor"),
    ("rope_original_context", "rope.scaling.original_context_length"),
];

/// The configuration of a file.
pub(super) fn read(file: &File) -> Result<(Architecture, ModelConfig)> {
    let name = file.metadata().require::<&str>("general.architecture")?;
    let architecture = Architecture::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| {
        let known = Architecture::ALL.map(Architecture::name).join(", ");
        Error::Checkpoint(format!(
            "{}: general.architecture = '{name}' is not supported; known are {known}",
            file.name()
        ))
    })?;
    let keys = Keys { file, architecture };
    let model = match architecture {
        Architecture::Gpt2 => ModelConfig::Gpt(gpt2(&keys)?),
        _ => ModelConfig::Llama(llama(&keys)?),
    };
    let names = NAMES.map(|(ours, theirs)| (ours, keys.key(theirs)));
    super::keys::check(file.name(), &model, &names.each_ref().map(|(ours, theirs)| (*ours, theirs.as_str())))?;
    Ok((architecture, model))
}

/// Rows of the token embedding, which is what the vocabulary is.
fn vocabulary(file: &File) -> Result<usize> {
    const NAME: &str = "token_embd.weight";
    let tensor = file.tensor(NAME)?;
    match tensor.shape()[..] {
        [rows, _] if (1..=super::keys::LARGEST as usize).contains(&rows) => Ok(rows),
        _ => Err(Error::Checkpoint(format!(
            "{}: tensor `{NAME}` has shape {:?}, a table of at most {} rows is expected",
            file.name(),
            tensor.shape(),
            super::keys::LARGEST
        ))),
    }
}

fn llama(keys: &Keys) -> Result<LlamaConfig> {
    let (file, architecture) = (keys.file, keys.architecture);
    let gemma = matches!(architecture, Architecture::Gemma | Architecture::Gemma2);
    let (width, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    if keys.size("expert_count", 0)?.unwrap_or(0) > 0 {
        return Err(keys.bad("expert_count", "says it is a mixture of experts, which is not supported"));
    }
    let head_dim = match keys.size("attention.key_length", 1)? {
        Some(dim) => dim,
        None if width.is_multiple_of(heads) => width / heads,
        None => return Err(keys.bad("embedding_length", format!("= {width} is not divisible by the {heads} heads"))),
    };
    if keys.size("attention.value_length", 1)?.unwrap_or(head_dim) != head_dim {
        return Err(keys.bad("attention.value_length", "differs from key_length, which is not supported"));
    }
    if keys.find::<bool>("attention.causal")? == Some(false) {
        return Err(keys.bad("attention.causal", "= false is not supported: tokens see only those before them here"));
    }
    let layers = keys.needed("block_count")?;
    let has = |name: &str| file.find(name).is_some();
    let mut c = LlamaConfig {
        layers,
        heads,
        kv_heads: keys.size("attention.head_count_kv", 1)?.unwrap_or(heads),
        width,
        head_dim,
        ff_width: keys.needed("feed_forward_length")?,
        ff_kind: if gemma { FeedForward::Geglu } else { FeedForward::Swiglu },
        norm_eps: match keys.find::<f32>("attention.layer_norm_rms_epsilon")? {
            Some(eps) if eps.is_finite() && eps > 0.0 => short(eps),
            _ => return Err(keys.bad("attention.layer_norm_rms_epsilon", "is missing or not a positive number")),
        },
        // The file's gains have the 1 in them.
        norm_plus_one: false,
        post_norms: architecture == Architecture::Gemma2,
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        ff_bias: has("blk.0.ffn_up.bias"),
        tied_head: !has("output.weight"),
        embedding_scale: if gemma { f64::from((width as f32).sqrt()) } else { 0.0 },
        rope_layout: architecture.layout(),
        context: keys.needed("context_length")?,
        vocab_size: vocabulary(file)?,
        ..LlamaConfig::default()
    };
    if let Some(scale) = keys.positive("attention.scale")? {
        c.attention_scale = scale;
    } else if architecture == Architecture::Gemma2 && layers == 46 {
        // The largest Gemma 2 divides by the root of another number than the others, and no key of the file says so.
        c.attention_scale = ((width / heads) as f64).powf(-0.5);
    }
    if architecture == Architecture::Gemma2 {
        c.attention_softcap = keys.positive("attn_logit_softcapping")?.unwrap_or(50.0);
        c.final_softcap = keys.positive("final_logit_softcapping")?.unwrap_or(30.0);
    }
    window(keys, &mut c)?;
    rope(keys, &mut c)?;
    Ok(c)
}

fn window(keys: &Keys, c: &mut LlamaConfig) -> Result<()> {
    let gemma2 = keys.architecture == Architecture::Gemma2;
    c.window = keys.size("attention.sliding_window", 0)?.unwrap_or(if gemma2 { 4096 } else { 0 });
    c.window_period = if gemma2 && c.window > 0 { 2 } else { 0 };
    const PATTERN: &str = "attention.sliding_window_pattern";
    match keys.metadata().get(&keys.key(PATTERN)) {
        _ if c.window == 0 => {}
        None => {}
        Some(Value::Array(Array::Bool(windowed))) if windowed.len() == c.layers => {
            let what = "is not supported: layers that see the whole context must come at every n-th place or before all others";
            return set_windows(c, windowed).then_some(()).ok_or_else(|| keys.bad(PATTERN, what));
        }
        Some(_) => c.window_period = keys.size(PATTERN, 0)?.unwrap_or(0),
    }
    Ok(())
}

fn rope(keys: &Keys, c: &mut LlamaConfig) -> Result<()> {
    c.rope_base = keys.positive("rope.freq_base")?.unwrap_or(10000.0);
    c.rope_dims = keys.size("rope.dimension_count", 1)?.unwrap_or(c.head_dim);
    let factor = keys.positive("rope.scaling.factor")?.or(keys.positive("rope.scale_linear")?);
    let kind = keys.find::<&str>("rope.scaling.type")?;
    const MAGNITUDE: &str = "rope.scaling.attn_factor";
    let magnitude = keys.positive(MAGNITUDE)?.filter(|&more| more != 1.0);
    if magnitude.is_some() && kind != Some("yarn") {
        return Err(keys.bad(MAGNITUDE, "is supported with rope.scaling.type = 'yarn' only"));
    }
    match (kind, factor) {
        (Some("none"), _) | (None, None) => {}
        (Some("linear") | None, Some(factor)) if factor != 1.0 => {
            (c.rope_scaling, c.rope_factor) = (RopeScaling::Linear, factor);
        }
        (Some("linear"), _) | (None, Some(_)) => {}
        (Some("yarn"), _) => {
            (c.rope_scaling, c.rope_factor) = (RopeScaling::Yarn, factor.unwrap_or(1.0));
            c.rope_original_context = keys.size("rope.scaling.original_context_length", 1)?.unwrap_or(c.context);
            c.rope_beta_fast = keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0);
            c.rope_beta_slow = keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0);
            let one = keys.find::<f32>("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0);
            if one != 1.0 && one >= 0.0 {
                return Err(keys.bad("rope.scaling.yarn_ext_factor", format!("= {one} is not supported; 1 is")));
            }
            // llama.cpp multiplies the usual factor by this one.
            if let Some(more) = magnitude {
                c.rope_attention_factor = more * yarn_magnitude(c.rope_factor);
            }
        }
        (Some(other), _) => {
            let what = format!("= '{other}' is not supported; none, linear and yarn are");
            return Err(keys.bad("rope.scaling.type", what));
        }
    }
    if let Some(factors) = rope_factors(keys.file, c.rope_dims / 2)? {
        if c.rope_scaling != RopeScaling::None {
            let what = "is given together with rope_freqs.weight, which is not supported";
            return Err(keys.bad("rope.scaling.type", what));
        }
        let original = keys.size("rope.scaling.original_context_length", 1)?;
        llama3::set(c, &factors, original)
            .map_err(|e| Error::Checkpoint(format!("{}: tensor `rope_freqs.weight`: {e}", keys.file.name())))?;
    }
    Ok(())
}

/// The factor on YaRN's tables that is meant when none is given.
pub(super) fn yarn_magnitude(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

/// What each frequency is divided by, if the file says.
fn rope_factors(file: &File, pairs: usize) -> Result<Option<Vec<f32>>> {
    const NAME: &str = "rope_freqs.weight";
    let Some(tensor) = file.find(NAME) else { return Ok(None) };
    let stored = tensor.format().map(|format| StoredWeight { shape: tensor.shape(), format });
    let bytes = match stored {
        Some(StoredWeight { shape, format: kernels_cpu::blocks::Format::F32 }) if shape == [pairs] => {
            let mut bytes = vec![0; 4 * pairs];
            file.read_into(tensor, &mut bytes)?;
            bytes
        }
        _ => {
            return Err(Error::Checkpoint(format!(
                "{}: tensor `{NAME}` is {} of shape {:?}, {pairs} numbers of F32 are expected",
                file.name(),
                tensor.type_name(),
                tensor.shape()
            )));
        }
    };
    Ok(Some(super::numbers::to_f32(kernels_cpu::blocks::Format::F32, &bytes).collect()))
}

fn gpt2(keys: &Keys) -> Result<GptConfig> {
    let (width, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    let layers = keys.needed("block_count")?;
    if layers > 1 << 10 {
        return Err(keys.bad("block_count", format!("= {layers} must be at most 1024")));
    }
    if !width.is_multiple_of(heads) {
        return Err(keys.bad("embedding_length", format!("= {width} is not divisible by the {heads} heads")));
    }
    Ok(GptConfig {
        layers,
        heads,
        kv_heads: heads,
        width,
        ff_width: keys.needed("feed_forward_length")?,
        ff_kind: FeedForward::Gelu,
        norm: Norm::Layernorm,
        norm_eps: keys.find::<f32>("attention.layer_norm_epsilon")?.map_or(1e-5, short),
        norm_bias: true,
        attention_bias: true,
        ff_bias: true,
        tied_head: keys.file.find("output.weight").is_none(),
        positions: Positions::Learned,
        context: keys.needed("context_length")?,
        vocab_size: vocabulary(keys.file)?,
        ..GptConfig::default()
    })
}

/// The number that somebody wrote before it became an f32: 1e-5 and not 0.000009999999747.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
