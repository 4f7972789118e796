//! The settings of a draw.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a token is chosen from logits; the defaults leave the model's own distribution alone. See the [module](super) for the order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0: the most likely token. Logits are divided by it.
    pub temperature: f64,
    /// Keep the k most likely tokens and those as likely as the k-th; 0: all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities reach this sum (at least one); 1: all.
    pub top_p: f64,
    /// Keep tokens at least this part as likely as the most likely one; 0: all.
    pub min_p: f64,
    /// Keep the tokens whose surprise is nearest to the expected one, until their probabilities reach this sum; 1: all.
    pub typical: f64,
    /// Logits of tokens generated before are divided by it where positive, else multiplied; 1: as they are.
    pub repeat_penalty: f64,
    /// How many of the newest generated tokens the three penalties look at; 0: all of them.
    pub repeat_last_n: usize,
    /// Taken from a token's logit for each time that it was generated.
    pub frequency_penalty: f64,
    /// Taken from the logit of a token that was generated, however often.
    pub presence_penalty: f64,
    /// Surprise in bits that mirostat 2 holds the text at; 0: off.
    pub mirostat_tau: f64,
    /// How fast mirostat 2 follows.
    pub mirostat_eta: f64,
    pub seed: u64,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f64)>,
    /// Never chosen.
    pub banned: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling::plain(1.0, 42)
    }
}

impl Sampling {
    /// The model's own distribution at a temperature.
    pub const fn plain(temperature: f64, seed: u64) -> Self {
        Sampling {
            temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            mirostat_tau: 0.0,
            mirostat_eta: 0.1,
            seed,
            logit_bias: Vec::new(),
            banned: Vec::new(),
        }
    }

    /// The most likely token, always.
    pub const fn greedy() -> Self {
        Sampling::plain(0.0, 42)
    }

