//! Texts: where they end, what is shown of them when, and that a batch changes none.

use crate::toys::{Skill, Toy, letters};
use lynx_gpu::Result;
use lynx_gpu::infer::beams::{Beams, search};
use lynx_gpu::infer::{Finish, Generation, NextToken, Options, Sampling, batch, continue_text};
use lynx_gpu::tokenizer::spm::{Piece, PieceKind, SpmOptions, SpmTokenizer};
use lynx_gpu::tokenizer::{ByteTokenizer, Roles, SpecialTokens, Tokenizer};
use std::sync::Arc;

/// Says the same bytes over and over.
struct Sayer {
    tokenizer: Tokenizer,
    says: Vec<u32>,
    read: Vec<u32>,
}

impl Sayer {
    fn new(says: &[u8]) -> Self {
        let tokenizer = Tokenizer::Byte(ByteTokenizer::new(SpecialTokens::of_bytes()));
        Sayer { tokenizer, says: says.iter().map(|b| u32::from(*b)).collect(), read: vec![] }
    }
}

impl NextToken for Sayer {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    fn context(&self) -> usize {
        usize::MAX
    }
    fn next_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; 259];
        // The first token read is the prompt.
        logits[self.says[(tokens.len() - 1) % self.says.len()] as usize] = 9.0;
        Ok(logits)
    }
    fn restart(&mut self) -> Result<()> {
        self.read.clear();
        Ok(())
    }
    fn position(&self) -> u64 {
        self.read.len() as u64
    }
    fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.read.extend(tokens);
        self.next_logits(&self.read.clone())
    }
}

fn greedy(tokens: usize) -> Options {
    Options::new(tokens, Sampling::greedy())
}

fn say(says: &[u8], options: &Options) -> (Generation, Vec<String>, Sayer) {
    let (mut model, mut pieces) = (Sayer::new(says), vec![]);
    let made = continue_text(&mut model, &[0], options, &mut |piece| {
        pieces.push(piece.to_owned());
        true
    })
    .unwrap();
    assert_eq!(pieces.concat(), made.text, "what was shown is the text");
    (made, pieces, model)
}

#[test]
fn characters_appear_whole_and_a_stop_text_may_be_made_of_many_tokens() {
    let options = Options { stop: vec!["éz".into(), "STOP".into()], ..greedy(100) };
    let (made, pieces, model) = say("aéb🦊éSTéz".as_bytes(), &options);
    assert_eq!((made.text.as_str(), made.finish), ("aéb🦊éST", Finish::Stop));
    assert_eq!(made.tokens.len(), "aéb🦊éSTéz".len());
    assert!(pieces.contains(&"🦊".to_owned()));
    // What ended the text was read too.
    assert_eq!(model.read.len(), 1 + made.tokens.len());
}

#[test]
fn what_was_held_back_is_shown_when_the_text_ends() {
    let options = Options { stop: vec!["abcX".into()], ..greedy(3) };
    let (made, pieces, _) = say(b"abc", &options);
    assert_eq!((made.text.as_str(), made.finish), ("abc", Finish::Length));
    assert_eq!(pieces, ["", "", "", "abc"]);
    // A character that no token completed.
    let (made, _, _) = say("aé".as_bytes(), &greedy(2));
    assert_eq!(made.text, "a\u{fffd}");
}

/// SentencePiece puts a space before a text, which is not part of it; the space of a continuation is.
#[test]
fn a_continuation_keeps_the_space_it_begins_with() {
    let piece = |text: &str, kind| Piece { text: text.into(), score: 0.0, kind };
    let words = [" ", "a", " a", " b"].map(|text| piece(text, PieceKind::Normal));
    let first = [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control), ("</s>", PieceKind::Control)];
    let pieces = first.map(|(text, kind)| piece(text, kind)).into_iter().chain(words).collect();
    let roles = Roles { bos: Some(1), eos: vec![2], add_bos: Some(true), ..Roles::default() };
    let options = SpmOptions { add_space_prefix: true, mark_is_space: true };
    let tokenizer = Tokenizer::Spm(Arc::new(SpmTokenizer::new(pieces, options, roles).unwrap()));
    // Always " b".
    let options = Options { ignore_ends: true, ..greedy(2) };
    let options = Options { sampling: Sampling { logit_bias: vec![(6, 99.0)], ..Sampling::greedy() }, ..options };
    let said = |prompt: &[u32], before: &[u32]| {
        let options = Options { before: before.to_vec(), ..options.clone() };
        let mut model = Toy::new(&tokenizer, 1, 2.0, Skill::None);
        continue_text(&mut model, prompt, &options, &mut |_| true).unwrap().text
    };
    assert_eq!(said(&[1], &[]), "b b");
    assert_eq!(said(&[1, 5], &[]), " b b");
    assert_eq!(said(&[], &[1, 5]), " b b");
    let beams = Beams { width: 1, length_penalty: 1.0 };
    let mut model = Toy::new(&tokenizer, 1, 2.0, Skill::None);
    assert_eq!(search(&mut model, &[1, 5], &options, &beams).unwrap()[0].text, " b b");
}

