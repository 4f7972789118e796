//! What a graph that continues a text is made of: states that live in the device's memory between runs, and inputs that say which
//! part of a segment of fixed length is there. A model writes both through its [`Builder`]; nothing is planned anew as a text grows.

use super::Builder;
use crate::graph::{Role, Value};
use crate::tensor::{DType, HostTensor, TensorType};
use crate::{Error, Result};

/// An input of a segment of T tokens of which the first `count` are there, after `start` tokens that were read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// f32 [1, T, 1]: 1 for tokens that are there, 0 for the padding after them.
    Valid,
    /// i32 [1, 2]: which of the keys `window` old ones ++ T new ones are there.
    KeyRange { window: usize },
    /// i32 [rows]: the newest `rows` of `rows` old ones ++ T new ones.
    Newest { rows: usize },
    /// i32 [T]: positions from the beginning of the text, for a table of `limit` rows.
    Positions { limit: usize },
    /// i32 [2]: the position of the first token, and the number of the first of `kept` old slots.
    Place { slots: Slots, kept: usize },
    /// i32 [slots of a segment x tokens read of each]: the tokens of the segment that make the slots it adds; of `every` old tokens ++
    /// the segment where slots are made of whole groups.
    Sources { slots: Slots },
    /// i32 [kept]: the newest of `kept` old slots ++ those of this segment.
    NewestSlots { slots: Slots, kept: usize },
}

/// Slots of a memory: one every `every` tokens, made of its first token, or of all of them once the last one is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    pub every: usize,
    pub whole: bool,
}

impl Slots {
    /// Slots that a segment of `tokens` adds at most.
    pub fn most(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.every)
    }

    /// Tokens that a slot is made of.
    pub fn sources(&self) -> usize {
        if self.whole { self.every } else { 1 }
    }

    /// Slots that the first `tokens` tokens of a text have made.
    fn made(&self, tokens: u64) -> u64 {
        if self.whole { tokens / self.every as u64 } else { tokens.div_ceil(self.every as u64) }
    }
}

impl Feed {
    pub fn name(&self) -> String {
        match self {
            Feed::Valid => "carry.valid".into(),
            Feed::KeyRange { window } => format!("carry.key_range.{window}"),
            Feed::Newest { rows } => format!("carry.newest.{rows}"),
            Feed::Positions { limit } => format!("carry.positions.{limit}"),
            Feed::Place { slots, kept } => format!("carry.place.{}.{}.{kept}", slots.every, slots.whole),
            Feed::Sources { slots } => format!("carry.sources.{}.{}", slots.every, slots.whole),
            Feed::NewestSlots { slots, kept } => format!("carry.newest_slots.{}.{}.{kept}", slots.every, slots.whole),
        }
    }

    fn ty(&self, tokens: usize) -> TensorType {
        match *self {
            Feed::Valid => TensorType::f32(&[1, tokens, 1]),
            Feed::KeyRange { .. } => TensorType::i32(&[1, 2]),
            Feed::Newest { rows } => TensorType::i32(&[rows]),
            Feed::Positions { .. } => TensorType::i32(&[tokens]),
            Feed::Place { .. } => TensorType::i32(&[2]),
            Feed::Sources { slots } => TensorType::i32(&[slots.most(tokens) * slots.sources()]),
            Feed::NewestSlots { kept, .. } => TensorType::i32(&[kept]),
        }
    }

