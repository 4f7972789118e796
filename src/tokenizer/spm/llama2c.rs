//! The vocabulary of llama2.c's `tokenizer.bin`.

use super::{Piece, PieceKind, SpmOptions, SpmTokenizer, byte_of};
use crate::tokenizer::roles::Roles;
use crate::{Error, Result};

/// Ids 0, 1 and 2 of such a file, whose texts there are `<unk>`, "\n<s>\n" and "\n</s>\n".
const SPECIALS: [(&str, PieceKind); 3] =
    [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control), ("</s>", PieceKind::Control)];
/// The ids of the 256 bytes begin here.
const FIRST_BYTE: usize = 3;

impl SpmTokenizer {
    /// A tokenizer from the bytes of a `tokenizer.bin`: u32 length of the longest piece, then for every piece f32 score, u32 length and
    /// the text, all little endian. The count of pieces is in no header; the file's end is the vocabulary's.
    pub fn from_llama2c_bytes(data: &[u8]) -> Result<Self> {
        let cut =
            |at: usize| Error::Data(format!("tokenizer.bin: it ends within a piece at byte {at} of {}", data.len()));
        let word = |at: usize| -> Result<[u8; 4]> {
            data.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(|| cut(at))
        };
        word(0)?;
        let mut at = 4;
        let mut entries = Vec::new();
        while at < data.len() {
            let score = f32::from_le_bytes(word(at)?);
            let length = u32::from_le_bytes(word(at + 4)?) as usize;
            let start = at + 8;
            let text = start.checked_add(length).and_then(|end| data.get(start..end)).ok_or_else(|| cut(at))?;
            entries.push((text.to_vec(), score));
            at = start + length;
        }
        Self::from_llama2c(entries)
    }

    /// A tokenizer from the texts and scores of a `tokenizer.bin` in order. Its first ids are the unknown token, the beginning and the
    /// end, then the 256 bytes. Both the end and the beginning end a text, since the programs that run these models stop at either.
    pub fn from_llama2c(entries: Vec<(Vec<u8>, f32)>) -> Result<Self> {
        if entries.len() < FIRST_BYTE + 256 {
            return Err(Error::Data(format!(
                "tokenizer.bin: {} pieces; a llama2.c vocabulary has at least {}: unknown, beginning, end and 256 bytes",
                entries.len(),
                FIRST_BYTE + 256
            )));
        }
        let mut pieces = Vec::with_capacity(entries.len());
        for (id, (text, score)) in entries.into_iter().enumerate() {
            let text = String::from_utf8(text).map_err(|e| {
                let shown = crate::tokenizer::display(e.as_bytes());
                Error::Data(format!("tokenizer.bin: piece {id} '{shown}' is not UTF-8"))
            })?;
            let (text, kind) = match SPECIALS.get(id) {
                Some(&(name, kind)) => (name.to_owned(), kind),
                None if id < FIRST_BYTE + 256 => {
                    if byte_of(&text).map(usize::from) != Some(id - FIRST_BYTE) {
                        return Err(Error::Data(format!(
                            "tokenizer.bin: piece {id} is '{}' where <0x{:02X}> is expected",
                            crate::tokenizer::display(text.as_bytes()),
                            id - FIRST_BYTE
                        )));
                    }
                    (text, PieceKind::Byte)
                }
                None => (text, PieceKind::Normal),
            };
            pieces.push(Piece { text, score, kind });
        }
        let roles = Roles { bos: Some(1), eos: vec![2, 1], unk: Some(0), add_bos: Some(true), ..Roles::default() };
        Self::new(pieces, SpmOptions { add_space_prefix: true, mark_is_space: false }, roles)
    }

    /// The texts and scores of a llama2.c `tokenizer.bin`, whose first number is the bytes of the longest text. Fails where the file
    /// cannot say what this tokenizer does: other ids for the special tokens and bytes, further control tokens, or no space before a
    /// text.
    pub fn to_llama2c(&self) -> Result<Vec<(Vec<u8>, f32)>> {
        let cannot = |why: String| Error::Data(format!("a llama2.c tokenizer.bin cannot hold this tokenizer: {why}"));
        if !self.options.add_space_prefix {
            return Err(cannot("it puts no space before a text".into()));
        }
        let mut entries = Vec::with_capacity(self.pieces.len());
        for (id, piece) in self.pieces.iter().enumerate() {
            let fits = match id {
                0 => piece.kind == PieceKind::Unknown,
                1 | 2 => piece.kind == PieceKind::Control,
                3..259 => byte_of(&piece.text).map(usize::from) == Some(id - FIRST_BYTE),
                _ => matches!(piece.kind, PieceKind::Normal | PieceKind::Unused),
            };
            if !fits {
                return Err(cannot(format!(
                    "piece {id} '{}' is {:?} (ids 0 to 2 must be unknown, beginning and end, 3 to 258 the bytes, the rest text)",
                    super::super::display(piece.text.as_bytes()),
                    piece.kind
                )));
            }
            let text = match id {
                1 | 2 => format!("\n{}\n", piece.text),
                _ => piece.text.clone(),
            };
            entries.push((text.into_bytes(), piece.score));
        }
        if entries.len() < FIRST_BYTE + 256 {
            return Err(cannot(format!("it has {} pieces, and 259 are taken", entries.len())));
        }
        Ok(entries)
    }
}
