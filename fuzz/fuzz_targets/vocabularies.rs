//! Tokenizers of GGUF files (first byte 0), `tokenizer.json` (1) and llama2.c (2): what is accepted encodes and decodes.

#![no_main]

use formats::gguf::File;
use libfuzzer_sys::fuzz_target;
use lynx_gpu::tokenizer::{StreamDecoder, Tokenizer};

const TEXT: &str = "Once upon\n\n  a time 1234, naïve 東京 🦊<s></s>don't\0";

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let tokenizer = match kind % 3 {
        0 => File::parse("x.gguf", bytes.to_vec()).ok().and_then(|f| Tokenizer::from_gguf(f.metadata()).ok()),
        1 => String::from_utf8(bytes.to_vec()).ok().and_then(|json| Tokenizer::from_json("x.json", json).ok()),
        _ => Tokenizer::from_llama2c_bytes(bytes).ok(),
    };
    let Some(tokenizer) = tokenizer else { return };
    let size = tokenizer.vocab_size();
    for ids in [tokenizer.encode(TEXT), tokenizer.encode_plain(TEXT)].into_iter().flatten() {
        assert!(ids.iter().all(|id| (*id as usize) < size));
        let _ = tokenizer.decode(&ids);
        let mut stream = StreamDecoder::new(&tokenizer, false);
        ids.iter().for_each(|id| drop(stream.push(*id)));
    }
    (0..size.min(64) as u32).for_each(|id| drop(tokenizer.decode(&[id])));
    assert!(tokenizer.decode(&[size as u32]).is_err() || tokenizer.kind() == "huggingface");
});
