//! Keys and values kept between runs: the slots of the cache, token by token the same texts as without it, its bytes, and decoding in
//! time that grows with the text by a straight line.

use lynx_gpu::config::{GptConfig, Init, LlamaConfig, ModelConfig, OptimizerConfig};
use lynx_gpu::data::rng::SplitMix64;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::device::{Device, Executable, Store};
use lynx_gpu::graph::Plan;
use lynx_gpu::infer::{NextToken, most_likely};
use lynx_gpu::models::session::graphs;
use lynx_gpu::models::session::kept::{Keeping, Wants, WhenFull};
use lynx_gpu::models::{LanguageModel, Session, setup};
use lynx_gpu::nn::{CacheShape, PLACE, POSITIONS, Parameter, StoredMatrices};
use lynx_gpu::tensor::{DType, HostTensor, TensorType};
use lynx_gpu::tokenizer::{CharTokenizer, SpecialTokens, Tokenizer};
use lynx_gpu::train::model::{ModelState, NamedTensor, TensorData, TrainModel};
use std::time::Instant;

const VOCABULARY: usize = 65;
const SEED: u64 = 5;

fn gpu() -> Option<Device> {
    let gpu = Context::adapters().into_iter().next();
    if gpu.is_none() && std::env::var_os("LYNX_REQUIRE_GPU").is_some() {
        panic!("LYNX_REQUIRE_GPU is set and there is no GPU");
    }
    gpu.map(|a| Device::Gpu(Context::open(&a, Options::default()).unwrap()))
}

fn tokenizer() -> Tokenizer {
    let characters = (0..VOCABULARY as u32).map(|i| char::from_u32(33 + i).unwrap()).collect();
    Tokenizer::Char(CharTokenizer::new(characters, SpecialTokens::none()).unwrap())
}

fn llama(context: usize) -> ModelConfig {
    ModelConfig::Llama(LlamaConfig {
        layers: 2,
        heads: 4,
        kv_heads: 2,
        width: 32,
        ff_width: 96,
        context,
        vocab_size: VOCABULARY,
        tied_head: false,
        ..LlamaConfig::default()
    })
}

fn gpt(context: usize) -> ModelConfig {
    ModelConfig::Gpt(GptConfig {
        layers: 2,
        heads: 4,
        kv_heads: 0,
        width: 32,
        context,
        vocab_size: VOCABULARY,
        init: Init::Gpt2,
        // With a tied head every token says itself again.
        tied_head: false,
        ..GptConfig::default()
    })
}

/// Weights under which attention matters, unlike those that training starts from: elements of a matrix are of size 1 / sqrt(columns), of
/// an embedding 1, so that queries, keys and scores are of size one.
fn weights(model: &dyn LanguageModel) -> Vec<(String, HostTensor)> {
    let scaled = |p: &Parameter| {
        let start = p.initial(SEED);
        let values = start.as_f32().unwrap();
        let size = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        let want = match p.shape[..] {
            [_, columns] if !p.name.contains("embed") => (columns as f32).powf(-0.5),
            _ => 1.0,
        };
        let factor = if size > 0.0 { want / size } else { 1.0 };
        (p.name.clone(), HostTensor::f32(&p.shape, values.iter().map(|v| v * factor).collect()))
    };
    model.parameters().unwrap().iter().map(scaled).collect()
}

fn session(config: &ModelConfig, device: &Device) -> Session {
    let model = setup::model(config).unwrap();
    let named = |(name, tensor): (String, HostTensor)| NamedTensor {
        name,
        data: TensorData::F32(tensor.as_f32().unwrap().to_vec()),
        shape: tensor.shape,
    };
    let weights = weights(model.as_ref()).into_iter().map(named).collect();
    let mut session =
        Session::for_inference(model, tokenizer(), OptimizerConfig::default(), device.clone(), SEED).unwrap();
    session.load_state(ModelState { weights, optimizer: vec![] }).unwrap();
    session
}

fn without_cache(config: &ModelConfig, device: &Device) -> Session {
    let mut session = session(config, device);
    session.keep(Keeping { off: true, ..Keeping::default() }).unwrap();
    session
}

