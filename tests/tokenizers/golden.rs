//! Ids against those of sentencepiece, llama.cpp, transformers and llama2.c.

use super::*;

#[test]
fn sentence_piece_vocabularies_give_the_ids_of_sentencepiece() {
    let mut compared = 0;
    for value in fixture("spm.json").as_array().unwrap() {
        let (tokenizer, name) = (Tokenizer::from_gguf_vocabulary(vocabulary(value)).unwrap(), text(&value["name"]));
        let unknown = value["unknown"].as_u64().unwrap() as u32;
        for (case, decoded) in value["cases"].as_array().unwrap().iter().zip(value["decoded"].as_array().unwrap()) {
            // U+2581 in a text is the one thing that sentencepiece and llama.cpp understand differently, where it is user-defined.
            let expected = ids(if case["llama.cpp"].is_null() { &case["ids"] } else { &case["llama.cpp"] });
            let found = tokenizer.encode_plain(text(&case["text"])).unwrap();
            assert_eq!(found, expected, "{name}: {:?}", case["text"]);
            // Unknown characters are shown in different ways.
            if !expected.contains(&unknown) {
                assert_eq!(tokenizer.decode(&found).unwrap(), text(decoded), "{name}: {:?}", case["text"]);
            }
            compared += 1;
        }
    }
    assert!(compared > 150, "{compared}");
}

#[test]
fn byte_level_vocabularies_give_the_ids_of_llama_cpp_however_they_cut() {
    let value = fixture("bpe.json");
    let mut wrong = Vec::new();
    for pre in value["pre"].as_array().unwrap() {
        let keys = GgufVocabulary { pre: text(&pre["name"]).into(), ..vocabulary(&value) };
        let tokenizer = Tokenizer::from_gguf_vocabulary(keys).unwrap();
        for (words, expected) in value["texts"].as_array().unwrap().iter().zip(pre["ids"].as_array().unwrap()) {
            let found = tokenizer.encode_plain(text(words)).unwrap();
            assert_eq!(tokenizer.decode(&found).unwrap(), text(words), "{}", pre["name"]);
            if found != ids(expected) {
                wrong.push(format!("{} {words}\n  here      {found:?}\n  llama.cpp {expected}", pre["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tokenizer_json_files_give_the_ids_of_transformers_and_their_beginning() {
    for file in fixture("hf.json").as_array().unwrap() {
        let name = text(&file["name"]);
        let tokenizer = Tokenizer::from_json(name, text(&file["json"]).to_owned()).unwrap();
        for case in file["cases"].as_array().unwrap() {
            assert_eq!(tokenizer.encode(text(&case["text"])).unwrap(), ids(&case["ids"]), "{name}: {:?}", case["text"]);
        }
        let begun: Vec<u32> = tokenizer
            .bos_id()
            .filter(|_| tokenizer.add_bos())
            .into_iter()
            .chain(tokenizer.encode("Hello").unwrap())
            .collect();
        assert_eq!(begun, ids(&file["with_special"]), "{name}");
    }
}

#[test]
fn a_tokenizer_json_becomes_a_gguf_vocabulary_with_the_same_ids() {
    for file in fixture("hf.json").as_array().unwrap() {
        let name = text(&file["name"]);
        let tokenizer = Tokenizer::from_json(name, text(&file["json"]).to_owned()).unwrap();
        let written = tokenizer.to_gguf_vocabulary().unwrap();
        let back = Tokenizer::from_gguf_vocabulary(written.vocabulary.clone()).unwrap();
        assert_eq!(
            (back.bos_id(), back.add_bos()),
            (tokenizer.bos_id().filter(|_| tokenizer.add_bos()).or(back.bos_id()), tokenizer.start_id().is_some()),
            "{name}"
        );
        for case in file["cases"].as_array().unwrap() {
            let words = text(&case["text"]);
            // What the notes say: Qwen's normalization, and marks of spaces in a text.
            if words.contains("e\u{301}") || words.contains('\u{2581}') {
                continue;
            }
            assert_eq!(back.encode(words).unwrap(), tokenizer.encode(words).unwrap(), "{name}: {words:?}");
        }
        let expected = match name {
            "gpt2" => ("gpt2", "gpt-2"),
            "qwen2" => ("gpt2", "qwen2"),
            "llama3" => ("gpt2", "llama-bpe"),
            _ => ("llama", "default"),
        };
        assert_eq!((written.vocabulary.model.as_str(), written.vocabulary.pre.as_str()), expected);
        assert_eq!(
            written.notes.iter().any(|note| note.contains("normalized")),
            name == "qwen2",
            "{:?}",
            written.notes
        );
    }
}

fn stories() -> Option<Vec<u8>> {
    let shared = std::env::var_os("LYNX_SHARED")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into(), std::path::PathBuf::from);
    let path = shared.join("data/models/stories260K/tok512.bin");
    let data = std::fs::read(&path);
    if data.is_err() {
        eprintln!("SKIPPED: {} is not there (set LYNX_SHARED)", path.display());
    }
    data.ok()
}

#[test]
fn the_tokenizer_of_stories260k_gives_the_ids_of_llama2_c() {
    let Some(data) = stories() else { return };
    let tokenizer = Tokenizer::from_llama2c_bytes(&data).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_ids()), (512, Some(1), vec![2, 1]));
    let cases = fixture("tok512.json");
    for case in cases.as_array().unwrap() {
        let words = text(&case["text"]);
        let found = tokenizer.encode_plain(words).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{words:?}");
        assert_eq!(tokenizer.decode(&found).unwrap(), words);
    }
    // The same as GGUF, as tokenizer.json, and as the file again.
    let written = tokenizer.to_gguf_vocabulary().unwrap();
    let gguf = Tokenizer::from_gguf_vocabulary(written.vocabulary).unwrap();
    let json = Tokenizer::from_json("written", tokenizer.to_huggingface_json()).unwrap();
    let Tokenizer::Spm(spm) = &tokenizer else { panic!() };
    let again = Tokenizer::from_llama2c(spm.to_llama2c().unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let words = text(&case["text"]);
        assert_eq!(again.encode_plain(words).unwrap(), ids(&case["ids"]), "{words:?}");
        if !words.contains('\u{2581}') {
            assert_eq!(gguf.encode_plain(words).unwrap(), ids(&case["ids"]), "{words:?}");
            assert_eq!(json.encode_plain(words).unwrap(), ids(&case["ids"]), "{words:?}");
        }
    }
    for other in [&gguf, &json] {
        assert_eq!((other.bos_id(), other.add_bos(), other.eos_ids()[0]), (Some(1), true, 2));
    }
}

/// `cargo test --release --test tokenizers speed -- --ignored --nocapture`
#[test]
#[ignore = "measures time"]
fn speed_of_sentence_piece() {
    let Some(data) = stories() else { return };
    let words =
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. ".repeat(11_000);
    for (name, tokenizer) in [("stories260K", Tokenizer::from_llama2c_bytes(&data).unwrap()), ("llama", spm("llama").0)]
    {
        let start = std::time::Instant::now();
        let count = tokenizer.encode(&words).unwrap().len();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{name}: {} bytes, {count} tokens, {:.0} ms, {:.1} MB/s",
            words.len(),
            seconds * 1e3,
            words.len() as f64 / 1e6 / seconds
        );
    }
}
