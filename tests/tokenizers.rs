//! Tokenizers of other programs' files against what those programs give (fixtures and the script that made them in tests/tokenizers/).

#[path = "tokenizers/chat.rs"]
mod chat;
#[path = "tokenizers/folders.rs"]
mod folders;
#[path = "tokenizers/golden.rs"]
mod golden;
#[path = "tokenizers/hostile.rs"]
mod hostile;
#[path = "tokenizers/written.rs"]
mod written;

use lynx_gpu::tokenizer::{BpeOptions, BpeTokenizer, GgufVocabulary, SpecialTokens, Tokenizer};
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/tokenizers/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|s| text(s).to_owned()).collect()
}

/// The keys of a GGUF file as the fixtures have them.
fn vocabulary(value: &Value) -> GgufVocabulary {
    let id = |key: &str| value[key].as_u64().map(|id| id as u32);
    GgufVocabulary {
        model: text(&value["model"]).to_owned(),
        tokens: strings(&value["tokens"]).into_iter().map(String::into_bytes).collect(),
        scores: value["scores"].as_array().into_iter().flatten().map(|s| s.as_f64().unwrap() as f32).collect(),
        types: value["types"].as_array().into_iter().flatten().map(|t| t.as_i64().unwrap() as i32).collect(),
        merges: strings(&value["merges"]),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unknown"),
        add_space_prefix: value["add_space_prefix"].as_bool(),
        ..GgufVocabulary::default()
    }
}

/// The vocabularies of spm.json by name.
fn spm(name: &str) -> (Tokenizer, Value) {
    let all = fixture("spm.json");
    let value = all.as_array().unwrap().iter().find(|v| v["name"] == name).unwrap().clone();
    (Tokenizer::from_gguf_vocabulary(vocabulary(&value)).unwrap(), value)
}

/// A tokenizer trained here, without digits in its text.
fn trained_bpe() -> Tokenizer {
    let line = "the cat sat on the mat and the dog ate the rat, naïve as it was; the end is near, dear reader";
    let options = BpeOptions { vocab_size: 320, specials: SpecialTokens::default(), ..BpeOptions::default() };
    Tokenizer::Bpe(BpeTokenizer::train([line, line, "another line of the text"], &options).unwrap())
}

/// The texts of the fixtures: whatever is hard.
fn hard_texts() -> Vec<String> {
    strings(&fixture("bpe.json")["texts"])
}
