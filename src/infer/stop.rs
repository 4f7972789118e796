//! Texts that end a text.

use crate::{Error, Result};

/// Passes text on, but for what may be the beginning of a stop text, until it is clear that it is not.
pub(super) struct Stops<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> Stops<'a> {
    pub(super) fn new(stops: &'a [String]) -> Result<Self> {
        match stops.iter().any(String::is_empty) {
            true => Err(Error::Config("an empty stop text would end every text: leave it out".into())),
            false => Ok(Stops { stops, held: String::new() }),
        }
    }

    /// What can be shown of the text so far, and whether a stop text has come: the one that begins first, which is not shown.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let kept = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back when no more comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// How many bytes at the end of `text` are a beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let longest = stop.len().min(text.len());
    let fits = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..=longest).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut until = Stops::new(&stops).unwrap();
        let mut shown = vec![];
        for piece in pieces {
            let (text, stop) = until.push(piece);
            shown.push(text);
            if stop {
                return (shown, true);
            }
        }
        shown.push(until.finish());
        (shown, false)
    }

    #[test]
    fn a_stop_text_may_be_spread_over_pieces() {
        assert_eq!(stream(&["END"], &["aE", "N", "Db"]), (vec!["a".into(), "".into(), "".into()], true));
        assert_eq!(
            stream(&["END"], &["aE", "NE", "ND."]),
            (vec!["a".into(), "EN".into(), "".into()], true),
            "the beginning that failed is shown, the one inside it is held"
        );
    }

    #[test]
    fn what_never_became_a_stop_text_is_shown_at_the_end() {
        assert_eq!(stream(&["END"], &["aEN"]), (vec!["a".into(), "EN".into()], false));
        assert_eq!(stream(&["éé"], &["é", "è"]), (vec!["".into(), "éè".into(), "".into()], false));
    }

    #[test]
    fn of_several_stop_texts_the_first_in_the_text_ends_it() {
        assert_eq!(stream(&["yy", "x"], &["abx yy"]).0, ["ab"]);
        assert_eq!(stream(&["yy", "x"], &["a", "by", "yx"]).0.concat(), "ab");
        assert_eq!(stream(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert!(Stops::new(&["".into()]).is_err());
    }
}
