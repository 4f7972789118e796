//! Files that lie, are incomplete or ask for what is not supported: an error that names file and key, nothing worse.

use crate::common::{fixture, golden, worst};
use formats::gguf::{Array, File, Metadata, NewTensor, Value as GgufValue, Writer};
use lynx_gpu::Error;
use lynx_gpu::config::ModelConfig;
use lynx_gpu::device::Device;
use lynx_gpu::models::files;
use lynx_gpu::models::files::write::{Target, WriteOptions, write};
use serde_json::{Value, json};
use std::path::Path;

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn refusal(path: &Path) -> String {
    match files::open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_its_key() {
    let longrope = json!({ "rope_type": "longrope", "factor": 2.0 });
    for (of, key, value, says) in [
        ("llama", "hidden_size", json!(0), "hidden_size = 0"),
        ("llama", "hidden_size", json!(-32), "hidden_size = -32"),
        ("llama", "hidden_size", json!(1e30), "hidden_size = 1e+30"),
        ("llama", "hidden_size", json!(u64::MAX), "hidden_size = 18446744073709551615"),
        ("llama", "hidden_size", json!("32"), "hidden_size = \"32\""),
        (
            "llama",
            "hidden_size",
            json!(64),
            "`model.embed_tokens.weight` has shape [315, 32], the configuration asks for [315, 64]",
        ),
        ("llama", "hidden_size", Value::Null, "hidden_size is missing"),
        ("llama", "num_hidden_layers", json!(1_000_000), "layers = 1000000"),
        ("llama", "num_hidden_layers", json!(3), "9 are missing"),
        ("llama", "num_attention_heads", json!(0), "num_attention_heads = 0"),
        ("llama", "num_attention_heads", json!(5), "num_key_value_heads"),
        ("llama", "num_key_value_heads", json!(3), "num_key_value_heads"),
        (
            "llama",
            "num_key_value_heads",
            json!(4),
            "k_proj.weight` has shape [16, 32], the configuration asks for [32, 32]",
        ),
        (
            "llama",
            "num_attention_heads",
            json!(3),
            "num_attention_heads = 3 is not divisible by num_key_value_heads = 2",
        ),
        ("llama", "num_hidden_layers", json!(100_000), "num_hidden_layers = 100000"),
        ("llama", "head_dim", json!(7), "head_dim = 7"),
        ("llama", "head_dim", json!(100_000), "head_dim = 100000"),
        ("llama", "vocab_size", json!(300), "the configuration asks for [300, 32]"),
        ("llama", "rms_norm_eps", json!(0.0), "rms_norm_eps = 0.0"),
        ("llama", "hidden_act", json!("relu"), "hidden_act = \"relu\""),
        ("llama", "architectures", json!(["MixtralForCausalLM"]), "MixtralForCausalLM"),
        ("llama", "architectures", json!(["MistralForCausalLM"]), "contradict each other"),
        ("llama", "model_type", json!("qwen3"), "contradict each other"),
        ("llama", "quantization_config", json!({ "bits": 4 }), "quantization_config"),
        ("llama", "partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5"),
        ("llama", "rope_parameters", longrope, "rope_parameters.rope_type = \"longrope\""),
        ("llama", "rope_parameters", json!({ "rope_type": "linear" }), "rope_parameters.factor"),
        ("llama", "rope_parameters", json!({ "rope_theta": -1.0 }), "rope_parameters.rope_theta = -1.0"),
        ("llama", "rope_parameters", json!(3), "rope_parameters = 3 must be an object"),
        ("llama", "tie_word_embeddings", json!("yes"), "tie_word_embeddings = \"yes\""),
        ("mistral", "sliding_window", json!(-1), "sliding_window = -1"),
        ("gemma2", "layer_types", json!(["full_attention", "sliding_attention", "full_attention"]), "layer_types"),
        ("gemma2", "layer_types", json!(["full_attention"]), "layer_types"),
        ("gemma2", "query_pre_attn_scalar", json!(0), "query_pre_attn_scalar = 0"),
        ("gemma2", "use_bidirectional_attention", json!(true), "use_bidirectional_attention = true"),
        ("gpt2", "n_layer", json!(1u64 << 40), "n_layer = 1099511627776"),
        ("gpt2", "n_head", json!(5), "n_embd = 32 is not divisible by n_head = 5"),
        ("gpt2", "n_positions", json!(1 << 30), "n_positions"),
        ("gpt2", "activation_function", json!("quick_gelu"), "activation_function = \"quick_gelu\""),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), "scale_attn_by_inverse_layer_idx = true"),
        ("gpt2", "n_inner", json!(100), "mlp.c_fc.weight` has shape [32, 128], the configuration asks for [32, 100]"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = fixture(of, dir.path());
        edit(&folder.join("config.json"), |config| config[key] = value.clone());
        let message = refusal(&folder);
        assert!(message.contains(says), "{of} {key} = {value}: {message}");
        assert!(message.contains(folder.to_str().unwrap()), "{message}");
        assert!(!message.contains("model.heads"), "a key of ours: {message}");
    }
}

