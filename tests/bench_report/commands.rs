//! `bench --roofline` as it is typed, on reports that are there already.

use super::synthetic::{self, CPU, GPU};
use lynx_gpu::bench::report::Report;
use std::path::Path;
use std::process::{Command, Output};

fn bench(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lynx-gpu"));
    command.current_dir(folder).args(["bench", "--out", "pictures"]).args(args).output().unwrap()
}

fn save(folder: &Path, name: &str, report: &Report) {
    std::fs::write(folder.join(name), serde_json::to_string(report).unwrap()).unwrap();
}

fn stdout(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn an_old_report_is_printed_and_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "old.json", &synthetic::report());
    let out = bench(folder.path(), &["--roofline", "--from", "old.json"]);
    assert!(out.status.success(), "{}", stderr(&out));
    for part in ["GFLOP/s", "of roof", "FLOP per byte", "llvmpipe", "warning: "] {
        assert!(stdout(&out).contains(part), "no `{part}`");
    }
    assert!(!stdout(&out).contains('\x1b'), "colours are for terminals");
    for name in ["roofline.svg", "roofline.png"] {
        assert!(folder.path().join("pictures").join(name).exists(), "no {name}");
    }
    assert!(!folder.path().join("pictures/roofline.json").exists(), "nothing was measured");
}

#[test]
fn a_regression_has_an_exit_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let old = synthetic::report_of(&[&CPU], 1);
    let mut slow = old.clone();
    for dot in slow.devices[0].dots.iter_mut().filter(|d| d.operator == "softmax") {
        let s = &mut dot.seconds;
        (s.median, s.low, s.high, s.best) = (2.0 * s.median, 2.0 * s.low, 2.0 * s.high, 2.0 * s.best);
    }
    save(folder.path(), "old.json", &old);
    save(folder.path(), "slow.json", &slow);
    save(folder.path(), "other.json", &synthetic::report_of(&[&GPU], 1));
    let run = |new: &str, more: &[&str]| {
        let mut args = vec!["--roofline", "--from", new, "--compare", "old.json"];
        args.extend(more);
        bench(folder.path(), &args)
    };
    let same = run("old.json", &[]);
    assert_eq!(same.status.code(), Some(0), "{}", stderr(&same));
    let slower = run("slow.json", &[]);
    assert_eq!(slower.status.code(), Some(9), "{}", stderr(&slower));
    assert!(stderr(&slower).contains("slower beyond noise") && stdout(&slower).contains("2.00 x  softmax"));
    let machine = run("slow.json", &["--json"]);
    let comparison: serde_json::Value = serde_json::from_slice(&machine.stdout).unwrap();
    assert_eq!(machine.status.code(), Some(9));
    assert_eq!(comparison["devices"][0]["id"], "cpu");
    let other = run("other.json", &[]);
    assert_eq!(other.status.code(), Some(3));
    assert!(stderr(&other).contains("nothing to compare"), "{}", stderr(&other));
    // The old report is read before anything is measured.
    let missing = bench(folder.path(), &["--roofline", "--compare", "nowhere.json"]);
    assert_eq!(missing.status.code(), Some(7), "{}", stderr(&missing));
    assert!(stderr(&missing).contains("nowhere.json"));
    std::fs::write(folder.path().join("v0.json"), r#"{"schema": "lynx-gpu/roofline", "version": 0}"#).unwrap();
    let older = bench(folder.path(), &["--roofline", "--compare", "v0.json"]);
    assert!(older.status.code() == Some(3) && stderr(&older).contains("older program"), "{}", stderr(&older));
}

#[test]
fn describe_explains_the_chart_without_measuring() {
    let folder = tempfile::tempdir().unwrap();
    let out = bench(folder.path(), &["--describe"]);
    assert!(out.status.success());
    // Lines are broken at the width of the terminal.
    let words = stdout(&out).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["THE CHART", "FLOP per byte", "exit code 9", "triad"] {
        assert!(words.contains(part), "no `{part}` in {words}");
    }
}
