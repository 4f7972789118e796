//! What the tests of model files share.

use half::{bf16, f16};
use lynx_gpu::config::OptimizerConfig;
use lynx_gpu::device::Device;
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::files::ModelFile;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::train::model::{ModelState, NamedTensor, TrainModel};
use std::path::{Path, PathBuf};

/// Logits are kept after every so manieth token.
pub const STRIDE: usize = 5;

/// Models with weights of their own.
pub const WHOLE: [&str; 7] = ["llama", "llama-biases", "mistral", "qwen2", "gemma", "gemma2", "gpt2"];
/// Models that have another's weights and a config.json of their own.
pub const VARIANTS: [&str; 7] = [
    "llama-linear",
    "llama-dynamic",
    "llama-yarn",
    "llama-yarn-scaled",
    "llama-llama3",
    "gemma2-plain",
    "qwen2-windowed",
];

pub fn every() -> impl Iterator<Item = &'static str> {
    WHOLE.into_iter().chain(VARIANTS)
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model_files")
}

/// A copy of a fixture under `into`, whole even where it shares another's weights.
pub fn fixture(name: &str, into: &Path) -> PathBuf {
    let (from, to) = (fixtures().join(name), into.join(name));
    std::fs::create_dir_all(&to).unwrap();
    let like = std::fs::read_to_string(from.join("like.json")).ok().map(|text| {
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        fixtures().join(value["like"].as_str().unwrap())
    });
    for folder in like.into_iter().chain([from]) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    to
}

/// Prompt and expected logits, one row after every `STRIDE`-th token.
pub fn golden(name: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let bytes = std::fs::read(fixtures().join("logits.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words = |key: String| -> Vec<[u8; 4]> {
        file.tensor(&key).unwrap().data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
    };
    let ids = words(format!("{name}.ids")).into_iter().map(|b| i32::from_le_bytes(b) as u32).collect();
    let vocabulary = file.tensor(&format!("{name}.logits")).unwrap().shape()[1];
    let logits: Vec<f32> = words(format!("{name}.logits")).into_iter().map(f32::from_le_bytes).collect();
    (ids, logits.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect())
}

/// A weight as f32.
pub fn numbers(model: &ModelFile, name: &str) -> Vec<f32> {
    let stored = model.weights.find(name).unwrap_or_else(|| panic!("no {name}"));
    let mut bytes = vec![0; stored.bytes().unwrap()];
    model.weights.read(name, &mut bytes).unwrap();
    use kernels_cpu::blocks::Format;
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match stored.format {
        Format::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Format::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Format::Bf16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        other => panic!("{name} is {other}"),
    }
}

/// The logits after every `STRIDE`-th token, and the worst difference from `expected` in units of the largest logit.
pub fn worst(model: &ModelFile, device: Device, ids: &[u32], expected: &[Vec<f32>]) -> f32 {
    let built = setup::model(&model.config).unwrap();
    let parameters = built.parameters().unwrap();
    let mut session =
        Session::for_inference(built, model.tokenizer.clone(), OptimizerConfig::default(), device, 1).unwrap();
    let weights = parameters.iter().map(|p| NamedTensor::f32(&p.name, &p.shape, numbers(model, &p.name))).collect();
    session.load_state(ModelState { weights, optimizer: vec![] }).unwrap();
    let mut worst = 0.0f32;
    for (row, expected) in expected.iter().enumerate() {
        let logits = session.next_logits(&ids[..(row + 1) * STRIDE]).unwrap();
        assert_eq!(logits.len(), expected.len());
        let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (a, b) in logits.iter().zip(expected) {
            worst = worst.max((a - b).abs() / largest);
        }
    }
    worst
}
