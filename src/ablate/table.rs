//! A study worked out: the configuration of every run, checked before the first one starts.

use super::study::{Row, Study, Variant, slug};
use crate::config::Config;
use crate::data::Cache;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::setup;
use crate::train::data::Prepared;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Furthest that matched variants may be from the baseline, as a share of it.
pub const TOLERANCE: f64 = 0.01;

/// Settings in place of the base's that suit runs nobody watches; the study and its rows come after them and may say otherwise.
const QUIET: [&str; 3] = ["train.sample_tokens=0", "train.keep_checkpoints=1", "run.tensorboard=false"];

/// One training run of a study.
#[derive(Debug, Clone)]
pub struct Job {
    pub row: usize,
    pub variant: usize,
    pub seed: u64,
    /// Vocabulary known, width matched, seeds set.
    pub config: Config,
    pub hash: String,
    /// Below the study's folder. Runs of the same configuration share the folder of the first of them.
    pub folder: PathBuf,
    /// Index into `Table::data`.
    pub data: usize,
    /// Name of the preset or file.
    pub base: String,
}

/// One column of a row's table, before it has run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Planned {
    pub row: String,
    pub variant: String,
    pub parameters: u64,
    pub ff_width: usize,
    pub steps: u64,
    /// Of a training step on the device.
    pub planned_bytes: u64,
    pub flops_per_step: f64,
}

/// Every run of a study, and the data they share.
pub struct Table {
    pub study: Study,
    pub jobs: Vec<Job>,
    pub data: Vec<Prepared>,
    data_of: BTreeMap<String, usize>,
    cache: Cache,
}

impl Table {
    /// Works out every run of every row. `sets` come after the settings of the study and of its rows, before those of a variant.
    ///
    /// # Errors
    /// Those of the configuration and of the data, with the row and variant; `Error::Config` where a variant cannot be matched.
    pub fn new(study: Study, sets: &[String], cache: Cache) -> Result<Self> {
        let mut table = Table { jobs: vec![], data: vec![], data_of: BTreeMap::new(), cache, study };
        let study = table.study.clone();
        // All keys and values first: they cost nothing, and data may be large.
        for row in &study.rows {
            row.variants.iter().try_for_each(|variant| load(&study, row, variant, sets).map(|_| ()))?;
        }
        let mut owners: BTreeMap<String, PathBuf> = BTreeMap::new();
        for (r, row) in study.rows.iter().enumerate() {
            let configs = table.matched(row, sets)?;
            for (v, (config, base, data)) in configs.into_iter().enumerate() {
                for &seed in &study.seeds {
                    let mut config = config.clone();
                    (config.train.seed, config.data.seed) = (seed, seed);
                    let hash = config.hash();
                    let own = PathBuf::from("runs").join(slug(&row.name));
                    let own = own.join(slug(&row.variants[v].name)).join(format!("seed-{seed}"));
                    let folder = owners.entry(hash.clone()).or_insert(own).clone();
                    table.jobs.push(Job { row: r, variant: v, seed, config, hash, folder, data, base: base.clone() });
                }
            }
        }
        Ok(table)
    }

    /// Configuration, name of the base and data of each variant of `row`, with the widths that the row asks for.
    fn matched(&mut self, row: &Row, sets: &[String]) -> Result<Vec<(Config, String, usize)>> {
        let study = self.study.clone();
        let mut made = Vec::new();
        for variant in &row.variants {
            let (mut config, base) = load(&study, row, variant, sets)?;
            let data = self.prepared(&mut config).map_err(|e| placed(&study, row, variant, e))?;
            self.data[data].check(&config).map_err(|e| placed(&study, row, variant, e))?;
            made.push((config, base, data));
        }
        if !(row.match_parameters || row.match_flops) {
            return Ok(made);
        }
        let measure = |config: &Config| -> Result<f64> {
            match row.match_flops {
                true => Ok(setup::training_plans(config, &Device::Cpu)?.report(&Device::Cpu).cost.flops),
                false => Ok(config.model.parameter_count() as f64),
            }
        };
        let what = if row.match_flops { "FLOPs of a training step" } else { "parameters" };
        let baseline = row.baseline_index();
        let wanted = measure(&made[baseline].0)?;
        for (index, variant) in row.variants.iter().enumerate().filter(|(index, _)| *index != baseline) {
            let config = &mut made[index].0;
            *config = match_width(config, wanted, what, &measure).map_err(|e| placed(&study, row, variant, e))?;
        }
        Ok(made)
    }

    /// The data of `config`, made once for all that share it; settles its vocabulary.
    fn prepared(&mut self, config: &mut Config) -> Result<usize> {
        let key = format!(
            "{}\n{}",
            toml::to_string(&crate::config::DataConfig { seed: 0, ..config.data.clone() }).unwrap_or_default(),
            toml::to_string(&config.tokenizer).unwrap_or_default()
        );
        if let Some(&index) = self.data_of.get(&key) {
            config.set_vocab_size(self.data[index].tokenizer.vocab_size())?;
            return Ok(index);
        }
        let prepared = Prepared::new(config, None, &self.cache)?;
        self.data.push(prepared);
        self.data_of.insert(key, self.data.len() - 1);
        Ok(self.data.len() - 1)
    }

