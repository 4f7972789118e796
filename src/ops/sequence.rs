//! Cutting tensors `[batch, time, channels]` into pieces that fit a device's bindings and time budget: ranges of batch
//! rows, or, where one row exceeds a binding, ranges of one row's time.

use crate::device::Unsupported;
use crate::device::gpu::{Bind, Buf, Lowering};
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub batch: usize,
    pub time: usize,
    pub channels: usize,
}

/// All of time for some batch rows, or some of time for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub rows: Range<usize>,
    pub times: Range<usize>,
}

impl Sequence {
    pub fn new(shape: &[usize]) -> Self {
        Sequence { batch: shape[0], time: shape[1], channels: shape[2] }
    }

    /// Pieces for an operator that binds `tensors` of these and spends `flops` an element. `halo`: steps of
    /// neighbouring time that a piece must see on either side; None: time cannot be cut.
    pub fn pieces(
        &self,
        l: &Lowering,
        tensors: usize,
        flops: f64,
        halo: Option<usize>,
    ) -> Result<Vec<Piece>, Unsupported> {
        let step = 4 * self.channels as u64;
        let row = step * self.time as u64;
        let rows = l.pieces(self.batch, &vec![row; tensors], flops * row as f64 / 4.0, 0);
        if rows.is_ok() || halo.is_none() {
            return Ok(rows?.into_iter().map(|rows| Piece { rows, times: 0..self.time }).collect());
        }
        let slack = 2 * halo.unwrap_or(0) as u64 * step;
        let times = l.pieces(self.time, &vec![step; tensors], flops * self.channels as f64, slack)?;
        let piece = |b: usize| times.iter().map(move |t| Piece { rows: b..b + 1, times: t.clone() });
        Ok((0..self.batch).flat_map(piece).collect())
    }

    /// Binds `times` of `rows`; returns with it the words bound ahead of the first element.
    pub fn window(&self, l: &Lowering, buf: Buf, piece: &Piece, write: bool) -> (Bind, usize) {
        let at = |row: usize, time: usize| ((row * self.time + time) * self.channels * 4) as u64;
        let Piece { rows, times } = piece;
        let end = if rows.is_empty() { at(rows.start, times.start) } else { at(rows.end - 1, times.end) };
        l.window(buf, at(rows.start, times.start)..end, write)
    }
}
