//! Folders of `transformers` give its logits here.

use crate::common::{WHOLE, devices, every, fixture, golden, worst};
use formats::FilePart;
use kernels_cpu::blocks::Format;
use lynx_gpu::device::Device;
use lynx_gpu::infer::NextToken;
use lynx_gpu::models::files;
use lynx_gpu::models::files::write::{Target, WriteOptions, write};
use lynx_gpu::models::session::Storing;
use lynx_gpu::models::weights::{StoredWeight, WeightSource};
use lynx_gpu::models::{Session, setup};
use std::cell::RefCell;
use std::ops::Range;

#[test]
fn logits_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for device in devices() {
        for name in every().filter(|name| matches!(device, Device::Cpu) || WHOLE.contains(name)) {
            let model = files::open(&fixture(name, dir.path())).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(model.notes.is_empty(), "{name}: {:?}", model.notes);
            let (ids, expected) = golden(name);
            let worst = worst(&model, device.clone(), &ids, &expected);
            eprintln!("{name} on {}: {worst:.2e}", device.name());
            assert!(worst < 1e-4, "{name} on {}: logits differ by {worst:.2e} of the largest", device.name());
        }
    }
}

/// A model's weights, and which of them were left in the file, if that is allowed.
struct Watched<'a> {
    weights: &'a dyn WeightSource,
    allowed: bool,
    left: RefCell<Vec<String>>,
}

impl WeightSource for Watched<'_> {
    fn find(&self, name: &str) -> Option<StoredWeight> {
        self.weights.find(name)
    }
    fn read(&self, name: &str, into: &mut [u8]) -> lynx_gpu::Result<()> {
        self.weights.read(name, into)
    }
    fn read_rows(&self, name: &str, rows: Range<usize>, into: &mut [u8]) -> lynx_gpu::Result<()> {
        self.weights.read_rows(name, rows, into)
    }
    fn part(&self, name: &str) -> Option<FilePart> {
        let part = self.weights.part(name).filter(|_| self.allowed)?;
        self.left.borrow_mut().push(name.into());
        Some(part)
    }
    fn origin(&self) -> String {
        self.weights.origin()
    }
}

#[test]
fn rows_of_tables_that_are_only_looked_up_come_from_the_file_and_give_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    for (name, tables) in [("llama", 1), ("gemma", 0), ("gpt2", 0)] {
        let folder = fixture(name, dir.path());
        let (ids, _) = golden(name);
        for format in [None, Some(Format::F32), Some(Format::F16), Some(Format::Bf16), Some(Format::Q8_0)] {
            let path = match format {
                None => folder.clone(),
                Some(format) => {
                    let path = dir.path().join(format!("{name}-{format}.gguf"));
                    let options = WriteOptions { format: Some(format), force: true };
                    write(&files::open(&folder).unwrap(), &path, Target::Gguf, &options).unwrap();
                    path
                }
            };
            let file = files::open(&path).unwrap();
            let mut logits = Vec::new();
            for allowed in [true, false] {
                let watched = Watched { weights: file.weights.as_ref(), allowed, left: RefCell::default() };
                let model = setup::model(&file.config).unwrap();
                let storing = Storing::default();
                let mut session =
                    Session::for_weights(model, file.tokenizer.clone(), Device::Cpu, &watched, storing).unwrap();
                let left = watched.left.into_inner();
                assert!(!allowed || left.len() == tables, "{name} {format:?}: {left:?}");
                logits.push(session.next_logits(&ids).unwrap());
            }
            assert_eq!(logits[0], logits[1], "{name} {format:?}");
        }
    }
}
