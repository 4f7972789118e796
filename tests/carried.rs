//! Texts read piece by piece: the states between the pieces are of one size, and the pieces give what one piece gives.

use lynx_gpu::config::{Config, OptimizerConfig};
use lynx_gpu::data::rng::SplitMix64;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Store};
use lynx_gpu::graph::Plan;
use lynx_gpu::infer::{NextToken, Sampling, continue_with, generate};
use lynx_gpu::models::session::carried::Reads;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::tensor::HostTensor;
use lynx_gpu::tokenizer::{CharTokenizer, SpecialTokens, Tokenizer};
use std::path::Path;

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

const VERSIONS: [&str; 6] = ["v1", "v2", "v2.5", "v2.6", "v3.0", "v3.1"];

fn gpu() -> Option<Device> {
    match Context::adapters().into_iter().next() {
        Some(a) => Some(Device::Gpu(Context::open(&a, Options::default()).unwrap())),
        None if std::env::var_os("LYNX_REQUIRE_GPU").is_some() => panic!("LYNX_REQUIRE_GPU is set and there is no GPU"),
        None => {
            say!("SKIPPED: no GPU adapter");
            None
        }
    }
}

fn tokenizer() -> Tokenizer {
    let characters = (0..65).map(|i| char::from(32 + i)).collect();
    Tokenizer::Char(CharTokenizer::new(characters, SpecialTokens::none()).unwrap())
}

fn session(preset: &str, sets: &[&str], device: Device, seed: u64) -> Session {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut config = Config::load(preset, &sets).unwrap().0;
    let tokenizer = tokenizer();
    config.set_vocab_size(tokenizer.vocab_size()).unwrap();
    let model = setup::model(&config.model).unwrap();
    Session::for_inference(model, tokenizer, OptimizerConfig::default(), device, seed).unwrap()
}

fn random(n: usize, below: u64, seed: u64) -> Vec<u32> {
    let mut rng = SplitMix64::new(seed);
    (0..n).map(|_| rng.below(below) as u32).collect()
}

