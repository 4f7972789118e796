//! Models written as files of other programs and read again.

use crate::common::{WHOLE, difference, every, fixture, fixtures, golden, session, worst};
use kernels_cpu::blocks::Format;
use lynx_gpu::config::ModelConfig;
use lynx_gpu::device::Device;
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::files::write::{Target, WriteOptions, write};
use lynx_gpu::models::files::{self, FileFormat, ModelFile, OpenOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name, type, shape and bytes of every tensor of a folder.
fn tensors(folder: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path());
    let mut all = BTreeMap::new();
    for path in files.filter(|p| p.extension().is_some_and(|e| e == "safetensors")) {
        let bytes = std::fs::read(path).unwrap();
        for (name, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    all
}

fn written(model: &ModelFile, path: PathBuf, target: Target) -> PathBuf {
    write(model, &path, target, &WriteOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

#[test]
fn folders_come_back_bit_for_bit_with_the_same_configuration() {
    let dir = tempfile::tempdir().unwrap();
    for name in every() {
        let source = fixture(name, dir.path());
        let model = files::open(&source).unwrap();
        let again = written(&model, dir.path().join(format!("{name}-again")), Target::HuggingFace);
        assert!(tensors(&source) == tensors(&again), "{name}: tensors differ");
        let reopened = files::open(&again).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(reopened.config, model.config, "{name}");
        assert_eq!(reopened.tokenizer.fingerprint(), model.tokenizer.fingerprint());
        assert_eq!(reopened.chat_template, model.chat_template);
        assert_eq!(meaning(&reopened), meaning(&model), "{name}");
    }
}

/// What begins a text and what ends one.
fn meaning(model: &ModelFile) -> (Option<u32>, Vec<u32>) {
    (model.tokenizer.start_id(), model.tokenizer.eos_ids())
}

#[test]
fn a_gemma_2_without_windows_has_a_number_where_transformers_wants_one() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("gemma2", dir.path());
    let read = |folder: &Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
    };
    let mut config = read(&source);
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    config["layer_types"] = vec!["full_attention"; layers].into();
    std::fs::write(source.join("config.json"), config.to_string()).unwrap();
    let again = written(&files::open(&source).unwrap(), dir.path().join("made/again"), Target::HuggingFace);
    let config = read(&again);
    assert!(config["sliding_window"].as_u64().is_some_and(|w| w > 0), "{config}");
    assert_eq!(config["layer_types"], serde_json::json!(vec!["full_attention"; layers]));
}

#[test]
fn through_gguf_the_logits_stay_and_the_tensors_come_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for name in every() {
        let source = fixture(name, dir.path());
        let model = files::open(&source).unwrap();
        let gguf = written(&model, dir.path().join(format!("{name}.gguf")), Target::Gguf);
        let read = files::open(&gguf).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(read.notes.is_empty(), "{name}: {:?}", read.notes);
        let (ids, expected) = golden(name);
        let worst = worst(&read, Device::Cpu, &ids, &expected);
        assert!(worst < 1e-4, "{name}: logits differ by {worst:.2e} of the largest");
        let again = written(&read, dir.path().join(format!("{name}-again")), Target::HuggingFace);
        assert!(tensors(&source) == tensors(&again), "{name}: tensors differ");
        assert_eq!(read.tokenizer.encode("the cat sat").unwrap(), model.tokenizer.encode("the cat sat").unwrap());
        assert_eq!(read.chat_template, model.chat_template);
    }
}

fn options(format: Format) -> WriteOptions {
    WriteOptions { format: Some(format), force: true }
}

#[test]
fn llama2c_files_hold_a_llama_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("llama", dir.path());
    let model = files::open(&source).unwrap();
    let given = OpenOptions { tokenizer: Some(source.clone()), ..OpenOptions::default() };
    for (name, target) in [("legacy.bin", Target::Llama2c), ("v1.bin", Target::Llama2cV1)] {
        let path = written(&model, dir.path().join(name), target);
        let read = files::open_with(&path, &given).unwrap();
        assert_eq!(read.format, FileFormat::Llama2c);
        let (ids, expected) = golden("llama");
        let worst = worst(&read, Device::Cpu, &ids, &expected);
        assert!(worst < 1e-4, "{name}: logits differ by {worst:.2e} of the largest");
        let again = dir.path().join("again");
        write(&read, &again, Target::HuggingFace, &options(Format::F16)).unwrap();
        assert!(tensors(&source) == tensors(&again), "{name}: tensors differ");
        // Without its tokenizer it is nothing.
        assert!(files::open(&path).err().unwrap().to_string().contains("--tokenizer"));
    }
    for (of, says) in [("qwen2", "biases"), ("gemma", "ff_kind"), ("gpt2", "GPT-2"), ("llama-yarn", "rope_scaling")] {
        let model = files::open(&fixture(of, dir.path())).unwrap();
        let path = dir.path().join(format!("{of}.bin"));
        let error = write(&model, &path, Target::Llama2c, &WriteOptions::default()).unwrap_err().to_string();
        assert!(error.contains(says) && !path.exists(), "{of}: {error}");
    }
}