#[test]
fn what_is_missing_in_a_folder_is_named() {
    for (file, says) in [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("model-00002-of-00004.safetensors", "model-00002-of-00004.safetensors"),
        ("model.safetensors.index.json", "model.safetensors.index.json"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = fixture("llama", dir.path());
        std::fs::remove_file(folder.join(file)).unwrap();
        let message = refusal(&folder);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn a_head_is_tied_only_where_the_folder_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let folder = fixture("gemma2", dir.path());
    edit(&folder.join("config.json"), |config| config["tie_word_embeddings"] = json!(false));
    let message = refusal(&folder);
    assert!(message.contains("one is missing") && message.contains("lm_head.weight"), "{message}");
    // A head that is another matrix than the table is used, as in `transformers`.
    let folder = fixture("llama", dir.path());
    edit(&folder.join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    let model = files::open(&folder).unwrap();
    assert!(matches!(&model.config, ModelConfig::Llama(c) if !c.tied_head));
    assert!(model.notes.iter().any(|note| note.contains("lm_head.weight")), "{:?}", model.notes);
    let (ids, expected) = golden("llama");
    assert!(worst(&model, Device::Cpu, &ids, &expected) < 1e-4);
}

#[test]
fn of_two_settings_of_rope_the_older_key_counts_and_those_of_single_layers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = fixture("llama", dir.path());
    let config = folder.join("config.json");
    edit(&config, |config| {
        config["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 10000.0 });
        config["rope_scaling"] = json!({ "type": "linear", "factor": 2.0 });
    });
    let model = files::open(&folder).unwrap();
    assert!(matches!(&model.config, ModelConfig::Llama(c) if c.rope_factor == 2.0));
    edit(&config, |config| {
        config["rope_scaling"] = Value::Null;
        config["rope_parameters"] = json!({ "full_attention": { "rope_type": "default", "rope_theta": 5.0 } });
    });
    let message = refusal(&folder);
    assert!(message.contains("full_attention") && message.contains("differ between layers"), "{message}");
}

#[test]
fn a_part_of_a_split_gguf_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = changed(dir.path(), |m| m.set("split.count", GgufValue::U16(3)), |_| true);
    let message = refusal(&path);
    assert!(message.contains("3 parts") && message.contains("gguf-split --merge"), "{message}");
}

#[test]
fn a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = fixture("qwen2", dir.path());
    edit(&folder.join("tokenizer.json"), |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut more = added[0].clone();
        (more["id"], more["content"]) = (json!(288), json!("<|more|>"));
        added.push(more);
    });
    let message = refusal(&folder);
    assert!(message.contains("289 ids") && message.contains("288 rows"), "{message}");
}

#[test]
fn what_is_no_model_is_told_what_models_are() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("empty", &b""[..]), ("text", b"# a read-me\n"), ("half", b"GG"), ("zeros", &[0; 4096])] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let message = refusal(&path);
        assert!(message.contains("GGUF files, Hugging Face folders"), "{message}");
    }
    assert!(refusal(dir.path()).contains("config.json"));
    assert!(matches!(files::open(&dir.path().join("absent")), Err(Error::Io { .. })));
    #[cfg(unix)]
    {
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(refusal(&pipe).contains("not a regular file"));
    }
}

/// The llama fixture as GGUF with its metadata and list of tensors changed.
fn changed(dir: &Path, change: impl FnOnce(&mut Metadata), keep: impl Fn(&str) -> bool) -> std::path::PathBuf {
    let whole = dir.join("whole.gguf");
    let model = files::open(&fixture("llama", dir)).unwrap();
    write(&model, &whole, Target::Gguf, &WriteOptions { force: true, ..WriteOptions::default() }).unwrap();
    let file = File::open(&whole).unwrap();
    let mut metadata = file.metadata().clone();
    change(&mut metadata);
    let kept: Vec<_> = file.tensors().iter().filter(|t| keep(t.name())).collect();
    let path = dir.join("changed.gguf");
    let mut writer = Writer::create(&path, &metadata, kept.iter().map(|t| NewTensor::like(t)).collect()).unwrap();
    for tensor in kept {
        writer.write(tensor.name(), file.data(tensor)).unwrap();
    }
    writer.finish().unwrap();
    path
}

