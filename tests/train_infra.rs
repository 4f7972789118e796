//! The training system end to end on a toy model: resuming, dying, running out of disk, and what the run folder says of it.

#[path = "train_infra/toy.rs"]
mod toy;

use lynx_gpu::config::Config;
use lynx_gpu::train::checkpoint::Which;
use lynx_gpu::train::files::fingerprint;
use lynx_gpu::train::manifest::{Manifest, Status};
use lynx_gpu::train::metrics::{self, EvalRecord, Record, TrainRecord};
use lynx_gpu::train::model::ModelState;
use lynx_gpu::train::outcome::{Ending, Outcome};
use lynx_gpu::train::run_dir::RunDir;
use lynx_gpu::train::trainer::Start;
use std::cell::RefCell;
use std::path::Path;
use toy::{Messages, Options, StopAt, VOCAB, config, train};

/// A run from step 1 to the end that nobody disturbs.
fn straight(root: &Path, sets: &[&str]) -> (Outcome, ModelState) {
    let config = config(root, sets);
    let mut run = RunDir::create(&config, "toy").unwrap();
    let (outcome, state) = train(&config, &mut run, Start::Fresh, Options::default());
    (outcome.unwrap(), state)
}

/// Starts a run and stops it, saved, after step `at`.
fn stopped_at(root: &Path, sets: &[&str], at: u64) {
    let config = config(root, sets);
    let mut run = RunDir::create(&config, "toy").unwrap();
    let mut options = Options::default();
    options.observers.push(Box::new(StopAt { at, control: options.control.clone() }));
    let outcome = train(&config, &mut run, Start::Fresh, options).0.unwrap();
    assert_eq!((outcome.ending, outcome.step), (Ending::Interrupted { exit_code: 130 }, at));
}

fn resume(folder: &Path, which: Which) -> (lynx_gpu::Result<Outcome>, ModelState) {
    let (mut run, config) = RunDir::open(folder, &[]).unwrap();
    train(&config, &mut run, Start::Resume(which), Options::default())
}

fn records(folder: &Path) -> (Vec<TrainRecord>, Vec<EvalRecord>) {
    let (mut steps, mut evals) = (Vec::new(), Vec::new());
    for record in metrics::read(&folder.join("metrics.jsonl")).unwrap() {
        match record {
            Record::Train(r) => steps.push(r),
            Record::Eval(r) => evals.push(r),
            Record::Sources(_) | Record::Sample(_) => {}
        }
    }
    (steps, evals)
}

/// Everything of the metrics that does not depend on the clock, bit for bit: steps, then validations.
fn numbers(folder: &Path) -> Vec<[u64; 5]> {
    let (steps, evals) = records(folder);
    let steps = steps.iter().map(|r| [r.step, r.loss.to_bits(), r.lr.to_bits(), r.grad_norm.to_bits(), r.tokens]);
    let evals = evals.iter().map(|r| [r.step, r.loss.to_bits(), r.perplexity.to_bits(), r.tokens, 0]);
    steps.chain(evals).collect()
}

