use super::*;
use crate::config::LlamaConfig;
use crate::device::Device;
use crate::infer::NextToken;
use crate::models::session::Storing;
use crate::models::session::observe::Moment;
use crate::models::{Session, setup};
use crate::tokenizer::{ByteTokenizer, SpecialTokens, Tokenizer};

/// Weights in memory.
struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl WeightSource for Memory {
    fn find(&self, name: &str) -> Option<StoredWeight> {
        self.0.get(name).map(|(shape, _)| StoredWeight { shape: shape.clone(), format: Format::F32 })
    }
    fn read(&self, name: &str, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(bytemuck::cast_slice(&self.0[name].1));
        Ok(())
    }
    fn origin(&self) -> String {
        "memory".into()
    }
}

/// Every option that folding meets: gains less 1, norms after the branches, biases, shared value heads, a head of its own.
fn config() -> ModelConfig {
    ModelConfig::Llama(LlamaConfig {
        layers: 2,
        heads: 4,
        kv_heads: 2,
        width: 64,
        ff_width: 128,
        norm_plus_one: true,
        post_norms: true,
        qkv_bias: true,
        output_bias: true,
        ff_bias: true,
        tied_head: false,
        context: 24,
        vocab_size: 259,
        ..LlamaConfig::default()
    })
}

fn tokenizer() -> Tokenizer {
    Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()))
}

/// Random weights, some columns of which meet large inputs.
fn weights(config: &ModelConfig) -> Memory {
    let model = setup::model(config).unwrap();
    let mut all = BTreeMap::new();
    for (i, (p, role)) in roles(model.as_ref()).unwrap().into_iter().enumerate() {
        let mut values = vec![0.0; p.elements()];
        kernels_cpu::philox::fill_normal(9, i as u32, &mut values);
        let scale = if role == Role::Other { 0.2 } else { 0.1 };
        values.iter_mut().enumerate().for_each(|(n, v)| {
            *v *= scale * if role == Role::Other && n % 13 == 3 { 12.0 } else { 1.0 };
        });
        all.insert(p.name, (p.shape, values));
    }
    Memory(all)
}

fn session(config: &ModelConfig, source: &dyn WeightSource) -> Session {
    let model = setup::model(config).unwrap();
    Session::for_weights(model, tokenizer(), Device::Cpu, source, Storing::default()).unwrap()
}

fn text() -> Vec<Vec<u32>> {
    (0..6).map(|c| (0..24).map(|t| (c * 37 + t * t * 7) as u32 % 256).collect()).collect()
}

fn calibration(config: &ModelConfig, source: &dyn WeightSource) -> Calibration {
    let moments = session(config, source).observe(&text(), Moment::Products, &mut |_| true).unwrap();
    Calibration { moments, about: "numbers".into(), chunks: (6, 24) }
}

fn recipe(scheme: Scheme) -> Recipe {
    Recipe::new(scheme)
}

#[test]
fn weights_are_told_apart_by_what_the_model_does_with_them() {
    let roles = roles(setup::model(&config()).unwrap().as_ref()).unwrap();
    let of = |name: &str| roles.iter().find(|(p, _)| p.name == name).unwrap().1;
    assert_eq!(of("model.embed_tokens.weight"), Role::Embedding);
    assert_eq!(of("lm_head.weight"), Role::Head);
    assert_eq!(of("model.layers.1.mlp.down_proj.weight"), Role::Matrix);
    assert_eq!(of("model.layers.1.mlp.down_proj.bias"), Role::Other);
    assert_eq!(of("model.norm.weight"), Role::Other);
    assert_eq!(roles.iter().filter(|(_, r)| *r == Role::Matrix).count(), 14);
}

/// Scaling alone, without rounding, is the same model.
#[test]
fn folded_factors_leave_the_model_as_it_is() {
    let config = config();
    let memory = weights(&config);
    let read = calibration(&config, &memory);
    let model = setup::model(&config).unwrap();
    let all = roles(model.as_ref()).unwrap();
    let found = factors(&config, &memory, &all, &recipe(Scheme::Awq(64)), &read).unwrap();
    assert!(found.columns.values().any(|(_, alpha)| *alpha > 0.0), "large inputs ask for scaling");
    assert_eq!(found.columns.len(), 15, "14 matrices and the head");
    let mut folded = BTreeMap::new();
    for (name, (shape, values)) in &memory.0 {
        let mut values = values.clone();
        found.fold(name, &mut values);
        let mut back = values.clone();
        found.unfold(name, &mut back);
        assert!(back.iter().zip(&memory.0[name].1).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs())), "{name}");
        folded.insert(name.clone(), (shape.clone(), values));
    }
    let folded = Memory(folded);
    let changed = memory.0.iter().filter(|(name, (_, v))| folded.0[*name].1 != *v).count();
    assert!(changed > 15, "{changed} weights are others");
    let tokens = &text()[1];
    let before = session(&config, &memory).next_logits(tokens).unwrap();
    let after = session(&config, &folded).next_logits(tokens).unwrap();
    let largest = before.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let off = before.iter().zip(&after).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= 2e-5 * largest, "{off} of {largest}");
}

