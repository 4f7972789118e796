//! Files that `run.c` of the llama2.c project runs, with their vocabulary beside them.

use super::emit::{Meaning, Outgoing, emit};
use super::{Job, Written, less_one};
use crate::config::{FeedForward, LlamaConfig, RopeLayout, RopeScaling};
use crate::models::files::llama2c::{NORM_EPS, ROPE_BASE};
use crate::models::files::shape::{Shape, rope_of, scale_of};
use crate::models::files::{parent_of, tables};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use formats::llama2c::{self, Config, Version, Writer};
use kernels_cpu::blocks::Format;
use std::collections::HashMap;
use std::path::Path;

/// # Errors
/// A model that `run.c` does not compute: its code has everything but the sizes.
fn config_of(c: &LlamaConfig) -> Result<Config> {
    let (base, scaling) = rope_of(c);
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
    let windowed = (0..c.layers).any(|i| (1..c.context).contains(&c.window_of(i)));
    let reasons = [
        (c.ff_kind != FeedForward::Swiglu, "model.ff_kind must be \"swiglu\"".to_string()),
        (c.qkv_bias || c.output_bias || c.ff_bias, "there are no biases".into()),
        (c.post_norms, "model.post_norms must be false".into()),
        (c.attention_softcap > 0.0 || c.final_softcap > 0.0, "there are no soft caps".into()),
        (c.embedding_scale > 0.0 && c.embedding_scale != 1.0, "model.embedding_scale must be 0".into()),
        (!near(scale_of(c), (c.head_dim as f64).powf(-0.5)), "model.attention_scale must be 0".into()),
        (windowed, "model.window must be 0".into()),
        (c.head_dim * c.heads != c.width, "heads must share the width".into()),
        (c.rope_dims != c.head_dim, "model.rope_dims must be 0".into()),
        (scaling != RopeScaling::None, "model.rope_scaling must be \"none\"".into()),
        (!near(base, ROPE_BASE), format!("model.rope_base must be {ROPE_BASE}, not {base}")),
        (!near(c.norm_eps, NORM_EPS), format!("model.norm_eps must be {NORM_EPS}, not {}", c.norm_eps)),
    ];
    if let Some((_, reason)) = reasons.into_iter().find(|(applies, _)| *applies) {
        return Err(Error::Config(format!("llama2.c cannot run this model: {reason}")));
    }
    Ok(Config {
        dim: c.width,
        hidden_dim: c.ff_width,
        layers: c.layers,
        heads: c.heads,
        kv_heads: c.kv_heads,
        vocab_size: c.vocab_size,
        seq_len: c.context,
        shared_classifier: c.tied_head,
    })
}

/// The vocabulary as a file of llama2.c, or why there is none.
fn vocabulary(job: &Job) -> Result<llama2c::Tokenizer, String> {
    let Tokenizer::Spm(spm) = &job.model.tokenizer else {
        return Err(
            "the tokenizer is no SentencePiece vocabulary, which llama2.c's tokenizer.bin is: none was written".into(),
        );
    };
    let tokens = spm.to_llama2c().map_err(|e| format!("no tokenizer.bin was written: {e}"))?;
    Ok(llama2c::Tokenizer { tokens })
}

pub(super) fn write(job: &Job, path: &Path, version: Version, force: bool) -> Result<Written> {
    let Shape::Llama(c) = Shape::of(&job.model.config)? else {
        return Err(Error::Config("llama2.c cannot run this model: it is a GPT-2, not a Llama".into()));
    };
    if job.format.is_some_and(|format| format != Format::F32) {
        return Err(Error::Config("--type: llama2.c files of these versions have f32 only".into()));
    }
    let config = config_of(&c)?;
    let vocabulary = vocabulary(job);
    let beside = parent_of(path).join("tokenizer.bin");
    if vocabulary.is_ok() && beside.exists() && !force {
        return Err(Error::Io {
            path: beside,
            message: "exists, and the vocabulary goes there; --force replaces it".into(),
        });
    }
    let meaning = Meaning {
        from_layout: c.rope_layout,
        to_layout: RopeLayout::Interleaved,
        head_dim: c.head_dim,
        turned: c.rope_dims,
        add_to_gains: less_one(c.norm_plus_one),
    };
    let table = tables::llama2c(&c);
    let mut links: HashMap<String, _> = table.links.into_iter().map(|link| (link.stored.clone(), link)).collect();
    let mut writer = Writer::create(path, &config, version)?;
    let order: Vec<String> = writer.tensors().map(|(name, _)| name.to_string()).collect();
    let tensors = order.len();
    for name in order {
        let none = || Error::Checkpoint(format!("{}: no weight for tensor `{name}`", path.display()));
        let link = links.remove(&name).ok_or_else(none)?;
        let tensor = Outgoing { shape: link.shape(), link, format: Format::F32 };
        emit(job.model.weights.as_ref(), &tensor, &meaning, &mut |bytes| {
            let x: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok(writer.write(&name, &x)?)
        })?;
    }
    writer.finish()?;
    let mut notes = Vec::new();
    match vocabulary {
        Ok(vocabulary) => {
            vocabulary.write(&beside)?;
            notes.push(format!("the vocabulary is in {}", beside.display()));
        }
        Err(why) => notes.push(why),
    }
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    Ok(Written { bytes, tensors, architecture: "llama".into(), notes })
}
