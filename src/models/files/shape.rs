//! Which architecture of another program computes what a configuration of ours says, exactly; where there is none, the settings that
//! stand in the way are named.

use super::gguf_config::Architecture as Gguf;
use super::hf_config::Architecture as Hf;
use crate::config::{FeedForward, GptConfig, LlamaConfig, ModelConfig, Norm, Positions, RopeScaling};
use crate::{Error, Result};

/// A configuration of ours as what other programs have: a llama-like model or GPT-2.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    Llama(LlamaConfig),
    Gpt2(GptConfig),
}

impl Shape {
    /// # Errors
    /// A configuration that no other program has, with the settings that would do.
    pub fn of(config: &ModelConfig) -> Result<Shape> {
        match config {
            ModelConfig::Llama(c) => {
                let mut c = c.clone();
                c.resolve();
                Ok(Shape::Llama(c))
            }
            ModelConfig::Gpt(c) => {
                let mut c = c.clone();
                c.resolve();
                let gated = c.ff_kind.is_gated();
                match (c.positions, c.norm, gated) {
                    (Positions::Rope, Norm::Rmsnorm, true) => Ok(Shape::Llama(as_llama(&c))),
                    (Positions::Learned, Norm::Layernorm, false) if c.kv_heads == c.heads && c.window == 0 => {
                        Ok(Shape::Gpt2(c))
                    }
                    _ => Err(Error::Config(format!(
                        "no other program has a model with model.positions = {:?}, model.norm = {:?}, model.ff_kind = {:?}, model.kv_heads = {}, model.window = {}; two kinds can be written: positions \"rope\", norm \"rmsnorm\", ff_kind \"swiglu\" or \"geglu\" (a Llama), and positions \"learned\", norm \"layernorm\", ff_kind \"gelu\", \"gelu_erf\" or \"relu\" with full heads and no window (a GPT-2)",
                        c.positions, c.norm, c.ff_kind, c.kv_heads, c.window
                    ))),
                }
            }
            ModelConfig::Coeus(_) => Err(Error::Config("no other program has coeus models".into())),
        }
    }
}

fn as_llama(c: &GptConfig) -> LlamaConfig {
    let mut llama = LlamaConfig {
        layers: c.layers,
        heads: c.heads,
        kv_heads: c.kv_heads,
        width: c.width,
        head_dim: c.head_dim(),
        ff_width: c.ff_width,
        ff_kind: c.ff_kind,
        norm_eps: c.norm_eps,
        qkv_bias: c.attention_bias,
        output_bias: c.attention_bias,
        ff_bias: c.ff_bias,
        tied_head: c.tied_head,
        window: c.window,
        rope_base: c.rope_base,
        rope_layout: c.rope_layout,
        context: c.context,
        vocab_size: c.vocab_size,
        ..LlamaConfig::default()
    };
    llama.resolve();
    llama
}

/// The settings of a llama-like model that decide which architecture it is.
struct Traits {
    gelu: bool,
    scaled_embedding: bool,
    capped: bool,
    /// Some layer has a window that is shorter than the context.
    windowed: bool,
    own_scale: bool,
}

fn traits(c: &LlamaConfig) -> Traits {
    let usual = (c.head_dim as f64).powf(-0.5);
    Traits {
        gelu: c.ff_kind == FeedForward::Geglu,
        // As f32, which is what is computed with.
        scaled_embedding: c.embedding_scale > 0.0 && c.embedding_scale != 1.0,
        capped: c.attention_softcap > 0.0 || c.final_softcap > 0.0,
        windowed: (0..c.layers).any(|i| (1..c.context).contains(&c.window_of(i))),
        own_scale: c.attention_scale > 0.0 && (c.attention_scale / usual - 1.0).abs() > 1e-9,
    }
}

fn refuse<T>(what: &str, file: &str, instead: &str) -> Result<T> {
    Err(Error::Config(format!("{what} has no place in {file}; {instead}")))
}

/// Gemma's embedding is multiplied by the root of the width, and nothing else.
fn check_gemma(c: &LlamaConfig, t: &Traits, file: &str) -> Result<()> {
    let root = (c.width as f32).sqrt();
    if c.embedding_scale as f32 != root {
        let what = format!("model.embedding_scale = {}", c.embedding_scale);
        return refuse(&what, file, &format!("a Gemma of this width has {root}"));
    }
    if !t.gelu {
        return refuse("model.ff_kind = \"swiglu\" with a scaled embedding", file, "a Gemma has \"geglu\"");
    }
    if c.ff_bias || c.qkv_bias != c.output_bias {
        return refuse(
            "a bias in a Gemma's feed-forward network, or in a part of its attention,",
            file,
            "leave it out",
        );
    }
    Ok(())
}

