//! A conversation with a model: how a message becomes text, and where an answer ends.

use super::{Generation, NextToken, Sampling, beginning, continue_with};
use crate::{Error, Result};

/// The text around a message, and the text that ends an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    before: String,
    after: String,
    pub stop: String,
}

impl Template {
    /// `text` has `{message}` once, and `\n` for the ends of lines.
    pub fn parse(text: &str, stop: &str) -> Result<Self> {
        let lines = |s: &str| s.replace("\\n", "\n");
        match text.split_once("{message}") {
            Some((before, after)) if !after.contains("{message}") => {
                Ok(Template { before: lines(before), after: lines(after), stop: lines(stop) })
            }
            _ => Err(Error::Config(format!("the template {text:?} must contain {{message}} exactly once"))),
        }
    }

    pub fn wrap(&self, message: &str) -> String {
        format!("{}{message}{}", self.before, self.after)
    }
}

/// Passes text on, but for what may be the beginning of the stop text, until it is clear that it is not.
struct UntilStop<'a> {
    stop: &'a str,
    held: String,
}

impl UntilStop<'_> {
    /// What can be shown of the text so far, and whether the stop text has come.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if self.stop.is_empty() {
            return (std::mem::take(&mut self.held), false);
        }
        if let Some(at) = self.held.find(self.stop) {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let longest = self.stop.len().min(self.held.len());
        let may_begin = |n: &usize| self.held.ends_with(&self.stop[..*n]);
        let kept = (1..=longest).rev().filter(|n| self.stop.is_char_boundary(*n)).find(may_begin).unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

/// Reads `message` after the conversation so far and answers it; `on_text` gets the answer as it comes and returns false to end it. The
/// generation's text is the answer without the stop text.
pub fn answer(
    model: &mut dyn NextToken,
    first: bool,
    message: &str,
    template: &Template,
    tokens: usize,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    let text = template.wrap(message);
    let ids = if first { beginning(model.tokenizer(), &text)? } else { model.tokenizer().encode(&text)? };
    let mut shown = String::new();
    let mut until = UntilStop { stop: &template.stop, held: String::new() };
    let mut ended = false;
    let mut generation = continue_with(model, &ids, tokens, sampling, &mut |piece| {
        let (text, stop) = until.push(piece);
        shown.push_str(&text);
        ended = stop;
        let wanted = text.is_empty() || on_text(&text);
        wanted && !stop
    })?;
    if !ended && !until.held.is_empty() {
        // The answer ended in what could have become the stop text.
        on_text(&until.held);
        shown.push_str(&until.held);
    }
    if !ended && !template.stop.is_empty() {
        // However an answer ended, the next message comes after its end.
        let end = model.tokenizer().encode(&template.stop)?;
        model.advance(&end)?;
    }
    generation.text = shown;
    generation.finished |= ended;
    Ok(generation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{CharTokenizer, SpecialTokens, Tokenizer};

    /// Says a fixed text, one character after another, whatever it reads.
    struct Parrot {
        tokenizer: Tokenizer,
        says: Vec<u32>,
        read: Vec<u32>,
        said: usize,
    }

    impl NextToken for Parrot {
        fn tokenizer(&self) -> &Tokenizer {
            &self.tokenizer
        }
        fn context(&self) -> usize {
            64
        }
        fn next_logits(&mut self, _: &[u32]) -> Result<Vec<f32>> {
            let mut logits = vec![0.0; self.tokenizer.vocab_size()];
            logits[self.says[self.said % self.says.len()] as usize] = 9.0;
            Ok(logits)
        }
        fn restart(&mut self) -> Result<()> {
            Ok(())
        }
        fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
            self.read.extend(tokens);
            let logits = self.next_logits(&[])?;
            self.said += 1;
            Ok(logits)
        }
        fn position(&self) -> u64 {
            self.read.len() as u64
        }
    }

    fn parrot(says: &str) -> Parrot {
        let characters = "\n abcdehlouy:.".chars().collect::<std::collections::BTreeSet<_>>();
        let tokenizer =
            Tokenizer::Char(CharTokenizer::new(characters.into_iter().collect(), SpecialTokens::none()).unwrap());
        let says = tokenizer.encode(says).unwrap();
        Parrot { tokenizer, says, read: vec![], said: 0 }
    }

    const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 1 };

    #[test]
    fn an_answer_ends_before_its_stop_text_which_is_never_shown() {
        let mut model = parrot("hello.\nyou\n\nhe");
        let template = Template::parse("a: {message}\\nb: ", "\\n\\n").unwrap();
        let mut pieces = Vec::new();
        let got = answer(&mut model, true, "hello", &template, 40, &GREEDY, &mut |p| {
            pieces.push(p.to_string());
            true
        })
        .unwrap();
        assert_eq!((got.text.as_str(), got.finished), ("hello.\nyou", true));
        assert_eq!(pieces.concat(), "hello.\nyou");
        // One end of line alone was held back until it was clear that no second one follows.
        assert!(pieces.contains(&"\ny".to_string()), "{pieces:?}");
        assert_eq!(model.tokenizer.decode(&model.read).unwrap(), "a: hello\nb: hello.\nyou\n\n");
    }

    #[test]
    fn an_answer_cut_short_is_ended_for_the_next_message() {
        let mut model = parrot("hello\n");
        let template = Template::parse("{message}:", "\\n\\n").unwrap();
        let got = answer(&mut model, true, "a", &template, 6, &GREEDY, &mut |_| true).unwrap();
        assert_eq!((got.text.as_str(), got.finished), ("hello\n", false));
        assert!(model.tokenizer.decode(&model.read).unwrap().ends_with("hello\n\n\n"));
    }

    #[test]
    fn templates_need_one_message() {
        for bad in ["", "hello", "{message} {message}"] {
            assert!(Template::parse(bad, "").unwrap_err().to_string().contains("exactly once"));
        }
    }
}