/// The logits of every position of one text, in one graph without any state.
fn whole(preset: &str, sets: &[&str], tokens: &[u32], seed: u64) -> Vec<Vec<f32>> {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut config = Config::load(preset, &sets).unwrap().0;
    config.set_vocab_size(tokenizer().vocab_size()).unwrap();
    let model = setup::model(&config.model).unwrap();
    let mut b = lynx_gpu::nn::Builder::default();
    let ids = b.tokens("tokens", &[1, tokens.len()]);
    let hidden = model.hidden(&mut b, ids).unwrap();
    let width = b.graph.shape(hidden)[2];
    let hidden = b.graph.reshape(hidden, &[tokens.len(), width]).unwrap();
    let logits = model.head(&mut b, hidden).unwrap();
    b.graph.output("logits", logits);
    let mut store = Store::new(&Device::Cpu);
    let mut run = Plan::new(&b.graph).unwrap().prepare(&mut store).unwrap();
    model.parameters().unwrap().iter().for_each(|p| store.write(&p.name, &p.initial(seed)).unwrap());
    let ids = tokens.iter().map(|t| *t as i32).collect();
    run.write_input("tokens", &HostTensor::i32(&[1, tokens.len()], ids)).unwrap();
    run.run().unwrap();
    let all = run.read_output("logits").unwrap();
    all.as_f32().unwrap().chunks(model.vocab_size()).map(<[f32]>::to_vec).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// Whole logits against those after pieces of `lengths`, taken round and round, at the end of every piece: within 2e-5.
fn pieces_give_what_the_whole_gives(session: &mut Session, whole: &[Vec<f32>], tokens: &[u32], lengths: &[usize]) {
    pieces_within(2e-5, session, whole, tokens, lengths);
}

fn pieces_within(bound: f32, session: &mut Session, whole: &[Vec<f32>], tokens: &[u32], lengths: &[usize]) {
    session.restart().unwrap();
    let mut at = 0;
    let mut worst = 0f32;
    for length in lengths.iter().cycle() {
        if at == tokens.len() {
            break;
        }
        let end = (at + length).min(tokens.len());
        let logits = session.advance(&tokens[at..end]).unwrap();
        worst = worst.max(difference(&logits, &whole[end - 1]));
        at = end;
    }
    assert!(worst <= bound, "pieces of {lengths:?}: logits differ by {worst}");
    assert_eq!(session.position(), tokens.len() as u64);
}

/// 700 tokens one by one, in segments of 7, 128, 512, and of changing lengths: the logits of the whole within 2e-5.
#[test]
fn pieces_of_a_text_give_what_the_whole_gives() {
    let tokens = random(700, 65, 5);
    for version in VERSIONS {
        let learned = ["model.context=1024"];
        let sets: &[&str] = if ["v1", "v2"].contains(&version) { &learned } else { &[] };
        let preset = format!("coeus-{version}-tiny");
        let whole = whole(&preset, sets, &tokens, 3);
        let mut session = session(&preset, sets, Device::Cpu, 3);
        for lengths in [&[1][..], &[7], &[128], &[512], &[700], &[3, 130, 1, 17, 65]] {
            pieces_give_what_the_whole_gives(&mut session, &whole, &tokens, lengths);
        }
    }
}

/// The same at the largest size: the versions that have between them each kind of state. Each of the six layers normalises what its
/// recurrence gives, and with it the roundings in which a walk differs from chunks: 4e-5 was seen with pieces of one token.
#[test]
fn pieces_give_the_whole_at_full_size() {
    let tokens = random(700, 65, 6);
    for version in ["v2.5", "v3.1"] {
        let preset = format!("coeus-{version}-nano");
        let whole = whole(&preset, &[], &tokens, 3);
        let mut session = session(&preset, &[], Device::Cpu, 3);
        for lengths in [&[1][..], &[7], &[128], &[512], &[1, 130, 7]] {
            pieces_within(6e-5, &mut session, &whole, &tokens, lengths);
        }
    }
}

#[test]
fn other_choices_carry_their_state_too() {
    let tokens = random(150, 65, 7);
    for sets in [
        &["model.recurrence=gla_channel"][..],
        &["model.fusion=local_only"],
        &["model.fusion=recurrent_only"],
        &["model.share_qkv=false", "model.fusion=judge", "model.input_scale=false"],
        &["model.use_episodic_mem=true", "model.mem_capacity=3", "model.mem_update_freq=5"],
        &["model.use_episodic_mem=true", "model.mem_capacity=3", "model.mem_update_freq=5", "model.mem_source=mean"],
        &["model.use_episodic_mem=true", "model.mem_update_freq=1", "model.mem_source=mean"],
        &["model.fusion=local_only", "model.use_episodic_mem=true", "model.mem_capacity=1", "model.mem_update_freq=1"],
    ] {
        let whole = whole("coeus-v2.5-tiny", sets, &tokens, 3);
        let mut session = session("coeus-v2.5-tiny", sets, Device::Cpu, 3);
        for lengths in [&[128][..], &[1, 20, 7]] {
            pieces_give_what_the_whole_gives(&mut session, &whole, &tokens, lengths);
        }
    }
}

#[test]
fn a_gpu_carries_the_same_states() {
    let Some(device) = gpu() else { return };
    let tokens = random(150, 65, 8);
    for version in ["v2.5", "v3.0", "v3.1"] {
        let preset = format!("coeus-{version}-tiny");
        let whole = whole(&preset, &[], &tokens, 3);
        let mut session = session(&preset, &[], device.clone(), 3);
        pieces_give_what_the_whole_gives(&mut session, &whole, &tokens, &[128, 1, 20]);
    }
}

/// Floats of a layer: 2 window (heads' keys and values), the recurrence's state, and the slots of a memory.
#[test]
fn states_have_the_specified_size_however_long_the_text() {
    // nano: width 384, 6 heads of 64, window 128, 6 layers.
    for (version, floats) in
        [("v1", 122_880), ("v2", 122_880), ("v2.5", 57_344), ("v2.6", 57_344), ("v3.0", 33_152), ("v3.1", 57_920)]
    {
        let mut session = session(&format!("coeus-{version}-nano"), &[], Device::Cpu, 1);
        let bytes: u64 = session.states().unwrap().iter().map(|(_, ty)| ty.bytes()).sum();
        assert_eq!(bytes, 4 * 6 * floats, "{version}");
    }
    let mut session = session("coeus-v2.5-tiny", &[], Device::Cpu, 1);
    let mut bytes = Vec::new();
    let text = random(512, 65, 9);
    for _ in 0..2 {
        // One token and a long piece have both their plans now.
        session.advance(&text).unwrap();
        session.advance(&text[..1]).unwrap();
        bytes.push(session.reading_bytes());
    }
    while session.position() < 100_000 {
        session.advance(&text).unwrap();
    }
    session.advance(&text[..1]).unwrap();
    bytes.push(session.reading_bytes());
    assert_eq!(bytes, [bytes[0]; 3]);
}

/// -ln p of each next token, as the logits of the whole give it.
#[test]
fn scores_of_a_long_text_are_those_of_the_whole() {
    let tokens = random(701, 65, 10);
    let whole = whole("coeus-v2.5-tiny", &[], &tokens[..700], 3);
    let mut session = session("coeus-v2.5-tiny", &[], Device::Cpu, 3);
    let mut scores = session.score(&tokens[..130], &tokens[1..131]).unwrap();
    scores.extend(session.score(&tokens[130..700], &tokens[131..]).unwrap());
    for (i, score) in scores.iter().enumerate() {
        let max = whole[i].iter().copied().fold(f32::MIN, f32::max) as f64;
        let sum: f64 = whole[i].iter().map(|l| (*l as f64 - max).exp()).sum();
        let want = max + sum.ln() - whole[i][tokens[i + 1] as usize] as f64;
        assert!((*score as f64 - want).abs() < 5e-5, "token {i}: {score} against {want}");
    }
}

const GREEDY: Sampling = Sampling::greedy();

/// A text is read in one session, put aside, and continued in another as if it had never been put aside.
#[test]
fn a_saved_state_continues_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.state");
    let prompt = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG, ".repeat(9);
    let mut first = session("coeus-v3.0-tiny", &[], Device::Cpu, 3);
    let want = generate(&mut first, &prompt, 60, &GREEDY, &mut |_| true).unwrap();
    generate(&mut first, &prompt, 0, &GREEDY, &mut |_| true).unwrap();
    let read = first.position();
    first.save_text_state(&path).unwrap();
    // Another text in between changes nothing.
    generate(&mut first, "AND NOW", 5, &GREEDY, &mut |_| true).unwrap();
    assert_eq!(first.load_text_state(&path).unwrap(), read);
    assert_eq!(continue_with(&mut first, &[], 60, &GREEDY, &mut |_| true).unwrap().text, want.text);
    let mut second = session("coeus-v3.0-tiny", &[], Device::Cpu, 3);
    second.load_text_state(&path).unwrap();
    assert_eq!(continue_with(&mut second, &[], 60, &GREEDY, &mut |_| true).unwrap().text, want.text);
}