    /// The first run of a variant.
    pub fn first(&self, row: usize, variant: usize) -> &Job {
        let found = self.jobs.iter().find(|job| job.row == row && job.variant == variant);
        found.expect("every variant has a run for each seed")
    }

    /// What the variants of `rows` will need on `device`; making the plans also checks that the models can be built.
    pub fn planned(&self, rows: &[usize], device: &Device) -> Result<Vec<Planned>> {
        let mut planned = Vec::new();
        for &r in rows {
            let row = &self.study.rows[r];
            for (v, variant) in row.variants.iter().enumerate() {
                let job = self.first(r, v);
                let report = setup::training_plans(&job.config, device)
                    .map_err(|e| placed(&self.study, row, variant, e))?
                    .report(device);
                planned.push(Planned {
                    row: row.name.clone(),
                    variant: variant.name.clone(),
                    parameters: report.parameters as u64,
                    ff_width: job.config.model.ff_width(),
                    steps: job.config.train.steps,
                    planned_bytes: report.total_bytes,
                    flops_per_step: report.cost.flops,
                });
            }
        }
        Ok(planned)
    }

    /// Runs of `rows`, each configuration once, in the order they are made: every variant with one seed, then with the next, so that
    /// a study that is stopped has something of everything.
    pub fn order(&self, rows: &[usize]) -> Vec<&Job> {
        let mut order: Vec<&Job> = Vec::new();
        for &seed in &self.study.seeds {
            for job in self.jobs.iter().filter(|job| rows.contains(&job.row) && job.seed == seed) {
                if order.iter().all(|other| other.hash != job.hash) {
                    order.push(job);
                }
            }
        }
        order
    }
}

/// The configuration of a variant, without vocabulary and seeds, and the name of its base.
fn load(study: &Study, row: &Row, variant: &Variant, sets: &[String]) -> Result<(Config, String)> {
    let base = row.base.as_deref().unwrap_or(&study.base);
    let mut all: Vec<String> = QUIET.map(String::from).into();
    if let Some(data) = &study.data {
        all.extend(data_sets(data));
    }
    for part in [&study.set, &row.set, &sets.to_vec(), &variant.set] {
        all.extend(part.iter().cloned());
    }
    Config::load(base, &all).map_err(|e| placed(study, row, variant, e))
}

/// Settings that put another text in place of the base's.
pub fn data_sets(data: &str) -> [String; 3] {
    [format!("data.source={data}"), "data.batching=auto".into(), "model.vocab_size=0".into()]
}

/// Says which variant an error belongs to.
fn placed(study: &Study, row: &Row, variant: &Variant, error: Error) -> Error {
    let place = format!("{}: row `{}`, variant `{}`", study.origin, row.name, variant.name);
    match error {
        Error::Config(m) => Error::Config(format!("{place}: {m}")),
        Error::Data(m) => Error::Data(format!("{place}: {m}")),
        Error::Graph(m) => Error::Graph(format!("{place}: {m}")),
        other => other,
    }
}

/// `config` with the `model.ff_width` that brings `measure` closest to `wanted`: a multiple of 4 where one is close enough.
///
/// # Errors
/// `Error::Config` when no width comes within [`TOLERANCE`].
pub fn match_width(
    config: &Config,
    wanted: f64,
    what: &str,
    measure: &dyn Fn(&Config) -> Result<f64>,
) -> Result<Config> {
    let with = |width: usize| -> Result<(Config, f64)> {
        let mut config = config.clone();
        config.model.set_ff_width(width);
        config.validate()?;
        let value = measure(&config)?;
        Ok((config, value))
    };
    let off = |value: f64| (value - wanted).abs() / wanted;
    let own = config.model.ff_width();
    if measure(config)? == wanted {
        return Ok(config.clone());
    }
    let mut nearest: Option<(Config, f64)> = None;
    for unit in [4, 1] {
        // The largest multiple that does not exceed `wanted`, by bisection, and the next one. Both grow with the width.
        let (mut low, mut high) = (0usize, (64 * own.max(64)).div_ceil(unit));
        if with(high * unit)?.1 < wanted {
            low = high;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if with(middle * unit)?.1 <= wanted { low = middle } else { high = middle }
        }
        for width in [low * unit, high * unit].into_iter().filter(|&width| width > 0) {
            let candidate = with(width)?;
            if nearest.as_ref().is_none_or(|best| off(candidate.1) < off(best.1)) {
                nearest = Some(candidate);
            }
        }
        if let Some((config, _)) = nearest.take_if(|best| off(best.1) <= TOLERANCE) {
            return Ok(config);
        }
    }
    let (closest, value) = nearest.expect("a width of at least one was tried");
    Err(Error::Config(format!(
        "its {what} cannot be matched by model.ff_width: the baseline has {wanted:.0}, and the closest, with ff_width = {}, is {value:.0} \
         ({:+.1} %, more than {:.0} % away); change another setting of the variant, or leave matching out of the row",
        closest.model.ff_width(),
        100.0 * (value - wanted) / wanted,
        100.0 * TOLERANCE,
    )))
}
