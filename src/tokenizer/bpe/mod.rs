//! Byte-level byte-pair encoding (Sennrich, Haddow, Birch 2016, over bytes as in GPT-2).
//!
//! Ids: special tokens first, then the 256 bytes, then one id a merge. A byte string has one id only: a pair that would
//! spell an existing token again is passed over in training. So merges, byte strings and ids are one to one, applying
//! merges in training order is the same as applying the lowest rank first, and the Hugging Face format (whose
//! vocabulary maps strings to ids) can hold the tokenizer.

mod train;

use super::special::{Piece, SpecialTokens};
use super::unhex;
use crate::data::files::hex;
use crate::{Error, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use unicode_normalization::UnicodeNormalization;

/// Where merges may not cross.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreSplit {
    /// Only at line ends and special tokens: a line is one unit, so a token may span words ("to ").
    #[default]
    None,
    /// Also between words: a unit is a run of non-white-space with at most one space before it, or a run of white
    /// space (the pattern ` ?\S+|\s+`).
    Whitespace,
}

impl PreSplit {
    pub fn name(self) -> &'static str {
        match self {
            PreSplit::None => "none",
            PreSplit::Whitespace => "whitespace",
        }
    }

    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(PreSplit::None),
            "whitespace" => Ok(PreSplit::Whitespace),
            _ => Err(Error::Config(format!("pre_split '{name}': use none or whitespace"))),
        }
    }

    /// The units of `text`, whose concatenation is `text`.
    pub(crate) fn units(self, text: &str) -> Vec<&str> {
        if self == PreSplit::None {
            return if text.is_empty() { vec![] } else { vec![text] };
        }
        let mut units = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let after_space = rest.strip_prefix(' ').unwrap_or(rest);
            let is_word = after_space.chars().next().is_some_and(|c| !c.is_whitespace());
            let end = if is_word {
                let skipped = rest.len() - after_space.len();
                after_space.find(char::is_whitespace).map_or(rest.len(), |at| skipped + at)
            } else {
                debug_assert!(first.is_whitespace());
                rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len())
            };
            units.push(&rest[..end]);
            rest = &rest[end..];
        }
        units
    }
}

/// How to train.
#[derive(Clone, Debug)]
pub struct BpeOptions {
    /// Ids wanted in all: special tokens + 256 + merges. Fewer come out where the text runs out of pairs.
    pub vocab_size: usize,
    pub specials: SpecialTokens,
    pub pre_split: PreSplit,
}

impl Default for BpeOptions {
    fn default() -> Self {
        Self { vocab_size: 512, specials: SpecialTokens::default(), pre_split: PreSplit::None }
    }
}

/// A trained byte-level BPE.
#[derive(Clone, Debug)]
pub struct BpeTokenizer {
    specials: SpecialTokens,
    pre_split: PreSplit,
    /// The pair of ids that each merge joins, by rank.
    merges: Vec<(u32, u32)>,
    /// Bytes of every id.
    tokens: Vec<Vec<u8>>,
    ranks: HashMap<(u32, u32), u32>,
    /// True if some token has a line end in it, so that text may not be cut there before encoding.
    spans_lines: bool,
}

