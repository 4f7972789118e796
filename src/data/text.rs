//! Any UTF-8 text file as a corpus.

use super::corpus::{Layout, TextCorpus};
use super::files::read_utf8;
use crate::{Error, Result};
use std::path::Path;

/// nanoGPT's split: the last tenth of the file validates.
pub const DEFAULT_VAL_FRACTION: f64 = 0.1;

/// Loads a file and splits it by position: the first `1 - val_fraction` of its characters train, the contiguous tail
/// validates (nanoGPT's `int(n * 0.9)`), so that no validation sentence surrounds or follows into a training one.
pub fn load(path: &Path, val_fraction: f64) -> Result<TextCorpus> {
    from_text(&path.display().to_string(), read_utf8(path)?, val_fraction)
}

/// [`load`] for text already in memory; `name` stands in messages.
pub fn from_text(name: &str, text: String, val_fraction: f64) -> Result<TextCorpus> {
    if !(0.0..1.0).contains(&val_fraction) {
        return Err(Error::Config(format!(
            "val_fraction = {val_fraction}: must be at least 0 and less than 1 (for example 0.1)"
        )));
    }
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    if text.is_empty() {
        return Err(Error::Data(format!("{name}: the file is empty; give a file with text in it")));
    }
    let characters = text.chars().count();
    // Rounded to a millionth first, so that 0.9 * 10 is 9 and not 8.999...
    let kept = ((characters as f64 * (1.0 - val_fraction)) * 1e6).round() / 1e6;
    let cut = text.char_indices().nth(kept as usize).map_or(text.len(), |(offset, _)| offset);
    let val = text[cut..].to_owned();
    let mut train = text;
    train.truncate(cut);
    let val = if val.is_empty() { vec![] } else { vec![val] };
    TextCorpus::new(name.to_owned(), Layout::Stream, vec![train], val, vec![])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_validates_and_nothing_is_lost_between_the_splits() {
        let text: String = (0..1003).map(|i| if i % 7 == 0 { 'ñ' } else { 'x' }).collect();
        let corpus = from_text("t", text.clone(), 0.1).unwrap();
        assert_eq!(corpus.train[0].chars().count(), 902);
        assert_eq!(corpus.train[0].clone() + &corpus.val[0], text);
        assert!(from_text("t", text, 0.0).unwrap().val.is_empty());
    }

    #[test]
    fn empty_text_and_a_bad_fraction_are_refused_and_a_byte_order_mark_is_dropped() {
        assert!(matches!(from_text("t", String::new(), 0.1), Err(Error::Data(m)) if m.contains("empty")));
        assert!(matches!(from_text("t", "\u{feff}".into(), 0.1), Err(Error::Data(_))));
        assert!(matches!(from_text("t", "abc".into(), 1.0), Err(Error::Config(_))));
        assert!(matches!(from_text("t", "abc".into(), f64::NAN), Err(Error::Config(_))));
        assert_eq!(from_text("t", "\u{feff}abc".into(), 0.0).unwrap().train[0], "abc");
    }
}