fn random(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = SplitMix64::new(seed);
    (0..n).map(|_| rng.below(VOCABULARY as u64) as u32).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Twenty prompts of 1 to 3 tokens, twenty of 4 to 8, ten of 9 to 30.
fn prompts() -> Vec<Vec<u32>> {
    let mut rng = SplitMix64::new(9);
    let mut of = |from: u64, to: u64| from + rng.below(to - from + 1);
    let lengths: Vec<u64> = (0..50)
        .map(|i| {
            if i < 20 {
                of(1, 3)
            } else if i < 40 {
                of(4, 8)
            } else {
                of(9, 30)
            }
        })
        .collect();
    lengths.iter().enumerate().map(|(i, n)| random(*n as usize, 100 + i as u64)).collect()
}

/// Greedy tokens after a prompt, and how close the closest race for the first place was.
fn greedy(session: &mut Session, prompt: &[u32], tokens: usize) -> (Vec<u32>, f32) {
    session.restart().unwrap();
    let mut logits = session.advance(prompt).unwrap();
    let (mut made, mut closest) = (Vec::new(), f32::INFINITY);
    for _ in 0..tokens {
        let first = most_likely(&logits).unwrap();
        let second = logits.iter().enumerate().filter(|(i, _)| *i != first as usize).map(|(_, l)| *l);
        closest = closest.min(logits[first as usize] - second.fold(f32::NEG_INFINITY, f32::max));
        made.push(first);
        logits = session.advance(&[first]).unwrap();
    }
    (made, closest)
}

/// The texts of `count` prompts, one by one and four side by side, are those of reading everything again for each token.
fn texts_are_the_same(config: &ModelConfig, device: &Device, count: usize, tokens: usize) {
    let (mut kept, mut whole) = (session(config, device), without_cache(config, device));
    let prompts = &prompts()[50 - count..];
    let mut texts = Vec::new();
    let mut closest = f32::INFINITY;
    for prompt in prompts {
        let (text, gap) = greedy(&mut kept, prompt, tokens);
        assert_eq!(text, greedy(&mut whole, prompt, tokens).0, "{} after {prompt:?}", device.name());
        closest = closest.min(gap);
        texts.push(text);
    }
    // Were two tokens equal but for rounding, the comparison would be a matter of luck.
    assert!(closest > 2e-5, "the closest race was won by {closest}: take another seed");
    for (prompts, texts) in prompts.chunks(4).zip(texts.chunks(4)) {
        kept.begin(prompts.len()).unwrap();
        let mut rows = kept.advance_texts(prompts).unwrap();
        for step in 0..tokens {
            let next: Vec<Vec<u32>> = rows.iter().map(|row| vec![most_likely(row).unwrap()]).collect();
            let want: Vec<Vec<u32>> = texts.iter().map(|t| vec![t[step]]).collect();
            assert_eq!(next, want, "{}: token {step} of texts side by side", device.name());
            rows = kept.advance_texts(&next).unwrap();
        }
    }
}

#[test]
fn fifty_texts_of_64_tokens_are_the_same_with_and_without_a_cache_alone_and_in_fours() {
    texts_are_the_same(&llama(96), &Device::Cpu, 50, 64);
    texts_are_the_same(&gpt(96), &Device::Cpu, 50, 64);
}

#[test]
fn texts_on_a_gpu_are_the_same_with_and_without_a_cache() {
    let Some(device) = gpu() else { return };
    texts_are_the_same(&llama(64), &device, 4, 24);
    texts_are_the_same(&gpt(64), &device, 4, 24);
}

/// A plan with its cache in the open: what a session does, by hand.
struct Hand {
    run: Box<dyn Executable>,
    store: Store,
    states: Vec<(String, TensorType)>,
    shape: CacheShape,
    tokens: usize,
    /// Added to the slot that a token is written to, and to nothing else.
    shift: i32,
}

impl Hand {
    fn new(config: &ModelConfig, shape: CacheShape, tokens: usize) -> Self {
        let model = setup::model(config).unwrap();
        let none = StoredMatrices::default();
        let (graph, states) = graphs::kept(model.as_ref(), shape, tokens, Wants::Each, VOCABULARY, &none).unwrap();
        let mut store = Store::new(&Device::Cpu);
        let run = Plan::new(&graph).unwrap().prepare(&mut store).unwrap();
        weights(model.as_ref()).iter().for_each(|(name, values)| store.write(name, values).unwrap());
        Hand { run, store, states, shape, tokens, shift: 0 }
    }

    /// Reads `new` tokens of every text after `start[b]` of it: logits, text after text.
    fn read(&mut self, new: &[Vec<u32>], start: &[usize]) -> Vec<Vec<f32>> {
        let texts = self.shape.texts;
        let place = start.iter().zip(new).flat_map(|(s, n)| [*s as i32 + self.shift, n.len() as i32]).collect();
        let last = self.shape.capacity - 1;
        let positions = start.iter().flat_map(|s| (0..self.tokens).map(move |t| (s + t).min(last) as i32)).collect();
        let ids = new.iter().flat_map(|n| (0..self.tokens).map(|t| n.get(t).map_or(0, |id| *id as i32))).collect();
        self.run.write_input(PLACE, &HostTensor::i32(&[texts, 2], place)).unwrap();
        self.run.write_input(POSITIONS, &HostTensor::i32(&[texts, self.tokens], positions)).unwrap();
        self.run.write_input("tokens", &HostTensor::i32(&[texts, self.tokens], ids)).unwrap();
        self.run.run().unwrap();
        let all = self.run.read_output("logits").unwrap();
        all.as_f32().unwrap().chunks(VOCABULARY).map(<[f32]>::to_vec).collect()
    }

    /// The cache variable number `i` as [texts * heads][slots][d].
    fn slots(&self, i: usize) -> Vec<Vec<Vec<f64>>> {
        let (name, ty) = &self.states[i];
        let values = self.store.read(name).unwrap().to_f64().data;
        let (slots, d) = (ty.shape[2], ty.shape[3]);
        values.chunks(slots * d).map(|h| h.chunks(d).map(<[f64]>::to_vec).collect()).collect()
    }
}

fn shape(texts: usize, capacity: usize, longest: usize) -> CacheShape {
    CacheShape { texts, capacity, longest, storage: DType::F32 }
}

#[test]
fn every_layer_has_keys_and_values_of_texts_heads_slots_and_head_width() {
    let config = ModelConfig::Llama(LlamaConfig {
        layers: 4,
        heads: 4,
        kv_heads: 4,
        width: 128,
        context: 128,
        vocab_size: VOCABULARY,
        ..LlamaConfig::default()
    });
    let hand = Hand::new(&config, shape(2, 128, 1), 1);
    assert_eq!(hand.states.len(), 8);
    assert!(hand.states.iter().all(|(_, ty)| ty.shape == [2, 4, 128, 32]), "{:?}", hand.states);
}

#[test]
fn tokens_fill_slots_in_order_and_nothing_else_is_touched() {
    let mut hand = Hand::new(&llama(16), shape(2, 16, 1), 1);
    let text = random(5, 1);
    for (t, id) in text.iter().enumerate() {
        // The second text is read one token less.
        let second = if t < 4 { vec![*id] } else { vec![] };
        hand.read(&[vec![*id], second], &[t, t.min(4)]);
    }
    for i in 0..hand.states.len() {
        for (row, slots) in hand.slots(i).iter().enumerate() {
            let filled = if row < 2 { 5 } else { 4 };
            let written: Vec<bool> = slots.iter().map(|s| s.iter().any(|v| *v != 0.0)).collect();
            let want: Vec<bool> = (0..16).map(|t| t < filled).collect();
            assert_eq!(written, want, "{} row {row}", hand.states[i].0);
        }
        // Both texts begin with the same four tokens: the same bits.
        let slots = hand.slots(i);
        assert_eq!((&slots[0][..4], &slots[1][..4]), (&slots[2][..4], &slots[3][..4]));
    }
    // Layers do not share: keys of one are not those of another.
    let (first, second) = (hand.slots(0), hand.slots(2));
    assert!(first[0][0] != second[0][0]);
}

/// A slot that was written once is not written again, and holds what reading the whole text at once puts there.
#[test]
fn slots_hold_what_reading_the_whole_text_at_once_gives() {
    let text = random(12, 2);
    let mut steps = Hand::new(&gpt(16), shape(1, 16, 1), 1);
    let mut whole = Hand::new(&gpt(16), shape(1, 16, 16), 16);
    let mut before: Vec<Vec<Vec<Vec<f64>>>> = Vec::new();
    for (t, id) in text.iter().enumerate() {
        steps.read(&[vec![*id]], &[t]);
        let now: Vec<_> = (0..steps.states.len()).map(|i| steps.slots(i)).collect();
        for (old, new) in before.iter().zip(&now) {
            for (old, new) in old.iter().zip(new) {
                assert_eq!(old[..t], new[..t], "token {t} changed what was kept");
            }
        }
        before = now;
    }
    whole.read(std::slice::from_ref(&text), &[0]);
    for i in 0..steps.states.len() {
        for (a, b) in steps.slots(i).iter().zip(whole.slots(i)) {
            for (a, b) in a[..12].iter().flatten().zip(b[..12].iter().flatten()) {
                assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{}: {a} against {b}", steps.states[i].0);
            }
        }
    }
}

#[test]
fn slots_beyond_the_text_are_never_looked_at() {
    let text = random(9, 3);
    let mut hand = Hand::new(&llama(16), shape(1, 16, 1), 1);
    let mut clean = Vec::new();
    for (t, id) in text.iter().enumerate() {
        clean.push(hand.read(&[vec![*id]], &[t]));
    }
    for (name, ty) in &hand.states {
        hand.store.write(name, &HostTensor::f32(&ty.shape, vec![1e30; ty.elements()])).unwrap();
    }
    // From the start again: every slot is garbage until it is written. Nothing was cleared.
    for (t, id) in text.iter().enumerate() {
        assert_eq!(hand.read(&[vec![*id]], &[t]), clean[t], "token {t}");
    }
}

#[test]
fn what_other_texts_say_does_not_change_a_text() {
    let mut hand = Hand::new(&llama(16), shape(3, 16, 4), 4);
    let own = random(4, 4);
    let mut read = |a: u64, b: u64| hand.read(&[random(3, a), own.clone(), random(4, b)], &[0, 0, 0])[4..8].to_vec();
    let first = read(10, 11);
    assert_eq!(first, read(12, 13));
}

#[test]
fn a_text_that_is_begun_again_is_the_text_of_a_fresh_session() {
    for config in [llama(32), gpt(32)] {
        let (mut a, mut b) = (session(&config, &Device::Cpu), session(&config, &Device::Cpu));
        let text = random(20, 6);
        assert_eq!(a.position(), 0);
        a.advance(&random(31, 7)).unwrap();
        a.restart().unwrap();
        assert_eq!(a.position(), 0);
        for id in &text[..5] {
            assert_eq!(a.advance(&[*id]).unwrap(), b.advance(&[*id]).unwrap());
        }
        assert_eq!(a.position(), 5);
        assert_eq!(a.advance(&text[5..]).unwrap(), b.advance(&text[5..]).unwrap());
    }
}

/// With the token written one slot too far, it does not see itself: within 100 tokens the text must be another one. The same plan without
/// the shift gives the session's text.
#[test]
fn a_cache_that_is_off_by_one_does_not_go_unnoticed() {
    for config in [llama(128), gpt(128)] {
        let prompt = random(4, 8);
        let want = greedy(&mut session(&config, &Device::Cpu), &prompt, 100).0;
        let by_hand = |shift: i32| -> Vec<u32> {
            let mut hand = Hand::new(&config, shape(1, 128, 1), 1);
            hand.shift = shift;
            let (mut text, mut made) = (prompt.clone(), Vec::new());
            for t in 0..prompt.len() + 99 {
                let logits = hand.read(&[vec![text[t]]], &[t]);
                if t + 1 >= prompt.len() {
                    made.push(most_likely(&logits[0]).unwrap());
                    text.extend(made.last());
                }
            }
            made
        };
        assert_eq!(by_hand(0), want);
        assert_ne!(by_hand(1), want);
    }
}

/// 2 layers kv_heads slots head_dim texts elements, and an f32 for every vector of int8; what is declared adds up to the same.
#[test]
fn the_bytes_of_a_cache_are_those_of_the_formula() {
    let model = |kv_heads: usize, window: usize, period: usize| LlamaConfig {
        layers: 3,
        heads: 8,
        kv_heads,
        width: 64,
        window,
        window_period: period,
        context: 100,
        vocab_size: VOCABULARY,
        ..LlamaConfig::default()
    };
    for (kv_heads, window, period) in [(8, 0, 0), (2, 0, 0), (1, 0, 0), (4, 10, 0), (4, 10, 3)] {
        for (storage, element, scale) in [(DType::F32, 4, 0), (DType::F16, 2, 0), (DType::I8, 1, 4)] {
            for texts in [1, 4] {
                let mut session = session(&ModelConfig::Llama(model(kv_heads, window, period)), &Device::Cpu);
                session.keep(Keeping { context: Some(90), storage, ..Keeping::default() }).unwrap();
                session.begin(texts).unwrap();
                session.advance_texts(&vec![vec![1, 2, 3]; texts]).unwrap();
                // A window of 10 has room for what one run adds: at most 64 tokens, the longest segment below 90.
                let slots: usize = (1..=3)
                    .map(|layer| if window > 0 && (period == 0 || layer % period != 0) { 10 + 63 } else { 90 })
                    .sum();
                let want = (2 * slots * kv_heads * texts * (8 * element + scale)) as u64;
                assert_eq!(
                    session.cache_bytes(),
                    want,
                    "{kv_heads} heads, window {window}/{period}, {storage}, {texts}"
                );
                let declared: u64 = session.cache_variables().iter().map(|(_, ty)| ty.bytes()).sum();
                assert_eq!(declared, want);
                assert!(session.cache_variables().iter().any(|(_, ty)| ty.dtype == storage));
            }
        }
    }
}

/// What storage rounds: 2^-11 of an element in f16, half a step of max|x| / 127 in int8. A layer's output, a mean of values, moves by e of
/// the largest value for the rounding of values and by 2 e |score| for that of keys, as weights move by twice what scores do; scores are
/// of size one here and few reach four. Two layers, of outputs as large as the residual stream they are added to: 2 (1 + 2 x 4) e.
#[test]
fn keys_and_values_in_f16_and_int8_move_logits_by_their_rounding() {
    for config in [llama(96), gpt(96)] {
        let text = random(80, 12);
        let read = |storage: DType| -> Vec<Vec<f32>> {
            let mut session = session(&config, &Device::Cpu);
            session.keep(Keeping { storage, ..Keeping::default() }).unwrap();
            let mut rows = session.advance_each(&text[..50]).unwrap();
            rows.extend(text[50..].iter().map(|id| session.advance(&[*id]).unwrap()));
            rows
        };
        let exact = read(DType::F32);
        let mut before = 0.0;
        for (storage, rounding) in [(DType::F16, 0.5f32.powi(11)), (DType::I8, 0.5 / 127.0)] {
            let off = read(storage).iter().zip(&exact).map(|(a, b)| worst(a, b) / largest(b)).fold(0f32, f32::max);
            assert!(off <= 18.0 * rounding, "{storage}: {off} of the largest logit");
            assert!(off > before, "{storage} is finer than what is stored finer: {off}, {before}");
            before = off;
        }
    }
}

/// A text many times as long as the ring of a window, in pieces and one by one, against all of it in one run.
#[test]
fn texts_go_on_long_after_a_window_has_left_their_beginning() {
    let window = |window: usize| {
        let ModelConfig::Llama(config) = llama(400) else { unreachable!() };
        ModelConfig::Llama(LlamaConfig { window, ..config })
    };
    for w in [1, 7, 64] {
        let config = window(w);
        let mut kept = session(&config, &Device::Cpu);
        let mut whole = without_cache(&config, &Device::Cpu);
        let text = random(390, 13);
        let mut read = 0;
        for piece in [3, 64, 1, 1, 200, 17, 1, 90, 1, 1, 1] {
            let logits = kept.advance(&text[read..read + piece]).unwrap();
            read += piece;
            let want = whole.next_logits(&text[..read]).unwrap();
            let off = worst(&logits, &want);
            assert!(off <= 2e-5 * largest(&want).max(1.0), "window {w}: {off} after {read} tokens");
        }
    }
}

#[test]
fn a_text_goes_back_over_the_edge_of_a_window_too() {
    let ModelConfig::Llama(config) = llama(400) else { unreachable!() };
    for w in [0, 5] {
        let config = ModelConfig::Llama(LlamaConfig { window: w, ..config.clone() });
        let (mut a, mut b) = (session(&config, &Device::Cpu), session(&config, &Device::Cpu));
        let text = random(380, 14);
        a.advance(&text).unwrap();
        for length in [379, 300, 40, 1] {
            a.rewind(length).unwrap();
            assert_eq!(a.position(), length);
            let logits = a.advance(&[7]).unwrap();
            let want = b.next_logits(&[&text[..length as usize], &[7]].concat()).unwrap();
            let off = worst(&logits, &want);
            assert!(off <= 2e-5 * largest(&want).max(1.0), "window {w}, back to {length}: {off}");
            a.rewind(length).unwrap();
        }
        assert!(a.rewind(2).is_err());
        a.rewind(0).unwrap();
        assert_eq!(a.position(), 0);
        // Several steps back that are short each, and together longer than what a window's ring keeps.
        for steps in [&[250, 40][..], &[300, 200, 100, 20], &[379, 130, 126]] {
            a.restart().unwrap();
            a.advance(&text).unwrap();
            steps.iter().for_each(|length| a.rewind(*length).unwrap());
            let logits = a.advance(&[7]).unwrap();
            let last = steps[steps.len() - 1] as usize;
            let want = b.next_logits(&[&text[..last], &[7]].concat()).unwrap();
            let off = worst(&logits, &want);
            assert!(off <= 2e-5 * largest(&want).max(1.0), "window {w}, back by {steps:?}: {off}");
        }
    }
}

#[test]
fn of_a_prompt_that_is_too_long_the_newest_tokens_are_read_with_a_cache_as_without() {
    let config = llama(48);
    let (mut a, mut b) = (session(&config, &Device::Cpu), session(&config, &Device::Cpu));
    for length in [48, 49, 130] {
        let text = random(length, 3);
        a.restart().unwrap();
        let off = worst(&a.advance(&text).unwrap(), &b.next_logits(&text).unwrap());
        assert!(off <= 2e-5, "{length} tokens: {off}");
    }
}

#[test]
fn a_full_cache_that_shall_not_forget_refuses_what_does_not_fit() {
    use lynx_gpu::infer::{Finish, Options, Sampling, batch, continue_text, speculative};
    let config = llama(48);
    let stop = |context: usize| {
        let mut session = session(&config, &Device::Cpu);
        session.keep(Keeping { context: Some(context), when_full: WhenFull::Stop, ..Keeping::default() }).unwrap();
        session
    };
    let text = random(49, 3);
    let (mut full, mut forgetful) = (stop(40), session(&config, &Device::Cpu));
    full.advance(&text[..30]).unwrap();
    assert_eq!((full.room(), full.position()), (10, 30));
    for more in [11, 19] {
        let refused = [
            full.advance(&text[30..30 + more]).map(|_| ()),
            full.advance_each(&text[30..30 + more]).map(|_| ()),
            full.advance_greedy(&text[30..30 + more]).map(|_| ()),
        ];
        for refused in refused {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("context of 40 tokens is full") && message.contains("30 are read"), "{message}");
        }
    }
    // What was refused changed nothing, and what fits goes on as ever.
    forgetful.advance(&text[..30]).unwrap();
    let off = worst(&full.advance(&text[30..40]).unwrap(), &forgetful.advance(&text[30..40]).unwrap());
    assert!(off <= 1e-6 && full.room() == 0, "{off}");
    full.rewind(35).unwrap();
    assert_eq!(full.room(), 5);

    // Texts end where there is no room: the last token is not read any more.
    let options = Options { ignore_ends: true, ..Options::new(100, Sampling::greedy()) };
    full.restart().unwrap();
    let plain = continue_text(&mut full, &text[..30], &options, &mut |_| true).unwrap();
    assert_eq!((plain.tokens.len(), plain.finish), (11, Finish::Length));
    forgetful.restart().unwrap();
    let longer = continue_text(&mut forgetful, &text[..30], &options, &mut |_| true).unwrap();
    assert_eq!(plain.tokens[..], longer.tokens[..11]);
    full.restart().unwrap();
    let draft = speculative::Draft::Text { longest: 2 };
    let (drafted, _) = speculative::continue_text(&mut full, draft, &text[..30], &options, 4, &mut |_| true).unwrap();
    assert_eq!(drafted.tokens, plain.tokens);
    let prompts = [text[..30].to_vec(), text[..12].to_vec()];
    let texts = batch(&mut full, &prompts, &options, 2, &mut |_, _| Ok(())).unwrap();
    assert_eq!(texts[0].tokens, plain.tokens);
    assert!(continue_text(&mut stop(20), &text[..21], &options, &mut |_| true).is_err());
}

