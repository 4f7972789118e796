//! Speculative decoding (Leviathan et al., "Fast inference from transformers via speculative decoding", ICML 2023): a draft proposes some
//! tokens, the model reads them in one pass, and as many are kept as keep its distribution exactly.
//!
//! Let p and q be what the sampler makes of the model's and the draft's logits at a place: bias, penalties with all tokens before that place,
//! temperature, truncation. A proposed token x is taken with probability min(1, p(x) / q(x)); otherwise a token is drawn from max(0, p - q),
//! scaled, and the proposals after it are dropped. If all are taken the last logits give one more token. Every token then has the
//! distribution p, whatever the draft proposed.
//!
//! A draft that is certain (greedy, or copied from the text) needs no second draw: the token is drawn from p with the number that plain
//! generation draws with, and the proposal was right if it is the same. So these texts are those of plain generation, token for token.

use super::NextToken;
use super::beams::common;
use super::generation::{Options, check_room};
use super::sampling::{Distribution, Purpose, Sampler};
use super::text::{Generation, Text};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde::Serialize;

/// What proposes tokens.
pub enum Draft<'a> {
    /// A smaller model of the same vocabulary. It reads the text from its beginning.
    Model(&'a mut dyn NextToken),
    /// The text itself: what followed the last place where it ended in the same tokens, at most `longest` of them compared.
    Text { longest: usize },
}

/// How often the draft was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Acceptance {
    pub proposed: u64,
    pub accepted: u64,
    /// Passes of the model after the prompt.
    pub passes: u64,
    pub tokens: u64,
}

impl Acceptance {
    /// Part of the proposed tokens that were taken; 0 if none was proposed.
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.proposed.max(1) as f64
    }

    pub fn tokens_per_pass(&self) -> f64 {
        self.tokens as f64 / self.passes.max(1) as f64
    }
}

/// As [`continue_text`](super::continue_text), with at most `ahead` tokens proposed at a time. A draft model knows `prompt` only, so
/// `target` should have read nothing before it.
///
/// # Errors
/// One of the models cannot go back, or the two have different vocabularies.
pub fn continue_text(
    target: &mut dyn NextToken,
    draft: Draft,
    prompt: &[u32],
    options: &Options,
    ahead: usize,
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<(Generation, Acceptance)> {
    let tokenizer = target.tokenizer().clone();
    let mut text = Text::new(&tokenizer, options, options.sampling.seed, prompt)?;
    let mut draft = Proposer::new(draft, &tokenizer)?;
    target.rewind(target.position())?;
    check_room(target, prompt.len())?;
    let logits = target.advance(prompt)?;
    let mut acceptance = Acceptance::default();
    if options.tokens == 0 {
        return Ok((text.finish(on_text)?, acceptance));
    }
    let mut so_far = prompt.to_vec();
    let first = text.sampler.draw(text.known(&logits))?;
    let mut on = text.take(first, Some(&logits), on_text)?;
    so_far.push(first);
    let mut newest_is_read = false;
    while on && target.room() > 0 {
        let wanted = options.tokens - text.tokens().len();
        // Where the beginning of a text is given up, it is for the newest token alone, as without a draft.
        let fits = target.room().min(target.at_once()).saturating_sub(1);
        let most = ahead.min(wanted - 1).min(fits.min(usize::MAX as u64) as usize);
        let proposals = draft.propose(&so_far, &text, most)?;
        let base = target.position();
        let newest = so_far.last().into_iter().copied();
        let tokens: Vec<u32> = newest.chain(proposals.iter().map(|(token, _)| *token)).collect();
        let logits = target.advance_each(&tokens)?;
        acceptance.passes += 1;
        acceptance.proposed += proposals.len() as u64;
        let mut right = 0;
        for (i, logits) in logits.iter().enumerate() {
            let p = text.sampler.distribution(text.known(logits))?;
            let (token, accepted) = decide(&p, proposals.get(i), &text.sampler);
            text.sampler.accept(token, &p);
            on = text.take(token, Some(logits), on_text)?;
            so_far.push(token);
            right += usize::from(accepted);
            newest_is_read = accepted;
            if !on || !accepted {
                break;
            }
        }
        acceptance.accepted += right as u64;
        // An end-of-text token is not read, as in plain generation.
        let kept = right - usize::from(newest_is_read && text.ended_by_token());
        if kept < proposals.len() {
            target.rewind(base + 1 + kept as u64)?;
        }
    }
    if !newest_is_read && !text.ended_by_token() && target.room() > 0 {
        target.advance(&so_far[so_far.len() - 1..])?;
    }
    acceptance.tokens = text.tokens().len() as u64;
    Ok((text.finish(on_text)?, acceptance))
}

/// The token at this place, and whether it is the proposed one.
fn decide(p: &Distribution, proposal: Option<&(u32, Distribution)>, sampler: &Sampler) -> (u32, bool) {
    match proposal {
        None => (p.draw(sampler.uniform(Purpose::Token)), false),
        Some((proposed, Distribution::One(_))) => {
            let token = p.draw(sampler.uniform(Purpose::Token));
            (token, token == *proposed)
        }
        Some((proposed, q)) => {
            match sampler.uniform(Purpose::Acceptance) * q.probability(*proposed) < p.probability(*proposed) {
                true => (*proposed, true),
                false => (p.beyond(q).draw(sampler.uniform(Purpose::Replacement)), false),
            }
        }
    }
}

/// A draft and what it has read.
struct Proposer<'a> {
    draft: Draft<'a>,
    read: Vec<u32>,
}