#[test]
fn gguf_lite_files_come_back_and_shrink_with_their_types() {
    let dir = tempfile::tempdir().unwrap();
    for name in WHOLE {
        let source = fixture(name, dir.path());
        let model = files::open(&source).unwrap();
        let path = dir.path().join(format!("{name}.lite"));
        let whole = write(&model, &path, Target::GgufLite, &options(Format::F32)).unwrap();
        let read = files::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut resolved = model.config.clone();
        match &mut resolved {
            ModelConfig::Gpt(c) => c.resolve(),
            ModelConfig::Llama(c) => c.resolve(),
            ModelConfig::Coeus(_) => {}
        }
        assert_eq!((read.format, &read.config), (FileFormat::GgufLite, &resolved));
        assert_eq!(read.chat_template, model.chat_template);
        assert_eq!(meaning(&read), meaning(&model), "{name}");
        let (ids, expected) = golden(name);
        let exact = worst(&read, Device::Cpu, &ids, &expected);
        assert!(exact < 1e-4, "{name}: logits differ by {exact:.2e} of the largest");
        let small = write(&model, &path, Target::GgufLite, &options(Format::Int8Row)).unwrap();
        assert!(small.bytes < whole.bytes / 2, "{name}: {} of {} bytes", small.bytes, whole.bytes);
        let near = worst(&files::open(&path).unwrap(), Device::Cpu, &ids, &expected);
        assert!(near < 0.1, "{name}: int8 rows change logits by {near:.2e} of the largest");
    }
}

#[test]
fn quantised_rows_are_copied_from_gguf_to_gguf_and_widened_for_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let model = files::open(&fixture("llama", dir.path())).unwrap();
    let [small, same, folder, half] = ["q8.gguf", "same.gguf", "wide", "half.gguf"].map(|n| dir.path().join(n));
    let notes = write(&model, &small, Target::Gguf, &options(Format::Q8_0)).unwrap().notes;
    // Rows of 48 are not whole blocks of 32.
    assert!(notes.iter().any(|note| note.contains("blk.0.ffn_down.weight")), "{notes:?}");
    let read = files::open(&small).unwrap();
    let q = "model.layers.1.self_attn.q_proj.weight";
    assert_eq!(read.weights.find(q).unwrap().format, Format::Q8_0);
    assert_eq!(read.weights.find("model.layers.0.mlp.down_proj.weight").unwrap().format, Format::F16);
    written(&read, same.clone(), Target::Gguf);
    let data = |path: &Path| -> Vec<Vec<u8>> {
        let file = formats::gguf::File::open(path).unwrap();
        file.tensors().iter().map(|t| file.data(t).to_vec()).collect()
    };
    assert!(data(&small) == data(&same), "rows changed on their way");
    let notes = write(&read, &folder, Target::HuggingFace, &WriteOptions::default()).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("f32")), "{notes:?}");
    let (ids, _) = golden("llama");
    let logits = |path: &Path| session(&files::open(path).unwrap(), Device::Cpu).next_logits(&ids).unwrap();
    let worst = difference(&logits(&folder), &logits(&small));
    assert!(worst < 1e-5, "widening changes logits by {worst:.2e} of the largest");
    write(&read, &half, Target::Gguf, &options(Format::F16)).unwrap();
    assert_eq!(files::open(&half).unwrap().weights.find(q).unwrap().format, Format::F16);
}

/// llama2.c's stories260K, where the shared data is.
#[test]
fn stories260k_goes_through_gguf_and_back() {
    let shared = std::env::var_os("LYNX_SHARED").map_or(fixtures().join("../../../shared"), PathBuf::from);
    let [model, vocabulary] =
        ["stories260K.bin", "tok512.bin"].map(|name| shared.join("data/models/stories260K").join(name));
    if !model.is_file() {
        eprintln!("skipped: {} is not there (set LYNX_SHARED)", model.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Its vocabulary is found beside it.
    let first = files::open(&model).unwrap();
    let gguf = files::open(&written(&first, dir.path().join("stories.gguf"), Target::Gguf)).unwrap();
    let back = written(&gguf, dir.path().join("stories.bin"), Target::Llama2c);
    let numbers = |path: &Path| -> Vec<(String, Vec<u8>)> {
        let file = formats::llama2c::File::open(path).unwrap();
        let weights = file.tensors().iter().filter(|t| !t.name().starts_with("freqs_"));
        weights.map(|t| (t.name().into(), file.data(t).to_vec())).collect()
    };
    assert!(numbers(&model) == numbers(&back), "weights changed on their way");
    assert_eq!(std::fs::read(vocabulary).unwrap(), std::fs::read(dir.path().join("tokenizer.bin")).unwrap());
    let ids = first.tokenizer.encode("Once upon a time").unwrap();
    let logits = |model: &ModelFile| session(model, Device::Cpu).next_logits(&ids).unwrap();
    let expected = logits(&first);
    assert_eq!(difference(&logits(&gguf), &expected), 0.0);
    assert_eq!(difference(&logits(&files::open(&back).unwrap()), &expected), 0.0);
    assert_eq!(gguf.tokenizer.encode("a time").unwrap(), first.tokenizer.encode("a time").unwrap());
}