#[test]
fn gguf_metadata_that_cannot_be_is_refused_by_its_key() {
    let text = |s: &str| GgufValue::String(s.into());
    for (key, value, says) in [
        ("general.architecture", text("mamba"), "'mamba'"),
        ("general.architecture", text("qwen2"), "qwen2."),
        ("llama.block_count", GgufValue::U64(u64::MAX), "llama.block_count"),
        ("llama.block_count", GgufValue::U32(0), "llama.block_count"),
        ("llama.block_count", GgufValue::U32(3), "9 are missing"),
        ("llama.embedding_length", GgufValue::I32(-32), "llama.embedding_length"),
        ("llama.embedding_length", text("32"), "llama.embedding_length"),
        ("llama.attention.head_count", GgufValue::U32(0), "llama.attention.head_count"),
        ("llama.attention.head_count_kv", GgufValue::U32(3), "llama.attention.head_count_kv"),
        ("llama.attention.head_count_kv", GgufValue::Array(Array::U32(vec![2, 1])), "llama.attention.head_count_kv"),
        ("llama.attention.value_length", GgufValue::U32(16), "llama.attention.value_length"),
        ("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(f32::NAN), "llama.attention.layer_norm_rms_epsilon"),
        ("llama.expert_count", GgufValue::U32(8), "llama.expert_count"),
        ("llama.rope.scaling.type", text("longrope"), "llama.rope.scaling.type"),
        ("llama.rope.scaling.attn_factor", GgufValue::F32(2.0), "llama.rope.scaling.attn_factor"),
        ("llama.attention.causal", GgufValue::Bool(false), "llama.attention.causal"),
        ("llama.rope.freq_base", GgufValue::F32(0.0), "llama.rope.freq_base"),
        ("llama.rope.dimension_count", GgufValue::U32(100), "llama.rope.dimension_count = 100"),
        ("llama.feed_forward_length", GgufValue::U32(64), "`blk.0.ffn_gate.weight` has shape [48, 32]"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = changed(dir.path(), |metadata| metadata.set(key, value.clone()), |_| true);
        let message = refusal(&path);
        assert!(message.contains(says), "{key} = {value:?}: {message}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
}

#[test]
fn tensors_that_are_missing_are_named_and_those_nobody_needs_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = changed(dir.path(), |_| {}, |name| name != "blk.1.attn_k.weight");
    let message = refusal(&path);
    assert!(message.contains("one is missing") && message.contains("`blk.1.attn_k.weight`"), "{message}");
    let path = changed(dir.path(), |_| {}, |name| name != "token_embd.weight");
    assert!(refusal(&path).contains("token_embd.weight"));
    // A model of one layer fewer has no use for those of the last.
    let path = changed(dir.path(), |metadata| metadata.set("llama.block_count", 1u32), |_| true);
    let notes = files::open(&path).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("9 tensors that this model has no use for"), "{notes:?}");
}

#[test]
fn nothing_is_overwritten_unless_asked_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let model = files::open(&fixture("llama", dir.path())).unwrap();
    let again = |path: &Path, target, force| write(&model, path, target, &WriteOptions { force, format: None });
    for (name, target) in [("out.gguf", Target::Gguf), ("out", Target::HuggingFace)] {
        let path = dir.path().join(name);
        again(&path, target, false).unwrap();
        assert!(again(&path, target, false).unwrap_err().to_string().contains("--force"));
        again(&path, target, true).unwrap();
        files::open(&path).unwrap();
    }
    let precious = dir.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("letter"), "").unwrap();
    assert!(again(&precious, Target::HuggingFace, true).unwrap_err().to_string().contains("no model"));
    assert!(again(&model.origin, Target::HuggingFace, true).is_err());
    assert!(again(dir.path(), Target::HuggingFace, true).is_err());
    // What cannot be written leaves no trace.
    let options = WriteOptions { format: Some(kernels_cpu::blocks::Format::Q8_0), force: false };
    assert!(write(&model, &dir.path().join("quantised"), Target::HuggingFace, &options).is_err());
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    names.sort();
    assert_eq!(names, ["llama", "out", "out.gguf", "precious"]);
}
