//! Beam search: the continuations with the greatest probability that a search of one width finds. Deterministic; nothing is drawn.
//!
//! A step extends every live beam by every token and keeps the `width` best by log-probability; of equals the beam that was better before,
//! then the smaller id. What ends (an end-of-text token, a stop text) leaves the beams and competes by its score,
//! log-probability / length^penalty, its end-of-text token counted in both. The search is over when nothing live can become as good as the
//! `width` best of those that ended. Bias, bans and penalties change the logits before; temperature and truncation have no part in it.

use super::generation::{Options, check_room};
use super::sampling::{Sampler, log_softmax};
use super::text::said;
use super::{Finish, NextToken};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beams {
    pub width: usize,
    /// 0 compares log-probabilities, which favours short texts; 1 their mean over tokens; more favours long ones.
    pub length_penalty: f64,
}

/// A continuation that the search found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hypothesis {
    /// Without the stop text.
    pub text: String,
    /// Without the end-of-text token.
    pub tokens: Vec<u32>,
    pub finish: Finish,
    /// Natural logarithm of its probability, its end included.
    pub logprob: f64,
    pub score: f64,
}

#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    logprob: f64,
    sampler: Sampler,
}

/// The best continuations of `prompt` as a text from its beginning, best first, `width` of them where there are so many. What the model has
/// read afterwards is one of the beams, or none.
pub fn search(model: &mut dyn NextToken, prompt: &[u32], options: &Options, beams: &Beams) -> Result<Vec<Hypothesis>> {
    let Beams { width, length_penalty } = *beams;
    if width == 0 || !length_penalty.is_finite() {
        return Err(Error::Config(format!(
            "beams {width}, length-penalty {length_penalty}: at least one beam and a finite penalty"
        )));
    }
    let tokenizer = model.tokenizer().clone();
    let ends = options.ends(&tokenizer);
    let mut sampling = options.sampling.clone();
    if options.ignore_ends {
        sampling.banned.extend(&ends);
    }
    let (mut reader, first) = Reader::begin(model, prompt, width)?;
    // The last token need not be read.
    let limit = (options.tokens as u64).min(reader.room.saturating_add(1)) as usize;
    let score = |logprob: f64, length: usize| logprob / (length.max(1) as f64).powf(length_penalty);
    // So many of one beam's extensions can matter: what ends leaves room for others. A stop text may end any number of them.
    let most = if options.stop.is_empty() { width + ends.len() } else { usize::MAX };
    let mut live = vec![Beam { tokens: vec![], logprob: 0.0, sampler: Sampler::new(&sampling)? }];
    let mut logits = vec![first];
    let mut done: Vec<Hypothesis> = vec![];
    for length in 1..=limit {
        let (mut next, mut parents) = (vec![], vec![]);
        for Extension { logprob, parent, token } in extensions(&live, &logits, most, &tokenizer)? {
            let beam = &live[parent];
            let mut tokens = beam.tokens.clone();
            if ends.contains(&token) {
                let text = said(&tokenizer, prompt, &tokens)?;
                done.push(Hypothesis { text, tokens, finish: Finish::Eos, logprob, score: score(logprob, length) });
                continue;
            }
            tokens.push(token);
            if let Some(text) = stopped(&options.stop, || said(&tokenizer, prompt, &tokens))? {
                done.push(Hypothesis { text, tokens, finish: Finish::Stop, logprob, score: score(logprob, length) });
                continue;
            }
            let mut sampler = beam.sampler.clone();
            sampler.accept(token, &super::Distribution::One(token));
            next.push(Beam { tokens, logprob, sampler });
            parents.push(parent);
            if next.len() == width {
                break;
            }
        }
        best(&mut done, width);
        live = next;
        let Some(leader) = live.first() else { break };
        // Probabilities only shrink; a penalty above 0 forgives most at the greatest length, one below 0 at the least.
        let hope = score(leader.logprob, if length_penalty >= 0.0 { limit } else { length });
        if length == limit || (done.len() == width && done[width - 1].score >= hope) {
            break;
        }
        logits = reader.read(model, &live, &parents)?;
    }
    for Beam { tokens, logprob, .. } in live {
        let (text, score) = (said(&tokenizer, prompt, &tokens)?, score(logprob, tokens.len()));
        done.push(Hypothesis { text, tokens, finish: Finish::Length, logprob, score });
    }
    best(&mut done, width);
    Ok(done)
}

/// Of equals, the one found first.
fn best(found: &mut Vec<Hypothesis>, width: usize) {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(width);
}

struct Extension {
    logprob: f64,
    parent: usize,
    token: u32,
}

