//! safetensors files: whatever is accepted has tensors that cover the data.

#![no_main]

use formats::safetensors::Model;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::parse("x.safetensors", bytes.to_vec()) else { return };
    let mut covered = 0;
    for tensor in model.tensors() {
        let elements: usize = tensor.shape().iter().product();
        assert_eq!(elements as u64 * tensor.dtype().bits(), 8 * tensor.byte_len());
        assert_eq!(model.data(tensor).len() as u64, tensor.byte_len());
        assert_eq!(model.find(tensor.name()), Some(tensor));
        covered += tensor.byte_len();
    }
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(8 + header + covered, bytes.len() as u64);
});