    pub fn penalises(&self) -> bool {
        self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// Whether the choice is the logits' greatest as they are, which a device can find by itself.
    pub fn takes_greatest(&self) -> bool {
        self.temperature == 0.0 && !self.penalises() && self.logit_bias.is_empty() && self.banned.is_empty()
    }

    /// # Errors
    /// A value outside its range, by the name of its flag.
    pub fn validate(&self) -> Result<()> {
        let positive_or_0 = |x: f64| x.is_finite() && x >= 0.0;
        let part = |x: f64| x > 0.0 && x <= 1.0;
        let checks = [
            ("temperature", self.temperature, positive_or_0(self.temperature), "0 (greedy) or positive"),
            ("top-p", self.top_p, part(self.top_p), "greater than 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("typical", self.typical, part(self.typical), "greater than 0 and at most 1"),
            (
                "repeat-penalty",
                self.repeat_penalty,
                positive_or_0(self.repeat_penalty) && self.repeat_penalty > 0.0,
                "positive (1: off)",
            ),
            ("frequency-penalty", self.frequency_penalty, self.frequency_penalty.is_finite(), "finite"),
            ("presence-penalty", self.presence_penalty, self.presence_penalty.is_finite(), "finite"),
            ("mirostat-tau", self.mirostat_tau, positive_or_0(self.mirostat_tau), "0 (off) or positive"),
            (
                "mirostat-eta",
                self.mirostat_eta,
                positive_or_0(self.mirostat_eta) && self.mirostat_eta > 0.0,
                "positive",
            ),
        ];
        if let Some((name, value, _, must)) = checks.into_iter().find(|(_, _, good, _)| !good) {
            return Err(Error::Config(format!("{name} {value} must be {must}")));
        }
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            return Err(Error::Config(format!(
                "logit-bias {token}={bias} must be finite (or -inf, which bans the token)"
            )));
        }
        let truncates = self.top_k != 0 || self.top_p != 1.0 || self.min_p != 0.0 || self.typical != 1.0;
        if self.mirostat_tau > 0.0 && truncates {
            return Err(Error::Config(
                "mirostat-tau decides by itself how much is kept: leave out top-k, top-p, min-p and typical".into(),
            ));
        }
        Ok(())
    }

    /// Sets one number by the name of its flag, with `-` or `_`. The result is valid or unchanged.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
            value.parse().map_err(|_| Error::Config(format!("{key} {value}: not a number of the right kind")))
        }
        let mut new = self.clone();
        match key.replace('-', "_").as_str() {
            "temperature" => new.temperature = number(key, value)?,
            "top_k" => new.top_k = number(key, value)?,
            "top_p" => new.top_p = number(key, value)?,
            "min_p" => new.min_p = number(key, value)?,
            "typical" => new.typical = number(key, value)?,
            "repeat_penalty" => new.repeat_penalty = number(key, value)?,
            "repeat_last_n" => new.repeat_last_n = number(key, value)?,
            "frequency_penalty" => new.frequency_penalty = number(key, value)?,
            "presence_penalty" => new.presence_penalty = number(key, value)?,
            "mirostat_tau" => new.mirostat_tau = number(key, value)?,
            "mirostat_eta" => new.mirostat_eta = number(key, value)?,
            "seed" => new.seed = number(key, value)?,
            _ => return Err(Error::Config(format!("{key}: there are {}", Sampling::KEYS.join(", ")))),
        }
        new.validate()?;
        *self = new;
        Ok(())
    }

    /// What [`set`](Self::set) knows.
    pub const KEYS: [&str; 12] = [
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical",
        "repeat_penalty",
        "repeat_last_n",
        "frequency_penalty",
        "presence_penalty",
        "mirostat_tau",
        "mirostat_eta",
        "seed",
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_their_range_are_refused_by_the_name_of_their_flag() {
        let cases = [
            ("temperature", "-1"),
            ("temperature", "NaN"),
            ("top-p", "0"),
            ("top-p", "1.1"),
            ("min-p", "-0.1"),
            ("typical", "0"),
            ("repeat-penalty", "0"),
            ("repeat-penalty", "inf"),
            ("frequency-penalty", "NaN"),
            ("presence-penalty", "inf"),
            ("mirostat-tau", "-1"),
            ("mirostat-eta", "0"),
            ("top-k", "-1"),
            ("seed", "1.5"),
        ];
        for (key, value) in cases {
            let mut sampling = Sampling::default();
            let message = sampling.set(key, value).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(value), "{message}");
            assert_eq!(sampling, Sampling::default());
        }
        let message = Sampling::default().set("heat", "1").unwrap_err().to_string();
        assert!(Sampling::KEYS.iter().all(|k| message.contains(k)), "{message}");
        let both = Sampling { mirostat_tau: 3.0, top_k: 4, ..Sampling::default() };
        assert!(both.validate().unwrap_err().to_string().contains("leave out top-k"));
    }

    #[test]
    fn every_key_can_be_set() {
        let mut sampling = Sampling::default();
        Sampling::KEYS.iter().filter(|k| **k != "mirostat_tau").for_each(|k| sampling.set(k, "1").unwrap());
        let mut mirostat = Sampling::default();
        mirostat.set("mirostat-tau", "2.5").unwrap();
        assert_eq!((sampling.top_k, sampling.seed, mirostat.mirostat_tau), (1, 1, 2.5));
    }

    #[test]
    fn settings_survive_json_and_unknown_ones_are_refused() {
        let sampling = Sampling { top_k: 3, logit_bias: vec![(7, -1.5)], banned: vec![2], ..Sampling::default() };
        let text = serde_json::to_string(&sampling).unwrap();
        assert_eq!(serde_json::from_str::<Sampling>(&text).unwrap(), sampling);
        assert_eq!(serde_json::from_str::<Sampling>("{}").unwrap(), Sampling::default());
        assert!(serde_json::from_str::<Sampling>(r#"{"top_q": 1}"#).unwrap_err().to_string().contains("top_q"));
    }
}
