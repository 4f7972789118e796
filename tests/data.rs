//! Corpora and tokenizers from the outside: the Hugging Face library reads what we write, texts survive the round trip,
//! and the commands do what they say.

use lynx_gpu::data::verbs::split::Policy;
use lynx_gpu::data::{Cache, CorpusSource, EncodedCorpus, EvalBatches, text, verbs};
use lynx_gpu::tokenizer::{
    BpeOptions, BpeTokenizer, ByteTokenizer, CharTokenizer, Kind, PreSplit, SpecialTokens, StreamDecoder, Tokenizer,
};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Twenty ASCII sentences and the hard cases of the specification.
const SENTENCES: [&str; 27] = [
    "I work",
    "you work",
    "he works",
    "I will work",
    "you are going to work",
    "to be",
    "he was",
    "they have gone",
    "Hello, world!",
    "a",
    " leading",
    "trailing ",
    "two  spaces",
    "tab\there",
    "line\nbreak",
    "\r\n",
    "1234567890",
    "x=y*(z+1);",
    "~`@#$%^&*",
    "The quick brown fox jumps over the lazy dog.",
    "mañana",
    "¿cómo estás?",
    "🦊",
    "",
    "es:él irá / en:he will go",
    "\u{feff}\u{0}\u{7f}",
    "日本語 и русский",
];

fn corpus() -> lynx_gpu::data::TextCorpus {
    verbs::text_corpus(42, &Policy::default()).unwrap()
}

/// One tokenizer of every kind of ours that can encode any text, and the trained character one.
fn ours() -> Vec<Tokenizer> {
    let corpus = corpus();
    let bpe = |vocab_size, pre_split, specials| {
        let options = BpeOptions { vocab_size, pre_split, specials };
        Tokenizer::Bpe(BpeTokenizer::train(corpus.documents().chain(SENTENCES), &options).unwrap())
    };
    let alphabet = corpus.documents().chain(SENTENCES);
    vec![
        Tokenizer::Char(CharTokenizer::train(alphabet, SpecialTokens::default()).unwrap()),
        Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::none())),
        Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::default())),
        Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes())),
        bpe(512, PreSplit::None, SpecialTokens::default()),
        bpe(384, PreSplit::Whitespace, SpecialTokens::none()),
    ]
}

/// The same tokenizer, running in the Hugging Face library.
fn in_library(tokenizer: &Tokenizer) -> tokenizers::Tokenizer {
    tokenizer.to_huggingface_json().parse().expect("the library reads our tokenizer.json")
}

fn same_in_library(tokenizer: &Tokenizer, library: &tokenizers::Tokenizer, text: &str) {
    let ids = tokenizer.encode(text).unwrap();
    let encoding = library.encode(text, false).unwrap();
    assert_eq!(encoding.get_ids(), ids, "{} {text:?}", tokenizer.kind());
    assert_eq!(library.decode(&ids, false).unwrap(), text, "{} {text:?}", tokenizer.kind());
    assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{} {text:?}", tokenizer.kind());
    let mut stream = StreamDecoder::new(tokenizer, false);
    let mut streamed: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    streamed += &stream.finish().unwrap();
    assert_eq!(streamed, text);
}

#[test]
fn every_tokenizer_encodes_in_the_hugging_face_library_as_it_does_here() {
    for tokenizer in ours() {
        let library = in_library(&tokenizer);
        assert_eq!(library.get_vocab_size(true), tokenizer.vocab_size());
        for text in SENTENCES {
            same_in_library(&tokenizer, &library, text);
        }
        if tokenizer.boundary_id().is_some() {
            same_in_library(&tokenizer, &library, "I<|endoftext|>work<|pad|><|endoftext|>");
        }
        for row in corpus().documents() {
            same_in_library(&tokenizer, &library, row);
        }
    }
}

/// Strings over the whole of Unicode: mostly text, but also controls, combining marks, astral planes.
fn unicode() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect()),
        "[a-záéíóúñ ¿?\n\u{301}🦊]{0,60}",
        "(<\\|endoftext\\|>|I work|él | ){0,8}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, rng_seed: proptest::test_runner::RngSeed::Fixed(42), ..ProptestConfig::default() })]
    #[test]
    fn a_thousand_random_strings_round_trip_here_and_in_the_library(text in unicode()) {
        thread_local! {
            static PAIRS: Vec<(Tokenizer, tokenizers::Tokenizer)> = ours()
                .into_iter()
                .filter(|t| t.kind() != "char")
                .map(|t| { let library = in_library(&t); (t, library) })
                .collect();
        }
        PAIRS.with(|pairs| pairs.iter().for_each(|(t, library)| same_in_library(t, library, &text)));
    }
}

#[test]
fn an_unknown_character_is_an_error_in_the_library_too() {
    let tokenizer = Tokenizer::for_corpus(&corpus(), Kind::Char).unwrap();
    assert!(tokenizer.encode("Z").is_err());
    assert!(in_library(&tokenizer).encode("Z", false).is_err());
}

