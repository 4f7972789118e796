//! Folders with a `tokenizer.json` and the files beside it.

use super::*;

fn folder(name: &str, files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let all = fixture("hf.json");
    let file = all.as_array().unwrap().iter().find(|f| f["name"] == name).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), text(&file["json"])).unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn the_files_beside_a_tokenizer_say_where_texts_begin_and_end() {
    let config = r#"{"eos_token": {"content": "<|im_end|>"}, "bos_token": null, "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    let plain = folder("qwen2", &[]);
    let alone = Tokenizer::from_folder(plain.path()).unwrap();
    let id = |name: &str| alone.special_id(name).unwrap();
    let (end, text_end) = (id("<|im_end|>"), id("<|endoftext|>"));
    // Without files the names say it.
    assert_eq!((alone.bos_id(), alone.add_bos(), alone.eos_ids()), (None, false, vec![text_end, end]));
    let generation = format!(r#"{{"eos_token_id": [{end}, {text_end}, 99999999]}}"#);
    let full = folder("qwen2", &[("tokenizer_config.json", config.into()), ("generation_config.json", generation)]);
    let tokenizer = Tokenizer::from_folder(full.path()).unwrap();
    assert_eq!((tokenizer.start_id(), tokenizer.eos_ids()), (None, vec![end, text_end]));
    assert_eq!(tokenizer.chat_template(), Some("d"));
    std::fs::write(full.path().join("chat_template.jinja"), "from the file").unwrap();
    assert_eq!(Tokenizer::from_folder(full.path()).unwrap().chat_template(), Some("from the file"));
}

#[test]
fn the_beginning_is_what_the_post_processor_puts_there() {
    let folder = folder("llama3", &[("special_tokens_map.json", r#"{"eos_token": "<|eot_id|>"}"#.into())]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let id = |name: &str| tokenizer.special_id(name);
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.add_bos(), tokenizer.start_id()),
        (id("<|begin_of_text|>"), true, id("<|begin_of_text|>"))
    );
    assert_eq!(tokenizer.eos_ids()[0], id("<|eot_id|>").unwrap());
    assert!(tokenizer.eos_ids().contains(&id("<|end_of_text|>").unwrap()));
}

#[test]
fn a_folder_written_here_is_read_as_it_was() {
    let (spm, _) = spm("llama");
    for tokenizer in [trained_bpe(), spm] {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save_folder(folder.path(), 256, Some("{{ messages }}")).unwrap();
        let config: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.path().join("tokenizer_config.json")).unwrap())
                .unwrap();
        assert_eq!((&config["model_max_length"], &config["chat_template"]), (&256.into(), &"{{ messages }}".into()));
        let back = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(back.fingerprint(), tokenizer.fingerprint());
        assert_eq!((back.start_id(), back.eos_ids()), (tokenizer.start_id(), tokenizer.eos_ids()));
        assert_eq!(back.encode("the cat").unwrap(), tokenizer.encode("the cat").unwrap());
    }
}

#[test]
fn damaged_files_are_named() {
    for (name, content) in
        [("tokenizer_config.json", "{"), ("generation_config.json", "[1]"), ("special_tokens_map.json", "\"x\"")]
    {
        let folder = folder("gpt2", &[(name, content.into())]);
        let message = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn text_never_becomes_control_tokens_where_that_is_not_wanted() {
    for file in fixture("hf.json").as_array().unwrap() {
        let tokenizer = Tokenizer::from_json("file", text(&file["json"]).to_owned()).unwrap();
        let names = tokenizer.control_names().concat();
        let ids = tokenizer.encode_plain(&names).unwrap();
        assert!(!ids.iter().any(|&id| tokenizer.is_special(id)), "{}: {ids:?}", file["name"]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), names);
        assert!(
            tokenizer
                .encode(&names)
                .unwrap()
                .iter()
                .all(|&id| tokenizer.is_special(id) || tokenizer.token_bytes(id).unwrap().starts_with("▁".as_bytes()))
        );
    }
    for tokenizer in [trained_bpe(), spm("llama").0] {
        let ids = tokenizer.encode_plain("<|endoftext|></s>").unwrap();
        assert!(!ids.iter().any(|&id| tokenizer.is_special(id)));
    }
}
