//! Recipes: what a fresh model's loss is, that accumulation and resumption change nothing, for the coeus models and presets.

use lynx_gpu::config::Config;
use lynx_gpu::data::Cache;
use lynx_gpu::device::{Device, Store};
use lynx_gpu::graph::{Graph, Kind, Node, Plan, Precision, Value};
use lynx_gpu::models::session::graphs;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::nn::Builder;
use lynx_gpu::tensor::{DType, HostData, HostTensor, TensorType};
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

/// Loss and gradients of the tiny model over 12 x 64 positions and 50,257 tokens, whose logits are too large to be made at once, against
/// a graph that makes them at once.
#[test]
fn a_loss_in_blocks_of_rows_has_the_same_gradients_and_never_holds_all_logits() {
    let (batch, time, vocab) = (12, 64, 50_257);
    let mut config = Config::load("coeus-v2.6-tiny", &["model.dropout=0".into()]).unwrap().0;
    config.set_vocab_size(vocab).unwrap();
    let model = setup::model(&config.model).unwrap();
    let blocks = graphs::gradient_only(model.as_ref(), (batch, time)).unwrap();

    let mut b = Builder::default();
    let (tokens, targets) = (b.tokens("tokens", &[batch, time]), b.tokens("targets", &[batch, time]));
    let inverse = b.graph.input("inverse_tokens", TensorType::f32(&[]));
    let hidden = model.hidden(&mut b, tokens).unwrap();
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[batch * time, width]).unwrap();
    let logits = model.head(&mut b, hidden).unwrap();
    let flat = b.graph.reshape(targets, &[batch * time]).unwrap();
    let (nll, _) = b.graph.cross_entropy(logits, flat).unwrap();
    let sum = b.graph.sum_all(nll).unwrap();
    let loss = b.graph.mul(sum, inverse).unwrap();
    let weights: Vec<_> =
        b.parameters.iter().map(|p| b.graph.parameters().iter().find(|(_, n)| *n == p.name).unwrap().0).collect();
    let gradients = b.graph.gradients(loss, &weights).unwrap();
    b.graph.output("nll", nll);
    for (p, g) in b.parameters.iter().zip(gradients) {
        b.graph.output(&format!("gradient.{}", p.name), g);
    }

    let mut rng = lynx_gpu::data::rng::SplitMix64::new(5);
    let mut ids =
        || HostTensor::i32(&[batch, time], (0..batch * time).map(|_| rng.below(vocab as u64) as i32).collect());
    let (tokens, mut targets) = (ids(), ids());
    if let HostData::I32(ids) = &mut targets.data {
        ids.iter_mut().step_by(7).for_each(|id| *id = -1);
    }
    let run = |graph: &Graph| {
        let plan = Plan::new(graph).unwrap();
        let mut store = Store::new(&Device::Cpu);
        let mut run = plan.prepare(&mut store).unwrap();
        for p in model.parameters().unwrap() {
            store.write(&p.name, &p.initial(1)).unwrap();
        }
        run.write_input("tokens", &tokens).unwrap();
        run.write_input("targets", &targets).unwrap();
        run.write_input("inverse_tokens", &HostTensor::scalar(1.0 / (batch * time) as f32)).unwrap();
        run.run().unwrap();
        let wanted =
            graph.outputs().iter().map(|(n, _)| n.clone()).filter(|n| n == "nll" || n.starts_with("gradient."));
        let read: Vec<(String, Vec<f64>)> =
            wanted.map(|n| (n.clone(), run.read_output(&n).unwrap().to_f64().data)).collect();
        (read, plan.memory.activations)
    };
    let (blocks, less) = run(&blocks);
    let (whole, more) = run(&b.graph);
    assert_eq!(blocks.len(), whole.len());
    for (name, want) in &whole {
        let (_, have) = blocks.iter().find(|(n, _)| n == name).unwrap();
        let largest = want.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
        let worst = want.iter().zip(have).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-5 * largest, "{name}: off by {worst:e} where the largest is {largest:e}");
    }
    // Logits and their gradient of all rows were the plan's two largest values.
    let logits = (4 * batch * time * vocab) as u64;
    say!("activations: {less} bytes in blocks, {more} at once");
    assert!(more > 2 * logits && less < more - logits / 2, "{less} {more} {logits}");
}

#[test]
fn small_letters_are_for_text_files() {
    let error = Config::load("coeus-v1-nano", &["data.lowercase=true".into(), "data.source=verbs".into()]).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("data.lowercase"), "{error}");
}

