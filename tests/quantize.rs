//! Quantised models: what they compute on every device, what a trained one loses, files that are read back, and the commands.

#[path = "quantize/commands.rs"]
mod commands;
#[path = "quantize/common.rs"]
mod common;

use common::{Memory, calibrated, devices, quantised, session, trained};
use kernels_cpu::blocks::Format;
use lynx_gpu::config::{LlamaConfig, ModelConfig};
use lynx_gpu::device::Device;
use lynx_gpu::evals::perplexity::perplexity;
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::files::write::{Target, WriteOptions, write};
use lynx_gpu::models::files::{self, FileFormat, ModelFile};
use lynx_gpu::models::session::Storing;
use lynx_gpu::models::session::observe::Moment;
use lynx_gpu::models::weights::WeightSource;
use lynx_gpu::quant::imatrix;
use lynx_gpu::quant::model::Calibration;
use lynx_gpu::quant::scheme::{Recipe, Scheme};
use std::sync::Arc;

/// Rows of 256 numbers, which are whole blocks of every format; grouped heads and a head of its own.
fn wide() -> ModelConfig {
    ModelConfig::Llama(LlamaConfig {
        layers: 1,
        heads: 4,
        kv_heads: 2,
        width: 256,
        ff_width: 256,
        tied_head: false,
        context: 16,
        vocab_size: 259,
        ..LlamaConfig::default()
    })
}

fn chunks(context: usize) -> Vec<Vec<u32>> {
    (0..4).map(|c| (0..context).map(|t| (c * 31 + t * t * 5 + 1) as u32 % 256).collect()).collect()
}

fn observed(config: &ModelConfig, source: &dyn WeightSource, moment: Moment) -> Calibration {
    let (time, storing) = (config.context(), Storing::default());
    let moments = session(config, source, Device::Cpu, storing).observe(&chunks(time), moment, &mut |_| true).unwrap();
    Calibration { moments, about: "numbers".into(), chunks: (4, time) }
}

/// The kernels read stored rows; the same model with those rows widened to f32 first gives the same logits.
#[test]
fn a_quantised_model_computes_what_its_numbers_say_on_every_device() {
    let config = wide();
    let source: Arc<dyn WeightSource> = Arc::new(Memory::random(&config, 5));
    let read = observed(&config, source.as_ref(), Moment::Products);
    let tokens = &chunks(16)[2];
    for device in devices() {
        for scheme in Scheme::ALL {
            let model = quantised(&config, &source, &Recipe::new(scheme), scheme.learns().then_some(&read));
            let logits = |widened: bool| {
                let storing = Storing { widened, ..Storing::default() };
                session(&config, &model, device.clone(), storing).next_logits(tokens).unwrap()
            };
            let (packed, wide) = (logits(false), logits(true));
            let largest = wide.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let off = packed.iter().zip(&wide).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            let (on, name) = (device.name(), scheme.name());
            assert!(largest > 0.1 && off <= 1e-5 * largest, "{name} on {on}: {off} of {largest}");
        }
    }
}

#[test]
fn moments_are_the_same_on_every_device_and_squares_are_their_diagonal() {
    let config = wide();
    let source = Memory::random(&config, 6);
    let want = {
        let mut s = session(&config, &source, Device::Reference, Storing::default());
        s.observe(&chunks(16), Moment::Products, &mut |_| true).unwrap()
    };
    // q, k and v share an input, gate and up another; o, down and the head have their own.
    let shared: Vec<usize> = want.iter().map(|m| m.matrices.len()).collect();
    assert_eq!(shared, [3, 1, 2, 1, 1]);
    for device in devices() {
        let mut s = session(&config, &source, device, Storing::default());
        let products = s.observe(&chunks(16), Moment::Products, &mut |_| true).unwrap();
        let squares = s.observe(&chunks(16), Moment::Squares, &mut |_| true).unwrap();
        for ((want, products), squares) in want.iter().zip(&products).zip(&squares) {
            assert_eq!((products.rows, &products.matrices), (64, &want.matrices));
            let close = |a: &[f64], b: &[f64]| {
                let largest = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * largest)
            };
            assert!(close(want.products.as_ref().unwrap(), products.products.as_ref().unwrap()));
            assert!(close(&want.squares, &squares.squares) && close(&want.squares, &products.squares));
        }
    }
    let mut s = session(&config, &source, Device::Cpu, Storing::default());
    assert!(s.observe(&[], Moment::Squares, &mut |_| true).is_err());
    assert!(s.observe(&[vec![1; 17]], Moment::Squares, &mut |_| true).is_err());
    assert!(s.observe(&[vec![1, 2], vec![1]], Moment::Squares, &mut |_| true).is_err());
    assert!(s.observe(&[vec![1, 9999]], Moment::Squares, &mut |_| true).is_err());
    assert!(s.observe(&chunks(16), Moment::Squares, &mut |_| false).is_err());
}

