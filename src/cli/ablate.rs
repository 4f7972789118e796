//! `lynx-gpu ablate`: runs a table of training runs and writes a report.

use super::report::{emit, grouped};
use crate::ablate::{Ended, Job, Report, RunResult, Study, Table, Watch, runner, study::slug, table, write};
use crate::data::Cache;
use crate::device::choose;
use crate::models::setup;
use crate::ops::workloads::workloads;
use crate::train::meter::human_duration;
use crate::train::observer::StepEvent;
use crate::train::signals::{Control, EXIT_TERMINATED};
use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Study: a TOML file, or one built in (coeus-tiny)
    #[arg(value_name = "STUDY|FILE")]
    study: String,
    /// Folder of runs and report (default: runs/ablate-NAME); what is finished there is not run again
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only these rows, as in `--rows gates,fusion`
    #[arg(long, value_name = "ROW,...", value_delimiter = ',')]
    rows: Vec<String>,
    /// Train on this UTF-8 text file instead of the configured data
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Steps of every run; the learning rate falls until the last one
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Seeds, as in `--seeds 1,2,3` (default: the study's)
    #[arg(long, value_name = "SEED,...", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Change one setting of every run that its variant does not set; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// auto, cpu, gpu, gpu:N or part of a device's name
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Check every row, print what would run, and stop
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let mut study = Study::load(&args.study)?;
    if !args.seeds.is_empty() {
        study = study.with_seeds(args.seeds.clone())?;
    }
    let rows = study.selected(&args.rows)?;
    let folder =
        args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(format!("ablate-{}", slug(&study.name))));
    let table = Table::new(study, &overrides(&args), Cache::from_environment())?;
    let config = &table.first(rows[0], 0).config;
    if config.run.threads > 0 {
        kernels_cpu::threads::set_threads(config.run.threads);
    }
    let chosen = choose::choose_for_step(&config.run.device, setup::step_flops(config), workloads)?;
    eprintln!("device: {}", chosen.reason);
    let planned = table.planned(&rows, &chosen.device)?;
    let (there, total) = runner::finished(&table, &rows, &folder)?;
    if args.dry_run {
        if json {
            return emit(&json!({ "folder": folder, "runs": total, "finished": there, "variants": planned }));
        }
        print_plan(&planned);
        println!("{total} runs in {}, {there} of them finished", folder.display());
        return Ok(());
    }
    let control = Arc::new(Control::default());
    control.listen_to_signals()?;
    let mut progress = Progress::new(&table, there, total);
    let ended = runner::run(&table, &rows, &folder, &chosen.device, &control, &mut progress);
    drop(progress);
    let ended = ended?;
    let report = Report::new(&table, &folder, &command())?;
    if !report.rows.is_empty() {
        write::write(&report, &folder)?;
    }
    if json {
        emit(&report)?;
    } else {
        print!("{}", write::text(&report));
        if !report.rows.is_empty() {
            println!("report: {}", folder.join("REPORT.md").display());
        }
    }
    let again = "the run in progress is saved; the same command goes on";
    match ended {
        Ended::Complete => Ok(()),
        Ended::Interrupted { exit_code: EXIT_TERMINATED } => Err(Error::Terminated(again.into())),
        Ended::Interrupted { .. } => Err(Error::Interrupted(again.into())),
    }
}

/// Flags as settings.
fn overrides(args: &Args) -> Vec<String> {
    let mut sets = Vec::new();
    if let Some(path) = &args.data {
        sets.extend(table::data_sets(&path.display().to_string()));
    }
    sets.extend(args.set.iter().cloned());
    if let Some(steps) = args.steps {
        sets.push(format!("train.steps={steps}"));
        sets.push(format!("schedule.decay_steps={steps}"));
    }
    if let Some(device) = &args.device {
        sets.push(format!("run.device={device}"));
    }
    sets
}

/// The command, without the path of the program.
fn command() -> Vec<String> {
    let mut words: Vec<String> = std::env::args().collect();
    if let Some(program) = words.first_mut() {
        *program = "lynx-gpu".into();
    }
    words
}

