//! `lynx-gpu quantize --pareto`: a model under many schemes, measured and drawn.

use super::{Progress, calibrate};
use crate::cli::report::emit;
use crate::data::files::{check_folder_writable, pretty, sha256_hex};
use crate::evals::perplexity::{Text, lines};
use crate::models::files::ModelFile;
use crate::models::session::observe::Moment;
use crate::models::setup;
use crate::models::weights::WeightSource;
use crate::quant::chart::{Against, svg};
use crate::quant::model::Calibration;
use crate::quant::report::{Sensitivities, Sweep, markdown, sensitivity_table, table};
use crate::quant::scheme::{Recipe, Scheme};
use crate::quant::sweep::{MORE, Part, SEVEN, Subject, Timing, sensitivity, sweep};
use crate::train::files::{read_text, write_atomic};
use crate::{Error, Result};
use kernels_cpu::blocks::Format;
use std::path::PathBuf;
use std::sync::Arc;
use time::OffsetDateTime;
use time::macros::format_description;

#[derive(clap::Args)]
pub struct Args {
    /// Measure perplexity, bytes and tokens per second of many schemes instead of writing one
    #[arg(long, requires = "text")]
    pub pareto: bool,
    /// Text whose perplexity is measured; without --calibrate its first half is learned from and the second is scored
    #[arg(long, value_name = "FILE", requires = "pareto")]
    text: Option<PathBuf>,
    /// Schemes to measure, f32 always (default: those of `quantize --help` that the sweep of the documentation has)
    #[arg(long, value_delimiter = ',', value_name = "LIST", requires = "pareto")]
    schemes: Vec<String>,
    /// Folder for results.json, REPORT.md and the pictures
    #[arg(long, value_name = "DIR", requires = "pareto")]
    out: Option<PathBuf>,
    /// Chunks (with --lines: lines) of the text that are scored (default: all)
    #[arg(long, value_name = "N", requires = "pareto")]
    text_chunks: Option<usize>,
    /// Quantise one part at a time too, by --to (default: int4-g64), and sort the parts by what that costs
    #[arg(long, value_enum, value_name = "PART", num_args = 0..=1, default_missing_value = "layer", requires = "pareto")]
    sensitivity: Option<Part>,
    /// Tokens that are decoded to measure speed, in each of --rounds rounds
    #[arg(long, default_value_t = 64, value_name = "N")]
    speed_tokens: usize,
    #[arg(long, default_value_t = 7, value_name = "N")]
    rounds: usize,
}

