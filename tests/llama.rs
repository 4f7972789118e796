//! The llama family: counts, training with every option, and keys and values kept between runs.

use lynx_gpu::config::{Config, LlamaConfig, OptimizerConfig};
use lynx_gpu::data::Cache;
use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::session::kept::Keeping;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::tokenizer::{ByteTokenizer, SpecialTokens, Tokenizer};
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{Batch, BatchSource, StepInfo, TrainModel};

fn devices() -> Vec<Device> {
    let gpu = Context::adapters().into_iter().next();
    if gpu.is_none() && std::env::var_os("LYNX_REQUIRE_GPU").is_some() {
        panic!("LYNX_REQUIRE_GPU is set and there is no GPU");
    }
    let gpu = gpu.map(|a| Device::Gpu(Context::open(&a, Options::default()).unwrap()));
    std::iter::once(Device::Cpu).chain(gpu).collect()
}

/// Every option of the family at once: grouped heads of their own width, windows in every other layer, caps, norms after the
/// branches, biases, scaled RoPE of a part of the head.
const EVERYTHING: &[&str] = &[
    "model.heads=4",
    "model.kv_heads=2",
    "model.head_dim=24",
    "model.rope_dims=16",
    "model.ff_kind=geglu",
    "model.norm_plus_one=true",
    "model.post_norms=true",
    "model.qkv_bias=true",
    "model.output_bias=true",
    "model.ff_bias=true",
    "model.tied_head=false",
    "model.embedding_scale=8",
    "model.attention_scale=0.2",
    "model.attention_softcap=5",
    "model.final_softcap=10",
    "model.window=6",
    "model.window_period=2",
    "model.rope_scaling=yarn",
    "model.rope_factor=4",
    "model.rope_layout=interleaved",
];

fn config(sets: &[&str]) -> Config {
    let small = ["train.batch_size=4", "data.batching=packed", "train.eval_interval=0"];
    let sets: Vec<String> = small.iter().chain(sets).map(|s| s.to_string()).collect();
    Config::load("minigpt-llama", &sets).unwrap().0
}

#[test]
fn the_graphs_own_parameter_table_matches_the_closed_formula() {
    for sets in [&[][..], EVERYTHING] {
        let mut config = config(sets);
        config.set_vocab_size(77).unwrap();
        let model = setup::model(&config.model).unwrap();
        let counted: usize = model.parameters().unwrap().iter().map(|p| p.elements()).sum();
        assert_eq!(counted as u64, config.model.parameter_count(), "{sets:?}");
    }
}

/// Steps on one batch: the loss falls to a fraction, and the first losses are those of the f64 reference.
#[test]
fn every_option_trains_and_agrees_with_the_reference() {
    for sets in [&[][..], EVERYTHING] {
        let run = |device: Device, steps: u64| -> Vec<f64> {
            let mut config = config(sets);
            let data = Prepared::new(&mut config, None, &Cache::disabled()).unwrap();
            let mut session = setup::training_session(&config, &data.tokenizer, device).unwrap();
            let batch: Batch = BatchSource::next_batch(&mut data.train_batches(&config).unwrap()).unwrap();
            let target_tokens = batch.scored() as u64;
            let info = |step| StepInfo { step, lr: 3e-3, seed: 1, target_tokens };
            (1..=steps).map(|s| session.train_step(std::slice::from_ref(&batch), &info(s)).unwrap().loss).collect()
        };
        let want = run(Device::Reference, 2);
        for device in devices() {
            let name = device.name();
            let losses = run(device, 60);
            for (a, b) in losses.iter().zip(&want) {
                assert!((a - b).abs() < 2e-5 * b.abs(), "{name} {sets:?}: {a} against {b}");
            }
            assert!(losses[59] < 0.35 * losses[0], "{name} {sets:?}: {} after {}", losses[59], losses[0]);
        }
    }
}

fn session(sets: &[&str], device: &Device) -> Session {
    let mut config = config(sets);
    let tokenizer = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()));
    config.set_vocab_size(tokenizer.vocab_size()).unwrap();
    let model = setup::model(&config.model).unwrap();
    Session::for_inference(model, tokenizer, OptimizerConfig::default(), device.clone(), 5).unwrap()
}

fn text(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + i * i % 11) % 250).collect()
}

/// Logits of a text read in pieces, with keys and values kept, against those of one run over all of it.
#[test]
fn kept_keys_and_values_give_the_logits_of_the_whole_text() {
    let context = "model.context=120";
    for sets in [&[context][..], &[&[context], EVERYTHING].concat()] {
        for device in devices() {
            let (mut kept, mut whole) = (session(sets, &device), session(sets, &device));
            whole.keep(Keeping { off: true, ..Keeping::default() }).unwrap();
            let tokens = text(117);
            let mut read = 0;
            for piece in [1, 2, 1, 19, 70, 1, 4, 16, 1, 1, 1] {
                let logits = kept.advance(&tokens[read..read + piece]).unwrap();
                read += piece;
                let want = whole.next_logits(&tokens[..read]).unwrap();
                let worst = logits.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                assert!(worst < 2e-5 * size.max(1.0), "{} {sets:?} after {read}: {worst}", device.name());
            }
            assert_eq!(kept.position(), 117);
        }
    }
}

