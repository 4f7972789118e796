//! The program as a person meets it: one command trains, stops and resumes, and bad input ends with a message and an exit code.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BIN: &str = env!("CARGO_BIN_EXE_lynx-gpu");

fn lynx(dir: &Path, args: &[&str]) -> Output {
    Command::new(BIN).args(args).current_dir(dir).env("LYNX_CACHE", dir.join("cache")).output().unwrap()
}

/// Runs and expects success; standard output.
fn good(dir: &Path, args: &[&str]) -> String {
    let out = lynx(dir, args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs and expects this exit code and these words on standard error.
fn bad(dir: &Path, args: &[&str], code: i32, words: &[&str]) {
    let out = lynx(dir, args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: '{word}' is missing in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// A model small enough for tests.
const SMALL: &[&str] = &[
    "--device",
    "cpu",
    "--set",
    "model.width=32",
    "--set",
    "model.context=16",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.sample_tokens=8",
    "--set",
    "train.eval_interval=20",
];

fn train_args<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--out", out], SMALL, more].concat()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

fn weights(run: &Path, step: u64) -> Vec<u8> {
    std::fs::read(run.join(format!("checkpoints/step-{step}/model.safetensors"))).unwrap()
}

#[test]
fn one_command_trains_and_the_others_use_what_it_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let log = good(dir, &train_args("run", &["--json", "--set", "train.steps=40"]));
    let lines = json_lines(&log);
    let outcome = lines.last().unwrap();
    assert_eq!(outcome["kind"], "outcome");
    assert!(outcome["ngram"]["perplexity"].as_f64().unwrap() > 1.0);
    let first = lines.iter().find(|l| l["kind"] == "train").unwrap()["loss"].as_f64().unwrap();
    assert!(outcome["best_validation_loss"].as_f64().unwrap() < first, "it learns: {outcome}");
    for file in
        ["manifest.json", "config.toml", "metrics.jsonl", "loss.svg", "samples.txt", "checkpoints/step-40/config.json"]
    {
        assert!(dir.join("run").join(file).is_file(), "{file}");
    }
    let generated: Value =
        serde_json::from_str(&good(dir, &["generate", "run", "--device", "cpu", "--json", "-n", "12", "-p", "es:"]))
            .unwrap();
    let again: Value =
        serde_json::from_str(&good(dir, &["generate", "run", "--device", "cpu", "--json", "-n", "12", "-p", "es:"]))
            .unwrap();
    assert_eq!(generated[0]["generation"], again[0]["generation"], "the seed decides");
    let text = good(dir, &["generate", "run", "--device", "cpu", "-n", "12", "-p", "es:"]);
    assert_eq!(text.trim_end_matches('\n'), format!("es:{}", generated[0]["generation"]["text"].as_str().unwrap()));
    let eval: Value = serde_json::from_str(&good(dir, &["eval", "run", "--device", "cpu", "--json"])).unwrap();
    let (loss, perplexity) = (eval["loss"].as_f64().unwrap(), eval["perplexity"].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-9 * perplexity);
    let best = outcome["best_validation_loss"].as_f64().unwrap();
    assert!((loss - best).abs() < 1e-6, "eval gives what training measured: {loss} and {best}");
    assert!(good(dir, &["completions", "bash"]).contains("lynx-gpu"));
}

#[test]
fn a_logic_mix_is_written_checked_and_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Many blocks, and no two sentences alike.
    let book: String =
        (0..16_000u32).map(|i| format!("Sentence {i} says {}.\n\n", i.wrapping_mul(2_654_435_761))).collect();
    std::fs::write(dir.join("book.txt"), book).unwrap();
    let out = good(dir, &["data", "logic-mix", "--out", "mix", "--bytes", "300kB", "--literature", "book.txt"]);
    assert!(out.contains("arithmetic 36.0 %") && out.contains("literature 40.0 %"), "{out}");
    let checks: Value = serde_json::from_str(&good(dir, &["data", "validate", "mix", "--json"])).unwrap();
    assert_eq!((&checks["passed"], checks["checks"].as_array().unwrap().len()), (&Value::Bool(true), 7));
    let sets = ["train.steps=3", "tokenizer.kind=byte", "train.eval_batches=1"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let run = good(dir, &train_args("run", &[&["--data", "mix"], &sets[..]].concat()));
    assert!(run.contains("finished 3 steps"), "{run}");

    let file = dir.join("mix/train.syllogism.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("Valid.", "Invalid.", 1)).unwrap();
    bad(dir, &["data", "validate", "mix"], 1, &["mix", "1 of 1 checks failed"]);
    bad(dir, &["train", "--data", "mix", "--out", "other"], 3, &["train.syllogism.jsonl", "hash"]);
    bad(dir, &["data", "logic-mix", "--bytes", "0"], 2, &["--bytes 0"]);
    bad(dir, &["data", "logic-mix", "--literature", "none.txt"], 7, &["none.txt"]);
    bad(dir, &["train", "--data", ".", "--out", "other"], 3, &["MANIFEST.json", "data logic-mix --out"]);
}

#[test]
fn a_dry_run_prints_the_plan_and_trains_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path(), &train_args("run", &["--dry-run", "--graph", "step.dot"]));
    for word in
        ["model.layers.1.mlp.down_proj.weight", "weights", "gradients", "optimizer", "activations", "workspace", "FLOP"]
    {
        assert!(text.contains(word), "'{word}' is missing in:\n{text}");
    }
    assert!(!dir.path().join("run").exists());
    assert!(std::fs::read_to_string(dir.path().join("step.dot")).unwrap().contains("adamw"));
    let json: Value = serde_json::from_str(&good(dir.path(), &train_args("run", &["--dry-run", "--json"]))).unwrap();
    let memory = json["memory"].as_object().unwrap();
    let sum: u64 = memory.values().map(|v| v.as_u64().unwrap()).sum();
    assert_eq!(json["total_bytes"].as_u64().unwrap(), sum);
    // What no machine holds is planned all the same: nothing is allocated.
    let text = good(dir.path(), &train_args("run", &["--dry-run", "--set", "train.batch_size=10000000"]));
    assert!(text.contains("GiB") && text.contains("FLOP"), "{text}");
}

#[test]
fn settings_that_do_not_fit_the_checkpoint_leave_the_run_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &train_args("run", &["--set", "train.steps=4"]));
    let resume = ["train", "--resume", "run", "--set", "model.width=64"];
    bad(dir, &resume, 6, &["model.embed_tokens.weight", "undamaged", "config.toml"]);
    good(dir, &["train", "--resume", "run", "--set", "train.steps=6"]);
}

