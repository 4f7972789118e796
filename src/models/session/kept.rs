//! Reading texts with the keys and values of their tokens kept: a prompt is read once in segments, and every further token costs one
//! run of the plan for one token. Several texts can be read side by side.

use super::{Ready, Session, graphs};
use crate::device::{CallTime, Device, Work};
use crate::graph::Plan;
use crate::nn::{CacheShape, PLACE, POSITIONS};
use crate::tensor::{DType, HostTensor, TensorType};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Tokens of a text that one run reads. A plan is made for each length when it is first needed.
const SEGMENTS: [usize; 6] = [1, 4, 16, 64, 128, 256];

/// The longest on the CPU, where longer ones read no faster and need more memory.
const LONGEST_ON_CPU: usize = 128;

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wants {
    /// The logits after the last token of every text, and the likeliest token.
    Last,
    /// The logits after every token.
    Each,
}

/// What happens when a text has no room for its next token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Its beginning is given up: the newest three quarters of a context are read again.
    #[default]
    Forget,
    /// It ends; reading more is an error.
    Stop,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// Tokens of a text at most; none: the model's context, at most [`Keeping::USUAL`].
    pub context: Option<usize>,
    /// f32, f16 or int8.
    pub storage: DType,
    /// Nothing is kept: every token has the whole text read again.
    pub off: bool,
    pub when_full: WhenFull,
}

impl Keeping {
    /// Models say what they can hold at most, which is often far more than memory has or a text needs.
    pub const USUAL: usize = 4096;
}

impl Default for Keeping {
    fn default() -> Self {
        Keeping { context: None, storage: DType::F32, off: false, when_full: WhenFull::Forget }
    }
}

/// A text that is being read.
#[derive(Clone, Debug, Default)]
struct Text {
    /// Those whose keys and values are kept.
    tokens: Vec<u32>,
    /// How many before them were given up when the context was full.
    dropped: u64,
    /// Places that were written since the text was last read from its beginning, also by tokens that it has gone back over.
    written: usize,
    /// After the last token.
    logits: Option<Vec<f32>>,
}

/// What a session keeps of the texts it reads.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) keeping: Keeping,
    shape: Option<CacheShape>,
    plans: BTreeMap<(usize, Wants), Ready>,
    states: Vec<(String, TensorType)>,
    texts: Vec<Text>,
}

impl Kept {
    /// Forgets the plans too: they were made for another precision or shape.
    pub(super) fn clear(&mut self) {
        *self = Kept { keeping: self.keeping, ..Kept::default() };
    }
}

/// Of a text with `rest` tokens to read, the tokens of the next run: the shortest segment that holds them, unless it would be empty for
/// more than a quarter.
fn next_segment(rest: usize, longest: usize) -> usize {
    let fits = |s: &usize| *s <= longest;
    let holds = SEGMENTS.into_iter().filter(fits).find(|s| *s >= rest);
    match holds {
        Some(s) if 4 * rest >= 3 * s => s,
        _ => SEGMENTS.into_iter().filter(fits).rev().find(|s| *s <= rest).unwrap_or(SEGMENTS[0]),
    }
}

impl Session {
    /// How keys and values are kept from now on; what was read is forgotten.
    ///
    /// # Errors
    /// A context of 0, or longer than the model's; another storage than f32, f16 and int8.
    pub fn keep(&mut self, keeping: Keeping) -> Result<()> {
        let most = self.model.context();
        if let Some(context) = keeping.context.filter(|c| *c == 0 || *c > most) {
            return Err(Error::Config(format!("a context of {context} tokens: the model's is 1 to {most}")));
        }
        if !matches!(keeping.storage, DType::F32 | DType::F16 | DType::I8) {
            return Err(Error::Config(format!(
                "keys and values are kept as f32, f16 or int8, not {}",
                keeping.storage
            )));
        }
        self.kept = Kept { keeping, ..Kept::default() };
        self.store.forget("cache.");
        Ok(())
    }

    /// Whether keys and values of what is read are kept.
    pub fn keeps(&self) -> bool {
        self.model.keeps() && !self.kept.keeping.off
    }

