//! Studies end to end on models that train in a moment: what is run, what is not run again, and what the report says.

use lynx_gpu::ablate::runner::{self, RunResult};
use lynx_gpu::ablate::table::{Job, TOLERANCE};
use lynx_gpu::ablate::{Ended, Report, STUDIES, Study, Table, Watch, write};
use lynx_gpu::data::Cache;
use lynx_gpu::device::Device;
use lynx_gpu::train::observer::StepEvent;
use lynx_gpu::train::signals::{Control, EXIT_INTERRUPTED};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const STUDY: &str = r#"
name = "small"
title = "A small study"
base = "minigpt"
seeds = [1, 2]
set = ["model.width=32", "model.ff_width=64", "model.context=16", "tokenizer.kind=char", "train.batch_size=4", "train.steps=8",
       "train.eval_interval=4", "train.eval_batches=2", "train.checkpoint_interval=0", "schedule.warmup=2", "run.device=cpu"]

[[row]]
name = "heads"
note = "Heads share the width."
baseline = "two"
[[row.variant]]
name = "two"
set = ["model.heads=2"]
[[row.variant]]
name = "four"
set = ["model.heads=4"]

[[row]]
name = "layers"
baseline = "two"
match_parameters = true
[[row.variant]]
name = "two"
set = ["model.heads=2"]
[[row.variant]]
name = "three | narrow"
set = ["model.heads=2", "model.layers=3"]
"#;

fn table(text: &str, sets: &[&str]) -> lynx_gpu::Result<Table> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Table::new(Study::parse(text, "study.toml")?, &sets, Cache::disabled())
}

/// Notes what was made and what was read; asks to stop after so many steps.
#[derive(Default)]
struct Log {
    made: Vec<(String, RunResult)>,
    read: Vec<String>,
    messages: Vec<String>,
    steps: usize,
    stop_after: Option<usize>,
    control: Arc<Control>,
}

impl Watch for Log {
    fn begin(&mut self, _: &Job, _: usize, _: usize) -> lynx_gpu::Result<()> {
        Ok(())
    }
    fn step(&mut self, _: &Job, _: &StepEvent) -> lynx_gpu::Result<()> {
        self.steps += 1;
        if self.stop_after == Some(self.steps) {
            self.control.request_stop(EXIT_INTERRUPTED);
        }
        Ok(())
    }
    fn done(&mut self, job: &Job, result: &RunResult, read: bool) -> lynx_gpu::Result<()> {
        let name = job.folder.display().to_string();
        if read {
            self.read.push(name)
        } else {
            self.made.push((name, result.clone()))
        }
        Ok(())
    }
    fn message(&mut self, message: &str) -> lynx_gpu::Result<()> {
        self.messages.push(message.into());
        Ok(())
    }
}

fn run(table: &Table, rows: &[usize], folder: &Path, stop_after: Option<usize>) -> lynx_gpu::Result<(Ended, Log)> {
    let mut log = Log { stop_after, ..Log::default() };
    let control = log.control.clone();
    let ended = runner::run(table, rows, folder, &Device::Cpu, &control, &mut log)?;
    Ok((ended, log))
}

#[test]
fn a_study_runs_each_configuration_once_and_never_again() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(STUDY, &[]).unwrap();
    let (ended, first) = run(&table, &[1], dir.path(), None).unwrap();
    assert_eq!(ended, Ended::Complete);
    // The baselines of both rows are the same two runs and live in the folder of the first row, in whatever order rows are asked for.
    let names: Vec<&str> = first.made.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "runs/heads/two/seed-1",
        "runs/layers/three-narrow/seed-1",
        "runs/heads/two/seed-2",
        "runs/layers/three-narrow/seed-2",
    ];
    assert_eq!(names, expected);
    assert_eq!((first.steps, first.read.len()), (4 * 8, 0));
    assert!(first.made.iter().all(|(_, r)| r.loss.is_some() && r.tokens_per_second().is_some() && r.curve.len() == 2));

    let (_, second) = run(&table, &[0, 1], dir.path(), None).unwrap();
    let names: Vec<&str> = second.made.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["runs/heads/four/seed-1", "runs/heads/four/seed-2"]);
    assert_eq!((second.steps, second.read.len()), (2 * 8, 4));
    let (_, third) = run(&table, &[0, 1], dir.path(), None).unwrap();
    assert_eq!((third.steps, third.made.len(), third.read.len()), (0, 0, 6));
    assert_eq!(runner::finished(&table, &[0, 1], dir.path()).unwrap(), (6, 6));
}

