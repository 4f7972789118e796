//! A tokenizer as the vocabulary of a GGUF file.

use super::{GgufVocabulary, pre};
use crate::tokenizer::huggingface::byte_level;
use crate::tokenizer::special::SpecialTokens;
use crate::tokenizer::spm::{PieceKind, SPACE_MARK, SpmTokenizer};
use crate::tokenizer::{BpeTokenizer, ByteTokenizer, CharTokenizer, PreSplit, Tokenizer, display, special};
use crate::{Error, Result};

/// A vocabulary, and what somebody who runs it in llama.cpp should know.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub vocabulary: GgufVocabulary,
    /// Texts that llama.cpp will encode otherwise, and other differences: a sentence each.
    pub notes: Vec<String>,
}

impl Tokenizer {
    /// The vocabulary of a GGUF file with which llama.cpp encodes texts as this tokenizer does. Where it can only do so for some texts a
    /// note says for which; where it cannot at all, that is an error.
    ///
    /// Characters are pieces of a SentencePiece vocabulary that no piece joins. Bytes and byte-level BPE are `gpt2` vocabularies. A
    /// `tokenizer.json` is one or the other, if its steps are known.
    pub fn to_gguf_vocabulary(&self) -> Result<Written> {
        let mut written = match self {
            Tokenizer::Char(t) => characters(t)?,
            Tokenizer::Byte(t) => bytes(t),
            Tokenizer::Bpe(t) => bpe(t)?,
            Tokenizer::Spm(t) => sentence_piece(t)?,
            Tokenizer::HuggingFace(t) => super::from_json::vocabulary(t)?,
        };
        let vocabulary = &mut written.vocabulary;
        vocabulary.add_bos = Some(self.start_id().is_some());
        vocabulary.bos = self.start_id().or(self.bos_id());
        vocabulary.pad = self.pad_id();
        let ends = self.eos_ids();
        (vocabulary.eos, vocabulary.eot) = (ends.first().copied(), ends.get(1).copied());
        vocabulary.add_eos = Some(self.roles().is_some_and(|roles| roles.add_eos));
        vocabulary.chat_template = self.chat_template().map(str::to_owned);
        if vocabulary.eos.is_none() {
            let id = if vocabulary.model == "llama" { 2 } else { 11 };
            if (id as usize) < vocabulary.tokens.len() {
                written.notes.push(format!(
                    "the tokenizer has no token that ends a text; llama.cpp takes id {id} ('{}') for it",
                    display(&vocabulary.tokens[id])
                ));
            }
        }
        Ok(written)
    }
}

/// Puts special tokens' names and types at their ids.
fn place_specials(vocabulary: &mut GgufVocabulary, specials: &SpecialTokens) {
    for (id, name) in (specials.first() as usize..).zip(specials.names()) {
        vocabulary.tokens[id] = name.as_bytes().to_vec();
        let unknown = name == special::UNKNOWN;
        vocabulary.types[id] = if unknown { PieceKind::Unknown } else { PieceKind::Control } as i32;
    }
}

fn characters(t: &CharTokenizer) -> Result<Written> {
    if t.characters().contains(&SPACE_MARK) {
        return Err(Error::Data(format!(
            "a GGUF vocabulary cannot hold this character tokenizer: {SPACE_MARK} (U+2581) stands for the space there, and is a character \
             of its own here"
        )));
    }
    let count = t.vocab_size();
    let mut vocabulary = GgufVocabulary {
        model: "llama".into(),
        pre: "default".into(),
        tokens: vec![vec![]; t.specials().len()],
        scores: vec![0.0; count],
        types: vec![PieceKind::Normal as i32; count],
        add_space_prefix: Some(false),
        remove_extra_whitespaces: Some(false),
        unk: t.specials().id(special::UNKNOWN),
        ..GgufVocabulary::default()
    };
    let written = |c: &char| if *c == ' ' { SPACE_MARK.to_string() } else { c.to_string() };
    vocabulary.tokens.extend(t.characters().iter().map(|c| written(c).into_bytes()));
    place_specials(&mut vocabulary, t.specials());
    let notes = vec![
        "llama.cpp stops the program at a character that is not in the alphabet, since the vocabulary has no bytes"
            .to_owned(),
    ];
    Ok(Written { vocabulary, notes })
}

/// The part that bytes and byte-level BPE share. Nothing merges in a byte tokenizer, so any way of cutting will do.
fn byte_level_vocabulary(tokens: Vec<Vec<u8>>, pre: &str) -> GgufVocabulary {
    GgufVocabulary {
        model: "gpt2".into(),
        pre: pre.into(),
        types: vec![PieceKind::Normal as i32; tokens.len()],
        tokens: tokens.iter().map(|token| byte_level(token).into_bytes()).collect(),
        ..GgufVocabulary::default()
    }
}