fn lynx(arguments: &[&str]) -> (String, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_lynx-gpu")).args(arguments).env("LYNX_CACHE", "").output();
    let out = out.expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{arguments:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

/// A small mix is learnt: honestly, then with its validation texts in the place of its training texts and the hashes mended.
#[test]
fn a_validation_text_that_leaks_into_training_falls_below_its_floor_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (mix, runs) = (folder.path().join("mix"), folder.path().join("runs"));
    let options = lynx_gpu::data::logic_mix::export::Options {
        seed: lynx_gpu::data::logic_mix::SEED,
        bytes: 120_000,
        literature: vec![],
        recall: false,
    };
    let mut manifest = lynx_gpu::data::logic_mix::export::write(&mix, &options).unwrap();
    let train = |name: &str, steps: &str| {
        let out = runs.join(name);
        let steps = format!("train.steps={steps}");
        let mut arguments = vec!["train", "--config", "coeus-v2.5-tiny", "--device", "cpu", "--json"];
        arguments.extend(["--data", mix.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        let sets = ["tokenizer.kind=byte", "train.eval_interval=50", "train.eval_batches=0", "train.sample_interval=0"];
        let rest =
            ["schedule.lr=4e-3", "schedule.warmup=20", "schedule.decay_steps=0", "run.tensorboard=false", &steps];
        arguments.extend(sets.iter().chain(&rest).flat_map(|set| ["--set", set]));
        let (_, told) = lynx(&arguments);
        let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let records = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let sources: Vec<serde_json::Value> = records.filter(|r| r["kind"] == "sources").collect();
        (out, told, sources)
    };
    let below = |records: &[serde_json::Value]| {
        let all = records.iter().flat_map(|r| r["sources"].as_array().unwrap().clone());
        all.filter(|s| s["bits_per_byte"].as_f64().unwrap() < s["floor"].as_f64().unwrap()).count()
    };
    let (_, told, honest) = train("honest", "50");
    assert_eq!(honest.len(), 1);
    let names: Vec<&str> =
        honest[0]["sources"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["arithmetic", "syllogism", "pseudocode"]);
    assert_eq!(below(&honest), 0, "{honest:?}");
    assert!(!told.contains("WARNING"), "{told}");

    for kind in ["arithmetic", "syllogism", "pseudocode"] {
        std::fs::copy(mix.join(format!("val.{kind}.jsonl")), mix.join(format!("train.{kind}.jsonl"))).unwrap();
        let hash = manifest["files"][format!("val.{kind}.jsonl")]["sha256"].clone();
        manifest["files"][format!("train.{kind}.jsonl")]["sha256"] = hash;
    }
    std::fs::write(mix.join("MANIFEST.json"), manifest.to_string()).unwrap();
    let (run, told, leaked) = train("leaked", "400");
    let last = &leaked[leaked.len() - 1..];
    say!("leaked: {}", last[0]);
    assert!(below(last) > 0, "{last:?}");
    assert!(told.contains("WARNING") && told.contains("the validation text leaks into training"), "{told}");

    let (text, _) = lynx(&["eval", run.to_str().unwrap(), "--last", "--device", "cpu", "--no-ngram"]);
    assert!(text.contains("arithmetic") && text.contains("WARNING"), "{text}");
    let (text, _) = lynx(&["eval", run.to_str().unwrap(), "--last", "--device", "cpu", "--no-ngram", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(report["sources"].as_array().unwrap().iter().any(|source| source["below_floor"] == true), "{report}");
}

/// Gradients of sixteen micro-batches of four, summed on the device, against those of one batch of 64.
#[test]
fn sixteen_micro_batches_of_four_have_the_gradient_of_one_batch_of_64() {
    let (time, vocab) = (32, 65);
    let mut config = Config::load("coeus-v3.0-tiny", &["model.dropout=0".into(), "model.context=32".into()]).unwrap().0;
    config.set_vocab_size(vocab).unwrap();
    let model = setup::model(&config.model).unwrap();
    let parameters = model.parameters().unwrap();
    let mut rng = lynx_gpu::data::rng::SplitMix64::new(9);
    let ids: Vec<i32> = (0..2 * 64 * time).map(|_| rng.below(vocab as u64) as i32).collect();
    let part =
        |from: usize, rows: usize| HostTensor::i32(&[rows, time], ids[from * time..(from + rows) * time].to_vec());
    let inverse = HostTensor::scalar(1.0 / (64 * time) as f32);
    let start = |graph: &Graph, store: &mut Store| {
        let run = Plan::new(graph).unwrap().prepare(store).unwrap();
        parameters.iter().for_each(|p| store.write(&p.name, &p.initial(1)).unwrap());
        run
    };

    let mut store = Store::new(&Device::Cpu);
    let mut run = start(&graphs::gradient_only(model.as_ref(), (64, time)).unwrap(), &mut store);
    run.write_input("tokens", &part(0, 64)).unwrap();
    run.write_input("targets", &part(64, 64)).unwrap();
    run.write_input("inverse_tokens", &inverse).unwrap();
    run.run().unwrap();
    let whole: Vec<Vec<f64>> =
        parameters.iter().map(|p| run.read_output(&format!("gradient.{}", p.name)).unwrap().to_f64().data).collect();

    let mut store = Store::new(&Device::Cpu);
    let graph = graphs::micro_step(model.as_ref(), (4, time), Precision::F32).unwrap();
    let mut run = start(&graph, &mut store);
    run.write_input("inverse_tokens", &inverse).unwrap();
    for micro in 0..16 {
        run.write_input("tokens", &part(4 * micro, 4)).unwrap();
        run.write_input("targets", &part(64 + 4 * micro, 4)).unwrap();
        run.write_input("keep", &HostTensor::scalar(if micro == 0 { 0.0 } else { 1.0 })).unwrap();
        run.run().unwrap();
    }
    for (p, want) in parameters.iter().zip(whole) {
        let have = store.read(&format!("gradient.{}", p.name)).unwrap().to_f64().data;
        let largest = want.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
        let worst = want.iter().zip(&have).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-5 * largest, "{}: off by {worst:e} where the largest is {largest:e}", p.name);
    }
}

/// 200 steps at once, and 100 with 100 resumed in another process: weights, moments, sampler, losses and patience to the bit.
#[test]
fn a_hundred_steps_and_a_hundred_resumed_are_two_hundred_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let train = |name: &str, steps: u64, resume: bool| {
        let run = folder.path().join(name);
        let path = run.to_str().unwrap().to_owned();
        let steps = format!("train.steps={steps}");
        let mut arguments = vec!["train"];
        match resume {
            true => arguments.extend(["--resume", &path]),
            false => arguments.extend(["--config", "coeus-v2.6-tiny", "--data", "verbs", "--out", &path]),
        }
        let sets =
            ["train.eval_interval=20", "train.batch_size=4", "train.patience=90", "train.checkpoint_interval=100"];
        let rest =
            ["train.sample_interval=0", "train.sample_tokens=0", "run.tensorboard=false", "run.device=cpu", &steps];
        arguments.extend(sets.iter().chain(&rest).flat_map(|set| ["--set", set]));
        lynx(&arguments);
        run
    };
    let straight = train("straight", 200, false);
    train("halves", 100, false);
    let halves = train("halves", 200, true);
    let file = |run: &Path, name: &str| std::fs::read(run.join("checkpoints/step-200").join(name)).unwrap();
    for name in ["model.safetensors", "optimizer.safetensors"] {
        assert!(file(&straight, name) == file(&halves, name), "{name} differs");
    }
    let state = |run: &Path| serde_json::from_slice::<serde_json::Value>(&file(run, "state.json")).unwrap();
    let (a, b) = (state(&straight), state(&halves));
    for key in ["step", "data", "early_stopping", "tokens"] {
        assert!(!a[key].is_null() && a[key] == b[key], "{key}: {} and {}", a[key], b[key]);
    }
    let log = |run: &Path| -> Vec<[serde_json::Value; 4]> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.map(|r| ["kind", "step", "loss", "grad_norm"].map(|key| r[key].clone())).collect()
    };
    let (a, b) = (log(&straight), log(&halves));
    assert!(a.len() >= 210, "{} records", a.len());
    assert_eq!(a, b);
}

/// Sixteen bits between the operators move a recurrence's output by at most 5e-3 of its root mean square, in every block, and no
/// recurrence ever sees or keeps a state in sixteen bits.
#[test]
fn storage_in_f16_keeps_the_answers_and_leaves_states_in_f32() {
    let (batch, time) = (2, 64);
    let ids: Vec<i32> = (0..batch * time).map(|i| (i * 29 % 65) as i32).collect();
    for version in ["v1", "v2.6", "v3.0"] {
        let mut config = Config::load(&format!("coeus-{version}-tiny"), &[]).unwrap().0;
        config.set_vocab_size(65).unwrap();
        let model = setup::model(&config.model).unwrap();
        let mut b = Builder::default();
        let tokens = b.tokens("tokens", &[batch, time]);
        let hidden = model.hidden(&mut b, tokens).unwrap();
        b.graph.output("hidden", hidden);
        let is_recurrence =
            |n: &Node| matches!(&n.kind, Kind::Op(op) if op.name().starts_with("gla") || op.name() == "gated_scan");
        let places: Vec<usize> =
            (0..b.graph.nodes().len()).filter(|&place| is_recurrence(&b.graph.nodes()[place])).collect();
        let names: Vec<String> = (0..places.len()).map(|layer| format!("recurrence {layer}")).collect();
        for (name, &place) in names.iter().zip(&places) {
            b.graph.output(name, Value { node: place as u32, port: 0 });
        }
        assert_eq!(names.len(), 2, "{version}: one a block");
        let outputs = |precision| -> Vec<Vec<f64>> {
            let plan = Plan::stored_in(&b.graph, precision).unwrap();
            let recurrences: Vec<&Node> = plan.graph.nodes().iter().filter(|n| is_recurrence(n)).collect();
            assert_eq!(recurrences.len(), names.len(), "{version}");
            for node in recurrences {
                let inputs = node.inputs.iter().map(|v| plan.graph.ty(*v));
                assert!(inputs.chain(&node.outputs).all(|ty| ty.dtype == DType::F32), "{version}: {}", node.name);
            }
            let mut store = Store::new(&Device::Cpu);
            let mut run = plan.prepare(&mut store).unwrap();
            model.parameters().unwrap().iter().for_each(|p| store.write(&p.name, &p.initial(1)).unwrap());
            run.write_input("tokens", &HostTensor::i32(&[batch, time], ids.clone())).unwrap();
            run.run().unwrap();
            let read = |name: &str| run.read_output(name).unwrap().to_f64().data;
            names.iter().map(String::as_str).chain(["hidden"]).map(read).collect()
        };
        let (want, have) = (outputs(Precision::F32), outputs(Precision::F16));
        let rms = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        for (name, (want, have)) in names.iter().map(String::as_str).chain(["hidden"]).zip(want.iter().zip(&have)) {
            let off = rms(&mut want.iter().zip(have).map(|(a, b)| a - b)) / rms(&mut want.iter().copied());
            say!("coeus-{version}-tiny in f16, {name}: off by {off:.1e}");
            assert!(off > 0.0 && off <= 5e-3, "{version}: {name}: {off}");
        }
    }
    let mut graph = Graph::new();
    let half = |shape: &[usize]| TensorType::new(DType::F16, shape);
    let [q, k, v] = ["q", "k", "v"].map(|name| graph.input(name, half(&[1, 8, 2, 16])));
    let a = graph.input("a", half(&[1, 8, 2]));
    let refused = graph.gla_head(q, k, v, a, None).unwrap_err().to_string();
    assert!(refused.contains("f32") && refused.contains("states must not be rounded"), "{refused}");
}

/// Dropout is of training: an evaluation of a model with dropout gives the same bits every time.
#[test]
fn evaluation_is_without_dropout() {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("data.source={}", shakespeare(folder.path()).display());
    let losses: Vec<f64> = ["0.1", "0.1", "0"]
        .iter()
        .map(|p| first_loss("coeus-v2.6-tiny", &[source.clone(), format!("model.dropout={p}")], 512).1)
        .collect();
    assert!(losses.iter().all(|loss| loss.to_bits() == losses[0].to_bits()), "{losses:?}");
}

/// The three books of the report: no problem and hardly a run of 64 bytes stands on both sides of the split.
#[test]
fn a_mix_with_books_keeps_what_is_held_out_out_of_training() {
    let folder = tempfile::tempdir().unwrap();
    let text = shakespeare(folder.path());
    let books: Vec<PathBuf> =
        ["alice", "frankenstein", "sherlock"].map(|b| text.with_file_name(format!("{b}.txt"))).into();
    if !books.iter().all(|book| book.is_file()) {
        say!("SKIPPED: the books are not there (set LYNX_SHARED)");
        return;
    }
    let (seed, mix) = (lynx_gpu::data::logic_mix::SEED, folder.path().join("mix"));
    let options = lynx_gpu::data::logic_mix::export::Options { seed, bytes: 300_000, literature: books, recall: false };
    lynx_gpu::data::logic_mix::export::write(&mix, &options).unwrap();
    for check in lynx_gpu::data::logic_mix::export::validate(&mix).unwrap() {
        say!("{}: {:?}", check.name, check.message);
        assert!(check.message.is_ok(), "{check:?}");
    }
}