/// R^2 of the least-squares line through the points.
fn straightness(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let of = |f: &dyn Fn(f64, f64) -> f64| points.iter().map(|p| f(p.0 - x, p.1 - y)).sum::<f64>();
    let slope = of(&|a, b| a * b) / of(&|a, _| a * a);
    (1.0 - of(&|a, b| (b - slope * a).powi(2)) / of(&|_, b| b * b), slope)
}

/// The best time at each length over rounds that visit all of them: other programs only ever add to a time, and one that is busy for
/// some seconds then slows every length alike. One thread, so that the team's size and its thresholds are no part of the curve.
#[test]
fn the_time_of_a_token_grows_with_the_text_by_a_straight_line() {
    let config = ModelConfig::Llama(LlamaConfig {
        layers: 1,
        heads: 8,
        width: 256,
        ff_width: 64,
        context: 4096,
        vocab_size: VOCABULARY,
        ..LlamaConfig::default()
    });
    let text = random(4095, 15);
    let mut points: Vec<(f64, f64)> =
        (512..=4088).step_by(447).map(|length| (f64::from(length), f64::INFINITY)).collect();
    let (r2, slope) = kernels_cpu::threads::with_threads(1, || {
        let mut session = session(&config, &Device::Cpu);
        let mut line = (0.0, 0.0);
        for round in 0..60 {
            session.advance(&text[session.position() as usize..4088]).unwrap();
            for (length, best) in points.iter_mut().rev() {
                let length = *length as usize;
                session.rewind(length as u64).unwrap();
                for _ in 0..15 {
                    let begun = Instant::now();
                    session.advance(&text[length..length + 1]).unwrap();
                    *best = best.min(begun.elapsed().as_secs_f64() * 1e6);
                    session.rewind(length as u64).unwrap();
                }
            }
            line = straightness(&points);
            if round >= 2 && line.0 >= 0.95 {
                break;
            }
        }
        line
    });
    assert!(r2 >= 0.95 && slope > 0.0, "R^2 {r2}, {slope} us a token of context: {points:?}");
    eprintln!("{slope:.4} us a token of context, R^2 {r2:.4}");
}

