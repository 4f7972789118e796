//! Models of llama2.c: whatever is accepted has all its tensors, and numbers.

#![no_main]

use formats::llama2c::File;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = File::parse("x.bin", bytes.to_vec()) else { return };
    file.config().check().unwrap();
    let mut end = None;
    for tensor in file.tensors() {
        assert!(end.is_none_or(|end| end == tensor.offset()));
        end = Some(tensor.offset() + tensor.byte_len());
        assert_eq!(file.read_f32(tensor).unwrap().len(), tensor.elements());
    }
    assert_eq!(end, Some(bytes.len() as u64));
});
