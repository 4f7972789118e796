//! Texts of growing length through a model that carries a state: time, memory, and loss by position. What `bench context` prints.

mod picture;

pub use picture::svg;

use super::Progress;
use super::table::units;
use crate::infer::NextToken;
use crate::models::Session;
use crate::models::session::carried::{Reads, SEGMENTS};
use crate::ops::case::SplitMix;
use crate::{Error, Result};
use serde::Serialize;
use std::fmt::Write;
use std::time::Instant;

/// Tokens of the longest segment: what a long text is read in.
pub const SEGMENT: usize = SEGMENTS[SEGMENTS.len() - 1];
/// Tokens generated after a text.
const DECODED: usize = 32;

/// What the description of Coeus v2.5 gives for its own program on a laptop RTX 4050: tokens, gigabytes of GPU memory, seconds of the
/// forward pass. Context beside our figures, not a measurement of ours.
pub const PUBLISHED: [(u64, f64, f64); 5] =
    [(1_000, 0.31, 2.0), (5_000, 0.38, 4.8), (10_000, 0.46, 11.0), (20_000, 0.61, 21.3), (30_000, 0.76, 31.5)];

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub tokens: u64,
    /// Of reading them, from an empty state.
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// Tokens per second one by one, after the text.
    pub decode_tokens_per_second: f64,
    /// Allocated on the device: weights, states and the plans of all segments.
    pub device_bytes: u64,
    pub published_gigabytes: Option<f64>,
    pub published_seconds: Option<f64>,
}

/// Mean loss of the tokens `from..to` of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stretch {
    pub from: usize,
    pub to: usize,
    /// Nats per token.
    pub loss: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ContextReport {
    pub model: String,
    pub parameters: usize,
    pub device: String,
    pub segment: usize,
    pub weight_bytes: u64,
    pub state_bytes: u64,
    /// FLOPs of a token that is read in a whole segment.
    pub flops_per_token: f64,
    pub rows: Vec<Row>,
    pub text: Option<String>,
    pub stretches: Vec<Stretch>,
    /// Bytes that a cache of all keys and values of a transformer of the same layers and width would take for each token (computed).
    pub cache_bytes_per_token: u64,
}

