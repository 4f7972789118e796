//! A real model, stories260K of the llama2.c project: its greedy text is that of the C program, its logits are those of PyTorch
//! (`stories/make.py` made the values and says how). The model is read from $LYNX_SHARED/data/models/stories260K.

use lynx_gpu::device::Device;
use lynx_gpu::device::gpu::{Context, Options};
use lynx_gpu::infer::{NextToken, beginning};
use lynx_gpu::models::files::{self, OpenOptions};
use lynx_gpu::models::session::Storing;
use lynx_gpu::models::session::kept::Keeping;
use lynx_gpu::models::{Session, setup};
use lynx_gpu::tokenizer::Tokenizer;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Counts and skips are printed whether or not the test passes: the test runner catches `println!`, not this.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

#[derive(serde::Deserialize)]
struct Golden {
    prompt: String,
    /// Without BOS.
    prompt_tokens: usize,
    /// After BOS, those of the prompt included.
    ids: Vec<u32>,
    /// Of the first 200 of them.
    text: String,
    whole: String,
    encodings: Vec<(String, Vec<u32>)>,
}

fn beside(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories").join(name)).unwrap()
}

fn golden() -> Golden {
    serde_json::from_slice(&beside("greedy.json")).unwrap()
}

fn folder() -> Option<PathBuf> {
    let shared = std::env::var_os("LYNX_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let folder = shared.join("data/models/stories260K");
    if !folder.is_dir() {
        say!("SKIPPED: {} is not there (set LYNX_SHARED)", folder.display());
        return None;
    }
    Some(folder)
}

fn devices() -> Vec<Device> {
    let gpu = Context::adapters().into_iter().next();
    if gpu.is_none() && std::env::var_os("LYNX_REQUIRE_GPU").is_some() {
        panic!("LYNX_REQUIRE_GPU is set and there is no GPU");
    }
    let gpu = gpu.map(|a| Device::Gpu(Context::open(&a, Options::default()).unwrap()));
    std::iter::once(Device::Cpu).chain(gpu).collect()
}

fn open(folder: &Path) -> files::ModelFile {
    let options = OpenOptions { tokenizer: Some(folder.join("tok512.bin")), ..OpenOptions::default() };
    files::open_with(&folder.join("stories260K.bin"), &options).unwrap()
}

fn session(folder: &Path, device: Device) -> Session {
    let file = open(folder);
    let model = setup::model(&file.config).unwrap();
    Session::for_weights(model, file.tokenizer, device, file.weights.as_ref(), Storing::default()).unwrap()
}

/// Tokens after the prompt until BOS is the likeliest, at most `limit` with those of the prompt.
fn greedy(session: &mut Session, golden: &Golden, limit: usize) -> Vec<u32> {
    let prompt = beginning(session.tokenizer(), &golden.prompt).unwrap();
    assert_eq!(prompt[0], 1, "BOS comes first");
    let mut ids = prompt[1..].to_vec();
    session.restart().unwrap();
    let mut next = session.advance_greedy(&prompt).unwrap();
    while next != 1 && ids.len() < limit {
        ids.push(next);
        next = session.advance_greedy(&[next]).unwrap();
    }
    ids
}

fn decoded(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode(ids).unwrap()
}

#[test]
fn prompts_become_the_tokens_that_the_c_program_makes_of_them() {
    let Some(folder) = folder() else { return };
    let tokenizer = open(&folder).tokenizer;
    for (text, ids) in golden().encodings {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn two_hundred_greedy_tokens_are_the_text_of_the_c_program() {
    let Some(folder) = folder() else { return };
    let golden = golden();
    for device in devices() {
        let name = device.name();
        let mut session = session(&folder, device);
        let ids = greedy(&mut session, &golden, 200);
        assert_eq!(ids, golden.ids[..200], "{name}");
        assert_eq!(ids[..golden.prompt_tokens], golden.ids[..golden.prompt_tokens]);
        assert_eq!(decoded(session.tokenizer(), &ids), golden.text, "{name}");
        say!("{name}: 200 tokens agree");
    }
}

/// To the end: after 345 tokens the model is done. With the cache, and without it for the first part of the text.
#[test]
fn the_whole_story_ends_where_it_ends_for_the_c_program() {
    let Some(folder) = folder() else { return };
    let golden = golden();
    let mut session = session(&folder, Device::Cpu);
    let ids = greedy(&mut session, &golden, 512);
    assert_eq!(ids, golden.ids);
    assert_eq!(decoded(session.tokenizer(), &ids), golden.whole);
    session.keep(Keeping { off: true, ..Keeping::default() }).unwrap();
    assert_eq!(greedy(&mut session, &golden, 40), golden.ids[..40]);
}

#[test]
fn logits_are_those_of_pytorch() {
    let Some(folder) = folder() else { return };
    let bytes = beside("logits.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        tensors.tensor(name).unwrap().data().chunks_exact(4).map(|c| [c[0], c[1], c[2], c[3]]).collect()
    };
    let integers = |name: &str| -> Vec<u32> { words(name).into_iter().map(u32::from_le_bytes).collect() };
    let (tokens, positions, likeliest) = (integers("tokens"), integers("positions"), integers("argmax"));
    let want: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
    for device in devices() {
        let name = device.name();
        let mut session = session(&folder, device);
        let rows = session.advance_each(&tokens).unwrap();
        let mut worst = 0f32;
        for (want, position) in want.chunks(512).zip(&positions) {
            for (a, b) in rows[*position as usize].iter().zip(want) {
                worst = worst.max((a - b).abs());
            }
        }
        assert!(worst <= 1e-4, "{name}: {worst}");
        for (row, id) in rows.iter().zip(&likeliest) {
            assert_eq!(lynx_gpu::infer::most_likely(row).unwrap(), *id, "{name}");
        }
        say!("{name}: logits of {} positions agree to {worst:.1e}", positions.len());
    }
}
