//! What each origin of a mixed validation text costs, and whether that can be: a text of which every document carries random
//! choices has a floor under its loss. A loss below it proves that the model has seen the text, or that something is wrong.

use super::model::{EvalSum, Source};
use serde::{Deserialize, Serialize};

/// Validation of one origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    pub name: String,
    pub bits_per_byte: f64,
    /// Tokens the loss is taken over.
    pub tokens: u64,
    /// Bits per byte that no model can stay below on text it has not seen; None where that is not known.
    pub floor: Option<f64>,
}

impl SourceLoss {
    /// Below the floor.
    pub fn is_leak(&self) -> bool {
        self.floor.is_some_and(|floor| self.bits_per_byte < floor)
    }

    /// `arithmetic 0.412 bits/byte (at least 0.105)`
    pub fn text(&self) -> String {
        let floor = self.floor.map_or(String::new(), |floor| format!(" (at least {floor:.3})"));
        format!("{} {:.3} bits/byte{floor}", self.name, self.bits_per_byte)
    }

    /// What a person has to be told of a loss below the floor.
    pub fn warning(&self) -> Option<String> {
        let floor = self.floor.filter(|_| self.is_leak())?;
        Some(format!(
            "WARNING: {} is at {:.4} bits per byte over {} tokens, and no model can be below {floor:.4} on text that it has not seen: the \
             validation text leaks into training, or something is wrong (`lynx-gpu data validate FOLDER` checks a written corpus)",
            self.name, self.bits_per_byte, self.tokens
        ))
    }
}

/// Losses of the origins of a mix, added up batch by batch.
#[derive(Debug, Clone)]
pub struct SourceSums {
    sources: Vec<Source>,
    sums: Vec<EvalSum>,
}

impl SourceSums {
    pub fn new(sources: &[Source]) -> Self {
        Self { sources: sources.to_vec(), sums: vec![EvalSum::default(); sources.len()] }
    }

    /// Adds sequences; `source_of` has the origin of each, and may be shorter where the last ones are filling.
    pub fn add(&mut self, source_of: &[usize], rows: &[EvalSum]) {
        for (source, row) in source_of.iter().zip(rows) {
            self.sums[*source].nll += row.nll;
            self.sums[*source].tokens += row.tokens;
        }
    }

    /// The origins of which something was scored.
    pub fn losses(&self) -> Vec<SourceLoss> {
        let scored = self.sources.iter().zip(&self.sums).filter(|(_, sum)| sum.tokens > 0);
        scored
            .map(|(source, sum)| SourceLoss {
                name: source.name.clone(),
                bits_per_byte: sum.nll / sum.tokens as f64 / std::f64::consts::LN_2 / source.bytes_per_token,
                tokens: sum.tokens,
                floor: source.floor,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_byte_are_of_the_rows_of_a_source_and_a_loss_below_the_floor_warns() {
        let source = |name: &str, bytes_per_token, floor| Source { name: name.into(), bytes_per_token, floor };
        let mut sums = SourceSums::new(&[source("a", 1.0, Some(0.5)), source("b", 4.0, None), source("c", 1.0, None)]);
        let row = |bits: f64, tokens: u64| EvalSum { nll: bits * std::f64::consts::LN_2, tokens };
        // The third row is filling.
        sums.add(&[0, 1], &[row(6.0, 10), row(8.0, 2), row(99.0, 5)]);
        sums.add(&[1, 0], &[row(8.0, 2), row(2.0, 6)]);
        let losses = sums.losses();
        assert_eq!(losses.iter().map(|l| (l.name.as_str(), l.tokens)).collect::<Vec<_>>(), [("a", 16), ("b", 4)]);
        assert!((losses[0].bits_per_byte - 0.5).abs() < 1e-12 && (losses[1].bits_per_byte - 1.0).abs() < 1e-12);
        let low = SourceLoss { bits_per_byte: 0.49, ..losses[0].clone() };
        assert!(low.is_leak() && low.warning().unwrap().contains("leaks"));
        let (fine, unknown) = (SourceLoss { bits_per_byte: 0.51, ..low.clone() }, SourceLoss { floor: None, ..low });
        assert!(fine.warning().is_none() && unknown.warning().is_none());
    }
}
