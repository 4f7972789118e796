//! `lynx-gpu quantize` and `lynx-gpu imatrix` as commands.

use std::path::Path;
use std::process::{Command, Output};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model_files/llama");

fn run(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lynx-gpu")).args(args).current_dir(folder).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn text(folder: &Path) -> &'static str {
    let words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "the", "dog", "run", "far", "away"];
    let text: Vec<&str> = (0..4000).map(|i: usize| words[(i * i + i % 3 % 2 * usize::from(i % 13 < 6)) % 13]).collect();
    std::fs::write(folder.join("text.txt"), text.join(" ")).unwrap();
    "text.txt"
}

#[test]
fn a_model_is_quantised_once_and_replaced_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["quantize", MODEL, "--to", "int8-row", "-o", "small.gguf", "--json"];
    let output = run(folder.path(), &args);
    assert!(output.status.success(), "{}", said(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told["bytes"].as_u64().unwrap() < told["bytes_before"].as_u64().unwrap());
    assert!(told["weights"].as_array().unwrap().iter().any(|w| w["to"] == "int8-row"));
    let before = std::fs::read(folder.path().join("small.gguf")).unwrap();
    let again = run(folder.path(), &args);
    assert_eq!(again.status.code(), Some(7), "{}", said(&again));
    assert!(said(&again).contains("--force"));
    assert_eq!(std::fs::read(folder.path().join("small.gguf")).unwrap(), before);
    let forced = run(folder.path(), &["quantize", MODEL, "--to", "q8_0", "-o", "small.gguf", "--force"]);
    assert!(forced.status.success() && said(&forced).contains("wrote small.gguf"), "{}", said(&forced));
    assert_ne!(std::fs::read(folder.path().join("small.gguf")).unwrap(), before);
}

#[test]
fn what_is_missing_or_wrong_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for (args, code, what) in [
        (&["--to", "int3", "-o", "x.gguf"][..], 2, "gptq-g64"),
        (&["--to", "gptq-g64", "-o", "x.gguf"], 2, "--calibrate"),
        (&["--to", "q4_0", "--clip", "some", "-o", "x.gguf"], 2, "percentile"),
        (&["--to", "q4_0", "--imatrix", "none.gguf", "-o", "x.gguf"], 7, "none.gguf"),
        (&["-o", "x.gguf"], 2, "--to"),
        (&["--pareto"], 2, "--text"),
    ] {
        let output = run(folder.path(), &[&["quantize", MODEL][..], args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        assert!(said(&output).contains(what), "{args:?}: {}", said(&output));
        assert!(!folder.path().join("x.gguf").exists());
    }
}

#[test]
fn a_text_is_learned_from_directly_or_by_way_of_its_importance() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = ["--device", "cpu", "--chunks", "4", "--ctx", "32"];
    let all = |args: &[&str]| {
        let output = run(folder.path(), &[args, &at].concat());
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        output
    };
    all(&["imatrix", MODEL, text, "-o", "importance.gguf"]);
    all(&["quantize", MODEL, "--to", "gptq-g64", "--calibrate", text, "-o", "gptq.gguf"]);
    let output =
        run(folder.path(), &["quantize", MODEL, "--to", "q4_0", "--imatrix", "importance.gguf", "-o", "q4.gguf"]);
    assert!(output.status.success() && said(&output).contains("calibrated on 4 chunks of 32"), "{}", said(&output));
}

#[test]
fn a_sweep_is_measured_drawn_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let output = run(
        folder.path(),
        &[
            "quantize",
            MODEL,
            "--pareto",
            "--text",
            text,
            "--device",
            "cpu",
            "--ctx",
            "32",
            "--chunks",
            "4",
            "--text-chunks",
            "3",
            "--speed-tokens",
            "4",
            "--rounds",
            "2",
            "--schemes",
            "int8-row,gptq-g64",
            "--sensitivity",
            "tensor",
            "--out",
            "out",
            "--json",
        ],
    );
    assert!(output.status.success(), "{}", said(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = told["points"].as_array().unwrap().iter().map(|p| p["scheme"].as_str().unwrap()).collect();
    assert_eq!(names, ["f32", "int8-row", "gptq-g64"]);
    assert_eq!(told["points"][0]["speed"], 1.0);
    assert!(told["calibration"].as_str().unwrap().contains("first half"));
    assert!(!told["sensitivity"]["rows"].as_array().unwrap().is_empty());
    let report = std::fs::read_to_string(folder.path().join("out/REPORT.md")).unwrap();
    assert!(report.contains("| int8-row |") && report.contains("One part at a time"), "{report}");
    for picture in ["perplexity.svg", "speed.svg"] {
        let svg = std::fs::read_to_string(folder.path().join("out").join(picture)).unwrap();
        assert!(svg.contains("int8-row") && svg.trim_end().ends_with("</svg>"));
    }
    assert!(folder.path().join("out/results.json").is_file());
}
