//! Reading a calibration text.

use super::model::Calibration;
use crate::evals::perplexity::lines;
use crate::models::Session;
use crate::models::session::observe::Moment;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How much of a text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Tokens of a chunk; less where the model's context or the text is shorter.
    pub tokens: usize,
    pub chunks: usize,
    /// Every line of the text is a text of its own: its tokens stand between those that texts begin and end with.
    pub lines: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Reading { tokens: 512, chunks: 32, lines: false }
    }
}

/// The first chunks of `text`, each beginning with the token that texts of this model begin with, if they do.
///
/// # Errors
/// A text that the tokenizer cannot take, or of less than two tokens.
pub fn chunks(tokenizer: &Tokenizer, context: usize, text: &str, reading: Reading) -> Result<Vec<Vec<u32>>> {
    let bos = tokenizer.start_id().filter(|_| !reading.lines);
    let tokens = if reading.lines { lines(tokenizer, text)?.concat() } else { tokenizer.encode_whole(text)? };
    let length = reading.tokens.min(context).min(tokens.len());
    if length < 2 || reading.chunks == 0 {
        let have = tokens.len();
        return Err(Error::Data(format!(
            "a calibration text of {have} tokens, {} chunks of {}: at least one chunk of two tokens is needed",
            reading.chunks, reading.tokens
        )));
    }
    let mut chunks: Vec<Vec<u32>> = tokens.chunks_exact(length).take(reading.chunks).map(<[u32]>::to_vec).collect();
    if let Some(bos) = bos {
        chunks.iter_mut().for_each(|c| c[0] = bos);
    }
    Ok(chunks)
}

/// Reads the first chunks of `text`; `after` hears the share that is done.
///
/// # Errors
/// As [`chunks`] and `Session::observe`.
pub fn calibrate(
    session: &mut Session,
    text: &str,
    about: &str,
    reading: Reading,
    moment: Moment,
    after: &mut dyn FnMut(f64) -> bool,
) -> Result<Calibration> {
    use crate::infer::NextToken;
    let chunks = chunks(session.tokenizer(), NextToken::context(session), text, reading)?;
    let moments = session.observe(&chunks, moment, after)?;
    Ok(Calibration { moments, about: about.into(), chunks: (chunks.len(), chunks[0].len()) })
}
