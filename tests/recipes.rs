//! Recipes: what a fresh model's loss is, that accumulation and resumption change nothing, for the coeus models and presets.

use lynx_gpu::config::Config;
use lynx_gpu::data::Cache;
use lynx_gpu::device::Device;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{EvalSource, TrainModel};
use std::path::{Path, PathBuf};

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

/// The text the character presets are meant for, or one of 39 small characters (65 with the capitals), written to `folder`.
fn shakespeare(folder: &Path) -> PathBuf {
    let shared = std::env::var_os("LYNX_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), Into::into);
    let text = shared.join("data/text/tinyshakespeare.txt");
    if text.is_file() {
        return text;
    }
    say!("{} is not there (set LYNX_SHARED): a made text stands in for it", text.display());
    let alphabet: Vec<char> = ('a'..='z').chain('A'..='Z').chain("\n !$&',-.3:;?".chars()).collect();
    let mut rng = lynx_gpu::data::rng::SplitMix64::new(3);
    let text: String = (0..60_000).map(|i| alphabet[if i < 65 { i } else { rng.below(65) as usize }]).collect();
    let path = folder.join("text.txt");
    std::fs::write(&path, text).unwrap();
    path
}

fn prepared(preset: &str, sets: &[String]) -> (Config, Prepared) {
    let mut config = Config::load(preset, sets).unwrap().0;
    let data = Prepared::new(&mut config, None, &Cache::disabled()).unwrap();
    (config, data)
}

/// The loss of the untrained model over the first `positions` positions of the validation text.
fn first_loss(preset: &str, sets: &[String], positions: usize) -> (usize, f64) {
    let (config, data) = prepared(preset, sets);
    let model = setup::model(&config.model).unwrap();
    let optimizer = config.optimizer.clone();
    let mut session =
        Session::for_inference(model, data.tokenizer.clone(), optimizer, Device::Cpu, config.train.seed).unwrap();
    let mut validation = data.validation_batches(&config).unwrap();
    let rows = positions / config.model.context();
    let batch = EvalSource::batch(&mut validation, 0).unwrap().first(rows);
    let sum = session.evaluate(&batch).unwrap();
    (config.model.vocab_size(), sum.nll / sum.tokens as f64)
}

/// A fresh tied head says nothing yet: the loss is that of guessing evenly among V tokens, and a little more for the logits' spread.
#[test]
fn the_first_loss_is_ln_of_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("data.source={}", shakespeare(folder.path()).display());
    for (preset, kind, vocab_size, positions) in [
        ("coeus-v1-nano", "char", 65, 1024),
        ("coeus-v2.6-tiny", "byte", 259, 1024),
        ("coeus-v3.0-nano", "byte", 259, 256),
        ("coeus-v2.6-nano", "byte", 50_257, 256),
    ] {
        let mut sets = vec![source.clone(), format!("tokenizer.kind={kind}")];
        if positions < 1024 {
            sets.push(format!("model.context={positions}"));
        }
        if vocab_size == 50_257 {
            sets.push("model.vocab_size=50257".into());
        }
        let (vocab, loss) = first_loss(preset, &sets, positions);
        assert_eq!(vocab, vocab_size, "{preset}");
        let uniform = (vocab as f64).ln();
        say!("{preset}, {vocab} tokens: first loss {loss:.3}, ln V {uniform:.3}");
        assert!(loss > uniform - 0.05 && loss < uniform + 0.25, "{preset}, {vocab}: {loss} against {uniform}");
    }
}

#[test]
fn in_small_letters_the_first_loss_is_that_of_39_characters() {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("data.source={}", shakespeare(folder.path()).display());
    let (vocab, loss) = first_loss("coeus-v1-nano", &[source, "data.lowercase=true".into()], 1024);
    say!("coeus-v1-nano in small letters: first loss {loss:.3}");
    assert_eq!(vocab, 39);
    assert!((loss - 3.66).abs() < 0.12, "{loss}");
}

#[test]
fn small_letters_are_for_text_files() {
    let error = Config::load("coeus-v1-nano", &["data.lowercase=true".into(), "data.source=verbs".into()]).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("data.lowercase"), "{error}");
}
