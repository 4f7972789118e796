//! Learning rate over time, and when to stop early.

use crate::config::{ScheduleConfig, ScheduleKind};
use serde::{Deserialize, Serialize};

/// Learning rate of step `step`, counted from 1.
///
/// Linear warm-up `lr * step / warmup` while step < warmup; then, with p the share of the way from `warmup` to `decay_steps`,
/// cosine: `min_lr + (lr - min_lr) (1 + cos(pi p)) / 2`; linear: `lr + (min_lr - lr) p`; constant: `lr`. After `decay_steps`
/// it stays at `min_lr`.
pub fn learning_rate(config: &ScheduleConfig, step: u64) -> f64 {
    let (lr, min_lr) = (config.lr, config.min_lr);
    if step < config.warmup {
        return lr * step as f64 / config.warmup as f64;
    }
    if config.kind == ScheduleKind::Constant {
        return lr;
    }
    if step >= config.decay_steps {
        return min_lr;
    }
    let progress = (step - config.warmup) as f64 / (config.decay_steps - config.warmup) as f64;
    match config.kind {
        ScheduleKind::Cosine => min_lr + (lr - min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        ScheduleKind::Linear => lr + (min_lr - lr) * progress,
        ScheduleKind::Constant => lr,
    }
}

/// The best validation so far, and how long ago that was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    #[serde(with = "best_exactly")]
    pub best: Option<Best>,
    /// Loss that a validation must fall below by `min_delta` to count as progress.
    #[serde(with = "super::exact::option")]
    reference: Option<f64>,
    /// Validations since the last progress, counted after the burn-in.
    pub stale: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub step: u64,
    /// Validation loss in nats per token.
    pub loss: f64,
}

/// `[step, "loss"]` with the loss as text, so that a resumed run compares with the very same number.
mod best_exactly {
    use super::Best;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(best: &Option<Best>, serializer: S) -> Result<S::Ok, S::Error> {
        best.map(|best| (best.step, best.loss.to_string())).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Best>, D::Error> {
        let best = Option::<(u64, String)>::deserialize(deserializer)?;
        best.map(|(step, loss)| Ok(Best { step, loss: loss.parse().map_err(D::Error::custom)? })).transpose()
    }
}

/// What a validation means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The lowest validation loss so far.
    pub is_best: bool,
    /// Patience has run out.
    pub stop: bool,
}

impl EarlyStopping {
    /// Takes in one validation. Stops once `patience` of them in a row, all after step `burn_in`, brought no fall of more
    /// than `min_delta`; `patience` 0 never stops. A slow fall adds up: it is measured from the last progress.
    pub fn update(&mut self, step: u64, loss: f64, patience: u64, burn_in: u64, min_delta: f64) -> Verdict {
        let is_best = self.best.is_none_or(|best| loss < best.loss);
        if is_best {
            self.best = Some(Best { step, loss });
        }
        if self.reference.is_none_or(|reference| loss < reference - min_delta) {
            self.reference = Some(loss);
            self.stale = 0;
        } else if step > burn_in {
            self.stale += 1;
        }
        Verdict { is_best, stop: patience > 0 && self.stale >= patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: u64, decay_steps: u64) -> ScheduleConfig {
        ScheduleConfig { kind, lr: 3e-4, min_lr: 3e-5, warmup, decay_steps }
    }

    #[test]
    fn warm_up_and_cosine_give_the_published_values() {
        let config = schedule(ScheduleKind::Cosine, 100, 2000);
        assert!((learning_rate(&config, 25) - 7.5e-5).abs() < 1e-12);
        assert!((learning_rate(&config, 1500) - 7.36e-5).abs() < 5e-8, "{}", learning_rate(&config, 1500));
        assert_eq!(learning_rate(&config, 100), 3e-4);
        assert_eq!(learning_rate(&config, 2000), 3e-5);
        assert_eq!(learning_rate(&config, 9999), 3e-5);
        assert!((learning_rate(&config, 1050) - 1.65e-4).abs() < 1e-12, "half way is the mean of both ends");
    }

    #[test]
    fn cosine_never_rises_after_the_warm_up() {
        let config = schedule(ScheduleKind::Cosine, 10, 500);
        assert!((10..600).all(|step| learning_rate(&config, step + 1) <= learning_rate(&config, step)));
    }

    #[test]
    fn linear_and_constant_schedules() {
        let linear = schedule(ScheduleKind::Linear, 0, 100);
        assert!((learning_rate(&linear, 50) - 1.65e-4).abs() < 1e-12);
        assert_eq!(learning_rate(&linear, 100), 3e-5);
        let constant = schedule(ScheduleKind::Constant, 4, 100);
        assert_eq!(learning_rate(&constant, 2), 1.5e-4);
        assert_eq!(learning_rate(&constant, 5000), 3e-4);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_stays_in_it() {
        let config = schedule(ScheduleKind::Cosine, 100, 20);
        assert!((learning_rate(&config, 20) - 6e-5).abs() < 1e-15);
        let equal = schedule(ScheduleKind::Cosine, 20, 20);
        assert_eq!(learning_rate(&equal, 20), 3e-5);
    }

    #[test]
    fn stops_after_patience_validations_without_progress_and_not_before_burn_in() {
        let mut early = EarlyStopping::default();
        let mut stops = Vec::new();
        for (index, loss) in [3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5].into_iter().enumerate() {
            let verdict = early.update(10 * (index as u64 + 1), loss, 3, 40, 0.0);
            assert_eq!(verdict.is_best, index < 2);
            stops.push(verdict.stop);
        }
        // Validations at 30 and 40 fall in the burn-in; 50, 60 and 70 use the patience up.
        assert_eq!(stops, [false, false, false, false, false, false, true]);
        assert_eq!(early.best, Some(Best { step: 20, loss: 2.0 }));
    }

    #[test]
    fn zero_patience_never_stops_and_small_gains_add_up() {
        let mut early = EarlyStopping::default();
        for step in 1..100 {
            assert!(!early.update(step, 5.0, 0, 0, 0.0).stop);
        }
        // Falls of 0.03 are each below min_delta = 0.05, yet every second one has fallen by more than that in sum.
        let mut early = EarlyStopping::default();
        for step in 1..50 {
            let verdict = early.update(step, 5.0 - 0.03 * step as f64, 2, 0, 0.05);
            assert!(verdict.is_best && !verdict.stop, "step {step}");
        }
    }
}
