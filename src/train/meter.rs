//! Speed and time left, from exponential moving averages of wall-clock times.

use std::time::Duration;

/// Exponential moving average corrected for its start, so that the first value counts fully.
#[derive(Debug, Clone, Copy, Default)]
struct Average {
    sum: f64,
    weight: f64,
}

impl Average {
    fn push(&mut self, value: f64, decay: f64) {
        self.sum = decay * self.sum + (1.0 - decay) * value;
        self.weight = decay * self.weight + (1.0 - decay);
    }

    fn get(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Tokens per second of the training steps, and the time a run still needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    step_seconds: Average,
    step_tokens: Average,
    eval_seconds: Average,
}

impl Meter {
    /// Averages over about the last 1 / (1 - 0.95) = 20 steps.
    const STEP_DECAY: f64 = 0.95;
    const EVAL_DECAY: f64 = 0.5;

    pub fn step(&mut self, tokens: u64, wall: Duration) {
        self.step_seconds.push(wall.as_secs_f64(), Self::STEP_DECAY);
        self.step_tokens.push(tokens as f64, Self::STEP_DECAY);
    }

    pub fn eval(&mut self, wall: Duration) {
        self.eval_seconds.push(wall.as_secs_f64(), Self::EVAL_DECAY);
    }

    /// Target tokens per second of training steps; validation does not count.
    pub fn tokens_per_second(&self) -> f64 {
        match (self.step_tokens.get(), self.step_seconds.get()) {
            (Some(tokens), Some(seconds)) if seconds > 0.0 => tokens / seconds,
            _ => 0.0,
        }
    }

    /// Time for `steps` more steps and `evals` more validations; None before the first step.
    pub fn remaining(&self, steps: u64, evals: u64) -> Option<Duration> {
        let step = self.step_seconds.get()?;
        let eval = self.eval_seconds.get().unwrap_or(0.0);
        Duration::try_from_secs_f64(steps as f64 * step + evals as f64 * eval).ok()
    }
}

/// A duration for people: `45s`, `3m 05s`, `2h 07m`, `4d 06h`.
pub fn human_duration(duration: Duration) -> String {
    let s = duration.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {:02}h", s / 86400, s % 86400 / 3600),
    }
}

/// A byte count for people, in powers of 1024.
pub fn human_bytes(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_steps_give_their_own_rate_from_the_first_one_on() {
        let mut meter = Meter::default();
        assert_eq!((meter.tokens_per_second(), meter.remaining(5, 0)), (0.0, None));
        for _ in 0..3 {
            meter.step(100, Duration::from_millis(50));
            assert!((meter.tokens_per_second() - 2000.0).abs() < 1e-6);
        }
        meter.eval(Duration::from_secs(2));
        let left = meter.remaining(10, 3).unwrap().as_secs_f64();
        assert!((left - 6.5).abs() < 1e-6, "{left}");
    }

    #[test]
    fn the_rate_follows_a_change_of_speed() {
        let mut meter = Meter::default();
        (0..100).for_each(|_| meter.step(10, Duration::from_millis(100)));
        (0..100).for_each(|_| meter.step(10, Duration::from_millis(10)));
        assert!(meter.tokens_per_second() > 900.0);
    }

    #[test]
    fn durations_and_sizes_read_well() {
        let text: Vec<String> =
            [0, 59, 60, 185, 3600, 7620, 367_200].map(|s| human_duration(Duration::from_secs(s))).to_vec();
        assert_eq!(text, ["0s", "59s", "1m 00s", "3m 05s", "1h 00m", "2h 07m", "4d 06h"]);
        assert_eq!([0, 1023, 1536, 5 << 30].map(human_bytes), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }
}