#[test]
fn training_twice_writes_the_same_bytes_and_loading_gives_the_same_tokenizer() {
    for (first, second) in ours().into_iter().zip(ours()) {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        first.save(folders[0].path()).unwrap();
        second.save(folders[1].path()).unwrap();
        let names = |folder: &Path| -> Vec<PathBuf> {
            let mut names: Vec<PathBuf> =
                std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into()).collect();
            names.sort();
            names
        };
        assert_eq!(names(folders[0].path()), names(folders[1].path()));
        for name in names(folders[0].path()) {
            let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join(&name)).unwrap();
            assert_eq!(read(&folders[0]), read(&folders[1]), "{}", name.display());
        }
        let from_json = Tokenizer::load(folders[0].path()).unwrap();
        std::fs::remove_file(folders[0].path().join("tokenizer.json")).unwrap();
        let from_parts = Tokenizer::load(folders[0].path()).unwrap();
        for loaded in [from_json, from_parts] {
            assert_eq!((loaded.kind(), loaded.fingerprint()), (first.kind(), first.fingerprint()));
            for text in SENTENCES {
                assert_eq!(loaded.encode(text).unwrap(), first.encode(text).unwrap());
            }
        }
    }
}

#[test]
fn the_byte_ff_survives_saving_and_loading() {
    let folder = tempfile::tempdir().unwrap();
    let merges = "ff 66\n66 66\n";
    let bpe = BpeTokenizer::from_merges_text(merges, SpecialTokens::default(), PreSplit::None).unwrap();
    Tokenizer::Bpe(bpe).save(folder.path()).unwrap();
    let loaded = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(loaded.token_bytes(260).unwrap(), [0xff, 0x66]);
    assert_eq!(loaded.token_bytes(4 + 0xff).unwrap(), [0xff]);
    assert_eq!(std::fs::read_to_string(folder.path().join("merges.txt")).unwrap(), merges);
}

#[test]
fn damaged_tokenizer_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("no tokenizer here"));
    for (text, what) in
        [("", "not JSON"), ("{\"model\":", "not JSON"), ("{}", "tokenizers library"), ("[1]", "library")]
    {
        std::fs::write(file("tokenizer.json"), text).unwrap();
        let message = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("tokenizer.json"), "{message}");
    }
    ours()[4].save(folder.path()).unwrap();
    std::fs::remove_file(file("tokenizer.json")).unwrap();
    let merges = std::fs::read_to_string(file("merges.txt")).unwrap();
    std::fs::write(file("merges.txt"), merges.lines().skip(1).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    assert!(Tokenizer::load(folder.path()).is_err());
}

#[test]
fn a_foreign_tokenizer_json_runs_in_the_library_and_streams_whole_characters() {
    // A changed copy of ours is not ours any more: it normalises, so it is run as the library runs it.
    let bpe = &ours()[4];
    let mut json: serde_json::Value = serde_json::from_str(&bpe.to_huggingface_json()).unwrap();
    json["normalizer"] = serde_json::json!({ "type": "Lowercase" });
    json["truncation"] =
        serde_json::json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    let foreign = Tokenizer::from_json("foreign", json.to_string()).unwrap();
    assert_eq!(foreign.kind(), "huggingface");
    assert_ne!(foreign.fingerprint(), bpe.fingerprint());
    assert_eq!((foreign.vocab_size(), foreign.boundary_id(), foreign.pad_id()), (512, Some(1), Some(0)));
    // The truncation that the file asks for would cut a corpus to two tokens.
    let ids = foreign.encode("YOU WILL LISTEN 🦊 MAÑANA").unwrap();
    assert_eq!(foreign.decode(&ids).unwrap(), "you will listen 🦊 mañana");
    let mut stream = StreamDecoder::new(&foreign, true);
    let mut parts: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    parts.push(stream.finish().unwrap());
    assert!(parts.iter().all(|part| !part.contains('\u{fffd}')));
    assert_eq!(parts.concat(), "you will listen 🦊 mañana");
    assert!(foreign.decode(&[512]).is_err() && stream.push(9999).is_err());
}

#[test]
fn the_default_corpus_has_38_characters_ids_and_its_ngram_baseline_is_a_four_gram() {
    let corpus = CorpusSource::default().load().unwrap();
    let tokenizer = Tokenizer::for_corpus(&corpus, Kind::Char).unwrap();
    assert_eq!(tokenizer.vocab_size(), 34 + 4);
    let data = EncodedCorpus::encode(&corpus, &tokenizer, &Cache::disabled()).unwrap();
    assert_eq!((data.train.documents(), data.val.documents(), data.test.documents()), (288, 72, 0));
    let best = lynx_gpu::data::ngram::best_ngram(&data.train, &data.val, tokenizer.vocab_size()).unwrap();
    assert_eq!(best.n, 4);
    // The model is judged on the tokens that the baseline is judged on.
    let scored: usize = EvalBatches::new(data.val.clone(), 8, 32).unwrap().iter().map(|b| b.scored()).sum();
    assert_eq!(scored, data.val.scored_tokens());
}