fn total(changes: &[Change]) -> f64 {
    changes.iter().filter_map(|c| c.output_error).map(|e| e * e).sum()
}

#[test]
fn what_learned_from_a_text_loses_less_of_its_outputs() {
    let config = config();
    let source: Arc<dyn WeightSource> = Arc::new(weights(&config));
    let read = calibration(&config, source.as_ref());
    let model = setup::model(&config).unwrap();
    let make = |scheme: Scheme| {
        quantise_model(model.as_ref(), &config, &source, &recipe(scheme), Some(&read), &mut |_| true).unwrap()
    };
    let nearest = {
        // The calibration is only there to measure the outputs: plain rounding must not search its scales.
        let plain = quantise_model(
            model.as_ref(),
            &config,
            &source,
            &recipe(Scheme::Nearest(Format::Int4Group(64))),
            None,
            &mut |_| true,
        )
        .unwrap();
        let mut sum = 0.0;
        for (p, role) in roles(model.as_ref()).unwrap().iter().filter(|(_, r)| *r == Role::Matrix || *r == Role::Head) {
            let (_, a) = widened(source.as_ref(), p).unwrap();
            let (_, b) = widened(&plain, p).unwrap();
            assert_ne!(a, b, "{} {role:?}", p.name);
            sum += outputs(&a, &b, read.of(&p.name).unwrap()).powi(2);
        }
        sum
    };
    let (gptq, awq) = (make(Scheme::Gptq(64)), make(Scheme::Awq(64)));
    assert!(total(&gptq.changes) < 0.9 * nearest, "{} {nearest}", total(&gptq.changes));
    assert!(total(&awq.changes) < nearest, "{} {nearest}", total(&awq.changes));
    // Both are rows of the same format, and take what the formula says.
    assert_eq!(gptq.bytes().0, awq.bytes().0);
    let table = gptq.find("model.embed_tokens.weight").unwrap();
    assert_eq!(table.format, Format::F16, "tables of tokens are not quantised");
}

#[test]
fn only_what_was_asked_for_is_changed() {
    let config = config();
    let source: Arc<dyn WeightSource> = Arc::new(weights(&config));
    let model = setup::model(&config).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight".to_string();
    let only = Recipe { only: Some(vec![name.clone()]), ..recipe(Scheme::Nearest(Format::Q4_0)) };
    let done = quantise_model(model.as_ref(), &config, &source, &only, None, &mut |_| true).unwrap();
    let changed: Vec<&str> = done.changes.iter().filter(|c| c.error > 0.0).map(|c| c.name.as_str()).collect();
    assert_eq!(changed, [&name]);
    assert!(done.changes.iter().all(|c| c.to == if c.name == name { "q4_0" } else { "f32" }));
    let mut rows = vec![0; 2 * 36];
    done.read_rows(&name, 3..5, &mut rows).unwrap();
    let mut whole = vec![0; done.find(&name).unwrap().bytes().unwrap()];
    done.read(&name, &mut whole).unwrap();
    assert_eq!(rows, whole[3 * 36..5 * 36]);
    assert!(done.read_rows(&name, 127..129, &mut rows).is_err());
}

#[test]
fn what_cannot_be_quantised_is_refused_by_name() {
    let config = config();
    let mut memory = weights(&config);
    let model = setup::model(&config).unwrap();
    let run = |memory: Memory, scheme: Scheme| {
        let source: Arc<dyn WeightSource> = Arc::new(memory);
        quantise_model(model.as_ref(), &config, &source, &recipe(scheme), None, &mut |_| true)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(run(weights(&config), Scheme::Gptq(64)).contains("--calibrate"));
    memory.0.get_mut("model.layers.1.self_attn.q_proj.weight").unwrap().1[7] = f32::NAN;
    let said = run(memory, Scheme::Nearest(Format::Q8_0));
    assert!(said.contains("model.layers.1.self_attn.q_proj.weight") && said.contains("NaN"), "{said}");
    let mut large = weights(&config);
    large.0.get_mut("model.layers.1.self_attn.q_proj.weight").unwrap().1[7] = 1e30;
    let said = run(large, Scheme::Nearest(Format::Q8_0));
    assert!(said.contains("do not fit"), "{said}");
}
