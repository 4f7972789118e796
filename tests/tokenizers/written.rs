//! Tokenizers written for other programs and read again.

use super::*;
use formats::gguf::Metadata;
use lynx_gpu::tokenizer::{ByteTokenizer, CharTokenizer, PreSplit};

fn native() -> Vec<Tokenizer> {
    let alphabet = "abcdefghijklmnopqrstuvwxyz ,.é🦊\n";
    let characters = |specials| Tokenizer::Char(CharTokenizer::train([alphabet], specials).unwrap());
    vec![
        characters(SpecialTokens::none()),
        characters(SpecialTokens::default()),
        Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes())),
        Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::none())),
        trained_bpe(),
    ]
}

#[test]
fn our_tokenizers_as_gguf_vocabularies_give_the_same_ids() {
    for tokenizer in native() {
        let written = tokenizer.to_gguf_vocabulary().unwrap();
        assert_eq!(written.vocabulary.tokens.len(), tokenizer.vocab_size());
        let back = Tokenizer::from_gguf_vocabulary(written.vocabulary).unwrap();
        assert_eq!(
            (back.start_id(), back.pad_id()),
            (tokenizer.start_id(), tokenizer.pad_id()),
            "{}",
            tokenizer.kind()
        );
        for words in
            ["", " ", "the cat  sat\n\non the mat", " a 🦊 é, naïve", "<|endoftext|>the end<|endoftext|>", "  x"]
        {
            let Ok(expected) = tokenizer.encode(words) else { continue };
            assert_eq!(back.encode(words).unwrap(), expected, "{}: {words:?}", tokenizer.kind());
            assert_eq!(back.decode(&expected).unwrap(), words, "{}", tokenizer.kind());
        }
    }
}

#[test]
fn what_llama_cpp_will_do_otherwise_is_noted() {
    let notes = |t: &Tokenizer| t.to_gguf_vocabulary().unwrap().notes.join("\n");
    let all = native();
    assert!(notes(&all[0]).contains("id 2"), "{}", notes(&all[0]));
    assert!(!notes(&all[1]).contains("id 2") && notes(&all[1]).contains("alphabet"));
    assert_eq!((notes(&all[2]), notes(&all[4])), (String::new(), String::new()));
    let train = |line: &str, pre_split| {
        let options = BpeOptions { vocab_size: 300, specials: SpecialTokens::default(), pre_split };
        Tokenizer::Bpe(BpeTokenizer::train([line, line], &options).unwrap())
    };
    assert!(notes(&train("a1 a1 a1", PreSplit::None)).contains("digits"));
    assert!(notes(&train("aa aa aa", PreSplit::Whitespace)).contains("white-space"));
    let marks = Tokenizer::Char(CharTokenizer::train(["a \u{2581}"], SpecialTokens::none()).unwrap());
    assert!(marks.to_gguf_vocabulary().unwrap_err().to_string().contains("U+2581"));
}

#[test]
fn a_sentence_piece_vocabulary_goes_through_gguf_and_tokenizer_json_unchanged() {
    for name in ["llama", "gemma", "no-bytes"] {
        let (tokenizer, value) = spm(name);
        let mut metadata = Metadata::new();
        tokenizer.write_gguf(&mut metadata).unwrap();
        let back = Tokenizer::from_gguf(&metadata).unwrap();
        assert_eq!(back.to_gguf_vocabulary().unwrap(), tokenizer.to_gguf_vocabulary().unwrap(), "{name}");
        assert_eq!(back.fingerprint(), tokenizer.fingerprint());
        let json = Tokenizer::from_json(name, tokenizer.to_huggingface_json()).unwrap();
        assert_eq!(json.vocab_size(), tokenizer.vocab_size());
        for case in value["cases"].as_array().unwrap() {
            let words = text(&case["text"]);
            let ids = tokenizer.encode(words).unwrap();
            assert_eq!(json.encode(words).unwrap(), ids, "{name}: {words:?}");
            assert_eq!(
                json.decode_with(&ids, true).unwrap(),
                tokenizer.decode_with(&ids, true).unwrap(),
                "{name}: {words:?}"
            );
        }
    }
}