fn refusal(session: &mut Session, path: &Path) -> String {
    let error = session.load_text_state(path).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    error.to_string()
}

#[test]
fn states_of_other_models_versions_and_kinds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.state");
    let mut model = session("coeus-v2.5-tiny", &[], Device::Cpu, 3);
    let nothing = model.save_text_state(&path).unwrap_err().to_string();
    assert!(nothing.contains("no text was read"), "{nothing}");
    assert!(!path.exists());
    model.advance(&random(20, 65, 1)).unwrap();
    model.save_text_state(&path).unwrap();
    let other_weights = refusal(&mut session("coeus-v2.5-tiny", &[], Device::Cpu, 4), &path);
    assert!(other_weights.contains("another model"), "{other_weights}");
    let other_version = refusal(&mut session("coeus-v3.0-tiny", &[], Device::Cpu, 3), &path);
    assert!(other_version.contains("another model"), "{other_version}");
    // Not a weight, and not in the one line that describes a model, but another function.
    let mut rotated = session("coeus-v2.5-tiny", &["model.rope_base=100"], Device::Cpu, 3);
    let other_rotation = refusal(&mut rotated, &path);
    assert!(other_rotation.contains("another model"), "{other_rotation}");
    // What was read before a refusal stays read.
    let before = model.advance(&[]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let digits = bytes.windows(15).position(|w| w == b"\"position\":\"20\"").unwrap() + 12;
    let mut moved = bytes.clone();
    moved[digits] = b'9';
    for wrong in [flipped, moved] {
        std::fs::write(&path, &wrong).unwrap();
        let text = refusal(&mut model, &path);
        assert!(text.contains("does not hold what was written"), "{text}");
    }
    let at = bytes.windows(11).position(|w| w == b"\"version\":\"").unwrap() + 11;
    let mut newer = bytes.clone();
    newer[at] = b'9';
    std::fs::write(&path, &newer).unwrap();
    let text = refusal(&mut model, &path);
    assert!(text.contains("version 9"), "{text}");
    for damaged in [&bytes[..bytes.len() / 2], b"hello", b""] {
        std::fs::write(&path, damaged).unwrap();
        let text = refusal(&mut model, &path);
        assert!(text.contains("not a readable text state"), "{text}");
    }
    assert_eq!(model.advance(&[]).unwrap(), before);
    let missing = model.load_text_state(&folder.path().join("none.state")).unwrap_err().to_string();
    assert!(missing.contains("none.state") && missing.contains("check the path"), "{missing}");
}

/// Beyond its learned positions, or its cache of keys and values, a model reads its newest tokens again, and says so where a state is asked for.
#[test]
fn learned_positions_end_and_the_text_goes_on() {
    let mut v1 = session("coeus-v1-tiny", &[], Device::Cpu, 3);
    let tokens = random(90, 65, 2);
    let long = v1.advance(&tokens).unwrap();
    let want = v1.next_logits(&tokens[90 - 64..]).unwrap();
    assert_eq!(long, want);
    let error = v1.text_state().err().unwrap().to_string();
    assert!(error.contains("90 tokens") && error.contains("64 learned positions"), "{error}");
    let mut gpt = session("minigpt", &["model.vocab_size=0"], Device::Cpu, 3);
    let tokens = random(40, 65, 3);
    gpt.advance(&tokens[..10]).unwrap();
    let long = gpt.advance(&tokens[10..]).unwrap();
    // Three quarters of a context of 32.
    assert_eq!(long, gpt.next_logits(&tokens[16..]).unwrap());
    assert!(gpt.carries().unwrap_err().to_string().contains("carry no state"));
    let blocks = session("coeus-v3.1-tiny", &["model.local_mode=isolated_blocks"], Device::Cpu, 3);
    assert!(blocks.carries().unwrap_err().to_string().contains("isolated"));
    let foreign = gpt.prepare_segment(16, Reads::Next).unwrap_err().to_string();
    assert!(foreign.contains("carry no state"), "{foreign}");
}