#[test]
fn speculation_gives_the_text_of_plain_generation_beyond_the_context_too() {
    use lynx_gpu::infer::speculative::{self, Draft};
    use lynx_gpu::infer::{Options, Sampling, continue_text};
    for window in [0, 5] {
        let ModelConfig::Llama(config) = llama(48) else { unreachable!() };
        let config = ModelConfig::Llama(LlamaConfig { window, ..config });
        let (mut plain, mut target) = (session(&config, &Device::Cpu), session(&config, &Device::Cpu));
        let prompt = random(20, 5);
        for sampling in [Sampling::greedy(), Sampling { seed: 9, temperature: 0.3, ..Sampling::default() }] {
            let options = Options { ignore_ends: true, ..Options::new(120, sampling.clone()) };
            plain.restart().unwrap();
            let want = continue_text(&mut plain, &prompt, &options, &mut |_| true).unwrap();
            for ahead in [3, 60] {
                target.restart().unwrap();
                let draft = Draft::Text { longest: 2 };
                let (made, _) =
                    speculative::continue_text(&mut target, draft, &prompt, &options, ahead, &mut |_| true).unwrap();
                assert_eq!(made.tokens, want.tokens, "window {window}, {ahead} ahead");
                if sampling == Sampling::greedy() {
                    target.restart().unwrap();
                    let mut model = session(&config, &Device::Cpu);
                    let draft = Draft::Model(&mut model);
                    let (made, acceptance) =
                        speculative::continue_text(&mut target, draft, &prompt, &options, ahead, &mut |_| true)
                            .unwrap();
                    assert_eq!(made.tokens, want.tokens, "window {window}, {ahead} ahead, the model itself");
                    assert!(acceptance.accepted > 10, "{acceptance:?}");
                }
            }
        }
    }
}