fn bytes(t: &ByteTokenizer) -> Written {
    let tokens = (0..t.vocab_size() as u32).map(|id| t.token_bytes(id).unwrap_or_default()).collect();
    let mut vocabulary = byte_level_vocabulary(tokens, "gpt-2");
    place_specials(&mut vocabulary, t.specials());
    Written { vocabulary, notes: vec![] }
}

fn bpe(t: &BpeTokenizer) -> Result<Written> {
    let tokens = (0..t.vocab_size() as u32).map(|id| t.token_bytes(id).unwrap_or_default().to_vec()).collect();
    let mut vocabulary = byte_level_vocabulary(tokens, "superbpe");
    place_specials(&mut vocabulary, t.specials());
    vocabulary.merges =
        t.merge_bytes().map(|(left, right)| format!("{} {}", byte_level(left), byte_level(right))).collect();
    let mut notes = Vec::new();
    // llama.cpp always cuts, at least where numbers begin and end: see [`pre::PRE_TOKENIZERS`].
    let crossing =
        t.merge_bytes().map(|(left, right)| [left, right].concat()).filter(|token| crosses_numbers(token)).count();
    if crossing > 0 {
        notes.push(format!(
            "llama.cpp cuts a text where numbers begin and end, and {crossing} of the merges join a digit to something else: texts with \
             digits get other tokens there"
        ));
    }
    if t.pre_split() == PreSplit::Whitespace {
        notes.push(
            "llama.cpp has no way to cut a text as this tokenizer does: several white-space characters before a word may get other \
             tokens there"
                .into(),
        );
    }
    Ok(Written { vocabulary, notes })
}

/// True if llama.cpp could cut within this token: it has a number and something else, or bytes of which a number might be made.
fn crosses_numbers(token: &[u8]) -> bool {
    let numeric = |text: &str| text.chars().any(char::is_numeric);
    if let Ok(text) = std::str::from_utf8(token) {
        // Digits are cut in threes as well.
        return text.chars().nth(1).is_some() && numeric(text);
    }
    // The end of one character, whole ones, the beginning of another.
    let head = token.iter().take_while(|&&byte| byte & 0xc0 == 0x80).count();
    let (head, rest) = token.split_at(head);
    let whole = match std::str::from_utf8(rest) {
        Ok(text) => text.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // In no text.
        Err(_) => return false,
    };
    let (whole, tail) = rest.split_at(whole);
    if head.len() == token.len() || tail.len() == token.len() {
        return false;
    }
    let mut bytes = [0; 4];
    let mut part_of_number = |part: &[u8], is_part: fn(&[u8], &[u8]) -> bool| {
        !part.is_empty()
            && ('\u{80}'..=char::MAX).any(|c| c.is_numeric() && is_part(c.encode_utf8(&mut bytes).as_bytes(), part))
    };
    numeric(&String::from_utf8_lossy(whole))
        || part_of_number(head, <[u8]>::ends_with)
        || part_of_number(tail, <[u8]>::starts_with)
}

fn sentence_piece(t: &SpmTokenizer) -> Result<Written> {
    let mut notes = Vec::new();
    if !t.options().mark_is_space {
        if let Some(id) = t.pieces().iter().position(|piece| piece.text.contains(SPACE_MARK)) {
            return Err(Error::Data(format!(
                "a GGUF vocabulary cannot hold this tokenizer: piece {id} has U+2581 in it, which stands for the space there"
            )));
        }
        notes.push("U+2581 in a text is a space in llama.cpp, and is encoded as bytes here".into());
    }
    if t.pieces().iter().all(|piece| piece.kind != PieceKind::Byte) {
        notes.push(
            "llama.cpp stops the program at a character that is no piece, since the vocabulary has no bytes".into(),
        );
    }
    let ids = 0..t.vocab_size() as u32;
    let vocabulary = GgufVocabulary {
        model: "llama".into(),
        pre: "default".into(),
        tokens: ids.map(|id| t.written(id).into_bytes()).collect(),
        scores: t.pieces().iter().map(|piece| piece.score).collect(),
        types: t.pieces().iter().map(|piece| piece.kind as i32).collect(),
        unk: t.unknown_id(),
        add_space_prefix: Some(t.options().add_space_prefix),
        remove_extra_whitespaces: Some(false),
        ..GgufVocabulary::default()
    };
    Ok(Written { vocabulary, notes })
}

/// What `patterns` and `ignore_merges` are called in GGUF.
pub(super) fn pre_name(patterns: &[String], ignore_merges: bool) -> Option<&'static str> {
    pre::PRE_TOKENIZERS
        .iter()
        .find(|pre| pre.patterns == patterns && pre.ignore_merges == ignore_merges)
        .map(|pre| pre.names[0])
}