#[test]
fn a_run_that_was_stopped_goes_on_and_ends_as_if_it_never_was() {
    let [straight, stopped] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let table = table(STUDY, &["model.dropout=0.1"]).unwrap();
    let (_, whole) = run(&table, &[0], straight.path(), None).unwrap();
    // In the middle of the second run.
    let (ended, log) = run(&table, &[0], stopped.path(), Some(8 + 3)).unwrap();
    assert_eq!(ended, Ended::Interrupted { exit_code: EXIT_INTERRUPTED });
    assert_eq!((log.made.len(), log.steps), (1, 11));
    let (ended, rest) = run(&table, &[0], stopped.path(), None).unwrap();
    assert_eq!(ended, Ended::Complete);
    assert_eq!((rest.read.len(), rest.steps), (1, 5 + 8 + 8), "it goes on at its fourth step");
    let losses = |log: &Log| log.made.iter().map(|(name, r)| (name.clone(), r.loss, r.final_loss)).collect::<Vec<_>>();
    assert_eq!(losses(&rest), losses(&whole)[1..]);
}

#[test]
fn a_folder_with_another_configuration_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let before = table(STUDY, &[]).unwrap();
    run(&before, &[0], dir.path(), None).unwrap();
    let result = std::fs::read(dir.path().join("runs/heads/two/seed-1/result.json")).unwrap();
    let after = table(STUDY, &["train.steps=9", "schedule.lr=1e-3"]).unwrap();
    let error = run(&after, &[0], dir.path(), None).map(|_| ()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    for word in ["runs/heads/two/seed-1", "train.steps was 8, is 9", "schedule.lr was", "--out"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(std::fs::read(dir.path().join("runs/heads/two/seed-1/result.json")).unwrap(), result);
    assert!(
        Report::new(&after, dir.path(), &["x".into()]).unwrap().rows.is_empty(),
        "results of other settings do not count"
    );
}

#[test]
fn every_row_is_checked_before_the_first_run() {
    for (from, to, words) in [
        (r#""model.layers=3""#, r#""model.layer=3""#, ["row `layers`, variant `three | narrow`", "model.layers"]),
        (r#""model.heads=4""#, r#""model.heads=5""#, ["row `heads`, variant `four`", "model.width"]),
        (r#"base = "minigpt""#, r#"base = "minigpd""#, ["row `heads`", "did you mean `minigpt`?"]),
        (
            r#""run.device=cpu"]"#,
            r#""run.device=cpu"]
data = "no-such-file.txt""#,
            ["no-such-file.txt", "check the path"],
        ),
    ] {
        assert!(STUDY.contains(from), "{from}");
        let text = table(&STUDY.replacen(from, to, 1), &[]).map(|_| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{to}: {text}");
    }
}

#[test]
fn a_matched_variant_has_the_baselines_parameters_or_the_study_is_refused() {
    let made = table(STUDY, &[]).unwrap();
    let count = |v: usize| made.first(1, v).config.model.parameter_count() as f64;
    assert!((count(1) / count(0) - 1.0).abs() <= TOLERANCE, "{} and {}", count(0), count(1));
    assert_ne!(made.first(1, 1).config.model.ff_width(), 64);
    assert_eq!(made.first(1, 0).config.model.ff_width(), 64, "the baseline stays as it is");
    assert_eq!(made.first(0, 1).config.model.ff_width(), 64, "and so do rows that do not ask");

    // Forty layers are too many however narrow they are.
    let deep = STUDY.replacen("model.layers=3", "model.layers=40", 1);
    let text = table(&deep, &[]).map(|_| ()).unwrap_err().to_string();
    assert!(
        text.contains("row `layers`") && text.contains("cannot be matched") && text.contains("ff_width = 1,"),
        "{text}"
    );

    // Equal work: three layers with the FLOPs of two.
    let flops = STUDY.replacen("match_parameters", "match_flops", 1);
    let made = table(&flops, &[]).unwrap();
    let planned = made.planned(&[1], &Device::Cpu).unwrap();
    assert!((planned[1].flops_per_step / planned[0].flops_per_step - 1.0).abs() <= TOLERANCE, "{planned:?}");
}

#[test]
fn the_report_has_a_table_a_picture_and_a_conclusion_for_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let table = table(STUDY, &[]).unwrap();
    run(&table, &[0], dir.path(), None).unwrap();
    let report = Report::new(&table, dir.path(), &["lynx-gpu".into(), "ablate".into(), "study.toml".into()]).unwrap();
    assert_eq!(report.not_run, ["layers"]);
    let [row] = &report.rows[..] else { panic!("{:?}", report.rows) };
    let (two, four) = (&row.variants[0], &row.variants[1]);
    assert!(two.is_baseline && two.difference.is_none() && four.difference.is_some());
    let paired: Vec<f64> = (0..2).map(|i| four.runs[i].loss.unwrap() - two.runs[i].loss.unwrap()).collect();
    let difference = four.difference.unwrap();
    assert!((difference.mean - 0.5 * (paired[0] + paired[1])).abs() < 1e-12);
    // Of two values s = |a - b| / sqrt(2), and so the half-width is t |a - b| / 2 with t(0.975, 1) = 12.7062.
    assert!((difference.half_width.unwrap() - 6.353_102_368 * (paired[0] - paired[1]).abs()).abs() < 1e-7);
    let word = match difference.includes_zero() {
        Some(true) => "includes 0",
        _ if difference.mean < 0.0 => "is better than two",
        _ => "is worse than two",
    };
    assert!(row.conclusions[1].contains(word), "{}", row.conclusions[1]);

    write::write(&report, dir.path()).unwrap();
    let markdown = std::fs::read_to_string(dir.path().join("REPORT.md")).unwrap();
    for part in [
        "# A small study",
        "lynx-gpu ablate study.toml",
        "Heads share the width.",
        "| two (baseline) | ",
        "| four | ",
        "![validation loss by step](heads.svg)",
        "`model.heads=4`",
        "Not run yet: layers.",
        &row.conclusions[1],
    ] {
        assert!(markdown.contains(part), "{part} is missing in {markdown}");
    }
    let picture = std::fs::read_to_string(dir.path().join("heads.svg")).unwrap();
    assert!(picture.contains("two") && picture.contains("four"), "both curves have their names");
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("report.json")).unwrap()).unwrap();
    assert_eq!(json["rows"][0]["variants"][1]["runs"].as_array().unwrap().len(), 2);

    // One seed alone has no interval, and says so.
    let one = Study::parse(STUDY, "study.toml").unwrap().with_seeds(vec![2]).unwrap();
    let one = Table::new(one, &[], Cache::disabled()).unwrap();
    let report = Report::new(&one, dir.path(), &[]).unwrap();
    assert_eq!(report.rows[0].variants[1].difference.unwrap().half_width, None);
    assert!(report.rows[0].conclusions[1].contains("one seed"), "{:?}", report.rows[0].conclusions);
    assert!(write::text(&report).contains("(n=1)"));
}

#[test]
fn a_run_that_diverges_is_a_result_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let text = STUDY.replacen(r#""model.heads=4""#, r#""schedule.lr=1e30", "optimizer.clip=0""#, 1);
    let table = table(&text, &[]).unwrap();
    let (ended, log) = run(&table, &[0], dir.path(), None).unwrap();
    assert_eq!((ended, log.made.len()), (Ended::Complete, 4));
    assert!(!log.messages.is_empty());
    let report = Report::new(&table, dir.path(), &[]).unwrap();
    let text = &report.rows[0].conclusions[1];
    assert!(text.contains("every run diverged"), "{text}");
}

#[test]
fn the_studies_built_into_the_program_can_be_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    std::fs::write(&path, "To be, or not to be: that is the question.\n".repeat(200)).unwrap();
    for (name, _) in STUDIES {
        let sets = lynx_gpu::ablate::table::data_sets(&path.display().to_string());
        let table = Table::new(Study::load(name).unwrap(), &sets, Cache::disabled()).unwrap();
        let all: Vec<usize> = (0..table.study.rows.len()).collect();
        for planned in table.planned(&all, &Device::Cpu).unwrap() {
            let matched = table.study.rows.iter().find(|r| r.name == planned.row).unwrap();
            let baseline = matched.baseline_index();
            let row = table.study.rows.iter().position(|r| r.name == planned.row).unwrap();
            let wanted = table.first(row, baseline).config.model.parameter_count() as f64;
            if matched.match_parameters {
                assert!((planned.parameters as f64 / wanted - 1.0).abs() <= TOLERANCE, "{name}: {planned:?}");
            }
        }
    }
}

#[test]
fn the_command_checks_prints_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("study.toml"), STUDY).unwrap();
    let lynx = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_lynx-gpu"))
            .args([&["ablate", "study.toml", "--out", "out"], args].concat())
            .current_dir(dir.path())
            .env("LYNX_CACHE", dir.path().join("cache"))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let (code, out, _) = lynx(&["--dry-run", "--json"]);
    assert_eq!(code, Some(0));
    let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((plan["runs"].as_u64(), plan["finished"].as_u64()), (Some(6), Some(0)));
    assert!(!dir.path().join("out").exists(), "a dry run leaves nothing");
    // A text with its whole path, which the report has no use for.
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "To be, or not to be: that is the question.\n".repeat(50)).unwrap();
    let text = text.to_str().unwrap();
    let (code, out, err) = lynx(&["--rows", "heads", "--seeds", "5", "--steps", "4", "--data", text]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("two (baseline)") && out.contains("REPORT.md"), "{out}");
    assert!(err.contains("[2/2] heads/four seed 5: validation"), "{err}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    let (report, json) = (read("REPORT.md"), read("report.json"));
    let folder = dir.path().to_str().unwrap();
    assert!(!report.contains(folder) && !json.contains(folder), "{report}\n{json}");
    assert!(report.contains("--steps 4 --data text.txt`") && report.contains("steps on text.txt (SHA-256"), "{report}");
    for (args, words) in [
        (&["--rows", "tails"][..], "no row `tails`; rows: heads, layers"),
        (&["--set", "train.stepz=1"], "did you mean `train.steps`?"),
        (&["--rows", "heads", "--seeds", "5", "--data", text], "train.steps was 4, is 8"),
    ] {
        let (code, _, err) = lynx(args);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(words) && !err.contains("panicked"), "{err}");
    }
}
