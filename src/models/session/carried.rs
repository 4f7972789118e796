//! Reading a text piece by piece with a state of one size: the plans of a segment, and the states between them.
//!
//! A plan is made for each of [`SEGMENTS`] when it is first needed; a longer text replays the same plans, so the memory of reading is
//! known before the text is and does not grow with it.

use super::{Ready, Session, graphs};
use crate::graph::{Kind, Plan};
use crate::nn::Feed;
use crate::tensor::{HostTensor, TensorType};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Lengths of segments, in tokens. What is left of a text takes the shortest that holds it, padded at the end.
pub const SEGMENTS: [usize; 4] = [1, 16, 128, 512];

/// What a segment is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// The logits that follow its last token.
    Next,
    /// The negative log-likelihood of each of its targets.
    Scores,
}

struct SegmentPlan {
    ready: Ready,
    feeds: Vec<Feed>,
}

/// What a session remembers of the text it reads.
#[derive(Default)]
pub(super) struct Carried {
    plans: BTreeMap<(usize, Reads), SegmentPlan>,
    pub(super) states: Vec<(String, TensorType)>,
    pub(super) position: u64,
    /// Logits after the last token.
    pub(super) logits: Option<Vec<f32>>,
    /// The newest tokens, as many as the model's context.
    pub(super) newest: Vec<u32>,
}

impl Carried {
    /// Forgets the plans too: they were made for another precision.
    pub(super) fn clear(&mut self) {
        *self = Carried::default();
    }
}

/// A text that was read, as it can be put aside and taken up again: see `state_file`.
#[derive(Clone, Debug)]
pub struct TextState {
    /// Tokens read.
    pub position: u64,
    pub newest: Vec<u32>,
    /// Logits after the last token.
    pub logits: Vec<f32>,
    /// By the names of the graph's state variables.
    pub states: Vec<(String, HostTensor)>,
}

impl Session {
    /// Whether reading carries a state, or why not.
    pub fn carries(&self) -> Result<()> {
        self.model.carries().map_err(Error::Config)
    }

    /// Tokens read since the beginning of the text.
    pub fn position(&self) -> u64 {
        if self.keeps() { self.kept_position() } else { self.carried.position }
    }

    /// Name and type of every state, in the order of the layers.
    pub fn states(&mut self) -> Result<Vec<(String, TensorType)>> {
        self.segment_plan(SEGMENTS[0], Reads::Next)?;
        Ok(self.carried.states.clone())
    }

    /// Bytes on the device for reading a text: weights, states, and the plans made so far.
    pub fn reading_bytes(&self) -> u64 {
        let of_plan = |p: &SegmentPlan| {
            let graph = &p.ready.plan.graph;
            let variables: u64 = graph.variables().map(|(v, _, _)| graph.ty(v).bytes()).sum();
            p.ready.run.allocated_bytes().saturating_sub(variables)
        };
        self.store.bytes() + self.carried.plans.values().map(of_plan).sum::<u64>()
    }

    /// Makes the plans for `segment` tokens, so that the first text does not wait for them.
    pub fn prepare_segment(&mut self, segment: usize, reads: Reads) -> Result<()> {
        self.segment_plan(segment, reads).map(|_| ())
    }

    /// FLOPs of reading a segment of `tokens`.
    pub fn segment_flops(&mut self, tokens: usize) -> Result<f64> {
        Ok(self.segment_plan(tokens, Reads::Next)?.ready.plan.cost().flops)
    }

    fn segment_plan(&mut self, tokens: usize, reads: Reads) -> Result<&mut SegmentPlan> {
        if !self.carried.plans.contains_key(&(tokens, reads)) {
            self.carries()?;
            let (graph, carry) = graphs::segment(self.model.as_ref(), tokens, reads)?;
            let plan = Plan::stored_in(&graph, self.training.precision)?;
            let run = plan.prepare(&mut self.store)?;
            // What no operator reads is no input of the plan.
            let inputs: Vec<&str> = plan
                .graph
                .nodes()
                .iter()
                .filter_map(|n| match &n.kind {
                    Kind::Input(name) => Some(name.as_str()),
                    _ => None,
                })
                .collect();
            let feeds = carry.feeds.into_iter().filter(|f| inputs.contains(&f.name().as_str())).collect();
            self.carried.states = carry.states;
            self.carried.plans.insert((tokens, reads), SegmentPlan { ready: Ready { plan, run }, feeds });
        }
        self.carried.plans.get_mut(&(tokens, reads)).ok_or_else(|| Error::Graph("a plan just made is gone".into()))
    }