/// The best extensions of all beams, best first; at least as many of each beam as could be among the `most` best.
fn extensions(live: &[Beam], logits: &[Vec<f32>], most: usize, tokenizer: &Tokenizer) -> Result<Vec<Extension>> {
    let mut all = vec![];
    for (parent, (beam, logits)) in live.iter().zip(logits).enumerate() {
        let known = &logits[..tokenizer.vocab_size().min(logits.len())];
        let adjusted = beam.sampler.adjusted(known)?;
        let logprobs = log_softmax(adjusted.iter().copied());
        let mut ids: Vec<u32> = (0..known.len() as u32).filter(|t| logprobs[*t as usize].is_finite()).collect();
        let better = |a: &u32, b: &u32| logprobs[*b as usize].total_cmp(&logprobs[*a as usize]).then(a.cmp(b));
        if most < ids.len() {
            ids.select_nth_unstable_by(most, better);
            ids.truncate(most);
        }
        let extend = |token: u32| Extension { logprob: beam.logprob + logprobs[token as usize], parent, token };
        all.extend(ids.into_iter().map(extend));
    }
    all.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then((a.parent, a.token).cmp(&(b.parent, b.token))));
    Ok(all)
}

/// The text before the first stop text in it, if there is one.
fn stopped(stops: &[String], text: impl FnOnce() -> Result<String>) -> Result<Option<String>> {
    if stops.is_empty() {
        return Ok(None);
    }
    let text = text()?;
    Ok(stops.iter().filter_map(|s| text.find(s)).min().map(|at| text[..at].to_owned()))
}

/// How the beams are read.
struct Reader {
    prompt: Vec<u32>,
    way: Way,
    /// Of the model after the prompt.
    room: u64,
}

enum Way {
    /// Side by side, each beam in a place of its own.
    Beside { width: usize },
    /// One after another, going back to where they part; `read` is what was read after the prompt.
    Back { read: Vec<u32> },
    /// One after another, each from its beginning.
    Again,
}

impl Reader {
    /// Reads the prompt and gives the logits after it.
    fn begin(model: &mut dyn NextToken, prompt: &[u32], width: usize) -> Result<(Reader, Vec<f32>)> {
        let places: Vec<usize> = (0..width).collect();
        let mut reader = Reader { prompt: prompt.to_vec(), way: Way::Beside { width }, room: 0 };
        let logits = if model.begin(width).is_ok() && model.arrange(&places).is_ok() {
            check_room(model, prompt.len())?;
            let mut new = vec![vec![]; width];
            new[0] = prompt.to_vec();
            let logits = model.advance_texts(&new)?.swap_remove(0);
            model.arrange(&vec![0; width])?;
            logits
        } else {
            model.begin(1)?;
            check_room(model, prompt.len())?;
            let logits = model.advance(prompt)?;
            let goes_back = model.rewind(model.position()).is_ok();
            reader.way = if goes_back { Way::Back { read: vec![] } } else { Way::Again };
            logits
        };
        reader.room = model.room();
        Ok((reader, logits))
    }

    /// The logits after each beam, whose newest token is not read; `parents` are the places in the last call that they extend.
    fn read(&mut self, model: &mut dyn NextToken, live: &[Beam], parents: &[usize]) -> Result<Vec<Vec<f32>>> {
        match &mut self.way {
            Way::Beside { width } => {
                let mut from = parents.to_vec();
                from.resize(*width, parents[0]);
                model.arrange(&from)?;
                let mut new: Vec<Vec<u32>> = live.iter().map(|b| b.tokens[b.tokens.len() - 1..].to_vec()).collect();
                new.resize(*width, vec![]);
                let mut logits = model.advance_texts(&new)?;
                logits.truncate(live.len());
                Ok(logits)
            }
            Way::Back { read } => {
                let mut order: Vec<usize> = (0..live.len()).collect();
                // Neighbours share the most.
                order.sort_by(|a, b| live[*a].tokens.cmp(&live[*b].tokens));
                let mut logits = vec![vec![]; live.len()];
                for i in order {
                    let tokens = &live[i].tokens;
                    let shared = common(read, tokens).min(tokens.len() - 1);
                    model.rewind((self.prompt.len() + shared) as u64)?;
                    logits[i] = model.advance(&tokens[shared..])?;
                    read.clone_from(tokens);
                }
                Ok(logits)
            }
            Way::Again => {
                let again = |beam: &Beam| {
                    model.restart()?;
                    model.advance(&[&self.prompt[..], &beam.tokens].concat())
                };
                live.iter().map(again).collect()
            }
        }
    }
}

/// How many tokens two texts have in common from their beginning.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
