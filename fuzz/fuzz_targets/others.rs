//! GGUF-lite files and importance matrices of the older form.

#![no_main]

use formats::gguf_lite::File;
use formats::imatrix::Imatrix;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(imatrix) = Imatrix::parse_dat("x.dat", bytes) {
        for entry in imatrix.entries.values() {
            assert!(entry.importance(0).is_none_or(|w| w.len() == entry.sums.len()));
        }
    }
    if let Ok(file) = File::parse("x.glft", bytes.to_vec()) {
        for tensor in file.tensors() {
            assert_eq!(file.read_f32(tensor).unwrap().len(), tensor.elements());
        }
    }
});
