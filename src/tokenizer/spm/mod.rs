//! SentencePiece BPE as Llama 1 and 2, Mistral, Gemma and llama2.c use it (`tokenizer.ggml.model = "llama"`).
//!
//! A text becomes its characters; of all neighbours whose text together is a piece of the vocabulary those with the best score are joined,
//! the leftmost of equals first, until none is left (Kudo and Richardson 2018, as llama.cpp and llama2.c do it). A character that is no
//! piece becomes its bytes, `<0xNN>`. Control and user-defined tokens are cut out of the text before.
//!
//! Spaces are kept as spaces here: the mark U+2581 that stands for them in SentencePiece files is put in and taken out at the border.

mod encode;
mod export;
mod llama2c;
#[cfg(test)]
mod tests;

use super::roles::Roles;
use crate::{Error, Result};
use aho_corasick::{AhoCorasick, MatchKind};
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

/// What stands for a space in SentencePiece's files.
pub const SPACE_MARK: char = '\u{2581}';

/// What a piece is, numbered as in SentencePiece's files and in GGUF (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Normal = 1,
    /// Stands for what the vocabulary cannot say.
    Unknown = 2,
    /// Structure, not text.
    Control = 3,
    /// Text that is always one token.
    UserDefined = 4,
    Unused = 5,
    /// One byte, written `<0xNN>`.
    Byte = 6,
}

impl PieceKind {
    pub fn from_number(number: i32) -> Option<Self> {
        use PieceKind::*;
        // 0 is "undefined" in GGUF: nothing special.
        Some(match number {
            0 | 1 => Normal,
            2 => Unknown,
            3 => Control,
            4 => UserDefined,
            5 => Unused,
            6 => Byte,
            _ => return None,
        })
    }
}

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text with real spaces; of a byte `<0xNN>`.
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// How texts meet the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpmOptions {
    /// A text, and what follows a control token, gets a space before it.
    pub add_space_prefix: bool,
    /// U+2581 in a text is a space, as in SentencePiece; for llama2.c it is a character like others.
    pub mark_is_space: bool,
}

/// A SentencePiece BPE tokenizer.
#[derive(Clone, Debug)]
pub struct SpmTokenizer {
    pieces: Vec<Piece>,
    /// Ids of the pieces that characters are joined to.
    ids: Ids,
    /// Bytes of the longest of them.
    longest: usize,
    /// No piece has a space after something else: what spaces begin can be encoded word by word.
    words: bool,
    /// The id of every byte, where it has one.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    /// Control, unknown and user-defined tokens, and user-defined ones alone; with the ids of the patterns.
    marked: Option<Matcher>,
    plain: Option<Matcher>,
    options: SpmOptions,
    roles: Roles,
}

/// Ids by the text of their pieces. The texts are those of the pieces: kept twice, a vocabulary would take half as much memory again.
#[derive(Clone, Debug)]
struct Ids {
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Ids {
    fn with_capacity(pieces: usize) -> Self {
        Self { table: HashTable::with_capacity(pieces), hasher: RandomState::new() }
    }

    fn get(&self, text: &str, pieces: &[Piece]) -> Option<u32> {
        self.table.find(self.hasher.hash_one(text), |&id| pieces[id as usize].text == text).copied()
    }

    fn insert(&mut self, id: u32, pieces: &[Piece]) {
        let hash = |id: u32| self.hasher.hash_one(&pieces[id as usize].text);
        self.table.insert_unique(hash(id), id, |&id| hash(id));
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.table.iter().copied()
    }
}

/// Finds tokens that are written out in a text, leftmost first, the longest of those that begin at one place.
#[derive(Clone, Debug)]
struct Matcher {
    automaton: AhoCorasick,
    ids: Vec<u32>,
}

impl Matcher {
    fn new(pieces: &[Piece], wanted: impl Fn(&Piece) -> bool) -> Result<Option<Self>> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = (0..)
            .zip(pieces)
            .filter(|(_, piece)| !piece.text.is_empty() && wanted(piece))
            .map(|(id, piece)| (id, piece.text.as_str()))
            .unzip();
        if ids.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&texts)
            .map_err(|e| Error::Data(format!("{} special tokens are more than can be searched for: {e}", ids.len())))?;
        Ok(Some(Self { automaton, ids }))
    }
}

