//! Speculation changes how fast a text comes, not which text, nor how likely it is.

use crate::toys::{Skill, Toy, check_fit, letters};
use lynx_gpu::infer::speculative::{Acceptance, Draft, continue_text as speculate};
use lynx_gpu::infer::{Finish, Generation, NextToken, Options, Sampler, Sampling, continue_text};
use lynx_gpu::tokenizer::Tokenizer;

const PROMPT: [u32; 3] = [1, 2, 1];

fn toy(tokenizer: &Tokenizer, seed: u64) -> Toy {
    Toy::new(tokenizer, seed, 2.0, Skill::Rewinds)
}

/// What was generated, and the target after it: it must have read the prompt and the text, and nothing else.
fn run(target: &mut Toy, draft: Draft, options: &Options, ahead: usize) -> (Generation, Acceptance) {
    target.restart().unwrap();
    let (made, acceptance) = speculate(target, draft, &PROMPT, options, ahead, &mut |_| true).unwrap();
    let mut read = [&PROMPT[..], &made.tokens].concat();
    read.truncate(target.capacity);
    assert_eq!(target.texts[0], read);
    assert_eq!(acceptance.tokens as usize, made.tokens.len());
    (made, acceptance)
}

/// The probability of every text of three tokens, from the samplers' distributions along each.
fn joint(target: &Toy, sampling: &Sampling, tokens: u32) -> Vec<f64> {
    let mut all = vec![];
    for text in 0..tokens.pow(3) {
        let (mut read, mut p) = (PROMPT.to_vec(), 1.0);
        let mut sampler = Sampler::new(sampling).unwrap();
        for token in [text / tokens / tokens, text / tokens % tokens, text % tokens] {
            let from = sampler.distribution(&target.known(&read)).unwrap();
            p *= from.probability(token);
            if p > 0.0 {
                sampler.accept(token, &from);
            }
            read.push(token);
        }
        all.push(p);
    }
    all
}

/// Chi-square of 10^5 texts of three tokens, all three together: places depend on each other by the penalties and by what was read.
#[test]
fn texts_have_the_targets_distribution_with_any_draft_and_sampler() {
    let tokenizer = letters(4, false);
    let penalties = Sampling { repeat_penalty: 1.5, frequency_penalty: 0.4, ..Sampling::default() };
    let cases = [
        ("plain", Sampling::default(), 3),
        ("cut", Sampling { temperature: 1.4, top_p: 0.85, ..Sampling::default() }, 2),
        ("penalties", Sampling { min_p: 0.1, ..penalties }, 5),
        ("mirostat", Sampling { mirostat_tau: 0.9, mirostat_eta: 0.5, ..Sampling::default() }, 2),
    ];
    for (name, sampling, ahead) in cases {
        let (mut target, mut draft) = (toy(&tokenizer, 8), toy(&tokenizer, 9));
        let mut options = Options::new(3, sampling.clone());
        let mut counts = [0u64; 64];
        let mut taken = 0;
        for seed in 0..100_000 {
            options.sampling.seed = seed;
            let (made, acceptance) = run(&mut target, Draft::Model(&mut draft), &options, ahead);
            taken += acceptance.accepted;
            counts[made.tokens.iter().fold(0, |n, t| n * 4 + *t as usize)] += 1;
        }
        assert!(taken > 20_000, "{name}: {taken} proposals taken test little");
        check_fit(name, &counts, &joint(&target, &sampling, 4));
    }
}

#[test]
fn greedy_texts_are_the_same_with_any_draft() {
    let tokenizer = letters(6, true);
    for seed in 0..40 {
        let options = Options { stop: vec!["ee".into()], logprobs: Some(2), ..Options::new(40, Sampling::greedy()) };
        let want = continue_text(&mut toy(&tokenizer, seed), &PROMPT, &options, &mut |_| true).unwrap();
        for ahead in [1, 2, 7] {
            // A draft that is often right: the same model, but forgetful.
            let mut draft = Toy { forgetful: seed % 2 == 0, ..toy(&tokenizer, seed + seed % 3) };
            let (made, _) = run(&mut toy(&tokenizer, seed), Draft::Model(&mut draft), &options, ahead);
            assert_eq!(made, want);
            let (made, _) = run(&mut toy(&tokenizer, seed), Draft::Text { longest: 3 }, &options, ahead);
            assert_eq!(made, want);
        }
    }
}

/// A draft that copies draws nothing: the target's own number decides, as without it.
#[test]
fn drawn_texts_are_the_same_with_the_text_as_draft() {
    let tokenizer = letters(4, true);
    let mut accepted = 0;
    for seed in 0..200 {
        let sampling = Sampling { seed, temperature: 0.8, presence_penalty: 0.2, ..Sampling::default() };
        let options = Options { stop: vec!["bb".into()], ..Options::new(60, sampling) };
        let mut model = Toy { forgetful: true, ..toy(&tokenizer, 4) };
        let want = continue_text(&mut model, &PROMPT, &options, &mut |_| true).unwrap();
        let (made, acceptance) = run(&mut model, Draft::Text { longest: 2 }, &options, 4);
        assert_eq!(made, want);
        accepted += acceptance.accepted;
    }
    assert!(accepted > 100);
}