fn print_plan(planned: &[table::Planned]) {
    let width = planned.iter().map(|p| p.variant.chars().count()).max().unwrap_or(0).max(7);
    let mut row = "";
    for p in planned {
        if p.row != row {
            row = &p.row;
            println!(
                "{row}\n  {:<width$}  {:>12}  {:>8}  {:>7}  {:>12}  {:>12}",
                "variant", "parameters", "ff_width", "steps", "bytes", "FLOP/step"
            );
        }
        println!(
            "  {:<width$}  {:>12}  {:>8}  {:>7}  {:>12}  {:>12}",
            p.variant,
            grouped(p.parameters),
            p.ff_width,
            p.steps,
            super::report::bytes(p.planned_bytes),
            super::report::si(p.flops_per_step),
        );
    }
}

/// One line a run, with the loss, and the time that is left for all.
struct Progress<'a> {
    table: &'a Table,
    bar: Option<ProgressBar>,
    /// Steps made here, and the time they took with everything around them.
    steps: u64,
    begun: Instant,
    /// Runs there, runs in all.
    there: usize,
    total: usize,
}

impl<'a> Progress<'a> {
    fn new(table: &'a Table, there: usize, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}").expect("the template is sound");
            ProgressBar::new(0).with_style(style)
        });
        Progress { table, bar, steps: 0, begun: Instant::now(), there, total }
    }

    fn name(&self, job: &Job) -> String {
        let row = &self.table.study.rows[job.row];
        format!("{}/{} seed {}", row.name, row.variants[job.variant].name, job.seed)
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Time for the runs still to make, if they are like those made here.
    fn left(&self, job: &Job, step: u64) -> Option<Duration> {
        let each = self.begun.elapsed().as_secs_f64() / self.steps.max(1) as f64;
        let runs = self.total.saturating_sub(self.there + 1) as u64;
        let steps = job.config.train.steps.saturating_sub(step) + runs * job.config.train.steps;
        (self.steps > 0).then(|| Duration::try_from_secs_f64(each * steps as f64).ok()).flatten()
    }
}

impl Watch for Progress<'_> {
    fn begin(&mut self, job: &Job, _: usize, _: usize) -> Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_length(job.config.train.steps);
            bar.set_position(0);
            bar.set_message(self.name(job));
        }
        Ok(())
    }

    fn step(&mut self, job: &Job, event: &StepEvent) -> Result<()> {
        self.steps += 1;
        if let Some(bar) = self.bar.as_ref().filter(|_| event.log) {
            bar.set_position(event.record.step);
            let left = self
                .left(job, event.record.step)
                .map_or(String::new(), |t| format!("  {} left for all", human_duration(t)));
            bar.set_message(format!(
                "{}  loss {:.4}  {:.0} tok/s{left}",
                self.name(job),
                event.record.loss,
                event.record.tokens_per_second
            ));
        }
        Ok(())
    }

    fn done(&mut self, job: &Job, result: &RunResult, read: bool) -> Result<()> {
        let name = self.name(job);
        let outcome = match result.loss {
            Some(loss) => format!("validation {loss:.4}"),
            None => "diverged".into(),
        };
        if read {
            self.say(&format!("{name}: {outcome} (finished before)"));
            return Ok(());
        }
        let left = self.left(job, job.config.train.steps).filter(|_| self.there + 1 < self.total);
        self.there += 1;
        let speed = result.tokens_per_second().map_or(String::new(), |speed| format!(", {speed:.0} tok/s"));
        let took = human_duration(Duration::try_from_secs_f64(result.seconds).unwrap_or_default());
        let left = left.map_or(String::new(), |t| format!("; about {} left", human_duration(t)));
        self.say(&format!("[{}/{}] {name}: {outcome}{speed}, {took}{left}", self.there, self.total));
        Ok(())
    }

    fn message(&mut self, message: &str) -> Result<()> {
        self.say(message);
        Ok(())
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
