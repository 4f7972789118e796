//! The vocabulary of llama2.c, `tokenizer.bin`: u32 length of the longest text, then for each token f32 score, i32 length and the text.
//! The number of tokens is the model's and stands nowhere: the file ends after the last.

use crate::atomic::Atomic;
use crate::cursor::Cursor;
use crate::{Error, Result, Source};
use std::path::Path;

/// A vocabulary; ids are places in the list.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    /// Texts, as bytes, and scores: where texts compete, the pair with the greatest score is merged first.
    pub tokens: Vec<(Vec<u8>, f32)>,
}

impl Tokenizer {
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let source = Source::open(path)?;
        Self::parse(source.name(), source.bytes())
    }

    /// Reads a vocabulary in memory, called `name` in messages.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(name, bytes);
        let longest = cursor.u32("the length of the longest token")?;
        let mut tokens = Vec::new();
        while cursor.remaining() > 0 {
            let what = format!("token {}", tokens.len());
            let score = cursor.f32(&what)?;
            let len = cursor.u32(&what)?;
            if len > longest {
                let what = format!(
                    "{what} would have {len} bytes, but the longest has {longest}: it is no llama2.c vocabulary"
                );
                return Err(cursor.damaged(what));
            }
            if score.is_nan() {
                return Err(cursor.damaged(format!("{what} has a score that is not a number")));
            }
            tokens.push((cursor.take(len.into(), &what)?.to_vec(), score));
        }
        Ok(Tokenizer { tokens })
    }

    /// Writes the vocabulary, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unwritable`] for a text longer than an i32 can say.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = Atomic::create(path.as_ref())?;
        let longest = self.tokens.iter().map(|(text, _)| text.len()).max().unwrap_or(0);
        let longest = i32::try_from(longest).map_err(|_| file.refuse(format!("a token of {longest} bytes")))?;
        file.write(&longest.to_le_bytes())?;
        for (text, score) in &self.tokens {
            file.write(&score.to_le_bytes())?;
            file.write(&(text.len() as i32).to_le_bytes())?;
            file.write(text)?;
        }
        file.commit()
    }

    /// # Errors
    /// [`Error::Missing`] unless there are as many tokens as a model's `vocab_size`; `name` is the file's.
    pub fn check_size(&self, name: &str, vocab_size: usize) -> Result<()> {
        if self.tokens.len() == vocab_size {
            return Ok(());
        }
        let what = format!("{} tokens, but the model has {vocab_size}: they do not belong together", self.tokens.len());
        Err(Error::missing(name, what))
    }
}
