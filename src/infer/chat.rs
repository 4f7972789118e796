//! A conversation with a model: how messages become text, what of it is read, and where an answer ends.

use super::generation::Options;
use super::{Finish, Generation, NextToken, continue_text};
use crate::tokenizer::{ChatOptions, ChatTemplate, Message};
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

/// How messages become text.
pub enum Form {
    /// Each message in the same text. Only what is new is ever read, so that a model with a state of one size talks without an end.
    Around(Template),
    /// The whole conversation, written anew for every answer.
    Whole(ChatTemplate),
}

pub struct Conversation {
    form: Form,
    /// With a [`Form::Whole`]: what was said.
    messages: Vec<Message>,
    /// With a [`Form::Whole`]: the tokens that the model has read.
    read: Vec<u32>,
    forgotten: usize,
}

impl Conversation {
    pub fn new(form: Form) -> Self {
        Conversation { form, messages: vec![], read: vec![], forgotten: 0 }
    }

    /// What the model is told before the first message.
    ///
    /// # Errors
    /// A text around messages has no place for it.
    pub fn with_system(mut self, text: &str) -> Result<Self> {
        match self.form {
            Form::Whole(_) => self.messages.push(Message::new("system", text)),
            Form::Around(_) => {
                return Err(Error::Config(
                    "only a model with a chat template of its own takes a system message".into(),
                ));
            }
        }
        Ok(self)
    }

    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Messages that the last answer was made without, because the model has no room for them.
    pub fn forgotten(&self) -> usize {
        self.forgotten
    }

    /// Forgets all but the system message.
    pub fn reset(&mut self, model: &mut dyn NextToken) -> Result<()> {
        self.messages.retain(|m| m.role == "system");
        self.read.clear();
        model.restart()
    }