#[test]
fn shakespeare_characters_are_the_65_of_nanogpt() {
    let shared =
        std::env::var("LYNX_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into());
    let path = Path::new(&shared).join("data/text/tinyshakespeare.txt");
    if !path.exists() {
        eprintln!("skipped: {} is not there (set LYNX_SHARED)", path.display());
        return;
    }
    let corpus = text::load(&path, 0.1).unwrap();
    let tokenizer = Tokenizer::for_corpus(&corpus, Kind::Char).unwrap();
    let data = EncodedCorpus::encode(&corpus, &tokenizer, &Cache::disabled()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 65);
    // nanoGPT's prepare.py prints these two.
    assert_eq!((data.train.tokens.len(), data.val.tokens.len()), (1_003_854, 111_540));
}

fn lynx(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lynx-gpu"))
        .args(arguments)
        .env("LYNX_CACHE", "")
        .output()
        .expect("the program starts")
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json_of(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", text_of(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document on standard output")
}

#[test]
fn data_verbs_writes_a_corpus_that_data_validate_passes_until_it_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let manifest = json_of(&lynx(&["data", "verbs", "--out", out, "--split", "verb-tense", "--json"]));
    assert_eq!(manifest["counts"]["correct"], 360);
    let report = json_of(&lynx(&["data", "validate", out, "--json"]));
    assert_eq!((report["passed"].as_bool(), report["checks"].as_array().map(Vec::len)), (Some(true), Some(16)));
    assert!(text_of(&lynx(&["data", "inspect", out]).stdout).contains("360 correct"));

    let path = folder.path().join("train.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, lines.lines().skip(1).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    let output = lynx(&["data", "validate", out]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output.stdout).contains("FAILED splits_are_the_corpus"), "{}", text_of(&output.stdout));
}

#[test]
fn bad_data_ends_with_a_message_and_a_status_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, broken) = (file("empty.txt", b""), file("latin1.txt", b"uno\nma\xf1ana\n"));
    let missing = folder.path().join("missing.txt").to_str().unwrap().to_owned();
    for (arguments, status, message) in [
        (vec!["data", "inspect", missing.as_str()], 7, "check the path"),
        (vec!["data", "inspect", empty.as_str()], 3, "empty"),
        (vec!["data", "inspect", broken.as_str()], 3, "byte offset 6 (line 2)"),
        (vec!["data", "verbs", "--split", "random"], 2, "refused"),
        (vec!["data", "verbs", "--split", "verbs:eet"], 3, "did you mean 'eat'"),
        (vec!["data", "verbs", "--ratios", "0.8,0.1"], 2, "sum to 1"),
        (vec!["data", "inspect", "verbs", "--tokenizer", "word"], 2, "no such tokenizer kind"),
        (vec!["tokenizer", "train", "--vocab", "100", "--out", folder.path().to_str().unwrap()], 2, "at least 260"),
        (vec!["tokenizer", "info", missing.as_str()], 7, "check the path"),
        (vec!["tokenizer", "info", broken.as_str()], 3, "not UTF-8"),
    ] {
        let output = lynx(&arguments);
        let stderr = text_of(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn tokenizer_commands_train_encode_decode_and_describe() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, size) in [("bpe", 300), ("char", 38), ("byte", 259)] {
        let out = folder.path().join(kind);
        let out = out.to_str().unwrap();
        let trained = json_of(&lynx(&["tokenizer", "train", "--kind", kind, "--vocab", "300", "--out", out, "--json"]));
        assert_eq!(trained["vocab_size"], size);
        let info = json_of(&lynx(&["tokenizer", "info", out, "--tokens", "--json"]));
        assert_eq!((&info["kind"], &info["sha256"]), (&trained["kind"], &trained["sha256"]));
        assert_eq!(info["tokens"].as_array().unwrap().len(), size);

        let text = "es:él irá / en:he will go";
        let encoded = json_of(&lynx(&["tokenizer", "encode", "--tokenizer", out, text, "--json"]));
        let ids: Vec<String> = encoded["ids"].as_array().unwrap().iter().map(|id| id.to_string()).collect();
        let mut arguments = vec!["tokenizer", "decode", "--tokenizer", out];
        arguments.extend(ids.iter().map(String::as_str));
        assert_eq!(text_of(&lynx(&arguments).stdout), format!("{text}\n"));

        let output = lynx(&["tokenizer", "decode", "--tokenizer", out, "99999"]);
        assert_eq!(output.status.code(), Some(3));
        assert!(text_of(&output.stderr).contains("99999"));
    }
}

#[test]
fn inspect_reports_the_ngram_sweep_as_json() {
    let report = json_of(&lynx(&["data", "inspect", "verbs", "--ngram", "--tokenizer", "bpe:300", "--json"]));
    assert_eq!(report["tokenizer"]["vocab_size"], 300);
    let table = report["ngram"]["table"].as_array().unwrap();
    assert_eq!(table.len(), 7);
    let least = table.iter().map(|row| row["perplexity"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
    assert_eq!(report["ngram"]["perplexity"].as_f64().unwrap(), least);
}
