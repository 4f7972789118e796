//! The command on trained models.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn lynx(dir: &Path, args: &[&str]) -> (bool, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_lynx-gpu"))
        .args(args)
        .current_dir(dir)
        .env("LYNX_CACHE", dir.join("cache"))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.success(), text(out.stdout), text(out.stderr))
}

/// From data to tables on models of a few steps: one that carries a state and one that sees its newest tokens.
#[test]
fn each_battery_runs_on_trained_models_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let good = |args: &[&str]| {
        let (fine, out, err) = lynx(dir, args);
        assert!(fine, "{args:?}: {err}");
        out
    };
    good(&["data", "logic-mix", "--bytes", "150000", "--recall", "--out", "mix"]);
    assert!(good(&["data", "validate", "mix"]).contains("worked answers"));
    let train = |out, preset, sets: &[&str]| {
        let mut args = vec!["train", "--config", preset, "--data", "mix", "--out", out, "--device", "cpu"];
        let common = [
            "tokenizer.kind=byte",
            "train.steps=4",
            "train.batch_size=2",
            "train.eval_batches=1",
            "train.sample_tokens=4",
            "data.batching=auto",
        ];
        common.iter().chain(sets).for_each(|set| args.extend(["--set", set]));
        good(&args);
    };
    train("carried", "coeus-v2.5-tiny", &["model.layers=1", "model.width=24", "model.heads=2"]);
    train("newest", "minigpt", &["model.layers=1", "model.width=16", "model.heads=2", "model.context=32"]);

    let json = |args: &[&str]| -> Value { serde_json::from_str(&good(args)).unwrap() };
    let iq = json(&["eval", "iq", "carried", "-n", "1", "--device", "cpu", "--out", "iq.json", "--json"]);
    assert_eq!(iq["solvers"].as_array().unwrap().len(), 4);
    assert_eq!((&iq["battery"], &iq["options"]["n"]), (&"iq".into(), &1.into()));
    assert_eq!(iq["baselines_learnt_from"], "mix");
    assert_eq!(iq["claims"][0]["claimed"], false);
    let written: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("iq.json")).unwrap()).unwrap();
    assert_eq!(written, iq);

    let args = [
        "eval",
        "recall",
        "carried",
        "newest",
        "--distances",
        "16,200",
        "--facts",
        "1,2",
        "-n",
        "8",
        "--device",
        "cpu",
    ];
    let result = json(&[&args[..], &["--json"]].concat());
    for model in result["models"].as_array().unwrap() {
        let cells = model["result"]["cells"].as_array().unwrap();
        assert_eq!((cells.len(), cells[1]["reach"].as_u64()), (4, Some(227)));
        assert!(cells.iter().all(|c| c["exact"]["n"] == 8 && c["nats_per_digit"].as_f64().unwrap() > 0.5));
    }
    assert_eq!(
        (&result["models"][0]["reach"]["limit"], &result["models"][1]["reach"]["limit"]),
        (&Value::Null, &31.into())
    );
    assert_eq!(result, json(&[&args[..], &["--json"]].concat()), "the same again");
    let table = good(&args);
    assert!(
        table.contains("carried: attention reaches 1 x (16 - 1) = 15 tokens back")
            && table.contains("out of reach: chance"),
        "{table}"
    );

    std::fs::write(dir.join("book.txt"), "It was a dark night, and \u{201c}nobody\u{201d} slept.\n".repeat(40))
        .unwrap();
    let hops =
        json(&["eval", "multihop", "carried", "newest", "-n", "2", "--text", "book.txt", "--device", "cpu", "--json"]);
    assert_eq!(
        (hops["filler"].as_str(), hops["models"][1]["result"][2]["steps"].as_u64()),
        (Some("book.txt"), Some(3))
    );
    // The command without a battery is as it was, and a byte order mark is no text.
    let lost = |text: &str| {
        std::fs::write(dir.join("other.txt"), text).unwrap();
        json(&["eval", "carried", "--no-ngram", "--device", "cpu", "--data", "other.txt", "--json"])
    };
    assert_eq!(lost("It was a dark night."), lost("\u{feff}It was a dark night."));
    assert!(good(&["eval", "carried", "--no-ngram", "--device", "cpu"]).contains("bits/byte"));
    for (args, words) in [
        (&["eval", "recall", "carried", "--facts", "0"][..], "--facts 0"),
        (&["eval", "iq", "nothing-here"], "nothing-here"),
        (&["eval", "multihop", "carried", "--text", "none.txt"], "none.txt"),
        (&["eval", "iq", "carried", "-n", "0"], "--n 0"),
        (&["eval", "recall", "carried", "--out", "book.txt/result.json"], "book.txt"),
        (&["eval", "multihop", "carried", "--out", "mix"], "mix: this is a folder"),
    ] {
        let (fine, _, err) = lynx(dir, args);
        assert!(!fine && err.contains(words), "{args:?}: {err}");
    }
}
