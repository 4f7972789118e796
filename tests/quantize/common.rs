//! Models to quantise.

use lynx_gpu::config::{Config, ModelConfig};
use lynx_gpu::data::Cache;
use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::models::session::Storing;
use lynx_gpu::models::session::observe::Moment;
use lynx_gpu::models::weights::{StoredWeight, WeightSource};
use lynx_gpu::models::{Session, setup};
use lynx_gpu::quant::model::{Calibration, Quantised, quantise_model, roles, widened};
use lynx_gpu::quant::scheme::{Recipe, Role};
use lynx_gpu::tokenizer::{ByteTokenizer, SpecialTokens, Tokenizer};
use lynx_gpu::train::data::Prepared;
use lynx_gpu::train::model::{StepInfo, TensorData, TrainModel};
use lynx_gpu::{Result, infer::NextToken};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn devices() -> Vec<Device> {
    let gpu = Context::adapters().into_iter().next();
    if gpu.is_none() && std::env::var_os("LYNX_REQUIRE_GPU").is_some() {
        panic!("LYNX_REQUIRE_GPU is set and there is no GPU");
    }
    let gpu = gpu.map(|a| Device::Gpu(Context::open(&a, Options::default()).unwrap()));
    std::iter::once(Device::Cpu).chain(gpu).collect()
}

/// Weights in memory.
pub struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Memory {
    /// Normal weights with gains near 1.
    pub fn random(config: &ModelConfig, seed: u64) -> Self {
        let mut all = BTreeMap::new();
        for (i, p) in setup::model(config).unwrap().parameters().unwrap().into_iter().enumerate() {
            let mut values = vec![0.0; p.elements()];
            kernels_cpu::philox::fill_normal(seed, i as u32, &mut values);
            let gain = p.shape.len() < 2;
            values.iter_mut().enumerate().for_each(|(n, v)| {
                *v = if gain { 1.0 + 0.3 * *v + if n % 17 == 2 { 6.0 } else { 0.0 } } else { 0.06 * *v };
            });
            all.insert(p.name, (p.shape, values));
        }
        Memory(all)
    }
}

impl WeightSource for Memory {
    fn find(&self, name: &str) -> Option<StoredWeight> {
        let format = kernels_cpu::blocks::Format::F32;
        self.0.get(name).map(|(shape, _)| StoredWeight { shape: shape.clone(), format })
    }
    fn read(&self, name: &str, into: &mut [u8]) -> Result<()> {
        into.iter_mut().zip(self.0[name].1.iter().flat_map(|v| v.to_le_bytes())).for_each(|(b, v)| *b = v);
        Ok(())
    }
    fn origin(&self) -> String {
        "memory".into()
    }
}

pub fn byte_tokenizer() -> Tokenizer {
    Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()))
}

pub fn session_with(
    config: &ModelConfig,
    source: &dyn WeightSource,
    tokenizer: Tokenizer,
    device: Device,
    storing: Storing,
) -> Session {
    Session::for_weights(setup::model(config).unwrap(), tokenizer, device, source, storing).unwrap()
}

pub fn session(config: &ModelConfig, source: &dyn WeightSource, device: Device, storing: Storing) -> Session {
    session_with(config, source, byte_tokenizer(), device, storing)
}

pub fn quantised(
    config: &ModelConfig,
    source: &Arc<dyn WeightSource>,
    recipe: &Recipe,
    read: Option<&Calibration>,
) -> Quantised {
    let model = setup::model(config).unwrap();
    quantise_model(model.as_ref(), config, source, recipe, read, &mut |_| true).unwrap()
}

/// A model that has learned the verb corpus a little, tokens of the corpus to calibrate with, and others to score.
pub struct Trained {
    pub config: ModelConfig,
    pub tokenizer: Tokenizer,
    pub weights: Memory,
    pub calibration: Vec<u32>,
    pub scored: Vec<u32>,
}

pub fn trained() -> Trained {
    let sets = ["train.batch_size=16", "data.batching=packed", "train.eval_interval=0"].map(String::from);
    let mut config = Config::load("minigpt-llama", &sets).unwrap().0;
    let data = Prepared::new(&mut config, None, &Cache::disabled()).unwrap();
    let mut session = setup::training_session(&config, &data.tokenizer, Device::Cpu).unwrap();
    let mut batches = data.train_batches(&config).unwrap();
    for step in 1..=200 {
        let batch = batches.next_batch();
        let info =
            StepInfo { step, lr: 4e-3 * (1.0 - step as f64 / 220.0), seed: 1, target_tokens: batch.scored() as u64 };
        session.train_step(&[batch], &info).unwrap();
    }
    let mut tokens = |count: usize| -> Vec<u32> {
        let next = |_| batches.next_batch().inputs.iter().map(|t| *t as u32).collect::<Vec<_>>();
        (0..count).flat_map(next).collect()
    };
    let (calibration, scored) = (tokens(4), tokens(12));
    let shapes: BTreeMap<String, Vec<usize>> =
        session.parameters().iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    let state = session.state().unwrap();
    let weights = state.weights.into_iter().map(|t| match t.data {
        TensorData::F32(values) => (t.name.clone(), (shapes[&t.name].clone(), values)),
        other => panic!("{} is {other:?}", t.name),
    });
    let weights = Memory(weights.collect());
    Trained { config: config.model, tokenizer: data.tokenizer, weights, calibration, scored }
}

/// Second moments on chunks of the model's context.
pub fn calibrated(
    config: &ModelConfig,
    source: &dyn WeightSource,
    tokenizer: &Tokenizer,
    tokens: &[u32],
) -> Calibration {
    let mut s = session_with(config, source, tokenizer.clone(), Device::Cpu, Storing::default());
    let time = NextToken::context(&s);
    let chunks: Vec<Vec<u32>> = tokens.chunks_exact(time).map(<[u32]>::to_vec).collect();
    let moments = s.observe(&chunks, Moment::Products, &mut |_| true).unwrap();
    Calibration { moments, about: "the corpus".into(), chunks: (chunks.len(), time) }
}

/// Squared errors of all matrices, each column weighted by the mean square of its input.
pub fn weighted_error(config: &ModelConfig, a: &dyn WeightSource, b: &dyn WeightSource, read: &Calibration) -> f64 {
    let mut sum = 0.0;
    for (p, role) in roles(setup::model(config).unwrap().as_ref()).unwrap() {
        let (true, Some(moments)) = (role == Role::Matrix, read.of(&p.name)) else { continue };
        let (x, y) = (widened(a, &p).unwrap().1, widened(b, &p).unwrap().1);
        let h = moments.importance();
        let off = |i: usize| f64::from(h[i % h.len()]) * f64::from(x[i] - y[i]).powi(2);
        sum += (0..x.len()).map(off).sum::<f64>();
    }
    sum
}
