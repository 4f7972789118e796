//! The two tokenizers without merges: one id a character, one id a byte.

use super::special::{Piece, SpecialTokens};
use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap};

/// Sorted unique characters after the special tokens (nanoGPT's shakespeare_char has no special tokens: 65 ids).
#[derive(Clone, Debug)]
pub struct CharTokenizer {
    characters: Vec<char>,
    ids: HashMap<char, u32>,
    specials: SpecialTokens,
}

impl CharTokenizer {
    /// The alphabet of `documents`, in code point order.
    pub fn train<'a>(documents: impl IntoIterator<Item = &'a str>, specials: SpecialTokens) -> Result<Self> {
        let alphabet: BTreeSet<char> = documents.into_iter().flat_map(str::chars).collect();
        Self::new(alphabet.into_iter().collect(), specials)
    }

    /// A tokenizer with these characters, which must be sorted and different.
    pub fn new(characters: Vec<char>, specials: SpecialTokens) -> Result<Self> {
        if characters.is_empty() {
            return Err(Error::Data("a character tokenizer needs at least one character: the text is empty".into()));
        }
        if let Some(pair) = characters.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::Data(format!("characters {:?} and {:?} are not in code point order", pair[0], pair[1])));
        }
        let first = specials.len() as u32;
        let ids = characters.iter().enumerate().map(|(i, &c)| (c, first + i as u32)).collect();
        Ok(Self { characters, ids, specials })
    }

    pub fn characters(&self) -> &[char] {
        &self.characters
    }

    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    pub fn vocab_size(&self) -> usize {
        self.specials.len() + self.characters.len()
    }

    /// A character outside the alphabet is an error that names it and its place.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        for piece in self.specials.split(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(part) => self.characters_of(text, part, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// As [`CharTokenizer::encode`], with special tokens' names as text.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        self.characters_of(text, text, &mut ids)?;
        Ok(ids)
    }

    fn characters_of(&self, text: &str, part: &str, ids: &mut Vec<u32>) -> Result<()> {
        for (offset, c) in part.char_indices() {
            ids.push(*self.ids.get(&c).ok_or_else(|| self.unknown(text, part, offset, c))?);
        }
        Ok(())
    }

    fn unknown(&self, text: &str, part: &str, offset: usize, c: char) -> Error {
        let at = part.as_ptr() as usize - text.as_ptr() as usize + offset;
        let place = text[..at].chars().count();
        Error::Data(format!(
            "character {c:?} (U+{:04X}) at position {place} (byte {at}) is not among the {} characters of this \
             tokenizer; train the tokenizer on text that has it, or use a byte or bpe tokenizer",
            c as u32,
            self.characters.len()
        ))
    }

    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match self.specials.name(id) {
            Some(name) => Some(name.as_bytes().to_vec()),
            None => self.characters.get(id as usize - self.specials.len()).map(|c| c.to_string().into_bytes()),
        }
    }
}

/// One id a byte: any text has an encoding. The special tokens' ids begin at 256 ([`SpecialTokens::of_bytes`], 259 ids in all), or at 0
/// with the bytes after them, as tokenizers of earlier versions have it.
#[derive(Clone, Debug)]
pub struct ByteTokenizer {
    specials: SpecialTokens,
}

impl ByteTokenizer {
    pub fn new(specials: SpecialTokens) -> Self {
        Self { specials }
    }

    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    pub fn vocab_size(&self) -> usize {
        self.specials.len() + 256
    }

    /// The id of byte 0.
    pub(crate) fn first_byte(&self) -> u32 {
        if self.specials.first() == 0 { self.specials.len() as u32 } else { 0 }
    }

    pub fn encode(&self, text: &str) -> Vec<u32> {
        let first = self.first_byte();
        let mut ids = Vec::with_capacity(text.len());
        for piece in self.specials.split(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(part) => ids.extend(part.bytes().map(|b| first + u32::from(b))),
            }
        }
        ids
    }

    /// As [`ByteTokenizer::encode`], with special tokens' names as text.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        let first = self.first_byte();
        text.bytes().map(|b| first + u32::from(b)).collect()
    }

    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match self.specials.name(id) {
            Some(name) => Some(name.as_bytes().to_vec()),
            None => u8::try_from(id.checked_sub(self.first_byte())?).ok().map(|b| vec![b]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use super::*;

    #[test]
    fn characters_are_sorted_and_round_trip_with_special_tokens() {
        let t = CharTokenizer::train(["cab", "né"], SpecialTokens::default()).unwrap();
        assert_eq!(t.characters(), ['a', 'b', 'c', 'n', 'é']);
        assert_eq!(t.encode("a<|endoftext|>é").unwrap(), [4, 1, 8]);
        let t = Tokenizer::Char(t);
        assert_eq!(t.decode(&[4, 1, 8]).unwrap(), "a<|endoftext|>é");
        assert_eq!(t.decode_with(&[4, 1, 8], true).unwrap(), "aé");
        assert!(t.decode(&[9]).unwrap_err().to_string().contains("ids 0 to 8"));
    }

    #[test]
    fn an_unknown_character_is_named_with_its_position() {
        let t = CharTokenizer::train(["abé"], SpecialTokens::default()).unwrap();
        let message = t.encode("é<|sep|>ab🦊").unwrap_err().to_string();
        assert!(message.contains("'🦊' (U+1F98A) at position 10 (byte 11)"), "{message}");
        assert!(CharTokenizer::train([""], SpecialTokens::none()).is_err());
        assert!(CharTokenizer::new(vec!['b', 'a'], SpecialTokens::none()).is_err());
    }

    #[test]
    fn bytes_round_trip_and_stand_for_themselves_without_specials() {
        let t = ByteTokenizer::new(SpecialTokens::none());
        assert_eq!((t.vocab_size(), t.encode("é\0")), (256, vec![0xc3, 0xa9, 0]));
        assert_eq!(Tokenizer::Byte(t.clone()).decode(&[0xc3, 0xa9, 0xff]).unwrap(), "é\u{fffd}");
        assert_eq!(t.token_bytes(256), None);
    }

    #[test]
    fn a_byte_tokenizer_has_259_ids_the_bytes_first() {
        let t = ByteTokenizer::new(SpecialTokens::of_bytes());
        assert_eq!(t.vocab_size(), 259);
        assert!((0..=255).all(|byte| t.token_bytes(u32::from(byte)) == Some(vec![byte])));
        assert_eq!(t.encode("A<|startoftext|><|endoftext|><|pad|>\u{7f}"), [65, 256, 257, 258, 127]);
        assert_eq!((t.token_bytes(259), t.token_bytes(u32::MAX)), (None, None));
        let t = Tokenizer::Byte(t);
        assert_eq!((t.boundary_id(), t.pad_id()), (Some(257), Some(258)));
        assert_eq!(t.decode_with(&[257, 104, 105, 257], true).unwrap(), "hi");
    }
}
