//! Vocabularies that are damaged or made to do harm.

use super::*;

fn refused(keys: GgufVocabulary) -> String {
    Tokenizer::from_gguf_vocabulary(keys).unwrap_err().to_string()
}

/// A small `llama` vocabulary and a small `gpt2` one.
fn good() -> [GgufVocabulary; 2] {
    let llama = GgufVocabulary {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>", "a", "b", "ab"].map(|t| t.as_bytes().to_vec()).to_vec(),
        scores: vec![0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
        types: vec![2, 3, 3, 1, 1, 1],
        ..GgufVocabulary::default()
    };
    let value = fixture("bpe.json");
    [llama, GgufVocabulary { pre: "gpt-2".into(), ..vocabulary(&value) }]
}

#[test]
fn vocabularies_whose_parts_do_not_fit_are_refused_with_the_entry() {
    for keys in good() {
        let count = keys.tokens.len();
        assert!(Tokenizer::from_gguf_vocabulary(keys.clone()).is_ok());
        let with = |change: &dyn Fn(&mut GgufVocabulary)| {
            let mut keys = keys.clone();
            change(&mut keys);
            refused(keys)
        };
        assert!(with(&|k| k.tokens.clear()).contains("empty"));
        assert!(with(&|k| k.scores = vec![0.0; 3]).contains("scores has 3 entries"));
        assert!(with(&|k| k.types.push(1)).contains("token_type has"));
        assert!(with(&|k| k.types[3] = 77).contains("token_type[3] = 77"));
        assert!(with(&|k| k.tokens[4] = vec![b'x', 0xff]).contains("tokens[4] 'x\\xff' is not UTF-8"));
        assert!(
            with(&|k| k.tokens[4] = k.tokens[3].clone()).contains("3"),
            "{}",
            with(&|k| k.tokens[4] = k.tokens[3].clone())
        );
        assert!(with(&|k| k.model = "t5".into()).contains("'t5'"));
        for id in [count as u32, u32::MAX] {
            assert!(with(&|k| k.bos = Some(id)).contains("bos_token_id"));
            assert!(with(&|k| k.eos = Some(id)).contains("eos_token_id"));
            assert!(with(&|k| k.unk = Some(id)).contains("unknown_token_id"));
            assert!(with(&|k| k.pad = Some(id)).contains("padding_token_id"));
            assert!(with(&|k| k.eot = Some(id)).contains("eot_token_id"));
        }
        let tokenizer = Tokenizer::from_gguf_vocabulary(keys).unwrap();
        for id in [count as u32, u32::MAX] {
            assert!(tokenizer.decode(&[id]).unwrap_err().to_string().contains("ids 0 to"));
            assert!(tokenizer.token_bytes(id).is_err() && !tokenizer.is_special(id));
        }
    }
}

#[test]
fn scores_that_are_no_numbers_and_bytes_that_are_no_bytes_are_refused() {
    let [llama, gpt2] = good();
    let mut keys = llama.clone();
    keys.scores[5] = f32::NAN;
    assert!(refused(keys).contains("piece 5 'ab': its score is not a number"));
    for score in [f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE] {
        let mut keys = llama.clone();
        keys.scores[5] = score;
        let tokenizer = Tokenizer::from_gguf_vocabulary(keys).unwrap();
        assert_eq!(tokenizer.encode("aab").unwrap(), [0, 3, 5]);
    }
    let mut keys = llama;
    keys.types[5] = 6;
    assert!(refused(keys).contains("<0x00>"));
    // A byte-level vocabulary without a byte: what the byte occurs in could not be said.
    let mut keys = gpt2;
    let at = keys.tokens.iter().position(|token| token == b"a").unwrap();
    keys.tokens[at] = b"something else".to_vec();
    assert!(refused(keys).contains("0x61"));
}

#[test]
fn merges_of_nothing_are_refused_and_cycles_end() {
    let [_, gpt2] = good();
    for (merge, why) in [
        ("a zzz", "'zzz' is not"),
        ("Ġzzz a", "'Ġzzz' is not"),
        ("ab", "not two tokens"),
        ("a  b", "not two"),
        (" a", "not two"),
        ("", "not two"),
        ("x q", "'xq' is not"),
    ] {
        let mut keys = gpt2.clone();
        keys.merges[7] = merge.into();
        let message = refused(keys);
        assert!(message.contains("merges[7]") && message.contains(why), "{merge}: {message}");
    }
    // The same merge again and again, and merges before those that make their parts.
    let mut keys = gpt2.clone();
    keys.merges = keys.merges.iter().rev().chain(&gpt2.merges).cloned().collect();
    let tokenizer = Tokenizer::from_gguf_vocabulary(keys).unwrap();
    for words in hard_texts() {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&words).unwrap()).unwrap(), words);
    }
    let mut keys = gpt2;
    keys.merges.clear();
    assert_eq!(Tokenizer::from_gguf_vocabulary(keys).unwrap().encode("the").unwrap().len(), 3);
}

#[test]
fn empty_tokens_are_never_made() {
    for mut keys in good() {
        let id = keys.tokens.len() as u32;
        for _ in 0..2 {
            keys.tokens.push(vec![]);
            keys.types.push(1);
        }
        keys.scores.resize(if keys.scores.is_empty() { 0 } else { keys.tokens.len() }, 9.0);
        for kind in [1, 3, 4] {
            *keys.types.last_mut().unwrap() = kind;
            let tokenizer = Tokenizer::from_gguf_vocabulary(keys.clone()).unwrap();
            assert!(tokenizer.encode("aab").unwrap().iter().all(|&found| found < id));
        }
    }
}

#[test]
fn a_way_of_cutting_that_is_not_known_is_an_error_with_those_that_are() {
    let [_, gpt2] = good();
    let message = refused(GgufVocabulary { pre: "martian".into(), ..gpt2 });
    assert!(message.contains("'martian'") && message.contains("llama-bpe") && message.contains("qwen2"), "{message}");
}

#[test]
fn a_long_text_without_a_place_to_cut_takes_no_square_of_its_length() {
    let (tokenizer, _) = spm("llama");
    for words in ["a".repeat(300_000), " ".repeat(300_000), "🦊".repeat(50_000), "</s>".repeat(50_000)] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&words).unwrap()).unwrap(), words);
    }
}
