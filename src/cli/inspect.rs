//! `lynx-gpu inspect`: what a model file holds.

use super::report::{bytes, emit, grouped};
use crate::Result;
use crate::models::files::inspect::{Inspection, inspect};
use serde_json::Value;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A GGUF file of any architecture, a safetensors, llama2.c or GGUF-lite file, a Hugging Face folder, a run folder or a checkpoint
    file: PathBuf,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    let inspection = inspect(&args.file)?;
    if json {
        return emit(&inspection);
    }
    print(&inspection);
    Ok(())
}

fn print(i: &Inspection) {
    let architecture = i.architecture.as_ref().map_or(String::new(), |a| format!(", architecture {a}"));
    println!("{}: {}{architecture}\n", i.path, i.format);
    let width = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    if !i.metadata.is_empty() {
        let key = width(&mut i.metadata.iter().map(|e| e.key.chars().count()));
        let kind = width(&mut i.metadata.iter().map(|e| e.kind.len()));
        println!("metadata, {} keys", i.metadata.len());
        for e in &i.metadata {
            println!("  {:key$}  {:kind$}  {}", printable(&e.key), e.kind, short(&e.value));
        }
        println!();
    }
    let shape = |dims: &[u64]| dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    let name = width(&mut i.tensors.iter().map(|t| t.name.chars().count()).chain([6]));
    let dims = width(&mut i.tensors.iter().map(|t| shape(&t.shape).len()).chain([5]));
    println!("{:name$}  {:dims$}  {:>6}  {:>14}  {:>16}", "tensor", "shape", "type", "bytes", "offset");
    for t in &i.tensors {
        let file = t.file.as_ref().map_or(String::new(), |f| format!("  {}", printable(f)));
        let (shape, size, offset) = (shape(&t.shape), grouped(t.bytes), grouped(t.offset));
        println!("{:name$}  {shape:dims$}  {:>6}  {size:>14}  {offset:>16}{file}", printable(&t.name), t.kind);
    }
    println!(
        "\n{} tensors, {} numbers in {}; file{} of {}",
        i.tensors.len(),
        grouped(i.parameters),
        bytes(i.tensor_bytes),
        if i.tensors.iter().any(|t| t.file.is_some()) { "s" } else { "" },
        bytes(i.file_bytes)
    );
}

/// Names come from the file: what would move a terminal's cursor is written out.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A value on one line: the first entries of a list and its length, the beginning of a text.
fn short(value: &Value) -> String {
    const ENTRIES: usize = 6;
    const LETTERS: usize = 100;
    match value {
        Value::Array(list) if list.len() > ENTRIES => {
            let first: Vec<String> = list[..ENTRIES].iter().map(short).collect();
            format!("[{}, ..] ({} entries)", first.join(", "), grouped(list.len() as u64))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(short).collect::<Vec<_>>().join(", ")),
        Value::String(text) => match text.char_indices().nth(LETTERS) {
            Some((end, _)) => format!("{:?}.. ({} bytes)", &text[..end], grouped(text.len() as u64)),
            None => format!("{text:?}"),
        },
        other => other.to_string(),
    }
}
