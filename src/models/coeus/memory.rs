//! The episodic memory: every `mem_update_freq` tokens a compressed snapshot of the block's input is kept, and every token attends
//! to the last `mem_capacity` of them, all from strictly before it.

use super::{Coeus, EPS, STD};
use crate::Result;
use crate::config::MemSource;
use crate::graph::Value;
use crate::nn::{Builder, Feed, Init, Slots};
use crate::ops::episodic::EpisodicRead;
use crate::ops::reduce::Reduction;

impl Coeus {
    /// How the memory is read.
    pub(super) fn episodic_read(&self) -> EpisodicRead {
        let c = &self.config;
        let scale = 1.0 / (c.mem_width() as f32).sqrt();
        EpisodicRead { every: c.mem_update_freq, slots: c.mem_capacity, ready: c.mem_ready(), scale }
    }

    /// What is kept of the tokens of each slot: n [B, T, width], which starts with a slot's first token, to [B, S, width] with
    /// S = T / `mem_update_freq`, rounded up. A mean of tokens that are not all there is not one: nobody may read it.
    pub(super) fn snapshots(&self, b: &mut Builder, n: Value) -> Result<Value> {
        let c = &self.config;
        let (batch, time) = (b.graph.shape(n)[0], b.graph.shape(n)[1]);
        // A slot longer than the text needs no filling up.
        let every = c.mem_update_freq.min(time);
        let slots = time.div_ceil(every);
        let whole = b.graph.pad(n, 1, 0, slots * every - time, 0.0)?;
        let grouped = b.graph.reshape(whole, &[batch, slots, every, c.width])?;
        let kept = match c.mem_source {
            MemSource::Pick => b.graph.slice(grouped, 2, 0, 1)?,
            MemSource::Mean => b.graph.reduce(grouped, Reduction::Mean, (2, 3), false)?,
        };
        b.graph.reshape(kept, &[batch, slots, c.width])
    }

    /// Keys and values of slots: what was kept [B, S, width] to twice [B, S, memory width].
    pub(super) fn slots(&self, b: &mut Builder, kept: Value) -> Result<(Value, Value)> {
        let width = self.config.mem_width();
        let c = b.linear("compress_proj", kept, width, false, Init::Normal(STD))?;
        let c = b.norm("norm", c, crate::config::Norm::Rmsnorm, false, f64::from(EPS))?;
        let k = b.linear("k_proj", c, width, false, Init::Normal(STD))?;
        let v = b.linear("v_proj", c, width, false, Init::Normal(STD))?;
        Ok((k, v))
    }

    /// What the tokens n [B, T, width] make of slots `k`, `v`: gate (softmax(q k') v) W, [B, T, width]. `place` as for
    /// [`EpisodicRead`].
    pub(super) fn recall(&self, b: &mut Builder, n: Value, k: Value, v: Value, place: Option<Value>) -> Result<Value> {
        let q = b.linear("q_proj", n, self.config.mem_width(), false, Init::Normal(STD))?;
        let read = b.graph.episodic_read(q, k, v, place, self.episodic_read())?;
        // One number a token: whether to use the memory at all.
        let gate = b.linear("gate", n, 1, true, Init::Normal(STD))?;
        let gate = b.graph.sigmoid(gate)?;
        let read = b.graph.mul(read, gate)?;
        b.linear("o_proj", read, self.config.width, false, self.branch_end())
    }

    /// The memory of a text: n [B, T, width], the whole of it or its next segment, to [B, T, width].
    pub(super) fn episodic(&self, b: &mut Builder, n: Value) -> Result<Value> {
        if b.segment().is_some() {
            return self.continued(b, n);
        }
        let kept = self.snapshots(b, n)?;
        let (k, v) = self.slots(b, kept)?;
        self.recall(b, n, k, v, None)
    }

    /// The memory of a segment n [1, T, width]: the slots of earlier segments are carried, those that begin in it are added. Beside
    /// the slots that are read the state has the one that left the ring last, where other rings have a row for writes that must
    /// not count.
    fn continued(&self, b: &mut Builder, n: Value) -> Result<Value> {
        let c = &self.config;
        let slots = Slots { every: c.mem_update_freq, whole: c.mem_source == MemSource::Mean };
        let (time, kept) = (b.graph.shape(n)[1], c.mem_capacity + 1);
        // A group may have begun in an earlier segment.
        let rows =
            if slots.whole { b.lengthen("inputs", n, slots.every, Feed::Newest { rows: slots.every })? } else { n };
        let rows = b.graph.reshape(rows, &[b.graph.shape(rows)[1], c.width])?;
        let sources = b.feed(Feed::Sources { slots })?;
        let sources = b.graph.embedding(rows, sources)?;
        let added = slots.most(time);
        let mut snapshots = b.graph.reshape(sources, &[1, added, slots.sources(), c.width])?;
        if slots.whole {
            snapshots = b.graph.reduce(snapshots, Reduction::Mean, (2, 3), false)?;
        }
        let snapshots = b.graph.reshape(snapshots, &[1, added, c.width])?;
        let (k, v) = self.slots(b, snapshots)?;
        let newest = Feed::NewestSlots { slots, kept };
        let k = b.lengthen("keys", k, kept, newest)?;
        let v = b.lengthen("values", v, kept, newest)?;
        let place = b.feed(Feed::Place { slots, kept })?;
        self.recall(b, n, k, v, Some(place))
    }
}