    /// Tokens of a text that are kept at most.
    pub(super) fn kept_context(&self) -> usize {
        self.kept.keeping.context.unwrap_or(self.model.context().min(Keeping::USUAL))
    }

    /// Bytes of the keys and values, by the formula 2 layers kv_heads slots head_dim texts element (and an f32 for every vector of int8);
    /// a layer with a window has fewer slots than the context.
    pub fn cache_bytes(&self) -> u64 {
        self.kept.shape.map_or(0, |shape| self.model.cache_bytes(&shape))
    }

    /// Name and type of every variable of the cache.
    pub fn cache_variables(&self) -> &[(String, TensorType)] {
        &self.kept.states
    }

    fn cache_shape(&mut self) -> CacheShape {
        let capacity = self.kept_context();
        let most = if matches!(self.device(), Device::Gpu(_)) { capacity } else { capacity.min(LONGEST_ON_CPU) };
        let longest = SEGMENTS.into_iter().rev().find(|s| *s <= most).unwrap_or(1);
        let texts = self.kept.texts.len().max(1);
        let storage = self.kept.keeping.storage;
        *self.kept.shape.get_or_insert(CacheShape { texts, capacity, longest, storage })
    }

    /// Forgets everything and begins `texts` texts.
    pub(super) fn begin_kept(&mut self, texts: usize) -> Result<()> {
        if texts == 0 {
            return Err(Error::Config("0 texts side by side: there is nothing to read".into()));
        }
        if self.kept.shape.is_some_and(|s| s.texts != texts) {
            self.kept.clear();
            self.store.forget("cache.");
        }
        self.kept.texts = vec![Text::default(); texts];
        Ok(())
    }

    pub(super) fn kept_position(&self) -> u64 {
        self.kept.texts.first().map_or(0, |t| t.dropped + t.tokens.len() as u64)
    }

    /// Tokens that every text has room for.
    pub(super) fn kept_room(&self) -> usize {
        self.kept_context() - self.kept.texts.iter().map(|t| t.tokens.len()).max().unwrap_or(0)
    }

    fn kept_plan(&mut self, tokens: usize, wants: Wants) -> Result<&mut Ready> {
        if !self.kept.plans.contains_key(&(tokens, wants)) {
            let shape = self.cache_shape();
            let known = self.tokenizer.vocab_size();
            let (graph, states) = graphs::kept(self.model.as_ref(), shape, tokens, wants, known, &self.stored)?;
            let plan = Plan::stored_in(&graph, self.training.precision)?;
            let run = plan.prepare(&mut self.store)?;
            self.kept.states = states;
            self.kept.plans.insert((tokens, wants), Ready { plan, run });
        }
        let plan = self.kept.plans.get_mut(&(tokens, wants));
        plan.ok_or_else(|| Error::Graph("a plan just made is gone".into()))
    }

    /// The works that reading `tokens` tokens goes through, each with how often.
    pub fn reading_works(&mut self, tokens: usize) -> Result<Vec<(Work, usize)>> {
        if !self.keeps() {
            let context = self.model.context();
            let graph = graphs::generation(self.model.as_ref(), context, &self.stored)?;
            return Ok(vec![(Plan::stored_in(&graph, self.training.precision)?.work, 1)]);
        }
        let longest = self.cache_shape().longest;
        let (mut works, mut rest) = (BTreeMap::<usize, usize>::new(), tokens);
        while rest > 0 {
            let segment = next_segment(rest, longest);
            *works.entry(segment).or_default() += 1;
            rest = rest.saturating_sub(segment);
        }
        let work = |(segment, times)| Ok((self.kept_plan(segment, Wants::Last)?.plan.work.clone(), times));
        works.into_iter().map(work).collect()
    }