/// The bounds of phase 26 for int8 by rows and int4 by groups of 64, and GPTQ below rounding to the nearest, on a text of the corpus
/// that the model was not calibrated with.
#[test]
fn a_trained_model_loses_little_and_gptq_least() {
    let t = trained();
    let source: Arc<dyn WeightSource> = Arc::new(t.weights);
    let read = calibrated(&t.config, source.as_ref(), &t.tokenizer, &t.calibration);
    let score = |weights: &dyn WeightSource| {
        let mut s = common::session_with(&t.config, weights, t.tokenizer.clone(), Device::Cpu, Storing::default());
        perplexity(&mut s, &t.scored, None, 32, None, &mut |_, _| true).unwrap().perplexity
    };
    let plain = score(source.as_ref());
    let change = |scheme: Scheme| {
        let read = scheme.learns().then_some(&read);
        score(&quantised(&t.config, &source, &Recipe::new(scheme), read)) / plain - 1.0
    };
    let (row, tensor) = (change(Scheme::Nearest(Format::Int8Row)), change(Scheme::Int8Tensor));
    let (int4, gptq, awq) =
        (change(Scheme::Nearest(Format::Int4Group(64))), change(Scheme::Gptq(64)), change(Scheme::Awq(64)));
    let all = format!(
        "f32 {plain:.4}; int8-row {row:+.5}, int8-tensor {tensor:+.5}, int4 {int4:+.5}, gptq {gptq:+.5}, awq {awq:+.5}"
    );
    eprintln!("{all}");
    assert!(plain < 20.0, "it has learned something: {all}");
    assert!(row.abs() < 0.01 && tensor.abs() < 0.02, "{all}");
    assert!(int4.abs() < 0.05 && gptq < int4, "{all}");
    assert!(awq.abs() < 0.05, "{all}");
}

#[test]
fn every_scheme_is_written_and_read_back() {
    let config = wide();
    let source: Arc<dyn WeightSource> = Arc::new(Memory::random(&config, 7));
    let read = observed(&config, source.as_ref(), Moment::Products);
    let folder = tempfile::tempdir().unwrap();
    let tokens = &chunks(16)[1];
    for scheme in Scheme::ALL {
        let weights = quantised(&config, &source, &Recipe::new(scheme), scheme.learns().then_some(&read));
        let bytes = weights.bytes().0;
        let before = session(&config, &weights, Device::Cpu, Storing::default()).next_logits(tokens).unwrap();
        let model = ModelFile {
            config: config.clone(),
            tokenizer: common::byte_tokenizer(),
            chat_template: None,
            weights: Box::new(weights),
            origin: folder.path().join("model"),
            format: FileFormat::Checkpoint,
            notes: vec![],
        };
        let path = folder.path().join(format!("{}.gguf", scheme.name()));
        write(&model, &path, Target::Gguf, &WriteOptions::default()).unwrap();
        // The tensors are as many bytes as the formats' formulas say.
        let file = formats::gguf::File::open(&path).unwrap();
        let stored: u64 = file.tensors().iter().map(formats::gguf::Tensor::byte_len).sum();
        assert_eq!(stored, bytes, "{}", scheme.name());
        let back = files::open(&path).unwrap();
        let after = session(&back.config, back.weights.as_ref(), Device::Cpu, Storing::default());
        let after = { after }.next_logits(tokens).unwrap();
        let largest = before.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let off = before.iter().zip(&after).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= 1e-5 * largest, "{}: {off} of {largest}", scheme.name());
    }
}

#[test]
fn importance_is_written_read_and_used() {
    let config = wide();
    let source: Arc<dyn WeightSource> = Arc::new(Memory::random(&config, 8));
    let read = observed(&config, source.as_ref(), Moment::Squares);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("importance.gguf");
    assert_eq!(imatrix::write(&path, &config, &read).unwrap(), 8);
    let back = imatrix::read(&path, &config).unwrap();
    assert_eq!(back.chunks, (4, 16));
    let name = "model.layers.0.self_attn.k_proj.weight";
    let (a, b) = (read.of(name).unwrap().importance(), back.of(name).unwrap().importance());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs()));
    // Weights that are rounded for these inputs serve them better.
    for format in [Format::Q4_0, Format::Q4K, Format::Int4Group(64)] {
        let recipe = Recipe::new(Scheme::Nearest(format));
        let with = quantised(&config, &source, &recipe, Some(&back));
        let without = quantised(&config, &source, &recipe, None);
        let of = |model: &dyn WeightSource| common::weighted_error(&config, source.as_ref(), model, &read);
        assert!(of(&with) < of(&without), "{format}: {} {}", of(&with), of(&without));
    }
    // Another model's.
    let mut other = wide();
    if let ModelConfig::Llama(c) = &mut other {
        c.width = 128;
    }
    let said = imatrix::read(&path, &other).unwrap_err().to_string();
    assert!(said.contains("another model"), "{said}");
    let said = imatrix::read(&folder.path().join("none.gguf"), &config).unwrap_err().to_string();
    assert!(said.contains("none.gguf"), "{said}");
}