impl SpmTokenizer {
    /// A tokenizer with these pieces, whose ids are their places. Refused: no pieces, a score that is not a number, a byte piece that is
    /// not `<0xNN>`, two normal pieces with the same text, and roles whose ids are outside the vocabulary. A piece without text is
    /// accepted, as llama.cpp accepts it: nothing is ever encoded to it.
    pub fn new(mut pieces: Vec<Piece>, options: SpmOptions, roles: Roles) -> Result<Self> {
        if pieces.is_empty() {
            return Err(Error::Data("the SentencePiece vocabulary is empty".into()));
        }
        if u32::try_from(pieces.len()).is_err() {
            return Err(Error::Data(format!("{} pieces are more than ids can count", pieces.len())));
        }
        let mut ids = Ids::with_capacity(pieces.len());
        let mut bytes = vec![None; 256];
        for id in 0..pieces.len() as u32 {
            let piece = &pieces[id as usize];
            let named = || format!("piece {id} '{}'", super::display(piece.text.as_bytes()));
            if piece.score.is_nan() {
                return Err(Error::Data(format!("{}: its score is not a number", named())));
            }
            match (piece.kind, byte_of(&piece.text)) {
                (PieceKind::Byte, None) => {
                    return Err(Error::Data(format!("{}: a byte piece is written <0x00> to <0xFF>", named())));
                }
                // Some converters call bytes normal pieces; what looks like a byte is one (llama.cpp looks at the text only).
                (PieceKind::Byte | PieceKind::Normal, Some(byte)) => {
                    if let Some(first) = bytes[usize::from(byte)].replace(id) {
                        return Err(Error::Data(format!("pieces {first} and {id} are both the byte 0x{byte:02X}")));
                    }
                    pieces[id as usize].kind = PieceKind::Byte;
                }
                (PieceKind::Normal | PieceKind::Unused, None) if !piece.text.is_empty() => {
                    if let Some(first) = ids.get(&piece.text, &pieces) {
                        return Err(Error::Data(format!("{} has the same text as piece {first}", named())));
                    }
                    ids.insert(id, &pieces);
                }
                _ => {}
            }
        }
        let used = roles.bos.iter().chain(&roles.eos).chain(&roles.pad).chain(&roles.unk);
        if let Some(id) = used.copied().find(|&id| id as usize >= pieces.len()) {
            return Err(Error::Data(format!(
                "special token id {id} is not in the vocabulary of {} pieces (ids 0 to {})",
                pieces.len(),
                pieces.len() - 1
            )));
        }
        let unknown = (0u32..).zip(&pieces).find(|(_, p)| p.kind == PieceKind::Unknown).map(|(id, _)| id);
        let texts = || ids.iter().map(|id| pieces[id as usize].text.as_str());
        let longest = texts().map(str::len).max().unwrap_or(0);
        let words = !texts().any(|text| text.trim_start_matches(' ').contains(' '));
        let not_text = |kind| matches!(kind, PieceKind::Control | PieceKind::Unknown);
        let marked = Matcher::new(&pieces, |p| not_text(p.kind) || p.kind == PieceKind::UserDefined)?;
        let plain = Matcher::new(&pieces, |p| p.kind == PieceKind::UserDefined)?;
        let unknown = roles.unk.or(unknown);
        Ok(Self { pieces, ids, longest, words, bytes, unknown, marked, plain, options, roles })
    }

    /// The piece that characters are joined to.
    fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text, &self.pieces)
    }

    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn options(&self) -> SpmOptions {
        self.options
    }

    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// The id of an unknown character where there are no bytes.
    pub fn unknown_id(&self) -> Option<u32> {
        self.unknown
    }

    /// The bytes of a piece, its spaces as spaces. At the beginning of a text the first space is the prefix that encoding added; see
    /// [`SpmTokenizer::prefixed`].
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let piece = self.pieces.get(id as usize)?;
        Some(match piece.kind {
            PieceKind::Byte => vec![byte_of(&piece.text).expect("checked when the tokenizer was made")],
            _ => piece.text.as_bytes().to_vec(),
        })
    }

    /// True if a space that this piece begins with, at the beginning of a text or after the token that begins one, is the prefix that
    /// encoding put there and not text.
    pub fn prefixed(&self, id: u32) -> bool {
        self.options.add_space_prefix
            && self.pieces.get(id as usize).is_some_and(|piece| {
                matches!(piece.kind, PieceKind::Normal | PieceKind::Unused) && piece.text.starts_with(' ')
            })
    }

    pub fn is_special(&self, id: u32) -> bool {
        let kind = self.pieces.get(id as usize).map(|piece| piece.kind);
        matches!(kind, Some(PieceKind::Control | PieceKind::Unknown))
    }

    pub(crate) fn control_names(&self) -> Vec<String> {
        let control = self.pieces.iter().filter(|piece| matches!(piece.kind, PieceKind::Control | PieceKind::Unknown));
        control.map(|piece| piece.text.clone()).collect()
    }

    /// The id of a control, unknown or user-defined token by its text.
    pub fn special_id(&self, token: &str) -> Option<u32> {
        use PieceKind::{Control, Unknown, UserDefined};
        (0u32..)
            .zip(&self.pieces)
            .find(|(_, p)| p.text == token && matches!(p.kind, Control | Unknown | UserDefined))
            .map(|(id, _)| id)
    }
}

/// The byte that `<0xNN>` names.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (digits.len() == 2 && digits.bytes().all(upper)).then(|| u8::from_str_radix(digits, 16).ok())?
}
