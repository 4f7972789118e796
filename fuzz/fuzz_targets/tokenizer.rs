//! Vocabularies of llama2.c: what is accepted says all of the file.

#![no_main]

use formats::llama2c::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::parse("x.bin", bytes) else { return };
    let said: usize = tokenizer.tokens.iter().map(|(text, _)| 8 + text.len()).sum();
    assert_eq!(4 + said, bytes.len());
});