impl Args {
    fn schemes(&self) -> Result<Vec<Scheme>> {
        if self.schemes.is_empty() {
            return Ok(SEVEN.into_iter().chain(MORE).collect());
        }
        let mut schemes = vec![Scheme::Nearest(Format::F32)];
        for name in &self.schemes {
            let scheme = Scheme::from_name(&name.to_lowercase()).ok_or_else(|| {
                Error::Config(format!("--schemes: {name} is none; see quantize --help for their names"))
            })?;
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
        Ok(schemes)
    }
}

pub fn run(args: &super::Args, file: ModelFile, recipe: Option<Recipe>, json: bool) -> Result<()> {
    let own = &args.pareto;
    let path = own.text.as_ref().ok_or_else(|| Error::Config("--pareto needs --text FILE".into()))?;
    if args.output.is_some() || args.imatrix.is_some() {
        return Err(Error::Config(
            "--pareto writes no model (--out DIR takes its report) and needs no --imatrix".into(),
        ));
    }
    if let Some(folder) = &own.out {
        check_folder_writable(folder)?;
    }
    let schemes = own.schemes()?;
    let weights: Arc<dyn WeightSource> = Arc::from(file.weights);
    let (tokenizer, whole) = (&file.tokenizer, read_text(path)?);
    let about = path.display().to_string();
    let part = recipe.as_ref().map_or(Scheme::Nearest(Format::Int4Group(64)), |r| r.scheme);
    let learns = schemes.iter().chain(own.sensitivity.map(|_| &part)).any(|s| s.learns());
    // What is learned from and what is scored.
    let (learned, scored) = match &args.calibrate {
        Some(path) => (Some((read_text(path)?, path.display().to_string())), whole.as_str()),
        None if learns => {
            let half = whole.len() / 2;
            let between = |at: &usize| match args.lines {
                true => whole.as_bytes()[at - 1] == b'\n',
                false => whole.is_char_boundary(*at),
            };
            let middle = (half.max(1)..whole.len()).find(between).unwrap_or(whole.len());
            (Some((whole[..middle].to_string(), format!("the first half of {about}"))), &whole[middle..])
        }
        None => (None, whole.as_str()),
    };
    let subject = Subject {
        config: &file.config,
        tokenizer,
        weights,
        device: args.device()?,
        clip: args.clip()?,
        keep_head: args.keep_head,
        pure: args.pure,
    };
    let context = file.config.context();
    let text = if args.lines {
        let mut rows = lines(tokenizer, scored)?;
        rows.truncate(own.text_chunks.unwrap_or(usize::MAX));
        Text::Lines(rows)
    } else {
        let (tokens, bos) = (tokenizer.encode_whole(scored)?, tokenizer.start_id());
        Text::Chunks { tokens, bos, n_ctx: args.ctx.min(context), chunks: own.text_chunks }
    };
    let progress = Progress::new(true);
    let calibration: Option<Calibration> = match learned.filter(|_| learns) {
        Some((text, about)) => {
            let mut session = subject.session(subject.weights.as_ref())?;
            let mut after = |share: f64| {
                progress.say(&format!("calibration {:.0} %", 100.0 * share));
                true
            };
            Some(calibrate(&mut session, &text, &about, args.reading(), Moment::Products, &mut after)?)
        }
        None => None,
    };
    let prompt = 16.min(context / 4).max(1);
    let timing = Timing { rounds: own.rounds, prompt, tokens: own.speed_tokens.clamp(1, context - prompt) };
    let mut after = |what: &str| progress.say(what);
    let points = sweep(&subject, &schemes, calibration.as_ref(), &text, timing, &mut after)?;
    let sensitivity = match own.sensitivity {
        Some(kind) => {
            let (base, rows) = sensitivity(&subject, part, kind, calibration.as_ref(), &text, &mut after)?;
            Some(Sensitivities { scheme: part.name(), base, rows })
        }
        None => None,
    };
    progress.end();
    let date = OffsetDateTime::now_utc().format(format_description!("[year]-[month]-[day]")).unwrap_or_default();
    let half = if args.calibrate.is_none() && calibration.is_some() { "the second half of " } else { "" };
    let result = Sweep {
        program: format!("lynx-gpu {}", env!("CARGO_PKG_VERSION")),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        date,
        model: args.model.display().to_string(),
        summary: setup::model(&file.config)?.summary(),
        device: subject.device.name(),
        threads: kernels_cpu::threads::threads(),
        text: format!("{half}{about}"),
        text_sha256: sha256_hex(whole.as_bytes()),
        calibration: calibration.as_ref().map(Calibration::about_text),
        timing,
        points,
        sensitivity,
    };
    if let Some(folder) = &own.out {
        let value = serde_json::to_value(&result).map_err(|e| Error::Failed(format!("cannot write JSON: {e}")))?;
        let name = args.model.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        write_atomic(&folder.join("results.json"), pretty(&value).as_bytes())?;
        write_atomic(&folder.join("REPORT.md"), markdown(&result).as_bytes())?;
        for (against, picture) in [(Against::Perplexity, "perplexity.svg"), (Against::TokensPerSecond, "speed.svg")] {
            write_atomic(&folder.join(picture), svg(&result.points, &name, against)?.as_bytes())?;
        }
    }
    if json {
        return emit(&result);
    }
    print!("{}", table(&result.points));
    if let Some(found) = &result.sensitivity {
        println!("\none part at a time as {}, perplexity without {:.4}:\n", found.scheme, found.base.perplexity);
        print!("{}", sensitivity_table(found));
    }
    if let Some(folder) = &own.out {
        eprintln!("[wrote results.json, REPORT.md, perplexity.svg and speed.svg to {}]", folder.display());
    }
    for point in &result.points {
        point.notes.iter().for_each(|note| eprintln!("note: {}: {note}", point.scheme));
    }
    Ok(())
}