    /// Reads tokens, at most one segment; `targets` where it is read for their scores.
    pub(super) fn read_segment(&mut self, tokens: &[u32], targets: Option<&[i32]>) -> Result<HostTensor> {
        let fits = SEGMENTS.into_iter().find(|s| *s >= tokens.len());
        let segment = fits.ok_or_else(|| Error::Graph(format!("{} tokens in one segment", tokens.len())))?;
        let position = self.carried.position;
        let reads = if targets.is_some() { Reads::Scores } else { Reads::Next };
        let vocabulary = self.model.vocab_size();
        if let Some(id) = tokens.iter().find(|t| **t as usize >= vocabulary) {
            return Err(Error::Data(format!(
                "token {id} is outside the model's vocabulary of {vocabulary}: tokenizer and model do not belong together"
            )));
        }
        let SegmentPlan { ready: Ready { run, .. }, feeds } = self.segment_plan(segment, reads)?;
        for feed in feeds {
            run.write_input(&feed.name(), &feed.value(position, tokens.len(), segment)?)?;
        }
        let mut ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        ids.resize(segment, 0);
        run.write_input("tokens", &HostTensor::i32(&[1, segment], ids))?;
        let output = match targets {
            Some(targets) => {
                let mut targets = targets.to_vec();
                targets.resize(segment, -1);
                run.write_input("targets", &HostTensor::i32(&[segment], targets))?;
                "nll"
            }
            None => {
                run.write_input("position", &HostTensor::i32(&[1], vec![tokens.len() as i32 - 1]))?;
                "logits"
            }
        };
        run.run()?;
        let result = run.read_output(output)?;
        self.carried.position += tokens.len() as u64;
        self.remember(tokens);
        Ok(result)
    }

    pub(super) fn remember(&mut self, tokens: &[u32]) {
        let context = self.model.context();
        let newest = &mut self.carried.newest;
        newest.extend(tokens);
        newest.drain(..newest.len().saturating_sub(context));
    }

    /// Whether the state reaches `more` tokens further: learned positions end.
    pub(super) fn carries_on(&self, more: usize) -> bool {
        let within = |limit: usize| self.carried.position + more as u64 <= limit as u64;
        self.carries().is_ok() && self.model.last_position().is_none_or(within)
    }

    /// Reads `tokens` after what was read before and gives the negative log-likelihood, in nats, of each of `targets` (one for each
    /// token, usually the token after it).
    ///
    /// # Errors
    /// A model that carries no state, or whose learned positions end before the text does.
    pub fn score(&mut self, tokens: &[u32], targets: &[u32]) -> Result<Vec<f32>> {
        self.carries()?;
        if tokens.len() != targets.len() {
            return Err(Error::Data(format!("{} tokens and {} targets", tokens.len(), targets.len())));
        }
        let longest = SEGMENTS[SEGMENTS.len() - 1];
        let mut scores = Vec::with_capacity(tokens.len());
        for (tokens, targets) in tokens.chunks(longest).zip(targets.chunks(longest)) {
            let targets: Vec<i32> = targets.iter().map(|t| *t as i32).collect();
            let nll = self.read_segment(tokens, Some(&targets))?;
            scores.extend_from_slice(&nll.as_f32().unwrap_or_default()[..tokens.len()]);
        }
        self.carried.logits = None;
        Ok(scores)
    }

    /// The state after the last token read.
    ///
    /// # Errors
    /// Nothing was read, or the model carries no state this far.
    pub fn text_state(&mut self) -> Result<TextState> {
        self.carries()?;
        let Carried { position, logits: Some(logits), newest, .. } = &self.carried else {
            return Err(Error::Data("no text was read: there is no state to save".into()));
        };
        if !self.carries_on(0) {
            let limit = self.model.last_position().unwrap_or(0);
            return Err(Error::Config(format!(
                "the text of {position} tokens is longer than the model's {limit} learned positions: its state was given up and cannot be saved; use a shorter text, or a model with model.positions = \"rope\""
            )));
        }
        let read = |(name, _): &(String, TensorType)| Ok((name.clone(), self.store.read(name)?));
        let states = self.carried.states.iter().map(read).collect::<Result<_>>()?;
        Ok(TextState { position: *position, newest: newest.clone(), logits: logits.clone(), states })
    }

    /// Goes on after a text whose state was put aside. Its names and shapes must be those of [`Session::states`].
    pub fn set_text_state(&mut self, state: TextState) -> Result<()> {
        for (name, ty) in self.states()? {
            let given = state.states.iter().find(|(n, _)| *n == name);
            let Some((_, value)) = given.filter(|(_, value)| value.ty() == ty) else {
                let have = given.map_or("nothing".into(), |(_, value)| value.ty().to_string());
                return Err(Error::Checkpoint(format!("the state has {have} for '{name}', the model wants {ty}")));
            };
            self.store.write(&name, value)?;
        }
        let TextState { position, newest, logits, .. } = state;
        (self.carried.position, self.carried.newest, self.carried.logits) = (position, newest, Some(logits));
        Ok(())
    }
}