fn manifest(folder: &Path) -> Manifest {
    Manifest::parse(&std::fs::read_to_string(folder.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn ten_steps_saved_and_ten_more_equal_twenty_straight_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (expected, expected_state) = straight(&dir.path().join("straight"), &[]);
    let root = dir.path().join("resumed");
    for stop in [1, 7, 10, 19] {
        let _ = std::fs::remove_dir_all(&root);
        stopped_at(&root, &[], stop);
        let (outcome, state) = resume(&root.join("toy"), Which::Last);
        let outcome = outcome.unwrap();
        assert_eq!(state, expected_state, "stopped at {stop}");
        assert_eq!(numbers(&root.join("toy")), numbers(&dir.path().join("straight/toy")), "stopped at {stop}");
        assert_eq!((outcome.best, outcome.tokens), (expected.best, expected.tokens));
        let weights = |root: &Path| fingerprint(&root.join("toy/checkpoints/step-20/model.safetensors")).unwrap();
        assert_eq!(weights(&root), weights(&dir.path().join("straight")));
    }
}

#[test]
fn training_lowers_the_loss_from_ln_vocabulary_and_the_folder_tells_all() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["train.steps=60", "train.sample_interval=30", "train.sample_prompts=[\"a\",\"unreadable\"]"];
    let config = config(dir.path(), &sets);
    let mut run = RunDir::create(&config, "toy").unwrap();
    let messages = RefCell::new(Vec::new());
    let options = Options { observers: vec![Box::new(Messages(&messages))], ..Options::default() };
    let outcome = train(&config, &mut run, Start::Fresh, options).0.unwrap();
    drop(run);
    let folder = dir.path().join("toy");

    let (steps, evals) = records(&folder);
    assert_eq!(steps.len(), 60);
    assert!((evals[0].loss - (VOCAB as f64).ln()).abs() < 1e-6, "an all-zero table is uniform");
    assert_eq!(evals.iter().map(|r| r.step).collect::<Vec<_>>(), (0..=60).step_by(5).collect::<Vec<_>>());
    assert!(evals.last().unwrap().loss < evals[0].loss - 0.3);
    assert_eq!(outcome.validation.unwrap(), *evals.last().unwrap());
    let best = evals[1..].iter().map(|r| r.loss).fold(f64::INFINITY, f64::min);
    assert_eq!(outcome.best.unwrap().loss, best);
    assert_eq!(messages.borrow().len(), 2, "one unreadable prompt, at steps 30 and 60: {messages:?}");

    let manifest = manifest(&folder);
    assert_eq!((manifest.status, manifest.parameters), (Status::Finished, Some(64)));
    assert_eq!(manifest.results["step"], 60);
    for name in ["config.toml", "metrics.jsonl", "loss.svg", "samples.txt", "checkpoints/step-60/manifest.json"] {
        let artefact = &manifest.artefacts[name];
        assert_eq!(fingerprint(&folder.join(name)).unwrap(), (artefact.bytes, artefact.sha256.clone()), "{name}");
    }
    let samples = std::fs::read_to_string(folder.join("samples.txt")).unwrap();
    assert!(samples.contains("--- step 30, ") && samples.contains("48 tokens at 102"), "{samples}");
    let text = std::fs::read_to_string(folder.join("config.toml")).unwrap();
    assert_eq!(Config::parse(&text, "config.toml", &[]).unwrap(), config);
    let names: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|name| name.starts_with("events.out.tfevents.")));
    assert!(names.iter().all(|name| !name.starts_with(".tmp") && name != "run.pid"), "{names:?}");
}

#[test]
fn micro_batches_add_up_to_the_batch_they_are_parts_of() {
    let dir = tempfile::tempdir().unwrap();
    straight(&dir.path().join("whole"), &["train.batch_size=8"]);
    straight(&dir.path().join("parts"), &["train.batch_size=2", "train.accumulation=4"]);
    // The toy adds one token at a time in the same order either way, so the bits are the same too.
    assert_eq!(numbers(&dir.path().join("whole/toy")), numbers(&dir.path().join("parts/toy")));
    assert_eq!(records(&dir.path().join("parts/toy")).0[0].tokens, 8 * toy::CONTEXT as u64);
}

