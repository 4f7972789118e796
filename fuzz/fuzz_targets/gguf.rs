//! GGUF files: whatever is accepted has tensors inside the file, and getters that answer.

#![no_main]

use formats::gguf::{Array, File, Metadata, NewTensor, Strings};
use formats::imatrix::Imatrix;
use libfuzzer_sys::fuzz_target;

fn getters(metadata: &Metadata) {
    for (key, value) in metadata.iter() {
        assert_eq!(metadata.get(key).map(|v| v.type_name()), Some(value.type_name()));
        let _ = metadata.find::<u32>(key);
        let _ = metadata.find::<i64>(key);
        let _ = metadata.find::<f64>(key);
        let _ = metadata.find::<bool>(key);
        let _ = metadata.find::<&str>(key);
        let _ = metadata.find::<&[f32]>(key);
        if let Ok(Some(strings)) = metadata.find::<&Strings>(key) {
            assert_eq!(strings.iter_lossy().count(), strings.len());
        }
        if let Ok(Some(array)) = metadata.find::<&Array>(key) {
            assert!(array.to_i64s().is_none_or(|v| v.len() == array.len()));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = File::parse("x.gguf", bytes.to_vec()) else { return };
    getters(file.metadata());
    let mut ends = 0;
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len() as u64, tensor.byte_len());
        assert!(tensor.offset() % file.alignment() == 0);
        let mut copy = vec![0; tensor.byte_len() as usize];
        file.read_into(tensor, &mut copy).unwrap();
        assert_eq!(copy, file.data(tensor));
        assert_eq!(NewTensor::like(tensor).byte_len(), tensor.byte_len());
        assert_eq!(file.find(tensor.name()), Some(tensor));
        ends += tensor.byte_len();
    }
    // no two share a byte
    assert!(ends <= bytes.len() as u64);
    let _ = Imatrix::from_gguf(&file);
});
