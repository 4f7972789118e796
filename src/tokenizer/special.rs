//! Special tokens: whole ids that stand for structure, not for text.

use crate::{Error, Result};

/// Between documents, at the start and at the end of generation.
pub const BOUNDARY: &str = "<|endoftext|>";
pub const PAD: &str = "<|pad|>";
pub(crate) const UNKNOWN: &str = "<|unk|>";

/// Ids 0 to 3 of a row corpus: padding, row boundary, unknown (reserved, never emitted) and the separator between a
/// wrong form and its correction.
pub const DEFAULT_SPECIALS: [&str; 4] = [PAD, BOUNDARY, UNKNOWN, "<|sep|>"];

/// The first document's beginning, for those who want one: ids 256 to 258 of a byte tokenizer are this, the boundary and padding.
pub const START: &str = "<|startoftext|>";
pub const BYTE_SPECIALS: [&str; 3] = [START, BOUNDARY, PAD];

/// What other tokenizers call the boundary, most telling name first.
pub(crate) const BOUNDARY_NAMES: [&str; 6] = [BOUNDARY, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]"];
pub(crate) const PAD_NAMES: [&str; 4] = [PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>"];

/// The special tokens of a tokenizer; their ids follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    names: Vec<String>,
    first: u32,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        Self { names: DEFAULT_SPECIALS.map(str::to_owned).to_vec(), first: 0 }
    }
}

/// A piece of text between special tokens, or one of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Special(u32),
}

impl SpecialTokens {
    pub fn none() -> Self {
        Self { names: vec![], first: 0 }
    }

    /// Those of a byte tokenizer: ids 256, 257 and 258, so that ids 0 to 255 are the bytes.
    pub fn of_bytes() -> Self {
        Self { names: BYTE_SPECIALS.map(str::to_owned).to_vec(), first: 256 }
    }

    /// Refuses repeated names, and names that could be mistaken for text: at least two printable ASCII characters.
    pub fn new(names: Vec<String>) -> Result<Self> {
        for (i, name) in names.iter().enumerate() {
            if name.len() < 2 || !name.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(Error::Data(format!(
                    "special token {i} '{name}': give at least two printable ASCII characters, as in {BOUNDARY}"
                )));
            }
            if names[..i].contains(name) {
                return Err(Error::Data(format!("special token {i} '{name}' is named twice")));
            }
        }
        Ok(Self { names, first: 0 })
    }

    /// The same names with ids after those of the bytes instead of before them.
    pub fn after_bytes(self) -> Self {
        Self { first: 256, ..self }
    }

    /// The smallest id: 0 or 256.
    pub fn first(&self) -> u32 {
        self.first
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn contains(&self, id: u32) -> bool {
        self.name(id).is_some()
    }

    pub fn id(&self, name: &str) -> Option<u32> {
        self.names.iter().position(|n| n == name).map(|i| self.first + i as u32)
    }

    pub fn name(&self, id: u32) -> Option<&str> {
        self.names.get(id.checked_sub(self.first)? as usize).map(String::as_str)
    }

    /// Cuts text at special tokens: leftmost first, the longest of those that start at one place.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let next = self
                .names
                .iter()
                .enumerate()
                .filter_map(|(id, name)| rest.find(name.as_str()).map(|at| (at, std::cmp::Reverse(name.len()), id)))
                .min();
            let Some((at, std::cmp::Reverse(length), id)) = next else {
                pieces.push(Piece::Text(rest));
                break;
            };
            if at > 0 {
                pieces.push(Piece::Text(&rest[..at]));
            }
            pieces.push(Piece::Special(self.first + id as u32));
            rest = &rest[at + length..];
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_the_leftmost_and_longest_special_token() {
        let specials = SpecialTokens::new(vec!["<a>".into(), "<a><b>".into(), "<b>".into()]).unwrap();
        use Piece::*;
        assert_eq!(specials.split("x<a><b>y<b>"), [Text("x"), Special(1), Text("y"), Special(2)]);
        assert_eq!(specials.split("<a>"), [Special(0)]);
        assert_eq!(specials.split(""), []);
        assert_eq!(SpecialTokens::none().split("<a>"), [Text("<a>")]);
        assert_eq!(specials.after_bytes().split("x<b>"), [Text("x"), Special(258)]);
    }

    #[test]
    fn empty_and_repeated_names_are_refused() {
        assert!(SpecialTokens::new(vec!["".into()]).is_err());
        assert!(SpecialTokens::new(vec!["\u{120}w".into()]).is_err());
        assert!(SpecialTokens::new(vec!["<a>".into(), "<a>".into()]).is_err());
    }
}