#[test]
fn our_tokenizers_come_back_from_gguf_metadata_as_they_were() {
    for tokenizer in native() {
        let mut metadata = Metadata::new();
        tokenizer.write_gguf(&mut metadata).unwrap();
        let back = Tokenizer::from_gguf(&metadata).unwrap();
        assert_eq!((back.kind(), back.fingerprint()), (tokenizer.kind(), tokenizer.fingerprint()));
        metadata.retain(|key| key != lynx_gpu::tokenizer::gguf::WHOLE_TOKENIZER);
        assert_eq!(Tokenizer::from_gguf(&metadata).unwrap().start_id(), tokenizer.start_id());
    }
    let error = Tokenizer::from_gguf(&Metadata::new()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.tokens"), "{error}");
}

/// `LYNX_VOCABULARIES=FOLDER cargo test --test tokenizers vocabularies -- --ignored` writes what tests/tokenizers/compare.py compares.
#[test]
#[ignore = "writes files for a comparison with llama.cpp"]
fn vocabularies_for_llama_cpp() {
    let folder =
        std::path::PathBuf::from(std::env::var_os("LYNX_VOCABULARIES").expect("LYNX_VOCABULARIES names a folder"));
    let files = fixture("hf.json");
    let read =
        files.as_array().unwrap().iter().map(|f| Tokenizer::from_json("file", text(&f["json"]).to_owned()).unwrap());
    for (index, tokenizer) in native().into_iter().chain(read).chain([spm("llama").0, spm("gemma").0]).enumerate() {
        let v = tokenizer.to_gguf_vocabulary().unwrap().vocabulary;
        let cases: Vec<Value> = hard_texts()
            .into_iter()
            .chain(["the cat sat on the mat".into()])
            .filter_map(|words| Some(serde_json::json!({ "ids": tokenizer.encode_plain(&words).ok()?, "text": words })))
            .collect();
        let tokens: Vec<String> = v.tokens.iter().map(|t| String::from_utf8(t.clone()).unwrap()).collect();
        let value = serde_json::json!({
            "name": format!("{index} {}", tokenizer.kind()), "model": v.model, "pre": v.pre, "tokens": tokens, "scores": v.scores,
            "types": v.types, "merges": v.merges, "bos": v.bos, "eos": v.eos, "unknown": v.unk, "padding": v.pad,
            "add_space_prefix": v.add_space_prefix.unwrap_or(v.model == "llama"), "add_bos_token": v.add_bos, "cases": cases,
        });
        std::fs::write(folder.join(format!("{index}.json")), value.to_string()).unwrap();
    }
}

#[test]
fn what_the_library_panics_at_is_refused() {
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": { "type": "Sequence", "processors": [{
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": {},
        }] },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "a": 0, "<s>": 1 }, "unk_token": "<s>" },
    });
    let message = Tokenizer::from_json("file", json.to_string()).unwrap_err().to_string();
    assert!(message.contains("'<s>'") && message.contains("file"), "{message}");
    let mut json = json;
    json["post_processor"] = serde_json::Value::Null;
    Tokenizer::from_json("file", json.to_string()).unwrap();
    // Older files do not say what a step is.
    for named in [true, false] {
        let mut strip = serde_json::json!({ "content": " ", "start": 0, "stop": 1 });
        if named {
            strip["type"] = "Strip".into();
        }
        json["decoder"] = serde_json::json!({ "type": "Sequence", "decoders": [strip] });
        let message = Tokenizer::from_json("file", json.to_string()).unwrap_err().to_string();
        assert!(message.contains("Strip"), "{message}");
    }
    json["decoder"] = serde_json::Value::Null;
    let replace = |pattern: &str, content: &str| serde_json::json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content });
    let long = "x".repeat(100);
    let levels =
        serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    for (key, step, says) in [
        ("normalizer", replace("", "a"), "empty"),
        (
            "normalizer",
            serde_json::json!({ "type": "Sequence", "normalizers": vec![replace(".", &long); 3] }),
            "longer",
        ),
        ("pre_tokenizer", serde_json::json!({ "type": "Sequence", "pretokenizers": vec![levels; 2] }), "ByteLevel"),
        ("pre_tokenizer", serde_json::json!({ "type": "FixedLength", "length": 0 }), "no length"),
    ] {
        let mut json = json.clone();
        json[key] = step;
        let message = Tokenizer::from_json("file", json.to_string()).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    json["model"] = serde_json::json!({
        "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": [["a", "b"]], "continuing_subword_prefix": "\u{e9}\u{e9}\u{e9}",
    });
    let message = Tokenizer::from_json("file", json.to_string()).unwrap_err().to_string();
    assert!(message.contains("'b'") && message.contains("continuing"), "{message}");
}