    /// Reads `message` after the conversation so far and answers it; `on_text` gets the answer as it comes and returns false to end it. The
    /// generation's text is the answer without the stop text. A message that cannot be read leaves the conversation as it was.
    pub fn answer(
        &mut self,
        model: &mut dyn NextToken,
        message: &str,
        options: &Options,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation> {
        let template = match &self.form {
            Form::Around(template) => return answer(model, message, template, options, on_text),
            Form::Whole(template) => template,
        };
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", message));
        // Who can go back keeps so many tokens; beyond them it would forget the beginning of the template.
        let capacity = match model.rewind(model.position()) {
            Ok(()) => model.position().saturating_add(model.room()).min(model.context() as u64),
            Err(_) => model.position().saturating_add(model.room()),
        };
        let written = ChatOptions::of(model.tokenizer(), true);
        let mut ids;
        self.forgotten = 0;
        loop {
            ids = template.encode(model.tokenizer(), &messages, &written)?;
            // An answer needs a place too. The oldest question goes first, with its answer.
            let oldest = messages.iter().position(|m| m.role != "system").unwrap_or(0);
            if (ids.len() as u64) < capacity || messages.len() < oldest + 3 {
                break;
            }
            messages.drain(oldest..oldest + 2);
            self.forgotten += 2;
        }
        if ids.len() as u64 >= capacity {
            return Err(Error::Data(format!(
                "the message makes a text of {} tokens and the model reads {capacity}: shorten it",
                ids.len()
            )));
        }
        let known = std::mem::take(&mut self.read);
        let shared = super::beams::common(&known, &ids).min(ids.len().saturating_sub(1));
        let as_known = model.position() == known.len() as u64;
        let shared = match as_known && (shared == known.len() || model.rewind(shared as u64).is_ok()) {
            true => shared,
            false => {
                model.restart()?;
                0
            }
        };
        let made = continue_text(model, &ids[shared..], options, on_text)?;
        // What the model has no room for it has not read.
        self.read = [&ids[..], &made.tokens].concat();
        self.read.truncate(model.position() as usize);
        messages.push(Message::new("assistant", made.text.trim()));
        self.messages = messages;
        Ok(made)
    }
}

/// Answers one message in a text around it.
fn answer(
    model: &mut dyn NextToken,
    message: &str,
    template: &Template,
    options: &Options,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    // Nothing that a person writes becomes a control token.
    let (tokenizer, text) = (model.tokenizer(), template.wrap(message));
    let ids = if model.position() == 0 { tokenizer.encode_whole(&text)? } else { tokenizer.encode_plain(&text)? };
    let end = template.stop.as_str();
    let mut options = options.clone();
    options.stop.extend((!end.is_empty()).then(|| end.to_owned()));
    let made = continue_text(model, &ids, &options, on_text)?;
    // However an answer ended, the next message comes after its end. Another stop text is not this end.
    let ended = made.finish == Finish::Stop && model.tokenizer().decode(&made.tokens)?.contains(end);
    if !ended && !end.is_empty() {
        let end = model.tokenizer().encode(end)?;
        model.advance(&end)?;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Sampling;
    use crate::tokenizer::{CharTokenizer, SpecialTokens, Tokenizer};

    /// Says a fixed text, one character after another, whatever it reads.
    struct Parrot {
        tokenizer: Tokenizer,
        says: Vec<u32>,
        read: Vec<u32>,
        said: usize,
        /// Tokens read in all, and how often from the beginning.
        taken: usize,
        restarts: usize,
        goes_back: bool,
        capacity: u64,
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
            self.read.clear();
            self.restarts += 1;
            Ok(())
        }
        fn room(&self) -> u64 {
            self.capacity - self.position()
        }
        fn rewind(&mut self, length: u64) -> Result<()> {
            if !self.goes_back {
                return Err(Error::Config("no".into()));
            }
            self.read.truncate(length as usize);
            Ok(())
        }
        fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
            self.read.extend(tokens);
            self.taken += tokens.len();
            // What it is asked comes in one piece, and it begins anew.
            if tokens.len() > 1 {
                self.said = 0;
            }
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
        Parrot { tokenizer, says, read: vec![], said: 0, taken: 0, restarts: 0, goes_back: true, capacity: 1000 }
    }

    fn greedy(tokens: usize) -> Options {
        Options::new(tokens, Sampling::greedy())
    }

    #[test]
    fn an_answer_ends_before_its_stop_text_which_is_never_shown() {
        let mut model = parrot("hello.\nyou\n\nhe");
        let template = Template::parse("a: {message}\\nb: ", "\\n\\n").unwrap();
        let mut pieces = Vec::new();
        let got = answer(&mut model, "hello", &template, &greedy(40), &mut |p| {
            pieces.push(p.to_string());
            true
        })
        .unwrap();
        assert_eq!((got.text.as_str(), got.finish), ("hello.\nyou", Finish::Stop));
        assert_eq!(pieces.concat(), "hello.\nyou");
        // One end of line alone was held back until it was clear that no second one follows.
        assert!(pieces.contains(&"\ny".to_string()), "{pieces:?}");
        assert_eq!(model.tokenizer.decode(&model.read).unwrap(), "a: hello\nb: hello.\nyou\n\n");
    }

    #[test]
    fn an_answer_cut_short_is_ended_for_the_next_message() {
        let mut model = parrot("hello\n");
        let template = Template::parse("{message}:", "\\n\\n").unwrap();
        let got = answer(&mut model, "a", &template, &greedy(6), &mut |_| true).unwrap();
        assert_eq!((got.text.as_str(), got.finish), ("hello\n", Finish::Length));
        assert!(model.tokenizer.decode(&model.read).unwrap().ends_with("hello\n\n\n"));
    }

    #[test]
    fn templates_need_one_message() {
        for bad in ["", "hello", "{message} {message}"] {
            assert!(Template::parse(bad, "").unwrap_err().to_string().contains("exactly once"));
        }
    }
    /// "a: " before a question, "b: " before an answer, an end of line after each.
    const LINES: &str =
        "{% for m in messages %}{{ 'b' if m.role == 'assistant' else 'a' }}: {{ m.content }}{{ '\\n' }}{% endfor %}b: ";

    fn lines() -> Form {
        Form::Whole(ChatTemplate::new(LINES).unwrap())
    }

    fn says_hello() -> (Parrot, Conversation, Options) {
        let options = Options { stop: vec!["\n".into()], ..greedy(40) };
        (parrot("hello\n"), Conversation::new(lines()), options)
    }

    #[test]
    fn of_a_conversation_written_anew_only_what_is_new_is_read() {
        let (mut model, mut talk, options) = says_hello();
        for (i, question) in ["abc", "you"].into_iter().enumerate() {
            let made = talk.answer(&mut model, question, &options, &mut |_| true).unwrap();
            assert_eq!((made.text.as_str(), made.finish), ("hello", Finish::Stop));
            assert_eq!(talk.messages().len(), 2 * (i + 1));
        }
        let all = "a: abc\nb: hello\na: you\nb: hello\n";
        assert_eq!(model.tokenizer.decode(&model.read).unwrap(), all);
        assert_eq!((model.taken, model.restarts), (all.len(), 0));
        talk.reset(&mut model).unwrap();
        assert!(talk.messages().is_empty() && model.read.is_empty());
    }

    #[test]
    fn where_the_text_changed_the_model_goes_back_or_begins_again() {
        for goes_back in [true, false] {
            let (mut model, mut talk, options) = says_hello();
            model.goes_back = goes_back;
            model.says = model.tokenizer.encode("  hello\n").unwrap();
            // Spaces around an answer are not part of what was said.
            talk.answer(&mut model, "abc", &options, &mut |_| true).unwrap();
            talk.answer(&mut model, "you", &options, &mut |_| true).unwrap();
            let read = model.tokenizer.decode(&model.read).unwrap();
            assert_eq!(read, "a: abc\nb: hello\na: you\nb:   hello\n");
            assert_eq!(model.restarts, usize::from(!goes_back));
        }
    }

    #[test]
    fn the_oldest_messages_make_room_and_a_message_without_room_is_refused() {
        let (mut model, mut talk, options) = says_hello();
        model.capacity = 40;
        let mut long = || talk.answer(&mut model, "you", &options, &mut |_| true).map(|_| talk.forgotten());
        assert_eq!([(); 4].map(|()| long().unwrap()), [0, 0, 2, 2]);
        let before = talk.messages().to_vec();
        let message = talk.answer(&mut model, &"a".repeat(50), &options, &mut |_| true).unwrap_err().to_string();
        assert!(message.contains("reads 40") && message.contains("shorten"), "{message}");
        assert_eq!(talk.messages(), before);
    }

    #[test]
    fn only_a_template_of_the_model_takes_a_system_message() {
        let fixed = Form::Around(Template::parse("{message}", "").unwrap());
        assert!(Conversation::new(fixed).with_system("be kind").is_err());
        let talk = Conversation::new(lines()).with_system("be kind").unwrap();
        assert_eq!(talk.messages(), [Message::new("system", "be kind")]);
    }
}
