//! The commands as a person meets them.

use crate::common::fixture;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn lynx(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lynx-gpu")).args(args).current_dir(dir).output().unwrap()
}

fn good(dir: &Path, args: &[&str]) -> String {
    let out = lynx(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn bad(dir: &Path, args: &[&str], code: i32, words: &str) {
    let out = lynx(dir, args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(words) && !text.contains("panicked"), "{args:?}: {text}");
}

#[test]
fn models_are_converted_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fixture("llama", dir);
    assert!(good(dir, &["convert", "llama", "m.gguf", "--type", "q8_0"]).contains("wrote m.gguf: llama, 21 tensors"));
    let text = good(dir, &["inspect", "m.gguf"]);
    for words in
        ["GGUF version 3, architecture llama", "llama.block_count", "(315 entries)", "blk.1.attn_k.weight", "Q8_0"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    let json: Value = serde_json::from_str(&good(dir, &["inspect", "m.gguf", "--json"])).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 21);
    // Embedding and head, and two layers of attention, feed-forward network and norms, and the last norm.
    assert_eq!(json["parameters"], 2 * 315 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32);
    let offset = json["tensors"][20]["offset"].as_u64().unwrap() + json["tensors"][20]["bytes"].as_u64().unwrap();
    assert!(offset <= json["file_bytes"].as_u64().unwrap());
    assert!(good(dir, &["inspect", "llama"]).contains("LlamaForCausalLM"));
    let shard = "llama/model-00002-of-00004.safetensors";
    assert!(good(dir, &["inspect", shard]).contains("safetensors"));
    good(dir, &["convert", "m.gguf", "back", "--type", "f16"]);
    good(dir, &["convert", "llama", "m.bin"]);
    assert!(good(dir, &["inspect", "m.bin"]).contains("llama2.c, legacy"));
    good(dir, &["convert", "m.bin", "m.lite", "--to", "gguf-lite", "--tokenizer", "llama"]);
    assert!(good(dir, &["inspect", "m.lite"]).contains("lynx.model"));
    let written: Value = serde_json::from_str(&good(dir, &["convert", "m.lite", "again.gguf", "--json"])).unwrap();
    assert_eq!(written["architecture"], "llama");
    assert_eq!(std::fs::metadata(dir.join("again.gguf")).unwrap().len(), written["bytes"].as_u64().unwrap());

    // A tokenizer is found in whatever has one.
    let text = "naïve words";
    let ids = good(dir, &["tokenizer", "encode", "--tokenizer", "llama", text]);
    assert_eq!(good(dir, &["tokenizer", "encode", "--tokenizer", "m.gguf", text]), ids);
    let decode = ["tokenizer", "decode", "--tokenizer", "m.gguf"];
    assert_eq!(good(dir, &[&decode[..], &ids.split_whitespace().collect::<Vec<_>>()].concat()).trim_end(), text);
    assert!(good(dir, &["tokenizer", "info", "m.gguf"]).contains("315"));

    bad(dir, &["convert", "llama", "m.gguf"], 7, "--force");
    good(dir, &["convert", "llama", "m.gguf", "--force"]);
    bad(dir, &["convert", "llama", "x.gguf", "--type", "q9"], 2, "q8_0");
    bad(dir, &["convert", "llama", "x.gguf", "--type", "q2_k"], 2, "use one of");
    bad(dir, &["convert", "llama", "x", "--type", "q8_0"], 2, "safetensors");
    bad(dir, &["convert", "llama", "x", "--to", "onnx"], 2, "gguf-lite");
    bad(dir, &["convert", "absent", "x.gguf"], 7, "absent");
    bad(dir, &["inspect", "llama/tokenizer.json"], 6, "GGUF files");
    bad(dir, &["export", "llama"], 2, "--gguf");
    assert!(!dir.join("x.gguf").exists() && !dir.join("x").exists());
}