/// The class of `transformers` that computes this model.
///
/// # Errors
/// None does; the message names the setting.
pub(super) fn for_hf(c: &LlamaConfig) -> Result<Hf> {
    let t = traits(c);
    let file = "a Hugging Face folder";
    if c.rope_dims != c.head_dim {
        return refuse(&format!("model.rope_dims = {}", c.rope_dims), file, "these classes turn whole heads");
    }
    if c.post_norms {
        check_gemma(c, &t, file)?;
        return Ok(Hf::Gemma2);
    }
    if t.capped {
        return refuse("a soft cap without model.post_norms", file, "only a Gemma 2 has one");
    }
    if t.own_scale {
        let what = format!("model.attention_scale = {} without model.post_norms", c.attention_scale);
        return refuse(&what, file, "only a Gemma 2 has one");
    }
    if t.scaled_embedding || t.gelu {
        if t.windowed {
            return refuse("model.window in a Gemma without model.post_norms", file, "only a Gemma 2 has one");
        }
        if !t.scaled_embedding {
            // A Llama class with another gate.
            return llama_biases(c, file).map(|()| Hf::Llama);
        }
        check_gemma(c, &t, file)?;
        return Ok(Hf::Gemma);
    }
    match (t.windowed, c.qkv_bias, c.output_bias || c.ff_bias) {
        (_, true, false) => Ok(Hf::Qwen2),
        (true, false, false) if c.window_period == 0 && c.window_from == 0 => Ok(Hf::Mistral),
        (true, false, false) => refuse(
            "model.window_period or model.window_from without biases and norms of a Qwen2 or a Gemma 2",
            file,
            "a Mistral has its window in all layers",
        ),
        (true, ..) => {
            refuse("model.window with all these biases", file, "a Mistral has none, a Qwen2 those of q, k and v")
        }
        (false, ..) => llama_biases(c, file).map(|()| Hf::Llama),
    }
}

fn llama_biases(c: &LlamaConfig, file: &str) -> Result<()> {
    if c.qkv_bias != c.output_bias {
        return refuse(
            "a bias in a part of attention beside these settings",
            file,
            "a Llama has model.qkv_bias and model.output_bias or neither",
        );
    }
    Ok(())
}

/// The architecture of llama.cpp that computes this model, and what is different there all the same.
///
/// # Errors
/// None does; the message names the setting.
pub(super) fn for_gguf(c: &LlamaConfig) -> Result<(Gguf, Vec<String>)> {
    let t = traits(c);
    let file = "a GGUF file";
    let mut notes = Vec::new();
    let untied = |name: &str| -> Result<()> {
        if c.tied_head {
            return Ok(());
        }
        refuse("model.tied_head = false", file, &format!("llama.cpp ties the head of every {name}"))
    };
    if c.rope_dims != c.head_dim && c.rope_scaling == RopeScaling::Llama3 {
        notes.push("llama.cpp expects divisors for a whole head".into());
    }
    if c.post_norms {
        check_gemma(c, &t, file)?;
        untied("Gemma 2")?;
        if t.windowed && (c.window_period, c.window_from) != (2, 0) {
            let (period, from) = (c.window_period, c.window_from);
            let what = format!("model.window_period = {period} and window_from = {from} with model.post_norms");
            return refuse(&what, file, "a Gemma 2 has 2 and 0");
        }
        if !(c.attention_softcap > 0.0 && c.final_softcap > 0.0) {
            return refuse(
                "a Gemma 2 without both soft caps",
                file,
                "set model.attention_softcap and model.final_softcap",
            );
        }
        let expected = if c.layers == 46 { c.width / c.heads } else { c.head_dim };
        if (scale_of(c) / (expected as f64).powf(-0.5) - 1.0).abs() > 1e-6 {
            notes.push(format!(
                "llama.cpp divides scores by the root of {expected} in every Gemma 2 of this shape, this model by another number: it computes something else there"
            ));
        }
        return Ok((Gguf::Gemma2, notes));
    }
    if t.capped || t.own_scale {
        return refuse("a soft cap or model.attention_scale without model.post_norms", file, "only a Gemma 2 has one");
    }
    if t.windowed {
        notes.push(format!(
            "llama.cpp knows no window for this architecture: texts longer than {} tokens come out differently there",
            c.window
        ));
    }
    if t.scaled_embedding || t.gelu {
        if !t.scaled_embedding {
            return refuse("model.ff_kind = \"geglu\" without a scaled embedding", file, "use \"swiglu\"");
        }
        check_gemma(c, &t, file)?;
        if c.qkv_bias {
            return refuse("model.qkv_bias in a Gemma", file, "leave it out");
        }
        untied("Gemma")?;
        return Ok((Gguf::Gemma, notes));
    }
    let qwen2 = c.qkv_bias && !c.output_bias && !c.ff_bias;
    Ok((if qwen2 { Gguf::Qwen2 } else { Gguf::Llama }, notes))
}

/// The factor on scores.
pub(super) fn scale_of(c: &LlamaConfig) -> f64 {
    if c.attention_scale > 0.0 { c.attention_scale } else { (c.head_dim as f64).powf(-0.5) }
}

/// The base of RoPE with the NTK scaling in it, and the scaling that is left.
pub(super) fn rope_of(c: &LlamaConfig) -> (f64, RopeScaling) {
    let d = c.rope_dims as f64;
    match c.rope_scaling {
        RopeScaling::Ntk if d > 2.0 => (c.rope_base * c.rope_factor.powf(d / (d - 2.0)), RopeScaling::None),
        RopeScaling::Ntk => (c.rope_base, RopeScaling::None),
        other => (c.rope_base, other),
    }
}