    /// The values for `count` of `tokens` tokens after `start`.
    ///
    /// # Errors
    /// `Error::Data` when a table of positions is too short.
    pub fn value(&self, start: u64, count: usize, tokens: usize) -> Result<HostTensor> {
        let i32s = |values: Vec<i32>| HostTensor::i32(&self.ty(tokens).shape, values);
        let from = |first: usize, len: usize| i32s((first as i32..(first + len) as i32).collect());
        Ok(match *self {
            Feed::Valid => {
                HostTensor::f32(&[1, tokens, 1], (0..tokens).map(|t| f32::from(u8::from(t < count))).collect())
            }
            Feed::KeyRange { window } => {
                let missing = (window as u64).saturating_sub(start);
                i32s(vec![missing as i32, (window + count) as i32])
            }
            Feed::Newest { rows } => from(count, rows),
            Feed::Positions { limit } => {
                let end = start + count as u64;
                if end > limit as u64 {
                    return Err(Error::Data(format!(
                        "the text has {end} tokens and the model has learned positions for {limit}: use a shorter text, or a model with model.positions = \"rope\""
                    )));
                }
                i32s((0..tokens).map(|t| (start as usize + t).min(limit - 1) as i32).collect())
            }
            Feed::Place { slots, kept } => {
                // Only differences count once the memory is full: far into a text both numbers are taken down together.
                let every = slots.every as u64;
                let spare = start.saturating_sub(1 << 29) / every;
                let first = slots.made(start) as i64 - kept as i64;
                i32s(vec![(start - spare * every) as i32, (first - spare as i64) as i32])
            }
            Feed::Sources { slots } => {
                // A whole group may have begun before the segment, less than `every` tokens ago.
                let old = if slots.whole { slots.every } else { 0 };
                let begins = (slots.made(start) * slots.every as u64 + old as u64 - start) as usize;
                let row = |i: usize| begins + i / slots.sources() * slots.every + i % slots.sources();
                let rows = (0..slots.most(tokens) * slots.sources()).map(row);
                i32s(rows.map(|r| r.min(old + tokens - 1) as i32).collect())
            }
            Feed::NewestSlots { slots, kept } => {
                from((slots.made(start + count as u64) - slots.made(start)) as usize, kept)
            }
        })
    }
}

/// What a graph that carries states asks of whoever runs it.
#[derive(Debug)]
pub struct Carry {
    /// Tokens of a segment.
    pub tokens: usize,
    pub feeds: Vec<Feed>,
    /// Variables, zero before the first token.
    pub states: Vec<(String, TensorType)>,
}

impl Carry {
    pub fn new(tokens: usize) -> Self {
        Carry { tokens, feeds: vec![], states: vec![] }
    }
}

impl Builder {
    /// Tokens of a segment, where the graph carries states.
    pub fn segment(&self) -> Option<usize> {
        self.carry.as_ref().map(|c| c.tokens)
    }

    /// The input `feed`, in a graph that carries states.
    pub fn feed(&mut self, feed: Feed) -> Result<Value> {
        let carry =
            self.carry.as_mut().ok_or_else(|| Error::Graph(format!("{} needs a carried state", feed.name())))?;
        if !carry.feeds.contains(&feed) {
            carry.feeds.push(feed);
        }
        let ty = feed.ty(carry.tokens);
        Ok(self.graph.shared_input(&feed.name(), ty))
    }

    /// The state `leaf` of the current scope, in f32; the caller updates it.
    pub fn state(&mut self, leaf: &str, shape: &[usize]) -> Result<Value> {
        let name = format!("state.{}", self.graph.path(leaf));
        let ty = TensorType::new(DType::F32, shape);
        let carry = self.carry.as_mut().ok_or_else(|| Error::Graph(format!("{name} needs a carried state")))?;
        carry.states.push((name.clone(), ty.clone()));
        self.graph.variable(&name, Role::State, ty)
    }

    /// `old` [1, rows, ..] of the state `leaf` followed by `new` [1, T, ..]; the state then keeps the newest `rows`.
    pub fn lengthen(&mut self, leaf: &str, new: Value, rows: usize, newest: Feed) -> Result<Value> {
        let shape = self.graph.shape(new).to_vec();
        let width: usize = shape[2..].iter().product();
        let state = self.state(leaf, &[rows, width])?;
        let old = self.graph.reshape(state, &[&[1, rows], &shape[2..]].concat())?;
        let all = self.graph.concat(&[old, new], 1)?;
        let flat = self.graph.reshape(all, &[rows + shape[1], width])?;
        let ids = self.feed(newest)?;
        let kept = self.graph.embedding(flat, ids)?;
        self.graph.update(state, kept)?;
        Ok(all)
    }

