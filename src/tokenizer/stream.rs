//! Decoding token by token, for text that appears while it is generated.

use super::Tokenizer;
use crate::Result;

/// Turns ids into text as they come. A character whose bytes are spread over several tokens appears when it is whole,
/// so no call ever returns broken UTF-8 or a replacement character that a later token would have repaired.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Bytes that may still become a character (at most three).
    pending: Vec<u8>,
    /// Nothing precedes the next token but what begins a text.
    beginning: bool,
    /// For Hugging Face tokenizers, whose decoding depends on neighbours: ids from the last place where the text was
    /// settled, and how many of them have been shown.
    window: Vec<u32>,
    shown: usize,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder from the beginning of a text.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self::after(tokenizer, skip_special, &[])
    }

    /// A decoder of what follows `before`, which is not shown. A first token that begins with a space keeps it where a text precedes it;
    /// at the beginning of a text SentencePiece's first space is none of the text.
    pub fn after(tokenizer: &'a Tokenizer, skip_special: bool, before: &[u32]) -> Self {
        let beginning = before.last().is_none_or(|&id| tokenizer.begins_text(id));
        // Two ids say what decoding the first new one depends on; more could hold bytes that are part of a character.
        let window = match tokenizer {
            Tokenizer::HuggingFace(_) => before[before.len().saturating_sub(2)..].to_vec(),
            _ => vec![],
        };
        Self { tokenizer, skip_special, pending: vec![], beginning, shown: window.len(), window }
    }

    /// The text that `id` settles; empty if it settles none yet.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if let Tokenizer::HuggingFace(_) = self.tokenizer {
            return self.push_contextual(id);
        }
        let bytes = self.tokenizer.token_bytes(id)?;
        let skipped = self.skip_special && self.tokenizer.is_special(id);
        if !skipped {
            self.pending.extend_from_slice(&bytes[self.tokenizer.prefix_bytes(self.beginning, id)..]);
        }
        self.beginning = self.tokenizer.begins_text(id) || self.beginning && skipped;
        let mut text = String::new();
        let mut settled = 0;
        while settled < self.pending.len() {
            match std::str::from_utf8(&self.pending[settled..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    settled = self.pending.len();
                }
                Err(error) => {
                    let valid = settled + error.valid_up_to();
                    text.push_str(std::str::from_utf8(&self.pending[settled..valid]).expect("checked up to here"));
                    settled = valid;
                    // No error length: the end may be the start of a character. Otherwise no token can repair it.
                    let Some(broken) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    settled += broken;
                }
            }
        }
        self.pending.drain(..settled);
        Ok(text)
    }

    /// What is still held back, incomplete characters as U+FFFD. The decoder can be used again afterwards.
    pub fn finish(&mut self) -> Result<String> {
        let text = if let Tokenizer::HuggingFace(_) = self.tokenizer {
            let before = self.tokenizer.decode_with(&self.window[..self.shown], self.skip_special)?;
            let all = self.tokenizer.decode_with(&self.window, self.skip_special)?;
            all.get(before.len()..).unwrap_or_default().to_owned()
        } else {
            String::from_utf8_lossy(&self.pending).into_owned()
        };
        self.pending.clear();
        self.window.clear();
        self.shown = 0;
        Ok(text)
    }

    /// Decodes the window with and without the new ids and shows the difference, once it does not end in a
    /// replacement character (the scheme of Hugging Face's text-generation-inference).
    fn push_contextual(&mut self, id: u32) -> Result<String> {
        self.tokenizer.token_bytes(id)?;
        self.window.push(id);
        let before = self.tokenizer.decode_with(&self.window[..self.shown], self.skip_special)?;
        let all = self.tokenizer.decode_with(&self.window, self.skip_special)?;
        // Four bytes make a character: if four tokens have not settled it, it is broken for good.
        let waiting = all.ends_with(char::REPLACEMENT_CHARACTER) && self.window.len() - self.shown < 4;
        if waiting || all.len() <= before.len() || !all.is_char_boundary(before.len()) {
            return Ok(String::new());
        }
        let text = all[before.len()..].to_owned();
        self.window.drain(..self.shown);
        self.shown = self.window.len();
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ByteTokenizer, SpecialTokens};
    use super::*;

    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut decoder = StreamDecoder::new(tokenizer, false);
        let mut parts: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
        parts.push(decoder.finish().unwrap());
        parts
    }

    #[test]
    fn a_character_appears_when_it_is_whole() {
        let bytes = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::none()));
        let ids = bytes.encode("aé🦊").unwrap();
        assert_eq!(stream(&bytes, &ids), ["a", "", "é", "", "", "", "🦊", ""]);
    }

    #[test]
    fn broken_bytes_become_replacement_characters_as_in_whole_decoding() {
        let bytes = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::none()));
        for ids in [&[0xff, 0x61][..], &[0xc3, 0x61], &[0xf0, 0x9f], &[0xf0, 0x9f, 0xa6, 0x61, 0x80]] {
            assert_eq!(stream(&bytes, ids).concat(), bytes.decode(ids).unwrap());
        }
    }
}