impl<'a> Proposer<'a> {
    fn new(mut draft: Draft<'a>, tokenizer: &Tokenizer) -> Result<Self> {
        match &mut draft {
            Draft::Model(model) => {
                same_vocabulary(tokenizer, model.tokenizer())?;
                model.restart()?;
                model.rewind(0)?;
            }
            Draft::Text { longest: 0 } => {
                return Err(Error::Config("draft-ngram 0 compares no tokens: at least 1".into()));
            }
            Draft::Text { .. } => {}
        }
        Ok(Proposer { draft, read: vec![] })
    }

    /// At most `most` tokens that may follow, each with what it was drawn from.
    fn propose(&mut self, so_far: &[u32], text: &Text, most: usize) -> Result<Vec<(u32, Distribution)>> {
        let model = match &mut self.draft {
            Draft::Text { longest } => {
                let tokens = repeated(so_far, *longest, most);
                return Ok(tokens.into_iter().map(|t| (t, Distribution::One(t))).collect());
            }
            Draft::Model(model) => model,
        };
        if most == 0 {
            return Ok(vec![]);
        }
        // One token at least is read, for its logits.
        let shared = common(&self.read, so_far).min(so_far.len() - 1);
        if shared < self.read.len() {
            model.rewind(shared as u64)?;
            self.read.truncate(shared);
        }
        let unread = so_far.len() - shared;
        // The last proposal is not read. A draft whose context is full proposes nothing more.
        let fits = model.room().min(model.at_once()).saturating_add(1).saturating_sub(unread as u64);
        let most = most.min(fits.min(usize::MAX as u64) as usize);
        let mut sampler = text.sampler.clone();
        let mut new = so_far[shared..].to_vec();
        let mut proposals: Vec<(u32, Distribution)> = vec![];
        while proposals.len() < most {
            let q = match sampler.options().takes_greatest() {
                true => Distribution::One(model.advance_greedy(&new)?),
                false => sampler.distribution(text.known(&model.advance(&new)?))?,
            };
            self.read.append(&mut new);
            let token = q.draw(sampler.uniform(Purpose::Proposal));
            sampler.accept(token, &q);
            proposals.push((token, q));
            new.push(token);
            if text.is_end(token) {
                break;
            }
        }
        Ok(proposals)
    }
}

/// # Errors
/// Some id stands for different text in the two.
fn same_vocabulary(target: &Tokenizer, draft: &Tokenizer) -> Result<()> {
    let (ours, theirs) = (target.vocab_size(), draft.vocab_size());
    let refused = |why: String| {
        Err(Error::Config(format!("--draft needs a model with the same tokens: {why}. Use a draft of the same family")))
    };
    if ours != theirs {
        return refused(format!("the model has {ours}, the draft {theirs}"));
    }
    for id in 0..ours as u32 {
        let (a, b) = (target.token_bytes(id)?, draft.token_bytes(id)?);
        if a != b || target.is_special(id) != draft.is_special(id) {
            let show = crate::tokenizer::display;
            return refused(format!("id {id} is {} in the model and {} in the draft", show(&a), show(&b)));
        }
    }
    Ok(())
}

/// At most `most` tokens that followed the newest of the places before the end where the longest run of tokens, `longest` at most, is the one
/// that ends the text. A run that overlaps its own end goes on with what it proposes.
fn repeated(text: &[u32], longest: usize, most: usize) -> Vec<u32> {
    let (mut best, mut place) = (0, 0);
    for end in (1..text.len()).rev() {
        let same = text[..end].iter().rev().zip(text.iter().rev()).take(longest).take_while(|(a, b)| a == b).count();
        if same > best {
            (best, place) = (same, end);
        }
        if best == longest {
            break;
        }
    }
    let mut proposed: Vec<u32> = vec![];
    while best > 0 && proposed.len() < most {
        let at = place + proposed.len();
        proposed.push(if at < text.len() { text[at] } else { proposed[at - text.len()] });
    }
    proposed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_proposes_what_followed_the_longest_repeated_end() {
        // "2 3" came twice before the end; the run of three "1 2 3" is longer than the newer "2 3".
        let text = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3];
        assert_eq!(repeated(&text, 3, 2), [4, 9]);
        assert_eq!(repeated(&text, 2, 2), [5, 1]);
        assert_eq!(repeated(&text, 1, 0), [0; 0]);
        assert_eq!(repeated(&[1, 2, 3], 3, 4), [0; 0]);
        assert_eq!(repeated(&[], 3, 4), [0; 0]);
        assert_eq!(repeated(&[7, 8, 7, 8], 2, 5), [7, 8, 7, 8, 7]);
    }
}