#[test]
fn a_finished_run_resumed_changes_no_measurement() {
    let dir = tempfile::tempdir().unwrap();
    let (_, state) = straight(dir.path(), &["train.steps=7", "train.sample_interval=7"]);
    let folder = dir.path().join("toy");
    let before = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let (outcome, again) = resume(&folder, Which::Last);
    assert_eq!((outcome.unwrap().ending, again), (Ending::Finished, state));
    assert_eq!(std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn more_steps_can_be_asked_of_a_run_and_it_says_that_the_run_is_another() {
    let dir = tempfile::tempdir().unwrap();
    straight(dir.path(), &[]);
    let (mut run, config) = RunDir::open(&dir.path().join("toy"), &["train.steps=30".into()]).unwrap();
    let messages = RefCell::new(Vec::new());
    let options = Options { observers: vec![Box::new(Messages(&messages))], ..Options::default() };
    let outcome = train(&config, &mut run, Start::Resume(Which::Last), options).0.unwrap();
    assert_eq!(outcome.step, 30);
    assert!(messages.borrow()[0].contains("configuration has changed"), "{messages:?}");
    assert_eq!(records(&dir.path().join("toy")).0.len(), 30);
}

#[test]
fn early_stopping_waits_for_burn_in_and_patience_and_keeps_the_best() {
    let dir = tempfile::tempdir().unwrap();
    // No fall of the loss can exceed min_delta, so every validation after the first is stale, and the burn-in decides.
    let sets = ["train.patience=1", "train.burn_in=15", "train.min_delta=10", "train.keep_checkpoints=1"];
    let (outcome, _) = straight(dir.path(), &[&sets[..], &["train.steps=100"]].concat());
    assert_eq!((outcome.ending, outcome.step), (Ending::StoppedEarly, 15));
    let folder = dir.path().join("toy");
    assert_eq!(manifest(&folder).status, Status::StoppedEarly);
    let best = outcome.best.unwrap().step;
    assert!(folder.join(format!("checkpoints/step-{best}/model.safetensors")).is_file());
    let pointer = std::fs::read_to_string(folder.join("checkpoints/best")).unwrap();
    assert_eq!(pointer.trim(), format!("step-{best}"));
}

#[test]
fn a_nan_loss_names_the_node_and_leaves_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let mut run = RunDir::create(&config, "toy").unwrap();
    let options = Options { poison: Some(11), ..Options::default() };
    let error = train(&config, &mut run, Start::Fresh, options).0.unwrap_err();
    drop(run);
    assert_eq!(error.exit_code(), 8);
    let folder = dir.path().join("toy");
    let text = error.to_string();
    let command = format!("lynx-gpu train --resume {}", folder.display());
    for part in ["step 11", "the loss is NaN", "`block.0.softmax`", "schedule.lr", "step-10", &command] {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    let told = manifest(&folder);
    assert_eq!((told.status, told.sessions[0].last_step), (Status::Failed, 10));
    assert!(told.sessions[0].error.as_ref().unwrap().contains("NaN"));
    let (_, expected) = straight(&dir.path().join("healthy"), &[]);
    let (outcome, state) = resume(&folder, Which::Last);
    assert_eq!((outcome.unwrap().ending, state), (Ending::Finished, expected));
}

#[test]
fn a_damaged_checkpoint_is_refused_and_the_one_offered_leads_to_the_same_end() {
    let dir = tempfile::tempdir().unwrap();
    let (_, expected) = straight(&dir.path().join("straight"), &[]);
    stopped_at(dir.path(), &[], 10);
    let folder = dir.path().join("toy");
    let weights = folder.join("checkpoints/step-10/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    std::fs::write(&weights, bytes).unwrap();

    let error = resume(&folder, Which::Last).0.unwrap_err();
    assert_eq!(error.exit_code(), 6);
    let text = error.to_string();
    assert!(text.contains("step-10/model.safetensors") && text.contains("`table`"), "{text}");
    let offered = text.rsplit_once("--checkpoint ").unwrap().1.trim_end_matches('`').parse().unwrap();
    assert_eq!(offered, Which::Step(8));
    let (outcome, state) = resume(&folder, offered);
    outcome.unwrap();
    assert_eq!(state, expected);
    assert_eq!(numbers(&folder), numbers(&dir.path().join("straight/toy")));
}

#[test]
fn stopping_at_once_and_starting_again_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (_, expected) = straight(&dir.path().join("straight"), &[]);
    let config = config(dir.path(), &[]);
    let mut run = RunDir::create(&config, "toy").unwrap();
    let options = Options::default();
    options.control.request_stop(143);
    let outcome = train(&config, &mut run, Start::Fresh, options).0.unwrap();
    assert_eq!(outcome.step, 0);
    assert_eq!(outcome.into_result().unwrap_err().exit_code(), 143);
    drop(run);
    let (outcome, state) = resume(&dir.path().join("toy"), Which::Last);
    outcome.unwrap();
    assert_eq!(state, expected);
    assert_eq!(numbers(&dir.path().join("toy")), numbers(&dir.path().join("straight/toy")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_while_saving_ends_the_run_and_spares_what_was_saved() {
    use std::process::{Command, Stdio};
    let disk = tempfile::tempdir().unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=400k", "tmpfs"]).arg(disk.path()).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED a_disk_that_fills_up_while_saving: this process may not mount a tmpfs");
        return;
    }
    // One checkpoint of about 170 KB fits beside the other files, two do not.
    let config = config(disk.path(), &["train.keep_checkpoints=1", "run.tensorboard=false"]);
    let mut run = RunDir::create(&config, "toy").unwrap();
    let options = Options { ballast: 45_000, ..Options::default() };
    let error = train(&config, &mut run, Start::Fresh, options).0.unwrap_err();
    let folder = run.path().to_path_buf();
    let store = run.checkpoints(1);
    let steps = store.steps();
    let sound = lynx_gpu::train::checkpoint::verify(&store.path(steps[0]));
    drop(run);
    let manifest = manifest(&folder);
    let unmounted = Command::new("umount").arg("-l").arg(disk.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));

    assert_eq!(error.exit_code(), 7);
    let text = error.to_string();
    for part in ["checkpoints", "the disk is full", "step-4", "train --resume"] {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
    assert_eq!(steps, [4]);
    sound.unwrap();
    assert_eq!(manifest.status, Status::Failed);
}

/// Tests that need a second process: it is this test program, told by an environment variable to train.
#[cfg(unix)]
mod processes {
    use super::*;
    use lynx_gpu::train::observer::Console;
    use lynx_gpu::train::signals::Control;
    use std::path::PathBuf;
    use std::process::{Child, Command, Output, Stdio};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const ROOT: &str = "LYNX_TEST_TRAIN_ROOT";
    const SETS: [&str; 3] = ["train.steps=60", "train.checkpoint_interval=3", "train.eval_interval=7"];
    const STEP_MS: &str = "LYNX_TEST_TRAIN_STEP_MS";

    /// Not a test of its own: the other process.
    #[test]
    #[ignore = "started by the tests beside it"]
    fn child() {
        let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
        let folder = root.join("toy");
        let code = match child_run(&root, &folder) {
            Ok(outcome) => {
                eprintln!("{}", outcome.summary());
                0
            }
            Err(error) => {
                eprintln!("error: {error}");
                error.exit_code()
            }
        };
        std::process::exit(i32::from(code));
    }

    fn child_run(root: &Path, folder: &Path) -> lynx_gpu::Result<Outcome> {
        let (mut run, config, start) = if folder.join("manifest.json").exists() {
            let (run, config) = RunDir::open(folder, &[])?;
            (run, config, Start::Resume(Which::Last))
        } else {
            let config = config(root, &SETS);
            (RunDir::create(&config, "toy")?, config, Start::Fresh)
        };
        let control = Arc::new(Control::default());
        control.listen_to_signals()?;
        let delay = Duration::from_millis(std::env::var(STEP_MS).map_or(5, |ms| ms.parse().unwrap()));
        let options = Options { delay, control, observers: vec![Box::new(Console::default())], ..Options::default() };
        train(&config, &mut run, start, options).0?.into_result()
    }

    fn spawn(root: &Path) -> Child {
        spawn_with_steps_of(root, 5)
    }

    fn spawn_with_steps_of(root: &Path, milliseconds: u64) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROOT, root)
            .env(STEP_MS, milliseconds.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits until the run has recorded `steps` steps.
    fn wait_for_steps(root: &Path, steps: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while records(&root.join("toy")).0.len() < steps {
            assert!(Instant::now() < deadline, "the other process did not reach step {steps}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(child: &Child, name: &str) {
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn stderr(output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn final_weights(root: &Path) -> (u64, String) {
        fingerprint(&root.join("toy/checkpoints/step-60/model.safetensors")).unwrap()
    }

    #[test]
    fn killed_nine_times_over_it_still_ends_with_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        straight(&dir.path().join("straight"), &SETS);
        let root = dir.path().join("killed");
        let mut kills = 0;
        // Times that fall into steps, validations and saves alike.
        for milliseconds in [90, 131, 57, 173, 119, 77, 149, 101, 211] {
            let mut child = spawn(&root);
            std::thread::sleep(Duration::from_millis(milliseconds));
            let running = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            kills += u32::from(running);
        }
        assert!(kills >= 3, "only {kills} of the kills came in time");
        let output = spawn(&root).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(final_weights(&root), final_weights(&dir.path().join("straight")));
        assert_eq!(numbers(&root.join("toy")), numbers(&dir.path().join("straight/toy")));
        assert!(manifest(&root.join("toy")).sessions.iter().filter(|s| s.status == Status::Killed).count() >= 1);
    }

    #[test]
    fn ctrl_c_and_sigterm_save_say_how_to_go_on_and_have_their_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        straight(&dir.path().join("straight"), &SETS);
        for (name, code) in [("-INT", 130), ("-TERM", 143)] {
            let root = dir.path().join(name);
            let child = spawn(&root);
            wait_for_steps(&root, 8);
            signal(&child, name);
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
            let folder = root.join("toy");
            assert!(stderr(&output).contains(&format!("go on with: lynx-gpu train --resume {}", folder.display())));
            assert_eq!(manifest(&folder).status, Status::Interrupted);
            let done = records(&folder).0.len() as u64;
            assert!((8..60).contains(&done));
            assert_eq!(RunDir::open(&folder, &[]).unwrap().0.checkpoints(3).find(Which::Last), Some(done));
            assert!(spawn(&root).wait().unwrap().success());
            assert_eq!(final_weights(&root), final_weights(&dir.path().join("straight")));
        }
    }

    #[test]
    fn a_second_ctrl_c_does_not_wait_for_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn_with_steps_of(dir.path(), 60_000);
        let begun = Instant::now();
        // The first validation comes before the first step, which then takes a minute.
        while records(&dir.path().join("toy")).1.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the other process did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(500));
        signal(&child, "-INT");
        std::thread::sleep(Duration::from_millis(200));
        signal(&child, "-INT");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(begun.elapsed() < Duration::from_secs(50), "it waited for the step of a minute");
        assert_eq!(manifest(&dir.path().join("toy")).status, Status::Running, "it had no time to say how it ended");
    }

    #[test]
    fn a_second_run_in_the_folder_is_refused_and_the_first_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let first = spawn(dir.path());
        wait_for_steps(dir.path(), 2);
        let second = spawn(dir.path()).wait_with_output().unwrap();
        assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
        assert!(stderr(&second).contains(&format!("another run (process {})", first.id())), "{}", stderr(&second));
        let output = first.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }

    #[test]
    fn a_folder_of_a_killed_process_can_be_taken_over_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = spawn(dir.path());
        wait_for_steps(dir.path(), 5);
        child.kill().unwrap();
        child.wait().unwrap();
        let folder = dir.path().join("toy");
        assert!(folder.join("run.pid").exists(), "it had no time to clean up");
        let (outcome, _) = resume(&folder, Which::Last);
        assert_eq!(outcome.unwrap().step, 60);
    }

    #[test]
    fn away_from_a_terminal_progress_is_one_plain_line_per_log_interval() {
        let dir = tempfile::tempdir().unwrap();
        let output = spawn(dir.path()).wait_with_output().unwrap();
        let text = stderr(&output);
        let steps: Vec<&str> = text.lines().filter(|line| line.starts_with("step ") && line.contains("lr ")).collect();
        assert_eq!(steps.len(), 12, "{text}");
        assert!(steps[11].starts_with("step 60/60  loss ") && steps[11].contains("tok/s"), "{text}");
        assert!(!text.contains('\x1b') && !text.contains('\r'), "control characters in {text:?}");
    }
}