impl BpeTokenizer {
    /// Trains on the lines of `documents`: each is put in Unicode normal form C and cut at special tokens (and, if asked,
    /// into words); equal units are counted once with their number. The most frequent adjacent pair is merged, ties
    /// going to the lexicographically smallest (left bytes, right bytes), until `vocab_size` is reached or no pair is
    /// left. The same text gives the same merges on every machine.
    pub fn train<'a>(documents: impl IntoIterator<Item = &'a str>, options: &BpeOptions) -> Result<Self> {
        let base = options.specials.len() + 256;
        if options.vocab_size < base {
            return Err(Error::Config(format!(
                "vocab_size = {}: a byte-level BPE needs at least {base} ids ({} special tokens and 256 bytes)",
                options.vocab_size,
                options.specials.len()
            )));
        }
        let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
        for line in documents.into_iter().flat_map(str::lines) {
            let normal: String = line.nfc().collect();
            for piece in options.specials.split(&normal) {
                let Piece::Text(part) = piece else { continue };
                for unit in options.pre_split.units(part) {
                    *counts.entry(unit.as_bytes().to_vec()).or_default() += 1;
                }
            }
        }
        let merges = train::merges(counts, options.vocab_size - base);
        Self::from_merges(merges, options.specials.clone(), options.pre_split)
    }

    /// A tokenizer from its merges in order, each a pair of byte strings that are bytes or earlier merges.
    pub fn from_merges(
        merges: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
        specials: SpecialTokens,
        pre_split: PreSplit,
    ) -> Result<Self> {
        let mut tokens: Vec<Vec<u8>> = specials.names().iter().map(|name| name.as_bytes().to_vec()).collect();
        tokens.extend((0..=255u8).map(|b| vec![b]));
        let mut ids: HashMap<Vec<u8>, u32> =
            tokens.iter().enumerate().map(|(id, bytes)| (bytes.clone(), id as u32)).collect();
        let mut pairs = Vec::new();
        for (rank, (left, right)) in merges.into_iter().enumerate() {
            let find = |part: &Vec<u8>| {
                ids.get(part).copied().filter(|&id| !specials.contains(id)).ok_or_else(|| {
                    Error::Data(format!(
                        "merge {}: '{}' is no byte and no earlier merge",
                        rank + 1,
                        super::display(part)
                    ))
                })
            };
            let pair = (find(&left)?, find(&right)?);
            let joined = [left, right].concat();
            let id = tokens.len() as u32;
            if ids.insert(joined.clone(), id).is_some() {
                let text = super::display(&joined);
                return Err(Error::Data(format!("merge {}: '{text}' is a token already", rank + 1)));
            }
            tokens.push(joined);
            pairs.push(pair);
        }
        let ranks = pairs.iter().enumerate().map(|(rank, &pair)| (pair, rank as u32)).collect();
        let spans_lines = tokens[specials.len() + 256..].iter().any(|token| token.contains(&b'\n'));
        Ok(Self { specials, pre_split, merges: pairs, tokens, ranks, spans_lines })
    }

    /// Reads `merges.txt`: one "hex hex" a line.
    pub fn from_merges_text(text: &str, specials: SpecialTokens, pre_split: PreSplit) -> Result<Self> {
        let merges: Vec<(Vec<u8>, Vec<u8>)> = text
            .lines()
            .enumerate()
            .map(|(number, line)| {
                line.split_once(' ')
                    .and_then(|(left, right)| Some((unhex(left)?, unhex(right)?)))
                    .filter(|(left, right)| !left.is_empty() && !right.is_empty())
                    .ok_or_else(|| {
                        Error::Data(format!(
                            "merges.txt line {}: '{line}' is not two hexadecimal byte strings with a space between",
                            number + 1
                        ))
                    })
            })
            .collect::<Result<_>>()?;
        Self::from_merges(merges, specials, pre_split)
    }

    /// The content of `merges.txt`: one "hexLeft hexRight" a line, in training order.
    pub fn merges_text(&self) -> String {
        self.merge_bytes().map(|(left, right)| format!("{} {}\n", hex(left), hex(right))).collect()
    }

    /// The merges as byte strings, in training order.
    pub fn merge_bytes(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.merges
            .iter()
            .map(|&(left, right)| (self.tokens[left as usize].as_slice(), self.tokens[right as usize].as_slice()))
    }

    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    pub fn pre_split(&self) -> PreSplit {
        self.pre_split
    }

    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(Vec::as_slice)
    }

    /// Ids of `text`. Nothing is normalised here, so decoding gives back exactly `text`.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        let mut symbols = Symbols::default();
        for piece in self.specials.split(text) {
            match piece {
                Piece::Special(id) => ids.push(id),
                Piece::Text(part) => self.encode_part(part, &mut symbols, &mut ids),
            }
        }
        ids
    }

    /// As [`BpeTokenizer::encode`], with special tokens' names as text.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        self.encode_part(text, &mut Symbols::default(), &mut ids);
        ids
    }

    fn encode_part(&self, part: &str, symbols: &mut Symbols, ids: &mut Vec<u32>) {
        for unit in self.pre_split.units(part) {
            if self.spans_lines {
                symbols.encode(self, unit.as_bytes(), ids);
            } else {
                // No merge has a line end in it, so lines are independent; short units keep the queue short.
                for line in unit.split_inclusive('\n') {
                    symbols.encode(self, line.as_bytes(), ids);
                }
            }
        }
    }
}

/// A doubly linked list of symbols over one unit, with a queue of possible merges, lowest rank first and leftmost among
/// equals. Reused between units.
#[derive(Default)]
struct Symbols {
    id: Vec<u32>,
    /// Index of the next symbol; `END` for the last. Entries merged away have id `GONE`.
    next: Vec<u32>,
    previous: Vec<u32>,
    queue: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

const END: u32 = u32::MAX;
const GONE: u32 = u32::MAX;

impl Symbols {
    fn encode(&mut self, bpe: &BpeTokenizer, unit: &[u8], out: &mut Vec<u32>) {
        let first_byte = bpe.specials.len() as u32;
        let n = unit.len() as u32;
        self.id.clear();
        self.id.extend(unit.iter().map(|&b| first_byte + u32::from(b)));
        self.next.clear();
        self.next.extend((1..=n).map(|i| if i == n { END } else { i }));
        self.previous.clear();
        self.previous.extend((0..n).map(|i| i.wrapping_sub(1)));
        for at in 0..n.saturating_sub(1) {
            self.offer(bpe, at);
        }
        while let Some(Reverse((rank, at, left, right))) = self.queue.pop() {
            let after = self.next[at as usize];
            // Stale if either symbol has been merged since.
            if self.id[at as usize] != left || after == END || self.id[after as usize] != right {
                continue;
            }
            self.id[at as usize] = first_byte + 256 + rank;
            self.id[after as usize] = GONE;
            let beyond = self.next[after as usize];
            self.next[at as usize] = beyond;
            if beyond != END {
                self.previous[beyond as usize] = at;
                self.offer(bpe, at);
            }
            if self.previous[at as usize] != END {
                self.offer(bpe, self.previous[at as usize]);
            }
        }
        out.extend(self.id.iter().filter(|&&id| id != GONE));
    }

    fn offer(&mut self, bpe: &BpeTokenizer, at: u32) {
        let (left, right) = (self.id[at as usize], self.id[self.next[at as usize] as usize]);
        if let Some(&rank) = bpe.ranks.get(&(left, right)) {
            self.queue.push(Reverse((rank, at, left, right)));
        }
    }
}

#[cfg(test)]
mod tests;
