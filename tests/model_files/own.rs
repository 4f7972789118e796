//! Checkpoints of this program, written for others.

use crate::common::{difference, session};
use lynx_gpu::config::{FeedForward, GptConfig, LlamaConfig, ModelConfig, Norm, Positions, RopeLayout, RopeScaling};
use lynx_gpu::device::Device;
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::files;
use lynx_gpu::models::files::write::{Target, WriteOptions, write};
use lynx_gpu::models::setup;
use lynx_gpu::tokenizer::{ByteTokenizer, SpecialTokens, Tokenizer};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};

/// A checkpoint's files, with weights that are all of a size that shows.
fn checkpoint(folder: &Path, mut config: ModelConfig) -> PathBuf {
    let tokenizer = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()));
    match &mut config {
        ModelConfig::Gpt(c) => c.vocab_size = tokenizer.vocab_size(),
        ModelConfig::Llama(c) => c.vocab_size = tokenizer.vocab_size(),
        ModelConfig::Coeus(_) => {}
    }
    std::fs::create_dir_all(folder).unwrap();
    let weights = setup::model(&config).unwrap().parameters().unwrap();
    let bytes: Vec<Vec<u8>> = weights
        .iter()
        .map(|w| {
            let numbers = w.shape.iter().product::<usize>();
            let value = |i: usize| ((i * 2654435761 + w.name.len() * 97) % 1000) as f32 / 1000.0 - 0.5;
            let around = if w.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            (0..numbers).flat_map(|i| (around + 0.6 * value(i)).to_le_bytes()).collect()
        })
        .collect();
    let views =
        weights.iter().zip(&bytes).map(|(w, b)| (&w.name, TensorView::new(Dtype::F32, w.shape.clone(), b).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(folder.join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
    tokenizer.save_huggingface(folder).unwrap();
    folder.to_path_buf()
}

fn logits(path: &Path) -> Vec<f32> {
    let ids: Vec<u32> = (0..20).map(|i| i * 37 % 250).collect();
    session(&files::open(path).unwrap_or_else(|e| panic!("{e}")), Device::Cpu).next_logits(&ids).unwrap()
}

fn gpt() -> GptConfig {
    GptConfig { layers: 2, width: 32, heads: 4, ..GptConfig::default() }
}

fn llama_shaped() -> GptConfig {
    GptConfig { norm: Norm::Rmsnorm, ff_kind: FeedForward::Swiglu, ff_bias: false, ..gpt() }
}

fn gpt2_shaped() -> GptConfig {
    GptConfig { positions: Positions::Learned, ..gpt() }
}

fn llama() -> LlamaConfig {
    LlamaConfig { layers: 2, width: 32, heads: 4, kv_heads: 2, ..LlamaConfig::default() }
}

#[test]
fn models_that_other_programs_have_keep_their_logits() {
    let gemma = LlamaConfig { ff_kind: FeedForward::Geglu, embedding_scale: f64::from(32f32.sqrt()), ..llama() };
    let both = true;
    for (name, config, gguf) in [
        ("llama-shaped", ModelConfig::Gpt(llama_shaped()), both),
        ("half-split", ModelConfig::Gpt(GptConfig { rope_layout: RopeLayout::HalfSplit, ..llama_shaped() }), both),
        (
            "biases",
            ModelConfig::Gpt(GptConfig { attention_bias: true, ff_bias: true, kv_heads: 2, ..llama_shaped() }),
            both,
        ),
        ("untied", ModelConfig::Gpt(GptConfig { tied_head: false, window: 7, ..llama_shaped() }), both),
        ("gpt2", ModelConfig::Gpt(gpt2_shaped()), both),
        ("gpt2-bare", ModelConfig::Gpt(GptConfig { norm_bias: false, ff_bias: false, ..gpt2_shaped() }), both),
        ("gpt2-erf", ModelConfig::Gpt(GptConfig { ff_kind: FeedForward::GeluErf, ..gpt2_shaped() }), false),
        ("llama", ModelConfig::Llama(llama()), both),
        ("interleaved", ModelConfig::Llama(LlamaConfig { rope_layout: RopeLayout::Interleaved, ..llama() }), both),
        ("qwen2", ModelConfig::Llama(LlamaConfig { qkv_bias: true, window: 5, ..llama() }), both),
        ("gemma", ModelConfig::Llama(LlamaConfig { norm_plus_one: true, ..gemma.clone() }), both),
        ("gemma-gains", ModelConfig::Llama(gemma.clone()), both),
        ("ntk", ModelConfig::Llama(LlamaConfig { rope_scaling: RopeScaling::Ntk, rope_factor: 3.0, ..llama() }), both),
        ("part-turned", ModelConfig::Llama(LlamaConfig { rope_dims: 4, ..llama() }), true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let own = checkpoint(&dir.path().join("step-1"), config);
        let model = files::open(&own).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = logits(&own);
        for (file, target) in [("model.gguf", Target::Gguf), ("hf", Target::HuggingFace)] {
            let path = dir.path().join(file);
            let result = write(&model, &path, target, &WriteOptions::default());
            if (target == Target::Gguf && !gguf) || (target == Target::HuggingFace && name == "part-turned") {
                let message = result.unwrap_err().to_string();
                assert!(message.contains("has no place in"), "{name}: {message}");
                continue;
            }
            result.unwrap_or_else(|e| panic!("{name}: {e}"));
            let worst = difference(&logits(&path), &expected);
            assert!(worst < 2e-5, "{name} through {file}: logits differ by {worst:.2e} of the largest");
        }
    }
}

#[test]
fn models_that_no_other_program_has_are_refused_with_what_would_do() {
    let dir = tempfile::tempdir().unwrap();
    for (name, config) in [
        ("default", gpt()),
        ("sinusoidal", GptConfig { positions: Positions::Sinusoidal, ..llama_shaped() }),
        ("windowed", GptConfig { window: 8, ..gpt2_shaped() }),
    ] {
        let own = checkpoint(&dir.path().join(name), ModelConfig::Gpt(config));
        let model = files::open(&own).unwrap();
        for (file, target) in [("model.gguf", Target::Gguf), ("hf", Target::HuggingFace)] {
            let path = dir.path().join(file);
            let message = write(&model, &path, target, &WriteOptions::default()).unwrap_err().to_string();
            assert!(message.contains("two kinds can be written") && message.contains("rmsnorm"), "{name}: {message}");
            assert!(!path.exists());
        }
    }
}

#[test]
fn a_checkpoint_with_sizes_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value, says) in [
        ("layers", serde_json::json!(1u64 << 40), "sizes that no model has"),
        ("width", serde_json::json!(u64::MAX), "sizes that no model has"),
        ("width", serde_json::json!(-1), "`-1`"),
        ("heads", serde_json::json!(5), "not divisible"),
        ("layers", serde_json::json!(3), "are missing"),
        ("ff_width", serde_json::json!(100), "asks for [100, 32]"),
        ("vocab_size", serde_json::json!(100), "259 tokens"),
    ] {
        let own = checkpoint(&dir.path().join("own"), ModelConfig::Gpt(gpt()));
        let path = own.join("config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value.clone();
        std::fs::write(&path, config.to_string()).unwrap();
        let message = files::open(&own).err().unwrap_or_else(|| panic!("{key} = {value} was taken")).to_string();
        assert!(message.contains(says) && message.contains("own"), "{key} = {value}: {message}");
    }
}
