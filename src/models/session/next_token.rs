//! What generating asks of a session, in the three ways that models read: with keys and values kept (`kept`), with a carried state
//! (`carried`), or by reading the newest tokens again each time.

use super::carried::SEGMENTS;
use super::kept::WhenFull;
use super::{Ready, Session, graphs};
use crate::graph::Plan;
use crate::infer::{NextToken, most_likely};
use crate::tensor::HostTensor;
use crate::tokenizer::Tokenizer;
use crate::train::model::Batch;
use crate::{Error, Result};

impl Session {
    /// The logits after `tokens`, all read in one run.
    fn window_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let context = self.context();
        if tokens.is_empty() || tokens.len() > context {
            return Err(Error::Data(format!("{} tokens do not fit the context of 1 to {context}", tokens.len())));
        }
        if self.generation.is_none() {
            let graph = graphs::generation(self.model.as_ref(), context, &self.stored)?;
            let plan = Plan::stored_in(&graph, self.training.precision)?;
            let run = plan.prepare(&mut self.store)?;
            self.generation = Some(Ready { plan, run });
        }
        let Some(ready) = &mut self.generation else { unreachable!("made above") };
        let mut ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        ids.resize(context, 0);
        ready.run.write_input("tokens", &HostTensor::i32(&[1, context], ids))?;
        ready.run.write_input("position", &HostTensor::i32(&[1], vec![tokens.len() as i32 - 1]))?;
        ready.run.run()?;
        let logits = ready.run.read_output("logits")?;
        Ok(logits.as_f32().map(<[f32]>::to_vec).unwrap_or_default())
    }

    /// As `advance`, for models that keep no keys and values.
    fn advance_carried(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let logits = if tokens.is_empty() {
            None
        } else if self.carries_on(tokens.len()) {
            let mut last = None;
            for part in tokens.chunks(SEGMENTS[SEGMENTS.len() - 1]) {
                last = Some(self.read_segment(part, None)?);
            }
            last.and_then(|t| t.as_f32().map(<[f32]>::to_vec))
        } else {
            self.carried.position += tokens.len() as u64;
            self.remember(tokens);
            let newest = self.carried.newest.clone();
            let from = newest.len().saturating_sub(self.context());
            Some(self.window_logits(&newest[from..])?)
        };
        if let Some(logits) = logits {
            self.carried.logits = Some(logits);
        }
        let known = self.carried.logits.clone();
        known.ok_or_else(|| Error::Data("nothing was read yet: there is nothing to continue".into()))
    }
}

impl NextToken for Session {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn context(&self) -> usize {
        if self.model.keeps() { self.kept_context() } else { self.model.context() }
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if !self.keeps() {
            return self.window_logits(tokens);
        }
        self.restart()?;
        self.advance(tokens)
    }

    fn position(&self) -> u64 {
        Session::position(self)
    }

    fn room(&self) -> u64 {
        match self.keeps() && self.kept.keeping.when_full == WhenFull::Stop {
            true => self.kept_room() as u64,
            false => u64::MAX,
        }
    }

    fn at_once(&self) -> u64 {
        match self.keeps() {
            true => self.kept_room() as u64,
            false => self.room(),
        }
    }

    fn restart(&mut self) -> Result<()> {
        if self.keeps() {
            return self.begin_kept(1);
        }
        for (name, ty) in &self.carried.states {
            self.store.write(name, &HostTensor::f32(&ty.shape, vec![0.0; ty.elements()]))?;
        }
        (self.carried.position, self.carried.logits) = (0, None);
        self.carried.newest.clear();
        Ok(())
    }

    fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if !self.keeps() {
            return self.advance_carried(tokens);
        }
        if tokens.is_empty() {
            return self.kept_logits();
        }
        Ok(self.advance_kept(&[tokens.to_vec()])?.pop().unwrap_or_default())
    }

    fn advance_each(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        if self.keeps() {
            return self.advance_kept_each(tokens);
        }
        tokens.iter().map(|t| self.advance_carried(&[*t])).collect()
    }

    fn log_losses(&mut self, tokens: &[u32], targets: &[i32]) -> Result<Vec<f64>> {
        if self.keeps() && self.kept.keeping.storage != crate::tensor::DType::F32 {
            // What the storage of keys and values costs is only seen where they are read from it.
            return crate::infer::losses_of_each(self, tokens, targets);
        }
        let inputs = tokens.iter().map(|t| *t as i32).collect();
        let (batch, context) = (1, tokens.len());
        let batch = Batch { inputs, targets: targets.to_vec(), lengths: vec![context as u32], batch, context };
        self.batch_losses(&batch)
    }

    fn advance_greedy(&mut self, tokens: &[u32]) -> Result<u32> {
        if self.keeps() && !tokens.is_empty() {
            return self.advance_kept_greedy(tokens);
        }
        let mut logits = self.advance(tokens)?;
        logits.truncate(self.tokenizer.vocab_size());
        most_likely(&logits)
    }

    fn rewind(&mut self, length: u64) -> Result<()> {
        if self.keeps() {
            return self.rewind_kept(length);
        }
        let position = self.carried.position;
        if length == 0 && position > 0 {
            return self.restart();
        }
        Err(Error::Config(format!(
            "this model cannot go back to its first {length} of {position} tokens: it keeps no keys and values of them"
        )))
    }

    fn begin(&mut self, texts: usize) -> Result<()> {
        if self.keeps() {
            return self.begin_kept(texts);
        }
        match texts {
            1 => self.restart(),
            _ => Err(Error::Config(format!("this model reads one text at a time, not {texts}: leave out --batch"))),
        }
    }

    fn advance_texts(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        match tokens {
            _ if self.keeps() => self.advance_kept(tokens),
            [none] if none.is_empty() => Ok(vec![vec![]]),
            [one] => Ok(vec![self.advance_carried(one)?]),
            _ => Err(Error::Config(format!("{} texts for a model that reads one at a time", tokens.len()))),
        }
    }

    fn arrange(&mut self, from: &[usize]) -> Result<()> {
        match from {
            _ if self.keeps() => self.arrange_kept(from),
            [0] => Ok(()),
            _ => Err(Error::Config(format!("this model cannot copy its reading between {} texts", from.len()))),
        }
    }
}