#[test]
fn a_draft_that_is_always_right_saves_passes_and_one_that_never_is_saves_none() {
    let tokenizer = letters(8, false);
    for sampling in [Sampling::greedy(), Sampling::default()] {
        let options = Options::new(61, sampling);
        let (mut target, mut draft) = (toy(&tokenizer, 3), toy(&tokenizer, 3));
        let (made, acceptance) = run(&mut target, Draft::Model(&mut draft), &options, 5);
        // The first token comes with the prompt, then each pass gives five and one more.
        assert_eq!((made.tokens.len(), acceptance.passes, acceptance.rate()), (61, 10, 1.0));
        assert_eq!((acceptance.proposed, acceptance.tokens_per_pass()), (50, 6.1));
        // The draft reads every token once.
        assert!(draft.texts[0].len() <= PROMPT.len() + 61);
    }
    // The text never repeats what it is looked for.
    let target = toy(&tokenizer, 3);
    let bias = vec![(0, 50.0)];
    let wrong = Sampling { logit_bias: bias, ..Sampling::greedy() };
    let mut contrary = Contrary(toy(&tokenizer, 3));
    let (made, acceptance) = run(&mut target.clone(), Draft::Model(&mut contrary), &Options::new(20, wrong.clone()), 3);
    assert_eq!(made.tokens, [0; 20]);
    assert_eq!((acceptance.rate(), acceptance.passes), (0.0, 19));
}

/// A draft that gives token 0 so little that no bias brings it back.
struct Contrary(Toy);

impl NextToken for Contrary {
    fn tokenizer(&self) -> &Tokenizer {
        self.0.tokenizer()
    }
    fn context(&self) -> usize {
        self.0.context()
    }
    fn next_logits(&mut self, tokens: &[u32]) -> lynx_gpu::Result<Vec<f32>> {
        self.0.next_logits(tokens)
    }
    fn restart(&mut self) -> lynx_gpu::Result<()> {
        self.0.restart()
    }
    fn position(&self) -> u64 {
        self.0.position()
    }
    fn rewind(&mut self, length: u64) -> lynx_gpu::Result<()> {
        self.0.rewind(length)
    }
    fn advance(&mut self, tokens: &[u32]) -> lynx_gpu::Result<Vec<f32>> {
        let mut logits = self.0.advance(tokens)?;
        logits[0] = -1000.0;
        Ok(logits)
    }
}

#[test]
fn a_text_ends_in_time_whatever_was_proposed() {
    let tokenizer = letters(5, true);
    for (tokens, capacity) in [(0, 100), (1, 100), (2, 100), (7, 100), (50, 12)] {
        let options = Options { ignore_ends: true, ..Options::new(tokens, Sampling::greedy()) };
        let small = |seed: u64| Toy { capacity, ..toy(&tokenizer, seed) };
        let want = continue_text(&mut small(6), &PROMPT, &options, &mut |_| true).unwrap();
        let (made, _) = run(&mut small(6), Draft::Model(&mut small(6)), &options, 4);
        assert_eq!(made, want);
        assert_eq!(made.finish, Finish::Length);
        // A draft with less room than the target stops proposing.
        let mut smaller = Toy { capacity: 8, ..toy(&tokenizer, 6) };
        assert_eq!(run(&mut small(6), Draft::Model(&mut smaller), &options, 4).0, want);
    }
}

#[test]
fn an_interrupted_text_leaves_the_model_after_what_was_shown() {
    let tokenizer = letters(8, false);
    let (mut target, mut draft) = (toy(&tokenizer, 3), toy(&tokenizer, 3));
    let mut shown = 0;
    let options = Options::new(60, Sampling::default());
    let (made, _) = speculate(&mut target, Draft::Model(&mut draft), &PROMPT, &options, 5, &mut |_| {
        shown += 1;
        shown < 9
    })
    .unwrap();
    assert_eq!((made.finish, made.tokens.len()), (Finish::Interrupted, 9));
    assert_eq!(target.texts[0], [&PROMPT[..], &made.tokens].concat());
}

#[test]
fn models_that_do_not_fit_together_are_refused() {
    let tokenizer = letters(5, false);
    let options = Options::new(5, Sampling::greedy());
    let refusal = |target: &mut Toy, draft: Draft| {
        speculate(target, draft, &PROMPT, &options, 3, &mut |_| true).unwrap_err().to_string()
    };
    let more = refusal(&mut toy(&tokenizer, 1), Draft::Model(&mut toy(&letters(6, false), 1)));
    assert!(more.contains("the model has 5, the draft 6"), "{more}");
    let other = refusal(&mut toy(&tokenizer, 1), Draft::Model(&mut toy(&letters(5, true), 1)));
    assert!(other.contains("id 0"), "{other}");
    let mut stuck = Toy::new(&tokenizer, 1, 2.0, Skill::None);
    assert!(refusal(&mut stuck, Draft::Text { longest: 2 }).contains("cannot go back"));
    assert!(refusal(&mut toy(&tokenizer, 1), Draft::Text { longest: 0 }).contains("at least 1"));
}