    /// Median seconds of every kernel of a run of `tokens` tokens, after a text of `read` tokens. What was read is forgotten.
    pub fn profile_kept(&mut self, read: usize, tokens: usize, runs: usize) -> Result<Vec<CallTime>> {
        self.begin_kept(1)?;
        self.advance_kept(&[vec![0; read]])?;
        let segment = next_segment(tokens, self.cache_shape().longest);
        self.run_kept(&[&vec![0; tokens.min(segment)]], segment, Wants::Last)?;
        let times = self.kept_plan(segment, Wants::Last)?.run.profile(runs)?;
        self.begin_kept(1)?;
        Ok(times)
    }

    /// Makes the plan for runs of `tokens` tokens, so that the first text does not wait for it.
    pub fn prepare_kept(&mut self, tokens: usize) -> Result<()> {
        if self.keeps() {
            let longest = self.cache_shape().longest;
            self.kept_plan(next_segment(tokens, longest), Wants::Last)?;
        }
        Ok(())
    }

    /// One run: the next tokens of every text (at most `segment`, perhaps none). The caller reads the outputs.
    fn run_kept(&mut self, parts: &[&[u32]], segment: usize, wants: Wants) -> Result<()> {
        let capacity = self.kept_context();
        let mut place = Vec::new();
        let (mut positions, mut ids, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (b, (text, part)) in self.kept.texts.iter().zip(parts).enumerate() {
            let start = text.tokens.len();
            if start + part.len() > capacity {
                return Err(Error::Graph(format!("{} tokens more than {start} do not fit {capacity}", part.len())));
            }
            place.extend([start as i32, part.len() as i32]);
            positions.extend((0..segment).map(|t| (start + t).min(capacity - 1) as i32));
            ids.extend((0..segment).map(|t| part.get(t).map_or(0, |id| *id as i32)));
            rows.push((b * segment + part.len().max(1) - 1) as i32);
        }
        let texts = parts.len();
        let Ready { plan, run } = self.kept_plan(segment, wants)?;
        run.write_input(PLACE, &HostTensor::i32(&[texts, 2], place))?;
        // What no operator reads is no input of the plan: a model without positions has none.
        if plan.work.inputs.iter().any(|(name, _)| name == POSITIONS) {
            run.write_input(POSITIONS, &HostTensor::i32(&[texts, segment], positions))?;
        }
        run.write_input("tokens", &HostTensor::i32(&[texts, segment], ids))?;
        if wants == Wants::Last {
            run.write_input("rows", &HostTensor::i32(&[texts], rows))?;
        }
        run.run()?;
        for (text, part) in self.kept.texts.iter_mut().zip(parts) {
            text.tokens.extend_from_slice(part);
            text.written = text.written.max(text.tokens.len());
            if !part.is_empty() {
                text.logits = None;
            }
        }
        Ok(())
    }

    fn check_known(&self, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.model.vocab_size();
        match tokens.iter().find(|t| **t as usize >= vocabulary) {
            Some(id) => Err(Error::Data(format!(
                "token {id} is outside the model's vocabulary of {vocabulary}: tokenizer and model do not belong together"
            ))),
            None => Ok(()),
        }
    }

    /// Refuses `new` tokens for which a text that shall not forget has no room.
    fn check_room(&self, b: usize, new: usize) -> Result<()> {
        let (capacity, have) = (self.kept_context(), self.kept.texts[b].tokens.len());
        if self.kept.keeping.when_full == WhenFull::Stop && have + new > capacity {
            return Err(Error::Data(format!(
                "the context of {capacity} tokens is full: {have} are read, {new} more do not fit; give it a longer one (--context)"
            )));
        }
        Ok(())
    }

    /// The tokens to read so that `new` follow what text `b` has: where the context would be full, the newest three quarters of one, which
    /// are then read again.
    fn make_room(&mut self, b: usize, new: &[u32]) -> Vec<u32> {
        let capacity = self.kept_context();
        let text = &mut self.kept.texts[b];
        if text.tokens.len() + new.len() <= capacity {
            return new.to_vec();
        }
        let mut all = std::mem::take(&mut text.tokens);
        // What has no room at once is read as far as there is room; a text that grows gets some for what comes.
        let keep = if all.is_empty() { capacity } else { capacity - capacity / 4 };
        all.extend_from_slice(new);
        let rest = all.split_off(all.len() - keep);
        text.written = 0;
        text.dropped += all.len() as u64;
        rest
    }

    /// Takes in each text's new tokens; `read` is called when a text's last new token was read, with its number and the run's outputs.
    fn read_kept(
        &mut self,
        tokens: &[Vec<u32>],
        mut read: impl FnMut(&mut Self, usize, usize) -> Result<()>,
    ) -> Result<()> {
        if self.kept.texts.is_empty() {
            self.begin_kept(1)?;
        }
        if tokens.len() != self.kept.texts.len() {
            let have = self.kept.texts.len();
            return Err(Error::Config(format!("tokens for {} texts where {have} are read side by side", tokens.len())));
        }
        tokens.iter().try_for_each(|t| self.check_known(t))?;
        tokens.iter().enumerate().try_for_each(|(b, t)| self.check_room(b, t.len()))?;
        let new: Vec<Vec<u32>> = tokens.iter().enumerate().map(|(b, t)| self.make_room(b, t)).collect();
        let longest = self.cache_shape().longest;
        let mut rest: Vec<&[u32]> = new.iter().map(Vec::as_slice).collect();
        while let Some(most) = rest.iter().map(|r| r.len()).max().filter(|n| *n > 0) {
            let segment = next_segment(most, longest);
            let parts: Vec<&[u32]> = rest.iter().map(|r| &r[..r.len().min(segment)]).collect();
            self.run_kept(&parts, segment, Wants::Last)?;
            for (b, (rest, part)) in rest.iter_mut().zip(parts).enumerate() {
                *rest = &rest[part.len()..];
                if rest.is_empty() && !part.is_empty() {
                    read(self, b, segment)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn advance_kept(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let width = self.model.vocab_size();
        self.read_kept(tokens, |session, b, segment| {
            let logits = session.kept_plan(segment, Wants::Last)?.run.read_output("logits")?;
            let row = logits.as_f32().map(|l| l[b * width..(b + 1) * width].to_vec());
            session.kept.texts[b].logits = row;
            Ok(())
        })?;
        let texts = self.kept.texts.iter().zip(tokens);
        Ok(texts.map(|(t, new)| if new.is_empty() { vec![] } else { t.logits.clone().unwrap_or_default() }).collect())
    }

    /// The logits after the last token of the only text.
    pub(super) fn kept_logits(&mut self) -> Result<Vec<f32>> {
        let [text] = &self.kept.texts[..] else {
            return Err(Error::Data("nothing was read yet: there is nothing to continue".into()));
        };
        if let Some(logits) = &text.logits {
            return Ok(logits.clone());
        }
        // They were not asked for when the last token was read: read it again.
        let Some(last) = text.tokens.last().copied() else {
            return Err(Error::Data("nothing was read yet: there is nothing to continue".into()));
        };
        self.kept.texts[0].tokens.pop();
        let mut rows = self.advance_kept(&[vec![last]])?;
        Ok(rows.pop().unwrap_or_default())
    }

    pub(super) fn advance_kept_greedy(&mut self, tokens: &[u32]) -> Result<u32> {
        let mut token = 0;
        self.read_kept(&[tokens.to_vec()], |session, _, segment| {
            let ids = session.kept_plan(segment, Wants::Last)?.run.read_output("token")?.to_f64();
            token = ids.data[0] as i64;
            Ok(())
        })?;
        u32::try_from(token).map_err(|_| Error::Numerics("a logit is NaN: the weights are damaged".into()))
    }

    pub(super) fn advance_kept_each(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        if self.kept.texts.is_empty() {
            self.begin_kept(1)?;
        }
        self.check_known(tokens)?;
        self.check_room(0, tokens.len())?;
        let new = self.make_room(0, tokens);
        if new.len() < tokens.len() {
            let (most, have) = (new.len(), tokens.len());
            return Err(Error::Config(format!(
                "logits after each of {have} tokens: {most} are kept; use a longer context"
            )));
        }
        // What had to be read again has no logits to give.
        let (again, new) = new.split_at(new.len().saturating_sub(tokens.len()));
        if !again.is_empty() {
            self.advance_kept(&[again.to_vec()])?;
        }
        let (width, longest) = (self.model.vocab_size(), self.cache_shape().longest);
        let mut rows = Vec::with_capacity(tokens.len());
        let mut rest = new;
        while !rest.is_empty() {
            let segment = SEGMENTS.into_iter().find(|s| *s >= rest.len()).unwrap_or(longest).min(longest);
            let part = &rest[..rest.len().min(segment)];
            self.run_kept(&[part], segment, Wants::Each)?;
            let logits = self.kept_plan(segment, Wants::Each)?.run.read_output("logits")?;
            let logits = logits.as_f32().unwrap_or_default();
            rows.extend(logits.chunks(width).take(part.len()).map(<[f32]>::to_vec));
            rest = &rest[part.len()..];
        }
        if let Some(last) = rows.last() {
            self.kept.texts[0].logits = Some(last.clone());
        }
        Ok(rows)
    }

    /// Forgets all but the first `length` tokens of the only text.
    pub(super) fn rewind_kept(&mut self, length: u64) -> Result<()> {
        let position = self.kept_position();
        if length > position {
            return Err(Error::Config(format!("cannot go back to {length} tokens: {position} were read")));
        }
        if length == position {
            return Ok(());
        }
        if self.kept.texts.len() != 1 {
            return Err(Error::Config("only a text that is read alone goes back".into()));
        }
        let slack = self.cache_shape().longest - 1;
        let text = &mut self.kept.texts[0];
        let Some(left) = length.checked_sub(text.dropped) else {
            return Err(Error::Config(format!(
                "cannot go back to {length} tokens: the first {} were given up when the context was full",
                text.dropped
            )));
        };
        let gone = text.written - left as usize;
        text.tokens.truncate(left as usize);
        text.logits = None;
        if gone > slack {
            // Layers with a window may have overwritten what the window sees now.
            let tokens = std::mem::take(&mut text.tokens);
            text.written = 0;
            self.read_kept(&[tokens], |_, _, _| Ok(()))?;
        }
        Ok(())
    }

    /// Text i goes on as a copy of what text `from[i]` has read.
    pub(super) fn arrange_kept(&mut self, from: &[usize]) -> Result<()> {
        let texts = self.kept.texts.len();
        if from.len() != texts || from.iter().any(|f| *f >= texts) {
            return Err(Error::Config(format!("{from:?} does not name a text for each of {texts}")));
        }
        if from.iter().enumerate().all(|(i, f)| i == *f) {
            return Ok(());
        }
        for (name, ty) in &self.kept.states {
            let row = ty.bytes() as usize / texts;
            let bytes = self.store.read(name)?.to_bytes();
            let moved: Vec<u8> = from.iter().flat_map(|f| bytes[f * row..(f + 1) * row].iter().copied()).collect();
            self.store.write(name, &HostTensor::from_bytes(ty, &moved))?;
        }
        self.kept.texts = from.iter().map(|f| self.kept.texts[*f].clone()).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::next_segment;

    #[test]
    fn a_text_is_cut_into_few_runs_with_little_padding() {
        let runs = |mut rest: usize, longest: usize| {
            let mut made = vec![];
            while rest > 0 {
                let s = next_segment(rest, longest);
                rest = rest.saturating_sub(s);
                made.push(s);
            }
            made
        };
        assert_eq!(runs(1, 256), [1]);
        assert_eq!(runs(3, 256), [4]);
        assert_eq!(runs(60, 256), [64]);
        assert_eq!(runs(130, 256), [128, 1, 1]);
        assert_eq!(runs(100, 256), [128]);
        assert_eq!(runs(95, 256), [64, 16, 16]);
        assert_eq!(runs(600, 256), [256, 256, 64, 16, 4, 4]);
        assert_eq!(runs(70, 16), [16, 16, 16, 16, 4, 1, 1]);
        assert_eq!(runs(2, 1), [1, 1]);
    }
}