/// The `start` record and the validation before it.
fn start_records(log: &str) -> (Value, Option<Value>) {
    let lines = json_lines(log);
    let at = lines.iter().position(|l| l["kind"] == "start").expect("a start record");
    (lines[at].clone(), lines[..at].iter().find(|l| l["kind"] == "eval").cloned())
}

fn the_start_is_told(device: &str) {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    // 600 rows of 16 are more than the untrained model is validated over.
    let more = ["--json", "--device", device, "--set", "train.steps=1", "--set", "train.batch_size=600"];
    let log = good(dir.path(), &[&["train", "--out", "run"], &SMALL[2..], &more].concat());
    let wall = begun.elapsed().as_secs_f64();
    let (start, eval) = start_records(&log);
    let number = |key: &str| start[key].as_f64().unwrap_or_else(|| panic!("{key} in {start}"));
    let parts = ["validation_seconds", "step_seconds", "pipeline_seconds"].map(number);
    assert!(parts[0] > 0.0 && parts[1] > 0.0 && parts[0] + parts[1] <= number("seconds_to_first_step"), "{start}");
    assert!(number("seconds_to_first_step") <= wall && parts[2] <= wall, "{start} in {wall} s");
    let (pipelines, cached) = (number("pipelines"), number("pipelines_cached"));
    assert!(cached <= pipelines && (pipelines > 0.0) == (device == "gpu"), "{start}");
    assert_eq!(parts[2] > 0.0, device == "gpu", "{start}");
    // The untrained model's loss is near ln(vocabulary), seen over whole rows of 16 within 2048 positions.
    let eval = eval.expect("the untrained model is validated before the first step");
    assert_eq!((&eval["step"], &eval["whole_split"]), (&Value::from(0), &Value::from(false)));
    let tokens = eval["tokens"].as_u64().unwrap();
    assert!((1024..=2048).contains(&tokens), "{eval}");
    assert!((eval["loss"].as_f64().unwrap() - 64f64.ln()).abs() < 0.1, "{eval}");
    let text = lynx(dir.path(), &[&["train", "--out", "plain"], &SMALL[2..], &more[1..]].concat());
    let text = String::from_utf8(text.stderr).unwrap();
    assert!(text.contains("first step after") && text.contains("validation of the untrained model"), "{text}");
    assert_eq!(text.contains("pipelines"), device == "gpu", "{text}");
}