    /// Zeroes what a recurrence takes in for padding, x [1, T, ..]: log gates and writes of 0 leave a state as it is.
    pub fn only_valid(&mut self, x: Value) -> Result<Value> {
        // A segment of one token has no padding.
        if self.segment().is_none_or(|tokens| tokens == 1) {
            return Ok(x);
        }
        let rank = self.graph.shape(x).len();
        let valid = self.feed(Feed::Valid)?;
        let valid = self.graph.reshape(valid, &[&[1, self.segment().unwrap_or(1)][..], &vec![1; rank - 2]].concat())?;
        self.graph.mul(x, valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(feed: Feed, start: u64, count: usize, tokens: usize) -> Vec<i32> {
        feed.value(start, count, tokens).unwrap().to_f64().data.iter().map(|v| *v as i32).collect()
    }

    #[test]
    fn keys_before_the_text_and_in_the_padding_are_not_there() {
        assert_eq!(ints(Feed::KeyRange { window: 4 }, 0, 3, 8), [4, 7]);
        assert_eq!(ints(Feed::KeyRange { window: 4 }, 3, 8, 8), [1, 12]);
        assert_eq!(ints(Feed::KeyRange { window: 4 }, 900, 8, 8), [0, 12]);
        assert_eq!(ints(Feed::Newest { rows: 4 }, 900, 3, 8), [3, 4, 5, 6]);
    }

    const PICK: Slots = Slots { every: 4, whole: false };
    const MEAN: Slots = Slots { every: 4, whole: true };

    /// Slots begin at tokens 0, 4, 8, ..: after 5 tokens two have begun, and tokens 8 and 12 of the text begin the next.
    #[test]
    fn slots_follow_the_text_wherever_it_is_cut() {
        assert_eq!(ints(Feed::Place { slots: PICK, kept: 3 }, 5, 8, 8), [5, -1]);
        assert_eq!(ints(Feed::Sources { slots: PICK }, 5, 8, 8), [3, 7]);
        assert_eq!(ints(Feed::NewestSlots { slots: PICK, kept: 3 }, 5, 8, 8), [2, 3, 4]);
        assert_eq!(ints(Feed::NewestSlots { slots: PICK, kept: 3 }, 5, 3, 8), [0, 1, 2]);
        assert_eq!(ints(Feed::NewestSlots { slots: PICK, kept: 3 }, 8, 1, 1), [1, 2, 3]);
        // Of whole groups one is complete after 5 tokens; the next one is tokens 4 to 7, the first of which was read before: row 4 of
        // old ++ new is token 5.
        assert_eq!(ints(Feed::Place { slots: MEAN, kept: 3 }, 5, 8, 8), [5, -2]);
        assert_eq!(ints(Feed::Sources { slots: MEAN }, 5, 8, 8), [3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(ints(Feed::NewestSlots { slots: MEAN, kept: 3 }, 5, 2, 8), [0, 1, 2]);
        assert_eq!(ints(Feed::NewestSlots { slots: MEAN, kept: 3 }, 5, 8, 8), [2, 3, 4]);
        assert_eq!(ints(Feed::NewestSlots { slots: MEAN, kept: 3 }, 7, 1, 1), [1, 2, 3]);
    }

    #[test]
    fn places_stay_within_32_bits_however_long_the_text() {
        let far = 1u64 << 40;
        let place = Feed::Place { slots: Slots { every: 8, whole: false }, kept: 128 };
        let (at, near) = (ints(place, far + 3, 512, 512), ints(place, (1 << 20) + 3, 512, 512));
        assert_eq!(at[0] - 8 * at[1], near[0] - 8 * near[1]);
    }

    #[test]
    fn a_table_of_positions_ends() {
        let table = Feed::Positions { limit: 10 };
        assert_eq!(ints(table, 6, 3, 8), [6, 7, 8, 9, 9, 9, 9, 9]);
        let error = table.value(6, 5, 8).unwrap_err().to_string();
        assert!(error.contains("11 tokens") && error.contains("for 10"), "{error}");
    }
}
