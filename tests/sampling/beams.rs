//! Beam search against every text there is.

use crate::toys::{Skill, Toy, letters};
use lynx_gpu::infer::beams::{Beams, Hypothesis, search};
use lynx_gpu::infer::{Finish, Options, Sampling, continue_text, log_softmax};
use lynx_gpu::tokenizer::Tokenizer;

const LENGTH: usize = 4;

fn toy(tokenizer: &Tokenizer, skill: Skill) -> Toy {
    Toy { forgetful: true, ..Toy::new(tokenizer, 21, 2.5, skill) }
}

fn beams(model: &mut Toy, width: usize, length_penalty: f64, options: &Options) -> Vec<Hypothesis> {
    search(model, &[1, 2], options, &Beams { width, length_penalty }).unwrap()
}

/// Every text of at most [`LENGTH`] tokens with its log-probability; token 0 ends one.
fn all(model: &Toy, read: &[u32], logprob: f64, texts: &mut Vec<(Vec<u32>, f64, usize)>) {
    let made = &read[2..];
    if made.len() == LENGTH {
        return texts.push((made.to_vec(), logprob, made.len()));
    }
    let next = log_softmax(model.known(read).into_iter().map(f64::from));
    texts.push((made.to_vec(), logprob + next[0], made.len() + 1));
    (1..next.len()).for_each(|t| all(model, &[read, &[t as u32]].concat(), logprob + next[t], texts));
}

#[test]
fn a_search_as_wide_as_the_tree_finds_the_best_texts() {
    let tokenizer = letters(4, true);
    for length_penalty in [0.0, 0.6, 1.0, 2.0, -0.5] {
        // Texts of the same steps in another order would tie.
        let mut model = Toy { forgetful: false, ..toy(&tokenizer, Skill::Rewinds) };
        let found = beams(&mut model, 200, length_penalty, &Options::new(LENGTH, Sampling::greedy()));
        let mut texts = vec![];
        all(&model, &[1, 2], 0.0, &mut texts);
        let mut want: Vec<(Vec<u32>, f64)> =
            texts.into_iter().map(|(text, p, length)| (text, p / (length as f64).powf(length_penalty))).collect();
        want.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(found.len(), want.len());
        for (found, (tokens, score)) in found.iter().zip(&want) {
            assert_eq!(found.tokens, *tokens);
            assert!((found.score - score).abs() < 1e-12);
        }
    }
}

/// Log-probabilities only shrink, so a wider search never finds a worse best text on this chain, and a narrow one ends early without loss.
#[test]
fn the_end_of_a_search_loses_nothing() {
    let tokenizer = letters(4, true);
    let options = Options::new(LENGTH, Sampling::greedy());
    for length_penalty in [0.0, 1.0] {
        let best = |width: usize| beams(&mut toy(&tokenizer, Skill::Rewinds), width, length_penalty, &options)[0].score;
        assert!((best(30) - best(200)).abs() < 1e-12);
    }
}

/// Without a penalty: with one, a text may go on after its likeliest end.
#[test]
fn one_beam_is_greedy() {
    let tokenizer = letters(6, true);
    let options = Options::new(12, Sampling::greedy());
    let mut lengths = vec![];
    for seed in 0..30 {
        let mut model = Toy::new(&tokenizer, seed, 2.5, Skill::None);
        let beam = beams(&mut model, 1, 0.0, &options).remove(0);
        model = Toy::new(&tokenizer, seed, 2.5, Skill::None);
        let greedy = continue_text(&mut model, &[1, 2], &options, &mut |_| true).unwrap();
        assert_eq!((&beam.tokens, &beam.text, beam.finish), (&greedy.tokens, &greedy.text, greedy.finish));
        lengths.push(greedy.tokens.len());
    }
    assert!(lengths.contains(&12) && lengths.iter().any(|l| (2..12).contains(l)), "{lengths:?}");
}

#[test]
fn every_way_to_read_the_beams_finds_the_same() {
    let tokenizer = letters(7, true);
    let sampling =
        Sampling { presence_penalty: 0.4, banned: vec![3], logit_bias: vec![(2, 0.5)], ..Sampling::greedy() };
    let options = Options { stop: vec!["fa".into()], ..Options::new(9, sampling) };
    let found = |skill: Skill| {
        let mut model = Toy { forgetful: false, ..toy(&tokenizer, skill) };
        beams(&mut model, 5, 0.8, &options)
    };
    let want = found(Skill::None);
    assert_eq!(want.len(), 5);
    assert!(want.windows(2).all(|pair| pair[0].score >= pair[1].score));
    assert!(want.iter().all(|h| !h.tokens.contains(&3)));
    assert_eq!(found(Skill::Rewinds), want);
    assert_eq!(found(Skill::Beside(8)), want);
    assert_eq!(found(Skill::Beside(3)), want, "too few places: one after another");
}

#[test]
fn beams_end_at_stop_texts_and_where_the_model_has_no_room() {
    let tokenizer = letters(4, false);
    let options = Options { stop: vec!["b".into(), "cc".into()], ..Options::new(6, Sampling::greedy()) };
    let found = beams(&mut toy(&tokenizer, Skill::Rewinds), 20, 1.0, &options);
    assert!(found.iter().any(|h| h.finish == Finish::Stop));
    assert!(found.iter().all(|h| !h.text.contains('b') && !h.text.contains("cc")), "{found:?}");
    for skill in [Skill::None, Skill::Rewinds, Skill::Beside(4)] {
        let mut small = Toy { capacity: 5, ..toy(&tokenizer, skill) };
        let found = beams(&mut small, 4, 1.0, &Options::new(50, Sampling::greedy()));
        assert!(found.iter().all(|h| h.tokens.len() == 4 && h.finish == Finish::Length), "{found:?}");
    }
    let none = Beams { width: 0, length_penalty: 1.0 };
    assert!(search(&mut toy(&tokenizer, Skill::None), &[1], &options, &none).is_err());
}