#[test]
fn the_first_step_comes_soon_and_the_start_says_where_its_time_went() {
    the_start_is_told("cpu");
}

#[test]
fn the_start_on_a_gpu_says_what_pipelines_took() {
    match lynx_gpu::device::gpu::Context::adapters().is_empty() {
        false => the_start_is_told("gpu"),
        true if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => panic!("LYNX_REQUIRE_GPU is set and there is no GPU"),
        true => eprintln!("SKIPPED: no GPU adapter"),
    }
}

#[test]
fn resuming_a_finished_run_says_so_and_fewer_steps_than_done_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &train_args("run", &["--set", "train.steps=4"]));
    let before = weights(&dir.join("run"), 4);
    for more in [&[][..], &["--json"], &["--set", "train.steps=4"]] {
        let out = lynx(dir, &[&["train", "--resume", "run"], more].concat());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && text.contains("the run is finished: all 4 steps are done"), "{text}");
    }
    bad(
        dir,
        &["train", "--resume", "run", "--set", "train.steps=3"],
        2,
        &["train.steps = 3", "at step 4", "more than 4"],
    );
    assert_eq!(weights(&dir.join("run"), 4), before);
    good(dir, &["train", "--resume", "run", "--set", "train.steps=5"]);
}

#[test]
fn a_run_goes_on_in_another_precision_from_the_same_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(dir, &train_args("run", &["--set", "train.steps=4"]));
    for (steps, precision) in [(5, "f16"), (6, "bf16"), (7, "f16"), (8, "f32")] {
        let steps_set = format!("train.steps={steps}");
        let args = ["train", "--resume", "run", "--precision", precision, "--set", &steps_set];
        let out = lynx(dir, &args);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && text.contains("the configuration has changed"), "{precision}: {text}");
        let optimizer = std::fs::read(dir.join(format!("run/checkpoints/step-{steps}/optimizer.safetensors"))).unwrap();
        let holds = optimizer.windows(10).any(|w| w == b"loss_scale");
        assert_eq!(holds, precision == "f16", "step {steps} in {precision}");
        assert!(std::fs::read_to_string(dir.join("run/config.toml")).unwrap().contains(&format!("\"{precision}\"")));
    }
    // No update was lost or made of anything but the run's own weights: the losses stay together.
    let log = std::fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
    let losses: Vec<f64> =
        json_lines(&log).iter().filter(|l| l["kind"] == "train").map(|l| l["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 8);
    assert!(losses.iter().all(|l| (l - 64f64.ln()).abs() < 0.5), "{losses:?}");
}

fn start(dir: &Path, out: &str, more: &[&str]) -> Child {
    let args = train_args(out, more);
    let mut command = Command::new(BIN);
    command.args(&args).current_dir(dir).env("LYNX_CACHE", dir.join("cache"));
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the run has logged at least `step` steps.
fn wait_for(run: PathBuf, step: usize) {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        if text.lines().filter(|l| l.contains("\"kind\":\"train\"")).count() >= step {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Trains `steps` steps straight, and again with a kill -9 after `kill_at`; the final weights must be the same bytes.
fn killed_and_resumed(device: &str, steps: u64, kill_at: usize) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let steps_set = format!("train.steps={steps}");
    let interval = format!("train.checkpoint_interval={}", steps / 8);
    let device_set = format!("run.device={device}");
    let sets = [
        "--set",
        &steps_set,
        "--set",
        &interval,
        "--set",
        &device_set,
        "--set",
        "model.dropout=0.1",
        "--set",
        "train.eval_interval=0",
    ];
    let plain: Vec<&str> =
        train_args("straight", &sets).into_iter().filter(|a| !["--device", "cpu"].contains(a)).collect();
    good(dir, &plain);
    let args: Vec<&str> =
        train_args("killed", &sets).into_iter().filter(|a| !["--device", "cpu"].contains(a)).collect();
    let mut command = Command::new(BIN);
    command.args(&args).current_dir(dir).env("LYNX_CACHE", dir.join("cache"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(dir.join("killed"), kill_at);
    child.kill().unwrap();
    child.wait().unwrap();
    good(dir, &["train", "--resume", "killed"]);
    assert_eq!(weights(&dir.join("straight"), steps), weights(&dir.join("killed"), steps));
}

#[test]
fn a_run_killed_in_mid_step_resumes_to_the_same_weights_bit_for_bit() {
    killed_and_resumed("cpu", 400, 120);
}

#[test]
fn a_run_killed_on_the_gpu_resumes_to_the_same_weights_bit_for_bit() {
    if lynx_gpu::device::gpu::Context::adapters().is_empty() {
        assert!(std::env::var_os("LYNX_REQUIRE_GPU").is_none(), "LYNX_REQUIRE_GPU is set and there is no GPU");
        return;
    }
    killed_and_resumed("gpu", 80, 33);
}

#[cfg(unix)]
#[test]
fn ctrl_c_and_sigterm_save_and_say_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let child = start(dir.path(), signal, &["--set", "train.steps=100000"]);
        wait_for(dir.path().join(signal), 10);
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{text}");
        assert!(text.contains("--resume") && text.contains("saved"), "{text}");
        let resumed = good(dir.path(), &["train", "--resume", signal, "--json", "--set", "train.steps=30"]);
        assert!(!resumed.is_empty());
    }
}

#[test]
fn bad_settings_name_the_key_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    bad(dir, &["train", "--set", "model.widht=64"], 2, &["model.widht", "`model.width`"]);
    bad(dir, &["train", "--set", "train.steps=many"], 2, &["train.steps"]);
    bad(dir, &["train", "--set", "model.width=65"], 2, &["65", "heads"]);
    for (key, value) in [("train.batch_size", i64::MAX), ("train.accumulation", i64::MAX), ("model.layers", 3_000_000)]
    {
        bad(dir, &["train", "--dry-run", "--set", &format!("{key}={value}")], 2, &[key, "limit"]);
    }
    let huge = ["train", "--dry-run", "--set", "train.batch_size=10000000", "--set", "model.context=10000000"];
    bad(dir, &huge, 2, &["train.batch_size", "model.context"]);
    bad(dir, &["train", "--config", "minigtp"], 2, &["minigtp", "`minigpt`"]);
    bad(dir, &["train", "--device", "no-such-gpu", "--out", "x"], 5, &["no-such-gpu"]);
    bad(dir, &["generate", "nowhere"], 7, &["nowhere"]);
    bad(dir, &["train", "--resume", "nowhere"], 2, &["nowhere"]);
    assert!(!dir.join("x").exists(), "nothing is left behind");
}

#[test]
fn bad_text_names_the_file_and_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("empty.txt"), "").unwrap();
    std::fs::write(dir.join("short.txt"), "abc abc").unwrap();
    std::fs::write(dir.join("latin1.txt"), [b'a', b'\n', b'b', 0xe9, b'c']).unwrap();
    let train = |file: &'static str| train_args("run", &["--data"]).into_iter().chain([file]).collect::<Vec<_>>();
    bad(dir, &train("missing.txt"), 7, &["missing.txt"]);
    bad(dir, &train("empty.txt"), 3, &["empty"]);
    bad(dir, &train("short.txt"), 3, &["short", "context"]);
    bad(dir, &train("latin1.txt"), 3, &["latin1.txt", "UTF-8"]);
    assert!(!dir.join("run").exists(), "nothing is left behind");
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_stays_usable() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    good(
        dir,
        &train_args(
            "run",
            &["--set", "train.steps=20", "--set", "train.checkpoint_interval=10", "--set", "train.eval_interval=0"],
        ),
    );
    let path = dir.join("run/checkpoints/step-20/model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    for damaged in [&whole[..whole.len() - 100], &flipped] {
        std::fs::write(&path, damaged).unwrap();
        bad(dir, &["generate", "run", "--last", "--device", "cpu"], 6, &["step-20", "model.safetensors"]);
        bad(dir, &["train", "--resume", "run"], 6, &["step-20", "step-10"]);
    }
    good(dir, &["generate", "run/checkpoints/step-10", "--device", "cpu", "-n", "4"]);
    std::fs::write(&path, &whole).unwrap();
    // A model of another shape.
    bad(dir, &["train", "--resume", "run", "--set", "model.width=64"], 6, &["shape"]);
    // A tokenizer of another model.
    good(dir, &["tokenizer", "train", "--data", "verbs", "--kind", "byte", "--out", "other"]);
    std::fs::copy(dir.join("other/tokenizer.json"), dir.join("run/checkpoints/step-20/tokenizer.json")).unwrap();
    bad(dir, &["generate", "run", "--last", "--device", "cpu"], 2, &["model.vocab_size = 64", "259 tokens"]);
    std::fs::write(dir.join("run/checkpoints/step-20/tokenizer.json"), good(dir, &["completions", "bash"])).unwrap();
    let out = lynx(dir, &["generate", "run", "--last", "--device", "cpu"]);
    assert!(!out.status.success());
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_names_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let wild = [
        "--set",
        "schedule.lr=1e38",
        "--set",
        "schedule.warmup=0",
        "--set",
        "train.steps=50",
        "--set",
        "train.checkpoint_interval=1",
        "--set",
        "train.eval_interval=0",
    ];
    bad(dir.path(), &train_args("run", &wild), 8, &["step", "node", "--resume"]);
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path(), "run", &["--set", "train.steps=100000"]);
    wait_for(dir.path().join("run"), 3);
    bad(dir.path(), &["train", "--resume", "run"], 2, &["another run"]);
    bad(dir.path(), &train_args("run", &[]), 2, &["another run"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    bad(dir.path(), &train_args("/dev/null/run", &[]), 7, &["/dev/null"]);
}

/// A text is read once and continued from its state, by another process; a conversation goes on line by line; a table of long texts.
#[test]
fn a_carried_state_is_saved_continued_talked_with_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = "ada: what is new?\nbob: nothing is new.\n\n".repeat(200);
    std::fs::write(dir.join("talk.txt"), &text).unwrap();
    let sets = ["train.steps=30", "train.sample_interval=0", "train.eval_interval=0", "train.batch_size=4"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let train = ["train", "--config", "coeus-v2.5-tiny", "--device", "cpu", "--data", "talk.txt", "--out", "run"];
    good(dir, &[&train[..], &sets].concat());

    let generate = |more: &[&str]| -> Value {
        let args = [&["generate", "run", "--device", "cpu", "--json", "-t", "0"], more].concat();
        serde_json::from_str::<Value>(&good(dir, &args)).unwrap()[0].take()
    };
    let whole = generate(&["--prompt-file", "talk.txt", "-p", "ada:", "-n", "20"]);
    generate(&["--prompt-file", "talk.txt", "-n", "0", "--save-state", "talk.state"]);
    let continued = generate(&["--state", "talk.state", "-p", "ada:", "-n", "20"]);
    assert_eq!(continued["generation"], whole["generation"]);
    assert_eq!(continued["tokens_read"], whole["tokens_read"]);
    assert_eq!(continued["prompt_tokens"], 4);
    let state = ["generate", "run", "--device", "cpu", "--state"];
    bad(dir, &[&state[..], &["none.state"]].concat(), 7, &["none.state", "check the path"]);
    bad(dir, &[&state[..], &["talk.txt"]].concat(), 6, &["talk.txt", "not a readable text state"]);
    bad(dir, &["generate", "run", "--device", "cpu", "-p", "~"], 3, &["~"]);

    let mut chat = Command::new(BIN)
        .args(["chat", "run", "--device", "cpu", "--json", "-n", "30", "-t", "0", "--state", "talk.state"])
        .args(["--template", "ada: {message}\\nbob:"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "what is new?\n\n/save later.state\n~\n/set temperature x\nwhat is new?\n/load later.state\nwhat is new?\n/quit\n";
    std::io::Write::write_all(&mut chat.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    let out = chat.wait_with_output().unwrap();
    let said = json_lines(&String::from_utf8(out.stdout).unwrap());
    let errors = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{errors}");
    assert_eq!(said.len(), 3, "{said:?} {errors}");
    // The conversation goes on; after the saved state it goes on the same way again.
    let read = |i: usize| said[i]["tokens_read"].as_u64().unwrap();
    assert!(read(1) > read(0) && read(0) > text.len() as u64);
    assert_eq!((&said[1]["answer"], read(1)), (&said[2]["answer"], read(2)));
    assert!(errors.contains("~") && errors.contains("/set temperature x"), "{errors}");
    bad(dir, &["chat", "run", "--device", "cpu", "--template", "~{message}"], 2, &["--template"]);

    let table = good(dir, &["bench", "context", "run", "--device", "cpu", "--lengths", "100,700", "--out", "context"]);
    assert!(table.contains("0 bytes more") && table.contains("Loss by position"), "{table}");
    let report: Value = serde_json::from_slice(&std::fs::read(dir.join("context/context.json")).unwrap()).unwrap();
    assert_eq!(report["rows"][0]["device_bytes"], report["rows"][1]["device_bytes"]);
    assert!(std::fs::read_to_string(dir.join("context/context.svg")).unwrap().contains("tokens read"));
    let context = ["bench", "context", "--device", "cpu", "--config"];
    bad(dir, &[&context[..], &["minigpt"]].concat(), 2, &["carry no state"]);
    bad(dir, &[&context[..], &["coeus-v1-tiny"]].concat(), 2, &["64 learned positions", "model.context"]);
}