#[test]
fn a_text_goes_back_and_on_as_if_it_had_never_been_longer() {
    let sets = &[&["model.context=120"], EVERYTHING].concat();
    for device in devices() {
        let (mut a, mut b) = (session(sets, &device), session(sets, &device));
        let tokens = text(90);
        a.advance(&tokens[..80]).unwrap();
        a.rewind(60).unwrap();
        let mut other = tokens[..60].to_vec();
        other.extend([3, 1, 4, 1, 5]);
        let each = a.advance_each(&[3, 1, 4, 1, 5]).unwrap();
        assert_eq!(each.len(), 5);
        let want = b.advance(&other).unwrap();
        let worst = each[4].iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 2e-5, "{}: {worst}", device.name());
        assert_eq!(a.position(), 65);
        assert!(a.rewind(66).is_err());
    }
}

/// Texts of unequal lengths side by side are the texts alone; and the likeliest token is found on the device.
#[test]
fn texts_side_by_side_do_not_know_of_each_other() {
    for device in devices() {
        let sets = &[&["model.context=120"], EVERYTHING].concat();
        let mut many = session(sets, &device);
        let mut alone = session(sets, &device);
        let texts = [text(40), text(3), text(17)[2..].to_vec()];
        many.begin(3).unwrap();
        many.advance_texts(&texts).unwrap();
        let more = [vec![9], vec![], vec![7, 8]];
        let rows = many.advance_texts(&more).unwrap();
        for (b, text) in texts.iter().enumerate() {
            if more[b].is_empty() {
                assert!(rows[b].is_empty());
                continue;
            }
            alone.restart().unwrap();
            let all = [&text[..], &more[b]].concat();
            let want = alone.advance(&all).unwrap();
            let worst = rows[b].iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 2e-5, "{} text {b}: {worst}", device.name());
            alone.restart().unwrap();
            let most = alone.advance_greedy(&all).unwrap() as usize;
            assert!(want.iter().all(|l| *l <= want[most]));
        }
    }
}

#[test]
fn a_full_context_goes_on_from_its_newest_tokens() {
    let mut s = session(&["model.context=16"], &Device::Cpu);
    let mut fresh = session(&["model.context=16"], &Device::Cpu);
    let tokens = text(17);
    s.advance(&tokens[..16]).unwrap();
    let logits = s.advance(&tokens[16..]).unwrap();
    // Three quarters of the context: 12 tokens.
    assert_eq!(logits, fresh.advance(&tokens[5..]).unwrap());
    assert_eq!(s.position(), 17);
}

#[test]
fn options_that_have_no_meaning_are_refused_by_their_keys() {
    for (set, key) in [
        ("model.ff_kind=relu", "ff_kind"),
        ("model.rope_dims=7", "rope_dims"),
        ("model.kv_heads=3", "kv_heads"),
        ("model.head_dim=300", "head_dim"),
        ("model.final_softcap=-1", "final_softcap"),
        ("model.rope_factor=0", "rope_factor"),
    ] {
        let error = Config::load("minigpt-llama", &[set.to_string()]).unwrap_err().to_string();
        assert!(error.contains(key), "{set}: {error}");
    }
}

/// The tables of each scaling against the definitions written out for one pair.
#[test]
fn scaled_frequencies_follow_their_definitions() {
    use lynx_gpu::config::RopeScaling;
    let base = LlamaConfig { width: 64, heads: 1, context: 4096, rope_factor: 4.0, ..LlamaConfig::default() };
    let plain = base.rope_frequencies().0;
    let of =
        |rope_scaling| LlamaConfig { rope_scaling, rope_original_context: 1024, ..base.clone() }.rope_frequencies();
    let linear = of(RopeScaling::Linear).0;
    assert!(plain.iter().zip(&linear).all(|(a, b)| (a / 4.0 - b).abs() < 1e-15));
    let ntk = of(RopeScaling::Ntk).0;
    assert_eq!(ntk[0], 1.0);
    assert!((ntk[31] / plain[31] - 0.25).abs() < 1e-9, "the slowest pair is slowed by the factor");
    let (yarn, factor) = of(RopeScaling::Yarn);
    assert!((factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    assert!((yarn[0] - plain[0]).abs() < 1e-15 && (yarn[31] * 4.0 - plain[31]).abs() < 1e-12);
    let llama3 = of(RopeScaling::Llama3).0;
    // Wavelengths below 1024 / 4 stay, those above 1024 are divided.
    for (new, old) in llama3.iter().zip(&plain) {
        let length = std::f64::consts::TAU / old;
        let want = if length < 256.0 {
            1.0
        } else if length > 1024.0 {
            0.25
        } else {
            new / old
        };
        assert!((new / old - want).abs() < 1e-12 && (0.25..=1.0).contains(&(new / old)));
    }
}
