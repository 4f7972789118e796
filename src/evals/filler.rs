//! What stands around facts: running text in ASCII, so that its places are the same in bytes, in characters, and in the tokens of
//! byte and character tokenizers.

use crate::data::files::read_utf8;
use crate::data::logic_mix::draws::Draws;
use crate::data::logic_mix::{Kind, Split, export, literature, recall};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::path::Path;

/// Bytes of generated filler.
const GENERATED: usize = 1 << 16;

/// A text to cut pieces from.
#[derive(Clone, Debug, PartialEq)]
pub struct Filler {
    text: String,
    /// For people.
    pub about: String,
}

impl Filler {
    /// Sentences that the program makes, without digits.
    pub fn generated(seed: u64) -> Self {
        // A number of the stream that no problem and no training text has.
        let text = recall::prose(&mut Draws::of(seed, super::STREAM, u64::MAX >> 9), GENERATED);
        Filler { text, about: format!("generated sentences, seed {seed}") }
    }

    /// A book, cleaned to ASCII with line ends as spaces, without the frame of Project Gutenberg; or the test blocks of the books in
    /// the folder of a logic mix, which no model trained on it has seen.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if !path.is_dir() {
            return Self::from_text(&name, &read_utf8(path)?);
        }
        let blocks = export::read(path)?.parts.remove(&(Split::Test, Kind::Literature)).unwrap_or_default();
        if blocks.is_empty() {
            return Err(Error::Data(format!(
                "{name}: this mix has no literature in its test split; give a text file, or write the mix with --literature FILE.."
            )));
        }
        let text: String = blocks.into_iter().map(|block| block.text).collect();
        Self::from_text(&name, &text)
    }

    /// [`Filler::read`] for a text in memory; `name` stands in messages.
    pub fn from_text(name: &str, text: &str) -> Result<Self> {
        let cleaned = literature::clean(text);
        let words: Vec<&str> = cleaned.split_whitespace().collect();
        if words.is_empty() {
            return Err(Error::Data(format!("{name}: nothing is left of it as ASCII text; give an English text file")));
        }
        Ok(Filler { text: words.join(" ") + " ", about: name.to_owned() })
    }

    /// Without the characters that a tokenizer cannot write.
    pub fn readable(&self, tokenizer: &Tokenizer) -> Result<Self> {
        let known = |c: char| tokenizer.encode(c.encode_utf8(&mut [0; 4])).is_ok_and(|ids| !ids.is_empty());
        let alphabet: Vec<bool> = (0..128u8).map(|byte| known(char::from(byte))).collect();
        let text: String = self.text.chars().filter(|&c| alphabet[c as usize]).collect();
        if text.is_empty() {
            return Err(Error::Data(format!("{}: the tokenizer knows none of its characters", self.about)));
        }
        Ok(Filler { text, about: self.about.clone() })
    }

    /// `bytes` of the text from a drawn place on; a short text is gone through again and again.
    pub fn piece(&self, draws: &mut Draws, bytes: usize) -> String {
        let text = self.text.as_bytes();
        let start = draws.below(text.len() as u64) as usize;
        text[start..].iter().chain(text.iter().cycle()).take(bytes).map(|&b| char::from(b)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{CharTokenizer, SpecialTokens};

    #[test]
    fn pieces_are_of_the_text_in_the_length_asked_for() {
        let filler = Filler::from_text("t", "\u{201c}One\u{201d}\r\n  two\u{2014}three \u{4e2d}\n").unwrap();
        assert_eq!(filler.text, "\"One\" two--three ");
        let mut draws = Draws::of(1, 8, 1);
        for bytes in [0, 1, 17, 1000] {
            let piece = filler.piece(&mut draws, bytes);
            assert!(piece.len() == bytes && filler.text.repeat(100).contains(&piece));
        }
        assert!(Filler::from_text("dots.txt", "\u{4e2d}").unwrap_err().to_string().contains("dots.txt"));
        assert!(Filler::generated(1).piece(&mut draws, 70_000).len() == 70_000);
        let tokenizer = Tokenizer::Char(CharTokenizer::train(["Onowthre "], SpecialTokens::none()).unwrap());
        assert_eq!(filler.readable(&tokenizer).unwrap().text, "One twothree ");
    }
}
