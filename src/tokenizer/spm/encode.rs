//! Text to pieces.

use super::{SPACE_MARK, SpmTokenizer};
use crate::{Error, Result};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

impl SpmTokenizer {
    /// Ids of `text`. Control tokens written out in it become their ids if `control` says so; otherwise they are text. User-defined
    /// tokens always become theirs. Nothing is put before or after the text but the space of
    /// [`super::SpmOptions::add_space_prefix`]. A character that neither pieces, bytes nor an unknown token can say is an error.
    pub fn encode(&self, text: &str, control: bool) -> Result<Vec<u32>> {
        let mut encoder = Encoder { spm: self, symbols: Symbols::default(), ids: Vec::with_capacity(text.len() / 2) };
        let matcher = if control { &self.marked } else { &self.plain };
        let mut settled = 0;
        if let Some(matcher) = matcher {
            for found in matcher.automaton.find_iter(text) {
                encoder.text(&text[settled..found.start()])?;
                encoder.ids.push(matcher.ids[found.pattern().as_usize()]);
                settled = found.end();
            }
        }
        encoder.text(&text[settled..])?;
        Ok(encoder.ids)
    }
}

struct Encoder<'a> {
    spm: &'a SpmTokenizer,
    symbols: Symbols,
    ids: Vec<u32>,
}

impl Encoder<'_> {
    /// A stretch without special tokens; it begins the text or follows one.
    fn text(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let options = self.spm.options;
        let mut text = Cow::Borrowed(text);
        if options.mark_is_space && text.contains(SPACE_MARK) {
            text = text.replace(SPACE_MARK, " ").into();
        }
        if options.add_space_prefix {
            text = format!(" {text}").into();
        }
        if !self.spm.words {
            return self.unit(&text);
        }
        // No piece goes on with a space, so nothing is joined across the beginning of a run of spaces.
        let bytes = text.as_bytes();
        let mut from = 0;
        for at in 1..bytes.len() {
            if bytes[at] == b' ' && bytes[at - 1] != b' ' {
                self.unit(&text[from..at])?;
                from = at;
            }
        }
        self.unit(&text[from..])
    }

    fn unit(&mut self, unit: &str) -> Result<()> {
        if u32::try_from(unit.len()).is_err() {
            return Err(Error::Data("a text of more than 4 GiB cannot be encoded at once: cut it".into()));
        }
        self.symbols.join(self.spm, unit);
        for index in 0..self.symbols.list.len() {
            let symbol = self.symbols.list[index];
            if symbol.length == 0 {
                continue;
            }
            match self.spm.id(symbol.of(unit)) {
                Some(id) => self.ids.push(id),
                None => self.bytes(symbol.of(unit))?,
            }
        }
        Ok(())
    }

    /// A character that is no piece. Unknown characters in a row are one unknown token, as in SentencePiece.
    fn bytes(&mut self, text: &str) -> Result<()> {
        if text.bytes().all(|byte| self.spm.bytes[usize::from(byte)].is_some()) {
            self.ids.extend(text.bytes().filter_map(|byte| self.spm.bytes[usize::from(byte)]));
            return Ok(());
        }
        let Some(unknown) = self.spm.unknown else {
            let c = text.chars().next().unwrap_or_default();
            return Err(Error::Data(format!(
                "character {c:?} (U+{:04X}) is no piece of this vocabulary, which has neither the bytes of it nor an unknown token; \
                 take it out of the text or use a tokenizer that knows it",
                c as u32
            )));
        };
        if self.ids.last() != Some(&unknown) {
            self.ids.push(unknown);
        }
        Ok(())
    }
}

/// A stretch of a unit; length 0 if it was joined to the one on its left.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    length: u32,
    next: u32,
    previous: u32,
}

impl Symbol {
    fn of<'a>(&self, unit: &'a str) -> &'a str {
        &unit[self.start as usize..(self.start + self.length) as usize]
    }
}

/// No neighbour on this side.
const END: u32 = u32::MAX;

/// A doubly linked list of symbols over one unit, with a queue of possible joins: best score first, leftmost among equals. Reused between
/// units.
#[derive(Default)]
struct Symbols {
    list: Vec<Symbol>,
    /// Score as an ordered number, the left symbol, the right one, bytes of both.
    queue: BinaryHeap<(u32, Reverse<u32>, u32, u32)>,
}

impl Symbols {
    fn join(&mut self, spm: &SpmTokenizer, unit: &str) {
        self.list.clear();
        for (index, (start, c)) in (0u32..).zip(unit.char_indices()) {
            let length = c.len_utf8() as u32;
            self.list.push(Symbol { start: start as u32, length, next: index + 1, previous: index.wrapping_sub(1) });
        }
        if let Some(last) = self.list.last_mut() {
            last.next = END;
        }
        for left in 1..self.list.len() as u32 {
            self.offer(spm, unit, left - 1, left);
        }
        while let Some((_, Reverse(left), right, bytes)) = self.queue.pop() {
            let (l, r) = (self.list[left as usize], self.list[right as usize]);
            // Stale if either has been joined to something else since.
            if l.length == 0 || r.length == 0 || l.length + r.length != bytes {
                continue;
            }
            self.list[left as usize].length = bytes;
            self.list[left as usize].next = r.next;
            self.list[right as usize].length = 0;
            if r.next != END {
                self.list[r.next as usize].previous = left;
            }
            self.offer(spm, unit, l.previous, left);
            self.offer(spm, unit, left, r.next);
        }
    }

    fn offer(&mut self, spm: &SpmTokenizer, unit: &str, left: u32, right: u32) {
        if left == END || right == END {
            return;
        }
        let (l, r) = (self.list[left as usize], self.list[right as usize]);
        let bytes = l.length + r.length;
        if bytes as usize > spm.longest {
            return;
        }
        let joined = Symbol { length: bytes, ..l };
        if let Some(id) = spm.id(joined.of(unit)) {
            self.queue.push((ordered(spm.pieces[id as usize].score), Reverse(left), right, bytes));
        }
    }
}

/// A number that is larger exactly when the score (never NaN) is.
fn ordered(score: f32) -> u32 {
    // The sum makes -0 equal to 0.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}
