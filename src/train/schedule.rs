//! Learning rate over time, and when to stop early.

use crate::config::{ScheduleConfig, ScheduleKind};
use serde::{Deserialize, Serialize};

/// Learning rate of step `step`, counted from 1.
///
/// Linear warm-up `lr * step / warmup` while step < warmup; `lr` up to step `warmup + hold`; then, with p the share of the way from there
/// to `decay_steps`, cosine: `min_lr + (lr - min_lr) (1 + cos(pi p)) / 2`; linear: `lr + (min_lr - lr) p`; constant: `lr`. After `decay_steps`
/// it stays at `min_lr`.
///
/// A recipe that counts steps from 0, with `lr (s + 1) / warmup` and then a cosine over `(s - warmup) / (last - warmup)`, is this one
/// with `hold = 1` and `decay_steps = last + 1`.
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
    let begin = config.warmup.saturating_add(config.hold);
    if step <= begin {
        return lr;
    }
    let progress = (step - begin) as f64 / (config.decay_steps - begin) as f64;
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
    /// Validations since the last progress.
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
    /// Takes in one validation. Stops once `patience` of them in a row brought no fall of more than `min_delta` and step `burn_in` has
    /// been reached: with validations every n steps no earlier than max(burn_in, best + n * patience). `patience` 0 never stops. A
    /// slow fall adds up: it is measured from the last progress.
    pub fn update(&mut self, step: u64, loss: f64, patience: u64, burn_in: u64, min_delta: f64) -> Verdict {
        let is_best = self.best.is_none_or(|best| loss < best.loss);
        if is_best {
            self.best = Some(Best { step, loss });
        }
        if self.reference.is_none_or(|reference| loss < reference - min_delta) {
            self.reference = Some(loss);
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        Verdict { is_best, stop: patience > 0 && self.stale >= patience && step >= burn_in }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: u64, decay_steps: u64) -> ScheduleConfig {
        ScheduleConfig { kind, lr: 3e-4, min_lr: 3e-5, warmup, hold: 0, decay_steps }
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
    fn the_nightly_schedule_is_the_formula_counted_from_zero() {
        let config = crate::config::Config::load("coeus-nightly-v2.6", &[]).unwrap().0.schedule;
        let (peak, least, warmup, last) = (1.6e-4, 1.6e-5, 500.0, 5000.0);
        for step in [0u64, 1, 498, 499, 500, 501, 2750, 4999, 5000] {
            let s = step as f64;
            let want = if s < warmup {
                peak * (s + 1.0) / warmup
            } else {
                least + 0.5 * (peak - least) * (1.0 + (std::f64::consts::PI * (s - warmup) / (last - warmup)).cos())
            };
            let have = learning_rate(&config, step + 1);
            assert!((have - want).abs() < 1e-15, "step {step}: {have} against {want}");
        }
    }

    #[test]
    fn the_peak_is_held_as_long_as_asked() {
        let config = ScheduleConfig { hold: 50, ..schedule(ScheduleKind::Linear, 10, 160) };
        assert!((10..=60).all(|step| learning_rate(&config, step) == 3e-4));
        assert!((learning_rate(&config, 110) - 1.65e-4).abs() < 1e-15);
        // A hold that the run does not outlast leaves nothing to divide by.
        let short = ScheduleConfig { hold: u64::MAX, ..schedule(ScheduleKind::Cosine, 10, 20) };
        assert_eq!((learning_rate(&short, 19), learning_rate(&short, 20)), (3e-4, 3e-5));
    }

    /// The step at which a run with this validation curve, one validation every hundred steps, stops; None if it takes all of it.
    fn stop(curve: impl Fn(u64) -> f64, checks: u64, patience: u64, burn_in: u64) -> (Option<u64>, Best) {
        let mut early = EarlyStopping::default();
        let mut least = f64::INFINITY;
        for step in (1..=checks).map(|n| 100 * n) {
            let loss = curve(step);
            let verdict = early.update(step, loss, patience, burn_in, 0.0);
            assert_eq!(verdict.is_best, loss < least, "step {step}");
            least = least.min(loss);
            assert_eq!(early.best.unwrap().loss, least, "step {step}: the best was replaced by a worse one");
            if verdict.stop {
                return (Some(step), early.best.unwrap());
            }
        }
        (None, early.best.unwrap())
    }

    #[test]
    fn scripted_validation_curves_stop_at_the_later_of_burn_in_and_best_plus_patience() {
        let valley = |bottom: u64| move |step: u64| 1.0 + (step as f64 - bottom as f64).abs() / 1e4;
        for patience in [15, 20] {
            for bottom in [100, 300, 500, 600, 1900, 2000, 2100, 3000] {
                let (stopped, best) = stop(valley(bottom), 50, patience, 2000);
                assert_eq!(best.step, bottom);
                assert_eq!(stopped, Some(2000.max(bottom + 100 * patience)), "patience {patience}, best at {bottom}");
            }
            // A fall that never ends, and one whose end comes too late for the patience to run out.
            assert_eq!(stop(|step| 1e6 / step as f64, 50, patience, 2000).0, None);
            assert_eq!(stop(valley(5000 - 100 * patience + 100), 50, patience, 2000).0, None);
            // Equal is no progress: the first of two equal validations is the best.
            let equal = (Some(2000.max(100 + 100 * patience)), Best { step: 100, loss: 2.0 });
            assert_eq!(stop(|_| 2.0, 50, patience, 2000), equal);
        }
        // A second, lower valley inside the patience starts the count again.
        let two = |step: u64| if step < 2400 { valley(1200)(step) } else { valley(2600)(step) - 0.2 };
        assert_eq!(stop(two, 50, 15, 2000).0, Some(4100));
        assert_eq!(stop(two, 50, 11, 2000).0, Some(2300));
        assert_eq!(stop(two, 50, 11, 2000).1.step, 1200);
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
        // 30, 40 and 50 use the patience up; without the burn-in the run had stopped there, with one until 70 it goes on till then.
        assert_eq!(stops, [false, false, false, false, true, true, true]);
        let mut early = EarlyStopping::default();
        let stops = [3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5].into_iter().enumerate();
        let stops: Vec<bool> =
            stops.map(|(i, loss)| early.update(10 * (i as u64 + 1), loss, 3, 70, 0.0).stop).collect();
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
