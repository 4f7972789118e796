//! What the tests of model files share.

use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::files::ModelFile;
use lynx_gpu::models::session::Storing;
use lynx_gpu::models::{Session, setup};
use std::path::{Path, PathBuf};

/// Logits are kept after every so manieth token.
pub const STRIDE: usize = 5;

/// Models with weights of their own.
pub const WHOLE: [&str; 7] = ["llama", "llama-biases", "mistral", "qwen2", "gemma", "gemma2", "gpt2"];
/// Models that have another's weights and a config.json of their own.
pub const VARIANTS: [&str; 8] = [
    "llama-linear",
    "llama-dynamic",
    "llama-yarn",
    "llama-yarn-scaled",
    "llama-llama3",
    "gemma2-plain",
    "qwen2-windowed",
    "qwen2-late-windows",
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

/// Where models are run: the CPU, and a GPU if there is one.
pub fn devices() -> Vec<Device> {
    let gpu = Context::adapters().into_iter().next();
    if gpu.is_none() && std::env::var_os("LYNX_REQUIRE_GPU").is_some() {
        panic!("LYNX_REQUIRE_GPU is set and no GPU adapter was found");
    }
    let open = |a| Device::Gpu(Context::open(&a, Options::default()).expect("an adapter that is listed opens"));
    std::iter::once(Device::Cpu).chain(gpu.map(open)).collect()
}

pub fn session(model: &ModelFile, device: Device) -> Session {
    let built = setup::model(&model.config).unwrap();
    let source = model.weights.as_ref();
    Session::for_weights(built, model.tokenizer.clone(), device, source, Storing::default()).unwrap()
}

/// The worst difference of the logits after every `STRIDE`-th token from `expected`, in units of the largest logit: of those that are
/// computed with what is kept of the tokens before, and of the last without.
pub fn worst(model: &ModelFile, device: Device, ids: &[u32], expected: &[Vec<f32>]) -> f32 {
    let mut session = session(model, device);
    session.restart().unwrap();
    let each = session.advance_each(ids).unwrap();
    let found = each.into_iter().skip(STRIDE - 1).step_by(STRIDE);
    let alone = session.next_logits(&ids[..expected.len() * STRIDE]).unwrap();
    let last = expected.last().unwrap().clone();
    found.zip(expected.iter().cloned()).chain([(alone, last)]).map(|(a, b)| difference(&a, &b)).fold(0.0, f32::max)
}

/// The largest difference, in units of the largest of `b`.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f32::max)
}