/// Reads a random text of each of `lengths` tokens, each from an empty state.
///
/// # Errors
/// A model that carries no state, or whose learned positions end before the longest length.
pub fn measure(
    session: &mut Session,
    lengths: &[u64],
    shape: (usize, usize),
    progress: &mut dyn Progress,
) -> Result<ContextReport> {
    session.carries()?;
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if let Some(limit) = session.model().last_position()
        && longest + DECODED as u64 > limit as u64
    {
        return Err(Error::Config(format!(
            "{longest} tokens and {DECODED} generated ones are more than the model's {limit} learned positions: use shorter --lengths, \
             a longer model.context, or a model with model.positions = \"rope\""
        )));
    }
    // Every plan is made before the first text.
    SEGMENTS.into_iter().try_for_each(|s| session.prepare_segment(s, Reads::Next))?;
    let flops = session.segment_flops(SEGMENT)?;
    let vocabulary = session.model().vocab_size() as u64;
    let mut rng = SplitMix(1);
    let text: Vec<u32> = (0..SEGMENT).map(|_| (rng.next_u64() % vocabulary) as u32).collect();
    // Kernels are made ready, and caches warm.
    session.restart()?;
    session.advance(&text)?;
    session.advance(&text[..1])?;
    let mut rows = Vec::new();
    for &tokens in lengths {
        progress.step(&format!("{tokens} tokens"));
        session.restart()?;
        let begun = Instant::now();
        let mut left = tokens as usize;
        while left > 0 {
            let part = left.min(SEGMENT);
            session.advance(&text[..part])?;
            left -= part;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for id in text.iter().cycle().take(DECODED) {
            session.advance(&[*id])?;
        }
        let decode = DECODED as f64 / begun.elapsed().as_secs_f64();
        let published = PUBLISHED.iter().find(|p| p.0 == tokens);
        rows.push(Row {
            tokens,
            seconds,
            tokens_per_second: tokens as f64 / seconds,
            decode_tokens_per_second: decode,
            device_bytes: session.reading_bytes(),
            published_gigabytes: published.map(|p| p.1),
            published_seconds: published.map(|p| p.2),
        });
    }
    session.restart()?;
    let parameters: usize = session.parameters().iter().map(|p| p.elements()).sum();
    let state_bytes = session.states()?.iter().map(|(_, ty)| ty.bytes()).sum();
    let (layers, width) = shape;
    Ok(ContextReport {
        model: session.model().summary(),
        parameters,
        device: session.device().name(),
        segment: SEGMENT,
        weight_bytes: 4 * parameters as u64,
        state_bytes,
        flops_per_token: flops / SEGMENT as f64,
        rows,
        text: None,
        stretches: vec![],
        cache_bytes_per_token: (2 * layers * width * 4) as u64,
    })
}

/// Where stretches of a text end; the last one ends with the text.
const ENDS: [usize; 8] = [1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000, 100_000];

/// Mean losses of stretches of a text of `tokens`, read once from its beginning to its end.
pub fn loss_by_position(session: &mut Session, tokens: &[u32]) -> Result<Vec<Stretch>> {
    if tokens.len() < 2 {
        return Err(Error::Data("a text of one token has no loss: give a longer --text".into()));
    }
    session.restart()?;
    let scores = session.score(&tokens[..tokens.len() - 1], &tokens[1..])?;
    session.restart()?;
    let mut from = 0;
    let mut stretches = Vec::new();
    for end in ENDS {
        let to = end.min(scores.len());
        if to > from {
            let loss = scores[from..to].iter().map(|s| *s as f64).sum::<f64>() / (to - from) as f64;
            stretches.push(Stretch { from, to, loss });
        }
        from = to;
    }
    Ok(stretches)
}

impl ContextReport {
    /// Bytes at the longest text less those at the shortest.
    pub fn growth(&self) -> i64 {
        let (first, last) = (self.rows.first(), self.rows.last());
        last.map_or(0, |r| r.device_bytes as i64) - first.map_or(0, |r| r.device_bytes as i64)
    }

    /// Mean loss from token 20,000 to 30,000 less that from 1,000 to 2,000.
    pub fn rise(&self) -> Option<f64> {
        let of = |from: usize, to: usize| self.stretches.iter().find(|s| (s.from, s.to) == (from, to)).map(|s| s.loss);
        Some(of(20_000, 30_000)? - of(1_000, 2_000)?)
    }

    /// As Markdown.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let _ = writeln!(
            out,
            "{}\n{} parameters on {}, read in segments of {}\n",
            self.model, self.parameters, self.device, self.segment
        );
        let _ = writeln!(
            out,
            "weights {:.1} MB, state {:.3} MB, {:.1} MFLOP a token\n",
            mb(self.weight_bytes),
            mb(self.state_bytes),
            self.flops_per_token / 1e6
        );
        let _ = writeln!(
            out,
            "| tokens | seconds | tokens/s | GFLOP/s | then one by one | device memory | published: seconds | memory |"
        );
        let _ = writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|---:|");
        for r in &self.rows {
            let published = |v: Option<f64>, unit: &str| v.map_or("-".into(), |v| format!("{v} {unit}"));
            let _ = writeln!(
                out,
                "| {} | {:.2} | {:.0} | {} | {:.0}/s | {:.2} MB | {} | {} |",
                r.tokens,
                r.seconds,
                r.tokens_per_second,
                units::figures(r.tokens_per_second * self.flops_per_token / 1e9),
                r.decode_tokens_per_second,
                mb(r.device_bytes),
                published(r.published_seconds, "s"),
                published(r.published_gigabytes, "GB"),
            );
        }
        let _ = writeln!(out, "\nThe longest text takes {} bytes more than the shortest.", self.growth());
        let _ = writeln!(
            out,
            "Published figures: the description of version 2.5, on a laptop RTX 4050; they grow by 15.4 kB a token. A transformer of these layers and this width keeps {:.1} kB a token.",
            self.cache_bytes_per_token as f64 / 1e3
        );
        if let Some(text) = &self.text {
            let _ = writeln!(out, "\nLoss by position in {text}:\n\n| tokens | nats per token |\n|---|---:|");
            for s in &self.stretches {
                let _ = writeln!(out, "| {} to {} | {:.4} |", s.from, s.to, s.loss);
            }
            if let Some(rise) = self.rise() {
                let verdict = if rise <= 0.05 { "does not rise" } else { "RISES" };
                let _ = writeln!(
                    out,
                    "\nFrom 1,000-2,000 to 20,000-30,000 the loss {verdict}: {rise:+.4} (at most +0.05 is allowed for)."
                );
            }
        }
        out
    }
}