#[test]
fn any_end_of_text_token_ends_it_and_none_when_told_so() {
    let options = Options { ends: vec![u32::from(b'!')], ..greedy(10) };
    let (made, _, model) = say(b"ab!", &options);
    assert_eq!((made.text.as_str(), made.finish, made.tokens.len()), ("ab", Finish::Eos, 2));
    assert_eq!(model.read.len(), 3, "the end is not read");
    let (made, _, _) = say(b"ab!", &Options { ignore_ends: true, ..options });
    // With its favourite banned the model says the smallest id.
    assert_eq!((made.text.as_str(), made.finish), ("ab\0ab\0ab\0a", Finish::Length));
}

#[test]
fn a_reader_that_wants_no_more_ends_the_text() {
    let mut model = Sayer::new(b"abc");
    let mut shown = 0;
    let made = continue_text(&mut model, &[0], &greedy(50), &mut |_| {
        shown += 1;
        shown < 4
    })
    .unwrap();
    assert_eq!((made.text.as_str(), made.finish), ("abca", Finish::Interrupted));
}

#[test]
fn an_empty_stop_text_and_a_bad_setting_are_refused() {
    let mut model = Sayer::new(b"a");
    let empty = Options { stop: vec![String::new()], ..greedy(1) };
    let error = |model: &mut Sayer, options: &Options| {
        continue_text(model, &[0], options, &mut |_| true).unwrap_err().to_string()
    };
    assert!(error(&mut model, &empty).contains("stop"));
    let mut cold = greedy(1);
    cold.sampling.temperature = -1.0;
    assert!(error(&mut model, &cold).contains("temperature"));
    assert!(model.read.is_empty(), "refused before anything is read");
}

#[test]
fn log_probabilities_are_the_models_own() {
    let tokenizer = letters(6, false);
    let sampling = Sampling { temperature: 0.3, top_k: 2, presence_penalty: 2.0, ..Sampling::default() };
    let options = Options { logprobs: Some(3), ..Options::new(8, sampling) };
    let mut model = Toy::new(&tokenizer, 5, 3.0, Skill::None);
    let made = continue_text(&mut model, &[1, 2], &options, &mut |_| true).unwrap();
    let mut read = vec![1, 2];
    for (score, token) in made.logprobs.iter().zip(&made.tokens) {
        let logits = model.known(&read);
        let total: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        let want = |t: u32| f64::from(logits[t as usize]) - total.ln();
        assert_eq!(score.chosen.token, *token);
        assert!((score.chosen.logprob - want(*token)).abs() < 1e-9);
        let mut order: Vec<u32> = (0..6).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        assert_eq!(score.top.iter().map(|t| t.token).collect::<Vec<_>>(), order[..3]);
        assert!(score.top.iter().all(|t| (t.logprob - want(t.token)).abs() < 1e-9));
        read.push(*token);
    }
    assert_eq!(made.logprobs.len(), 8);
}

#[test]
fn a_text_ends_where_the_model_has_no_more_room_and_a_longer_prompt_is_refused() {
    let mut model = Toy::new(&letters(5, false), 1, 2.0, Skill::None);
    model.capacity = 10;
    let made = continue_text(&mut model, &[1; 6], &greedy(50), &mut |_| true).unwrap();
    // Four more fit, and one after them need not be read.
    assert_eq!((made.tokens.len(), made.finish), (5, Finish::Length));
    model.restart().unwrap();
    let message = continue_text(&mut model, &[1; 11], &greedy(1), &mut |_| true).unwrap_err().to_string();
    assert!(
        message.contains("11 tokens") && message.contains("at most 10") && message.contains("shorten"),
        "{message}"
    );
}

#[test]
fn a_text_does_not_depend_on_the_batch() {
    let tokenizer = letters(6, true);
    let prompts: Vec<Vec<u32>> = (0..7u32).map(|i| (0..=i % 4).map(|j| 1 + (i + j) % 5).collect()).collect();
    let sampling = Sampling { temperature: 1.2, top_p: 0.9, presence_penalty: 0.5, ..Sampling::default() };
    let options = Options { stop: vec!["cc".into(), "ab".into()], logprobs: Some(1), ..Options::new(30, sampling) };
    let alone: Vec<Generation> = (0u64..)
        .zip(&prompts)
        .map(|(i, prompt)| {
            let mut options = options.clone();
            options.sampling.seed += i;
            continue_text(&mut Toy::new(&tokenizer, 3, 2.0, Skill::None), prompt, &options, &mut |_| true).unwrap()
        })
        .collect();
    let ends: Vec<Finish> = alone.iter().map(|a| a.finish).collect();
    assert!(ends.contains(&Finish::Eos) && ends.contains(&Finish::Stop), "{ends:?}");
    for at_once in [1, 3, 7, 20] {
        let mut done = vec![];
        let mut model = Toy::new(&tokenizer, 3, 2.0, Skill::Beside(20));
        let made = batch(&mut model, &prompts, &options, at_once, &mut |i, _| {
            done.push(i);
            Ok(())
        })
        .unwrap();
        assert_eq!(made, alone, "{at_once} at once");
        assert_eq!(done, (0..7).collect::<Vec<_>>());
    }
    let mut one = Toy::new(&tokenizer, 3, 2.0, Skill::None);
    assert!(batch(&mut one, &prompts, &options, 2, &mut |_, _| Ok(())).is_err());
    assert_eq!(batch(&mut one, &prompts, &options, 1, &mut |_, _| Ok(())).unwrap(), alone);
    one.capacity = 2;
    let message = batch(&mut one, &prompts, &options, 1, &mut |_, _| Ok(())).unwrap_err().to_string();
    assert!(message.contains("prompt 3: the prompt has 3 tokens"), "{message}");
}
